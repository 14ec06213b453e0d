"""The folder that compiled steps are kept in, for other processes to find."""

from __future__ import annotations

import os
from pathlib import Path

#: Names the folder of compiled steps.
CACHE = "NEURALOSC_CACHE"


def cache() -> Path:
    """The folder of compiled steps."""
    asked = os.environ.get(CACHE)
    if asked:
        return Path(asked)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "neuralosc" / "compiled"
