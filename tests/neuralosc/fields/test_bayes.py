"""GRU-ODE-Bayes: the published field, jump and whole model, its losses, and what it promises."""

import pytest
import torch
from torch import nn

import neuralosc
from neuralosc import ContinuousRNN, InputError
from neuralosc.named.gruodebayes import divergence, negative_log_likelihood
from tests.measures import bit_by_bit
from tests.neuralosc.state_dicts import state_dict

F64 = torch.float64
KINDS = ("weight", "bias")
NAN = float("nan")


def take(parameter, leaf):
    """A leaf of the golden values in the place of a parameter, for whose gradient it can be asked."""
    owner, name = parameter
    owner._parameters.pop(name)
    setattr(owner, name, leaf)


def leaves(g):
    """The golden values that have a gradient."""
    return {key[5:]: g[key[5:]].requires_grad_() for key in g if key.startswith("grad_")}


def check(g, found, inputs, relative_error):
    """Every value, and the gradient of the sum of all that have a weight."""
    loss = 0.0
    for key, value in found.items():
        assert relative_error(value, torch.as_tensor(g[key], dtype=F64)) <= 1e-9, key
        loss = loss + (value * g["loss_weight" if key == "y" else f"loss_weight_{key}"]).sum()
    assert {f"grad_{key}" for key in inputs} == {key for key in g if key.startswith("grad_")}
    for key, gradient in zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True):
        assert relative_error(gradient, g[f"grad_{key}"]) <= 1e-9, key


def set_motion(field, values):
    """The published weights of the motion between the samples."""
    named = {key: value for key, value in values.items() if key.startswith("lin_")}
    full = "lin_hr_weight" in named
    recurrent = [named["lin_hr_weight"]] if full else []
    take((field.R, "weight"), torch.cat([*recurrent, named["lin_hz_weight"]]))
    take((field.U, "weight"), named["lin_hh_weight" if full else "lin_hn_weight"])
    if field.P is not None:
        for part in ("weight", "bias"):
            maps = [named[f"lin_x_{part}"]] if full else [named[f"lin_xz_{part}"], named[f"lin_xn_{part}"]]
            take((field.P, part), torch.cat(maps))


class Driven(neuralosc.VectorField):
    """The motion of a field, driven by an input in the place of what it expects."""

    def __init__(self, field):
        super().__init__(6 if field.P is None else field.P.in_features, field.hidden_size)
        self.motion = field

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        rate, target = self.motion.towards(h, u)
        return (rate * (target - h)).unsqueeze(-2)


@pytest.mark.parametrize("name", ["full", "minimal", "full_autonomous", "minimal_autonomous"])
def test_the_published_motion(name, golden, relative_error):
    g = golden(f"gruode_{name}")
    full, impute = name.startswith("full"), "autonomous" not in name
    field, inputs = neuralosc.GRUBayes(9, 7, full=full, impute=impute).double(), leaves(g)
    set_motion(field, inputs)
    x = inputs.get("x", torch.zeros(3, 13, 6, dtype=F64))
    rnn = ContinuousRNN(Driven(field), "euler", substeps=g["substeps"], max_dt=None)
    output, _ = rnn(x, inputs["h0"].unsqueeze(1), inputs["timespans"])
    slope = rnn.field(0.0, inputs["h0"].unsqueeze(1), x[:, 0])[:, 0]
    check(g, {"y": output, "field": slope}, inputs, relative_error)


def test_the_published_motion_of_another_code(golden, relative_error):
    g = golden("gruode_unfolds")
    field, inputs = neuralosc.GRUBayes(3, 7).double(), leaves(g)
    reset, update, candidate = (inputs[f"{gate}_kernel"] for gate in ("reset_gate", "update_gate", "detect_signal"))
    biases = [inputs[f"{gate}_bias"] for gate in ("reset_gate", "update_gate", "detect_signal")]
    field.P = nn.Linear(3, 21)
    take((field.P, "weight"), torch.cat((reset[:3], update[:3], candidate[:3]), 1).T)
    take((field.P, "bias"), torch.cat(biases))
    take((field.R, "weight"), torch.cat((reset[3:], update[3:]), 1).T)
    take((field.U, "weight"), candidate[3:].T)
    rnn = ContinuousRNN(Driven(field), "euler", substeps=g["unfolds"], max_dt=None)
    output, _ = rnn(inputs["x"], inputs["h_0"].unsqueeze(1), inputs["timespans"])
    check(g, {"y": output, "h": output}, inputs, relative_error)


def set_jump(field, values):
    """The published weights of the jump."""
    take((field, "w"), values["w_prep"]), take((field, "b"), values["bias_prep"])
    for module, suffix in ((field.V, "ih"), (field.W, "hh")):
        for part in ("weight", "bias"):
            take((module, part), values[f"gru_d_{part}_{suffix}"])


class Given(nn.Module):
    """What is expected, whatever the state."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, h):
        return self.p


@pytest.mark.parametrize("kind", ["logvar", "var"])
def test_the_published_jump(kind, golden, relative_error):
    """Some samples of a batch have an observation, of some features; the published loss of "var" lacks log 2 pi."""
    g = golden(f"grubayes_{kind}")
    field, inputs = neuralosc.GRUBayes(9, 7, prep_hidden=4, logvar=kind == "logvar").double(), leaves(g)
    set_jump(field, inputs)
    field.p = Given(inputs["p"])
    rows = g["i_obs"].long()
    x = torch.full((6, 3), NAN, dtype=F64).index_put((rows,), torch.where(g["M_obs"] > 0, inputs["X_obs"], NAN))
    rnn = ContinuousRNN(field, "euler", missing="mask")
    y = rnn.step(x, inputs["h"].unsqueeze(1), timespan=0)[0]
    entries = negative_log_likelihood(x, *field.prediction(inputs["h"]))[rows]
    if kind == "var":
        entries = (entries - g["M_obs"] * torch.log(torch.tensor(2 * torch.pi, dtype=F64)) / 2).sum()
    check(g, {"y": y, "losses": entries}, inputs, relative_error)


WHOLE = ["full", "minimal", "full_autonomous", "minimal_autonomous", "full_midpoint"]


def arranged(values, full):
    """Published values by the names of the parameters of a network of ours and of what is around it."""
    cell = {name: values[f"gru_obs_gru_d_{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    found = {"w": values["gru_obs_w_prep"], "b": values["gru_obs_bias_prep"]}
    found |= {f"{our}.{kind}": cell[f"{kind}_{suffix}"] for our, suffix in (("V", "ih"), ("W", "hh")) for kind in KINDS}
    update, candidate = values["gru_c_lin_hz_weight"], values[f"gru_c_lin_h{'h' if full else 'n'}_weight"]
    found |= {"R.weight": torch.cat((values["gru_c_lin_hr_weight"], update)) if full else update, "U.weight": candidate}
    for kind in KINDS:
        maps = [values.get(f"gru_c_lin_{name}_{kind}") for name in (("x",) if full else ("xz", "xn"))]
        found |= {} if maps[0] is None else {f"P.{kind}": torch.cat(maps)}
        for name, place in (("p_model", "p"), ("classification_model", "answer"), ("covariates_map", "start")):
            found |= {f"{place}.{2 * i}.{kind}": values[f"{name}_{3 * i}_{kind}"] for i in (0, 1)}
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_the_published_model(name, golden, relative_error):
    """Its loop makes full steps until the time of an observation is reached or passed, from where it goes on."""
    g = golden(f"gruodebayes_{name}")
    inputs, delta = {key: g[key].requires_grad_() for key in ("X", "cov")}, g["delta_t"]
    settings = {"delta_t": delta, "logvar": g["logvar"], "solver": g["solver"]}
    rnn, heads = neuralosc.from_reference("gruodebayes", state_dict("gruodebayes", g), **settings)
    field = rnn.field
    assert (field.full, field.impute) == (g["full_gru_ode"], g["impute"])
    state = heads["covariates_map"](inputs["cov"]).unsqueeze(1)
    path, time, likelihood, divergences = [state], 0.0, 0.0, 0.0
    pointers = g["time_ptr"].long().tolist()
    for i, observed in enumerate(g["times"].tolist()):
        while time < observed - 0.001 * delta:
            state, time = rnn.advance(state, delta), time + delta
            path.append(state)
        rows = slice(pointers[i], pointers[i + 1])
        seen = torch.where(g["M"][rows] > 0, inputs["X"][rows], NAN)
        x = torch.full((3, 3), NAN, dtype=F64).index_put((g["obs_idx"][rows].long(),), seen)
        before = negative_log_likelihood(x, *field.prediction(state[:, 0]))
        if not g["logvar"]:
            before = torch.where(x.isnan(), 0.0, before - torch.log(torch.tensor(2 * torch.pi, dtype=F64)) / 2)
        state = rnn.step(x, state, timespan=0)[1].state
        path.append(state)
        mean, spread = field.p(state[:, 0]).chunk(2, -1)
        variance = spread.exp() if g["logvar"] else spread.abs() + 1e-5
        likelihood = likelihood + before.sum()
        divergences = divergences + divergence(x, mean, variance, g["obs_noise_std"]).sum()
    while time < g["T"]:
        state, time = rnn.advance(state, delta), time + delta
        path.append(state)
    y = torch.stack(path)[:, :, 0]
    found = {"y": y, "p": field.p(y), "class_pred": heads["classification_model"](y[-1])}
    found["loss"] = likelihood + g["mixing"] * divergences
    parameters = {key: value for key, value in g.items() if key.startswith("grad_") and key[5:] not in inputs}
    gradients = arranged({key[5:]: value for key, value in parameters.items()}, field.full)
    own = dict(field.named_parameters())
    for place, head in (("answer", "classification_model"), ("start", "covariates_map")):
        own |= {f"{place}.{key}": value for key, value in heads[head].named_parameters()}
    assert own.keys() == gradients.keys() and sum(map(torch.numel, gradients.values())) == sum(
        map(torch.numel, parameters.values())
    )
    renamed = {key: value for key, value in g.items() if key not in parameters}
    renamed |= {f"grad_{key}": value for key, value in gradients.items()}
    check(renamed, found, {**inputs, **own}, relative_error)


def gappy(batch=3, time=7, features=2):
    x, spans = torch.randn(batch, time, features, dtype=F64), torch.rand(batch, time, dtype=F64)
    x[torch.rand(x.shape) < 0.5] = NAN
    return x, spans


@pytest.mark.parametrize("settings", [{}, {"full": False}, {"impute": False}, {"logvar": False}])
def test_what_was_not_seen_does_not_count(settings):
    """Neither the value that is held in its place nor, where no feature was seen, the sample."""
    rnn, (x, spans) = neuralosc.GRUODEBayes(2, 4, **settings).double(), gappy()
    x[1, 3:5], spans[1, 3:5] = NAN, 0.0
    states = rnn.solve(x, timespans=spans).states
    fewer, gaps = (torch.cat((series[1:2, :3], series[1:2, 5:]), 1) for series in (x, spans))
    torch.testing.assert_close(states[1:2, -1], rnn(fewer, timespans=gaps)[1], rtol=1e-12, atol=1e-13)
    still = rnn.step(torch.full((3, 2), NAN, dtype=F64), states[:, -1], timespan=0)[1].state
    assert torch.equal(still, states[:, -1])
    # Of a sample of which one feature was seen the other is nothing, whatever was held.
    stream = rnn(x[:, :3], rnn.begin(3), spans[:, :3])[1]
    half = torch.tensor([[0.5, NAN]], dtype=F64).expand(3, 2)
    torch.testing.assert_close(rnn.step(half, stream)[0], rnn.step(half, stream.state)[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layers", [1, 2])
def test_bit_by_bit(layers):
    rnn, (x, spans) = neuralosc.GRUODEBayes(2, 4, num_layers=layers).double(), gappy()
    bit_by_bit(rnn, x, spans)


def test_what_is_expected_can_be_asked_at_any_time():
    rnn, (x, spans) = neuralosc.GRUODEBayes(2, 4).double(), gappy()
    states = rnn.trajectory(x, spans, at=spans.sum(1, keepdim=True) + torch.tensor([0.5, 2.0], dtype=F64))
    mean, variance = rnn.field.prediction(states.squeeze(2))
    assert mean.shape == variance.shape == (3, 2, 2) and (variance > 0).all()


def test_losses_of_what_was_seen_alone():
    x, mean = torch.tensor([0.3, NAN], dtype=F64), torch.tensor([0.1, 5.0], dtype=F64, requires_grad=True)
    variance = torch.tensor([0.25, 4.0], dtype=F64, requires_grad=True)
    seen = torch.distributions.Normal(mean[0], variance[0].sqrt())
    entries = negative_log_likelihood(x, mean, variance)
    torch.testing.assert_close(entries, torch.stack((-seen.log_prob(x[0]), torch.zeros((), dtype=F64))))
    apart = divergence(x, mean, variance, 0.1)
    expected = torch.distributions.kl_divergence(seen, torch.distributions.Normal(x[0], 0.1))
    torch.testing.assert_close(apart, torch.stack((expected, torch.zeros((), dtype=F64))))
    for gradient in torch.autograd.grad((entries + apart).sum(), [mean, variance]):
        assert gradient[0] and not gradient[1]


def test_what_is_refused(one_line):
    cases = [
        (lambda: neuralosc.GRUODEBayes(2, 4, missing="decay"), ["missing is 'decay'", "'mask'"]),
        (lambda: neuralosc.GRUBayes(4, 4), ["takes 4", "multiple of 3"]),
        (lambda: neuralosc.GRUBayes(3, 4, p_hidden=0), ["p_hidden is 0"]),
        (lambda: neuralosc.GRUBayes(3, 4, logvar="no"), ["logvar is 'no'"]),
    ]
    for act, words in cases:
        with pytest.raises(InputError) as error:
            act()
        one_line(error, *words)
