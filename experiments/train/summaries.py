"""A sequence as one row of numbers: statistics of what was recorded of each feature, for learners that know no time."""

from __future__ import annotations

import numpy as np

#: Of each feature, in this order: NaN where nothing was recorded, but for the count; the slope with one time alone.
STATISTICS = ("count", "mean", "std", "min", "max", "first", "last", "time of last", "slope")
#: Of the sequence as a whole, after all features.
OF_ALL = ("samples", "time of last sample")


def summaries(x: np.ndarray, times: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Statistics of each feature of each sequence, and of the sequence.

    Args:
        x: `(batch, time, features)`, NaN where nothing was recorded; anything in the padding.
        times: of the samples, `(batch, time)`, in any unit; anything in the padding.
        lengths: samples of each sequence, `(batch,)`.

    Returns:
        `(batch, features * len(STATISTICS) + len(OF_ALL))` float64, the statistics of a feature side by side. Mean and
        deviation are of the recorded values, each counted once, the deviation over their number; times are as given;
        the slope is that of the least-squares line through the recorded values at their times.
    """
    batch, longest, features = x.shape
    valid = np.arange(longest) < lengths[:, None]
    times = np.where(valid, times, 0.0).astype(np.float64)
    x = np.where(valid[..., None], x, np.nan).astype(np.float64)
    found = of_features(x, times)
    end = np.take_along_axis(times, np.maximum(lengths - 1, 0)[:, None], 1)[:, 0]
    whole = np.stack((lengths.astype(np.float64), np.where(lengths > 0, end, np.nan)), -1)
    return np.concatenate((found.reshape(batch, features * len(STATISTICS)), whole), -1)


def of_features(x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """`STATISTICS` of each feature, `(batch, features, statistics)`; NaN in x is the padding, too."""
    seen = ~np.isnan(x)
    count = seen.sum(1)
    known = count > 0

    def at(place: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, place[:, None], 1)[:, 0]

    begin, end = seen.argmax(1), x.shape[1] - 1 - seen[:, ::-1].argmax(1)
    first, last = at(begin), at(end)
    # From the first value and its time on: so a constant has no deviation, and one time no slope, to the last digit.
    values = np.where(seen, x - first[:, None], 0.0)
    spans = np.where(seen, times[..., None] - np.take_along_axis(times, begin, 1)[:, None], 0.0)
    number = np.maximum(count, 1)
    mean = values.sum(1) / number
    values = np.where(seen, values - mean[:, None], 0.0)
    spans = np.where(seen, spans - (spans.sum(1) / number)[:, None], 0.0)
    spread = np.square(spans).sum(1)
    slope = np.divide((spans * values).sum(1), spread, out=np.full(spread.shape, np.nan), where=spread > 0)
    some = (
        first + mean,
        np.sqrt(np.square(values).sum(1) / number),
        np.where(seen, x, np.inf).min(1),
        np.where(seen, x, -np.inf).max(1),
        first,
        last,
        np.take_along_axis(times, end, 1),
        slope,
    )
    return np.stack((count.astype(np.float64), *(np.where(known, part, np.nan) for part in some)), -1)
