"""Figures as files: the one place where a drawing becomes a PNG or a PDF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.files import write_atomically
from neuralosc.analysis.drawing import STYLE, encoded

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def files(drawing: Callable[[], Figure], *kinds: str) -> dict[str, bytes]:
    """Draw once, in the style of all figures, and return the content of a file of each kind: "png", "pdf"."""
    # Without pyplot, which keeps global state and may look for a display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(STYLE):
        figure = drawing()
        FigureCanvasAgg(figure)
    return {kind: encoded(figure, kind) for kind in kinds}


def save(drawing: Callable[[], Figure], path: Path) -> None:
    """Draw in the style of all figures and write the picture to `path`, a PNG."""
    write_atomically(path, files(drawing, "png")["png"])
