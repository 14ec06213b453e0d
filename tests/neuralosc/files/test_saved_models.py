"""Whole models in one file: they predict what they did, and no other file passes for one."""

import datetime
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import neuralosc
from neuralosc import Collator, Readout, SequenceModel
from neuralosc.files.saved import FORMAT, MODEL_FORMAT

F64 = torch.float64
TIMES = np.datetime64("2026-03-01T08:00", "m") + np.array([0, 45, 50, 240]) * np.timedelta64(1, "m")
VALUES = np.array([[37.1, np.nan], [37.9, 82.0], [38.2, np.nan], [37.4, 76.0]])
COLLATORS = {
    "unit": Collator(unit="1h"),
    "all": Collator(unit="30min", first=0.5, duplicates="last", order="sort", dtype=F64),
    "date": Collator(unit="1h", origin=np.datetime64("2026-03-01T07:00", "ns")),
    "python": Collator(unit="1h", origin=datetime.datetime(2026, 3, 1, 7)),
    "number": Collator(unit=2.5, origin=-1.25),
    "integer": Collator(unit=2.5, origin=-1),
    "none": None,
}


def made(kind="every", name="lem", collator=COLLATORS["unit"], scaled=True, bias=True, **settings):
    torch.manual_seed(0)
    rnn = neuralosc.make(name, input_size=2, hidden_size=4, **{"missing": "hold", **settings})
    model = SequenceModel(rnn, Readout(rnn.output_size, 3, kind, rnn.bidirectional, bias), collator)
    if scaled:
        targets = 10 * torch.randn((5, 4, 3) if kind == "every" else (5, 3))
        model.fit_scaling(50 + 9 * torch.randn(5, 4, 2), targets=targets)
    return model.eval()


@pytest.mark.parametrize("collator", COLLATORS)
def test_it_predicts_what_it_did(collator, tmp_path):
    saved = made(collator=COLLATORS[collator])
    path = neuralosc.save(saved, tmp_path / "model.safetensors", {"note": "a note"})
    again = neuralosc.load(path)
    times = {"none": None, "number": np.arange(4.0), "integer": np.arange(4.0)}.get(collator, TIMES)
    np.testing.assert_array_equal(again.predict(times, VALUES), saved.predict(times, VALUES))
    at = (np.arange(4) if times is None else times)[1:]
    np.testing.assert_array_equal(again.predict(times, VALUES, at=at), saved.predict(times, VALUES, at=at))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    kept, own = again.collator, saved.collator
    if own is not None:
        assert (kept.unit, kept.first, kept.duplicates, kept.order, kept.dtype) == (
            own.unit,
            own.first,
            own.duplicates,
            own.order,
            own.dtype,
        )
    with safe_open(path, "pt") as file:
        assert file.metadata()["note"] == "a note" and file.metadata()["format"] == MODEL_FORMAT


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("lem", "last", {"num_layers": 2, "dt": [0.1, 0.2]}),
        ("gru", "attention", {"bidirectional": True, "residual": True}),
        ("lipschitz", "mean", {"solver": {"name": "dopri5", "rtol": 1e-5}, "bias": False}),
        ("linoss", "last", {}),
        ("lstm", "last", {"timespans": "feature", "missing": "mask"}),
    ],
)
def test_networks_and_readouts_of_every_kind(name, kind, settings, tmp_path):
    for dtype in (torch.float32, F64):
        saved = made(kind, name=name, **settings).to(dtype).eval()
        again = neuralosc.load(neuralosc.save(saved, tmp_path / "a"))
        assert again.rnn.config == saved.rnn.config and again.readout.kind == kind
        np.testing.assert_array_equal(again.predict(TIMES, VALUES), saved.predict(TIMES, VALUES))
        assert {value.dtype for value in again.state_dict().values() if value.is_floating_point()} == {dtype}
    swapped = saved.with_solver("rk4") if hasattr(saved.rnn, "with_solver") and name != "linoss" else saved
    again = neuralosc.load(neuralosc.save(swapped, tmp_path / "a"))
    np.testing.assert_array_equal(again.predict(TIMES, VALUES), swapped.predict(TIMES, VALUES))


def test_without_scaling_it_has_none(tmp_path):
    again = neuralosc.load(neuralosc.save(made(scaled=False), tmp_path / "a"))
    assert again.input_scaler is None and again.target_scaler is None


def own(make_field, dt=0.3, **settings):
    torch.manual_seed(0)
    rnn = neuralosc.ContinuousRNN(make_field("leaky"), "rk4", dt)
    options = {"collator": Collator(unit="1h"), **settings}
    return SequenceModel(rnn, Readout(rnn.output_size, 1).double(), **options)


def test_a_model_of_a_field_of_ones_own_is_loaded_into_one(make_field, tmp_path, one_line):
    saved = own(make_field).fit_scaling(torch.randn(3, 4, 2, dtype=F64))
    path = neuralosc.save(saved, tmp_path / "own")
    scaler = neuralosc.Scaler(2).double
    with pytest.raises(neuralosc.InputError) as caught:
        neuralosc.load(path)
    one_line(caught, "field of its own", "into=model")
    other = own(make_field, input_scaler=scaler())
    assert neuralosc.load(path, into=other) is other
    values = np.nan_to_num(VALUES)
    np.testing.assert_array_equal(other.predict(TIMES, values), saved.predict(TIMES, values))
    for into, words in (
        (own(make_field), ["does not fit", "input_scaler"]),
        (own(make_field, 0.2, input_scaler=scaler()), ["dt 0.3", "dt 0.2"]),
        (own(make_field, collator=Collator(unit="2h"), input_scaler=scaler()), ["3600", "7200"]),
        (saved.rnn, ["a SequenceModel", "into is a network"]),
        (torch.nn.GRU(2, 3), ["GRU", "recurrent layer"]),
    ):
        before = [value.clone() for value in into.state_dict().values()]
        with pytest.raises(neuralosc.InputError) as caught:
            neuralosc.load(path, into=into)
        one_line(caught, *words)
        assert all(torch.equal(p, q) for p, q in zip(before, into.state_dict().values(), strict=True))
    network = neuralosc.save(saved.rnn, tmp_path / "network")
    with pytest.raises(neuralosc.InputError) as caught:
        neuralosc.load(network, into=saved)
    one_line(caught, "a network", "into is a SequenceModel")


def changed(description, *path, value):
    """A copy of a description with another value at a place in it."""
    copy = json.loads(json.dumps(description))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if value is None and path[-1] in place:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = neuralosc.save(made(collator=COLLATORS["date"]), tmp_path_factory.mktemp("saved") / "model")
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["config"])


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (["rnn", "model"], "no_such", ["no_such"]),
        (["rnn", "hidden_size"], 10**9, ["cannot be used"]),
        (["rnn", "hidden_size"], 5, ["readout takes 4"]),
        (["readout", "answers"], 4, ["readout.bias", "(4,)"]),
        (["readout", "answers"], 10**12, ["shape"]),
        (["readout", "kind"], "attention", ["pooling"]),
        (["readout", "kind"], "first", ["'first'"]),
        (["readout", "bidirectional"], True, ["bidirectional"]),
        (["readout", "bias"], False, ["readout.bias"]),
        (["readout", "bias"], None, ["bias"]),
        (["readout", "more"], 1, ["more"]),
        (["readout"], 3, ["model"]),
        (["input_scaler"], False, ["input_scaler.mean"]),
        (["input_scaler"], 1, ["input_scaler", "True or False"]),
        (["target_scaler"], None, ["target_scaler"]),
        (["more"], 1, ["more"]),
        (["collator", "unit", "size"], -1.0, ["-1.0"]),
        (["collator", "unit", "size"], "1h", ["unit"]),
        (["collator", "unit", "timed"], 1, ["timed"]),
        (["collator", "unit"], "median", ["model"]),
        (["collator", "first"], -1, ["first"]),
        (["collator", "order"], "random", ["'random'"]),
        (["collator", "dtype"], "int", ["dtype", "'int'"]),
        (["collator", "origin", "kind"], "M8[moon]", ["model"]),
        (["collator", "origin", "kind"], "O", ["model"]),
        (["collator", "origin", "ticks"], "now", ["model"]),
        (["collator", "more"], 1, ["more"]),
    ],
)
def test_a_description_that_was_changed_is_refused(place, value, words, written, tmp_path, one_line):
    tensors, description = written
    header = {"format": MODEL_FORMAT, "config": json.dumps(changed(description, *place, value=value))}
    save_file(tensors, tmp_path / "model", metadata=header)
    with pytest.raises(neuralosc.InputError) as caught:
        neuralosc.load(tmp_path / "model")
    one_line(caught, tmp_path, *words)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("input_scaler.scale", torch.tensor([1.0, 0.0]), ["input_scaler", "scales"]),
        ("input_scaler.scale", torch.tensor([1.0, -1.0]), ["input_scaler", "scales"]),
        ("target_scaler.mean", torch.full((3,), torch.nan), ["target_scaler", "means"]),
        ("target_scaler.mean", torch.zeros(2), ["target_scaler.mean", "(2,)", "(3,)"]),
        ("target_scaler.mean", torch.zeros(3, dtype=torch.int64), ["target_scaler.mean", "int64"]),
        ("input_scaler.mean", None, ["input_scaler.mean", "missing"]),
        ("readout.weight", None, ["readout.weight", "missing"]),
        ("more", torch.zeros(1), ["more", "no place"]),
    ],
)
def test_tensors_that_were_changed_are_refused(name, value, words, written, tmp_path, one_line):
    tensors, description = written
    tensors = {key: each for key, each in {**tensors, name: value}.items() if each is not None}
    save_file(tensors, tmp_path / "model", metadata={"format": MODEL_FORMAT, "config": json.dumps(description)})
    with pytest.raises(neuralosc.InputError) as caught:
        neuralosc.load(tmp_path / "model")
    one_line(caught, tmp_path, *words)


@pytest.mark.parametrize("config", [None, "{", "[]", "null", "3", '{"rnn": {}}', '{"model": "lem"}'])
@pytest.mark.parametrize("kind", [FORMAT, MODEL_FORMAT, "neuralosc model 0"])
def test_a_header_of_another_kind_is_refused(config, kind, written, tmp_path, one_line):
    header = {"format": kind, **({} if config is None else {"config": config})}
    save_file(written[0], tmp_path / "model", metadata=header)
    with pytest.raises(neuralosc.InputError) as caught:
        neuralosc.load(tmp_path / "model")
    one_line(caught, tmp_path)


def test_a_readout_of_another_class_is_not_written(tmp_path, one_line):
    class Loud(Readout):
        pass

    rnn = neuralosc.GRU(input_size=2, hidden_size=4)
    with pytest.raises(neuralosc.InputError) as caught:
        neuralosc.save(SequenceModel(rnn, Loud(4, 1)), tmp_path / "model")
    one_line(caught, "Loud")
    assert not list(tmp_path.iterdir())


def test_what_was_saved_before_predicts_the_same():
    folder = Path(__file__).parents[2] / "golden" / "saved_models"
    again, expected = neuralosc.load(folder / "lem.safetensors"), load_file(folder / "lem.answers.safetensors")
    answers = again.predict(expected["minutes"].numpy().astype("m8[m]"), expected["values"])
    np.testing.assert_allclose(answers, expected["answers"], rtol=1e-9)
    assert (again.collator.first, again.collator.order, again.collator.duplicates) == (0.5, "sort", "last")
