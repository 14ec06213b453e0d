"""Every gradient against finite differences: parameters, input, initial state, and times, which are the step sizes."""

import pytest
import torch

import neuralosc
import solvers

F64 = torch.float64
#: A tolerance of Newton's method that the comparison does not see.
MIDPOINT = {"name": "implicit_midpoint", "tol": 1e-12}
TIGHT = {"name": "dopri5", "rtol": 1e-9, "atol": 1e-10}
#: For each gradient the solvers it is tried with, and how close it comes: rounding, or the tolerance of the solve.
CASES = {
    "backprop": (["rk4", "pefrl", "imex_midpoint", MIDPOINT, "etd2rk"], 1e-6),
    "checkpoint": (["rk4", "pefrl", "imex_midpoint", MIDPOINT, "etd2rk"], 1e-6),
    "reversible": (["stormer_verlet", "pefrl", "reversible", MIDPOINT], 1e-6),
    "adjoint": ([TIGHT], 1e-5),
    "forward": (["rk4", "pefrl", "imex_midpoint", MIDPOINT, "etd2rk"], 1e-6),
    # With a window over all intervals.
    "truncated": (["rk4", "pefrl", "imex_midpoint", MIDPOINT, "etd2rk"], 1e-6),
}
#: Those that need a linear part.
LINEAR = ("imex_midpoint", "etd2rk")
PAIRS = [(gradient, solver) for gradient, (tried, _) in CASES.items() for solver in tried]


def test_every_gradient_is_checked():
    exact = {name for name in solvers.GRADIENTS if solvers.GRADIENTS[name].exact}
    assert exact < set(CASES) <= set(solvers.GRADIENTS)


def problem():
    """A field with declared damping and scaled time steps, two samples with clocks of their own, and all leaves."""
    torch.manual_seed(0)
    field = neuralosc.Oscillator(1, 2, gamma=1.5, epsilon=0.4, coupled=False, learned=True).double()
    state = 0.5 * torch.randn(2, 2, 2, dtype=F64)
    times = torch.tensor([[0.0, 0.3, 0.7, 1.2], [0.1, 0.6, 0.8, 1.6]], dtype=F64)
    samples = torch.randn(2, 4, 2, dtype=F64)
    leaves = [leaf.requires_grad_() for leaf in (state, times, samples)]
    return field, [*leaves, *(p.detach().clone().requires_grad_() for p in field.parameters())]


def solved(field, solver, gradient):
    names = [name for name, _ in field.named_parameters()]

    class Solve(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.field = field

        def forward(self, state, times, samples):
            # The samples move with the times asked for, so that no time crosses a bend of the input.
            control = solvers.Sampled(samples, times, "linear")
            return solvers.integrate(self.field, state, times, control, solver, gradient).states[:, 1:]

    def call(state, times, samples, *values):
        parameters = {f"field.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Solve(), parameters, (state, times, samples))

    return call


def served(gradient, tensors, at):
    """Those at these places without a gradient, where a gradient gives none of the input and the times."""
    without = () if solvers.GRADIENTS[gradient].inputs else at
    return [t.detach() if place in without else t for place, t in enumerate(tensors)]


@pytest.mark.parametrize(("gradient", "solver"), PAIRS)
def test_against_finite_differences(gradient, solver):
    field, leaves = problem()
    leaves = served(gradient, leaves, (1, 2))
    slack = CASES[gradient][1]
    assert torch.autograd.gradcheck(solved(field, solver, gradient), leaves, fast_mode=True, atol=slack, rtol=1e-4)


@pytest.mark.parametrize("solver", CASES["backprop"][0])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_second_derivatives_against_finite_differences(gradient, solver):
    field, leaves = problem()
    assert torch.autograd.gradgradcheck(solved(field, solver, gradient), leaves, fast_mode=True, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("gradient", "solver"), [pair for pair in PAIRS if pair[1] not in LINEAR])
def test_the_time_scale_of_a_field_and_the_timespans_of_the_layer(gradient, solver):
    """UnICORNN learns a step size for each channel."""
    torch.manual_seed(0)
    rnn = neuralosc.UnICORNN(1, 2, dt=0.3, alpha=1.2, num_layers=1, solver=solver, gradient=gradient).double()
    names = [name for name, _ in rnn.named_parameters()]
    leaves = [torch.randn(2, 3, 1, dtype=F64), 0.5 * torch.randn(2, 2, 2, dtype=F64), torch.rand(2, 3, dtype=F64) + 0.5]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def call(x, state, spans, *values):
        return torch.func.functional_call(rnn, dict(zip(names, values, strict=True)), (x, state, spans))[0]

    arguments = [*served(gradient, leaves, (0, 2)), *(p.detach().clone().requires_grad_() for p in rnn.parameters())]
    assert any(name.endswith("c") for name in names)
    assert torch.autograd.gradcheck(call, arguments, fast_mode=True, atol=CASES[gradient][1], rtol=1e-4)


@pytest.mark.parametrize(
    ("gradient", "solver"),
    [
        ("checkpoint", "rk4"),
        ("reversible", "stormer_verlet"),
        ("reversible", MIDPOINT),
        ("adjoint", TIGHT),
        ("backprop", "implicit_midpoint"),
        ("checkpoint", "radau_iia3"),
    ],
)
def test_parameters_that_are_not_the_field_s_own(gradient, solver):
    """Under `functional_call` the field has its own parameters again when the backward pass runs."""
    torch.manual_seed(0)
    rnn = neuralosc.UnICORNN(1, 2, dt=0.3, alpha=1.2, num_layers=1, solver=solver, gradient=gradient).double()
    x = torch.randn(2, 6, 1, dtype=F64)
    replacements = {name: (p.detach() + 0.7).requires_grad_() for name, p in rnn.named_parameters()}
    output, _ = torch.func.functional_call(rnn, replacements, (x,))
    gradients = torch.autograd.grad(output.square().sum(), list(replacements.values()))
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            parameter.copy_(replacements[name])
    expected = torch.autograd.grad(rnn(x)[0].square().sum(), list(rnn.parameters()))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
