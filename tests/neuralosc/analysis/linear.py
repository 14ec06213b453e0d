"""Networks of which everything is known: linear fields and the read-outs of their states."""

import torch
from torch import nn

from neuralosc import ContinuousRNN, Readout, SequenceModel, VectorField

F64 = torch.float64


class Linear(VectorField):
    """x' = A x + u, u the input."""

    components = 1

    def __init__(self, matrix):
        matrix = torch.as_tensor(matrix, dtype=F64)
        super().__init__(len(matrix), len(matrix))
        self.A = nn.Parameter(matrix)

    def drive(self, x):
        return x

    def forward(self, t, state, u):
        return state @ self.A.T + u.unsqueeze(-2)


def rotation(rate=1.0, damping=0.0):
    """The matrix of x'' = -rate^2 x as a rotation, and its decay."""
    return [[-damping, rate], [-rate, -damping]]


def model(field, solver, answers=1, **options):
    """A network over a field, with a read-out of its last state, in float64."""
    rnn = ContinuousRNN(field, solver, **options)
    return SequenceModel(rnn, Readout(rnn.output_size, answers)).double()


def sign_of(net, x):
    """Let a model answer by the sign of the first component of its state; returns its classes."""
    with torch.no_grad():
        net.readout.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64))
        net.readout.bias.zero_()
        return net(x).argmax(-1)
