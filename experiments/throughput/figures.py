"""Figures of the study ``throughput``: its tables drawn, nothing fitted."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import claims, plots
from umup.lab.absent import NotMeasured
from umup.lab.figures import drawn, panel, style, subplots
from umup.lab.plots import Look
from umup.lab.records import Results

from . import results as tables

SIDES = {
    "umup": Look(plots.GREEN, "D", "umup"),
    "blocked": Look(plots.BLUE, "o", "umup, attention in blocks"),
    "cudnn": Look(plots.BLUE, "o", "umup, cuDNN attention"),
    "fp8": Look(plots.PURPLE, "P", "umup, FP8"),
    "eager": Look(plots.VERMILION, "s", "PyTorch"),
    "compiled": Look(plots.ORANGE, "^", "PyTorch, torch.compile"),
}
PIECES = {
    "products": ("products of the blocks", plots.BLUE),
    "readout": ("readout", plots.SKY),
    "attention": ("attention", plots.GREEN),
    "rope": ("rotary embedding, heads", "#7FD6BC"),
    "activation": ("gated SiLU", plots.ORANGE),
    "norms": ("norms", plots.YELLOW),
    "residual": ("residual adds", "#C9B8A0"),
    "loss": ("loss", plots.VERMILION),
    "embedding": ("embedding", plots.PURPLE),
    "optimizer": ("optimizer", "#8B5A8C"),
    "data": ("data", "#444444"),
    tables.REST: ("the rest", "#DDDDDD"),
}
CLAIMED = (32, 64, 128, 256)
"""Widths at which a claim bounds the ratio to PyTorch's time."""


def look(side: str) -> Look:
    """How a side is drawn, and its name on the page."""
    return SIDES.get(side, Look(plots.TEXT, "v", side))


@drawn
def beside(results: Results) -> Figure:
    """Milliseconds per step against width, and the ratio to PyTorch's, by side.

    Markers are medians, bars the range of the samples left and 95 % intervals right, where black
    bars are the bounds of the claims. Only the depth that most widths share is drawn.
    """
    table = tables.steps(results)
    table = table[table["n_layers"] == table["n_layers"].mode().iloc[0]].sort_values("width")
    widths = sorted(table["width"].unique())
    with style():
        figure, (left, right) = subplots(7, 3.9, 2)
        for side, line in table.groupby("side", sort=False):
            ms = [np.asarray(v, float) for v in line["ms"]]
            ends = np.array([(np.median(v), v.min(), v.max()) for v in ms]).T
            options = {"ls": "-", "ms": 5, "lw": 1.5, "capsize": 2}
            plots.points(left, line["width"], ends, look(str(side)), **options)
            if side != "eager":
                _ratios(right, results, str(side), line)
        left.set_yscale("log")
        plots.decades(left.yaxis, (1, 2, 5))
        left.set_ylabel("time of a step (ms)")
        right.axhline(1.0, color=plots.TEXT, ls=":", lw=1.2)
        if set(table["dtype"]) == {"float32"} and "eager" in set(table["side"]):
            for width in [w for w in widths if w in CLAIMED]:
                bound = claims.bound("throughput", f"cpu-{width}")
                right.plot([width / 1.2, width * 1.2], [bound] * 2, color="black", lw=2)
        right.set_ylim(0, max(1.1, right.get_ylim()[1]))
        right.set_ylabel("time over PyTorch's, eager")
        for ax in (left, right):
            plots.log2_axis(ax, widths, "width", room=1.4)
        plots.legend(figure, left, columns=2)
    return figure


def _ratios(ax: Axes, results: Results, side: str, line: pd.DataFrame) -> None:
    for at in line.to_dict("records"):
        try:
            r = tables.ratio(results, at["width"], side, dtype=at["dtype"], n_layers=at["n_layers"])
        except NotMeasured:
            continue
        ends = (r.value, r.lo, r.hi)
        plots.points(ax, at["width"], ends, look(side), label="_", ms=5, lw=1.5, capsize=2)


@drawn
def changes(results: Results) -> Figure:
    """Time with each change over that without: measured with 95 % intervals, and as predicted."""
    table = tables.tried(results)
    width = int(table["width"].iloc[0])
    table = table[table["width"] == width].sort_values("ratio", ascending=False)
    rows = np.arange(len(table))
    measured = Look(plots.BLUE, "o", "measured")
    with style():
        figure, (ax,) = subplots(7, 1.4 + 0.3 * len(table))
        ax.axvline(1.0, color=plots.TEXT, ls=":", lw=1.2)
        ends = plots.ends(table, "ratio")
        plots.points(ax, rows, ends, measured, along="x", ms=6, lw=1.5)
        options = {"mfc": "white", "mec": plots.VERMILION, "ms": 6, "label": "predicted"}
        ax.plot(table["predicted"], rows, "D", **options)
        ax.set_yticks(rows, table["title"])
        ax.set_ylim(-0.6, len(table) - 0.4)
        ax.set_xscale("log", base=2)
        low, high = ax.get_xlim()
        ticks = [t for t in (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0) if low <= t <= high]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        ax.set_xlabel(f"time of a step over that without, width {width}")
        plots.legend(figure, ax)
    return figure


@drawn
def where(results: Results) -> Figure:
    """Shares of a step's time by piece, a bar per width; pieces that exceed it reach beyond 100."""
    table = tables.parts(results)
    widths = sorted(table["width"].unique())
    with style():
        figure, (ax,) = subplots(7, 2.9 + 0.5 * len(widths))
        shares = table.pivot(index="width", columns="piece", values="share")
        shares = 100 * shares.reindex(columns=list(PIECES)).fillna(0.0).clip(lower=0.0)
        pieces = [(shares[piece], colour, title) for piece, (title, colour) in PIECES.items()]
        plots.stacked(ax.barh, np.arange(len(widths)), pieces)
        ax.axvline(100, color="black", lw=1.2)
        ax.set_yticks(range(len(widths)), [f"width {w}" for w in widths])
        ax.set_xlabel("share of a step's time (%)")
        ax.grid(visible=False, axis="y")
        plots.legend(figure, ax, columns=3)
    return figure


@drawn
def beyond(results: Results) -> Figure:
    """What is not a step: compile time against depth, and the time of a sweep of lanes."""
    if not {"compile_times", "lanes"} & set(results.points["what"]):
        raise NotMeasured("no compile times and no lanes")
    with style():
        figure, axes = subplots(7, 3.7, 2)
        for ax, draw in zip(axes, (_compiling, _sweep), strict=True):
            panel(ax, draw, results)
    return figure


def _compiling(ax: Axes, results: Results) -> None:
    table = tables.benched(results, "compile_times").sort_values("n_layers")
    layers, both = table["n_layers"], table["trace_s"] + table["compile_s"]
    ax.plot(layers, both, "o-", color=plots.BLUE, label="tracing and compiling")
    ax.plot(layers, table["trace_s"], "s--", color=plots.ORANGE, label="tracing")
    plots.log2_axis(ax, layers, "layers, scanned", room=0)
    ax.set_ylim(0, None)
    ax.set_ylabel("seconds")
    ax.legend(loc="lower right")


def _sweep(ax: Axes, results: Results) -> None:
    table = tables.benched(results, "lanes")
    names = ["separate" if n == 0 else f"lanes,\n{n} at once" for n in table["at_once"]]
    ax.bar(names, table["compile_s"], color=plots.ORANGE, label="compiling")
    ax.bar(names, table["run_s"], bottom=table["compile_s"], color=plots.BLUE, label="running")
    ax.set_xlabel(f"{table['lanes'].iloc[0]} runs of {table['steps'].iloc[0]} steps")
    ax.set_ylabel("seconds")
    ax.grid(visible=False, axis="x")
    ax.legend(loc="upper right")
