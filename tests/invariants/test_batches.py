"""What a step is must not depend on how it is cut up: accumulation, padding, packing, grouping,
weights."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, small_recipe, tiny_llama, write_jsonl
from safetensors.torch import load_file

from aligner.data.rows import ConversationRow
from aligner.evaluation.likelihood import measure_rows
from aligner.methods.pipeline import run_recipe
from aligner.methods.sft.train import num_padding_tokens
from aligner.models.answers import answer_logps
from aligner.models.fused_head import fuse_head
from aligner.runs.files import read_metrics
from aligner.tokenization.encode import IGNORED
from aligner.training.preference import PairCollator

pytestmark = pytest.mark.usefixtures("own_cache")

IN_ORDER = "trainer.train_sampling_strategy=random"
"""No grouping and no packing: the same rows in the same steps, whatever the batch size."""


def weights_after(
    method: str, world: Path, folder: Path, *overrides: str, **flags: Any
) -> dict[str, torch.Tensor]:
    run = run_recipe(small_recipe(method, world, folder, *overrides, **flags)).run_dir
    return load_file(run / "final" / "model.safetensors")


def assert_close(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 1e-5
) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.allclose(value, right[name], atol=tolerance, rtol=0), name


def batch(size: int, accumulation: int) -> tuple[str, ...]:
    return (
        f"trainer.per_device_train_batch_size={size}",
        f"trainer.gradient_accumulation_steps={accumulation}",
        IN_ORDER,
        "trainer.optim=sgd",  # Adam blows rounding up to whole steps where a gradient is nearly 0
        "trainer.learning_rate=0.5",
        "trainer.max_grad_norm=1.0",
    )


@pytest.mark.parametrize(("method", "rows"), [("sft", "sft.jsonl"), ("dpo", "weighted.jsonl")])
def test_eight_rows_at_once_equal_one_row_eight_times(small_world, tmp_path, method, rows):
    """Three epochs of 21 rows: every third step is short, has other lengths, and (dpo) other
    weights."""
    some = (small_world / rows).read_text().splitlines()[:21]
    flags = {
        "data__train": str(write_jsonl(tmp_path / rows, map(json.loads, some))),
        "trainer__max_steps": 9,
    }
    whole = weights_after(method, small_world, tmp_path / "whole", *batch(8, 1), **flags)
    parts = weights_after(method, small_world, tmp_path / "parts", *batch(1, 8), **flags)
    start = load_file(small_world / "model" / "model.safetensors")
    moved = max((whole[name] - start[name]).abs().max().item() for name in whole)
    assert moved > 1e-2  # what is compared was trained
    assert_close(whole, parts)
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name)] for name in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("split", [(4, 2), (2, 4), (3, 3)])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "discopop"])
def test_other_ways_to_cut_a_step_of_pairs_give_the_same_weights(
    small_world, tmp_path, split, loss
):
    size, accumulation = split
    flags = {
        "data__train": str(small_world / "weighted.jsonl"),
        "dpo__loss": loss,
        "dpo__nll_weight": 0.3,
    }
    whole = weights_after(
        "dpo", small_world, tmp_path / "whole", *batch(size * accumulation, 1), **flags
    )
    parts = weights_after(
        "dpo", small_world, tmp_path / "parts", *batch(size, accumulation), **flags
    )
    assert_close(whole, parts)


def test_lora_with_the_base_as_reference_accumulates_too(small_world, tmp_path):
    flags = {"model__lora": {"r": 4}, "data__train": str(small_world / "weighted.jsonl")}
    found = []
    for name, (size, accumulation) in {"whole": (6, 1), "parts": (2, 3)}.items():
        run = run_recipe(
            small_recipe("dpo", small_world, tmp_path / name, *batch(size, accumulation), **flags)
        ).run_dir
        found.append(load_file(run / "final" / "adapter_model.safetensors"))
    assert_close(*found)


# --- weights of pairs -----------------------------------------------------------------------------


def pairs_from(small_world: Path, file: Path, weights: list[float | None]) -> Path:
    lines = (small_world / "pairs.jsonl").read_text().splitlines()
    rows = [json.loads(lines[i]) for i in range(len(weights))]
    return write_jsonl(
        file, [row | ({} if w is None else {"weight": w}) for row, w in zip(rows, weights)]
    )


def one_step(small_world: Path, tmp_path: Path, name: str, data: Path, rows: int) -> dict[str, Any]:
    """One step over all rows; its metrics with the weights that it led to."""
    overrides = (*batch(rows, 1), "trainer.max_steps=1")
    weights = weights_after("dpo", small_world, tmp_path / name, *overrides, data__train=str(data))
    return {"weights": weights, **read_metrics(tmp_path / name)[-1]}


def test_a_pair_of_weight_two_counts_like_the_pair_twice(small_world, tmp_path):
    weighted = pairs_from(small_world, tmp_path / "weighted.jsonl", [2.0, 1.0, 1.0])
    rows = [json.loads(line) for line in weighted.read_text().splitlines()]
    repeated = write_jsonl(
        tmp_path / "repeated.jsonl", [row | {"weight": 1.0} for row in [rows[0], *rows]]
    )
    left = one_step(small_world, tmp_path, "left", weighted, 3)
    right = one_step(small_world, tmp_path, "right", repeated, 4)
    assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-5)
    assert_close(left["weights"], right["weights"])


def test_only_the_proportions_of_the_weights_matter(small_world, tmp_path):
    """The loss of a step is the weighted mean over its pairs."""
    small = pairs_from(small_world, tmp_path / "small.jsonl", [1.0, 0.5, 2.0])
    large = pairs_from(small_world, tmp_path / "large.jsonl", [10.0, 5.0, 20.0])
    left, right = (one_step(small_world, tmp_path, file.stem, file, 3) for file in (small, large))
    assert_close(left["weights"], right["weights"])


# --- padding, packing, grouping -------------------------------------------------------------------


def test_padded_pairs_have_the_log_probabilities_of_the_pair_alone(small_world):
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, initializer_range=0.3)
    fuse_head(model)
    draw = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(4, 200, (n,), generator=draw).tolist()

    rows = [
        {"prompt_ids": ids(3 + i), "chosen_ids": ids(9 - i), "rejected_ids": ids(2 * i + 1)}
        for i in range(5)
    ]
    collate = PairCollator(tokenizer.pad_token_id)
    with torch.no_grad():
        together, lengths = answer_logps(model, collate(rows))
        alone = torch.cat(
            [answer_logps(model, collate([row]))[0].reshape(2, 1) for row in rows], dim=1
        ).reshape(-1)
    assert torch.allclose(together, alone, atol=1e-4)
    assert lengths.tolist() == [9 - i for i in range(5)] + [2 * i + 1 for i in range(5)]


def test_padding_that_looks_like_an_answer_is_masked_by_place():
    """Ids equal to the padding id inside a row are trained; padding is known by the mask alone."""
    row = {"prompt_ids": [0, 5], "chosen_ids": [0, 0, 2], "rejected_ids": [7]}
    batch = PairCollator(0)([row])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, 0, 0, 2],
        [IGNORED, IGNORED, 7, IGNORED, IGNORED],
    ]


def sft_trainer(
    small_world: Path, folder: Path, rows: list[dict[str, list[int]]], *, packing: bool
) -> Any:
    """The trainer of `aligner sft` over rows that are given as ids."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    from aligner.methods.sft.train import SeededSFTTrainer
    from aligner.runs.run import Run
    from aligner.training.arguments import training_arguments

    recipe = small_recipe("sft", small_world, folder, sft__packing=packing).recipe
    arguments = training_arguments(
        recipe,
        Run(folder),
        SFTConfig,
        packing=packing,
        packing_strategy="bfd",
        max_length=128 if packing else None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return SeededSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(small_world / "model"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_tokenizer(),
    )


def random_rows(lengths: list[int]) -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(1)
    rows = []
    for n in lengths:
        ids = torch.randint(4, 200, (n,), generator=draw).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * (n // 3 + 1) + ids[n // 3 + 1 :]})
    return rows


def packed(rows: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    joined = {key: [i for row in rows for i in row[key]] for key in ("input_ids", "labels")}
    return [{**joined, "seq_lengths": [len(row["input_ids"]) for row in rows]}]


def loss_and_gradients(
    trainer: Any, rows: list[dict[str, list[int]]]
) -> tuple[float, dict[str, torch.Tensor]]:
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


def test_a_packed_batch_has_the_loss_and_gradient_of_the_padded_one(small_world, tmp_path):
    rows = random_rows([9, 30, 4, 17])
    padded_loss, padded = loss_and_gradients(
        sft_trainer(small_world, tmp_path / "a", rows, packing=False), rows
    )
    sequences = packed(rows)
    packed_loss, found = loss_and_gradients(
        sft_trainer(small_world, tmp_path / "b", sequences, packing=True), sequences
    )
    assert packed_loss == pytest.approx(padded_loss, abs=1e-6)
    assert_close(padded, found, 1e-6)


def test_packed_rows_do_not_see_each_other(small_world, tmp_path):
    """Another text in one row leaves the log-probabilities of every other row of its sequence as
    they were."""
    rows = random_rows([9, 30, 4, 17])
    changed = [dict(row) for row in rows]
    changed[1] = {"input_ids": [i + 1 for i in rows[1]["input_ids"]], "labels": rows[1]["labels"]}
    trainer = sft_trainer(small_world, tmp_path / "a", packed(rows), packing=True)
    trainer.model.eval()
    found = []
    for sequence in (packed(rows), packed(changed)):
        batch = dict(trainer._prepare_inputs(trainer.data_collator(sequence)))
        batch.pop("labels")
        with torch.no_grad():
            found.append(trainer.model(**batch, use_cache=False).logits[0])
    starts = [0, 9, 39, 43, 60]
    for i, (start, stop) in enumerate(pairwise(starts)):
        same = torch.equal(found[0][start:stop], found[1][start:stop])
        assert same == (i != 1), f"row {i}"


def test_a_packed_batch_carries_no_mask(small_world, tmp_path):
    """Attention tells rows apart by their positions, and only where no mask is given."""
    sequences = packed(random_rows([5, 6]))
    batch = sft_trainer(small_world, tmp_path / "a", sequences, packing=True).data_collator(
        sequences
    )
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("asked", ["group_by_length", "random"])
def test_an_epoch_holds_every_row_once_grouped_or_not(small_world, tmp_path, monkeypatch, asked):
    from aligner.methods.sft.train import SeededSFTTrainer

    seen: list[tuple[int, ...]] = []
    training_step = SeededSFTTrainer.training_step

    def spy(self, model, inputs, *rest):
        rows = zip(inputs["input_ids"], inputs["attention_mask"])
        seen.extend(tuple(ids[mask.bool()].tolist()) for ids, mask in rows)
        return training_step(self, model, inputs, *rest)

    monkeypatch.setattr(SeededSFTTrainer, "training_step", spy)
    run = run_recipe(
        small_recipe(
            "sft",
            small_world,
            tmp_path / "run",
            "trainer.max_steps=-1",
            "trainer.num_train_epochs=2",
            f"trainer.train_sampling_strategy={asked}",
        )
    ).run_dir
    from datasets import load_from_disk

    rows = sorted(
        tuple(ids) for ids in load_from_disk(str(run / "prepared" / "train"))["input_ids"]
    )
    assert sorted(seen[:48]) == sorted(seen[48:]) == rows
    assert seen[:48] != seen[48:]


# --- held-out numbers and logs --------------------------------------------------------------------

CLOCKS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "time_s", "split")


class Stopped(Exception):
    """Raised in the place of training."""


def trainer_for(
    monkeypatch: pytest.MonkeyPatch, world: Path, folder: Path, method: str, *overrides: str
) -> Any:
    """The trainer of a recipe with 11 held-out rows, as it is when training would begin."""
    made: list[Any] = []

    def stop(trainer: Any, *_: Any, **__: Any) -> None:
        trainer.pad_last_batch()
        made.append(trainer)
        raise Stopped

    rows = "pairs.jsonl" if method in ("dpo", "reward") else "sft.jsonl"
    lines = (world / rows).read_text().splitlines()[:11]
    data = f"data.eval={write_jsonl(folder.with_suffix('.jsonl'), map(json.loads, lines))}"
    monkeypatch.setattr(f"aligner.methods.{method}.train.fit", stop)
    with pytest.raises(Stopped):
        run_recipe(small_recipe(method, world, folder, data, *overrides))
    return made[0]


def evaluated(trainer: Any, batch_size: int) -> dict[str, float]:
    trainer.args.per_device_eval_batch_size = batch_size
    return {name: value for name, value in trainer.evaluate().items() if name not in CLOCKS}


EVALUATED = {
    "sft": ("sft",),
    "sft packed": ("sft", "sft.packing=true"),
    "dpo": ("dpo", "model.lora={r: 4}"),
    "kto_pair": ("dpo", "dpo.loss=kto_pair", "dpo.forward_kl=0.1", "dpo.forward_kl_tokens=4"),
    "aqfl": ("dpo", "dpo.loss=aqfl"),
    "the member that is followed": (
        "dpo",
        "dpo.loss=reward_distill",
        "dpo.reward_models=['verifier:regex=^a', 'verifier:regex=zzz']",
        "dpo.reward_combine=min",
        "dpo.forward_kl=0.0",
    ),
    "sapo": ("sapo", "sapo.window=3"),
    "rlhf": ("rlhf",),
    "bradley_terry": ("reward",),
    "odin": ("reward", "reward.kind=odin"),
    "pairwise": ("reward", "reward.kind=pairwise", "data.max_length=256"),
}


@pytest.mark.parametrize("kind", EVALUATED)
def test_held_out_numbers_do_not_depend_on_the_batch_that_they_are_computed_in(
    small_world, tmp_path, monkeypatch, kind
):
    """Neither losses nor accuracies, entropies and correlations, whatever an objective reads of its
    batch."""
    trainer = trainer_for(monkeypatch, small_world, tmp_path / "run", *EVALUATED[kind])
    disturb(trainer.model)
    one, eight = evaluated(trainer, 1), evaluated(trainer, 8)
    assert len(one) >= 5
    assert one == pytest.approx(eight, abs=5e-6, rel=5e-6)


def disturb(model: torch.nn.Module) -> None:
    """Move the policy away from its reference, so that margins are none."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize(
    "overrides", [(), ("trainer.label_smoothing_factor=0.3",), ("sft.packing=true",)]
)
def test_the_held_out_loss_of_a_run_is_that_of_aligner_eval(
    small_world, tmp_path, monkeypatch, overrides
):
    drops = "trainer.dataloader_drop_last=true"
    trainer = trainer_for(monkeypatch, small_world, tmp_path / "run", "sft", drops, *overrides)
    told = evaluated(trainer, 8)
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    rows = [ConversationRow(json.loads(line)["messages"], origin="row") for line in lines]
    measured = measure_rows(trainer.model, trainer.processing_class, rows, batch_size=3)
    assert told["eval_loss"] == pytest.approx(measured["loss"], abs=1e-6)
    assert told["eval_mean_token_accuracy"] == pytest.approx(measured["token_accuracy"], abs=1e-9)


@pytest.mark.parametrize(
    "kind", ["sft", *(pytest.param(one, marks=pytest.mark.slow) for one in ("dpo", "odin"))]
)
def test_logs_of_training_do_not_depend_on_how_a_step_is_cut(small_world, tmp_path, kind):
    """But for the correlations that `odin` trains, which are of a micro-batch."""
    method, *overrides = EVALUATED[kind]
    logs = []
    for name, cut in {"whole": (6, 1), "parts": (1, 6)}.items():
        extra = ("reward.length_weight=0",) if kind == "odin" else ()
        run_recipe(
            small_recipe(
                method,
                small_world,
                tmp_path / name,
                *overrides,
                *batch(*cut),
                *extra,
                trainer__max_steps=2,
            )
        )
        logs.append(
            [
                {k: v for k, v in line.items() if k not in CLOCKS}
                for line in read_metrics(tmp_path / name)
            ]
        )
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, abs=2e-5, rel=2e-5)


def test_rows_that_only_fill_a_batch_are_not_counted_as_tokens():
    mask, labels = (
        torch.tensor([[1, 1, 1], [1, 1, 0]]),
        torch.tensor([[IGNORED, 5, 6], [IGNORED, IGNORED, IGNORED]]),
    )
    assert num_padding_tokens({"attention_mask": mask, "labels": labels}) == 2
    places = torch.tensor([[0, 1, 2, 0, 1, 0]])
    packed = torch.tensor([[IGNORED, IGNORED, IGNORED, IGNORED, 7, IGNORED]])
    assert num_padding_tokens({"position_ids": places, "labels": packed}) == 4
