"""Measure a reward model on preference pairs: accuracy, length bias, calibration, agreement.

    accuracy           share of pairs whose chosen answer wins, a tie counting half; also without
                       ties, by category, by
                       length, and by RewardBench's average where the rows are that benchmark's
    segments           of a segment reward model: accuracy by the number of segments, and of the
                       values in each third of the answers
    length             accuracy by the difference in length; correlation of the scores with length
    calibration        whether pairs that it is 80% sure of are 80% right; ECE is the mean distance
    agreement          of two reward models: how often they choose the same, and whether they err on
                       the same pairs

Every pair counts the same, whatever its training weight. Intervals are 95% percentile intervals
over resampled prompts (`bootstrap.py`). Length is counted in characters, since a scorer sees text
only.

For scores, the probability that calibration looks at is the sigmoid of their difference, which is
meant as one only by models trained with Bradley and Terry's loss. The ECE of a perfectly calibrated
model is above 0 on few pairs, and so is its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from aligner.evaluation import rewardbench
from aligner.evaluation.bootstrap import (
    Estimate,
    Floats,
    Integers,
    Statistic,
    estimates,
    or_none,
    shares,
)
from aligner.evaluation.calibration import calibration_curve, calibration_error
from aligner.evaluation.comparing import compare
from aligner.evaluation.correlation import kappa, spearman
from aligner.evaluation.figures import Figures, mean
from aligner.evaluation.groups import Groups, buckets, by_column, by_sign, length_differences
from aligner.evaluation.length_bias import length_correlation
from aligner.evaluation.pair_scores import DifferentAnswers, Judged, Pair, numbered
from aligner.evaluation.segment_accuracy import segment_accuracy

Record = dict[str, Any]

FIRST_REMARKS = 5


def measure(
    judged: Judged,
    pairs: Sequence[Pair],
    answers: DifferentAnswers,
    column: str | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Record:
    """Every number about one reward model, as plain values; None where one is not defined."""
    assert pairs, "there is at least one pair"
    prompts, wins = numbered([pair.question for pair in pairs]), judged.wins
    differences = length_differences(pairs)
    groupings = {"buckets": buckets(differences), "chosen_is": by_sign(differences)}
    if column is not None:
        groupings["categories"] = by_column(pairs, column)
    bench, why_not = _bench(pairs, wins)
    parts: dict[str, Statistic] = {
        "accuracy": shares(wins, np.zeros(len(pairs), dtype=np.int64), 1),
        "without_ties": _without_ties(judged),
        "ece": calibration_error(judged),
        **{name: shares(wins, groups.of, len(groups.names)) for name, groups in groupings.items()},
    }
    if bench is not None:
        parts["rewardbench"] = _bench_statistic(pairs, wins)
    by_segments = segment_accuracy(judged, answers)
    if by_segments is not None:
        parts |= by_segments.statistics()
    found = estimates(parts, prompts, resamples=resamples, seed=seed)
    tables = {
        name: _table(groups, found[name], prompts, judged) for name, groups in groupings.items()
    }
    for bucket, row in enumerate(tables["buckets"]):
        inside = differences[groupings["buckets"].of == bucket]
        del row["name"]
        row |= {"from": int(inside.min()), "to": int(inside.max())}
    return {
        "kind": "pointwise" if judged.scores is not None else "pairwise",
        "pairs": len(pairs),
        "prompts": int(prompts.max()) + 1,
        "accuracy": asdict(found["accuracy"][0]),
        "accuracy_without_ties": asdict(found["without_ties"][0]),
        "ties": int((judged.margins == 0).sum()),
        "order_flips": None
        if judged.flips is None
        else {"pairs": judged.flips, "share": judged.flips / len(pairs)},
        "remarks": {
            "count": len(judged.remarks),
            "first": [
                {"row": origin, "said": said} for origin, said in judged.remarks[:FIRST_REMARKS]
            ],
        },
        "rewardbench": None if bench is None else _bench_record(bench, found["rewardbench"]),
        "categories": sorted(tables.get("categories", []), key=lambda row: -row["pairs"]),
        "length": {
            "unit": "characters",
            "correlation": None
            if judged.scores is None
            else length_correlation(judged.scores, answers),
            "chosen_is": tables["chosen_is"],
            "buckets": tables["buckets"],
        },
        "segments": None if by_segments is None else by_segments.record(found),
        "calibration": {"ece": asdict(found["ece"][0]), "curve": calibration_curve(judged)},
        "left_out": _left_out(judged, prompts, resamples, why_not),
    }


def _without_ties(judged: Judged) -> Statistic:
    decided = judged.margins != 0
    count = shares(judged.wins, np.where(decided, 0, 1), 2)
    return lambda weights: count(weights)[:1]


def _table(
    groups: Groups, found: Sequence[Estimate], prompts: Integers, judged: Judged
) -> list[Record]:
    """A row for each group; no interval for a group with one prompt, which resampling cannot
    vary."""
    pairs = np.bincount(groups.of, minlength=len(groups.names))
    ties = np.bincount(groups.of, judged.margins == 0, len(groups.names))
    asked = np.bincount(
        np.unique(np.stack([groups.of, prompts]), axis=1)[0], minlength=len(groups.names)
    )
    return [
        {
            "name": name,
            "pairs": int(pairs[index]),
            "ties": int(ties[index]),
            "accuracy": asdict(found[index] if asked[index] > 1 else Estimate(found[index].value)),
        }
        for index, name in enumerate(groups.names)
    ]


def _bench(pairs: Sequence[Pair], wins: Floats) -> tuple[rewardbench.RewardBench | None, str]:
    """RewardBench's average, or why there is none; neither for rows that have nothing to do with
    it."""
    subsets = by_column(pairs, "subset")
    if not rewardbench.looks_like(subsets.names):
        return None, ""
    counts = dict(zip(subsets.names, np.bincount(subsets.of).tolist()))
    wrong = rewardbench.problems(counts)
    if wrong:
        shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        return None, f"RewardBench's average: the rows are not the benchmark's. {shown}"
    return rewardbench.aggregate(
        [subsets.names[number] for number in subsets.of], wins.tolist()
    ), ""


def _bench_statistic(pairs: Sequence[Pair], wins: Floats) -> Statistic:
    """The overall score, then the sections."""
    place = {subset: index for index, subset in enumerate(rewardbench.SUBSETS)}
    by_subset = shares(wins, np.array([place[pair.extra["subset"]] for pair in pairs]), len(place))
    mixing = rewardbench.mixing()

    def statistic(weights: Floats) -> Floats:
        sections = mixing @ by_subset(weights)
        return np.concatenate([[sections.mean()], sections])

    return statistic


def _bench_record(bench: rewardbench.RewardBench, found: Sequence[Estimate]) -> Record:
    overall, *sections = found
    return {
        "overall": {**asdict(overall), "stderr": bench.overall.stderr},
        "sections": {
            name: {**asdict(estimate), "stderr": share.stderr}
            for (name, share), estimate in zip(bench.sections.items(), sections)
        },
        "subsets": {name: asdict(share) for name, share in bench.subsets.items()},
    }


def _left_out(judged: Judged, prompts: Integers, resamples: int, why_not: str) -> list[str]:
    """What is not there, and why."""
    found = [why_not] if why_not else []
    if judged.scores is None:
        found.append(
            "Correlation of scores with length: it compares two answers and gives no scores."
        )
    if resamples and prompts.max() < 1:
        found.append("Intervals: all pairs are of one prompt, and prompts are what is resampled.")
    return found


def agreement(
    first: Judged, second: Judged, pairs: Sequence[Pair], *, resamples: int = 1000, seed: int = 0
) -> Record:
    """How far two reward models choose the same. A tie is a choice of its own.

    Kappa takes off what they would share by being right about equally often, so it says whether
    they err on the same pairs. `accuracy_difference` is the first less the second, on the same
    draws of prompts; its `p_value` is that of a permutation test over prompts, and beside it stands
    the sign test (`comparing.py`).
    """
    left, right = (np.sign(one.margins).astype(np.int64) + 1 for one in (first, second))
    nowhere = np.zeros(len(pairs), dtype=np.int64)
    parts: dict[str, Statistic] = {
        "same_choice": shares((left == right).astype(np.float64), nowhere, 1),
        "kappa": lambda weights: np.array([kappa(left, right, weights, 3)]),
        "accuracy_difference": shares(first.wins - second.wins, nowhere, 1),
    }
    prompts = numbered([pair.question for pair in pairs])
    found = estimates(parts, prompts, resamples=resamples, seed=seed)
    one, other = (
        Figures({"accuracy": mean(judged.wins.tolist(), 1)}, prompts) for judged in (first, second)
    )
    tested = compare(one, other, resamples=resamples, seed=seed)["accuracy"]
    return {
        **{name: asdict(estimate) for name, (estimate,) in found.items()},
        "tested": {
            key: tested[key] for key in ("p_value", "ahead", "behind", "equal", "sign_test")
        },
        "spearman": or_none(spearman(first.margins, second.margins)),
        "both_right": int(((left == 2) & (right == 2)).sum()),
        "only_first_right": int(((left == 2) & (right != 2)).sum()),
        "only_second_right": int(((left != 2) & (right == 2)).sum()),
        "neither_right": int(((left != 2) & (right != 2)).sum()),
    }
