"""Responses of a model to many prompts, in shards: the stage of a round, or of an arena.

A shard is what is kept together and what can be reproduced: its responses follow from the seed, the
stream's name, their prompt and their temperature, and, down to the last bit of rounding, from which
prompts share its batches. Each shard is a part of the journal `responses.jsonl`: for each prompt
its samples as `[token ids, finished, temperature, text]`; where they were asked for, and were
computed in float32, with the log-probabilities of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import Generation, Model
from aligner.data.rows import PromptRow
from aligner.errors import UsageError
from aligner.events import Notice, OnEvent, StageStarted, tell
from aligner.runs.journal import Journal
from aligner.runs.stages import Stage

if TYPE_CHECKING:
    from aligner.generation.sampling import Sampling

RESPONSES = "responses"
TOO_LONG = "prompts too long to be answered"


@dataclass(frozen=True)
class Asking:
    """How a model is asked: its section, how many responses at which temperatures, and what names
    the random numbers. `max_length`: of the prompt's tokens and a response together."""

    section: Model
    generation: Generation
    temperatures: Sequence[float]
    num_samples: int
    max_new_tokens: int
    max_length: int
    seed: int
    shard_size: int
    batch_size: int
    stream: str
    cache: Path | None = None
    on_event: OnEvent | None = None
    before: Callable[[], None] = field(default=lambda: None)
    """Called before anything is asked, where something is."""
    processes: int = 1
    """Processes that sample, each with the model whole."""
    has_logps: bool = False
    """Whether log-probabilities of the sampled tokens are kept, where they are exact."""
    top_p: float = 1.0
    """Nucleus."""
    who: str = "the policy"
    """What events call the model."""

    def made_of(self) -> dict[str, Any]:
        """Return what responses depend on, beside model and prompts."""
        nucleus = {} if self.top_p == 1.0 else {"top_p": self.top_p}
        return {
            **nucleus,
            "num_samples": self.num_samples,
            "temperatures": list(self.temperatures),
            "max_new_tokens": self.max_new_tokens,
            "max_length": self.max_length,
            "seed": self.seed,
            "shard_size": self.shard_size,
            "engine": self.generation.engine,
        }

    def sampled_at(self) -> list[tuple[float, int]]:
        """Return each temperature and its number of responses."""
        each = self.num_samples // len(self.temperatures)
        return [(temperature, each) for temperature in self.temperatures]


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled response; `token_ids` with the stop id, where it has one."""

    token_ids: list[int]
    is_finished: bool
    temperature: float
    text: str
    logps: list[float] | None = None
    """Of each token, at temperature 1."""


def shards(rows: Sequence[Any], size: int) -> list[range]:
    """Cut rows into shards: the numbers of each one's rows."""
    return [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]


def responses_in(journal: Journal, number: int) -> list[list[Response]]:
    """Return the responses to each prompt of a shard; none where a prompt was too long."""
    found = []
    for samples in journal[number]:
        found.append([Response(*one) for one in samples])
    return found


def writer_of(
    asking: Asking, rows: Sequence[PromptRow], stack: ExitStack
) -> Callable[[range], list[Any]]:
    """Load the model, and return what answers the prompts of a shard; `stack` holds the engine."""
    from aligner.generation.requests import Request
    from aligner.generation.sampling import Sampling, number_of
    from aligner.generation.writers import open_engine
    from aligner.models.libraries import disable_progress_bars
    from aligner.models.loading import load_policy
    from aligner.models.positions import max_positions
    from aligner.models.tokenizers import load_tokenizer
    from aligner.tokenization.encode import encode_prompt, stop_token_ids

    disable_progress_bars()
    tell(asking.on_event, StageStarted(f"loading {asking.who}"))
    asking.before()
    tokenizer = load_tokenizer(asking.section)
    policy, engine = stack.enter_context(
        open_engine(
            asking.generation,
            asking.section,
            tokenizer,
            load=partial(load_policy, asking.section, tokenizer, trainable=False),
            batch_size=asking.batch_size,
            cache=asking.cache,
            exact=True,
            on_event=asking.on_event,
        )
    )
    stops = tuple(stop_token_ids(tokenizer, policy))
    has_logps = asking.has_logps and str(getattr(policy, "dtype", "")) == "torch.float32"
    limit = min(asking.max_length, max_positions(policy) or asking.max_length)
    settings = [
        Sampling(
            asking.max_new_tokens,
            temperature,
            top_p=asking.top_p,
            num_samples=count,
            seed=asking.seed,
        )
        for temperature, count in asking.sampled_at()
    ]

    def work(part: range) -> list[Any]:
        requests: list[Request] = []
        owners: list[int] = []
        found: list[Any] = [[] for _ in part]
        for place, number in enumerate(part):
            ids = encode_prompt(tokenizer, rows[number].prompt)
            if not ids or len(ids) + asking.max_new_tokens > limit:
                continue
            for turn, temperature in enumerate(settings):
                stream = number_of(asking.stream, number, turn)
                requests.append(Request(ids, temperature, stops, stream))
                owners.append(place)
        for place, request, samples in zip(owners, requests, engine.generate(requests)):
            for sampled in samples:
                _refuse_failed(sampled, rows[part[place]])
                logps = [sampled.raw_logps] if has_logps else []
                found[place].append([*_as_json(tokenizer, sampled, request.sampling), *logps])
        return found

    return work


def _refuse_failed(generated: Any, row: PromptRow) -> None:
    if generated.finish_reason == "error":
        raise UsageError(
            f"{row.origin} has no response: {generated.error}",
            "the shards before it are kept; use another engine, or a smaller max_new_tokens",
        )


def _as_json(tokenizer: Any, generated: Any, sampling: Sampling) -> list[Any]:
    ids, finished = list(generated.token_ids), generated.finish_reason == "stop"
    text = tokenizer.decode(
        ids[:-1] if finished else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [ids, finished, sampling.temperature, text]


def finish_sampling(stage: Stage, rows: Sequence[PromptRow], asking: Asking) -> None:
    """Count what the responses of a stage are, and finish it."""
    journal = stage.journal(RESPONSES)
    count = tokens = finished = unasked = 0
    for number in range(len(shards(rows, asking.shard_size))):
        for samples in responses_in(journal, number):
            unasked += not samples
            count += len(samples)
            tokens += sum(len(one.token_ids) for one in samples)
            finished += sum(one.is_finished for one in samples)
    if unasked:
        text = f"{unasked:,} of {len(rows):,} prompts leave no room for a response of "
        text += f"{asking.max_new_tokens:,} tokens within {asking.max_length:,}; they are left out"
        tell(asking.on_event, Notice(text))
    facts = {
        "prompts": len(rows),
        TOO_LONG: unasked,
        "responses": count,
        "mean_tokens": tokens / max(1, count),
        "finished": finished / max(1, count),
    }
    stage.finish(facts)
