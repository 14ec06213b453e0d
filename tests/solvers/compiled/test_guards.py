"""Compiled kernels touch what they are given and nothing else: each of their tensors lies alone between guards.

A read of a guard is a NaN in the results, which are compared with the plain path; a write changes its bits. A read
whose value is dropped afterwards may still be a fault: in Triton's interpreter each address is looked at, and what C++
is given ends at a page that nobody may touch.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import itertools

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.cpp import gemm
from solvers.compiled.cpp.kernel import CppArguments
from solvers.compiled.triton import compiler, emit_staged, persistent, staged
from solvers.compiled.triton import kernel as triton_kernel
from solvers.compiled.triton.tiling import Tiling, power
from tests.measures import assert_agree
from tests.solvers.compiled.guards import Guarded, Watch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

#: What a pass writes; it may only read the rest.
WRITTEN = {
    "forward": {"states", "saved", "temp"},
    "backward": {"temp", "chunk", "dstep", "carry0", "carry1", "sum", "drop", "outer"},
}


def guarded(kernel, signature, tensors, wall=False):
    """Copies of the tensors of a kernel between guards, by name."""
    writes = WRITTEN["forward" if signature is kernel.source.forward else "backward"]
    kinds = {name: name if isinstance(name, str) else name[0] for name in tensors}
    return {name: Guarded(tensor, kinds[name] in writes, wall) for name, tensor in tensors.items()}


@pytest.fixture
def watched(monkeypatch):
    """Every launch of a GPU kernel has its tensors between guards; gives the number of addresses looked at."""
    looked = []

    def wrapped(plain):
        def launch(self, function, signature, layout, grid, tensors, steps):
            names = {*signature.pointers, "states", "carry0", *(n for n in tensors if n[0] == "matrix")}
            copies = guarded(self.kernel, signature, {n: t for n, t in tensors.items() if n in names})
            watch = Watch([*copies.values(), *staying(self, function, tensors)])
            with interpreted(watch):
                plain(self, function, signature, layout, grid, {n: c.view for n, c in copies.items()}, steps)
            for copy in watch.tensors:
                copy.close()
            looked.append(watch.looked)

        return launch

    for kind in (persistent.GpuArguments, staged.StagedArguments):
        monkeypatch.setattr(kind, "launch", wrapped(kind.launch))
    return looked


def staying(args, which, tensors):
    """The places that stay from one launch to the next, between guards from now on."""
    if not isinstance(args, staged.StagedArguments):
        return []
    work = args.kernel.work(which, tensors["carry0"] if which else tensors["states"][0])
    names, arrays = ("pointers", "integers"), (*work.pair, *work.temps.values())
    copies = [Guarded(tensor, True) for tensor in (*(getattr(work, name) for name in names), *arrays)]
    for name, copy in zip(names, copies, strict=False):
        setattr(work, name, copy.view)
    views = [copy.view for copy in copies[2:]]
    work.pair, work.temps = views[:2], dict(zip(work.temps, views[2:], strict=True))
    return copies


@contextlib.contextmanager
def interpreted(watch):
    """Triton's interpreter shows where it reads and writes."""
    builder = importlib.import_module("triton.runtime.interpreter").InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def watched_load(self, ptrs, mask, *rest):
        watch.check(ptrs.data, mask.data)
        return load(self, ptrs, mask, *rest)

    def watched_store(self, ptrs, value, mask, *rest):
        watch.check(ptrs.data, mask.data, writes=True)
        return store(self, ptrs, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", watched_load)
        patch.setattr(builder, "create_masked_store", watched_store)
        yield


@pytest.fixture
def fenced(monkeypatch):
    """Every call of a C++ kernel has its tensors between guards and walls; gives the names of what was passed."""
    plain, passed = CppArguments.call, []

    def call(self, function, signature, own):
        pointed = {name: tensor for name, tensor in self.tensors.items() if name in signature.pointers}
        copies, private = guarded(self.kernel, signature, pointed, wall=True), []

        def guarded_part(part):
            private.append(guarded(self.kernel, signature, own(part), wall=True))
            return {name: copy.view for name, copy in private[-1].items()}

        tensors = {**self.tensors, **{name: copy.view for name, copy in copies.items()}}
        plain(dataclasses.replace(self, tensors=tensors), function, signature, guarded_part)
        for group in (copies, *private):
            passed.extend(group)
            for copy in group.values():
                copy.close()

    monkeypatch.setattr(CppArguments, "call", call)
    return passed


def agree(rnn, backend, batch, time, clock="sample", device="cpu", dtype=torch.float64, half=False):
    """Output, last state and all gradients are those of the plain path; `half` multiplies in bfloat16."""
    rnn = rnn.to(device, dtype)
    # Views with gaps between samples and steps, which a kernel reads as they are.
    x = torch.randn(time, batch, rnn.input_size + 1, dtype=dtype, device=device).requires_grad_()
    state = torch.randn(batch, rnn.components, rnn.hidden_size, dtype=dtype, device=device).requires_grad_()
    spans = None if clock == "uniform" else torch.rand(batch, time, dtype=dtype).add(0.05).to(device)
    spans = spans[0].clone() if clock == "shared" else spans
    leaves = [x, state, *rnn.parameters(), *([] if spans is None else [spans.requires_grad_()])]
    weight = torch.randn(batch, time, 2 * rnn.hidden_size, dtype=dtype, device=device)[..., ::2]
    by_backend = []
    for name in ("plain", backend):
        with solvers.backend(name), torch.autocast(device, torch.bfloat16, enabled=half and name == backend):
            output, end = rnn(x[..., 1:].transpose(0, 1), state, timespans=spans)
            loss = (output * weight).sum() + end.sin().sum()
            by_backend.append([output, end, *torch.autograd.grad(loss, leaves)])
    assert_agree(by_backend[1], by_backend[0], 2e-2 if half else 1e-12 if dtype == torch.float64 else 2e-5)


class Sums(neuralosc.VectorField):
    """Sums over channels, a gate shared by all of them, and a number for each of several things."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V, self.c = nn.Linear(input_size, hidden_size), nn.Parameter(torch.tensor(0.3))
        self.W = nn.Parameter(torch.randn(2 * hidden_size, hidden_size) / hidden_size)

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        mean = torch.tanh(h.mean(-1, keepdim=True) + self.c * u.sum(-1, keepdim=True))
        return (torch.tanh(torch.cat([h, u * mean], -1) @ self.W) - mean * h).unsqueeze(-2)


#: Steps with merged, joined and sliced products, one with sums, and one without products; and their solvers.
STEPS = {
    "oscillator": "semi_implicit_euler",
    "multiscale": "semi_implicit_euler",
    "leaky": "midpoint",
    "hamiltonian_oscillator": "stormer_verlet",
    "sums": "euler",
}


@pytest.fixture
def network(make_field):
    def make(name, hidden, **settings):
        field = Sums(2, hidden) if name == "sums" else make_field(name, 2, hidden)
        return ContinuousRNN(field, STEPS[name], 0.1, **settings)

    return make


def each(first, second, quick):
    """Every pair, all but some of them among the slow tests."""
    pairs = itertools.product(first, second)
    return [pytest.param(*pair, marks=[] if pair in quick else [pytest.mark.slow]) for pair in pairs]


HELD, STREAMED, BOTH = Tiling(16, 16, 0, 4, 1), Tiling(4, 32, 16, 4, 1), Tiling(16, 16, 16, 4, 1, 512)


def lay(monkeypatch, layout, hidden):
    """Choose a layout, whose tiles are no wider than the state, of persistent kernels; "staged" for the others."""
    if layout == "staged":
        monkeypatch.setattr(triton_kernel, "CACHED", -1)
        monkeypatch.setattr(emit_staged, "PIECE", 16)
    elif layout is not None:
        cut = dataclasses.replace(layout, piece=min(layout.piece, power(hidden)))
        monkeypatch.setattr(compiler, "tilings", lambda *_: [cut])


@needs_triton
@pytest.mark.parametrize(
    ("name", "layout"),
    each(
        STEPS,
        (None, HELD, STREAMED, BOTH, "staged"),
        [("oscillator", None), ("multiscale", HELD), ("oscillator", STREAMED), ("leaky", BOTH), ("leaky", "staged")],
    ),
)
def test_gpu_kernels_stay_within_their_tensors(name, layout, network, watched, monkeypatch):
    for batch, hidden in ((1, 1), (18, 37)):
        if name != "hamiltonian_oscillator" or layout == "staged":
            lay(monkeypatch, layout, hidden)
        agree(network(name, hidden), "triton", batch, 2, device=DEVICE)
    assert len(watched) >= 4 and (DEVICE == "cuda" or min(watched) > 0)


@needs_triton
@pytest.mark.parametrize(
    ("name", "clock"), each(STEPS, ("uniform", "shared", "sample"), [("oscillator", "sample"), ("sums", "shared")])
)
def test_launches_for_some_of_the_steps_stay_within_their_tensors(name, clock, network, watched, monkeypatch):
    monkeypatch.setattr(persistent, "CHUNK", 1)
    for layout in (None, "staged"):
        lay(monkeypatch, layout, 5)
        agree(network(name, 5, substeps=3, control="linear"), "triton", 3, 3, clock, DEVICE, torch.float32)
    # The self-check and the run itself, each forward and back.
    assert len(watched) >= 8


@needs_triton
def test_kernels_that_share_the_channels_stay_within_their_tensors(make_field, watched):
    for name, hidden in (("hamiltonian_oscillator", 70), ("linear_oscillator", 130)):
        agree(ContinuousRNN(make_field(name, 2, hidden), "semi_implicit_euler", 0.1), "triton", 3, 4, device=DEVICE)
    assert len(watched) >= 4


@pytest.mark.parametrize(
    ("name", "dtype"),
    each(STEPS, (torch.float32, torch.float64), [("oscillator", torch.float32), ("multiscale", torch.float64)]),
)
def test_compiled_loops_stay_within_their_tensors(name, dtype, network, fenced):
    for batch, time, hidden in ((1, 1, 1), (3, 5, 37), (18, 40, 5)):
        agree(network(name, hidden), "compiled", batch, time, dtype=dtype)
    assert {"states", "carry0"} <= set(fenced) and {"sum", "dstep"} <= {name[0] for name in fenced}
    assert name == "hamiltonian_oscillator" or "outer" in {name[0] for name in fenced}


@needs_triton
@pytest.mark.parametrize(("name", "layout"), each(STEPS, (HELD, STREAMED, BOTH, "staged"), [("oscillator", HELD)]))
def test_gpu_products_in_bfloat16_stay_within_their_tensors(name, layout, network, watched, monkeypatch):
    if name != "hamiltonian_oscillator" or layout == "staged":
        lay(monkeypatch, layout, 37)
    agree(network(name, 37), "triton", 18, 2, "uniform", DEVICE, torch.float32, half=True)
    assert len(watched) >= 4


@pytest.mark.skipif(not gemm.has_half(), reason="the processor has no products of bfloat16")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "oscillator" else [pytest.mark.slow]) for name in STEPS]
)
def test_compiled_products_in_bfloat16_stay_within_their_tensors(name, network, fenced):
    for batch, time, hidden in ((1, 2, 1), (3, 5, 37)):
        agree(network(name, hidden), "compiled", batch, time, dtype=torch.float32, half=True)
    assert "states" in fenced


@pytest.mark.parametrize(("name", "clock"), each(STEPS, ("uniform", "shared", "sample"), [("oscillator", "sample")]))
def test_compiled_segments_stay_within_their_tensors(name, clock, network, fenced):
    for gradient in ("backprop", "checkpoint"):
        agree(network(name, 5, substeps=3, control="linear", gradient=gradient), "compiled", 3, 20, clock)
    assert "states" in fenced


def test_guards_notice():
    tensor = torch.arange(12.0).view(3, 4)
    copy = Guarded(tensor[:, :3], written=True)
    assert torch.equal(copy.view, tensor[:, :3]) and copy.memory.view(torch.float32).isnan().sum() == 2 * 4096 + 2
    copy.view[1, 1] = 50.0
    copy.close()
    assert tensor[1, 1] == 50.0
    for at in (0, 4095, 4096 + 3, 4096 + 11, -1):
        copy = Guarded(tensor[:, :3], written=True, wall=0 <= at < 4096 + 11)
        copy.memory[at] = 0
        with pytest.raises(AssertionError, match="beside"):
            copy.close()
    copy = Guarded(tensor, written=False)
    copy.view[0, 0] = 7.0
    with pytest.raises(AssertionError, match="only read"):
        copy.close()
    assert Guarded(tensor[:1].expand(5, 4), written=False).view.shape == (5, 4)
