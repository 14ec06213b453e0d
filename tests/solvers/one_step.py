"""Steps without a loop: small driven fields with parameters, a smooth input, and measures of a one-step map."""

import functools
import math

import torch
from scipy.integrate import solve_ivp

import solvers

F64 = torch.float64


def matrix(size, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(size, size, generator=generator, dtype=F64) / size**0.5


def smooth(t):
    """An input that changes all the time, `(batch or 1, 3)`."""
    t = torch.as_tensor(t, dtype=F64)
    return torch.sin(2 * t + torch.tensor([[0.0, 1.0, 2.0]], dtype=F64))


class Newtonian:
    """dq = p, dp = tanh(q W + u) cos t - A q - G p, with A and G per channel, and a time scale if one is given."""

    structure = frozenset({"partitioned", "newtonian", "semilinear"})

    def __init__(self, stiffness=None, damping=None, scale=None, coupling=None):
        self.A = torch.tensor([2.0, 0.5, 1.0], dtype=F64) if stiffness is None else stiffness
        self.G = torch.tensor([0.4, 1.1, 1.7], dtype=F64) if damping is None else damping
        self.W = matrix(3, 3) if coupling is None else coupling
        self.scale = scale

    def time_scale(self):
        return self.scale

    def damping(self):
        return self.G

    def velocity(self, t, q, p, u):
        return p

    def drive(self, t, q, u):
        return torch.tanh(q @ self.W + u) * torch.cos(torch.as_tensor(t, dtype=F64))

    def force(self, t, q, p, u):
        return self.drive(t, q, u) - self.A * q - self.G * p

    def operator(self, terms=None):
        terms = {"stiffness", "damping"} if terms is None else terms
        return solvers.OscillatorOperator(
            self.A if "stiffness" in terms else 0.0, self.G if "damping" in terms else 0.0
        )

    def nonlinear(self, t, state, u, terms=None):
        return self(t, state, u) - self.operator(terms).apply(state)

    def solve(self, h, state, terms=None):
        return self.operator(terms).solve(h, state)

    def __call__(self, t, state, u):
        q, p = state.unbind(-2)
        return torch.stack((self.velocity(t, q, p, u), self.force(t, q, p, u)), dim=-2)


class Conformal(Newtonian):
    """The same with a velocity that couples the channels, so that the kinetic energy is not quadratic."""

    structure = frozenset({"partitioned", "conformal"})

    def velocity(self, t, q, p, u):
        return p + torch.tanh(p @ self.W) @ self.W.T


class Coupled(Newtonian):
    """The same with a velocity that sees q and the time, and a force that sees p beyond its damping."""

    structure = frozenset({"partitioned"})

    def velocity(self, t, q, p, u):
        return p + 0.4 * torch.sin(q + torch.as_tensor(t, dtype=F64))

    def drive(self, t, q, u):
        return super().drive(t, q, u)

    def force(self, t, q, p, u):
        return super().force(t, q, p, u) + 0.5 * torch.sin(p @ self.W)


class Undamped(Coupled):
    """The same without any declared damping."""

    def damping(self):
        return None


class Dense:
    """dh = h M + tanh(h W + u) cos 2t, semilinear with a dense matrix."""

    structure = frozenset({"semilinear"})

    def __init__(self, linear=None, coupling=None):
        self.M = matrix(3, 5) - 0.5 * torch.eye(3, dtype=F64) if linear is None else linear
        self.W = matrix(3, 3) if coupling is None else coupling

    def operator(self, terms=None):
        return solvers.DenseOperator(self.M)

    def nonlinear(self, t, state, u, terms=None):
        (h,) = state.unbind(-2)
        return (torch.tanh(h @ self.W + u) * torch.cos(2 * torch.as_tensor(t, dtype=F64))).unsqueeze(-2)

    def solve(self, h, state, terms=None):
        return self.operator().solve(h, state)

    def __call__(self, t, state, u):
        return self.operator().apply(state) + self.nonlinear(t, state, u)


def start(kind, batch=2):
    components = 1 if issubclass(kind, Dense) else 2
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch, components, 3, generator=generator, dtype=F64)


def walk(solver, field, state, end, steps, begin=0.0, control=smooth):
    """The state at `end` after equal steps from `begin`."""
    h = (end - begin) / steps
    for i in range(steps):
        state = solver.step(field, begin + i * h, h, state, control)
    return state


@functools.cache
def exact(kind, end=1.0):
    """The state at `end` by SciPy."""
    state, field = start(kind), kind()

    def slope(t, y):
        return field(t, torch.from_numpy(y.reshape(state.shape)), smooth(t)).numpy().ravel()

    solution = solve_ivp(slope, (0.0, end), state.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-14)
    return torch.from_numpy(solution.y[:, -1].reshape(state.shape))


def measured_order(solver, kind):
    """The order of convergence, with the next power of the step size eliminated."""
    steps = {1: 64, 2: 24, 3: 12, 4: 8, 5: 8, 6: 4, 8: 8}[solver.order]
    errors = [walk(solver, kind(), start(kind), 1.0, n) - exact(kind) for n in (steps, 2 * steps, 4 * steps)]
    if solver.order == 8:
        # Elimination would amplify rounding here; a symmetric method has no next power.
        return math.log2(float(errors[0].norm() / errors[1].norm()))
    ahead = 2 ** (solver.order + 1)
    coarse, fine = errors[0] - ahead * errors[1], errors[1] - ahead * errors[2]
    return math.log2(float(coarse.norm() / fine.norm()))


def named(family):
    return [info.name for info in solvers.available() if info.family == family]


def check_zero_and_clocks(solver, kind):
    """A step of zero changes nothing, and a batch of clocks gives what each sample gives alone."""
    field, state = kind(), start(kind, batch=3)
    assert torch.equal(solver.step(field, 0.3, 0.0, state, smooth), state)
    t, dt = torch.tensor([[0.3], [1.0], [0.0]], dtype=F64), torch.tensor([[0.2], [0.0], [0.7]], dtype=F64)
    together = solver.step(field, t, dt, state, smooth)
    assert torch.equal(together[1], state[1])
    for i in range(3):
        alone = solver.step(field, float(t[i]), float(dt[i]), state[i : i + 1], smooth)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-13, atol=1e-14)
        single = solver.step(field, t[i : i + 1], dt[i : i + 1], state[i : i + 1], smooth)
        torch.testing.assert_close(together[i : i + 1], single, rtol=1e-14, atol=1e-15)


def check_gradients(step, kind, names=("A", "G", "W")):
    """Gradcheck of `step(field, t, dt, state, control)` in its state, step size, input and the field's tensors."""
    model = kind()
    state, u = start(kind).requires_grad_(), torch.tensor([[0.3, -0.7, 1.1]], dtype=F64, requires_grad=True)
    dt = torch.tensor([[0.2], [0.5]], dtype=F64, requires_grad=True)
    values = [getattr(model, name).clone().requires_grad_() for name in names]

    def moved(state, dt, u, *values):
        field = kind()
        for name, value in zip(names, values, strict=True):
            setattr(field, name, value)
        return step(field, 0.1, dt, state, lambda t: u * torch.cos(torch.as_tensor(t, dtype=F64)))

    assert torch.autograd.gradcheck(moved, (state, dt, u, *values))
