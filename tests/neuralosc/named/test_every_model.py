"""What every named network can do: copies, function transforms, compilation, mixed precision, export, ONNX."""

import copy
import pickle

import pytest
import torch
from torch.export import Dim

import neuralosc
import solvers
from tests.measures import has_bfloat16_lstm

NAMES = [card.name for card in neuralosc.models()]
#: Whose next step needs to know what was seen before, which a program of one step cannot.
HOLDING = {card.name for card in neuralosc.models() if card.defaults.get("missing", "error") != "error"}
#: Modules of torch.nn as they are, with the limits they have: no rule for vmap, no float16 on every CPU.
BASELINES = {card.name for card in neuralosc.models() if card.field is None}
#: The slower checks run for one of them in the quick run.
SOME = [pytest.param(name, marks=[] if name == "cornn" else [pytest.mark.slow]) for name in NAMES]


@pytest.fixture
def x():
    return torch.rand(3, 6, 2)


def network(name, **settings):
    """In evaluation mode: without noise, dropout or statistics of a batch."""
    rnn = neuralosc.make(name, input_size=2, hidden_size=4, **settings).eval()
    noisy = getattr(rnn, "solver", None) is not None and rnn.solver.family == "stochastic"
    return rnn.with_solver("euler") if noisy else rnn


def tensors(result):
    """Output and state of a call."""
    output, state = result
    return {"output": output, "state": state}


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_complete(name):
    card = neuralosc.model(name)
    assert card.name == name and card.title and card.paper and card.equation
    assert card.field is None or issubclass(getattr(neuralosc, card.field), neuralosc.VectorField)
    rnn = network(name)
    again = neuralosc.make(name, input_size=2, hidden_size=4, **card.defaults)
    assert again.state_dict().keys() == rnn.state_dict().keys()
    with pytest.raises(neuralosc.InputError, match="leave it out"):
        neuralosc.make(name, input_size=2, hidden_size=4, no_such_option=1)


@pytest.mark.parametrize("name", NAMES)
def test_weights_go_to_another_network_of_the_same_sizes(name, x):
    rnn, other = network(name), network(name)
    assert other.load_state_dict(rnn.state_dict()) == torch.nn.modules.module._IncompatibleKeys([], [])
    torch.testing.assert_close(tensors(other(x)), tensors(rnn(x)), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_equal_and_independent(name, x):
    rnn = network(name)
    expected = tensors(rnn(x))
    for twin in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        torch.testing.assert_close(tensors(twin(x)), expected, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        torch.testing.assert_close(tensors(rnn(x)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_function_transforms(name, x):
    """Other parameters in a call, an ensemble under vmap, and gradients of each."""
    if name in BASELINES:
        rnn, other = network(name), network(name)
        output = torch.func.functional_call(rnn, dict(other.named_parameters()), (x,))
        return torch.testing.assert_close(tensors(output), tensors(other(x)))
    networks = [network(name) for _ in range(2)]
    values = [{k: v.detach() for k, v in rnn.named_parameters()} for rnn in networks]
    stacked = {key: torch.stack([value[key] for value in values]) for key in values[0]}

    def loss(parameters):
        return torch.func.functional_call(networks[0], parameters, (x,))[0].square().mean()

    losses, gradients = torch.vmap(loss)(stacked), torch.vmap(torch.func.grad(loss))(stacked)
    for i, rnn in enumerate(networks):
        expected = rnn(x)[0].square().mean()
        torch.testing.assert_close(losses[i], expected.detach())
        torch.testing.assert_close(loss(values[i]), expected.detach())
        expected.backward()
        for key, parameter in rnn.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[key][i], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name, dtype, x):
    if name in BASELINES and dtype == torch.float16:
        pytest.skip("torch.nn.LSTM has no float16 on every CPU")
    if name == "lstm" and not has_bfloat16_lstm():
        pytest.skip("torch.nn.LSTM has no bfloat16 on this CPU")
    rnn = network(name)
    expected = rnn(x)[0].detach()
    with torch.autocast("cpu", dtype):
        output, state = rnn(x)
        loss = output.float().square().mean()
    loss.backward()
    assert torch.isfinite(output).all() and torch.isfinite(state).all()
    gradients = [p.grad for p in rnn.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    # bfloat16 has three digits.
    assert float((output.detach().float() - expected).abs().max()) < 0.05 * float(expected.abs().max().clamp(min=1))


# Dynamo looks at .grad of every tensor it wraps.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("name", SOME)
def test_torch_compile(name, x):
    rnn = network(name)
    compiled = torch.compile(rnn, backend="aot_eager")
    torch.testing.assert_close(tensors(compiled(x)), tensors(rnn(x)))
    compiled(x)[0].square().mean().backward()
    gradients = {key: p.grad.clone() for key, p in rnn.named_parameters() if p.grad is not None}
    rnn.zero_grad()
    rnn(x)[0].square().mean().backward()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, rnn.get_parameter(key).grad)
    torch._dynamo.reset()


# Export


def given(rnn, *inner, batch=5):
    """Inputs of a program: x, a state, and timespans."""
    _, state = rnn(torch.rand(batch, 4, 2))
    return torch.rand(batch, *inner, 2), state.detach(), torch.rand(batch, *inner) + 0.5


def looks_back(rnn):
    """Whether a step needs earlier samples or the time too, so that there is a program of whole sequences alone."""
    control = getattr(rnn, "control", None)
    return control is not None and (control.memory > 0 or rnn.timed)


# torch.export remarks on how torch.nn.LSTM keeps its weights.
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_torch_export(name, x):
    """The whole forward as torch exports it, whose parameters stay, and what `export` makes of a step."""
    rnn = network(name)
    program = torch.export.export(rnn, (x,), dynamic_shapes={"x": {0: Dim("batch")}})
    assert {key for key, _ in rnn.named_parameters()} <= set(program.state_dict)
    other = torch.rand(5, 6, 2)
    torch.testing.assert_close(tensors(program.module()(other)), tensors(rnn(other)))
    if looks_back(rnn):
        with pytest.raises(neuralosc.InputError, match="give a length"):
            neuralosc.export(rnn)
        x, state, _ = given(rnn, 4)
        return torch.testing.assert_close(tensors(neuralosc.export(rnn, 4).module()(x, state)), tensors(rnn(x, state)))
    sample, state, _ = given(rnn)
    if name in HOLDING:
        with pytest.raises(neuralosc.InputError, match="needs earlier samples too"):
            neuralosc.export(rnn)
        return
    step = neuralosc.export(rnn).module()
    torch.testing.assert_close(tensors(step(sample, state)), tensors(neuralosc.Step(rnn)(sample, state)))


def run_onnx(path, *values):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {node.name: value.detach().numpy() for node, value in zip(session.get_inputs(), values, strict=True)}
    return [torch.from_numpy(value) for value in session.run(["output", "next_state"], feed)]


@pytest.mark.parametrize("length", [None, 6, "any"])
@pytest.mark.parametrize("name", SOME)
def test_onnx(name, length, tmp_path):
    """A step, a fixed length and any length, run by onnxruntime, with a clock of its own for each sample."""
    clocks = name not in BASELINES
    rnn = network(name, **({"max_dt": None} if clocks else {}))
    if name in HOLDING and length != 6:
        # What was seen last is found by a running maximum, which ONNX has for a known length alone.
        with pytest.raises((neuralosc.InputError, solvers.PairingError), match=r"earlier samples|aten\.cummax"):
            neuralosc.export_onnx(rnn, tmp_path / "rnn.onnx", length, timespans=True)
        return
    if looks_back(rnn) and length != 6:
        with pytest.raises(neuralosc.InputError, match="give a length"):
            neuralosc.export_onnx(rnn, tmp_path / "rnn.onnx", length)
        return
    path = neuralosc.export_onnx(rnn, tmp_path / "rnn.onnx", length, timespans=clocks)
    for samples in (6, 9) if length == "any" else (length,):
        x, state, spans = given(rnn, *(() if samples is None else (samples,)))
        if name in HOLDING:
            x[0, 1:3, 0] = x[1, 0, 1] = torch.nan
        values = (x, state, spans)[: 2 + clocks]
        with torch.no_grad():
            expected = (neuralosc.Step(rnn) if length is None else rnn)(*values)
        for value, wanted in zip(run_onnx(path, *values), expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
