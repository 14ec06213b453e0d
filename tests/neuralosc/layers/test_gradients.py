"""Backprop against finite differences, the adjoint against backprop, second derivatives."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN

F64 = torch.float64


def leaves(rnn, batch=2, time=2):
    x = torch.randn(batch, time, rnn.input_size, dtype=F64, requires_grad=True)
    lead = (rnn.num_layers,) if rnn.num_layers > 1 else ()
    state = 0.5 * torch.randn(*lead, batch, rnn.components, rnn.hidden_size, dtype=F64)
    spans = 0.5 + torch.rand(batch, time, dtype=F64)
    return x, state.requires_grad_(), spans.requires_grad_()


def functional(rnn, names):
    def call(x, state, spans, *values):
        output, end = torch.func.functional_call(
            rnn, dict(zip(names, values, strict=True)), (x, state), {"timespans": spans}
        )
        return output, end

    return call


def test_backprop_against_finite_differences(pairing, make_field):
    """Every field under every solver that fits: inputs, state, timespans and every parameter."""
    name, solver = pairing
    adaptive = solvers.get(solver).adaptive
    options = {"rtol": 1e-7, "atol": 1e-8} if adaptive else {}
    if solvers.get(solver).order <= 3 and adaptive:
        options = {"rtol": 1e-5, "atol": 1e-6}
    noisy = solvers.get(solver).family == "stochastic"
    if noisy:
        # One path in all calls; it has no derivative by time.
        options = {"noise_seed": 1}
    rnn = ContinuousRNN(make_field(name, 1, 2), solvers.get(solver, **options), 0.3, control="linear")
    names = [key for key, _ in rnn.named_parameters()]
    x, state, spans = leaves(rnn, 1, 1 if adaptive else 2)
    arguments = (
        *(x, state, spans.detach() if noisy else spans),
        *(p.detach().clone().requires_grad_() for p in rnn.parameters()),
    )
    # The step sizes of an adaptive solver depend on the input, and backprop does not follow that: its gradient is exact
    # up to the tolerance of the solve, not to rounding.
    slack = 100 * options["rtol"] if adaptive else 1e-6
    assert torch.autograd.gradcheck(
        functional(rnn, names), arguments, fast_mode=True, atol=slack, rtol=max(slack, 1e-5)
    )


def loss_of(rnn, x, state, spans, lengths=None):
    output, end = rnn(x, state, timespans=spans, lengths=lengths)
    weight = torch.linspace(-1, 1, output.numel(), dtype=F64).reshape(output.shape)
    return (output * weight).sum() + end.square().sum()


def gradients(rnn, gradient, arguments, lengths=None):
    tight = rnn.with_solver({"name": "dopri5", "rtol": 1e-8, "atol": 1e-10}, gradient=gradient)
    parameters = list(rnn.parameters())
    loss = loss_of(tight, *arguments, lengths)
    return torch.autograd.grad(loss, [*arguments, *parameters], allow_unused=True)


def compare(values, expected, relative_error, bound=1e-5):
    for i, (a, b) in enumerate(zip(values, expected, strict=True)):
        # A gradient that is 0 in exact arithmetic is a few roundings in one path and 0 in the other.
        if b is None or float(b.abs().max()) < 1e-13:
            assert a is None or float(a.abs().max()) < bound
        else:
            assert relative_error(a, b) < bound, i


@pytest.mark.parametrize("control", [None, "linear"])
def test_the_adjoint_against_backprop(equation_name, control, make_field, relative_error):
    rnn = ContinuousRNN(make_field(equation_name), "dopri5", 0.3, control=control)
    arguments = leaves(rnn, batch=3, time=3)
    compare(gradients(rnn, "adjoint", arguments), gradients(rnn, "backprop", arguments), relative_error)


@pytest.mark.parametrize("name", ["cornn", "unicornn", "lipschitz"])
@pytest.mark.parametrize("lengths", [None, [2, 1, 3]])
def test_the_adjoint_through_stacks_and_lengths(name, lengths, relative_error):
    rnn = neuralosc.make(name, input_size=2, hidden_size=3, dt=[0.2, 0.4], num_layers=2, control="linear").double()
    arguments = leaves(rnn, batch=3, time=3)
    compare(
        gradients(rnn, "adjoint", arguments, lengths), gradients(rnn, "backprop", arguments, lengths), relative_error
    )


def test_the_adjoint_of_shared_timespans_and_learned_coefficients(relative_error):
    rnn = neuralosc.CoRNN(2, 3, dt=0.3, learned=True).double()
    x, state, _ = leaves(rnn, batch=3, time=3)
    spans = torch.tensor([0.5, 1.0, 0.0], dtype=F64, requires_grad=True)
    arguments = (x, state, spans)
    compare(gradients(rnn, "adjoint", arguments), gradients(rnn, "backprop", arguments), relative_error)


def test_the_adjoint_of_a_fixed_step_approaches_backprop(relative_error):
    """The adjoint is that of the continuous solution, so the two differ by the error of the steps."""
    rnn = neuralosc.CoRNN(2, 3, dt=0.3).double()
    arguments = leaves(rnn)
    errors = []
    for substeps in (4, 16):
        fine = rnn.with_solver("rk4", substeps=substeps)
        pair = [
            torch.autograd.grad(loss_of(fine.with_solver("rk4", gradient=g), *arguments), [*arguments])
            for g in (solvers.Adjoint("adjoint", rtol=1e-10, atol=1e-12), "backprop")
        ]
        errors.append(max(relative_error(a, b) for a, b in zip(*pair, strict=True)))
    assert errors[1] < errors[0] / 100 and errors[1] < 1e-5


def test_the_adjoint_keeps_one_state_per_interval():
    rnn = neuralosc.CoRNN(2, 3, dt=0.3, solver={"name": "dopri5", "rtol": 1e-8}, gradient="adjoint").double()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rnn(torch.randn(2, 5, 2, dtype=F64))
    # The end of an interval is the start of the next.
    states = {tensor.data_ptr() for tensor in saved if tensor.shape == (2, 2, 3)}
    assert len(states) <= 6 and len(saved) < 20


def test_a_gradient_of_the_adjoint_is_that_of_the_steps():
    rnn = neuralosc.CoRNN(1, 2, dt=0.3).double()
    arguments, second = leaves(rnn), {}
    for gradient in ("adjoint", "backprop"):
        tight = rnn.with_solver({"name": "dopri5", "rtol": 1e-8, "atol": 1e-10}, gradient=gradient)
        (first,) = torch.autograd.grad(loss_of(tight, *arguments), arguments[0], create_graph=True)
        second[gradient] = torch.autograd.grad(first.square().sum(), [*arguments, *rnn.parameters()])
    for found, expected in zip(second["adjoint"], second["backprop"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_second_derivatives_by_backprop(field_name, make_field):
    for solver in ("rk4", "semi_implicit_euler", "stormer_verlet", "imex_euler", "closed_form"):
        field = make_field(field_name, 1, 2)
        if solver in solvers.compatible(field):
            rnn = ContinuousRNN(field, solver, 0.3)
            names = [key for key, _ in rnn.named_parameters()]
            arguments = (*leaves(rnn, batch=1), *(p.detach().clone().requires_grad_() for p in rnn.parameters()))
            assert torch.autograd.gradgradcheck(functional(rnn, names), arguments, fast_mode=True, atol=1e-5)


def test_per_sample_gradients_do_not_mix(field_name, make_field):
    """A loss on one sample has no gradient in another, under fixed and adaptive steps."""
    for solver in ("rk4", "dopri5", "closed_form"):
        field = make_field(field_name)
        if solver not in solvers.compatible(field):
            continue
        rnn = ContinuousRNN(field, solver, 0.3)
        x = torch.randn(3, 3, 2, dtype=F64, requires_grad=True)
        (gradient,) = torch.autograd.grad(rnn(x)[0][1].sum(), x)
        # Where relu is 0, or a feature was not seen, there is none.
        assert float(gradient[1].abs().max()) > 0
        # Shared step sizes tie the samples of an adaptive solve together, by less than its tolerance.
        bound = 1e-5 if solver == "dopri5" else 0.0
        assert float(gradient[[0, 2]].abs().max()) <= bound


@pytest.mark.parametrize("solver", ["semi_implicit_euler", "stormer_verlet", "rk4", "imex_euler", "dopri5"])
def test_zero_state_zero_input_and_zero_spans_have_finite_gradients(solver):
    rnn = neuralosc.CoRNN(2, 3, dt=0.3, solver=solver, learned=True).double()
    with torch.no_grad():
        rnn.field.V.bias.zero_()
    x = torch.zeros(2, 3, 2, dtype=F64, requires_grad=True)
    spans = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=F64, requires_grad=True)
    loss = rnn(x, timespans=spans)[0].sum()
    for gradient in torch.autograd.grad(loss, [x, spans, *rnn.parameters()]):
        assert torch.isfinite(gradient).all()


def test_an_optimiser_step_lowers_the_loss():
    rnn = neuralosc.CoRNN(2, 8, dt=0.3, learned=True)
    x, target = torch.randn(16, 5, 2), torch.randn(16, 5, 8)
    optimiser = torch.optim.Adam(rnn.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (rnn(x)[0] - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert (rnn.field.gamma() > 0).all() and (rnn.field.epsilon() > 0).all()
