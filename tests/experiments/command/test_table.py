"""The periodic table: what it shows, that the README shows the same, and that its cells work."""

import re
from pathlib import Path

import pytest
import torch

import neuralosc
import solvers
from experiments.command import table
from experiments.command.cli import main
from neuralosc import fields
from solvers.errors import PairingError
from solvers.protocol import STRUCTURES

README = Path(__file__).parents[3] / "README.md"
ROWS = {row.name: row for row in table.rows()}


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def cells(part):
    """The cells of a table by (row, column)."""
    names = [str(column.header).replace("\n", "") for column in part.columns]
    grid = zip(*(map(str, column.cells) for column in part.columns), strict=True)
    return {(row[0], name): cell for row in grid for name, cell in zip(names[1:], row[1:], strict=True)}


def test_the_readme_shows_it():
    start, end = "<!-- periodic table -->\n", "\n<!-- end of periodic table -->"
    shown = README.read_text(encoding="utf-8").split(start)[1].split(end)[0]
    assert shown == table.markdown(), "put in: python -m experiments table --markdown"


def test_the_command_prints_what_the_readme_shows(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["table", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == table.markdown()


def test_every_cell_is_a_name_a_dot_or_a_reason():
    contents = {key: value for part in table.tables(["all"], 100)[0] for key, value in cells(part).items()}
    assert len(contents) == len(ROWS) * len(solvers.SOLVERS)
    for (row, solver), cell in contents.items():
        field = ROWS[row].field
        works = solver in solvers.compatible(field)
        if cell.startswith(table.FAILS):
            assert not works
            with pytest.raises(PairingError):
                solvers.check(field, solvers.get(solver))
        else:
            assert works and cell == ", ".join(ROWS[row].published.get(solver, (table.WORKS,)))


def test_each_letter_has_its_reason():
    parts, (first, *others) = table.tables(["all"], 100)
    assert first == f"{table.WORKS} works, and nobody has named it"
    notes = dict(note.split(" ", 1) for note in others)
    shown = [cell for part in parts for cell in cells(part).values() if cell.startswith(table.FAILS)]
    assert {mark for cell in shown for mark in cell[2:].split(", ")} == set(notes)
    for note in notes.values():
        assert any(note == f"needs a {name} field: {promise}" for name, promise in STRUCTURES.items())


def test_every_named_network_has_its_cell():
    contents = cells(table.tables(None, 1000)[0][0])
    for card in neuralosc.models():
        if card.field is None:
            continue
        for solver, title in ((card.solver, card.title), *card.also.items()):
            assert title in contents[card.field, solvers.get(solver).name]
    assert "coRNN (the paper's step)" in contents["Oscillator", "imex_euler"]
    assert contents["Oscillator", "dopri5"] == table.WORKS


def test_the_rows_are_every_field_of_the_library_and_ones_own():
    concrete = {name for name in fields.__all__ if name != "Hamiltonian"}
    # A wrapper has a row where a named network says what is inside.
    assert concrete - set(ROWS) <= {"Noisy"}
    assert set(ROWS) - concrete == {"your own forward", "your own energy"}


def test_the_columns_are_those_asked_for():
    assert table.columns(["symplectic_euler", "rk4", "semi_implicit_euler"]) == ["semi_implicit_euler", "rk4"]
    assert table.columns(["all"]) == list(solvers.SOLVERS)
    standard = table.columns()
    assert {"euler", "semi_implicit_euler", "imex_euler", *table.REFERENCE} <= set(standard) < set(solvers.SOLVERS)
    assert main(["table", "--solvers", "rk5"]) == 2


def test_the_terminal_shows_names_and_reasons_whole(capsys):
    assert main(["table", "--solvers", "all"]) == 0
    out = capsys.readouterr().out
    words = {word for part in table.tables(["all"], 120)[0] for cell in cells(part).values() for word in cell.split()}
    pieces = {piece for name in solvers.SOLVERS for piece in re.findall("[^_]+_?", name)}
    for word in (*words, *ROWS, *pieces):
        assert word in out, word
    assert "needs a partitioned field: velocity(t, q, p, u) and force(t, q, p, u)" in out
    assert all(len(line) <= 120 for line in out.splitlines())


# Verification


def test_verifying_some_cells(capsys):
    assert main(["table", "--verify", "--solvers", "imex_euler,semi_implicit_euler"]) == 0
    out = capsys.readouterr().out
    count = sum(not row.lacks(name) for row in ROWS.values() for name in ("imex_euler", "semi_implicit_euler"))
    assert f"{count} of {count} cells go forward" in out
    assert "Oscillator: 2 of 2 cells" in out and "your own forward: 0 of 0 cells" in out


class Broken(neuralosc.VectorField):
    """A field whose gradient does not belong to its value."""

    def __init__(self, input_size, hidden_size, wrong):
        super().__init__(input_size, hidden_size)
        self.V, self.wrong, self.calls = torch.nn.Linear(input_size, hidden_size), wrong, []

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        self.calls.append(t)
        match self.wrong:
            case "uphill":
                slope = 2 * u.detach() - u
            case "flat":
                slope = u.detach() * 0
            case "forgetful":
                slope = u + 1e-3 * len(self.calls)
            case "raises":
                raise RuntimeError("no\nluck")
        return (slope - h).unsqueeze(-2)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("uphill", "a step of steepest descent takes the loss from"),
        ("flat", "the square of its gradient 0"),
        ("forgetful", "after a swap to dopri5 and back the loss is another one"),
        ("raises", "RuntimeError: no luck"),
    ],
)
def test_a_cell_that_fails_has_a_line_and_the_exit_code_is_one(wrong, reason, capsys, monkeypatch):
    good = ROWS["your own forward"]
    bad = table.Row("Broken", lambda i, h: neuralosc.ContinuousRNN(Broken(i, h, wrong), dt=0.1))
    monkeypatch.setattr(table, "rows", lambda: [good, bad])
    assert main(["table", "--verify", "--solvers", "euler,rk4,imex_euler"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for solver in ("euler", "rk4"):
        (line,) = (line for line in lines if line.startswith(f"Broken under {solver}: "))
        assert reason in line
    assert "your own forward: 2 of 2 cells" in lines and "Broken: 0 of 2 cells" in lines
    assert lines[-1].startswith("2 of 4 cells go forward")


@pytest.mark.slow
def test_every_cell_works():
    failures = [line for _, _, failed in table.verified(["all"], lambda doing, done: None) for line in failed]
    assert not failures, "\n".join(failures)
