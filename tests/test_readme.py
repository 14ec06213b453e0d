"""What the README says that can be checked: its table of pairings, its example, its commands, its links."""

import re
from pathlib import Path

import pytest
import torch

import neuralosc
import solvers

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


class Own(neuralosc.VectorField):
    """A field with nothing but a forward."""

    def forward(self, t, state, u):
        return -state


def rows():
    lines = [
        line for line in TEXT.splitlines() if line.startswith("| field |") or line.startswith("| `") or "own `" in line
    ]
    start = next(i for i, line in enumerate(lines) if line.startswith("| field |"))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    width = len(table[0])
    names = [re.findall(r"`(\w+)`", cell)[0] for cell in table[0][1:]]
    return names, [row for row in table[1:] if len(row) == width]


def test_the_table_of_pairings_is_true():
    names, table = rows()
    assert len(table) == 8 and len(names) >= 8
    for field, *cells in table:
        name = re.findall(r"`(\w+)`", field)[0]
        made = Own(2, 3) if name == "forward" else getattr(neuralosc, name)(2, 3)
        works = solvers.compatible(made)
        for solver, cell in zip(names, cells, strict=True):
            assert (cell != "–") == (solver in works), (name, solver)


def test_named_cells_are_the_published_solvers():
    names, table = rows()
    named = set()
    for field, *cells in table:
        name = re.findall(r"`(\w+)`", field)[0]
        named |= {(name, solver) for solver, cell in zip(names, cells, strict=True) if cell not in ("·", "–")}
    published = {(card.field, solvers.get(card.solver).name) for card in neuralosc.models() if card.solver}
    assert published <= named


def test_the_example_runs(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    torch.manual_seed(0)
    scope = {}
    exec(code.replace("range(100)", "range(60)"), scope)
    assert scope["output"].shape == (64, 50, 32)
    assert float(scope["loss"].detach()) < 0.2
    assert "dopri5" in str(scope["dense"])


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_commands_are_targets_of_make():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\w[\w-]*)", TEXT, re.MULTILINE)) | {"lint", "bench", "test-slow", "build"}
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
