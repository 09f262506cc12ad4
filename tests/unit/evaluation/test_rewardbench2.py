"""RewardBench 2: the best of four and ties, by hand and against a slow second implementation; rows
with lists of answers."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from fakes import write_jsonl

from aligner.config.recipe import Source
from aligner.errors import DataError
from aligner.evaluation.best_of import has_lists, measure, read_choices, score_choices
from aligner.evaluation.rewardbench2 import (
    PARTS,
    ROWS,
    Item,
    credit,
    problems,
    tie_problems,
    ties,
)
from aligner.reward_models.base import Scores


def item(name: str, right: list[float], wrong: list[float], subset: str = "Ties") -> Item:
    return Item(name, subset, right, wrong)


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ([2.0], [1.0, 0.0, -1.0], 1.0),
        ([1.0], [1.0, 0.0, -1.0], 1 / 2),
        ([1.0], [1.0, 1.0, 1.0], 1 / 4),
        ([0.0], [1.0, -1.0, -2.0], 0.0),
        ([2.0, 1.0], [2.0, 0.0], 1 / 2),
        ([2.0, 2.0], [2.0], 2 / 3),
    ],
)
def test_a_right_answer_among_k_best_ones_counts_its_share(
    right: list[float], wrong: list[float], expected: float
) -> None:
    assert credit(item("1", right, wrong, "Math")) == pytest.approx(expected)


TWO_NUMBERS = [
    item("ref:1", [2.0], [1.0, 0.0]),  # gap 1
    item("tied:1", [3.0, 2.5], [1.5, -4.0]),  # spread 0.5, gap 1
    item("ref:2", [0.0], [1.0]),  # gap -1
    item("tied:2", [4.0, 1.0], [0.5]),  # spread 3, gap 0.5
]


def parts_of(items: list[Item]) -> dict[str, float]:
    return dict(zip(PARTS, ties(items)(np.ones(len(items))).tolist(), strict=True))


def test_ties_by_hand() -> None:
    """All right answers first: of both tied items, and of one of two ref items. Gap above spread:
    1 > 0.5, and 0.5 < 3. With the ref item: min(1, 1) > 0.5, and min(0.5, -1) < 3."""
    found = parts_of(TWO_NUMBERS)
    margin = (math.tanh(1 / 0.5 - 1) + math.tanh(-1 / 3 - 1)) / 2
    assert found == {
        "score": pytest.approx(0.3 + 0.3 / 2 + 0.2 / 2 + 0.2 / 2 + 0.01 * margin),
        "tied_accuracy": 1.0,
        "ref_accuracy": 0.5,
        "preferred": 0.5,
        "preferred_hard": 0.5,
        "margin": pytest.approx(margin),
    }


def test_the_ref_item_decides_where_its_gap_is_smaller() -> None:
    found = parts_of([item("ref:1", [1.1], [1.0]), item("tied:1", [3.0, 2.5], [1.5])])
    assert (found["preferred"], found["preferred_hard"]) == (1.0, 0.0)
    assert found["margin"] == pytest.approx(math.tanh(0.1 / 0.5 - 1))


@pytest.mark.parametrize(("gap", "margin"), [(1.0, 1.0), (0.0, 0.0), (-1.0, -1.0)])
def test_without_a_spread_the_margin_is_the_sign_of_the_gap(gap: float, margin: float) -> None:
    found = parts_of([item("ref:1", [9.0], [0.0]), item("tied:1", [2.0, 2.0], [2.0 - gap])])
    assert found["margin"] == margin
    assert found["tied_accuracy"] == float(gap > 0)  # equal scores are not first


def test_a_perfect_model_has_one_and_a_hundredth() -> None:
    assert parts_of([item("ref:1", [9.0], [0.0]), item("tied:1", [9.0, 9.0], [0.0])])[
        "score"
    ] == pytest.approx(1.01)


def slow(items: list[Item]) -> float:
    """The score as a reader of the dataset's card would work it out."""
    by_id = {one.id: one for one in items}
    right = {"ref": [], "tied": []}  # type: dict[str, list[float]]
    for one in items:
        right[one.id.split(":")[0]].append(all(r > w for r in one.right for w in one.wrong))
    wins, hard, margins = [], [], []
    for name, tied in by_id.items():
        ref = by_id.get(name.replace("tied", "ref"))
        if not name.startswith("tied") or ref is None:
            continue
        spread = max(a - b for a in tied.right for b in tied.right)
        gaps = [min(r - w for r in one.right for w in one.wrong) for one in (tied, ref)]
        wins.append(gaps[0] > spread)
        hard.append(gaps[0] > spread and gaps[1] > spread)
        margins.append(math.tanh(min(gaps) / spread - 1))
    accuracies = 0.3 * fmean(right["tied"]) + 0.3 * fmean(right["ref"])
    return accuracies + 0.2 * fmean(wins) + 0.2 * fmean(hard) + 0.01 * fmean(margins)


def test_ties_are_what_a_slow_second_implementation_says() -> None:
    draw = random.Random(4)
    items = []
    for number in range(40):
        for kind, count in (("ref", 1), ("tied", draw.randrange(2, 7))):
            right = [draw.gauss(3.4, 0.4) for _ in range(count)]
            items.append(item(f"{kind}:{number}", right, [draw.gauss(0, 1) for _ in range(9)]))
    items.append(item("tied:99", [1.0, 2.0], [0.0]))  # without its ref item
    draw.shuffle(items)
    assert parts_of(items)["score"] == pytest.approx(slow(items), abs=1e-12)
    assert 0.2 < parts_of(items)["preferred_hard"] < 0.8


def test_a_weight_is_as_many_copies() -> None:
    weights = np.array([2.0, 2.0, 1.0, 1.0])
    heavy = ties(TWO_NUMBERS)(weights)
    copies = [*TWO_NUMBERS, item("ref:3", [2.0], [1.0, 0.0]), item("tied:3", [3.0, 2.5], [1.5])]
    assert heavy == pytest.approx(ties(copies)(np.ones(6)))
    assert np.isnan(ties(TWO_NUMBERS)(np.zeros(4))).all()


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([item("7", [1.0], [0.0])], "'7' is not ref:N or tied:N"),
        ([item("ref:1", [1.0], [0.0])] * 2, "'ref:1' is given 2 times"),
        ([item("ref:1", [1.0], [0.0]), item("tied:1", [1.0], [0.0])], "tied:1 has one right"),
        ([item("ref:1", [1.0], [0.0]), item("tied:2", [1.0, 2.0], [0.0])], "no N in common"),
        ([item("ref:1", [1.0], [0.0])], "no N in common"),
    ],
)
def test_what_cannot_be_scored_as_ties_is_said(items: list[Item], said: str) -> None:
    assert any(said in text for text in tie_problems(items))


def test_the_table_is_the_benchmark_as_published() -> None:
    assert sum(ROWS.values()) == 1865
    assert problems(ROWS) == []
    assert problems({**ROWS, "Math": 1, "Chat": 2}) == [
        "`Math` has 1 rows, the benchmark 183",
        "`Chat` (2 rows) is not a subset of it",
    ]


def benchmark() -> list[dict[str, Any]]:
    """As many rows as the benchmark has. The right answers are long, but for those of Math."""
    rows: list[dict[str, Any]] = []
    for subset, count in ROWS.items():
        for number in range(count):
            if subset == "Ties":
                kind, n = ("ref", "tied")[number % 2], number // 2
                chosen = ["aaaaaaaa"] if kind == "ref" else ["aaaaaaaa", "bbbbbbbb"]
                row = {"id": f"{kind}:{n}", "chosen": chosen, "rejected": ["x", "yy", "zz"]}
            else:
                chosen = ["a" if subset == "Math" else "aaaaa"]
                row = {"id": str(number), "chosen": chosen, "rejected": ["bb", "cc", "dd"]}
            rows.append({**row, "subset": subset, "prompt": f"{subset} {row['id']}"})
    return rows


class Length:
    """A scorer that likes long answers."""

    name, range = "length", (0.0, 1e9)

    def score(self, prompts: Any, completions: Any, references: Any = None) -> Scores:
        """Count letters."""
        self.calls = getattr(self, "calls", 0) + len(completions)
        return Scores([float(len(text)) for text in completions])

    def fingerprint(self) -> str:
        """The same for all."""
        return "length"


def test_the_benchmarks_score_is_the_plain_mean_of_its_subsets(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "bench.jsonl", benchmark())
    source = Source(path=str(tmp_path / "bench.jsonl"))
    assert has_lists(source)
    choices = read_choices(source)
    items, remarks = score_choices(Length(), choices.rows)
    found = measure(items, choices.rows, resamples=20)
    scores = {row["name"]: row["score"]["value"] for row in found["subsets"]}
    assert scores == {**dict.fromkeys(ROWS, 1.0), "Math": 0.0, "Ties": pytest.approx(1.01)}
    assert found["rewardbench2"]["value"] == pytest.approx((4 + 1.01) / 6)
    assert found["accuracy"]["value"] == pytest.approx(1 - 183 / 1763)
    assert found["chance"] == 0.25
    assert found["ties"]["margin"]["value"] == 1.0
    assert (found["items"], remarks, found["left_out"]) == (1865, [], [])


def test_other_rows_get_no_score_of_the_benchmark_and_it_says_why(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "part.jsonl", benchmark()[:500])
    choices = read_choices(Source(path=str(tmp_path / "part.jsonl")))
    found = measure(score_choices(Length(), choices.rows)[0], choices.rows, resamples=0)
    assert found["rewardbench2"] is None
    assert "the rows are not the benchmark's. `Precise IF` has 25 rows" in found["left_out"][0]


def test_rows_without_subsets_are_measured_too(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": ["aaa"], "rejected": ["b", "cc"]},
        {"prompt": "q", "chosen": ["a", "bb"], "rejected": ["cc"]},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    choices = read_choices(Source(path=str(tmp_path / "rows.jsonl")))
    found = measure(score_choices(Length(), choices.rows)[0], choices.rows, resamples=50)
    assert found["accuracy"]["value"] == 0.75
    assert found["accuracy"]["low"] <= 0.75 <= found["accuracy"]["high"]
    assert found["chance"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert (found["rewardbench2"], found["ties"], found["left_out"]) == (None, None, [])


def test_an_answer_that_stands_twice_is_scored_once(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": ["aaa", "aaa"], "rejected": ["b"]}] * 2
    write_jsonl(tmp_path / "rows.jsonl", rows)
    choices = read_choices(Source(path=str(tmp_path / "rows.jsonl")))
    scorer = Length()
    items, _ = score_choices(scorer, choices.rows)
    assert scorer.calls == 2
    assert list(items[0].right) == [3.0, 3.0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": ["a"], "rejected": ["b"]}, "prompt is null, not text"),
        ({"prompt": "p", "chosen": [], "rejected": ["b"]}, "chosen is empty"),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, "rejected is text, not a list"),
        ({"prompt": "p", "chosen": ["a", 3], "rejected": ["b"]}, "answer 2 of chosen is a number"),
        ({"prompt": "p", "chosen": ["a"], "rejected": ["a"]}, "'a' is among chosen and rejected"),
    ],
)
def test_a_broken_row_is_named_or_left_out(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    good = {"prompt": "p", "chosen": ["a"], "rejected": ["b"]}
    write_jsonl(tmp_path / "rows.jsonl", [good, row])
    source = Source(path=str(tmp_path / "rows.jsonl"))
    with pytest.raises(DataError) as caught:
        read_choices(source)
    assert caught.value.problems[0].where.endswith("rows.jsonl:2")
    assert said in caught.value.problems[0].message
    assert len(read_choices(source, drops_bad=True).rows) == 1


def test_pairs_have_no_lists(tmp_path: Path) -> None:
    turns = [{"role": "assistant", "content": "a"}]
    for name, chosen in (("pairs", "a"), ("turns", turns)):
        write_jsonl(
            tmp_path / f"{name}.jsonl", [{"prompt": "p", "chosen": chosen, "rejected": chosen}]
        )
        assert not has_lists(Source(path=str(tmp_path / f"{name}.jsonl")))
