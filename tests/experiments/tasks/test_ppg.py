"""PPG-DaLiA from .npz files: signals of several rates, one window after another, a target every two seconds."""

import numpy as np
import pytest
import torch

from experiments import tasks
from experiments.tasks import ppg
from experiments.train.config import RunConfig
from experiments.train.training import train
from solvers.errors import InputError

FEW = 20


@pytest.fixture
def short(monkeypatch):
    """Windows of 20 targets every 2, so that recordings are small."""
    monkeypatch.setattr(ppg, "TARGETS", FEW)
    monkeypatch.setattr(ppg, "STRIDE", 2)
    monkeypatch.setattr(ppg.PPGDaLiA, "length", FEW * 128)


def values(count=200, seed=0):
    """Arrays of a recording with so many targets, the first ones included that stand for the beginning."""
    random = np.random.RandomState(seed)
    return {
        "ACC": random.randn(64 * count, 3),
        # Says where a sample is from.
        "BVP": np.arange(128.0 * count).reshape(-1, 1),
        "EDA": random.rand(8 * count, 1),
        "TEMP": random.rand(8 * count, 1) + 30,
        "label": np.arange(60.0, 60 + count - 3),
    }


def write(folder, names=("S1", "S2"), **changed):
    for number, name in enumerate(names):
        np.savez(folder / f"{name}.npz", **{**values(seed=number), **changed})


def test_windows_have_their_targets_at_every_128th_sample(short, tmp_path):
    write(tmp_path, ["S3"])
    task = tasks.get("ppg-dalia", data_dir=str(tmp_path))
    sets, given = task.splits(0), values()
    sizes = sorted(len(part) for part in sets)
    # Of 200 targets 30, 30 and 140, in windows of 20 every 2.
    assert sizes == [6, 6, 61]
    for data in sets:
        x, y = data[:]
        assert x.shape == (len(data), 2560, 6) and y.shape == (len(data), 2560, 1)
        assert (x.abs() <= 1).all() and not y[:, 127::128].isnan().any() and int((~y.isnan()).sum()) == 20 * len(data)
        for window, asked in zip(x, y[:, 127::128, 0], strict=True):
            first = round((float(window[0, 3]) + 1) / 2 * (128 * 200 - 1)) // 128
            wanted = np.concatenate((given["label"][[0, 0, 0]], given["label"]))[first : first + FEW]
            np.testing.assert_allclose(asked, 2 * (wanted - 60) / (200 - 4) - 1, atol=1e-6)
            # The slower signals at that place: 32 and 4 values in a second.
            acc = given["ACC"][64 * first : 64 * (first + FEW)].repeat(2, 0)
            scaled = 2 * (acc - given["ACC"].min()) / np.ptp(given["ACC"]) - 1
            np.testing.assert_allclose(window[:, :3], scaled, atol=1e-5)
            eda = given["EDA"][8 * first : 8 * (first + FEW)].repeat(16, 0)
            np.testing.assert_allclose(
                window[:, 4:5], 2 * (eda - given["EDA"].min()) / np.ptp(given["EDA"]) - 1, atol=1e-5
            )
    one = sets[0]
    assert torch.equal(one[3][0], one[:][0][3]) and one[0:0][0].shape == (0, 2560, 6)


def test_no_sample_is_in_two_sets(short, tmp_path):
    write(tmp_path, ppg.SUBJECTS)
    task = tasks.get("ppg-dalia", data_dir=str(tmp_path))
    covered = [{(id(one), first + k) for one, first in data.places for k in range(FEW)} for data in task.splits(0)]
    assert not covered[0] & covered[1] and not covered[0] & covered[2] and not covered[1] & covered[2]
    assert task.notices == []
    # Persons are divided in several ways.
    assert (
        len(
            {min(first for one, first in task.splits(0)[0].places if one is each) for each in task._recordings.values()}
        )
        == 3
    )


def test_a_run_counts_what_is_asked_for_beside_the_mean(short, tmp_path, capsys):
    write(tmp_path)
    options = {"clock": True, "data_dir": str(tmp_path)}
    assert tasks.get("ppg-dalia", **options).splits()[0][0][0][:, 0].tolist() == pytest.approx(
        [k / 2560 for k in range(2560)]
    )
    config = RunConfig(
        task="ppg-dalia",
        task_options=options,
        model="linoss",
        model_options={"hidden_size": 2, "state_size": 2, "num_layers": 1},
        epochs=1,
        batch_size=4,
        limit_train_batches=1,
        threads=1,
    )
    result = train(config, root=tmp_path / "runs", progress=False)
    said = capsys.readouterr().err
    assert "PPG-DaLiA with 2 of 15 persons: figures are not comparable with published ones" in said
    task = tasks.get("ppg-dalia", data_dir=str(tmp_path))
    y, trained = (task.splits()[part][:][1] for part in (2, 0))
    mean = trained[~trained.isnan()].mean()
    assert result.baselines["mean"]["mse"] == pytest.approx(float((y[~y.isnan()] - mean).square().mean()), rel=1e-5)
    assert np.isfinite(result.test["mse"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"EDA": np.random.rand(90, 1)},
            "has 90 values of 'EDA' and 197 of 'label': expected 8 for each label and for 3",
        ),
        ({"label": np.arange(150.0)}, "has 12800 values of 'ACC' and 150 of 'label'"),
        ({"BVP": np.zeros((25600, 1))}, "'BVP' is constant or holds what is no number"),
        ({"TEMP": np.full((1600, 1), np.nan)}, "'TEMP' is constant or holds what is no number"),
        ({"label": np.array(["a"] * 197)}, "'label' is constant or holds what is no number"),
        ({"ACC": np.random.rand(12800, 2)}, r"holds 'ACC' of shape \(12800, 2\): expected \(any, 3\)"),
        ({"BVP": np.array([{}], object)}, "is damaged or no .npz file"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(changed, message, tmp_path):
    write(tmp_path, ["S4"], **changed)
    with pytest.raises(InputError, match=message) as caught:
        tasks.get("ppg-dalia", data_dir=str(tmp_path)).splits()
    assert str(tmp_path / "S4.npz") in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(InputError, match=r"needs S1\.npz to S15\.npz: give --data-dir"):
        tasks.get("ppg-dalia").splits()
    (tmp_path / "S1").mkdir()
    (tmp_path / "S1" / "S1.pkl").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"none of S1\.npz to S15\.npz is in .*: of a \.pkl make one as the description"
    ):
        tasks.get("ppg-dalia", data_dir=str(tmp_path)).splits()
    write(tmp_path)
    with pytest.raises(InputError, match="are too short for windows of 13 min"):
        tasks.get("ppg-dalia", data_dir=str(tmp_path)).splits()
    (tmp_path / "S1.npz").write_bytes((tmp_path / "S1.npz").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"S1\.npz is damaged or no \.npz file"):
        tasks.get("ppg-dalia", data_dir=str(tmp_path)).splits()
