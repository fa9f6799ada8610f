"""Figures of the study ``planning``: predicted beside compiled or measured, nothing fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from umup.lab import claims, plots
from umup.lab.absent import NotMeasured
from umup.lab.figures import drawn, style, subplots
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.mesh import AXES

from . import results as tables

LARGE = ("7B", "70B")
REMAT = {"none": "o", "dots": "s", "full": "^"}
DEVICES = {
    1: Look(plots.VERMILION, "o", "1 device"),
    16: Look(plots.ORANGE, "o", "2 to 16"),
    64: Look(plots.GREEN, "o", "64"),
    512: Look(plots.BLUE, "o", "512"),
}
"""Up to so many devices."""
AXIS = {
    "fsdp": Look(plots.BLUE, "o", "fsdp"),
    "tensor": Look(plots.VERMILION, "s", "tensor"),
    "data": Look(plots.GREEN, "^", "data"),
}
PARTS = {
    "state": ("state", plots.BLUE),
    "copies": ("copied moments", "#8FB8DE"),
    "gradients": ("gradients", plots.GREEN),
    "kept": ("kept for the backward pass", plots.ORANGE),
    "workspace": ("workspace", plots.YELLOW),
}
TEMPORARIES = ("temporaries, compiled", "#999999")
WIDTHS = (plots.ORANGE, plots.GREEN, plots.BLUE, plots.PURPLE, plots.VERMILION)
_CLAIMS = {"memory": "memory", "collectives": "collectives-fsdp", "time": "time-64"}
BOUNDS = {what: claims.bound("planning", claim) for what, claim in _CLAIMS.items()}
"""Of the claims, %."""


def _square(ax: Axes, low: float, high: float, percent: float) -> None:
    """Equal log axes with the line of right predictions and the band of the claims."""
    span = np.array([low / 1.6, high * 1.6])
    ends = (span * (1 - percent / 100), span * (1 + percent / 100))
    ax.fill_between(span, *ends, color=plots.TEXT, alpha=0.18, lw=0)
    ax.plot(span, span, color=plots.TEXT, lw=1)
    ax.set(xscale="log", yscale="log", xlim=span, ylim=span)
    plots.decades(ax.xaxis)
    plots.decades(ax.yaxis)


def _group(devices: int) -> Look:
    return next(look for most, look in DEVICES.items() if devices <= most)


@drawn
def memory(results: Results, what: str = "compiled") -> Figure:
    """Predicted against compiled memory per device, and the error of each, in the same order.

    Colours are numbers of devices, markers what is computed again, the band the bound of the
    claims.
    """
    found = tables.table(results, what)
    sizes = found[["memory", "memory_predicted"]] / tables.GIB
    with style():
        figure, (left, right) = subplots(7, 4.3, 2)
        _square(left, sizes.to_numpy().min(), sizes.to_numpy().max(), BOUNDS["memory"])
        for row in found.to_dict("records"):
            look = _group(row["devices"])._replace(marker=REMAT[row["remat"]])
            mark: dict[str, Any] = {"marker": look.marker, "color": look.colour, "ls": ""}
            mark |= {"ms": 6, "mec": "white", "mew": 0.5}
            size = row["memory"] / tables.GIB
            left.plot(size, row["memory_predicted"] / tables.GIB, **mark)
            right.plot(size, 100 * (row["memory_predicted"] / row["memory"] - 1), **mark)
        left.set(xlabel="compiled, GiB per device", ylabel="predicted, GiB per device")
        bound = BOUNDS["memory"]
        plots.band(right, -bound, bound)
        right.axhline(0, color=plots.TEXT, lw=1)
        right.set(xscale="log", xlim=left.get_xlim())
        high = max(1.15 * bound, np.abs(right.get_ylim()).max())
        right.set_ylim(-high, high)
        plots.decades(right.xaxis)
        right.set(xlabel="compiled, GiB per device", ylabel="error of the prediction (%)")
        plots.legend(figure, _keys(found), columns=4)
    return figure


def _keys(found: pd.DataFrame) -> list[Line2D]:
    groups = [_group(devices) for devices in sorted(found["devices"].unique())]
    policies = [name for name in REMAT if name in set(found["remat"])]
    looks = [Look(plots.TEXT, REMAT[name], f"remat {name}") for name in policies]
    return [plots.key(look) for look in (*dict.fromkeys(groups), *looks)]


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
            at = found[found["name"] == name]
            _bars(ax, at.sort_values(["devices", "memory"], ascending=[True, False]))
            ax.set_title(name, fontweight="bold")
        axes[0].set_ylabel("GiB per device")
        plots.legend(figure, axes[0], columns=3)
    return figure


def _bars(ax: Axes, at: pd.DataFrame) -> None:
    place = np.arange(len(at))
    gib = at.select_dtypes("number") / tables.GIB
    predicted = [(gib[f"{part}_of"], colour, title) for part, (title, colour) in PARTS.items()]
    plots.stacked(ax.bar, place - 0.2, predicted, 0.36)
    title, colour = TEMPORARIES
    state = (gib["state"], PARTS["state"][1], "_")
    rest = (gib["memory"] - gib["state"], colour, title)
    plots.stacked(ax.bar, place + 0.2, (state, rest), 0.36)
    layouts = zip(at["mesh"], at["devices"], strict=True)
    ax.set_xticks(place, [f"{mesh}\n({n})" for mesh, n in layouts])
    ax.set_xlabel("data × fsdp × tensor (devices)")
    ax.grid(visible=False, axis="x")


@drawn
def collectives(results: Results) -> Figure:
    """Bytes of collectives per device and step by mesh axis: predicted against compiled (left), and
    compiled ones of 70B by layout (right)."""
    found = tables.table(results)
    values = found[[*AXES, *(f"{axis}_predicted" for axis in AXES)]].to_numpy() / tables.GIB
    values = values[values > 0]
    if not len(values):
        raise NotMeasured("no collectives")
    with style():
        figure, (left, right) = subplots(7, 4.1, 2)
        _square(left, values.min(), values.max(), BOUNDS["collectives"])
        for axis, look in AXIS.items():
            at = found[found[axis] > 0][[axis, f"{axis}_predicted"]] / tables.GIB
            mark = {"color": look.colour, "ms": 6, "mec": "white", "mew": 0.5}
            left.plot(*at.to_numpy().T, look.marker, label=axis, **mark)
        unit = "GiB per device and step"
        left.set(xlabel=f"compiled, {unit}", ylabel=f"predicted, {unit}")
        _by_axis(right, found[found["name"] == LARGE[-1]])
        plots.legend(figure, left)
    return figure


def _by_axis(ax: Axes, found: pd.DataFrame) -> None:
    if found.empty:
        ax.set_axis_off()
        return
    found = found.sort_values(["recipe", "devices", "mesh"], ascending=False)
    parts = [(found[a] / tables.GIB, look.colour, look.title) for a, look in AXIS.items()]
    plots.stacked(ax.barh, np.arange(len(found)), parts)
    titles = {"plain": "bf16", "fp8_seed": "FP8"}
    names = [f"{row.mesh}, {titles.get(row.recipe, row.recipe)}" for row in found.itertuples()]
    ax.set_yticks(range(len(found)), names)
    ax.set_xlabel("70B: GiB per device and step")
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
            ends = 1e3 * np.array([row["seconds"], row["seconds_lo"], row["seconds_hi"]])
            look = Look(colours[row["width"]], looks[row["side"]])
            fill = "white" if row["calibrated"] else look.colour
            options = {"ms": 7, "lw": 1.5, "capsize": 2, "mfc": fill}
            plots.points(ax, 1e3 * row["predicted"], ends, look, along="x", **options)
        plots.decades(ax.xaxis, (1, 2, 5))
        plots.decades(ax.yaxis, (1, 2, 5))
        ax.set(xlabel="measured (ms)", ylabel="predicted (ms)")
        titles = dict(zip(found["side"], found["title"], strict=True))
        sides = [Look(plots.TEXT, looks[side], titles[side]) for side in looks]
        widths = [Look(colour, "o", f"width {w}") for w, colour in colours.items()]
        keys = [plots.key(look) for look in (*sides, *widths)]
        plots.legend(figure, keys, columns=1, loc="outside right center")
    return figure
