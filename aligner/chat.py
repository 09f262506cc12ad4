"""From text to token ids and loss masks: the only place where that happens.

Everything that trains, generates or scores asks this module, so the ids that a model is trained on are the ids that it
sees when it answers. The tokenizer's own chat template decides the form; we keep no list of templates.

How the assistant's tokens are found. A template with `{% generation %}` markers says itself. Any other template is
rendered twice more for each assistant turn: up to the turn with the generation prompt added, which gives the turn's
first token by comparing token prefixes, and once the turn is in, which gives its last. Where a template renders an
earlier turn differently once later ones follow (Qwen3 drops the thinking of earlier turns), the end is found by
comparing token suffixes with a rendering whose answer is another. Text is never searched for role names.

A trained turn always ends with its stop token, and nothing behind that (the newline that many templates add) is
trained. Masks are never built by comparing ids with the pad id.

Legend: a `label` is a token id, or -100 where the token is not trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aligner.data.rows import CompletionRow, ConversationRow, Messages, PreferenceRow, TextRow
from aligner.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.config.schema import LossOn

IGNORED = -100
"""Label of a token that is not trained."""

PROBE_USER, PROBE_ANSWERS = "x", ("a", "b")
MARKER = re.compile(r"\{%-?\s*generation\b")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row for supervised fine-tuning: `input_ids` and `labels`, both of shape (T,)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_trained(self) -> int:
        """Labels that count: the first position predicts nothing, so its label never does."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference pair: the sequences are `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids`."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, tools: list | None = None) -> list[int]:
    """Return the ids that generation conditions on, with the generation prompt of the template added.

    A plain string is sent as one user message where the tokenizer has a chat template, and as it stands elsewhere.
    """
    if not has_template(tokenizer):
        return _plain_ids(tokenizer, _as_text(prompt))
    return _template_ids(tokenizer, _as_messages(prompt, "user"), tools, add_generation_prompt=True)


def encode_sft(tokenizer: PreTrainedTokenizerBase, row: Any, loss_on: LossOn = "auto") -> Encoded:
    """Return ids and labels of a `ConversationRow`, `CompletionRow` or `TextRow`.

    `loss_on` is `assistant` (every assistant turn), `last_assistant`, `completion`, `all`, or `auto`: assistant turns
    of conversations, completions of prompt/completion rows, everything of plain text.

    Raises: DataError naming the row, when a mask would hold no token, leave the stop token out, or when a sequence
    starts twice. RecipeError when `loss_on` does not fit the form of the row.
    """
    if isinstance(row, TextRow):
        encoded = _encode_text(tokenizer, row, loss_on)
    elif has_template(tokenizer):
        encoded = _encode_turns(tokenizer, row, loss_on)
    elif isinstance(row, CompletionRow):
        encoded = _encode_plain_completion(tokenizer, row, loss_on)
    else:
        raise RecipeError(
            f"{row.origin} is a conversation, but the tokenizer has no chat template",
            "name one with model.chat_template (a Jinja file, or a name such as qwen3), or train on prompt/completion",
        )
    _check_start(tokenizer, encoded.input_ids, row.origin)
    if encoded.num_trained == 0:
        raise DataError(f"{row.origin}: no token of this row would be trained", "check the row, or sft.loss_on")
    return encoded


def encode_pair(tokenizer: PreTrainedTokenizerBase, row: PreferenceRow) -> Pair:
    """Return prompt, chosen and rejected ids; both answers end with a stop token.

    Raises: DataError naming the row, when an answer is empty or never stops, or the answers are the same tokens.
    """
    if has_template(tokenizer):
        pair = _encode_template_pair(tokenizer, row)
    else:
        prompt_ids = _plain_ids(tokenizer, _as_text(row.prompt))
        answers = [_answer_ids(tokenizer, _as_text(side)) for side in (row.chosen, row.rejected)]
        pair = Pair(prompt_ids, answers[0], answers[1])
    _check_start(tokenizer, pair.prompt_ids, row.origin)
    if pair.chosen_ids == pair.rejected_ids:
        raise DataError(f"{row.origin}: chosen and rejected are the same tokens", "drop the row: it teaches nothing")
    return pair


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> list[int]:
    """Return every id that ends an answer: the tokenizer's, the one its template ends a turn with, the model's."""
    ids = [tokenizer.eos_token_id, *_template_stop_ids(tokenizer)]
    generation_config = getattr(model, "generation_config", None)
    ids += _as_list(getattr(generation_config, "eos_token_id", None))
    return list(dict.fromkeys(i for i in ids if i is not None))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> list[str]:
    """Check what would spoil every row, before any is encoded; return remarks worth showing.

    Raises: RecipeError when there is no stop token, a turn of the template ends with none, or padding is a stop token.
    """
    stops = stop_token_ids(tokenizer, model)
    if not stops:
        raise RecipeError("the tokenizer has no end-of-sequence token", "name one with model.eos_token")
    if has_template(tokenizer) and not _template_stop_ids(tokenizer):
        raise RecipeError(
            "the chat template ends an assistant turn with no special token, so a model trained on it never stops",
            "choose another with model.chat_template, or let the template end the turn with the end-of-sequence token",
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in stops:
        raise RecipeError(
            f"the padding token {tokenizer.pad_token!r} is missing or also ends an answer",
            "name another with model.pad_token",
        )
    return _remarks(tokenizer)


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


# --- conversations -------------------------------------------------------------------------------------------------


def _encode_turns(tokenizer: PreTrainedTokenizerBase, row: ConversationRow | CompletionRow, loss_on: LossOn) -> Encoded:
    messages, tools, first_turn = _turns(row)
    wanted = _wanted_turns(messages, first_turn, row, loss_on)
    ids = _template_ids(tokenizer, messages, tools)
    if loss_on == "all":
        return Encoded(ids, [IGNORED, *ids[1:]])
    labels = [IGNORED] * len(ids)
    for start, stop in _assistant_spans(tokenizer, messages, tools, ids, wanted, row.origin):
        labels[start:stop] = ids[start:stop]
    return Encoded(ids, labels)


def _turns(row: ConversationRow | CompletionRow) -> tuple[Messages, list | None, int]:
    """Return the whole conversation, its tools, and the number of messages that belong to the prompt."""
    if isinstance(row, ConversationRow):
        return row.messages, row.tools, 0
    prompt = _as_messages(row.prompt, "user")
    return [*prompt, *_as_messages(row.completion, "assistant")], None, len(prompt)


def _wanted_turns(messages: Messages, first: int, row: ConversationRow | CompletionRow, loss_on: LossOn) -> list[int]:
    """Return the indices of the messages whose tokens are trained."""
    assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not assistant and loss_on != "all":
        raise DataError(f"{row.origin}: there is no assistant turn to train on", "drop the row, or use sft.loss_on=all")
    if loss_on == "completion" and isinstance(row, ConversationRow):
        raise RecipeError(
            f"sft.loss_on is 'completion', but {row.origin} is a conversation without a prompt of its own",
            "use sft.loss_on=assistant or last_assistant",
        )
    if loss_on == "last_assistant":
        return assistant[-1:]
    if loss_on == "completion" or (loss_on == "auto" and isinstance(row, CompletionRow)):
        return [i for i in assistant if i >= first]
    return assistant


def _assistant_spans(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tools: list | None,
    ids: list[int],
    wanted: Sequence[int],
    origin: str,
) -> list[tuple[int, int]]:
    """Return the half-open token span of each wanted turn, its stop token included and nothing behind it."""
    if has_generation_markers(tokenizer):
        spans = _marked_spans(tokenizer, messages, tools, ids)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) == len(turns):
            found = dict(zip(turns, spans))
            return [_end_at_stop(tokenizer, ids, *found[i], origin) for i in wanted]
    return [_compared_span(tokenizer, messages, tools, ids, i, origin) for i in wanted]


def has_generation_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the template marks the assistant's part itself."""
    return MARKER.search(str(tokenizer.chat_template)) is not None


def _marked_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: list | None, ids: list[int]
) -> list[tuple[int, int]]:
    """Return the runs of ones in the assistant mask that the template's own markers give."""
    encoding = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = [*encoding["assistant_masks"], 0]
    assert list(encoding["input_ids"]) == ids, "one rendering of one conversation gave two sequences"
    starts = [i for i, bit in enumerate(mask) if bit and (i == 0 or not mask[i - 1])]
    return [(start, mask.index(0, start)) for start in starts]


def _compared_span(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: list | None, ids: list[int], turn: int, origin: str
) -> tuple[int, int]:
    """Find one assistant turn in `ids` by comparing token prefixes, and suffixes where prefixes do not do."""
    before = _template_ids(tokenizer, messages[:turn], tools, add_generation_prompt=True) if turn else []
    start = common_prefix(before, ids)
    with_turn = ids if turn == len(messages) - 1 else _template_ids(tokenizer, messages[: turn + 1], tools)
    if ids[: len(with_turn)] == with_turn:
        stop = len(with_turn)
    else:
        stop = len(ids) - _shared_tail(tokenizer, messages, tools, ids, turn)
    return _end_at_stop(tokenizer, ids, start, stop, origin)


def _shared_tail(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: list | None, ids: list[int], turn: int
) -> int:
    """Return how many tokens at the end stay the same when the answer of `turn` becomes another."""
    lengths = []
    for answer in PROBE_ANSWERS:
        other = [*messages[:turn], {**messages[turn], "content": answer}, *messages[turn + 1 :]]
        lengths.append(common_prefix(_template_ids(tokenizer, other, tools)[::-1], ids[::-1]))
    return min(lengths)


def _end_at_stop(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, stop: int, origin: str
) -> tuple[int, int]:
    """Move the end of a span to just behind its stop token: back over a newline, or forward over the token itself."""
    stops = set(stop_token_ids(tokenizer))
    inside = [i for i in range(start, stop) if ids[i] in stops]
    if inside:
        return start, inside[-1] + 1
    if stop < len(ids) and ids[stop] in stops:
        return start, stop + 1
    raise DataError(
        f"{origin}: an assistant turn ends with no stop token ({_names(tokenizer, stops)}), so the model would not learn to stop",
        "use a chat template that ends the turn with one (model.chat_template), or set model.eos_token to the token that does",
    )


# --- pairs ---------------------------------------------------------------------------------------------------------


def _encode_template_pair(tokenizer: PreTrainedTokenizerBase, row: PreferenceRow) -> Pair:
    prompt = _as_messages(row.prompt, "user")
    prompt_ids = _template_ids(tokenizer, prompt, None, add_generation_prompt=True)
    sides = [
        _template_ids(tokenizer, [*prompt, *_as_messages(answer, "assistant")], None)
        for answer in (row.chosen, row.rejected)
    ]
    # The prompt ends where a rendering with an answer leaves it: some templates open the answer differently.
    cut = min(common_prefix(prompt_ids, side) for side in sides)
    ends = [_end_at_stop(tokenizer, side, cut, len(side), row.origin)[1] for side in sides]
    return Pair(prompt_ids[:cut], sides[0][cut : ends[0]], sides[1][cut : ends[1]])


# --- plain text ----------------------------------------------------------------------------------------------------


def _encode_text(tokenizer: PreTrainedTokenizerBase, row: TextRow, loss_on: LossOn) -> Encoded:
    if loss_on not in ("auto", "all"):
        raise RecipeError(
            f"sft.loss_on is {loss_on!r}, but {row.origin} is plain text without turns", "use sft.loss_on=all"
        )
    ids = _with_stop(tokenizer, _plain_ids(tokenizer, row.text))
    return Encoded(ids, [IGNORED, *ids[1:]])


def _encode_plain_completion(tokenizer: PreTrainedTokenizerBase, row: CompletionRow, loss_on: LossOn) -> Encoded:
    """Prompt and completion are tokenised apart, because at generation the prompt stands alone too."""
    prompt_ids = _plain_ids(tokenizer, _as_text(row.prompt))
    answer_ids = _answer_ids(tokenizer, _as_text(row.completion))
    ids = prompt_ids + answer_ids
    if loss_on == "all":
        return Encoded(ids, [IGNORED, *ids[1:]])
    return Encoded(ids, [IGNORED] * len(prompt_ids) + answer_ids)


def _answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return _with_stop(tokenizer, list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _with_stop(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that starts a sequence: with the tokenizer's BOS, without an EOS that it may add."""
    ids = list(tokenizer(text)["input_ids"])
    added_end = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(_eos(tokenizer))
    return ids[:-1] if added_end else ids


# --- small parts ---------------------------------------------------------------------------------------------------


def _template_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: list | None, *, add_generation_prompt: bool = False
) -> list[int]:
    text = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=16)
def _stops_of_template(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[int, ...]:
    """Return the special token that follows an answer in the template, found by rendering two different answers."""
    del template  # part of the cache's key: the template of a tokenizer can be exchanged
    prompt = [{"role": "user", "content": PROBE_USER}]
    sides = [
        _template_ids(tokenizer, [*prompt, {"role": "assistant", "content": answer}], None) for answer in PROBE_ANSWERS
    ]
    tail = common_prefix(sides[0][::-1], sides[1][::-1])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return tuple(i for i in sides[0][len(sides[0]) - tail :] if i in special)[:1]


def _template_stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return _stops_of_template(tokenizer, str(tokenizer.chat_template)) if has_template(tokenizer) else ()


def _check_start(tokenizer: PreTrainedTokenizerBase, ids: list[int], origin: str) -> None:
    """Refuse a sequence that starts with more than one BOS (template and tokenizer both added one)."""
    bos = tokenizer.bos_token_id
    if bos is not None and bos not in stop_token_ids(tokenizer) and ids[:2] == [bos, bos]:
        raise DataError(
            f"{origin}: the sequence starts with two beginning-of-sequence tokens ({tokenizer.bos_token})",
            "remove the token from the text of the row",
        )


def _remarks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if not has_template(tokenizer):
        return ["The tokenizer has no chat template: prompts and answers are joined as plain text."]
    plain, bos = _plain_ids(tokenizer, PROBE_USER), tokenizer.bos_token_id
    rendered = _template_ids(tokenizer, [{"role": "user", "content": PROBE_USER}], None)
    if bos is not None and plain[:1] == [bos] and bos not in rendered:
        return [f"The chat template writes no {tokenizer.bos_token}, which the tokenizer puts before plain text."]
    return []


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many items two sequences share at their start."""
    for index, (a, b) in enumerate(zip(left, right)):
        if a != b:
            return index
    return min(len(left), len(right))


def _as_messages(value: str | Messages, role: str) -> Messages:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _as_text(value: str | Messages) -> str:
    if isinstance(value, str):
        return value
    raise RecipeError(
        "the rows are conversations, but the tokenizer has no chat template",
        "name one with model.chat_template (a Jinja file, or a name such as qwen3)",
    )


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.eos_token)


def _names(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    return ", ".join(tokenizer.convert_ids_to_tokens(sorted(ids)))
