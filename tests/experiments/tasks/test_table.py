"""A table of one's own as a task: what is read, how it is divided, what is asked, and what is refused."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

import neuralosc
from experiments.command.cli import main
from experiments.tasks.table import Table
from experiments.train import serving
from experiments.train.checkpoints import load_checkpoint, sealed
from experiments.train.config import RunConfig
from experiments.train.scoring import Scoring
from experiments.train.training import build, evaluate, load_model, resume, train
from solvers.errors import InputError

HOURS = pd.date_range("2026-01-01", periods=240, freq="h")


def people(path, count=20):
    """Series of irregular times with a class, a number and a column of text."""
    random, rows = np.random.RandomState(0), []
    for i in range(count):
        times = np.cumsum(random.exponential(size=4 + i % 5)).round(6)
        for t in times:
            rows.append(
                (f"{i:02d}", t, random.randn() if random.rand() < 0.7 else "", "x", ("no", "yes")[i % 2], i / 2)
            )
    pd.DataFrame(rows, columns=["who", "t", "a", "word", "label", "score"]).to_csv(path, index=False)
    return str(path)


def daily(path, slip=0.0):
    """A day's wave, hour by hour, of which every fifth value is missing."""
    wave = 10 + 5 * np.sin(2 * np.pi * np.arange(240) / 24) + slip * np.arange(240)
    wave[4::5] = np.nan
    pd.DataFrame({"when": HOURS, "wave": wave, "other": np.arange(240.0)}).to_csv(path, index=False)
    return str(path)


def forecast(path, **changes):
    options = {"time_column": "when", "target": "wave", "horizon": "2h,24h", "history": "6h"}
    return Table(csv=daily(path), **{**options, **changes})


def test_windows_are_those_of_the_file_and_their_answers_what_follows(tmp_path):
    task = forecast(tmp_path / "a.csv")
    values = pd.read_csv(tmp_path / "a.csv")
    assert task.inputs == ["wave", "other"] and task.outputs == ["wave +2h", "wave +24h"] and task.output_size == 2
    ends = []
    # 70 % of 240 rows are for training, 15 % for validation; of the last windows of a part not all is asked.
    for data, bound in zip(task.splits(), (168, 204, 240), strict=True):
        batch = data[:]
        assert batch.x.shape[1:] == (7, 2) and set(batch.lengths.tolist()) == {7}
        assert torch.equal(batch.timespans, torch.ones_like(batch.timespans))
        last = batch.x[:, -1, 1].long().tolist()
        for row, end in enumerate(last):
            np.testing.assert_array_equal(batch.x[row, :, 0], values.wave[end - 6 : end + 1])
            follows = [values.wave[end + ahead] if end + ahead < bound else np.nan for ahead in (2, 24)]
            np.testing.assert_array_equal(batch.y[row], follows)
            assert not batch.y[row].isnan().all()
        ends.append(last)
    # No window is in two parts.
    assert max(ends[0]) + 2 < 168 <= min(ends[1]) - 6 and max(ends[1]) + 2 < 204 <= min(ends[2]) - 6


def test_scales_and_unit_are_those_of_the_training_part(tmp_path):
    path = daily(tmp_path / "a.csv")
    table = pd.read_csv(path)
    # Most gaps of the whole are of two hours, most of the training part of one.
    table["when"] = HOURS[0] + pd.to_timedelta(np.append(np.arange(100), 100 + 2 * np.arange(140)), unit="h")
    table.loc[168:, ["wave", "other"]] *= 1000
    table.to_csv(path, index=False)
    task = Table(csv=path, time_column="when", target="wave", horizon="2h", history="6h")
    assert task.time_unit == "3600 s"
    model = build(RunConfig(task="table", model="gru", model_options={"hidden_size": 4}), task)
    train_ = task.splits()[0][:]
    assert train_.x.nan_to_num(0).max() < 168
    np.testing.assert_allclose(model.input_scaler.mean, train_.x[train_.valid].nanmean(0), rtol=1e-5)
    np.testing.assert_allclose(model.target_scaler.mean, train_.y.nanmean(0), rtol=1e-5)
    assert model.collator.unit == neuralosc.Collator(unit="1h").unit


@pytest.mark.parametrize("relative", [False, True])
def test_persistence_and_the_mean_of_the_hour(relative, tmp_path):
    task = forecast(tmp_path / "a.csv", horizon="24h", relative=relative)
    batch, found = task.splits()[2][:], task.guesses(2)
    values = pd.read_csv(tmp_path / "a.csv", parse_dates=["when"])
    ends = batch.x[:, -1, 1].long().numpy()
    last = values.wave.ffill()[ends].to_numpy()
    training = values[:168]
    means = training.wave.groupby(training.when.dt.hour).mean()
    hourly = means[values.when.dt.hour[ends]].to_numpy()
    shift = last if relative else 0
    np.testing.assert_allclose(found["persistence"][:, 0], last - shift, rtol=1e-12)
    np.testing.assert_allclose(found["mean of the hour"][:, 0], hourly - shift, rtol=1e-12)
    np.testing.assert_allclose(batch.y[:, 0], values.wave[ends + 24] - shift, rtol=1e-12)


def test_strides_tolerances_and_ranges_of_horizons(tmp_path):
    whole, apart = forecast(tmp_path / "a.csv"), forecast(tmp_path / "a.csv", stride="5h")
    assert 0 < len(apart.splits()[0]) <= -(-len(whole.splits()[0]) // 5) + 1
    assert forecast(tmp_path / "a.csv", horizon="8h..24h").asked.horizons == ("8h", "16h", "24h")
    late = forecast(tmp_path / "a.csv", horizon="90min")
    with pytest.raises(
        InputError, match=r"no window with a history of 6h and a value of wave 90min later.*--tolerance"
    ):
        late.splits()
    near = forecast(tmp_path / "a.csv", horizon="90min", tolerance="30min").splits()[0][:]
    assert not near.y.isnan().any()


def test_errors_are_told_of_each_horizon_or_of_the_quartiles_of_many(tmp_path):
    path = tmp_path / "a.csv"
    assert forecast(path, horizon="1h..24h").reported == {"6h": 5, "12h": 11, "18h": 17, "24h": 23}
    assert forecast(path, horizon="24h,90min,2h").reported == {"90min": 1, "2h": 2, "24h": 0}
    assert forecast(path, horizon="7h,6h,5h,4h,3h,2h,1h").reported == {"2h": 5, "4h": 3, "6h": 1, "7h": 0}
    several = forecast(path, horizon="2h,24h", target="wave,other").reported
    assert several == {"wave_2h": 0, "wave_24h": 1, "other_2h": 2, "other_24h": 3}
    assert forecast(path, horizon="2h").reported == {}
    assert Table(csv=people(path), id="who", target="score", inputs="a").reported == {}


def test_errors_of_several_targets_are_each_in_its_units(tmp_path):
    task = forecast(tmp_path / "a.csv", target="wave,other", horizon="2h,24h")
    config = RunConfig(task="table", model="gru", model_options={"hidden_size": 4})
    model = build(config, task)
    batch = task.splits()[0][:]
    answers = batch.y + torch.tensor([0.5, -1.0, 2.0, -4.0])
    totals = Scoring.of(task, config, task.splits()[0], model).totals()
    for part in (slice(0, 20), slice(20, None)):
        totals.add(*(model.scaled(values[part].float()) for values in (answers, batch.y)))
    figures = totals.result()
    for name, error in (("wave_2h", 0.5), ("wave_24h", 1.0), ("other_2h", 2.0), ("other_24h", 4.0)):
        assert figures[f"rmse_{name}"] == pytest.approx(error, rel=1e-4)
        assert figures[f"mae_{name}"] == pytest.approx(error, rel=1e-4)


def test_a_run_of_before_goes_on_with_the_figures_it_began_with(tmp_path):
    options = {"csv": daily(tmp_path / "a.csv"), "time_column": "when", "target": "wave", "horizon": "2h,24h"}
    values = {"task": "table", "task_options": {**options, "history": "6h"}, "model": "gru", "epochs": 2, "threads": 1}
    folder = train(RunConfig(**values, model_options={"hidden_size": 3}), tmp_path, "run", progress=False).folder
    old = load_checkpoint(folder.previous)
    names = [name for name in old["history"][0] if not re.search(r"_\d+h$", name)]
    old["history"] = [{name: record[name] for name in names} for record in old["history"]]
    for path in (folder.last, folder.best):
        path.write_bytes(sealed(old))
    for path in (folder.result_file, folder.previous):
        path.unlink()
    whole = resume(folder.path, progress=False)
    assert whole.epochs == 2 and "rmse_24h" in whole.test
    assert set(load_checkpoint(folder.last)["history"][1]) == set(names)


def test_series_are_divided_by_id_with_the_classes_in_each_part(tmp_path):
    task = Table(csv=people(tmp_path / "a.csv"), id="who", time_column="t", target="label", inputs="a")
    assert task.kind == "classification" and task.classes == ["no", "yes"] and task.gaps
    parts = [data[:] for data in task.splits()]
    assert [len(part.y) for part in parts] == [14, 4, 2] or sum(len(part.y) for part in parts) == 20
    assert all(set(part.y.tolist()) == {0, 1} for part in parts)
    numbers = Table(csv=people(tmp_path / "a.csv"), id="who", time_column="t", target="score", inputs="a")
    found = torch.cat([data[:].y for data in numbers.splits()]).flatten()
    assert numbers.kind == "regression" and found.sort().values.tolist() == [i / 2 for i in range(20)]


def test_rows_are_sorted_and_merged_as_asked(tmp_path):
    task = forecast(tmp_path / "a.csv")
    table = pd.read_csv(tmp_path / "a.csv")
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "b.csv", index=False)
    options = {"csv": str(tmp_path / "b.csv"), "time_column": "when", "target": "wave", "horizon": "2h,24h"}
    with pytest.raises(InputError, match=r"times of series 'b' go back, from .*: give --order sort"):
        Table(**options, history="6h").splits()
    mixed = Table(**options, history="6h", order="sort")
    for one, other in zip(task.splits(), mixed.splits(), strict=True):
        assert torch.equal(one[:].x.nan_to_num(-1), other[:].x.nan_to_num(-1))
    assert any("are sorted" in line for line in mixed.notices)
    pd.concat([table, table[:1]]).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(InputError, match=r"several rows of one time, the first 2026-01-01.*--duplicates mean"):
        Table(**options, history="6h", order="sort").splits()


TRAIN = "--model gru --hidden-size 4 --epochs 1 --threads 1"


def run(line, root, *more):
    return main(["train", *line.split(), *TRAIN.split(), "--root", str(root), "--name", "run", *more])


def test_a_forecast_from_the_command_line_to_the_served_model(tmp_path, capsys):
    path = daily(tmp_path / "a.csv")
    asked = "--time-column when --target wave --horizon 2h,24h --history 6h --relative"
    assert run(f"--csv {path} {asked}", tmp_path) == 0
    out = capsys.readouterr().out
    assert "persistence" in out and "mean of the hour" in out
    # Beside the totals each horizon, of the network and of what needs none.
    assert len(re.findall(r"^ +(?:2h|24h) +rmse \S+ +mae \S+ *$", out, re.MULTILINE)) == 2 * 3
    model, config, task = load_model(tmp_path / "run")
    assert config.task == "table" and config.task_options["inputs"] == ["wave", "other"]
    figures = evaluate(tmp_path / "run")
    # In the units of the file, over the answers that there are.
    batch = task.splits()[2][:].floating(torch.float32)
    with torch.no_grad():
        errors = (model.unscaled(model(batch.x, batch.timespans, batch.lengths)) - batch.y)[~batch.y.isnan()]
    assert figures["rmse"] == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-5)
    assert figures["mae"] == pytest.approx(float(errors.abs().mean()), rel=1e-5)
    ahead = (model.unscaled(model(batch.x, batch.timespans, batch.lengths)) - batch.y).detach()
    for column, horizon in enumerate(("2h", "24h")):
        own = ahead[:, column][~ahead[:, column].isnan()]
        assert figures[f"rmse_{horizon}"] == pytest.approx(float(own.square().mean().sqrt()), rel=1e-5)
        assert figures[f"mae_{horizon}"] == pytest.approx(float(own.abs().mean()), rel=1e-5)
    history = pd.read_csv(tmp_path / "run" / "metrics.csv")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"train_rmse_2h", "validation_mae_24h"} <= set(history.columns)
    assert result["test"]["rmse_24h"] == figures["rmse_24h"]
    assert result["validation"]["mae_2h"] == pytest.approx(history.validation_mae_2h[0], rel=1e-6)
    still = (task.guesses(2)["persistence"] - batch.y)[~batch.y.isnan()]
    assert figures["baselines"]["persistence"]["mae"] == pytest.approx(float(still.abs().mean()), rel=1e-5)
    # The file of the training is not needed any more.
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "b.csv"), "--output", str(tmp_path / "o.csv")]) == 0
    answers = pd.read_csv(tmp_path / "o.csv")
    assert list(answers.columns) == ["series", "when", "wave"]
    assert answers.when.tolist() == ["2026-01-11 01:00:00", "2026-01-11 23:00:00"]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model.safetensors")]) == 0
    served = neuralosc.load(tmp_path / "model.safetensors")
    values = pd.read_csv(tmp_path / "b.csv").to_numpy()[:, 1:].astype(float)
    change = served.predict(HOURS[-7:], values[-7:])
    seen = values[~np.isnan(values[:, 0]), 0][-1]
    np.testing.assert_allclose(answers.wave, change + seen, rtol=1e-5)
    # Other contents under the old name are noticed.
    daily(tmp_path / "a.csv", slip=1.0)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "the contents are not those that the run was trained on" in capsys.readouterr().err


def test_classes_are_predicted_by_their_names_and_runs_resume_to_the_same_figures(tmp_path, capsys):
    path = people(tmp_path / "a.csv")
    assert run(f"--csv {path} --id who --time-column t --target label --inputs a --time input", tmp_path) == 0
    assert "commonest class" in capsys.readouterr().out
    pd.read_csv(path, dtype={"who": str}).drop(columns=["label", "word"]).to_csv(tmp_path / "new.csv", index=False)
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new.csv")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "who,label,p(no),p(yes)" and len(out) == 21 and out[1].split(",")[0] == "00"
    for line in out[1:]:
        _, label, no, yes = line.split(",")
        assert label == ("yes" if float(yes) > float(no) else "no") and float(yes) + float(no) == pytest.approx(1)
    again = train(RunConfig.from_dict(load_model(tmp_path / "run")[1].to_dict()), tmp_path, "again", progress=False)
    assert evaluate(tmp_path / "run")["loss"] == again.test["loss"]


def spread(path, rows=6, gaps=False):
    """Series of irregular times and of one length, with a class and a number."""
    random, lines = np.random.RandomState(1), []
    for i in range(12):
        times = np.cumsum(random.exponential(size=rows)).round(6)
        lines += [(i, t, random.randn(), (times[-1] - t) ** 2, "ab"[i % 2], i / 3) for t in times]
    table = pd.DataFrame(lines, columns=["id", "t", "x", "z", "label", "score"])
    if gaps:
        table.loc[::4, "x"] = np.nan
    table.to_csv(path, index=False)
    return str(path)


SERVED = {
    "classes": (spread, "--id id --time-column t --target label --inputs x,z", None),
    "numbers": (spread, "--id id --time-column t --target score --inputs x,z --max-dt inf --solver euler", 6),
    "numbers with gaps": (lambda path: spread(path, gaps=True), "--id id --time-column t --target score --inputs x", 6),
    "a forecast": (daily, "--time-column when --target wave --horizon 2h,24h --history 6h", 7),
    "a change": (daily, "--time-column when --target wave --horizon 2h --history 6h --relative --readout mean", 7),
    "evenly spaced": (spread, "--id id --target label --inputs x,z --readout mean", None),
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what == "classes" else pytest.mark.slow) for what in SERVED]
)
def test_what_is_exported_gives_the_numbers_of_predict(what, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="an ONNX file is run by onnxruntime: pip install onnxruntime")
    pytest.importorskip("onnxscript", reason="an ONNX file is written by onnxscript: pip install onnxscript")
    write, line, length = SERVED[what]
    path = write(tmp_path / "a.csv")
    more = [] if "--solver" in line else ["--solver", "relaxation_euler"]
    assert run(f"--csv {path} {line}", tmp_path, *more) == 0
    model, _, task = load_model(tmp_path / "run")
    predicted = serving.predict(tmp_path / "run", [path])
    serving.export(tmp_path / "run", tmp_path / "m.safetensors")
    served = neuralosc.load(tmp_path / "m.safetensors")
    session = runtime.InferenceSession(serving.export(tmp_path / "run", tmp_path / "m.onnx", True, length))
    expected = predicted.iloc[:, 2:] if task.labels or task.forecast else predicted.iloc[:, 1:]
    rows = []
    for one in task._series:
        first = serving._first(one, task) if task.forecast else 0
        times, values = one.times[first:], one.values[first:]
        given = {"x": values[None].astype(np.float32), "state": np.zeros((1, 1, 4), np.float32)}
        if task.irregular:
            batch = model.collator([(times, values)])
            given["timespans"] = batch.timespans.numpy()
        (answer,) = session.run(["answer"], given)
        # The file for neuralosc.load answers to times and values themselves.
        by_hand = served.predict(times if task.irregular else None, values)
        np.testing.assert_allclose(answer[0], by_hand, rtol=1e-4, atol=1e-5)
        if task.labels:
            answer = torch.from_numpy(answer).softmax(-1).numpy()
        if task.relative:
            answer = answer + serving._last(one, task)[:, 0]
        rows.append(answer.reshape(-1, 1) if task.forecast else answer)
    np.testing.assert_allclose(np.concatenate(rows), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_an_onnx_file_is_told_what_to_do(tmp_path):
    assert run(f"--csv {spread(tmp_path / 'a.csv', gaps=True)} --id id --time-column t --target label", tmp_path) == 0
    with pytest.raises(InputError, match=r"needs earlier samples too.*; here --length N"):
        serving.export(tmp_path / "run", tmp_path / "m.onnx", onnx=True)
    with pytest.raises(InputError, match=r"max_dt bounds the steps.*--max-dt inf, or with --solver relaxation_euler"):
        serving.export(tmp_path / "run", tmp_path / "m.onnx", onnx=True, length=6)
    assert not (tmp_path / "m.onnx").exists()


BAD = [
    ("people", "--id who --target label --time-column when", ["no column 'when' (--time-column)", "word"]),
    ("people", "--id who --target lable --time-column t", ["no column 'lable' (--target)", "'label'"]),
    ("people", "--id who --target label --inputs a,word", ["'word' (--inputs)", "'x' at row 1", "leave it out"]),
    ("people", "--id who --target label --time-column word", ["'word' (--time-column)", "'x' at row 1", "ISO 8601"]),
    ("people", "--id who --target label --time-column t --time-unit 1h", ["--time-unit is '1h'", "'t' are numbers"]),
    ("people", "--id who --target label --target-kind regression", ["'label'", "'no' at row 1", "classification"]),
    ("people", "--id who --target t", ["series '00' has", "expected one target of each series", "--horizon"]),
    ("people", "--id word --target label", ["classes 'no' and 'yes'", "--id"]),
    ("people", "--target label", ["give --id"]),
    ("people", "--id who", ["give --target"]),
    ("people", "--id who --target label --target-kind class", ["target-kind 'class'", "classification"]),
    ("people", "--id who --target label --history 3", ["--history is of a forecast"]),
    ("people", "--id who --time-column t --target a --horizon 1 --history 99", ["training part has no window", "99"]),
    ("daily", "--time-column when --target wave --horizon 24h", ["--history"]),
    ("daily", "--time-column when --target wave --horizon 24 --history 6", ["--history is 6", "dates", "duration"]),
    ("daily", "--time-column when --target wave --horizon 1x --history 6h", ["--horizon", "'1x'", "hours"]),
    ("daily", "--target wave --horizon 2h --history 6h", ["--history is '6h'", "rows are counted", "a number"]),
    ("daily", "--time-column when --target wave --horizon 2h --history 6h --split-by id", ["1 series", "--split-by"]),
    ("daily", "--time-column when --target wave --horizon 2h --history 6h --order up", ["order", "'up'", "sort"]),
]


@pytest.mark.parametrize(("file", "line", "words"), BAD, ids=[line for _, line, _ in BAD])
def test_what_is_given_wrong_is_one_line(file, line, words, tmp_path, capsys):
    path = {"people": people, "daily": daily}[file](tmp_path / "a.csv")
    assert run(f"--csv {path} {line}", tmp_path) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ")
    for word in words:
        assert word in err, f"{word!r} not in: {err}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content, words", [("", "no table"), ("a,b\n", "no rows"), ("a,a\n1,2\n", "'a' twice")])
def test_files_that_hold_no_table(content, words, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=words):
        Table(csv=str(tmp_path / "a.csv"), target="a", horizon="1", history="2").splits()
    with pytest.raises(InputError, match=r"nothing.csv: no such file|nothing.csv cannot be read"):
        Table(csv=str(tmp_path / "nothing.csv"), target="a", horizon="1", history="2").splits()


@pytest.mark.parametrize(
    "written, form, expected",
    [
        ("2026-03-01T08:00:00+02:00", "", "2026-03-01T06:00"),
        ("01.03.2026 08:00", "%d.%m.%Y %H:%M", "2026-03-01T08:00"),
        ("2026-03-01", "", "2026-03-01"),
        ("00:45:00", "", np.timedelta64(45, "m")),
        ("7", "", 7),
    ],
)
def test_times_of_every_kind(written, form, expected, tmp_path):
    pd.DataFrame({"t": [written], "a": [1.0]}).to_csv(tmp_path / "a.csv", index=False)
    task = Table(csv=str(tmp_path / "a.csv"), time_column="t", time_format=form, target="a", horizon="1h", history="1h")
    (one,) = task._series
    assert one.times[0] == (np.datetime64(expected) if isinstance(expected, str) else expected)
