"""What a forward pass keeps for a backward pass that evaluates the field anew."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from solvers.base.counted import again, bare
from solvers.base.hidden import Watch, lost
from solvers.base.leaves import Leaves
from solvers.base.loop import Loop
from solvers.base.modules import Likeness, parameters_of
from solvers.base.state import parts_of
from solvers.errors import ChangedTensorError
from solvers.protocol import describe


class Snapshot:
    """A field as it was in the forward pass, and the tensors that it hides.

    Args:
        field: the field.
        watch: has seen it evaluated.
        known: tensors that do not count as hidden, beside the parameters and constants of the field.
        before: its buffers before that evaluation.

    Attributes:
        hidden: the tensors with a gradient that the evaluation read beside the known ones.
        likeness: of the field, if it is a module.
        field: the module of that, or the function, without attributes of its own.
    """

    def __init__(self, field: Any, watch: Watch, known: Sequence[Tensor], before: Versions) -> None:
        parameters, constants = parameters_of(field), getattr(field, "constants", {}).values()
        self._named = (*parameters.values(), *(value for value in constants if isinstance(value, Tensor)))
        self.hidden = watch.hidden((*known, *self._named))
        read = [(f"parameter {name!r}", tensor) for name, tensor in parameters.items()]
        read += [("a tensor in a closure or an attribute", tensor) for tensor in self.hidden]
        # A buffer that the field changes by itself, as the mean of a normalization, is not looked at again.
        self.versions = Versions([*read, *before.unchanged()])
        self.likeness: Likeness | None = None
        self.field = bare(field)
        if isinstance(self.field, nn.Module):
            self.likeness = Likeness(self.field, set(map(id, (*known, *self._named, *self.hidden))))
            self.field = self.likeness.module
        elif isinstance(self.field, FunctionType):
            self.field = _unattributed(self.field)

    def counting(self) -> AbstractContextManager[None]:
        """What the field counts in itself is counted in the module it was made of; see `Likeness.counting`."""
        return contextlib.nullcontext() if self.likeness is None else self.likeness.counting()

    def check(self) -> None:
        """Refuse to evaluate the field again where a tensor of it was changed in place.

        Raises:
            ChangedTensorError: one was.
        """
        self.versions.check(self.field)

    def compare(self, watch: Watch, known: Sequence[Tensor]) -> None:
        """Refuse an evaluation that read other tensors, as a function does that now closes over others.

        Raises:
            PairingError: it did.
        """
        others = [tensor for tensor in watch.hidden((*known, *self._named, *self.hidden)) if tensor.is_leaf]
        if others:
            raise lost(self.field, others[0])


def _unattributed(function: FunctionType) -> FunctionType:
    """A function that computes the same and has no attributes: states that are kept there would never be freed."""
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__qualname__, copy.__module__ = (
        function.__kwdefaults__,
        function.__qualname__,
        function.__module__,
    )
    return copy


class Kept:
    """What a loop leaves to its backward pass.

    The first step that is taken through `interval` or `steps` is watched; the rest is known after it.

    Attributes:
        loop: with the field as it was.
        snapshot: of the field.
    """

    loop: Loop
    snapshot: Snapshot

    def __init__(self, loop: Loop) -> None:
        self._buffers = Versions.of_buffers(loop.field)

    def interval(self, loop: Loop, i: int, carried: Any) -> Any:
        """Interval i of the loop."""
        if hasattr(self, "loop"):
            return loop.interval(i, carried)
        watch = Watch()
        after = watch.interval(loop, i, carried)
        self._settle(loop, i, carried, watch)
        return after

    def steps(self, loop: Loop, i: int, carried: Any, first: int, last: int) -> Any:
        """Steps `first` to `last` - 1 of interval i."""
        if hasattr(self, "loop") or first == last:
            return loop.steps(i, carried, first, last)
        watch = Watch()
        after = watch.steps(loop, i, carried, first, first + 1)
        self._settle(loop, i, carried, watch)
        return loop.steps(i, after, first + 1, last)

    def again(self, i: int, carried: Any) -> Any:
        """An interval that `interval` has taken; see `Snapshot.compare`."""
        if not self.snapshot.hidden:
            return self.loop.interval(i, carried)
        watch = Watch()
        try:
            return watch.interval(self.loop, i, carried)
        finally:
            # Also where checkpointing has what it needs before the end of the step.
            self.snapshot.compare(watch, _known(self.loop, i, carried))

    def _settle(self, loop: Loop, i: int, carried: Any, watch: Watch) -> None:
        self.snapshot = Snapshot(loop.field, watch, _known(loop, i, carried), self._buffers)
        self.loop = dataclasses.replace(loop, field=again(loop.field, self.snapshot.field))

    def leaves(self, first: int, last: int) -> Leaves:
        """What intervals `first` to `last` - 1 depend on."""
        return Leaves(self.loop, first, last, self.snapshot.hidden, self.snapshot.likeness)

    def check(self, versions: Versions) -> None:
        """Refuse to step again where a tensor of the field, or one of these, was changed in place.

        Raises:
            ChangedTensorError: one was.
        """
        self.snapshot.check()
        versions.check(self.snapshot.field)


class Versions:
    """Tensors, and how often each was changed in place so far.

    Args:
        tensors: each with what it is called in a message.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.entries = [(name, t, t._version) for name, t in tensors if not t.is_inference()]

    @classmethod
    def of(cls, leaves: Leaves) -> Versions:
        """Those of what a stretch of a loop depends on besides the field."""
        called = {"constant": "a constant", "path": "the input", "start": "a time", "span": "a time"}
        named = ((called.get(str(key[0])), tensor) for key, tensor in leaves.tensors.items())
        return cls((name, tensor) for name, tensor in named if name is not None)

    @classmethod
    def of_buffers(cls, field: Any) -> Versions:
        """Those of the buffers of a field."""
        module = bare(field)
        named = module.named_buffers() if isinstance(module, nn.Module) else ()
        return cls((f"buffer {name!r}", tensor) for name, tensor in named)

    def unchanged(self) -> list[tuple[str, Tensor]]:
        """Those that are as they were."""
        return [(name, tensor) for name, tensor, version in self.entries if tensor._version == version]

    def check(self, field: Any) -> None:
        """Refuse tensors that were changed.

        Raises:
            ChangedTensorError: one was.
        """
        for name, tensor, version in self.entries:
            if tensor._version != version:
                raise ChangedTensorError(
                    f"{name} of {describe(field)} was changed in place after the forward pass, and the backward pass "
                    "needs what it was: call backward before the step of the optimizer, or change a copy"
                )


def _known(loop: Loop, i: int, carried: Any) -> tuple[Tensor, ...]:
    return *Leaves(loop, i, i + 1).tensors.values(), *parts_of(carried)
