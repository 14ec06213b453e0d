"""The fields by their equations: structure, energies, coefficients, initialisation."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.fields.energies import log_cosh

F64 = torch.float64
STRUCTURES = {
    "oscillator": {"partitioned", "semilinear"},
    "oscillator_uncoupled": {"partitioned", "semilinear", "conformal", "newtonian"},
    "oscillator_per_channel": {"partitioned", "semilinear"},
    "oscillator_learned": {"partitioned", "semilinear", "conformal", "newtonian"},
    "hamiltonian_oscillator": {"partitioned", "conformal", "newtonian", "separable", "hamiltonian"},
    "hamiltonian_energy": {"partitioned", "hamiltonian"},
    "hamiltonian_one_layer": {"partitioned", "conformal", "separable", "hamiltonian"},
    "hamiltonian_two_layers": {"partitioned", "conformal", "separable", "hamiltonian"},
    "neural_hamiltonian": {"partitioned", "conformal", "separable", "hamiltonian"},
    "neural_hamiltonian_dense": {"partitioned", "hamiltonian"},
    "lipschitz": {"semilinear"},
    "lipschitz_gated": set(),
    "antisymmetric": set(),
    "multiscale": {"partitioned", "relaxing"},
    "relaxation": {"semilinear", "relaxing", "quasilinear"},
    "gated_relaxation": {"relaxing", "quasilinear"},
    "gru_decay": {"closed_form", "differential", "impulsive"},
    "gru_decay_unmasked": {"closed_form", "differential", "impulsive"},
    "gru_bayes": {"relaxing", "quasilinear", "impulsive"},
    "gru_bayes_minimal": {"relaxing", "quasilinear", "impulsive"},
    "gru_bayes_alone": {"relaxing", "quasilinear", "impulsive"},
    "lstm_flow": {"impulsive"},
    "lstm_drive": {"impulsive"},
    "decaying_lstm": {"closed_form", "differential", "impulsive"},
    "time_gated_lstm": {"closed_form", "differential", "impulsive"},
    "neural_cde": {"controlled"},
    "orthogonal": {"semilinear", "linear", "impulsive"},
    "linear_oscillator": {"partitioned", "semilinear", "linear", "conformal", "newtonian", "separable"},
    "linear_oscillator_damped": {"partitioned", "semilinear", "linear", "conformal", "newtonian"},
    "leaky": set(),
    "liquid": {"quasilinear"},
    "jump_gru": {"impulsive"},
    "jump_gru_unit": {"impulsive"},
    "closed_form": {"closed_form"},
    "closed_form_pure": {"closed_form"},
    "multiscale_traces": {"closed_form", "differential", "semilinear", "linear", "impulsive"},
    "fading_gru": {"closed_form", "impulsive"},
    "synapses": {"relaxing", "quasilinear"},
    "noisy_lipschitz": {"semilinear", "stochastic"},
    "noisy_oscillator": {"partitioned", "semilinear", "conformal", "newtonian", "stochastic"},
}


def point(field, batch=4):
    state = torch.randn(batch, field.components, field.hidden_size, dtype=F64)
    return state, field.drive(torch.randn(batch, 1, field.input_size, dtype=F64))[:, 0]


def test_declared_structure(field_name, make_field):
    assert make_field(field_name).structure == STRUCTURES[field_name]
    assert make_field(field_name).structure <= set(solvers.STRUCTURES)


def test_the_parts_make_the_whole(field_name, make_field):
    field = make_field(field_name)
    state, u = point(field)
    if "closed_form" in field.structure:
        after = field.propagate(0.3, 1e-6, state, u)
        assert after.shape == state.shape
        if "differential" not in solvers.protocol.structure(field):
            with pytest.raises(solvers.InputError, match="no right-hand side"):
                field(0.3, state, u)
            return
        torch.testing.assert_close((after - state) / 1e-6, field(0.3, state, u), rtol=0, atol=1e-5)
    whole = field(0.3, state, u)
    assert whole.shape == state.shape
    if "partitioned" in field.structure:
        q, p = state.unbind(-2)
        parts = torch.stack((field.velocity(0.3, q, p, u), field.force(0.3, q, p, u)), -2)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)
    if "semilinear" in field.structure:
        for terms in (None, frozenset(), frozenset({"damping"}), frozenset({"stiffness"})):
            sum_of = field.linear(state, terms) + field.nonlinear(0.3, state, u, terms)
            torch.testing.assert_close(sum_of, whole, rtol=0, atol=1e-13)
            solved = field.solve(0.2, state, terms)
            torch.testing.assert_close(solved - 0.2 * field.linear(solved, terms), state, rtol=0, atol=1e-12)
        flowed, slope = field.flow(1e-6, state), field.linear(state)
        torch.testing.assert_close((flowed - state) / 1e-6, slope, rtol=0, atol=1e-5)


def test_what_is_declared_separable_is(field_name, make_field):
    field = make_field(field_name)
    if not field.structure & {"separable", "conformal"}:
        pytest.skip("not declared separable")
    (q, p), u = point(field)[0].unbind(-2), point(field)[1]
    other = torch.randn_like(p)
    assert torch.equal(field.velocity(0.0, q, p, u), field.velocity(0.0, other, p, u))
    damping = field.damping() or 0.0 if not isinstance(field.damping(), torch.Tensor) else field.damping()
    force = field.force(0.0, q, p, u) + damping * p
    torch.testing.assert_close(force, field.force(0.0, q, other, u) + damping * other, rtol=0, atol=1e-14)


def test_a_hamiltonian_field_is_the_gradient_of_its_energy(field_name, make_field):
    field = make_field(field_name)
    if "hamiltonian" not in field.structure:
        pytest.skip("not declared hamiltonian")
    state, u = point(field)
    x = state.requires_grad_()
    energy = field.energy(x, u)
    assert energy.shape == (4,)
    gradient = torch.autograd.grad(energy.sum(), x)[0]
    slope = field(0.0, state, u)
    torch.testing.assert_close(slope, torch.stack((gradient[:, 1], -gradient[:, 0]), -2), rtol=1e-12, atol=1e-12)


def test_energy_is_conserved_along_a_tight_solution(field_name, make_field):
    field = make_field(field_name)
    if "hamiltonian" not in field.structure:
        pytest.skip("not declared hamiltonian")
    rnn = neuralosc.ContinuousRNN(field, {"name": "dopri5", "rtol": 1e-10, "atol": 1e-12}, 0.5)
    state, _ = point(field)
    x = torch.randn(4, 1, 2, dtype=F64)
    with torch.no_grad():
        states = rnn.solve(x.expand(4, 6, 2), state).states
        u = field.drive(x)[:, 0]
        if field_name == "hamiltonian_oscillator":
            # Each channel has its own time scale and conserves its own energy, so the sum is conserved too.
            assert field.time_scale().shape == (3,)
        energies = torch.stack([field.energy(s, u) for s in states.unbind(1)])
        torch.testing.assert_close(energies, field.energy(state, u).expand(6, 4), rtol=0, atol=1e-7)
    assert float((states[:, -1] - state).abs().max()) > 0.1


def test_cornn_equation():
    field = neuralosc.Oscillator(2, 3, gamma=1.7, epsilon=0.6).double()
    state, u = point(field)
    q, p = state.unbind(-2)
    force = torch.tanh(q @ field.W.T + p @ field.R.T + u) - 1.7 * q - 0.6 * p
    torch.testing.assert_close(field(0.0, state, u), torch.stack((p, force), -2), rtol=0, atol=1e-14)


def test_lipschitz_equation():
    field = neuralosc.Lipschitz(2, 3, beta=0.6, gamma=0.2, alpha=1.5).double()
    state, u = point(field)
    eye = torch.eye(3, dtype=F64)
    a, w = (0.6 * (m - m.T) + 0.4 * (m + m.T) - 0.2 * eye for m in (field.A, field.W))
    h = state[:, 0]
    expected = 1.5 * h @ a + torch.tanh(h @ w + u)
    torch.testing.assert_close(field(0.0, state, u)[:, 0], expected, rtol=0, atol=1e-14)


def test_antisymmetric_equation():
    field = neuralosc.Antisymmetric(2, 3, gamma=0.2).double()
    state, u = point(field)
    expected = torch.tanh(state[:, 0] @ (field.W - field.W.T - 0.2 * torch.eye(3, dtype=F64)) + u)
    torch.testing.assert_close(field(0.0, state, u)[:, 0], expected, rtol=0, atol=1e-14)


def test_a_user_energy_by_argument():
    field = neuralosc.Hamiltonian(3, 3, lambda state, u: (state.square().sum(-2) / 2 - u * state[..., 0, :]).sum(-1))
    state, u = torch.randn(4, 2, 3), torch.randn(4, 3)
    q, p = state.unbind(-2)
    torch.testing.assert_close(field(0.0, state, u), torch.stack((p, u - q), -2))


@pytest.mark.parametrize("energy", [lambda s, u: s.sum(), lambda s, u: s.square().sum(-1), lambda s, u: s])
def test_an_energy_of_the_wrong_shape(energy, one_line):
    field = neuralosc.Hamiltonian(3, 3, energy)
    for call in (lambda: field(0.0, torch.ones(4, 2, 3), None), lambda: field.force(0.0, *torch.ones(2, 4, 3), None)):
        with pytest.raises(solvers.InputError) as error:
            call()
        one_line(error, "energy", "(4,)", "one value per sample")


def test_log_cosh_is_accurate_everywhere():
    x = torch.tensor([0.0, 1e-4, 0.5, -3.0, 20.0, 1e4, -1e30], dtype=F64, requires_grad=True)
    y = log_cosh(x)
    expected = [0.0, 5e-9, math.log(math.cosh(0.5)), math.log(math.cosh(3)), 20 - math.log(2), 1e4 - math.log(2), 1e30]
    torch.testing.assert_close(y.detach(), torch.tensor(expected, dtype=F64), rtol=1e-12, atol=1e-15)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.tanh(x.detach()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("value", [2.7, 1e-3, 66.0, [0.5, 1.0, 2.0], torch.tensor([0.5, 1.0, 2.0])])
def test_coefficients_start_at_their_value(value, learned):
    field = neuralosc.Oscillator(2, 3, gamma=value, learned=learned)
    coefficient = torch.as_tensor(field.gamma()).expand(3)
    torch.testing.assert_close(coefficient, torch.as_tensor(value).expand(3), rtol=1e-5, atol=1e-7)
    assert any("gamma" in name for name, _ in field.named_parameters()) == learned


def test_fixed_coefficients_keep_their_full_precision():
    field = neuralosc.Oscillator(2, 3, gamma=2.7, epsilon=4.7).double()
    assert (field.gamma(), field.epsilon()) == (2.7, 4.7)
    assert neuralosc.HamiltonianOscillator(2, 3, alpha=30.65).double().alpha() == 30.65


def test_learned_coefficients_stay_positive_and_get_gradients():
    field = neuralosc.Oscillator(2, 3, gamma=0.1, epsilon=0.1, learned=True)
    with torch.no_grad():
        field.gamma.raw.fill_(-20.0)
    assert (field.gamma() > 0).all()
    rnn = neuralosc.ContinuousRNN(field, "imex_euler", 0.1)
    rnn(torch.randn(2, 4, 2))[0].sum().backward()
    assert (field.gamma.raw.grad != 0).all() and (field.epsilon.raw.grad != 0).all()


def test_initialisation_as_published():
    torch.manual_seed(0)
    field = neuralosc.Oscillator(20, 60).requires_grad_(False)
    bound = 1 / math.sqrt(20 + 2 * 60)
    for weight in (field.V.weight, field.V.bias, field.W, field.R):
        assert 0.9 * bound < float(weight.abs().max()) <= bound
    field = neuralosc.HamiltonianOscillator(20, 400).requires_grad_(False)
    assert 0 <= float(field.w.min()) < 0.02 and 0.98 < float(field.w.max()) <= 1
    assert 0.09 < float(field.c.abs().max()) <= 0.1 and not field.V.bias.any()
    bound = math.sqrt(6 / ((1 + 8**2) * 20))
    assert 0.95 * bound < float(field.V.weight.abs().max()) <= bound
    for field in (neuralosc.Lipschitz(20, 100), neuralosc.Antisymmetric(20, 100)):
        field.requires_grad_(False)
        assert float(field.W.std()) == pytest.approx(0.01, rel=0.05) and not field.V.bias.any()
        assert float(field.V.weight.std()) == pytest.approx(math.sqrt(2 / 120), rel=0.1)
    assert float(neuralosc.Lipschitz(20, 100, init_std=3.0).A.detach().std()) == pytest.approx(0.03, rel=0.05)


def test_a_seed_gives_the_same_weights():
    for card in neuralosc.models():
        torch.manual_seed(3)
        first = card.make(2, 3)
        torch.manual_seed(3)
        second = card.make(2, 3)
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "card", [card for card in neuralosc.models() if card.field and not card.blocks], ids=lambda card: card.name
)
def test_model_cards(card):
    assert neuralosc.model(card.name) is card
    rnn = neuralosc.make(card.name, input_size=2, hidden_size=3)
    assert type(rnn.field).__name__ == card.field
    assert rnn.solver == solvers.get(card.solver)
    assert {"dt", "num_layers", "dropout", "solver", "substeps", "gradient", "control"} <= set(card.defaults)
    again = neuralosc.make(**{("name" if k == "model" else k): v for k, v in rnn.config.items()})
    assert again.config == rnn.config
    assert rnn.config == {"model": card.name, "input_size": 2, "hidden_size": 3, **card.defaults} | {
        "solver": solvers.spec(rnn.solver)
    }
    assert card.title and card.paper and card.equation
