"""Time scales, fixed, per channel and learned: every field that takes one, on every path through the solvers."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN

F64 = torch.float64
FIELDS = {
    "oscillator": lambda **s: neuralosc.Oscillator(2, 4, 1.7, 0.6, **s),
    "uncoupled": lambda **s: neuralosc.Oscillator(2, 4, 1.7, 0.6, coupled=False, **s),
    "unicornn": lambda **s: neuralosc.HamiltonianOscillator(2, 4, 0.8, **s),
    "hamiltonian": lambda **s: neuralosc.DenseHamiltonian(2, 4, energy_layers=2, **s),
    "lipschitz": lambda **s: neuralosc.Lipschitz(2, 4, init_std=2.0, **s),
    "gated": lambda **s: neuralosc.Lipschitz(2, 4, gated=True, **s),
    "residual": lambda **s: neuralosc.Residual(2, 4, init_std=2.0, **s),
    "antisymmetric": lambda **s: neuralosc.Antisymmetric(2, 4, init_std=2.0, **s),
}
SCALES = [0.5, 1.0, 2.0, 0.25]
#: A method of each family, and what else multiplies by the step size itself.
METHODS = [
    "euler",
    "rk4",
    "semi_implicit_euler",
    "stormer_verlet",
    "pefrl",
    "imex_euler",
    "kencarp4",
    "etd4rk",
    "strang",
]
METHODS += ["strang", "implicit_midpoint", "gauss_legendre4", "dopri5", "native_tsit5", "native_kencarp4", "reversible"]


def pair(name, **scale):
    """The field with a scale, and the same weights without."""
    scaled = FIELDS[name](**scale).double()
    plain = FIELDS[name](**({"time_scale": 1.0} if name == "unicornn" else {})).double()
    plain.load_state_dict({k: v for k, v in scaled.state_dict().items() if not k.startswith("scale.")}, strict=True)
    return scaled, plain


class Slowed(neuralosc.VectorField):
    """A field whose right-hand side is multiplied by s, without saying so to the solver."""

    def __init__(self, field, s):
        super().__init__(field.input_size, field.hidden_size, field.components)
        self.inner, self.s = field, s

    def drive(self, x):
        return self.inner.drive(x)

    def forward(self, t, state, u):
        return self.s * self.inner(t, state, u)


@pytest.mark.parametrize("name", FIELDS)
def test_a_number_is_a_time_step_of_its_own_under_every_solver(name):
    scaled, plain = pair(name, time_scale=0.5)
    x, spans = torch.randn(3, 4, 2, dtype=F64), torch.rand(3, 4, dtype=F64) + 0.2
    fitting = [m for m in METHODS if m in solvers.compatible(scaled)]
    assert "euler" in fitting and ("stormer_verlet" in fitting) == (scaled.components == 2)
    for solver in fitting:
        output = ContinuousRNN(scaled, solver, 0.4)(x, timespans=spans)[0]
        expected = ContinuousRNN(plain, solver, 0.2)(x, timespans=spans)[0]
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9, msg=solver)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", FIELDS)
def test_one_per_channel_multiplies_the_right_hand_side(name, learned, relative_error):
    """Against the field multiplied by hand: outputs, and gradients of weights and of the scale itself."""
    scaled, plain = pair(name, time_scale=SCALES, learned_time_scale=learned)
    assert isinstance(scaled.scale.raw, torch.nn.Parameter) == learned
    s = scaled.scale().detach().requires_grad_()
    torch.testing.assert_close(s.detach(), torch.tensor(SCALES, dtype=F64), rtol=1e-6, atol=0)
    x, weight = torch.randn(3, 5, 2, dtype=F64), torch.randn(3, 5, 4, dtype=F64)
    for solver in ("rk4", "dopri5"):
        output, expected = (ContinuousRNN(f, solver, 0.3)(x)[0] for f in (scaled, Slowed(plain, s)))
        assert relative_error(output, expected) < 1e-9
    output, expected = (ContinuousRNN(f, "rk4", 0.3)(x)[0] for f in (scaled, Slowed(plain, s)))
    parameters = [p for n, p in scaled.named_parameters() if n != "scale.raw"] + [scaled.scale.raw] * learned
    gradients = torch.autograd.grad((output * weight).sum(), parameters)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), [*plain.parameters(), s])
    for gradient, other in zip(gradients[: len(expected_gradients) - 1], expected_gradients, strict=False):
        assert relative_error(gradient, other) < 1e-9
    if learned:
        assert relative_error(gradients[-1] / torch.sigmoid(scaled.scale.raw), expected_gradients[-1]) < 1e-9


@pytest.mark.parametrize("name", FIELDS)
def test_compiled_reversible_and_checkpointed_paths_respect_it(name, relative_error):
    field = FIELDS[name](time_scale=SCALES, learned_time_scale=True).double()
    solver = "stormer_verlet" if solvers.get("stormer_verlet").undoes(field) else "reversible"
    rnn = ContinuousRNN(field, solver, 0.1)
    x, weight = torch.randn(3, 30, 2, dtype=F64), torch.randn(3, 30, 4, dtype=F64)
    results = []
    for gradient in ("backprop", "checkpoint", "reversible"):
        for path in ("plain", "compiled"):
            with solvers.backend(path):
                output = rnn.with_solver(solver, gradient=gradient)(x)[0]
            results.append([output, *torch.autograd.grad((output * weight).sum(), list(field.parameters()))])
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert relative_error(a, b) < 1e-8


@pytest.mark.parametrize("name", ["unicornn", "hamiltonian"])
def test_the_energy_stays_whatever_the_pace_of_each_channel(name):
    field = FIELDS[name](time_scale=SCALES).double()
    state, x = torch.randn(3, 2, 4, dtype=F64), torch.zeros(3, 1, 2, dtype=F64).expand(3, 50, 2)
    with torch.no_grad():
        end = ContinuousRNN(field, "gauss_legendre4", 0.05)(x, state)[1]
        u = field.drive(x)[:, 0]
        assert float((end - state).abs().max()) > 0.3
        torch.testing.assert_close(field.energy(end, u), field.energy(state, u), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cornn", {"gamma": [1.0, 2.0, 3.0], "epsilon": 0.5, "learned": True, "time_scale": [0.5, 1.0, 2.0]}),
        ("unicornn", {"alpha": [1.0, 2.0, 3.0], "learned": True, "time_scale": 0.7, "learned_time_scale": True}),
        ("unicornn", {"alpha": 2.0, "learned": True}),
        ("hamiltonian", {"alpha": [1.0, 2.0, 3.0], "learned": True, "learned_time_scale": True}),
        ("lipschitz", {"gamma_W": 0.1, "time_scale": 2.0}),
        ("antisymmetric", {"learned_time_scale": True}),
    ],
)
def test_named_networks_take_train_and_store_them(name, settings, tmp_path):
    rnn = neuralosc.make(name, input_size=2, hidden_size=3, **settings)
    x = torch.randn(2, 6, 2)
    rnn(x)[0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in rnn.parameters())
    learned = {n.split(".")[0] for n, _ in rnn.field.named_parameters() if n.endswith("raw")}
    expected = {"scale"} if settings.get("learned_time_scale") else set()
    if settings.get("learned"):
        expected |= {"gamma", "epsilon"} if name == "cornn" else {"alpha"}
    assert learned == expected
    assert ("c" in dict(rnn.field.named_parameters())) == (name == "unicornn" and "time_scale" not in settings)
    again = neuralosc.load(neuralosc.save(rnn, tmp_path / "net"))
    assert torch.equal(again(x)[0], rnn(x)[0])


def test_values_that_cannot_be(one_line):
    for value in (0.0, -1.0, [1.0, 0.0], float("nan"), "fast"):
        with pytest.raises(neuralosc.InputError) as error:
            neuralosc.Oscillator(2, 2, time_scale=value)
        one_line(error, "time_scale")
