"""What goes into an engine of generation, and what comes out: token ids on both sides.

An engine knows nothing of texts, templates, journals or progress: those stand in front of it
(`aligner.generation.decode`). Every engine answers the same requests in the same form, and one set
of tests holds for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from aligner.generation.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """A prompt of token ids, to be continued `sampling.num_samples` times, each until one of
    `stop_ids` or `sampling.max_new_tokens`.

    The random numbers of a sample follow from `sampling.seed`, `stream` and the sample's index
    alone, wherever an engine draws them itself.
    """

    prompt_ids: Sequence[int]
    sampling: Sampling
    stop_ids: tuple[int, ...] = ()
    stream: int = 0


@dataclass(frozen=True)
class Generated:
    """One sample: `token_ids` without the prompt, but with the stop id.

    `logps`: the natural log-probability of each token under the distribution that it was drawn
    from, after temperature, top-k, top-p and the rest (0 for greedy decoding, which has one
    possible token). `raw_logps`: the same under the model's own distribution, at temperature 1 and
    without penalty or truncation. Both are computed in float32.

    `finish_reason` is "error" where an engine gave a request up: then `error` says why, and the
    tokens are as many as there were.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length", "error"]
    logps: list[float] = field(default_factory=list)
    raw_logps: list[float] = field(default_factory=list)
    error: str = ""


OnFinished = Callable[[int, int, Generated], None]
"""Called as each sample finishes, in any order: (index of the request, index of the sample,
sample)."""


class Engine(Protocol):
    """What continues prompts."""

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Generated]]:
        """Return the samples of each request, in the order of the requests."""
        ...


def in_order(
    requests: Sequence[Request], samples: Mapping[tuple[int, int], Generated]
) -> list[list[Generated]]:
    """Return samples by (index of the request, index of the sample) as an engine returns them."""
    found = []
    for index, request in enumerate(requests):
        found.append([samples[index, i] for i in range(request.sampling.num_samples)])
    return found
