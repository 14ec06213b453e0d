"""Where a gradient cuts a loop that runs a segment at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """Where a loop is cut, in steps from its start.

    Attributes:
        edges: where segments begin, and the end of the last one; a segment is whole intervals, or a part of one.
        stored: the edges, the first one among them, at which the state is kept.
    """

    edges: Sequence[int]
    stored: Sequence[int]

    @property
    def longest(self) -> int:
        """Steps of the longest segment."""
        return max(last - first for first, last in itertools.pairwise(self.edges))
