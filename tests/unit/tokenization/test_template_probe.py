"""Chat templates that do not come to an end are refused, by the file that they came from, before
they run here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import CHAT_TEMPLATE, byte_tokenizer

from aligner.errors import DataError, RecipeError
from aligner.tokenization import template_probe
from aligner.tokenization.chat_template import Conversation
from aligner.tokenization.template_child import open_probe

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor "
    "%}{{ n.x }}"
)
QUESTION = [{"role": "user", "content": "a"}]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    limits = replace(template_probe.LIMITS, cpu_s=1.0, memory_bytes=2**27)
    monkeypatch.setattr(template_probe, "LIMITS", limits)
    monkeypatch.setattr(template_probe, "_MET", set())
    return own_cache


@pytest.mark.parametrize(
    ("template", "reason"), [(LOOP, "processor time"), (DOUBLING, "too much memory")]
)
def test_a_template_without_end_is_refused_with_its_file(
    template: str, reason: str, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(template)
    tokenizer.save_pretrained(tmp_path)
    tokenizer.name_or_path = str(tmp_path)
    with pytest.raises(
        RecipeError,
        match=rf"chat_template.jinja: the chat template does not come to an end.*{reason}",
    ):
        Conversation(tokenizer, QUESTION).ids()


def test_a_template_is_tried_once_on_a_machine(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template_probe.refuse_endless(byte_tokenizer())
    assert len(list((short / "templates").iterdir())) == 1
    monkeypatch.setattr(template_probe, "_MET", set())
    monkeypatch.setattr(template_probe, "_probe", lambda *_: "tried again")
    template_probe.refuse_endless(byte_tokenizer())
    with pytest.raises(RecipeError, match="tried again"):
        template_probe.refuse_endless(byte_tokenizer(CHAT_TEMPLATE + " "))


RAISING = {
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "division": "{{ 1 // 0 }}",
    "range": "{{ range(10**9)|list }}",
    "nesting": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "its own words": "{{ raise_exception('no') }}",
}


@pytest.mark.parametrize("what", RAISING)
def test_a_template_that_raises_is_told_in_words(what: str) -> None:
    with pytest.raises(DataError, match=r"the chat template refuses this conversation: ."):
        Conversation(byte_tokenizer(RAISING[what]), QUESTION).ids()


def test_the_probe_reads_what_transformers_reads() -> None:
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    written = CHAT_TEMPLATE + "{% if messages|length > 2 %}{{ 'x' * 20000000 }}{% endif %}"
    assert open_probe(None)({"template": CHAT_TEMPLATE, "tokens": tokens}) == ""
    assert "characters" in open_probe(None)({"template": written, "tokens": tokens})
