"""The whole configuration of a training run: one flat record, to and from YAML."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import typing
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments import own
from experiments.files import write_atomically
from experiments.train import optimizers
from experiments.train.optimizers import OPTIMIZERS
from neuralosc import READOUTS
from neuralosc.layers.readout import LIKELIHOODS
from solvers.errors import InputError, unknown

STANDARD_MODEL = "cornn"
SCHEDULES = ("constant", "cosine", "milestones")
DEVICES = ("auto", "cpu", "cuda", "mps")
# Those that give one answer for a sequence.
READOUTS_OF_A_SEQUENCE = tuple(name for name in READOUTS if not READOUTS[name].every)
TIMES = ("true", "ignored", "input")
CLASS_WEIGHTS = ("none", "balanced")
KEPT = ("best", "last")
#: Loggers that every run has, named or not, and those that it is told of besides.
ALWAYS_LOGGED = ("csv", "tensorboard")
LOGGERS = (*ALWAYS_LOGGED, "mlflow", "wandb", "trackio")
PRECISIONS = ("32", "64", "16-mixed", "bf16-mixed")

# A section that a run writes beside its configuration: what it ran on. Read back, it changes nothing.
ENVIRONMENT = "environment"

# More than any processor runs; a process that asks for many more is ended by the system.
MOST_THREADS = 1024

# Characters of a configuration file, far more than any configuration needs.
LARGEST = 1_000_000


@dataclass
class RunConfig:
    """Everything that decides what a run does.

    Attributes:
        task: name of the task, or package.module:Class of a class of one's own, derived from experiments.tasks.Task.
        task_options: options of the task, such as the length of `adding`.
        model: name of the network, or package.module:Class of a class of one's own, called like torch.nn.RNN: made with
            input_size and hidden_size, and rnn(x) gives output and state, batch first. "cornn" where there is no field.
        field: package.module:Class of a vector field of one's own, in place of a model: `ContinuousRNN` runs it.
        model_options: what `neuralosc.make` takes: hidden_size, dt, solver, substeps, gradient, control and the
            hyperparameters of the network. What is left out has the network's default; hidden_size 128.
        solver_options: options of the solver: rtol, atol, max_steps, implicit.
        readout: what the answer is read off: the "last" output, the "mean" of all, or an "attention" over all; of a
            task that asks at every sample, "every" output. "auto" is the last, or every one.
        likelihood: what an answer of a regression or forecast is: "none", a number, trained by the mean squared error;
            "gaussian", a mean and a standard deviation, trained by their likelihood, and judged by the continuous
            ranked probability score first.
        time: how the network is told the time between samples, of a task that has it: "true", its equation runs for
            that time; "input", it runs for 1 each time and is shown the time as one more feature; "ignored", not.
        initial_weights: folder of a run whose kept weights, with their scales, training begins with: of the same task,
            of shorter sequences, of another data set. The network must have the same weights; a read-out that answers
            otherwise begins anew. Empty for random weights.
        lr: learning rate.
        optimizer: "adam"; "adamw", whose decay is no part of the gradient; "rmsprop"; "sgd", with momentum; or another
            one of torch.optim: "adadelta", "adafactor", "adagrad", "adamax", "asgd", "nadam", "radam".
        optimizer_options: options of the optimizer as torch names them: betas, eps, nesterov, alpha. What is left out
            has torch's default.
        weight_decay: how much of a weight is taken off, of the matrices alone: biases and constants of the dynamics
            (frequencies, dampings, steps, thresholds) are no weights.
        dynamics_lr: factor on the learning rate of constants of the dynamics that are trained.
        momentum: of "sgd" and "rmsprop".
        epochs: passes over the training set, at most.
        batch_size: sequences in a training batch, of all processes together.
        bucket: pools of so many batches, in each of which sequences share a batch with those of about their length, so
            that less is padding; 0 for batches of any lengths. The batches themselves come in random order.
        class_weights: weights of the classes in the loss: "none", or "balanced", the inverse of their frequency in the
            training set.
        gradient_clip: largest norm of the gradient, 0 for any.
        schedule: "constant"; "cosine", from lr to 0 over the epochs; "milestones", times lr_factor at each of them.
        milestones: numbers of epochs after which the learning rate is multiplied by lr_factor.
        lr_factor: used with milestones.
        warmup: epochs, not necessarily whole ones, over which the learning rate grows from 0 to that of the schedule,
            step by step in proportion; 0 for none.
        patience: epochs without a better validation figure after which training stops, 0 for never.
        keep: the epoch whose weights are saved and judged: the "best" on the validation set, or the "last". Of a small
            validation set the best is often a matter of luck, and an early one, before the learning rate has fallen.
        seed: of the initial weights, of the order of the samples, of dropout and of generated sequences.
        sync_batchnorm: of several processes: normalize over the whole batch, not over the part of each process.
        device: "auto", "cpu", "cuda" or "mps".
        threads: CPU threads, 0 for PyTorch's choice. The last bits of the weights depend on it, so a run keeps it.
        precision: "32", "64", "16-mixed" or "bf16-mixed".
        data_dir: folder with the data files, for tasks that need them.
        limit_train_batches: training batches in an epoch, 0 for all.
        limit_evaluation_batches: batches of a validation or test set that are looked at, 0 for all.
        loggers: where the figures of every epoch go: "csv" (metrics.csv) and "tensorboard", named or not; and the
            trackers "mlflow", "wandb" and "trackio".

    Raises:
        InputError: a value that cannot be used.
    """

    task: str = "digits"
    task_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: str = ""
    field: str = ""
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    solver_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    readout: str = "auto"
    likelihood: str = "none"
    time: str = "true"
    initial_weights: str = dataclasses.field(default="", metadata={"metavar": "RUN"})
    lr: float = 0.01
    optimizer: str = "adam"
    optimizer_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    weight_decay: float = 0.0
    dynamics_lr: float = 1.0
    momentum: float = 0.0
    epochs: int = 60
    batch_size: int = 64
    bucket: int = 0
    class_weights: str = "none"
    gradient_clip: float = 1.0
    schedule: str = "cosine"
    milestones: list[int] = dataclasses.field(default_factory=list)
    lr_factor: float = 0.1
    warmup: float = 0.0
    patience: int = 0
    keep: str = "best"
    seed: int = 0
    sync_batchnorm: bool = False
    device: str = "auto"
    threads: int = 0
    precision: str = "32"
    data_dir: str | None = None
    limit_train_batches: int = 0
    limit_evaluation_batches: int = 0
    loggers: list[str] = dataclasses.field(default_factory=lambda: list(ALWAYS_LOGGED), metadata={"flag": "--logger"})

    def __post_init__(self) -> None:
        for name, hint in _HINTS.items():
            setattr(self, name, _converted(name, getattr(self, name), hint))
        if self.model and self.field:
            raise InputError(f"model is {self.model!r} and field is {self.field!r}: give one of them")
        self._require("field", not self.field or own.is_own(self.field), own.EXPECTED.removeprefix("expected "))
        if not self.field:
            self.model = self.model or STANDARD_MODEL
        for name in ("lr", "lr_factor", "dynamics_lr", "epochs", "batch_size"):
            self._require(name, getattr(self, name) > 0, "a number above 0")
        for name in (
            "weight_decay",
            "momentum",
            "gradient_clip",
            "bucket",
            "warmup",
            "patience",
            "seed",
            "threads",
            "limit_train_batches",
            "limit_evaluation_batches",
        ):
            self._require(name, getattr(self, name) >= 0, "0 or a positive number")
        if self.keep == "last" and self.patience:
            raise InputError(
                f"patience is {self.patience} and keep is 'last', the last of epochs that bring nothing: give one"
            )
        self._require("threads", self.threads <= MOST_THREADS, f"{MOST_THREADS} at most")
        self._require("seed", self.seed < 2**32, "a number below 2^32")
        words: dict[str, typing.Collection[str]] = {"schedule": SCHEDULES, "device": DEVICES, "precision": PRECISIONS}
        words |= {"readout": ("auto", *READOUTS), "likelihood": LIKELIHOODS, "optimizer": OPTIMIZERS}
        words |= {"time": TIMES, "class_weights": CLASS_WEIGHTS, "keep": KEPT}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name in self.loggers:
            if name not in LOGGERS:
                raise unknown("logger", name, LOGGERS)
        self.loggers = list(dict.fromkeys((*ALWAYS_LOGGED, *self.loggers)))
        if self.momentum and not optimizers.has_momentum(self.optimizer):
            raise InputError(f"momentum {self.momentum:g} with {self.optimizer}: it is of sgd and rmsprop alone")
        optimizers.check(self.optimizer, self.optimizer_options, self.momentum)
        self._require("milestones", all(epoch > 0 for epoch in self.milestones), "numbers of epochs above 0")
        if (self.schedule == "milestones") != bool(self.milestones):
            raise InputError(
                f"schedule {self.schedule!r} with milestones {self.milestones}: give milestones and"
                " the schedule 'milestones' together, or neither"
            )

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"{name} is {getattr(self, name)!r}: expected {expected}")

    @property
    def network(self) -> str:
        """The model, or the field."""
        return self.field or self.model

    def learning_rate(self, epoch: int, done: float = 1.0) -> float:
        """The learning rate of a step: a function of nothing else, so a resumed run has it too.

        Args:
            epoch: counted from 0.
            done: the part of the epoch that is done with this step; within one epoch it matters to the warm-up alone.
        """
        warm = min(1.0, (epoch + done) / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            return warm * (self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2)
        return warm * (self.lr * self.lr_factor ** sum(epoch >= milestone for milestone in self.milestones))

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, in the order of the attributes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The configuration with these values, and defaults for the rest.

        Raises:
            UnknownNameError: a key that is no attribute; the message lists the nearest.
            InputError: a value of the wrong type, or one that cannot be used.
        """
        for key in values:
            if key not in _HINTS:
                raise unknown("configuration key", key, _HINTS)
        return cls(**values)


_HINTS = {name: hint for name, hint in typing.get_type_hints(RunConfig).items()}


def load_yaml(path: str | Path) -> RunConfig:
    """The configuration in a YAML file: one written by hand, or the config.yaml of a run.

    Raises:
        InputError: the file is missing, is no YAML, or holds something that is no configuration.
    """
    values = read_yaml(path)
    values.pop(ENVIRONMENT, None)
    try:
        return RunConfig.from_dict(values)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: the file is missing, is no YAML, or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if len(text) > LARGEST:
            raise InputError(f"configuration {path} has {len(text)} characters: expected {LARGEST} at most")
        values = yaml.load(text, _Loader)
    except OSError as error:
        raise InputError(f"configuration {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"configuration {path} is no text: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise InputError(f"configuration {path} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"configuration {path} is nested too deeply: expected lines of 'key: value'") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"configuration {path} holds a {type(values).__name__}: expected lines of 'key: value'")
    return values


def save_yaml(config: RunConfig, path: str | Path, environment: Mapping[str, Any] | None = None) -> None:
    """Write the configuration, and what it ran on if given, as YAML that `load_yaml` reads."""
    values = config.to_dict()
    if environment is not None:
        values[ENVIRONMENT] = dict(environment)
    write_atomically(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())


class _Loader(yaml.SafeLoader):
    """YAML without its traps: 1e-3 is a number, a key given twice is an error, and no line stands for many others."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # Some lines of aliases of aliases would be more values than memory holds.
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "an alias: write the value out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # PyYAML hands what a value says to Python as it is, such as the 30th of February.
            shown = f"{node.value!r:.40} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, f"{shown} ({error})", node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _converted(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, where nothing is lost by it; else an InputError."""
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        # A whole number may be larger than any float.
        if abs(value) > sys.float_info.max or not math.isfinite(value):
            raise InputError(f"{name} is {value!r:.40}: expected a finite number")
        return float(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**63:
            raise InputError(f"{name} has {len(f'{abs(value):x}')} hexadecimal digits: expected a number below 2^63")
        return value
    if hint is str and (isinstance(value, str) or (name == "precision" and value in (32, 64))):
        return str(value)
    if hint == str | None and (value is None or isinstance(value, str | Path)):
        return None if value is None else str(value)
    if hint == list[int] and isinstance(value, list | tuple):
        return sorted(_converted(f"an element of {name}", element, int) for element in value)
    if hint == list[str] and isinstance(value, str | list | tuple):
        parts = value.split(",") if isinstance(value, str) else value
        return [_converted(f"an element of {name}", part, str).strip() for part in parts]
    if hint == dict[str, Any] and (value is None or isinstance(value, Mapping)):
        return {str(key): _plain(f"{name}.{key}", element) for key, element in (value or {}).items()}
    raise InputError(f"{name} is {value!r:.80}: expected {_NAMES.get(hint, hint)}")


_NAMES: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    str | None: "a folder",
    list[int]: "a list of whole numbers",
    list[str]: "a list of names",
    dict[str, Any]: "options as 'name: value'",
}


def _plain(name: str, value: Any) -> Any:
    """`value` if YAML can hold it and give it back."""
    if isinstance(value, list | tuple):
        return [_plain(name, element) for element in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and name == "model_options.gradient":
        # A gradient with options, as `solvers.get_gradient` takes it.
        return {str(key): _plain(f"{name}.{key}", element) for key, element in value.items()}
    raise InputError(f"{name} is a {type(value).__name__}: expected a number, text, true, false or a list of these")
