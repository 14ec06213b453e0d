"""What makes a kernel of the plan of a step: C++, pure torch or Triton."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.compiled.passes.arguments import Kernel
from solvers.compiled.step.columns import Item
from solvers.compiled.step.plan import Planned


@dataclass(frozen=True)
class Maker:
    """Makes kernels of one kind.

    Attributes:
        key: from the packed state to what a kernel depends on besides the program.
        make: from what plans the step, key, items, scalars, `working` dtype and gradients wanted to a kernel.
        begin: what can go on while a step is recorded.

    All of them refuse what they cannot take.
    """

    key: Callable[[Tensor], Any]
    make: Callable[[Planned, Any, list[Item], list[Item], torch.dtype, frozenset[Hashable]], Kernel]
    begin: Callable[[Tensor], None] = lambda state: None
