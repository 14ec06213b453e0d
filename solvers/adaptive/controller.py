"""Step sizes that each sample chooses for itself."""

from __future__ import annotations

import numpy as np

from solvers.adaptive.batch import Array, PerSample
from solvers.base.counted import Tally


class Progress(Tally):
    """What every sample has cost so far, and what it takes along from interval to interval.

    Attributes:
        status: a `Status` each.
        next: the step to take next, in units of time; nan where none is known yet.
        memory: what `StepController` remembers of the error of the last step.
    """

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.status = np.zeros(samples, np.int64)
        self.next, self.memory = np.full(samples, np.nan), np.ones(samples)


class StepController:
    """The rows of a batch on their way from s = 0 to 1.

    A PI controller: after a step of error e (1 is the tolerance), the next is 0.9 e^-0.6/k e_before^0.2/k times as
    long, where the error estimate is of order k in the step; after a rejected one 0.9 e^-1/k times.

    Attributes:
        ids: the sample of each row.
        live: rows that have not arrived.
        s: how far each row has come.
        ds: the step each row wants to take.
        tried: attempted steps of each row in this interval.
        memory: e_before^0.2/k of each row.
        blind: attempts in a row of each row whose error was no number.
        rounds: attempted steps of the row that tried most.

    Source: Söderlind, Automatic control and adaptive time-stepping, Numer. Algorithms 31 (2002), PI4020; Hairer,
    Norsett, Wanner, Solving Ordinary Differential Equations I, II.4.
    """

    safety, shrink, grow = 0.9, 0.2, 10.0

    def __init__(self, solver: PerSample, tally: Progress, span: Array, live: Array, tiny: float) -> None:
        self.tally, self.span, self.live = tally, span, live
        self.ids, self.s = np.arange(len(span)), np.zeros(len(span))
        moving = np.where(span > 0, span, 1.0)
        self.least = np.where(span > 0, np.maximum(solver.min_step / moving, tiny), tiny)
        self.most = np.where(span > 0, (solver.max_step or np.inf) / moving, np.inf)
        # A span of zero is one step, whatever the field does.
        self.ds = np.where(span > 0, tally.next / moving, 1.0)
        self.bounced, self.blind = np.zeros(len(span), dtype=bool), np.zeros(len(span), np.int64)
        self.tried, self.taken = np.zeros(len(span), np.int64), np.zeros(len(span), np.int64)
        self.root = 0.2 / solver.error_order
        self.memory, self.rounds = tally.memory.copy(), 0

    @property
    def floor(self) -> Array:
        """The least step of each row: the one asked for, or what still moves its clock."""
        floor: Array = np.maximum(self.least, 1e-15 * self.s)
        return floor

    def propose(self) -> Array:
        """The steps to try: the last one lands on the end, and the two before it share what is left."""
        left = 1.0 - self.s
        ds = np.maximum(self.ds, self.floor)
        near = 2 * ds > left
        if np.count_nonzero(near):
            ds = np.where(near, np.where(ds * 1.01 >= left, left, left / 2), ds)
        proposed: Array = np.where(self.live, np.minimum(ds, self.most), 0.0)
        return proposed

    def judge(self, ds: Array, error: Array) -> Array:
        """Accept steps or reject them, and choose the ones that follow."""
        accept: Array = (error <= 1) & self.live
        # Every power of the error that is needed is one of this root: e^(0.2/k).
        root = np.maximum(error, 1e-10) ** self.root
        factor = self.safety * self.memory / root**3
        if np.count_nonzero(young := self.taken < 3):
            # The first steps grow out of a cautious guess: there, memory would only hold them back.
            factor = np.where(young & (error < 0.1), self.safety / root**5, factor)
        factor = np.minimum(np.maximum(factor, self.shrink), self.grow)
        if np.count_nonzero(self.bounced):
            factor = np.where(self.bounced, np.minimum(factor, 1.0), factor)
        # A step cut short by the end of the interval says little: the one it was cut from still stands.
        following = np.maximum(factor * ds, np.minimum(factor, 1.0) * self.ds)
        end, memory = np.where(ds >= 1.0 - self.s, 1.0, self.s + ds), np.maximum(root, 1e-4**self.root)
        if np.count_nonzero(accept) == len(accept):
            self.s, self.ds, self.memory = end, following, memory
        else:
            back = np.where(np.isfinite(error), np.clip(self.safety / root**5, 0.1, 0.9), self._blindly(error)) * ds
            self.s = np.where(accept, end, self.s)
            self.ds = np.where(accept, following, np.where(self.live, back, self.ds))
            self.memory = np.where(accept, memory, self.memory)
        self.bounced = ~accept
        self.tried += self.live
        self.taken += accept
        self.rounds += 1
        return accept

    def _blindly(self, error: Array) -> Array:
        """The factor after an error that is no number (an overflow, an equation not solved): it cannot say how much.

        A quarter four times in a row, then its square, its fourth power, ...: where no step is short enough, the floor
        is reached in a dozen attempts and not in five hundred.
        """
        self.blind = np.where(np.isfinite(error), 0, self.blind * self.bounced + 1)
        factor: Array = np.exp2(-2.0 * np.exp2(np.clip(self.blind - 4, 0, 8)))
        return factor

    def drop(self, leaving: Array, evaluations: int) -> None:
        """Take rows out of the batch and enter in the tally what they did."""
        ids, tally = self.ids[leaving], self.tally
        tally.steps[ids] += self.taken[leaving]
        tally.rejections[ids] += (self.tried - self.taken)[leaving]
        tally.evaluations[ids] += evaluations
        moved = leaving & (self.tried > 0) & (self.span > 0)
        tally.next[self.ids[moved]] = (self.ds * self.span)[moved]
        tally.memory[ids] = self.memory[leaving]
        for name in ("ids", "live", "s", "ds", "span", "least", "most", "memory", "bounced", "blind", "tried", "taken"):
            setattr(self, name, getattr(self, name)[~leaving])
