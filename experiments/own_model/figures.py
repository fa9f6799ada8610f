"""Figures of the study ``own_model``."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import claims, figures, plots
from umup.lab.absent import NotMeasured, required
from umup.lab.plots import Look
from umup.lab.records import Results

from . import results as tables
from .results import NAMES, SCHEMES, title

WRONG = Look(plots.PURPLE, "X", "wrong role")


@figures.drawn
def transfer(results: Results) -> Figure:
    """Held-out loss against η, one line per width: SP beside μP, one row per model.

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
            top = best.max() + max(1.2 * (best.max() - best.min()), 0.3)
            for ax, scheme in zip(axes, SCHEMES):
                _curves(ax, own[own["scheme"] == scheme], top)
                ax.set_title(title(model, scheme))
                ax.set_ylim(best.min() - 0.1 * (top - best.min()), top)
            axes[0].set_ylabel("held-out loss (nats)")
            handles = max((ax.get_legend_handles_labels() for ax in axes), key=lambda h: len(h[0]))
            axes[-1].legend(*handles, title="width", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for ax in rows[-1]:
            ax.set_xlabel("log₂ η")
    return figure


def _curves(ax: Axes, table: pd.DataFrame, top: float) -> None:
    if table.empty:
        figures.note(ax, "no curves")
        return
    widths = sorted(table["width"].unique())
    colours, optima = plots.sequence(widths), tables.optima(table)
    ax.axvline(table["base_eta"].iloc[0], color="#444444", lw=1, ls="--", zorder=1.5)
    for width, at in table.groupby("width"):
        by = at.groupby("log2_eta")["loss"]
        losses = by.agg(["mean", "min", "max", "count", "size"]).reset_index()
        losses = losses.rename(columns={"min": "lo", "max": "hi", "count": "n"})
        losses["n_diverged"] = losses["size"] - losses["n"]
        look = Look(colours[width], title=str(width))
        plots.curve(ax, losses, look, x="log2_eta", top=top)
    for width, optimum in optima.items():
        plots.star(ax, optimum, colours[width])
    plots.octaves(ax, "")


@figures.drawn
def drift(results: Results) -> Figure:
    """Best η against width, relative to the base width's: one panel per model.

    Bars are 95 % intervals, the band is what the claims allow, half an octave; the dotted line
    falls an octave per doubling. An optimum that the grid does not bracket is left out.
    """
    table = tables.curves(results)
    models = [m for m in NAMES if (table["model"] == m).any()]
    required(table[table["loss"].notna()], "every run diverged")
    steady = claims.bound("own_model", "mlp-mup-steady")
    with figures.style():
        figure, axes = figures.subplots(7, 3.3, len(models), sharey=True)
        for ax, model in zip(axes, models):
            own = table[table["model"] == model]
            widths = np.array(sorted(own["width"].unique()))
            plots.band(ax, -steady, steady)
            ax.plot(widths, -np.log2(widths / widths[0]), ":", color=plots.GUIDE, lw=1.2)
            for scheme, wrong in sorted(set(zip(own["scheme"], own["wrong"])), reverse=True):
                at = own[(own["scheme"] == scheme) & (own["wrong"] == wrong)]
                fits = {w: f for w, f in tables.optima(at).items() if not f.edge}
                if not fits:
                    continue
                ends = np.array([(f.x, f.x_lo, f.x_hi) for f in fits.values()]).T
                look, join = _look(scheme), "-"
                if wrong:
                    look, join = WRONG._replace(title=f"μP, {wrong}\nas hidden"), ":"
                shift = np.clip(ends, ends[0] - 1.0, ends[0] + 1.0) - ends[0, 0]
                plots.points(ax, list(fits), shift, look, ls=join)
            plots.log2_axis(ax, widths, "width", room=0)
            ax.set_title(NAMES[model])
        axes[0].set_ylabel("best η, relative to the base\n(octaves)")
        if axes[0].get_legend_handles_labels()[0]:
            axes[0].legend(loc="lower left")
    return figure


def _look(scheme: str) -> Look:
    return plots.scheme(scheme)._replace(title=SCHEMES[scheme])


@figures.drawn
def updates(results: Results) -> Figure:
    """Exponent of width in every parameter's first update, SP, μP and with a wrong role.

    At the large η. Bars are 95 % intervals, the band is the tolerance of the check, on which the
    claims' bounds are built; outside it a rule of width is broken. Crosses are parameters that are
    marked as hidden though they are not.
    """
    found = tables.checks(results, tables.TOLERANCE)
    models = [m for m in NAMES if any(arm[0] == m for arm in found)]
    if not models:
        raise NotMeasured("no coordinate checks are on record")
    first = {arm: _first_updates(check.slopes) for arm, check in found.items()}
    rows = max(len(at) for at in first.values())
    with figures.style():
        figure, axes = figures.subplots(7, 1.4 + 0.2 * rows, len(models))
        for ax, model in zip(axes, models):
            own = {arm[1:]: at for arm, at in first.items() if arm[0] == model}
            _first(ax, own)
            ax.set_title(NAMES[model])
        plots.legend(figure, axes)
    return figure


def _first(ax: Axes, first: dict[tuple[str, str], dict[str, tuple[float, float, float]]]) -> None:
    """Exponents of one model: (scheme, wrong role) → `_first_updates`; of a wrong role its own."""
    names = list(dict.fromkeys(name for at in first.values() for name in at))
    plots.band(ax, -tables.TOLERANCE, tables.TOLERANCE, along="x")
    ax.axvline(0, color=plots.GUIDE, lw=0.8)
    for (scheme, wrong), at in first.items():
        shown = {n: s for n, s in at.items() if not wrong or n == wrong}
        ends = np.array(list(shown.values())).T
        ends = np.clip(ends, ends[0] - 3.0, ends[0] + 3.0)
        aside = {"sp": -0.15, "mup": 0.15}[scheme]
        look, size = (WRONG, 7) if wrong else (_look(scheme), 4)
        place = [names.index(n) + aside for n in shown]
        plots.points(ax, place, ends, look, along="x", ms=size, lw=1, capsize=0)
    plots.rows(ax, names, fontsize=8)
    ax.set_xlim(-1.5, 1.5)
    ax.set_xlabel("exponent of width,\nfirst update")


def _first_updates(slopes: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Parameter → slope of its first update at the large η with its interval."""
    at = slopes[(slopes["quantity"] == "update") & (slopes["step"] == 1)]
    at = at[at["eta"] == slopes["eta"].max()]
    return dict(zip(at["tensor"], zip(at["slope"], at["lo"], at["hi"])))
