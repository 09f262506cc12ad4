"""Answers from a model: one function, and everything that decides what it returns is an argument.

This is the front of generation for its callers: prompts become token ids, what leaves no room in
the model's positions is refused, an engine (`aligner.generation.requests`) continues the ids, and
its samples become texts. A journal keeps them in parts, each the engine's work from its first row
to its last, so that a resumed call has the neighbours in its batches that the whole one had: its
answers are the same to the last bit of rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from aligner.data.rows import Messages
from aligner.errors import DataError, UsageError
from aligner.generation.engines import engine_for
from aligner.generation.requests import Engine, Generated, Request
from aligner.generation.sampling import Sampling
from aligner.models.forward import Progress
from aligner.models.positions import max_positions
from aligner.runs.journal import Journal
from aligner.tokenization.encode import encode_prompt, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PART_BATCHES = 4
"""Batches' worth of rows in a part of a journal, which is what a kill can cost: about the time that
one and a half batches take where each decodes until its longest row ends."""


@dataclass(frozen=True)
class Completion:
    """One answer: `token_ids` without prompt and padding, but with the stop id, which `text` does
    not show."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    sampling: Sampling | None = None,
    *,
    batch_size: int = 16,
    streams: Sequence[int] | None = None,
    tools: Sequence[list | None] | None = None,
    on_progress: Progress | None = None,
    journal: Journal | None = None,
    engine: Engine | None = None,
) -> list[list[Completion]]:
    """Return `num_samples` answers for each prompt, in the order of the prompts. `tools`: those of
    each prompt.

    `streams`: a number for each prompt, from which its random numbers follow (its index by
    default), for answers that do not depend on which prompts are asked together. `journal`: where
    answers are kept, so that the same call resumes after a kill. `engine`: what decodes; by default
    `model` itself, `batch_size` rows at a time.

    Raises: DataError when a prompt leaves no room for an answer within the positions that the model
    has; UsageError when the engine gave one up.
    """
    contexts = []
    for place, (prompt, known) in enumerate(
        zip(prompts, tools or [None] * len(prompts), strict=True), 1
    ):
        contexts.append(encode_prompt(tokenizer, prompt, known))
        check_room(model, contexts[-1], f"prompt {place} ({_first_words(prompt)!r})")
    return continue_ids(
        model,
        tokenizer,
        contexts,
        Sampling() if sampling is None else sampling,
        batch_size=batch_size,
        streams=streams,
        on_progress=on_progress,
        journal=journal,
        engine=engine,
    )


def continue_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[list[int]],
    sampling: Sampling | Sequence[Sampling],
    *,
    batch_size: int = 16,
    streams: Sequence[int] | None = None,
    on_progress: Progress | None = None,
    journal: Journal | None = None,
    engine: Engine | None = None,
) -> list[list[Completion]]:
    """Return `num_samples` continuations of each context of token ids, as `generate` does for
    prompts. `sampling`: one for all, or one for each.

    Raises: DataError when a context leaves no room within the positions that the model has;
    UsageError when the engine gave one up.
    """
    if isinstance(sampling, Sampling):
        sampling = [sampling] * len(contexts)
    stops = tuple(stop_token_ids(tokenizer, model))
    requests = []
    for place, (ids, one, stream) in enumerate(
        zip(contexts, sampling, streams or range(len(contexts)), strict=True), 1
    ):
        check_room(model, ids, f"row {place}")
        requests.append(Request(ids, within_positions(model, ids, one), stops, stream))
    engine = engine or engine_for(model, batch_size=batch_size)
    journal = journal or Journal(None)
    parts = _parts(requests, None if journal.path is None else PART_BATCHES * batch_size)
    total, done = sum(request.sampling.num_samples for request in requests), 0

    def finished(*_: Any) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    def as_json(generated: Generated) -> dict[str, Any]:
        return vars(_completion(tokenizer, generated))

    def work(part: list[int]) -> list[Any]:
        found = engine.generate([requests[index] for index in part], finished)
        _refuse_failed(part, found)
        return [list(map(as_json, samples)) for samples in found]

    answers = {}
    for part, (found, is_new) in zip(parts, journal.results(parts, work)):
        for index, samples in zip(part, found, strict=True):
            answers[index] = [Completion(**one) for one in samples]
            done += 0 if is_new else len(samples)
    return [answers[index] for index in range(len(contexts))]


def _parts(requests: Sequence[Request], rows: int | None) -> list[list[int]]:
    """Cut the indices of requests, longest prompt first, into parts of `rows` rows or a few more;
    into one where that is None."""
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids))
    if rows is None:
        return [order] if order else []
    parts: list[list[int]] = []
    size = rows
    for index in order:
        if size >= rows:
            parts.append([])
            size = 0
        parts[-1].append(index)
        size += requests[index].sampling.num_samples
    return parts


def within_positions(model: PreTrainedModel, ids: Sequence[int], sampling: Sampling) -> Sampling:
    """Return the sampling with no more tokens than the model has positions behind the prompt."""
    positions = max_positions(model)
    if positions is None or len(ids) + sampling.max_new_tokens <= positions:
        return sampling
    return replace(sampling, max_new_tokens=positions - len(ids))


def check_room(model: PreTrainedModel, ids: Sequence[int], name: str) -> None:
    """Refuse ids that leave no room for an answer. Raises: DataError, which calls them `name`."""
    positions = max_positions(model)
    if not ids:
        raise DataError(
            f"{name} is empty: there is nothing to continue", "write something, or drop it"
        )
    if positions is not None and len(ids) >= positions:
        raise DataError(
            f"{name} has {len(ids)} tokens, but the model has {positions} positions for prompt "
            "and answer together",
            "shorten or drop the prompt, or use a model with a longer context",
        )


def _refuse_failed(part: Sequence[int], found: Sequence[Sequence[Generated]]) -> None:
    failed = [(i, one.error) for i, samples in zip(part, found) for one in samples if one.error]
    if failed:
        row, error = failed[0]
        others = f", and {len(failed) - 1} others" if len(failed) > 1 else ""
        raise UsageError(
            f"row {row + 1} has no answer{others}: {error}",
            "the engine `hf` decodes whatever fits in memory; or shorten or drop the row",
        )


def _completion(tokenizer: PreTrainedTokenizerBase, generated: Generated) -> Completion:
    """Return a sample with its text, which does not show the stop id."""
    assert generated.finish_reason != "error", generated.error
    ids, reason = generated.token_ids, generated.finish_reason
    said = ids[:-1] if reason == "stop" else ids
    text = tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(text, ids, reason)


def _first_words(prompt: str | Messages) -> str:
    text = (
        prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
    )
    return text if len(text) <= 40 else text[:40] + "..."
