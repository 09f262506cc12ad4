"""Exact and near duplicates among prompts."""

from __future__ import annotations

import itertools
import random

import pytest

from aligner.data.duplicates import SeenTexts, bands_for, grams_of, jaccard

NINE = "one two three four five six seven eight nine"


def test_letter_case_and_punctuation_do_not_make_another_text() -> None:
    seen = SeenTexts(None)
    seen.add("What is the capital of France?", "first")
    match = seen.match("what is the capital of  FRANCE")
    assert match is not None
    assert (match.name, match.exact) == ("first", True)
    assert seen.match("What is the capital of Spain?") is None


def test_a_sign_makes_another_question() -> None:
    seen = SeenTexts(None)
    seen.add("What is 2+3?", "first")
    assert seen.match("What is 2-3?") is None


def test_texts_without_a_word_are_told_apart() -> None:
    seen = SeenTexts(0.8)
    seen.add("???", "first")
    assert seen.match("!!!") is None
    assert seen.match(" ??? ") is not None


def test_similarity_is_that_of_word_3_grams() -> None:
    """Nine words have seven 3-grams; another last word leaves six of the eight in all."""
    assert jaccard(grams_of(NINE), grams_of(NINE.replace("nine", "ten"))) == 6 / 8
    assert grams_of("two words") == {"two", "words", "two words"}


def test_what_is_as_similar_as_the_threshold_is_a_near_duplicate() -> None:
    other = NINE.replace("nine", "ten")
    for threshold, is_found in [(0.75, True), (0.76, False)]:
        seen = SeenTexts(threshold)
        seen.add(NINE, "first")
        match = seen.match(other)
        assert (match is not None) == is_found
        if match is not None:
            assert (match.name, match.exact, match.similarity) == ("first", False, 0.75)


def test_an_estimate_alone_drops_nobody() -> None:
    """Texts whose similarity is just below the threshold are proposed, compared, and left."""
    words = [f"w{number}" for number in range(42)]
    other = [*words[:38], *(f"x{number}" for number in range(4))]
    similarity = jaccard(grams_of(" ".join(words)), grams_of(" ".join(other)))
    seen = SeenTexts(similarity + 1e-9)
    seen.add(" ".join(words), "first")
    assert seen.match(" ".join(other)) is None
    assert seen.counts == {"compared": 1}


def mutated(words: list[str], share: float, draw: random.Random) -> list[str]:
    return [f"n{draw.randrange(10**9)}" if draw.random() < share else word for word in words]


def test_hashes_overlook_hardly_any_pair() -> None:
    """Against all pairs, compared one by one."""
    draw = random.Random(5)
    texts = []
    for _ in range(60):
        words = [f"v{draw.randrange(2000)}" for _ in range(40)]
        texts += [" ".join(words), " ".join(mutated(words, 0.03, draw))]
    seen, kept, dropped = SeenTexts(0.6, exact=False), [], set()
    for number, text in enumerate(texts):
        if seen.match(text) is None:
            seen.add(text, str(number))
        else:
            dropped.add(number)
        if all(jaccard(grams_of(text), grams_of(texts[other])) < 0.6 for other in kept):
            kept.append(number)
    assert dropped == set(range(len(texts))) - set(kept)
    assert 10 < len(dropped) < 60
    assert seen.counts["confirmed"] == len(dropped)


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
def test_bands_are_as_many_as_the_threshold_asks_for(threshold: float) -> None:
    bands = bands_for(threshold)
    rows = 128 // bands
    assert (1 - threshold**rows) ** bands <= 1e-3
    assert (1 - threshold ** (2 * rows)) ** (bands / 2) > 1e-3 or rows == 64


def test_the_earliest_of_several_is_named() -> None:
    seen = SeenTexts(0.4)
    variants = [NINE.replace(word, "x") for word in ("one", "nine")]
    for number, text in enumerate([*variants, NINE]):
        if number < 2:
            seen.add(text, str(number))
    match = seen.match(NINE)
    assert match is not None
    assert match.name == "0"


def test_the_same_texts_give_the_same_matches_in_any_process() -> None:
    texts = [" ".join(words) for words in itertools.permutations(["a", "b", "c", "d", "e"])]
    found = []
    for _ in range(2):
        seen = SeenTexts(0.5)
        names = []
        for number, text in enumerate(texts):
            match = seen.match(text)
            names.append(None if match is None else match.name)
            if match is None:
                seen.add(text, str(number))
        found.append((names, dict(seen.counts)))
    assert found[0] == found[1]
