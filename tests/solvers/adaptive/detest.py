"""The DETEST problems: non-stiff initial value problems on [0, 20] in five classes.

Source: Hull, Enright, Fellen, Sedgwick, Comparing numerical methods for ordinary differential equations, SIAM J. Numer.
Anal. 9 (1972). Each is a field f(t, state, u) on states (batch, 1, size), and its initial value.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp

F64 = torch.float64


@dataclass(frozen=True)
class Problem:
    name: str
    slopes: Callable
    start: tuple[float, ...]

    def __call__(self, t, state, u):
        t = torch.as_tensor(t, dtype=state.dtype).reshape(-1)
        return torch.stack(torch.broadcast_tensors(*self.slopes(t, *state.squeeze(-2).unbind(-1))), -1).unsqueeze(-2)

    def state(self):
        return torch.tensor(self.start, dtype=F64).reshape(1, 1, -1)


def euler_rigid(t, x, y, z):
    return y * z, -x * z, -0.51 * x * y


def torus(t, x, y, z):
    r = torch.sqrt(x * x + y * y)
    return -y - x * z / r, x - y * z / r, x / r


def chain(t, *y):
    return -y[0], *(a - b for a, b in pairwise(y[:-1])), y[-2]


def decay_chain(t, *y):
    return -y[0], *((i + 1) * y[i] - (i + 2) * y[i + 1] for i in range(8)), 9 * y[8]


def heat(t, *y):
    left, right = (0.0, *y[:-1]), (*y[1:], 0.0)
    return tuple(a - 2 * b + c for a, b, c in zip(left, y, right, strict=True))


def five_bodies(t, *y):
    """Jupiter, Saturn, Uranus, Neptune and Pluto around the sun."""
    masses = (0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778)
    m, sun, gravity = torch.tensor(masses, dtype=F64), 1.00000597682, 2.95912208286
    x, v = torch.stack(y[:15], -1).unflatten(-1, (5, 3)), y[15:]
    cubed = x.square().sum(-1, keepdim=True) ** 1.5
    apart = x.unsqueeze(-3) - x.unsqueeze(-2)
    # The distance of a body to itself does not matter: it is multiplied by zero.
    between = (apart.square().sum(-1) + torch.eye(5, dtype=F64)) ** 1.5
    pull = (m.unsqueeze(-1) * (apart / between.unsqueeze(-1) - (x / cubed).unsqueeze(-3))).sum(-2)
    # Over all k the indirect term of a body itself is in the sum too; the sun's pull makes up for it.
    force = gravity * (-sun * x / cubed + pull)
    return *v, *force.flatten(-2).unbind(-1)


def orbit(t, x, y, v, w):
    cubed = (x * x + y * y) ** 1.5
    return v, w, -x / cubed, -y / cubed


def ellipse(e):
    return (1 - e, 0.0, 0.0, ((1 + e) / (1 - e)) ** 0.5)


PLANETS = (
    3.42947415189, 3.35386959711, 1.35494901715, 6.64145542550, 5.97156957878, 2.18231499728, 11.2630437207,
    14.6952576794, 6.27960525067, -30.1552268759, 1.65699966404, 1.43785752721, -21.1238353380, 28.4465098142,
    15.3882659679, -0.557160570446, 0.505696783289, 0.230578543901, -0.415570776342, 0.365682722812, 0.169143213293,
    -0.325325669158, 0.189706021964, 0.0877265322780, -0.0240476254170, -0.287659532608, -0.117219543175,
    -0.176860753121, -0.216393453025, -0.0148647893090,
)  # fmt: skip


def unit(size):
    return (1.0, *(0.0,) * (size - 1))


PROBLEMS = [
    # A: single equations.
    Problem("A1", lambda t, y: (-y,), (1.0,)),
    Problem("A2", lambda t, y: (-(y**3) / 2,), (1.0,)),
    Problem("A3", lambda t, y: (y * torch.cos(t),), (1.0,)),
    Problem("A4", lambda t, y: (y / 4 * (1 - y / 20),), (1.0,)),
    Problem("A5", lambda t, y: ((y - t) / (y + t),), (4.0,)),
    # B: small systems.
    Problem("B1", lambda t, x, y: (2 * (x - x * y), -(y - x * y)), (1.0, 3.0)),
    Problem("B2", lambda t, x, y, z: (-x + y, x - 2 * y + z, y - z), (2.0, 0.0, 1.0)),
    Problem("B3", lambda t, x, y, z: (-x, x - y * y, y * y), (1.0, 0.0, 0.0)),
    Problem("B4", torus, (3.0, 0.0, 0.0)),
    Problem("B5", euler_rigid, (0.0, 1.0, 1.0)),
    # C: moderate systems.
    Problem("C1", chain, unit(10)),
    Problem("C2", decay_chain, unit(10)),
    Problem("C3", heat, unit(10)),
    Problem("C4", heat, unit(51)),
    Problem("C5", five_bodies, PLANETS),
    # D: orbits.
    *(Problem(f"D{i + 1}", orbit, ellipse(e)) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))),
    # E: second-order equations.
    Problem(
        "E1",
        lambda t, y, v: (v, -(v / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y)),
        (0.671396707141803, 0.0954005144474744),
    ),
    Problem("E2", lambda t, y, v: (v, (1 - y * y) * v - y), (2.0, 0.0)),
    Problem("E3", lambda t, y, v: (v, y**3 / 6 - y + 2 * torch.sin(2.78535 * t)), (0.0, 0.0)),
    Problem("E4", lambda t, y, v: (v, 0.032 - 0.4 * v * v), (30.0, 0.0)),
    Problem("E5", lambda t, y, v: (v, torch.sqrt(1 + v * v) / (25 - t)), (0.0, 0.0)),
]


@functools.cache
def reference(problem):
    """The state at t = 20 by SciPy's DOP853 at a tight tolerance."""

    def slope(t, y):
        return problem(t, torch.from_numpy(y.reshape(1, 1, -1)), None).numpy().ravel()

    solved = solve_ivp(slope, (0, 20), np.array(problem.start), method="DOP853", rtol=1e-12, atol=1e-13)
    return torch.from_numpy(solved.y[:, -1].copy())
