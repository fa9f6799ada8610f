"""Figures of the study ``attention_scale``: tables drawn, nothing fitted.

Schemes have their own colours; 1/d is drawn full, 1/√d dashed with open markers. Head sizes, and
steps where they are lines, have sequential palettes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import claims, plots
from umup.lab.absent import NotMeasured, required
from umup.lab.figures import LOSS, drawn, style, subplots
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.lab.tables import levelled
from umup.laws import Interval, mean_interval

from . import results as tables
from .results import PER_D, PER_ROOT, TITLES

NO_PROBES = "no probed runs"
RAW = "RMS of q·k, no multiplier"
HEADS = "head size d"
FIXED = {
    "width": Look(plots.BLUE, "o", "fixed width: larger heads are fewer"),
    "heads": Look(plots.VERMILION, "s", "fixed number of heads: the width grows"),
}


def _look(scheme: str) -> tuple[Look, dict[str, Any]]:
    """Colour and marker of a scheme, and how its line and markers differ with the division."""
    family = scheme.removesuffix("_sqrt_attention")
    look = plots.scheme(family)._replace(title=TITLES[scheme])
    if scheme == family:
        return look, {"ls": "-", "ms": 5, "lw": 1.6}
    return look, {"ls": "--", "ms": 5, "lw": 1.6, "mfc": "white"}


def _step_axis(ax: Axes, steps: Sequence[int]) -> None:
    """Logarithmic, with step 0 at the left end."""
    ax.set_xscale("symlog", linthresh=1.0, linscale=0.4)
    shown = [s for s in (0, 1, 10, 100, 1000, 10000) if s <= max(steps)]
    ax.set_xticks(shown, [str(s) for s in shown])
    ax.minorticks_off()
    ax.set_xlim(-0.1, max(steps) * 1.2)
    ax.set_xlabel("training step")


def _power(ax: Axes, d_heads: Sequence[int], start: float, exponent: float, text: str) -> None:
    """A guide line ``start`` · (d / smallest)^exponent with its name at the right end."""
    last = d_heads[-1]
    height = start * (last / d_heads[0]) ** exponent
    ax.plot([d_heads[0], last], [start, height], ":", color=plots.TEXT, lw=1.3, zorder=1)
    side, up = ("bottom", 3) if exponent > 0 else ("top", -3)
    where: dict[str, Any] = {"xytext": (-3, up), "textcoords": "offset points", "va": side}
    ax.annotate(text, (last, height), ha="right", fontsize=9, color=plots.TEXT, **where)


def _series(ax: Axes, table: pd.DataFrame, x: str, y: str, look: Look, **options: Any) -> None:
    """Mean over seeds as a line with the range of the seeds as error bars."""
    place, ends = plots.spread(table[y], table[x])
    options = {"ls": "-", "ms": 4, "lw": 1.5, "capsize": 2} | options
    plots.points(ax, place.to_numpy(float), ends, look, **options)


@drawn
def exponents(results: Results) -> Figure:
    """The exponent of q·k over training, and q·k against the head size at several steps.

    Left, every scheme with 95 % intervals and the lines of the central limit theorem (½) and of
    the law of large numbers (1). Right, u-μP with 1/d: geometric means over seeds.
    """
    table = required(tables.exponents(results.runs), "no exponents: they need two head sizes")
    with style():
        figure, (left, right) = subplots(7, 3.9, 2)
        for height, text, x, side in (
            (0.5, "½: independent (CLT)", 0.3, "top"),
            (1.0, "1: aligned (LLN)", 0.02, "bottom"),
        ):
            left.axhline(height, color=plots.TEXT, ls=":", lw=1.3)
            plots.label(left, height, text, x, side)
        for scheme in [s for s in TITLES if s in set(table["scheme"])]:
            line = table[table["scheme"] == scheme].sort_values("step")
            look, options = _look(scheme)
            bars: dict[str, Any] = options | {"capsize": 2, "elinewidth": 0.8}
            plots.points(left, line["step"], plots.ends(line, "exponent"), look, **bars)
        _step_axis(left, sorted(table["step"]))
        low, high = table["exponent"].min(), table["exponent"].max()
        left.set_ylim(min(0.4, low - 0.1), max(1.1, high + 0.1))
        left.set_ylabel("exponent of q·k's RMS in d")
        _over_heads(right, tables.pooled(results.runs), "qk")
        right.set_ylabel(RAW)
        plots.legend(figure, left, columnspacing=1.2, handlelength=2.6)
    return figure


@drawn
def readings(results: Results) -> Figure:
    """The exponent of q·k between neighbouring head sizes at the end of training.

    One panel per scheme, its width fixed or its number of heads; means over seeds with 95 %
    intervals, and the lines of the central limit theorem (½) and of the law of large numbers (1).
    """
    found: dict[str, dict[str, dict[float, Interval]]] = {}
    for fixed in FIXED:
        table = tables.pooled(results.runs, fixed)
        end = table[table["step"] == table["step"].max()]
        for scheme, group in end.groupby("scheme"):
            if slopes := tables.local_slopes(group, "qk"):
                found.setdefault(str(scheme), {})[fixed] = slopes
    if not found:
        raise NotMeasured("no exponents: they need two head sizes")
    d_heads = sorted(set(results.runs["d_head"]))
    schemes = [s for s in TITLES if s in found]
    with style():
        figure, axes = subplots(max(2.4 * len(schemes), 4), 3.6, len(schemes), sharey=True)
        for ax, scheme in zip(axes, schemes, strict=True):
            for height in (0.5, 1.0):
                ax.axhline(height, color=plots.TEXT, ls=":", lw=1.3)
            for aside, (fixed, slopes) in zip((-0.05, 0.05), found[scheme].items(), strict=False):
                ends = plots.intervals(slopes.values())
                ends[1:, ~np.isfinite(ends[2])] = np.nan  # one seed alone
                options: dict[str, Any] = {"ls": "-", "ms": 4.5, "lw": 1.5, "capsize": 2}
                place = np.array(list(slopes)) * 2**aside
                plots.points(ax, place, ends, FIXED[fixed], **options)
            plots.log2_axis(ax, d_heads, HEADS)
            ax.set_title(TITLES[scheme])
        axes[0].set_ylabel("local exponent of q·k's RMS in d")
        plots.label(axes[0], 0.5, "½: independent (CLT)", 0.98, "top")
        plots.label(axes[0], 1.0, "1: aligned (LLN)", 0.02, "bottom")
        plots.legend(figure, axes[0])
    return figure


def _over_heads(ax: Axes, table: pd.DataFrame, name: str, n_steps: int = 4) -> None:
    """``name`` against the head size at a few steps, u-μP with 1/d or what there is."""
    scheme = PER_D if PER_D in set(table["scheme"]) else table["scheme"].iloc[0]
    table = table[table["scheme"] == scheme]
    steps = sorted(table["step"].unique())
    some = np.unique(np.linspace(0, len(steps) - 1, n_steps).round().astype(int))
    chosen = [steps[i] for i in some]
    d_heads = sorted(table["d_head"].unique())
    for step, colour in plots.sequence(chosen, "viridis_r").items():
        look = Look(colour, title=f"step {step}")
        _series(ax, table[table["step"] == step], "d_head", name, look)
    ax.set_yscale("log", base=2)
    plots.log2_axis(ax, d_heads, HEADS)
    ax.set_title(TITLES.get(scheme, scheme))
    ax.legend(loc="best", handlelength=1.4)
    starts = table[table["d_head"] == table["d_head"].min()].groupby("step")[name].mean()
    if name == "qk":
        _power(ax, d_heads, starts[chosen[0]], 0.5, "∝ √d")
        _power(ax, d_heads, starts[chosen[-1]], 1.0, "∝ d")
    else:
        _power(ax, d_heads, d_heads[0] ** -0.5, -0.5, "1/√d: independent")


@drawn
def correlations(results: Results) -> Figure:
    """What makes the exponent move: the cosine of q and k, against head size and over training.

    Left, its RMS at several steps beside 1/√d, that of independent vectors. Right, its RMS (full)
    and the magnitude of its mean (dotted) over training, one line per head size.
    """
    table = required(tables.pooled(results.runs), NO_PROBES)
    with style():
        figure, (left, right) = subplots(7, 3.9, 2)
        _over_heads(left, table, "cosine")
        left.set_ylabel("RMS cosine of q and k")
        scheme = PER_D if PER_D in set(table["scheme"]) else table["scheme"].iloc[0]
        table = table[table["scheme"] == scheme]
        d_heads = sorted(table["d_head"].unique())
        for d_head, colour in plots.sequence(d_heads).items():
            line = table[table["d_head"] == d_head]
            _series(right, line, "step", "cosine", Look(colour, title=str(d_head)), ms=3.5)
            mean = line.groupby("step")["cosine_mean"].mean()
            right.plot(mean.index, mean, ":", color=colour, lw=1.5)
        _step_axis(right, sorted(table["step"].unique()))
        right.set_ylim(0, 1)
        right.set_ylabel("cosine: RMS (full), |mean| (dotted)")
        right.set_title(TITLES.get(scheme, scheme))
        right.legend(title=HEADS, ncols=3, loc="best", columnspacing=0.9, handlelength=1.2)
    return figure


@drawn
def layer(results: Results) -> Figure:
    """q·k of the layer at initialization against head size, one line per correlation of q and k.

    Markers are measured, over a token's pairs with itself; lines the theory √(ρ²d² + (1+ρ²)d).
    """
    table = tables.layers(results)
    table = required(table[table["scheme"] == PER_D], f"no layers of {TITLES[PER_D]}")
    d_heads = sorted(table["d_head"].unique())
    fine = np.geomspace(d_heads[0], d_heads[-1], 100)
    rhos = sorted(table["correlation"].unique())
    with style():
        figure, (ax,) = subplots(7, 4.0)
        for i, (rho, colour) in enumerate(plots.sequence(rhos, "viridis_r").items()):
            marker = plots.MARKERS[i % len(plots.MARKERS)]
            at = table[table["correlation"] == rho]
            ax.plot(fine, np.sqrt(rho**2 * fine**2 + (1 + rho**2) * fine), color=colour, lw=1.3)
            look = Look(colour, marker, f"ρ = {rho:g}")
            _series(ax, at, "d_head", "self_rms", look, ls="none", ms=5.5)
            if 0 < rho < 1 and d_heads[0] <= rho**-2 <= d_heads[-1]:
                turn = rho**-2
                height = math.sqrt(rho**2 * turn**2 + (1 + rho**2) * turn)
                ax.plot(turn, height, "|", color="black", ms=14, mew=1.4)
        ax.set_yscale("log", base=2)
        plots.log2_axis(ax, d_heads, HEADS)
        ax.set_ylabel(RAW)
        ax.legend(title="correlation of $q_i$ and $k_i$", loc="upper left")
    return figure


@drawn
def entropy(results: Results) -> Figure:
    """Entropy of the attention over training, one panel per division and one line per head size.

    Means over rows and blocks, error bars the range of the seeds; the dotted line is uniform
    attention over the allowed positions.
    """
    table = required(tables.pooled(results.runs), NO_PROBES)
    schemes = [s for s in TITLES if s in set(table["scheme"])]
    seq_len = int(results.runs["seq_len"].iloc[0])
    uniform = math.lgamma(seq_len + 1) / seq_len  # mean of ln t over the rows
    d_heads = sorted(table["d_head"].unique())
    with style():
        figure, axes = subplots(max(2.2 * len(schemes), 4), 3.4, len(schemes), sharey=True)
        for ax, scheme in zip(axes, schemes, strict=True):
            ax.axhline(uniform, color=plots.TEXT, ls=":", lw=1.3)
            for d_head, colour in plots.sequence(d_heads).items():
                line = table[(table["scheme"] == scheme) & (table["d_head"] == d_head)]
                if len(line):
                    look = Look(colour, title=str(d_head))
                    _series(ax, line, "step", "entropy", look, ms=3, lw=1.4)
            _step_axis(ax, sorted(table["step"].unique()))
            ax.set_title(TITLES[scheme])
        plots.label(axes[0], uniform, "uniform", x=0.04)
        axes[0].set_ylabel("attention entropy (nats)")
        plots.legend(figure, axes[0], HEADS)
    return figure


@drawn
def curves(results: Results, hp: str) -> Figure:
    """Loss against ``alpha`` or ``eta``, one panel per division and one line per head size.

    Points are means over seeds, each freed of its own level (``tables.levelled``), bars their 95 %
    intervals, stars the fitted optima with theirs,
    crosses at the top values at which a run diverged. Losses far above the optima are cut off.
    """
    symbol = {"alpha": "log₂ α_attn", "eta": "log₂ η"}[hp]
    found = {s: tables.curve_runs(results.runs, hp, s) for s in (PER_D, PER_ROOT)}
    found = {s: table for s, table in found.items() if table["loss"].notna().any()}
    if not found:
        raise NotMeasured(f"no line searches over {hp}")
    best = {s: tables.optima(results.runs, hp, s) for s in found}
    d_heads = sorted(set().union(*(table["d_head"] for table in found.values())))
    colours = plots.sequence(d_heads)
    means = [t.groupby(["d_head", "x"])["loss"].mean() for t in found.values()]
    low, most = min(float(m.min()) for m in means), max(float(m.max()) for m in means)
    lowest = [o.loss for os in best.values() for o in os.values()]
    bottom, top = plots.window(low, lowest, 3.0, most=most)
    with style():
        figure, axes = subplots(7, 3.9, len(found), sharey=True)
        for ax, (scheme, table) in zip(axes, found.items(), strict=True):
            for d_head, line in table.groupby("d_head"):
                _curve(ax, line, Look(colours[d_head], title=str(d_head)), top)
            for d_head, optimum in best[scheme].items():
                plots.star(ax, optimum, colours[d_head])
            ax.axvline(0.0, color=plots.TEXT, ls=":", lw=1.2)
            ax.set_title(TITLES[scheme])
            unit = {PER_D: "α·q·k/d", PER_ROOT: "α·q·k/√d"}[scheme] if hp == "alpha" else ""
            plots.octaves(ax, f"{symbol}   ({unit})" if unit else symbol, 7)
            ax.set_ylim(bottom, top)
        axes[0].set_ylabel(LOSS)
        plots.legend(figure, axes[0], HEADS)
    return figure


def _curve(ax: Axes, line: pd.DataFrame, look: Look, top: float) -> None:
    ok = levelled(line.dropna(subset=["loss"]), "x")
    bars = {x: mean_interval(losses) for x, losses in ok.groupby("x")["loss"]}
    ends, options = plots.intervals(bars.values()), {"ls": "-", "ms": 3, "lw": 1.5, "capsize": 2}
    plots.points(ax, list(bars), ends, look, elinewidth=0.8, **options)
    plots.crosses(ax, line[line["loss"].isna()]["x"].unique(), top, look.colour)


@drawn
def drift(results: Results) -> Figure:
    """Optimum against head size, relative to the smallest: one panel per hyperparameter.

    Bars are 95 % intervals (arrows: unbounded; crosses: no optimum found, the best value instead),
    the band is what the claims allow, the dotted line what α under 1/√d must do if the one under
    1/d stays: −½ octave per doubling. Bars that reach far beyond the optima are cut off.
    """
    table = tables.optima_table(results.runs)
    table = required(table[np.isfinite(table["x"].astype(float))], "no optimum")
    hps = [hp for hp in ("alpha", "eta") if hp in set(table["hp"])]
    allowed = claims.bound("attention_scale", "alpha-still-per-d")
    with style():
        figure, axes = subplots(7 if len(hps) > 1 else 4, 3.9, len(hps), sharey=True)
        for ax, hp in zip(axes, hps, strict=True):
            at = table[table["hp"] == hp]
            d_heads = sorted(at["d_head"].unique())
            plots.band(ax, -allowed, allowed)
            if hp == "alpha":
                ends = np.array([d_heads[0], d_heads[-1]], float)
                ax.plot(ends, -0.5 * np.log2(ends / ends[0]), ":", color=plots.TEXT, lw=1.3)
            for i, (scheme, line) in enumerate(at.groupby("scheme", sort=False)):
                _shifts(ax, line, str(scheme), 2 ** (0.1 * i - 0.05))
            plots.log2_axis(ax, d_heads, HEADS)
            ax.set_title({"alpha": "α_attn", "eta": "η"}[hp])
            ax.legend(loc="best")
        shift = table["x"] - table.groupby(["hp", "scheme"])["x"].transform("first")
        axes[0].set_ylim(min(shift.min() - 1.2, -1.2), max(shift.max() + 0.8, 1.2))
        axes[0].set_ylabel("shift of the optimum (octaves)")
    return figure


def _shifts(ax: Axes, line: pd.DataFrame, scheme: str, aside: float) -> None:
    """One scheme's optima, relative to that of the smallest head, moved ``aside`` (a factor)."""
    look, options = _look(scheme)
    ends = plots.ends(line, "x") - line["x"].iloc[0]
    lost = np.isinf(ends[1:]).all(axis=0)
    ends[1:, lost] = np.nan
    place = line["d_head"].to_numpy() * aside
    plots.points(ax, place, ends, look, open_end=0.6, capsize=3, **options)
    if lost.any():
        ax.plot(place[lost], ends[0, lost], "x", color="black", ms=9, mew=1.5, zorder=5)
