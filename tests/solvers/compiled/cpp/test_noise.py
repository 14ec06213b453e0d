"""Brownian increments in C++ against those made of tensors, and how often they are drawn."""

import pytest
import torch

import solvers
from solvers.compiled.cpp import noise
from solvers.methods import brownian, increments
from solvers.methods.brownian import Brownian, Noise
from solvers.methods.increments import plan

F64, CPU = torch.float64, torch.device("cpu")
KEYS = [Noise.of(4, 0).key, 2**64 - 1, 7]


def in_tensors(monkeypatch, *args):
    with monkeypatch.context() as patch:
        patch.setattr(increments, "FASTER", [])
        return increments.draw(*args)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("area", [False, True])
@pytest.mark.parametrize("cut", [(0.0, 1.0, 1), (0.0, 1.0, 8), (0.0, 1.0, 10), (0.25, 0.7, 3)])
def test_the_numbers_are_those_made_of_tensors(cut, area, threads, monkeypatch):
    monkeypatch.setattr(noise, "SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(increments, "AT_ONCE", 200)
    for rows, columns in [(5, 7), (1, 1), (3, 8)]:
        args = (KEYS, plan(*cut, 0, cut[2]), rows, columns, area)
        expected = in_tensors(monkeypatch, *args, F64, CPU)
        for dtype, bound in [(F64, 1e-12), (torch.float32, 1e-6)]:
            made = noise.draw(*args, dtype, CPU)
            assert made is not None and (made[1] is None) == (expected[1] is None) == (not area)
            for computed, wanted in zip(made, expected, strict=True):
                if wanted is not None:
                    assert computed.dtype == dtype
                    torch.testing.assert_close(computed.double(), wanted, rtol=0, atol=bound)


def test_some_of_the_steps_are_those_of_all():
    whole, area = increments.draw(KEYS, plan(0.0, 1.0, 12, 0, 12), 4, 5, True, F64, CPU)
    part, part_area = increments.draw(KEYS[1:2], plan(0.0, 1.0, 12, 4, 9), 4, 5, True, F64, CPU)
    torch.testing.assert_close(part, whole[1:2, 4:9], rtol=0, atol=1e-12)
    torch.testing.assert_close(part_area, area[1:2, 4:9], rtol=0, atol=1e-12)


@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("n", [1, 4, 10])
def test_they_are_those_of_the_path_as_a_function(n, faster, monkeypatch):
    if not faster:
        monkeypatch.setattr(increments, "FASTER", [])
    w, u = increments.draw(KEYS[:1], plan(0.0, 1.0, n, 0, n), 3, 4, True, F64, CPU)
    path = Brownian(Noise.of(4, 0), torch.empty(3, 4, dtype=F64), area=True)
    for j in range(n):
        expected, area = path(j / n, (j + 1) / n, return_U=True)
        torch.testing.assert_close(w[0, j], expected * n**0.5, rtol=0, atol=1e-12)
        torch.testing.assert_close(u[0, j], area * n**1.5, rtol=0, atol=1e-11)


def test_their_law_is_that_of_brownian_motion():
    w, u = increments.draw(list(range(40)), plan(0.0, 1.0, 5, 0, 5), 30, 50, True, F64, CPU)
    # 300,000 numbers: the standard error of a variance is a quarter of a percent.
    for product, exact in [(w * w, 1.0), (u * u, 1 / 3), (w * u, 0.5), (w**4, 3.0)]:
        assert float(product.mean()) == pytest.approx(exact, rel=0.02)
    assert abs(float(w.mean())) < 0.01 and abs(float((w[:, 1:] * w[:, :-1]).mean())) < 0.01


@pytest.mark.parametrize("cut", [{"substeps": 100}, {"times": 101}])
def test_the_steps_to_come_are_drawn_together(cut, monkeypatch):
    calls = []

    def draw(*args):
        calls.append(args)
        return increments.draw(*args)

    class Still:
        structure = frozenset({"stochastic"})

        def __call__(self, t, x, u):
            return torch.zeros_like(x)

        def diffusion(self, t, x, u):
            return torch.ones_like(x)

    monkeypatch.setattr(brownian, "draw", draw)
    times = torch.linspace(0, 1, cut.get("times", 2))
    x, method = torch.zeros(4, 1, 3), {"name": "euler_maruyama", "noise_seed": 3}
    solvers.integrate(Still(), x, times, method=method, substeps=cut.get("substeps", 1))
    assert len(calls) == 1
    calls.clear()
    monkeypatch.setattr(brownian, "AHEAD", 10 * 12)
    solvers.integrate(Still(), x, times, method=method, substeps=cut.get("substeps", 1))
    assert len(calls) == 10
