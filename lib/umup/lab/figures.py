"""Figures: tables drawn so that a claim can be checked by eye. Nothing here trains or fits.

Every function takes runs (or verdicts) and returns a new Figure, the same pixels for the same
input. Schemes have the colours of Okabe and Ito's colour-blind-safe set and a marker each; widths
have a sequential palette. Sizes suit 7 inches and stay legible on a phone.
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
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup.lab import claims, tables
from umup.lab.absent import otherwise, required
from umup.lab.claims import Verdict
from umup.lab.tables import NAMES
from umup.text import decimals

COLOURS = {"sp": "#D55E00", "mup": "#0072B2", "umup": "#009E73"}
MARKERS = {"sp": "s", "mup": "o", "umup": "D"}
VERDICT_COLOURS = {
    "holds": "#009E73",
    "fails": "#D55E00",
    "inconclusive": "#B58900",
    "not measured": "#777777",
}
OTHER = "#555555"
LOSS = "training loss (nats/token)"
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
    """Our style for the while; matplotlib's settings are as they were afterwards."""
    with sns.axes_style("whitegrid"), mpl.rc_context(STYLE):
        yield


class _Picture(Figure):
    """A figure that notebooks show as PNG by itself, without pyplot's global state."""

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
    """A figure that says why there is nothing to draw."""
    figure, (ax,) = subplots(7, 1.2)
    ax.axis("off")
    ax.text(0.5, 0.5, message, ha="center", va="center", color=OTHER)
    return figure


drawn = otherwise(lambda missing: empty(f"not measured: {missing}"))
"""Decorator of a function that draws a figure: it says what is not measured."""


def note(ax: Axes, message: str) -> None:
    """Say in an empty panel why there is nothing to draw; its labels stay."""
    ax.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    text = textwrap.fill(f"not measured: {message}", 30)
    centred = {"ha": "center", "va": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.5, text, fontsize=9, color=OTHER, **centred)


def panel(ax: Axes, draw: Callable[..., None], *args: Any) -> None:
    """``draw(ax, *args)``; where that raises NotMeasured, `note` says so in the panel."""
    otherwise(lambda missing: note(ax, missing))(draw)(ax, *args)


def _schemes(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["scheme"]))  # tables sort them


def _name(scheme: str) -> str:
    return NAMES.get(scheme, scheme)


def _errors(value: float, lo: float, hi: float, limit: float) -> list[list[float]]:
    """Error bar lengths; an open end is drawn `limit` long."""
    reach = [value - lo, hi - value]
    return [[max(r, 0.0) if math.isfinite(r) else limit] for r in reach]


def _width_axis(ax: Axes, widths: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [str(w) for w in widths])
    ax.minorticks_off()
    ax.set_xlim(min(widths) / 1.25, max(widths) * 1.25)
    ax.set_xlabel("width d_model")


@drawn
def lr_transfer(runs: pd.DataFrame, steps: int | None = None) -> Figure:
    """Loss against learning rate, a panel a scheme and a line a width.

    Bands are 95 % intervals over seeds, stars fitted optima with the interval of log2 η*, crosses
    at the top edge learning rates at which a run diverged. Losses far above the optima are cut off.

    Args:
        runs: of one study and profile.
        steps: the horizon; by default that of the most widths, then the longest.
    """
    losses, optima = tables.loss_by_lr(runs), tables.optima(runs)
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
            for width, group in losses[losses["scheme"] == scheme].groupby("d_model"):
                ok, colour = group[group["n"] > 0], colours[width]
                ax.plot(ok["log2_lr"], ok["mean"], "o-", color=colour, ms=3, lw=1.5, label=width)
                ax.fill_between(ok["log2_lr"], ok["lo"], ok["hi"], color=colour, alpha=0.2, lw=0)
                bad = group[group["n_diverged"] > 0]["log2_lr"]
                if len(bad):  # an empty line that is not clipped collapses the layout
                    height = np.full(len(bad), top)
                    ax.plot(bad, height, "x", color=colour, ms=6, mew=1.5, clip_on=False)
            for row in optima[optima["scheme"] == scheme].itertuples():
                if row.edge:
                    continue
                error = _errors(row.log2_lr, row.log2_lr_lo, row.log2_lr_hi, 1.0)
                ax.errorbar(
                    row.log2_lr, row.loss, xerr=error, fmt="*", color=colours[row.d_model],
                    mec="black", mew=0.6, ms=11, ecolor="black", elinewidth=1.2, capsize=2.5,
                    zorder=5,
                )  # fmt: skip
            ax.set_title(_name(scheme), fontweight="bold")
            ax.set_xlabel("log₂ η")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.set_ylim(bottom, top)
        axes[0].set_ylabel(LOSS)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, title=f"width d_model ({steps} steps)", ncols=len(widths),
            loc="outside upper center",
        )  # fmt: skip
    return figure


@drawn
def drift(runs: pd.DataFrame, steps: int | None = None) -> Figure:
    """Optimal learning rate against width, relative to the smallest width of each scheme.

    Error bars are 95 % intervals of the optimum (arrows: unbounded), dashed lines the fitted
    slopes, the band ±½ octave: a sweep in factors of 2 cannot tell anything inside it from none.
    """
    optima = tables.optima(runs)
    optima = required(optima[np.isfinite(optima["log2_lr"].astype(float))], "no optimum")
    steps = steps or tables.main_horizon(optima)
    optima = optima[optima["steps"] == steps]
    drifts = tables.drifts(runs)
    drifts = drifts[drifts["steps"] == steps].set_index("scheme")
    widths = sorted(optima["d_model"].unique())
    schemes = _schemes(optima)
    with style():
        figure, (ax,) = subplots(7, 4.2)
        ax.axhspan(-0.5, 0.5, color="#999999", alpha=0.18, lw=0)
        ax.annotate("±½ octave", (0.99, 0.47), xycoords=("axes fraction", "data"),
                    ha="right", va="top", fontsize=9, color=OTHER)  # fmt: skip
        for i, scheme in enumerate(schemes):
            points = optima[optima["scheme"] == scheme].sort_values("d_model")
            colour, marker = COLOURS.get(scheme, OTHER), MARKERS.get(scheme, "v")
            base = points["log2_lr"].iloc[0]
            aside = 2 ** (0.05 * (i - (len(schemes) - 1) / 2))  # so that bars do not overlap
            label = _name(scheme)
            if scheme in drifts.index:
                row = drifts.loc[scheme]
                number = decimals
                slope, lo, hi = (number(row[f"slope{end}"]) for end in ("", "_lo", "_hi"))
                label += f": {slope} [{lo}, {hi}] octaves/doubling"
                u, x = np.log2(points["d_model"].to_numpy()), points["log2_lr"].to_numpy() - base
                # The line through the points' mean with the fitted slope.
                line = x.mean() + row["slope"] * (u - u.mean())
                ax.plot(points["d_model"], line, "--", color=colour, lw=1.2)
            for point in points.itertuples():
                error = _errors(point.log2_lr, point.log2_lr_lo, point.log2_lr_hi, 0.6)
                ax.errorbar(
                    point.d_model * aside, point.log2_lr - base, yerr=error, fmt=marker,
                    color=colour, mfc="white" if point.edge else colour, ms=6.5, capsize=3, lw=1.4,
                    label=label, uplims=point.log2_lr_lo == -math.inf,
                    lolims=point.log2_lr_hi == math.inf,
                )  # fmt: skip
                label = "_"
        _width_axis(ax, widths)
        ax.set_ylabel(f"log₂ η* − log₂ η* at width {widths[0]} (octaves)")
        ax.set_title(f"optimal learning rate, {steps} steps")
        ax.legend(loc="best")
    return figure


@drawn
def default_losses(runs: pd.DataFrame) -> Figure:
    """Loss at the best learning rate with HPs at default: against width, and against horizon.

    Left, every width at the main horizon; right, the width measured at the most horizons, as the
    difference from u-μP (above 0: u-μP is better). Bars are 95 % intervals, paired by seed right.
    """
    best = required(tables.default_losses(runs), "no current runs that did not diverge")
    main = tables.main_horizon(best)
    horizons = best.groupby("d_model")["steps"].nunique()
    width = max(horizons.index, key=lambda w: (horizons[w], w))
    differences = tables.default_differences(runs)
    differences = differences[differences["d_model"] == width]
    with style():
        figure, (left, right) = subplots(7, 3.8, 2)
        at = best[best["steps"] == main]
        for scheme in _schemes(at):
            line = at[at["scheme"] == scheme].sort_values("d_model")
            _line(left, line["d_model"], line, "loss", scheme, _name(scheme))
        _width_axis(left, sorted(at["d_model"].unique()))
        left.set_ylabel(LOSS)
        left.set_title(f"{main} steps")
        left.legend(loc="best")
        right.axhline(0, color=COLOURS["umup"], lw=1.5)
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
            _line(right, place, flipped, "gap", str(scheme), f"{_name(str(scheme))} − u-μP")
        right.set_xticks(range(len(shown)), [str(s) for s in shown])
        right.set_xlim(-0.4, max(len(shown), 1) - 0.6)
        right.set_xlabel("steps")
        right.set_ylabel("loss above u-μP (nats/token)")
        right.set_title(f"width {width}")
        if shown:
            right.legend(loc="best")
    return figure


def _line(ax: Axes, x, table: pd.DataFrame, name: str, scheme: str, label: str) -> None:
    """A line with error bars where the interval is finite."""
    value = table[name].to_numpy()
    error = np.abs(table[[f"{name}_lo", f"{name}_hi"]].to_numpy().T - value)
    error = np.where(np.isfinite(error), error, np.nan)
    ax.errorbar(
        x, value, yerr=error, fmt=f"{MARKERS.get(scheme, 'v')}-", ms=5.5, lw=1.5, capsize=3,
        color=COLOURS.get(scheme, OTHER), label=label,
    )  # fmt: skip


def claims_board(verdicts: Sequence[Verdict]) -> Figure:
    """Every claim's measurement and 95 % interval (line) against its bound (grey), a row each.

    Rows have their own scale, since units differ: the bound is the shaded part, open towards the
    side where there is none.
    """
    if not verdicts:
        return empty("no claims")
    with style():
        # Rows are placed by hand: the layout engine takes seconds over as many axes.
        row, height = 0.78, 0.78 * len(verdicts)
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
    lines = [
        (v.id, {"fontsize": 9.5, "fontweight": "bold"}),
        (v.verdict + profile, {"fontsize": 9, "color": VERDICT_COLOURS[v.verdict]}),
        ("" if math.isnan(v.value) else f"{value} [{lo}, {hi}] {v.unit}", {"fontsize": 9}),
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
        ax.plot(v.value, 0, "o", color=colour, ms=7, mec="white", mew=0.8, zorder=4)
        for end, edge, arrow in ((v.lo, left, "<"), (v.hi, right, ">")):
            if not left <= end <= right:
                ax.plot(edge, 0, arrow, color=colour, ms=7, clip_on=False)
    else:
        said = "not measured" if math.isnan(v.value) else "diverged"
        ax.text(0.5, 0.5, said, ha="center", va="center", fontsize=9, color=colour,
                transform=ax.transAxes)  # fmt: skip
    ax.set_xlim(left, right)
    ax.set_ylim(-1, 1)
    ax.set_yticks([])
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(axis="x", labelsize=9, pad=1)
