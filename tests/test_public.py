"""What a user relies on: public names and signatures, the order of the registries, files that were saved before."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import neuralosc
import solvers

SAVED = Path(__file__).parent / "golden" / "saved"
#: Written by `described` below; a change of a signature that is meant changes this file along.
PUBLIC = Path(__file__).parent / "golden" / "public.json"

PACKAGES = ("solvers", "neuralosc")

#: Tables, hints and the help of the command line follow this order.
SOLVERS = [
    "euler",
    "midpoint",
    "heun",
    "ralston",
    "bosh3_fixed",
    "ssprk3",
    "rk4",
    "rk4_38",
    "dopri5_fixed",
    "exponential_euler",
    "etd2rk",
    "etd4rk",
    "lawson4",
    "strang",
    "relaxation_euler",
    "closed_form",
    "imex_euler",
    "imex_midpoint",
    "ars222",
    "ars343",
    "kencarp3",
    "kencarp4",
    "implicit_euler",
    "implicit_midpoint",
    "trapezoid",
    "sdirk2",
    "gauss_legendre4",
    "radau_iia3",
    "native_bosh3",
    "native_dopri5",
    "native_tsit5",
    "native_kencarp4",
    "semi_implicit_euler",
    "symplectic_euler_dk",
    "stormer_verlet",
    "position_verlet",
    "ruth3",
    "forest_ruth",
    "mclachlan_atela4",
    "pefrl",
    "yoshida6",
    "yoshida8",
    "dopri5",
    "dopri8",
    "bosh3",
    "adaptive_heun",
    "tsit5",
    "euler_maruyama",
    "milstein",
    "srk",
    "stochastic_heun",
    "stratonovich_milstein",
    "reversible_heun",
    "reversible",
]
GRADIENTS = ["backprop", "adjoint", "checkpoint", "reversible", "truncated", "feedback_alignment", "forward"]
MODELS = [
    "linoss",
    "cfc",
    "ncde",
    "ctgru",
    "rnn",
    "gru",
    "grud",
    "gruodebayes",
    "hawkes_lstm",
    "lipschitz",
    "antisymmetric",
    "lem",
    "ctrnn",
    "ltc",
    "ltc_synapse",
    "noisy",
    "odernn",
    "odelstm",
    "cayley",
    "exprnn",
    "cornn",
    "unicornn",
    "hamiltonian",
    "phased_lstm",
    "lstm",
    "torch_gru",
]


def signature(value):
    """The arguments of something that is called, as they are written; None of what is not."""
    try:
        return str(inspect.signature(value)) if callable(value) else None
    except ValueError:
        return None


def described(module):
    """Every public name with its signature, of a class those of its public methods as well."""
    names = {}
    for name in sorted(module.__all__):
        value = getattr(module, name)
        names[name] = signature(value)
        for each in sorted(dir(value)) if inspect.isclass(value) else ():
            method = inspect.getattr_static(value, each)
            owned = any(each in vars(base) for base in value.__mro__ if base.__module__.split(".")[0] in PACKAGES)
            if not each.startswith("_") and owned:
                method = method.fget if isinstance(method, property) else getattr(value, each)
                names[f"{name}.{each}"] = signature(method)
    return names


@pytest.mark.parametrize("module", [solvers, neuralosc], ids=lambda module: module.__name__)
def test_names_and_signatures_stay(module):
    signatures, expected = described(module), json.loads(PUBLIC.read_text())[module.__name__]
    # What comes anew is free, and is held from its next change on once it stands in the file.
    assert {name: signatures.get(name, "gone") for name in expected} == expected


def test_the_registries_keep_their_order():
    assert [info.name for info in solvers.available()] == SOLVERS
    assert list(solvers.GRADIENTS) == GRADIENTS
    assert [card.name for card in neuralosc.models()] == MODELS


def test_modules_of_methods_are_attributes_of_the_package():
    for name in ("explicit", "exponential", "imex", "implicit", "native_implicit", "partitioned"):
        assert inspect.ismodule(getattr(solvers, name))
    assert isinstance(solvers.explicit.RungeKutta, type)


@pytest.mark.parametrize("name", sorted(p.stem for p in SAVED.glob("*.safetensors") if ".output" not in p.name))
def test_what_was_saved_before_loads_and_computes_the_same(name, relative_error):
    rnn = neuralosc.load(SAVED / f"{name}.safetensors").eval()
    expected = load_file(SAVED / f"{name}.output.safetensors")
    with torch.no_grad():
        output = rnn(expected["x"])[0]
    # An adaptive solver may round its way to other steps.
    assert relative_error(output, expected["output"]) < (1e-6 if name == "lipschitz-options" else 1e-9)


def test_every_named_network_has_a_saved_file():
    assert {card.name for card in neuralosc.models()} <= {path.stem for path in SAVED.glob("*.safetensors")}
