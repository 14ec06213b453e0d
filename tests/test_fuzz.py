"""What nobody thought of: `make fuzz` draws valid configurations, which must be right, and invalid ones, which say so.

Valid: a named network of any sizes, solver, control, clock, gradient and path gives the output, the last state and the
gradients of the plain steps; a permuted batch, a sample alone, more padding and a sequence in chunks change nothing.
Invalid: one thing of a valid call is wrong, and the answer is one line of an error of this project.

FUZZ_SECONDS bounds the time of each of the two, FUZZ_CASES the number of its cases; both are set by `make fuzz`.
"""

import dataclasses
import functools
import os
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import neuralosc
import solvers
from solvers.protocol import structure
from tests.fields import controls_for
from tests.measures import assert_agree

pytestmark = pytest.mark.fuzz

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
CASES = int(os.environ.get("FUZZ_CASES", "100"))
F64 = torch.float64
NAMES = [card.name for card in neuralosc.models() if card.field and not card.blocks]
#: To those that are made for missing values NaN is no mistake.
STRICT = [name for name in NAMES if neuralosc.model(name).defaults["missing"] == "error"]
#: Fixed steps, and no noise: what is drawn anew is never the same. The reversible pair carries a second state, which a
#: new call starts anew.
FIXED = [info.name for info in solvers.available() if not info.adaptive and info.name != "reversible"]


@functools.cache
def solvers_of(name):
    """The solvers with fixed steps that fit a named network."""
    (field,) = neuralosc.make(name, input_size=1, hidden_size=2).fields
    noisy = "stochastic" in structure(field)
    return () if noisy else tuple(s for s in solvers.compatible(field) if s in FIXED and not solvers.get(s).stochastic)


class Bounded:
    """Counts cases until the time is over."""

    def __init__(self, what):
        self.what, self.count, self.end = what, 0, time.monotonic() + SECONDS

    def __bool__(self):
        return time.monotonic() < self.end and self.count < CASES

    def spend(self, draw):
        """Draw cases until time or number is reached."""
        while self:
            draw()


@pytest.fixture(scope="module")
def budgets(request):
    """The budget of each kind of case; says how many there were."""
    made = {}
    yield lambda what: made.setdefault(what, Bounded(what))
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        for budget in made.values():
            print(f"\n{budget.count} {budget.what} cases")


#: Drawn again and again until the time is over: hypothesis alone knows of no time.
PROFILE = settings(max_examples=min(200, CASES), deadline=None, database=None, suppress_health_check=list(HealthCheck))


@dataclasses.dataclass
class Case:
    rnn: torch.nn.Module
    x: torch.Tensor
    state: torch.Tensor
    spans: torch.Tensor | None
    lengths: torch.Tensor | None
    backend: str

    def run(self, rows=slice(None), backend="plain", **changes):
        """Output and state, of some samples of the batch."""
        given = {"x": self.x, "timespans": self.spans, "lengths": self.lengths, **changes}
        if given["timespans"] is not None and given["timespans"].dim() == 2:
            given["timespans"] = given["timespans"][rows]
        if given["lengths"] is not None:
            given["lengths"] = given["lengths"][rows]
        x = given.pop("x")[rows]
        with solvers.backend(backend):
            return self.rnn(x, self.rows(self.state, rows), **given)

    def rows(self, state, rows):
        return state[:, rows] if self.rnn.num_layers * self.rnn.directions > 1 else state[rows]


@st.composite
def cases(draw):
    name = draw(st.sampled_from([n for n in NAMES if solvers_of(n)]))
    torch.manual_seed(draw(st.integers(0, 1 << 30)))
    hidden, features = draw(st.integers(1, 6)), draw(st.integers(1, 10))
    rnn = neuralosc.make(
        name,
        input_size=features,
        hidden_size=2 * hidden,
        dt=draw(st.sampled_from([0.02, 0.1, 0.3])),
        num_layers=draw(st.sampled_from([1, 1, 2])),
        bidirectional=draw(st.sampled_from([False, False, True])),
        gradient=draw(st.sampled_from(["backprop", "backprop", "checkpoint"])),
    ).double()
    rnn = rnn.with_solver(
        draw(st.sampled_from(solvers_of(name))),
        control=draw(st.sampled_from(controls_for(rnn.fields[0]))),
        # A closed form that is no flow takes an interval whole.
        substeps=draw(st.sampled_from([1, 1, 2, 5] if "differential" in structure(rnn.fields[0]) else [1])),
    )
    batch, length = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    clock = draw(st.sampled_from(["none", "shared", "sample", "empty"]))
    spans = None if clock == "none" else torch.rand(*([] if clock == "shared" else [batch]), length, dtype=F64) + 0.05
    if clock == "empty":
        spans[torch.rand(batch, length) < 0.3] = 0.0
    lengths = torch.randint(0, length + 1, (batch,)) if draw(st.booleans()) else None
    layers = rnn.num_layers * rnn.directions
    state = torch.randn(*([layers] if layers > 1 else []), batch, rnn.components, rnn.hidden_size, dtype=F64)
    backend = draw(st.sampled_from(["torch", "torch", "torch", "compiled"]))
    return Case(rnn, torch.randn(batch, length, features, dtype=F64), 0.3 * state, spans, lengths, backend)


def gradients(case, backend):
    leaves = [t.requires_grad_() for t in (case.x, case.state)] + list(case.rnn.parameters())
    output, end = case.run(backend=backend)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(t.shape, generator=generator, dtype=F64) for t in (output, end)]
    loss = (output * weights[0]).sum() + (end * weights[1]).sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [output, end, *(torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True))]


def test_valid_cases(budgets):
    budget = budgets("valid")
    budget.spend(PROFILE(given(case=cases())(lambda case: check(case, budget) if budget else None)))
    assert budget.count


def check(case, budget):
    """A valid case is right on every path and in every arrangement."""
    plain = gradients(case, "plain")
    try:
        fast = gradients(case, case.backend)
    except solvers.PairingError as error:
        # What a fast path does not take it refuses with a reason; "auto" would go the plain way.
        assert "cannot take this solve" in str(error)
    else:
        assert_agree(fast, plain, 1e-9)
    output, end = (t.detach() for t in plain[:2])
    invariant(case, output, end)
    budget.count += 1


def invariant(case, output, end):
    """Permuted, alone, with more padding and in chunks a batch gives what it gives."""
    rnn, batch, length = case.rnn, *case.x.shape[:2]
    with torch.no_grad():
        order = torch.randperm(batch)
        permuted, ends = case.run(order)
        assert_agree([permuted, ends], [output[order], case.rows(end, order)], 1e-10)
        alone, last = case.run(slice(batch - 1, batch))
        assert_agree([alone, last], [output[-1:], case.rows(end, slice(batch - 1, batch))], 1e-10)
        lengths = torch.full((batch,), length) if case.lengths is None else case.lengths
        junk = torch.full((batch, 2, case.x.shape[2]), torch.nan, dtype=F64)
        spans = (
            None
            if case.spans is None
            else torch.cat((case.spans, case.spans[..., -1:].expand(*case.spans.shape[:-1], 2)), -1)
        )
        longer, kept = case.run(x=torch.cat((case.x, junk), 1), timespans=spans, lengths=lengths)
        whole, full = (output, end) if case.lengths is not None else case.run(lengths=lengths)
        assert_agree([longer[:, :length], kept], [whole, full], 1e-10)
        if rnn.control.name == "hold" and rnn.directions == 1 and case.lengths is None and length > 1:
            cut = length // 2
            spans = [None, None] if case.spans is None else [case.spans[..., :cut], case.spans[..., cut:]]
            # Of a field that looks at the time a state alone does not say how it goes on.
            begun = rnn.begin(batch, case.state) if rnn.timed else case.state
            first, between = rnn(case.x[:, :cut], begun, timespans=spans[0])
            second, last = rnn(case.x[:, cut:], between, timespans=spans[1])
            last = last.state if rnn.timed else last
            assert_agree([torch.cat((first, second), 1), last], [output, end], 1e-10)


NAN, INF = float("nan"), float("inf")
SIZES = [0, -1, 2.5, "3", None, True, NAN, [3]]
#: Wrong values of what networks are made with.
SETTINGS = {
    "hidden_size": SIZES,
    "input_size": SIZES,
    "num_layers": SIZES,
    "substeps": SIZES,
    "dt": [0, -1.0, NAN, INF, "fast", True, [], [0.1] * 9],
    "dropout": [-0.1, 1.0, NAN, "much", True],
    "solver": ["eular", "", 7, 0.5, [], {"name": "nope"}, {}, {"name": "dopri5", "rtoll": 1.0}],
    "gradient": ["adjont", "", 3, {}, []],
    "control": ["lineal", "", 2, [], {}],
    "missing": ["ignore", 1, [], True],
    "max_dt": [0.0, -1.0, NAN, "1", True, []],
    "bidirectional": ["yes", 2, "False", 0.0, []],
    "residual": ["yes", 2, "False", []],
    "hiden_size": [3],
    "batch_first": [True],
    "nonsense": [1],
}
#: Wrong values of what they are called with: batch 3, time 4, 2 features.
CALLS = {
    "x": [
        *(None, 3, "x", [[1.0]], {}, torch.ones(3, 4), torch.ones(3, 4, 3), torch.ones(3, 4, 2, 1), torch.ones(())),
        *(torch.ones(3, 0, 2), torch.ones(3, 4, 2).double(), torch.ones(3, 4, 2, dtype=torch.int64)),
        *(torch.ones(3, 4, 2, dtype=torch.bool), torch.ones(3, 4, 2, dtype=torch.cfloat), torch.full((3, 4, 2), NAN)),
        *(torch.full((3, 4, 2), INF), torch.ones(3, 4, 2, device="meta"), torch.ones(3, 4, 2).to_sparse()),
        *(torch.ones(3, 4, 2).half(), torch.ones(3, 4, 2).numpy()),
    ],
    "state": [
        *(3, "s", [], {}, torch.ones(3, 3), torch.ones(4, 2, 3), torch.ones(3, 7, 3), torch.ones(3, 2, 9)),
        *(torch.ones(3, 2, 3).double(), torch.full((3, 2, 3), NAN), torch.ones(3, 2, 3, dtype=torch.int64)),
        *(torch.ones(3, 2, 3, device="meta"), (torch.ones(3, 3), torch.ones(3, 3))),
    ],
    "timespans": [
        *("t", 3, {}, torch.ones(3), torch.ones(4, 3), torch.ones(3, 4, 1), torch.ones(()), torch.full((4,), NAN)),
        *(torch.full((3, 4), -1.0), torch.full((4,), INF), torch.ones(4, dtype=torch.cfloat), torch.ones(5)),
    ],
    "lengths": [
        *("l", 3, {}, [1, 2], [5, 1, 1], [-1, 1, 1], [1.0, 2.0, 3.0], [True] * 3, [[1, 1, 1]]),
        *(["a", "b", "c"], torch.ones(3), [None] * 3, [NAN] * 3),
    ],
}
#: The errors of the project; NumericalError is one for sizes of numbers that are no mistake by themselves.
ERRORS = (solvers.InputError, solvers.NumericalError)


def says_so(act, what):
    """The call ends in one line of an error of the project."""
    try:
        act()
    except ERRORS as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 600, f"{what}: {text!r}"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{what}: no error")


@st.composite
def mistakes(draw):
    """A mistake of the lists above, or one drawn: (kind, network, argument, place in its list or value)."""
    name = draw(st.sampled_from(STRICT))
    kind = draw(st.sampled_from(["setting", "call", "swap", "step", "drawn setting", "drawn call", "integrate"]))
    if kind == "integrate":
        return kind, name, *draw(st.one_of([st.tuples(st.just(key), values) for key, values in INTEGRATE.items()]))
    if kind.startswith("drawn"):
        drawn = DRAWN_SETTINGS if kind == "drawn setting" else DRAWN_CALLS
        return kind, name, *draw(st.one_of([st.tuples(st.just(key), values) for key, values in drawn.items()]))
    table = {"call": CALLS, "step": STEPS, "setting": SETTINGS}.get(kind) or {key: SETTINGS[key] for key in SWAPPED}
    key = draw(st.sampled_from(list(table)))
    # None says that what a network has stays.
    fits = [i for i, value in enumerate(table[key]) if kind != "swap" or value is not None]
    return kind, name, key, draw(st.sampled_from(fits))


SWAPPED = ["solver", "dt", "substeps", "gradient", "control", "max_dt"]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30)
SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)
NOT_POSITIVE = st.one_of(st.floats(max_value=0.0), st.just(NAN), st.just(INF))


def unknown(known):
    return WORDS.filter(lambda word: word.lower() not in known)


DRAWN_SETTINGS = {
    "dt": st.one_of(NOT_POSITIVE, WORDS),
    "max_dt": st.floats(max_value=0.0),
    "dropout": st.one_of(st.floats(max_value=-1e-9), st.floats(min_value=1.0)),
    **dict.fromkeys(("hidden_size", "input_size", "num_layers", "substeps"), st.integers(max_value=0)),
    "solver": unknown({info.name for info in solvers.available()}),
    "gradient": unknown({"backprop", "checkpoint", "reversible", "adjoint"}),
    "control": unknown(set(solvers.CONTROLS)),
    "missing": unknown({"error", "hold", "mask", "decay"}),
}
DRAWN_CALLS = {
    "x": SHAPES.filter(lambda s: len(s) != 3 or s[2] != 2 or s[1] == 0).map(torch.ones),
    "state": SHAPES.filter(lambda s: len(s) != 3).map(torch.ones),
    "timespans": st.one_of(
        SHAPES.filter(lambda s: s not in ((4,), (3, 4))).map(torch.ones),
        st.lists(st.floats(max_value=-0.5, width=32), min_size=4, max_size=4).map(torch.tensor),
    ),
    "lengths": st.one_of(
        st.lists(st.one_of(st.integers(max_value=-1), st.integers(5)), min_size=3, max_size=3),
        st.lists(st.integers(1, 4), max_size=6).filter(lambda n: len(n) != 3),
        st.lists(st.floats(), min_size=3, max_size=3),
    ),
}
#: Wrong values of what `solvers.integrate` is called with.
INTEGRATE = {
    "times": st.one_of(
        st.lists(st.floats(-5, 5), min_size=3, max_size=6, unique=True).filter(
            lambda t: sorted(t) != t and sorted(t) != t[::-1]
        ),
        st.sampled_from([[], [0.0, NAN], [0.0, INF], "soon", None, 3.0, torch.ones(2, 2, 2)]),
    ),
    "state0": st.one_of(
        SHAPES.filter(lambda s: len(s) != 3).map(torch.ones),
        st.sampled_from([None, 3, "x", [1.0], torch.full((2, 1, 3), NAN), torch.ones(2, 1, 3, dtype=torch.int64)]),
    ),
    "method": st.one_of(unknown({info.name for info in solvers.available()}), st.sampled_from([None, 3, [], {}])),
    "gradient": st.one_of(unknown({"backprop", "checkpoint", "reversible", "adjoint"}), st.sampled_from([None, 3])),
    "substeps": st.one_of(st.integers(max_value=0), st.sampled_from([1.5, "2", True])),
    "dt": st.one_of(NOT_POSITIVE, st.just("fast")),
    "max_dt": st.one_of(st.floats(max_value=0.0), st.just("fast")),
    "rtol": st.one_of(st.floats(max_value=0.0), st.just("fine")),
}


STEPS = {
    "x": [
        *(None, 3, "x", torch.ones(3), torch.ones(3, 3), torch.ones(3, 4, 2), torch.full((3, 2), NAN)),
        torch.ones(3, 2).double(),
    ],
    "timespan": ["t", -1.0, NAN, torch.ones(4), torch.ones(3, 2), {}, []],
}


def wrong(kind, name, key, number):
    """The wrong call that a mistake is."""
    sizes = {"input_size": 2, "hidden_size": 3}
    if kind in ("setting", "drawn setting"):
        value = SETTINGS[key][number] if kind == "setting" else number
        return lambda: neuralosc.make(name, **{**sizes, key: value})
    if kind == "integrate":
        method = "rk4" if key in ("substeps", "dt") else "native_dopri5"
        given = {"state0": torch.ones(2, 1, 3), "times": [0.0, 1.0], "method": method, key: number}
        return lambda: solvers.integrate(lambda t, x, u: -x, given.pop("state0"), given.pop("times"), **given)
    rnn = neuralosc.make(name, **sizes)
    if kind == "swap":
        value = SETTINGS[key][number]
        return lambda: rnn.with_solver(**{"solver": rnn.solver, key: value})
    if kind == "step":
        given = {"x": torch.ones(3, 2), key: STEPS[key][number]}
        return lambda: rnn.step(given.pop("x"), **given)
    given = {"x": torch.ones(3, 4, 2), key: CALLS[key][number] if kind == "call" else number}
    return lambda: rnn(given.pop("x"), **given)


def test_invalid_cases(budgets):
    budget = budgets("invalid")

    def refused(mistake):
        if budget:
            says_so(wrong(*mistake), mistake)
            budget.count += 1

    budget.spend(PROFILE(given(mistake=mistakes())(refused)))
    assert budget.count


def test_every_mistake_there_is(budgets):
    """All of the list, with one network: what the draws above combine with others."""
    for key, values in SETTINGS.items():
        for number in range(len(values)):
            says_so(wrong("setting", "cornn", key, number), ("setting", key, values[number]))
    for kind, table in (("call", CALLS), ("step", STEPS)):
        for key, values in table.items():
            for number in range(len(values)):
                says_so(wrong(kind, "cornn", key, number), (kind, key, values[number]))
