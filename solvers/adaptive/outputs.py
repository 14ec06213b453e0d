"""States at given times inside the steps of the per-sample driver, however the steps fall."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.batch import Array, Round
from solvers.base.values import host


class Outputs:
    """The states at `count` times of every sample, taken from the dense output of the steps that pass over them.

    Asking for more times does not change a step. What no step reaches is NaN.
    """

    def __init__(self, samples: int, count: int) -> None:
        self.samples, self.count = samples, count
        self.places: list[Array] = []
        self.values: list[Tensor] = []

    def put(self, places: Array, states: Tensor) -> None:
        """Store states; `places` is true where a (sample, time) takes the state of its sample."""
        rows, columns = places.nonzero()
        self.places.append(rows * self.count + columns)
        self.values.append(states.index_select(0, torch.from_numpy(rows).to(states.device)))

    def enter(self, fractions: Tensor) -> None:
        """Look at an interval: `(samples, times)`, each time as a fraction of it, not decreasing; (0, 1] is inside."""
        self.fractions = fractions.reshape(-1)
        # A last column that is never reached spares the question whether any time is left.
        self.host = np.pad(host(fractions).astype(np.float64), ((0, 0), (0, 1)), constant_values=np.inf)
        self.next = (self.host <= 0).sum(1)
        self.due = self.host[np.arange(self.samples), self.next]

    def take(self, round_: Round, reached: Array) -> None:
        """Take what lies inside the accepted steps, up to the fractions of the interval that were reached."""
        waiting = self.due[round_.ids] <= reached
        if not np.count_nonzero(waiting):
            return
        rows = waiting.nonzero()[0]
        ids = round_.ids[rows]
        first = self.next[ids]
        counts = (self.host[ids] <= reached[rows, None]).sum(1) - first
        self.next[ids] += counts
        self.due[ids] = self.host[ids, self.next[ids]]
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        samples, columns = np.repeat(ids, counts), np.repeat(first, counts) + within
        ends = self.host[samples, columns] == 1
        places = samples * self.count + columns
        self.places.append(places)
        self.values.append(self._states(round_, np.repeat(rows, counts), places, ends))

    def _states(self, round_: Round, which: Array, places: Array, ends: Array) -> Tensor:
        device = round_.start.device
        fraction = self.fractions.index_select(0, torch.from_numpy(places).to(device))
        theta = (fraction - round_.numbers(round_.s[which])) / round_.numbers(round_.ds[which])
        states = round_.state(which, theta)
        if fraction.requires_grad or not ends.any():
            return states
        # At the end of the interval the state is there already, without the rounding of the interpolation.
        there = round_.attempt.end.index_select(0, torch.from_numpy(which).to(device))
        return torch.where(torch.from_numpy(ends).to(device)[:, None, None], there, states)

    def collect(self) -> Tensor:
        """All of them, `(samples, times, components, hidden)`."""
        values = torch.cat(self.values)
        places = torch.from_numpy(np.concatenate(self.places)).to(values.device)
        blank = values.new_full((self.samples * self.count, *values.shape[1:]), torch.nan)
        states: Tensor = blank.index_copy(0, places, values).unflatten(0, (self.samples, self.count))
        return states
