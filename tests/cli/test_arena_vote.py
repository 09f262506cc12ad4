"""`aligner arena vote`: the page until it ends, CSV out and in, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from answer_files import write_answers, write_rows
from runner import aligner

from aligner.cli import arena_vote

FORMULA = '=HYPERLINK("http://x","y")'


def exported(folder: Path, *more: object, models: dict[str, list[str]] | None = None) -> Path:
    """Pairs as CSV, of two models and three prompts."""
    models = models or {"x": ["a0", FORMULA, 'one\r\ntwo, "three"'], "y": ["b0", "b1", "b2"]}
    write_answers(folder, models)
    out = folder / "pairs.csv"
    found = aligner("arena", "vote", *files(folder), "--export", out, *more)
    assert found.exit_code == 0, found.output
    return out


def files(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("?.jsonl"))]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fill(path: Path, verdicts: list[str], **changed: str) -> Path:
    """The file with verdicts in it, and the first row changed."""
    rows = rows_of(path)
    for row, verdict in zip(rows, verdicts):
        row["verdict"] = verdict
    rows[0] |= changed
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def take(folder: Path, path: Path, *more: object) -> Any:
    log = folder / "votes.jsonl"
    command = ("arena", "vote", *files(folder), "--import", path, "--log", log, "--name", "ann")
    return aligner(*command, *more)


def log_of(folder: Path) -> list[dict[str, Any]]:
    log = folder / "votes.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_pairs_go_out_blind_and_votes_come_back(tmp_path: Path) -> None:
    out = exported(tmp_path, "--name", "ann")
    rows = rows_of(out)
    assert [*rows[0]] == ["pair_id", "prompt", "answer_first", "answer_second", "verdict"]
    assert len(rows) == 6
    said = ["first", " B ", "", "Both  bad", "2", "tie"]
    found = take(tmp_path, fill(out, said), "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert (record["taken"], record["without_verdict"], record["left"]) == (5, 1, 1)
    games = log_of(tmp_path)
    verdicts = [game["decoding"]["verdict"] for game in games]
    assert verdicts == ["first", "second", "bothbad", "second", "tie"]
    shown = {row["answer_first"].removeprefix("'").replace("\r\n", "\n") for row in rows}
    answers = {"a0", "b0", FORMULA, "b1", 'one\ntwo, "three"', "b2"}
    assert shown == answers
    winners = {(game["prompt_id"], game["model_first"]) for game in games[:1]}
    assert winners <= {("p0", "x"), ("p0", "y"), ("p1", "x"), ("p1", "y"), ("p2", "x"), ("p2", "y")}
    again = take(tmp_path, out, "--json")
    assert json.loads(again.stdout)["taken"] == 0
    changed = take(tmp_path, fill(out, ["second"]), "--json")
    assert json.loads(changed.stdout)["taken"] == 1
    assert log_of(tmp_path)[-1]["attempt"] == 2


def test_a_vote_is_for_the_answer_that_stood_there(tmp_path: Path) -> None:
    out = exported(tmp_path, "--name", "ann")
    rows = rows_of(out)
    mine = ["a0", FORMULA, 'one\ntwo, "three"']
    said = []
    for row in rows:
        first = row["answer_first"].removeprefix("'").replace("\r\n", "\n")
        said.append("first" if first in mine else "second")
    assert take(tmp_path, fill(out, said)).exit_code == 0
    rated = aligner("arena", "rate", tmp_path / "votes.jsonl", "--resamples", 0, "--json")
    best = json.loads(rated.stdout)["models"][0]
    assert (best["model"], best["win_rate"], best["wins"]) == ("x", 1.0, 3)


def test_votes_in_one_order_are_rated_game_by_game(tmp_path: Path) -> None:
    out = exported(tmp_path, "--name", "ann")
    assert "--merge votes" in take(tmp_path, fill(out, ["first"] * 3)).output
    rated = aligner("arena", "rate", tmp_path / "votes.jsonl", "--resamples", 0)
    assert rated.exit_code == 3
    assert "or rate each game by itself: --merge votes" in " ".join(rated.output.split())
    assert aligner("arena", "rate", tmp_path / "votes.jsonl", "--merge", "votes").exit_code == 0
    assert "--merge" not in take(tmp_path, fill(out, ["first"] * 6)).output


def test_one_export_serves_several_people(tmp_path: Path) -> None:
    out = exported(tmp_path, "--name", "ann")
    log = tmp_path / "votes.jsonl"
    for name in ("ann", "bob"):
        command = ("arena", "vote", *files(tmp_path), "--import", fill(out, ["first"] * 6))
        assert aligner(*command, "--log", log, "--name", name).exit_code == 0
    games = log_of(tmp_path)
    assert len(games) == 12
    assert [game["model_first"] for game in games[:6]] != [""] * 6
    assert {game["judge_id"] for game in games} == {"ann", "bob"}
    agreed = aligner("arena", "diagnose", log, "--resamples", 0, "--max-flip-rate", 1, "--json")
    assert json.loads(agreed.stdout)["agreement"]["pairs"][0]["battles"] == 3


def test_a_formula_stands_in_a_cell_as_text(tmp_path: Path) -> None:
    cells = [cell for row in rows_of(exported(tmp_path)) for cell in row.values()]
    assert f"'{FORMULA}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pair_id": "0123"}, "the pair '0123' is none of these files and models"),
        ({"verdict": "x wins"}, "the verdict 'x wins' is none of first, second, tie, bothbad"),
        ({"answer_second": "other"}, "answer_second is not what was written (the text differs)"),
        ({"prompt": "questi"}, "prompt is not what was written (it was cut after 6 of 11"),
    ],
)
def test_what_a_row_says_wrong_is_named_with_its_line(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    out = fill(exported(tmp_path), ["first"] * 6, **changed)
    found = take(tmp_path, out)
    assert found.exit_code == 3
    assert f"pairs.csv:2: {message}" in " ".join(found.output.split())
    assert log_of(tmp_path) == [], "all or nothing"


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    models = {"x": ["one\ntwo\nthree", "a"], "y": ["b\nc", "d"]}
    out = exported(tmp_path, models=models)
    rows = rows_of(out)
    rows[-1]["verdict"] = "nobody"
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    line = next(
        number
        for number, text in enumerate(out.read_text().splitlines(), 1)
        if text.startswith(rows[-1]["pair_id"])
    )
    assert f"pairs.csv:{line}: the verdict 'nobody'" in take(tmp_path, out).output


def test_two_verdicts_on_one_pair_are_refused(tmp_path: Path) -> None:
    out = fill(exported(tmp_path), ["first"] * 6)
    text = out.read_text(encoding="utf-8")
    out.write_text(text + text.splitlines()[1].replace(",first", ",tie") + "\n", encoding="utf-8")
    assert "there is another verdict on this pair" in take(tmp_path, out).output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,verdict\nx,first\n", "has no column pair_id"),
        (b"", "has no column pair_id"),
        (b"pair_id,verdict\nx,first,more\n", "pairs.csv:2: 3 cells where the header has 2"),
        (b'pair_id,verdict\n"x,first\n', "broken CSV"),
        (b"pair_id,verdict\n\xff,first\n", "is not UTF-8"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    out = exported(tmp_path)
    out.write_bytes(content)
    found = take(tmp_path, out)
    assert found.exit_code == 3
    assert message in " ".join(found.output.split())


def test_a_spreadsheet_may_write_semicolons_and_a_mark_in_front(tmp_path: Path) -> None:
    out = exported(tmp_path)
    rows = rows_of(out)
    lines = ["pair_id;verdict", *(f"{row['pair_id']};tie" for row in rows)]
    out.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert take(tmp_path, out).exit_code == 0
    assert len(log_of(tmp_path)) == 6


def test_what_does_not_fit_in_a_cell_is_said(tmp_path: Path) -> None:
    write_answers(tmp_path, {"x": ["a" * 40_000], "y": ["b"]})
    found = aligner("arena", "vote", *files(tmp_path), "--export", tmp_path / "pairs.csv")
    assert "2 rows hold more than a cell of Excel takes" in found.output


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--export", "a.csv", "--import", "b.csv"), 2, "--export and --import are two things"),
        (("--overwrite",), 2, "--overwrite is about --export"),
        (("--name", "x"), 2, "--name x is one of the models"),
        (("--import", "missing.csv"), 3, "missing.csv cannot be read"),
        (("--data", "missing.jsonl"), 3, "missing.jsonl"),
        (("--export", "there.csv"), 2, "there.csv exists"),
        (("--log", "votes.csv", "--import", "there.csv"), 3, "votes.csv"),
    ],
)
def test_what_is_in_the_way_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("")
    Path("votes.csv").write_text("model_a\n")
    write_answers(tmp_path, {"x": ["a"], "y": ["b"]})
    found = aligner("arena", "vote", "x.jsonl", "y.jsonl", *options)
    assert found.exit_code == code, found.output
    assert message in " ".join(found.output.split())


def test_one_file_is_not_enough(tmp_path: Path) -> None:
    write_answers(tmp_path, {"x": ["a"]})
    found = aligner("arena", "vote", tmp_path / "x.jsonl")
    assert found.exit_code == 2
    assert "have nothing to meet" in found.output


def test_prompts_of_their_own_say_what_is_asked_and_which_count(tmp_path: Path) -> None:
    for name in "xy":
        rows = [{"uid": f"u{number}", "answer": f"{name}{number}"} for number in range(3)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    prompts = [{"uid": f"u{number}", "prompt": f"q{number}", "topic": "t"} for number in (0, 2)]
    data = write_rows(tmp_path / "prompts.jsonl", prompts)
    alone = aligner("arena", "vote", *files(tmp_path), "--export", tmp_path / "pairs.csv")
    assert alone.exit_code == 3
    out = exported_of(tmp_path, "--data", data)
    assert {row["prompt"] for row in rows_of(out)} == {"q0", "q2"}
    more = ("--data", data, "--category", "topic")
    assert take(tmp_path, fill(out, ["tie"] * 4), *more).exit_code == 0
    assert {game["category"] for game in log_of(tmp_path)} == {"t"}


def exported_of(folder: Path, *more: object) -> Path:
    out = folder / "pairs.csv"
    found = aligner("arena", "vote", *files(folder), "--export", out, "--overwrite", *more)
    assert found.exit_code == 0, found.output
    return out


# A shell starts what it puts into the background with Ctrl-C ignored.
HEARD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from aligner.cli.app import main
main()
"""


def started(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The command with its page, and the address."""
    command = [sys.executable, "-c", HEARD, "arena", "vote", *files(folder), "--no-open"]
    process = subprocess.Popen(
        [*command, "--name", "ann", "--log", str(folder / "votes.jsonl"), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stderr.readline()
    assert line.startswith("vote at http://127.0.0.1:"), line
    return process, line.split()[-1]


def post(url: str, what: str, said: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + what, json.dumps(said).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


def test_the_page_ends_the_command_and_the_command_continues(tmp_path: Path) -> None:
    write_answers(tmp_path, {"x": ["a0", "a1"], "y": ["b0", "b1"]})
    process, url = started(tmp_path)
    post(url, "vote", {"turn": 0, "verdict": "first"})
    post(url, "finish", {})
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    record = json.loads(out)
    assert (record["taken"], record["votes"], record["left"]) == (1, 1, 3)
    process, url = started(tmp_path)
    state = post(url, "vote", {"turn": 1, "verdict": "tie"})
    assert (state["turn"], state["done"]) == (2, 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert json.loads(out)["votes"] == 2


def test_ctrl_c_while_the_address_is_printed_ends_it_as_at_any_other_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page can be used as soon as it is served."""
    said = arena_vote.say

    def interrupted(text: object = "", **how: Any) -> None:
        said(text, **how)
        if str(text).startswith("vote at "):
            raise KeyboardInterrupt

    monkeypatch.setattr(arena_vote, "say", interrupted)
    write_answers(tmp_path, {"x": ["a0"], "y": ["b0"]})
    voting = ("arena", "vote", *files(tmp_path), "--log", tmp_path / "votes.jsonl", "--name", "ann")
    found = aligner(*voting, "--no-open", "--json")
    assert found.exit_code == 130
    assert json.loads(found.stdout)["left"] == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_a_killed_command_keeps_every_vote(tmp_path: Path) -> None:
    write_answers(tmp_path, {"x": ["a0", "a1"], "y": ["b0", "b1"]})
    process, url = started(tmp_path)
    for turn in range(3):
        post(url, "vote", {"turn": turn, "verdict": "second"})
    process.kill()
    process.communicate(timeout=120)
    assert len(log_of(tmp_path)) == 3
    process, url = started(tmp_path)
    with urllib.request.urlopen(url + "state", timeout=120) as reply:
        assert json.load(reply)["turn"] == 3
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 143


def test_a_person_votes_on_the_answers_of_a_battle_and_its_judge_is_held_against_them(
    tmp_path: Path,
) -> None:
    words = ("bad", "cab", "fed", "hid", "jig")
    prompts = [{"prompt_id": word, "prompt": f"upper: {word}"} for word in words]
    data = write_rows(tmp_path / "prompts.jsonl", prompts)
    for name, change in (("good", str.upper), ("poor", str.lower)):
        rows = [{"prompt_id": word, "answer": change(word)} for word in words]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    run, log, out = tmp_path / "run", tmp_path / "votes.jsonl", tmp_path / "pairs.csv"
    given = [f"--contestant={name}={tmp_path / name}.jsonl" for name in ("good", "poor")]
    played = aligner("arena", "battle", *given, "--judge", "toy", "--data", data, "--output", run)
    assert played.exit_code == 0, played.output
    voting = ("arena", "vote", run, "--name", "ann", "--log", log)
    assert aligner(*voting, "--export", out).exit_code == 0
    said = ["first" if row["answer_first"].isupper() else "second" for row in rows_of(out)]
    assert aligner(*voting, "--import", fill(out, said)).exit_code == 0
    found = aligner("arena", "diagnose", run / "games.jsonl", log, "--resamples", 0, "--json")
    (row,) = json.loads(found.stdout)["agreement"]["pairs"]
    assert (row["judges"], row["battles"], row["same"]) == (["ann", "toy"], 5, 1.0)
