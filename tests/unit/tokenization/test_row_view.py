"""Rows as people see them: what is trained, what each turn comes to, where it is cut."""

from __future__ import annotations

from pathlib import Path

from fakes import BOS, EOS, byte_tokenizer, small_recipe

from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow, PromptRow, Row, TextRow
from aligner.methods.dpo.encode import encoder
from aligner.methods.show import encode_as_is
from aligner.tokenization.row_view import RowViewer, ShownRow, ShownSequence, token_texts
from tests.unit.tokenization.test_chat_templates import tokenizer_for

TALK = ConversationRow(
    [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "cd"},
        {"role": "user", "content": "e"},
        {"role": "assistant", "content": "fg"},
    ],
    origin="rows:1",
)


def viewed(
    row: Row, limit: int | None = None, *, cuts: bool = True, template: str = ""
) -> ShownRow:
    tokenizer = tokenizer_for(template) if template else byte_tokenizer()
    return RowViewer(tokenizer, encode_as_is(tokenizer), limit, cuts).show(row)


def text(sequence: ShownSequence, *, trained: bool | None = None, cut: bool | None = None) -> str:
    kept = (
        token.text
        for token in sequence.tokens
        if trained in (None, token.trained) and cut in (None, token.cut)
    )
    return "".join(kept)


def counts(shown: ShownRow) -> list[tuple[str, int, int, int]]:
    return [(turn.role, turn.tokens, turn.trained, turn.cut) for turn in shown.turns]


def test_each_turn_of_a_conversation_is_counted() -> None:
    shown = viewed(TALK)
    (sequence,) = shown.sequences
    assert text(sequence, trained=True) == f"cd{EOS}fg{EOS}"
    # <bos>, then `<start>`, the role, a line end, the text and <eos> of each turn
    assert counts(shown) == [
        ("system", 1 + 1 + 6 + 1 + 2 + 1, 0, 0),
        ("user", 1 + 4 + 1 + 2 + 1, 0, 0),
        ("assistant", 1 + 9 + 1 + 2 + 1, 3, 0),
        ("user", 1 + 4 + 1 + 1 + 1, 0, 0),
        ("assistant", 1 + 9 + 1 + 2 + 1, 3, 0),
    ]
    assert len(sequence.tokens) == sum(turn.tokens for turn in shown.turns)
    assert shown.notes == [
        f"starts with the beginning-of-sequence token {BOS} (1)",
        f"row: 2 trained parts end with the stop token {EOS} (2), which is trained",
    ]


def test_what_the_longest_length_cuts_is_marked() -> None:
    whole = len(viewed(TALK).sequences[0].tokens)
    shown = viewed(TALK, whole - 2)
    assert text(shown.sequences[0], cut=True) == f"g{EOS}"
    assert text(shown.sequences[0], trained=True) == f"cd{EOS}f"
    assert counts(shown)[-1] == ("assistant", 14, 1, 2)
    assert shown.problem == ""
    assert f"row: 2 of {whole} tokens are cut off at its end" in shown.notes
    assert "row: a trained part ends without a stop token" in shown.notes


def test_a_longer_row_that_is_not_cut_is_not_trained() -> None:
    shown = viewed(TALK, 20, cuts=False)
    assert shown.problem.endswith("tokens, and data.max_length is 20")
    assert shown.sequences, "it can be looked at"
    assert text(shown.sequences[0], cut=False) == text(viewed(TALK, 20).sequences[0], cut=False)


def test_answers_of_a_pair_stand_below_their_prompt() -> None:
    shown = viewed(PreferenceRow("ab", "cd", "efg", origin="rows:2"))
    assert [sequence.name for sequence in shown.sequences] == ["prompt", "chosen", "rejected"]
    assert [text(sequence, trained=True) for sequence in shown.sequences] == [
        "",
        f"cd{EOS}",
        f"efg{EOS}",
    ]
    # the opening of the answer, <start>assistant and a line end, is the answer's
    assert counts(shown) == [("user", 10, 0, 0), ("chosen", 14, 3, 0), ("rejected", 15, 4, 0)]


def test_a_prompt_that_loses_its_start_is_shown_so_where_the_row_would_fit(tmp_path: Path) -> None:
    cut = {"data__on_too_long": "truncate", "dpo__max_prompt_length": 7}
    recipe = small_recipe("dpo", tmp_path, tmp_path / "run", data__train="p.jsonl", **cut).recipe
    tokenizer = byte_tokenizer()
    viewer = RowViewer(tokenizer, encoder(recipe, tokenizer).encode, 500, True)
    shown = viewer.show(PreferenceRow("abcdefgh", "cd", "efg", origin="rows:2"))
    prompt = shown.sequences[0]
    assert [token.cut for token in prompt.tokens] == [True] * (len(prompt.tokens) - 7) + [False] * 7
    assert not any(token.cut for one in shown.sequences[1:] for token in one.tokens)
    assert any("are cut off at its beginning" in note for note in shown.notes)


def test_a_prompt_alone_ends_with_what_opens_an_answer() -> None:
    shown = viewed(PromptRow("ab", origin="rows:3"))
    assert counts(shown) == [("user", 10, 0, 0), ("(opens an answer)", 11, 0, 0)]
    assert text(shown.sequences[0], trained=True) == ""


def test_plain_text_without_a_template() -> None:
    tokenizer = byte_tokenizer(None)
    viewer = RowViewer(tokenizer, encode_as_is(tokenizer))
    shown = viewer.show(CompletionRow("ab", "cde", origin="rows:4"))
    assert counts(shown) == [("user", 3, 0, 0), ("assistant", 4, 4, 0)]
    told = viewer.show(TextRow("xyz", origin="rows:5"))
    assert told.turns == []
    assert text(told.sequences[0], trained=True) == f"xyz{EOS}"


def test_a_row_that_cannot_be_encoded_says_why() -> None:
    row = ConversationRow([{"role": "user", "content": "ab"}], origin="rows:6")
    shown = viewed(row)
    assert shown.problem == "there is no assistant turn to train on"
    assert shown.sequences == []


def test_turns_of_a_template_that_renders_earlier_ones_in_another_way() -> None:
    """Qwen3's drops the thinking of earlier turns, so no rendering of them alone is a prefix."""
    thought = "<think>\nso\n</think>\n\nab"
    turns = [("user", "q"), ("assistant", thought), ("user", "r"), ("assistant", "cd")]
    row = ConversationRow([{"role": role, "content": said} for role, said in turns], origin="r:1")
    shown = viewed(row, template="qwen3")
    (sequence,) = shown.sequences
    assert "so" not in text(sequence)
    assert [turn.role for turn in shown.turns] == [role for role, _ in turns]
    start = 0
    for turn, part in zip(shown.turns, ("q", "ab", "r", "cd")):
        tokens = sequence.tokens[start : start + turn.tokens]
        assert part in "".join(token.text for token in tokens)
        start += turn.tokens
    assert start == len(sequence.tokens)


def test_the_texts_of_tokens_join_to_the_text() -> None:
    tokenizer = byte_tokenizer()
    for said in ("plain", "é 你好 😀 x", "😀😀", "a\ufffdb", "", "\n \t"):
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids)
        assert "".join(texts) == said
    # the last byte of a character has it
    assert token_texts(tokenizer, tokenizer("é", add_special_tokens=False)["input_ids"]) == [
        "",
        "é",
    ]
