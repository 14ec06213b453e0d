"""Data that stay on a device: what is moved, how often, and that the batches are the same."""

import pytest
import torch
from torch.utils.data import TensorDataset

from experiments.tasks.series import Series
from experiments.train import resident
from experiments.train.trainer import Batches

PLAIN = TensorDataset(torch.arange(24.0).view(12, 2, 1), torch.arange(12))
RAGGED = Series(torch.arange(24.0).view(12, 2, 1), torch.arange(12), None, torch.tensor([1, 2] * 6))


class Derived(TensorDataset):
    """Makes its samples otherwise than its tensors say."""

    def __getitem__(self, index):
        return tuple(2 * tensor[index] for tensor in self.tensors)


@pytest.fixture
def moved(monkeypatch):
    """What is moved to a GPU, of which this machine need have none: the tensors stay where they are."""
    found, plain = [], torch.Tensor.to

    def to(self, where, *args, **kwargs):
        if isinstance(where, torch.device) and where.type == "cuda":
            found.append(tuple(self.shape))
            return self.clone()
        return plain(self, where, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(resident, "free", lambda device: 10_000)
    return found


def batches(data):
    return Batches(data, 5, shuffle=3, dtype=torch.float64)


@pytest.mark.parametrize("data, parts", [(PLAIN, [(12, 2, 1), (12,)]), (RAGGED, [(12, 2, 1), (12,), (12,)])])
def test_each_tensor_is_moved_once_and_the_batches_are_the_same(data, parts, moved):
    expected, staying = batches(data), batches(data)
    with staying.staying("cuda"):
        assert moved == parts and staying.placed is not data
        for epoch in range(3):
            expected.epoch = staying.epoch = epoch
            for a, b in zip(expected, staying, strict=True):
                assert a.x.dtype == b.x.dtype == torch.float64
                assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert moved == parts and staying.placed is data


@pytest.mark.parametrize("free, stays", [(4 * (96 + 96), True), (4 * (96 + 96) - 1, False), (0, False)])
def test_what_does_not_fit_is_left(free, stays, moved, monkeypatch):
    monkeypatch.setattr(resident, "free", lambda device: free)
    found = resident.resident(PLAIN, torch.device("cuda"))
    assert (found is not PLAIN) == stays == bool(moved)


def test_on_the_processor_and_of_what_is_not_plain_nothing_changes(moved):
    assert resident.resident(PLAIN, torch.device("cpu")) is PLAIN
    derived = Derived(*PLAIN.tensors)
    assert resident.resident(derived, torch.device("cuda")) is derived
    assert not moved


def test_a_device_that_does_not_say_what_is_free_gets_batch_by_batch():
    assert resident.free(torch.device("mps")) == 0
