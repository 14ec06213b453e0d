"""The matrix products of a loop alone: the time that no way of taking the same steps can go below."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Rows of the operands of a product over all steps, at most: more are multiplied in several such.
ROWS = 1 << 16

#: A matrix, as its rows and columns.
Size = tuple[int, int]


@dataclass(frozen=True)
class Products:
    """The products of a training step.

    Attributes:
        steps, batch: how many steps, and samples in each.
        forward, backward: matrices that the samples are multiplied with in each step of either pass.
        gradients: matrices whose gradients are summed up, each a product over all steps and samples.
    """

    steps: int
    batch: int
    forward: tuple[Size, ...]
    backward: tuple[Size, ...] = ()
    gradients: tuple[Size, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.forward or self.backward or self.gradients)

    def work(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Callable[[], None]:
        """What computes them all once, on operands that stay where they are; a GPU may still be at it at the end."""
        with torch.device(device):
            passes = [[_single(self.batch, size, dtype) for size in sizes] for sizes in (self.forward, self.backward)]
            rows = self.steps * self.batch
            sums = [_summed(min(rows, ROWS), size, dtype) for size in self.gradients]

        @torch.no_grad()
        def run() -> None:
            for products in passes:
                for _ in range(self.steps if products else 0):
                    for x, matrix, out in products:
                        torch.mm(x, matrix, out=out)
            for left, right, total in sums:
                for first in range(0, rows, ROWS):
                    count = min(ROWS, rows - first)
                    total.addmm_(left[:count].T, right[:count], beta=1 if first else 0)

        return run

    def seconds(
        self, dtype: torch.dtype = torch.float32, repeats: int = 3, device: torch.device | str = "cpu"
    ) -> float:
        """The shortest time they take on a device, or here with the threads torch has."""
        return shortest(self.work(dtype, device), repeats, torch.device(device))


def shortest(run: Callable[[], None], repeats: int, device: torch.device) -> float:
    """The shortest time in seconds of some runs after a first one, everything on the device included."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _draw(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    # One row repeated: what the numbers are does not matter, as long as none is subnormal.
    generator = torch.Generator().manual_seed(0)
    row = torch.rand(1, columns, generator=generator, dtype=dtype, device="cpu")
    return row.to(torch.get_default_device()).expand(rows, columns).contiguous()


def _single(batch: int, size: Size, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = size
    return _draw(batch, rows, dtype), _draw(rows, columns, dtype), torch.empty(batch, columns, dtype=dtype)


def _summed(count: int, size: Size, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = size
    return _draw(count, rows, dtype), _draw(count, columns, dtype), torch.empty(rows, columns, dtype=dtype)
