"""The model that is served: what it answers to raw times and values, in which units, and what it refuses."""

import copy
import datetime

import numpy as np
import pandas as pd
import pytest
import torch

import neuralosc
import solvers
from neuralosc import Collator, Readout, SequenceModel

F64 = torch.float64
NAN = float("nan")
START = np.datetime64("2026-03-01T08:00", "m")
MINUTES = np.array([0, 45, 50, 240])
TIMES = START + MINUTES * np.timedelta64(1, "m")
VALUES = np.array([[37.1, NAN], [37.9, 82.0], [38.2, NAN], [37.4, 76.0]])
CAUSAL = [name for name in solvers.CONTROLS if solvers.get_control(name).causal]


def series(rows=9, features=2, seed=0, missing=True):
    """Times in seconds as integers, and values, some of them missing."""
    draw = np.random.default_rng(seed)
    values = draw.normal(50, 10, (rows, features))
    values[draw.random((rows, features)) < 0.3 * missing] = NAN
    return 1_700_000_000 + np.cumsum(draw.integers(600, 9000, rows)), values


def model(kind="last", name="lem", collator=None, scaled=True, **settings):
    torch.manual_seed(1)
    rnn = neuralosc.make(name, input_size=2, hidden_size=5, **{"missing": "hold", **settings})
    readout = Readout(rnn.output_size, 3, kind, rnn.bidirectional)
    made = SequenceModel(rnn, readout, Collator(unit=3600, dtype=F64) if collator is None else collator).double()
    if scaled:
        batch = made.collator([series(seed=i) for i in range(6)])
        shape = (6, 9, 3) if kind == "every" else (6, 3)
        made.fit_scaling(batch.x, batch.lengths, 100 + 7 * torch.randn(shape, dtype=F64))
    return made.eval()


def by_hand(made, times, values, first=1.0, unit=3600.0):
    """The answer of the parts themselves."""
    spans = torch.tensor(np.diff(times, prepend=times[0] - first * unit) / unit).unsqueeze(0)
    z = (torch.tensor(values) - made.input_scaler.mean) / made.input_scaler.scale
    with torch.no_grad():
        output, _ = made.rnn(z.unsqueeze(0), timespans=spans)
        return (made.readout(output) * made.target_scaler.scale + made.target_scaler.mean)[0].numpy()


@pytest.mark.parametrize("name", ["lem", "gru", "cornn", "linoss", "lstm"])
@pytest.mark.parametrize("kind", ["last", "mean", "attention", "every"])
def test_prediction_is_scaling_network_readout_and_scaling_back(kind, name):
    settings = {"timespans": "feature"} if name == "lstm" else {}
    made, (times, values) = model(kind, name, **settings), series(seed=9)
    answer = made.predict(times, values)
    np.testing.assert_allclose(answer, by_hand(made, times, values), rtol=1e-10)
    assert answer.shape == ((9, 3) if kind == "every" else (3,))
    # A call answers on the scale of training.
    batch = made.collator([(times, values)])
    call = made(**batch.inputs)
    np.testing.assert_allclose(made.unscaled(call)[0].detach().numpy(), answer, rtol=1e-12)
    torch.testing.assert_close(made.scaled(made.unscaled(call)), call)


def test_several_series_are_each_of_them_alone():
    some = [series(rows, seed=rows) for rows in (9, 1, 4, 0)]
    times, values = zip(*some, strict=True)
    for kind in ("last", "every"):
        made = model(kind)
        answers = made.predict(list(times), list(values))
        for (t, v), answer in zip(some, answers, strict=True):
            np.testing.assert_allclose(made.predict(t, v), answer, rtol=1e-12)
        assert isinstance(answers, list) == (kind == "every") and len(answers) == 4
    # Arrays with an axis for the series are several series, too.
    t, v = np.stack([times[0]] * 2), np.stack([values[0]] * 2)
    np.testing.assert_array_equal(made.predict(t, torch.tensor(v))[1], answers[0])


def test_times_of_every_kind_are_one_clock():
    made = model("every", collator=Collator(unit="1h"), scaled=False)
    expected = made.predict(TIMES, VALUES)
    asked = made.predict(TIMES, VALUES, at=TIMES[1:] + np.timedelta64(20, "m"))
    zone = datetime.timezone(datetime.timedelta(hours=2))
    kinds = {
        "ns": TIMES.astype("M8[ns]"),
        "pandas": pd.DatetimeIndex(TIMES.astype("M8[ns]")),
        "python": [datetime.datetime(2026, 3, 1, 8) + datetime.timedelta(minutes=int(m)) for m in MINUTES],
        "zone": pd.Series(pd.DatetimeIndex(TIMES.astype("M8[s]")).tz_localize("UTC").tz_convert(zone)),
    }
    for times in kinds.values():
        np.testing.assert_array_equal(made.predict(times, pd.DataFrame(VALUES)), expected)
        for other in kinds.values():
            later = [time + np.timedelta64(20, "m") for time in np.asarray(TIMES[1:])]
            at = np.array(later, np.asarray(kinds["ns"]).dtype) if other is kinds["ns"] else np.array(later)
            np.testing.assert_array_equal(made.predict(times, VALUES, at=at), asked)
    durations = MINUTES * np.timedelta64(1, "m")
    np.testing.assert_array_equal(made.predict(durations, VALUES), expected)
    np.testing.assert_array_equal(made.predict(durations, VALUES, at=durations[1:] + np.timedelta64(20, "m")), asked)
    hours = model("every", collator=Collator(unit=1), scaled=False)
    np.testing.assert_allclose(hours.predict(MINUTES / 60, VALUES), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["lem", "gru", "cornn", "ltc", "unicornn", "exprnn", "hamiltonian", "lipschitz"])
@pytest.mark.parametrize("control", CAUSAL)
def test_asked_at_the_samples_it_answers_what_it_does_up_to_them(name, control):
    if name != "lem" and control not in ("hold", "linear"):
        control = "rectilinear"
    made, (times, values) = model("every", name, control=control), series(5, seed=3)
    answers = made.predict(times, values)
    np.testing.assert_allclose(made.predict(times, values, at=times), answers, rtol=1e-9)
    for count in (1, 3, 5):
        np.testing.assert_allclose(made.predict(times[:count], values[:count])[-1], answers[count - 1], rtol=1e-9)


@pytest.mark.parametrize("future", ["zero", "hold"])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2}, {"control": "linear"}, {"missing": "mask"}])
def test_between_and_after_samples_nothing_later_is_used(future, settings):
    made, (times, values) = model("last", **settings), series(6, seed=4)
    at = np.concatenate([times + 60, times + 599, times[-1:] + 10**5])
    answers = made.predict(times, values, at=at, future=future)
    for time, answer in zip(at, answers, strict=True):
        count = int((times <= time).sum())
        # The same question when it could first be asked, and whatever follows.
        np.testing.assert_array_equal(
            made.predict(times[:count], values[:count], at=[time], future=future).shape, (1, 3)
        )
        known = made.predict(times[:count], values[:count], at=[time], future=future)[0]
        np.testing.assert_allclose(known, answer, rtol=1e-9)
    if settings.get("num_layers", 1) == 1 and future == "zero":
        rnn = made.rnn
        batch = made.collator([(times, values)])
        with torch.no_grad():
            _, state = rnn(made.input_scaler(batch.x), timespans=batch.timespans)
            state = rnn.advance(state, 10**5 / 3600, time=float(batch.timespans.sum()))
            alone = made.unscaled(made.readout.each(state[..., 0, :]))[0].numpy()
        np.testing.assert_allclose(answers[-1], alone, rtol=1e-9)


def test_before_the_first_sample_it_answers_what_the_initial_state_does():
    made, (times, values) = model("last"), series(4)
    bias = (made.readout.bias * made.target_scaler.scale + made.target_scaler.mean).detach().numpy()
    # The initial state holds one unit before the first sample.
    np.testing.assert_allclose(made.predict(times, values, at=[times[0] - 3600])[0], bias, rtol=1e-12)
    later = made.predict(times, values, at=[times[0] - 1, times[0]])
    np.testing.assert_allclose(later[0], bias, rtol=0.2)
    assert (later[0] != later[1]).all()


def test_each_series_may_be_asked_at_times_of_its_own():
    made, (first, second) = model("every"), (series(6, seed=1), series(3, seed=2))
    times, values = zip(first, second, strict=True)
    own = [first[0][-1:] + 100, second[0] + 7]
    answers = made.predict(list(times), list(values), at=own)
    assert [answer.shape for answer in answers] == [(1, 3), (3, 3)]
    for t, v, at, answer in zip(times, values, own, answers, strict=True):
        np.testing.assert_allclose(made.predict(t, v, at=at), answer, rtol=1e-12)
    common = [max(times[0][-1], times[1][-1]) + 100]
    for t, v, answer in zip(times, values, made.predict(list(times), list(values), at=common), strict=True):
        np.testing.assert_allclose(made.predict(t, v, at=common), answer, rtol=1e-12)
    assert made.predict(*first, at=[]).shape == (0, 3)


def test_rows_out_of_order_and_of_one_time_get_their_own_answers():
    (times, values), order = series(6, seed=5, missing=False), np.array([3, 0, 5, 1, 4, 2])
    expected = model("every").predict(times, values)
    sorting = model("every", collator=Collator(unit=3600, dtype=F64, order="sort"))
    np.testing.assert_array_equal(sorting.predict(times[order], values[order]), expected[order])
    merging = model("every", collator=Collator(unit=3600, dtype=F64, order="sort", duplicates="last"))
    doubled = np.concatenate([order, order[:2]])
    np.testing.assert_array_equal(merging.predict(times[doubled], values[doubled]), expected[doubled])
    np.testing.assert_array_equal(merging.predict(times[doubled], values[doubled], at=times), expected)
    keeping = model("every", "exprnn", Collator(unit=3600, dtype=F64, order="sort", duplicates="keep"))
    twice = np.concatenate([times, times[:1]])
    both = keeping.predict(twice, np.concatenate([values, values[1:2]]))
    assert (both[0] != both[-1]).all()
    # At a time of two samples both are known.
    np.testing.assert_allclose(
        keeping.predict(twice, np.concatenate([values, values[1:2]]), at=times[:1])[0], both[-1], rtol=1e-9
    )


@pytest.mark.parametrize("control", CAUSAL)
@pytest.mark.parametrize("missing", ["hold", "mask", "decay"])
def test_a_step_at_a_time_is_the_prediction(control, missing):
    made, (times, values) = model("every", control=control, missing=missing, num_layers=2), series(6, seed=6)
    expected, state = made.predict(times, values), None
    spans = np.diff(times, prepend=times[0] - 3600) / 3600
    for row, span, wanted in zip(values, spans, expected, strict=True):
        answer, state = made.step(torch.tensor(row).unsqueeze(0), state, float(span))
        np.testing.assert_allclose(answer[0].detach().numpy(), wanted, rtol=1e-9)


def test_a_baseline_takes_steps_of_whole_samples_only(one_line):
    for settings in ({}, {"missing": "error"}):
        made = model("last", "lstm", timespans="feature", **settings)
        times, values = series(4, missing=False)
        state = None
        spans = np.diff(times, prepend=times[0] - 3600) / 3600
        steps = zip(torch.tensor(values), spans, strict=True)
        if not settings:
            with pytest.raises(neuralosc.InputError) as caught:
                made.step(torch.tensor(values[:1]), None, 1.0)
            one_line(caught, "LSTM", "'hold'", "missing='error'")
            continue
        for row, span in steps:
            answer, state = made.step(row.unsqueeze(0), state, float(span))
        np.testing.assert_allclose(answer[0].detach().numpy(), made.predict(times, values), rtol=1e-9)


def test_modes_gradients_and_a_model_without_times():
    torch.manual_seed(0)
    rnn = neuralosc.GRU(input_size=2, hidden_size=4, dropout=0.5)
    made = SequenceModel(rnn, Readout(4, 1)).train()
    made.readout.eval()
    values = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    answer = made.predict(None, values)
    assert made.training and made.rnn.training and not made.readout.training
    assert answer.shape == (1,) and answer.dtype == np.float32
    np.testing.assert_array_equal(answer, made.predict(None, values))
    with torch.no_grad():
        expected = copy.deepcopy(made).eval()(torch.tensor(values).unsqueeze(0))[0].numpy()
    np.testing.assert_array_equal(answer, expected)
    assert made.predict(None, [values, values[:2]]).shape == (2, 1)
    # Without times the samples are at 0, 1, 2, ..
    np.testing.assert_allclose(made.predict(None, values, at=[4])[0], answer, rtol=1e-5)
    with pytest.raises(neuralosc.InputError):
        made.predict(None, np.full((2, 2), NAN))
    assert made.rnn.training and not made.readout.training
    half = SequenceModel(neuralosc.GRU(input_size=2, hidden_size=4), Readout(4, 1)).to(torch.bfloat16)
    assert half.predict(None, values).dtype == np.float32


def test_another_solver_has_the_scales_in_common():
    made, (times, values) = model("last", "lipschitz"), series(5)
    other = made.with_solver("dopri5", rtol=1e-9, atol=1e-9)
    assert other.rnn.solver.name == "dopri5" and other.collator is made.collator
    assert abs(other.predict(times, values) - made.predict(times, values)).max() > 0
    made.fit_scaling(torch.randn(4, 3, 2, dtype=F64))
    assert torch.equal(other.input_scaler.mean, made.input_scaler.mean)
    np.testing.assert_array_equal(
        other.with_solver(made.rnn.solver).predict(times, values), made.predict(times, values)
    )


def test_training_on_scaled_targets_answers_in_their_units():
    torch.manual_seed(0)
    some = [series(6, seed=i, missing=False) for i in range(24)]
    target = torch.tensor([[1000 + 50 * float(np.mean(v[:, 0]))] for _, v in some], dtype=F64)
    collator = Collator(unit="median", dtype=F64).fit(some)
    made = SequenceModel(
        neuralosc.LEM(input_size=2, hidden_size=8, max_dt=None), Readout(8, 1, "mean"), collator
    ).double()
    batch = collator(some)
    made.fit_scaling(batch.x, batch.lengths, target)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(made(**batch.inputs), made.scaled(target)).backward()
        optimizer.step()
    times, values = zip(*some, strict=True)
    error = made.predict(list(times), list(values)) - target.numpy()
    assert np.sqrt((error**2).mean()) < 0.5 * float(target.std())


def asks(made, times, values, **options):
    return lambda: made.predict(times, values, **options)


def test_bad_questions_are_one_line(one_line):
    made, plain = model("last"), SequenceModel(neuralosc.GRU(input_size=2, hidden_size=4), Readout(4, 1))
    timed, (times, values) = model("last", collator=Collator(unit="1h"), scaled=False), series(4)
    strict = model("last", missing="error")
    noisy = model("last", "noisy", missing="error")
    wide = np.ones((4, 3))
    for use, words in (
        (asks(made, TIMES, VALUES), ["dates", "3600"]),
        (asks(timed, times, values), ["numbers", "3600 seconds"]),
        (asks(plain, times, values), ["without a unit of time", "collator="]),
        (asks(made, None, values), ["times is None", "unit of time"]),
        (asks(made, times, wide), ["3 features", "expected 2"]),
        (asks(made, times, values[:3]), ["(3, 2)", "(4, features)"]),
        (asks(made, times[::-1], values), ["go back"]),
        (asks(made, np.repeat(times[:2], 2), values), ["one time twice"]),
        (asks(strict, times, values), ["nan", "missing"]),
        (asks(made, times, np.where(np.isnan(values), np.inf, values)), ["inf"]),
        (asks(made, [times, times], [values]), ["2 series", "1 of them"]),
        (asks(made, [times, times], 3.0), ["2 series", "float"]),
        (asks(made, [], np.zeros((0, 2)), at=[1.0]), ["without samples"]),
        (asks(plain, None, 3.0), ["float", "(samples, features)"]),
        (asks(plain, None, np.zeros((0, 2, 2))), ["no series"]),
        (asks(made, times, values, at=TIMES), ["dates", "numbers", "same kind"]),
        (asks(timed, TIMES, VALUES, at=[1.0]), ["numbers", "dates", "same kind"]),
        (asks(timed, TIMES, VALUES, at=[np.timedelta64(1, "h")]), ["durations", "dates", "same kind"]),
        (asks(made, times, values, at=[times[0] - 7200]), ["1 units before the initial state", "row 0"]),
        (asks(made, times, values, at=float(times[0])), ["shape ()", "(samples,)"]),
        (asks(made, [times], [values], at=[times, times]), ["2 series", "expected 1"]),
        (asks(made, times, values, at=times, future="next"), ["future is 'next'"]),
        (asks(made, times, values, at=[1e300]), ["timespans go up to", "longer unit"]),
        (asks(model("mean"), times, values, at=times), ["'mean'", "'last' or 'every'"]),
        (asks(model(bidirectional=True), times, values, at=times), ["bidirectional", "leave out at"]),
        (asks(model(residual=True), times, values, at=times), ["residual", "leave out at"]),
        (asks(model(control="linear_noncausal"), times, values, at=times), ["linear_noncausal", "looks ahead"]),
        (asks(model(name="linoss"), times, values, at=times), ["LinOSSNetwork", "leave out at"]),
        (asks(noisy, times, np.ones((4, 2)), at=times), ["noise"]),
        (lambda: made(torch.ones(1, 2, 2, dtype=F64)), ["timespans is left out", "batch.inputs"]),
        (lambda: made.step(torch.ones(1, 2, dtype=F64)), ["timespan is left out"]),
        (lambda: made.step(torch.ones(1, 3, dtype=F64), None, 1.0), ["(1, 3)", "(batch, 2)"]),
        (lambda: made(torch.ones(1, 2, 3), torch.ones(1, 2)), ["(1, 2, 3)", "(batch, time, 2)"]),
        (lambda: model("attention").step(torch.ones(1, 2, dtype=F64), None, 1.0), ["'attention'"]),
        (lambda: made.scaled(torch.ones(4)), ["(4,)", "(batch, 3)"]),
        (lambda: made.fit_scaling(torch.ones(4, 2, 2), targets=torch.ones(4)), ["(4,)", "(batch, 3)"]),
        (lambda: made.fit_scaling(torch.ones(4, 2, 3)), ["(4, 2, 3)", "(.., 2)"]),
    ):
        with pytest.raises(neuralosc.InputError) as caught:
            use()
        one_line(caught, *words)


def test_parts_that_do_not_fit_are_one_line(one_line):
    rnn, readout = neuralosc.GRU(input_size=2, hidden_size=4), Readout(4, 1)
    decayed = model(missing="decay", scaled=False)
    decayed.rnn.decay.mean.fill_(3.0)
    both = neuralosc.GRU(input_size=2, hidden_size=4, bidirectional=True)
    for make, words in (
        (lambda: SequenceModel(torch.nn.GRU(2, 4), readout), ["GRU", "recurrent layer"]),
        (lambda: SequenceModel(rnn, torch.nn.Linear(4, 1)), ["Linear", "neuralosc.Readout"]),
        (lambda: SequenceModel(rnn, Readout(5, 1)), ["5", "4", "rnn.output_size"]),
        (lambda: SequenceModel(both, Readout(8, 1)), ["bidirectional=False", "True"]),
        (lambda: SequenceModel(rnn, readout, Collator(unit="median")), ["'median'", "never fitted", "fit("]),
        (lambda: SequenceModel(rnn, readout, "1h"), ["'1h'", "neuralosc.Collator"]),
        (lambda: SequenceModel(rnn, readout, None, neuralosc.Scaler(3)), ["input_scaler", "3 features", "Scaler(2)"]),
        (lambda: SequenceModel(rnn, readout, target_scaler=3.0), ["target_scaler", "float", "Scaler(1)"]),
        (lambda: SequenceModel(neuralosc.LSTM(2, 4), readout, Collator()), ["LSTM", "'feature'"]),
        (lambda: SequenceModel(neuralosc.LSTM(2, 4), readout).with_solver("rk4"), ["LSTM", "no solver"]),
        (lambda: decayed.fit_scaling(torch.randn(2, 3, 2, dtype=F64)), ["decay.mean"]),
    ):
        with pytest.raises(neuralosc.InputError) as caught:
            make()
        one_line(caught, *words)
    # A fit that fails leaves the scales that were.
    made = model()
    before = made.input_scaler.mean.clone()
    with pytest.raises(neuralosc.InputError):
        made.fit_scaling(torch.randn(4, 3, 2, dtype=F64), targets=torch.full((4, 3), torch.inf))
    assert torch.equal(made.input_scaler.mean, before)


def test_packed_sequences():
    made, lengths = model("every"), torch.tensor([4, 2])
    free = SequenceModel(made.rnn, made.readout, None, made.input_scaler, made.target_scaler)
    x = torch.randn(2, 4, 2, dtype=F64) * 10 + 50
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    whole, _ = torch.nn.utils.rnn.pad_packed_sequence(free(packed), batch_first=True)
    expected = free(x, lengths=lengths)
    torch.testing.assert_close(whole[0], expected[0])
    torch.testing.assert_close(whole[1, :2], expected[1, :2])
