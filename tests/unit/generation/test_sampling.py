"""What sampling makes of logits, against transformers' own warpers."""

from __future__ import annotations

import pytest
import torch
from transformers import TopPLogitsWarper

from aligner.generation.sampling import Sampling, choose, draws


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(scale: float, top_p: float) -> None:
    """Also where far more tokens are kept than are looked at first."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6000, generator=generator) * scale
    sampling = Sampling(top_p=top_p)
    expected = TopPLogitsWarper(top_p)(None, logits).log_softmax(-1)
    for step in range(100):
        numbers = torch.rand(3, generator=generator, dtype=torch.float64)
        chosen = choose(logits, sampling, None, numbers)
        wanted = torch.searchsorted(
            expected.double().softmax(-1).cumsum(-1), numbers[:, None], right=True
        )
        assert chosen.ids_B.tolist() == wanted[:, 0].tolist(), step
        theirs = expected.gather(1, chosen.ids_B[:, None])[:, 0]
        assert torch.allclose(chosen.logps_B, theirs, atol=2e-4)


def test_random_numbers_follow_from_seed_prompt_and_sample_alone() -> None:
    assert torch.equal(draws(1, 2, 3, 100)[:7], draws(1, 2, 3, 7))
    first = {float(draws(*key, 1)) for key in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3))}
    assert len(first) == 4
