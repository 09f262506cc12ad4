"""Rounds from end to end in a small world: what each makes, what a change makes again, and what
training starts from and is held to."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import small_recipe, write_rounds_world
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from aligner.config.recipe import Model
from aligner.events import Notice, Warned
from aligner.generation import shards
from aligner.methods.online.rounds import run_online
from aligner.methods.online.scoring import Scoring
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.runs.files import read_metrics
from aligner.runs.journal import Journal
from aligner.runs.lock import release_locks
from aligner.runs.result import RunResult
from aligner.tokenization.encode import encode_prompt
from aligner.training.preference import PreferenceTrainer


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounds_world(tmp_path_factory.mktemp("rounds"), toy_world)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end; read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    rounds(world, folder)
    return folder


def rounds(
    world: Path, folder: Path, *overrides: str, resume: bool = False, **flags: Any
) -> tuple[RunResult, list[str]]:
    """Run, and return the result and what was said."""
    told: list[Any] = []
    recipe = small_recipe("online", world, folder, *overrides, **flags)
    result = run_online(recipe, resume=resume, on_event=told.append)
    return result, [one.text for one in told if isinstance(one, Notice | Warned)]


def pairs_of(run: Path, number: int) -> list[dict[str, Any]]:
    text = (run / f"rounds/{number:02d}/pair/pairs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_rounds_make_what_they_say(whole: Path) -> None:
    stages = [
        path.parent.relative_to(whole / "rounds").as_posix() for path in whole.rglob("done.json")
    ]
    names = [
        f"{number:02d}/{stage}"
        for number in (1, 2)
        for stage in ("sample", "score", "pair", "train", "eval")
    ]
    assert sorted(stages) == sorted(["00/eval", *names])
    summary = json.loads((whole / "rounds.json").read_text())
    assert len(summary["rounds"]) == 3
    best = summary["best"]
    copied = (whole / "final" / "model.safetensors").read_bytes()
    assert copied == (whole / f"rounds/{best:02d}/train/run/final/model.safetensors").read_bytes()
    assert pairs_of(whole, 1)


def stage_times(run: Path) -> dict[str, int]:
    """When each stage was declared done, in nanoseconds: a stage that is made again has another."""
    files = sorted((run / "rounds").rglob("done.json"))
    return {
        file.parent.relative_to(run / "rounds").as_posix(): file.stat().st_mtime_ns
        for file in files
    }


def made_again(before: dict[str, int], run: Path) -> list[str]:
    return [name for name, when in stage_times(run).items() if before.get(name) != when]


def weights(run: Path, number: int) -> dict[str, Any]:
    (file,) = (run / f"rounds/{number:02d}/train/run/final").glob("*.safetensors")
    return load_file(file)


def inner_recipe(run: Path, number: int) -> dict[str, Any]:
    """The recipe of the training of a round."""
    found: dict[str, Any] = json.loads(
        (run / f"rounds/{number:02d}/train/run/resolved.json").read_text()
    )
    return found["recipe"]


def facts(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "rounds" / stage / "done.json").read_text())
    return found["facts"]


# --- what a change makes again --------------------------------------------------------------------


def test_a_changed_temperature_makes_what_follows_again_and_nothing_before(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before, pairs = stage_times(run), pairs_of(run, 1)
    _, told = rounds(world, run, resume=True, online__temperatures=[0.9])
    assert made_again(before, run) == [name for name in before if not name.startswith("00")]
    assert pairs_of(run, 1) != pairs
    assert any(
        "rounds/01/sample is made again, since temperatures changed" in text for text in told
    )
    assert any(text.startswith("changed since this run was started: online.temp") for text in told)
    changed = stage_times(run)
    _, told = rounds(world, run, resume=True)
    assert pairs_of(run, 1) == pairs
    assert "rounds/02/train is taken back from stale/: it is made of the same" in told
    assert (run / "rounds.json").read_bytes() == (whole / "rounds.json").read_bytes()
    rounds(world, run, resume=True, online__temperatures=[0.9])
    assert stage_times(run) == changed, "and the other ones are there too"


@pytest.mark.slow
def test_a_changed_rule_makes_no_response_again_and_no_policy_where_the_pairs_stay(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = stage_times(run)
    rounds(world, run, resume=True, online__pairing={"min_margin": 1e-9})
    assert made_again(before, run) == ["01/pair", "02/pair"]
    before = stage_times(run)
    rounds(world, run, resume=True, online__pairing={"rule": "top_bottom"})
    kept = {"00/eval", "01/sample", "01/score"}
    assert made_again(before, run) == [name for name in before if name not in kept]


def test_another_share_for_validation_measures_again_and_trains_nothing(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = stage_times(run)
    rounds(world, run, resume=True, online__evaluation={"validation": 0.3})
    assert made_again(before, run) == ["00/eval", "01/eval", "02/eval"]


def test_a_limit_that_stops_is_no_part_of_a_stage(world: Path, whole: Path, tmp_path: Path) -> None:
    """And a run that it ended goes on where it is lifted."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = stage_times(run)
    result, told = rounds(world, run, resume=True, online__stop={"kl": 1e-9})
    assert any("no further round after 1" in text for text in told)
    assert json.loads((run / "rounds.json").read_text())["stopped"]
    assert result.results["rounds"] == 1.0
    result, _ = rounds(world, run, resume=True)
    assert result.results["rounds"] == 2.0
    assert made_again(before, run) == []


def test_more_rounds_on_a_finished_run(world: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rounds(world, run, online__rounds=1)
    before = stage_times(run)
    assert len(before) == 6
    rounds(world, run, resume=True)
    assert [name for name in made_again(before, run) if name in before] == []
    assert pairs_of(run, 2) == pairs_of(whole, 2)
    assert all(torch.equal(ours, weights(whole, 2)[name]) for name, ours in weights(run, 2).items())
    assert (run / "rounds.json").read_bytes() == (whole / "rounds.json").read_bytes()


def test_a_run_that_was_moved_while_it_trained_is_resumed(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    """Its training names files by where they lay, so it is started again; nothing else is."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aligner.training.fit.save_final", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rounds(world, tmp_path / "run")
    release_locks()
    (tmp_path / "run").rename(tmp_path / "moved")
    before = stage_times(tmp_path / "moved")
    _, told = rounds(world, tmp_path / "moved", resume=True)
    assert "rounds/01/train is started again: its files lie elsewhere now" in told
    assert [name for name in made_again(before, tmp_path / "moved") if name in before] == []
    assert (tmp_path / "moved/rounds.json").read_bytes() == (whole / "rounds.json").read_bytes()


def test_log_probabilities_of_the_kl_are_those_of_sampling(whole: Path) -> None:
    """They were computed in float32, so the policy is not run again on what it sampled."""
    folder = whole / "rounds/02"
    responses = Journal(folder / "eval/responses.jsonl")[0]
    known = Journal(folder / "eval/logps.jsonl")[0]
    tokenizer = load_tokenizer(Model(name_or_path=str(folder / "train/run/final")))
    model = AutoModelForCausalLM.from_pretrained(folder / "train/run/final")
    places = json.loads((folder / "eval/metrics.json").read_text())["samples"]
    prompt = encode_prompt(tokenizer, places[0]["prompt"])
    for (ids, *_), logps in zip(responses[0], known[0], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        exact = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
        assert torch.tensor(logps) == pytest.approx(exact, abs=1e-4)
    assert all(len(one) == 5 for one in responses[0])


def test_a_finished_run_that_is_resumed_says_what_came_out(world: Path, whole: Path) -> None:
    before = stage_times(whole)
    result, _ = rounds(world, whole, resume=True)
    assert result.results["rounds"] == 2.0
    assert stage_times(whole) == before


def test_a_finished_run_sees_that_a_scorer_and_the_data_changed(
    world: Path, tmp_path: Path
) -> None:
    """What changed lies behind names of the recipe, which itself is the same."""
    run, prompts, scorer = (tmp_path / name for name in ("run", "prompts.jsonl", "length.py"))
    shutil.copy(world / "prompts.jsonl", prompts)
    scorer.write_text(
        "def score(prompt, completion, reference):\n    return float(len(completion))\n"
    )
    settings = {
        "data__train": str(prompts),
        "online__reward_models": [f"verifier:{scorer}:score"],
    }
    rounds(world, run, **settings)
    parents = json.loads((run / "manifest.json").read_text())["parents"]
    assert [each["kind"] for each in parents] == ["model", "reward_model", "data"]
    before = stage_times(run)
    scorer.write_text(scorer.read_text().replace("len(", "-len("))
    rounds(world, run, resume=True, **settings)
    again = made_again(before, run)
    assert "01/score" in again
    assert "01/sample" not in again
    prompts.write_text(prompts.read_text().partition("\n")[2])
    before = stage_times(run)
    rounds(world, run, resume=True, **settings)
    assert "01/sample" in made_again(before, run)
    assert (run / "manifest.json").exists()


def test_damaged_responses_cost_their_shard_and_what_follows_from_it(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    """Scores of other responses than those that are there would be worse than none."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    file = run / "rounds/02/sample/responses.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0].replace("true", "false"), *lines[1:]]))
    assert 0 not in Journal(file)
    asked = []
    score = Scoring.score

    def spy(self: Any, number: int, scorer: Any, part: int) -> None:
        asked.append((self.stage.name, part))
        score(self, number, scorer, part)

    (run / "manifest.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scoring, "score", spy)
        patch.setattr(shards, "_as_json", said_otherwise)
        _, told = rounds(world, run, resume=True)
    assert any("rounds/02/sample is made again" in text for text in told)
    assert asked[0] == ("rounds/02/score", 0)
    texts = {one[3] for samples in Journal(file)[0] for one in samples}
    assert texts == {"zz"}
    few = "prompts with fewer than two different responses"
    assert facts(run, "02/pair")["lost"][few] >= 4, "those of the shard"


def said_otherwise(tokenizer: Any, generated: Any, settings: Any) -> list[Any]:
    return [list(generated.token_ids), True, settings.temperature, "zz"]


# --- weights that are kept ------------------------------------------------------------------------

THREE = {"online__rounds": 3, "online__prompts_per_round": 8}


@pytest.fixture(scope="module")
def pruned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of which the best and the last are kept; read only."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    rounds(world, folder, online__keep="best", **THREE)
    return folder


def kept_weights(run: Path) -> list[int]:
    return sorted(int(file.parts[-5]) for file in (run / "rounds").rglob("final/*.safetensors"))


@pytest.mark.slow
def test_the_best_and_the_last_weights_are_kept(pruned: Path) -> None:
    best = json.loads((pruned / "rounds.json").read_text())["best"]
    assert kept_weights(pruned) == sorted({best, 3})
    assert (pruned / "final" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_last_two_are_kept(world: Path, tmp_path: Path) -> None:
    rounds(world, tmp_path / "run", online__keep="last2", **THREE)
    best = json.loads((tmp_path / "run" / "rounds.json").read_text())["best"]
    assert kept_weights(tmp_path / "run") == sorted({best, 2, 3})


@pytest.mark.slow
def test_weights_that_are_needed_again_are_trained_again_to_the_bit(
    world: Path, pruned: Path, tmp_path: Path
) -> None:
    """Here they are, since every policy is measured again; nothing else is made again for it."""
    run = tmp_path / "run"
    shutil.copytree(pruned, run)
    gone = [number for number in (1, 2) if number not in kept_weights(run)]
    assert gone
    before = stage_times(run)
    _, told = rounds(
        world, run, resume=True, online__keep="all", online__evaluation={"validation": 0.3}, **THREE
    )
    for number in gone:
        assert f"rounds/{number:02d}/train is done again: its weights were not kept" in told
    evals = [f"{number:02d}/eval" for number in range(4)]
    trained = [f"{number:02d}/train" for number in gone]
    assert made_again(before, run) == sorted([*evals, *trained])
    assert kept_weights(run) == [1, 2, 3]


# --- what training starts from, and what it is held to --------------------------------------------


def test_from_the_start_on_the_pairs_of_all_rounds(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rounds(world, run, online__start="initial")
    own = [len(pairs_of(run, number)) for number in (1, 2)]
    assert facts(run, "02/train")["rows"] == sum(own)
    inner = inner_recipe(run, 2)
    assert inner["model"]["name_or_path"] == str(world / "model")
    assert inner["dpo"]["reference_model"] is None
    assert first_loss(run, 2) == pytest.approx(math.log(2))


def first_loss(run: Path, number: int) -> float:
    lines = read_metrics(run / f"rounds/{number:02d}/train/run")
    return float(next(line["loss"] for line in lines if line["split"] == "train"))


@pytest.mark.slow
def test_replay_adds_a_share_of_the_pairs_of_earlier_rounds(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rounds(world, run, online__replay=0.5)
    own = len(pairs_of(run, 2))
    assert facts(run, "01/train")["rows"] == len(pairs_of(run, 1))
    assert facts(run, "02/train")["rows"] == own + round(own / 2)


def test_the_previous_policy_as_reference_leaves_no_margin_at_the_start_of_a_round(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rounds(world, run, online__reference="previous")
    assert first_loss(run, 2) == pytest.approx(math.log(2), abs=1e-6)
    assert first_loss(whole, 2) != pytest.approx(math.log(2), abs=1e-3)
    assert inner_recipe(run, 2)["dpo"]["reference_model"] is None


@pytest.mark.slow
def test_the_moving_average_as_reference(world: Path, tmp_path: Path) -> None:
    """After round 1: 0.75 of the start and 0.25 of its policy; after round 2, 0.75 of that and 0.25
    of the second policy."""
    run = tmp_path / "run"
    rounds(world, run, online__reference="ema", online__ema_decay=0.75, **THREE)
    average = load_file(world / "model" / "model.safetensors")
    for number in (1, 2):
        policy = weights(run, number)
        average = {name: 0.75 * average[name] + 0.25 * policy[name] for name in average}
        folder = run / f"rounds/{number:02d}/average"
        found = load_file(folder / "model.safetensors")
        assert all(torch.allclose(found[name], average[name], atol=1e-7) for name in average)
        assert inner_recipe(run, number + 1)["dpo"]["reference_model"] == str(folder)


def test_best_of_n_trains_on_the_best_finished_response(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rounds(world, run, "online.train=sft", "online.rounds=1")
    lines = (run / "rounds/01/pair/best.jsonl").read_text().splitlines()
    assert facts(run, "01/train")["rows"] == len(lines) > 0
    assert inner_recipe(run, 1)["method"] == "sft"
    responses = Journal(run / "rounds/01/sample/responses.jsonl")
    scores = Journal(run / "rounds/01/score/scores-0.jsonl")
    best = set()
    for part in range(3):
        for samples, values in zip(responses[part], scores[part][1], strict=True):
            finished = [
                (value, one[3]) for one, value in zip(samples, values) if one[1] and one[3].strip()
            ]
            best |= {max(finished)[1]} if finished else set()
    assert {json.loads(line)["completion"][0]["content"] for line in lines} == best


@pytest.mark.slow
def test_two_models_write_the_two_sides(world: Path, tmp_path: Path) -> None:
    """With the same random numbers for nobody: the two are asked under names of their own."""
    run = tmp_path / "run"
    model = str(world / "model")
    rounds(
        world,
        run,
        "online.reward_models=[]",
        "online.evaluation.gold=toy",
        "online.pairing.rule=two_models",
        f"online.stronger.name_or_path={model}",
        f"online.weaker.name_or_path={model}",
    )
    rows = pairs_of(run, 1)
    assert rows
    assert {tuple(row["written_by"]) for row in rows} == {("stronger", "weaker")}
    stages = set(stage_times(run))
    assert {"01/sample-stronger", "01/sample-weaker"} <= stages
    assert not [name for name in stages if "score" in name]


@pytest.mark.slow
def test_anchored_rejects_what_the_start_wrote_where_that_is_worse(
    world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rounds(world, run, "online.pairing.rule=anchored")
    assert {tuple(row["written_by"]) for row in pairs_of(run, 1)} == {("policy", "policy")}
    sides = {tuple(row["written_by"]) for row in pairs_of(run, 2)}
    assert ("policy", "start") in sides
    assert {chosen for chosen, _ in sides} == {"policy"}
    assert "02/sample-start" in stage_times(run)
    assert "01/sample-start" not in stage_times(run)


@pytest.mark.slow
def test_a_loss_without_a_reference(world: Path, tmp_path: Path) -> None:
    result, _ = rounds(world, tmp_path / "run", "dpo.loss=simpo")
    assert result.results["rounds"] == 2.0


# --- the reference, proved by its log-probabilities -----------------------------------------------

LORA = ("model.lora={r: 4, lora_alpha: 8}",)


def load_start(folder: Path, quantization: str = "none") -> Any:
    """A model, or an adapter on its base, as PEFT and transformers load it."""
    if (folder / "adapter_config.json").exists():
        return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if quantization != "none":
        section = Model(name_or_path=str(folder), quantization="nf4", dtype="float32")
        return load_policy(section, load_tokenizer(section), trainable=False).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logps_under(model: Any, world: Path, rows: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """The slow twin: chosen and rejected, one response after the other."""
    tokenizer = load_tokenizer(Model(name_or_path=str(world / "model")))
    found = []
    for row in rows:
        prompt, sums = encode_prompt(tokenizer, row["prompt"]), []
        for answer in row["pair_token_ids"]:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0]
            logps = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
            sums.append(float(logps.gather(1, torch.tensor(answer)[:, None]).sum()))
        found.append(tuple(sums))
    return sorted(found)


def with_references(
    world: Path, run: Path, *overrides: str, **flags: Any
) -> dict[int, list[tuple[float, ...]]]:
    """Run two rounds of one epoch each, and return what the objective of each was handed as the
    log-probabilities of the reference."""
    seen: dict[int, list[tuple[float, ...]]] = {1: [], 2: []}
    compute = PreferenceTrainer._reference

    def spy(trainer: Any, inputs: Any) -> Any:
        chosen, rejected = compute(trainer, inputs)
        number = 2 if "rounds/02" in str(trainer.args.output_dir) else 1
        seen[number] += zip(chosen.tolist(), rejected.tolist())
        return chosen, rejected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreferenceTrainer, "_reference", spy)
        rounds(world, run, "trainer.num_train_epochs=1", *overrides, **flags)
    return {number: sorted(found) for number, found in seen.items()}


def assert_held_to(
    start: Any, world: Path, run: Path, seen: dict[int, list[tuple[float, ...]]], *numbers: int
) -> None:
    for number in numbers:
        expected = logps_under(start, world, pairs_of(run, number))
        assert len(seen[number]) == len(expected) > 0
        for found, wanted in zip(seen[number], expected):
            assert found == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("lora", [(), LORA])
def test_the_reference_is_the_start_in_every_round(
    world: Path, tmp_path: Path, own_cache: Path, lora: tuple[str, ...]
) -> None:
    """Of full fine-tuning and of an adapter, though round 2 starts from the policy of round 1."""
    run = tmp_path / "run"
    seen = with_references(world, run, *lora)
    assert_held_to(load_start(world / "model"), world, run, seen, 1, 2)
    assert first_loss(run, 2) != pytest.approx(math.log(2), abs=1e-3), "the policy has moved"


def test_a_start_that_is_an_adapter_is_the_reference_in_every_round(
    world: Path, tmp_path: Path, own_cache: Path
) -> None:
    """And not the base below it, which is what switching the adapter off would give."""
    start, run = tmp_path / "adapter", tmp_path / "run"
    save_random_adapter(start, world / "model")
    seen = with_references(world, run, f"model.name_or_path={start}", *LORA)
    assert_held_to(load_start(start), world, run, seen, 1, 2)
    (chosen, *_), (base, *_) = (
        seen[1],
        logps_under(load_start(world / "model"), world, pairs_of(run, 1)),
    )
    assert chosen != pytest.approx(base, abs=1e-2)


def save_random_adapter(folder: Path, base: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data = 0.05 * torch.randn(weight.shape)
    adapted.save_pretrained(folder)
    load_tokenizer(Model(name_or_path=str(base))).save_pretrained(folder)


@pytest.mark.slow
def test_the_last_adapter_as_reference(world: Path, tmp_path: Path, own_cache: Path) -> None:
    run = tmp_path / "run"
    seen = with_references(world, run, *LORA, online__reference="previous")
    assert_held_to(load_start(world / "model"), world, run, seen, 1)
    assert_held_to(load_start(run / "rounds/01/train/run/final"), world, run, seen, 2)
    assert first_loss(run, 2) == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.slow
def test_a_quantized_base_is_the_reference_in_every_round(
    world: Path, tmp_path: Path, own_cache: Path
) -> None:
    run = tmp_path / "run"
    seen = with_references(world, run, *LORA, "model.quantization=nf4")
    assert_held_to(load_start(world / "model", "nf4"), world, run, seen, 1, 2)
