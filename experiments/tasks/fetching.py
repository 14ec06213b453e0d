"""Fetching published data files once, checked, into a cache folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solvers.errors import InputError


def fetched(name: str, checksums: Mapping[str, str], mirrors: Sequence[str], needed: str, unpack: bool = False) -> Path:
    """The cache folder with the published files, fetched and checked where they are not there yet.

    Args:
        name: what the data are called. Its letters and digits name the folder, and after `NEURALOSC_` a variable of
            the environment that puts another in its place.
        checksums: the files, each with what `pooch` checks it by.
        mirrors: addresses that the names of the files are put behind, tried in their order.
        needed: what a folder must hold in their place, for the message.
        unpack: the files are archives, each unpacked into a folder of its name with `.untar` behind it.

    Raises:
        InputError: they are not there and cannot be fetched.
    """
    # Imported here: only those who fetch need it.
    import pooch

    short = "".join(letter for letter in name if letter.isalnum())
    folder = Path(pooch.os_cache("neuralosc")) / short.lower()
    failures = []
    for mirror in mirrors:
        store: Any = pooch.create(path=folder, base_url=mirror, registry=checksums, env=f"NEURALOSC_{short.upper()}")
        folder = Path(store.abspath)
        try:
            for file in checksums:
                processor = pooch.Untar() if unpack else None
                store.fetch(file, processor=processor, downloader=pooch.HTTPDownloader(timeout=30))
        except (OSError, ValueError) as error:  # no network or a full disk; a wrong checksum
            failures.append(f"{mirror} ({_reason(error)})")
        else:
            return folder
    raise InputError(
        f"{name} is not in {folder} and could not be fetched from {' or '.join(failures)};"
        f" give --data-dir a folder that holds {needed}"
    )


def _reason(error: Exception) -> str:
    """The kind of an error and the start of what it says, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:80]}{'...' if len(text) > 80 else ''}"
