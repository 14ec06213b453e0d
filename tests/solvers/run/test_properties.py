"""Invariances of `integrate` for any batch, dtype, clock, length and input."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import solvers
from solvers import Sampled, integrate
from tests.solvers.ode_problems import DrivenOscillator

#: The reversible pair carries a second state that a new call starts anew.
FIXED = [i.name for i in solvers.available() if not i.adaptive and i.name != "reversible"]
FIXED = [name for name in FIXED if name in solvers.compatible(DrivenOscillator())]
NATIVE = ["native_bosh3", "native_dopri5", "native_tsit5", "native_kencarp4"]
PROFILE = settings(max_examples=60, deadline=None, derandomize=True, database=None)


class Field(DrivenOscillator):
    """The driven oscillator in the precision of the state."""

    def drive_of(self, t, q, u):
        return torch.tanh(q.cumsum(-1) + u)


@st.composite
def cases(draw, names):
    name = draw(st.sampled_from(names))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    batch, hidden, count = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    spans = torch.rand(batch, count, dtype=torch.float64, generator=generator)
    spans[torch.rand(batch, count, generator=generator) < 0.2] = 0.0
    times = random(batch, 1) + spans.cumsum(1) * draw(st.sampled_from([1.0, -1.0]))
    knots = random(batch, 3).sort(dim=1).values
    samples = random(batch, 3, hidden).to(dtype)
    control = draw(st.sampled_from(["hold", "linear"]))
    state = random(batch, 2, hidden).to(dtype)
    return name, state, times, samples, knots, control


def run(case, rows=slice(None), until=None, **options):
    name, state, times, samples, knots, control = case
    sampled = Sampled(samples[rows], knots[rows], control)
    if not solvers.get(name).adaptive:
        options = {"dt": 0.1, **options}
    return integrate(Field(), state[rows], times[rows][:, :until], sampled, name, **options)


def tolerance(case):
    # Newton's method stops at its tolerance, not at rounding.
    implicit, exact = solvers.get(case[0]).family == "implicit", case[1].dtype == torch.float64
    close = (1e-6 if implicit else 1e-12) if exact else 1e-4
    return {"rtol": close, "atol": close}


@PROFILE
@given(cases(FIXED))
def test_a_sample_alone_takes_the_same_steps(case):
    together = run(case)
    assert together.success and together.states.dtype == case[1].dtype
    assert together.states.shape == (len(case[1]), case[2].shape[1], *case[1].shape[1:])
    for i in range(len(case[1])):
        alone = run(case, slice(i, i + 1))
        torch.testing.assert_close(alone.states, together.states[i : i + 1], **tolerance(case))
        assert alone.statistics.steps[0] == together.statistics.steps[i]


@PROFILE
@given(cases(FIXED), st.integers(1, 6))
def test_fewer_times_are_the_beginning_of_more(case, until):
    whole, beginning = run(case), run(case, until=until)
    torch.testing.assert_close(beginning.states, whole.states[:, :until], **tolerance(case))


@PROFILE
@given(cases(FIXED + NATIVE))
def test_a_span_of_zero_changes_nothing_and_the_batch_may_be_permuted(case):
    states = run(case).states
    assert torch.equal(states[:, 0], case[1])
    still = case[2].diff(dim=1) == 0
    if case[0] in FIXED:
        assert torch.equal(states[:, 1:][still], states[:, :-1][still])
    else:
        # Both are one sum over the stages of a step, of at most seven terms, which a product may order as it likes.
        exact = {"rtol": 0, "atol": 16 * torch.finfo(states.dtype).eps * max(1.0, float(states.abs().max()))}
        torch.testing.assert_close(states[:, 1:][still], states[:, :-1][still], **exact)
    order = torch.arange(len(states) - 1, -1, -1)
    slack = tolerance(case) if case[0] in FIXED else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(run(case, order).states, states[order], **slack)


@PROFILE
@given(cases(NATIVE))
def test_native_samples_do_not_see_each_other(case):
    case = case[0], case[1].double(), case[2], case[3].double(), *case[4:]
    together = run(case)
    for i in range(len(case[1])):
        torch.testing.assert_close(run(case, slice(i, i + 1)).states, together.states[i : i + 1], rtol=1e-4, atol=1e-4)
