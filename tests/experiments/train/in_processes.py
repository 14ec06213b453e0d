"""Runs of which several processes do a part each; started by torchrun, with a file of what is to be done."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from experiments.tasks import Task
from experiments.tasks.series import Series
from experiments.train import processes
from experiments.train.config import RunConfig
from experiments.train.trainer import NonFiniteLossError, TrainingLoop
from experiments.train.training import resume, train


class Ragged(Task):
    """Series of several lengths with a target at some of their samples."""

    name = "ragged"
    description = "series of several lengths"
    input_size = 2
    output_size = 1
    kind = "regression"
    metrics = ("mse", "rmse")
    baseline = "none"
    every = True
    length = 9
    measured = True

    def splits(self, seed=0):
        """Of 23, 7 and 5 series."""
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(35, 9, 2, generator=generator)
        y = x[..., :1].cumsum(1)
        y[torch.rand(35, 9, generator=generator) < 0.4] = torch.nan
        lengths = torch.randint(1, 10, (35,), generator=generator)
        parts = torch.arange(35).split((23, 7, 5))
        return Series(x, y, None, lengths, every=True).parts(*parts)


def main(path):
    for work in json.loads(Path(path).read_text()):
        if "resume" in work:
            resume(work["resume"], progress=True)
        else:
            plain = TrainingLoop._loss
            if "fails" in work:
                TrainingLoop._loss = failing(plain, **work["fails"])
            stop = work.get("stop")
            ended = TrainingLoop.join_totals
            if stop:
                TrainingLoop.join_totals = stopping(ended, stop)
            try:
                train(RunConfig.from_dict(work["config"]), root=work["root"], name=work["name"], progress=True)
            except (NonFiniteLossError, KeyboardInterrupt) as failure:
                print(f"process {os.environ['RANK']} {type(failure).__name__}: {failure}", flush=True)
            finally:
                TrainingLoop._loss, TrainingLoop.join_totals = plain, ended


def failing(plain, rank, epoch):
    def loss(self, batch):
        if processes.rank() == rank and self.epoch == epoch:
            raise NonFiniteLossError(f"process {rank} has no numbers")
        return plain(self, batch)

    return loss


def stopping(plain, epoch):
    """As Ctrl-C in one process alone, in the epoch after `epoch`."""

    def join(self):
        plain(self)
        if self.epoch + 1 == epoch and processes.rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)

    return join


if __name__ == "__main__":
    main(sys.argv[1])
