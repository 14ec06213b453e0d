"""What trackers are told of a run: settings, name and figures, once each, whatever becomes of the run or of them."""

import csv
import json
import sys
import types

import pytest
from lightning.pytorch.loggers.logger import Logger

from experiments.command import cli, options
from experiments.train import trackers, training
from experiments.train.checkpoints import Keeper
from experiments.train.config import RunConfig, load_yaml
from solvers.errors import InputError, UnknownNameError

VALUES = {
    "task": "adding",
    "task_options": {"length": 5, "train_size": 16, "validation_size": 8, "test_size": 8},
    "model": "gru",
    "model_options": {"hidden_size": 3},
    "epochs": 3,
    "threads": 1,
}


def config(*names):
    return RunConfig.from_dict({**VALUES, "loggers": list(names)})


class Recorder(Logger):
    """A tracker that keeps what it is told, in the order of telling."""

    def __init__(self, folder, project, known, broken_from=None):
        super().__init__()
        self.run, self.project, self.known, self.broken_from = folder.path.name, project, known, broken_from
        self.params, self.metrics, self.status = None, [], None

    name = property(lambda self: self.project)
    version = property(lambda self: self.known or "run-7")

    def log_hyperparams(self, params, *args, **options):
        self.params = params

    def log_metrics(self, metrics, step=None):
        if self.broken_from is not None and step >= self.broken_from:
            raise ConnectionError("the server went\naway")
        self.metrics.append((step, metrics))

    def finalize(self, status):
        self.status = status


@pytest.fixture
def recorded(monkeypatch):
    """MLflow's place is taken by a recorder; those that were made, in order."""
    made = []

    def factory(folder, project, known):
        made.append(Recorder(folder, project, known, factory.broken_from))
        return made[-1]

    factory.broken_from = None
    monkeypatch.setitem(trackers.FACTORIES, "mlflow", factory)
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    made.append(factory)
    return made


def rows(folder):
    with folder.metrics_file.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_a_tracker_is_told_name_settings_every_epoch_and_the_test_figures(recorded, tmp_path):
    result = training.train(config("mlflow"), root=tmp_path, name="mine", progress=False)
    (_, one) = recorded
    assert (one.run, one.project, one.known, one.status) == ("mine", "adding", None, "success")
    assert one.params["task_options.length"] == 5 and one.params["lr"] == 0.01 and one.params["model"] == "gru"
    table = rows(result.folder)
    assert [step for step, _ in one.metrics] == [1, 2, 3, 3]
    for (step, told), row in zip(one.metrics[:3], table, strict=True):
        assert told == {key: value for key, value in row.items() if key != "epoch"} and row["epoch"] == step
    assert one.metrics[3][1] == {f"test_{key}": value for key, value in result.test.items()}
    assert json.loads((result.folder.path / "trackers.json").read_text()) == {"mlflow": {"id": "run-7", "epochs": 3}}


def test_csv_and_tensorboard_are_written_whatever_is_named(recorded, tmp_path):
    assert config().loggers == config("tensorboard").loggers == ["csv", "tensorboard"]
    assert config("mlflow").loggers == ["csv", "tensorboard", "mlflow"]
    for names in ((), ("mlflow",)):
        result = training.train(config(*names), root=tmp_path, progress=False)
        assert len(rows(result.folder)) == 3 and list(result.folder.tensorboard.glob("events.out.tfevents.*"))
        assert load_yaml(result.folder.config_file).loggers == config(*names).loggers
    assert not (tmp_path / "adding-gru-001" / "trackers.json").exists()


def test_a_resumed_run_goes_on_in_the_same_tracker_run_and_tells_nothing_twice(recorded, tmp_path, monkeypatch):
    save, count = Keeper._save, []

    def interrupted(self, *arguments):
        count.append(1)
        save(self, *arguments)
        if len(count) == 2:
            # After the checkpoint and before the trackers: this epoch is theirs to catch up on.
            raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(config("mlflow"), root=tmp_path, name="mine", progress=False)
    training.resume(tmp_path / "mine", progress=False)
    _, first, second = recorded
    assert [step for step, _ in first.metrics] == [1] and first.status == "failed"
    assert second.known == "run-7" and second.status == "success"
    assert [step for step, _ in second.metrics] == [2, 3, 3]


def test_a_tracker_that_fails_is_a_line_and_the_run_goes_on(recorded, tmp_path, capsys):
    recorded[0].broken_from = 2
    result = training.train(config("mlflow"), root=tmp_path, name="mine", progress=False)
    said = capsys.readouterr().err.splitlines()
    line = "note: tracker mlflow failed (ConnectionError: the server went away): the run goes on without it"
    assert [text for text in said if "tracker" in text] == [line]
    without = training.train(config(), root=tmp_path, name="without", progress=False)
    assert result.epochs == 3 and result.test == without.test
    # What it was told of before is kept, so that it can be told of the rest.
    assert json.loads((result.folder.path / "trackers.json").read_text())["mlflow"]["epochs"] == 1


def test_a_tracker_that_cannot_begin_is_a_line_too(recorded, tmp_path, capsys, monkeypatch):
    def refuses(*arguments):
        raise RuntimeError("no such server")

    monkeypatch.setitem(trackers.FACTORIES, "mlflow", refuses)
    assert training.train(config("mlflow"), root=tmp_path, progress=False).epochs == 3
    assert capsys.readouterr().err.count("tracker mlflow failed (RuntimeError: no such server)") == 1


def test_a_lacking_package_is_a_line_before_anything_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="--logger wandb needs wandb, which cannot be imported"):
        training.train(config("wandb"), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    assert cli.main(["train", "--task", "adding", "--logger", "csv,wandb", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: --logger wandb needs wandb")


def test_names_are_separated_by_commas_and_unknown_ones_refused(capsys, tmp_path):
    setting = next(one for one in options.settings() if one.key == "loggers")
    assert setting.flag == "--logger" and setting.default == "csv,tensorboard"
    file = tmp_path / "config.yaml"
    file.write_text("loggers: csv, mlflow\n")
    assert load_yaml(file).loggers == ["csv", "tensorboard", "mlflow"]
    with pytest.raises(UnknownNameError, match="mlfow"):
        config("mlfow")
    with pytest.raises(InputError, match="loggers is 3: expected a list of names"):
        RunConfig.from_dict({"loggers": 3})
    assert cli.main(["train", "--resume", str(tmp_path), "--logger", "csv"]) == 2
    assert "leave out --logger" in capsys.readouterr().err


def test_trackio_is_told_by_its_own_functions(tmp_path, monkeypatch):
    """Against a module with its signatures: a project, a name and settings; figures with their step; an end."""
    calls = []
    fake = types.ModuleType("trackio")
    fake.init = lambda project, name=None, config=None, resume="never": calls.append((project, name, config, resume))
    fake.log = lambda metrics, step=None: calls.append((step, metrics))
    fake.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, "trackio", fake)
    result = training.train(config("trackio"), root=tmp_path, name="mine", progress=False)
    project, name, params, resume = calls[0]
    assert (project, name, resume) == ("adding", "mine", "never") and params["model"] == "gru"
    assert [call[0] for call in calls[1:-1]] == [1, 2, 3, 3] and calls[-1] == "finish"
    calls.clear()
    result.folder.result_file.unlink()
    training.resume(result.folder.path, progress=False)
    assert calls[0][1] == "mine" and calls[0][3] == "allow" and [call[0] for call in calls[1:-1]] == [3]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_run_in_a_file_beside_the_run_folders(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    pytest.importorskip("sqlalchemy", reason="needs mlflow with its data base")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = training.train(config("mlflow"), root=tmp_path, name="mine", progress=False)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("adding").experiment_id])
    assert run.info.run_name == "mine" and run.info.status == "FINISHED" and run.data.params["model"] == "gru"
    told = client.get_metric_history(run.info.run_id, "validation_loss")
    assert [one.step for one in told] == [1, 2, 3]
    assert [one.value for one in told] == [row["validation_loss"] for row in rows(result.folder)]
    assert run.data.metrics["test_mse"] == result.test["mse"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_is_offline_in_the_run_folder_unless_told_otherwise(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        # Set and deleted, so that what wandb itself sets is undone, too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = training.train(config("wandb"), root=tmp_path, name="mine", progress=False)
    told = json.loads((result.folder.path / "trackers.json").read_text())["wandb"]
    (folder,) = (result.folder.path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(told["id"]) and told["epochs"] == 3 and wandb.run is None
    assert b"validation_loss" in (folder / f"run-{told['id']}.wandb").read_bytes()
