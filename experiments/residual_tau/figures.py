"""Figures of the study `residual_tau`: its tables drawn beside the exact recursion and the bounds.

Every function takes ``records.Results`` and returns a new figure; a lack of records is said in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from umup.lab import figures
from umup.lab.absent import NotMeasured, otherwise, required
from umup.lab.records import Results
from umup.rules import residual_taus

from . import results as tables
from .lemma import CONVENTIONS, Shares, shares
from .results import ARMS

COLOURS = {
    "derived": "#009E73", "library": "#E69F00", "printed": "#CC79A7", "mup": "#0072B2",
    "completep": "#56B4E9", "sp": "#D55E00",
}  # fmt: skip
MARKERS = {"derived": "D", "library": "^", "printed": "v", "mup": "o", "completep": "P", "sp": "s"}
PARTS = {"embedding": ("#555555", "o"), "attention": ("#0072B2", "s"), "ffn": ("#D55E00", "D")}
PART_NAMES = {"embedding": "embedding", "attention": "attention", "ffn": "FFN"}


def _exact(convention: str, n_layers: int, alpha: float = 1.0, ratio: float = 1.0) -> Shares:
    return shares([float(t) for t in residual_taus(n_layers, alpha, ratio, convention)])


def _log2_axis(ax: Axes, values: Sequence[float], label: str) -> None:
    ax.set_xscale("log", base=2)
    names = [f"{v:g}" if v >= 1 else f"1/{1 / v:g}" for v in values]
    ax.set_xticks(list(values), names)
    ax.minorticks_off()
    ax.set_xlim(min(values) / 1.3, max(values) * 1.3)
    ax.set_xlabel(label)


def _bars(table: pd.DataFrame, name: str) -> np.ndarray:
    """Lengths of error bars down and up, (2, rows); NaN where the interval is open."""
    ends = table[[f"{name}_lo", f"{name}_hi"]].to_numpy(float).T
    error = np.abs(ends - table[name].to_numpy(float))
    return np.where(np.isfinite(error), error, np.nan)


@figures.drawn
def contributions(results: Results) -> Figure:
    """Share of the output's variance from embedding, attention and FFN against depth, α = 1.

    A panel a convention. Lines are the exact recursion for branches of unit scale, markers the
    real model at initialization with 95 % intervals over seeds.
    """
    table = tables.contributions(results)
    depths = sorted(table["n_layers"].unique())
    with figures.style():
        figure, axes = figures.subplots(7.6, 3.5, len(CONVENTIONS), sharey=True)
        for ax, convention in zip(axes, CONVENTIONS, strict=True):
            exact = [_exact(convention, n) for n in depths]
            mine = table[table["arm"] == convention].sort_values("n_layers")
            for part, (colour, marker) in PARTS.items():
                line = [getattr(e, part) for e in exact]
                # Attention's and FFN's lines may coincide: dashes let the one below be seen.
                ax.plot(depths, line, "--" if part == "ffn" else "-", color=colour, lw=1.6)
                ax.errorbar(mine["n_layers"], mine[part], yerr=_bars(mine, part), fmt=marker,
                            color=colour, ms=5, capsize=2.5, label=PART_NAMES[part])  # fmt: skip
            _log2_axis(ax, depths, "depth N (blocks)")
            ax.set_title(f"{convention} τ", fontweight="bold")
            ax.set_ylim(0, 1)
        axes[0].set_ylabel("share of the output's variance")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside upper center",
                      title="lines: exact at unit scale; markers: real model")  # fmt: skip
    return figure


@figures.drawn
def realised(results: Results) -> Figure:
    """The two ratios at the output against the hyperparameters that are to set them.

    Left σ(residual)/σ(embedding) against α_residual, right σ(attention)/σ(FFN) against
    α_residual_attn_ratio. Lines: exact for branches of unit scale. Filled markers: the real model
    with T = 1, where that holds; hollow: with long sequences.
    """
    control, long = tables.realised(results, 1), tables.realised(results)
    counts = control.groupby("n_layers").size()
    depth = int(counts.idxmax())
    both = {"full": control, "none": long}
    with figures.style():
        figure, axes = figures.subplots(7.6, 3.9, 2)
        for ax, what, hp, other in zip(
            axes, ("residual", "attention"), ("alpha", "ratio"), ("ratio", "alpha"), strict=True
        ):
            at = control[(control["n_layers"] == depth) & (control[other] == 1.0)]
            if at.empty:
                figures.note(ax, f"no walks over {hp} at T = 1")
                continue
            values = sorted(at[hp].unique())
            fine = np.geomspace(values[0], values[-1], 33)
            ax.plot(fine, fine, ":", color="#777777", lw=2, label="as the HP says")
            for i, convention in enumerate(CONVENTIONS):
                exact = [_exact(convention, depth, **{hp: v}) for v in fine]
                line = [
                    ((e.attention + e.ffn) / e.embedding if what == "residual"
                     else e.attention / e.ffn) ** 0.5
                    for e in exact
                ]  # fmt: skip
                ax.plot(fine, line, "-", color=COLOURS[convention], lw=1.3)
                for fill, table in both.items():
                    mine = table[(table["n_layers"] == depth) & (table[other] == 1.0)]
                    mine = mine[mine["arm"] == convention].sort_values(hp)
                    aside = 2 ** (0.08 * (i - 1))  # so that equal values do not hide each other
                    ax.errorbar(mine[hp] * aside, mine[what], yerr=_bars(mine, what), capsize=2,
                                fmt=MARKERS[convention], color=COLOURS[convention], ms=5.5,
                                fillstyle=fill, label=convention if fill == "full" else "_",
                                elinewidth=1)  # fmt: skip
            ax.set_yscale("log", base=2)
            ax.minorticks_off()
            _log2_axis(ax, values, {"residual": "α_residual",
                                    "attention": "α_residual_attn_ratio"}[what])  # fmt: skip
            ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}" if v >= 1 else f"1/{1 / v:g}")
        axes[0].set_ylabel("σ(attention + FFN) / σ(embedding)")
        axes[1].set_ylabel("σ(attention) / σ(FFN)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=4, loc="outside upper center",
                      title=f"N = {depth}; filled T = 1, hollow the full sequence")  # fmt: skip
    return figure


@figures.drawn
def lemma(results: Results) -> Figure:
    """Left: the largest error of Lemma C.1 over depth. Right: what every branch contributes.

    Left, against the depth-μP network that each convention equals (printed: the nearest); the
    dotted line is the claims' bound. Right, the exact share of each branch in the output's
    variance relative to an even one, at the largest depth and α = 1.
    """
    table = tables.networks(results)
    depths = sorted(table["n_layers"].unique())
    with figures.style():
        figure, (left, right) = figures.subplots(7.6, 3.7, 2)
        for convention in CONVENTIONS:
            mine = table[table["convention"] == convention].sort_values("n_layers")
            look = {"color": COLOURS[convention], "marker": MARKERS[convention], "ms": 5, "lw": 1.4}
            worst = [max(v) for v in mine["own_error"]]
            left.plot(mine["n_layers"], worst, label=convention, **look)
            parts = _exact(convention, depths[-1]).branches
            place = (np.arange(len(parts)) + 0.5) / len(parts)
            right.plot(place, parts * len(parts), color=COLOURS[convention], lw=1.4)
            some = np.linspace(0, len(parts) - 1, 7).round().astype(int)
            right.plot(place[some], parts[some] * len(parts), ls="", label=convention,
                       **{k: v for k, v in look.items() if k != "lw"})  # fmt: skip
        left.axhline(1e-12, ls=":", color="#777777", lw=1.5)
        left.annotate("bound 1e-12", (0.98, 1e-12), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=9, color=figures.OTHER)  # fmt: skip
        left.set_yscale("log")
        left.set_ylim(1e-16, 30)
        _log2_axis(left, depths, "depth N (blocks)")
        left.set_ylabel("largest error / RMS of the layer")
        left.set_title("unit-scaled against plain depth-μP")
        right.set_yscale("log", base=2)
        low, high = right.get_ylim()
        right.set_ylim(min(low, 1 / 8), max(high, 8))
        right.yaxis.set_major_formatter(lambda v, _: f"{v:g}" if v >= 1 else f"1/{1 / v:g}")
        right.set_xlabel("branch l / L")
        right.set_ylabel("L × share of the output's variance")
        right.set_title(f"one branch's part, N = {depths[-1]}, α = 1")
        left.legend(loc="center left", bbox_to_anchor=(0.0, 0.55))
    return figure


@figures.drawn
def stream(results: Results) -> Figure:
    """σ along the skip stream at initialization, a panel a scheme and a line a depth.

    The band is 1 ± 0.1. u-μP also with T = 1, where every branch has unit scale.
    """
    panels = [("sp", None), ("mup", None), ("completep", None), ("derived", None), ("derived", 1)]
    walks = otherwise(lambda missing: None)(lambda p: tables.at_default(tables.walks(results, *p)))
    found = {p: table for p in panels if (table := walks(p)) is not None}
    if not found:
        raise NotMeasured("no walks are on record")
    depths = sorted(set().union(*(t["n_layers"] for t in found.values())))
    colours = dict(zip(depths, sns.color_palette("flare", len(depths)), strict=True))
    names = {"sp": "SP", "mup": "μP", "completep": "CompleteP", "derived": "u-μP"}
    with figures.style():
        figure, axes = figures.subplots(1.75 * len(found) + 0.5, 3.5, len(found), sharey=True)
        for ax, ((arm, seq_len), table) in zip(axes, found.items(), strict=True):
            ax.axhspan(0.9, 1.1, color="#999999", alpha=0.25, lw=0)
            for row in table.sort_values("n_layers").to_dict("records"):
                mean = np.mean(row["stream"], axis=0)
                place = np.arange(len(mean)) / (len(mean) - 1)
                n = row["n_layers"]
                ax.plot(place, mean, "-", color=colours[n], lw=1.6, label=str(n))
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}" if v >= 1 else f"1/{1 / v:g}")
            tokens = seq_len or int(table["seq_len"].iloc[0])
            ax.set_title(f"{names[arm]}, T = {tokens}", fontweight="bold")
            ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            ax.set_xlabel("branch l / L")
        axes[0].set_ylabel("σ of the skip stream")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, title="depth N", ncols=len(depths),
                      loc="outside upper center")  # fmt: skip
    return figure


@figures.drawn
def trained(results: Results) -> Figure:
    """Shares of the output's mean square before and after training, a panel a convention.

    Hollow bars before, filled after; shares after training need not sum to 1, since the parts are
    then correlated. Error bars: 95 % over seeds where there are two or more.
    """
    table = tables.contributions(results, "trained")
    depths = sorted(table["n_layers"].unique())
    with figures.style():
        figure, axes = figures.subplots(7.6, 3.5, len(CONVENTIONS), sharey=True)
        for ax, convention in zip(axes, CONVENTIONS, strict=True):
            mine = table[table["arm"] == convention]
            for j, (part, (colour, _)) in enumerate(PARTS.items()):
                for stage, shift in (("init", -0.055), ("trained", 0.055)):
                    at = mine[mine["stage"] == stage].sort_values("n_layers")
                    place = [depths.index(n) + 0.28 * (j - 1) + shift for n in at["n_layers"]]
                    fill = colour if stage == "trained" else "white"
                    ax.bar(place, at[part], 0.11, color=fill, edgecolor=colour,
                           label=PART_NAMES[part] if stage == "trained" else "_")  # fmt: skip
            ax.set_xticks(range(len(depths)), [str(n) for n in depths])
            ax.set_xlabel("depth N (blocks)")
            ax.set_title(f"{convention} τ", fontweight="bold")
            ax.grid(False, axis="x")
        axes[0].set_ylabel("mean square / output's")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside upper center",
                      title="hollow: before training; filled: after")  # fmt: skip
    return figure


@figures.drawn
def loss_by_lr(results: Results) -> Figure:
    """Final loss against η, a panel an arm and a line a depth; stars are fitted optima.

    Bands are 95 % intervals over three seeds or more, crosses at the top edge learning rates at
    which a run diverged.
    """
    losses, optima = tables.losses(results), tables.optima(results)
    required(losses[losses["n"] > 0], "no run is on record that did not diverge")
    arms, depths = list(optima), sorted(losses["depth"].unique())
    colours = dict(zip(depths, sns.color_palette("flare", len(depths)), strict=True))
    low = losses["mean"].min()
    best = [o.loss for fits in optima.values() for o in fits.values() if np.isfinite(o.loss)]
    top = low + 2.2 * max(max(best) - low, 0.05)
    with figures.style():
        figure, axes = figures.subplots(max(1.95 * len(arms), 4), 3.6, len(arms), sharey=True)
        for ax, arm in zip(axes, arms, strict=True):
            for depth, group in losses[losses["arm"] == arm].groupby("depth"):
                ok, colour = group[group["n"] > 0], colours[depth]
                ax.plot(ok["log2_lr"], ok["mean"], "o-", color=colour, ms=3.5, lw=1.5, label=depth)
                many = ok[ok["n"] > 2]  # of two seeds the interval says nothing
                ax.fill_between(many["log2_lr"], many["lo"], many["hi"], color=colour, alpha=0.15,
                                lw=0)  # fmt: skip
                bad = group[group["n_diverged"] > 0]["log2_lr"]
                if len(bad):
                    ax.plot(bad, np.full(len(bad), top), "x", color=colour, mew=1.5, clip_on=False)
                o = optima[arm][depth]
                if not o.edge:
                    error = np.nan_to_num([[o.x - o.x_lo], [o.x_hi - o.x]], posinf=1.0)
                    ax.errorbar(o.x, o.loss, xerr=error, fmt="*", color=colour, mec="black",
                                mew=0.6, ms=11, ecolor="black", elinewidth=1.1, capsize=2.5,
                                zorder=5)  # fmt: skip
            ax.set_title(ARMS[arm].title.replace(", ", "\n"), fontweight="bold")
            ax.set_xlabel("log₂ η")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set_ylim(low - 0.08 * (top - low), top)
        axes[0].set_ylabel(figures.LOSS)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, title="depth N", ncols=len(depths),
                      loc="outside upper center")  # fmt: skip
    return figure


@figures.drawn
def over_depth(results: Results) -> Figure:
    """Left: the optimum's shift from the shallowest model. Right: the best loss over depth.

    Error bars are 95 % intervals; hollow markers a sweep that does not bracket its optimum; the
    band ±½ octave, inside which a sweep in factors of two cannot tell a shift from none.
    """
    optima = tables.optima(results)
    depths = sorted({depth for fits in optima.values() for depth in fits})
    with figures.style():
        figure, (left, right) = figures.subplots(7.6, 4.0, 2)
        left.axhspan(-0.5, 0.5, color="#999999", alpha=0.2, lw=0)
        for i, (arm, fits) in enumerate(optima.items()):
            base = fits[min(fits)].x
            for depth, o in fits.items():
                place = depth * 2 ** (0.07 * (i - (len(optima) - 1) / 2))
                look = {"fmt": MARKERS[arm], "color": COLOURS[arm], "ms": 5.5, "capsize": 2.5,
                        "mfc": "white" if o.edge else COLOURS[arm], "lw": 1.2}  # fmt: skip
                shift = np.nan_to_num([[o.x - o.x_lo], [o.x_hi - o.x]], posinf=0.5)
                left.errorbar(place, o.x - base, yerr=np.maximum(shift, 0), **look)
                error = np.array([[o.loss - o.loss_lo], [o.loss_hi - o.loss]])
                error = np.where(np.isfinite(error), error, 0)
                label = ARMS[arm].title if depth == min(fits) else "_"
                right.errorbar(place, o.loss, yerr=error, label=label, **look)
        for ax in (left, right):
            _log2_axis(ax, depths, "depth N (blocks)")
        left.set_ylabel(f"log₂ η* − log₂ η* at N = {depths[0]} (octaves)")
        right.set_ylabel(f"best {figures.LOSS}")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside upper center")
    return figure
