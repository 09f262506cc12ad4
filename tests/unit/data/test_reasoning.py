"""Thinking before a reply is taken off, and a reply about thinking is not."""

from __future__ import annotations

import pytest

from aligner.data.reasoning import without_reasoning


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("<think>2+3</think>\n\nFive.", "Five."),
        ("<Thinking>a</Thinking><think>b</think> c", "c"),
        ("the prompt opened it</think>Five.", "Five."),
        ("<think>cut off", ""),
        (" plain ", "plain"),
        ("Write <think> first, then </think>.", "Write <think> first, then </think>."),
        ("End with `</think>` and stop", "End with `</think>` and stop"),
        ("<think>a</think>Close it with </think>", "Close it with </think>"),
    ],
)
def test_thinking_is_taken_off(reply: str, said: str) -> None:
    assert without_reasoning(reply) == said


def test_a_long_reply_without_an_end_of_thinking_is_quick() -> None:
    assert without_reasoning("<think " * 100_000).startswith("<think <think")
