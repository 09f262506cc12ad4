"""When an evolution has failed: each rule, in the three sets of rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner.builders.evolve.failures import (
    Failure,
    asks_back,
    failure_of_answer,
    failure_of_evolution,
)
from aligner.builders.evolve.recipe import Failures
from aligner.data.refusals import refuses

STAGNANT, UNQUALIFIED, LOST = "stagnant", "unqualified", "lost_information"
ROBUST, PAPER, RELEASED = (Failures(rules=rules) for rules in ("robust", "paper", "released"))

# answer -> its class by paper, released and robust
ANSWERS: list[tuple[str, Any, Any, Any]] = [
    ("Understood. What is next?", STAGNANT, STAGNANT, STAGNANT),
    ("Thank you! Anything else?", STAGNANT, STAGNANT, STAGNANT),
    ("Understood. I will.", None, None, None),
    ("Sure, which file?", UNQUALIFIED, UNQUALIFIED, UNQUALIFIED),
    ("Sure, here it is.", None, None, None),
    ("To begin, please provide the text.", LOST, LOST, LOST),
    ("Please provide the text.", None, LOST, LOST),
    ("What do you mean?", None, STAGNANT, STAGNANT),
    ("That is correct, is it not?", None, STAGNANT, STAGNANT),
    ("Great! Shall I?", None, STAGNANT, STAGNANT),
    ("I'm sorry, what was that?", None, STAGNANT, None),
    ("Is there anything else I can do?", None, STAGNANT, None),
    ("As an AI assistant, may I ask why?", None, STAGNANT, None),
    ("I understand. And then?", None, STAGNANT, None),
    ("A square root of -1 is not possible in the reals.", None, LOST, None),
    ("Not Possible, by parity.", None, LOST, None),
    ("Sure, which file?\n", None, None, UNQUALIFIED),
    ("  Sure, which file?", None, None, UNQUALIFIED),
    ("sure, which file?", None, None, UNQUALIFIED),
    ("SURE, WHICH FILE?", None, None, UNQUALIFIED),
    ("Sure, which file\uff1f", None, None, UNQUALIFIED),
    ("<think>Hm.</think>\nSure, which file?", None, None, UNQUALIFIED),
    ("Hm, well.</think>\nSure, which file?", None, None, UNQUALIFIED),
    ("<think>please provide</think>Here it is.", LOST, LOST, None),
    ("", None, None, "empty"),
    (" \n", None, None, "empty"),
    ("<think>Hm.</think>", None, None, "empty"),
    ("I'm sorry, but I can't help with that.", None, None, "refusal"),
    ("I am sorry, but as an AI language model I cannot browse.", None, None, "refusal"),
    ("I can\u2019t assist with this request.", None, None, "refusal"),
    ("I'm unable to provide that.", None, None, "refusal"),
    ("As an AI language model, I don't have opinions.", None, None, "refusal"),
    ("I'm sorry for your loss. My deepest condolences.", None, None, None),
    ("I cannot tell a lie, said he.", None, None, None),
    ("Seven.", None, None, None),
]


@pytest.mark.parametrize(("answer", "paper", "released", "robust"), ANSWERS)
def test_each_set_of_rules_finds_what_its_source_says(
    answer: str, paper: Failure | None, released: Failure | None, robust: Failure | None
) -> None:
    found = [failure_of_answer(answer, rules) for rules in (PAPER, RELEASED, ROBUST)]
    assert found == [paper, released, robust]


@pytest.mark.parametrize("answer", ["Seven of them, and then", "<think>Hm"])
def test_an_answer_that_was_cut_off_has_failed_by_the_robust_rules_alone(answer: str) -> None:
    found = [failure_of_answer(answer, rules, "length") for rules in (PAPER, RELEASED, ROBUST)]
    assert found == [None, None, "truncated"]


@given(
    st.sampled_from([row[0] for row in ANSWERS]) | st.text(max_size=60),
    st.text(" \t\n\u00a0\u2003", max_size=4),
    st.text(" \t\n\u00a0\u2003", max_size=4),
)
def test_outer_blanks_change_nothing_for_the_robust_rules(
    answer: str, before: str, after: str
) -> None:
    assert failure_of_answer(before + answer + after, ROBUST) == failure_of_answer(answer, ROBUST)


@pytest.mark.parametrize("rules", ["robust", "paper", "released"])
def test_phrases_of_the_user_count_under_every_set_of_rules(rules: Any) -> None:
    settings = Failures(rules=rules, phrases=["Nat\u00fcrlich"])
    assert failure_of_answer("NAT\u00dcRLICH, welche Datei?", settings) == "stagnant"
    assert failure_of_answer("Nat\u00fcrlich, hier.", settings) is None


# evolved text of "List three uses of salt." -> its class by the robust rules
EVOLVED = [
    ("List three uses of salt in a tannery.", "stop", None),
    ("", "stop", "empty"),
    (" \n ", "stop", "empty"),
    ("list three uses of  SALT", "stop", "unchanged"),
    ("List three uses of salt.\u200b", "stop", "unchanged"),
    ("List uses of salt.", "stop", "lost_information"),
    ("Of salt, list uses.", "stop", "lost_information"),
    ("The rewritten instruction: list four uses of salt.", "stop", "template_leak"),
    ('What stands between the tags "salt" and "tannery"?', "stop", "template_leak"),
    ("List the uses of salt that are", "length", "truncated"),
    ("I'm sorry, but I cannot help with that.", "stop", "refusal"),
]


@pytest.mark.parametrize(("text", "finish_reason", "failure"), EVOLVED)
def test_an_evolved_text_fails_by_itself(
    text: str, finish_reason: str, failure: Failure | None
) -> None:
    parent = "List three uses of salt."
    assert failure_of_evolution(parent, text, ROBUST, finish_reason) == failure
    for rules in (PAPER, RELEASED):
        expected = "empty" if failure == "empty" else None
        assert failure_of_evolution(parent, text, rules, finish_reason) == expected


def test_what_the_seed_said_itself_is_no_leak_and_no_refusal() -> None:
    parent = "Improve the original instruction: I'm sorry, but I cannot help."
    assert failure_of_evolution(parent, f"In verse. {parent}", ROBUST) is None
    parent = "I'm sorry, but I can't help: say this in Latin."
    assert failure_of_evolution(parent, f"{parent} And in Greek.", ROBUST) is None


def test_sums_that_differ_in_a_sign_are_not_the_same() -> None:
    assert failure_of_evolution("What is 2+3?", "What is 2-3?", ROBUST) is None
    assert failure_of_evolution("What is 2+3?", "What is 22+33?", ROBUST) is None
    assert failure_of_evolution("?", " ? ", ROBUST) == "unchanged"


def test_a_regret_alone_is_no_refusal() -> None:
    assert not refuses("I am sorry to hear that. You can return it within 30 days.")
    assert not refuses("Write: I'm unable to come.")
    assert not refuses("I'm sorry for the delay, but as a small shop we could not send it.")
    assert refuses("Unfortunately, I cannot create images.")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry for any misunderstanding, but as a chatbot designed to assist users, I don't "
        "have the ability to look things up.",
        "I'm sorry for any confusion, but as a chatbot designed to assist with planning, I'm not "
        "equipped to help.",
        "I'm sorry, but as your virtual assistant I am unable to call anybody.",
    ],
)
def test_what_small_models_say_in_place_of_an_answer_is_a_refusal(text: str) -> None:
    assert refuses(text)


def test_questions_are_seen_in_other_scripts_too() -> None:
    assert asks_back("\u0645\u0627\u0630\u0627 \u062a\u0631\u064a\u062f\u061f ")
    assert not asks_back("Why? Because.")
