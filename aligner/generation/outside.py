"""What engines share that draw with random numbers of their own, outside this process's model:
seeds, and which log-probabilities are known.

Such an engine tells log-probabilities as the model has them, at temperature 1. Those of the
distribution that a token was drawn from are known where it is the same one.
"""

from __future__ import annotations

import hashlib

from aligner.errors import UsageError
from aligner.generation.sampling import Sampling


def seed_of(seed: int, stream: int, sample: int) -> int:
    """Return a seed in [0, 2**31) that follows from the recipe's, the prompt's and the sample's."""
    digest = hashlib.sha256(f"{seed}:{stream}:{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def as_the_model_has_it(sampling: Sampling) -> bool:
    """Say whether samples are drawn from the model's own distribution, at temperature 1 and without
    penalty or truncation."""
    return sampling == Sampling(
        max_new_tokens=sampling.max_new_tokens,
        num_samples=sampling.num_samples,
        seed=sampling.seed,
    )


def drawn_logps(sampling: Sampling, raw_logps: list[float], tokens: int) -> list[float]:
    """Return the log-probabilities of tokens under what they were drawn from; none where they are
    not known."""
    if sampling.temperature == 0.0:
        return [0.0] * tokens
    return raw_logps if as_the_model_has_it(sampling) else []


def refuse_for_ratio(sampling: Sampling) -> None:
    """Raise UsageError for sampling under which the probability of a sample is not known."""
    if not as_the_model_has_it(sampling):
        raise UsageError(
            "a ratio of probabilities is trained on, and another temperature, top_p, top_k, min_p "
            "or a repetition penalty draws from a distribution whose probabilities this engine "
            "does not tell",
            "sample at temperature 1 without them, or use the engine `hf`",
        )
