"""Benchmark of training steps on irregular batches, whose samples have timespans and lengths of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import neuralosc
from experiments.bench.cases import Shape, training_step
from experiments.bench.timing import interleaved

#: The networks, under their defaults; their steps differ in what they do besides products.
NETWORKS: dict[str, Callable[[int, int], neuralosc.ContinuousRNN]] = {
    "coRNN": neuralosc.CoRNN,
    "GRU": neuralosc.GRU,
}
ROUNDS = 7


def batches(shape: Shape) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Inputs and what is said of their times; the last two have as many steps as the longest list of the one before.

    Gaps are drawn exponentially with mean 1, and no step is longer than 1.
    """
    torch.manual_seed(0)
    x = torch.rand(shape.batch, shape.time, shape.features)
    short, gaps = torch.rand(shape.batch, shape.time), torch.empty(shape.batch, shape.time).exponential_()
    lengths = torch.randint(shape.time // 2, shape.time + 1, (shape.batch,))
    lengths[0] = shape.time
    steps = longest(gaps)
    long = torch.rand(shape.batch, steps, shape.features)
    return {
        "regular": (x, {}),
        "timespans of each sample": (x, {"timespans": short}),
        "timespans and lengths": (x, {"timespans": short, "lengths": lengths}),
        "gaps of mean 1, in steps of at most 1": (x, {"timespans": gaps}),
        "as many regular steps": (long, {"timespans": torch.rand(shape.batch, steps)}),
    }


def longest(gaps: Tensor) -> int:
    """The most steps of at most 1 that a sample needs for its gaps."""
    return int(gaps.ceil().sum(1).max())


def _last(rnn: neuralosc.ContinuousRNN, x: Tensor, times: dict[str, Any]) -> Tensor:
    output: Tensor = rnn(x, **times)[0]
    return output[:, -1]


def measure(shape: Shape) -> list[tuple[str, str, float]]:
    """Network, batch, and how often as long its training step takes as a regular one, or as one of as many steps."""
    results = []
    for name, network in NETWORKS.items():
        rnn, given = network(shape.features, shape.hidden), batches(shape)

        steps = {
            what: training_step(rnn, functools.partial(_last, rnn, x, times)).step for what, (x, times) in given.items()
        }
        for step in steps.values():
            step()
        shortest = {what: min(seconds) for what, seconds in interleaved(steps, ROUNDS).items()}
        (_, regular), *others, (_, many) = shortest.items()
        results += [(name, what, seconds / regular) for what, seconds in others]
        results.append((name, "the same gaps, against as many regular steps", others[-1][1] / many))
    return results
