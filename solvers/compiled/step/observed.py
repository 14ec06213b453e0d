"""What a step does besides computing with tensors, seen while it is recorded: draws numbers, reads values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from solvers.compiled.step.refused import Refused

#: What gives the values of a tensor to Python, where a recording does not see what becomes of them.
_READING = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.__contains__),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__complex__, Tensor.__index__, Tensor.__format__),
    *(Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage, Tensor.__repr__),
    *(Tensor.equal, Tensor.allclose, Tensor.is_nonzero, torch.equal, torch.allclose, torch.is_nonzero),
}


class _Values(TorchFunctionMode):
    """Collects the tensors whose values are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READING:
            self.read.update({id(t): t for t in args if isinstance(t, Tensor)})
        return func(*args, **(kwargs or {}))


class Undrawn(TorchDispatchMode):
    """Refuses what draws random numbers, before it does: what asks for them is left to the plain path."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refused("it draws random numbers")
        return func(*args, **(kwargs or {}))


@contextmanager
def observed() -> Iterator[dict[int, Tensor]]:
    """The tensors whose values are read meanwhile, by address.

    Raises:
        Refused: random numbers were asked for. None are drawn: a generator belongs to the process, and putting it back
            would take away what another thread has drawn.
    """
    with _Values() as values, Undrawn():
        yield values.read
