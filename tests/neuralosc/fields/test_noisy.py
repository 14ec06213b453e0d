"""The noisy RNN: its published step with and without noise, and what is left of the noise in evaluation mode."""

import math

import pytest
import torch

import neuralosc
import solvers

F64 = torch.float64
SETTINGS = ("eps", "beta", "gamma_A", "gamma_W", "alpha")


def published(g):
    """The golden weights under their published keys."""
    keys = ["B", "C", "d", "E.weight", "E.bias", "D.weight", "D.bias"]
    return {key: g[key.replace(".", "_")] for key in keys}


@pytest.mark.parametrize(
    "mode", [{"solver": "euler"}, {"solver": "euler_maruyama"}, {"add_noise": 0.1, "mult_noise": 0.2}]
)
def test_the_golden_network(mode, golden, relative_error):
    """Without noise, whether there is none, no solver takes it or the network is evaluated: the published numbers."""
    g = golden("noisy_base")
    rnn, readout = neuralosc.from_reference(
        "noisy", published(g), **{key: g[key] for key in SETTINGS}, learned_step=False, **mode
    )
    rnn.eval()
    logits = readout(rnn(g["x"].transpose(0, 1))[1][:, 0])
    assert relative_error(logits, g["logits"]) <= 1e-9
    field = rnn.field.field
    ours = {"B": field.A, "C": field.W, "E_weight": field.V.weight, "E_bias": field.V.bias}
    ours |= {"D_weight": readout.weight, "D_bias": readout.bias}
    gradients = torch.autograd.grad((logits * g["loss_weight"]).sum(), list(ours.values()))
    for key, gradient in zip(ours, gradients, strict=True):
        assert relative_error(gradient, g[f"grad_{key}"]) <= 1e-9, key


def matrix(m, beta, gamma):
    return beta * (m - m.T) + (1 - beta) * (m + m.T) - gamma * torch.eye(len(m), dtype=m.dtype)


def published_step(g, d, h, x, mu=0.0, sigma=0.0):
    """The published step with its noise, as the authors draw it."""
    a, w = matrix(g["B"], g["beta"], g["gamma_A"]), matrix(g["C"], g["beta"], g["gamma_W"])
    slope = g["alpha"] * h @ a + torch.tanh(h @ w + x @ g["E_weight"].T + g["E_bias"])
    return h + d * (mu * torch.rand_like(h) + 1 - mu) * slope + sigma * torch.randn_like(h)


def test_learned_steps_are_a_time_scale(golden, relative_error):
    g = golden("noisy_base")
    d = g["eps"] * torch.linspace(0.5, 3.0, 8, dtype=F64)
    rnn, _ = neuralosc.from_reference("noisy", published(g) | {"d": d}, **{key: g[key] for key in SETTINGS})
    published_d = d.clone().requires_grad_()
    h = torch.zeros(3, 8, dtype=F64)
    for x in g["x"]:
        h = published_step(g, published_d, h, x)
    end = rnn.eval()(g["x"].transpose(0, 1))[1]
    assert relative_error(end[:, 0], h) <= 1e-12
    weight = torch.randn_like(h)
    (expected,) = torch.autograd.grad((h * weight).sum(), published_d)
    raw = rnn.field.field.scale.raw
    (gradient,) = torch.autograd.grad((end[:, 0] * weight).sum(), raw)
    # d = eps softplus(raw)
    assert relative_error(gradient / (g["eps"] * torch.sigmoid(raw)), expected) <= 1e-9
    with pytest.raises(neuralosc.InputError, match="above 0"):
        neuralosc.from_reference("noisy", published(g) | {"d": -d}, **{key: g[key] for key in SETTINGS})


def test_the_noise_of_a_step_has_the_variance_of_the_published_one(golden):
    """10^5 draws: variances agree within their own sampling error, about 0.5 %, and means but for 1 - mu/2."""
    g, mu, sigma = golden("noisy_base"), 0.9, 0.01
    settings = {key: g[key] for key in SETTINGS} | {"eps": 0.3}
    state = published(g) | {"d": torch.full((8,), 0.3, dtype=F64)}
    rnn, _ = neuralosc.from_reference("noisy", state, **settings, add_noise=sigma, mult_noise=mu)
    count, x = 100_000, g["x"][0, :1]
    start = torch.linspace(-1, 1, 8, dtype=F64)
    with torch.no_grad():
        ends = rnn.train()(x.expand(count, 1, -1), start.expand(count, 1, -1).clone())[1][:, 0]
        of_published = published_step(g, 0.3, start.expand(count, -1), x, mu, sigma)
        still = published_step(g, 0.3, start, x)[0]
    ratio = ends.var(0) / of_published.var(0)
    assert float((ratio - 1).abs().max()) < 0.03
    noise = of_published.std(0) / math.sqrt(count)
    assert float(((ends.mean(0) - still) / noise).abs().max()) < 5
    assert float(((of_published.mean(0) - start - (1 - mu / 2) * (still - start)) / noise).abs().max()) < 5
    # The additive noise alone would not do, nor the multiplicative: both are seen.
    assert float(ends.var(0).min()) > 0.9 * sigma**2 and float(ends.var(0).max()) > 2 * sigma**2


@pytest.mark.parametrize("solver", ["euler_maruyama", "milstein", "stochastic_heun"])
def test_noise_in_training_alone(solver):
    solver = {"name": solver, "noise_seed": 3}
    rnn = neuralosc.NoisyRNN(2, 5, dt=0.1, additive=0.4, multiplicative=0.3, solver=solver).double()
    x = torch.randn(3, 6, 2, dtype=F64)
    noisy, still = rnn.train()(x)[0], rnn.with_solver("rk4", substeps=4)(x)[0]
    assert float((noisy - still).detach().abs().min()) > 1e-5
    evaluated = rnn.eval()(x)[0]
    twin = {"euler_maruyama": "euler", "milstein": "euler", "stochastic_heun": "heun"}[solver["name"]]
    torch.testing.assert_close(evaluated, rnn.with_solver(twin)(x)[0], rtol=1e-12, atol=1e-14)
    for output in (noisy, evaluated):
        gradients = torch.autograd.grad(output.square().sum(), list(rnn.field.field.parameters()))
        assert all(bool(torch.isfinite(g).all()) and bool(g.any()) for g in gradients)


def test_two_motions_or_one():
    """One motion adds the noises up, two their squares; without additive noise the two laws are one."""
    drift = neuralosc.Residual(2, 4).double()
    state, u = torch.randn(3, 1, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    a = torch.tensor([0.0, 0.1, 0.0, 2.0], dtype=F64)
    one, two = (neuralosc.Noisy(drift, a, 0.5, independent=way).double() for way in (False, True))
    torch.testing.assert_close(one.diffusion(0.0, state, u), a + 0.5 * state)
    torch.testing.assert_close(two.diffusion(0.0, state, u).abs(), (a**2 + 0.25 * state**2).sqrt())
    flat = torch.zeros(1, 1, 4, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(two.diffusion(0.0, flat, u[:1]).sum(), flat)
    torch.testing.assert_close(slope.flatten(), torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=F64))


def test_an_average_over_many_paths_of_short_steps_is_that_of_the_equation():
    """A linear drift dh = -h with additive noise: the variance of the exact solution, (1 - e^{-2T}) a^2 / 2."""

    class Decay(neuralosc.VectorField):
        def forward(self, t, state, u):
            return -state

    field = neuralosc.Noisy(Decay(1, 1), 0.5, independent=True, training_only=True)
    x = torch.zeros(20_000, 10, 1)
    with torch.no_grad():
        end = neuralosc.ContinuousRNN(field, {"name": "euler_maruyama", "noise_seed": 1}, 0.1, substeps=4)(x)[1]
    expected = (1 - math.exp(-2.0)) * 0.5**2 / 2
    assert float(end.var()) == pytest.approx(expected, rel=0.05)


def test_the_card_and_what_it_makes():
    card = neuralosc.model("noisy")
    assert (card.field, card.solver) == ("Noisy", "euler_maruyama")
    rnn = neuralosc.make("noisy", input_size=2, hidden_size=3, num_layers=2, gamma_W=0.3)
    drift = rnn.layer(1).field
    assert (drift.gamma, drift.gamma_W, drift.beta) == (0.01, 0.3, 0.8)
    torch.testing.assert_close(drift.bind().time_scale(), torch.ones(3))
    assert {"noise.additive"} <= set(rnn.layer(0).prepare()) and solvers.get("euler_maruyama") == rnn.solver
