"""Series with times of their own as a padded batch."""

import datetime
import functools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import neuralosc
from neuralosc import Collator, collate

NAN = float("nan")
HOURS = np.array([0, 1, 3, 6])
VALUES = np.arange(8.0).reshape(4, 2)


def dates(unit):
    return np.datetime64("2026-03-01T05:00:00", "s").astype(f"M8[{unit}]") + HOURS * np.timedelta64(1, "h")


KINDS = {
    "integers": (HOURS * 60, 60),
    "list": (list(map(float, HOURS)), 1),
    "float32": (HOURS.astype(np.float32), 1.0),
    "uint64": (HOURS.astype(np.uint64), np.float32(1)),
    "torch": (torch.as_tensor(HOURS), 1),
    "half": (torch.as_tensor(HOURS, dtype=torch.bfloat16), 1),
    "ns": (dates("ns"), "1h"),
    "us": (dates("us"), "60 min"),
    "minutes": (dates("m"), np.timedelta64(1, "h")),
    "durations": (HOURS * np.timedelta64(3600, "s"), datetime.timedelta(hours=1)),
    "python": ([datetime.datetime(2026, 3, 1) + datetime.timedelta(hours=int(h)) for h in HOURS], "h"),
    "zones": (
        [datetime.datetime(2026, 3, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(hours=int(h)) for h in HOURS],
        "1 hour",
    ),
    "days": ([datetime.date(2026, 3, 1) + datetime.timedelta(days=int(h)) for h in HOURS], "1d"),
    "python durations": ([datetime.timedelta(hours=int(h)) for h in HOURS], "1h"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_times_of_every_kind(kind):
    times, unit = KINDS[kind]
    batch = collate([(times, VALUES)], unit=unit)
    assert batch.timespans.tolist() == [[1.0, 1.0, 2.0, 3.0]] and batch.timespans.dtype == torch.float32
    assert torch.equal(batch.x, torch.from_numpy(VALUES).float().unsqueeze(0)) and batch.mask.all()
    assert torch.equal(batch.times, torch.tensor([[1.0, 2.0, 4.0, 7.0]], dtype=torch.float64))


def test_times_of_pandas():
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    index = pandas.DatetimeIndex(dates("ns"))
    frame = pandas.DataFrame({"a": VALUES[:, 0], "b": VALUES[:, 1], "t": index})
    expected = collate([(dates("ns"), VALUES)], unit="1h")
    zoned = index.tz_localize("UTC").tz_convert("Asia/Tokyo")
    for times in (index, frame["t"], list(frame["t"]), zoned, pandas.Series(zoned), frame["t"][::-1][::-1]):
        batch = collate([(times, frame[["a", "b"]])], unit="1h")
        assert torch.equal(batch.timespans, expected.timespans) and torch.equal(batch.start, expected.start)
        assert torch.equal(batch.x, expected.x)
    assert collate([(index - index[0], VALUES)], unit=pandas.Timedelta("1h")).timespans[0, 3] == 3


def test_differences_are_taken_before_rounding():
    """Stamps of nanoseconds, and of seconds since 1970 with fractions: no float32 knows them."""
    start = np.datetime64("2026-03-01T05:00:00.000000001")
    nanoseconds = start + np.array([0, 3, 10]).astype("m8[ns]")
    assert collate([(nanoseconds, np.zeros(3))], unit="1ns").timespans.tolist() == [[1.0, 3.0, 7.0]]
    seconds = 1.77e9 + np.array([0.0, 0.25, 0.75])
    assert collate([(seconds, np.zeros(3))]).timespans.tolist() == [[1.0, 0.25, 0.5]]
    integers = np.array([2**62, 2**62 + 1, 2**62 + 3])
    assert collate([(integers, np.zeros(3))]).timespans.tolist() == [[1.0, 1.0, 2.0]]


def test_times_that_have_lost_their_digits_are_said():
    stamps = (1.77e9 + np.arange(0, 3000, 100)).astype(np.float32)
    for times in (stamps, torch.from_numpy(stamps).bfloat16() + torch.arange(30).bfloat16() * 2**24):
        with pytest.warns(UserWarning, match=r"neighbours are \S+ apart .* give them as float64") as said:
            collate([(times, np.zeros(30))], duplicates="keep", order="sort")
        assert "\n" not in str(said[0].message)


def test_a_batch_is_what_each_series_is_alone():
    torch.manual_seed(0)
    rnn, generator = neuralosc.LEM(2, 8), np.random.default_rng(0)
    series = [(generator.exponential(size=n).cumsum(), generator.normal(size=(n, 2))) for n in (5, 1, 7)]
    batch = collate(series)
    output, state = rnn(**batch.inputs)
    for i, one in enumerate(series):
        alone, end = rnn(**collate([one]).inputs)
        torch.testing.assert_close(output[i, : len(one[0])], alone[0])
        torch.testing.assert_close(state[i], end[0])


def test_missing_values_and_padding():
    a = (np.array([0.0, 1.0]), np.array([[1.0, NAN], [2.0, 3.0]]))
    b = (np.array([0.0]), np.array([[5.0, 6.0]]), np.array([[True, False]]))
    batch = collate([a, b])
    assert batch.lengths.tolist() == [2, 1]
    assert batch.mask.tolist() == [[[True, False], [True, True]], [[True, False], [False, False]]]
    assert batch.x[0, 0, 1].isnan() and batch.x[1, 0, 1].isnan() and batch.x[1, 1].tolist() == [0, 0]
    output, _ = neuralosc.LEM(2, 4, missing="hold")(**batch.inputs)
    assert output.isfinite().all()
    rows = collate([(np.arange(2), VALUES[:2], np.array([1, 0]))])
    assert rows.mask.tolist() == [[[True, True], [False, False]]]


def test_the_first_gap():
    times = np.array([5.0, 7.0])
    assert collate([(times, np.zeros(2))], unit=2.0).timespans.tolist() == [[1.0, 1.0]]
    batch = collate([(times, np.zeros(2))], unit=2.0, first=0.5)
    assert batch.timespans.tolist() == [[0.5, 1.0]] and batch.start.tolist() == [2.0]
    batch = collate([(times, np.zeros(2)), ([6.0], [1.0])], unit=2.0, origin=4.0)
    assert batch.timespans.tolist() == [[0.5, 1.0], [1.0, 0.0]] and batch.start.tolist() == [2.0, 2.0]
    origin = np.datetime64("2026-03-01")
    batch = collate([(dates("ns"), VALUES)], unit="1h", origin=origin)
    assert batch.timespans.tolist() == [[5.0, 1.0, 2.0, 3.0]]
    assert batch.start.tolist() == [float((origin - np.datetime64("1970-01-01")) / np.timedelta64(1, "h"))]


def test_samples_of_one_time():
    series = ([0.0, 1.0, 1.0, 1.0, 2.0], [[0, NAN], [1, 7], [NAN, 9], [5, NAN], [6, 6]])
    kept = collate([series], duplicates="keep")
    assert kept.timespans.tolist() == [[1, 1, 0, 0, 1]]
    mean = collate([series], duplicates="mean")
    assert mean.timespans.tolist() == [[1, 1, 1]] and mean.x[0, 1].tolist() == [3, 8]
    last = collate([series], duplicates="last")
    assert last.x[0, 1].tolist() == [5, 9] and last.mask.tolist() == [[[True, False], [True, True], [True, True]]]
    assert last.x[0, 0, 1].isnan()


def test_times_out_of_order():
    batch = collate([([3.0, 1.0, 1.0, 2.0], [3.0, 1.0, 1.5, 2.0])], order="sort", duplicates="last")
    assert batch.timespans.tolist() == [[1, 1, 1]] and batch.x.flatten().tolist() == [1.5, 2, 3]


def test_the_median_gap_is_that_of_the_training_set():
    training = [([0.0, 2.0, 4.0, 10.0], np.zeros(4)), ([1.0, 5.0], np.zeros(2)), ([], np.zeros((0, 1)))]
    collator = Collator(unit="median").fit(training)
    assert collator.unit.size == 3.0 and not collator.unit.timed
    assert collator([([0.0, 1.0, 7.0], np.zeros(3))]).timespans[0].tolist() == pytest.approx([1, 1 / 3, 2])
    fitted = Collator(unit="median").fit([(dates("us"), VALUES)])
    assert fitted.unit.timed and fitted.unit.size == 7200
    assert Collator(unit=5).fit(training).unit.size == 5


def test_a_series_without_samples():
    torch.manual_seed(0)
    batch = collate([(HOURS, VALUES), ([], [])])
    assert batch.lengths.tolist() == [4, 0] and not batch.mask[1].any() and batch.start[1] == 0
    for name in ("lem", "gru", "exprnn", "lstm", "torch_gru"):
        rnn = neuralosc.make(name, input_size=2, hidden_size=4)
        output, state = rnn(batch.x, lengths=batch.lengths)
        assert torch.equal(state[1], torch.zeros_like(state[1])) and torch.equal(output[1], torch.zeros(4, 4))


def test_in_a_data_loader():
    data = [{"times": HOURS[:n], "values": VALUES[:n], "target": n % 2, "name": f"s{n}"} for n in (1, 2, 3, 4)]
    batches = list(DataLoader(data, batch_size=3, collate_fn=Collator(unit=2)))
    assert [len(batch) for batch in batches] == [3, 1]
    assert batches[0].others["target"].tolist() == [1, 0, 1] and batches[1].others["name"] == ["s4"]
    assert next(iter(DataLoader(data, 2, collate_fn=functools.partial(collate, first=2.0)))).timespans[0, 0] == 2
    moved = batches[0].to("meta")
    assert moved.x.is_meta and moved.others["target"].is_meta and moved.unit == batches[0].unit


@pytest.mark.parametrize(
    ("series", "options", "words"),
    [
        ((HOURS, VALUES[:3]), {}, ["values of series 0", "(3, 2)", "(4, features)"]),
        ((HOURS[::-1], VALUES), {}, ["go back at row 1", "order='sort'"]),
        (([1, 2, 2, 3], VALUES), {}, ["one time twice at 1 rows", "duplicates='mean'"]),
        ((dates("s"), VALUES), {}, ["dates or durations", "unit='1h'"]),
        ((dates("s"), VALUES), {"unit": 3600}, ["dates or durations", "3600"]),
        ((HOURS, VALUES), {"unit": "1h"}, ["are numbers", "3600 seconds"]),
        ((HOURS, VALUES), {"unit": "1 parsec"}, ["1 parsec", "1h"]),
        ((HOURS, VALUES), {"unit": 0}, ["unit is 0", "positive"]),
        ((HOURS, VALUES), {"unit": None}, ["unit is None"]),
        ((HOURS, VALUES), {"unit": "median"}, ["median", "fit(training_series)"]),
        ((HOURS, VALUES), {"first": -1.0}, ["first is -1.0"]),
        ((HOURS, VALUES), {"origin": 2}, ["begin 2 units before origin"]),
        ((HOURS, VALUES), {"duplicates": "drop"}, ["duplicates is 'drop'", "mean"]),
        ((HOURS, VALUES), {"order": True}, ["order is True", "sort"]),
        ((["2026-03-01", "2026-03-02"], VALUES[:2]), {}, ["2026-03-01", "pandas.to_datetime"]),
        (([0.0, NAN], VALUES[:2]), {}, ["nan at row 1"]),
        ((np.array(["NaT", "2026-01-01"], "M8[s]"), VALUES[:2]), {"unit": "1h"}, ["NaT at row 0"]),
        (([True, False], VALUES[:2]), {}, ["expected numbers"]),
        ((HOURS.reshape(2, 2), VALUES), {}, ["shape (2, 2)"]),
        ((HOURS, [["a", "b"]] * 4), {}, ["values of series 0", "expected numbers"]),
        ((HOURS, VALUES, np.full((4, 2), 0.5)), {}, ["mask of series 0"]),
        ((HOURS, VALUES, np.ones((3, 2), bool)), {}, ["mask of series 0", "(3, 2)"]),
        ({"time": HOURS, "values": VALUES}, {}, ["series 0 has time, values", "times and values"]),
        ((HOURS,), {}, ["expected (times, values)"]),
    ],
)
def test_what_cannot_be_used_is_one_line(series, options, words, one_line):
    with pytest.raises(neuralosc.InputError) as caught:
        collate([series], **options)
    one_line(caught, *words)


def test_series_that_do_not_fit_together(one_line):
    for series, words in [
        ([], ["at least one series"]),
        ([(HOURS, VALUES), (HOURS, VALUES[:, :1])], ["1, 2 features"]),
        ([{"times": HOURS, "values": VALUES, "y": 1}, {"times": HOURS, "values": VALUES}], ["y", "nothing"]),
    ]:
        with pytest.raises(neuralosc.InputError) as caught:
            collate(series)
        one_line(caught, *words)
    for training in ([([1.0], [1.0])], [([1.0, 2.0], [1, 2]), (dates("s"), VALUES)]):
        with pytest.raises(neuralosc.InputError) as caught:
            Collator(unit="median").fit(training)
        one_line(caught)
