"""The one place that writes to the screen: names from files and data cannot steer a terminal here.

A file, a column, a row or a server may be named with escape sequences, line ends or marks that turn
the direction of writing. Messages and tables show such characters as Python writes them (`\\x1b`,
`\\n`); what is printed as content (an answer) keeps its lines, and is exact where no terminal
reads it. JSON stays JSON.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings

import typer

_CONTROLS = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
_TURNS = r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_IN_NAMES = re.compile(f"[{_CONTROLS}{_TURNS}]")
_IN_JSON = re.compile(rf"[\x7f-\x9f\ud800-\udfff{_TURNS}]")
_IN_CONTENT = re.compile(rf"(?!\r?\n|\t)[{_CONTROLS}]")

_PLAIN_WARNING = warnings.formatwarning


def shown(value: object) -> str:
    """A name or a message on one line, with control characters and marks of direction written
    out."""
    return _IN_NAMES.sub(_written, str(value))


def content(text: str) -> str:
    """A text of several lines, without what would steer a terminal."""
    return _IN_CONTENT.sub(_written, text)


def _written(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def say(
    text: object = "",
    *,
    err: bool = False,
    fg: str | None = None,
    bold: bool | None = None,
    after: object = "",
    is_dim: bool = False,
) -> None:
    """Print one line, perhaps in colour; `after` stands behind it, perhaps dim."""
    line = shown(text)
    if fg or bold:
        line = typer.style(line, fg=fg, bold=bold)
    behind = shown(after)
    if behind:
        line += f"  {typer.style(behind, dim=True) if is_dim else behind}"
    typer.echo(line.rstrip(), err=err)


def say_content(text: str, *, bold: bool | None = None) -> None:
    """Print a text on stdout as it is, or on a terminal without what would steer it."""
    safe = content(text) if sys.stdout.isatty() else text
    typer.echo(typer.style(safe, bold=bold) if bold else safe)


def write_content(text: str) -> None:
    """Print a piece of a text on stdout at once, without a line end of its own; on a terminal
    without what would steer it."""
    typer.echo(content(text) if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()


def say_json(text: str) -> None:
    """Print JSON on stdout; on a terminal with JSON's own escapes for what would steer it."""
    if sys.stdout.isatty():
        text = _IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    typer.echo(text)


def guard_libraries() -> None:
    """Let what other libraries warn of and log, which may quote names, go through `content` as
    well."""

    def formatwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        return content(_PLAIN_WARNING(message, category, filename, lineno, line))

    warnings.formatwarning = formatwarning
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return content(super().getMessage())
