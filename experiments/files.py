"""Writing files so that whoever reads them sees the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from solvers.errors import InputError

try:
    import fcntl
except ImportError:  # a system without file locks
    fcntl = None  # type: ignore[assignment]


def write_atomically(path: str | Path, content: bytes, durable: bool = True) -> None:
    """Replace the file at `path` by `content`, safe against a crash or a power cut at any moment.

    The content goes to a temporary file in the same folder, is forced to the disk, and takes its name in one step.
    What is not to be `durable` is not forced to the disk: it survives a crash, and a power cut may leave nothing of it.
    What a crash leaves of the temporary file is overwritten by the next call; one process writes a file at a time.

    Raises:
        InputError: it cannot be written: no such folder, no permission, no space.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            # On a full disk it would take what others need.
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold the lock file at `path`, which one process has at a time; it ends with the process, however that ends.

    Raises:
        BlockingIOError: another process has it, and nobody wants to wait.
        OSError: the file cannot be made.
    """
    if fcntl is None:
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield


def _flush_folder(folder: Path) -> None:
    """Force the names in `folder` to the disk, on systems that can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numbered_folder(inside: Path, name: str) -> Path:
    """Make a folder of this name, with a number where there is one already; earlier ones stay.

    Raises:
        InputError: it cannot be made.
    """
    for count in itertools.count(1):
        folder = inside / (f"{name}-{count}" if count > 1 else name)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"folder {folder} cannot be made: {error.strerror or error}") from error
        return folder
    raise AssertionError("unreachable")
