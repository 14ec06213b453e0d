"""Leaky integrators and liquid time constants: their published steps, bounds, and what the linear part buys."""

import itertools

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN

F64 = torch.float64


def weights(field):
    """Everything of a field that the equations name."""
    return field.V.weight, field.V.bias, field.W, field.tau()


def leaky_step(field, dt, h, x):
    """Euler's method: tau (h+ - h) / dt = -h + W sigma(h) + u."""
    V, b, W, tau = weights(field)
    return h + dt / tau * (torch.tanh(h) @ W.T + x @ V.T + b - h)


def fused_step(field, dt, h, x):
    """The fused step of the paper, its eq. 3: h+ = (h + dt f A) / (1 + dt (1 / tau + f))."""
    V, b, W, tau = weights(field)
    f = torch.sigmoid(h @ W.T + x @ V.T + b)
    return (h + dt * f * field.A) / (1 + dt * (1 / tau + f))


PUBLISHED = {"ctrnn": (leaky_step, 1), "ltc": (fused_step, 6)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_loop(name, relative_error):
    """Outputs and every gradient, with time constants of their own, on irregular samples."""
    step, unfolds = PUBLISHED[name]
    tau = [0.3, 0.5, 1.0, 2.0, 4.0]
    rnn = neuralosc.make(name, input_size=2, hidden_size=5, dt=0.7, tau=tau, max_dt=None).double()
    assert rnn.substeps == unfolds
    x, spans, weight = (torch.randn(3, 12, k, dtype=F64) for k in (2, 1, 5))
    h, outputs = torch.zeros(3, 5, dtype=F64), []
    for sample, span in zip(x.unbind(1), spans.abs().unbind(1), strict=True):
        for _ in range(unfolds):
            h = step(rnn.field, 0.7 * span / unfolds, h, sample)
        outputs.append(h)
    output, expected = rnn(x, timespans=spans.abs().squeeze(-1))[0], torch.stack(outputs, 1)
    assert relative_error(output, expected) <= 1e-12
    parameters = list(rnn.parameters())
    gradients, expected_gradients = (torch.autograd.grad((y * weight).sum(), parameters) for y in (output, expected))
    assert len(parameters) == len(list(rnn.field.parameters())) == (4 if name == "ctrnn" else 5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, other) <= 1e-11


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_evaluation_a_step_and_the_compiled_loop(name):
    rnn = neuralosc.make(name, input_size=2, hidden_size=4)
    x = torch.randn(2, 300, 2)
    assert rnn.solve(x).evaluations == 300 * rnn.substeps
    assert rnn.with_solver("exponential_euler").solve(x).evaluations == 300 * rnn.substeps
    for solver in (rnn.solver, "exponential_euler", "imex_euler"):
        assert rnn.with_solver(solver).explain(x, show=False).layers[0].path == "compiled"


@pytest.mark.parametrize("dt", [0.5, 20.0, 1e6])
def test_liquid_states_and_time_constants_stay_in_their_bounds(dt):
    """Hasani et al., theorems 1 and 2: tau / (1 + tau) <= tau / (1 + tau f) <= tau, and min(0, A) <= h <= max(0, A).

    The fused step keeps the bound on the state for any dt, as the equation does, Euler's method does not.
    """
    rnn = neuralosc.LTC(2, 6, dt=dt, tau=[0.2, 0.5, 1.0, 2.0, 5.0, 50.0]).double()
    field, x = rnn.field, 5 * torch.randn(4, 30, 2, dtype=F64)
    with torch.no_grad():
        field.A.mul_(torch.rand(6, dtype=F64) * 3)
        field.W.mul_(5)
        low, high = field.A.clamp(max=0), field.A.clamp(min=0)
        h = rnn(x)[0]
        assert bool(((h >= low) & (h <= high)).all())
        tau = field.tau()
        operator, _ = field.frozen(0.0, h[:, -1:], field.drive(x)[:, -1])
        system = -1 / operator.values.squeeze(-2)
        # A little slack: softplus keeps tau to rounding.
        assert bool(((system >= tau / (1 + tau) * (1 - 1e-12)) & (system <= tau * (1 + 1e-12))).all())
        explicit = rnn.with_solver("euler", substeps=1).field(0.0, h[:, -1:], field.drive(x)[:, -1]) * dt + h[:, -1:]
        if dt > 1:
            assert not bool(((explicit >= low) & (explicit <= high)).all())


def test_a_leak_of_any_stiffness_is_exact_under_an_exponential_method():
    """Without recurrence h = u + (h_0 - u) exp(-t / tau), whatever dt / tau is."""
    tau = [1e-4, 1e-2, 1.0, 1e3]
    rnn = neuralosc.CTRNN(1, 4, dt=0.8, tau=tau, learned=False, solver="exponential_euler").double()
    with torch.no_grad():
        rnn.field.W.zero_()
    x, start = torch.randn(2, 1, 1, dtype=F64), torch.randn(2, 1, 4, dtype=F64)
    u = rnn.field.drive(x)[:, 0]
    rates = rnn.field.time_scale()
    expected = u + (start[:, 0] - u) * torch.exp(-0.8 * rates)
    torch.testing.assert_close(rnn(x, start)[0][:, 0], expected, rtol=1e-13, atol=1e-13)
    exploded = rnn.with_solver("euler")(x, start)[0]
    assert float(exploded.detach().abs().max()) > 1e3


@pytest.mark.parametrize("solver", ["imex_euler", "exponential_euler"])
def test_a_quasilinear_field_of_ones_own(solver):
    """A gated field dh = g (n - h) with g and n of h: first order, and exact where they stand still."""

    class Gated(neuralosc.VectorField):
        structure = frozenset({"quasilinear"})

        def gates(self, state, u):
            return torch.sigmoid(state + u.unsqueeze(-2)), torch.tanh(u.unsqueeze(-2) - state)

        def forward(self, t, state, u):
            gate, new = self.gates(state, u)
            return gate * (new - state)

        def frozen(self, t, state, u):
            gate, new = self.gates(state, u)
            return solvers.DiagonalOperator(-gate), gate * new

    rnn = ContinuousRNN(Gated(3, 3), solver, 0.5)
    x, start = torch.randn(2, 6, 3, dtype=F64), torch.randn(2, 1, 3, dtype=F64)
    reference = rnn.with_solver("rk4", substeps=50)(x, start)[0]
    errors = [float((rnn.with_solver(solver, substeps=n)(x, start)[0] - reference).abs().max()) for n in (20, 40, 80)]
    assert all(1.8 < coarse / fine < 2.2 for coarse, fine in itertools.pairwise(errors)) and errors[-1] < 0.01


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ctrnn", {"activation": "softmax"}, ["activation", "'softmax'", "relu, sigmoid, tanh"]),
        ("ltc", {"activation": "relu"}, ["activation", "'relu'", "sigmoid, tanh"]),
        ("ctrnn", {"tau": 0.0, "learned": False}, ["tau", "0.0", "above 0"]),
        ("ltc", {"tau": [1.0, -1.0, 1.0]}, ["tau", "-1.0", "above 0"]),
        ("ltc", {"solver": "ars222"}, ["semilinear", "LiquidTimeConstant"]),
        ("ltc", {"solver": "stormer_verlet"}, ["partitioned", "imex_euler"]),
    ],
)
def test_what_does_not_fit(name, settings, words, one_line):
    with pytest.raises((solvers.InputError, solvers.PairingError)) as error:
        neuralosc.make(name, input_size=2, hidden_size=3, **settings)
    one_line(error, *words)
