"""A run is resumed only with what stood behind the names in its recipe when it started."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer, save_model, save_reward_model, small_recipe, write_jsonl

from aligner import events
from aligner.config.introspect import section_in
from aligner.config.load import Resolved, load_recipe
from aligner.config.named import Names
from aligner.config.recipe import Section
from aligner.errors import DataError
from aligner.methods.catalogue import recipes
from aligner.methods.pipeline import run_recipe
from aligner.reward_models.named_inputs import compare_inputs, named_inputs
from aligner.runs import digests
from aligner.runs.cache import cache_folder
from aligner.runs.digests import digest_of
from aligner.runs.run import Run

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}
RULE = "def judge(prompt, completion, reference):\n    return 1.0\n"
OBJECTIVE = """
def loss(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
         reference_rejected_logps):
    return -F.logsigmoid(policy_chosen_logps - policy_rejected_logps)
"""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
COMMIT = "a" * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, cards and files that a recipe may name."""
    world = tmp_path_factory.mktemp("world")
    save_model(world / "base")
    save_reward_model(world / "judge-head")
    (world / "reward-card.yaml").write_text("kind: bradley_terry\nmodel: ./judge-head\n")
    (world / "adapter").mkdir()
    (world / "adapter/adapter_config.json").write_text(json.dumps(ADAPTER))
    (world / "adapter/adapter_model.safetensors").write_bytes(b"weights")
    (world / "chat.jinja").write_text(TEMPLATE)
    (world / "rule.py").write_text(RULE)
    (world / "objective.py").write_text(OBJECTIVE)
    (world / "rows.py").write_text("def shape(row):\n    return row\n")
    (world / "phrasings.yaml").write_text("numbers: ['Q{n}:']\n")
    (world / "rubric.txt").write_text("Is it polite?")
    write_jsonl(world / "replies.jsonl", [{"reply": "Grade: 5"}])
    endpoint = "endpoint: {backend: scripted, script: replies.jsonl}\n"
    judge = f"kind: judge\nrubric: ./rubric.txt\n{endpoint}"
    (world / "judge.yaml").write_text(judge)
    members = "kind: ensemble\nmembers: [./judge.yaml, toy]\n"
    (world / "several.yaml").write_text(members)
    write_jsonl(world / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    write_jsonl(world / "prompts.jsonl", [{"prompt": "a"}])
    (world / "inner.yaml").write_text(
        "method: dpo\nmodel: {name_or_path: base}\ndata: {train: rows.jsonl}\n"
    )
    return world


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, as the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(method: str, *overrides: str) -> Resolved:
    needed = {
        **{name: ["model.name_or_path=base"] for name in ("sft", "dpo", "sapo", "reward")},
        "discover": ["endpoint={model: m, base_url: 'http://127.0.0.1:1/v1'}"],
    }
    data = [] if method == "discover" else ["data.train=rows.jsonl"]
    return load_recipe(method, None, [*needed.get(method, []), *data, "output_dir=run", *overrides])


INNER = (
    *("discover.task=recipe", "discover.recipe=inner.yaml"),
    *("discover.prompts=prompts.jsonl", "discover.reward_model=verifier:rule.py:judge"),
)
SCORED = ("select.policy=base", "select.reward_models=[reward-card.yaml]")
DISTILLED = "dpo.loss=reward_distill"

CASES: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "the weights of the base": ("sft", (), "base/model.safetensors", "model.name_or_path"),
    "its configuration": ("reward", (), "base/config.json", "model.name_or_path"),
    "its generation settings": ("sapo", (), "base/generation_config.json", "model.name_or_path"),
    "its tokenizer": ("dpo", (), "base/tokenizer.json", "model.name_or_path"),
    "a template in its folder": ("sft", (), "base/chat_template.jinja", "model.name_or_path"),
    "an adapter": (
        *("sft", ("model.name_or_path=adapter",)),
        *("adapter/adapter_model.safetensors", "model.name_or_path"),
    ),
    "the base of an adapter": (
        *("sft", ("model.name_or_path=adapter",)),
        *("base/config.json", "model.name_or_path"),
    ),
    "the chat template": (
        *("sft", ("model.chat_template=chat.jinja",), "chat.jinja", "model.chat_template"),
    ),
    "the reference": (
        *("dpo", ("dpo.reference_model=judge-head",)),
        *("judge-head/model.safetensors", "dpo.reference_model"),
    ),
    "an objective": ("dpo", ("dpo.loss=objective.py",), "objective.py", "dpo.loss"),
    "a reward model": (
        *("dpo", (DISTILLED, "dpo.reward_models=[bradley_terry:judge-head]")),
        *("judge-head/model.safetensors", "dpo.reward_models[0]"),
    ),
    "the tokenizer of a reward model": (
        *("dpo", (DISTILLED, "dpo.reward_models=[toy,reward-card.yaml]")),
        *("judge-head/tokenizer.json", "dpo.reward_models[1]"),
    ),
    "the rubric of a judge": (
        *("dpo", (DISTILLED, "dpo.reward_models=[judge.yaml]")),
        *("rubric.txt", "dpo.reward_models[0]"),
    ),
    "the script of a member's endpoint": (
        *("dpo", (DISTILLED, "dpo.reward_models=[several.yaml]")),
        *("replies.jsonl", "dpo.reward_models[0]"),
    ),
    "a rule": (
        *("sapo", ("sapo.verifier=verifier:rule.py:judge,timeout_s=5",)),
        *("rule.py", "sapo.verifier"),
    ),
    "a function of the rows": (
        *("sft", ("data.train=[{path: rows.jsonl, function: 'rows.py:shape'}]",)),
        *("rows.py", "data.train[0].function"),
    ),
    "phrasings on the fly": (
        *("sft", ("data.mosaic={phrasings: phrasings.yaml}",)),
        *("phrasings.yaml", "data.mosaic.phrasings"),
    ),
    "phrasings in files": (
        *("mosaic", ("mosaic.phrasings=phrasings.yaml",)),
        *("phrasings.yaml", "mosaic.phrasings"),
    ),
    "the tokenizer of mosaics": (
        *("mosaic", ("mosaic.tokenizer=base",), "base/chat_template.jinja", "mosaic.tokenizer"),
    ),
    "the policy of a selection": (
        *("select", SCORED, "base/tokenizer_config.json", "select.policy.name_or_path"),
    ),
    "the reward model of a selection": (
        *("select", SCORED, "judge-head/config.json", "select.reward_models[0]"),
    ),
    "the rule of a search": ("discover", INNER, "rule.py", "discover.reward_model"),
    "the model of a search's recipe": (
        *("discover", INNER, "base/model.safetensors", "discover.recipe: model.name_or_path"),
    ),
    "the data of a search's recipe": (
        *("discover", INNER, "rows.jsonl", "discover.recipe: data.train[0].path"),
    ),
    "a local proposer": (
        *("discover", ("endpoint={backend: local, model: base}",)),
        *("base/config.json", "endpoint.model"),
    ),
}


def started(resolved: Resolved) -> None:
    run = Run.create(resolved)
    compare_inputs(run, resolved.recipe, None)
    run.write_json("data.json", {})
    run.close()


def resumed(resolved: Resolved, on_event: Callable[[Any], None] | None = None) -> Run:
    run = Run.create(resolved, resume=True)
    try:
        compare_inputs(run, resolved.recipe, on_event)
    finally:
        run.close()
    return run


@pytest.mark.parametrize("case", CASES)
def test_resuming_refuses_a_changed_input_and_names_its_key_and_its_file(
    case: str, world: Path
) -> None:
    method, overrides, file, key = CASES[case]
    resolved = recipe(method, *overrides)
    started(resolved)
    resumed(resolved)
    before = (world / file).read_bytes() if (world / file).exists() else b""
    (world / file).write_bytes(before + b" ")
    with pytest.raises(DataError, match="resuming would mix two runs") as caught:
        resumed(resolved)
    [problem] = [one for one in caught.value.problems if one.key == key]
    assert Path(problem.where).name == Path(file).name
    said = r"is not what it was: \w{12} -> \w{12}" if before else "was not there"
    assert re.fullmatch(said, problem.message)
    if before:
        (world / file).write_bytes(before)
        resumed(resolved)


def test_what_a_card_says_of_its_scores_counts_and_its_name_does_not(world: Path) -> None:
    resolved = recipe("dpo", DISTILLED, "dpo.reward_models=[reward-card.yaml]")
    card, text = world / "reward-card.yaml", "kind: bradley_terry\nmodel: ./judge-head\n"
    started(resolved)
    card.write_text(f"{text}name: other\nbatch_tokens: 100\n")
    resumed(resolved)
    card.write_text(f"{text}max_length: 100\n")
    with pytest.raises(DataError, match=r"the card of reward-card\.yaml: dpo\.reward_models"):
        resumed(resolved)


def test_a_file_that_is_gone_and_one_beside_the_model_that_nobody_reads(world: Path) -> None:
    resolved = recipe("sft")
    started(resolved)
    (world / "base/README.md").write_text("about")
    resumed(resolved)
    (world / "base/generation_config.json").unlink()
    with pytest.raises(DataError, match=r"generation_config\.json: .* is no longer there"):
        resumed(resolved)


def test_a_run_of_an_older_version_is_resumed_with_a_remark_and_compared_from_then_on(
    world: Path,
) -> None:
    resolved = recipe("sft", "model.chat_template=chat.jinja")
    started(resolved)
    inputs = world / "run/inputs.json"
    inputs.write_text(json.dumps({"fingerprint": "x", "sources": {"rows.jsonl": "y"}}))
    said: list[Any] = []
    resumed(resolved, said.append)
    [remark] = [event.text for event in said if isinstance(event, events.Warned)]
    assert "model.name_or_path, model.chat_template" in remark
    assert json.loads(inputs.read_text())["sources"] == {"rows.jsonl": "y"}
    resumed(resolved, said.append)
    assert len(said) == 1
    (world / "chat.jinja").write_text("other")
    with pytest.raises(DataError, match=r"chat\.jinja"):
        resumed(resolved)


def test_a_model_of_the_hub_is_compared_by_its_commit_once_it_is_there(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(world / "hub"))
    resolved = recipe("sft", "model.name_or_path=someone/something")
    started(resolved)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **_: str(world / "hub" / COMMIT)
    )
    resumed(resolved)
    assert named_inputs(resolved.recipe)["model.name_or_path"] == {"someone/something": COMMIT}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: "hub/" + "b" * 40)
    with pytest.raises(DataError, match=f"someone/something: .* {COMMIT[:12]} -> bbbbbbbbbbbb"):
        resumed(resolved)


def test_a_training_is_not_resumed_with_another_base_of_the_same_name(world: Path) -> None:
    write_jsonl(world / "sft.jsonl", [{"prompt": f"{i}", "completion": f"{i}"} for i in range(4)])
    training = small_recipe("sft", world, world / "run", "model.name_or_path=base")
    run_recipe(training)
    (world / "run/manifest.json").unlink()
    save_model(world / "base", seed=1)
    with pytest.raises(DataError, match=r"base/model\.safetensors: model\.name_or_path: "):
        run_recipe(training, resume=True)
    save_model(world / "base")
    run_recipe(training, resume=True)
    assert (world / "run/manifest.json").exists()


def test_what_a_server_has_is_not_looked_for_here(world: Path) -> None:
    assert named_inputs(recipe("discover").recipe) == {}


# --- digests --------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose digest is worth keeping, written long ago."""
    monkeypatch.setattr(digests, "WORTH_KEEPING", 1)
    monkeypatch.setattr(digests, "SETTLED_S", -1.0)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    return file


def test_a_file_is_read_once_and_again_after_every_change(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    whole = digests.file_sha256
    monkeypatch.setattr(digests, "file_sha256", lambda file: read.append(file) or whole(file))
    first = digest_of(weights)
    assert digest_of(weights) == first
    assert len(read) == 1
    stamp = weights.stat()
    time.sleep(0.02)
    weights.write_bytes(b"Weights")  # as long, and then as old
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest_of(weights) != first
    assert len(read) == 2


def test_a_digest_of_a_file_that_changed_just_now_is_not_kept(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_S", 60.0)
    before = kept()
    digest_of(weights)
    assert kept() == before


def kept() -> set[Path]:
    return set(cache_folder("digests").glob("*.json"))


def test_a_cache_that_cannot_be_looked_at_costs_a_reading(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = digest_of(weights)
    monkeypatch.setenv("ALIGNER_CACHE", "x" * 300)  # no system takes such a name
    assert digest_of(weights) == known


def test_a_damaged_digest_is_computed_again(weights: Path) -> None:
    before = kept()
    first = digest_of(weights)
    [record] = kept() - before
    record.write_text("{")
    assert digest_of(weights) == first
    assert json.loads(record.read_text())["sha256"] == first


def test_a_tokenizer_of_a_mosaic_needs_no_weights(world: Path) -> None:
    byte_tokenizer().save_pretrained(world / "tokenizer")
    found = named_inputs(recipe("mosaic", "mosaic.tokenizer=tokenizer").recipe)
    assert all(not path.endswith("safetensors") for path in found["mosaic.tokenizer"])
    assert len(found["mosaic.tokenizer"]) > 1


# --- which keys are names -------------------------------------------------------------------------

NAMING = re.compile(
    r"name_or_path|path|function|script|replay|phrasings|verifier|prompts|recipe|tokenizer"
    r"|(.*_)?(model|models|template)"
)
"""Keys that name something, by how they are called."""


def sections(section: type[Section]) -> set[type[Section]]:
    """A section of a recipe, and all below it."""
    inside = {section_in(field.annotation) for field in section.model_fields.values()}
    found = {section}
    for inner in inside - {None}:
        found |= sections(inner)
    return found


@pytest.mark.parametrize("method", recipes())
def test_every_key_that_names_something_is_marked(method: str) -> None:
    unmarked = []
    for section in sections(recipes()[method]):
        for key, field in section.model_fields.items():
            is_text = "str" in str(field.annotation) and section_in(field.annotation) is None
            is_marked = any(isinstance(mark, Names) for mark in field.metadata)
            if NAMING.fullmatch(key) and is_text and not is_marked:
                unmarked.append((section.__name__, key))
    assert unmarked == []
