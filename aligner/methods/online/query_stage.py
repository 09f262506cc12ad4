"""The stage in which an oracle is asked about few pairs of a round (`online.oracle`, arXiv
2407.02119): which ones, and what it says.

    picked.json    the pairs in the order in which they were picked; written before any is asked
    silent.jsonl   a journal: pairs that the oracle had no verdict on, and why
    labels.json    the pairs that were asked about, each with what became of it

One pair of each prompt that has two different responses which ended by themselves, and then some of
the prompts (`aligner.acquisition`). Answers stand in the ledger as they come, so that a kill costs
none; pairs are asked about one at a time, but where the oracle is a language model, whose replies
are kept one by one as it is. What has no verdict gets no label.

Where we differ from the paper: uncertainty is that of the proxy's preference, and the oracle is
asked about pairs of the policy of the round, again in each round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from aligner.acquisition.ngrams import ngram_vectors
from aligner.acquisition.selection import Triple, select
from aligner.acquisition.win_probabilities import sigmoid
from aligner.config.oracle import Oracle
from aligner.config.recipe import Model
from aligner.data.rows import PromptRow
from aligner.endpoints.request import LLMError
from aligner.errors import EndpointError
from aligner.events import OnEvent, StageProgress, StageStarted, Warned, tell
from aligner.methods.online.ledger import Ledger
from aligner.methods.online.pair_stage import Shard
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import Pairs, ask_parts, chunks
from aligner.reward_models.catalogue import holds, load_scorer, read_spec
from aligner.reward_models.ensemble import restore_budget
from aligner.reward_models.verdicts import Verdict
from aligner.runs.files import parse_json
from aligner.runs.stages import Stage

PICKED, SILENT, LABELS = "picked.json", "silent", "labels.json"
CURE = "delete the folder: the stage is made again"
ASKED_TOGETHER = 16
"""Pairs that a language model is asked about at once."""
LISTED = 5
"""Pairs without a verdict that a warning names."""

STRATEGIES = {
    "random": "random",
    "uncertainty": "uncertainty",
    "coreset_response": "diversity",
    "coreset_prompt": "diversity",
}
"""Selector -> the strategy of `select`."""

Row = Mapping[str, Any]
Array = np.ndarray


def labels_of(stage: Stage) -> list[dict[str, Any]]:
    """Return the pairs that a finished stage asked about."""
    found: list[dict[str, Any]] = parse_json(stage.folder / LABELS, CURE, list)
    return found


# --- the choice -----------------------------------------------------------------------------------


@dataclass
class Pool:
    """The prompts of a round with those responses that can be asked about, and what the proxy makes
    of them."""

    rows: list[PromptRow] = field(default_factory=list)
    responses: list[list[str]] = field(default_factory=list)
    beliefs: list[Array] = field(default_factory=list)
    """For each prompt how likely each response is better than each other one: (1, n, n)."""

    @classmethod
    def of(cls, rows: Sequence[PromptRow], shards: Iterator[tuple[range, Shard]]) -> Pool:
        """Take the responses that ended by themselves; what is cut off would teach to stop
        there."""
        pool = cls()
        for numbers, shard in shards:
            for number, scored in zip(numbers, shard, strict=True):
                kept = [one for one in scored if one.is_finished]
                known = [np.nan if one.score is None else one.score for one in kept]
                scores = np.array(known, dtype=np.float64)
                belief = sigmoid(scores[:, None] - scores[None, :])
                np.fill_diagonal(belief, 0.5)
                pool.rows.append(rows[number])
                pool.responses.append([one.text for one in kept])
                pool.beliefs.append(belief[None])
        return pool


@dataclass(frozen=True)
class Choice:
    """How a round's pairs are chosen: `count` of them at most. `earlier`: those of the rounds
    before, which a coreset spreads away from; `policy`: whose responses they are."""

    count: int
    settings: Oracle
    earlier: Sequence[Row]
    policy: Model
    seed: int

    def among(self, pool: Pool) -> list[dict[str, Any]]:
        """Return the pairs to ask about, the first pick first."""
        selection = select(
            [row.prompt for row in pool.rows],
            pool.responses,
            self.count,
            win_probabilities=pool.beliefs,
            strategy=STRATEGIES[self.settings.selector],
            pair=self.settings.pair,
            labelled=[(row["prompt"], row["a"], row["b"]) for row in self.earlier],
            embed=self._vectors,
            seed=self.seed,
        )
        lines = []
        for pair in selection.picked:
            row = pool.rows[pair.row]
            line = {"id": pair.id, "prompt": pair.prompt, "a": pair.a, "b": pair.b}
            known = {} if row.answer is None else {"answer": row.answer}
            lines.append({**line, **known, "origin": row.origin, "probability": pair.probability})
        return lines

    def _vectors(self, pairs: Sequence[Triple]) -> Array:
        """Return the vectors of pairs; of their prompts alone for `coreset_prompt`."""
        if self.settings.selector == "coreset_prompt":
            pairs = [(prompt, "", "") for prompt, _, _ in pairs]
        if self.settings.embedding == "ngrams":
            return ngram_vectors(pairs)
        from aligner.acquisition.embeddings import load_embedder, unit_vectors

        _, read = load_embedder(self.policy)
        return unit_vectors(read(pairs))


# --- the answers ----------------------------------------------------------------------------------


@dataclass
class Desk:
    """Asks an oracle. `made_of`: a hash of all that decides its answers; `account` and `since`:
    under which file and start of the run the budget of an endpoint continues."""

    spec: str
    made_of: str
    account: Path
    since: str
    on_event: OnEvent | None = None
    spent: str = ""
    """Why nothing more is asked: the budget of the oracle's own endpoint."""

    @cached_property
    def scorer(self) -> Scorer:
        """The oracle, loaded where there is something to ask."""
        tell(self.on_event, StageStarted(f"loading {self.spec}"))
        scorer = load_scorer(self.spec)
        restore_budget(scorer, self.account, self.since)
        return scorer

    def ledger(self) -> Ledger:
        """Open what it said so far, read from the disk."""
        return Ledger(self.made_of)

    def ask(self, stage: Stage, picked: Sequence[Row]) -> None:
        """Have every pair answered that is neither in the ledger nor known as silent."""
        ledger, silent = Ledger(self.made_of, self.on_event), stage.journal(SILENT)
        left = [
            number
            for number, pair in enumerate(picked)
            if number not in silent and ledger.known(pair) is None
        ]
        if not left:
            return
        ledger.check()
        rows, answered = _as_rows(picked), 0
        is_asked = holds(read_spec(self.spec), ("judge", "rating", "rules", "rubric"))
        size = ASKED_TOGETHER if is_asked else 1
        for part in chunks(len(left), size):
            asked = [left[place] for place in part]
            for number, verdict in self._said(rows, asked, answered).items():
                answered += 1
                if verdict.value is None:
                    silent.add(number, verdict.error)
                else:
                    ledger.add(picked[number], verdict.value)
            if self.spent:
                break
            told = StageProgress(f"{stage.name}, {self.spec}", part[-1] + 1, len(left))
            tell(self.on_event, told)

    def _said(self, rows: Pairs, asked: list[int], before: int) -> dict[int, Verdict]:
        """Return what the oracle says of some pairs; where the budget of its endpoint ends among
        them, what was paid for until then."""
        try:
            ((verdicts, _),) = ask_parts(lambda: self.scorer, rows, [asked])
            return verdicts
        except EndpointError as error:
            if not isinstance(error, LLMError) or error.kind != "budget":
                raise EndpointError(
                    f"online.oracle: {before:,} pairs were answered and are kept; then, at "
                    f"{rows.origins[asked[0]]}: {error.message}",
                    error.hint or "--resume asks about the others",
                ) from error
            self.spent = error.message
        if len(asked) == 1:
            return {}
        found: dict[int, Verdict] = {}
        for number in asked:  # the replies to these are kept, each as it came
            found |= self._said(rows, [number], before)
        return found


def _as_rows(pairs: Sequence[Row]) -> Pairs:
    return Pairs(
        [pair["prompt"] for pair in pairs],
        [pair["a"] for pair in pairs],
        [pair["b"] for pair in pairs],
        [pair.get("answer") for pair in pairs],
        [pair["origin"] for pair in pairs],
    )


# --- the stage ------------------------------------------------------------------------------------


def query(stage: Stage, desk: Desk, choice: Choice, pool: Callable[[], Pool]) -> None:
    """Choose pairs, have them answered, and finish the stage. `pool`: of what is chosen, read where
    nothing is chosen yet."""
    if stage.is_done:
        return
    picked = _picked(stage, desk, choice, pool)
    desk.ask(stage, picked)
    lines = _labelled(stage, desk, picked)
    stage.write(LABELS, lines)
    counts = Counter(line["label"] for line in lines)
    asked = {line["id"] for line in lines}
    facts = {
        "wanted": choice.count,
        "queries": len(lines),
        "spent": len(choice.earlier) + len(lines),
        "budget": choice.settings.budget,
        "from the ledger": sum(pair["is_known"] and pair["id"] in asked for pair in picked),
        "labels": counts["a"] + counts["b"],
        "ties": counts["tie"],
        "without a verdict": counts[None],
        "not asked": len(picked) - len(lines),
        "disagree": _disagreement(lines),
    }
    stage.finish(facts, [stage.folder / LABELS])


def _picked(
    stage: Stage, desk: Desk, choice: Choice, pool: Callable[[], Pool]
) -> list[dict[str, Any]]:
    """Return the pairs to ask about, and whether the ledger knew them when they were chosen."""
    if not (stage.folder / PICKED).exists():
        tell(stage.on_event, StageStarted("choosing what the oracle is asked"))
        pairs, ledger = choice.among(pool()), desk.ledger()
        stage.write(PICKED, [{**one, "is_known": ledger.known(one) is not None} for one in pairs])
        if len(pairs) < choice.count:
            text = f"{stage.name}: {len(pairs):,} prompts have a pair to ask about, fewer than the"
            tell(stage.on_event, Warned(f"{text} {choice.count:,} queries of the round"))
    found: list[dict[str, Any]] = parse_json(stage.folder / PICKED, CURE, list)
    return found


def _labelled(stage: Stage, desk: Desk, picked: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the pairs that were asked about, with the oracle's answer and the label it means."""
    ledger, silent = desk.ledger(), stage.journal(SILENT)
    lines, reasons = [], []
    for number, pair in enumerate(picked):
        value = ledger.known(pair)
        if value is None and number not in silent:
            continue  # the budget of the oracle's endpoint was spent
        label = None if value is None else "tie" if value == 0.5 else "a" if value > 0.5 else "b"
        said = {key: known for key, known in pair.items() if key != "is_known"}
        lines.append({**said, "value": value, "label": label})
        if label is None:
            reasons.append(f"{pair['origin']}: {silent[number]}")
    _warn(stage, desk, reasons, len(picked) - len(lines))
    return lines


def _warn(stage: Stage, desk: Desk, reasons: Sequence[str], unasked: int) -> None:
    if reasons:
        named = "; ".join(reasons[:LISTED])
        text = f"{stage.name}: {desk.spec} gave no verdict on {len(reasons):,} pairs, which have no"
        tell(stage.on_event, Warned(f"{text} label: {named}"))
    if unasked:
        text = f"{stage.name}: {unasked:,} pairs were not asked about: {desk.spent}"
        tell(stage.on_event, Warned(text))


def _disagreement(lines: Sequence[Row]) -> float | None:
    """How often the proxy that chose the pairs prefers the other response than the oracle; a tie of
    the proxy counts half."""
    wrong = []
    for pair in lines:
        if pair["label"] in ("a", "b"):
            belief = pair["probability"]
            is_other = (belief > 0.5) != (pair["label"] == "a")
            wrong.append(0.5 if belief == 0.5 else float(is_other))
    return fmean(wrong) if wrong else None
