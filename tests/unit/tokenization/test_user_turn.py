"""Where a chat template lets the user speak."""

from __future__ import annotations

import pytest

from aligner.errors import DataError, RecipeError
from aligner.tokenization.user_turn import text_of_ids, user_turn
from tests.fakes import byte_tokenizer

LOOP = "{% for message in messages %}"
CHATML = (
    "{% if messages[0].role != 'system' %}<start>system\nhelp<eos>\n{% endif %}"
    + LOOP
    + "<start>{{ message.role }}\n{{ message.content | trim }}<eos>\n{% endfor %}"
    + "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}"
    + LOOP
    + "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    + "{% elif message.role == 'system' %}{{ raise_exception('no system turn') }}"
    + "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ROLES = (
    LOOP + "{{ message.role | upper }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "text", "ends"),
    [
        (CHATML, "<start>system\nhelp<eos>\n<start>user\n", ("<eos>",)),
        (INST, "<bos>[INST]", ("[/INST]", "<eos>")),
        (ROLES, "USER:", ("ASSISTANT:", "<eos>")),
    ],
)
def test_a_turn_begins_before_the_users_words_and_ends_with_what_stands_behind(
    template: str, text: str, ends: tuple[str, ...]
) -> None:
    turn = user_turn(byte_tokenizer(template))
    assert (turn.text, turn.ends) == (text, ends)


def test_a_system_prompt_stands_above_it_or_is_refused() -> None:
    assert user_turn(byte_tokenizer(CHATML), "be odd").text.startswith("<start>system\nbe odd<eos>")
    with pytest.raises(DataError, match="no system turn"):
        user_turn(byte_tokenizer(INST), "be odd")


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_text_of_ids_has_one_start_token_whoever_writes_it(adds_bos: bool) -> None:
    """A tokenizer that adds the token itself must not find it in the text, too."""
    tokenizer = byte_tokenizer(INST, adds_bos=adds_bos)
    ids = user_turn(tokenizer).ids
    text = text_of_ids(tokenizer, ids)
    assert text == ("[INST]" if adds_bos else "<bos>[INST]")
    assert tuple(tokenizer(text)["input_ids"]) == ids
    assert ids.count(tokenizer.bos_token_id) == 1


def test_ids_that_no_text_gives_have_none() -> None:
    tokenizer = byte_tokenizer(ROLES)  # which adds a start token that the template does not write
    assert text_of_ids(tokenizer, user_turn(tokenizer).ids) is None


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ bos_token }}{% for message in messages %}<start>{% endfor %}", "0 times"),
        (LOOP + "{{ message.content }}<eos>{{ message.content }}{% endfor %}", "2 times"),
        (LOOP + "<start>{{ message.content }}{% endfor %}", "nothing behind"),
    ],
)
def test_a_template_without_a_place_for_the_user_is_refused(
    template: str | None, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        user_turn(byte_tokenizer(template))
