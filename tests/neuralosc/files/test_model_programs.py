"""Whole models as programs: scaling, missing values, network, read-out and the units of the targets in one."""

import numpy as np
import pytest
import torch

import neuralosc
from neuralosc import Collator, Readout, SequenceModel


def model(kind="last", name="cornn", collator=Collator(unit="1h"), **settings):  # noqa: B008
    torch.manual_seed(0)
    rnn = neuralosc.make(name, input_size=2, hidden_size=4, **settings)
    made = SequenceModel(rnn, Readout(rnn.output_size, 3, kind, rnn.bidirectional), collator)
    targets = 100 + 10 * torch.randn((9, 5, 3) if kind == "every" else (9, 3))
    return made.fit_scaling(50 + 9 * torch.randn(9, 5, 2), targets=targets).eval()


def given(made, *length, gaps=False, missing=False):
    x = 50 + 9 * torch.randn(5, *length, 2)
    if missing:
        x[torch.rand(x.shape) < 0.4] = torch.nan
    state = torch.zeros(5, made.rnn.components, 4)
    return (x, state, 3 * torch.rand(5, *length)) if gaps else (x, state)


def run_onnx(path, *values):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {node.name: value.numpy() for node, value in zip(session.get_inputs(), values, strict=True)}
    return session.run(["answer", "next_state"], feed)


@pytest.mark.parametrize(
    ("kind", "missing"), [("last", "hold"), ("mean", "error"), ("attention", "mask"), ("every", "decay")]
)
def test_a_sequence_of_fixed_length(kind, missing, tmp_path):
    made = model(kind, missing=missing, max_dt=None)
    x, state, spans = given(made, 2, gaps=True, missing=missing != "error")
    with torch.no_grad():
        expected = made.run(x, None, spans)
        answer = neuralosc.export(made, 2, timespans=True).module()(x, state, spans)
    torch.testing.assert_close(answer, expected)
    if kind in ("last", "every"):
        path = neuralosc.export_onnx(made, tmp_path / "model.onnx", 2, timespans=True)
        for value, wanted in zip(run_onnx(path, x, state, spans), expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "gaps"), [("last", True), ("mean", False), ("every", False)])
def test_a_sequence_of_any_length(kind, gaps, tmp_path):
    made = model(kind, max_dt=None)
    path = neuralosc.export_onnx(made, tmp_path / "model.onnx", timespans=gaps)
    assert made.readout.kind == kind
    for length in (1, 4, 9):
        x, state, *spans = given(made, length, gaps=gaps)
        with torch.no_grad():
            expected = made.run(x, None, *spans)
        for value, wanted in zip(run_onnx(path, x, state, *spans), expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)


def test_a_program_of_a_step_answers_what_is_predicted():
    made, times = model(max_dt=None), np.array([0, 30, 200, 210], "m8[m]")
    batch = made.collator([(times, 50 + 9 * np.random.default_rng(0).normal(size=(4, 2)))])
    step = neuralosc.export(made, timespans=True).module()
    state = torch.zeros(1, made.rnn.components, 4)
    for x, span in zip(batch.x.unbind(1), batch.timespans.unbind(1), strict=True):
        answer, state = step(x, state, span)
    expected = made.predict(times, batch.x[0].numpy())
    np.testing.assert_allclose(answer[0].detach(), expected, rtol=1e-5)


def test_baselines_and_both_directions():
    for name, settings in (("lstm", {"timespans": "feature"}), ("gru", {"bidirectional": True, "max_dt": None})):
        made = model("last", name, **settings)
        x, _, spans = given(made, 2, gaps=True)
        _, state = made.rnn(x, None, spans)
        program = neuralosc.export(made, 2, timespans=True).module()
        torch.testing.assert_close(program(x, torch.zeros_like(state), spans), made.run(x, None, spans))


def test_the_model_is_left_as_it_was_and_refusals_are_one_line(tmp_path, one_line):
    made = model("attention").train()
    neuralosc.export(made, 3)
    assert made.training and made.rnn.training and made.readout.kind == "attention"
    for use, words in (
        (lambda: neuralosc.export(made), ["'attention'", "'last' or 'every'"]),
        (lambda: neuralosc.export_onnx(made, tmp_path / "a.onnx"), ["'attention'", "give a length"]),
        (lambda: neuralosc.export(model(missing="hold")), ["earlier samples", "give a length"]),
        (lambda: neuralosc.export(model("last", "gru", bidirectional=True)), ["bidirectional", "length"]),
        (lambda: neuralosc.export(model(), 3, timespans=True), ["max_dt=None"]),
        (lambda: neuralosc.Step(model("mean"))(torch.ones(1, 2)), ["'mean'"]),
    ):
        with pytest.raises(neuralosc.InputError) as caught:
            use()
        one_line(caught, *words)
    assert not list(tmp_path.iterdir())
