"""A selection from contests, written down: rows that have passed a test set, and all else with its
reason.

    candidates.jsonl        the rows before the test set was asked; removed at the end
    train.jsonl             the rows
    dropped.jsonl           prompts that gave none, and why
    decontamination.json    what overlapped with the test set, by layer
    selection.json          the summary

Rules to compare with, in place of what was lost (arXiv 2407.10627, table on data selection):
`random` takes as many prompts as were lost, drawn at random, with the best opponent's answer,
`random_opponent` the same prompts with any opponent's, `all` every prompt with the best one's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from aligner.arena.selection.contests import Contest
from aligner.arena.selection.rows import Origins, dropped_rows, training_rows
from aligner.arena.selection.rules import NOBODY, Chosen, Dropped, For, Rules, Selected
from aligner.arena.selection.summary import summary_of
from aligner.arena.testset.embedding import embedding_of
from aligner.arena.testset.frozen import TestSet, clusters_of
from aligner.arena.testset.training_rows import TrainingRows
from aligner.arena.testset.verify import Checks, look, report_of, write_without
from aligner.config.recipe import Source
from aligner.runs.files import dumps, json_line, write_atomically, write_parts_atomically

Rule = Literal["losses", "random", "random_opponent", "all"]

ROWS, DROPPED, SUMMARY = "train.jsonl", "dropped.jsonl", "selection.json"
CANDIDATES, DECONTAMINATION = "candidates.jsonl", "decontamination.json"
NOT_DRAWN = "not drawn"


@dataclass(frozen=True)
class Selection:
    """What is selected, and how, and what is known of where it comes from."""

    purpose: For
    rules: Rules
    rule: Rule = "losses"
    seed: int = 0
    origins: Origins = field(default_factory=Origins)

    def of(self, contests: Sequence[Contest]) -> list[Selected]:
        """Return what each contest gives, in their order."""
        if self.purpose != "sft":
            return [self.rules.pair(contest) for contest in contests]
        lost = [self.rules.sft(contest) for contest in contests]
        if self.rule == "losses":
            return lost
        draws = random.Random(self.seed)
        any_winner = self.rule == "random_opponent"
        best = [self._unfought(contest, draws if any_winner else None) for contest in contests]
        if self.rule == "all":
            return best
        usable = [place for place, one in enumerate(best) if isinstance(one, Chosen)]
        wanted = min(sum(isinstance(one, Chosen) for one in lost), len(usable))
        drawn = set(draws.sample(usable, wanted))
        return [
            one if place in drawn or isinstance(one, Dropped) else Dropped(one.contest, NOT_DRAWN)
            for place, one in enumerate(best)
        ]

    def _unfought(self, contest: Contest, draws: random.Random | None) -> Selected:
        """The answer of the best opponent, or of any, whoever won."""
        names = self.rules.learnable(contest)
        if not names:
            return Dropped(contest, NOBODY)
        name = names[0] if draws is None else draws.choice(sorted(names))
        margin = contest.margin(name, self.rules.target)
        consistent = contest.is_consistent(name, self.rules.target)
        return Chosen(contest, name, self.rules.target, margin or 0.0, consistent)


def write_selection(
    folder: Path,
    selection: Selection,
    contests: Sequence[Contest],
    tests: TestSet | None,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Select, leave out what overlaps with the test set, write everything, and return the summary.
    `facts`: what else it shall say."""
    selected = selection.of(contests)
    chosen = [one for one in selected if isinstance(one, Chosen)]
    rules, origins = selection.rules, _with_test_set(selection.origins, tests)
    rows = training_rows(
        chosen, selection.purpose, target=rules.target, k=rules.limits.k, origins=origins
    )
    lines = [json_line(row) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    overlapping: set[int] = set()
    if tests is not None and lines:
        overlapping = _write_clean(folder, lines, tests)
    else:
        write_parts_atomically(folder / ROWS, lines)
    left = _without(selected, overlapping)
    dropped = [one for one in left if isinstance(one, Dropped)]
    write_parts_atomically(folder / DROPPED, map(json_line, dropped_rows(dropped)))
    summary = summary_of(left, rules.limits, rules.target)
    kept = [origins.licenses.get(one.winner, "") for one in left if isinstance(one, Chosen)]
    licenses = dict(Counter(kept).most_common())
    summary |= {"for": selection.purpose, "rule": selection.rule, "licenses": licenses, **facts}
    write_atomically(folder / SUMMARY, dumps(summary, indent=2) + "\n")
    return summary


def _with_test_set(origins: Origins, tests: TestSet | None) -> Origins:
    """The same with what a test set says of rows."""
    more = {"test_set_sha256": None if tests is None else tests.sha256, **origins.more}
    clusters = {} if tests is None else clusters_of(tests)
    return replace(origins, clusters=clusters, more=more)


OVERLAPS = "overlaps with the test set"


def _write_clean(folder: Path, lines: Sequence[str], tests: TestSet) -> set[int]:
    """Write the rows that no layer finds in the test set, with the report on them; return the
    numbers of the others."""
    path, checks, embedding = folder / CANDIDATES, Checks(), embedding_of("auto")
    write_parts_atomically(path, lines)
    data = TrainingRows([Source(path=str(path))])
    found, origins = look(tests, data, checks, embedding)
    report = report_of(tests, data, checks, embedding, found, origins)
    report = write_without(data, found, origins, folder / ROWS, report)
    write_atomically(folder / DECONTAMINATION, dumps(report, indent=2) + "\n")
    path.unlink()
    return set(found)


def _without(selected: Iterable[Selected], overlapping: set[int]) -> list[Selected]:
    """What was selected, with what overlaps among the dropped."""
    found: list[Selected] = []
    number = 0
    for one in selected:
        if isinstance(one, Chosen):
            is_in = number in overlapping
            number += 1
            one = Dropped(one.contest, OVERLAPS) if is_in else one
        found.append(one)
    return found
