"""Figures of the study `fp8_drift`, laid out like those of the u-μP paper that they answer.

Every function takes ``records.Results`` and returns a new figure; a lack of records is said in it.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from umup import figures
from umup.absent import required
from umup.records import Results
from umup.studies import fp8_drift_tables as tables
from umup.studies.fp8_drift_tables import (
    KINDS,
    LARGEST,
    LINEARS,
    MIN_NORMAL,
    NAMES,
    SMALLEST,
)

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
RECIPES = {
    "plain": ("#000000", "o", "float32"), "bf16": ("#999999", "s", "bf16"),
    "fp8_seed": ("#D55E00", "D", "fp8_seed"), "fp8_seed, precise": ("#E69F00", "d", "… precise"),
    "fp8_e5m2_grad": ("#CC79A7", "^", "fp8_e5m2_grad"),
    "fp8_current": ("#0072B2", "v", "fp8_current"),
    "fp8_delayed": ("#56B4E9", "<", "fp8_delayed"),
}  # fmt: skip
FORMATS = {"e4m3": ("E4M3", "#B58900"), "e5m2": ("E5M2", "#777777")}
DIFFERENCE = 0.01  # nats, the claims' bound


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


@figures.drawn
def distribution(results: Results) -> Figure:
    """RMS of every tensor at initialization and at the end, a panel a scheme and stage.

    Seeds are averaged; marks of one kind are spread out a little, so that none hides another.
    """
    table = tables.width_of(tables.drift(results))
    means = table.groupby(["scheme", "step", "place", "linear", "kind"], as_index=False)[
        "rms"
    ].mean()
    schemes = [s for s in tables.SCHEMES if (means["scheme"] == s).any()]
    stages = {means["step"].min(): "at initialization", means["step"].max(): "after training"}
    low = min(np.log2(means["rms"].min()), -17) - 1
    with figures.style():
        figure, axes = grid(
            7.6, 1.5 + 1.75 * len(schemes), len(schemes), 2, sharex=True, sharey=True
        )
        for i, scheme in enumerate(schemes):
            for ax, (step, stage) in zip(axes[i], stages.items(), strict=False):
                at = means[(means["scheme"] == scheme) & (means["step"] == step)]
                _ranges_along_x(ax)
                for j, kind in enumerate(KINDS):
                    own = at[at["kind"] == kind].sort_values("place")
                    spread = np.linspace(-0.24, 0.24, len(own)) if len(own) > 1 else [0.0]
                    for offset, row in zip(spread, own.to_dict("records"), strict=True):
                        ax.plot(np.log2(row["rms"]), j + offset, MARKERS[row["linear"]], ms=6,
                                color=COLOURS[row["linear"]], mec="white", mew=0.5)  # fmt: skip
                ax.set_title(f"{NAMES[scheme]}, {stage}", fontweight="bold")
                ax.set_yticks([*range(3), 3, 4], [*map(KIND_NAMES.get, KINDS), "E4M3", "E5M2"])
                ax.set_ylim(4.5, -0.5)
                ax.set_xlim(low, 17)
                log2_axis(ax, "x")
                ax.grid(False, axis="y")
        for ax in axes[-1]:
            ax.set_xlabel("RMS")
        _linear_legend(figure)
    return figure


def _ranges_along_x(ax: Axes) -> None:
    for y, (fmt, (_, colour)) in zip((3, 4), FORMATS.items(), strict=True):
        small, normal, large = (np.log2(d[fmt]) for d in (SMALLEST, MIN_NORMAL, LARGEST))
        ax.barh(y, large - normal, 0.5, normal, color=colour, alpha=0.8)
        ax.barh(y, normal - small, 0.5, small, color=colour, alpha=0.35)
    for value in (MIN_NORMAL["e4m3"], LARGEST["e4m3"]):
        ax.axvline(np.log2(value), color=FORMATS["e4m3"][1], lw=1, ls="--")


def _linear_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], ls="-", color=COLOURS[name], marker=MARKERS[name], ms=6, lw=1.4,
               label=LINEAR_NAMES[name])
        for name in LINEARS
    ]  # fmt: skip
    figure.legend(handles=handles, ncols=len(LINEARS), loc="outside upper center")


@figures.drawn
def over_training(results: Results) -> Figure:
    """RMS over training, a row a scheme and a column a kind of tensor; deeper layers are darker.

    Bands: E4M3's normal range, subnormals paler; dotted lines the ends of E5M2's normal range. The
    step axis is linear up to the second probe and logarithmic from there.
    """
    table = tables.width_of(tables.drift(results))
    schemes = [s for s in tables.SCHEMES if (table["scheme"] == s).any()]
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
        _linear_legend(figure)
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


@figures.drawn
def lost(results: Results) -> Figure:
    """Share of elements clipped or flushed by a cast to E4M3, tensor by tensor over training.

    Tensors of which it never loses one element in a thousand are left out. A cross: some clipped.
    """
    table = tables.width_of(tables.drift(results))
    by_tensor = ["scheme", "kind", "layer", "place", "step"]
    means = table.groupby(by_tensor, as_index=False)[["e4m3", "e4m3_clipped"]].mean()
    schemes = [s for s in tables.SCHEMES if (means["scheme"] == s).any()]
    panels = {s: _matrix(means[means["scheme"] == s]) for s in schemes}
    rows = max(len(shares) for shares, _ in panels.values())
    with figures.style():
        figure, axes = grid(7.8, 1.6 + 0.21 * rows, 1, len(schemes))
        images = []
        for ax, (scheme, (shares, clipped)) in zip(axes[0], panels.items(), strict=True):
            values = np.clip(shares.to_numpy(float), 1e-4, 1.0)
            scale = LogNorm(1e-4, 1.0)
            images.append(ax.imshow(values, aspect="auto", cmap="magma_r", norm=scale))
            y, x = np.nonzero(clipped.to_numpy(float) > 1e-4)
            ax.plot(x, y, "x", color="#009E73", ms=4, mew=1.2)
            ax.set_yticks(range(len(shares)), list(shares.index), fontsize=7.5)
            ax.set_xticks(range(len(shares.columns)), [str(c) for c in shares.columns],
                          rotation=90, fontsize=7.5)  # fmt: skip
            ax.set_title(f"{NAMES[scheme]}, cast to E4M3", fontweight="bold")
            ax.set_xlabel("step")
            ax.grid(False)
        bar = figure.colorbar(images[0], ax=axes[0].tolist(), shrink=0.8, pad=0.02)
        bar.set_ticks(
            [1e-4, 1e-3, 1e-2, 1e-1, 1.0], labels=["≤0.01 %", "0.1 %", "1 %", "10 %", "100 %"]
        )
        bar.set_label("elements lost (green ×: some clipped)")
    return figure


def _matrix(means: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(shares lost, shares clipped): rows tensors, gradients first, columns steps."""
    order = {kind: i for i, kind in enumerate(("output_gradient", "input", "weight"))}
    short = {"output_gradient": "gradient", "input": "input", "weight": "weight"}
    names = means["place"].str.replace("blocks.", "", regex=False) + " " + means["kind"].map(short)
    means = means.assign(name=names, order=means["kind"].map(order))
    means = means.sort_values(["order", "layer", "name"], kind="stable")
    rows = list(dict.fromkeys(means["name"]))
    shares, clipped = (
        means.pivot_table(index="name", columns="step", values=v).loc[rows]
        for v in ("e4m3", "e4m3_clipped")
    )
    some = shares.max(axis=1) > 1e-3
    some.iloc[0] = True  # never an empty panel
    return shares[some], clipped[some]


@figures.drawn
def losses(results: Results) -> Figure:
    """Training curves of the recipes, a panel a scheme, and final losses against float32's."""
    runs = tables.width_of(tables.arms(results))
    differences = tables.width_of(tables.loss_differences(results))
    required(runs[runs["status"] == "ok"], "every run diverged")
    schemes = [s for s in tables.SCHEMES if (runs["scheme"] == s).any()]
    recipes = [r for r in RECIPES if (runs["recipe"] == r).any()]
    with figures.style():
        figure, axes = grid(7.8, 4.0, 1, len(schemes) + 1)
        best = runs["final_loss"].min()
        for ax, scheme in zip(axes[0], schemes, strict=False):
            for recipe in recipes:
                own = runs[(runs["scheme"] == scheme) & (runs["recipe"] == recipe)]
                own = own[own["curve_steps"].map(len) > 0]
                if own.empty:
                    continue
                shortest = min(map(len, own["curve_loss"]))
                curve = np.mean([c[:shortest] for c in own["curve_loss"]], axis=0)
                colour, _, label = RECIPES[recipe]
                ax.plot(own["curve_steps"].iloc[0][:shortest], _smooth(curve), "-", color=colour,
                        lw=2.2 if recipe == "plain" else 1.2, label=label)  # fmt: skip
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("step")
            ax.set_ylim(best - 0.1, best + 2.2)
        axes[0][0].set_ylabel(figures.LOSS)
        _differences(axes[0][-1], differences, schemes, recipes)
        found = [ax.get_legend_handles_labels() for ax in (axes[0][0], axes[0][-1])]
        handles, labels = (a + b for a, b in zip(*found, strict=True))
        figure.legend(handles, labels, ncols=4, loc="outside upper center")
    return figure


def _smooth(curve: np.ndarray, window: int = 5) -> np.ndarray:
    """Mean over ``window`` kept points, fewer at the ends."""
    kernel = np.ones(min(window, len(curve)))
    return np.convolve(curve, kernel, "same") / np.convolve(np.ones(len(curve)), kernel, "same")


def _differences(ax: Axes, table: pd.DataFrame, schemes: list[str], recipes: list[str]) -> None:
    shown = [r for r in recipes if r != "plain"]
    ax.axvspan(-DIFFERENCE, DIFFERENCE, color="#999999", alpha=0.25, lw=0)
    for i, scheme in enumerate(schemes):
        for row in table[table["scheme"] == scheme].to_dict("records"):
            if row["recipe"] not in shown:
                continue
            y = shown.index(row["recipe"]) + 0.3 * (i - (len(schemes) - 1) / 2)
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
    ax.set_yticks(range(len(shown)), [RECIPES[r][2] for r in shown])
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.set_xlabel("loss − float32's (nats/token)")
    for scheme in schemes:
        ax.plot([], [], figures.MARKERS[scheme], color=figures.COLOURS[scheme], label=NAMES[scheme])
