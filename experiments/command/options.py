"""The options of the command line, derived from what they set.

Every attribute of `RunConfig`, every option of every task and solver and every hyperparameter of every network is an
option, with its description and default taken from where it is defined. Nothing is listed here, so nothing new can be
forgotten.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

import neuralosc
import solvers
from experiments import own, tasks
from experiments.command import parsers
from experiments.tasks import contract
from experiments.tasks.table import Table
from experiments.train import networks, optimizers
from experiments.train.config import RunConfig, load_yaml, read_yaml
from experiments.train.model import HIDDEN_SIZE
from experiments.train.networks import own_arguments, own_class
from solvers.errors import InputError
from solvers.methods.imex import IMPLICIT_TERMS

ROLES = ("task", "field", "model")
"""What may be a class of one's own."""

COMMAND = ("config", "resume", "name", "root", "profile", "help")
"""Options that a command has of its own."""

SECTIONS = ("task_options", "model_options", "solver_options", "optimizer_options")
SOLVING = ("solver", "substeps", "max_dt", "gradient", "control")
"""Hyperparameters of every network that choose how it is solved, and are shown with the solver's options."""

# What the command line says of names and numbers that are described elsewhere in a programmer's words.
WORDING = {
    "hidden_size": "channels of the hidden state",
    "num_layers": "layers of the stack",
    "dt": "time between two samples; one number, or one per layer",
    "energy_layers": "layers of the energy, 1 or 2",
    "epsilon": "damping, a number or one per channel",
    "bidirectional": "run every layer in both directions",
    "dropout": "probability of dropping a channel after each layer, one mask per sequence; in a baseline as in torch",
    "solver": "how a step is taken; see `list solvers`",
    "gradient": f"how the loss is differentiated: {', '.join(solvers.GRADIENTS)}; one "
    "with options, such as {name: truncated, steps: 16}, in a file for --config",
    "max_dt": "the longest step, as a timespan (1 is dt): longer intervals are split",
    "missing": "what to do with missing values (NaN) in the input: error, hold (the last value seen), mask (that, "
    "whether it was seen and since when) or decay (that, on its way to the mean); left out, of a task that has some, "
    "mask, or hold where a network has no mask",
    "control": f"the input between two samples: {', '.join(solvers.CONTROLS)}",
    "implicit_terms": f"terms that are solved for: {', '.join(IMPLICIT_TERMS)}",
}


@dataclass(frozen=True)
class Setting:
    """One setting of a run's configuration: where it is stored, and what it looks like as an option.

    Its name in its section is its key, if it has none of its own.
    """

    key: str
    section: str
    panel: str
    kind: Callable[..., Any]
    help: str
    default: str = ""
    name: str = ""
    typed: str = ""
    metavar: str = ""

    @property
    def stored(self) -> str:
        """What it is called in its section."""
        return self.name or self.key

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return self.typed or f"--{self.key.replace('_', '-')}"

    def parameter(self) -> inspect.Parameter:
        """The parameter of a command from which typer makes the option; None when it is left out."""
        declaration = f"{self.flag}/--no-{self.flag[2:]}" if self.kind is bool else self.flag
        parsed = None if self.kind in (bool, str) else self.kind
        # Escaped, or rich would read the brackets as markup.
        default = rf" \[default: {self.default}]" if self.default else ""
        option = typer.Option(
            declaration,
            help=self.help + default,
            metavar=self.metavar or ("PATH" if self.key.endswith("_dir") else parsers.METAVARS[self.kind]),
            parser=parsed,
            rich_help_panel=self.panel,
            show_default=False,
        )
        kind: Any = str if parsed else self.kind
        annotation = typing.Annotated[kind | None, option]
        return inspect.Parameter(self.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def descriptions(owner: object) -> dict[str, str]:
    """What the `Args:` or `Attributes:` section of a docstring (for a class, of its bases too) says of each name."""
    if isinstance(owner, type):
        return {key: text for base in reversed(owner.__mro__) for key, text in _section(base.__doc__).items()}
    return _section(getattr(owner, "__doc__", None))


def _section(doc: str | None) -> dict[str, str]:
    texts: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in inspect.cleandoc(doc or "").splitlines():
        entry = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if line and not line.startswith(" "):
            inside = line in ("Args:", "Attributes:")
        elif inside and entry:
            names = entry[1].split(", ")
            texts.update(dict.fromkeys(names, entry[2]))
        elif inside and line.startswith(" " * 8):
            texts.update({name: f"{texts[name]} {line.strip()}" for name in names})
    return texts


@functools.cache
def settings() -> tuple[Setting, ...]:
    """Every setting, in the order in which the help shows them."""
    elsewhere = ("task", "data_dir", "model", "field", "readout", "likelihood", "time", *SECTIONS)
    training = [f.name for f in dataclasses.fields(RunConfig) if f.name not in elsewhere]
    return (
        *_run_settings("Task", ("task", "data_dir")),
        *_task_settings(),
        *_run_settings("Model", ("model", "field", "readout", "likelihood", "time")),
        *_model_settings(),
        *_solver_settings(),
        *_run_settings("Training", training),
        *_optimizer_settings(),
    )


def settings_with(names: Mapping[str, str]) -> tuple[Setting, ...]:
    """Every setting, with the arguments of what is one's own in the place of others of that name.

    Args:
        names: what is given as "task", "field" and "model".

    Raises:
        InputError: a class that cannot be used, or an argument of it that is called like another setting.
    """
    added: dict[str, Setting] = {}
    known = {setting.key: setting for setting in settings()}
    for role, name in names.items():
        if not own.is_own(name):
            continue
        for setting in _own_settings(role, name):
            other = added.get(setting.key, known.get(setting.key))
            if setting.key in COMMAND or (other is not None and other.section != setting.section):
                raise InputError(
                    f"{role} {name!r} is made with {setting.key!r}, and {setting.flag} is taken: rename it"
                )
            added[setting.key] = setting
    unchanged = (added.pop(key, setting) for key, setting in known.items())
    return (*unchanged, *added.values())


def _own_settings(role: str, name: str) -> Iterator[Setting]:
    """The arguments of a class of one's own."""
    if role == "task":
        kind, section = contract.own_class(name), "task_options"
        taken = {key: value for key, value in tasks.defaults(name).items() if key != "data_dir"}
    else:
        kind, section = own_class(role, name), "model_options"
        taken = own_arguments(role, name)
    text = descriptions(kind)
    try:
        hints = typing.get_type_hints(kind.__init__)  # type: ignore[misc]
    except Exception:  # of names that are not there: the defaults say enough
        hints = {}
    for key, default in taken.items():
        needed = default is inspect.Parameter.empty
        yield Setting(
            key,
            section,
            role.capitalize() if role == "task" else "Model",
            parsers.of_argument(default, hints.get(key)),
            _sentence(text.get(key, "") or f"of {name}"),
            "must be given" if needed else _shown(default),
        )


def named_in(arguments: Sequence[str]) -> dict[str, str]:
    """What is given as --task, --field and --model on a command line, or in the file of its --config."""
    found: dict[str, str] = {}
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--task", "--field", "--model", "--config"):
            found[flag[2:]] = value if equals else "".join(arguments[place + 1 : place + 2])
    path = found.pop("config", None)
    # An option without its value is refused where it is read.
    stored = read_yaml(path) if path else {}
    of_file = {role: value for role, value in stored.items() if role in ROLES and isinstance(value, str)}
    return _overridden(of_file, found)


def _overridden(base: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """Names with others in their place; a field takes the place of a model, and the other way round."""
    network = [role for role in ROLES[1:] if role in found]
    return {**{role: name for role, name in base.items() if not network or role == "task"}, **found}


def _run_settings(panel: str, names: Iterable[str]) -> list[Setting]:
    text, hints, standard = descriptions(RunConfig), typing.get_type_hints(RunConfig), RunConfig()
    declared = {field.name: field for field in dataclasses.fields(RunConfig)}
    result = []
    for name in names:
        default = getattr(standard, name)
        shown = "" if default in (None, []) else ",".join(default) if isinstance(default, list) else str(default)
        kind, help_ = parsers.of_hint(hints[name]), _sentence(text.get(name, ""))
        about = declared[name].metadata
        typed, metavar = about.get("flag", ""), about.get("metavar", "")
        result.append(Setting(name, "", panel, kind, help_, shown, typed=typed, metavar=metavar))
    return result


def _task_settings() -> list[Setting]:
    owners = {name: _defaults(task) for name, task in tasks.TASKS.items()}
    text = {name: descriptions(task) for name, task in tasks.TASKS.items()}
    return [_shared_setting(key, "task_options", "Task", owners, text) for key in _union(owners) if key != "data_dir"]


def _model_settings() -> list[Setting]:
    owners, text = {}, {}
    for card in neuralosc.models():
        owners[card.name] = {"hidden_size": HIDDEN_SIZE, **card.defaults}
        field = getattr(neuralosc, card.field, None) if card.field and not card.blocks else None
        specific = {**descriptions(field), **descriptions(card.make)}
        text[card.name] = {**descriptions(neuralosc.ContinuousRNN), **specific, **WORDING}
    keys = sorted(_union(owners), key=lambda key: key in SOLVING)
    shared = [_shared_setting(k, "model_options", "Solver" if k in SOLVING else "Model", owners, text) for k in keys]
    return [
        dataclasses.replace(s, kind=parsers.numbers) if s.kind is parsers.number and _may_be_several(s.key) else s
        for s in shared
    ]


def _may_be_several(key: str) -> bool:
    """Whether some network takes one value per layer or channel for this number."""
    signatures = [inspect.signature(card.make).parameters for card in neuralosc.models()]
    return any(key in known and known[key].annotation not in ("float", float) for known in signatures)


def _solver_settings() -> list[Setting]:
    owners: dict[str, dict[str, Any]] = {}
    text: dict[str, dict[str, str]] = {}
    for info in solvers.available():
        # The solvers of a family take the same options.
        owners.setdefault(info.family, {}).update(info.options)
        text.setdefault(info.family, {}).update({**descriptions(type(solvers.get(info.name))), **WORDING})
    return [_shared_setting(key, "solver_options", "Solver", owners, text) for key in _union(owners)]


def _optimizer_settings() -> list[Setting]:
    owners = {name: optimizers.defaults(name) for name in optimizers.OPTIMIZERS}
    text = dict.fromkeys(owners, optimizers.OPTIONS)
    shared = [_shared_setting(key, "optimizer_options", "Training", owners, text) for key in _union(owners)]
    # Fields have an alpha, too; and a default of 0 is no whole number here.
    kinds = {parsers.whole_number: parsers.number}
    return [
        dataclasses.replace(s, key=f"optimizer_{s.key}", name=s.key, kind=kinds.get(s.kind, s.kind)) for s in shared
    ]


def _shared_setting(
    key: str, section: str, panel: str, owners: Mapping[str, Mapping[str, Any]], text: Mapping[str, Mapping[str, str]]
) -> Setting:
    """The option `key` of all its owners (tasks, networks or solvers): what it means to each, and the defaults."""
    meanings: dict[str, list[str]] = {}
    standards: dict[str, list[str]] = {}
    for name, options in owners.items():
        if key in options:
            meanings.setdefault(text[name].get(key, "").rstrip("."), []).append(name)
            standards.setdefault(_shown(options[key]), []).append(name)
    help_ = "; ".join(f"{m} ({', '.join(names)})" if len(meanings) > 1 else m for m, names in meanings.items() if m)
    # What most of them take needs no list of names.
    usual = 2 * sum(key in options for options in owners.values()) > len(owners)
    default = "; ".join(d if usual and len(standards) == 1 else f"{', '.join(n)} {d}" for d, n in standards.items())
    kind = parsers.of_values([options[key] for options in owners.values() if key in options])
    return Setting(key, section, panel, kind, _sentence(help_), default)


def _union(owners: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for options in owners.values() for key in options))


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _shown(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else "none" if value in (None, "") else f"{value}"


def has_settings(
    only: Callable[[Setting], bool] = lambda _: True, known: Callable[[], Iterable[Setting]] = settings
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command, which takes them as `**values`, the options of every known setting that `only` lets through."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            return command(**values)

        signature = inspect.signature(command, eval_str=True)
        derived = [setting.parameter() for setting in known() if only(setting)]
        declared = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters = [*derived, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in declared)]
        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the `values` of a command that were given on the command line."""
    known = {setting.key for setting in settings()}
    return {key: value for key, value in values.items() if key in known and value is not None}


def resolve(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`base` with the settings given on the command line in its place.

    Raises:
        InputError: a hyperparameter that the network does not take, or a value that cannot be used.
    """
    named = {role: values[role] for role in ROLES if values.get(role)}
    names = _overridden({role: getattr(base, role) for role in ROLES if getattr(base, role)}, named)
    known = settings_with(names)
    changes = put({section: getattr(base, section) for section in SECTIONS}, known, values)
    changes |= {role: names.get(role, "") for role in ROLES} | implied(values)
    result = RunConfig.from_dict({**base.to_dict(), **changes})
    _check_model_options(result)
    _check_solver_options(result)
    return result


def implied(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is chosen along with the settings given on the command line."""
    found: dict[str, Any] = {}
    if values.get("csv") and values.get("task") is None:
        found["task"] = Table.name
    if values.get("milestones") and values.get("schedule") is None:
        found["schedule"] = "milestones"
    return found


def put(base: Mapping[str, Any], known: Iterable[Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a configuration with the settings given on the command line in their place, each in its section."""
    changed = {**base, **{section: dict(base.get(section) or {}) for section in SECTIONS}}
    for setting in known:
        if values.get(setting.key) is not None:
            target = changed[setting.section] if setting.section else changed
            target[setting.stored] = values[setting.key]
    return changed


def _check_model_options(config: RunConfig) -> None:
    card = networks.card(config)
    takes = ["hidden_size", *(key for key in card.defaults if key != "hidden_size")]
    for key in config.model_options:
        if key not in takes:
            what = networks.role(config)
            raise InputError(f"{what} {card.name!r} takes no {flags([key])}: it takes {flags(takes)}")


def _check_solver_options(config: RunConfig) -> None:
    chosen = config.model_options.get("solver") or networks.card(config).solver
    if chosen is None:
        if config.solver_options:
            raise InputError(f"model {config.network!r} has no solver and takes no {flags(config.solver_options)}")
        return
    solver = solvers.get(chosen)
    takes = solver.option_names()
    for key in config.solver_options:
        if key not in takes:
            raise InputError(f"solver {solver.name!r} takes no {flags([key])}: it takes {flags(takes) or 'no options'}")
    solver.with_options(**config.solver_options)


def flags(keys: Iterable[str]) -> str:
    """Settings as they are typed: `--lr, --batch-size`."""
    known = {setting.key: setting.flag for setting in settings()}
    return ", ".join(known.get(key, f"--{key.replace('_', '-')}") for key in keys)


def solver_option_names() -> list[str]:
    """Every option that some solver takes."""
    return [setting.key for setting in settings() if setting.section == "solver_options"]


def read_base(path: Path | None) -> RunConfig:
    """The configuration in a file, or the standard one where no file is named."""
    return RunConfig() if path is None else load_yaml(path)
