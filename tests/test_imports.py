"""Imports run one way: experiments -> neuralosc -> solvers; and files are short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"solvers": {"neuralosc", "experiments", "tests"}, "neuralosc": {"experiments", "tests"}}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            yield node.module


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    for path in files:
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & FORBIDDEN[package], path


@pytest.mark.parametrize("folder", ["solvers", "neuralosc", "experiments", "tests"])
def test_files_can_be_read_in_one_sitting(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path


def test_no_test_file_is_imported_by_another():
    for path in (ROOT / "tests").rglob("*.py"):
        parts = [part for name in imported(path) for part in name.split(".")]
        assert not [part for part in parts if part.startswith("test_") or part == "conftest"], path


def test_the_solvers_name_no_network():
    import neuralosc

    names = {card.title for card in neuralosc.models()} | {card.field for card in neuralosc.models()}
    for path in (ROOT / "solvers").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & names, path


@pytest.mark.parametrize("package", ["solvers", "neuralosc"])
def test_public_names_exist_and_are_described(package):
    module = __import__(package)
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) and not name.isupper():
            assert value.__doc__, f"{package}.{name} has no docstring"
