"""Figures of the study ``stability``: tables drawn, nothing fitted.

Defences have the colours of Okabe and Ito's colour-blind-safe set and a marker each; schemes have
theirs of ``figures``. Bars are 95 % intervals over seeds unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup.lab import claims, folders, plots
from umup.lab.absent import NotMeasured, otherwise, required
from umup.lab.figures import LOSS, TRAINING_LOSS, drawn, style, subplots
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.laws import Interval, mean_interval

from . import results as tables
from .results import DEFENCES, NAMES, SCHEMES

LOOKS = {
    "none": Look(plots.BLACK, "o", DEFENCES["none"]),
    "z_loss": Look(plots.ORANGE, "s", DEFENCES["z_loss"]),
    "qk_norm": Look(plots.BLUE, "D", DEFENCES["qk_norm"]),
    "both": Look(plots.GREEN, "^", DEFENCES["both"]),
    "clip": Look(plots.PURPLE, "v", DEFENCES["clip"]),
    "no_warmup": Look(plots.VERMILION, "X", DEFENCES["no_warmup"]),
}
APART = 0.22  # of the schemes in a row
ROOM = 1.4  # nats above the lowest point that a panel shows
DRILLS = {"poison": "poisoned batches", "jump": "η jump", "nan": "update not a number"}
OUTCOMES = {
    "clean": ("clean", plots.TEXT, ":"),
    "alone": ("left alone", plots.VERMILION, "-"),
    "healed": ("healed", plots.BLUE, "-"),
}


_arm = otherwise(lambda missing: None)(tables.arm)
"""An arm, or None where it is not measured."""


def _line(ax: Axes, table: pd.DataFrame, name: str, look: Look, **options: Any) -> None:
    """Means over seeds with their intervals against log₂ η; geometric unless of losses."""
    groups = table.dropna(subset=[name]).groupby("x")[name]
    if name == "loss":
        ends = plots.intervals(mean_interval(group) for _, group in groups)
    else:
        ends = 2.0 ** plots.intervals(
            mean_interval(np.log2(group.astype(float))) for _, group in groups
        )
    ends[1:, ~np.isfinite(ends[2])] = np.nan  # one seed alone
    options = {"ms": 4.5, "lw": 1.5, "elinewidth": 0.8, "capsize": 2, "ls": "-"} | options
    plots.points(ax, list(groups.groups), ends, look, **options)


def _window(axes: Sequence[Axes], shown: Sequence[pd.DataFrame]) -> None:
    """One range of losses for all panels, from just below the lowest mean."""
    means = [table.groupby("x")["loss"].mean() for table in shown]
    low, high = min(m.min() for m in means), max(m.max() for m in means)
    for ax in axes:
        ax.set_ylim(low - 0.06 * ROOM, min(low + ROOM, high + 0.06 * ROOM))


@drawn
def curves(results: Results) -> Figure:
    """Loss against η, one panel per scheme and one line per defence.

    What lies far above the lowest point is cut off. A run that diverged counts as a uniform guess.
    QK-norm at its default bound, √d.
    """
    schemes = [s for s in SCHEMES if _arm(results, s, "none") is not None]
    if not schemes:
        raise NotMeasured("no finished sweeps over η")
    shown = []
    with style():
        figure, axes = subplots(max(2.4 * len(schemes), 4), 4.0, len(schemes), sharey=True)
        for ax, scheme in zip(axes, schemes, strict=True):
            for defence, look in LOOKS.items():
                table = _arm(results, scheme, defence)
                if table is not None:
                    _line(ax, table, "loss", look)
                    shown.append(table)
            ax.set_title(NAMES[scheme], fontweight="bold")
            plots.octaves(ax, most=7)
        _window(axes, shown)
        axes[0].set_ylabel(LOSS)
        plots.legend(figure, axes[-1], columns=3)
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
        _against_best(left, results, "logit_max", "qk_norm")
        _against_best(right, results, "out_rms", "z_loss")
        left.set_yscale("log", base=2)
        caps = table[table["defence"] == "qk_norm"]["cap"]
        if len(caps):
            bound = caps.median()
            left.axhline(bound, color=plots.TEXT, ls=":", lw=1.3)
            plots.label(left, 0.7 * bound, "bound with QK-norm, √d", 0.98, "top")
            left.set_ylim(bottom=bound / 3)
        for ax, text in ((left, "largest attention logit"), (right, "RMS of the output logits")):
            plots.log2_axis(ax, axis="y")
            plots.octaves(ax, "octaves above the best η", 7)
            ax.set_ylabel(text)
        left.set_title("dashed: QK-norm")
        right.set_title("dashed: z-loss")
        right.legend(loc="best")
    return figure


def _against_best(ax: Axes, results: Results, name: str, defence: str) -> None:
    """A probe of each scheme against η over the best η without defence; dashed with it."""
    for scheme in SCHEMES:
        look = plots.scheme(scheme)
        for with_it, options in (("none", {}), (defence, {"ls": "--", "mfc": "white"})):
            arm = _arm(results, scheme, with_it)
            if arm is None:
                continue
            start = _arm(results, scheme, "none")
            shifted = arm.assign(x=arm["x"] - tables.best(arm if start is None else start))
            title = look.title if with_it == "none" else "_"
            _line(ax, shifted, name, look._replace(title=title), **options)


@drawn
def gains(results: Results) -> Figure:
    """What defences give and cost, one row per defence and one marker per scheme.

    Left, octaves by which the largest stable η rises; right, the loss at the best η minus that
    without. Grey behind an interval is what its claim allows.
    """
    names = {d: name.replace(" and ", "\nand ") for d, name in DEFENCES.items() if d != "none"}
    panels = (
        (tables.stable_gain, "largest stable η (octaves)"),
        (tables.price, "loss at the best η (nats/token)"),
    )
    any_measured = False
    with style():
        figure, axes = subplots(7, 3.9, 2, sharey=True)
        for ax, (quantity, text) in zip(axes, panels, strict=True):
            ax.axvline(0, color=plots.TEXT, lw=1)
            found = [(plots.scheme(s), dict(_measured(results, quantity, s))) for s in SCHEMES]
            plots.forest(ax, names, found, apart=APART)
            values = [i.value for _, row in found for i in row.values()]
            if values:
                any_measured = True
                reach = 1.7 * max(map(abs, values)) or 1.0
                ax.set_xlim(max(-reach, min(values) - 0.5 * reach), reach)
            _allowed(ax, quantity, list(names))
            ax.set_xlabel(text)
            ax.xaxis.set_major_locator(MaxNLocator(5))
        plots.legend(figure, axes[0])
    if not any_measured:
        raise NotMeasured("no finished sweeps over η")
    return figure


def _allowed(ax: Axes, quantity: Callable[..., Interval], rows: list[str]) -> None:
    """What the claims on a quantity allow, behind the interval of each."""
    for claim in claims.load(folders.folder("stability") / "claims.yaml"):
        named = claim.args.get("defence") in rows and claim.args.get("part", "main") == "main"
        if named and claim.quantity == quantity.__name__:
            series = list(SCHEMES).index(claim.args["scheme"]) - (len(SCHEMES) - 1) / 2
            place = rows.index(claim.args["defence"]) + APART * series
            plots.allowed(ax, place, claim.bound_min, claim.bound_max, along="x")


def _measured(
    results: Results, quantity: Callable[..., Interval], scheme: str
) -> Iterator[tuple[str, Interval]]:
    """Defence and quantity, of those that are measured."""
    for defence in [d for d in DEFENCES if d != "none"]:
        try:
            yield defence, quantity(results, scheme, defence)
        except NotMeasured:
            continue


@drawn
def caps(results: Results) -> Figure:
    """u-μP's loss over η at several α_attn, without QK-norm (left) and with it (right)."""
    table = tables.curves(results.runs)
    table = table[(table["scheme"] == "umup") & (table["part"] == "main")]
    values = sorted(table["cap"].unique())
    colours = (plots.SKY, plots.BLUE, plots.VERMILION, plots.GREEN)
    shown = []
    with style():
        figure, axes = subplots(7, 3.9, 2, sharey=True)
        for ax, defence in zip(axes, ("none", "qk_norm"), strict=True):
            for i, cap in enumerate(values):
                at = _arm(results, "umup", defence, cap=cap)
                if at is not None:
                    _line(ax, at, "loss", Look(colours[i % 4], plots.MARKERS[i % 4], f"{cap:g}"))
                    shown.append(at)
            ax.set_title({"none": "without QK-norm", "qk_norm": "with QK-norm"}[defence])
            plots.octaves(ax, most=7)
        if not shown:
            raise NotMeasured("no finished sweeps of u-μP")
        _window(axes, shown)
        axes[0].set_ylabel(LOSS)
        plots.legend(figure, axes[1], "α_attn")
    return figure


@drawn
def deep(results: Results) -> Figure:
    """Loss over η of the deeper model, with (dashed, open) and without depth-scaled init."""
    shown = []
    with style():
        figure, (ax,) = subplots(7, 3.8)
        for scheme in SCHEMES:
            look = plots.scheme(scheme)
            plain = _arm(results, scheme, "none", "deep")
            for defence, more in (("none", {}), ("depth_init", {"ls": "--", "mfc": "white"})):
                arm = _arm(results, scheme, defence, "deep")
                if arm is None or plain is None:
                    continue
                shifted = arm.assign(x=arm["x"] - tables.best(plain))
                title = look.title + (", depth-scaled init" if more else "")
                _line(ax, shifted, "loss", look._replace(title=title), **more)
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
    seeds, step by step; dotted, the claims' bound. Right, the share of the steps in which a clip is
    active, at the best η (filled) and far above it (open); bars are the range of the seeds.
    """
    table = required(results.table("clipped"), "no clipped runs")
    looks = {
        "unscaled": Look(plots.BLUE, "D", "unscaled norm"),
        "held": Look(plots.VERMILION, "X", "held norm"),
    }
    schemes = [s for s in SCHEMES if s in set(table["scheme"])]
    with style():
        figure, (left, right) = subplots(7, 3.9, 2)
        for norm, look in looks.items():
            own = table[table["norm"] == norm]
            _parting(left, own, look)
            aside = 0.1 if norm == "held" else -0.1
            for (scheme, octaves), group in own.groupby(["scheme", "octaves"]):
                if scheme not in schemes:  # μP's intermediate form
                    continue
                share, fill = group["share"], look.colour if octaves == 0 else "white"
                ends = (share.mean(), share.min(), share.max())
                plots.points(right, schemes.index(scheme) + aside, ends, look, ms=6.5, mfc=fill)
        plots.guide(left, 10 ** claims.bound("stability", "clip-twins-unscaled"), lw=1.3)
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


def _parting(ax: Axes, table: pd.DataFrame, look: Look) -> None:
    """Largest difference over seeds between μP's two forms, step by step, at the best η."""
    at = table[table["octaves"] == 0].sort_values("seed")
    sides = [at[at["scheme"] == s]["losses"].tolist() for s in ("mup", "mup_intermediate")]
    if sides[0] and len(sides[0]) == len(sides[1]):
        gap = np.abs(np.subtract(*sides)).max(axis=0) + 1e-9
        ax.plot(np.arange(len(gap)), gap, color=look.colour, lw=1.2, label=look.title)


@drawn
def drills(results: Results, scheme: str = "umup") -> Figure:
    """Loss along a run with a planted spike, one panel per kind, of one seed.

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
            ax.axvline(rows["clean"]["at"].iloc[0], color=plots.TEXT, lw=0.9, alpha=0.5, zorder=1)
            ax.set_title(DRILLS[kind])
            ax.set_xlabel("training step")
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[0].set_ylim(1.0, top)
        axes[0].set_ylabel(TRAINING_LOSS)
        plots.legend(figure, axes[0])
    return figure
