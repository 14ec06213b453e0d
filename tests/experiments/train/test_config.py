import dataclasses
import itertools
import math

import pytest

from experiments.train.config import RunConfig, load_yaml, save_yaml
from solvers.errors import InputError, UnknownNameError

FULL = RunConfig(
    task="adding",
    task_options={"length": 50},
    model="unicornn",
    model_options={"hidden_size": 32, "dt": [0.1, 0.2], "num_layers": 2, "gated": False, "name": None},
    solver_options={"rtol": 1e-7},
    lr=0.02,
    epochs=30,
    schedule="milestones",
    milestones=[10, 20],
    patience=5,
    seed=3,
    precision="64",
    data_dir="data",
)


def test_dict_round_trip():
    assert RunConfig.from_dict(FULL.to_dict()) == FULL
    assert RunConfig.from_dict({}) == RunConfig()


def test_yaml_round_trip(tmp_path):
    path = tmp_path / "config.yaml"
    save_yaml(FULL, path)
    assert load_yaml(path) == FULL
    save_yaml(FULL, path, environment={"versions": {"python": "3.12"}, "command": "train"})
    assert load_yaml(path) == FULL
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_saved_file_names_every_attribute(tmp_path):
    save_yaml(RunConfig(), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert all(f"{field.name}:" in text for field in dataclasses.fields(RunConfig))


def test_numbers_are_read_as_a_person_writes_them(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("lr: 2e-3\ngradient_clip: 1\nprecision: 64\nmodel_options: {dt: 4e-2, hidden_size: 8}\n")
    config = load_yaml(path)
    assert config.lr == 0.002 and config.gradient_clip == 1.0 and config.precision == "64"
    assert config.model_options == {"dt": 0.04, "hidden_size": 8}
    path.write_text("")
    assert load_yaml(path) == RunConfig()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"batchsize": 3}, "unknown configuration key 'batchsize': did you mean 'batch_size'"),
        ({"learning_rate": 3}, "unknown configuration key"),
        ({"epochs": "many"}, "epochs is 'many': expected a whole number"),
        ({"epochs": 2.5}, "epochs is 2.5: expected a whole number"),
        ({"epochs": True}, "epochs is True: expected a whole number"),
        ({"epochs": 0}, "epochs is 0: expected a number above 0"),
        ({"batch_size": -1}, "batch_size is -1: expected a number above 0"),
        ({"lr": 0}, "lr is 0.0: expected a number above 0"),
        ({"lr": math.nan}, "lr is nan: expected a finite number"),
        ({"lr": math.inf}, "lr is inf: expected a finite number"),
        ({"lr": "fast"}, "lr is 'fast': expected a number"),
        ({"gradient_clip": -0.5}, "gradient_clip is -0.5: expected 0 or a positive number"),
        ({"patience": -1}, "patience is -1"),
        ({"seed": 2**32}, "seed is 4294967296: expected a number below"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"precision": "bf16"}, "unknown precision 'bf16': did you mean 'bf16-mixed'"),
        ({"model_options": [1]}, r"model_options is \[1\]: expected options"),
        ({"model_options": {"dt": {"a": 1}}}, "model_options.dt is a dict: expected a number"),
        ({"model_options": {"gradient": {"steps": {}}}}, "model_options.gradient.steps is a dict: expected a number"),
        ({"milestones": [3]}, "give milestones and the schedule 'milestones' together"),
        ({"schedule": "milestones"}, "give milestones and the schedule 'milestones' together"),
        ({"schedule": "milestones", "milestones": [0]}, r"milestones is \[0\]: expected numbers of epochs above 0"),
        ({"schedule": "milestones", "milestones": ["x"]}, "an element of milestones is 'x'"),
        ({"task": 3}, "task is 3: expected text"),
    ],
)
def test_bad_values_are_one_line(values, message):
    with pytest.raises(InputError, match=message) as caught:
        RunConfig.from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"lr: [0.1\n", "is not valid YAML: .* line 2, column 1"),
        (b"lr: 0.1\nlr: 0.2\n", "key 'lr' is given twice"),
        (b"- lr\n- 3\n", "holds a list: expected lines of 'key: value'"),
        (b"just text", "holds a str"),
        (b"\xff\xfe\x00", "is no text"),
        (b"lr: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
        (b"epochs: -3\n", "epochs is -3"),
        (b"lrr: 3\n", "unknown configuration key 'lrr': did you mean 'lr'"),
        (b"1: 3\n", "unknown configuration key 1"),
    ],
)
def test_bad_files_are_one_line_that_names_the_file(content, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml cannot be read: No such file"):
        load_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)


def test_unknown_key_keeps_its_kind_of_error(tmp_path):
    (tmp_path / "config.yaml").write_text("modle: cornn\n")
    with pytest.raises(UnknownNameError, match="did you mean 'model'"):
        load_yaml(tmp_path / "config.yaml")


def test_schedules():
    constant = RunConfig(lr=0.1, schedule="constant")
    assert [constant.learning_rate(epoch) for epoch in (0, 30, 59)] == [0.1] * 3
    cosine = RunConfig(lr=0.1, schedule="cosine", epochs=4)
    assert [cosine.learning_rate(epoch) for epoch in range(5)] == pytest.approx(
        [0.1, 0.0853553, 0.05, 0.0146447, 0], abs=1e-7
    )
    steps = RunConfig(lr=1.0, schedule="milestones", milestones=[4, 2], lr_factor=0.5)
    assert [steps.learning_rate(epoch) for epoch in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


#: Nine values each of the line before: of twenty lines, more than any memory holds.
BOMB = "a: &a [1, 1]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in itertools.pairwise("abcdefghij")
)

FOREIGN = [
    *("lr: 2020-02-30", "lr: 2020-13-01 10:00:00", "lr: !!int x", "lr: !!float x", "lr: !!timestamp x", "lr: !!bool x"),
    *(
        "lr: !!binary \u00e9",
        "lr: !!set {a}",
        "lr: !!omap [a]",
        "lr: !!python/object:os.system x",
        "lr: !foo 1",
        "lr: =",
    ),
    *("lr: 0x_", "lr: 0b_", "lr: 12:_:1", "lr: -_", "lr: 1e400", "lr: .nan", "lr: .inf", "lr: true"),
    *(
        "lr: " + "9" * 5000,
        "lr: " + "9" * 400,
        "seed: " + "9" * 5000,
        "batch_size: " + "9" * 30,
        "lr: " + "a" * 10_000,
    ),
    *("[" * 5000, "{a: " * 3000, "- " * 3000, "a: &x [*x]", "lr: *a", BOMB, "# " + "a" * 2_000_000),
    *("? [a, b]\n: 1", "? {a: b}\n: 1", "1: 2", "null: 3", "2020-01-01: 1", ".nan: 1", "<<: 3", "=: 1"),
    *("model_options: {dt: 2020-01-01}", "model_options: {dt: !!binary aGFsbG8=}", "model_options: {dt: {a: 1}}"),
    *(
        "milestones: [[1]]",
        "threads: 100000000",
        "\0",
        "a: \x01",
        "%YAML 9.9\n---\na",
        "--- a\n--- b",
        '"\\xZZ"',
        "\ufeff\ufeff",
    ),
]


@pytest.mark.parametrize("text", FOREIGN, ids=[f"{number} {text[:12]!a}" for number, text in enumerate(FOREIGN)])
def test_whatever_is_in_a_file_is_one_line(text, tmp_path, one_line):
    """YAML gives a value to Python as it is; what Python does not take is a fault of the file."""
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_yaml(path)
    one_line(error, path)
