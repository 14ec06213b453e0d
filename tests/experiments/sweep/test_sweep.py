"""A sweep: trials that are kept, killed, gone on with and shared; objectives, the front and the files."""

import csv
import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("optuna")

import optuna
from optuna.trial import TrialState

from experiments import load
from experiments.command import cli
from experiments.sweep import beginning, costs, running, showing
from experiments.sweep.plan import Plan, SweepFolder
from experiments.sweep.space import Space
from experiments.sweep.trials import CONFIG, CURVE, Trials
from experiments.train import training
from experiments.train.config import RunConfig, load_yaml
from experiments.train.runs import RunFolder
from neuralosc.analysis import work_precision
from neuralosc.analysis.subject import CONFIRMED
from solvers.errors import InputError
from tests.experiments.sweep.small import OPTIONS, SETTINGS

ROOT = Path(__file__).parents[3]
SPACE = {"models": ("ctrnn", "cornn", "lem"), "solvers": ("euler", "rk4"), "ranges": {"hidden_size": (2.0, 6.0)}}
ARGUMENTS = f"sweep {OPTIONS} --models ctrnn,cornn,lem --solvers euler,rk4 --range hidden_size=2:6"


def plan_of(settings=None, **changed):
    names = {key: changed.pop(key) for key in ("models", "solvers", "ranges") if key in changed}
    return Plan(Space({**SETTINGS, **(settings or {})}, **{**SPACE, **names}), **changed)


def swept(folder, plan, trials, minutes=5.0, name="s"):
    """The study after so many trials, and what was said."""
    begun = beginning.begun(plan, folder, name, None)
    said = []
    running.run(begun.study, plan, begun.folder, trials, minutes, said.append)
    return begun.study, begun.folder, said


def command(*arguments):
    return cli.main([part for text in arguments for part in str(text).split()])


def proposals(study):
    return [trial.params for trial in study.trials]


# Proposals


def untrained(trials, trial, point):
    """In place of a training: figures that follow from the configuration."""
    config = trials.plan.space.config(point)
    trial.set_user_attr(CONFIG, config.to_dict())
    value = abs(math.log(config.lr / 0.02)) + config.model_options["dt"]
    return {"mse": value, "parameters": float(config.model_options["hidden_size"])}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_seed_gives_the_same_proposals_however_often_it_is_interrupted(tmp_path, sampler, monkeypatch):
    # Few enough for the samplers to do more than to draw at random.
    monkeypatch.setattr("experiments.sweep.plan.POPULATION", 5)
    monkeypatch.setattr(Trials, "_figures", untrained)
    kept = optuna.storages.InMemoryStorage()

    def proposed(name, seed, *parts):
        plan = plan_of(sampler=sampler, seed=seed, names=("mse", "parameters"))
        for trials in parts:
            # What another process has of it.
            study = optuna.create_study(
                storage=kept,
                study_name=name,
                sampler=running.Numbered(plan),
                directions=["minimize"] * 2,
                load_if_exists=True,
            )
            running.run(study, plan, SweepFolder(tmp_path), trials, 5.0)
        return [trial.params for trial in study.trials]

    whole = proposed("whole", 0, 20)
    assert proposed("parts", 0, 3, 13, 20) == whole
    assert all(a != b for a, b in zip(proposed("other", 1, 20), whole, strict=True))
    # No two trials propose the same, as they would if each began anew from the seed alone.
    assert len({json.dumps(point) for point in whole}) == 20


# Trials


def test_a_trial_keeps_its_configuration_its_curve_and_its_figures(tmp_path):
    study, folder, said = swept(tmp_path, plan_of(), 2)
    assert [line.split(":")[0] for line in said] == ["trial 0", "trial 1"]
    for trial in study.trials:
        run = RunFolder.open(folder.path / trial.user_attrs["run"])
        assert trial.user_attrs["config"] == run.config().to_dict()
        curve = trial.user_attrs["curve"]
        assert [record["epoch"] for record in curve] == [1, 2]
        # By the best epoch of the validation set, and by nothing of the test set.
        assert trial.value == min(record["validation_mse"] for record in curve) == run.result()["validation"]["mse"]
        assert "test" not in json.dumps([trial.user_attrs["figures"], curve])
        assert trial.user_attrs["figures"]["parameters"] == run.result()["parameters"]


@pytest.mark.parametrize("keep, first", [("best", 0), ("last", 1)])
def test_of_trials_equally_good_the_epoch_that_was_kept_decides(keep, first):
    """Accuracy is the same everywhere; the one has the smallest loss of all, the other the smaller one at the end."""
    study = optuna.create_study(direction="maximize")
    for losses in ((0.1, 0.4), (0.3, 0.2)):
        epochs = enumerate(losses, 1)
        curve = [{"epoch": n, "validation_loss": loss, "validation_accuracy": 0.5} for n, loss in epochs]
        told = {CONFIG: RunConfig(keep=keep).to_dict(), CURVE: curve}
        study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=told))
    assert [trial.number for trial in running.chosen(study)] == [first]


def test_what_breaks_down_is_left_out_with_its_reason_and_the_sweep_goes_on(tmp_path):
    plan = plan_of({"lr": 1e30, "optimizer": "sgd", "gradient_clip": 0.0})
    study, _, said = swept(tmp_path, plan, 3)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 3
    assert all(re.search("non-finite|NaN|is nan|is inf", t.user_attrs["reason"]) for t in study.trials)
    assert all(t.user_attrs["reason"] in line for t, line in zip(study.trials, said, strict=True))


def test_what_cannot_be_built_is_left_out_with_its_reason(tmp_path, monkeypatch):
    real, seen = costs.build, []

    def build(config, task):
        seen.append(config)
        if len(seen) == 1:
            raise InputError("hidden_size is odd")
        return real(config, task)

    monkeypatch.setattr(costs, "build", build)
    study, folder, _ = swept(tmp_path, plan_of(), 2)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert study.trials[0].user_attrs["reason"] == "hidden_size is odd"
    assert not (folder.path / "trial-0000").exists()


def test_what_would_fail_every_trial_ends_the_sweep(tmp_path, monkeypatch):
    def full(*_, **__):
        raise InputError("metrics.csv cannot be written: No space left on device")

    monkeypatch.setattr(training, "train", full)
    with pytest.raises(InputError, match="No space"):
        swept(tmp_path, plan_of(), 3)


def test_what_costs_too_much_is_not_trained(tmp_path):
    plan = plan_of(at_most={"parameters": 30.0})
    study, folder, _ = swept(tmp_path, plan, 8)
    over = [t for t in study.trials if t.user_attrs["figures"]["parameters"] > 30]
    assert over and len(over) < 8
    for trial in study.trials:
        assert trial.state == (TrialState.PRUNED if trial in over else TrialState.COMPLETE)
        assert (folder.path / f"trial-{trial.number:04d}").exists() == (trial not in over)
        assert trial.constraints["parameters"] == pytest.approx(trial.user_attrs["figures"]["parameters"] / 30 - 1)
        assert trial not in over or "parameters" in trial.user_attrs["reason"]


def test_a_training_that_is_worse_is_ended_early_and_keeps_its_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(Plan, "optunas_pruner", lambda plan: optuna.pruners.ThresholdPruner(upper=-1.0))
    study, folder, _ = swept(tmp_path, plan_of({"epochs": 3}), 2)
    for trial in study.trials:
        assert trial.state == TrialState.PRUNED and "ended after epoch 1" in trial.user_attrs["reason"]
        assert list(trial.intermediate_values) == [1]
        assert trial.intermediate_values[1] == trial.user_attrs["curve"][0]["validation_mse"]
        assert RunFolder.open(folder.path / trial.user_attrs["run"]).result()["status"] == "stopped"


def test_the_metric_alone_has_trainings_ended_early():
    assert plan_of().prunes and not plan_of(pruner="none").prunes
    assert not plan_of(names=("mse", "parameters")).prunes and not plan_of(names=("seconds",)).prunes
    for names in (("mse", "parameters"), ("seconds",)):
        with pytest.raises(InputError, match=f"--pruner median with the objectives {', '.join(names)}"):
            plan_of(names=names, pruner="median")


# Interrupted, killed, shared


def test_when_the_time_is_up_a_training_stops_and_goes_on_in_the_next_call(tmp_path, monkeypatch):
    plan, clock = plan_of({"epochs": 4}), iter([])
    whole, *_ = swept(tmp_path, plan, 1, name="whole")
    begun = beginning.begun(plan, tmp_path, "s", None)
    # Up after the second epoch: asked once for the deadline, once for the loop, and after each epoch.
    clock = itertools.chain([0.0, 1.0, 1.0], itertools.repeat(100.0))
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    running.run(begun.study, plan, begun.folder, 1, 1.0)
    monkeypatch.undo()
    assert [trial.state for trial in begun.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert len(RunFolder.open(begun.folder.path / "trial-0000").metrics_file.read_text().splitlines()) - 1 < 4
    study, *_ = swept(tmp_path, plan, 1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].params == study.trials[0].params == whole.trials[0].params
    assert study.trials[1].user_attrs["run"] == "trial-0000"
    assert study.trials[1].value == whole.trials[0].value


def test_ctrl_c_says_how_to_go_on_and_loses_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(KeyboardInterrupt, match="sweep --resume"):
        swept(tmp_path, plan_of(), 2)
    monkeypatch.undo()
    study, *_ = swept(tmp_path, plan_of(), 2)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert study.trials[1].params == study.trials[0].params != study.trials[2].params


CHILD = """
import sys, time
from experiments.sweep import running
from experiments.command import cli
from experiments.train import progress
running.HEARTBEAT, running.GRACE = 1, 2
tell = progress.Teller.on_train_epoch_end
def slow(self, *arguments):
    tell(self, *arguments)
    time.sleep({pause})
progress.Teller.on_train_epoch_end = slow
sys.exit(cli.main(sys.argv[1:]))
"""


def child(arguments, pause=0.0):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-c", CHILD.format(pause=pause), *arguments]
    return subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(os.name != "posix", reason="processes are killed in the manner of POSIX")
def test_a_killed_trial_is_marked_and_tried_again_from_where_it_was(tmp_path):
    whole, *_ = swept(tmp_path, plan_of({"epochs": 5}), 1, name="whole")
    arguments = [*ARGUMENTS.replace("--epochs 2", "--epochs 5").split(), "--root", str(tmp_path), "--name", "killed"]
    process = child([*arguments, "--trials", "1"], pause=0.7)
    table = tmp_path / "killed" / "trial-0000" / "metrics.csv"
    begun = time.monotonic()
    while not table.is_file() or len(table.read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < begun + 120, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stopped = len(table.read_text().splitlines()) - 1
    assert stopped < 5
    again = child(["sweep", "--resume", str(tmp_path / "killed"), "--trials", "1"])
    out, err = again.communicate(timeout=180)
    assert again.returncode == 0, err
    study = optuna.load_study(study_name="killed", storage=f"sqlite:///{tmp_path / 'killed' / 'study.db'}")
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    retried = study.trials[1]
    assert retried.user_attrs["run"] == "trial-0000"
    assert retried.params == study.trials[0].params == whole.trials[0].params
    # It went on from its checkpoint, to what it would have come to.
    assert retried.value == whole.trials[0].value and len(retried.user_attrs["curve"]) == 5
    assert "1 killed or interrupted, 0 open" in out


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    arguments = [*ARGUMENTS.split(), "--root", str(tmp_path), "--name", "shared", "--trials", "6"]
    # Begun together: one of them makes the sweep.
    for process in [child(arguments, pause=0.3) for _ in range(2)]:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        assert "trial" in out
    study = optuna.load_study(study_name="shared", storage=f"sqlite:///{tmp_path / 'shared' / 'study.db'}")
    done = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    # Each may begin the last one.
    assert len(done) in (6, 7) and len(done) == len(study.trials)
    assert len({json.dumps(t.params) for t in done}) == len(done)
    assert {p.name for p in (tmp_path / "shared").glob("trial-*")} == {t.user_attrs["run"] for t in done}


def test_who_takes_part_does_the_same(tmp_path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    beginning.begun(plan_of(), tmp_path / "one", "s", url)
    # Another machine has another folder.
    two = beginning.begun(plan_of(), tmp_path / "two", "s", url)
    running.run(two.study, two.plan, two.folder, 1, 5.0)
    one = beginning.resumed(tmp_path / "one" / "s", None)
    assert len(one.study.trials) == 1 and one.plan == two.plan
    with pytest.raises(InputError, match=r"a study 's' already, with another seed"):
        beginning.begun(plan_of(seed=1), tmp_path / "three", "s", url)
    assert not (tmp_path / "three" / "s" / "sweep.yaml").exists()


def test_a_password_is_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(beginning, "study_of", lambda *_: None)
    beginning.begun(plan_of(), tmp_path, "s", "postgresql://me:secret@host/db")
    assert "secret" not in SweepFolder(tmp_path / "s").plan_file.read_text()
    with pytest.raises(InputError, match="give --storage again"):
        beginning.resumed(tmp_path / "s", None)
    assert beginning.resumed(tmp_path / "s", "postgresql://me:secret@host/db").plan == plan_of()


# Objectives and what is shown


def test_the_shortest_of_many_steps_is_told(monkeypatch):
    monkeypatch.setattr(costs, "_ROUNDS", (5, 50))
    taken = iter([5.0, 0.5, *[0.9, 0.02, 0.4] * 20])
    now = [0.0]

    def step():
        now[0] += next(taken)

    assert costs._shortest(step, lambda: now[0]) == pytest.approx(0.02)
    # Waiting is no time of one thread.
    with training.threads(RunConfig(threads=1)):
        clock = costs.clock_of("cpu")
    begun = clock()
    time.sleep(0.5)
    assert clock() - begun < 0.25
    with training.threads(RunConfig(threads=2)):
        assert costs.clock_of("cpu") is costs.clock_of("cuda") is time.perf_counter


def test_deviation_is_that_of_the_analyses(tmp_path):
    plan = plan_of({"model_options": {"hidden_size": 6, "dt": 0.3}}, models=("cornn",), solvers=("rk4",), ranges={})
    result = training.train(plan.space.config(dict.fromkeys(plan.space.numbers, 0.5)), tmp_path, "run", progress=False)
    found = costs.deviation(result.folder)
    run = load(tmp_path / "run")
    x, y = run.splits[1][:CONFIRMED]
    own = work_precision(run.model, (x, y), ["rk4"], samples=CONFIRMED, progress=False).own
    assert 1e-6 < found == pytest.approx(own.error, rel=1e-6)


def test_several_objectives_give_a_front(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(showing, "FEWEST", 5)
    where = f"--root {tmp_path} --name front"
    assert command(ARGUMENTS, "--objectives mse,parameters,deviation --sampler nsga2 --trials 6", where) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "front"
    study = optuna.load_study(study_name="front", storage=f"sqlite:///{folder / 'study.db'}")
    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    # All three are to be small.
    front = {t.number for t in done if not any(_dominates(u.values, t.values) for u in done)}
    assert {int(path.stem[6:]) for path in folder.glob("front-*.yaml")} == front
    assert "Pareto front" in out and "How much each number decided" in out and "by which nothing was chosen" in out
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study.trials)
    assert float(rows[done[0].number]["deviation"]) == done[0].values[2]
    assert command("sweep --trials 7 --resume", folder) == 0
    study = optuna.load_study(study_name="front", storage=f"sqlite:///{folder / 'study.db'}")
    assert len(study.trials) == 7
    assert {int(path.stem[6:]) for path in folder.glob("front-*.yaml")} == {t.number for t in study.best_trials}


def _dominates(one, other):
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def test_the_best_configuration_is_a_file_that_train_takes_to_the_same_figure(tmp_path, capsys):
    assert command(ARGUMENTS, f"--trials 3 --root {tmp_path} --name s") == 0
    folder = SweepFolder(tmp_path / "s")
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder.database}")
    best = min((t for t in study.trials if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    assert load_yaml(folder.path / "best.yaml").to_dict() == best.user_attrs["config"]
    assert command(f"train --config {folder.path / 'best.yaml'} --root {tmp_path} --name again") == 0
    assert RunFolder.open(tmp_path / "again").result()["validation"]["mse"] == best.value
    told = RunFolder.open(folder.path / best.user_attrs["run"]).result()["test"]["mse"]
    assert f"mse {told:.4g}" in capsys.readouterr().out


def test_the_best_so_far_is_drawn(tmp_path):
    plan = plan_of()
    study, *_ = swept(tmp_path, plan, 3)
    (axes,) = showing.picture(study, plan).axes
    line = axes.lines[1].get_ydata()
    assert list(line) == list(itertools.accumulate([t.value for t in showing.finished(study)], min))


REFUSED = {
    "--objectives speed": "unknown objective 'speed'",
    "--objectives mse,mse": "names one of them twice",
    "--sampler tree": "unknown sampler 'tree'",
    "--pruner half": "unknown pruner 'half'",
    "--at-most deviation=1": "unknown cost",
    "--at-most parameters=-1": "expected a positive number",
    "--at-most parameters": "expected name=number",
    "--range lr=3": "is no range",
    "--sampler-seed -1": "--sampler-seed is -1",
    "--storage sqlite:///x.db": "give --name as well",
    "--name a/b": "expected the name of one folder",
    "--model cornn": "give one of them",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, capsys, given):
    assert command(ARGUMENTS, given, "--root", tmp_path / "runs") == 2
    err = capsys.readouterr().err
    assert REFUSED[given] in err and err.count("\n") == 1
    assert not list(tmp_path.rglob("*"))


def test_a_sweep_goes_on_with_its_own_settings(tmp_path, capsys):
    assert command(f"sweep --resume {tmp_path}") == 2
    assert "is not a sweep" in capsys.readouterr().err
    assert command(f"sweep --resume {tmp_path} --lr 0.1 --objectives seconds") == 2
    assert "leave out --lr, --objectives" in capsys.readouterr().err


def test_without_optuna_one_line_says_so(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("experiments.sweep")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert command("sweep --trials 1") == 2
    err = capsys.readouterr().err
    assert "a sweep needs Optuna" in err and "neuralosc[sweep]" in err and err.count("\n") == 1


def test_memory_is_that_of_a_training_step():
    plan = plan_of({"model_options": {"hidden_size": 6}}, models=("cornn",), ranges={})
    point = dict.fromkeys(plan.space.numbers, 0.5)
    config = plan.space.config(point)
    small, large = (costs.before(dataclasses.replace(config, batch_size=size), plan.task) for size in (10, 40))
    assert small["parameters"] == large["parameters"] == sum(p.numel() for p in _model(config, plan).parameters())
    # What is kept of each step, of 6 steps with two components of 6 channels, is among it.
    assert large["memory"] - small["memory"] > 30 * 6 * 2 * 6 * torch.finfo(torch.float32).bits / 8
    assert small["seconds"] > 0


def _model(config, plan):
    return training.build(config, plan.task)
