"""The step of a network as a map of states: that of its runs, and of no other network."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc import InputError

F64 = torch.float64
NAMES = [card.name for card in neuralosc.models() if card.field and not card.blocks]


@pytest.mark.parametrize("name", NAMES)
def test_steps_one_after_the_other_are_the_run(name):
    if neuralosc.model(name).defaults["control"] != "hold":
        pytest.skip("its steps depend on the sample before")
    rnn = neuralosc.make(name, input_size=2, hidden_size=3).double().eval()
    if rnn.solver.stochastic or rnn.missing == "mask":
        pytest.skip("noise, or a sample that is shown as more than it is")
    x, state = torch.rand(2, 4, 2, dtype=F64), torch.rand(2, rnn.components, rnn.hidden_size, dtype=F64) - 0.5
    spans = torch.tensor([[1.0, 0.3, 2.5, 0.0], [0.7, 1.0, 0.2, 4.0]], dtype=F64)
    end = rnn(x, state, timespans=spans)[1]
    stepped, time = state, torch.zeros(2, dtype=F64)
    for i in range(4):
        stepped = rnn.transition(stepped, x[:, i], spans[:, i], time=time)
        time = time + spans[:, i]
    torch.testing.assert_close(stepped, end, rtol=1e-10, atol=1e-12)


def test_its_jacobian_is_that_of_the_network():
    rnn = neuralosc.CoRNN(2, 3, dt=0.3, gamma=1.0, epsilon=0.5, gradient="checkpoint").double()
    x, state = torch.rand(2, 2, dtype=F64), torch.rand(2, 2, 3, dtype=F64)
    step = solvers.Transition(lambda state: rnn.transition(state, x))
    found = step.jacobian(state)
    expected = torch.func.jacrev(lambda s: rnn.step(x[:1], s.reshape(1, 2, 3))[1].flatten())(state[0].flatten())
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12)


def test_a_layer_of_several():
    rnn = neuralosc.UnICORNN(2, 3, num_layers=2).double()
    x, state = torch.rand(2, 2, dtype=F64), torch.rand(2, 2, 2, 3, dtype=F64)
    output, after = rnn.step(x, state)
    first = rnn.transition(state[0], x, layer=0)
    torch.testing.assert_close(first, after[0])
    torch.testing.assert_close(rnn.transition(state[1], first[:, 0], layer=1), after[1])
    torch.testing.assert_close(after[1][:, 0], output)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"num_layers": 2}, {}, "has 2 layers: give the layer"),
        ({"num_layers": 2}, {"layer": 2}, "layer is 2, expected one of 0 to 1"),
        ({"bidirectional": True}, {}, "bidirectional=False"),
        ({"control": "linear"}, {}, "under control 'linear' a step depends on other samples"),
        ({}, {"x": torch.rand(2, 3)}, r"x has shape \(2, 3\), expected \(batch, 2\) of layer 0"),
        ({}, {"state": torch.rand(2, 3)}, r"state has shape \(2, 3\), expected \(batch, 2, 3\) of layer 0"),
        ({}, {"timespan": -1.0}, "timespan is -1"),
    ],
)
def test_what_is_no_step_is_one_line(options, given, message):
    rnn = neuralosc.CoRNN(2, 3, **options)
    with pytest.raises(InputError, match=message):
        rnn.transition(**{"state": torch.rand(2, 2, 3), "x": torch.rand(2, 2), **given})
