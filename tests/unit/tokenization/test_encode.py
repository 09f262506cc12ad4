"""Text to ids: which tokens are trained, where sequences start and stop, and what is refused."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import weakref
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow, TextRow
from aligner.errors import DataError, RecipeError
from aligner.tokenization.encode import (
    IGNORED,
    check_tokenizer,
    encode_pair,
    encode_prompt,
    encode_sft,
    stop_token_ids,
)
from aligner.tokenization.rendered import common_prefix, common_suffix
from tests.fakes import BOS, CHAT_TEMPLATE, EOS, START, byte_tokenizer, tiny_llama

TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]

MISTRAL = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
{{- bos_token -}}
{%- set questions = turns | selectattr('role', 'equalto', 'user') | list -%}
{%- for turn in turns -%}
    {%- if turn['role'] == 'user' -%}
        {{- '[INST] ' + (system if turn == questions[-1] else '') + turn['content'] + ' [/INST]' -}}
    {%- else -%}{{- ' ' + turn['content'] + eos_token -}}{%- endif -%}
{%- endfor -%}
"""
"""The system prompt stands in the last question, and there is no generation prompt."""

MOVED_SYSTEM = (
    MISTRAL.replace("[INST] ", "<start>user\\n")
    .replace(" [/INST]", "<eos>")
    .replace("' ' + turn", "'<start>assistant\\n' + turn")
    + "{%- if add_generation_prompt -%}{{- '<start>assistant\\n' -}}{%- endif -%}"
)
"""The same with headers and a generation prompt."""

DATED = CHAT_TEMPLATE.replace(
    "{{- bos_token -}}", "{{- bos_token + strftime_now('%Y-%m-%d') + '\\n' -}}"
)
DATED = DATED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def trained(tokenizer: Any, encoded: Any) -> list[str]:
    groups = itertools.groupby(
        zip(encoded.input_ids, encoded.labels), key=lambda pair: pair[1] != IGNORED
    )
    return [tokenizer.decode([token for token, _ in group]) for wanted, group in groups if wanted]


def talk(system: str | None = None, messages: list[dict[str, Any]] = TALK) -> ConversationRow:
    first = [] if system is None else [{"role": "system", "content": system}]
    return ConversationRow([*first, *messages], origin="rows.jsonl:4")


def pieces(**settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of the SentencePiece kind: it puts a space before every text."""
    letters = [
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "▁",
        *"abcdefghijklmnopqrstuvwxyz=+2467.:\n",
        "▁a",
        "▁four",
    ]
    merges = [("▁", "a"), ("▁", "f"), ("▁f", "o"), ("▁fo", "u"), ("▁fou", "r")]
    vocabulary = [*letters, "▁f", "▁fo", "▁fou"]
    core = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **settings,
    )


# --- conversations --------------------------------------------------------------------------------


def test_loss_on_chooses_the_turns() -> None:
    tokenizer = byte_tokenizer()
    assert trained(tokenizer, encode_sft(tokenizer, talk())) == ["Hello.<eos>", "See you.<eos>"]
    assert trained(tokenizer, encode_sft(tokenizer, talk(), "assistant")) == [
        "Hello.<eos>",
        "See you.<eos>",
    ]
    assert trained(tokenizer, encode_sft(tokenizer, talk(), "last_assistant")) == ["See you.<eos>"]
    row = CompletionRow(TALK[:3], TALK[3:], "rows.jsonl:4")
    assert trained(tokenizer, encode_sft(tokenizer, row)) == ["See you.<eos>"]
    assert trained(tokenizer, encode_sft(tokenizer, row, "completion")) == ["See you.<eos>"]
    assert trained(tokenizer, encode_sft(tokenizer, row, "assistant")) == [
        "Hello.<eos>",
        "See you.<eos>",
    ]
    everything = encode_sft(tokenizer, row, "all")
    assert everything.labels == [IGNORED, *everything.input_ids[1:]]
    assert everything.num_trained == len(everything.input_ids) - 1


def test_a_plain_prompt_is_one_user_turn_under_a_template() -> None:
    tokenizer = byte_tokenizer()
    assert encode_prompt(tokenizer, "Hi") == encode_prompt(tokenizer, TALK[:1])
    plain, turns = CompletionRow("Hi", "Hello."), CompletionRow(TALK[:1], TALK[1:2])
    assert encode_sft(tokenizer, plain) == encode_sft(tokenizer, turns)


@pytest.mark.parametrize(
    "template", [MISTRAL, MOVED_SYSTEM], ids=["no generation prompt", "generation prompt"]
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_system_prompt_that_moves_to_the_last_question_trains_no_question(
    template: str, system: str | None
) -> None:
    tokenizer = byte_tokenizer(template)
    tokenizer.add_tokens(["[INST]", "[/INST]"], special_tokens=True)
    spans = trained(tokenizer, encode_sft(tokenizer, talk(system)))
    assert [span.strip() for span in spans] == ["Hello.<eos>", "See you.<eos>"]


def test_two_dates_in_the_renderings_of_a_row_train_no_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = byte_tokenizer(DATED)
    render, days = tokenizer.apply_chat_template, iter("")

    def over_midnight(*messages: Any, **options: Any) -> str:
        return render(*messages, **options).replace("-", next(days), 2)

    encode_sft(tokenizer, talk())
    monkeypatch.setattr(tokenizer, "apply_chat_template", over_midnight)
    for midnight in range(1, 8):
        days = itertools.chain("-" * midnight, itertools.repeat("/"))
        encoded = encode_sft(tokenizer, talk())
        assert trained(tokenizer, encoded) == ["Hello.<eos>", "See you.<eos>"]
        days = itertools.chain("-" * midnight, itertools.repeat("/"))
        pair = encode_pair(tokenizer, PreferenceRow("Hi", "Yes", "No"))
        assert tokenizer.decode(pair.chosen_ids) == "Yes<eos>"
        assert tokenizer.decode(pair.rejected_ids) == "No<eos>"
        assert pair.prompt_ids[0] == tokenizer.bos_token_id


def test_a_template_that_never_renders_twice_alike_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = byte_tokenizer(DATED)
    render, number = tokenizer.apply_chat_template, itertools.count()
    encode_sft(tokenizer, talk())
    monkeypatch.setattr(
        tokenizer,
        "apply_chat_template",
        lambda *a, **k: render(*a, **k).replace("-", f"{next(number):05}"),
    )
    with pytest.raises(
        DataError, match=r"rows.jsonl:4: the chat template renders one conversation in two ways"
    ):
        encode_sft(tokenizer, talk())


def test_a_date_in_the_template_is_remarked() -> None:
    assert any("date" in remark for remark in check_tokenizer(byte_tokenizer(DATED)))
    assert check_tokenizer(byte_tokenizer()) == []


def test_several_templates_of_one_tokenizer_are_told_apart_by_tools() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {
        "default": CHAT_TEMPLATE,
        "tool_use": CHAT_TEMPLATE.replace("<start>", "<start>!"),
    }
    row = ConversationRow(TALK, [{"type": "function", "function": {"name": "f"}}], "rows.jsonl:4")
    assert trained(tokenizer, encode_sft(tokenizer, row)) == ["Hello.<eos>", "See you.<eos>"]
    assert "<start>!user" in tokenizer.decode(encode_sft(tokenizer, row).input_ids)


def test_a_greeting_by_the_assistant_trains_no_header() -> None:
    greeting = [{"role": "assistant", "content": "Welcome"}, *TALK]
    unmarked = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    for template in (CHAT_TEMPLATE, unmarked):
        tokenizer = byte_tokenizer(template)
        spans = trained(tokenizer, encode_sft(tokenizer, talk(messages=greeting)))
        assert spans == ["Welcome<eos>", "Hello.<eos>", "See you.<eos>"]


def test_what_is_wrong_with_a_row_names_it() -> None:
    tokenizer, base = byte_tokenizer(), byte_tokenizer(None)
    for encode, error, message in (
        (lambda: encode_sft(base, talk()), RecipeError, "rows.jsonl:4 is a conversation"),
        (
            lambda: encode_sft(tokenizer, talk(), "completion"),
            RecipeError,
            "rows.jsonl:4 is a conversation without",
        ),
        (
            lambda: encode_sft(tokenizer, talk(messages=TALK[:1])),
            DataError,
            "rows.jsonl:4: there is no assistant turn",
        ),
        (
            lambda: encode_sft(tokenizer, TextRow("x", "t:1"), "assistant"),
            RecipeError,
            "t:1 is plain text",
        ),
        (
            lambda: encode_sft(base, TextRow(f"{BOS}x", "t:1")),
            DataError,
            "t:1: the sequence starts with two",
        ),
        (
            lambda: encode_pair(tokenizer, PreferenceRow("a", "b", "b", origin="p:2")),
            DataError,
            "p:2: .* same tokens",
        ),
        (
            lambda: encode_pair(
                tokenizer, PreferenceRow(TALK[:1], TALK[1:], TALK[1:2], origin="p:3")
            ),
            DataError,
            "p:3: an answer has 3 turns",
        ),
        (
            lambda: encode_pair(base, PreferenceRow(TALK[:1], TALK[1:2], TALK[3:], origin="p")),
            RecipeError,
            "no chat",
        ),
    ):
        with pytest.raises(error, match=message):
            encode()


def test_a_template_that_writes_bos_beside_a_tokenizer_that_adds_it_starts_once() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    encoded = encode_sft(tokenizer, talk())
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    twice = byte_tokenizer("{{- bos_token -}}" + CHAT_TEMPLATE)
    with pytest.raises(DataError, match="two beginning-of-sequence tokens"):
        encode_sft(twice, talk())


# --- what is remembered of a tokenizer ------------------------------------------------------------


def test_a_changed_template_or_token_is_seen_at_once() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<done>"], special_tokens=True)
    done = tokenizer.convert_tokens_to_ids("<done>")
    assert stop_token_ids(tokenizer) == [tokenizer.eos_token_id]
    tokenizer.chat_template = CHAT_TEMPLATE.replace("eos_token", "'<done>'")
    assert stop_token_ids(tokenizer) == [tokenizer.eos_token_id, done]
    tokenizer.eos_token = "<done>"
    assert stop_token_ids(tokenizer) == [done]
    tokenizer.chat_template = CHAT_TEMPLATE.replace("eos_token", "'<later>'")
    with pytest.raises(RecipeError, match="no special token"):
        check_tokenizer(tokenizer)
    tokenizer.add_tokens(["<later>"], special_tokens=True)
    assert stop_token_ids(tokenizer) == [done, tokenizer.convert_tokens_to_ids("<later>")]


def test_a_tokenizer_that_nobody_uses_is_let_go() -> None:
    tokenizer = byte_tokenizer()
    encode_sft(tokenizer, talk())
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_stop_tokens_of_the_model_count_too() -> None:
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 3]
    assert stop_token_ids(tokenizer, model) == [tokenizer.eos_token_id, 3]


def test_missing_stop_tokens_are_refused_and_padding_that_ends_answers_is_fine() -> None:
    tokenizer = byte_tokenizer()
    row = ConversationRow([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    before = encode_sft(tokenizer, row)
    tokenizer.pad_token = EOS
    assert check_tokenizer(tokenizer) == []
    assert encode_sft(tokenizer, row) == before
    base = byte_tokenizer(None)
    base.eos_token = None
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        check_tokenizer(base)
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        encode_sft(base, TextRow("x"))


def test_one_token_for_start_and_end_is_fine() -> None:
    tokenizer = byte_tokenizer(None, adds_bos=False)
    tokenizer.bos_token = EOS
    encoded = encode_sft(tokenizer, TextRow(f"{EOS}{EOS}x"))
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    tokenizer.chat_template = CHAT_TEMPLATE
    assert trained(tokenizer, encode_sft(tokenizer, talk())) == ["Hello.<eos>", "See you.<eos>"]


# --- plain text -----------------------------------------------------------------------------------


def test_plain_text_starts_with_bos_and_ends_with_one_stop_token() -> None:
    tokenizer = byte_tokenizer(None)
    for text in ("x", f"x{EOS}"):
        assert tokenizer.decode(encode_sft(tokenizer, TextRow(text)).input_ids) == "<bos>x<eos>"
    row = CompletionRow("2+2=", f"4{EOS}", "rows:1")
    assert trained(tokenizer, encode_sft(tokenizer, row)) == ["4<eos>"]
    pair = encode_pair(tokenizer, PreferenceRow("2+2=", "4", "5"))
    assert pair.prompt_ids == encode_prompt(tokenizer, "2+2=")
    assert [tokenizer.decode(ids) for ids in (pair.chosen_ids, pair.rejected_ids)] == [
        "4<eos>",
        "5<eos>",
    ]


def test_an_eos_that_the_tokenizer_adds_ends_no_prompt() -> None:
    tokenizer = byte_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 1), (EOS, 2)]
    )
    assert tokenizer.decode(encode_prompt(tokenizer, "2+2=")) == "<bos>2+2="
    assert tokenizer.decode(encode_prompt(tokenizer, f"2+2={EOS}")) == "<bos>2+2=<eos>"
    row = CompletionRow("2+2=", "4")
    assert tokenizer.decode(encode_sft(tokenizer, row).input_ids) == "<bos>2+2=4<eos>"
    assert tokenizer.decode(encode_sft(tokenizer, TextRow("x")).input_ids) == "<bos>x<eos>"


def test_no_space_comes_between_prompt_and_answer() -> None:
    tokenizer = pieces()
    encoded = encode_sft(tokenizer, CompletionRow("2+2=", "4"))
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == ["<s>", "▁", *"2+2=4", "</s>"]
    assert trained(tokenizer, encoded) == ["4</s>"]
    spaced = encode_sft(tokenizer, CompletionRow("2+2=", " four"))
    assert tokenizer.convert_ids_to_tokens(spaced.input_ids)[-2:] == ["▁four", "</s>"]


def test_the_prompt_of_plain_text_is_what_is_asked_even_where_tokens_would_merge() -> None:
    tokenizer = pieces()
    assert len(tokenizer("2+2= four")["input_ids"]) < len(tokenizer("2+2= f")["input_ids"]) + 3
    for answer in ("our", "ive"):
        encoded = encode_sft(tokenizer, CompletionRow("2+2= f", answer))
        asked = encode_prompt(tokenizer, "2+2= f")
        assert encoded.input_ids[: len(asked)] == asked
        assert all(label == IGNORED for label in encoded.labels[: len(asked)])


def test_a_template_over_a_tokenizer_of_the_sentencepiece_kind_trains_answers_only() -> None:
    template = CHAT_TEMPLATE.replace("<start>", "").replace("{%- generation -%}", "")
    template = (
        template.replace("{%- endgeneration -%}", "")
        .replace("assistant\\n", "assistant:\\n")
        .replace("'\\n'", "':\\n'")
    )
    tokenizer = pieces(chat_template=template)
    messages = [
        {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "four"))
    ] * 2
    spans = trained(tokenizer, encode_sft(tokenizer, ConversationRow(messages)))
    assert [span.strip() for span in spans] == ["four</s>", "four</s>"]


def test_a_tokenizer_in_python_is_read_like_a_fast_one() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer(extra_ids=2)
    assert not tokenizer.is_fast
    tokenizer.add_tokens([START], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("bos_token", "''")
    spans = trained(tokenizer, encode_sft(tokenizer, talk()))
    assert spans == ["Hello.</s>", "See you.</s>"]
    assert tokenizer.decode(encode_sft(tokenizer, CompletionRow("a", "b")).input_ids).endswith(
        "b</s>"
    )


# --- small parts ----------------------------------------------------------------------------------


def test_common_prefix_and_suffix_count_shared_items() -> None:
    for left, right, shared in (
        ([], [1], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 4], [1, 2, 3], 2),
        ([0], [1], 0),
    ):
        assert common_prefix(left, right) == common_prefix(right, left) == shared
        assert common_suffix(left[::-1], right[::-1]) == shared
    assert common_prefix("abcdefg", "abcdxfg") == 4


def test_importing_chat_loads_nothing_heavy() -> None:
    program = (
        "import sys, aligner.tokenization.encode, aligner.models.loading\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'tokenizers', 'jinja2', 'datasets'} & "
        "set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
