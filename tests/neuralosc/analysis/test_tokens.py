"""Analyses of a model of tokens are those of its network on the vectors of the tokens."""

import pytest
import torch

import neuralosc
from neuralosc import Embedding, InputError, Readout, SequenceModel
from neuralosc.analysis import fixed_points, gradient_flow, lyapunov, robustness, suggest_dt
from neuralosc.analysis.controls import untrained_of
from neuralosc.analysis.dynamics import Dynamics
from neuralosc.analysis.losses import Loss
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import run, shown

F64 = torch.float64
X = torch.randint(9, (24, 12, 1), generator=torch.Generator().manual_seed(0))
Y = X[:, :3, 0].sum(1) % 2
LENGTHS = torch.tensor([12, 9, 11, 10] * 6)


def models():
    torch.manual_seed(0)
    made = SequenceModel(neuralosc.CoRNN(3, 4, dt=0.3), Readout(4, 2), embedding=Embedding(9, 3)).double()
    return made, SequenceModel(made.rnn, made.readout), shown(made, Samples(X, Y, None, LENGTHS))


def test_samples_are_shown_as_vectors_without_a_record():
    made, _, vectors = models()
    assert not vectors.x.requires_grad and torch.equal(vectors.y, Y) and torch.equal(vectors.lengths, LENGTHS)
    assert torch.equal(vectors.x[0], made.embedding.weight[X[0, :, 0]]) and not vectors.x[1, 9:].any()


@pytest.mark.parametrize(
    "analysis",
    [
        lambda model, data: gradient_flow(model, data, progress=False).norms,
        lambda model, data: lyapunov(model, data, progress=False).exponents,
        lambda model, data: suggest_dt(model, data, dts=(0.1, 0.3), progress=False).probes[0].largest,
        lambda model, data: run(model, data).answers,
        lambda model, data: list(Loss.of(None, model, data).gradient(model, data, [model.readout.weight])),
    ],
    ids=["gradient_flow", "lyapunov", "suggest_dt", "run", "loss"],
)
def test_an_analysis_is_that_of_the_network_on_the_vectors(analysis):
    made, bare, vectors = models()
    torch.testing.assert_close(
        analysis(made, Samples(X, Y, None, LENGTHS)), analysis(bare, vectors), rtol=1e-9, atol=1e-12, equal_nan=True
    )


def test_a_token_that_is_held_is_an_input():
    made, bare, _ = models()
    starts = torch.randn(6, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    found = Dynamics.of(made, starts, torch.tensor([5.0]))
    expected = Dynamics.of(bare, starts, made.embedding.weight[5].detach())
    assert torch.equal(found.x, expected.x) and torch.equal(found.u, expected.u)
    with pytest.raises(InputError, match="inputs of this model are tokens: give the one that is held"):
        fixed_points(made, None, starts)
    with pytest.raises(InputError, match="x is 9"):
        fixed_points(made, torch.tensor([9.0]), starts)


def test_untrained_weights_are_other_vectors_too():
    made, _, _ = models()
    first, again, other = (untrained_of(made)(seed) for seed in (1, 1, 2))
    assert torch.equal(first.embedding.weight, again.embedding.weight)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert not torch.equal(first.embedding.weight, made.embedding.weight)


def test_tokens_are_not_disturbed(one_line):
    made, _, _ = models()
    with pytest.raises(InputError) as caught:
        robustness(made, (X, Y))
    one_line(caught, "tokens", "cannot be disturbed")
