"""Verifiers that run what may not terminate: unit tests, a user's function, a regular expression, a
JSON schema.

All of it runs in worker processes (`aligner.sandbox.worker`) with limits on time, memory, processes
and files, without the network. A row whose code loops, allocates without end, forks or dies gets
the lowest score, a remark says what happened, and scoring continues with the next row in a
new worker. The other side is `verifier_worker.py`.

Whose code it is decides what it may. An answer's program is nobody's: each row has a process of its
own, which can write to its temporary folder alone (Linux 5.13 and newer) and sees nothing of the
environment. A user's function is trusted not to be hostile, only to fail now and then: one worker
is kept for all rows, in the working directory and the environment of the command, and may write
files.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from aligner.data import files as data_files
from aligner.errors import DataError, RecipeError, UsageError
from aligner.sandbox.worker import Limits, StartError, Worker, WorkerResult, thread_counts

from . import verifier_worker
from .base import Prompt, Range
from .json_extract import INVALID, last_block, read_answer, read_json
from .verifier_base import Judged, Verifier
from .verifier_options import Options

JOBS = str(Path(verifier_worker.__file__).resolve())
MAX_AT_ONCE = 8
PROGRAM_FILE_BYTES = 16 * 2**20
FUNCTION_FILE_BYTES = 2**30


def limits_of(options: Options, **more: Any) -> Limits:
    """The limits of a worker."""
    return Limits(memory_bytes=options.memory_mb * 2**20, processes=options.processes, **more)


def content_hash(path: Path) -> str:
    """Of a file, for fingerprints."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def cannot_start(name: str, error: StartError) -> UsageError:
    """The machine's fault, and no answer's: nothing is scored."""
    return UsageError(
        f"{name} could not start the process that it judges in: {error}",
        "see whether the machine is short of memory or processes",
    )


class WorkerVerifier(Verifier):
    """A verifier with a worker that is kept for all rows."""

    _worker: Worker

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name)
        self.options = options

    def ask(self, payload: Any) -> WorkerResult:
        """Let the worker judge one row."""
        try:
            return self._worker.call(payload, self.options.timeout_s)
        except StartError as error:
            raise cannot_start(self.name, error) from error


# --- a regular expression -------------------------------------------------------------------------


class RegexVerifier(WorkerVerifier):
    """Whether the pattern is found; or its one group in the last match compared with the reference,
    blanks aside.

    A pattern that looks for its match longer than `timeout_s` (`(a+)+$` in a long answer) has not
    found it.
    """

    def __init__(self, name: str, pattern: re.Pattern[str], options: Options) -> None:
        super().__init__(name, options)
        self.pattern = pattern
        self.needs_references = pattern.groups > 0
        self._worker = Worker(
            f"{JOBS}:open_regex", {"pattern": pattern.pattern}, limits_of(options), site=False
        )

    def judge(self, row: int, prompt: Prompt, completion: str, reference: str | None) -> Judged:
        """Look for the pattern."""
        right = reference if self.needs_references else None
        outcome = self.ask({"answer": completion, "reference": right})
        assert not outcome.error, outcome.error
        return float(outcome.result is True), outcome.stopped

    def fingerprint(self) -> str:
        """The pattern, and how long it may look."""
        return (
            f"verifier:regex={self.pattern.pattern} {self.options.text()} "
            f"python{sys.version_info[0]}.{sys.version_info[1]}"
        )


# --- a JSON schema --------------------------------------------------------------------------------


class SchemaVerifier(WorkerVerifier):
    """1 when the answer's JSON (see `json_extract.py`) is valid against a schema; else 0. `format`
    is not looked at."""

    def __init__(self, name: str, path: Path, options: Options) -> None:
        super().__init__(name, options)
        self.path = path
        schema = _read_schema(name, path)
        self._hash = content_hash(path)
        self._worker = Worker(
            f"{JOBS}:open_schema", {"schema": schema}, limits_of(options), site=False
        )

    def judge(self, row: int, prompt: Prompt, completion: str, reference: str | None) -> Judged:
        """Validate the answer's JSON."""
        value = read_answer(completion)
        if value is INVALID:
            return 0.0, ""
        outcome = self.ask(value)
        if outcome.error:
            raise RecipeError(
                f"the schema {self.path} cannot be applied: {outcome.error}",
                "nothing is fetched for it",
            )
        return float(outcome.result is True), outcome.stopped

    def fingerprint(self) -> str:
        """The content of the schema's file, and what reads it."""
        from importlib.metadata import version

        return (
            f"verifier:json sha256:{self._hash} {self.options.text()} "
            f"jsonschema{version('jsonschema')}"
        )


def _read_schema(name: str, path: Path) -> Any:
    """The schema in a file; RecipeError for one that is none, or refers to something that is not in
    it."""
    import jsonschema

    if not path.is_file():
        raise RecipeError(
            f"{name}: there is no file {path}", "the path is taken from the working directory"
        )
    schema = read_json(path.read_bytes().decode(errors="surrogateescape"))
    if not isinstance(schema, dict | bool):
        raise RecipeError(
            f"{name}: {path} is not a JSON schema", "write a JSON object, with no key twice"
        )
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(cast(Any, schema))  # the stubs forget that true and false are schemas
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path))
        raise RecipeError(
            f"{name}: {path} is not a JSON schema: {where}: {error.message}", "see json-schema.org"
        ) from error
    missing = [reference for reference in _references(schema) if not _is_there(schema, reference)]
    if missing:
        raise RecipeError(
            f"{name}: {path} refers to {missing[0]!r}, which is not in it",
            "nothing is fetched; copy it into the file",
        )
    return schema


def _references(schema: Any) -> Iterable[str]:
    if isinstance(schema, dict):
        found = schema.get("$ref")
        if isinstance(found, str):
            yield found
        for key, value in schema.items():
            if key not in ("const", "enum", "default", "examples"):
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _is_there(schema: Any, reference: str) -> bool:
    """A schema with identifiers inside is left to the validator, which follows them."""
    import referencing
    import referencing.exceptions
    import referencing.jsonschema

    if json.dumps(schema).count('"$id"') > (
        1 if "$id" in schema else 0
    ) or '"$anchor"' in json.dumps(schema):
        return True
    resource = referencing.Resource.from_contents(schema, referencing.jsonschema.DRAFT202012)
    try:
        referencing.Registry().resolver_with_root(resource).lookup(reference)
    except referencing.exceptions.Unresolvable:
        return False
    return True


# --- a function of the user's ---------------------------------------------------------------------


class FunctionVerifier(WorkerVerifier):
    """A user's function, called once for each row in a worker that is kept; a row that was stopped
    costs a new worker.

    What it keeps in variables between rows is lost then, so a score should not hang on it. `range`
    is what the card says; without one, a row that was stopped gets 0.
    """

    def __init__(
        self, name: str, path: Path, function: str, options: Options, declared: Range
    ) -> None:
        super().__init__(name, options)
        self.range = declared
        self._path, self._function = path.resolve(), function
        if not path.is_file():
            raise RecipeError(
                f"{name}: there is no file {path}", "the path is taken from the working directory"
            )
        self._hash = content_hash(path)
        setup = {"path": str(self._path), "function": function}
        more = {"file_bytes": FUNCTION_FILE_BYTES, "network": options.network, "user_files": True}
        surroundings: Mapping[str, str] = {**thread_counts(1), **os.environ}
        self._worker = Worker(
            f"{JOBS}:open_function",
            setup,
            limits_of(options, **more),
            environment=surroundings,
            folder=Path.cwd(),
        )
        self._open()

    def judge(self, row: int, prompt: Prompt, completion: str, reference: str | None) -> Judged:
        """Call the function."""
        outcome = self.ask({"prompt": prompt, "completion": completion, "reference": reference})
        if outcome.stopped:
            lowest = self.range[0] if math.isfinite(self.range[0]) else 0.0
            return lowest, outcome.stopped
        return self._value(row, outcome, completion), ""

    def fingerprint(self) -> str:
        """The content of the file, the function, the limits; what the file imports is not looked
        at."""
        return (
            f"verifier:{self._function} sha256:{self._hash} {self.options.text()} "
            f"range={self.range}"
        )

    def _value(self, number: int, outcome: WorkerResult, completion: str) -> float:
        if outcome.error:
            network = (
                ""
                if self.options.network
                else " It has no network; `,network=yes` behind its name gives it back."
            )
            raise DataError(
                f"row {number}: {self.name} raised {outcome.error}",
                "make the function give a score to every answer; this one was "
                f"{completion[:60]!r}.{network}",
            )
        if "shown" in outcome.result:
            raise DataError(
                f"row {number}: {self.name} returned {outcome.result['shown']}, which is not a "
                "finite number",
                "return a float; higher is better",
            )
        value = float(outcome.result["value"])
        if not self.range[0] <= value <= self.range[1]:
            raise DataError(
                f"row {number}: {self.name} returned {value:g}, which is not from "
                f"{self.range[0]:g} to {self.range[1]:g}",
                "that is the `range` on its card; change the one or the other",
            )
        return value

    def _open(self) -> None:
        try:
            self._worker.start()
        except StartError as error:
            message, _, hint = str(error).removeprefix("Refused: ").partition("\n")
            raise RecipeError(
                f"{self.name}: {message}", hint or "Import the file with python to see more."
            ) from error


# --- unit tests -----------------------------------------------------------------------------------


class TestsVerifier(Verifier):
    """Runs the reference's tests on the answer's program: 1 when all pass, else 0; with `share`,
    the share that passes.

    The program is the answer's last ```python block (also `py`, `python3`), else the whole answer.
    It runs as a module named `solution`, so a part under `if __name__ == "__main__":` does not. The
    reference is Python code that runs after it, as a module of its own that sees the program's
    names (`from solution import f` works too). Its tests are: each `assert`, and each call of a
    function that the reference itself defines (`check(candidate)`), at the top level; each function
    `test_...` without parameters that is not called there; each method `test...` of a
    `unittest.TestCase`. Pytest's fixtures and async tests are not supported. When something else at
    the top level raises (an import, say), the rest counts as failed. A reference that is no Python,
    or holds no test, is an error of the data. What it assigns is not seen by the program's
    functions, but for `solution.name = value` after `import solution`.

    Names that hide builtins: one that the program defines by `def` or `class` at its top is the
    tests' too, since it may be what is asked for (`def sum(a, b)`). Where it is made in another way
    (`all = lambda values: True`), tests get the builtin, unless they import the program's; the
    program's own functions get what it has made.

    What a program cannot do: leave early and count as passed, print its result, end other
    processes, outlive its row, reach the network, or fill the disk. It cannot put another meaning
    under a builtin that tests name, by assigning the name, `__builtins__` or what is in `builtins`.
    And nothing that it does to `unittest`, `ast`, `sys.path`, import hooks or a trace function
    before its tests begin reaches them.

    What it can do, because it shares an interpreter with its tests: define a function `all` that
    agrees to everything (`from builtins import all` in the tests cures that), return objects that
    are equal to everything, replace functions of other modules that the tests use (`importlib`, and
    what `unittest` is made of, included), replace methods of `unittest` or set a trace function
    from within a call that a test makes, walk the frames from `sys._getframe()` or search this
    interpreter's memory, and so replace what runs the tests or report a result of its own. Read
    what a policy writes when its score rises suddenly.
    """

    __test__ = False  # pytest takes a class of this name for tests

    needs_references = True

    def __init__(self, name: str, options: Options, share: bool = False) -> None:
        super().__init__(name)
        self.options, self.share = options, share
        self.isolation: dict[str, str] = {}
        """Which walls stood around the last program: part -> "yes" or why not."""

    def judge_all(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None],
    ) -> Iterable[Judged]:
        """Run each different program with its tests, after all tests were read."""
        right = [reference for reference in references if reference is not None]
        totals = [self._count(row, reference) for row, reference in enumerate(right, start=1)]
        pairs = [(program_in(answer), reference) for answer, reference in zip(completions, right)]
        found = self._run(list(dict.fromkeys(pairs)))
        for pair, total in zip(pairs, totals):
            passed = found[pair].result or 0
            yield (passed / total if self.share else float(passed == total)), found[pair].stopped

    def fingerprint(self) -> str:
        """What is counted, the rule, the limits, and the Python that runs it."""
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"verifier:tests{'=share' if self.share else ''}, rule 2, {self.options.text()} "
            f"python{version}"
        )

    def _count(self, row: int, reference: str) -> int:
        try:
            total = verifier_worker.count_tests(ast.parse(reference))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(
                f"row {row}: the right answer is no Python code: {error}",
                "for `verifier:tests` it holds the tests",
            ) from error
        if not total:
            raise DataError(
                f"row {row}: the right answer holds no test: {reference[:60]!r}",
                "write `assert` statements, or functions whose names begin with test_",
            )
        return total

    def _run(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], WorkerResult]:
        """Each pair in a process of its own, several at once; an interrupt ends them all."""
        live: set[Worker] = set()
        ends = threading.Event()
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        with ThreadPoolExecutor(min(MAX_AT_ONCE, cores)) as pool:
            try:  # an interrupt may come when some have begun and others are not known yet
                futures = [pool.submit(self._run_one, pair, live, ends) for pair in pairs]
                return {pair: future.result() for pair, future in zip(pairs, futures)}
            except StartError as error:
                raise cannot_start(self.name, error) from error
            finally:
                ends.set()
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in list(live):
                    worker.interrupt()

    def _run_one(
        self, pair: tuple[str, str], live: set[Worker], ends: threading.Event
    ) -> WorkerResult:
        limits = limits_of(self.options, file_bytes=PROGRAM_FILE_BYTES)
        setup = {"stops_early": not self.share}
        closed = sorted(data_files.READ)
        with Worker(f"{JOBS}:open_tests", setup, limits, site=False, closed=closed) as worker:
            live.add(worker)
            try:
                if ends.is_set():
                    return WorkerResult(stopped="interrupted")
                outcome = worker.call(
                    {"program": pair[0], "tests": pair[1]}, self.options.timeout_s
                )
                self.isolation.update(worker.isolation)
            finally:
                live.discard(worker)
        return outcome


def program_in(answer: str) -> str:
    """The Python program of an answer."""
    block = last_block(answer, "python", "py", "python3")
    return answer if block is None else block
