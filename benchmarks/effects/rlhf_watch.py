"""What `benchmarks.effects.rlhf` sees of a run: the true quality of the responses that training
samples, how many tokens it sampled, and how far advantages agree with the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean
from typing import Any

import torch

from aligner.methods.rlhf.rollout import Group, Response, Roller
from benchmarks.effects.rlhf_arms import Arm
from benchmarks.effects.rlhf_cuts import SampledOn
from benchmarks.effects.rlhf_words import Words


@dataclass
class Watch:
    """Reads the true quality off the responses of a run, and changes what segments are worth."""

    words: Words
    arm: Arm
    steps: list[dict[str, float]] = field(default_factory=list)
    sampled_on: SampledOn | None = None
    kinds: dict[int, str] = field(default_factory=dict)
    """The class that each response of the step answers for, by its id."""
    sampled: int = 0
    """Tokens that the step sampled."""

    def __post_init__(self) -> None:
        if self.arm.cutting is not None:
            self.sampled_on = SampledOn(self.arm.cutting)

    def value(self, kind: str, one: Response) -> None:
        """Set what the segments of a response are worth."""
        if self.arm.is_oracle:
            parts = list(self.words.parts(kind, one.text))
            one.ends = [end for _, end, _ in parts] or [0]
            one.values = [0.0] * len(one.token_ids)
            for _, end, quality in parts:
                one.values[end] = -1.0 if quality is None else float(quality)
        if self.arm.shift is not None:
            for number, end in enumerate(one.ends, 1):
                one.values[end] = self.arm.shift(one.values[end], number / len(one.ends))

    def note(self, kinds: Sequence[str], groups: Sequence[Group]) -> None:
        """Keep what the responses of an iteration truly are."""
        seen = [(kind, one) for kind, group in zip(kinds, groups) for one in group]
        self.kinds = {id(one): kind for kind, one in seen}
        parts = [list(self.words.parts(kind, one.text)) for kind, one in seen]
        lengths = [end - start + 1 for row in parts for start, end, _ in row]
        self.steps.append(
            {
                "quality": fmean(self.words.quality(kind, one.text) for kind, one in seen),
                "words": fmean(map(len, parts)),
                "word_length": fmean(lengths) if lengths else 0.0,
                "malformed": fmean(any(part[2] is None for part in row) for row in parts),
                "truncated": fmean(not one.is_finished for _, one in seen),
                "sampled": self.sampled,
            }
        )

    def note_advantages(self, batches: Sequence[dict[str, Any]]) -> None:
        """Keep how far the advantage of the token at which a word is chosen agrees with the word's
        quality: the correlation over the words of an iteration."""
        found, truth = [], []
        for batch in batches:
            for one, row in zip(batch["responses"], batch["advantages"].tolist()):
                for start, _, quality in self.words.parts(self.kinds[id(one)], one.text):
                    found.append(row[start])
                    truth.append(-1.0 if quality is None else float(quality))
        pairs = torch.tensor([found, truth])
        varies = len(found) > 1 and bool((pairs.std(1) > 0).all())
        self.steps[-1]["correlation"] = float(torch.corrcoef(pairs)[0, 1]) if varies else 0.0


def watched_roller(watch: Watch) -> type[Roller]:
    """A roller whose responses are watched."""

    class Watched(Roller):
        def sample(self, model: Any, rows: Any, step: int | str, **flags: Any) -> list[Group]:
            object.__setattr__(self, "step", step)
            groups = super().sample(model, rows, step, **flags)
            watch.sampled = sum(len(one.token_ids) for one in chain(*groups))
            if watch.sampled_on is not None and isinstance(step, int):
                watch.sampled += watch.sampled_on.sample(self, model, rows, groups)
            return groups

        def score(self, rows: Any, groups: Any) -> None:
            if self.scorers or not watch.arm.is_oracle:
                super().score(rows, groups)
            kinds = [json.loads(row["prompt"])[-1]["content"] for row in rows]
            if self.settings.unit != "sequence":
                for kind, group in zip(kinds, groups):
                    for one in group:
                        watch.value(kind, one)
            if not isinstance(self.step, int):  # type: ignore[attr-defined]
                return
            seen = groups
            if watch.sampled_on is not None:
                branches = watch.sampled_on.branches
                self._score_with(self.scorers, rows, branches)
                seen = [group + branch for group, branch in zip(groups, branches)]
            watch.note(kinds, seen)

    return Watched


def watched_advantages(watch: Watch, find: Callable[..., None]) -> Callable[..., None]:
    """What finds the advantages of batches, watched."""

    def watched(trainer: Any, batches: Any) -> None:
        find(trainer, batches)
        watch.note_advantages(batches)

    return watched
