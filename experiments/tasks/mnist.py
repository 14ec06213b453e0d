"""MNIST one pixel a step, in reading order or in a fixed random order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from experiments.tasks.base import SPLIT_SEED, Splits, Task, divide, positive
from experiments.tasks.fetching import fetched
from experiments.tasks.idx import read_idx
from solvers.errors import InputError

SIDE = 28

# SHA-256 of the four files as published.
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")


class SequentialMNIST(Task):
    """MNIST images as sequences of 784 pixels in [0, 1]: 57 000 training, 3 000 validation and 10 000 test samples.

    The validation set is one in twenty of the published training set, chosen once by a fixed seed.
    Source: Y. LeCun, C. Cortes and C. Burges, the MNIST database, 1998.

    Args:
        data_dir: folder with the four IDX files, plain or gzipped; None fetches them once into a cache folder.
    """

    name = "smnist"
    description = "MNIST, one pixel a step (T = 784), 10 classes; needs the four IDX files"
    output_size = 10
    kind = "classification"
    baseline = "0.9935 (coRNN, 256 units), 0.9945 (LEM, 128 units)"
    length = SIDE * SIDE

    def __init__(self, data_dir: str | None = None) -> None:
        self.data_dir = data_dir

    def order(self) -> torch.Tensor | None:
        """The order in which the pixels are read: a vector of 784 pixel numbers, None for reading order."""
        return None

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: a file is missing, damaged, or does not hold what its name says.
        """
        if self.data_dir is None:
            folder = fetched("MNIST", CHECKSUMS, MIRRORS, ", ".join(sorted(CHECKSUMS)))
        else:
            folder = Path(self.data_dir).expanduser()
        images, labels = self._part(folder, "train")
        shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
        held_out = len(images) // 20
        train, validation = divide(images, labels, shuffled[held_out:], shuffled[:held_out])
        images, labels = self._part(folder, "t10k")
        return train, validation, divide(images, labels, torch.arange(len(images)))[0]

    def _part(self, folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (number, 784, 1) in [0, 1] and labels (number,) of the part "train" or "t10k"."""
        image_file, label_file = find(folder, f"{part}-images-idx3-ubyte"), find(folder, f"{part}-labels-idx1-ubyte")
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if images.shape[1:] != (SIDE, SIDE):
            raise InputError(f"{image_file} holds images of {images.shape[1:]} pixels: expected {(SIDE, SIDE)}")
        if len(images) != len(labels):
            raise InputError(f"{image_file} holds {len(images)} images and {label_file} {len(labels)} labels")
        if not len(images):
            raise InputError(f"{image_file} holds no image: fetch the file again")
        if labels.max() >= self.output_size:
            raise InputError(f"{label_file} holds the label {labels.max()}: expected 0 to {self.output_size - 1}")
        pixels = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)) / 255
        order = self.order()
        if order is not None:
            pixels = pixels[:, order]
        return pixels.unsqueeze(-1), torch.from_numpy(labels.astype(np.int64))


class PermutedSequentialMNIST(SequentialMNIST):
    """MNIST with the pixels of every image in one random order.

    Args:
        data_dir: as for `SequentialMNIST`.
        permutation_seed: chooses the order as the published code does, `torch.manual_seed(seed); torch.randperm(784)`:
            12008 for coRNN and Lipschitz RNN, 5544 for UnICORNN and LEM.
    """

    name = "psmnist"
    description = "MNIST, one pixel a step in a fixed random order (T = 784), 10 classes; needs the four IDX files"
    baseline = "0.9734 (coRNN, 256 units), 0.984 (UnICORNN, 256 units, 3 layers)"

    def __init__(self, data_dir: str | None = None, permutation_seed: int = 12008) -> None:
        super().__init__(data_dir)
        self.permutation_seed = positive(self.name, "permutation_seed", permutation_seed, least=0)

    def order(self) -> torch.Tensor:
        """The order of the published code for this seed."""
        return torch.randperm(self.length, generator=torch.Generator().manual_seed(self.permutation_seed))


def find(folder: Path, stem: str) -> Path:
    """The file of that name in the folder, gzipped or plain, also with the dot that some archives put in the name.

    Raises:
        InputError: there is none.
    """
    for name in (stem, stem.replace("-idx", ".idx")):
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    state = "no such file" if folder.is_dir() else "no such folder"
    names = ", ".join(sorted(CHECKSUMS))
    raise InputError(
        f"MNIST file {stem}(.gz) not found in {folder}: {state}; give --data-dir the folder that holds {names}"
        " (plain or gzipped)"
    )
