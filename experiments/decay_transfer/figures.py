"""Figures of the study ``decay_transfer``: tables drawn, nothing fitted."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import axis, claims, plots
from umup.lab.absent import NotMeasured
from umup.lab.figures import drawn, panel, style, subplots
from umup.lab.fp8_figures import grid
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.lab.tables import SCHEMES
from umup.laws import Interval

from . import results as tables
from .results import ARMS, GROUPS

STUDY = "decay_transfer"
TOP = 0.2  # nats above a curve's optimum at which it is cut off
OPEN = 1.0  # octaves: length of an open end


@drawn
def curves(results: Results) -> Figure:
    """Loss against η above that at the fitted optimum, a panel per arm and a line per width.

    Stars are fitted optima with 95 % intervals; a curve without one lies above its lowest point.
    Means are over seeds, each freed of its own level, crosses learning rates at which a run
    diverged.
    """
    widths = sorted({int(w) for w in tables.known(results.runs)["d_model"]})
    looks = {w: Look(c, title=str(w)) for w, c in plots.sequence(widths).items()}
    with style():
        figure, axes = grid(7.5, 9.6, len(GROUPS), len(SCHEMES), sharey=True)
        axes[0, 0].set_ylim(-0.02, TOP)
        for row, group in zip(axes, GROUPS, strict=True):
            for ax, arm in zip(row, group, strict=True):
                ax.set_title(ARMS[arm].name, fontsize=9)
                panel(ax, _curves, results, arm, looks)
        for ax in axes[-1]:
            ax.set_xlabel("log₂ η")
        axes[len(GROUPS) // 2, 0].set_ylabel("held-out loss above the optimum (nats/token)")
        plots.legend(figure, [plots.key(look) for look in looks.values()], "width d_model")
    return figure


def _curves(ax: Axes, results: Results, arm: str, looks: dict[int, Look]) -> None:
    """The curves of one arm, each above the loss at its optimum."""
    runs, best = tables.arm_runs(results.runs, arm), tables.optima(results.runs, arm)
    by_width = {width: runs[runs["d_model"] == width] for width in best}
    axis.above_optimum(ax, by_width, best, looks, TOP)
    plots.octaves(ax, "")


@drawn
def shifts(results: Results) -> Figure:
    """How far the best η moves from the narrowest width to the widest, a row per arm.

    Bars are 95 % intervals, with an arrow where open; the band is what the claims of transfer
    allow.
    """
    found: dict[str, dict[str, Interval]] = {scheme: {} for scheme in SCHEMES}
    for arm, each in ARMS.items():
        try:
            found[each.scheme][arm] = tables.shift(results, arm)
        except NotMeasured:
            continue
    if not any(found.values()):
        raise NotMeasured("no arm has an optimum at two widths")
    allowed = claims.bound(STUDY, "mup-independent-transfers")
    series = [(plots.scheme(s)._replace(title="_"), own) for s, own in found.items()]
    with style():
        figure, (ax,) = subplots(7.0, 5.6)
        plots.band(ax, -allowed, allowed, along="x", line=True)
        names = {arm: each.name for arm, each in ARMS.items()}
        plots.forest(ax, names, series, apart=0.0, open_end=OPEN)
        for group in range(1, len(GROUPS)):
            ax.axhline(group * len(SCHEMES) - 0.5, color=plots.GUIDE, lw=0.6)
        ax.set_xlabel("shift of the best η (octaves)")
        plots.legend(figure, [plots.key(plots.scheme(s)) for s in SCHEMES if found[s]])
    return figure
