import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import neuralosc
import solvers
from experiments import tasks
from experiments.bench import suite
from experiments.command import demo, failures, listing, options, parsers
from experiments.command.cli import main
from experiments.command.options import Setting, descriptions, resolve, settings
from experiments.compare import comparison
from experiments.train import training
from experiments.train.config import RunConfig, load_yaml
from solvers.errors import InputError, NumericalError

ROOT = Path(__file__).parents[3]
COMMANDS = (
    "list",
    "train",
    "compare",
    "evaluate",
    "predict",
    "export",
    "demo",
    "bench",
    "work-precision",
    "forecast-figure",
    "sweep",
)
SMALL = "--hidden-size 6 --dt 0.2 --gamma 1 --epsilon 2 --epochs 1 --limit-train-batches 2 --threads 1"


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """A width of its own: workers of a parallel run inherit the 80 columns of nobody's terminal."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    assert main([*f"train {SMALL} --name run --root".split(), str(root)]) == 0
    return root / "run"


# Help and options


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_shown(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert "Usage: python -m experiments" in out and not err
    if not command:
        assert all(re.search(rf"│ {name} ", out) for name in COMMANDS)


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 0
    assert "Usage" in capsys.readouterr().out


def test_train_help_shows_every_setting_in_panels(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["train", "--help"])
    out = capsys.readouterr().out
    for setting in settings():
        assert re.search(rf"│ {setting.flag} ", out), setting.flag
    panels = re.findall(r"─ (\w+) ─", out)
    assert panels == ["Options", "Task", "Model", "Solver", "Training", "Output"]
    assert "\x1b" not in out


def test_every_hyperparameter_and_solver_option_is_an_option():
    section = {setting.key: setting.section for setting in settings()}
    assert len(section) == len(settings()), "two settings share a name"
    for card in neuralosc.models():
        for key in ("hidden_size", *card.defaults):
            assert section.get(key) == "model_options", f"{key} of {card.name}"
    for info in solvers.available():
        for key in info.options:
            assert section.get(key) == "solver_options", f"{key} of {info.name}"
    for name in tasks.TASKS:
        for key in tasks.options(name):
            assert section.get(key) == ("" if key == "data_dir" else "task_options"), f"{key} of {name}"
    for key in RunConfig().to_dict():
        assert key in options.SECTIONS or section.get(key) == "", key


def test_every_setting_is_explained():
    unexplained = [setting.key for setting in settings() if len(setting.help) < 10]
    assert not unexplained


def test_help_gives_meaning_and_default_of_each_network():
    (gamma,) = [setting for setting in settings() if setting.key == "gamma"]
    assert "tiffness" in gamma.help and "(cornn)" in gamma.help
    assert "cornn 2.7" in gamma.default and "lipschitz, antisymmetric 0.001" in gamma.default


def test_descriptions_are_read_from_a_docstring():
    def function():
        """Do it.

        Args:
            first: what
                goes on.
            second, third: both.

        Raises:
            InputError: never.
        """

    assert descriptions(function) == {"first": "what goes on.", "second": "both.", "third": "both."}
    assert descriptions(object()) == descriptions(object)


# The configuration


def test_options_override_the_file_and_the_rest_stays(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("task: digits\nlr: 0.5\nepochs: 7\nmodel_options: {gamma: 3.0, dt: 0.1}\n")
    config = resolve(load_yaml(path), {"lr": 0.25, "gamma": 4.0, "solver": "dopri5", "rtol": 1e-3, "epochs": None})
    assert (config.lr, config.epochs) == (0.25, 7)
    assert config.model_options == {"gamma": 4.0, "dt": 0.1, "solver": "dopri5"}
    assert config.solver_options == {"rtol": 1e-3}


def test_milestones_choose_their_schedule():
    assert resolve(RunConfig(), {"milestones": [3, 5]}).schedule == "milestones"


def test_typed_values_have_their_types(monkeypatch, capsys):
    seen = []

    def stop(config, **rest):
        seen.append(config)
        raise InputError("seen enough")

    monkeypatch.setattr(training, "train", stop)
    model = "--dt 0.1,0.2 --num-layers 2 --no-coupled --learned --dropout 0.5"
    assert main([*f"train {model} --milestones 3,5 --lr 1e-3 --precision 64".split()]) == 2
    (config,) = seen
    expected = {"dt": [0.1, 0.2], "num_layers": 2, "coupled": False, "learned": True, "dropout": 0.5}
    assert config.model_options == expected
    assert (config.milestones, config.lr, config.precision) == ([3, 5], 1e-3, "64")
    assert "seen enough" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("auto", "auto"), ("inf", float("inf"))])
def test_a_bound_on_the_step_is_a_number_or_auto(text, value):
    kind = parsers.of_values([neuralosc.model("gru").defaults["max_dt"]])
    assert kind(text) == value
    neuralosc.GRU(2, 3, max_dt=kind(text))


def test_unset_options_leave_the_configuration_alone():
    assert resolve(RunConfig(), {setting.key: None for setting in settings()}) == RunConfig()


def test_a_setting_becomes_a_parameter_without_default():
    parameter = Setting("some_thing", "", "Task", str, "Help.").parameter()
    assert parameter.name == "some_thing" and parameter.default is None


# Commands


def test_list_shows_every_name(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    names = [*tasks.TASKS, *solvers.GRADIENTS, *solvers.CONTROLS, *(info.name for info in solvers.available())]
    names += [part for card in neuralosc.models() for part in (card.name, card.title.split()[0])]
    for name in names:
        assert name in out, name
    assert "\x1b" not in out


def test_list_of_one_kind_shows_only_that(capsys):
    assert main(["list", "models"]) == 0
    out = capsys.readouterr().out
    assert "cornn" in out and "stormer_verlet" not in out


def test_every_control_is_explained():
    assert set(solvers.CONTROLS) <= set(listing.CONTROL_WORDING)


def test_train_keeps_the_run_and_says_what_next(run, capsys):
    main([*f"train {SMALL} --name other --root".split(), str(run.parent)])
    out = capsys.readouterr().out
    assert f"python -m experiments compare {run.parent / 'other'}" in out
    assert re.search(r"test +loss [\d.]+ +accuracy [\d.]+%", out)
    config = load_yaml(run.parent / "other" / "config.yaml")
    assert config.model_options["hidden_size"] == 6 and config.model_options["epsilon"] == 2.0


def test_evaluate_under_another_solver(run, capsys):
    assert main(["evaluate", str(run), "--solver", "rk4", "--substeps", "2", "--split", "validation"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"solver +rk4", out) and re.search(r"split +validation", out)
    assert re.search(r"accuracy +[\d.]+%", out)


def test_compare_prints_a_table_and_where_the_files_are(run, capsys):
    line = f"compare {run} --solvers rk4,imex_euler,dopri5 --substeps 1,2 --samples 6 --no-figures --rtol 1e-3"
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert not err
    assert len(re.findall(r"^ rk4 +[12] +[\d.]+% +[\d.e-]+ +(?:-|[\d.]+) +\d+ +[\d.]+ s", out, re.MULTILINE)) == 2
    assert "rtol 0.001" in out and "6 of 269 test samples" in " ".join(out.split())
    paths = [Path(line.strip()) for line in out.split("Written:")[1].split()]
    assert [path.name for path in paths] == ["comparison.csv", "comparison.json"]
    assert json.loads(paths[1].read_text())["samples"] == 6


def test_bench_prints_floors_and_writes_the_times(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite, "QUICK_SHAPES", (suite.Shape("Q", 4, 2, 3, linear=True),))
    where = ["--json", str(tmp_path / "times.json")]
    assert main(["bench", "--quick", "--repeats", "2", "--parts", "training,solving", *where]) == 0
    out = capsys.readouterr().out
    assert "Q (4, 2, 3, 1)" in out and "associative scan" in out and str(tmp_path / "times.json") in out
    assert "native_dopri5" in out and "bare loop" in out
    times = json.loads((tmp_path / "times.json").read_text())
    assert len(times["training"][0]["seconds"]) == len(times["solving"][0]["seconds"]) == 2
    assert times["machine"]["torch"] == torch.__version__


def test_demo_that_falls_short_exits_with_one(tmp_path, capsys, monkeypatch):
    def short(root, out, progress):
        raise demo.ShortfallError("test accuracy 12.00% is too low")

    monkeypatch.setattr(demo, "demo", short)
    assert main(["demo", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: test accuracy 12.00%")


# Failures

RUN, TMP = "RUN", "TMP"
BAD_INPUT = [
    ("", "trian", ["trian", "train"]),
    ("", "--frobnicate", ["--frobnicate"]),
    ("", "list modles", ["modles", "models"]),
    ("", "train extra", ["extra"]),
    ("", "train --task digit", ["task 'digit'", "'digits'"]),
    ("", "train --model corn", ["model 'corn'", "'cornn'"]),
    ("", "train --solver rk5", ["solver 'rk5'", "'rk4'"]),
    ("", "train --gradient backprob", ["backprob", "backprop"]),
    ("", "train --control holt", ["holt", "hold"]),
    ("", "train --device tpu", ["tpu", "cpu"]),
    ("", "train --schedule cosin", ["cosin", "cosine"]),
    ("", "train --precision 8", ["'8'", "32"]),
    ("", "train --model lipschitz --epsilon 2", ["'lipschitz'", "--epsilon", "--beta", "--init-std"]),
    ("", "train --solver rk4 --rtol 1e-3", ["'rk4'", "--rtol"]),
    ("", "train --model lipschitz --solver stormer_verlet", ["stormer_verlet", "partitioned", "use one of"]),
    ("", "train --length 50", ["'digits'", "length"]),
    ("", "train --lr fast", ["--lr", "'fast'", "number"]),
    ("", "train --lr -1", ["lr", "-1", "above 0"]),
    ("", "train --epochs 2.5", ["--epochs", "'2.5'", "whole number"]),
    ("", "train --dt nan", ["dt", "nan"]),
    ("", "train --dt 0.1,x", ["--dt", "'x'"]),
    ("", "train --milestones 3,x", ["--milestones", "'x'"]),
    ("", "train --hidden-size 0", ["hidden_size", "0"]),
    ("", "train --seed -1", ["seed", "-1"]),
    ("", "train --task smnist --data-dir TMP/nothing", ["nothing"]),
    ("", "train --config TMP/none.yaml", ["none.yaml", "No such file"]),
    ("a: [", "train --config TMP/file", ["file", "YAML"]),
    ("learning_rate: 3", "train --config TMP/file", ["learning_rate", "file"]),
    ("lr: fast", "train --config TMP/file", ["lr", "'fast'", "number"]),
    ("model_options: {beta: 1.0}", "train --config TMP/file", ["cornn", "--beta"]),
    ("", "train --resume TMP/nowhere", ["nowhere"]),
    ("", "train --resume RUN --lr 3 --no-gated", ["--resume", "--lr", "--gated"]),
    ("", "train --name run --root RUN/..", ["exists already"]),
    ("", "evaluate", ["RUN"]),
    ("", "evaluate TMP/nowhere", ["nowhere"]),
    ("", "evaluate TMP", ["not a run", "config.yaml"]),
    ("", "evaluate RUN --split tset", ["tset", "test"]),
    ("", "evaluate RUN --solver stormer_verlett", ["stormer_verlet"]),
    ("", "evaluate RUN --rtol 1e-3", ["rtol"]),
    ("", "evaluate RUN --solver dopri5 --rtol -1", ["rtol", "-1.0"]),
    ("", "compare RUN --solvers rk4,dopri6", ["dopri6", "dopri5"]),
    ("", "compare RUN --solvers ,", ["--solvers", "','"]),
    ("", "compare RUN --substeps 0", ["substeps", "0"]),
    ("", "compare RUN --substeps 1,b", ["--substeps", "'b'"]),
    ("", "compare RUN --samples none", ["--samples", "'none'"]),
    ("", "compare RUN --solvers rk4 --rtol 1e-3", ["rk4", "rtol"]),
    ("", "train --task table", ["--csv FILE"]),
    ("", "predict RUN", ["FILE"]),
    ("", "predict RUN TMP/file", ["'digits'", "evaluate it"]),
    ("", "export RUN TMP/file", ["exists already"]),
    ("", "export RUN TMP/model --length 5", ["--length", "--onnx"]),
    ("", "bench --repeats 0", ["--repeats", "0"]),
    ("", "bench --shapes S1,S9", ["--shapes", "S9", "S1"]),
    ("", "bench --parts speed", ["--parts", "speed", "training"]),
    ("", "bench --threads -1", ["--threads", "-1"]),
    ("", "bench --json TMP/no/where.json", ["where.json", "no folder"]),
]


@pytest.mark.parametrize(("content", "line", "words"), BAD_INPUT, ids=[line for _, line, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_two(content, line, words, run, tmp_path, capsys):
    (tmp_path / "file").write_text(content)
    before = sorted(tmp_path.iterdir())
    arguments = [part.replace("RUN", str(run)).replace("TMP", str(tmp_path)) for part in line.split()]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in out + err and not out
    for word in words:
        assert word in err, f"{word!r} not in: {err}"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_a_damaged_run_is_one_line(name, run, tmp_path, capsys):
    for file in ("config.yaml", "model.safetensors"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    (tmp_path / name).write_bytes(b"\x00\x01 not what it was")
    assert main(["evaluate", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and name in err


def test_a_numerical_failure_exits_with_one_and_says_where(run, capsys):
    assert main(["evaluate", str(run), "--solver", "dopri5", "--max-steps", "1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "max_steps = 1" in err and "step 0" in err


def test_an_interruption_keeps_its_advice(monkeypatch, capsys):
    def interrupted(*args, **values):
        raise KeyboardInterrupt("interrupted after 3 epochs; go on with: it")

    monkeypatch.setattr(training, "train", interrupted)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "error: interrupted after 3 epochs; go on with: it\n"


def test_a_file_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    def full(*args, **values):
        raise OSError(28, "No space left on device", "runs/x/metrics.csv")

    monkeypatch.setattr(comparison, "compare", full)
    assert main(["compare", "runs/x"]) == 2
    assert capsys.readouterr().err == "error: runs/x/metrics.csv: No space left on device\n"


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    def failing(*args, **values):
        raise NumericalError("first\nsecond")

    monkeypatch.setattr(training, "train", failing)
    assert main(["train"]) == 1
    assert capsys.readouterr().err.startswith("error: first second")


def test_a_defect_of_the_program_is_not_hidden(monkeypatch):
    monkeypatch.setattr(training, "train", lambda *args, **values: {}["missing"])
    with pytest.raises(KeyError):
        main(["train"])


def test_verdicts_of_each_kind_of_failure():
    assert failures.verdict(InputError("bad")) == (2, "bad")
    assert failures.verdict(NumericalError("worse"))[0] == 1
    assert failures.verdict(KeyboardInterrupt()) == (130, "interrupted")
    with pytest.raises(SystemExit):
        failures.verdict(SystemExit(5))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
@pytest.mark.parametrize("command", ["list", "--help", "train"])
def test_a_full_disk_behind_standard_output_is_one_line(command, tmp_path, monkeypatch, capsys):
    line = f"train {SMALL} --name run --root {tmp_path}" if command == "train" else command
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        assert main(line.split()) == 2
        # At the end of the process, what may still be buffered is written once more.
        full.flush()
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "No space left" in err
    if command == "train":
        # The epoch was kept before a word was said of it.
        assert main(["train", "--resume", str(tmp_path / "run")]) == 0
        assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_a_full_disk_behind_standard_error_changes_no_exit_code(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(["list", "modles"]) == 2
        full.flush()


def test_a_process_without_streams_does_its_work(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["list", "models"]) == 0
    sys.stdout.close()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["list", "modles"]) == 2
    sys.stdout.close()
    sys.stderr.close()


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_sizes_that_no_memory_holds_are_one_line(failure):
    assert failures.verdict(failure) == (2, "there is not enough memory for it: choose smaller sizes")


def test_a_configuration_that_python_cannot_read_is_one_line(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("lr: 2020-02-30\n")
    assert main(["train", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "2020-02-30" in err and str(path) in err


def start(line, **options):
    command = [sys.executable, "-u", "-m", "experiments", *line.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, env=environment, **pipes, **options)


def test_a_reader_that_goes_away_is_no_failure_to_talk_about():
    with start("list") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


def test_ctrl_c_while_training_is_one_line_and_the_run_can_go_on(tmp_path):
    with start(f"train {SMALL} --epochs 100000 --name long --root {tmp_path}") as process:
        assert "epoch 1/" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1 and "Traceback" not in err
    assert f"train --resume {tmp_path / 'long'}" in err
