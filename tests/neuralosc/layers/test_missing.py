"""What a network is shown of samples of which some features are missing."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc import InputError
from neuralosc.fields.decay import Decay
from neuralosc.layers.missing import Memory, filled

F64 = torch.float64
NAN = float("nan")
NAMES = ["lem", "gru", "cornn", "exprnn", "lstm"]


def gappy(batch=3, time=7, features=2, share=0.4):
    torch.manual_seed(0)
    x, spans = torch.randn(batch, time, features, dtype=F64), torch.rand(batch, time, dtype=F64) + 0.1
    x[torch.rand(x.shape) < share] = NAN
    return x, spans


def by_hand(x, spans, decay=None):
    """Sample by sample and feature by feature."""
    rows = []
    for series, gaps in zip(x, spans, strict=True):
        last, since, row = torch.zeros(x.shape[2], dtype=F64), torch.zeros(x.shape[2], dtype=F64), []
        for values, gap in zip(series, gaps, strict=True):
            since, now = since + gap, ~values.isnan()
            last, before = torch.where(now, values, last), since
            since = torch.where(now, 0.0, since)
            if decay is None:
                row.append(torch.cat((last, now.double(), before)))
            else:
                kept = torch.exp(-(decay.w * since + decay.b).clamp_min(0))
                row.append(torch.cat((torch.where(now, values, kept * last + (1 - kept) * decay.mean), now.double())))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def drawn_decay(features=2):
    decay = Decay(features).double()
    with torch.no_grad():
        decay.w.uniform_(-0.5, 2), decay.b.uniform_(-0.3, 0.3), decay.mean.normal_()
    return decay


@pytest.mark.parametrize("batch, features", [(3, 2), (16, 9)])
def test_shown_is_what_the_definitions_say(batch, features):
    x, spans = gappy(batch, features=features)
    torch.testing.assert_close(filled(x, "mask", spans, None, None)[0], by_hand(x, spans))
    decay = drawn_decay(features)
    torch.testing.assert_close(filled(x, "decay", spans, None, decay)[0], by_hand(x, spans, decay))
    ones = torch.ones_like(spans)
    for same in (None, torch.ones(7, dtype=F64), 1.0):
        torch.testing.assert_close(filled(x, "mask", same, None, None)[0], by_hand(x, ones))


@pytest.mark.parametrize("missing", ["hold", "mask"])
@pytest.mark.parametrize("after", [False, True])
def test_data_is_filled_as_what_is_differentiated(missing, after):
    # Plain data goes from sample to sample; what has a gradient is searched at once.
    x, spans = gappy(16, features=9)
    x[1], x[2, :, 3] = NAN, NAN
    memory = Memory(torch.randn(16, 9, dtype=F64), torch.rand(16, 9, dtype=F64)) if after else None
    plain, followed = (filled(data, missing, spans, memory, None) for data in (x, x.clone().requires_grad_()))
    assert followed[0].requires_grad
    assert not plain[0].requires_grad
    for a, b in ((plain[0], followed[0]), (plain[1].last, followed[1].last), (plain[1].since, followed[1].since)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("hole", [0.5, NAN, float("inf")])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("followed", [False, True])
def test_what_is_held_is_held_in_the_padding_too(hole, after, followed):
    x, spans = gappy(16, features=9)
    valid = torch.arange(7) < torch.tensor([7, 0, 3, 1] * 4).unsqueeze(-1)
    memory = Memory(torch.randn(16, 9, dtype=F64), torch.rand(16, 9, dtype=F64)) if after else None
    given = torch.where(valid.unsqueeze(-1), x, hole).requires_grad_(followed)
    held, known = filled(given, "hold", spans, memory, None, valid)
    for i, (row, series, count) in enumerate(zip(held, x, valid.sum(1).tolist(), strict=True)):
        before = None if memory is None else Memory(memory.last[i : i + 1], memory.since[i : i + 1])
        alone = filled(series[None, :count], "hold", spans, before, None)[0][0] if count else row[:0]
        last = alone[-1] if count else torch.zeros(9, dtype=F64) if memory is None else before.last[0]
        assert torch.equal(row[:count], alone) and torch.equal(row[count:], last.expand(7 - count, 9))
    assert torch.equal(known.last, held[:, -1])
    if followed:
        (grad,) = torch.autograd.grad(held.sum(), given)
        assert grad.isfinite().all() and not grad[~valid].any() and grad[valid].any()


@pytest.mark.parametrize("missing", ["hold", "mask", "decay"])
def test_memory_joins_chunks(missing):
    x, spans = gappy()
    decay = drawn_decay() if missing == "decay" else None
    whole, end = filled(x, missing, spans, None, decay)
    parts, memory = [], Memory.none(x)
    for i, j in ((0, 1), (1, 4), (4, 7)):
        part, memory = filled(x[:, i:j], missing, spans[:, i:j], memory, decay)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(memory.last, end.last)
    torch.testing.assert_close(memory.since, end.since)


@pytest.mark.parametrize("missing", ["mask", "decay"])
@pytest.mark.parametrize("name", NAMES)
class TestNetworks:
    def make(self, name, missing, **settings):
        torch.manual_seed(0)
        settings |= {"timespans": "feature"} if name == "lstm" else {}
        rnn = neuralosc.make(name, input_size=2, hidden_size=4, missing=missing, **settings).double()
        if missing == "decay":
            rnn.decay.load_state_dict(drawn_decay().state_dict())
        return rnn

    def test_equals_a_network_that_is_shown_it(self, name, missing):
        rnn, (x, spans) = self.make(name, missing), gappy()
        plain = neuralosc.make(
            name,
            input_size=6 if missing == "mask" else 4,
            hidden_size=4,
            **({"timespans": "feature"} if name == "lstm" else {}),
        ).double()
        plain.load_state_dict({k: v for k, v in rnn.state_dict().items() if not k.startswith("decay.")})
        shown = by_hand(x, spans, rnn.decay)
        torch.testing.assert_close(rnn(x, timespans=spans)[0], plain(shown, timespans=spans)[0], rtol=1e-10, atol=1e-11)
        assert rnn.input_size == 2 and (rnn.decay is None) == (missing == "mask")

    def test_every_parameter_has_a_gradient(self, name, missing):
        rnn, (x, spans) = self.make(name, missing, num_layers=2), gappy()
        output = rnn(x, timespans=spans)[0]
        for grad in torch.autograd.grad(output.square().sum(), list(rnn.parameters())):
            assert grad.isfinite().all() and grad.any()

    def test_padding_and_empty_sequences(self, name, missing):
        rnn, (x, spans) = self.make(name, missing), gappy()
        output, state = rnn(x, timespans=spans, lengths=[7, 0, 3])
        alone, end = rnn(x[2:, :3], timespans=spans[2:, :3])
        torch.testing.assert_close(output[2, :3], alone[0])
        torch.testing.assert_close(state[2], end[0])
        assert not state[1].any() and output.isfinite().all()

    def test_saved_and_loaded(self, name, missing, tmp_path):
        rnn, (x, spans) = self.make(name, missing), gappy()
        again = neuralosc.load(neuralosc.save(rnn, tmp_path / "rnn"))
        assert again.missing == missing
        torch.testing.assert_close(again(x, timespans=spans)[0], rnn(x, timespans=spans)[0], rtol=1e-12, atol=1e-13)

    def test_bit_by_bit(self, name, missing):
        if name == "lstm":
            pytest.skip("a baseline has no stream")
        rnn, (x, spans) = self.make(name, missing, num_layers=2), gappy()
        expected, end = rnn(x, timespans=spans)
        stream, outputs = rnn.begin(3), []
        for i, j in ((0, 3), (3, 4), (4, 7)):
            output, stream = rnn(x[:, i:j], stream, spans[:, i:j])
            outputs.append(output)
            stream = stream.detach()
        torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-10, atol=1e-11)
        state, outputs = None, []
        for i in range(7):
            output, state = rnn.step(x[:, i], state, spans[:, i])
            outputs.append(output)
        torch.testing.assert_close(torch.stack(outputs, 1), expected, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(state.state, end, rtol=1e-10, atol=1e-11)

    def test_questions_in_time(self, name, missing):
        if name == "lstm":
            pytest.skip("a baseline is asked nothing between samples")
        rnn, (x, spans) = self.make(name, missing), gappy()
        end = spans.sum(1, keepdim=True)
        later = rnn.trajectory(x, spans, at=end + 1.5)[:, 0]
        torch.testing.assert_close(rnn.advance(rnn(x, timespans=spans)[1], 1.5), later, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("missing", ["hold", "mask", "decay"])
@pytest.mark.parametrize(
    "name, control", [*(("gru", each) for each in ("hold", "linear", "linear_noncausal", "cubic")), ("ncde", "natural")]
)
def test_padding_is_no_sample_to_a_control_that_looks_ahead(name, control, missing):
    rnn = neuralosc.make(name, input_size=2, hidden_size=3, solver="rk4", control=control, missing=missing).double()
    (x, spans), lengths = gappy(time=5), torch.tensor([3, 5, 1])
    output, state = rnn(x, timespans=spans, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, end = rnn(x[row : row + 1, :length], timespans=spans[row : row + 1, :length])
        torch.testing.assert_close(output[row, :length], alone[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(state[row], end[0], rtol=0, atol=1e-12)


def test_a_fresh_decay_learns():
    """Its rates and offsets are 0, where relu has no slope."""
    rnn, (x, spans) = neuralosc.LEM(2, 4, missing="decay").double(), gappy()
    rnn.decay.mean.fill_(1.0)
    grads = torch.autograd.grad(rnn(x, timespans=spans)[0].square().sum(), [rnn.decay.w, rnn.decay.b])
    assert all(grad.all() for grad in grads)


def test_both_directions_and_a_skip():
    rnn = neuralosc.LEM(2, 4, missing="mask", bidirectional=True, residual=True, num_layers=2).double()
    x, spans = gappy()
    assert rnn.skip.weight.shape == (8, 6) and rnn(x, timespans=spans)[0].shape == (3, 7, 8)


def test_what_is_refused(one_line):
    x, _ = gappy()
    cases = [
        (lambda: neuralosc.LEM(2, 4, missing="zero"), ["missing is 'zero'", "'mask'", "'decay'"]),
        (lambda: neuralosc.ContinuousRNN(neuralosc.Multiscale(4, 4), missing="mask"), ["3 values", "takes 4"]),
        (
            lambda: neuralosc.make("linoss", input_size=2, hidden_size=4, missing="mask"),
            ["missing is 'mask'", "'hold'"],
        ),
        (lambda: neuralosc.LinOSS(2, missing="decay"), ["missing is 'decay'"]),
        (lambda: neuralosc.LEM(2, 4, missing="mask").double()(x.nan_to_num(float("inf"))), ["x is inf"]),
        (lambda: neuralosc.export(neuralosc.LEM(2, 4, missing="mask")), ["earlier samples", "missing 'error'"]),
    ]
    for act, words in cases:
        with pytest.raises(InputError) as error:
            act()
        one_line(error, *words)


def test_paths_agree():
    rnn, (x, spans) = neuralosc.LEM(2, 4, missing="decay").double(), gappy()
    found = []
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            found.append(torch.autograd.grad(rnn(x, timespans=spans)[0].square().sum(), list(rnn.parameters())))
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)


def test_a_program_of_sequences_fills_by_itself():
    rnn = neuralosc.LEM(2, 4, missing="mask", max_dt=None).double().eval()
    program = neuralosc.export(rnn, 7, timespans=True).module()
    x, spans = gappy()
    state = torch.zeros(3, 2, 4, dtype=F64)
    torch.testing.assert_close(program(x, state, spans), rnn(x, state, spans))
