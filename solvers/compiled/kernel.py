"""From a loop to a kernel for its steps, and the call of that kernel; each different step is made once per field."""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from solvers.clock import Clock
from solvers.compiled.carried import Layout
from solvers.compiled.inputs import Columns, Item, kind_of
from solvers.compiled.ir import Refused
from solvers.compiled.makers import Maker, working
from solvers.compiled.plan import program
from solvers.compiled.run import Arguments, Kernel, Prologue, Run, packed, pass_item
from solvers.compiled.segmented import Cut, Rebuilt, Segmented, Undo
from solvers.compiled.trace import Traced, field_tensors, trace
from solvers.control import entries, with_path_tensors
from solvers.errors import InputError
from solvers.hooks import has_hooks
from solvers.leaves import parameters_of
from solvers.statistics import Counted

if TYPE_CHECKING:
    from solvers.loop import Loop

Key = tuple[Hashable, ...]
_LOCK = threading.RLock()


@dataclass
class Entry:
    """What is known of one kind of step of one field: its trace, or why there is none, and its kernels."""

    traced: Traced | None = None
    refused: str = ""
    kernels: dict[Any, Kernel | str] = field(default_factory=dict)


_ENTRIES: weakref.WeakKeyDictionary[nn.Module, dict[Any, Entry]] = weakref.WeakKeyDictionary()


def frozen(value: Any, depth: int = 4) -> Hashable:
    """What a value that is no tensor is made of, so that two that differ can be told apart."""
    if isinstance(value, float | int | str | bytes | type(None)):
        return (type(value).__name__, repr(value))
    if isinstance(value, Tensor):
        return ("tensor", id(value), value._version)
    if isinstance(value, tuple | list | set | frozenset) and depth:
        return (type(value).__name__, *(frozen(v, depth - 1) for v in value))
    if isinstance(value, dict) and depth:
        return tuple((frozen(k, 0), frozen(v, depth - 1)) for k, v in value.items())
    if isinstance(value, types.FunctionType) and depth:
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return (_same(value), frozen(cells, depth - 1), frozen(value.__defaults__, depth - 1))
    if isinstance(value, types.MethodType) and depth:
        return (frozen(value.__func__, depth - 1), _same(value.__self__))
    if depth and hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        return (_same(value), frozen(vars(value), depth - 1))
    return _same(value)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _same(value: Any) -> Hashable:
    """Equal for the same object alone, also when another one takes its place in memory."""
    try:
        reference = weakref.ref(value)
        hash(reference)
    except TypeError:
        return id(value)
    return reference


_MODULE_STATE = frozenset(vars(nn.Module())) - {"training"}


def fingerprint(module: nn.Module) -> Hashable:
    """Everything of a field that a recorded step holds as it was: its class, its numbers, its tensors' shapes.

    Raises:
        Refused: it has hooks, which a recorded step would not call.
    """
    parts: list[Hashable] = []
    for name, child in module.named_modules():
        if has_hooks(child):
            raise Refused("the field has hooks")
        own = {k: v for k, v in vars(child).items() if k not in _MODULE_STATE and k not in ("_bound", "operators")}
        tensors = [
            (k, None if t is None else (t.shape, t.dtype, t.requires_grad))
            for kept in (child._parameters, child._buffers)
            for k, t in kept.items()
        ]
        parts.append((name, type(child), frozen(own), tuple(tensors)))
    return tuple(parts)


@dataclass
class Call:
    """One run of a kernel over a loop.

    Attributes:
        tensors: what autograd sees: items, scalars and what the prologue takes.
    """

    kernel: Kernel
    traced: Traced
    loop: Loop
    layout: Layout
    tensors: list[Tensor]

    @property
    def substeps(self) -> int:
        """Steps per interval."""
        return self.loop.substeps

    def run(self, state: Tensor) -> tuple[Tensor, ...]:
        """The components after every interval, and the last state."""
        found: tuple[Tensor, ...] = Run.apply(self, state.to(self.kernel.dtype), *self.tensors)  # type: ignore[no-untyped-call]
        return tuple(t.to(state.dtype) for t in found)

    def run_segmented(
        self, state: Tensor, cut: Cut, kept: Sequence[int], undo: Undo | None = None
    ) -> tuple[Tensor, ...]:
        """The components in `kept` after every interval, and the last state, with memory for one segment at a time."""
        apply, others = (Segmented.apply, []) if undo is None else (Rebuilt.apply, undo.call.tensors)
        found: tuple[Tensor, ...] = apply(self, cut, kept, undo, state.to(self.kernel.dtype), *self.tensors, *others)  # type: ignore[no-untyped-call]
        return tuple(t.to(state.dtype) for t in found)

    def sharing(self, other: Call) -> Call:
        """The same call, with the columns of another one where that has them."""
        known = {item.key: tensor for item, tensor in zip(other.kernel.items, other.tensors, strict=False)}
        items, scalars, given = self.parted(self.tensors)
        shared = [known.get(item.key, tensor) for item, tensor in zip(self.kernel.items, items, strict=True)]
        return replace(self, tensors=[*shared, *scalars, *given])

    def parted(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Items, scalars and what the prologue takes."""
        items, scalars = len(self.kernel.items), len(self.kernel.scalars)
        return tensors[:items], tensors[items : items + scalars], tensors[items + scalars :]

    def uniform(self, given: Sequence[Tensor]) -> list[Tensor]:
        """What the prologue makes of what it takes."""
        return [t.to(self.kernel.dtype) for t in self.traced.prologue(*given)]

    def prologue(self, tensors: Sequence[Tensor]) -> Prologue:
        """What parameters alone decide, computed once for both passes.

        Autograd refuses parameters that were changed between the two, so that in the second it is what it still is.
        """
        _, scalars, given = self.parted(tensors)
        inputs = [t.detach().requires_grad_(t.requires_grad) for t in given]
        with torch.set_grad_enabled(self.kernel.backward is not None):
            results = self.uniform(inputs)
        uniform = [t.detach() for t in results]
        made: dict[Any, Tensor] = {}
        for item, tensor in zip(self.kernel.scalars, scalars, strict=True):
            made["whole", item.key, 0] = tensor.detach().double().reshape(1)
        for i, tensor in enumerate(uniform):
            rows = tensor.contiguous().view(-1, tensor.shape[-1]) if tensor.dim() else tensor.view(1, 1)
            for k, row in enumerate(rows if len(rows) <= 16 else ()):
                made["uniform", i, k] = row.double() if row.numel() == 1 else row
        for i, matrix in enumerate(self.kernel.source.matrices):
            made["matrix", i] = self.kernel.matrix(packed(matrix, uniform))
        return Prologue(inputs, results, made)

    def arguments(self, state: Tensor, tensors: Sequence[Tensor], prologue: Prologue) -> Arguments:
        """The tensors in the layout of the kernel."""
        kernel, sub = self.kernel, self.loop.substeps
        args = kernel.arguments(len(self.loop) * sub, sub, state)
        for item, whole in zip(kernel.items, self.parted(tensors)[0], strict=True):
            tensor = whole.detach()
            if item.batch or (item.shape and item.shape[-1] > 1):
                tensor = tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
            else:
                tensor = tensor.double().contiguous()
            pass_item(args, "step", item, tensor)
        args.tensors.update(prologue.passed)
        return args

    def plainly(self, state: Tensor, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Any]:
        """The gradients by autograd through the plain path, which can be differentiated again."""
        own = next(iter(parameters_of(self.loop.field).values()), state)
        if own.dtype != state.dtype:
            raise InputError(
                f"the gradient of a gradient was asked for in {own.dtype}, expected float32 or float64: convert the "
                "network, or use backend 'plain'"
            )
        items, scalars, given = self.parted(tensors)
        named = dict(zip(self.traced.given, given, strict=True))
        named.update({i.key: t for i, t in zip(self.kernel.scalars, scalars, strict=True)})
        named.update({i.key: t for i, t in zip(self.kernel.items, items, strict=True)})
        with torch.enable_grad():
            loop = self._stepwise(named)
            states = loop.advance(self.layout.taken(state), 0, len(loop))
            whole = torch.stack([self.layout.packed(carried) for carried in states[self.substeps - 1 :: self.substeps]])
            outs = [*whole.unbind(2), whole[-1]]
            pairs = [(out, grad) for out, grad in zip(outs, grads, strict=True) if grad is not None]
            inputs = [t for t in (state, *tensors) if t.requires_grad]
            found = torch.autograd.grad(
                [out for out, _ in pairs], inputs, [grad for _, grad in pairs], create_graph=True, allow_unused=True
            )
        by_input = dict(zip(map(id, inputs), found, strict=True))
        return [by_input.get(id(t)) for t in (state, *tensors)]

    def _stepwise(self, named: dict[Any, Tensor]) -> Loop:
        """The loop with an interval for each step, made of other tensors."""
        loop, sub = self.loop, self.substeps
        uniform = {i.key for i in self.kernel.scalars}
        steps = range(len(loop) * sub)
        parts = {i.key: named[i.key].unbind(0) for i in self.kernel.items}

        def value(key: Key, step: int, plain: Any) -> Any:
            if key in parts:
                return parts[key][step if key == ("start",) else step // sub]
            return named[key] if key in uniform or key in named else plain

        bounds = [loop.substep(i) for i in range(len(loop))]
        starts = tuple(value(("start",), s, bounds[s // sub][0] + s % sub * bounds[s // sub][1]) for s in steps)
        spans = tuple(value(("span",), s, bounds[s // sub][1]) for s in steps)
        paths = []
        for s in steps:
            path = loop.paths[s // sub]
            fields = {n: value(("path", n), s, getattr(path, n)) for n in entries(path)}
            paths.append(with_path_tensors(path, fields))
        field = loop.field.field if isinstance(loop.field, Counted) else loop.field
        if hasattr(field, "constants"):
            constants = {key[1]: tensor for key, tensor in named.items() if key[0] == "constant"}
            field = field.bind({**field.constants, **constants})
        return type(loop)(field, loop.solver, paths, Clock(starts, spans), 1)


def prepare(maker: Maker, original: Any, loop: Loop, layout: Layout, state: Tensor) -> Call:
    """The kernel for a loop, made or found, and its arguments; `state` is the packed one of the layout.

    Args:
        maker: what makes the kernel where there is none yet.
        original: the field as the user gave it.
        loop: with the bound field.
        layout: of what the solver carries.
        state: packed.

    Raises:
        Refused: the loop cannot be taken.
    """
    bound = loop.field.field if isinstance(loop.field, Counted) else loop.field
    columns = Columns(loop, state.shape[0])
    with _LOCK:
        entry = _entry(maker, original, loop, layout, state, columns)
        if entry.traced is None:
            raise Refused(entry.refused)
        traced = entry.traced
        tensors, items, scalars = _tensors(traced, bound, columns, state)
        wanted = _wanted(traced, state, tensors, items, scalars)
        divided = loop.substeps > 1
        key = (maker, maker.key(state), wanted, divided)
        if key not in entry.kernels:
            try:
                plan = functools.partial(program, traced, state.shape[2], wanted, divided)
                made = maker.make(plan, key[1], items, scalars, working(state.dtype), wanted or frozenset())
                entry.kernels[key] = made
            except Refused as error:
                entry.kernels[key] = str(error)
        kernel = entry.kernels[key]
    if isinstance(kernel, str):
        raise Refused(kernel)
    return Call(kernel, traced, loop, layout, tensors)


def refuse(original: Any, call: Call, reason: str) -> None:
    """Remember that a kernel is not to be used."""
    for entry in _ENTRIES.get(original, {}).values():
        for key, kernel in entry.kernels.items():
            if kernel is call.kernel:
                entry.kernels[key] = reason


def _entry(maker: Maker, original: Any, loop: Loop, layout: Layout, state: Tensor, columns: Columns) -> Entry:
    plain_items = tuple((i.key, i.uniform, i.number, i.shape, i.batch) for i in columns.items)
    shape = (state.shape[1:], state.dtype, state.device)
    key = (loop.solver, kind_of(loop.paths), plain_items, shape, fingerprint(original))
    try:
        entries = _ENTRIES.setdefault(original, {})
        known = key in entries
    except TypeError:
        raise Refused("the solver or an attribute of the field cannot be told apart from others") from None
    if not known:
        if len(entries) > 64:
            entries.clear()
        entries[key] = Entry()
        maker.begin(state)
        try:
            # The generator is put back: recording a step must not change what a user draws next.
            with torch.random.fork_rng(devices=[]), torch.autocast(state.device.type, enabled=False):
                entries[key].traced = trace(loop, layout, state, columns.items)
        except Refused as error:
            entries[key].refused = str(error)
    return entries[key]


def _tensors(
    traced: Traced, bound: Any, columns: Columns, state: Tensor
) -> tuple[list[Tensor], list[Item], list[Item]]:
    """What the kernel is given: whole columns, numbers, and the field's tensors that the prologue takes."""
    items = [i for i in columns.items if i.key in traced.stepwise and not i.uniform]
    scalars = [i for i in columns.items if i.key in traced.stepwise and i.uniform]
    known = field_tensors(bound)
    by_key = {i.key: i for i in columns.items}
    given, plain = [], not torch.is_autocast_enabled(state.device.type)
    for key in traced.given:
        tensor = known[key] if key in known else _step_size(columns, by_key[key], state.dtype)
        if key in known and tensor.is_floating_point() and tensor.dtype != state.dtype and plain:
            raise Refused(f"{key[-1]} has dtype {tensor.dtype}, the state {state.dtype}")
        given.append(tensor.to(state.device, working(state.dtype) if tensor.is_floating_point() else None))
    parts = [_spread(columns, item, state.dtype) for item in items]
    parts += [_step_size(columns, item, state.dtype) for item in scalars]
    for item, part in zip(items + scalars, parts, strict=True):
        if not item.number and part.dtype != state.dtype and plain:
            raise Refused(f"{item.key[-1]} has dtype {part.dtype}, the state {state.dtype}")
    taken = [part.to(state.device, working(part.dtype)) for part in parts]
    return [*taken, *given], items, scalars


def _step_size(columns: Columns, item: Item, dtype: torch.dtype) -> Tensor:
    """A whole column; of spans, the size of each of the equal steps they are divided into."""
    whole, substeps = columns.whole(item, dtype), columns.loop.substeps
    return whole / substeps if item.key == ("span",) and substeps > 1 else whole


def _spread(columns: Columns, item: Item, dtype: torch.dtype) -> Tensor:
    """A column as a tensor over the intervals; starts over the steps."""
    whole, substeps = _step_size(columns, item, dtype), columns.loop.substeps
    if item.key != ("start",) or substeps == 1:
        return whole
    span = next(i for i in columns.items if i.key == ("span",))
    spans = _step_size(columns, span, dtype)
    spans = spans if not span.uniform else spans.expand(len(whole), *spans.shape)
    steps = torch.arange(substeps, dtype=whole.dtype, device=whole.device).view(1, -1, *[1] * (whole.dim() - 1))
    extra = [1] * (whole.dim() - spans.dim())
    spans = spans.reshape(len(whole), *extra, *spans.shape[1:])
    return (whole.unsqueeze(1) + steps * spans.unsqueeze(1)).flatten(0, 1)


def _wanted(traced: Traced, state: Tensor, tensors: list[Tensor], items: list[Item], scalars: list[Item]) -> Any:
    """Which gradients to give, or None for none."""
    if not torch.is_grad_enabled() or not (state.requires_grad or any(t.requires_grad for t in tensors)):
        return None
    names: list[Key] = [*(("step", i.key) for i in items), *(("whole", i.key) for i in scalars)]
    given = tensors[len(names) :]
    wanted: set[Key] = {n for n, t in zip(names, tensors, strict=False) if t.requires_grad}
    for i, behind in enumerate(traced.behind):
        if any(given[k].requires_grad for k in behind):
            wanted.add(("uniform", i))
    return frozenset(wanted)
