"""The corpus loop: from examples to mosaics, epoch by epoch and chunk by chunk.

In each epoch every example is used once. The examples of a group are shuffled, and numbers k are
drawn until all are used up; a run of `CHUNK_DRAWS` such draws, with the examples that they take, is
a chunk. Chunks depend on the seed, the epoch and the group alone, and each has a random generator
of its own; so they can be built in any order, by any process, and again after a kill.

Within a chunk: take k examples, plan, render, measure, check. A sample that is too long loses its
last example and is planned again; what it lost goes back to the front of the queue. Two examples
with the same instruction never share a sample. An example that is too long by itself goes the way
that `on_overlong` says.

Lengths are added up from those of the examples, which were measured one by one. The finished sample
is measured wherever it could be too long if every byte of what is written around the examples were
a token; and every 64th besides, so that sums can be brought to scale.

Different from the authors' code (arXiv 2405.13326): their loop grows a sample one example at a
time, draws everything afresh and tokenizes at each step (`compat: released` does it their way, in
`paper_compat.py`).
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aligner.builders.mosaic.check import Violation, check
from aligner.builders.mosaic.examples import Example, Examples, finished_row
from aligner.builders.mosaic.k_distribution import drawer
from aligner.builders.mosaic.lengths import Lengths
from aligner.builders.mosaic.phrasings import Phrasings
from aligner.builders.mosaic.plan import Plan, Planner, plain_plan
from aligner.builders.mosaic.render import Rendered, render
from aligner.config.recipe import Mosaic
from aligner.data.rows import CompletionRow

CHUNK_DRAWS = 256
CHUNK_EXAMPLES = 1024
"""Examples of a chunk where no k is drawn (`max_length`), and of one whose examples all stand
alone."""
SEAM = 3
"""Tokens by which a text can grow where it is put next to another."""
MEASURE_EVERY = 64
ALONE = 0
"""A draw of a plain sample, in the list of k."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Examples that are made into samples together, and the numbers k that were drawn for them
    (`ALONE`: a plain sample)."""

    epoch: int
    number: int
    seed: str
    examples: Sequence[int] | np.ndarray
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
    epoch: int
    is_measured: bool = True
    """Whether `tokens` were counted on the finished text, not added up from its examples'."""

    def record(self) -> dict[str, Any]:
        """Return what is recorded about the sample beside its texts."""
        style = repr(self.plan.style).encode("utf-8", "surrogatepass")
        return {
            "mosaic_id": self.name,
            "example_ids": list(self.origins),
            "strategy": self.plan.strategy,
            "rule": self.plan.rule,
            "order": list(self.plan.order),
            "dropped": list(self.plan.dropped),
            "style_id": hashlib.sha256(style).hexdigest()[:12],
            "n_tokens": self.tokens,
            "epoch": self.epoch,
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
class Counts:
    """What became of everything, as counts that add up over chunks."""

    by_name: Counter[str] = field(default_factory=Counter)
    measured: list[int] = field(default_factory=list)
    """Tokens of the samples that were tokenized whole, or stand alone."""
    added_up: list[int] = field(default_factory=list)
    """Tokens of the others, added up."""

    def scale(self, what: str = "") -> float:
        """Return what sums have to be multiplied with, by the samples that were added up and
        tokenized both (`" trained"`)."""
        added = self.by_name[f"measured:added{what}"]
        return self.by_name[f"measured:exact{what}"] / added if added else 1.0

    def lengths(self) -> list[int]:
        """Return the tokens of every sample, sums brought to scale."""
        scale = self.scale()
        return [*self.measured, *(round(length * scale) for length in self.added_up)]

    def trained(self) -> float:
        """Return the tokens with a loss, sums brought to scale."""
        return self.by_name["trained"] + self.by_name["trained, added up"] * self.scale(" trained")


class Mosaics:
    """The mosaics of a dataset under given settings and a given seed."""

    def __init__(
        self,
        examples: Examples,
        settings: Mosaic,
        phrasings: Phrasings,
        lengths: Lengths,
        *,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.examples, self.settings, self.phrasings, self.lengths = (
            examples,
            settings,
            phrasings,
            lengths,
        )
        self.max_tokens, self.seed = max_tokens, seed
        self._around: dict[tuple[Any, ...], int] = {}

    def around(self, example: Example) -> int:
        """Return the tokens that template and system prompt take beside a question and its
        answer."""
        key = (example.lead, example.is_text)
        if key not in self._around:
            tokens, trained = self.lengths.measure(finished_row(example, "x", "y", example.origin))
            self._around[key] = max(0, tokens - trained - 1)
        return self._around[key]

    def chunks(self, epoch: int) -> list[Chunk]:
        """Return the chunks of an epoch, in order."""
        chunks: list[Chunk] = []
        may_not_join = np.asarray(self.examples.alone, dtype=bool)
        for group in sorted(self.examples.groups):
            numbers = np.asarray(self.examples.groups[group], dtype=np.int64)
            name = f"{self.seed}:{epoch}:{group}"
            order = numbers[shuffle(len(numbers), f"{name}:order")]
            alone = may_not_join[order]
            for are_alone, part in ((False, order[~alone]), (True, order[alone])):
                for draws, some in self._cut(part, are_alone, f"{name}:draws"):
                    number = len(chunks)
                    chunks.append(
                        Chunk(
                            epoch,
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
            for start in range(0, len(part), CHUNK_EXAMPLES):
                yield (), part[start : start + CHUNK_EXAMPLES]
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
        """Return what draws how many examples a sample gets; `ALONE` stands for a plain sample."""
        settings = self.settings
        if settings.k_distribution == "max_length":
            return lambda rng: (
                ALONE if rng.random() < settings.plain_fraction else len(self.examples)
            )
        draw = drawer(settings.k_distribution, settings.max_examples, settings.min_examples)
        return lambda rng: ALONE if rng.random() < settings.plain_fraction else draw(rng)

    def samples(self, chunk: Chunk, counts: Counts) -> Iterator[Sample]:
        """Build the samples of a chunk, in order, and count everything in `counts`."""
        return _Work(self, chunk, counts).samples()

    def epoch_samples(self, epoch: int, counts: Counts) -> Iterator[Sample]:
        """Build all samples of an epoch."""
        for chunk in self.chunks(epoch):
            yield from self.samples(chunk, counts)


def shuffle(length: int, seed: str) -> np.ndarray:
    """Return a random order of range(length) that depends on nothing but the seed."""
    rng = random.Random(seed)
    return np.argsort(
        np.fromiter((rng.random() for _ in range(length)), np.float64, length), kind="stable"
    )


class _Work:
    """One chunk being made into samples."""

    def __init__(self, mosaics: Mosaics, chunk: Chunk, counts: Counts) -> None:
        self.mosaics, self.chunk, self.counts = mosaics, chunk, counts
        self.rng = random.Random(chunk.seed)
        self.planner = Planner(mosaics.settings, mosaics.phrasings, counts.by_name)
        self.draw = mosaics.k_drawer()
        self.made = self.reckoned = 0

    def samples(self) -> Iterator[Sample]:
        examples = self.mosaics.examples
        entries = [(int(number), examples[int(number)]) for number in self.chunk.examples]
        way = self.mosaics.settings.on_overlong
        for entry in entries:
            if not self._is_overlong(entry):
                continue
            assert way != "error", "such rows were refused when they were measured"
            self.counts.by_name[f"overlong:{way}"] += 1
            if way == "alone":
                yield self._plain(*entry)
        queue = deque(entry for entry in entries if not self._is_overlong(entry))
        draws = deque(self.chunk.draws)
        while queue:
            k = ALONE if self.chunk.are_alone else draws.popleft() if draws else self.draw(self.rng)
            self.counts.by_name[f"drawn:{k if k < len(examples) else 'all'}"] += 1
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

    def _is_overlong(self, entry: tuple[int, Example]) -> bool:
        return self.mosaics.examples.tokens[entry[0]] > self.mosaics.max_tokens

    def _plain(self, number: int, example: Example) -> Sample:
        plan = plain_plan(number)
        cost = Cost(self.mosaics.examples.tokens[number], self.mosaics.examples.trained[number])
        return self._finished(plan, [example], render(plan, [example]), cost)

    # -- several
    # ----------------------------------------------------------------------------------------------

    def _mosaic(
        self, taken: list[tuple[int, Example]]
    ) -> tuple[list[Sample], list[tuple[int, Example]]]:
        """Return a sample of the first of these examples, as many as fit, and those that are left.

        Should the check find fault with the sample, that is counted, and its examples stand alone
        instead.
        """
        size = self._fitting(taken)
        # A new draw for fewer examples would often be one that leaves most out, since that fits.
        strategy, seed = self.planner.strategy(self.rng), self.rng.random()
        while True:
            some, left = taken[:size], taken[size:]
            numbers, examples = [number for number, _ in some], [example for _, example in some]
            plan = self.planner.plan(numbers, examples, random.Random(seed), strategy)
            rendered = render(plan, examples)
            cost = self._cost(plan, examples, rendered)
            if cost.tokens <= self.mosaics.max_tokens:
                break
            self.counts.by_name["rejected:too long, a row less"] += 1
            if size == 1:  # it would fit as it came, but not with what is written around it
                return [self._plain(*some[0])], left
            size = min(size - 1, max(1, size * self.mosaics.max_tokens // cost.tokens))
        if left:
            self.counts.by_name["shortened"] += 1
        try:
            self._check(plan, examples, rendered)
        except Violation as violation:
            self.counts.by_name[f"violation:{violation.kind}"] += 1
            return [self._plain(*entry) for entry in some], left
        return [self._finished(plan, examples, rendered, cost)], left

    def _fitting(self, taken: Sequence[tuple[int, Example]]) -> int:
        """How many of these examples fit into a sample, by their own lengths alone; at least
        one."""
        table, template = self.mosaics.examples, self.mosaics.around(taken[0][1])
        total = template
        for size, (number, _) in enumerate(taken):
            total += table.tokens[number] - template
            if total > self.mosaics.max_tokens:
                return max(1, size)
        return len(taken)

    def _cost(self, plan: Plan, examples: Sequence[Example], rendered: Rendered) -> Cost:
        """What the sample costs: added up, or measured where it matters."""
        tokens, trained, most = self._added_up(plan, examples, rendered)
        is_test = self.reckoned % MEASURE_EVERY == 0
        self.reckoned += 1
        if not self.mosaics.lengths.is_exact or not (is_test or most > self.mosaics.max_tokens):
            return Cost(tokens, trained, total_is_exact=False, trained_is_exact=False)
        row = finished_row(examples[0], rendered.prompt, rendered.completion, "")
        if not is_test:
            return Cost(self.mosaics.lengths.total(row), trained, trained_is_exact=False)
        exact, exact_trained = self.mosaics.lengths.measure(row)
        by_name = self.counts.by_name
        by_name["measured:added"] += tokens
        by_name["measured:exact"] += exact
        by_name["measured:added trained"] += trained
        by_name["measured:exact trained"] += exact_trained
        return Cost(exact, exact_trained)

    def _added_up(
        self, plan: Plan, examples: Sequence[Example], rendered: Rendered
    ) -> tuple[int, int, int]:
        """Tokens and trained tokens, added up from the examples' own, and the most tokens that it
        could be.

        What is written around the examples is reckoned by its characters; at most each of its bytes
        is a token.
        """
        table, rate = self.mosaics.examples, self.mosaics.lengths.tokens_per_character
        template = self.mosaics.around(examples[0])
        answered = [index - 1 for index in plan.order]
        asked = template + sum(
            table.tokens[number] - table.trained[number] - template for number in plan.examples
        )
        own = sum(table.trained[plan.examples[index]] for index in answered)
        asked_extra = _bytes(rendered.prompt) - sum(
            _bytes(example.instruction) for example in examples
        )
        answer_extra = _bytes(rendered.completion) - sum(
            _bytes(examples[index].response) for index in answered
        )
        trained = own + int(answer_extra * rate)
        most = asked + own + asked_extra + answer_extra + SEAM * (len(examples) + len(answered))
        return asked + int(asked_extra * rate) + 1 + trained, trained, most

    def _check(self, plan: Plan, examples: Sequence[Example], rendered: Rendered) -> None:
        """Let the second implementation read the texts, and hold what it read against the plan."""
        pairs = [(example.instruction, example.response) for example in examples]
        reading = check(rendered.prompt, rendered.completion, pairs, self.mosaics.phrasings)
        planned = (plan.strategy, plan.rule, plan.order, plan.dropped)
        read = (reading.strategy, reading.rule, reading.order, reading.dropped)
        if planned != read:
            raise Violation("plan", f"planned {planned}, but the text says {read}")

    def _finished(
        self, plan: Plan, examples: Sequence[Example], rendered: Rendered, cost: Cost
    ) -> Sample:
        chunk = self.chunk
        name = f"p{chunk.epoch}-c{chunk.number}-{self.made}"
        self.made += 1
        origins = tuple(example.origin for example in examples)
        row = finished_row(
            examples[0], rendered.prompt, rendered.completion, origin_of(name, origins)
        )
        sample = Sample(
            name, row, plan, rendered, origins, cost.tokens, chunk.epoch, cost.total_is_exact
        )
        count_sample(
            self.counts,
            sample,
            cost,
            [self.mosaics.examples.trained[number] for number in plan.examples],
        )
        return sample


def origin_of(name: str, origins: Sequence[str]) -> str:
    """Return how a message names a sample: with the first of its examples."""
    more = ", ..." if len(origins) > 3 else ""
    return f"mosaic {name} ({', '.join(origins[:3])}{more})"


def count_sample(counts: Counts, sample: Sample, cost: Cost, trained_alone: Sequence[int]) -> None:
    """Count a sample; `trained_alone` are the lengths of its examples' answers."""
    plan, by_name = sample.plan, counts.by_name
    by_name["samples"] += 1
    by_name["examples"] += len(plan.examples)
    by_name[f"strategy:{plan.strategy}"] += 1
    by_name[f"count:{len(plan.examples)}"] += 1
    if plan.rule is not None:
        by_name[f"rule:{plan.strategy}.{plan.rule}"] += 1
    if plan.strategy == "maskout":
        by_name["maskout examples"] += len(plan.examples)
    by_name["masked examples"] += len(plan.dropped)
    by_name["masked tokens"] += sum(trained_alone[index - 1] for index in plan.dropped)
    by_name["trained" if cost.trained_is_exact else "trained, added up"] += cost.trained
    (counts.measured if cost.total_is_exact else counts.added_up).append(cost.tokens)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _take(
    queue: deque[tuple[int, Example]], k: int
) -> tuple[list[tuple[int, Example]], list[tuple[int, Example]]]:
    """Take up to k examples with different instructions from the queue; return them, and those that
    were passed over."""
    taken: list[tuple[int, Example]] = []
    repeated: list[tuple[int, Example]] = []
    seen: set[str] = set()
    while queue and len(taken) < k and len(repeated) <= k:
        entry = queue.popleft()
        if entry[1].instruction in seen:
            repeated.append(entry)
        else:
            seen.add(entry[1].instruction)
            taken.append(entry)
    return taken, repeated
