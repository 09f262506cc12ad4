"""How often a reward model picks a right answer among several: rows with lists of right and wrong
answers, as RewardBench 2 has them.

    prompt, chosen (a list of right answers), rejected (a list of wrong ones), id, subset

Each different answer to a prompt is scored once. A row counts as `rewardbench2.credit` says, but
for rows of a subset `Ties`, which are scored together. The mean of the subsets is RewardBench 2's
score where the rows are that benchmark's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aligner.config.recipe import Source
from aligner.data.checks import BadRow, kind, text
from aligner.data.columns import move_columns
from aligner.data.files import BLANK, Unreadable
from aligner.data.ledger import FileRecord
from aligner.data.messages import messages, question
from aligner.data.sources import open_source
from aligner.errors import DataError, Problem
from aligner.evaluation import rewardbench2
from aligner.evaluation.bootstrap import Estimate, Statistic, estimates, shares
from aligner.evaluation.figures import Figures, grouped, mean
from aligner.evaluation.pair_scores import AT_ONCE, numbered
from aligner.evaluation.rewardbench2 import PARTS, TIES, Item
from aligner.reward_models.base import Prompt, Scorer
from aligner.reward_models.batching import (
    Answers,
    Progress,
    ask,
    by_prompt,
    prompt_key,
    refuse_silent,
)
from aligner.runs.journal import Journal

LISTED = 20

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """A prompt with right and wrong answers. `subset`: empty where rows name none."""

    id: str
    prompt: Prompt
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    subset: str
    origin: str


@dataclass(frozen=True, slots=True)
class Choices:
    """The rows of a source, the files that they came from, and how many were broken."""

    rows: list[Choice]
    files: list[FileRecord]
    dropped: int


def has_lists(source: Source) -> bool:
    """Say whether the first row has lists of texts as `chosen` and `rejected`."""
    first = next((raw for _, raw in open_source(source) if isinstance(raw, dict)), {})
    moved = move_columns(first, source.columns)
    return _is_list_of_texts(moved.get("chosen")) and _is_list_of_texts(moved.get("rejected"))


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def read_choices(
    source: Source, column: str = "subset", *, drops_bad: bool = False, seed: int = 0
) -> Choices:
    """Read rows. `column` divides them; `seed` says which of them a sample takes.

    Raises: DataError that lists broken rows, unless they are dropped and leave something over.
    """
    files: list[FileRecord] = []
    rows: list[Choice] = []
    bad: list[Problem] = []
    for origin, raw in open_source(source, files):
        if raw is BLANK:
            continue
        try:
            rows.append(_choice(raw, source, column, origin))
        except BadRow as error:
            bad.append(Problem(str(error), origin))
    if bad and not (drops_bad and rows):
        raise DataError(
            f"{len(bad):,} of {len(bad) + len(rows):,} rows of {source.path} are broken",
            "fix them, or leave them out with --on-bad-row drop",
            bad[:LISTED],
        )
    if not rows:
        raise DataError(f"{source.path} holds no rows", "check the path")
    if source.max_rows is not None and source.max_rows < len(rows):
        kept = sorted(random.Random(seed).sample(range(len(rows)), source.max_rows))
        rows = [rows[place] for place in kept]
    return Choices(rows, files, len(bad))


def _choice(raw: Any, source: Source, column: str, origin: str) -> Choice:
    if isinstance(raw, Unreadable):
        raise BadRow(raw.reason)
    row = move_columns(raw, source.columns)
    asked = row.get("prompt")
    prompt = (
        question(messages(asked, "prompt"), "prompt")
        if isinstance(asked, list)
        else text(asked, "prompt")
    )
    sides = [_texts(row.get(side), side) for side in ("chosen", "rejected")]
    if both := sorted(set(sides[0]) & set(sides[1])):
        raise BadRow(f"{both[0][:40]!r} is among chosen and rejected")
    named = row.get("id")
    subset = row.get(column)
    return Choice(
        "" if named is None else str(named),
        prompt,
        sides[0],
        sides[1],
        "" if subset is None else str(subset),
        origin,
    )


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is {kind(value) if value != [] else 'empty'}, not a list of texts")
    return tuple(text(one, f"answer {place} of {name}") for place, one in enumerate(value, 1))


def score_choices(
    scorer: Scorer,
    rows: Sequence[Choice],
    *,
    at_once: int | None = AT_ONCE,
    journal: Journal | None = None,
    on_progress: Progress | None = None,
) -> tuple[list[Item], list[tuple[str, str]]]:
    """Return the scores of each row's answers, and remarks of the scorer with their rows. All
    answers to a prompt are scored in one call; the rest is as in `pair_scores.judge`.

    Raises: DataError that lists the answers without a score, after all others were asked about.
    """
    prompts, texts, origins, places = _columns(rows)
    asked = Answers(prompts, texts, [None] * len(texts), origins)
    found = ask(
        lambda: scorer,
        asked,
        by_prompt(prompts, at_once),
        journal=journal,
        together=at_once is None,
        on_progress=on_progress,
    )
    refuse_silent(scorer.name, asked, found.silent, len(found))
    items = []
    for row in rows:
        key = prompt_key(row.prompt)
        right = [found.values[places[key, answer]] for answer in row.right]
        wrong = [found.values[places[key, answer]] for answer in row.wrong]
        items.append(Item(row.id, row.subset, right, wrong))
    return items, [(origins[place], found.remarks[place]) for place in sorted(found.remarks)]


def _columns(
    rows: Sequence[Choice],
) -> tuple[list[Prompt], list[str], list[str], dict[tuple[str, str], int]]:
    """Every different answer to every prompt, and where it stands."""
    places: dict[tuple[str, str], int] = {}
    prompts: list[Prompt] = []
    texts: list[str] = []
    origins: list[str] = []
    for row in rows:
        key = prompt_key(row.prompt)
        for name, side in (("chosen", row.right), ("rejected", row.wrong)):
            for number, answer in enumerate(side, 1):
                if (key, answer) not in places:
                    places[key, answer] = len(texts)
                    prompts.append(row.prompt)
                    texts.append(answer)
                    origins.append(f"{row.origin} (answer {number} of {name})")
    return prompts, texts, origins, places


def measure(
    items: Sequence[Item], rows: Sequence[Choice], *, resamples: int = 1000, seed: int = 0
) -> Record:
    """Return every number, as plain values. Intervals are over resampled prompts; both items of a
    number N of Ties are drawn together."""
    subsets = sorted({item.subset for item in items}, key=_order)
    parts, left_out = _parts(items, subsets)
    groups = numbered([_group(item, row) for item, row in zip(items, rows)])
    found = estimates(parts, groups, resamples=resamples, seed=seed)
    counts = Counter(item.subset for item in items)
    others = [item for item in items if item.subset != TIES]
    ties = found.get(f"subset {TIES}")
    return {
        "kind": "best_of",
        "items": len(items),
        "answers": sum(len(item.right) + len(item.wrong) for item in items),
        "chance": float(np.mean([_chance(item) for item in others])) if others else None,
        "accuracy": _figure(found.get("accuracy")),
        "rewardbench2": _figure(found.get("rewardbench2")),
        "subsets": [
            {"name": name, "items": counts[name], "score": _figure(found[f"subset {name}"])}
            for name in subsets
            if f"subset {name}" in found
        ],
        "ties": ties and {name: asdict(figure) for name, figure in zip(PARTS, ties, strict=True)},
        "left_out": left_out,
    }


def credits_of(items: Sequence[Item], rows: Sequence[Choice]) -> Figures | None:
    """Return how often the best answer is right as what each row adds, for a comparison; None where
    all rows are of Ties."""
    kept = [(item, row) for item, row in zip(items, rows, strict=True) if item.subset != TIES]
    if not kept:
        return None
    groups = grouped([_group(item, row) for item, row in kept])
    return Figures({"accuracy": mean([rewardbench2.credit(item) for item, _ in kept], 1)}, groups)


def _parts(items: Sequence[Item], subsets: Sequence[str]) -> tuple[dict[str, Statistic], list[str]]:
    """What is estimated, by name, and what is left out, and why."""
    parts: dict[str, Statistic] = {}
    left_out = []
    for subset in subsets:
        inside = [item for item in items if item.subset == subset]
        wrong = rewardbench2.tie_problems(inside) if subset == TIES else []
        if wrong:
            left_out.append(f"the score of Ties: {_listed(wrong)}")
        else:
            parts[f"subset {subset}"] = _within(items, subset)
    wrong = rewardbench2.problems(Counter(item.subset for item in items))
    if wrong and rewardbench2.looks_like(subsets):
        why = "the rows are not the benchmark's"
        left_out.append(f"RewardBench 2's score: {why}. {_listed(wrong)}")
    elif not wrong and not left_out:
        parts["rewardbench2"] = _mean_of([*parts.values()])
    is_tied = np.array([item.subset == TIES for item in items])
    if not is_tied.all():
        wins = np.array([rewardbench2.credit(item) for item in items])
        both = shares(wins, is_tied.astype(np.int64), 2)
        parts["accuracy"] = lambda weights: both(weights)[:1]
    return parts, left_out


def _listed(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more


def _figure(found: Sequence[Estimate] | None) -> Record | None:
    return None if found is None else asdict(found[0])


def _chance(item: Item) -> float:
    return len(item.right) / (len(item.right) + len(item.wrong))


def _order(subset: str) -> tuple[int, str]:
    names = [*rewardbench2.ROWS]
    return (names.index(subset) if subset in names else len(names), subset)


def _group(item: Item, row: Choice) -> tuple[str, str]:
    """What is drawn together: both items of a number of Ties, and rows of one prompt."""
    number = rewardbench2.number_of(item.id) if item.subset == TIES else ""
    return (TIES, number) if number else ("", prompt_key(row.prompt))


def _within(items: Sequence[Item], subset: str) -> Statistic:
    """The score of a subset first, by the weights of all items."""
    places = [place for place, item in enumerate(items) if item.subset == subset]
    inside = [items[place] for place in places]
    if subset == TIES:
        of_ties = rewardbench2.ties(inside)
        return lambda weights: of_ties(weights[places])
    wins = np.array([rewardbench2.credit(item) for item in inside])
    mean = shares(wins, np.zeros(len(inside), dtype=np.int64), 1)
    return lambda weights: mean(weights[places])


def _mean_of(parts: Sequence[Statistic]) -> Statistic:
    return lambda weights: np.array([np.mean([part(weights)[0] for part in parts])])


def lines_of(rows: Sequence[Choice]) -> Iterator[str]:
    """Yield what decides the scores, for a fingerprint."""
    for row in rows:
        yield repr((row.id, row.subset, prompt_key(row.prompt), row.right, row.wrong))
