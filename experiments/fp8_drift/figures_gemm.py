"""The figure of the study `fp8_drift` that shows speeds; it needs a device with FP8 units."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from umup.lab import figures
from umup.lab.absent import NotMeasured
from umup.lab.records import Results

from .figures import RECIPES

KINDS = {
    "bf16": ("#999999", "s", "bf16"), "fp8": ("#D55E00", "D", "FP8, operands cast before"),
    "fp8_cast": ("#CC79A7", "^", "FP8 with the cast"),
    "fp8_current": ("#0072B2", "v", "FP8 with cast and amax"),
}  # fmt: skip


@figures.drawn
def speed(results: Results) -> Figure:
    """Left: TFLOP/s of a square product against its size. Right: step time relative to bf16.

    Medians, bars the range of the timings; hollow marks and dashed lines: precise accumulation.
    """
    gemms, steps = results.table("gemm"), results.table("step")
    if gemms.empty and steps.empty:
        raise NotMeasured("speeds, which need a device with FP8 units")
    with figures.style():
        figure, (left, right) = figures.subplots(7.6, 3.9, 2)
        _gemms(left, gemms)
        _steps(right, steps)
        for ax in (left, right):
            if ax.get_legend_handles_labels()[0]:
                ax.legend(loc="best", fontsize=8)
    return figure


def _gemms(ax, table: pd.DataFrame) -> None:
    for (kind, accumulation), group in (
        table.groupby(["kind", "accumulation"]) if len(table) else ()
    ):
        colour, marker, label = KINDS[kind]
        own, precise = group.sort_values("size"), accumulation == "precise"
        line = f"{marker}{'--' if precise else '-'}"
        error = np.abs(own[["tflops_lo", "tflops_hi"]].to_numpy().T - own["tflops"].to_numpy())
        ax.errorbar(own["size"], own["tflops"], yerr=error, fmt=line, color=colour,
                    mfc="white" if precise else colour, ms=5, capsize=2, lw=1.2,
                    label="_" if precise else label)  # fmt: skip
    ax.set_xscale("log", base=2)
    if len(table):
        sizes = sorted(table["size"].unique())
        ax.set_xticks(sizes, [str(s) for s in sizes])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_xlabel("size of the square product")
    ax.set_ylabel("TFLOP/s")


def _steps(ax, table: pd.DataFrame) -> None:
    if len(table):
        base = table[table["recipe"] == "bf16"].set_index("d_model")["seconds"]
        for (recipe, accumulation), group in table.groupby(["recipe", "accumulation"]):
            own = group[group["d_model"].isin(base.index)].sort_values("d_model")
            colour, marker, label = RECIPES[recipe]
            precise = accumulation == "precise"
            scale = base.loc[own["d_model"]].to_numpy()
            value = scale / own["seconds"].to_numpy()
            ends = scale / own[["seconds_hi", "seconds_lo"]].to_numpy().T
            ax.errorbar(own["d_model"], value, yerr=np.abs(ends - value), color=colour, ms=5,
                        fmt=f"{marker}{'--' if precise else '-'}", capsize=2, lw=1.2,
                        mfc="white" if precise else colour,
                        label="_" if precise else label)  # fmt: skip
        widths = sorted(table["d_model"].unique())
        ax.set_xscale("log", base=2)
        ax.set_xticks(widths, [str(w) for w in widths])
        ax.minorticks_off()
    ax.axhline(1.0, color="#777777", lw=1, ls=":")
    ax.set_xlabel("width d_model")
    ax.set_ylabel("speed of a training step / bf16's")
