"""One kernel over one loop: its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.control import entries, with_path_tensors
from solvers.base.counted import bare
from solvers.base.leaves import Key
from solvers.base.loop import Loop
from solvers.base.modules import parameters_of
from solvers.base.precision import unlowered
from solvers.compiled.passes.arguments import Arguments, Kernel, Prologue, assembled, pass_item
from solvers.compiled.step.layout import Layout
from solvers.compiled.step.trace import Traced
from solvers.errors import InputError


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
        with unlowered(given[0].device.type if given else "cpu"):
            return [t.to(self.kernel.dtype) for t in self.traced.prologue(*given)]

    def prologue(self, tensors: Sequence[Tensor]) -> Prologue:
        """What parameters alone decide, computed once for both passes.

        Autograd refuses parameters that were changed between the two, so that in the second it is what it still is.
        """
        _, scalars, prologue_inputs = self.parted(tensors)
        # Cut off here, so that the backward pass can walk through the prologue by itself and no further.
        inputs = [t.detach().requires_grad_(t.requires_grad) for t in prologue_inputs]
        with torch.set_grad_enabled(self.kernel.backward is not None):
            results = self.uniform(inputs)
        uniform = [t.detach() for t in results]
        passed: dict[Any, Tensor] = {}
        for item, tensor in zip(self.kernel.scalars, scalars, strict=True):
            passed["whole", item.key, 0] = tensor.detach().double().reshape(1)
        for i, tensor in enumerate(uniform):
            rows = tensor.contiguous().view(-1, tensor.shape[-1]) if tensor.dim() else tensor.view(1, 1)
            # More rows than that are a matrix, which is passed as one.
            for k, row in enumerate(rows if len(rows) <= 16 else ()):
                passed["uniform", i, k] = row.double() if row.numel() == 1 else row
        for i, matrix in enumerate(self.kernel.source.matrices):
            passed["matrix", i] = self.kernel.matrix(assembled(matrix, uniform))
        return Prologue(inputs, results, passed)

    def arguments(self, state: Tensor, tensors: Sequence[Tensor], prologue: Prologue) -> Arguments:
        """The tensors in the layout of the kernel."""
        kernel, sub = self.kernel, self.loop.substeps
        args = kernel.arguments(len(self.loop) * sub, sub, state)
        for item, whole in zip(kernel.items, self.parted(tensors)[0], strict=True):
            tensor = whole.detach()
            # A kernel takes any strides but along the channels; what has none is read as numbers in double precision.
            if item.batch or (item.shape and item.shape[-1] > 1):
                tensor = tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
            else:
                tensor = tensor.double().contiguous()
            pass_item(args, "step", item, tensor)
        args.tensors.update(prologue.passed)
        return args

    def plainly(self, state: Tensor, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Any]:
        """The gradients by autograd through the plain path, which can be differentiated again."""
        # The plain path does not convert: with parameters of another type than the state it has no gradient to give.
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
            # The tensors that autograd knows are those of whole columns, and the steps must be made from these.
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
        field = bare(loop.field)
        if hasattr(field, "constants"):
            constants = {key[1]: tensor for key, tensor in named.items() if key[0] == "constant"}
            field = field.bind({**field.constants, **constants})
        return type(loop)(field, loop.solver, paths, Clock(starts, spans), 1)
