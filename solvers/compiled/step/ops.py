"""Every operation of the compiled loop that works entry by entry: one row each.

A row says what an operation is called in C++, torch and Triton, what its derivative is, and which function of torch it
is. Torch's other functions are formulas made of these. To add one, write a row here (or a formula, where the operations
that are there will do): recording, differentiation, all three kinds of generated code and the equality test that walks
these tables follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from solvers.compiled.step.refused import Refused

#: What a product, a sum or a maximum over channels, and a sum over samples have in common: all channels (or samples) of
#: their argument are needed before their result is there.
OVER_CHANNELS = ("csum", "cmax")
COLLECTIVE = ("mm", "bsum", *OVER_CHANNELS)


class Term:
    """A value in a formula: arithmetic and comparisons make new values of the graph.

    Attributes:
        graph: makes the values (a `step.ir.Graph`).
        node: the value.
    """

    def __init__(self, graph: Any, node: Any) -> None:
        self.graph, self.node = graph, node

    def of(self, name: str, *others: Term | float, data: Any = None) -> Term:
        """The operation `name` of this value and others."""
        nodes = [self.node, *(self._term(other).node for other in others)]
        return Term(self.graph, self.graph.pointwise(name, *nodes, data=data))

    def _term(self, x: Term | float) -> Term:
        return x if isinstance(x, Term) else Term(self.graph, self.graph.const(x))

    @property
    def number(self) -> float | None:
        """The number it is, if it is one."""
        return self.node.data if self.node.op == "const" else None

    def __add__(self, other: Term | float) -> Term:
        return self.of("add", other)

    def __sub__(self, other: Term | float) -> Term:
        return self.of("sub", other)

    def __mul__(self, other: Term | float) -> Term:
        return self.of("mul", other)

    def __truediv__(self, other: Term | float) -> Term:
        return self.of("div", other)

    def __radd__(self, other: float) -> Term:
        return self._term(other) + self

    def __rsub__(self, other: float) -> Term:
        return self._term(other) - self

    def __rmul__(self, other: float) -> Term:
        return self._term(other) * self

    def __rtruediv__(self, other: float) -> Term:
        return self._term(other) / self

    def __neg__(self) -> Term:
        return self.of("neg")

    def __lt__(self, other: Term | float) -> Term:
        return self.of("lt", other)

    def __le__(self, other: Term | float) -> Term:
        return self.of("le", other)

    def __gt__(self, other: Term | float) -> Term:
        return self.of("gt", other)

    def __ge__(self, other: Term | float) -> Term:
        return self.of("ge", other)

    def equals(self, other: Term | float) -> Term:
        """Whether both are the same number."""
        return self.of("eq", other)

    def where(self, yes: Term | float, no: Term | float) -> Term:
        """One value where this is true, another where it is false."""
        return self.of("where", yes, no)


#: The gradients of the arguments from that of the result, the result and the arguments; None where none passes.
Derivative = Callable[..., "tuple[Term | None, ...]"]


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        cpp, torch, triton: how it is written in each language: `{0}`, `{1}` .. are its arguments, `{real}` the
            type of a number in C++, `{data}` the number a power is raised to.
        derivative: see `Derivative`.
        aten: names of the functions of torch that are this one.
        fold: its value for numbers that are known when the code is written.
        dear: costs more than the memory to keep its result, so that it is never computed twice.
        predicate: is true or false, and has no gradient.
        alike: Triton takes its arguments only as values of the same type, not as bare numbers.
    """

    cpp: str
    torch: str
    triton: str
    derivative: Derivative | None = None
    aten: tuple[str, ...] = ()
    fold: Callable[..., float] | None = None
    dear: bool = False
    predicate: bool = False
    alike: bool = False


def _infix(sign: str, derivative: Derivative, fold: Callable[..., float], *aten: str) -> Operation:
    return Operation(f"({{0}}) {sign} ({{1}})", f"{{0}} {sign} {{1}}", f"{{0}} {sign} {{1}}", derivative, aten, fold)


def _predicate(sign: str, cpp: str, *aten: str) -> Operation:
    text = f"{{0}} {sign} {{1}}"
    return Operation(f"({{0}}) {cpp} ({{1}})", text, text, aten=aten, predicate=True)


def _function(
    cpp: str,
    triton: str,
    derivative: Derivative,
    *aten: str,
    fold: Callable[[float], float] | None = None,
    dear: bool = True,
) -> Operation:
    """A function of one argument; what begins with v is a template of `vector_math.h`."""
    call = f"{cpp}<{{real}}>" if cpp.startswith("v") else f"std::{cpp}"
    return Operation(
        f"{call}({{real}}({{0}}))", f"torch.{aten[0]}({{0}})", f"{triton}({{0}})", derivative, aten, fold, dear
    )


def _extremum(name: str, triton: str, sign: str) -> Operation:
    """The larger or smaller of two; where both are the same, each gets half of the gradient, as in torch."""

    def derivative(g: Term, _: Term, a: Term, b: Term) -> tuple[Term, Term]:
        same, half = a.equals(b), 0.5 * g
        return tuple(same.where(half, x.of(sign, y).where(g, 0.0)) for x, y in ((a, b), (b, a)))  # type: ignore[return-value]

    cpp = f"v{name}<{{real}}>({{real}}({{0}}), {{real}}({{1}}))"
    torch_text = f"torch.{name}imum({{0}}, {{1}})"
    return Operation(cpp, torch_text, f"{triton}({{0}}, {{1}})", derivative, (f"{name}imum",), alike=True)


def _half_normal(x: Term) -> Term:
    """2 / sqrt(pi) exp(-x^2), the derivative of erf."""
    return 1.1283791670955126 * (-(x * x)).of("exp")


def _division(g: Term, y: Term, _: Term, b: Term) -> tuple[Term, ...]:
    share = g / b
    return share, -(share * y)


OPERATIONS: dict[str, Operation] = {
    "add": _infix("+", lambda g, y, a, b: (g, g), lambda a, b: a + b, "add"),
    "sub": _infix("-", lambda g, y, a, b: (g, -g), lambda a, b: a - b, "sub"),
    "mul": _infix("*", lambda g, y, a, b: (g * b, g * a), lambda a, b: a * b, "mul"),
    "div": _infix("/", _division, lambda a, b: a / b),
    "neg": Operation("-({0})", "torch.neg({0})", "-{0}", lambda g, y, a: (-g,), ("neg",), lambda a: -a),
    "abs": _function("fabs", "tl.abs", lambda g, y, a: (g * a.of("sign"),), "abs", fold=abs, dear=False),
    "sqrt": _function("sqrt", "tl.sqrt", lambda g, y, a: (g / (2 * y),), "sqrt", fold=math.sqrt, dear=False),
    "sign": _function("vsign", "sign", lambda g, y, a: (None,), "sign", dear=False),
    "floor": _function("floor", "tl.floor", lambda g, y, a: (None,), "floor", dear=False),
    "tanh": _function("vtanh", "tanh", lambda g, y, a: (g * (1 - y * y),), "tanh", fold=math.tanh),
    "sigmoid": _function("vsigmoid", "sigmoid", lambda g, y, a: (g * (y * (1 - y)),), "sigmoid"),
    "exp": _function("vexp", "tl.exp", lambda g, y, a: (g * y,), "exp", fold=math.exp),
    "expm1": _function("vexpm1", "expm1", lambda g, y, a: (g * (y + 1),), "expm1", fold=math.expm1),
    "log": _function("vlog", "tl.log", lambda g, y, a: (g / a,), "log", fold=math.log),
    "log1p": _function("vlog1p", "log1p", lambda g, y, a: (g / (a + 1),), "log1p", fold=math.log1p),
    "sin": _function("sin", "tl.sin", lambda g, y, a: (g * a.of("cos"),), "sin", fold=math.sin),
    "cos": _function("cos", "tl.cos", lambda g, y, a: (-(g * a.of("sin")),), "cos", fold=math.cos),
    "atan": _function("atan", "atan", lambda g, y, a: (g / (1 + a * a),), "atan", fold=math.atan),
    "erf": _function("erf", "tl.erf", lambda g, y, a: (g * _half_normal(a),), "erf", fold=math.erf),
    # With a number for its exponent, which is no argument. What it is in Triton: `triton.tiling.raised`.
    "pow": Operation(
        "std::pow({real}({0}), {real}({data}))",
        "torch.pow({0}, {data})",
        "",
        lambda g, y, a: (g * (y.node.data * a.of("pow", data=y.node.data - 1)),),
        dear=True,
    ),
    "max": _extremum("max", "larger", "gt"),
    "min": _extremum("min", "smaller", "lt"),
    "where": Operation(
        "({0}) ? {real}({1}) : {real}({2})",
        "torch.where({0}, {1}, {2})",
        "tl.where({0}, {1}, {2})",
        lambda g, y, c, a, b: (None, c.where(g, 0.0), c.where(0.0, g)),
        ("where",),
        alike=True,
    ),
    "lt": _predicate("<", "<", "lt"),
    "le": _predicate("<=", "<=", "le"),
    "gt": _predicate(">", ">", "gt"),
    "ge": _predicate(">=", ">=", "ge"),
    "eq": _predicate("==", "==", "eq"),
    "ne": _predicate("!=", "!=", "ne"),
    "and": _predicate("&", "&&", "logical_and", "bitwise_and"),
    "or": _predicate("|", "||", "logical_or", "bitwise_or"),
    "not": Operation(
        "!({0})", "torch.logical_not({0})", "{0} == 0", aten=("logical_not", "bitwise_not"), predicate=True
    ),
}

DEAR = frozenset(name for name, row in OPERATIONS.items() if row.dear)
PREDICATES = frozenset(name for name, row in OPERATIONS.items() if row.predicate)


# Formulas. A value that a condition leaves out must be finite all the same: zero times its derivative would be NaN.


def _power(a: Term, b: Term) -> Term:
    exponent = b.number
    if exponent is None:
        raise Refused("a power whose exponent is computed")
    if exponent == 0:
        return a._term(1.0)
    if exponent in (-1, -2):
        return 1.0 / a.of("pow", data=-exponent)
    return a.of("pow", data=exponent)


def _quotient(a: Term, b: Term, rounding_mode: str | None = None) -> Term:
    if rounding_mode is not None:
        raise Refused("a division that rounds")
    return a / b


def _gelu(a: Term, approximate: str = "none") -> Term:
    """x Phi(x), or its approximation by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (a + 0.044715 * (a * a * a))
        return 0.5 * a * (1 + inner.of("tanh"))
    return 0.5 * a * (1 + (a * math.sqrt(0.5)).of("erf"))


def _elu(a: Term, alpha: Term | float = 1.0, scale: Term | float = 1.0, input_scale: Term | float = 1.0) -> Term:
    """Also selu, by its factors."""
    below = ((a > 0).where(0.0, a) * input_scale).of("expm1")
    return (a > 0).where(a * scale, below * alpha * scale)


def _celu(a: Term, alpha: Term | float = 1.0) -> Term:
    return _elu(a, alpha, 1.0, 1.0 / alpha)


def _sinc(a: Term) -> Term:
    """sin(pi x) / (pi x), and 1 at zero."""
    zero = a.equals(0.0)
    angle = math.pi * zero.where(1.0, a)
    return zero.where(1.0, angle.of("sin") / angle)


def _softplus(a: Term, beta: Term | float = 1.0, threshold: Term | float = 20.0) -> Term:
    scaled = a * beta
    beyond = scaled > threshold
    return beyond.where(a, beyond.where(0.0, scaled).of("exp").of("log1p") / beta)


def _hardtanh(a: Term, low: Term | float = -1.0, high: Term | float = 1.0) -> Term:
    return (a <= low).where(low, (a >= high).where(high, a))


#: Functions of torch made of the operations above.
FORMULAS: dict[str, Callable[..., Term]] = {
    "pow": _power,
    "div": _quotient,
    "reciprocal": lambda a: 1.0 / a,
    "rsqrt": lambda a: 1.0 / a.of("sqrt"),
    "square": lambda a: a * a,
    "tan": lambda a: a.of("sin") / a.of("cos"),
    "relu": lambda a: (a <= 0).where(0.0, a),
    "leaky_relu": lambda a, slope=0.01: (a > 0).where(a, a * slope),
    "hardtanh": _hardtanh,
    "hardswish": lambda a: a * (_hardtanh(a, -3.0, 3.0) / 6 + 0.5),
    "elu": _elu,
    "celu": _celu,
    "sinc": _sinc,
    "gelu": _gelu,
    "silu": lambda a: a * a.of("sigmoid"),
    "softplus": _softplus,
}


def _plain(name: str) -> Callable[..., Term]:
    def apply(first: Term, *others: Term, alpha: float = 1) -> Term:
        # Only torch's add and sub have an `alpha`, which multiplies what is added.
        scaled = others if alpha == 1 else (alpha * others[0],)
        return first.of(name, *scaled)

    return apply


#: What makes the value of every function of torch that works entry by entry, by its aten name.
POINTWISE: dict[str, Callable[..., Term]] = {
    **{aten: _plain(name) for name, row in OPERATIONS.items() for aten in row.aten},
    **FORMULAS,
}
