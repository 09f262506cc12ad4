"""The corpus loop as the authors' code runs it, faults included, with our wording: `compat:
released`.

From the code of Mosaic-IT (arXiv 2405.13326). An epoch walks through a shuffled copy of the data. A
sample grows one example at a time; at every step all choices are drawn afresh and the text is
tokenized as instruction + output, without template and separator, and the last rendering that
stayed *below* the limit is kept. A first example that is too long is dropped. Faults that are kept,
since they decide what a model was trained on: rules on numbers for samples without numbers, samples
without any mark between answers, sorting by whole strings (capitals first), ties in input order,
texts in the plural for one instruction, tags that occur in the texts, k = K in most `pareto` draws,
and a bias towards Maskout, which fits where others do not. Nothing is checked. Left out, since our
wording has no such thing: concatenated and misspelled texts.

An epoch depends on the one random generator that runs through it, so it is one chunk: built by one
process, in memory, and again from its beginning after a kill.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aligner.builders.mosaic.engine import (
    Chunk,
    Cost,
    Counts,
    Mosaics,
    Sample,
    count_sample,
    origin_of,
    shuffle,
)
from aligner.builders.mosaic.examples import Example, finished_row
from aligner.builders.mosaic.lengths import CHARACTERS_PER_TOKEN
from aligner.builders.mosaic.phrasings import Phrasings
from aligner.builders.mosaic.plan import (
    NUMBERED_SHARE,
    SEPARATORS,
    SILENT_SHARE,
    TAGGED_SHARE,
    Plan,
    Style,
    one_of,
)
from aligner.builders.mosaic.render import render
from aligner.builders.mosaic.rules import MASK, PERMUTE, Choice, mask_count, shuffled

CountTokens = Callable[[str], int]


class ReleasedMosaics(Mosaics):
    """The mosaics that the authors' loop gives. `count` counts the tokens of plain text."""

    count: CountTokens = staticmethod(lambda text: math.ceil(len(text) / CHARACTERS_PER_TOKEN))

    def chunks(self, epoch: int) -> list[Chunk]:
        """Return each group as one chunk: what comes later depends on what came before."""
        chunks = []
        for number, group in enumerate(sorted(self.examples.groups)):
            numbers = self.examples.groups[group]
            seed = f"{self.seed}:{epoch}:{group}:released"
            order = [numbers[int(index)] for index in shuffle(len(numbers), f"{seed}:order")]
            chunks.append(Chunk(epoch, number, seed, order, ()))
        return chunks

    def samples(self, chunk: Chunk, counts: Counts) -> Iterator[Sample]:
        """Grow samples through the chunk."""
        rng = random.Random(chunk.seed)
        numbers = chunk.examples
        start = made = 0
        while start < len(numbers):
            k = self._released_k(rng, len(numbers) - start)
            counts.by_name[f"drawn:{min(k, len(numbers))}"] += 1
            best: tuple[Plan, list[Example]] | None = None
            grown: list[Example] = []
            for stop in range(start + 1, min(start + k, len(numbers)) + 1):
                grown = [*grown, self.examples[int(numbers[stop - 1])]]
                plan = self._redraw([int(n) for n in numbers[start:stop]], grown, rng)
                rendered = render(plan, grown)
                if self.count(rendered.prompt + rendered.completion) >= self.max_tokens:
                    break
                best = (plan, grown)
            if best is None:
                counts.by_name["overlong:drop"] += 1
                start += 1
                continue
            yield self._released_sample(chunk, made, *best, counts)
            made += 1
            start += len(best[1])

    def _released_k(self, rng: random.Random, left: int) -> int:
        largest, name = self.settings.max_examples, self.settings.k_distribution
        if name == "max_length":
            return left
        if name == "fix_max":
            return largest
        if name == "uniform":
            return rng.randint(1, largest)
        draw = {
            "exp": lambda: rng.expovariate(1.0),
            "pareto": lambda: rng.paretovariate(1.0) - 2.0,
            "lognormal": lambda: rng.lognormvariate(0.0, 1.0),
            "logistic2": lambda: _logistic(rng),
        }[name]
        while True:
            x = draw()
            if x < largest and (name != "logistic2" or x > 0):
                return largest - int(
                    x
                )  # towards 0, also of the half of `pareto` that lies in [-1, 0)

    def _redraw(self, numbers: list[int], examples: Sequence[Example], rng: random.Random) -> Plan:
        n = len(examples)
        weights_of = {
            name: weight
            for name, weight in self.settings.strategies
            if weight > 0 and name != "primary"
        }
        weights_of = weights_of or {"format": 1.0}
        strategy = (
            rng.choices(list(weights_of), list(weights_of.values()))[0] if n > 1 else "format"
        )
        style = _released_style(self.phrasings, strategy, rng)
        if strategy == "format":
            return Plan(tuple(numbers), strategy, None, tuple(range(1, n + 1)), (), style())
        rules: dict[str, Sequence[str]] = {
            "permute": self.settings.permute_rules or tuple(PERMUTE),
            "maskout": self.settings.mask_rules or tuple(MASK),
        }
        names = rules[strategy]
        rule = rng.choice(names)
        texts = [example.instruction for example in examples]
        choose = _permute if strategy == "permute" else _mask
        low, high = self.settings.mask_ratio
        choice = choose(rule, texts, rng, (low, high))
        return Plan(
            tuple(numbers), strategy, rule, choice.order, choice.dropped, style(rule, choice)
        )

    def _released_sample(
        self, chunk: Chunk, made: int, plan: Plan, examples: list[Example], counts: Counts
    ) -> Sample:
        rendered = render(plan, examples)
        name = f"p{chunk.epoch}-c{chunk.number}-{made}"
        origins = tuple(example.origin for example in examples)
        row = finished_row(
            examples[0], rendered.prompt, rendered.completion, origin_of(name, origins)
        )
        tokens, trained = self.lengths.measure(row)
        sample = Sample(name, row, plan, rendered, origins, tokens, chunk.epoch)
        count_sample(
            counts,
            sample,
            Cost(tokens, trained),
            [self.examples.trained[number] for number in plan.examples],
        )
        return sample


def _logistic(rng: random.Random) -> float:
    u = rng.random() or 0.5
    return 2.0 * math.log(u / (1.0 - u)) if u < 1.0 else 0.0


def _released_style(
    phrasings: Phrasings, strategy: str, rng: random.Random
) -> Callable[..., Style]:
    """Draw everything about the look at once, whether or not it suits the rule."""
    is_numbered, is_tagged = rng.random() < NUMBERED_SHARE, rng.random() < TAGGED_SHARE
    number = one_of(phrasings.numbers, rng) if is_numbered else ""
    (begin, end), bracket = one_of(phrasings.tag_words, rng), one_of(phrasings.tag_brackets, rng)
    if rng.random() < 0.5:
        begin, end = begin.upper(), end.upper()
    tags = (
        (bracket.replace("{tag}", begin), bracket.replace("{tag}", end)) if is_tagged else ("", "")
    )
    line = ""
    if is_tagged:
        line = one_of(phrasings.texts["format.tags"]["many"], rng).filled(
            begin=tags[0], end=tags[1]
        )
    elif rng.random() >= SILENT_SHARE:
        line = one_of(phrasings.texts["format.list"]["many"], rng).wording
    places = [(rng.random() < 0.5, one_of(SEPARATORS, rng)) for _ in range(2)]
    gap, separator = one_of((" ", "\n"), rng), one_of(SEPARATORS, rng)

    def style(rule: str = "", choice: Choice | None = None) -> Style:
        rule_line = ""
        if choice is not None:
            label = f"{strategy}.{rule}"
            brackets = one_of(phrasings.list_brackets, rng)
            items = one_of(phrasings.separators(label), rng).join(map(str, choice.listed))
            rule_line = one_of(phrasings.texts[label]["many"], rng).filled(
                list=brackets.replace("{items}", items), count=str(choice.count)
            )
        return Style(
            number, gap if number else "", *tags, separator, line, places[0], rule_line, places[1]
        )

    return style


def _permute(
    rule: str, texts: Sequence[str], rng: random.Random, ratio: tuple[float, float]
) -> Choice:
    """The order of a rule, with ties in input order and whole strings compared by their
    characters."""
    indices = range(1, len(texts) + 1)
    if rule == "explicit":
        order = shuffled(len(texts), rng)
        return Choice(order, listed=order)
    if rule == "reverse":
        return Choice(tuple(reversed(indices)))
    if rule in ("odd_first", "even_first"):
        first = rule == "odd_first"
        return Choice(tuple(sorted(indices, key=lambda index: (index % 2 == 1) != first)))
    key: dict[str, Callable[[str], Any]] = {
        "alphabet": str,
        "words": lambda text: len(text.split()),
        "characters": len,
    }
    what, _, direction = rule.partition("_")
    ordered = sorted(
        indices, key=lambda index: key[what](texts[index - 1]), reverse=direction == "descending"
    )
    return Choice(tuple(ordered))


def _mask(
    rule: str, texts: Sequence[str], rng: random.Random, ratio: tuple[float, float]
) -> Choice:
    """What a rule leaves out, with ties in input order."""
    n = len(texts)
    indices = range(1, n + 1)
    if rule in ("odd", "even"):
        dropped = [index for index in indices if (index % 2 == 1) == (rule == "odd")]
    elif rule == "explicit":
        dropped = list(shuffled(n, rng)[: mask_count(n, rng, ratio)])
    else:
        ranked = sorted(
            indices, key=lambda index: len(texts[index - 1].split()), reverse=rule == "longest"
        )
        dropped = ranked[: mask_count(n, rng, ratio)]
    kept = tuple(index for index in indices if index not in dropped)
    return Choice(kept, tuple(sorted(dropped)), tuple(dropped), len(dropped))
