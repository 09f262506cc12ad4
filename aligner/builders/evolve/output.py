"""From finished rows to the files of a run: the rows, those that were dropped, where each comes
from, and the numbers of the report.

    data/train.jsonl     `prompt` and `completion`; whole conversations as `messages`
    dropped.jsonl        each row that is not in there, with the reason
    provenance.jsonl     of each row that is: seed, parent, round, method, models, usage
    evolve.json          every number of the report, and some rows to read

The order is that of the seeds. Nothing here asks a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.builders.evolve.checks import REASONS as OF_CHECKS
from aligner.builders.evolve.failures import asks_back
from aligner.builders.evolve.made import Made
from aligner.builders.evolve.output_checks import KEPT_SEED, AllVerdicts
from aligner.builders.evolve.seeds import Seed
from aligner.runs.files import json_line, write_parts_atomically

TRAIN, DROPPED, PROVENANCE = Path("data", "train.jsonl"), "dropped.jsonl", "provenance.jsonl"
SUMMARY = "evolve.json"
SAMPLES = 12
"""Rows that the report shows."""
LONGEST_EXAMPLE = 1500
"""Characters of a text in an example."""
POOR = 0.5
"""A run that keeps less than this share of its rows says so loudly."""

REASONS = {
    "parse": "the reply that evolves holds no instruction where it should",
    "unchanged": "the evolved instruction is the one before",
    "template_leak": "words of the prompt stand in the evolved instruction",
    "content_filter": "the server's filter refused it",
    "context_length": "it is too long for the model",
    "unavailable": "the server gave no answer, again and again",
    "bad_reply": "what the server answered is no reply",
    "fatal": "the server refused the request",
    **OF_CHECKS,
    "empty": "a reply is empty",
    "refusal": "a reply refuses",
    "truncated": "a reply was cut at its longest length",
}
"""Reason for dropping a row -> what reports say."""


@dataclass(frozen=True)
class Outcomes:
    """What came of all rows: `lines` gives what came of each seed, as often as it is asked."""

    lines: Callable[[], Iterator[dict[str, Any]]]

    def made(self) -> Iterator[Made]:
        """Yield the rows that were made."""
        for line in self.lines():
            yield from map(Made.from_json, line["made"])


@dataclass
class Output:
    """Finished rows, and what was found in all of them together. `multiturn`: whether rows are
    whole conversations."""

    outcomes: Outcomes
    seeds: Sequence[Seed]
    verdicts: AllVerdicts
    is_multiturn: bool = False
    by_id: dict[str, Seed] = field(init=False)

    def __post_init__(self) -> None:
        self.by_id = {seed.id: seed for seed in self.seeds}

    def kept(self) -> Iterator[Made]:
        """Yield the rows that stay."""
        return (made for made in self.outcomes.made() if made.id not in self.verdicts.dropped)

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Yield a line for each row that does not."""
        for line in self.outcomes.lines():
            yield from line["dropped"]
            for values in line["made"]:
                if (found := self.verdicts.dropped.get(values["id"])) is not None:
                    yield self._line(Made.from_json(values), *found)

    def _line(self, made: Made, reason: str, detail: str) -> dict[str, Any]:
        seed = self.by_id[made.seed_id]
        return {
            "seed_id": made.seed_id,
            "round": made.round,
            "reason": reason,
            "from": self.before(made),
            "instruction": made.instruction,
            "answer": made.completion,
            "origin": seed.origin,
            "detail": detail,
        }

    def before(self, made: Made) -> str:
        """Return the turn of the seed that a row's instruction began as."""
        turns = sum(turn["role"] == "user" for turn in made.prompt)
        return self.by_id[made.seed_id].users[turns - 1]

    def row(self, made: Made) -> dict[str, Any]:
        """Return a row as it is trained on."""
        row = made.row()
        return row if not self.is_multiturn else {"messages": row["prompt"] + row["completion"]}

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files, and return the numbers."""
        (folder / TRAIN).parent.mkdir(exist_ok=True)
        write_parts_atomically(folder / TRAIN, (json_line(self.row(made)) for made in self.kept()))
        write_parts_atomically(folder / DROPPED, map(json_line, self.dropped()))
        write_parts_atomically(
            folder / PROVENANCE, (json_line(provenance(made)) for made in self.kept())
        )
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return every number there is to know of the rows, and some rows to read."""
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        examples: dict[str, dict[str, Any]] = {}
        words: list[int] = []
        samples: list[dict[str, Any]] = []
        for made in self.kept():
            counts["rows"] += 1
            counts[f"round {made.round}"] += 1
            counts["questions"] += asks_back(made.completion)
            counts["kept as they were"] += bool(made.provenance.get(KEPT_SEED))
            counts["tried twice"] += "retried_for" in made.provenance
            counts["conversations that ended early"] += "ended_by" in made.provenance
            if before := self.before(made):
                words.append(len(made.instruction.split()) - len(before.split()))
            if len(samples) < SAMPLES:
                samples.append(self._sample(made))
        for line in self.dropped():
            reasons[line["reason"]] += 1
            examples.setdefault(line["reason"], {key: _cut(value) for key, value in line.items()})
        found = {key: value for key, value in self.verdicts.counts.items() if key not in reasons}
        return {
            "seeds": len(self.seeds),
            "rows": counts.pop("rows", 0),
            "dropped": dict(reasons.most_common()),
            "examples": examples,
            "counts": {key: value for key, value in counts.items() if value},
            "found": found,
            "added_words": words,
            "samples": samples,
        }

    def _sample(self, made: Made) -> dict[str, Any]:
        return {
            "seed_id": made.seed_id,
            "round": made.round,
            "before": _cut(self.before(made)),
            "instruction": _cut(made.instruction),
            "answer": _cut(made.completion),
        }


def provenance(made: Made) -> dict[str, Any]:
    """Return where a row comes from, by its id."""
    return {
        "id": made.id,
        "seed_id": made.seed_id,
        "parent_id": made.parent_id,
        "round": made.round,
        **made.provenance,
    }


def poor_evolver(summary: Mapping[str, Any]) -> list[str]:
    """Return what is to be said loudly of a run that keeps few of its rows; nothing of others. The
    two commonest reasons have an example each."""
    lost = sum(summary["dropped"].values())
    total = lost + summary["rows"]
    if not total or summary["rows"] >= POOR * total:
        return []
    said = [
        f"only {summary['rows']:,} of {total:,} rows could be kept: the model that evolves, or the "
        "one that answers, is a poor one for this"
    ]
    for reason, count in list(summary["dropped"].items())[:2]:
        example = summary["examples"][reason]
        text = " ".join(str(example["instruction"] or example["from"]).split())
        answer = " ".join(str(example["answer"]).split())
        shown = f"{text[:160]!r}" + (f" got the answer {answer[:160]!r}" if answer else "")
        said.append(f"{count:,} dropped: {REASONS.get(reason, reason)}, such as {shown}")
    return said


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST_EXAMPLE:
        return f"{value[:LONGEST_EXAMPLE]} ..."
    return value
