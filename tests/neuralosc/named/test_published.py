"""`from_reference` against cells written from the published equations, and what it refuses."""

import pytest
import torch
from torch import nn

import neuralosc

F64 = torch.float64


class CornnModel(nn.Module):
    """The published model: z, then y with the new z; read-out of the last y."""

    def __init__(self, features, hidden, classes, dt, gamma, epsilon):
        super().__init__()
        self.hidden, self.dt, self.gamma, self.epsilon = hidden, dt, gamma, epsilon
        self.cell = nn.Module()
        self.cell.i2h = nn.Linear(features + 2 * hidden, hidden)
        self.readout = nn.Linear(hidden, classes)

    def forward(self, x):
        y = z = x.new_zeros(x.shape[1], self.hidden)
        for u in x:
            activation = torch.tanh(self.cell.i2h(torch.cat((u, z, y), 1)))
            z = z + self.dt * (activation - self.gamma * y - self.epsilon * z)
            y = y + self.dt * z
        return self.readout(y)


class UnicornnModel(nn.Module):
    """The published stack: every layer with its own input map and its own step."""

    def __init__(self, features, hidden, classes, dts, alpha):
        super().__init__()
        self.dts, self.alpha = dts, alpha
        self.DIs, self.RNNs = nn.ModuleList(), nn.ModuleList()
        for layer in range(len(dts)):
            di, rnn = nn.Module(), nn.Module()
            di.fc = nn.Linear(hidden if layer else features, hidden)
            rnn.weight_hh, rnn.c_ = nn.Parameter(torch.rand(hidden)), nn.Parameter(torch.randn(hidden))
            self.DIs.append(di)
            self.RNNs.append(rnn)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x):
        for di, rnn, dt in zip(self.DIs, self.RNNs, self.dts, strict=True):
            drive = di.fc(x)
            y = z = torch.zeros_like(drive[0])
            outputs = []
            for u in drive:
                scale = torch.sigmoid(rnn.c_)
                z = z - dt * scale * (torch.tanh(y * rnn.weight_hh + u) + self.alpha * y)
                y = y + dt * scale * z
                outputs.append(y)
            x = torch.stack(outputs)
        return self.classifier(x[-1])


class LipschitzModel(nn.Module):
    """The published Euler step, plain and gated, with matrices acting from the right."""

    def __init__(self, features, hidden, classes, eps, beta, gamma, gated):
        super().__init__()
        self.hidden, self.eps, self.beta, self.gamma = hidden, eps, beta, gamma
        self.B, self.C = nn.Parameter(torch.randn(hidden, hidden)), nn.Parameter(torch.randn(hidden, hidden))
        self.E, self.D = nn.Linear(features, hidden), nn.Linear(hidden, classes)
        if gated:
            self.E_gate = nn.Linear(features, hidden)

    def matrix(self, m):
        eye = torch.eye(self.hidden, dtype=m.dtype)
        return self.beta * (m - m.T) + (1 - self.beta) * (m + m.T) - self.gamma * eye

    def forward(self, x):
        a, w = self.matrix(self.B), self.matrix(self.C)
        h = x.new_zeros(x.shape[1], self.hidden)
        for u in x:
            slope = h @ a + torch.tanh(h @ w + self.E(u))
            if hasattr(self, "E_gate"):
                slope = slope * torch.sigmoid(h @ w + self.E_gate(u))
            h = h + self.eps * slope
        return self.D(h)


def published(name):
    if name == "cornn":
        settings = {"dt": 0.07, "gamma": 3.1, "epsilon": 2.3}
        return CornnModel(3, 5, 4, **settings), settings
    if name == "unicornn":
        return UnicornnModel(3, 5, 4, (0.07, 0.2), 1.9), {"dt": (0.07, 0.2), "alpha": 1.9}
    settings = {"eps": 0.07, "beta": 0.65, "gamma": 0.2}
    return LipschitzModel(3, 5, 4, **settings, gated=name.endswith("gated")), settings


@pytest.mark.parametrize("name", ["cornn", "unicornn", "lipschitz", "lipschitz gated"])
def test_a_published_model_and_ours_compute_the_same(name, relative_error):
    model, settings = published(name)
    model = model.double()
    x = torch.randn(11, 4, 3, dtype=F64)
    rnn, readout = neuralosc.from_reference(name.split()[0], model.state_dict(), **settings)
    own_x, published_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = model(published_x)
    answers = readout(rnn(own_x.transpose(0, 1))[0][:, -1])
    assert relative_error(answers, expected) <= 1e-12
    weight = torch.randn_like(expected)
    (answers * weight).sum().backward()
    (expected * weight).sum().backward()
    assert relative_error(own_x.grad, published_x.grad) <= 1e-11
    total = sum(float(p.grad.abs().sum()) for p in [*rnn.parameters(), *readout.parameters()])
    assert total == pytest.approx(sum(float(p.grad.abs().sum()) for p in model.parameters()), rel=1e-11)


@pytest.mark.parametrize("name", ["cornn", "unicornn", "lipschitz", "lipschitz gated"])
def test_the_weights_are_copied_and_keep_their_dtype(name):
    model, settings = published(name)
    state_dict = model.state_dict()
    before = {key: value.clone() for key, value in state_dict.items()}
    rnn, readout = neuralosc.from_reference(name.split()[0], state_dict, **settings)
    assert {p.dtype for p in [*rnn.parameters(), *readout.parameters()]} == {torch.float32}
    assert all(p.requires_grad for p in [*rnn.parameters(), *readout.parameters()])
    with torch.no_grad():
        for parameter in [*rnn.parameters(), *readout.parameters()]:
            parameter.add_(1.0)
    assert all(torch.equal(before[key], value) for key, value in state_dict.items())


def test_a_readout_is_optional_and_other_settings_pass_through():
    model, settings = published("cornn")
    cell = {key: value for key, value in model.state_dict().items() if key.startswith("cell")}
    rnn, readout = neuralosc.from_reference("cornn", cell, **settings, solver="stormer_verlet", substeps=2)
    assert readout is None and rnn.solver.name == "stormer_verlet" and rnn.substeps == 2


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("cornn", lambda d: d.pop("cell.i2h.bias"), ["cell.i2h.bias", "needs the key"]),
        ("cornn", lambda d: d.update(extra=torch.ones(1)), ["unknown keys extra"]),
        ("cornn", lambda d: d.update({"cell.i2h.weight": torch.ones(5, 10)}), ["(5, 10)", "hidden 5"]),
        ("unicornn", lambda d: d.pop("RNNs.1.c_"), ["RNNs.1.c_"]),
        ("unicornn", lambda d: d.pop("DIs.0.fc.weight"), ["DIs.0.fc.weight"]),
        ("unicornn", lambda d: d.update({"RNNs.0.c_": torch.ones(7)}), ["(7,)", "(5,)"]),
        ("lipschitz", lambda d: d.pop("B"), ["'B'"]),
        ("lipschitz", lambda d: d.update(C=torch.ones(2, 2)), ["(2, 2)", "(5, 5)"]),
        ("lipschitz gated", lambda d: d.pop("E_gate.bias"), ["E_gate.bias"]),
    ],
)
def test_a_state_dict_that_does_not_fit(name, change, words, one_line):
    model, settings = published(name)
    state_dict = dict(model.state_dict())
    change(state_dict)
    with pytest.raises(neuralosc.InputError) as error:
        neuralosc.from_reference(name.split()[0], state_dict, **settings)
    one_line(error, *words)


def test_unknown_references_and_missing_settings(one_line):
    with pytest.raises(neuralosc.InputError) as error:
        neuralosc.from_reference("conn", {})
    one_line(error, "unknown reference 'conn'", "did you mean 'cornn'")
    model, _ = published("cornn")
    with pytest.raises(neuralosc.InputError) as error:
        neuralosc.from_reference("cornn", model.state_dict(), dt=0.1)
    one_line(error, "gamma", "epsilon")
