"""A small network in double precision, and samples with times of their own."""

import torch

import neuralosc

F64 = torch.float64


def network(**settings):
    return neuralosc.CoRNN(2, 4, **{"dt": 0.2, **settings}).double()


def sequence(batch=3, time=7):
    x, spans = torch.randn(batch, time, 2, dtype=F64), 2 * torch.rand(batch, time, dtype=F64)
    spans[1, 3] = 0.0
    return x, spans
