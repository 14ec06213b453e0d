"""One-call use of the solvers, without networks."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import solvers
from solvers import Sampled, Status, integrate
from tests.solvers.ode_problems import DrivenOscillator, LinearOscillator, Pendulum, TimedOscillator, held

F64 = torch.float64
NATIVE = ["native_bosh3", "native_dopri5", "native_tsit5", "native_kencarp4"]
FIXED = ["rk4", "stormer_verlet", "implicit_midpoint", "imex_midpoint"]
TIMES = torch.tensor([0.0, 0.3, 0.5, 1.4, 1.5, 3.0], dtype=F64)


def starts(batch=3, components=2, hidden=3, seed=11):
    return torch.randn(batch, components, hidden, generator=torch.Generator().manual_seed(seed), dtype=F64)


def wave(t):
    """A smooth input, alike for all samples."""
    t = torch.as_tensor(t, dtype=F64)
    return torch.cos(2 * t) * torch.ones(3, dtype=F64)


def exact(field, state, times, control=wave):
    """States at times `(batch, time)` by SciPy, sample by sample."""
    trajectories = []
    for x, t in zip(state, times, strict=True):

        def slope(s, y, x=x):
            return field(s, torch.from_numpy(y.reshape(1, *x.shape)), control(s)).numpy().ravel()

        t = t.numpy()
        solved = solve_ivp(slope, (t[0], t[-1]), x.numpy().ravel(), "DOP853", t, rtol=1e-12, atol=1e-12)
        trajectories.append(torch.from_numpy(solved.y.T.reshape(len(t), *x.shape).copy()))
    return torch.stack(trajectories)


def options(method):
    return {} if solvers.get(method).adaptive else {"dt": 0.02}


class TestStates:
    @pytest.mark.parametrize("clocks", ["shared", "per sample", "backward"])
    @pytest.mark.parametrize("method", [*NATIVE, *FIXED, "dopri5"])
    def test_at_the_times_asked_for(self, method, clocks):
        field, state, times = TimedOscillator(), starts(), TIMES
        if clocks == "per sample":
            times = TIMES * torch.tensor([[1.0], [0.4], [-0.7]], dtype=F64)
        if clocks == "backward":
            times = TIMES.flip(0)
        result = integrate(field, state, times, wave, method, **options(method))
        assert result.states.shape == (3, 6, 2, 3) and torch.equal(result.states[:, 0], state)
        tolerance = {"native_bosh3": 3e-5, "native_kencarp4": 3e-5}.get(method, 1e-3 if method in FIXED[1:] else 1e-5)
        expected = exact(field, state, times.expand(3, -1))
        torch.testing.assert_close(result.states, expected, rtol=tolerance, atol=tolerance)
        assert result.success and result.status == (Status.SUCCESS,) * 3
        assert result.status[0].message == "reached the last time"

    @pytest.mark.parametrize("method", [*NATIVE, *FIXED, "dopri5"])
    def test_there_and_back(self, method):
        field, state = TimedOscillator(), starts()
        there = integrate(field, state, [0.0, 1.0, 2.5], wave, method, **options(method))
        back = integrate(field, there.states[:, -1], [2.5, 1.0, 0.0], wave, method, **options(method))
        torch.testing.assert_close(back.states.flip(1), there.states, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("method", NATIVE)
    def test_more_times_are_not_more_steps(self, method):
        field, state = TimedOscillator(), starts()
        few = integrate(field, state, [0.0, 3.0], wave, method)
        many = integrate(field, state, torch.linspace(0, 3, 301, dtype=F64), wave, method)
        assert torch.equal(few.statistics.evaluations, many.statistics.evaluations)
        assert torch.equal(few.statistics.steps, many.statistics.steps)
        assert torch.equal(few.states[:, -1], many.states[:, -1])
        expected = exact(field, state, torch.linspace(0, 3, 301, dtype=F64).expand(3, -1))
        # Dense output is one order below the pair, over steps chosen for the pair.
        torch.testing.assert_close(many.states, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("method", ["native_dopri5", "rk4", "dopri5"])
    def test_times_that_repeat_and_a_single_one(self, method):
        field, state = Pendulum(), starts()
        plain = integrate(field, state, [0.0, 1.0, 2.0], method=method)
        repeated = integrate(field, state, [0.0, 0.0, 1.0, 1.0, 2.0], method=method)
        # Interpolation rounds, that of torchdiffeq even over no time at all.
        same = {"rtol": 0, "atol": 1e-13}
        torch.testing.assert_close(repeated.states[:, 1], state, **same)
        torch.testing.assert_close(repeated.states[:, 2], repeated.states[:, 3], **same)
        torch.testing.assert_close(repeated.states[:, [0, 2, 4]], plain.states, rtol=1e-5, atol=1e-5)
        single = integrate(field, state, [0.7], method=method)
        assert torch.equal(single.states, state.unsqueeze(1)) and int(single.statistics.steps.sum()) == 0
        still = integrate(field, state, [0.7, 0.7, 0.7], method=method)
        torch.testing.assert_close(still.states, state.unsqueeze(1).expand(-1, 3, -1, -1), **same)

    @pytest.mark.parametrize("method", ["native_dopri5", "rk4", "dopri5"])
    def test_an_empty_batch(self, method):
        assert integrate(Pendulum(), starts()[:0], TIMES, method=method).states.shape == (0, 6, 2, 3)

    def test_single_precision_keeps_its_clock(self):
        """Late on a long clock a float32 time has steps of 0.004; dense output does not."""
        state = torch.tensor([[[1.0], [0.0]]])
        times = 50_000.0 + torch.linspace(0, 2, 101, dtype=F64)
        result = integrate(Pendulum(), 1e-3 * state, times, rtol=1e-4, atol=1e-8)
        assert result.states.dtype == torch.float32
        expected = 1e-3 * torch.cos(torch.linspace(0, 2, 101))
        torch.testing.assert_close(result.states[0, :, 0, 0], expected, rtol=0, atol=2e-6)

    def test_a_bare_function_a_module_and_nothing_as_input(self):
        seen = []

        def decay(t, state, u):
            seen.append(u)
            return -state

        end = integrate(decay, torch.ones(2, 1, 1, dtype=F64), [0.0, 1.0]).states[:, -1]
        torch.testing.assert_close(end, torch.full((2, 1, 1), math.exp(-1), dtype=F64), rtol=1e-5, atol=1e-6)
        assert set(seen) == {None}

        class Decay(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.rate = torch.nn.Parameter(torch.tensor(2.0, dtype=F64))

            def forward(self, t, state, u):
                return -self.rate * state + u.unsqueeze(-2)

        field = Decay()
        end = integrate(field, torch.ones(2, 1, 1, dtype=F64), [0.0, 1.0], torch.ones(2, 1, dtype=F64)).states[:, -1]
        end.sum().backward()
        # The derivative of x(1) = e^-r + (1 - e^-r) / r at the rate r = 2, for both samples.
        expected = -math.exp(-2) + math.exp(-2) / 2 - (1 - math.exp(-2)) / 4
        assert float(field.rate.grad) == pytest.approx(2 * expected, abs=1e-5)


class TestSteps:
    def test_the_fewest_equal_steps_no_longer_than_dt(self):
        times = torch.tensor([[0.0, 1.1, 1.4], [0.0, 0.35, 0.35], [0.0, -0.1, -0.75]], dtype=F64)
        result = integrate(TimedOscillator(), starts(), times, wave, "rk4", dt=0.1)
        assert result.statistics.steps.tolist() == [11 + 3, 4, 1 + 7]
        # The batch goes on as long as any of its samples: standing still is evaluated too.
        assert result.statistics.evaluations.tolist() == [4 * (11 + 3)] * 3
        assert result.statistics.rejections.tolist() == [0, 0, 0]

    @pytest.mark.parametrize("method", FIXED)
    def test_each_sample_steps_as_it_would_alone(self, method):
        times = TIMES * torch.tensor([[1.0], [0.43], [-0.7]], dtype=F64)
        together = integrate(LinearOscillator(), starts(), times, method=method, dt=0.17)
        for i in range(3):
            alone = integrate(LinearOscillator(), starts()[i : i + 1], times[i], method=method, dt=0.17)
            torch.testing.assert_close(together.states[i], alone.states[0], rtol=1e-12, atol=1e-12)
            assert int(together.statistics.steps[i]) == int(alone.statistics.steps[0])

    def test_substeps(self):
        result = integrate(TimedOscillator(), starts(), [0.0, 1.0, 3.0], wave, "heun", substeps=4)
        by_hand = starts()
        for t, h in ((0.0, 0.25), (1.0, 0.5)):
            for i in range(4):
                by_hand = solvers.get("heun").step(TimedOscillator(), t + i * h, h, by_hand, wave)
        torch.testing.assert_close(result.states[:, -1], by_hand, rtol=1e-13, atol=1e-13)
        assert result.statistics.steps.tolist() == [8] * 3 and result.statistics.evaluations.tolist() == [16] * 3

    @pytest.mark.parametrize("method", ["rk4", "native_dopri5", "dopri5"])
    def test_max_dt_bounds_every_step(self, method):
        result = integrate(Pendulum(), starts(), [0.0, 0.1, 2.0], method=method, max_dt=0.02, rtol=None)
        assert int(result.statistics.steps.min()) >= 99
        free = integrate(Pendulum(), starts(), [0.0, 0.1, 2.0], method=method)
        assert int(free.statistics.steps.max()) < 60

    def test_tolerances(self):
        state = starts()
        expected = exact(Pendulum(), state, torch.tensor([[0.0, 5.0]], dtype=F64).expand(3, -1), held(None))
        errors, steps = [], []
        for tolerance in (1e-3, 1e-6, 1e-9):
            result = integrate(Pendulum(), state, [0.0, 5.0], rtol=tolerance, atol=tolerance)
            errors.append(float((result.states - expected).abs().max()))
            steps.append(int(result.statistics.steps.sum()))
            # One of the samples swings close to the top, which amplifies errors.
            assert errors[-1] < 150 * tolerance
        assert steps[0] < steps[1] < steps[2]

    def test_statistics_of_torchdiffeq(self):
        state = starts()
        for times in (TIMES, TIMES.expand(3, -1)):
            result = integrate(TimedOscillator(), state, times, wave, "dopri5")
            calls = 1 if times.dim() == 1 else 5
            attempts = result.statistics.steps + result.statistics.rejections
            assert torch.equal(result.statistics.evaluations, 2 * calls + 6 * attempts)


class TestInputs:
    KNOTS = torch.tensor([0.0, 0.4, 1.45, 2.0, 5.0], dtype=F64)

    def samples(self, control, times=KNOTS, seed=5):
        u = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
        return Sampled(u, times, control)

    def by_hand(self, field, state, times, sampled):
        """SciPy from one knot or time to the next, sample by sample."""
        knots = sampled.times.expand(3, -1).numpy()
        return torch.stack([self.alone(field, state[i], times[i].numpy(), sampled, i, knots[i]) for i in range(3)])

    def alone(self, field, x, times, sampled, i, knots):
        y, row = x.numpy().ravel(), [x]
        for a, b in pairwise(times):
            inside = [k for k in knots if min(a, b) < k < max(a, b)]
            cuts = [a, *sorted(inside, reverse=bool(b < a)), b]
            for start, end in pairwise(cuts):
                path = self.path(sampled, i, knots, (start + end) / 2)

                def slope(t, y, path=path):
                    return field(t, torch.from_numpy(y.reshape(1, *x.shape)), path(t)).numpy().ravel()

                y = solve_ivp(slope, (start, end), y, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
            row.append(torch.from_numpy(y.reshape(x.shape).copy()))
        return torch.stack(row)

    def path(self, sampled, i, knots, middle):
        """The input around a time, from its definition."""
        u, j = sampled.samples[i], int(np.searchsorted(knots, middle))
        if sampled.control == "hold" or j in (0, 5):
            return held(u[min(j, 4)][None])
        return lambda t: (u[j - 1] + (t - knots[j - 1]) / (knots[j] - knots[j - 1]) * (u[j] - u[j - 1]))[None]

    @pytest.mark.parametrize("clocks", ["shared", "times per sample", "samples per sample", "backward"])
    @pytest.mark.parametrize("control", ["hold", "linear"])
    @pytest.mark.parametrize("method", ["native_tsit5", "dopri5", "rk4"])
    def test_samples_at_times_of_their_own(self, method, control, clocks):
        times, knots = TIMES - 0.2, self.KNOTS
        if clocks == "times per sample":
            times = times * torch.tensor([[1.0], [0.4], [2.0]], dtype=F64)
        if clocks == "samples per sample":
            knots = knots * torch.tensor([[1.0], [0.3], [0.8]], dtype=F64)
        if clocks == "backward":
            times = times.flip(0)
        sampled = self.samples(control, knots)
        chosen = {"dt": 0.02} if method == "rk4" else {"rtol": 1e-8, "atol": 1e-9}
        result = integrate(DrivenOscillator(), starts(), times, sampled, method, **chosen)
        expected = self.by_hand(DrivenOscillator(), starts(), times.expand(3, -1), sampled)
        torch.testing.assert_close(result.states, expected, rtol=1e-6, atol=1e-6)

    def test_no_step_goes_across_a_jump(self):
        asked = []

        def watch(t, state, u):
            asked.append(torch.cat((torch.as_tensor(t, dtype=F64).expand(len(u), 1), u[:, :1]), 1))
            return DrivenOscillator()(t, state, u)

        sampled = Sampled(torch.arange(5, dtype=F64).reshape(1, 5, 1).expand(1, 5, 3), self.KNOTS)
        integrate(watch, starts(1), [0.0, 5.0], sampled, rtol=1e-4)
        for t, u in torch.cat(asked).tolist():
            first, last = self.KNOTS[max(int(u) - 1, 0)], self.KNOTS[int(u)]
            assert float(first) - 1e-12 <= t <= float(last) + 1e-12

    def test_a_constant_per_sample_is_cut_to_the_samples_on_their_way(self):
        u = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
        times = torch.tensor([[0.0, 3.0], [0.0, 0.1], [0.0, 1.0]], dtype=F64)
        together = integrate(DrivenOscillator(), starts(), times, u)
        for i in range(3):
            alone = integrate(DrivenOscillator(), starts()[i : i + 1], times[i], u[i : i + 1])
            torch.testing.assert_close(together.states[i], alone.states[0], rtol=1e-10, atol=1e-10)


class TestFailures:
    def explode(self, t, state, u):
        return state.square()

    @pytest.mark.parametrize("method", ["native_dopri5", "native_kencarp4", "dopri5", "rk4"])
    def test_a_status_for_each_sample(self, method):
        state = torch.tensor([0.2, 2.0, 0.5], dtype=F64).reshape(3, 1, 1)
        chosen = {"substeps": 20} if method == "rk4" else {"rtol": 1e-5}
        method = {"name": method, "max_steps": 100} if method == "native_kencarp4" else method
        with pytest.raises(solvers.NumericalError) as error:
            integrate(self.explode, state, [0.0, 0.25, 1.0, 1.2], method=method, **chosen)
        assert error.value.sample == 1
        result = integrate(self.explode, state, [0.0, 0.25, 1.0, 1.2], method=method, throw=False, **chosen)
        assert not result.success and result.status[0] == result.status[2] == Status.SUCCESS
        assert result.status[1] in (Status.STEP_UNDERFLOW, Status.NON_FINITE, Status.STEP_LIMIT, Status.NOT_CONVERGED)
        expected = state / (1 - state * torch.tensor([0.0, 0.25, 1.0, 1.2], dtype=F64).reshape(1, 4, 1))
        torch.testing.assert_close(result.states[[0, 2], :, 0], expected[[0, 2]], rtol=3e-4, atol=0)
        torch.testing.assert_close(result.states[1, :2, 0], expected[1, :2], rtol=3e-4, atol=0)
        assert bool(result.states[1, 2:].isnan().all())
        if method == "rk4":
            assert result.statistics.steps.tolist() == [60, 20, 60]

    def test_a_batch_that_cannot_start(self):
        def field(t, state, u):
            return state * torch.tensor([1.0, torch.nan], dtype=F64).reshape(2, 1, 1)

        with pytest.raises(solvers.NonFiniteStateError):
            integrate(field, torch.ones(2, 1, 1, dtype=F64), [0.0, 1.0], method="rk4")
        result = integrate(field, torch.ones(2, 1, 1, dtype=F64), [0.0, 1.0], method="rk4", throw=False)
        assert Status.NON_FINITE in result.status and bool(result.states[1, 1].isnan().all())

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"state0": torch.ones(2, 3)}, ["state0", "(2, 3)", "(batch, components, hidden)"]),
            ({"state0": torch.ones(2, 1, 1, dtype=torch.int64)}, ["state0", "int64"]),
            ({"state0": torch.full((2, 1, 1), torch.nan)}, ["state0", "NaN"]),
            ({"times": torch.ones(3, 4)}, ["times", "(3, 4)"]),
            ({"times": [0.0, 2.0, 1.0]}, ["times turn around"]),
            ({"times": [0.0, math.inf]}, ["times", "infinite"]),
            ({"control": "hold"}, ["control", "str", "Sampled"]),
            ({"control": Sampled(torch.ones(3, 2, 1), torch.arange(2.0))}, ["3 samples", "2"]),
            ({"method": "native_dopri"}, ["unknown solver", "native_dopri5"]),
            ({"method": "rk4", "rtol": 1e-3}, ["'rk4' takes no options", "rtol"]),
            ({"method": "rk4", "substeps": 0}, ["substeps", "0"]),
            ({"method": "rk4", "dt": -0.1}, ["dt", "-0.1"]),
            ({"method": "rk4", "dt": 0.1, "substeps": 2}, ["both substeps and dt"]),
            ({"dt": 0.1}, ["chooses its own steps", "max_dt"]),
            ({"max_dt": 0}, ["max_dt"]),
            ({"gradient": "ajoint"}, ["unknown gradient"]),
            ({"method": "stormer_verlet"}, ["needs", "partitioned"]),
            ({"method": "rk4", "events": solvers.Event(lambda t, x: x[:, 0, 0])}, ["events need a native method"]),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, arguments, words, one_line):
        keywords = {"state0": torch.ones(2, 1, 1), "times": [0.0, 1.0], **arguments}
        with pytest.raises(solvers.InputError) as error:
            integrate(lambda t, x, u: -x, **keywords)
        one_line(error, *words)

    @pytest.mark.parametrize(
        ("samples", "times", "words"),
        [
            (torch.ones(2, 3), torch.arange(3.0), ["samples", "(2, 3)"]),
            (torch.ones(2, 3, 1), torch.arange(2.0), ["times", "(2,)"]),
            (torch.ones(2, 3, 1), torch.tensor([0.0, 2.0, 1.0]), ["not decrease"]),
            (torch.ones(2, 3, 1), torch.tensor([0.0, 2.0, torch.nan]), ["finite"]),
        ],
    )
    def test_samples_are_checked(self, samples, times, words, one_line):
        with pytest.raises(solvers.InputError) as error:
            Sampled(samples, times)
        one_line(error, *words)


class TestGradients:
    @pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
    @pytest.mark.parametrize("method", ["native_dopri5", "native_kencarp4", "dopri5", "rk4"])
    def test_of_state_parameter_and_times(self, method, gradient):
        """x' = -a x: x(t) = x0 exp(-a (t - t0)), so every derivative is known."""
        a = torch.nn.Parameter(torch.tensor(0.7, dtype=F64))

        class Decay(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.a = a

            def forward(self, t, state, u):
                return -self.a * state

        x0 = torch.tensor([0.5, -1.5], dtype=F64).reshape(2, 1, 1).requires_grad_()
        times = torch.tensor([[0.1, 0.8, 1.3], [0.2, 1.1, 2.6]], dtype=F64, requires_grad=True)
        rtol = 1e-7 if method == "native_kencarp4" else 1e-8
        chosen = {"dt": 0.02} if method == "rk4" else {"rtol": rtol, "atol": rtol / 10}
        states = integrate(Decay(), x0, times, method=method, gradient=gradient, **chosen).states
        solution = x0.unsqueeze(1) * torch.exp(-a * (times - times[:, :1]))[..., None, None]
        torch.testing.assert_close(states, solution, rtol=0, atol=1e-6)
        weights = torch.tensor([[0.3, 1.0, -2.0], [1.0, 0.5, 0.7]], dtype=F64)[..., None, None]
        gradients = torch.autograd.grad((weights * states).sum(), (x0, a, times))
        expected = torch.autograd.grad((weights * solution).sum(), (x0, a, times))
        for one, other in zip(gradients, expected, strict=True):
            # The derivative of dense output by its time is one order below the output.
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("method", NATIVE)
    def test_gradcheck_of_dense_output(self, method):
        """The whole run is one step of a given size, and the times lie inside it."""
        chosen = {"tol": 1e-13} if method == "native_kencarp4" else {}
        solver = {"name": method, "rtol": 1e3, "atol": 1e3, "first_step": 1e9, **chosen}
        state = starts(2).requires_grad_()
        times = torch.tensor([[0.0, 0.2, 0.45, 0.6], [0.1, 0.15, 0.3, 0.5]], dtype=F64, requires_grad=True)
        u = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=F64).requires_grad_()

        def states(state, times, u):
            return integrate(DrivenOscillator(), state, times, u, solver).states

        assert torch.autograd.gradcheck(states, (state, times, u), atol=1e-7, rtol=1e-6)

    @pytest.mark.parametrize("control", ["hold", "linear"])
    def test_gradients_reach_the_samples_of_the_input(self, control):
        knots = torch.tensor([0.3, 1.0], dtype=F64)
        u = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64).requires_grad_()

        def end(method, **chosen):
            sampled = Sampled(u, knots, control)
            states = integrate(DrivenOscillator(), starts(2), [0.0, 0.8, 2.0], sampled, method, **chosen).states
            return torch.autograd.grad(states.square().sum(), u)[0]

        gradient = end("native_dopri5", rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(gradient, end("rk4", dt=0.01), rtol=1e-6, atol=1e-6)

    def test_no_graph_is_made_where_none_is_wanted(self):
        with torch.no_grad():
            result = integrate(Pendulum(), starts().requires_grad_(), TIMES)
        assert not result.states.requires_grad
        assert not integrate(Pendulum(), starts(), TIMES).states.requires_grad
