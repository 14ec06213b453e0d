"""Every row of the tables of operations in a step, in each kind of generated code, against the plain path.

The examples must name exactly the functions of torch that the tables know: a new row without an example fails.
"""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import neuralosc
import solvers
from solvers.compiled.step.ops import OPERATIONS, POINTWISE
from solvers.compiled.step.reductions import REDUCTIONS
from tests.measures import assert_agree

TRITON = importlib.util.find_spec("triton") is not None

F64 = torch.float64

#: For each aten name some expressions in z, whose channels are normal numbers, and v, a positive row of parameters.
EXAMPLES = {
    "add": [lambda z, v: z + v, lambda z, v: torch.add(z, v, alpha=0.3)],
    "sub": [lambda z, v: z - v, lambda z, v: torch.sub(v, z, alpha=0.3), lambda z, v: 1 - z],
    "mul": [lambda z, v: z * v * z],
    "div": [lambda z, v: z / (v + z * z), lambda z, v: 1 / (2 + z * z)],
    "neg": [lambda z, v: -z],
    "abs": [lambda z, v: z.abs()],
    "sqrt": [lambda z, v: (v + z * z).sqrt()],
    "rsqrt": [lambda z, v: (v + z * z).rsqrt()],
    "square": [lambda z, v: z.square()],
    "reciprocal": [lambda z, v: (v + z.square()).reciprocal()],
    "sign": [lambda z, v: z.sign() * v],
    "floor": [lambda z, v: z.floor() * v],
    "tanh": [lambda z, v: torch.tanh(z)],
    "sigmoid": [lambda z, v: torch.sigmoid(z)],
    "exp": [lambda z, v: torch.exp(z)],
    "expm1": [lambda z, v: torch.expm1(z)],
    "log": [lambda z, v: torch.log(v + z * z)],
    "log1p": [lambda z, v: torch.log1p(z * z)],
    "sin": [lambda z, v: torch.sin(z)],
    "cos": [lambda z, v: torch.cos(z)],
    "tan": [lambda z, v: torch.tan(0.2 * z)],
    "atan": [lambda z, v: torch.atan(z), lambda z, v: torch.atan(20 * z) + torch.atan(0.01 * z)],
    "erf": [lambda z, v: torch.erf(z)],
    "pow": [
        lambda z, v: (0.3 * z) ** 3 + (0.2 * z) ** 5,
        lambda z, v: (v + z * z) ** -0.7,
        lambda z, v: (v + z * z) ** -2,
    ],
    "maximum": [lambda z, v: torch.maximum(z, v), lambda z, v: torch.maximum(z, z)],
    "minimum": [lambda z, v: torch.minimum(z, v)],
    "where": [lambda z, v: torch.where(z > v, z, 0.5 * v), lambda z, v: torch.where(z > 0, 0.25, z)],
    "lt": [lambda z, v: (z < v) * z],
    "le": [lambda z, v: (z <= 0.1) * z],
    "gt": [lambda z, v: (z > v) * z],
    "ge": [lambda z, v: (z >= 0.1) * z],
    "eq": [lambda z, v: (z.sign() == 1) * z],
    "ne": [lambda z, v: (z.sign() != 1) * z],
    "logical_and": [lambda z, v: torch.where(torch.logical_and(z > 0, z < v), z, v)],
    "bitwise_and": [lambda z, v: torch.where((z > 0) & (z < v), z, v)],
    "logical_or": [lambda z, v: torch.where(torch.logical_or(z < 0, z > v), z, v)],
    "bitwise_or": [lambda z, v: torch.where((z < 0) | (z > v), z, v)],
    "logical_not": [lambda z, v: torch.where(torch.logical_not(z > 0), z, v)],
    "bitwise_not": [lambda z, v: torch.where(~(z > 0), z, v)],
    "relu": [lambda z, v: torch.relu(z)],
    "leaky_relu": [lambda z, v: F.leaky_relu(z), lambda z, v: F.leaky_relu(z, 0.2)],
    "hardswish": [lambda z, v: F.hardswish(4 * z)],
    "sinc": [lambda z, v: torch.sinc(z)],
    "hardtanh": [lambda z, v: F.hardtanh(z), lambda z, v: F.hardtanh(z, -0.2, 0.6), lambda z, v: F.relu6(5 * z)],
    "elu": [lambda z, v: F.elu(z), lambda z, v: F.elu(300 * z, 0.7), lambda z, v: F.selu(z)],
    "celu": [lambda z, v: F.celu(z), lambda z, v: F.celu(z, 2)],
    "gelu": [lambda z, v: F.gelu(z), lambda z, v: F.gelu(z, approximate="tanh")],
    "silu": [lambda z, v: F.silu(z)],
    # Far beyond where exp overflows its gradient is 1, not NaN.
    "softplus": [lambda z, v: F.softplus(z), lambda z, v: F.softplus(z, 2, 0.5), lambda z, v: F.softplus(2000 * z)],
    "sum": [lambda z, v: z * (z * v).sum(-1, keepdim=True), lambda z, v: v * v.sum() * z],
    "mean": [lambda z, v: z * z.mean(-1, keepdim=True)],
    "var": [lambda z, v: z * z.var(-1, keepdim=True)],
    "std": [lambda z, v: z / (1 + z.std(-1, keepdim=True)), lambda z, v: z * z.std(-1, keepdim=True, correction=0)],
    "amax": [
        lambda z, v: z - z.amax(-1, keepdim=True),
        # Where it is reached by several channels.
        lambda z, v: z * torch.relu(z - 0.1).amax(-1, keepdim=True) + z.clamp(max=0.2).amax(-1, keepdim=True),
        lambda z, v: z * v.amax(-1),
        lambda z, v: z * torch.cat((z.sin(), v * z), -1).amax(-1, keepdim=True),
    ],
    "amin": [lambda z, v: z * z.amin(-1, keepdim=True)],
    "linalg_vector_norm": [lambda z, v: z / (1 + z.norm(dim=-1, keepdim=True)), lambda z, v: F.normalize(z, dim=-1)],
    "logsumexp": [
        lambda z, v: z * z.logsumexp(-1, keepdim=True),
        lambda z, v: z * (1000 * z).logsumexp(-1)[:, None] / 1000,
    ],
    "_softmax": [lambda z, v: z.softmax(-1), lambda z, v: (1000 * z).softmax(-1) * v],
    "_log_softmax": [lambda z, v: z.log_softmax(-1)],
    "native_layer_norm": [
        lambda z, v: F.layer_norm(z, z.shape[-1:]),
        lambda z, v: F.layer_norm(z, z.shape[-1:], v, 2 * v, eps=0.1),
    ],
}
EACH = [(name, i) for name, examples in EXAMPLES.items() for i in range(len(examples))]


class Step(neuralosc.VectorField):
    """A slope with one expression in it."""

    def __init__(self, expression, hidden_size):
        super().__init__(2, hidden_size)
        self.expression = expression
        self.V, self.W = nn.Linear(2, hidden_size), nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.v = nn.Parameter(torch.rand(hidden_size) + 0.3)

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return (self.expression(h @ self.W + u, self.v) - h).unsqueeze(-2)


class Driven(neuralosc.VectorField):
    """A slope that is a function of the input."""

    def __init__(self, function):
        super().__init__(3, 3)
        self.function, self.scale = function, nn.Parameter(torch.ones(3))

    def drive(self, x):
        return x * self.scale

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return (self.function(u) - h).unsqueeze(-2)


def solve(rnn, path, x):
    torch.manual_seed(1)
    with solvers.backend(path):
        solution = rnn.solve(x)
    record = solution.trajectories[0].record
    assert record.path == path
    loss = (solution.output * torch.randn(solution.output.shape, dtype=F64)).sum()
    return [solution.output, *torch.autograd.grad(loss, [x, *rnn.parameters()], allow_unused=True)]


def agree(expression, path, hidden, solver="euler", time=6):
    torch.manual_seed(0)
    rnn = neuralosc.ContinuousRNN(Step(expression, hidden), solver, 0.1).double()
    x = torch.randn(4, time, 2, dtype=F64, requires_grad=True)
    assert_agree(solve(rnn, path, x), solve(rnn, "plain", x), 1e-9)


def test_every_row_of_the_tables_has_an_example():
    assert set(EXAMPLES) == set(POINTWISE) | set(REDUCTIONS)


@pytest.mark.parametrize("path", ["compiled", "torch"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_step_is_that_of_the_plain_path(name, path):
    """All examples in one step, which is compiled once."""
    examples = EXAMPLES[name]
    agree(lambda z, v: sum(example(z, v) for example in examples) / len(examples), path, 5)


@pytest.mark.parametrize("path", ["compiled", "torch"])
@pytest.mark.parametrize("name", ["gelu", "amax", "_softmax", "native_layer_norm"])
def test_of_one_channel_and_in_a_method_of_two_stages(name, path):
    agree(EXAMPLES[name][0], path, 1)
    agree(EXAMPLES[name][0], path, 6, "midpoint")


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(("name", "i"), [pytest.param(*each, marks=pytest.mark.slow) for each in EACH])
def test_in_a_persistent_kernel(name, i):
    agree(EXAMPLES[name][i], "triton", 5, time=3)


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(("name", "i"), [each for each in EACH if each[0] in {*REDUCTIONS, "gelu", "atan", "elu"}])
def test_in_kernels_of_one_level_each(name, i, monkeypatch):
    from solvers.compiled.triton import kernel

    monkeypatch.setattr(kernel, "CACHED", -1)
    agree(EXAMPLES[name][i], "triton", 5, time=3)


@pytest.mark.parametrize(
    "expression",
    [
        lambda z, v: (z.unsqueeze(-1) * z.unsqueeze(-2)).sum(-1),
        lambda z, v: torch.tanh(z.unsqueeze(-1) - z.unsqueeze(-2)).mean(-1),
        lambda z, v: (z.unsqueeze(-1) * v).sum(-1),
    ],
)
def test_an_outer_product_of_channels_is_refused_for_what_it_is(expression):
    rnn = neuralosc.ContinuousRNN(Step(expression, 5), "euler", 0.1).double()
    with pytest.raises(solvers.PairingError, match="channels meet channels along another axis, as in an outer product"):
        solve(rnn, "compiled", torch.randn(3, 4, 2, dtype=F64, requires_grad=True))


@pytest.mark.parametrize("path", ["compiled", "torch"])
def test_a_maximum_does_not_drop_nan(path):
    """Of logarithms of negative numbers, in the last sample alone: it is the one that is named."""
    torch.manual_seed(0)
    field = Step(lambda z, v: z.log().amax(-1, keepdim=True) + 0 * v, 3)
    rnn = neuralosc.ContinuousRNN(field, "euler", 0.1).double()
    with torch.no_grad():
        rnn.field.V.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        rnn.field.V.bias.zero_()
        rnn.field.W.zero_()
    x = torch.rand(3, 2, 2, dtype=F64) + 0.5
    with solvers.backend(path):
        assert rnn.solve(x).trajectories[0].record.path == path
        x[2, 1, 1] = -1.0
        with pytest.raises(solvers.NonFiniteStateError, match="at sample 2, step 1"):
            rnn.solve(x)


#: Functions whose gradient is delicate at a kink, at zero, far out, or among equal values.
DELICATE = {
    **{f.__name__: f for f in (F.elu, F.selu, F.mish, F.softplus, F.logsigmoid, F.hardswish, F.silu)},
    **{f.__name__: f for f in (F.gelu, F.relu, F.relu6, F.leaky_relu, F.hardtanh, F.softsign, F.tanhshrink)},
    **{f.__name__: f for f in (F.softshrink, F.hardshrink, torch.sinc, torch.atan, torch.tanh, torch.sigmoid)},
    "celu": lambda z: F.celu(z, 2.0),
    "gelu by tanh": lambda z: F.gelu(z, approximate="tanh"),
    "logaddexp": lambda z: torch.logaddexp(z, -z),
    "clamp": lambda z: z.clamp(-50, 50),
    "softmax": lambda z: z.softmax(-1),
    "log_softmax": lambda z: z.log_softmax(-1),
    "logsumexp": lambda z: z * z.logsumexp(-1, keepdim=True),
    "layer_norm": lambda z: F.layer_norm(z, z.shape[-1:]),
    "norm": lambda z: z * z.norm(dim=-1, keepdim=True),
    "amax": lambda z: z * z.amax(-1, keepdim=True),
}


def agree_at(places, function):
    """Where the input takes these values after the first few steps, which alone are compared before the first use."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(len(places), 3, 3, dtype=F64), places[:, None]], 1).requires_grad_()
    rnn = neuralosc.ContinuousRNN(Driven(function), "euler", 0.1).double()
    ours, plain = solve(rnn, "torch", x), solve(rnn, "plain", x)
    for one, other in zip(ours[:2], plain[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DELICATE)
def test_delicate_places(name):
    places = torch.tensor([0.0, 1e-3, 0.5, 1, 3, 6, 20, 50, 95, 800, 1e5], dtype=F64)
    places = torch.cat([places, -places])
    shares = ((1, 1), (0.5, -1), (0, 0))
    agree_at(torch.cat([torch.stack([places, a * places, b * places], -1) for a, b in shares]), DELICATE[name])


def test_the_deviation_of_channels_that_are_all_zero_has_a_gradient():
    agree_at(torch.zeros(2, 3, dtype=F64), lambda z: z + z.std(-1, keepdim=True))


def test_every_operation_is_written_in_all_languages():
    for name, row in OPERATIONS.items():
        assert row.cpp and row.torch and (row.triton or name == "pow"), name
        assert (row.derivative is None) == row.predicate, name
