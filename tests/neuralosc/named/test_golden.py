"""The published reference implementations, reproduced: outputs and every gradient to 1e-9 in float64."""

import numpy as np
import pytest
import torch
from torch import nn

import neuralosc
from neuralosc import ContinuousRNN

F64 = torch.float64
TOLERANCE = 1e-9


def batch_first(x):
    return x.transpose(0, 1).contiguous()


def check_gradients(loss, expected, relative_error):
    """`expected`: tensor -> the golden gradient of it."""
    gradients = torch.autograd.grad(loss, [tensor for tensor, _ in expected])
    for gradient, (_, golden) in zip(gradients, expected, strict=True):
        assert relative_error(gradient, golden) <= TOLERANCE


@pytest.mark.parametrize("name", ["cornn_adding", "cornn_smnist"])
def test_cornn(name, golden, relative_error):
    g = golden(name)
    state_dict = {"cell.i2h.weight": g["weight"], "cell.i2h.bias": g["bias"]}
    settings = {key: g[key] for key in ("dt", "gamma", "epsilon")}
    rnn, readout = neuralosc.from_reference("cornn", state_dict, **settings)
    assert readout is None and rnn.solver.name == "semi_implicit_euler"
    solution = rnn.solve(batch_first(g["x"]))
    assert relative_error(batch_first(solution.output), g["y"]) <= TOLERANCE
    assert relative_error(batch_first(solution.states[..., 1, :]), g["z"]) <= TOLERANCE
    loss = (batch_first(solution.output) * g["loss_weight"]).sum()
    features, hidden, field = g["x"].shape[-1], len(g["bias"]), rnn.field
    v, r, w = g["grad_weight"].split((features, hidden, hidden), dim=1)
    expected = [(field.V.weight, v), (field.R, r), (field.W, w), (field.V.bias, g["grad_bias"])]
    check_gradients(loss, expected, relative_error)


@pytest.mark.parametrize("name", ["unicornn_psmnist", "unicornn_eigenworms"])
def test_unicornn(name, golden, relative_error):
    g = golden(name)
    hidden = len(g["c"])
    state_dict = {
        "DIs.0.fc.weight": torch.eye(hidden, dtype=F64),
        "DIs.0.fc.bias": torch.zeros(hidden, dtype=F64),
        "RNNs.0.weight_hh": g["weight_hh"],
        "RNNs.0.c_": g["c"],
    }
    rnn, _ = neuralosc.from_reference("unicornn", state_dict, dt=g["dt"], alpha=g["alpha"])
    x = batch_first(g["drive"]).requires_grad_()
    output, state = rnn(x)
    assert relative_error(batch_first(output), g["y"]) <= TOLERANCE
    assert relative_error(state[:, 0], g["y_final"]) <= TOLERANCE
    assert relative_error(state[:, 1], g["z_final"]) <= TOLERANCE
    loss = (batch_first(output) * g["loss_weight"]).sum()
    expected = [
        (x, batch_first(g["grad_drive"])),
        (rnn.field.w, g["grad_weight_hh"]),
        (rnn.field.c, g["grad_c"]),
    ]
    check_gradients(loss, expected, relative_error)


#: Golden file -> the solver it was stepped with, and whether its step was rounded to float32.
LIPSCHITZ = {
    "lipschitz_LipschitzRNN": ("euler", False),
    "lipschitz_LipschitzRNN_gated": ("euler", False),
    "lipschitz_LipschitzRNN_ODE_euler": ("euler", True),
    "lipschitz_LipschitzRNN_ODE_midpoint": ("midpoint", True),
    "lipschitz_LipschitzRNN_ODE_rk4": ("rk4_38", True),
}


@pytest.mark.parametrize("name", LIPSCHITZ)
def test_lipschitz(name, golden, relative_error):
    g, (solver, rounded) = golden(name), LIPSCHITZ[name]
    prefix = "func_" if "func_B" in g else ""
    keys = {"B": f"{prefix}B", "C": f"{prefix}C"} | {
        f"{map}.{part}": f"{map}_{part}"
        for map in ("E", "D", "E_gate")
        for part in ("weight", "bias")
        if f"{map}_weight" in g
    }
    rnn, readout = neuralosc.from_reference(
        "lipschitz",
        {published: g[key] for published, key in keys.items()},
        eps=float(np.float32(g["eps"])) if rounded else g["eps"],
        beta=g["beta"],
        gamma=g["gamma"],
        alpha=g["alpha"],
        solver=solver,
    )
    assert rnn.field.gated == ("E_gate_weight" in g)
    _, state = rnn(batch_first(g["x"]))
    logits = readout(state[:, 0])
    assert relative_error(logits, g["logits"]) <= TOLERANCE
    field = rnn.field
    ours = {"B": field.A, "C": field.W, "E.weight": field.V.weight, "E.bias": field.V.bias}
    ours |= {"D.weight": readout.weight, "D.bias": readout.bias}
    if field.gated:
        ours |= {"E_gate.weight": field.V_gate.weight, "E_gate.bias": field.V_gate.bias}
    assert ours.keys() == keys.keys()
    expected = [(ours[published], g[f"grad_{key}"]) for published, key in keys.items()]
    check_gradients((logits * g["loss_weight"]).sum(), expected, relative_error)


def test_antisymmetric(golden, relative_error):
    g = golden("lipschitz_asymRNN")
    field = neuralosc.Antisymmetric(g["x"].shape[-1], len(g["C"]), gamma=g["gamma"]).double()
    readout = nn.Linear(len(g["C"]), len(g["D_bias"]), dtype=F64)
    ours = {
        "C": field.W, "E_weight": field.V.weight, "E_bias": field.V.bias, "D_weight": readout.weight,
        "D_bias": readout.bias,
    }  # fmt: skip
    with torch.no_grad():
        for key, parameter in ours.items():
            parameter.copy_(g[key])
    _, state = ContinuousRNN(field, "euler", dt=g["eps"])(batch_first(g["x"]))
    logits = readout(state[:, 0])
    assert relative_error(logits, g["logits"]) <= TOLERANCE
    expected = [(parameter, g[f"grad_{key}"]) for key, parameter in ours.items()]
    check_gradients((logits * g["loss_weight"]).sum(), expected, relative_error)


@pytest.mark.parametrize("name", ["cornn_adding", "cornn_smnist"])
def test_the_named_network_with_the_golden_weights(name, golden, relative_error):
    """The front door, `CoRNN(...).double()`, keeps its coefficients in full precision."""
    g = golden(name)
    features, hidden = g["x"].shape[-1], len(g["bias"])
    rnn = neuralosc.CoRNN(features, hidden, dt=g["dt"], gamma=g["gamma"], epsilon=g["epsilon"]).double()
    with torch.no_grad():
        for target, value in zip(
            (rnn.field.V.weight, rnn.field.R, rnn.field.W),
            g["weight"].split((features, hidden, hidden), 1),
            strict=True,
        ):
            target.copy_(value)
        rnn.field.V.bias.copy_(g["bias"])
    assert relative_error(batch_first(rnn(batch_first(g["x"]))[0]), g["y"]) <= TOLERANCE


def test_lem(golden, relative_error):
    g = golden("lem")
    names = ("inp2hid", "hid2hid", "transform_z")
    published = {f"cell.{n}.{part}": g[f"{n}_{part}"] for n in names for part in ("weight", "bias")}
    rnn, readout = neuralosc.from_reference("lem", published, dt=g["dt"])
    assert readout is None and rnn.solver.name == "semi_implicit_euler"
    ours = dict(zip(names, (rnn.field.V, rnn.field.coupling, rnn.field.transform), strict=True))
    solution = rnn.solve(batch_first(g["x"]))
    assert relative_error(batch_first(solution.output), g["y"]) <= TOLERANCE
    assert relative_error(batch_first(solution.states[..., 1, :]), g["z"]) <= TOLERANCE
    expected = [
        (getattr(module, part), g[f"grad_{name}_{part}"])
        for name, module in ours.items()
        for part in ("weight", "bias")
    ]
    check_gradients((batch_first(solution.output) * g["loss_weight"]).sum(), expected, relative_error)


#: Published discretization -> the solver that it is.
LINOSS = {
    "linoss_IM": {"name": "imex_euler", "implicit_terms": "stiffness"},
    "linoss_IMEX": "semi_implicit_euler",
    "dlinoss_IM": {"name": "imex_euler", "implicit_terms": "both"},
    "dlinoss_IMEX": {"name": "imex_euler", "implicit_terms": "damping"},
    "dlinoss_IMEX2": "semi_implicit_euler",
    "dlinoss_IMEX3": {"name": "imex_euler", "implicit_terms": "stiffness"},
    "dlinoss_EX": "euler",
}


@pytest.mark.parametrize("name", LINOSS)
def test_linear_oscillators(name, golden, relative_error):
    """The recurrence of a LinOSS layer; its complex state is read out here by C and D."""
    g = golden(name)
    damped = "G" in g
    flat = {key: value.squeeze(0) if damped and key != "u" else value for key, value in g.items()}
    states, features = flat["B"].shape[:2]
    region = {"projection": "oscillatory", "discretization": name.split("_")[1]} if damped else {}
    field = neuralosc.LinearOscillator(features, 2 * states, damped=damped, paired=True, **region).double()
    with torch.no_grad():
        field.A.copy_(flat["A_projected"] if damped else flat["A"])
        field.steps.copy_(flat["steps"])
        field.B.copy_(torch.cat(flat["B"].unbind(-1)))
        if damped:
            field.G.copy_(flat["G_projected"])
    u = flat["u"] if flat["u"].dim() == 3 else flat["u"].unsqueeze(0)
    q = ContinuousRNN(field, LINOSS[name], dt=1.0)(u)[0]
    real, imaginary = flat["C"].unbind(-1)
    y = q[..., :states] @ real.T - q[..., states:] @ imaginary.T + flat["D"] * u
    assert relative_error(y.view(g["y"].shape), g["y"]) <= TOLERANCE
    b = torch.cat(flat["grad_B"].unbind(-1))
    expected = [(field.steps, flat["grad_steps"]), (field.B, b)]
    if not damped:  # the projection of A and G stands between the published parameters and the field's
        expected.append((field.A, flat["grad_A"]))
    check_gradients((y.view(g["y"].shape) * g["loss_weight"]).sum(), expected, relative_error)
