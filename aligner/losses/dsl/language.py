"""The operations that an objective written as text may call, by name, with their parameters.

`parser.py` checks a text against these lists, and `interpreter.py` holds an implementation for each
of them. No operation is here that could enlarge a tensor, change one in place, or reach anything
but numbers.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

INPUTS = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
)
SIGNATURE = f"(self, {', '.join(INPUTS)})"


@dataclass(frozen=True, slots=True)
class Operation:
    """Parameters of an operation in order; the first `required` must be given, those in `literal`
    as constants."""

    parameters: tuple[str, ...]
    required: int
    literal: frozenset[str]


def _operations(table: dict[str, str]) -> dict[str, Operation]:
    """`{"input, min?, dim?#": "NAME NAME"}`: `?` may be left out, `#` takes a constant and nothing
    else."""
    found = {}
    for signature, names in table.items():
        words = signature.split(", ")
        parameters = tuple(word.rstrip("?#") for word in words)
        literal = frozenset(parameter for parameter, word in zip(parameters, words) if "#" in word)
        operation = Operation(parameters, sum("?" not in word for word in words), literal)
        found.update(dict.fromkeys(names.split(), operation))
    return found


TORCH = _operations(
    {
        "input": "abs acos asin atan atanh asinh acosh ceil cos cosh erf erfc exp exp2 expm1 floor "
        "isfinite isinf isnan "
        "log log10 log1p log2 logical_not neg reciprocal relu round rsqrt sigmoid sign sin sinh "
        "sqrt square tan tanh "
        "amax amin median zeros_like ones_like",
        "input, other": "add sub mul div maximum minimum atan2 logaddexp eq ne lt le gt ge "
        "logical_and "
        "logical_or",
        "input, other?": "max min",
        "input, dim?#, keepdim?#": "sum mean",
        "input, dim?#, unbiased?#, keepdim?#, correction?#": "std var",
        "input, dim#": "softmax log_softmax logsumexp cumsum",
        "input, min?, max?": "clamp clip",
        "input, exponent": "pow",
        "input, q#": "quantile",
        "input, end, weight": "lerp",
        "input, fill_value": "full_like",
        "condition, input, other": "where",
        "data": "tensor",
    }
)
"""What may be called as `torch.NAME(...)`; the parameters are torch's own names."""

FUNCTIONAL = _operations(
    {
        "input": "logsigmoid sigmoid relu relu6 tanh silu gelu mish selu softsign tanhshrink "
        "hardsigmoid hardswish",
        "input, dim#": "softmax log_softmax",
        "input, beta?#, threshold?#": "softplus",
        "input, negative_slope?#": "leaky_relu",
        "input, alpha?#": "elu celu",
        "input, min_val?#, max_val?#": "hardtanh",
        "input, lambd?#": "softshrink",
    }
)
"""What may be called as `F.NAME(...)` or `torch.nn.functional.NAME(...)`."""

_NOT_METHODS = {"tensor", "where", "zeros_like", "ones_like", "full_like"}
METHODS: dict[str, Operation] = {
    **{name: operation for name, operation in TORCH.items() if name not in _NOT_METHODS},
    **_operations({"input": "detach float"}),
}
"""What may be called as `x.NAME(...)` on a tensor, which is then `input`."""

LANGUAGE = f"""One function with exactly the parameters {SIGNATURE}, of tensors of shape (N,); it returns a tensor of shape (N,).
Its body assigns to plain names and ends with one return. Expressions: numbers, + - * / ** , one comparison at a time,
& | ~ between comparisons, `a if c else b` and `and`, `or`, `not` of single values, and self.beta.
Calls: torch.NAME with NAME in {", ".join(TORCH)};
F.NAME with NAME in {", ".join(FUNCTIONAL)};
x.NAME on a tensor with NAME in {", ".join(METHODS)}.
Not allowed: if, for and while statements, indexing, strings, lists, tuples, lambda, other imports, other attributes."""
"""The language in words, for a proposing model's prompt."""

LISTS = {"torch": TORCH, "F": FUNCTIONAL, "": METHODS}
"""Owner of a call ("" for a method of a tensor) -> what it may call."""


def called(node: ast.Call) -> tuple[str, str]:
    """("torch" | "F" | "", name) of a call of an attribute; "" stands for a method of a tensor."""
    assert isinstance(node.func, ast.Attribute)
    owner = node.func.value
    if isinstance(owner, ast.Name) and owner.id in ("torch", "F"):
        return owner.id, node.func.attr
    path = []
    while isinstance(owner, ast.Attribute):
        path.append(owner.attr)
        owner = owner.value
    is_long_form = (
        isinstance(owner, ast.Name) and owner.id == "torch" and path == ["functional", "nn"]
    )
    return "F" if is_long_form else "", node.func.attr


def arguments(node: ast.Call) -> dict[str, ast.expr]:
    """Parameter name -> expression of a call that is in the lists, the tensor of a method as its
    first parameter."""
    owner, name = called(node)
    assert isinstance(node.func, ast.Attribute)
    values = node.args if owner else [node.func.value, *node.args]
    given = dict(zip(LISTS[owner][name].parameters, values))
    return {**given, **{keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}}
