"""The toy world as a folder: the same bytes for a seed, splits that do not touch, and nobody's
files harmed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner.errors import UsageError
from aligner.toy.tasks import gold_score, prompt_text
from aligner.toy.world import ROWS, World, draw_splits, read_world, write_world

STEPS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("toy") / "world", seed=3, steps=STEPS)


def rows(world: World, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.data(name).read_text().splitlines()]


def test_the_same_seed_writes_the_same_bytes(world: World, tmp_path: Path) -> None:
    again = write_world(tmp_path, seed=3, steps=STEPS)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        path.relative_to(world.dir) for path in world.dir.rglob("*") if path.is_file()
    }
    assert all(
        (tmp_path / path).read_bytes() == (world.dir / path).read_bytes() for path in written
    )
    assert again.manifest == world.manifest == read_world(tmp_path).manifest


def test_another_seed_draws_other_exercises() -> None:
    assert draw_splits(0) == draw_splits(0)
    assert draw_splits(0)["heldout"] != draw_splits(1)["heldout"]


def test_no_prompt_occurs_twice_within_or_across_splits(world: World) -> None:
    prompts = [
        prompt_text(row["prompt"]) for name in ROWS if name != "sft" for row in rows(world, name)
    ]
    talks = [row["messages"] for row in rows(world, "sft")]
    prompts += [turn["content"] for talk in talks for turn in talk if turn["role"] == "user"]
    assert len(prompts) == len(set(prompts)) == sum(ROWS.values())
    assert {len(talk) for talk in talks} == {2, 4}


def test_held_out_prompts_are_never_drawn_for_pretraining() -> None:
    from aligner.toy.pretrain import batches
    from aligner.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    seen = {
        turn
        for ids, _ in _first(batches(tokenizer, "", (), 0.5), 16)
        for turn in _user_turns(tokenizer, ids)
    }
    held_out = set(sorted(seen)[::2])
    other = {
        turn
        for ids, _ in _first(batches(tokenizer, "", held_out, 0.5), 16)
        for turn in _user_turns(tokenizer, ids)
    }
    assert len(other) > 100
    assert not other & held_out


def _first(stream: Any, count: int) -> list[Any]:
    return [next(stream) for _ in range(count)]


def _user_turns(tokenizer: Any, ids: Any) -> list[str]:
    texts = tokenizer.batch_decode(ids)
    return [part.partition("<|end|>")[0] for text in texts for part in text.split("<|user|>")[1:]]


def test_every_answer_is_right_and_every_rejected_one_is_wrong(world: World) -> None:
    for row in rows(world, "prompts") + rows(world, "heldout"):
        assert gold_score(row["prompt"], row["answer"]) == 1.0
    for row in rows(world, "preferences"):
        assert gold_score(row["prompt"], row["chosen"][0]["content"]) == 1.0
        assert gold_score(row["prompt"], row["rejected"][0]["content"]) < 1.0
    for row in rows(world, "sft"):
        turns = row["messages"]
        scores = [
            gold_score([question], answer["content"])
            for question, answer in zip(turns[::2], turns[1::2])
        ]
        assert set(scores) == {1.0}


def test_the_model_loads_and_the_recipes_are_all_there(world: World) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import aligner.recipes

    model = AutoModelForCausalLM.from_pretrained(world.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(world.model_dir)
    assert model.config.vocab_size == len(tokenizer)
    assert 300_000 < model.num_parameters() < 1_500_000
    assert (model.config.eos_token_id, model.config.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    shipped = Path(aligner.recipes.__path__[0]) / "tiny"
    shipped_files = {path.name for path in shipped.iterdir() if path.suffix in (".yaml", ".jsonl")}
    assert shipped_files == {path.name for path in world.dir.glob("recipes/*")}


def test_a_folder_with_something_in_it_is_left_alone(world: World, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError):
            write_world(tmp_path, steps=STEPS, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="is not empty"):
        write_world(world.dir, steps=STEPS)
    with pytest.raises(UsageError, match="is a file"):
        write_world(tmp_path / "thesis.txt")


def test_a_killed_writing_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("aligner.toy.world._copy_recipes", killed)
        with pytest.raises(KeyboardInterrupt):
            write_world(tmp_path, seed=3, steps=1)
    assert not (tmp_path / "manifest.json").exists()
    with pytest.raises(UsageError, match="is not a toy world"):
        read_world(tmp_path)
    shares: list[float] = []
    write_world(tmp_path, seed=3, steps=1, on_progress=lambda share, text: shares.append(share))
    assert read_world(tmp_path).manifest["pretraining_steps"] == 1
    assert not (tmp_path / "unfinished").exists()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
