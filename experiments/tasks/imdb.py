"""IMDB: whether a film review, a text of some hundred words, is for or against the film."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from experiments.tasks import words
from experiments.tasks.arrays import given_path, path_in
from experiments.tasks.base import Splits, Task, positive, stratified
from experiments.tasks.fetching import fetched
from experiments.tasks.series import Series
from neuralosc.arguments import probability
from solvers.errors import InputError

FOLDER = "aclImdb"
#: Of class 0 and 1.
CLASSES = ("neg", "pos")
#: Texts of each of the two published parts.
PUBLISHED = 25_000
#: Of 25,000 texts 7,500.
VALIDATION_SHARE = 0.3
ARCHIVE = "aclImdb_v1.tar.gz"
CHECKSUMS = {ARCHIVE: "md5:7c2ac02c03563afcf9b574c7e56c153a"}
MIRRORS = ("https://ai.stanford.edu/~amaas/data/sentiment/",)


class Texts(NamedTuple):
    """Some texts.

    Attributes:
        numbers: of the tokens of each.
        labels: the class of each, `(texts,)`.
    """

    numbers: list[np.ndarray]
    labels: np.ndarray


class IMDB(Task):
    """Film reviews as numbers of words; asked is whether a review is for the film.

    The test set is the published one. Of the published training set three in ten texts of each class (7,500 of 25,000)
    are the validation set, chosen once by a fixed seed. The most frequent tokens of the other 17,500 have a number of
    their own, and all others one together; which they are nobody but the training texts says.

    A network sees a text up to its own end. The published scripts of coRNN and UnICORNN let it run on over the padding
    of the batch, so that there an answer depends on how long the other texts are. Their tokens are spaCy's, in which
    "The" and "the" are two, and the line breaks of HTML are tokens; here see `words.tokenized`.

    Source: A. L. Maas, R. E. Daly, P. T. Pham, D. Huang, A. Y. Ng, C. Potts, Learning word vectors for sentiment
    analysis, ACL 2011; as in T. K. Rusch and S. Mishra, Coupled oscillatory recurrent neural network, ICLR 2021, and
    UnICORNN, ICML 2021.

    Args:
        data_dir: the folder aclImdb as published, or one that holds it; None fetches it once into a cache folder.
        vocabulary: how many tokens have a number of their own, at most.
        max_length: tokens that are read of a text, from its beginning; 0 for whole texts, as published.
        embedding_size: features of the trained vector of a token.
        embedding_dropout: probability of dropping a token, wherever it stands in a batch.
        vectors: a text file of word vectors that training begins with, such as glove.6B.100d.txt of GloVe, as
            published; its path, or with `data_dir` its name in that folder. Left out, they are drawn.
    """

    name = "imdb"
    description = "whether a film review is for the film, words through a trained embedding; needs the folder aclImdb"
    output_size = 2
    kind = "classification"
    baseline = "0.874 (coRNN, 128 units)"

    def __init__(
        self,
        data_dir: str | None = None,
        vocabulary: int = 25_000,
        max_length: int = 0,
        embedding_size: int = 100,
        embedding_dropout: float = 0.0,
        vectors: str = "",
    ) -> None:
        self.data_dir = data_dir
        self.vocabulary = positive(self.name, "vocabulary", vocabulary)
        self.max_length = positive(self.name, "max_length", max_length, least=0)
        self.embedding_size = positive(self.name, "embedding_size", embedding_size)
        self.embedding_dropout = probability("embedding_dropout", embedding_dropout)
        self.vectors = given_path(self.name, "vectors", vectors, data_dir)

    # mypy takes what is cached for what cannot be set.
    @property
    def tokens(self) -> int:  # type: ignore[override]
        """The words with a number of their own, and one for all others."""
        return 1 + len(self.words)

    @property
    def length(self) -> int:  # type: ignore[override]
        """Tokens of the longest text, as it is read."""
        return max(len(each) for part in self._cut for each in part.numbers)

    @property
    def words(self) -> list[str]:
        """The words with the numbers 1, 2, ..., the most frequent first."""
        return self._read[0]

    @property
    def notices(self) -> list[str]:  # type: ignore[override]
        """That texts are cut, and that there are not as many as were published, where it is so."""
        train, validation, test = self._read[1]
        found = (len(train.labels) + len(validation.labels), len(test.labels))
        said = []
        if found != (PUBLISHED, PUBLISHED):
            counts = f"{found[0]:,} of {PUBLISHED:,} training and {found[1]:,} of {PUBLISHED:,} test texts"
            said.append(f"IMDB with {counts}: figures are not comparable with published ones")
        every = [len(each) for part in self._read[1] for each in part.numbers]
        cut = sum(count > self.max_length for count in every) if self.max_length else 0
        if cut:
            said.append(f"{cut:,} of {len(every):,} texts are longer than --max-length, of which the beginning is read")
        return said

    def numbers(self, text: str) -> list[int]:
        """A text as a trained model takes it: `model.predict(None, task.numbers(text))`."""
        return [self._numbered.get(token, words.UNKNOWN) for token in words.tokenized(text)][: self.max_length or None]

    @functools.cached_property
    def _numbered(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, start=words.UNKNOWN + 1)}

    def embedded(self, drawn: Tensor) -> Tensor:
        """The vectors that training begins with: those of the file for the words that it has."""
        if not self.vectors:
            return drawn
        return words.read_vectors(path_in(self.data_dir, self.vectors), self.words, drawn)

    def guesses(self, part: int) -> dict[str, Any]:
        """What says naive Bayes, of the counts of the tokens in either class, each seen once more than it was."""
        train = self._cut[0]
        tokens = [np.concatenate([train.numbers[i] for i in np.flatnonzero(train.labels == c)]) for c in range(2)]
        counts = np.stack([np.bincount(each, minlength=self.tokens) for each in tokens]) + 1.0
        logs = np.log(counts / counts.sum(1, keepdims=True))
        prior = np.log(np.bincount(train.labels, minlength=2) / len(train.labels))
        scores = np.stack([prior + logs[:, each].sum(1) for each in self._cut[part].numbers])
        return {"naive Bayes": torch.from_numpy(scores).log_softmax(-1).float()}

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`: tokens `(texts, time, 1)` int32 with lengths, and classes.

        Raises:
            InputError: a folder or a text is missing, or cannot be read.
        """
        return self._sets

    @functools.cached_property
    def _sets(self) -> Splits:
        train, validation, test = map(_padded, self._cut)
        return train, validation, test

    @functools.cached_property
    def _cut(self) -> list[Texts]:
        """The three parts, of each text what is read."""
        most = self.max_length or None
        return [Texts([each[:most] for each in part.numbers], part.labels) for part in self._read[1]]

    @functools.cached_property
    def _read(self) -> tuple[list[str], list[Texts]]:
        """The words with numbers of their own, and the three parts in numbers."""
        folder = self._folder()
        known: dict[str, int] = {}
        published, test = (self._part(folder / part, known) for part in ("train", "test"))
        own, held, _ = (part.numpy() for part in stratified(published.labels, VALIDATION_SHARE, 0))
        if not len(held):
            raise InputError(f"{folder} has {len(published.labels)} training texts, too few to leave some to validate")
        train, validation = (
            Texts([published.numbers[i] for i in part], published.labels[part]) for part in (own, held)
        )
        names = list(known)
        chosen = words.most_frequent(train.numbers, names, self.vocabulary)
        numbers = np.full(len(names), words.UNKNOWN, dtype=np.int32)
        numbers[chosen] = np.arange(1, len(chosen) + 1)
        parts = [Texts([numbers[each] for each in part.numbers], part.labels) for part in (train, validation, test)]
        return [names[i] for i in chosen], parts

    def _folder(self) -> Path:
        """Where `train` and `test` are."""
        if self.data_dir is None:
            needed = f"the folder {FOLDER} of {ARCHIVE}"
            return fetched("IMDB", CHECKSUMS, MIRRORS, needed, unpack=True) / f"{ARCHIVE}.untar" / FOLDER
        folder = Path(self.data_dir).expanduser()
        return folder / FOLDER if (folder / FOLDER).is_dir() else folder

    def _part(self, folder: Path, known: dict[str, int]) -> Texts:
        """The texts of `train` or `test`, of the two classes in turn."""
        paths = [sorted((folder / name).glob("*.txt")) for name in CLASSES]
        for name, each in zip(CLASSES, paths, strict=True):
            if not each:
                raise InputError(f"{folder / name} has no texts (*.txt): give --data-dir the folder {FOLDER}")
        order = sorted((place, label) for label, each in enumerate(paths) for place in range(len(each)))
        numbers = words.in_order_of_appearance((_text(paths[label][place]) for place, label in order), known)
        empty = next((i for i, each in enumerate(numbers) if not len(each)), None)
        if empty is not None:
            place, label = order[empty]
            raise InputError(f"{paths[label][place]} has no words: expected a text")
        return Texts(numbers, np.array([label for _, label in order]))


def _padded(texts: Texts) -> Series:
    """Texts as one set; what stands in the padding is no matter."""
    x = pad_sequence([torch.from_numpy(each) for each in texts.numbers], batch_first=True)
    lengths = torch.tensor([len(each) for each in texts.numbers])
    return Series(x.unsqueeze(-1), torch.from_numpy(texts.labels), None, lengths)


def _text(path: Path) -> str:
    with words.as_text(path, f"unpack {ARCHIVE} again"):
        return path.read_text(encoding="utf-8")
