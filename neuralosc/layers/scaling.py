"""Features on one scale: less their mean, over their standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralosc import arguments
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from solvers.errors import InputError


class Scaler(nn.Module):
    """Features less their mean, over their standard deviation; NaN, which is not observed, stays.

        z = (x - mean) / scale

    Args:
        features: how many there are.

    Attributes:
        mean, scale: of each feature, buffers `(features,)`: 0 and 1 until `fit`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = arguments.count("features", features)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @torch.no_grad()
    def fit(self, x: Tensor, lengths: Lengths | None = None) -> Scaler:
        """Take mean and standard deviation of a training set, in double precision; returns itself.

        A feature that is constant, up to the precision of x, keeps a scale of 1.

        Args:
            x: `(.., features)`; NaN does not count.
            lengths: number of valid samples of each sequence `(batch,)`, where x is `(batch, time, features)`; what
                follows them does not count.

        Raises:
            InputError: a shape that does not fit, infinite values, or a feature of which there is no value.
        """
        self._check(x)
        rows = x.detach().flatten(0, -2)
        if lengths is not None:
            if x.dim() != 3:
                raise InputError(
                    f"lengths was given with x of shape {tuple(x.shape)}, expected (batch, time, features)"
                )
            rows = x.detach()[inputs.valid_steps(lengths, x)]
        eps = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 0.0
        # In double precision, which not every device has.
        rows = rows.cpu().double()
        if torch.isinf(rows).any():
            feature = int(torch.isinf(rows).any(0).nonzero()[0])
            raise InputError(f"x is infinite in feature {feature}, expected finite values, or NaN where there is none")
        count = (~rows.isnan()).sum(0)
        if not bool((count > 0).all()):
            raise InputError(
                f"feature {int((count == 0).nonzero()[0])} has no value in the training set: leave it out of the data"
            )
        # Counted from the smallest value, the mean of a constant is that constant.
        low = rows.nan_to_num(torch.inf).amin(0)
        mean = low + (rows - low).nansum(0) / count
        deviation = ((rows - mean).square().nansum(0) / count).sqrt()
        largest = rows.abs().nan_to_num(0.0).amax(0)
        # What differs in the last digit alone is constant: over so small a number that digit would be all there is.
        constant = deviation <= 2 * eps * largest
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, 1.0, deviation))
        if not bool(torch.isfinite(self.mean).all() & torch.isfinite(self.scale).all() & (self.scale > 0).all()):
            raise InputError(f"x has values of up to {float(largest.max()):g}, which {self.mean.dtype} does not hold")
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Values `(.., features)` on one scale."""
        self._check(x)
        return (x - self.mean) / self.scale

    def inverse(self, z: Tensor) -> Tensor:
        """The values that `forward` makes these of."""
        self._check(z)
        return z * self.scale + self.mean

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.is_complex():
            given = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"the values to scale are {given}, expected a tensor of real numbers")
        if x.dim() < 2 or x.shape[-1] != self.features:
            raise InputError(f"the values to scale have shape {tuple(x.shape)}, expected (.., {self.features})")

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return f"features={self.features}"
