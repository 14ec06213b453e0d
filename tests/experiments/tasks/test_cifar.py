"""CIFAR-10 from its binary files: which number stands where, what noise follows, and what is said of files."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import tasks
from experiments.tasks import cifar
from experiments.train.config import RunConfig
from experiments.train.training import resume, train
from solvers.errors import InputError

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "cifar10-small"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the CIFAR-10 files are not in {SAMPLE}")
NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)]


def write(folder, train=20, test=10, batches=NAMES):
    """Files of random images; returns the training records."""
    random = np.random.RandomState(0)
    written = []
    for name, count in (*((name, train) for name in batches), ("test_batch.bin", test)):
        records = random.randint(256, size=(count, 3073)).astype(np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
        written.append(records)
    return np.concatenate(written[:-1]), written[-1]


def test_pixels_are_read_in_order_and_rows_have_three_colours(tmp_path):
    _, records = write(tmp_path)
    channels = records[:, 1:].reshape(-1, 3, 32, 32) / np.float32(255)
    x, y = tasks.get("scifar10", data_dir=str(tmp_path)).splits()[2][:]
    assert x.shape == (10, 1024, 3) and x.dtype == torch.float32 and y.tolist() == records[:, 0].tolist()
    for colour in range(3):
        assert np.array_equal(x[4, :, colour].numpy(), channels[4, colour].reshape(-1))
    padded, _ = tasks.get("cifar10-noise", data_dir=str(tmp_path)).splits()[2][:]
    assert padded.shape == (10, 1000, 96)
    # As in the published code: a row of red, of green, of blue.
    assert np.array_equal(padded[4, 7].numpy(), channels[4, :, 7].reshape(-1))
    order = tasks.get("pscifar10", data_dir=str(tmp_path), permutation_seed=3).splits()[2][:][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert torch.equal(order, x[:, torch.randperm(1024)])


def test_noise_is_the_same_for_every_image_or_one_for_each(tmp_path):
    write(tmp_path)
    shared = [data[:][0][:, 32:] for data in tasks.get("cifar10-noise", data_dir=str(tmp_path)).splits()]
    assert all(torch.equal(noise, shared[0][:1].expand_as(noise)) for noise in shared)
    assert abs(shared[0][0].mean()) < 0.01 and abs(shared[0][0].std() - 1) < 0.01
    other = tasks.get("cifar10-noise", data_dir=str(tmp_path), padding_seed=1).splits()[0][:1][0][:, 32:]
    assert not torch.equal(other, shared[0][:1])
    options = {"data_dir": str(tmp_path), "noise_per_image": True}
    each = [data[:][0][:, 32:] for data in tasks.get("cifar10-noise", **options).splits()]
    assert len({noise.numpy().tobytes() for part in each for noise in part}) == 110
    data = tasks.get("cifar10-noise", **options).splits()[0]
    # However it is asked for.
    assert torch.equal(data[5][0][32:], each[0][5]) and torch.equal(data[torch.tensor([7, 5])][0][1, 32:], each[0][5])
    assert data[0:0][0].shape == (0, 1000, 96)


def test_six_in_a_hundred_are_held_out_and_every_image_is_in_one_set(tmp_path):
    records, _ = write(tmp_path)
    task = tasks.get("scifar10", data_dir=str(tmp_path))
    train, validation, test = task.splits(0)
    assert [len(train), len(validation), len(test)] == [94, 6, 10]
    found = torch.cat([data[:][0] for data in (train, validation)])
    expected = torch.from_numpy(records[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1) / np.float32(255))
    assert {row.numpy().tobytes() for row in found} == {row.contiguous().numpy().tobytes() for row in expected}
    again = tasks.get("scifar10", data_dir=str(tmp_path)).splits(3)
    assert torch.equal(again[0][:][0], train[:][0])
    labels = {x.numpy().tobytes(): int(y) for x, y in (train[number] for number in range(94))}
    assert all(
        labels.get(row.contiguous().numpy().tobytes(), y) == y for row, y in zip(expected, records[:, 0], strict=True)
    )


def test_missing_batches_are_left_out_and_said(tmp_path, capsys):
    write(tmp_path, train=20, test=10, batches=NAMES[1:3])
    (line,) = tasks.get("cifar10-noise", data_dir=str(tmp_path)).notices
    assert line == (
        "CIFAR-10 with 40 of 50,000 training images and 10 of 10,000 test images: figures are not comparable with "
        "published ones"
    )
    config = RunConfig(
        task="cifar10-noise",
        data_dir=str(tmp_path),
        model_options={"hidden_size": 2},
        epochs=1,
        limit_train_batches=1,
        limit_evaluation_batches=1,
        batch_size=2,
    )
    result = train(config, root=tmp_path / "runs", progress=False)
    assert 0 <= result.test["accuracy"] <= 1 and line in capsys.readouterr().err
    assert result.notices == [line] == resume(result.folder.path, progress=False).notices


def test_all_images_need_no_word(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "IMAGES", {"training": 100, "test": 10})
    write(tmp_path)
    assert tasks.get("scifar10", data_dir=str(tmp_path)).notices == []


def test_files_are_found_in_the_folder_of_the_archive(tmp_path):
    inside = tmp_path / "cifar-10-batches-bin"
    inside.mkdir()
    write(inside)
    assert len(tasks.get("scifar10", data_dir=str(tmp_path)).splits()[0]) == 94


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data_batch_2.bin", lambda old: old[:-1], "has 61459 bytes, expected a multiple of 3073"),
        ("data_batch_2.bin", lambda old: b"", "has 0 bytes, expected a multiple of 3073"),
        ("test_batch.bin", lambda old: old + b"0", "has 30731 bytes, expected a multiple of 3073"),
        ("test_batch.bin", lambda old: old[:3073] + b"\x0a" + old[3074:], "image 2 has the label 10, expected 0 to 9"),
        ("data_batch_1.bin", lambda old: b"<html>404 not found</html>", "has 26 bytes, expected a multiple of 3073"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(name, change, message, tmp_path):
    write(tmp_path)
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}:? {re.escape(message)}") as caught:
        tasks.get("scifar10", data_dir=str(tmp_path)).splits()
    assert "\n" not in str(caught.value)


def test_a_file_larger_than_memory_is_not_read(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(cifar, "LARGEST", 3073)
    with pytest.raises(InputError, match="has more than 3073 bytes"):
        tasks.get("scifar10", data_dir=str(tmp_path)).splits()


def test_missing_files_say_what_is_needed(tmp_path):
    with pytest.raises(InputError, match=r"test_batch\.bin not found in .*nowhere: no such folder; give --data-dir"):
        tasks.get("scifar10", data_dir=str(tmp_path / "nowhere")).splits()
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    with pytest.raises(InputError, match=r"data_batch_1\.bin not found in .*: no such file; give"):
        tasks.get("scifar10", data_dir=str(tmp_path)).splits()
    write(tmp_path, train=3, batches=NAMES[:1])
    with pytest.raises(InputError, match="has 3 training images: none is left for validation"):
        tasks.get("scifar10", data_dir=str(tmp_path)).splits()


def test_offline_fetch_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALOSC_CIFAR10", str(tmp_path / "cache"))
    # Nothing listens on the discard port of this machine.
    monkeypatch.setattr(cifar, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(InputError) as caught:
        tasks.get("scifar10").splits()
    message = str(caught.value)
    assert (
        message.startswith(f"CIFAR-10 is not in {tmp_path / 'cache'} and could not be fetched") and "\n" not in message
    )
    assert "data_batch_1.bin to data_batch_5.bin and test_batch.bin" in message


def test_the_archive_is_unpacked_where_it_is_looked_for(tmp_path, monkeypatch):
    import hashlib
    import tarfile

    inside, cache = tmp_path / "cifar-10-batches-bin", tmp_path / "cache"
    inside.mkdir(), cache.mkdir()
    write(inside)
    archive = cache / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(inside, inside.name)
    monkeypatch.setenv("NEURALOSC_CIFAR10", str(cache))
    monkeypatch.setattr(cifar, "CHECKSUMS", {archive.name: hashlib.sha256(archive.read_bytes()).hexdigest()})
    # It is there, so that no network is asked.
    monkeypatch.setattr(cifar, "MIRRORS", ("http://127.0.0.1:9/",))
    assert [len(data) for data in tasks.get("scifar10").splits()] == [94, 6, 10]


@needs_sample
def test_real_images_look_like_images():
    task = tasks.get("scifar10", data_dir=str(SAMPLE))
    train, validation, test = task.splits()
    assert [len(train), len(validation), len(test)] == [1880, 120, 1000]
    x, _ = test[:]
    rows = x.unflatten(1, (32, 32))
    # Neighbours are alike, of each colour; of shuffled bytes they would not be.
    for across in (rows[:, :, 1:] - rows[:, :, :-1], rows[:, 1:] - rows[:, :-1]):
        assert across.abs().mean() < 0.1 < (rows[:-1] - rows[1:]).abs().mean()
