"""A text one character a step: the next character is asked for at each."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from experiments.tasks.arrays import given_path, path_in
from experiments.tasks.base import Splits, Task, positive
from experiments.tasks.series import Batch
from solvers.errors import InputError

#: Where the validation and the test part begin.
BOUNDS = (0.9, 0.95)
#: Bytes of a file, more than a recurrent network reads.
LARGEST = 1 << 30


class Text(Task):
    """The characters of a text file, one-hot; asked is the next one, at every character.

    The first 90 % of the text are trained on, the next 5 % are the validation set, the last 5 % the test set. Each is
    one sequence, cut into pieces: the network begins a piece in the state in which it ended the one before, through
    which no gradient goes (truncated backpropagation through time). In training as many parts of the text as a batch
    has rows are gone through side by side, and what is left over, so many pieces at most, is left out; validation and
    test are gone through from their first character to their last.

    A character is a Unicode one. There are as many classes as the training part has characters; where the rest has
    others they are one class more, which is never trained and costs what it costs, and that is said.

    Args:
        file: a text file in UTF-8; its path, or with `data_dir` its name in that folder.
        length: characters of a piece, over which gradients go.
        data_dir: folder with the file.

    Attributes:
        alphabet: the characters of the classes, in the order of their numbers.
    """

    name = "text"
    description = "the next character of a text file (--file), at every character; the state goes on"
    kind = "classification"
    metrics = ("bpc", "accuracy")
    baseline = "the frequency of the characters"
    every = True
    streams = True

    def __init__(self, file: str = "", length: int = 100, data_dir: str | None = None) -> None:
        self.file, self.data_dir = given_path(self.name, "file", file, data_dir), data_dir
        self.length = positive(self.name, "length", length)

    # mypy takes what is cached for what cannot be set.
    @property
    def input_size(self) -> int:  # type: ignore[override]
        """Characters of the training part, and one more where the rest has others."""
        return self.output_size

    @property
    def output_size(self) -> int:  # type: ignore[override]
        """The same."""
        return len(self.alphabet) + bool(self._unknown)

    @property
    def alphabet(self) -> str:
        """The characters of the training part, sorted."""
        return self._read[0]

    @property
    def notices(self) -> list[str]:  # type: ignore[override]
        """That there are characters that the training part has not, where it is so."""
        if not self._unknown:
            return []
        shown = " ".join(ascii(one) for one in sorted(set(self._unknown))[:5])
        return [
            f"{len(self._unknown)} characters of the validation and test text are not in the training text ({shown}): "
            "they are one class, which is never trained"
        ]

    def guesses(self, part: int) -> dict[str, Any]:
        """How frequent each character is in the training text, each seen once more than it was."""
        train, *others = self.splits()
        counts = torch.bincount(train.codes, minlength=self.output_size) + 1.0  # type: ignore[attr-defined]
        rows = len((train, *others)[part])  # type: ignore[arg-type]
        return {"frequencies": (counts / counts.sum()).log().expand(rows, self.length, -1)}

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: the file is missing, no text, or too short.
        """
        train, validation, test = (Pieces(part, self.length, self.output_size) for part in self._read[1])
        return train, validation, test

    @property
    def _unknown(self) -> str:
        return self._read[2]

    @functools.cached_property
    def _read(self) -> tuple[str, list[Tensor], str]:
        """The alphabet, the numbers of the characters of each part, and those characters that have none."""
        if not self.file:
            raise InputError(f"task {self.name!r} needs a text: give --file PATH")
        path = path_in(self.data_dir, self.file)
        codes = np.array(list(map(ord, read_text(path))), dtype=np.int64)
        parts = np.split(codes, [int(bound * len(codes)) for bound in BOUNDS])
        if min(map(len, parts)) < 2:
            raise InputError(f"{path} has {len(codes)} characters: expected 40 at least, two in each part")
        alphabet = np.unique(parts[0])
        numbers = []
        for part in parts:
            place = np.searchsorted(alphabet, part).clip(max=len(alphabet) - 1)
            numbers.append(torch.from_numpy(np.where(alphabet[place] == part, place, len(alphabet))))
        unknown = codes[~np.isin(codes, alphabet)]
        return "".join(map(chr, alphabet)), numbers, "".join(map(chr, unknown))


class Pieces(Dataset):
    """A text cut into pieces, the last of which may be shorter.

    Args:
        codes: numbers of the characters, two at least.
        length: characters of a piece.
        classes: how many numbers there are.
    """

    def __init__(self, codes: Tensor, length: int, classes: int) -> None:
        self.codes, self.length, self.classes = codes, length, classes

    def __len__(self) -> int:
        return -(-(len(self.codes) - 1) // self.length)

    def __getitem__(self, index: int | slice | Tensor) -> Batch:
        numbers = torch.arange(len(self))[index]
        first = numbers.unsqueeze(-1) * self.length
        lengths = (len(self.codes) - 1 - first).clamp(max=self.length).squeeze(-1)
        longest = int(lengths.max()) if lengths.numel() else self.length
        place = (first + torch.arange(longest)).clamp(max=len(self.codes) - 2)
        x = functional.one_hot(self.codes[place], self.classes).float()
        even = bool((lengths == longest).all())
        return Batch(x, self.codes[place + 1], None, None if even else lengths)


def read_text(path: Path) -> str:
    """A text file, its line ends as they are.

    Raises:
        InputError: it cannot be read, is too large, or is no text in UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; give --file the path of a text") from error
    if len(content) > LARGEST:
        raise InputError(f"{path} has more than {LARGEST} bytes: expected less text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: byte {error.start} is {content[error.start]:#04x}") from error
