"""Parse an objective that a language model wrote, without running it: the first of four layers of
safety.

`parse_objective` accepts a small language that happens to be Python: one function of the four
log-probability vectors, straight-line assignments, arithmetic, comparisons, if-expressions, and
calls of the tensor operations listed in `language.py`. All else is refused with the line and
the reason, in a sentence that a user or a proposing model can act on. Nothing is imported, compiled
or run here, and torch is not needed; `interpreter.py` evaluates what was accepted with its own
evaluator, so that an oversight here would still not run Python.

What the language leaves out on purpose: statements `if`, `for`, `while`, `with`; strings, lists,
subscripts, unpacking, lambdas, comprehensions; attribute reads other than `self.beta` (so also
`x.shape`, `x.device`, `x.T`: no objective needs them, as a tensor is (N,) or a single number and
stays on its device); calls of bare names; in-place methods; and every operation that could enlarge
a tensor, so that memory is bounded by the text's size times N.

Source: the layers are ours; the signature is that of arXiv 2406.08414's proposals.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from aligner.errors import RecipeError
from aligner.losses.dsl.language import INPUTS, LISTS, SIGNATURE, Operation, arguments, called

MAX_CHARACTERS = 10_000
MAX_NODES = 800
MAX_STATEMENTS = 80
MAX_DEPTH = 40
MAX_NAME_CHARACTERS = 80
MAX_CONSTANT = 1e6
MAX_EXPONENT = 16


class SourceError(ValueError):
    """The text is not an objective of ours. `line` counts from 1; the text of the error is a
    sentence with the line."""

    def __init__(self, where: str, line: int, reason: str) -> None:
        super().__init__(where, line, reason)
        self.where, self.line, self.reason = where, line, reason

    def __str__(self) -> str:
        return f"{self.where}, line {self.line}: {self.reason}."


class EvaluationError(SourceError):
    """An accepted objective could not be evaluated: a wrong shape or type at that line, or no
    number came out."""


@dataclass(frozen=True, slots=True)
class ObjectiveSource:
    """A checked objective: its text, what identifies it, and the tree that
    `interpreter.as_objective` evaluates.

    `hash` is the SHA-256 of the tree without the function's name, docstring, comments, imports and
    annotations: equal for texts that differ in these alone. `inputs` are those of `INPUTS` that the
    text reads. `tree.body` holds nothing but assignments to names and one final return.
    """

    name: str
    text: str
    hash: str
    inputs: tuple[str, ...]
    reads_beta: bool
    tree: ast.FunctionDef = field(compare=False, repr=False)
    where: str = field(default="proposal", compare=False)


_BINARY: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.BitAnd: "&",
    ast.BitOr: "|",
}
_UNARY: dict[type[ast.AST], str] = {ast.UAdd: "+", ast.USub: "-", ast.Not: "not", ast.Invert: "~"}
_COMPARE: dict[type[ast.AST], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_OPERATORS: dict[type[ast.AST], str] = {
    **_BINARY,
    **_UNARY,
    **_COMPARE,
    ast.And: "and",
    ast.Or: "or",
}
_RESERVED = {"self", "torch", "F"}
_WHY_NOT: dict[type[ast.AST], str] = {
    ast.If: "an if statement is not allowed; use torch.where or an if-expression",
    ast.For: "loops are not allowed; tensors are computed whole",
    ast.While: "loops are not allowed; tensors are computed whole",
    ast.Subscript: "subscripts are not allowed",
    ast.Lambda: "lambda is not allowed",
    ast.NamedExpr: "':=' is not allowed; assign on a line of its own",
    ast.JoinedStr: "strings are not allowed",
    ast.Starred: "star arguments are not allowed",
    ast.Tuple: "tuples are not allowed; assign one name at a time",
    ast.List: "lists are not allowed",
    ast.FunctionDef: "a function inside the function is not allowed",
    ast.ClassDef: "classes are not allowed",
    ast.Expr: "a line that assigns nothing is not allowed",
    ast.Import: "only `import torch` and `import torch.nn.functional as F` may be imported, before "
    "anything else",
    ast.ImportFrom: "only `import torch` and `import torch.nn.functional as F` may be imported, "
    "before "
    "anything else",
}


def parse_objective(text: str, where: str = "proposal") -> ObjectiveSource:
    """The checked objective in `text`; `where` names the text in errors (a file, "proposal 3").

    Raises `SourceError` for everything that is not in the language that this module's docstring
    describes.
    """
    function = _single_function(text, where)
    checker = _Checker(where)
    checker.function(function)
    body = [
        checker.statement(node, last=node is function.body[-1])
        for node in _without_notes(function.body)
    ]
    function.body, function.returns = body, None
    form = "\n".join(canonical(node) for node in body)
    return ObjectiveSource(
        name=function.name,
        text=text,
        hash=hashlib.sha256(form.encode()).hexdigest(),
        inputs=tuple(name for name in INPUTS if name in checker.read),
        reads_beta="self.beta" in checker.read,
        tree=function,
        where=where,
    )


def read_objective(path: Path) -> ObjectiveSource:
    """The checked objective in a file. Raises `RecipeError` when it cannot be read or is not in the
    language."""
    try:
        return parse_objective(path.read_text(encoding="utf-8"), str(path))
    except SourceError as error:
        raise RecipeError(
            str(error), "an objective file holds one function and nothing beside it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the objective in {path} cannot be read: {error}", "name a file with one function"
        ) from None


def _single_function(text: str, where: str) -> ast.FunctionDef:
    """The one function of the text, imports dropped; refuses texts that are too long, do not parse
    or hold more."""
    if len(text) > MAX_CHARACTERS:
        raise SourceError(
            where, 1, f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are allowed"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of stray backslashes in a docstring, say
            module = ast.parse(text)
        _refuse_foreign_letters(text, where)
    except SyntaxError as error:
        raise SourceError(where, error.lineno or 1, f"this is not Python: {error.msg}") from None
    except (MemoryError, RecursionError):
        raise SourceError(where, 1, "the text is nested too deeply to be read") from None
    except (ValueError, tokenize.TokenError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            where, 1, f"this is not Python: {str(error) or type(error).__name__}"
        ) from None
    rest = list(_without_notes(module.body))
    if len(rest) == 1 and isinstance(rest[0], ast.FunctionDef):
        return rest[0]
    extra = next(
        (node for node in rest if not isinstance(node, ast.FunctionDef)),
        rest[1] if rest[1:] else None,
    )
    found = "found none" if extra is None else "found something else here"
    raise SourceError(
        where,
        getattr(extra, "lineno", 1),
        f"the text must be one function and nothing beside it; {found}",
    )


def _refuse_foreign_letters(text: str, where: str) -> None:
    """Python folds look-alike letters into ASCII while it parses, so that names are looked at as
    they were written."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and not token.string.isascii():
            raise SourceError(
                where, token.start[0], f"the name {token.string!r} has letters other than a-z"
            )


def _without_notes(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements after a leading docstring and the two imports that are tolerated."""
    leading = True
    tolerated = ({"torch": None}, {"torch.nn.functional": "F"})
    for index, node in enumerate(body):
        is_docstring = (
            index == 0
            and isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )
        is_import = (
            isinstance(node, ast.Import)
            and {alias.name: alias.asname for alias in node.names} in tolerated
        )
        leading = leading and (is_docstring or is_import)
        if not leading:
            yield node


class _Checker:
    """One walk down the function; `names` are those that have a value at the statement that is
    looked at."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.names = set(INPUTS)
        self.read: set[str] = set()
        self.nodes = 0
        self.expressions: dict[type[ast.AST], Callable[..., None]] = {
            ast.Constant: self.constant,
            ast.Name: self.name,
            ast.Attribute: self.attribute,
            ast.BinOp: self.binary,
            ast.UnaryOp: self.unary,
            ast.BoolOp: self.boolean,
            ast.Compare: self.compare,
            ast.IfExp: self.choice,
            ast.Call: self.call,
        }

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        raise SourceError(self.where, getattr(node, "lineno", 1), reason)

    def function(self, node: ast.FunctionDef) -> None:
        """Name, exact signature, no decorators, annotations that are no more than dotted names,
        number of lines."""
        self.legal_name(node, node.name)
        arguments = node.args
        names = tuple(argument.arg for argument in arguments.args)
        if arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
            self.refuse(node, f"the parameters must be exactly {SIGNATURE}, without '*' or '/'")
        if names != ("self", *INPUTS):
            self.refuse(node, f"the parameters must be exactly {SIGNATURE}")
        if arguments.defaults:
            self.refuse(node, "parameters must have no default values")
        if node.decorator_list:
            self.refuse(node.decorator_list[0], "decorators are not allowed")
        if getattr(node, "type_params", None):
            self.refuse(node, "type parameters are not allowed")
        for argument in arguments.args:
            self.annotation(argument.annotation)
            argument.annotation = None
        self.annotation(node.returns)
        if len(node.body) > MAX_STATEMENTS:
            self.refuse(
                node,
                f"the function has {len(node.body)} statements; at most {MAX_STATEMENTS} are "
                "allowed",
            )
        if not isinstance(node.body[-1], ast.Return):
            self.refuse(
                node.body[-1],
                self.why_not(node.body[-1], "the function must end with `return` and a value"),
            )

    def why_not(self, node: ast.AST, otherwise: str) -> str:
        return _WHY_NOT.get(type(node), otherwise)

    def annotation(self, node: ast.expr | None) -> None:
        """Annotations are dropped; only dotted names, None and quoted ones pass, so that nothing
        hides in them."""
        if node is None or (
            isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str))
        ):
            return
        while isinstance(node, ast.Attribute):
            self.legal_name(node, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            self.refuse(node, "an annotation must be a plain name such as torch.Tensor")
        self.legal_name(node, node.id)

    def legal_name(self, node: ast.AST, name: str) -> None:
        if "__" in name:
            self.refuse(
                node,
                f"the name {name[:MAX_NAME_CHARACTERS]!r} is not allowed: it has a double "
                "underscore",
            )
        if len(name) > MAX_NAME_CHARACTERS:
            self.refuse(
                node,
                f"a name has {len(name)} characters; at most {MAX_NAME_CHARACTERS} are allowed",
            )

    def statement(self, node: ast.stmt, last: bool) -> ast.stmt:
        """Checks one statement and gives it back without its annotation."""
        if isinstance(node, ast.Return):
            if not last:
                self.refuse(node, "there may be one `return` only, at the end")
            if node.value is None:
                self.refuse(node, "`return` must be followed by a value")
            self.expression(node.value, 1)
            return node
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            self.annotation(node.annotation)
            node = ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node)
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.AugAssign):
            target = node.target
            self.operator(node, node.op)
        else:
            self.refuse(
                node,
                self.why_not(
                    node, "only assignments to a single name and a final `return` are allowed"
                ),
            )
        if not isinstance(target, ast.Name):
            self.refuse(target, self.why_not(target, "only a plain name can be assigned to"))
        if target.id in _RESERVED:
            self.refuse(target, f"{target.id!r} cannot be assigned to")
        if isinstance(node, ast.AugAssign):
            self.name(target, 1)
        self.legal_name(target, target.id)
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Pow):
            self.exponent(node.value)
        self.expression(node.value, 1)
        self.names.add(target.id)
        return node

    def expression(self, node: ast.expr, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.refuse(
                node, f"the function is too long: more than {MAX_NODES} parts of expressions"
            )
        if depth > MAX_DEPTH:
            self.refuse(
                node, f"expressions are nested more than {MAX_DEPTH} deep; use several lines"
            )
        check = self.expressions.get(type(node))
        if check is None:
            self.refuse(
                node, self.why_not(node, f"{type(node).__name__} expressions are not allowed")
            )
        check(node, depth + 1)

    def constant(self, node: ast.Constant, depth: int) -> None:
        if isinstance(node.value, str | bytes):
            self.refuse(node, "strings are not allowed")
        if not isinstance(node.value, bool | int | float):
            self.refuse(node, f"the constant {ast.unparse(node)} is not a number")
        if not abs(node.value) <= MAX_CONSTANT:
            self.refuse(node, f"a constant is larger than {MAX_CONSTANT:g}")

    def name(self, node: ast.Name, depth: int) -> None:
        if node.id in _RESERVED:
            self.refuse(
                node,
                f"{node.id!r} is not a value; only self.beta and calls of torch.NAME and F.NAME "
                "are allowed",
            )
        self.legal_name(node, node.id)
        if node.id not in self.names:
            self.refuse(
                node,
                f"the name {node.id!r} has no value here; only the parameters and earlier "
                "assignments have",
            )
        self.read.add(node.id)

    def attribute(self, node: ast.Attribute, depth: int) -> None:
        self.legal_name(node, node.attr)
        if not (
            isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr == "beta"
        ):
            self.refuse(
                node,
                f"reading the attribute '.{node.attr}' is not allowed; only self.beta can be read",
            )
        self.read.add("self.beta")

    def operator(self, node: ast.AST, operator: ast.AST) -> None:
        if type(operator) not in _OPERATORS:
            self.refuse(node, f"the operator {type(operator).__name__} is not allowed")

    def binary(self, node: ast.BinOp, depth: int) -> None:
        self.operator(node, node.op)
        if isinstance(node.op, ast.Pow):
            self.exponent(node.right)
        self.expression(node.left, depth)
        self.expression(node.right, depth)

    def exponent(self, node: ast.expr) -> None:
        """No towers of powers, and no constant larger than `MAX_EXPONENT` in an exponent."""
        for part in ast.walk(node):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow):
                self.refuse(node, "an exponent must not itself hold a power")
            value = part.value if isinstance(part, ast.Constant) else 0
            if isinstance(value, int | float) and not abs(value) <= MAX_EXPONENT:
                self.refuse(node, f"an exponent is larger than {MAX_EXPONENT}")

    def unary(self, node: ast.UnaryOp, depth: int) -> None:
        self.expression(node.operand, depth)

    def boolean(self, node: ast.BoolOp, depth: int) -> None:
        for value in node.values:
            self.expression(value, depth)

    def compare(self, node: ast.Compare, depth: int) -> None:
        if len(node.ops) > 1:
            self.refuse(node, "chained comparisons are not allowed; join two with '&'")
        self.operator(node, node.ops[0])
        self.expression(node.left, depth)
        self.expression(node.comparators[0], depth)

    def choice(self, node: ast.IfExp, depth: int) -> None:
        for part in (node.test, node.body, node.orelse):
            self.expression(part, depth)

    def call(self, node: ast.Call, depth: int) -> None:
        """An operation of one of the three lists, with the parameters that the list names."""
        if isinstance(node.func, ast.Name):
            self.refuse(
                node,
                f"calling {node.func.id!r} is not allowed; only torch.NAME, F.NAME and x.NAME are "
                "called",
            )
        if not isinstance(node.func, ast.Attribute):
            self.refuse(node, "only torch.NAME, F.NAME and methods of a tensor can be called")
        self.legal_name(node.func, node.func.attr)
        owner, name = called(node)
        if name not in LISTS[owner]:
            written = f"{owner}.{name}" if owner else f"the method '.{name}'"
            self.refuse(node, f"{written} is not among the operations that are allowed")
        if not owner:
            self.expression(node.func.value, depth)
        self.parameters(node, LISTS[owner][name], 0 if owner else 1)
        for value in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.expression(value, depth)
        if name == "pow":
            self.exponent(arguments(node)["exponent"])

    def parameters(self, node: ast.Call, operation: Operation, offset: int) -> None:
        """Each parameter given once, none unknown, none missing, constants where there must be
        constants."""
        for value in node.args:
            if isinstance(value, ast.Starred):
                self.refuse(value, _WHY_NOT[ast.Starred])
        if any(keyword.arg is None for keyword in node.keywords):
            self.refuse(node, _WHY_NOT[ast.Starred])
        written = ast.unparse(node.func)[-MAX_NAME_CHARACTERS:]
        if len(node.args) + offset > len(operation.parameters):
            self.refuse(node, f"{written} has too many arguments")
        positional = operation.parameters[: offset + len(node.args)]
        given = (*positional, *(keyword.arg or "" for keyword in node.keywords))
        if unknown := [name for name in given if name not in operation.parameters]:
            self.refuse(node, f"{written} has no parameter {unknown[0]!r} here")
        if len(set(given)) < len(given):
            self.refuse(node, f"{written} is given a parameter twice")
        if missing := [
            name for name in operation.parameters[: operation.required] if name not in given
        ]:
            self.refuse(node, f"{written} needs its parameter {missing[0]!r}")
        for name in operation.literal & set(given):
            value = arguments(node)[name]
            if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
                value = value.operand
            if not isinstance(value, ast.Constant):
                self.refuse(node, f"the parameter {name!r} of {written} must be a constant")


def canonical(node: ast.AST) -> str:
    """One text for one tree, the same in every Python version; knows the checked language alone."""
    if isinstance(node, ast.Assign):
        return f"(= {canonical(node.targets[0])} {canonical(node.value)})"
    if isinstance(node, ast.AugAssign):
        return f"({_OPERATORS[type(node.op)]}= {canonical(node.target)} {canonical(node.value)})"
    if isinstance(node, ast.Return):
        assert node.value is not None
        return f"(return {canonical(node.value)})"
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return "self.beta"
    if isinstance(node, ast.Call):
        given = " ".join(
            f"{name}:{canonical(value)}" for name, value in sorted(arguments(node).items())
        )
        return f"({'.'.join(called(node))} {given})"
    if isinstance(node, ast.IfExp):
        return f"(if {canonical(node.test)} {canonical(node.body)} {canonical(node.orelse)})"
    operator, operands = _operation_of(node)
    return f"({operator} {' '.join(canonical(operand) for operand in operands)})"


def _operation_of(node: ast.AST) -> tuple[str, list[ast.expr]]:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)], [node.left, node.right]
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)], [node.operand]
    if isinstance(node, ast.BoolOp):
        return _OPERATORS[type(node.op)], node.values
    assert isinstance(node, ast.Compare), f"{type(node).__name__} is not in the language"
    return _OPERATORS[type(node.ops[0])], [node.left, node.comparators[0]]
