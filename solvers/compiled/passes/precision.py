"""The precision of a kernel: of its state, and of its products."""

from __future__ import annotations

from solvers.base.values import asked, working

__all__ = ["asked", "working"]
