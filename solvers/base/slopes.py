"""How fast an input changes between its samples: what paths through them, and their derivatives, are made of.

Interval i goes from sample i-1 to sample i. On the first one, before which nothing is known, an input does not change;
nor does it where an interval is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.protocol import Time


def rates(samples: Sequence[Tensor], spans: Sequence[Time]) -> list[Tensor]:
    """(u_i - u_i-1) / span_i on each interval."""
    found = [torch.zeros_like(samples[0])] if len(spans) else []
    for i in range(1, len(spans)):
        found.append(_where(_passes(spans[i]), (samples[i] - samples[i - 1]) / _divisor(spans[i])))
    return found


def behind(found: Sequence[Tensor], spans: Sequence[Time]) -> list[Tensor]:
    """Of each interval the rate of the one before it; its own where either is empty, or there was no sample before."""
    rates = list(found[:2])
    for i in range(2, len(found)):
        rates.append(_where(_both(_passes(spans[i - 1]), _passes(spans[i])), found[i - 1], found[i]))
    return rates


def bends(found: Sequence[Tensor], spans: Sequence[Time]) -> list[Tensor]:
    """The second derivatives at the samples of the natural cubic spline with these rates.

        h_i m_i-1 + 2 (h_i + h_i+1) m_i + h_i+1 m_i+1 = 6 (rate_i+1 - rate_i)

    They are 0 at both ends, and at both ends of an empty interval, which parts two splines. The system is solved by
    elimination without pivoting, its matrix being dominated by its diagonal.

    Source: de Boor, A Practical Guide to Splines, 1978, chapter IV.
    """
    if not found:
        return []
    none = torch.zeros_like(found[0])
    factors: list[Any] = [0.0]
    values = [none]
    for i in range(1, len(found) - 1):
        h, after = spans[i], spans[i + 1]
        inner = _both(_passes(h), _passes(after))
        pivot = _where(inner, 2 * (h + after) - h * factors[-1], 1.0)
        factors.append(_where(inner, after / pivot, 0.0))
        values.append(_where(inner, (6 * (found[i + 1] - found[i]) - h * values[-1]) / pivot))
    bent = [none]
    for factor, value in zip(reversed(factors[1:]), reversed(values[1:]), strict=True):
        bent.append(value - factor * bent[-1])
    return [none, *reversed(bent)] if len(found) > 1 else [none]


def _passes(span: Time) -> Any:
    """Whether time passes in an interval: True or False, or that of each sample."""
    return span != 0


def _both(one: Any, other: Any) -> Any:
    return one & other


def _divisor(span: Time) -> Time:
    """A span, where it is not 0, else 1."""
    divisor: Time = _where(_passes(span), span, 1.0)
    return divisor


def _where(condition: Any, value: Any, other: Any = 0.0) -> Any:
    """A choice by True or False, or one for each sample."""
    if isinstance(condition, Tensor):
        return torch.where(condition, value, other)
    if condition:
        return value
    return torch.full_like(value, other) if isinstance(value, Tensor) and not isinstance(other, Tensor) else other
