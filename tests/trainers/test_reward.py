"""Reward models in training: every kind learns and comes back by its card, and no row is lost
without a word."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, save_reward_model, small_recipe, write_jsonl
from runner import aligner as run_command
from safetensors.torch import load_file
from transformers import AutoTokenizer

import aligner
from aligner.errors import DataError, RecipeError
from aligner.events import Notice, Warned
from aligner.methods.pipeline import run_recipe
from aligner.reward_models.base import preferences
from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.heads import Conversations
from aligner.runs.cache import keep
from aligner.runs.files import read_json, read_metrics

FAST = ("trainer.max_steps=12", "data.max_length=256", "trainer.learning_rate=0.003")


def pairs_of(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]


def train(
    world: Path, folder: Path, *overrides: str, resume: bool = False, **flags: Any
) -> tuple[Path, list[Any]]:
    """The run directory, and the events that were sent."""
    events: list[Any] = []
    given = {override.split("=", 1)[0] for override in overrides}
    settings = [setting for setting in FAST if setting.split("=", 1)[0] not in given]
    run = run_recipe(
        small_recipe("reward", world, folder, *settings, *overrides, **flags),
        resume=resume,
        on_event=events.append,
    )
    return run.run_dir, events


def graded(world: Path, folder: Path) -> str:
    """The pairs, with strengths from 1 to 3."""
    rows = ({**pair, "strength": 1 + place % 3} for place, pair in enumerate(pairs_of(world)))
    return str(write_jsonl(folder / "graded.jsonl", rows))


def rated(world: Path, folder: Path) -> str:
    """Right answers rated 4, wrong ones 1; nobody has rated every second one for being short."""
    rows = []
    for place, pair in enumerate(pairs_of(world)):
        for side, good in (("chosen", 4.0), ("rejected", 1.0)):
            short = None if place % 2 else 4.0 - good
            rows.append(
                {"prompt": pair["prompt"], "completion": pair[side], "good": good, "short": short}
            )
    return str(write_jsonl(folder / "rated.jsonl", rows))


def share_right(run: Path, world: Path) -> float:
    rows = pairs_of(world)
    texts = [[row[side][0]["content"] for row in rows] for side in ("chosen", "rejected")]
    found = preferences(load_scorer(str(run)), [row["prompt"] for row in rows], *texts)
    return sum(chance > 0.5 for chance in found) / len(rows)


def told(events: list[Any], kind: type = Notice) -> str:
    return " | ".join(event.text for event in events if isinstance(event, kind))


SETTINGS: dict[str, tuple[str, ...]] = {
    "bradley_terry": (),
    "margin": ("reward.loss=margin",),
    "scaled": ("reward.loss=scaled", "reward.label_smoothing=0.1"),
    "centred": ("reward.center_rewards_coefficient=0.1",),
    "segment": ("reward.kind=segment", "reward.segments={cutoff: 5.55}"),
    "sentence": ("reward.kind=segment", "reward.segments={rule: sentence}"),
    "fixed": ("reward.kind=segment", "reward.segments={rule: fixed, length: 2}"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_pairs_are_learned_and_the_card_gives_the_model_back(
    small_world: Path, tmp_path: Path, name: str
) -> None:
    data = f"data.train={graded(small_world, tmp_path)}"
    run, _ = train(small_world, tmp_path / "run", *SETTINGS[name], data, "data.eval=0.2")
    lines = read_metrics(run)
    held_out = [line for line in lines if line["split"] == "eval"]
    assert held_out[-1]["loss"] < held_out[0]["loss"]
    assert held_out[-1]["accuracy"] > 0.8
    assert {"margin", "rewards/chosen", "rewards/rejected", "length_correlation"} <= held_out[
        -1
    ].keys()
    assert share_right(run, small_world) > 0.8
    assert load_scorer(str(run)).name == "run"


def test_a_model_is_read_by_its_card_as_it_was_evaluated(small_world: Path, tmp_path: Path) -> None:
    rows = pairs_of(small_world)
    held_out = write_jsonl(tmp_path / "eval.jsonl", rows[:10])
    run, _ = train(small_world, tmp_path / "run", f"data.eval={held_out}")
    scorer = load_scorer(str(run / "final"))
    sides = [[row[side][0]["content"] for row in rows[:10]] for side in ("chosen", "rejected")]
    chosen, rejected = (
        scorer.score([row["prompt"] for row in rows[:10]], texts) for texts in sides
    )
    last = [line for line in read_metrics(run) if line["split"] == "eval"][-1]
    assert last["rewards/chosen"] == pytest.approx(sum(chosen) / 10, abs=1e-5)
    assert last["rewards/rejected"] == pytest.approx(sum(rejected) / 10, abs=1e-5)
    expected = sum(math.log1p(math.exp(b - a)) for a, b in zip(chosen, rejected)) / 10
    assert last["loss"] == pytest.approx(expected, abs=1e-5)
    assert read_json(run, "scored.json") is None, "report.num_prompts is 0"


def test_a_pairwise_model_learns_its_letters(small_world: Path, tmp_path: Path) -> None:
    run, _ = train(
        small_world,
        tmp_path / "run",
        "reward.kind=pairwise",
        "trainer.max_steps=40",
        "data.max_length=512",
        "data.eval=0.2",
    )
    held_out = [line for line in read_metrics(run) if line["split"] == "eval"]
    assert held_out[-1]["loss"] < 0.5 * held_out[0]["loss"]
    assert load_scorer(str(run)).range == (0.0, 1.0)


def test_ratings_are_learned_without_those_that_are_missing(
    small_world: Path, tmp_path: Path
) -> None:
    run, _ = train(
        small_world,
        tmp_path / "run",
        "reward.kind=regression",
        "reward.attributes=[good, short]",
        "reward.attribute_weights={good: 1.0, short: 0.25}",
        f"data.train={rated(small_world, tmp_path)}",
        "trainer.max_steps=40",
        "report.num_prompts=2",
    )
    lines = read_metrics(run)
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["mse"] < 0.5 * lines[0]["mse"]
    row = pairs_of(small_world)[0]
    scores = load_scorer(str(run)).score([row["prompt"]], [row["chosen"][0]["content"]])
    assert scores[0] == pytest.approx(
        scores.attributes["good"][0] + 0.25 * scores.attributes["short"][0]
    )
    assert "(rated" in read_json(run, "scored.json")[0]["answers"][0]["label"]


def test_a_regression_becomes_a_bradley_terry_model_with_the_sum_of_its_outputs(
    small_world: Path, tmp_path: Path
) -> None:
    first, _ = train(
        small_world,
        tmp_path / "first",
        "reward.kind=regression",
        "reward.attributes=[good, short]",
        "reward.attribute_weights={good: 1.0, short: -0.5}",
        f"data.train={rated(small_world, tmp_path)}",
    )
    start = f"model.name_or_path={first / 'final'}"
    second, events = train(small_world, tmp_path / "second", start, "trainer.learning_rate=1e-9")
    assert "sum of 2 ratings, weighted 1, -0.5" in told(events)
    row = pairs_of(small_world)[0]
    asked = ([row["prompt"]], [row["chosen"][0]["content"]])
    assert load_scorer(str(second)).score(*asked)[0] == pytest.approx(
        load_scorer(str(first)).score(*asked)[0], abs=1e-4
    )
    with pytest.raises(RecipeError, match="has no attribute 'god'"):
        train(small_world, tmp_path / "third", start, "reward.attribute_weights={god: 1.0}")
    with pytest.raises(RecipeError, match="is a reward model already"):
        train(small_world, tmp_path / "fourth", start, "reward.kind=odin")
    ratings = (
        "reward.kind=regression",
        "reward.attributes=[short, good]",
        f"data.train={tmp_path / 'rated.jsonl'}",
    )
    with pytest.raises(RecipeError, match="rates good, short"):
        train(small_world, tmp_path / "fifth", start, *ratings)


def test_rated_adapters_are_merged_before_pairs_are_trained(
    small_world: Path, tmp_path: Path
) -> None:
    ratings = (
        "reward.kind=regression",
        "reward.attributes=[good, short]",
        f"data.train={rated(small_world, tmp_path)}",
    )
    first, _ = train(small_world, tmp_path / "first", *ratings, model__lora={"r": 4})
    start = f"model.name_or_path={first / 'final'}"
    second, _ = train(small_world, tmp_path / "second", start, "trainer.learning_rate=1e-9")
    asked = (["p", "q"], ["some answer", ""])
    assert list(load_scorer(str(second)).score(*asked)) == pytest.approx(
        list(load_scorer(str(first)).score(*asked)), abs=1e-4
    )
    with pytest.raises(RecipeError, match="leave out model"):
        train(small_world, tmp_path / "third", start, model__lora={"r": 4})


def test_a_reward_models_adapter_is_trained_further(small_world: Path, tmp_path: Path) -> None:
    first, _ = train(small_world, tmp_path / "first", model__lora={"r": 4})
    start = f"model.name_or_path={first / 'final'}"
    second, _ = train(
        small_world, tmp_path / "second", start, "trainer.learning_rate=1e-9", model__lora={"r": 4}
    )
    asked = (["p", "q"], ["some answer", ""])
    assert list(load_scorer(str(second)).score(*asked)) == pytest.approx(
        list(load_scorer(str(first)).score(*asked)), abs=1e-4
    )


def test_odin_keeps_the_head_of_quality_alone(small_world: Path, tmp_path: Path) -> None:
    run, events = train(
        small_world, tmp_path / "run", "reward.kind=odin", "data.eval=0.2", "report.num_prompts=2"
    )
    assert load_file(run / "final" / "model.safetensors")["score.weight"].shape[0] == 1
    last = [line for line in read_metrics(run) if line["split"] == "eval"][-1]
    assert abs(last["length_correlation"]) <= 1.0
    assert load_scorer(str(run)).card.kind == "bradley_terry"  # type: ignore[attr-defined]
    assert len(read_json(run, "scored.json")[0]["answers"]) == 2
    assert "tokens and rejected ones" in told(events)


@pytest.mark.parametrize("extra", [{}, {"model__quantization": "nf4"}])
def test_an_adapter_and_its_head_come_back_together(
    small_world: Path, tmp_path: Path, extra: dict[str, Any]
) -> None:
    run, _ = train(small_world, tmp_path / "run", "data.eval=0.2", model__lora={"r": 4}, **extra)
    saved = load_file(run / "final" / "adapter_model.safetensors")
    assert any(name.endswith("score.weight") for name in saved)
    assert all(value.dtype == torch.float32 for value in saved.values())
    scorer: Any = load_scorer(str(run))
    assert scorer.card.quantization == extra.get("model__quantization", "none")
    held_out = [line for line in read_metrics(run) if line["split"] == "eval"]
    assert held_out[-1]["loss"] < held_out[0]["loss"]
    again = load_scorer(str(run)).score(["p"], ["a"])
    assert list(scorer.score(["p"], ["a"])) == list(again)


# --- what a row can be ----------------------------------------------------------------------------


def row(chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": "p", "chosen": chosen, "rejected": rejected, **more}


def books(world: Path, folder: Path, rows: list[dict[str, Any]], *overrides: str) -> dict[str, Any]:
    """The train split of `data.json`, after a run on these rows with broken ones left out."""
    good = [row(f"yes {number}", f"no {number}", strength=1) for number in range(4)]
    data = write_jsonl(folder / "rows.jsonl", [*good, *rows])
    settings = ("data.on_bad_row=drop", "trainer.max_steps=1", *overrides)
    run, _ = train(world, folder / "run", f"data.train={data}", *settings)
    found = read_json(run, "data.json")
    return {**found["splits"]["train"], "bad": found["sources"][0]["bad"], "all": json.dumps(found)}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("yes", "no", strength=0), "a tie: the strength of the preference is 0"),
        (row("yes", "no", strength=-1), "the rejected answer would be the better one"),
        (row("yes", "no", strength="much"), "not a number"),
        (row("same", "same"), "chosen and rejected are the same"),
        (row("", "no"), "chosen is empty"),
        (row("yes", "  "), "rejected is empty"),
    ],
)
def test_every_row_that_cannot_be_used_is_counted_with_its_reason(
    small_world: Path, tmp_path: Path, bad: dict[str, Any], says: str
) -> None:
    found = books(small_world, tmp_path, [bad])
    assert found["rows"] == 4
    assert says in found["all"]


def test_rows_that_are_too_long_are_counted_and_answers_are_never_cut(
    small_world: Path, tmp_path: Path
) -> None:
    long_prompt, long_answer = {**row("yes", "no"), "prompt": "p" * 200}, row("y" * 200, "no")
    found = books(
        small_world,
        tmp_path / "a",
        [long_prompt, long_answer],
        "data.max_length=64",
        "data.on_too_long=drop",
    )
    assert (found["rows"], found["too_long_dropped"]) == (4, 2)
    found = books(
        small_world,
        tmp_path / "b",
        [long_prompt, long_answer],
        "data.max_length=64",
        "data.on_too_long=truncate",
    )
    assert (found["rows"], found["truncated_rows"]) == (5, 1)
    assert "answers are not cut" in found["all"]
    with pytest.raises(DataError, match=r"longer than data\.max_length=64"):
        books(small_world, tmp_path / "c", [long_prompt], "data.max_length=64")


def test_questions_are_cut_in_their_context_alone(small_world: Path, tmp_path: Path) -> None:
    rows = [{**row("yes", "no"), "prompt": "p" * 300}, row("y" * 300, "no")]
    settings = ("reward.kind=pairwise", "data.max_length=130", "data.on_too_long=truncate")
    found = books(small_world, tmp_path, rows, *settings)
    assert (found["rows"], found["truncated_rows"]) == (5, 1)
    assert "both answers alone have" in found["all"]


def test_each_answer_is_cut_as_it_is_when_it_is_scored_alone(
    small_world: Path, tmp_path: Path
) -> None:
    rows = [{**row("yes" * (1 + n), "no"), "prompt": "p" * (30 + n)} for n in range(8)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = ("data.max_length=40", "data.on_too_long=truncate")
    run, _ = train(
        small_world, tmp_path / "run", f"data.train={data}", f"data.eval={data}", *settings
    )
    prompts = [one["prompt"] for one in rows]
    last = [line for line in read_metrics(run) if line["split"] == "eval"][-1]
    for side in ("chosen", "rejected"):
        scores = load_scorer(str(run)).score(prompts, [one[side] for one in rows])
        assert last[f"rewards/{side}"] == pytest.approx(sum(scores) / len(rows), abs=1e-5)


def test_an_attribute_that_nobody_has_rated_is_refused(small_world: Path, tmp_path: Path) -> None:
    settings = ("reward.kind=regression", f"data.train={rated(small_world, tmp_path)}")
    with pytest.raises(DataError, match="no training row has a column `shrot`") as caught:
        train(small_world, tmp_path / "a", *settings, "reward.attributes=[good, shrot]")
    assert "short" in caught.value.hint
    rows = [
        {**json.loads(line), "new": None}
        for line in (tmp_path / "rated.jsonl").read_text().splitlines()
    ]
    data = write_jsonl(tmp_path / "new.jsonl", rows)
    with pytest.raises(RecipeError, match="no training row has a rating `new`"):
        train(
            small_world,
            tmp_path / "b",
            "reward.kind=regression",
            "reward.attributes=[good, new]",
            f"data.train={data}",
        )


def test_the_card_tells_the_accuracy_of_the_weights_that_are_saved(
    small_world: Path, tmp_path: Path
) -> None:
    held_out = write_jsonl(tmp_path / "eval.jsonl", pairs_of(small_world)[:10])
    run, _ = train(
        small_world,
        tmp_path / "run",
        f"data.eval={held_out}",
        "early_stopping={patience: 2}",
        "trainer.learning_rate=0.3",
        "trainer.eval_steps=2",
    )
    rows = pairs_of(small_world)[:10]
    texts = [[one[side][0]["content"] for one in rows] for side in ("chosen", "rejected")]
    found = preferences(load_scorer(str(run)), [one["prompt"] for one in rows], *texts)
    card = (run / "final" / "reward_model.yaml").read_text()
    share = sum(chance > 0.5 for chance in found) / 10 + sum(chance == 0.5 for chance in found) / 20
    assert f"accuracy: {share:g}" in card or f"accuracy: {share:.1f}" in card


def test_a_run_over_code_of_a_base_is_read_once_that_code_is_allowed_again(
    small_world: Path, tmp_path: Path
) -> None:
    run, _ = train(small_world, tmp_path / "run", model__trust_remote_code=True)
    with pytest.raises(RecipeError, match="trust_remote_code: asks to run the code"):
        load_scorer(str(run))
    assert len(load_scorer(str(run), trust_remote_code=True).score(["p"], ["a"])) == 1
    readme = (run / "final" / "README.md").read_text()
    assert 'load_scorer("path/to/this/folder", trust_remote_code=True)' in readme
    assert "--data rows.jsonl --trust-remote-code" in readme


def test_segments_are_cut_alike_in_training_and_in_scoring_over_a_quantized_base(
    small_world: Path, tmp_path: Path
) -> None:
    held_out = write_jsonl(tmp_path / "eval.jsonl", pairs_of(small_world)[:10])
    run, _ = train(
        small_world,
        tmp_path / "run",
        "reward.kind=segment",
        "reward.segments={cutoff: 5.5544}",
        f"data.eval={held_out}",
        model__lora={"r": 4},
        model__quantization="nf4",
    )
    rows = pairs_of(small_world)[:10]
    scorer: Any = load_scorer(str(run))
    stored = read_json(run, "prepared/segments-eval.json")
    for side in ("chosen", "rejected"):
        found, _ = scorer.values(
            [one["prompt"] for one in rows], [one[side][0]["content"] for one in rows]
        )
        assert [one.ends for one in found] == stored[side]


def test_a_target_length_sets_the_cutoff_and_the_card_names_it(
    small_world: Path, tmp_path: Path
) -> None:
    run, events = train(
        small_world, tmp_path / "run", "reward.kind=segment", "reward.segments={target_length: 3}"
    )
    ends = read_json(run, "prepared/segments-train.json")
    rows = [row for side in ("chosen", "rejected") for row in ends[side]]
    tokens = sum(row[-1] + 1 for row in rows)
    assert tokens / sum(map(len, rows)) == pytest.approx(3, rel=0.2)
    segments = load_scorer(str(run)).card.segments
    assert segments.cutoff != 1.75
    assert segments.cutoff == read_json(run, "prepared/segments.json")["segments"]["cutoff"]
    said = told(events, Notice)
    assert f"segments of 3 tokens: the cutoff is {segments.cutoff:.4g} nats" in said
    assert f"of {tokens / sum(map(len, rows)):.1f} tokens" in said


def test_ends_of_another_reference_are_found_again(small_world: Path, tmp_path: Path) -> None:
    """The kept ends name what they hang on, so those of something else are never taken."""
    cut = ("reward.kind=segment", "reward.segments={cutoff: 5.5544}")
    run, _ = train(small_world, tmp_path / "run", *cut)
    kept = run / "prepared" / "segments.json"
    ends = read_json(run, "prepared/segments-train.json")
    record = json.loads(kept.read_text())
    assert set(record["fingerprint"]) == {"segments", "tokenizer", "max_length", "reference"}
    other = json.dumps({**record, "fingerprint": {**record["fingerprint"], "reference": "another"}})
    keep(kept, lambda place: place.write_text(other))
    wrong = json.dumps({side: [[0]] * len(rows) for side, rows in ends.items()})
    keep(run / "prepared/segments-train.json", lambda place: place.write_text(wrong))
    (run / "manifest.json").unlink()
    train(small_world, run, *cut, resume=True)
    assert read_json(run, "prepared/segments-train.json") == ends
    assert json.loads(kept.read_text()) == record


def test_values_of_token_ids_are_those_of_texts(small_world: Path, tmp_path: Path) -> None:
    run, _ = train(small_world, tmp_path / "run", "reward.kind=segment")
    scorer: Any = load_scorer(str(run))
    rows = pairs_of(small_world)[:6]
    prompts, texts = (
        [one["prompt"] for one in rows],
        [one["chosen"][0]["content"] for one in rows],
    )
    found, _ = scorer.values(prompts, texts)
    encoded = Conversations(scorer.card, scorer.tokenizer, prompts, texts, None)
    parts = [(ids[:start], ids[start:]) for ids, start in zip(encoded.sequences, encoded.starts)]
    again = scorer.values_of_ids(parts)
    assert [one.token_ids for one in again] == [answer for _, answer in parts]
    assert [one.ends for one in again] == [one.ends for one in found]
    for one, other in zip(again, found):
        assert one.values == pytest.approx(other.values, abs=1e-6)


def test_another_tokenizer_is_refused_with_the_reason(small_world: Path, tmp_path: Path) -> None:
    run, _ = train(small_world, tmp_path / "run", "reward.kind=segment")
    scorer: Any = load_scorer(str(run))
    same = AutoTokenizer.from_pretrained(run / "final")
    scorer.refuse_other_tokenizer(same, "the policy")
    same.chat_template = "{{ messages }}"
    with pytest.raises(RecipeError, match=r"than the policy: its chat template writes"):
        scorer.refuse_other_tokenizer(same, "the policy")
    same.add_tokens(["<more>"])
    with pytest.raises(RecipeError, match="its token ids mean other texts"):
        scorer.refuse_other_tokenizer(same, "the policy")


def test_a_start_that_cannot_be_is_refused_before_a_row_is_read(
    small_world: Path, tmp_path: Path
) -> None:
    first, _ = train(small_world, tmp_path / "first", model__lora={"r": 4})
    start, missing = f"model.name_or_path={first / 'final'}", "data.train=nowhere.jsonl"
    with pytest.raises(RecipeError, match="odin trains two new outputs"):
        train(small_world, tmp_path / "a", start, missing, "reward.kind=odin")
    with pytest.raises(RecipeError, match="asks a model that writes text"):
        train(small_world, tmp_path / "b", start, missing, "reward.kind=pairwise")
    with pytest.raises(RecipeError, match=r"reward\.segments\.reference: there is no folder"):
        train(
            small_world,
            tmp_path / "c",
            missing,
            "reward.kind=segment",
            "reward.segments={reference: /nowhere/x}",
        )
    with pytest.raises(RecipeError, match="is missing, and training starts from a reward model"):
        train(small_world, tmp_path / "d", start, missing, "reward.kind=segment")
    with pytest.raises(RecipeError, match=r"the adapter in .* belongs to a reward model"):
        run_recipe(small_recipe("sft", small_world, tmp_path / "e", start))


def test_the_adapter_of_a_model_that_writes_has_to_be_merged_first(
    small_world: Path, tmp_path: Path
) -> None:
    sft = small_recipe("sft", small_world, tmp_path / "sft", "trainer.max_steps=1", "model.lora={}")
    run_recipe(sft)
    start = f"model.name_or_path={tmp_path / 'sft' / 'final'}"
    with pytest.raises(RecipeError, match="is the adapter of a model that writes") as caught:
        train(small_world, tmp_path / "a", start, "data.train=nowhere.jsonl")
    assert "aligner merge" in caught.value.hint
    merged = tmp_path / "merged"
    assert run_command("merge", tmp_path / "sft", "-o", merged).exit_code == 0
    run, _ = train(small_world, tmp_path / "b", f"model.name_or_path={merged}")
    assert (run / "final" / "reward_model.yaml").is_file()


def test_a_whole_reward_model_is_not_asked_to_write(small_world: Path, tmp_path: Path) -> None:
    """Its embeddings are tied, so transformers would drop the head in silence, and decode."""
    run, _ = train(small_world, tmp_path / "run")
    start = f"model.name_or_path={run / 'final'}"
    with pytest.raises(RecipeError, match=r"the model in .* belongs to a reward model(.|\n)*score"):
        run_recipe(small_recipe("sft", small_world, tmp_path / "sft", start))
    with pytest.raises(RecipeError, match="belongs to a reward model"):
        aligner.load_model(run / "final")


def test_a_strength_that_is_needed_and_not_there_is_told(small_world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training row has a column `strength`"):
        train(small_world, tmp_path / "a", "reward.loss=scaled")
    rows = [
        *({**pair, "strength": 1} for pair in pairs_of(small_world)[:4]),
        pairs_of(small_world)[4],
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        train(small_world, tmp_path / "b", "reward.loss=scaled", f"data.train={data}")
    assert "there is no `strength`, and reward.loss=scaled needs one" in str(caught.value)
    assert "rows.jsonl:5" in str(caught.value)


@pytest.mark.parametrize(
    ("ratings", "says"),
    [
        ({"good": None}, "it has no rating"),
        ({"good": float("nan")}, "it has no rating"),
        ({}, "it has no rating"),
        ({"good": "4"}, "not a number"),
        ({"good": True}, "not a number"),
    ],
)
def test_ratings_that_are_none_are_counted(
    small_world: Path, tmp_path: Path, ratings: dict[str, Any], says: str
) -> None:
    rows = [
        {"prompt": "p", "completion": f"a{number}", "good": float(number)} for number in range(4)
    ]
    data = write_jsonl(
        tmp_path / "rows.jsonl", [*rows, {"prompt": "p", "completion": "x", **ratings}]
    )
    run, _ = train(
        small_world,
        tmp_path / "run",
        "reward.kind=regression",
        "reward.attributes=[good]",
        f"data.train={data}",
        "data.on_bad_row=drop",
        "trainer.max_steps=1",
    )
    found = read_json(run, "data.json")
    assert found["splits"]["train"]["rows"] == 4
    assert says in json.dumps(found)


def test_pairs_with_both_labels_and_a_liking_for_length_are_told(
    small_world: Path, tmp_path: Path
) -> None:
    rows = [row("a long answer" + "!" * n, "short" + "." * (n % 3)) for n in range(110)]
    rows += [row("one", "another"), row("another", "one")]
    run, events = train(
        small_world,
        tmp_path / "run",
        f"data.train={write_jsonl(tmp_path / 'rows.jsonl', rows)}",
        "trainer.max_steps=1",
    )
    warned = told(events, Warned)
    assert "1 pairs of answers are there with both labels" in warned
    assert "the longer answer wins in 99% of the pairs" in warned
    assert "length alone ranks them well" in (run / "report.html").read_text()


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("reward.kind=regression",), "reward.attributes"),
        (("reward.kind=pairwise", "reward.loss=scaled"), "has no effect with `kind: pairwise`"),
        (("reward.attributes=[a]",), "has no effect with `kind: bradley_terry`"),
        (
            ("reward.kind=segment", "reward.segments={rule: token, cutoff: 1.0}"),
            "has no effect without `rule: entropy`",
        ),
        (
            ("reward.kind=segment", "reward.segments={rule: whole, min_length: 2}"),
            "has no effect without `rule: entropy or token or sentence or delimiter`",
        ),
        (
            ("reward.kind=segment", "reward.segments={min_length: 9, max_length: 4}"),
            "is 4, and `min_length` is 9",
        ),
        (
            ("reward.kind=segment", "reward.segments={cutoff: 2.0, target_length: 9}"),
            "sets the cutoff, which is given too",
        ),
        (("reward.kind=regression", "reward.attributes=[a, a]"), "twice"),
        (("reward.kind=odin", "launch.strategy=fsdp"), "splits the two heads"),
        (
            ("reward.strength=weight", "reward.loss=scaled"),
            "is read as the weight of a pair already",
        ),
        (("reward.kind=bradley_tery",), "did you mean `bradley_terry`?"),
        (("trainer.center_rewards_coefficient=0.1",), "set `reward.center_rewards_coefficient`"),
        (("trainer.max_length=512",), "set `data.max_length`"),
    ],
)
def test_a_wrong_recipe_is_refused(
    small_world: Path, tmp_path: Path, overrides: tuple[str, ...], says: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        small_recipe("reward", small_world, tmp_path, *overrides)
    assert says in str(caught.value)


# --- the step -------------------------------------------------------------------------------------


def test_the_loss_is_trls_step_by_step(small_world: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from aligner.training.sampler import SeededSampler

    start = save_reward_model(tmp_path / "start")
    graded_pairs = (
        {**pair, "grade": 1 + place % 3} for place, pair in enumerate(pairs_of(small_world))
    )
    data = write_jsonl(tmp_path / "graded.jsonl", graded_pairs)
    common = {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 1,
        "use_cpu": True,
    }
    run, _ = train(
        small_world,
        tmp_path / "ours",
        f"model.name_or_path={start}",
        "reward.loss=margin",
        "reward.strength=grade",
        "reward.center_rewards_coefficient=0.05",
        f"data.train={data}",
        "trainer.train_sampling_strategy=random",
        *(f"trainer.{key}={value}" for key, value in common.items()),
    )
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    ordered = [rows[place] for place in SeededSampler(len(rows), 42)]
    ordered = [
        {**{key: one[key] for key in ("prompt", "chosen", "rejected")}, "margin": one["grade"]}
        for one in ordered
    ]
    arguments = RewardConfig(
        output_dir=str(tmp_path / "theirs"),
        bf16=False,
        max_length=None,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        center_rewards_coefficient=0.05,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **common,
    )
    theirs = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(start),
        args=arguments,
        train_dataset=Dataset.from_list(ordered),
        processing_class=byte_tokenizer(),
    )
    theirs.train()
    expected = [logs for logs in theirs.state.log_history if "loss" in logs]
    found = read_metrics(run)
    for key in ("loss", "accuracy", "margin"):
        assert [line[key] for line in found] == pytest.approx(
            [logs[key] for logs in expected], rel=1e-4, abs=1e-5
        ), key


Cut = Callable[[int, int], tuple[str, ...]]


@pytest.mark.parametrize("kind", ["bradley_terry", "segment", "pairwise"])
def test_eight_rows_at_once_equal_one_row_eight_times(
    small_world: Path, tmp_path: Path, kind: str
) -> None:
    """Two epochs of 21 rows: every third step is short."""
    data = write_jsonl(tmp_path / "rows.jsonl", pairs_of(small_world)[:21])
    found = []
    for name, (size, accumulation) in {"whole": (8, 1), "parts": (1, 8)}.items():
        run, _ = train(
            small_world,
            tmp_path / name,
            f"reward.kind={kind}",
            *(("reward.segments={rule: sentence}",) if kind == "segment" else ()),
            f"data.train={data}",
            f"trainer.per_device_train_batch_size={size}",
            f"trainer.gradient_accumulation_steps={accumulation}",
            "trainer.train_sampling_strategy=random",
            "trainer.optim=sgd",
            "trainer.learning_rate=0.1",
            "trainer.max_steps=6",
        )
        found.append(
            (
                load_file(run / "final" / "model.safetensors"),
                [line["loss"] for line in read_metrics(run)],
            )
        )
    (whole, losses), (parts, other) = found
    assert losses == pytest.approx(other, abs=1e-5)
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=1e-5, rtol=0), name
