import csv
import functools
import io
import itertools
import pickle
import re
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

import neuralosc
from experiments import tasks
from experiments.train import checkpoints, history, training
from experiments.train.checkpoints import load_checkpoint, sealed
from experiments.train.config import OPTIMIZERS, RunConfig, load_yaml
from experiments.train.progress import Reporter
from experiments.train.runs import RunFolder
from experiments.train.scoring import Totals
from experiments.train.trainer import Batches, NonFiniteLossError, optimizer
from experiments.train.training import build, evaluate, load_model, make_task, resume, train
from solvers.compiled.passes import denormals
from solvers.errors import InputError, NonFiniteStateError, UnknownNameError

OSCILLATOR = {"hidden_size": 16, "dt": 0.2, "gamma": 1.0, "epsilon": 2.0}


def tiny(**changes):
    """A run of a second: few units, few batches, one thread."""
    values = {"model_options": OSCILLATOR, "epochs": 3, "lr": 0.03, "limit_train_batches": 12, "threads": 1}
    return RunConfig.from_dict({**values, **changes})


def table(folder):
    with folder.metrics_file.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def same(a, b):
    """Whether two models have the same weights, bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tiny(), root=tmp_path_factory.mktemp("runs"), progress=False)


def test_training_lowers_the_loss(finished):
    records = table(finished.folder)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records[-1]["train_loss"] < records[0]["train_loss"] - 0.05
    assert records[-1]["validation_loss"] < records[0]["validation_loss"] - 0.05
    assert finished.epochs == 3 and finished.seconds > 0
    assert finished.parameters == sum(p.numel() for p in load_model(finished.folder)[0].parameters())


def test_run_folder_holds_what_the_layout_says(finished):
    folder = finished.folder
    for file in (folder.config_file, folder.last, folder.best, folder.model_file):
        assert file.is_file()
    assert folder.curve_file.read_bytes().startswith(b"\x89PNG")
    result = folder.result()
    assert result["status"] == "finished"
    assert result["test"] == finished.test and result["validation"] == finished.validation
    assert not list(folder.path.rglob("*.part"))


def test_configuration_is_resolved_and_can_be_trained_again(finished, tmp_path):
    config = load_yaml(finished.folder.config_file)
    assert config.model_options["solver"] == "semi_implicit_euler" and config.model_options["coupled"] is True
    assert config.threads == 1
    again = train(config, root=tmp_path, progress=False)
    assert same(load_model(again.folder)[0], load_model(finished.folder)[0])
    assert again.test == finished.test


def test_a_run_flushes_what_vanishes_and_leaves_the_mode_as_it_was():
    with training.threads(RunConfig(task="sine", threads=1)):
        assert denormals.flushed_here()
    assert not denormals.flushed_here()


def test_tensorboard_shows_the_same_figures_as_the_table(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.folder.tensorboard)).Reload()
    records = table(finished.folder)
    for tag, column in (("accuracy/validation", "validation_accuracy"), ("loss/train", "train_loss")):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([record[column] for record in records], rel=1e-6)


def test_best_weights_are_kept(finished):
    records = table(finished.folder)
    best = history.best_record(records)
    assert finished.best_epoch == best["epoch"]
    assert finished.validation["accuracy"] == best["validation_accuracy"]
    assert load_checkpoint(finished.folder.best)["epochs"] == best["epoch"]
    assert load_checkpoint(finished.folder.last)["epochs"] == 3


@pytest.mark.parametrize("split, samples", [("validation", 270), ("test", 269)])
def test_evaluate_equals_the_result(finished, split, samples):
    figures = evaluate(finished.folder.path, split)
    assert {name: figures[name] for name in ("loss", "accuracy")} == getattr(finished, split)
    assert figures["samples"] == samples and figures["solver"] == "semi_implicit_euler"


def test_evaluate_under_other_solvers_uses_the_same_weights(finished):
    trained = evaluate(finished.folder)
    exact = evaluate(finished.folder, solver="rk4", substeps=8)
    adaptive = evaluate(finished.folder, solver="dopri5", solver_options={"rtol": 1e-5, "atol": 1e-6}, limit=1)
    assert exact["solver"] == "rk4" and adaptive["solver"] == "dopri5" and adaptive["samples"] == 250
    assert abs(exact["loss"] - trained["loss"]) < 0.1 and exact["loss"] != trained["loss"]
    assert abs(adaptive["loss"] - evaluate(finished.folder, solver="rk4", substeps=8, limit=1)["loss"]) < 1e-3


def test_evaluate_refuses_what_cannot_be(finished, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown split 'tests': did you mean 'test'"):
        evaluate(finished.folder, "tests")
    with pytest.raises(UnknownNameError, match="unknown solver 'rk5'"):
        evaluate(finished.folder, solver="rk5")
    with pytest.raises(InputError, match="limit is -1"):
        evaluate(finished.folder, limit=-1)
    with pytest.raises(InputError, match="unknown gradient 'adjont': did you mean 'adjoint'"):
        evaluate(finished.folder, gradient="adjont")
    with pytest.raises(InputError, match="no run folder"):
        evaluate(tmp_path / "nothing")


def test_model_file_is_the_model_and_the_checkpoint_stands_in_for_it(finished, tmp_path):
    model, config, task = load_model(finished.folder)
    assert same(neuralosc.load(finished.folder.model_file), model)
    assert config.task == task.name == "digits" and not model.training
    copy = RunFolder(tmp_path / "copy")
    copy.best.parent.mkdir(parents=True)
    for name in ("config_file", "best"):
        getattr(copy, name).write_bytes(getattr(finished.folder, name).read_bytes())
    assert same(load_model(copy.path)[0], model)
    copy.best.unlink()
    with pytest.raises(InputError, match="has no weights yet"):
        load_model(copy.path)


def test_read_out_is_of_the_last_valid_sample():
    model, x = build(tiny(), tasks.get("digits")), torch.rand(3, 12, 1)
    answers = model(x, lengths=torch.tensor([5, 12, 1]))
    for row, length in enumerate((5, 12, 1)):
        torch.testing.assert_close(answers[row], model(x[row : row + 1, :length])[0])


def test_seed_decides_weights_and_order(finished, tmp_path):
    task = tasks.get("digits")
    assert same(build(tiny(), task), build(tiny(), task))
    assert not same(build(tiny(), task), build(tiny(seed=1), task))
    other = train(tiny(seed=1, epochs=1), root=tmp_path, progress=False)
    assert table(other.folder)[0]["train_loss"] != table(finished.folder)[0]["train_loss"]


def test_batches_cover_everything_once_in_an_order_of_the_seed_and_the_epoch():
    x = torch.arange(10.0).reshape(10, 1, 1)
    batches = Batches(TensorDataset(x, torch.arange(10)), 4, shuffle=3)

    def order(epoch):
        batches.epoch = epoch
        return [batch.y.tolist() for batch in batches]

    first, second = order(0), order(1)
    assert len(batches) == 3 and [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(itertools.chain(*first)) == list(range(10)) == sorted(itertools.chain(*second))
    assert first != second and first == order(0)
    assert all(torch.equal(batch.x.flatten(), batch.y.float()) for batch in batches)
    plain = Batches(TensorDataset(x, torch.arange(10)), 4, limit=2, dtype=torch.float64)
    assert [batch.y.tolist() for batch in plain] == [[0, 1, 2, 3], [4, 5, 6, 7]] and len(plain) == 2
    assert next(iter(plain)).x.dtype == torch.float64


def test_totals_weigh_samples_not_batches():
    answers, y = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    totals = Totals("classification")
    for part in (slice(0, 4), slice(4, 7)):
        totals.add(answers[part], y[part])
    result = totals.result()
    assert result["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(answers, y)), rel=1e-6)
    assert result["accuracy"] == pytest.approx(float((answers.argmax(1) == y).double().mean()))
    squares = Totals("regression")
    squares.add(torch.ones(2, 1), torch.zeros(2, 1))
    squares.add(torch.ones(1, 1), torch.ones(1, 1))
    assert squares.result() == {"loss": pytest.approx(2 / 3), "mse": pytest.approx(2 / 3)}


@pytest.mark.parametrize("name", [card.name for card in neuralosc.models()])
def test_every_network_trains(name, tmp_path):
    options = {"hidden_size": 4, "num_layers": 2, "dropout": 0.1}
    config = tiny(model=name, model_options=options, epochs=1, limit_train_batches=2, limit_evaluation_batches=1)
    result = train(config, root=tmp_path, progress=False)
    assert 0 <= result.test["accuracy"] <= 1
    assert not same(load_model(result.folder)[0], build(config, make_task(config)))


def test_solver_of_the_configuration_is_used(tmp_path):
    options = {**OSCILLATOR, "hidden_size": 4, "solver": "dopri5"}
    config = tiny(
        model_options=options,
        solver_options={"rtol": 1e-2, "atol": 1e-3},
        epochs=1,
        limit_train_batches=1,
        limit_evaluation_batches=1,
    )
    model, kept, _ = load_model(train(config, root=tmp_path, progress=False).folder)
    assert model.rnn.solver.name == "dopri5" and model.rnn.solver.options["rtol"] == 1e-2
    assert kept.solver_options["rtol"] == 1e-2 and kept.model_options["solver"] == "dopri5"


def test_regression_on_the_adding_problem(tmp_path):
    options = {"length": 10, "train_size": 300, "validation_size": 100, "test_size": 100}
    config = tiny(task="adding", task_options=options, limit_train_batches=0, epochs=4)
    result = train(config, root=tmp_path, progress=False)
    records = table(result.folder)
    assert "validation_mse" in records[0] and "validation_accuracy" not in records[0]
    assert records[-1]["validation_mse"] < records[0]["validation_mse"]
    assert result.test.keys() == {"loss", "mse"} and result.test["mse"] < 0.3
    assert load_yaml(result.folder.config_file).task_options == options


@pytest.mark.parametrize("precision, dtype", [("64", torch.float64), ("bf16-mixed", torch.float32)])
def test_precision(precision, dtype, tmp_path):
    config = tiny(precision=precision, epochs=1, limit_train_batches=2, limit_evaluation_batches=1)
    result = train(config, root=tmp_path, progress=False)
    assert {weight.dtype for weight in load_model(result.folder)[0].parameters()} == {dtype}
    assert evaluate(result.folder)["loss"] == result.test["loss"]


def test_early_stopping(tmp_path):
    # With a learning rate of nearly nothing no epoch is better than the first.
    result = train(tiny(lr=1e-30, epochs=50, patience=2, limit_train_batches=1), root=tmp_path, progress=False)
    assert result.epochs == 3 and result.best_epoch == 1
    # The weights stayed the same, and the one batch of each epoch was another.
    assert len({record["train_loss"] for record in table(result.folder)}) == 3


def test_learning_rate_follows_the_schedule(tmp_path):
    config = tiny(schedule="milestones", milestones=[1, 2], lr=0.01, limit_train_batches=1, limit_evaluation_batches=1)
    result = train(config, root=tmp_path, progress=False)
    rates = [record["learning_rate"] for record in table(result.folder)]
    assert rates == pytest.approx([0.01, 0.001, 0.0001])
    assert load_checkpoint(result.folder.last)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.0001)


def test_gradient_is_clipped(tmp_path):
    norms = []

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))
            return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Recorded)
        train(tiny(gradient_clip=1e-3, epochs=1), root=tmp_path, progress=False)
    assert norms and max(norms) <= 1e-3 * 1.01


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "digts"}, "unknown task 'digts'"),
        ({"model": "cornnn"}, "unknown model 'cornnn': did you mean 'cornn'"),
        ({"model_options": {"alpha": 1.0}}, "not alpha"),
        ({"model_options": {"input_size": 3}}, "input_size is given: the task decides it"),
        ({"model_options": {"solver": "rk5"}}, "unknown solver 'rk5'"),
        ({"solver_options": {"rtol": 1e-3}}, "rtol"),
        ({"model": "lipschitz", "model_options": {"solver": "stormer_verlet"}}, "stormer_verlet"),
        ({"task": "smnist", "data_dir": "nowhere"}, "not found in nowhere: no such folder"),
        ({"task_options": {"length": 3}}, "option of task 'digits'"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(changes, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        train(tiny(**changes), root=tmp_path / "runs", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that must be missing")
def test_missing_device_is_one_line():
    with pytest.raises(
        InputError, match=r"device 'cuda' is not available here with precision 32: use auto or one of .*cpu"
    ):
        train(tiny(device="cuda"), progress=False)


def test_existing_name_is_refused_before_training(finished):
    with pytest.raises(InputError, match="exists already"):
        train(tiny(), root=finished.folder.path.parent, name=finished.folder.path.name, progress=False)


def test_broken_down_training_keeps_the_best_checkpoint(tmp_path):
    # In the third epoch an absurd learning rate makes the learned stiffness huge, and so the step unstable.
    options = {**OSCILLATOR, "learned": True}
    config = tiny(model_options=options, epochs=5, schedule="milestones", milestones=[2], lr_factor=1e6)
    with pytest.raises(NonFiniteStateError) as caught:
        train(config, root=tmp_path, name="run", progress=False)
    folder = RunFolder.open(tmp_path / "run")
    result = folder.result()
    assert result["status"] == "failed" and result["message"] == str(caught.value) and result["epochs"] == 2
    assert [record["epoch"] for record in table(folder)] == [1, 2]
    assert load_checkpoint(folder.last)["epochs"] == 2
    best = history.best_record(table(folder))
    figures = evaluate(folder, "validation")
    assert figures["accuracy"] == best["validation_accuracy"]
    assert folder.curve_file.is_file()
    # Resumed, it meets the same failure, and loses nothing.
    with pytest.raises(NonFiniteStateError):
        resume(folder.path, progress=False)
    assert evaluate(folder, "validation")["loss"] == figures["loss"]


def sabotaged(monkeypatch, sabotage):
    """Every model built from now on has undergone `sabotage(model)`."""

    def build_it(config, task):
        model = build(config, task)
        sabotage(model)
        return model

    monkeypatch.setattr(training, "build", build_it)


def test_non_finite_loss_names_epoch_and_batch(monkeypatch, tmp_path):
    sabotaged(monkeypatch, lambda model: model.readout.weight.data.fill_(torch.nan))
    with pytest.raises(NonFiniteLossError, match=r"^the loss is nan in epoch 1, batch 1: use a smaller learning rate"):
        train(tiny(), root=tmp_path, name="run", progress=False)
    result = RunFolder.open(tmp_path / "run").result()
    assert result["status"] == "failed" and "epoch 1, batch 1" in result["message"]


def test_non_finite_gradient_never_reaches_the_weights(monkeypatch, tmp_path):
    seen = []

    def sabotage(model):
        calls = iter(range(100))
        # Not the first batch but the third.
        model.readout.weight.register_hook(lambda grad: grad * torch.inf if next(calls) == 2 else grad)
        seen.append(model)

    sabotaged(monkeypatch, sabotage)
    with pytest.raises(NonFiniteLossError, match=r"norm of the gradient is .* in epoch 1, batch 3"):
        train(tiny(), root=tmp_path, progress=False)
    assert all(torch.isfinite(weight).all() for weight in seen[0].parameters())


def test_interrupted_training_says_how_to_go_on_and_does(finished, monkeypatch, tmp_path):
    def sabotage(model):
        calls = iter(range(1000))

        def interrupt(module, inputs):
            if next(calls) == 14:
                signal.raise_signal(signal.SIGINT)

        model.register_forward_pre_hook(interrupt)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        sabotaged(patch, sabotage)
        with pytest.raises(KeyboardInterrupt, match=r"interrupted after 1 epochs; go on with: .*--resume .*run"):
            train(tiny(), root=tmp_path, name="run", progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    folder = RunFolder.open(tmp_path / "run")
    assert folder.result()["status"] == "interrupted"
    result = resume(folder.path, progress=False)
    assert same(load_model(folder)[0], load_model(finished.folder)[0])
    assert (result.test, result.best_epoch) == (finished.test, finished.best_epoch)


def test_finished_run_says_so_when_resumed(finished, capsys):
    before = finished.folder.model_file.stat().st_mtime_ns
    result = resume(finished.folder.path)
    assert "has finished after 3 epochs: nothing is left to do" in capsys.readouterr().out
    assert (result.test, result.epochs) == (finished.test, 3)
    assert finished.folder.model_file.stat().st_mtime_ns == before


def test_full_disk_is_one_line_and_loses_no_epoch(monkeypatch, tmp_path):
    from experiments.files import write_atomically

    def full(path, content, durable=True):
        if path.name == "last.ckpt" and path.exists():
            raise InputError(f"{path} cannot be written: No space left on device")
        write_atomically(path, content, durable)

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with pytest.raises(InputError, match=r"last\.ckpt cannot be written: No space"):
        train(tiny(), root=tmp_path, name="run", progress=False)
    monkeypatch.undo()
    folder = RunFolder.open(tmp_path / "run")
    assert folder.result()["status"] == "failed" and load_checkpoint(folder.last)["epochs"] == 1
    assert resume(folder.path, progress=False).epochs == 3


def test_progress_is_one_plain_line_an_epoch_and_nothing_else(tmp_path, capsys, caplog):
    train(tiny(epochs=2), root=tmp_path)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2 and err == "" and not caplog.records
    assert re.match(
        r"epoch 1/2  loss [\d.]+  accuracy [\d.]+%  validation [\d.]+% \(best [\d.]+%\)  [\d.]+ s$", lines[0]
    )


@pytest.mark.parametrize("width", [80, 120])
def test_progress_is_a_bar_that_fits_the_terminal(width, tmp_path, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    monkeypatch.setattr(training, "Reporter", functools.partial(Reporter, console=console))
    train(tiny(epochs=2), root=tmp_path)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    assert re.search(r"epoch 2/2 .*loss [\d.]+  accuracy [\d.]+%  validation [\d.]+%", lines[-1])
    assert ("best" in lines[-1]) == (width == 120)


@pytest.mark.parametrize("content", ["empty", "text", "cut", "pickle", "another dictionary", "tensor"])
def test_damaged_checkpoint_is_one_line_and_nothing_is_executed(content, finished, tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a checkpoint was executed",))

    path = tmp_path / "last.ckpt"
    if content in ("another dictionary", "tensor"):
        torch.save({"format": "other"} if content == "another dictionary" else torch.zeros(2), path)
    else:
        whole = finished.folder.last.read_bytes()
        parts = {"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2], "pickle": pickle.dumps(Trap())}
        path.write_bytes(parts[content])
    with pytest.raises(InputError, match="checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_checkpoint_of_another_network_is_refused(finished, tmp_path):
    folder = RunFolder.create(tmp_path)
    other = replace(load_yaml(finished.folder.config_file), model_options={**OSCILLATOR, "hidden_size": 8})
    folder.write_config(other, "cpu")
    content = load_checkpoint(finished.folder.last)
    folder.last.write_bytes(sealed({**content, "config": other.to_dict()}))
    with pytest.raises(InputError, match="does not fit the configuration of its run"):
        resume(folder.path, progress=False)


def test_damaged_read_out_is_one_line(finished, tmp_path):
    """Of a run from before, whose model file holds the network alone."""
    folder = RunFolder.create(tmp_path)
    folder.config_file.write_bytes(finished.folder.config_file.read_bytes())
    neuralosc.save(load_model(finished.folder)[0].rnn, folder.model_file)
    with pytest.raises(InputError, match=r"readout\.safetensors cannot be read: No such file"):
        load_model(folder)
    folder.readout_file.write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="holds no read-out"):
        load_model(folder)
    save_file(neuralosc.Readout(3, 10).state_dict(), folder.readout_file, {"kind": "last"})
    with pytest.raises(InputError, match=r"shape \(10, 3\): expected \(output, 16\)"):
        load_model(folder)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_decays_matrices_alone(name, tmp_path):
    config = tiny(optimizer=name, weight_decay=0.1, epochs=1, lr=1e-3, model_options={**OSCILLATOR, "learned": True})
    model = build(config, make_task(config))
    made = optimizer(model, config)
    assert type(made).__name__.lower() == name
    decayed, spared = (group["params"] for group in made.param_groups)
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
    assert {p.dim() for p in decayed} == {2} and max(p.dim() for p in spared) == 1
    assert sum(p.numel() for p in (*decayed, *spared)) == sum(p.numel() for p in model.parameters())
    result = train(config, root=tmp_path, progress=False)
    again = train(config.__class__(**{**config.to_dict(), "weight_decay": 0.0}), root=tmp_path, progress=False)
    assert result.test != again.test


def test_momentum_is_of_those_that_have_it():
    with pytest.raises(InputError, match=r"momentum 0\.9 with adam: it is of sgd and rmsprop alone"):
        tiny(momentum=0.9)
    config = tiny(optimizer="sgd", momentum=0.9)
    (group,) = optimizer(build(config, make_task(config)), config).param_groups
    assert group["momentum"] == 0.9
