"""Saving and loading networks: weights and configuration in one safetensors file, nothing unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import solvers
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import make
from neuralosc.version import __version__
from solvers.errors import InputError

FORMAT = "neuralosc 1"


def save(rnn: RecurrentLayer, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> Path:
    """Write the weights and the configuration of a network; the file appears whole or not at all.

    Args:
        rnn: a named network, or one of your own field (then `load` needs one to load `into`).
        path: file to write.
        metadata: further text to keep with it.

    Raises:
        InputError: safetensors is not installed, or the folder does not exist.
    """
    write = _safetensors().save
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"cannot save to {target}: the folder {target.parent} does not exist; make it first")
    if target.is_dir():
        raise InputError(f"cannot save to {target}: it is a folder; give the name of a file")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"metadata {key!r} is {value!r}, expected text: use str() or json.dumps")
    solver = getattr(rnn, "solver", None)
    if isinstance(solver, solvers.Solver) and solver.name not in solvers.SOLVERS:
        raise InputError(f"solver {solver.name!r} has no registered name to save: use solvers.register first")
    tensors = {name: value.detach().cpu().contiguous() for name, value in rnn.state_dict().items()}
    header = {**(metadata or {}), "format": FORMAT, "version": __version__, "config": json.dumps(rnn.config)}
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(write(tensors, metadata=header))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def load(path: str | os.PathLike[str], into: RecurrentLayer | None = None) -> ContinuousRNN | Any:
    """Read what `save` wrote: a ContinuousRNN, or whatever other named network was saved.

    Args:
        path: the file.
        into: a network of your own field to load the weights into; named networks are built anew without it.

    Raises:
        InputError: no such file, a file of another kind, a damaged one, or weights that do not fit.
    """
    source = Path(path)
    tensors, header = _read(source)
    if header.get("format") != FORMAT:
        raise InputError(
            f"{source} is a safetensors file but not one of neuralosc.save (format {header.get('format')!r}, "
            f"expected {FORMAT!r}): give a file that neuralosc.save wrote"
        )
    rnn = _rebuild(source, header.get("config", "")) if into is None else into
    _fit(rnn, tensors, source)
    kinds = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    if into is None and kinds:
        rnn = rnn.to(kinds[0])
    rnn.load_state_dict(tensors)
    return rnn


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


def _rebuild(source: Path, written: str) -> RecurrentLayer:
    """The network of a stored configuration, with weights drawn from a stream of its own."""
    try:
        config = json.loads(written)
        if config is None:
            raise InputError(
                f"{source} holds the weights of a network with a field of its own: make that network and "
                "call neuralosc.load(path, into=rnn)"
            )
        settings = dict(config)
        with torch.random.fork_rng(devices=[]):
            rnn: RecurrentLayer = make(settings.pop("model"), **settings)
            return rnn
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError) and str(source) in str(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"the configuration in {source} cannot be used ({type(error).__name__}: {reason}): give a file that "
            "neuralosc.save wrote"
        ) from error


def _fit(rnn: nn.Module, tensors: dict[str, Any], source: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in rnn.state_dict().items()}
    stored = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise InputError(
                f"{source} does not fit the network: {name} has shape {stored.get(name, 'none, it is missing')} in the "
                f"file and {expected.get(name, 'no place')} in the network"
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
