"""PPG-DaLiA: the rate of the heart from what a watch measures, thirteen minutes at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments.tasks.arrays import read_arrays
from experiments.tasks.base import SPLIT_SEED, Splits, Task
from solvers.errors import InputError

SUBJECTS = tuple(f"S{number}" for number in range(1, 16))
#: Signals of the watch with their channels, and how often a value is repeated to have 64 in a second.
SIGNALS = {"ACC": (3, 2), "BVP": (1, 1), "EDA": (1, 16), "TEMP": (1, 16)}
#: Samples between two targets (2 s), targets of a window, and between the beginnings of two.
EVERY, TARGETS, STRIDE = 128, 390, 39
#: The first target is of the first 8 s: it stands for those of 2, 4 and 6 s, too.
LEADING = 3
#: Which part of a recording is trained on, validated and tested; each draws one of these.
DIVISIONS = (
    ((0, 0.7), (0.7, 0.85), (0.85, 1)),
    ((0, 0.7), (0.85, 1), (0.7, 0.85)),
    ((0.15, 0.85), (0, 0.15), (0.85, 1)),
    ((0.15, 0.85), (0.85, 1), (0, 0.15)),
    ((0.3, 1), (0, 0.15), (0.15, 0.3)),
    ((0.3, 1), (0.15, 0.3), (0, 0.15)),
)


class PPGDaLiA(Task):
    """Windows of 49,920 samples (13 minutes at 64 Hz) of a watch; asked is the heart rate, every 128 samples (2 s).

    Channels are acceleration (3), blood volume pulse, skin conductance and temperature, slower ones repeated. Each
    signal of each person is brought to [-1, 1], and so is the heart rate: figures are in these units. Seven tenths of
    every recording are trained on, in one piece, and 0.15 each validated and tested; in which order is drawn for each
    person, here by a fixed seed, in the published code by none. Windows begin every 4,992 samples. So have it B. Walker
    et al., Log neural controlled differential equations, ICML 2024, and T. K. Rusch and D. Rus, LinOSS, ICLR 2025, but
    that they cut samples and targets apart, up to 2 s away from each other.

    The published files are pickles, which run whatever is in them when they are read. This task reads `S1.npz` to
    `S15.npz` in their place; of files that you trust make them by

        data = pickle.load(open("PPG_FieldStudy/S1/S1.pkl", "rb"), encoding="latin1")
        wrist = {name: data["signal"]["wrist"][name] for name in ("ACC", "BVP", "EDA", "TEMP")}
        numpy.savez("S1.npz", label=data["label"], **wrist)

    Source: A. Reiss, I. Indlekofer, P. Schmidt, K. Van Laerhoven, Deep PPG: large-scale heart rate estimation with
    convolutional neural networks, Sensors 19 (2019).

    Args:
        data_dir: folder with S1.npz to S15.npz, each with ACC, BVP, EDA, TEMP and label.
        clock: a first channel that goes from 0 to 1 over a window.
    """

    name = "ppg-dalia"
    description = "the heart rate from a watch (T = 49920), every 2 s; needs the recordings as .npz"
    output_size = 1
    kind = "regression"
    metrics = ("mse", "mae")
    baseline = "0.0640 (LinOSS-IM), 0.0616 (damped LinOSS), 0.0956 (Log-NCDE)"
    every = True
    length = EVERY * TARGETS

    def __init__(self, data_dir: str | None = None, clock: bool = False) -> None:
        self.data_dir, self.clock = data_dir, clock
        self.input_size = sum(channels for channels, _ in SIGNALS.values()) + clock

    @property
    def notices(self) -> list[str]:  # type: ignore[override]
        """That there are not all persons, where it is so."""
        count = len(self._recordings)
        if count == len(SUBJECTS):
            return []
        return [f"PPG-DaLiA with {count} of {len(SUBJECTS)} persons: figures are not comparable with published ones"]

    def guesses(self, part: int) -> dict[str, Any]:
        """The mean of the training set."""
        train, *others = self.splits()
        mean = torch.cat([one.targets[first : first + TARGETS] for one, first in train.places]).mean()  # type: ignore[attr-defined]
        return {"mean": mean.float().expand(len((train, *others)[part]), self.length, 1)}  # type: ignore[arg-type]

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: a file is missing, damaged, or does not fit itself.
        """
        drawn = np.random.RandomState(SPLIT_SEED).randint(len(DIVISIONS), size=len(SUBJECTS))
        places: tuple[list[Any], ...] = ([], [], [])
        for name, one in self._recordings.items():
            count = len(one.targets)
            for found, (begin, end) in zip(places, DIVISIONS[drawn[SUBJECTS.index(name)]], strict=True):
                last = int(end * count) - TARGETS
                found.extend((one, first) for first in range(int(begin * count), last + 1, STRIDE))
        if not all(places):
            raise InputError(
                f"task {self.name!r}: the recordings in {self.data_dir} are too short for windows of 13 min"
            )
        train, validation, test = (Windows(found, self.clock) for found in places)
        return train, validation, test

    @functools.cached_property
    def _recordings(self) -> dict[str, Recording]:
        """By the names of the persons."""
        needed = f"{SUBJECTS[0]}.npz to {SUBJECTS[-1]}.npz"
        if self.data_dir is None:
            raise InputError(f"task {self.name!r} needs {needed}: give --data-dir the folder that holds them")
        folder = Path(self.data_dir).expanduser()
        paths = {name: folder / f"{name}.npz" for name in SUBJECTS if (folder / f"{name}.npz").is_file()}
        if not paths:
            pickles = ": of a .pkl make one as the description of the task says" if any(folder.rglob("S*.pkl")) else ""
            raise InputError(
                f"task {self.name!r}: none of {needed} is in {folder}{pickles}; give --data-dir their folder"
            )
        return {name: recording(path) for name, path in paths.items()}


@dataclass(frozen=True)
class Recording:
    """What was measured of a person, in [-1, 1].

    Attributes:
        samples: `(128 targets, 6)`, float32.
        targets: the heart rate at the end of every 128 samples, `(targets,)`.
    """

    samples: Tensor
    targets: Tensor


class Windows(Dataset):
    """Windows that are cut out when they are asked for; there is a target for every 128th sample, else NaN.

    Args:
        places: recordings, with the number of the first target of a window.
        clock: show the time.
    """

    def __init__(self, places: list[tuple[Recording, int]], clock: bool) -> None:
        self.places, self.clock = places, clock

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(len(self))[index]
        pairs = [self._cut(*self.places[number]) for number in numbers.reshape(-1).tolist() or [0]]
        x, y = (torch.stack(parts)[: numbers.numel()] for parts in zip(*pairs, strict=True))
        return (x, y) if numbers.ndim else (x[0], y[0])

    def _cut(self, one: Recording, first: int) -> tuple[Tensor, Tensor]:
        x = one.samples[EVERY * first : EVERY * (first + TARGETS)]
        y = torch.full((len(x), 1), torch.nan)
        y[EVERY - 1 :: EVERY, 0] = one.targets[first : first + TARGETS]
        return (torch.cat((torch.arange(len(x)).unsqueeze(-1) / len(x), x), -1) if self.clock else x), y


def recording(path: Path) -> Recording:
    """The recording in a file.

    Raises:
        InputError: it is damaged, its signals do not fit each other, or one is constant or not finite.
    """
    found = read_arrays(path, {**{name: (None, channels) for name, (channels, _) in SIGNALS.items()}, "label": (None,)})
    count = len(found["label"]) + LEADING
    signals = {name: np.repeat(found[name], times, axis=0) for name, (_, times) in SIGNALS.items()}
    for name, signal in signals.items():
        if len(signal) // EVERY != count:
            raise InputError(
                f"{path} has {len(found[name])} values of {name!r} and {len(found['label'])} of 'label': expected "
                f"{EVERY // SIGNALS[name][1]} for each label and for {LEADING} more"
            )
    samples = np.concatenate([_scaled(path, name, one)[: EVERY * count] for name, one in signals.items()], axis=1)
    rate = _scaled(path, "label", found["label"])
    targets = np.concatenate((np.full(LEADING, rate[0]), rate))
    return Recording(torch.from_numpy(samples), torch.from_numpy(targets))


def _scaled(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Values from -1 to 1, as float32."""
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all() or not np.ptp(values):
        raise InputError(f"{path}: {name!r} is constant or holds what is no number: fetch the file again")
    values = values.astype(np.float64)
    scaled: np.ndarray = (2 * (values - values.min()) / np.ptp(values) - 1).astype(np.float32)
    return scaled
