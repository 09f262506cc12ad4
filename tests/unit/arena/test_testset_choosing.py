"""Which prompts become a test set: clusters, subsets, splits."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fakes import write_jsonl

from aligner.arena.testset.build import Settings, choose
from aligner.arena.testset.choosing import (
    Shortfall,
    cluster_count,
    draw_from_clusters,
    hardest,
    held_out,
)
from aligner.arena.testset.clusters import k_means
from aligner.arena.testset.pool import Pool, PoolItem, read_pool
from aligner.arena.testset.word_vectors import WIDTH, WordVectors, principal
from aligner.config.recipe import Source
from aligner.errors import DataError

IDS = [f"p{number}" for number in range(60)]


def blobs(clusters: int = 6, each: int = 20) -> np.ndarray:
    """Points around far centres, the points of a cluster side by side."""
    rng = np.random.default_rng(1)
    centres = 10.0 * rng.normal(size=(clusters, 8))
    points = centres.repeat(each, axis=0) + 0.1 * rng.normal(size=(clusters * each, 8))
    return points.astype(np.float32)


def test_clusters_are_the_planted_ones_and_numbered_by_their_first_points() -> None:
    for seed in range(3):
        labels = k_means(blobs(), 6, seed)
        assert labels.tolist() == np.arange(6).repeat(20).tolist()


def test_no_cluster_is_empty_and_equal_points_may_be_parted() -> None:
    assert sorted(set(k_means(np.ones((9, 3), np.float32), 4).tolist())) == [0, 1, 2, 3]
    assert k_means(np.ones((2, 3), np.float32), 2).tolist() == [0, 1]


def test_clusters_are_as_tight_as_a_slow_twin_finds_them() -> None:
    """Each point is nearest to the mean of its own cluster when the iterations have ended."""
    points = np.random.default_rng(2).normal(size=(200, 3)).astype(np.float32)
    labels = k_means(points, 7)
    means = np.stack([points[labels == label].mean(axis=0) for label in range(7)])
    nearest = np.array([((point - means) ** 2).sum(axis=1).argmin() for point in points])
    assert (nearest == labels).all()


@pytest.mark.parametrize(
    ("asked", "prompts", "made"), [(500, 100_000, 500), (500, 500, 25), (500, 19, 1), (3, 500, 3)]
)
def test_a_small_pool_has_fewer_clusters(asked: int, prompts: int, made: int) -> None:
    assert cluster_count(asked, prompts) == made


def test_each_cluster_gives_its_share() -> None:
    labels = [number % 6 for number in range(60)]
    drawn, lacking = draw_from_clusters(labels, IDS, 2, 0, set())
    assert Counter(labels[index] for index in drawn) == dict.fromkeys(range(6), 2)
    assert lacking == Shortfall()
    again, _ = draw_from_clusters(labels, IDS, 2, 1, set())
    assert set(again) != set(drawn)
    others, _ = draw_from_clusters(labels, IDS, 2, 0, set(drawn))
    assert not set(others) & set(drawn)


def test_other_prompts_take_the_places_of_a_small_cluster() -> None:
    labels = [0] + [1] * 59
    drawn, lacking = draw_from_clusters(labels, IDS, 3, 0, set())
    assert len(drawn) == len(set(drawn)) == 6
    assert lacking == Shortfall(small_clusters=1, topped_up=2, empty=0)
    few, lacking = draw_from_clusters([0, 1, 1], IDS[:3], 5, 0, set())
    assert sorted(few) == [0, 1, 2]
    assert lacking == Shortfall(small_clusters=2, topped_up=0, empty=7)


def test_the_hardest_are_kept_and_equally_hard_ones_are_drawn() -> None:
    difficulty = {index: float(index >= 5) for index in range(10)}
    chosen, lacking = hardest(range(10), difficulty, IDS, 5, 0)
    assert set(chosen) == set(range(5, 10))
    assert lacking == Shortfall()
    drawn = {tuple(sorted(hardest(range(10), difficulty, IDS, 7, seed)[0])) for seed in range(9)}
    assert len(drawn) > 1
    assert hardest(range(10), difficulty, IDS, 12, 0)[1] == Shortfall(empty=2)


def test_the_split_says_nothing_of_the_draw() -> None:
    """What is drawn first for a cluster is not what is held out: small and large clusters have the
    same share in dev."""
    share = Counter[bool]()
    for seed in range(40):
        ids = [f"{seed} {number}" for number in range(440)]
        labels = [0] * 400 + [1 + number // 2 for number in range(40)]
        drawn, _ = draw_from_clusters(labels, ids, 2, seed, set())
        dev = held_out(drawn, ids, 0.5, seed)
        share.update(labels[index] == 0 for index in dev)
    assert 25 <= share[True] <= 55  # 80 prompts of the large cluster were drawn, half is 40


def pool_of(count: int, rated: bool = True) -> Pool:
    items = [
        PoolItem(IDS[number], f"prompt {number}", difficulty=float(number) if rated else None)
        for number in range(count)
    ]
    return Pool(items, rows=count)


def test_subsets_are_disjoint_and_parted_into_dev_and_test() -> None:
    chosen = choose(pool_of(60), blobs(3), Settings(clusters=3, dev=0.5))
    rows = {row["prompt_id"]: row for row in chosen.rows}
    assert len(rows) == len(chosen.rows) == 12
    assert chosen.facts["counts"] == {
        "diverse": {"dev": 3, "test": 3},
        "hard": {"dev": 3, "test": 3},
    }
    diverse = {name for name, row in rows.items() if row["subset"] == "diverse"}
    hardest_left = [name for name in reversed(IDS) if name not in diverse][:6]
    assert {name for name in rows if name not in diverse} == set(hardest_left)
    assert chosen.labels == {name: number // 20 for number, name in enumerate(IDS)}


def test_a_rater_is_asked_of_the_candidates_alone() -> None:
    asked: list[str] = []

    def rate(items: object) -> list[float]:
        asked.extend(item.id for item in items)  # type: ignore[attr-defined]
        return [float(item.id[1:]) for item in items]  # type: ignore[attr-defined]

    settings = Settings(clusters=3, hard_per_cluster=4, hard=2)
    chosen = choose(pool_of(60, rated=False), blobs(3), settings, rate)
    hard = {row["prompt_id"] for row in chosen.rows if row["subset"] == "hard"}
    assert len(asked) == 12
    assert hard == set(sorted(asked, key=lambda name: -float(name[1:]))[:2])


def test_without_a_difficulty_there_is_no_hard_subset() -> None:
    chosen = choose(pool_of(60, rated=False), blobs(3), Settings(clusters=3))
    assert set(chosen.facts["counts"]) == {"diverse"}


def test_the_order_of_a_pool_chooses_nothing(tmp_path: Path) -> None:
    rows = [
        {"id": name, "prompt": f"say the word {name} {number % 7}"}
        for number, name in enumerate(IDS)
    ]
    found = []
    for name, listed in (("a", rows), ("b", rows[::-1])):
        write_jsonl(tmp_path / f"{name}.jsonl", listed)
        pool = read_pool([Source(path=str(tmp_path / f"{name}.jsonl"))], near_duplicates=None)
        texts = [item.asked for item in pool.items]
        vectors = principal(WordVectors(texts), texts, 16)
        chosen = choose(pool, vectors, Settings(clusters=3))
        found.append([row["prompt_id"] for row in chosen.rows])
    assert found[0] == found[1]


def test_prompts_stand_in_a_pool_once(tmp_path: Path) -> None:
    words = "name ten large rivers of the world with their lengths in kilometres please"
    rows = [
        {"uid": 1, "prompt": words, "category": "geo"},
        {"uid": 2, "prompt": words.upper() + "!"},
        {"uid": 3, "prompt": words.replace("please", "now")},
        {
            "uid": 4,
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
        },
    ]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    pool = read_pool([Source(path=str(tmp_path / "pool.jsonl"))])
    assert sum(pool.left_out.values()) == 2
    assert pool.rows == 4
    assert {item.asked for item in pool.items} > {"a\nc"}
    assert not pool.remarks
    kept = read_pool([Source(path=str(tmp_path / "pool.jsonl"))], near_duplicates=None)
    assert kept.left_out == {"duplicates": 1}
    assert sorted(item.id for item in kept.items)[-2:] == ["3", "4"]


def test_ids_that_do_not_tell_prompts_apart_are_replaced_and_that_is_said(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", [{"id": 1, "prompt": "x"}, {"id": 1, "prompt": "y"}])
    pool = read_pool([Source(path=str(tmp_path / "pool.jsonl"))])
    assert "some rows have the same id" in pool.remarks[0]
    assert len({item.id for item in pool.items}) == 2


def test_a_difficulty_that_is_no_number_is_refused_with_its_row(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", [{"prompt": "x", "d": 3}, {"prompt": "y", "d": "hard"}])
    with pytest.raises(DataError) as caught:
        read_pool([Source(path=str(tmp_path / "pool.jsonl"))], difficulty="d")
    assert caught.value.problems[0].where.endswith("pool.jsonl:2")


def test_conversations_keep_id_and_category(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hi"}]
    write_jsonl(tmp_path / "pool.jsonl", [{"id": "c1", "category": "chat", "messages": turns}])
    (item,) = read_pool([Source(path=str(tmp_path / "pool.jsonl"))]).items
    assert (item.id, item.category, item.answer) == ("c1", "chat", "hi")


def test_word_vectors_are_tf_idf() -> None:
    """Against the formula, word by word; `the` is in every text, `owl` in one."""
    texts = ["the cat saw the cat", "the cat ran", "the dog ran", "the owl flew the dog"]
    rows = WordVectors(texts).of(texts)
    assert rows.shape == (4, WIDTH)
    weight = 1.0 + math.log(5 / 3)  # cat, dog, ran: in two of four texts each
    assert rows[0] @ rows[1] == pytest.approx(weight / math.hypot(weight, weight))
    assert rows[1] @ rows[2] == pytest.approx(0.5)
    assert rows[0] @ rows[3] == 0.0
    assert WordVectors(texts).of(["zebra"]).tolist() == [[0.0] * WIDTH]


def test_principal_directions_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(30)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(40)]
    vectors = WordVectors(texts)
    rows = vectors.of(texts).astype(np.float64)
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    kept = left[:, :5] * values[:5]
    slow = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    found = principal(vectors, texts, 5)
    assert found @ found.T == pytest.approx(slow @ slow.T, abs=1e-4)
