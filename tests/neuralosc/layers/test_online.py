"""Samples one at a time, states between the samples, missing values, chunks."""

import dataclasses

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN, InputError, Stream
from tests.neuralosc.layers.sampled import network, sequence

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

    @pytest.mark.parametrize("control", ["hold", "linear", "cubic", "rectilinear"])
    def test_sequences_end_and_rest_in_any_chunk(self, control):
        """Each goes on from its own last samples: after a pause, in the first place of the chunk that follows."""
        rnn, (x, spans) = network(control=control, num_layers=2), sequence(4, 12)
        counts = [[3, 3, 3, 3], [1, 3, 0, 3], [3, 2, 0, 0], [2, 0, 3, 0]]
        stream, states, taken = rnn.begin(4), [], [0, 0, 0, 0]
        for lengths in counts:
            chunk, gaps = torch.full((4, 3, 2), NAN, dtype=F64), torch.full((4, 3), NAN, dtype=F64)
            for b, n in enumerate(lengths):
                chunk[b, :n], gaps[b, :n] = x[b, taken[b] : taken[b] + n], spans[b, taken[b] : taken[b] + n]
                taken[b] += n
            _, stream = rnn(chunk, stream, gaps, lengths=lengths)
            states.append(stream.state)
        whole = rnn(x, timespans=spans, lengths=taken)[1]
        torch.testing.assert_close(stream.state, whole, rtol=1e-12, atol=1e-13)
        assert taken == [9, 8, 6, 6] and torch.equal(states[1][:, 2], states[2][:, 2])

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
            (lambda: rnn(x, rnn(x, rnn.begin(3), lengths=[4, 0, 2])[1]), ["sequence 1", "fewer samples"]),
            (lambda: rnn.step(x[:, 0], rnn(x, rnn.begin(3), lengths=[4, 0, 2])[1]), ["sequence 1", "fewer samples"]),
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
