"""A recorded step follows its field: after a change of anything that its Python reads, results are the plain path's."""

import copy
import gc
import os
import pickle
import random
import sys
import weakref
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.step.fingerprint import memory_of
from solvers.run import canary
from tests.solvers.compiled import ways
from tests.solvers.compiled.ways import Decay

X = torch.ones(3, 70, 1)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What the changes above have left is put back."""
    monkeypatch.setitem(sys.modules, "tests_settings", ways.SETTINGS)
    before = {name: getattr(ways, name) for name in ("GAIN", "shape_of")}
    token = ways.VARIABLE.set(1.0)
    yield
    vars(ways).update(before)
    ways.SETTINGS.gain = 1.0
    ways.VARIABLE.reset(token)


def follows(rnn, backend="torch"):
    """The default path and the plain one agree, with the gradient of a parameter."""
    results = []
    for name in (backend, "plain"):
        with solvers.backend("plain") if name == "plain" else nullcontext():
            output, _ = rnn(X)
            results.append((output, *torch.autograd.grad(output.square().sum(), list(rnn.parameters()))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    return results[0][0]


@pytest.fixture
def uncompiled(monkeypatch):
    """The recorded step runs as calls of torch, so that nothing waits for a compiler."""
    monkeypatch.setattr("solvers.compiled.cpp.compiler.lacking_compiler", lambda: "a test")


@pytest.mark.parametrize("way", ways.WAYS)
def test_the_next_call_follows_a_change(way, uncompiled):
    make, change = ways.WAYS[way]
    rnn = ContinuousRNN(make(), "euler", dt=0.1)
    before = follows(rnn)
    with change(rnn.field) if way in ways.PATCHES else applied(change, rnn.field):
        after = follows(rnn)
        assert not torch.allclose(before, after, rtol=1e-3), "the change shows nothing"
    follows(rnn)


def applied(change, field):
    change(field)
    return nullcontext()


def test_a_compiled_step_follows_too():
    rnn = ContinuousRNN(Decay(lambda f: ways.GAIN), "euler", dt=0.1)
    follows(rnn)
    assert rnn.solve(X).trajectories[0].record.path in ("compiled", "torch")
    ways.GAIN = 2.0
    follows(rnn)


def test_tensors_that_take_the_place_of_others_in_memory(uncompiled):
    rnn = ContinuousRNN(Decay(lambda f: float(f.held)), "euler", dt=0.1)
    for value in torch.linspace(1, 3, 20):
        rnn.field.held = value.clone()
        follows(rnn)


def test_parameters_tied_and_untied(uncompiled):
    class Two(neuralosc.VectorField):
        def __init__(self):
            super().__init__(1, 2)
            self.a = nn.Parameter(torch.ones(2))
            self.b = self.a

        def forward(self, t, state, u):
            return u.unsqueeze(-2) * self.a - self.b * state

    rnn = ContinuousRNN(Two(), "euler", dt=0.1)
    follows(rnn)
    rnn.field.b = nn.Parameter(torch.full((2,), 2.0))
    follows(rnn)


def test_a_step_that_counts_or_draws_is_left_to_the_plain_path(uncompiled):
    def reason(k):
        return ContinuousRNN(Decay(k), "euler", dt=0.1).solve(X).trajectories[0].record.reason

    calls = []
    assert "changes what it reads" in reason(lambda f: calls.append(1) or 1.0)
    assert "a step sets 'count'" in reason(lambda f: setattr(f, "count", getattr(f, "count", 0) + 1) or 1.0)
    assert "draws random numbers" in reason(lambda f: torch.rand(()))
    assert "eval" in reason(lambda f: eval("1.0"))
    assert reason(lambda f: random.random())


@pytest.fixture
def file(tmp_path):
    """A file with a number, which no look at a field finds changed."""
    path = tmp_path / "gain"
    path.write_text("1")
    return path


def test_changes_nobody_sees_are_found_and_left_to_the_plain_path_in_the_end(uncompiled, file):
    rnn = ContinuousRNN(Decay(lambda f: float(file.read_text())), "euler", dt=0.1)
    records = []
    for i in range(12):
        file.write_text(str(1 + i))
        follows(rnn)
        records.append(rnn.solve(X).trajectories[0].record)
    assert records[0].path == records[1].path == "torch"
    assert records[-1].path == "plain" and "cannot be seen" in records[-1].reason


@pytest.mark.parametrize("options", [{"substeps": 8}, {"gradient": "checkpoint"}, {"substeps": 3, "control": "linear"}])
def test_the_comparison_of_one_step_takes_every_loop(options, uncompiled, file):
    rnn = ContinuousRNN(Decay(lambda f: float(file.read_text())), "rk4", dt=0.1, **options)
    follows(rnn)
    file.write_text("2")
    follows(rnn)
    spans = torch.rand(3, 70) + 0.1
    for gain, clock in (("3", spans), ("4", spans), ("2", spans[0])):
        file.write_text(gain)
        outputs = []
        for backend in ("auto", "plain"):
            with solvers.backend(backend):
                outputs.append(rnn(X, timespans=clock)[0])
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


def test_a_short_step_is_compared_by_what_it_adds(uncompiled, file):
    rnn = ContinuousRNN(Decay(lambda f: float(file.read_text())), "euler", dt=1e-5)
    state = torch.ones(3, 1, 2)
    first, _ = rnn(X, state)
    file.write_text("30")
    second, _ = rnn(X, state)
    with solvers.backend("plain"):
        torch.testing.assert_close(second, rnn(X, state)[0], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(first, second, rtol=1e-4)


@pytest.mark.parametrize(
    "patched", ["torch.tanh", "neuralosc.fields.oscillator.affine", "solvers.methods.partitioned.axpy"]
)
def test_a_function_put_in_the_place_of_one_that_the_library_calls(patched, uncompiled):
    rnn = neuralosc.CoRNN(1, 2)
    before = follows(rnn)
    *_, name = patched.split(".")
    other = {"tanh": torch.sin, "affine": lambda u, x, m: u - x @ m, "axpy": lambda x, h, s: x - h * s}[name]
    with mock.patch(patched, other):
        assert not torch.allclose(before, follows(rnn), rtol=1e-3)
    torch.testing.assert_close(before, follows(rnn))


@pytest.fixture
def comparisons(monkeypatch):
    """Counts the solves that are compared."""
    counted, drifted = [], canary.drifted
    monkeypatch.setattr(canary, "drifted", lambda *given: counted.append(1) or drifted(*given))
    return counted


@pytest.mark.parametrize("name", [card.name for card in neuralosc.models() if card.field and not card.blocks])
def test_of_a_network_with_a_name_all_that_a_step_reads_is_looked_at(name, uncompiled, comparisons):
    rnn = neuralosc.make(name, input_size=1, hidden_size=2)
    with torch.no_grad():
        for _ in range(canary.EVERY):
            rnn(X)
    assert rnn.solve(X).trajectories[0].record.path == "plain" or len(comparisons) == 1
    assert all(memory_of(field).unseen == "" for field in rnn.fields)


def test_what_cannot_be_looked_at_is_compared_at_each_solve(uncompiled, comparisons, file):
    kept = Decay(lambda f: float(file.read_text()))
    rnn = ContinuousRNN(kept, "euler", dt=0.1)
    with torch.no_grad():
        for _ in range(5):
            rnn(X)
    assert len(comparisons) == 4 and "Path" in memory_of(kept).unseen
    asking = Decay(lambda f: float(os.getpid() > 0))
    ContinuousRNN(asking, "euler", dt=0.1)(X)
    assert memory_of(asking).unseen == "getpid"


def test_what_is_known_of_a_field_goes_with_it(uncompiled):
    rnn = neuralosc.CoRNN(1, 2)
    rnn(X)
    (field,) = rnn.fields
    number = memory_of(field).number
    rnn(X)
    assert memory_of(field).number == number and memory_of(field).lost == 0
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        (twin,) = other.fields
        assert memory_of(twin) is not memory_of(field)
        torch.testing.assert_close(other(X)[0], rnn(X)[0])
    gone = weakref.ref(field)
    del rnn, field, other, twin
    gc.collect()
    assert gone() is None
