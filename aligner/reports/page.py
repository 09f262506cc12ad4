"""Parts of the report that only show what the record holds: data, recipe, lineage, environment,
files."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aligner.config.defaults import is_default, keys_that_matter
from aligner.data.ledger import told_lengths
from aligner.reports.charts import number, split_bar
from aligner.runs.comparison import origin_of
from aligner.runs.files import dumps, flatten, read_json
from aligner.runs.lineage import lineage
from aligner.runs.lock import LOCK_NAME

Rows = list[tuple[str, str]]

SHOWN_FILES = 200

AT_START = "set when the run started"
"""The origin of what device, data and model decide, and of what only we set."""


def value_text(value: Any) -> str:
    """A recorded value for reading: numbers short, the rest as JSON."""
    if isinstance(value, bool) or value is None:
        return dumps(value)
    if isinstance(value, int | float):
        return number(value)
    return value if isinstance(value, str) else dumps(value)


def duration(seconds: float) -> str:
    """`2 h 03 min`, `4 min 10 s`, `12.3 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def size(count: int) -> str:
    """`12.3 MB`, in powers of 1000 as on a disk's label."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def moment(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")


def sample_part(sample: dict[str, Any]) -> dict[str, Any]:
    expected = sample.get("expected")
    shown = {key: _answer(sample.get(key)) for key in ("prompt", "before", "after")}
    right = {
        f"{key}_right": expected is not None
        and str(sample.get(key)).strip() == str(expected).strip()
        for key in ("before", "after")
    }
    return {**shown, **right, "expected": expected}


def _answer(text: Any) -> str:
    if text is None:
        return "(not recorded)"
    return str(text) if str(text).strip() else "(empty answer)"


ROW_PARTS = [
    ("to training", "to_train", 1),
    ("held out", "to_eval", 3),
    ("not sampled", "not_sampled", 7),
    ("duplicates", "duplicates", 5),
    ("dropped by your function", "dropped_by_function", 4),
    ("broken", "bad", 6),
]
TOKEN_PARTS = [
    ("trained", "trained_tokens", 1),
    ("masked", "masked_tokens", 7),
    ("cut off", "truncated_tokens", 6),
]


def held_out_part(decided: dict[str, Any]) -> str:
    """Return a sentence where held-out numbers are of a part of the held-out rows; else nothing.
    `decided` is what was decided at the start of a run."""
    evaluated = (decided.get("cadence") or {}).get("held_out_rows")
    everything = decided.get("all_held_out")
    if evaluated is None or evaluated == everything:
        return ""
    return f"Held-out numbers are of {evaluated:,} of {everything:,} rows."


def ledger_part(data: Any) -> dict[str, Any] | None:
    """Rows of each source and tokens of each split as bars, and the ledger's own lines."""
    if not data:
        return None
    pictures = [_source_picture(source) for source in data.get("sources", [])]
    splits = [(name, split) for name, split in data.get("splits", {}).items() if split.get("rows")]
    pictures += [_split_picture(name, split) for name, split in splits]
    files = [
        {"path": file["path"], "bytes": f"{file['bytes']:,}", "sha256": file["sha256"][:16]}
        for source in data.get("sources", [])
        for file in source.get("files", [])
    ]
    return {"pictures": Markup("").join(pictures), "lines": _ledger_lines(data), "files": files}


def _source_picture(source: dict[str, Any]) -> Markup:
    parts = [(label, source.get(key, 0), tone) for label, key, tone in ROW_PARTS]
    repeated = f", {source['repeated']:,} repeats added" if source.get("repeated") else ""
    head = Markup("<h3>{} <span class='soft'>{:,} rows read{}, {}</span></h3>").format(
        source["path"], source.get("rows_read", 0), repeated, source.get("format", "")
    )
    return head + Markup(split_bar(parts))


def _split_picture(name: str, split: dict[str, Any]) -> Markup:
    parts = [(label, split.get(key, 0), tone) for label, key, tone in TOKEN_PARTS]
    dropped = (
        f", {split['too_long_dropped']:,} too long and dropped"
        if split.get("too_long_dropped")
        else ""
    )
    extras = []
    if split.get("lengths"):
        extras.append(f"row lengths: {told_lengths(split['lengths'])} tokens")
    if split.get("sequences") is not None:
        extras.append(
            f"packed into {split['sequences']:,} sequences, {split.get('packed_fill') or 0:.1%} "
            "full"
        )
    if split.get("padding_share") is not None:
        extras.append(f"{split['padding_share']:.1%} of a batch is padding")
    head = Markup("<h3>{} <span class='soft'>{:,} rows, {:,} tokens{}</span></h3>").format(
        _split_title(name), split.get("rows", 0), split.get("tokens", 0), dropped
    )
    return (
        head
        + Markup(split_bar(parts))
        + Markup("<p class='soft small'>{}</p>").format("; ".join(extras))
    )


def _ledger_lines(data: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Every count that is not zero, and the broken rows that were listed: (place, what, how
    many)."""
    lines: list[tuple[str, str, str]] = []
    for source in data.get("sources", []):
        label = source["path"] if source.get("role") != "eval" else f"{source['path']} (held out)"
        lines += _group(label, _counts(source))
        lines += [("", row["where"], row["reason"]) for row in source.get("bad_rows", [])]
    for name, split in data.get("splits", {}).items():
        lines += _group(_split_title(name), _counts(split))
    lines += [("batches", "", data["batching"])] if data.get("batching") else []
    if data.get("prompts_in_both"):
        lines.append(
            ("both", "held-out prompts that are also trained on", f"{data['prompts_in_both']:,}")
        )
    return lines


def _group(label: str, counts: list[tuple[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        ("" if index else label, key.replace("_", " "), value_text(value))
        for index, (key, value) in enumerate(counts)
    ]


def _split_title(name: str) -> str:
    return {"train": "Training split", "eval": "Held-out split"}.get(name, name)


def _counts(entry: dict[str, Any]) -> list[tuple[str, Any]]:
    hidden = ("path", "role", "files", "bad_rows")
    return [
        (key, value)
        for key, value in entry.items()
        if key not in hidden and value not in (0, None, "", [])
    ]


def resolved_part(
    resolved: dict[str, Any], arguments: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Every value of the recipe, what decides the result most first, and what the trainer got
    otherwise."""
    origins = resolved.get("origins", {})
    recipe = resolved.get("recipe", {})
    values = flatten(recipe)
    first = [key for key in keys_that_matter(recipe) if key in values]
    rows = [
        _resolved_row(key, values[key], origin_of(origins, key))
        for key in dict.fromkeys([*first, *values])
    ]
    late = flatten(arguments) if arguments else {}
    return rows + [_resolved_row(f"trainer.{key}", late[key], AT_START) for key in late]


def _resolved_row(key: str, value: Any, origin: str) -> dict[str, Any]:
    return {
        "key": key,
        "value": dumps(value),
        "origin": origin,
        "is_default": is_default(origin) or origin == AT_START,
    }


def lineage_part(folder: Path, manifest: dict[str, Any] | None) -> list[dict[str, str]]:
    """Oldest first, this run last. Its own manifest may not be on disk yet."""
    start = (read_json(folder, "environment.json") or {}).get("working_directory", "")
    items = []
    for entry in reversed(lineage(folder, manifest)):
        name = entry["path"].removeprefix(f"{start}/") if start else entry["path"]
        if entry["kind"] != "run":
            items.append({"label": entry["kind"], "name": name, "note": ""})
        else:
            note = f"finished {moment(entry['finished'])}" if entry["finished"] else "not finished"
            items.append(
                {"label": f"{entry['method'] or 'unknown'} run", "name": name, "note": note}
            )
    return items


def environment_part(environment: dict[str, Any]) -> dict[str, Any] | None:
    if not environment:
        return None
    git = environment.get("git")
    state = (
        f"{git['commit'][:12]} on "
        f"{git['branch']}{', with uncommitted changes' if git['dirty'] else ''}"
        if git
        else "none"
    )
    lines = [(name, version) for name, version in environment.get("versions", {}).items()]
    lines += [
        (key, value_text(value))
        for key, value in flatten(environment.get("devices", {})).items()
        if key
    ]
    lines += [("platform", str(environment.get("platform"))), ("git", state)]
    lines += [("working directory", str(environment.get("working_directory")))]
    return {"command": environment.get("command", ""), "lines": lines}


def files_part(folder: Path, manifest: dict[str, Any] | None) -> list[dict[str, str]]:
    """The record and the result; checkpoints and prepared data are means, not ends."""
    sums = (manifest or {}).get("files", {})
    paths = [
        path
        for path in folder.iterdir()
        if path.is_file() and path.name != LOCK_NAME and path.name[0] != "."
    ]
    if (folder / "final").is_dir():
        paths += [path for path in (folder / "final").rglob("*") if path.is_file()]
    names = sorted((path.relative_to(folder).as_posix(), path) for path in paths)
    return [
        {"name": name, "size": size(path.stat().st_size), "sha256": sums.get(name, "")[:16]}
        for name, path in names[:SHOWN_FILES]
    ]
