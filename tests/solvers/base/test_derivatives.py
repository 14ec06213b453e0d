"""Derivatives of controls, and natural splines: against differentiation, scipy, and what is said of their ends."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

import solvers
from solvers.base.clock import Clock

F64 = torch.float64
SMOOTH = [name for name in solvers.CONTROLS if solvers.CONTROLS[name].derivatives]


def series(batch=3, count=7, channels=2):
    spans = 0.3 + torch.rand(batch, count, dtype=F64)
    return torch.randn(batch, count, channels, dtype=F64), spans


def at(clock, i, fraction):
    return (clock.starts[i] + fraction * clock.spans[i]).requires_grad_()


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("padded", [False, True])
def test_a_derivative_is_that_of_the_path(name, padded):
    control, (u, spans) = solvers.CONTROLS[name], series()
    if padded:
        spans[1, 4:], u[1, 4:] = 0.0, u[1, 3]
        spans[2, 2] = 0.0
    clock = Clock.of_spans(spans)
    paths, slopes = control.paths(u.unbind(1), clock), control.derivatives(u.unbind(1), clock)
    for i in range(7):
        for fraction in (0.01, 0.5, 1.0):
            t = at(clock, i, fraction)
            wanted = torch.stack(
                [torch.autograd.grad(c.sum(), t, retain_graph=True)[0] for c in paths[i](t).unbind(-1)], -1
            ).squeeze(1)
            torch.testing.assert_close(slopes[i](t).expand(3, 2), wanted, rtol=1e-10, atol=1e-11)
    assert not slopes[0](at(clock, 0, 0.5)).any()


@pytest.mark.parametrize("name", SMOOTH)
def test_numbers_and_clocks_per_sample_give_the_same(name):
    control, (u, spans) = solvers.CONTROLS[name], series(1)
    numbers, tensors = Clock.of_spans(spans[0]), Clock.of_spans(spans)
    assert not numbers.tensors and tensors.tensors
    for of in (control.paths, control.derivatives):
        one, other = of(u.unbind(1), numbers), of(u.unbind(1), tensors)
        for i in range(7):
            t = numbers.starts[i] + 0.3 * numbers.spans[i]
            torch.testing.assert_close(one[i](t), other[i](torch.full((1, 1), t, dtype=F64)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_natural_is_the_spline_of_scipy(count):
    u, spans = series(count=count)
    clock = Clock.of_spans(spans)
    paths = solvers.CONTROLS["natural"].paths(u.unbind(1), clock)
    slopes = solvers.CONTROLS["natural"].derivatives(u.unbind(1), clock)
    for row in range(3):
        times = spans[row].cumsum(0).numpy()
        if count == 1:
            assert torch.equal(paths[0](at(clock, 0, 0.3))[row], u[row, 0])
            continue
        spline = CubicSpline(times, u[row].numpy(), bc_type="natural")
        for i in range(1, count):
            for fraction in (0.0, 0.4, 1.0):
                t = at(clock, i, fraction).detach()
                for path, order in ((paths, 0), (slopes, 1)):
                    np.testing.assert_allclose(path[i](t)[row], spline(float(t[row]), order), rtol=1e-10, atol=1e-11)


def test_a_natural_spline_ends_where_its_samples_do():
    """Padding, and two samples at one time, part it: each part is the spline of its own samples."""
    u, spans = series(1)
    padded = torch.cat((spans[:, :4], torch.zeros(1, 3, dtype=F64)), 1)
    broken = spans.clone()
    broken[0, 4] = 0.0
    for clock_spans, first, last in ((padded, 0, 4), (broken, 0, 4), (broken, 4, 7)):
        clock = Clock.of_spans(clock_spans)
        alone = Clock(clock.starts[first:last], clock.spans[first:last])
        whole = solvers.CONTROLS["natural"].paths(u.unbind(1), clock)
        part = solvers.CONTROLS["natural"].paths(u.unbind(1)[first:last], alone)
        for i in range(first + 1, last):
            t = at(clock, i, 0.3).detach()
            torch.testing.assert_close(whole[i](t), part[i - first](t), rtol=1e-12, atol=1e-13)


def test_the_lagging_derivative_at_a_sample_is_the_one_before():
    clock = Clock.of_spans(torch.tensor([1.0, 1.0, 0.5, 2.0], dtype=F64))
    u = [torch.full((1, 1), value, dtype=F64) for value in (0.0, 1.0, 3.0, 2.0)]
    slopes = solvers.CONTROLS["linear_lagging"].derivatives(u, clock)
    assert [float(slopes[i](clock.starts[i])) for i in range(4)] == [0.0, 1.0, 1.0, 4.0]
    assert [float(slopes[i](clock.starts[i] + 0.1)) for i in range(4)] == [0.0, 1.0, 4.0, -0.5]


@pytest.mark.parametrize("name", ["hold", "rectilinear", "linear_noncausal"])
def test_controls_that_jump_have_none(name):
    assert solvers.CONTROLS[name].derivatives is None


@pytest.mark.parametrize("name", list(solvers.CONTROLS))
def test_a_sampled_input_stays_at_its_last_sample(name):
    """A cubic went on for a unit of time after it, and its polynomial for ever."""
    u, times = torch.randn(2, 4, 3, dtype=F64), torch.tensor([0.0, 1.0, 1.5, 2.5], dtype=F64)
    after = solvers.Sampled(u, times, name).paths(False)[-1]
    for t in (2.5, 2.6, 3.5, 9.0):
        torch.testing.assert_close(after(t), u[:, -1], rtol=1e-13, atol=1e-14)


class Driven:
    """dx = dX."""

    structure = frozenset({"controlled"})

    def __call__(self, t, state, du):
        return du.unsqueeze(-2)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "native_dopri5"])
@pytest.mark.parametrize("control", ["linear", "cubic", "natural"])
def test_integrate_follows_the_path_itself(method, control):
    """dx = dX: the state is the input, less what it was before the first sample."""
    u, times = torch.randn(2, 5, 3, dtype=F64), torch.tensor([0.5, 1.0, 1.7, 2.5, 3.0], dtype=F64)
    asked = torch.tensor([0.0, 0.5, 1.2, 2.5, 4.0], dtype=F64)
    sampled = solvers.Sampled(u, times, control)
    start = torch.zeros(2, 1, 3, dtype=F64)
    states = solvers.integrate(Driven(), start, asked, sampled, method).states[:, :, 0]
    paths, places = sampled.paths(False), [0, 0, 2, 3, 5]
    wanted = torch.stack([paths[i](float(t)) - u[:, 0] for i, t in zip(places, asked, strict=True)], 1)
    torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)


def test_what_integrate_refuses_of_a_controlled_field(one_line):
    start, times = torch.zeros(2, 1, 3, dtype=F64), [0.0, 1.0]
    held = solvers.Sampled(torch.zeros(2, 2, 3, dtype=F64), torch.tensor([0.0, 1.0]))
    for control, words in (
        (held, ["Driven", "control 'hold'", "cubic"]),
        (lambda t: torch.ones(2, 3, dtype=F64), ["a function u(t)", "Sampled"]),
        (None, ["no input", "Sampled"]),
    ):
        with pytest.raises(solvers.InputError) as error:
            solvers.integrate(Driven(), start, times, control, "rk4")
        one_line(error, *words)
    still = solvers.integrate(Driven(), start, times, torch.ones(2, 3, dtype=F64), "rk4").states
    assert not still.any()
