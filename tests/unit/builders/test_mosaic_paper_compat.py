"""`compat: released` keeps the faults of the authors' code, since models were trained so; `robust`
has none."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from fakes import byte_tokenizer

from aligner.builders.mosaic.engine import Counts, Mosaics, Sample
from aligner.builders.mosaic.epochs import mosaics_of
from aligner.builders.mosaic.phrasings import load_phrasings
from aligner.config.recipe import Mosaic, Strategies
from aligner.data.rows import CompletionRow

PHRASINGS = load_phrasings()
NEED_NUMBERS = {"permute.explicit", "permute.odd_first", "permute.even_first"}
NEED_NUMBERS |= {"maskout.explicit", "maskout.odd", "maskout.even"}
BOTH = pytest.mark.parametrize("compat", ["released", "robust"])


def rows_of(*questions: str) -> list[CompletionRow]:
    return [
        CompletionRow(question, f"answer {number}", f"r{number}")
        for number, question in enumerate(questions)
    ]


def many_rows(count: int, seed: int = 0) -> list[CompletionRow]:
    rng = random.Random(seed)
    return rows_of(
        *(
            f"{rng.choice('abcdeABCDE')}{' w' * rng.randint(0, 9)} {number}"
            for number in range(count)
        )
    )


def only(*names: str) -> Strategies:
    return Strategies(**{name: float(name in names) for name in Strategies.model_fields})


def mosaics(
    rows: list[CompletionRow],
    compat: str,
    *,
    max_tokens: int = 10**6,
    seed: int = 0,
    **chosen: object,
) -> Mosaics:
    settings = Mosaic.model_validate({"plain_fraction": 0.0, "compat": compat, **chosen})
    return mosaics_of(rows, settings, max_tokens=max_tokens, seed=seed)


def samples_of(made: Mosaics, epochs: int = 1) -> tuple[list[Sample], Counter[str]]:
    counts = Counts()
    return [
        sample for number in range(epochs) for sample in made.epoch_samples(number, counts)
    ], counts.by_name


def label(sample: Sample) -> str:
    return f"{sample.plan.strategy}.{sample.plan.rule}"


@BOTH
def test_capitals_come_before_small_letters_only_as_released(compat: str) -> None:
    rows = rows_of("apple pie", "Zebra crossing", "banana split")
    made = mosaics(
        rows,
        compat,
        k_distribution="fix_max",
        strategies=only("permute"),
        permute_rules=["alphabet_ascending"],
    )
    samples, _ = samples_of(made, 12)
    alphabetical = set()
    for sample in samples:
        if sample.plan.strategy == "permute":
            alphabetical.add(tuple(sample.origins[place - 1] for place in sample.plan.order))
    full = {order for order in alphabetical if len(order) == 3}
    assert full == ({("r1", "r0", "r2")} if compat == "released" else {("r0", "r2", "r1")})


@BOTH
def test_equal_first_letters_are_sorted_by_the_rest_of_the_text_only_as_released(
    compat: str,
) -> None:
    rows = rows_of("ab two", "aa one")
    made = mosaics(
        rows,
        compat,
        k_distribution="fix_max",
        strategies=only("permute"),
        permute_rules=["alphabet_ascending"],
    )
    samples, _ = samples_of(made, 12)
    sorted_ones = [sample for sample in samples if sample.plan.strategy == "permute"]
    assert bool(sorted_ones) == (compat == "released")
    for sample in sorted_ones:
        assert [sample.origins[place - 1] for place in sample.plan.order] == ["r1", "r0"]


@BOTH
@pytest.mark.parametrize(
    ("strategy", "rules"),
    [
        (
            "permute",
            [
                "words_ascending",
                "words_descending",
                "characters_ascending",
                "characters_descending",
            ],
        ),
        ("maskout", ["longest", "shortest"]),
    ],
)
def test_ties_are_broken_by_the_order_of_the_input_only_as_released(
    strategy: str, rules: list[str], compat: str
) -> None:
    key = "permute_rules" if strategy == "permute" else "mask_rules"
    made = mosaics(
        rows_of("one two", "ten six", "red fox"),
        compat,
        k_distribution="fix_max",
        strategies=only(strategy),
        **{key: rules},
    )
    samples, counts = samples_of(made, 10)
    if compat == "robust":
        assert {sample.plan.strategy for sample in samples} == {"format"}
        assert counts[f"rejected:no rule of {strategy} fits, format instead"] == 10
    else:
        assert {sample.plan.strategy for sample in samples} == {strategy}
        for sample in samples:
            assert sample.plan.order == ((1, 2, 3) if strategy == "permute" else (2, 3))


@BOTH
def test_rules_speak_of_numbers_that_are_not_there_only_as_released(compat: str) -> None:
    samples, _ = samples_of(mosaics(many_rows(6000), compat, seed=2))
    without = [
        sample
        for sample in samples
        if label(sample) in NEED_NUMBERS and not sample.plan.style.number
    ]
    if compat == "released":
        assert 0.012 < len(without) / len(samples) < 0.04  # 0.1 * 0.3 * (3/10 + 3/5) = 0.027
    else:
        assert without == []


@BOTH
def test_nothing_marks_one_answer_off_from_the_next_only_as_released(compat: str) -> None:
    samples, _ = samples_of(mosaics(many_rows(6000), compat, seed=3))
    unmarked = [
        sample for sample in samples if not sample.plan.style.number and not sample.plan.style.begin
    ]
    if compat == "released":
        assert 0.03 < len(unmarked) / len(samples) < 0.075  # 0.05
    else:
        assert unmarked == []


@BOTH
def test_marks_occur_in_the_texts_only_as_released(compat: str) -> None:
    rows = [
        CompletionRow(f"q{number}", f"1. one\n2. two <begin> {number} <end>", f"r{number}")
        for number in range(800)
    ]
    samples, _ = samples_of(mosaics(rows, compat, seed=4))
    hit = 0
    for sample in samples:
        style = sample.plan.style
        hit += style.begin == "<begin>" or (style.number == "{n}." and not style.begin)
    assert (hit > 0) == (compat == "released")


@BOTH
def test_a_row_that_is_too_long_is_dropped_and_counted_only_as_released(compat: str) -> None:
    rows = [*many_rows(50), CompletionRow("long " * 900, "answer", "long")]
    samples, counts = samples_of(mosaics(rows, compat, max_tokens=900))
    used = Counter(origin for sample in samples for origin in sample.origins)
    dropped = set() if compat == "robust" else {"long"}
    assert used == Counter([row.origin for row in rows if row.origin not in dropped])
    assert counts["overlong:drop"] == len(dropped)
    assert counts["overlong:alone"] == 1 - len(dropped)


def test_a_text_must_be_shorter_than_the_limit_and_may_not_reach_it_as_released() -> None:
    for limit, used in ((100, 0), (101, 30)):
        made = mosaics(many_rows(30), "released", max_tokens=limit)
        made.count = lambda text: 100  # type: ignore[attr-defined]
        samples, counts = samples_of(made)
        assert sum(len(sample.origins) for sample in samples) == used
        assert counts["overlong:drop"] == 30 - used


def test_the_limit_is_held_against_the_bare_texts_and_not_the_template_as_released() -> None:
    tokenizer = byte_tokenizer()
    rows = [
        CompletionRow(
            [{"role": "user", "content": "q" * 60}], [{"role": "assistant", "content": "a"}], "r"
        )
    ] * 200
    made = mosaics_of(
        rows, Mosaic(compat="released", max_examples=4), tokenizer=tokenizer, max_tokens=300
    )
    samples, _ = samples_of(made)
    for sample in samples:
        assert (
            len(
                tokenizer(
                    sample.rendered.prompt + sample.rendered.completion, add_special_tokens=False
                )["input_ids"]
            )
            < 300
        )
    assert max(sample.tokens for sample in samples) >= 300


def long_rows() -> list[CompletionRow]:
    """Rows of 450 tokens on average, for a limit of 2,000."""
    rng = random.Random(7)
    rows = []
    for number in range(2500):
        characters = max(40, int(rng.lognormvariate(-0.245, 0.7) * 450 * 3.5))
        question = f"{number} " + "".join(rng.choices("abcde ", k=characters * 3 // 10))
        rows.append(CompletionRow(question, "x" * (characters * 7 // 10), f"r{number}"))
    return rows


def test_long_rows_make_maskout_more_frequent_than_permute_as_released() -> None:
    samples, _ = samples_of(mosaics(long_rows(), "released", max_tokens=2000), 2)
    of = {
        name: [sample for sample in samples if sample.plan.strategy == name]
        for name in ("permute", "maskout")
    }
    assert len(of["maskout"]) > 1.3 * len(of["permute"])
    mean = {
        name: sum(len(sample.origins) for sample in some) / len(some) for name, some in of.items()
    }
    assert mean["maskout"] > mean["permute"]


def test_long_rows_leave_maskout_as_frequent_as_permute_in_robust() -> None:
    # was wrong once: a sample that is too long is planned again, strategy included; so Maskout,
    # which is shorter, is favoured
    _, counts = samples_of(mosaics(long_rows(), "robust", max_tokens=2000), 2)
    permute, maskout = counts["strategy:permute"], counts["strategy:maskout"]
    assert abs(maskout - permute) < 4 * (maskout + permute) ** 0.5


def test_long_rows_leave_the_rules_of_maskout_equally_frequent_in_robust() -> None:
    # FAULT: the rule and the ratio are still drawn again for each row less, so rules that leave out
    # much are favoured
    _, counts = samples_of(mosaics(long_rows(), "robust", max_tokens=2000), 3)
    found = [
        counts[f"rule:maskout.{rule}"]
        for rule in ("explicit", "longest", "shortest", "odd", "even")
    ]
    mean = sum(found) / 5
    assert (
        sum((count - mean) ** 2 for count in found) / mean < 23.5
    )  # chi-square with 4 degrees of freedom, at 1e-4


@BOTH
def test_one_instruction_is_spoken_of_in_the_plural_only_as_released(compat: str) -> None:
    samples, _ = samples_of(mosaics(many_rows(200), compat, max_examples=1))
    forms = {
        meta.text.form
        for sample in samples
        if sample.plan.style.format_line
        for meta in PHRASINGS.read(sample.plan.style.format_line)
    }
    assert forms == ({"many"} if compat == "released" else {"one"})


@BOTH
def test_most_pareto_draws_are_the_largest_only_as_released(compat: str) -> None:
    """As released half of the draws lie in [-1, 0), and int() makes them 0: of 6/7 below 5, 2/3 are
    below 1."""
    made = mosaics(many_rows(4000), compat, k_distribution="pareto", max_examples=5)
    samples, counts = samples_of(made)
    assert max(len(sample.origins) for sample in samples) == 5
    share = counts["drawn:5"] / sum(
        number for key, number in counts.items() if key.startswith("drawn:")
    )
    assert share == pytest.approx(
        7 / 9 if compat == "released" else (1 / 6) / (6 / 7 - 1 / 2), abs=0.06
    )


def test_what_is_left_out_is_listed_as_it_was_drawn_as_released() -> None:
    made = mosaics(many_rows(3000), "released", mask_rules=["explicit"], strategies=only("maskout"))
    samples, _ = samples_of(made)
    dropped = [sample for sample in samples if len(sample.plan.dropped) > 1]
    listed = [
        [int(digits) for digits in re.findall(r"[0-9]+", sample.plan.style.rule_line)]
        for sample in dropped
    ]
    assert [sorted(places) for places in listed] == [
        list(sample.plan.dropped) for sample in dropped
    ]
    assert sum(places != sorted(places) for places in listed) > len(dropped) / 4


@pytest.mark.parametrize("name", ["uniform", "exp", "pareto", "lognormal", "logistic2", "fix_max"])
def test_no_distribution_exceeds_the_largest_as_released(name: str) -> None:
    samples, _ = samples_of(
        mosaics(many_rows(600), "released", k_distribution=name, max_examples=4)
    )
    assert max(len(sample.origins) for sample in samples) == 4
    assert Counter(origin for sample in samples for origin in sample.origins) == Counter(
        f"r{n}" for n in range(600)
    )


def test_nothing_is_checked_or_put_aside_as_released() -> None:
    _, counts = samples_of(mosaics(many_rows(300), "released"))
    assert not [key for key in counts if key.startswith(("violation:", "rejected:"))]
    assert counts["strategy:plain"] == 0


def test_primary_alone_cannot_be_drawn_as_released_but_does_not_crash() -> None:
    # was wrong once: nothing is left to draw from, which ends in an IndexError
    made = mosaics(many_rows(20), "released", strategies=only("primary"), k_distribution="fix_max")
    samples, _ = samples_of(made)
    assert sum(len(sample.origins) for sample in samples) == 20


def test_equal_seeds_give_equal_samples_and_the_rows_stay_as_they_are() -> None:
    rows = many_rows(300)
    first, second, other = (
        samples_of(mosaics(rows, "released", seed=seed))[0] for seed in (1, 1, 2)
    )
    assert first == second
    assert [sample.origins for sample in first] != [sample.origins for sample in other]
    assert rows == many_rows(300)
