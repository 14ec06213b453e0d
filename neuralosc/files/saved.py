"""Saving and loading networks and models: weights and configuration in one safetensors file, nothing unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import solvers
from neuralosc.files.kinds import KINDS, Kind, kind_of
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.scaling import Scaler
from neuralosc.layers.sequence_model import SequenceModel
from neuralosc.named.latent_ode import LatentODE
from neuralosc.version import __version__
from solvers.errors import InputError

#: Of a network, and of a whole model.
FORMAT, MODEL_FORMAT = (kind.format for kind in KINDS[:2])
#: The one before, in which max_dt was in units of time and not a timespan.
EARLIER = "neuralosc 1"


def save(
    rnn: RecurrentLayer | SequenceModel | LatentODE,
    path: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write the weights and the configuration of a network or a model; the file appears whole or not at all.

    Args:
        rnn: a named network, or one of your own field (then `load` needs one to load `into`); a `SequenceModel` of
            one, with its scaling, its read-out and its unit of time; or a `LatentODE`.
        path: file to write.
        metadata: further text to keep with it.

    Raises:
        InputError: safetensors is not installed, or the folder does not exist.
    """
    write, kind = _safetensors().save, kind_of(rnn)
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"cannot save to {target}: the folder {target.parent} does not exist; make it first")
    if target.is_dir():
        raise InputError(f"cannot save to {target}: it is a folder; give the name of a file")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"metadata {key!r} is {value!r}, expected text: use str() or json.dumps")
    for part in rnn.modules():
        solver = getattr(part, "solver", None)
        if isinstance(solver, solvers.Solver) and solver.name not in solvers.SOLVERS:
            raise InputError(f"solver {solver.name!r} has no registered name to save: use solvers.register first")
    tensors = {name: value.detach().cpu().contiguous() for name, value in rnn.state_dict().items()}
    header = {**(metadata or {}), "version": __version__, "format": kind.format}
    header |= {name: json.dumps(value) for name, value in kind.written(rnn).items()}
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(write(tensors, metadata=header))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def load(
    path: str | os.PathLike[str], into: RecurrentLayer | SequenceModel | LatentODE | None = None
) -> ContinuousRNN | SequenceModel | Any:
    """Read what `save` wrote: a ContinuousRNN or other named network, a `SequenceModel`, or a `LatentODE`.

    Args:
        path: the file.
        into: a network of your own field, or a model of one, to load the weights into; all else is built anew
            without it. It must have what the saved one was computed with (dt, solver, control, ..), which the weights
            alone do not say.

    Raises:
        InputError: no such file, a file of another kind, a damaged one, or weights or settings that do not fit.
    """
    source = Path(path)
    tensors, header = _read(source)
    if header.get("format") == EARLIER:
        header = _renewed(header)
    kind = next((kind for kind in KINDS if kind.format == header.get("format")), None)
    if kind is None:
        raise InputError(
            f"{source} is a safetensors file but not one of neuralosc.save (format {header.get('format')!r}, "
            f"expected {' or '.join(repr(kind.format) for kind in KINDS)}): give a file that neuralosc.save wrote"
        )
    if into is None:
        made = _rebuild(source, header.get("config", ""), tensors, kind)
        _check_scales(made, tensors, source)
        # Each tensor keeps the precision in which it was saved.
        made.load_state_dict(tensors, assign=True)
        return made
    if kind_of(into) is not kind:
        raise InputError(f"{source} holds {kind.name}, and into is {kind_of(into).name}: give the same")
    _fit(into, tensors, source)
    _agree(into, header, source, kind)
    _check_scales(into, tensors, source)
    into.load_state_dict(tensors)
    return into


def _read(source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    if not source.is_file():
        raise InputError(f"no file {source}: give the path of a file that neuralosc.save wrote")
    library = _safetensors()
    try:
        with library.safe_open(str(source), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # every way a foreign or damaged file can fail ends in the same advice
        raise InputError(
            f"{source} cannot be read as a safetensors file ({type(error).__name__}: {error}): "
            "give a file that neuralosc.save wrote"
        ) from error


def _renewed(header: dict[str, str]) -> dict[str, str]:
    """A header of the earlier format as one of this format."""
    changed = dict(header, format=FORMAT)
    for name in ("config", "settings"):
        try:
            stored = json.loads(header.get(name, "null"))
        except ValueError:
            continue  # said where it is read
        dt = stored.get("dt") if isinstance(stored, dict) else None
        if isinstance(dt, int | float) and isinstance(stored.get("max_dt"), int | float):
            changed[name] = json.dumps({**stored, "max_dt": stored["max_dt"] / dt})
    return changed


def _rebuild(source: Path, written: str, tensors: dict[str, Any], kind: Kind) -> nn.Module:
    """What a stored configuration is of, with weights drawn from a stream of its own."""
    try:
        config = json.loads(written)
        if kind.own(config):
            whole = kind.type is SequenceModel
            raise InputError(
                f"{source} holds the weights of a network with a field of its own: make that network"
                f"{' and its model' if whole else ''} and call neuralosc.load(path, into={'model' if whole else 'rnn'})"
            )
        with torch.device("meta"):
            # Its shapes alone: a few bytes of configuration could ask for any amount of memory.
            _fit(kind.build(config, len(tensors)), tensors, source)
        with torch.random.fork_rng(devices=[]):
            return kind.build(config, len(tensors))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, InputError) and str(source) in str(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"the configuration in {source} cannot be used ({type(error).__name__}: {reason}): give a file that "
            "neuralosc.save wrote"
        ) from error


#: What a network may have otherwise than the saved one: the same weights give the same outputs.
_FREE = ("gradient", "dropout", "missing", "encoder_gradient", "embedding_dropout")


def _agree(given: nn.Module, header: dict[str, str], source: Path, kind: Kind) -> None:
    """Refuse other settings than those saved; older files have none of networks of own fields."""
    try:
        saved = kind.known({name: json.loads(header.get(name, "null")) for name in ("config", "settings")})
        own = kind.known(json.loads(json.dumps(kind.written(given))))
        names = [name for name in saved if name in own and name not in _FREE and saved[name] != own[name]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"the settings in {source} cannot be read ({type(error).__name__}): give a file that neuralosc.save wrote"
        ) from error
    if names:
        raise InputError(
            f"{source} was saved with {', '.join(f'{name} {saved[name]!r}' for name in names)}, the network has "
            f"{', '.join(f'{name} {own[name]!r}' for name in names)}: make them equal, and use with_solver on what is "
            "loaded to change them"
        )


def _check_scales(given: nn.Module, tensors: dict[str, Any], source: Path) -> None:
    """Refuse a scale that is none."""
    for name, scaler in given.named_modules():
        if isinstance(scaler, Scaler):
            mean, scale = tensors[f"{name}.mean"], tensors[f"{name}.scale"]
            if not bool(torch.isfinite(mean).all() & torch.isfinite(scale).all() & (scale > 0).all()):
                raise InputError(f"{source} holds a {name} with means or scales that are none")


def _fit(rnn: nn.Module, tensors: dict[str, Any], source: Path) -> None:
    """Refuse weights of other names, shapes or kinds than the network has."""
    own = rnn.state_dict()
    expected = {name: tuple(value.shape) for name, value in own.items()}
    stored = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise InputError(
                f"{source} does not fit the network: {name} has shape {stored.get(name, 'none, it is missing')} in the "
                f"file and {expected.get(name, 'no place')} in the network"
            )
        kinds = (tensors[name].dtype, own[name].dtype)
        if kinds[0] != kinds[1] and not all(kind.is_floating_point for kind in kinds):
            raise InputError(
                f"{source} does not fit the network: {name} is {kinds[0]} in the file, expected {kinds[1]}"
            )


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise InputError("saving and loading need the package safetensors: pip install safetensors") from error

    class Library:
        save = staticmethod(safetensors.torch.save)
        safe_open = staticmethod(safetensors.safe_open)

    return Library
