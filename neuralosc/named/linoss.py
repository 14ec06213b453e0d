"""LinOSS and damped LinOSS: a stack of blocks by name, and the published weights of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import solvers
from neuralosc import arguments
from neuralosc.fields import LinearOscillator, discretizations
from neuralosc.layers.blocks import LinOSSNetwork
from neuralosc.layers.linoss import LinOSS
from neuralosc.named.cards import named
from neuralosc.named.published import Keys, fill, published
from solvers.errors import InputError


@named(
    "linoss",
    "LinOSS",
    "Rusch & Rus, ICLR 2025; with damping: Boyer, Rusch & Rus, 2025",
    "dq = s p, dp = s (B u - A q - G p), y = Re(C q) + D u",
    LinearOscillator,
    also={"imex_euler": "LinOSS-IM", "euler": "LinOSS-EX"},
    solver="semi_implicit_euler",
    blocks=True,
)
def linoss(
    input_size: int,
    hidden_size: int,
    *,
    state_size: int = 64,
    discretization: str = "IMEX",
    damped: bool = False,
    projection: str = "relu",
    initialization: str = "uniform",
    heads: int = 1,
    num_layers: int = 2,
    dropout: float = 0.05,
    missing: str = "error",
    dt: float | Sequence[float] = 1.0,
    solver: str | dict[str, Any] | solvers.Solver | None = None,
    substeps: int = 1,
    gradient: str | solvers.Gradient = "backprop",
    control: str | solvers.Control = "hold",
    max_dt: float | str | None = "auto",
    projection_margin: float = 0.0,
    **options: Any,
) -> LinOSSNetwork:
    """The published stack of LinOSS blocks. See `LinOSSNetwork` and `LinOSS`.

    Args:
        input_size: features of a sample.
        hidden_size: features of the output, and inside the blocks.
        state_size: complex oscillators of a block.
        discretization: "IM", "IMEX", with damping also "IMEX2", "IMEX3" and "EX": the solver, if none is chosen.
        damped: with damping G.
        projection: what keeps A and G in bounds: "relu", "stable" or "oscillatory".
        initialization: "uniform", or with damping "ring".
        heads: independent layers side by side, each over its part of the features.
        num_layers: blocks.
        dropout: probability of dropping an entry, in both places of a block.
        options: options of the solver, by name.
        projection_margin: fraction of the upper ends of the bounds that is left out; 0 is as published.
    """
    hyperparameters: dict[str, Any] = {
        "state_size": state_size, "discretization": discretization, "damped": damped, "projection": projection,
        "initialization": initialization, "heads": heads, "projection_margin": projection_margin,
    }  # fmt: skip
    shape: dict[str, Any] = {"num_layers": num_layers, "dropout": dropout, "missing": missing}
    choices: dict[str, Any] = {"substeps": substeps, "gradient": gradient, "control": control, "max_dt": max_dt}
    chosen = discretizations.solver(discretization, damped) if solver is None else solver
    arguments.solver("linoss", chosen, options, [*hyperparameters, *shape, *choices, "dt", "solver"])
    choices |= options
    network = LinOSSNetwork(input_size, hidden_size, **shape, dt=dt, solver=solver, **hyperparameters, **choices)
    sizes = {"model": "linoss", "input_size": input_size, "hidden_size": hidden_size}
    network.config = {**sizes, **hyperparameters, **shape, **network.choices()}
    return network


@published("linoss")
def _linoss(keys: Keys, discretization: str = "IMEX", projection: str = "relu", **settings: Any) -> tuple[LinOSS, None]:
    damped = "G_diag" in keys.left
    names = ("A_diag", "steps", "B", "C", "D", *(name for name in ("G_diag", "gamma_log") if name in keys.left))
    values = {name: keys.take(name) for name in names}
    keys.finish()
    if values["A_diag"].dim() == 1:
        values = {name: value.unsqueeze(0) for name, value in values.items()}
    B, C = (_parts(name, values[name]) for name in ("B", "C"))
    (heads, states, features), (_, outputs, _) = B.shape[:3], C.shape[:3]
    if C.shape[:3] != (heads, features, states):
        raise InputError(
            f"B has shape {tuple(B.shape)} and C {tuple(C.shape)}, expected (heads, state, features, 2) and "
            "(heads, features, state, 2) of equal sizes: give the state dict of one layer"
        )
    layer = LinOSS(
        heads * outputs, heads * states, discretization, damped, projection, heads=heads, **settings
    ).to(B.dtype)  # fmt: skip
    if "gamma_log" in values:
        # A normalization of the input that some layers train: a factor of the rows of B.
        B = B * _factor(values["gamma_log"], values["A_diag"]).to(B.dtype)
    # Real parts of all heads, then imaginary parts; in C both of each head.
    fill(layer.rnn.field, {"B": B.movedim(-1, 0).flatten(0, 2), "A": values["A_diag"].flatten()}, "linoss")
    fill(layer.rnn.field, {"steps": values["steps"].flatten()}, "linoss")
    if damped:
        fill(layer.rnn.field, {"G": values["G_diag"].flatten()}, "linoss")
    fill(layer, {"C": C.movedim(-1, 2).flatten(2).flatten(0, 1), "D": values["D"].flatten()}, "linoss")
    return layer, None


def _factor(logarithm: Tensor, like: Tensor) -> Tensor:
    """exp(gamma_log), one for each oscillator, against B."""
    if logarithm.numel() != like.numel():
        raise InputError(
            f"gamma_log of a published 'linoss' layer has shape {tuple(logarithm.shape)}, expected that of A_diag, "
            f"{tuple(like.shape)}: give the state dict of one layer"
        )
    return logarithm.reshape(like.shape).exp()[..., None, None]


def _parts(name: str, value: Tensor) -> Tensor:
    """A complex matrix of each head with a last axis for real and imaginary part."""
    value = torch.view_as_real(value) if value.is_complex() else value
    if value.dim() != 4 or value.shape[-1] != 2:
        raise InputError(
            f"{name} of a published 'linoss' layer has shape {tuple(value.shape)}, expected ([heads,] rows, columns, "
            "2) with real and imaginary parts last"
        )
    return value
