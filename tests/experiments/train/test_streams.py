"""A network goes on from piece to piece: figures are those of one pass over the whole, and gradients stop between."""

import math

import pytest
import torch
from torch.nn import functional

from experiments import tasks
from experiments.tasks.series import Batch
from experiments.train import checkpoints, training
from experiments.train.config import RunConfig
from experiments.train.model import build
from experiments.train.scoring import Scoring
from experiments.train.streams import Pass, detached, parallel
from experiments.train.trainer import Batches, evaluation_batches, measure
from solvers.errors import InputError

LETTERS = "abcde"


class Bare(torch.nn.Module):
    """A network of one's own that takes no state."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.rnn = torch.nn.RNN(input_size, hidden_size, batch_first=True)

    def forward(self, x):
        return self.rnn(x)


class Kept(Bare):
    """One that does."""

    def forward(self, x, state=None):
        return self.rnn(x, state)


@pytest.fixture
def file(tmp_path):
    random = torch.Generator().manual_seed(0)
    path = tmp_path / "given.txt"
    path.write_text("".join(LETTERS[n] for n in torch.randint(5, (1000,), generator=random)))
    return str(path)


def given(file, **settings):
    options = {"hidden_size": 6, **settings.pop("model_options", {})}
    values = {"epochs": 1, "batch_size": 4, "threads": 1, "device": "cpu", **settings}
    return RunConfig(task="text", task_options={"file": file, "length": 7}, model_options=options, **values)


NETWORKS = {
    "cornn": {},
    "cornn in two layers": {"model_options": {"num_layers": 2}},
    # A control that looks back keeps more than a state.
    "lem": {"model_options": {"control": "linear"}},
    "gru": {"model_options": {"control": "cubic"}},
    # One that knows when it is.
    "phased_lstm": {},
    "lstm": {"model_options": {"num_layers": 2}},
    "linoss": {"model_options": {"state_size": 3}},
    f"{__name__}:Kept": {},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_figures_are_those_of_one_pass_over_the_whole_text(name, file):
    config = given(file, model=name.partition(" ")[0], precision="64", **NETWORKS[name])
    task = tasks.get("text", **config.task_options)
    model = build(config, task).eval()
    for data in task.splits():
        codes = data.codes.unsqueeze(0)
        with torch.no_grad():
            answers = model(functional.one_hot(codes[:, :-1], 5).double())
        nats = functional.cross_entropy(answers[0], codes[0, 1:])
        figures = measure(model, evaluation_batches(data, config, task), Scoring.of(task), "cpu")
        assert figures["loss"] == pytest.approx(float(nats), rel=1e-9)
        assert figures["bpc"] == pytest.approx(float(nats) / math.log(2), rel=1e-9)
        right = (answers[0].argmax(-1) == codes[0, 1:]).double().mean()
        assert figures["accuracy"] == pytest.approx(float(right), rel=1e-9)
        # In pieces that begin anew it is something else.
        anew = Pass(Scoring.of(task))
        with torch.no_grad():
            for batch in evaluation_batches(data, config, task):
                anew.answered(model, batch)
        assert abs(anew.totals.result()["loss"] - float(nats)) > 1e-6


def test_in_training_each_row_goes_on_where_it_ended(file):
    config = given(file, model="cornn", precision="64")
    task = tasks.get("text", **config.task_options)
    train = task.splits()[0]
    batches = Batches(train, 4, dtype=torch.float64, streams=True)
    # 129 pieces, the last of 3 characters, in four parts: that one is left over.
    assert len(train) == 129 and len(batches) == 32 and len(list(batches)) == 32
    rows = torch.cat([batch.y for batch in batches], 1)
    assert torch.equal(rows.flatten(), train.codes[1:897])
    model = build(config, task)
    through = Pass(Scoring.of(task), True)
    for batch in batches:
        through.answered(model, batch)
    whole = model(torch.cat([batch.x for batch in batches], 1))
    expected = functional.cross_entropy(whole.flatten(0, 1), rows.flatten())
    assert through.totals.result()["loss"] == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize(("model", "control"), [("cornn", "hold"), ("cornn", "linear")])
def test_gradients_stop_between_pieces_and_nowhere_else(model, control, file):
    config = given(file, model=model, precision="64", model_options={"control": control})
    task = tasks.get("text", **config.task_options)
    first, second = list(Batches(task.splits()[0], 4, dtype=torch.float64, streams=True))[:2]
    model = build(config, task)
    through = Pass(Scoring.of(task), True)
    through.answered(model, first).backward()
    model.zero_grad()
    through.answered(model, second).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    stream = model.rnn.begin(4) if control == "linear" else None
    with torch.no_grad():
        _, state = model.run(first.x, stream)
    answers, _ = model.run(second.x, state)
    functional.cross_entropy(answers.flatten(0, 1), second.y.flatten()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_run_that_was_interrupted_goes_on_bit_for_bit(file, tmp_path, monkeypatch):
    config = given(file, model="lem", epochs=3)
    straight = training.train(config, root=tmp_path / "straight", progress=False)
    done, end = [], checkpoints.Keeper.on_train_epoch_end

    def interrupted(self, trainer, module):
        end(self, trainer, module)
        done.append(1)
        if len(done) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Keeper, "on_train_epoch_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(config, root=tmp_path / "broken", name="run", progress=False)
    resumed = training.resume(tmp_path / "broken" / "run", progress=False)
    assert resumed.epochs == 3 and resumed.test == straight.test and resumed.validation == straight.validation
    weights = [training.load_model(run.folder)[0].state_dict() for run in (straight, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    found = training.evaluate(resumed.folder)
    assert {name: found[name] for name in straight.test} == straight.test
    assert straight.test["bpc"] < 2.5 and straight.baselines["frequencies"]["bpc"] == pytest.approx(
        math.log2(5), abs=0.1
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gru", "model_options": {"bidirectional": True}}, "a bidirectional network knows what follows"),
        ({"model": "gru", "model_options": {"control": "natural"}}, "and control 'natural' looks ahead"),
        ({"model": "lstm", "model_options": {"bidirectional": True}}, "a bidirectional network knows what follows"),
        ({"model": f"{__name__}:Bare"}, "has no 'state' in its forward: let it take it"),
        ({"model": "gru", "batch_size": 500}, "batch_size is 500, and there are 128 pieces to begin at"),
    ],
)
def test_what_cannot_go_on_is_refused_in_one_line(settings, message, file, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        training.train(given(file, **settings), root=tmp_path / "runs", progress=False)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("runs/*"))


def test_only_classes_at_every_sample_go_on(file):
    config = given(file, model="gru")
    task = tasks.get("text", **config.task_options)
    task.every = False
    with pytest.raises(InputError, match="expected of it classes at every sample"):
        build(config, task)


def test_weights_of_classes_do_not_count_in_bits(file):
    config = given(file, model="gru")
    task = tasks.get("text", **config.task_options)
    y = torch.tensor([[0, 0, 0, 1]])
    answers = torch.tensor([[[2.0, 0, 0, 0, 0]] * 4])
    weighted = Scoring("classification", ("bpc",), 5, True, weights=torch.tensor([1.0, 9, 1, 1, 1]))
    plain = Scoring("classification", ("bpc",), 5, True)
    found = []
    for scoring in (weighted, plain):
        totals = scoring.totals()
        totals.add(answers, y)
        found.append(totals.result())
    assert found[0]["loss"] > found[1]["loss"] and found[0]["bpc"] == pytest.approx(found[1]["bpc"])
    assert found[1]["bpc"] == pytest.approx(found[1]["loss"] / math.log(2)) and build(config, task)


def test_pieces_side_by_side_and_states_of_any_make():
    assert parallel(7, 3).tolist() == [[0, 2, 4], [1, 3, 5]] and parallel(3, 1).tolist() == [[0], [1], [2]]
    value = torch.ones(2, requires_grad=True) * 2
    state = detached((value, [value], {"a": value, "b": None}, 3))
    assert not any(part.requires_grad for part in (state[0], state[1][0], state[2]["a"])) and state[3] == 3
    assert isinstance(state, tuple) and isinstance(state[1], list) and Batch(value, value).lengths is None
