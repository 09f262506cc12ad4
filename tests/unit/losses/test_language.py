"""What a proposed objective may say, that it is computed as it reads, and that nothing else gets
past the parser."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import aligner.losses.dsl.parser as language
from aligner.errors import RecipeError
from aligner.losses.dsl.interpreter import as_objective
from aligner.losses.dsl.language import FUNCTIONAL, INPUTS, LANGUAGE, METHODS, TORCH, arguments
from aligner.losses.dsl.parser import EvaluationError, SourceError, parse_objective, read_objective
from aligner.losses.types import PairLogps, Settings

HEAD = (
    "def proposed(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, "
    "reference_rejected_logps):"
)
RHO = (
    "(policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - "
    "reference_rejected_logps)"
)


def written(body: str, head: str = HEAD) -> str:
    return "\n".join([head, *("    " + line.strip() for line in body.strip().splitlines())]) + "\n"


def pairs(*rho: float, policy: Tensor | None = None) -> PairLogps:
    """Pairs with these rho; the policy's log-probabilities of the chosen answers, -20 unless
    given."""
    shape = (len(rho),)
    chosen = torch.full(shape, -20.0) if policy is None else policy
    rejected = torch.full(shape, -21.0)
    reference_chosen = torch.full(shape, -19.0)
    reference_rejected = torch.tensor(rho) - (chosen - rejected) + reference_chosen
    return PairLogps(
        chosen, rejected, reference_chosen, reference_rejected, torch.ones(shape), torch.ones(shape)
    )


# --- what is accepted, beside the same formula in float64 -----------------------------------------

LOSSES: dict[str, tuple[str, Callable[[Tensor, float], Tensor]]] = {}


def D(z: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(-z))


def H(z: Tensor) -> Tensor:
    return torch.where(z < 1, 1 - z, 0.0)


def X(z: Tensor) -> Tensor:
    return torch.exp(-z)


def s(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def loss(name: str, body: str, twin: Callable[[Tensor, float], Tensor]) -> None:
    """`body` may say RHO; `twin(rho, beta)` is the formula."""
    LOSSES[name] = (written(body.replace("RHO", RHO)), twin)


loss("dpo", "z = self.beta * (RHO)\nreturn -F.logsigmoid(z)", lambda rho, b: D(b * rho))
loss("hinge", "return torch.relu(1 - self.beta * (RHO))", lambda rho, b: H(b * rho))
loss("ipo", "return (RHO - 1 / (2 * self.beta)) ** 2", lambda rho, b: (rho - 0.5 / b) ** 2)
loss(
    "dbaql as discovered",
    """rho = RHO
    quantile = 0.5
    quantile += 0.01 * (torch.sigmoid(rho.mean()) - quantile)
    c = torch.sigmoid(rho.var())
    return c * -F.logsigmoid(0.05 * rho / 0.9) + (1 - c) * torch.exp(-0.05 * rho * 0.9)""",
    lambda rho, b: s(rho.var()) * D(0.05 * rho / 0.9) + (1 - s(rho.var())) * X(0.045 * rho),
)
loss(
    "dbaql corrected",
    """tau: float = 0.05
    z = self.beta * (RHO)
    c = torch.sigmoid((z / tau).var(unbiased=True))
    return c * -F.logsigmoid(z / 0.9) + (1 - c) * torch.exp(-z * 0.9)""",
    lambda rho, b: (
        s((b * rho / 0.05).var()) * D(b * rho / 0.9)
        + (1 - s((b * rho / 0.05).var())) * X(0.9 * b * rho)
    ),
)


def aql(rho: Tensor, b: float) -> Tensor:
    z = b * rho
    q = s(0.05 * (0.5 + 0.01 * (s((z / 0.05).mean()) - 0.5)) - z)
    return q * D(z) + (1 - q) * H(z)


loss(
    "aql as discovered",
    """rho = RHO
    m = 0.5 + 0.01 * (torch.sigmoid(rho.mean()) - 0.5)
    q = torch.sigmoid(0.05 * (m - rho))
    return q * -F.logsigmoid(0.05 * rho) + (1 - q) * torch.relu(1 - 0.05 * rho)""",
    lambda rho, b: aql(rho, 0.05),
)
loss(
    "aql corrected",
    """tau = 0.05
    z = self.beta * (RHO)
    m = 0.5 + 0.01 * (torch.sigmoid(torch.mean(z / tau)) - 0.5)
    q = torch.sigmoid(tau * m - z)
    return q * -F.logsigmoid(z) + (1 - q) * torch.clamp(1 - z, min=0)""",
    aql,
)


def padll(rho: Tensor, b: float) -> Tensor:
    return torch.where(rho < 0, 0.45, 0.9) * D(b * rho)


loss(
    "padll as discovered",
    """rho = RHO
    decay = 0.9
    scale = 1 - 0.5 * (rho < 0).float()
    return decay * scale * -F.logsigmoid(0.05 * rho)""",
    lambda rho, b: padll(rho, 0.05),
)
loss(
    "padll corrected",
    "rho = RHO\nreturn 0.9 * torch.where(rho < 0, 0.5, 1.0) * F.softplus(-self.beta * rho)",
    padll,
)


def aqfl(rho: Tensor, b: float) -> Tensor:
    z = b * rho
    gate = z / 0.05
    m1 = gate.std() * s(-gate).mean()
    m2 = m1 + 0.05 * (s(gate.mean()) - m1)
    r = s(0.1 * (gate - m2).abs())
    return r * D(z) + (1 - r) * H(z)


_AQFL = """m1 = torch.std(gate) * torch.mean(torch.sigmoid(-gate))
    m2 = m1 + 0.05 * (torch.sigmoid(gate.mean()) - m1)
    r = torch.sigmoid(0.1 * torch.abs(gate - m2))
    return r * -torch.nn.functional.logsigmoid(z) + (1 - r) * F.relu(1 - z)"""
loss("aqfl as discovered", f"gate = RHO\nz = 0.05 * gate\n{_AQFL}", lambda rho, b: aqfl(rho, 0.05))
loss("aqfl corrected", f"z = self.beta * (RHO)\ngate = z / 0.05\n{_AQFL}", aqfl)
loss(
    "cell as discovered",
    "rho = RHO\nreturn 0.5 * -F.logsigmoid(0.05 * rho) + 0.5 * torch.exp(-0.05 * rho)",
    lambda rho, b: (D(0.05 * rho) + X(0.05 * rho)) / 2,
)
loss(
    "cell corrected",
    "z = self.beta * (RHO)\nreturn (-F.logsigmoid(z) + (-z).exp()) / 2",
    lambda rho, b: (D(b * rho) + X(b * rho)) / 2,
)


def lrml(rho: Tensor, b: float) -> Tensor:
    z = b * rho
    return (1 - s(z / 0.05)) * D(z) + s(z / 0.05) * X(z)


loss(
    "lrml as discovered",
    """rho = RHO
    w = torch.sigmoid(rho)
    return (1 - w) * -F.logsigmoid(0.05 * rho) + w * torch.exp(-0.05 * rho)""",
    lambda rho, b: lrml(rho, 0.05),
)
loss(
    "lrml corrected",
    """z = self.beta * (RHO)
    w = (z / 0.05).sigmoid()
    return (1 - w) * torch.log1p(torch.exp(-z)) + w * torch.exp(-z)""",
    lrml,
)


def pfl(rho: Tensor, b: float) -> Tensor:
    policy_prefers = torch.full_like(rho, -20.0) + POLICY_SHIFT.to(rho) > -21.0
    return torch.where(policy_prefers, D(b * rho / 0.05) / 2, 2 * H(b * rho / 0.05))


_PFL = (
    "return torch.where(policy_chosen_logps > policy_rejected_logps, 0.5 * -F.logsigmoid(x), 2 * "
    "torch.relu(1 - x))"
)
loss("pfl as discovered", f"x = RHO\n{_PFL}", lambda rho, b: pfl(rho, 0.05))
loss("pfl corrected", f"x = self.beta * (RHO) / 0.05\n{_PFL}", pfl)
loss(
    "every kind of expression",
    """z = self.beta * (RHO)
    sharp = 2 if self.beta > 0.07 and not self.beta > 9 else 1
    near = (z > -1) & (z < 1) | torch.eq(z, 3)
    z = torch.maximum(torch.tensor(-50.0), z)
    z = torch.clamp(input=z, max=50, min=-torch.max(z.abs(), torch.tensor(50)))
    base = torch.where(~near, F.softplus(-z, beta=1), (+z).mul(-0.5).add(1).pow(exponent=2) / 2)
    return sharp * base + torch.zeros_like(z) * z.detach().softmax(dim=0) + torch.full_like(z, 0)""",
    lambda rho, b: (
        (2 if b > 0.07 else 1)
        * torch.where(
            (b * rho > -1) & (b * rho < 1) | (b * rho == 3), (1 - b * rho / 2) ** 2 / 2, D(b * rho)
        )
    ),
)

RHOS = (-60.0, -20.0, -7.25, -1.0, 0.0, 0.5, 3.0, 12.0, 55.0)
POLICY_SHIFT = torch.tensor([3.0, -4.0, 1.0, -2.0, 0.0, -3.0, 2.0, -1.5, 0.5])


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("name", LOSSES)
def test_an_accepted_objective_is_its_formula(name: str, beta: float) -> None:
    text, twin = LOSSES[name]
    found = as_objective(parse_objective(text))(
        pairs(*RHOS, policy=-20 + POLICY_SHIFT), Settings(beta=beta)
    )
    expected = twin(torch.tensor(RHOS, dtype=torch.float64), beta)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_its_gradient_is_that_of_its_formula(name: str) -> None:
    text, twin = LOSSES[name]
    given = pairs(*RHOS, policy=-20 + POLICY_SHIFT)
    reference = (
        given.reference_rejected.requires_grad_()
    )  # rho grows with it, and no policy gate looks at it
    as_objective(parse_objective(text))(given, Settings(beta=0.1)).sum().backward()
    rho = torch.tensor(RHOS, dtype=torch.float64, requires_grad=True)
    twin(rho, 0.1).sum().backward()
    assert reference.grad is not None
    assert rho.grad is not None
    smooth = (rho.grad * 0 + reference.grad.double()).isfinite() & (rho != 0)
    torch.testing.assert_close(
        reference.grad.double()[smooth], rho.grad[smooth], rtol=1e-4, atol=1e-5
    )


def test_half_precision_inputs_are_computed_in_float32() -> None:
    objective = as_objective(parse_objective(LOSSES["dpo"][0]))
    half = [vector.bfloat16() for vector in (torch.tensor([-3.0]), torch.tensor([-5.0]))]
    lengths = torch.ones(1)
    found = objective(PairLogps(*half, *half, lengths, lengths), Settings())
    assert found.dtype == torch.float32


# --- what identifies an objective -----------------------------------------------------------------


def test_annotations_docstring_comments_imports_and_the_name_do_not_change_the_hash() -> None:
    plain = parse_objective(LOSSES["lrml corrected"][0])
    dressed = (
        "import torch\nimport torch.nn.functional as F\n\n"
        "def log_ratio(self, policy_chosen_logps: torch.FloatTensor, policy_rejected_logps: "
        "'Tensor',\n"
        "    reference_chosen_logps, reference_rejected_logps: None) -> torch.Tensor:\n"
        "    '''Weights β with \\sigma.'''\n"
        "    import torch.nn.functional as F\n"
        f"    z: torch.Tensor = (self.beta) * ({RHO})  # the margin\n"
        "    w = (z/0.05).sigmoid()\n"
        "    return ((1 - w) * torch.log1p(input=torch.exp(-z))\n        + w * torch.exp(-z))\n"
    )
    found = parse_objective(dressed)
    assert found.hash == plain.hash
    assert (plain.name, found.name) == ("proposed", "log_ratio")
    assert found.text == dressed


def test_the_hash_is_the_same_in_every_version_of_python() -> None:
    form = "(return (- (F.logsigmoid input:(* self.beta policy_chosen_logps))))"
    text = written("return -F.logsigmoid(self.beta * policy_chosen_logps)")
    assert parse_objective(text).hash == hashlib.sha256(form.encode()).hexdigest()


def test_another_constant_operation_or_order_is_another_hash() -> None:
    bodies = [
        "2.0 * x.exp()",
        "2 * x.exp()",
        "x.exp() * 2.0",
        "2.0 * x.expm1()",
        "2.0 / x.exp()",
        "2.0 * F.relu(x)",
    ]
    texts = [
        written(f"x = policy_chosen_logps\nreturn {body}")
        for body in [*bodies, "2.0 * torch.relu(x)"]
    ]
    assert len({parse_objective(text).hash for text in texts}) == len(texts)


def test_the_inputs_that_are_read_are_known() -> None:
    found = parse_objective(written("x = policy_rejected_logps\nreturn policy_chosen_logps - x"))
    assert found.inputs == ("policy_chosen_logps", "policy_rejected_logps")
    assert not found.reads_beta
    assert parse_objective(LOSSES["pfl corrected"][0]).inputs == INPUTS
    assert parse_objective(LOSSES["dpo"][0]).reads_beta


# --- what is refused ------------------------------------------------------------------------------

x = "policy_chosen_logps"
HOSTILE_EXPRESSIONS = {
    "eval": "eval('1')",
    "exec": "exec('1')",
    "compile": "compile('1', '', 'eval')",
    "open": "open('/etc/passwd')",
    "input": "input()",
    "print": f"print({x})",
    "import function": "__import__('os')",
    "getattr": f"getattr({x}, 'data')",
    "setattr": f"setattr({x}, 'data', 1)",
    "globals": "globals()",
    "vars": "vars()",
    "type": f"type({x})",
    "breakpoint": "breakpoint()",
    "abs as a bare name": f"abs({x})",
    "range": "range(3)",
    "float of a string": "float('inf')",
    "class of a value": f"{x}.__class__",
    "class called": f"{x}.__class__()",
    "class of self": "self.__class__",
    "subclasses": f"{x}.__class__.__base__.__subclasses__()",
    "dunder method": f"{x}.__add__(1)",
    "reduce": f"{x}.__reduce_ex__(2)",
    "dictionary of self": "self.__dict__",
    "globals of F": "F.__globals__",
    "globals of a function": "F.relu.__globals__",
    "builtins": "__builtins__",
    "torch.load": "torch.load('x')",
    "torch.save": f"torch.save({x}, 'x')",
    "torch.ops": "torch.ops.load_library('x')",
    "torch.ops aten": f"torch.ops.aten.add({x}, 1)",
    "torch.hub": "torch.hub.load('a', 'b')",
    "torch.classes": "torch.classes.load_library('x')",
    "torch.os": "torch.os.system('true')",
    "torch.sys": "torch.sys.exit(1)",
    "torch.utils": "torch.utils.cpp_extension.load('x')",
    "torch.jit": "torch.jit.load('x')",
    "torch.compile": f"torch.compile({x})",
    "torch.from_file": "torch.from_file('x')",
    "torch.set_default": "torch.set_default_dtype(1)",
    "torch.manual_seed": "torch.manual_seed(0)",
    "torch.rand_like": f"torch.rand_like({x})",
    "torch.empty": "torch.empty(10)",
    "torch.zeros": "torch.zeros(1000000)",
    "torch.ones": "torch.ones(1000000, 1000000)",
    "torch.arange": "torch.arange(1000000)",
    "torch.eye": "torch.eye(100000)",
    "torch.full": "torch.full(1000000, 1)",
    "torch.outer": f"torch.outer({x}, {x})",
    "torch.cat": f"torch.cat([{x}, {x}])",
    "torch.stack": f"torch.stack(({x}, {x}))",
    "torch.cdist": f"torch.cdist({x}, {x})",
    "torch.vmap": f"torch.vmap({x})",
    "torch by itself": "torch",
    "F by itself": "F",
    "self by itself": "self",
    "a function as a value": "torch.exp",
    "a submodule as a value": "torch.nn",
    "the long form of another module": f"torch.nn.init.normal_({x})",
    "F.dropout": f"F.dropout({x})",
    "F.handle": f"F.handle_torch_function({x})",
    "F.torch": f"F.torch.exp({x})",
    "other attributes of self": "self.model",
    "assigning beta": "self.tau",
    "a method of self": "self.save()",
    "a method of beta": "self.beta.hex()",
    "numpy and a file": f"{x}.numpy().tofile('x')",
    "numpy": f"{x}.numpy()",
    "tolist": f"{x}.tolist()",
    "item": f"{x}.item()",
    "storage": f"{x}.untyped_storage()",
    "data": f"{x}.data",
    "grad": f"{x}.grad",
    "shape": f"{x}.shape",
    "transposed": f"{x}.T",
    "backward": f"{x}.sum().backward()",
    "hook": f"{x}.register_hook(print)",
    "requires_grad_": f"{x}.requires_grad_()",
    "in-place addition": f"{x}.add_(1)",
    "in-place exponential": f"{x}.exp_()",
    "in-place torch": f"torch.relu_({x})",
    "in-place F": f"F.relu({x}, inplace=True)",
    "out": f"torch.exp({x}, out={x})",
    "copy": f"{x}.copy_({x})",
    "resize": f"{x}.resize_(10)",
    "share": f"{x}.share_memory_()",
    "apply": f"{x}.apply_(1)",
    "map": f"{x}.map_({x}, 1)",
    "to": f"{x}.to(1)",
    "cuda": f"{x}.cuda()",
    "repeat": f"{x}.repeat(1000000)",
    "expand": f"{x}.expand(1000000, -1)",
    "unsqueeze": f"{x}.unsqueeze(0)",
    "view": f"{x}.view(-1, 1)",
    "matrix product": f"{x} @ {x}",
    "lambda": "lambda: 1",
    "lambda called": "(lambda: 1)()",
    "comprehension": f"[y for y in {x}]",
    "generator": f"sum(y for y in {x})",
    "set comprehension": f"{{y for y in {x}}}",
    "dict comprehension": f"{{y: 1 for y in {x}}}",
    "list": f"[{x}]",
    "tuple": f"({x}, 1)",
    "dict": "{1: 2}",
    "set": "{1}",
    "subscript": f"{x}[0]",
    "slice": f"{x}[::-1]",
    "subscript of the globals": "torch['os']",
    "string": "'text'",
    "bytes": "b'text'",
    "f-string": "f'{policy_chosen_logps}'",
    "format": "'{0.__class__}'.format(1)",
    "multiplied string": "'a' * 1000000",
    "walrus": f"(y := {x})",
    "star argument": f"torch.exp(*{x})",
    "double star": f"torch.exp(**{x})",
    "star value": f"[*{x}]",
    "await": f"await {x}",
    "yield": f"(yield {x})",
    "yield from": f"(yield from {x})",
    "ellipsis": "...",
    "none": "None",
    "complex": "1j",
    "is": f"{x} is {x}",
    "in": f"{x} in {x}",
    "chained comparison": f"0 < {x} < 1",
    "floor division": f"{x} // 2",
    "modulo": f"{x} % 2",
    "shift": "1 << 1000",
    "exclusive or": f"{x} ^ {x}",
    "huge constant": "10 ** 10 ** 10",
    "huge tower in brackets": f"{x} ** (10 ** 10)",
    "huge exponent": f"{x} ** 1000",
    "huge negative exponent": f"{x} ** -1000",
    "huge exponent in pow": f"torch.pow({x}, 1e5)",
    "huge exponent in the method": f"{x}.pow(1e5)",
    "tower in pow": f"{x}.pow(2 ** 2)",
    "huge integer": "9" * 3000,
    "integer beyond Python's limit": "9" * 5000,
    "large constant": "1e7",
    "infinite constant": "1e999",
    "deep brackets": "(" * 300 + x + ")" * 300,
    "deeper brackets": "(" * 4000,
    "deep minus": "-" * 300 + x,
    "deeper minus": "-" * 9000 + x,
    "deep calls": "torch.exp(" * 60 + x + ")" * 60,
    "deep attributes": x + ".a" * 4000,
    "deep called attributes": x + ".a" * 4000 + "()",
    "long sum": " + ".join([x] * 100),
    "wide and many": " + ".join(f"({' * '.join(['1'] * 30)})" for _ in range(38)),
    "unknown name": "unknown",
    "name used before it has a value": "later",
    "name with a double underscore": "my__name",
    "letters that fold into ASCII": "ｅval(1)",
    "folded method": f"{x}.ｅxp()",
    "greek name": "β",
    "unknown parameter": f"torch.exp({x}, device=1)",
    "parameter twice": f"torch.exp({x}, input={x})",
    "too many arguments": f"torch.exp({x}, {x})",
    "missing argument": "torch.exp()",
    "dim that is no constant": f"{x}.mean(dim={x})",
    "reduction as a string": f"F.softplus({x}, beta='a')",
    "call of a call": f"torch.exp({x})({x})",
    "call of a comparison": "(1 < 2)()",
}

LINE = f"return {x}"
HOSTILE_TEXTS = {
    "empty": "",
    "no Python": "this is not a program",
    "prose with code": "Here is the code:\n```python\n" + written(LINE) + "```",
    "null byte": written(LINE) + "\0",
    "half a surrogate": "# \ud800\n" + written(LINE),
    "an expression": "1 + 1",
    "a lambda": "proposed = lambda self: 1",
    "import os": "import os\n" + written(LINE),
    "import from": "from torch import load\n" + written(LINE),
    "import star": "from torch import *\n" + written(LINE),
    "torch under another name": "import torch as F\n" + written(LINE),
    "os among imports": "import torch, os\n" + written(LINE),
    "late import": written(LINE) + "import torch\n",
    "import os inside": written(f"import os\n{LINE}"),
    "late import inside": written(f"y = 1\nimport torch\n{LINE}"),
    "two functions": written(LINE) + written(LINE),
    "a call after it": written(LINE) + "proposed(1, 2, 3, 4, 5)\n",
    "a string after it": written(LINE) + "'x'\n",
    "a class": "class A:\n    pass\n",
    "a method": "class A:\n    def f(self):\n        return 1\n",
    "async": "async " + written(LINE),
    "decorator": "@exec\n" + written(LINE),
    "decorator that calls": "@exec('import os')\n" + written(LINE),
    "decorator of torch": "@torch.compile\n" + written(LINE),
    "default argument": written(
        LINE, HEAD.replace("reference_rejected_logps)", "reference_rejected_logps=open('x'))")
    ),
    "annotation that calls": written(LINE, HEAD.replace("self,", "self: eval('1'),")),
    "annotation with a dunder": written(LINE, HEAD.replace("self,", "self: torch.__class__,")),
    "return annotation that calls": written(LINE, HEAD.replace("):", ") -> exec('1'):")),
    "annotation with a subscript": written(LINE, HEAD.replace("self,", "self: list[eval],")),
    "annotation that calls inside": written(f"y: eval('1') = 1\n{LINE}"),
    "star in the signature": written(LINE, "def proposed(self, *args):"),
    "double star in the signature": written(LINE, HEAD.replace("):", ", **kwargs):")),
    "keyword-only": written(LINE, HEAD.replace("self,", "self, *,")),
    "positional-only": written(LINE, HEAD.replace("self,", "self, /,")),
    "other parameters": written("return a", "def proposed(self, a, b, c, d):"),
    "parameters in another order": written(
        LINE,
        HEAD.replace(
            "policy_chosen_logps, policy_rejected_logps",
            "policy_rejected_logps, policy_chosen_logps",
        ),
    ),
    "no self": written(LINE, HEAD.replace("self, ", "")),
    "one more parameter": written(LINE, HEAD.replace("):", ", beta):")),
    "dunder as a name": written(LINE, HEAD.replace("proposed", "__init__")),
    "no return": written("y = 1"),
    "empty return": written("return"),
    "pass": written("pass"),
    "docstring alone": written('"""Nothing."""'),
    "two returns": written(f"{LINE}\n{LINE}"),
    "if": HEAD + f"\n    if {x}.sum() > 0:\n        return 1\n    return {x}\n",
    "while": HEAD + f"\n    while True:\n        y = 1\n    return {x}\n",
    "for": HEAD + f"\n    for y in {x}:\n        z = y\n    return {x}\n",
    "with": HEAD + f"\n    with torch.no_grad():\n        z = 1\n    return {x}\n",
    "try": HEAD
    + f"\n    try:\n        z = 1\n    except Exception:\n        z = 2\n    return {x}\n",
    "raise": written(f"raise SystemExit\n{LINE}"),
    "assert": written(f"assert {x}\n{LINE}"),
    "delete": written(f"y = 1\ndel y\n{LINE}"),
    "global": written(f"global y\ny = 1\n{LINE}"),
    "nonlocal": written(f"nonlocal y\n{LINE}"),
    "function inside": HEAD + f"\n    def inner():\n        return 1\n    return {x}\n",
    "class inside": HEAD + f"\n    class A:\n        y = 1\n    return {x}\n",
    "match": HEAD + f"\n    match {x}:\n        case _:\n            y = 1\n    return {x}\n",
    "a bare call": written(f"torch.exp({x})\n{LINE}"),
    "a string in the middle": written(f"y = 1\n'text'\n{LINE}"),
    "unpacking": written(f"y, z = {x}, 1\n{LINE}"),
    "star unpacking": written(f"*y, z = {x}\n{LINE}"),
    "chained assignment": written(f"y = z = 1\n{LINE}"),
    "assigning an attribute": written(f"self.beta = 1\n{LINE}"),
    "assigning another attribute": written(f"{x}.data = 1\n{LINE}"),
    "adding to an attribute": written(f"self.beta += 1\n{LINE}"),
    "assigning an element": written(f"{x}[0] = 1\n{LINE}"),
    "assigning torch": written(f"torch = 1\n{LINE}"),
    "assigning F": written(f"F = {x}\n{LINE}"),
    "assigning self": written(f"self = {x}\n{LINE}"),
    "assigning a dunder": written(f"__builtins__ = 1\n{LINE}"),
    "adding to what has no value": written(f"y += 1\n{LINE}"),
    "declared without a value": written(f"y: torch.Tensor\n{LINE}"),
    "in-place tower": written(f"y = {x}\ny **= 10 ** 10\n{LINE}"),
    "in-place huge exponent": written(f"y = {x}\ny **= 1000\n{LINE}"),
    "in-place matrix product": written(f"y = {x}\ny @= y\n{LINE}"),
    "in-place shift": written(f"y = 1\ny <<= 1000\n{LINE}"),
    "too long": written(LINE) + "#" * 10_001,
    "too many statements": written("y = 1\n" * 100 + LINE),
    "too many parts": written(f"y = {' + '.join([x] * 30)}\n" * 30 + LINE),
    "a long name": written(LINE, HEAD.replace("proposed", "p" * 200)),
    "greek function": written(LINE, HEAD.replace("proposed", "βeta")),
    "greek variable": written(f"β = 1\n{LINE}"),
}
HOSTILE = {
    **{
        name: written(f"y = {expression}\nreturn {x}")
        for name, expression in HOSTILE_EXPRESSIONS.items()
    },
    **HOSTILE_TEXTS,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_or_outside_the_language_is_refused(name: str) -> None:
    with pytest.raises(SourceError) as refused:
        parse_objective(HOSTILE[name], where="proposal 7")
    sentence = str(refused.value)
    assert sentence.startswith("proposal 7, line ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 600


def test_the_table_of_hostile_texts_is_long_and_every_text_differs() -> None:
    assert len(set(HOSTILE.values())) == len(HOSTILE) > 200


def test_hostile_texts_differ_from_accepted_ones_in_their_one_line() -> None:
    assert parse_objective(written(f"y = 1\nreturn {x}")).inputs == (x,)
    assert parse_objective(written(LINE)).inputs == (x,)


def test_the_error_names_the_line() -> None:
    with pytest.raises(SourceError) as refused:
        parse_objective(written(f"y = 1\nz = y.__class__\nreturn {x}"), where="found.py")
    assert refused.value.line == 3
    assert str(refused.value) == (
        "found.py, line 3: the name '__class__' is not allowed: it has a double underscore."
    )


# --- what is wrong only once it is computed -------------------------------------------------------

BROKEN = {
    "mean": (
        f"return {x}.mean()",
        "the loss has shape () where (9,) is needed; return one value per pair",
    ),
    "keepdim": (
        f"return {x}.mean(dim=0, keepdim=True)",
        "the loss has shape (1,) where (9,) is needed",
    ),
    "number": ("return self.beta", "the loss is a number"),
    "boolean": (f"return {x} > 0", "the loss is of torch.bool"),
    "number for a tensor": (
        "return torch.exp(0.5)",
        "torch.exp needs a tensor for 'input', not the number 0.5",
    ),
    "method of a number": ("return self.beta.exp()", ".exp() needs a tensor for 'input'"),
    "condition of a vector": (f"return {x} if {x} > 0 else 0", "use torch.where"),
    "not of a vector": (f"return {x} * (not {x})", "use torch.where"),
    "subtracted mask": (f"return 1 - ({x} > 0)", "cannot be computed"),
    "wrong dimension": (
        f"return {x} - {x}.mean(dim=3)",
        "cannot be computed: Dimension out of range",
    ),
    "half a dimension": (
        f"return {x} - {x}.mean(dim=0.5)",
        "needs a whole number for 'dim', not 0.5",
    ),
    "division by zero": (f"return {x} * (1 / 0)", "cannot be computed: float division by zero"),
    "complex number": (f"return {x} * (-2) ** 0.5", "is not a finite number"),
    "overflow": (
        f"a = 10 ** 16\nb = a ** 16\nc = b ** 2\nreturn {x} * c",
        "'b ** 2' cannot be computed",
    ),
    "infinite number": (
        f"a = 10 ** 16\nb = a ** 16\nc = b * b\nreturn {x} * c",
        "'b * b' is not a finite number",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_type_or_shape_is_an_error_with_its_line(name: str) -> None:
    body, reason = BROKEN[name]
    objective = as_objective(parse_objective(written(body)))
    with pytest.raises(EvaluationError) as broken:
        objective(pairs(*RHOS), Settings())
    assert reason in str(broken.value)
    assert broken.value.line == (2 if "\n" not in body else 4)


def test_a_power_of_integers_does_not_grow_without_bound() -> None:
    body = "a = 10\n" + "a = a ** 10\n" * 12 + f"return {x} * a"
    with pytest.raises(EvaluationError, match=r"line 5: 'a \*\* 10' cannot be computed"):
        as_objective(parse_objective(written(body)))(pairs(*RHOS), Settings())


def test_inputs_of_different_shapes_are_an_error() -> None:
    given = replace(pairs(*RHOS), rejected=torch.zeros(3))
    with pytest.raises(EvaluationError, match="must have one shape"):
        as_objective(parse_objective(LOSSES["dpo"][0]))(given, Settings())


# --- the lists ------------------------------------------------------------------------------------


def _example(owner: str, name: str) -> str:
    """A call of the operation with all its parameters, none of them at its default."""
    table = {"torch": TORCH, "F": FUNCTIONAL, "y": METHODS}[owner]
    values = {
        "dim": "0",
        "q": "0.25",
        "keepdim": "False",
        "unbiased": "False",
        "condition": "y > 0.5",
        "min": "0.1",
    }
    values |= {
        "max": "0.7",
        "exponent": "2",
        "weight": "0.25",
        "fill_value": "3",
        "beta": "2.0",
        "threshold": "10",
    }
    values |= {
        "negative_slope": "0.3",
        "alpha": "0.5",
        "min_val": "0.2",
        "max_val": "0.6",
        "lambd": "0.1",
    }
    parameters = [p for p in table[name].parameters if p != "correction"]
    given = [
        f"{p}={values[p]}" if p in values else "y" if i == 0 else "w"
        for i, p in enumerate(parameters)
    ]
    given = ["y > 0.5" if g.startswith("condition") else g for g in given]
    given = ["0.5"] if name == "tensor" else given
    return f"{owner}.{name}({', '.join(given[1:] if owner == 'y' else given)})"


@pytest.mark.parametrize(
    "call",
    [
        _example(owner, name)
        for owner, t in (("torch", TORCH), ("F", FUNCTIONAL), ("y", METHODS))
        for name in t
    ],
)
def test_every_operation_in_the_lists_is_torchs_own(call: str) -> None:
    """Torch itself computes the same call, on vectors in (0, 1), where all of them are defined."""
    body = (
        f"y = {x}\nw = policy_rejected_logps\nresult = {call}\nreturn torch.where(y > 9, y, result)"
    )
    y, w = torch.linspace(0.1, 0.9, 9), torch.linspace(0.8, 0.2, 9)
    if call.split(".")[1].startswith("acosh"):
        y = y + 1
    ones = torch.ones(9)
    found = as_objective(parse_objective(written(body)))(
        PairLogps(y, w, w, w, ones, ones), Settings()
    )
    known = {"torch": torch, "F": torch.nn.functional, "y": y, "w": w, "__builtins__": {}}
    expected = eval(call, known).float().expand(9)
    torch.testing.assert_close(found, expected)


def test_no_operation_works_in_place_or_leaves_the_graph_but_detach() -> None:
    names = {*TORCH, *FUNCTIONAL, *METHODS}
    assert not [name for name in names if name.endswith("_")]
    assert not names & {
        "save",
        "load",
        "compile",
        "numpy",
        "backward",
        "apply_",
        "map_",
        "to",
        "set_",
        "item",
        "repeat",
    }


def test_arguments_are_named_by_torchs_parameters() -> None:
    call = ast.parse("y.clamp(0, max=1)", mode="eval").body
    assert isinstance(call, ast.Call)
    assert {name: ast.unparse(value) for name, value in arguments(call).items()} == {
        "input": "y",
        "min": "0",
        "max": "1",
    }


def test_an_objective_file_is_read_and_what_is_wrong_with_it_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(LOSSES["dpo"][0])
    (tmp_path / "bad.py").write_text("import os\n")
    assert read_objective(tmp_path / "good.py").hash == parse_objective(LOSSES["dpo"][0]).hash
    for name, reason in (("bad.py", "line 1"), ("absent.py", "cannot be read")):
        with pytest.raises(RecipeError, match=f"{name}.*{reason}"):
            read_objective(tmp_path / name)


def test_the_language_is_told_with_every_operation() -> None:
    assert all(name in LANGUAGE for name in {*TORCH, *FUNCTIONAL, *METHODS})


def test_reading_an_objective_needs_no_torch() -> None:
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('source', sys.argv[1])\n"
        "module = sys.modules['source'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.parse_objective(sys.argv[2]).name, 'torch' in sys.modules)\n"
    )
    path = str(Path(language.__file__))
    found = subprocess.run(
        [sys.executable, "-c", code, path, LOSSES["dpo"][0]], capture_output=True, text=True
    )
    assert found.stdout.split() == ["proposed", "False"], found.stderr
