"""The benchmarks: training steps, their other costs, solving alone, and all of it on a GPU; as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.bench import cases, gpu, training
from experiments.bench import cost as bench_cost
from experiments.bench import solving as bench_solving
from experiments.bench.cases import QUICK_SHAPES, SHAPES, Shape
from experiments.bench.timing import Report, machine, silent, within
from solvers.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

#: The benchmarks, and the share of the time that each takes.
PARTS = {"training": 0.8, "cost": 0.1, "solving": 0.1, "gpu": 0.4}


def shapes_of(names: Sequence[str] | None, quick: bool) -> tuple[Shape, ...]:
    """The shapes with these names; all of the quick or the other ones when none are given.

    Raises:
        InputError: there is no such shape.
    """
    if names is None:
        return QUICK_SHAPES if quick else SHAPES
    known = {shape.name: shape for shape in (*cases.SHAPES, *cases.QUICK_SHAPES)}
    for name in names:
        if name not in known:
            raise InputError(f"--shapes holds {name!r}, expected some of {', '.join(known)}")
    return tuple(known[name] for name in names)


def parts_of(names: Sequence[str] | None) -> tuple[str, ...]:
    """The benchmarks with these names; all that this machine can run when none are given.

    Raises:
        InputError: there is no such benchmark, or no GPU for it.
    """
    for name in names or ():
        if name not in PARTS:
            raise InputError(f"--parts holds {name!r}, expected some of {', '.join(PARTS)}")
    if names is None:
        return tuple(part for part in PARTS if part != "gpu" or gpu.available())
    if "gpu" in names:
        gpu.check()
    return tuple(names)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads; with PyTorch's choice for 0.

    Raises:
        InputError: a negative number.
    """
    if count < 0:
        raise InputError(f"--threads is {count}: expected a whole number of at least 1, or 0 for PyTorch's choice")
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    shapes: Sequence[Shape], repeats: int, parts: Sequence[str], quick: bool, report: Report = silent
) -> tuple[dict[str, Any], list[Table]]:
    """Run some benchmarks.

    Returns:
        machine and figures as plain values, and the tables.

    Raises:
        InputError: no repeats.
        NumericalError: cases that should compute the same do not.
    """
    values: dict[str, Any] = {"machine": machine()}
    tables = []
    total, done = sum(PARTS[part] for part in parts), 0.0
    for part in PARTS:
        if part not in parts:
            continue
        part_report = within(report, done, PARTS[part] / total)
        if part == "training":
            timings = training.run(shapes, repeats, part_report)
            values[part] = training.rows(timings)
            tables.append(training.table(timings))
        elif part == "cost":
            costs = bench_cost.run(quick, part_report)
            values[part] = [asdict(cost) for cost in costs]
            tables.append(bench_cost.table(costs))
        elif part == "gpu":
            figures = gpu.run(repeats, quick, part_report)
            values[part] = gpu.rows(*figures)
            tables += gpu.tables(*figures)
        else:
            solving = bench_solving.run(bench_solving.problems(quick), repeats, part_report)
            values[part] = bench_solving.rows(solving)
            tables.append(bench_solving.table(solving))
        done += PARTS[part] / total
    return values, tables


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write what `run` found to `path`."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
