"""Figures that studies of FP8 share: tensors against the formats' ranges, and losses by arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from umup.lab import figures
from umup.lab.absent import required
from umup.lab.ranges import KINDS, LARGEST, LINEARS, MIN_NORMAL, SMALLEST
from umup.lab.tables import NAMES

Look = tuple[str, str, str]
"""Colour, marker and name of a line."""
COLOURS = {
    "attn.qkv": "#56B4E9", "attn.out": "#0072B2", "mlp.gate_up": "#E69F00", "mlp.down": "#D55E00",
    "readout": "#CC79A7",
}  # fmt: skip
MARKERS = {"attn.qkv": "v", "attn.out": "^", "mlp.gate_up": "s", "mlp.down": "D", "readout": "*"}
LINEAR_NAMES = {
    "attn.qkv": "q|k|v", "attn.out": "attention-out", "mlp.gate_up": "gate|up",
    "mlp.down": "FFN-down", "readout": "readout",
}  # fmt: skip
KIND_NAMES = {"input": "input", "weight": "weight", "output_gradient": "output-gradient"}
FORMATS = {"e4m3": ("E4M3", "#B58900"), "e5m2": ("E5M2", "#777777")}


def grid(
    width: float, height: float, rows: int, columns: int, **options
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns), which a notebook shows as PNG."""
    figure, (ax,) = figures.subplots(width, height)
    ax.remove()
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def log2_axis(ax: Axes, axis: str = "y") -> None:
    """Ticks such as 2⁻⁶ on an axis that holds log2 values."""
    chosen = ax.yaxis if axis == "y" else ax.xaxis
    chosen.set_major_formatter(lambda v, _: f"$2^{{{v:g}}}$")


def linear_legend(figure: Figure) -> None:
    """A legend of the linears' colours and marks, above the panels."""
    handles = [
        Line2D([], [], ls="-", color=COLOURS[name], marker=MARKERS[name], ms=6, lw=1.4,
               label=LINEAR_NAMES[name])
        for name in LINEARS
    ]  # fmt: skip
    figure.legend(handles=handles, ncols=len(LINEARS), loc="outside upper center")


def over_training(table: pd.DataFrame, order: Sequence[str]) -> Figure:
    """RMS over training, a row a scheme and a column a kind of tensor; deeper layers are darker.

    Bands: E4M3's normal range, subnormals paler; dotted lines the ends of E5M2's normal range. The
    step axis is linear up to the second probe and logarithmic from there.

    Args:
        table: rows as of ``ranges.of_linears``, with scheme and seed, over which means are taken.
        order: of the schemes.
    """
    schemes = [s for s in order if (table["scheme"] == s).any()]
    steps = np.sort(table["step"].unique())
    means = table.groupby(["scheme", "kind", "linear", "layer", "step"], as_index=False)[
        "rms"
    ].mean()
    means = means.assign(log2=np.log2(means["rms"]))
    depth = int(means["layer"].max()) + 1
    bottom, top = min(means["log2"].min(), -14.0) - 1, 10.0
    with figures.style():
        figure, axes = grid(
            7.8, 1.0 + 2.6 * len(schemes), len(schemes), 3, sharex=True, sharey=True
        )
        for i, scheme in enumerate(schemes):
            for ax, kind in zip(axes[i], KINDS, strict=True):
                _ranges(ax, named=kind == "weight")
                own = means[(means["scheme"] == scheme) & (means["kind"] == kind)]
                for (linear, layer), line in own.groupby(["linear", "layer"]):
                    strength = 1.0 if layer < 0 else 0.4 + 0.6 * (layer + 1) / depth
                    ax.plot(line["step"], line["log2"], f"{MARKERS[linear]}-", lw=1.5, ms=4.5,
                            color=COLOURS[linear], alpha=strength)  # fmt: skip
                ax.set_xscale("symlog", linthresh=max(float(steps[1]), 1.0))
                ax.set_xlim(0, steps[-1] * 1.15)
                ax.set_ylim(bottom, top)
                log2_axis(ax)
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
    """E4M3 as bands, E5M2's smallest normal number as a line; their names where nothing else is."""
    name, colour = FORMATS["e4m3"]
    small, normal, large = (np.log2(d["e4m3"]) for d in (SMALLEST, MIN_NORMAL, LARGEST))
    ax.axhspan(normal, large, color=colour, alpha=0.13, lw=0)
    ax.axhspan(small, normal, color=colour, alpha=0.06, lw=0)
    other, grey = FORMATS["e5m2"]
    ax.axhline(np.log2(MIN_NORMAL["e5m2"]), color=grey, ls=":", lw=1.3)
    texts = (
        (large, "top", f"{name}, largest", colour), (normal, "bottom", "min normal", colour),
        (small, "bottom", "min subnormal", colour),
        (np.log2(MIN_NORMAL["e5m2"]), "bottom", f"{other}, min normal", grey),
    )  # fmt: skip
    for y, side, text, shade in texts if named else ():
        ax.text(0.97, y + (-0.2 if side == "top" else 0.2), text, ha="right", va=side, fontsize=8,
                color=shade, transform=ax.get_yaxis_transform())  # fmt: skip


def losses(
    runs: pd.DataFrame, differences: pd.DataFrame, arm: str, looks: Mapping[str, Look],
    bound: float, order: Sequence[str],
) -> Figure:  # fmt: skip
    """Training curves of the arms, a panel a scheme, and final losses against the first look's.

    Args:
        runs: of one width, with a column ``arm``, which names the arm of each.
        differences: of them, see ``tables.differences``.
        looks: arm → how it is drawn; the first one is what the others are compared with.
        bound: of the differences, drawn as a band, nats.
        order: of the schemes.

    Raises:
        NotMeasured: every run diverged.
    """
    required(runs[runs["status"] == "ok"], "every run diverged")
    base, schemes = next(iter(looks)), [s for s in order if (runs["scheme"] == s).any()]
    arms = [a for a in looks if (runs[arm] == a).any()]
    with figures.style():
        figure, axes = grid(7.8, 4.0, 1, len(schemes) + 1)
        best = runs["final_loss"].min()
        top = best + 2.2
        for ax, scheme in zip(axes[0], schemes, strict=False):
            for name in arms:
                own = runs[(runs["scheme"] == scheme) & (runs[arm] == name)]
                own = own[own["curve_steps"].map(len) > 0]
                if own.empty:
                    continue
                shortest = min(map(len, own["curve_loss"]))
                curve = np.mean([c[:shortest] for c in own["curve_loss"]], axis=0)
                colour, _, label = looks[name]
                curve = _smooth(curve)
                if math.isfinite(curve[-1]):  # an arm that learns nothing shows as well
                    top = max(top, curve[-1] + 0.2)
                ax.plot(own["curve_steps"].iloc[0][:shortest], curve, "-", color=colour,
                        lw=2.2 if name == base else 1.2, label=label)  # fmt: skip
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("step")
        for ax in axes[0][: len(schemes)]:
            ax.set_ylim(best - 0.1, top)
        axes[0][0].set_ylabel(figures.LOSS)
        shown = {name: looks[name][2] for name in arms if name != base}
        rows = differences.rename(columns={arm: "arm"})
        _differences(axes[0][-1], rows, schemes, shown, bound)
        axes[0][-1].set_xlabel(f"loss − {looks[base][2]}'s (nats/token)")
        found = [ax.get_legend_handles_labels() for ax in (axes[0][0], axes[0][-1])]
        handles, labels = (a + b for a, b in zip(*found, strict=True))
        figure.legend(handles, labels, ncols=4, loc="outside upper center")
    return figure


def _smooth(curve: np.ndarray, window: int = 5) -> np.ndarray:
    """Mean over ``window`` kept points, fewer at the ends."""
    kernel = np.ones(min(window, len(curve)))
    return np.convolve(curve, kernel, "same") / np.convolve(np.ones(len(curve)), kernel, "same")


def _differences(
    ax: Axes, table: pd.DataFrame, schemes: list[str], shown: Mapping[str, str], bound: float
) -> None:
    arms = list(shown)
    ax.axvspan(-bound, bound, color="#999999", alpha=0.25, lw=0)
    for i, scheme in enumerate(schemes):
        for row in table[table["scheme"] == scheme].to_dict("records"):
            if row["arm"] not in shown:
                continue
            y = arms.index(row["arm"]) + 0.3 * (i - (len(schemes) - 1) / 2)
            value = row["difference"]
            look = {"color": figures.COLOURS[scheme], "ms": 6}
            if not math.isfinite(value):
                ax.plot(0.98, y, ">", transform=ax.get_yaxis_transform(), **look)
                continue
            error = [[value - row["difference_lo"]], [row["difference_hi"] - value]]
            error = np.where(np.isfinite(error), error, 0.0)
            ax.errorbar(value, y, xerr=error, fmt=figures.MARKERS[scheme], capsize=3, **look)
    ax.set_xscale("symlog", linthresh=0.02)
    ax.set_xticks([-0.1, 0, 0.1, 1], ["−0.1", "0", "0.1", "1"])
    ax.minorticks_off()
    ax.set_yticks(range(len(shown)), list(shown.values()))
    ax.set_ylim(len(shown) - 0.5, -0.5)
    for scheme in schemes:
        ax.plot([], [], figures.MARKERS[scheme], color=figures.COLOURS[scheme], label=NAMES[scheme])
