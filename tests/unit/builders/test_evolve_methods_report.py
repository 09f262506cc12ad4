"""How a report shows what became of the method."""

from __future__ import annotations

import re
from html import unescape

from aligner.builders.evolve.contract import EvolvingMethod
from aligner.builders.evolve.history import Candidate, History, Measured, Step
from aligner.builders.evolve.methods_report import difference, methods_section

START = EvolvingMethod("Make it <b>harder</b>. Keep it short.")
BETTER = EvolvingMethod(
    "Make it <b>harder</b>. Keep every input.", parent=START.id, step=2, note="<i>inputs</i>"
)


def measured(**classes: int) -> Measured:
    given: dict[str, object] = {"asked": 50, "covered": 48, "evolved": 40, "added_words": 600}
    return Measured(**given, classes=classes, questions=10)


HISTORY = History(
    START,
    measured(lost_information=18, stagnant=6),
    (
        Step(number=1, candidates=(Candidate(outcome="malformed"), Candidate(outcome="same"))),
        Step(
            number=2,
            candidates=(
                Candidate(outcome="measured", method=BETTER, measured=measured(stagnant=6)),
                Candidate(outcome="malformed"),
                Candidate(outcome="malformed"),
            ),
            chosen=0,
        ),
    ),
    "steps",
)


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "|", re.sub(r"<style>.*?</style>", "", html)))


def test_a_section_says_the_failures_of_each_step_by_class() -> None:
    text = text_of(methods_section(HISTORY))
    assert "Failure rate 50% at the start and 12% at the end, on 48 of 50" in text
    assert "1 new methods in 2 steps; all steps were done." in text
    assert "|start||50%||lost information 18, stagnant 6||" in text
    assert "|1||50%||lost information 18, stagnant 6||malformed 1, same 1||+15||25%|" in text
    assert f"|2||12%||stagnant 6||measured 1, malformed 2||+15||25%||||{BETTER.id[:8]} new|" in text


def test_a_new_method_is_shown_as_its_difference_and_nothing_of_it_is_markup() -> None:
    html = methods_section(HISTORY)
    assert "<summary>Step 2: &lt;i&gt;inputs&lt;/i&gt;</summary>" in html
    assert "<del>it</del><ins>every</ins> <del>short.</del><ins>input.</ins>" in html
    assert "<b>harder" not in html


def test_both_texts_can_be_read_out_of_their_difference() -> None:
    before, after = "a b\n\nc d  e", "a x\nc d e f"
    html = difference(before, after)
    assert re.sub(r"<del>.*?</del>|</?ins>", "", html, flags=re.DOTALL) == after
    assert re.sub(r"<ins>.*?</ins>|</?del>", "", html, flags=re.DOTALL) == before
    assert difference("same", "same") == "same"


def test_without_optimization_the_method_alone_is_shown() -> None:
    html = methods_section(History(START, ended="steps"))
    assert "used as it starts" in html
    assert "Keep it short." in html
