"""Events: zero crossings along the steps of the native drivers."""

import math

import numpy as np
import pytest
import torch

import solvers
from solvers import Event, Sampled, Status, integrate
from solvers.adaptive.events import find_roots

F64 = torch.float64
NATIVE = ["native_bosh3", "native_dopri5", "native_tsit5", "native_kencarp4"]
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def fall(t, state, u):
    """A ball under gravity 9.81."""
    speed = state[:, 1]
    return torch.stack((speed, torch.full_like(speed, -9.81)), -2)


def spring(t, state, u):
    """q'' = -u^2 q with a frequency per sample."""
    q, p = state.unbind(-2)
    return torch.stack((p, -u * u * q), -2)


def ball(*heights, speed=0.0):
    height = torch.tensor(heights, dtype=F64).unsqueeze(-1)
    return torch.stack((height, torch.full_like(height, speed)), -2)


def height(t, state):
    return state[:, 0, 0]


GROUND = Event(height, direction=-1)


class TestStopping:
    @pytest.mark.parametrize("compact", [True, False])
    @pytest.mark.parametrize("method", NATIVE)
    def test_each_sample_at_its_own_time(self, method, compact):
        """The third never lands, and the fourth starts below the ground."""
        state = ball(1.0, 5.0, 100.0, -1.0)
        result = integrate(
            fall, state, [0.0, 0.3, 0.8, 1.5], method={"name": method, "compact": compact}, events=GROUND
        )
        (landing,) = result.events
        expected = torch.tensor([math.sqrt(2 / 9.81), math.sqrt(10 / 9.81)], dtype=F64)
        torch.testing.assert_close(landing.time[:2, 0], expected, rtol=1e-9, atol=0)
        assert landing.time.shape == (4, 1) and bool(landing.time[2:].isnan().all())
        assert landing.count.tolist() == [1, 1, 0, 0] and landing.state.shape == (4, 1, 2, 1)
        torch.testing.assert_close(landing.state[:2, 0, 0], torch.zeros(2, 1, dtype=F64), rtol=0, atol=1e-13)
        torch.testing.assert_close(landing.state[:2, 0, 1, 0], -9.81 * expected, rtol=1e-7, atol=0)
        assert result.status == (Status.EVENT, Status.EVENT, Status.SUCCESS, Status.SUCCESS) and result.success
        assert result.status[0].message == "stopped at a terminal event"
        # Times before the event have states, those after it do not.
        reached = [[True, True, False, False], [True, True, True, False], [True] * 4, [True] * 4]
        assert (~result.states.isnan()).all(-1).all(-1).tolist() == reached

    def test_a_stopped_sample_is_evaluated_no_more(self):
        free = integrate(spring, ball(1.0, 1.0), [0.0, 20.0], torch.ones(2, 1, dtype=F64)).statistics
        stop = Event(lambda t, state: t - 2.0)
        times = torch.tensor([[0.0, 20.0], [20.0, 40.0]], dtype=F64)
        result = integrate(spring, ball(1.0, 1.0), times, torch.ones(2, 1, dtype=F64), events=stop)
        assert result.events[0].time[0, 0] == pytest.approx(2.0, abs=1e-14)
        assert int(result.statistics.evaluations[0]) < int(free.evaluations[0]) / 4
        assert int(result.statistics.steps[1]) == int(free.steps[1])

    def test_the_earlier_of_two_wins_and_what_comes_after_it_is_not_recorded(self):
        zero, half = Event(height, terminal=False), Event(lambda t, state: state[:, 0, 0] + 0.5)
        never = Event(lambda t, state: state[:, 0, 0] + 0.9)
        result = integrate(spring, ball(1.0), [0.0, 30.0], torch.ones(1, 1, dtype=F64), events=[zero, half, never])
        crossing, stop, rest = result.events
        assert float(stop.time[0, 0]) == pytest.approx(2 * math.pi / 3, abs=1e-6)
        assert crossing.count.tolist() == [1] and float(crossing.time[0, 0]) == pytest.approx(math.pi / 2, abs=1e-6)
        assert rest.count.tolist() == [0]

    def test_backward_in_time(self):
        result = integrate(fall, ball(1.0, speed=-3.0), [0.0, -2.0], events=Event(height))
        # 1 - 3 t - 9.81 t^2 / 2 = 0 for the negative root.
        expected = (-3 - math.sqrt(9 + 2 * 9.81)) / 9.81
        assert float(result.events[0].time[0, 0]) == pytest.approx(expected, abs=1e-9)

    def test_across_the_pieces_of_a_sampled_input(self):
        """x' = u, and u is 1, -1, -1 on the unit intervals: x crosses 0.25 up at 0.25 and down at 1.75."""
        u = Sampled(torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=F64).reshape(1, 4, 1), torch.arange(4, dtype=F64))
        level = lambda t, state: state[:, 0, 0] - 0.25  # noqa: E731

        def field(t, state, u):
            return u.unsqueeze(-2) * torch.ones_like(state)

        x0 = torch.zeros(1, 1, 1, dtype=F64)
        record = integrate(field, x0, [0.0, 3.0], u, events=Event(level, terminal=False)).events[0]
        torch.testing.assert_close(record.time, torch.tensor([[0.25, 1.75]], dtype=F64))
        stop = integrate(field, x0, [0.0, 3.0], u, events=Event(level, direction=-1))
        torch.testing.assert_close(stop.events[0].time, torch.tensor([[1.75]], dtype=F64))

    def test_a_bouncing_ball(self):
        """Restarted at each bounce with 0.8 of the speed; start to bounce n takes a geometric series of times."""
        state, time, bounces = ball(2.0), 0.0, []
        for _ in range(6):
            result = integrate(fall, state, [time, time + 10.0], events=GROUND)
            (landing,) = result.events
            assert landing.count.tolist() == [1]
            time = float(landing.time[0, 0])
            bounces.append(time)
            state = landing.state[:, 0] * torch.tensor([[1.0], [-0.8]], dtype=F64)
        first = math.sqrt(2 * 2.0 / 9.81)
        expected = [first + 2 * first * sum(0.8**k for k in range(1, n + 1)) for n in range(6)]
        assert bounces == pytest.approx(expected, abs=1e-9)


class TestRecording:
    @pytest.mark.parametrize("method", NATIVE)
    def test_every_crossing_in_order_and_as_many_as_each_sample_has(self, method):
        frequency = torch.tensor([[1.0], [3.0], [0.1]], dtype=F64)
        event = Event(height, terminal=False)
        result = integrate(spring, ball(1.0, 1.0, 1.0), [0.0, 10.0], frequency, method, events=event)
        (crossings,) = result.events
        assert crossings.count.tolist() == [3, 10, 0] and crossings.time.shape == (3, 10)
        for i, (count, w) in enumerate(((3, 1.0), (10, 3.0))):
            expected = (torch.arange(count, dtype=F64) + 0.5) * math.pi / w
            torch.testing.assert_close(crossings.time[i, :count], expected, rtol=0, atol=1e-4)
            assert bool(crossings.time[i, count:].isnan().all())
        assert result.status == (Status.SUCCESS,) * 3

    @pytest.mark.parametrize(("direction", "first"), [(1, 1.5 * math.pi), (-1, 0.5 * math.pi), (0, 0.5 * math.pi)])
    def test_directions(self, direction, first):
        event = Event(height, direction, terminal=False)
        result = integrate(spring, ball(1.0), [0.0, 10.0], torch.ones(1, 1, dtype=F64), events=event)
        step = math.pi if direction == 0 else 2 * math.pi
        expected = torch.arange(first, 10.0, step, dtype=F64)
        torch.testing.assert_close(result.events[0].time[0], expected, rtol=0, atol=1e-5)

    def test_recording_changes_no_step(self):
        free = integrate(spring, ball(1.0, 2.0), [0.0, 10.0], torch.ones(2, 1, dtype=F64))
        watched = integrate(
            spring, ball(1.0, 2.0), [0.0, 10.0], torch.ones(2, 1, dtype=F64), events=Event(height, terminal=False)
        )
        assert torch.equal(free.states, watched.states)
        assert torch.equal(free.statistics.evaluations, watched.statistics.evaluations)

    def test_what_starts_at_zero_has_not_crossed(self):
        state = torch.tensor([[[0.0], [1.0]]], dtype=F64)
        result = integrate(spring, state, [0.0, 4.0], torch.ones(1, 1, dtype=F64), events=Event(height))
        assert float(result.events[0].time[0, 0]) == pytest.approx(math.pi, abs=1e-6)

    def test_single_precision(self):
        result = integrate(fall, ball(1.0).float(), [0.0, 1.0], events=GROUND, rtol=1e-4, atol=1e-5)
        assert result.events[0].time.dtype == result.times.dtype
        assert float(result.events[0].time[0, 0]) == pytest.approx(math.sqrt(2 / 9.81), abs=1e-6)


class TestDifferentiable:
    @pytest.mark.parametrize("compact", [True, False])
    @pytest.mark.parametrize("method", NATIVE)
    def test_time_and_state_of_a_landing(self, method, compact):
        """T = sqrt(2 h / g), v = -sqrt(2 h g), by height and gravity."""
        heights = torch.tensor([[1.0], [4.0]], dtype=F64, requires_grad=True)
        gravity = torch.tensor(9.81, dtype=F64, requires_grad=True)

        def field(t, state, u):
            return torch.stack((state[:, 1], -gravity * torch.ones_like(state[:, 1])), -2)

        state = torch.stack((heights, torch.zeros_like(heights)), -2)
        solver = {"name": method, "compact": compact, **TIGHT}
        (landing,) = integrate(field, state, [0.0, 3.0], method=solver, events=GROUND).events
        time, speed = torch.sqrt(2 * heights / gravity), -torch.sqrt(2 * heights * gravity)
        torch.testing.assert_close(landing.time, time)
        for value, expected in ((landing.time, time), (landing.state[:, 0, 1], speed)):
            ones = torch.tensor([[1.0], [-0.3]], dtype=F64)
            one = torch.autograd.grad((value * ones).sum(), (heights, gravity), retain_graph=True)
            other = torch.autograd.grad((expected * ones).sum(), (heights, gravity), retain_graph=True)
            for a, b in zip(one, other, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("method", NATIVE)
    def test_gradcheck(self, method):
        """Of the crossings of a driven field by state, time, input and the level that is crossed."""
        chosen = {"tol": 1e-13} if method == "native_kencarp4" else {}
        solver = {"name": method, "rtol": 1e3, "atol": 1e3, "first_step": 1e9, **chosen}
        state = torch.tensor([[[1.0, 0.2], [-1.0, 0.1]]], dtype=F64, requires_grad=True)
        times = torch.tensor([[0.1, 1.6]], dtype=F64, requires_grad=True)
        u, level = (torch.tensor(x, dtype=F64, requires_grad=True) for x in ([[0.4, -0.3]], 0.3))

        def crossing(state, times, u, level):
            def field(t, x, u):
                q, p = x.unbind(-2)
                return torch.stack((p, torch.tanh(u + t) - q), -2)

            event = Event(lambda t, x: x[:, 0, 0] * torch.cos(0.1 * t) - level, terminal=False)
            occurrences = integrate(field, state, times, u, solver, events=event).events[0]
            assert occurrences.count.tolist() == [1]
            return occurrences.time, occurrences.state

        assert torch.autograd.gradcheck(crossing, (state, times, u, level), atol=1e-6, rtol=1e-5)

    def test_by_differences_through_many_steps_and_a_restart(self):
        """The time of the second landing, by the height of the first fall and the bounce."""

        def second(start, bounce):
            state = torch.stack((start, torch.zeros_like(start))).reshape(1, 2, 1)
            first = integrate(fall, state, [0.0, 5.0], events=GROUND, **TIGHT).events[0]
            turned = first.state[:, 0] * torch.stack((torch.ones_like(bounce), -bounce)).unsqueeze(-1)
            times = torch.stack((first.time[0, 0], first.time[0, 0].detach() + 5))
            return integrate(fall, turned, times, events=GROUND, **TIGHT).events[0].time[0, 0]

        start, bounce = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (2.0, 0.8))
        gradients = torch.autograd.grad(second(start, bounce), (start, bounce))
        with torch.no_grad():
            e = 1e-5
            by_start = (second(start + e, bounce) - second(start - e, bounce)) / (2 * e)
            by_bounce = (second(start, bounce + e) - second(start, bounce - e)) / (2 * e)
        torch.testing.assert_close(gradients[0], by_start, rtol=1e-6, atol=0)
        torch.testing.assert_close(gradients[1], by_bounce, rtol=1e-6, atol=0)


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"function": 3}, ["function", "callable"]),
            ({"direction": 2}, ["direction", "-1, 0 or 1"]),
            ({"direction": True}, ["direction"]),
            ({"terminal": 0}, ["terminal"]),
        ],
    )
    def test_events_are_checked(self, arguments, words, one_line):
        with pytest.raises(solvers.InputError) as error:
            Event(**{"function": height, **arguments})
        one_line(error, *words)

    def test_a_function_alone_is_no_event(self, one_line):
        with pytest.raises(solvers.InputError) as error:
            integrate(fall, ball(1.0), [0.0, 1.0], events=[GROUND, height])
        one_line(error, "solvers.Event")

    def test_a_function_of_the_wrong_shape(self, one_line):
        with pytest.raises(solvers.InputError) as error:
            integrate(fall, ball(1.0, 2.0), [0.0, 1.0], events=Event(lambda t, state: state[:, 0]))
        one_line(error, "(2, 1)", "(2,)", "state[:, 0, 0]")

    @pytest.mark.parametrize("chosen", [{"method": "dopri5"}, {"gradient": "adjoint"}, {"method": "heun"}])
    def test_events_need_a_native_method_and_backprop(self, chosen, one_line):
        with pytest.raises(solvers.InputError) as error:
            integrate(fall, ball(1.0), [0.0, 1.0], events=GROUND, **chosen)
        one_line(error, "events need a native method", "native_dopri5")


class TestRoots:
    def test_all_brackets_at_once_to_rounding(self):
        """Easy, flat, steep and nearly discontinuous functions, and one bracket that is left alone."""
        functions = [
            lambda x: x - 0.3,
            lambda x: (x - 0.3) ** 3,
            lambda x: math.atan(1e6 * (x - 0.3)),
            lambda x: math.exp(20 * x) - math.exp(6),
            lambda x: -1.0 if x < 0.3 else 1.0,
            lambda x: 1.0,
        ]
        rounds = []

        def values(x):
            rounds.append(1)
            return np.array([f(float(v)) for f, v in zip(functions, x, strict=True)])

        low, high = np.zeros(6), np.ones(6)
        wanted = np.array([True] * 5 + [False])
        roots = find_roots(values, low, high, values(low), values(high), wanted)
        # A triple root is flat: rounding hides it within the cube root of the precision.
        assert np.abs(roots[[0, 2, 3, 4]] - 0.3).max() < 1e-15 and abs(roots[1] - 0.3) < 1e-5
        assert len(rounds) < 100

    def test_a_zero_at_the_end_of_the_bracket(self):
        roots = find_roots(lambda x: x - 1, np.zeros(1), np.ones(1), -np.ones(1), np.zeros(1), np.ones(1, dtype=bool))
        assert roots[0] == 1


def decay(t, x, u):
    return -x


@pytest.mark.parametrize("method", ["native_dopri5", "native_kencarp4"])
def test_times_and_states_of_events_have_second_derivatives(method):
    # x = p e^-t reaches c = 0.4 at t = log(p / c), where it does not move with p, and e^-t is c / p.
    p = torch.tensor(0.7, dtype=F64, requires_grad=True)
    x = torch.stack((p, p.new_tensor(1.0))).reshape(1, 1, 2)
    event = Event(lambda t, x: x[:, 0, 0] - 0.4)
    found = integrate(decay, x, [0.0, 2.0], method=method, events=event, rtol=1e-10, atol=1e-10).events[0]
    for value, first, second in ((found.time, 1 / 0.7, -1 / 0.7**2), (found.state[..., 1], -0.4 / 0.49, 0.8 / 0.343)):
        (slope,) = torch.autograd.grad(value.sum(), p, create_graph=True)
        (bend,) = torch.autograd.grad(slope, p, retain_graph=True)
        assert float(slope.detach()) == pytest.approx(first, rel=1e-6)
        assert float(bend) == pytest.approx(second, rel=1e-5)
    (fixed,) = torch.autograd.grad(found.state[..., 0].sum(), p)
    assert abs(float(fixed)) < 1e-8


@pytest.mark.parametrize("function", [torch.sign, lambda x: (x > 0).to(x.dtype) - 0.5])
def test_an_event_without_a_slope_is_found_and_has_no_derivative(function):
    found = []
    for recorded in (False, True):
        x = torch.full((1, 1, 1), -0.3, dtype=F64, requires_grad=recorded)
        event = Event(lambda t, x: function(x[:, 0, 0]), terminal=False)
        result = integrate(lambda t, x, u: torch.ones_like(x), x, [0.0, 1.0], events=event)
        found.append(result)
    assert float(found[0].events[0].time) == pytest.approx(0.3, abs=1e-12)
    assert torch.equal(found[1].events[0].time, found[0].events[0].time)
    found[1].states.sum().backward()
    with pytest.raises(solvers.InputError, match="no slope in time"):
        found[1].events[0].time.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_solve_that_starts_at_an_event_goes_on(dtype, direction, shift):
    # sin t rises through zero at 2 pi, and falls at pi.
    def turn(t, x, u):
        return torch.stack((x[:, 1], -x[:, 0]), 1)

    event, x, t, found = Event(lambda t, x: x[:, 0, 0], direction), torch.zeros(1, 2, 1, dtype=dtype), shift, []
    x[:, 1] = 1.0
    for _ in range(3):
        stop = integrate(turn, x, [t, shift + 30.0], events=event, rtol=1e-7, atol=1e-9).events[0]
        x, t = stop.state[:, 0], float(stop.time)
        found.append(t - shift)
    step = 1 if direction == 0 else 2
    assert found == pytest.approx([k * step * math.pi for k in (1, 2, 3)], abs=1e-4)


def test_what_is_no_event_is_refused_in_one_line():
    def g(t, x):
        return x[:, 0, 0]

    for events in (g, [g], [Event(g), g]):
        with pytest.raises(solvers.InputError, match="wrap each function"):
            integrate(decay, torch.ones(1, 1, 1), [0.0, 1.0], events=events)
    with pytest.raises(solvers.InputError, match=r"expected \(t, state\)"):
        Event(lambda t, x, u: x[:, 0, 0])
    with pytest.raises(solvers.InputError, match=r"expected \(t, state, u\)"):
        integrate(lambda t, x: -x, torch.ones(1, 1, 1), [0.0, 1.0])
