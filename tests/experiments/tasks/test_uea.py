"""Sets of the UEA and UCR archives. What needs aeon is left out where it is not installed."""

import importlib.util
import io
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import neuralosc
from experiments import tasks
from experiments.command.cli import main
from experiments.tasks import ts_files
from experiments.tasks.subsets import kept
from experiments.tasks.ts_files import Labelled, read_ts
from experiments.train import serving, training
from experiments.train.config import RunConfig, load_yaml
from experiments.train.model import build
from experiments.train.runs import RunFolder
from experiments.train.training import evaluate
from solvers.errors import InputError
from tests.experiments.tasks.labelled import CLASSES, made, same, task_of

needs_aeon = pytest.mark.skipif(
    importlib.util.find_spec("aeon") is None, reason="aeon is not installed: pip install '.[data]'"
)


# Which samples are removed


@pytest.mark.parametrize(
    "length, drop, left", [(10, 0.3, 7), (10, 0.0, 10), (100, 0.29, 71), (7, 0.7, 3), (3, 0.999, 1)]
)
def test_a_fraction_is_removed_in_whole_samples(length, drop, left):
    places = kept(length, drop, (0, 0, 0))
    assert len(places) == left and (np.diff(places) > 0).all() and places.min() >= 0 and places.max() < length


def test_what_is_removed_at_one_fraction_is_removed_at_every_larger_one():
    few, some, many = (set(kept(40, drop, (3, 1, 5))) for drop in (0.7, 0.5, 0.3))
    assert few < some < many


def test_every_sample_is_as_likely_to_go_and_each_series_draws_anew():
    times = np.zeros(12)
    for number in range(4000):
        times[kept(12, 0.25, (0, 0, number))] += 1
    # The standard deviation of each share is 0.0068.
    assert np.abs(times / 4000 - 0.75).max() < 0.03
    keys = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert len({kept(30, 0.5, key).tobytes() for key in keys}) == len(keys)


# The three sets


def test_timespans_are_the_true_gaps_and_the_first_is_one():
    task = task_of(made(30, 0), made(12, 1), drop=0.5)
    assert task.irregular and not task.gaps and task.input_size == 3 and task.output_size == 3
    for data, count in zip(task.splits(), (24, 6, 12), strict=True):
        whole = data[:]
        assert len(data) == count and whole.x.dtype == whole.timespans.dtype == torch.float64
        assert (whole.timespans[:, 0] == 1).all() and (whole.timespans == whole.timespans.round()).all()
        assert not whole.x[~whole.valid].any() and not whole.timespans[~whole.valid].any()
        # The first channel goes up by the same amount in each step of the original.
        steps = (whole.x[:, 1:, 0] - whole.x[:, :-1, 0])[whole.valid[:, 1:]] / whole.timespans[:, 1:][
            whole.valid[:, 1:]
        ]
        assert steps.std() < 1e-5 and steps.mean() > 0.1
        assert (whole.timespans[whole.valid] >= 1).all() and whole.timespans.max() >= 3


def scales(task, time="true"):
    """Means and scales of the model of a task."""
    config = RunConfig(task="uea", model="gru", model_options={"hidden_size": 3}, precision="64", time=time)
    scaler = build(config, task).input_scaler
    return scaler.mean.numpy(), scaler.scale.numpy()


def test_the_samples_left_are_those_of_the_series_in_its_place():
    test = made(12, 1)
    task = task_of(made(30, 0), test, drop=0.3, drop_seed=4)
    train, _, held_back = task.splits()
    left = [kept(len(one), 0.3, (4, 1, number)) for number, one in enumerate(test.series)]
    assert held_back.whole.lengths.tolist() == [len(places) for places in left]
    flat = np.concatenate([one[places] for one, places in zip(test.series, left, strict=True)])
    np.testing.assert_array_equal(held_back.whole.x[held_back.whole.valid], flat)
    assert held_back.whole.y.tolist() == [number % 3 for number in range(12)]
    rows = train.whole.x[train.whole.valid].numpy()
    mean, scale = scales(task)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale, rows.std(0), rtol=1e-12)
    # Numbers of steps, which are shown as they are.
    mean, scale = scales(task, "input")
    assert (mean[-1], scale[-1]) == (0, 1)
    np.testing.assert_allclose(mean[:-1], rows.mean(0), rtol=1e-12)


def test_sets_depend_on_the_seed_of_the_removal_alone():
    parts = made(30, 0), made(12, 1)
    one, again, other = (
        task_of(*parts, drop=0.5, drop_seed=drop_seed).splits(seed) for drop_seed, seed in ((0, 0), (0, 8), (1, 0))
    )
    assert all(same(a[:], b[:]) for a, b in zip(one, again, strict=True))
    assert not any(same(a[:][:1], b[:][:1]) for a, b in zip(one, other, strict=True))
    # Which series are in which set does not depend on it.
    assert all(torch.equal(a[:].y, b[:].y) for a, b in zip(one, other, strict=True))
    assert [torch.bincount(data[:].y).tolist() for data in one] == [[8, 8, 8], [2, 2, 2], [4, 4, 4]]


def test_the_scale_is_that_of_the_training_set_alone():
    train, test = made(30, 0), made(12, 1)
    far = Labelled(tuple(100 * one for one in test.series), test.labels, test.classes)
    np.testing.assert_array_equal(scales(task_of(train, test)), scales(task_of(train, far)))


def test_without_removal_samples_are_a_step_apart():
    task = task_of(made(30, 0), made(12, 1))
    batch = task.splits()[0][:]
    assert not task.irregular and batch.timespans is None and batch.lengths is not None and task.length == 21
    equal = task_of(made(30, 0, (8, 8)), made(12, 1, (8, 8)), drop=0.25)
    batch = equal.splits()[0][:]
    assert batch.lengths is None and batch.x.shape == (24, 6, 3) and equal.length == 8


def test_missing_values_stay_missing_and_do_not_count():
    task = task_of(made(30, 0, missing=True), made(12, 1), drop=0.3)
    train, _, test = task.splits()
    seen = train.whole.x[..., 1][train.whole.valid]
    assert task.gaps and 0.2 < seen.isnan().float().mean() < 0.4 and not test.whole.x.isnan().any()
    mean, scale = scales(task)
    seen = seen[~seen.isnan()].numpy()
    np.testing.assert_allclose((mean[1], scale[1]), (seen.mean(), seen.std()), rtol=1e-12)


def test_classes_are_numbered_as_the_training_set_names_them():
    test = Labelled(made(3, 1).series, ("running", "walking", "at rest"), ("at rest", "running", "walking"))
    task = task_of(made(30, 0), test)
    assert task.classes == CLASSES and task.splits()[2][:].y.tolist() == [1, 0, 2]


def test_classes_are_numbered_as_the_run_says():
    task = task_of(made(30, 0), made(12, 1), classes="running,at rest,walking")
    assert task.classes == ("running", "at rest", "walking") and task.splits()[2][:].y.tolist()[:3] == [2, 0, 1]
    # Without any file.
    assert tasks.get("uea", classes=list(CLASSES)).output_size == 3


def test_too_few_series_for_validation_are_refused():
    with pytest.raises(InputError, match="has no class with three training series or more"):
        task_of(made(6, 0), made(12, 1)).splits()
    assert [len(data) for data in task_of(made(7, 0), made(12, 1)).splits()] == [6, 1, 12]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"drop": 1.0}, "'drop' is 1.0: expected a fraction from 0 to below 1"),
        ({"drop": -0.1}, "'drop' is -0.1: expected"),
        ({"drop": True}, "'drop' is True: expected"),
        ({"drop": float("nan")}, "'drop' is nan: expected"),
        ({"drop": "half"}, "'drop' is 'half': expected"),
        ({"drop_seed": -1}, "'drop_seed' is -1: expected a whole number of at least 0"),
        ({"dataset": 3}, "'dataset' is 3: expected the name of a set"),
    ],
)
def test_useless_options_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        tasks.get("uea", **options)


# Answers to other files


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on series that stand in for those of files, by what they are told of the time."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patched(patch)
        for time, drop in (("true", 0.5), ("input", 0.5), ("ignored", 0.5), ("even", 0.0)):
            options = {"hidden_size": 4, "solver": "relaxation_euler"}
            config = {"task": "uea", "task_options": {"drop": drop}, "model": "gru", "model_options": options}
            config |= {"time": "true" if time == "even" else time, "epochs": 2, "threads": 1, "lr": 0.05}
            training.train(RunConfig.from_dict(config), root, time, progress=False)
    return root


def patched(patch):
    """Have the files of the set hold series made here, and others those of the test set."""
    held = {"TRAIN": made(30, 0), "TEST": made(12, 1)}

    def read(task, path, labelled=True):
        found = held[path.stem.rpartition("_")[2]]
        return found if labelled else Labelled(found.series, (), ())

    patch.setattr("experiments.tasks.uea.read_ts", read)
    patch.setattr("experiments.tasks.uea.files", lambda *_: (Path("Tiny_TRAIN.ts"), Path("Tiny_TEST.ts")))


def table(path, places=lambda number, one: np.arange(len(one)), without=(), **more):
    """The test series, or some of their samples, as a table."""
    parts = []
    for number, one in enumerate(made(12, 1).series):
        left = places(number, one)
        parts.append(pd.DataFrame(one[left], columns=["b", "a", "c"]).assign(series=f"0{number}", time=left, **more))
    pd.concat(parts).drop(columns=list(without)).to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("time", ["true", "input", "ignored"])
def test_a_run_answers_other_files_by_the_names_of_the_classes(time, runs, tmp_path, monkeypatch, capsys):
    assert load_yaml(runs / time / "config.yaml").task_options["classes"] == list(CLASSES)
    left = table(tmp_path / "left.csv", lambda number, one: kept(len(one), 0.5, (0, 1, number)), **{"class": "?"})
    # None of the files of the training, and no aeon.
    monkeypatch.setitem(sys.modules, "aeon", None)
    assert main(["predict", str(runs / time), left]) == 0
    out = pd.read_csv(io.StringIO(capsys.readouterr().out), dtype={"series": str})
    assert list(out.columns) == ["series", "class", *(f"p({name})" for name in CLASSES)] and out.series[1] == "01"
    patched(monkeypatch)
    test = training.load_model(runs / time)[2].splits()[2].whole
    figures = evaluate(runs / time)
    assert (out["class"] == [CLASSES[int(y)] for y in test.y]).mean() == figures["accuracy"]
    chances = out[[f"p({name})" for name in CLASSES]].to_numpy()
    loss = -np.log(chances[np.arange(12), test.y]).mean()
    assert loss == pytest.approx(figures["loss"], rel=1e-5)


def test_a_file_of_series_is_answered_as_a_table_of_them(runs, tmp_path, monkeypatch):
    patched(monkeypatch)
    (tmp_path / "new_TEST.ts").touch()
    for time in ("true", "even"):
        ts = serving.predict(runs / time, [tmp_path / "new_TEST.ts"])
        csv = serving.predict(runs / time, [table(tmp_path / f"{time}.csv", without=["time"] * (time == "even"))])
        assert ts.series.tolist() == [f"{number}" for number in range(1, 13)]
        np.testing.assert_allclose(ts.iloc[:, 2:].to_numpy(), csv.iloc[:, 2:].to_numpy(), rtol=1e-6)
    both = serving.predict(runs / "even", [tmp_path / "new_TEST.ts", tmp_path / "even.csv"])
    assert both.series[0] == "new_TEST 1" and len(both) == 24
    served = neuralosc.load(serving.export(runs / "even", tmp_path / "model.safetensors"))
    logits = torch.from_numpy(served.predict(None, list(made(12, 1).series)))
    np.testing.assert_allclose(logits.softmax(-1), ts.iloc[:, 2:].to_numpy(), rtol=1e-5)


def test_tables_that_do_not_fit_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="has the channels b, a, c, time: expected 3"):
        serving.predict(runs / "even", [table(tmp_path / "a.csv")])
    pd.DataFrame({"a": [1.0]}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(InputError, match="has no column 'series'"):
        serving.predict(runs / "true", [tmp_path / "b.csv"])


def test_a_run_of_before_has_no_scales_and_is_refused(runs, tmp_path, monkeypatch):
    patched(monkeypatch)
    shutil.copytree(runs / "true", tmp_path / "old")
    folder = RunFolder.open(tmp_path / "old")
    model = neuralosc.load(folder.model_file)
    model.input_scaler = None
    neuralosc.save(model, folder.model_file)
    folder.result_file.unlink()
    with pytest.raises(InputError, match=r"scaled the values of task 'uea' before the model.*train it again"):
        evaluate(folder.path)


# Without aeon, and what its reader says


def test_without_aeon_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aeon", None)
    assert main(["train", "--task", "uea", "--model", "gru"]) == 2
    out = capsys.readouterr()
    assert (
        out.err.startswith("error: task 'uea' needs aeon: pip install 'neuralosc[data]'") and out.err.count("\n") == 1
    )


def test_an_aeon_that_does_not_fit_what_is_installed_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "aeon").mkdir()
    (tmp_path / "aeon" / "__init__.py").write_text("")
    (tmp_path / "aeon" / "datasets.py").write_text("raise ImportError('needs an older\\n NumPy')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "aeon"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(InputError, match=r"which cannot be imported \(needs an older NumPy\): pip install"):
            tasks.get("uea").splits()
    finally:
        # Not by the fixture, which would put back what it takes away.
        for name in ("aeon", "aeon.datasets"):
            sys.modules.pop(name, None)


def answered(monkeypatch, series, labels, **header):
    """A reader that finds this in every file."""
    read = {"timestamps": False, "classlabel": True, "targetlabel": False, "class_values": ["b", "a"], **header}
    found = (series, np.asarray(labels), read)
    monkeypatch.setattr(
        ts_files, "_aeon", lambda task: SimpleNamespace(load_from_ts_file=lambda path, return_meta_data: found)
    )


def test_what_the_reader_finds_becomes_series_in_time(monkeypatch, tmp_path):
    answered(monkeypatch, [np.arange(6.0).reshape(2, 3), np.ones((2, 1))], ["a", " b"])
    read = read_ts("uea", tmp_path / "x.ts")
    assert read.series[0].tolist() == [[0, 3], [1, 4], [2, 5]] and read.series[1].shape == (1, 2)
    assert read.labels == ("a", "b") and read.classes == ("b", "a")
    answered(monkeypatch, [np.ones((1, 2))], [], classlabel=False, class_values=[])
    read = read_ts("uea", tmp_path / "x.ts", labelled=False)
    assert read.series[0].shape == (2, 1) and read.labels == read.classes == ()


ONE = [np.zeros((1, 4))]


@pytest.mark.parametrize(
    "series, labels, header, message",
    [
        (ONE, ["a"], {"timestamps": True}, "has @timeStamps true"),
        (ONE, [0.5], {"targetlabel": True}, "names no classes"),
        (ONE, [], {"classlabel": False}, "names no classes"),
        (ONE, ["a"], {"class_values": []}, "names no classes"),
        (ONE, ["a"], {"class_values": ["a", "a"]}, "names a class twice in its header: a, a"),
        (ONE, ["c"], {}, "series 1 is of class 'c': its header names b, a"),
        ([], [], {}, "holds no series"),
        ([*ONE, np.full((1, 2), -np.inf)], ["a", "b"], {}, "series 2 has an infinite value"),
    ],
)
def test_series_that_would_be_wrong_are_refused(series, labels, header, message, monkeypatch, tmp_path):
    answered(monkeypatch, series, labels, **header)
    with pytest.raises(InputError, match=message):
        read_ts("uea", tmp_path / "x.ts")


@pytest.mark.parametrize(
    "train, test, message",
    [
        (
            (made(30, 0).series, CLASSES * 10, CLASSES),
            None,
            "name different classes in their headers: walking, running",
        ),
        (None, (ONE, ("a",), ("b", "a")), "has series of 4 channels: .*TRAIN.ts begins with 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(train, test, message, monkeypatch, tmp_path):
    parts = {
        "TRAIN": Labelled(*train) if train else Labelled(tuple(one.T for one in ONE), ("a",), ("b", "a")),
        "TEST": Labelled(*test) if test else Labelled(tuple(ONE), ("a",), ("b", "a")),
    }
    folder = tmp_path / "Tiny"
    folder.mkdir()
    for part in parts:
        (folder / f"Tiny_{part}.ts").touch()
    monkeypatch.setattr(
        "experiments.tasks.uea.read_ts", lambda task, path, labelled=True: parts[path.stem.rpartition("_")[2]]
    )
    with pytest.raises(InputError, match=message):
        tasks.get("uea", dataset="Tiny", data_dir=str(tmp_path)).splits()


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r"there is no .*Tiny/Tiny_TRAIN\.ts: give --data-dir a folder with Tiny/Tiny_TR"
    ):
        tasks.get("uea", dataset="Tiny", data_dir=str(tmp_path)).splits()


# With aeon

HEADER = "# a set\n@problemName Tiny\n@timeStamps {stamps}\n@missing true\n@univariate false\n@equalLength false\n"


def write_ts(path, labelled, text=None, stamps="false", classes="@classLabel true Fast slow"):
    """Series in the published form."""
    lines = [
        ":".join(",".join("?" if np.isnan(v) else f"{v:.17g}" for v in channel) for channel in one.T) + f":{label}"
        for one, label in zip(labelled.series, labelled.labels, strict=True)
    ]
    path.parent.mkdir(exist_ok=True)
    head = HEADER.format(stamps=stamps) + f"@dimension 3\n{classes}\n@data\n"
    path.write_text(head + "\n".join(lines) + "\n" if text is None else text)


def written(folder, **changes):
    parts = []
    for part, count in (("TRAIN", 20), ("TEST", 8)):
        plain = made(count, count, missing=True)
        parts.append(Labelled(plain.series, tuple("Fast" if i % 2 else "slow" for i in range(count)), ("fast", "slow")))
        write_ts(folder / "Tiny" / f"Tiny_{part}.ts", parts[-1], **(changes if part == "TRAIN" else {}))
    return parts


@needs_aeon
def test_files_are_read_as_they_were_written(tmp_path):
    train, _ = written(tmp_path)
    read = read_ts("uea", tmp_path / "Tiny" / "Tiny_TRAIN.ts")
    for one, other in zip(read.series, train.series, strict=True):
        np.testing.assert_array_equal(one, other)
    assert read.labels == tuple(label.lower() for label in train.labels) and read.classes == ("fast", "slow")
    task = tasks.get("uea", dataset="Tiny", data_dir=str(tmp_path), drop=0.4)
    assert [len(data) for data in task.splits()] == [16, 4, 8] and task.gaps and task.classes == ("fast", "slow")


@needs_aeon
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text": "<html>\n404 not found\n</html>\n"}, "names no classes"),
        ({"text": ""}, "names no classes"),
        ({"text": HEADER.format(stamps="false") + "@classLabel false\n@data\n1,2:3,4\n"}, "names no classes"),
        ({"text": HEADER.format(stamps="false") + "@targetLabel true\n@data\n1,2:3,4:0.5\n"}, "names no classes"),
        ({"classes": "@classLabel true fast"}, "series 1 is of class 'slow': its header names fast"),
        (
            {"text": HEADER.format(stamps="false") + "@classLabel true a b\n@data\n1,2:3,x:a\n"},
            "is damaged or no .ts file",
        ),
        ({"text": HEADER.format(stamps="false") + "@classLabel true a b\n@data\n1,2:3:a\n"}, "different number of obs"),
        (
            {
                "text": HEADER.format(stamps="true")
                + "@classLabel true a b\n@data\n(0,-1.5),(2,-2.5):(0,1.5),(2,3.5):a\n"
            },
            "has @timeStamps true",
        ),
    ],
)
def test_files_that_cannot_be_used_are_one_clear_line(changes, message, tmp_path):
    written(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        tasks.get("uea", dataset="Tiny", data_dir=str(tmp_path)).splits()
    assert "\n" not in str(caught.value) and "Tiny_TRAIN.ts" in str(caught.value)


@needs_aeon
def test_sets_that_come_with_aeon_are_found_and_others_are_not():
    task = tasks.get("uea", drop=0.7)
    splits = task.splits()
    assert [len(data) for data in splits] == [216, 54, 370] and task.input_size == 12 and task.output_size == 9
    lengths = [len(one) for one in task._parts[1].series]
    assert splits[2].whole.lengths.tolist() == [n - 7 * n // 10 for n in lengths] and min(lengths) == 7
    with pytest.raises(InputError, match=r"no set 'Nowhere' comes with aeon: give --data-dir .*BasicMotions.*Japanese"):
        tasks.get("uea", dataset="Nowhere").splits()


@needs_aeon
@pytest.mark.parametrize("time", ["true", "input", "ignored"])
def test_a_network_is_trained_on_what_is_left(time, tmp_path, capsys):
    written(tmp_path)
    command = ["train", "--task", "uea", "--dataset", "Tiny", "--drop", "0.5", "--drop-seed", "3", "--time", time]
    command += ["--data-dir", str(tmp_path), "--model", "gru", "--hidden-size", "4", "--solver", "relaxation_euler"]
    assert main([*command, "--epochs", "2", "--threads", "1", "--root", str(tmp_path / "runs"), "--name", time]) == 0
    assert "missing values, shown as --missing mask" in " ".join(capsys.readouterr().err.split())
    figures = evaluate(tmp_path / "runs" / time)
    assert figures["samples"] == 8 and 0 <= figures["accuracy"] <= 1
