"""The offline world: verifiable tasks, a tokenizer and a tiny model that is right part of the time. See `world.py`.

Importing this package loads no torch; `write_world` does, when it is called.
"""

from aligner.toy.tasks import gold_score
from aligner.toy.world import World, read_world, write_world

__all__ = ["World", "gold_score", "read_world", "write_world"]
