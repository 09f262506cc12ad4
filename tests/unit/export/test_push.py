"""What leaves for a hub, and what never does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from fakes import save_model, small_recipe
from huggingface_hub import constants
from runner import aligner

from aligner.errors import EndpointError, UsageError
from aligner.export.merge import merge
from aligner.export.push import plan_push, push
from aligner.methods.pipeline import run_recipe


@pytest.fixture(scope="module")
def run(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of all weights, with checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "sft"
    run_recipe(small_recipe("sft", small_world, folder, trainer__save_steps=2))
    assert list((folder / "checkpoints").glob("checkpoint-*/optimizer.pt"))
    return folder


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the client reach a hub on this machine, with a token."""

    def at(hub: FakeHub) -> FakeHub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        return hub

    return at


# --- what is pushed -------------------------------------------------------------------------------


def test_only_what_a_model_is_loaded_from_leaves(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    final = copy / "final"
    for name in ("optimizer.safetensors", "notes.txt", "events.out.tfevents.1", "secret.env"):
        (final / name).write_text("private")
    (final / "prepared").mkdir()
    (final / "prepared" / "config.json").write_text("{}")
    (final / "chat_template.jinja.bak").write_text("old")
    plan = plan_push(str(copy), "me/model")
    assert set(plan.files) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "prepared/config.json" in plan.left
    assert "optimizer.safetensors" in plan.left
    assert plan.files["model.safetensors"] == (final / "model.safetensors").stat().st_size
    assert plan.is_private


def test_code_leaves_with_a_model_that_needs_it_alone(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / "final", tmp_path / "model")
    (copy / "modeling.py").write_text("x = 1")
    assert "modeling.py" in plan_push(str(copy), "me/model").left
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    assert "modeling.py" in plan_push(str(copy), "me/model").files


def test_the_record_of_a_merge_stays(small_world: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    run_recipe(small_recipe("sft", small_world, lora, model__lora={"r": 2}))
    folder = merge(str(lora), tmp_path / "merged").folder
    plan = plan_push(str(folder), "me/model")
    assert plan.left == ("merge.json",)
    card = (folder / "README.md").read_text("utf-8")
    assert "## Merged" in card
    with pytest.raises(UsageError, match="is a folder on this machine"):
        plan_push(str(lora), "me/model")


@pytest.mark.parametrize(
    ("repo", "what"),
    [("model", "does not say whose"), ("a b/c", "--to a b/c"), ("a/b/c", "--to a/b/c")],
)
def test_names_that_no_repository_has_are_refused(run: Path, repo: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        plan_push(str(run), repo)


def test_a_checkpoint_is_never_pushed(run: Path) -> None:
    checkpoint = next((run / "checkpoints").glob("checkpoint-*"))
    with pytest.raises(UsageError, match="is a checkpoint"):
        plan_push(str(checkpoint), "me/model")


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no model card \(README\.md\)"):
        plan_push(str(save_model(tmp_path / "model")), "me/model")


# --- pushing --------------------------------------------------------------------------------------


def test_a_model_arrives_whole_and_private(run: Path, reach: Any) -> None:
    with FakeHub() as hub:
        reach(hub)
        plan = plan_push(str(run), "me/model")
        url = push(plan)
        assert url == f"{hub.url}/me/model"
    assert hub.repos == {"me/model": True}
    assert hub.files["me/model"] == {
        place: (run / "final" / place).read_bytes() for place in plan.files
    }
    assert sum(" /api/models/me/model/commit/" in asked for asked in hub.asked) == 1
    assert hub.tokens == {"Bearer hf_test"}


def test_a_public_repository_is_not_taken_for_a_private_one(run: Path, reach: Any) -> None:
    with FakeHub({"me/model": False}) as hub:
        reach(hub)
        with pytest.raises(UsageError, match="is there already, and it is public"):
            push(plan_push(str(run), "me/model"))
        assert hub.files == {}
        push(plan_push(str(run), "me/model", public=True))
        assert "model.safetensors" in hub.files["me/model"]


def test_a_hub_that_refuses_is_quoted(run: Path, reach: Any) -> None:
    with FakeHub(refuses=403) as hub:
        reach(hub)
        with pytest.raises(EndpointError, match=r"refused the push to me/model \(403\): .*may not"):
            push(plan_push(str(run), "me/model"))


def test_a_hub_that_is_not_there_is_said(
    run: Path, reach: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub() as hub:
        reach(hub)
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    with pytest.raises(EndpointError, match="the hub does not answer"):
        push(plan_push(str(run), "me/model"))


def test_offline_nothing_is_pushed(run: Path) -> None:
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        push(plan_push(str(run), "me/model"))


# --- the command ----------------------------------------------------------------------------------


def test_a_dry_run_lists_files_and_asks_nobody(run: Path, reach: Any) -> None:
    with FakeHub() as hub:
        reach(hub)
        result = aligner("push", run, "--to", "me/model", "--dry-run")
        assert hub.asked == []
    assert result.exit_code == 0, result.output
    assert "me/model (private)" in result.stdout
    assert "nothing was pushed" in result.stdout
    size = (run / "final" / "model.safetensors").stat().st_size
    assert f"model.safetensors       {size:,}" in result.stdout
    plain = aligner("push", run, "--to", "me/model", "--dry-run", "--json")
    found = json.loads(plain.stdout)
    assert (found["private"], found["url"]) == (True, None)
    assert found["bytes"] == sum(found["files"].values())


def test_the_command_pushes(run: Path, reach: Any) -> None:
    with FakeHub() as hub:
        reach(hub)
        result = aligner("push", run, "--to", "me/model", "--public")
        assert result.exit_code == 0, result.output
        assert f"pushed  {hub.url}/me/model" in result.stdout
    assert hub.repos == {"me/model": False}
    assert set(hub.files) == {"me/model"}
