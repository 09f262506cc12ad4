"""What a tokenizer makes of rows: refusals, dropped parts, control tokens and odd lengths."""

from __future__ import annotations

from fakes import EOS, byte_tokenizer

from aligner.data.inspection import Findings
from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow, PromptRow, Row
from aligner.tokenization.encode import encode_pair, encode_sft
from aligner.tokenization.row_checks import TokenChecks
from tests.unit.tokenization.test_chat_templates import tokenizer_for


def talk(*texts: str, origin: str = "rows:1") -> ConversationRow:
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return ConversationRow(turns, origin=origin)


def checked(*rows: Row, template: str = "", max_length: int | None = None) -> TokenChecks:
    tokenizer = tokenizer_for(template) if template else byte_tokenizer()
    checks = TokenChecks(tokenizer, Findings(), max_length)
    for row in rows:
        checks.look(row)
    checks.finish()
    return checks


def test_lengths_are_those_of_the_trainings() -> None:
    tokenizer = byte_tokenizer()
    row, pair = talk("ab", "c"), PreferenceRow("ab", "c", "defg", origin="rows:2")
    encoded = encode_pair(tokenizer, pair)
    longest = len(encoded.prompt_ids) + len(encoded.rejected_ids)
    checks = checked(row, pair, PromptRow("ab", origin="rows:3"))
    assert list(checks.lengths)[:2] == [len(encode_sft(tokenizer, row).input_ids), longest]
    assert checks.quantiles()["longest"] == longest


def test_thinking_that_a_template_drops_is_found() -> None:
    thinking = "<think>\nhow so\n</think>\n\nb"
    early = talk("a", thinking, "c", "d")
    checks = checked(early, talk("a", thinking, origin="rows:2"), template="qwen3")
    assert checks.findings.examples["dropped"] == [("rows:1", "thinking in the text")]
    assert checks.findings.failed() == ["dropped"]


def test_rows_that_the_template_refuses_are_found() -> None:
    turns = [{"role": "user", "content": text} for text in "ab"]
    row = ConversationRow([*turns, {"role": "assistant", "content": "c"}], origin="rows:7")
    checks = checked(row, template="gemma")
    ((where, what),) = checks.findings.examples["refused"]
    assert where == "rows:7"
    assert not what.startswith("rows:7")
    assert "alternate" in what


def test_control_tokens_are_told() -> None:
    checks = checked(CompletionRow("a", f"b {EOS} c", origin="rows:1"))
    assert checks.findings.rows == {"control_tokens": 1}
    assert checks.findings.failed() == []


def test_rows_beyond_the_longest_length_fail() -> None:
    checks = checked(talk("a", "b"), talk("a", "b" * 90, origin="rows:2"), max_length=60)
    assert [where for where, _ in checks.findings.examples["too_long"]] == ["rows:2"]


def test_lengths_that_stand_apart_are_told_and_a_spread_is_not() -> None:
    usual = [talk("a", "b" * (20 + n)) for n in range(30)]
    odd = talk("a", "b" * 2000, origin="rows:99")
    assert checked(*usual).findings.rows == {}
    checks = checked(*usual, odd)
    assert [where for where, _ in checks.findings.examples["outlier"]] == ["rows:99"]
    assert checked(*usual[:3], odd).findings.rows == {}  # too few to say what is usual
