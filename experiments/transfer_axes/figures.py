"""Figures of the study ``transfer_axes``: tables drawn, nothing fitted."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import axis as axes_figures
from umup.lab import claims, plots
from umup.lab.absent import NotMeasured, required
from umup.lab.figures import drawn, panel, style
from umup.lab.fp8_figures import grid
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.lab.tables import fits

from . import results as tables
from .results import AXES, COMPLETEP, SCHEMES

STUDY = "transfer_axes"
TOP = 0.2  # nats above a curve's optimum at which it is cut off
OPEN = 0.7  # octaves: length of an open end


@drawn
def shifts(results: Results) -> Figure:
    """The best η against that at the smallest value, a panel per axis and a line per scheme.

    In the last panel width, depth, steps and batch grow at once: where the sum of their axes
    carries the base's best η, and where the best is. Bars are 95 % intervals, arrows open ends; the
    band is what the claims allow, dotted lines are the powers that the literature has.
    """
    allowed = claims.bound(STUDY, "umup-still-over-steps")
    with style():
        figure, axes = grid(7.6, 7.8, 3, 3, sharey=True)
        *single, last, spare = axes.flat
        for ax, axis in zip(single, AXES, strict=True):
            ax.set_title(AXES[axis].title, fontsize=10)
            plots.band(ax, -allowed, allowed)
            panel(ax, _shifts, results, axis)
        last.set_title("four at once", fontsize=10)
        panel(last, _together, results)
        spare.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("shift of log₂ η* (octaves)")
        seen = [s for s in SCHEMES if s in set(tables.known(results.runs)["scheme"])]
        plots.legend(figure, [plots.key(plots.scheme(scheme)) for scheme in seen])
    return figure


def _shifts(ax: Axes, results: Results, axis: str) -> None:
    found = {}
    for scheme in SCHEMES:
        try:
            found[scheme] = tables.optima(results.runs, axis, scheme)
        except NotMeasured:
            continue
    if not found:
        raise NotMeasured("no runs")
    values = sorted({value for own in found.values() for value in own})
    for i, (scheme, own) in enumerate(found.items()):
        first = own[min(own)].x
        places = {math.log2(v) + 0.09 * (i - (len(found) - 1) / 2): o for v, o in own.items()}
        plots.optima(ax, places, plots.scheme(scheme), base=first, open_end=OPEN)
    at = np.log2([values[0], values[-1]])
    if math.isfinite(power := AXES[axis].power):
        ax.plot(at, power * (at - at[0]), ":", color=plots.GUIDE)
        ax.annotate(AXES[axis].law, (at[1], power * (at[1] - at[0])), fontsize=8, ha="right")
    ax.set_xticks(np.log2(values), [str(value) for value in values])


def _together(ax: Axes, results: Results) -> None:
    """Where the sum carries the base's best η, and where the best is when all grow."""
    found = {}
    for scheme in SCHEMES:
        try:
            grown = tables.grown(results.runs, scheme)
            steps = (tables.at_base(results.runs, scheme), tables.carried(results.runs, scheme))
            found[scheme] = (*steps, next(iter(fits(grown).values())))
        except NotMeasured:
            continue
    if not found:
        raise NotMeasured("no runs")
    for i, (scheme, own) in enumerate(found.items()):
        aside = 0.09 * (i - (len(found) - 1) / 2)
        places = {at + aside: optimum for at, optimum in enumerate(own)}
        plots.optima(ax, places, plots.scheme(scheme), base=own[0].x, open_end=OPEN)
    ax.set_xticks(range(3), ["base", "sum", "best"])


@drawn
def curves(results: Results, scheme: str) -> Figure:
    """Loss against η above that at the fitted optimum, a panel per axis and a line per value.

    Stars are fitted optima with 95 % intervals; means are over seeds, each freed of its own level,
    crosses learning rates at which a run diverged.
    """
    required(tables.known(results.runs).query("scheme == @scheme"), "no runs")
    shown = [axis for axis in AXES if axis not in ("steps_fixed", "width")]
    with style():
        figure, axes = grid(7.6, 5.4, 2, 3, sharey=True)
        axes[0, 0].set_ylim(-0.02, TOP)
        for ax, axis in zip(axes.flat, shown, strict=False):
            ax.set_title(AXES[axis].title, fontsize=10)
            panel(ax, _curves, results, axis, scheme)
        axes[1, 2].set_title(f"{AXES['depth'].title}, CompleteP", fontsize=10)
        panel(axes[1, 2], _curves, results, "depth", COMPLETEP)
        for ax in axes[:, 0]:
            ax.set_ylabel("above the optimum (nats/token)")
    return figure


def _curves(ax: Axes, results: Results, axis: str, scheme: str) -> None:
    """The curves of one scheme along an axis, each above the loss at its optimum."""
    runs = tables.curves(results.runs, axis, scheme)
    best = tables.optima(results.runs, axis, scheme)
    looks = {v: Look(colour, title=f"{v:g}") for v, colour in plots.sequence(list(runs)).items()}
    axes_figures.above_optimum(ax, runs, best, looks, TOP)
    plots.octaves(ax)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper center", fontsize=8, ncols=2)
