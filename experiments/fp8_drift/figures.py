"""Figures of the study `fp8_drift`, laid out like those of the u-μP paper that they answer.

Every function takes ``records.Results`` and returns a new figure; a lack of records is said in it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from umup.lab import figures, fp8_figures
from umup.lab.fp8_figures import (
    COLOURS,
    FORMATS,
    KIND_NAMES,
    MARKERS,
    grid,
    linear_legend,
    log2_axis,
)
from umup.lab.ranges import KINDS, LARGEST, MIN_NORMAL, SMALLEST
from umup.lab.records import Results

from . import results as tables
from .results import NAMES

RECIPES = {
    "plain": ("#000000", "o", "float32"), "bf16": ("#999999", "s", "bf16"),
    "fp8_seed": ("#D55E00", "D", "fp8_seed"), "fp8_seed, precise": ("#E69F00", "d", "… precise"),
    "fp8_e5m2_grad": ("#CC79A7", "^", "fp8_e5m2_grad"),
    "fp8_current": ("#0072B2", "v", "fp8_current"),
    "fp8_delayed": ("#56B4E9", "<", "fp8_delayed"),
}  # fmt: skip
DIFFERENCE = 0.01  # nats, the claims' bound


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
        linear_legend(figure)
    return figure


def _ranges_along_x(ax: Axes) -> None:
    for y, (fmt, (_, colour)) in zip((3, 4), FORMATS.items(), strict=True):
        small, normal, large = (np.log2(d[fmt]) for d in (SMALLEST, MIN_NORMAL, LARGEST))
        ax.barh(y, large - normal, 0.5, normal, color=colour, alpha=0.8)
        ax.barh(y, normal - small, 0.5, small, color=colour, alpha=0.35)
    for value in (MIN_NORMAL["e4m3"], LARGEST["e4m3"]):
        ax.axvline(np.log2(value), color=FORMATS["e4m3"][1], lw=1, ls="--")


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
def over_training(results: Results) -> Figure:
    """RMS over training, see ``fp8_figures.over_training``."""
    return fp8_figures.over_training(tables.width_of(tables.drift(results)), tables.SCHEMES)


@figures.drawn
def losses(results: Results) -> Figure:
    """Training curves of the recipes, a panel a scheme, and final losses against float32's."""
    return fp8_figures.losses(
        tables.width_of(tables.arms(results)), tables.width_of(tables.loss_differences(results)),
        "recipe", RECIPES, DIFFERENCE, tables.SCHEMES,
    )  # fmt: skip
