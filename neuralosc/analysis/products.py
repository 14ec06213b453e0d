"""Products of the second derivative of a loss with vectors: H v = d/dw (v . dL/dw), in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import solvers
from neuralosc.analysis.losses import Loss, parted, trained
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import network, precise
from neuralosc.layers.rnn import ContinuousRNN

#: Step of a central difference in float64, relative to the weights: the cube root of its rounding.
STEP = 6e-6


class Product:
    """H v for vectors of all trained parameters, one after the other.

    Args:
        model: the model, which stays as it is.
        samples: in float64.
        loss: what is differentiated twice.
        seed: of the noise that a stochastic solver draws.

    Attributes:
        size: how many numbers are trained.
        count: products taken.
        path: how they are.
    """

    def __init__(self, model: nn.Module, samples: Samples, loss: Loss, seed: int = 0) -> None:
        network(model)
        self.model: Any = precise(model)
        rnn = network(self.model)
        if isinstance(rnn, ContinuousRNN):
            swap: Any = self.model
            self.model = swap.with_solver(rnn.solver, gradient="backprop")
        self.samples, self.loss, self.seed = samples, loss, seed
        self.parameters = list(trained(self.model).values())
        self.size = sum(p.numel() for p in self.parameters)
        self.count, self.path = 0, "double backward through the plain steps"
        if isinstance(rnn, ContinuousRNN) and rnn.solver.stochastic:
            self.path += " along one path of the noise"
        self._graphs: list[tuple[float, list[Tensor]]] = []

    def prepare(self) -> tuple[float, float]:
        """The loss and the length of its gradient; what one part of the samples needs is kept for all products."""
        pieces = list(parted(self.model, self.samples, recorded=True))
        total, gradient = 0.0, torch.zeros(self.size, dtype=torch.float64)
        for part, weight in pieces:
            value, graph = self._differentiated(part)
            total += weight * value
            gradient += weight * torch.cat([g.detach().flatten() for g in graph]).cpu()
            if len(pieces) == 1:
                self._graphs = [(weight, graph)]
        self.path += f", {'kept' if self._graphs else f'anew for each product, in {len(pieces)} parts'}"
        return total, float(gradient.norm())

    def _differentiated(self, part: Samples) -> tuple[float, list[Tensor]]:
        with torch.random.fork_rng(), solvers.backend("plain"), torch.enable_grad():
            torch.manual_seed(self.seed)
            value = self.loss(self.model, part)
            zeros = [torch.zeros_like(p) for p in self.parameters]
            if not value.requires_grad:
                return float(value), zeros
            found = torch.autograd.grad(value, self.parameters, create_graph=True, allow_unused=True)
        graph = [zero if g is None else g for g, zero in zip(found, zeros, strict=True)]
        return float(value.detach()), graph

    def __call__(self, vector: Tensor) -> Tensor:
        """H v, `(size,)`."""
        self.count += 1
        pieces = vector.split([p.numel() for p in self.parameters])
        shaped = [piece.view_as(p).to(p) for piece, p in zip(pieces, self.parameters, strict=True)]
        total = torch.zeros_like(vector)
        graphs = self._graphs or (
            (weight, self._differentiated(part)[1]) for part, weight in parted(self.model, self.samples, recorded=True)
        )
        for weight, graph in graphs:
            pairs = [(g, v) for g, v in zip(graph, shaped, strict=True) if g.requires_grad]
            if not pairs:
                continue
            found = torch.autograd.grad(
                [g for g, _ in pairs], self.parameters, [v for _, v in pairs], retain_graph=True, allow_unused=True
            )
            rows = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]
            total += weight * torch.cat([row.flatten() for row in rows]).to(vector)
        return total


class Differences(Product):
    """H v by central differences of the gradient, which the compiled loop computes.

        H v = (g(w + e v) - g(w - e v)) / 2e,    e |v| = 6e-6 max(1, |w|)

    Off by e^2 of the fourth derivative and by the rounding of g over e: some 1e-9 of the largest eigenvalue. A product
    is two training steps; double backward is no part of the compiled loop, whose plain path is slower than that.
    """

    def prepare(self) -> tuple[float, float]:
        """The loss and the length of its gradient."""
        self.path = "central differences of the gradient as the network computes it"
        self._kept = [p.detach().clone() for p in self.parameters]
        self._size = max(1.0, float(torch.cat([p.flatten() for p in self._kept]).norm()))
        return self.loss.value(self.model, self.samples), float(self._gradient().norm())

    def _gradient(self) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            found = self.loss.gradient(self.model, self.samples, [*self.parameters])
        return torch.cat([g.detach().flatten() for g in found])

    @torch.no_grad()
    def _put(self, vector: Tensor, factor: float) -> None:
        pieces = vector.split([p.numel() for p in self.parameters])
        for parameter, kept, piece in zip(self.parameters, self._kept, pieces, strict=True):
            parameter.copy_(kept + factor * piece.view_as(parameter).to(parameter))

    def __call__(self, vector: Tensor) -> Tensor:
        """H v, `(size,)`."""
        self.count += 1
        length = float(vector.norm())
        if not length:
            return torch.zeros_like(vector)
        step, ends = STEP * self._size / length, []
        for sign in (1.0, -1.0):
            self._put(vector, sign * step)
            with torch.enable_grad():
                ends.append(self._gradient())
        self._put(vector, 0.0)
        return ((ends[0] - ends[1]) / (2 * step)).to(vector)


#: Ways to a product, by name, and what they are.
WAYS = {"exact": "double backward", "difference": "central differences of the compiled gradient"}
PRODUCTS: dict[str, type[Product]] = {"exact": Product, "difference": Differences}
