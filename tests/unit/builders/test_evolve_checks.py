"""What is looked at in a row by itself: its answer, a verifier, further answers, a pass rate."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.checks import REASONS, RowChecks, Verdict, check_references
from aligner.builders.evolve.made import Made
from aligner.builders.evolve.recipe import Evolve
from aligner.endpoints.request import ChatRequest, Completion, LLMError
from aligner.endpoints.scripted import ScriptedBackend
from aligner.errors import DataError, RecipeError

TARGET = {"model": "student", "base_url": "http://127.0.0.1:1/v1"}


@dataclass
class Roles:
    """An answerer and a target, each with replies by `sample_index`."""

    answers: Any = ()
    targets: Any = ()

    def __post_init__(self) -> None:
        self.answerer = self.evolver = self.optimizer = self.judge = by_sample(self.answers)
        self.target = by_sample(self.targets)


def by_sample(replies: Any) -> ScriptedBackend:
    return ScriptedBackend(lambda request: replies[request.sample_index])


def settings(mode: str = "auto", **checks: Any) -> Evolve:
    return Evolve.model_validate({"mode": mode, "checks": checks})


def made(
    answer: str = "It is 7.", finish_reason: str = "stop", reference: str | None = None
) -> Made:
    turns = ({"role": "system", "content": "brief"}, {"role": "user", "content": "3 + 4?"})
    return Made("id", "seed", turns, answer, finish_reason=finish_reason, reference=reference)


def check(evolve: Evolve, row: Made, roles: Roles | None = None) -> Verdict:
    return asyncio.run(RowChecks(evolve).check(row, roles or Roles()))


@pytest.mark.parametrize(
    ("row", "reason", "switch"),
    [
        (made(" \n"), "empty", None),
        (made("Sure, what shall I add?"), "unqualified", "failures"),
        (made("Please provide the numbers."), "lost_information", "failures"),
        (made("I'm sorry, but I can't help with that."), "refusal", "refusals"),
        (made("It is", "length"), "truncated", "truncated"),
        (made("", "length"), "truncated", None),
    ],
)
def test_an_answer_that_is_none_drops_the_row(row: Made, reason: str, switch: str | None) -> None:
    assert check(settings(), row) == Verdict(row, reason)
    assert reason in REASONS
    if switch is not None:
        assert check(settings(**{switch: False}), row).reason is None


def test_a_good_answer_stays_and_nobody_is_asked() -> None:
    roles = Roles()
    assert check(settings(), made(), roles) == Verdict(made())
    assert roles.answerer.requests == roles.target.requests == []


# --- verifiers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "reason"), [('{"a": 7}', None), ("It is 7.", "verifier")])
def test_a_verifier_decides(answer: str, reason: str | None) -> None:
    assert check(settings(verifier="verifier:json"), made(answer)).reason == reason


def test_a_verifier_gets_the_right_answer_of_the_seed() -> None:
    evolve = settings(verifier="verifier:number")
    assert check(evolve, made(reference="#### 7")).reason is None
    assert check(evolve, made(reference="#### 8")).reason == "verifier"


def test_a_function_judges_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "judge.py"
    file.write_text(
        "def short(prompt, completion, reference):\n"
        "    assert prompt[-1]['role'] == 'user'\n"
        "    return float(len(completion) < 10)\n"
    )
    evolve = settings("magpie", verifier=f"verifier:{file}:short")
    assert check(evolve, made()).reason is None
    assert check(evolve, made("It is a number that you can count to.")).reason == "verifier"


def test_a_verifier_without_right_answers_says_what_it_needs() -> None:
    for mode in ("magpie", "skillmix"):
        with pytest.raises(RecipeError, match=f"mode: {mode}") as caught:
            RowChecks(settings(mode, verifier="verifier:number"))
        assert "evolve.checks.majority" in caught.value.hint
    checks = RowChecks(settings(verifier="verifier:exact"))
    seeds = [("a.jsonl:1", "x"), ("a.jsonl:2", None)]
    with pytest.raises(DataError, match=r"1 seeds have none: a\.jsonl:2"):
        check_references(checks.scorer, seeds)
    check_references(checks.scorer, seeds[:1])
    free = RowChecks(settings(verifier="verifier:json"))
    check_references(free.scorer, [("a.jsonl:1", None)])
    with pytest.raises(DataError, match=r"a\.jsonl:1: verifier:json finds no JSON"):
        check_references(free.scorer, seeds)


def test_a_row_that_cannot_be_judged_is_named() -> None:
    with pytest.raises(DataError, match=r"row id \(of seed seed\).*number in the right answer"):
        check(settings(verifier="verifier:number"), made(reference="seven"))


def test_a_scorer_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="'toy' is a scorer of the kind"):
        RowChecks(settings(verifier="toy"))


# --- majority -------------------------------------------------------------------------------------


def test_the_answer_that_most_agree_with_is_kept() -> None:
    roles = Roles(["unused", "It is 8.", "Answer: 8", "who knows", "It is 7, no, 8"])
    verdict = check(settings(majority=5), made("It is 7."), roles)
    assert (verdict.reason, verdict.made.completion) == (None, "It is 8.")
    assert verdict.made.id == "id"
    assert verdict.made.provenance["checks"]["majority"] == {
        "result": "8",
        "votes": 3,
        "voters": 4,
        "answers": 5,
    }
    asked = [(one.sample_index, one.temperature) for one in roles.answerer.requests]
    assert sorted(asked) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)]


def test_answers_that_fail_have_no_vote() -> None:
    cut = Completion("It is 8.", finish_reason="length")
    roles = Roles(["unused", cut, "It is 7 m", LLMError("too long", kind="context_length")])
    verdict = check(settings(majority=4), made("It is 7."), roles)
    assert verdict.made.provenance["checks"]["majority"]["voters"] == 2
    roles = Roles(["unused", "I'm sorry, but I can't do that: 7.", cut])
    assert check(settings(majority=3), made("It is 7."), roles).reason == "no_majority"


def test_a_first_answer_that_fails_costs_no_row_that_others_save() -> None:
    roles = Roles(["unused", "It is 7.", "7"])
    assert check(settings(majority=3), made("", "length"), roles).made.completion == "It is 7."


def test_the_verifier_looks_at_every_vote() -> None:
    roles = Roles(["unused", '{"a": 8}', '{"a": 8}'])
    evolve = settings(majority=3, verifier="verifier:json")
    assert check(evolve, made("It is 7."), roles).made.completion == '{"a": 8}'


def test_a_server_that_fails_ends_the_check() -> None:
    roles = Roles(["unused", LLMError("down", kind="unavailable")])
    with pytest.raises(LLMError, match="down"):
        check(settings(majority=2), made(), roles)


# --- pass rate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "reason"), [(0, "too_hard"), (1, None), (3, None), (4, "too_easy")]
)
def test_rows_that_a_model_solves_sometimes_are_kept(right: int, reason: str | None) -> None:
    roles = Roles(targets=["Answer: 7"] * right + ["Answer: 9"] * (4 - right))
    evolve = settings(verifier="verifier:number", pass_rate={"target": TARGET})
    verdict = check(evolve, made(reference="7"), roles)
    assert verdict.reason == reason
    assert verdict.made.provenance["checks"] == {"pass_rate": right / 4}
    request: ChatRequest = roles.target.requests[0]
    assert (request.messages, request.temperature, request.purpose) == (
        made().prompt,
        1.0,
        "target",
    )


def test_without_a_verifier_the_majority_says_what_is_right() -> None:
    error = LLMError("filtered", kind="content_filter")
    roles = Roles(["unused", "7"], ["7", "8", error, "nothing"])
    evolve = settings(majority=2, pass_rate={"target": TARGET, "low": 0.3})
    verdict = check(evolve, made(), roles)
    assert verdict.reason == "too_hard"
    assert verdict.made.provenance["checks"]["pass_rate"] == 0.25
