"""Checkpoint and reversible gradients: equal to backprop, with the memory they promise."""

import math

import pytest
import torch

import neuralosc
import solvers
from solvers.run.audit import PeakMemory, audit
from tests.fields import fitting

REVERSIBLE = [
    ("unicornn", "symplectic_euler"),
    ("hamiltonian", "stormer_verlet"),
    ("cornn", solvers.get("reversible", base="rk4")),
    ("lipschitz", "reversible"),
]


def gradients(rnn, x, state, timespans, lengths=None):
    """Gradients of a weighted sum of everything the layer returns, for parameters, input, state and timespans."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, state, timespans)]
    output, end = rnn(leaves[0], leaves[1], leaves[2], lengths)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    # What makes an initial state has no part where one is given.
    wanted = [*rnn.parameters(), *leaves]
    found = torch.autograd.grad((output * weights).sum() + end.square().sum(), wanted, allow_unused=True)
    # Nothing drives a learned energy alone, whose first sample makes the state that is given here.
    felt = 2 if isinstance(rnn.fields[0], neuralosc.NeuralHamiltonian) else 3
    assert all(gradient is not None for gradient in found[-felt:])
    return [torch.zeros_like(t) if gradient is None else gradient for gradient, t in zip(found, wanted, strict=True)]


def worst(computed, expected):
    pairs = zip(computed, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) if b.any() else float(a.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("control", ["hold", "linear"])
@pytest.mark.parametrize(("model", "solver"), REVERSIBLE)
@pytest.mark.parametrize(
    "gradient",
    ["checkpoint", solvers.Checkpoint("checkpoint", segments=3), "reversible", solvers.Reversible("reversible", 0, 5)],
)
def test_equals_backprop_with_clocks_lengths_layers_and_substeps(model, solver, control, gradient):
    torch.manual_seed(0)
    settings = {"solver": solver, "num_layers": 2, "dt": 0.1, "substeps": 3, "control": control}
    rnn = neuralosc.make(model, input_size=2, hidden_size=4, **settings).double()
    x = torch.randn(3, 13, 2, dtype=torch.float64)
    state = torch.randn(2, 3, rnn.components, 4, dtype=torch.float64)
    spans = torch.rand(3, 13, dtype=torch.float64)
    spans[0, 3] = 0
    expected = gradients(rnn, x, state, spans, [13, 6, 1])
    recomputed = gradients(rnn.with_solver(solver, gradient=gradient), x, state, spans, [13, 6, 1])
    assert worst(recomputed, expected) < 1e-12


def test_double_backward_through_checkpoint():
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(1, 3, dt=0.3, gradient="checkpoint").double()
    plain = rnn.with_solver(rnn.solver, gradient="backprop")
    x = torch.randn(2, 9, 1, dtype=torch.float64, requires_grad=True)

    def penalty(layer):
        (slope,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), list(layer.parameters()))

    assert worst(penalty(rnn), penalty(plain)) < 1e-12


def peak(rnn, x):
    with PeakMemory() as memory:
        output, _ = rnn(x)
        output.square().mean().backward()
    return memory.peak


def test_checkpoint_memory_grows_like_the_square_root_of_time():
    torch.manual_seed(0)
    batch, hidden = 2, 16
    rnn = neuralosc.CoRNN(1, hidden, gradient="checkpoint")
    for time in (100, 400):
        # Currents, outputs, their gradients, and the transient copies between them are linear in time by themselves.
        linear = 6 * time * batch * hidden * 4
        bound = linear + 8 * math.sqrt(time) * batch * hidden * 4 * 2
        assert (
            peak(rnn, torch.randn(batch, time, 1))
            < bound
            < peak(rnn.with_solver(rnn.solver, gradient="backprop"), torch.randn(batch, time, 1))
            + 6 * time * batch * hidden * 4
        )


def test_checkpoint_budget():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 1)
    plain = neuralosc.CoRNN(1, 16, solver="rk4")  # stores much more than its inputs and outputs
    roomy = plain.with_solver(plain.solver, gradient=solvers.Checkpoint("checkpoint", budget=10**9))
    tight = plain.with_solver(plain.solver, gradient=solvers.Checkpoint("checkpoint", budget=60_000))
    assert peak(roomy, x) == pytest.approx(peak(plain, x), rel=0.02)
    assert peak(tight, x) < 0.7 * peak(plain, x)
    hopeless = plain.with_solver(plain.solver, gradient=solvers.Checkpoint("checkpoint", budget=10))
    with pytest.raises(solvers.InputError, match="at least"):
        hopeless(x)
    with pytest.raises(solvers.InputError, match="one of them"):
        solvers.Checkpoint("checkpoint", segments=2, budget=100)


def one_interval(gradient, steps, dtype, solver="stormer_verlet"):
    """Peak memory and gradients of many steps in one interval, so that inputs and outputs do not grow."""
    torch.manual_seed(0)
    rnn = neuralosc.HamiltonianRNN(2, 8, dt=0.02 * steps, solver=solver, substeps=steps, gradient=gradient).to(dtype)
    x = torch.randn(4, 1, 2, dtype=dtype)
    with PeakMemory() as memory:
        grads = torch.autograd.grad(rnn(x)[1].square().sum(), list(rnn.parameters()))
    return memory.peak, grads


@pytest.mark.slow
def test_reversible_memory_does_not_depend_on_the_number_of_steps():
    peaks = [one_interval("reversible", steps, torch.float32)[0] for steps in (1_000, 3_000)]
    assert peaks[1] <= 1.1 * peaks[0]
    assert one_interval("backprop", 1_000, torch.float32)[0] > 20 * peaks[0]


@pytest.mark.slow
def test_reversible_memory_over_a_hundred_thousand_steps():
    peaks = [one_interval("reversible", steps, torch.float32)[0] for steps in (1_000, 10_000, 100_000)]
    assert max(peaks) <= 1.1 * min(peaks)


@pytest.mark.parametrize(
    ("steps", "dtype", "bound"),
    [(1_000, torch.float32, 1e-4), pytest.param(10_000, torch.float64, 1e-9, marks=pytest.mark.slow)],
)
def test_reversible_stays_accurate_over_many_steps(steps, dtype, bound):
    torch.manual_seed(0)
    rnn = neuralosc.HamiltonianRNN(2, 8, dt=0.05, solver="stormer_verlet").to(dtype)
    x = torch.randn(2, steps, 2, dtype=dtype)
    expected = torch.autograd.grad(rnn(x)[0].square().mean(), list(rnn.parameters()))
    reversed_ = rnn.with_solver(rnn.solver, gradient="reversible")
    recomputed = torch.autograd.grad(reversed_(x)[0].square().mean(), list(rnn.parameters()))
    assert worst(recomputed, expected) < bound


def test_drift_is_measured_and_refused_beyond_the_limit():
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(1, 4, dt=0.1, epsilon=20.0, coupled=False, solver="stormer_verlet")
    x = torch.randn(2, 40, 1)
    measured = []
    kept = rnn.with_solver(
        rnn.solver, gradient=solvers.Reversible("reversible", snapshots=4, chunk=4, limit=1e9, drifts=measured)
    )
    kept(x)[0].square().mean().backward()
    assert len(measured) == 5
    assert max(measured) > 1e-4
    refused = rnn.with_solver(rnn.solver, gradient=solvers.Reversible("reversible", snapshots=0))
    with pytest.raises(solvers.NumericalError, match="Oscillator is too stiff or too strongly damped") as failure:
        refused(x)[0].square().mean().backward()
    assert failure.value.sample is not None
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_snapshots_bound_the_drift(backend):
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(1, 4, dt=0.05, epsilon=2.0, coupled=False, solver="stormer_verlet")
    # Rounding grows by exp(0.05) with each step that is taken back: 1e5 times over all of them, 1.7 times over ten.
    x = torch.randn(2, 240, 1)
    drifts = {}
    for snapshots in (0, 24):
        drifts[snapshots] = []
        gradient = solvers.Reversible("reversible", snapshots, chunk=2, limit=1e9, drifts=drifts[snapshots])
        with solvers.backend(backend):
            rnn.with_solver(rnn.solver, gradient=gradient)(x)[0].square().mean().backward()
    assert max(drifts[24]) < 0.03 * max(drifts[0])


@pytest.mark.parametrize("solver", ["imex_euler", "rk4", "semi_implicit_euler"])
def test_reversible_needs_a_step_that_can_be_undone(solver):
    with pytest.raises(solvers.PairingError, match=r"use .*reversible"):
        neuralosc.CoRNN(1, 4, solver=solver, gradient="reversible")


def test_audit_says_what_each_gradient_costs(capsys):
    torch.manual_seed(0)
    field = neuralosc.DenseHamiltonian(1, 4)
    result = audit(field, torch.randn(2, 30, 1), solver="stormer_verlet", dt=0.1)
    rows = {row.gradient: row for row in result.rows}
    assert set(rows) == set(solvers.GRADIENTS)
    assert rows["backprop"].error < 1e-5
    assert rows["checkpoint"].error == rows["backprop"].error
    assert rows["reversible"].error < 1e-4
    assert rows["checkpoint"].peak_bytes < rows["backprop"].peak_bytes
    assert capsys.readouterr().out.strip() == str(result)
    assert rows["backprop"].cosine == pytest.approx(1.0)
    assert abs(rows["feedback_alignment"].cosine) < 0.99
    assert f"cosine {rows['feedback_alignment'].cosine:.3f}" in str(result)
    assert str(result).count("cosine") == sum(not solvers.GRADIENTS[name].exact for name in rows)
    refused = audit(field, torch.randn(2, 5, 1), solver="rk4", gradients=["reversible"], show=False)
    assert refused.rows[0].error is None
    assert "reversible" in str(refused)


def test_audit_of_a_field_with_a_frozen_parameter():
    torch.manual_seed(0)
    field = neuralosc.DenseHamiltonian(1, 4)
    next(field.parameters()).requires_grad_(False)
    for row in audit(field, torch.randn(2, 10, 1), solver="stormer_verlet", dt=0.1, show=False).rows:
        assert row.error is not None, row.note
        assert row.error < 1e-3 or not solvers.GRADIENTS[row.gradient].exact
    for parameter in field.parameters():
        parameter.requires_grad_(False)
    assert audit(field, torch.randn(2, 10, 1), solver="rk4", gradients=["backprop"], show=False).rows[0].error < 1e-5


@pytest.mark.parametrize("solver", ["implicit_midpoint", "sdirk2", "native_kencarp4"])
def test_checkpointing_an_implicit_method_costs_no_more_in_the_forward_pass(solver):
    """The Jacobians of its stages are differentiated on the way, which must not set off any recomputation."""
    rnn = neuralosc.LipschitzRNN(2, 4, dt=0.3, solver=solver).double()
    x = torch.randn(3, 9, 2, dtype=torch.float64)
    expected = rnn.solve(x).evaluations
    assert rnn.with_solver(solver, gradient="checkpoint").solve(x).evaluations == expected


@pytest.mark.parametrize("solver", ["rk4", "implicit_midpoint"])
def test_every_field_works_under_checkpoint(field_name, make_field, solver):
    """Fields and solvers that differentiate something on the way included."""
    field = make_field(field_name)
    solver = fitting(field, solver)
    if "stochastic" in field.structure:
        solver = {"name": "stochastic_heun", "noise_seed": 3}
    rnn = neuralosc.ContinuousRNN(field, solver, dt=0.1)
    x, state = torch.randn(2, 5, 2, dtype=torch.float64), torch.randn(2, rnn.components, 3, dtype=torch.float64)
    spans = torch.rand(2, 5, dtype=torch.float64)
    recomputed = gradients(rnn.with_solver(solver, gradient="checkpoint"), x, state, spans)
    assert worst(recomputed, gradients(rnn, x, state, spans)) < 1e-9


@pytest.mark.parametrize(("coupling", "stable"), [(0.8, True), (0.85, False)])
def test_the_reversible_pair_is_stable_while_its_coupling_beats_the_decay(coupling, stable):
    """dx = -2 x with dt = 0.1: stable for c exp(0.2) < 1, that is c < 0.82."""
    times = 0.1 * torch.arange(801, dtype=torch.float64)
    method = solvers.get("reversible", base="rk4", coupling=coupling)
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    end = float(solvers.integrate(lambda t, x, u: -2 * x, start, times, method=method).states[0, -1])
    assert (abs(end) < 1e-6) == stable
