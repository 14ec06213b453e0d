"""Invariances that hold for any sizes, lengths and clocks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neuralosc
import solvers
from solvers.protocol import structure
from tests.fields import controls_for

F64 = torch.float64
# The reversible pair carries a second state that a new call starts anew.
FIXED = [info.name for info in solvers.available() if not info.adaptive and info.name != "reversible"]
NAMES = [card.name for card in neuralosc.models() if card.field and not card.blocks]


@st.composite
def cases(draw):
    name = draw(st.sampled_from(NAMES))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    layers, hidden, features = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rnn = neuralosc.make(name, input_size=features, hidden_size=hidden, dt=0.2, num_layers=layers).double().eval()
    fit = [s for s in solvers.compatible(rnn.fields[0]) if s in FIXED]
    # A closed form that is no flow takes an interval whole.
    most = 2 if "differential" in structure(rnn.fields[0]) else 1
    rnn = rnn.with_solver(
        draw(st.sampled_from(fit)),
        control=draw(st.sampled_from(controls_for(rnn.fields[0], ["hold", "linear"]))),
        substeps=draw(st.integers(1, most)),
    )
    batch, time = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, time), min_size=batch, max_size=batch))
    spans = torch.rand(batch, time, dtype=F64)
    spans[torch.rand(batch, time) < 0.2] = 0.0
    return rnn, torch.randn(batch, time, features, dtype=F64), spans, torch.tensor(lengths)


PROFILE = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def samples_of(state, index, rnn):
    return state[:, index] if rnn.num_layers > 1 else state[index]


@PROFILE
@given(cases())
def test_permuting_the_batch_permutes_the_result(case):
    rnn, x, spans, lengths = case
    order = torch.randperm(len(x))
    output, state = rnn(x, timespans=spans, lengths=lengths)
    permuted, end = rnn(x[order], timespans=spans[order], lengths=lengths[order])
    close(permuted, output[order])
    close(end, samples_of(state, order, rnn))


@PROFILE
@given(cases(), st.integers(1, 3))
def test_more_padding_changes_nothing(case, more):
    rnn, x, spans, lengths = case
    output, state = rnn(x, timespans=spans, lengths=lengths)
    junk = torch.full((len(x), more, x.shape[-1]), torch.nan, dtype=F64)
    longer = torch.cat((spans, torch.full((len(x), more), 7.0, dtype=F64)), 1)
    extended, end = rnn(torch.cat((x, junk), 1), timespans=longer, lengths=lengths)
    close(extended[:, : x.shape[1]], output)
    close(end, state)
    assert torch.equal(extended[:, x.shape[1] :], extended[:, x.shape[1] - 1 : x.shape[1]].expand(-1, more, -1))


@PROFILE
@given(cases())
def test_a_sample_alone_gives_the_same(case):
    rnn, x, spans, lengths = case
    output, state = rnn(x, timespans=spans, lengths=lengths)
    i = len(x) - 1
    n = int(lengths[i])
    alone, end = rnn(x[i : i + 1, :n], timespans=spans[i, :n])
    close(output[i : i + 1, :n], alone)
    close(samples_of(state, slice(i, i + 1), rnn), end)


@PROFILE
@given(cases(), st.integers(0, 5))
def test_stopping_anywhere_and_going_on_gives_the_same(case, cut):
    rnn, x, spans, _ = case
    # A linear control needs the sample before the cut, and a timed field the time: a state has neither, a stream both.
    held = "hold" in controls_for(rnn.fields[0]) and not rnn.timed
    rnn = rnn.with_solver(rnn.solver, control="hold") if held else rnn
    cut = min(cut, x.shape[1] - 1)
    output, state = rnn(x, timespans=spans)
    if cut == 0:
        return close(rnn(x, torch.zeros_like(state) if held else rnn.begin(len(x)), spans)[0], output)
    first, middle = rnn(x[:, :cut], None if held else rnn.begin(len(x)), spans[:, :cut])
    second, end = rnn(x[:, cut:], middle, spans[:, cut:])
    close(torch.cat((first, second), 1), output)
    close(end if held else end.state, state)


@PROFILE
@given(cases())
def test_states_and_output_agree(case):
    rnn, x, spans, lengths = case
    solution = rnn.solve(x, timespans=spans, lengths=lengths)
    output, state = rnn(x, timespans=spans, lengths=lengths)
    assert torch.equal(solution.output, output) and torch.equal(solution.state, state)
    assert torch.equal(solution.states[..., 0, :], output)
    assert solution.evaluations > 0 and len(solution.layers) == rnn.num_layers
    assert torch.isfinite(solution.states).all()
