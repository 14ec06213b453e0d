"""Training steps beside those of the published loops: kept with the runs, shown beside them."""

import json

import pytest

from experiments.bench.cases import beside_loop
from experiments.command import cli
from experiments.reproduce import loops, rows

ROW = """
title: The adding problem, small
source: nobody
metric: mse
config:
  task: adding
  task_options: {length: 8, train_size: 50, validation_size: 10, test_size: 10}
  model_options: {hidden_size: 4}
  batch_size: 20
  epochs: 1
axes:
  network:
    coRNN: {model: cornn}
    LSTM: {model: lstm}
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the row in an empty folder."""
    monkeypatch.setattr(rows, "FOLDER", tmp_path / "rows")
    rows.FOLDER.mkdir()
    (rows.FOLDER / "small.yaml").write_text(ROW)
    places = ["--results", str(tmp_path / "results"), "--root", str(tmp_path / "runs"), "--threads", "1"]
    return lambda *arguments: cli.main(["reproduce", "small", *arguments, *places])


def test_the_loop_is_timed_once_and_kept_with_the_runs(command, tmp_path, monkeypatch):
    assert command("--only", "coRNN", "--loop") == 0
    file = tmp_path / "results" / "small.json"
    (cell,) = json.loads(file.read_text())["cells"].values()
    timed = cell["loop"]
    # 50 sequences in batches of 20 are three steps.
    assert timed["steps"] == 3 and timed["loop"] > 0 and timed["ours"] > 0 and timed["threads"] == 1
    assert len(cell["runs"]) == 1
    monkeypatch.setattr(loops, "beside", None)
    monkeypatch.setattr("experiments.reproduce.running.beside", None)
    page = tmp_path / "page.md"
    assert command("--only", "coRNN", "--loop", "--page", str(page)) == 0
    (cell,) = json.loads(file.read_text())["cells"].values()
    assert cell["loop"] == timed and len(cell["runs"]) == 1
    ratio = f"{timed['loop'] / timed['ours']:.1f}"
    assert "beside the published loop" in page.read_text() and "| 8, 20, 4, 2 |" in page.read_text()
    assert f"| {ratio} |" in page.read_text()


def test_a_network_without_a_published_loop_is_one_line_after_its_run(command, tmp_path, capsys):
    assert command("--only", "LSTM", "--loop") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --loop: of 'LSTM' (lstm, 1 layers)") and error.count("\n") == 1
    (cell,) = json.loads((tmp_path / "results" / "small.json").read_text())["cells"].values()
    assert len(cell["runs"]) == 1 and "loop" not in cell


def test_loops_are_there_for_the_networks_they_are_of():
    for model, layers in (("cornn", 1), ("lem", 1), ("lipschitz", 1), ("unicornn", 3)):
        assert sorted(case.what for case in beside_loop(model, layers).values()) == ["loop", "neuralosc"]
    assert not beside_loop("gru") and not beside_loop("cornn", 2)
