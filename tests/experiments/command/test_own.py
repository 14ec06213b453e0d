"""Tasks, fields and networks of one's own on the command line: found by their names, checked, and found again."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import neuralosc
from experiments import tasks
from experiments.command import options, parsers
from experiments.command.cli import main
from experiments.compare.comparison import compare
from experiments.train import serving
from experiments.train.config import RunConfig, load_yaml
from experiments.train.model import build, make_task
from experiments.train.training import evaluate, load_model, resume
from solvers.errors import InputError

MINE = '''
import torch
from torch import nn

import neuralosc
from experiments.tasks import Task
from experiments.tasks.base import divide
from experiments.tasks.series import Series


class Leaky(neuralosc.VectorField):
    """dh = tanh(gain W h + V x + b) - h

    Args:
        gain: what the recurrent part is multiplied by.
    """

    def __init__(self, input_size, hidden_size, gain: float = 1, bias=False):
        super().__init__(input_size, hidden_size)
        self.V, self.W = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=bias)
        self.gain = gain

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return (torch.tanh(self.gain * self.W(h) + u) - h).unsqueeze(-2)


class Net(nn.Module):
    def __init__(self, input_size, hidden_size, depth=1, batch_first=True, *, activation=torch.tanh):
        super().__init__()
        self.core = nn.GRU(input_size, hidden_size, depth, batch_first=batch_first)

    def forward(self, x, state=None):
        return self.core(x, state)


class Timed(Net):
    def forward(self, x, state=None, timespans=None, lengths=None):
        output, state = self.core(x * timespans.unsqueeze(-1), state)
        return output, lengths


class Stacked(neuralosc.ContinuousRNN):
    def __init__(self, input_size, hidden_size, solver="rk4"):
        super().__init__(Leaky(input_size, hidden_size), solver, 0.5)


class Parity(Task):
    output_size, kind = 2, "classification"

    def __init__(self, count, samples: int = 7):
        self.count, self.samples = count, samples

    def splits(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        minus = torch.randint(2, (self.count, self.samples), generator=generator)
        parts = torch.arange(self.count).split([self.count - 20, 10, 10])
        return divide((1 - 2 * minus).float().unsqueeze(-1), minus.sum(1) % 2, *parts)


class Plain:
    output_size, kind, metrics = 1, "regression", ("mae",)

    def splits(self):
        x = torch.randn(30, 5, 1, generator=torch.Generator().manual_seed(0))
        return tuple(Series(part, part.mean(1)) for part in x.split(10))


class Words:
    output_size, kind, metrics, measured, irregular = 1, "regression", ("mae",), True, True
    tokens, embedding_size = 9, 3

    def splits(self, seed=0):
        x = torch.randint(9, (30, 5, 1), generator=torch.Generator().manual_seed(0))
        return tuple(Series(part, 100 + part.float().mean(1), torch.ones(10, 5)) for part in x.split(10))
'''
BRIEF = "--epochs 2 --threads 1 --hidden-size 5 --root . --name run"
PARITY = "train --task mine:Parity --count 60"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to start in, with the module `mine`, which is imported anew after `put`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    # Changes within a second leave a compiled file as new as its source.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    put(MINE)
    yield tmp_path
    sys.modules.pop("mine", None)


def put(text):
    Path("mine.py").write_text(text)
    sys.modules.pop("mine", None)


def refused(line, capsys):
    """The one line on standard error of a command that is refused."""
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


# From the name to the run, and back


def test_a_field_on_a_task_of_ones_own_to_the_last_command(here, capsys):
    line = f"{PARITY} --samples 9 --field mine:Leaky --gain 1.5 --bias --solver heun --dt 0.5 {BRIEF}"
    assert main(line.split()) == 0
    assert "compare run" in capsys.readouterr().out
    config = load_yaml("run/config.yaml")
    assert (config.task, config.field, config.model) == ("mine:Parity", "mine:Leaky", "")
    assert config.task_options == {"count": 60, "samples": 9}
    own = {name: config.model_options[name] for name in ("gain", "bias", "solver", "dt", "hidden_size", "control")}
    assert own == {"gain": 1.5, "bias": True, "solver": "heun", "dt": 0.5, "hidden_size": 5, "control": "hold"}
    result = json.loads(Path("run/result.json").read_text())
    # In a process that has not seen the module yet.
    sys.modules.pop("mine")
    model, _, task = load_model("run")
    field = model.rnn.field
    assert type(field).__name__ == "Leaky" and field.gain == 1.5 and field.W.bias is not None
    assert evaluate("run")["loss"] == result["test"]["loss"] and evaluate("run")["model"] == "mine:Leaky"
    x = task.splits()[2][:][0]
    plain = neuralosc.ContinuousRNN(field, "heun", 0.5)
    torch.testing.assert_close(model(x), model.readout(plain(x)[0]), rtol=0, atol=0)
    assert main(["compare", "run", "--solvers", "heun,rk4", "--samples", "4", "--no-figures"]) == 0
    out = capsys.readouterr().out
    assert "mine:Leaky on mine:Parity" in out and "trained with" in out and "published" not in out
    assert main(["train", "--resume", "run"]) == 0
    assert main(["export", "run", "model.safetensors"]) == 0
    with pytest.raises(InputError, match=r"a network with a field of its own.*into=model"):
        neuralosc.load("model.safetensors")
    torch.manual_seed(1)
    rnn = neuralosc.ContinuousRNN(type(field)(1, 5, 1.5, True), "heun", 0.5)
    served = neuralosc.load("model.safetensors", into=neuralosc.SequenceModel(rnn, neuralosc.Readout(5, 2)))
    torch.testing.assert_close(served(x), model(x), rtol=0, atol=0)


def test_a_run_is_named_after_the_classes_and_options_may_stand_in_a_file(here, capsys):
    Path("run.yaml").write_text("task: mine:Parity\ntask_options: {count: 60}\nfield: mine:Leaky\nepochs: 1\n")
    line = "train --config run.yaml --gain 3 --samples 4 --hidden-size 3 --threads 1"
    assert main([*line.split(), "--root", "runs"]) == 0
    config = load_yaml("runs/Parity-Leaky-001/config.yaml")
    assert config.model_options["gain"] == 3.0 and config.task_options == {"count": 60, "samples": 4}
    # What the command line names takes the place of what the file does.
    assert main([*line.replace("--gain 3", "--model mine:Net --depth 2").split(), "--root", "runs"]) == 0
    config = load_yaml("runs/Parity-Net-001/config.yaml")
    assert (config.model, config.field) == ("mine:Net", "") and config.model_options["depth"] == 2
    assert main(["train", "--config", "run.yaml", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--gain" in shown and "What the recurrent part is multiplied by." in shown and "must be given" in shown


@pytest.mark.parametrize("line", ["--field mine:Leaky --time-column t", "--model mine:Timed --time-column t"])
def test_a_run_on_a_table_predicts_without_the_file_of_its_training(line, here):
    random = np.random.RandomState(0)
    rows = [(i, t, random.randn(), "ab"[i % 2]) for i in range(20) for t in range(5 + i % 3)]
    pd.DataFrame(rows, columns=["id", "t", "x", "label"]).to_csv("a.csv", index=False)
    assert main(f"train --csv a.csv --id id --target label {line} {BRIEF}".split()) == 0
    model, _, task = load_model("run")
    batch = task.splits()[2][:].floating(torch.float32)
    with torch.no_grad():
        chances = model(batch.x, batch.timespans, batch.lengths).softmax(-1)
    Path("a.csv").rename("b.csv")
    sys.modules.pop("mine")
    answers = serving.predict("run", ["b.csv"]).set_index("id")
    names = [task._series[int(i)].name for i in task._parts[2]]
    np.testing.assert_allclose(answers.loc[names, "p(a)"], chances[:, 0], rtol=1e-5)


def test_a_module_of_ones_own_is_a_network_under_the_interface_of_the_layer(here, capsys):
    assert main(f"{PARITY} --model mine:Net --depth 2 {BRIEF}".split()) == 0
    assert "Swap" not in capsys.readouterr().out
    model, config, task = load_model("run")
    # An argument whose default cannot be typed is no option.
    own = {"hidden_size": 5, "depth": 2, "batch_first": True, "missing": "error"}
    assert config.model_options == own and config.solver_options == {}
    x = task.splits()[2][:][0]
    torch.testing.assert_close(model(x), model.readout(model.rnn.core.core(x)[0]))
    assert evaluate("run")["solver"] is None
    assert "there is none to choose" in refused("compare run", capsys)
    assert "module of your own" in refused("export run model.onnx --onnx", capsys)


def test_a_layer_of_ones_own_is_taken_as_it_is(here):
    assert main(f"{PARITY} --model mine:Stacked --solver dopri5 --rtol 1e-4 {BRIEF}".split()) == 0
    model, config, _ = load_model("run")
    assert isinstance(model.rnn, neuralosc.ContinuousRNN) and model.rnn.solver.options["rtol"] == 1e-4
    assert config.solver_options["rtol"] == 1e-4 and evaluate("run", solver="rk4")["solver"] == "rk4"


def test_a_class_that_is_no_task_but_says_what_one_says(here):
    assert main(f"train --task mine:Plain --field mine:Leaky {BRIEF}".split()) == 0
    figures = evaluate("run")
    assert set(figures) > {"mae"} and figures["samples"] == 10


def test_a_task_of_ones_own_has_tokens_with_times_and_targets_in_their_units(here, capsys):
    assert main(f"train --task mine:Words --model lem {BRIEF}".split()) == 0
    capsys.readouterr()
    model, _, task = load_model("run")
    assert model.embedding.tokens == 9 and model.embedding.features == 3 and model.input_scaler is None
    assert 100 < float(model.target_scaler.mean) < 108 and evaluate("run")["mae"] < 20
    message = refused(f"train --task mine:Words --time input {BRIEF} --name other", capsys)
    assert "has tokens, beside which no feature stands" in message
    # With code of one's own the weights are loaded into a model that was made for them.
    assert main(f"train --task mine:Words --field mine:Leaky {BRIEF} --name own".split()) == 0
    again = load_model("own")[0]
    assert torch.isfinite(again(*task.splits()[2][:][::2])).all() and again.input_scaler is None


# Code that was changed since

CHANGES = {
    "an equation": ("torch.tanh(self.gain", "torch.sin(self.gain", ["mine:Leaky", "answers otherwise"]),
    "a shape": ("bias=bias)", "bias=True)", ["does not fit"]),
    "a new argument": ("bias=False):", "bias=False, more=1):", ["takes 'more'", "the run says nothing"]),
    "an argument less": (", bias=False):", "):\n        bias = False", ["takes no 'bias'", "which the run has"]),
    "another name": ("samples: int = 7", "length: int = 7", ["takes 'length'", "the run says nothing"]),
    "other data": ("minus.sum(1) % 2", "minus.sum(1) % 3 % 2", ["mine:Parity", "other data"]),
    "no such class": ("class Leaky", "class Leakier", ["'Leaky'", "did you mean 'Leakier'"]),
    "no task": ("class Parity", "class Odd", ["'Parity'", "known:"]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [entry for entry in sys.path if entry])
        put(MINE)
        assert main(f"{PARITY} --field mine:Leaky {BRIEF} --epochs 3".split()) == 0
    return folder / "run"


@pytest.fixture
def trained(finished, here):
    shutil.copytree(finished, "run")
    return here


def changed(old, new):
    text = MINE.replace(old, new).replace("self.samples = count, samples", "self.samples = count, 7")
    assert MINE.count(old) >= 1 and text != MINE
    put(text)


@pytest.mark.parametrize("what", CHANGES)
def test_code_that_was_changed_since_is_refused(what, trained):
    old, new, words = CHANGES[what]
    changed(old, new)
    Path("run/result.json").unlink()
    asked = [lambda: evaluate("run"), lambda: compare("run", sweep=False), lambda: resume("run", progress=False)]
    if what != "other data":
        # A model does not depend on the data any more.
        asked.append(lambda: serving.export("run", "out.safetensors"))
    for ask in asked:
        with pytest.raises(InputError) as caught:
            ask()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, f"{word!r} not in {message}"
    assert not Path("out.safetensors").exists()


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(trained):
    whole = json.loads(Path("run/result.json").read_text())["test"]
    # As if it had been killed in its last epoch.
    for name in ("result.json", "model.safetensors", "checkpoints/last.ckpt"):
        Path("run", name).unlink()
    assert evaluate("run")["loss"] == whole["loss"]
    assert main(["train", "--resume", "run"]) == 0
    assert json.loads(Path("run/result.json").read_text())["test"] == whole


def test_code_around_it_may_change(trained):
    before = evaluate("run")["loss"]
    put(
        MINE.replace("class Leaky", "# another line\nclass Other(Task):\n    pass\n\n\nclass Leaky")
        + "\nSOMETHING = 3\n"
    )
    assert evaluate("run")["loss"] == before


def test_that_nothing_can_be_said_is_said(trained, capsys):
    for path in Path("run/checkpoints").iterdir():
        path.unlink()
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 0
    assert "no checkpoint left that says whether mine:Leaky is what it was" in capsys.readouterr().err


# What is refused

BAD = [
    ("--field mine:Leeky", ["unknown field in", "mine.py", "did you mean 'Leaky'"]),
    ("--field mine:Net", ["'mine:Net'", "torch.nn", "expected a class derived from neuralosc.field.VectorField"]),
    ("--field mine:divide", ["is a function", "name the class"]),
    ("--field mone:Leaky", ["no module 'mone'", "mone.py", "PYTHONPATH"]),
    ("--field mine.more:Leaky", ["no module 'mine.more'"]),
    ("--field lacking:Leaky", ["lacking imports 'nowhere'", "install it"]),
    ("--field broken:Leaky", ["broken cannot be imported", "SyntaxError", "line 1"]),
    ("--field leaving:Leaky", ["leaving cannot be imported", "SystemExit: 3", "leaving.py, line 2"]),
    ("--field mine/fields.py:Leaky", ["names no class", "package.module:Class"]),
    ("--field oscillator", ["'oscillator'", "package.module:Class"]),
    ("--field mine:Leaky --model gru", ["'gru'", "'mine:Leaky'", "give one of them"]),
    ("--field mine:Leaky --epsilon 2", ["'mine:Leaky'", "takes no --epsilon", "--gain"]),
    ("--field mine:Leaky --solver stormer_verlet", ["partitioned", "Leaky"]),
    ("--field bad:Lr", ["made with 'lr'", "--lr is taken", "rename it"]),
    ("--field bad:Dt", ["made with 'dt'", "choice of the network around it"]),
    ("--field bad:Needy", ["'bad:Needy'", "needs --scale"]),
    ("--field bad:Needy --scale 0", ["cannot be made with (2, 128, scale=0", "ZeroDivisionError", "bad.py, line"]),
    ("--field bad:Sizes", ["made with (hidden_size, input_size)", "expected input_size, hidden_size first"]),
    ("--model mine:Leaky", ["neuralosc.field.VectorField", "--field"]),
    ("--model mine:Parity", ["'mine:Parity'", "expected a class derived from torch.nn"]),
    ("--model torch.nn:GRU", ["(*args, **kwargs)", "input_size, hidden_size first"]),
    ("--model mine:Net --no-batch-first", ["where others are in the batch", "batch_first=True"]),
    ("--model bad:Single", ["no pair but (3, 4, 128)", "expected (output, state)"]),
    ("--model bad:Flat", ["an output (3, 128)", "(batch, time, features)"]),
    ("--model bad:Failing", ["fails on x (3, 4, 2)", "KeyError", "bad.py, line"]),
]
MORE = {
    "lacking": "import nowhere",
    "broken": "class Leaky(",
    "leaving": "import sys\nsys.exit(3)",
    "bad": """
import neuralosc
from torch import nn
class Lr(neuralosc.VectorField):
    def __init__(self, input_size, hidden_size, lr=1.0): pass
class Dt(neuralosc.VectorField):
    def __init__(self, input_size, hidden_size, dt=1.0): pass
class Needy(neuralosc.VectorField):
    def __init__(self, input_size, hidden_size, scale: float): 1 / scale
class Sizes(neuralosc.VectorField):
    def __init__(self, hidden_size, input_size): pass
class Single(nn.Linear):
    def __init__(self, input_size, hidden_size): super().__init__(input_size, hidden_size)
class Flat(Single):
    def forward(self, x): return super().forward(x)[:, -1], None
class Failing(Single):
    def forward(self, x): return {}["x"]
""",
}


@pytest.mark.parametrize(("line", "words"), BAD, ids=[line for line, _ in BAD])
def test_classes_that_cannot_be_used_are_one_line(line, words, here):
    for name, text in MORE.items():
        Path(f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
    values = {"task": "adding"}
    for flag, _, value in (part.partition(" ") for part in line.removeprefix("--").split(" --")):
        values[flag.removeprefix("no-").replace("-", "_")] = parsers.plain(value) if value else flag[:3] != "no-"
    with pytest.raises(InputError) as caught:
        config = options.resolve(RunConfig(), values)
        build(config, make_task(config))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} not in {message}"


def test_they_are_one_line_on_the_command_line_too(here, capsys):
    assert "did you mean 'Leaky'" in refused("train --field mine:Leeky", capsys)
    assert "'much' is not a number" in refused("train --field=mine:Leaky --gain much", capsys)
    assert not [path for path in here.iterdir() if path.is_dir()]


def test_a_network_that_cannot_take_what_the_task_has(here, capsys):
    message = refused("train --task oscillators --model mine:Net", capsys)
    assert "knows no time between samples" in message and "--time input" in message
    rows = [(i, float(t), "ab"[i % 2]) for i in range(20) for t in range(5 + i % 3)]
    pd.DataFrame(rows, columns=["id", "x", "label"]).to_csv("a.csv", index=False)
    message = refused("train --csv a.csv --id id --target label --model mine:Net", capsys)
    assert "has no 'lengths' in its forward" in message and "5 to 7 samples" in message


TASKS = {
    "class Odd: pass": r"has no splits\(seed\)",
    "class Odd(Task): pass": "defines no splits",
    "class Odd(Whole): kind = None": "has no kind 'classification' or 'regression'",
    "class Odd(Whole): kind = 'both'": "says 'both', expected kind",
    "class Odd(Whole): output_size = None": "has no output_size, a whole number",
    "class Odd(Whole): metrics = ('auroc',)": "unknown metric of task 'odd:Odd' 'auroc'",
    "class Odd(Whole): x = torch.zeros(9, 4)": r"training set: x is float32 \(3, 4\), expected .*\(samples, time, 2\)",
    "class Odd(Whole): x = torch.zeros(9, 4, 3)": r"x is float32 \(3, 4, 3\)",
    "class Odd(Whole): x = torch.zeros(9, 4, 2, dtype=int)": "x is int64",
    "class Odd(Whole): tokens = 3": r"x is float32 \(3, 4, 2\), expected whole numbers \(samples, time, 1\)",
    "class Odd(Whole): tokens, x = 3, torch.zeros(9, 4, 1).bool()": "x is bool",
    "class Odd(Whole): tokens, x = 3, torch.full((9, 4, 1), 3)": "x has the token 3, expected 0 to 2",
    "class Odd(Whole): tokens, x = 3, torch.full((9, 4, 1), -1)": "x has the token -1, expected 0 to 2",
    "class Odd(Whole): x = torch.full((9, 4, 2), torch.nan)": "x is not finite.*gaps = True",
    "class Odd(Whole): y = torch.zeros(9)": r"y is float32 \(3,\), expected floating-point numbers \(3, 1\)",
    "class Odd(Whole): y = torch.zeros(9, 1, dtype=int)": "y is int64",
    "class Odd(Whole): y = torch.full((9, 1), torch.nan)": "y is not finite",
    "class Odd(Whole): kind, y = 'classification', torch.arange(9)": "y has the class 1, expected 0 to 0",
    "class Odd(Whole): irregular = True": "have no timespans, and the task says irregular = True",
    "class Odd(Whole):\n    def splits(self): return super().splits()[:2]": "three sets in what splits returns",
    "class Odd(Whole):\n    def splits(self): return [[]] * 3": "samples in its training set, which is empty",
    "class Odd(Whole):\n    def splits(self): return [{'a': 1}] * 3": "indexed as a TensorDataset .*KeyError|TypeError",
}


@pytest.mark.parametrize("code", TASKS)
def test_what_a_task_lacks_is_named(code, here):
    whole = (
        "import torch\nfrom experiments.tasks import Task\nfrom experiments.tasks.series import Series\n"
        "class Whole:\n    input_size, output_size, kind, metrics = 2, 1, 'regression', ()\n"
        "    x, y = torch.zeros(9, 4, 2), torch.zeros(9, 1)\n"
        "    def splits(self):\n"
        "        return [Series(x, y) for x, y in zip(self.x.split(3), self.y.split(3))]\n"
    )
    Path("odd.py").write_text(whole + code)
    sys.modules.pop("odd", None)
    with pytest.raises(InputError, match=TASKS[code]) as caught:
        tasks.get("odd:Odd").splits()
    assert "odd:Odd" in str(caught.value) and "\n" not in str(caught.value)


def test_the_page_shows_what_works(here, capsys):
    text = (Path(__file__).parents[3] / "docs" / "irregular.md").read_text(encoding="utf-8")
    part = text.split("## One's own field, network or task")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    put(code)
    lines = re.findall(r"^python -m experiments (.*)", part, re.MULTILINE)
    assert lines[0] in (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    for line in lines:
        assert main([*line.split(), *(["--threads", "1"] if line.startswith("train") else [])]) == 0
    assert re.search(r"solver +rk4", capsys.readouterr().out)
    assert load_yaml("runs/Ups-Leaky-001/config.yaml").model_options["tau"] == 1.5
