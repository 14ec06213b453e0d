import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import tasks
from experiments.tasks import idx, mnist
from experiments.tasks.adding import AddingSequences
from experiments.tasks.idx import read_idx
from experiments.tasks.metrics import METRICS
from solvers.errors import InputError, UnknownNameError

MNIST = Path(__file__).parents[4] / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason=f"the MNIST files are not in {MNIST}")


def rows(data):
    """The sequences of a data set as a set of hashable values."""
    x, _ = data[:]
    return {row.numpy().tobytes() for row in x}


def test_every_task_describes_itself(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("a\n" + "".join(f"{number}\n" for number in range(40)))
    given = {"table": {"csv": str(path), "target": "a", "horizon": "1", "history": "2"}}
    for name, kind in tasks.TASKS.items():
        task = tasks.get(name, **given.get(name, {}))
        assert task.name == name and isinstance(task, kind)
        assert task.description and "\n" not in task.description
        assert task.metric_name == task.metrics[0] and all(METRICS[name].kind == task.kind for name in task.metrics)
        # Those of a set that is named are known when it has been read.
        if name not in ("uea", "text", "imdb"):
            assert task.length > 0 and task.input_size > 0 and task.output_size > 0


def test_unknown_task_and_unknown_option_list_the_nearest():
    with pytest.raises(UnknownNameError, match="'digts': did you mean 'digits'"):
        tasks.get("digts")
    with pytest.raises(UnknownNameError, match="'lenght': did you mean 'length'"):
        tasks.get("adding", lenght=3)
    with pytest.raises(UnknownNameError, match="option of task 'digits'"):
        tasks.get("digits", length=3)


def test_digits_are_divided_once_and_for_all_with_equal_classes():
    splits = tasks.get("digits").splits(seed=0)
    assert [len(data) for data in splits] == [1258, 270, 269]
    train, validation, test = splits
    x, y = train[0]
    assert x.shape == (64, 1) and x.dtype == torch.float32 and y.dtype == torch.int64
    everything = torch.cat([data[:][1] for data in splits])
    overall = torch.bincount(everything, minlength=10)
    for data, share in zip(splits, (0.7, 0.15, 0.15), strict=True):
        assert (torch.bincount(data[:][1], minlength=10) - share * overall).abs().max() <= 1
        assert data[:][0].min() >= 0 and data[:][0].max() <= 1
    # All 1797 images of the set differ.
    assert len(rows(train) | rows(validation) | rows(test)) == len(everything) == 1797
    again = tasks.get("digits").splits(seed=3)
    assert all(torch.equal(a[:][0], b[:][0]) for a, b in zip(splits, again, strict=True))


def test_digits_are_read_in_rows_from_the_images():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = {row.tobytes(): label for row, label in zip((pixels / 16).astype(np.float32), labels, strict=True)}
    x, y = tasks.get("digits").splits()[2][5]
    assert images[x.squeeze(-1).numpy().tobytes()] == y


def test_adding_marks_one_value_in_each_half_and_asks_for_their_sum():
    train, validation, test = tasks.get("adding", length=11, train_size=300, validation_size=20, test_size=30).splits(4)
    assert [len(train), len(validation), len(test)] == [300, 20, 30]
    x, y = train[:]
    assert x.shape == (300, 11, 2) and y.shape == (300, 1) and x.dtype == y.dtype == torch.float32
    values, marks = x.unbind(-1)
    assert torch.equal(marks[:, :5].sum(1), torch.ones(300)) and torch.equal(marks[:, 5:].sum(1), torch.ones(300))
    torch.testing.assert_close((values * marks).sum(1, keepdim=True), y)
    # Every place is marked in some sequence, and the values are uniform: mean 1/2, variance 1/12.
    assert (marks.sum(0) > 0).all()
    assert abs(values.mean() - 1 / 2) < 0.02 and abs(values.var() - 1 / 12) < 0.01


def test_adding_sequences_depend_on_seed_set_and_index_alone():
    data = AddingSequences(20, 50, seed=7, stream=0)
    x, y = data[:]
    assert torch.equal(data[13][0], x[13]) and torch.equal(data[13][1], y[13])
    picked = torch.tensor([40, 3, 3])
    assert torch.equal(data[picked][0], x[picked])
    assert data[0:0][0].shape == (0, 20, 2)
    larger = AddingSequences(20, 80, seed=7, stream=0)
    assert torch.equal(larger[:50][0], x)
    for other in (AddingSequences(20, 50, seed=8, stream=0), AddingSequences(20, 50, seed=7, stream=1)):
        assert not rows(other) & rows(data)
    with pytest.raises(IndexError):
        data[50]


def test_adding_baseline_is_the_error_of_always_answering_one():
    task = tasks.get("adding", length=10, test_size=20_000)
    _, y = task.splits()[2][:]
    # The standard error of the mean squared deviation is 0.0014 with 20 000 sequences.
    assert abs(float(((y - 1) ** 2).mean()) - task.baseline) < 0.005


@pytest.mark.parametrize("options", [{"length": 1}, {"length": 2.5}, {"train_size": 0}, {"test_size": True}])
def test_adding_refuses_useless_options(options):
    with pytest.raises(InputError, match=f"'{next(iter(options))}' is .*: expected a whole number of at least"):
        tasks.get("adding", **options)


@needs_mnist
def test_smnist_has_the_published_sizes_and_values():
    train, validation, test = tasks.get("smnist", data_dir=str(MNIST)).splits()
    assert [len(train), len(validation), len(test)] == [57_000, 3_000, 10_000]
    x, y = test[:]
    assert x.shape == (10_000, 784, 1) and x.min() == 0 and x.max() == 1
    # Of the published test set: the first label, the number of ones, the mean pixel.
    assert y[0] == 7 and (y == 1).sum() == 1135
    assert abs(float(x.mean()) - 0.1325) < 1e-4
    labels = torch.cat([train[:][1], validation[:][1]])
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # Some pictures in MNIST could be equal; none of the held out ones is among the first thousand trained on.
    assert not rows(validation) & {row.numpy().tobytes() for row in train[:1000][0]}


@pytest.mark.parametrize("seed, start", [(12008, [91, 97, 471, 426, 157]), (5544, [327, 72, 48, 129, 109])])
def test_psmnist_permutes_as_the_published_code(seed, start, tmp_path):
    write_mnist(tmp_path)
    plain = tasks.get("smnist", data_dir=str(tmp_path)).splits()
    permuted = tasks.get("psmnist", data_dir=str(tmp_path), permutation_seed=seed).splits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(784)
    assert order[:5].tolist() == start
    for a, b in zip(plain, permuted, strict=True):
        assert torch.equal(a[:][0][:, order], b[:][0]) and torch.equal(a[:][1], b[:][1])


def test_psmnist_permutation_is_that_of_cornn_by_default():
    assert tasks.get("psmnist").order()[:5].tolist() == [91, 97, 471, 426, 157]


def write_idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def write_mnist(folder, train=40, test=10, side=28):
    random = np.random.RandomState(0)
    for part, count in (("train", train), ("t10k", test)):
        write_idx(folder / f"{part}-images-idx3-ubyte", random.randint(256, size=(count, side, side), dtype=np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte", random.randint(10, size=count, dtype=np.uint8))


def test_plain_gzipped_and_dotted_files_are_the_same_data(tmp_path):
    folders = [tmp_path / name for name in ("plain", "gzipped", "dotted")]
    for folder in folders:
        folder.mkdir()
        write_mnist(folder)
    for file in folders[1].iterdir():
        (folders[1] / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    for file in folders[2].iterdir():
        file.rename(folders[2] / file.name.replace("-idx", ".idx"))
    sets = [tasks.get("smnist", data_dir=str(folder)).splits() for folder in folders]
    assert [len(data) for data in sets[0]] == [38, 2, 10]
    for other in sets[1:]:
        for a, b in zip(sets[0], other, strict=True):
            assert torch.equal(a[:][0], b[:][0]) and torch.equal(a[:][1], b[:][1])


def test_missing_files_are_one_clear_line(tmp_path):
    with pytest.raises(
        InputError, match=r"train-images-idx3-ubyte\(\.gz\) not found in .*nowhere: no such folder; give"
    ):
        tasks.get("smnist", data_dir=str(tmp_path / "nowhere")).splits()
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\(\.gz\) not found in .*: no such file; give"):
        tasks.get("smnist", data_dir=str(tmp_path)).splits()


def test_offline_fetch_says_what_is_missing_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALOSC_MNIST", str(tmp_path / "cache"))
    # Nothing listens on the discard port of this machine.
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/mnist/",))
    with pytest.raises(InputError) as caught:
        tasks.get("smnist").splits()
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"MNIST is not in {tmp_path / 'cache'} and could not be fetched")
    assert "http://127.0.0.1:9/mnist/" in message and "--data-dir" in message


def corrupted(content, fault):
    if fault == "not a gzip file":
        return b"\x1f\x8b" + content
    if fault == "cut gzip":
        return gzip.compress(content)[:-20]
    if fault == "wrong checksum":
        packed = bytearray(gzip.compress(content))
        packed[-6] ^= 1
        return bytes(packed)
    return {
        "empty": b"",
        "wrong magic": b"\x00\x00\x0d\x03" + content[4:],
        "labels in place of images": b"\x00\x00\x08\x01" + content[4:],
        "cut header": content[:9],
        "cut": content[:-1],
        "too long": content + b"\x00",
        "huge shape": content[:4] + b"\xff" * 12 + content[16:],
        "text": b"<html>404 not found</html>",
    }[fault]


@pytest.mark.parametrize(
    "fault, message",
    [
        ("not a gzip file", "is a damaged gzip file"),
        ("cut gzip", "is a damaged gzip file"),
        ("wrong checksum", "is a damaged gzip file"),
        ("empty", "it starts with nothing and not with 00000803"),
        ("wrong magic", "it starts with 00000d03"),
        ("labels in place of images", "it starts with 00000801"),
        ("cut header", "cut off inside its header"),
        ("cut", "is cut off: .* bytes where its header announces"),
        ("too long", "is too long"),
        ("huge shape", "is cut off"),
        ("text", "it starts with 3c68746d"),
    ],
)
def test_damaged_files_are_one_clear_line_that_names_the_file(fault, message, tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(corrupted(file.read_bytes(), fault))
    with pytest.raises(InputError, match=message) as caught:
        tasks.get("smnist", data_dir=str(tmp_path)).splits()
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_unpacks_to_more_than_memory_is_not_unpacked(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "LARGEST", 10_000)
    path, content = (
        tmp_path / "images",
        struct.pack(">BBBBIII", 0, 0, 8, 3, 1, 28, 28) + bytes(1 << 20),
    )
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match="is too long: more than 10000 bytes where its header announces 800"):
        read_idx(path, 3)


def test_a_set_without_an_image_is_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(0, np.uint8))
    with pytest.raises(InputError, match="holds no image"):
        tasks.get("smnist", data_dir=str(tmp_path)).splits()


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_idx(tmp_path, 3)


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(39, np.uint8))
    with pytest.raises(InputError, match=r"holds 40 images and .* 39 labels"):
        tasks.get("smnist", data_dir=str(tmp_path)).splits()
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(40, 10, np.uint8))
    with pytest.raises(InputError, match="holds the label 10: expected 0 to 9"):
        tasks.get("smnist", data_dir=str(tmp_path)).splits()
    write_mnist(tmp_path, side=27)
    with pytest.raises(InputError, match=r"images of \(27, 27\) pixels"):
        tasks.get("smnist", data_dir=str(tmp_path)).splits()


def test_event_mnist_has_the_changes_and_the_pixels_between_them(tmp_path):
    write_mnist(tmp_path)
    images = [data[:][0] for data in tasks.get("smnist", data_dir=str(tmp_path)).splits()]
    splits = tasks.get("event_mnist", data_dir=str(tmp_path), pixels_per_step=4).splits()
    # Random pixels change all the time: the events that are too many are left out.
    assert max(int(data[:].lengths.max()) for data in splits) == 256
    for data, pixels in zip(splits, images, strict=True):
        for number in range(len(data)):
            bits = (pixels[number, :, 0] * 255).round() > 128
            changes = [i for i in range(784) if i == 0 or bits[i] != bits[i - 1]][:256]
            one = data[number]
            assert one.lengths == len(changes) and torch.equal(one.x[:, 0], bits[changes].float())
            assert (4 * one.timespans).tolist() == [1, *np.diff(changes)]


@needs_mnist
def test_event_mnist_has_about_53_events():
    lengths = tasks.get("event_mnist", data_dir=str(MNIST)).splits()[2][:].lengths.float()
    assert abs(lengths.mean() - 52.92) < 0.01 and lengths.max() == 105
