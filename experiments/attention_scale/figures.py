"""Figures of the study ``attention_scale``: tables drawn, nothing fitted.

Schemes have their colours of ``figures``; 1/d is drawn full, 1/√d dashed with open markers. Head
sizes, and steps where they are lines, have sequential palettes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup import laws
from umup.lab.absent import NotMeasured, required
from umup.lab.figures import COLOURS, LOSS, MARKERS, OTHER, drawn, style, subplots
from umup.lab.records import Results

from . import results as tables
from .results import PER_D, PER_ROOT, TITLES

NO_PROBES = "no probed runs"
RAW = "RMS of q·k, no multiplier"


def _look(scheme: str) -> dict[str, Any]:
    """Colour, marker and line of a scheme."""
    family = scheme.removesuffix("_sqrt_attention")
    colour, root = COLOURS.get(family, OTHER), scheme != family
    return {"color": colour, "marker": MARKERS.get(family, "v"), "ls": "--" if root else "-",
            "mfc": "white" if root else colour, "ms": 5, "lw": 1.6}  # fmt: skip


def _colours(values: Sequence[int], palette: str) -> dict[int, Any]:
    return dict(zip(values, sns.color_palette(palette, len(values)), strict=True))


def _head_axis(ax: Axes, d_heads: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(d_heads, [str(d) for d in d_heads])
    ax.minorticks_off()
    ax.set_xlim(min(d_heads) / 1.25, max(d_heads) * 1.25)
    ax.set_xlabel("head size d")


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
    ends = np.array([min(d_heads), max(d_heads)], float)
    heights = start * (ends / ends[0]) ** exponent
    ax.plot(ends, heights, ":", color=OTHER, lw=1.3, zorder=1)
    above = exponent > 0
    ax.annotate(
        text, (ends[1], heights[1]), xytext=(-3, 3 if above else -3), textcoords="offset points",
        ha="right", va="bottom" if above else "top", fontsize=9, color=OTHER,
    )  # fmt: skip


def _band(ax: Axes, table: pd.DataFrame, x: str, y: str, **look) -> None:
    """Mean over seeds as a line with the range of the seeds as error bars."""
    by = table.groupby(x)[y]
    mean = by.mean()
    reach = np.maximum([mean - by.min(), by.max() - mean], 0.0)  # equal seeds leave −1 ulp
    ax.errorbar(mean.index.to_numpy(float), mean, yerr=reach, capsize=2, **look)


@drawn
def exponents(results: Results) -> Figure:
    """The exponent of q·k over training, and q·k against the head size at several steps.

    Left, every scheme with 95 % intervals and the lines of the central limit theorem (½) and of
    the law of large numbers (1). Right, u-μP with 1/d: geometric means over seeds.
    """
    table = required(tables.exponents(results.runs), "no exponents: they need two head sizes")
    with style():
        figure, (left, right) = subplots(7, 3.9, 2)
        for height, text, x, ha, va in (
            (0.5, "½: independent (CLT)", 0.02, "left", "top"),
            (1.0, "1: aligned (LLN)", 0.02, "left", "bottom"),
        ):
            left.axhline(height, color=OTHER, ls=":", lw=1.3)
            left.annotate(text, (x, height), xycoords=("axes fraction", "data"), ha=ha, va=va,
                          fontsize=9, color=OTHER)  # fmt: skip
        for scheme in [s for s in TITLES if s in set(table["scheme"])]:
            line = table[table["scheme"] == scheme].sort_values("step")
            bounds = line[["exponent_lo", "exponent_hi"]].to_numpy().T
            error = np.abs(bounds - line["exponent"].to_numpy())
            error = np.where(np.isfinite(error), error, np.nan)
            left.errorbar(line["step"], line["exponent"], yerr=error, capsize=2, elinewidth=0.8,
                          label=TITLES[scheme], **_look(scheme))  # fmt: skip
        _step_axis(left, sorted(table["step"]))
        low, high = table["exponent"].min(), table["exponent"].max()
        left.set_ylim(min(0.4, low - 0.1), max(1.1, high + 0.1))
        left.set_ylabel("exponent of q·k's RMS in d")
        _over_heads(right, tables.pooled(results.runs), "qk")
        right.set_ylabel(RAW)
        figure.legend(*left.get_legend_handles_labels(), ncols=4, loc="outside upper center",
                      columnspacing=1.2, handlelength=2.6)  # fmt: skip
    return figure


def _over_heads(ax: Axes, table: pd.DataFrame, name: str, n_steps: int = 4) -> None:
    """``name`` against the head size at a few steps, u-μP with 1/d or what there is."""
    scheme = PER_D if PER_D in set(table["scheme"]) else table["scheme"].iloc[0]
    table = table[table["scheme"] == scheme]
    steps = sorted(table["step"].unique())
    chosen = [
        steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, n_steps).round().astype(int))
    ]
    colours = _colours(chosen, "viridis_r")
    for step in chosen:
        at = table[table["step"] == step]
        _band(ax, at, "d_head", name, color=colours[step], marker="o", ms=4, lw=1.5,
              label=f"step {step}")  # fmt: skip
    ax.set_yscale("log", base=2)
    _head_axis(ax, sorted(table["d_head"].unique()))
    ax.set_title(TITLES.get(scheme, scheme))
    ax.legend(loc="best", handlelength=1.4)
    starts = table[table["d_head"] == table["d_head"].min()].groupby("step")[name].mean()
    d_heads = sorted(table["d_head"].unique())
    if name == "qk":
        _power(ax, d_heads, starts[chosen[0]], 0.5, "∝ √d")
        _power(ax, d_heads, starts[chosen[-1]], 1.0, "∝ d")
    else:
        _power(ax, d_heads, d_heads[0] ** -0.5, -0.5, "1/√d: independent")


@drawn
def correlations(results: Results) -> Figure:
    """What makes the exponent move: the cosine of q and k, against head size and over training.

    Left, its RMS at several steps beside 1/√d, that of independent vectors. Right, its RMS (full)
    and the magnitude of its mean (dotted) over training, a line a head size.
    """
    table = required(tables.pooled(results.runs), NO_PROBES)
    with style():
        figure, (left, right) = subplots(7, 3.9, 2)
        _over_heads(left, table, "cosine")
        left.set_ylabel("RMS cosine of q and k")
        scheme = PER_D if PER_D in set(table["scheme"]) else table["scheme"].iloc[0]
        table = table[table["scheme"] == scheme]
        d_heads = sorted(table["d_head"].unique())
        for d_head, colour in _colours(d_heads, "flare").items():
            line = table[table["d_head"] == d_head]
            _band(right, line, "step", "cosine", color=colour, marker="o", ms=3.5, lw=1.5,
                  label=str(d_head))  # fmt: skip
            mean = line.groupby("step")["cosine_mean"].mean()
            right.plot(mean.index, mean, ":", color=colour, lw=1.5)
        _step_axis(right, sorted(table["step"].unique()))
        right.set_ylim(0, 1)
        right.set_ylabel("cosine: RMS (full), |mean| (dotted)")
        right.set_title(TITLES.get(scheme, scheme))
        right.legend(title="head size d", ncols=3, loc="best", columnspacing=0.9, handlelength=1.2)
    return figure


@drawn
def layer(results: Results) -> Figure:
    """q·k of the layer at initialization against head size, a line a correlation of q and k.

    Markers are measured, over a token's pairs with itself; lines the theory √(ρ²d² + (1+ρ²)d).
    """
    table = tables.layers(results)
    table = required(table[table["scheme"] == PER_D], f"no layers of {TITLES[PER_D]}")
    d_heads = sorted(table["d_head"].unique())
    fine = np.geomspace(d_heads[0], d_heads[-1], 100)
    rhos = sorted(table["correlation"].unique())
    with style():
        figure, (ax,) = subplots(7, 4.0)
        for (rho, colour), marker in zip(
            _colours(rhos, "viridis_r").items(), "osD^vPX" * 4, strict=False
        ):
            at = table[table["correlation"] == rho]
            ax.plot(fine, np.sqrt(rho**2 * fine**2 + (1 + rho**2) * fine), color=colour, lw=1.3)
            _band(ax, at, "d_head", "self_rms", color=colour, marker=marker, ls="none", ms=5.5,
                  label=f"ρ = {rho:g}")  # fmt: skip
            if 0 < rho < 1 and d_heads[0] <= rho**-2 <= d_heads[-1]:
                turn = rho**-2
                ax.plot(turn, math.sqrt(rho**2 * turn**2 + (1 + rho**2) * turn), "|", color="black",
                        ms=14, mew=1.4)  # fmt: skip
        ax.set_yscale("log", base=2)
        _head_axis(ax, d_heads)
        ax.set_ylabel(RAW)
        ax.legend(title="correlation of $q_i$ and $k_i$", loc="upper left")
    return figure


@drawn
def entropy(results: Results) -> Figure:
    """Entropy of the attention over training, a panel a division and a line a head size.

    Means over rows and blocks, error bars the range of the seeds; the dotted line is uniform
    attention over the allowed positions.
    """
    table = required(tables.pooled(results.runs), NO_PROBES)
    schemes = [s for s in TITLES if s in set(table["scheme"])]
    seq_len = int(results.runs["seq_len"].iloc[0])
    uniform = math.lgamma(seq_len + 1) / seq_len  # mean of ln t over the rows
    d_heads = sorted(table["d_head"].unique())
    with style():
        figure, axes = subplots(max(1.9 * len(schemes), 4), 3.4, len(schemes), sharey=True)
        for ax, scheme in zip(axes, schemes, strict=True):
            ax.axhline(uniform, color=OTHER, ls=":", lw=1.3)
            for d_head, colour in _colours(d_heads, "flare").items():
                line = table[(table["scheme"] == scheme) & (table["d_head"] == d_head)]
                if len(line):
                    _band(ax, line, "step", "entropy", color=colour, marker="o", ms=3, lw=1.4,
                          label=str(d_head))  # fmt: skip
            _step_axis(ax, sorted(table["step"].unique()))
            ax.set_title(TITLES[scheme])
        axes[0].annotate("uniform", (0.04, uniform), xycoords=("axes fraction", "data"),
                         ha="left", va="bottom", fontsize=9, color=OTHER)  # fmt: skip
        axes[0].set_ylabel("attention entropy (nats)")
        figure.legend(*axes[0].get_legend_handles_labels(), title="head size d",
                      ncols=len(d_heads), loc="outside upper center")  # fmt: skip
    return figure


@drawn
def curves(results: Results, hp: str) -> Figure:
    """Loss against ``alpha`` or ``eta``, a panel a division and a line a head size.

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
    colours = _colours(d_heads, "flare")
    means = [t.groupby(["d_head", "x"])["loss"].mean() for t in found.values()]
    low = min(float(m.min()) for m in means)
    lowest = [o.loss for os in best.values() for o in os.values()]
    reach = max(max(lowest) - low, 0.05)
    top = min(low + 3.0 * reach, max(float(m.max()) for m in means) + 0.05 * reach)
    with style():
        figure, axes = subplots(7, 3.9, len(found), sharey=True)
        for ax, (scheme, table) in zip(axes, found.items(), strict=True):
            for d_head, line in table.groupby("d_head"):
                _curve(ax, line, colours[d_head], str(d_head), top)
            for d_head, o in best[scheme].items():
                if not o.edge:
                    _star(ax, o, colours[d_head])
            ax.axvline(0.0, color=OTHER, ls=":", lw=1.2)
            ax.set_title(TITLES[scheme])
            unit = {PER_D: "α·q·k/d", PER_ROOT: "α·q·k/√d"}[scheme] if hp == "alpha" else ""
            ax.set_xlabel(f"{symbol}   ({unit})" if unit else symbol)
            ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
            ax.set_ylim(low - 0.12 * (top - low), top)
        axes[0].set_ylabel(LOSS)
        figure.legend(*axes[0].get_legend_handles_labels(), title="head size d",
                      ncols=len(d_heads), loc="outside upper center")  # fmt: skip
    return figure


def _curve(ax: Axes, line: pd.DataFrame, colour: Any, label: str, top: float) -> None:
    ok = tables.levelled(line.dropna(subset=["loss"]))
    bars = {x: laws.mean_interval(g) for x, g in ok.groupby("x")["loss"]}
    reach = [b.hi - b.value if math.isfinite(b.hi) else math.nan for b in bars.values()]
    ax.errorbar(list(bars), [b.value for b in bars.values()], yerr=reach, fmt="o-", color=colour,
                ms=3, lw=1.5, elinewidth=0.8, capsize=2, label=label)  # fmt: skip
    bad = line[line["loss"].isna()]["x"].unique()
    if len(bad):
        ax.plot(bad, np.full(len(bad), top), "x", color=colour, ms=6, mew=1.5, clip_on=False)


def _star(ax: Axes, o: laws.Optimum, colour: Any) -> None:
    error = [[x if math.isfinite(x) else 1.0] for x in (o.x - o.x_lo, o.x_hi - o.x)]
    ax.errorbar(o.x, o.loss, xerr=error, fmt="*", color=colour, mec="black", mew=0.6, ms=11,
                ecolor="black", elinewidth=1.2, capsize=2.5, zorder=5)  # fmt: skip


@drawn
def drift(results: Results) -> Figure:
    """Optimum against head size, relative to the smallest: a panel a hyperparameter.

    Bars are 95 % intervals (arrows: unbounded; crosses: no optimum found, the best value instead),
    the band ±½ octave, the dotted line what α under 1/√d must do if the one under 1/d stays: −½
    octave a doubling. Bars that reach far beyond the optima are cut off.
    """
    table = tables.optima_table(results.runs)
    table = required(table[np.isfinite(table["x"].astype(float))], "no optimum")
    hps = [hp for hp in ("alpha", "eta") if hp in set(table["hp"])]
    with style():
        figure, axes = subplots(7 if len(hps) > 1 else 4, 3.9, len(hps), sharey=True)
        for ax, hp in zip(axes, hps, strict=True):
            at = table[table["hp"] == hp]
            d_heads = sorted(at["d_head"].unique())
            ax.axhspan(-0.5, 0.5, color="#999999", alpha=0.18, lw=0)
            if hp == "alpha":
                ends = np.array([d_heads[0], d_heads[-1]], float)
                ax.plot(ends, -0.5 * np.log2(ends / ends[0]), ":", color=OTHER, lw=1.3)
            for i, (scheme, line) in enumerate(at.groupby("scheme", sort=False)):
                _shifts(ax, line, str(scheme), 2 ** (0.1 * i - 0.05))
            _head_axis(ax, d_heads)
            ax.set_title({"alpha": "α_attn", "eta": "η"}[hp])
            ax.legend(loc="best")
        shift = table["x"] - table.groupby(["hp", "scheme"])["x"].transform("first")
        axes[0].set_ylim(min(shift.min() - 1.2, -1.2), max(shift.max() + 0.8, 1.2))
        axes[0].set_ylabel("shift of the optimum (octaves)")
    return figure


def _shifts(ax: Axes, line: pd.DataFrame, scheme: str, aside: float) -> None:
    """One scheme's optima, relative to that of the smallest head, moved ``aside`` (a factor)."""
    look, base = _look(scheme), line["x"].iloc[0]
    ax.plot(line["d_head"] * aside, line["x"] - base, label=TITLES[scheme], **look)
    for row in line.itertuples():
        open_lo, open_hi = row.x_lo == -math.inf, row.x_hi == math.inf
        place = (row.d_head * aside, row.x - base)
        if open_lo and open_hi:
            ax.plot(*place, "x", color="black", ms=9, mew=1.5, zorder=5)
            continue
        error = [[0.6 if open_lo else row.x - row.x_lo], [0.6 if open_hi else row.x_hi - row.x]]
        ax.errorbar(*place, yerr=error, fmt="none", ecolor=look["color"], elinewidth=1.4,
                    capsize=3, uplims=open_lo, lolims=open_hi)  # fmt: skip
