"""From text to token ids and loss masks: the only place where that happens.

Everything that trains, generates or scores asks this module, so the ids that a model is trained on
are the ids that it sees when it answers. How a chat template is read, and where the answers lie in
a rendered conversation, stands in `aligner.tokenization.chat_template`.

A trained turn always ends with its stop token, and nothing behind that (the newline that many
templates add) is trained. Masks are never built by comparing ids with the pad id.

Plain text. Prompt and completion are one text; the prompt's ids are those that it has alone, since
at generation it stands alone too. Where the tokenizer would merge across the boundary, the
completion is tokenized apart.

Legend: a `label` is a token id, or -100 where the token is not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aligner.data.rows import (
    VARIABLES,
    WEIGHT,
    CompletionRow,
    ConversationRow,
    Messages,
    PreferenceRow,
    TextRow,
    as_turns,
    variables_of,
)
from aligner.errors import DataError, RecipeError
from aligner.tokenization.chat_template import (
    NO_STOP_HINT,
    QUESTION,
    Conversation,
    TemplateInfo,
    UnstableTemplateError,
    answer_span,
    answer_spans,
    facts_of,
    has_template,
    text_ids,
)
from aligner.tokenization.control_tokens import reader_of
from aligner.tokenization.rendered import Span
from aligner.tokenization.turns import turns_of, wanted_turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.config.recipe import LossOn

IGNORED = -100
"""Label of a token that is not trained."""

RENDERINGS = 3
"""How often a conversation is rendered again when its template wrote two dates, before we give
up."""

T = TypeVar("T")

Ready = Sequence[Conversation]
"""The conversations of a row, rendered ahead together with those of other rows
(`aligner.tokenization.ahead`); empty where they were not."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row for supervised fine-tuning: `input_ids` and `labels`, both of shape (T,)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_trained(self) -> int:
        """Labels that count: the first position predicts nothing, so its label never does."""
        return len(self.labels) - 1 - self.labels[1:].count(IGNORED) if self.labels else 0


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference pair: the sequences are `prompt_ids + chosen_ids` and `prompt_ids +
    rejected_ids`."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    tools: list | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the ids that generation conditions on, with the generation prompt of the template
    added.

    A plain string is sent as one user message where the tokenizer has a chat template, and as it
    stands elsewhere.
    """
    if not has_template(tokenizer):
        _refuse_plain_tools(tools, "", variables)
        return _plain_ids(tokenizer, _as_text(prompt))
    turns = as_turns(prompt, "user")
    return Conversation(tokenizer, turns, tools, variables=variables or {}).ids(opened=True)


def encode_sft(
    tokenizer: PreTrainedTokenizerBase, row: Any, loss_on: LossOn = "auto", ready: Ready = ()
) -> Encoded:
    """Return ids and labels of a `ConversationRow`, `CompletionRow` or `TextRow`.

    `loss_on` is `assistant` (every assistant turn), `last_assistant`, `completion`, `all`, or
    `auto`: assistant turns of conversations, completions of prompt/completion rows, everything of
    plain text.

    Raises: DataError naming the row, when a mask would hold no token, leave the stop token out, or
    when a sequence starts twice. RecipeError when `loss_on` does not fit the form of the row.
    """
    if isinstance(row, TextRow):
        encoded = _encode_text(tokenizer, row, loss_on)
    elif has_template(tokenizer):
        if not ready:
            _refuse_unfit(facts_of(tokenizer))

        def encode(ready: Ready) -> Encoded:
            return _encode_turns(tokenizer, row, loss_on, ready)

        encoded = _steadily(row.origin, encode, ready)
    elif isinstance(row, CompletionRow):
        encoded = _encode_plain_completion(tokenizer, row, loss_on)
    else:
        raise RecipeError(
            f"{row.origin} is a conversation, but the tokenizer has no chat template",
            "name one with model.chat_template (a Jinja file, or a name such as qwen3), or train "
            "on prompt/completion",
        )
    _check_start(tokenizer, encoded.input_ids, row.origin)
    if encoded.num_trained == 0:
        raise DataError(
            f"{row.origin}: no token of this row would be trained", "check the row, or sft.loss_on"
        )
    return encoded


def length_of(tokenizer: PreTrainedTokenizerBase, row: ConversationRow | CompletionRow) -> int:
    """Return how many tokens `encode_sft` gives for a row, without asking which of them are
    trained."""
    if has_template(tokenizer):
        return len(Conversation.of_row(tokenizer, turns_of(row)[0], row).ids())
    return len(encode_sft(tokenizer, row).input_ids)


def keeps_texts(tokenizer: PreTrainedTokenizerBase, row: ConversationRow | CompletionRow) -> bool:
    """Say whether the last question and its answer come through the chat template unchanged inside
    longer texts.

    Some templates take an answer apart: Qwen3's drops what stands before `</think>`. One that
    refuses the longer texts does not keep them.
    """
    messages, _ = turns_of(row)
    longer = [{**message, "content": f"x\n{message['content']}\nx"} for message in messages[-2:]]
    whole = [*messages[:-2], *longer]
    try:
        text = Conversation.of_row(tokenizer, whole, row).text(whole)
    except DataError:
        return False
    return all(message["content"] in text for message in longer)


def encode_pair(tokenizer: PreTrainedTokenizerBase, row: PreferenceRow, ready: Ready = ()) -> Pair:
    """Return prompt, chosen and rejected ids; both answers end with a stop token.

    `prompt_ids` is what `encode_prompt` gives, or less of its end where the template opens a
    finished answer in another way, or where the last token of the prompt merges with the answer.

    Raises: DataError naming the row, when an answer never stops, or the answers are the same
    tokens.
    """
    if has_template(tokenizer):
        if not ready:
            _refuse_unfit(facts_of(tokenizer))

        def encode(ready: Ready) -> Pair:
            return _encode_template_pair(tokenizer, row, ready)

        pair = _steadily(row.origin, encode, ready)
    else:
        _refuse_plain_tools(row.tools, row.origin, variables_of(row))
        prompt = _as_text(row.prompt)
        prompt_ids = _plain_ids(tokenizer, prompt)
        answers = [
            _answer_ids(tokenizer, prompt, prompt_ids, _as_text(side))
            for side in (row.chosen, row.rejected)
        ]
        pair = Pair(prompt_ids, answers[0], answers[1])
    _check_start(tokenizer, pair.prompt_ids, row.origin)
    if pair.chosen_ids == pair.rejected_ids:
        raise DataError(
            f"{row.origin}: chosen and rejected are the same tokens",
            "drop the row: it teaches nothing",
        )
    return pair


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    answer: str,
    origin: str = "",
    *,
    tail: bool = False,
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and those of an answer to it, which end with a stop token, as
    `encode_pair` gives them.

    With `tail`, what the chat template writes behind the stop token belongs to the answer too. An
    empty answer is its stop token alone.
    """
    if has_template(tokenizer):
        _refuse_unfit(facts_of(tokenizer))
        turns = as_turns(prompt, "user")

        def encode(_: Ready) -> tuple[list[int], Span, int]:
            opened = Conversation(tokenizer, turns, None, origin).text(turns, opened=True)
            chat = Conversation(tokenizer, [*turns, *as_turns(answer, "assistant")], None, origin)
            whole = chat.whole()
            return whole.ids, answer_span(chat, whole, len(turns), opened), len(whole.ids)

        ids, (start, stop), end = _steadily(origin, encode)
        return ids[:start], ids[start : end if tail else stop]
    prompt_ids = _plain_ids(tokenizer, _as_text(prompt))
    return prompt_ids, _answer_ids(tokenizer, _as_text(prompt), prompt_ids, answer)


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> list[int]:
    """Return every id that ends an answer: the tokenizer's, the one its template ends a turn with,
    the model's."""
    ids = [tokenizer.eos_token_id, facts_of(tokenizer).stop if has_template(tokenizer) else None]
    generation_config = getattr(model, "generation_config", None)
    ids += as_ids(getattr(generation_config, "eos_token_id", None))
    return list(dict.fromkeys(i for i in ids if i is not None))


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> list[str]:
    """Check what would spoil every row, before any is encoded; return remarks worth showing.

    Raises: RecipeError when there is no stop token, or a turn of the template ends with none.
    """
    if has_template(tokenizer):
        _refuse_unfit(facts_of(tokenizer))
    stops = stop_token_ids(tokenizer, model)
    if not stops:
        raise RecipeError(
            "the tokenizer has no end-of-sequence token", "name one with model.eos_token"
        )
    return list(_remarks(tokenizer))


def _refuse_unfit(facts: TemplateInfo) -> None:
    if facts.problem:
        raise RecipeError(facts.problem, NO_STOP_HINT)


# --- conversations --------------------------------------------------------------------------------


def _encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    row: ConversationRow | CompletionRow,
    loss_on: LossOn,
    ready: Ready,
) -> Encoded:
    messages, first_turn = turns_of(row)
    chat = ready[0] if ready else Conversation.of_row(tokenizer, messages, row)
    _refuse_unfit_variables(chat)
    wanted = wanted_turns(messages, first_turn, row, loss_on)
    if loss_on == "all":
        return _trained_but(chat)
    ids, spans = answer_spans(chat, wanted)
    for turn, (start, stop) in zip(wanted, spans):
        _check_tool_calls(chat, turn, ids[start:stop])
    return Encoded(ids, _labels(ids, spans))


def _refuse_unfit_variables(chat: Conversation) -> None:
    if chat.variables and chat.facts.problem:
        raise DataError(
            f"{chat.origin}: with the variables of this row, {chat.facts.problem}",
            f"check its column `{VARIABLES}`",
        )


def _check_tool_calls(chat: Conversation, turn: int, ids: list[int]) -> None:
    """Refuse a turn whose calls the template leaves out: the model would learn to say nothing
    there."""
    for call in chat.messages[turn].get("tool_calls") or ():
        name = call.get("function", call).get("name", "")
        if name not in chat.tokenizer.decode(ids):
            raise DataError(
                f"{chat.origin}: the chat template writes nothing of the tool call {name!r} in "
                f"turn {turn + 1}",
                "choose a template that knows tool calls (model.chat_template), or drop the row",
            )


def _labels(ids: list[int], spans: Iterable[Span]) -> list[int]:
    labels = [IGNORED] * len(ids)
    for start, stop in spans:
        labels[start:stop] = ids[start:stop]
    return labels


def _trained_whole(ids: list[int]) -> Encoded:
    return Encoded(ids, [IGNORED, *ids[1:]])


def _trained_but(chat: Conversation) -> Encoded:
    """Return a conversation that is trained whole, but for the answers that say otherwise."""
    left_out = [turn for turn, message in enumerate(chat.messages) if message.get(WEIGHT) == 0]
    for turn in left_out:
        if (role := chat.messages[turn]["role"]) != "assistant":
            raise DataError(
                f"{chat.origin}: turn {turn + 1}, of the {role}, has weight 0, and "
                "sft.loss_on=all trains every token",
                "use sft.loss_on=assistant, which trains no turn of others",
            )
    if not left_out:
        return _trained_whole(chat.whole().ids)
    ids, spans = answer_spans(chat, left_out)
    labels = [IGNORED, *ids[1:]]
    for start, stop in spans:
        labels[start:stop] = [IGNORED] * (stop - start)
    return Encoded(ids, labels)


def _encode_template_pair(
    tokenizer: PreTrainedTokenizerBase, row: PreferenceRow, ready: Ready
) -> Pair:
    prompt = as_turns(row.prompt, "user")
    first = ready[0] if ready else Conversation.of_row(tokenizer, prompt, row)
    _refuse_unfit_variables(first)
    opened = first.prefix(len(prompt), opened=True)
    sides, spans = [], []
    for side, answer in enumerate((row.chosen, row.rejected)):
        turns = as_turns(answer, "assistant")
        if len(turns) != 1:
            raise DataError(
                f"{row.origin}: an answer has {len(turns)} turns, and the tokens between them "
                "would be compared too",
                "put the earlier turns into the prompt, so that chosen and rejected are one "
                "answer each",
            )
        messages = [*prompt, *turns]
        chat = ready[side] if ready else Conversation.of_row(tokenizer, messages, row)
        whole = chat.whole()
        sides.append(whole.ids)
        spans.append(answer_span(chat, whole, len(prompt), opened))
        _check_tool_calls(chat, len(prompt), whole.ids[slice(*spans[-1])])
    cut = min(start for start, _ in spans)
    if sides[0][:cut] != sides[1][:cut]:
        raise UnstableTemplateError
    return Pair(sides[0][:cut], sides[0][cut : spans[0][1]], sides[1][cut : spans[1][1]])


def _steadily(origin: str, encode: Callable[[Ready], T], ready: Ready = ()) -> T:
    """Encode again when the renderings of a row disagree: a template that writes the date does so
    over midnight."""
    for _ in range(RENDERINGS):
        try:
            return encode(ready)
        except UnstableTemplateError:
            ready = ()
    raise DataError(
        f"{origin}: the chat template renders one conversation in two ways, so its prompt cannot "
        "be told from its answer",
        "choose another with model.chat_template",
    )


# --- plain text -----------------------------------------------------------------------------------


def _encode_text(tokenizer: PreTrainedTokenizerBase, row: TextRow, loss_on: LossOn) -> Encoded:
    if loss_on not in ("auto", "all"):
        raise RecipeError(
            f"sft.loss_on is {loss_on!r}, but {row.origin} is plain text without turns",
            "use sft.loss_on=all",
        )
    return _trained_whole(_with_stop(tokenizer, _plain_ids(tokenizer, row.text)))


def _encode_plain_completion(
    tokenizer: PreTrainedTokenizerBase, row: CompletionRow, loss_on: LossOn
) -> Encoded:
    _refuse_plain_tools(row.tools, row.origin, variables_of(row))
    prompt = _as_text(row.prompt)
    prompt_ids = _plain_ids(tokenizer, prompt)
    answer_ids = _answer_ids(tokenizer, prompt, prompt_ids, _as_text(row.completion))
    ids = prompt_ids + answer_ids
    if loss_on == "all":
        return _trained_whole(ids)
    return Encoded(ids, _labels(ids, [(len(prompt_ids), len(ids))]))


def _answer_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_ids: list[int], answer: str
) -> list[int]:
    """Return what the whole text adds to its prompt's ids; or those of the answer alone, when
    tokens merge across.

    A tokenizer of the SentencePiece kind would put a space before an answer that is tokenized
    alone.
    """
    whole = _plain_ids(tokenizer, prompt + answer)
    if whole[: len(prompt_ids)] == prompt_ids:
        return _with_stop(tokenizer, whole[len(prompt_ids) :])
    return _with_stop(tokenizer, text_ids(tokenizer, answer))


def _with_stop(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    stops = stop_token_ids(tokenizer)
    if not stops:
        raise RecipeError(
            "the tokenizer has no end-of-sequence token", "name one with model.eos_token"
        )
    return ids if ids and ids[-1] == stops[0] else [*ids, stops[0]]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that starts a sequence: with the tokenizer's BOS, without an EOS
    that it may add."""
    reader = reader_of(tokenizer)
    if reader is None:
        encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids = list(encoding["input_ids"])
    else:
        ids, encoding = reader.encode(text)
    added = list(encoding["special_tokens_mask"])
    while len(ids) > 1 and added[len(ids) - 1]:
        ids.pop()
    return ids


# --- checks and small parts -----------------------------------------------------------------------


def _check_start(tokenizer: PreTrainedTokenizerBase, ids: list[int], origin: str) -> None:
    """Refuse a sequence that starts with more than one BOS (template and tokenizer both added
    one)."""
    if len(ids) < 2 or ids[0] != ids[1] or ids[0] != tokenizer.bos_token_id:
        return
    if ids[0] not in stop_token_ids(tokenizer):
        raise DataError(
            f"{origin}: the sequence starts with two beginning-of-sequence tokens "
            f"({tokenizer.bos_token})",
            "remove the token from the text of the row",
        )


def _remarks(tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    if not has_template(tokenizer):
        yield "the tokenizer has no chat template: prompts and answers are joined as plain text"
        return
    plain, bos = _plain_ids(tokenizer, QUESTION), tokenizer.bos_token_id
    rendered = Conversation(tokenizer, as_turns(QUESTION, "user")).ids()
    if bos is not None and plain[:1] == [bos] and bos not in rendered:
        bos = tokenizer.bos_token
        yield f"the chat template writes no {bos}, which the tokenizer puts before plain text"
    facts = facts_of(tokenizer)
    if facts.opens_otherwise:
        yield (
            f"the chat template opens an answer with {tokenizer.decode(facts.opening)!r} when the "
            "model is asked; the end of "
            f"that, {facts.opens_otherwise!r}, is not in training rows, so answers are trained "
            "without it"
        )
    if "strftime_now" in str(tokenizer.chat_template):
        yield (
            "the chat template writes today's date: rows tokenized on another day are other tokens"
        )


def _refuse_plain_tools(tools: list | None, origin: str, variables: Any = None) -> None:
    if tools or variables:
        column = "tools" if tools else VARIABLES
        raise DataError(
            f"{origin or 'a prompt'} has `{column}`, and the tokenizer has no chat template to "
            "write them",
            "name one with model.chat_template (a Jinja file, or a name such as qwen3)",
        )


def _as_text(value: str | Messages) -> str:
    if isinstance(value, str):
        return value
    raise RecipeError(
        "the rows are conversations, but the tokenizer has no chat template",
        "name one with model.chat_template (a Jinja file, or a name such as qwen3)",
    )


def as_ids(value: int | list[int] | None) -> list[int]:
    """Return the ids that a configuration names in one of its ways."""
    return [] if value is None else [value] if isinstance(value, int) else list(value)
