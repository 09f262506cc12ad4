"""Rewards of preference pairs, scored once before training, for the objective that distils them
(arXiv 2405.19316).

Each reward model of `dpo.reward_models` scores both answers of every pair, as text; what is kept of
it is the pair's margin, r(x, chosen) - r(x, rejected), since nothing else of a reward means
anything. A margin is multiplied by `dpo.reward_scale`; `std` divides each model's margins by their
standard deviation over the training pairs, each pair counted in both orders, because its order
means nothing here. That is the root of the mean of their squares: margins that are all the same
keep a size.

A `pairwise` model, which only compares, has no rewards of its own; its margin is the logit of the
probability that the chosen answer is better, which is that difference under Bradley and Terry's
model. A probability within `SUREST` of 0 or 1 counts as that. So it is with an ensemble that has
such a member. A judge gives grades, and they are its rewards. An ensemble that brings its members
to one scale over the rows of a call gets the pairs of both splits in one, so that its margins
are on one.

Scores are kept on disk under a hash of the scorer's fingerprint and of all texts, and part by part
while there are more to come, so a kill costs one part. One process scores, the others are told;
models are loaded one after the other. A model that gives both answers of every pair the same reward
is refused: a policy that never moves would follow it perfectly, and a pessimistic choice would
always fall on it.

Legend: N pairs, K reward models.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

from aligner.errors import DataError
from aligner.events import Notice, OnEvent, StageStarted, counter, tell
from aligner.methods.dpo.recipe import Dpo
from aligner.methods.dpo.reference_samples import agreed
from aligner.reward_models.base import Comparer, Scorer
from aligner.reward_models.batching import (
    Answers,
    Pairs,
    ask,
    chunks,
    different_answers,
    refuse_silent,
)
from aligner.reward_models.catalogue import RELATIVE, holds, load_scorer, read_spec
from aligner.reward_models.ensemble import scored_together
from aligner.reward_models.verdicts import Verdicts
from aligner.runs.cache import cache_folder, check_cache, is_kept, keep
from aligner.runs.files import dumps
from aligner.runs.journal import Journal
from aligner.tokenization.dataset import TokenizedData

VERSION = "3"
"""Changed when the way the numbers are computed changes, so that old ones are not used."""

SUREST = 1e-6
"""A comparison is never surer than this: its logit is at most 13.8."""

TEXT = "text"
"""Column that holds a pair as JSON: `prompt`, `chosen`, `rejected`, `answer` (the right one, where
the row has it), `origin`."""

AT_ONCE = 512
"""Pairs that are scored in one call, unless an ensemble needs all of them in one; then what is
known is kept."""


@dataclass(frozen=True, slots=True)
class Member:
    """A reward model and its margins over the training pairs, as they came: what a run records of
    it.

    `spread` is the root of their mean square, `ties` how many are 0, `agrees` the share of the
    others where the answer that was labelled better is the one with the larger reward, and `scale`
    what margins were multiplied by.
    """

    name: str
    fingerprint: str
    pairs: int
    spread: float
    ties: int
    agrees: float
    scale: float


def with_reward_margins(
    prepared: TokenizedData, dpo: Dpo, on_event: OnEvent | None = None
) -> tuple[TokenizedData, list[Member]]:
    """Return the splits with a column `reward_margins` (N, K), and what is known of each reward
    model.

    Only the main process scores, and only it tells of it.

    Raises: DataError naming the row that cannot be scored, or a reward model that prefers nothing.
    """
    from accelerate import PartialState

    splits = {"training": prepared.train, "held-out": prepared.eval}
    texts = {}
    for name, rows in splits.items():
        if rows is not None:
            texts[name] = [json.loads(text) for text in rows[TEXT]]
    is_main = PartialState().is_main_process
    found = agreed(_score_all(dpo, texts, on_event) if is_main else None)
    members = [Member(**facts) for facts, _ in found]
    with_margins = {}
    for name in texts:
        scaled = []
        for row in zip(*(margins[name] for _, margins in found)):
            scaled.append([member.scale * margin for member, margin in zip(members, row)])
        without_text = splits[name].remove_columns(TEXT)
        with_margins[name] = without_text.add_column("reward_margins", scaled)
    return TokenizedData(
        with_margins["training"], with_margins.get("held-out"), prepared.batching
    ), members


def _score_all(
    dpo: Dpo, texts: dict[str, list[dict[str, Any]]], on_event: OnEvent | None
) -> list[tuple[dict[str, Any], dict[str, list[float]]]]:
    """For each reward model its facts, and its margins for each split."""
    import torch

    found = []
    for spec in dpo.reward_models:
        scorer = load_scorer(spec)
        compares = only_compares(spec)
        assert isinstance(scorer, Comparer) or not compares
        margins = _of_splits(scorer, compares, texts, together(spec), on_event)
        member = _described(scorer, margins["training"], dpo)
        tell(on_event, Notice(_sentence(member)))
        found.append((asdict(member), margins))
        del scorer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    _compare_sizes([facts["spread"] * facts["scale"] for facts, _ in found], on_event)
    return found


def together(spec: str) -> bool:
    """Say whether a reward model's scores are comparable only within one call."""
    return scored_together(read_spec(spec))


def _of_splits(
    scorer: Scorer,
    compares: bool,
    texts: dict[str, list[dict[str, Any]]],
    in_one: bool,
    on_event: OnEvent | None,
) -> dict[str, list[float]]:
    """Gaps of each split: asked for split by split, or `in_one` call and cut afterwards."""
    if not in_one:
        return {
            name: _gaps(scorer, compares, rows, name, AT_ONCE, on_event)
            for name, rows in texts.items()
        }
    every = [row for rows in texts.values() for row in rows]
    left = iter(_gaps(scorer, compares, every, " and ".join(texts), None, on_event))
    return {name: list(islice(left, len(rows))) for name, rows in texts.items()}


def _described(scorer: Scorer, margins: Sequence[float], dpo: Dpo) -> Member:
    spread = math.sqrt(math.fsum(margin * margin for margin in margins) / len(margins))
    if spread == 0:
        raise DataError(
            f"the reward model {scorer.name} gives both answers of all {len(margins):,} pairs the "
            "same reward",
            "there is nothing to distil: check the reward model, or use pairs in which one answer "
            "is better",
        )
    decided = [margin for margin in margins if margin]
    return Member(
        name=scorer.name,
        fingerprint=scorer.fingerprint(),
        pairs=len(margins),
        spread=spread,
        ties=len(margins) - len(decided),
        agrees=sum(margin > 0 for margin in decided) / len(decided),
        scale=1.0 / spread if dpo.reward_scale == "std" else float(dpo.reward_scale),
    )


def _sentence(member: Member) -> str:
    decided = f" of the {member.pairs - member.ties:,} that it decides" if member.ties else ""
    return (
        f"reward model {member.name}: margins of {member.spread:.3g} (root mean square) over "
        f"{member.pairs:,} pairs, times "
        f"{member.scale:.3g}; it finds the chosen answer better in {member.agrees:.1%}{decided}"
    )


UNLIKE = 5.0
"""Reward models whose margins differ in size by more than this are pointed out."""


def _compare_sizes(sizes: Sequence[float], on_event: OnEvent | None) -> None:
    if max(sizes) > UNLIKE * min(sizes):
        listed = ", ".join(f"{size:.3g}" for size in sizes)
        tell(
            on_event,
            Notice(
                f"the reward models' margins differ in size ({listed}): the largest rules a mean, "
                "the smallest is chosen by "
                "`min`. dpo.reward_scale=std brings them to one size"
            ),
        )


# --- one reward model, one split ------------------------------------------------------------------


def only_compares(spec: str) -> bool:
    """Say whether a reward model, or a member of it, has no rewards but comparisons; those of a
    tournament are such for two answers."""
    return holds(read_spec(spec), RELATIVE)


def _gaps(
    scorer: Scorer,
    compares: bool,
    rows: Sequence[dict[str, Any]],
    name: str,
    at_once: int | None,
    on_event: OnEvent | None,
) -> list[float]:
    """Gaps (N,) from the cache, or scored now, `at_once` in a call; all in one where it is None."""
    file = cache_folder("rewards") / f"{_key(scorer, rows)}.json"
    if is_kept(file, on_event):
        tell(
            on_event,
            Notice(f"rewards of the {name} pairs by {scorer.name}: from the cache ({file})"),
        )
        kept: list[float] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    check_cache(file)
    what = f"scoring the {name} pairs with {scorer.name}"
    tell(on_event, StageStarted(what))
    pairs = _columns(rows)
    parts = chunks(len(rows), at_once)
    sizes = [len(part) for part in parts]
    asked: Answers | Pairs = pairs
    if not compares:
        asked, chosen, rejected = different_answers(pairs)
        parts = _first_appearances(parts, chosen, rejected)
    journal = Journal(file.with_suffix(f".{at_once or len(rows)}.jsonl"), file.stem)
    journal.tell_resumed(what, len(parts), on_event)
    verdicts = ask(
        lambda: scorer,
        asked,
        parts,
        journal=journal,
        together=at_once is None,
        on_progress=counter(on_event, what),
        sizes=sizes,
    )
    refuse_silent(scorer.name, asked, verdicts.silent, len(verdicts))
    values = verdicts.values
    margins = (
        [_logit(share) for share in values]
        if compares
        else [values[a] - values[b] for a, b in zip(chosen, rejected)]
    )
    _tell_remarks(scorer, verdicts, on_event)
    keep(file, lambda place: place.write_text(dumps(margins), encoding="utf-8"))
    assert journal.path is not None
    journal.path.unlink(missing_ok=True)
    return margins


def _columns(rows: Sequence[dict[str, Any]]) -> Pairs:
    return Pairs(
        [row["prompt"] for row in rows],
        [row["chosen"] for row in rows],
        [row["rejected"] for row in rows],
        [row["answer"] for row in rows],
        [row["origin"] for row in rows],
    )


def _first_appearances(
    parts: Sequence[Sequence[int]], chosen: Sequence[int], rejected: Sequence[int]
) -> list[list[int]]:
    """For each part of the pairs its answers that no part before it has; answers are numbered as
    they appear."""
    found, start = [], 0
    for part in parts:
        end = max(start, *(max(chosen[pair], rejected[pair]) + 1 for pair in part))
        found.append(list(range(start, end)))
        start = end
    return found


def _tell_remarks(scorer: Scorer, verdicts: Verdicts, on_event: OnEvent | None) -> None:
    remarks = verdicts.remarks
    if remarks:
        tell(
            on_event,
            Notice(
                f"{scorer.name} has remarks on {len(remarks):,} of what it scored; the first: "
                f"{remarks[min(remarks)]}"
            ),
        )


def _logit(share: float) -> float:
    share = min(max(share, SUREST), 1 - SUREST)
    return math.log(share) - math.log1p(-share)


def _key(scorer: Scorer, rows: Sequence[dict[str, Any]]) -> str:
    digest = sha256(
        f"{VERSION} {scorer.fingerprint()}".encode()
    )  # which also decides whether it scores or compares
    for row in rows:
        text = json.dumps([row[key] for key in ("prompt", "chosen", "rejected", "answer")])
        digest.update(f"{len(text)} {text}".encode())
    return digest.hexdigest()
