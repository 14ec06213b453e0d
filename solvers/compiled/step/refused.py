"""The one exception of the fast paths: they do not take this."""

from __future__ import annotations


class Refused(Exception):
    """A step that the fast path does not take, with the reason in one line."""


class Unavailable(Refused):
    """What the machine lacks, not what is wrong with the step: another fast path may take it."""
