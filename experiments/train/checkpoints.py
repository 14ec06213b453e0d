"""Checkpoints after every epoch, from which a run killed at any moment goes on to the same weights."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import math
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from experiments.files import write_atomically
from experiments.train import probes, processes
from experiments.train.config import RunConfig
from experiments.train.curves import draw_learning_curve
from experiments.train.events import Events
from experiments.train.history import Record, is_over, kept_record
from experiments.train.runs import RunFolder
from experiments.train.trainer import NonFiniteLossError, TrainingLoop, optimizer_of
from solvers.errors import InputError

FORMAT = "neuralosc training checkpoint 2"
KEYS = {"format", "config", "epochs", "model", "optimizer", "precision", "history"}
#: Of a run with code of one's own: what the weights answered to some series.
PROBE = "probe"

# What is in the record of every epoch, whatever the task.
FIGURES = {"epoch", "train_loss", "validation_loss", "learning_rate", "seconds"}

# The last bytes of a checkpoint: the checksum of all before. That of the archive inside is not looked at by torch.load.
SEAL = b"\nsha256:"

# A run may go on elsewhere, and be followed by others; everything else of its configuration decides what it gives.
MOVABLE = ("device", "data_dir", "task_options.csv", "loggers")

# A picture takes a fifth of a second: the learning curve is drawn at the end, and now and then in a long run.
SECONDS_BETWEEN_CURVES = 60.0


def sealed(content: dict[str, Any]) -> bytes:
    """The content of a checkpoint as bytes, with their checksum at the end."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue() + SEAL + _checksum(buffer.getvalue())


def _checksum(raw: bytes) -> bytes:
    return hashlib.sha256(raw).hexdigest().encode()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors, numbers and text, nothing that is executed.

    Raises:
        InputError: the file is missing, damaged, or no checkpoint of ours.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    payload, seal, checksum = raw.rpartition(SEAL)
    if not seal or checksum != _checksum(payload):
        raise InputError(f"checkpoint {path} is damaged or not a checkpoint: its last bytes are not its checksum")
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever the reader of a foreign file stumbles over.
        raise InputError(f"checkpoint {path} is damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or set(content) - {PROBE} != KEYS:
        raise InputError(f"{path} is not a checkpoint of a run: expected the format {FORMAT!r}")
    if not _holds(content):
        raise InputError(f"checkpoint {path} is damaged: it does not hold what a run writes")
    return content


def _holds(content: dict[str, Any]) -> bool:
    """Whether the parts of a checkpoint are of the kinds that a run writes."""
    config, epochs, records = content["config"], content["epochs"], content["history"]
    if not all(isinstance(content[name], dict) for name in ("config", "model", "optimizer", "precision")):
        return False
    if not isinstance(records, list) or not records or type(epochs) is not int or epochs != len(records):
        return False
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not set(record) >= FIGURES or set(record) != set(records[0]):
            return False
        if not all(type(value) in (int, float) for value in record.values()) or record["epoch"] != number:
            return False
    if PROBE in content and not _tensors(content[PROBE]):
        return False
    try:
        RunConfig.from_dict(config)
    except (InputError, TypeError):
        return False
    return _tensors(content["model"])


def _tensors(values: Any) -> bool:
    """Whether this is a mapping of names to tensors."""
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in values.items()
    )


def newest(folder: RunFolder) -> dict[str, Any] | None:
    """The checkpoint to go on from: the last, or what is there if that is damaged, which is said; None of a new run.

    From an earlier checkpoint a run goes on to the same weights, and does some epochs again.

    Raises:
        InputError: all that there are are damaged.
    """
    faults: list[str] = []
    for path in (folder.last, folder.previous, folder.best):
        if path.is_file():
            try:
                content = load_checkpoint(path)
            except InputError as error:
                faults.append(str(error))
                continue
            if faults:
                notice(f"{faults[0]}: going on from {path.name}, after epoch {content['epochs']}")
            return content
        if path == folder.last:
            faults.append(f"checkpoint {path} is missing")
    if len(faults) > 1 or folder.last.is_file():
        raise InputError(f"{faults[0]}: remove {folder.last.parent} to train the run again from the start")
    return None


def require_same(
    folder: RunFolder, config: RunConfig, checkpoint: dict[str, Any], movable: Collection[str] = MOVABLE
) -> None:
    """Refuse a configuration file that was changed after the checkpoint was written.

    Raises:
        InputError: it says something else than the checkpoint.
    """
    now, then = _texts(config), _texts(RunConfig.from_dict(checkpoint["config"]))
    changed = [name for name in {**then, **now} if name not in movable and now.get(name) != then.get(name)]
    if changed:
        name, *others = changed
        more = f" (and {len(others)} more)" if others else ""
        raise InputError(
            f"{folder.config_file} says {name} {now.get(name, 'nothing'):.40}{more}, its checkpoints were written with"
            f" {then.get(name, 'nothing'):.40}: put it back, or train another run with --config"
        )


def flat(config: RunConfig) -> dict[str, Any]:
    """Every value of a configuration by its name, of a section by that and its own: "model_options.dt"."""
    values = {}
    for name, value in config.to_dict().items():
        values.update(
            {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        )
    return values


def _texts(config: RunConfig) -> dict[str, str]:
    """Every value of a configuration as text, in which NaN is equal to itself."""
    return {name: repr(value) for name, value in flat(config).items()}


def put_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Give a model the weights of a checkpoint.

    Raises:
        InputError: they are of another model.
    """
    saved, own = checkpoint["model"], model.state_dict()
    # torch would convert a weight of another type without a word.
    if saved.keys() != own.keys() or any(_kind(saved[name]) != _kind(own[name]) for name in own):
        raise InputError(f"checkpoint {path} does not fit the configuration of its run: it is of another network")
    model.load_state_dict(saved)


def _kind(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.layout


def put_optimizer(trainer: L.Trainer, loop: TrainingLoop, checkpoint: dict[str, Any], path: Path) -> None:
    """Put the optimiser and the scaling of the loss where a checkpoint left them.

    Raises:
        InputError: they are of another model.
    """
    optimizer = trainer.optimizers[0]
    own = [_constants(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
        if [_constants(group) for group in optimizer.param_groups] != own:
            raise InputError("options of another optimiser")
        _require_state(optimizer, loop.config)
        if checkpoint["precision"].keys() != trainer.precision_plugin.state_dict().keys():
            raise InputError("a scaling of the loss for another precision")
        trainer.precision_plugin.load_state_dict(checkpoint["precision"])
    except Exception as error:
        raise InputError(f"checkpoint {path} does not fit the configuration of its run: {error}") from error


def _require_state(optimizer: torch.optim.Optimizer, config: RunConfig) -> None:
    """Refuse a state of an optimiser that is not of the kind that it makes itself.

    Raises:
        InputError: a parameter has other moments than after a first step.
    """
    parts = [group["params"] for group in optimizer.param_groups]
    twins = [[torch.zeros_like(p, requires_grad=True) for p in part] for part in parts]
    first = optimizer_of(
        config, [{**group, "params": t} for group, t in zip(optimizer.param_groups, twins, strict=True)]
    )
    for part, like in zip(parts, twins, strict=True):
        for parameter, twin in zip(part, like, strict=True):
            twin.grad = torch.zeros_like(twin) if parameter in optimizer.state else None
    first.step()
    for part, like in zip(parts, twins, strict=True):
        for parameter, twin in zip(part, like, strict=True):
            own, expected = (
                {name: getattr(value, "shape", type(value)) for name, value in state.get(key, {}).items()}
                for state, key in ((optimizer.state, parameter), (first.state, twin))
            )
            if own != expected:
                raise InputError(f"moments {own} of a parameter, expected {expected}")


def _constants(group: dict[str, Any]) -> dict[str, Any]:
    """What is the same in all epochs of a run."""
    return {name: value for name, value in group.items() if name not in ("params", "lr")}


def notice(message: str) -> None:
    """Say on standard error what a run went on in spite of."""
    with contextlib.suppress(OSError, ValueError):
        if processes.leads():
            print("note:", " ".join(message.split()), file=sys.stderr)


class Keeper(L.Callback):
    """After every epoch: keeps the history, the checkpoints and the logs, and stops a run that gets no better.

    last.ckpt is the only thing a resumed run believes, or previous.ckpt, the one before it, where that is damaged. They
    are written first; the best checkpoint, the table, the events and the learning curve are all made from the last, and
    made again if the process died in between. Where one of the last three cannot be written, the run goes on.

    Args:
        folder: the run.
        config: its configuration.
        checkpoint: the content of the checkpoint it goes on from, None for a run that has none.

    Raises:
        InputError: the weights of the epoch that is kept are lost.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, checkpoint: dict[str, Any] | None) -> None:
        self.folder, self.config = folder, config
        self.restored = checkpoint
        self.history: list[Record] = list(checkpoint["history"]) if checkpoint else []
        # What is on the disk may have been damaged since.
        self.written = sealed(checkpoint) if checkpoint else None
        self.started = self.drawn = time.perf_counter()
        self.missed: set[str] = set()
        processes.first(self._open)

    def _open(self) -> None:
        """Put the folder in order."""
        folder = self.folder
        folder.last.parent.mkdir(exist_ok=True)
        for unfinished in folder.path.rglob(".*.part*"):
            unfinished.unlink()
        self._mend_best()
        shutil.rmtree(folder.tensorboard, ignore_errors=True)
        self.events = Events(folder.tensorboard)
        self._log()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the optimiser where the checkpoint left it."""
        if self.restored is not None:
            put_optimizer(trainer, _loop(pl_module), self.restored, self.folder.last)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the epoch."""
        loop = _loop(pl_module)
        loop.join_totals()
        record: Record = {"epoch": loop.epoch + 1}
        record |= {f"train_{name}": value for name, value in loop.train_pass.totals.result().items()}
        record |= {f"validation_{name}": value for name, value in loop.validation_pass.totals.result().items()}
        record["learning_rate"] = self.config.learning_rate(loop.epoch)
        record["seconds"] = time.perf_counter() - self.started
        if not math.isfinite(record["validation_loss"]):
            raise NonFiniteLossError(
                f"the validation loss is {record['validation_loss']} after epoch {record['epoch']}"
            )
        if self.history:
            # A run that an earlier version began keeps the figures that it began with.
            record = {name: value for name, value in record.items() if name in self.history[0]}
        self.history.append(record)
        processes.first(lambda: self._keep(trainer, loop))
        if is_over(self.config, self.history):
            trainer.should_stop = True

    def _keep(self, trainer: L.Trainer, loop: TrainingLoop) -> None:
        """Write what a resumed run needs, and what a person looks at."""
        self._save(trainer, loop)
        self._log()
        if time.perf_counter() - self.drawn > SECONDS_BETWEEN_CURVES:
            self.draw()

    def draw(self) -> None:
        """Draw the learning curve, if there is anything to draw."""
        if self.history and processes.leads():
            with self._by_product(self.folder.curve_file):
                kept = kept_record(self.config, self.history)
                draw_learning_curve(self.history, kept, self.folder.curve_file)
        self.drawn = time.perf_counter()

    @contextlib.contextmanager
    def _by_product(self, path: Path) -> Iterator[None]:
        """Write something that a resumed run makes again; that it cannot be written is said once, and ends nothing."""
        try:
            yield
        except (InputError, OSError) as error:
            if path.name not in self.missed:
                self.missed.add(path.name)
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                notice(f"{path} is not complete ({reason}): the run goes on")

    def _mend_best(self) -> None:
        """Have best.ckpt hold the epoch that is kept: the process may have died before writing it, or it is damaged."""
        if self.restored is None:
            return
        epoch = kept_record(self.config, self.history)["epoch"]
        if self._kept_is_last():
            write_atomically(self.folder.best, sealed(self.restored))
            return
        for path in (self.folder.best, self.folder.previous):
            with contextlib.suppress(InputError):
                kept = load_checkpoint(path)
                # A later one is of an epoch that will be done again, and be the best again.
                if kept["epochs"] == epoch or kept["epochs"] > len(self.history):
                    if path != self.folder.best:
                        write_atomically(self.folder.best, sealed(kept))
                    return
        raise InputError(
            f"checkpoint {self.folder.best} is damaged, and with it the weights of epoch {epoch}, the best so far:"
            f" remove {self.folder.last.parent} to train the run again from the start"
        )

    def _kept_is_last(self) -> bool:
        return kept_record(self.config, self.history) is self.history[-1]

    def _save(self, trainer: L.Trainer, loop: TrainingLoop) -> None:
        content = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "epochs": len(self.history),
            "model": loop.model.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "precision": trainer.precision_plugin.state_dict(),
            "history": self.history,
        }
        probe = probes.of(loop.model, self.config, loop.splits)
        written = sealed(content if probe is None else {**content, PROBE: probe})
        if self.written is not None:
            # The one that it stands in for is forced to the disk, and forcing takes longer than writing.
            write_atomically(self.folder.previous, self.written, durable=False)
        write_atomically(self.folder.last, written)
        self.written = written
        if self._kept_is_last():
            write_atomically(self.folder.best, written)

    def _log(self) -> None:
        """Write the events and the table."""
        with self._by_product(self.folder.tensorboard):
            self.events.update(self.history)
        with self._by_product(self.folder.metrics_file):
            if not self.history:
                self.folder.metrics_file.unlink(missing_ok=True)
                return
            text = io.StringIO()
            writer = csv.DictWriter(text, list(self.history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)
            write_atomically(self.folder.metrics_file, text.getvalue().encode(), durable=False)


def _loop(module: L.LightningModule) -> TrainingLoop:
    assert isinstance(module, TrainingLoop)
    return module
