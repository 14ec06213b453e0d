"""Networks and models as programs: of torch.export, and of ONNX."""

from __future__ import annotations

import contextlib
import copy
import io
import operator
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from neuralosc.layers.readout import READOUTS
from neuralosc.layers.recurrent import RecurrentLayer, recurrent, stepped
from neuralosc.layers.sequence_model import SequenceModel
from solvers.errors import InputError, PairingError

#: Samples in the batch that a program is recorded with; it takes any number.
BATCH = 3


class Step(nn.Module):
    """One step of a network as a module, which is what exporters take: `output, state = Step(rnn)(x, state, timespan)`.

    See `ContinuousRNN.step`, and `SequenceModel.step` of a model. A layer without a `step` of its own takes sequences
    of one sample.

    Args:
        rnn: the network, or a model of one.

    Raises:
        InputError: it is bidirectional.
    """

    def __init__(self, rnn: RecurrentLayer | SequenceModel) -> None:
        super().__init__()
        if rnn.bidirectional:
            raise InputError(
                "a step does not know the samples to come, which a bidirectional network needs: give a length"
            )
        self.rnn = rnn

    def forward(
        self, x: Tensor, state: Tensor | None = None, timespan: Tensor | float | None = None
    ) -> tuple[Tensor, Any]:
        """The output `(batch, hidden)` after the sample x `(batch, input)`, of a model the answer, and the state."""
        if isinstance(self.rnn, SequenceModel):
            # Without timespans the program is one for samples a unit apart.
            return self.rnn.step(x, state, 1.0 if timespan is None and self.rnn.collator is not None else timespan)
        return stepped(self.rnn, x, state, timespan)


class _Whole(nn.Module):
    """A model over whole sequences, called like a network."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, state: Tensor | None = None, timespans: Tensor | None = None) -> tuple[Tensor, Any]:
        """The answers, and the state."""
        return self.model.run(x, state, timespans)


def export(rnn: RecurrentLayer | SequenceModel, length: int | None = None, timespans: bool = False) -> ExportedProgram:
    """The network, or a whole model, for inference as a program of `torch.export`, for batches of any size.

    What depends on parameters alone (matrix functions, inverses) is computed now and is a constant of the program.
    `torch.export.export(rnn, (x,))` gives one whose parameters can be trained.

    Args:
        rnn: the network, or a `SequenceModel`; its evaluation mode is exported.
        length: samples of a sequence; None for a program of a single step.
        timespans: let the program take them, in units of dt (of a model: `collator.unit`); 1 otherwise.

    Returns:
        a program `(x, state[, timespans]) -> (output, state)`: x `(batch, length, input)`, state as the network has
        it, timespans `(batch, length)`; for a single step without the axis of time, as in `ContinuousRNN.step`. Of a
        model x is as measured, and in the place of the output there are the answers in the units of the targets; of one
        with an embedding x is int64 `(batch, length, 1)`, and a number that is no token counts as NaN.

    Raises:
        InputError: a step that needs more of the past than a state.
        PairingError: a solver whose steps depend on the values it meets: adaptive ones, and those that iterate.
    """
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise InputError(f"length is {length!r}, expected a positive integer, or None for a single step")
    network = recurrent(rnn.rnn if isinstance(rnn, SequenceModel) else rnn)
    rnn = copy.deepcopy(rnn).eval()
    like = next(network.parameters())
    inner = () if length is None else (length,)
    x, spans = like.new_zeros(BATCH, *inner, network.input_size), like.new_ones(BATCH, *inner)
    if isinstance(rnn, SequenceModel) and rnn.embedding is not None:
        x = x[..., :1].long()
    module = Step(rnn) if length is None else _Whole(rnn) if isinstance(rnn, SequenceModel) else rnn
    with torch.no_grad(), _quiet():
        _, state = module(x)
        if not isinstance(state, Tensor):
            raise InputError(
                "a step of this network needs earlier samples too, or the time, and a program of a step takes a state "
                "alone: give a length, or make the network with control 'hold', missing 'error' and an untimed field"
            )
        inputs = (x, state, spans) if timespans else (x, state)
        batch = Dim("batch")
        # A stack has an axis for its layers before that of the batch.
        shapes = ({0: batch}, {state.dim() - 3: batch}, {0: batch})[: len(inputs)]
        recorded = torch.export.export(module, inputs, dynamic_shapes=shapes)
        return torch.export.export(_folded(recorded), inputs, dynamic_shapes=shapes)


def export_onnx(
    rnn: RecurrentLayer | SequenceModel,
    path: str | os.PathLike[str],
    length: int | str | None = "any",
    timespans: bool = False,
) -> Path:
    """Write the network, or a whole model, for inference as an ONNX file, for batches of any size; see `export`.

    Needs the packages onnx and onnxscript. The inputs are x, state and, if asked for, timespans; the outputs are
    output (of a model: answer) and next_state. The weights are in the file, up to the 2 GiB that such a file can hold.

    Args:
        rnn: the network, or a `SequenceModel`; its evaluation mode is exported.
        path: the file to write.
        length: "any": sequences of any length, as a Scan over the step; an integer: that length, unrolled; None: a
            single step.
        timespans: let the model take them.

    Raises:
        InputError: packages that are missing, a length that is none, or what `export` refuses.
        PairingError: see `export`.
    """
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise InputError(f"cannot write {target}: the folder {target.parent} does not exist; make it first")
    if isinstance(length, str) and length != "any":
        raise InputError(f"length is {length!r}, expected 'any', a positive integer, or None for a single step")
    onnx, whole = _onnx(), not isinstance(length, str)
    answers, kind = ("output", "every") if not isinstance(rnn, SequenceModel) else ("answer", rnn.readout.kind)
    exported_one = _sample_by_sample(rnn) if isinstance(rnn, SequenceModel) and not whole else rnn
    program = export(exported_one, None if isinstance(length, str) else length, timespans)
    names = [*("x", "state", "timespans")[: 2 + timespans], answers, "next_state"]
    # The step inside a Scan is in the scope of the names outside.
    graph_names = names if whole else [f"{name}_of_step" for name in names]
    try:
        with contextlib.redirect_stdout(io.StringIO()), _quiet():
            exported = torch.onnx.export(
                program, dynamo=True, input_names=graph_names[:-2], output_names=graph_names[-2:], verbose=False
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise PairingError(
            f"ONNX has no operator for {_missing(error)}, which a step of this network takes: leave out timespans, "
            "choose another solver, or use neuralosc.export"
        ) from error
    assert exported is not None
    model = exported.model_proto
    _name_batch(model.graph)
    model = model if whole else _scan(onnx, model, names, kind)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
    return target


def _sample_by_sample(model: SequenceModel) -> SequenceModel:
    """A copy of a model that answers every sample, of whose answers its own are the last one or the mean.

    The mean of answers is the answer to the mean output, since read-out and scaling are affine.
    """
    if model.readout.kind not in ("last", "mean", "every"):
        raise InputError(
            f"a program for any length answers sample by sample, which the read-out {model.readout.kind!r} does not: "
            "give a length, or use 'last', 'mean' or 'every'"
        )
    if model.readout.kind == "mean" and model.readout.likelihood != "none":
        raise InputError(
            "a program for any length takes the mean of answers, and standard deviations have another one: give a "
            "length, or use the read-out 'last' or 'every'"
        )
    other = copy.deepcopy(model)
    readout = other.readout
    readout.kind, readout.pooling = "every", READOUTS["every"](readout.in_features, readout.pooling.bidirectional)
    return other


def _missing(error: BaseException) -> str:
    """The operation of torch that could not be translated, read from the chain of errors."""
    chain: BaseException | None = error
    while chain is not None:
        if match := re.search(r"op='(aten\.\w+)'", str(chain)):
            return match[1]
        chain = chain.__cause__
    return "an operation"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own modules: it copies deprecated classes, and sets attributes of nn.LSTM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "The tensor attribute")
        yield


def _scan(onnx: Any, step: Any, names: Sequence[str], kind: str) -> Any:
    """The ONNX model of a step, applied along the second axis of its inputs; `kind` is what is read off its outputs."""
    helper, graph = onnx.helper, step.graph
    (x, state, *spans), (output, end) = graph.input, graph.output
    # The state comes first in a Scan, and the weights stay outside.
    body = helper.make_graph(graph.node, "step", [state, x, *spans], [end, output])
    scanned = 1 + len(spans)
    every = names[-2] if kind == "every" else f"{names[-2]}_of_each"
    node = helper.make_node(
        "Scan",
        [names[1], names[0], *names[2:-2]],
        [names[-1], every],
        body=body,
        num_scan_inputs=scanned,
        scan_input_axes=[1] * scanned,
        scan_output_axes=[1],
    )

    def outside(value: Any, name: str, along: bool) -> Any:
        kind = value.type.tensor_type
        shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
        return helper.make_tensor_value_info(name, kind.elem_type, [shape[0], "time", *shape[1:]] if along else shape)

    inputs = [outside(value, name, value is not state) for value, name in zip(graph.input, names, strict=False)]
    outputs = [outside(output, names[-2], kind == "every"), outside(end, names[-1], False)]
    nodes, constants = [node], list(graph.initializer)
    if kind != "every":
        name, place = ("axes_of_mean", [1]) if kind == "mean" else ("place_of_last", -1)
        constants.append(onnx.numpy_helper.from_array(np.array(place, np.int64), name))
        choice = {"keepdims": 0} if kind == "mean" else {"axis": 1}
        nodes.append(
            helper.make_node("ReduceMean" if kind == "mean" else "Gather", [every, name], [names[-2]], **choice)
        )
    whole = helper.make_graph(nodes, "sequence", inputs, outputs, initializer=constants)
    return helper.make_model(
        whole, opset_imports=step.opset_import, functions=step.functions, ir_version=step.ir_version
    )


def _name_batch(graph: Any) -> None:
    """Give the axis of the batch, which has the name of a symbol of torch, a name that says what it is."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == symbol:
                size.dim_param = "batch"


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise InputError("ONNX files need the packages onnx and onnxscript: pip install onnx onnxscript") from error
    return onnx


def _folded(program: ExportedProgram) -> fx.GraphModule:
    """A program in which what operations make of parameters and constants alone has been computed."""
    module = program.module()
    known: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = operator.attrgetter(str(node.target))(module)
        elif node.op == "call_function" and all(source in known for source in node.all_input_nodes):
            if _pure(node.target):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
            else:
                # What is changed in place is made anew in each call.
                for source in node.all_input_nodes:
                    known.pop(source, None)
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default and node in known:
            # Of a conversion of a constant, and true; it would keep alive what the constant was made of.
            module.graph.erase_node(node)
            del known[node]
    for number, (node, value) in enumerate(list(known.items())):
        if node.op == "call_function" and isinstance(value, Tensor) and not all(user in known for user in node.users):
            name = f"constant_{number}"
            module.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(name))
    module.graph.eliminate_dead_code()
    _drop_unused(module)
    module.recompile()
    return module


def _pure(target: Any) -> bool:
    """Whether a function depends on its arguments alone and changes none of them."""
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _drop_unused(module: fx.GraphModule) -> None:
    """Take out the parameters and buffers that no operation sees any more."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for values in (module.named_parameters(), module.named_buffers()) for name, _ in values]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)
