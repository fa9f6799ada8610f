"""Figures of the study ``hp_search``: the searches as they go, where they end, and their lines."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import claims, figures, plots
from umup.lab.absent import NotMeasured, otherwise
from umup.lab.fp8_figures import grid as panels
from umup.lab.hp_search import SYMBOLS
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.lab.tables import NAMES
from umup.laws import Interval

from . import results as tables
from .results import ENDS, SCHEMES

LOOKS = {
    "independent": Look(plots.BLUE, "o", "independent"),
    "combined": Look(plots.BLUE, "*", "lines combined"),
    "rounds": Look(plots.VERMILION, "s", "three rounds"),
    "random": Look(plots.SHADE, "D", "random, median and 95 % of orders"),
}


@figures.drawn
def searches(results: Results) -> Figure:
    """The lowest training loss so far against runs, one panel per scheme.

    The star is the independent search's last run, the combination of what its lines found. Dotted
    lines divide its stages.
    """
    known = [scheme for scheme in SCHEMES if _any(results, scheme)]
    if not known:
        raise NotMeasured("no search has come to its end")
    with figures.style():
        figure, axes = figures.subplots(7.6, 3.8, len(SCHEMES), sharey=True)
        for ax, scheme in zip(axes, SCHEMES, strict=True):
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("runs")
            figures.panel(ax, _searches, results, scheme)
        axes[0].set_ylabel("lowest training loss so far (nats/token)")
        plots.legend(figure, axes)
    return figure


@otherwise(lambda missing: False)
def _any(results: Results, scheme: str) -> bool:
    """True if the independent search has ended with a finite loss."""
    return tables.lines(results, scheme) is not None


def _searches(ax: Axes, results: Results, scheme: str) -> None:
    done = tables.searched(results, scheme, "independent")
    on_lines = tables.spent(results, scheme, "line")
    best, look = tables.best_so_far(done), LOOKS["independent"]
    at = np.arange(1, on_lines + 1)
    ax.step(at, best[:on_lines], where="post", color=look.colour, label=look.title)
    if on_lines < len(done):
        star = LOOKS["combined"]
        ax.plot(len(done), done[-1].loss, star.marker, color=star.colour, ms=11, label=star.title)
    for stage in (tables.spent(results, scheme, "eta"), on_lines):
        ax.axvline(stage, color=plots.GUIDE, ls=":", lw=1)
    low = float(best[-1])
    for draw in (_rounds, _band):
        low = min(low, otherwise(lambda _: math.inf)(draw)(ax, results, scheme))
    ax.set_ylim(low - 0.02, low + 0.45)


def _rounds(ax: Axes, results: Results, scheme: str) -> float:
    best, look = tables.best_so_far(tables.searched(results, scheme, "rounds")), LOOKS["rounds"]
    at = np.arange(1, len(best) + 1)
    ax.step(at, best, where="post", color=look.colour, label=look.title)
    return float(best[-1])


def _band(ax: Axes, results: Results, scheme: str) -> float:
    middle, lo, hi = tables.random_band(results, scheme)
    at, colour = np.arange(1, len(middle) + 1), LOOKS["random"].colour
    ax.fill_between(at, lo, np.minimum(hi, 99.0), color=colour, alpha=0.25, lw=0, step="post")
    ax.step(at, middle, where="post", color=plots.GUIDE, label=LOOKS["random"].title)
    return float(middle[-1])


@figures.drawn
def ends(results: Results) -> Figure:
    """Held-out loss where each search ends, on seeds that had no part in it, above random's.

    Right: the combined optimum on the wide model, above that width's best default. Dotted: bounds.
    """
    rows = {name: title for name, title in ENDS.items() if name != "random"}
    series = [
        (plots.scheme(scheme), {n: g for n in rows if (g := _gap(results, scheme, n)) is not None})
        for scheme in SCHEMES
    ]
    if not any(found for _, found in series):
        raise NotMeasured("no search has come to its end and was judged")
    with figures.style():
        figure, (left, right) = figures.subplots(7.6, 2.9, 2, width_ratios=(2, 1))
        plots.forest(left, rows, series, open_end=0.02)
        left.axvline(0, color=plots.GUIDE, lw=0.8)
        left.axvline(claims.bound("hp_search", "eta-line-umup"), color=plots.GUIDE, ls=":")
        left.set_xlabel("held-out loss above random's (nats/token)")
        figures.panel(right, _wide, results)
        right.set_xlabel("above the wide default")
        plots.legend(figure, left)
    return figure


@otherwise(lambda missing: None)
def _gap(results: Results, scheme: str, name: str) -> Interval:
    return tables.gap(results, scheme, name, "random")


@otherwise(lambda missing: None)
def _widened(results: Results, scheme: str) -> Interval:
    return tables.wide_gap(results, scheme)


def _wide(ax: Axes, results: Results) -> None:
    found = {s: g for s in SCHEMES if (g := _widened(results, s)) is not None}
    if not found:
        raise NotMeasured("nothing was carried to a wider model")
    series = [(plots.scheme(s), {s: g}) for s, g in found.items()]
    plots.forest(ax, {s: NAMES[s] for s in found}, series, open_end=0.02, apart=0.0)
    ax.axvline(0, color=plots.GUIDE, lw=0.8)
    ax.axvline(claims.bound("hp_search", "wide-umup"), color=plots.GUIDE, ls=":")
    ax.set_title("at the wide model")


@figures.drawn
def lines(results: Results) -> Figure:
    """Training loss along every line of the independent search, above the best η's; seed 0.

    The vertical line is the default, the filled mark the best of the line; crosses diverged.
    """
    known = [scheme for scheme in SCHEMES if _any(results, scheme)]
    if not known:
        raise NotMeasured("no independent search has come to its end")
    columns = max(len(tables.narrow(results, scheme).space.names) for scheme in known)
    with figures.style():
        height = 0.4 + 1.9 * len(known)
        figure, axes = panels(7.6, height, len(known), columns, sharey=True)
        for row, scheme in zip(axes, known, strict=True):
            names = tables.narrow(results, scheme).space.names
            for ax, name in zip(row, names, strict=False):
                _line(ax, results, scheme, name)
            for ax in row[len(names) :]:
                ax.axis("off")
            row[0].set_ylabel(f"{NAMES[scheme]}: nats above")
        axes[0, 0].set_ylim(-0.12, 0.5)
    return figure


def _line(ax: Axes, results: Results, scheme: str, name: str) -> None:
    found, at = tables.narrow(results, scheme), tables.lines(results, scheme)
    space, look = found.space, plots.scheme(scheme)
    origin = space.default() if name == "eta" else at.start
    best = at.start if name == "eta" else at.bests[name]
    base = found.chosen[tables.Trial(at.start, 0)]
    x = np.array(space.grid(name))
    loss = [found.chosen.get(tables.Trial(p, 0), math.nan) for p in space.line(name, origin)]
    above = np.array(loss) - base
    ax.plot(x, above, f"{look.marker}-", color=look.colour, ms=3, mfc="white", lw=1.2)
    plots.crosses(ax, x[np.isnan(above)], 0.5, look.colour)
    chosen = space.log2(best)[name]
    ax.plot(chosen, found.chosen[tables.Trial(best, 0)] - base, look.marker, color=look.colour)
    if name != "eta":
        ax.axvline(0, color=plots.GUIDE, lw=0.8)
    ax.set_xlabel(f"log₂ {SYMBOLS[name]}", fontsize=9)
    ax.set_xticks([x[0], x[-1]], [f"{x[0]:g}", f"{x[-1]:g}"])
