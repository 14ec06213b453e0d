"""Gradients that say themselves what error each state receives; each interval is differentiated by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.base.gradient import Gradient
from solvers.base.loop import Loop
from solvers.base.state import parts_of
from solvers.base.values import exporting, transformed
from solvers.errors import PairingError

#: The error of a state: of each tensor that the solver carries, or None for zero.
Error = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Piece:
    """An interval that was recorded by itself.

    Attributes:
        start: the state at its start, cut off from what that was computed from.
        end: the state at its end.
    """

    start: tuple[Tensor, ...]
    end: tuple[Tensor, ...]

    def pulled(self, error: Error) -> Error:
        """The error of the state at the start that one at the end gives: its product with d end/d start."""
        pairs = [(y, e) for y, e in zip(self.end, error, strict=True) if e is not None and y.requires_grad]
        wanted = [x for x in self.start if x.requires_grad]
        if not pairs or not wanted:
            return (None,) * len(self.start)
        ends, errors = [y for y, _ in pairs], [e for _, e in pairs]
        found = iter(torch.autograd.grad(ends, wanted, errors, retain_graph=True, allow_unused=True))
        return tuple(next(found) if x.requires_grad else None for x in self.start)


@dataclass(frozen=True)
class Local(Gradient):
    """The parameters, the input and the times of each interval get what the error at its end gives them, by autograd.

    So does the start state, from the first interval. A subclass says by `received` what that error is, from those which
    the loss has on all states by itself. Memory is that of backprop.
    """

    exact: ClassVar[bool] = False
    #: Whether `received` asks how the end of an interval depends on its start.
    transports: ClassVar[bool] = True

    def received(self, pieces: Sequence[Piece], errors: Sequence[Error], lead: int) -> Sequence[Error]:
        """The error that the state after each interval receives.

        Args:
            pieces: the intervals.
            errors: of the states after each, by the loss alone.
            lead: axes of a batch.
        """
        raise NotImplementedError("each gradient of this kind has a rule of its own")

    def run(self, loop: Loop, state: Tensor) -> list[Any]:
        """The loop, recorded an interval at a time.

        Raises:
            PairingError: a function transform differentiates, which asks for derivatives alone.
        """
        carried = loop.solver.open(state)
        if not len(loop) or not torch.is_grad_enabled() or exporting():
            return loop.advance(carried, 0, len(loop))
        if transformed():
            raise PairingError(
                f"gradient {self.name!r} is not the derivative that torch.func and forward mode compute: use gradient "
                "'backprop' there, or torch.no_grad() where none is wanted"
            )
        pieces: list[Piece] = []

        def interval(i: int, before: Any) -> Any:
            start = parts_of(before) if i == 0 else self._cut(parts_of(before))
            after = loop.interval(i, start if isinstance(before, tuple) else start[0])
            pieces.append(Piece(start, parts_of(after)))
            return after

        loop.advance(carried, 0, len(loop), interval)
        ends = [part for piece in pieces for part in piece.end]
        flat = _Received.apply(self, pieces, state.dim() - 2, *ends)  # type: ignore[no-untyped-call]
        if not isinstance(carried, tuple):
            return list(flat)
        return [tuple(flat[i : i + len(carried)]) for i in range(0, len(flat), len(carried))]

    def _cut(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A state as a leaf of its own; nobody reads its gradient there."""
        leaves = tuple(part.detach() for part in parts)
        for part, leaf in zip(parts, leaves, strict=True):
            if self.transports and part.requires_grad:
                leaf.requires_grad_().register_post_accumulate_grad_hook(_forgotten)
        return leaves


class _Received(torch.autograd.Function):
    """Forward: the states as they are. Backward: from the errors of the loss those that the states receive."""

    @staticmethod
    def forward(ctx: Any, gradient: Local, pieces: list[Piece], lead: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """The parts of the carried state after every interval."""
        ctx.gradient, ctx.pieces, ctx.lead = gradient, pieces, lead
        ctx.set_materialize_grads(False)
        return tuple(part.detach() for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The errors that the states receive."""
        if torch.is_grad_enabled():
            raise PairingError(
                f"gradient {ctx.gradient.name!r} cannot be differentiated again, since it is no derivative of the "
                "states: use gradient 'backprop' where create_graph=True is given"
            )
        width = len(ctx.pieces[0].end)
        errors = [tuple(grads[i : i + width]) for i in range(0, len(grads), width)]
        received = ctx.gradient.received(ctx.pieces, errors, ctx.lead)
        return None, None, None, *(part for error in received for part in error)


def added(a: Error | None, b: Error) -> Error:
    """The sum of two errors."""
    if a is None:
        return b
    return tuple(y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True))


def some(error: Error) -> bool:
    """Whether an error is not zero: the loss may see the last state alone, and autograd then gives zeros for all."""
    return any(part is not None and bool(part.any()) for part in error)


def _forgotten(leaf: Tensor) -> None:
    leaf.grad = None
