"""Programs of torch.export: what they hold, what they can take, and what is refused."""

import pytest
import torch
from torch.export import Dim

import neuralosc
import solvers
from solvers.errors import PairingError
from solvers.phi import MOST, matrix_phis

BATCH = Dim("batch")


def network(name="cornn", **settings):
    return neuralosc.make(name, input_size=2, hidden_size=4, **settings).eval()


def exported(rnn, x, **given):
    """The program of a call, for batches of any size."""
    return torch.export.export(
        rnn, (x,), given, dynamic_shapes={"x": {0: BATCH}, **{name: {0: BATCH} for name in given}}
    )


@pytest.mark.parametrize("solver", ["rk4", "imex_euler", "stormer_verlet"])
def test_a_program_takes_other_batches_and_clocks(solver):
    rnn = network().with_solver(solver)
    x, spans = torch.randn(3, 4, 2), torch.rand(3, 4)
    with torch.no_grad():
        uniform, irregular = exported(rnn, x), exported(rnn, x, timespans=spans)
    x, spans = torch.randn(5, 4, 2), torch.rand(5, 4)
    torch.testing.assert_close(uniform.module()(x), rnn(x))
    torch.testing.assert_close(irregular.module()(x, timespans=spans), rnn(x, timespans=spans))


@pytest.mark.slow
def test_every_solver_with_fixed_steps(one_line):
    for name in ("cornn", "lipschitz", "unicornn"):
        for solver in solvers.compatible(network(name).field):
            rnn, x = network(name).with_solver(solver), torch.randn(3, 2, 2)
            if rnn.solver.adaptive or rnn.solver.family == "implicit":
                with pytest.raises(PairingError) as error:
                    exported(rnn, x)
                one_line(error, solver, "exported", "rk4")
            else:
                torch.testing.assert_close(exported(rnn, x).module()(2 * x), rnn(2 * x))


@pytest.mark.parametrize("gradient", list(solvers.GRADIENTS))
def test_a_program_does_not_depend_on_the_gradient(gradient):
    rnn, x = network(coupled=False).with_solver("stormer_verlet", gradient=gradient), torch.randn(3, 4, 2)
    with torch.no_grad():
        torch.testing.assert_close(exported(rnn, x).module()(2 * x), rnn(2 * x))


def test_a_program_can_be_trained():
    rnn, x = network(), torch.randn(3, 4, 2)
    program = exported(rnn, x).module()
    program(x)[0].square().sum().backward()
    rnn(x)[0].square().sum().backward()
    found = dict(program.named_parameters())
    assert found.keys() == dict(rnn.named_parameters()).keys()
    for name, parameter in rnn.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)


def test_lengths_state_stacks_and_missing_values():
    rnn = network(num_layers=2, missing="hold")
    x, state, lengths = torch.randn(3, 4, 2), torch.randn(2, 3, 2, 4), torch.tensor([1, 4, 2])
    shapes = {"x": {0: BATCH}, "state": {1: BATCH}, "lengths": {0: BATCH}}
    program = torch.export.export(rnn, (x, state), {"lengths": lengths}, dynamic_shapes=shapes).module()
    x, state, lengths = torch.randn(5, 4, 2), torch.randn(2, 5, 2, 4), torch.tensor([1, 4, 2, 3, 4])
    x[0, 0, 0] = torch.nan
    torch.testing.assert_close(program(x, state, lengths=lengths), rnn(x, state, lengths=lengths))


@pytest.mark.parametrize("solver", ["dopri5", "native_dopri5", "implicit_midpoint"])
def test_steps_that_depend_on_values_are_refused(solver, one_line):
    rnn, x = network().with_solver(solver), torch.randn(3, 4, 2)
    with pytest.raises(PairingError) as error:
        exported(rnn, x)
    one_line(error, solver, "values", "exported program", "rk4")
    # The refusal leaves nothing behind.
    assert torch.isfinite(rnn(x)[0]).all()


def test_noise_is_refused_and_left_out_by_a_solver_without(one_line):
    field = neuralosc.Noisy(neuralosc.Lipschitz(2, 4), additive=0.1)
    rnn, x = neuralosc.ContinuousRNN(field, "euler_maruyama", 0.1), torch.randn(3, 4, 2)
    with pytest.raises(PairingError) as error:
        exported(rnn, x)
    one_line(error, "euler_maruyama", "noise", "'euler'")
    silent = rnn.with_solver("euler")
    torch.testing.assert_close(exported(silent, x).module()(x), silent(x))


def test_an_export_leaves_no_trace_in_what_an_operator_keeps():
    """A user's operator may live longer than one solve: no stand-in of an export may be found in its memo later."""

    class Kept(neuralosc.Semilinear):
        def __init__(self):
            super().__init__(2, 2, 1)
            self.kept = solvers.DenseOperator(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))

        def operator(self, terms=None):
            return self.kept

        def forward(self, t, state, u):
            return self.kept.apply(state) + u.unsqueeze(-2)

    rnn, x = neuralosc.ContinuousRNN(Kept(), "exponential_euler", 0.1), torch.randn(3, 4, 2)
    program = exported(rnn, x)
    expected = rnn(x)
    torch.testing.assert_close(program.module()(x), expected)


def test_matrix_functions_where_the_norm_cannot_be_looked_at():
    matrices = torch.randn(3, 4, 4, dtype=torch.float64) * torch.tensor([0.01, 1.0, 30.0]).view(3, 1, 1)
    expected = matrix_phis(matrices, 2)
    found = torch.vmap(lambda m: tuple(matrix_phis(m, 2)))(matrices)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    too_large = torch.vmap(lambda m: matrix_phis(m, 1)[0])(matrices[:1] * 2.0 ** (MOST + 10))
    assert too_large.isnan().all()
