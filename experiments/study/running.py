"""Carrying out a study within a budget of time, and writing what it found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.files import numbered_folder, write_atomically
from experiments.study.page import page
from experiments.study.parts import PARTS, Done
from experiments.study.runs import Studied
from experiments.train.training import threads
from solvers.errors import InputError, NumericalError, unknown

#: Seconds for all parts; the share of its time that a part is planned for, and the most that a first trial may take for
#: there to be a second.
BUDGET, PLANNED, TRIED = 120.0, 0.7, 0.5

Report = Callable[[str, float], None]


def study(
    studied: Studied, parts: Sequence[str] = (), budget: float = BUDGET, report: Report = lambda what, used: None
) -> list[Done]:
    """Carry out parts of a study, each on as many sequences as its share of the budget lets it.

    Args:
        studied: the runs.
        parts: names of `PARTS`; when left out all but those that must be named.
        budget: seconds for all of them. Each part is tried on a few sequences first; one for which no time is left is
            not begun, and says so; one that has begun is finished.
        report: called with what is being done and the fraction of the budget that is used.

    Raises:
        InputError: an unknown part, or no budget.
    """
    names = list(dict.fromkeys(parts)) or [name for name, part in PARTS.items() if not part.named]
    for name in names:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
    if not budget > 0:
        raise InputError(f"--budget {budget:g}: expected a positive number of seconds")
    begun, done = time.monotonic(), []
    with threads(studied.first.config):
        for place, name in enumerate(names):
            used = time.monotonic() - begun
            report(name, min(1.0, used / budget))
            share = PARTS[name].weight / sum(PARTS[other].weight for other in names[place:])
            done.append(_part(name, studied, share * (budget - used)))
    return done


def _part(name: str, studied: Studied, seconds: float) -> Done:
    part, begun = PARTS[name], time.monotonic()
    if seconds <= 0:
        return Done(name, part, None, "the budget was used up before this part: give a larger --budget", 0, 0.0)
    count, result = part.few, None
    try:
        for factor in (1, 4):
            before, count = time.monotonic(), min(part.most, factor * part.few)
            result = part.run(studied, count)
            if factor == 1 and time.monotonic() - before > TRIED * seconds:
                # The first time compiles, too; there is no time to see how long another takes.
                break
            taken = time.monotonic() - before
        else:
            # Everything is compiled now. What does not grow with the sequences is taken for growing, to be safe.
            left = PLANNED * (seconds - (time.monotonic() - begun))
            wanted = min(part.most, int(count * left / max(taken, 1e-9)))
            if wanted > count:
                count, result = wanted, part.run(studied, wanted)
    except (InputError, NumericalError) as error:
        return Done(name, part, None, str(error), 0, time.monotonic() - begun)
    seen = int(getattr(result, "samples", getattr(result, "sequences", count)))
    return Done(name, part, result, "", seen, time.monotonic() - begun)


def write(done: Sequence[Done], studied: Studied, folder: Path) -> list[Path]:
    """Write `study.json`, a figure of each part and the page into a folder."""
    figures: dict[str, bytes] = {}
    for one in done:
        if one.result is not None and one.result.rows():
            figures[one.name] = one.result.png()
    paths = []
    for name, picture in figures.items():
        paths.append(folder / f"{name}.png")
        write_atomically(paths[-1], picture)
    values = {
        "runs": [str(path) for path in studied.paths],
        "network": studied.first.config.network,
        "task": studied.first.config.task,
        "parts": {one.name: _values(one) for one in done},
    }
    paths = [folder / "study.json", folder / "study.html", *paths]
    write_atomically(paths[0], (json.dumps(values, indent=1) + "\n").encode())
    write_atomically(paths[1], page(done, studied, figures).encode())
    return paths


def _values(one: Done) -> dict[str, Any]:
    about = {"seconds": round(one.seconds, 2), "samples": one.samples}
    if one.result is None:
        return {**about, "why": one.why}
    return {**about, **one.result.to_dict(), "means": one.part.words(one.result)}


def new_folder(run: Path) -> Path:
    """A new folder in the run for one study; earlier ones stay."""
    return numbered_folder(run, "study")
