"""What is looked at in all finished rows together: duplicates of seeds and of earlier rows, and
overlaps with test sets.

The order of the rows decides which of two duplicates stays, never the time they were made. Each row
is dropped for the first thing that is found. What is asked of a row by itself stands in
`checks.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aligner.builders.evolve.made import Made
from aligner.builders.evolve.recipe import Evolve
from aligner.data.duplicates import SeenTexts
from aligner.data.ledger import Ledger
from aligner.data.loading import read_source
from aligner.data.overlaps import TestTexts
from aligner.data.rows import as_turns, question_of

KEPT_SEED = "kept_seed"
"""Key of a row's provenance: its instruction is the seed's, so that it may equal that."""


@dataclass
class AllVerdicts:
    """Rows that are to be dropped, id -> (reason, what it is the same as), and counts: of each
    reason, of pairs that were `compared` and `confirmed` as near duplicates, and of rows with words
    of a test set that are too few to drop for (`short_overlap`)."""

    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class TestSets:
    """What no row may overlap with, and the files that it was read from."""

    __test__ = False  # not a test of pytest

    texts: TestTexts
    ledger: Ledger


def load_test_sets(settings: Evolve) -> TestSets | None:
    """Read the test sets of a recipe, or return None where it names none. Raises: DataError, as
    for training rows."""
    sources = settings.checks.test_sets
    if sources is None:
        return None
    sets = TestSets(TestTexts(settings.checks.ngram), Ledger())
    for source in sources:
        for row in read_source(source, "prompts", "error", sets.ledger):
            question = question_of(row)
            assert question is not None, "rows with prompts ask something"
            prompt, answer = question
            sets.texts.add(row.origin, asked(as_turns(prompt, "user")), answer or "")
    return sets


def check_all(
    rows: Iterable[Made],
    seeds: Iterable[tuple[str, str]],
    settings: Evolve,
    tests: TestTexts | None = None,
) -> AllVerdicts:
    """Look at finished rows, in the order of the output. `seeds`: (id, instruction). A row may be
    near to the seed that it comes from, and to rows of earlier rounds: a few words more make a long
    instruction harder, and leave most of it as it was. Memory holds what is asked, not what is
    answered."""
    checks, found = settings.checks, AllVerdicts()
    seen = SeenTexts(checks.near_duplicates, exact=checks.duplicates, counts=found.counts)
    looks_for_same = checks.duplicates or checks.near_duplicates is not None
    free = set()  # seeds whose own instruction no row has kept yet
    kin: tuple[str, set[str]] = ("", set())  # the seed of the latest row, and its rows
    if looks_for_same:
        for name, text in seeds:
            seen.add(text, name)
            free.add(name)
    for made in rows:
        reason = None
        if made.seed_id != kin[0]:
            kin = (made.seed_id, {made.seed_id})
        if looks_for_same:
            reason = _same(made, seen, free, kin[1])
        kin[1].add(made.id)
        if reason is None and tests is not None:
            reason = _overlapping(made, tests, found.counts, is_dropped=checks.drop_overlaps)
        if reason is not None:
            found.dropped[made.id] = reason
            found.counts[reason[0]] += 1
        elif looks_for_same:
            seen.add(asked(made.prompt), made.id)
    return found


def asked(prompt: Iterable[Mapping[str, Any]]) -> str:
    """Return what the user says in a prompt."""
    return "\n".join(str(turn["content"]) for turn in prompt if turn["role"] == "user")


def _same(made: Made, seen: SeenTexts, free: set[str], kin: set[str]) -> tuple[str, str] | None:
    match = seen.match(asked(made.prompt), kin)
    if match is None:
        return None
    if made.provenance.get(KEPT_SEED) and match.similarity == 1.0 and match.name in free:
        free.discard(match.name)
        return None
    kind = "duplicate" if match.exact else "near_duplicate"
    return kind, f"{match.name} ({match.similarity:.0%} the same)"


def _overlapping(
    made: Made, tests: TestTexts, counts: Counter[str], *, is_dropped: bool
) -> tuple[str, str] | None:
    overlap = tests.overlap(asked(made.prompt), made.completion)
    if overlap is None:
        return None
    if overlap.is_long and is_dropped:
        return "overlap", f"{overlap.test}: {overlap.words}"
    counts["long_overlap" if overlap.is_long else "short_overlap"] += 1
    return None
