"""From a loop to a kernel for its steps, and the call of that kernel; each different step is made once per field."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers.base.counted import bare
from solvers.base.leaves import Key
from solvers.base.loop import Loop
from solvers.base.sharing import Lineage, lineage
from solvers.compiled.passes.arguments import Kernel
from solvers.compiled.passes.call import Call
from solvers.compiled.passes.maker import Maker
from solvers.compiled.passes.precision import working
from solvers.compiled.step.columns import Columns, Item, kind_of
from solvers.compiled.step.fingerprint import fingerprint, memory_of
from solvers.compiled.step.layout import Layout
from solvers.compiled.step.plan import program
from solvers.compiled.step.refused import Refused
from solvers.compiled.step.trace import Traced, field_tensors, trace

_LOCK = threading.RLock()


@dataclass
class Entry:
    """What is known of one kind of step of one field: its trace, or why there is none, and its kernels."""

    traced: Traced | None = None
    refused: str = ""
    kernels: dict[Any, Kernel | Refused] = field(default_factory=dict)


#: By the lineage of a field: a network under another solver, made anew for each evaluation, finds what was made before.
_ENTRIES: weakref.WeakKeyDictionary[Lineage, dict[Any, Entry]] = weakref.WeakKeyDictionary()


def call_for(maker: Maker, original: Any, loop: Loop, layout: Layout, state: Tensor) -> Call:
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
    bound = bare(loop.field)
    columns = Columns(loop, state.shape[0])
    # One thread records at a time, and what several ask for is made once.
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
                # Kept, too: a step that cannot be planned would be tried in vain at every call.
                entry.kernels[key] = type(error)(str(error))
        kernel = entry.kernels[key]
    if isinstance(kernel, Refused):
        raise type(kernel)(str(kernel))
    if kernel.refused:
        raise Refused(kernel.refused)
    return Call(kernel, traced, loop, layout, tensors)


def _entry(maker: Maker, original: Any, loop: Loop, layout: Layout, state: Tensor, columns: Columns) -> Entry:
    bound = bare(loop.field)
    plain_items = tuple((i.key, i.uniform, i.number, i.shape, i.batch) for i in columns.items)
    shape = (state.shape[1:], state.dtype, state.device, torch.get_default_dtype())

    def key() -> Hashable:
        return (kind_of(loop.paths), plain_items, shape, fingerprint(original, bound, loop.solver))

    memory = memory_of(original)
    try:
        entries = _ENTRIES.setdefault(lineage(original), {})
        known = entries.get(key())
    except TypeError:
        raise Refused("the solver or an attribute of the field cannot be told apart from others") from None
    if known is not None:
        return known
    made, before = Entry(), memory.number
    # What can be compiled without the step is, while it is recorded.
    maker.begin(state)
    try:
        with torch.autocast(state.device.type, enabled=False):
            traced = trace(loop, layout, state, columns.items)
        if memory.look(original) != before:
            raise Refused("a step changes what it reads, which only plain steps do each time")
        memory.learn(original, traced.read)
        made.traced = traced
    except Refused as error:
        made.refused = str(error)
    if len(entries) > 64:
        # A number that changes from call to call would fill the memory with kernels that serve once.
        entries.clear()
    # Not before it is whole: a step whose recording was interrupted is recorded again.
    entries[key()] = made
    return made


def forget(original: Any) -> None:
    """Record the steps of a field anew when they are needed next."""
    with _LOCK:
        _ENTRIES.pop(lineage(original), None)


def _tensors(
    traced: Traced, bound: Any, columns: Columns, state: Tensor
) -> tuple[list[Tensor], list[Item], list[Item]]:
    """What the kernel is given: whole columns, numbers, and the field's tensors that the prologue takes."""
    items = [i for i in columns.items if i.key in traced.stepwise and not i.uniform]
    scalars = [i for i in columns.items if i.key in traced.stepwise and i.uniform]
    known = field_tensors(bound)
    by_key = {i.key: i for i in columns.items}
    prologue_inputs, plain = [], not torch.is_autocast_enabled(state.device.type)
    for key in traced.given:
        tensor = known[key] if key in known else _step_size(columns, by_key[key], state.dtype)
        if key in known and tensor.is_floating_point() and tensor.dtype != state.dtype and plain:
            raise Refused(f"{key[-1]} has dtype {tensor.dtype}, the state {state.dtype}")
        prologue_inputs.append(tensor.to(state.device, working(state.dtype) if tensor.is_floating_point() else None))
    parts = [_spread(columns, item, state.dtype) for item in items]
    parts += [_step_size(columns, item, state.dtype) for item in scalars]
    if any(item.number and item.key[-1] == "start" for item in items):
        clock = columns.loop.clock
        if clock.late(working(state.dtype), len(clock)):
            raise Refused(f"its times lie too far from zero to be told apart in {working(state.dtype)}")
    for item, part in zip(items + scalars, parts, strict=True):
        if not item.number and part.dtype != state.dtype and plain:
            raise Refused(f"{item.key[-1]} has dtype {part.dtype}, the state {state.dtype}")
    moved = [part.to(state.device, working(part.dtype)) for part in parts]
    return [*moved, *prologue_inputs], items, scalars


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
    prologue_inputs = tensors[len(names) :]
    wanted: set[Key] = {n for n, t in zip(names, tensors, strict=False) if t.requires_grad}
    for i, behind in enumerate(traced.behind):
        if any(prologue_inputs[k].requires_grad for k in behind):
            wanted.add(("uniform", i))
    return frozenset(wanted)
