"""Figures, in which a claim can be checked by eye. Nothing here trains or fits.

Every function takes runs and returns a new Figure; equal input gives equal pixels.
Each scheme has a marker and a colour of Okabe and Ito's colour-blind-safe set; widths have a
sequential palette. Sizes are for a width of 7 inches and stay legible on a phone.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from umup.lab.absent import otherwise

COLOURS = {"sp": "#D55E00", "mup": "#0072B2", "umup": "#009E73", "completep": "#56B4E9"}
MARKERS = {"sp": "s", "mup": "o", "umup": "D", "completep": "P"}
OTHER = "#555555"
LOSS = "held-out loss (nats/token)"
TRAINING_LOSS = "training loss (nats/token)"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E6E6E6",
    "figure.dpi": 120,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "svg.hashsalt": "umup",
}


@contextmanager
def style() -> Iterator[None]:
    """Use our style in the block; matplotlib's settings are restored afterwards."""
    with sns.axes_style("whitegrid"), mpl.rc_context(STYLE):
        yield


class _Picture(Figure):
    """A figure that notebooks show as PNG without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=STYLE["savefig.dpi"])
        return buffer.getvalue()


def subplots(width: float, height: float, columns: int = 1, **options) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot, which would keep it in a global list."""
    figure = _Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, **options)
    return figure, list(axes[0])


def empty(message: str) -> Figure:
    """An empty figure that says why there is nothing to draw."""
    figure, (ax,) = subplots(7, 1.2)
    ax.axis("off")
    ax.text(0.5, 0.5, message, ha="center", va="center", color=OTHER)
    return figure


drawn = otherwise(lambda missing: empty(f"not measured: {missing}"))
"""Decorator of a function that draws a figure: if records are missing, the figure says which."""


def note(ax: Axes, message: str) -> None:
    """Say in an empty panel why there is nothing to draw; its labels stay."""
    ax.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    text = textwrap.fill(f"not measured: {message}", 30)
    centred = {"ha": "center", "va": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.5, text, fontsize=9, color=OTHER, **centred)


def panel(ax: Axes, draw: Callable[..., None], *args: Any) -> None:
    """``draw(ax, *args)``; if that raises NotMeasured, `note` says so in the panel."""
    otherwise(lambda missing: note(ax, missing))(draw)(ax, *args)
