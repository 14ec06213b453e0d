"""The cases of the benchmark on a GPU: what is timed there, what it is checked against, and what its time is put to.

Each shape has cases of its own; all of them run wherever their inputs are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import neuralosc
import solvers
from experiments.bench import cases as bench_cases
from experiments.bench.cases import FLOOR, LOOP, PLAIN, Case, Maker, Pair, Shape, Subject, library, training_step

LSTM, LAYER, UNICORNN = "torch.nn: LSTM", "LinOSS layer", "UnICORNN, 3 layers"
#: Hidden sizes of the sweep.
HIDDEN = (128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Group:
    """Cases at one shape, and the part of all work that they are, about."""

    shape: Shape
    cases: tuple[Case, ...]
    work: float = 1.0


@contextmanager
def tf32() -> Iterator[None]:
    """Products of float32 may drop digits, as a user allows it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_tf32(make: Maker) -> Maker:
    """A case whose products may drop digits."""

    def made(shape: Shape, x: Tensor) -> Subject:
        subject = make(shape, x)

        def step() -> float:
            with tf32():
                return subject.step()

        return replace(subject, step=step)

    return made


def telling(pair: Pair, backend: str) -> Maker:
    """As `library`, and the way that was taken can be asked for."""

    def made(shape: Shape, x: Tensor) -> Subject:
        subject = library(pair, backend)(shape, x)
        rnn = subject.model
        assert isinstance(rnn, neuralosc.ContinuousRNN)

        def way() -> str:
            with solvers.backend(backend):
                record = rnn.solve(x).trajectories[0].record
            return f"{record.path}: {record.reason}"

        return replace(subject, way=way)

    return made


def layer(backend: str, training: bool) -> Maker:
    """A LinOSS layer with its read-out: forward alone, or with the gradient of the mean square of all its outputs."""

    def made(shape: Shape, x: Tensor) -> Subject:
        torch.manual_seed(0)
        model = neuralosc.LinOSS(shape.features, shape.hidden).to(x.device)

        def outputs() -> Tensor:
            with solvers.backend(backend):
                output: Tensor = model(x)[0]
            return output

        @torch.no_grad()
        def forward() -> float:
            return float(outputs().square().mean())

        return training_step(model, outputs) if training else Subject(forward)

    return made


def groups(fast: str, quick: bool) -> list[Group]:
    """The cases, of the library by the backend `fast`; small shapes where it is to be quick."""
    small = (12, 3, 8, 2)
    s1, u = (Shape(n, *(small if quick else s)) for n, s in (("S1", (784, 120, 256, 1)), ("U", (784, 32, 256, 1))))
    linear = Shape("L", *(small if quick else (256, 8, 128, 64)), linear=True)
    sweep = [Shape(f"H{h}", 12 if quick else 256, 64, h, 1) for h in ((16, 32) if quick else HIDDEN)]
    ours = f"neuralosc, {fast}"
    return [
        Group(s1, tuple(_recurrent(ours, fast)), 3.0),
        Group(u, tuple(_paths(UNICORNN, bench_cases.unicornn(3), ours, fast, f"{UNICORNN}: {LOOP}")), 2.0),
        Group(linear, tuple(_linear(fast))),
        *(Group(shape, tuple(_products(ours, fast))) for shape in sweep),
    ]


def _paths(field: str, pair: Pair, ours: str, fast: str, base: str) -> list[Case]:
    """The loop that one writes, and the library."""
    peer = f"{field}: {LOOP}"
    return [
        Case(field, LOOP, bench_cases.written(pair), base),
        Case(field, PLAIN, library(pair, "plain"), base, peer),
        Case(field, ours, telling(pair, fast), base, peer),
    ]


def _recurrent(ours: str, fast: str) -> list[Case]:
    """coRNN in three precisions, and the networks of torch.nn; cuDNN takes tf32 by itself."""
    pair, peer = bench_cases.cornn, f"coRNN: {LOOP}"
    kinds: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.GRU, nn.LSTM)
    return [
        *_paths("coRNN", pair, ours, fast, LSTM),
        Case("coRNN", f"{ours}, tf32", with_tf32(library(pair, fast)), LSTM, peer),
        Case("coRNN", f"{ours}, bfloat16", library(pair, fast, torch.bfloat16), LSTM, peer, 1e-2),
        *(Case("torch.nn", kind.__name__, bench_cases.builtin(kind), LSTM) for kind in kinds),
        Case("torch.nn", "LSTM, bfloat16", bench_cases.builtin(nn.LSTM, torch.bfloat16), LSTM),
    ]


def _linear(fast: str) -> list[Case]:
    """A linear layer on every path that it has."""
    cases = []
    for what, training in (("forward", False), ("forward and backward", True)):
        peer = f"{LAYER}, {what}: {PLAIN}"
        cases.append(Case(f"{LAYER}, {what}", PLAIN, layer("plain", training), peer))
        for backend in (fast, "scan", "fft"):
            make = layer(backend, training)
            cases.append(Case(f"{LAYER}, {what}", f"neuralosc, {backend}", make, peer, peer))
    return cases


def _products(ours: str, fast: str) -> list[Case]:
    """coRNN beside the bare products of its steps."""
    base, peer, blocks = f"coRNN: {FLOOR}", f"coRNN: {PLAIN}", ((1, 2, 1),)
    return [
        Case("coRNN", FLOOR, bench_cases.floor(blocks), base),
        Case("coRNN", PLAIN, library(bench_cases.cornn, "plain"), base),
        Case("coRNN", ours, telling(bench_cases.cornn, fast), base, peer),
    ]
