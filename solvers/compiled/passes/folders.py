"""Folders that nobody else can write into, and temporary ones that do not outlive their process."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without file locks
    fcntl = None  # type: ignore[assignment]

#: Seconds after which a temporary folder without a lock counts as left behind.
LEFT = 24 * 3600.0

_LOCK = ".lock"


def distrusted(path: Path) -> str:
    """Why another user may have put there what lies at a path without symbolic links; empty if only this one, or root.

    It, and all folders up to it, must belong to this user or to root, and others must not be able to write into them.
    Only a folder above may be open to all if it is sticky, as /tmp is: there nobody moves what belongs to another.

    Raises:
        OSError: it is not there.
    """
    if os.name != "posix":
        return ""
    for place in (path, *path.parents):
        status = place.lstat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user"
        sticky = place != path and status.st_mode & stat.S_ISVTX
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return f"others can write into {place}"
    return ""


def make(path: Path) -> None:
    """Make a folder and those above it that are missing, for this user alone."""
    for place in reversed((path, *path.parents)):
        if not place.is_dir():
            # Whatever the mask of the process lets others do.
            place.mkdir(mode=0o700, exist_ok=True)


class Temporary:
    """A folder for this process alone, beside which those that dead processes left are removed.

    A lock that ends with the process, however it ends, says that it is in use: process numbers are counted anew in
    every container, and a folder may be shared by several.

    Args:
        parent: where to make it.
        prefix: of its name.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        sweep(parent, prefix)
        self.process, self._lock = os.getpid(), -1
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            # One who sweeps at this moment may take the new folder for one that was left: then there is no lock in it.
            with contextlib.suppress(FileNotFoundError):
                self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
                if fcntl is not None:
                    # A file system without locks has the age of the folder alone.
                    with contextlib.suppress(OSError):
                        fcntl.flock(self._lock, fcntl.LOCK_EX)
                if (self.path / _LOCK).exists():
                    return
                os.close(self._lock)

    def remove(self) -> None:
        """Remove it; a process forked from the one that made it leaves it alone."""
        if os.getpid() == self.process:
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.close(self._lock)


@contextlib.contextmanager
def temporary(parent: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder for a block."""
    folder = Temporary(parent, prefix)
    try:
        yield folder.path
    finally:
        folder.remove()


def sweep(parent: Path, prefix: str) -> None:
    """Remove the temporary folders that dead processes of this user left."""
    with contextlib.suppress(OSError):
        for entry in [e for e in os.scandir(parent) if e.name.startswith(prefix)]:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False) and _own(entry.stat(follow_symlinks=False)):
                    _remove_if_left(Path(entry.path))


def _own(status: os.stat_result) -> bool:
    return os.name != "posix" or status.st_uid == os.geteuid()


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        lock = -1
    try:
        if _free(lock, folder):
            # Still locked by this process, so that one that is just beginning with it sees that it is gone.
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if lock >= 0:
            os.close(lock)


def _free(lock: int, folder: Path) -> bool:
    """Whether nobody holds a lock, which is then held by this process."""
    if fcntl is not None and lock >= 0:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        else:
            return True
    return time.time() - folder.stat().st_mtime > LEFT
