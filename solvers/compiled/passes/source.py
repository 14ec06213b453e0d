"""What an emitter made: a text, and what its functions take."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from solvers.compiled.step.ir import Matrix


@dataclass
class Signature:
    """The arguments of one function, in order: pointers and integers by name."""

    pointers: list[Hashable] = field(default_factory=list)
    integers: list[Hashable] = field(default_factory=list)

    def pointer(self, name: Hashable) -> int:
        """The place of a pointer."""
        return _place(self.pointers, name)

    def integer(self, name: Hashable) -> int:
        """The place of an integer."""
        return _place(self.integers, name)


def _place(names: list[Hashable], name: Hashable) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)


@dataclass
class Source:
    """What the emitter made.

    Attributes:
        text: the C++ code.
        forward, backward: what the functions take.
        matrices: matrices that are passed packed, by their number in ("matrix", i).
    """

    text: str
    forward: Signature
    backward: Signature | None
    matrices: list[Matrix]
