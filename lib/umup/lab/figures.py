"""Figures, in which a claim can be checked by eye. Nothing here trains or fits.

Every function takes runs (or verdicts) and returns a new Figure; equal input gives equal pixels.
Each scheme has a marker and a colour of Okabe and Ito's colour-blind-safe set; widths have a
sequential palette. Sizes are for a width of 7 inches and stay legible on a phone.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup.lab import claims
from umup.lab.absent import otherwise
from umup.lab.claims import Verdict

COLOURS = {"sp": "#D55E00", "mup": "#0072B2", "umup": "#009E73", "completep": "#56B4E9"}
MARKERS = {"sp": "s", "mup": "o", "umup": "D", "completep": "P"}
VERDICT_COLOURS = {
    "holds": "#009E73",
    "exact": "#56B4E9",
    "fails": "#D55E00",
    "inconclusive": "#B58900",
    "not measured": "#777777",
}
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


def claims_board(verdicts: Sequence[Verdict]) -> Figure:
    """Every claim's measurement and 95 % interval (line) against its bound (grey), one per row.

    Each row has its own scale, since units differ. The shaded part is within the bound; it is open
    on a side without a bound. What has no interval is hollow.
    """
    if not verdicts:
        return empty("no claims")
    with style():
        # Rows are placed by hand: the layout engine takes seconds for this many axes.
        row, height = 0.92, 0.92 * len(verdicts)
        figure = Figure(figsize=(7, height))
        FigureCanvasAgg(figure)
        for i, v in enumerate(verdicts):
            bottom = height - row * (i + 1) + 0.25
            _claim_text(figure, (bottom + 0.04) / height, 0.2 / height, v)
            ax = figure.add_axes((0.47, bottom / height, 0.5, 0.46 / height))
            _claim_bar(ax, v)
    return figure


def _claim_text(figure: Figure, bottom: float, line_height: float, v: Verdict) -> None:
    value, lo, hi = (claims.format_value(x, v.unit) for x in (v.value, v.lo, v.hi))
    profile = f" ({v.profile})" if v.profile else ""
    seen = textwrap.shorten(claims.evidence(v), 46, placeholder=" …")
    lines = [
        (v.id, {"fontsize": 9.5, "fontweight": "bold"}),
        (v.verdict + profile, {"fontsize": 9, "color": VERDICT_COLOURS[v.verdict]}),
        ("" if math.isnan(v.value) else f"{value} [{lo}, {hi}] {v.unit}", {"fontsize": 9}),
        (seen.removeprefix("–"), {"fontsize": 8.75, "color": OTHER}),
    ]
    for i, (line, options) in enumerate(reversed(lines)):
        figure.text(0.01, bottom + (i - 0.5) * line_height, line, **options)


def _claim_bar(ax: Axes, v: Verdict) -> None:
    ends = [x for x in (v.value, v.lo, v.hi, v.bound_min, v.bound_max) if math.isfinite(x)]
    middle, reach = (max(ends) + min(ends)) / 2, max(np.ptp(ends), abs(ends[-1]), 1e-3)
    left, right = middle - 0.9 * reach, middle + 0.9 * reach
    ax.axvspan(max(v.bound_min, left), min(v.bound_max, right), color="#999999", alpha=0.25, lw=0)
    for bound in (v.bound_min, v.bound_max):
        if math.isfinite(bound):
            ax.axvline(bound, color="#666666", lw=1)
    colour = VERDICT_COLOURS[v.verdict]
    if math.isfinite(v.value):
        ax.plot([max(v.lo, left), min(v.hi, right)], [0, 0], "-", color=colour, lw=3)
        hollow = {"mfc": "white", "mec": colour, "mew": 1.6}
        filled = {"mec": "white", "mew": 0.8}
        look = hollow if v.lo == v.hi else filled
        ax.plot(v.value, 0, "o", color=colour, ms=7, zorder=4, **look)
        for end, edge, arrow in ((v.lo, left, "<"), (v.hi, right, ">")):
            if not left <= end <= right:
                ax.plot(edge, 0, arrow, color=colour, ms=7, clip_on=False)
    else:
        said = "not measured" if math.isnan(v.value) else "diverged"
        ax.text(
            0.5,
            0.5,
            said,
            ha="center",
            va="center",
            fontsize=9,
            color=colour,
            transform=ax.transAxes,
        )
    ax.set_xlim(left, right)
    ax.set_ylim(-1, 1)
    ax.set_yticks([])
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(axis="x", labelsize=9, pad=1)
