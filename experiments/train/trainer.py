"""The training loop: batches, the Lightning module and its trainer."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import Dataset

import solvers
from experiments.tasks import Task
from experiments.tasks.series import Batch, Series, batch_of
from experiments.train import optimizers, processes
from experiments.train.config import RunConfig
from experiments.train.feeding import told
from experiments.train.model import dtype, seed_of
from experiments.train.profiling import MODEL, Profile
from experiments.train.resident import resident, tensors
from experiments.train.scoring import Scoring, Totals
from experiments.train.streams import Pass, parallel
from neuralosc import SequenceModel
from solvers.errors import InputError, NumericalError

# Larger than a usual training batch, since nothing is stored for a backward pass; small enough for 784 steps.
EVALUATION_BATCH = 250

#: Steps of a whole training from which compiling a step pays, however short the sequences are; and those of a sequence
#: below which a call of it costs as much as the plain loop.
MANY, FEW = 20_000, 16

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
        bucket: of how many batches the sequences are put together by their length; 0 for none. See `by_length`.

    Raises:
        InputError: fewer pieces than that, or sequences to be put together that are of one length.
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
        bucket: int = 0,
    ) -> None:
        self.data, self.size, self.shuffle, self.dtype, self.time = data, size, shuffle, dtype, time
        self.streams, self.bucket = streams, bucket
        self.lengths = batch_of(data, slice(None)).lengths if bucket and not streams else None
        if bucket and self.lengths is None:
            raise InputError(f"bucket is {bucket}, and the sequences of this task are of one length: leave it out")
        self.samples = len(data)  # type: ignore[arg-type]
        # The last piece may be shorter than others beside it.
        self.pieces = self.samples - (size > 1)
        if streams and self.pieces < size:
            raise InputError(f"batch_size is {size}, and there are {self.pieces} pieces to begin at: expected fewer")
        count = self.pieces // size if streams else math.ceil(self.samples / size)
        self.count = min(count, limit) if limit else count
        self.epoch = 0
        self.placed = data

    def __len__(self) -> int:
        return self.count

    @contextlib.contextmanager
    def staying(self, device: str) -> Iterator[None]:
        """Keep the data on a device for so long, if they fit; see `resident`."""
        self.placed = resident(self.data, torch.device(device))
        try:
            yield
        finally:
            self.placed = self.data

    def __iter__(self) -> Iterator[Batch]:
        if self.streams:
            order = parallel(self.pieces, self.size).flatten()
        elif self.shuffle is None:
            order = torch.arange(self.samples)
            if self.lengths is not None:
                order = by_length(order, self.lengths, self.size * self.bucket)
        else:
            generator = torch.Generator().manual_seed(seed_of(self.shuffle, _ORDER, self.epoch))
            order = torch.randperm(self.samples, generator=generator)
            if self.lengths is not None:
                order = mixed(by_length(order, self.lengths, self.size * self.bucket), self.size, generator)
        # Of data that stay on a device the numbers of an epoch are brought there at once.
        order = order.to(next(iter(tensors(self.placed)), order).device)
        for part in order.split(self.size)[: self.count]:
            # Of several processes each has its part of every batch.
            part = part.tensor_split(processes.count())[processes.rank()]
            yield told(batch_of(self.placed, part), self.time).floating(self.dtype)


def by_length(order: Tensor, lengths: Tensor, pool: int) -> Tensor:
    """An order in which sequences follow each other by their length, so many of them at a time.

    Args:
        order: which decides who is in a pool together, and the order of sequences of one length.
        lengths: of all sequences.
        pool: sequences that are sorted together.
    """
    lengths = lengths.to(order.device)
    return torch.cat([part[lengths[part].argsort(stable=True)] for part in order.split(pool)])


def mixed(order: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """The batches of an order in random order; the last one, which may be smaller, stays the last.

    Args:
        order: of the sequences.
        size: sequences in a batch.
        generator: draws the order of the batches.
    """
    whole = len(order) // size
    batches = order[: whole * size].view(whole, size)[torch.randperm(whole, generator=generator)]
    return torch.cat((batches.flatten(), order[whole * size :]))


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
            shared(model, batch, answers.totals, lambda batch: answers.answered(model, batch.to(device)))
    finally:
        model.train(training)
    return processes.joint(answers.totals).result()


def shared(model: nn.Module, batch: Batch, totals: Totals, loss: Callable[[Batch], Tensor]) -> Tensor:
    """What `loss` gives of a batch; of several processes, of which each has a part of it, see `processes.share`."""

    def of_part() -> Tensor:
        if len(batch.x) or processes.count() == 1:
            return loss(batch)
        # Where there are fewer sequences than processes; every parameter has a gradient, as in the others.
        return torch.stack([parameter.sum() for parameter in model.parameters() if parameter.requires_grad]).sum() * 0

    return processes.share(of_part, totals)


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
        if task.streams and processes.count() > 1:
            raise InputError(
                f"task {task.name!r} goes on from piece to piece of one sequence, and torchrun started "
                f"{processes.count()} processes: train in one"
            )
        if config.sync_batchnorm and not processes.synchronize(model):
            raise InputError("sync_batchnorm is given, and this network has no batch normalization: leave it out")
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
            bucket=config.bucket,
        )
        self.validation_batches = evaluation_batches(validation, config, task)
        self._require_whole_batches()
        self.batch = 0
        self.train_pass = self.validation_pass = Pass(self.scoring, task.streams)

    def _require_whole_batches(self) -> None:
        """Refuse batches of which a process has nothing, where it is needed to normalize them."""
        batches, number = self.train_batches, processes.count()
        least = min(batches.size, batches.samples - (len(batches) - 1) * batches.size)
        if self.config.sync_batchnorm and least < number:
            raise InputError(
                f"a batch of {least} sequences for {number} processes with sync_batchnorm: choose another batch_size, "
                "or fewer processes"
            )

    @property
    def epoch(self) -> int:
        """The epoch of the run, counted from 0, whichever process does it."""
        return self.first_epoch + self.current_epoch

    @property
    def least(self) -> int | None:
        """Steps of a sequence from which this training compiles; None for as many as a single call needs.

        It follows from the configuration and the data alone, so a resumed run takes the same path.
        """
        steps = self.config.epochs * len(self.train_batches) * getattr(self.task, "length", 0)
        return FEW if steps >= MANY else None

    def paths(self) -> contextlib.AbstractContextManager[None]:
        """Within this the steps of the training take their paths."""
        return solvers.backend(solvers.get_backend(), self.least)

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
        # Other masks for other parts of a batch.
        part = (processes.rank(),) if processes.rank() else ()
        torch.manual_seed(seed_of(self.config.seed, _NOISE, self.epoch, *part))
        self.train_pass = Pass(self.scoring, self.task.streams)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Set the learning rate of this step."""
        done = (index + 1) / len(self.train_batches)
        optimizers.set_rate(self.trainer.optimizers[0], self.config.learning_rate(self.epoch, done))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The mean loss of a batch."""
        self.batch = index
        return shared(self.model, batch, self.train_pass.totals, self._loss)

    def _loss(self, batch: Batch) -> Tensor:
        loss = self._answered(batch, self.train_pass, "train")
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
        """Count anew, with the same running means in all processes."""
        processes.same_buffers(self.model)
        self.validation_pass = Pass(self.scoring, self.task.streams)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Count a batch."""
        counts = self.validation_pass
        shared(self.model, batch, counts.totals, lambda batch: self._answered(batch, counts, "evaluation"))

    def _answered(self, batch: Batch, counts: Pass, where: str) -> Tensor:
        timed = self.trainer.profiler.profile(f"{where} {MODEL}")  # type: ignore[attr-defined]
        return counts.answered(self.model, batch, timed)

    def join_totals(self) -> None:
        """At the end of an epoch: have what all processes have counted."""
        for counts in (self.train_pass, self.validation_pass):
            counts.totals = processes.joint(counts.totals)

    def _non_finite(self, what: str, value: Tensor) -> NonFiniteLossError:
        return NonFiniteLossError(f"the {what} is {value.item()} in epoch {self.epoch + 1}, batch {self.batch + 1}")


def evaluation_batches(
    data: Dataset, config: RunConfig, task: Task, limit: int | None = None, ordered: bool = False
) -> Batches:
    """Batches of a validation or test set; pieces of one sequence are gone through one after the other.

    Sequences of several lengths are gone through by their length, since padding takes time, unless a limit names the
    first of them or they are asked for in the order of the data.
    """
    limit = config.limit_evaluation_batches if limit is None else limit
    size = 1 if task.streams else EVALUATION_BATCH
    several = isinstance(data, Series) and data.whole.lengths is not None and not task.streams
    bucket = math.ceil(len(data) / size) if several and not limit and not ordered else 0  # type: ignore[arg-type]
    return Batches(data, size, limit=limit, dtype=dtype(config), time=config.time, streams=task.streams, bucket=bucket)


def fit(loop: TrainingLoop, device: str, callbacks: list[L.Callback], profile: Profile | None = None) -> None:
    """Train for the epochs that are left.

    Args:
        loop: what happens in an epoch.
        device: "cpu", "cuda" or "mps".
        callbacks: in their order.
        profile: what keeps the time that all of it takes.

    Raises:
        NumericalError: the training broke down.
        KeyboardInterrupt: it was interrupted.
    """
    main = threading.current_thread() is threading.main_thread()
    on_interrupt = signal.getsignal(signal.SIGINT)
    with (
        _quiet(),
        loop.train_batches.staying(device),
        loop.validation_batches.staying(device),
        loop.paths(),
    ):
        trainer = L.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            **_placed(),
            # float64 weights and data are made as such: only the mixed precisions are Lightning's business.
            precision="32-true" if loop.config.precision in ("32", "64") else loop.config.precision,  # type: ignore[arg-type]
            max_epochs=loop.config.epochs - loop.first_epoch,
            gradient_clip_val=loop.config.gradient_clip or None,
            callbacks=callbacks,
            profiler=None if profile is None else profile.profiler,
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


def _placed() -> dict[str, Any]:
    """Where Lightning runs this: here, or in the processes that torchrun started."""
    if processes.count() == 1:
        return {"devices": 1}
    return {
        "devices": processes.on_this_machine(),
        "num_nodes": processes.count() // processes.on_this_machine(),
        "strategy": DDPStrategy(
            cluster_environment=TorchElasticEnvironment(),
            process_group_backend=processes.backend(),
            # A network may have weights that no answer depends on; and gradients are summed in the same order always.
            find_unused_parameters=True,
        ),
        "use_distributed_sampler": False,
    }


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
