"""A field whose energy is learned: where it starts, and what it refuses."""

import pytest
import torch

import neuralosc
from solvers.errors import InputError, UnknownNameError

F64 = torch.float64


@pytest.mark.parametrize("form", ["separable", "dense"])
def test_the_first_sample_is_the_state_and_the_others_drive_nothing(form):
    field = neuralosc.NeuralHamiltonian(6, 3, 5, form, "sample").double()
    rnn = neuralosc.ContinuousRNN(field, "rk4", 0.3)
    x = torch.randn(2, 4, 6, dtype=F64)
    states, given = rnn.solve(x).states, rnn.solve(torch.zeros_like(x), x[:, 0].unflatten(-1, (2, 3))).states
    assert torch.equal(states, given) and field.start is None
    assert torch.equal(field.initial_state(x[:, 0]).flatten(1), x[:, 0])


def test_an_energy_of_given_weights():
    field = neuralosc.NeuralHamiltonian(2, 1, 1, start_from="sample").double()
    values = {"W": (2.0, 0.5), "R": (3.0, -1.0)}
    with torch.no_grad():
        for name, (weight, bias) in values.items():
            getattr(field, name).weight.fill_(weight), getattr(field, name).bias.fill_(bias)
        field.a.fill_(-0.7), field.c.fill_(0.4)
    q, p = torch.tensor([[0.3]], dtype=F64), torch.tensor([[0.9]], dtype=F64)
    energy = -0.7 * torch.cosh(2 * q + 0.5).log() + 0.4 * torch.cosh(3 * p - 1).log()
    torch.testing.assert_close(field.energy(torch.stack((q, p), -2), q), energy[:, 0])
    torch.testing.assert_close(field.velocity(0.0, q, p, q), 1.2 * torch.tanh(3 * p - 1))
    torch.testing.assert_close(field.force(0.0, q, p, q), 1.4 * torch.tanh(2 * q + 0.5))


def test_what_it_refuses():
    with pytest.raises(InputError, match=r"input_size 3 with hidden_size 2: .* 4 features for 2 degrees of freedom"):
        neuralosc.NeuralHamiltonian(3, 2, start_from="sample")
    with pytest.raises(UnknownNameError, match="energy_form"):
        neuralosc.NeuralHamiltonian(4, 2, energy_form="seperable")
    with pytest.raises(UnknownNameError, match="start_from"):
        neuralosc.NeuralHamiltonian(4, 2, start_from="input")
    with pytest.raises(InputError, match="energy_size"):
        neuralosc.NeuralHamiltonian(4, 2, energy_size=0)
