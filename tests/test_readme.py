"""What the README says in its example and commands; its table is held in test_table, its links in test_pages."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    torch.manual_seed(0)
    scope = {}
    exec(code.replace("range(100)", "range(60)"), scope)
    assert scope["output"].shape == (64, 50, 32)
    assert float(scope["loss"].detach()) < 0.2
    assert "dopri5" in str(scope["dense"])


def test_the_commands_are_targets_of_make():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\w[\w-]*)", TEXT, re.MULTILINE)) | {"lint", "bench", "test-slow", "build"}
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
