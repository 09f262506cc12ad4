"""SAPO in training: what is written, what is drawn, which weights write and judge, and what must
not change a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import prescribe, small_recipe, write_jsonl
from safetensors.torch import load_file

from aligner.errors import DataError, RecipeError
from aligner.events import Notice, Warned
from aligner.methods.pipeline import run_recipe
from aligner.methods.sapo import train as sapo_train
from aligner.methods.sapo import trainer as sapo_trainer
from aligner.methods.sapo import writer as sapo_writer
from aligner.runs.files import read_json, read_metrics

FAST = (
    "trainer.logging_steps=1",
    "trainer.learning_rate=0.01",
    "sapo.window=3",
    "sapo.temperature=1.0",
    "sapo.top_k=0",
)


def train(
    world: Path, folder: Path, *overrides: str, **flags: Any
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The log of a run, and the events that it sent."""
    events: list[Any] = []
    given = {override.split("=", 1)[0] for override in overrides}
    settings = [setting for setting in FAST if setting.split("=", 1)[0] not in given]
    run_recipe(
        small_recipe("sapo", world, folder, *settings, *overrides, **flags), on_event=events.append
    )
    return read_metrics(folder), events


def losses(log: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in log if line["split"] == "train"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "final").glob("*.safetensors")))


class Spy:
    """Keeps what each step wrote and drew, and the weights it was written with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[list[Any]] = []
        self.drawn: list[list[Any]] = []
        self.batches: list[dict[str, Any]] = []
        self.trainers: list[Any] = []
        write, draw, batches = (
            sapo_train.SapoTrainer._write,
            sapo_train.SapoTrainer._draw,
            sapo_train.SapoTrainer._batches,
        )

        def spy_write(trainer: Any, *arguments: Any) -> Any:
            self.trainers.append(trainer)
            self.written.append(write(trainer, *arguments))
            return self.written[-1]

        def spy_draw(trainer: Any, *arguments: Any) -> Any:
            self.drawn.append([replace(entry) for entry in draw(trainer, *arguments)])
            return [replace(entry) for entry in self.drawn[-1]]

        def spy_batches(trainer: Any, *arguments: Any) -> Any:
            made = batches(trainer, *arguments)
            self.batches += made
            return made

        monkeypatch.setattr(sapo_train.SapoTrainer, "_write", spy_write)
        monkeypatch.setattr(sapo_train.SapoTrainer, "_draw", spy_draw)
        monkeypatch.setattr(sapo_train.SapoTrainer, "_batches", spy_batches)


def test_it_trains_and_shows_what_it_does(small_world, tmp_path):
    log, events = train(small_world, tmp_path, "trainer.max_steps=6")
    assert losses(log)[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses(log)[-1] < 0.68
    assert log[-1]["sapo/ema_distance"] > 0
    shown = {
        "dead_pairs",
        "buffer_fill",
        "buffer_age",
        "draws",
        "rejected_length",
        "generation_share",
    }
    assert {f"sapo/{name}" for name in shown} <= log[0].keys()
    text = next(
        event.text for event in events if isinstance(event, Notice) and "rewriting" in event.text
    )
    assert "temperature 1" in text
    pairs = read_json(tmp_path, "pairs.json")
    assert pairs
    assert pairs[0]["chosen"] != pairs[0]["rejected"]
    assert "Rewritten answers" in (tmp_path / "report.html").read_text()
    assert "Self-Augmented" in (tmp_path / "final" / "README.md").read_text()


def test_masks_positions_and_stops_are_those_of_training(small_world, tmp_path, monkeypatch):
    """No token of an answer is masked, also a stop token inside; the prompt is as generation sees
    it; one stop at the end."""
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=2", "preference.prefix=separate")
    stops = spy.trainers[0].writer.stops
    for batch in spy.batches:
        assert (batch["attention_mask"].sum(1) > 0).all()
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
            real = ids[mask.bool()]
            answer = labels[labels != -100]
            assert mask.tolist() == sorted(mask.tolist(), reverse=True), "no hole in a row"
            assert real[-len(answer) :].tolist() == answer.tolist()
    for entry in spy.written[0]:
        assert entry.chosen_ids[-1] in stops
        assert sum(token in stops for token in entry.chosen_ids) == 1, "no second stop"
        assert sum(token in stops for token in entry.rejected_ids) <= 1


def test_writing_and_training_see_the_same_positions(small_world, tmp_path, monkeypatch):
    """Written from the left-padded batch, greedily; each token is the likeliest in the right-padded
    one of training."""
    spy = Spy(monkeypatch)
    train(
        small_world,
        tmp_path,
        "trainer.max_steps=1",
        "trainer.learning_rate=0.0",
        "sapo.window=all",
        "sapo.temperature=0",
        "preference.prefix=separate",
    )
    trainer, written = spy.trainers[0], spy.written[0]
    assert len({len(entry.prompt_ids) for entry in written}) > 1, "padding matters"
    batch = trainer._batches([[(entry, 1.0) for entry in written]])[0]
    with torch.no_grad():
        logits = trainer.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    for row, entry in zip(range(len(written), 2 * len(written)), written):
        start = len(entry.prompt_ids)
        after_each = logits[row, start - 1 : start - 1 + len(entry.rejected_ids)]
        written_logits = after_each.gather(1, torch.tensor(entry.rejected_ids)[:, None])[:, 0]
        assert torch.allclose(written_logits, after_each.amax(-1), atol=1e-5), (
            "but for rounding, the likeliest"
        )


@pytest.mark.parametrize("loss", ["sigmoid", "orpo"])
def test_padding_changes_no_loss(small_world, tmp_path, monkeypatch, loss):
    """The authors' next-token term of ORPO counted prompt and padding."""
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=1", f"sapo.loss={loss}")
    trainer, short, long = (
        spy.trainers[0],
        *sorted(spy.written[0], key=lambda entry: entry.length)[:: len(spy.written[0]) - 1],
    )
    assert short.length < long.length
    alone = trainer.compute_loss(trainer.model, trainer._batches([[(short, 1.0)]])[0]).item()
    beside = trainer.compute_loss(
        trainer.model, trainer._batches([[(short, 1.0), (long, 0.0)]])[0]
    ).item()
    assert beside == pytest.approx(alone, abs=1e-5)


def test_the_average_writes_and_the_reference_is_refreshed(small_world, tmp_path, monkeypatch):
    """decay 1: the average stays the start, so the reference does; decay 0: it is the policy of the
    step before."""
    references: dict[str, list[float]] = {}
    for name, overrides in {
        "start": ("sapo.ema_decay=1.0", "sapo.reference_every=1"),
        "fixed": ("sapo.ema_decay=1.0", "sapo.reference=fixed"),
        "policy": ("sapo.ema_decay=1.0", "sapo.reference=policy", "sapo.reference_every=1"),
        "ema": ("sapo.ema_decay=0.0", "sapo.reference_every=1"),
    }.items():
        with monkeypatch.context() as patch:
            spy = Spy(patch)
            log, _ = train(small_world, tmp_path / name, "trainer.max_steps=4", *overrides)
            references[name] = [line["rewards/margins"] for line in log if line["split"] == "train"]
            assert (spy.trainers[0].average.distance(spy.trainers[0].model) > 0) is True
    assert references["start"] == pytest.approx(references["fixed"], abs=1e-6)
    assert any(abs(margin) > 1e-4 for margin in references["fixed"][1:])
    assert references["policy"] == pytest.approx([0.0] * 4, abs=1e-5), (
        "the policy is its own reference at each step"
    )
    assert references["ema"] == pytest.approx([0.0] * 4, abs=1e-5)


@pytest.mark.parametrize(("epochs", "steps"), [(2, -1), (1.25, -1), (3, 7)])
def test_the_reference_is_refreshed_once_per_epoch_by_its_length(
    small_world, tmp_path, monkeypatch, epochs, steps
):
    """Also where the training ends in the middle of one. 12 steps an epoch: 48 rows, 2 x 2 a
    step."""
    refreshed = []
    copy_from = sapo_trainer.WeightCopy.copy_from

    def spy(shadow: Any, other: Any) -> None:
        if trainers:
            refreshed.append(trainers[-1].state.global_step)
        copy_from(shadow, other)

    trainers = Spy(monkeypatch).trainers
    monkeypatch.setattr(sapo_trainer.WeightCopy, "copy_from", spy)
    shape = ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2")
    train(small_world, tmp_path, *shape, trainer__max_steps=steps, trainer__num_train_epochs=epochs)
    assert trainers[-1].steps_between_references == 12
    assert refreshed == [step for step in (12, 24) if step < trainers[-1].state.max_steps]


def test_a_prefix_that_both_share_cancels(small_world, tmp_path, monkeypatch):
    """What stands before the window adds the same to both answers, so nothing to the margin or to
    its gradient."""
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=1")
    trainer, entry = (
        spy.trainers[0],
        next(one for one in spy.written[0] if not one.is_identical and len(one.rejected_ids) > 3),
    )
    shared = next(i for i, (a, b) in enumerate(zip(entry.chosen_ids, entry.rejected_ids)) if a != b)
    grown = replace(
        entry,
        prompt_ids=[*entry.prompt_ids, *entry.chosen_ids[:shared]],
        chosen_ids=entry.chosen_ids[shared:],
        rejected_ids=entry.rejected_ids[shared:],
    )
    found = []
    for one in (entry, grown):
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, trainer._batches([[(one, 1.0)]])[0])
        loss.backward()
        found.append(
            (
                loss.item(),
                torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()]),
            )
        )
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_a_dead_pair_has_no_gradient(small_world, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=1")
    trainer = spy.trainers[0]
    dead = replace(spy.written[0][0], rejected_ids=spy.written[0][0].chosen_ids)
    assert dead.is_identical
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._batches([[(dead, 1.0)]])[0])
    loss.backward()
    assert loss.item() == pytest.approx(0.693147, abs=1e-5)
    assert (
        max(
            float(weight.grad.abs().max())
            for weight in trainer.model.parameters()
            if weight.grad is not None
        )
        < 1e-6
    )


def test_dead_pairs_are_counted_and_left_out(small_world, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    monkeypatch.setattr(sapo_writer, "splice", lambda answer, *_, **__: list(answer))
    log, events = train(
        small_world, tmp_path / "run", "trainer.max_steps=2", "sapo.dead_pairs=drop"
    )
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    assert "nothing is trained until that changes" in warning
    assert log[0]["sapo/dead_pairs"] == 1
    assert log[0]["sapo/buffer_fill"] == 0
    assert all(entry.is_identical for entry in spy.drawn[0])


def test_the_same_again_is_dead_also_where_what_followed_is_left_out(
    small_world, tmp_path, monkeypatch
):
    """The rejected answer would be the beginning of the good one."""
    spy = Spy(monkeypatch)
    real = sapo_writer.splice

    def same(answer: Any, start: int, size: int, written: Any, stops: Any, **options: Any) -> Any:
        return real(answer, start, size, answer[start : start + size], stops, **options)

    monkeypatch.setattr(sapo_writer, "splice", same)
    log, _ = train(small_world, tmp_path / "run", "trainer.max_steps=1", "sapo.suffix=drop")
    assert log[0]["sapo/dead_pairs"] == 1
    assert any(entry.rejected_ids != entry.chosen_ids for entry in spy.written[0])


def test_only_what_is_useless_is_written_again(small_world, tmp_path, monkeypatch):
    """Every other rewrite is the answer again at the first attempt, and none at the second."""
    asked: list[list[Any]] = []
    real = sapo_train.Writer._attempt

    def attempt(writer: Any, model: Any, places: Any, step: Any, window: Any, number: int) -> Any:
        found = real(writer, model, places, step, window, number)
        asked.append([(row["row"], sample) for row, sample in places])
        for i, rewrite in enumerate(found):
            rewrite.rejected_ids = (
                rewrite.chosen_ids if number == 0 and i % 2 else [*rewrite.chosen_ids, 0]
            )
            rewrite.is_same = False
        return found

    monkeypatch.setattr(sapo_train.Writer, "_attempt", attempt)
    log, _ = train(small_world, tmp_path, "trainer.max_steps=1", "sapo.retries=3")
    assert asked[1] == asked[0][1::2]
    assert not any(asked[2:]), "the second attempt was good enough"
    assert log[0]["sapo/dead_pairs"] == 0


def test_another_attempt_has_another_window_and_other_numbers(small_world, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=1")
    writer, trainer = spy.trainers[0].writer, spy.trainers[0]
    places = [(row, 0) for row in trainer.train_dataset.select(range(8))]
    one, other = (
        [r.rejected_ids for r in writer._attempt(trainer.model, places, 0, 3, n)] for n in (0, 1)
    )
    assert one != other
    assert one == [r.rejected_ids for r in writer._attempt(trainer.model, places, 0, 3, 0)]


def test_a_rewrite_that_a_verifier_finds_as_good_is_not_used(small_world, tmp_path, monkeypatch):
    (tmp_path / "judge.py").write_text(
        "def judge(prompt, completion, reference):\n    return 1.0\n"
    )
    spy = Spy(monkeypatch)
    log, _ = train(
        small_world,
        tmp_path / "run",
        "trainer.max_steps=1",
        f"sapo.verifier=verifier:{tmp_path / 'judge.py'}:judge",
    )
    assert log[0]["sapo/as_good"] + log[0]["sapo/dead_pairs"] == pytest.approx(1)
    assert all(entry.rejected_ids == entry.chosen_ids for entry in spy.drawn[0])
    assert spy.drawn[0]


def test_replay_is_used_between_generations(small_world, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    log, _ = train(small_world, tmp_path, "trainer.max_steps=4", "sapo.generate_every=3")
    assert [bool(written) for written in spy.written] == [True, False, False, True]
    assert {entry.created_step for entry in spy.drawn[2]} == {0}
    assert log[2]["sapo/buffer_age"] == 2


def test_without_a_buffer_each_pair_is_trained_once_as_it_is_written(
    small_world, tmp_path, monkeypatch
):
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=2", "sapo.buffer_size=0")
    for written, drawn in zip(spy.written, spy.drawn):
        assert [entry.row for entry in drawn] == [entry.row for entry in written]


def test_several_rewrites_of_each_row(small_world, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=1", "sapo.responses_per_prompt=3")
    assert len(spy.written[0]) == 3 * len(spy.drawn[0])
    first = [entry.rejected_ids for entry in spy.written[0][:3]]
    assert len({tuple(ids) for ids in first}) > 1


def test_the_window_grows_over_the_training():
    settings = small_settings(window=9, window_from=1)
    assert [sapo_train.window_at(settings, step, 5) for step in range(5)] == [1, 3, 5, 7, 9]
    assert sapo_train.window_at(small_settings(window="all"), 0, 5) is None
    assert sapo_train.window_at(small_settings(window=7), 3, 5) == 7


def small_settings(**changes: Any) -> Any:
    from aligner.methods.sapo.recipe import Sapo

    return Sapo(**changes)


@pytest.mark.parametrize(("size", "accumulation"), [(2, 2), (1, 4)])
def test_accumulation_equals_the_large_batch(small_world, tmp_path, size, accumulation):
    """The same rewrites, the same draws, the same step."""
    for name, (batch, parts) in {"whole": (4, 1), "parts": (size, accumulation)}.items():
        shape = (
            f"trainer.per_device_train_batch_size={batch}",
            f"trainer.gradient_accumulation_steps={parts}",
            # Batches of one row would not be grouped by length.
            "trainer.train_sampling_strategy=random",
        )
        # Adam would turn what rounding leaves of gradients that cancel into whole steps.
        train(
            small_world,
            tmp_path / name,
            *shape,
            "trainer.max_steps=4",
            "trainer.optim=sgd",
            "trainer.learning_rate=0.3",
        )
    whole, parts = (weights(tmp_path / name) for name in ("whole", "parts"))
    assert max(float((whole[name] - parts[name]).abs().max()) for name in whole) < 3e-5


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_share_one_base(small_world, tmp_path, monkeypatch, quantization):
    """Average and reference hold adapters only, and the base does not change."""
    spy = Spy(monkeypatch)
    flags = {"model__lora": {"r": 2}, "model__quantization": quantization}
    log, _ = train(small_world, tmp_path, "trainer.max_steps=5", **flags)
    trainer = spy.trainers[0]
    assert all("lora_" in name for name in trainer.average.weights)
    assert all("lora_" in name for name in trainer.reference.weights)
    base = {
        name: weight for name, weight in trainer.model.named_parameters() if "lora_" not in name
    }
    assert not any(weight.requires_grad or weight.grad is not None for weight in base.values())
    assert trainer.average.distance(trainer.model) > 0
    assert losses(log)[-1] != losses(log)[0]
    assert set(weights(tmp_path)) == {name for name in weights(tmp_path) if "lora_" in name}
    assert not (tmp_path / "final" / "ema").exists()


def test_the_average_of_adapters_is_the_average_of_their_weights(
    small_world, tmp_path, monkeypatch
):
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=1", "sapo.ema_decay=0.75", model__lora={"r": 2})
    trainer = spy.trainers[0]
    name, weight = next(iter(sapo_trainer.WeightCopy(trainer.model).weights.items()))
    before = trainer.average.weights[name].clone()
    trainer.average.update(trainer.model, 0.75)
    assert torch.allclose(trainer.average.weights[name], 0.75 * before + 0.25 * weight)


def test_the_average_can_be_the_result_with_the_last_step_in_it(small_world, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    train(small_world, tmp_path / "ema", "trainer.max_steps=3", "sapo.export=ema")
    trainer = spy.trainers[-1]
    trainer.average.update(trainer.model, trainer.sapo.ema_decay)
    found = weights(tmp_path / "ema")
    for name, weight in trainer.average.weights.items():
        assert torch.allclose(found[name], weight, atol=1e-7), name
    train(small_world, tmp_path / "policy", "trainer.max_steps=3")
    assert any(
        not torch.equal(found[name], other) for name, other in weights(tmp_path / "policy").items()
    )


def test_offloaded_shadows_train_the_same(small_world, tmp_path):
    logs = [
        train(small_world, tmp_path / name, "trainer.max_steps=3", f"sapo.offload={name}")[0]
        for name in ("true", "false")
    ]
    assert losses(logs[0]) == losses(logs[1])


def test_new_tokens_are_known_to_all_three(small_world, tmp_path, monkeypatch):
    """The authors' code grew the embeddings of one copy only."""
    spy = Spy(monkeypatch)
    train(small_world, tmp_path, "trainer.max_steps=2", "model.new_tokens=['<x>', '<y>']")
    trainer = spy.trainers[0]
    rows = len(trainer.writer.tokenizer)
    name = next(name for name in trainer.average.weights if "embed_tokens" in name)
    assert {len(one.weights[name]) for one in (trainer.average, trainer.reference)} == {rows}
    assert trainer.model.get_input_embeddings().num_embeddings == rows


def test_orpo_needs_no_reference(small_world, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    log, _ = train(small_world, tmp_path, "trainer.max_steps=6", "sapo.loss=orpo", "sapo.beta=0.05")
    assert spy.trainers[0].reference is None
    assert losses(log)[-1] < losses(log)[0]


def test_held_out_pairs_stay_the_same_over_the_run(small_world, tmp_path):
    log, _ = train(
        small_world, tmp_path, "trainer.max_steps=6", "data.eval=0.3", "trainer.eval_steps=2"
    )
    found = [line for line in log if line["split"] == "eval"]
    assert len(found) == 3
    pairs = read_json(tmp_path, "prepared/held_out_pairs.json")
    assert all(pair["chosen_ids"] != pair["rejected_ids"] for pair in pairs)
    assert found[-1]["rewards/margins"] != found[0]["rewards/margins"]


def test_held_out_rows_that_are_all_written_again_are_an_error(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(sapo_writer, "splice", lambda answer, *_, **__: list(answer))
    with pytest.raises(RecipeError, match=r"data\.eval"):
        train(small_world, tmp_path, "data.eval=0.3")


def test_a_run_is_the_same_again(small_world, tmp_path):
    for name in ("one", "other"):
        train(small_world, tmp_path / name, "trainer.max_steps=4")
    one, other = (weights(tmp_path / name) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("sapo.buffer_size=0", "sapo.generate_every=2"), "needs a replay buffer"),
        (("sapo.buffer_size=0", "sapo.responses_per_prompt=2"), "needs a replay buffer"),
        (("sapo.ema_decay=1.0", "sapo.export=ema"), "sapo.export"),
        (("sapo.window=all", "sapo.temperature=0", "sapo.retries=1"), "sapo.retries"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(small_world, tmp_path, settings, reason):
    with pytest.raises(RecipeError) as caught:
        train(small_world, tmp_path, *settings)
    assert reason in str(caught.value)


def test_a_row_that_the_model_has_no_positions_for_is_told_before_training(small_world, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b" * 900}] * 4)
    rows = f"data.train={tmp_path / 'rows.jsonl'}"
    with pytest.raises(RecipeError, match="the model has 512 positions"):
        train(small_world, tmp_path / "run", rows, "data.max_length=2048")
    with pytest.raises(DataError, match=r"longer than data\.max_length=512 tokens"):
        train(small_world, tmp_path / "run", rows, "data.max_length=512")


def test_the_best_policy_takes_its_own_average_along(small_world, tmp_path, monkeypatch):
    """Where training stops early, what is exported belongs to the best checkpoint alone."""
    spy = Spy(monkeypatch)
    prescribe(monkeypatch, "eval_loss", [0.6, 0.5, 0.55])
    early = (
        "sapo.export=ema",
        "early_stopping.patience=1",
        "trainer.eval_steps=1",
        "trainer.save_steps=1",
    )
    rows = (
        "data.eval=0.3",
        "trainer.learning_rate=0.3",
        "trainer.max_steps=8",
        "trainer.save_total_limit=20",
    )
    train(small_world, tmp_path, *early, *rows)
    trainer, found = spy.trainers[-1], weights(tmp_path)
    best = Path(trainer.state.best_model_checkpoint)
    assert (best.name, trainer.state.global_step) == ("checkpoint-2", 3), (
        "it went on beyond the best"
    )
    average, policy = (
        load_file(best / "sapo_average.safetensors"),
        load_file(best / "model.safetensors"),
    )
    for name, weight in average.items():
        if name in policy:
            assert torch.allclose(found[name], 0.5 * weight + 0.5 * policy[name], atol=1e-6), name


def test_metrics_are_kept_when_tokens_are_counted(small_world, tmp_path):
    """transformers then gives the running time with every log."""
    log, _ = train(
        small_world, tmp_path, "trainer.max_steps=2", "trainer.include_num_input_tokens_seen=all"
    )
    assert len(losses(log)) == 2


def test_plain_text_has_nothing_to_rewrite(small_world, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "once upon a time"}])
    with pytest.raises(DataError) as caught:
        train(small_world, tmp_path / "run", f"data.train={tmp_path / 'rows.jsonl'}")
    assert "plain text has no prompt" in str(caught.value)


def test_of_a_conversation_the_last_answer_is_rewritten(small_world, tmp_path, monkeypatch):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "dddd")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    write_jsonl(tmp_path / "rows.jsonl", [row] * 4)
    spy = Spy(monkeypatch)
    train(
        small_world,
        tmp_path / "run",
        f"data.train={tmp_path / 'rows.jsonl'}",
        "trainer.max_steps=1",
    )
    decode = spy.trainers[0].writer.tokenizer.decode
    entry = spy.written[0][0]
    assert decode(entry.chosen_ids, skip_special_tokens=True) == "dddd"
    assert "b" in decode(entry.prompt_ids)
    assert decode(entry.prompt_ids).endswith("assistant\n")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("sapo.loss=sft", "sapo.loss"),
        ("sapo.loss=dpo", "it is called `sigmoid` here"),
        ("sapo.window=0", "from 1, or `all`"),
        ("sapo.window=some", "sapo.window"),
        ("sapo.window_from=9", "sapo.window_from"),
        ("sapo.top_p=0", "sapo.top_p"),
        ("data.on_too_long=truncate", "data.on_too_long"),
        ("sapo.buffer_size=2", "sapo.buffer_size"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(small_world, tmp_path, setting, reason):
    with pytest.raises(RecipeError) as caught:
        train(small_world, tmp_path, setting)
    assert reason in str(caught.value)


def test_continuous_batching_writes_the_same_pairs(small_world, tmp_path):
    one, _ = train(small_world, tmp_path / "one")
    other, _ = train(small_world, tmp_path / "other", "generation.engine=hf_cb")
    assert losses(other) == pytest.approx(losses(one), abs=1e-4)
