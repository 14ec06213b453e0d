"""Controls, clocks and the plain loop, without a network."""

import math

import pytest
import torch

import solvers
from solvers import Clock
from tests.solvers.ode_problems import DrivenOscillator, FirstOrder, TimedOscillator, run

F64 = torch.float64


def samples_of(*values):
    return [torch.tensor([[v]], dtype=F64) for v in values]


def test_hold_is_the_sample_at_the_end_of_the_interval():
    samples = samples_of(1.0, 2.0, 4.0)
    paths = solvers.get_control("hold").paths(samples, Clock.uniform(3, 0.5))
    for i, path in enumerate(paths):
        for t in (0.5 * i, 0.5 * i + 0.2, 0.5 * i + 0.5):
            assert torch.equal(path(t), samples[i])


def test_linear_runs_from_sample_to_sample_and_holds_the_first():
    paths = solvers.get_control("linear").paths(samples_of(1.0, 2.0, 4.0), Clock.uniform(3, 0.5))
    values = [[float(path(0.5 * i + s)) for s in (0.0, 0.25, 0.5)] for i, path in enumerate(paths)]
    assert values == [[1.0, 1.0, 1.0], [1.0, 1.5, 2.0], [2.0, 3.0, 4.0]]


def test_linear_has_a_clock_per_sample_and_survives_zero_spans():
    spans = torch.tensor([[1.0, 2.0], [1.0, 0.0]], dtype=F64, requires_grad=True)
    samples = [torch.zeros(2, 1, dtype=F64), torch.ones(2, 1, dtype=F64)]
    path = solvers.get_control("linear").paths(samples, Clock.of_spans(spans))[1]
    at = path(torch.tensor([[2.0], [1.0]], dtype=F64))
    torch.testing.assert_close(at.detach(), torch.tensor([[0.5], [1.0]], dtype=F64))
    (gradient,) = torch.autograd.grad(at.sum(), spans)
    assert torch.isfinite(gradient).all()


def test_unknown_controls_and_gradients(one_line):
    with pytest.raises(solvers.UnknownNameError) as error:
        solvers.get_control("linaer")
    one_line(error, "unknown control 'linaer'", "did you mean 'linear'")
    with pytest.raises(solvers.UnknownNameError) as error:
        solvers.get_gradient("ajoint")
    one_line(error, "unknown gradient", "did you mean 'adjoint'")
    for wrong in (3, None, ["hold"]):
        with pytest.raises(solvers.InputError) as error:
            solvers.get_control(wrong)
        one_line(error, "expected a name or a Control")
        with pytest.raises(solvers.InputError) as error:
            solvers.get_gradient(wrong)
        one_line(error, "expected a name or a Gradient")


def test_clock_starts_and_spans():
    clock = Clock.uniform(4, 0.25)
    assert clock.starts == (0.0, 0.25, 0.5, 0.75) and clock.spans == (0.25,) * 4 and len(clock) == 4
    clock = Clock.of_spans(torch.tensor([0.5, 0.0, 1.0], dtype=F64))
    assert clock.starts == (0.0, 0.5, 0.5) and clock.spans == (0.5, 0.0, 1.0)
    clock = Clock.of_spans(torch.tensor([[0.5, 1.0], [2.0, 3.0]], dtype=F64))
    assert [t.tolist() for t in clock.starts] == [[[0.0], [0.0]], [[0.5], [2.0]]]
    assert clock.time_at(1) == 0.5 and clock.time_at(1, sample=1) == 2.0


def test_a_long_clock_does_not_drift_in_float32():
    spans = torch.full((2, 20_000), 0.1)
    start = float(Clock.of_spans(spans).starts[-1][0])
    assert start == pytest.approx(19_999 * float(torch.tensor(0.1)), rel=1e-6)


def test_a_clock_of_learned_spans_keeps_their_gradient():
    spans = torch.tensor([0.5, 0.25], dtype=F64, requires_grad=True)
    clock = Clock.of_spans(spans)
    (gradient,) = torch.autograd.grad(clock.starts[1] + 2 * clock.spans[1], spans)
    assert gradient.tolist() == [1.0, 2.0]


NOISELESS = [info for info in solvers.available() if info.family not in ("stochastic", "relaxation", "closed_form")]
FIXED = [info.name for info in NOISELESS if not info.adaptive]


@pytest.mark.parametrize("control", ["hold", "linear", "cubic"])
@pytest.mark.parametrize("kind", [DrivenOscillator, TimedOscillator, FirstOrder])
@pytest.mark.parametrize("name", FIXED)
def test_clocks_per_sample_equal_each_sample_alone(name, kind, control):
    if not set(solvers.get(name).needs) <= solvers.protocol.structure(kind):
        pytest.skip("the field lacks what the solver needs")
    generator = torch.Generator().manual_seed(4)
    state = torch.randn(3, 1 if kind is FirstOrder else 2, 3, generator=generator, dtype=F64)
    samples = torch.randn(5, 3, 3, generator=generator, dtype=F64)
    spans = torch.rand(3, 5, generator=generator, dtype=F64) * 0.3
    spans[0, 2] = spans[2, 0] = 0.0
    together = run(kind(), name, state, samples.unbind(0), spans, 3, control)
    for i in range(3):
        alone = run(kind(), name, state[i : i + 1], samples[:, i : i + 1].unbind(0), spans[i], 3, control)
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("clocks", ["shared", "per sample"])
@pytest.mark.parametrize("info", NOISELESS, ids=lambda info: info.name)
def test_a_span_of_zero_changes_nothing(info, clocks):
    spans = torch.tensor([0.4, 0.0, 0.0], dtype=F64)
    spans = spans if clocks == "shared" else spans.expand(2, 3)
    state, samples = torch.ones(2, 2, 3, dtype=F64), torch.randn(3, 2, 3, dtype=F64).unbind(0)
    states = run(DrivenOscillator(), info.name, state, samples, spans, control="linear")
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    assert not torch.equal(states[0], state)


def test_a_bare_function_is_a_field():
    def decay(t, state, u):
        return -state + u.unsqueeze(-2)

    start = torch.ones(2, 1, 3, dtype=F64)
    end = run(decay, "dopri5", start, [torch.zeros(2, 3, dtype=F64)], [1.0])[-1]
    torch.testing.assert_close(end, start * math.exp(-1), rtol=1e-5, atol=1e-6)
    with pytest.raises(solvers.PairingError, match="which decay does not declare"):
        run(decay, "stormer_verlet", start, [torch.zeros(2, 3, dtype=F64)], [1.0])


def test_an_empty_sequence_gives_no_states():
    clock = Clock.uniform(0, 0.1)
    hold, backprop = solvers.get_control("hold"), solvers.get_gradient("backprop")
    trajectory = solvers.solve(FirstOrder(), solvers.get("rk4"), backprop, hold, clock, [], torch.ones(1, 1, 3))
    assert trajectory.steps == [] and trajectory.evaluations == 0


@pytest.mark.parametrize("control", ["hold", "linear", "cubic"])
@pytest.mark.parametrize("info", NOISELESS, ids=lambda info: info.name)
def test_substeps_split_an_interval_evenly(info, control):
    """Two substeps are two intervals of half the length under the same path."""
    state, u = torch.randn(2, 2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    field = TimedOscillator()
    split = run(field, info.name, state, [u], [0.6], 2, control)[-1]
    twice = run(field, info.name, state, [u, u], [0.3, 0.3], 1, control)[-1]
    torch.testing.assert_close(split, twice, rtol=1e-12, atol=1e-12)


def knots(*times):
    return Clock.of_spans(torch.tensor(times, dtype=F64))


def test_linear_noncausal_runs_to_the_next_sample_and_holds_the_last():
    paths = solvers.get_control("linear_noncausal").paths(samples_of(1.0, 2.0, 4.0), Clock.uniform(3, 0.5))
    values = [[float(path(0.5 * i + s)) for s in (0.0, 0.25, 0.5)] for i, path in enumerate(paths)]
    assert values == [[1.0, 1.5, 2.0], [2.0, 3.0, 4.0], [4.0, 4.0, 4.0]]


def test_rectilinear_knows_a_sample_only_once_it_is_taken():
    paths = solvers.get_control("rectilinear").paths(samples_of(1.0, 2.0, 4.0), Clock.uniform(3, 0.5))
    assert [float(path(0.5 * i + 0.5)) for i, path in enumerate(paths)] == [1.0, 1.0, 2.0]


def test_cubic_is_hermite_with_backward_differences():
    """Values and slopes at both ends of each interval, on a clock of unequal spans, against their definition."""
    spans, values = [0.3, 0.5, 0.2, 0.4], [1.0, 2.0, 4.0, 3.0]
    clock = knots(*spans)
    paths = solvers.get_control("cubic").paths(samples_of(*values), clock)
    differences = [None, *((b - a) / h for a, b, h in zip(values, values[1:], spans[1:], strict=False))]
    for i in range(1, 4):
        ends = torch.tensor([clock.starts[i], clock.starts[i] + spans[i]], dtype=F64, requires_grad=True)
        u = torch.stack([paths[i](t).squeeze() for t in ends])
        (slopes,) = torch.autograd.grad(u.sum(), ends)
        assert u.tolist() == pytest.approx([values[i - 1], values[i]])
        assert slopes.tolist() == pytest.approx([differences[max(i - 1, 1)], differences[i]])
    assert float(paths[0](0.1)) == 1.0


def test_cubic_has_a_clock_per_sample_and_survives_zero_spans():
    spans = torch.tensor([[1.0, 0.5, 0.0, 2.0], [0.0, 1.0, 2.0, 1.0]], dtype=F64, requires_grad=True)
    samples = torch.randn(4, 2, 3, dtype=F64).unbind(0)
    together = solvers.get_control("cubic").paths(samples, Clock.of_spans(spans))
    for row in range(2):
        clock = Clock.of_spans(spans[row].detach())
        alone = solvers.get_control("cubic").paths([u[row : row + 1] for u in samples], clock)
        for i in range(4):
            for fraction in (0.0, 0.3, 1.0):
                t = clock.starts[i] + fraction * clock.spans[i]
                per_sample = torch.full((2, 1), t, dtype=F64)
                torch.testing.assert_close(together[i](per_sample)[row], alone[i](t)[0])
    total = sum(path(torch.tensor([[1.2], [2.1]], dtype=F64)).sum() for path in together)
    (gradient,) = torch.autograd.grad(total, spans)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", list(solvers.CONTROLS))
def test_a_control_looks_no_further_than_it_says(name):
    control, clock = solvers.get_control(name), knots(*[0.5] * 8)
    samples = torch.randn(8, 1, 1, dtype=F64)

    def at_five(u, of):
        return torch.stack([of(u.unbind(0), clock)[5](clock.starts[5] + s).squeeze() for s in (0.0, 0.1, 0.5)])

    for of in filter(None, (control.paths, control.derivatives)):
        jacobian = torch.autograd.functional.jacobian(lambda u, of=of: at_five(u, of), samples)
        reach = jacobian.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
        if name == "natural":
            assert reach == list(range(8))
        else:
            assert min(reach) >= 5 - control.memory and (max(reach) <= 5 or not control.causal)


@pytest.mark.parametrize(("name", "order"), [("linear", 2), ("linear_noncausal", 2), ("cubic", 3), ("hold", 1)])
def test_what_a_sampled_input_costs_in_accuracy(name, order):
    """An oscillator driven by samples of a smooth input, stepped by a method whose own error is far below."""
    errors = []
    for count in (40, 80):
        times = torch.linspace(0, 2, count + 1, dtype=F64)
        u = torch.sin(3 * times[1:]).view(-1, 1, 1)
        if name == "linear_noncausal":
            u = torch.sin(3 * times[:-1]).view(-1, 1, 1)
        # The first interval of every causal control holds; a start that is known takes that away.
        paths_of = solvers.get_control(name).paths
        before = [torch.sin(3 * t).view(1, 1) for t in (times[:1] - times[1], times[0])]
        clock = Clock.uniform(count, 2 / count)
        longer = Clock(tuple((i - 2) * 2 / count for i in range(count + 2)), (2 / count,) * (count + 2))
        lead = 2 if solvers.get_control(name).causal else 0
        paths = paths_of([*before[: 2 if lead else 0], *u.unbind(0)], longer if lead else clock)[lead:]
        control = solvers.Control("given", lambda samples, clock, paths=paths: paths)
        start = torch.zeros(1, 2, 1, dtype=F64)
        arguments = (solvers.get("rk4"), solvers.get_gradient("backprop"), control, clock, (), start, 4)
        end = solvers.solve(LinearlyDriven(), *arguments).end()
        exact = solvers.integrate(
            LinearlyDriven(),
            start,
            times[[0, -1]],
            lambda t: torch.sin(3 * torch.as_tensor(t)).reshape(1, 1),
            {"name": "native_dopri5", "rtol": 1e-12, "atol": 1e-14},
        ).states[:, -1]
        errors.append(float((end - exact).abs().max()))
    measured = math.log2(errors[0] / errors[1])
    assert order - 0.3 < measured < order + 0.8, (errors, measured)


class LinearlyDriven:
    """dq = p, dp = u - 2 q - 0.4 p."""

    structure = frozenset()

    def __call__(self, t, state, u):
        q, p = state.unbind(-2)
        return torch.stack((p, u - 2 * q - 0.4 * p), -2)
