"""What a person sees while a network is trained: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.train.checkpoints import Keeper
from experiments.train.history import Record, best_record
from experiments.train.trainer import TrainingLoop

REFRESH_SECONDS = 0.1

# Outside a terminal a line is written after every epoch, and in a long epoch now and then.
LINE_SECONDS = 30.0

# Columns of a terminal from which on the best figure is shown beside the last.
WIDE = 90

#: Called after every epoch with the figures of all epochs so far.
AfterEpoch = Callable[[list[Record]], None]


class Stopped(Exception):
    """What was called after an epoch ends the training; its checkpoints stay, and `resume` goes on with it."""


class Reporter(L.Callback):
    """Shows epoch, loss and metric of the training so far.

    Args:
        keeper: has the history; must come before this callback.
        console: where to write, standard output if left out.
    """

    def __init__(self, keeper: Keeper, console: Console | None = None) -> None:
        self.keeper = keeper
        self.console = console or Console(highlight=False)
        self.live = self.console.is_terminal
        self.wide = not self.live or self.console.width >= WIDE
        self.shown = time.perf_counter()
        self.bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        loop = _loop(pl_module)
        self.shown = time.perf_counter()
        if not self.live:
            return
        # Refreshed by the loop itself: no second thread competes with the training.
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16 if self.wide else 8),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            auto_refresh=False,
        )
        batches = len(loop.train_batches)
        self.task = self.bar.add_task(
            self._heading(loop), total=loop.config.epochs * batches, completed=loop.epoch * batches, figures=""
        )
        self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the figures of the epoch so far, not too often."""
        since = time.perf_counter() - self.shown
        if since < (REFRESH_SECONDS if self.live else LINE_SECONDS):
            return
        loop = _loop(pl_module)
        if self.bar is not None:
            self._update(loop, batch_idx + 1)
        elif batch_idx + 1 < len(loop.train_batches):
            self._line(
                f"{self._heading(loop)}  batch {batch_idx + 1}/{len(loop.train_batches)}  {self._training(loop)}"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the figures of the epoch."""
        loop = _loop(pl_module)
        if self.bar is not None:
            self._update(loop, len(loop.train_batches))
        else:
            seconds = self.keeper.history[-1]["seconds"]
            self._line(f"{self._heading(loop)}  {self._training(loop)}  {self._validation(loop)}  {seconds:.1f} s")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar, however the training ended."""
        if self.bar is not None:
            self.bar.refresh()
            self.bar.stop()
            self.bar = None

    def _update(self, loop: TrainingLoop, batches: int) -> None:
        assert self.bar is not None
        figures = f"{self._training(loop)}  {self._validation(loop)}".strip()
        done = loop.epoch * len(loop.train_batches) + batches
        self.bar.update(self.task, description=self._heading(loop), completed=done, figures=figures)
        self.bar.refresh()
        self.shown = time.perf_counter()

    def _line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)
        self.shown = time.perf_counter()

    def _heading(self, loop: TrainingLoop) -> str:
        return f"epoch {loop.epoch + 1}/{loop.config.epochs}"

    def _training(self, loop: TrainingLoop) -> str:
        """The figures of the training set in the epoch so far."""
        figures = loop.train_pass.totals.result()
        # The mean squared error is the loss.
        names = [name for name in ("loss", loop.task.metric_name) if name != "mse"]
        return "  ".join(_figure(name, figures[name], name) for name in names)

    def _validation(self, loop: TrainingLoop) -> str:
        """The figure of the validation set after the last finished epoch, and the best where there is room."""
        if not self.keeper.history:
            return ""
        name = f"validation_{loop.task.metric_name}"
        last, best = self.keeper.history[-1], best_record(self.keeper.history)
        return _figure("validation", last[name], name) + (f" (best {_number(name, best[name])})" if self.wide else "")


class Teller(L.Callback):
    """Tells what is not a person of every epoch.

    Args:
        keeper: has the history; must come before this callback.
        tell: what is called.
    """

    def __init__(self, keeper: Keeper, tell: AfterEpoch) -> None:
        self.keeper, self.tell = keeper, tell

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell of the epoch."""
        self.tell(self.keeper.history)


def _loop(module: L.LightningModule) -> TrainingLoop:
    assert isinstance(module, TrainingLoop)
    return module


def _figure(label: str, value: float, name: str) -> str:
    return f"{label} {_number(name, value)}"


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith("accuracy") else f"{value:.3g}"
