"""Physical systems whose numbers are known, as fields: what the tests of several analyses look at."""

import torch
from torch import Tensor

from neuralosc import VectorField
from neuralosc.field import Partitioned

F64 = torch.float64


class Newtonian(Partitioned):
    """H = |p|^2 / 2 + V(q), less a damping g p in the force; no input matters. Slopes by hand, which is fast."""

    separable = True

    def __init__(self, hidden_size: int = 1, g: float | None = None) -> None:
        super().__init__(1, hidden_size)
        self.g = g

    @property
    def structure(self) -> frozenset[str]:
        return super().structure | {"hamiltonian"}

    def damping(self):
        return self.g

    def force(self, t, q, p, u):
        return self.push(q) if self.g is None else self.push(q) - self.g * p

    def energy(self, state: Tensor, u: Tensor) -> Tensor:
        q, p = state.unbind(-2)
        return p.square().sum(-1) / 2 + self.potential(q)


class Harmonic(Newtonian):
    """q'' = -q."""

    def push(self, q):
        return -q

    def potential(self, q):
        return q.square().sum(-1) / 2


class Pendulum(Newtonian):
    """q'' = -sin q: a centre at 0, a saddle at pi. The energy is 0 at rest."""

    def push(self, q):
        return -q.sin()

    def potential(self, q):
        return (1 - q.cos()).sum(-1)


class Duffing(Newtonian):
    """q'' = q - q^3: centres at -1 and 1, a saddle at 0."""

    def push(self, q):
        return q - q**3

    def potential(self, q):
        return (q.square().square() / 4 - q.square() / 2).sum(-1)


class HenonHeiles(Newtonian):
    """V = (x^2 + y^2) / 2 + x^2 y - y^3 / 3."""

    def __init__(self) -> None:
        super().__init__(2)

    def push(self, q):
        x, y = q.unbind(-1)
        return torch.stack((-x - 2 * x * y, -y - x**2 + y**2), -1)

    def potential(self, q):
        x, y = q.unbind(-1)
        return (x**2 + y**2) / 2 + x**2 * y - y**3 / 3


class Linear(VectorField):
    """x' = A x in one component."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(1, len(matrix))
        self.register_buffer("A", matrix)

    def forward(self, t, state, u):
        return state @ self.A.mT


class Lorenz(VectorField):
    """Lorenz 1963, 10, rho, 8/3, and more of what is added to the first slope."""

    def __init__(self, rho: float = 28.0) -> None:
        super().__init__(1, 3)
        self.rho = rho

    def forward(self, t, state, u):
        x, y, z = state.unbind(-1)
        return torch.stack((10 * (y - x), x * (self.rho - z) - y, x * y - 8 / 3 * z), -1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of their own generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
