"""One look for all pictures; matplotlib is loaded when the first of them is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from solvers.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which can be told apart with any common colour blindness, and three darker ones.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#5C4B37", "#000000")
MARKERS = "osD^vPX*p"
#: What others are compared with.
GREY, INK = "#B8B8B8", "#333333"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.markersize": 5,
    # In a PDF letters stay letters, which a journal asks for.
    "pdf.fonttype": 42,
}
DOTS = 140


def figure(draw: Callable[[Figure], None], size: tuple[float, float]) -> Figure:
    """A figure of `size` inches that `draw` has drawn on, in the style of all pictures.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "a figure needs matplotlib, which is not installed: pip install matplotlib, or neuralosc[lab]"
        ) from None
    # Without pyplot, which keeps global state and may look for a display.
    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(made)
        draw(made)
    return made


def encoded(picture: Figure, kind: str) -> bytes:
    """A figure as a file of a kind that matplotlib knows: "png", "pdf"."""
    import matplotlib

    # Of the same figure the same file: the time of drawing is left out.
    options: dict[str, Any] = {"dpi": DOTS} if kind == "png" else {"metadata": {"CreationDate": None}}
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        picture.savefig(stream, format=kind, **options)
    return stream.getvalue()


def png(picture: Figure) -> bytes:
    """A figure as a PNG file."""
    return encoded(picture, "png")


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """One colour and marker for each name, in their order."""
    return {
        name: {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(dict.fromkeys(names))
    }


def note(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    """A small remark at a point of the data, moved by `offset` in points."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=8, color="#505050", **options)
