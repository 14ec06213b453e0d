"""Data that stay on the device: what fits is moved there once, and batches are taken of it there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from experiments.tasks.series import Series

#: The part of a device's free memory that the data of one set may fill: the rest is for the network.
SHARE = 0.25


def resident(data: Dataset, device: torch.device) -> Dataset:
    """A data set on a device, if it is plain and fits; else as it is, and its batches are moved one by one.

    Plain is a `TensorDataset` or a `Series`. It fits if it fills at most `SHARE` of what is free there. On the
    processor nothing changes. The copy is of the same numbers, so that every batch is the same.
    """
    parts = tensors(data)
    if device.type == "cpu" or not parts or sum(part.nbytes for part in parts) > SHARE * free(device):
        return data
    if isinstance(data, Series):
        return Series(*data.whole.each(lambda part: part.to(device)), every=data.every)
    return TensorDataset(*(part.to(device) for part in parts))


def tensors(data: Dataset) -> list[Tensor]:
    """The tensors of a plain data set; none of another one."""
    # A class derived from one of them may make its samples otherwise.
    if type(data) is TensorDataset:
        return list(data.tensors)
    if type(data) is Series:
        return [part for part in data.whole if part is not None]
    return []


def free(device: torch.device) -> int:
    """Bytes that are free on a device; none where it does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
