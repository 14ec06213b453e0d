"""The discretizations of linear oscillatory state-space models: their solvers, stable regions and inverse maps.

One step h of q' = p, p' = -A q - G p is a linear map of (q, p) with

    IM      trace (2 + h G) / S,            determinant 1 / S,          S = 1 + h G + h^2 A
    IMEX    trace (2 + h G - h^2 A) / S,    determinant 1 / S,          S = 1 + h G
    IMEX2   trace 2 - h G - h^2 A,          determinant 1 - h G
    IMEX3   trace (2 - h G) / S,            determinant (1 - h G) / S,  S = 1 + h^2 A
    EX      trace 2 - h G,                  determinant 1 - h G + h^2 A

Its eigenvalues lie in the unit disc where |trace| <= 1 + determinant <= 2 (the conditions of Jury), and are a complex
pair, so that the channel oscillates, where trace^2 < 4 determinant.

Source: Rusch & Rus, Oscillatory State-Space Models, ICLR 2025; Boyer, Rusch & Rus, Learning to Dissipate Energy in
Oscillatory State-Space Models, 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.errors import InputError

#: The solver of each discretization, with a step of dt = 1; without damping there are the first two.
SOLVERS: dict[str, str | dict[str, Any]] = {
    "IM": {"name": "imex_euler", "implicit_terms": "both"},
    "IMEX": {"name": "imex_euler", "implicit_terms": "damping"},
    "IMEX2": "semi_implicit_euler",
    "IMEX3": {"name": "imex_euler", "implicit_terms": "stiffness"},
    "EX": "euler",
}
UNDAMPED: dict[str, str | dict[str, Any]] = {"IM": SOLVERS["IM"], "IMEX": "semi_implicit_euler"}

#: How raw A and G become those of the field: see `projected`.
PROJECTIONS = {
    "relu": "not negative",
    "stable": "where a step is stable",
    "oscillatory": "where it oscillates too",
}

#: What A and G are drawn from.
INITIALIZATIONS = {"uniform": "A and G themselves", "ring": "the eigenvalues of a step, with damping"}

Pair = tuple[Tensor, Tensor]


def solver(discretization: str, damped: bool) -> str | dict[str, Any]:
    """The solver of a published discretization.

    Raises:
        InputError: there is no such one.
    """
    known = SOLVERS if damped else UNDAMPED
    if discretization not in known:
        hint = "" if damped or discretization not in SOLVERS else ", or set damped=True"
        raise InputError(f"discretization is {discretization!r}, expected one of {', '.join(known)}: choose one{hint}")
    return known[discretization]


def projected(projection: str, discretization: str, A: Tensor, G: Tensor, h: Tensor, margin: float = 0.0) -> Pair:
    """A and G from raw parameters of any value, by the projection of a name; h is the step of each channel.

    "relu" keeps both from being negative. "stable" takes the nearest values whose step has its eigenvalues in the unit
    disc, "oscillatory" those whose eigenvalues are besides complex (or meet, at the lower end of A); G first, then A.

    The region is closed, as published. At its upper ends eigenvalues meet, at times on the unit circle, where states
    may grow like the time; a `margin` keeps that fraction of each upper end away from it.
    """
    if projection == "relu":
        return torch.relu(A), torch.relu(G)
    regions = OSCILLATORY if projection == "oscillatory" else STABLE
    return regions[discretization](A, G, h, 1 - margin)


def _between(x: Tensor, low: Tensor | float, high: Tensor | float | None = None) -> Tensor:
    """The nearest value to x between bounds."""
    lowest = torch.as_tensor(low, dtype=x.dtype, device=x.device)
    return torch.clamp(x, lowest, None if high is None else torch.as_tensor(high, dtype=x.dtype, device=x.device))


def _root(x: Tensor) -> Tensor:
    """The square root; at zero, where its slope is infinite, a constant."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


def _oscillatory_im(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    return _between(A, torch.maximum(-G / h, G * G / 4)), G


def _oscillatory_imex(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    # (2 + h G -+ 2 sqrt(1 + h G)) / h^2 without cancellation.
    G = torch.relu(G)
    root = torch.sqrt(1 + h * G)
    return _between(A, (G / (1 + root)) ** 2, end * ((1 + root) / h) ** 2), G


def _oscillatory_imex2(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    # (2 - h G -+ 2 sqrt(1 - h G)) / h^2 without cancellation.
    damping = _between(h * G, 0.0, end)
    root, G = _root(1 - damping), damping / h
    return _between(A, (G / (1 + root)) ** 2, end * ((1 + root) / h) ** 2), G


def _oscillatory_imex3(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    # At h G = 1 itself A would be infinite.
    damping = _between(h * G, 0.0, min(end, 1 - 4 * torch.finfo(G.dtype).eps))
    G = damping / h
    return _between(A, G * G / (4 * (1 - damping))), G


def _oscillatory_ex(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    G = _between(G, 0.0, end * 4 / h)
    return _between(A, G * G / 4, end * G / h), G


def _stable_im(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    return _between(A, torch.maximum(-G / h, -(4 + 2 * h * G) / h**2).clamp_min(0)), G


def _stable_imex(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    G = torch.relu(G)
    return _between(A, 0.0, end * (4 + 2 * h * G) / h**2), G


def _stable_imex2(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    G = _between(G, 0.0, end * 2 / h)
    return _between(A, 0.0, end * (4 - 2 * h * G) / h**2), G


def _stable_imex3(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    return _between(A, torch.maximum(-G / h, (2 * h * G - 4) / h**2).clamp_min(0)), G


def _stable_ex(A: Tensor, G: Tensor, h: Tensor, end: float) -> Pair:
    G = _between(G, 0.0, end * 4 / h)
    return _between(A, ((2 * h * G - 4) / h**2).clamp_min(0), end * G / h), G


Region = Callable[[Tensor, Tensor, Tensor, float], Pair]
OSCILLATORY: dict[str, Region] = {
    "IM": _oscillatory_im,
    "IMEX": _oscillatory_imex,
    "IMEX2": _oscillatory_imex2,
    "IMEX3": _oscillatory_imex3,
    "EX": _oscillatory_ex,
}
STABLE: dict[str, Region] = {
    "IM": _stable_im,
    "IMEX": _stable_imex,
    "IMEX2": _stable_imex2,
    "IMEX3": _stable_imex3,
    "EX": _stable_ex,
}


def of_eigenvalues(discretization: str, trace: Tensor, determinant: Tensor, h: Tensor) -> Pair:
    """A and G whose step h has this trace and determinant: the table of this module, inverted.

    1 - trace + determinant, the product of both distances of the eigenvalues from 1, is h^2 A over the divisor S.
    """
    distance = 1 - trace + determinant
    if discretization == "IM":
        stiffness, damping = distance / determinant, trace / determinant - 2
    elif discretization == "IMEX":
        stiffness, damping = distance / determinant, 1 / determinant - 1
    elif discretization == "IMEX2":
        stiffness, damping = distance, 1 - determinant
    elif discretization == "IMEX3":
        stiffness, damping = distance / (trace - determinant), (trace - 2 * determinant) / (trace - determinant)
    else:
        stiffness, damping = distance, 2 - trace
    return stiffness / h**2, damping / h
