"""Which path a solve takes, why, and whether the fast one is right."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solvers.base.control import Paths
from solvers.base.counted import Counted
from solvers.base.gradient import Backprop, Gradient
from solvers.base.loop import Loop
from solvers.base.segments import Cut
from solvers.base.series import Series
from solvers.base.state import parts_of
from solvers.base.values import concrete
from solvers.compiled import kernel
from solvers.compiled.cpp import compiler
from solvers.compiled.cpp.kernel import CPP
from solvers.compiled.passes.autograd import run
from solvers.compiled.passes.call import Call
from solvers.compiled.passes.segmented import Undo, run_segmented
from solvers.compiled.passes.states import States
from solvers.compiled.products import Products
from solvers.compiled.step.fingerprint import memory_of
from solvers.compiled.step.input_map import with_input_map
from solvers.compiled.step.layout import Layout
from solvers.compiled.step.noise import with_noise
from solvers.compiled.step.refused import Refused, Unavailable
from solvers.compiled.tensors.kernel import TORCH
from solvers.compiled.triton import compiler as triton_compiler
from solvers.compiled.triton.kernel import TRITON
from solvers.errors import PairingError
from solvers.methods.reversible import Undoing
from solvers.parallel import linear as parallel
from solvers.run import canary
from solvers.run.check import TOLERANCE, Run, self_check
from solvers.run.choice import get_backend, least_steps
from solvers.run.record import PLAIN, Record

#: Bytes of a segment whose start is rebuilt, at most. A call costs as much as some ten steps of a narrow network, and
#: beyond this size no longer segment was measured to be faster. On a GPU, where launching costs more and memory is
#: larger, it is an estimate.
BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}

#: How often the steps of a field are recorded anew because a comparison found them changed, where nothing that can be
#: looked at had; after that they are left to the plain path.
LOST = 8


def attempt(
    field: Any, loop: Loop, gradient: Gradient, state: Tensor, positions_only: bool = False, lacking: str = ""
) -> tuple[States | None, Record]:
    """The states of a loop by the fast path, or None, and why.

    Args:
        field: the field as the user gave it.
        loop: with the bound field.
        gradient: the gradient that was asked for.
        state: at the start.
        positions_only: nobody will ask for other states than the last; where that saves memory, they are not kept.
        lacking: why this machine is known to have no compiled loop for it.

    Raises:
        PairingError: the backend that was asked for cannot take this loop.
    """
    if torch.compiler.is_compiling():
        # Said first and without looking further: whatever is looked at here, torch would record.
        return None, PLAIN
    chosen = get_backend()
    try:
        if chosen == "plain":
            raise Refused("the backend is 'plain'")
        path, reason = _path(chosen, state, lacking)
        unmapped = loop
        if path != "triton":
            # A GPU kernel has no registers to spare for the map.
            loop = with_input_map(loop, path == "compiled")
        _suitable(field, loop, gradient, state)
        if chosen == "auto" and len(loop) * loop.substeps < (least := least_steps()):
            raise Refused(f"fewer than {least} steps do not pay for compiling")
        given, loop = loop, with_noise(loop, state)
        carried = loop.solver.open(state)
        layout = Layout.of(carried, state)
        start = state if layout.single or layout.counts == (0,) * state.shape[1] else layout.packed(carried)
        if chosen in parallel.WAYS:
            return _at_once((chosen,), field, unmapped, gradient, layout, start, reason)
        if chosen == "auto" and path != "compiled" and (ways := parallel.pays(field, loop, start, fused=True)):
            with contextlib.suppress(Refused):
                return _at_once(ways, field, unmapped, gradient, layout, start, reason or "a linear field on a GPU")
        try:
            make = _maker(path, reason, state)
            position = layout.position(loop.solver) if positions_only else None
            kept = range(layout.total) if position is None else [position]

            def go() -> Ran:
                call = _checked_call(make, run, field, loop, layout, start)
                undo = _undo(make, field, call, gradient, start)
                cut = _cut(call, gradient, given, carried, start)
                found = run(call, start) if cut is None else run_segmented(call, start, cut, kept, undo)
                return Ran(call, found, undo, cut)

            ran = _followed(go, make, run, field, layout, start)
        except Unavailable as error:
            if chosen == "auto" and path == "compiled":
                return attempt(field, unmapped, gradient, state, positions_only, str(error))
            raise
        except Refused as error:
            if chosen == "auto" and (ways := parallel.pays(field, loop, start, fused=False)):
                with contextlib.suppress(Refused):
                    return _at_once(ways, field, unmapped, gradient, layout, start, str(error))
            raise
    except Refused as error:
        if chosen not in ("auto", "plain"):
            raise PairingError(f"backend {chosen!r} cannot take this solve: {error}: use 'auto' or 'plain'") from None
        return None, Record("plain", str(error))
    call, cut, (*outs, end) = ran.call, ran.cut, ran.found
    if isinstance(loop.field, Counted):
        loop.field.evaluations += call.traced.evaluations * len(loop) * loop.substeps
    # Of an interval that was taken as several, the last one's end is its own.
    each = given.substeps // loop.substeps
    outs = outs if each == 1 else [out[each - 1 :: each] for out in outs]
    reason = "; ".join(part for part in (reason, call.kernel.note) if part)
    saved = _saved(call, start, cut, len(outs))
    texts = [each.kernel.source.text for each in (call, *([] if ran.undo is None else [ran.undo.call]))]
    record = Record(path, reason, saved, "\n".join(texts), _products(call, len(start)))
    return States(loop.solver, layout, outs, end), record


def _path(chosen: str, state: Tensor, lacking: str = "") -> tuple[str, str]:
    """The path to try with a backend, and why it is not that of the compiled loop or of a GPU kernel."""
    if chosen != "auto":
        return chosen, "" if chosen == "compiled" else f"the backend is {chosen!r}"
    if state.device.type == "cuda":
        try:
            triton_compiler.target(state)
        except Refused as error:
            return "plain", str(error)
        return "triton", ""
    lacking = lacking or compiler.lacking_compiler()
    return ("torch", lacking) if lacking else ("compiled", "")


def _checked_call(make: Callable[..., Any], run: Run, field: Any, loop: Loop, layout: Layout, start: Tensor) -> Any:
    """The call of a kernel that agrees with the plain path.

    Raises:
        Refused: there is none.
    """
    call = make(field, loop, layout, start)
    if not call.kernel.checked:
        self_check(field, call, make, run, layout, start)
    return call


@dataclasses.dataclass(frozen=True)
class Ran:
    """A solve by a fast path: its call, and what it found: components after every interval, and the last state."""

    call: Any
    found: Sequence[Tensor]
    undo: Undo | None = None
    cut: Cut | None = None


def _followed(
    go: Callable[[], Ran], make: Callable[..., Any], run: Run, field: Any, layout: Layout, start: Tensor
) -> Ran:
    """What a solve finds that follows its field; where it does not any more, the steps are recorded anew.

    Raises:
        Refused: they do not follow the field then either.
    """
    ran = go()
    if ran.call.kernel.solves == 0:
        # It was compared just now, and more of it.
        ran.call.kernel.solves = 1
        return ran
    if not canary.due(ran.call, field):
        return ran
    error = canary.drifted(
        ran.call, layout, start, ran.found[:-1], lambda loop, x: run(make(field, loop, layout, x), x)[:-1]
    )
    if error is None:
        return ran
    memory = memory_of(field)
    memory.lost += 1
    if memory.lost > LOST:
        raise Refused("what a step reads changes from call to call, where it cannot be seen")
    for each in (kernel, parallel):
        each.forget(field)
    return go()


def _at_once(
    ways: Sequence[str], field: Any, loop: Loop, gradient: Gradient, layout: Layout, start: Tensor, reason: str
) -> tuple[States, Record]:
    """The states of a linear field for all times at once, in the first of these ways that takes it.

    Raises:
        Refused: none of them does; says why not the last one.
    """
    if not isinstance(gradient, Backprop):
        raise Refused(f"gradient {gradient.name!r} is for steps taken one after the other")
    way, *others = ways
    try:
        make, run = functools.partial(parallel.solve_for, way), parallel.Solve.run

        def go() -> Ran:
            call = _checked_call(make, run, field, loop, layout, start)
            return Ran(call, call.run(start))

        ran = _followed(go, make, run, field, layout, start)
        call, (*outs, end) = ran.call, ran.found
    except Refused:
        if not others:
            raise
        return _at_once(others, field, loop, gradient, layout, start, reason)
    if isinstance(loop.field, Counted):
        loop.field.evaluations += call.evaluations * len(loop) * loop.substeps
    return States(loop.solver, layout, outs, end), Record(way, reason)


def _maker(path: str, reason: str, state: Tensor) -> Callable[..., Any]:
    """What makes the kernel.

    Raises:
        Refused: nothing does for this device.
    """
    if path == "plain":
        raise Refused(reason)
    if state.device.type == "cuda" and path != "triton":
        raise Refused(f"the state is on {state.device}, for which backend 'triton' makes kernels")
    return functools.partial(kernel.call_for, {"compiled": CPP, "torch": TORCH, "triton": TRITON}[path])


def _undo(make: Callable[..., Any], field: Any, call: Call, gradient: Gradient, start: Tensor) -> Undo | None:
    """What takes the steps of a call back, if its gradient wants that.

    Raises:
        Refused: no kernel does.
    """
    if not gradient.undoes or call.kernel.backward is None:
        return None
    loop, layout = call.loop, call.layout
    backwards = dataclasses.replace(loop, solver=Undoing.of(loop.solver))
    try:
        with torch.no_grad():
            undoing = _checked_call(make, run, field, backwards, layout, start.detach())
    except Refused as error:
        raise type(error)(f"its steps cannot be taken back: {error}") from None

    def measure(rebuilt: Tensor, stored: Tensor, step: int) -> None:
        # In the precision of the state, on which the limit depends; a kernel may compute in a higher one.
        rebuilt_parts, stored_parts = (parts_of(layout.taken(packed.to(start.dtype))) for packed in (rebuilt, stored))
        gradient.measure(loop, rebuilt_parts, stored_parts, step)

    return Undo(undoing.sharing(call), measure)


def _cut(call: Call, gradient: Gradient, loop: Loop, carried: Any, start: Tensor) -> Cut | None:
    """Where the loop is cut, with its intervals as they were given; None where everything is kept."""
    if call.kernel.backward is None:
        return None
    size = (start[0].numel() + sum(call.kernel.program.saved)) * len(start) * start.element_size()
    return gradient.cut(loop, carried, BYTES[start.device.type] // size)


def _saved(call: Call, start: Tensor, cut: Cut | None, outs: int) -> int:
    """Bytes kept at most: the states of all steps or, of several segments, those of one, between them and returned."""
    batch, components, width = start.shape
    kept = sum(call.kernel.program.saved) if call.kernel.backward is not None else 0
    steps = len(call.loop) * call.substeps if cut is None else cut.longest
    rows = (steps + 1) * components
    if cut is not None:
        rows += len(cut.stored) * components + len(call.loop) * outs
    return (rows * width + steps * kept) * batch * start.element_size()


def _products(call: Call, batch: int) -> Products:
    program = call.kernel.program
    plans = [plan for plan in (program.forward, program.backward) if plan is not None]
    each = [tuple((p.matrix.rows, p.matrix.columns) for level in plan.levels for p in level.products) for plan in plans]
    gradients = tuple((outer.matrix.rows, outer.matrix.columns) for plan in plans for outer in plan.outers)
    return Products(len(call.loop) * call.substeps, batch, each[0], each[1] if len(each) > 1 else (), gradients)


def _suitable(field: Any, loop: Loop, gradient: Gradient, state: Tensor) -> None:
    """Refuse what no kernel is made for, whatever the step."""
    if not gradient.compilable:
        raise Refused(f"gradient {gradient.name!r} runs the plain steps")
    if loop.solver.adaptive:
        raise Refused(f"solver {loop.solver.name!r} chooses its steps as it goes")
    if not isinstance(field, nn.Module):
        raise Refused("the field is no nn.Module, so what it depends on is not known")
    if torch._C._get_tracing_state() is not None:
        raise Refused("the loop is being exported by torch")
    tensors = [state, *field.parameters(), *_seen(loop)]
    if not all(concrete(t) for t in tensors) or torch._C._functorch.peek_interpreter_stack() is not None:
        raise Refused("the loop is inside a function transform")
    if torch.autograd.forward_ad._current_level >= 0:
        raise Refused("forward-mode derivatives are computed by the plain path")
    if torch._C._len_torch_dispatch_stack() or any(type(t) not in (Tensor, nn.Parameter) for t in tensors):
        raise Refused("a tensor subclass or a dispatch mode watches the operations")
    if state.device.type not in ("cpu", "cuda"):
        raise Refused(f"the state is on {state.device}, and there is no emitter for it")
    if state.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise Refused("a CUDA graph is being captured around it")
    if state.dtype not in TOLERANCE:
        raise Refused(f"dtype {state.dtype} has no emitter")
    if state.dim() != 3 or 0 in state.shape or not len(loop):
        raise Refused(f"a state of shape {tuple(state.shape)} over {len(loop)} intervals has nothing to compile for")


def _seen(loop: Loop) -> list[Tensor]:
    """Some of the tensors a loop is driven by; what they are is the same in all intervals."""
    columns: list[Any] = [loop.clock.starts, loop.clock.spans]
    if isinstance(loop.paths, Paths):
        columns += loop.paths.columns.values()
    elif len(loop.paths) and hasattr(loop.paths[0], "__dict__"):
        columns += [[value] for value in vars(loop.paths[0]).values()]
    first = [c.whole if isinstance(c, Series) else c[0] for c in columns if len(c)]
    return [t for t in first if isinstance(t, Tensor)]
