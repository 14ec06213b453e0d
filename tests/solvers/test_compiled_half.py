"""bfloat16 and float16: the compiled loop computes in float32 and rounds what it gives."""

import pytest
import torch

import neuralosc
import solvers

HALF = [torch.bfloat16, torch.float16]
MODELS = ["cornn", "lem", "lipschitz", "hamiltonian", "antisymmetric"]


def gradients(rnn, x, backend, **given):
    with solvers.backend(backend):
        solution = rnn.solve(x, **given)
        loss = solution.output.float().sin().sum() + solution.state.float().square().sum()
        found = torch.autograd.grad(loss, [x, *rnn.parameters()])
    return solution.trajectories[0].record.path, [solution.output, solution.state, *found]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_states_of_half_precision_are_those_of_float32_rounded(name, dtype, relative_error):
    rnn = neuralosc.make(name, input_size=3, hidden_size=16).to(dtype)
    x = torch.rand(4, 70, 3).to(dtype).requires_grad_()
    path, fast = gradients(rnn, x, "auto")
    assert path == "compiled" and all(t.dtype == dtype for t in fast)
    wide = x.detach().float().requires_grad_()
    _, exact = gradients(rnn.float(), wide, "plain")
    # Rounding the gradient of the output back is all that is lost.
    for found, expected in zip(fast, exact, strict=True):
        assert relative_error(found.float(), expected) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", [*MODELS, "unicornn"])
def test_autocast_takes_the_compiled_loop(name, dtype, relative_error):
    rnn = neuralosc.make(name, input_size=3, hidden_size=16)
    x = torch.rand(4, 70, 3, requires_grad=True)
    _, exact = gradients(rnn, x, "plain")
    with torch.autocast("cpu", dtype=dtype):
        path, fast = gradients(rnn, x, "auto")
    assert path == "compiled" and all(t.dtype == torch.float32 for t in fast)
    for found, expected in zip(fast, exact, strict=True):
        assert relative_error(found, expected) < 1e-2


def test_with_clocks_lengths_and_checkpoint(relative_error):
    rnn = neuralosc.LEM(2, 8, gradient="checkpoint", substeps=2).bfloat16()
    x = torch.rand(3, 40, 2).bfloat16().requires_grad_()
    spans = torch.rand(3, 40).bfloat16()
    path, fast = gradients(rnn, x, "auto", timespans=spans, lengths=[40, 7, 1])
    assert path == "compiled"
    wide = x.detach().float().requires_grad_()
    _, exact = gradients(rnn.float(), wide, "plain", timespans=spans.float(), lengths=[40, 7, 1])
    for found, expected in zip(fast, exact, strict=True):
        assert relative_error(found.float(), expected) < 4e-2


def test_the_gradient_of_a_gradient_is_refused(one_line):
    rnn = neuralosc.CoRNN(1, 4).bfloat16()
    x = torch.rand(2, 70, 1).bfloat16().requires_grad_()
    (slope,) = torch.autograd.grad(rnn(x)[0].sum(), x)
    assert slope.dtype == torch.bfloat16
    with pytest.raises(neuralosc.InputError) as error:
        torch.autograd.grad(rnn(x)[0].sum(), x, create_graph=True)
    one_line(error, "bfloat16", "float32", "'plain'")
