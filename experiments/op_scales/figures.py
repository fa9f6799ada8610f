"""Figures of the study ``op_scales``: measured over model, the bound of the claim drawn in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import figures, plots
from umup.lab.absent import required
from umup.lab.records import Results
from umup.rules import gated_silu_std, lerp_log

from . import theory
from .results import bound, cells

MEASURED = "RMS (measured / model)"
EXACT: dict[str, Any] = {"color": "black", "ls": "--", "lw": 1.2}


def _log_axis(ax: Axes, values: Iterable[float], label: str, most: int = 7) -> None:
    """Ticks at the values of the grid, thinned to ``most``."""
    plots.log2_axis(ax, values, label, room=0, most=most)


def _band(ax: Axes, half: float, text: bool = True, centre: float = 1.0) -> None:
    """The bound of a claim as a grey band."""
    name = f"±{100 * half:g} %" if text else ""
    plots.band(ax, centre - half, centre + half, name, line=True)


def _line(
    ax: Axes, x: Any, rows: pd.DataFrame, field: str, i: int, label: str, join: str = "-"
) -> None:
    """Measured values with 95 % intervals, in the i-th colour and marker."""
    options: dict[str, Any] = {"ls": join or "none", "ms": 4.5, "lw": 1.3}
    plots.points(ax, x, plots.ends(rows, field), plots.numbered(i, label), **options)


def _plain(results: Results) -> pd.DataFrame:
    """The attention grid in its first dtype, over more than one position."""
    table = cells(results, "attention")
    table = table[table["dtype"] == sorted(table["dtype"])[-1]]
    return required(table[table["seq_len"] > 1], "no attention over several positions")


def _some(values: Iterable[float], wanted: Sequence[float]) -> list[float]:
    """Those of ``wanted`` that were measured, else all."""
    have = sorted(set(values))
    return [v for v in wanted if v in have] or have


@figures.drawn
def attention_output(results: Results) -> Figure:
    """Attention's output over the model, against T: one panel per α, one line per head size.

    Dashed: ``theory.derived_scale`` over the model at the largest head size.
    """
    table = _plain(results)
    alphas = _some(table["alpha"], (0.25, 1.0, 4.0))
    heads = sorted(table["d_head"].unique())
    with figures.style():
        figure, axes = figures.subplots(7.2, 3.7, len(alphas), sharey=True)
        for ax, alpha in zip(axes, alphas, strict=True):
            _band(ax, bound("attention-output"), ax is axes[-1])
            at = table[table["alpha"] == alpha]
            for i, d_head in enumerate(heads):
                rows = at[at["d_head"] == d_head].sort_values("seq_len")
                _line(ax, rows["seq_len"], rows, "out", i, str(d_head))
            last = at[at["d_head"] == heads[-1]].sort_values("seq_len")
            derived = last["out"] / last["out_derived"]
            name = f"derived, {heads[-1]}"
            ax.plot(last["seq_len"], derived, marker="_", ms=9, zorder=4, label=name, **EXACT)
            _log_axis(ax, at["seq_len"], "positions T", 6)
            ax.set_title(f"α = {plots.plain(alpha)}", fontweight="bold")
        axes[0].set_ylabel(MEASURED)
        plots.legend(figure, axes[0], "d_head", 6)
    return figure


@figures.drawn
def attention_error(results: Results) -> Figure:
    """Heat maps of the model's error in per cent over head size and α, one panel per T."""
    table = _plain(results)
    lengths = sorted(table["seq_len"].unique())
    shown = lengths if len(lengths) < 4 else [lengths[len(lengths) // 2], lengths[-1]]
    shown = [t for t in shown if t >= 64] or shown
    with figures.style():
        figure, axes = figures.subplots(7.2, 3.0, len(shown), sharey=True)
        for ax, seq_len in zip(axes, shown, strict=True):
            at = table[table["seq_len"] == seq_len]
            error = 100.0 * (at.pivot(index="d_head", columns="alpha", values="out") - 1.0)
            drawn = plots.heat(ax, error, 30, sns.color_palette("vlag", as_cmap=True), 0)
            ax.set_xticks(range(error.shape[1]), [plots.plain(a) for a in error.columns])
            ax.set_yticks(range(error.shape[0]), [str(d) for d in error.index])
            ax.set_title(f"T = {seq_len}", fontweight="bold")
            ax.set_xlabel("α")
        axes[0].set_ylabel("d_head")
        figure.colorbar(drawn, ax=axes, label="RMS above the model (%)", extend="both")
    return figure


@figures.drawn
def attention_rows(results: Results) -> Figure:
    """RMS of the output by position, at α = 1: one line per T, dashed the 1/√t of flat weights."""
    table = _plain(results)
    table = table[table["alpha"] == _some(table["alpha"], (1.0,))[-1]]
    heads = sorted(table["d_head"].unique())
    head = _some(heads, (64,))[-1]
    table = table[table["d_head"] == head]
    lengths = _some(table["seq_len"], (16, 64, 256, 1024))
    with figures.style():
        figure, (ax,) = figures.subplots(7, 3.6)
        ax.axhline(1.0, color=plots.GUIDE, lw=0.8)
        for i, seq_len in enumerate(lengths):
            row = table[table["seq_len"] == seq_len].iloc[0]
            look = plots.numbered(i, f"T = {seq_len}")
            style: dict[str, Any] = {"color": look.colour, "ms": 5, "label": look.title}
            ax.plot(row["positions"], row["by_position"], look.marker, **style)
            t = np.array([1, seq_len])
            ax.plot(t, 1.0 / (np.sqrt(t) * row["model"]), "--", color=look.colour, lw=1)
        plots.log2_axis(ax, axis="y")
        _log_axis(ax, [*table["seq_len"], 1], "position t")
        ax.set_ylabel(MEASURED)
        ax.set_title(f"α = {plots.plain(row['alpha'])}, d_head = {head}")
        ax.legend(loc="best")
    return figure


@figures.drawn
def attention_gradients(results: Results) -> Figure:
    """Left: RMS of dq times √d_head/α against T, with the band of 0.9 ± 0.1 and flat weights'
    value dashed. Right: RMS of dq at the longest T against d_head, one line per α."""
    table = _plain(results)
    heads = sorted(table["d_head"].unique())
    one = table[table["alpha"] == _some(table["alpha"], (1.0,))[-1]]
    with figures.style():
        figure, (left, right) = figures.subplots(7.2, 3.7, 2)
        half = bound("attention-dq-law")
        _band(left, half, False, 0.9)
        plots.label(left, 0.9 + half, "0.9 ± 0.1")
        for i, d_head in enumerate(heads):
            rows = one[one["d_head"] == d_head].sort_values("seq_len")
            _line(left, rows["seq_len"], rows, "dq_beta", i, f"d_head {d_head}")
        lengths = sorted(one["seq_len"].unique())
        flat = [theory.qk_gradient(t) for t in lengths]
        left.plot(lengths, flat, label="flat weights", **EXACT)
        _log_axis(left, lengths, "positions T", 6)
        left.set_ylabel("RMS of dq · √d_head")
        left.set_title("α = 1")
        left.legend(loc="lower right")
        longest = table[table["seq_len"] == table["seq_len"].max()]
        right.axhline(1.0, color=plots.GUIDE, lw=0.8)
        for i, alpha in enumerate(_some(longest["alpha"], (0.25, 1.0, 4.0))):
            rows = longest[longest["alpha"] == alpha].sort_values("d_head")
            _line(right, rows["d_head"], rows, "dq", i, "_")
            colour, end = plots.PALETTE[i], (heads[-1], rows["dq"].iloc[-1])
            style: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 9}
            right.annotate(f"α = {plots.plain(alpha)}", end, (0, 7), color=colour, **style)
            law = 0.9 * alpha / np.sqrt(rows["d_head"])
            right.plot(rows["d_head"], law, ":", color=colour, lw=1.2)
        right.set_yscale("log", base=2)
        right.yaxis.set_major_formatter(lambda y, _: f"$2^{{{math.log2(y):.0f}}}$")
        _log_axis(right, heads, "d_head")
        right.set_ylabel("RMS of dq")
        right.set_title(f"T = {longest['seq_len'].max()} (dotted: 0.9·α/√d_head)")
    return figure


@figures.drawn
def attention_correlated(results: Results) -> Figure:
    """Attention's output against the correlation of values, with the derived curve dashed."""
    table = cells(results, "attention_inputs")
    table = required(table[table["inputs"] == "normal"], "no normal inputs")
    table = table.sort_values("correlation")
    table = table[table["dtype"] == sorted(table["dtype"])[-1]]
    first = table.iloc[0]
    with figures.style():
        figure, (ax,) = figures.subplots(7, 3.3)
        _band(ax, bound("attention-correlated"), False)
        rho = np.linspace(0.0, table["correlation"].max(), 200)
        derived = theory.correlated(rho, first["out"], first["model"])
        ax.plot(rho, derived, label="√(ρ/σ² + (1−ρ)·RMS₀²)", **EXACT)
        _line(ax, table["correlation"], table, "out", 0, "measured", join="")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("correlation ρ of the values of two positions")
        ax.set_ylabel(MEASURED)
        ax.set_title(f"T = {first['seq_len']}, d_head = {first['d_head']}, α = 1")
        ax.legend(loc="upper left")
    return figure


@figures.drawn
def gated_silu(results: Results) -> Figure:
    """Gated SiLU's output and gradients over the model against α; lines are exact integrals."""
    table = cells(results, "gated_silu")
    table = table[table["dtype"] == sorted(table["dtype"])[-1]].sort_values("alpha")
    names = {"out": "output", "dx": "gradient of x", "dgate": "gradient of the gate"}
    with figures.style():
        figure, axes = figures.subplots(7.2, 3.2, 2, sharey=True)
        grid = np.geomspace(table["alpha"].min(), table["alpha"].max(), 60)
        exact = [theory.gated_silu_scales(a) for a in grid]
        model = np.array([gated_silu_std(a) for a in grid])
        panels = ((("out", "dx"), "gated-silu-output"), (("dgate",), "gated-silu-gate"))
        for ax, (fields, claim) in zip(axes, panels, strict=True):
            _band(ax, bound(claim))
            for field in fields:
                i = list(names).index(field)
                ax.plot(grid, [e[field] for e in exact] / model, "-", color="black", lw=1)
                aside = table["alpha"] * (1.06 if field == "dx" else 1.0)
                _line(ax, aside, table, field, i, names[field], join="")
            _log_axis(ax, table["alpha"], "α", 9)
            ax.legend(loc="best")
        axes[0].set_ylabel(MEASURED)
    return figure


@figures.drawn
def softmax(results: Results) -> Figure:
    """Softmax's output and gradient over the library's model, against n: one line per multiplier.

    Dashed: ``theory.derived_softmax`` over the model, for α ≤ 1.
    """
    table = cells(results, "softmax")
    table = table[table["dtype"] == sorted(table["dtype"])[-1]]
    with figures.style():
        figure, axes = figures.subplots(7.2, 3.2, 2)
        for ax, field, title in zip(axes, ("out", "dx"), ("output", "gradient"), strict=True):
            _band(ax, bound("softmax-output"), field == "out")
            for i, mult in enumerate(sorted(table["mult"].unique())):
                rows = table[table["mult"] == mult].sort_values("size")
                _line(ax, rows["size"], rows, field, i, plots.plain(mult))
                if field == "out" and mult <= 1:
                    # the library's model times n, by which the measured values are divided
                    weight = 1.0 / (1.0 + 4.0 / mult**2)
                    scale = [lerp_log(weight, 1.0, n**0.5) for n in rows["size"]]
                    derived = [theory.derived_softmax(n, mult) for n in rows["size"]]
                    ax.plot(rows["size"], np.divide(derived, scale), "k--", lw=1, zorder=4)
            _log_axis(ax, table["size"], "classes n")
            ax.set_title(title)
        plots.log2_axis(axes[1], axis="y")
        axes[0].set_ylabel(MEASURED)
        plots.legend(figure, axes[0], "α")
    return figure


@figures.drawn
def loss_gradient(results: Results) -> Figure:
    """RMS of the logits' gradient against V, at small and at unit logits, and against tokens."""
    table = cells(results, "cross_entropy")
    table = table[table["dtype"] == sorted(table["dtype"])[-1]]
    tokens = cells(results, "cross_entropy_tokens")
    tokens = tokens[tokens["dtype"] == sorted(tokens["dtype"])[-1]].sort_values("tokens")
    sizes = sorted(table["logits_rms"].unique())
    ends = [sizes[0]] if len(sizes) == 1 else [sizes[0], sizes[-1]]
    with figures.style():
        figure, axes = figures.subplots(7.2, 3.5, len(ends) + 1, sharey=True)
        for ax, rms in zip(axes, ends, strict=False):
            _band(ax, bound("loss-gradient-unit" if rms >= 0.5 else "loss-gradient-init"))
            at = table[table["logits_rms"] == rms]
            for i, alpha in enumerate(sorted(at["alpha"].unique())):
                rows = at[at["alpha"] == alpha].sort_values("vocab_size")
                _line(ax, rows["vocab_size"], rows, "dlogits", i, plots.plain(alpha))
            _log_axis(ax, at["vocab_size"], "vocabulary V", 4)
            ax.set_title(f"logits of RMS {plots.plain(rms)}")
        last = axes[-1]
        _band(last, bound("loss-gradient-tokens"))
        _line(last, tokens["tokens"], tokens, "dlogits", 6, "_")
        _log_axis(last, tokens["tokens"], "tokens", 4)
        last.set_title(f"V = {tokens['vocab_size'].iloc[0]}, α = 1")
        axes[0].set_ylabel(MEASURED)
        plots.legend(figure, axes[0], "α")
    return figure


@figures.drawn
def readout(results: Results) -> Figure:
    """RMS of the gradient that enters the trunk against V/d_model, for the two backward scales."""
    table = cells(results, "readout")
    table = table[table["dtype"] == sorted(table["dtype"])[-1]]
    ratio = table["vocab_size"] / table["d_model"]
    with figures.style():
        figure, (ax,) = figures.subplots(7, 3.6)
        _band(ax, bound("readout-fan-in"))
        x = np.array([ratio.min(), ratio.max()])
        ax.plot(x, np.sqrt(x), label="√(V/d_model)", **EXACT)
        names = {"fan_out": "1/√fan_out (ours)", "fan_in": "1/√fan_in (as printed)"}
        widths = sorted(table["d_model"].unique())
        for i, (backward, name) in enumerate(names.items()):
            ax.plot([], [], "-", lw=5, color=plots.PALETTE[i], label=name)
            for j, width in enumerate(widths):
                rows = table[(table["backward"] == backward) & (table["d_model"] == width)]
                look = plots.Look(plots.PALETTE[i], plots.MARKERS[j], "_")
                place = rows["vocab_size"] / width
                plots.points(ax, place, plots.ends(rows, "dx"), look, lw=1.5)
        for j, width in enumerate(widths):
            ax.plot([], [], plots.MARKERS[j], color=plots.TEXT, label=f"d_model {width}")
        plots.log2_axis(ax, axis="y")
        plots.log2_axis(ax, title="V / d_model")
        ax.set_ylabel("RMS of the gradient into the trunk")
        ax.legend(loc="upper left", ncols=2)
    return figure
