"""A sweep that trains each configuration from several seeds, and judges it by their mean."""

import itertools
import statistics

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from experiments.command import cli
from experiments.sweep import beginning, running
from experiments.sweep.plan import Plan
from experiments.sweep.space import Space
from experiments.sweep.trials import CONFIG, KEPT
from experiments.tasks.metrics import shown
from experiments.train.config import RunConfig
from experiments.train.runs import RunFolder
from solvers.errors import InputError
from tests.experiments.sweep.small import OPTIONS, SETTINGS

ARGUMENTS = f"sweep {OPTIONS} --models lem --solvers euler --range hidden_size=2:6 --trials 1 --name s"


def plan_of(repeats=3):
    settings = {**SETTINGS, "seed": 3}
    space = Space(settings, models=("lem",), solvers=("euler",), ranges={"hidden_size": (2.0, 6.0)})
    return Plan(space, repeats=repeats)


def begun(folder, plan):
    return beginning.begun(plan, folder, "s", None)


def test_the_metric_is_the_mean_over_the_seeds(tmp_path):
    sweep = begun(tmp_path, plan_of())
    running.run(sweep.study, sweep.plan, sweep.folder, 1, 5.0)
    (trial,) = sweep.study.trials
    runs = [RunFolder.open(path) for path in sorted(sweep.folder.path.glob("trial-*"))]
    assert [run.path.name for run in runs] == ["trial-0000", "trial-0000-seed-4", "trial-0000-seed-5"]
    assert [run.config().seed for run in runs] == [3, 4, 5]
    assert len({str({**run.config().to_dict(), "seed": 0}) for run in runs}) == 1
    figures = [run.result()["validation"]["mse"] for run in runs]
    assert trial.value == pytest.approx(statistics.fmean(figures), rel=1e-12) and len(set(figures)) == 3
    assert [record["validation_mse"] for record in trial.user_attrs[KEPT]] == pytest.approx(figures)
    # What `train` takes is the first of them.
    assert trial.user_attrs[CONFIG] == runs[0].config().to_dict()


def test_when_the_time_is_up_what_is_trained_is_not_trained_again(tmp_path, monkeypatch):
    sweep = begun(tmp_path, plan_of(2))
    # Up in the second training: asked once for the deadline, once for the loop, after each epoch of the first.
    clock = itertools.chain([0.0] * 4, itertools.repeat(100.0))
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    running.run(sweep.study, sweep.plan, sweep.folder, 1, 1.0)
    monkeypatch.undo()
    first, second = (RunFolder.open(sweep.folder.path / name) for name in ("trial-0000", "trial-0000-seed-4"))
    written = first.last.stat().st_mtime_ns
    assert first.result()["status"] != "stopped" and second.result()["status"] == "stopped"
    running.run(sweep.study, sweep.plan, sweep.folder, 1, 5.0)
    assert [trial.state for trial in sweep.study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert first.last.stat().st_mtime_ns == written and len(list(sweep.folder.path.glob("trial-*"))) == 2
    found = [run.result()["validation"]["mse"] for run in (first, second)]
    assert sweep.study.trials[1].value == pytest.approx(statistics.fmean(found), rel=1e-12)


def test_of_equal_means_the_smaller_mean_loss_is_chosen():
    study = optuna.create_study(direction="maximize")
    for losses in ((0.1, 0.7), (0.3, 0.4)):
        kept = [{"epoch": 1, "validation_loss": loss, "validation_accuracy": 0.5} for loss in losses]
        study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={CONFIG: RunConfig().to_dict(), KEPT: kept}))
    assert [trial.number for trial in running.chosen(study)] == [1]


def test_a_sweep_of_an_earlier_version_goes_on_with_one_training_each(tmp_path):
    plan = plan_of(1)
    sweep = begun(tmp_path, plan)
    old = {key: value for key, value in plan.to_dict().items() if key != "repeats"}
    sweep.study.set_user_attr(running.PLAN, old)
    sweep.folder.plan_file.write_text(yaml.safe_dump({"storage": None, **old}))
    again = beginning.resumed(sweep.folder.path, None)
    assert again.plan == plan
    with pytest.raises(InputError, match=r"another repeats"):
        begun(tmp_path, plan_of(2))


def test_the_command_tells_the_mean_of_the_test_set(tmp_path, capsys):
    assert cli.main([*ARGUMENTS.split(), "--repeats", "2", "--root", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "each is trained 2 times, from the seeds 0 to 1, and has their mean" in out
    tests = [RunFolder.open(path).result()["test"]["mse"] for path in (tmp_path / "s").glob("trial-*")]
    assert len(tests) == 2
    mean = shown("mse", statistics.fmean(tests))
    assert f"on the test set in the mean of 2 trainings, by which nothing was chosen: mse {mean} " in out
    assert cli.main(["sweep", "--resume", str(tmp_path / "s"), "--repeats", "2"]) != 0
    assert "leave out --repeats" in capsys.readouterr().err
    assert cli.main([*ARGUMENTS.split(), "--repeats", "0", "--root", str(tmp_path / "other")]) != 0
    assert "--repeats is 0: expected a positive number" in capsys.readouterr().err
