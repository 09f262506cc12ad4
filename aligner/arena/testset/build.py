"""Build a test set: cluster a pool of prompts, choose a diverse and a hard subset, part them into
dev and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aligner.arena.testset.choosing import (
    Shortfall,
    cluster_count,
    draw_from_clusters,
    hardest,
    held_out,
)
from aligner.arena.testset.clusters import k_means
from aligner.arena.testset.pool import Pool, PoolItem
from aligner.events import OnEvent, StageProgress, tell

Array = np.ndarray

Rate = Callable[[Sequence[PoolItem]], Sequence[float]]
"""From prompts to how hard each is; higher is harder."""


@dataclass(frozen=True)
class Settings:
    """How a test set is chosen. `hard`: items of the hard subset, None for as many as the diverse
    one has, where it is known how hard prompts are."""

    clusters: int = 500
    per_cluster: int = 2
    hard_per_cluster: int = 20
    hard: int | None = None
    dev: float = 0.2
    seed: int = 0


@dataclass
class Chosen:
    """The items as rows, the cluster of every prompt of the pool, and what there is to say."""

    rows: list[dict[str, Any]]
    labels: dict[str, int]
    facts: dict[str, Any]


def choose(
    pool: Pool,
    vectors: Array,
    settings: Settings,
    rate: Rate | None = None,
    on_event: OnEvent | None = None,
) -> Chosen:
    """Choose the items. `vectors`: (N, D), those of the pool's prompts. `rate` says how hard
    prompts are, where no column does; without either there is no hard subset."""
    items, ids = pool.items, [item.id for item in pool.items]
    count = cluster_count(settings.clusters, len(items))

    def progress(done: int, total: int) -> None:
        tell(on_event, StageProgress("clustering", done, total))

    labels = k_means(vectors, count, settings.seed, progress).tolist()
    diverse, lacking = draw_from_clusters(labels, ids, settings.per_cluster, settings.seed, set())
    shortfalls = {"diverse": lacking}
    hard, difficulty, short = _hard(items, labels, diverse, settings, rate)
    shortfalls |= short
    rows = []
    for name, indices in (("diverse", diverse), ("hard", hard)):
        dev = held_out(indices, ids, settings.dev, settings.seed)
        for index in sorted(indices, key=lambda index: ids[index]):
            split = "dev" if index in dev else "test"
            rows.append(_row(items[index], labels[index], name, split, difficulty.get(index)))
    sizes = np.bincount(labels).tolist()
    facts = {
        "counts": _counts(rows),
        "clusters": {"asked": settings.clusters, "made": count, "sizes": sizes},
        "shortfalls": {name: asdict(found) for name, found in shortfalls.items()},
    }
    return Chosen(rows, dict(zip(ids, labels)), facts)


def _hard(
    items: Sequence[PoolItem],
    labels: Sequence[int],
    diverse: Sequence[int],
    settings: Settings,
    rate: Rate | None,
) -> tuple[list[int], dict[int, float], dict[str, Shortfall]]:
    """The hard subset, how hard the prompts are that it was chosen from, and what it lacked."""
    known = {index: item.difficulty for index, item in enumerate(items)}
    difficulty = {index: value for index, value in known.items() if value is not None}
    wanted = len(diverse) if settings.hard is None else settings.hard
    if not wanted or (rate is None and not difficulty):
        return [], difficulty, {}
    ids = [item.id for item in items]
    candidates, few = draw_from_clusters(
        labels, ids, settings.hard_per_cluster, settings.seed, set(diverse)
    )
    if rate is not None:
        rated = rate([items[index] for index in candidates])
        difficulty = dict(zip(candidates, rated, strict=True))
    chosen, lacking = hardest(candidates, difficulty, ids, wanted, settings.seed)
    return chosen, difficulty, {"hard_candidates": few, "hard": lacking}


def _row(
    item: PoolItem, cluster: int, subset: str, split: str, difficulty: float | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt_id": item.id, "prompt": item.prompt}
    row |= {} if item.answer is None else {"answer": item.answer}
    row |= {"category": item.category} if item.category else {}
    row |= {"subset": subset, "split": split, "cluster": cluster}
    row |= {} if difficulty is None else {"difficulty": difficulty}
    return row | {"origin": item.origin}


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        found = counts.setdefault(row["subset"], {"dev": 0, "test": 0})
        found[row["split"]] += 1
    return counts
