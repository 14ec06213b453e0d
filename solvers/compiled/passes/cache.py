"""What compiled steps are kept in, for other processes to find: nothing of another user, nothing damaged, no flood.

What is found here is run, or believed. So a folder that others can write into is not used, a file is used if its
content has the checksum that is part of its name, and where the folder does not serve, a private one does as long as
the process lives.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from solvers.compiled.passes import folders
from solvers.compiled.passes.folders import Temporary
from solvers.compiled.step.refused import Unavailable

#: Names the folder of compiled steps.
CACHE = "NEURALOSC_CACHE"

#: Bytes that are kept in it, at most, the most recently used ones; and days since its last use after which a file goes.
BYTES = 1 << 30
DAYS = 90

#: Names of temporary folders, in which something is being made, and of private ones.
BUILDING, PRIVATE = "building-", "neuralosc-private-"

#: A file that is kept: key, checksum (earlier versions had none) and kind.
_KEPT = re.compile(r"(?:[a-z]+_)?[0-9a-f]{32}(?:-[0-9a-f]{32})?\.(?:so|cpp|py|json)")

_warned: set[str] = set()
_private: Temporary | None = None


def find(key: str, kind: str) -> Path | None:
    """The file that was kept under a key, 32 hexadecimal digits, if there is one that is whole and not another's.

    Args:
        key: says what is in it.
        kind: the end of its name, such as ".so".
    """
    for place in _places():
        with contextlib.suppress(OSError):
            for path in sorted(place.glob(f"{key}-*{kind}")):
                if _sound(path):
                    return path
    return None


def keep(key: str, kind: str, content: bytes) -> Path:
    """Put a file where other processes find it, all of it or nothing; where none is kept, into a private folder.

    Raises:
        Unavailable: it can be written nowhere.
    """
    name = f"{key}-{_checksum(content)}{kind}"
    with workplace() as folder:
        place, made = folder.parent, folder / name
        try:
            with made.open("xb") as file:
                file.write(content)
                file.flush()
                # Before it has its name: after a power cut there is no file of that name without its content.
                os.fsync(file.fileno())
            made.chmod(0o644)
            os.replace(made, place / name)
        except OSError as error:
            raise Unavailable(f"nothing can be written into {place}: {error.strerror or error}") from None
    _prune(place, name)
    return place / name


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder, for a block, in the one where things are kept.

    Raises:
        Unavailable: there is none.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = _workplace(stack)
        except OSError as error:
            raise Unavailable(f"nothing can be written, not even temporarily: {error.strerror or error}") from None
        yield folder


def _workplace(stack: contextlib.ExitStack) -> Path:
    place, why = _folder()
    if place is not None:
        try:
            return stack.enter_context(folders.temporary(place, BUILDING))
        except OSError as error:
            why = f"nothing can be written into {place}: {error.strerror or error}"
    _warn(f"compiled steps are not kept for other processes: {why}; set {CACHE} to a folder that is yours alone")
    return stack.enter_context(folders.temporary(_private_folder(), BUILDING))


def _folder() -> tuple[Path | None, str]:
    """The folder of compiled steps, made where it is missing; None where it does not serve, and why."""
    asked = os.environ.get(CACHE)
    try:
        if not asked:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            asked = str(Path(base) / "neuralosc" / "compiled")
        # What a link leads to is looked at, and used.
        path = Path(os.path.realpath(asked))
        folders.make(path)
        why = folders.distrusted(path)
    except OSError as error:
        return None, f"{asked} cannot be used: {error.strerror or error}"
    except RuntimeError:  # of Path.home
        return None, "there is no home folder"
    return (None, why) if why else (path, "")


def _places() -> Iterator[Path]:
    """The folders that things may be found in."""
    place, _ = _folder()
    if place is not None:
        _tidied(place)
        yield place
    if _private is not None and _private.process == os.getpid():
        yield _private.path


@functools.lru_cache(maxsize=8)
def _tidied(place: Path) -> None:
    """Once in a process, remove what was being made when a process died; whoever makes something does so, too."""
    folders.sweep(place, BUILDING)


def _private_folder() -> Path:
    """A folder of this process alone, removed at its end.

    Raises:
        OSError: it cannot be made where nobody else can write.
    """
    global _private
    if _private is None or _private.process != os.getpid() or not _private.path.is_dir():
        made = Temporary(Path(os.path.realpath(tempfile.gettempdir())), PRIVATE)
        atexit.register(made.remove)
        if why := folders.distrusted(made.path):
            raise OSError(f"{why}; set TMPDIR to a folder that is yours alone")
        _private = made
    return _private.path


def _sound(path: Path) -> bool:
    """Whether a file is whole and not another's; a damaged one is removed, so that it is made anew."""
    with contextlib.suppress(OSError):
        if why := folders.distrusted(path):
            _warn(f"a compiled step is made anew: {why}")
            return False
        if path.is_file() and _checksum(path.read_bytes()) == path.stem.rpartition("-")[2]:
            if time.time() - path.stat().st_mtime > 24 * 3600:
                # What is old is what was not used for long, to the day.
                with contextlib.suppress(OSError):
                    os.utime(path)
            return True
        path.unlink()
    return False


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _prune(place: Path, spared: str) -> None:
    """Remove what was not used for long and, from the least recently used on, what is too much."""
    with contextlib.suppress(OSError):
        found = []
        for entry in os.scandir(place):
            if _KEPT.fullmatch(entry.name) and entry.name != spared:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, entry.path))
        total, oldest = (place / spared).stat().st_size, time.time() - DAYS * 24 * 3600
        for used, size, path in sorted(found, reverse=True):
            total += size
            if used < oldest or total > BYTES:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _warn(message: str) -> None:
    """Say something once in a process."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
