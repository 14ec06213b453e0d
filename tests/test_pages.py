"""The pages on the code name what is there: paths, links, targets of make, names; and every room has its line."""

import contextlib
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Pages for those who change the code.
PAGES = ["docs/architecture.md", "CONTRIBUTING.md"]
#: Pages that name files.
NAMING = [*PAGES, "docs/reliability.md"]
LINKED = [
    *NAMING,
    "README.md",
    "docs/solvers.md",
    "docs/speed.md",
    "docs/export.md",
    "docs/irregular.md",
    "docs/lab.md",
    "docs/tasks.md",
    "docs/report.md",
    "docs/sweep.md",
]
FOLDERS = ["solvers", "solvers/compiled", "neuralosc", "experiments"]
PACKAGES = ("solvers", "neuralosc", "experiments", "tests")


def page(name):
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """What the headings of a page are called in links."""
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in re.findall(r"^#+ (.*)", text, re.M)}


def attribute(name):
    """What a dotted name stands for: a module, or an attribute of one.

    Raises:
        AttributeError: nothing.
    """
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(".".join(parts[:i]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", NAMING)
def test_paths_are_there(name):
    paths = re.findall(rf"`((?:{'|'.join(PACKAGES)}|docs)/[\w/.]*)`", page(name))
    paths += re.findall(r"`([\w.-]+\.(?:md|toml|txt))`", page(name))
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_somewhere(name):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page(name)):
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), anchor


@pytest.mark.parametrize("name", NAMING)
def test_the_commands_are_targets_of_make(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"`make ([a-z][\w-]*)", page(name))
    assert named and [target for target in named if not re.search(rf"^{target}:", makefile, re.M)] == []


@pytest.mark.parametrize("name", PAGES)
def test_what_it_calls_by_name_is_defined(name):
    """`name` (`file`): the function or class is in the file. `neuralosc.name`: it can be imported."""
    pairs = re.findall(r"`(\w+)`\s\(`([\w/]+\.py)`", page(name))
    assert len(pairs) >= 6
    for what, path in pairs:
        lines = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(?:(?:def|class) {what}\b|{what}(?:: [^=]+)? =)", lines, re.M), (what, path)
    dotted = re.findall(rf"`((?:{'|'.join(PACKAGES)})\.\w+(?:\.\w+)*)", page(name))
    assert dotted
    for each in dotted:
        attribute(each)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_room_is_named(folder):
    rooms = [f"{folder}/{p.name}/" for p in (ROOT / folder).iterdir() if (p / "__init__.py").exists()]
    assert rooms and [room for room in rooms if f"`{room}`" not in page("docs/architecture.md")] == []


# The recipes of CONTRIBUTING.md

#: Run in a process of its own, for the recipes put what they add into the registries. A block is run with the names of
#: its module, or as a module that is new; rows of a table are put into one.
RECIPES = """
import importlib, sys, types
import neuralosc, neuralosc.fields, solvers

made = {}
for path, code in BLOCKS:
    name = path.removesuffix(".py").replace("/", ".")
    try:
        scope = {**vars(importlib.import_module(name)), **made.get(path, {})}
    except ModuleNotFoundError:
        module = sys.modules[name] = types.ModuleType(name)
        scope = vars(module)
    exec("rows = {%s}" % code if code.startswith('"') else code, scope)
    made[path] = scope
    if path.startswith("neuralosc/fields/"):
        neuralosc.CubicDecay = neuralosc.fields.CubicDecay = scope["CubicDecay"]

solvers.register(solvers.runge_kutta("kutta3", made["solvers/methods/explicit.py"]["KUTTA3"]))
train, _, test = made["experiments/tasks/parity.py"]["Parity"](length=9, size=20).splits()
assert len(train) == 16 and len(test) == 2
rnn = neuralosc.make("cubic", input_size=1, hidden_size=3, solver="kutta3", gradient={"name": "tail", "window": 4})
x = train[:][0].requires_grad_()
rnn(x)[1].square().sum().backward()
assert not x.grad[:, :5].any() and x.grad[:, 5:].abs().min() > 0
assert callable(made["solvers/compiled/step/reductions.py"]["rows"]["aminmax"])
"""


def test_the_recipes_run():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"^ *```python\n *# (\S+\.py)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    assert len(found) == text.count("```python") >= 8
    blocks = [(path, textwrap.dedent(code)) for path, code in found]
    run = subprocess.run(
        [sys.executable, "-c", f"BLOCKS = {blocks!r}\n{RECIPES}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
