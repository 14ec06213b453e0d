"""The folder of a training run: what lies in it, under which names, and that nothing in it is ever overwritten."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import neuralosc
from experiments import machines
from experiments.files import locked, write_atomically
from experiments.train import processes
from experiments.train.config import ENVIRONMENT, RunConfig, load_yaml, read_yaml, save_yaml
from solvers.errors import InputError

VERSIONS_OF = ("torch", "lightning", "numpy", "torchdiffeq")


@dataclass(frozen=True)
class RunFolder:
    """One run: its configuration, logs, checkpoints, kept weights and result.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The full configuration and what the run ran on."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """One line for every epoch."""
        return self.path / "metrics.csv"

    @property
    def last(self) -> Path:
        """The checkpoint after the last finished epoch: everything that is needed to go on."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last, should that be damaged."""
        return self.path / "checkpoints" / "previous.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint after the epoch with the best validation figure."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def model_file(self) -> Path:
        """The model with the kept weights, which `neuralosc.load` reads."""
        return self.path / "model.safetensors"

    @property
    def readout_file(self) -> Path:
        """The kept weights of the read-out, in runs from before: their model file holds the network alone."""
        return self.path / "readout.safetensors"

    @property
    def curve_file(self) -> Path:
        """Loss and metric against epochs, a picture."""
        return self.path / "learning_curve.png"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def result_file(self) -> Path:
        """How the run ended."""
        return self.path / "result.json"

    @classmethod
    def create(cls, root: str | Path = "runs", name: str | None = None, prefix: str = "run") -> RunFolder:
        """A new folder in `root`, called `name`, or `prefix` and the first free number.

        Raises:
            InputError: a folder of that name exists already, the name is none, or the folder cannot be made.
        """
        root = Path(root)
        if name is not None and (not name.strip() or name == ".." or Path(name).name != name):
            raise InputError(f"run name {name!r}: expected the name of one folder, without separators")
        names = (f"{prefix}-{number:03d}" for number in itertools.count(1)) if name is None else iter([name])
        try:
            root.mkdir(parents=True, exist_ok=True)
            for candidate in names:
                try:
                    # The one step that only one process can win.
                    (root / candidate).mkdir()
                except FileExistsError:
                    continue
                (root / candidate / "checkpoints").mkdir()
                return cls(root / candidate)
        except OSError as error:
            raise InputError(f"run folder in {root} cannot be made: {error.strerror or error}") from error
        raise InputError(f"run {root / str(name)} exists already: give another name, or go on with it by --resume")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The existing run in the folder `path`.

        Raises:
            InputError: there is no such folder, or it holds no run.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise InputError(f"no run folder {path}")
        if not folder.config_file.is_file():
            raise InputError(f"{path} is not a run: it has no {folder.config_file.name}")
        return folder

    def write_config(self, config: RunConfig, device: str) -> None:
        """Write the configuration, with the versions, the device and the command line of this process."""
        save_yaml(config, self.config_file, environment(device))

    def config(self) -> RunConfig:
        """The configuration of the run."""
        return load_yaml(self.config_file)

    def processes(self) -> int:
        """How many processes the run was begun with."""
        environment = read_yaml(self.config_file).get(ENVIRONMENT)
        number = environment.get("processes", 1) if isinstance(environment, dict) else 1
        return number if isinstance(number, int) else 1

    def write_result(self, **result: Any) -> None:
        """Write how the run ended."""
        write_atomically(self.result_file, (json.dumps(result, indent=2) + "\n").encode())

    def result(self) -> dict[str, Any] | None:
        """How the run ended, None if it has not.

        Raises:
            InputError: the file is damaged.
        """
        if not self.result_file.is_file():
            return None
        try:
            result = json.loads(self.result_file.read_bytes())
        except OSError as error:
            raise InputError(f"{self.result_file} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.result_file} is damaged ({error}): remove it and resume the run") from error
        if not isinstance(result, dict) or not isinstance(result.get("status"), str):
            raise InputError(f"{self.result_file} holds no result: remove it and resume the run")
        return result

    def checksums(self) -> dict[str, str]:
        """Of the kept weights, by file: what is in their files today."""
        files = (self.model_file, self.readout_file)
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from training in this folder; the lock ends with the process, however it ends.

        Raises:
            InputError: another process is training in it, or nothing can be written into it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / ".lock", wait=False))
            except BlockingIOError as error:
                raise InputError(f"run {self.path} is being trained by another process") from error
            except OSError as error:
                reason = error.strerror or error
                raise InputError(f"nothing can be written into the run {self.path}: {reason}") from error
            yield


def environment(device: str) -> dict[str, Any]:
    """What a run runs on: versions, device, command line, time."""
    # The version of the package itself comes from its code: a checkout need not be installed.
    versions = {"python": platform.python_version(), "neuralosc": neuralosc.__version__}
    versions |= {name: version(name) for name in VERSIONS_OF}
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "platform": platform.platform(),
        "device": {"type": device, "name": machines.device(device)},
        "processes": processes.count(),
        "versions": versions,
    }
