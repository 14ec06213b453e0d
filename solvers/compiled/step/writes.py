"""What a step sets on the modules of its field, which a recorded step would not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from solvers.compiled.step.refused import Refused


@contextmanager
def unwritten(field: Any) -> Iterator[None]:
    """Take back what is set on the modules of a field, and refuse a step that sets anything.

    Raises:
        Refused: an attribute was set, such as a count of evaluations.
    """
    modules = list(field.modules()) if isinstance(field, nn.Module) else []
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        written = [_restored(module, kept) for module, kept in zip(modules, before, strict=True)]
    for module, names in zip(modules, written, strict=True):
        if names:
            raise Refused(f"a step sets {names[0]!r} on {type(module).__name__}")


def _restored(module: nn.Module, kept: dict[str, Any]) -> list[str]:
    """The attributes that are others than those kept, put back."""
    now = vars(module)
    names = [name for name, value in now.items() if name not in kept or kept[name] is not value]
    if names or len(now) != len(kept):
        now.clear()
        now.update(kept)
    return names
