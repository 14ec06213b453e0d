"""Which gradient should I use? Runs them side by side on a field and an input, and says what each costs."""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from solvers.base.clock import Clock
from solvers.base.control import Control, get_control
from solvers.base.gradient import GRADIENTS, Gradient, get_gradient
from solvers.base.solver import Solver, get
from solvers.errors import InputError, NumericalError, PairingError
from solvers.protocol import describe
from solvers.run.solve import solve


@dataclass(frozen=True)
class AuditRow:
    """What one gradient does.

    Attributes:
        gradient: its name.
        error: largest error of any gradient, relative to the largest entry of that tensor, against backprop in
            float64; None when it could not run.
        peak_bytes: most memory alive at once beyond parameters and inputs.
        seconds: time of one forward and backward pass.
        note: why it could not run, or empty.
        cosine: of the angle between all its gradients and those of backprop in float64; None when it could not run.
        exact: whether it is meant to be the derivative; of another direction the cosine says more than the error.
    """

    gradient: str
    error: float | None
    peak_bytes: int
    seconds: float
    note: str = ""
    cosine: float | None = None
    exact: bool = True


@dataclass(frozen=True)
class Audit:
    """The rows of an audit; printing it shows a table."""

    title: str
    rows: tuple[AuditRow, ...]

    def __str__(self) -> str:
        wide = max((12, *(len(row.gradient) for row in self.rows)))
        lines = [self.title, f"{'gradient':<{wide}} {'error':>9} {'peak memory':>12} {'time':>10}"]
        for row in self.rows:
            if row.error is None:
                lines.append(f"{row.gradient:<{wide}} {row.note}")
            else:
                memory, seconds = f"{row.peak_bytes / 2**20:.2f} MiB", f"{row.seconds * 1e3:.1f} ms"
                remark = "" if row.exact else f"  (another direction: cosine {row.cosine:.3f})"
                lines.append(f"{row.gradient:<{wide}} {row.error:>9.1e} {memory:>12} {seconds:>10}{remark}")
        return "\n".join(lines)


def audit(
    field: nn.Module,
    x: Tensor,
    *,
    solver: str | Solver = "rk4",
    dt: float = 1.0,
    substeps: int = 1,
    control: str | Control = "hold",
    timespans: Tensor | None = None,
    gradients: Sequence[str | Gradient] | None = None,
    show: bool = True,
) -> Audit:
    """Compare gradients on a field: error against float64 backprop, peak memory, time.

    The loss is the mean square of all positions plus that of the final state.

    Args:
        field: the right-hand side, with `drive` if the input has to be mapped.
        x: inputs `(batch, time, input)`.
        solver, dt, substeps, control, timespans: as for the recurrent layer.
        gradients: names or values; all registered ones when None.
        show: print the table.

    Raises:
        InputError: x is not a batch of sequences.
    """
    if not isinstance(x, Tensor) or x.dim() != 3:
        description = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"x is {description}, expected a tensor (batch, time, input): add the missing axes")
    task = _Task(get(solver), get_control(control), dt, substeps, timespans)
    precise = copy.deepcopy(field).double()
    reference = task.gradients_of(precise, x.double(), GRADIENTS["backprop"])
    rows = tuple(_row(task, field, x, get_gradient(name), reference) for name in gradients or list(GRADIENTS))
    batch, length = x.shape[:2]
    title = (
        f"{describe(field)} under {task.solver.name!r}: batch {batch}, {length} samples x {substeps} steps, {x.dtype}"
    )
    result = Audit(title, rows)
    if show:
        print(result)
    return result


@dataclass(frozen=True)
class _Task:
    """A forward and a backward pass."""

    solver: Solver
    control: Control
    dt: float
    substeps: int
    timespans: Tensor | None

    def gradients_of(self, field: Any, x: Tensor, gradient: Gradient) -> list[Tensor]:
        """The gradients of every parameter that has one, and of the input, last, where there is one of it."""
        x = x.detach().requires_grad_(gradient.inputs)
        spans = self.timespans
        clock = Clock.uniform(x.shape[1], self.dt) if spans is None else Clock.of_spans(spans.to(x.dtype) * self.dt)
        currents = getattr(field, "currents", None) or _undriven(field)
        state = x.new_zeros(x.shape[0], field.components, field.hidden_size)
        # Every gradient is to see the same noise.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            trajectory = solve(field, self.solver, gradient, self.control, clock, currents(x), state, self.substeps)
        loss = trajectory.positions().square().mean() + trajectory.end().square().mean()
        inputs = [p for p in (*field.parameters(), x) if p.requires_grad]
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True) if inputs else ()
        return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, gradients, strict=True)]


def _undriven(field: Any) -> Any:
    """The currents of a field that is no `VectorField`, which may have a `drive`."""
    drive = getattr(field, "drive", None)
    return lambda x: (x if drive is None else drive(x)).unbind(1)


def _row(task: _Task, field: nn.Module, x: Tensor, gradient: Gradient, reference: list[Tensor]) -> AuditRow:
    try:
        with PeakMemory() as memory:
            gradients = task.gradients_of(field, x, gradient)
        started = time.perf_counter()
        task.gradients_of(field, x, gradient)
        seconds = time.perf_counter() - started
    except (PairingError, NumericalError) as error:
        return AuditRow(gradient.name, None, 0, 0.0, str(error))
    # Of a gradient that gives none of the input the last one is missing.
    reference = reference[: len(gradients)]
    errors = [relative(a, b) for a, b in zip(gradients, reference, strict=True)]
    cosine = _cosine(gradients, reference) if gradients else 1.0
    return AuditRow(gradient.name, max(errors, default=0.0), memory.peak, seconds, cosine=cosine, exact=gradient.exact)


def relative(gradient: Tensor, exact: Tensor) -> float:
    """Largest error of a gradient, relative to the largest entry of the exact one; infinite where that is 0 alone.

    Args:
        gradient: of any precision.
        exact: in float64, of the same shape.
    """
    if not exact.numel():
        return 0.0
    error, size = float((gradient.double() - exact).abs().max()), float(exact.abs().max())
    return error / size if size else math.inf if error else 0.0


def _cosine(gradients: list[Tensor], exact: list[Tensor]) -> float:
    a, b = (torch.cat([each.double().flatten() for each in side]) for side in (gradients, exact))
    return float(functional.cosine_similarity(a, b, dim=0))


class PeakMemory(TorchDispatchMode):
    """The most bytes of tensor memory alive at once among those allocated inside this context, on any device.

    Attributes:
        peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), inputs)
        return result

    def _note(self, storage: Any, inputs: set[int]) -> None:
        # torch keeps one Python object per storage, which dies with it.
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in inputs:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


class SavedMemory(torch.autograd.graph.saved_tensors_hooks):
    """The bytes of memory that autograd keeps for the backward pass of what is computed inside this context.

    Args:
        besides: tensors whose memory is there anyway and is not counted.

    Attributes:
        total: bytes, each piece of memory once.
    """

    def __init__(self, besides: Iterable[Tensor] = ()) -> None:
        # Storages are held, so that no address stands for two of them.
        self._known = {t.untyped_storage().data_ptr(): t for t in besides}
        self.total = 0
        super().__init__(self._keep, _same)

    def __enter__(self) -> SavedMemory:  # type: ignore[override]
        super().__enter__()
        return self

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known[storage.data_ptr()] = tensor
            self.total += storage.nbytes()
        return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor
