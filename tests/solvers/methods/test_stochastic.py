"""Stochastic methods: paths, strong order, moments, gradients, and what they refuse; walked from the registry."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from solvers.base.control import Held
from solvers.methods.brownian import Brownian, Driven, Noise

F64 = torch.float64
METHODS = [info.name for info in solvers.available() if info.family == "stochastic"]
ADAPTIVE = ["milstein", "srk", "stochastic_heun", "stratonovich_milstein"]
HOLD = solvers.get_control("hold")


class Geometric:
    """dx = a x dt + b x dW."""

    structure = frozenset({"stochastic"})
    a, b = 0.3, 0.8

    def __call__(self, t, x, u):
        return self.a * x

    def diffusion(self, t, x, u):
        return self.b * x


class OrnsteinUhlenbeck:
    """dx = (u - theta x) dt + sigma dW."""

    structure = frozenset({"stochastic"})
    theta, sigma = 1.5, 0.6

    def __call__(self, t, x, u):
        return u.unsqueeze(-2) - self.theta * x

    def diffusion(self, t, x, u):
        return torch.full_like(x, self.sigma)


class Network(nn.Module):
    """A driven network with parameters in its drift, its diffusion and its time scale."""

    structure = frozenset({"stochastic"})

    def __init__(self):
        super().__init__()
        self.W = nn.Linear(3, 3)
        self.b, self.c = nn.Parameter(torch.tensor([0.3, 0.5, 0.2])), nn.Parameter(torch.tensor(0.2))
        self.speed = nn.Parameter(torch.zeros(3))
        self.double()

    def time_scale(self):
        return 2 * torch.sigmoid(self.speed)

    def forward(self, t, x, u):
        return torch.tanh(self.W(x) + u.unsqueeze(-2)) - x

    def diffusion(self, t, x, u):
        return self.b * torch.tanh(x) + self.c


def run(field, name, x, samples, spans, substeps=1, gradient="backprop", control="hold", **options):
    spans = torch.as_tensor(spans, dtype=x.dtype)
    solver, chosen = solvers.get(name, **{"noise_seed": 4, **options}), solvers.get_gradient(gradient)
    clock, path = solvers.Clock.of_spans(spans), solvers.get_control(control)
    return solvers.solve(field, solver, chosen, path, clock, samples, x, substeps)


def motion(interval, rows, columns, seed=4, dtype=F64):
    return Brownian(Noise.of(seed, interval), torch.empty(rows, columns, dtype=dtype), area=True)


def test_a_path_has_the_law_of_brownian_motion():
    path = motion(0, 300, 300)
    for a, b in [(0, 1), (0, 0.5), (0.1, 0.4), (0.3, 0.70001), (0.1234, 0.1236)]:
        w, area = path(a, b, return_U=True)
        h = b - a
        # 90,000 numbers: the standard error of a variance is half a percent.
        for product, exact in [(w * w, h), (area * area, h**3 / 3), (w * area, h * h / 2)]:
            assert float(product.mean()) / exact == pytest.approx(1, abs=0.02)
        assert abs(float(w.mean())) < 0.015 * h**0.5
        assert float((w / h**0.5).pow(4).mean()) == pytest.approx(3, abs=0.1)
    first, second = path(0.1, 0.3), path(0.3, 0.7)
    for a, b in [(first, second), (path(0, 1), motion(1, 300, 300)(0, 1)), (first[:-1], first[1:])]:
        assert abs(float((a * b).mean() / (a.std() * b.std()))) < 0.015


def test_a_path_is_a_function():
    path = motion(0, 5, 7)
    first, u1 = path(0.1, 0.3, return_U=True)
    second, u2 = path(0.3, 0.7, return_U=True)
    whole, u = motion(0, 5, 7)(0.1, 0.7, return_U=True)
    torch.testing.assert_close(first + second, whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(u1 + u2 + 0.4 * first, u, rtol=0, atol=1e-14)
    # An entry does not see the others; the functions it is computed with may round it by where it lies in a vector.
    torch.testing.assert_close(motion(0, 3, 4)(0.1, 0.3), first[:3, :4], rtol=0, atol=1e-14)
    torch.testing.assert_close(motion(0, 5, 7, dtype=torch.float32)(0.1, 0.3), first.float(), rtol=0, atol=0)
    assert not torch.equal(motion(0, 5, 7, seed=5)(0.1, 0.3), first)
    third = Brownian(Noise.of(4, 0).part(1, 3), torch.empty(5, 7, dtype=F64))
    torch.testing.assert_close(third(0, 1), path(1 / 3, 2 / 3) * 3**0.5, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_strong_order_on_geometric_brownian_motion(name):
    solver = solvers.get(name)
    x, u, span = torch.ones(100, 1, 60, dtype=F64), torch.zeros(100, 60, dtype=F64), 0.8
    w = span**0.5 * motion(0, 100, 60)(0, 1).unsqueeze(1)
    correction = Geometric.b**2 / 2 if solver.interpretation == "ito" else 0.0
    exact = torch.exp((Geometric.a - correction) * span + Geometric.b * w)
    errors = [
        float((run(Geometric(), name, x, [u], [span], n).end() - exact).detach().square().mean().sqrt())
        for n in (16, 64)
    ]
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("name", METHODS)
def test_strong_order_on_a_driven_ornstein_uhlenbeck_process(name):
    x, span = torch.ones(40, 1, 30, dtype=F64), 1.0
    samples = [torch.full((40, 30), 0.7, dtype=F64), torch.full((40, 30), -0.4, dtype=F64)]
    # The exact solution needs the integral of exp(theta s) dW: finer steps of higher order know it well enough.
    reference = run(OrnsteinUhlenbeck(), "srk", x, samples, [span, span], 128, control="linear").end()
    ends = [run(OrnsteinUhlenbeck(), name, x, samples, [span, span], n, control="linear").end() for n in (8, 32)]
    errors = [float((end - reference).detach().square().mean().sqrt()) for end in ends]
    # All are of order 1 with additive noise, and the method of order 3/2 of order 2 on a linear drift.
    expected = 2 if name == "srk" else 1
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("name", METHODS)
def test_moments_of_a_driven_ornstein_uhlenbeck_process(name):
    x, samples = torch.ones(300, 1, 100, dtype=F64), [torch.full((300, 100), 0.6, dtype=F64)] * 2
    end = run(OrnsteinUhlenbeck(), name, x, samples, [0.4, 0.4], 16).end().detach()
    decay, theta, sigma = math.exp(-1.5 * 0.8), OrnsteinUhlenbeck.theta, OrnsteinUhlenbeck.sigma
    assert float(end.mean()) == pytest.approx(decay + 0.6 / theta * (1 - decay), abs=0.01)
    assert float(end.var()) == pytest.approx(sigma**2 / (2 * theta) * (1 - decay**2), rel=0.05)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_noise_scales_with_the_root_of_each_span(name, dtype):
    spans = torch.tensor([[0.0], [0.01], [0.04], [0.16]], dtype=dtype)

    class Pure(OrnsteinUhlenbeck):
        theta = 0.0

    x, u = torch.randn(4, 1, 4000, dtype=dtype), torch.zeros(4, 4000, dtype=dtype)
    end = run(Pure(), name, x, [u], spans).end().detach()
    assert end.dtype == dtype and torch.equal(end[0], x[0])
    spread = (end - x).flatten(1).std(1)[1:]
    torch.testing.assert_close(spread, 0.6 * spans[1:, 0].sqrt(), rtol=0.05, atol=0)
    # The time scale of a field is part of its dt.
    Pure.time_scale = lambda self: torch.full((4000,), 0.25, dtype=dtype)
    torch.testing.assert_close(run(Pure(), name, x, [u], spans).end() - x, (end - x) / 2, rtol=1e-4, atol=1e-6)


def network_case():
    torch.manual_seed(0)
    field = Network()
    x = torch.randn(4, 1, 3, dtype=F64, requires_grad=True)
    samples = [torch.randn(4, 3, dtype=F64, requires_grad=True) for _ in range(3)]
    spans = torch.rand(4, 3, dtype=F64)
    spans[1, 1] = 0.0
    return field, x, samples, spans.requires_grad_()


def gradients(name, gradient, substeps=2, control="hold", **options):
    field, x, samples, spans = network_case()
    trajectory = run(field, name, x, samples, spans, substeps, gradient, control, **options)
    loss = trajectory.positions().square().sum() + trajectory.end().sin().sum()
    return loss.detach(), torch.autograd.grad(loss, [x, *samples, spans, *field.parameters()])


def difference(computed, expected):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(computed, expected, strict=True))


@pytest.mark.parametrize("control", ["hold", "linear"])
@pytest.mark.parametrize("name", METHODS)
def test_recomputing_gradients_see_the_same_path(name, control):
    loss, exact = gradients(name, "backprop", control=control)
    kinds = ["checkpoint", "reversible"] if solvers.get(name).reversible else ["checkpoint"]
    for kind in kinds:
        again, recomputed = gradients(name, kind, control=control)
        assert difference([again], [loss]) < 1e-12 and difference(recomputed, exact) < 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_the_adjoint_approaches_backprop(name):
    errors = [difference(gradients(name, "adjoint", n)[1], gradients(name, "backprop", n)[1]) for n in (4, 32)]
    # Ito adjoints are of low order, on this one path.
    assert errors[1] < errors[0] / 2
    assert errors[1] < (0.2 if solvers.get(name).interpretation == "ito" else 0.06)


def test_the_adjoint_of_an_adaptive_solve():
    options = {"adaptive": True, "rtol": 1e-2, "atol": 1e-2}
    loss, exact = gradients("srk", "backprop", 1, **options)
    again, recomputed = gradients("srk", "adjoint", 1, **options)
    assert difference([again], [loss]) < 1e-12 and difference(recomputed, exact) < 0.2


@pytest.mark.parametrize("name", METHODS)
def test_gradcheck(name):
    field, x, samples, spans = network_case()
    spans = spans.detach() + 0.1

    def end(x, u, spans, *parameters):
        names = [key for key, _ in field.named_parameters()]
        values = dict(zip(names, parameters, strict=True))

        class Bound:
            structure = field.structure

            def __call__(self, *args):
                return torch.func.functional_call(field, values, args)

            def time_scale(self):
                return 2 * torch.sigmoid(values["speed"])

            def diffusion(self, t, x, u):
                return values["b"] * torch.tanh(x) + values["c"]

        clock = solvers.Clock.of_spans(spans)
        backprop = solvers.get_gradient("backprop")
        return solvers.solve(Bound(), solvers.get(name, noise_seed=3), backprop, HOLD, clock, [u, u], x, 2).end()

    inputs = (x[:2], samples[0][:2], spans[:2, :2].requires_grad_(), *field.parameters())
    inputs = tuple(value.detach().clone().requires_grad_() for value in inputs)
    assert torch.autograd.gradcheck(end, inputs)
    assert torch.autograd.gradgradcheck(lambda x: end(x, *(i.detach() for i in inputs[1:])), inputs[:1])


@pytest.mark.parametrize("name", METHODS)
def test_seeds(name):
    x, samples = torch.ones(3, 1, 2, dtype=F64), [torch.zeros(3, 2, dtype=F64)] * 3

    def end(seed):
        return run(Geometric(), name, x, samples, [0.3] * 3, noise_seed=seed).states().detach()

    assert torch.equal(end(1), end(1)) and not torch.equal(end(1), end(2))
    torch.manual_seed(5)
    first, second = end(None), end(None)
    torch.manual_seed(5)
    assert torch.equal(end(None), first) and not torch.equal(first, second)
    # Intervals, samples and channels have noise of their own.
    steps = torch.cat((torch.ones(3, 1, 1, 2, dtype=F64), end(1)), 1)
    factors = (steps[:, 1:] / steps[:, :-1]).flatten()
    assert len(set(factors.tolist())) == len(factors)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_samples_do_not_see_the_others(name):
    field, x, samples, spans = network_case()
    whole = run(field, name, x, samples, spans, 3).states()
    part = run(field, name, x[:2], [u[:2] for u in samples], spans[:2], 3).states()
    torch.testing.assert_close(whole[:2], part, rtol=0, atol=1e-14)
    single = run(field.float(), name, x.float(), [u.float() for u in samples], spans.float(), 3).states()
    torch.testing.assert_close(single.double(), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps_follow_the_path_to_the_tolerance(name):
    x, u = torch.ones(10, 1, 6, dtype=F64), torch.zeros(10, 6, dtype=F64)
    correction = Geometric.b**2 / 2 if solvers.get(name).interpretation == "ito" else 0.0
    exact = torch.exp(Geometric.a - correction + Geometric.b * motion(0, 10, 6)(0, 1).unsqueeze(1))
    errors, steps = [], []
    for tolerance in (1e-1, 1e-3):
        method = {"name": name, "noise_seed": 4, "adaptive": True}
        integration = solvers.integrate(Geometric(), x, [0.0, 1.0], u, method, rtol=tolerance, atol=tolerance)
        errors.append(float((integration.states[:, -1] - exact).detach().square().mean().sqrt()))
        steps.append(int(integration.statistics.steps[0]))
        assert integration.statistics.evaluations[0] >= 3 * steps[-1]
    assert errors[1] < errors[0] / 3 and errors[1] < 0.02 and steps[1] > steps[0] > 1


@pytest.mark.parametrize("name", METHODS)
def test_a_step_costs_the_declared_number_of_stages(name):
    trajectory = run(Geometric(), name, torch.ones(2, 1, 3), [torch.zeros(2, 3)] * 3, [0.1] * 3, 2)
    assert trajectory.evaluations == 3 * 2 * solvers.get(name).stages


@pytest.mark.parametrize("name", METHODS)
def test_integrate_takes_one_path_whatever_the_steps(name):
    x = torch.ones(2, 1, 2, dtype=F64)
    field, method = OrnsteinUhlenbeck(), {"name": name, "noise_seed": 4}
    times = [0.0, 1.0, 1.5]

    def ends(control, dt):
        return solvers.integrate(field, x, times, control, method, dt=dt).states.detach()

    def wave(t):
        return torch.sin(3.0 * torch.as_tensor(t, dtype=F64)).expand(2, 2)

    knots = torch.tensor([0.0, 0.25, 1.5], dtype=F64)
    sampled = solvers.Sampled(torch.randn(2, 3, 2, dtype=F64), knots, "linear")
    for control in (wave, sampled):
        fine = ends(control, 1 / 64)
        assert float((ends(control, 1 / 8) - fine).abs().max()) < 0.25
        assert float((ends(control, 1 / 32) - fine).abs().max()) < 0.04
    spread = solvers.integrate(field, x, torch.tensor([times, [0.0, 0.0, 3.0]]), wave, method, dt=0.1)
    assert spread.success and torch.equal(spread.states[1, 1], x[1])
    assert spread.statistics.steps.tolist() == [10 + 30, 30]


@pytest.mark.parametrize("name", METHODS)
def test_one_more_time_is_another_path_from_there_on(name):
    x, method = torch.zeros(2, 1, 2, dtype=F64), {"name": name, "noise_seed": 4}

    def states(times):
        return solvers.integrate(OrnsteinUhlenbeck(), x, times, torch.zeros(2, 2, dtype=F64), method).states

    fewer, more = states([0.0, 0.5, 1.0, 1.5]), states([0.0, 0.5, 0.75, 1.0, 1.5])
    torch.testing.assert_close(more[:, 1], fewer[:, 1], rtol=0, atol=1e-14)
    assert float((more[:, 3:] - fewer[:, 2:]).abs().min()) > 1e-4


def test_a_step_by_itself():
    solver, x = solvers.get("milstein"), torch.ones(2, 1, 3, dtype=F64)
    path = Held(torch.zeros(2, 3, dtype=F64))
    assert not torch.equal(solver.step(Geometric(), 0.0, 0.1, x, path), solver.step(Geometric(), 0.0, 0.1, x, path))
    x.requires_grad_()
    driven = Driven(path, Noise.of(1, 0))
    recorded = solver.step(Geometric(), 0.0, 0.1, x, driven)
    with torch.no_grad():
        torch.testing.assert_close(solver.step(Geometric(), 0.0, 0.1, x, driven), recorded, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_a_noisy_network(name):
    def fields():
        inner = [neuralosc.Lipschitz(2, 3), neuralosc.Lipschitz(3, 3)]
        return [neuralosc.Noisy(field, 0.2, 0.3) for field in inner]

    rnn = neuralosc.ContinuousRNN(fields(), {"name": name, "noise_seed": 1}, dt=0.3, substeps=2).double()
    x, spans, lengths = torch.randn(3, 5, 2, dtype=F64), torch.rand(3, 5, dtype=F64), torch.tensor([5, 2, 4])
    output, state = rnn(x, timespans=spans, lengths=lengths)
    assert torch.equal(output, rnn(x, timespans=spans, lengths=lengths)[0])
    torch.testing.assert_close(output[1, 1:], output[1, 1:2].expand(4, -1), rtol=0, atol=0)
    longer = torch.cat((x, torch.full((3, 2, 2), torch.nan, dtype=F64)), 1)
    padded = torch.cat((spans, torch.ones(3, 2, dtype=F64)), 1)
    # The inputs of more samples are one larger product.
    torch.testing.assert_close(rnn(longer, timespans=padded, lengths=lengths)[1], state, rtol=0, atol=1e-14)
    (output.sum() + state.sum()).backward()
    assert all(parameter.grad is not None for parameter in rnn.parameters())


def test_layers_have_noise_of_their_own():
    class Still(neuralosc.VectorField):
        def forward(self, t, state, u):
            return torch.zeros_like(state)

    rnn = neuralosc.ContinuousRNN(
        [neuralosc.Noisy(Still(3, 3), 1.0) for _ in range(2)], {"name": "euler_maruyama", "noise_seed": 1}
    )
    _, state = rnn(torch.zeros(200, 4, 3))
    first, second = state.flatten(1)
    assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 0.2


def test_reversible_heun_needs_no_stored_states():
    _, exact = gradients("reversible_heun", "backprop", 40)
    drifts = []
    gradient = dataclasses.replace(solvers.get_gradient("reversible"), drifts=drifts, chunk=4)
    _, recomputed = gradients("reversible_heun", gradient, 40)
    assert difference(recomputed, exact) < 1e-9 and 0 < max(drifts) < 1e-10


def test_messages(one_line):
    x, u = torch.ones(2, 1, 3, dtype=F64), [torch.zeros(2, 3, dtype=F64)]
    with pytest.raises(solvers.PairingError) as error:
        run(neuralosc.Lipschitz(3, 3).double(), "milstein", x, u, [0.1])
    one_line(error, "solver 'milstein' needs a stochastic field", "diffusion(t, state, u)", "Lipschitz")
    for spans in ([-0.1], [[0.1], [-0.2]]):
        with pytest.raises(solvers.InputError) as error:
            run(Geometric(), "milstein", x, u, spans)
        one_line(error, "a span of -0.", "increasing times")
    with pytest.raises(solvers.InputError) as error:
        solvers.integrate(Geometric(), x, [1.0, 0.0], method="srk")
    one_line(error, "'srk'", "span of -1")
    for name in ("euler_maruyama", "reversible_heun"):
        with pytest.raises(solvers.InputError) as error:
            solvers.get(name, adaptive=True)
        one_line(error, name, "stochastic_heun")
    for options in ({"noise_seed": 1.5}, {"noise_seed": True}, {"adaptive": 1}, {"rtol": 0}, {"max_steps": -1}):
        with pytest.raises(solvers.InputError) as error:
            solvers.get("milstein", **options)
        one_line(error, next(iter(options)), "expected")
    with pytest.raises(solvers.PairingError) as error:
        run(Geometric(), "milstein", x, u, [0.1], gradient="reversible")
    one_line(error, "reversible_heun", "checkpoint")
    adjoint = dataclasses.replace(solvers.get_gradient("adjoint"), quadrature=3, seminorm=True)
    with pytest.raises(solvers.PairingError) as error:
        run(Geometric(), "milstein", x, u, [0.1], gradient=adjoint)
    one_line(error, "seminorm and quadrature", "milstein")

    class Wrong(Geometric):
        def diffusion(self, t, x, u):
            return x[:, 0]

    with pytest.raises(solvers.InputError) as error:
        run(Wrong(), "milstein", x, u, [0.1])
    one_line(error, "diffusion of Wrong", "(2, 3)", "zeros in components without noise")


def test_failures_say_where(one_line):
    class Exploding(Geometric):
        def __call__(self, t, x, u):
            return x**9

    x, u = torch.ones(2, 1, 1, dtype=F64), [torch.zeros(2, 1, dtype=F64)]
    x[1] = 40.0
    with pytest.raises(solvers.NonFiniteStateError) as error:
        run(Exploding(), "milstein", x, u * 3, [0.5] * 3)
    one_line(error, "non-finite under solver 'milstein' at sample 1")
    with pytest.raises(solvers.StepUnderflowError) as error:
        run(Exploding(), "milstein", x, u * 3, [0.5] * 3, adaptive=True)
    one_line(error, "the step of solver 'milstein' shrank", "step 0")
    with pytest.raises(solvers.StepLimitError) as error:
        run(Geometric(), "milstein", x, u, [1.0], adaptive=True, rtol=1e-6, atol=1e-6, max_steps=5)
    one_line(error, "max_steps = 5", "step 0")


def test_audit_compares_gradients_on_one_path():
    field = neuralosc.Noisy(neuralosc.Lipschitz(2, 3), 0.2, 0.3)
    audit = solvers.audit(field, torch.randn(3, 4, 2), solver="reversible_heun", dt=0.1, show=False)
    errors = {row.gradient: row.error for row in audit.rows}
    assert max(errors["backprop"], errors["checkpoint"], errors["reversible"]) < 1e-4
