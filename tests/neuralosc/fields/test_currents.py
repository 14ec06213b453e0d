"""Named fields under `solvers.integrate`, which takes their input current and not the samples."""

import pytest
import torch

import neuralosc
import solvers


def test_a_field_is_given_its_current(one_line):
    field, times = neuralosc.Multiscale(1, 8), torch.linspace(0, 1, 5)
    x, state = torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 2, 8)
    for control in (None, solvers.Sampled(x, times), torch.ones(4, 1)):
        with pytest.raises(solvers.InputError) as error:
            solvers.integrate(field, state, times, control=control)
        one_line(error, "Multiscale", "input current of 32 channels", "field.drive(x)")
    driven = solvers.Sampled(field.drive(x), times)
    assert solvers.integrate(field, state, times, control=driven).states.shape == (4, 5, 2, 8)


def test_one_channel_is_not_broadcast_against_all():
    field, times = neuralosc.LeakyIntegrator(1, 4), torch.linspace(0, 1, 5)
    with pytest.raises(solvers.InputError, match="input current of 4 channels"):
        solvers.integrate(field, torch.zeros(2, 1, 4), times, control=solvers.Sampled(torch.ones(2, 5, 1), times))
