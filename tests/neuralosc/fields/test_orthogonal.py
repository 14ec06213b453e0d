"""Orthogonal recurrence: the published networks, rotations under every solver, and jumps at the samples."""

import math

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from neuralosc.fields.orthogonal import mod_relu, skew

F64 = torch.float64
KINDS = [{}, {"unitary": True, "activation": "modrelu"}, {"margin": 0.3}, {"unitary": True, "margin": 0.3}]


def golden_network(name, g, **settings):
    """The golden weights under their published keys, loaded."""
    keys = [key for key in ("C", "E.weight", "E.bias", "D.weight", "D.bias") if key.replace(".", "_") in g]
    return neuralosc.from_reference(name, {key: g[key.replace(".", "_")] for key in keys}, **settings)


def check_golden(rnn, readout, g, ours, relative_error, transposed=()):
    """Logits after the last step, and the gradient of each tensor by its golden name."""
    logits = readout(rnn(g["x"].transpose(0, 1))[1][:, 0])
    assert relative_error(logits, g["logits"]) <= 1e-9
    ours |= {"E_weight": rnn.field.V.weight, "E_bias": rnn.field.V.bias}
    ours |= {"D_weight": readout.weight, "D_bias": readout.bias}
    assert {f"grad_{key}" for key in ours} == {key for key in g if key.startswith("grad_")}
    gradients = torch.autograd.grad((logits * g["loss_weight"]).sum(), list(ours.values()))
    for key, gradient in zip(ours, gradients, strict=True):
        assert relative_error(gradient.T if key in transposed else gradient, g[f"grad_{key}"]) <= 1e-9, key


def test_the_published_cayley_network(golden, relative_error):
    g = golden("lipschitz_calRNN")
    rnn, readout = golden_network("cayley", g)
    assert (rnn.solver.name, rnn.dt) == ("implicit_midpoint", 2.0)
    check_golden(rnn, readout, g, {"C": rnn.field.C}, relative_error)


def test_the_published_antisymmetric_network(golden, relative_error):
    g = golden("lipschitz_asymRNN")
    rnn, readout = golden_network("antisymmetric", g, eps=g["eps"], gamma=g["gamma"])
    check_golden(rnn, readout, g, {"C": rnn.field.W}, relative_error)


def test_the_published_residual_network(golden, relative_error):
    g = golden("lipschitz_resRNN")
    field, readout = neuralosc.Residual(2, 8).double(), nn.Linear(8, 5, dtype=F64)
    values = {field.W: g["W_weight"].T, field.V.weight: g["E_weight"], field.V.bias: g["E_bias"]}
    values |= {readout.weight: g["D_weight"], readout.bias: g["D_bias"]}
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)
    rnn = ContinuousRNN(field, "euler", dt=g["eps"])
    check_golden(rnn, readout, g, {"W_weight": field.W}, relative_error, transposed=["W_weight"])


def test_the_published_plain_network(golden, relative_error):
    g = golden("lipschitz_simpleRNN")
    rnn, readout = neuralosc.RNN(2, 8).double(), nn.Linear(8, 5, dtype=F64)
    field = rnn.field
    values = {field.W.weight: g["W_weight"], field.V.weight: g["E_weight"], field.V.bias: g["E_bias"]}
    values |= {readout.weight: g["D_weight"], readout.bias: g["D_bias"], field.W.bias: torch.zeros(8)}
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)
    check_golden(rnn, readout, g, {"W_weight": field.W.weight}, relative_error)


def recurrent(rnn):
    """The recurrent matrix that acts from the right: what an identity turns into without input and nonlinearity."""
    field = rnn.field.bind()
    identity = torch.eye(rnn.hidden_size, dtype=F64).unsqueeze(-2)
    turned = rnn.solver.step(field, 0.0, rnn.dt, identity, lambda t: None)[:, 0]
    P = field.constants["P"]
    return turned if P is None else turned @ P


def published_step(W, field, h, x):
    """The published cells: h+ = sigma(h W + V x + b)."""
    current = h @ W + x @ field.V.weight.T + field.V.bias
    if field.activation == "tanh":
        return torch.tanh(current)
    if not field.unitary:
        return torch.sign(current) * torch.relu(current.abs() + field.bias)
    z = torch.complex(*current.chunk(2, -1))
    z = z / z.abs() * torch.relu(z.abs() + field.bias)
    return torch.cat((z.real, z.imag), -1)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("name", ["cayley", "exprnn"])
def test_the_loop_of_the_paper(name, settings, relative_error):
    """Outputs and gradients of the cell, with its matrix by the Cayley transform or exp of the complex matrix."""
    rnn = neuralosc.make(name, input_size=2, hidden_size=6, **settings).double()
    field, x = rnn.field, torch.randn(3, 9, 2, dtype=F64)
    if field.bias is not None:
        nn.init.uniform_(field.bias, -0.3, 0.1)
    if field.s is not None:
        nn.init.normal_(field.s)
    C = torch.complex(*field.C) if field.unitary else field.C
    A, one = C.mH - C, torch.eye(len(C), dtype=C.dtype)
    W = torch.linalg.solve(one - A, one + A) if name == "cayley" else torch.linalg.matrix_exp(A)
    if field.unitary:
        W = torch.cat((torch.cat((W.real, W.imag), 1), torch.cat((-W.imag, W.real), 1)))
    if field.margin:
        W = W @ field.prepare()["P"]
    torch.testing.assert_close(recurrent(rnn), W, rtol=0, atol=1e-13)
    h, outputs = torch.zeros(3, 6, dtype=F64), []
    for sample in x.unbind(1):
        h = published_step(W, field, h, sample)
        outputs.append(h)
    expected, output = torch.stack(outputs, 1), rnn(x)[0]
    assert relative_error(output, expected) < 1e-12
    weight = torch.randn_like(output)
    gradients, expected_gradients = (
        torch.autograd.grad((y * weight).sum(), list(rnn.parameters())) for y in (output, expected)
    )
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, other) < 1e-11


@pytest.mark.parametrize("unitary", [False, True])
def test_swapping_the_solver_turns_one_network_into_the_other(unitary):
    cayley = neuralosc.CayleyRNN(2, 6, dt=1.0, activation="modrelu", unitary=unitary, start="henaff").double()
    exponential = neuralosc.ExpRNN(2, 6, unitary=unitary).double()
    exponential.load_state_dict(cayley.state_dict())
    x, spans = torch.randn(3, 8, 2, dtype=F64), torch.rand(3, 8, dtype=F64)
    for rnn, other in ((cayley, exponential), (exponential, cayley)):
        swapped = rnn.with_solver(other.solver)(x, timespans=spans)[0]
        torch.testing.assert_close(swapped, other(x, timespans=spans)[0], rtol=1e-12, atol=1e-12)
    # Both are one network in the limit of small steps, and any solver gets there.
    for solver, tolerance in (("implicit_midpoint", 1e-3), ("dopri5", 1e-5), ("rk4", 1e-6)):
        output = exponential.with_solver(solver, substeps=1 if solver == "dopri5" else 64)(x, timespans=spans)[0]
        torch.testing.assert_close(output, exponential(x, timespans=spans)[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("name", ["cayley", "exprnn"])
def test_singular_values_are_those_of_the_margin(name, settings):
    """Orthogonal (unitary) to rounding; with a margin m within 1 - m and 1 + m, exactly diag(S)."""
    rnn = neuralosc.make(name, input_size=2, hidden_size=12, **settings).double()
    field = rnn.field
    with torch.no_grad():
        expected = torch.ones(12, dtype=F64)
        if field.s is not None:
            field.s.copy_(torch.linspace(-9, 9, len(field.s)))
            expected = field._each(1 + 2 * field.margin * (torch.sigmoid(field.s) - 0.5)).sort(descending=True).values
            assert 0.69 < float(expected.min()) < 0.71 and 1.29 < float(expected.max()) < 1.3
        W = recurrent(rnn)
    torch.testing.assert_close(torch.linalg.svdvals(W), expected, rtol=0, atol=1e-13)
    if field.unitary:
        # It commutes with the multiplication by i.
        i = torch.kron(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64), torch.eye(6, dtype=F64))
        torch.testing.assert_close(W @ i, i @ W, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", ["implicit_midpoint", "exponential_euler"])
@pytest.mark.parametrize("unitary", [False, True])
def test_a_linear_network_keeps_the_norm_of_state_and_gradient(solver, unitary):
    """The reason for orthogonal recurrence: over 1000 steps neither grows nor shrinks."""
    rnn = neuralosc.ExpRNN(1, 8, activation="identity", unitary=unitary, solver=solver).double()
    state = torch.randn(4, 1, 8, dtype=F64, requires_grad=True)
    end = rnn(torch.zeros(4, 1000, 1, dtype=F64), state)[1]
    weight = torch.randn_like(end)
    (gradient,) = torch.autograd.grad((end * weight).sum(), state)
    norm = torch.linalg.vector_norm
    torch.testing.assert_close(norm(end, dim=-1), norm(state, dim=-1), rtol=1e-10, atol=0)
    torch.testing.assert_close(norm(gradient, dim=-1), norm(weight, dim=-1), rtol=1e-10, atol=0)


def test_starts():
    """Angles: of the Cayley start uniform on (0, pi/2) under the Cayley transform of half the field, of henaff's U."""
    torch.manual_seed(0)
    for unitary in (False, True):
        angles = {}
        for start in ("henaff", "helfrich"):
            field = neuralosc.Orthogonal(1, 600, start=start, unitary=unitary).double()
            angles[start] = torch.linalg.eigvals(skew(field.C)).imag
        assert float(angles["henaff"].detach().abs().max()) < math.pi
        assert float(angles["henaff"].detach().abs().mean()) == pytest.approx(math.pi / 2, abs=0.2)
        turned = 2 * torch.atan(angles["helfrich"].detach().abs())
        assert 0 < float(turned.max()) < math.pi / 2 + 1e-6
        assert float(turned.mean()) == pytest.approx(math.pi / 4, abs=0.1)
        C = neuralosc.Orthogonal(1, 40, unitary=unitary).double().C
        C = torch.complex(*C) if unitary else C
        torch.testing.assert_close(C @ C.mH, torch.eye(len(C), dtype=C.dtype), rtol=0, atol=1e-6)


def test_mod_relu_turns_no_phase_and_is_smooth_at_zero():
    z = torch.randn(5, 8, dtype=F64)
    out = mod_relu(z, torch.full((4,), -1.0, dtype=F64), paired=True)
    before, after = (torch.complex(*part.chunk(2, -1)) for part in (z, out))
    assert bool((after == 0).any()) and bool((after != 0).any())
    torch.testing.assert_close(after.abs(), (before.abs() - 1.0).clamp(min=0))
    torch.testing.assert_close(after.angle()[after != 0], before.angle()[after != 0])
    for dtype in (torch.float32, F64):
        zero, bias = torch.zeros(1, 8, dtype=dtype, requires_grad=True), torch.full((4,), 0.01, dtype=dtype)
        gradients = torch.autograd.grad(mod_relu(zero, bias, True).sum() + mod_relu(zero[:, :4], bias).sum(), zero)
        assert bool(torch.isfinite(gradients[0]).all())


class Counter(neuralosc.VectorField):
    """A state that stands still, and counts samples: what the mechanism of jumps itself does."""

    structure = frozenset({"impulsive"})

    def forward(self, t, state, u):
        return torch.zeros_like(state)

    def jump(self, t, state, u):
        return state + u.unsqueeze(-2)


@pytest.mark.parametrize("solver", [s for s in solvers.compatible(Counter(1, 1)) if "heun" not in s][::5])
@pytest.mark.parametrize("control", ["hold", "linear"])
def test_a_jump_at_each_sample_and_nowhere_else(solver, control):
    """However many steps are taken, with clocks per sample, padding, a bound on the step, and a sample at a time."""
    x, spans = torch.randn(3, 5, 1, dtype=F64), torch.rand(3, 5, dtype=F64) + 0.1
    rnn = ContinuousRNN(Counter(1, 1), solver, 0.5, control=control)
    expected = x.cumsum(1)
    for settings in ({}, {"substeps": 3}, {"max_dt": 0.2}):
        varied = rnn.with_solver(solver, **settings)
        torch.testing.assert_close(varied(x)[0], expected)
        torch.testing.assert_close(varied(x, timespans=spans)[0], expected)
        padded, end = varied(x, timespans=spans, lengths=[5, 2, 3])
        torch.testing.assert_close(end.flatten(), expected[torch.arange(3), torch.tensor([4, 1, 2]), 0])
        assert torch.equal(padded[1, 2:], padded[1, 1:2].expand(3, 1))
        state = None
        for i in range(5):
            output, state = varied.step(x[:, i], state, timespan=spans[:, i])
            torch.testing.assert_close(output, expected[:, i])


def test_between_the_samples_there_is_no_jump():
    rnn = ContinuousRNN(Counter(1, 1), "rk4", 0.5)
    x = torch.randn(2, 4, 1, dtype=F64)
    times = [0.0, 0.4, 1.0, 1.5, 2.0, 2.9, 4.0, 7.0]
    positions = rnn.trajectory(x, at=times)[:, :, 0, 0]
    sums = torch.cat((torch.zeros(2, 1, dtype=F64), x.squeeze(-1).cumsum(1)), 1)
    torch.testing.assert_close(positions, sums[:, [0, 0, 1, 1, 2, 2, 4, 4]])
    field, state = neuralosc.Orthogonal(1, 4).double(), torch.randn(2, 1, 4, dtype=F64)
    turned = solvers.integrate(field, state, [0.0, 1.0], method="exponential_euler").states[:, -1]
    torch.testing.assert_close(turned, field.flow(1.0, state))


@pytest.mark.parametrize("settings", [{}, {"unitary": True, "activation": "modrelu", "margin": 0.2}])
def test_compiled_and_checkpointed(settings, relative_error):
    rnn = neuralosc.CayleyRNN(2, 8, **settings).double()
    if rnn.field.s is not None:
        nn.init.normal_(rnn.field.s)
    x = torch.randn(3, 200, 2, dtype=F64)
    results = []
    for choices in ({}, {"gradient": "checkpoint"}):
        swapped = rnn.with_solver(rnn.solver, **choices)
        for path in ("plain", "compiled"):
            with solvers.backend(path):
                output = swapped(x)[0]
            weight = torch.linspace(-1, 1, output.numel(), dtype=F64).view_as(output)
            results.append((output, *torch.autograd.grad((output * weight).sum(), list(rnn.parameters()))))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert relative_error(a, b) < 1e-9
    assert rnn.explain(x, show=False).layers[0].path == "compiled"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: neuralosc.CayleyRNN(2, 5, unitary=True), ["hidden_size is 5", "even"]),
        (lambda: neuralosc.ExpRNN(2, 4, activation="elu"), ["activation", "'elu'", "modrelu"]),
        (lambda: neuralosc.ExpRNN(2, 4, margin=1.0), ["margin", "1.0"]),
        (lambda: neuralosc.ExpRNN(2, 4, start="zeros"), ["unknown start", "'zeros'", "haar"]),
        (lambda: neuralosc.CayleyRNN(2, 4, gradient="reversible"), ["reversible", "jumps", "checkpoint"]),
        (lambda: neuralosc.ExpRNN(2, 4, solver="stormer_verlet"), ["partitioned", "Orthogonal"]),
    ],
)
def test_what_does_not_fit(make, words, one_line):
    with pytest.raises((solvers.InputError, solvers.PairingError)) as error:
        make()
    one_line(error, *words)
