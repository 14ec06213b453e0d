import io
from dataclasses import asdict

import pytest
import torch
from rich.console import Console

import neuralosc
import solvers
from experiments.bench import cost, irregular
from experiments.bench.cases import COMPILED, LOOP, PLAIN, Shape
from experiments.bench.cost import Cost
from solvers.compiled.passes import denormals

SHAPE = Shape("M", 300, 64, 64, 1)


@pytest.mark.slow
def test_memory_is_counted_in_units_of_the_trajectory():
    kept, peak = {}, {}
    for case in (LOOP, PLAIN, COMPILED):
        kept[case], peak[case] = cost._asked("memory", case, "backprop", asdict(SHAPE))
    # The loop keeps what its products and its activation need; the fast path both components and the activation.
    assert 3 <= kept[LOOP] < 3.2 and 3 <= kept[COMPILED] < 3.2
    assert all(peak[case] > 0.9 * kept[case] for case in kept)


@pytest.mark.slow
def test_the_first_use_is_paid_once(tmp_path):
    """The second process compiles nothing: it finds what the first one left."""
    shape = asdict(Shape("F", 64, 8, 16, 1))
    left = []
    for _ in range(2):
        first, later = cost._asked("first", COMPILED, shape, cache=str(tmp_path))
        assert first > later > 0
        left.append({path.name: path.stat().st_ino for path in tmp_path.rglob("*") if path.suffix == ".so"})
    assert left[0] == left[1] and left[0]


def test_growth_gives_a_time_for_every_length():
    seconds = cost.measure_growth(COMPILED, [(64, 8), (128, 8), (64, 16)])
    assert len(seconds) == 3 and all(0 < value < 10 for value in seconds)


def test_what_following_a_field_costs_is_a_ratio():
    assert 0.3 < cost.measure_following(Shape("F", 64, 2, 4, 1)) < 30


def test_irregular_batches_are_measured_against_regular_ones():
    rows = irregular.measure(Shape("I", 70, 4, 4, 2))
    assert len(rows) == 4 * len(irregular.NETWORKS) and all(ratio > 0 for *_, ratio in rows)
    given = irregular.batches(Shape("I", 70, 4, 4, 2))
    *_, (x, times), (long, spans) = given.values()
    solution = neuralosc.GRU(2, 4).solve(x, **times)
    # What it is compared with has as many steps.
    assert solution.evaluations == long.shape[1] == spans["timespans"].shape[1]
    assert float(spans["timespans"].max()) <= 1


def test_gradients_that_vanish_are_measured_both_ways(monkeypatch):
    monkeypatch.setenv(denormals.DENORMALS, "flush")
    ratios = cost.measure_vanishing(Shape("V", 70, 2, 4, 2))
    assert [row[:2] for row in ratios] == [(n, t) for n in cost.VANISHES for t in ("flush", "keep")]
    assert all(ratio > 0 for *_, ratio in ratios)


@pytest.mark.parametrize("name", cost.VANISHES)
def test_what_the_benchmark_calls_vanishing_does(name):
    torch.manual_seed(0)
    shape = cost.VANISHING
    rnn = cost.VANISHES[name](shape.features, 16)
    x = torch.rand(2, shape.time, shape.features, requires_grad=True)
    with solvers.backend("plain"):
        rnn(x)[0][:, -1].square().mean().backward()
    assert float(x.grad[:, 0].abs().max()) < torch.finfo(x.dtype).tiny


@pytest.mark.parametrize("case", [LOOP, PLAIN, COMPILED])
def test_all_cases_take_the_same_step(case):
    shape = Shape("", 70, 3, 4, 2)
    loop = cost._subject(LOOP, shape)
    assert cost._subject(case, shape).step() > 0
    assert len(torch.nn.utils.parameters_to_vector(loop.model.parameters())) == 4 * (2 + 8) + 4


def test_table_shows_every_figure():
    costs = [Cost("training memory", COMPILED, 4.1, "T B H", "backprop"), Cost("time", COMPILED, 1.0, "us", "T = 100")]
    out = Console(width=120, file=io.StringIO())
    out.print(cost.table(costs))
    for word in ("training memory", "4.10", "T B H", "backprop", "T = 100"):
        assert word in out.file.getvalue()
