"""The page on architecture names every room, and nothing that is not there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FOLDERS = ["solvers", "solvers/compiled", "neuralosc", "experiments"]


def test_paths_are_there():
    paths = re.findall(r"`((?:solvers|neuralosc|experiments|tests)/[\w/.]*)`", PAGE)
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_room_is_named(folder):
    rooms = [f"{folder}/{p.name}/" for p in (ROOT / folder).iterdir() if (p / "__init__.py").exists()]
    assert rooms and [room for room in rooms if f"`{room}`" not in PAGE] == []


def test_what_it_calls_by_name_is_defined():
    """`name` (`file`): the function or class is in the file."""
    pairs = re.findall(r"`(\w+)`\s\(`([\w/]+\.py)`", PAGE)
    assert len(pairs) >= 6
    for name, path in pairs:
        assert re.search(rf"^\s*(?:def|class) {name}\b", (ROOT / path).read_text(), re.M), (name, path)
