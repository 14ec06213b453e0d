"""A report of runs: its numbers against those in the runs' own files, its page, and what is left out."""

import csv
import json
import math
import shutil
import statistics

import pytest
import torch
from scipy import stats

from experiments import load
from experiments.command import cli
from experiments.report import pairs, writing
from experiments.report.runs import opened
from experiments.train.config import RunConfig
from experiments.train.training import train
from solvers.errors import InputError
from tests.experiments import pages

SEEDS, EPOCHS = (0, 1, 2), 3


def run(root, name, **changes):
    """A run of a second."""
    values = {"task": "digits", "epochs": EPOCHS, "threads": 1, "limit_train_batches": 3, "lr": 0.05}
    given = {**values, "model_options": {"hidden_size": 6}, **changes}
    return train(RunConfig.from_dict(given), root=root, name=name, progress=False).folder.path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two networks with three seeds each; one more that was killed; one on other data."""
    root = tmp_path_factory.mktemp("runs")
    for model in ("lstm", "gru"):
        for seed in SEEDS:
            run(root, f"{model}-{seed}", model=model, seed=seed)
    killed = root / "killed"
    shutil.copytree(root / "gru-0", killed)
    (killed / "result.json").unlink()
    lines = (killed / "metrics.csv").read_text().splitlines(keepends=True)
    (killed / "metrics.csv").write_text("".join(lines[:2]))
    (killed / "config.yaml").write_text((killed / "config.yaml").read_text().replace("seed: 0", "seed: 9"))
    sizes = {"length": 5, "train_size": 20, "validation_size": 10, "test_size": 10}
    run(root, "adding", task="adding", task_options=sizes, model="gru")
    return root


def six(root):
    return [root / f"{model}-{seed}" for model in ("lstm", "gru") for seed in SEEDS]


@pytest.fixture(scope="module")
def written(root, tmp_path_factory):
    """The report of the six runs: the comparisons, and its files by name."""
    _, compared, paths = writing.report(six(root), tmp_path_factory.mktemp("out") / "report")
    return compared, {path.name: path for path in paths}


def ends(root, model):
    return [json.loads((root / f"{model}-{seed}" / "result.json").read_text()) for seed in SEEDS]


def column(path, name):
    with (path / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_the_table_has_mean_deviation_and_number_of_seeds_of_the_runs_own_files(root, written):
    text = written[1]["report.html"].read_text()
    for model in ("lstm", "gru"):
        values = [end["test"]["accuracy"] for end in ends(root, model)]
        cell = f"{statistics.fmean(values):.2%} ± {statistics.stdev(values):.1%}"
        row = text.partition(f"<tr><td>{model}</td>")[2].partition("</tr>")[0]
        assert row.startswith("<td>3</td>") and f"<td>{cell}</td>" in row
        losses = [end["test"]["loss"] for end in ends(root, model)]
        assert f"<td>{statistics.fmean(losses):.4g} ± {statistics.stdev(losses):.2g}</td>" in row
        best = ", ".join(str(end["best_epoch"]) for end in ends(root, model))
        assert f"<td>{best}</td>" in row


def test_curves_are_means_and_deviations_of_the_metrics_of_every_epoch(root):
    reported = opened(six(root))
    assert [group.label for group in reported.groups] == ["lstm", "gru"] and not reported.left
    for group in reported.groups:
        for name in ("train_loss", "validation_accuracy"):
            means, spreads = group.curve(name)
            columns = [column(root / f"{group.label}-{seed}", name) for seed in SEEDS]
            assert len(means) == EPOCHS
            for epoch, values in enumerate(zip(*columns, strict=True)):
                assert means[epoch] == pytest.approx(statistics.fmean(values), rel=1e-12)
                assert spreads[epoch] == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-12)


def test_runs_with_the_same_seeds_are_compared_in_pairs_by_students_t(root, written):
    one = next(each for each in written[0] if each.by == "seed")
    lstm, gru = ([end["test"]["accuracy"] for end in ends(root, model)] for model in ("lstm", "gru"))
    test = stats.ttest_rel(gru, lstm)
    assert (one.first, one.second, one.figure, one.paired.count) == ("lstm", "gru", "accuracy", 3)
    assert one.paired.difference == pytest.approx(statistics.fmean(gru) - statistics.fmean(lstm), abs=1e-12)
    interval = test.confidence_interval(0.95)
    assert (one.paired.low, one.paired.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert one.paired.p == pytest.approx(test.pvalue, rel=1e-6)
    # Of three runs the normal approximation would be sure of much more.
    normal = 1.96 * statistics.stdev(b - a for a, b in zip(lstm, gru, strict=True)) / math.sqrt(3)
    assert (one.paired.high - one.paired.low) / 2 > 2 * normal


def hits(path):
    """Which test sequences a run is right on, asked for itself."""
    loaded = load(path)
    x, y = loaded.splits[2][:]
    with torch.no_grad():
        return (loaded.model(x.float()).argmax(-1) == y).double()


def test_answers_to_the_same_test_sequences_are_compared_one_by_one(root, written):
    one = next(each for each in written[0] if each.by == "sample")
    lstm, gru = (torch.stack([hits(root / f"{m}-{s}") for s in SEEDS]).mean(0) for m in ("lstm", "gru"))
    assert one.paired.count == len(lstm) > 200
    assert one.paired.difference == pytest.approx(float((gru - lstm).mean()), abs=1e-12)
    error = float((gru - lstm).std()) / math.sqrt(len(lstm))
    assert one.paired.high - one.paired.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    few, _ = pairs.by_sample(opened(six(root)), samples=40)
    assert few[0].paired.count == 40
    assert pairs.by_sample(opened(six(root)), samples=0) == ([], [])
    with pytest.raises(InputError, match="--samples -1"):
        pairs.comparisons(opened(six(root)), samples=-1)


def test_runs_without_their_weights_are_in_no_comparison_by_sample_and_that_is_a_line(root, tmp_path):
    shutil.copytree(root / "gru-0", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    found, notes = pairs.by_sample(opened([root / "lstm-0", tmp_path / "bare"]))
    assert not found and len(notes) == 1 and notes[0].startswith("bare is in no comparison by sample: run ")


def test_tasks_whose_seed_draws_the_data_pair_samples_of_the_same_seed_alone(root, tmp_path):
    sizes = {"length": 5, "train_size": 20, "validation_size": 10, "test_size": 10}
    paths = [
        run(tmp_path, f"{model}-{seed}", task="adding", task_options=sizes, model=model, seed=seed)
        for model, seed in (("lstm", 0), ("gru", 0), ("gru", 1))
    ]
    (one,), notes = pairs.by_sample(opened(paths))
    assert one.paired.count == 10 and one.figure == "mse" and not notes
    alone, notes = pairs.by_sample(opened([paths[0], paths[2]]))
    assert not alone and notes == ["lstm and gru have no test set in common: they are not compared by sample"]


def test_the_page_stands_alone_and_has_everything(root, written):
    text = written[1]["report.html"].read_text()
    page = pages.require_readable(text)
    assert "http" not in text and len(page.sources) == 3
    assert {"curves", "comparisons", "settings", "machines", "commands"} <= page.ids and "left-out" not in page.ids
    assert sum(values.get("class") == "scroll" for _, values in page.tags) > 6
    for path in six(root):
        assert f"train --config {path / 'config.yaml'}" in text
    assert "<td>model</td><td>lstm</td><td>gru</td>" in text and "<td>lr</td><td>0.05</td>" in text
    assert f"<td>versions.torch</td><td>{torch.__version__}</td>" in text


def test_every_figure_is_a_png_and_a_pdf(written):
    names = sorted(written[1])
    stems = ("curve_accuracy", "curve_loss", "test_accuracy")
    assert names == sorted(["report.html", "report.json", *(f"{s}.{kind}" for s in stems for kind in ("png", "pdf"))])
    for name, path in written[1].items():
        start = {"png": pages.PNG, "pdf": b"%PDF-"}.get(name.rpartition(".")[2], b"")
        assert path.read_bytes().startswith(start)


def test_the_same_runs_give_the_same_files(root, written, tmp_path):
    _, _, paths = writing.report(six(root), tmp_path / "again")
    for path in paths:
        assert path.read_bytes() == written[1][path.name].read_bytes(), path.name


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (400, 844)])
def test_a_browser_shows_it(written, tmp_path, width, height):
    _, elements = pages.opened(written[1]["report.html"], tmp_path, width, height)
    assert "lstm, gru on digits" in elements and "Paired comparisons" in elements


def test_the_command_of_a_run_gives_it_again(root, tmp_path):
    values = json.loads(writing.report([root / "gru-1"], tmp_path / "report")[2][1].read_text())
    (one,) = values["groups"][0]["runs"]
    words = one["command"].split()
    assert words[:4] == ["python", "-m", "experiments", "train"]
    assert cli.main([*words[3:], "--root", str(tmp_path / "runs"), "--name", "again"]) == 0
    again = tmp_path / "runs" / "again"
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        assert column(again, name) == column(root / "gru-1", name)
    assert json.loads((again / "result.json").read_text())["test"] == one["test"]


def test_one_run_alone(root, tmp_path):
    reported, compared, paths = writing.report([root / "lstm-0"], tmp_path / "report")
    text = paths[0].read_text()
    page = pages.require_readable(text)
    assert not compared and "comparisons" not in page.ids and not reported.left
    assert "±" not in text.partition("<main")[2] and len(page.sources) == 2


def test_a_killed_run_has_a_curve_and_no_figure_of_the_test_set(root, tmp_path):
    reported, _, paths = writing.report([root / "killed"], tmp_path / "alone")
    text = paths[0].read_text()
    pages.require_readable(text)
    assert "No run has finished" in text and f"train --resume {root / 'killed'}" in text
    said = "killed, or still running, after epoch 1 of 3: its curve is shown, and in no mean or table"
    assert [str(one) for one in reported.left] == [f"{root / 'killed'}: {said}"] and said in text
    both = opened([*six(root), root / "killed"])
    alone = opened(six(root))
    assert len(both.groups) == 2 and len(both.groups[1].runs) == 4
    assert both.groups[1].curve("train_loss") == alone.groups[1].curve("train_loss")


def test_what_cannot_be_reported_is_a_line_each(root, tmp_path, capsys):
    damaged, twin = tmp_path / "damaged", tmp_path / "twin"
    shutil.copytree(root / "gru-2", damaged)
    (damaged / "metrics.csv").write_text("epoch,train_loss\n1,x\n")
    shutil.copytree(root / "gru-1", twin)
    given = [root / "gru-1", damaged, root / "adding", tmp_path / "nothing", twin, root / "gru-1"]
    said = {one.path.name: one.why for one in opened(given).left}
    assert "metrics.csv is damaged" in said["damaged"]
    assert "a report is of runs on the same data" in said["adding"] and "no run folder" in said["nothing"]
    # A run that is counted twice would make the spread smaller than it is.
    assert "such are counted once" in said["twin"] and said["gru-1"] == "it is given twice"
    out = tmp_path / "out"
    assert cli.main(["report", *map(str, given), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("left out: ") == 5 and str(out / "report.html") in printed
    assert (out / "report.html").read_text().count("<li>") >= 5
    assert cli.main(["report", str(root / "gru-1"), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["report", str(damaged), str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: none of these can be reported") and error.count("\n") == 1


def test_a_result_that_does_not_fit_its_metrics_is_damage(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root / "gru-0", copy)
    lines = (copy / "metrics.csv").read_text().splitlines(keepends=True)
    (copy / "metrics.csv").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match=r"metrics.csv has 2 epochs, and its result 3"):
        opened([copy])


def test_losses_that_are_not_one_function_are_not_put_into_one_column(root, tmp_path):
    weighted = run(tmp_path, "weighted", model="gru", class_weights="balanced")
    _, _, paths = writing.report([root / "gru-0", weighted], tmp_path / "report", samples=0)
    text = paths[0].read_text()
    assert "test accuracy" in text and "test loss" not in text and "curve_loss.png" not in [p.name for p in paths]
    assert "gru, class_weights none" in text and "gru, class_weights balanced" in text


def test_without_out_it_lies_in_the_first_run(root):
    _, _, paths = writing.report([root / "lstm-2"])
    assert paths[0] == root / "lstm-2" / "report" / "report.html"
    assert writing.report([root / "lstm-2"])[2][0].parent.name == "report-2"
