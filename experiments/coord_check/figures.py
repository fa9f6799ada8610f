"""Figures of the study `coord_check`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import figures
from umup.lab.absent import required
from umup.lab.records import Results
from umup.text import decimals

from . import results as tables

COLOURS = figures.COLOURS | {"mup_readout_lr": "#56B4E9", "umup_readout_lr": "#E69F00"}
MARKERS = figures.MARKERS | {"mup_readout_lr": "v", "umup_readout_lr": "^"}
PACE_COLOURS = {"small": "#56B4E9", "large": "#D55E00"}


def _named(table: pd.DataFrame) -> dict[str, str]:
    """Tensor → title of the three activations on which the ladder is judged."""
    last = tables.last_block(table)
    return {
        "logits": "logits",
        last: "residual stream, end",
        f"{last}.attn.qk": "attention logits",
    }


def _band(ax: Axes, tolerance: float) -> None:
    ax.axhspan(-tolerance, tolerance, color="#999999", alpha=0.2, lw=0)
    ax.axhline(0, color="#666666", lw=0.8)


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
            _band(ax, tolerance)
            for pace, aside in (("small", -0.12), ("large", 0.12)):
                at = table[(table["tensor"] == tensor) & (table["pace"] == pace)]
                x = np.array([places[s] for s in at["scheme"]]) + aside
                order = np.argsort(x)
                x, at = x[order], at.iloc[order]
                rungs = x < 5
                colour = PACE_COLOURS[pace]
                filled = colour if pace == "large" else "white"
                ax.plot(x[rungs], at["slope"][rungs], "-", color=colour, lw=1.1)
                ax.errorbar(
                    x, at["slope"], yerr=_reach(at), fmt="o" if pace == "large" else "s",
                    color=colour, mfc=filled, ms=5, capsize=2.5, lw=1.2, label=f"{pace} η",
                )  # fmt: skip
            ax.set_title(title)
            ax.set_xticks(list(places.values()), labels, rotation=55, ha="right", fontsize=8.5)
            ax.set_xlim(-0.5, 5.8)
            ax.grid(axis="x", visible=False)
        shown = table["slope"]
        axes[0].set_ylim(shown.min() - 0.35, shown.max() + 0.35)  # wide intervals leave the frame
        axes[0].set_ylabel(f"slope of the change over width\n(step {step})")
        handles, names_of = axes[0].get_legend_handles_labels()
        figure.legend(handles, names_of, ncols=2, loc="outside upper center")
    return figure


def _reach(table: pd.DataFrame) -> np.ndarray:
    """Error bar lengths; an open end has none."""
    value = table["slope"].to_numpy()
    reach = np.abs(table[["lo", "hi"]].to_numpy().T - value)
    return np.where(np.isfinite(reach), reach, np.nan)


def _curve(ax: Axes, at: pd.DataFrame, scheme: str) -> None:
    """Geometric mean over seeds and every seed as a dot, relative to the narrowest width."""
    at = at[np.isfinite(at["value"]) & (at["value"] > 0)]
    if at.empty:
        return
    mean = np.exp(np.log(at["value"]).groupby(at["width"]).mean())
    unit = mean.iloc[0]
    colour = COLOURS.get(scheme, figures.OTHER)
    ax.plot(mean.index, mean / unit, "-", marker=MARKERS.get(scheme, "P"), ms=5.5, lw=1.4,
            color=colour, label=tables.TITLES[scheme])  # fmt: skip
    ax.plot(at["width"], at["value"] / unit, ".", ms=3, color=colour, alpha=0.6)


def _width_axis(ax: Axes, widths: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [str(w) for w in widths])
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_xlim(widths[0] / 1.25, widths[-1] * 1.25)
    ax.set_xlabel("width d_model")


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
            _width_axis(ax, widths)
            ax.set_title(f"after {step} step{'s' * (step > 1)}")
        limits = axes[0].get_ylim()
        for ax in axes:
            ax.plot(widths, np.array(widths) / widths[0], ":", color="#777777", lw=1)
            ax.axhline(1, color="#666666", lw=0.8)
        axes[0].set_ylim(limits)
        axes[0].set_ylabel(f"change of the {tensor},\nrelative to width {widths[0]}")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside upper center")
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
    bold = set(zip(at["scheme"][broken], at["tensor"][broken]))
    with figures.style():
        figure, (ax,) = figures.subplots(7, 1.5 + 0.34 * len(schemes))
        image = ax.imshow(grid, cmap="PuOr_r", vmin=-1.5, vmax=1.5, aspect="auto")
        for i, scheme in enumerate(schemes):
            for j, tensor in enumerate(tensors):
                value = grid.iloc[i, j]
                ax.text(
                    j, i, decimals(value, 1),
                    ha="center", va="center", fontsize=8.5,
                    color="white" if abs(value) > 1 else "black",
                    fontweight="bold" if (scheme, tensor) in bold else "normal",
                )  # fmt: skip
        ax.set_yticks(range(len(schemes)), [tables.TITLES[s] for s in schemes])
        ax.set_xticks(range(len(tensors)), tensors, rotation=55, ha="right")
        ax.grid(False)
        ax.tick_params(length=0)
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
            ax.plot(widths, widths[0] / np.array(widths), ":", color="#777777", lw=1.2)
            ax.axhline(1, color="#666666", lw=0.8)
            _width_axis(ax, widths)
            ax.set_title(title, fontsize=10)
        axes[0].set_ylabel(f"change of the logits,\nrelative to width {widths[0]}")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=4, loc="outside upper center", fontsize=8)
    return figure
