"""Labels read back from a file, or asked of a scorer, and what is made of them: preference rows to train on.

A file of labels is JSON lines (or JSON, CSV, Parquet) with an `id` and a `label`: `a`, `b`, `tie` or `skip`, with an optional
`strength` of 1 to 3 beside `a` and `b` (HelpSteer2-Preference, arXiv 2410.01257). A `to_label.jsonl` with its labels filled in is
one. A row without a label is not labelled yet. Everything that is wrong with a file is reported at once, and then nothing of it is
taken; labels that were read before stay.

`labels.jsonl` is the truth, and `labelled.jsonl` is made of it: one row of `prompt`, `chosen`, `rejected` for each `a` or `b`. Ties and
skipped pairs are counted, and are pairs that need not be asked about again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aligner.builders.selection.candidates import LABELS, PICKED
from aligner.config.names import did_you_mean
from aligner.data.files import BLANK, Unreadable, kind_of_file, read_file
from aligner.errors import DataError, Problem, UsageError
from aligner.events import Notice, OnEvent, StageProgress, StageStarted, tell
from aligner.lock import acquire_lock, release_lock
from aligner.methods import Outcome
from aligner.record import dumps, read_json, write_atomically
from aligner.reward_models import Comparer, load_scorer, preferences

LABELLED = "labelled.jsonl"
CHOICES = ("a", "b", "tie", "skip")
STRENGTHS = (1, 2, 3)
ASKED_TOGETHER = 16
"""Pairs that an oracle labels before they are written down."""
LISTED = 20

Label = dict[str, Any]
"""`label`, and `strength` and `by` where they are known."""


def asked_pairs(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the picked pairs of a finished selection by id, in the order of picking.

    They come from `picked.json`, so that nothing that happens to `to_label.jsonl` at an expert's desk can change them.

    Raises: UsageError when there is no finished selection.
    """
    resolved, summary = read_json(run_dir, "resolved.json"), read_json(run_dir, PICKED)
    if resolved is None or resolved["recipe"]["method"] != "select":
        raise UsageError(f"{run_dir} is not the run directory of a selection", "give the output_dir of one")
    if summary is None or not (run_dir / "manifest.json").exists():
        raise UsageError(f"the selection in {run_dir} is not finished", "--resume goes on with it")
    return {pair["id"]: pair for pair in summary["pairs"]}


def known_labels(run_dir: Path) -> dict[str, Label]:
    """Return the labels that were read so far, by id.

    Raises: DataError when the file, in which a user may delete lines, holds something else.
    """
    path = run_dir / LABELS
    found: dict[str, Label] = {}
    for line, row in read_file(path) if path.exists() else ():
        if row is BLANK:
            continue
        if isinstance(row, Unreadable) or not isinstance(row.get("id"), str) or row.get("label") not in CHOICES:
            raise DataError(f"{path}:{line} is not a label", "delete that line; the others can be used")
        found[row["id"]] = {key: value for key, value in row.items() if key != "id"}
    return found


def read_labels(run_dir: Path, file: Path, on_event: OnEvent | None = None) -> Outcome:
    """Take over the labels of a file; `labelled.jsonl` and the report follow.

    Raises: DataError with everything that is wrong in the file, and nothing is taken; UsageError without a finished selection.
    """
    pairs = asked_pairs(run_dir)
    with _held(run_dir):
        labels = known_labels(run_dir)
        read = _labels_in(file, pairs, labels)
        new = {name: label for name, label in read.items() if name not in labels}
        # What was known of the same label is kept, and a strength that comes later is added.
        merged = {**labels, **{name: {**labels.get(name, {}), **label} for name, label in read.items()}}
        _write(run_dir, pairs, merged)
    tell(on_event, Notice(f"{len(new):,} new labels; {len(read) - len(new):,} were known."))
    return _outcome(run_dir)


def ask_oracle(run_dir: Path, spec: str, on_event: OnEvent | None = None) -> Outcome:
    """Let a scorer label every pair that has no label yet, a few at a time; a later call goes on where a kill stopped it.

    The better answer by the scorer's preference is the label; exactly equal answers are a tie.

    Raises: UsageError without a finished selection; RecipeError when there is no such scorer.
    """
    pairs = asked_pairs(run_dir)
    missing = [pair for name, pair in pairs.items() if name not in known_labels(run_dir)]
    if missing:
        tell(on_event, StageStarted(f"loading {spec}"))
        scorer = load_scorer(spec)
    with _held(run_dir):
        labels = known_labels(run_dir)
        for start in range(0, len(missing), ASKED_TOGETHER):
            some = missing[start : start + ASKED_TOGETHER]
            for pair, better in zip(some, _preferred(scorer, some)):
                choice = "tie" if better == 0.5 else ("a" if better > 0.5 else "b")
                labels[pair["id"]] = {"label": choice, "by": scorer.name}
            _write_rows(run_dir, pairs, labels)
            tell(on_event, StageProgress("labelling", start + len(some), len(missing)))
        _write(run_dir, pairs, labels)
    return _outcome(run_dir)


def _preferred(scorer: Any, pairs: Sequence[Mapping[str, Any]]) -> list[float]:
    references = [pair.get("answer") for pair in pairs]
    known = None if isinstance(scorer, Comparer) or not any(one is not None for one in references) else references
    prompts, first, second = ([pair[key] for pair in pairs] for key in ("prompt", "a", "b"))
    return list(preferences(scorer, prompts, first, second, known))


def counts_of(run_dir: Path) -> dict[str, float]:
    """Return how many pairs have which label, and how often the reward models were right where there were some."""
    summary, labels = read_json(run_dir, PICKED), known_labels(run_dir)
    by_choice = {choice: sum(one["label"] == choice for one in labels.values()) for choice in CHOICES}
    counts = {
        "labelled": float(by_choice["a"] + by_choice["b"]),
        "ties": float(by_choice["tie"]),
        "skipped": float(by_choice["skip"]),
        "not labelled yet": float(len(summary["pairs"]) - len(labels)),
    }
    judged = [pair for pair in summary["pairs"] if labels.get(pair["id"], {}).get("label") in ("a", "b")]
    if judged and judged[0]["probability"] is not None:
        right = [_share_right(pair["probability"], labels[pair["id"]]["label"]) for pair in judged]
        counts["ranked rightly by the reward models"] = round(sum(right) / len(right), 4)
    return counts


def _share_right(probability: float, label: str) -> float:
    if probability == 0.5:
        return 0.5
    return float((probability > 0.5) == (label == "a"))


# --- one file ------------------------------------------------------------------------------------------------------


def _labels_in(file: Path, pairs: Mapping[str, Any], known: Mapping[str, Label]) -> dict[str, Label]:
    """Return the labels of a file by id, or raise DataError with everything that is wrong in it."""
    if not file.is_file():
        raise UsageError(f"there is no file {file}", "name the file with the labels")
    if kind_of_file(file) is None:
        raise UsageError(f"{file}: files of this kind cannot be read", "known are .jsonl, .json, .csv and .parquet")
    found: dict[str, Label] = {}
    places: dict[str, str] = {}
    problems: list[Problem] = []
    for line, row in read_file(file):
        where = f"{file}:{line}"
        if row is BLANK:
            continue
        wrong = _wrong_with(row, pairs)
        if wrong is None:
            name, label = row["id"], _label(row)
            earlier = found.get(name) or known.get(name)
            if label is not None and earlier is not None and _differ(label, earlier):
                there = places.get(name, LABELS)
                wrong = Problem(
                    f"{name} is labelled {_shown(label)}, and {_shown(earlier)} in {there}",
                    hint="keep one" if name in places else f"to change a label, delete its line in {LABELS}",
                )
            elif label is not None:
                found[name] = {**(earlier or {}), **label}
                places.setdefault(name, where)
        if wrong is not None:
            problems.append(Problem(wrong.message, where, hint=wrong.hint))
    if problems:
        more = f" (the first {LISTED} are listed)" if len(problems) > LISTED else ""
        raise DataError(
            f"{len(problems):,} labels in {file} cannot be used{more}; none was taken",
            "mend them and read the file again",
            problems[:LISTED],
        )
    return found


def _differ(one: Label, other: Label) -> bool:
    """Whether two labels of a pair contradict each other; a strength only against another."""
    strengths = {label["strength"] for label in (one, other) if "strength" in label}
    return one["label"] != other["label"] or len(strengths) > 1


def _shown(label: Label) -> str:
    return f"`{label['label']}`" + (f" with strength {label['strength']}" if "strength" in label else "")


def _wrong_with(row: Any, pairs: Mapping[str, Any]) -> Problem | None:
    """Return what is wrong with a row, if something is."""
    if isinstance(row, Unreadable):
        return Problem(row.reason)
    name = row.get("id")
    if not isinstance(name, str) or not name:
        return Problem("there is no `id`" if name is None else f"`id` is {name!r}, not a text")
    if name not in pairs:
        return Problem(f"no pair with the id {name!r} was picked", hint=did_you_mean(name, pairs))
    for key in ("a", "b"):
        if (
            row.get(key) is not None and str(row[key]).split() != pairs[name][key].split()
        ):  # spreadsheets mend line ends
            return Problem(f"`{key}` is not the answer that was asked about", hint="were `a` and `b` exchanged?")
    label, strength = row.get("label"), row.get("strength")
    if label not in (None, "", *CHOICES):
        return Problem(f"the label is {label!r}", hint=f"a label is one of {', '.join(CHOICES)}, or null")
    if strength in (None, ""):
        return None
    if label not in ("a", "b"):
        return Problem(f"there is a strength of {strength!r} and no preference", hint="drop the strength")
    if _strength(strength) is None:
        return Problem(f"the strength is {strength!r}", hint="a strength is 1, 2 or 3")
    return None


def _strength(value: Any) -> int | None:
    """A strength, also as CSV writes it."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    return int(value) if not isinstance(value, bool | str) and value in STRENGTHS else None


def _label(row: Mapping[str, Any]) -> Label | None:
    if row.get("label") in (None, ""):
        return None
    strength = _strength(row.get("strength"))
    return {"label": row["label"]} if strength is None else {"label": row["label"], "strength": strength}


# --- writing -------------------------------------------------------------------------------------------------------


@contextmanager
def _held(run_dir: Path) -> Iterator[None]:
    """Be the only one that writes labels."""
    acquire_lock(run_dir)
    try:
        yield
    finally:
        release_lock(run_dir)


def _write(run_dir: Path, pairs: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Label]) -> None:
    """Write the labels, and the report anew."""
    from aligner.builders.selection.report import write_select_report

    _write_rows(run_dir, pairs, labels)
    write_select_report(run_dir)


def _write_rows(run_dir: Path, pairs: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Label]) -> None:
    """Write the labels, then what is made of them."""
    lines = [{"id": name, **labels[name]} for name in pairs if name in labels]
    write_atomically(run_dir / LABELS, "".join(dumps(line) + "\n" for line in lines))
    rows = [_preference(pairs[name], labels[name]) for name in pairs if labels.get(name, {}).get("label") in ("a", "b")]
    write_atomically(run_dir / LABELLED, "".join(dumps(row) + "\n" for row in rows))


def _preference(pair: Mapping[str, Any], label: Label) -> dict[str, Any]:
    chosen, rejected = (pair["a"], pair["b"]) if label["label"] == "a" else (pair["b"], pair["a"])
    strength = {"strength": label["strength"]} if "strength" in label else {}
    return {"prompt": pair["prompt"], "chosen": chosen, "rejected": rejected, **strength, "id": pair["id"]}


def _outcome(run_dir: Path) -> Outcome:
    return Outcome(run_dir, counts_of(run_dir), run_dir / "report.html")
