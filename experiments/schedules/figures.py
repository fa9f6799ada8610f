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

from umup.lab import claims, figures, plots
from umup.lab.absent import NotMeasured, otherwise
from umup.lab.plots import Look
from umup.lab.records import Results, with_spec
from umup.lab.tables import NAMES
from umup.laws import Interval, Optimum
from umup.text import decimals

from . import results as tables
from .results import SHARE, TITLES, WSD

LOOKS = {
    "cosine": Look(plots.BLUE, "o", TITLES["cosine"]),
    "linear": Look(plots.SKY, "^", TITLES["linear"]),
    "two_step": Look(plots.PURPLE, "v", TITLES["two_step"]),
    "wsd": Look(plots.GREEN, "D", TITLES["wsd"]),
    "wsd_sqrt": Look(plots.VERMILION, "s", TITLES["wsd_sqrt"]),
}
PLATEAU = "#333333"
BUDGET = "budget (steps)"


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
        figure, (left, right) = figures.subplots(7.2, 3.9, 2)
        _curves(left, results, one, budgets)
        right.axhline(0, color=LOOKS["cosine"].colour, lw=1.5)
        for i, (kind, own) in enumerate((("wsd", True), ("wsd", False), ("wsd_sqrt", False))):
            title = f"{TITLES[kind].removeprefix('WSD, ')}, {'own η' if own else 'one η'}"
            look = LOOKS[kind]._replace(title=title)
            fill = "white" if own else look.colour
            for steps, gap in _gaps(results, kind, own).items():
                place, ends = steps * plots.aside(i, 3, 0.12), (gap.value, gap.lo, gap.hi)
                plots.points(right, place, ends, look, mfc=fill)
                look = look._replace(title="_")
        claimed = claims.bound("schedules", "ladder-close-to-cosine")
        plots.guide(right, claimed, "claimed at most")
        plots.log2_axis(right, budgets, BUDGET)
        right.set_ylabel("loss above cosine (nats/token)")
        right.set_title("held out, against cosine")
        if right.get_legend_handles_labels()[1]:
            low, high = right.get_ylim()
            right.set_ylim(low, high + 0.5 * (high - low))  # room for the legend
            right.legend(loc="upper left")
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
        found = _near(results, steps, optima[steps])
        if found is None:
            continue
        x, y = _smooth(*found, 24)
        label = "cosine" if steps == budgets[0] else "_"
        ax.plot(x, y, "-", color=LOOKS["cosine"].colour, lw=1.0, alpha=0.8, label=label)
        late.append(float(y[-1]))
    x, y = _smooth(mine["curve_steps"], mine["curve_loss"], 30)
    ax.plot(x, y, "-", color=PLATEAU, lw=1.6, label="plateau")
    for rung in mine["rungs"]:
        share = rung["decay_steps"] / rung["steps"]
        if rung["schedule"] != "wsd" or not math.isclose(round(share, 4), SHARE):
            continue
        decay, loss = _smooth(rung["curve_steps"], rung["curve_loss"], 5)
        label = "its decays" if rung["steps"] == budgets[0] else "_"
        ax.plot(decay, loss, "-", color=LOOKS["wsd"].colour, lw=1.8, label=label)
        late.append(float(loss[-1]))
    late = late or [float(y[-1])]  # no decay of the plateau yet
    low, high = min(late), max(late)
    ax.set_ylim(low - 0.1 * (high - low + 0.1), high + 0.5 * (high - low + 0.1))
    plots.log2_axis(ax, budgets, "step")
    ax.set_xlim(budgets[0] / 2.5, budgets[-1] * 1.2)
    ax.set_ylabel(figures.TRAINING_LOSS)
    ax.set_title(f"one plateau, log₂ η = {decimals(log2_lr, 1)}")
    ax.legend(loc="best")


def _near(results: Results, steps: int, optimum: Optimum) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and mean training loss of cosine at the measured η next to its optimum."""
    runs = with_spec(results.runs[results.runs["steps"] == steps])
    at = runs[(runs["scheme"] == "umup") & (runs["optim.schedule"] == "cosine")]
    near = min(at["lr"].unique(), key=lambda lr: abs(math.log2(lr) - optimum.x))
    at = at[(at["lr"] == near) & (at["status"] == "ok")]
    if at.empty:
        return None
    return at["curve_steps"].iloc[0], np.mean(np.array(at["curve_loss"].tolist(), float), axis=0)


def _smooth(
    steps: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means over stretches that are even in log x: noise of single batches hides the schedule."""
    x, y = np.asarray(steps, float), np.asarray(losses, float)
    edges = np.geomspace(max(x[0], 1.0), x[-1] * (1 + 1e-9), parts + 1)
    inside = [(x >= a) & (x <= b) for a, b in pairwise(edges)]
    means = [(x[mask].mean(), y[mask].mean()) for mask in inside if mask.any()]
    return np.array([m[0] for m in means]), np.array([m[1] for m in means])


@figures.drawn
def by_lr(results: Results, steps: int) -> Figure:
    """Held-out loss against η at a budget, one panel per scheme and one line per schedule.

    Stars are fitted optima with the interval of log₂ η*; losses far above the optima are cut off.
    """
    table = tables.losses(results)
    at_budget = [line for line in tables.lines(table) if line.steps == steps]
    lines = [x for x in at_budget if x.share == 0 or math.isclose(x.share, SHARE)]
    if not lines:
        raise NotMeasured(f"no runs of {steps} steps are on record")
    schemes = list(dict.fromkeys(line.scheme for line in lines))
    with figures.style():
        figure, axes = figures.subplots(3.8 * max(len(schemes), 1.4), 4.0, len(schemes))
        for ax, scheme in zip(axes, schemes, strict=True):
            found = []
            for line in [line for line in lines if line.scheme == scheme]:
                rows = tables.by_lr(tables.at(table, line))
                colour, marker, title = LOOKS[line.schedule]
                style = {"color": colour, "ms": 4, "lw": 1.3, "label": title}
                ax.plot(rows["log2_lr"], rows["mean"], f"{marker}-", **style)
                found.append(tables.optimum(table, line))
                plots.star(ax, found[-1], colour)
            best = [o.loss for o in found if math.isfinite(o.loss)]
            if not best:
                figures.note(ax, f"every run of {NAMES[scheme]} diverged")
                continue
            ax.set_ylim(*plots.window(min(best), best, 5, least=0.03))
            ax.set_title(NAMES[scheme], fontweight="bold")
            plots.octaves(ax)
        axes[0].set_ylabel("held-out loss (nats/token)")
        plots.legend(figure, axes[0], f"{steps} steps", 3)
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
    looks = dict(zip(budgets, (LOOKS["wsd"], LOOKS["cosine"], LOOKS["wsd_sqrt"]), strict=False))
    found = sorted({line.share for line in lines if line.steps in looks})
    last = found[-1]
    with figures.style():
        figure, (ax,) = figures.subplots(7, 3.6)
        ax.axhline(0, color=PLATEAU, lw=1)
        for i, (steps, look) in enumerate(looks.items()):
            mine = sorted(line.share for line in lines if line.steps == steps)
            gaps = [
                tables.gap(results, "wsd", "wsd", steps, share=s, against_share=last) for s in mine
            ]
            place = [100 * s + 0.35 * (i - (len(looks) - 1) / 2) for s in mine]
            look = look._replace(title=f"{steps} steps")
            plots.points(ax, place, plots.intervals(gaps), look, ls="-")
        claimed = claims.bound("schedules", "decay-of-10-is-enough")
        plots.guide(ax, claimed, "claimed at most, 10 and 20 %")
        ax.set_xticks([100 * s for s in found], [f"{100 * s:g} %" for s in found])
        ax.set_xlabel("share of the steps that decays")
        ax.set_ylabel(f"loss above {100 * last:g} % (nats/token)")
        ax.legend(loc="best")
    return figure


@figures.drawn
def horizons(results: Results) -> Figure:
    """Best η against the budget, one marker per schedule, with the fitted slopes.

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
        ends, shade = (middle - limit * u, middle + limit * u), {"color": plots.SHADE, "lw": 0}
        claimed = f"claimed: ±{plots.plain(limit)} octave per doubling"
        ax.fill_between(budgets, *ends, alpha=0.2, label=claimed, **shade)
        for i, (kind, found) in enumerate(optima.items()):
            look, slope = LOOKS[kind], _slope(results, kind)
            if slope is not None:
                look = plots.trend(ax, found, slope, look)
            aside = plots.aside(i, 3, 0.07)
            plots.optima(ax, found, look, aside=aside, open_end=0.5)
        plots.log2_axis(ax, budgets, BUDGET)
        ax.set_ylabel("log₂ η*")
        ax.set_title("best η of u-μP (octaves per doubling of the budget)")
        ax.legend(loc="best")
    return figure


@otherwise(lambda missing: None)
def _slope(results: Results, kind: str) -> Interval | None:
    """Octaves per doubling of the budget; None where the interval is open."""
    slope = tables.horizon_slope(results, kind, factor=2)
    return slope if math.isfinite(slope.lo) and math.isfinite(slope.hi) else None
