"""Networks that rows name."""

import torch

from experiments.reproduce.networks import StateAndSample
from experiments.train import networks
from experiments.train.config import RunConfig

NAME = "experiments.reproduce.networks:StateAndSample"


def test_beside_the_state_stands_what_the_sample_alone_gives():
    torch.manual_seed(0)
    network = StateAndSample(3, 4).double()
    x, spans = torch.randn(2, 5, 3, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)
    output, after = network(x, timespans=spans, lengths=torch.tensor([5, 3]))
    state, sample, mapped = output.split(4, -1)
    expected, expected_after = network.rnn(x, timespans=spans, lengths=torch.tensor([5, 3]))
    assert torch.equal(state, expected) and torch.equal(after, expected_after)
    assert torch.equal(mapped, torch.tanh(x @ network.map.weight.T + network.map.bias))
    for step in range(5):
        torch.testing.assert_close(sample[:, step], network.alone(x[:, step : step + 1])[0][:, 0])
    # The two are other functions, of weights of their own.
    assert not torch.allclose(state[:, 0], sample[:, 0])


def test_it_is_a_network_of_a_row():
    config = RunConfig(task="physionet2012", model=NAME)
    assert networks.card(config).defaults == {"missing": "error"}
    layer = networks.make(config, 3, {"hidden_size": 4, "missing": "hold"})
    x = torch.randn(2, 6, 3)
    x[:, 2] = torch.nan
    output, _ = layer(x, timespans=torch.rand(2, 6), lengths=torch.tensor([6, 4]))
    assert output.shape == (2, 6, 12) and layer.output_size == 12 and bool(output.isfinite().all())
    output[..., -1].sum().backward()
    assert layer.core.map.weight.grad.any() and not layer.core.map.weight.grad.isnan().any()
