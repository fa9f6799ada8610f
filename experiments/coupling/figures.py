"""Figures of the study ``coupling``: the grids themselves, and what a wrong row costs."""

from __future__ import annotations

import math

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from umup.lab import claims, figures, plots
from umup.lab.absent import NotMeasured, otherwise
from umup.lab.fp8_figures import grid as panels
from umup.lab.hp_search import SYMBOLS
from umup.lab.records import Results
from umup.lab.tables import NAMES
from umup.laws import Interval

from . import results as tables
from .results import SCHEMES, Grid

COLUMNS = 5
REACH = 0.3  # nats above a grid's lowest loss at which its colours end


@figures.drawn
def grids(results: Results, scheme: str) -> Figure:
    """Every grid of a scheme, mean over seeds, as nats above its lowest loss.

    Filled dots are the best values along rows, rings those down columns: where nothing is coupled
    dots lie above one another and rings side by side.
    """
    found = tables.grids(results, scheme)
    rows = math.ceil(len(found) / COLUMNS)
    with figures.style():
        figure, axes = panels(7.6, 0.6 + 1.6 * rows, rows, min(COLUMNS, len(found)))
        for ax in axes.flat[len(found) :]:
            ax.axis("off")
        for ax, grid in zip(axes.flat, found, strict=False):
            image = _grid(ax, grid)
        figure.colorbar(image, ax=axes, label="nats above the lowest", extend="max", shrink=0.6)
        figure.suptitle(NAMES[scheme], fontweight="bold")
    return figure


def _grid(ax: Axes, grid: Grid) -> AxesImage:
    mean = np.where(np.isnan(grid.loss), grid.guess, grid.loss).mean(axis=0)
    image = ax.imshow(
        mean - mean.min(),
        cmap=sns.color_palette("rocket_r", as_cmap=True),
        vmin=0,
        vmax=REACH,
        origin="lower",
        aspect="auto",
    )
    rows, columns = np.arange(len(grid.x)), np.arange(len(grid.y))
    ax.plot(mean.argmin(axis=1), rows, "o", color=plots.GREEN, ms=4, label="best of the row")
    ring = {"mec": plots.BLUE, "mfc": "none", "ms": 8, "mew": 1.3, "label": "best of the column"}
    ax.plot(columns, mean.argmin(axis=0), "o", **ring)
    for place, values in ((ax.xaxis, grid.y), (ax.yaxis, grid.x)):
        place.set_ticks([0, len(values) - 1], labels=[f"{values[0]:g}", f"{values[-1]:g}"])
    ax.set_xlabel(SYMBOLS[grid.b], fontsize=8.5, labelpad=-6)
    ax.set_ylabel(SYMBOLS[grid.a], fontsize=8.5, labelpad=-6)
    ax.tick_params(labelsize=7, length=0)
    ax.grid(False)
    return image


@figures.drawn
def costs(results: Results) -> Figure:
    """What the wrong row's optimum costs, a row per pair and a panel per scheme.

    Filled: chosen by one seed and read in another, with 95 % intervals by seed; hollow: chosen and
    read in the same runs; small: the control. Dotted: the means.
    """
    found = {scheme: _costs(results, scheme) for scheme in SCHEMES}
    found = {scheme: by_kind for scheme, by_kind in found.items() if by_kind}
    if not found:
        raise NotMeasured("no grid with two seeds is complete")
    most = max(len(by_kind["crossed"]) for by_kind in found.values())
    claimed = claims.bound("coupling", "umup-cost")
    with figures.style():
        figure, axes = figures.subplots(7.6, 1.2 + 0.27 * most, len(found), sharex=True)
        for ax, (scheme, by_kind) in zip(axes, found.items(), strict=True):
            crossed, look = by_kind["crossed"], plots.scheme(scheme)
            order = sorted(crossed, key=lambda pair: -crossed[pair].value)
            names = {(a, b): f"{SYMBOLS[a]}, {SYMBOLS[b]}" for a, b in order}
            plots.forest(ax, names, [(look._replace(title="another seed reads"), crossed)])
            places = np.arange(len(order))
            naive, floor = ([by_kind[k][p].value for p in order] for k in ("naive", "floor"))
            hollow = {"color": look.colour, "mfc": "white", "ms": 5.5, "zorder": 1.8}
            ax.plot(naive, places, look.marker, label="the same runs", **hollow)
            ax.plot(floor, places, "|", color=plots.GUIDE, ms=8, label="control")
            ax.axvline(
                float(np.mean([c.value for c in crossed.values()])), color=look.colour, ls=":"
            )
            ax.axvline(claimed, color=plots.GUIDE, lw=0.8)
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("cost (nats/token)")
        axes[-1].legend(loc="lower right")
    return figure


@otherwise(lambda missing: {})
def _costs(results: Results, scheme: str) -> dict[str, dict[tuple, Interval]]:
    return {kind: tables.pair_costs(results, scheme, kind) for kind in tables.KINDS}


@figures.drawn
def tracks(results: Results) -> Figure:
    """The best value of one hyperparameter against another: the pairs that the paper names.

    Thin lines are seeds, the thick one their mean; the value is that of the parabola through the
    lowest point and its neighbours.
    """
    shown = (
        ("mup", "eta_emb", "sigma_init"),
        ("mup", "eta", "alpha_attn_softmax"),
        ("umup", "eta", "alpha_attn_softmax"),
    )
    for scheme, hp, other in shown[:1]:
        tables.pair_of(results, scheme, hp, other)  # else nothing is drawn at all
    with figures.style():
        figure, axes = figures.subplots(7.6, 2.8, len(shown))
        for ax, (scheme, hp, other) in zip(axes, shown, strict=True):
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel(f"log₂ {SYMBOLS[other]}")
            ax.set_ylabel(f"best log₂ {SYMBOLS[hp]}")
            figures.panel(ax, _track, results, scheme, hp, other)
    return figure


def _track(ax: Axes, results: Results, scheme: str, hp: str, other: str) -> None:
    at, found = tables.tracks(results, scheme, hp, other)
    look = plots.scheme(scheme)
    for of_seed in found:
        ax.plot(at, of_seed, "-", color=look.colour, lw=0.8, alpha=0.5)
    ax.plot(at, found.mean(axis=0), f"{look.marker}-", color=look.colour, lw=2)
