"""Figures that studies of FP8 share: tensors against the formats' ranges, and losses by arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup.lab import figures, plots
from umup.lab.absent import required
from umup.lab.plots import Look
from umup.lab.ranges import KINDS, LARGEST, LINEARS, MIN_NORMAL, SMALLEST
from umup.lab.tables import NAMES
from umup.laws import Interval

LOOKS = {
    "attn.qkv": Look(plots.SKY, "v", "q|k|v"),
    "attn.out": Look(plots.BLUE, "^", "attention-out"),
    "mlp.gate_up": Look(plots.ORANGE, "s", "gate|up"),
    "mlp.down": Look(plots.VERMILION, "D", "FFN-down"),
    "readout": Look(plots.PURPLE, "*", "readout"),
}
"""Colours of the linears."""
KIND_NAMES = {"input": "input", "weight": "weight", "output_gradient": "output-gradient"}
FORMATS = {"e4m3": ("E4M3", "#B58900"), "e5m2": ("E5M2", "#777777")}


def grid(
    width: float, height: float, rows: int, columns: int, **options
) -> tuple[Figure, np.ndarray]:
    """A figure that a notebook shows as PNG, and its axes (rows, columns)."""
    figure, (ax,) = figures.subplots(width, height)
    ax.remove()
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def linear_legend(figure: Figure) -> None:
    """A legend of the linears' colours and marks, above the panels."""
    plots.legend(figure, [plots.key(LOOKS[name], ls="-", ms=6, lw=1.4) for name in LINEARS])


def over_training(table: pd.DataFrame, order: Sequence[str]) -> Figure:
    """RMS over training, one row per scheme and one column per kind of tensor; deeper is darker.

    Bands show E4M3's normal range, paler its subnormals; dotted lines the ends of E5M2's normal
    range. The step axis is linear up to the second probe and logarithmic from there.

    Args:
        table: rows of ``ranges.of_linears`` with scheme and seed; means are taken over seeds.
        order: of the schemes.
    """
    schemes = [s for s in order if (table["scheme"] == s).any()]
    steps = np.sort(table["step"].unique())
    tensor = ["scheme", "kind", "linear", "layer", "step"]
    means = table.groupby(tensor, as_index=False)["rms"].mean()
    means = means.assign(log2=np.log2(means["rms"]))
    depth = int(means["layer"].max()) + 1
    bottom, top = min(means["log2"].min(), -14.0) - 1, 10.0
    with figures.style():
        height, shared = 1.0 + 2.6 * len(schemes), {"sharex": True, "sharey": True}
        figure, axes = grid(7.2, height, len(schemes), 3, **shared)
        for i, scheme in enumerate(schemes):
            for ax, kind in zip(axes[i], KINDS, strict=True):
                _ranges(ax, named=kind == "weight")
                own = means[(means["scheme"] == scheme) & (means["kind"] == kind)]
                for (linear, layer), line in own.groupby(["linear", "layer"]):
                    look = LOOKS[linear]
                    style: dict[str, Any] = {"color": look.colour, "lw": 1.5, "ms": 4.5}
                    strength = 1.0 if layer < 0 else 0.4 + 0.6 * (layer + 1) / depth
                    line_style = f"{look.marker}-"
                    ax.plot(line["step"], line["log2"], line_style, alpha=strength, **style)
                ax.set_xscale("symlog", linthresh=max(float(steps[1]), 1.0))
                ax.set_xlim(0, steps[-1] * 1.15)
                ax.set_ylim(bottom, top)
                plots.powers(ax)
                if i == 0:
                    ax.set_title(KIND_NAMES[kind], fontweight="bold")
            axes[i][0].set_ylabel(f"{NAMES[scheme]}: RMS")
        shown = [int(s) for s in (steps[0], steps[1], steps[-1])]
        for ax in axes[-1]:
            ax.set_xticks(shown, [str(s) for s in shown])
            ax.minorticks_off()
            ax.set_xlabel("step")
        linear_legend(figure)
    return figure


def _ranges(ax: Axes, named: bool) -> None:
    """E4M3 as bands, E5M2's smallest normal number as a line; their names in a free place."""
    name, colour = FORMATS["e4m3"]
    small, normal, large = (np.log2(d["e4m3"]) for d in (SMALLEST, MIN_NORMAL, LARGEST))
    ax.axhspan(normal, large, color=colour, alpha=0.13, lw=0)
    ax.axhspan(small, normal, color=colour, alpha=0.06, lw=0)
    other, grey = FORMATS["e5m2"]
    ax.axhline(np.log2(MIN_NORMAL["e5m2"]), color=grey, ls=":", lw=1.3)
    below = np.log2(MIN_NORMAL["e5m2"])
    texts = (
        (large, "top", f"{name}, largest", colour),
        (normal, "bottom", "min normal", colour),
        (small, "bottom", "min subnormal", colour),
        (below, "bottom", f"{other}, min normal", grey),
    )
    across = ax.get_yaxis_transform()
    for y, side, text, shade in texts if named else ():
        style: dict[str, Any] = {"ha": "right", "va": side, "fontsize": 9, "color": shade}
        ax.text(0.97, y + (-0.2 if side == "top" else 0.2), text, transform=across, **style)


def ranges_along_x(ax: Axes, rows: Sequence[float]) -> None:
    """The formats' ranges as bars in two rows, subnormals paler; dashed, the ends of E4M3's."""
    for y, (fmt, (_, colour)) in zip(rows, FORMATS.items(), strict=True):
        small, normal, large = (np.log2(d[fmt]) for d in (SMALLEST, MIN_NORMAL, LARGEST))
        ax.barh(y, large - normal, 0.5, normal, color=colour, alpha=0.8)
        ax.barh(y, normal - small, 0.5, small, color=colour, alpha=0.35)
    for value in (MIN_NORMAL["e4m3"], LARGEST["e4m3"]):
        ax.axvline(np.log2(value), color=FORMATS["e4m3"][1], lw=1, ls="--")


def losses(
    runs: pd.DataFrame,
    differences: pd.DataFrame,
    arm: str,
    looks: Mapping[str, Look],
    bound: float,
    order: Sequence[str],
) -> Figure:
    """Training curves of the arms, one panel per scheme, and final losses against the first arm's.

    Args:
        runs: of one width, with a column ``arm`` that names the arm of each.
        differences: of these runs, see ``tables.differences``.
        looks: arm → its style; the others are compared with the first.
        bound: of the differences, drawn as a band, nats; what lies beyond twenty times as much is
            an arrow, as divergence is.
        order: of the schemes.

    Raises:
        NotMeasured: every run diverged.
    """
    required(runs[runs["status"] == "ok"], "every run diverged")
    base, schemes = next(iter(looks)), [s for s in order if (runs["scheme"] == s).any()]
    arms = [a for a in looks if (runs[arm] == a).any()]
    with figures.style():
        figure, axes = grid(7.2, 4.0, 1, len(schemes) + 1)
        best = runs["final_loss"].min()  # curves are of the training loss
        top = best + 2.2
        for ax, scheme in zip(axes[0], schemes, strict=False):
            for name in arms:
                own = runs[(runs["scheme"] == scheme) & (runs[arm] == name)]
                last = _mean_curve(ax, own, looks[name], 2.2 if name == base else 1.2)
                if math.isfinite(last):  # an arm that learns nothing shows as well
                    top = max(top, last + 0.2)
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("step")
        for ax in axes[0][: len(schemes)]:
            ax.set_ylim(best - 0.1, top)
        axes[0][0].set_ylabel(figures.TRAINING_LOSS)
        shown = {name: looks[name].title for name in arms if name != base}
        rows = differences.rename(columns={arm: "arm"})
        _differences(axes[0][-1], rows, schemes, shown, bound)
        axes[0][-1].set_xlabel(f"loss − {looks[base].title}'s\n(nats/token)")
        plots.legend(figure, (axes[0][0], axes[0][-1]), columns=4)
    return figure


def _mean_curve(ax: Axes, runs: pd.DataFrame, look: Look, width: float) -> float:
    """Draw the mean curve of some runs up to the end of the shortest; returns its last loss."""
    runs = runs[runs["curve_steps"].map(len) > 0]
    if runs.empty:
        return math.nan
    shortest = min(map(len, runs["curve_loss"]))
    curve = _smooth(np.mean([c[:shortest] for c in runs["curve_loss"]], axis=0))
    style: dict[str, Any] = {"color": look.colour, "lw": width, "label": look.title}
    ax.plot(runs["curve_steps"].iloc[0][:shortest], curve, "-", **style)
    return float(curve[-1])


def _smooth(curve: np.ndarray, window: int = 5) -> np.ndarray:
    """Mean over ``window`` kept points, fewer at the ends."""
    kernel = np.ones(min(window, len(curve)))
    return np.convolve(curve, kernel, "same") / np.convolve(np.ones(len(curve)), kernel, "same")


def _differences(
    ax: Axes, table: pd.DataFrame, schemes: list[str], shown: Mapping[str, str], bound: float
) -> None:
    plots.band(ax, -bound, bound, along="x")
    series, most = [], 20 * bound
    for scheme in schemes:
        own = table[(table["scheme"] == scheme) & table["arm"].isin(list(shown))]
        found = zip(own["arm"], *plots.ends(own, "difference"), strict=True)
        gaps = {arm: Interval(*ends) for arm, *ends in found}
        beyond = {
            arm: Interval(math.inf, math.inf, math.inf)
            for arm, gap in gaps.items()
            if gap.value > most
        }
        series.append((plots.scheme(scheme), gaps | beyond))
    plots.forest(ax, shown, series, apart=0.3, ms=6, lw=1.5, capsize=3)
    low, high = ax.get_xlim()
    ax.set_xlim(max(low, -most), min(high, most))
    ax.xaxis.set_major_locator(MaxNLocator(4))
