"""Figures of the study ``throughput``: its tables drawn, nothing fitted."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from umup.lab.absent import NotMeasured
from umup.lab.figures import OTHER, drawn, panel, style, subplots
from umup.lab.records import Results

from . import results as tables

SIDES = {
    "umup": ("umup", "#009E73", "D"), "blocked": ("umup, attention in blocks", "#0072B2", "o"),
    "cudnn": ("umup, cuDNN attention", "#0072B2", "o"), "fp8": ("umup, FP8", "#CC79A7", "P"),
    "eager": ("PyTorch", "#D55E00", "s"), "compiled": ("PyTorch, torch.compile", "#E69F00", "^"),
}  # fmt: skip
PIECES = {
    "products": ("products of the blocks", "#0072B2"), "readout": ("readout", "#56B4E9"),
    "attention": ("attention", "#009E73"), "rope": ("rotary embedding, heads", "#7FD6BC"),
    "activation": ("gated SiLU", "#E69F00"), "norms": ("norms", "#F0E442"),
    "residual": ("residual adds", "#C9B8A0"), "loss": ("loss", "#D55E00"),
    "embedding": ("embedding", "#CC79A7"), "optimizer": ("optimizer", "#8B5A8C"),
    "data": ("data", "#444444"), tables.REST: ("the rest", "#DDDDDD"),
}  # fmt: skip
BOUNDS = {32: 0.5, 64: 0.5, 128: 0.75, 256: 0.75}


def _look(side: str) -> tuple[str, str, str]:
    return SIDES.get(side, (side, OTHER, "v"))


def _width_axis(ax: Axes, widths: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [str(w) for w in widths])
    ax.minorticks_off()
    ax.set_xlim(min(widths) / 1.4, max(widths) * 1.4)
    ax.set_xlabel("width")


@drawn
def beside(results: Results) -> Figure:
    """Milliseconds a step against width, and the ratio to PyTorch's, by side.

    Markers are medians, bars the range of the samples left and 95 % intervals right, where black
    bars are the bounds of the claims. Only the depth that most widths share is drawn.
    """
    table = tables.steps(results)
    table = table[table["n_layers"] == table["n_layers"].mode().iloc[0]].sort_values("width")
    widths = sorted(table["width"].unique())
    with style():
        figure, (left, right) = subplots(7, 3.9, 2)
        for side, line in table.groupby("side", sort=False):
            title, colour, marker = _look(str(side))
            ms = [np.asarray(v, float) for v in line["ms"]]
            reach = [[np.median(v) - v.min() for v in ms], [v.max() - np.median(v) for v in ms]]
            left.errorbar(line["width"], line["median"], yerr=reach, color=colour, marker=marker,
                          ms=5, lw=1.5, capsize=2, label=title)  # fmt: skip
            if side != "eager":
                _ratios(right, results, str(side), line)
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_locator(NullLocator())
        left.set_ylabel("time of a step (ms)")
        right.axhline(1.0, color=OTHER, ls=":", lw=1.2)
        if set(table["dtype"]) == {"float32"} and "eager" in set(table["side"]):
            for width in [w for w in widths if w in BOUNDS]:
                right.plot([width / 1.2, width * 1.2], [BOUNDS[width]] * 2, color="black", lw=2)
        right.set_ylim(0, max(1.1, right.get_ylim()[1]))
        right.set_ylabel("time over PyTorch's, eager")
        for ax in (left, right):
            _width_axis(ax, widths)
        figure.legend(*left.get_legend_handles_labels(), ncols=2, loc="outside upper center")
    return figure


def _ratios(ax: Axes, results: Results, side: str, line: pd.DataFrame) -> None:
    _, colour, marker = _look(side)
    for at in line.to_dict("records"):
        try:
            r = tables.ratio(results, at["width"], side, dtype=at["dtype"], n_layers=at["n_layers"])
        except NotMeasured:
            continue
        reach = [[max(r.value - r.lo, 0.0)], [max(r.hi - r.value, 0.0)]]
        finite = math.isfinite(r.lo) and math.isfinite(r.hi)
        ax.errorbar(at["width"], r.value, yerr=reach if finite else None, color=colour,
                    marker=marker, ms=5, capsize=2)  # fmt: skip


@drawn
def changes(results: Results) -> Figure:
    """Time with each change over that without: measured with 95 % intervals, and as predicted."""
    table = tables.tried(results)
    width = int(table["width"].iloc[0])
    table = table[table["width"] == width].sort_values("ratio", ascending=False)
    rows = np.arange(len(table))
    bounds = table[["ratio_lo", "ratio_hi"]].to_numpy(float).T
    reach = np.abs(bounds - table["ratio"].to_numpy(float))
    with style():
        figure, (ax,) = subplots(7, 1.4 + 0.3 * len(table))
        ax.axvline(1.0, color=OTHER, ls=":", lw=1.2)
        ax.errorbar(table["ratio"], rows, xerr=np.where(np.isfinite(reach), reach, np.nan),
                    fmt="o", color="#0072B2", ms=6, capsize=2.5, label="measured")  # fmt: skip
        ax.plot(table["predicted"], rows, "D", mfc="white", mec="#D55E00", ms=6, label="predicted")
        ax.set_yticks(rows, table["title"])
        ax.set_ylim(-0.6, len(table) - 0.4)
        ax.set_xscale("log", base=2)
        low, high = ax.get_xlim()
        ticks = [t for t in (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0) if low <= t <= high]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        ax.set_xlabel(f"time of a step over that without, width {width}")
        figure.legend(*ax.get_legend_handles_labels(), ncols=2, loc="outside upper center")
    return figure


@drawn
def where(results: Results) -> Figure:
    """Shares of a step's time by piece, one bar a width; pieces that exceed it reach beyond 100."""
    table = tables.parts(results)
    widths = sorted(table["width"].unique())
    with style():
        figure, (ax,) = subplots(7, 2.9 + 0.5 * len(widths))
        start = np.zeros(len(widths))
        for piece, (title, colour) in PIECES.items():
            shares = table[table["piece"] == piece].set_index("width")["share"]
            long = 100 * np.maximum([float(shares.get(w, 0.0)) for w in widths], 0.0)
            ax.barh(range(len(widths)), long, left=start, color=colour, ec="white", label=title)
            start += long
        ax.axvline(100, color="black", lw=1.2)
        ax.set_yticks(range(len(widths)), [f"width {w}" for w in widths])
        ax.set_xlabel("share of a step's time (%)")
        ax.grid(visible=False, axis="y")
        figure.legend(*ax.get_legend_handles_labels(), ncols=3, loc="outside upper center")
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
    ax.plot(table["n_layers"], table["trace_s"] + table["compile_s"], "o-", color="#0072B2",
            label="tracing and compiling")  # fmt: skip
    ax.plot(table["n_layers"], table["trace_s"], "s--", color="#E69F00", label="tracing")
    ax.set_xscale("log", base=2)
    ax.set_xticks(table["n_layers"], [str(n) for n in table["n_layers"]])
    ax.minorticks_off()
    ax.set_ylim(0, None)
    ax.set_xlabel("layers, scanned")
    ax.set_ylabel("seconds")
    ax.legend(loc="lower right")


def _sweep(ax: Axes, results: Results) -> None:
    table = tables.benched(results, "lanes")
    names = ["separate" if n == 0 else f"lanes,\n{n} at once" for n in table["at_once"]]
    ax.bar(names, table["compile_s"], color="#E69F00", label="compiling")
    ax.bar(names, table["run_s"], bottom=table["compile_s"], color="#0072B2", label="running")
    ax.set_xlabel(f"{table['lanes'].iloc[0]} runs of {table['steps'].iloc[0]} steps")
    ax.set_ylabel("seconds")
    ax.grid(visible=False, axis="x")
    ax.legend(loc="upper right")
