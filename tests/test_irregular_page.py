"""docs/irregular.md: its code runs, and its figures are those that the code gives."""

import re
from pathlib import Path

import numpy as np
import torch

TEXT = (Path(__file__).parents[1] / "docs" / "irregular.md").read_text(encoding="utf-8")
NAMES = {"gru": "GRU", "rnn": "RNN", "ctrnn": "CT-RNN", "lem": "LEM", "cornn": "coRNN", "ltc": "LTC"}


def test_the_code_runs_and_gives_the_figures(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, scope)
    shown = capsys.readouterr().out
    assert "timespans go up to 1.14e+07" in shown and "3150 seconds" in shown
    assert scope["states"].shape == (2, 2, 2, 16) and scope["later"].shape == (2, 2, 16)
    torch.testing.assert_close(scope["batch"].timespans[0], torch.tensor([1.0, 0.75, 1 / 12, 19 / 6]))
    served, stay = scope["served"], scope["stay"].numpy()
    for series, days in zip((scope["clinic"], scope["home"]), stay, strict=True):
        np.testing.assert_allclose(served.predict(series["times"], series["values"]), days, atol=0.5)
    assert "times of series 0 are numbers and unit is 3600 seconds" in shown and "(2, 1)" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series.safetensors", "stay.safetensors"]
    for name, title in NAMES.items():
        printed = [float(value) for value in re.search(rf"^{name} ([\d.e+ ]*)$", shown, re.M)[1].split()]
        row = re.search(rf"^\| {title} \|(.*)\|$", TEXT, re.M)[1].split("|")
        written = [float(cell) for cell in row if cell.strip()]
        # One digit of what has blown up, two of all else: weights are the same everywhere, sums to rounding.
        for value, expected in zip(printed, written, strict=True):
            assert abs(value - expected) <= (0.6 if expected > 1e3 else 0.06) * expected, (name, value, expected)
