"""What goes to the proposing model, and what comes back from it."""

from __future__ import annotations

import json
import time

import pytest

from aligner.methods.discover.archive import Archive, Record, mean_and_error, shown
from aligner.methods.discover.prompts import ReplyError, conversation, read_reply, system_prompt

GOOD = {"thought": "why", "name": "mine", "code": "def mine():\n    return 1\n"}


@pytest.mark.parametrize(
    "text", [json.dumps(GOOD), f"```json\n{json.dumps(GOOD)}\n```", f"\n {json.dumps(GOOD)} \n"]
)
def test_a_reply_is_read_with_or_without_a_fence(text):
    found = read_reply(text)
    assert (found.thought, found.name, found.code) == ("why", "mine", GOOD["code"])


def test_thinking_aloud_before_the_reply_is_passed_over():
    assert read_reply(f"<think>\nhm {{\n</think>\n{json.dumps(GOOD)}").name == "mine"
    assert read_reply(f"```JSON\n{json.dumps(GOOD)}\n```").name == "mine"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "etc_passwd"),
        ("x" * 300, "x" * 60),
        ("\x1b]0;pwn\x07me", "0_pwn_me"),
        ("a\nprint(1)", "a_print_1"),
        ("\ud800", "objective"),
        ("2fast", "objective_2fast"),
        ("<b>bold</b>", "b_bold_b"),
    ],
)
def test_a_name_becomes_that_of_a_function_and_a_file(name, expected):
    found = read_reply(json.dumps({**GOOD, "name": name})).name
    assert found in (expected, f"objective_{expected}")
    assert found.isidentifier()


def test_what_no_file_or_terminal_should_see_is_taken_out():
    found = read_reply(
        json.dumps({"thought": "a\ud800\x1b[2Jb\x00", "name": "n", "code": "x\n\ty\x07"})
    )
    assert (found.thought, found.code) == ("a?[2Jb", "x\n\ty")


def test_a_hostile_reply_is_refused_at_once():
    began = time.process_time()
    for text in ("[" * 3000, "```" + "\n" * 49_000 + "x", "{" * 40_000, "9" * 49_000):
        with pytest.raises(ReplyError):
            read_reply(text)
    with pytest.raises(ReplyError, match="write at most"):
        read_reply("x" * 10_000_000)
    assert time.process_time() - began < 2


def test_real_line_breaks_in_the_code_are_forgiven():
    assert read_reply('{"thought": "t", "name": "n", "code": "a\nb"}').code == "a\nb"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("Sure! Here it is: {}", "is not JSON"),
        ('{"thought": "t", "name": "n", "code": "x"', "is not JSON"),
        ("[1, 2]", "no object"),
        ('{"thought": "t", "name": "n"}', "`code` is missing"),
        ('{"thought": "t", "name": 3, "code": "x"}', "`name` is missing, or is no text"),
        ('{"thought": "t", "name": "n", "code": "  "}', "`code` is missing"),
    ],
)
def test_what_is_wrong_with_a_reply_is_told(text, reason):
    with pytest.raises(ReplyError, match=reason):
        read_reply(text)


def records(count: int) -> list[Record]:
    start = [Record(0, "sigmoid", "start", source="DPO", fitness=[1.0, 1.2], held_out=[1.0, 1.0])]
    made = [
        Record(
            i,
            f"p{i}",
            "proposal",
            source=f"code {i}",
            error="bad" if i % 2 else "",
            fitness=[] if i % 2 else [float(i)],
        )
        for i in range(1, count + 1)
    ]
    return [*start, *made]


def test_the_model_sees_the_start_and_every_proposal_with_what_came_of_it():
    messages, shown_ones = conversation(
        records(2), lambda index: f"reply {index}", 10, system_prompt(0.05, "LANGUAGE")
    )
    assert [message["role"] for message in messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert "self.beta is 0.05" in messages[0]["content"]
    assert "LANGUAGE" in messages[0]["content"]
    assert "sigmoid: fitness 1.1 +/- 0.1\nDPO" in messages[1]["content"]
    assert messages[2]["content"] == "reply 1"
    assert "failed: bad" in messages[3]["content"]
    assert "Fitness: 2 over 1 seeds" in messages[5]["content"]
    assert shown_ones == [0, 1, 2]


def test_a_long_search_keeps_the_latest_and_the_best_of_the_older():
    messages, shown_ones = conversation(records(20), str, 3, "system")
    assert shown_ones == [0, 16, 14, 12, 10, 8, 18, 19, 20]
    assert len(messages) == 2 + 2 * 3
    assert "code 16" in messages[1]["content"]
    assert "code 6\n" not in messages[1]["content"]


def test_no_held_out_number_is_ever_shown_to_the_model():
    secret = Record(
        1,
        "p1",
        "proposal",
        source="code",
        fitness=[1.0],
        held_out=[123.456],
        facts={"text": ["a fact."]},
    )
    messages, _ = conversation([*records(0), secret], str, 3, "system")
    assert "123" not in json.dumps(messages)
    assert "a fact." in messages[-1]["content"]


def test_mean_and_standard_error():
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))
    assert shown([1.0, 2.0, 3.0]) == "2 +/- 0.58"
    assert shown([2.5]) == "2.5"


def test_an_archive_comes_back_from_disk_as_it_was(tmp_path):
    archive = Archive(tmp_path)
    for record in (
        *records(3),
        Record(9, "n", "proposal", fitness=[float("inf")], hash="h", facts={"text": ["x"]}),
    ):
        archive.add(record)
    again = Archive(tmp_path)
    assert again.records == archive.records
    assert again.same_as("h").index == 9
    assert again.best("start").name == "sigmoid"
    assert again[2].valid
    assert not again[1].valid
