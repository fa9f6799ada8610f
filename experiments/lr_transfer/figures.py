"""What this study's page draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup.lab import tables
from umup.lab.absent import required
from umup.lab.figures import COLOURS, LOSS, MARKERS, OTHER, drawn, style, subplots
from umup.lab.records import Results
from umup.lab.tables import NAMES
from umup.text import decimals


def _schemes(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["scheme"]))  # tables sort them


def _errors(value: float, lo: float, hi: float, limit: float) -> list[list[float]]:
    """Error bar lengths; an open end is drawn ``limit`` long."""
    reach = [value - lo, hi - value]
    return [[max(r, 0.0) if math.isfinite(r) else limit] for r in reach]


def _width_axis(ax: Axes, widths: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [str(w) for w in widths])
    ax.minorticks_off()
    ax.set_xlim(min(widths) / 1.25, max(widths) * 1.25)
    ax.set_xlabel("width d_model")


@drawn
def by_lr(results: Results, steps: int | None = None) -> Figure:
    """Loss against learning rate, one panel per scheme and one line per width.

    Bands are 95 % intervals over seeds, stars fitted optima with the interval of log2 η*, crosses
    at the top edge learning rates at which a run diverged. Losses far above the optima are cut off.

    Args:
        results: of one profile.
        steps: the horizon; by default that of the most widths, then the longest.
    """
    losses, optima = tables.loss_by_lr(results.runs), tables.optima(results.runs)
    measured = required(losses[losses["n"] > 0], "no current runs that did not diverge")
    steps = steps or tables.main_horizon(measured)
    losses, optima = losses[losses["steps"] == steps], optima[optima["steps"] == steps]
    schemes, widths = _schemes(losses), sorted(losses["d_model"].unique())
    colours = dict(zip(widths, sns.color_palette("flare", len(widths)), strict=True))
    with style():
        figure, axes = subplots(max(2.4 * len(schemes), 4), 3.6, len(schemes), sharey=True)
        low = np.nanmin([losses["mean"].min(), optima["loss"].min()])
        reach = max(optima["loss"].max() - low, 0.05)
        top = min(low + 2.5 * reach, losses["mean"].max() + 0.05 * reach)
        bottom = low - 0.1 * (top - low)
        for ax, scheme in zip(axes, schemes, strict=True):
            _curves(ax, losses[losses["scheme"] == scheme], colours, top)
            _stars(ax, optima[(optima["scheme"] == scheme) & ~optima["edge"]], colours)
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("log₂ η")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.set_ylim(bottom, top)
        axes[0].set_ylabel(LOSS)
        handles, labels = axes[0].get_legend_handles_labels()
        title = f"width d_model ({steps} steps)"
        place = "outside upper center"
        figure.legend(handles, labels, title=title, ncols=len(widths), loc=place)
    return figure


def _curves(ax: Axes, losses: pd.DataFrame, colours: Mapping[int, Any], top: float) -> None:
    """One line per width with its band; crosses at ``top`` where runs diverged."""
    for width, group in losses.groupby("d_model"):
        ok, colour = group[group["n"] > 0], colours[int(width)]  # type: ignore[arg-type]
        ax.plot(ok["log2_lr"], ok["mean"], "o-", color=colour, ms=3, lw=1.5, label=width)
        ax.fill_between(ok["log2_lr"], ok["lo"], ok["hi"], color=colour, alpha=0.2, lw=0)
        bad = group[group["n_diverged"] > 0]["log2_lr"]
        if len(bad):  # an empty line that is not clipped collapses the layout
            height = np.full(len(bad), top)
            ax.plot(bad, height, "x", color=colour, ms=6, mew=1.5, clip_on=False)


def _stars(ax: Axes, optima: pd.DataFrame, colours: Mapping[int, Any]) -> None:
    """A star at every fitted optimum, with the interval of log2 η*."""
    for row in optima.itertuples():
        ax.errorbar(
            row.log2_lr,
            row.loss,
            xerr=_errors(row.log2_lr, row.log2_lr_lo, row.log2_lr_hi, 1.0),
            fmt="*",
            color=colours[row.d_model],
            mec="black",
            mew=0.6,
            ms=11,
            ecolor="black",
            elinewidth=1.2,
            capsize=2.5,
            zorder=5,
        )


@drawn
def drift(results: Results, steps: int | None = None) -> Figure:
    """Optimal learning rate against width, relative to the smallest width of each scheme.

    Error bars are 95 % intervals of the optimum (arrows: unbounded), dashed lines the fitted
    slopes, the band ±½ octave: a sweep in factors of 2 cannot tell anything inside it from none.
    """
    optima = tables.optima(results.runs)
    optima = required(optima[np.isfinite(optima["log2_lr"].astype(float))], "no optimum")
    steps = steps or tables.main_horizon(optima)
    optima = optima[optima["steps"] == steps]
    drifts = tables.drifts(results.runs)
    drifts = drifts[drifts["steps"] == steps].set_index("scheme")
    widths = sorted(optima["d_model"].unique())
    schemes = _schemes(optima)
    with style():
        figure, (ax,) = subplots(7, 4.2)
        ax.axhspan(-0.5, 0.5, color="#999999", alpha=0.18, lw=0)
        where, aligned = ("axes fraction", "data"), {"ha": "right", "va": "top"}
        text = {"fontsize": 9, "color": OTHER, **aligned}
        ax.annotate("±½ octave", (0.99, 0.47), xycoords=where, **text)
        for i, scheme in enumerate(schemes):
            points = optima[optima["scheme"] == scheme].sort_values("d_model")
            aside = 2 ** (0.05 * (i - (len(schemes) - 1) / 2))  # so that bars do not overlap
            label = NAMES[scheme]
            if scheme in drifts.index:
                label += _slope(ax, points, drifts.loc[scheme])
            _optima(ax, points, aside, label)
        _width_axis(ax, widths)
        ax.set_ylabel(f"log₂ η* − log₂ η* at width {widths[0]} (octaves)")
        ax.set_title(f"optimal learning rate, {steps} steps")
        ax.legend(loc="best")
    return figure


def _slope(ax: Axes, points: pd.DataFrame, row: pd.Series) -> str:
    """A dashed line with the fitted slope through the points' mean; what the legend says of it."""
    x = points["log2_lr"].to_numpy() - points["log2_lr"].iloc[0]
    u = np.log2(points["d_model"].to_numpy())
    line = x.mean() + row["slope"] * (u - u.mean())
    ax.plot(points["d_model"], line, "--", color=COLOURS[points["scheme"].iloc[0]], lw=1.2)
    slope, lo, hi = (decimals(row[f"slope{end}"]) for end in ("", "_lo", "_hi"))
    return f": {slope} [{lo}, {hi}] octaves/doubling"


def _optima(ax: Axes, points: pd.DataFrame, aside: float, label: str) -> None:
    """The optima of one scheme, hollow where its sweep ends at them."""
    base = points["log2_lr"].iloc[0]
    for point in points.itertuples():
        colour = COLOURS[point.scheme]
        ax.errorbar(
            point.d_model * aside,
            point.log2_lr - base,
            yerr=_errors(point.log2_lr, point.log2_lr_lo, point.log2_lr_hi, 0.6),
            fmt=MARKERS[point.scheme],
            color=colour,
            mfc="white" if point.edge else colour,
            ms=6.5,
            capsize=3,
            lw=1.4,
            label=label,
            uplims=point.log2_lr_lo == -math.inf,
            lolims=point.log2_lr_hi == math.inf,
        )
        label = "_"


@drawn
def default_losses(results: Results) -> Figure:
    """Loss at the best learning rate with HPs at default: against width, and against horizon.

    Left, every width at the main horizon; right, the width measured at the most horizons, as the
    difference from u-μP (above 0: u-μP is better). Bars are 95 % intervals, paired by seed right.
    """
    missing = "no current runs that did not diverge"
    best = required(tables.default_losses(results.runs), missing)
    main = tables.main_horizon(best)
    horizons = best.groupby("d_model")["steps"].nunique()
    width = max(horizons.index, key=lambda w: (horizons[w], w))
    differences = tables.default_differences(results.runs)
    with style():
        figure, (left, right) = subplots(7, 3.8, 2)
        at = best[best["steps"] == main]
        for scheme in _schemes(at):
            line = at[at["scheme"] == scheme].sort_values("d_model")
            _line(left, line["d_model"], line, "loss", scheme, NAMES[scheme])
        _width_axis(left, sorted(at["d_model"].unique()))
        left.set_ylabel(LOSS)
        left.set_title(f"{main} steps")
        left.legend(loc="best")
        _gaps(right, differences[differences["d_model"] == width])
        right.set_title(f"width {width}")
    return figure


def _gaps(ax: Axes, differences: pd.DataFrame) -> None:
    """How far the other schemes' losses are above u-μP's, against the horizon."""
    ax.axhline(0, color=COLOURS["umup"], lw=1.5)
    shown = sorted(differences["steps"].unique())
    for i, (scheme, line) in enumerate(differences.groupby("against", sort=False)):
        place = np.array([shown.index(s) for s in line["steps"]]) + 0.1 * i - 0.05
        flipped = pd.DataFrame(
            {
                "gap": -line["difference"],
                "gap_lo": -line["difference_hi"],
                "gap_hi": -line["difference_lo"],
            }
        )
        _line(ax, place, flipped, "gap", str(scheme), f"{NAMES[str(scheme)]} − u-μP")
    ax.set_xticks(range(len(shown)), [str(s) for s in shown])
    ax.set_xlim(-0.4, max(len(shown), 1) - 0.6)
    ax.set_xlabel("steps")
    ax.set_ylabel("loss above u-μP (nats/token)")
    if shown:
        ax.legend(loc="best")


def _line(ax: Axes, x: Any, table: pd.DataFrame, name: str, scheme: str, label: str) -> None:
    """A line with error bars where the interval is finite."""
    value = table[name].to_numpy()
    error = np.abs(table[[f"{name}_lo", f"{name}_hi"]].to_numpy().T - value)
    ax.errorbar(
        x,
        value,
        yerr=np.where(np.isfinite(error), error, np.nan),
        fmt=f"{MARKERS[scheme]}-",
        ms=5.5,
        lw=1.5,
        capsize=3,
        color=COLOURS[scheme],
        label=label,
    )
