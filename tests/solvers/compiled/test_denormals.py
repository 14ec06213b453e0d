"""Numbers too small for their type are zero in the loops while they run, and afterwards threads are as they were."""

import threading

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.cpp import gemm
from solvers.compiled.passes import denormals
from solvers.compiled.passes.arguments import Kernel

#: After so many halvings a number of float32 that was 1 is denormal, and not yet zero.
HALVINGS = 135


class Halved(neuralosc.VectorField):
    """dh = -W h with W = 1: a step of 3/2 halves the size of the state, and of what flows back."""

    def __init__(self, hidden):
        super().__init__(1, hidden)
        self.W = nn.Parameter(torch.eye(hidden))

    def drive(self, x):
        return x

    def forward(self, t, state, u):
        return -(state @ self.W.T) + 0 * u.unsqueeze(-2)


def vanishing(backend, batch=64):
    """The last state of a loop, and the gradient of its sum with respect to the first."""
    rnn = ContinuousRNN(Halved(8), "euler", 1.5)
    start = torch.ones(batch, 1, 8, requires_grad=True)
    with solvers.backend(backend):
        solution = rnn.solve(torch.zeros(batch, HALVINGS, 1), start)
    assert solution.trajectories[0].record.path == backend
    (gradient,) = torch.autograd.grad(solution.state.sum(), start)
    return solution.state.detach(), gradient


def is_zero(tensor):
    """Bit by bit: a comparison of floats in a thread that flushes takes every denormal number for zero."""
    return not int((tensor.view(torch.int32) & 0x7FFFFFFF).count_nonzero())


def flushing_threads():
    """Which shares of a product over all of torch's threads came out as zero."""
    product = torch.full((1 << 18,), 2.0**-130) * 1.0
    return {is_zero(share) for share in product.chunk(8)}


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("backend", "batch", "products"),
    [
        ("compiled", 1, "own"),
        ("compiled", 1, "library"),
        ("compiled", 64, "own"),
        ("compiled", 64, "library"),
        ("torch", 1, ""),
    ],
)
def test_what_vanishes_is_zero(backend, batch, products, threads, monkeypatch):
    monkeypatch.setenv(gemm.PRODUCTS, products)
    expected = torch.full((batch, 1, 8), (-0.5) ** HALVINGS)
    for plain in vanishing("plain", batch):
        assert torch.equal(plain, expected)
    for flushed in vanishing(backend, batch):
        assert is_zero(flushed)
    monkeypatch.setenv(denormals.DENORMALS, "keep")
    for kept in vanishing(backend, batch):
        assert torch.equal(kept, expected)
    assert flushing_threads() == {False}


@pytest.mark.parametrize("backend", ["compiled", "torch"])
def test_a_thread_that_flushes_goes_on_flushing(backend):
    # In a thread of its own, with threads of its own: those of torch take over the mode of the one that starts them.
    found = []

    def work():
        assert torch.set_flush_denormal(True)
        vanishing(backend)
        found.extend([denormals.flushed_here(), flushing_threads()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, {True}]
    assert not denormals.flushed_here()


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_threads_that_a_loop_starts_do_not_flush(batch, monkeypatch):
    # A thread takes over the mode of the one that starts it. In a thread of its own, which has no others yet.
    monkeypatch.setenv(gemm.PRODUCTS, "library")
    found = []

    def work():
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        vanishing("compiled", batch)
        found.append(flushing_threads())
        torch.set_num_threads(before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [{False}]


def test_all_threads_of_torch_are_reached_and_given_back(threads):
    assert flushing_threads() == {False}
    with denormals.flushed():
        assert denormals.flushed_here()
        assert flushing_threads() == {True}
        small = torch.full((256, 256), 2.0**-65)
        assert is_zero(small @ small * 2.0**-8)
        with denormals.flushed():
            pass
        assert flushing_threads() == {True}
    assert not denormals.flushed_here()
    assert flushing_threads() == {False}


def test_given_back_after_an_exception(threads):
    with pytest.raises(RuntimeError, match="in between"), denormals.flushed():
        raise RuntimeError("in between")
    assert not denormals.flushed_here()
    assert flushing_threads() == {False}


def test_given_back_after_a_loop_that_fails(monkeypatch):
    def fails(*args):
        assert denormals.flushed_here()
        raise RuntimeError("in the loop")

    made = Kernel.__post_init__

    def spoilt(self):
        made(self)
        self.forward = fails

    monkeypatch.setattr(Kernel, "__post_init__", spoilt)
    with pytest.raises(RuntimeError, match="in the loop"):
        vanishing("torch")
    assert not denormals.flushed_here()


def test_kept_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv(denormals.DENORMALS, "keep")
    with denormals.flushed():
        assert not denormals.flushed_here()
        assert flushing_threads() == {False}


@pytest.mark.parametrize("backend", ["compiled", "torch"])
def test_a_wrong_choice_is_said(backend, monkeypatch, one_line):
    monkeypatch.setenv(denormals.DENORMALS, "zero")
    with pytest.raises(solvers.InputError) as error:
        vanishing(backend)
    one_line(error, "NEURALOSC_DENORMALS", "'zero'", "'flush' or 'keep'")
