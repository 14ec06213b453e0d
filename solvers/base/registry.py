"""A registry: values by name, with aliases, and one error for a name that nobody registered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from solvers.errors import InputError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Values of one `kind` by name; iterating gives the canonical names in the order of registration."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._values: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def add(self, name: str, value: T, aliases: tuple[str, ...] = ()) -> T:
        """Register `value` under `name`; a name can be taken once."""
        for new in (name, *aliases):
            if new in self._values or new in self._aliases:
                raise InputError(f"{self.kind} {new!r} is registered already: choose another name")
        self._values[name] = value
        self._aliases.update({alias: name for alias in aliases})
        return value

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise unknown(self.kind, name, (*self._values, *self._aliases))
        return self._values[self._aliases.get(name, name)]

    def aliases(self, name: str) -> tuple[str, ...]:
        """The other names of `name`."""
        return tuple(alias for alias, target in self._aliases.items() if target == name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._values or name in self._aliases)

    def __len__(self) -> int:
        return len(self._values)
