"""Batches of sequences of about one length."""

import itertools

import pytest
import torch

from experiments.tasks.series import Series
from experiments.train import trainer
from experiments.train.config import RunConfig
from experiments.train.model import build, make_task
from experiments.train.scoring import Scoring
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


def test_sets_that_are_judged_are_gone_through_by_length_and_whole(monkeypatch):
    monkeypatch.setattr(trainer, "EVALUATION_BATCH", 16)
    options = {"length": 20, "shortest": 2, "train_size": 50, "validation_size": 40, "test_size": 40}
    config = RunConfig(task="oscillators", task_options=options, model="gru", model_options={"hidden_size": 4})
    task = make_task(config)
    model = build(config, task)
    data = task.splits()[2]
    batches = list(trainer.evaluation_batches(data, config, task))
    order = torch.cat([batch.lengths for batch in batches])
    assert torch.equal(order, data.whole.lengths.sort().values) and len(set(order.tolist())) > 5
    assert sum(batch.x.shape[1] for batch in batches) < 3 * 20
    # A limit is of the sequences that come first.
    limited = list(trainer.evaluation_batches(data, config, task, limit=2))
    assert torch.equal(torch.cat([batch.y for batch in limited]), data.whole.y[:32])
    scoring = Scoring.of(task)
    sorted_, plain = (
        trainer.measure(model, found, scoring, "cpu")
        for found in (trainer.evaluation_batches(data, config, task), Batches(data, 16))
    )
    assert sorted_ == pytest.approx(plain, rel=1e-6)


def test_buckets_of_sequences_of_one_length_are_refused(tmp_path, one_line):
    with pytest.raises(InputError) as error:
        train(RunConfig(bucket=4, epochs=1), root=tmp_path, progress=False)
    one_line(error, "bucket is 4, and the sequences of this task are of one length: leave it out")
    assert not list(tmp_path.iterdir())
