"""Solvers that fail, and how they say so; the registry."""

import copy
import dataclasses
import pickle

import pytest
import torch

import solvers
from solvers.base.registry import Registry
from tests.solvers.ode_problems import DrivenOscillator, FirstOrder, Pendulum, run

F64 = torch.float64
ADAPTIVE = [name for name in solvers.SOLVERS if isinstance(solvers.get(name), solvers.Adaptive)]
ZERO = [torch.zeros(3, 2, dtype=F64)] * 4


def explode(t, state, u):
    """dx = x^2: from x(0) = 2 infinite at t = 0.5."""
    return state.square()


def start(*values):
    return torch.tensor(values, dtype=F64).reshape(-1, 1, 1).expand(-1, 1, 2).clone()


@pytest.mark.parametrize("name", ["euler", "midpoint", "heun", "rk4", "rk4_38"])
def test_a_state_that_leaves_the_numbers(name, one_line):
    spans = torch.tensor([100.0, 200.0, 300.0, 400.0], dtype=F64)
    with pytest.raises(solvers.NonFiniteStateError) as error:
        run(explode, name, start(-1e-9, 1e200, 0.0), ZERO, spans)
    message = one_line(error, "non-finite", name, "sample 1", "step", "time", "smaller dt", "implicit or adaptive")
    assert error.value.sample == 1
    assert error.value.time == float(spans[: error.value.step].sum()), message


def test_the_first_bad_step_and_the_time_of_that_sample_are_named():
    spans = torch.tensor([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0], [1.0, 1.0, 1.0]], dtype=F64)

    def field(t, state, u):
        return torch.where(u.unsqueeze(-2) > 0, torch.inf, 0.0) * torch.ones_like(state)

    samples = [torch.zeros(3, 2, dtype=F64) for _ in range(3)]
    samples[2][1] = 1.0
    with pytest.raises(solvers.NonFiniteStateError) as error:
        run(field, "euler", start(1.0, 1.0, 1.0), samples, spans)
    assert (error.value.sample, error.value.step, error.value.time) == (1, 2, 30.0)
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.sample, again.step, again.time) == (str(error.value), 1, 2, 30.0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_solver_that_runs_into_a_pole(name, one_line):
    with pytest.raises(solvers.NumericalError) as error:
        run(explode, solvers.get(name, max_steps=2000), start(0.1, 2.0, 0.2), ZERO, [0.1, 1.0, 1.0, 1.0])
    one_line(error, name, "sample 1", "step 1", "time 0.1")
    assert (error.value.sample, error.value.step) == (1, 1)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_max_steps_is_a_limit(name, one_line):
    solver = solvers.get(name, rtol=1e-8, atol=1e-10, max_steps=5)
    with pytest.raises(solvers.StepLimitError) as error:
        run(lambda t, x, u: -50 * x + torch.sin(200 * t), solver, start(0.1, 2.0, 0.2), ZERO, [1e-9, 1.0, 1.0, 1.0])
    one_line(error, name, "max_steps = 5", "step 1", "raise max_steps")
    assert error.value.step == 1 and error.value.sample is not None


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_slope_that_jumps_inside_the_interval_cannot_be_refined_forever(name, one_line):
    """A field that never looks the same twice: no step is small enough."""
    generator = torch.Generator().manual_seed(0)

    def noise(t, state, u):
        return 1e12 * torch.randn(state.shape, generator=generator, dtype=F64)

    with pytest.raises((solvers.StepUnderflowError, solvers.StepLimitError)) as error:
        run(noise, solvers.get(name, max_steps=300), start(1.0, 2.0, 3.0), ZERO, [1.0] * 4)
    one_line(error, name, "step 0", "loosen rtol and atol")


def test_a_step_that_shrinks_to_nothing(one_line):
    generator = torch.Generator().manual_seed(0)

    def noise(t, state, u):
        return (0.0 if t < 0.5 else 1e30) * torch.randn(state.shape, generator=generator, dtype=F64)

    with pytest.raises(solvers.StepUnderflowError) as error:
        run(noise, "dopri5", start(1.0, 2.0, 3.0), ZERO, [1.0] * 4)
    one_line(error, "shrank to", "step 0", "time 0", "float64")


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_slope_that_is_not_a_number(name, one_line):
    def field(t, state, u):
        return torch.where(torch.arange(3).reshape(3, 1, 1) == 2, torch.nan, 1.0) * state

    with pytest.raises(solvers.NonFiniteStateError) as error:
        run(field, name, start(1.0, 2.0, 3.0), ZERO, [1.0] * 4)
    one_line(error, "slope became non-finite", name, "sample 2", "step 0")


def test_failures_in_the_backward_pass_of_the_adjoint(one_line):
    """Going back from the end amplifies what decayed going forth; the limit holds there too."""
    state = start(1.0, 2.0, 3.0).requires_grad_()
    gradient = solvers.Adjoint("adjoint", rtol=1e-12, atol=1e-14)
    solver = solvers.get("dopri5", rtol=1e-2, atol=1e-2, max_steps=12)
    loose = dataclasses.replace(gradient, method="dopri5")
    clock, hold = solvers.Clock.uniform(2, 1.0), solvers.get_control("hold")
    trajectory = solvers.solve(lambda t, x, u: -torch.sin(9 * x), solver, loose, hold, clock, ZERO[:2], state)
    with pytest.raises(solvers.StepLimitError) as error:
        trajectory.end().sum().backward()
    one_line(error, "max_steps = 12", "step 1", "time 1", "raise max_steps")


@pytest.mark.parametrize("name", [info.name for info in solvers.available()])
def test_a_field_of_the_wrong_shape_is_caught(name, one_line):
    """U (batch, hidden) added to a state (batch, 1, hidden) broadcasts to (batch, batch, hidden)."""
    if solvers.get(name).needs:
        pytest.skip("calls other methods of the field")
    with pytest.raises(solvers.InputError) as error:
        run(lambda t, x, u: u - x, name, start(1.0, 2.0, 3.0), ZERO, [0.1] * 4)
    one_line(error, "(3, 1, 2)", "(3, 3, 2)", "state.unbind(-2)")


@pytest.mark.parametrize("name", ["dopri5", "dopri8"])
def test_the_adjoint_of_a_field_that_sees_neither_state_nor_parameters(name):
    state = start(1.0, 2.0, 3.0).requires_grad_()
    end = run(lambda t, x, u: torch.ones_like(x), name, state, ZERO, [0.5] * 4, gradient="adjoint")[-1]
    torch.testing.assert_close(end.detach(), state.detach() + 2.0)
    end.sum().backward()
    torch.testing.assert_close(state.grad, torch.ones_like(state))


def test_pairing_errors_name_what_is_missing_and_what_would_do(one_line):
    with pytest.raises(solvers.PairingError) as error:
        solvers.check(FirstOrder(), solvers.get("stormer_verlet"))
    message = one_line(error, "'stormer_verlet'", "partitioned", "FirstOrder", "use one of", "imex_euler", "dopri5")
    assert "semi_implicit_euler" not in message.split("use one of")[1]
    with pytest.raises(solvers.PairingError) as error:
        solvers.check(Pendulum(), solvers.get("imex_euler"))
    one_line(error, "'imex_euler'", "semilinear", "Pendulum", "stormer_verlet")
    assert "imex_euler" not in solvers.compatible(Pendulum())
    noiseless = {
        info.name for info in solvers.available() if info.family not in ("stochastic", "relaxation", "closed_form")
    }
    assert set(solvers.compatible(DrivenOscillator())) == noiseless


def test_available_lists_what_a_solver_is():
    rows = {info.name: info for info in solvers.available()}
    assert list(rows) == list(solvers.SOLVERS)
    assert {"euler", "midpoint", "heun", "rk4", "semi_implicit_euler", "imex_euler", "stormer_verlet"} <= set(rows)
    assert set(ADAPTIVE) == {"dopri5", "dopri8", "bosh3", "adaptive_heun", "tsit5"}
    assert {"semi_implicit_euler", "stormer_verlet"} <= {name for name, row in rows.items() if row.symplectic}
    assert rows["semi_implicit_euler"].aliases == ("symplectic_euler",)
    assert rows["dopri5"].options.keys() == {"rtol", "atol", "max_steps"}
    assert rows["imex_euler"].needs == ("quasilinear",) and rows["ars222"].needs == ("semilinear",)
    assert rows["imex_euler"].implicit
    assert (rows["rk4"].order, rows["rk4"].stages, rows["rk4"].family) == (4, 4, "explicit")
    for name, row in rows.items():
        assert set(row.needs) <= set(solvers.STRUCTURES), name


@pytest.mark.parametrize(
    ("name", "near"),
    [("dopri", "dopri5"), ("verlet", "stormer_verlet"), ("RK4", "rk4"), ("sympletic_euler", "symplectic_euler")],
)
def test_unknown_solvers_come_with_the_nearest_names(name, near, one_line):
    with pytest.raises(solvers.UnknownNameError) as error:
        solvers.get(name)
    one_line(error, f"unknown solver {name!r}", "did you mean", f"'{near}'", "known:")


@pytest.mark.parametrize("name", [None, 3, "", ["rk4"], {"rtol": 1}, ("rk4",)])
def test_what_is_no_name_at_all(name, one_line):
    with pytest.raises(solvers.InputError) as error:
        solvers.get(name)
    one_line(error, "solver")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rk4", {"rtol": 1e-3}, ["'rk4' takes no options", "rtol"]),
        ("dopri5", {"tol": 1e-3}, ["rtol, atol, max_steps", "not tol"]),
        ("dopri5", {"rtol": -1.0}, ["rtol", "-1.0", "positive"]),
        ("dopri5", {"rtol": float("nan")}, ["rtol", "nan"]),
        ("dopri5", {"atol": 0}, ["atol"]),
        ("dopri5", {"atol": "1e-3"}, ["atol", "'1e-3'"]),
        ("dopri5", {"max_steps": True}, ["max_steps"]),
        ("imex_euler", {"implicit_terms": "all"}, ["'all'", "damping, stiffness, both"]),
    ],
)
def test_options_are_checked(name, options, words, one_line):
    with pytest.raises(solvers.InputError) as error:
        solvers.get(name, **options)
    one_line(error, *words)


@pytest.mark.parametrize("name", [info.name for info in solvers.available()])
def test_a_solver_is_a_value(name):
    solver = solvers.get(name)
    assert solvers.get(solvers.spec(solver)) == solver and hash(solver) == hash(solvers.get(name))
    assert pickle.loads(pickle.dumps(solver)) == solver and copy.deepcopy(solver) == solver
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.order = 7


def test_specifications_hold_only_what_differs():
    assert solvers.spec(solvers.get("dopri5")) == "dopri5"
    assert solvers.spec(solvers.get("dopri5", rtol=1e-3)) == {"name": "dopri5", "rtol": 1e-3}
    assert solvers.get({"name": "dopri5", "rtol": 1e-3}, atol=1e-2).options == {
        "rtol": 1e-3, "atol": 1e-2, "max_steps": 10_000,
    }  # fmt: skip
    assert solvers.get("dopri5").rtol == 1e-6


def test_a_registry_takes_a_name_once():
    registry = Registry("thing")
    registry.add("one", 1, ("uno",))
    assert registry["uno"] == 1 and list(registry) == ["one"] and len(registry) == 1 and "uno" in registry
    for name in ("one", "uno"):
        with pytest.raises(solvers.InputError, match="registered already"):
            registry.add(name, 2)
    with pytest.raises(solvers.InputError, match="registered already"):
        registry.add("two", 2, ("one",))
    assert "two" not in registry


def test_the_base_classes_say_what_to_write(one_line):
    with pytest.raises(solvers.PairingError) as error:
        solvers.Solver("mine", 1, 1).step(explode, 0.0, 0.1, start(1.0), None)
    one_line(error, "'mine'", "implement step")
    with pytest.raises(solvers.InputError) as error:
        solvers.Gradient("mine").run(None, start(1.0))
    one_line(error, "'mine'", "implement it")


def test_an_adjoint_integrates_backwards_adaptively(one_line):
    with pytest.raises(solvers.InputError) as error:
        run(explode, "rk4", start(0.1), ZERO[:1], [0.1], gradient=solvers.Adjoint("adjoint", method="rk4"))
    one_line(error, "'rk4'", "not adaptive", "dopri5")
