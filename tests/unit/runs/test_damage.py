"""Damaged and full disks: what is cut, empty or changed is named with a way out, and is never
trained from or believed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from example_run import resolved
from fakes import small_recipe
from runner import aligner
from safetensors.torch import save_file

from aligner.config.recipe import Model
from aligner.errors import AlignerError, DataError, RecipeError, UsageError
from aligner.launch.causes import LostConnectionError, outside_cause
from aligner.launch.command import _first_failure
from aligner.methods.pipeline import run_recipe
from aligner.models.files import check_model_path
from aligner.runs.cache import check_cache, is_kept, keep
from aligner.runs.checkpoints import latest_checkpoint, mark_complete
from aligner.runs.files import KINDS, check_checksums, read_json, write_checksums
from aligner.runs.journal import Journal
from aligner.runs.lock import LOCK_NAME, acquire_lock
from aligner.runs.resumable import settle_checkpoint
from aligner.runs.run import Run

DAMAGES = {
    "empty": "",
    "cut": '{"finished": "20',
    "a list": "[1]",
    "a number": "7",
    "without its keys": "{}",
}


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended without finishing, with a checkpoint."""
    monkeypatch.chdir(tmp_path)
    run = Run.create(resolved(tmp_path / "x"))
    run.write_json("data.json", {})
    folder = run.checkpoints_dir / "checkpoint-20"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"state")
    state = {"global_step": 20, "max_steps": 100, "stateful_callbacks": {}}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    mark_complete(folder)
    run.close()
    return run.dir


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["resolved.json", "environment.json", "manifest.json"])
def test_a_damaged_file_of_the_record_is_named_with_the_way_out(
    run_dir: Path, name: str, damage: str
) -> None:
    (run_dir / name).write_text(DAMAGES[damage], encoding="utf-8")

    def reopen() -> None:
        Run.create(resolved(run_dir), resume=True)
        read_json(
            run_dir, name
        )  # a run with a manifest is done, and its files are read by what shows it

    with pytest.raises(DataError, match=rf"{name} is damaged: it (is|holds|lacks) ") as caught:
        reopen()
    assert caught.value.hint.startswith(("restore it", "delete it"))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["xxh3_128"].update(x=record["xxh3_128"].pop("optimizer.pt")),
        lambda record: record["sizes"].update(x=record["sizes"].pop("optimizer.pt")),
        lambda record: record.update(sizes=[]),
        lambda record: record.update(xxh3_128=7),
    ],
)
def test_a_damaged_list_of_checksums_is_named(
    run_dir: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    complete = run_dir / "checkpoints/checkpoint-20/complete"
    record = json.loads(complete.read_text())
    change(record)
    complete.write_text(json.dumps(record))
    with pytest.raises(DataError, match="no checkpoint in") as caught:
        settle_checkpoint(run_dir / "checkpoints", resolved(run_dir).recipe)
    assert f"{complete} is damaged" in str(caught.value.problems[0])


def test_a_list_of_runs_is_not_ended_by_a_damaged_one(run_dir: Path) -> None:
    shutil.copytree(run_dir, run_dir.parent / "y")
    (run_dir / "resolved.json").write_text("", encoding="utf-8")
    result = aligner("runs", "list", run_dir.parent, "--json")
    assert result.exit_code == 0, result.output
    assert [run["state"] for run in json.loads(result.stdout)] == ["damaged", "unfinished"]
    assert "resolved.json is damaged: it is empty" in result.stderr


WRONG_KINDS = [
    *((name, key) for name in KINDS for key in KINDS[name]),
    *((name, "") for name in ("samples.json", "metrics.jsonl")),
]


@pytest.mark.parametrize(("name", "key"), WRONG_KINDS)
def test_a_record_of_the_wrong_kind_is_named_and_harms_no_other_run(
    done_run: Path, name: str, key: str
) -> None:
    file = done_run / name
    if key:
        record = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**record, key: [7]}))
    elif name == "metrics.jsonl":
        file.mkdir()
    else:
        file.write_text("[7]")
    shutil.copytree(done_run, done_run.parent / "other")
    listed = aligner("runs", "list", done_run.parent, "--json")
    assert listed.exit_code == 0, listed.output
    assert len(json.loads(listed.stdout)) == 2
    if name not in ("inputs.json", "merge.json"):  # which a report does not read
        report = aligner("runs", "report", done_run)
        assert report.exit_code == 3, report.output
        assert str(file) in report.stderr
        assert "is damaged" in report.stderr or "is a folder" in report.stderr


@pytest.mark.parametrize(
    ("name", "key", "part"),
    [
        ("environment.json", "sessions", {"command": "aligner sft"}),
        ("manifest.json", "parents", {"kind": "model"}),
        ("data.json", "sources", {"format": "messages"}),
    ],
)
def test_a_part_of_a_record_that_lacks_what_is_read_is_named(
    done_run: Path, name: str, key: str, part: dict[str, Any]
) -> None:
    file = done_run / name
    record = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**record, key: [part]}))
    report = aligner("runs", "report", done_run)
    assert report.exit_code == 3, report.output
    assert f"{file} is damaged: its {key!r} is incomplete" in report.stderr


@pytest.fixture
def done_run(run_dir: Path) -> Path:
    """A run that is finished."""
    run = Run.create(resolved(run_dir), resume=True)
    run.write_json("data.json", {"sources": [], "splits": {}})
    run.finish_without_training({"steps": 20.0})
    return run.dir


def test_weights_that_changed_since_a_run_wrote_them_are_refused(
    small_world: Path, run_dir: Path
) -> None:
    final = shutil.copytree(small_world / "model", run_dir / "final")
    run = Run.create(resolved(run_dir), resume=True)
    run.finish_without_training({}, files=final)
    check_model_path(Model(name_or_path=str(final)))
    flip(final / "model.safetensors")
    with pytest.raises(RecipeError, match=r"model.safetensors is not what the run .* wrote"):
        check_model_path(Model(name_or_path=str(final)))


@pytest.mark.parametrize("name", ["checkpoints", "prepared", "final"])
def test_a_file_where_a_folder_belongs_is_refused_before_anything_is_done(
    run_dir: Path, name: str
) -> None:
    shutil.rmtree(run_dir / name, ignore_errors=True)
    (run_dir / name).write_text("not a folder")
    with pytest.raises(UsageError, match=f"{name} is a file where a folder belongs"):
        Run.create(resolved(run_dir), resume=True)
    assert (run_dir / name).is_file()


def flip(file: Path) -> None:
    """Change one bit of a file, which keeps its size."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (
        lambda folder: flip(folder / "model.safetensors"),
        "model.safetensors is damaged: it is not what was written there",
    ),
    "a file cut short": (
        lambda folder: os.truncate(folder / "optimizer.pt", 3),
        "optimizer.pt is damaged: it has 3 bytes of 5",
    ),
    "a lost file": (
        lambda folder: (folder / "scheduler.pt").unlink(),
        "scheduler.pt is missing",
    ),
    "an empty mark": (
        lambda folder: (folder / "complete").write_text(""),
        "complete is damaged: it is empty",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_checkpoint_is_kept_aside_and_the_one_before_it_is_taken(
    run_dir: Path, harm: str
) -> None:
    folder = run_dir / "checkpoints"
    for step in (40, 60):
        shutil.copytree(folder / "checkpoint-20", folder / f"checkpoint-{step}")
        damage, said = HARM[harm]
        damage(folder / f"checkpoint-{step}")
    (folder / "checkpoint-40.damaged").mkdir()  # of an earlier time
    run = Run.create(resolved(run_dir), resume=True)
    run.close()
    assert latest_checkpoint(folder) == folder / "checkpoint-20"
    names = ["checkpoint-20", "checkpoint-40.damaged", "checkpoint-40.damaged-2"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "checkpoint-60.damaged"]
    assert [said in note for note in run.notes] == [True, True]
    assert run.notes[0].endswith(
        "so checkpoint-20 is resumed from; the damaged one is kept as "
        f"{folder / 'checkpoint-60.damaged'}"
    )


@pytest.mark.parametrize("harm", HARM)
def test_a_training_is_not_lost_where_no_checkpoint_is_whole(run_dir: Path, harm: str) -> None:
    damage, said = HARM[harm]
    damage(run_dir / "checkpoints" / "checkpoint-20")
    with pytest.raises(DataError, match=r"no checkpoint in .* is whole") as caught:
        Run.create(resolved(run_dir), resume=True)
    assert [said in problem.message for problem in caught.value.problems] == [True]
    assert "--overwrite" in caught.value.hint
    assert (run_dir / "checkpoints" / "checkpoint-20").is_dir()
    assert not (run_dir / LOCK_NAME).exists()


def test_the_best_checkpoint_is_looked_at_too_where_the_run_ends_with_it(run_dir: Path) -> None:
    folder = run_dir / "checkpoints"
    last = shutil.copytree(folder / "checkpoint-20", folder / "checkpoint-40")
    state = json.loads((last / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = "/moved/since/checkpoints/checkpoint-20"
    (last / "trainer_state.json").write_text(json.dumps(state))
    mark_complete(last)
    flip(folder / "checkpoint-20" / "model.safetensors")
    recipe = resolved(run_dir).recipe
    assert settle_checkpoint(folder, recipe) == []
    wants_best = recipe.model_copy(update={"trainer": {"load_best_model_at_end": True}})
    with pytest.raises(DataError, match=r"no checkpoint in .* is whole"):
        settle_checkpoint(folder, wants_best)


def test_a_checkpoint_without_checksums_is_told(run_dir: Path) -> None:
    mark = run_dir / "checkpoints" / "checkpoint-20" / "complete"
    record = json.loads(mark.read_text())
    mark.write_text(json.dumps({key: record[key] for key in ("time", "sizes")}))
    run = Run.create(resolved(run_dir), resume=True)
    run.close()
    assert ["without checksums" in note for note in run.notes] == [True]


def test_weights_may_be_read_by_those_who_may_read_other_files(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "checkpoint-20"
    save_file({"weight": torch.zeros(1)}, str(folder / "model.safetensors"))
    mark_complete(folder)
    keep(run_dir / "cached", lambda place: save_file({"w": torch.zeros(1)}, str(place)))
    modes = {
        oct(path.stat().st_mode)
        for path in (*folder.iterdir(), run_dir / "cached", run_dir / "cached.sha256")
    }
    assert len(modes) == 1


def test_what_a_kill_left_half_written_goes_on_resume(run_dir: Path) -> None:
    half = [
        run_dir / "final.unfinished" / "model.safetensors",
        run_dir / "prepared" / ".questions.json.4711.tmp",
    ]
    for file in half:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    Run.create(resolved(run_dir), resume=True).close()
    assert not any(file.exists() for file in half)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"pid": "no"}', '{"pid": -1}', "{"])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    assert "taken over" in acquire_lock(tmp_path)


# --- rows and caches ------------------------------------------------------------------------------


def test_a_flipped_byte_of_prepared_rows_is_seen(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    rows = tmp_path / "train" / "rows.arrow"
    rows.write_bytes(bytes(1000))
    write_checksums(tmp_path)
    (tmp_path / "questions.json").write_text("[]")  # what comes later is not looked at
    check_checksums(tmp_path, "tokenize again")
    rows.write_bytes(bytes(500) + b"\x01" + bytes(499))
    with pytest.raises(DataError, match=r"rows.arrow is damaged"):
        check_checksums(tmp_path, "tokenize again")
    rows.unlink()
    with pytest.raises(DataError, match=r"rows.arrow is missing"):
        check_checksums(tmp_path, "tokenize again")


def test_a_cached_file_that_changed_counts_as_not_there(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "x.json"
    assert not is_kept(file)
    keep(file, lambda place: place.write_text("[0.25]"))
    assert is_kept(file)
    events: list[Any] = []
    file.write_text("[0.35]")
    assert not is_kept(file, events.append)
    assert [event.text for event in events] == [
        f"{file} is damaged: what it holds is computed again"
    ]
    keep(file, lambda place: place.write_text("[0.25]"))
    assert is_kept(file)
    assert sorted(path.name for path in file.parent.iterdir()) == ["x.json", "x.json.sha256"]


def test_a_write_that_fails_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    keep(file, lambda place: place.write_text("[0.25]"))

    def fail(place: Path) -> None:
        place.write_text("[0")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        keep(file, fail)
    assert is_kept(file)
    assert file.read_text() == "[0.25]"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_line_of_a_journal_that_changed_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    journal = Journal(path, "model")
    journal.add(0, {"scores": [0.25]})
    journal.add(1, {"scores": [0.5]})
    assert 0 in Journal(path)
    path.write_text(path.read_text().replace("0.25", "0.35"))
    harmed = Journal(path)
    assert [number in harmed for number in (0, 1)] == [False, True]
    events: list[Any] = []
    harmed.tell_resumed("scores", 3, events.append)
    assert "1 line is damaged; their parts are done again" in events[0].text


@pytest.mark.parametrize("change", [('"part": 0', '"part": 1'), ('"model"', '"mopel"')])
def test_a_line_of_a_journal_never_counts_for_another_part_or_model(
    tmp_path: Path, change: tuple[str, str]
) -> None:
    path = tmp_path / "parts.jsonl"
    Journal(path, "model").add(0, {"scores": [0.25]})
    path.write_text(path.read_text().replace(*change))
    harmed = Journal(path, "model")
    assert (harmed.done, harmed.damaged) == (0, 1)
    harmed.check("scores")


def test_a_journal_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    line = {"part": 0, "made with": "model", "result": [0.25], "sum": "19c1b4c1143fd1be"}
    path.write_text(json.dumps(line) + "\n")
    assert Journal(path)[0] == [0.25]


def test_a_line_that_a_kill_cut_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    Journal(path).add(0, 0.25)
    path.write_bytes(path.read_bytes()[:-9])
    Journal(path).add(1, 0.5)
    again = Journal(path)
    assert (0 in again, 1 in again, again.damaged) == (False, True, 0)


NO_FOLDERS: dict[str, Callable[[Path], object]] = {
    "is a file": lambda place: place.write_text("not a folder"),
    "nothing can be made in": lambda place: place.symlink_to("/proc"),
}


@pytest.mark.parametrize("said", NO_FOLDERS)
def test_a_cache_that_cannot_be_written_is_told_before_the_work(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Log-probabilities of a reference take long; they are not computed and then lost."""

    def computed(*_: Any) -> None:
        raise AssertionError("the work was begun")

    NO_FOLDERS[said](tmp_path / "cache")
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("aligner.training.reference._compute", computed)
    with pytest.raises(UsageError, match=rf"the cache \(\$ALIGNER_CACHE\): .*{said}"):
        run_recipe(small_recipe("dpo", small_world, tmp_path / "run"))


def test_a_full_cache_is_told_before_the_work(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UsageError, match=r"nothing can be written to .*: File too large"):
            check_cache(tmp_path / "reference" / "x.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "reference").iterdir())


def test_what_kills_left_in_a_cache_long_ago_goes(tmp_path: Path) -> None:
    old, young = tmp_path / ".tmpOld123", tmp_path / ".y.json.4711.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    keep(tmp_path / "x.json", lambda place: place.write_text("[0.25]"))
    names = [".y.json.4711.tmp", "x.json", "x.json.sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_damaged_file_of_replies_is_named(tmp_path: Path) -> None:
    from aligner.endpoints.request import Completion
    from aligner.endpoints.store import Store

    path = tmp_path / "replies.sqlite"
    store = Store(path)
    for number in range(500):
        store.write(replies=[(f"{number}", "model", Completion("yes" * 20))])
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(6 * 4096)
        file.write(b"\xff" * (size - 6 * 4096))
    store = Store(path)
    with pytest.raises(UsageError, match=r"replies.sqlite cannot be used: .*malformed") as caught:
        [store.get(f"{number}") for number in range(500)]
    assert "move it away" in caught.value.hint
    store.close()


def test_a_reply_that_changed_in_the_cache_is_asked_again(tmp_path: Path) -> None:
    from aligner.endpoints.request import Completion
    from aligner.endpoints.store import Store

    store = Store(tmp_path / "replies.sqlite")
    store.write(replies=[("a", "model", Completion("yes"))])
    assert store.get("a") is not None
    store._db.execute("UPDATE replies SET reply = replace(reply, 'yes', 'no')")
    assert store.get("a") is None
    store.write(replies=[("a", "model", Completion("yes"))])
    kept = store.get("a")
    assert kept is not None
    assert kept.text == "yes"
    store.close()


# --- full disks and lost ranks --------------------------------------------------------------------


def raised(work: object) -> BaseException:
    try:
        work()  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("it went through")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_a_full_disk_is_recognised_behind_what_torch_says() -> None:
    cause = outside_cause(raised(lambda: torch.save({"a": torch.zeros(1000, 1000)}, "/dev/full")))
    assert isinstance(cause, UsageError)
    assert "the disk is full" in cause.message
    assert "free some space and add --resume" in cause.hint


def test_a_full_disk_is_recognised_behind_what_safetensors_says(tmp_path: Path) -> None:
    import resource

    from safetensors.torch import save_file

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        error = raised(lambda: save_file({"a": torch.zeros(1000)}, tmp_path / "x.safetensors"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    cause = outside_cause(error)
    assert isinstance(cause, UsageError)
    assert os.strerror(errno.EFBIG) in cause.message


@pytest.mark.parametrize(
    "arguments",
    [("generate", "~nobody-x/m", "hi"), ("eval", "m", "--data", "~nobody-x/rows.jsonl")],
)
def test_the_home_of_nobody_is_a_mistake_in_words(arguments: tuple[str, ...]) -> None:
    result = aligner(*arguments)
    assert result.exit_code == 2
    assert "~NAME" in result.stderr


def test_an_error_of_ours_while_another_was_handled_stays_ours() -> None:
    def fail() -> None:
        try:
            raise OSError(errno.EACCES, "Permission denied")
        except OSError:
            {}["absent"]

    assert outside_cause(raised(fail)) is None


def test_a_folder_where_a_file_belongs_is_named(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        Run.create(resolved(run_dir), resume=True)
    cause = outside_cause(caught.value)
    assert cause is not None
    assert str(run_dir / "metrics.jsonl") in cause.message
    assert cause.hint == "move away what stands there, or choose another place"


def test_a_lost_connection_reads_as_a_consequence(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError(
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"
    )
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert outside_cause(error) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    cause = outside_cause(error)
    assert isinstance(cause, LostConnectionError)
    assert cause.message.startswith("this rank stopped because another one ended (")
    assert cause.exit_code == 5
    assert outside_cause(RuntimeError("size mismatch")) is None


def test_the_cause_is_reported_and_not_the_connection_that_was_lost_earlier(tmp_path: Path) -> None:
    def left(rank: int, error: AlignerError, time: float) -> None:
        record = {
            "time": time,
            "error": type(error).__name__,
            "message": error.message,
            "hint": "",
            "problems": [],
        }
        (tmp_path / f"{rank}.json").write_text(json.dumps(record), encoding="utf-8")

    left(0, LostConnectionError("this rank stopped"), 1.0)
    assert isinstance(_first_failure(tmp_path), LostConnectionError)
    left(1, DataError("row 7 is empty"), 2.0)
    assert isinstance(_first_failure(tmp_path), DataError)
