"""Autocast and half precision: what is computed once from parameters keeps its digits."""

import copy

import pytest
import torch

import neuralosc
import solvers
from neuralosc.fields.orthogonal import mod_relu, skew
from solvers.numerics.phi import matrix_phis, phi_action
from tests.measures import relative_error


@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_a_rotation_under_autocast_errs_as_a_loop_of_its_products(backend):
    """Against the recurrence written out, whose products alone are in bfloat16."""
    torch.manual_seed(0)
    rnn, x = neuralosc.ExpRNN(2, 8).eval(), torch.randn(4, 200, 2)
    field, Q = rnn.field, torch.linalg.matrix_exp(skew(rnn.field.C.detach().double())).float()

    def loop():
        h, outputs = torch.zeros(4, 8), []
        for u in field.V(x).unbind(1):
            h = mod_relu(h @ Q + u, field.bias)
            outputs.append(h)
        return torch.stack(outputs, 1).float()

    with torch.no_grad(), solvers.backend(backend):
        exact = loop()
        with torch.autocast("cpu", torch.bfloat16):
            rounded, output = loop(), rnn(x)[0].float()
    for steps in (10, 50, 100, 200):
        assert relative_error(output[:, :steps], exact[:, :steps]) <= 2 * relative_error(
            rounded[:, :steps], exact[:, :steps]
        )


def test_constants_under_autocast_are_those_without():
    for name, settings in {"exprnn": {"margin": 0.3}, "cayley": {}, "lipschitz": {}, "linoss": {}}.items():
        rnn = neuralosc.make(name, input_size=2, hidden_size=6, **settings)
        field = rnn.layers[0].field if name == "linoss" else rnn.field
        expected = field.bind().constants
        with torch.autocast("cpu", torch.bfloat16):
            found = field.bind().constants
            again = field.constants
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(again, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_functions_of_matrices_are_rounded_once(dtype):
    """Against double precision: the error is that of the last rounding, under autocast too."""
    torch.manual_seed(0)
    matrix = (torch.randn(8, 8) / 2).to(dtype)
    states = [torch.randn(3, 1, 8).to(dtype) for _ in range(3)]
    h = torch.tensor([0.3, 1.0, 2.0]).view(3, 1, 1).to(dtype)
    # Half a unit in the last place of the result, and what the products have lost before.
    bound = torch.finfo(dtype).eps + 32 * torch.finfo(torch.float32).eps
    for lowered in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            functions, moved = matrix_phis(matrix, 2), phi_action(matrix, h, states)
        assert {f.dtype for f in functions} == {moved.dtype} == {dtype}
        exact = matrix_phis(matrix.double(), 2)
        for value, reference in zip(functions, exact, strict=True):
            assert float((value.double() - reference).abs().max() / reference.abs().max()) <= bound
        action = phi_action(matrix.double(), h.double(), [x.double() for x in states])
        assert float((moved.double() - action).abs().max() / action.abs().max()) <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("name", ["exprnn", "cayley", "cornn", "lipschitz", "ctrnn"])
def test_a_network_in_half_precision(name, timed, dtype):
    torch.manual_seed(0)
    rnn = neuralosc.make(name, input_size=2, hidden_size=6).eval()
    x, spans = torch.randn(3, 20, 2), 0.5 + torch.rand(3, 20) if timed else None
    for solver in (rnn.solver, "exponential_euler"):
        # About a whole number of steps there may be one more in another precision, and those of Cayley are coarse.
        whole = rnn.with_solver(solver, max_dt=float("inf") if name == "cayley" else None)
        half = copy.deepcopy(whole).to(dtype)
        output = half(x.to(dtype), timespans=spans.to(dtype) if timed else None)[0]
        assert output.dtype == dtype
        assert relative_error(output.float(), whole(x, timespans=spans)[0]) <= 32 * torch.finfo(dtype).eps
