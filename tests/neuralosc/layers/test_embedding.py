"""Networks over tokens: the embedding is torch's, padding never counts, and no number passes for another token."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import neuralosc
from neuralosc import Collator, Embedding, InputError, Readout, Scaler, SequenceModel
from solvers.errors import PairingError

F64 = torch.float64
TOKENS, FEATURES, HIDDEN = 11, 4, 5
LENGTHS = torch.tensor([7, 3, 5, 0])


def model(kind="last", name="cornn", dropout=0.0, tokens=TOKENS, collator=None, **settings):
    torch.manual_seed(3)
    rnn = neuralosc.make(name, input_size=FEATURES, hidden_size=HIDDEN, **settings)
    readout = Readout(rnn.output_size, 2, kind, rnn.bidirectional)
    return SequenceModel(rnn, readout, collator, embedding=Embedding(tokens, FEATURES, dropout)).double()


def texts(tokens=TOKENS, rows=4, length=7, seed=0):
    return torch.randint(tokens, (rows, length), generator=torch.Generator().manual_seed(seed))


def gradients(made, loss):
    made.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in made.named_parameters()}


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("cornn", "last", {}),
        ("unicornn", "mean", {"num_layers": 2, "dt": [0.1, 0.2]}),
        ("gru", "attention", {"bidirectional": True}),
        ("grud", "last", {}),
        ("linoss", "every", {}),
        ("lstm", "last", {}),
    ],
)
def test_it_is_the_embedding_of_torch_before_the_network_with_its_gradients(name, kind, settings, lengths):
    made, x = model(kind, name, **settings).eval(), texts()
    table = nn.Embedding.from_pretrained(made.embedding.weight.detach().clone(), freeze=False)
    bare = SequenceModel(copy.deepcopy(made.rnn), copy.deepcopy(made.readout)).eval()
    answers, expected = made(x, lengths=lengths), bare(table(x), lengths=lengths)
    torch.testing.assert_close(answers, expected, rtol=0, atol=0)
    own, other = gradients(made, answers.square().sum()), gradients(bare, expected.square().sum())
    torch.testing.assert_close(own["embedding.weight"], table.weight.grad, rtol=1e-12, atol=0)
    assert table.weight.grad.abs().sum() > 0
    torch.testing.assert_close({key: value for key, value in own.items() if key in other}, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("gradient", "solver"), [("checkpoint", "rk4"), ("reversible", "implicit_midpoint"), ("truncated", "imex_euler")]
)
def test_every_gradient_of_a_loop_reaches_it(gradient, solver):
    made, x = model(solver=solver), texts()
    expected = gradients(made, made(x, lengths=LENGTHS).square().sum())
    other = made.with_solver(solver, gradient=gradient)
    found = gradients(other, other(x, lengths=LENGTHS).square().sum())
    torch.testing.assert_close(found["embedding.weight"], expected["embedding.weight"], rtol=1e-7, atol=1e-12)
    with pytest.raises(PairingError, match="gradient 'checkpoint'"):
        # Real-time learning has no gradient of its input, and says so.
        made.with_solver(solver, gradient="forward")(x)


@pytest.mark.parametrize("kind", ["last", "mean", "attention", "every"])
@pytest.mark.parametrize("name", ["cornn", "linoss", "lstm"])
def test_what_stands_in_the_padding_does_not_matter_and_has_no_gradient(name, kind):
    made, x = model(kind, name), texts(TOKENS - 1)
    # A token that stands in the padding alone.
    padding = torch.arange(7) >= LENGTHS.unsqueeze(1)
    answers = []
    for filler in (0, TOKENS - 1, -5, 10**9, float("nan"), float("inf"), 0.5):
        filled = torch.where(padding, torch.tensor(filler, dtype=F64), x).unsqueeze(-1)
        torch.manual_seed(0)
        answers.append(made(filled, lengths=LENGTHS))
        own = gradients(made, answers[-1].square().sum())
        assert torch.equal(answers[-1], answers[0])
        assert not own["embedding.weight"][TOKENS - 1].any() and all(torch.isfinite(g).all() for g in own.values())
    for row, count in enumerate(LENGTHS[:3].tolist()):
        alone = made.eval()(x[row : row + 1, :count])
        whole = made(x, lengths=LENGTHS)[row, :count] if kind == "every" else made(x, lengths=LENGTHS)[row]
        torch.testing.assert_close(alone[0], whole, rtol=1e-10, atol=1e-12)


def test_a_permuted_batch_has_permuted_answers_and_packed_ones_are_the_same():
    made, x = model("every"), texts()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(made(x[order], lengths=LENGTHS[order]), made(x, lengths=LENGTHS)[order], rtol=0, atol=0)
    lengths = torch.tensor([7, 3, 5, 2])
    last = model("last")
    expected = last(x, lengths=lengths)
    for tokens in (x, x.unsqueeze(-1), x.unsqueeze(-1).double()):
        packed = pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
        torch.testing.assert_close(last(packed), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16, torch.float32, F64]
)
def test_numbers_of_every_type_are_the_same_tokens(dtype):
    made, x = model(), texts()
    assert torch.equal(made(x.unsqueeze(-1).to(dtype)), made(x))
    wide = model(tokens=300)
    given = torch.tensor([[0, 100, 127]])
    # Of more tokens than a small integer can count.
    if not dtype.is_floating_point:
        assert torch.equal(wide(given.to(dtype)), wide(given))


@pytest.mark.parametrize(("dtype", "largest"), [(torch.bfloat16, 2**8), (torch.float16, 2**11), (torch.float32, 2**24)])
def test_a_type_that_rounds_tokens_is_refused(dtype, largest, one_line):
    if largest < 2**20:
        exact, numbers = Embedding(largest, 1), torch.tensor([[0], [largest - 1]]).to(dtype)
        assert torch.equal(exact(numbers), exact(numbers.long()))
        with pytest.raises(InputError, match=f"x is {largest}"):
            # What is rounded is rounded to a number that is no token.
            exact(torch.tensor([[largest]]).to(dtype))
    with torch.device("meta"):
        more = Embedding(largest + 1, 1)
    with pytest.raises(InputError) as caught:
        more(torch.zeros(3, 1, dtype=dtype))
    one_line(caught, str(dtype), f"up to {largest}", f"{largest + 1} tokens", "give integers")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_is_asked_with_exact_tokens(half):
    made = model(tokens=5000).to(half).eval()
    series = [4097, 4999, 2051]
    answer = made.predict(None, series)
    expected = made.run(torch.tensor([series]))[0]
    np.testing.assert_array_equal(answer, expected[0].detach().float().numpy())
    rounded = torch.tensor([series]).to(half).long()
    assert not torch.equal(rounded, torch.tensor([series]))


def test_dropout_takes_whole_tokens_away_wherever_they_stand():
    embedding = Embedding(1000, 3, dropout=0.4).double()
    x = torch.arange(1000).repeat(2).unsqueeze(-1)
    torch.manual_seed(0)
    one, other = embedding(x), embedding(x)
    assert torch.equal(one[:1000], one[1000:]) and not torch.equal(one, other)
    kept = one[:1000].ne(0).all(-1)
    assert torch.equal(kept, one[:1000].ne(0).any(-1)) and 500 < int(kept.sum()) < 700
    torch.testing.assert_close(one[:1000][kept], embedding.weight[kept] / 0.6, rtol=1e-12, atol=0)
    one.sum().backward()
    assert torch.equal(embedding.weight.grad.ne(0).all(-1), kept)
    assert torch.equal(embedding.eval()(x), embedding.weight[x.squeeze(-1)])


@pytest.mark.parametrize("name", ["cornn", "gru", "linoss", "lstm"])
def test_steps_predictions_and_series_are_one(name):
    made, x = model("every", name).eval(), texts()
    whole = made(x)
    state, answers = None, []
    with torch.no_grad():
        for t in range(7):
            token = x[:, t] if t % 2 else x[:, t : t + 1].double()
            answer, state = made.step(token, state)
            answers.append(answer)
    torch.testing.assert_close(torch.stack(answers, 1), whole, rtol=1e-10, atol=1e-12)
    for given in (x.tolist(), x.numpy(), list(x.numpy()), x.unsqueeze(-1).numpy(), x.double()):
        np.testing.assert_allclose(np.stack(made.predict(None, given)), whole.detach(), rtol=1e-10, atol=1e-12)
    for given in (x[0].tolist(), x[0].numpy(), x[0].double()):
        np.testing.assert_allclose(made.predict(None, given), whole[0].detach(), rtol=1e-10, atol=1e-12)
    ragged = [x[row, :count].tolist() for row, count in enumerate((7, 3, 5, 2))]
    for row, answer in enumerate(made.predict(None, ragged)):
        np.testing.assert_allclose(answer, whole[row, : len(ragged[row])].detach(), rtol=1e-10, atol=1e-12)


def test_tokens_have_times():
    made, x = model(collator=Collator(unit=2.0), kind="every").eval(), texts(rows=1)
    times = np.array([1.0, 2.0, 2.5, 6.0, 7.0, 8.0, 12.0])
    spans = torch.tensor(np.diff(times, prepend=-1.0) / 2).unsqueeze(0)
    expected = made(x, spans)
    np.testing.assert_allclose(made.predict(times, x[0].numpy()), expected[0].detach(), rtol=1e-10)
    np.testing.assert_allclose(made.predict([times], [x[0].tolist()])[0], expected[0].detach(), rtol=1e-10)
    np.testing.assert_allclose(made.predict(times, x[0].numpy(), at=times[2:4]), expected[0, 2:4].detach(), rtol=1e-8)
    with pytest.raises(InputError, match="mean of samples of one time, which is no token"):
        model(collator=Collator(duplicates="mean"))


@pytest.mark.parametrize("missing", ["hold", "mask", "decay"])
def test_a_token_that_is_missing_is_what_the_network_makes_of_missing_features(missing):
    made, x = model("every", "gru", missing=missing).eval(), texts().double().unsqueeze(-1)
    x[1, 2:4] = x[0, 0] = torch.nan
    table = made.embedding.weight
    vectors = torch.where(x.isnan(), torch.nan, table[x.nan_to_num(0).long().squeeze(-1)])
    expected = SequenceModel(made.rnn, made.readout)(vectors)
    torch.testing.assert_close(made(x), expected, rtol=0, atol=0)
    own = gradients(made, made(x).square().sum())["embedding.weight"]
    assert torch.isfinite(own).all() and own.any()
    with pytest.raises(InputError, match="nan at sample 0, step 0"):
        model("every", "gru")(x)


def test_another_solver_shares_it_and_targets_alone_have_a_scale():
    made, x = model(), texts()
    other = made.with_solver("rk4")
    assert other.embedding is made.embedding and not torch.equal(other(x), made(x))
    targets = 100 + 7 * torch.randn(4, 2, dtype=F64)
    made.fit_scaling(x, targets=targets)
    assert made.input_scaler is None
    torch.testing.assert_close(made.scaled(targets).mean(0), torch.zeros(2, dtype=F64), rtol=0, atol=1e-10)
    with pytest.raises(InputError, match="tokens, which have no scale"):
        made.fit_scaling(x)


def test_it_is_saved_and_loaded(tmp_path, one_line):
    made, x = model(dropout=0.3).eval(), texts()
    again = neuralosc.load(neuralosc.save(made, tmp_path / "model")).eval()
    assert torch.equal(again(x), made(x)) and (again.embedding.tokens, again.embedding.dropout) == (TOKENS, 0.3)
    # Dropout is free, the sizes are not.
    other = model(dropout=0.0)
    nn.init.zeros_(other.embedding.weight)
    assert torch.equal(neuralosc.load(tmp_path / "model", into=other).eval()(x), made(x))
    assert other.embedding.dropout == 0
    for wrong in (model(tokens=TOKENS + 1), SequenceModel(made.rnn, made.readout)):
        with pytest.raises(InputError) as caught:
            neuralosc.load(tmp_path / "model", into=wrong)
        one_line(caught, tmp_path, "embedding.weight")


def test_a_file_without_one_is_as_it_was(tmp_path):
    plain = SequenceModel(neuralosc.GRU(FEATURES, HIDDEN), Readout(HIDDEN, 2))
    neuralosc.save(plain, tmp_path / "model")
    with safe_open(tmp_path / "model", "pt") as file:
        description = json.loads(file.metadata()["config"])
    names = ["rnn", "settings", "readout", "collator", "input_scaler", "target_scaler"]
    assert list(description) == names and neuralosc.load(tmp_path / "model").embedding is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embedding": {"tokens": 12, "features": 4}}, ["embedding.weight"]),
        ({"embedding": {"tokens": 11, "features": 3}}, ["expected a neuralosc.Embedding(tokens, 4)"]),
        ({"embedding": {"tokens": 10**12, "features": 4}}, ["embedding.weight"]),
        ({"embedding": {"tokens": -1, "features": 4}}, ["tokens is -1"]),
        ({"embedding": {"tokens": 11, "features": 4, "more": 1}}, ["more"]),
        ({"embedding": 3}, ["cannot be used"]),
        ({"embedding": None}, ["cannot be used"]),
        ({"embedding_dropout": 1.0}, ["dropout is 1.0"]),
        ({"input_scaler": True}, ["tokens have no scale"]),
    ],
)
def test_a_description_that_was_changed_is_refused(change, words, tmp_path, one_line):
    path = neuralosc.save(model(), tmp_path / "model")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors, config = load_file(path), {**json.loads(header["config"]), **change}
    save_file(tensors, tmp_path / "other", metadata={**header, "config": json.dumps(config)})
    with pytest.raises(InputError) as caught:
        neuralosc.load(tmp_path / "other")
    one_line(caught, tmp_path, *words)


@pytest.mark.parametrize("length", [None, 7])
def test_a_program_takes_tokens_and_answers_nan_to_what_is_none(length):
    made, x = model().eval(), texts().unsqueeze(-1)
    program = neuralosc.export(made, length).module()
    given = x if length else x[:, 0]
    state = torch.zeros(4, 2, HIDDEN, dtype=F64)
    expected = made.run(x)[0] if length else made.step(x[:, 0])[0]
    torch.testing.assert_close(program(given, state)[0], expected, rtol=1e-10, atol=1e-12)
    given[1], given[2] = -1, TOKENS
    answers = program(given, state)[0]
    assert answers.isnan().all(-1).tolist() == [False, True, True, False]


def test_an_onnx_file_does_the_same(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made, x = model().float().eval(), texts().unsqueeze(-1)
    path = neuralosc.export_onnx(made, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy(), "state": np.zeros((4, 2, HIDDEN), np.float32)}
    expected = made.run(x)[0].detach().numpy()
    np.testing.assert_allclose(session.run(["answer"], feed)[0], expected, rtol=1e-4, atol=1e-5)
    # ONNX counts negative places from the end.
    feed["x"][1, 3], feed["x"][2, 0] = -1, TOKENS
    assert np.isnan(session.run(["answer"], feed)[0]).all(-1).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.tensor([[0, 1, 11]]), ["x is 11 at (0, 2)", "0 to 10"]),
        (torch.tensor([[0, -1, 2]]), ["x is -1 at (0, 1)"]),
        (torch.tensor([[[0.0], [1.5]]]), ["x is 1.5 at (0, 1)"]),
        (torch.tensor([[[0.0], [float("inf")]]]), ["x is inf at (0, 1)"]),
        (torch.tensor([[[True], [False]]]), ["bool", "whole numbers"]),
        (torch.tensor([[[1j]]]), ["complex", "whole numbers"]),
        (torch.zeros(2, 3), ["(2, 3)", "(batch, time, 1)"]),
        (torch.zeros(2, 3, 4), ["(2, 3, 4)", "(batch, time, 1)"]),
        (torch.zeros(2, 3, 4, dtype=torch.int64), ["(2, 3, 4)", "(batch, time, 1)"]),
        (torch.zeros(3, dtype=torch.int64), ["(3,)", "(batch, time, 1)"]),
        (torch.zeros(2, 0, 1), ["at least one sample"]),
        ([[1, 2]], ["list", "(batch, time, input)"]),
        (torch.zeros(2, 3, device="meta", dtype=torch.int64), ["meta"]),
    ],
)
def test_what_is_no_sequence_of_tokens_is_refused(x, words, one_line):
    with pytest.raises(InputError) as caught:
        model()(x)
    one_line(caught, *words)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), ["(2, 2)", "one token (batch, 1)"]),
        (torch.zeros(2), ["(2,)", "integers (batch,)"]),
        (3, ["int", "one token"]),
        (torch.tensor([11]), ["x is 11"]),
    ],
)
def test_what_is_no_token_is_no_step(x, words, one_line):
    with pytest.raises(InputError) as caught:
        model().step(x)
    one_line(caught, *words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1], [2]], ["(2, 1)", "one series of 2 tokens or 2 series of one"]),
        (np.zeros((3, 1)), ["(3, 1)", "(samples,), or (series, samples, 1)"]),
        (np.zeros((2, 3, 2)), ["2 features, expected 1"]),
        ([1, 2.5], ["2.5"]),
        (["a"], ["expected numbers"]),
    ],
)
def test_values_that_could_be_something_else_are_refused(values, words, one_line):
    with pytest.raises(InputError) as caught:
        model().predict(None, values)
    one_line(caught, *words)


def test_a_step_with_dropout_and_parts_that_do_not_fit_are_refused(one_line):
    made = model(dropout=0.5)
    with pytest.raises(InputError, match=r"call model.eval\(\) first"):
        made.step(torch.tensor([1]))
    made.eval().step(torch.tensor([1]))
    rnn, readout = made.rnn, made.readout
    for embedding, words in (
        (Embedding(TOKENS, FEATURES + 1), ["of 5 features", "Embedding(tokens, 4)"]),
        (nn.Embedding(TOKENS, FEATURES), ["a Embedding", "neuralosc.Embedding"]),
        (Scaler(FEATURES), ["a Scaler"]),
    ):
        with pytest.raises(InputError) as caught:
            SequenceModel(rnn, readout, embedding=embedding)
        one_line(caught, *words)
    with pytest.raises(InputError, match="leave input_scaler out"):
        SequenceModel(rnn, readout, input_scaler=Scaler(FEATURES).double(), embedding=made.embedding)
    for sizes in ((0, 4), (3, 0), (2.0, 4), (True, 4)):
        with pytest.raises(InputError, match="expected a positive integer"):
            Embedding(*sizes)
    with pytest.raises(InputError, match="dropout"):
        Embedding(3, 4, 1.0)
