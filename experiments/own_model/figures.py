"""Figures of the study ``own_model``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup.lab import figures
from umup.lab.absent import NotMeasured, required
from umup.lab.records import Results

from . import results as tables
from .results import NAMES, SCHEMES, title

WRONG = "#CC79A7"


@figures.drawn
def transfer(results: Results) -> Figure:
    """Held-out loss against η, a line a width: SP beside μP, a row a model.

    Dots are means over seeds, bands their range, stars fitted optima with the 95 % interval of
    log2 η*, crosses at the top learning rates at which a seed diverged. The vertical line is the η
    tuned at the base width.
    """
    table = tables.curves(results)
    table = table[table["wrong"] == ""]
    models = [m for m in NAMES if (table["model"] == m).any()]
    required(table[table["loss"].notna()], "every run diverged")
    with figures.style():
        figure, _ = figures.subplots(7, 0.5 + 2.9 * len(models))
        figure.clf()
        rows = figure.subplots(len(models), len(SCHEMES), squeeze=False, sharex="row", sharey="row")
        for axes, model in zip(rows, models):
            own = table[table["model"] == model]
            best = own.groupby("width")["loss"].min()
            span = best.max() - best.min()
            top = best.max() + max(1.2 * span, 0.3)
            for ax, scheme in zip(axes, SCHEMES):
                _curves(ax, own[own["scheme"] == scheme], top)
                ax.set_title(title(model, scheme))
                ax.set_ylim(best.min() - 0.1 * (top - best.min()), top)
            axes[0].set_ylabel("held-out loss (nats)")
            handles = max((ax.get_legend_handles_labels() for ax in axes), key=lambda h: len(h[0]))
            axes[-1].legend(
                *handles, title="width", fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0)
            )
        for ax in rows[-1]:
            ax.set_xlabel("log₂ η")
    return figure


def _curves(ax: Axes, table: pd.DataFrame, top: float) -> None:
    if table.empty:
        figures.note(ax, "no curves")
        return
    widths = sorted(table["width"].unique())
    colours = dict(zip(widths, sns.color_palette("flare", len(widths)), strict=True))
    ax.axvline(table["base_eta"].iloc[0], color="#444444", lw=1, ls="--", zorder=1.5)
    for width, at in table.groupby("width"):
        colour = colours[width]
        by = at.groupby("log2_eta")["loss"]
        mean, low, high = by.mean(), by.min(), by.max()
        ax.plot(mean.index, mean, "o-", ms=3, lw=1.4, color=colour, label=str(width))
        ax.fill_between(mean.index, low, high, color=colour, alpha=0.2, lw=0)
        bad = at[at["loss"].isna()]["log2_eta"].unique()
        if len(bad):
            ax.plot(bad, np.full(len(bad), top), "x", color=colour, ms=6, mew=1.5, clip_on=False)
    for width, fit in tables.optima(table).items():
        if not fit.edge:
            reach = np.clip([[fit.x - fit.x_lo], [fit.x_hi - fit.x]], 0.0, 1.0)
            ax.errorbar(
                fit.x, fit.loss, xerr=reach, fmt="*", ms=11, color=colours[width], mec="black",
                mew=0.6, ecolor="black", elinewidth=1.2, capsize=2.5, zorder=5,
            )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


@figures.drawn
def drift(results: Results) -> Figure:
    """Best η against width, relative to the base width's: a panel a model.

    Bars are 95 % intervals, the band is half an octave, the dotted line falls an octave a
    doubling. An optimum that the grid does not bracket is left out.
    """
    table = tables.curves(results)
    models = [m for m in NAMES if (table["model"] == m).any()]
    required(table[table["loss"].notna()], "every run diverged")
    with figures.style():
        figure, axes = figures.subplots(7, 3.3, len(models), sharey=True)
        for ax, model in zip(axes, models):
            own = table[table["model"] == model]
            widths = np.array(sorted(own["width"].unique()))
            ax.axhspan(-0.5, 0.5, color="#999999", alpha=0.2, lw=0)
            ax.plot(widths, -np.log2(widths / widths[0]), ":", color="#777777", lw=1.2)
            for scheme, wrong in sorted(set(zip(own["scheme"], own["wrong"])), reverse=True):
                at = own[(own["scheme"] == scheme) & (own["wrong"] == wrong)]
                fits = {w: f for w, f in tables.optima(at).items() if not f.edge}
                if not fits:
                    continue
                y = np.array([f.x for f in fits.values()])
                ends = np.array([(f.x_lo, f.x_hi) for f in fits.values()]).T
                ax.errorbar(
                    list(fits), y - y[0], yerr=np.clip(np.abs(ends - y), 0.0, 1.0),
                    fmt="X:" if wrong else f"{figures.MARKERS[scheme]}-", ms=5.5, lw=1.4,
                    color=WRONG if wrong else figures.COLOURS[scheme], capsize=2.5,
                    label=f"μP, {wrong}\nas hidden" if wrong else SCHEMES[scheme],
                )  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.set_xticks(widths, [str(w) for w in widths])
            ax.minorticks_off()
            ax.set_xlabel("width")
            ax.set_title(NAMES[model])
        axes[0].set_ylabel("best η, relative to the base\n(octaves)")
        if axes[0].get_legend_handles_labels()[0]:
            axes[0].legend(loc="lower left")
    return figure


@figures.drawn
def updates(results: Results) -> Figure:
    """Exponent of width in every parameter's first update, SP, μP and with a wrong role.

    At the large η. Bars are 95 % intervals, the band is the tolerance; outside it a rule of width
    is broken. Crosses are parameters that are marked as hidden though they are not.
    """
    found = tables.checks(results, tables.TOLERANCE)
    models = [m for m in NAMES if any(arm[0] == m for arm in found)]
    if not models:
        raise NotMeasured("no coordinate checks are on record")
    first = {arm: _first_updates(check.slopes) for arm, check in found.items()}
    rows = max(len(at) for at in first.values())
    with figures.style():
        figure, axes = figures.subplots(7, 1.4 + 0.185 * rows, len(models))
        for ax, model in zip(axes, models):
            names = list(dict.fromkeys(t for arm in first if arm[0] == model for t in first[arm]))
            places = {name: -i for i, name in enumerate(names)}
            ax.axvspan(-tables.TOLERANCE, tables.TOLERANCE, color="#999999", alpha=0.2, lw=0)
            ax.axvline(0, color="#666666", lw=0.8)
            for arm in [arm for arm in first if arm[0] == model]:
                _, scheme, wrong = arm
                shown = {n: s for n, s in first[arm].items() if not wrong or n == wrong}
                middle = np.array([s[0] for s in shown.values()])
                reach = np.abs(np.array([s[1:] for s in shown.values()]).T - middle)
                aside = {"sp": 0.15, "mup": -0.15}[scheme]
                ax.errorbar(
                    middle, [places[n] + aside for n in shown],
                    xerr=np.where(np.isfinite(reach), np.minimum(reach, 3.0), 0.0),
                    fmt="X" if wrong else figures.MARKERS[scheme], ms=7 if wrong else 4,
                    color=WRONG if wrong else figures.COLOURS[scheme], lw=1, ls="none",
                    label="wrong role" if wrong else SCHEMES[scheme],
                )  # fmt: skip
            ax.set_yticks(list(places.values()), names, fontsize=7.5)
            ax.set_ylim(-len(names) + 0.4, 0.6)
            ax.set_xlim(-1.5, 1.5)
            ax.set_xlabel("exponent of width,\nfirst update")
            ax.set_title(NAMES[model])
        handles = {}
        for ax in axes:
            handles |= dict(zip(*reversed(ax.get_legend_handles_labels())))
        figure.legend(
            list(handles.values()), list(handles), ncols=3, loc="outside upper center"
        )  # fmt: skip
    return figure


def _first_updates(slopes: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Parameter → slope of its first update at the large η with its interval."""
    at = slopes[(slopes["quantity"] == "update") & (slopes["step"] == 1)]
    at = at[at["eta"] == slopes["eta"].max()]
    return dict(zip(at["tensor"], zip(at["slope"], at["lo"], at["hi"])))
