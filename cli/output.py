"""`--output`, `--resume` and `--overwrite` of the commands that compute one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say
from .endings import resumable

if TYPE_CHECKING:
    from aligner.runs.partial_output import PartialOutput

Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


@dataclass(frozen=True)
class Output:
    """Where a command writes, made by `checked_output`; without a path it writes nothing."""

    path: Path | None
    overwrite: bool

    def resumable(self) -> AbstractContextManager[None]:
        """Let Ctrl-C and SIGTERM say what was kept, and how to continue."""
        from aligner.runs.partial_output import is_stream, part_folder

        if self.path is None or is_stream(self.path):
            return resumable("needs --output FILE to continue")
        part = part_folder(self.path)

        def kept() -> str:
            return f"{part} keeps what is done" if part.exists() else "nothing was kept yet"

        how = "in place of --overwrite continues" if self.overwrite else "continues"
        return resumable(how, kept)

    def parts(self, header: Callable[[], Mapping[str, Any]]) -> PartialOutput:
        """Return what keeps the parts that are done until the output is whole."""
        from aligner.runs.partial_output import PartialOutput

        def warn(event: Any) -> None:
            say(f"warning: {event.text}", err=True)

        return PartialOutput(self.path, header, overwrite=self.overwrite, on_event=warn)


def kept_isolation(run_dir: Path) -> dict[str, Any]:
    """Which walls stood around programs that a run has run, as an entry for `--json`; nothing
    where it ran none."""
    from aligner.runs.files import read_json

    environment = read_json(run_dir, "environment.json") or {}
    return {key: environment[key] for key in ("isolation",) if key in environment}


def checked_output(
    path: Path | None, data: str | None, *, resume: bool, overwrite: bool, suffix: str = ".jsonl"
) -> Output:
    """Say what is in the way of an output, before anything is read. `data`: what is read.

    Raises: UsageError.
    """
    from aligner.errors import UsageError
    from aligner.runs.partial_output import check_output

    if path is not None:
        check_output(path, data, resume=resume, overwrite=overwrite, suffix=suffix)
    elif resume or overwrite:
        raise UsageError(
            "--resume and --overwrite are about an output, and there is none", "add --output"
        )
    return Output(path, overwrite)


def flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under the names that their options have, for a header."""
    return {f"--{name.replace('_', '-')}": value for name, value in values.items()}


def rows_fingerprint(rows: Sequence[Any]) -> str:
    """Return a hash of what rows hold; where they came from does not count."""
    import hashlib

    from aligner.data.rows import VARIABLES
    from aligner.runs.files import json_line

    digest = hashlib.sha256()
    for row in rows:
        held = {name: value for name, value in asdict(row).items() if name != "origin"}
        if not held.get(VARIABLES):
            held.pop(VARIABLES, None)  # so that rows without them have the hash that they had
        digest.update(json_line(held, default=str).encode())
    return digest.hexdigest()
