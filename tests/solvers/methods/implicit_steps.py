"""The implicit Runge-Kutta methods, and steps of them."""

import math

import torch

import solvers

F64 = torch.float64
NAMES = [info.name for info in solvers.available() if info.family == "implicit"]
KINDS = ["newton", "simplified", "krylov"]
#: The diagonal of sdirk2.
GAMMA = 1 - math.sqrt(0.5)


def randn(*shape, seed=6, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steps(solver, field, x, span, count, control=lambda t: None):
    h = span / count
    with torch.no_grad():
        for i in range(count):
            x = solver.step(field, i * h, h, x, control)
    return x
