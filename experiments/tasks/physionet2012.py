"""Whether an intensive-care stay ends in death, from what was measured in its first 48 hours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import special
from torch import Tensor

from experiments.tasks.base import Splits, Task, positive, stratified
from experiments.tasks.series import Series
from experiments.tasks.stays import PARAMETERS, STATIC, Stays, read_stays
from solvers.errors import unknown

VALIDATION_SHARE = TEST_SHARE = 0.1
MINUTES_PER_HOUR = 60
#: Values beyond these quantiles of the training set are cut off: among them are slips such as a pH of 735.
QUANTILES = (0.005, 0.995)
#: Age, gender and height as they are, and each of the four kinds of unit by itself.
UNITS = (1, 2, 3, 4)
#: What is known of a parameter so far, in the order in which it is shown.
SUMMARIES = ("largest", "smallest", "mean", "count")


class PhysioNet2012(Task):
    """37 parameters of 4000 stays, measured when they were measured; the class is 1 for a death in hospital (13.9 %).

    A sample is what was measured in one minute, NaN else; of two values of a parameter in a minute the later one
    counts. Timespans are in hours, that of the first sample is 1. Values are on the scale of those of the training
    set: their deviations from its mean, after those beyond its 0.5 % and 99.5 % quantiles were cut off, or as
    `transform` says. What was noted on admission (age, gender, height, and the kind of unit, one feature each) is a
    sample of minute 0; three stays have nothing else. -1 is not known. 80 % of the stays are for training, 10 % each
    for validation and test, with the same share of deaths.

    Source: I. Silva, G. Moody, D. J. Scott, L. A. Celi, R. G. Mark, Predicting in-hospital mortality of ICU patients:
    the PhysioNet/Computing in Cardiology Challenge 2012, Computing in Cardiology 2012; set A.

    Args:
        data_dir: folder with set-a.npz, or with Outcomes-a.txt and the folder set-a of the published text files.
        division: number of the division into the three sets.
        static: show what was noted on admission; without, the three stays have no sample at all.
        running: show beside each value what is known of its parameter so far: the largest, the smallest and the mean
            value, 0 (the middle of all) before the first one, and the logarithm of 1 + the number of values.
        divider: what divides: "stratified" cuts each class in the order drawn from `division`; "scikit-learn" is its
            train_test_split, twice, with `division` as the state of both: 20 % are put aside, and halved.
        transform: "standard" for values in deviations from their mean; "rank" for the normal quantile of their rank
            among the values of the training set: of some laboratory values half lie within a tenth of a deviation;
            "range" for those of the training set from 0 to 1, slips included.

    Raises:
        InputError: an option that is none.
    """

    name = "physionet2012"
    description = "death in hospital from 48 hours of 37 parameters at irregular minutes; needs set A of PhysioNet 2012"
    input_size = len(PARAMETERS) + len(STATIC) - 1 + len(UNITS)
    output_size = 2
    kind = "classification"
    metrics: tuple[str, ...] = ("auroc", "auprc", "balanced_accuracy")
    baseline = "AUROC 0.5 by chance; of all three sets of the challenge 0.819 (GRU-D), 0.866 (GraFITi)"
    irregular = True
    gaps = True
    length = 202

    def __init__(
        self,
        data_dir: str | None = None,
        division: int = 0,
        static: bool = True,
        running: bool = False,
        transform: str = "standard",
        divider: str = "stratified",
    ) -> None:
        self.data_dir, self.static, self.running = data_dir, static, running
        self.transform, self.divider = transform, divider
        for option, value, choices in (("transform", transform, SCALES), ("divider", divider, DIVIDERS)):
            if value not in choices:
                raise unknown(f"value of option {option!r} of task {self.name!r}", value, choices)
        self.division = positive(self.name, "division", division, least=0)
        measured = len(PARAMETERS) * (1 + (len(SUMMARIES) if running else 0))
        self.input_size = measured + (len(STATIC) - 1 + len(UNITS) if static else 0)

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`; `division` divides them in another way.

        Raises:
            InputError: a file is missing or damaged.
        """
        stays = read_stays(self.name, self.data_dir)
        parts = DIVIDERS[self.divider](stays.died, VALIDATION_SHARE, TEST_SHARE, self.division)
        training = parts[0].numpy()
        known = np.isin(stays.stay, training)
        values = scaled(SCALES[self.transform], stays.value, stays.parameter, known, len(PARAMETERS))
        rows, minutes, lengths = samples(stays, self.static)
        table = np.full((len(lengths), max(1, lengths.max()), len(PARAMETERS)), np.nan, np.float32)
        # Of an index that is there twice NumPy keeps the last.
        table[stays.stay, rows, stays.parameter] = values
        valid = np.arange(table.shape[1]) < lengths[:, None]
        shown, asked = self._divided(table, minutes)
        x = np.where(valid[..., None], self._features(shown, stays, training), 0)
        spans = np.zeros(x.shape[:2], np.float32)
        spans[:, 1:] = np.diff(minutes, axis=1) / MINUTES_PER_HOUR
        spans[:, 0] = 1
        y = stays.died if asked is None else np.where(valid[..., None], asked, np.nan)
        given, answers, gaps = map(torch.from_numpy, (x, y, np.where(valid, spans, 0)))
        data = Series(given, answers, gaps, torch.from_numpy(lengths), self.every)
        train, validation, test = data.parts(*parts)
        return train, validation, test

    def _divided(self, table: np.ndarray, minutes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """What is shown of the values `(stays, time, parameters)`, and those that are asked for; None for the class."""
        return table, None

    def _features(self, shown: np.ndarray, stays: Stays, training: np.ndarray) -> np.ndarray:
        """The samples as a network has them, `(stays, time, features)`."""
        x = np.full((*shown.shape[:2], self.input_size), np.nan, np.float32)
        x[..., : len(PARAMETERS)] = shown
        if self.static:
            admitted = len(STATIC) - 1 + len(UNITS)
            at_admission = admission(stays, training, SCALES[self.transform])
            x[:, 0, len(PARAMETERS) : len(PARAMETERS) + admitted] = at_admission
        if self.running:
            for place, summary in enumerate(SUMMARIES, start=-len(SUMMARIES)):
                begin = self.input_size + place * len(PARAMETERS)
                x[..., begin : begin + len(PARAMETERS)] = so_far(shown, summary)
        return x


def samples(stays: Stays, admitted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The samples of each stay, one for each minute in which something was observed.

    Args:
        stays: their observations.
        admitted: minute 0 is one, whether something was observed or not.

    Returns:
        the place of each observation among the samples of its stay; the minute of each sample, `(stays, time)`, that of
        the last in the padding; the samples of each stay.
    """
    count, span = len(stays.record), int(stays.minute.max()) + 1
    times = stays.stay * span + stays.minute
    unique = np.unique(np.concatenate((times, np.arange(count) * span)) if admitted else times)
    lengths = np.bincount(unique // span, minlength=count)
    first = np.cumsum(lengths) - lengths
    place = np.minimum(np.arange(max(1, lengths.max())), np.maximum(lengths[:, None] - 1, 0))
    minutes = (unique % span)[np.minimum(first[:, None] + place, len(unique) - 1)]
    return np.searchsorted(unique, times) - first[stays.stay], minutes, lengths


def so_far(values: np.ndarray, summary: str) -> np.ndarray:
    """What is known of each feature up to each sample, `(stays, time, features)`; nothing of samples that follow.

    Args:
        values: `(stays, time, features)`, NaN where nothing was measured.
        summary: one of `SUMMARIES`.
    """
    known = ~np.isnan(values)
    counts = known.cumsum(1, dtype=np.float32)
    if summary == "count":
        return np.log1p(counts)
    if summary == "mean":
        found = np.where(known, values, 0).cumsum(1, dtype=np.float64) / np.maximum(counts, 1)
    else:
        found = (np.fmax if summary == "largest" else np.fmin).accumulate(values, axis=1)
    return np.where(counts > 0, found, 0.0)


def scaled(scale: Scale, values: np.ndarray, feature: np.ndarray, training: np.ndarray, features: int) -> np.ndarray:
    """Values of several features, each on the scale of those of the training set."""
    result = values.copy()
    for number in range(features):
        here = feature == number
        known = values[here & training]
        if len(known):
            result[here] = scale(values[here], known)
    return result


def standardized(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values in deviations from the mean of those that are known, all cut off at the quantiles of these."""
    low, high = np.quantile(known, QUANTILES)
    kept = known.clip(low, high)
    deviations: np.ndarray = (values.clip(low, high) - kept.mean()) / (kept.std() or 1.0)
    return deviations


def ranked(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The normal quantile of the share of known values that are smaller, of equal ones half."""
    known = np.sort(known)
    below, up_to = (np.searchsorted(known, values, side) for side in ("left", "right"))
    share = (below + up_to) / (2 * len(known))
    edge = 1 / (2 * len(known))
    return np.asarray(special.ndtri(share.clip(edge, 1 - edge)))


def ranged(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values less the least of those that are known, over their range."""
    low, high = known.min(), known.max()
    return np.asarray((values - low) / ((high - low) or 1.0))


#: From values and those of the training set to numbers for a network.
Scale = Callable[[np.ndarray, np.ndarray], np.ndarray]
SCALES: dict[str, Scale] = {"standard": standardized, "rank": ranked, "range": ranged}


def admission(stays: Stays, training: np.ndarray, scale: Scale) -> np.ndarray:
    """What was noted on admission, `(stays, features)`: numbers on that scale, and 1 for the kind of unit, else 0."""
    numbers, unit = stays.static[:, :-1], stays.static[:, -1:]
    stay, feature = np.nonzero(~np.isnan(numbers))
    shown = np.full(numbers.shape, np.nan)
    known = np.isin(stay, training)
    shown[stay, feature] = scaled(scale, numbers[stay, feature], feature, known, numbers.shape[1])
    return np.concatenate((shown, np.where(np.isnan(unit), np.nan, unit == np.array(UNITS))), axis=1)


def as_scikit_learn(labels: np.ndarray, validation: float, test: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the three parts by two calls of train_test_split; see `stratified` for the arguments."""
    # Imported here, since it takes a second.
    from sklearn.model_selection import train_test_split

    aside = validation + test
    train, rest = train_test_split(np.arange(len(labels)), test_size=aside, random_state=seed, stratify=labels)
    held_out, held_back = train_test_split(rest, test_size=test / aside, random_state=seed, stratify=labels[rest])
    first, second, third = (torch.from_numpy(np.sort(part)) for part in (train, held_out, held_back))
    return first, second, third


#: Indices of training, validation and test from labels, the two shares put aside, and the number of the division.
DIVIDERS: dict[str, Callable[[np.ndarray, float, float, int], tuple[Tensor, Tensor, Tensor]]] = {
    "stratified": stratified,
    "scikit-learn": as_scikit_learn,
}
