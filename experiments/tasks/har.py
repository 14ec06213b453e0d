"""HAR-2: what somebody with a telephone at the waist is doing, one of two groups of activities."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.tasks.base import Splits, Task, divide, stratified
from solvers.errors import InputError

FOLDER, SIGNALS = "UCI HAR Dataset", "Inertial Signals"
CHANNELS = tuple(f"{what}_{axis}" for what in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
#: By the numbers of the files.
ACTIVITIES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
#: Of class 1; the others are class 0.
GROUP = ("walking upstairs", "sitting", "laying")
VALIDATION_SHARE = 0.1
SAMPLES = 128


class HAR2(Task):
    """Windows of 128 samples (2.56 s), acceleration and turning of a telephone; asked is the group of the activity.

    The groups are those of the papers: {sitting, laying, walking upstairs} and {standing, walking, walking downstairs}.
    The test set is the published one, of other persons. One in ten training windows of each activity are the validation
    set, chosen once by a fixed seed; the published code reads files that its authors had divided, and does not say how.
    Values are as measured: the model has the mean and deviation of each channel of the training set.

    Source: D. Anguita, A. Ghio, L. Oneto, X. Parra, J. L. Reyes-Ortiz, A public domain dataset for human activity
    recognition using smartphones, ESANN 2013; groups of A. Kusupati et al., FastGRNN, NeurIPS 2018, as in T. K. Rusch
    and S. Mishra, Coupled oscillatory recurrent neural network, ICLR 2021.

    Args:
        data_dir: the folder `UCI HAR Dataset` as published, or one that holds it.
    """

    name = "har2"
    description = "movements of a telephone (T = 128), 2 groups of activities; needs the UCI HAR files"
    input_size = len(CHANNELS)
    output_size = 2
    kind = "classification"
    baseline = "0.972 (coRNN, 64 units)"
    length = SAMPLES
    measured = True

    def __init__(self, data_dir: str | None = None) -> None:
        self.data_dir = data_dir

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: a file is missing, damaged, or does not fit the others.
        """
        if self.data_dir is None:
            raise InputError(f"task {self.name!r} needs the folder {FOLDER}: give --data-dir the folder that holds it")
        folder = Path(self.data_dir).expanduser()
        folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        x, activities = self._part(folder, "train")
        train, validation, _ = stratified(activities, VALIDATION_SHARE, 0)
        if not len(validation):
            raise InputError(f"{folder} has {len(x)} training windows, too few to leave some for validation")
        sets = divide(x, grouped(activities), train, validation)
        x, activities = self._part(folder, "test")
        return sets[0], sets[1], TensorDataset(x, grouped(activities))

    def _part(self, folder: Path, part: str) -> tuple[Tensor, np.ndarray]:
        """Windows `(number, 128, 9)` and activities `(number,)`, from 0, of "train" or "test"."""
        path = folder / part / f"y_{part}.txt"
        labels = read_numbers(path, 1)[:, 0]
        wrong = np.flatnonzero(~np.isin(labels, np.arange(1, len(ACTIVITIES) + 1)))
        if len(wrong):
            raise InputError(
                f"{path}, line {wrong[0] + 1}: activity {labels[wrong[0]]:g}, expected 1 to {len(ACTIVITIES)}"
            )
        paths = [folder / part / SIGNALS / f"{channel}_{part}.txt" for channel in CHANNELS]
        channels = [read_numbers(each, SAMPLES) for each in paths]
        for each, found in zip(paths, channels, strict=True):
            if len(found) != len(labels):
                raise InputError(f"{each} has {len(found)} windows, and {path} {len(labels)} activities")
        x = np.stack(channels, axis=-1).astype(np.float32)
        return torch.from_numpy(x), labels.astype(np.int64) - 1


def grouped(activities: np.ndarray) -> Tensor:
    """The group of each activity."""
    return torch.from_numpy(np.isin(activities, [ACTIVITIES.index(name) for name in GROUP]).astype(np.int64))


def read_numbers(path: Path, columns: int) -> np.ndarray:
    """A text file with so many numbers in every line, `(lines, columns)` in float64.

    Raises:
        InputError: it cannot be read, is no such file, or holds what is not finite.
    """
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; give --data-dir {FOLDER}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text of numbers: byte {error.start}; fetch the file again") from error
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if len(line.split()) != columns:
            raise InputError(f"{path}, line {number}: {len(line.split())} numbers, expected {columns}")
    if not lines:
        raise InputError(f"{path} is empty: fetch the file again")
    try:
        values = np.array(text.split(), dtype=np.float64).reshape(len(lines), columns)
    except ValueError as error:
        said = re.sub(r"^could not convert string to float: ", "", str(error))
        raise InputError(f"{path} holds {said:.40}, expected numbers: fetch the file again") from error
    if not np.isfinite(values).all():
        place = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(f"{path}, line {place + 1}: a number that is not finite; fetch the file again")
    return values
