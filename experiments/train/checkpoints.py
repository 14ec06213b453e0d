"""Checkpoints after every epoch, from which a run killed at any moment goes on to the same weights."""

from __future__ import annotations

import csv
import io
import math
import pickle
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.tensorboard import SummaryWriter

from experiments.files import write_atomically
from experiments.train.config import RunConfig
from experiments.train.curves import draw_learning_curve
from experiments.train.history import Record, best_record, is_over
from experiments.train.runs import RunFolder
from experiments.train.trainer import NonFiniteLossError, TrainingLoop
from solvers.errors import InputError

FORMAT = "neuralosc training checkpoint 1"
KEYS = {"format", "epochs", "model", "optimizer", "precision", "history"}

# A picture takes a fifth of a second: the learning curve is drawn at the end, and now and then in a long run.
SECONDS_BETWEEN_CURVES = 60.0


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors, numbers and text, nothing that is executed.

    Raises:
        InputError: the file is missing, damaged, or no checkpoint of ours.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings():
            # torch.load warns of a foreign file before it refuses it.
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, ValueError, OSError) as error:
        raise InputError(
            f"checkpoint {path} is damaged or not a checkpoint ({type(error).__name__}): put a copy of best.ckpt in the"
            " place of last.ckpt to go on from the best epoch, or remove last.ckpt to start again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or set(content) != KEYS:
        raise InputError(f"{path} is not a checkpoint of a run: expected the format {FORMAT!r}")
    return content


class Keeper(L.Callback):
    """After every epoch: keeps the history, the checkpoints and the logs, and stops a run that gets no better.

    last.ckpt is the only thing a resumed run believes. It is written first; the best checkpoint, the table, the events
    and the learning curve are all made from it, and made again if the process died in between.

    Args:
        folder: the run.
        config: its configuration.
        checkpoint: the content of its last checkpoint, None for a run that has none.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, checkpoint: dict[str, Any] | None) -> None:
        self.folder, self.config = folder, config
        self.restored = checkpoint
        self.history: list[Record] = list(checkpoint["history"]) if checkpoint else []
        self.started = self.drawn = time.perf_counter()
        folder.last.parent.mkdir(exist_ok=True)
        for unfinished in folder.path.rglob(".*.part*"):
            unfinished.unlink()
        if checkpoint is not None and self._best_is_last():
            # The process may have died between the two files.
            write_atomically(folder.best, folder.last.read_bytes())
        shutil.rmtree(folder.tensorboard, ignore_errors=True)
        self.events = SummaryWriter(str(folder.tensorboard))
        for record in self.history:
            self._log(record)
        self._write_table()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the optimiser where the checkpoint left it."""
        if self.restored is not None:
            trainer.optimizers[0].load_state_dict(self.restored["optimizer"])
            trainer.precision_plugin.load_state_dict(self.restored["precision"])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the epoch."""
        assert isinstance(pl_module, TrainingLoop)
        record: Record = {"epoch": pl_module.epoch + 1}
        record |= {f"train_{name}": value for name, value in pl_module.train_totals.result().items()}
        record |= {f"validation_{name}": value for name, value in pl_module.validation_totals.result().items()}
        record["learning_rate"] = self.config.learning_rate(pl_module.epoch)
        record["seconds"] = time.perf_counter() - self.started
        if not math.isfinite(record["validation_loss"]):
            raise NonFiniteLossError(
                f"the validation loss is {record['validation_loss']} after epoch {record['epoch']}"
            )
        self.history.append(record)
        self._save(trainer, pl_module)
        self._log(record)
        self._write_table()
        if time.perf_counter() - self.drawn > SECONDS_BETWEEN_CURVES:
            self.draw()
        if is_over(self.config, self.history):
            trainer.should_stop = True

    def draw(self) -> None:
        """Draw the learning curve, if there is anything to draw."""
        if self.history:
            draw_learning_curve(self.history, self.folder.curve_file)
        self.drawn = time.perf_counter()

    def close(self) -> None:
        """Finish the logs."""
        self.events.close()
        self.draw()

    def _best_is_last(self) -> bool:
        return best_record(self.history)["epoch"] == self.history[-1]["epoch"]

    def _save(self, trainer: L.Trainer, loop: TrainingLoop) -> None:
        content = {
            "format": FORMAT,
            "epochs": len(self.history),
            "model": loop.model.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "precision": trainer.precision_plugin.state_dict(),
            "history": self.history,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(self.folder.last, buffer.getvalue())
        if self._best_is_last():
            write_atomically(self.folder.best, buffer.getvalue())

    def _log(self, record: Record) -> None:
        for name, value in record.items():
            if name != "epoch":
                part, _, rest = name.partition("_")
                tag = f"{rest}/{part}" if part in ("train", "validation") else name
                self.events.add_scalar(tag, value, int(record["epoch"]))
        self.events.flush()

    def _write_table(self) -> None:
        if not self.history:
            self.folder.metrics_file.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_atomically(self.folder.metrics_file, text.getvalue().encode())
