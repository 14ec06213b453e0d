"""The training loop: batches, the Lightning module and its trainer."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiments.tasks import Task
from experiments.tasks.series import Batch, batch_of
from experiments.train import optimizers
from experiments.train.config import RunConfig
from experiments.train.feeding import told
from experiments.train.model import dtype, seed_of
from experiments.train.scoring import Scoring
from experiments.train.streams import Pass, parallel
from neuralosc import SequenceModel
from solvers.errors import InputError, NumericalError

# Larger than a usual training batch, since nothing is stored for a backward pass; small enough for 784 steps.
EVALUATION_BATCH = 250

# The purposes for which numbers are drawn anew in every epoch.
_ORDER, _NOISE = 1, 2


class NonFiniteLossError(NumericalError):
    """A loss or a gradient that became NaN or infinite during training."""

    advice = "use a smaller learning rate or gradient_clip, or a smaller dt"


class Batches:
    """A data set cut into batches; shuffled, the order of every epoch follows from the seed and the epoch.

    Args:
        data: indexed by a vector of numbers.
        size: samples in a batch; the last batch may be smaller.
        limit: batches at most, 0 for all.
        shuffle: the seed of the order, None for the order of the data.
        dtype: of the floating-point tensors.
        time: how the network is told the time between samples, as in the configuration.
        streams: the data are pieces of one sequence, gone through side by side in so many parts as a batch has rows.

    Raises:
        InputError: fewer pieces than that.
    """

    def __init__(
        self,
        data: Dataset,
        size: int,
        *,
        limit: int = 0,
        shuffle: int | None = None,
        dtype: torch.dtype = torch.float32,
        time: str = "true",
        streams: bool = False,
    ) -> None:
        self.data, self.size, self.shuffle, self.dtype, self.time = data, size, shuffle, dtype, time
        self.streams = streams
        self.samples = len(data)  # type: ignore[arg-type]
        # The last piece may be shorter than others beside it.
        self.pieces = self.samples - (size > 1)
        if streams and self.pieces < size:
            raise InputError(f"batch_size is {size}, and there are {self.pieces} pieces to begin at: expected fewer")
        count = self.pieces // size if streams else math.ceil(self.samples / size)
        self.count = min(count, limit) if limit else count
        self.epoch = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        if self.streams:
            order = parallel(self.pieces, self.size).flatten()
        elif self.shuffle is None:
            order = torch.arange(self.samples)
        else:
            generator = torch.Generator().manual_seed(seed_of(self.shuffle, _ORDER, self.epoch))
            order = torch.randperm(self.samples, generator=generator)
        for part in order.split(self.size)[: self.count]:
            yield told(batch_of(self.data, part), self.time).floating(self.dtype)


@torch.no_grad()
def measure(model: nn.Module, batches: Batches, scoring: Scoring, device: torch.device | str) -> dict[str, float]:
    """Loss and metrics of a model on a data set.

    Raises:
        NumericalError: from the model.
    """
    answers = Pass(scoring, batches.streams)
    training = model.training
    model.eval()
    try:
        for batch in batches:
            answers.answered(model, batch.to(device))
    finally:
        model.train(training)
    return answers.totals.result()


def optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of a configuration over the parameters of a model."""
    return optimizer_of(config, optimizers.groups(model, config.weight_decay, config.dynamics_lr))


def optimizer_of(config: RunConfig, groups: optimizers.Groups) -> torch.optim.Optimizer:
    """The optimizer of a configuration over groups of parameters."""
    return optimizers.made(
        config.optimizer,
        groups,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        options=config.optimizer_options,
    )


class TrainingLoop(L.LightningModule):
    """What happens in a batch and in an epoch. Everything random in an epoch follows from the seed and the epoch.

    Args:
        model: what is trained.
        config: how.
        task: on what.
        first_epoch: epochs that were done before this process.
    """

    def __init__(self, model: SequenceModel, config: RunConfig, task: Task, first_epoch: int = 0) -> None:
        super().__init__()
        self.model, self.config, self.task, self.first_epoch = model, config, task, first_epoch
        # What cannot be is refused before a run has a folder.
        optimizers.groups(model, config.weight_decay, config.dynamics_lr)
        self.splits = task.splits(config.seed)
        train, validation, _ = self.splits
        self.scoring = Scoring.of(task, config, train, model)
        self.train_batches = Batches(
            train,
            config.batch_size,
            limit=config.limit_train_batches,
            shuffle=config.seed,
            dtype=dtype(config),
            time=config.time,
            streams=task.streams,
        )
        self.validation_batches = evaluation_batches(validation, config, task)
        self.batch = 0
        self.train_pass = self.validation_pass = Pass(self.scoring, task.streams)

    @property
    def epoch(self) -> int:
        """The epoch of the run, counted from 0, whichever process does it."""
        return self.first_epoch + self.current_epoch

    def train_dataloader(self) -> Any:
        """The training batches."""
        return self.train_batches

    def val_dataloader(self) -> Any:
        """The validation batches."""
        return self.validation_batches

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer; its learning rate is set at every step."""
        return optimizer(self.model, self.config)

    def on_train_epoch_start(self) -> None:
        """Choose the order and the dropout masks of this epoch."""
        self.train_batches.epoch = self.epoch
        torch.manual_seed(seed_of(self.config.seed, _NOISE, self.epoch))
        self.train_pass = Pass(self.scoring, self.task.streams)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Set the learning rate of this step."""
        done = (index + 1) / len(self.train_batches)
        optimizers.set_rate(self.trainer.optimizers[0], self.config.learning_rate(self.epoch, done))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The mean loss of a batch."""
        self.batch = index
        loss = self.train_pass.answered(self.model, batch)
        if not math.isfinite(loss.item()):
            raise self._non_finite("loss", loss)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient; refuse one that is not finite before it reaches the weights."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val or math.inf)
        # With 16-bit gradients infinities are normal: the loss scaling skips such a batch and goes on.
        if self.config.precision != "16-mixed" and not torch.isfinite(norm):
            raise self._non_finite("norm of the gradient", norm)

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self.validation_pass = Pass(self.scoring, self.task.streams)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Count a batch."""
        self.validation_pass.answered(self.model, batch)

    def _non_finite(self, what: str, value: Tensor) -> NonFiniteLossError:
        return NonFiniteLossError(f"the {what} is {value.item()} in epoch {self.epoch + 1}, batch {self.batch + 1}")


def evaluation_batches(data: Dataset, config: RunConfig, task: Task, limit: int | None = None) -> Batches:
    """Batches of a validation or test set; pieces of one sequence are gone through one after the other."""
    limit = config.limit_evaluation_batches if limit is None else limit
    size = 1 if task.streams else EVALUATION_BATCH
    return Batches(data, size, limit=limit, dtype=dtype(config), time=config.time, streams=task.streams)


def fit(loop: TrainingLoop, device: str, callbacks: list[L.Callback]) -> None:
    """Train for the epochs that are left.

    Raises:
        NumericalError: the training broke down.
        KeyboardInterrupt: it was interrupted.
    """
    main = threading.current_thread() is threading.main_thread()
    on_interrupt = signal.getsignal(signal.SIGINT)
    with _quiet():
        trainer = L.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            # float64 weights and data are made as such: only the mixed precisions are Lightning's business.
            precision="32-true" if loop.config.precision in ("32", "64") else loop.config.precision,  # type: ignore[arg-type]
            max_epochs=loop.config.epochs - loop.first_epoch,
            gradient_clip_val=loop.config.gradient_clip or None,
            callbacks=callbacks,
            # A Hamiltonian field needs the gradient of its energy, which inference mode forbids.
            inference_mode=False,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(loop)
        except SystemExit:
            # Lightning makes an exit (older versions: a normal return) of Ctrl-C, and leaves the signal switched off.
            if not trainer.interrupted:
                raise
        finally:
            if main:
                signal.signal(signal.SIGINT, on_interrupt)
        if trainer.interrupted:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notices (devices found, hints on loaders that are not ours) from the output."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
