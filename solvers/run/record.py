"""Which path a solve took, and why."""

from __future__ import annotations

from dataclasses import dataclass

from solvers.compiled.products import Products


@dataclass(frozen=True)
class Record:
    """Which path a solve took.

    Attributes:
        path: "compiled", "torch", "triton", "scan", "fft" or "plain".
        reason: why not the compiled one; empty for that one.
        saved: bytes kept for the backward pass, states included; 0 where that is not known or nothing is kept.
        source: the generated code; empty for the plain path.
        products: the matrix products of the loop and of its gradient; None where they are not known.
    """

    path: str
    reason: str = ""
    saved: int = 0
    source: str = ""
    products: Products | None = None


#: Of a trajectory that no solve recorded.
PLAIN = Record("plain")
