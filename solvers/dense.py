"""States at given times inside the steps of the per-sample driver, however the steps fall."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solvers.rows import Array, Stride


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
        self.host = fractions.detach().cpu().double().numpy()
        self.next = (self.host <= 0).sum(1)

    def take(self, stride: Stride, until: Array) -> None:
        """Take what lies inside the accepted steps, up to the fraction `until` of each."""
        ids, s, ds = stride.ids, stride.s, stride.ds
        landed = (until == 1) & (ds >= 1 - s)
        reached = np.where(stride.taken, np.where(landed, 1.0, s + until * ds), -1.0)
        first = self.next[ids]
        waiting = (first < self.count) & (self.host[ids, np.minimum(first, self.count - 1)] <= reached)
        if not waiting.any():
            return
        rows = waiting.nonzero()[0]
        counts = (self.host[ids[rows]] <= reached[rows, None]).sum(1) - first[rows]
        self.next[ids[rows]] += counts
        which = np.repeat(rows, counts)
        within = np.arange(len(which)) - np.repeat(counts.cumsum() - counts, counts)
        places = ids[which] * self.count + first[which] + within
        self.places.append(places)
        self.values.append(self._states(stride, which, places))

    def _states(self, stride: Stride, which: Array, places: Array) -> Tensor:
        device = stride.start.device
        fraction = self.fractions.index_select(0, torch.from_numpy(places).to(device))
        theta = (fraction - stride.numbers(stride.s[which])) / stride.numbers(stride.ds[which])
        states = stride.state(which, theta)
        ends = self.host.reshape(-1)[places] == 1
        if fraction.requires_grad or not ends.any():
            return states
        # At the end of the interval the state is there already, without the rounding of the interpolation.
        there = stride.attempt.end.index_select(0, torch.from_numpy(which).to(device))
        return torch.where(torch.from_numpy(ends).to(device)[:, None, None], there, states)

    def collect(self) -> Tensor:
        """All of them, `(samples, times, components, hidden)`."""
        values = torch.cat(self.values)
        places = torch.from_numpy(np.concatenate(self.places)).to(values.device)
        found = values.new_full((self.samples * self.count, *values.shape[1:]), torch.nan)
        states: Tensor = found.index_copy(0, places, values).unflatten(0, (self.samples, self.count))
        return states
