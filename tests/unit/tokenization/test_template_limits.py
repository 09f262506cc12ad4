"""What a chat template does with a row is within limits of time, memory and characters, and a sound
one notices none of them."""

from __future__ import annotations

import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fakes import CHAT_TEMPLATE, byte_tokenizer

from aligner.data.rows import ConversationRow
from aligner.errors import DataError, RecipeError
from aligner.tokenization import template_limits, template_probe
from aligner.tokenization.ahead import answers_ahead
from aligner.tokenization.chat_template import Conversation
from aligner.tokenization.encode import encode_sft
from aligner.tokenization.template_limits import apply_template

WHEN = "{% if messages[0].content == 'long' %}ACT{% endif %}" + CHAT_TEMPLATE
LOOP = WHEN.replace(
    "ACT", "{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}"
)
TEXT = WHEN.replace("ACT", "{% set text = 'x' * (messages|length * 200000000) %}")
OUTPUT = WHEN.replace("ACT", "{{ 'x' * 2000 }}")


@pytest.fixture(autouse=True)
def low(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(template_limits, "LONGEST_S", 0.3)
    monkeypatch.setattr(template_limits, "POLL_S", 0.05)
    monkeypatch.setattr(template_limits, "MOST_BYTES", 2**27)
    monkeypatch.setattr(template_limits, "MOST_CHARACTERS", 1000)
    monkeypatch.setattr(template_limits, "_MEMORY", template_limits._Memory())
    monkeypatch.setattr(template_probe, "_MET", set())


def turns(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "b"}]


BEYOND = {
    "time": (LOOP, "it runs for more than 0.3 seconds"),
    "memory": (TEXT, "it takes more than 0.125 GiB"),
    "characters": (OUTPUT, r"it writes 2,\d\d\d (characters|tokens), and 1,000 are read"),
}


@pytest.mark.parametrize("what", BEYOND)
def test_a_row_that_takes_a_template_beyond_a_limit_is_named_with_its_file(
    what: str, tmp_path: Path
) -> None:
    template, says = BEYOND[what]
    tokenizer = byte_tokenizer(template)
    tokenizer.save_pretrained(tmp_path)
    tokenizer.name_or_path = str(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert Conversation(tokenizer, turns("short"), origin="rows.jsonl:1").ids()
    with pytest.raises(
        DataError, match=rf"rows.jsonl:2: the chat template in .*chat_template.jinja is.*: {says}"
    ):
        Conversation(tokenizer, turns("long"), origin="rows.jsonl:2").ids()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert Conversation(tokenizer, turns("short")).ids()


@pytest.mark.parametrize("what", BEYOND)
def test_one_such_row_among_others_leaves_them_as_they_are(what: str) -> None:
    tokenizer = byte_tokenizer(BEYOND[what][0])
    rows = [ConversationRow(turns(text), origin=f"r:{text}") for text in ("a", "long", "c")]
    ahead = answers_ahead(tokenizer, lambda row: "assistant")
    ahead.look_ahead(rows)
    for row in (rows[0], rows[2]):
        assert encode_sft(tokenizer, row, "assistant", ready=ahead.of(row))
    with pytest.raises(DataError, match=r"r:long: the chat template in model\.chat_template is"):
        encode_sft(tokenizer, rows[1], "assistant", ready=ahead.of(rows[1]))


def test_a_rendering_that_is_done_is_not_ended_later(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    apply_template(tokenizer, turns("a"), tokenize=False)
    monkeypatch.setattr(template_limits, "LONGEST_S", 0.0)
    monkeypatch.setattr(template_limits, "POLL_S", 0.0)
    for _ in range(300):
        with suppress(template_limits.TooLongError):
            apply_template(tokenizer, turns("a"), tokenize=False)
        sum(number for number in range(200))  # here nothing may be raised
    monkeypatch.setattr(template_limits, "LONGEST_S", 30.0)
    time.sleep(0.05)
    assert apply_template(tokenizer, turns("a"), tokenize=False)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no clocks of threads here")
def test_a_rendering_that_gets_no_core_is_not_ended() -> None:
    class Waiting:
        """In place of a busy machine."""

        def apply_chat_template(self, chats: object) -> str:
            time.sleep(2 * template_limits.LONGEST_S)
            return "done"

    tokenizer: Any = Waiting()
    assert apply_template(tokenizer, []) == "done"


def test_every_named_template_of_a_tokenizer_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE + "{# t #}"}
    tried: list[str] = []
    monkeypatch.setattr(template_probe, "_probe", lambda text, _: tried.append(text) or "")
    template_probe.refuse_endless(tokenizer)
    assert tried == [CHAT_TEMPLATE, CHAT_TEMPLATE + "{# t #}"]
    tokenizer.chat_template["rag"] = "{# rag #}"
    monkeypatch.setattr(template_probe, "_probe", lambda *_: "it is long")
    with pytest.raises(RecipeError, match="does not come to an end on two short turns: it is long"):
        Conversation(tokenizer, turns("a")).ids()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux")
def test_a_process_that_is_forked_while_something_is_rendered_keeps_its_own_memory() -> None:
    class Forking:
        """In place of another thread that forks."""

        def apply_chat_template(self, chats: object) -> str:
            child = os.fork()
            if not child:
                os._exit(resource.getrlimit(resource.RLIMIT_DATA) != before)
            return str(os.waitpid(child, 0)[1])

    before = resource.getrlimit(resource.RLIMIT_DATA)
    tokenizer: Any = Forking()
    assert apply_template(tokenizer, []) == "0"
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
