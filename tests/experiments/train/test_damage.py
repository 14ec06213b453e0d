"""Files of a run, damaged in many ways: it goes on from the checkpoint before, or says in one line that it cannot."""

import pickle
import random
import shutil
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch

from experiments import figures
from experiments.command.cli import main
from experiments.train import checkpoints
from experiments.train.checkpoints import SEAL, _checksum, load_checkpoint, newest, sealed
from experiments.train.config import RunConfig, load_yaml
from experiments.train.events import Events
from experiments.train.runs import RunFolder
from experiments.train.training import load_model, resume, train
from solvers.errors import InputError

VALUES = {
    "task": "adding",
    "task_options": {"length": 8, "train_size": 60, "validation_size": 20, "test_size": 20},
    "model_options": {"hidden_size": 4, "dt": 0.3, "gamma": 1.0, "epsilon": 1.0},
    "epochs": 3,
    "batch_size": 20,
    "threads": 1,
}


@pytest.fixture(name="whole", scope="module")
def _whole(tmp_path_factory):
    return train(RunConfig.from_dict(VALUES), root=tmp_path_factory.mktemp("whole"), progress=False).folder


@pytest.fixture(name="interrupted")
def _interrupted(whole, tmp_path):
    """The same run without its result, and with nothing but the last checkpoint."""
    folder = RunFolder.create(tmp_path, "run")
    folder.config_file.write_bytes(whole.config_file.read_bytes())
    folder.last.write_bytes(whole.last.read_bytes())
    return folder


def damaged(raw, count=40):
    """Copies that are cut, have a changed bit or bytes, zeros or something else in the middle: all over the file."""
    numbers = random.Random(0)
    ends = [0, 1, len(raw) - 1, *(len(raw) - len(SEAL) - 64 + i for i in (-1, 0, 1, len(SEAL), len(SEAL) + 1))]
    for place in [*ends, *(numbers.randrange(len(raw)) for _ in range(count))]:
        yield raw[:place]
        yield raw[:place] + bytes([raw[place] ^ (1 << numbers.randrange(8))]) + raw[place + 1 :]
        yield raw[:place] + bytes(min(512, len(raw) - place)) + raw[place + 512 :]
        yield raw[:place] + raw[place + 1 :]
        yield raw[:place] + b"?" + raw[place:]
    yield raw + b"\0"
    yield raw[::-1]
    yield raw * 2


def test_wherever_the_last_checkpoint_is_damaged_the_one_before_is_taken(whole, interrupted, capsys):
    interrupted.previous.write_bytes(whole.previous.read_bytes())
    raw, count = whole.last.read_bytes(), 0
    for bad in damaged(raw):
        if bad == raw:
            # Zeros in the place of zeros.
            continue
        interrupted.last.write_bytes(bad)
        assert newest(interrupted)["epochs"] == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "last.ckpt is damaged" in said and "going on from previous.ckpt" in said
        count += 1
    assert count > 150


def refused(folder, capsys, *words):
    """Resume by the command line, which says in one line why not, and loses nothing."""
    before = folder.last.read_bytes()
    assert main(["train", "--resume", str(folder.path)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out, err
    for word in words:
        assert word in err, f"{word!r} not in: {err}"
    assert folder.last.read_bytes() == before


class Foreign:
    """Something that only unpickling would make."""


def foreign():
    """What other programs may leave under the name of a checkpoint, or somebody may put there."""
    yield b""
    yield b"PK\x03\x04" + bytes(100)
    yield SEAL
    yield SEAL + _checksum(b"")
    for value in (None, 3, "text", [], {}, {"format": 2}, Foreign(), torch.nn.Linear(1, 1), OrderedDict(a=1)):
        yield pickle.dumps(value)
        raw = pickle.dumps(value)
        yield raw + SEAL + _checksum(raw)
        yield sealed(value)


def test_another_file_in_the_place_of_a_checkpoint_is_one_line(interrupted, capsys, one_line):
    for number, raw in enumerate(foreign()):
        interrupted.last.write_bytes(raw)
        with pytest.raises(InputError) as error:
            load_checkpoint(interrupted.last)
        one_line(error, interrupted.last)
        if number % 8 == 0:
            refused(interrupted, capsys, "last.ckpt", "train the run again from the start")


OTHERS = (None, True, 7, -1, 2.5, float("nan"), "text", [], [1], {}, {"a": 1}, torch.zeros(2), (1, 2))


def changed(content):
    """Contents with one part missing, of another kind or of another size."""
    for name in content:
        yield {key: value for key, value in content.items() if key != name}
        for other in OTHERS:
            if type(other) is not type(content[name]) or other != content[name]:
                yield {**content, name: other}
    yield {**content, "more": 1}
    records = content["history"]
    yield from (
        {**content, "history": part} for part in (records[:-1], records[::-1], [*records, records[-1]], [{}] * 3)
    )
    for name in records[0]:
        for other in (None, "text", torch.zeros(1), [1.0]):
            yield {**content, "history": [{**records[0], name: other}, *records[1:]]}
        yield {**content, "history": [*records[:-1], {k: v for k, v in records[-1].items() if k != name}]}
    (name, weight), *rest = content["model"].items()
    yield {**content, "model": dict(rest)}
    for other in (None, 1.0, weight.double(), weight.long(), weight[None], torch.zeros(7, 7)):
        yield {**content, "model": {**content["model"], name: other}}
    optimizer = content["optimizer"]
    for group in (
        {},
        {**optimizer["param_groups"][0], "params": [0]},
        {**optimizer["param_groups"][0], "betas": (1, 2)},
    ):
        yield {**content, "optimizer": {**optimizer, "param_groups": [group]}}
    moments = optimizer["state"][0]
    for name in moments:
        for other in (None, "text", torch.zeros(5, 5)):
            yield {**content, "optimizer": {**optimizer, "state": {**optimizer["state"], 0: {**moments, name: other}}}}
    yield {**content, "config": {**content["config"], "lr": 1.0}}
    yield {**content, "config": {**content["config"], "lr": "fast"}}


@pytest.mark.slow
def test_a_sealed_checkpoint_with_another_content_is_one_line(whole, interrupted, capsys, one_line):
    """Nothing that a run writes; a defect or somebody else did. It ends before the first step."""
    # Of the middle of the run: the optimiser is asked for its state as well.
    contents, fits = list(changed(load_checkpoint(whole.previous))), 0
    for bad in contents:
        interrupted.last.write_bytes(sealed(bad))
        try:
            load_checkpoint(interrupted.last)
        except InputError as error:
            one_line(error, interrupted.last)
            continue
        fits += 1
        interrupted.best.unlink(missing_ok=True)
        refused(interrupted, capsys)
    assert len(contents) > 150 and fits > 15


def test_a_damaged_best_checkpoint_is_made_again_or_one_line(whole, interrupted, capsys):
    """The weights of the best epoch are in no other file, unless it is the last or the one before."""
    content = load_checkpoint(whole.last)
    worse = {
        name: value * 10 if name.startswith("validation") else value for name, value in content["history"][2].items()
    }
    raw = sealed({**content, "history": [*content["history"][:2], worse]})
    interrupted.last.write_bytes(raw)
    interrupted.best.write_bytes(whole.best.read_bytes()[:-1])
    refused(interrupted, capsys, "best.ckpt is damaged", "train the run again from the start")
    interrupted.previous.write_bytes(whole.previous.read_bytes())
    assert main(["train", "--resume", str(interrupted.path)]) == 0
    assert load_checkpoint(interrupted.best)["epochs"] == 2 and interrupted.result()["best_epoch"] == 2
    # The last is the best.
    interrupted.result_file.unlink()
    interrupted.previous.unlink()
    interrupted.last.write_bytes(whole.last.read_bytes())
    interrupted.best.write_bytes(b"")
    assert main(["train", "--resume", str(interrupted.path)]) == 0
    assert load_checkpoint(interrupted.best)["epochs"] == interrupted.result()["best_epoch"] == 3


CHANGES = {"lr": 0.02, "seed": 1, "epochs": 4, "threads": 2, "model_options": {**VALUES["model_options"], "gamma": 2.0}}


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_that_was_edited_is_not_believed(name, whole, tmp_path, one_line):
    """What was trained with other values would go on to weights that no configuration gives."""
    folder = RunFolder.create(tmp_path)
    folder.last.write_bytes(whole.last.read_bytes())
    folder.write_config(replace(load_yaml(whole.config_file), **{name: CHANGES[name]}), "cpu")
    with pytest.raises(InputError) as error:
        resume(folder.path, progress=False)
    one_line(error, f"config.yaml says {name}", "its checkpoints were written with", "put it back")


def test_a_run_may_go_on_elsewhere(whole, tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.last.write_bytes(whole.last.read_bytes())
    folder.best.write_bytes(whole.best.read_bytes())
    moved = replace(load_yaml(whole.config_file), device="cpu", data_dir=str(tmp_path))
    folder.write_config(moved, "cpu")
    assert resume(folder.path, progress=False).test == whole.result()["test"]


def test_weights_that_are_not_what_the_run_wrote_are_refused(whole, tmp_path, one_line):
    folder = RunFolder.create(tmp_path)
    for name in ("config_file", "model_file", "result_file"):
        getattr(folder, name).write_bytes(getattr(whole, name).read_bytes())
    load_model(folder)
    path = folder.model_file
    written = path.read_bytes()
    path.write_bytes(written[:-3] + bytes([written[-3] ^ 64]) + written[-2:])
    with pytest.raises(InputError) as error:
        load_model(folder)
    one_line(error, path, "not what the run wrote")


RESULTS = ["", "[" * 100_000, "[]", '{"status": 1}', '{"status": "finished"}', "\xff", "finished with others"]


@pytest.mark.parametrize("text", RESULTS, ids=range(len(RESULTS)))
def test_a_damaged_result_is_one_line(text, whole, tmp_path, one_line):
    folder = RunFolder.create(tmp_path)
    folder.config_file.write_bytes(whole.config_file.read_bytes())
    if text.startswith("finished"):
        for name, value in {"test": 3, "validation": {}, "epochs": "three", "seconds": None, "parameters": [1]}.items():
            folder.write_result(**{**whole.result(), name: value})
            with pytest.raises(InputError) as error:
                resume(folder.path, progress=False)
            one_line(error, folder.result_file, name)
        return
    folder.result_file.write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as error:
        resume(folder.path, progress=False)
    one_line(error, folder.result_file)


def test_what_can_be_made_again_ends_no_run(tmp_path, monkeypatch, capsys):
    """The picture, the table and the events on a full disk, and a folder that somebody removes."""
    written = checkpoints.write_atomically

    def full(path, content, durable=True):
        if path.suffix in (".png", ".csv"):
            raise InputError(f"{path} cannot be written: No space left on device")
        written(path, content, durable)

    def gone(events, history):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_atomically", full)
        patch.setattr(figures, "write_atomically", full)
        patch.setattr(Events, "update", gone)
        result = train(RunConfig.from_dict(VALUES), root=tmp_path, name="run", progress=False)
    said = capsys.readouterr().err.splitlines()
    assert result.epochs == 3 and result.folder.result()["status"] == "finished"
    assert len(said) == 3 and all(line.startswith("note: ") and "No space left" in line for line in said)
    for name in ("learning_curve.png", "metrics.csv", "tensorboard"):
        assert sum(f"{name} is not complete" in line for line in said) == 1


def test_events_that_were_removed_are_written_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = Events(tmp_path / "tensorboard")
    records = [{"epoch": i, "train_loss": 1 / i, "seconds": 0.1} for i in range(1, 5)]
    for count in range(5):
        events.update(records[:count])
        if count == 2:
            shutil.rmtree(tmp_path / "tensorboard")
        if count == 3:
            # What is left of a write that a full disk cut off.
            with events.path.open("ab") as file:
                file.write(b"half")
    points = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss/train")
    assert [(point.step, point.value) for point in points] == [(i, pytest.approx(1 / i)) for i in range(1, 5)]
