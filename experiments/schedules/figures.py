"""Figures of the study ``schedules``: its tables drawn beside the bounds of its claims.

Every function takes ``records.Results`` and returns a new figure; a lack of records is said in it.
Schedules have a colour and a marker each; error bars are 95 % intervals over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup.lab import claims, figures
from umup.lab.absent import NotMeasured, otherwise
from umup.lab.records import Results, with_spec
from umup.lab.tables import NAMES
from umup.laws import Interval
from umup.text import decimals

from . import results as tables
from .results import SHARE, TITLES, WSD

COLOURS = {
    "cosine": "#0072B2", "linear": "#56B4E9", "two_step": "#CC79A7", "wsd": "#009E73",
    "wsd_sqrt": "#D55E00",
}  # fmt: skip
MARKERS = {"cosine": "o", "linear": "^", "two_step": "v", "wsd": "D", "wsd_sqrt": "s"}
HELD_OUT = "held-out loss (nats/token)"


def _steps_axis(ax: Axes, steps: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(steps), [str(s) for s in steps])
    ax.minorticks_off()
    ax.set_xlim(min(steps) / 1.25, max(steps) * 1.25)
    ax.set_xlabel("budget (steps)")


def _error(interval: Interval) -> list[list[float]]:
    ends = (interval.value - interval.lo, interval.hi - interval.value)
    return [[max(end, 0.0) if math.isfinite(end) else math.nan] for end in ends]


def _bound(ax: Axes, value: float, text: str) -> None:
    ax.axhline(value, ls=":", color="#777777", lw=1.5)
    ax.annotate(text, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                fontsize=9, color=figures.OTHER)  # fmt: skip


@figures.drawn
def ladder(results: Results) -> Figure:
    """Left: one plateau with its decays, and cosine from scratch. Right: the gap between them.

    Left, training loss at the ladder's one η (cosine: at the nearest η to each budget's optimum),
    means over seeds. Right, held-out loss above cosine from scratch at its own best η: of the
    ladder with its one η, and of WSD from scratch at each budget's own best.
    """
    one, rungs = tables.one_rate(tables.losses(results))
    budgets = sorted(rungs)
    with figures.style():
        figure, (left, right) = figures.subplots(7.6, 3.9, 2)
        _curves(left, results, one, budgets)
        right.axhline(0, color=COLOURS["cosine"], lw=1.5)
        for i, (kind, own) in enumerate((("wsd", True), ("wsd", False), ("wsd_sqrt", False))):
            for steps, interval in _gaps(results, kind, own).items():
                first = steps == budgets[0]
                label = f"{TITLES[kind].removeprefix('WSD, ')}, {'own η' if own else 'one η'}"
                right.errorbar(
                    steps * 2 ** (0.12 * (i - 1)), interval.value, yerr=_error(interval),
                    fmt=MARKERS[kind], color=COLOURS[kind], mfc="white" if own else COLOURS[kind],
                    ms=6, capsize=3, lw=1.3, label=label if first else "_",
                )  # fmt: skip
        _bound(right, claims.bound("schedules", "ladder-close-to-cosine"), "claimed at most")
        _steps_axis(right, budgets)
        right.set_ylabel("loss above cosine (nats/token)")
        right.set_title("held out, against cosine")
        if right.get_legend_handles_labels()[1]:
            low, high = right.get_ylim()
            right.set_ylim(low, high + 0.5 * (high - low))  # room for the legend
            right.legend(loc="upper left", fontsize=8)
    return figure


@otherwise(lambda missing: {})
def _gaps(results: Results, kind: str, own: bool) -> Mapping[int, Interval]:
    """Budget → the gap to cosine, of those that are measured."""
    if not own:
        return tables.ladder_gaps(results, "cosine", kind)
    budgets = tables.horizon_optima(results, kind)
    return {steps: tables.gap(results, kind, "cosine", steps) for steps in budgets}


def _curves(ax: Axes, results: Results, log2_lr: float, budgets: Sequence[int]) -> None:
    """Training loss of the plateau at an η, of its decays, and of cosine near its own best."""
    ladders = tables.ladders(results)
    mine = ladders[(ladders["scheme"] == "umup") & (ladders["log2_lr"] == log2_lr)].iloc[0]
    optima = tables.horizon_optima(results, "cosine")
    late: list[float] = []
    for steps in [n for n in budgets if n in optima]:
        runs = with_spec(results.runs[results.runs["steps"] == steps])
        at = runs[(runs["scheme"] == "umup") & (runs["optim.schedule"] == "cosine")]
        near = min(at["lr"].unique(), key=lambda lr: abs(math.log2(lr) - optima[steps].x))
        at = at[(at["lr"] == near) & (at["status"] == "ok")]
        if at.empty:
            continue
        curve = np.mean(np.array(at["curve_loss"].tolist(), float), axis=0)
        x, y = _smooth(np.asarray(at["curve_steps"].iloc[0], float), curve, 24)
        ax.plot(x, y, "-", color=COLOURS["cosine"], lw=1.0, alpha=0.8,
                label="cosine" if steps == budgets[0] else "_")  # fmt: skip
        late.append(float(y[-1]))
    x, y = _smooth(
        np.asarray(mine["curve_steps"], float), np.asarray(mine["curve_loss"], float), 30
    )
    ax.plot(x, y, "-", color="#333333", lw=1.6, label="plateau")
    for rung in mine["rungs"]:
        share = rung["decay_steps"] / rung["steps"]
        if rung["schedule"] != "wsd" or not math.isclose(round(share, 4), SHARE):
            continue
        x, y = _smooth(
            np.asarray(rung["curve_steps"], float), np.asarray(rung["curve_loss"], float), 5
        )
        ax.plot(x, y, "-", color=COLOURS["wsd"], lw=1.8,
                label="its decays" if rung["steps"] == budgets[0] else "_")  # fmt: skip
        late.append(float(y[-1]))
    late = late or [float(y[-1])]  # no decay of the plateau yet
    low, high = min(late), max(late)
    ax.set_ylim(low - 0.1 * (high - low + 0.1), high + 0.5 * (high - low + 0.1))
    _steps_axis(ax, budgets)
    ax.set_xlim(budgets[0] / 2.5, budgets[-1] * 1.2)
    ax.set_xlabel("step")
    ax.set_ylabel("training loss (nats/token)")
    ax.set_title(f"one plateau, log₂ η = {decimals(log2_lr, 1)}")
    ax.legend(loc="best", fontsize=8)


def _smooth(x: np.ndarray, y: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over stretches that are even in log x: noise of single batches hides the schedule."""
    edges = np.geomspace(max(x[0], 1.0), x[-1] * (1 + 1e-9), parts + 1)
    inside = [(x >= a) & (x <= b) for a, b in pairwise(edges)]
    kept = [mask for mask in inside if mask.any()]
    return (np.array([x[mask].mean() for mask in kept]),
            np.array([y[mask].mean() for mask in kept]))  # fmt: skip


@figures.drawn
def by_lr(results: Results, steps: int) -> Figure:
    """Held-out loss against η at a budget, a panel a scheme and a line a schedule.

    Stars are fitted optima with the interval of log₂ η*; losses far above the optima are cut off.
    """
    table = tables.losses(results)
    lines = [
        line for line in tables.lines(table)
        if line.steps == steps and (line.share == 0 or math.isclose(line.share, SHARE))
    ]  # fmt: skip
    if not lines:
        raise NotMeasured(f"no runs of {steps} steps are on record")
    schemes = list(dict.fromkeys(line.scheme for line in lines))
    with figures.style():
        figure, axes = figures.subplots(3.8 * max(len(schemes), 1.4), 4.0, len(schemes))
        for ax, scheme in zip(axes, schemes, strict=True):
            optima = []
            for line in [line for line in lines if line.scheme == scheme]:
                rows = tables.by_lr(tables.at(table, line))
                colour, marker = COLOURS[line.schedule], MARKERS[line.schedule]
                ax.plot(rows["log2_lr"], rows["mean"], f"{marker}-", color=colour, ms=4, lw=1.3,
                        label=TITLES[line.schedule])  # fmt: skip
                o = tables.optimum(table, line)
                optima.append(o.loss)
                if not o.edge:
                    error = _error(Interval(o.x, o.x_lo, o.x_hi))
                    ax.errorbar(o.x, o.loss, xerr=error, fmt="*", color=colour, mec="black",
                                mew=0.6, ms=11, ecolor=colour, elinewidth=1.2, capsize=2.5,
                                zorder=5)  # fmt: skip
            if not np.isfinite(optima).any():
                figures.note(ax, f"every run of {NAMES[scheme]} diverged")
                continue
            low, reach = np.nanmin(optima), max(np.nanmax(optima) - np.nanmin(optima), 0.03)
            ax.set_ylim(low - 0.25 * reach, low + 5 * reach)
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("log₂ η")
            ax.xaxis.set_major_locator(MaxNLocator(6))
        axes[0].set_ylabel(HELD_OUT)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside upper center",
                      title=f"{steps} steps")  # fmt: skip
    return figure


@figures.drawn
def shares(results: Results) -> Figure:
    """Held-out loss of WSD over the share of the steps that decays, less that at the largest.

    Each at its own best η; the dotted line is the bound of the claims on 10 and 20 %.
    """
    table = tables.losses(results)
    lines = [line for line in tables.lines(table) if line[:2] == ("umup", "wsd")]
    counts = pd.Series([line.steps for line in lines], dtype=int).value_counts()
    budgets = sorted(int(n) for n, count in counts.items() if count > 1)
    if not budgets:
        raise NotMeasured("no second decay share is on record")
    looks = dict(zip(budgets, (("#009E73", "D"), ("#0072B2", "o"), ("#D55E00", "s")), strict=False))
    found = sorted({line.share for line in lines if line.steps in looks})
    with figures.style():
        figure, (ax,) = figures.subplots(7, 3.6)
        ax.axhline(0, color="#333333", lw=1)
        for i, (steps, (colour, marker)) in enumerate(looks.items()):
            mine = sorted(line.share for line in lines if line.steps == steps)
            gaps = [
                tables.gap(results, "wsd", "wsd", steps, share=s, against_share=found[-1])
                for s in mine
            ]
            place = [100 * s + 0.35 * (i - (len(looks) - 1) / 2) for s in mine]
            errors = np.array([_error(g) for g in gaps])[..., 0].T
            ax.errorbar(place, [g.value for g in gaps], yerr=errors, fmt=f"{marker}-",
                        color=colour, ms=6, lw=1.4, capsize=3, label=f"{steps} steps")  # fmt: skip
        bound = claims.bound("schedules", "decay-of-10-is-enough")
        _bound(ax, bound, "claimed at most, 10 and 20 %")
        ax.set_xticks([100 * s for s in found], [f"{100 * s:g} %" for s in found])
        ax.set_xlabel("share of the steps that decays")
        ax.set_ylabel(f"loss above {100 * found[-1]:g} % (nats/token)")
        ax.legend(loc="best")
    return figure


@figures.drawn
def horizons(results: Results) -> Figure:
    """Best η against the budget, a marker a schedule, with the fitted slopes.

    The band is what the claims allow: ⅛ octave per doubling about the middle budget.
    """
    optima = {kind: tables.horizon_optima(results, kind) for kind in ("cosine", *WSD)}
    optima = {kind: found for kind, found in optima.items() if len(found) > 1}
    if not optima:
        raise NotMeasured("no schedule was measured at two budgets")
    budgets = sorted(set().union(*optima.values()))
    first = next(iter(optima.values()))
    limit = claims.bound("schedules", "eta-still-over-budgets-cosine")
    with figures.style():
        figure, (ax,) = figures.subplots(7, 4.0)
        u = np.log2(np.array(budgets) / np.median(budgets))
        middle = first[sorted(first)[len(first) // 2]].x
        ax.fill_between(budgets, middle - limit * u, middle + limit * u, color="#999999",
                        alpha=0.2, lw=0, label="claimed: ±⅛ octave per doubling")  # fmt: skip
        for i, (kind, found) in enumerate(optima.items()):
            label = TITLES[kind]
            try:
                slope = tables.horizon_slope(results, kind, factor=2)
            except NotMeasured:
                slope = None
            if slope is not None and all(map(math.isfinite, (slope.lo, slope.hi))):
                number = decimals
                label += f": {number(slope.value)} [{number(slope.lo)}, {number(slope.hi)}]"
                x = np.log2(sorted(found))
                y = np.array([found[n].x for n in sorted(found)])
                ax.plot(sorted(found), y.mean() + slope.value * (x - x.mean()), "--",
                        color=COLOURS[kind], lw=1.2)  # fmt: skip
            for steps, o in sorted(found.items()):
                ax.errorbar(
                    steps * 2 ** (0.07 * (i - 1)), o.x, yerr=_error(Interval(o.x, o.x_lo, o.x_hi)),
                    fmt=MARKERS[kind], color=COLOURS[kind], ms=6, capsize=3, lw=1.3,
                    mfc="white" if o.edge else COLOURS[kind],
                    label=label if steps == min(found) else "_",
                )  # fmt: skip
        _steps_axis(ax, budgets)
        ax.set_ylabel("log₂ η*")
        ax.set_title("best η of u-μP (octaves per doubling of the budget)")
        ax.legend(loc="best")
    return figure
