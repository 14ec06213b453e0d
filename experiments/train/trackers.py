"""Experiment trackers beside metrics.csv and the TensorBoard events: MLflow, Weights & Biases, Trackio.

A tracker is told the name of the run, its settings, the figures of every epoch and those of the test set at the end. It
is a by-product: where it fails the run goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger

from experiments import own
from experiments.files import write_atomically
from experiments.train.checkpoints import Keeper, flat, notice
from experiments.train.config import ALWAYS_LOGGED, RunConfig
from experiments.train.runs import RunFolder
from solvers.errors import InputError

#: What makes the tracker of a run: its folder, its project, and the id of an earlier part of the run, if there was one.
Factory = Callable[[RunFolder, str, str | None], Logger]


def mlflow(folder: RunFolder, project: str, known: str | None) -> Logger:
    """MLflow: where MLFLOW_TRACKING_URI says, else mlflow.db beside the run folders."""
    from lightning.pytorch.loggers import MLFlowLogger

    here = f"sqlite:///{folder.path.absolute().parent / 'mlflow.db'}"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or here
    return MLFlowLogger(project, run_name=folder.path.name, tracking_uri=uri, run_id=known)


def wandb(folder: RunFolder, project: str, known: str | None) -> Logger:
    """Weights & Biases: offline, in the run folder, unless WANDB_MODE says otherwise."""
    from lightning.pytorch.loggers import WandbLogger

    mode = os.environ.get("WANDB_MODE") or "offline"
    where: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT") or project, "save_dir": folder.path}
    return WandbLogger(name=folder.path.name, id=known or uuid.uuid4().hex[:8], mode=mode, **where)


class TrackioLogger(Logger):
    """Trackio, which Lightning has no logger of.

    Args:
        project: what the run belongs to.
        run: its name.
        resume: whether an earlier part of it is there.
    """

    def __init__(self, project: str, run: str, resume: bool) -> None:
        super().__init__()
        self.project, self.run, self.resume = project, run, resume
        self.begun = False

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str:
        """The name of the run, by which Trackio finds it again."""
        return self.run

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        """Begin the run, which takes its settings then."""
        import trackio

        resume = "allow" if self.resume else "never"
        trackio.init(project=self.project, name=self.run, config=dict(params), resume=resume)
        self.begun = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures."""
        import trackio

        trackio.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        """End the run."""
        import trackio

        if self.begun:
            trackio.finish()


def trackio(folder: RunFolder, project: str, known: str | None) -> Logger:
    """Trackio: where its own environment variables say, else in its folder of this user."""
    return TrackioLogger(project, known or folder.path.name, known is not None)


FACTORIES: dict[str, Factory] = {"mlflow": mlflow, "wandb": wandb, "trackio": trackio}


def require(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not here.

    Raises:
        InputError: one of them cannot be imported.
    """
    for name in names:
        if name in FACTORIES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                install = "pip install 'neuralosc[trackers]', or only that package"
                raise InputError(
                    f"--logger {name} needs {name}, which cannot be imported ({error}): {install}"
                ) from None


class Trackers(L.Callback):
    """Tells the trackers of a run what they have not been told yet; each in the same run of its own as before.

    Args:
        folder: the run; its trackers.json keeps what each tracker calls it, and how many epochs that was told.
        config: its configuration.
        keeper: has the history; must come before this callback.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, keeper: Keeper) -> None:
        self.folder, self.config, self.keeper = folder, config, keeper
        self.path = folder.path / "trackers.json"
        self.names = [name for name in config.loggers if name not in ALWAYS_LOGGED]
        self.told = self._read() if self.names else {}
        self.open: dict[str, Logger] = {}

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            values = json.loads(self.path.read_bytes())
            return {name: {"id": str(each["id"]), "epochs": int(each["epochs"])} for name, each in values.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            notice(f"{self.path} cannot be read: the trackers begin a run anew")
            return {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin."""
        self.update()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell them of the epoch."""
        self.update()

    def update(self) -> None:
        """Tell them of the epochs that they do not know.

        After a crash between the two an epoch is told twice, and never none.
        """
        for name in list(self.names):
            with self._going_on(name):
                logger, told = self._opened(name), self.told[name]
                for record in self.keeper.history[told["epochs"] :]:
                    epoch = int(record["epoch"])
                    logger.log_metrics({key: value for key, value in record.items() if key != "epoch"}, step=epoch)
                    told["epochs"] = epoch
                self._write()

    def close(self, status: str, figures: Mapping[str, float] | None = None) -> None:
        """End the runs of the trackers; that they fail is said, and raised for nobody.

        Args:
            status: "success" or "failed".
            figures: what the test set gave.
        """
        if figures is not None:
            self.update()
        for name, logger in list(self.open.items()):
            with self._going_on(name):
                if figures is not None:
                    step = len(self.keeper.history)
                    logger.log_metrics({f"test_{key}": value for key, value in figures.items()}, step=step)
                logger.finalize(status)
                if name == "wandb":
                    # Else the next training of this process would be told to the same run.
                    logger.experiment.finish(exit_code=int(status != "success"))  # type: ignore[attr-defined]
        self.open.clear()

    def _opened(self, name: str) -> Logger:
        if name not in self.open:
            known = self.told.get(name)
            logger = FACTORIES[name](self.folder, own.short(self.config.task), None if known is None else known["id"])
            logger.log_hyperparams(flat(self.config))
            self.told.setdefault(name, {"id": str(logger.version), "epochs": 0})
            self.open[name] = logger
            self._write()
        return self.open[name]

    def _write(self) -> None:
        write_atomically(self.path, (json.dumps(self.told, indent=1) + "\n").encode())

    @contextlib.contextmanager
    def _going_on(self, name: str) -> Iterator[None]:
        """Whatever a tracker stumbles over (a server, a disk, its own code) is said once, and ends nothing."""
        try:
            yield
        except Exception as error:
            if name in self.names:
                self.names.remove(name)
            self.open.pop(name, None)
            notice(f"tracker {name} failed ({type(error).__name__}: {error!s:.200}): the run goes on without it")
