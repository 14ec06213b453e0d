"""The latent ODE against published code, and its parts against their definitions."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import neuralosc
import solvers
from neuralosc import LatentODE
from tests.neuralosc import published_ode_rnn as published
from tests.neuralosc.state_dicts import state_dict

F64 = torch.float64
NAN = float("nan")
FIXED = {"solver": "rk4_38", "units": 5, "gate_units": 4, "encoder_size": 4}


def reversed_signs(pairs):
    """The last map of the encoder's net has the other sign here, where its clock runs backwards."""
    *others, weight, bias = pairs
    return [*others, *((tensor, -value) for tensor, value in (weight, bias))]


def published_model(g):
    """The model with the golden weights, and parameter -> golden gradient."""
    model, heads = neuralosc.from_reference("latent_ode", state_dict("latent_ode", g), solver="rk4_38")
    assert heads is None
    field = model.encoder.field

    parts = [
        ("encoder_z0_transform_z0_", model.transform),
        ("diffeq_solver_ode_func_gradient_net_", model.flow.net),
    ]
    found = [pair for prefix, net in parts for pair in published.network_pairs(net, g, prefix, gradients=True)]
    found += published.unit_pairs(field.gates, g, "encoder_z0_GRU_update_", gradients=True)
    net = published.network_pairs(field.net, g, "encoder_z0_z0_diffeq_solver_ode_func_gradient_net_", gradients=True)
    readout = [(getattr(model.readout, part), g[f"grad_decoder_decoder_0_{part}"]) for part in ("weight", "bias")]
    return model, found + reversed_signs(net) + readout


def with_places(x, mask, times, least, offset):
    """Samples, NaN where missing, with samples of NaN alone where the published Euler steps of the encoder end."""
    rows, clock = [], []
    for i, time in enumerate(times):
        before = published.euler_points(times[i], times[i - 1], least)[1:-1] if i else []
        rows += [torch.full_like(x[:, 0], NAN)] * len(before) + [torch.where(mask[:, i] > 0, x[:, i], NAN)]
        clock += [*reversed(before), time]
    rows, clock = [*rows, torch.full_like(x[:, 0], NAN)], [*clock, times[-1] + offset]
    return torch.stack(rows, 1), torch.tensor(clock, dtype=F64).diff(prepend=torch.tensor(clock[:1], dtype=F64))


@pytest.mark.parametrize("route", ["its own", "the published loop"])
def test_the_published_model(route, golden, relative_error):
    g = golden("latent_ode")
    model, expected = published_model(g)
    x, mask, times = g["x"].requires_grad_(), g["mask"], g["time_steps"].tolist()
    least = (times[-1] - times[0]) / g["minimum_step_divisor"]
    bounds = [times[-1] + g["start_offset"], *reversed(times)]
    run = [(a, b, len(times) - 1 - i) for i, (a, b) in enumerate(itertools.pairwise(bounds))]
    field = model.encoder.field
    states = published.published_run(field, published.current(field, x, mask), run, least, sense=-1)
    samples, spans = with_places(x, mask, times, least, g["start_offset"])
    assert len(spans) > 2 * len(times)
    if route == "its own":
        mean, std = model.encode(samples, spans)
    else:
        mean, raw = model.transform(states[:, -1].flatten(1)).chunk(2, -1)
        std = raw.abs()
    # There z0 belongs to the first of the times asked for.
    at = g["time_steps_to_predict"] - g["time_steps_to_predict"][0]
    z = model.latents(mean + std * g["noise"], at)
    y = model.readout(z)
    names = {"y": y, "z": z, "z0_mean": mean.unsqueeze(0), "z0_std": std.unsqueeze(0)}
    names |= {"latent": states[:, :, 0].transpose(0, 1).unsqueeze(0), "latent_std": states[:, -1, 1].unsqueeze(0)}
    for name, value in names.items():
        assert relative_error(value, g[name]) <= published.TOLERANCE
    if route == "its own":
        assert torch.equal(model(samples, spans, at=at, noise=g["noise"]), y)
    weighed = {
        name: g[f"loss_weight{'' if name == 'y' else f'_{name}'}"] for name in ("y", "z0_mean", "z0_std", "latent")
    }
    loss = sum((names[name] * weight).sum() for name, weight in weighed.items())
    # A value that is missing has no gradient; in the published code the zero in its place has one.
    shown = mask if route == "its own" else torch.ones_like(mask)
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert relative_error(gradient * shown, g["grad_x"] * shown) <= published.TOLERANCE
    published.check(loss, expected, relative_error)


def small(**settings):
    torch.manual_seed(3)
    model = LatentODE(2, 3, **{**FIXED, **settings}).double()
    with torch.no_grad():
        # As drawn its nets hardly move anything.
        for parameter in model.parameters():
            parameter.mul_(4).add_(0.1 * torch.randn_like(parameter))
    return model


def gappy(batch=4, time=6):
    torch.manual_seed(0)
    x, spans = torch.randn(batch, time, 2, dtype=F64), torch.rand(batch, time, dtype=F64) + 0.1
    x[torch.rand(x.shape) < 0.4] = NAN
    return x, spans


def test_the_encoder_goes_from_the_last_sample_to_time_0():
    model, (x, spans) = small(), gappy()
    field, expected = model.encoder.field, []
    for series, gaps in zip(x, spans, strict=True):
        m, d = torch.zeros(2, 1, 4, dtype=F64)
        for i in reversed(range(6)):
            seen = ~series[i].isnan()
            if seen.any():
                shown = torch.cat((series[i].nan_to_num(), seen.double()))
                m, d = field.gates(torch.stack((m, d), 1), field.gates.drive(shown.unsqueeze(0))).unbind(1)
            # In steps no longer than 1.
            steps = math.ceil(gaps[i])
            for _ in range(steps):
                m = m + gaps[i] / steps * field.net(m)
        mean, raw = model.transform(torch.cat((m, d), -1)).chunk(2, -1)
        expected.append(torch.cat((mean, raw.abs()), -1))
    torch.testing.assert_close(torch.cat(model.encode(x, spans), -1), torch.cat(expected), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("solver", ["rk4_38", "native_dopri5"])
def test_each_series_is_as_if_alone(solver):
    model, (x, spans) = small(solver=solver), gappy()
    lengths, noise = [6, 3, 1, 4], torch.randn(2, 4, 3, dtype=F64)
    at = 4 * torch.rand(4, 5, dtype=F64)
    y, bound = model(x, spans, lengths, at, noise=noise), model.elbo(x, spans, lengths, noise=noise)
    for i, n in enumerate(lengths):
        each, rows = slice(i, i + 1), (slice(i, i + 1), slice(n))
        alone = model(x[rows], spans[rows], at=at[each], noise=noise[:, each])
        torch.testing.assert_close(y[:, each], alone, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(bound[each], model.elbo(x[rows], spans[rows], noise=noise[:, each]))
    spoilt = torch.where(torch.arange(6).view(1, -1, 1) < torch.tensor(lengths).view(-1, 1, 1), x, float("inf"))
    torch.testing.assert_close(model.elbo(spoilt, spans, lengths, noise=noise), bound, rtol=0, atol=0)


def test_times_may_come_in_any_order():
    model, z0 = small(solver="native_dopri5"), torch.randn(2, 4, 3, dtype=F64)
    at = torch.tensor([1.5, 0.0, 0.2, 1.5], dtype=F64)
    z = model.latents(z0, at)
    assert z.shape == (2, 4, 4, 3) and torch.equal(z[:, :, 1], z0) and torch.equal(z[:, :, 0], z[:, :, 3])
    torch.testing.assert_close(model.latents(z0, at.expand(4, -1)), z, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(model.latents(z0[1], [0.2])[:, 0], z[1, :, 2], rtol=1e-3, atol=1e-4)
    exact = solvers.integrate(model.flow, z0.reshape(8, 1, 3), [0.0, 0.2, 1.5], method="dopri8", rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(exact.states[:, 1:, 0].view(2, 4, 2, 3), z[:, :, [2, 0]], rtol=1e-3, atol=1e-3)


def test_dt_is_the_unit_of_every_time():
    (x, spans), noise = gappy(), torch.randn(1, 4, 3, dtype=F64)
    model, other = small(max_dt=0.1), small(max_dt=0.2, dt=0.5)
    other.encoder = other.encoder.with_solver("euler", max_dt=2)
    at = torch.tensor([0.3, 2.0], dtype=F64)
    torch.testing.assert_close(model(x, spans, at=at, noise=noise), other(x, 2 * spans, at=2 * at, noise=noise))
    ones = model(x, at=torch.arange(1.0, 7.0, dtype=F64), noise=noise)
    torch.testing.assert_close(model(x, noise=noise), ones)


def test_the_objectives_are_what_they_say():
    model, (x, spans) = small(), gappy()
    noise, lengths = torch.randn(5, 4, 3, dtype=F64), torch.tensor([6, 2, 4, 5])
    mean, std = model.encode(x, spans, lengths)
    z0, y = mean + std * noise, model(x, spans, lengths, noise=noise)
    seen = ~x.isnan() & (torch.arange(6) < lengths.unsqueeze(-1)).unsqueeze(-1)
    terms = torch.where(seen, Normal(y, torch.full_like(y, 0.3)).log_prob(x.nan_to_num()), 0.0).sum((-2, -1))
    prior, posterior = Normal(torch.zeros_like(mean), torch.ones_like(mean)), Normal(mean, std)
    divergence = 0.7 * kl_divergence(posterior, prior).sum(-1)
    weights = terms + 0.7 * (prior.log_prob(z0) - posterior.log_prob(z0)).sum(-1)
    expected = {
        "published": (terms - divergence).logsumexp(0) - math.log(5),
        "elbo": terms.mean(0) - divergence,
        "importance": weights.logsumexp(0) - math.log(5),
    }
    chosen = {"noise_std": 0.3, "kl_weight": 0.7, "noise": noise}
    for objective, value in expected.items():
        found = model.elbo(x, spans, lengths, **chosen, objective=objective)
        torch.testing.assert_close(found, value, rtol=1e-11, atol=1e-11)
    one = {"noise_std": 0.3, "noise": noise[:1]}
    alike = [model.elbo(x, spans, **one, objective=objective) for objective in ("published", "elbo")]
    torch.testing.assert_close(*alike, rtol=1e-12, atol=1e-12)
    targets, at = torch.where(seen, x, NAN), spans.cumsum(-1)
    found = model.elbo(x, spans, lengths, targets, at, **chosen)
    torch.testing.assert_close(found, expected["published"], rtol=1e-11, atol=1e-11)


def test_which_of_them_bound_the_likelihood():
    """Where z stands still all is Gaussian: the likelihood of a series is known, and what z0 is given the series."""
    model, (x, spans) = small(), gappy(batch=1)
    x, sigma = torch.where(x.isnan(), 0.5, x), 0.8
    rows, rest = model.readout.weight.detach().repeat(6, 1), x.flatten() - model.readout.bias.detach().repeat(6)
    covariance = rows @ rows.T + sigma**2 * torch.eye(12, dtype=F64)
    exact = torch.distributions.MultivariateNormal(torch.zeros_like(rest), covariance).log_prob(rest)
    precision = torch.eye(3, dtype=F64) + rows.T @ rows / sigma**2
    with torch.no_grad():
        for parameter in (*model.flow.parameters(), model.transform[2].weight):
            parameter.zero_()
        model.transform[2].bias[:3] = torch.linalg.solve(precision, rows.T @ rest) / sigma**2
        model.transform[2].bias[3:] = precision.diagonal().rsqrt()
        noise = torch.randn(20_000, 1, 3, dtype=F64)
        published, elbo, importance = (
            float(model.elbo(x, spans, noise_std=sigma, noise=noise, objective=objective))
            for objective in ("published", "elbo", "importance")
        )
    assert elbo < float(exact) - 0.03 and importance == pytest.approx(float(exact), abs=0.03)
    assert published > float(exact) + 0.03


def test_gradients_against_finite_differences():
    """Along some directions in samples, clocks, times and parameters, one at a time."""
    model, (x, spans) = small(max_dt=0.5), gappy(batch=2, time=3)
    noise, at = torch.randn(2, 2, 3, dtype=F64), torch.tensor([[0.9, 0.31], [1.3, 0.2]], dtype=F64)
    names, values = zip(*model.named_parameters(), strict=True)

    def run(x, spans, at, *parameters):
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), parameters, strict=True):
                parameter.copy_(value)
        return evaluated(x, spans, at)

    def evaluated(x, spans, at):
        targets = x[:, :2] + 1
        return model.elbo(x, spans, None, targets, at, noise_std=0.5, noise=noise, objective="importance").sum()

    inputs = [value.detach().clone() for value in (x.nan_to_num(), spans, at, *values)]
    leaves = [value.clone().requires_grad_() for value in inputs[:3]]
    gradients = torch.autograd.grad(evaluated(*leaves), [*leaves, *model.parameters()])
    for i, (name, gradient) in enumerate(zip(("x", "spans", "at", *names), gradients, strict=True)):
        direction = torch.randn_like(inputs[i])
        ends = []
        for step in (1e-5, -1e-5):
            moved = list(inputs)
            moved[i] = inputs[i] + step * direction
            ends.append(run(*moved).detach())
        slope, found = float(ends[0] - ends[1]) / 2e-5, float((gradient * direction).sum())
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-6), name


def test_nothing_to_see():
    model = LatentODE(2, 3, **FIXED)
    x = torch.zeros(2, 4, 2)
    mean, std = model.encode(x, lengths=[0, 4])
    assert torch.isfinite(mean).all() and (std > 0).all()
    assert torch.isfinite(model.elbo(x, lengths=[0, 4])).all()
    empty = model(x[:0], at=[0.5, 1.0])
    assert empty.shape == (1, 0, 2, 2) and model(x, at=torch.empty(0)).shape == (1, 2, 0, 2)


def test_it_learns_and_is_copied():
    settings = {"solver": "rk4", "encoder_size": 8, "units": 16, "gate_units": 16}
    torch.manual_seed(1)
    model, spans = LatentODE(2, 4, **settings), torch.rand(16, 6) + 0.2
    x = torch.stack((torch.sin(spans.cumsum(1)), torch.cos(spans.cumsum(1))), -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        loss = -model.elbo(x, spans, noise_std=0.2, kl_weight=0.1).mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    other, noise = LatentODE(2, 4, **settings), torch.randn(1, 16, 4)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        y = model(x, spans, noise=noise)
        assert float((y[0] - x).square().mean() / x.var()) < 0.2
        assert torch.equal(other(x, spans, noise=noise), y)


def test_what_is_refused(one_line):
    model, (x, spans) = small(), gappy()
    z0 = torch.zeros(4, 3, dtype=F64)
    cases = [
        (lambda: LatentODE(2, 0), ["latent_size is 0"]),
        (lambda: LatentODE(2, 3, dt=-1), ["dt is -1", "positive"]),
        (lambda: LatentODE(2, 3, solver="stormer_verlet"), ["stormer_verlet", "Flow"]),
        (lambda: LatentODE(2, 3, max_dt="auto"), ["max_dt is 'auto'"]),
        (lambda: model(x[..., :1], spans), ["x has shape", "(batch, time, 2)"]),
        (lambda: model(x, -spans), ["timespans", "at least 0"]),
        (lambda: model(x.nan_to_num(float("inf")), spans), ["x is inf"]),
        (lambda: model(x, spans, draws=0), ["draws is 0", "positive integer"]),
        (lambda: model(x, spans, noise=z0), ["noise is (4, 3)", "(draws, 4, 3)"]),
        (lambda: model(x, spans, at=[-1.0]), ["at holds -1"]),
        (lambda: model.latents(torch.zeros(4, 2), [1.0]), ["z0 is (4, 2)", "3)"]),
        (lambda: model.elbo(x, spans, noise_std=0.0), ["noise_std is 0.0", "positive"]),
        (lambda: model.elbo(x, spans, kl_weight=-1), ["kl_weight is -1", "at least 0"]),
        (lambda: model.elbo(x, spans, objective="iwae"), ["objective is 'iwae'", "importance"]),
        (lambda: model.elbo(x, spans, at=[1.0]), ["at was given without targets"]),
        (lambda: model.elbo(x, spans, targets=x), ["targets was given without at"]),
        (lambda: model.elbo(x, spans, targets=x, at=[1.0]), ["targets are", "(4, 1, 2)"]),
        (lambda: model.elbo(x, spans, targets=x[:, :1] / 0, at=[1.0]), ["targets have infinite entries"]),
    ]
    for act, words in cases:
        with pytest.raises(solvers.InputError) as error:
            act()
        one_line(error, *words)
