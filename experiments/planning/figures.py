"""Figures of the study ``planning``: predicted beside compiled or measured, nothing fitted."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from umup.lab.absent import NotMeasured
from umup.lab.figures import OTHER, drawn, style, subplots
from umup.lab.records import Results
from umup.mesh import AXES

from . import results as tables

LARGE = ("7B", "70B")
REMAT = {"none": "o", "dots": "s", "full": "^"}
DEVICES = ((1, "1 device", "#D55E00"), (16, "2 to 16", "#E69F00"), (64, "64", "#009E73"),
           (512, "512", "#0072B2"))  # fmt: skip
AXIS = {"fsdp": ("#0072B2", "o"), "tensor": ("#D55E00", "s"), "data": ("#009E73", "^")}
PARTS = {
    "state": ("state", "#0072B2"), "copies": ("copied moments", "#8FB8DE"),
    "gradients": ("gradients", "#009E73"), "kept": ("kept for the way back", "#E69F00"),
    "workspace": ("workspace", "#F0E442"),
}  # fmt: skip
TEMPORARIES = ("temporaries, compiled", "#999999")
WIDTHS = ("#E69F00", "#009E73", "#0072B2", "#CC79A7", "#D55E00")
BOUNDS = {"memory": 10, "collectives": 15, "time": 25}
"""Of the claims, %."""


def _square(ax: Axes, low: float, high: float, percent: float) -> None:
    """Equal log axes with the line of right predictions and the band of the claims."""
    span = np.array([low / 1.6, high * 1.6])
    ax.fill_between(span, span * (1 - percent / 100), span * (1 + percent / 100), color=OTHER,
                    alpha=0.18, lw=0)  # fmt: skip
    ax.plot(span, span, color=OTHER, lw=1)
    ax.set(xscale="log", yscale="log", xlim=span, ylim=span)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(10))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def _group(devices: int) -> tuple[str, str]:
    return next((title, colour) for most, title, colour in DEVICES if devices <= most)


@drawn
def memory(results: Results, what: str = "compiled") -> Figure:
    """Predicted against compiled memory a device, and the error of each, in the same order.

    Colours are numbers of devices, markers what is computed again, the band the bound of the
    claims.
    """
    found = tables.table(results, what)
    sizes = found[["memory", "memory_predicted"]] / tables.GIB
    with style():
        figure, (left, right) = subplots(7, 4.3, 2)
        _square(left, sizes.to_numpy().min(), sizes.to_numpy().max(), BOUNDS["memory"])
        for row in found.to_dict("records"):
            look = {"marker": REMAT[row["remat"]], "color": _group(row["devices"])[1], "ms": 6,
                    "mec": "white", "mew": 0.5, "ls": ""}  # fmt: skip
            size = row["memory"] / tables.GIB
            left.plot(size, row["memory_predicted"] / tables.GIB, **look)
            right.plot(size, 100 * (row["memory_predicted"] / row["memory"] - 1), **look)
        left.set(xlabel="compiled, GiB a device", ylabel="predicted, GiB a device")
        bound = BOUNDS["memory"]
        right.axhspan(-bound, bound, color=OTHER, alpha=0.18, lw=0)
        right.axhline(0, color=OTHER, lw=1)
        right.set(xscale="log", xlim=left.get_xlim())
        right.set_ylim(
            *(np.array([-1, 1]) * max(1.15 * bound, abs(np.array(right.get_ylim())).max()))
        )
        right.xaxis.set_major_locator(LogLocator(10))
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_locator(NullLocator())
        right.set(xlabel="compiled, GiB a device", ylabel="error of the prediction (%)")
        figure.legend(handles=_keys(found), ncols=4, loc="outside upper center")
    return figure


def _keys(found: pd.DataFrame) -> list[Line2D]:
    groups = [_group(devices) for devices in sorted(found["devices"].unique())]
    keys = [Line2D([], [], marker="o", ls="", color=colour, label=title)
            for title, colour in dict.fromkeys(groups)]  # fmt: skip
    return keys + [
        Line2D([], [], marker=marker, ls="", color=OTHER, label=f"remat {name}")
        for name, marker in REMAT.items() if name in set(found["remat"])
    ]  # fmt: skip


@drawn
def parts(results: Results) -> Figure:
    """Where the bytes of 7B and 70B go: predicted (left bars) beside compiled, by layout, GiB.

    In bfloat16. The compiler says what is state and what is not.
    """
    found = tables.table(results, only=LARGE)
    found = found[found["recipe"] == "plain"]
    with style():
        figure, axes = subplots(7, 4.3, len(LARGE))
        for ax, name in zip(axes, LARGE, strict=True):
            at = found[found["name"] == name].sort_values(
                ["devices", "memory"], ascending=[True, False]
            )
            _bars(ax, at)
            ax.set_title(name, fontweight="bold")
        axes[0].set_ylabel("GiB a device")
        handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), ncols=3, loc="outside upper center")
    return figure


def _bars(ax: Axes, at: pd.DataFrame) -> None:
    place = np.arange(len(at))
    start = np.zeros(len(at))
    for part, (title, colour) in PARTS.items():
        high = at[f"{part}_of"].to_numpy() / tables.GIB
        ax.bar(place - 0.2, high, 0.36, bottom=start, color=colour, ec="white", lw=0.5, label=title)
        start += high
    state = at["state"].to_numpy() / tables.GIB
    rest = at["memory"].to_numpy() / tables.GIB - state
    ax.bar(place + 0.2, state, 0.36, color=PARTS["state"][1], ec="white", lw=0.5)
    ax.bar(place + 0.2, rest, 0.36, bottom=state, color=TEMPORARIES[1], ec="white", lw=0.5,
           label=TEMPORARIES[0])  # fmt: skip
    ax.set_xticks(
        place, [f"{mesh}\n({n})" for mesh, n in zip(at["mesh"], at["devices"], strict=True)]
    )
    ax.set_xlabel("data × fsdp × tensor (devices)")
    ax.grid(visible=False, axis="x")


@drawn
def collectives(results: Results) -> Figure:
    """Bytes of collectives a device and step by mesh axis: predicted against compiled (left), and
    compiled ones of 70B by layout (right)."""
    found = tables.table(results)
    values = found[[*AXES, *(f"{axis}_predicted" for axis in AXES)]].to_numpy() / tables.GIB
    values = values[values > 0]
    if not len(values):
        raise NotMeasured("no collectives")
    with style():
        figure, (left, right) = subplots(7, 4.1, 2)
        _square(left, values.min(), values.max(), BOUNDS["collectives"])
        for axis, (colour, marker) in AXIS.items():
            at = found[found[axis] > 0]
            left.plot(at[axis] / tables.GIB, at[f"{axis}_predicted"] / tables.GIB, marker, ms=6,
                      color=colour, mec="white", mew=0.5, label=axis)  # fmt: skip
        left.set(
            xlabel="compiled, GiB a device and step", ylabel="predicted, GiB a device and step"
        )
        _by_axis(right, found[found["name"] == LARGE[-1]])
        figure.legend(*left.get_legend_handles_labels(), ncols=3, loc="outside upper center")
    return figure


def _by_axis(ax: Axes, found: pd.DataFrame) -> None:
    if found.empty:
        ax.set_axis_off()
        return
    found = found.sort_values(["recipe", "devices", "mesh"], ascending=False)
    start = np.zeros(len(found))
    for axis, (colour, _) in AXIS.items():
        long = found[axis].to_numpy() / tables.GIB
        ax.barh(range(len(found)), long, left=start, color=colour, ec="white", lw=0.5)
        start += long
    titles = {"plain": "bf16", "fp8_seed": "FP8"}
    names = [f"{row.mesh}, {titles.get(row.recipe, row.recipe)}" for row in found.itertuples()]
    ax.set_yticks(range(len(found)), names)
    ax.set_xlabel("70B: GiB a device and step")
    ax.grid(visible=False, axis="y")


@drawn
def times(results: Results) -> Figure:
    """Predicted against measured time of a step, with 95 % intervals of the median.

    Colours are widths; open markers are steps that the machine's efficiencies were taken from.
    """
    found = tables.timed(results)
    looks = dict(zip(found["side"].unique(), "os^vDPX*", strict=False))
    colours = dict(zip(sorted(found["width"].unique()), WIDTHS, strict=False))
    with style():
        figure, (ax,) = subplots(7, 4.6)
        both = 1e3 * found[["seconds", "predicted"]].to_numpy()
        _square(ax, both.min(), both.max(), BOUNDS["time"])
        for row in found.to_dict("records"):
            reach = [[row["seconds"] - row["seconds_lo"]], [row["seconds_hi"] - row["seconds"]]]
            colour = colours[row["width"]]
            ax.errorbar(1e3 * row["seconds"], 1e3 * row["predicted"], xerr=1e3 * np.array(reach),
                        marker=looks[row["side"]], color=colour, ms=7, capsize=2, mec=colour,
                        mfc="white" if row["calibrated"] else colour)  # fmt: skip
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(10, (1, 2, 5)))
        ax.set(xlabel="measured (ms)", ylabel="predicted (ms)")
        titles = dict(zip(found["side"], found["title"], strict=True))
        keys = [Line2D([], [], marker=looks[side], ls="", color=OTHER, label=titles[side])
                for side in looks]  # fmt: skip
        keys += [Line2D([], [], marker="o", ls="", color=c, label=f"width {w}")
                 for w, c in colours.items()]  # fmt: skip
        figure.legend(handles=keys, ncols=1, loc="outside right center")
    return figure
