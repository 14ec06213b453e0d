"""docs/lab.md: its code runs, its table has every analysis, and its commands are commands."""

import re
from pathlib import Path

from typer.main import get_command

from experiments.command import cli
from neuralosc import analysis

TEXT = (Path(__file__).parents[1] / "docs" / "lab.md").read_text(encoding="utf-8")


def test_the_code_runs(capsys):
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, scope)
    shown = capsys.readouterr().out
    assert "solved by" in shown and "(own)" in shown and str(scope["found"].verdict) in shown
    assert scope["found"].verdict.answer in ("equation", "step", "")


def test_the_table_has_every_analysis():
    section = TEXT.split("## The analyses")[1].split("\n## ")[0]
    first = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert named == {name for name in analysis.__all__ if name[0].islower()}


def test_the_commands_have_these_options():
    study = get_command(cli.app).commands["study"]
    known = {option for parameter in study.params for option in parameter.opts}
    for line in re.findall(r"^python -m experiments study (.*)$", TEXT, re.MULTILINE):
        assert set(re.findall(r"--[\w-]+", line.split("#")[0])) <= known
