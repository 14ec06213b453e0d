"""The per-sample adaptive driver and its methods."""

import math

import numpy as np
import pytest
import torch

import solvers
from solvers.adaptive.batch import Rows
from solvers.adaptive.driver import Driver
from solvers.adaptive.embedded import BOSH3, DOPRI5, KENCARP4, TSIT5, EmbeddedPair, ImplicitPair, dense_weights, hermite
from tests.solvers.adaptive.detest import PROBLEMS, reference
from tests.solvers.ode_problems import DrivenOscillator, FirstOrder, TimedOscillator, held, run

F64 = torch.float64
NATIVE = [info.name for info in solvers.available() if info.name.startswith("native_")]
EXPLICIT = [name for name in NATIVE if not solvers.get(name).implicit]


def drive(method, field, state, span, control=None, t=0.0, throw=True, **options):
    """The end of one interval, and the tally."""
    driver = Driver(solvers.get(method, **options), len(state), throw=throw)
    end = driver.advance(Rows(field, t, span, state, control or held(None)), state)
    return end, driver.tally


def spring(t, state, u):
    """q'' = -u q, with one stiffness u (batch, 1) per sample."""
    q, p = state.unbind(-2)
    return torch.stack((p, -u * q), -2)


def resting(*positions, hidden=1):
    q = torch.tensor(positions, dtype=F64).reshape(-1, 1).expand(-1, hidden)
    return torch.stack((q, torch.zeros_like(q)), -2)


def vanderpol(mu):
    def field(t, state, u):
        y, v = state.unbind(-2)
        return torch.stack((v, mu * (1 - y * y) * v - y), -2)

    return field


class TestPairs:
    def test_they_are_all_there(self):
        assert NATIVE == ["native_bosh3", "native_dopri5", "native_tsit5", "native_kencarp4"]
        rows = {info.name: info for info in solvers.available()}
        assert [(rows[name].order, rows[name].stages) for name in NATIVE] == [(3, 3), (5, 6), (5, 6), (4, 5)]
        assert all(rows[name].family == "adaptive" and rows[name].adaptive for name in NATIVE)
        assert rows["native_kencarp4"].implicit and not rows["native_dopri5"].implicit

    @pytest.mark.parametrize("pair", [BOSH3, DOPRI5, TSIT5, KENCARP4])
    def test_dense_output_joins_both_ends_with_their_slopes(self, pair):
        theta = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
        weights = dense_weights(pair.dense, theta)
        torch.testing.assert_close(weights[:, 0].detach(), torch.zeros(len(pair.b), dtype=F64))
        torch.testing.assert_close(weights[:, 1].detach(), torch.tensor(pair.b, dtype=F64), rtol=0, atol=1e-13)
        for i in range(len(pair.b)):
            (slope,) = torch.autograd.grad(weights[i].sum(), theta, retain_graph=True)
            first, last = float(i == 0), float(i == len(pair.b) - 1)
            torch.testing.assert_close(slope, torch.tensor([first, last], dtype=F64), rtol=0, atol=2e-12)

    @pytest.mark.parametrize("pair", [BOSH3, DOPRI5, TSIT5, KENCARP4])
    def test_the_estimate_is_of_the_declared_order_and_no_higher(self, pair):
        """On x' = x the error of the embedded method is that of its order."""
        a = np.zeros((len(pair.b), len(pair.b)))
        for i, row in enumerate(pair.a):
            a[i, : len(row)] = row
        one = np.ones(len(pair.b))
        moments = [
            abs(np.array(pair.error) @ np.linalg.matrix_power(a, n) @ one) for n in range(pair.embedded_order + 1)
        ]
        assert max(moments[:-1]) < 1e-12 and moments[-1] > 1e-5

    def test_wrong_coefficients_are_refused(self, one_line):
        good = {"a": BOSH3.a, "b": BOSH3.b, "order": 3, "error": BOSH3.error, "embedded_order": 2}
        cubic = {"dense": BOSH3.dense, "dense_order": 3}
        EmbeddedPair(**good, **cubic)
        for changed, message in (
            ({"error": BOSH3.error[:3]}, "as many error weights"),
            ({"error": (0.1, *BOSH3.error[1:])}, "sum b = 1"),
            ({"dense_order": 4}, "misses the condition"),
            ({"dense": hermite((0.5, 0.5, 0.0, 0.0))}, "end at its weights"),
        ):
            with pytest.raises(solvers.InputError, match=message) as error:
                EmbeddedPair(**{**good, **cubic, **changed})
            one_line(error)
        with pytest.raises(solvers.InputError, match="append the stage"):
            EmbeddedPair(**{**good, **cubic, "a": (*BOSH3.a[:3], (1.0, 0.0, 0.0))})
        with pytest.raises(solvers.InputError, match="explicit first stage"):
            ImplicitPair(((0.5,), (0.5, 0.5)), 1, (0.0, 0.0), 1, ((1.0,), (0.0,)), 1)


class TestAccuracy:
    #: Errors at t = 20 over tolerance times size. They are amplified by what the problem does to its perturbations:
    #: little in A, C and E; B1 and B4 are unstable; in D they grow with time and with the eccentricity.
    AMPLIFICATION = {"A": 60, "B": 600, "C": 60, "D": 5000, "E": 60}  # noqa: RUF012

    @pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
    @pytest.mark.parametrize(
        ("name", "tolerances"),
        [
            ("native_bosh3", [1e-4]),
            ("native_dopri5", [1e-4, 1e-7]),
            ("native_tsit5", [1e-4, 1e-7]),
            ("native_kencarp4", [1e-4]),
        ],
    )
    def test_detest_to_a_multiple_of_the_tolerance(self, name, tolerances, problem):
        for tolerance in tolerances:
            with torch.no_grad():
                end, tally = drive(name, problem, problem.state(), 20.0, rtol=tolerance, atol=tolerance)
            expected = reference(problem)
            error = float((end.reshape(-1) - expected).abs().max() / (1 + expected.abs().max()))
            assert error < self.AMPLIFICATION[problem.name[0]] * tolerance
            assert tally.steps[0] < 1000

    @pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
    def test_stiff_van_der_pol_in_under_two_thousand_steps(self, tolerance):
        with torch.no_grad():
            end, tally = drive(
                "native_kencarp4", vanderpol(1000.0), resting(2.0), 2000.0, rtol=tolerance, atol=tolerance
            )
        assert tally.steps[0] + tally.rejections[0] < 600
        # From the test set for IVP solvers (Mazzia, Magherini, University of Bari).
        assert float(end[0, 0, 0]) == pytest.approx(1.706167732170469, abs=40 * tolerance)

    @pytest.mark.parametrize("stiffness", [1e1, 1e3, 1e6])
    def test_a_stiff_smooth_solution_does_not_cost_more_as_it_gets_stiffer(self, stiffness):
        """Prothero and Robinson: x' = -stiffness (x - cos t) - sin t."""

        def field(t, state, u):
            t = t.unsqueeze(-1)
            return -stiffness * (state - torch.cos(t)) - torch.sin(t)

        end, tally = drive("native_kencarp4", field, torch.ones(1, 1, 1, dtype=F64), 10.0, rtol=1e-6, atol=1e-6)
        assert float(end) == pytest.approx(math.cos(10), abs=1e-5)
        assert tally.steps[0] < 250

    @pytest.mark.parametrize("name", NATIVE)
    def test_single_precision(self, name):
        x = resting(1.0, 2.0).float()
        end, _ = drive(name, spring, x, 3.0, held(torch.ones(2, 1)), rtol=1e-4, atol=1e-5)
        assert end.dtype == torch.float32
        torch.testing.assert_close(end[:, 0, 0], x[:, 0, 0] * math.cos(3), rtol=0, atol=3e-3)


class TestSamples:
    @pytest.mark.parametrize("control", ["hold", "linear"])
    @pytest.mark.parametrize("kind", [DrivenOscillator, TimedOscillator, FirstOrder])
    @pytest.mark.parametrize("name", NATIVE)
    def test_a_batch_is_its_samples_alone(self, name, kind, control):
        """Forward and backward spans, a zero one, and every sample with its own number of steps."""
        generator = torch.Generator().manual_seed(4)
        state = torch.randn(4, 1 if kind is FirstOrder else 2, 3, generator=generator, dtype=F64)
        samples = torch.randn(2, 4, 3, generator=generator, dtype=F64)
        spans = torch.tensor([[0.3, 2.0], [1.0, 0.0], [-0.7, 0.4], [0.0, -1.5]], dtype=F64)
        solver = solvers.get(name, rtol=1e-4, atol=1e-4)
        together = run(kind(), solver, state, samples.unbind(0), spans, control=control)
        for i in range(4):
            alone = run(kind(), solver, state[i : i + 1], samples[:, i : i + 1].unbind(0), spans[i], control=control)
            torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-10, atol=1e-10)
        assert torch.equal(together[0, 3], state[3]) and torch.equal(together[1, 1], together[0, 1])

    @pytest.mark.parametrize("name", NATIVE)
    def test_harder_samples_take_more_steps_and_only_they(self, name):
        stiffness = torch.tensor([[1.0], [100.0], [10_000.0]], dtype=F64)
        _, tally = drive(name, spring, resting(1.0, 1.0, 1.0), 2.0, held(stiffness), rtol=1e-3, atol=1e-3)
        assert tally.steps[0] < tally.steps[1] / 2 < tally.steps[2] / 4
        assert tally.evaluations[0] < tally.evaluations[1] / 2 < tally.evaluations[2] / 4

    @pytest.mark.parametrize("name", EXPLICIT)
    def test_evaluations_are_those_that_were_made(self, name):
        seen = []

        def field(t, state, u):
            seen.append(len(state))
            assert t.shape == (len(state), 1) and u.shape == (len(state), 1)
            return spring(t, state, u)

        stiffness = torch.tensor([[1.0], [30.0], [900.0], [3.0]], dtype=F64)
        spans = torch.tensor([[1.0], [2.0], [1.0], [0.0]], dtype=F64)
        solver = solvers.get(name)
        _, tally = drive(name, field, resting(1.0, 2.0, 3.0, 4.0), spans, held(stiffness))
        assert sum(seen) == tally.evaluations.sum() and max(seen) == 3
        # Two to start, then one for each stage but the first, which is the last of the step before.
        attempts = (tally.steps + tally.rejections)[:3]
        assert (tally.evaluations[:3] == 2 + solver.stages * attempts).all()
        assert tally.evaluations[3] == tally.steps[3] == 0

    def test_a_first_step_that_is_far_too_long_is_taken_back_by_its_own_sample(self):
        stiffness = torch.tensor([[1e-4], [400.0]], dtype=F64)
        _, tally = drive("native_dopri5", spring, resting(1.0, 1.0), 4.0, held(stiffness), first_step=2.0)
        assert tally.rejections[0] == 0 and tally.steps[0] == 2
        assert tally.rejections[1] >= 2
        _, chosen = drive("native_dopri5", spring, resting(1.0, 1.0), 4.0, held(stiffness))
        assert chosen.rejections[1] < tally.rejections[1]

    @pytest.mark.parametrize("name", EXPLICIT)
    def test_steps_stay_within_their_bounds(self, name):
        times = []

        def field(t, state, u):
            times.append(t.clone())
            return -state

        drive(name, field, torch.ones(1, 1, 1, dtype=F64), 2.0, max_step=0.125)
        ends = torch.cat(times).ravel().unique()
        assert float(ends.diff().max()) <= 0.125 + 1e-12
        with pytest.raises(solvers.StepUnderflowError):
            drive(name, field, torch.ones(1, 1, 1, dtype=F64), 2.0, min_step=0.8, rtol=1e-9, atol=1e-9)
        _, tally = drive(name, field, torch.ones(1, 1, 1, dtype=F64), 2.0, min_step=0.5, rtol=1.0, atol=1.0)
        assert tally.steps[0] <= 4

    @pytest.mark.parametrize("name", NATIVE)
    def test_a_field_with_tensors_of_its_own_keeps_its_batch(self, name):
        stiffness = torch.tensor([[1.0], [50.0], [5.0]], dtype=F64)
        state = resting(1.0, 2.0, 3.0)

        def whole(t, state, u):
            return spring(t, state, stiffness)

        expected, tally = drive(name, spring, state, 2.0, held(stiffness))
        end, kept = drive(name, whole, state, 2.0, compact=False)
        torch.testing.assert_close(end, expected, rtol=1e-8, atol=1e-10)
        assert (kept.steps == tally.steps).all() and (kept.rejections == tally.rejections).all()
        assert (kept.evaluations == kept.evaluations.max()).all() and kept.evaluations[0] > tally.evaluations[0]

    @pytest.mark.parametrize("moving", [False, True])
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
    def test_any_shape_of_batch(self, shape, moving):
        generator = torch.Generator().manual_seed(1)
        state = torch.randn(*shape, 2, 3, generator=generator, dtype=F64)
        u = torch.randn(*shape, 3, generator=generator, dtype=F64)
        spans = torch.rand(*shape, 1, generator=generator, dtype=F64) * 4

        def input_of(u):
            return lambda t: u * torch.cos(torch.as_tensor(t, dtype=F64)) if moving else u

        end = solvers.get("native_dopri5").step(DrivenOscillator(), 0.0, spans, state, input_of(u))
        assert end.shape == state.shape
        reference = solvers.get("dopri5", rtol=1e-9, atol=1e-9)
        rows = zip(state.reshape(-1, 1, 2, 3), u.reshape(-1, 1, 3), spans.reshape(-1, 1), strict=True)
        expected = torch.cat([reference.step(DrivenOscillator(), 0.0, dt, x, input_of(w)) for x, w, dt in rows])
        torch.testing.assert_close(end.reshape(-1, 2, 3), expected, rtol=1e-4, atol=1e-5)
        empty = state.reshape(-1, 2, 3)[:0]
        assert solvers.get("native_dopri5").step(DrivenOscillator(), 0.0, 1.0, empty, held(u)).shape == (0, 2, 3)


class TestFailures:
    def test_a_pole_is_named_with_its_sample_and_time(self, one_line):
        with pytest.raises(solvers.StepUnderflowError) as error:
            drive("native_dopri5", lambda t, x, u: x * x, torch.tensor([0.1, 2.0], dtype=F64).reshape(2, 1, 1), 1.0)
        one_line(error, "native_dopri5", "sample 1", "time 0.5", "implicit solver")

    def test_the_others_go_on_where_nothing_is_raised(self):
        state = torch.tensor([0.1, 2.0, 0.5], dtype=F64).reshape(3, 1, 1)
        end, tally = drive("native_dopri5", lambda t, x, u: x * x, state, 1.0, throw=False)
        assert [solvers.Status(int(s)).name for s in tally.status] == ["SUCCESS", "STEP_UNDERFLOW", "SUCCESS"]
        torch.testing.assert_close(end[[0, 2]], state[[0, 2]] / (1 - state[[0, 2]]), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("name", NATIVE)
    def test_a_wall_of_nan_is_a_non_finite_state(self, name):
        """Past t = 0.5 the field is not a number: no step gets over it."""

        def field(t, state, u):
            return torch.where(t.unsqueeze(-1) < 0.5, 1.0, torch.nan) * torch.ones_like(state)

        with pytest.raises((solvers.NonFiniteStateError, solvers.errors.ConvergenceError)) as error:
            drive(name, field, torch.zeros(2, 1, 1, dtype=F64), 1.0)
        assert error.value.sample == 0 and error.value.time == pytest.approx(0.5, abs=1e-6)
        assert isinstance(error.value, solvers.errors.ConvergenceError) or "smaller dt" not in str(error.value)

    @pytest.mark.parametrize("name", NATIVE)
    def test_a_state_that_no_step_leaves_is_given_up_soon(self, name):
        calls = 0

        def field(t, state, u):
            nonlocal calls
            calls += 1
            return torch.where(state == 0, 1.0, torch.nan)

        with pytest.raises((solvers.NonFiniteStateError, solvers.errors.ConvergenceError)):
            drive(name, field, torch.zeros(2, 1, 1, dtype=F64), 1.0)
        # Down to the least step there are 500 quarters, of four evaluations at least.
        assert calls < 300

    def test_steps_are_counted_for_each_sample_alone(self):
        stiffness = torch.tensor([[1.0], [1e6]], dtype=F64)
        with pytest.raises(solvers.StepLimitError) as error:
            drive("native_tsit5", spring, resting(1.0, 1.0), 1.0, held(stiffness), max_steps=100)
        assert error.value.sample == 1 and "max_steps = 100" in str(error.value)

    @pytest.mark.parametrize("name", NATIVE)
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"rtol": 0}, ["rtol", "positive"]),
            ({"max_step": -1.0}, ["max_step", "-1.0"]),
            ({"first_step": True}, ["first_step", "True"]),
            ({"min_step": -0.1}, ["min_step"]),
            ({"min_step": 1.0, "max_step": 0.5}, ["max_step", "below its min_step"]),
            ({"compact": 1}, ["compact", "True or False"]),
            ({"tolerance": 1}, ["not tolerance"]),
        ],
    )
    def test_options_are_checked(self, name, options, words, one_line):
        with pytest.raises(solvers.InputError) as error:
            solvers.get(name, **options)
        one_line(error, name, *words)

    def test_a_newton_that_fails_shortens_the_step_of_its_sample_only(self):
        """One sample starts so steep that no iteration from a long first step converges."""
        state = torch.tensor([0.0, 3.0], dtype=F64).reshape(2, 1, 1)

        def field(t, x, u):
            return -torch.expm1(4 * x)

        _, tally = drive("native_kencarp4", field, state, 1.0, first_step=1.0, max_iterations=4)
        assert tally.rejections[1] > tally.rejections[0] == 0


class TestGradients:
    @pytest.mark.parametrize("name", NATIVE)
    @pytest.mark.parametrize("steps", ["one", "many"])
    def test_gradcheck_with_steps_that_do_not_react(self, name, steps):
        """Steps of given size under a loose tolerance: the differences see exactly what autograd sees."""
        generator = torch.Generator().manual_seed(2)
        state, u = (torch.randn(*s, generator=generator, dtype=F64).requires_grad_() for s in ((2, 2, 3), (2, 3)))
        stiffness = torch.tensor([1.0, 2.0, 3.0], dtype=F64, requires_grad=True)
        # Bounds on a step are in units of time: with many steps their number would depend on the span.
        dt = torch.tensor([[0.7], [-0.4]], dtype=F64, requires_grad=steps == "one")
        options = {"first_step": 0.2, "max_step": 0.2} if steps == "many" else {"first_step": 1e9}
        if solvers.get(name).implicit:
            options["tol"] = 1e-13
        solver = solvers.get(name, rtol=1e3, atol=1e3, **options)

        def end(state, u, dt, stiffness):
            def field(t, x, u):
                q, p = x.unbind(-2)
                return torch.stack((p, torch.tanh(u + t) - stiffness * q - 0.1 * q**3), -2)

            return solver.step(field, 0.3, dt, state, lambda t: u * t)

        assert torch.autograd.gradcheck(end, (state, u, dt, stiffness), atol=1e-7, rtol=1e-6)

    @pytest.mark.parametrize("name", NATIVE)
    def test_adaptive_gradients_are_those_of_the_solution(self, name):
        """x' = -a x + sin(t): derivatives in closed form, by start, parameter and span."""
        a, x0, dt = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (1.3, [[[0.7]], [[-0.4]]], [[1.1], [2.5]]))

        def solution(a, x0, dt):
            decay, dt = torch.exp(-a * dt.unsqueeze(-1)), dt.unsqueeze(-1)
            particular = (a * torch.sin(dt) - torch.cos(dt)) / (a * a + 1)
            return x0 * decay + particular + decay / (a * a + 1)

        end = solvers.get(name, rtol=1e-8, atol=1e-9).step(
            lambda t, x, u: -a * x + torch.sin(t).unsqueeze(-1), 0.0, dt, x0, held(None)
        )
        exact = solution(a, x0, dt)
        torch.testing.assert_close(end, exact, rtol=0, atol=1e-6)
        weights = torch.tensor([[[1.0]], [[-2.0]]], dtype=F64)
        gradients = torch.autograd.grad((weights * end).sum(), (a, x0, dt))
        expected = torch.autograd.grad((weights * exact).sum(), (a, x0, dt))
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=3e-6)

    @pytest.mark.parametrize("compact", [True, False])
    def test_a_rejected_step_into_infinity_leaves_the_gradient_alone(self, compact):
        """The first trial overflows in one sample; parameters are shared by all."""
        a = torch.tensor(1.0, dtype=F64, requires_grad=True)
        state = torch.tensor([0.5, 40.0], dtype=F64).reshape(2, 1, 1)

        def field(t, x, u):
            return -a * torch.expm1(x)

        end, tally = drive("native_dopri5", field, state, 1e-3, first_step=1e-3, compact=compact)
        assert tally.rejections[1] > 0
        (gradient,) = torch.autograd.grad(end.sum(), a)
        assert torch.isfinite(gradient)

    def test_a_learned_span_of_zero_has_the_slope_as_its_derivative(self):
        dt = torch.zeros(2, 1, dtype=F64, requires_grad=True)
        state = resting(1.0, 2.0)
        end, _ = drive("native_dopri5", spring, state, dt, held(torch.ones(2, 1, dtype=F64)))
        assert torch.equal(end.detach(), state)
        (gradient,) = torch.autograd.grad(end[:, 1].sum(), dt)
        torch.testing.assert_close(gradient, torch.tensor([[-1.0], [-2.0]], dtype=F64))

    @pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
    def test_other_gradients_agree(self, gradient):
        state = torch.randn(2, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        samples = list(torch.randn(3, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(1)).unbind(0))
        solver = solvers.get("native_dopri5", rtol=1e-8, atol=1e-9)
        losses = [
            run(DrivenOscillator(), solver, state, samples, [0.5, 0.7, 0.4], gradient=kind)[-1].square().sum()
            for kind in ("backprop", gradient)
        ]
        expected, other = (torch.autograd.grad(loss, state)[0] for loss in losses)
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-6)
