"""bfloat16, float16, autocast: the compiled loop computes in float32, products in bfloat16 where there are any."""

import pytest
import torch
from sklearn.datasets import load_digits

import neuralosc
import solvers
from solvers.compiled.cpp import gemm

HALF = [torch.bfloat16, torch.float16]
MODELS = ["cornn", "lem", "lipschitz", "hamiltonian", "antisymmetric"]


def gradients(rnn, x, backend, **options):
    with solvers.backend(backend):
        solution = rnn.solve(x, **options)
        loss = solution.output.float().sin().sum() + solution.state.float().square().sum()
        grads = torch.autograd.grad(loss, [x, *rnn.parameters()])
    return solution.trajectories[0].record.path, [solution.output, solution.state, *grads]


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
    for value, expected in zip(fast, exact, strict=True):
        assert relative_error(value.float(), expected) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", [*MODELS, "unicornn"])
def test_autocast_takes_the_compiled_loop(name, dtype, relative_error):
    rnn = neuralosc.make(name, input_size=3, hidden_size=16)
    x = torch.rand(4, 70, 3, requires_grad=True)
    _, exact = gradients(rnn, x, "plain")
    with torch.autocast("cpu", dtype=dtype):
        path, fast = gradients(rnn, x, "auto")
    assert path == "compiled" and all(t.dtype == torch.float32 for t in fast)
    for value, expected in zip(fast, exact, strict=True):
        assert relative_error(value, expected) < 4 * torch.finfo(dtype).eps


def test_with_clocks_lengths_and_checkpoint(relative_error):
    rnn = neuralosc.LEM(2, 8, gradient="checkpoint", substeps=2).bfloat16()
    x = torch.rand(3, 40, 2).bfloat16().requires_grad_()
    spans = torch.rand(3, 40).bfloat16()
    path, fast = gradients(rnn, x, "auto", timespans=spans, lengths=[40, 7, 1])
    assert path == "compiled"
    wide = x.detach().float().requires_grad_()
    _, exact = gradients(rnn.float(), wide, "plain", timespans=spans.float(), lengths=[40, 7, 1])
    for value, expected in zip(fast, exact, strict=True):
        assert relative_error(value.float(), expected) < 4e-2


def test_the_gradient_of_a_gradient_is_refused(one_line):
    rnn = neuralosc.CoRNN(1, 4).bfloat16()
    x = torch.rand(2, 70, 1).bfloat16().requires_grad_()
    (slope,) = torch.autograd.grad(rnn(x)[0].sum(), x)
    assert slope.dtype == torch.bfloat16
    with pytest.raises(neuralosc.InputError) as error:
        torch.autograd.grad(rnn(x)[0].sum(), x, create_graph=True)
    one_line(error, "bfloat16", "float32", "'plain'")


@pytest.mark.skipif(not gemm.has_half(), reason="the processor has no products of bfloat16")
@pytest.mark.parametrize(("features", "hidden"), [(1, 33), (9, 20), (12, 64)])
def test_products_round_their_operands_and_nothing_else(features, hidden, relative_error):
    # With operands that bfloat16 holds exactly, nothing is lost.
    rnn = neuralosc.CoRNN(features, hidden, dt=0.5, coupled=False)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.copy_(parameter.bfloat16().float())
    x = torch.rand(5, 1, features).bfloat16().float().requires_grad_()
    _, exact = gradients(rnn, x, "plain")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        path, fast = gradients(rnn, x, "compiled")
    assert path == "compiled"
    assert relative_error(fast[0], exact[0]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_training_in_bfloat16_learns_as_well(seed):
    # Digits by their rows and a rate that falls to zero: by pixels, seeds alone differ by more than what is looked for.
    digits = load_digits()
    x = torch.from_numpy(digits.data).float().div(16).reshape(-1, 8, 8)
    y = torch.from_numpy(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]

    def trained(enabled):
        torch.manual_seed(seed)
        rnn = neuralosc.CoRNN(8, 128, dt=0.2, gamma=1.0, epsilon=2.0)
        readout = torch.nn.Linear(128, 10)
        optimizer = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)

        def answers(rows):
            with solvers.backend("compiled"), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                solution = rnn.solve(x[rows])
                assert solution.trajectories[0].record.path == "compiled"
                return readout(solution.output[:, -1]).float()

        for _ in range(30):
            for rows in train[torch.randperm(len(train))].split(100):
                loss = torch.nn.functional.cross_entropy(answers(rows), y[rows])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(rnn.parameters(), 1.0)
                optimizer.step()
            schedule.step()
        with torch.no_grad():
            return float((answers(test).argmax(1) == y[test]).float().mean())

    full, half = trained(False), trained(True)
    assert full > 0.8
    # 397 digits: a hundredth is four of them.
    assert abs(half - full) < 0.02
