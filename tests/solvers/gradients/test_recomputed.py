"""Gradients that evaluate the field again in the backward pass: everything it reads has its gradient, as it was then.

The field is dx = -tanh(w x) or -w x throughout; backprop, which records the steps, says what is right.
"""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

import solvers

F64 = torch.float64
TIMES = [0.0, 0.3, 0.6]
MIDPOINT = {"name": "implicit_midpoint", "tol": 1e-12}
TIGHT = {"name": "dopri5", "rtol": 1e-10, "atol": 1e-10}
#: Solver and gradient, the same solver under backprop, and how close the two come.
RECOMPUTED = [
    (TIGHT, "adjoint", TIGHT, 1e-7),
    ({"name": "native_dopri5", "rtol": 1e-10, "atol": 1e-10}, "adjoint", TIGHT, 1e-7),
    ("rk4", "checkpoint", "rk4", 1e-12),
    ("native_dopri5", "checkpoint", {"name": "native_dopri5", "max_step": 0.3}, 1e-6),
    ("reversible", "reversible", "reversible", 1e-12),
    (MIDPOINT, "reversible", MIDPOINT, 1e-9),
]
#: Those and the implicit methods, whose backward pass takes Jacobians of the field.
EVALUATED = [(solver, gradient) for solver, gradient, *_ in RECOMPUTED] + [
    (MIDPOINT, "backprop"),
    (MIDPOINT, "checkpoint"),
    ("native_kencarp4", "backprop"),
]


def start():
    return torch.full((2, 1, 1), 0.8, dtype=F64, requires_grad=True)


def solved(field, solver, gradient, x=None, control=None):
    x = start() if x is None else x
    return solvers.integrate(field, x, TIMES, control, method=solver, gradient=gradient).states[:, -1].sum()


class Weight(nn.Module):
    """dx = -scale tanh(w x m)."""

    def __init__(self, w=0.7):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[w]], dtype=F64))
        self.register_buffer("m", torch.ones(1, dtype=F64))
        self.scale, self.calls = 1.0, 0

    def forward(self, t, x, u):
        self.calls += 1
        return -self.scale * torch.tanh(x @ self.w * self.m)


class Holding(nn.Module):
    """dx = -v x with a tensor v that is no parameter."""

    def __init__(self, v):
        super().__init__()
        self.held = [v]

    def forward(self, t, x, u):
        return -self.held[0] * x


def closing_over_a_leaf(a):
    return lambda t, x, u: -a * x


def closing_over_a_computed_tensor(a):
    computed = 2 * a
    # The leaf behind it is read too: each way counts once.
    return lambda t, x, u: -(computed - a) * x


def closing_over_a_module(a):
    inner = nn.Linear(1, 1, bias=False).double()
    nn.utils.parametrize.register_parametrization(inner, "weight", Times(a))
    with torch.no_grad():
        inner.parametrizations.weight.original.fill_(1.0)
    return lambda t, x, u: -inner(x)


class Times(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.a = [a]

    def forward(self, w):
        return w * self.a[0]


HIDING = [
    closing_over_a_leaf,
    closing_over_a_computed_tensor,
    closing_over_a_module,
    Holding,
    lambda a: Holding(a.exp() / a.exp() * a),
]


@pytest.mark.parametrize(("solver", "gradient", "same", "slack"), RECOMPUTED)
@pytest.mark.parametrize("hiding", HIDING)
def test_tensors_that_a_field_hides(hiding, solver, gradient, same, slack):
    values = []
    for method, how in ((solver, gradient), (same, "backprop")):
        a, x = torch.tensor(0.7, dtype=F64, requires_grad=True), start()
        values.append(torch.autograd.grad(solved(hiding(a), method, how, x), (a, x)))
    for value, expected in zip(*values, strict=True):
        torch.testing.assert_close(value, expected, rtol=slack, atol=slack)


@pytest.mark.parametrize(("solver", "gradient", "same", "slack"), RECOMPUTED)
def test_a_control_may_be_a_function(solver, gradient, same, slack):
    values = []
    for method, how in ((solver, gradient), (same, "backprop")):
        a, x = torch.tensor(0.7, dtype=F64, requires_grad=True), start()

        def control(t, a=a):
            return a * torch.sin(torch.as_tensor(t, dtype=F64)).expand(2, 1)

        end = solved(lambda t, x, u: u.unsqueeze(-2) - x, method, how, x, control)
        values.append(torch.autograd.grad(end, (a, x)))
    for value, expected in zip(*values, strict=True):
        torch.testing.assert_close(value, expected, rtol=slack, atol=slack)


@pytest.mark.parametrize("gradient", ["adjoint", "reversible"])
def test_a_tensor_that_is_read_later_only_is_refused(gradient):
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def late(t, x, u):
        return -a * x if t > 0.4 else -x

    solver = "reversible" if gradient == "reversible" else "rk4"
    with pytest.raises(solvers.PairingError, match="not seen in its first step") as refused:
        solved(late, solver, gradient).backward()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["euler_maruyama", "milstein", "stochastic_heun"])
@pytest.mark.parametrize("late", ["drift", "diffusion"])
def test_such_a_tensor_is_refused_by_the_stochastic_adjoint(method, late, one_line):
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)

    class Late:
        structure = frozenset({"stochastic"})

        def __call__(self, t, x, u):
            return -a * x if late == "drift" and t > 0.4 else -x

        def diffusion(self, t, x, u):
            return 0.1 * a * x if late == "diffusion" and t > 0.4 else 0.1 * x

    with pytest.raises(solvers.PairingError) as refused:
        solved(Late(), {"name": method, "noise_seed": 1}, "adjoint").backward()
    one_line(refused, "not seen in its first step")


def test_a_leaf_that_a_field_makes_for_itself_is_no_hidden_tensor():
    def gradient_of_its_energy(t, x, u):
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(y.pow(4).sum(), y, create_graph=True)
        return -slope - 0 * x

    solved(gradient_of_its_energy, TIGHT, "adjoint").backward()


@pytest.mark.parametrize("change", ["weight", "buffer", "closure", "input"])
@pytest.mark.parametrize(("solver", "gradient"), EVALUATED)
def test_what_was_changed_in_place_is_refused(change, solver, gradient):
    field, a = Weight(), torch.tensor(0.7, dtype=F64, requires_grad=True)
    u = torch.ones(2, 1, dtype=F64)
    if change == "closure":
        end = solved(lambda t, x, u: -torch.tanh(x + a), solver, gradient)
    elif change == "input":
        end = solved(lambda t, x, u: -torch.tanh(x + u.unsqueeze(-2)), solver, gradient, control=u)
    else:
        end = solved(field, solver, gradient)
    with torch.no_grad():
        {"weight": field.w, "buffer": field.m, "closure": a, "input": u}[change].add_(1)
    with pytest.raises(RuntimeError, match="was changed in place") as refused:
        end.backward()
    assert isinstance(refused.value, solvers.InputError)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("solver", "gradient"), EVALUATED)
def test_a_number_that_was_set_anew_is_what_it_was(solver, gradient):
    values = []
    for scale in (1.0, 3.0):
        field = Weight()
        end = solved(field, solver, gradient)
        field.scale = scale
        before = field.calls
        values.append(torch.autograd.grad(end, field.w)[0])
        # What the field counts is still counted in it.
        assert field.calls > before
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=0)


@pytest.mark.parametrize(("solver", "gradient"), EVALUATED)
def test_modules_that_were_swapped_in_a_function_are_refused(solver, gradient):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1).double()

        def forward(self, x):
            return solved(lambda t, x, u: -torch.tanh(self.net(x)), solver, gradient, x)

    outer = Outer()
    others = {f"net.{name}": (p.detach() + 0.3).requires_grad_() for name, p in outer.net.named_parameters()}
    end = functional_call(outer, others, (start(),))
    with pytest.raises(solvers.PairingError, match="depends on a tensor of shape"):
        end.backward()


@pytest.mark.parametrize(("solver", "gradient"), EVALUATED)
def test_threads_with_parameters_of_their_own(solver, gradient):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Weight()

        def forward(self, x):
            return solved(self.field, solver, gradient, x)

    outer = Outer()
    own = outer.field.w
    weights = [torch.tensor([[0.2 + 0.3 * i]], dtype=F64, requires_grad=True) for i in range(4)]
    expected = []
    for w in weights:
        field = Weight(w.item())
        expected.append(torch.autograd.grad(solved(field, solver, gradient), field.w)[0])
    ends = [functional_call(outer, {"field.w": w}, (start(),)) for w in weights]
    found = [None] * len(weights)
    at_once = threading.Barrier(len(weights))

    def back(i):
        at_once.wait()
        found[i] = torch.autograd.grad(ends[i], weights[i])[0]

    threads = [threading.Thread(target=back, args=(i,)) for i in range(len(weights))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outer.field.w is own
    for value, right in zip(found, expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("solver", "gradient", "same", "slack"), RECOMPUTED)
def test_a_gradient_of_the_gradient(solver, gradient, same, slack):
    values = []
    for method, how in ((solver, gradient), (same, "backprop")):
        field, x, a = Weight(), start(), torch.tensor(0.7, dtype=F64, requires_grad=True)
        end = solved(lambda t, x, u, a=a, field=field: a * field(t, x, u), method, how, x)
        end = end + solved(field, method, how, x)
        (slope,) = torch.autograd.grad(end, x, create_graph=True)
        values.append(torch.autograd.grad(end + slope.square().sum(), (field.w, a, x)))
    for value, expected in zip(*values, strict=True):
        torch.testing.assert_close(value, expected, rtol=slack, atol=slack)


@pytest.mark.parametrize("kept", ["attribute", "result", "list"])
@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(("solver", "gradient"), EVALUATED)
def test_a_module_that_keeps_its_states_is_freed(solver, gradient, backward, kept):
    field = Weight()
    field.history = []
    for _ in range(2):
        result = solvers.integrate(field, start(), TIMES, method=solver, gradient=gradient)
        if backward:
            result.states.sum().backward()
        if kept == "list":
            field.history.append(result)
        else:
            field.kept = result.states if kept == "attribute" else result
    alive = weakref.ref(field)
    del field, result
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(("solver", "gradient"), EVALUATED)
def test_a_function_that_keeps_its_states_is_freed(solver, gradient):
    weight = Weight()

    def field(t, x, u, weight=weight):
        return weight(t, x, u)

    field.history = []
    for _ in range(2):
        field.kept = solvers.integrate(field, start(), TIMES, method=solver, gradient=gradient).states
        field.kept.sum().backward()
        field.history.append(field.kept)
    alive = weakref.ref(weight)
    del field, weight
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [("rk4", "checkpoint"), ("rk4", "adjoint"), ("reversible", "reversible"), ("rk4", "backprop")],
)
def test_a_single_time(solver, gradient):
    x = start()
    states = solvers.integrate(Weight(), x, [1.0], method=solver, gradient=gradient).states
    assert states.shape == (2, 1, 1, 1)
    torch.testing.assert_close(torch.autograd.grad(states.sum(), x)[0], torch.ones_like(x))
