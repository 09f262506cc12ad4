"""Chosen answers as rows to train on, each with where it comes from.

    sft      messages (or prompt and completion, where every prompt is plain)
    pairs    prompt, chosen, rejected

and beside them, which trainers do not read:

    prompt_id, source      the prompt, and the file and row that it came from
    winner, loser, target  models; `winner_rev` and `loser_rev` tell them from others of their name
    score_winner, score_loser, margin, consistent, k     what the judges said, and the limit
    battle_ids, judges, judge_revs                       the battles of the two, in `battles.jsonl`
    category, difficulty   of the prompt, where they are known
    cluster                of the prompt, where it is of the pool that the test set was drawn from
    length_winner, length_loser                          characters
    is_refusal             whether the winner's answer begins like a refusal
    license                of the winner's answers, where it was said
    test_set_sha256        what the rows do not overlap with
    tool_version           of this toolkit

A margin without end (the other answer was empty) is null. Whoever has more to say of all rows, a
round for example, gives it as `more`. No row says when it was made, so that the same battles give
the same file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aligner import __version__
from aligner.arena.selection.contests import Contest
from aligner.arena.selection.rules import Chosen, Dropped, For
from aligner.data.refusals import refuses
from aligner.data.rows import as_turns

Row = dict[str, Any]


@dataclass(frozen=True)
class Origins:
    """What is known of where rows come from. `licenses`: of each model's answers. `revs`: what
    tells each model from others of its name. `clusters`: prompt -> its cluster. `more`: further
    columns of every row."""

    licenses: Mapping[str, str] = field(default_factory=dict)
    revs: Mapping[str, str] = field(default_factory=dict)
    clusters: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def training_rows(
    chosen: Sequence[Chosen], purpose: For, *, target: str, k: float, origins: Origins
) -> Iterator[Row]:
    """Rows of one form, in the order of what was chosen."""
    is_plain = all(isinstance(one.contest.item.prompt, str) for one in chosen)
    for one in chosen:
        yield {
            **(_example(one, is_plain) if purpose == "sft" else _pair(one, is_plain)),
            **_provenance(one, target, k, origins),
            **origins.more,
        }


def _example(one: Chosen, is_plain: bool) -> Row:
    prompt, text = one.contest.item.prompt, one.contest.answers[one.winner].text
    if is_plain:
        return {"prompt": prompt, "completion": text}
    return {"messages": [*as_turns(prompt, "user"), *as_turns(text, "assistant")]}


def _pair(one: Chosen, is_plain: bool) -> Row:
    prompt = one.contest.item.prompt
    chosen, rejected = (one.contest.answers[name].text for name in (one.winner, one.loser))
    if is_plain:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": as_turns(prompt, "user"),
        "chosen": as_turns(chosen, "assistant"),
        "rejected": as_turns(rejected, "assistant"),
    }


def _provenance(one: Chosen, target: str, k: float, origins: Origins) -> Row:
    contest, answer = one.contest, one.contest.answers[one.winner].text
    battles = contest.between(one.winner, one.loser)
    return {
        "prompt_id": contest.item.id,
        "source": contest.item.origin,
        "winner": one.winner,
        "winner_rev": origins.revs.get(one.winner, ""),
        "loser": one.loser,
        "loser_rev": origins.revs.get(one.loser, ""),
        "target": target,
        "score_winner": contest.scores.get(one.winner),
        "score_loser": contest.scores.get(one.loser),
        "margin": one.margin if math.isfinite(one.margin) else None,
        "consistent": one.consistent,
        "k": k,
        "battle_ids": [battle.battle_id for battle in battles],
        "judges": [battle.judge_id for battle in battles],
        "judge_revs": [battle.judge_rev for battle in battles],
        "category": contest.item.category,
        "difficulty": contest.difficulty,
        "cluster": origins.clusters.get(contest.item.id),
        "length_winner": len(answer),
        "length_loser": len(contest.answers[one.loser].text),
        "is_refusal": refuses(answer),
        "license": origins.licenses.get(one.winner, ""),
        "tool_version": __version__,
    }


def dropped_rows(dropped: Iterable[Dropped]) -> Iterator[Row]:
    """Prompts that gave no row, with the reason and what the judges said."""
    for one in dropped:
        contest = one.contest
        yield {
            "prompt_id": contest.item.id,
            "reason": one.reason,
            "category": contest.item.category,
            "difficulty": contest.difficulty,
            "scores": {name: contest.scores[name] for name in sorted(contest.scores)},
        }


def text_of(contest: Contest) -> str:
    """The last thing that the user said."""
    prompt = contest.item.prompt
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")
