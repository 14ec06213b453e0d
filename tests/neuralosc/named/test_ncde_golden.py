"""Neural CDEs as torchcde computes them: outputs and every gradient to 1e-9 in float64.

Time is a feature of x there, the sum of the timespans, and paths are drawn over the index of a sample unless there are
times `t`, which all samples share.
"""

import itertools
import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.layers.inputs import filled
from tests.measures import relative_error

TOLERANCE = 1e-9
#: torchcde's derivative at a knot is that of the piece before it.
CONTROLS = {"linear": "linear_lagging", "rectilinear": "linear_lagging", "hermite": "cubic", "natural": "natural"}
#: What torchdiffeq calls "rk4".
SOLVERS = {"rk4": "rk4_38", "euler": "euler", "midpoint": "midpoint"}


def network(g):
    """Network and read-out of a file, from the state dict that the published model has."""
    state_dict = {
        name: g[name.replace(".", "_")]
        for layer in ("func.linear_in", "func.linears.0", "func.linear_out", "initial_network", "linear")
        for name in (f"{layer}.weight", f"{layer}.bias")
    }
    settings = {"solver": SOLVERS[g["solver"]], "control": CONTROLS[g["interpolation"]]}
    substeps = round(1 / g["step_size"]) if g["step_size"] else 1
    return neuralosc.from_reference("ncde", state_dict, **settings, substeps=substeps, max_dt=None)


def inputs(g):
    """Leaves, and x and timespans made of them."""
    leaves = {key: g[key].clone().requires_grad_() for key in ("timespans", "values", "t") if key in g}
    x = torch.cat((leaves["timespans"].cumsum(1).unsqueeze(-1), leaves["values"]), -1)
    # What passes before the first sample does not matter.
    spans = torch.cat((torch.full((1,), 7.0, dtype=x.dtype), leaves["t"].diff())) if "t" in g else None
    return leaves, x, spans


def check(g, rnn, readout, leaves, z):
    assert relative_error(z, g["z"]) <= TOLERANCE
    y = readout(z)
    assert relative_error(y, g["y"]) <= TOLERANCE
    compare_gradients(g, rnn, readout, leaves, (y * g["loss_weight"]).sum() + (z * g["loss_weight_z"]).sum())


def compare_gradients(g, rnn, readout, leaves, loss):
    field = rnn.field
    parts = {"func_linear_in": field.layers[0], "func_linears_0": field.layers[1], "func_linear_out": field.out}
    parts |= {"initial_network": field.zeta, "linear": readout}
    tensors = dict(leaves)
    for name, layer in parts.items():
        tensors |= {f"{name}_weight": layer.weight, f"{name}_bias": layer.bias}
    assert {f"grad_{name}" for name in tensors} == {key for key in g if key.startswith("grad_")}
    for name, gradient in zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True):
        assert relative_error(gradient, g[f"grad_{name}"]) <= TOLERANCE, name


@pytest.mark.parametrize("name", ["linear", "linear_euler", "hermite", "hermite_substeps", "natural", "natural_times"])
def test_as_published(name, golden):
    g = golden(f"ncde_{name}")
    rnn, readout = network(g)
    leaves, x, spans = inputs(g)
    z, end = rnn(x, timespans=spans)
    check(g, rnn, readout, leaves, z)
    torch.testing.assert_close(end[:, 0], z[:, -1])


@pytest.mark.slow  # for the compiler
@pytest.mark.parametrize("name", ["linear", "hermite_substeps", "natural_times"])
def test_as_published_by_the_compiled_loop(name, golden):
    g = golden(f"ncde_{name}")
    rnn, readout = network(g)
    leaves, x, spans = inputs(g)
    with solvers.backend("compiled"):
        check(g, rnn, readout, leaves, rnn(x, timespans=spans)[0])


@pytest.mark.parametrize("name", ["linear", "hermite", "hermite_times", "natural", "natural_times", "natural_missing"])
def test_paths_and_their_derivatives(name, golden):
    g = golden(f"ncde_{name}")
    x, spans = prepared(g, *inputs(g)[1:])
    spans = torch.ones(x.shape[1], dtype=x.dtype) if spans is None else spans
    clock, control = solvers.Clock.of_spans(spans.detach()), solvers.CONTROLS[CONTROLS[g["interpolation"]]]
    knots = torch.tensor(clock.starts[1:])
    paths, slopes = (of(x.unbind(1), clock) for of in (control.paths, control.derivatives))
    for i, t in enumerate((g["path_times"] - (g["t"][0] if "t" in g else 0) + knots[0]).tolist()):
        piece = min(max(1, int((knots < t - 1e-12).sum())), x.shape[1] - 1)
        assert relative_error(paths[piece](t), g["path"][:, i]) <= TOLERANCE
        at_end = piece > 1 and abs(t - clock.starts[piece]) < 1e-12
        assert at_end or relative_error(slopes[piece](t), g["path_derivative"][:, i]) <= TOLERANCE


def prepared(g, x, spans):
    """x with missing values filled as the path of a file wants it, and knots added to it."""
    if g["interpolation"] == "rectilinear":
        return rectilinear(filled(x, "hold")), spans
    if not x.isnan().any():
        return x, spans
    times = torch.arange(float(x.shape[1])).double() if spans is None else spans.cumsum(0)
    return along_observed(x, times, "natural" if g["interpolation"] == "natural" else "linear"), spans


def along_observed(x, times, control):
    """Missing values on the path through those that were observed, feature by feature; constant beyond them.

    A natural spline does not change when points of it are made knots.
    """
    columns = []
    for series in x.transpose(1, 2).reshape(-1, x.shape[1]):
        seen = (~series.isnan()).nonzero().squeeze(-1)
        if not len(seen):
            columns.append(torch.zeros_like(series))
            continue
        inner = torch.arange(len(series)).clamp(int(seen[0]), int(seen[-1]))
        if control == "natural":
            # What is missing at the ends is filled first.
            series = torch.where(torch.arange(len(series)) == inner, series, series[inner])
            seen, inner = (~series.isnan()).nonzero().squeeze(-1), torch.arange(len(series))
        knots = times[seen]
        spans = torch.cat((torch.ones_like(knots[:1]), knots.diff()))
        paths = solvers.CONTROLS[control].paths([v.view(1, 1) for v in series[seen]], clock_of(knots - spans, spans))
        pieces = [max(1, int((seen < i).sum())) if len(seen) > 1 else 0 for i in inner.tolist()]
        drawn = [paths[piece](times[i]).squeeze() for piece, i in zip(pieces, inner.tolist(), strict=True)]
        columns.append(torch.stack(drawn))
    return torch.stack(columns).view(x.shape[0], x.shape[2], -1).transpose(1, 2)


def clock_of(starts, spans):
    return solvers.Clock(starts.unbind(0), spans.unbind(0))


def rectilinear(x):
    """Knots at which time has moved and the values have not, and those at which these have followed."""
    moved = torch.cat((x[:, 1:, :1], x[:, :-1, 1:]), -1)
    return torch.cat((x[:, :1], torch.stack((moved, x[:, 1:]), 2).flatten(1, 2)), 1)


@pytest.mark.parametrize("name", ["linear_midpoint_missing", "hermite_times", "natural_missing", "rectilinear"])
def test_as_published_with_missing_values_filled_beforehand(name, golden):
    g = golden(f"ncde_{name}")
    rnn, readout = network(g)
    leaves, x, spans = inputs(g)
    x, spans = prepared(g, x, spans)
    # Where nothing was observed torchcde gives no gradient, and NaN is no number to give one of.
    check(g, rnn, readout, leaves, rnn(x, timespans=spans)[0])


class Joined(neuralosc.VectorField):
    """A field of a user's own: the path itself, and a GRU as an ODE in the time that is the first feature."""

    def __init__(self, input_size, hidden_size, weights):
        super().__init__(input_size, input_size + hidden_size)
        self.weights = torch.nn.ParameterDict(weights)

    @property
    def structure(self):
        return frozenset({"controlled"})

    def gate(self, name, x, h):
        w = self.weights
        return torch.nn.functional.linear(x, w[f"W_{name}_weight"]) + torch.nn.functional.linear(
            h, w[f"U_{name}_weight"], w[f"U_{name}_bias"]
        )

    def forward(self, t, state, du):
        x, h = state[..., 0, : self.input_size], state[..., 0, self.input_size :].clamp(-1, 1)
        r, u = torch.sigmoid(self.gate("r", x, h)), torch.sigmoid(self.gate("z", x, h))
        g = torch.tanh(self.gate("h", x, r * h))
        return torch.cat((du, (1 - u) * (g - h) * du[..., :1]), -1).unsqueeze(-2)


def test_a_field_of_ones_own(golden):
    g = golden("ncde_gru_ode")
    weights = {key.removeprefix("model_"): value.clone() for key, value in g.items() if key.startswith("model_")}
    field = Joined(g["input_channels"], g["hidden_size"], weights)
    rnn = neuralosc.ContinuousRNN(field, "rk4_38", control="cubic", substeps=round(1 / g["step_size"]))
    x, z0 = g["x"].clone().requires_grad_(), g["z0"].clone().requires_grad_()
    y, _ = rnn(x, z0.unsqueeze(1))
    assert relative_error(y, g["y"]) <= TOLERANCE
    wanted = {"x": x, "z0": z0, **{f"model_{key}": value for key, value in field.weights.items()}}
    gradients = torch.autograd.grad((y * g["loss_weight"]).sum(), list(wanted.values()))
    for name, gradient in zip(wanted, gradients, strict=True):
        assert relative_error(gradient, g[f"grad_{name}"]) <= TOLERANCE, name


def spline_slopes(x, times):
    """Where natural splines through what was observed start, and their derivative, at a knot that before it.

    Of missing entries the first and the last alone are filled, with the first and the last value that was observed.
    """
    pieces, starts = [], []
    for series in x.transpose(1, 2).reshape(-1, x.shape[1]):
        seen = (~series.isnan()).nonzero().squeeze(-1)
        ends = torch.tensor([0, len(series) - 1])
        values = series.index_put((ends,), series[seen[[0, -1]]])
        seen = (~values.isnan()).nonzero().squeeze(-1)
        knots = times[seen]
        spans = torch.cat((torch.ones_like(knots[:1]), knots.diff()))
        samples = [value.view(1, 1) for value in values[seen]]
        starts.append(values[0])
        pieces.append((knots, solvers.CONTROLS["natural"].derivatives(samples, clock_of(knots - spans, spans))))

    def slopes(t):
        places = [(paths, max(1, int((knots < t).sum()))) for knots, paths in pieces]
        return torch.cat([paths[place](torch.as_tensor(t, dtype=x.dtype)).view(1) for paths, place in places]).view(
            len(x), -1
        )

    return torch.stack(starts).view(len(x), -1), slopes


def test_the_published_model_class(golden):
    """Its steps are equal, whatever the samples, across knots; between its points it draws a line."""
    g = golden("ncde_metamodel")
    rnn, readout = network({**g, "interpolation": "natural", "step_size": 0})
    x, times, rule = g["x"].clone().requires_grad_(), g["times"], solvers.get(SOLVERS[g["solver"]])
    (first, slopes), h = spline_slopes(x, times), float(times.diff().min())
    start, end = float(times[0]), float(times[-1])
    assert abs(h - g["step_size"]) < 1e-15
    points = [start + i * h for i in range(math.ceil((end - start) / h))] + [end]
    z = [rnn.field.initial_state(first)]
    for t, after in itertools.pairwise(points):
        z.append(rule.step(rnn.field, t, after - t, z[-1], slopes))
    z = torch.stack(z, 1)[:, :, 0]
    grid = torch.tensor(points, dtype=times.dtype)
    places = torch.searchsorted(grid, times).clamp_min(1)
    share = ((times - grid[places - 1]) / (grid[places] - grid[places - 1])).unsqueeze(-1)
    stream = readout(z[:, places - 1] + share * (z[:, places] - z[:, places - 1]))
    y = stream[torch.arange(len(x)), g["final_index"]]
    assert max(relative_error(stream, g["stream"]), relative_error(y, g["y"])) <= TOLERANCE
    loss = (y * g["loss_weight"]).sum() + (stream * g["loss_weight_stream"]).sum()
    compare_gradients(g, rnn, readout, {"x": x}, loss)
