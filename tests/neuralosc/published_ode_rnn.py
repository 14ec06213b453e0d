"""Weights and runs of the published ODE-RNN (YuliaRubanova/latent_ode), with the pieces of `JumpGRU`."""

import itertools

import torch

import solvers
from solvers.base.control import Held

TOLERANCE = 1e-9

#: Names of the linear maps of the published unit.
GATES = ("update_gate", "reset_gate", "new_state_net")


def network_pairs(net, g, prefix, gradients=False):
    """Parameter -> golden array of a tanh network whose keys begin so."""
    return [
        (getattr(net[i], part), g[f"{'grad_' * gradients}{prefix}{i}_{part}"])
        for i in range(0, len(net), 2)
        for part in ("weight", "bias")
    ]


def unit_pairs(unit, g, prefix, gradients=False):
    """Parts of parameters of a `GRUUnit` -> golden arrays; the maps of the three gates stand above each other here."""
    grad, units = "grad_" * gradients, unit.new.weight.shape[0]
    inner = [g[f"{grad}{prefix}{gate}_0_weight"] for gate in GATES]
    hidden = unit.new.weight.shape[1]
    pairs = [
        (unit.V.weight, torch.cat([weight[:, hidden:] for weight in inner])),
        (unit.V.bias, torch.cat([g[f"{grad}{prefix}{gate}_0_bias"] for gate in GATES])),
        (unit.gates.weight, torch.cat([weight[:, :hidden] for weight in inner[:2]])),
        (unit.new.weight, inner[2][:, :hidden]),
    ]
    assert len(pairs[0][1]) == 3 * units
    for gate, out in zip(GATES, (unit.update_out, unit.reset_out, unit.new_out), strict=True):
        pairs += [(getattr(out, part), g[f"{grad}{prefix}{gate}_2_{part}"]) for part in ("weight", "bias")]
    return pairs


def fill(pairs):
    """Put the golden weights into the parameters, all of them."""
    with torch.no_grad():
        for parameter, value in pairs:
            assert parameter.shape == value.shape
            parameter.copy_(value)


def current(field, x, mask):
    """What `drive` makes of samples, and yet with a gradient to the zeros that stand for missing values."""
    u = field.gates.drive(torch.cat((x, mask), -1))
    return torch.cat((u, mask.amax(-1, keepdim=True)), -1)


def euler_points(a, b, least):
    """The points of the published Euler steps from a to b."""
    count = 2 if a - b < least else max(2, int((a - b) / least))
    return torch.linspace(a, b, count, dtype=torch.float64).tolist()


def published_run(field, u, spans, least, sense=1):
    """The published loop: for each (a, b, sample) Euler's steps from a to b, then the jump; the states after each.

    Under `sense` -1 the clock of the field runs against theirs.
    """
    state = u.new_zeros(len(u), field.components, field.hidden_size)
    euler, states = solvers.get("euler"), []
    for a, b, sample in spans:
        points = euler_points(a, b, least)
        for t, end in itertools.pairwise(points):
            state = euler.step(field, t, sense * (end - t), state, Held(u[:, sample]))
        state = field.jump(b, state, u[:, sample])
        states.append(state)
    return torch.stack(states, 1)


def check(loss, pairs, relative_error):
    """The gradient of every tensor against the golden one."""
    gradients = torch.autograd.grad(loss, [tensor for tensor, _ in pairs])
    for gradient, (_, golden) in zip(gradients, pairs, strict=True):
        assert relative_error(gradient, golden) <= TOLERANCE
