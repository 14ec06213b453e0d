"""A text by its characters: how it is divided and cut, and what is said of it."""

import math
import re

import pytest
import torch

from experiments import tasks
from experiments.tasks import text
from experiments.tasks.base import Task
from experiments.tasks.text import Pieces
from solvers.errors import InputError


def write(folder, content, name="given.txt"):
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def test_a_text_is_divided_in_order_and_the_next_character_is_asked_for(tmp_path):
    content = "".join("ab\ncd\r é"[(7 * n * n + n) % 8] for n in range(400))
    task = tasks.get("text", file=str(write(tmp_path, content)), length=16)
    assert task.alphabet == "".join(sorted(set(content))) and task.input_size == task.output_size == len(task.alphabet)
    assert task.notices == [] and isinstance(task, Task)
    for data, part in zip(task.splits(3), (content[:360], content[360:380], content[380:]), strict=True):
        pieces = [data[number] for number in range(len(data))]
        x, y = (torch.cat([piece[number] for piece in pieces]) for number in (0, 1))
        assert torch.equal(x.sum(-1), torch.ones(len(part) - 1)) and x.dtype == torch.float32
        assert "".join(task.alphabet[n] for n in x.argmax(-1)) == part[:-1]
        assert "".join(task.alphabet[n] for n in y) == part[1:]
        assert [len(piece.x) for piece in pieces[:-1]] == [16] * (len(pieces) - 1) and 0 < len(pieces[-1].x) <= 16


def test_pieces_are_indexed_as_a_data_set():
    data = Pieces(torch.arange(26) % 5, 10, 5)
    assert len(data) == 3
    whole = data[:]
    assert whole.x.shape == (3, 10, 5) and whole.lengths.tolist() == [10, 10, 5]
    few = data[torch.tensor([1, 0])]
    assert few.lengths is None and torch.equal(few.y[1], whole.y[0])
    assert data[2].x.shape == (5, 5) and data[torch.tensor([2])].lengths is None and data[0:0].x.shape == (0, 10, 5)
    with pytest.raises(IndexError):
        data[3]


def test_characters_that_the_training_text_has_not_are_one_class_and_are_said(tmp_path):
    content = "ab" * 180 + "ab" * 8 + "azab" + "ab" * 8 + "yyzz"
    task = tasks.get("text", file=str(write(tmp_path, content)), length=10)
    assert task.alphabet == "ab" and task.output_size == 3
    assert task.notices == [
        "5 characters of the validation and test text are not in the training text ('y' 'z'): they are one class, "
        "which is never trained"
    ]
    train, validation, test = task.splits()
    assert 2 not in train.codes and (validation.codes == 2).sum() == 1 and (test.codes == 2).sum() == 4


def test_the_frequencies_are_those_of_the_training_text(tmp_path):
    task = tasks.get("text", file=str(write(tmp_path, "aab" * 200)), length=10)
    guess = task.guesses(2)["frequencies"]
    assert guess.shape == (len(task.splits()[2]), 10, 2)
    assert guess[0, 0, 0].exp() == pytest.approx(361 / 542) and guess[0, 0].exp().sum() == pytest.approx(1)


def test_a_file_is_named_by_its_path_or_in_a_folder(tmp_path, monkeypatch):
    write(tmp_path, "abc" * 30)
    monkeypatch.chdir(tmp_path)
    relative = tasks.get("text", file="given.txt")
    assert relative.file == str(tmp_path / "given.txt")
    inside = tasks.get("text", file="given.txt", data_dir=str(tmp_path))
    assert inside.file == "given.txt" and torch.equal(inside.splits()[0].codes, relative.splits()[0].codes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory; give --file the path of a text"),
        (b"ab\xff\xfe" * 20, "is no text in UTF-8: byte 2 is 0xff"),
        ("é".encode()[:1] + b"a" * 50, "is no text in UTF-8: byte 0 is 0xc3"),
        ("", "has 0 characters: expected 40 at least"),
        ("a" * 30, "has 30 characters: expected 40 at least"),
    ],
)
def test_a_file_that_is_no_text_is_one_line(content, message, tmp_path):
    path = tmp_path / "given.txt" if content is None else write(tmp_path, content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} {re.escape(message)}") as caught:
        tasks.get("text", file=str(path)).splits()
    assert "\n" not in str(caught.value)


def test_what_is_left_out_or_too_large_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="task 'text' needs a text: give --file PATH"):
        tasks.get("text").splits()
    with pytest.raises(InputError, match="'length' is 0: expected a whole number of at least 1"):
        tasks.get("text", length=0)
    monkeypatch.setattr(text, "LARGEST", 50)
    with pytest.raises(InputError, match="has more than 50 bytes"):
        tasks.get("text", file=str(write(tmp_path, "a" * 51))).splits()
    assert math.isfinite(len(tasks.get("text", file=str(write(tmp_path, "a" * 50))).splits()[0]))
