"""Batches of sequences of about one length."""

import itertools

import pytest
import torch

from experiments.tasks.series import Series
from experiments.train.config import RunConfig
from experiments.train.trainer import Batches
from experiments.train.training import train
from solvers.errors import InputError


def test_buckets_hold_sequences_of_about_one_length():
    lengths = torch.randint(0, 41, (101,), generator=torch.Generator().manual_seed(0))
    data = Series(torch.zeros(101, 40, 1), torch.arange(101), torch.ones(101, 40), lengths)

    def epoch(number, **options):
        batches = Batches(data, 8, shuffle=3, **options)
        batches.epoch = number
        return list(batches)

    def padding(batches):
        return sum(int((batch.lengths.max() - batch.lengths).sum()) for batch in batches)

    plain, first, second = epoch(0), epoch(0, bucket=4), epoch(1, bucket=4)
    for batches in (first, second):
        assert [len(batch.y) for batch in batches] == [8] * 12 + [5]
        assert sorted(itertools.chain(*(batch.y.tolist() for batch in batches))) == list(range(101))
        assert padding(batches) < padding(plain) / 2
        assert all(torch.equal(batch.lengths, lengths[batch.y]) for batch in batches)
        # The short ones do not come first.
        assert [int(batch.lengths.max()) for batch in batches] != sorted(int(batch.lengths.max()) for batch in batches)
    assert [batch.y.tolist() for batch in first] == [batch.y.tolist() for batch in epoch(0, bucket=4)]
    assert [batch.y.tolist() for batch in first] != [batch.y.tolist() for batch in second]
    # Who can meet is drawn anew: batches are not the same ones in another order.
    assert {frozenset(batch.y.tolist()) for batch in first}.isdisjoint(
        {frozenset(batch.y.tolist()) for batch in second}
    )
    assert padding(epoch(0, bucket=100)) < padding(first)


def test_buckets_of_sequences_of_one_length_are_refused(tmp_path, one_line):
    with pytest.raises(InputError) as error:
        train(RunConfig(bucket=4, epochs=1), root=tmp_path, progress=False)
    one_line(error, "bucket is 4, and the sequences of this task are of one length: leave it out")
    assert not list(tmp_path.iterdir())
