"""Rotations between the samples: the field of orthogonal and unitary recurrent networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.arguments import flag
from neuralosc.field import LinearDrive, Semilinear
from neuralosc.fields.parameters import choice, number
from solvers.base.precision import widened
from solvers.base.state import affine
from solvers.errors import InputError
from solvers.numerics.linear import SkewOperator
from solvers.protocol import Time

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda z: z,
}
STARTS = ("haar", "henaff", "helfrich")


class Orthogonal(LinearDrive, Semilinear):
    """A rotation between the samples, and at each sample the input and a nonlinearity.

        dh = h A,    A = C^T - C,          between the samples
        h+ = sigma(h P + u),    u = V x + b,     at each sample

    A is skew, so that every solution keeps its norm. What a solver makes of one interval is the recurrent matrix:
    over dt, `exponential_euler` gives exp(dt A), `implicit_midpoint` the Cayley transform
    (1 - dt/2 A)^-1 (1 + dt/2 A); both are orthogonal to rounding, and then h+ = sigma(h W P + u).

    Unitary: the state is complex, channels 0 to n - 1 hold its real parts and n to 2n - 1 the imaginary ones, and
    A = C^H - C is skew-Hermitian with C = C[0] + i C[1]; as a real matrix it is skew again.

    With a margin m the singular values of W P may differ from 1 by up to m:

        P = U S U^T,    U = exp(B - B^T),    S = diag(1 + 2 m (sigmoid(s) - 1/2))

    which makes W P = (W U) S U^T the soft orthogonal factorisation, two orthogonal matrices and the singular values
    between them. Of a unitary field U and S are complex and real.

    sigma "modrelu" turns no phase: z -> z relu(|z| + bias) / |z|, entry by entry.

    Args:
        input_size: features of the input.
        hidden_size: channels; even if `unitary`.
        activation: sigma, "tanh", "relu" or "identity", entry by entry, or "modrelu".
        unitary: complex, as above.
        margin: m, at least 0 and below 1.
        start: how C is drawn: "haar", an orthogonal (unitary) factor of a Gaussian matrix, "henaff", whose A turns
            pairs of channels by angles from U(-pi, pi) in unit time, or "helfrich", the same with tan(a / 2) for a
            from U(0, pi / 2).

    V starts as Xavier normal with zero bias, s at 0, B from N(0, 1 / hidden), the bias of modReLU from U(-0.01, 0.01).

    Source: Lezcano-Casado & Martinez-Rubio, Cheap Orthogonal Constraints in Neural Networks, ICML 2019 (exp); Helfrich,
    Willmott, Ye, Orthogonal Recurrent Neural Networks with Scaled Cayley Transform, ICML 2018 (Cayley); Arjovsky, Shah,
    Bengio, Unitary Evolution Recurrent Neural Networks, ICML 2016, eq. 8 (modReLU); Vorontsov, Trabelsi, Kadoury, Pal,
    On orthogonality and learning recurrent networks with long term dependencies, ICML 2017, eq. 5-7 (margin).
    """

    dynamics = ("C", "B", "s")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        activation: str = "tanh",
        unitary: bool = False,
        margin: float = 0.0,
        start: str = "haar",
    ) -> None:
        super().__init__(input_size, hidden_size)
        if flag("unitary", unitary) and hidden_size % 2:
            raise InputError(f"hidden_size is {hidden_size}, expected an even number for real and imaginary parts")
        self.activation = choice("activation", activation, (*ACTIVATIONS, "modrelu"))
        self.start, self.unitary = choice("start", start, STARTS), unitary
        self.margin = number("margin", margin, 0, math.nextafter(1, 0))
        n = hidden_size // 2 if unitary else hidden_size
        shape = (2, n, n) if unitary else (n, n)
        self.V = nn.Linear(input_size, hidden_size)
        self.C = nn.Parameter(torch.empty(shape))
        self.B = nn.Parameter(torch.empty(shape)) if margin else None
        self.s = nn.Parameter(torch.empty(n)) if margin else None
        self.bias = nn.Parameter(torch.empty(n)) if activation == "modrelu" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.xavier_normal_(self.V.weight)
        nn.init.zeros_(self.V.bias)
        with torch.no_grad():
            self.C.copy_(_drawn(self.start, self.C))
        if self.B is not None and self.s is not None:
            nn.init.normal_(self.B, std=self.hidden_size**-0.5)
            nn.init.zeros_(self.s)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -0.01, 0.01)

    @property
    def structure(self) -> frozenset[str]:
        """Linear between the samples, impulsive at them."""
        return super().structure | {"linear", "impulsive"}

    def prepare(self) -> dict[str, Any]:
        """A and P as real matrices that act from the right; P is None where it is 1."""
        if self.B is None or self.s is None:
            return {"A": skew(self.C), "P": None}
        basis = torch.linalg.matrix_exp(widened(-skew(self.B)))
        singular = 1 + 2 * self.margin * (torch.sigmoid(self.s) - 0.5)
        return {"A": skew(self.C), "P": (basis * self._each(singular) @ basis.T).to(self.C.dtype)}

    def _each(self, value: Tensor) -> Tensor:
        """A value per channel of one per complex entry."""
        return value.repeat(2) if self.unitary else value

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The rotation h A."""
        return self.linear(state)

    def operator(self, terms: frozenset[str] | None = None) -> SkewOperator:
        """A, from the right."""
        return SkewOperator(self.constants["A"])

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """Nothing: the input acts at the samples."""
        return torch.zeros_like(state)

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """sigma(h P + u)."""
        (h,) = state.unbind(-2)
        P = self.constants["P"]
        current = h + u if P is None else affine(u, h, P)
        if self.bias is None:
            return ACTIVATIONS[self.activation](current).unsqueeze(-2)
        return mod_relu(current, self.bias, self.unitary).unsqueeze(-2)


def skew(C: Tensor) -> Tensor:
    """C^T - C; of the parts `(2, n, n)` of a complex C the real form `(2n, 2n)` of C^H - C, which is skew too."""
    if C.dim() == 2:
        return C.T - C
    real, imaginary = C[0].T - C[0], -(C[1].T + C[1])
    return torch.cat((torch.cat((real, imaginary), 1), torch.cat((-imaginary, real), 1)))


def mod_relu(z: Tensor, bias: Tensor, paired: bool = False) -> Tensor:
    """Z relu(|z| + bias) / |z|; if `paired`, the halves of the last axis are the real and imaginary parts of z."""
    if not paired:
        return torch.sign(z) * torch.relu(z.abs() + bias)
    real, imaginary = z.chunk(2, dim=-1)
    # Enough for derivatives at zero, whose divisions by size^2 must not overflow.
    size = (real.square() + imaginary.square() + torch.finfo(z.dtype).tiny ** (2 / 3)).sqrt()
    scale = torch.relu(size + bias) / size
    return torch.cat((real * scale, imaginary * scale), dim=-1)


def _drawn(start: str, like: Tensor) -> Tensor:
    """C of the kind and the shape of `like`."""
    n = like.shape[-1]
    if start == "haar":
        gaussian = torch.randn(n, n, dtype=torch.complex128 if like.dim() == 3 else torch.float64)
        left, _, right = torch.linalg.svd(gaussian)
        factor = left @ right
        return torch.stack((factor.real, factor.imag)) if like.dim() == 3 else factor
    count = n if like.dim() == 3 else n // 2
    if start == "henaff":
        angles = (2 * torch.rand(count, dtype=torch.float64) - 1) * math.pi
    else:
        angles = torch.tan(torch.rand(count, dtype=torch.float64) * math.pi / 4)
    C = torch.zeros(like.shape, dtype=torch.float64)
    if like.dim() == 3:
        # C^H - C of i c is -2 i c.
        C[1] = torch.diag(angles / 2)
    else:
        first = 2 * torch.arange(count)
        C[first, first + 1] = angles
    return C
