"""Latent ODEs in one file: all that their answers depend on, bit for bit in another process, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import neuralosc
import solvers
from neuralosc import InputError, LatentODE

F64 = torch.float64
NAN = float("nan")
SIZES = {"units": 5, "gate_units": 4, "encoder_size": 4}
VARIANTS = {
    "as it comes": {},
    "all": {
        "update": "gru", "encoder_layers": 2, "field_layers": 3, "dt": 0.5, "solver": {"name": "dopri5", "rtol": 1e-6},
        "max_dt": 0.25, "gradient": "adjoint", "encoder_solver": "heun", "encoder_substeps": 2,
    },
}  # fmt: skip


def made(encoder=True, **settings):
    torch.manual_seed(3)
    model = LatentODE(2, 3, **{**SIZES, **settings}).double()
    if encoder:
        options = {"max_dt": float("inf"), "dt": 0.7, "substeps": 3, "gradient": "checkpoint"}
        model.encoder = model.encoder.with_solver("rk4", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4).add_(0.1 * torch.randn_like(parameter))
    return model


def series():
    x, spans = torch.randn(3, 5, 2, dtype=F64), 2 * torch.rand(3, 5, dtype=F64)
    x[torch.rand(x.shape) < 0.4] = NAN
    return x, spans, torch.randn(2, 3, 3, dtype=F64)


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_answers_as_it_did(variant, encoder, tmp_path):
    model, (x, spans, noise) = made(encoder, **VARIANTS[variant]), series()
    again = neuralosc.load(neuralosc.save(model, tmp_path / "model", {"note": "a note"}))
    assert type(again) is LatentODE and again.config == model.config
    assert (again.solver, again.gradient, again.max_dt) == (model.solver, model.gradient, model.max_dt)
    for name in ("solver", "gradient", "dts", "max_dt", "substeps", "control", "missing"):
        assert getattr(again.encoder, name) == getattr(model.encoder, name)
    at = [0.3, 4.0]
    assert torch.equal(again(x, spans, at=at, noise=noise), model(x, spans, at=at, noise=noise))
    assert torch.equal(again.elbo(x, spans, noise=noise), model.elbo(x, spans, noise=noise))
    assert [p.requires_grad for p in again.parameters()] == [True] * len(list(model.parameters()))
    with safe_open(str(tmp_path / "model"), framework="pt") as file:
        assert file.metadata()["note"] == "a note"


def test_bit_for_bit_in_a_fresh_process(tmp_path):
    model, (x, spans, noise) = made(**VARIANTS["all"]), series()
    neuralosc.save(model, tmp_path / "model")
    y = model(x, spans, at=[0.3, 4.0], noise=noise).detach()
    save_file({"x": x, "spans": spans, "noise": noise}, tmp_path / "inputs")
    script = (
        "import sys, torch, neuralosc\n"
        "from safetensors.torch import load_file, save_file\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "model, given = neuralosc.load(sys.argv[1] + '/model'), load_file(sys.argv[1] + '/inputs')\n"
        "y = model(given['x'], given['spans'], at=[0.3, 4.0], noise=given['noise'])\n"
        "save_file({'y': y.detach()}, sys.argv[1] + '/outputs')\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path, str(torch.get_num_threads())], check=True)
    assert torch.equal(load_file(tmp_path / "outputs")["y"], y)


def test_it_is_loaded_into_one_that_computes_the_same(tmp_path, one_line):
    path, (x, spans, noise) = neuralosc.save(made(solver="rk4"), tmp_path / "model"), series()
    other = made(solver="rk4", gradient="checkpoint")
    with torch.no_grad():
        other.readout.bias.zero_()
    assert neuralosc.load(path, into=other) is other and other.gradient.name == "checkpoint"
    assert torch.equal(other(x, spans, noise=noise), made(solver="rk4")(x, spans, noise=noise))
    cases = [
        (made(solver="rk4", dt=0.5), ["dt 1.0", "dt 0.5"]),
        (made(encoder=False), ["solver 'rk4'", "encoder_solver 'rk4'", "'euler'", "encoder_max_dt None"]),
        (made(units=6), ["does not fit"]),
        (neuralosc.GRU(2, 3), ["holds a LatentODE", "into is a network"]),
    ]
    for into, words in cases:
        with pytest.raises(InputError) as error:
            neuralosc.load(path, into=into)
        one_line(error, *words)
    with pytest.raises(InputError) as error:
        neuralosc.load(neuralosc.save(neuralosc.GRU(2, 3), tmp_path / "gru"), into=made())
    one_line(error, "holds a network", "into is a LatentODE")


def test_a_solver_that_has_no_name_is_refused_in_either_part(tmp_path, one_line):
    own = solvers.runge_kutta("my_euler", solvers.get("euler").tableau)
    for settings in ({"solver": own}, {"encoder_solver": own}):
        with pytest.raises(InputError) as error:
            neuralosc.save(made(encoder=False, **settings), tmp_path / "model")
        one_line(error, "my_euler")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"units": 10**9}, ["does not fit"]),
        ({"field_layers": 10**9}, ["field_layers 1000000000"]),
        ({"encoder_layers": 10**9}, ["encoder_layers 1000000000"]),
        ({"update": "lstm"}, ["'lstm'"]),
        ({"solver": "rk5"}, ["rk5"]),
        ({"encoder_max_dt": -1}, ["max_dt is -1"]),
        ({"encoder_missing": "mask"}, ["encoder_missing"]),
        ({"dt": "1h"}, ["1h"]),
    ],
)
def test_a_description_that_was_changed_is_refused(change, words, tmp_path, one_line):
    path = neuralosc.save(made(), tmp_path / "model")
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    header["config"] = json.dumps({**json.loads(header["config"]), **change})
    save_file(load_file(path), path, metadata=header)
    with pytest.raises(InputError) as error:
        neuralosc.load(path)
    one_line(error, path, *words)


@pytest.mark.parametrize("name", list(made(encoder=False).config))
def test_a_description_that_lacks_something_is_refused(name, tmp_path, one_line):
    path = neuralosc.save(made(), tmp_path / "model")
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    config = json.loads(header["config"])
    del config[name]
    save_file(load_file(path), path, metadata={**header, "config": json.dumps(config)})
    with pytest.raises(InputError) as error:
        neuralosc.load(path)
    one_line(error, path, name)
