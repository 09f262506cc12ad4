"""The offline world: verifiable tasks, a tokenizer and a tiny model that is right part of the time. See `world.py`."""

from aligner.toy.tasks import gold_score

__all__ = ["gold_score"]
