"""The layer inside the rest of torch: modes, transforms, mixed precision, compilation, threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.protocol import structure
from tests.fields import fitting

NAMES = [card.name for card in neuralosc.models() if card.field and not card.blocks]


def network(name="cornn", **settings):
    # Noise, where a network has some, would be another in each call; it has none in evaluation mode.
    seeded = {"solver": {"name": "euler_maruyama", "noise_seed": 1}} if name == "noisy" else {}
    return neuralosc.make(name, input_size=2, hidden_size=4, **{"dt": 0.1, **seeded, **settings}).train(name != "noisy")


def test_without_gradients_and_in_inference_mode(field_name, make_field):
    field = make_field(field_name).float()
    rnn = ContinuousRNN(field, fitting(field, "rk4"), 0.1)
    x = torch.randn(3, 5, 2)
    adjoint = "adjoint" if "differential" in structure(field) else "checkpoint"
    for solver, gradient in (("rk4", "backprop"), ("dopri5", "backprop"), ("dopri5", adjoint)):
        swapped = rnn.with_solver(fitting(field, solver), gradient=gradient)
        expected = swapped(x)[0]
        assert expected.requires_grad == any(p.requires_grad for p in rnn.parameters())
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                output, state = swapped(x)
            # Without gradients torch may compute the same in another order.
            torch.testing.assert_close(output, expected.detach(), rtol=1e-5, atol=1e-6)
            assert not output.requires_grad and not state.requires_grad


def test_frozen_parameters_still_pass_gradients_to_the_input(field_name, make_field):
    field = make_field(field_name)
    rnn = ContinuousRNN(field, fitting(field, "dopri5"), 0.1).requires_grad_(False)
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    for gradient in ("backprop", "adjoint" if "differential" in structure(field) else "checkpoint"):
        (gradient_of_x,) = torch.autograd.grad(rnn.with_solver(rnn.solver, gradient=gradient)(x)[0].sum(), x)
        assert gradient_of_x.any() and torch.isfinite(gradient_of_x).all()


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    rnn, x = network(name), torch.randn(3, 5, 2)
    for solver in solvers.compatible(rnn.field):
        # Linear solves and matrix functions have no bfloat16 in torch.
        if solvers.get(solver).implicit or solvers.get(solver).family == "exponential" or solver == "native_kencarp4":
            continue
        adaptive = solvers.get(solver).adaptive
        # Rounding to bfloat16 is noise to an error estimate, so the tolerance is one it can meet.
        chosen = solvers.get(solver, rtol=1e-2, atol=1e-2) if adaptive else solver
        rounded = rnn.with_solver(chosen)
        expected = rounded(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = rounded(x)
        assert torch.isfinite(output).all()
        output.float().sum().backward()
        # bfloat16 has three digits.
        assert float((output - expected).detach().abs().max()) < 0.05 * max(1.0, float(expected.detach().abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_parameters(name):
    rnn = network(name).bfloat16()
    output, _ = rnn(torch.randn(3, 5, 2).bfloat16(), timespans=torch.rand(3, 5), lengths=[5, 1, 2])
    assert output.dtype == torch.bfloat16 and torch.isfinite(output).all()


@pytest.mark.parametrize("solver", ["semi_implicit_euler", "rk4"])
def test_function_transforms(solver):
    rnn, x = network().with_solver(solver), torch.randn(3, 5, 2)
    parameters = {key: value.detach() for key, value in rnn.named_parameters()}

    def loss(values, x):
        return torch.func.functional_call(rnn, values, (x,))[0].square().sum()

    gradients = torch.func.grad(loss)(parameters, x)
    rnn(x)[0].square().sum().backward()
    for key, value in rnn.named_parameters():
        torch.testing.assert_close(gradients[key], value.grad)
    assert torch.func.jacrev(lambda x: rnn(x)[0])(x).shape == (3, 5, 4, 3, 5, 2)
    _, tangent = torch.func.jvp(lambda x: rnn(x)[0], (x,), (torch.ones_like(x),))
    assert tangent.shape == (3, 5, 4)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_networks_and_samples(name):
    """An ensemble in one call, and gradients per sample."""
    networks, x = [network(name) for _ in range(3)], torch.randn(3, 5, 2)
    stacked = {key: torch.stack([n.state_dict()[key] for n in networks]) for key in networks[0].state_dict()}
    output = torch.vmap(lambda p: torch.func.functional_call(networks[0], p, (x,))[0])(stacked)
    torch.testing.assert_close(output, torch.stack([n(x)[0] for n in networks]).detach())
    parameters = {key: value.detach() for key, value in networks[0].named_parameters()}

    def loss(values, x):
        return torch.func.functional_call(networks[0], values, (x.unsqueeze(0),))[0].square().sum()

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        alone = torch.func.grad(loss)(parameters, x[i])
        for key, value in alone.items():
            torch.testing.assert_close(per_sample[key][i], value)


# Dynamo looks at .grad of every tensor it wraps, and runs the driver of torchdiffeq uncompiled.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore:Dynamo does not know:UserWarning")
@pytest.mark.parametrize("solver", ["semi_implicit_euler", "rk4", pytest.param("dopri5", marks=pytest.mark.slow)])
def test_torch_compile_gives_the_same_numbers(solver):
    rnn, x = network().with_solver(solver, max_dt=float("inf")), torch.randn(3, 5, 2)
    compiled = torch.compile(rnn, backend="eager")
    torch.testing.assert_close(compiled(x)[0], rnn(x)[0])
    spans = torch.rand(3, 5)
    torch.testing.assert_close(compiled(x, timespans=spans)[0], rnn(x, timespans=spans)[0])
    torch._dynamo.reset()


def test_two_threads_may_use_one_network(make_field):
    for field_name in ("oscillator_learned", "lipschitz", "hamiltonian_energy"):
        rnn = ContinuousRNN(make_field(field_name), "rk4", 0.1)
        xs = [torch.randn(3, 20, 2, dtype=torch.float64) for _ in range(8)]
        expected = [rnn(x)[0] for x in xs]
        with ThreadPoolExecutor(2) as pool:
            outputs = list(pool.map(lambda x, rnn=rnn: rnn(x)[0], xs))
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_results_repeat_bit_for_bit():
    for name in NAMES:
        rnn, x = network(name), torch.randn(3, 5, 2)
        assert torch.equal(rnn(x)[0], rnn(x)[0])


def test_inputs_are_left_alone():
    rnn = network()
    x, state, spans = torch.randn(3, 5, 2), torch.randn(3, 2, 4), torch.rand(3, 5)
    before = [t.clone() for t in (x, state, spans)]
    rnn(x, state, spans, torch.tensor([1, 5, 3]))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, state, spans), strict=True))


def test_non_contiguous_and_expanded_inputs():
    rnn, x = network(), torch.randn(5, 3, 2)
    torch.testing.assert_close(rnn(x.transpose(0, 1))[0], rnn(x.transpose(0, 1).contiguous())[0])
    assert rnn(torch.randn(1, 5, 2).expand(3, 5, 2))[0].shape == (3, 5, 4)
