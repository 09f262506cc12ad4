"""Every chat template that TRL ships, plain and `_training`: each answer, its stop token, and
nothing else is trained.

Real tokenizers of these models cannot be had here. A byte-level tokenizer (with and without merges)
stands in, with the special tokens that the template writes; BOS and EOS are those of the family.
The tables below say what a template adds to an answer, and which templates cannot be trained on and
why.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow
from aligner.errors import DataError, RecipeError
from aligner.models.saved_tokenizer import without_marks
from aligner.tokenization.chat_template import facts_of
from aligner.tokenization.encode import (
    IGNORED,
    check_tokenizer,
    encode_answer,
    encode_pair,
    encode_prompt,
    encode_sft,
    stop_token_ids,
)
from aligner.tokenization.rendered import Rendered

spec = find_spec("trl")
assert spec is not None
assert spec.submodule_search_locations
FOLDER = Path(next(iter(spec.submodule_search_locations))) / "chat_templates"

SPECIAL = re.compile(
    r"<\|[^|<>{}\s]+\|>|<｜[^｜<>]+｜>|<\|?[a-z_/]+\|?>|</?[A-Z_]+>|\[/?[A-Z]+\]|\[gMASK\]|</s>"
)
MARK = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)

BOS_EOS = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": ("<bos>", "<eos>"),
    "gemma": ("<bos>", "<eos>"),
    "glm4moe": (None, "<|endoftext|>"),
    "gptoss": ("<|startoftext|>", "<|return|>"),
    "idefics3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "lfm2": ("<|startoftext|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "llava": ("<s>", "</s>"),
    "muse": ("<|begin|>", "<|eot|>"),
    "nemotron": ("<s>", "<|im_end|>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "qwen": (None, "<|endoftext|>"),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>"),
}
"""Start of a template's name -> BOS and EOS. Qwen, Llama, Gemma and Phi have the base model's EOS,
not the turn's."""

CLOSING = {
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma4": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "llama3": "<|eot_id|>",
    "muse": "<|eot|>",
    "phi3": "<|end|>",
    "": "<|im_end|>",
}
"""Start of a template's name -> what closes an answer."""

OPENING = {
    "glm4moe": "\n<think></think>\n",
    "gptoss": "<|channel|>final<|message|>",
    "muse": " to=user<|message|>",
    "nemotron": "</think>",
    "qwen3_5_think": "(\n</think>\n\n)?",
    "qwen3_6": "(\n</think>\n\n)?",
    "qwen3_8": "\n</think>\n\n",
    "qwen3": "(<think>\n\n</think>\n\n)?",
}
"""Start of a template's name -> what the template writes between its generation prompt and an
answer: trained too."""

UNFIT = {
    "glm4moe": "ends an answer with no special token",  # the next turn's header is the stop
    "idefics3": "nothing of an answer that is plain text",  # content must be a list of blocks
    "idefics3_training": "nothing of an answer that is plain text",
    "llava_next": "cannot render one question",
    "llava_next_training": "cannot render one question",
    "smolvlm": "nothing of an answer that is plain text",
    "smolvlm_training": "nothing of an answer that is plain text",
}
"""Templates that nothing can be trained with, and what we say of them."""

NO_SYSTEM = ("gemma", "gemma_training")
ALTERNATING = ("cohere", "cohere_training", "cohere2", "cohere2_training")
ALTERNATING += ("gemma", "gemma_training", "gemma3", "gemma3_training")
NO_TOOLS = (
    "phi3",
    "llama3",
    "llama3_training",
    "lfm2",
    "lfm2_training",
    "qwen2_5_vl",
    "deepseek_r1_distill",
)
NO_TOOLS += ("idefics3", "smolvlm", "llava_next", *ALTERNATING)
"""Templates that leave tool calls out, or refuse them."""

OPENS_OTHERWISE = ("deepseek", "nemotron")
"""Their generation prompt opens a think block that a row without thoughts does not have, or closes
at once."""

NAMES = sorted(file.stem for file in FOLDER.glob("*.jinja"))
FIT = [name for name in NAMES if name not in UNFIT]
CORPUS = ["the answer is here and there, I think, yes.\n\nWhat? assistant user system model\n"] * 3


def of_family(table: dict[str, Any], name: str) -> Any:
    return next((value for start, value in table.items() if name.startswith(start)), "")


def read(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@lru_cache(maxsize=256)
def tokenizer_for(
    name: str,
    merges: bool = False,
    marks: bool = True,
    swallow: bool = False,
    thoughts: bool = True,
) -> Any:
    """`thoughts` false: `<think>` is no token of its own, as in models that were not made for
    it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=merges)
    core.decoder = decoders.ByteLevel()
    if merges:
        core.train_from_iterator(
            CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters)
        )
    bos, eos = of_family(BOS_EOS, name)
    template = read(name)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token="<PADDING>",
        clean_up_tokenization_spaces=False,
    )
    found = sorted(set(SPECIAL.findall(COMMENT.sub("", template))))
    found = [token for token in found if thoughts or "think>" not in token]
    tokenizer.add_tokens(
        [AddedToken(token, rstrip=swallow, normalized=False) for token in found],
        special_tokens=True,
    )
    tokenizer.chat_template = template if marks else without_marks(template)
    return tokenizer


def conversation(
    *answers: str, system: str | None = None, question: str = "Question {}?"
) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number, answer in enumerate(answers):
        messages.append({"role": "user", "content": question.format(number)})
        messages.append({"role": "assistant", "content": answer})
    return messages


def trained(tokenizer: Any, encoded: Any) -> list[str]:
    spans: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels):
        if label == IGNORED and spans[-1]:
            spans.append([])
        elif label != IGNORED:
            assert label == token
            spans[-1].append(token)
    return [tokenizer.decode(span) for span in spans if span]


def check_answers(name: str, spans: list[str], answers: list[str]) -> None:
    """Each span is the answer, opened and closed as the tables say."""
    assert len(spans) == len(answers)
    for place, (span, answer) in enumerate(zip(spans, answers)):
        closing = of_family(CLOSING, name)
        if name.startswith("gptoss") and place < len(answers) - 1:
            closing = ""  # earlier turns end with <|end|>, which does not end a generation
        assert span.endswith(closing)
        body = span.removesuffix(closing)
        opening = re.match(of_family(OPENING, name).replace("|", r"\|"), body)
        assert opening is not None
        kept = body[opening.end() :]
        assert kept in answer
        assert kept.strip() == answer.strip()


CONVERSATIONS = {
    "one turn": conversation("Forty-two."),
    "three turns": conversation("One.", "Two", "three: 3"),
    "system": conversation("Yes.", "No.", system="Be brief."),
    "unicode": conversation("naïve 数学 🙂", "Ωmega e\u0301", question="Größe {} 好?"),
    "blanks": conversation("  lead and trail \n", "\n\nlines\n\n", question=" {} \n"),
    "nearly empty": conversation(".", "0"),
    "roles as text": conversation(
        "user\nassistant\nmodel", "assistant: no", question="assistant\n{}\nuser\n"
    ),
    "repeated": conversation("a", "b", "a", question="a"),
}


@pytest.mark.parametrize("merges", [False, True], ids=["bytes", "merges"])
@pytest.mark.parametrize("name", FIT)
def test_only_answers_and_their_stop_tokens_are_trained(name: str, merges: bool) -> None:
    tokenizer = tokenizer_for(name, merges)
    for kind in ("three turns", "unicode", "roles as text") if merges else CONVERSATIONS:
        if kind == "system" and name in NO_SYSTEM:
            continue
        messages = CONVERSATIONS[kind]
        encoded = encode_sft(tokenizer, ConversationRow(messages, origin="rows:1"))
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        check_answers(name, trained(tokenizer, encoded), answers)
        last = encode_sft(tokenizer, ConversationRow(messages, origin="rows:1"), "last_assistant")
        assert last.input_ids == encoded.input_ids
        check_answers(name, trained(tokenizer, last), answers[-1:])


@pytest.mark.parametrize("name", FIT)
def test_header_and_stop_token_in_the_text_of_a_turn_mislead_nothing(name: str) -> None:
    tokenizer = tokenizer_for(name)
    opening, stop = (
        tokenizer.decode(facts_of(tokenizer).opening),
        tokenizer.decode([facts_of(tokenizer).stop]),
    )
    opening = opening.split("<think>")[0].strip()
    inside = (
        "" if name.startswith("gptoss") else stop
    )  # there an earlier answer would end at the first <|return|>
    messages = conversation(
        f"see {opening} x", f"one{inside}two", "end", question=f"{opening}fake{stop}{{}}"
    )
    encoded = encode_sft(tokenizer, ConversationRow(messages, origin="rows:1"))
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    check_answers(name, trained(tokenizer, encoded), answers)


@pytest.mark.parametrize("merges", [False, True], ids=["bytes", "merges"])
@pytest.mark.parametrize("name", FIT)
def test_what_is_asked_is_what_is_trained_on(name: str, merges: bool) -> None:
    tokenizer = tokenizer_for(name, merges)
    messages = conversation("First.", "Second.")
    asked = encode_prompt(tokenizer, messages[:-1])
    row = CompletionRow(messages[:-1], messages[-1:], origin="rows:1")
    encoded = encode_sft(tokenizer, row)
    check_answers(name, trained(tokenizer, encoded), ["Second."])
    start = next(place for place, label in enumerate(encoded.labels) if label != IGNORED)
    assert encoded.input_ids[:start] == asked[:start]
    given_up = tokenizer.decode(asked[start:])
    allowed = ("<think>\n", "\n") if name.startswith(OPENS_OTHERWISE) or merges else ("",)
    assert given_up in ("", *allowed)


@pytest.mark.parametrize("name", [name for name in FIT if MARK.search(COMMENT.sub("", read(name)))])
def test_marks_and_comparison_find_the_same_tokens(name: str) -> None:
    assert facts_of(tokenizer_for(name)).marked
    for merges in (False, True):
        marked, compared = tokenizer_for(name, merges), tokenizer_for(name, merges, marks=False)
        assert not facts_of(compared).marked
        for kind, messages in CONVERSATIONS.items():
            if kind == "system" and name in NO_SYSTEM:
                continue
            row = ConversationRow(messages, origin="rows:1")
            assert encode_sft(marked, row) == encode_sft(compared, row), kind


def without_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rendered, "place", lambda self, character: None)


@pytest.mark.parametrize("name", [name for name in FIT if not name.endswith("_training")])
def test_prefixes_of_texts_and_of_tokens_give_the_same_spans(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_for(name, merges=True)
    rows = [
        ConversationRow(CONVERSATIONS[kind], origin="rows:1")
        for kind in ("unicode", "blanks", "repeated")
    ]
    quick = [encode_sft(tokenizer, row) for row in rows]
    without_offsets(monkeypatch)
    assert [encode_sft(tokenizer, row) for row in rows] == quick


@pytest.mark.parametrize(
    "name", [name for name in FIT if name.startswith(("phi3", "llama3", "qwen2_5"))]
)
def test_special_tokens_that_swallow_white_space_behind_them_shift_no_span(name: str) -> None:
    tokenizer = tokenizer_for(name, swallow=True)
    for messages in (
        conversation("First.", "Second."),
        conversation("\n led by a newline", " and a blank"),
    ):
        encoded = encode_sft(tokenizer, ConversationRow(messages, origin="rows:1"))
        answers = [turn["content"].strip() for turn in messages[1::2]]
        assert [span.split("<|")[0].strip() for span in trained(tokenizer, encoded)] == answers


@pytest.mark.parametrize("name", FIT)
def test_pairs_are_renderings_that_start_once_and_end_with_the_stop_token(name: str) -> None:
    tokenizer = tokenizer_for(name)
    prompt = conversation("Right.")[:1]
    row = PreferenceRow(
        prompt, [{"role": "assistant", "content": "Good one."}], "Bad", origin="rows:1"
    )
    pair = encode_pair(tokenizer, row)
    closing = of_family(CLOSING, name)
    for ids, answer in ((pair.chosen_ids, "Good one."), (pair.rejected_ids, "Bad")):
        whole = tokenizer.apply_chat_template(
            [*prompt, {"role": "assistant", "content": answer}], tokenize=True, return_dict=False
        )
        sequence = pair.prompt_ids + ids
        assert whole[: len(sequence)] == sequence
        assert ids[-1] in stop_token_ids(tokenizer)
        assert tokenizer.decode(ids).endswith(answer + closing)
        if tokenizer.bos_token is not None and name != "smolvlm":
            assert sequence.count(tokenizer.bos_token_id) == (tokenizer.bos_token_id in whole)
    asked = encode_prompt(tokenizer, prompt)
    assert asked[: len(pair.prompt_ids)] == pair.prompt_ids
    assert tokenizer.decode(asked[len(pair.prompt_ids) :]) in ("", "<think>\n", "\n")


BEGINNINGS = ("<", "<think", "assistant", "\n<", " ")
"""How answers may begin: like the end of a generation prompt or of a header, or with blanks."""


@pytest.mark.parametrize(
    "merges", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["bytes", "merges"]
)
@pytest.mark.parametrize("name", FIT)
def test_an_answer_is_trained_from_its_first_token_however_it_begins(
    name: str, merges: bool
) -> None:
    """Also where `<think>`, with which some generation prompts end, is several tokens."""
    tokenizer = tokenizer_for(name, merges, thoughts=False)
    for beginning in BEGINNINGS:
        answer = f"{beginning}B C"
        messages = conversation(answer, answer)
        row = ConversationRow(messages, origin="rows:1")
        check_answers(name, trained(tokenizer, encode_sft(tokenizer, row)), [answer, answer])
        prompt, (before, ids) = messages[:-1], encode_answer(tokenizer, messages[:-1], answer)
        check_answers(name, [tokenizer.decode(ids)], [answer])
        pair = encode_pair(tokenizer, PreferenceRow(prompt, answer, "Q", origin="rows:1"))
        check_answers(name, [tokenizer.decode(pair.chosen_ids)], [answer])
        check_answers(name, [tokenizer.decode(pair.rejected_ids)], ["Q"])
        for start in (before, pair.prompt_ids):
            asked = encode_prompt(tokenizer, prompt)
            assert asked[: len(start)] == start
            assert tokenizer.decode(asked[len(start) :]) in ("", "\n", "<think>\n", "think>\n")


@pytest.mark.parametrize("name", FIT)
def test_all_trains_everything_but_the_first_token(name: str) -> None:
    tokenizer = tokenizer_for(name)
    encoded = encode_sft(tokenizer, ConversationRow(conversation("Yes."), origin="rows:1"), "all")
    assert encoded.labels == [IGNORED, *encoded.input_ids[1:]]


@pytest.mark.parametrize("name", UNFIT)
def test_a_template_that_nothing_can_be_trained_with_says_why(name: str) -> None:
    tokenizer = tokenizer_for(name)
    row = ConversationRow(conversation("Yes."), origin="rows:1")
    for use in (lambda: check_tokenizer(tokenizer), lambda: encode_sft(tokenizer, row)):
        with pytest.raises(RecipeError, match=UNFIT[name]):
            use()


@pytest.mark.parametrize("name", FIT)
def test_a_template_is_accepted_and_its_stop_token_is_known(name: str) -> None:
    tokenizer = tokenizer_for(name)
    remarks = check_tokenizer(tokenizer)
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer))
    assert of_family(CLOSING, name).endswith(stops[-1])
    assert set(stops) <= {tokenizer.eos_token, stops[-1]}
    assert any("when the model is asked" in remark for remark in remarks) == name.startswith(
        OPENS_OTHERWISE
    )


@pytest.mark.parametrize("name", FIT)
def test_what_a_template_refuses_names_the_row(name: str) -> None:
    tokenizer = tokenizer_for(name)
    twice = [{"role": "user", "content": "One."}, *conversation("Yes.")]
    if name in ALTERNATING:
        with pytest.raises(
            DataError, match=r"rows:7: the chat template refuses this conversation: .*alternate"
        ):
            encode_sft(tokenizer, ConversationRow(twice, origin="rows:7"))
    else:
        check_answers(
            name,
            trained(tokenizer, encode_sft(tokenizer, ConversationRow(twice, origin="rows:7"))),
            ["Yes."],
        )
    if name in NO_SYSTEM:
        with pytest.raises(DataError, match=r"rows:8: .*System role not supported"):
            encode_sft(
                tokenizer, ConversationRow(conversation("Yes.", system="Be."), origin="rows:8")
            )


CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
}
TOOL = {
    "name": "weather",
    "description": "Says what the sky does.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "where"}},
        "required": ["city"],
    },
}


@pytest.mark.parametrize("name", FIT)
def test_calls_of_tools_are_trained_and_their_results_are_not(name: str) -> None:
    tokenizer = tokenizer_for(name)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "drizzle", "name": "weather", "tool_call_id": "c1"},
        *conversation("No.", "Bye.")[1:],
    ]
    row = ConversationRow(messages, [{"type": "function", "function": TOOL}], origin="rows:3")
    if name.removesuffix("_training") in NO_TOOLS or name.startswith("phi3"):
        with pytest.raises(DataError, match=r"rows:3: the chat template (refuses|writes nothing)"):
            encode_sft(tokenizer, row)
        return
    spans = trained(tokenizer, encode_sft(tokenizer, row))
    assert len(spans) == 3
    assert all(part in spans[0] for part in ("weather", "Oslo"))
    assert not any("drizzle" in span for span in spans)
    assert [answer in span for answer, span in zip(("No.", "Bye."), spans[1:])] == [True, True]
    assert '\\"' not in spans[0], "the arguments were encoded twice"
    assert "{'" not in spans[0], "Python in place of JSON"
