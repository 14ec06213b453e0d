"""Truncated backpropagation and direct feedback alignment, against what they are by definition, in plain torch."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc.field import LinearDrive
from solvers.gradients.local import Piece
from tests.fields import fitting

F64 = torch.float64
KINDS = [solvers.Truncated("truncated", 3), solvers.FeedbackAlignment("feedback_alignment")]


class Tanh(LinearDrive):
    """x' = tanh(x W) - x + V u, of one component."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V = torch.nn.Linear(input_size, hidden_size)
        self.W = torch.nn.Parameter(torch.randn(hidden_size, hidden_size))

    def forward(self, t, state, u):
        (x,) = state.unbind(-2)
        return (torch.tanh(x @ self.W) - x + u).unsqueeze(-2)


def problem(time, gradient="backprop", substeps=2):
    torch.manual_seed(0)
    rnn = neuralosc.ContinuousRNN(Tanh(2, 3), "euler", dt=0.4, substeps=substeps, gradient=gradient).double()
    leaves = [torch.randn(4, time, 2, dtype=F64), torch.randn(4, 1, 3, dtype=F64)]
    return rnn, [leaf.requires_grad_() for leaf in leaves]


def interval(rnn, x, u):
    """One interval, by hand."""
    for _ in range(rnn.substeps):
        x = x + rnn.dt / rnn.substeps * (torch.tanh(x @ rnn.field.W) - x + u)
    return x


def weights(time):
    return torch.linspace(-1, 2, 4 * time * 3, dtype=F64).view(4, time, 3)


def gradients(rnn, leaves, backend="plain"):
    with solvers.backend(backend):
        output, end = rnn(*leaves)
        loss = (output * weights(output.shape[1])).sum() + end.square().sum()
        return torch.autograd.grad(loss, [*leaves, *rnn.parameters()], allow_unused=True)


def compare(computed, expected, bound=1e-12):
    for a, b in zip(computed, expected, strict=True):
        a, b = (torch.zeros(1, dtype=F64) if g is None else g for g in (a, b))
        assert float((a - b).abs().max()) <= bound * max(float(b.abs().max()), 1e-3)


def by_definition(rnn, leaves, steps):
    """Every error by itself, from a state that is cut off so many intervals before it."""
    x, state = leaves
    total, before = 0.0, [state.squeeze(1)]
    for t in range(x.shape[1]):
        before.append(interval(rnn, before[-1].detach() if t else before[-1], rnn.field.drive(x[:, t])))
    for t in range(x.shape[1]):
        begin = max(0, t - steps + 1)
        h = before[begin].detach() if begin else state.squeeze(1)
        for i in range(begin, t + 1):
            h = interval(rnn, h, rnn.field.drive(x[:, i]))
        total = total + (h * weights(x.shape[1])[:, t]).sum() + (h.square().sum() if t == x.shape[1] - 1 else 0.0)
    return torch.autograd.grad(total, [*leaves, *rnn.parameters()])


@pytest.mark.parametrize("backend", ["plain", "compiled", "torch"])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_truncated_takes_every_error_back_through_so_many_intervals(steps, backend):
    rnn, leaves = problem(7, {"name": "truncated", "steps": steps})
    compare(gradients(rnn, leaves, backend), by_definition(rnn, leaves, steps))


@pytest.mark.parametrize("backend", ["plain", "compiled"])
def test_truncated_every_so_many_steps_is_a_state_that_is_detached(backend):
    rnn, leaves = problem(12, {"name": "truncated", "steps": 4, "every": 4})
    x, state = leaves
    h, total = state.squeeze(1), 0.0
    for t in range(12):
        h = interval(rnn, h.detach() if t % 4 == 0 and t else h, rnn.field.drive(x[:, t]))
        total = total + (h * weights(12)[:, t]).sum()
    expected = torch.autograd.grad(total + h.square().sum(), [*leaves, *rnn.parameters()])
    compare(gradients(rnn, leaves, backend), expected)


def test_windows_by_hand():
    gradient = solvers.Truncated("truncated", 4, 2)
    assert gradient.windows(7) == [(0, 0, 2), (0, 2, 4), (2, 4, 6), (3, 6, 7)]
    assert solvers.Truncated("truncated", 7, 2).windows(7)[-1] == (0, 6, 7)


@pytest.mark.parametrize("backend", ["plain", "compiled", "torch"])
@pytest.mark.parametrize(("steps", "every"), [(3, 2), (5, 3), (4, 4)])
def test_truncated_on_either_path(steps, every, backend):
    """Clocks of their own, substeps, a control that looks back, and a loss on the last state alone."""
    torch.manual_seed(0)
    gradient = {"name": "truncated", "steps": steps, "every": every}
    rnn = neuralosc.CoRNN(2, 3, dt=0.3, control="linear", substeps=2, solver="stormer_verlet", coupled=False).double()
    rnn = rnn.with_solver(rnn.solver, gradient=gradient)
    x, spans = torch.randn(3, 11, 2, dtype=F64), torch.rand(3, 11, dtype=F64) + 0.1
    state = torch.randn(3, 2, 3, dtype=F64).requires_grad_()
    leaves = [x.requires_grad_(), spans.requires_grad_(), state, *rnn.parameters()]
    for last in (False, True):
        found = []
        for each in ("plain", backend):
            with solvers.backend(each):
                output, end = rnn(x, state, spans)
            loss = output[:, -1].sum() if last else (output * torch.linspace(0, 1, 11, dtype=F64)[:, None]).sum()
            found.append(torch.autograd.grad(loss + end.square().sum(), leaves, allow_unused=True))
        compare(found[1], found[0], 1e-11)
        assert bool((found[0][0][:, : 11 - steps - 1] == 0).all()) is last


def test_truncated_counts_intervals_under_noise():
    torch.manual_seed(0)
    field = neuralosc.Noisy(neuralosc.Lipschitz(2, 3), 0.2).double()
    solver, gradient = {"name": "euler_maruyama", "noise_seed": 3}, {"name": "truncated", "steps": 3}
    rnn = neuralosc.ContinuousRNN(field, solver, dt=0.1, substeps=4, gradient=gradient)
    x, found = torch.randn(2, 9, 2, dtype=F64, requires_grad=True), []
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            found.append(torch.autograd.grad(rnn(x)[0].square().sum(), [x, *rnn.parameters()]))
    compare(found[1], found[0], 1e-10)


def by_feedback(rnn, leaves, matrix):
    x, state = leaves
    time, states = x.shape[1], []
    for t in range(time):
        h = states[-1].detach() if t else state.squeeze(1)
        states.append(interval(rnn, h, rnn.field.drive(x[:, t])))
    errors = [weights(time)[:, t] + (2 * states[t].detach() if t == time - 1 else 0) for t in range(time)]
    later = [sum(errors[t + 1 :], torch.zeros_like(errors[0])) for t in range(time)]
    received = [error + after @ matrix.T for error, after in zip(errors, later, strict=True)]
    return torch.autograd.grad(states, [*leaves, *rnn.parameters()], received)


@pytest.mark.parametrize("options", [{}, {"seed": 5, "scale": 0.3}, {"density": 0.4}])
def test_feedback_alignment_by_hand(options):
    gradient = solvers.FeedbackAlignment("feedback_alignment", **options)
    rnn, leaves = problem(6, gradient)
    matrix = gradient.matrix(3)
    assert (matrix != 0).sum(1).tolist() == [1 if "density" in options else 3] * 3
    compare(gradients(rnn, leaves, "auto"), by_feedback(rnn, leaves, matrix))


def test_the_matrix_is_of_its_seed_and_scale_alone():
    state = torch.random.get_rng_state()
    first = solvers.FeedbackAlignment("feedback_alignment", 1, 0.5, 0.1).matrix(200)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, solvers.FeedbackAlignment("feedback_alignment", 1, 0.5, 0.1).matrix(200))
    first.zero_()
    again = solvers.FeedbackAlignment("feedback_alignment", 1, 0.5, 0.1).matrix(200)
    assert ((again != 0).sum(1) == 20).all()
    assert not torch.equal(again, solvers.FeedbackAlignment("feedback_alignment", 2, 0.5, 0.1).matrix(200))
    vectors = torch.randn(200, 100, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert float((again @ vectors).square().sum() / vectors.square().sum()) == pytest.approx(0.25, rel=0.05)


def test_the_feedback_is_the_same_whichever_form_a_solver_carries():
    """Components apart or beside each other: one oscillator, whose steps the two methods take alike without a force."""
    gradient = solvers.FeedbackAlignment("feedback_alignment", seed=3)
    errors = [torch.randn(2, 2, 3, dtype=F64), torch.randn(2, 2, 3, dtype=F64)]
    apart = [tuple(error.unbind(-2)) for error in errors]
    ends = [torch.zeros(2, 2, 3, dtype=F64)] * 2
    pieces = [Piece((end,), (end,)) for end in ends]
    split = [Piece(tuple(end.unbind(-2)), tuple(end.unbind(-2))) for end in ends]
    (whole, _), (parts, _) = gradient.received(pieces, [(e,) for e in errors], 1), gradient.received(split, apart, 1)
    torch.testing.assert_close(torch.stack(parts, -2), whole[0], rtol=1e-14, atol=1e-14)
    assert not torch.equal(whole[0], errors[0])


@pytest.mark.parametrize("gradient", [{"name": "truncated", "steps": 5}, {"name": "truncated", "steps": 9, "every": 5}])
def test_every_field_is_backprop_under_a_window_over_all(field_name, make_field, gradient):
    check_whole(make_field(field_name), "rk4", gradient)


@pytest.mark.parametrize("solver", [info.name for info in solvers.available()])
def test_every_solver_is_backprop_under_a_window_over_all(solver, make_field):
    for name in ("oscillator_uncoupled", "lipschitz", "gated_relaxation", "closed_form"):
        field = (
            make_field(name) if not solvers.get(solver).stochastic else neuralosc.Noisy(make_field(name), 0.1).double()
        )
        if solver in solvers.compatible(field):
            check_whole(field, solver, {"name": "truncated", "steps": 5})
            return
    raise AssertionError(f"no field for {solver}")


def check_whole(field, solver, gradient):
    """All is the gradient of backprop from as many steps as there are intervals on, and of one interval any is."""
    solver = fitting(field, solver)
    if "stochastic" in field.structure:
        solver = {"name": solver if solvers.get(solver).stochastic else "stochastic_heun", "noise_seed": 3}
    rnn = neuralosc.ContinuousRNN(field, solver, dt=0.1)
    x, state = torch.randn(2, 5, 2, dtype=F64), torch.randn(2, rnn.components, 3, dtype=F64)
    spans = 0.9 * torch.rand(2, 5, dtype=F64) + 0.05

    def found(gradient, time):
        leaves = [leaf[:, :time].clone().requires_grad_() for leaf in (x, spans)]
        begin = state.clone().requires_grad_()
        output, end = rnn.with_solver(solver, gradient=gradient)(leaves[0], begin, leaves[1])
        wanted = [*leaves, begin, *rnn.parameters()]
        return torch.autograd.grad(output.square().sum() + end.sin().sum(), wanted, allow_unused=True)

    compare(found(gradient, 5), found("backprop", 5), 1e-11)
    compare(found("feedback_alignment", 1), found("backprop", 1), 1e-11)
    for each in (x for x in found("feedback_alignment", 5) if x is not None):
        assert torch.isfinite(each).all()


@pytest.mark.parametrize("backend", ["plain", "compiled"])
@pytest.mark.parametrize("gradient", KINDS, ids=lambda kind: kind.name)
def test_what_is_no_derivative_is_not_differentiated_again(gradient, backend, one_line):
    rnn, leaves = problem(9, gradient)
    if gradient.name == "feedback_alignment":
        backend = "plain"
    with solvers.backend(backend):
        output = rnn(*leaves)[0]
    with pytest.raises(solvers.PairingError) as error:
        torch.autograd.grad(output.sum(), leaves[0], create_graph=True)
    one_line(error, "cannot be differentiated again", "'backprop'")
    assert torch.isfinite(torch.autograd.grad(output.sum(), leaves[0])[0]).all()


@pytest.mark.parametrize("gradient", KINDS, ids=lambda kind: kind.name)
def test_function_transforms_are_refused(gradient, one_line):
    rnn, (x, _) = problem(5, gradient)
    with pytest.raises(solvers.PairingError) as error:
        torch.func.grad(lambda x: rnn(x)[0].sum())(x.detach())
    one_line(error, gradient.name, "torch.func", "'backprop'")
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(lambda x: rnn(x)[0])(x.detach()[:, None]).squeeze(1), rnn(x)[0])


@pytest.mark.parametrize("gradient", KINDS, ids=lambda kind: kind.name)
def test_nothing_is_left_on_the_states_and_a_second_pass_adds(gradient):
    rnn, (x, state) = problem(6, gradient)
    loss = rnn(x, state)[0].square().sum()
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in (x, state, *rnn.parameters())]
    loss.backward()
    compare([leaf.grad for leaf in (x, state, *rnn.parameters())], [2 * grad for grad in once])
    for parameter in rnn.parameters():
        parameter.requires_grad_(False)
    assert not rnn(x.detach(), state.detach())[0].requires_grad


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("truncated", {"steps": 0}, "steps of gradient 'truncated' is 0"),
        ("truncated", {"every": True}, "every of gradient"),
        ("truncated", {"steps": 3, "every": 4}, "at most its steps, 3"),
        ("truncated", {"window": 4}, "no option window"),
        ("feedback_alignment", {"seed": -1}, "seed of gradient 'feedback_alignment' is -1"),
        ("feedback_alignment", {"scale": 0.0}, "scale of gradient"),
        ("feedback_alignment", {"scale": float("inf")}, "scale of gradient"),
        ("feedback_alignment", {"density": 1.5}, "at most 1"),
        ("feedback_alignment", {"density": float("nan")}, "density of gradient"),
    ],
)
def test_options_that_are_refused(name, options, words, one_line):
    with pytest.raises(solvers.InputError) as error:
        solvers.get_gradient({"name": name, **options})
    one_line(error, words)


@pytest.mark.parametrize(
    "spec", [{"name": "truncated", "steps": 7, "every": 2}, {"name": "feedback_alignment", "seed": 3, "density": 0.5}]
)
def test_options_are_saved(spec, tmp_path):
    rnn = neuralosc.CoRNN(1, 4, gradient=spec)
    neuralosc.save(rnn, tmp_path / "rnn")
    assert solvers.gradient_spec(neuralosc.load(tmp_path / "rnn").gradient) == spec
