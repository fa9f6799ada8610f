"""What this study's page draws."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import claims, plots, tables
from umup.lab.absent import required
from umup.lab.figures import LOSS, drawn, style, subplots
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.lab.tables import NAMES
from umup.text import decimals

WIDTH = "width d_model"


def _order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))  # tables sort the schemes


@drawn
def by_lr(results: Results, steps: int | None = None) -> Figure:
    """Loss against learning rate, one panel per scheme and one line per width.

    Points are means over seeds, each freed of its own level (``tables.levelled``), bands their 95 %
    intervals, stars fitted optima with the interval of log2 η*, crosses at the top edge learning
    rates at which a run diverged. Losses far above the optima are cut off.

    Args:
        results: of one profile.
        steps: the horizon; by default that of the most widths, then the longest.
    """
    losses = tables.loss_by_lr(results.runs)
    measured = required(losses[losses["n"] > 0], "no current runs that did not diverge")
    steps = steps or tables.main_horizon(measured)
    runs = tables.prepare(results.runs)
    curves = runs[runs["steps"] == steps].groupby(tables.GROUP, sort=False)
    levelled = pd.concat([tables.levelled(curve, "log2_lr", "val_loss") for _, curve in curves])
    losses = tables.loss_by_lr(levelled)
    found = {(s, w): o for (s, w, n), o in tables.fits(results.runs).items() if n == steps}
    schemes, colours = _order(losses["scheme"]), plots.sequence(sorted(losses["d_model"].unique()))
    best = [optimum.loss for optimum in found.values()]
    low = np.nanmin([losses["mean"].min(), *best])
    bottom, top = plots.window(low, best, most=losses["mean"].max())
    with style():
        figure, axes = subplots(max(2.4 * len(schemes), 4), 3.6, len(schemes), sharey=True)
        for ax, scheme in zip(axes, schemes, strict=True):
            for width, curve in losses[losses["scheme"] == scheme].groupby("d_model"):
                look = Look(colours[width], title=str(width))
                plots.curve(ax, curve, look, top=top)
                plots.star(ax, found[scheme, width], look.colour)
            ax.set_title(NAMES[scheme], fontweight="bold")
            plots.octaves(ax)
            ax.set_ylim(bottom, top)
        axes[0].set_ylabel(LOSS)
        plots.legend(figure, axes, f"{WIDTH} ({steps} steps)")
    return figure


@drawn
def drift(results: Results, steps: int | None = None) -> Figure:
    """Optimal learning rate against width, relative to the smallest width of each scheme.

    Error bars are 95 % intervals of the optimum (arrows: unbounded), dashed lines the fitted
    slopes, the band ±½ octave: a sweep in factors of 2 cannot tell anything inside it from none.
    χ²/dof is the drift's lack of fit: well above 1 the optima do not lie on a line.
    """
    optima = tables.optima(results.runs)
    optima = required(optima[np.isfinite(optima["log2_lr"].astype(float))], "no optimum")
    steps = steps or tables.main_horizon(optima)
    optima = optima[optima["steps"] == steps]
    fits, drifts = tables.fits(results.runs), tables.drift_fits(results.runs)
    widths, schemes = sorted(optima["d_model"].unique()), _order(optima["scheme"])
    with style():
        figure, (ax,) = subplots(7, 4.2)
        plots.band(ax, -0.5, 0.5)
        plots.label(ax, 0.47, "±½ octave", side="top")
        for i, scheme in enumerate(schemes):
            own = optima[optima["scheme"] == scheme]["d_model"]
            found = {width: fits[scheme, width, steps] for width in own}
            look, base = plots.scheme(scheme), found[min(found)].x
            if (scheme, steps) in drifts:
                of = drifts[scheme, steps][0]
                look = plots.trend(ax, found, of.slope, look, base)
                if np.isfinite(of.lack_of_fit):
                    misfit = decimals(of.lack_of_fit, 1)
                    look = look._replace(title=f"{look.title}, χ²/dof {misfit}")
            aside = plots.aside(i, len(schemes), 0.05)
            plots.optima(ax, found, look, base=base, aside=aside, open_end=0.6)
        plots.log2_axis(ax, widths, WIDTH)
        ax.set_ylabel(f"log₂ η* − log₂ η* at width {widths[0]} (octaves)")
        ax.set_title(f"best η at {steps} steps (octaves per doubling of the width)")
        ax.legend(loc="best")
    return figure


@drawn
def default_losses(results: Results) -> Figure:
    """How far the loss at the best η lies above u-μP's, HPs at default (above 0: u-μP is better).

    Left, every width at the main horizon; right, the width measured at the most horizons. Bars are
    95 % intervals over pairs of equal seeds; below the dotted line a claim on u-μP fails.
    """
    table = tables.default_differences(results.runs)
    table = required(table, "no two schemes with a steady learning rate at one width")
    main = tables.main_horizon(table)
    horizons = table.groupby("d_model")["steps"].nunique()
    width = max(horizons.index, key=lambda w: (horizons[w], w))
    with style():
        figure, (left, right) = subplots(7, 3.8, 2, sharey=True)
        _gaps(left, table[table["steps"] == main], "d_model", WIDTH)
        _gaps(right, table[table["d_model"] == width], "steps", "steps")
        left.set_title(f"{main} steps")
        right.set_title(f"width {width}")
        left.set_ylabel("loss above u-μP (nats/token)")
        left.legend(loc="best")
    return figure


def _gaps(ax: Axes, differences: pd.DataFrame, over: str, title: str) -> None:
    """How far the other schemes' losses are above u-μP's, over a column of the differences."""
    ax.axhline(0, color=plots.scheme("umup").colour, lw=1.5)
    plots.guide(ax, -claims.bound("lr_transfer", "umup-default-vs-mup"))
    others = _order(differences["against"])
    for i, scheme in enumerate(others):
        own = differences[differences["against"] == scheme].sort_values(over)
        value, lo, hi = plots.ends(own, "difference")
        look = plots.scheme(scheme)
        look = look._replace(title=f"{look.title} − u-μP")
        place = own[over].to_numpy() * plots.aside(i, len(others), 0.16)
        plots.points(ax, place, (-value, -hi, -lo), look, ls="-")
    plots.log2_axis(ax, differences[over], title)
