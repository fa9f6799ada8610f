"""What the figures of studies are made of: marks, axes and legends that look the same everywhere.

A study's figure is a few panels; it says what lies in them, and this module how that is drawn:

- `curve`, `star`, `crosses`, `window`: loss curves over log₂ of a hyperparameter, with a star at
  each fitted optimum and crosses where runs diverged,
- `optima`, `trend`: the drift of an optimum over width, depth or budget, and its fitted slope,
- `points`: a series with error bars over anything, `forest`: a row of intervals per thing,
- `band`, `guide`, `allowed`: what a claim allows. Bounds come from ``claims`` alone,
- `log2_axis`, `decades`, `powers`, `octaves`: logarithmic axes that carry plain numbers,
- `stacked`, `heat`: bars of parts, and a table of numbers on colours.

Every function draws into the axes that it is given and sets nothing else. The data are tables, or
``laws.Interval`` and ``laws.Optimum``. The figure itself comes from `umup.lab.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from umup.lab import figures
from umup.lab.tables import NAMES
from umup.laws import Interval, Optimum
from umup.text import decimals

# The colours of Okabe and Ito, which stay apart for colour-blind readers.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, YELLOW, BLACK = "#56B4E9", "#E69F00", "#F0E442", "#000000"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK)
"""For categories without a look of their own, in this order."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
SHADE, GUIDE, TEXT = "#999999", "#777777", figures.OTHER
"""Greys: of bands, of lines that are no data, and of what is written beside them."""
ABOVE = "outside upper center"

Direction = Literal["x", "y"]
Ends = tuple[ArrayLike, ArrayLike, ArrayLike] | NDArray[np.float64]
"""Values and the lower and upper ends of their intervals, three numbers or three rows."""


class Look(NamedTuple):
    """How a category is drawn everywhere, and its name in legends."""

    colour: str
    marker: str = "o"
    title: str = ""


def scheme(name: str) -> Look:
    """The look of SP, μP, u-μP or CompleteP."""
    return Look(figures.COLOURS[name], figures.MARKERS[name], NAMES[name])


def numbered(i: int, title: str = "") -> Look:
    """The look of the i-th of several categories that have none of their own."""
    return Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], title)


def sequence(values: Sequence[Any], palette: str = "flare") -> dict[Any, Any]:
    """Value → colour, for values with an order: widths, depths, steps."""
    return dict(zip(values, sns.color_palette(palette, len(values)), strict=True))


def aside(i: int, n: int, step: float = 0.1) -> float:
    """Factor that moves the i-th of n series by ``step`` octaves, so that bars do not overlap."""
    return 2 ** (step * (i - (n - 1) / 2))


# Intervals


def ends(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A column and its ``_lo`` and ``_hi``, (3, rows)."""
    return table[[name, f"{name}_lo", f"{name}_hi"]].to_numpy(float).T


def intervals(found: Iterable[Interval]) -> NDArray[np.float64]:
    """Values, lower and upper ends of intervals, (3, n)."""
    return np.array([(i.value, i.lo, i.hi) for i in found], float).reshape(-1, 3).T


def spread(values: pd.Series, by: pd.Series) -> tuple[pd.Index, NDArray[np.float64]]:
    """The distinct ``by``, and the mean and range of the values at each, (3, n)."""
    groups = values.groupby(by)
    mean = groups.mean()
    return mean.index, np.array([mean, groups.min(), groups.max()], float)


def _reach(values: Ends, open_end: float) -> NDArray[np.float64]:
    """Lengths of error bars down and up, (2, n); an open one is ``open_end`` long."""
    value, lo, hi = (np.atleast_1d(np.asarray(v, float)) for v in values)
    reach = np.maximum([value - lo, hi - value], 0.0)  # rounding may leave −1 ulp
    return np.where(np.isinf(reach), open_end, reach)


def points(
    ax: Axes,
    x: ArrayLike,
    values: Ends,
    look: Look,
    *,
    along: Direction = "y",
    open_end: float = math.nan,
    **options: Any,
) -> None:
    """A series with error bars, which carries the look's title in legends.

    Args:
        x: places, one per value.
        values: with the ends of their intervals.
        along: the axis that the values are on; "x" for intervals that lie in rows.
        open_end: length of an error bar whose end is infinite, which then carries an arrow; it is
            not drawn by default.
        options: of ``Axes.errorbar``; ``ls="-"`` joins the points, ``mfc="white"`` hollows them.
    """
    chosen: dict[str, Any] = {"color": look.colour, "marker": look.marker, "label": look.title}
    chosen |= {"ls": "none"} | {"ms": 5.5, "lw": 1.4, "capsize": 2.5} | options
    value = np.atleast_1d(np.asarray(values[0], float))
    place = (x, value) if along == "y" else (value, x)
    reach = _reach(values, open_end)
    ax.errorbar(*place, **{f"{along}err": reach}, **chosen)
    arrows = ("v", "^") if along == "y" else ("<", ">")
    for end, sign, length, arrow in zip(values[1:], (-1, 1), reach, arrows, strict=True):
        beyond = np.isinf(np.atleast_1d(np.asarray(end, float))) & (length > 0)
        if beyond.any():
            tip = (value + sign * length)[beyond]
            at = np.atleast_1d(np.asarray(x, float))[beyond]
            ax.plot(*((at, tip) if along == "y" else (tip, at)), arrow, color=look.colour, ms=5)


# Loss curves over log₂ of a hyperparameter


def curve(
    ax: Axes,
    table: pd.DataFrame,
    look: Look,
    *,
    x: str = "log2_lr",
    top: float,
    band_from: int = 1,
    **options: Any,
) -> None:
    """A loss curve with a band for its intervals, and crosses at the top where runs diverged.

    Args:
        table: a row per value of ``x`` with mean, lo and hi of the loss, the number ``n`` of runs
            that did not diverge and ``n_diverged``.
        top: height of the crosses.
        band_from: seeds from which on the band is drawn; of two it says little.
    """
    ok = table[table["n"] > 0]
    chosen: dict[str, Any] = {"ms": 3.5, "lw": 1.5, "label": look.title} | options
    ax.plot(ok[x], ok["mean"], f"{look.marker}-", color=look.colour, **chosen)
    many = ok[ok["n"] >= band_from]
    ax.fill_between(many[x], many["lo"], many["hi"], color=look.colour, alpha=0.15, lw=0)
    crosses(ax, table[table["n_diverged"] > 0][x], top, look.colour)


def crosses(ax: Axes, x: Sequence[float] | pd.Series | NDArray, height: float, colour: Any) -> None:
    """Crosses on the upper edge, where runs diverged."""
    if len(x):  # an empty line that is not clipped collapses the layout
        ax.plot(x, np.full(len(x), height), "x", color=colour, ms=6, mew=1.5, clip_on=False)


def star(ax: Axes, optimum: Optimum, colour: Any, open_end: float = 1.0) -> None:
    """A star at a fitted optimum with the interval of its place; none if it is not bracketed."""
    if optimum.edge:
        return
    reach = _reach((optimum.x, optimum.x_lo, optimum.x_hi), open_end)
    style: dict[str, Any] = {"mec": "black", "mew": 0.6, "ms": 11, "ecolor": "black"}
    style |= {"elinewidth": 1.2, "capsize": 2.5, "zorder": 5}
    ax.errorbar(optimum.x, optimum.loss, xerr=reach, fmt="*", color=colour, **style)


def window(
    low: float,
    best: Iterable[float],
    times: float = 2.5,
    *,
    most: float = math.inf,
    least: float = 0.05,
) -> tuple[float, float]:
    """Limits of an axis of losses that show the optima; what lies far above them is cut off.

    Args:
        low: the lowest loss. best: losses at the optima.
        times: height of the window over the reach of the optima above ``low``.
        most: the highest loss that is worth showing.
        least: the smallest reach, in nats.
    """
    finite = [loss for loss in best if math.isfinite(loss)]
    reach = max(max(finite, default=low) - low, least)
    top = min(low + times * reach, most + 0.05 * reach)
    return low - 0.1 * (top - low), top


# The drift of an optimum


def optima(
    ax: Axes,
    found: Mapping[Any, Optimum],
    look: Look,
    *,
    what: Literal["x", "loss"] = "x",
    base: float = 0.0,
    aside: float = 1.0,
    open_end: float = math.nan,
) -> None:
    """Optima over width, depth or budget, hollow where a sweep does not bracket its own.

    Args:
        found: width, depth or budget → the optimum there.
        what: its place ("x") or its loss.
        base: subtracted from the values: the place at the smallest, for a drift.
        aside: factor that moves the points, see `aside`.
        open_end: length of an error bar whose end is infinite.
    """
    label = look.title
    for place, o in sorted(found.items()):
        value, lo, hi = (getattr(o, f"{what}{end}") - base for end in ("", "_lo", "_hi"))
        fill = "white" if o.edge else look.colour
        one = look._replace(title=label)
        points(ax, place * aside, (value, lo, hi), one, open_end=open_end, mfc=fill, lw=1.3)
        label = "_"


def trend(
    ax: Axes, found: Mapping[Any, Optimum], slope: Interval, look: Look, base: float = 0.0
) -> Look:
    """A dashed line of a slope in octaves per doubling, through the mean of the optima.

    Returns:
        The look, whose title gives the slope with its interval.
    """
    place = sorted(found)
    x, y = np.log2(place), np.array([found[p].x - base for p in place])
    ax.plot(place, y.mean() + slope.value * (x - x.mean()), "--", color=look.colour, lw=1.2)
    value, lo, hi = map(decimals, (slope.value, slope.lo, slope.hi))
    return look._replace(title=f"{look.title}: {value} [{lo}, {hi}]")


# Intervals in rows


def rows(ax: Axes, names: Sequence[str], **options: Any) -> None:
    """Name the rows, the first on top."""
    ax.set_yticks(range(len(names)), names, **options)
    ax.set_ylim(len(names) - 0.5, -0.5)


def forest(
    ax: Axes,
    names: Mapping[Any, str],
    series: Iterable[tuple[Look, Mapping[Any, Interval]]],
    *,
    apart: float = 0.22,
    open_end: float = math.nan,
    **options: Any,
) -> None:
    """Intervals in rows, a marker per series; an infinite value is an arrow at the right edge.

    Args:
        names: row → its name, the first on top.
        series: looks, and row → interval; rows without one stay empty.
        apart: distance of the series in a row.
        open_end: length of an error bar whose end is infinite.
    """
    series, order = list(series), list(names)
    for i, (look, found) in enumerate(series):
        for row, interval in found.items():
            y = order.index(row) + apart * (i - (len(series) - 1) / 2)
            if math.isfinite(interval.value):
                shown = (interval.value, interval.lo, interval.hi)
                points(ax, y, shown, look, along="x", open_end=open_end, **options)
                look = look._replace(title="_")
            else:
                across = ax.get_yaxis_transform()
                ax.plot(0.98, y, ">", color=look.colour, ms=6, transform=across)
    rows(ax, list(names.values()))


# What is no data


def band(
    ax: Axes, low: float, high: float, text: str = "", along: Direction = "y", line: bool = False
) -> None:
    """Shade what a claim allows; its name stands at the right, ``line`` marks the middle."""
    (ax.axhspan if along == "y" else ax.axvspan)(low, high, color=SHADE, alpha=0.2, lw=0)
    if line:
        at = (low + high) / 2
        (ax.axhline if along == "y" else ax.axvline)(at, color=GUIDE, lw=0.8)
    if text:
        label(ax, high, text)


def allowed(ax: Axes, at: float, low: float, high: float, along: Direction = "y") -> None:
    """Shade what a claim allows of one interval at ``at``, once the panel's limits are set.

    An infinite end reaches the edge.
    """
    edges = ax.get_ylim() if along == "y" else ax.get_xlim()
    ends, place = np.clip((low, high), min(edges), max(edges)), (at, at)
    style: dict[str, Any] = {"lw": 9, "alpha": 0.35, "solid_capstyle": "butt", "zorder": 0.5}
    ax.plot(*((place, ends) if along == "y" else (ends, place)), color=SHADE, **style)


def guide(ax: Axes, at: float, text: str = "", **options: Any) -> None:
    """A dotted level, such as a claim's bound, with its name at the right end above it."""
    style: dict[str, Any] = {"ls": ":", "color": GUIDE, "lw": 1.5} | options
    ax.axhline(at, **style)
    if text:
        label(ax, at, text)


def label(ax: Axes, at: float, text: str, x: float = 0.99, side: str = "bottom") -> None:
    """Write beside the height ``at``, flush with the right or left edge of the panel."""
    align = "right" if x > 0.5 else "left"
    where: Any = ("axes fraction", "data")
    ax.annotate(text, (x, at), xycoords=where, ha=align, va=side, fontsize=9, color=TEXT)


# Axes


def plain(value: float) -> str:
    """A number on a logarithmic axis: 4, 1, ½, ¼, ⅛, 1/16 and, where that is short, 0.3."""
    if value < 1 and math.frexp(value)[0] == 0.5:
        return {0.5: "½", 0.25: "¼", 0.125: "⅛"}.get(value, f"1/{1 / value:g}")
    return f"{value:g}"


def log2_axis(
    ax: Axes,
    values: Iterable[float] | None = None,
    title: str = "",
    axis: Direction = "x",
    *,
    room: float = 1.25,
    most: int = 12,
) -> None:
    """A logarithmic axis with plain numbers, at the powers of 2 or at the measured values.

    Args:
        values: where ticks are to be, thinned to ``most`` from the largest on.
        title: of the axis.
        room: factor that the axis reaches beyond the values; 0 leaves the limits as they are.
    """
    chosen: Axis = ax.xaxis if axis == "x" else ax.yaxis
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log", base=2)
    if values is None:
        chosen.set_major_formatter(lambda value, _: plain(value))
    else:
        values = sorted(set(values))
        shown = values[:: -math.ceil(len(values) / most)][::-1]
        chosen.set_ticks(shown, labels=[plain(v) for v in shown])
        if room:
            limits = (min(values) / room, max(values) * room)
            (ax.set_xlim if axis == "x" else ax.set_ylim)(*limits)
    chosen.set_minor_locator(NullLocator())
    if title:
        chosen.set_label_text(title)


def decades(axis: Axis, steps: Sequence[float] = (1,)) -> None:
    """Plain numbers at the decades of a logarithmic axis, or at ``steps`` of each."""
    axis.set_major_locator(LogLocator(10, steps))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def powers(ax: Axes, axis: Direction = "y") -> None:
    """Ticks such as 2⁻⁶ on an axis that holds log₂ values."""
    chosen: Axis = ax.yaxis if axis == "y" else ax.xaxis
    chosen.set_major_formatter(lambda value, _: f"$2^{{{value:g}}}$")


def octaves(ax: Axes, title: str = "log₂ η", most: int = 6) -> None:
    """Whole numbers along an axis of log₂ of a hyperparameter."""
    ax.set_xlabel(title)
    ax.xaxis.set_major_locator(MaxNLocator(most, integer=True))


# Legends


def key(look: Look, **options: Any) -> Line2D:
    """A legend's entry that is no artist of a panel: the marker alone, unless ``ls`` is given."""
    style: dict[str, Any] = {"ls": "", "marker": look.marker, "color": look.colour}
    style |= {"label": look.title}
    return Line2D([], [], **(style | options))


def legend(
    figure: Figure,
    source: Axes | Iterable[Axes] | Iterable[Line2D],
    title: str | None = None,
    columns: int | None = None,
    **options: Any,
) -> None:
    """A legend above all panels, from panels (each name once) or from `key` entries.

    In one row, unless ``columns`` are given.
    """
    found: dict[str, Any] = {}
    for each in [source] if isinstance(source, Axes) else source:
        if isinstance(each, Axes):
            handles, names = each.get_legend_handles_labels()
            found |= dict(zip(names, handles, strict=True))
        else:
            found[str(each.get_label())] = each
    if found:
        options = {"loc": ABOVE, "ncols": columns or len(found), "title": title} | options
        figure.legend(list(found.values()), list(found), **options)


# Bars and tables


def stacked(
    draw: Callable[..., Any],
    place: ArrayLike,
    parts: Iterable[tuple[ArrayLike, str, str]],
    size: float = 0.8,
) -> None:
    """Bars of parts, one after the other.

    Args:
        draw: ``Axes.bar`` or ``Axes.barh`` of the panel.
        place: of each bar. parts: (lengths, colour, name) of each part.
        size: thickness of the bars.
    """
    start = np.zeros(len(np.atleast_1d(place)))
    side = "bottom" if draw.__name__ == "bar" else "left"
    for lengths, colour, name in parts:
        style = {"color": colour, "ec": "white", "lw": 0.5, "label": name}
        draw(place, lengths, size, **{side: start}, **style)
        start = start + np.asarray(lengths, float)


def heat(
    ax: Axes,
    table: pd.DataFrame,
    limit: float,
    palette: Any,
    digits: int = 1,
    bold: frozenset[tuple[Hashable, Hashable]] = frozenset(),
) -> AxesImage:
    """A table as numbers on colours from −``limit`` to ``limit``; ``bold`` names cells."""
    image = ax.imshow(table, cmap=palette, vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy(float)):
        colour = "white" if abs(value) > 0.7 * limit else "black"
        weight = "bold" if (table.index[i], table.columns[j]) in bold else "normal"
        style: dict[str, Any] = {"fontsize": 9, "color": colour, "fontweight": weight}
        ax.text(j, i, decimals(value, digits), ha="center", va="center", **style)
    ax.grid(False)
    ax.tick_params(length=0)
    return image
