"""The process behind the sandboxed verifiers: a regular expression, a schema, a user's function,
unit tests.

`aligner.sandbox.worker` opens this file by its path in a fresh interpreter, so it imports the
standard library alone. Each `open_...` is called once with the setup, and gives the function that
is called for every row.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import importlib
import importlib.util
import inspect
import math
import random
import re
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

PROGRAM = "solution"
"""The name under which tests can import the program."""

TESTS = "tests"
"""The name of the module that tests run as."""


class Refused(Exception):
    """What is wrong with the user's file, in a sentence; the hint stands in the next line."""


# --- a regular expression, a schema ---------------------------------------------------------------


def open_regex(setup: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether the pattern is found in the answer; with a group, whether that of the last match is
    the reference."""
    pattern = re.compile(setup["pattern"])

    def judge(row: dict[str, Any]) -> bool:
        if not pattern.groups:
            return pattern.search(row["answer"]) is not None
        last = None
        for match in pattern.finditer(row["answer"]):
            last = match.group(1)
        return last is not None and " ".join(last.split()) == " ".join(row["reference"].split())

    return judge


def open_schema(setup: dict[str, Any]) -> Callable[[Any], bool]:
    """Whether a value is valid against the JSON schema. Nothing is fetched from anywhere."""
    import jsonschema
    import referencing

    sys.setrecursionlimit(
        5_000
    )  # one level of a value takes several calls, and more where schemas are combined
    schema = setup["schema"]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = kind(schema, registry=referencing.Registry())

    def judge(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except RecursionError:
            return False

    return judge


# --- a function of the user's ---------------------------------------------------------------------


def open_function(setup: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Calls the user's function: {"value": a finite float}, or {"shown": what it returned
    instead}."""
    function = _find_function(_import_file(setup["path"]), setup["path"], setup["function"])

    def judge(row: dict[str, Any]) -> dict[str, Any]:
        value = function(row["prompt"], row["completion"], row["reference"])
        try:
            number = float(value) if isinstance(value, int | float) else math.nan
        except OverflowError:
            number = math.inf
        return {"value": number} if math.isfinite(number) else {"shown": repr(value)[:200]}

    return judge


def _import_file(path: str) -> ModuleType:
    name = f"aligner_user_{re.sub(r'.*/', '', path).removesuffix('.py')}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes that are pickled, and dataclasses, look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise Refused(
            f"importing {path} raised {type(error).__name__}: {error}\nImport the file with "
            "python to see more."
        ) from error
    return module


def _find_function(module: ModuleType, path: str, name: str) -> Callable[..., Any]:
    functions = {key: value for key, value in vars(module).items() if inspect.isroutine(value)}
    if name not in functions:
        close = difflib.get_close_matches(name, functions, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        shown = ", ".join(sorted(functions)) or "no function at all"
        raise Refused(f"{path} has no function {name!r}{meant}\nIt has: {shown}.")
    try:
        inspect.signature(functions[name]).bind("prompt", "completion", "reference")
    except TypeError as error:
        raise Refused(
            f"it cannot be called with three values: {error}\nDefine it as def {name}(prompt, "
            "completion, reference)."
        ) from error
    return functions[name]


# --- unit tests -----------------------------------------------------------------------------------


def open_tests(setup: dict[str, Any]) -> Callable[[dict[str, Any]], int]:
    """Runs a program and then its tests: how many of them pass. For one row; a program may leave
    anything behind."""
    stops_early = setup["stops_early"]

    def judge(row: dict[str, Any]) -> int:
        random.seed(0)
        tests = tuple(
            list_tests(ast.parse(row["tests"]))
        )  # compiled before the program can change what compiles
        program = sys.modules[PROGRAM] = ModuleType(PROGRAM)
        untouched = _Interpreter()
        read: list[tuple[CodeType, set[str]]] = []
        if not _passes(lambda: read.append(_read(row["program"]))):
            return 0
        code, defined = read[0]
        if not _passes(lambda: exec(code, vars(program))):
            return 0
        untouched.restore()
        names = _names_of_tests(vars(program), defined, untouched.built_in)
        passed = 0
        for test in tests:
            result = _passes(lambda: test.run(names))  # noqa: B023  (called at once)
            passed += result and test.counts
            if not result and (stops_early or not test.counts):
                break
        return passed

    return judge


def _read(program: str) -> tuple[CodeType, set[str]]:
    """A program compiled, and the names that it defines by `def` or `class` at its top."""
    tops = ast.parse(program).body
    defined = {
        node.name
        for node in tops
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    return compile(program, "<program>", "exec", dont_inherit=True), defined


class _Interpreter:
    """What tests rely on, as it is before a program runs: the builtins, and how modules are
    found."""

    def __init__(self) -> None:
        self.built_in = dict(vars(builtins))
        self._path, self._finders, self._hooks = (
            list(sys.path),
            list(sys.meta_path),
            list(sys.path_hooks),
        )
        self._importers = dict(sys.path_importer_cache)

    def restore(self) -> None:
        """As it was; unittest will be loaded again, and nothing of the program's watches what runs
        from here on."""
        built_in = vars(builtins)
        built_in.clear()
        built_in.update(self.built_in)
        sys.settrace(None)
        sys.setprofile(None)
        sys.path, sys.meta_path, sys.path_hooks = self._path, self._finders, self._hooks
        sys.path_importer_cache = self._importers
        for name in [name for name in sys.modules if name.partition(".")[0] == "unittest"]:
            del sys.modules[name]


class _Beneath(dict[str, Any]):
    """Stands in for the builtins of the tests: the real ones, and the program's names where there
    is not a builtin.

    The tests' own names come first, as everywhere. The program's are looked up at the time, so that
    tests see what its functions change; a function that tests call cannot put a name over a
    builtin, either.
    """

    def __init__(self, built_in: dict[str, Any], program: dict[str, Any]) -> None:
        super().__init__(built_in)
        self.program = program

    def __missing__(self, name: str) -> Any:
        return self.program[name]


def _names_of_tests(
    program: dict[str, Any], defined: set[str], built_in: dict[str, Any]
) -> dict[str, Any]:
    """The globals in which tests run. Of the program's names that hide builtins, those that it
    defines are kept."""
    module = sys.modules[TESTS] = ModuleType(TESTS)
    names = vars(module)
    names["__builtins__"] = _Beneath(built_in, program)
    names.update({name: program[name] for name in defined & set(built_in) & set(program)})
    return names


class Test:
    """A piece of the reference that is run: a test (`counts`), or what stands between the tests."""

    def __init__(self, run: Callable[[dict[str, Any]], Any], counts: bool) -> None:
        self.run, self.counts = run, counts


def list_tests(tree: ast.Module) -> list[Test]:
    """The statements of the reference in order, and then its test functions and test methods.

    A test is an `assert` or a call of a function that the reference itself defines
    (`check(candidate)`), at the top level; a function `test_...` that is not called there; a method
    `test...` of a subclass of unittest's TestCase.
    """
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = {_called(node) for node in tree.body}
    found = [
        Test(_executing(node), isinstance(node, ast.Assert) or _called(node) in own)
        for node in tree.body
    ]
    for node in tree.body:
        if (
            isinstance(node, ast.FunctionDef)
            and node.name.startswith("test_")
            and node.name not in called
        ):
            found.append(Test(_calling(node.name), True))
        if isinstance(node, ast.ClassDef):
            found += [Test(_running(node.name, method), True) for method in _methods(node)]
    return found


def count_tests(tree: ast.Module) -> int:
    """How many tests a reference holds."""
    return sum(test.counts for test in list_tests(tree))


def _called(node: ast.stmt) -> str | None:
    """`check` where the statement is `check(...)`."""
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
    ):
        return node.value.func.id
    return None


def _methods(node: ast.ClassDef) -> list[str]:
    """Test methods of a class one of whose bases is called TestCase, as unittest's own is."""
    if not any(ast.unparse(base).rpartition(".")[2] == "TestCase" for base in node.bases):
        return []
    return [
        item.name
        for item in node.body
        if isinstance(item, ast.FunctionDef) and item.name.startswith("test")
    ]


def _executing(node: ast.stmt) -> Callable[[dict[str, Any]], Any]:
    code = compile(ast.Module([node], []), "<tests>", "exec", dont_inherit=True)
    return lambda names: exec(code, names)


def _calling(function: str) -> Callable[[dict[str, Any]], Any]:
    return lambda names: names[function]()


def _running(case: str, method: str) -> Callable[[dict[str, Any]], Any]:
    """Runs one method with what is set up for it and its class, and raises what it raised."""

    def run(names: dict[str, Any]) -> None:
        from unittest import TestSuite

        TestSuite([names[case](method)]).debug()

    return run


def _passes(run: Callable[[], Any]) -> bool:
    """Whether it comes to its end. What met a limit goes up, so that the score can say so."""
    try:
        run()
    except (MemoryError, BlockingIOError):
        raise
    except RuntimeError as error:
        if "can't start new thread" in str(error):
            raise
        return False
    except BaseException:  # also SystemExit: a program that leaves has not passed
        return False
    return True
