"""The scoring driver: order, parts, progress, resuming, rows without a verdict, errors."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aligner.errors import DataError, Problem, UsageError
from aligner.reward_models.base import UNBOUNDED, NoVerdict, Preferences, Prompt, Scores
from aligner.reward_models.batching import (
    Answers,
    Pairs,
    ask,
    ask_parts,
    by_prompt,
    chunks,
    different_answers,
    refuse_silent,
)
from aligner.reward_models.verdicts import Verdict, Verdicts
from aligner.runs.journal import Journal


class Lengths:
    """Scores an answer by its length; it remembers each call, and has no verdict on `mute`."""

    name, range = "lengths", UNBOUNDED

    def __init__(self, mute: Sequence[str] = (), dies_at: str = "") -> None:
        self.calls: list[list[str]] = []
        self.mute = set(mute)
        self.dies_at = dies_at

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        self.calls.append(list(completions))
        if self.dies_at in completions:
            raise KeyboardInterrupt
        self._refuse_mute(completions)
        lengths = [float(len(text)) for text in completions]
        remarks = {row: "odd" for row, text in enumerate(completions) if len(text) % 2}
        return Scores(lengths, {"twice": [2 * length for length in lengths]}, remarks)

    def _refuse_mute(self, texts: Sequence[str]) -> None:
        if silent := {row: f"no {text}" for row, text in enumerate(texts) if text in self.mute}:
            error = NoVerdict("no verdict")
            error.rows = silent
            raise error

    def fingerprint(self) -> str:
        return "lengths"


class Longer(Lengths):
    """Asks in both orders: a longer answer is better, and equal lengths flip."""

    def prefer(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Preferences:
        self.calls.append(list(first))
        self._refuse_mute(first)
        forward = [float(len(a) >= len(b)) for a, b in zip(first, second)]
        backward = [1.0 - float(len(b) >= len(a)) for a, b in zip(first, second)]
        flips = [row for row, (a, b) in enumerate(zip(forward, backward)) if a != b]
        return Preferences(((a + b) / 2 for a, b in zip(forward, backward)), flips)


def answers(*texts: str, prompts: Sequence[str] | None = None) -> Answers:
    """Each with a prompt of its own, unless `prompts` says otherwise."""
    prompts = [f"p{row}" for row in range(len(texts))] if prompts is None else prompts
    return Answers(prompts, texts, [None] * len(texts), origins(len(texts)))


def pairs(*texts: tuple[str, str]) -> Pairs:
    first, second = zip(*texts)
    count = len(texts)
    return Pairs([f"p{row}" for row in range(count)], first, second, [None] * count, origins(count))


def origins(count: int) -> list[str]:
    return [f"rows.jsonl:{row + 1}" for row in range(count)]


def values(verdicts: Verdicts) -> list[float | None]:
    return [verdict.value for verdict in verdicts]


TEXTS = ("a", "bb", "ccc", "dddd", "eeeee")


def test_verdicts_come_in_the_order_of_the_rows_whatever_the_parts_are() -> None:
    scorer, told = Lengths(), []
    rows, parts = answers(*TEXTS), [[4, 1], [0], [3, 2]]
    found = ask(lambda: scorer, rows, parts, on_progress=lambda *n: told.append(n))
    assert values(found) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert found[0] == Verdict(1.0, {"twice": 2.0}, "odd")
    assert found[1] == Verdict(2.0, {"twice": 4.0})
    assert scorer.calls == [["eeeee", "bb"], ["a"], ["dddd", "ccc"]]
    assert told == [(2, 5), (3, 5), (5, 5)]
    told.clear()
    ask(lambda: scorer, rows, parts, on_progress=lambda *n: told.append(n), sizes=[1, 1, 7])
    assert told == [(1, 9), (2, 9), (9, 9)]


def test_parts_by_number_and_by_prompt() -> None:
    assert chunks(5, 2) == [[0, 1], [2, 3], [4]]
    assert chunks(5, None) == [[0, 1, 2, 3, 4]]
    assert chunks(0, 2) == chunks(0, None) == []
    prompts: list[Prompt] = ["p", "q", "p", [{"role": "user", "content": "q"}], "r", "q"]
    assert list(map(list, by_prompt(prompts, 2))) == [[0, 2], [1, 5], [3, 4]]
    assert list(map(list, by_prompt(prompts, 3))) == [[0, 2, 1, 5], [3, 4]]
    assert list(map(list, by_prompt(prompts, None))) == [[0, 2, 1, 5, 3, 4]]
    assert by_prompt([], 2) == by_prompt([], None) == []


def test_a_comparer_is_asked_about_pairs_and_says_where_the_order_decided() -> None:
    rows = pairs(("aa", "b"), ("a", "b"), ("a", "bb"))
    found = ask(Longer, rows, chunks(3, 2))
    assert list(found) == [Verdict(1.0), Verdict(0.5, flipped=True), Verdict(0.0)]
    plain = ask(Lengths, rows, chunks(3, 2))  # one that scores: the sigmoid of the difference
    assert values(plain) == [1 / (1 + math.exp(-1)), 0.5, 1 / (1 + math.exp(1))]


def test_right_answers_go_along() -> None:
    class Exact(Lengths):
        def score(self, prompts: Any, completions: Any, references: Any = None) -> Scores:
            return Scores(float(a == b) for a, b in zip(completions, references))

    columns = ["p", "p"], ["a", "b"], ["b", "a"], ["a", "a"], origins(2)
    rows = Answers(["p", "p"], ["a", "b"], ["a", "a"], origins(2))
    assert values(ask(Exact, rows, [[0, 1]])) == [1.0, 0.0]
    assert values(ask(Exact, Pairs(*columns), [[0, 1]])) == pytest.approx([0.731, 0.269], abs=1e-3)


@pytest.mark.parametrize("torn", [False, True], ids=["between two parts", "in a line"])
def test_what_was_stopped_resumes_with_the_same_verdicts_and_asks_nothing_twice(
    tmp_path: Path, torn: bool
) -> None:
    rows, parts, told = answers(*TEXTS), chunks(5, 2), []
    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(lambda: Lengths(dies_at="eeeee"), rows, parts, journal=Journal(path))
    if torn:
        path.write_bytes(path.read_bytes()[:-9])
    again = Lengths()
    found = ask(
        lambda: again,
        rows,
        parts,
        journal=Journal(path),
        on_progress=lambda *n: told.append(n),
    )
    assert list(found) == list(ask(Lengths, rows, parts))
    assert again.calls == ([["ccc", "dddd"]] if torn else []) + [["eeeee"]]
    assert told == ([(4, 5)] if torn else []) + [(5, 5)]
    assert list(ask(not_loaded, rows, parts, journal=Journal(path))) == list(found)


def not_loaded() -> Any:
    raise AssertionError("there is nothing to ask")


def test_comparisons_resume_with_their_flips(tmp_path: Path) -> None:
    rows, journal = pairs(("a", "b"), ("aa", "b")), tmp_path / "journal.jsonl"
    found = ask(Longer, rows, chunks(2, 1), journal=Journal(journal))
    assert list(ask(not_loaded, rows, chunks(2, 1), journal=Journal(journal))) == list(found)
    assert [verdict.flipped for verdict in found] == [True, False]


def test_a_row_without_a_verdict_costs_no_other_its_own(tmp_path: Path) -> None:
    rows, journal = answers(*TEXTS), tmp_path / "journal.jsonl"
    scorer = Lengths(mute=["bb", "dddd"])
    found = ask(lambda: scorer, rows, chunks(5, 3), journal=Journal(journal))
    assert values(found) == [1.0, None, 3.0, None, 5.0]
    assert found.silent == {1: "no bb", 3: "no dddd"}
    assert scorer.calls == [["a", "bb", "ccc"], ["a", "ccc"], ["dddd", "eeeee"], ["eeeee"]]
    with pytest.raises(DataError, match="x gave no score for 2 of 5 answers; kept") as caught:
        refuse_silent("x", rows, found.silent, 5, "kept", "hint")
    assert list(caught.value.problems) == [
        Problem("no bb", where="rows.jsonl:2"),
        Problem("no dddd", where="rows.jsonl:4"),
    ]
    refuse_silent("x", rows, {}, 5, "kept", "hint")
    again = Lengths()
    assert values(ask(lambda: again, rows, chunks(5, 3), journal=Journal(journal)))[1] == 2.0
    assert again.calls == [["bb"], ["dddd"]]
    ask(not_loaded, rows, chunks(5, 3), journal=Journal(journal))


def test_what_a_missing_verdict_may_have_changed_is_not_kept(tmp_path: Path) -> None:
    """Answers to its prompt, and where all rows are on one scale, all of them."""
    rows = answers("a", "bb", "ccc", prompts=["p", "p", "q"])
    for together, asked in ((False, ["a", "bb"]), (True, ["a", "bb", "ccc"])):
        journal = tmp_path / f"{together}.jsonl"
        for scorer in (Lengths(mute=["bb"]), Lengths()):
            ask(lambda: scorer, rows, [[0, 1, 2]], journal=Journal(journal), together=together)  # noqa: B023
        assert scorer.calls == [asked]


def test_that_there_is_no_verdict_can_be_kept(tmp_path: Path) -> None:
    rows, journal = answers("a", "bb"), tmp_path / "journal.jsonl"
    mute = Lengths(mute=["bb"])
    found = ask(lambda: mute, rows, [[0, 1]], journal=Journal(journal), keep_silent=True)
    assert list(ask(not_loaded, rows, [[0, 1]], journal=Journal(journal))) == list(found)
    assert found[1] == Verdict(None, error="no bb")


def test_a_call_without_rows_is_not_made() -> None:
    scorer = Lengths(mute=["a"])
    assert values(ask(lambda: scorer, answers("a"), [[], [0]])) == [None]
    assert scorer.calls == [["a"]]


def raising(message: str, *problems: str) -> Callable[[], Lengths]:
    class Raises(Lengths):
        def score(self, prompts: Any, completions: Any, references: Any = None) -> Scores:
            raise DataError(message, "hint", [Problem("why", where=row) for row in problems])

    return Raises


def test_errors_name_rows_by_their_origin() -> None:
    rows, parts = answers(*TEXTS), [[0, 1, 2, 3, 4]]
    for message, expected in (
        ("row 2: no number in 'row 1'", "rows.jsonl:2: no number in 'row 1'"),
        ("2 of 5 rows have none: row 2, 5", "2 of 5 rows have none: rows.jsonl:2, rows.jsonl:5"),
        ("the scale of all 5 rows", "the scale of all 5 rows"),
        ("row 11 is nowhere", "row 11 is nowhere"),
    ):
        with pytest.raises(DataError) as caught:
            ask(raising(message, "row 3", "the end"), rows, parts)
        assert (caught.value.message, caught.value.hint) == (expected, "hint")
        assert [problem.where for problem in caught.value.problems] == ["rows.jsonl:3", "the end"]
    with pytest.raises(DataError, match=r"rows.jsonl:4: no"):
        ask(raising("row 2: no"), rows, [[4, 3]])
    with pytest.raises(DataError, match=r"rows.jsonl:2: no"):  # the second row's second answer
        ask(raising("row 4: no"), pairs(("a", "b"), ("c", "d")), [[0, 1]])


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_row(odd: float) -> None:
    class Odd(Lengths):
        def score(self, prompts: Any, completions: Any, references: Any = None) -> Scores:
            return Scores(odd if text == "bb" else 1.0 for text in completions)

    with pytest.raises(DataError, match=rf"rows.jsonl:2: lengths gave {odd}, which is not a fini"):
        ask(Odd, answers("a", "bb"), [[0, 1]])


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for result in ({"scores": [1.0], "remarks": []}, [1.0], {"7": {"value": 1.0}}):
        path.unlink(missing_ok=True)
        Journal(path).add(0, result)
        with pytest.raises(UsageError, match=r"journal.jsonl was written by another version"):
            ask(Lengths, answers("a"), [[0]], journal=Journal(path))


def test_parts_can_be_taken_one_by_one() -> None:
    scorer = Lengths()
    found = ask_parts(lambda: scorer, answers(*TEXTS), chunks(5, 2))
    assert next(found)[0].keys() == {0, 1}
    assert scorer.calls == [["a", "bb"]]
    assert [list(verdicts) for verdicts, _ in found] == [[2, 3], [4]]


def test_different_answers_are_those_of_a_prompt_and_a_right_answer() -> None:
    prompts, first, second = ["p", "q", "p", "p"], ["a", "a", "a", "a"], ["b", "b", "c", "b"]
    rows = Pairs(prompts, first, second, [None, None, None, "b"], origins(4))
    found, one, other = different_answers(rows)
    assert list(zip(found.prompts, found.texts, found.references)) == [
        *(("p", "a", None), ("p", "b", None), ("q", "a", None), ("q", "b", None)),
        *(("p", "c", None), ("p", "a", "b"), ("p", "b", "b")),
    ]
    assert (one, other) == ([0, 2, 0, 5], [1, 3, 4, 6])
    assert found.origins == ["rows.jsonl:" + row for row in "1122344"]
    assert different_answers(Pairs([], [], [], [], []))[1:] == ([], [])


def test_it_loads_no_torch() -> None:
    code = "import aligner.reward_models.batching, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
