"""Timing cases side by side in one process, and what the times depend on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich import box
from rich.table import Table

from experiments.machines import processor

Report = Callable[[str, float], None]


def silent(what: str, done: float) -> None:
    """The report of nobody who listens."""


def within(report: Report, before: float, own: float) -> Report:
    """The report of a part of the work, which takes the share `own` of all and comes after the share `before`."""
    return lambda what, done: report(what, before + own * done)


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    repeats: int,
    what: str = "",
    report: Report = silent,
    limits: Mapping[str, int] | None = None,
    counts: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Seconds of every case in each of `repeats` rounds: a slow moment of the machine meets all of them.

    A case with a limit takes part in the first so many rounds alone. A case with a count runs so often in a row in each
    of its rounds, whose time is the mean: training takes one short step after another, with warm caches. Another clock
    may leave out what the process waits for.
    """
    counts = counts or {}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats):
        report(f"{what} round {repeat + 1} of {repeats}", (repeat + 1) / (repeats + 1))
        for name, case in cases.items():
            if limits and repeat >= limits.get(name, repeats):
                continue
            count = counts.get(name, 1)
            start = clock()
            for _ in range(count):
                case()
            seconds[name].append((clock() - start) / count)
    return {name: tuple(times) for name, times in seconds.items()}


class Timed:
    """What has `seconds`, one for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median time in seconds."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """The shortest time in seconds."""
        return min(self.seconds)


def ratios(times: tuple[float, ...], base: tuple[float, ...]) -> tuple[float, float]:
    """The ratio of the medians and that of the minima."""
    return statistics.median(times) / statistics.median(base), min(times) / min(base)


def machine() -> dict[str, Any]:
    """What the timings depend on: processor, threads and versions, and the GPU where there is one."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def empty_table(title: str, caption: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """A table of timings without rows: columns of words, then columns of numbers."""
    where = machine()
    table = Table(
        title=title,
        caption=f"{caption} Threads: {where['threads']}, torch {where['torch']}.",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for heading in words:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table
