"""Scalers: mean and deviation of what was observed, and what is done with features that have none."""

import numpy as np
import pytest
import torch

import neuralosc

F64 = torch.float64


def test_means_and_deviations_are_those_of_the_observed_values():
    x = torch.randn(5, 7, 3, dtype=F64) * torch.tensor([1.0, 100.0, 1e-6]) + torch.tensor([0.0, 40.0, 3.0])
    x[torch.rand(5, 7, 3) < 0.3] = torch.nan
    lengths = torch.tensor([7, 1, 3, 0, 5])
    rows = np.concatenate([row[:n].numpy() for row, n in zip(x, lengths, strict=True)])
    # What follows the end of a sequence may hold anything.
    padded = torch.where(torch.arange(7).view(1, 7, 1) < lengths.view(5, 1, 1), x, torch.inf)
    scaler = neuralosc.Scaler(3).double().fit(padded, lengths)
    np.testing.assert_allclose(scaler.mean, np.nanmean(rows, 0), rtol=1e-13)
    np.testing.assert_allclose(scaler.scale, np.nanstd(rows, 0), rtol=1e-12)
    z = scaler(x)
    assert torch.equal(z.isnan(), x.isnan())
    seen = np.concatenate([row[:n].numpy() for row, n in zip(z, lengths, strict=True)])
    np.testing.assert_allclose(np.nanmean(seen, 0), 0, atol=1e-9)
    np.testing.assert_allclose(np.nanstd(seen, 0), 1, rtol=1e-9)
    torch.testing.assert_close(scaler.inverse(z), x, equal_nan=True, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_constant_feature_is_not_divided_by_rounding(dtype):
    x = torch.full((1001, 3), 0.1, dtype=dtype)
    # One that is constant but for the last digit, and one that is not.
    x[::2, 1] = torch.nextafter(x[0, 1], torch.tensor(1.0, dtype=dtype))
    x[0, 2] = 0.2
    scaler = neuralosc.Scaler(3).to(dtype).fit(x)
    assert scaler.mean[0] == x[1, 0] and scaler.scale[:2].tolist() == [1, 1] and scaler.scale[2] < 0.1
    assert (scaler(x)[:, 0] == 0).all() and scaler(x)[:, 1].abs().max() < 1e-6


def test_without_fit_it_is_the_identity_and_it_is_a_module():
    scaler, x = neuralosc.Scaler(2), torch.randn(4, 2)
    assert torch.equal(scaler(x), x) and torch.equal(scaler.inverse(x), x)
    assert set(scaler.state_dict()) == {"mean", "scale"} and not list(scaler.parameters())
    assert scaler.double().mean.dtype == F64
    # A large mean with a small deviation, fitted in single precision, loses nothing on the way.
    x = 1000 + torch.randn(10_000, 2).double()
    fitted = neuralosc.Scaler(2).fit(x.float())
    torch.testing.assert_close(fitted.scale.double(), x.std(0, correction=0), rtol=1e-5, atol=0)


def test_bad_input_is_one_line(one_line):
    scaler, x = neuralosc.Scaler(2), torch.randn(3, 4, 2)
    never, infinite = x.clone(), x.clone()
    never[..., 1], infinite[0, 0, 1] = torch.nan, torch.inf
    huge = torch.tensor([[1e300, 1.0], [0.0, 2.0]], dtype=F64)
    for use, words in (
        (lambda: scaler.fit(never), ["feature 1", "no value", "leave it out"]),
        (lambda: scaler.fit(x, [0, 0, 0]), ["feature 0", "no value"]),
        (lambda: scaler.fit(infinite), ["infinite", "feature 1"]),
        (lambda: scaler.fit(x[..., :1]), ["(3, 4, 1)", "(.., 2)"]),
        (lambda: scaler.fit(x[0], [4, 4, 4, 4]), ["lengths", "(4, 2)"]),
        (lambda: scaler.fit(x, [1, 2, 9]), ["lengths[2] is 9"]),
        (lambda: scaler.fit(huge), ["1e+300", "torch.float32"]),
        (lambda: scaler(x[..., 0]), ["(3, 4)", "(.., 2)"]),
        (lambda: scaler([1.0, 2.0]), ["list", "tensor"]),
        (lambda: neuralosc.Scaler(0), ["features is 0"]),
    ):
        with pytest.raises(neuralosc.InputError) as caught:
            use()
        one_line(caught, *words)
