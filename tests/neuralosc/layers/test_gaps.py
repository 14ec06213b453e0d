"""Gaps: cut into steps no longer than asked, and what can be said in them, of the past alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuralosc
import solvers
from neuralosc import ContinuousRNN, InputError
from tests.neuralosc.layers.sampled import network, sequence

F64 = torch.float64
NAN = float("nan")


class TestCausal:
    # A natural spline has known all samples on the way to any of them.
    @pytest.mark.parametrize("control", [name for name in solvers.CONTROLS if name != "natural"])
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

    @pytest.mark.parametrize("layers", [1, 2])
    def test_a_state_alone_is_gone_on_from(self, layers):
        rnn, (x, spans) = network(solver="rk4", num_layers=layers), sequence()
        state = rnn(x, timespans=spans)[1]
        after = torch.tensor([[0.0, 0.7, 3.1], [2.5, 0.2, 0.2], [1.0, 2.0, 9.0]], dtype=F64)
        expected = rnn.trajectory(x, spans, at=spans.sum(1, keepdim=True) + after)
        torch.testing.assert_close(rnn.trajectory(state=state, at=after), expected, rtol=1e-11, atol=1e-12)
        assert rnn.trajectory(state=state, at=[1.0, 2.0]).shape == (3, 2, 2, 4)

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
            (lambda: rnn.trajectory(at=[1.0]), ["x is None", "no state"]),
            (lambda: rnn.trajectory(state=state, at=[1.0], lengths=[1, 1]), ["x is None", "lengths was given"]),
            (lambda: rnn.trajectory(state=state, at=[1.0], future="hold"), ["x is None", "future was given"]),
            (lambda: rnn.trajectory(state=state[0], at=[1.0]), ["state has shape (2, 4)"]),
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
