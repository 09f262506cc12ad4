"""The corpus loop: from examples to mosaics, epoch by epoch and chunk by chunk.

In each pass every member is used once. The members of a group are shuffled, and numbers k are drawn
until all are used up; a run of `CHUNK_DRAWS` such draws, with the members that they take, is a
chunk. Chunks depend on the seed, the pass and the group alone, and each has a random generator of
its own; so they can be built in any order, by any process, and again after a kill.

Within a chunk: take k members, plan, render, measure, check. A sample that is too long loses its
last member and is planned again; what it lost goes back to the front of the queue. Two members with
the same instruction never share a sample. A member that is too long by itself goes the way that
`on_overlong` says.

Lengths are added up from those of the members, which were measured one by one. The finished sample
is measured wherever it could be too long if every byte of what is written around the members were a
token; and every 64th besides, so that sums can be brought to scale.

Different from the authors' code (arXiv 2405.13326): their loop grows a sample one member at a time,
draws everything afresh and tokenizes at each step (`compat: released` does it their way, in
`released.py`).
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aligner.builders.mosaic.bank import Bank
from aligner.builders.mosaic.check import Violation, check
from aligner.builders.mosaic.counts import drawer
from aligner.builders.mosaic.lengths import Lengths
from aligner.builders.mosaic.members import Member, Members, finished_row
from aligner.builders.mosaic.plan import Plan, Planner, plain_plan
from aligner.builders.mosaic.render import Rendered, render
from aligner.config.recipe import Mosaic
from aligner.data.rows import CompletionRow

CHUNK_DRAWS = 256
CHUNK_MEMBERS = 1024
"""Members of a chunk where no k is drawn (`max_length`), and of one whose members all stand
alone."""
SEAM = 3
"""Tokens by which a text can grow where it is put next to another."""
MEASURE_EVERY = 64
ALONE = 0
"""A draw of a plain sample, in the list of k."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Members that are made into samples together, and the numbers k that were drawn for them
    (`ALONE`: a plain sample)."""

    pass_number: int
    number: int
    seed: str
    members: Sequence[int] | np.ndarray
    draws: tuple[int, ...]
    are_alone: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """A finished sample, what was planned, and what it cost."""

    name: str
    row: CompletionRow
    plan: Plan
    rendered: Rendered
    origins: tuple[str, ...]
    tokens: int
    pass_number: int
    is_measured: bool = True
    """Whether `tokens` were counted on the finished text, not added up from its members'."""

    def record(self) -> dict[str, Any]:
        """Return what is recorded about the sample beside its texts."""
        style = repr(self.plan.style).encode("utf-8", "surrogatepass")
        return {
            "mosaic_id": self.name,
            "member_ids": list(self.origins),
            "strategy": self.plan.strategy,
            "rule": self.plan.rule,
            "order": list(self.plan.order),
            "dropped": list(self.plan.dropped),
            "style_id": hashlib.sha256(style).hexdigest()[:12],
            "n_tokens": self.tokens,
            "pass": self.pass_number,
        }


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens of a sample, and those of them with a loss; each counted on the finished text, or
    added up."""

    tokens: int
    trained: int
    total_is_exact: bool = True
    trained_is_exact: bool = True


@dataclass
class Tally:
    """What became of everything, as counts that add up over chunks."""

    counts: Counter[str] = field(default_factory=Counter)
    measured: list[int] = field(default_factory=list)
    """Tokens of the samples that were tokenized whole, or stand alone."""
    added_up: list[int] = field(default_factory=list)
    """Tokens of the others, added up."""

    def scale(self, what: str = "") -> float:
        """Return what sums have to be multiplied with, by the samples that were added up and
        tokenized both (`" trained"`)."""
        added = self.counts[f"measured:added{what}"]
        return self.counts[f"measured:exact{what}"] / added if added else 1.0

    def lengths(self) -> list[int]:
        """Return the tokens of every sample, sums brought to scale."""
        scale = self.scale()
        return [*self.measured, *(round(length * scale) for length in self.added_up)]

    def trained(self) -> float:
        """Return the tokens with a loss, sums brought to scale."""
        return self.counts["trained"] + self.counts["trained, added up"] * self.scale(" trained")


class Mosaics:
    """The mosaics of a dataset under given settings and a given seed."""

    def __init__(
        self,
        members: Members,
        settings: Mosaic,
        bank: Bank,
        lengths: Lengths,
        *,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.members, self.settings, self.bank, self.lengths = members, settings, bank, lengths
        self.max_tokens, self.seed = max_tokens, seed
        self._around: dict[tuple[Any, ...], int] = {}

    def around(self, member: Member) -> int:
        """Return the tokens that template and system prompt take beside a question and its
        answer."""
        key = (member.lead, member.is_text)
        if key not in self._around:
            tokens, trained = self.lengths.measure(finished_row(member, "x", "y", member.origin))
            self._around[key] = max(0, tokens - trained - 1)
        return self._around[key]

    def chunks(self, pass_number: int) -> list[Chunk]:
        """Return the chunks of a pass, in order."""
        chunks: list[Chunk] = []
        may_not_join = np.asarray(self.members.alone, dtype=bool)
        for group in sorted(self.members.groups):
            numbers = np.asarray(self.members.groups[group], dtype=np.int64)
            name = f"{self.seed}:{pass_number}:{group}"
            order = numbers[shuffle(len(numbers), f"{name}:order")]
            alone = may_not_join[order]
            for are_alone, part in ((False, order[~alone]), (True, order[alone])):
                for draws, some in self._cut(part, are_alone, f"{name}:draws"):
                    number = len(chunks)
                    chunks.append(
                        Chunk(
                            pass_number,
                            number,
                            f"{name}:{are_alone}:{number}",
                            some,
                            draws,
                            are_alone,
                        )
                    )
        return chunks

    def _cut(
        self, part: np.ndarray, are_alone: bool, seed: str
    ) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Cut a shuffled group into chunks, by draws of k where k is drawn."""
        if are_alone or self.settings.k_distribution == "max_length":
            for start in range(0, len(part), CHUNK_MEMBERS):
                yield (), part[start : start + CHUNK_MEMBERS]
            return
        rng = random.Random(seed)
        draw = self.k_drawer()
        start = stop = 0
        draws: list[int] = []
        while stop < len(part):
            draws.append(draw(rng))
            stop += draws[-1] or 1
            if len(draws) == CHUNK_DRAWS or stop >= len(part):
                yield tuple(draws), part[start:stop]
                start, draws = stop, []

    def k_drawer(self) -> Callable[[random.Random], int]:
        """Return what draws how many members a sample gets; `ALONE` stands for a plain sample."""
        settings = self.settings
        if settings.k_distribution == "max_length":
            return lambda rng: (
                ALONE if rng.random() < settings.plain_fraction else len(self.members)
            )
        draw = drawer(settings.k_distribution, settings.max_members, settings.min_members)
        return lambda rng: ALONE if rng.random() < settings.plain_fraction else draw(rng)

    def samples(self, chunk: Chunk, tally: Tally) -> Iterator[Sample]:
        """Build the samples of a chunk, in order, and count everything in `tally`."""
        return _Work(self, chunk, tally).samples()

    def pass_samples(self, pass_number: int, tally: Tally) -> Iterator[Sample]:
        """Build all samples of a pass."""
        for chunk in self.chunks(pass_number):
            yield from self.samples(chunk, tally)


def shuffle(length: int, seed: str) -> np.ndarray:
    """Return a random order of range(length) that depends on nothing but the seed."""
    rng = random.Random(seed)
    return np.argsort(
        np.fromiter((rng.random() for _ in range(length)), np.float64, length), kind="stable"
    )


class _Work:
    """One chunk being made into samples."""

    def __init__(self, mosaics: Mosaics, chunk: Chunk, tally: Tally) -> None:
        self.mosaics, self.chunk, self.tally = mosaics, chunk, tally
        self.rng = random.Random(chunk.seed)
        self.planner = Planner(mosaics.settings, mosaics.bank, tally.counts)
        self.draw = mosaics.k_drawer()
        self.made = self.reckoned = 0

    def samples(self) -> Iterator[Sample]:
        members = self.mosaics.members
        entries = [(int(number), members[int(number)]) for number in self.chunk.members]
        for entry in entries:
            if self._is_overlong(entry):
                yield from self._overlong(*entry)
        queue = deque(entry for entry in entries if not self._is_overlong(entry))
        draws = deque(self.chunk.draws)
        while queue:
            k = ALONE if self.chunk.are_alone else draws.popleft() if draws else self.draw(self.rng)
            self.tally.counts[f"drawn:{k if k < len(members) else 'all'}"] += 1
            taken, repeated = _take(queue, k or 1)
            queue.extendleft(reversed(repeated))
            if k == ALONE:
                yield self._plain(*taken[0])
                continue
            made, left = self._mosaic(taken)
            queue.extendleft(reversed(left))
            yield from made

    # -- one row
    # ----------------------------------------------------------------------------------------------

    def _is_overlong(self, entry: tuple[int, Member]) -> bool:
        return self.mosaics.members.tokens[entry[0]] > self.mosaics.max_tokens

    def _overlong(self, number: int, member: Member) -> Iterator[Sample]:
        way = self.mosaics.settings.on_overlong
        assert way != "error", "such rows were refused when they were measured"
        self.tally.counts[f"overlong:{way}"] += 1
        if way == "alone":
            yield self._plain(number, member)

    def _plain(self, number: int, member: Member) -> Sample:
        plan = plain_plan(number)
        cost = Cost(self.mosaics.members.tokens[number], self.mosaics.members.trained[number])
        return self._finished(plan, [member], render(plan, [member]), cost)

    # -- several
    # ----------------------------------------------------------------------------------------------

    def _mosaic(
        self, taken: list[tuple[int, Member]]
    ) -> tuple[list[Sample], list[tuple[int, Member]]]:
        """Return a sample of the first of these members, as many as fit, and those that are left.

        Should the check find fault with the sample, that is counted, and its members stand alone
        instead.
        """
        size = self._fitting(taken)
        # A new draw for fewer members would often be one that leaves most out, since that fits.
        strategy, seed = self.planner.strategy(self.rng), self.rng.random()
        while True:
            some, left = taken[:size], taken[size:]
            numbers, members = [number for number, _ in some], [member for _, member in some]
            plan = self.planner.plan(numbers, members, random.Random(seed), strategy)
            rendered = render(plan, members)
            cost = self._cost(plan, members, rendered)
            if cost.tokens <= self.mosaics.max_tokens:
                break
            self.tally.counts["rejected:too long, a row less"] += 1
            if size == 1:  # it would fit as it came, but not with what is written around it
                return [self._plain(*some[0])], left
            size = min(size - 1, max(1, size * self.mosaics.max_tokens // cost.tokens))
        if left:
            self.tally.counts["shortened"] += 1
        try:
            self._check(plan, members, rendered)
        except Violation as violation:
            self.tally.counts[f"violation:{violation.kind}"] += 1
            return [self._plain(*entry) for entry in some], left
        return [self._finished(plan, members, rendered, cost)], left

    def _fitting(self, taken: Sequence[tuple[int, Member]]) -> int:
        """How many of these members fit into a sample, by their own lengths alone; at least one."""
        table, template = self.mosaics.members, self.mosaics.around(taken[0][1])
        total = template
        for size, (number, _) in enumerate(taken):
            total += table.tokens[number] - template
            if total > self.mosaics.max_tokens:
                return max(1, size)
        return len(taken)

    def _cost(self, plan: Plan, members: Sequence[Member], rendered: Rendered) -> Cost:
        """What the sample costs: added up, or measured where it matters."""
        tokens, trained, most = self._added_up(plan, members, rendered)
        is_test = self.reckoned % MEASURE_EVERY == 0
        self.reckoned += 1
        if not self.mosaics.lengths.is_exact or not (is_test or most > self.mosaics.max_tokens):
            return Cost(tokens, trained, total_is_exact=False, trained_is_exact=False)
        row = finished_row(members[0], rendered.prompt, rendered.completion, "")
        if not is_test:
            return Cost(self.mosaics.lengths.total(row), trained, trained_is_exact=False)
        exact, exact_trained = self.mosaics.lengths.measure(row)
        counts = self.tally.counts
        counts["measured:added"] += tokens
        counts["measured:exact"] += exact
        counts["measured:added trained"] += trained
        counts["measured:exact trained"] += exact_trained
        return Cost(exact, exact_trained)

    def _added_up(
        self, plan: Plan, members: Sequence[Member], rendered: Rendered
    ) -> tuple[int, int, int]:
        """Tokens and trained tokens, added up from the members' own, and the most tokens that it
        could be.

        What is written around the members is reckoned by its characters; at most each of its bytes
        is a token.
        """
        table, rate = self.mosaics.members, self.mosaics.lengths.tokens_per_character
        template = self.mosaics.around(members[0])
        answered = [place - 1 for place in plan.order]
        asked = template + sum(
            table.tokens[number] - table.trained[number] - template for number in plan.members
        )
        said = sum(table.trained[plan.members[place]] for place in answered)
        asked_extra = _bytes(rendered.prompt) - sum(
            _bytes(member.instruction) for member in members
        )
        answer_extra = _bytes(rendered.completion) - sum(
            _bytes(members[place].response) for place in answered
        )
        trained = said + int(answer_extra * rate)
        most = asked + said + asked_extra + answer_extra + SEAM * (len(members) + len(answered))
        return asked + int(asked_extra * rate) + 1 + trained, trained, most

    def _check(self, plan: Plan, members: Sequence[Member], rendered: Rendered) -> None:
        """Let the second implementation read the texts, and hold what it read against the plan."""
        pairs = [(member.instruction, member.response) for member in members]
        reading = check(rendered.prompt, rendered.completion, pairs, self.mosaics.bank)
        planned = (plan.strategy, plan.rule, plan.order, plan.dropped)
        read = (reading.strategy, reading.rule, reading.order, reading.dropped)
        if planned != read:
            raise Violation("plan", f"planned {planned}, but the text says {read}")

    def _finished(
        self, plan: Plan, members: Sequence[Member], rendered: Rendered, cost: Cost
    ) -> Sample:
        chunk = self.chunk
        name = f"p{chunk.pass_number}-c{chunk.number}-{self.made}"
        self.made += 1
        origins = tuple(member.origin for member in members)
        row = finished_row(
            members[0], rendered.prompt, rendered.completion, origin_of(name, origins)
        )
        sample = Sample(
            name, row, plan, rendered, origins, cost.tokens, chunk.pass_number, cost.total_is_exact
        )
        count_sample(
            self.tally,
            sample,
            cost,
            [self.mosaics.members.trained[number] for number in plan.members],
        )
        return sample


def origin_of(name: str, origins: Sequence[str]) -> str:
    """Return how a message names a sample: with the first of its members."""
    more = ", ..." if len(origins) > 3 else ""
    return f"mosaic {name} ({', '.join(origins[:3])}{more})"


def count_sample(tally: Tally, sample: Sample, cost: Cost, trained_alone: Sequence[int]) -> None:
    """Count a sample; `trained_alone` are the lengths of its members' answers."""
    plan, counts = sample.plan, tally.counts
    counts["samples"] += 1
    counts["members"] += len(plan.members)
    counts[f"strategy:{plan.strategy}"] += 1
    counts[f"count:{len(plan.members)}"] += 1
    if plan.rule is not None:
        counts[f"rule:{plan.strategy}.{plan.rule}"] += 1
    if plan.strategy == "maskout":
        counts["maskout members"] += len(plan.members)
    counts["masked members"] += len(plan.dropped)
    counts["masked tokens"] += sum(trained_alone[place - 1] for place in plan.dropped)
    counts["trained" if cost.trained_is_exact else "trained, added up"] += cost.trained
    (tally.measured if cost.total_is_exact else tally.added_up).append(cost.tokens)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _take(
    queue: deque[tuple[int, Member]], k: int
) -> tuple[list[tuple[int, Member]], list[tuple[int, Member]]]:
    """Take up to k members with different instructions from the queue; return them, and those that
    were passed over."""
    taken: list[tuple[int, Member]] = []
    repeated: list[tuple[int, Member]] = []
    seen: set[str] = set()
    while queue and len(taken) < k and len(repeated) <= k:
        entry = queue.popleft()
        if entry[1].instruction in seen:
            repeated.append(entry)
        else:
            seen.add(entry[1].instruction)
            taken.append(entry)
    return taken, repeated
