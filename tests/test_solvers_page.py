"""What docs/solvers.md says that can be checked: its table, the solvers it names, and its traps."""

import math
import re
from pathlib import Path

import pytest
import torch

import neuralosc
import solvers
from experiments import tables
from experiments.command import cli, listing

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "solvers.md").read_text(encoding="utf-8")
F64 = torch.float64


def test_the_table_is_that_of_the_registry():
    start, end = "<!-- solvers -->\n", "\n<!-- end of solvers -->"
    expected = tables.markdown(listing.solver_table())
    assert TEXT.split(start)[1].split(end)[0] == expected, "put in: python -m experiments list solvers --markdown"
    rows = [line for line in expected.splitlines() if line.startswith("| ")][2:]
    assert [row.split("|")[1].strip() for row in rows] == [info.name for info in solvers.available()]


def test_the_command_prints_that_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["list", "solvers", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == tables.markdown(listing.solver_table())


def test_every_name_before_the_table_is_one():
    shortlist = TEXT.split("## In short")[1].split("**Stiff**")[0]
    known = {*solvers.SOLVERS, *solvers.GRADIENTS, "semilinear", "substeps"}
    for name in re.findall(r"`(\w+)`", shortlist):
        assert name in known, name
    assert {"native_dopri5", "pefrl", "native_kencarp4"} <= set(re.findall(r"`(\w+)`", shortlist))


@pytest.mark.parametrize("page", [DOCS / "solvers.md", DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_every_gradient_has_its_row(page):
    table = page.read_text(encoding="utf-8").split("\n| gradient |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(solvers.GRADIENTS)


@pytest.mark.parametrize(("solver", "blind"), [("euler", True), ("midpoint", False)])
def test_a_linear_control_under_one_stage_does_not_see_the_newest_sample(solver, blind):
    rnn = neuralosc.CoRNN(1, 3, dt=0.1, solver=solver, control="linear").double()
    x = torch.randn(2, 4, 1, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(rnn(x)[1].sum(), x)
    assert bool((gradient[:, -1] == 0).all()) is blind
    assert gradient[:, :-1].abs().min() > 0


def test_what_a_field_sees_of_the_time_and_of_the_batch():
    seen = []

    def field(t, state, u):
        seen.append(t)
        return -state

    state, times = torch.ones(3, 1, 2, dtype=F64), torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 9.0]], dtype=F64)
    solvers.integrate(field, state, times)
    assert {tuple(t.shape) for t in seen} == {(3, 1), (2, 1), (1, 1)}
    seen.clear()
    solvers.integrate(field, state, times, method={"name": "native_dopri5", "compact": False})
    assert {tuple(t.shape) for t in seen} == {(3, 1)}
    seen.clear()
    solvers.integrate(field, state, [0.0, 1.0], method="rk4")
    assert all(isinstance(t, float) for t in seen)


def derivatives(a, method, count):
    """The first derivatives of the end with respect to a parameter, by repeated backward passes."""
    a = torch.tensor(a, dtype=F64, requires_grad=True)
    value = end(a, method)
    values = []
    for _ in range(count):
        (value,) = torch.autograd.grad(value, a, create_graph=True)
        values.append(float(value.detach()))
    return values


def end(a, method):
    start = torch.full((1, 1, 1), 1.2, dtype=F64)
    solution = solvers.integrate(
        lambda t, x, u: -a * x**3 - torch.sin(a * x), start, [0.0, 1.0], None, method, substeps=4
    )
    return solution.states[0, -1, 0, 0]


def test_implicit_methods_can_be_differentiated_twice_and_not_three_times():
    method, h = {"name": "radau_iia3", "tol": 1e-13}, 2e-3
    values = [float(end(torch.tensor(0.7 + i * h, dtype=F64), method)) for i in range(-2, 3)]
    third = (values[4] - 2 * values[3] + 2 * values[1] - values[0]) / (2 * h**3)
    expected = [(values[3] - values[1]) / (2 * h), (values[3] - 2 * values[2] + values[1]) / h**2]
    computed = derivatives(0.7, method, 3)
    assert computed[:2] == pytest.approx(expected, rel=1e-4)
    assert computed[2] != pytest.approx(third, rel=1e-2)
    assert derivatives(0.7, "rk4", 3)[2] == pytest.approx(third, rel=0.1)


@pytest.mark.parametrize(
    ("solver", "low", "high"), [("semi_implicit_euler", 0.05, 0.2), ("rk4", 3e-4, 3e-3), ("dopri5", 1e-9, 1e-7)]
)
def test_the_adjoint_differs_from_backprop_by_the_error_of_the_steps(solver, low, high):
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(2, 8, dt=0.3, solver=solver).double()
    x, gradients = torch.randn(2, 20, 2, dtype=F64), []
    for gradient in ("adjoint", "backprop"):
        loss = rnn.with_solver(solver, gradient=gradient)(x)[0].square().mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rnn.parameters()))]))
    assert low < float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()) < high


@pytest.mark.parametrize(("solver", "plain", "coupled"), [("stormer_verlet", 2, 4), ("pefrl", 4, 16)])
def test_what_velocity_coupling_costs(solver, plain, coupled):
    for expected in (plain, coupled):
        field = neuralosc.Oscillator(1, 4, coupled=expected == coupled).double()
        solution = solvers.integrate(
            field, torch.ones(2, 2, 4, dtype=F64), [0.0, 1.0], torch.zeros(2, 4, dtype=F64), solver, substeps=10
        )
        assert solution.statistics.evaluations.tolist() == [10 * expected] * 2
        assert solvers.get(solver).undoes(field) is (expected == plain)


def test_a_longest_step_splits_each_sample_by_its_own_need():
    times = torch.tensor([[0.0, 1.0], [0.0, 7.0]], dtype=F64)
    solution = solvers.integrate(lambda t, x, u: -x, torch.ones(2, 1, 1, dtype=F64), times, method="rk4", max_dt=0.5)
    assert solution.statistics.steps.tolist() == [2, 14]


def test_the_longest_steps_are_those_of_the_stability_functions():
    section = TEXT.split("## How long a step may be")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) >= 8
    for names, *columns in rows:
        for place, name in enumerate(re.findall(r"`(\w+)`", names)):
            for text, angle in zip(columns, (math.pi / 2, math.pi), strict=True):
                values = [float(value) for value in text.split(",") if value.strip()]
                if values:
                    expected = values[place if len(values) > 1 else 0]
                    assert solvers.stability(name).limit(angle) == pytest.approx(expected, abs=6e-4), name
    codes = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    found = {}
    exec("\n".join(codes), found)
    assert f"{found['factor']:.3f}" in codes[0] and 0.9 < found["longest"] < 1
    torch.testing.assert_close(found["volume"], torch.ones(5, dtype=F64))
