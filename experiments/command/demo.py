"""The demonstration: train a coRNN on handwritten digits, then swap the integrator of the trained weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from experiments import load
from experiments.compare.comparison import Report, compare
from experiments.compare.reports import new_folder, print_paths, publish, result_table
from experiments.tasks.series import batch_of
from experiments.train.config import RunConfig
from experiments.train.training import RunResult, threads, train
from neuralosc.analysis.controls import controls
from solvers.errors import NumericalError

LEAST_ACCURACY = 0.95

# Sequences that a read-out is fitted to anew, and of the test set as many or all.
FITTED = 512

Progress = Callable[[str], AbstractContextManager[Report]]

CONFIG = RunConfig(
    task="digits",
    model="cornn",
    model_options={"hidden_size": 128, "dt": 0.2, "gamma": 1.0, "epsilon": 2.0, "solver": "semi_implicit_euler"},
    lr=0.01,
    schedule="cosine",
    epochs=60,
    batch_size=64,
    gradient_clip=1.0,
    # Matrices this small gain nothing from a second thread, and lose much to it on a busy machine.
    threads=1,
)


class ShortfallError(NumericalError):
    """The demonstration did not reach its accuracy."""

    advice = "the run is kept; please report it with its folder"


def demo(
    root: Path, out: Console, progress: Progress, config: RunConfig = CONFIG, least: float = LEAST_ACCURACY
) -> None:
    """Train, compare, draw, and say where everything is.

    Args:
        root: folder of the run folders.
        out: where to print.
        progress: opens a progress bar for the comparison.
        config: what to train.
        least: test accuracy below which the demonstration has failed.

    Raises:
        ShortfallError: the test accuracy is below `least`.
    """
    out.print(f"Training {config.model} on {config.task} under its published step.")
    result = train(config, root=root)
    out.print(result_table(result))
    accuracy = result.test["accuracy"]
    if accuracy < least:
        raise ShortfallError(
            f"test accuracy {accuracy:.2%} of run {result.folder.path} is below the {least:.0%} the demo promises"
        )
    out.print("\nThe weights stay; the integrator changes.")
    with progress("comparing") as report:
        comparison = compare(result.folder.path, report=report)
    paths = publish(comparison, new_folder(result.folder.path), out)
    out.print(
        f"\nIs it the equation or the read-out that the other step lost?\n{_with_the_read_out_fitted_anew(result)}"
    )
    out.print("\nWritten:")
    print_paths(out, [result.folder.path, result.folder.curve_file, *paths])
    out.print("\nWhat to try next:")
    for purpose, command in next_steps(result.folder.path):
        out.print(f"  {purpose}:\n    {command}", soft_wrap=True, markup=False)


def _with_the_read_out_fitted_anew(result: RunResult) -> str:
    """What comes back of the accuracy when only the linear read-out is fitted to the exact states."""
    run = load(result.folder.path)
    train_, _, test = (tuple(batch_of(part, slice(None))) for part in run.splits)
    with threads(run.config):
        found = controls(run.model, train_, test, samples=FITTED, seeds=1)
    return str(found.verdict)


def next_steps(run: Path) -> list[tuple[str, str]]:
    """What is worth trying after the demonstration, and the command for it."""
    start = "python -m experiments"
    return [
        ("more solvers on the same weights", f"{start} compare {run} --solvers euler,heun,rk4,tsit5 --substeps 1,4"),
        (
            "weights that do not depend on the step: train under a better solver, then compare that run",
            f"{start} train --dt 0.2 --gamma 1 --epsilon 2 --solver rk4 --epochs 30",
        ),
        ("everything there is to choose from", f"{start} list"),
    ]
