"""Whether a fast path is right: a few steps of it against the plain ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.leaves import Leaves
from solvers.base.loop import Loop
from solvers.compiled.passes import precision
from solvers.compiled.passes.checked import Checked
from solvers.compiled.step.layout import Layout
from solvers.compiled.step.observed import Undrawn
from solvers.compiled.step.refused import Refused
from solvers.run.choice import WORTHWHILE

#: Steps of the self-check, more on a GPU, where what is wrong may be so now and then; and the largest relative error
#: it lets pass.
CHECKED = {"cpu": 3, "cuda": WORTHWHILE}

TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-3, torch.float64: 1e-9}


class Solve(Protocol):
    """One solve by a fast path."""

    kernel: Checked
    loop: Loop


Run = Callable[[Any, Tensor], tuple[Tensor, ...]]


def self_check(field: Any, call: Solve, make: Callable[..., Solve], run: Run, layout: Layout, start: Tensor) -> None:
    """Compare a few steps, forward and gradients, with the plain path; once per kernel.

    Raises:
        Refused: they differ, for instance because the step keeps something in Python from call to call.
    """
    kernel = call.kernel
    generator = torch.Generator().manual_seed(0)
    count = min(CHECKED[start.device.type], len(call.loop))
    leaves = Leaves(beginning(call.loop, count, CHECKED["cpu"]), 0, count)
    with torch.set_grad_enabled(kernel.backward is not None):
        cut = leaves.cut()
        loop = leaves.rebuilt(cut)
        # From zeros a product or a damping could be wrong and not be seen.
        noise = torch.rand(start.shape, generator=generator, dtype=start.dtype).to(start.device) - 0.5
        state = (start.detach() + 0.1 * noise).requires_grad_(start.requires_grad and kernel.backward is not None)
        # A generator belongs to the process: what draws from it is left to the plain path.
        with Undrawn():
            plain = loop.advance(layout.taken(state), 0, count)
        expected = torch.stack([layout.packed(carried) for carried in plain])
        trial = make(field, loop, layout, state)
        *outs, _ = run(trial, state)
        computed = torch.stack(outs, 2)
        allowed = kernel.slack * tolerance(start)
        wrong = _difference(computed, expected, allowed)
        if wrong is None and kernel.backward is not None:
            weight = torch.rand(expected.shape, generator=generator, dtype=start.dtype).to(start.device)
            wanted = [t for t in (state, *cut.values()) if t.requires_grad]
            gradients = [_gradients(out, weight, wanted) for out in (computed, expected)]
            differences = [_difference(a, b, allowed) for a, b in zip(*gradients, strict=True)]
            wrong = next((d for d in differences if d is not None), None)
    if wrong is not None:
        reason = f"{count} intervals of it differ from the plain path by {wrong:.1e}"
        kernel.refused = reason
        raise Refused(reason)
    kernel.checked = True
    trial.kernel.checked = True


def beginning(loop: Loop, count: int, few: int) -> Loop:
    """The first intervals; of those of many steps as much as the first few take, in steps of the same size."""
    few = min(loop.substeps, few)
    if few == loop.substeps:
        return loop
    spans = loop.clock.spans[:count]
    # One tensor for all intervals stays one.
    shares = {id(span): span * (few / loop.substeps) for span in spans}
    clock = Clock(loop.clock.starts[:count], tuple(shares[id(span)] for span in spans))
    return dataclasses.replace(loop, paths=loop.paths[:count], clock=clock, substeps=few)


def _gradients(out: Tensor, weight: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    if not wanted or not out.requires_grad:
        return []
    # Both results may depend on what a bound field computed once.
    gradients = torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, wanted, strict=True)]


def tolerance(state: Tensor) -> float:
    """The relative error to let pass: of the type of the state, or of the products under autocast."""
    return max(TOLERANCE[state.dtype], TOLERANCE.get(precision.asked(state), 0.0))


def _difference(computed: Tensor, expected: Tensor, allowed: float) -> float | None:
    """The relative error where it is too large; entries that are not finite in both count as equal."""
    computed, expected = computed.detach(), expected.detach()
    both = torch.isfinite(computed) & torch.isfinite(expected)
    if bool((torch.isfinite(computed) != torch.isfinite(expected)).any()):
        return float("inf")
    computed, expected = torch.where(both, computed, 0.0), torch.where(both, expected, 0.0)
    error = float((computed - expected).abs().max()) if computed.numel() else 0.0
    scale = float(expected.abs().max()) if computed.numel() else 0.0
    return None if error <= allowed * max(scale, 1e-3) else error / max(scale, 1e-300)
