"""Reading IDX files, the format of MNIST: plain or gzipped, checked from the first byte to the last."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from solvers.errors import InputError

_UNSIGNED_BYTE = 0x08

#: Bytes of an array, more than any set of this format has: a gzipped file may unpack to a thousand times its size.
LARGEST = 1 << 30


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file.

    Args:
        path: the file; whether it is gzipped is seen from its first bytes, not from its name.
        dimensions: how many the array must have: 3 for images (number, row, column), 1 for labels.

    Raises:
        InputError: the file cannot be read, is no IDX file of that kind, or is cut off or too long.
    """
    header = 4 + 4 * dimensions
    content = _content(path)
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        raise InputError(
            f"{path} is not an IDX file of {dimensions}-dimensional bytes: it starts with"
            f" {content[:4].hex() or 'nothing'} and not with {magic.hex()}; fetch the file again"
        )
    if len(content) < header:
        raise InputError(
            f"{path} is cut off inside its header ({len(content)} of {header} bytes); fetch the file again"
        )
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        fault = "is cut off" if len(content) < expected else "is too long"
        size = f"{len(content)} bytes" if len(content) <= LARGEST else f"more than {LARGEST} bytes"
        raise InputError(
            f"{path} {fault}: {size} where its header announces {expected} (shape {shape}); fetch the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked when gzipped; of one that is too large only so many that this is seen."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as file:
                return file.read(LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); fetch the file again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
