"""Labels from a file or from a scorer, turned into preference rows to train on.

A file of labels is JSON lines (or JSON, CSV, Parquet) with an `id` and a `label`: `a`, `b`, `tie`
or `skip`, with an optional `strength` of 1 to 3 beside `a` and `b` (HelpSteer2-Preference, arXiv
2410.01257). A `to_label.jsonl` with its labels filled in is one. A row without a label is not
labelled yet. Everything that is wrong with a file is reported at once, and then nothing of it is
taken; labels that were read before stay.

`labels.jsonl` is the truth, and `labelled.jsonl` is made of it: one row of `prompt`, `chosen`,
`rejected` for each `a` or `b`. Ties and skipped pairs are counted, and are pairs that need not be
asked about again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aligner.builders.select.label_store import (
    CHOICES,
    LABELS,
    Label,
    asked_pairs,
    counts_of,
    known_labels,
)
from aligner.config.hints import did_you_mean
from aligner.data.files import BLANK, Unreadable, kind_of_file, read_file
from aligner.errors import DataError, Problem, UsageError
from aligner.events import Notice, OnEvent, StageProgress, StageStarted, tell
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import Pairs, ask_parts, chunks, refuse_silent
from aligner.reward_models.catalogue import load_scorer, read_spec
from aligner.reward_models.ensemble import refuse_cycles, restore_budget, scored_together
from aligner.reward_models.isolation import announce_walls
from aligner.runs.files import dumps, read_json, write_atomically
from aligner.runs.lock import acquire_lock, release_lock
from aligner.runs.result import RunResult

LABELLED = "labelled.jsonl"
STRENGTHS = (1, 2, 3)
ASKED_TOGETHER = 16
"""Pairs that an oracle labels in one call."""
WRITES = 50
"""How often, at most, all labels are written down while an oracle is asked."""
LISTED = 20
PAIR = "pair "
"""Before the id of a pair, in errors."""


def read_labels(run_dir: Path, file: Path, on_event: OnEvent | None = None) -> RunResult:
    """Take over the labels of a file; `labelled.jsonl` and the report follow.

    Raises: DataError with everything that is wrong in the file, and nothing is taken; UsageError
    without a finished selection.
    """
    pairs = asked_pairs(run_dir)
    with _held(run_dir):
        labels = known_labels(run_dir)
        read = _labels_in(file, pairs, labels)
        new = {name: label for name, label in read.items() if name not in labels}
        # What was known of the same label is kept, and a strength that comes later is added.
        merged = {
            **labels,
            **{name: {**labels.get(name, {}), **label} for name, label in read.items()},
        }
        _write(run_dir, pairs, merged)
    tell(on_event, Notice(f"{len(new):,} new labels; {len(read) - len(new):,} were known"))
    return _outcome(run_dir)


def ask_oracle(run_dir: Path, spec: str, on_event: OnEvent | None = None) -> RunResult:
    """Let a scorer label every pair that has no label yet, a few at a time; a later call
    resumes where a kill stopped it.

    The better response by the scorer's preference is the label; exactly equal responses are a tie.
    An ensemble whose scores depend on the rows of a call gets all picked pairs in one, so that the
    labels do not depend on which of them were known; where a pair has no verdict, the others are
    brought to one scale without it.

    Raises: UsageError without a finished selection; RecipeError when there is no such scorer;
    DataError that lists the pairs without a verdict, after all others are labelled.
    """
    pairs = asked_pairs(run_dir)
    card = read_spec(spec)
    refuse_cycles(card)
    if not _without_label(pairs, known_labels(run_dir)):
        with _held(run_dir):  # again: a kill may have prevented what follows from them
            _write(run_dir, pairs, known_labels(run_dir))
        return _outcome(run_dir)
    tell(on_event, StageStarted(f"loading {spec}"))
    scorer = load_scorer(spec)
    environment = read_json(run_dir, "environment.json")
    restore_budget(scorer, run_dir / LABELS, environment["sessions"][0]["started"])
    isolation = announce_walls([card], on_event)
    with _held(run_dir):
        if isolation:
            text = dumps({**environment, "isolation": isolation}, indent=2) + "\n"
            write_atomically(run_dir / "environment.json", text)
        # Anew: an expert may have labelled pairs while the scorer was loaded.
        missing = _without_label(pairs, known_labels(run_dir))
        together = scored_together(card)
        rows = _pairs(list(pairs.values()) if together else missing)
        silent = _ask_for(rows, len(missing), run_dir, pairs, scorer, together, on_event)
        _write(run_dir, pairs, known_labels(run_dir))
    refuse_silent(
        scorer.name,
        rows,
        silent,
        len(missing),
        "the others are labelled",
        "the same command asks for these again; or label them yourself, with `skip` for instance, "
        "and read them with --labels",
    )
    return _outcome(run_dir)


def _ask_for(
    rows: Pairs,
    missing: int,
    run_dir: Path,
    pairs: Mapping[str, Mapping[str, Any]],
    scorer: Scorer,
    together: bool,
    on_event: OnEvent | None,
) -> dict[int, str]:
    """Write down the scorer's labels as they come; return the rows without a verdict, and why."""
    said: dict[str, Label] = {}
    silent: dict[int, str] = {}

    def write() -> None:
        known = known_labels(run_dir)  # what was written in by hand meanwhile stays
        _write_rows(run_dir, pairs, {**said, **known})

    done = 0
    parts = chunks(len(rows.prompts), None if together else ASKED_TOGETHER)
    between = -(-len(parts) // WRITES)
    try:
        asked = ask_parts(lambda: scorer, rows, parts, together=together)
        for number, (verdicts, _) in enumerate(asked, start=1):
            for row, verdict in verdicts.items():
                if verdict.value is None:
                    silent[row] = verdict.error
                else:
                    label = "tie" if verdict.value == 0.5 else "a" if verdict.value > 0.5 else "b"
                    said[_id(rows, row)] = {"label": label, "by": scorer.name}
            if number % between == 0:
                write()
            done = min(done + len(verdicts), missing)
            tell(on_event, StageProgress("labelling", done, missing))
    finally:
        write()
    known = known_labels(run_dir)
    return {row: reason for row, reason in silent.items() if _id(rows, row) not in known}


def _id(rows: Pairs, row: int) -> str:
    return rows.origins[row].removeprefix(PAIR)


def _without_label(pairs: Mapping[str, Any], labels: Mapping[str, Label]) -> list[Any]:
    return [pair for name, pair in pairs.items() if name not in labels]


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Pairs:
    return Pairs(
        [pair["prompt"] for pair in pairs],
        [pair["a"] for pair in pairs],
        [pair["b"] for pair in pairs],
        [pair.get("answer") for pair in pairs],
        [f"{PAIR}{pair['id']}" for pair in pairs],
    )


# --- one file -------------------------------------------------------------------------------------


def _labels_in(
    file: Path, pairs: Mapping[str, Any], known: Mapping[str, Label]
) -> dict[str, Label]:
    """Return the labels of a file by id, or raise DataError with everything that is wrong in it."""
    if not file.is_file():
        raise UsageError(f"there is no file {file}", "name the file with the labels")
    if kind_of_file(file) is None:
        raise UsageError(
            f"{file}: files of this kind cannot be read",
            "known are .jsonl, .json, .csv and .parquet",
        )
    labels: dict[str, Label] = {}
    lines: dict[str, str] = {}
    problems: list[Problem] = []
    for line, row in read_file(file):
        where = f"{file}:{line}"
        if row is BLANK:
            continue
        wrong = _wrong_with(row, pairs, hints=len(problems) < LISTED)
        if wrong is None:
            name, label = row["id"], _label(row)
            earlier = labels.get(name) or known.get(name)
            if label is not None and earlier is not None and _differ(label, earlier):
                there = lines.get(name, LABELS)
                wrong = Problem(
                    f"{name} is labelled {_shown(label)}, and {_shown(earlier)} in {there}",
                    hint="keep one"
                    if name in lines
                    else f"to change a label, delete its line in {LABELS}",
                )
            elif label is not None:
                labels[name] = {**(earlier or {}), **label}
                lines.setdefault(name, where)
        if wrong is not None:
            problems.append(Problem(wrong.message, where, hint=wrong.hint))
    if problems:
        more = f" (the first {LISTED} are listed)" if len(problems) > LISTED else ""
        raise DataError(
            f"{len(problems):,} labels in {file} cannot be used{more}; none was taken",
            "fix them and read the file again",
            problems[:LISTED],
        )
    return labels


def _differ(label: Label, other: Label) -> bool:
    """Whether two labels of a pair contradict each other; a strength only against another."""
    strengths = {item["strength"] for item in (label, other) if "strength" in item}
    return label["label"] != other["label"] or len(strengths) > 1


def _shown(label: Label) -> str:
    return f"`{label['label']}`" + (
        f" with strength {label['strength']}" if "strength" in label else ""
    )


def _wrong_with(row: Any, pairs: Mapping[str, Any], *, hints: bool) -> Problem | None:
    """Return what is wrong with a row, if something is."""
    if isinstance(row, Unreadable):
        return Problem(row.reason)
    name = row.get("id")
    if not isinstance(name, str) or not name:
        return Problem("there is no `id`" if name is None else f"`id` is {name!r}, not a text")
    if name not in pairs:
        return Problem(
            f"no pair with the id {name!r} was picked",
            hint=did_you_mean(name, pairs) if hints else "",
        )
    for key, other in (("a", "b"), ("b", "a")):
        if row.get(key) is not None and not _is_the_response(
            str(row[key]), pairs[name][key], pairs[name][other]
        ):
            return Problem(
                f"`{key}` is not the response that was asked about",
                hint="were `a` and `b` exchanged?",
            )
    label, strength = _choice(row.get("label")), row.get("strength")
    if label not in (None, "", *CHOICES):
        return Problem(
            f"the label is {row['label']!r}",
            hint=f"a label is one of {', '.join(CHOICES)}, or null",
        )
    if strength in (None, ""):
        return None
    if label not in ("a", "b"):
        return Problem(
            f"there is a strength of {strength!r} and no preference", hint="drop the strength"
        )
    if _strength(strength) is None:
        return Problem(f"the strength is {strength!r}", hint="a strength is 1, 2 or 3")
    return None


def _is_the_response(given: str, completion: str, other: str) -> bool:
    """Whether a file's text is this response, up to the line ends and blanks that spreadsheets
    change, and not the other one."""
    if _mended(given) == _mended(completion):
        return True
    return _mended(given) != _mended(other) and given.split() == completion.split()


def _mended(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _choice(value: Any) -> Any:
    """A label as a spreadsheet writes it, in whichever case."""
    return value.strip().lower() if isinstance(value, str) else value


def _strength(value: Any) -> int | None:
    """A strength, also as CSV writes it: `2`, and `2.0` where the column has gaps."""
    if isinstance(value, str):
        whole = re.fullmatch(r"\s*0*([0-9])(\.0*)?\s*", value)
        value = int(whole[1]) if whole else None
    return int(value) if not isinstance(value, bool) and value in STRENGTHS else None


def _label(row: Mapping[str, Any]) -> Label | None:
    label = _choice(row.get("label"))
    if label in (None, ""):
        return None
    strength = _strength(row.get("strength"))
    return {"label": label} if strength is None else {"label": label, "strength": strength}


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def _held(run_dir: Path) -> Iterator[None]:
    """Be the only one that writes labels."""
    acquire_lock(run_dir)
    try:
        yield
    finally:
        release_lock(run_dir)


def _write(
    run_dir: Path, pairs: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Label]
) -> None:
    """Write the labels, and the report again."""
    from aligner.builders.select.report import write_select_report

    _write_rows(run_dir, pairs, labels)
    write_select_report(run_dir)


def _write_rows(
    run_dir: Path, pairs: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Label]
) -> None:
    """Write the labels, then what is made of them."""
    lines = [{"id": name, **labels[name]} for name in pairs if name in labels]
    write_atomically(run_dir / LABELS, "".join(dumps(line) + "\n" for line in lines))
    rows = [
        _preference(pairs[name], labels[name])
        for name in pairs
        if labels.get(name, {}).get("label") in ("a", "b")
    ]
    write_atomically(run_dir / LABELLED, "".join(dumps(row) + "\n" for row in rows))


def _preference(pair: Mapping[str, Any], label: Label) -> dict[str, Any]:
    chosen, rejected = (pair["a"], pair["b"]) if label["label"] == "a" else (pair["b"], pair["a"])
    strength = {"strength": label["strength"]} if "strength" in label else {}
    return {
        "prompt": pair["prompt"],
        "chosen": chosen,
        "rejected": rejected,
        **strength,
        "id": pair["id"],
    }


def _outcome(run_dir: Path) -> RunResult:
    return RunResult(run_dir, counts_of(run_dir), run_dir / "report.html")
