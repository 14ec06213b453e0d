"""What there is to choose from, as tables: tasks, networks, solvers, gradients and controls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

import neuralosc
import solvers
from experiments import tasks
from experiments.command.options import HIDDEN_SIZE, SOLVING
from neuralosc.named.cards import STANDARD
from solvers.errors import unknown

# What each control does, in the words of the command line.
CONTROL_WORDING = {
    "hold": "The input of a sample holds on the whole interval that ends there, as in a recurrent network.",
    "linear": "The input goes in a straight line from the sample before to the sample at the end of the interval.",
    "linear_lagging": "The straight line, whose derivative at a sample is the one before it, as in torchcde.",
    "linear_noncausal": "The input goes in a straight line from the sample of the interval to the next one.",
    "cubic": "Hermite cubics with backward differences: smooth, and blind to samples after the interval.",
    "natural": "The natural cubic spline through all samples, those to come included.",
    "rectilinear": "The sample before holds until the next one is taken: no state knows a later sample.",
}


def tables(what: str | None = None) -> list[Table]:
    """The table of one kind, or all of them.

    Raises:
        UnknownNameError: no such kind; the message lists the nearest.
    """
    if what is not None and what not in KINDS:
        raise unknown("list", what, KINDS)
    return [make() for name, make in KINDS.items() if what in (None, name)]


def task_table() -> Table:
    """The tasks: what the data are, what is measured, and the figure to beat."""
    table = _table("tasks (--task)", "name", "what it is", "measured", "to beat", wrapped=("what it is", "to beat"))
    for name, task in tasks.TASKS.items():
        baseline = task.baseline if isinstance(task.baseline, str) else f"{task.baseline:.3g}"
        _add(table, name, task.description, ", ".join(task.metrics), baseline)
    return table


def model_table() -> Table:
    """The networks: paper, vector field, published solver, hyperparameters and their defaults."""
    headings = ("name", "paper", "vector field", "published solver", "hyperparameters")
    table = _table("models (--model)", *headings, wrapped=("paper", "vector field", "hyperparameters"))
    for card in neuralosc.models():
        hyperparameters = {key: value for key, value in card.defaults.items() if key not in (*SOLVING, *STANDARD)}
        field = f"{card.field}: {card.equation}" if card.field else card.equation
        _add(table, card.name, f"{card.title}: {card.paper}", field, card.solver or "-", _options(hyperparameters))
    shared = {"hidden_size": HIDDEN_SIZE, **{key: value for key, value in STANDARD.items() if key not in SOLVING}}
    return _with_note(table, f"All that have a solver also take: {_options(shared)}")


def solver_table() -> Table:
    """The solvers: family, order, stages, what they need of the field, and what they preserve."""
    headings = ("name", "family", "order", "stages", "needs a field", "implicit", "symplectic", "reversible", "options")
    table = _table("solvers (--solver)", *headings, wrapped=("options",))
    family = ""
    for info in solvers.available():
        if family not in ("", info.family):
            table.add_section()
        family = info.family
        needs = ", ".join(info.needs) or "of any kind"
        # Compositions of drifts and kicks are so where both are exact.
        kept = "if separable" if info.symplectic and info.family == "symplectic" else "yes" if info.symplectic else ""
        implicit, reversible = ("yes" if flag else "" for flag in (info.implicit, info.reversible))
        what_it_is = (implicit, kept, reversible, ", ".join(info.options))
        _add(table, info.name, info.family, info.order, info.stages, needs, *what_it_is)
    aliases = [f"{alias} is {info.name}" for info in solvers.available() for alias in info.aliases]
    what = "Symplectic: on a field with an energy, of the form it says. Reversible: a step can be undone."
    note = f"{what} Also known: {', '.join(aliases)}."
    return _with_note(table, note)


def gradient_table() -> Table:
    """How a loss can be differentiated."""
    table = _table("gradients (--gradient)", "name", "what it is", wrapped=("what it is",))
    for name in solvers.GRADIENTS:
        _add(table, name, (inspect.getdoc(type(solvers.GRADIENTS[name])) or "").split("\n\n")[0].replace("\n", " "))
    return table


def control_table() -> Table:
    """How the input goes on between two samples."""
    table = _table("controls (--control)", "name", "what it is", wrapped=("what it is",))
    for name in solvers.CONTROLS:
        _add(table, name, CONTROL_WORDING.get(name, ""))
    return table


KINDS: dict[str, Callable[[], Table]] = {
    "tasks": task_table,
    "models": model_table,
    "solvers": solver_table,
    "gradients": gradient_table,
    "controls": control_table,
}


def _table(title: str, *headings: str, wrapped: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, heading in enumerate(headings):
        table.add_column(heading, no_wrap=heading not in wrapped, style="bold" if position == 0 else "")
    return table


def _add(table: Table, *cells: object) -> None:
    # As text: an equation may hold brackets, which rich would read as markup.
    table.add_row(*(Text(str(cell)) for cell in cells))
    # A name is what the reader types: on a narrow terminal everything else gives way to it.
    first = table.columns[0]
    first.min_width = max(first.min_width or 0, len(str(cells[0])))


def _with_note(table: Table, note: str) -> Table:
    table.caption, table.caption_justify = Text(note), "left"
    return table


def _options(options: dict[str, object]) -> str:
    shown = {True: "yes", False: "no"}
    return ", ".join(f"{key} {shown[v] if isinstance(v, bool) else v}" for key, v in options.items())
