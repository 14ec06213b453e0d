"""Linear recurrences in small blocks, all times at once: a scan over chunks, and a convolution by FFT.

    x_t = M_t x_{t-1} + f_t

with one n x n block M_t per channel; n is 1 or a few. Blocks are `(time or 1, batch or 1, n, n, hidden)`: the third
axis is the component of x_{t-1} that a column multiplies, the fourth that of x_t. A sequence of x or f is its n
components, `(time, batch, hidden)` each; a start is `(batch, n, hidden)`.

Source: Blelloch, Prefix sums and their applications, 1990, for the scan in two sweeps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.compiled.passes import memory

#: Steps in a chunk. On a GPU each operation costs its launch, whatever it does: short chunks, of chunks, of chunks.
CHUNK = {"cpu": 64}
SHORT = 8

#: Numbers in the pieces in which products are computed on a CPU, so that they stay in the cache.
PIECE = 1 << 16

Parts = Sequence[Tensor]


def scanned(
    blocks: Tensor, f: Sequence[Tensor | None], start: Tensor, reverse: bool = False
) -> tuple[tuple[Tensor, ...], Tensor]:
    """All x_t and the last one, from x_{-1} = `start`; differentiable, twice too.

    A component of f that is None is zero. In reverse x_t = M_t x_{t+1} + f_t, from x_time = `start`.
    """
    *parts, end = Scan.apply(blocks, start, reverse, *f)  # type: ignore[no-untyped-call]
    return tuple(parts), end


class Scan(torch.autograd.Function):
    """The scan; its gradient is a scan in the other direction, with transposed blocks."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, start: Tensor, reverse: bool, *f: Tensor | None) -> tuple[Tensor, ...]:
        """The components of all x_t, and the last x_t."""
        like = next(part for part in f if part is not None)
        out = [memory.empty(tuple(like.shape), like.dtype, like.device) for _ in f]
        _scan(blocks, f, start.unbind(-2), reverse, out)
        ctx.save_for_backward(blocks, start, *out)
        ctx.reverse = reverse
        ctx.set_materialize_grads(False)
        return (*out, torch.stack([part[0 if reverse else -1] for part in out], -2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """With y_t = M_{t+1}^T y_{t+1} + dx_t: y_t for f_t, and the product of x_{t-1} and y_t for M_t."""
        blocks, start, *x = ctx.saved_tensors
        last, first = (0, -1) if ctx.reverse else (-1, 0)
        dx = _with_end(x, grads, last)
        if dx is None:
            return (None,) * (3 + len(x))
        transposed = shifted = blocks.transpose(2, 3)
        if len(blocks) > 1:
            edge = transposed[:1] if ctx.reverse else transposed[-1:]
            shifted = torch.cat((edge, transposed[:-1]) if ctx.reverse else (transposed[1:], edge))
        y, _ = scanned(shifted, dx, torch.zeros_like(start), not ctx.reverse)
        outer = _outer(blocks, start, x, y, ctx.reverse) if ctx.needs_input_grad[0] else None
        moved = None
        if ctx.needs_input_grad[1]:
            moved = product(transposed[first], torch.stack([part[first] for part in y], -2))
        return outer, moved, None, *y


def _with_end(x: Parts, grads: Sequence[Tensor | None], last: int) -> list[Tensor | None] | None:
    """The gradients of all x_t, that of the last x_t added; None where there are none."""
    *dx, end = grads
    if end is not None:
        whole = [torch.zeros_like(part) if g is None else g.clone() for part, g in zip(x, dx, strict=True)]
        for part, extra in zip(whole, end.unbind(-2), strict=True):
            part[last] += extra
        return list(whole)
    return None if all(g is None for g in dx) else list(dx)


def product(blocks: Tensor, x: Tensor) -> Tensor:
    """M x, column by column: all at once would take as much memory as blocks of every sample."""
    total = blocks[..., 0, :, :] * x[..., 0:1, :]
    for j in range(1, blocks.shape[-3]):
        total = total + blocks[..., j, :, :] * x[..., j : j + 1, :]
    return total


def _step(blocks: Tensor, x: Parts, f: Sequence[Tensor | None], out: Parts) -> None:
    """Write M x + f."""
    for i, (drive, result) in enumerate(zip(f, out, strict=True)):
        if drive is None:
            torch.mul(blocks[..., 0, i, :], x[0], out=result)
        else:
            torch.addcmul(drive, blocks[..., 0, i, :], x[0], out=result)
        for j in range(1, len(x)):
            result.addcmul_(blocks[..., j, i, :], x[j])


def _at(parts: Sequence[Tensor | None], place: Any) -> list[Any]:
    return [None if part is None else part[place] for part in parts]


def _scan(blocks: Tensor, f: Sequence[Tensor | None], start: Parts, reverse: bool, out: Parts) -> None:
    """Write all x_t.

    The first sweep brings every chunk to its end from zero, all chunks side by side; a scan over the chunks then gives
    where each of them starts, and the second sweep takes all of them through again.
    """
    time, size = len(out[0]), CHUNK.get(out[0].device.type, SHORT)
    count = time // size
    if count < 3:
        _one_by_one(blocks, f, start, reverse, out)
        return
    # What is left over comes last.
    whole = slice(time - count * size, time) if reverse else slice(0, count * size)
    rest = slice(0, time - count * size) if reverse else slice(count * size, time)
    order = range(size - 1, -1, -1) if reverse else range(size)
    drive, result = ([None if t is None else t[whole].unflatten(0, (count, size)) for t in ts] for ts in (f, out))
    uniform = len(blocks) == 1
    each = blocks.unsqueeze(0) if uniform else blocks[whole].unflatten(0, (count, size))

    def block(step: int) -> Tensor:
        return each[:, 0 if uniform else step]

    end = [torch.zeros_like(part[0:count]) for part in out]
    spare = [torch.empty_like(part) for part in end]
    jump = _power(block(0), size) if uniform else block(order[0])
    for place, step in enumerate(order):
        _step(block(step), end, _at(drive, (slice(None), step)), spare)
        end, spare = spare, end
        if place and not uniform:
            jump = composed(block(step), jump)
    starts = spare
    _scan(jump, end, start, reverse, starts)
    x: Parts = [
        torch.cat((after[1:], first.unsqueeze(0)) if reverse else (first.unsqueeze(0), after[:-1]))
        for first, after in zip(start, starts, strict=True)
    ]
    for step in order:
        target = _at(result, (slice(None), step))
        _step(block(step), x, _at(drive, (slice(None), step)), target)
        x = target
    if rest.start < rest.stop:
        last = _at(_at(out, whole), 0 if reverse else -1)
        _one_by_one(blocks if uniform else blocks[rest], _at(f, rest), last, reverse, _at(out, rest))


def _one_by_one(blocks: Tensor, f: Sequence[Tensor | None], start: Parts, reverse: bool, out: Parts) -> None:
    """Write all x_t, one after the other."""
    x, time = start, len(out[0])
    for t in reversed(range(time)) if reverse else range(time):
        target = _at(out, t)
        _step(blocks[0 if len(blocks) == 1 else t], x, _at(f, t), target)
        x = target


def _power(block: Tensor, exponent: int) -> Tensor:
    """The power of a block."""
    power, square = None, block
    while exponent:
        if exponent & 1:
            power = square if power is None else composed(square, power)
        square, exponent = composed(square, square), exponent >> 1
    assert power is not None
    return power


def composed(second: Tensor, first: Tensor) -> Tensor:
    """The block that is one after the other."""
    return (first.unsqueeze(-2) * second.unsqueeze(-4)).sum(-3)


def _outer(blocks: Tensor, start: Tensor, x: Parts, y: Parts, reverse: bool) -> Tensor:
    """The products of x_{t-1} and y_t, summed over whatever the blocks do not tell apart."""
    shared = blocks.shape[1] == 1
    edges = itertools.product(start.unbind(-2), _at(y, -1 if reverse else 0))
    before, after = (slice(1, None), slice(-1)) if reverse else (slice(-1), slice(1, None))
    pairs = itertools.product(_at(x, before), _at(y, after))
    entries = []
    for (a, b), (c, d) in zip(pairs, edges, strict=True):
        edge = (c * d).unsqueeze(0)
        entry = _inner(a, b) + edge if len(blocks) == 1 else torch.cat((a * b, edge) if reverse else (edge, a * b))
        entries.append(entry.sum(1, keepdim=True) if shared else entry)
    blocked: Tensor = torch.stack(entries, -2).unflatten(-2, (len(x), len(x)))
    return blocked


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products over time, `(1, batch, hidden)`."""
    time, width = len(a), max(1, math.prod(a.shape[1:]))
    length = max(1, PIECE // width) if a.device.type == "cpu" else max(1, time)
    total = a.new_zeros(min(length, max(time, 1)), *a.shape[1:])
    for i in range(0, time, length):
        some = min(length, time - i)
        total[:some].addcmul_(a[i : i + some], b[i : i + some])
    return total.sum(0, keepdim=True)


def powers(block: Tensor, count: int) -> Tensor:
    """M^0 to M^(count - 1) of one block `(n, n, hidden)`: `(count, n, n, hidden)`, by doubling."""
    n = block.shape[0]
    identity = torch.eye(n, dtype=block.dtype, device=block.device).unsqueeze(-1).expand_as(block)
    stacked, square = identity.unsqueeze(0), block
    while len(stacked) < count:
        stacked = torch.cat((stacked, composed(square, stacked)))
        square = composed(square, square)
    return stacked[:count]


def convolved(kernel: Tensor, block: Tensor, f: Parts, start: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The same as `scanned` for one block, from its `powers`, by FFT: x_t is the sum over s of M^(t - s) f_s."""
    time, n = len(f[0]), len(f)
    size = _fast_length(2 * time - 1)
    first = product(block, start).unbind(-2)
    # Time last, where transforms are fastest.
    drive = [torch.cat(((part[0] + extra).unsqueeze(0), part[1:])) for part, extra in zip(f, first, strict=True)]
    spectra = [torch.fft.rfft(part.movedim(0, -1).contiguous(), size) for part in drive]
    response = torch.fft.rfft(kernel.movedim(0, -1).contiguous(), size)
    products = [sum(response[j, i] * spectra[j] for j in range(n)) for i in range(n)]
    x = [torch.fft.irfft(part, size)[..., :time].movedim(-1, 0) for part in products]
    return tuple(x), torch.stack([part[-1] for part in x], -2)


def _fast_length(least: int) -> int:
    """The smallest number from `least` on with no prime factor above 5."""
    lengths: list[int] = [
        2 ** max(0, math.ceil(math.log2(least / odd))) * odd
        for odd in (3**a * 5**b for a in range(21) for b in range(14))
        if odd < 2 * least
    ]
    return min(lengths)
