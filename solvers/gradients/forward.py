"""Real-time recurrent learning: the derivatives of the state go forward with it, and no step is kept."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from solvers.base.control import Held, Paths
from solvers.base.gradient import GRADIENTS, Gradient
from solvers.base.kept import Kept, Versions
from solvers.base.leaves import Key, Leaves, linked_gradients
from solvers.base.loop import Loop
from solvers.base.series import Mapped, Series
from solvers.base.state import parts_of
from solvers.base.values import exporting, transformed
from solvers.errors import InputError, PairingError
from solvers.protocol import Time, describe

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class Forward(Gradient):
    """The gradient of backprop with memory that does not depend on the number of steps: real-time recurrent learning.

    With x_i the state after interval i, S_i = dx_i/dtheta goes along with the state from the first interval on,

        S_i = dx_i/dx_{i-1} S_{i-1} + d+x_i/dtheta,    dL/dtheta = sum_i dL/dx_i S_i,

    where d+ is the derivative of interval i alone. It is for small networks: S has (entries of theta) x (entries of the
    states of a batch) numbers, and an interval costs as many products with its Jacobian as theta has entries. Theta is
    what all steps share: the parameters of the field and what is bound or closed over, the input map where it is linear
    (`V` of the fields of this package) under control "hold", and, where it has a gradient, the start state of the
    batch. What has a gradient and differs from interval to interval is refused, as are the output of a layer below,
    other controls and learned timespans: its gradient would come from the future.

    The backward pass steps the loop once more. Where a gradient of the gradient is asked for (`create_graph=True`), and
    inside function transforms, it is backprop, in the memory of that.

    Attributes:
        chunk: entries of theta that are taken at a time.

    Source: Williams & Zipser, A Learning Algorithm for Continually Running Fully Recurrent Neural Networks, Neural
    Computation 1 (1989).
    """

    chunk: int = 256

    inputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1:
            raise InputError(f"chunk of gradient 'forward' is {self.chunk!r}, expected a positive integer")

    def run(self, loop: Loop, state: Tensor) -> list[Any]:
        """The loop, unrecorded, with its backward pass.

        Raises:
            PairingError: what differs from interval to interval has a gradient.
        """
        carried = loop.solver.open(state)
        if not len(loop) or not torch.is_grad_enabled() or transformed() or exporting():
            return loop.advance(carried, 0, len(loop))
        loop = dataclasses.replace(loop, paths=_with_map(loop.paths))
        kept, parts = Kept(loop), parts_of(carried)
        start = tuple(part.detach() for part in parts)
        begin = start if isinstance(carried, tuple) else start[0]
        with torch.no_grad():
            states = loop.advance(begin, 0, len(loop), functools.partial(kept.interval, loop))
        leaves = kept.leaves(0, len(loop))
        shared = _shared(leaves)
        spec = _Spec(self, kept, Versions.of(leaves), isinstance(carried, tuple), tuple(shared))
        flat = _Carried.apply(spec, states, len(parts), *parts, *shared.values())  # type: ignore[no-untyped-call]
        if not isinstance(carried, tuple):
            return list(flat)
        return [tuple(flat[i : i + len(parts)]) for i in range(0, len(flat), len(parts))]


@dataclass(eq=False)
class Linear:
    """u(t) = V x + b on an interval, computed where it is asked for.

    Attributes:
        value: x, `(batch, features)`.
        map_weight, map_bias: V and b, or None.
    """

    value: Tensor
    map_weight: Tensor
    map_bias: Tensor | None

    def __call__(self, t: Time) -> Tensor:
        """The current, at any time."""
        return functional.linear(self.value, self.map_weight, self.map_bias)


def _with_map(paths: Sequence[Any]) -> Sequence[Any]:
    """The paths with a linear current computed inside the steps, where it is held; within other paths, too."""
    if not isinstance(paths, Paths):
        return paths
    value = paths.columns.get("value")
    if paths.kind is Held and isinstance(value, Mapped):
        n = len(value)
        return Paths(Linear, value=Series(value.x), map_weight=[value.weight] * n, map_bias=[value.bias] * n)
    inner = paths.columns.get("path")
    return paths if inner is None else Paths(paths.kind, **{**paths.columns, "path": _with_map(inner)})


def _place(key: Key) -> Key:
    """What a leaf is called whatever the interval."""
    return ("map", str(key[2]).rpartition(".")[2]) if key[0] == "path" else key


def _shared(leaves: Leaves) -> dict[Key, Tensor]:
    """What all intervals share and has a gradient.

    Raises:
        PairingError: what they do not share has one.
    """
    shared: dict[Key, Tensor] = {}
    for key, tensor in leaves.tensors.items():
        if not tensor.requires_grad:
            continue
        if key[0] in ("start", "span") or (key[0] == "path" and _place(key)[1] not in ("map_weight", "map_bias")):
            what = "input current" if key[0] == "path" else "clock"
            raise PairingError(
                f"gradient 'forward' carries derivatives by what all steps of {describe(leaves.field)} share, and its "
                f"{what} has a gradient: use one layer with a linear input map, control 'hold' and data that need no "
                "gradient, or gradient 'checkpoint'"
            )
        shared[_place(key)] = tensor
    return shared


@dataclass(frozen=True)
class _Spec:
    """What the backward pass needs to know, besides tensors."""

    gradient: Forward
    kept: Kept
    versions: Versions
    split: bool
    keys: tuple[Key, ...]

    def form(self, parts: Parts) -> Any:
        """Parts as the solver carries them."""
        return parts if self.split else parts[0]


class _Carried(torch.autograd.Function):
    """Forward: what the plain loop has led to. Backward: the loop once more, with the derivatives of its state."""

    @staticmethod
    def forward(ctx: Any, spec: _Spec, states: list[Any], width: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The parts of the carried state after every interval."""
        ctx.spec, ctx.width = spec, width
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(part.detach() for carried in states for part in parts_of(carried))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the start state and what is shared."""
        spec, width = ctx.spec, ctx.width
        start, wanted = ctx.saved_tensors[:width], ctx.needs_input_grad[3 : 3 + width]
        spec.kept.check(spec.versions)
        with spec.kept.snapshot.counting():
            if torch.is_grad_enabled():
                return None, None, None, *_recorded(spec, start, grads)
            return None, None, None, *_Sweep(spec, start, wanted).run(grads)


def _recorded(spec: _Spec, start: Parts, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The gradients by backpropagation through the plain loop, for a gradient of them."""
    leaves = spec.kept.leaves(0, len(spec.kept.loop))
    values, inputs = leaves.linked(), tuple(part.view_as(part) for part in start)
    loop = leaves.rebuilt(values)
    with leaves.reading(values):
        states = loop.advance(spec.form(inputs), 0, len(loop))
    flat = (part for carried in states for part in parts_of(carried))
    pairs = [(part, grad) for part, grad in zip(flat, grads, strict=True) if grad is not None and part.requires_grad]
    found = linked_gradients([part for part, _ in pairs], [*inputs, *values.values()], [grad for _, grad in pairs])
    totals: dict[Key, Tensor] = {}
    for key, grad in zip(values, found[len(inputs) :], strict=True):
        if grad is not None:
            totals[_place(key)] = totals[_place(key)] + grad if _place(key) in totals else grad
    return [*found[: len(inputs)], *(totals.get(key) for key in spec.keys)]


class _Sweep:
    """The loop from its start, with the derivatives of its state by blocks of entries of theta.

    Attributes:
        state: the state reached.
        moved: for each block its derivatives, of each part `(entries, *part.shape)`.
        totals: for each block the gradient of the loss, `(entries,)`.
    """

    def __init__(self, spec: _Spec, start: Parts, wanted: Sequence[bool]) -> None:
        self.spec, self.state, self.batched = spec, start, True
        self.blocks: list[tuple[Key, slice]] = []
        self.moved: list[Parts] = []
        self.shapes = {key: t.shape for key, t in _shared(spec.kept.leaves(0, 1)).items()}
        for k, part in enumerate(start):
            for block in self._cut(part.numel() if wanted[k] else 0):
                unit = torch.eye(part.numel(), dtype=part.dtype, device=part.device)[block].unflatten(1, part.shape)
                zeros = [x.new_zeros(len(unit), *x.shape) for x in start]
                self._add(("state", k), block, (*zeros[:k], unit, *zeros[k + 1 :]))
        for key in spec.keys:
            for block in self._cut(self.shapes[key].numel()):
                size = block.stop - block.start
                self._add(key, block, tuple(x.new_zeros(size, *x.shape) for x in start))
        self.totals = [start[0].new_zeros(block.stop - block.start) for _, block in self.blocks]

    def _cut(self, entries: int) -> list[slice]:
        chunk = self.spec.gradient.chunk
        return [slice(first, min(first + chunk, entries)) for first in range(0, entries, chunk)]

    def _add(self, key: Key, block: slice, parts: Parts) -> None:
        self.blocks.append((key, block))
        self.moved.append(parts)

    def run(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of the parts of the start state and of what is shared."""
        width = len(self.state)
        for i in range(len(self.spec.kept.loop)):
            self._step(i)
            for k, grad in enumerate(grads[i * width : (i + 1) * width]):
                if grad is not None:
                    for total, moved in zip(self.totals, self.moved, strict=True):
                        total += moved[k].flatten(1) @ grad.flatten().to(total.dtype)
        whole: dict[Key, list[Tensor]] = {}
        for (key, _), total in zip(self.blocks, self.totals, strict=True):
            whole.setdefault(key, []).append(total)
        shapes: dict[Key, Any] = dict(self.shapes)
        shapes.update({("state", k): part.shape for k, part in enumerate(self.state)})
        joined = {key: torch.cat(parts).view(shapes[key]) for key, parts in whole.items()}
        return [joined.get(key) for key in (*(("state", k) for k in range(width)), *self.spec.keys)]

    def _step(self, i: int) -> None:
        """Interval i."""
        spec, leaves = self.spec, self.spec.kept.leaves(i, i + 1)
        values = leaves.cut()
        shared = {_place(key): value for key, value in values.items() if value.requires_grad}
        inputs = tuple(part.detach().requires_grad_() for part in self.state)

        def stepped() -> Parts:
            with torch.enable_grad(), leaves.reading(values):
                return parts_of(leaves.rebuilt(values).interval(0, spec.form(inputs)))

        ends = stepped()
        leaves.check(values, inputs, ends, stepped)
        self.state = tuple(end.detach() for end in ends)
        # What is pulled back is linear in its cotangent: its own pullback is the product that is pushed forward.
        cotangents = tuple(torch.zeros_like(end, requires_grad=True) for end in ends)
        seen = [(end, v) for end, v in zip(ends, cotangents, strict=True) if end.requires_grad]
        with torch.enable_grad():
            pulled = torch.autograd.grad(
                [end for end, _ in seen],
                [*inputs, *shared.values()],
                [v for _, v in seen],
                create_graph=True,
                allow_unused=True,
            )
        by_key = dict(zip(shared, pulled[len(inputs) :], strict=True))
        for number, ((key, block), moved) in enumerate(zip(self.blocks, self.moved, strict=True)):
            pairs = [(p, tangent) for p, tangent in zip(pulled, moved, strict=False) if p is not None]
            own = by_key.get(key)
            if own is not None:
                unit = torch.zeros(len(moved[0]), own.numel(), dtype=own.dtype, device=own.device)
                unit[torch.arange(len(unit)), torch.arange(block.start, block.stop)] = 1.0
                pairs.append((own, unit.view(-1, *own.shape)))
            pairs = [(p, tangent) for p, tangent in pairs if p.requires_grad]
            self.moved[number] = self._pushed(pairs, cotangents, len(moved[0]))

    def _pushed(self, pairs: Sequence[tuple[Tensor, Tensor]], cotangents: Parts, entries: int) -> Parts:
        """The derivatives of the state at the end of an interval, from those at its start."""
        if not pairs:
            return tuple(v.new_zeros(entries, *v.shape) for v in cotangents)
        pulled, tangents = [p for p, _ in pairs], [t for _, t in pairs]
        if self.batched:
            try:
                return _products(pulled, cotangents, tangents, True)
            except RuntimeError:
                # An operation without a rule for batches, such as the solve of an implicit method.
                self.batched = False
        rows = [_products(pulled, cotangents, [t[j] for t in tangents], False) for j in range(entries)]
        return tuple(torch.stack(each) for each in zip(*rows, strict=True))


def _products(pulled: list[Tensor], cotangents: Parts, tangents: list[Tensor], batched: bool) -> Parts:
    found = torch.autograd.grad(
        pulled, cotangents, tangents, retain_graph=True, allow_unused=True, is_grads_batched=batched
    )
    lead = tangents[0].shape[:1] if batched else ()
    return tuple(v.new_zeros(*lead, *v.shape) if f is None else f for f, v in zip(found, cotangents, strict=True))


GRADIENTS.add("forward", Forward("forward"))
