"""Small fields written straight from the solver protocol, without torch modules."""

import torch

import solvers

torch_double = {"dtype": torch.float64}


def coupling(hidden, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(hidden, hidden, generator=generator, **torch_double) / hidden**0.5


class LinearOscillator:
    """dq = p, dp = -A q - G p: separable up to damping, and semilinear with nothing left over."""

    structure = frozenset({"partitioned", "conformal", "newtonian", "semilinear"})
    stiffness, friction = 2.0, 0.4

    def drive_of(self, t, q, u):
        return torch.zeros_like(q)

    def velocity(self, t, q, p, u):
        return p

    def force(self, t, q, p, u):
        return self.drive_of(t, q, u) - self.stiffness * q - self.friction * p

    def damping(self):
        return self.friction

    def operator(self, terms=None):
        terms = {"stiffness", "damping"} if terms is None else terms
        return solvers.OscillatorOperator(
            self.stiffness if "stiffness" in terms else 0.0, self.friction if "damping" in terms else 0.0
        )

    def nonlinear(self, t, state, u, terms=None):
        return self(t, state, u) - self.operator(terms).apply(state)

    def solve(self, h, state, terms=None):
        return self.operator(terms).solve(h, state)

    def __call__(self, t, state, u):
        q, p = state.unbind(-2)
        return torch.stack((self.velocity(t, q, p, u), self.force(t, q, p, u)), dim=-2)


class DrivenOscillator(LinearOscillator):
    """The same with tanh(W q + u) as further force."""

    def drive_of(self, t, q, u):
        return torch.tanh(q @ coupling(q.shape[-1]) + u)


class TimedOscillator(LinearOscillator):
    """The same with a force that knows the time."""

    def drive_of(self, t, q, u):
        t = torch.as_tensor(t, **torch_double)
        return torch.cos(3 * t) * torch.sin(q + u) + torch.sin(2 * t)


class Swirl:
    """Velocity and force that both see q and p and the time: partitioned and nothing more."""

    structure = frozenset({"partitioned"})

    def velocity(self, t, q, p, u):
        t = torch.as_tensor(t, **torch_double)
        return p * (1 + 0.3 * torch.sin(t)) + 0.4 * torch.sin(q)

    def force(self, t, q, p, u):
        t = torch.as_tensor(t, **torch_double)
        return torch.tanh(u + p @ coupling(p.shape[-1])) - torch.sin(q) * (1 + 0.5 * torch.cos(t)) - 0.2 * p

    __call__ = LinearOscillator.__call__


class DampedSwirl(Swirl):
    """The same, with part of its force declared as linear damping."""

    def damping(self):
        return torch.tensor([0.2, 0.5, 0.9], **torch_double)

    def force(self, t, q, p, u):
        return super().force(t, q, p, u) - self.damping() * p


class FirstOrder:
    """dh = h M + tanh(h W + u) cos(t), semilinear with a dense matrix."""

    structure = frozenset({"semilinear"})

    def operator(self, terms=None):
        return solvers.DenseOperator(coupling(3, seed=5) - 0.5 * torch.eye(3, **torch_double))

    def nonlinear(self, t, state, u, terms=None):
        (h,) = state.unbind(-2)
        t = torch.as_tensor(t, **torch_double)
        return (torch.tanh(h @ coupling(3) + u) * torch.cos(2 * t)).unsqueeze(-2)

    def solve(self, h, state, terms=None):
        return self.operator().solve(h, state)

    def __call__(self, t, state, u):
        return self.operator().apply(state) + self.nonlinear(t, state, u)


class Pendulum:
    """H = p^2 / 2 - cos q, per channel."""

    structure = frozenset({"partitioned", "separable", "hamiltonian"})

    def velocity(self, t, q, p, u):
        return p

    def force(self, t, q, p, u):
        return -torch.sin(q)

    def energy(self, state):
        q, p = state.unbind(-2)
        return p.square() / 2 - torch.cos(q)

    __call__ = LinearOscillator.__call__


class Chain:
    """H = sum log cosh(R p) + |p|^2 / 2 + sum log cosh(W q + u) + |q|^2 / 2: separable, channels coupled in both."""

    structure = frozenset({"partitioned", "separable", "hamiltonian"})

    def velocity(self, t, q, p, u):
        matrix = coupling(p.shape[-1], seed=7)
        return p + torch.tanh(p @ matrix) @ matrix.T

    def force(self, t, q, p, u):
        matrix = coupling(q.shape[-1])
        return -q - torch.tanh(q @ matrix + u) @ matrix.T

    __call__ = LinearOscillator.__call__


def held(u):
    """A control that never changes."""
    return lambda t: u


def run(field, solver, state, samples, spans, substeps=1, control="hold", gradient="backprop"):
    """The states of a solve over intervals of the given lengths, `(time, batch, components, hidden)`."""
    clock = solvers.Clock.of_spans(torch.as_tensor(spans, **torch_double))
    trajectory = solvers.solve(
        field,
        solvers.get(solver),
        solvers.get_gradient(gradient),
        solvers.get_control(control),
        clock,
        samples,
        state,
        substeps,
    )
    return trajectory.states().transpose(0, 1)
