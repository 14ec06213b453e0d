"""How a GPU kernel lies on the device, what the emitter hands on, and small things it writes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from solvers.compiled.passes.source import Source
from solvers.compiled.step.ops import OVER_CHANNELS
from solvers.compiled.step.plan import Plan
from solvers.compiled.step.refused import Refused


@dataclass(frozen=True)
class Tiling:
    """How a kernel lies on the device.

    Attributes:
        rows: samples of one program.
        piece: most channels of one register tensor.
        depth: rows of a matrix that are taken at a time where matrices are streamed; 0 holds them on the chip.
        warps: of one program.
        stages: of the software pipeline that reads matrices ahead.
        kept: numbers of the matrices that stay on the chip where the others are streamed.
    """

    rows: int
    piece: int
    depth: int
    warps: int
    stages: int
    kept: int = 0


@dataclass
class GpuSource(Source):
    """What the emitter made.

    Attributes:
        tilings: of the forward and the backward kernel.
        tiles: number of programs that share the channels, of each kernel.
        doubles: pointers to numbers that are kept in double precision, of each kernel.
        outs: the gradients of outputs that the backward kernel can be given, by the name of the flag that says so.
        half: matrices are in bfloat16.
    """

    tilings: tuple[Tiling, Tiling]
    tiles: tuple[int, int]
    doubles: tuple[frozenset[Hashable], frozenset[Hashable]]
    outs: dict[str, Hashable]
    half: bool


def separable(plan: Plan, width: int) -> bool:
    """Whether each channel of a step can be computed without the others."""
    return width > 1 and all(
        node.op not in ("mm", "slice", "cat", *OVER_CHANNELS) and node.width in (1, width) for node in plan.depth
    )


def power(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()


def said(key: Any) -> str:
    """The name of an argument in words."""
    return key if isinstance(key, str) else " ".join(said(k) if isinstance(k, tuple) else str(k) for k in key)


def literal(value: float) -> str:
    """A number as Python writes it."""
    return repr(value) if abs(value) < float("inf") else f'float("{value}")'


def raised(x: str, exponent: float) -> str:
    """A power with a constant exponent: products for whole ones, else by the logarithm."""
    if exponent == int(exponent) and 0 < exponent <= 16:
        return "(" + " * ".join([f"({x})"] * int(exponent)) + ")"
    if exponent == int(exponent) and -16 <= exponent < 0:
        return f"1.0 / {raised(x, -exponent)}"
    if exponent == int(exponent):
        raise Refused(f"the power {exponent} is not known to the GPU emitter")
    return f"tl.exp({literal(exponent)} * tl.log({x}))"
