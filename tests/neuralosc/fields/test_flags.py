"""True or False means just that, in every field and every named network."""

import inspect

import pytest
import torch

import neuralosc

FIELDS = [getattr(neuralosc, name) for name in neuralosc.__all__]
FIELDS = [kind for kind in FIELDS if isinstance(kind, type) and issubclass(kind, torch.nn.Module)]
# What others are derived from is not made by itself.
FIELDS = [kind for kind in FIELDS if kind not in (neuralosc.RecurrentLayer, neuralosc.Baseline)]


def flags(make):
    return [p.name for p in inspect.signature(make).parameters.values() if str(p.annotation).startswith("bool")]


def sizes(kind):
    """What a class needs besides the flag."""
    # Of what a field is shown of missing values there are three for each feature.
    known = {"input_size": 6, "hidden_size": 4, "features": 4, "answers": 2, "field": None}
    names = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty and p.kind < 4]
    values = {name: known[name] for name in names if name in known}
    return {k: neuralosc.Residual(2, 4) if k == "field" else v for k, v in values.items()}


CASES = [(kind, name) for kind in FIELDS for name in flags(kind)]
CASES += [(card.make, name) for card in neuralosc.models() for name in flags(card.make)]


@pytest.mark.parametrize("value", ["False", "no", 0, 1, 0.0, [], None])
@pytest.mark.parametrize(("make", "name"), CASES, ids=lambda case: getattr(case, "__name__", str(case)))
def test_what_is_no_flag_is_refused(make, name, value, one_line):
    if value is None and name == "separable":
        return
    with pytest.raises(neuralosc.InputError) as caught:
        make(**sizes(make), **{name: value})
    one_line(caught, name, repr(value), "True or False")


@pytest.mark.parametrize(("make", "name"), CASES, ids=lambda case: getattr(case, "__name__", str(case)))
def test_flags_are_taken(make, name):
    make(**sizes(make), **{name: False})
