"""Physical systems: their reference trajectories, what a network is shown of them, and an energy that learns them."""

import math

import pytest
import torch

import neuralosc
from experiments import tasks
from experiments.tasks import physical
from experiments.train.config import RunConfig
from experiments.train.model import build
from experiments.train.training import evaluate, load_model, train
from solvers.errors import InputError

F64 = torch.float64
KINDS = (physical.Pendulum, physical.Duffing, physical.HenonHeiles, physical.SpringChain, physical.DoublePendulum)
SMALL = {"length": 4, "ahead": 2, "train_size": 6, "validation_size": 3, "test_size": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_keeps_its_energy(kind):
    drawn = torch.rand(4, 2, kind.freedom, dtype=F64, generator=torch.Generator().manual_seed(1))
    start = (2 * drawn - 1) * torch.tensor(kind.reach, dtype=F64).unsqueeze(-1)
    states = kind.trajectory(start, torch.tensor([0.0, 1.0, 7.0], dtype=F64))
    energies = kind.energy(*states.unbind(-2))
    assert torch.equal(states[:, 0], start)
    torch.testing.assert_close(energies, energies[:, :1].expand(-1, 3), rtol=0, atol=1e-9)
    assert float((states[:, 2] - start).abs().max()) > 0.1 and not kind.energy(*torch.zeros(2, kind.freedom)) > 0.25


def test_a_pendulum_has_the_period_of_the_elliptic_integral():
    # K(sin(1/2)) by the arithmetic-geometric mean: T = 2 pi / agm(1, cos(q0 / 2)).
    a, b = 1.0, math.cos(0.5)
    for _ in range(6):
        a, b = (a + b) / 2, math.sqrt(a * b)
    start = torch.tensor([[[1.0], [0.0]], [[1e-4], [0.0]]], dtype=F64)
    after = physical.Pendulum.trajectory(start, torch.tensor([0.0, 2 * math.pi / a, 2 * math.pi / a + 1], dtype=F64))
    torch.testing.assert_close(after[0, 1], start[0], rtol=0, atol=1e-8)
    small = physical.Pendulum.trajectory(start[1:], torch.tensor([0.0, 2 * math.pi], dtype=F64))
    torch.testing.assert_close(small[0, 1], start[1], rtol=0, atol=1e-10)


def test_the_chain_swings_in_its_modes():
    place = torch.arange(1, 6, dtype=F64)
    for mode in (1, 4):
        shape, frequency = torch.sin(mode * math.pi * place / 6), 2 * math.sin(mode * math.pi / 12)
        start = torch.stack((shape, torch.zeros(5, dtype=F64))).unsqueeze(0)
        q = physical.SpringChain.trajectory(start, torch.tensor([0.0, 3.0], dtype=F64))[0, 1, 0]
        torch.testing.assert_close(q, math.cos(3 * frequency) * shape, rtol=0, atol=1e-9)


def test_energies_that_are_known():
    one = torch.tensor
    corner = torch.tensor([[0.0, 1.0], [math.sqrt(3) / 2, -0.5]], dtype=F64)
    torch.testing.assert_close(physical.HenonHeiles.energy(corner, 0 * corner), torch.full((2,), 1 / 6, dtype=F64))
    assert float(physical.HenonHeiles.energy(one([0.25, 0.25]), one([0.25, 0.25]))) < 1 / 6
    assert float(physical.Pendulum.energy(one([math.pi]), one([0.0]))) == pytest.approx(2)
    assert float(physical.Duffing.energy(one([0.0]), one([1.0]))) == pytest.approx(0.75)
    # Stretched out, both angular velocities 1: speeds 1 and 2; p = (3, 2) where the rods are parallel.
    assert float(physical.DoublePendulum.energy(one([0.0, 0.0]), one([3.0, 2.0]))) == pytest.approx(2.5)


def test_what_is_shown_and_asked():
    task = tasks.get("henon_heiles", **SMALL, noise=0.5)
    train_set, validation, test = (part[:] for part in task.splits(3))
    assert train_set.x.shape == (6, 4, 4) and train_set.y.shape == (6, 4, 2)
    assert test.x.shape == (3, 8, 4) and test.y.shape == (3, 8, 2) and task.length == 4
    assert not train_set.x[:, 1:].any() and train_set.x.dtype == train_set.y.dtype == torch.float32
    states = task.trajectory(test.x[:, 0].unflatten(-1, (2, 2)), 0.4 * torch.arange(9, dtype=F64))
    torch.testing.assert_close(test.y, states[:, 1:, 0].float(), rtol=0, atol=1e-6)
    # Other sizes begin with the same trajectories; noise is that of training and validation alone.
    more = tasks.get("henon_heiles", **{**SMALL, "train_size": 8}, noise=0.0).splits(3)
    noise = torch.cat([(train_set.x[:, 0] - more[0][:6].x[:, 0]).flatten(), (train_set.y - more[0][:6].y).flatten()])
    assert 0.4 < float(noise.std()) < 0.6 and torch.equal(more[2][:].x, test.x)
    assert not torch.equal(validation.x, train_set.x[:3])
    held = task.guesses(2)["position at the start"]
    assert torch.equal(held, test.x[:, :1, :2].expand(3, 8, 2))


@pytest.mark.parametrize(("option", "value"), [("step", 0), ("step", True), ("noise", -1.0), ("noise", math.inf)])
def test_numbers_that_cannot_be_used(option, value):
    with pytest.raises(InputError, match=rf"task 'duffing': option '{option}' is .*: expected a number"):
        tasks.get("duffing", **{option: value})


def network(**options):
    field = neuralosc.NeuralHamiltonian(2, 1, start_from="sample", **options)
    rnn = neuralosc.ContinuousRNN(field, "stormer_verlet", 0.4)
    return neuralosc.SequenceModel(rnn, neuralosc.Readout(1, 1, "every"))


def test_the_energy_error_is_that_of_the_states():
    task, model = tasks.get("pendulum", **SMALL), network()
    for parameter in model.rnn.parameters():
        torch.nn.init.zeros_(parameter)
    # Without an energy nothing moves, and the energy stays.
    assert task.energy_error(model) == 0
    # p stays and q = q(0) + c R p t with the velocity 1: a free particle.
    with torch.no_grad():
        model.rnn.field.R.weight[0], model.rnn.field.c[0], model.rnn.field.R.bias[0] = 0, 0, 0
        model.rnn.field.R.bias[1], model.rnn.field.R.weight[1], model.rnn.field.c[1] = 50.0, 1.0, 1.0
    x = task.splits()[2][:].x
    q, p = x[:, 0].double().unbind(-1)
    times = 0.4 * torch.arange(1, 9, dtype=F64)
    heights = 1 - torch.cos(q.unsqueeze(-1) + times)
    strayed = (heights - (1 - torch.cos(q)).unsqueeze(-1)).abs().amax(1).mean()
    expected = strayed / (p.square() / 2 + 1 - torch.cos(q)).mean()
    assert task.energy_error(model) == pytest.approx(float(expected), rel=1e-5)


def test_the_energy_of_what_is_no_state_is_refused():
    gru = neuralosc.GRU(2, 1)
    with pytest.raises(InputError, match=r"energy_error of task 'pendulum'.*start_from='sample'"):
        tasks.get("pendulum", **SMALL).energy_error(neuralosc.SequenceModel(gru, neuralosc.Readout(1, 1, "every")))


def test_a_read_out_of_positions_begins_as_the_identity_and_others_do_not():
    options = {"task": "duffing", "task_options": SMALL, "threads": 1}
    energy = {"field": "neuralosc:NeuralHamiltonian", "model_options": {"hidden_size": 1, "start_from": "sample"}}
    model = build(RunConfig(**options, **energy), tasks.get("duffing", **SMALL))
    assert model.readout.weight.tolist() == [[1.0]] and model.readout.bias.tolist() == [0.0]
    other = build(RunConfig(**options, model="gru", model_options={"hidden_size": 4}), tasks.get("duffing", **SMALL))
    assert other.readout.weight.shape == (1, 4) and other.readout.weight.unique().numel() == 4


def test_an_energy_learns_from_trajectories(tmp_path):
    values = {
        "task": "pendulum",
        "task_options": {"length": 5, "ahead": 2, "train_size": 40, "validation_size": 10, "test_size": 10},
        "field": "neuralosc:NeuralHamiltonian",
        "model_options": {"hidden_size": 1, "solver": "stormer_verlet", "dt": 0.4, "start_from": "sample"},
        "lr": 0.02,
        "batch_size": 10,
        "epochs": 8,
        "threads": 1,
    }
    result = train(RunConfig(**values), tmp_path, "run", progress=False)
    held = result.baselines["position at the start"]["mse"]
    assert result.test["mse"] < held / 3 and result.test["rmse"] == pytest.approx(result.test["mse"] ** 0.5, rel=1e-5)
    model, _, task = load_model(tmp_path / "run")
    assert 0 < task.energy_error(model) < 1
    assert evaluate(tmp_path / "run", substeps=2)["mse"] < held
