"""A study of runs: its parts within a budget, its page, and the trainings it adds."""

import json
import time

import pytest

from experiments.command import cli
from experiments.study import running
from experiments.study.parts import PARTS
from experiments.study.runs import opened, with_missing
from experiments.train.config import RunConfig
from experiments.train.training import train
from solvers.errors import InputError, UnknownNameError
from tests.experiments import pages

QUICK = ("transfer", "convergence", "gradients")


def small_run(root, name=None, **changes):
    """A run of a second on short sequences."""
    values = {
        "task": "adding",
        "task_options": {"length": 12, "train_size": 64, "validation_size": 20, "test_size": 30},
        "model_options": {"hidden_size": 6, "dt": 0.3, "gamma": 1.0, "epsilon": 1.0},
        "epochs": 1,
        "threads": 1,
    }
    return train(RunConfig.from_dict({**values, **changes}), root=root, name=name, progress=False).folder.path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def written(run):
    """The files of a study."""
    studied = opened([run])
    done = running.study(studied, budget=120)
    folder = running.new_folder(run)
    return {path.name: path for path in running.write(done, studied, folder)}


def test_every_part_has_a_verdict_with_its_numbers_and_rule(written):
    values = json.loads(written["study.json"].read_text())
    usual = [name for name, part in PARTS.items() if not part.named]
    assert list(values["parts"]) == usual and len(usual) > 8 and values["task"] == "adding"
    for name, part in values["parts"].items():
        assert part.get("why") or (part["verdict"]["sentence"] and part["verdict"]["rule"] and part["means"]), name
    # A network of one epoch, tested on 30 sequences, has nothing to be claimed of.
    assert "too few" in values["parts"]["transfer"]["verdict"]["sentence"]
    assert values["parts"]["gradients"]["verdict"]["answer"] in ("arrives", "vanishes", "explodes")
    assert values["parts"]["gradients"]["samples"] == 8


def test_the_page_stands_alone_and_can_be_read_by_keyboard(written):
    text = written["study.html"].read_text()
    assert pages.require_readable(text).sources
    for part in (part for part in PARTS.values() if not part.named):
        assert part.about.split(".")[0] in text


def test_every_figure_is_a_picture(written):
    figures = [path for name, path in written.items() if name.endswith(".png")]
    assert len(figures) >= len(PARTS) - 2 and all(path.read_bytes().startswith(pages.PNG) for path in figures)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_browser_shows_it(written, tmp_path, width, height):
    """In a window of a desktop and of a phone, without a network."""
    _, elements = pages.opened(written["study.html"], tmp_path, width, height)
    assert "What discretization does to cornn on adding" in elements


def test_a_budget_is_kept_and_what_it_leaves_out_is_said(run):
    studied, begun = opened([run]), time.monotonic()
    done = running.study(studied, QUICK, budget=1e-6)
    assert time.monotonic() - begun < 60
    assert all("the budget was used up before this part" in one.why for one in done)
    assert running.page(done, studied, {}).count("Nothing was found: the budget was used up") == len(QUICK)


def test_a_baseline_has_no_step_to_study_and_that_is_a_line_of_each_part(tmp_path):
    done = running.study(opened([small_run(tmp_path, model="lstm", model_options={"hidden_size": 6})]), QUICK)
    assert "has no solver" in str(done[0].result.verdict) and "has no solver" in str(done[1].result.verdict)
    assert done[2].result.verdict.answer in ("arrives", "vanishes", "explodes"), "its steps have derivatives"


def test_missing_rows_are_trained_once_and_give_the_spread(tmp_path):
    run, said = small_run(tmp_path, "first"), []
    studied = with_missing(opened([run]), ["rk4"], 2, said.append)
    assert said == [
        "training under semi_implicit_euler, seed 1",
        "training under rk4, seed 0",
        "training under rk4, seed 1",
    ]
    assert {name: len(models) for name, models in studied.rows.items()} == {"semi_implicit_euler": 2, "rk4": 2}
    assert (tmp_path / "first-under-rk4-seed-1").is_dir()
    said.clear()
    again = with_missing(opened([run]), ["rk4"], 2, said.append)
    assert (
        not said
        and len(again.runs) == 4
        and all(one.config == two.config for one, two in zip(again.runs, studied.runs, strict=True))
    )


def test_runs_on_other_data_and_unknown_parts_are_refused(tmp_path, run):
    options = {"length": 10, "train_size": 64, "validation_size": 20, "test_size": 30}
    other = small_run(tmp_path, task_options=options)
    with pytest.raises(InputError, match="a study is of runs on the same data"):
        opened([run, other])
    with pytest.raises(UnknownNameError, match="transfr"):
        running.study(opened([run]), ["transfr"])
    with pytest.raises(InputError, match="--budget 0: expected a positive number of seconds"):
        running.study(opened([run]), budget=0)
    with pytest.raises(InputError, match="--seeds 0"):
        with_missing(opened([run]), [], 0, print)


def test_the_command_says_the_verdicts_and_where_the_page_is(run, capsys):
    assert cli.main(["study", str(run), "--parts", "gradients", "--budget", "60"]) == 0
    text = capsys.readouterr().out
    assert "gradients: The gradient" in text and "study.html" in text and "gradients.png" in text
    assert cli.main(["study", str(run), "--parts", "transfr"]) == 2
    assert "transfr" in capsys.readouterr().err
