"""What one writes without the library: published networks as Python loops over time, and other ways to the same result.

Every module maps x `(batch, time, input)` to the last position `(batch, hidden)`. They are written from the equations
of the papers, with the parameters of the published code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

import neuralosc


class CoRNNLoop(nn.Module):
    """Coupled oscillators: z+ = z + dt (tanh(W [x, z, y] + b) - gamma y - epsilon z), y+ = y + dt z+.

    Source: Rusch and Mishra, "Coupled Oscillatory Recurrent Neural Network (coRNN)", ICLR 2021, eq. (3), with the
    damping explicit as in the authors' code.
    """

    def __init__(
        self, input_size: int, hidden_size: int, dt: float = 0.042, gamma: float = 2.7, epsilon: float = 4.7
    ) -> None:
        super().__init__()
        self.hidden_size, self.dt, self.gamma, self.epsilon = hidden_size, dt, gamma, epsilon
        self.i2h = nn.Linear(input_size + 2 * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """The last y."""
        y = z = x.new_zeros(len(x), self.hidden_size)
        for sample in x.unbind(1):
            force = torch.tanh(self.i2h(torch.cat((sample, z, y), 1)))
            z = z + self.dt * (force - self.gamma * y - self.epsilon * z)
            y = y + self.dt * z
        return y


class LipschitzLoop(nn.Module):
    """A Lipschitz RNN under Euler: h+ = h + dt (h A + tanh(h W + V x + b)).

    A and W are each beta (M - M^T) + (1 - beta)(M + M^T) - gamma I.

    Source: Erichson, Azencot, Queiruga, Hodgkinson, Mahoney, "Lipschitz Recurrent Neural Networks", ICLR 2021.
    """

    def __init__(
        self, input_size: int, hidden_size: int, dt: float = 0.03, beta: float = 0.75, gamma: float = 0.001
    ) -> None:
        super().__init__()
        self.hidden_size, self.dt, self.beta, self.gamma = hidden_size, dt, beta, gamma
        self.E = nn.Linear(input_size, hidden_size)
        self.B = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size)
        self.C = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size)

    def _mixed(self, M: Tensor) -> Tensor:
        return self.beta * (M - M.T) + (1 - self.beta) * (M + M.T) - self.gamma * torch.eye(self.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """The last h."""
        A, W = self._mixed(self.B), self._mixed(self.C)
        h = x.new_zeros(len(x), self.hidden_size)
        for sample in x.unbind(1):
            h = h + self.dt * (h @ A + torch.tanh(h @ W + self.E(sample)))
        return h


class LEMLoop(nn.Module):
    """Long expressive memory: z+ = z + g2 (tanh(W y + u_y) - z), y+ = y + g1 (tanh(Z z+ + u_z) - y).

    g1 = dt sigmoid(W1 y + u_1) and g2 = dt sigmoid(W2 y + u_2), both at the old y.

    Source: Rusch, Mishra, Erichson, Mahoney, "Long Expressive Memory for Sequence Modeling", ICLR 2022, eq. (3).
    """

    def __init__(self, input_size: int, hidden_size: int, dt: float = 1.0) -> None:
        super().__init__()
        self.hidden_size, self.dt = hidden_size, dt
        self.inp2hid = nn.Linear(input_size, 4 * hidden_size)
        self.hid2hid = nn.Linear(hidden_size, 3 * hidden_size)
        self.transform_z = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """The last y."""
        y = z = x.new_zeros(len(x), self.hidden_size)
        for sample in x.unbind(1):
            u1, u2, uz, uy = self.inp2hid(sample).chunk(4, 1)
            h1, h2, hy = self.hid2hid(y).chunk(3, 1)
            slow, fast = self.dt * torch.sigmoid(u1 + h1), self.dt * torch.sigmoid(u2 + h2)
            z = (1 - fast) * z + fast * torch.tanh(hy + uy)
            y = (1 - slow) * y + slow * torch.tanh(self.transform_z(z) + uz)
        return y


class UnICORNNLayer(nn.Module):
    """Undamped oscillators: z+ = z - dt s (tanh(w * y + V x + b) + alpha y), y+ = y + dt s z+, s = sigmoid(c)."""

    def __init__(self, input_size: int, hidden_size: int, dt: float, alpha: float) -> None:
        super().__init__()
        self.hidden_size, self.dt, self.alpha = hidden_size, dt, alpha
        self.V = nn.Linear(input_size, hidden_size)
        self.w = nn.Parameter(torch.rand(hidden_size))
        self.c = nn.Parameter(0.2 * torch.rand(hidden_size) - 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Every y, `(batch, time, hidden)`."""
        step = self.dt * torch.sigmoid(self.c)
        y = z = x.new_zeros(len(x), self.hidden_size)
        positions = []
        for u in self.V(x).unbind(1):
            z = z - step * (torch.tanh(self.w * y + u) + self.alpha * y)
            y = y + step * z
            positions.append(y)
        return torch.stack(positions, 1)


class UnICORNNLoop(nn.Module):
    """Layers of undamped oscillators.

    Source: Rusch and Mishra, "UnICORNN: A recurrent model for learning very long time dependencies", ICML 2021.
    """

    def __init__(
        self, input_size: int, hidden_size: int, layers: int = 2, dt: float = 0.05, alpha: float = 1.0
    ) -> None:
        super().__init__()
        sizes = (input_size, *[hidden_size] * (layers - 1))
        self.layers = nn.ModuleList(UnICORNNLayer(n, hidden_size, dt, alpha) for n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """The last y of the last layer."""
        for layer in self.layers:
            x = layer(x)
        return x[:, -1]


class LinOSSLoop(nn.Module):
    """Linear oscillators, IMEX: z+ = z + s (B x - A y), y+ = y + s z+, A = relu(A_raw), s = sigmoid(steps).

    Source: Rusch and Rus, "Oscillatory State-Space Models", ICLR 2025.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.A, self.steps = nn.Parameter(torch.rand(hidden_size)), nn.Parameter(torch.rand(hidden_size))
        self.B = nn.Parameter((2 * torch.rand(hidden_size, input_size) - 1) / input_size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The last y."""
        A, s = torch.relu(self.A), torch.sigmoid(self.steps)
        y = z = x.new_zeros(len(x), len(self.A))
        for u in (x @ self.B.T).unbind(1):
            z = z + s * (u - A * y)
            y = y + s * z
        return y


Pair = tuple[Tensor, Tensor]


class LinOSSScan(LinOSSLoop):
    """The same by an associative scan, odd and even steps apart: twice the work of the loop in 2 log2(T) operations."""

    def forward(self, x: Tensor) -> Tensor:
        """The last y of all of them."""
        A, s = torch.relu(self.A), torch.sigmoid(self.steps)
        u = s * (x @ self.B.T).transpose(0, 1).contiguous()
        # (y, z)+ = M (y, z) + (s u, u) with M the same in every step.
        matrix = ((1 - s * s * A, s), (-s * A, torch.ones_like(s)))
        return _scanned(matrix, (s * u, u))[0][-1]


def _scanned(m: tuple[Pair, Pair], f: Pair) -> Pair:
    """All x with x[t] = M x[t - 1] + f[t], x[-1] = 0; time first."""
    time = len(f[0])
    if time == 1:
        return f
    (a, b), (c, d) = m
    half = time // 2

    def moved(x: Pair, onto: Pair) -> Pair:
        q, p = x
        return torch.addcmul(torch.addcmul(onto[0], a, q), b, p), torch.addcmul(torch.addcmul(onto[1], c, q), d, p)

    twice = moved((f[0][0 : 2 * half : 2], f[1][0 : 2 * half : 2]), (f[0][1::2], f[1][1::2]))
    squared = ((a * a + b * c, a * b + b * d), (c * a + d * c, c * b + d * d))
    odd = _scanned(squared, twice)
    before = (time - 1) // 2
    even = moved((odd[0][:before], odd[1][:before]), (f[0][2::2], f[1][2::2]))
    return _woven(torch.cat((f[0][:1], even[0])), odd[0]), _woven(torch.cat((f[1][:1], even[1])), odd[1])


def _woven(even: Tensor, odd: Tensor) -> Tensor:
    pairs = torch.stack((even[: len(odd)], odd), 1).flatten(0, 1)
    return pairs if len(even) == len(odd) else torch.cat((pairs, even[-1:]))


class Leaky(neuralosc.VectorField):
    """The user's ten lines: dh = tanh(W h + V x + b) - h."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.V, self.W = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)

    def drive(self, x: Tensor) -> Tensor:
        """V x + b."""
        current: Tensor = self.V(x)
        return current

    def forward(self, t: Any, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side."""
        (h,) = state.unbind(-2)
        return (torch.tanh(self.W(h) + u) - h).unsqueeze(-2)


class Torchdiffeq(nn.Module):
    """A field of the library solved by torchdiffeq in one call, its input held from sample to sample.

    Args:
        field: the field.
        dt: time between samples.
        method: "rk4", with a step for each sample, or "dopri5", which is told where the samples are.
        tolerances: rtol and atol of an adaptive method.
    """

    def __init__(self, field: neuralosc.VectorField, dt: float, method: str, **tolerances: float) -> None:
        super().__init__()
        self.field, self.dt, self.method, self.tolerances = field, dt, method, tolerances

    def forward(self, x: Tensor) -> Tensor:
        """The last position."""
        time = x.shape[1]
        state = x.new_zeros(len(x), self.field.components, self.field.hidden_size)
        fixed: dict[str, Any] = {"step_size": 1.0, "perturb": True}
        options = fixed if self.method == "rk4" else {"jump_t": torch.arange(1.0, time)}
        states: Tensor = torchdiffeq.odeint(
            self._slope(self.field.drive(x).unbind(1)),
            state,
            torch.tensor([0.0, float(time)]),
            method=self.method,
            options=options,
            **self.tolerances,
        )
        return states[-1, :, 0]

    def _slope(self, samples: tuple[Tensor, ...]) -> Callable[[Tensor, Tensor], Tensor]:
        field = self.field.bind()

        def slope(s: Tensor, state: Tensor) -> Tensor:
            # Where a step ends the solver asks a little before, so that a sample ends where the next one begins.
            value: Tensor = self.dt * field(s * self.dt, state, samples[min(int(s), len(samples) - 1)])
            return value

        return slope
