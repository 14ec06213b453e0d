"""Linear fields solved for all times at once, against the plain path: values, every gradient, and what is refused."""

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from neuralosc.field import LinearDrive
from solvers.compiled.cpp import compiler
from solvers.errors import InputError, PairingError
from solvers.numerics.linear import DenseOperator, DiagonalOperator
from solvers.parallel import linear as parallel
from solvers.parallel import scan
from tests.measures import assert_agree
from tests.solvers.compiled.paths import inputs

F64 = torch.float64
#: Solvers that choose their steps, or draw noise, have no step of a known size.
STEPWISE = [
    info.name
    for info in solvers.available()
    if not info.adaptive and info.family not in ("stochastic", "relaxation", "closed_form")
]
FIELDS = {
    "undamped": lambda: neuralosc.LinearOscillator(2, 4, paired=True),
    "damped": lambda: neuralosc.LinearOscillator(2, 4, damped=True),
}


class Relaxation(LinearDrive, neuralosc.Semilinear):
    """A linear field of one component with an input that it bends: dh = -r h + tanh(u), with a bias in time."""

    def __init__(self, input_size=2, hidden_size=4):
        super().__init__(input_size, hidden_size)
        self.V, self.r = nn.Linear(input_size, hidden_size), nn.Parameter(torch.rand(hidden_size))

    @property
    def structure(self):
        return super().structure | {"linear"}

    def operator(self, terms=None):
        return DiagonalOperator(-self.r)

    def nonlinear(self, t, state, u, terms=None):
        return (torch.tanh(u) + 0.3 + 0.1 * t).unsqueeze(-2).expand_as(state)

    def forward(self, t, state, u):
        return self.linear(state) + self.nonlinear(t, state, u)


class Coupled(Relaxation):
    """The same with channels that see each other."""

    def operator(self, terms=None):
        return DenseOperator(-torch.diag(self.r) + 0.1)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    """So short that a few samples already are chunks of chunks with some left over."""
    monkeypatch.setitem(scan.CHUNK, "cpu", 2)


def gradients(rnn, way, x, state, spans, lengths=None):
    leaves = [t for t in (x, state, spans) if t is not None and t.requires_grad] + list(rnn.parameters())
    with solvers.backend(way):
        solution = rnn.solve(x, state, timespans=spans, lengths=lengths)
    assert {t.record.path for t in solution.trajectories} == {way}
    torch.manual_seed(3)
    tensors = (solution.states, solution.output, solution.state)
    loss = sum((torch.randn(t.shape, dtype=t.dtype) * t).sum() for t in tensors)
    return [*tensors, *torch.autograd.grad(loss, leaves, allow_unused=True)], solution.evaluations


def agree(rnn, way, x, state, spans, lengths=None, bound=1e-9):
    (plain, calls), (fast, same) = (gradients(rnn, name, x, state, spans, lengths) for name in ("plain", way))
    assert calls == same
    assert_agree(fast, plain, bound)


def fits(solver, field):
    return solver in solvers.compatible(field)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("solver", STEPWISE)
def test_every_solver(solver, name):
    field = FIELDS[name]().double()
    if not fits(solver, field):
        pytest.skip("the field lacks what the solver needs")
    rnn = ContinuousRNN(field, solver, 0.3)
    x, state, spans = inputs(rnn, batch=2, time=11)
    agree(rnn, "scan", x, state, spans)
    if name == "damped":
        for way in parallel.WAYS:
            agree(rnn, way, x, state, None)


@pytest.mark.parametrize("solver", ["euler", "rk4", "exponential_euler", "imex_euler"])
def test_one_component_and_a_bent_input(solver):
    rnn = ContinuousRNN(Relaxation().double(), solver, 0.3, control="linear")
    x, state, spans = inputs(rnn, batch=2, time=11)
    agree(rnn, "scan", x, state, spans)
    agree(rnn, "fft", x, state, None)


@pytest.mark.parametrize("control", list(solvers.CONTROLS))
@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("clock", ["uniform", "numbers", "shared", "sample"])
def test_clocks_controls_and_substeps(clock, substeps, control):
    rnn = ContinuousRNN(FIELDS["damped"]().double(), "rk4", 0.3, substeps=substeps, control=control)
    x, state, spans = inputs(rnn, batch=2, time=11)
    chosen = {"uniform": None, "numbers": spans.detach()[0], "shared": spans[0].detach().requires_grad_()}
    timespans = chosen.get(clock, spans)
    for way in parallel.WAYS if clock == "uniform" else ("scan",):
        agree(rnn, way, x, state, timespans)


@pytest.mark.parametrize(("batch", "time", "size"), [(1, 1, 64), (1, 7, 64), (3, 5, 1), (2, 300, 16), (2, 193, 64)])
def test_shapes_and_sizes_of_chunks(batch, time, size, monkeypatch):
    monkeypatch.setitem(scan.CHUNK, "cpu", max(size, 2))
    rnn = ContinuousRNN(FIELDS["damped"]().double(), "semi_implicit_euler", 0.3)
    x, state, spans = inputs(rnn, batch, time)
    agree(rnn, "scan", x, state, spans)
    agree(rnn, "scan", x, state, None)
    agree(rnn, "fft", x, state, None)


def test_layers_lengths_and_longest_steps():
    fields = [neuralosc.LinearOscillator(2, 4).double(), neuralosc.LinearOscillator(4, 4, damped=True).double()]
    rnn = ContinuousRNN(fields, "imex_euler", [0.3, 0.5], max_dt=0.5)
    x, state, spans = inputs(rnn, batch=3, time=9)
    start = torch.randn(2, *state.shape, dtype=F64, requires_grad=True)
    agree(rnn, "scan", x, start, spans, lengths=[9, 1, 5])


@pytest.mark.parametrize("part", ["output", "state"])
@pytest.mark.parametrize("way", parallel.WAYS)
def test_only_what_is_used_flows_back(part, way, relative_error):
    rnn = ContinuousRNN(FIELDS["damped"]().double(), "imex_euler", 0.3)
    x, by_backend = torch.randn(3, 9, 2, dtype=F64), []
    for backend in ("plain", way):
        with solvers.backend(backend):
            output, state = rnn(x)
        loss = output[:, -1].square().sum() if part == "output" else state.square().sum()
        by_backend.append(torch.autograd.grad(loss, rnn.parameters()))
    assert all(relative_error(fast, plain) < 1e-12 for plain, fast in zip(*by_backend, strict=True))


@pytest.mark.parametrize("way", parallel.WAYS)
def test_a_gradient_of_the_gradient(way, relative_error):
    rnn = ContinuousRNN(FIELDS["damped"]().double(), "imex_euler", 0.3, substeps=2)
    x, state, spans = inputs(rnn, batch=2, time=9)
    leaves = [x, state, *rnn.parameters(), *([spans] if way == "scan" else [])]
    by_backend = []
    for backend in ("plain", way):
        with solvers.backend(backend):
            output, end = rnn(x, state, timespans=spans if way == "scan" else None)
        first = torch.autograd.grad(output.square().sum() + end.sum(), leaves, create_graph=True)
        by_backend.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    assert all(relative_error(fast, plain) < 1e-11 for plain, fast in zip(*by_backend, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", parallel.WAYS)
def test_without_gradients(mode, way, relative_error):
    rnn = ContinuousRNN(FIELDS["undamped"](), "semi_implicit_euler", 0.3)
    x = torch.randn(3, 9, 2)
    with mode():
        outputs = []
        for backend in ("plain", way):
            with solvers.backend(backend):
                outputs.append(rnn(x)[0])
    assert not outputs[1].requires_grad and relative_error(outputs[1], outputs[0]) < 1e-6


def test_single_precision_over_a_thousand_steps(monkeypatch):
    monkeypatch.setitem(scan.CHUNK, "cpu", 16)
    rnn = ContinuousRNN(FIELDS["damped"](), "imex_euler", 0.3, control="linear")
    x, state, spans = inputs(rnn, batch=2, time=1000, dtype=torch.float32)
    for way in parallel.WAYS:
        agree(rnn, way, x, state, None, bound=2e-5)
    agree(rnn, "scan", x, state, spans.detach()[0], bound=2e-5)


def test_taken_by_itself_where_there_is_no_compiler(monkeypatch):
    rnn = ContinuousRNN(FIELDS["damped"]().double(), "imex_euler", 0.3)
    x = torch.randn(2, parallel.WORTHWHILE["cpu"], 2, dtype=F64)
    assert rnn.solve(x).trajectories[0].record.path == "compiled"
    monkeypatch.setenv(compiler.COMPILER, "no-such-compiler")
    record = rnn.solve(x).trajectories[0].record
    assert record.path == "scan" and "no-such-compiler" in record.reason
    assert rnn.solve(x[:, :100]).trajectories[0].record.path == "torch"
    assert rnn.solve(x[:1].expand(parallel.WIDEST, -1, 2)).trajectories[0].record.path == "torch"
    nonlinear = ContinuousRNN(neuralosc.Oscillator(2, 4).double(), "imex_euler", 0.3)
    assert nonlinear.solve(x).trajectories[0].record.path == "torch"
    assert ContinuousRNN(Coupled().double(), "rk4", 0.3).solve(x).trajectories[0].record.path != "scan"


def test_taken_by_itself_where_a_step_cannot_be_compiled():
    """The step of an implicit method holds an iteration."""
    rnn = ContinuousRNN(FIELDS["damped"]().double(), "radau_iia3", 0.3)
    x = torch.randn(2, parallel.WORTHWHILE["cpu"], 2, dtype=F64)
    assert rnn.solve(x).trajectories[0].record.path == "scan"
    assert rnn.solve(x[:, :100]).trajectories[0].record.path == "plain"
    assert rnn.with_solver("radau_iia3", gradient="checkpoint").solve(x).trajectories[0].record.path == "plain"
    plain = ContinuousRNN(neuralosc.Oscillator(2, 4).double(), "radau_iia3", 0.3)
    assert plain.solve(x).trajectories[0].record.path == "plain"


class Liar(Relaxation):
    """Declared linear, and is not."""

    def forward(self, t, state, u):
        return super().forward(t, state, u) - 0.1 * state**3


@pytest.mark.parametrize(
    ("field", "solver", "settings", "words"),
    [
        (lambda: neuralosc.Oscillator(2, 4), "euler", {}, ("linear",)),
        (Coupled, "euler", {}, ("DenseOperator", "couples")),
        (Liar, "euler", {}, ("differ",)),
        (FIELDS["damped"], "dopri5", {}, ("dopri5", "chooses")),
        (FIELDS["damped"], "euler", {"gradient": "checkpoint"}, ("checkpoint",)),
    ],
)
def test_what_cannot_be_solved_at_once_is_refused(field, solver, settings, words, one_line):
    rnn = ContinuousRNN(field().double(), solver, 0.3, **settings)
    x = torch.randn(2, 5, 2, dtype=F64)
    for _ in range(2):
        with solvers.backend("scan"), pytest.raises(PairingError) as caught:
            rnn(x)
        one_line(caught, "backend 'scan'", *words)


def test_an_fft_wants_equal_steps_and_bounded_powers(one_line):
    rnn = ContinuousRNN(FIELDS["damped"]().double(), "euler", 0.3)
    x = torch.randn(2, 400, 2, dtype=F64)
    with solvers.backend("fft"), pytest.raises(PairingError) as caught:
        rnn(x, timespans=torch.rand(400, dtype=F64))
    one_line(caught, "'scan'")
    with torch.no_grad():
        rnn.field.A.fill_(30.0)
    with solvers.backend("fft"), pytest.raises(PairingError) as caught:
        rnn(x)
    one_line(caught, "powers")


def test_noise_is_refused_and_noisy_fields_are_solved_without(one_line):
    noisy = neuralosc.Noisy(FIELDS["damped"](), 0.1).double()
    rnn = ContinuousRNN(noisy, "euler_maruyama", 0.3)
    x, state, spans = inputs(rnn, batch=2, time=9)
    with solvers.backend("scan"), pytest.raises(PairingError) as caught:
        rnn(x)
    one_line(caught, "noise")
    agree(rnn.with_solver("rk4"), "scan", x, state, spans)


def test_half_precision_and_autocast_are_refused(one_line):
    x = torch.randn(2, 5, 2)
    rnn = ContinuousRNN(FIELDS["damped"](), "euler", 0.3)
    with solvers.backend("scan"), torch.autocast("cpu", torch.bfloat16), pytest.raises(PairingError) as caught:
        rnn(x)
    one_line(caught, "precision")
    with solvers.backend("scan"), pytest.raises(PairingError) as caught:
        rnn.bfloat16()(x.bfloat16())
    one_line(caught, "precision")


def test_explained(capsys):
    rnn = ContinuousRNN(FIELDS["damped"](), "imex_euler", 0.3)
    with solvers.backend("scan"):
        (layer,) = rnn.explain(torch.randn(2, 20, 2)).layers
    assert layer.path == "scan" and "scan" in capsys.readouterr().out and layer.saved > 0


def test_an_unknown_backend_names_the_ways(one_line):
    with pytest.raises(InputError) as caught:
        solvers.set_backend("blelloch")
    one_line(caught, "scan", "fft")
