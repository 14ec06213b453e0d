"""Programs of torch.export: what they hold, what they can take, and what is refused."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import neuralosc
import solvers
from solvers.errors import PairingError
from solvers.numerics.phi import MOST, matrix_phis

BATCH = Dim("batch")


def network(name="cornn", **settings):
    return neuralosc.make(name, input_size=2, hidden_size=4, **settings).eval()


def exported(rnn, x, **kwargs):
    """The program of a call, for batches of any size."""
    return torch.export.export(
        rnn, (x,), kwargs, dynamic_shapes={"x": {0: BATCH}, **{name: {0: BATCH} for name in kwargs}}
    )


@pytest.mark.parametrize("solver", ["rk4", "imex_euler", "stormer_verlet"])
def test_a_program_takes_other_batches_and_clocks(solver):
    rnn = network(max_dt=None).with_solver(solver)
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
    parameters = dict(program.named_parameters())
    assert parameters.keys() == dict(rnn.named_parameters()).keys()
    for name, parameter in rnn.named_parameters():
        torch.testing.assert_close(parameters[name].grad, parameter.grad)


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
    phis = torch.vmap(lambda m: tuple(matrix_phis(m, 2)))(matrices)
    for a, b in zip(phis, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    too_large = torch.vmap(lambda m: matrix_phis(m, 1)[0])(matrices[:1] * 2.0 ** (MOST + 10))
    assert too_large.isnan().all()


# Programs for inference


@pytest.mark.parametrize("length", [None, 4])
def test_a_program_for_inference_computes_matrix_functions_once(length):
    rnn = network("lipschitz").with_solver("etd2rk")
    program = neuralosc.export(rnn, length)
    x = torch.randn(5, 2) if length is None else torch.randn(5, length, 2)
    state = torch.randn(5, 1, 4)
    expected = (rnn.step if length is None else rnn)(x, state)
    torch.testing.assert_close(program.module()(x, state), expected)
    # Each step is some products with constants; the functions alone would be hundreds of operations.
    assert len(program.graph.nodes) < 60 * (length or 1)
    assert not any(name.endswith((".A", ".W")) for name in program.state_dict)


def test_the_network_is_left_as_it_was():
    rnn = network(dropout=0.5, max_dt=None).train()
    before = {name: value.clone() for name, value in rnn.state_dict().items()}
    program = neuralosc.export(rnn, 3, timespans=True)
    assert rnn.training and all(torch.equal(value, before[name]) for name, value in rnn.state_dict().items())
    x, state, spans = torch.randn(5, 3, 2), torch.randn(5, 2, 4), torch.rand(5, 3)
    torch.testing.assert_close(program.module()(x, state, spans), rnn.eval()(x, state, spans))


def test_a_program_of_a_stack_in_double_precision():
    rnn = network(num_layers=2).double()
    program = neuralosc.export(rnn)
    x, state = torch.randn(5, 2).double(), torch.randn(2, 5, 2, 4).double()
    torch.testing.assert_close(program.module()(x, state), rnn.step(x, state))


def test_a_program_changes_nothing_it_holds():
    """What a step changes in place is made anew in each call."""

    class InPlace(neuralosc.VectorField):
        def __init__(self):
            super().__init__(2, 2, 1)
            self.rate = torch.nn.Parameter(torch.tensor([0.5, 2.0]))

        def forward(self, t, state, u):
            slope = self.rate.exp()
            slope.neg_()
            return (slope * state.squeeze(-2) + u).unsqueeze(-2)

    rnn = neuralosc.ContinuousRNN(InPlace(), "euler", 0.1)
    program, x, state = neuralosc.export(rnn, 3).module(), torch.randn(5, 3, 2), torch.randn(5, 1, 2)
    for _ in range(2):
        torch.testing.assert_close(program(x, state), rnn(x, state))


def test_a_step_that_looks_back_needs_a_length(one_line):
    for settings in ({"control": "linear"}, {"missing": "hold"}):
        rnn = network(**settings)
        with pytest.raises(neuralosc.InputError) as error:
            neuralosc.export(rnn)
        one_line(error, *settings, "give a length")
        program, x, state = neuralosc.export(rnn, 3).module(), torch.randn(5, 3, 2), torch.zeros(5, 2, 4)
        torch.testing.assert_close(program(x, state), rnn(x, state))


@pytest.mark.parametrize("name", ["cornn", "lstm"])
def test_a_bidirectional_network_needs_a_length(name, one_line):
    rnn = network(name, bidirectional=True)
    with pytest.raises(neuralosc.InputError) as error:
        neuralosc.export(rnn)
    one_line(error, "bidirectional", "give a length")
    program, x = neuralosc.export(rnn, 3).module(), torch.randn(5, 3, 2)
    state = torch.randn(2, 5, 2, 4)
    torch.testing.assert_close(program(x, state), rnn(x, state))


def test_bad_arguments_are_one_line_each(one_line, tmp_path, monkeypatch):
    for length in (0, True, 1.5):
        with pytest.raises(neuralosc.InputError) as error:
            neuralosc.export(network(), length)
        one_line(error, "length", length, "positive integer")
    with pytest.raises(neuralosc.InputError) as error:
        neuralosc.export_onnx(network(), tmp_path / "rnn.onnx", "long")
    one_line(error, "'long'", "'any'")
    with pytest.raises(neuralosc.InputError) as error:
        neuralosc.export_onnx(network(), tmp_path / "nowhere" / "rnn.onnx")
    one_line(error, "nowhere", "make it first")
    with pytest.raises(PairingError) as error:
        neuralosc.export_onnx(network().with_solver("dopri5"), tmp_path / "rnn.onnx")
    one_line(error, "dopri5", "values")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(neuralosc.InputError) as error:
        neuralosc.export_onnx(network(), tmp_path / "rnn.onnx")
    one_line(error, "pip install onnx onnxscript")
    assert not list(tmp_path.iterdir())


def test_max_dt_is_refused_where_it_would_look_at_timespans(one_line):
    for settings in ({}, {"max_dt": 0.01}):
        with pytest.raises(neuralosc.InputError) as error:
            neuralosc.export(network(**settings), 3, timespans=True)
        one_line(error, "max_dt=None", "timespans")
    # One that is exact over a gap of any length needs none.
    lem = network("lem").with_solver("relaxation_euler")
    program, spans = neuralosc.export(lem, 3, timespans=True).module(), 5 * torch.rand(4, 3)
    x, state = torch.randn(4, 3, 2), torch.zeros(4, 2, 4)
    torch.testing.assert_close(program(x, state, spans), lem(x, state, spans))


@pytest.mark.slow
def test_what_onnx_has_no_operator_for_is_said(one_line, tmp_path):
    """A linear system of its own for each sample."""
    rnn = neuralosc.ContinuousRNN(neuralosc.Lipschitz(2, 4), "ars222", 0.1, max_dt=None)
    with pytest.raises(PairingError) as error:
        neuralosc.export_onnx(rnn, tmp_path / "a.onnx", timespans=True)
    one_line(error, "no operator", "aten._linalg_solve", "timespans", "neuralosc.export")


def test_an_onnx_file_says_what_it_takes(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(neuralosc.export_onnx(network(num_layers=2, max_dt=None), tmp_path / "rnn.onnx", timespans=True))

    def shapes(values):
        kinds = [(value.name, value.type.tensor_type.shape.dim) for value in values]
        return {name: [size.dim_param or size.dim_value for size in sizes] for name, sizes in kinds}

    sequence, state = ["batch", "time"], [2, "batch", 2, 4]
    assert shapes(model.graph.input) == {"x": [*sequence, 2], "state": state, "timespans": sequence}
    assert shapes(model.graph.output) == {"output": [*sequence, 4], "next_state": state}
    assert [node.op_type for node in model.graph.node] == ["Scan"]


@pytest.mark.slow
def test_the_page_on_export_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 4
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "docs/export.md", "exec"), scope)
    assert {path.name for path in tmp_path.iterdir()} == {"lem.onnx", "lem-step.onnx", "lem.pt2"}
