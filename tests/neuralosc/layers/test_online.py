"""Samples one at a time, states between the samples, gaps cut into steps, missing values."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuralosc
import solvers
from neuralosc import ContinuousRNN, InputError, Stream

F64 = torch.float64
NAN = float("nan")
CAUSAL = [name for name in solvers.CONTROLS if solvers.get_control(name).causal]


class Timed(neuralosc.VectorField):
    """A field that sees the time: dh = sin(t) + u - h."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return (torch.sin(torch.as_tensor(t, dtype=h.dtype)) + u - h).unsqueeze(-2)


def network(**settings):
    return neuralosc.CoRNN(2, 4, **{"dt": 0.2, **settings}).double()


def sequence(batch=3, time=7):
    x, spans = torch.randn(batch, time, 2, dtype=F64), 2 * torch.rand(batch, time, dtype=F64)
    spans[1, 3] = 0.0
    return x, spans


def run_by_steps(rnn, x, spans, state=None):
    outputs, elapsed = [], torch.zeros(len(x), dtype=F64)
    for sample, span in zip(x.unbind(1), spans.unbind(1), strict=True):
        output, state = rnn.step(sample, state, span, time=elapsed)
        outputs.append(output)
        elapsed = elapsed + span
    return torch.stack(outputs, 1), state.state if isinstance(state, Stream) else state


class TestStep:
    @pytest.mark.parametrize("control", CAUSAL)
    @pytest.mark.parametrize("solver", ["semi_implicit_euler", "rk4", "dopri5", "implicit_midpoint", "native_tsit5"])
    def test_equals_the_whole_sequence(self, solver, control):
        rnn, (x, spans) = network(num_layers=2, solver=solver, control=control), sequence()
        output, state = rnn(x, timespans=spans)
        outputs, end = run_by_steps(rnn, x, spans)
        torch.testing.assert_close(outputs, output, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(end, state, rtol=1e-12, atol=1e-13)

    def test_a_field_that_sees_the_time(self):
        rnn, (x, spans) = ContinuousRNN(Timed(), "rk4", dt=0.7), sequence()
        torch.testing.assert_close(run_by_steps(rnn, x, spans)[0], rnn(x, timespans=spans)[0], rtol=1e-12, atol=1e-13)

    def test_a_shared_timespan_is_a_number_and_one_when_left_out(self):
        rnn, x = network(control="cubic"), sequence()[0]
        expected = rnn(x)[0]
        state = again = None
        for i in range(x.shape[1]):
            output, state = rnn.step(x[:, i], state)
            same, again = rnn.step(x[:, i], again, 1.0)
            assert torch.equal(output, same)
            torch.testing.assert_close(output, expected[:, i], rtol=1e-12, atol=1e-13)

    def test_hold_gives_the_state_itself_and_takes_one(self):
        rnn, (x, spans) = network(), sequence()
        start = torch.randn(3, 2, 4, dtype=F64)
        _, state = rnn.step(x[:, 0], start, spans[:, 0])
        assert isinstance(state, torch.Tensor)
        torch.testing.assert_close(state, rnn(x[:, :1], start, spans[:, :1])[1], rtol=1e-13, atol=1e-13)

    def test_gradients_flow_through_the_stream(self):
        rnn, (x, spans) = network(control="cubic"), sequence()
        x, spans = x.requires_grad_(), spans.requires_grad_()
        wanted = [x, spans, *rnn.parameters()]
        whole = torch.autograd.grad(rnn(x, timespans=spans)[0].square().sum(), wanted)
        stepped = torch.autograd.grad(run_by_steps(rnn, x, spans)[0].square().sum(), wanted)
        for gradient, expected in zip(stepped, whole, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)

    def test_a_detached_stream_goes_on_with_the_same_numbers(self):
        rnn, (x, spans) = network(control="linear"), sequence()
        _, stream = rnn.step(x[:, 0], None, spans[:, 0])
        cut = stream.detach()
        assert not cut.state.requires_grad and stream.state.requires_grad
        output, expected = rnn.step(x[:, 1], cut, spans[:, 1])[0], rnn.step(x[:, 1], stream, spans[:, 1])[0]
        assert torch.equal(output, expected)

    def test_what_a_step_cannot_do(self, one_line):
        x = torch.zeros(3, 2, dtype=F64)
        for rnn, arguments, words in (
            (network(control="linear_noncausal"), (x,), ["linear_noncausal", "use a causal one"]),
            (network(dropout=0.5), (x,), ["dropout", "rnn.eval()"]),
            (network(), (x.unsqueeze(1),), ["(3, 1, 2)", "(batch, 2)"]),
            (network(), ([1.0, 2.0],), ["list", "(batch, 2)"]),
            (network(), (x, None, -1.0), ["timespan is -1", "at least 0"]),
            (network(), (x, None, torch.ones(2)), ["timespan has shape (2,)", "(3,)"]),
            (network(), (x, None, 1.0, NAN), ["time is nan"]),
        ):
            with pytest.raises(InputError) as error:
                rnn.step(*arguments)
            one_line(error, *words)
        network(dropout=0.5).eval().step(x)

    def test_a_stream_of_another_batch_is_refused(self, one_line):
        rnn = network(control="linear")
        _, stream = rnn.step(torch.zeros(3, 2, dtype=F64))
        with pytest.raises(InputError) as error:
            rnn.step(torch.zeros(4, 2, dtype=F64), stream)
        one_line(error, "(4, 2)", "(3, 2)")


class TestTrajectory:
    @pytest.mark.parametrize("control", list(solvers.CONTROLS))
    @pytest.mark.parametrize("solver", ["semi_implicit_euler", "dopri5", "native_dopri5"])
    def test_at_the_samples_it_is_the_run_itself(self, solver, control):
        rnn, (x, spans) = network(num_layers=2, solver=solver, control=control), sequence()
        states = rnn.trajectory(x, spans, at=spans.cumsum(1))
        # One step size for the whole batch makes another batch another solution, within the tolerances.
        close = {"rtol": 1e-5, "atol": 1e-6} if solver == "dopri5" else {"rtol": 1e-11, "atol": 1e-12}
        torch.testing.assert_close(states, rnn.solve(x, timespans=spans).states, **close)

    @pytest.mark.parametrize("control", CAUSAL)
    def test_between_the_samples_it_is_a_tight_solution(self, control):
        """Against one call of `integrate` per sample, with a dense output that knows nothing of intervals."""
        tight = {"name": "native_dopri5", "rtol": 1e-11, "atol": 1e-13}
        rnn, (x, spans) = network(solver=tight, control=control), sequence()
        at = torch.tensor([[3.3, 0.1, 2.0, 0.0], [0.5, 0.5, 1.7, 4.0], [1.1, 2.2, 3.0, 0.3]], dtype=F64)
        assert bool((at <= spans.sum(1, keepdim=True)).all())
        states = rnn.trajectory(x, spans, at=at)
        field, times = rnn.field, spans.cumsum(1) * rnn.dt
        for i in range(3):
            order = at[i].argsort()
            clock = torch.cat((torch.zeros(1, dtype=F64), at[i][order] * rnn.dt))
            knots = torch.cat((torch.zeros(1, dtype=F64), times[i]))
            u = field.drive(x[i : i + 1])
            # The layer holds the first sample before it was taken; `Sampled` repeats its own first one there.
            control_ = solvers.Sampled(torch.cat((u[:, :1], u), 1), knots, control)
            if control == "cubic":
                control_ = dataclasses.replace(control_, samples=u, times=times[i])
            start = torch.zeros(1, 2, 4, dtype=F64)
            alone = solvers.integrate(field, start, clock, control_, tight).states[0, 1:]
            torch.testing.assert_close(states[i][order], alone, rtol=1e-7, atol=1e-9)

    def test_after_the_last_sample_there_is_no_input(self):
        rnn, (x, spans) = network(solver="rk4", max_dt=0.05), sequence()
        end = spans.sum(1, keepdim=True)
        forecast = rnn.trajectory(x, spans, at=end + 3.0)
        padded = torch.cat((x, torch.zeros(3, 1, 2, dtype=F64)), 1)
        expected = rnn(padded, timespans=torch.cat((spans, torch.full((3, 1), 3.0, dtype=F64)), 1))[1]
        torch.testing.assert_close(forecast[:, 0], expected, rtol=1e-11, atol=1e-12)

    def test_with_lengths_the_end_is_the_last_valid_sample(self):
        rnn, (x, spans) = network(), sequence()
        lengths = torch.tensor([4, 7, 1])
        at = torch.stack([spans[i, :n].sum() for i, n in enumerate(lengths)]).unsqueeze(1)
        at = torch.cat((at, at + 1.5), 1)
        states = rnn.trajectory(x, spans, at=at, lengths=lengths)
        for i, n in enumerate(lengths):
            alone = rnn.trajectory(x[i : i + 1, :n], spans[i, :n], at=at[i])
            torch.testing.assert_close(states[i : i + 1], alone, rtol=1e-11, atol=1e-12)

    def test_asking_changes_nothing(self):
        rnn, (x, spans) = network(solver="midpoint"), sequence()
        few, many = rnn.trajectory(x, spans, at=[2.0]), rnn.trajectory(x, spans, at=[0.3, 2.0, 1.9])
        # The run is one, but queries are rows of one product: another number of them may be summed in another order.
        torch.testing.assert_close(few[:, 0], many[:, 1], rtol=1e-13, atol=1e-14)

    @pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "reversible"])
    def test_it_is_differentiable(self, gradient):
        solver = "stormer_verlet" if gradient == "reversible" else "rk4"
        field = neuralosc.Oscillator(1, 2, coupled=False).double()
        rnn = ContinuousRNN(field, solver, dt=0.3, gradient=gradient, control="linear")
        x, start = torch.randn(2, 3, 1, dtype=F64), torch.randn(2, 2, 2, dtype=F64)
        spans = 0.5 + torch.rand(2, 3, dtype=F64)
        at = torch.tensor([[0.7, 9.0], [0.2, 1.3]], dtype=F64)
        leaves = [value.requires_grad_() for value in (x, spans, at, start)]
        assert torch.autograd.gradcheck(rnn.trajectory, leaves)

    def test_the_slope_in_time_is_the_field(self):
        rnn, (x, spans) = network(solver={"name": "native_dopri5", "rtol": 1e-11, "atol": 1e-13}), sequence()
        at = torch.tensor([0.4], dtype=F64, requires_grad=True)
        index = int((spans[0].cumsum(0) < 0.4).sum())
        states = rnn.trajectory(x, spans, at=at)
        slope = torch.autograd.grad(states[0, 0, 0, 1], at, retain_graph=True)[0]
        u = rnn.field.drive(x)[:1, index]
        torch.testing.assert_close(slope[0], rnn.dt * rnn.field(0.0, states[:1, 0], u)[0, 0, 1], rtol=1e-6, atol=1e-9)

    def test_bad_times(self, one_line):
        rnn, (x, spans) = network(), sequence()
        for at, words in (
            ([-1.0], ["at holds -1", "at least 0"]),
            ([NAN], ["at holds nan"]),
            (torch.zeros(2, 3), ["(2, 3)", "(3, times)"]),
            ("soon", ["at is 'soon'"]),
        ):
            with pytest.raises(InputError) as error:
                rnn.trajectory(x, spans, at=at)
            one_line(error, *words)

    def test_no_times_no_states(self):
        rnn, (x, spans) = network(), sequence()
        assert rnn.trajectory(x, spans, at=[]).shape == (3, 0, 2, 4)


class TestCausal:
    @pytest.mark.parametrize("control", list(solvers.CONTROLS))
    @pytest.mark.parametrize("future", ["zero", "hold"])
    def test_nothing_after_the_asked_time_is_used(self, control, future):
        rnn, (x, spans) = network(solver="rk4", control=control), sequence()
        times = spans.cumsum(1)
        for i in range(7):
            at = times[:, i : i + 1] + 0.9 * (spans[:, i + 1 : i + 2] if i < 6 else 1.0)
            asked = rnn.trajectory(x, spans, at=at, causal=True, future=future)
            short = rnn.trajectory(x[:, : i + 1], spans[:, : i + 1], at=at, future=future)
            if control != "linear_noncausal":
                torch.testing.assert_close(asked, short, rtol=1e-12, atol=1e-13)
            seen = i + 1 + (control == "linear_noncausal")
            changed = torch.cat((x[:, :seen], 100 + x[:, seen:]), 1)
            assert torch.equal(rnn.trajectory(changed, spans, at=at, causal=True, future=future), asked)
        # Without it every control but one looks ahead.
        changed = torch.cat((x[:, :3], 100 + x[:, 3:]), 1)
        at = times[:, 2:3] + 0.5 * spans[:, 3:4]
        moved = [not torch.equal(rnn.trajectory(c, spans, at=at), rnn.trajectory(x, spans, at=at)) for c in (changed,)]
        assert moved == [control != "rectilinear"]

    def test_at_a_sample_it_is_the_run(self):
        rnn, (x, spans) = network(num_layers=2), sequence()
        states = rnn.trajectory(x, spans, at=spans.cumsum(1), causal=True)
        expected = rnn.solve(x, timespans=spans).states
        expected[1, 2] = expected[1, 3]  # both samples of this time are known at it
        torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-13)

    def test_before_the_first_sample_nothing_is_known(self):
        rnn, x = network(solver="rk4", max_dt=0.05), torch.randn(2, 3, 2, dtype=F64)
        start = torch.randn(2, 2, 4, dtype=F64)
        for future in ("zero", "hold"):
            early = rnn.trajectory(x, at=[0.5], state=start, causal=True, future=future)[:, 0]
            torch.testing.assert_close(early, rnn.advance(start, 0.5), rtol=1e-9, atol=1e-10)

    def test_the_last_sample_is_held(self):
        rnn, x = network(solver="rk4"), torch.randn(2, 3, 2, dtype=F64)
        held = rnn.trajectory(x, at=[4.0, 5.0], future="hold")
        longer = torch.cat((x, x[:, -1:], x[:, -1:]), 1)
        torch.testing.assert_close(held, rnn.solve(longer).states[:, 3:], rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("name", ["lem", "exprnn", "gru"])
    @pytest.mark.parametrize("layers", [1, 2])
    def test_a_state_advanced_without_a_sample(self, name, layers):
        rnn = neuralosc.make(name, input_size=2, hidden_size=4, num_layers=layers).double()
        x, gaps = torch.randn(3, 5, 2, dtype=F64), torch.tensor([0.5, 2.0, 3.5], dtype=F64)
        state = rnn(x)[1]
        end = rnn.advance(state, gaps)
        last = end if layers == 1 else end[-1]
        torch.testing.assert_close(last, rnn.trajectory(x, at=5 + gaps[:, None])[:, 0], rtol=1e-11, atol=1e-12)
        assert end.shape == state.shape and torch.equal(rnn.advance(state, 0.0), state)
        held = rnn.advance(state, 1.0, x[:, -1])
        if layers == 1 and name != "exprnn":
            torch.testing.assert_close(held, rnn(torch.cat((x, x[:, -1:]), 1))[1], rtol=1e-11, atol=1e-12)

    def test_what_cannot_be_asked(self, one_line):
        rnn, x = network(), torch.randn(2, 3, 2, dtype=F64)
        both, state = network(bidirectional=True), rnn(x)[1]
        cases = [
            (lambda: rnn.trajectory(x, at=[1.0], future="mean"), ["future is 'mean'", "'hold'"]),
            (lambda: rnn.trajectory(x, at=[1.0], causal="yes"), ["causal is 'yes'", "True or False"]),
            (lambda: both.trajectory(x, at=[1.0], causal=True), ["causal is True", "bidirectional=False"]),
            (lambda: both.advance(both(x)[1], 1.0), ["advance", "bidirectional=False"]),
            (lambda: rnn.advance(None, 1.0), ["state is a NoneType", "expected a tensor"]),
            (lambda: rnn.advance(state[0], 1.0), ["state has shape (2, 4)"]),
            (lambda: rnn.advance(state, -1.0), ["timespan is -1"]),
            (lambda: rnn.advance(state, 1.0, x), ["x has shape (2, 3, 2)"]),
            (lambda: rnn.advance(state, 3e6), ["timespans go up to"]),
        ]
        for act, words in cases:
            with pytest.raises(InputError) as error:
                act()
            one_line(error, *words)


class TestMaxDt:
    def test_equal_steps_each_sample_its_own(self):
        """One sample needs 4 steps in a gap, another 1, another none: each as if alone with its own substeps."""
        rnn, x = network(solver="rk4", max_dt=None), torch.randn(3, 2, 2, dtype=F64)
        spans = torch.tensor([[1.0, 3.7], [1.0, 0.9], [1.0, 0.0]], dtype=F64)
        output = rnn.with_solver("rk4", max_dt="auto")(x, timespans=spans)[0]
        for i, substeps in enumerate((4, 1, 1)):
            first = rnn(x[i : i + 1, :1], timespans=spans[i, :1])
            last, _ = rnn.with_solver("rk4", substeps=substeps)(x[i : i + 1, 1:], first[1], spans[i, 1:])
            torch.testing.assert_close(output[i : i + 1], torch.cat((first[0], last), 1), rtol=1e-13, atol=1e-14)

    def test_rounding_asks_for_no_further_step(self):
        for dtype in (torch.float32, torch.float64):
            rnn = network(dt=0.1, solver="rk4").to(dtype)
            x, spans = torch.randn(1, 3, 2, dtype=dtype), torch.tensor([1.0, 11.0, 3.0], dtype=dtype)
            assert rnn.with_solver("rk4", max_dt=1).solve(x, timespans=spans).evaluations == 4 * 15

    def test_a_long_gap_stays_accurate(self):
        rnn, x = network(solver="rk4"), torch.randn(2, 3, 2, dtype=F64)
        spans = torch.tensor([[1.0, 40.0, 1.0], [25.0, 1.0, 0.5]], dtype=F64)
        tight = rnn.with_solver({"name": "dopri8", "rtol": 1e-10, "atol": 1e-12})(x, timespans=spans)[0]
        bounded = rnn.with_solver("rk4", max_dt=0.25)(x, timespans=spans)[0]
        torch.testing.assert_close(bounded, tight, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
    def test_gradients(self, gradient):
        spans = torch.tensor([[0.5, 2.3], [1.9, 0.2]], dtype=F64, requires_grad=True)
        x = torch.randn(2, 2, 2, dtype=F64, requires_grad=True)
        rnn = network(solver="rk4", max_dt=0.5, gradient=gradient)
        loss = rnn(x, timespans=spans)[0].square().sum()
        reference = rnn.with_solver("rk4", gradient="backprop")(x, timespans=spans)[0].square().sum()
        wanted = [x, spans, *rnn.parameters()]
        loose = {"rtol": 1e-4, "atol": 1e-5} if gradient == "adjoint" else {"rtol": 1e-10, "atol": 1e-12}
        for value, expected in zip(
            torch.autograd.grad(loss, wanted), torch.autograd.grad(reference, wanted), strict=True
        ):
            torch.testing.assert_close(value, expected, **loose)

    def test_errors_name_the_sample_of_the_input(self):
        class Grower(neuralosc.VectorField):
            def forward(self, t, state, u):
                return 1e300 * state * state

        rnn = ContinuousRNN(Grower(2, 2), "euler", max_dt=0.25)
        x = torch.ones(2, 3, 2, dtype=F64)
        start = torch.tensor([1.0, 0.0], dtype=F64).view(2, 1, 1).expand(2, 1, 2)
        spans = torch.tensor([[0.0, 5.0, 1.0], [1.0, 1.0, 1.0]], dtype=F64)
        with pytest.raises(solvers.NonFiniteStateError) as error:
            rnn(x, start, spans)
        assert (error.value.sample, error.value.step) == (0, 1)

    def test_it_is_kept_and_can_be_lifted(self, one_line):
        rnn = network(max_dt=0.1)
        assert rnn.with_solver("rk4").max_dt == 0.1 and rnn.with_solver("rk4", max_dt=float("inf")).max_dt is None
        assert rnn.config["max_dt"] == 0.1
        for wrong in (0, -1.0, NAN, "long", True):
            with pytest.raises(InputError) as error:
                network(max_dt=wrong)
            one_line(error, "max_dt is", "positive")

    @pytest.mark.parametrize("name", [card.name for card in neuralosc.models() if card.field])
    def test_ordinary_gaps_leave_every_network_bounded(self, name):
        """Exponential gaps of mean 1, whose largest is about 10, under the defaults; one step a gap gave GRU 1e15."""
        torch.manual_seed(0)
        rnn, x = neuralosc.make(name, input_size=4, hidden_size=16).eval(), torch.randn(16, 60, 4)
        gaps = torch.empty(16, 60).exponential_()
        assert 6 < float(gaps.max()) < 14
        with torch.no_grad():
            assert float(rnn(x, timespans=gaps)[0].abs().max()) <= 10 * float(rnn(x)[0].abs().max())

    @pytest.mark.parametrize("name", ["gru", "lem", "cornn", "linoss", "rnn"])
    def test_a_gap_is_as_good_as_as_many_steps_under_the_input_held(self, name):
        torch.manual_seed(0)
        rnn = neuralosc.make(name, input_size=3, hidden_size=4, num_layers=1).double().eval()
        x = torch.randn(2, 3, 3, dtype=F64)
        spans = torch.tensor([[1.0, 3.0, 1.0], [2.0, 1.0, 4.0]], dtype=F64)
        output = rnn(x, timespans=spans)[0]
        for i in range(2):
            counts = spans[i].long()
            alone = rnn(x[i : i + 1].repeat_interleave(counts, 1))[0]
            torch.testing.assert_close(output[i], alone[0, counts.cumsum(0) - 1], rtol=1e-11, atol=1e-12)

    def test_what_needs_no_bound_has_none_under_auto(self):
        x, spans = torch.randn(2, 3, 2, dtype=F64), torch.full((2, 3), 7.0, dtype=F64)
        rnn = neuralosc.GRU(2, 4).double()
        counts = {
            solver: rnn.with_solver(solver).solve(x, timespans=spans).evaluations
            for solver in ("euler", "relaxation_euler", "exponential_euler")
        }
        assert counts == {"euler": 21, "relaxation_euler": 3, "exponential_euler": 21}
        assert rnn.with_solver("euler", max_dt=float("inf")).solve(x, timespans=spans).evaluations == 3
        # The rotation of an interval is exact, whatever its length.
        assert neuralosc.ExpRNN(2, 4).double().solve(x, timespans=spans).evaluations == 3

    @pytest.mark.parametrize("way", ["call", "step", "trajectory"])
    def test_a_wrong_unit_is_said_at_once(self, way, one_line):
        rnn, x = network(), torch.randn(2, 3, 2, dtype=F64)
        with pytest.raises(InputError) as error:
            if way == "call":
                rnn(x, timespans=torch.tensor([1.0, 86400e3, 1.0]))
            elif way == "step":
                rnn.step(x[:, 0], timespan=3e6)
            else:
                rnn.trajectory(x, at=[3e6])
        one_line(error, "timespans go up to", "longer unit", "max_dt=None")

    def test_a_file_from_before_has_its_bound_in_units_of_time(self, tmp_path):
        rnn = network(max_dt=0.5)
        path = neuralosc.save(rnn, tmp_path / "net")
        tensors, header = (
            load_file(path),
            {"format": "neuralosc 1", "config": json.dumps({**rnn.config, "max_dt": 0.1})},
        )
        save_file(tensors, path, header)
        assert neuralosc.load(path).max_dt == 0.5


class TestMissing:
    def test_the_last_value_of_a_feature_is_held(self):
        rnn, (x, spans) = network(missing="hold"), sequence()
        gaps = x.clone()
        gaps[0, 0, 0] = gaps[0, 2:4, 1] = gaps[2, 6] = NAN
        filled = x.clone()
        filled[0, 0, 0], filled[0, 2:4, 1], filled[2, 6] = 0.0, x[0, 1, 1], x[2, 5]
        assert torch.equal(rnn(gaps, timespans=spans)[0], rnn(filled, timespans=spans)[0])
        torch.testing.assert_close(run_by_steps(rnn, gaps, spans)[0], rnn(gaps, timespans=spans)[0], rtol=1e-12, atol=0)
        assert torch.equal(rnn.solve(gaps).inputs[0], filled)

    def test_gradients_reach_what_was_held(self):
        rnn, x = network(missing="hold"), sequence()[0]
        x[0, 3, 0] = NAN
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(rnn(x)[0].sum(), x)
        assert bool(gradient.isfinite().all()) and gradient[0, 3, 0] == 0.0 and gradient[0, 2, 0] != 0.0

    def test_an_error_by_default_that_says_what_to_do(self, one_line):
        x = sequence()[0]
        x[1, 2, 0] = NAN
        with pytest.raises(InputError) as error:
            network()(x)
        one_line(error, "sample 1, step 2, feature 0", 'missing="hold"')
        x[1, 2, 0] = float("inf")
        for missing in ("error", "hold"):
            with pytest.raises(InputError) as error:
                network(missing=missing)(x)
            one_line(error, "x is inf")
        with pytest.raises(InputError) as error:
            network(missing="drop")
        one_line(error, "missing is 'drop'", "'hold'")

    def test_padding_is_not_missing(self):
        rnn, (x, spans) = network(missing="hold", control="linear_noncausal"), sequence()
        x[0, 4:] = NAN
        output, state = rnn(x, timespans=spans, lengths=[4, 7, 7])
        alone, end = rnn(x[:1, :4], timespans=spans[:1, :4])
        torch.testing.assert_close(output[:1, :4], alone, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(state[:1], end, rtol=1e-13, atol=1e-14)

    def test_a_saved_network_keeps_it(self, tmp_path):
        rnn = network(missing="hold", max_dt=0.4, control="cubic")
        neuralosc.save(rnn, tmp_path / "net.pt")
        again = neuralosc.load(tmp_path / "net.pt")
        assert (again.missing, again.max_dt, again.control.name) == ("hold", 0.4, "cubic")


def test_noise_has_no_states_between_the_samples(one_line):
    rnn = ContinuousRNN(neuralosc.Noisy(neuralosc.Lipschitz(2, 3), additive=0.1), "euler_maruyama", dt=0.1)
    with pytest.raises(InputError) as error:
        rnn.trajectory(torch.zeros(1, 4, 2), at=[0.5])
    one_line(error, "euler_maruyama", "between")


def run_by_chunks(rnn, x, spans, sizes=(2, 1, 3), **settings):
    stream, outputs = rnn.begin(len(x), **settings), []
    sizes = [*sizes, x.shape[1] - sum(sizes)]
    for part, span in zip(x.split(sizes, 1), spans.split(sizes, 1), strict=True):
        output, stream = rnn(part, stream, span)
        outputs.append(output)
    return torch.cat(outputs, 1), stream


class TestChunks:
    """Chunks fed to a stream are the whole sequence."""

    @pytest.mark.parametrize(
        ("solver", "backend", "time"), [("rk4", "plain", 7), ("native_tsit5", "plain", 7), ("rk4", "auto", 80)]
    )
    @pytest.mark.parametrize("control", CAUSAL)
    def test_equal_the_whole_sequence(self, solver, control, backend, time):
        rnn, (x, spans) = network(num_layers=2, solver=solver, control=control), sequence(time=time)
        x, spans = x.requires_grad_(), spans.requires_grad_()
        with solvers.backend(backend):
            output, state = rnn(x, timespans=spans)
            outputs, stream = run_by_chunks(rnn, x, spans)
        torch.testing.assert_close(outputs, output, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(stream.state, state, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(stream.time.squeeze(-1), spans.sum(1))
        wanted = (x, spans, *rnn.parameters())
        for found, expected in zip(
            torch.autograd.grad(outputs[:, -1].square().sum(), wanted),
            torch.autograd.grad(output[:, -1].square().sum(), wanted),
            strict=True,
        ):
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)

    def test_shared_spans_and_none(self):
        rnn, (x, _) = network(control="cubic", num_layers=2), sequence()
        for spans in (torch.rand(7, dtype=F64), None):
            stream, outputs = rnn.begin(3), []
            for i in (slice(0, 3), slice(3, 7)):
                output, stream = rnn(x[:, i], stream, None if spans is None else spans[i])
                outputs.append(output)
            torch.testing.assert_close(torch.cat(outputs, 1), rnn(x, timespans=spans)[0], rtol=1e-12, atol=1e-13)

    def test_missing_values_are_held_across_chunks(self):
        rnn, (x, spans) = network(missing="hold", control="linear"), sequence()
        x[:, 0, 1] = x[:, 2:5, 0] = x[1, 3] = NAN
        torch.testing.assert_close(run_by_chunks(rnn, x, spans)[0], rnn(x, timespans=spans)[0], rtol=1e-12, atol=1e-13)

    def test_time_goes_on(self):
        rnn, (x, spans) = ContinuousRNN(Timed(), "rk4", dt=0.7), sequence()
        whole = rnn(x, timespans=spans)[0]
        # The type of a state is that of the parameters, and there are none.
        state = torch.zeros(3, 1, 2, dtype=F64)
        torch.testing.assert_close(run_by_chunks(rnn, x, spans, state=state)[0], whole, rtol=1e-12, atol=1e-13)
        # A later beginning, and each sample its own.
        started = torch.tensor([0.0, 1.0, 2.5], dtype=F64)
        outputs, stream = run_by_chunks(rnn, x, spans, state=state, time=started)
        expected, _ = run_by_steps_from(rnn, x, spans, rnn.begin(3, state, started))
        torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-13)
        assert not torch.allclose(outputs[1:], whole[1:]) and torch.allclose(outputs[0], whole[0])
        torch.testing.assert_close(stream.time.squeeze(-1), started + spans.sum(1))

    def test_a_stream_goes_from_steps_to_chunks_and_back(self):
        rnn, (x, spans) = network(control="cubic", num_layers=2), sequence()
        first, stream = rnn.step(x[:, 0], rnn.begin(3), spans[:, 0])
        middle, stream = rnn(x[:, 1:5], stream, spans[:, 1:5])
        more, stream = rnn.step(x[:, 5], stream, spans[:, 5])
        last, stream = rnn(x[:, 6:], stream.detach(), spans[:, 6:])
        outputs = torch.cat((first.unsqueeze(1), middle, more.unsqueeze(1), last), 1)
        torch.testing.assert_close(outputs, rnn(x, timespans=spans)[0], rtol=1e-12, atol=1e-13)

    def test_an_initial_state_and_lengths(self):
        rnn, (x, spans), state = network(), sequence(), torch.randn(3, 2, 4, dtype=F64)
        output, end = rnn(x, state, spans, lengths=[7, 4, 6])
        first, stream = rnn(x[:, :3], rnn.begin(3, state), spans[:, :3])
        second, stream = rnn(x[:, 3:], stream, spans[:, 3:], lengths=[4, 1, 3])
        torch.testing.assert_close(torch.cat((first, second), 1), output, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(stream.state, end, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("control", ["hold", "linear"])
    @pytest.mark.parametrize("name", ["layer", "network"])
    def test_linoss(self, name, control):
        settings = {"state_size": 3, "control": control}
        layer = neuralosc.LinOSS(2, **settings) if name == "layer" else neuralosc.LinOSSNetwork(2, 4, **settings)
        layer, (x, spans) = layer.double().eval(), sequence()
        whole = layer(x, timespans=spans)[0]
        torch.testing.assert_close(run_by_chunks(layer, x, spans)[0], whole, rtol=1e-11, atol=1e-12)

    def test_what_a_stream_cannot_be_used_for(self, one_line):
        x = torch.randn(3, 4, 2, dtype=F64)
        for settings, words in (
            ({"bidirectional": True}, ["bidirectional"]),
            ({"control": "linear_noncausal"}, ["linear_noncausal"]),
            ({"dropout": 0.5}, ["dropout", "eval()"]),
        ):
            rnn = network(**settings)
            with pytest.raises(InputError) as caught:
                rnn(x, rnn.begin(3))
            one_line(caught, *words)
        rnn = network(control="linear")
        for call, words in (
            (lambda: rnn(x, rnn.begin(2)), ["stream", "(3, 2)", "(2, 2)"]),
            (lambda: rnn(x, rnn.begin(3), lengths=[4, 3, 2]), ["lengths", "linear"]),
            (lambda: rnn.begin(0), ["batch"]),
            (lambda: rnn.begin(3, time=-1.0), ["time"]),
        ):
            with pytest.raises(InputError) as caught:
                call()
            one_line(caught, *words)


def run_by_steps_from(rnn, x, spans, stream):
    outputs = []
    for sample, span in zip(x.unbind(1), spans.unbind(1), strict=True):
        output, stream = rnn.step(sample, stream, span)
        outputs.append(output)
    return torch.stack(outputs, 1), stream
