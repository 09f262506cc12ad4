"""Stages: done once, resumed in their parts, made again where what they are made of changed, and
never taken for what they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aligner.events import Notice, Warned
from aligner.runs.stages import DONE, RECORD, Stage, Stages, done_record

COLD, WARM = {"temperature": 0.7, "seed": 1}, {"temperature": 1.0, "seed": 1}


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def stages(tmp_path: Path, told: list[Any]) -> Stages:
    return Stages(tmp_path / "run", told.append)


def done(stages: Stages, name: str, made_of: dict[str, Any], text: str = "words") -> Stage:
    stage = stages.open(name, made_of)
    assert not stage.is_done
    (stage.folder / "out.txt").write_text(text)
    stage.finish({"count": 3})
    return stage


def test_a_new_stage_says_what_it_is_made_of_before_it_does_anything(stages: Stages) -> None:
    stage = stages.open("rounds/01/sample", WARM)
    assert not stage.is_done
    assert stage.digest == ""
    record = json.loads((stages.root / "rounds/01/sample" / RECORD).read_text())
    assert record == {"key": stage.key, "made_of": WARM}
    assert done_record(stage.folder) is None


def test_a_finished_stage_stays_finished_and_says_what_it_said(
    stages: Stages, told: list[Any]
) -> None:
    first = done(stages, "sample", WARM)
    again = stages.open("sample", dict(reversed(WARM.items())))
    assert again.is_done
    assert again.facts == {"count": 3}
    assert again.digest == first.digest
    assert (again.folder / "out.txt").read_text() == "words"
    record = done_record(again.folder)
    assert record is not None
    assert record["facts"] == {"count": 3}
    assert record["seconds"] >= 0.0
    assert told == []


def test_parts_of_an_unfinished_stage_are_kept(stages: Stages) -> None:
    stages.open("sample", WARM).journal("parts").add(0, "first")
    again = stages.open("sample", WARM)
    assert not again.is_done
    assert 0 in again.journal("parts")
    assert again.journal("parts")[0] == "first"
    again.journal("parts").add(1, "second")
    assert again.journal("parts")[1] == "second", "one journal, however often it is asked for"


def test_a_changed_key_sets_the_old_aside_and_says_which(stages: Stages, told: list[Any]) -> None:
    old = done(stages, "sample", WARM)
    new = stages.open("sample", COLD)
    assert not new.is_done
    assert new.key != old.key
    assert not (new.folder / "out.txt").exists()
    kept = stages.root / "stale" / "sample" / old.key[:8] / "out.txt"
    assert kept.read_text() == "words"
    (notice,) = told
    assert "sample is made again, since temperature changed" in notice.text


def test_it_is_taken_back_where_its_key_comes_again(stages: Stages, told: list[Any]) -> None:
    old = done(stages, "sample", WARM)
    done(stages, "sample", COLD, "other")
    told.clear()
    back = stages.open("sample", WARM)
    assert back.is_done
    assert back.digest == old.digest
    assert (back.folder / "out.txt").read_text() == "words"
    assert told == [Notice("sample is taken back from stale/: it is made of the same")]
    assert stages.open("sample", COLD).is_done, "and the other one too"


def test_half_done_work_is_set_aside_and_taken_back_too(stages: Stages) -> None:
    stages.open("sample", WARM).journal("parts").add(0, "first")
    stages.open("sample", COLD).journal("parts").add(0, "cold")
    assert stages.open("sample", WARM).journal("parts")[0] == "first"


def test_many_changed_keys_are_counted(stages: Stages, told: list[Any]) -> None:
    stages.open("sample", {"a": 1, "b": {"c": 2, "d": 3}, "e": [4]})
    stages.open("sample", {"a": 2, "b": {"c": 3, "d": 4}, "e": [5]})
    assert "since a, b.c, b.d and 1 more changed" in told[0].text


def test_stages_of_the_same_made_of_differ_by_name(stages: Stages) -> None:
    assert stages.open("one", WARM).key != stages.open("two", WARM).key


@pytest.mark.parametrize("harm", ["changed", "missing", "record", "half a record"])
def test_a_damaged_stage_is_made_again_with_a_remark(
    stages: Stages, told: list[Any], harm: str
) -> None:
    stage = done(stages, "sample", WARM)
    if harm == "changed":
        (stage.folder / "out.txt").write_text("wordz")
    elif harm == "missing":
        (stage.folder / "out.txt").unlink()
    elif harm == "record":
        (stage.folder / DONE).write_text("{}")
    else:
        (stage.folder / DONE).write_text((stage.folder / DONE).read_text()[:30])
    again = stages.open("sample", WARM)
    assert not again.is_done
    assert not (again.folder / "out.txt").exists()
    (warned,) = told
    assert isinstance(warned, Warned)
    assert warned.text.endswith("sample is made again")


def test_a_kill_before_the_record_costs_nothing_but_that_folder(
    stages: Stages, told: list[Any]
) -> None:
    (stages.root / "sample").mkdir(parents=True)
    (stages.root / "sample" / f".{RECORD}.77.tmp").write_text('{"key": ')
    stage = stages.open("sample", WARM)
    assert not stage.is_done
    assert [path.name for path in stage.folder.iterdir()] == [RECORD]
    assert told == []


def test_a_damaged_record_is_not_taken_for_this_stage(stages: Stages, told: list[Any]) -> None:
    stage = done(stages, "sample", WARM)
    (stage.folder / RECORD).write_text('{"key"')
    assert not stages.open("sample", WARM).is_done
    assert told[0].text.endswith("stage.json is damaged: sample is made again")


def test_the_digest_is_that_of_the_files_alone(tmp_path: Path) -> None:
    """Not of the time it took, nor of what it said of itself, nor of a file half written."""
    digests = []
    for place, facts in (("a", {"n": 1}), ("b", {"n": 2})):
        stage = Stages(tmp_path / place).open("train", WARM)
        (stage.folder / "deep").mkdir()
        (stage.folder / "deep" / "out.txt").write_text("same")
        (stage.folder / f".out.txt.{place}.tmp").write_text(place)
        stage.finish(facts)
        digests.append(stage.digest)
    assert digests[0] == digests[1]
    other = done(Stages(tmp_path / "c"), "train", WARM, "different")
    assert other.digest != digests[0]


def test_only_listed_files_count_where_they_are_listed(stages: Stages) -> None:
    stage = stages.open("train", WARM)
    (stage.folder / "weights").write_text("1")
    (stage.folder / "log.txt").write_text("times")
    stage.finish({}, [stage.folder / "weights"])
    (stage.folder / "log.txt").write_text("others")
    assert stages.open("train", WARM).is_done


def test_pruned_files_are_gone_and_the_stage_stays_done(stages: Stages) -> None:
    stage = stages.open("train", WARM)
    (stage.folder / "model.safetensors").write_text("heavy")
    (stage.folder / "config.json").write_text("light")
    stage.finish({})
    assert not stage.is_pruned
    stage.prune(lambda name: name.endswith(".safetensors"))
    stage.prune(lambda name: name.endswith(".safetensors"))
    assert stage.is_pruned
    assert not (stage.folder / "model.safetensors").exists()
    again = stages.open("train", WARM)
    assert again.is_done
    assert again.is_pruned
    assert again.digest == stage.digest
    again.reset()
    assert not again.is_done
    assert [path.name for path in again.folder.iterdir()] == [RECORD]
    assert not stages.open("train", WARM).is_done


def test_a_kill_between_the_note_of_pruning_and_the_removal_is_harmless(stages: Stages) -> None:
    stage = done(stages, "train", WARM)
    record = json.loads((stage.folder / DONE).read_text())
    (stage.folder / DONE).write_text(json.dumps({**record, "pruned": ["out.txt"]}))
    again = stages.open("train", WARM)
    assert again.is_done
    assert again.is_pruned
    again.prune(lambda name: False)
    assert not (again.folder / "out.txt").exists()


def test_a_stage_that_is_opened_again_keeps_its_parts(stages: Stages) -> None:
    stage = stages.open("score", WARM)
    stage.journal("scores").add(0, 1.5)
    stage.finish({})
    again = stages.open("score", WARM)
    again.reopen()
    assert not again.is_done
    assert again.journal("scores")[0] == 1.5
    assert not stages.open("score", WARM).is_done, "a kill now finds it unfinished"


def test_damage_in_a_journal_is_told_once_and_while_it_matters(
    stages: Stages, told: list[Any]
) -> None:
    stage = stages.open("sample", WARM)
    stage.journal("parts").add(0, "first")
    file = stage.folder / "parts.jsonl"
    file.write_text(file.read_text().replace("first", "fIrst"))
    again = stages.open("sample", WARM)
    for _ in range(2):
        assert 0 not in again.journal("parts")
    assert [event.text.endswith("their parts are done again") for event in told] == [True]
    again.journal("parts").add(0, "first")
    again.finish({})
    assert stages.open("sample", WARM).journal("parts")[0] == "first"
    assert len(told) == 1


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_of_a_damaged_journal_the_damaged_parts_alone_are_made_again(
    stages: Stages, told: list[Any], harm: str
) -> None:
    stage = stages.open("sample", WARM)
    for part, text in enumerate(("first", "second")):
        stage.journal("parts").add(part, text)
    stage.finish({})
    file = stage.folder / "parts.jsonl"
    if harm == "missing":
        file.unlink()
    else:
        file.write_text(file.read_text().replace("second", "sEcond"))
    again = stages.open("sample", WARM)
    assert not again.is_done
    assert told[0].text.endswith("sample is made again")
    assert [part in again.journal("parts") for part in (0, 1)] == [harm == "changed", False]


def test_a_stage_says_the_same_when_its_run_was_moved(tmp_path: Path) -> None:
    first = done(Stages(tmp_path / "run"), "sample", WARM)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    moved = Stages(tmp_path / "elsewhere").open("sample", WARM)
    assert moved.is_done
    assert moved.digest == first.digest
