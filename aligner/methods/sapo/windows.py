"""Pairs from single responses: a window of a good response is rewritten, and the result is the
rejected one.

The pure parts of SAPO (Self-Augmented Preference Optimization, arXiv 2405.20830), on token ids
alone: nothing here is ever turned into text and back. Read with `aligner.methods.sapo.train`, which
has the models.

An answer is A + B + C: B is the window, B' what a model wrote in its place after the prompt and A.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence


def sample_window(length: int, window: int | None, rng: random.Random) -> tuple[int, int]:
    """Return start and size of a window in an answer of `length` tokens, drawn uniformly; None is
    the whole answer.

    An answer that is no longer than the window is rewritten whole. Unlike the authors' code no tail
    is kept out of the window: theirs is the three tokens that their template adds after an answer.
    """
    assert length >= 1, "an answer holds at least its stop token"
    size = length if window is None else min(window, length)
    return rng.randint(0, length - size), size


def splice(
    answer: Sequence[int],
    start: int,
    size: int,
    written: Sequence[int],
    stops: Collection[int],
    *,
    keep_suffix: bool,
) -> list[int]:
    """Return A + B' + C: the answer with `written` in the place of its window.

    `written` is cut to the size of the window. Where it holds a stop token the answer ends there,
    with it. Without `keep_suffix` C is left out.
    """
    written = list(written[:size])
    end = next((i for i, token in enumerate(written) if token in stops), None)
    if end is not None:
        return [*answer[:start], *written[: end + 1]]
    return [*answer[:start], *written, *(answer[start + size :] if keep_suffix else [])]
