"""Data sets of series, and the tasks that have them."""

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from sklearn.model_selection import train_test_split

from experiments import tasks
from experiments.tasks import halfcheetah, oscillators, physionet2012, stays
from experiments.tasks.series import Batch, Series
from experiments.train.config import RunConfig
from experiments.train.training import train
from solvers.errors import InputError

SHARED = Path(__file__).parents[4] / "shared" / "data"


def series(every=False):
    x = torch.arange(24.0).reshape(4, 3, 2)
    y = torch.arange(12).reshape(4, 3) if every else torch.arange(4)
    return Series(x, y, torch.ones(4, 3), torch.tensor([2, 0, 3, 1]), every)


def same(a, b):
    return all(torch.equal(p.nan_to_num(-7), q.nan_to_num(-7)) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("every", [False, True])
def test_a_batch_has_the_padding_of_its_longest_series_alone(every):
    data = series(every)
    batch = data[torch.tensor([3, 0])]
    assert batch.x.shape == (2, 2, 2) and batch.timespans.shape == (2, 2) and batch.lengths.tolist() == [1, 2]
    assert torch.equal(batch.x, data.whole.x[[3, 0], :2]) and batch.valid.tolist() == [[True, False], [True, True]]
    assert batch.y.shape == ((2, 2) if every else (2,))
    # A network needs a sample, though it be padding.
    assert data[1:2].x.shape == (1, 1, 2) and data[1:2].valid.tolist() == [[False]]
    one = data[2]
    assert one.x.shape == (3, 2) and one.lengths == 3 and len(data) == 4
    assert same(data.parts(torch.tensor([2, 3]))[0][:], data[2:4])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"timespans has shape \(4, 2\), expected \(4, 3\)"):
        Series(torch.zeros(4, 3, 2), torch.zeros(4), torch.zeros(4, 2))
    with pytest.raises(InputError, match=r"y has shape \(4, 2\), expected \(4, 3\)"):
        Series(torch.zeros(4, 3, 2), torch.zeros(4, 2), every=True)


def test_a_batch_changes_numbers_and_leaves_classes():
    batch = Batch(torch.zeros(1, 2, 3), torch.tensor([1]), torch.ones(1, 2)).floating(torch.float64)
    assert [part.dtype for part in batch[:3]] == [torch.float64, torch.int64, torch.float64]
    assert batch.lengths is None and batch.valid is None


# Oscillators


def test_the_closed_solution_solves_the_equation():
    w, z, hook, start, speed = 1.3, 0.2, (0.8, 0.7, 1.1), 0.3, -0.6
    times = np.linspace(0, 20, 30)

    def slope(t, state):
        q, v = state
        return v, w**2 * (hook[0] * math.cos(hook[1] * t + hook[2]) - q) - 2 * z * w * v

    expected = solve_ivp(slope, (0, 20), (start, w * speed), t_eval=times, rtol=1e-11, atol=1e-12).y[0]
    one = [np.array([[value]]) for value in (w, z, *hook, start, speed)]
    q = oscillators.position(times[None], one[0], one[1], tuple(one[2:5]), *one[5:])
    np.testing.assert_allclose(q[0], expected, atol=1e-8)


def test_oscillators_depend_on_seed_set_and_number_alone():
    sizes = {"train_size": 60, "validation_size": 20, "test_size": 20, "length": 12}
    splits = tasks.get("oscillators", **sizes).splits(3)
    again = tasks.get("oscillators", **{**sizes, "train_size": 30}).splits(3)
    assert same(splits[0][:30][:3], again[0][:][:3])
    assert not torch.equal(splits[0][:20].x, splits[1][:].x)
    assert not torch.equal(splits[0][:].x, tasks.get("oscillators", **sizes).splits(4)[0][:].x)
    assert splits[0][:].lengths is None
    assert [len(part) for part in splits] == [60, 20, 20]


def test_oscillators_have_the_gaps_targets_and_baseline_they_say():
    task = tasks.get("oscillators", train_size=4000, shortest=20)
    batch = task.splits()[0][:]
    assert batch.x.shape == (4000, 50, 2) and batch.x.dtype == batch.y.dtype == batch.timespans.dtype == torch.float32
    assert batch.lengths.min() == 20 and batch.lengths.max() == 50 and abs(batch.lengths.float().mean() - 35) < 0.6
    assert (batch.timespans[:, 0] == 1).all() and not batch.timespans[~batch.valid].any()
    gaps = batch.timespans[:, 1:20]
    # The mean of 2^u, u uniform from -1 to 1, is 3 / (4 log 2).
    assert abs(gaps.mean() - 3 / (4 * math.log(2))) < 0.02 and (gaps > 0).all()
    assert batch.y.mean(0).abs().max() < 0.06 and (batch.y.abs() <= math.sqrt(3) + 1e-5).all()
    assert abs(batch.y.square().mean() - task.baseline) < 0.03
    with pytest.raises(InputError, match="'shortest' is -1"):
        tasks.get("oscillators", shortest=-1)
    with pytest.raises(InputError, match="'length' is 10: expected a whole number of at least 20"):
        tasks.get("oscillators", length=10, shortest=20)


# Half-cheetah


def test_halfcheetah_cuts_windows_as_published(tmp_path):
    random = np.random.RandomState(0)
    traces = (random.standard_t(2, size=(31, 1000, 17)) * np.arange(1, 18)).astype(np.float32)
    np.savez(tmp_path / "traces.npz", traces=traces)
    raw = tasks.get("halfcheetah", data_dir=str(tmp_path), raw=True)
    assert raw.scale is None and raw.every
    train, validation, test = raw.splits()
    assert [len(train), len(validation), len(test)] == [970, 485, 970]
    for data, first in ((train, 15), (validation, 0), (test, 5)):
        starts = range(0, 1000 - 32 - 1, 10)
        assert np.array_equal(data[:].x[:97], np.stack([traces[first, s : s + 32] for s in starts]))
        assert np.array_equal(data[-1].y, traces[first + len(data) // 97 - 1, 961:993])
    task = tasks.get("halfcheetah", data_dir=str(tmp_path))
    scaled = task.splits()[2][:]
    rows = traces[15:25].reshape(-1, 17).astype(np.float64)
    np.testing.assert_allclose(task.scale, rows.std(0))
    # Targets are whole, inputs are cut off; both go back to what was recorded.
    mean = torch.from_numpy(rows.mean(0))
    torch.testing.assert_close(scaled.y * task.scale + mean, test[:].y.double(), rtol=1e-3, atol=1e-4)
    assert scaled.x.abs().max() == halfcheetah.FURTHEST < scaled.y.abs().max()
    inner = scaled.x.abs() < halfcheetah.FURTHEST
    back = scaled.x * task.scale + mean
    torch.testing.assert_close(back[inner], test[:].x[inner].double(), rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not (SHARED / "halfcheetah").is_dir(), reason=f"there is no {SHARED / 'halfcheetah'}")
def test_halfcheetah_baselines_are_what_they_say():
    train, _, test = tasks.get("halfcheetah", data_dir=str(SHARED / "halfcheetah"), raw=True).splits()
    batch = test[:]
    assert f"{float((batch.y - batch.x).square().mean()):.1f}" in halfcheetah.HalfCheetah.baseline
    assert f"{float((batch.y - train[:].y.mean((0, 1))).square().mean()):.1f}" in halfcheetah.HalfCheetah.baseline


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "traces.npz of task 'halfcheetah' not found in .*: no such file; give --data-dir"),
        (b"PK\x03\x04 no archive", "is damaged or no .npz file"),
        (b"", "is damaged or no .npz file"),
        ({"states": np.zeros(3)}, "has no array 'traces': it holds states"),
        ({"traces": np.zeros((31, 1000, 16))}, r"'traces' of shape \(31, 1000, 16\): expected \(31, 1000, 17\)"),
        ({"traces": np.array([{"a": 1}])}, "is damaged or no .npz file"),
    ],
)
def test_files_of_arrays_that_are_none_are_one_clear_line(content, message, tmp_path):
    file = tmp_path / "traces.npz"
    if isinstance(content, dict):
        np.savez(file, **content)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        tasks.get("halfcheetah", data_dir=str(tmp_path)).splits()
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"'halfcheetah' needs the file traces.npz: give --data-dir"):
        tasks.get("halfcheetah").splits()


# PhysioNet 2012

COUNT = 40


def write_stays(folder):
    """Stays in the published form: number 7 has no observation, number 3 none in minute 0, number 5 two of a minute."""
    random = np.random.RandomState(0)
    lines = {}
    for number in range(COUNT):
        record = 200_000 + 3 * number
        text = ["Time,Parameter,Value", f"00:00,RecordID,{record}", f"00:00,Age,{50 + number}", "00:00,Gender,1"]
        text += [f"00:00,Height,{-1 if number % 2 else 150 + number}", f"00:00,ICUType,{number % 4 + 1}"]
        text += ["00:00,Weight,-1"]
        if number != 7:
            text += [] if number == 3 else [f"00:00,HR,{60 + number}"]
            text += [f"{hour:02d}:30,HR,{random.randint(60, 90)}" for hour in range(1, 3 + number % 3)]
            text += [f"47:59,pH,{7 + number / 100:.2f}"]
        if number == 5:
            text += ["48:00,HR,70", "48:00,HR,80"]
        lines[record] = text
    (folder / "set-a").mkdir()
    for record, text in lines.items():
        (folder / "set-a" / f"{record}.txt").write_text("\n".join(text) + "\n")
    rows = [f"{record},10,5,30,-1,{int(number % 4 == 0)}" for number, record in enumerate(lines)]
    head = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    (folder / "Outcomes-a.txt").write_text("\n".join([head, *rows]) + "\n")


@pytest.fixture
def folder(tmp_path):
    write_stays(tmp_path)
    return tmp_path


def stay_of(splits, age):
    """The standardized series of the stay of that age, from the order of the ages."""
    (found,) = [data[i] for data in splits for i in range(len(data)) if data[i].x[0, 37] == age]
    return found


def test_physionet_reads_the_published_files(folder):
    read = stays.read_stays("physionet2012", str(folder))
    assert read.record.tolist() == [200_000 + 3 * number for number in range(COUNT)]
    assert read.died.tolist() == [int(number % 4 == 0) for number in range(COUNT)]
    assert np.isnan(read.static[1, 2]) and read.static[2].tolist() == [52, 1, 152, 3]
    mine = read.stay == 5
    assert read.minute[mine].tolist() == [0, 90, 150, 210, 270, 2879, 2880, 2880]
    assert [stays.PARAMETERS[p] for p in read.parameter[mine]] == ["HR"] * 5 + ["pH", "HR", "HR"]
    assert read.value[mine][-2:].tolist() == [70, 80] and not (read.stay == 7).any()


def test_physionet_makes_series_of_the_minutes(folder):
    splits = tasks.get("physionet2012", data_dir=str(folder)).splits()
    assert [len(data) for data in splits] == [32, 4, 4]
    ages = torch.cat([data.whole.x[:, 0, 37] for data in splits]).sort().values
    whole = stay_of(splits, ages[5])
    assert whole.lengths == 7 and whole.timespans[0] == 1
    torch.testing.assert_close(whole.timespans[1:] * 60, torch.tensor([90.0, 60, 60, 60, 2609, 1]))
    seen = ~whole.x[:, :37].isnan()
    assert [stays.PARAMETERS[p] for _, p in seen.nonzero().tolist()] == ["HR"] * 5 + ["pH", "HR"]
    # The later value of the minute, 80, and not 70.
    hr = stays.PARAMETERS.index("HR")
    others = torch.cat([data.whole.x[..., hr][data.whole.valid] for data in splits])
    assert whole.x[-1, hr] > others[~others.isnan()].quantile(0.5)
    assert whole.x[0, 38] == 0 and whole.x[0, 39].isnan() and whole.x[0, 40:].tolist() == [0, 1, 0, 0]
    assert whole.x[1:, 37:].isnan().all()
    # Nothing was observed of number 7, and nothing in minute 0 of number 3: what was noted on admission is a sample.
    assert stay_of(splits, ages[7]).lengths == 1
    assert stay_of(splits, ages[3]).x[0, :37].isnan().all() and stay_of(splits, ages[3]).lengths == 4
    bare = tasks.get("physionet2012", data_dir=str(folder), static=False)
    lengths = torch.cat([data.whole.lengths for data in bare.splits()])
    assert bare.input_size == 37 == bare.splits()[0][:].x.shape[-1] and (lengths == 0).sum() == 1
    assert not any(data[:].x[~data[:].valid].any() for data in splits)


def test_physionet_is_standardized_by_the_training_set(folder):
    train, validation, _ = tasks.get("physionet2012", data_dir=str(folder)).splits()
    hr = train.whole.x[..., stays.PARAMETERS.index("HR")][train.whole.valid]
    hr = hr[~hr.isnan()]
    # A value that a later one of its minute replaces is counted too.
    assert abs(hr.mean()) < 0.02 and abs(hr.std(correction=0) - 1) < 0.02
    assert train.whole.y.float().mean() == validation.whole.y.float().mean() == 1 / 4
    other = tasks.get("physionet2012", data_dir=str(folder), division=1).splits()[0]
    again = tasks.get("physionet2012", data_dir=str(folder)).splits(5)[0]
    assert same(train[:], again[:]) and not torch.equal(other[:].x[:, 0, 37], train[:].x[:, 0, 37])


def test_physionet_divided_by_scikit_learn_is_what_two_of_its_lines_give(folder):
    died = stays.read_stays("physionet2012", str(folder)).died
    train, rest = train_test_split(range(len(died)), test_size=0.2, random_state=5, stratify=died)
    halves = train_test_split(rest, test_size=0.5, random_state=5, stratify=died[rest])
    task = tasks.get("physionet2012", data_dir=str(folder), division=5, divider="scikit-learn")
    parts = physionet2012.as_scikit_learn(died, 0.1, 0.1, 5)
    for part, data, expected in zip(parts, task.splits(), (train, *halves), strict=True):
        assert part.tolist() == sorted(expected)
        assert data.whole.y.tolist() == died[sorted(expected)].tolist()
    with pytest.raises(InputError, match=r"'divider' of task 'physionet2012' 'sklearn'.*'scikit-learn'"):
        tasks.get("physionet2012", data_dir=str(folder), divider="sklearn")


def test_physionet_by_ranks_has_the_order_of_the_values_and_no_tails(folder):
    plain = tasks.get("physionet2012", data_dir=str(folder)).splits()
    ranked = tasks.get("physionet2012", data_dir=str(folder), transform="rank").splits()
    hr = stays.PARAMETERS.index("HR")
    one, other = (data[0].whole.x[..., hr][data[0].whole.valid] for data in (plain, ranked))
    seen = ~one.isnan()
    assert torch.equal(seen, ~other.isnan())
    order = one[seen].argsort()
    assert (other[seen][order].diff() >= 0).all() and abs(other[seen].median()) < 0.1
    # Nothing is further out than the first of so many values can be.
    assert other[seen].abs().max() < 3
    with pytest.raises(InputError, match=r"'transform' of task 'physionet2012' 'rnak'.*'rank'"):
        tasks.get("physionet2012", data_dir=str(folder), transform="rnak")


def test_a_rank_is_the_normal_quantile_of_what_is_smaller_and_half_of_what_is_equal():
    known = np.array([1.0, 1.0, 2.0, 1000.0])
    found = physionet2012.ranked(np.array([1.0, 2.0, 1000.0, 500.0, 0.0, 9999.0]), known)
    expected = [statistics.NormalDist().inv_cdf(share) for share in (0.25, 0.625, 0.875, 0.75, 0.125, 0.875)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert physionet2012.ranked(np.ones(3), np.ones(5)).tolist() == [0, 0, 0]


def test_physionet_shows_what_is_known_so_far(folder):
    plain = tasks.get("physionet2012", data_dir=str(folder)).splits()[0].whole
    task = tasks.get("physionet2012", data_dir=str(folder), running=True)
    whole = task.splits()[0].whole
    assert task.input_size == whole.x.shape[-1] == 37 * 5 + 7
    assert torch.equal(whole.x[..., :44].nan_to_num(-7), plain.x.nan_to_num(-7))
    largest, smallest, mean, count = whole.x[..., 44:].split(37, -1)
    for series in range(len(whole.y)):
        for sample in range(int(whole.lengths[series])):
            past = plain.x[series, : sample + 1, :37].double()
            for feature in (stays.PARAMETERS.index("HR"), stays.PARAMETERS.index("pH")):
                seen = past[:, feature][~past[:, feature].isnan()]
                expected = [seen.max(), seen.min(), seen.mean()] if len(seen) else [0.0, 0.0, 0.0]
                shown = [float(part[series, sample, feature]) for part in (largest, smallest, mean, count)]
                assert shown == pytest.approx([*map(float, expected), math.log1p(len(seen))], abs=1e-6)
    # What follows is not known: cut off, a series has the same features.
    values = plain.x[:, :, :37].numpy()
    for summary in physionet2012.SUMMARIES:
        cut = physionet2012.so_far(values[:, :3], summary)
        np.testing.assert_array_equal(physionet2012.so_far(values, summary)[:, :3], cut)
    bare = tasks.get("physionet2012", data_dir=str(folder), static=False, running=True)
    assert bare.input_size == bare.splits()[0].whole.x.shape[-1] == 37 * 5


def test_physionet_by_range_goes_from_0_to_1_in_the_training_set(folder):
    train = tasks.get("physionet2012", data_dir=str(folder), transform="range").splits()[0].whole
    hr = train.x[..., stays.PARAMETERS.index("HR")][train.valid]
    assert hr[~hr.isnan()].min() == 0 and hr[~hr.isnan()].max() == 1
    assert physionet2012.ranged(np.array([3.0, 1.0, 9.0]), np.array([1.0, 5.0])).tolist() == [0.5, 0, 2]
    assert physionet2012.ranged(np.ones(2), np.ones(3)).tolist() == [0, 0]


@pytest.mark.parametrize("hours", [24, 3])
def test_physionet_forecast_asks_for_what_comes_and_shows_nothing_of_it(folder, hours):
    task = tasks.get("physionet2012_forecast", data_dir=str(folder), hours=hours, running=True)
    plain = tasks.get("physionet2012", data_dir=str(folder), running=True)
    for data, known in zip(task.splits(), plain.splits(), strict=True):
        part, whole = data[:], known[:]
        assert torch.equal(part.lengths, whole.lengths) and torch.equal(part.timespans, whole.timespans)
        # The first timespan, of 1, is none of the stay.
        late = (part.timespans.double().cumsum(1) - 1 > hours - 1e-3) & part.valid
        assert late.any() and part.x[..., :37][late].isnan().all()
        early = part.valid & ~late
        assert torch.equal(part.x[early].nan_to_num(9), whole.x[early].nan_to_num(9))
        values = torch.where(late.unsqueeze(-1), whole.x[..., :37], torch.nan)
        assert torch.equal(part.y.nan_to_num(9), values.nan_to_num(9)) and not part.y[late].isnan().all(-1).any()
        # What is known so far is no more than before.
        for row, length, first in zip(part.x, part.lengths.tolist(), late.int().argmax(1).tolist(), strict=True):
            if 0 < first < length:
                assert (row[first:length, 44:] == row[first - 1, 44:]).all()
    assert task.output_size == 37 and task.every and task.input_size == plain.input_size


def test_physionet_forecast_stands_beside_the_mean_and_the_last_value(folder):
    task = tasks.get("physionet2012_forecast", data_dir=str(folder), hours=3)
    train, _, test = task.splits()
    guesses, part = task.guesses(2), test[:]
    hr = stays.PARAMETERS.index("HR")
    measured = torch.cat([values[..., hr][train[:].valid] for values in (train[:].x, train[:].y)])
    mean = measured[~measured.isnan()].mean()
    for row, length, held, means in zip(
        part.x, part.lengths.tolist(), guesses["last value"], guesses["mean"], strict=True
    ):
        last = mean
        for i in range(length):
            last = last if row[i, hr].isnan() else row[i, hr]
            torch.testing.assert_close(held[i, hr], last)
            torch.testing.assert_close(means[i, hr], mean)
    assert held.shape == part.y[0].shape and not guesses["last value"].isnan().any()


@pytest.mark.parametrize("hours", [0, 48, 2.5, True])
def test_physionet_forecast_of_hours_that_are_none_is_one_line(hours, one_line):
    with pytest.raises(InputError) as error:
        tasks.get("physionet2012_forecast", hours=hours)
    one_line(error, f"'hours' is {hours!r}: expected a whole number from 1 to 47")


def test_physionet_forecast_trains(folder, tmp_path):
    config = RunConfig(
        task="physionet2012_forecast",
        task_options={"hours": 3},
        data_dir=str(folder),
        model="gru",
        model_options={"hidden_size": 4, "missing": "hold"},
        epochs=2,
        threads=1,
    )
    result = train(config, root=tmp_path / "runs", progress=False)
    assert set(result.baselines) == {"mean", "last value"} and result.test["mse"] > 0
    part = tasks.get("physionet2012_forecast", data_dir=str(folder), hours=3).splits()[2][:]
    error = (tasks.get("physionet2012_forecast", data_dir=str(folder), hours=3).guesses(2)["mean"] - part.y).square()
    assert result.baselines["mean"]["mse"] == pytest.approx(float(error[~part.y.isnan()].mean()), rel=1e-5)


def test_physionet_reads_arrays_of_another_order_as_the_texts(folder, tmp_path):
    read = stays.read_stays("physionet2012", str(folder))
    names = np.array(stays.PARAMETERS)[::-1]
    order = np.random.RandomState(1).permutation(COUNT)
    static = np.where(np.isnan(read.static), -1, read.static)[order]
    arrays = {
        "stay": np.argsort(order)[read.stay].astype(np.uint16),
        "minute": read.minute.astype(np.uint16),
        "parameter": (36 - read.parameter).astype(np.uint8),
        "value": read.value,
        "parameter_names": names,
        "record_id": read.record[order],
        "static": static[:, ::-1],
        "static_names": np.array(stays.STATIC)[::-1],
        "in_hospital_death": read.died[order],
    }
    other = tmp_path / "arrays"
    other.mkdir()
    np.savez(other / "set-a.npz", **arrays)
    again = stays.read_stays("physionet2012", str(other))
    for name, values in vars(read).items():
        np.testing.assert_array_equal(getattr(again, name), values, err_msg=name)
    np.savez(other / "set-a.npz", **{**arrays, "minute": arrays["minute"][:-1]})
    with pytest.raises(InputError, match="lengths that do not fit"):
        stays.read_stays("physionet2012", str(other))
    np.savez(other / "set-a.npz", **{**arrays, "static_names": np.array(["Age", "Gender", "Height", "Ward"])})
    with pytest.raises(InputError, match="static_names Age, Gender, Height, Ward: expected Age"):
        stays.read_stays("physionet2012", str(other))


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("200003.txt", "Time,Parameter,Value\n00:00,Hieght,3\n", "line 2: there is no parameter 'Hieght'"),
        ("200003.txt", "Time,Parameter,Value\n00:00,HR\n", "line 2: '00:00,HR', expected HH:MM,Parameter,Value"),
        ("200003.txt", "Time,Parameter,Value\n00:xx,HR,3\n", "line 2: '00:xx,HR,3', expected"),
        ("200003.txt", None, "200003.txt cannot be read: No such file"),
        ("../Outcomes-a.txt", "RecordID,Died\n200000,1\n", "holds no outcomes .*: expected RecordID and"),
        ("../Outcomes-a.txt", "RecordID,In-hospital_death\n200000,2\n", "an outcome is 2: expected 1 for a death"),
        ("../Outcomes-a.txt", "RecordID,In-hospital_death\n", "holds no stay"),
        ("../Outcomes-a.txt", None, "set-a.npz of task 'physionet2012' not found in .*: no such file; give --data-dir"),
    ],
)
def test_damaged_stays_are_one_clear_line(file, text, message, folder):
    path = folder / "set-a" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        tasks.get("physionet2012", data_dir=str(folder)).splits()
    assert "\n" not in str(caught.value)


def test_the_line_without_a_name_in_the_published_files_is_passed_over(folder):
    path = folder / "set-a" / "200003.txt"
    path.write_text(path.read_text() + "40:00,,-1\n")
    assert len(stays.read_stays("physionet2012", str(folder)).record) == COUNT


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "physionet2012").is_dir(), reason=f"there is no {SHARED / 'physionet2012'}")
def test_physionet_has_the_published_sizes():
    task = tasks.get("physionet2012", data_dir=str(SHARED / "physionet2012"), static=False)
    splits = task.splits()
    assert [len(data) for data in splits] == [3200, 400, 400]
    assert sum(int(data.whole.y.sum()) for data in splits) == 554
    lengths = torch.cat([data.whole.lengths for data in splits])
    assert (lengths == 0).sum() == 3 and lengths.max() == task.length
