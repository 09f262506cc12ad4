"""Read prompts with their responses, and pairs that are labelled already, from files. Broken rows
are reported together.

A row of candidates is one of

    {"prompt": ..., "responses": ["...", "..."]}                  responses as texts; `answer`, if
                                                                  there is one, is a right one
    {"prompt": ..., "completions": [{"text": "..."}, ...]}        as `aligner generate
                                                                  --num-samples` writes them
    {"prompt": ..., "chosen": ..., "rejected": ...}               preference pairs, whose labels are
                                                                  not looked at

and rows with the same prompt are joined. Labelled pairs are preference rows, or rows with `prompt`,
`a` and `b` (a `to_label.jsonl`), or the run directory of an earlier selection, of which the pairs
count that have a label, ties and skipped ones included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.acquisition.selection import Triple, prompt_key
from aligner.builders.select.label_store import LABELS, PICKED, asked_pairs, known_labels
from aligner.config.recipe import Source
from aligner.data.checks import BadRow, kind, text
from aligner.data.files import BLANK, Unreadable, file_record
from aligner.data.ledger import LISTED, FileRecord
from aligner.data.mapping import map_row
from aligner.data.messages import messages, question
from aligner.data.rows import Messages, PreferenceRow, PromptRow
from aligner.data.sources import open_source
from aligner.errors import DataError, Problem
from aligner.reward_models.base import Prompt


@dataclass
class Candidate:
    """A prompt and the responses to it."""

    prompt: Prompt
    responses: list[str] = field(default_factory=list)
    origin: str = ""
    answer: str | None = None
    """A right answer, where one is known: for oracles that compare with it."""
    unfinished: int = 0
    """Responses that were cut off at the longest length and left out."""

    def as_row(self) -> dict[str, Any]:
        """The row that `select.candidates` reads."""
        known = {} if self.answer is None else {"answer": self.answer}
        return {"prompt": self.prompt, "responses": self.responses, **known}


@dataclass
class Read:
    """Candidates, the files they were read from, and what was joined or left out."""

    candidates: list[Candidate]
    files: list[FileRecord]
    counts: Counter[str] = field(default_factory=Counter)


def of_prompts(rows: Sequence[PromptRow]) -> tuple[list[Candidate], int]:
    """Return a candidate without responses for each prompt, and how many prompts had come
    before."""
    by_prompt: dict[str, Candidate] = {}
    for row in rows:
        by_prompt.setdefault(
            prompt_key(row.prompt), Candidate(row.prompt, origin=row.origin, answer=row.answer)
        )
    return list(by_prompt.values()), len(rows) - len(by_prompt)


def read_candidates(path: str, *, keep_unfinished: bool = False) -> Read:
    """Read the file, folder, glob or hub id of `select.candidates`.

    Raises: DataError with every broken row.
    """
    by_prompt: dict[str, Candidate] = {}
    read = Read([], [])
    problems: list[Problem] = []
    for origin, raw in _rows(path, read.files, problems):
        try:
            candidate = _candidate(raw, origin, keep_unfinished)
        except BadRow as bad:
            problems.append(Problem(str(bad), where=origin))
            continue
        read.counts["rows"] += 1
        before = by_prompt.setdefault(prompt_key(candidate.prompt), candidate)
        if before is not candidate:
            read.counts["rows joined to one with the same prompt"] += 1
            before.responses += candidate.responses
            before.unfinished += candidate.unfinished
            before.answer = before.answer if before.answer is not None else candidate.answer
    _refuse(
        path,
        problems,
        bool(by_prompt),
        "a prompt with `responses`, `completions`, or `chosen` and `rejected`",
    )
    read.candidates = list(by_prompt.values())
    return read


def read_labelled(paths: Sequence[str]) -> tuple[list[Triple], list[FileRecord]]:
    """Read the pairs of `select.labelled`.

    Raises: DataError with every broken row, and for a run without labels.
    """
    pairs: list[Triple] = []
    files: list[FileRecord] = []
    for path in paths:
        if (Path(path).expanduser() / PICKED).is_file():
            pairs += _labelled_in_run(Path(path).expanduser(), files)
            continue
        problems: list[Problem] = []
        rows: list[Triple] = []
        for origin, raw in _rows(path, files, problems):
            try:
                rows.append(_labelled(raw, origin))
            except BadRow as bad:
                problems.append(Problem(str(bad), where=origin))
        _refuse(
            path, problems, bool(rows), "`prompt` with `chosen` and `rejected`, or with `a` and `b`"
        )
        pairs += rows
    return pairs, files


def _labelled_in_run(run_dir: Path, files: list[FileRecord]) -> list[Triple]:
    labels = known_labels(run_dir)
    if not labels:
        raise DataError(
            f"{run_dir} has no labels yet",
            f"read them with `aligner data select {run_dir} --labels FILE`",
        )
    for path in (run_dir / PICKED, run_dir / LABELS):
        files.append(file_record(path))
    return [
        (pair["prompt"], pair["a"], pair["b"])
        for pair_id, pair in asked_pairs(run_dir).items()
        if pair_id in labels
    ]


def _rows(path: str, files: list[FileRecord], problems: list[Problem]) -> Any:
    """Yield the rows that can be read; note the others."""
    for origin, raw in open_source(Source(path=path), files):
        if isinstance(raw, Unreadable):
            problems.append(Problem(raw.reason, where=origin))
        elif raw is not BLANK:
            yield origin, raw


def _refuse(path: str, problems: Sequence[Problem], has_rows: bool, wanted: str) -> None:
    if problems:
        more = f" (the first {LISTED} are listed)" if len(problems) > LISTED else ""
        raise DataError(
            f"{len(problems):,} rows of {path} are broken{more}",
            f"a row needs {wanted}",
            problems[:LISTED],
        )
    if not has_rows:
        raise DataError(f"{path} holds no rows", "check the path")


# --- one row --------------------------------------------------------------------------------------


def _candidate(raw: Mapping[str, Any], origin: str, keep_unfinished: bool) -> Candidate:
    if raw.get("chosen") is not None and raw.get("rejected") is not None:
        row = map_row(raw, "preference", "preference", origin)
        assert isinstance(row, PreferenceRow)
        return Candidate(
            row.prompt,
            [_one_text(row.chosen, "chosen"), _one_text(row.rejected, "rejected")],
            origin,
        )
    name = next((name for name in ("responses", "completions") if raw.get(name) is not None), None)
    if name is None:
        raise BadRow("there are no `responses`, and no `chosen` and `rejected`")
    given = raw[name]
    if not isinstance(given, list):
        raise BadRow(f"{name} is {kind(given)}, not a list of responses")
    prompt, answer = _prompt(raw), raw.get("answer")
    if answer is not None:
        answer = text(str(answer), "answer", allow_empty=True)
    candidate = Candidate(prompt, origin=origin, answer=answer)
    for number, item in enumerate(given, start=1):
        if (
            isinstance(item, Mapping)
            and item.get("finish_reason") == "length"
            and not keep_unfinished
        ):
            candidate.unfinished += 1
        else:
            candidate.responses.append(_response(item, f"response {number} of {name}"))
    return candidate


def _labelled(raw: Mapping[str, Any], origin: str) -> Triple:
    if raw.get("a") is not None and raw.get("b") is not None:
        return _prompt(raw), text(raw["a"], "a"), text(raw["b"], "b")
    row = map_row(raw, "preference", "preference", origin)
    assert isinstance(row, PreferenceRow)
    return row.prompt, _one_text(row.chosen, "chosen"), _one_text(row.rejected, "rejected")


def _prompt(raw: Mapping[str, Any]) -> Prompt:
    value = raw.get("prompt")
    if value is None:
        raise BadRow("`prompt` is null" if "prompt" in raw else "`prompt` is missing")
    return (
        question(messages(value, "prompt"), "prompt")
        if isinstance(value, list)
        else text(value, "prompt")
    )


def _response(item: Any, name: str) -> str:
    """A response as text: a text, one turn, or what `aligner generate` writes."""
    if isinstance(item, list):
        return _one_text(messages(item, name), name)
    if isinstance(item, Mapping):
        item = item.get("text", item.get("content"))
    return text(item, name, allow_empty=True)


def _one_text(value: str | Messages, name: str) -> str:
    if isinstance(value, str):
        return value
    if len(value) != 1 or value[0].get("tool_calls"):
        raise BadRow(
            f"{name} has {len(value)} turns or calls tools; only responses of one turn can be "
            "compared"
        )
    return str(value[0]["content"])
