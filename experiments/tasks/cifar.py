"""CIFAR-10 as sequences: rows that are followed by noise, or one pixel a step, in reading order or in another."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments.tasks.base import SPLIT_SEED, Splits, Task, positive
from experiments.tasks.fetching import fetched
from solvers.errors import InputError

SIDE, CHANNELS = 32, 3
PIXELS = SIDE * SIDE
#: A record is the label and the pixels of one channel after another.
RECORD = 1 + CHANNELS * PIXELS
TRAINING, TEST = tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"
IMAGES = {"training": 50_000, "test": 10_000}
#: What the archive of the files unpacks to.
FOLDER = "cifar-10-batches-bin"
#: SHA-256 of the archive as published.
CHECKSUMS = {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"}
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)

#: Bytes of a file, more than any of this format has.
LARGEST = 1 << 30
#: Of 50,000 images 3,000.
VALIDATION_SHARE = 0.06

Parts = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class SequentialCIFAR10(Task):
    """CIFAR-10 images one pixel a step: 1,024 samples of red, green and blue in [0, 1], in reading order.

    The validation set is six in a hundred of the published training set (3,000 of 50,000), chosen once by a fixed seed;
    the test set is the published one. Where files are missing or short, what is there is used, and said.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.

    Args:
        data_dir: folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, or with the folder
            cifar-10-batches-bin of the archive; None fetches it once into a cache folder.
    """

    name = "scifar10"
    description = "CIFAR-10, one pixel of three colours a step (T = 1024), 10 classes; needs the binary files"
    input_size = CHANNELS
    output_size = 10
    kind = "classification"
    baseline = "0.1 by chance"
    length = PIXELS

    def __init__(self, data_dir: str | None = None) -> None:
        self.data_dir = data_dir

    @property
    def notices(self) -> list[str]:  # type: ignore[override]
        """That there are not as many images as were published, where it is so."""
        found = {name: len(labels) for name, (_, labels) in zip(IMAGES, self._parts, strict=True)}
        if found == IMAGES:
            return []
        counts = " and ".join(f"{found[name]:,} of {IMAGES[name]:,} {name} images" for name in IMAGES)
        return [f"CIFAR-10 with {counts}: figures are not comparable with published ones"]

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: a file is missing, damaged, or holds something else.
        """
        (images, labels), tested = self._parts
        shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
        held_out = int(VALIDATION_SHARE * len(images))
        if not held_out:
            raise InputError(f"{self._folder} has {len(images)} training images: none is left for validation")
        parts = [(part, images[part], labels[part]) for part in (shuffled[held_out:], shuffled[:held_out])]
        train, validation, test = (
            Images(self, number, *part) for number, part in ((0, parts[0]), (0, parts[1]), (1, (None, *tested)))
        )
        return train, validation, test

    def shown(self, images: Tensor, part: int, numbers: Tensor) -> Tensor:
        """What a network is shown of images.

        Args:
            images: bytes, `(number, 3, 32, 32)`.
            part: 0 of the published training set, 1 of the test set.
            numbers: their places in it, `(number,)`.

        Returns:
            `(number, time, features)`.
        """
        return scaled(images).flatten(2).transpose(1, 2)

    @functools.cached_property
    def _folder(self) -> Path:
        if self.data_dir is None:
            needed = f"{TRAINING[0]} to {TRAINING[-1]} and {TEST}"
            return (
                fetched("CIFAR-10", CHECKSUMS, MIRRORS, needed, unpack=True) / f"{next(iter(CHECKSUMS))}.untar" / FOLDER
            )
        folder = Path(self.data_dir).expanduser()
        return folder / FOLDER if (folder / FOLDER).is_dir() and not (folder / TEST).is_file() else folder

    @functools.cached_property
    def _parts(self) -> Parts:
        """Images `(number, 3, 32, 32)` and labels of the training batches that are there, and of the test batch."""
        there = [name for name in TRAINING if (self._folder / name).is_file()]
        for name in (TEST, *(() if there else TRAINING[:1])):
            if not (self._folder / name).is_file():
                state = "no such file" if self._folder.is_dir() else "no such folder"
                raise InputError(
                    f"CIFAR-10 file {name} not found in {self._folder}: {state}; give --data-dir the folder that holds"
                    f" {TRAINING[0]} to {TRAINING[-1]} and {TEST}"
                )
        batches = [read_batch(self._folder / name) for name in there]
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return (images, labels), read_batch(self._folder / TEST)


class PermutedSequentialCIFAR10(SequentialCIFAR10):
    """CIFAR-10 with the pixels of every image in one random order.

    Args:
        data_dir: as for `SequentialCIFAR10`.
        permutation_seed: chooses the order, `torch.manual_seed(seed); torch.randperm(1024)`.
    """

    name = "pscifar10"
    description = "CIFAR-10, one pixel a step in a fixed random order (T = 1024), 10 classes; needs the binary files"

    def __init__(self, data_dir: str | None = None, permutation_seed: int = 12008) -> None:
        super().__init__(data_dir)
        self.permutation_seed = positive(self.name, "permutation_seed", permutation_seed, least=0)

    def shown(self, images: Tensor, part: int, numbers: Tensor) -> Tensor:
        """The pixels in the order of the seed."""
        order = torch.randperm(PIXELS, generator=torch.Generator().manual_seed(self.permutation_seed))
        return super().shown(images, part, numbers)[:, order]


class NoisyCIFAR10(SequentialCIFAR10):
    """CIFAR-10 images by their 32 rows, followed by 968 samples of standard normal noise: what was seen must be kept.

    A row is 96 numbers in [0, 1]: 32 of red, 32 of green, 32 of blue. As in the published code of coRNN, UnICORNN and
    LEM the noise is drawn once and is the same for every image, in training as in the test; `noise_per_image` draws
    other noise for each. Published figures are of divisions 47,000/3,000 (coRNN) and 48,000/2,000 (LEM) and
    of noise from the generator of their run, which is not reproduced.

    Source: B. Chang, M. Chen, E. Haber, E. Chi, AntisymmetricRNN, ICLR 2019; in the form of T. K. Rusch and S. Mishra,
    Coupled oscillatory recurrent neural network, ICLR 2021, and its code.

    Args:
        data_dir: as for `SequentialCIFAR10`.
        noise_per_image: noise of its own for every image.
        padding_seed: chooses the noise.
    """

    name = "cifar10-noise"
    description = "CIFAR-10 by its 32 rows, then noise (T = 1000), 10 classes; needs the binary files"
    input_size = CHANNELS * SIDE
    baseline = "0.590 (coRNN), 0.605 (LEM), 0.624 (UnICORNN, 3 layers), all of 128 units"
    length = 1000

    def __init__(self, data_dir: str | None = None, noise_per_image: bool = False, padding_seed: int = 0) -> None:
        super().__init__(data_dir)
        self.noise_per_image = noise_per_image
        self.padding_seed = positive(self.name, "padding_seed", padding_seed, least=0)

    def shown(self, images: Tensor, part: int, numbers: Tensor) -> Tensor:
        """The rows of the images, then noise."""
        rows = scaled(images).transpose(1, 2).flatten(2)
        noise = self._noise(part, numbers) if self.noise_per_image else self._shared.expand(len(rows), -1, -1)
        return torch.cat((rows, noise), 1)

    @functools.cached_property
    def _shared(self) -> Tensor:
        shape = (self.length - SIDE, self.input_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.padding_seed))

    def _noise(self, part: int, numbers: Tensor) -> Tensor:
        drawn = [np.random.Generator(np.random.Philox([self.padding_seed, part, int(number)])) for number in numbers]
        shape = (self.length - SIDE, self.input_size)
        noise = [one.standard_normal(shape, dtype=np.float32) for one in drawn]
        return torch.from_numpy(np.stack(noise) if noise else np.zeros((0, *shape), np.float32))


class Images(Dataset):
    """Images that become sequences when they are asked for: as numbers they would fill a memory.

    Args:
        task: what says how they are shown.
        part: 0 of the published training set, 1 of the test set.
        numbers: their places in it, None for all.
        images: bytes, `(number, 3, 32, 32)`.
        labels: their classes.
    """

    def __init__(
        self, task: SequentialCIFAR10, part: int, numbers: Tensor | None, images: Tensor, labels: Tensor
    ) -> None:
        self.task, self.part, self.images, self.labels = task, part, images, labels
        self.numbers = torch.arange(len(images)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        labels = self.labels[index]
        chosen = index if labels.ndim else [index]
        x = self.task.shown(self.images[chosen], self.part, self.numbers[chosen])
        return (x, labels) if labels.ndim else (x[0], labels)


def scaled(images: Tensor) -> Tensor:
    """Bytes as numbers in [0, 1]."""
    return images.float() / 255


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """The images `(number, 3, 32, 32)` and labels of a binary file.

    Raises:
        InputError: it cannot be read, holds no whole number of records, or a label that is none.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content or len(content) % RECORD or len(content) > LARGEST:
        size = f"{len(content)} bytes" if len(content) <= LARGEST else f"more than {LARGEST} bytes"
        raise InputError(f"{path} has {size}, expected a multiple of {RECORD}, a label and an image: fetch it again")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, RECORD)
    labels = records[:, 0].long()
    if labels.max() > 9:
        number = int((labels > 9).nonzero()[0])
        raise InputError(f"{path}: image {number + 1} has the label {int(labels[number])}, expected 0 to 9")
    return records[:, 1:].unflatten(1, (CHANNELS, SIDE, SIDE)).contiguous(), labels
