"""A row of published results: run by one command, kept run by run, shown beside what was published."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import reproduce, tasks
from experiments.command import cli
from experiments.reproduce import results, rows, showing
from experiments.tasks.adding import Adding
from experiments.tasks.imdb import IMDB
from experiments.tasks.text import Text
from experiments.tasks.ts_files import Labelled
from experiments.tasks.uea import UEA
from experiments.train import boosting, networks, training
from experiments.train.model import blank, make_task
from experiments.train.runs import RunFolder
from solvers.errors import InputError

ROW = """
title: The adding problem, small
source: nobody
metric: mse
seeds: [3, 4]
reach: 0.2
published:
  - {what: coRNN, value: 0.167, deviation: 0.01, curve: {1: 0.3, 2: 0.2}}
note: Two networks.
config:
  task: adding
  task_options: {length: 8, train_size: 40, validation_size: 10, test_size: 10}
  model_options: {hidden_size: 4}
  batch_size: 20
  epochs: 2
axes:
  network:
    coRNN: {model: cornn, model_options.gamma: 1.5}
    LSTM: {model: lstm, lr: 0.02}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one row, and where its runs and results go."""
    monkeypatch.setattr(rows, "FOLDER", tmp_path / "rows")
    rows.FOLDER.mkdir()
    (rows.FOLDER / "small.yaml").write_text(ROW)
    # Another number than the commands are given, so that what is kept of a run is the run's own.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield tmp_path
    torch.set_num_threads(before)


def command(folder, *arguments):
    places = ["--results", str(folder / "results"), "--root", str(folder / "runs"), "--threads", "1"]
    return cli.main(["reproduce", *arguments, *places])


def stored(folder, name="small"):
    return json.loads((folder / "results" / f"{name}.json").read_text())


def test_every_row_is_one_and_says_what_it_compares():
    assert len(rows.names()) >= 8
    for name in rows.names():
        row = rows.row(name)
        assert row.title and row.source and row.seeds and len(set(row.seeds)) == len(row.seeds)
        found = row.cells()
        assert len({cell.name for cell in found}) == len(found)
        # Cells differ in what they run, and not in their name alone.
        assert len({str(results.settings(cell)) for cell in found}) == len(found)
        assert all(cell.config.epochs == 1 for cell in row.cells(epochs=1))
        assert all(tasks.options(cell.config.task) is not None for cell in found)
        assert all(networks.card(cell.config) for cell in found if cell.network)
        assert found[0].network


#: Channels, classes and the length of a series of the sets that rows name.
UEA_SETS = {
    "JapaneseVowels": (12, 9, 29),
    "EigenWorms": (6, 5, 17984),
    "SelfRegulationSCP1": (6, 2, 896),
    "SelfRegulationSCP2": (7, 2, 1152),
    "EthanolConcentration": (3, 4, 1751),
    "Heartbeat": (61, 2, 405),
    "MotorImagery": (64, 2, 3000),
}


@pytest.mark.parametrize("name", rows.names())
def test_every_row_builds_its_tasks_and_networks(name, monkeypatch):
    # What a task knows of its data alone is given to it: that a set has so many channels, a text such characters.
    def parts(task):
        channels, classes, length = UEA_SETS[task.dataset]
        names = tuple(map(str, range(classes)))
        one = Labelled((np.zeros((length, channels)),), ("0",), names)
        return one, one

    monkeypatch.setattr(UEA, "_parts", property(parts))
    monkeypatch.setattr(Text, "_read", property(lambda task: ("".join(map(chr, range(65))), [], "")))
    monkeypatch.setattr(IMDB, "_read", property(lambda task: (list("abcdefg"), [])))
    row = rows.row(name)
    for cell in row.cells():
        task = make_task(cell.config)
        assert row.metric in task.metrics
        if not cell.network:
            boosting.check(cell.config, task)
            continue
        model = blank(cell.config, task)
        x = torch.zeros(2, 5, 1 if task.tokens else model.rnn.input_size)
        spans = torch.ones(2, 5) if task.irregular and cell.config.time == "true" else None
        with torch.no_grad():
            answers = model.eval()(x, spans)
        assert answers.shape == (2, *(5,) * task.every, task.output_size)


def test_a_row_runs_and_is_kept_with_its_curves(folder, capsys):
    assert command(folder, "small") == 0
    printed = capsys.readouterr().out
    values = stored(folder)
    assert values["metric"] == "mse" and set(values["cells"]) == {"coRNN", "LSTM"}
    for cell in values["cells"].values():
        assert [run["seed"] for run in cell["runs"]] == [3, 4]
        for run in cell["runs"]:
            assert len(run["curve"]) == run["epochs"] == 2 and min(run["curve"]) == run["curve"][run["best_epoch"] - 1]
            assert run["machine"] and run["threads"] == 1 and run["versions"]["torch"]
    row = rows.row("small")
    kept = results.Results.read(folder / "results", row)
    mean = sum(run["test"]["mse"] for run in values["cells"]["LSTM"]["runs"]) / 2
    assert f"{mean:.4g}" in printed and "0.167 ± 0.01" in printed and "coRNN (published)" in printed
    best, value = kept.best()
    assert value == min(sum(kept.figures(cell)) / 2 for cell in kept.all_cells) and best.cells[0] in kept.all_cells
    # The settings reached the runs.
    assert values["cells"]["LSTM"]["settings"]["lr"] == 0.02
    assert values["cells"]["coRNN"]["settings"]["model_options"] == {"hidden_size": 4, "gamma": 1.5}
    assert showing.curve(kept)[1][1][-1] == "0.2"


def test_what_is_there_is_not_run_again_and_what_was_broken_off_goes_on(folder, monkeypatch):
    assert command(folder, "small", "--seeds", "1", "--only", "LSTM") == 0
    assert [run["seed"] for run in stored(folder)["cells"]["LSTM"]["runs"]] == [3] and len(stored(folder)["cells"]) == 1
    ran, train = [], training.train

    def killed(config, **where):
        ran.append(config.seed)
        train(config, **where)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", killed)
    assert command(folder, "small", "--only", "LSTM") == 130
    assert ran == [4] and len(stored(folder)["cells"]["LSTM"]["runs"]) == 1
    assert command(folder, "small", "--only", "LSTM") == 0
    assert ran == [4] and len(stored(folder)["cells"]["LSTM"]["runs"]) == 2


def test_what_another_process_added_meanwhile_stays(folder):
    assert command(folder, "small", "--seeds", "1", "--only", "LSTM") == 0
    row = rows.row("small")
    kept = results.Results.read(folder / "results", row)
    assert command(folder, "small", "--seeds", "1", "--only", "coRNN") == 0
    assert command(folder, "small", "--only", "LSTM") == 0
    (cell,) = (cell for cell in kept.all_cells if cell.name == "LSTM")
    run = training.resume(folder / "runs" / "small-lstm-seed-4", progress=False)
    kept.add(cell, 5, run)
    assert {n: len(c["runs"]) for n, c in stored(folder)["cells"].items()} == {"LSTM": 3, "coRNN": 1}


BOOSTED = (
    ROW
    + """
    Boosting: {model: boosting}
  length:
    "8": {task_options.length: 8}
    "9": {task_options.length: 9}
over: length
"""
)


def test_boosting_stands_beside_networks_and_is_none(folder, capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="boosting is scikit-learn's")
    (rows.FOLDER / "small.yaml").write_text(BOOSTED.replace("train_size: 40", "train_size: 200"))
    assert command(folder, "small", "--epochs", "1", "--seeds", "1", "--only", "Boosting") == 0
    ran, train = [], boosting.train
    monkeypatch.setattr(boosting, "train", lambda config: ran.append(config.seed) or train(config))
    assert command(folder, "small", "--epochs", "1") == 0
    # What was there was not run again.
    assert ran == [4, 4]
    values = stored(folder, "small-1-epochs")["cells"]
    assert len(values) == 6 and all(len(cell["runs"]) == 2 for cell in values.values())
    networks, boosted = values["LSTM, 8"], values["Boosting (no network), 8"]
    assert boosted["settings"]["model"] == "boosting" and boosted["settings"]["model_options"] == boosting.SETTINGS
    assert boosted["settings"]["task_options"] == networks["settings"]["task_options"]
    assert "lr" in networks["settings"] and "lr" not in boosted["settings"]
    for run in boosted["runs"]:
        assert set(run["test"]) == set(networks["runs"][0]["test"]) and run["seconds"] > 0 and run["threads"] == 1
        assert set(networks["runs"][0]["versions"]) | {"scikit-learn"} == set(run["versions"]) and run["machine"]
        assert run["curve"] == [] and run["parameters"] is None
    kept = results.Results.read(folder / "results", rows.row("small"), 1)
    (without, value), (best, _) = kept.best(network=False), kept.best()
    assert without.name == "Boosting (no network)" and best.name in ("coRNN", "LSTM")
    figures = [run["test"]["mse"] for length in "89" for run in values[f"Boosting (no network), {length}"]["runs"]]
    assert value == pytest.approx(sum(figures) / 4)
    page = showing.page(folder / "results")
    assert f"({best.name}); {value:.4g} ±" in page and "| Boosting (no network) | 8 |" in page
    assert f"scikit-learn {run['versions']['scikit-learn']}" in page
    assert re.search(r"Boosting \(no\s+network\)", capsys.readouterr().out)


def test_boosting_on_a_task_that_it_has_no_answer_to_is_one_line(folder, capsys, monkeypatch):
    (rows.FOLDER / "small.yaml").write_text(BOOSTED)
    assert command(folder, "small", "--epochs", "1", "--seeds", "1", "--only", "LSTM, 8") == 0
    capsys.readouterr()
    monkeypatch.setattr(Adding, "every", True)
    assert command(folder, "small", "--epochs", "1", "--only", "Boosting") == 2
    error = capsys.readouterr().err
    assert "task 'adding' asks at every sample: leave it out" in error and error.count("\n") == 1
    assert list(stored(folder, "small-1-epochs")["cells"]) == ["LSTM, 8"]


def test_a_mean_over_an_axis_is_told_once_all_of_it_has_run(folder, capsys):
    divided = """
over: size
axes:
  network:
    coRNN: {model: cornn}
    LSTM: {model: lstm}
  size:
    "4": {model_options.hidden_size: 4}
    "5": {model_options.hidden_size: 5}
"""
    (rows.FOLDER / "small.yaml").write_text(ROW.partition("axes:")[0] + divided)
    assert command(folder, "small", "--epochs", "1", "--only", "LSTM, 4") == 0
    row = rows.row("small")
    assert [(group.name, len(group.cells)) for group in row.groups()] == [("coRNN", 2), ("LSTM", 2)]
    # Of one of two sizes: no figure of both.
    kept = results.Results.read(folder / "results", row, 1)
    assert kept.best() is None and showing.means(kept) is None
    assert command(folder, "small", "--epochs", "1", "--only", "LSTM, 5") == 0
    kept = results.Results.read(folder / "results", row, 1)
    group, value = kept.best()
    each = {cell.name: kept.figures(cell) for cell in group.cells}
    means = [sum(figures) / 2 for figures in each.values()]
    assert set(each) == {"LSTM, 4", "LSTM, 5"} and value == pytest.approx(sum(means) / 2)
    heads, (line,) = showing.means(kept)
    assert heads == ["network", "mse, mean over size", "runs"] and line[0] == "LSTM" and line[2] == "4"
    spread = abs(means[0] - means[1]) / 2**0.5
    assert line[1] == f"{value:.4g} ± {spread:.2g}"
    capsys.readouterr()
    assert command(folder, "--list", "--page", str(folder / "page.md")) == 0
    assert f"{value:.4g} ± {spread:.2g} (LSTM)" in " ".join((folder / "page.md").read_text().split())
    (rows.FOLDER / "small.yaml").write_text(ROW + "over: sise\n")
    with pytest.raises(InputError, match="sise"):
        rows.row("small")


def test_the_page_of_results_is_that_of_the_files():
    root = Path(__file__).parents[3]
    written = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == showing.page(root / "results"), "python -m experiments reproduce --page docs/results.md"


def test_shortened_runs_are_kept_apart(folder, capsys):
    assert command(folder, "small", "--epochs", "1", "--seeds", "1") == 0
    assert not (folder / "results" / "small.json").exists()
    assert all(
        run["epochs"] == 1 for cell in stored(folder, "small-1-epochs")["cells"].values() for run in cell["runs"]
    )
    capsys.readouterr()
    assert command(folder, "--list", "--page", str(folder / "page.md")) == 0
    assert re.search(r"small .* 2 of 4 +1 of 2 ", capsys.readouterr().out)
    page = (folder / "page.md").read_text()
    assert "reproduce small --epochs 1" in page and "| coRNN (published) |" in page and "Run on " in page
    # The published curve after as many epochs stands beside the end of it.
    assert "| 0.167 ± 0.01 (coRNN); 0.3 after 1 |" in page
    assert showing.overview(folder / "nothing")[1][0][-2:] == ["0.167 ± 0.01 (coRNN)", "at most 0.2"]


def test_what_a_task_says_of_its_data_is_kept_and_shown(folder, capsys, monkeypatch):
    monkeypatch.setattr(Adding, "notices", ["half of the data are missing"])
    assert command(folder, "small", "--seeds", "1", "--only", "LSTM") == 0
    assert capsys.readouterr().out.count("half of the data are missing") == 1
    assert stored(folder)["cells"]["LSTM"]["runs"][0]["notices"] == ["half of the data are missing"]
    assert "\nHalf of the data are missing.\n" in showing.page(folder / "results")


def test_settings_that_changed_since_are_not_mixed(folder, capsys):
    assert command(folder, "small", "--seeds", "1", "--only", "LSTM") == 0
    (rows.FOLDER / "small.yaml").write_text(ROW.replace("lr: 0.02", "lr: 0.03"))
    assert command(folder, "small", "--only", "LSTM") == 2
    assert "had other settings (lr)" in capsys.readouterr().err
    (folder / "results" / "small.json").unlink()
    assert command(folder, "small", "--only", "LSTM") == 2
    assert "has lr 0.02, the row 0.03" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smal"], "unknown row 'smal'"),
        ([], "Give a row, or --list"),
        (["small", "--seeds", "3"], "small has 2, 3, 4"),
        (["small", "--only", "GRU"], "expected a part of coRNN; LSTM"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments, message, folder, capsys):
    assert command(folder, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric: mse", "metric: mze", "unknown metric 'mze'"),
        ("title:", "titel:", "unknown key of a row 'titel'"),
        ("metric: mse\n", "", "has no metric"),
        ("task: adding", "tusk: adding", "unknown configuration key 'tusk'"),
        ("coRNN: {model: cornn,", "coRNN: {model: boosting,", "'coRNN' gives boosting model_options.gamma"),
        ("LSTM: {model: lstm,", "LSTM: {model: boosting,", "'LSTM' gives boosting lr: expected model and any of task"),
        ("  batch_size: 20", "  model: boosting", "config has model boosting: name it on an axis"),
    ],
)
def test_a_file_that_is_no_row_is_one_line(old, new, message, folder):
    (rows.FOLDER / "small.yaml").write_text(ROW.replace(old, new))
    with pytest.raises(InputError, match=re.escape(message)):
        rows.row("small")


def test_damaged_results_are_not_written_over(folder, capsys):
    (folder / "results").mkdir()
    (folder / "results" / "small.json").write_text('{"cells": {"LSTM": {"runs": [{}]}}}')
    assert command(folder, "small") == 2
    assert "holds no results of small: move it away" in capsys.readouterr().err
    assert "runs" in (folder / "results" / "small.json").read_text()


def test_a_row_without_axes_is_one_cell(folder):
    (rows.FOLDER / "small.yaml").write_text(ROW[: ROW.index("axes:")])
    (cell,) = rows.row("small").cells()
    assert cell.name == "all" and reproduce.overview(folder / "results").row_count == 1


STAGES = """
stages:
  - {task_options.length: 4, epochs: 1, lr: 0.02}
  - {task_options.length: 6}
"""


def test_a_row_in_stages_begins_each_with_the_weights_of_the_one_before(folder, capsys):
    (rows.FOLDER / "small.yaml").write_text(ROW + STAGES)
    assert command(folder, "small", "--seeds", "1", "--only", "LSTM", "--epochs", "1") == 0
    runs = [
        RunFolder.open(folder / "runs" / f"small-1-epochs-lstm-seed-3{end}") for end in ("-stage-1", "-stage-2", "")
    ]
    before = ["", *(str(run.path.resolve()) for run in runs)]
    for run, earlier, length in zip(runs, before, (4, 6, 8), strict=False):
        config = run.config()
        assert config.initial_weights == earlier and config.task_options["length"] == length
        assert (config.epochs, config.lr, config.seed) == (1, 0.02, 3)
    kept = stored(folder, "small-1-epochs")["cells"]["LSTM"]
    assert [stage["epochs"] for stage in kept["runs"][0]["stages"]] == [1, 1]
    first = kept["runs"][0]["stages"][0]
    assert first["validation"] == runs[0].result()["validation"] and first["seconds"] > 0
    # The time of a run is that of all its trainings, and no path of a machine is kept.
    row = rows.row("small")
    [line] = [line for line in showing.cells(results.Results.read(folder / "results", row, 1))[1] if line[0] == "LSTM"]
    total = sum(run.result()["seconds"] for run in runs)
    assert line[3] == f"{total:.0f} s" and str(folder) not in json.dumps(kept)
    # What is there is not run again; other stages are other settings.
    marks = [run.result_file.stat().st_mtime_ns for run in runs]
    arguments = ("small", "--seeds", "1", "--only", "LSTM", "--epochs", "1")
    assert command(folder, *arguments) == 0
    assert [run.result_file.stat().st_mtime_ns for run in runs] == marks
    for text in (ROW, ROW + STAGES.replace("length: 6", "length: 5")):
        (rows.FOLDER / "small.yaml").write_text(text)
        capsys.readouterr()
        assert command(folder, *arguments) == 2
        assert "runs of 'LSTM' had other settings (stages)" in capsys.readouterr().err


def test_stages_that_are_none_are_one_line(folder, capsys):
    (rows.FOLDER / "small.yaml").write_text(ROW + "stages:\n  - {task_option.length: 4}\n")
    assert command(folder, "small") == 2
    assert "task_option" in (line := capsys.readouterr().err) and line.count("\n") == 1
