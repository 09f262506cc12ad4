"""Where exceptions end: one group class that turns them into a sentence on stderr and an exit code.

It is the group and not a wrapper around `main()`, so that a shell, `python -m aligner` and a test's
CliRunner all see the same thing, from sub-commands too. Exit codes: see `aligner.errors`; 1 is an
internal error, 130 is Ctrl-C, 143 SIGTERM, 141 a reader that went away (`... | head`).
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import typer

from aligner.errors import AlignerError
from aligner.launch.causes import outside_cause
from aligner.launch.world import world
from aligner.runs.cache import cache_folder
from aligner.runs.lock import release_locks

from .console import content, say, shown
from .endings import code_of, sigterm_unwinds, stopped, undisturbed
from .fast_commands import QuickGroup

MAX_PROBLEMS = 15  # with the message and the hint, one screen
PIPE_EXIT_CODE = 141
KEPT_TRACEBACKS = 10


class Boundary(QuickGroup):
    """The root command: prints errors and lists commands under headings."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {}

    def invoke(self, ctx: Any) -> Any:
        """Run the command; whatever it raises becomes a message and an exit code."""
        try:
            with sigterm_unwinds():
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except AlignerError as error:
            if not _left_to_launcher(error):
                _say(describe(error), ctx)
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:
            _forget_stdout()
            raise typer.Exit(PIPE_EXIT_CODE) from error
        except KeyboardInterrupt as stop:
            with undisturbed():
                release_locks()
                _say(stopped(stop), ctx)
            raise typer.Exit(code_of(stop)) from stop
        except Exception as error:
            if type(error).__module__.startswith("typer."):
                _write_out_names(error)
                raise  # Exit, Abort and usage errors, which typer prints itself
            known = outside_cause(error)
            if known is None:
                raise typer.Exit(_report_bug(error, ctx)) from error
            if not _left_to_launcher(known):
                _say(describe(known), ctx)
            raise typer.Exit(known.exit_code) from error

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """As typer does; what it says of the command line is as safe to print as the rest."""
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            _write_out_names(error)
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Commands under the headings of `sections`; the width of the names is the same in all of
        them."""
        width = max(len(name) for name in self.commands)
        for heading, names in self.sections.items():
            with formatter.section(heading):
                texts = [
                    self.commands[name].get_short_help_str(formatter.width - width - 4)
                    for name in names
                ]
                formatter.write_dl([(name.ljust(width), text) for name, text in zip(names, texts)])


def _write_out_names(error: Exception) -> None:
    """Make what an error of typer's says fit for the screen: it may quote a file's name."""
    if isinstance(message := getattr(error, "message", None), str):
        error.message = shown(message)  # type: ignore[attr-defined]


def _left_to_launcher(error: AlignerError) -> bool:
    """In a rank that we launched, the launching process reports the error, once for all ranks."""
    if world()[1] == 1:
        return False
    from aligner.launch.command import record_failure

    return record_failure(error)


def describe(error: AlignerError) -> str:
    """Message, problems and hint, in one screen at most."""
    lines = [
        f"error: {error.message}",
        *(f"  {problem}" for problem in error.problems[:MAX_PROBLEMS]),
    ]
    hidden = len(error.problems) - MAX_PROBLEMS
    if hidden > 0:
        lines.append(f"  ... and {hidden} more")
    return "\n".join(map(shown, [*lines, f"hint: {error.hint}"] if error.hint else lines))


def _say(text: str, ctx: Any) -> None:
    """To stderr; a rank other than 0 says which one it is. With `--debug` the traceback comes
    first."""
    if ctx.meta.get("debug"):
        sys.stderr.write(content(traceback.format_exc()))
    rank, _ = world()
    for line in text.split("\n"):
        say(line if rank == 0 else f"[rank {rank}] {line}", err=True)


def _report_bug(error: Exception, ctx: Any) -> int:
    """One line on the screen; the traceback goes to a file, because a run of hours may not happen
    again."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f" at {Path(last.filename).name}:{last.lineno}" if last else ""
    what = str(error).strip().split("\n")[0] if str(error).strip() else "no message"
    path = _keep_traceback(error)
    _say(
        f"internal error, please report it: {type(error).__name__}{where}: {what[:300]} "
        f"(traceback: {path}, or --debug)",
        ctx,
    )
    return 1


def _keep_traceback(error: Exception) -> Path:
    """Write the traceback into the cache folder, where the last few stay, and return where; a full
    disk keeps none."""
    path = cache_folder("crashes") / f"traceback-{time.time_ns()}-{os.getpid()}.txt"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        for old in sorted(path.parent.glob("traceback-*.txt"))[:-KEPT_TRACEBACKS]:
            old.unlink(missing_ok=True)
    return path


def _forget_stdout() -> None:
    """Point stdout at nothing, so that the flush at exit does not fail a second time."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except OSError:  # a test's stream has no file descriptor, and nothing to flush
        pass
    finally:
        os.close(devnull)
