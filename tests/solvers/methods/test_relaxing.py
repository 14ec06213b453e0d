"""The step that is Euler's at the unit of a network, and exact relaxation at every other length."""

import math

import pytest
import torch

import neuralosc
import solvers

F64 = torch.float64
RELAXING = ["rnn", "gru", "lem", "ctrnn"]


class Held:
    """x' = r (m - x) with r and m held."""

    structure = frozenset({"relaxing"})

    def __init__(self, rate, target):
        self.rate, self.target = torch.as_tensor(rate, dtype=F64), torch.as_tensor(target, dtype=F64)

    def __call__(self, t, state, u):
        return (self.rate * (self.target - state[..., 0, :])).unsqueeze(-2)

    def relaxation(self, place, t, components, u):
        return self.rate.expand_as(components[place]), self.target.expand_as(components[place])


def stepped(field, dt, x, **options):
    return solvers.get("relaxation_euler", **options).step(field, 0.0, dt, x, lambda t: None)


@pytest.mark.parametrize("unit", [None, 0.5, 2.0])
def test_the_formula(unit):
    rate, target, x = [0.1, 0.4, 0.0], [1.0, -2.0, 5.0], torch.tensor([[[3.0, 3.0, 3.0]]], dtype=F64)
    for dt in (0.0, 0.3, 0.5, 2.0, 40.0):
        r, m = torch.tensor(rate, dtype=F64), torch.tensor(target, dtype=F64)
        left = torch.exp(-r * dt) if unit is None else (1 - r * unit) ** (dt / unit)
        for given in (dt, torch.tensor([[dt]], dtype=F64)):
            found = stepped(Held(rate, target), given, x, unit=unit)
            torch.testing.assert_close(found, m + left * (x - m), rtol=1e-14, atol=1e-14)
            assert dt or torch.equal(found, x)


@pytest.mark.parametrize("unit", [None, 1.0])
def test_two_steps_are_one_of_their_sum(unit):
    field, x = Held([0.3, 0.9, 1.0], [1.0, 2.0, 3.0]), torch.zeros(1, 1, 3, dtype=F64)
    twice = stepped(field, 1.9, stepped(field, 0.6, x, unit=unit), unit=unit)
    torch.testing.assert_close(twice, stepped(field, 2.5, x, unit=unit), rtol=1e-14, atol=1e-14)


def test_where_euler_overshoots_it_reaches_the_target():
    field, x = Held([1.7], [1.0]), torch.tensor([[[3.0]]], dtype=F64)
    torch.testing.assert_close(stepped(field, 1.0, x, unit=1.0), x + 1.7 * (1 - x))
    for dt in (0.5, 1.0 + 1e-9, 7.0):
        end = stepped(field, dt, x, unit=1.0)
        assert 1.0 <= float(end) < 1.0 + 1e-7


@pytest.mark.parametrize("name", RELAXING)
class TestNetworks:
    def make(self, name, **options):
        torch.manual_seed(0)
        return neuralosc.make(name, input_size=3, hidden_size=8, **options).double()

    def test_rate_and_target_are_those_of_the_field(self, name):
        field = self.make(name).field
        state, u = torch.randn(4, field.components, 8, dtype=F64), field.drive(torch.randn(4, 3, dtype=F64))
        parts = state.unbind(-2)
        for place, slope in enumerate(field(0.0, state, u).unbind(-2)):
            rate, target = field.relaxation(place, 0.0, parts, u)
            torch.testing.assert_close(rate * (target - parts[place]), slope, rtol=1e-13, atol=1e-14)

    def test_at_the_timespan_of_one_it_is_the_published_network(self, name):
        rnn, x = self.make(name), torch.randn(4, 20, 3, dtype=F64)
        other = rnn.with_solver("relaxation_euler")
        weights = list(rnn.parameters())
        expected = rnn(x)[0]
        grads = torch.autograd.grad(expected.square().sum(), weights, retain_graph=True)
        for spans in (None, torch.ones(20, dtype=F64), torch.ones(4, 20, dtype=F64)):
            output = other(x, timespans=spans)[0]
            torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
            for mine, its in zip(torch.autograd.grad(output.square().sum(), weights), grads, strict=True):
                torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-10)

    @pytest.mark.parametrize("backend", ["plain", "compiled", "torch"])
    def test_gaps_of_any_length_leave_it_bounded(self, name, backend):
        rnn, x = self.make(name), torch.randn(4, 30, 3, dtype=F64)
        gaps = torch.empty(4, 30, dtype=F64).exponential_(generator=torch.Generator().manual_seed(1))
        other = rnn.with_solver("relaxation_euler")
        usual = float(rnn(x)[0].detach().abs().max())
        with solvers.backend(backend):
            for scale in (1.0, 10.0, 1e6):
                assert float(other(x, timespans=scale * gaps)[0].detach().abs().max()) < 10 * usual

    def test_paths_agree_with_gradients(self, name):
        rnn = self.make(name).with_solver("relaxation_euler")
        x, gaps = torch.randn(4, 12, 3, dtype=F64), torch.rand(4, 12, dtype=F64) * 3
        gaps[1, 5:] = 0.0
        found = {}
        for backend in ("plain", "compiled", "torch"):
            spans = gaps.clone().requires_grad_()
            with solvers.backend(backend):
                output = rnn(x, timespans=spans)[0]
                found[backend] = torch.autograd.grad(output.square().sum(), [spans, *rnn.parameters()])
        for backend in ("compiled", "torch"):
            for mine, its in zip(found[backend], found["plain"], strict=True):
                torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-10)

    def test_its_substeps_converge_to_the_field(self, name):
        rnn, x = self.make(name), torch.randn(2, 4, 3, dtype=F64)
        gaps = torch.rand(2, 4, dtype=F64) * 3
        exact = rnn.with_solver("dopri5", rtol=1e-10, atol=1e-12)(x, timespans=gaps)[0]
        errors = [
            float((rnn.with_solver("relaxation_euler", substeps=n)(x, timespans=gaps)[0] - exact).detach().norm())
            for n in (64, 128)
        ]
        assert 1.7 < errors[0] / errors[1] < 2.3

    def test_a_step_costs_one_evaluation(self, name):
        rnn, x = self.make(name).with_solver("relaxation_euler", substeps=3), torch.randn(2, 4, 3, dtype=F64)
        with solvers.backend("plain"):
            assert rnn.solve(x).evaluations == 12

    def test_a_layer_has_its_own_unit(self, name):
        rnn = self.make(name, num_layers=2, dt=[0.5, 0.25])
        x = torch.randn(4, 10, 3, dtype=F64)
        output = rnn.with_solver("relaxation_euler")(x, timespans=torch.ones(4, 10, dtype=F64))[0]
        torch.testing.assert_close(output, rnn(x)[0], rtol=1e-12, atol=1e-12)

    def test_saved_and_loaded(self, name, tmp_path):
        rnn = self.make(name).with_solver("relaxation_euler")
        neuralosc.save(rnn, tmp_path / "rnn.safetensors")
        again = neuralosc.load(tmp_path / "rnn.safetensors")
        x, gaps = torch.randn(2, 5, 3, dtype=F64), torch.rand(2, 5, dtype=F64)
        assert again.solver == rnn.solver and torch.equal(again(x, timespans=gaps)[0], rnn(x, timespans=gaps)[0])


def test_an_own_field_of_one_component():
    class Own(neuralosc.field.Relaxing):
        def __init__(self):
            super().__init__(2, 3)
            self.W = torch.nn.Linear(3, 3)

        def drive(self, x):
            return torch.cat((x, x[..., :1]), -1)

        def relaxation(self, place, t, components, u):
            (h,) = components
            return torch.sigmoid(self.W(h)), torch.tanh(u)

        def forward(self, t, state, u):
            rate, target = self.relaxation(0, t, state.unbind(-2), u)
            return rate.unsqueeze(-2) * (target.unsqueeze(-2) - state)

    torch.manual_seed(0)
    rnn, x = neuralosc.ContinuousRNN(Own(), "euler").double(), torch.randn(4, 6, 2, dtype=F64)
    torch.testing.assert_close(rnn.with_solver("relaxation_euler")(x)[0], rnn(x)[0])
    # It is quasilinear by itself.
    short = torch.full((6,), 1e-4, dtype=F64)
    for solver in ("exponential_euler", "imex_euler"):
        torch.testing.assert_close(
            rnn.with_solver(solver)(x, timespans=short)[0], rnn(x, timespans=short)[0], rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("unit", [0, -1.0, True, "1", float("inf"), float("nan")])
def test_units_that_are_none(unit, one_line):
    with pytest.raises(solvers.InputError) as caught:
        solvers.get("relaxation_euler", unit=unit)
    one_line(caught, "unit of solver 'relaxation_euler'", "positive number")


def test_a_field_that_does_not_relax_is_refused(one_line):
    with pytest.raises(solvers.PairingError) as caught:
        neuralosc.CoRNN(3, 4, solver="relaxation_euler")
    one_line(caught, "relaxing", "relaxation(place, t, components, u)")


def test_a_target_of_another_shape_is_refused(one_line):
    class Wrong(Held):
        def relaxation(self, place, t, components, u):
            return self.rate, self.target

    with pytest.raises(solvers.InputError) as caught:
        solvers.integrate(Wrong([0.5], [1.0]), torch.ones(2, 1, 1, dtype=F64), [0.0, 1.0], method="relaxation_euler")
    one_line(caught, "relaxation of Wrong", "(1,)", "(2, 1)")
    solved = solvers.integrate(
        Held([0.5], [1.0]), torch.zeros(2, 1, 1, dtype=F64), [0.0, 1.0], method="relaxation_euler"
    )
    torch.testing.assert_close(solved.states[:, -1], torch.full((2, 1, 1), 1 - math.exp(-0.5), dtype=F64))
