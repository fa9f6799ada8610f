"""Figures of the study ``stability``: tables drawn, nothing fitted.

Defences have the colours of Okabe and Ito's colour-blind-safe set and a marker each; schemes have
theirs of ``figures``. Bars are 95 % intervals over seeds unless a docstring says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup import laws
from umup.lab.absent import NotMeasured, otherwise, required
from umup.lab.figures import COLOURS, LOSS, MARKERS, OTHER, drawn, style, subplots
from umup.lab.records import Results

from . import results as tables
from .results import DEFENCES, NAMES, SCHEMES

LOOKS: dict[str, tuple[str, str]] = {
    "none": ("#000000", "o"), "z_loss": ("#E69F00", "s"), "qk_norm": ("#0072B2", "D"),
    "both": ("#009E73", "^"), "clip": ("#CC79A7", "v"), "no_warmup": ("#D55E00", "X"),
    "depth_init": ("#56B4E9", "P"),
}  # fmt: skip
ROOM = 1.4  # nats above the lowest point that a panel shows
DRILLS = {"poison": "poisoned batches", "jump": "η jump", "nan": "update not a number"}
OUTCOMES = {"clean": ("clean", OTHER, ":"), "alone": ("left alone", "#D55E00", "-"),
            "healed": ("healed", "#0072B2", "-")}  # fmt: skip


_arm = otherwise(lambda missing: None)(tables.arm)
"""An arm, or None where it is not measured."""


def _line(ax: Axes, table: pd.DataFrame, name: str, label: str, look: tuple, **more: Any) -> None:
    """Means over seeds with their intervals against log₂ η; geometric unless of losses."""
    forth, back = (float, float) if name == "loss" else (math.log2, lambda y: 2.0**y)
    groups = table.dropna(subset=[name]).groupby("x")[name]
    bars = {x: laws.mean_interval([forth(y) for y in group]) for x, group in groups}
    lo, hi = (
        np.array(
            [back(getattr(b, end)) if math.isfinite(b.hi) else math.nan for b in bars.values()]
        )
        for end in ("lo", "hi")
    )
    options = {"ms": 4.5, "lw": 1.5, "elinewidth": 0.8, "capsize": 2, "ls": "-"} | more
    value = np.array([back(b.value) for b in bars.values()])
    ax.errorbar(list(bars), value, yerr=[value - lo, hi - value], color=look[0],
                marker=look[1], label=label, **options)  # fmt: skip


def _eta_axis(ax: Axes) -> None:
    ax.set_xlabel("log₂ η")
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))


def _window(axes: Sequence[Axes], shown: Sequence[pd.DataFrame]) -> None:
    """One range of losses for all panels, from just below the lowest mean."""
    means = [table.groupby("x")["loss"].mean() for table in shown]
    low, high = min(m.min() for m in means), max(m.max() for m in means)
    for ax in axes:
        ax.set_ylim(low - 0.06 * ROOM, min(low + ROOM, high + 0.06 * ROOM))


@drawn
def curves(results: Results) -> Figure:
    """Loss against η, a panel a scheme and a line a defence; what lies far above is cut off.

    A run that diverged counts as a uniform guess. QK-norm at its default bound, √d.
    """
    schemes = [s for s in SCHEMES if _arm(results, s, "none") is not None]
    if not schemes:
        raise NotMeasured("no finished sweeps over η")
    shown = []
    with style():
        figure, axes = subplots(max(2.4 * len(schemes), 4), 4.0, len(schemes), sharey=True)
        for ax, scheme in zip(axes, schemes, strict=True):
            for defence, title in DEFENCES.items():
                table = _arm(results, scheme, defence)
                if table is not None:
                    _line(ax, table, "loss", title, LOOKS[defence])
                    shown.append(table)
            ax.set_title(NAMES[scheme], fontweight="bold")
            _eta_axis(ax)
        _window(axes, shown)
        axes[0].set_ylabel(LOSS)
        figure.legend(*axes[-1].get_legend_handles_labels(), ncols=3, loc="outside upper center")
    return figure


@drawn
def logits(results: Results) -> Figure:
    """Logits at the end of training against η, in octaves above the lowest η of the sweep.

    Left, the largest attention logit, without (full) and with QK-norm (dashed, open; dotted: its
    bound). Right, the RMS of the output logits, without (full) and with z-loss (dashed, open).
    """
    table = tables.curves(results.runs)
    required(table[table["logit_max"].notna()], "no probed runs")
    with style():
        figure, (left, right) = subplots(7, 4.0, 2)
        for scheme in SCHEMES:
            look = (COLOURS[scheme], MARKERS[scheme])
            for ax, name, defence in (
                (left, "logit_max", "qk_norm"), (right, "out_rms", "z_loss"),
            ):  # fmt: skip
                for with_it, more in (("none", {}), (defence, {"ls": "--", "mfc": "white"})):
                    arm = _arm(results, scheme, with_it)
                    if arm is not None:
                        start = _arm(results, scheme, "none")
                        start = arm if start is None else start
                        shifted = arm.assign(x=arm["x"] - tables.best(start))
                        label = NAMES[scheme] if with_it == "none" else "_"
                        _line(ax, shifted, name, label, look, **more)
        left.set_yscale("log", base=2)
        caps = table[table["defence"] == "qk_norm"]["cap"]
        if len(caps):
            left.axhline(caps.median(), color=OTHER, ls=":", lw=1.3)
            left.annotate("bound with QK-norm, √d", (0.98, 0.7 * caps.median()), ha="right",
                          va="top", xycoords=("axes fraction", "data"), fontsize=9,
                          color=OTHER)  # fmt: skip
            left.set_ylim(bottom=caps.median() / 3)
        for ax, text in ((left, "largest attention logit"), (right, "RMS of the output logits")):
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            ax.set_xlabel("octaves above the best η")
            ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
            ax.set_ylabel(text)
        left.set_title("dashed: QK-norm")
        right.set_title("dashed: z-loss")
        right.legend(loc="best")
    return figure


@drawn
def gains(results: Results) -> Figure:
    """What defences give and cost, a row a defence and a marker a scheme.

    Left, octaves by which the largest stable η rises; right, the loss at the best η minus that
    without. Pale bands: half an octave, 0.01 nats.
    """
    rows = [d for d in DEFENCES if d != "none"]
    panels = ((tables.stable_gain, 0.5, "largest stable η (octaves)"),
              (tables.price, 0.01, "loss at the best η (nats/token)"))  # fmt: skip
    any_measured = False
    with style():
        figure, axes = subplots(7, 3.9, 2, sharey=True)
        for ax, (quantity, band, text) in zip(axes, panels, strict=True):
            ax.axvspan(-band, band, color="#999999", alpha=0.2, lw=0)
            ax.axvline(0, color=OTHER, lw=1)
            values = []
            for i, scheme in enumerate(SCHEMES):
                label = NAMES[scheme]
                for row, defence in enumerate(rows):
                    try:
                        got = quantity(results, scheme, defence)
                    except NotMeasured:
                        continue
                    any_measured = True
                    reach = [[got.value - got.lo], [got.hi - got.value]]
                    error = reach if np.isfinite(reach).all() else None
                    ax.errorbar(got.value, row + 0.22 * (i - 1), xerr=error, fmt=MARKERS[scheme],
                                color=COLOURS[scheme], ms=5.5, capsize=2.5, lw=1.4,
                                label=label)  # fmt: skip
                    values.append(got.value)
                    label = "_"
            if values:
                reach = 1.6 * max(map(abs, values)) + band
                ax.set_xlim(max(-reach, min(values) - 0.5 * reach), reach)
            ax.set_xlabel(text)
        axes[0].set_yticks(range(len(rows)), [DEFENCES[d].replace(" and ", "\nand ") for d in rows])
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, ncols=3, loc="outside upper center")
    if not any_measured:
        raise NotMeasured("no finished sweeps over η")
    return figure


@drawn
def caps(results: Results) -> Figure:
    """u-μP's loss over η at several α_attn, without QK-norm (left) and with it (right)."""
    table = tables.curves(results.runs)
    table = table[(table["scheme"] == "umup") & (table["part"] == "main")]
    values = sorted(table["cap"].unique())
    palette = dict(zip(values, ["#56B4E9", "#0072B2", "#D55E00", "#009E73"] * 3, strict=False))
    shown = []
    with style():
        figure, axes = subplots(7, 3.9, 2, sharey=True)
        for ax, defence in zip(axes, ("none", "qk_norm"), strict=True):
            for cap, marker in zip(values, "osD^" * 3, strict=False):
                at = _arm(results, "umup", defence, cap=cap)
                if at is not None:
                    _line(ax, at, "loss", f"{cap:g}", (palette[cap], marker))
                    shown.append(at)
            ax.set_title({"none": "without QK-norm", "qk_norm": "with QK-norm"}[defence])
            _eta_axis(ax)
        if not shown:
            raise NotMeasured("no finished sweeps of u-μP")
        _window(axes, shown)
        axes[0].set_ylabel(LOSS)
        handles = axes[1].get_legend_handles_labels()
        figure.legend(*handles, title="α_attn", ncols=4, loc="outside upper center")
    return figure


@drawn
def deep(results: Results) -> Figure:
    """Loss over η of the deeper model, with (dashed, open) and without depth-scaled init."""
    shown = []
    with style():
        figure, (ax,) = subplots(7, 3.8)
        for scheme in SCHEMES:
            look = (COLOURS[scheme], MARKERS[scheme])
            plain = _arm(results, scheme, "none", "deep")
            for defence, more in (("none", {}), ("depth_init", {"ls": "--", "mfc": "white"})):
                arm = _arm(results, scheme, defence, "deep")
                if arm is None or plain is None:
                    continue
                shifted = arm.assign(x=arm["x"] - tables.best(plain))
                text = NAMES[scheme] + (", depth-scaled init" if more else "")
                _line(ax, shifted, "loss", text, look, **more)
                shown.append(shifted)
        if not shown:
            raise NotMeasured("no finished sweeps of the deeper model")
        _window([ax], shown)
        ax.set_xlabel("octaves above the best η without")
        ax.set_ylabel(LOSS)
        ax.legend(loc="best")
    return figure


@drawn
def clips(results: Results) -> Figure:
    """Clipping by the unscaled norm and by the norm of the gradients as held.

    Left, how far μP and its intermediate form, one function, part under either: largest over
    seeds, step by step. Right, the share of the steps in which a clip is active, at the best η
    (filled) and far above it (open); bars are the range of the seeds.
    """
    table = required(results.table("clipped"), "no clipped runs")
    looks = {"unscaled": ("#0072B2", "D"), "held": ("#D55E00", "X")}
    schemes = [s for s in SCHEMES if s in set(table["scheme"])]
    with style():
        figure, (left, right) = subplots(7, 3.9, 2)
        for norm, (colour, marker) in looks.items():
            at = table[(table["norm"] == norm) & (table["octaves"] == 0)].sort_values("seed")
            sides = [at[at["scheme"] == s]["losses"].tolist() for s in ("mup", "mup_intermediate")]
            if sides[0] and len(sides[0]) == len(sides[1]):
                gap = np.abs(np.subtract(*sides)).max(axis=0) + 1e-9
                left.plot(np.arange(len(gap)), gap, color=colour, lw=1.2, label=f"{norm} norm")
            for i, scheme in enumerate(schemes):
                for octaves, group in table[
                    (table["norm"] == norm) & (table["scheme"] == scheme)
                ].groupby("octaves"):
                    share = group["share"]
                    reach = [[share.mean() - share.min()], [share.max() - share.mean()]]
                    right.errorbar(
                        i + (0.1 if norm == "held" else -0.1), share.mean(), marker=marker,
                        yerr=np.maximum(reach, 0), color=colour, capsize=2.5, ms=6.5, ls="none",
                        mfc=colour if octaves == 0 else "white",
                    )  # fmt: skip
        left.axhline(0.01, color=OTHER, ls=":", lw=1.3)
        left.set_yscale("log")
        left.set_xlabel("training step")
        left.set_ylabel("difference in loss (nats/token)")
        left.set_title("μP − intermediate μP")
        if left.get_legend_handles_labels()[0]:
            left.legend(loc="best")
        right.set_xticks(range(len(schemes)), [NAMES[s] for s in schemes])
        right.set_xlim(-0.5, max(len(schemes), 1) - 0.5)
        right.set_ylim(-0.05, 1.08)
        right.set_ylabel("share of the steps clipped")
        right.set_xlabel("scheme")
    return figure


@drawn
def drills(results: Results, scheme: str = "umup") -> Figure:
    """Loss along a run with a planted spike, a panel a kind, one seed; those of all in the table.

    The vertical line is where the spike is planted; losses far above the first are cut off.
    """
    table = tables.drills(results)
    table = table[(table["scheme"] == scheme) & (table["seed"] == table["seed"].min())]
    kinds = [k for k in DRILLS if k in set(table["kind"])]
    if not kinds:
        raise NotMeasured(f"no drills of {NAMES[scheme]} with a disturbance")
    with style():
        figure, axes = subplots(max(2.4 * len(kinds), 4), 3.8, len(kinds), sharey=True)
        top = 0.0
        for ax, kind in zip(axes, kinds, strict=True):
            rows = {
                "alone": table[(table["kind"] == kind) & ~table["recover"].astype(bool)],
                "healed": table[(table["kind"] == kind) & table["recover"].astype(bool)],
                "clean": table[table["kind"] == "clean"],
            }
            for outcome, at in rows.items():
                if at.empty:
                    continue
                label, colour, dash = OUTCOMES[outcome]
                curve = np.asarray(at["curve"].iloc[0], float)
                ax.plot(np.arange(len(curve)), curve, dash, color=colour, lw=1.4, label=label)
                if outcome == "clean":
                    top = max(top, 1.6 * float(np.nanmax(curve)))
                if not np.isfinite(curve[-1]):
                    bad = int(np.isfinite(curve).argmin())
                    ax.plot(bad, curve[bad - 1], "x", color=colour, ms=9, mew=2, zorder=6)
            ax.axvline(rows["clean"]["at"].iloc[0], color=OTHER, lw=0.9, alpha=0.5, zorder=1)
            ax.set_title(DRILLS[kind])
            ax.set_xlabel("training step")
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[0].set_ylim(1.0, top)
        axes[0].set_ylabel(LOSS)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, ncols=3, loc="outside upper center")
    return figure
