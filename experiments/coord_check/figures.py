"""Figures of the study `coord_check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import figures, plots
from umup.lab.absent import required
from umup.lab.plots import Look
from umup.lab.records import Results

from . import results as tables

LOOKS = {scheme: plots.scheme(scheme) for scheme in ("sp", "mup", "umup")} | {
    "mup_readout_lr": Look(plots.SKY, "v"),
    "umup_readout_lr": Look(plots.ORANGE, "^"),
}
PACES = {
    "small": Look(plots.SKY, "s", "small η"),
    "large": Look(plots.VERMILION, "o", "large η"),
}


def _named(table: pd.DataFrame) -> dict[str, str]:
    """Tensor → title of the three activations on which the ladder is judged."""
    last = tables.last_block(table)
    return {
        "logits": "logits",
        last: "residual stream, end",
        f"{last}.attn.qk": "attention logits",
    }


@figures.drawn
def ladder(slopes: pd.DataFrame, tolerance: float, step: int) -> Figure:
    """Slope over width of three changes on the way from SP to μP, one rule at a time.

    Bars are 95 % intervals, the band is the tolerance. u-μP stands beside the ladder.

    Args:
        slopes: of ``coord_check.fitted``.
        tolerance: half the height of the band. step: number of updates.
    """
    table = slopes[(slopes["quantity"] == "change") & (slopes["step"] == step)]
    places = dict(zip((*tables.LADDER, "umup"), (0, 1, 2, 3, 4, 5.3)))
    labels = (*tables.RUNGS, "u-μP")
    names = _named(table)
    table = table[table["tensor"].isin(names) & table["scheme"].isin(places)]
    required(table, f"no slopes over width after step {step}")
    with figures.style():
        figure, axes = figures.subplots(7, 3.9, 3, sharey=True)
        for ax, (tensor, title) in zip(axes, names.items()):
            plots.band(ax, -tolerance, tolerance, line=True)
            for pace, aside in (("small", -0.12), ("large", 0.12)):
                at = table[(table["tensor"] == tensor) & (table["pace"] == pace)]
                x = np.array([places[s] for s in at["scheme"]]) + aside
                order = np.argsort(x)
                x, at = x[order], at.iloc[order]
                rungs, look = x < 5, PACES[pace]
                ax.plot(x[rungs], at["slope"][rungs], "-", color=look.colour, lw=1.1)
                ends = at[["slope", "lo", "hi"]].to_numpy().T
                fill = look.colour if pace == "large" else "white"
                plots.points(ax, x, ends, look, mfc=fill, ms=5, lw=1.2)
            ax.set_title(title)
            ax.set_xticks(list(places.values()), labels, rotation=55, ha="right", fontsize=9)
            ax.set_xlim(-0.5, 5.8)
            ax.grid(axis="x", visible=False)
        shown = table["slope"]
        axes[0].set_ylim(shown.min() - 0.35, shown.max() + 0.35)  # wide intervals leave the frame
        axes[0].set_ylabel(f"slope of the change over width\n(step {step})")
        plots.legend(figure, axes[0])
    return figure


def _curve(ax: Axes, at: pd.DataFrame, scheme: str) -> None:
    """Geometric mean over seeds and every seed as a dot, relative to the narrowest width."""
    at = at[np.isfinite(at["value"]) & (at["value"] > 0)]
    if at.empty:
        return
    mean = np.exp(np.log(at["value"]).groupby(at["width"]).mean())
    unit = mean.iloc[0]
    look = LOOKS.get(scheme, Look(plots.TEXT, "P"))
    style: dict[str, Any] = {"ms": 5.5, "lw": 1.4, "label": tables.TITLES[scheme]}
    ax.plot(mean.index, mean / unit, f"{look.marker}-", color=look.colour, **style)
    ax.plot(at["width"], at["value"] / unit, ".", ms=3, color=look.colour, alpha=0.6)


def _width_axes(ax: Axes, widths: Sequence[int]) -> None:
    plots.log2_axis(ax, widths, "width d_model")
    plots.log2_axis(ax, axis="y")


@figures.drawn
def growth(results: Results, tensor: str = "logits") -> Figure:
    """The change of one activation against width at the large η, relative to the narrowest model.

    A panel for every number of steps; dots are seeds. Flat is what the rules ask for; the dotted
    line grows like the width.
    """
    table = tables.measurements(results, ("sp", "mup", "umup"))
    table = table[(table["tensor"] == tensor) & (table["quantity"] == "change")]
    table = required(table[table["pace"] == "large"], f"no change of the {tensor} at the large η")
    steps, widths = sorted(table["step"].unique()), sorted(table["width"].unique())
    with figures.style():
        figure, axes = figures.subplots(7, 3.3, len(steps), sharey=True)
        for ax, step in zip(axes, steps):
            for scheme in ("sp", "mup", "umup"):
                at = table[(table["step"] == step) & (table["scheme"] == scheme)]
                _curve(ax, at, scheme)
            _width_axes(ax, widths)
            ax.set_title(f"after {step} step{'s' * (step > 1)}")
        limits = axes[0].get_ylim()
        for ax in axes:
            ax.plot(widths, np.array(widths) / widths[0], ":", color=plots.GUIDE, lw=1)
            ax.axhline(1, color=plots.GUIDE, lw=0.8)
        axes[0].set_ylim(limits)
        axes[0].set_ylabel(f"change of the {tensor},\nrelative to width {widths[0]}")
        plots.legend(figure, axes[0])
    return figure


@figures.drawn
def heat(slopes: pd.DataFrame, tolerance: float, kind: str = "activation") -> Figure:
    """Slopes of every scheme and tensor at the large η, as numbers on colours.

    Args:
        slopes: of ``coord_check.fitted``.
        tolerance: slopes whose whole interval lies beyond it are bold.
        kind: ``activation`` for changes after the last step, ``weight`` for the first updates.
    """
    quantity = "change" if kind == "activation" else "update"
    required(slopes, "no scheme at two widths is on record")
    step = tables.last_step(slopes) if kind == "activation" else 1
    at = slopes[(slopes["kind"] == kind) & (slopes["quantity"] == quantity)]
    at = at[(at["step"] == step) & (at["pace"] == "large")]
    required(at, f"no slopes of the {quantity} after step {step} at the large η")
    tensors, schemes = list(dict.fromkeys(at["tensor"])), list(dict.fromkeys(at["scheme"]))
    grid = at.pivot(index="scheme", columns="tensor", values="slope")
    grid = grid.reindex(index=schemes, columns=tensors)
    broken = ((at["lo"] > tolerance) | (at["hi"] < -tolerance)).to_numpy()
    bold = frozenset(zip(at["scheme"][broken], at["tensor"][broken]))
    with figures.style():
        figure, (ax,) = figures.subplots(7, 1.5 + 0.34 * len(schemes))
        image = plots.heat(ax, grid, 1.5, "PuOr_r", bold=bold)
        ax.set_yticks(range(len(schemes)), [tables.TITLES[s] for s in schemes])
        ax.set_xticks(range(len(tensors)), tensors, rotation=55, ha="right")
        what = "change" if kind == "activation" else "update's norm"
        figure.colorbar(image, ax=ax, label=f"slope of the {what}", extend="both", shrink=0.9)
        ax.set_title(f"step {step}, large η; bold: beyond ±{tolerance:g}")
    return figure


@figures.drawn
def readout(results: Results) -> Figure:
    """With and without a further 1/width on the readout's learning rate.

    Left, the part of the logits' first change that the readout's own change makes, at the small η;
    right, their whole change after the last step at the large η. Relative to the narrowest model;
    the dotted line falls like 1/width.
    """
    schemes = ("mup", "mup_readout_lr", "umup", "umup_readout_lr")
    table = tables.measurements(results, schemes)
    table = table[table["tensor"].isin(["logits", "logits.readout"])]
    table = required(table[table["quantity"] == "change"], "no μP or u-μP decoders are on record")
    widths, last = sorted(table["width"].unique()), tables.last_step(table)
    panels = (
        ("logits.readout", "small", 1, "readout's own part, step 1, small η"),
        ("logits", "large", last, f"whole change, step {last}, large η"),
    )
    with figures.style():
        figure, axes = figures.subplots(7, 3.5, 2, sharey=True)
        for ax, (tensor, pace, step, title) in zip(axes, panels):
            at = table[(table["tensor"] == tensor) & (table["pace"] == pace)]
            at = at[at["step"] == step]
            for scheme in schemes:
                _curve(ax, at[at["scheme"] == scheme], scheme)
            ax.plot(widths, widths[0] / np.array(widths), ":", color=plots.GUIDE, lw=1.2)
            ax.axhline(1, color=plots.GUIDE, lw=0.8)
            _width_axes(ax, widths)
            ax.set_title(title, fontsize=10)
        axes[0].set_ylabel(f"change of the logits,\nrelative to width {widths[0]}")
        plots.legend(figure, axes[0])
    return figure
