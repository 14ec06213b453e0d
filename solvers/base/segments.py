"""Where a gradient cuts a loop that runs a segment at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Steps `first` to `last` - 1, through which the errors of the states from step `own` on go back together."""

    first: int
    own: int
    last: int


@dataclass(frozen=True)
class Cut:
    """Where a loop is cut, in steps from its start.

    Attributes:
        edges: where segments begin, and the end of the last one; a segment is whole intervals, or a part of one.
        stored: the edges, the first one among them, at which the state is kept.
        windows: through which errors go back, and no further, whole intervals from edge to edge, each from a stored
            one; None where they go back to the start.
    """

    edges: Sequence[int]
    stored: Sequence[int]
    windows: Sequence[Window] | None = None

    @property
    def longest(self) -> int:
        """Steps of the longest segment, or window."""
        segments = max(last - first for first, last in itertools.pairwise(self.edges))
        return max(segments, *(window.last - window.first for window in self.windows or ()), 0)
