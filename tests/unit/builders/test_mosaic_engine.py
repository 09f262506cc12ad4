"""The loop over epochs and chunks: samples right and within their limit, rows used once each, fair
chances."""

from __future__ import annotations

import copy
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import pytest
from fakes import CHAT_TEMPLATE, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner.builders.mosaic.check import check, parse
from aligner.builders.mosaic.costs import costs
from aligner.builders.mosaic.engine import ALONE, Counts, Mosaics, Sample
from aligner.builders.mosaic.epochs import build, mosaics_of, mosaics_over
from aligner.builders.mosaic.examples import Example, Examples
from aligner.builders.mosaic.k_distribution import probabilities
from aligner.builders.mosaic.lengths import EstimatedLengths
from aligner.builders.mosaic.phrasings import MASK_RULES, PERMUTE_RULES, load_phrasings
from aligner.builders.mosaic.plan import Plan, Planner
from aligner.builders.mosaic.render import render
from aligner.config.recipe import Mosaic, Strategies
from aligner.data.rows import CompletionRow, Row
from aligner.errors import DataError, RecipeError
from aligner.tokenization.encode import encode_sft

PHRASINGS = load_phrasings()
ROBUST = ("uniform", "exp", "pareto", "lognormal", "logistic2")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


# --- rows, and what is made of them ---------------------------------------------------------------


def asked(
    question: str, answer: str, origin: str = "", system: str = "", group: str = ""
) -> CompletionRow:
    """A row of turns."""
    lead = [{"role": "system", "content": system}] if system else []
    prompt = [*lead, {"role": "user", "content": question}]
    return CompletionRow(prompt, [{"role": "assistant", "content": answer}], origin, group)


def some_rows(count: int, seed: int = 0, longest: int = 12) -> list[CompletionRow]:
    """Rows of different small lengths, each with words of its own."""
    rng = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(f"{rng.choice(LETTERS)}{number}" for _ in range(rng.randint(1, longest)))

    return [
        asked(f"{rng.choice(LETTERS)}{words(number)}?", f"{words(number)}.", f"r{number}")
        for number in range(count)
    ]


def in_memory(rows: Iterable[Row]) -> Examples:
    """Examples with estimated lengths, read with the same phrasings in all tests."""
    examples = Examples(None, "skip")
    for number, row in enumerate(rows):
        examples.add(number, row, PHRASINGS, EstimatedLengths())
    return examples


def over(examples: Examples, chosen: Mosaic, *, max_tokens: int = 10**9, seed: int = 0) -> Mosaics:
    return mosaics_over(examples, chosen, PHRASINGS, None, max_tokens=max_tokens, seed=seed)


def only(*names: str) -> Strategies:
    """Equal weights for these strategies, none for the others."""
    return Strategies(**{name: float(name in names) for name in Strategies.model_fields})


EVERY = only("format", "permute", "maskout", "primary")


def made(mosaics: Mosaics, epoch: int = 0) -> tuple[list[Sample], Counter[str]]:
    counts = Counts()
    return list(mosaics.epoch_samples(epoch, counts)), counts.by_name


def texts_of(row: CompletionRow) -> tuple[str, str]:
    """The question and the answer of a row, without a system prompt."""
    return row.prompt[-1]["content"], row.completion[-1]["content"]  # type: ignore[index,return-value]


def violations(counts: Counter[str]) -> list[str]:
    return [key for key in counts if key.startswith("violation:")]


def assert_right(sample: Sample, rows: dict[str, CompletionRow]) -> None:
    """What the text of a sample says is what was planned, and its examples are in it unchanged."""
    examples = [texts_of(rows[origin]) for origin in sample.origins]
    prompt, completion = texts_of(sample.row)
    plan, style = sample.plan, sample.plan.style
    reading = check(prompt, completion, examples, PHRASINGS)
    assert (reading.strategy, reading.rule, reading.order, reading.dropped) == (
        plan.strategy,
        plan.rule,
        plan.order,
        plan.dropped,
    )
    kept = [examples[place - 1][1] for place in plan.order]
    if plan.strategy in ("plain", "primary"):
        assert (prompt, completion) == tuple(
            style.separator.join(texts) for texts in zip(*examples)
        )
        assert len(examples) == 1 or completion.split(style.separator) == kept
    else:
        found = parse(
            completion, begin=style.begin, end=style.end, number=style.number, gap=style.gap
        )
        assert found == [
            (place if style.number else None, text) for place, text in zip(plan.order, kept)
        ]
    at = 0
    for question, _ in examples:
        at = prompt.index(question, at) + len(question)
    assert sorted([*plan.order, *plan.dropped]) == list(range(1, len(examples) + 1))


# --- samples of hostile texts ---------------------------------------------------------------------

PHRASING_LINES = [
    text.filled(begin="<begin>", end="<stop>", list="2, 1", count="2")
    for forms in PHRASINGS.texts.values()
    for texts in forms.values()
    for text in texts
]
TAGS = [
    bracket.replace("{tag}", word)
    for bracket in PHRASINGS.tag_brackets
    for pair in PHRASINGS.tag_words
    for word in (*pair, *(word.upper() for word in pair))
]
MARKS = [number.replace("{n}", str(index)) for number in PHRASINGS.numbers for index in (1, 2, 10)]
ODD_ONES = [
    "\r\n",
    "\n",
    "\n\n",
    "\t",
    "{n}",
    "{begin}",
    "{}",
    "%s",
    "%",
    "\\",
    "\\n",
    "\u202e",
    "\u200f",
    "\u2028",
    "🙂",
    "---",
]
ODD_ONES += [
    "\x01",
    "\x0b",
    "\x1c",
    "\x7f",
    "\x85",
    "שלום",
    "ﬆ",
    "İ",
    "ß",
    "===",
    "***",
    "<",
    ">",
    "|",
    "#",
    "*",
]
PIECES = st.one_of(
    st.sampled_from(PHRASING_LINES),
    st.sampled_from(TAGS),
    st.sampled_from(MARKS),
    st.sampled_from(ODD_ONES),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    st.sampled_from(["a", "b c", "One word", "zebra"]),
)
HOSTILE = st.builds(
    lambda pieces, glue: glue.join(pieces),
    st.lists(PIECES, min_size=1, max_size=6),
    st.sampled_from(["", " ", "\n", "\n\n"]),
).filter(lambda text: text.strip() != "")
MAX_EXAMPLES = 100


@settings(max_examples=MAX_EXAMPLES, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=7),
    st.sampled_from(["format", "permute", "maskout", "primary"]),
    st.integers(0, 2**32),
)
def test_any_examples_come_back_byte_for_byte_in_the_order_that_the_text_asks_for(
    texts: list[tuple[str, str]], strategy: str, seed: int
) -> None:
    rows = {f"r{number}": asked(*pair, f"r{number}") for number, pair in enumerate(texts)}
    chosen = Mosaic(k_distribution="fix_max", strategies=only(strategy), plain_fraction=0.0)
    samples, counts = made(over(in_memory(rows.values()), chosen, seed=seed))
    for sample in samples:
        assert_right(sample, rows)
    assert Counter(origin for sample in samples for origin in sample.origins) == Counter(list(rows))
    assert "ﬆ" in str(texts) or violations(counts) == []  # that letter has a test of its own, below


def test_an_instruction_that_begins_with_a_ligature_has_no_place_in_the_alphabet() -> None:
    # was wrong once: rules.first_letter looks for "st", which the ligature casefolds to, and finds
    # it in the alphabet at "s"
    rows = [asked(text, f"answer {text}", text) for text in ("ﬆone", "apple", "zoo")]
    chosen = Mosaic(
        k_distribution="fix_max",
        plain_fraction=0.0,
        strategies=only("permute"),
        permute_rules=["alphabet_ascending"],
    )
    samples, counts = made(over(in_memory(rows), chosen))
    assert violations(counts) == []
    assert [sample.plan.strategy for sample in samples] == ["format"]


@settings(max_examples=MAX_EXAMPLES, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(HOSTILE, HOSTILE), min_size=2, max_size=7, unique_by=lambda pair: pair[0]),
    st.integers(0, 2**32),
)
def test_a_masked_answer_is_nowhere_in_the_completion(
    texts: list[tuple[str, str]], seed: int
) -> None:
    signed = [
        (question, f"{answer}\ue000{number}\ue001{answer}")
        for number, (question, answer) in enumerate(texts)
    ]
    rows = {f"r{number}": asked(*pair, f"r{number}") for number, pair in enumerate(signed)}
    chosen = Mosaic(k_distribution="fix_max", strategies=only("maskout"), plain_fraction=0.0)
    for sample in made(over(in_memory(rows.values()), chosen, seed=seed))[0]:
        completion = texts_of(sample.row)[1]
        for place, origin in enumerate(sample.origins, 1):
            assert (f"\ue000{origin[1:]}\ue001" in completion) == (place not in sample.plan.dropped)
        assert len(sample.plan.order) >= 1
        assert (sample.plan.strategy == "maskout") == (len(sample.plan.dropped) >= 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(HOSTILE, HOSTILE), min_size=3, max_size=10),
    st.integers(10, 200),
    st.integers(0, 2**32),
)
def test_hostile_examples_are_used_once_each_under_a_small_limit_too(
    texts: list[tuple[str, str]], max_tokens: int, seed: int
) -> None:
    rows = {f"r{number}": asked(*pair, f"r{number}") for number, pair in enumerate(texts)}
    samples, _ = made(over(in_memory(rows.values()), Mosaic(), max_tokens=max_tokens, seed=seed))
    assert Counter(origin for sample in samples for origin in sample.origins) == Counter(list(rows))
    for sample in samples:
        assert_right(sample, rows)


def test_the_spans_of_a_sample_are_the_examples_own_words() -> None:
    rows = {str(row.origin): row for row in some_rows(120)}
    for sample in made(over(in_memory(rows.values()), Mosaic(strategies=EVERY)))[0]:
        examples = [texts_of(rows[origin]) for origin in sample.origins]
        rendered = sample.rendered
        assert [(place, rendered.prompt[a:b]) for place, a, b in rendered.asked] == [
            (place, question) for place, (question, _) in enumerate(examples, 1)
        ]
        assert [(place, rendered.completion[a:b]) for place, a, b in rendered.answered] == [
            (place, examples[place - 1][1]) for place in sample.plan.order
        ]


# --- every row once -------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [40, 150, 10**6])
@pytest.mark.parametrize("distribution", ["uniform", "exp", "fix_max", "max_length"])
def test_an_epoch_uses_every_row_once_but_those_that_are_reported_too_long(
    distribution: Any, max_tokens: int
) -> None:
    rows = some_rows(150, seed=3)
    examples = in_memory(rows)
    long = {row.origin for row, tokens in zip(rows, examples.tokens) if tokens > max_tokens}
    chosen = Mosaic(
        k_distribution=distribution, on_overlong="drop", max_examples=6, strategies=EVERY
    )
    for epoch in range(2):
        samples, counts = made(over(examples, chosen, max_tokens=max_tokens), epoch)
        used = Counter(origin for sample in samples for origin in sample.origins)
        assert used == Counter(row.origin for row in rows if row.origin not in long)
        assert counts["overlong:drop"] == len(long)
        assert all(
            sample.origins and texts_of(sample.row)[0] and texts_of(sample.row)[1]
            for sample in samples
        )
        assert counts["samples"] == len(samples)
        assert counts["examples"] == sum(used.values())
        assert violations(counts) == []
        most = 150 if distribution == "max_length" else 6
        assert max(len(sample.origins) for sample in samples) <= most


def test_rows_with_the_same_instruction_never_share_a_sample() -> None:
    rng = random.Random(1)
    rows = [
        asked(f"Question {rng.randrange(12)}", f"Answer {number}", f"r{number}")
        for number in range(200)
    ]
    question = {row.origin: texts_of(row)[0] for row in rows}
    kinds: tuple[Any, ...] = ("uniform", "fix_max", "max_length")
    for distribution in kinds:
        samples, counts = made(
            over(in_memory(rows), Mosaic(k_distribution=distribution, plain_fraction=0.0))
        )
        for sample in samples:
            assert len({question[origin] for origin in sample.origins}) == len(sample.origins)
        assert Counter(origin for sample in samples for origin in sample.origins) == Counter(
            list(question)
        )
        assert violations(counts) == []


def test_rows_that_are_all_alike_stand_alone() -> None:
    rows = [asked("The same", "answer", f"r{number}") for number in range(40)]
    samples, _ = made(over(in_memory(rows), Mosaic(k_distribution="fix_max", plain_fraction=0.0)))
    assert [len(sample.origins) for sample in samples] == [1] * 40


def test_rows_that_speak_of_other_messages_stand_alone_as_they_came() -> None:
    rows = some_rows(60)
    rows[7] = asked("Ignore all previous instructions.", "No.", "r7")
    rows[20] = asked("continue", "And so on.", "r20")
    kinds: tuple[Any, ...] = ("fix_max", "max_length")
    for distribution in kinds:
        samples, _ = made(
            over(in_memory(rows), Mosaic(k_distribution=distribution, plain_fraction=0.0))
        )
        of = {origin: sample for sample in samples for origin in sample.origins}
        for number in (7, 20):
            sample = of[f"r{number}"]
            assert sample.plan.strategy == "plain"
            assert texts_of(sample.row) == texts_of(rows[number])
        assert len(of) == 60


def test_system_prompts_and_groups_are_never_mixed_and_system_prompts_are_kept() -> None:
    rng = random.Random(5)
    rows = [
        asked(
            *texts_of(row),
            row.origin,
            rng.choice(["", "Be brief.", "Be kind."]),
            rng.choice(["", "maths", "code"]),
        )
        for row in some_rows(240)
    ]
    rows += [
        CompletionRow(f"plain {number}", f"text {number}", f"t{number}", "maths")
        for number in range(20)
    ]
    by_origin = {row.origin: row for row in rows}
    samples, counts = made(over(in_memory(rows), Mosaic(strategies=EVERY)))
    assert Counter(origin for sample in samples for origin in sample.origins) == Counter(
        list(by_origin)
    )
    assert counts["examples"] / counts["samples"] > 2
    for sample in samples:
        group = [by_origin[origin] for origin in sample.origins]
        assert len({row.group for row in group}) == 1
        assert sample.row.group == group[0].group
        if isinstance(sample.row.prompt, str):
            assert all(isinstance(row.prompt, str) for row in group)
            assert isinstance(sample.row.completion, str)
        else:
            assert all(row.prompt[:-1] == sample.row.prompt[:-1] for row in group)


def test_blank_rows_are_left_out_and_counted_in_both_forms() -> None:
    # was wrong once: plain strings are not looked at; a blank one spoils the samples that it comes
    # into
    rows = [
        CompletionRow("", "x", "r0"),
        CompletionRow("q", " ", "r1"),
        CompletionRow("a", "b", "r2"),
    ]
    examples = in_memory([*rows, asked(" ", "x", "r3")])
    assert dict(examples.left_out) == {"an empty turn": 3}


# --- lengths --------------------------------------------------------------------------------------

SPECIAL = ["<unk>", "<pad>", "<bos>", "<eos>", "<start>"]
VOCABULARY = [f"w{number}" for number in range(60)]


def _wrapped(core: Any, template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<start>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


LONG_TEMPLATE = CHAT_TEMPLATE.replace("{{- bos_token -}}", "{{- bos_token + 'w1 ' * 200 -}}")


@cache
def word_tokenizer(template: str = CHAT_TEMPLATE, *, splits_marks: bool = True) -> Any:
    """One token for each word; marks are tokens of their own, or part of a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*SPECIAL, *VOCABULARY, "a", "b", "x", "y"]
    core = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    core.pre_tokenizer = (
        pre_tokenizers.Whitespace() if splits_marks else pre_tokenizers.WhitespaceSplit()
    )
    return _wrapped(core, template)


@cache
def bpe_tokenizer(template: str = CHAT_TEMPLATE) -> Any:
    """A byte-level BPE that knows the words of the rows and of the phrasings."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*PHRASING_LINES, *[" ".join(VOCABULARY)] * 50], trainer)
    return _wrapped(core, template)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "words": word_tokenizer,
    "words with their marks": lambda: word_tokenizer(splits_marks=False),
    "BPE": bpe_tokenizer,
    "bytes, long preamble": lambda: byte_tokenizer(LONG_TEMPLATE),
    "words, long preamble": lambda: word_tokenizer(LONG_TEMPLATE),
    "BPE, long preamble": lambda: bpe_tokenizer(LONG_TEMPLATE),
}
LIMITS = {
    "bytes": (220, 700),
    "words": (75, 300),
    "words with their marks": (70, 250),
    "BPE": (150, 400),
    "bytes, long preamble": (1000,),
    "words, long preamble": (275,),
    "BPE, long preamble": (520,),
}


def word_rows(count: int, seed: int, longest: int = 8) -> list[CompletionRow]:
    rng = random.Random(seed)

    def words() -> str:
        return " ".join(rng.choices(VOCABULARY, k=rng.randint(1, longest)))

    return [asked(words(), words(), f"r{number}") for number in range(count)]


@pytest.mark.parametrize(
    ("name", "limit"), [(name, limit) for name in TOKENIZERS for limit in LIMITS[name]]
)
def test_no_sample_is_longer_than_the_limit_under_the_chat_template(name: str, limit: int) -> None:
    tokenizer = TOKENIZERS[name]()
    chosen = Mosaic(max_examples=8, on_overlong="error", strategies=EVERY)
    mosaics = mosaics_of(
        word_rows(90, seed=4), chosen, tokenizer=tokenizer, max_tokens=limit, seed=6
    )
    samples, counts = made(mosaics)
    lengths = [len(encode_sft(tokenizer, sample.row).input_ids) for sample in samples]
    assert max(lengths) <= limit
    assert limit > LIMITS[name][0] or counts["rejected:too long, a row less"] >= 2
    assert counts["examples"] == 90
    assert violations(counts) == []


def test_a_sample_that_is_mostly_marks_is_within_the_limit_too() -> None:
    # was wrong once: marks take more tokens than `tokens_per_character` allows for; the sum is
    # trusted below 0.8 of the limit
    tokenizer = bpe_tokenizer()
    rng = random.Random(0)
    rows = [
        asked(" ".join(rng.choices(VOCABULARY, k=3)), rng.choice(VOCABULARY), f"r{n}")
        for n in range(400)
    ]
    chosen = Mosaic(max_examples=10, plain_fraction=0.3)
    for limit in (70, 90):
        samples, _ = made(mosaics_of(rows, chosen, tokenizer=tokenizer, max_tokens=limit, seed=0))
        longer = [
            sample.name
            for sample in samples
            if len(encode_sft(tokenizer, sample.row).input_ids) > limit
        ]
        assert longer == [], limit


def test_a_row_that_is_too_long_by_itself_stands_alone_and_is_the_only_exception() -> None:
    tokenizer = byte_tokenizer()
    rows = [
        *word_rows(60, seed=1),
        asked("long " * 60, "answer", "long one"),
        asked("q", "long " * 60, "long two"),
    ]
    mosaics = mosaics_of(rows, Mosaic(), tokenizer=tokenizer, max_tokens=200)
    samples, counts = made(mosaics)
    longer = [
        sample for sample in samples if len(encode_sft(tokenizer, sample.row).input_ids) > 200
    ]
    assert {sample.origins for sample in longer} == {("long one",), ("long two",)}
    assert {sample.plan.strategy for sample in longer} == {"plain"}
    assert counts["overlong:alone"] == 2


@pytest.mark.parametrize(("largest", "limit"), [(20, 200), (40, 400), (100, 1000)])
def test_many_short_rows_are_within_the_limit_too(largest: int, limit: int) -> None:
    # was wrong once: the sums of samples that are mostly marks were trusted
    tokenizer = bpe_tokenizer()
    rng = random.Random(0)
    rows = [
        asked(f"{rng.choice(VOCABULARY)} {n}", rng.choice(VOCABULARY), f"r{n}") for n in range(600)
    ]
    chosen = Mosaic(max_examples=largest, k_distribution="fix_max")
    samples, _ = made(mosaics_of(rows, chosen, tokenizer=tokenizer, max_tokens=limit))  # type: ignore[arg-type]
    assert max(len(encode_sft(tokenizer, sample.row).input_ids) for sample in samples) <= limit  # type: ignore[arg-type]


def test_as_many_as_fit_are_found_in_few_attempts() -> None:
    # was slow once: questions did not count for how many examples could fit, and one was taken off
    # at a time
    rng = random.Random(0)
    rows = [
        asked(" ".join(rng.choices(VOCABULARY, k=100)) + f" {n}", "yes", f"r{n}")
        for n in range(1200)
    ]
    samples, counts = made(mosaics_of(rows, Mosaic(k_distribution="max_length"), max_tokens=500))
    assert counts["rejected:too long, a row less"] < len(samples)


def test_many_rows_with_one_instruction_are_taken_in_few_epochs() -> None:
    rows = [asked("the same" if n % 2 else f"question {n}", f"a{n}", f"r{n}") for n in range(6000)]
    started = time.process_time()
    samples, _ = made(over(in_memory(rows), Mosaic(max_examples=100)))
    assert sum(len(sample.origins) for sample in samples) == 6000
    assert time.process_time() - started < 20  # it was quadratic once


def test_unnumbered_instructions_hold_no_blank_line_of_their_own() -> None:
    # was wrong once: that of the last instruction was not looked at
    rows = [
        asked(f"Say {n}" + "\n\nAnd then explain it" * (n % 3 == 0), f"a{n}", f"r{n}")
        for n in range(600)
    ]
    samples, _ = made(over(in_memory(rows), Mosaic(max_examples=3)))
    unnumbered = [
        one
        for one in samples
        if one.plan.strategy in ("format", "permute", "maskout") and not one.plan.style.number
    ]
    assert len(unnumbered) > 5
    for sample in unnumbered:
        asked_texts = [
            sample.rendered.prompt[start:stop] for _, start, stop in sample.rendered.asked
        ]
        assert not any("\n\n" in text for text in asked_texts)


def test_primary_alone_gives_joined_and_plain_samples_only() -> None:
    samples, _ = made(
        over(in_memory(some_rows(200)), Mosaic(strategies=only("primary"), plain_fraction=0.0))
    )
    assert {sample.plan.strategy for sample in samples} == {"primary", "plain"}


def test_a_row_that_is_too_long_is_an_error_that_names_it_if_asked_for() -> None:
    rows = [*some_rows(10), asked("long " * 600, "answer", "data/rows.jsonl:11")]
    with pytest.raises(
        DataError, match="1 of 11 rows alone are longer than the 500 tokens"
    ) as caught:
        mosaics_of(rows, Mosaic(on_overlong="error"), max_tokens=500)
    assert "data/rows.jsonl:11: " in str(caught.value)
    assert "mosaic.on_overlong" in caught.value.hint


def test_a_row_that_is_too_long_is_always_treated_so_even_where_a_mask_would_make_it_fit() -> None:
    # was wrong once: only the first example of a sample is looked at; another too long one is used
    # where its answer is masked
    rows = [
        asked("a b c d e f g h i j k l m n o p q r s t", "x" * 300, "long"),
        asked("one two", "z", "short"),
    ]
    chosen = Mosaic(
        k_distribution="fix_max",
        max_examples=2,
        plain_fraction=0.0,
        strategies=only("maskout"),
        mask_rules=["longest"],
        on_overlong="drop",
    )
    examples = in_memory(rows)
    assert examples.tokens[0] > 96 > examples.trained[0] + examples.tokens[1]
    dropped = [
        made(over(examples, chosen, max_tokens=96), number)[1]["overlong:drop"]
        for number in range(8)
    ]
    assert dropped == [1] * 8


def test_the_tokens_of_samples_are_about_right_where_they_are_added_up() -> None:
    for tokenizer in (byte_tokenizer(), word_tokenizer(), bpe_tokenizer()):
        mosaics = mosaics_of(
            word_rows(150, seed=2, longest=30), Mosaic(), tokenizer=tokenizer, max_tokens=10**5
        )
        samples, _ = made(mosaics)
        exact = [len(encode_sft(tokenizer, sample.row).input_ids) for sample in samples]
        assert sum(sample.tokens for sample in samples) == pytest.approx(sum(exact), rel=0.15)


def test_plain_text_without_a_chat_template_is_refused() -> None:
    rows = [CompletionRow(*texts_of(row), row.origin) for row in some_rows(5)]
    with pytest.raises(RecipeError, match="mosaics need a chat template"):
        mosaics_of(rows, Mosaic(), tokenizer=byte_tokenizer(None))


@pytest.mark.parametrize("is_text", [False, True])
def test_the_loss_mask_of_a_sample_covers_exactly_its_completion(is_text: bool) -> None:
    tokenizer = byte_tokenizer()
    rows: list[Row] = [
        CompletionRow(*texts_of(row), row.origin)
        if is_text
        else asked(*texts_of(row), row.origin, "Be brief.")
        for row in some_rows(80)
    ]
    samples, _ = made(mosaics_of(rows, Mosaic(strategies=EVERY), tokenizer=tokenizer))
    assert {sample.plan.strategy for sample in samples} == {*Strategies.model_fields, "plain"}
    for sample in samples:
        encoded = encode_sft(tokenizer, sample.row)
        trained = [
            token for token, label in zip(encoded.input_ids, encoded.labels) if label != -100
        ]
        assert tokenizer.decode(trained) == sample.rendered.completion + tokenizer.eos_token
        assert all(
            label in (-100, token) for token, label in zip(encoded.input_ids, encoded.labels)
        )


# --- chances --------------------------------------------------------------------------------------

Z = 3.719  # of a normal distribution at 1 - 1e-4


def assert_fits(found: dict[object, int], expected: dict[object, float]) -> None:
    """Pearson's chi-square below what one in ten thousand exceeds (Wilson and Hilferty); no other
    outcomes."""
    assert set(found) <= set(expected)
    total = sum(found.values())
    assert min(expected.values()) * total >= 5, "too few draws for this test"
    square = sum((found.get(key, 0) - total * p) ** 2 / (total * p) for key, p in expected.items())
    free = max(1, len(expected) - 1)
    assert square < free * (1 - 2 / (9 * free) + Z * math.sqrt(2 / (9 * free))) ** 3


DENSITY: dict[str, Callable[[float], float]] = {
    "exp": lambda x: math.exp(-x),
    "pareto": lambda x: 1 / (x + 2) ** 2,  # Lomax(1): 1 / (1 + y)^2, moved left by one
    "lognormal": lambda x: (
        math.exp(-(math.log(x) ** 2) / 2) / x / math.sqrt(2 * math.pi) if x > 0 else 0.0
    ),
    "logistic2": lambda x: math.exp(-x / 2) / (2 * (1 + math.exp(-x / 2)) ** 2),
}


def exact_pmf(name: str, largest: int) -> dict[object, float]:
    """k -> probability, by Simpson's rule over the density of X on [0, largest)."""
    if name == "uniform":
        return dict.fromkeys(range(1, largest + 1), 1 / largest)
    steps = 2000

    def area(start: int) -> float:
        ordinates = [DENSITY[name](start + place / steps) for place in range(steps + 1)]
        return (
            ordinates[0] + ordinates[-1] + 4 * sum(ordinates[1::2]) + 2 * sum(ordinates[2:-1:2])
        ) / (3 * steps)

    areas = {largest - floor: area(floor) for floor in range(largest)}
    return {k: value / sum(areas.values()) for k, value in areas.items()}


@pytest.mark.parametrize("largest", [1, 2, 5, 10, 30])
@pytest.mark.parametrize("name", ROBUST)
def test_the_probabilities_of_k_are_those_of_the_distribution(name: str, largest: int) -> None:
    exact = exact_pmf(name, largest)
    assert probabilities(name, largest) == pytest.approx(exact, abs=1e-6)
    at_least = {k: value for k, value in exact.items() if int(str(k)) >= min(3, largest)}
    whole = sum(at_least.values())
    given_smallest = {k: value / whole for k, value in at_least.items()}
    assert probabilities(name, largest, min(3, largest)) == pytest.approx(given_smallest, abs=1e-6)


@cache
def tiny_examples(count: int) -> Examples:
    return in_memory(
        asked(f"{LETTERS[number % 26]} {number}", f"{number}", f"r{number}")
        for number in range(count)
    )


@pytest.mark.parametrize("name", ROBUST)
def test_k_is_drawn_as_often_as_it_should_be(name: Any) -> None:
    mosaics = over(tiny_examples(20_000), Mosaic(k_distribution=name, plain_fraction=0.0), seed=11)
    draws = Counter(k for epoch in range(3) for chunk in mosaics.chunks(epoch) for k in chunk.draws)
    exact = exact_pmf(name, 10)
    total = sum(draws.values())
    rare = {k for k, p in exact.items() if p * total < 10}
    found: dict[object, int] = {k: number for k, number in draws.items() if k not in rare}
    expected = {k: p for k, p in exact.items() if k not in rare}
    found["rare"], expected["rare"] = sum(draws[k] for k in rare), sum(exact[k] for k in rare)
    if expected["rare"] * total < 5:
        assert found["rare"] <= 20
        del found["rare"], expected["rare"]
        whole = sum(expected.values())
        expected = {k: p / whole for k, p in expected.items()}
    assert_fits(found, expected)


def test_fix_max_draws_the_largest_k_always_and_min_examples_is_kept() -> None:
    fixed = over(tiny_examples(20_000), Mosaic(k_distribution="fix_max", plain_fraction=0.0))
    assert {k for chunk in fixed.chunks(0) for k in chunk.draws} == {10}
    least = over(
        tiny_examples(20_000), Mosaic(min_examples=4, max_examples=7, plain_fraction=0.0), seed=2
    )
    draws = Counter(k for chunk in least.chunks(0) for k in chunk.draws)
    assert_fits(dict(draws), dict.fromkeys(range(4, 8), 0.25))


def test_plain_samples_are_as_many_as_asked_for() -> None:
    mosaics = over(tiny_examples(20_000), Mosaic(plain_fraction=0.1), seed=3)
    draws = Counter(k == ALONE for chunk in mosaics.chunks(0) for k in chunk.draws)
    assert_fits(dict(draws), {True: 0.1, False: 0.9})


def test_strategies_come_in_the_shares_of_the_paper() -> None:
    samples, counts = made(over(tiny_examples(9_000), Mosaic(plain_fraction=0.0), seed=8))
    found: dict[object, int] = dict(Counter(sample.plan.strategy for sample in samples))
    assert_fits(found, {"format": 0.4, "permute": 0.3, "maskout": 0.3})
    assert all(sample.plan.strategy == "format" for sample in samples if len(sample.origins) == 1)
    assert violations(counts) == []


TEN = [
    asked(f"{letter}{'x' * place}{' word' * place}", f"answer {place}", letter)
    for place, letter in enumerate("kcagibfdjh")
]
"""Ten rows that no rule finds ambiguous: all first letters, numbers of words and lengths differ."""


def over_epochs(rows: Sequence[Row], chosen: Mosaic, epochs: int, seed: int = 0) -> list[Sample]:
    """One sample of all rows from each of many epochs."""
    mosaics = over(in_memory(rows), chosen, seed=seed)
    return [
        sample for number in range(epochs) for sample in mosaics.epoch_samples(number, Counts())
    ]


@pytest.mark.parametrize(
    ("strategy", "rules"), [("permute", PERMUTE_RULES), ("maskout", MASK_RULES)]
)
def test_rules_are_equally_likely_where_none_is_ambiguous(
    strategy: str, rules: tuple[str, ...]
) -> None:
    chosen = Mosaic(k_distribution="fix_max", plain_fraction=0.0, strategies=only(strategy))
    samples = over_epochs(TEN, chosen, 500)
    assert len(samples) == 500
    assert_fits(
        dict(Counter(sample.plan.rule for sample in samples)), dict.fromkeys(rules, 1 / len(rules))
    )


def test_only_the_rules_that_are_asked_for_are_used() -> None:
    chosen = Mosaic(
        k_distribution="fix_max",
        plain_fraction=0.0,
        strategies=only("permute", "maskout"),
        permute_rules=["reverse", "words_ascending"],
        mask_rules=["even"],
    )
    found = {(sample.plan.strategy, sample.plan.rule) for sample in over_epochs(TEN, chosen, 40)}
    assert found == {("permute", "reverse"), ("permute", "words_ascending"), ("maskout", "even")}


def test_explicit_orders_of_three_are_equally_likely() -> None:
    chosen = Mosaic(
        k_distribution="fix_max",
        plain_fraction=0.0,
        strategies=only("permute"),
        permute_rules=["explicit"],
    )
    samples = over_epochs(TEN[:3], chosen, 900, seed=1)
    orders = dict.fromkeys(itertools.permutations((1, 2, 3)), 1 / 6)
    assert_fits(dict(Counter(sample.plan.order for sample in samples)), orders)


@pytest.mark.parametrize("n", [3, 7, 10])
@pytest.mark.parametrize("rule", ["explicit", "longest", "shortest"])
def test_masks_leave_out_as_many_as_the_ratio_says(rule: Any, n: int) -> None:
    chosen = Mosaic(
        k_distribution="fix_max", plain_fraction=0.0, strategies=only("maskout"), mask_rules=[rule]
    )
    samples = over_epochs(TEN[:n], chosen, 300, seed=2)
    ratios = [0.1 + 0.4 * (step + 0.5) / 100_000 for step in range(100_000)]
    expected = {
        c: times / 100_000
        for c, times in Counter(max(1, int(n * ratio)) for ratio in ratios).items()
    }
    assert_fits(dict(Counter(len(sample.plan.dropped) for sample in samples)), dict(expected))


def test_the_layout_is_drawn_in_the_shares_of_the_paper() -> None:
    chosen = Mosaic(k_distribution="fix_max", plain_fraction=0.0, strategies=only("format"))
    styles = [sample.plan.style for sample in over_epochs(TEN, chosen, 600, seed=4)]
    # half with tags; of the others, those without numbers (a tenth) get tags after all
    assert_fits(dict(Counter(bool(style.begin) for style in styles)), {True: 0.55, False: 0.45})
    silent = Counter(not style.format_line for style in styles if not style.begin)
    assert_fits(dict(silent), {True: 0.5, False: 0.5})
    assert_fits(dict(Counter(bool(style.number) for style in styles)), {True: 0.9, False: 0.1})


def test_the_limit_does_not_favour_one_strategy_over_another() -> None:
    # was wrong once: a sample that is too long is planned again, strategy included; so Maskout,
    # which is shorter, is favoured
    rng = random.Random(1)
    rows = []
    for number in range(1500):
        characters = max(40, int(rng.lognormvariate(0.0, 0.7) * 1200))
        question = "".join(rng.choices("abcde ", k=characters // 3)) + str(number)
        rows.append(asked(question, "x" * (characters * 2 // 3), f"r{number}"))
    counts: Counter[str] = Counter()
    for epoch in range(2):
        counts += made(
            over(in_memory(rows), Mosaic(plain_fraction=0.0), max_tokens=2000, seed=3), epoch
        )[1]
    assert counts["shortened"] > 500
    found: dict[object, int] = {name: counts[f"strategy:{name}"] for name in ("permute", "maskout")}
    assert_fits(found, {"permute": 0.5, "maskout": 0.5})


# --- the same again -------------------------------------------------------------------------------


def test_equal_seeds_give_equal_samples_in_whatever_order_chunks_are_built() -> None:
    rows = some_rows(1300, longest=4)
    before = copy.deepcopy(rows)
    chosen = Mosaic(k_distribution="fix_max", max_examples=2)
    whole, _ = made(mosaics_of(rows, chosen, max_tokens=60, seed=9))
    again = mosaics_of(rows, chosen, max_tokens=60, seed=9)
    chunks = again.chunks(0)
    assert len(chunks) >= 3
    backwards = {chunk.number: list(again.samples(chunk, Counts())) for chunk in reversed(chunks)}
    assert [sample for number in sorted(backwards) for sample in backwards[number]] == whole
    fresh = mosaics_of(rows, chosen, max_tokens=60, seed=9)
    assert list(fresh.samples(fresh.chunks(0)[1], Counts())) == backwards[1]
    assert rows == before


def test_chunk_numbers_and_counts_add_up_to_the_epoch() -> None:
    mosaics = over(tiny_examples(4000), Mosaic(), seed=4)
    whole = Counts()
    samples = list(mosaics.epoch_samples(2, whole))
    parts = Counts()
    for chunk in mosaics.chunks(2):
        list(mosaics.samples(chunk, parts))
    assert parts.by_name == whole.by_name
    assert sorted(parts.lengths()) == sorted(whole.lengths())
    assert len({sample.name for sample in samples}) == len(samples)
    assert [chunk.number for chunk in mosaics.chunks(2)] == list(range(len(mosaics.chunks(2))))


def test_another_seed_gives_other_samples() -> None:
    examples = in_memory(some_rows(100))
    first, second = (made(over(examples, Mosaic(), seed=seed))[0] for seed in (1, 2))
    assert [sample.origins for sample in first] != [sample.origins for sample in second]


def test_partners_differ_from_epoch_to_epoch() -> None:
    mosaics = over(
        tiny_examples(600), Mosaic(k_distribution="fix_max", max_examples=5, plain_fraction=0.0)
    )

    def pairs(number: int) -> set[frozenset[str]]:
        samples, _ = made(mosaics, number)
        return {
            frozenset(two)
            for sample in samples
            for two in itertools.combinations(sample.origins, 2)
        }

    first, second = pairs(0), pairs(1)
    assert len(first) == 1200
    assert (
        len(first & second) < 25
    )  # 8 are expected: each pair of 1,200 meets again with probability 4/599


# --- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", ROBUST)
def test_sequences_fall_by_the_mean_of_k(name: Any, plain: float) -> None:
    examples = tiny_examples(20_000)
    mosaics = over(examples, Mosaic(k_distribution=name, plain_fraction=plain), seed=5)
    sequences = sum(len(chunk.draws) for chunk in mosaics.chunks(0))
    pmf = [(int(str(k)), p * (1 - plain)) for k, p in exact_pmf(name, 10).items()] + [(1, plain)]
    mean = sum(k * p for k, p in pmf)
    variance = sum((k - mean) ** 2 * p for k, p in pmf)
    assert sequences == pytest.approx(
        20_000 / mean, abs=3 * math.sqrt(20_000 * variance / mean**3) + 1
    )


def test_a_built_data_set_has_as_many_samples_as_the_mean_of_k_says() -> None:
    pytest.importorskip("datasets")
    built = build(
        some_rows(1500, longest=3),
        Mosaic(plain_fraction=0.1),
        max_tokens=10**6,
        epochs=2,
        batch_size=100,
    )
    assert built.source.sequences == 1500
    assert built.costs.sequences == len(built.dataset) / 2 == built.counts.by_name["samples"] / 2
    mean = 0.1 + 0.9 * 5.5
    sigma = (
        math.sqrt(3000 * (0.1 * (1 - mean) ** 2 + 0.9 * ((5.5 - mean) ** 2 + 8.25)) / mean**3) / 2
    )
    assert built.costs.sequences == pytest.approx(1500 / mean, abs=3 * sigma + 1)
    assert built.costs.steps == math.ceil(len(built.dataset) / 100) / 2
    assert built.costs.real == sum(built.counts.lengths()) / 2
    told = {
        "mosaic_id",
        "example_ids",
        "strategy",
        "rule",
        "order",
        "dropped",
        "style_id",
        "n_tokens",
        "epoch",
    }
    assert set(built.dataset.column_names) == {"prompt", "completion", *told}
    assert Counter(built.dataset["epoch"]).keys() == {0, 1}


TABLE = {
    60: (0.182, 5.50),
    120: (0.182, 5.50),
    190: (0.192, 5.21),
    250: (0.209, 4.78),
    450: (0.286, 3.49),
}
"""Mean tokens of a row -> sequences / N and rows in a sample, as measured on the authors' loop with
3,000 rows."""
SIGMA = 0.7
"""Of the logarithm of the lengths. The table does not say its own; this one drops about as many
rows as it does."""


@cache
def log_normal_rows(mean: int) -> list[CompletionRow]:
    rng = random.Random(mean)
    rows = []
    for number in range(3000):
        words = max(3, round(rng.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)))
        question = max(1, words * 3 // 10)
        rows.append(
            asked(
                f"q{number}" + " a" * (question - 1),
                "b" + " b" * (words - question - 1),
                f"r{number}",
            )
        )
    return rows


def table_row(mean: int) -> tuple[float, float, int]:
    examples = in_memory(log_normal_rows(mean))
    mosaics = over(examples, Mosaic(compat="released", plain_fraction=0.0), max_tokens=2000, seed=1)
    mosaics.count = lambda text: len(text.split())  # type: ignore[attr-defined]
    counts = made(mosaics)[1]
    return counts["samples"] / 3000, counts["examples"] / counts["samples"], counts["overlong:drop"]


@pytest.mark.parametrize("mean", list(TABLE))
def test_the_authors_loop_gives_the_measured_table_of_costs(mean: int) -> None:
    ratio, count, dropped = table_row(mean)
    assert ratio == pytest.approx(TABLE[mean][0], abs=0.015)
    assert count == pytest.approx(TABLE[mean][1], rel=0.05)
    assert (dropped > 5) == (mean == 450)


def test_no_token_is_lost_or_made_up() -> None:
    tokenizer = byte_tokenizer()
    rows = {str(row.origin): row for row in some_rows(150, longest=6)}
    samples, _ = made(
        mosaics_of(rows.values(), Mosaic(strategies=EVERY), tokenizer=tokenizer, max_tokens=900)
    )
    template = len("^^user\n^^assistant\n^")  # a caret for each special token
    for sample in samples:
        plan, style = sample.plan, sample.plan.style
        examples = [texts_of(rows[origin]) for origin in sample.origins]
        own = sum(len(question) for question, _ in examples) + sum(
            len(examples[i - 1][1]) for i in plan.order
        )
        n = len(examples)
        if plan.strategy == "primary":
            around = 2 * (n - 1) * len(style.separator)
        else:
            places = [*range(1, n + 1), *plan.order]
            around = sum(
                len(f"{style.number}{style.gap}") - 3 + len(str(place))
                for place in places
                if style.number
            )
            around += (n - 1) * len(style.separator) + (len(plan.order) - 1) * 2
            around += len(plan.order) * len(style.begin + style.end)
            lines = [(style.format_line, style.format_place), (style.rule_line, style.rule_place)]
            around += sum(len(line) + len(gap) for line, (_, gap) in lines if line)
        assert len(encode_sft(tokenizer, sample.row).input_ids) == template + own + around


def test_costs_are_counted_as_by_hand() -> None:
    found = costs([5, 5, 5, 5, 12], 7, max_tokens=10, batch_size=2)
    assert (found.sequences, found.steps, found.real, found.trained) == (
        5,
        3,
        30,
        7,
    )  # 12 is cut to 10
    assert (found.to_max, found.to_longest, found.packed) == (50, 50, 30)
    halved = costs([5, 5, 5, 5, 12], 7, max_tokens=10, batch_size=2, epochs=2)
    assert halved.__class__(*(2 * getattr(halved, name) for name in halved.__slots__)) == found


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([9, 6, 4, 3, 1, 7], 3),  # 9+1, 7+3, 6+4
        ([6, 6, 6], 3),
        ([10, 10, 1], 3),
        ([5] * 7, 4),
        ([8, 7, 3, 2], 2),  # 2 goes where 8 is, not beside 7
        ([1] * 11, 2),
    ],
)
def test_packing_is_counted_as_best_fit_decreasing(lengths: list[int], bins: int) -> None:
    assert costs(lengths, 0, max_tokens=10, batch_size=1).packed == 10 * bins


def test_padding_to_the_longest_is_counted_in_batches_of_eight() -> None:
    assert costs(range(1, 9), 0, max_tokens=100, batch_size=1).to_longest == 64
    assert costs([3] * 9, 0, max_tokens=100, batch_size=1).to_longest == 27
    nine = costs([1] * 8 + [9], 0, max_tokens=100, batch_size=128)
    assert nine.to_longest in (8 * 9 + 1, 8 + 9)
    assert nine.steps == 1


# --- one row --------------------------------------------------------------------------------------


def test_a_single_row_is_spoken_of_in_the_singular_and_nothing_is_left_dangling() -> None:
    rows = {str(row.origin): row for row in some_rows(300)}
    samples, counts = made(
        over(in_memory(rows.values()), Mosaic(max_examples=1, strategies=EVERY, plain_fraction=0.2))
    )
    assert {sample.plan.strategy for sample in samples} == {"format", "plain"}
    assert violations(counts) == []
    for sample in samples:
        prompt, completion = texts_of(sample.row)
        (question, answer) = texts_of(rows[sample.origins[0]])
        assert prompt == prompt.strip("\n")
        assert completion == completion.strip("\n")
        assert prompt.count(question) >= 1
        assert answer in completion
        if sample.plan.strategy == "plain":
            assert (prompt, completion) == (question, answer)
        elif sample.plan.style.format_line:
            label = "format.tags" if sample.plan.style.begin else "format.list"
            assert {
                (meta.text.label, meta.text.form)
                for meta in PHRASINGS.read(sample.plan.style.format_line)
            } == {(label, "one")}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(HOSTILE, HOSTILE)
def test_a_plain_sample_is_the_row_as_it_came(question: str, answer: str) -> None:
    samples, _ = made(over(in_memory([asked(question, answer, "r")]), Mosaic(plain_fraction=1.0)))
    assert [texts_of(sample.row) for sample in samples] == [(question, answer)]


# --- samples written down -------------------------------------------------------------------------

TOYS = [
    ("Tell me who says moo.", "A cow."),
    ("add 2 and 2 for me", "Four."),
    ("Name a colour.", "Red."),
    ("Bonjour means what exactly, in plain English?", "Hello."),
]


def toy_sample(name: str, seed: int) -> tuple[Plan, str]:
    """The sample of the toys that a planner draws with this seed, for `strategy` or
    `strategy.rule`."""
    strategy, _, rule = name.partition(".")
    chosen = {
        "strategies": only(strategy),
        **({f"{RULE_KEYS[strategy]}_rules": [rule]} if rule else {}),
    }
    examples = [Example(question, answer) for question, answer in TOYS]
    planner = Planner(Mosaic.model_validate(chosen), PHRASINGS, Counter())
    plan = planner.plan(range(len(examples)), examples, random.Random(seed))
    rendered = render(plan, examples)
    return plan, f"{rendered.prompt}\n=>\n{rendered.completion}"


RULE_KEYS = {"permute": "permute", "maskout": "mask"}

GOLDEN = """\
@@ format tags 102
<<1>>
Tell me who says moo.

<<2>>
add 2 and 2 for me

<<3>>
Name a colour.

<<4>>
Bonjour means what exactly, in plain English?

For every answer that you give, _REPLY_ goes in front of it and _/REPLY_ behind it.
=>
<<1>>
_REPLY_A cow._/REPLY_

<<2>>
_REPLY_Four._/REPLY_

<<3>>
_REPLY_Red._/REPLY_

<<4>>
_REPLY_Hello._/REPLY_
@@ format bare 200
[1]
Tell me who says moo.
[2]
add 2 and 2 for me
[3]
Name a colour.
[4]
Bonjour means what exactly, in plain English?
=>
[1]
A cow.

[2]
Four.

[3]
Red.

[4]
Hello.
@@ permute.explicit tags 300
<1> Tell me who says moo.
<2> add 2 and 2 for me
<3> Name a colour.
<4> Bonjour means what exactly, in plain English?
For every answer that you give, <|OPEN|> goes in front of it and <|CLOSE|> behind it.

Please keep to the order <<1 - 3 - 2 - 4>> for your answers, not to the one above or below.
=>
<1> <|OPEN|>A cow.<|CLOSE|>

<3> <|OPEN|>Red.<|CLOSE|>

<2> <|OPEN|>Four.<|CLOSE|>

<4> <|OPEN|>Hello.<|CLOSE|>
@@ permute.explicit bare 400
-1-
Tell me who says moo.

-2-
add 2 and 2 for me

-3-
Name a colour.

-4-
Bonjour means what exactly, in plain English?
Sort your answers so that the numbers of their instructions read (1 3 2 4).
=>
-1-
A cow.

-3-
Red.

-2-
Four.

-4-
Hello.
@@ permute.reverse tags 500
Go backwards: the final instruction is answered first, the first one at the end.
Enclose the answers one by one in the pair of marks |box| and |unbox|.

Tell me who says moo.

add 2 and 2 for me

Name a colour.

Bonjour means what exactly, in plain English?
=>
|box|Hello.|unbox|

|box|Red.|unbox|

|box|Four.|unbox|

|box|A cow.|unbox|
@@ permute.reverse bare 601
Item 1: Tell me who says moo.

Item 2: add 2 and 2 for me

Item 3: Name a colour.

Item 4: Bonjour means what exactly, in plain English?

Your answers should come in the opposite order of the instructions.
=>
Item 4: Hello.

Item 3: Red.

Item 2: Four.

Item 1: A cow.
@@ permute.alphabet_ascending tags 701
Let [TOP] open an answer and [BOTTOM] close it.
-1-
Tell me who says moo.
-2-
add 2 and 2 for me
-3-
Name a colour.
-4-
Bonjour means what exactly, in plain English?

Answer the instructions in alphabetical order of their first letters, A to Z.
=>
-2-
[TOP]Four.[BOTTOM]

-4-
[TOP]Hello.[BOTTOM]

-3-
[TOP]Red.[BOTTOM]

-1-
[TOP]A cow.[BOTTOM]
@@ permute.alphabet_ascending bare 801
Order of answers: alphabetical, by the initial letter of the instruction.

1)
Tell me who says moo.
2)
add 2 and 2 for me
3)
Name a colour.
4)
Bonjour means what exactly, in plain English?
=>
2)
Four.

4)
Hello.

3)
Red.

1)
A cow.
@@ permute.alphabet_descending tags 902
Go by the first letter of each instruction and answer from the end of the alphabet to its front.
#1:
Tell me who says moo.

#2:
add 2 and 2 for me

#3:
Name a colour.

#4:
Bonjour means what exactly, in plain English?

Place **first** right before and **last** right after the answer to an instruction.
=>
#1:
**first**A cow.**last**

#3:
**first**Red.**last**

#4:
**first**Hello.**last**

#2:
**first**Four.**last**
@@ permute.alphabet_descending bare 1001
No. 1:
Tell me who says moo.
No. 2:
add 2 and 2 for me
No. 3:
Name a colour.
No. 4:
Bonjour means what exactly, in plain English?
Take the first letter of every instruction; the alphabet read backwards decides which one is answered next.
=>
No. 1:
A cow.

No. 3:
Red.

No. 4:
Hello.

No. 2:
Four.
@@ permute.words_ascending tags 1100
The fewer words an instruction has, the earlier you answer it.

Place [[open]] right before and [[close]] right after the answer to an instruction.
Part 1: Tell me who says moo.

Part 2: add 2 and 2 for me

Part 3: Name a colour.

Part 4: Bonjour means what exactly, in plain English?
=>
Part 3: [[open]]Red.[[close]]

Part 1: [[open]]A cow.[[close]]

Part 2: [[open]]Four.[[close]]

Part 4: [[open]]Hello.[[close]]
@@ permute.words_ascending bare 1202
[1] Tell me who says moo.

[2] add 2 and 2 for me

[3] Name a colour.

[4] Bonjour means what exactly, in plain English?

Order of answers: increasing number of words in the instruction.
=>
[3] Red.

[1] A cow.

[2] Four.

[4] Hello.
@@ permute.words_descending tags 1301
#1 Tell me who says moo.

#2 add 2 and 2 for me

#3 Name a colour.

#4 Bonjour means what exactly, in plain English?
Enclose the answers one by one in the pair of marks >>left<< and >>right<<.
The more words an instruction has, the earlier you answer it.
=>
#4 >>left<<Hello.>>right<<

#2 >>left<<Four.>>right<<

#1 >>left<<A cow.>>right<<

#3 >>left<<Red.>>right<<
@@ permute.words_descending bare 1400
Go from the instruction with the largest number of words to the one with the smallest.

No. 1:
Tell me who says moo.
No. 2:
add 2 and 2 for me
No. 3:
Name a colour.
No. 4:
Bonjour means what exactly, in plain English?
=>
No. 4:
Hello.

No. 2:
Four.

No. 1:
A cow.

No. 3:
Red.
@@ permute.characters_ascending tags 1500
Answer the instruction with the fewest characters first, then go on to those with more characters.

Enclose the answers one by one in the pair of marks %box% and %unbox%.
Item 1:
Tell me who says moo.

Item 2:
add 2 and 2 for me

Item 3:
Name a colour.

Item 4:
Bonjour means what exactly, in plain English?
=>
Item 3:
%box%Red.%unbox%

Item 2:
%box%Four.%unbox%

Item 1:
%box%A cow.%unbox%

Item 4:
%box%Hello.%unbox%
@@ permute.characters_ascending bare 1600
Go from the instruction with the smallest number of characters to the one with the largest.
<<1>>
Tell me who says moo.

<<2>>
add 2 and 2 for me

<<3>>
Name a colour.

<<4>>
Bonjour means what exactly, in plain English?
=>
<<3>>
Red.

<<2>>
Four.

<<1>>
A cow.

<<4>>
Hello.
@@ permute.characters_descending tags 1704
Put each answer between <-head-> and <-tail->.
-1- Tell me who says moo.

-2- add 2 and 2 for me

-3- Name a colour.

-4- Bonjour means what exactly, in plain English?
The more characters an instruction has, the earlier you answer it.
=>
-4- <-head->Hello.<-tail->

-1- <-head->A cow.<-tail->

-2- <-head->Four.<-tail->

-3- <-head->Red.<-tail->
@@ permute.characters_descending bare 1802
The more characters an instruction has, the earlier you answer it.

|1| Tell me who says moo.
|2| add 2 and 2 for me
|3| Name a colour.
|4| Bonjour means what exactly, in plain English?
=>
|4| Hello.

|1| A cow.

|2| Four.

|3| Red.
@@ permute.odd_first tags 1900
[1]:
Tell me who says moo.
[2]:
add 2 and 2 for me
[3]:
Name a colour.
[4]:
Bonjour means what exactly, in plain English?
Put each answer between <<UNLOCK>> and <<LOCK>>.

Give the answers of odd-numbered instructions ahead of the even-numbered, smaller numbers leading in both.
=>
[1]:
<<UNLOCK>>A cow.<<LOCK>>

[3]:
<<UNLOCK>>Red.<<LOCK>>

[2]:
<<UNLOCK>>Four.<<LOCK>>

[4]:
<<UNLOCK>>Hello.<<LOCK>>
@@ permute.odd_first bare 2002
|1|
Tell me who says moo.

|2|
add 2 and 2 for me

|3|
Name a colour.

|4|
Bonjour means what exactly, in plain English?

Give the answers of odd-numbered instructions ahead of the even-numbered, smaller numbers leading in both.
=>
|1|
A cow.

|3|
Red.

|2|
Four.

|4|
Hello.
@@ permute.even_first tags 2100
[1]: Tell me who says moo.

[2]: add 2 and 2 for me

[3]: Name a colour.

[4]: Bonjour means what exactly, in plain English?
Enclose the answers one by one in the pair of marks [launch] and [land].
Split the instructions into even and odd numbers; answer the even part and after it the odd part, in rising order.
=>
[2]: [launch]Four.[land]

[4]: [launch]Hello.[land]

[1]: [launch]A cow.[land]

[3]: [launch]Red.[land]
@@ permute.even_first bare 2203
Part 1:
Tell me who says moo.
Part 2:
add 2 and 2 for me
Part 3:
Name a colour.
Part 4:
Bonjour means what exactly, in plain English?

First the even ones, then the odd ones, both in rising order: that is the order of your answers.
=>
Part 2:
Four.

Part 4:
Hello.

Part 1:
A cow.

Part 3:
Red.
@@ maskout.explicit tags 2300
There should be no answer for number (2).

[1]
Tell me who says moo.

[2]
add 2 and 2 for me

[3]
Name a colour.

[4]
Bonjour means what exactly, in plain English?
Separate what you answer with marks, ##IN## where an answer opens and ##OUT## where it closes.
=>
[1]
##IN##A cow.##OUT##

[3]
##IN##Red.##OUT##

[4]
##IN##Hello.##OUT##
@@ maskout.explicit bare 2401
1)
Tell me who says moo.
2)
add 2 and 2 for me
3)
Name a colour.
4)
Bonjour means what exactly, in plain English?
Leave out the instruction with the number <1>.
=>
2)
Four.

3)
Red.

4)
Hello.
@@ maskout.longest tags 2501
Count the words: the longest instruction gets no answer.
Let *IN* open an answer and *OUT* close it.
|1|
Tell me who says moo.
|2|
add 2 and 2 for me
|3|
Name a colour.
|4|
Bonjour means what exactly, in plain English?
=>
|1|
*IN*A cow.*OUT*

|2|
*IN*Four.*OUT*

|3|
*IN*Red.*OUT*
@@ maskout.longest bare 2600
Answer everything but the instruction of the most words.

-1- Tell me who says moo.
-2- add 2 and 2 for me
-3- Name a colour.
-4- Bonjour means what exactly, in plain English?
=>
-1- A cow.

-2- Four.

-3- Red.
@@ maskout.shortest tags 2700
No answer is wanted for the instruction that uses the fewest words.

No. 1:
Tell me who says moo.
No. 2:
add 2 and 2 for me
No. 3:
Name a colour.
No. 4:
Bonjour means what exactly, in plain English?
Separate what you answer with marks, ||head|| where an answer opens and ||tail|| where it closes.
=>
No. 1:
||head||A cow.||tail||

No. 2:
||head||Four.||tail||

No. 4:
||head||Hello.||tail||
@@ maskout.shortest bare 2803
[1]
Tell me who says moo.
[2]
add 2 and 2 for me
[3]
Name a colour.
[4]
Bonjour means what exactly, in plain English?

Leave out the instruction that has the fewest words.
=>
[1]
A cow.

[2]
Four.

[4]
Hello.
@@ maskout.odd tags 2901
Odd-numbered instructions are to be ignored; answer only the even-numbered.
Item 1: Tell me who says moo.

Item 2: add 2 and 2 for me

Item 3: Name a colour.

Item 4: Bonjour means what exactly, in plain English?
Mark the answers off from one another: %BOX% at the beginning of each, %UNBOX% at its end.
=>
Item 2: %BOX%Four.%UNBOX%

Item 4: %BOX%Hello.%UNBOX%
@@ maskout.odd bare 3003
Odd-numbered instructions are to be ignored; answer only the even-numbered.

1.
Tell me who says moo.

2.
add 2 and 2 for me

3.
Name a colour.

4.
Bonjour means what exactly, in plain English?
=>
2.
Four.

4.
Hello.
@@ maskout.even tags 3100
Everything even-numbered stays unanswered.

Use **begin** to show where an answer starts, and **end** to show where it is over.
[1]
Tell me who says moo.

[2]
add 2 and 2 for me

[3]
Name a colour.

[4]
Bonjour means what exactly, in plain English?
=>
[1]
**begin**A cow.**end**

[3]
**begin**Red.**end**
@@ maskout.even bare 3203
Only odd-numbered instructions are to be answered.
(1):
Tell me who says moo.

(2):
add 2 and 2 for me

(3):
Name a colour.

(4):
Bonjour means what exactly, in plain English?
=>
(1):
A cow.

(3):
Red.
@@ primary bare 3300
Tell me who says moo.

add 2 and 2 for me

Name a colour.

Bonjour means what exactly, in plain English?
=>
A cow.

Four.

Red.

Hello.
"""
"""Name, seed and text of samples, read through and found right. A change of the planner's draws
changes them all."""


def goldens() -> list[tuple[str, str, int, str]]:
    """(rule, `tags` or `bare`, seed, text) of every sample that is written down."""
    found = []
    for block in GOLDEN.split("@@ ")[1:]:
        head, text = block.split("\n", 1)
        name, marks, seed = head.split()
        found.append((name, marks, int(seed), text.removesuffix("\n")))
    return found


@pytest.mark.parametrize(
    ("name", "marks", "seed", "text"), goldens(), ids=lambda value: str(value)[:24].split("\n")[0]
)
def test_samples_are_written_as_they_were(name: str, marks: str, seed: int, text: str) -> None:
    plan, written = toy_sample(name, seed)
    assert written == text
    assert (plan.style.begin != "") == (marks == "tags")
    reading = check(*text.split("\n=>\n"), TOYS, PHRASINGS)
    assert f"{reading.strategy}.{reading.rule}" == (name if "." in name else f"{name}.None")


def test_a_sample_of_every_rule_is_written_down_with_tags_and_without() -> None:
    rules = {
        *(f"permute.{rule}" for rule in PERMUTE_RULES),
        *(f"maskout.{rule}" for rule in MASK_RULES),
        "format",
    }
    assert {(name, marks) for name, marks, *_ in goldens()} == {
        *itertools.product(rules, ("tags", "bare")),
        ("primary", "bare"),
    }
