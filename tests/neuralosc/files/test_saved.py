"""Saving and loading: whole round trips, and every file that is not one."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from neuralosc.files.saved import FORMAT
from solvers import InputError

F64 = torch.float64
NETWORKS = {
    "plain": ("cornn", {}),
    "per channel": ("cornn", {"gamma": [0.5, 1.0, 2.0], "epsilon": torch.tensor([0.1, 0.2, 0.3])}),
    "array": ("cornn", {"gamma": np.array([0.5, 1.0, 2.0])}),
    "learned": ("cornn", {"learned": True, "coupled": False, "solver": "stormer_verlet"}),
    "stack": ("unicornn", {"num_layers": 3, "dt": [0.1, 0.2, 0.3], "dropout": 0.25}),
    "options": ("lipschitz", {"solver": {"name": "dopri5", "rtol": 1e-5}, "gated": True, "control": "linear"}),
    "value": ("lipschitz", {"solver": solvers.get("imex_euler", implicit_terms="both"), "substeps": 3}),
    "adjoint": ("antisymmetric", {"solver": "tsit5", "gradient": "adjoint"}),
    "two layers": ("hamiltonian", {"energy_layers": 2, "alpha": 0.25}),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("which", NETWORKS)
def test_round_trip(which, dtype, tmp_path):
    name, settings = NETWORKS[which]
    rnn = neuralosc.make(name, input_size=2, hidden_size=3, **settings).to(dtype).eval()
    x = torch.randn(2, 4, 2, dtype=dtype)
    path = neuralosc.save(rnn, tmp_path / "net.safetensors", {"note": "a note"})
    again = neuralosc.load(path).eval()
    assert again.config == rnn.config and (again.solver, again.dts) == (rnn.solver, rnn.dts)
    assert (again.dropout, again.substeps, again.gradient) == (rnn.dropout, rnn.substeps, rnn.gradient)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(again(x)[0], rnn(x)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_swapped_solver_is_saved_as_swapped(tmp_path):
    rnn = neuralosc.CoRNN(2, 3).with_solver("rk4", substeps=4, dt=0.3)
    again = neuralosc.load(neuralosc.save(rnn, str(tmp_path / "a")))
    assert (again.solver.name, again.substeps, again.dt) == ("rk4", 4, 0.3)


def test_options_of_a_gradient_are_kept_or_refused(tmp_path):
    rnn = neuralosc.CoRNN(2, 3, solver="dopri5", gradient=solvers.Adjoint("adjoint", rtol=1e-10))
    try:
        path = neuralosc.save(rnn, tmp_path / "a")
    except InputError:
        return
    assert neuralosc.load(path).gradient == rnn.gradient


def test_a_solver_that_has_no_name_is_refused_when_saving(tmp_path, one_line):
    solver = solvers.runge_kutta("my_euler", solvers.get("euler").tableau)
    with pytest.raises(InputError) as error:
        neuralosc.save(neuralosc.CoRNN(2, 3, solver=solver), tmp_path / "a")
    one_line(error, "my_euler")


def test_a_field_of_ones_own_is_loaded_into_a_network(tmp_path, make_field, one_line):
    rnn = ContinuousRNN(make_field("leaky"), "rk4", 0.3)
    path = neuralosc.save(rnn, tmp_path / "own.safetensors")
    with pytest.raises(InputError) as error:
        neuralosc.load(path)
    one_line(error, "field of its own", "into=rnn")
    other = ContinuousRNN(make_field("leaky"), "rk4", 0.3)
    assert neuralosc.load(path, into=other) is other
    x = torch.randn(2, 4, 2, dtype=F64)
    assert torch.equal(other(x)[0], rnn(x)[0])
    smaller = ContinuousRNN(make_field("leaky", 2, 2), "rk4")
    before = [p.clone() for p in smaller.parameters()]
    with pytest.raises(InputError) as error:
        neuralosc.load(path, into=smaller)
    one_line(error, "does not fit", "(3,", "(2,")
    assert all(torch.equal(a, b) for a, b in zip(before, smaller.parameters(), strict=True))


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("writer", [pickle.dump, torch.save])
def test_a_pickle_is_refused_and_never_run(writer, tmp_path, one_line):
    mark, path = tmp_path / "executed", tmp_path / "net.safetensors"
    with open(path, "wb") as file:
        (writer(Bomb(mark), file) if writer is pickle.dump else writer({"weight": Bomb(mark)}, file))
    with pytest.raises(InputError) as error:
        neuralosc.load(path)
    one_line(error, str(path), "safetensors")
    assert not mark.exists()
    # The bomb does work where something unpickles it.
    with open(tmp_path / "check", "wb") as file:
        pickle.dump(Bomb(mark), file)
    with open(tmp_path / "check", "rb") as file:
        pickle.load(file).close()
    assert mark.exists()


def saved(tmp_path):
    rnn = neuralosc.CoRNN(2, 3)
    return rnn, neuralosc.save(rnn, tmp_path / "net.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, 0.99])
def test_a_truncated_file(keep, tmp_path, one_line):
    _, path = saved(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(InputError) as error:
        neuralosc.load(path)
    one_line(error, str(path))


def test_a_damaged_header(tmp_path, one_line):
    _, path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        neuralosc.load(path)
    one_line(error, str(path))
    path.write_bytes(struct.pack("<Q", 2**60) + bytes(100))
    with pytest.raises(InputError) as error:
        neuralosc.load(path)
    one_line(error, str(path))


def test_missing_files_folders_and_text(tmp_path, one_line):
    text = tmp_path / "text"
    text.write_text("hello")
    for path in (tmp_path / "none", tmp_path, text, tmp_path / "none" / "none"):
        with pytest.raises(InputError) as error:
            neuralosc.load(path)
        one_line(error, str(path), "neuralosc.save")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"format": "neuralosc 1"},
        {"format": "neuralosc 1", "config": "{"},
        {"format": "neuralosc 1", "config": "[1]"},
        {"format": "neuralosc 1", "config": "{}"},
        {"format": "neuralosc 1", "config": '{"model": "cornn"}'},
        {"format": "neuralosc 1", "config": '{"hidden_size": 3}'},
        {"format": "neuralosc 1", "config": '{"model": "conn", "input_size": 2, "hidden_size": 3}'},
        {"format": "neuralosc 1", "config": '{"model": "cornn", "input_size": 2, "hidden_size": 3, "beta": 1}'},
        {"format": "neuralosc 1", "config": '{"model": "cornn", "input_size": 2, "hidden_size": "3"}'},
        {"format": "neuralosc 1", "config": '{"model": "cornn", "input_size": 2, "hidden_size": 3, "gamma": null}'},
    ],
)
def test_a_foreign_safetensors_file(metadata, tmp_path, one_line):
    path = tmp_path / "foreign.safetensors"
    save_file(neuralosc.CoRNN(2, 3).state_dict(), path, metadata=metadata)
    with pytest.raises(InputError) as error:
        neuralosc.load(path)
    one_line(error)


def test_weights_that_do_not_fit_their_configuration(tmp_path, one_line):
    rnn, path = saved(tmp_path)
    header = {"format": FORMAT, "config": json.dumps(rnn.config)}
    for change in (
        lambda d: d.pop("fields.0.W"),
        lambda d: d.update(extra=torch.ones(1)),
        lambda d: d.update({"fields.0.W": torch.ones(1)}),
    ):
        state_dict = rnn.state_dict()
        change(state_dict)
        save_file(state_dict, path, metadata=header)
        with pytest.raises(InputError) as error:
            neuralosc.load(path)
        one_line(error, "does not fit")


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path, one_line):
    rnn, path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(InputError) as error:
        neuralosc.save(rnn, tmp_path / "none" / "net")
    one_line(error, "does not exist")
    with pytest.raises(InputError) as error:
        neuralosc.save(rnn, tmp_path)
    one_line(error, str(tmp_path))
    with pytest.raises(InputError) as error:
        neuralosc.save(rnn, path, {"epochs": 3})
    one_line(error, "metadata")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_loading_does_not_disturb_the_random_stream(tmp_path):
    _, path = saved(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    neuralosc.load(path)
    assert torch.equal(torch.rand(3), expected)


def leaky(make_field, **settings):
    return ContinuousRNN(make_field("leaky").float(), **{"solver": "rk4", "dt": 0.5, **settings})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dt": 0.1}, ["dt 0.5", "dt 0.1"]),
        ({"solver": "euler"}, ["'rk4'", "'euler'"]),
        ({"solver": {"name": "dopri5", "rtol": 1e-3}}, ["'rk4'", "0.001"]),
        ({"substeps": 2}, ["substeps"]),
        ({"control": "linear"}, ["control", "'hold'", "'linear'"]),
        ({"max_dt": 0.2}, ["max_dt"]),
    ],
)
def test_settings_that_are_not_those_saved_are_refused(other, words, make_field, tmp_path, one_line):
    path = neuralosc.save(leaky(make_field), tmp_path / "own")
    network = leaky(make_field, **other)
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(InputError) as caught:
        neuralosc.load(path, into=network)
    one_line(caught, *words, "with_solver")
    assert all(torch.equal(p, q) for p, q in zip(before, network.parameters(), strict=True))


def test_settings_that_change_no_output_may_differ(make_field, tmp_path):
    rnn, x = leaky(make_field), torch.randn(2, 5, 2)
    path = neuralosc.save(rnn, tmp_path / "own")
    again = neuralosc.load(path, into=leaky(make_field, gradient="checkpoint", dropout=0.5, missing="hold"))
    assert torch.equal(again.eval()(x)[0], rnn(x)[0])


def test_a_named_network_to_load_into_must_be_the_one_saved(tmp_path, one_line):
    path = neuralosc.save(neuralosc.CoRNN(2, 3, gamma=1.5), tmp_path / "named")
    with pytest.raises(InputError) as caught:
        neuralosc.load(path, into=neuralosc.CoRNN(2, 3, gamma=2.5))
    one_line(caught, "gamma 1.5", "gamma 2.5")
    assert neuralosc.load(path, into=neuralosc.CoRNN(2, 3, gamma=1.5)).config["gamma"] == 1.5


@pytest.mark.parametrize("change", [{"num_layers": 10**9}, {"hidden_size": 30_000_000}, {"input_size": 10**12}])
@pytest.mark.parametrize("name", ["cornn", "rnn", "linoss", "lstm", "noisy", "exprnn"])
def test_a_small_file_asks_for_no_more_than_it_holds(name, change, tmp_path, one_line):
    rnn = neuralosc.make(name, input_size=2, hidden_size=4)
    header = {"format": FORMAT, "config": json.dumps({**rnn.config, **change})}
    save_file(dict(rnn.state_dict()), tmp_path / "a", metadata=header)
    with pytest.raises(InputError) as caught:
        neuralosc.load(tmp_path / "a")
    one_line(caught, tmp_path)


@pytest.mark.parametrize("name", [card.name for card in neuralosc.models()])
def test_the_shapes_of_a_network_can_be_had_without_its_weights(name):
    with torch.device("meta"):
        rnn = neuralosc.make(name, input_size=2, hidden_size=4)
    assert {value.device.type for value in rnn.state_dict().values()} == {"meta"}
    whole = neuralosc.make(name, input_size=2, hidden_size=4).state_dict()
    assert {k: v.shape for k, v in whole.items()} == {k: v.shape for k, v in rnn.state_dict().items()}


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("own", [False, True])
def test_weights_that_are_no_real_numbers_are_refused(kind, own, tmp_path, one_line):
    rnn = neuralosc.CoRNN(2, 3)
    tensors = {**rnn.state_dict(), "fields.0.W": rnn.field.W.detach().to(kind)}
    save_file(tensors, tmp_path / "a", metadata={"format": FORMAT, "config": json.dumps(rnn.config)})
    with pytest.raises(InputError) as caught:
        neuralosc.load(tmp_path / "a", into=rnn if own else None)
    one_line(caught, "fields.0.W", kind, "torch.float32")


def test_each_weight_keeps_its_precision(tmp_path):
    rnn = neuralosc.CoRNN(2, 3)
    rnn.field.V.double()
    again = neuralosc.load(neuralosc.save(rnn, tmp_path / "a"))
    assert [(p.dtype, p.requires_grad) for p in again.parameters()] == [(p.dtype, True) for p in rnn.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), rnn.parameters(), strict=True))


def with_readout():
    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.readout = neuralosc.CoRNN(2, 3), neuralosc.Readout(3, 2)

    return Classifier()


@pytest.mark.parametrize("module", [with_readout(), torch.nn.GRU(2, 3), neuralosc.Readout(3, 2), None])
def test_what_is_no_recurrent_layer_is_neither_saved_nor_exported(module, tmp_path, one_line):
    rnn = neuralosc.CoRNN(2, 3)
    path = neuralosc.save(rnn, tmp_path / "a")
    for use in (
        lambda: neuralosc.save(module, tmp_path / "b"),
        lambda: neuralosc.export(module),
        lambda: neuralosc.export_onnx(module, tmp_path / "b"),
        *([] if module is None else [lambda: neuralosc.load(path, into=module)]),
    ):
        with pytest.raises(InputError) as caught:
            use()
        one_line(caught, type(module).__name__, "recurrent layer")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
