"""What `rnn.explain` says, and that it leaves nothing behind."""

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from solvers.compiled.products import Products

X = torch.rand(4, 80, 1)


def test_a_compiled_layer_shows_its_memory_and_its_floor(capsys):
    explanation = neuralosc.CoRNN(1, 8).explain(X)
    (layer,) = explanation.layers
    assert (layer.field, layer.path, layer.reason) == ("Oscillator", "compiled", "")
    # Positions, velocities and the activation.
    assert 3 <= layer.units < 3.1 and layer.saved == pytest.approx(4 * 4 * 80 * 8 * layer.units)
    assert layer.floor > 0 and layer.floors == pytest.approx(layer.seconds / layer.floor)
    printed = capsys.readouterr().out
    assert printed.strip() == str(explanation)
    for word in ("batch 4", "80 samples", "semi_implicit_euler", "Oscillator", "compiled", "T B H"):
        assert word in printed


@pytest.mark.parametrize("features", [1, 8, 9, 20])
def test_the_input_current_is_not_kept(features):
    (layer,) = neuralosc.CoRNN(features, 8).explain(torch.rand(4, 80, features), show=False).layers
    assert 3 <= layer.units < 3.1


def test_the_source_is_shown_when_asked_for():
    rnn = neuralosc.UnICORNN(1, 16, num_layers=3)
    assert "void backward" not in str(rnn.explain(X, show=False))
    text = str(rnn.explain(X, source=True, show=False))
    # The first layer makes its current inside the steps; the others take the same step.
    assert text.count("void backward") == 2 and "layer 0:" in text and "layer 1:" in text and "layer 2:" not in text


@pytest.mark.parametrize(
    ("backend", "settings", "reason"),
    [
        ("plain", {}, "the backend is 'plain'"),
        ("auto", {"gradient": "adjoint"}, "gradient 'adjoint'"),
        ("auto", {"solver": "native_dopri5"}, "native_dopri5"),
    ],
)
def test_a_layer_on_the_plain_path_says_why(backend, settings, reason):
    rnn = neuralosc.CoRNN(1, 8, **settings)
    with solvers.backend(backend):
        explanation = rnn.explain(X[:, :66], show=False)
    (layer,) = explanation.layers
    assert layer.path == "plain" and reason in layer.reason and reason in str(explanation)
    assert layer.floor is None and layer.floors is None and layer.saved > 0 and layer.source == ""


@pytest.mark.parametrize("gradient", ["adjoint", "checkpoint", "reversible"])
def test_what_the_backward_pass_computes_again_is_not_counted_as_kept(gradient):
    """A state and a position for each sample, at most, where backprop keeps what is between the stages, too."""
    kept, field = {}, neuralosc.Oscillator(1, 8, coupled=False)
    for name in (gradient, "backprop"):
        rnn = neuralosc.ContinuousRNN(field, "stormer_verlet", 0.01, gradient=name)
        with solvers.backend("plain"):
            kept[name] = rnn.explain(X[:, :66], show=False).layers[0].units
    assert 0 < kept[gradient] < 3.5 < kept["backprop"]


def test_no_gradient_and_no_random_number_is_left_behind():
    rnn = neuralosc.ContinuousRNN(neuralosc.Noisy(neuralosc.Lipschitz(1, 6), 0.1), "euler_maruyama", 0.1)
    before = torch.random.get_rng_state()
    rnn.explain(X, show=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in rnn.parameters())


def test_clocks_and_what_is_not_trained():
    rnn = neuralosc.CoRNN(1, 6, num_layers=2).requires_grad_(False)
    explanation = rnn.explain(X, timespans=torch.rand(4, 80), lengths=torch.tensor([80, 3, 7, 1]), show=False)
    assert [layer.path for layer in explanation.layers] == ["compiled", "compiled"]
    assert all(layer.saved == 0 and layer.seconds > 0 for layer in explanation.layers)


class Own(neuralosc.VectorField):
    def __init__(self):
        super().__init__(1, 6)
        self.W = nn.Linear(6, 6)

    def forward(self, t, state, u):
        return torch.tanh(self.W(state)) + u.unsqueeze(-2)


def test_the_products_are_those_of_the_step():
    solution = neuralosc.ContinuousRNN(Own(), "rk4", 0.1, substeps=2).solve(X)
    products = solution.trajectories[0].record.products
    assert (products.steps, products.batch) == (160, 4)
    assert products.forward == ((6, 6),) * 4 and products.gradients == ((6, 6),) * 4
    assert len(products.backward) == 4


def test_products_are_computed_over_all_rows(monkeypatch):
    monkeypatch.setattr("solvers.compiled.products.ROWS", 7)
    products = Products(5, 4, ((3, 2),), ((2, 3),), ((3, 2),))
    assert products and not Products(5, 4, ())
    assert products.seconds(torch.float64) > 0


def test_a_composition_says_where_it_is_not_symplectic():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 1)
    plain = neuralosc.Hamiltonian(1, 3, lambda state, u: state.square().sum((-2, -1)) / 2)
    dense = neuralosc.DenseHamiltonian(1, 3)
    text = str(neuralosc.ContinuousRNN(plain, "stormer_verlet", dt=0.1).explain(x, show=False))
    assert "not declared separable" in text and "'gauss_legendre4'" in text
    for field, solver in ((dense, "stormer_verlet"), (plain, "gauss_legendre4"), (plain, "rk4")):
        assert "separable" not in str(neuralosc.ContinuousRNN(field, solver, dt=0.1).explain(x, show=False))
