"""What a fast path remembers of its comparison with the plain one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True)
class Checked:
    """One kind of fast path for one kind of step, compared with the plain steps before its first use.

    Attributes:
        solves: how often it was used.
        compared: how often one of these solves was compared.
        overlooked: what its step can read that may change without being seen to, or ""; None while nobody has asked.
        checked: it was compared.
        refused: why it is not to be used, where they differ.
        slack: by how much the comparison is wider than that of the data type, for products that round more.
        backward: not None where gradients are given, which are compared then, too.
    """

    solves: int = 0
    compared: int = 0
    overlooked: str | None = None
    checked: bool = False
    refused: str = ""
    slack: float = 1.0
    backward: Any = None
