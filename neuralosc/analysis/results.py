"""What an analysis returns: rows of numbers, a picture of them, and a sentence that says what they rest on."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from neuralosc.analysis import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Digits that a table shows of a number.
DIGITS = 4

#: A row of a table: a cell for each column.
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What can be said, and why.

    Attributes:
        sentence: what is said, or "No claim: " and the reason.
        numbers: what it rests on, by name.
        rule: the rule that gave it, in words: another would decide the same from the same numbers.
        answer: what is claimed, in a word for programs, such as "equation" or "step"; empty where nothing is.
    """

    sentence: str
    numbers: Mapping[str, float]
    rule: str
    answer: str

    @property
    def claim(self) -> bool:
        """Whether anything is claimed."""
        return bool(self.answer)

    def __str__(self) -> str:
        return self.sentence


def no_claim(why: str, rule: str, numbers: Mapping[str, float] | None = None) -> Verdict:
    """The verdict that nothing can be said, with the reason."""
    return Verdict(f"No claim: {why}.", numbers or {}, rule, "")


@dataclass(frozen=True)
class Result(ABC):
    """What an analysis found.

    Attributes:
        verdict: a sentence, the numbers it rests on and the rule that gave it.
        of: of what its numbers are: "flow", the equation solved exactly, "map", the steps that are taken, or both.
    """

    verdict: Verdict = field(kw_only=True)
    of: str = field(kw_only=True, default="")

    #: What a page calls it.
    heading: ClassVar[str]
    #: Width and height of the picture in inches, where they do not depend on what was found.
    inches: ClassVar[tuple[float, float]] = (7.5, 4.2)

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """The numbers, a row for each thing that was looked at; all rows have the same columns."""

    def notes(self) -> Sequence[str]:
        """What there is to say besides the verdict, a sentence each."""
        return ()

    def table(self) -> str:
        """The rows as text in columns, and the verdict and notes below."""
        return "\n".join([columns(self.rows()), "", str(self.verdict), *self.notes()])

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON knows; of numbers that it does not know the name."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.repr}
        return {"analysis": type(self).__name__, **{name: plain(value) for name, value in parts.items()}}

    def figure(self) -> Figure:
        """A picture (matplotlib).

        Raises:
            InputError: matplotlib is not installed.
        """
        return drawing.figure(self.draw, self.size)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return self.inches

    def png(self) -> bytes:
        """The picture as a PNG file."""
        return drawing.png(self.figure())

    @abstractmethod
    def draw(self, figure: Figure) -> None:
        """Draw on an empty figure."""


def columns(rows: Sequence[Row]) -> str:
    """Rows as text: names of the columns, and a line for each row."""
    if not rows:
        return "(no rows)"
    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    numeric = [all(_is_number(row[name]) for row in rows) for name in rows[0]]
    texts = []
    for line in lines:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def plain(value: Any) -> Any:
    """A value as JSON has it: of tensors and arrays lists, of complex numbers pairs, of what is not finite the name."""
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, complex):
        return f"{value.real:.{DIGITS}g}{value.imag:+.{DIGITS}g}i"
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
