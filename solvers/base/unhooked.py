"""Hooks: those of modules, and derivatives on the way out of sight of a caller's saved-tensor hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_autograd: Any = torch._C._autograd


@contextmanager
def unhooked() -> Iterator[None]:
    """Store tensors as autograd does by itself, whatever saved-tensor hooks are set.

    For a derivative that is part of a step (a Jacobian, the gradient of an energy). The hooks of checkpointing would
    answer each such derivative with a recomputation of everything before it, and function transforms refuse to work
    under hooks at all.
    """
    hooks: list[Any] = []
    if torch.compiler.is_compiling():
        yield
        return
    try:
        while (top := _autograd._top_saved_tensors_default_hooks(True)) is not None:
            _autograd._pop_saved_tensors_default_hooks()
            hooks.append(top)
        yield
    finally:
        for pack, unpack in reversed(hooks):
            _autograd._push_saved_tensors_default_hooks(pack, unpack)
