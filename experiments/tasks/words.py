"""Texts as numbers of words: how they are cut, which words have a number of their own, and published word vectors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from solvers.errors import InputError

#: The number of every word that has none of its own.
UNKNOWN = 0

_BREAK = re.compile(r"<br\s*/?>")
_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,]\d+)+|[^\W_]+|\.{2,}|-{2,}|[^\w\s]|_")


def tokenized(text: str) -> list[str]:
    """The tokens of a text: words in lower case, numbers, and every other sign by itself.

    Line breaks of HTML are spaces. "don't" is "do" and "n't", "it's" is "it" and "'s", as in published word vectors;
    what a hyphen or an underscore joins are several words; dots or dashes in a row are one token.
    """
    plain = _BREAK.sub(" ", text.lower().replace("\u2019", "'"))
    return _TOKEN.findall(plain.replace("n't", " n't"))


def in_order_of_appearance(texts: Iterable[str], numbers: dict[str, int]) -> list[np.ndarray]:
    """Each text as numbers of its tokens; a token without one gets the next of `numbers`."""
    return [
        np.array([numbers.setdefault(token, len(numbers)) for token in tokenized(text)], dtype=np.int32)
        for text in texts
    ]


def most_frequent(texts: Sequence[np.ndarray], names: Sequence[str], most: int) -> list[int]:
    """The tokens that are there most often, at most so many, the most frequent first and equal ones by name."""
    counts = np.bincount(np.concatenate(texts), minlength=len(names))
    return sorted(np.flatnonzero(counts).tolist(), key=lambda token: (-counts[token], names[token]))[:most]


@contextlib.contextmanager
def as_text(path: Path, advice: str) -> Iterator[None]:
    """Make a file that is no text in UTF-8, or cannot be read in here, one line that ends with the advice."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; {advice}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: byte {error.start}; {advice}") from error


def read_vectors(path: Path, words: Sequence[str], drawn: Tensor) -> Tensor:
    """`drawn`, `(1 + words, size)`, with the vectors of a file for the words that it has, and 0 for unknown ones.

    Args:
        path: a text file, in every line a word and its numbers, as GloVe is published.
        words: those with the numbers 1, 2, ...
        drawn: what the other words keep.

    Raises:
        InputError: the file cannot be read, has vectors of another size, or none of the words.
    """
    numbers = {word: number for number, word in enumerate(words, start=UNKNOWN + 1)}
    vectors, size = drawn.detach().clone(), drawn.shape[1]
    vectors[UNKNOWN] = 0
    found = set()
    with as_text(path, "give --vectors a file of vectors"), path.open(encoding="utf-8") as lines:
        for place, line in enumerate(lines, start=1):
            word, *values = line.rstrip().split(" ")
            number = numbers.get(word)
            if number is not None and number not in found:
                vectors[number] = _numbers(values, size, f"{path}, line {place}").to(vectors)
                found.add(number)
    if not found:
        raise InputError(f"{path} has a vector for none of the {len(words)} words: give --vectors another file")
    return vectors


def _numbers(values: Sequence[str], size: int, where: str) -> Tensor:
    try:
        vector = np.array(values, dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{where} holds no vector: expected a word and {size} numbers") from error
    if vector.shape != (size,):
        raise InputError(f"{where} has {len(vector)} numbers, and --embedding-size is {size}: make them equal")
    if not np.isfinite(vector).all():
        raise InputError(f"{where} has a number that is not finite")
    return torch.from_numpy(vector)
