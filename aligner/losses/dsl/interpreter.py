"""Evaluating a checked objective: a walk over its tree with torch's operations, without Python's
exec, eval or compile.

The evaluator knows the nodes and operations of the language of `parser.py` and nothing else;
whatever else stood in a tree would fail an assertion here. A value is a float32 tensor, a boolean
tensor, or a Python number; numbers are floats, so that no power of integers can grow without bound,
and a number that is not finite is an error.

What it does not do: judge the objective (`checks.py`), or bound its time (`sandboxed.py`; without
loops it is one pass over at most `parser.MAX_NODES` operations).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from aligner.losses.dsl.language import FUNCTIONAL, INPUTS, METHODS, TORCH
from aligner.losses.dsl.language import arguments as call_arguments
from aligner.losses.dsl.language import called as called_operation
from aligner.losses.dsl.parser import EvaluationError, ObjectiveSource
from aligner.losses.types import Objective, PairLogps, Settings

Value = Tensor | float | bool

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

_WHOLE = {"dim", "correction"}  # parameters that are whole numbers
_MAY_BE_NUMBERS = {"other", "min", "max", "exponent", "fill_value", "data", "weight"}
_WHERE_NUMBERS = {"input", "other"}
_OUR_OWN = {
    "where",
    "maximum",
    "minimum",
    "max",
    "min",
    "tensor",
    "full_like",
    "clamp",
    "clip",
}  # see `our_own`


def as_objective(source: ObjectiveSource) -> Objective:
    """The function that `source` describes: (PairLogps, Settings) -> loss of each pair, shape (B,),
    float32.

    Of the settings only `beta` reaches it, as `self.beta`. Raises `EvaluationError`, with the line,
    where an operation meets a wrong type or shape, and where the result is not one float32 number
    per pair.
    """

    def objective(pairs: PairLogps, settings: Settings) -> Tensor:
        return _Evaluation(source, pairs, settings).run()

    objective.__name__ = source.name
    return objective


class _Evaluation:
    """One evaluation: the variables by name, `self.beta`, and the line that is looked at, for
    errors."""

    def __init__(self, source: ObjectiveSource, pairs: PairLogps, settings: Settings) -> None:
        vectors = (pairs.chosen, pairs.rejected, pairs.reference_chosen, pairs.reference_rejected)
        shapes = [tuple(vector.shape) for vector in vectors]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise EvaluationError(
                source.where,
                source.tree.lineno,
                f"the four inputs must have one shape (N,), not {shapes}",
            )
        self.source = source
        self.variables: dict[str, Value] = {
            name: vector.float() for name, vector in zip(INPUTS, vectors)
        }
        self.beta = float(settings.beta)
        self.shape, self.device = shapes[0], pairs.chosen.device

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        raise EvaluationError(self.source.where, getattr(node, "lineno", 1), reason)

    def run(self) -> Tensor:
        for node in self.source.tree.body:
            if isinstance(node, ast.Return):
                assert node.value is not None
                return self.result(node, self.value(node.value))
            assert isinstance(node, ast.Assign | ast.AugAssign)
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            assert isinstance(target, ast.Name)
            value = self.value(node.value)
            if isinstance(node, ast.AugAssign):
                value = self.combine(node, _BINARY[type(node.op)], self.variables[target.id], value)
            self.variables[target.id] = value
        raise AssertionError("a checked objective ends with a return")

    def result(self, node: ast.AST, value: Value) -> Tensor:
        if not isinstance(value, Tensor):
            self.refuse(
                node,
                f"the loss is a number, not a tensor with one value per pair, shape {self.shape}",
            )
        if tuple(value.shape) != self.shape:
            hint = "; return one value per pair, not their mean or sum" if value.dim() == 0 else ""
            self.refuse(
                node, f"the loss has shape {tuple(value.shape)} where {self.shape} is needed{hint}"
            )
        if value.dtype != torch.float32:
            self.refuse(node, f"the loss is of {value.dtype}, not torch.float32")
        return value

    def value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, bool | int | float)
            return node.value if isinstance(node.value, bool) else float(node.value)
        if isinstance(node, ast.Name):
            return self.variables[node.id]
        if isinstance(node, ast.Attribute):
            assert isinstance(node.value, ast.Name)
            assert (node.value.id, node.attr) == ("self", "beta")
            return self.beta
        if isinstance(node, ast.BinOp):
            return self.combine(
                node, _BINARY[type(node.op)], self.value(node.left), self.value(node.right)
            )
        if isinstance(node, ast.Compare):
            left, right = self.value(node.left), self.value(node.comparators[0])
            return self.combine(node, _COMPARE[type(node.ops[0])], left, right)
        if isinstance(node, ast.UnaryOp):
            return self.unary(node)
        if isinstance(node, ast.BoolOp):
            return self.boolean(node)
        if isinstance(node, ast.IfExp):
            return self.value(node.body if self.truth(node.test) else node.orelse)
        assert isinstance(node, ast.Call), f"{type(node).__name__} is not in the language"
        return self.call(node)

    def guarded(
        self, node: ast.AST, function: Callable[..., Any], *values: Any, **named: Any
    ) -> Value:
        """Calls it; what Python or torch has against the operands becomes an error with the
        line."""
        try:
            value = function(*values, **named)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
            self.refuse(node, f"{ast.unparse(node)[:80]!r} cannot be computed: {reason}")
        if isinstance(value, Tensor | bool):
            return value
        if not isinstance(value, float | int) or not math.isfinite(value):
            self.refuse(node, f"{ast.unparse(node)[:80]!r} is not a finite number")
        return float(value)

    def combine(
        self, node: ast.AST, function: Callable[[Any, Any], Any], left: Value, right: Value
    ) -> Value:
        return self.guarded(node, function, left, right)

    def unary(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return not self.truth(node.operand)
        return self.guarded(node, _UNARY[type(node.op)], self.value(node.operand))

    def boolean(self, node: ast.BoolOp) -> bool:
        """`and`, `or`: of single values, to a bool; stops where Python stops."""
        wanted = isinstance(node.op, ast.Or)
        return wanted if any(self.truth(value) is wanted for value in node.values) else not wanted

    def truth(self, node: ast.expr) -> bool:
        """The condition of an if-expression, `not`, `and`, `or`; of a vector there is none,
        whatever its length."""
        value = self.value(node)
        if isinstance(value, Tensor) and value.dim():
            self.refuse(
                node, "a whole tensor is neither true nor false; use torch.where, '&', '|' or '~'"
            )
        return bool(value)

    def call(self, node: ast.Call) -> Value:
        owner, name = called_operation(node)
        known = (TORCH if owner == "torch" else FUNCTIONAL if owner else METHODS)[name]
        given = call_arguments(node)
        values = {
            parameter: self.value(given[parameter])
            for parameter in known.parameters
            if parameter in given
        }
        number_allowed = known.literal | (_WHERE_NUMBERS if name == "where" else _MAY_BE_NUMBERS)
        for parameter, value in values.items():
            written = f"{owner}.{name}" if owner else f".{name}()"
            if not isinstance(value, Tensor) and parameter not in number_allowed:
                self.refuse(
                    node, f"{written} needs a tensor for {parameter!r}, not the number {value}"
                )
            if parameter in _WHOLE and value != int(value):
                self.refuse(node, f"{written} needs a whole number for {parameter!r}, not {value}")
        return self.guarded(node, self.operation, owner, name, values)

    def operation(self, owner: str, name: str, values: dict[str, Any]) -> Value:
        """The operation itself. Ours take numbers beside tensors, where torch takes the two only as
        one type."""
        if owner != "F" and name in _OUR_OWN:
            return self.our_own(name, values)
        (_, first), *rest = values.items()
        if name in ("detach", "float"):
            return getattr(first, name)()
        named = {key: int(value) if key in _WHOLE else value for key, value in rest}
        return getattr(F if owner == "F" else torch, name)(first, **named)

    def our_own(self, name: str, values: dict[str, Any]) -> Value:
        if name == "tensor":
            return self.tensor(values["data"])
        if name == "full_like":
            return torch.ones_like(values["input"], dtype=torch.float32) * values["fill_value"]
        if name == "where":
            return torch.where(
                values["condition"], self.tensor(values["input"]), self.tensor(values["other"])
            )
        if name in ("clamp", "clip"):
            bounds = {key: value for key, value in values.items() if key != "input"}
            if any(isinstance(bound, Tensor) for bound in bounds.values()):
                bounds = {key: self.tensor(bound) for key, bound in bounds.items()}
            return torch.clamp(values["input"], **bounds)
        if "other" not in values:
            return torch.amax(values["input"]) if name == "max" else torch.amin(values["input"])
        pair = values["input"], self.tensor(values["other"])
        return torch.maximum(*pair) if name in ("max", "maximum") else torch.minimum(*pair)

    def tensor(self, value: Value) -> Tensor:
        if isinstance(value, Tensor):
            return value
        dtype = torch.bool if isinstance(value, bool) else torch.float32
        return torch.tensor(value, dtype=dtype, device=self.device)
