"""What is trained: read-outs of every kind, both directions, and the baselines without a solver."""

import pytest
import safetensors.torch
import torch

import experiments
import neuralosc
import solvers
from experiments.command.cli import main
from experiments.compare.comparison import compare
from experiments.train.config import READOUTS_OF_A_SEQUENCE, RunConfig, load_yaml
from experiments.train.model import build, load_saved, make_task, save_model
from experiments.train.runs import RunFolder
from experiments.train.training import evaluate, load_model, train
from solvers.errors import InputError

SHORT = {"hidden_size": 6, "num_layers": 2}
BRIEF = {"epochs": 1, "limit_train_batches": 2, "limit_evaluation_batches": 1, "threads": 1}


def config(**changes):
    return RunConfig.from_dict({"model_options": {**SHORT, "dt": 0.2}, **BRIEF, **changes})


@pytest.mark.parametrize("kind", READOUTS_OF_A_SEQUENCE)
@pytest.mark.parametrize("both", [False, True])
def test_a_readout_is_kept_with_its_kind(kind, both, tmp_path):
    chosen = config(readout=kind, model_options={**SHORT, "dt": 0.2, "bidirectional": both, "residual": both})
    model, folder = build(chosen, make_task(chosen)), RunFolder.create(tmp_path)
    assert model.readout.kind == kind and model.readout.in_features == 6 * (1 + both)
    save_model(model, folder)
    before = torch.random.get_rng_state()
    again = load_saved(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    x, lengths = torch.randn(3, 5, model.rnn.input_size), torch.tensor([5, 2, 3])
    assert again.readout.kind == kind and torch.equal(again(x, lengths=lengths), model(x, lengths=lengths))
    for i, n in enumerate(lengths):
        torch.testing.assert_close(model(x, lengths=lengths)[i : i + 1], model(x[i : i + 1, :n]))


@pytest.mark.parametrize("kind", READOUTS_OF_A_SEQUENCE)
def test_a_run_of_before_has_its_readout_in_a_file_of_its_own(kind, tmp_path):
    chosen = config(readout=kind)
    model, folder = build(chosen, make_task(chosen)), RunFolder.create(tmp_path)
    neuralosc.save(model.rnn, folder.model_file)
    safetensors.torch.save_file(model.readout.state_dict(), folder.readout_file, {"kind": kind})
    again, x = load_saved(folder), torch.randn(3, 5, model.rnn.input_size)
    assert again.readout.kind == kind and torch.equal(again(x), model(x))
    # What is written anew is one file.
    save_model(model, folder)
    assert not folder.readout_file.exists() and torch.equal(load_saved(folder)(x), model(x))


def test_a_readout_of_long_before_reads_off_the_last_output(tmp_path):
    model, folder = build(config(), make_task(config())), RunFolder.create(tmp_path)
    neuralosc.save(model.rnn, folder.model_file)
    weights = {"weight": model.readout.weight.detach(), "bias": model.readout.bias.detach()}
    safetensors.torch.save_file(weights, folder.readout_file)
    assert load_saved(folder).readout.kind == "last"
    safetensors.torch.save_file(weights, folder.readout_file, {"kind": "first"})
    with pytest.raises(InputError, match=r"holds no read-out \(unknown readout 'first'"):
        load_saved(folder)
    safetensors.torch.save_file(weights, folder.readout_file, {"kind": "attention"})
    with pytest.raises(InputError, match=r"holds no read-out \(.*pooling.score.weight"):
        load_saved(folder)


def test_the_kind_is_an_option(tmp_path, capsys):
    line = "train --hidden-size 4 --epochs 1 --limit-train-batches 1 --limit-evaluation-batches 1 --threads 1"
    run = tmp_path / "run"
    wanted = f"{line} --readout mean --bidirectional --residual --name run --root"
    assert main([*wanted.split(), str(tmp_path)]) == 0
    model, kept, _ = load_model(run)
    assert kept.readout == model.readout.kind == "mean"
    assert model.rnn.bidirectional and model.rnn.residual
    figures = evaluate(run, "validation", solver="rk4")
    assert figures["solver"] == "rk4"
    result = compare(run, ["rk4"], [1], samples=4, sweep=False)
    assert not result.rows[0].reason and result.rows[0].deviation > 0
    capsys.readouterr()
    assert main([*line.split(), "--readout", "every"]) == 2
    assert "asks once: use last, mean, attention" in capsys.readouterr().err


def test_a_comparison_reads_off_what_the_training_did(tmp_path):
    options = {**SHORT, "dt": 0.2, "solver": "heun", "bidirectional": True}
    adding = {"length": 8, "train_size": 80, "validation_size": 20, "test_size": 40}
    chosen = config(readout="attention", task="adding", task_options=adding, model_options=options)
    run = train(chosen, root=tmp_path, progress=False).folder
    whole = evaluate(run, "test", limit=0)
    result = compare(run, ["heun"], [1], samples=10**6, sweep=True)
    assert result.samples == result.available
    assert result.rows[0].metric == pytest.approx(whole["mse"], rel=1e-5)
    # So few samples are all taken by the sweep too, and its reference answers are those of the table.
    assert result.sweep_metric == pytest.approx(result.reference.metric, rel=1e-12)


class TestBaseline:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(tmp_path_factory):
        options = {**SHORT, "dropout": 0.1, "bidirectional": True, "timespans": "feature"}
        chosen = config(model="lstm", model_options=options)
        return train(chosen, root=tmp_path_factory.mktemp("runs"), progress=False).folder

    def test_it_is_trained_kept_and_evaluated(self, run, capsys):
        model, kept, task = load_model(run)
        assert isinstance(model.rnn, neuralosc.LSTM) and isinstance(model, neuralosc.SequenceModel)
        assert kept.model_options["timespans"] == "feature" and "solver" not in kept.model_options
        assert kept.solver_options == {} and build(kept, task).rnn.config == model.rnn.config
        figures = evaluate(run)
        assert figures["solver"] is None and 0 <= figures["accuracy"] <= 1
        assert main(["evaluate", str(run.path)]) == 0
        assert "solver" not in capsys.readouterr().out

    def test_it_has_no_solver(self, run, capsys):
        for line in ("evaluate RUN --solver rk4", "evaluate RUN --dt 0.1", "compare RUN"):
            assert main(line.replace("RUN", str(run.path)).split()) == 2
            assert capsys.readouterr().err == (
                "error: model 'lstm' is a baseline without a solver: there is none to choose or to compare\n"
            )
        for line, words in (("--solver rk4", "takes no --solver"), ("--rtol 1e-3", "no solver and takes no --rtol")):
            assert main(["train", "--model", "lstm", *line.split()]) == 2
            assert words in capsys.readouterr().err
        with pytest.raises(InputError, match="has no solver: leave them out"):
            chosen = config(model="lstm", model_options=SHORT, solver_options={"rtol": 1e-3})
            build(chosen, make_task(chosen))


def test_a_run_is_loaded_whole(tmp_path):
    result = train(config(limit_evaluation_batches=0), root=tmp_path, progress=False)
    run = experiments.load(result.folder.path)
    assert run.rnn is run.model.rnn and run.readout is run.model.readout and not run.rnn.training
    assert run.config == result.folder.config() and run.task.name == "digits"
    x, y = run.splits[2][:]
    with torch.no_grad():
        accuracy = float((run.model(x).argmax(-1) == y).double().mean())
    assert accuracy == pytest.approx(result.test["accuracy"])
    with pytest.raises(InputError, match="no run folder"):
        experiments.load(tmp_path / "nothing")


@pytest.mark.parametrize("spec", [{"name": "truncated", "steps": 16}, {"name": "feedback_alignment", "scale": 0.5}])
def test_a_gradient_with_options_is_kept(spec, tmp_path):
    run = train(config(model_options={"hidden_size": 6, "gradient": spec}), root=tmp_path, progress=False)
    assert load_yaml(run.folder.config_file).model_options["gradient"] == spec
    assert solvers.gradient_spec(load_model(run.folder)[0].rnn.gradient) == spec
