"""Handwritten digits, 8x8 pixels, read one pixel a step: scikit-learn's bundled copy, so no file is needed."""

from __future__ import annotations

import torch

from experiments.tasks.base import Splits, Task, divide, stratified

VALIDATION_SHARE = TEST_SHARE = 0.15


class Digits(Task):
    """1797 handwritten digits of 8x8 pixels in [0, 1], one pixel a step.

    Divided into 70% training, 15% validation and 15% test samples, each with the same share of every class.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test part).
    """

    name = "digits"
    description = "8x8 handwritten digits, one pixel a step (T = 64), 10 classes; comes with scikit-learn"
    output_size = 10
    kind = "classification"
    baseline = "0.1 by chance, 0.98 by logistic regression on the whole image"
    length = 64

    def splits(self, seed: int = 0) -> Splits:
        """1258 training, 270 validation and 269 test samples, the same for every `seed`."""
        # scikit-learn takes a second to import: only those who use it wait for it.
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        x = torch.tensor(pixels / 16, dtype=torch.float32).unsqueeze(-1)
        y = torch.tensor(labels, dtype=torch.int64)
        train, validation, test = divide(x, y, *stratified(labels, VALIDATION_SHARE, TEST_SHARE))
        return train, validation, test
