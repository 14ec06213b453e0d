"""Small models with data, and what an analysis must leave alone."""

import contextlib
import copy
import json

import torch

import neuralosc


class Line(neuralosc.VectorField):
    """x' = w x + v u."""

    def __init__(self, w: float, v: float = 1.0):
        super().__init__(1, 1)
        self.w, self.v = torch.nn.Parameter(torch.tensor(w)), torch.nn.Parameter(torch.tensor(v))

    def forward(self, t, state, u):
        return self.w * state + self.v * u.unsqueeze(-2)


def classifier(seed: int = 0, batch: int = 12, time: int = 8, **choices) -> tuple[neuralosc.SequenceModel, tuple]:
    """An untrained network of oscillators with a read-out, and drawn data."""
    torch.manual_seed(seed)
    field = neuralosc.DenseHamiltonian(2, 4)
    rnn = neuralosc.ContinuousRNN(field, **{"dt": 0.3, "solver": "stormer_verlet", **choices})
    data = torch.randn(batch, time, 2), torch.randint(0, 3, (batch,))
    return neuralosc.SequenceModel(rnn, neuralosc.Readout(4, 3)), data


def regression(answers: int = 1, seed: int = 0):
    """A model of which the read-out alone is trained, its data and its Hessian, that of a quadratic."""
    model, (x, _) = classifier(seed, batch=30)
    model = neuralosc.SequenceModel(model.rnn.requires_grad_(False), neuralosc.Readout(4, answers)).double()
    features = model.rnn(x.double())[0][:, -1]
    features = torch.cat((features, torch.ones(len(x), 1)), 1)
    return model, (x, torch.randn(len(x), answers)), 2 / len(x) / answers * features.T @ features


def readable(result) -> None:
    """Rows of the same columns, values that JSON knows, a table that ends in the verdict, and a picture."""
    rows = result.rows()
    assert rows and len({tuple(row) for row in rows}) == 1
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["analysis"] == type(result).__name__
    assert result.table().endswith(result.verdict.sentence) and result.verdict.numbers and result.verdict.rule
    assert result.png().startswith(b"\x89PNG")


@contextlib.contextmanager
def untouched(model: torch.nn.Module):
    """Parameters, gradients, mode and torch's generator are afterwards what they were."""
    before, mode, drawn = copy.deepcopy(model.state_dict()), model.training, torch.get_rng_state()
    grads = [p.grad for p in model.parameters()]
    yield
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    assert all(one is other for one, other in zip(grads, (p.grad for p in model.parameters()), strict=True))
    assert model.training == mode and torch.equal(torch.get_rng_state(), drawn)
