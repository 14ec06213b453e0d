"""Which path a solve takes, why, and whether the fast one is right."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from solvers import parallel
from solvers.checkpoint import Checkpoint
from solvers.clock import Clock
from solvers.compiled import gpu_build, multiply, run_torch
from solvers.compiled.carried import Layout, States
from solvers.compiled.feed import fed
from solvers.compiled.ir import Refused
from solvers.compiled.kernel import Call, prepare, refuse
from solvers.compiled.makers import CPP, TORCH, TRITON
from solvers.compiled.products import Products
from solvers.compiled.segmented import BYTES, Cut, Undo
from solvers.control import Paths
from solvers.errors import InputError, PairingError
from solvers.gradient import Backprop, Gradient
from solvers.leaves import Leaves
from solvers.protocol import concrete, parts_of
from solvers.reversible import Reversible, Undoing
from solvers.series import Series
from solvers.statistics import Counted

if TYPE_CHECKING:
    from solvers.loop import Loop

#: "auto": compiled where it can be and pays off. "plain": the Python loop. The others give their own path, or an error:
#: "compiled" generated C++; "torch" the same plan in pure torch, which "auto" takes without a compiler; "triton" a
#: GPU kernel (tensors in main memory need Triton's interpreter, TRITON_INTERPRET=1 in the environment); "scan" and
#: "fft" solve a linear field for all times at once, which "auto" does where nothing compiled runs.
BACKENDS = ("auto", "plain", "compiled", "torch", "triton", *parallel.WAYS)

#: Steps below which "auto" does not compile: tracing and compiling take as long as some thousand steps.
WORTHWHILE = 64

#: Steps of the self-check, more on a GPU, where what is wrong may be so now and then; and the largest relative error
#: it lets pass.
CHECKED = {"cpu": 3, "cuda": WORTHWHILE}
TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-3, torch.float64: 1e-9}


class _Choice(threading.local):
    """The backend of each thread; a thread that chose none follows the process."""

    name: str | None = None


_process = "auto"
_thread = _Choice()


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"backend is {name!r}, expected one of {', '.join(BACKENDS)}: choose one")
    return name


def set_backend(name: str) -> None:
    """Choose how loops are run from now on: one of `BACKENDS`.

    Raises:
        InputError: an unknown name.
    """
    global _process
    _process = _checked(name)


def get_backend() -> str:
    """The backend in force here."""
    return _thread.name or _process


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose how loops are run inside a `with` block, in this thread."""
    before, _thread.name = _thread.name, _checked(name)
    try:
        yield
    finally:
        _thread.name = before


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


def attempt(
    field: Any, loop: Loop, gradient: Gradient, state: Tensor, positions_only: bool = False
) -> tuple[States | None, Record]:
    """The states of a loop by the fast path, or None, and why.

    Args:
        field: the field as the user gave it.
        loop: with the bound field.
        gradient: the gradient that was asked for.
        state: at the start.
        positions_only: nobody will ask for other states than the last; where that saves memory, they are not kept.

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
        path, reason = _path(chosen, state)
        given = loop
        if path != "triton":
            # A GPU kernel has no registers to spare for the map.
            loop = fed(loop, path == "compiled")
        _suitable(field, loop, gradient, state)
        if chosen == "auto" and len(loop) * loop.substeps < WORTHWHILE:
            raise Refused(f"fewer than {WORTHWHILE} steps do not pay for compiling")
        carried = loop.solver.open(state)
        layout = Layout.of(carried, state)
        start = state if layout.single or layout.counts == (0,) * state.shape[1] else layout.packed(carried)
        if chosen in parallel.WAYS:
            return _at_once((chosen,), field, given, gradient, layout, start, reason)
        if chosen == "auto" and path != "compiled" and (ways := parallel.pays(field, loop, start, fused=True)):
            with contextlib.suppress(Refused):
                return _at_once(ways, field, given, gradient, layout, start, reason or "a linear field on a GPU")
        try:
            make = _maker(path, reason, state)
            call = _checked_call(make, field, loop, layout, start)
            undo = _undo(make, field, call, gradient, start)
        except Refused as error:
            if chosen == "auto" and (ways := parallel.pays(field, loop, start, fused=False)):
                with contextlib.suppress(Refused):
                    return _at_once(ways, field, given, gradient, layout, start, str(error))
            raise
    except Refused as error:
        if chosen not in ("auto", "plain"):
            raise PairingError(f"backend {chosen!r} cannot take this solve: {error}: use 'auto' or 'plain'") from None
        return None, Record("plain", str(error))
    cut = _cut(call, gradient, carried, start)
    if cut is None:
        *outs, end = call.run(start)
    else:
        position = layout.position(loop.solver) if positions_only else None
        *outs, end = call.run_segmented(start, cut, range(layout.total) if position is None else [position], undo)
    if isinstance(loop.field, Counted):
        loop.field.evaluations += call.traced.evaluations * len(loop) * loop.substeps
    reason = "; ".join(part for part in (reason, call.kernel.note) if part)
    saved = _saved(call, start, cut, len(outs))
    texts = [each.kernel.source.text for each in (call, *([] if undo is None else [undo.call]))]
    record = Record(path, reason, saved, "\n".join(texts), _products(call, len(start)))
    return States(loop.solver, layout, outs, end), record


def _path(chosen: str, state: Tensor) -> tuple[str, str]:
    """The path to try with a backend, and why it is not that of the compiled loop or of a GPU kernel."""
    if chosen != "auto":
        return chosen, "" if chosen == "compiled" else f"the backend is {chosen!r}"
    if state.device.type == "cuda":
        try:
            gpu_build.target(state)
        except Refused as error:
            return "plain", str(error)
        return "triton", ""
    lacking = run_torch.missing()
    return ("torch", lacking) if lacking else ("compiled", "")


def _checked_call(make: Callable[..., Any], field: Any, loop: Loop, layout: Layout, start: Tensor) -> Any:
    """The call of a kernel that agrees with the plain path.

    Raises:
        Refused: there is none.
    """
    call = make(field, loop, layout, start)
    if not call.kernel.checked:
        with torch.random.fork_rng(devices=[]):
            _self_check(field, call, make, layout, start)
    return call


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
        call = _checked_call(functools.partial(parallel.prepare, way), field, loop, layout, start)
        *outs, end = call.run(start)
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
    return functools.partial(prepare, {"compiled": CPP, "torch": TORCH, "triton": TRITON}[path])


def _undo(make: Callable[..., Any], field: Any, call: Call, gradient: Gradient, start: Tensor) -> Undo | None:
    """What takes the steps of a call back, if its gradient wants that.

    Raises:
        Refused: no kernel does.
    """
    if not isinstance(gradient, Reversible) or call.kernel.backward is None:
        return None
    loop, layout = call.loop, call.layout
    backwards = dataclasses.replace(loop, solver=Undoing.of(loop.solver))
    try:
        with torch.no_grad():
            undoing = _checked_call(make, field, backwards, layout, start.detach())
    except Refused as error:
        raise Refused(f"its steps cannot be taken back: {error}") from None

    def measure(rebuilt: Tensor, stored: Tensor, step: int) -> None:
        # In the precision of the state, on which the limit depends; a kernel may compute in a higher one.
        mine, kept = (parts_of(layout.taken(packed.to(start.dtype))) for packed in (rebuilt, stored))
        gradient.measure(loop, mine, kept, step)

    return Undo(undoing.sharing(call), measure)


def _cut(call: Call, gradient: Gradient, carried: Any, start: Tensor) -> Cut | None:
    """Where the loop is cut; None where everything is kept."""
    loop, kernel = call.loop, call.kernel
    if kernel.backward is None:
        return None
    if isinstance(gradient, Reversible):
        size = (start[0].numel() + sum(kernel.program.saved)) * len(start) * start.element_size()
        return Cut.rebuilt(gradient, len(loop), loop.substeps, BYTES[start.device.type] // size)
    edges = gradient.edges(loop, carried) if isinstance(gradient, Checkpoint) else []
    return Cut.stored_at([edge * loop.substeps for edge in edges]) if len(edges) > 2 else None


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
    if type(gradient) not in (Backprop, Checkpoint, Reversible):
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


def _self_check(
    field: Any, call: Call | parallel.Call, make: Callable[..., Call | parallel.Call], layout: Layout, start: Tensor
) -> None:
    """Compare a few steps, forward and gradients, with the plain path; once per kernel.

    Raises:
        Refused: they differ, for instance because the step keeps something in Python from call to call.
    """
    kernel = call.kernel
    generator = torch.Generator().manual_seed(0)
    count = min(CHECKED[start.device.type], len(call.loop))
    leaves = Leaves(_beginning(call.loop, count), 0, count)
    with torch.set_grad_enabled(kernel.backward is not None):
        cut = leaves.cut()
        loop = leaves.rebuilt(cut)
        # From zeros a product or a damping could be wrong and not be seen.
        noise = torch.rand(start.shape, generator=generator, dtype=start.dtype).to(start.device) - 0.5
        state = (start.detach() + 0.1 * noise).requires_grad_(start.requires_grad and kernel.backward is not None)
        plain = loop.advance(layout.taken(state), 0, count)
        expected = torch.stack([layout.packed(carried) for carried in plain])
        mine = make(field, loop, layout, state)
        *outs, _ = mine.run(state)
        found = torch.stack(outs, 2)
        allowed = kernel.slack * _tolerance(start)
        wrong = _difference(found, expected, allowed)
        if wrong is None and kernel.backward is not None:
            weight = torch.rand(expected.shape, generator=generator, dtype=start.dtype).to(start.device)
            wanted = [t for t in (state, *cut.values()) if t.requires_grad]
            gradients = [_gradients(out, weight, wanted) for out in (found, expected)]
            differences = [_difference(a, b, allowed) for a, b in zip(*gradients, strict=True)]
            wrong = next((d for d in differences if d is not None), None)
    if wrong is not None:
        reason = f"{count} intervals of it differ from the plain path by {wrong:.1e}"
        if isinstance(call, parallel.Call):
            call.kernel.refused = reason
        else:
            refuse(field, call, reason)
        raise Refused(reason)
    kernel.checked = True
    mine.kernel.checked = True


def _beginning(loop: Loop, count: int) -> Loop:
    """The first intervals; of those of many steps as much as the first few take, in steps of the same size."""
    few = min(loop.substeps, CHECKED["cpu"])
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
    found = torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]


def _tolerance(state: Tensor) -> float:
    """The relative error to let pass: of the type of the state, or of the products under autocast."""
    return max(TOLERANCE[state.dtype], TOLERANCE.get(multiply.asked(state), 0.0))


def _difference(found: Tensor, expected: Tensor, allowed: float) -> float | None:
    """The relative error where it is too large; entries that are not finite in both count as equal."""
    found, expected = found.detach(), expected.detach()
    both = torch.isfinite(found) & torch.isfinite(expected)
    if bool((torch.isfinite(found) != torch.isfinite(expected)).any()):
        return float("inf")
    found, expected = torch.where(both, found, 0.0), torch.where(both, expected, 0.0)
    error = float((found - expected).abs().max()) if found.numel() else 0.0
    scale = float(expected.abs().max()) if found.numel() else 0.0
    return None if error <= allowed * max(scale, 1e-3) else error / max(scale, 1e-300)
