"""Physical systems that keep their energy: where they are over time, from where they start."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

import neuralosc
import solvers
from experiments.tasks.base import Splits, Task, positive
from experiments.tasks.series import Series, batch_of
from solvers.errors import InputError

TEST = 2
#: Of the reference, relative and absolute: its energy keeps nine digits over the longest horizons of the defaults.
RTOL, ATOL = 1e-10, 1e-11


class Physical(Task):
    """Trajectories of a Hamiltonian system from drawn states; asked are the positions, row by row.

        dq/dt = dH/dp,    dp/dt = -dH/dq

    The first sample of x is the state (q, p) at time 0, all others are 0; row i of y is the position q after i + 1
    steps. Every component of q(0) and of p(0) is drawn uniformly from an interval that the system names. In the
    training and in the validation set states and positions are seen with Gaussian noise; the test set has none, and is
    `ahead` times as long. Reference trajectories are those of dopri8 in double precision at a tolerance of 1e-10.

    For a network that is an energy alone, take --field neuralosc:NeuralHamiltonian --start-from sample, with the
    degrees of freedom as its hidden size and --dt equal to --step. Its momentum is shown at time 0 alone; a read-out
    of as many channels as positions begins as the identity, since from a random one the training ends in another
    minimum, as it does from trajectories much longer than a period. `energy_error` judges the states. Any other network
    is shown the same.

    Source: Chen, Zhang, Arjovsky, Bottou, Symplectic Recurrent Neural Networks, ICLR 2020, whose loss is of q and p;
    Greydanus, Dzamba, Yosinski, Hamiltonian Neural Networks, NeurIPS 2019.

    Args:
        length: rows of a trajectory that is trained on.
        step: time between two rows, above 0.
        noise: standard deviation of the noise of training and validation, at least 0.
        ahead: rows of a test trajectory, in lengths.
        train_size, validation_size, test_size: trajectories in each set.
    """

    kind = "regression"
    metrics = ("mse", "rmse")
    every = True
    echoed = True
    baseline = "the position at the start, held"
    #: Degrees of freedom, and the largest q and p at the start.
    freedom: ClassVar[int]
    reach: ClassVar[tuple[float, float]]

    def __init__(
        self,
        length: int = 5,
        step: float = 0.4,
        noise: float = 0.01,
        ahead: int = 20,
        train_size: int = 500,
        validation_size: int = 100,
        test_size: int = 100,
    ) -> None:
        # The longest are those of the test, `ahead` times as long: a run keeps the options as attributes.
        self.length, self.ahead = positive(self.name, "length", length), positive(self.name, "ahead", ahead)
        self.step = _number(self.name, "step", step, above=True)
        self.noise = _number(self.name, "noise", noise, above=False)
        self.train_size = positive(self.name, "train_size", train_size)
        self.validation_size = positive(self.name, "validation_size", validation_size)
        self.test_size = positive(self.name, "test_size", test_size)
        self.input_size, self.output_size = 2 * self.freedom, self.freedom
        self._made: tuple[int, Splits] | None = None

    @staticmethod
    @abstractmethod
    def energy(q: Tensor, p: Tensor) -> Tensor:
        """H of positions and momenta `(*batch, freedom)`, `(*batch,)`; 0 at rest."""

    @classmethod
    def slope(cls, t: solvers.Time, state: Tensor, u: Tensor | None) -> Tensor:
        """(dH/dp, -dH/dq) of the true energy, without its graph."""
        with torch.enable_grad():
            point = state.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cls.energy(*point.unbind(-2)).sum(), point)
        return torch.stack((gradient[..., 1, :], -gradient[..., 0, :]), -2)

    @classmethod
    def trajectory(cls, start: Tensor, times: Tensor) -> Tensor:
        """The true states `(batch, times, 2, freedom)` from `(batch, 2, freedom)` at times[0] on, in float64."""
        with torch.no_grad():
            found = solvers.integrate(cls.slope, start.double(), times.double(), method="dopri8", rtol=RTOL, atol=ATOL)
        return found.states

    def splits(self, seed: int = 0) -> Splits:
        """Sets with no trajectory in common; `seed` chooses the trajectories and their noise."""
        if self._made is None or self._made[0] != seed:
            train, validation, test = (self._set(seed, part) for part in range(3))
            self._made = seed, (train, validation, test)
        return self._made[1]

    def guesses(self, part: int) -> dict[str, Tensor]:
        """The position that was shown, held, of the sets that were made last."""
        made = self._made[1] if self._made else self.splits()
        x = batch_of(made[part], slice(None)).x
        return {"position at the start": x[:, :1, : self.freedom].expand(-1, x.shape[1], -1)}

    def energy_error(self, model: neuralosc.SequenceModel, part: int = TEST, seed: int = 0) -> float:
        """How far the energy of a network's states strays: the largest |H - H(0)| of a trajectory, the mean over all.

        It is in units of the mean true energy of the set. H is the true energy, H(0) that of the first sample.

        Args:
            model: of a network whose state is (q, p) in the units of the task, one layer of 2 components and `freedom`
                channels that starts from its first sample, such as `NeuralHamiltonian` with `start_from="sample"`.
            part: 0, 1 or 2, the training, validation or test set.
            seed: as of `splits`.

        Raises:
            InputError: another network, or scaled inputs.
        """
        rnn = model.rnn
        field = rnn.fields[0] if isinstance(rnn, neuralosc.ContinuousRNN) and len(rnn.fields) == 1 else None
        x = batch_of(self.splits(seed)[part], slice(None)).x.to(model.readout.weight)
        start = x[:, 0].unflatten(-1, (2, self.freedom))
        with torch.no_grad():
            found = field.initial_state(x[:, 0]) if isinstance(field, neuralosc.VectorField) else None
            if field is None or model.input_scaler is not None or found is None or not _equal(found, start):
                raise InputError(
                    f"energy_error of task {self.name!r}: the state of the network is not (q, p) from the first sample "
                    f"on: expected one layer of a field such as NeuralHamiltonian({self.input_size}, {self.freedom}, "
                    "start_from='sample')"
                )
            assert isinstance(rnn, neuralosc.ContinuousRNN)
            states = rnn.solve(x).states.double()
            energies, first = self.energy(*states.unbind(-2)), self.energy(*start.double().unbind(-2))
            return float((energies - first.unsqueeze(1)).abs().amax(1).mean() / first.mean())

    def _set(self, seed: int, part: int) -> Series:
        """A set: the stream of its starts, and one of its noise."""
        size = (self.train_size, self.validation_size, self.test_size)[part]
        rows = self.length * self.ahead if part == TEST else self.length
        # Numbers are drawn trajectory by trajectory: sets of other sizes begin with the same ones.
        drawn = np.random.Generator(np.random.Philox(key=[seed, part])).random((size, 2, self.freedom))
        start = torch.from_numpy((2 * drawn - 1) * np.array(self.reach)[:, None])
        q = self.trajectory(start, self.step * torch.arange(rows + 1, dtype=torch.float64))[:, 1:, 0]
        x = torch.zeros(size, rows, self.input_size, dtype=torch.float64)
        x[:, 0] = start.flatten(1)
        if part != TEST:
            random = np.random.Generator(np.random.Philox(key=[seed, 3 + part]))
            noise = self.noise * torch.from_numpy(random.standard_normal((size, self.input_size + rows * self.freedom)))
            x[:, 0] += noise[:, : self.input_size]
            q = q + noise[:, self.input_size :].unflatten(1, (rows, self.freedom))
        return Series(x.float(), q.float(), every=True)


def _number(task: str, option: str, value: object, above: bool) -> float:
    """`value` if it is finite and above 0, or at least 0, else an InputError that names the option of the task."""
    bad = isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value)
    if bad or value < 0 or (above and value == 0):  # type: ignore[operator]
        expected = "above 0" if above else "of at least 0"
        raise InputError(f"task {task!r}: option {option!r} is {value!r}: expected a number {expected}")
    return float(value)  # type: ignore[arg-type]


def _equal(found: Tensor, start: Tensor) -> bool:
    return found.shape == start.shape and torch.equal(found, start)


class Pendulum(Physical):
    """A pendulum that swings and does not turn over: H = p^2 / 2 + 1 - cos q, |q(0)| <= 2, |p(0)| <= 1."""

    name = "pendulum"
    description = "positions of a swinging pendulum from a noisy start (generated from a seed)"
    freedom, reach = 1, (2.0, 1.0)

    @staticmethod
    def energy(q: Tensor, p: Tensor) -> Tensor:
        """H = p^2 / 2 + 1 - cos q."""
        # 1 - cos q = 2 sin^2(q / 2), which has its digits near 0.
        return (p.square() / 2 + 2 * torch.sin(q / 2).square()).sum(-1)


class Duffing(Physical):
    """A ball in two wells: H = p^2 / 2 + (q^2 - 1)^2 / 4, |q(0)| <= 1.5, |p(0)| <= 1."""

    name = "duffing"
    description = "positions of a ball in two wells (Duffing) from a noisy start (generated from a seed)"
    freedom, reach = 1, (1.5, 1.0)

    @staticmethod
    def energy(q: Tensor, p: Tensor) -> Tensor:
        """H = p^2 / 2 + (q^2 - 1)^2 / 4."""
        return (p.square() / 2 + (q.square() - 1).square() / 4).sum(-1)


class HenonHeiles(Physical):
    """A star in the plane: H = |p|^2 / 2 + |q|^2 / 2 + q1^2 q2 - q2^3 / 3, all of |q(0)|, |p(0)| <= 1/4.

    So H < 1/6, below which no trajectory leaves.
    """

    name = "henon_heiles"
    description = "positions of a star in the potential of Henon and Heiles from a noisy start (generated from a seed)"
    freedom, reach = 2, (0.25, 0.25)

    @staticmethod
    def energy(q: Tensor, p: Tensor) -> Tensor:
        """H = |p|^2 / 2 + |q|^2 / 2 + q1^2 q2 - q2^3 / 3."""
        first, second = q.unbind(-1)
        return (p.square() + q.square()).sum(-1) / 2 + first.square() * second - second**3 / 3


class SpringChain(Physical):
    """Five masses between two walls, joined by springs: H = |p|^2 / 2 + sum (q_(i+1) - q_i)^2 / 2, i = 0..5.

    q_0 = q_6 = 0 are the walls; all of |q(0)|, |p(0)| <= 1. Mode k has the frequency 2 sin(k pi / 12).
    """

    name = "spring_chain"
    description = "positions of five masses on springs from a noisy start (generated from a seed)"
    freedom, reach = 5, (1.0, 1.0)

    @staticmethod
    def energy(q: Tensor, p: Tensor) -> Tensor:
        """H = |p|^2 / 2 + sum (q_(i+1) - q_i)^2 / 2."""
        return (p.square().sum(-1) + torch.nn.functional.pad(q, (1, 1)).diff(dim=-1).square().sum(-1)) / 2


class DoublePendulum(Physical):
    """Two pendulums, one on the other, of masses, lengths and gravity 1; H does not separate.

        H = (p1^2 + 2 p2^2 - 2 p1 p2 cos(q1 - q2)) / (2 (1 + sin^2(q1 - q2))) + 2 (1 - cos q1) + 1 - cos q2

    |q(0)| <= 1, |p(0)| <= 1/2. The kinetic energy depends on q: explicit symplectic methods and their compositions do
    not fit such a system. Learn it with --energy-form dense, under rk4 or implicit_midpoint.
    """

    name = "double_pendulum"
    description = "angles of a double pendulum, whose energy does not separate, from a noisy start (from a seed)"
    freedom, reach = 2, (1.0, 0.5)

    @staticmethod
    def energy(q: Tensor, p: Tensor) -> Tensor:
        """H = (p1^2 + 2 p2^2 - 2 p1 p2 cos(q1 - q2)) / (2 (1 + sin^2(q1 - q2))) + 2 (1 - cos q1) + 1 - cos q2."""
        apart, (first, second) = q[..., 0] - q[..., 1], p.unbind(-1)
        doubled = first.square() + 2 * second.square() - 2 * first * second * torch.cos(apart)
        heights = 2 * torch.sin(q / 2).square()
        return doubled / (2 * (1 + torch.sin(apart).square())) + 2 * heights[..., 0] + heights[..., 1]
