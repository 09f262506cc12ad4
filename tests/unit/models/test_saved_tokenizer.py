"""The tokenizer of a result: the base's files byte for byte, and of them only what the recipe
changed in another form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from aligner.config.recipe import Model
from aligner.data.rows import ConversationRow
from aligner.models.saved_tokenizer import SavedTokenizer, without_marks
from aligner.models.tokenizers import load_tokenizer
from aligner.tokenization.encode import encode_sft
from tests.fakes import BOS, CHAT_TEMPLATE, EOS, START, byte_tokenizer

PLAIN = without_marks(CHAT_TEMPLATE)
MESSAGES = [
    {"role": role, "content": text}
    for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder as older tools write it: other blanks, keys that nobody reads, special tokens in a
    file of their own."""
    folder = tmp_path / "base"
    tokenizer = byte_tokenizer(PLAIN)
    tokenizer.pad_token = EOS
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({"odd": "ü", **config}, indent=7))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": EOS, "lstrip": False}})
    )
    (folder / "tokenizer.json").write_text(
        json.dumps(json.loads((folder / "tokenizer.json").read_text()))
    )
    (folder / "model.safetensors").write_text("no tokenizer's")
    return folder


def saved(base: Path, **settings: Any) -> Path:
    section = Model(name_or_path=str(base), **settings)
    folder = base.parent / "final"
    folder.mkdir(exist_ok=True)
    SavedTokenizer(load_tokenizer(section, needs_model=False), section).save_pretrained(folder)
    return folder


def changed(base: Path, folder: Path) -> list[str]:
    before, after = (
        {file.name: file.read_bytes() for file in place.iterdir() if file.suffix != ".safetensors"}
        for place in (base, folder)
    )
    assert before.keys() == after.keys()
    return sorted(name for name in before if before[name] != after[name])


def test_what_the_recipe_leaves_alone_is_saved_byte_for_byte(base: Path) -> None:
    assert changed(base, saved(base)) == []
    assert changed(base, saved(base, eos_token=EOS, pad_token=EOS, new_tokens=["a"])) == []


def test_a_named_token_changes_its_own_value_and_nothing_else(base: Path) -> None:
    folder = saved(base, eos_token=START, pad_token=BOS)
    assert changed(base, folder) == ["special_tokens_map.json", "tokenizer_config.json"]
    old, new = (
        json.loads((place / "tokenizer_config.json").read_text()) for place in (base, folder)
    )
    assert new == {**old, "eos_token": START, "pad_token": BOS}
    again = AutoTokenizer.from_pretrained(folder)
    assert (again.eos_token, again.pad_token) == (START, BOS)


@pytest.mark.parametrize("settings", [{"new_tokens": ["<think>"]}, {"eos_token": "~"}], ids=str)
def test_new_tokens_and_words_that_became_tokens_come_back(
    settings: dict[str, Any], base: Path
) -> None:
    folder = saved(base, **settings)
    section = Model(name_or_path=str(base), **settings)
    text = "a<think>b~c"
    assert (
        AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        == load_tokenizer(section, needs_model=False)(text)["input_ids"]
    )
    assert "<|pad|>" not in (folder / "tokenizer.json").read_text()


def test_padding_that_is_only_used_here_is_not_written(base: Path) -> None:
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    assert changed(base, saved(base)) == []
    assert AutoTokenizer.from_pretrained(saved(base, new_tokens=["<new>"])).pad_token is None


def plainly(template: str) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=MESSAGES, bos_token=BOS, eos_token=EOS)


LINES = """\
{# marked by {% generation %} #}
{% for message in messages %}
  {% if message.role == 'assistant' %}
    {%+ generation %}
  {{ message.content }}
    {%- endgeneration +%}
  {% else %}{{ message.content }}{% generation -%} {% endgeneration %}
  {% endif %}
{% endfor %}
"""


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LINES], ids=["blanks taken", "lines"])
def test_plain_jinja_reads_a_saved_template_and_writes_the_same(template: str, base: Path) -> None:
    (base / "chat_template.jinja").write_text(template, newline="")
    folder = saved(base)
    assert changed(base, folder) == ["chat_template.jinja"]
    expected = AutoTokenizer.from_pretrained(base).apply_chat_template(MESSAGES, tokenize=False)
    assert plainly((folder / "chat_template.jinja").read_text()) == expected


def test_a_result_is_trained_on_with_the_masks_of_its_base(base: Path) -> None:
    (base / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    first = Model(name_or_path=str(base))
    again = Model(name_or_path=str(saved(base)))
    row = ConversationRow([*MESSAGES, {"role": "assistant", "content": " d"}])
    found = [
        encode_sft(load_tokenizer(section, needs_model=False), row) for section in (first, again)
    ]
    assert found[0] == found[1]
    assert found[0].num_trained == 5


def test_a_template_of_the_recipe_stands_where_the_base_has_its_own(
    base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jinja"
    other.write_text("{% generation %}{{ messages[0].content }}<eos>{% endgeneration %}")
    wanted = "{# generation #}{{ messages[0].content }}<eos>{# endgeneration #}"
    folder = saved(base, chat_template=str(other))
    assert changed(base, folder) == ["chat_template.jinja"]
    assert (folder / "chat_template.jinja").read_text() == wanted
    (base / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").unlink()
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": CHAT_TEMPLATE})
    )
    saved(base, chat_template=str(other))
    assert changed(base, folder) == ["tokenizer_config.json"]
    assert AutoTokenizer.from_pretrained(folder).chat_template == wanted
    saved(base)
    assert AutoTokenizer.from_pretrained(folder).chat_template == PLAIN
