"""Training rows that overlap with a test set: each layer finds what was planted for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_jsonl

from aligner.arena.testset.embedding import embedding_of
from aligner.arena.testset.frozen import ITEMS, TestSet, freeze, read_testset
from aligner.arena.testset.layers import Nearest
from aligner.arena.testset.reports import report_path, require_report, write_report
from aligner.arena.testset.training_rows import TrainingRows, digest_of
from aligner.arena.testset.verify import Checks, look, report_of, write_without
from aligner.config.recipe import Source
from aligner.errors import DataError
from aligner.runs.files import file_sha256

LONG = (
    "A farmer in the north of Portugal keeps forty sheep and twelve goats on two dry meadows. "
    "Every spring he buys a tenth more sheep and sells a third of his goats. "
    "Write a table of his animals for the next five years and say when the sheep need more land."
)
SHORT = "List every prime number below fifty in one line"
TINY = "Who wrote Emma?"
ANSWER = "the land is too small from the fourth year on since then more than fifty sheep graze it"
SECOND = "Now write the same table again for a farmer who buys a fifth more sheep every spring"

ITEMS_HERE: list[dict[str, Any]] = [
    {"prompt_id": "long", "prompt": LONG, "answer": ANSWER, "split": "test"},
    {"prompt_id": "short", "prompt": SHORT, "split": "dev"},
    {"prompt_id": "tiny", "prompt": TINY, "split": "test"},
    {
        "prompt_id": "turns",
        "prompt": [
            {"role": "user", "content": "Help me to count animals on a farm, will you?"},
            {"role": "assistant", "content": "Gladly."},
            {"role": "user", "content": SECOND},
        ],
        "split": "test",
    },
]

CLEAN = [
    {"prompt": f"Explain topic {number} of chemistry", "completion": f"Topic {number} is ..."}
    for number in range(8)
]


@pytest.fixture
def tests(tmp_path: Path) -> TestSet:
    """A test set on disk, as `build` writes it."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = freeze(folder, ITEMS_HERE, {}, {})
    (folder / ITEMS).write_text("".join(lines))
    return read_testset(folder)


def verified(
    tests: TestSet, path: Path, rows: list[dict[str, Any]], checks: Checks | None = None
) -> tuple[dict[str, Any], dict[int, Any], TrainingRows, list[str]]:
    """The report on rows, what was found in each, and what they were read from."""
    write_jsonl(path, rows)
    data, how = TrainingRows([Source(path=str(path))]), embedding_of("tfidf")
    checks = checks or Checks()
    found, origins = look(tests, data, checks, how)
    return report_of(tests, data, checks, how, found, origins), found, data, origins


def reworded() -> str:
    """Every twelfth word is another, so that no thirteen in a row are left."""
    words = LONG.split()
    return " ".join("so" if place % 12 == 5 else word for place, word in enumerate(words))


@pytest.mark.parametrize(
    ("row", "layers"),
    [
        ({"prompt": LONG.upper(), "completion": "x"}, {"exact", "ngram", "near"}),
        ({"prompt": f"I wonder: {LONG[:120]}", "completion": "x"}, {"ngram"}),
        ({"prompt": "Recite something", "completion": f"Sure! {LONG}"}, {"ngram"}),
        ({"prompt": "How big?", "completion": f"It seems {ANSWER}."}, {"ngram"}),
        ({"prompt": SHORT + "!", "completion": "2, 3"}, {"exact", "short", "near"}),
        ({"prompt": f"Please, my dear friend: {SHORT}", "completion": "2, 3"}, {"short"}),
        ({"prompt": "A riddle", "completion": f"It says: {SHORT}"}, {"short"}),
        ({"prompt": "who wrote emma", "completion": "Jane Austen"}, {"exact", "short", "near"}),
        ({"prompt": "Say who wrote Emma?", "completion": "Jane Austen"}, set()),
        ({"prompt": SECOND, "completion": "x"}, {"exact", "ngram", "near"}),
        ({"messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": TINY},
            {"role": "assistant", "content": "Jane Austen"},
        ]}, {"exact", "short", "near"}),
        ({"prompt": "Hm", "chosen": "x", "rejected": f"Or {LONG}"}, {"ngram"}),
        ({"text": f"A book. {LONG}"}, {"ngram", "near"}),
    ],
)  # fmt: skip
def test_a_planted_row_is_found_by_its_layers(
    tests: TestSet, tmp_path: Path, row: dict[str, Any], layers: set[str]
) -> None:
    report, found, *_ = verified(tests, tmp_path / "data.jsonl", [row])
    assert set(found.get(0, {})) == layers
    assert report["passes"] == (not layers)
    assert {name for name, of in report["layers"].items() if of["rows"]} == layers


def test_a_reworded_row_is_found_by_similarity_alone(tests: TestSet, tmp_path: Path) -> None:
    checks = Checks(near_duplicates=0.5)
    row = {"prompt": reworded(), "completion": "x"}
    report, found, *_ = verified(tests, tmp_path / "data.jsonl", [*CLEAN, row], checks)
    assert {number: set(hits) for number, hits in found.items()} == {8: {"near"}}
    assert report["layers"]["near"]["alone"] == 1
    assert verified(tests, tmp_path / "data.jsonl", [row])[0]["passes"]


def test_the_nearest_rows_are_dropped_however_near(tests: TestSet, tmp_path: Path) -> None:
    """The paper's rule: of every item so many rows, and each row counts once."""
    far = {"prompt": "which sheep and goats and animals need land?", "completion": "x"}
    checks = Checks(nearest=1)
    report, found, *_ = verified(tests, tmp_path / "data.jsonl", [*CLEAN, far], checks)
    assert "nearest" in found[8]
    assert report["layers"]["nearest"]["rows"] == len(found) <= 4
    assert report["settings"]["embedding"] == "tfidf"


def test_a_cosine_finds_the_same_words_in_another_order(tests: TestSet, tmp_path: Path) -> None:
    rows = [*CLEAN, {"prompt": " ".join(reversed(LONG.split())), "completion": "x"}]
    _, found, *_ = verified(tests, tmp_path / "data.jsonl", rows, Checks(cosine=0.9))
    assert {number: set(hits) for number, hits in found.items()} == {8: {"cosine"}}


def test_nearest_rows_are_those_of_a_comparison_of_all() -> None:
    rng = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        rows = rng.normal(size=(count, 6))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    items, rows = unit(4), unit(50)
    near = Nearest(["a", "b", "c", "d"], items, keep=3, threshold=0.7)
    for start in range(0, 50, 8):
        part = near.look(range(start, min(start + 8, 50)), rows[start : start + 8])
        near.take(json.loads(json.dumps(part)))
    similarity = items @ rows.T
    expected = {row for of in similarity for row in np.argsort(-of)[:3].tolist()}
    found = near.hits()
    assert {row for row, hits in found.items() if "nearest" in hits} == expected
    close = set(np.flatnonzero(similarity.max(axis=0) >= 0.7).tolist())
    assert {row for row, hits in found.items() if "cosine" in hits} == close
    assert close
    for row in close:
        assert found[row]["cosine"].item == "abcd"[int(similarity[:, row].argmax())]


def test_a_report_counts_and_shows_what_each_layer_found(tests: TestSet, tmp_path: Path) -> None:
    planted = [{"prompt": LONG, "completion": "x"}, {"prompt": "x", "completion": SHORT}]
    report, *_ = verified(tests, tmp_path / "data.jsonl", [*CLEAN, *planted])
    assert (report["rows"], report["overlapping"], report["items_found"]) == (10, 2, 2)
    counts = {name: (of["rows"], of["alone"]) for name, of in report["layers"].items()}
    assert counts == {"exact": (1, 0), "ngram": (1, 0), "short": (1, 1), "near": (1, 0)}
    (example,) = report["layers"]["short"]["examples"]
    assert example["row"].endswith("data.jsonl:10")
    assert (example["item"], example["what"]) == ("short", SHORT.lower())
    assert report["data_sha256"] == file_sha256(tmp_path / "data.jsonl")


def test_rows_that_do_not_overlap_are_written_as_they_were(tests: TestSet, tmp_path: Path) -> None:
    rows = [*CLEAN, {"prompt": LONG, "completion": "x", "source": "web"}, {**CLEAN[0], "id": 7}]
    report, found, data, origins = verified(tests, tmp_path / "data.jsonl", rows)
    clean = tmp_path / "clean.jsonl"
    cleaned = write_without(data, found, origins, clean, report)
    kept = [json.loads(line) for line in clean.read_text().splitlines()]
    assert kept == [*CLEAN, {**CLEAN[0], "id": 7}]
    assert (cleaned["passes"], cleaned["rows"], cleaned["cleaned"]["dropped"]) == (True, 9, 1)
    write_report(tests, cleaned)
    digest = file_sha256(clean)
    assert require_report(tests.folder, tests.sha256, digest)["cleaned"]["from"]
    assert verified(tests, clean, kept)[0]["passes"]


def test_a_training_is_refused_data_without_a_passing_report(
    tests: TestSet, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    report, *_ = verified(tests, path, [{"prompt": LONG, "completion": "x"}])
    digest = digest_of([file_sha256(path)])
    with pytest.raises(DataError, match="nothing says"):
        require_report(tests.folder, tests.sha256, digest)
    write_report(tests, report)
    with pytest.raises(DataError, match="1 row of the data overlaps"):
        require_report(tests.folder, tests.sha256, digest)
    passing, *_ = verified(tests, path, CLEAN)
    write_report(tests, passing)
    digest = file_sha256(path)
    assert require_report(tests.folder, tests.sha256, digest)["passes"]
    with pytest.raises(DataError, match="another test set"):
        require_report(tests.folder, "0" * 64, digest)
    report_path(tests.folder, digest).write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        require_report(tests.folder, tests.sha256, digest)


def test_several_files_have_one_digest_in_any_order() -> None:
    assert digest_of(["a"]) == "a"
    assert digest_of(["a", "b"]) == digest_of(["b", "a"]) != digest_of(["a", "c"])


def test_a_file_that_changes_meanwhile_is_refused(tests: TestSet, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    report, found, data, origins = verified(tests, path, CLEAN)
    write_jsonl(path, CLEAN[1:])
    with pytest.raises(DataError, match="was changed"):
        write_without(data, found, origins, tmp_path / "clean.jsonl", report)
    assert not (tmp_path / "clean.jsonl").exists()
