"""Figures of the study ``embedding_lr``: tables drawn, nothing fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import claims, plots
from umup.lab import tables as shared
from umup.lab.absent import NotMeasured, required
from umup.lab.figures import drawn, style, subplots
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.laws import Optimum

from . import results as tables
from .results import ARMS, CONSTANT, RULE_TITLES, RULES, SP, TUNED

STUDY = "embedding_lr"
WIDTH = "width d_model"
LOSS = "held-out loss (nats/token)"
LOOKS = {
    "umup": Look(plots.GREEN, "D"),
    CONSTANT: Look(plots.SKY, "v"),
    "mup": Look(plots.BLUE, "o"),
    "mup_sqrt_emb": Look(plots.PURPLE, "P"),
    TUNED: Look(plots.PURPLE, "^"),
    SP: Look(plots.VERMILION, "s"),
}
"""Of rules and arms; they never share a figure with another of their colour."""
PAIRS = (
    ("mup", "umup", "μP − u-μP"),
    (TUNED, "umup", "μP, η̂_emb tuned − u-μP"),
    (CONSTANT, "umup", "u-μP, constant rule − u-μP"),
    (SP, "mup", "SP, embedding LR kept − μP"),
)
"""Paired differences: an arm, the one that is subtracted, and what the legend calls them."""


def _measured(
    names: Iterable[str], table: Callable[[str], pd.DataFrame]
) -> dict[str, tuple[pd.DataFrame, dict[int, Optimum]]]:
    """Name → its curves and their optima by width, of the names that have some."""
    found = {}
    for name in names:
        try:
            curves = table(name)
        except NotMeasured:
            continue
        if (shared.loss_by_lr(curves)["n"] > 0).any():
            found[name] = curves, {w: best for (_, w, _), best in shared.fits(curves).items()}
    return found


def _limits(found: Iterable[tuple[pd.DataFrame, Mapping[int, Optimum]]]) -> tuple[float, float]:
    """Limits of an axis of losses that holds the optimum of every curve."""
    means, best = [], []
    for curves, optima in found:
        means += shared.loss_by_lr(tables.levelled(curves))["mean"].dropna().tolist()
        best += [optima[width].loss for width in curves["d_model"].unique()]
    return plots.window(min(means), best, 2.0, most=max(means))


def _lines(
    ax: Axes, curves: pd.DataFrame, best: Mapping[int, Optimum], looks: Mapping[int, Look]
) -> None:
    """A curve and the star of its optimum for every width that has a look."""
    top = ax.get_ylim()[1]
    for width, table in shared.loss_by_lr(tables.levelled(curves)).groupby("d_model"):
        if (look := looks.get(int(width))) is not None:  # type: ignore[arg-type]
            ok = table[table["n"] > 0]
            ends = ok[["mean", "lo", "hi"]].to_numpy(float).T
            plots.points(ax, ok["log2_lr"], ends, look, ls="-", ms=3.5, elinewidth=0.8)
            plots.crosses(ax, table[table["n_diverged"] > 0]["log2_lr"], top, look.colour)
            plots.star(ax, best[int(width)], look.colour)  # type: ignore[arg-type]


def _by_width(widths: Iterable[int]) -> dict[int, Look]:
    return {w: Look(c, title=str(w)) for w, c in plots.sequence(sorted(set(widths))).items()}


@drawn
def emb_curves(results: Results) -> Figure:
    """Loss against η̂_emb, one panel per rule and one line per width; stars are fitted optima.

    The two panels of a scheme show the same runs in two units. Points are means over seeds, each
    freed of its own level, bars their 95 % intervals.
    """
    found = _measured(RULES, lambda rule: tables.emb_runs(results.runs, rule))
    if not found:
        raise NotMeasured("no curves over η̂_emb")
    widths = {int(w) for curves, _ in found.values() for w in curves["d_model"]}
    with style():
        figure, axes = subplots(max(2.4 * len(found), 4), 3.6, len(found), sharey=True)
        axes[0].set_ylim(*_limits(found.values()))
        for ax, (rule, (curves, best)) in zip(axes, found.items(), strict=True):
            _lines(ax, curves, best, _by_width(widths))
            plots.octaves(ax, "log₂ η̂_emb")
            ax.set_title(RULE_TITLES[rule], fontsize=9)
        axes[0].set_ylabel(LOSS)
        plots.legend(figure, axes, WIDTH)
    return figure


@drawn
def emb_optima(results: Results) -> Figure:
    """The best η̂_emb against width under every rule, relative to the narrowest width.

    The band is what a rule that transfers may do, the dotted line what a constant one is to do.
    """
    found = {}
    for rule in RULES:
        try:
            best = tables.emb_optima(results.runs, rule)
        except NotMeasured:
            continue
        if finite := {w: o for w, o in best.items() if math.isfinite(o.x)}:
            found[rule] = finite
    if not found:
        raise NotMeasured("no optimum of η̂_emb")
    widths = sorted({w for best in found.values() for w in best})
    allowed = claims.bound(STUDY, "rule-transfers")
    with style():
        figure, (ax,) = subplots(7, 4.0)
        plots.band(ax, -allowed, allowed)
        plots.label(ax, allowed, f"±{plots.plain(allowed)} octave", x=0.34)
        below = claims.bound(STUDY, "constant-rule-drifts")
        plots.guide(ax, below)
        plots.label(ax, below, "a constant rule: below", x=0.57, side="top")
        for i, (rule, best) in enumerate(found.items()):
            look = LOOKS[rule]._replace(title=RULE_TITLES[rule])
            base, aside = best[min(best)].x, plots.aside(i, len(found), 0.06)
            plots.optima(ax, best, look, base=base, aside=aside, open_end=0.6)
        plots.log2_axis(ax, widths, WIDTH)
        ax.set_ylabel("shift of the best η̂_emb (octaves)")
        plots.legend(figure, ax, columns=2)
    return figure


@drawn
def eta_curves(results: Results) -> Figure:
    """Loss against η: u-μP's two rules and the arms of μP at the largest width, SP's over widths.

    One seed per point; stars are fitted optima.
    """
    found = _measured(ARMS, lambda arm: tables.eta_curves(results.runs, arm))
    if not found:
        raise NotMeasured("no curves over η")
    last = max(int(curves["d_model"].max()) for curves, _ in found.values())
    alone = {arm: c[c["d_model"] == last] for arm, (c, best) in found.items() if last in best}
    panels = {"u-μP": ("umup", CONSTANT), "μP": ("mup", TUNED, SP)}
    with style():
        figure, axes = subplots(7.5, 3.6, 3, sharey=True)
        shown = [(curves, found[arm][1]) for arm, curves in alone.items()]
        low, high = _limits([*shown, *(found[arm] for arm in found if arm == SP)])
        axes[0].set_ylim(low, high + 0.3 * (high - low))  # room for legends
        for ax, (family, arms) in zip(axes, panels.items(), strict=False):
            for arm in (arm for arm in arms if arm in alone):
                look = LOOKS[arm]._replace(title=ARMS[arm].title)
                _lines(ax, *found[arm], {last: look})
            ax.set_title(f"{family} at width {last}")
        if SP in found:
            curves, best = found[SP]
            _lines(axes[2], curves, best, _by_width(curves["d_model"]))
        axes[2].set_title(ARMS[SP].title)
        for ax in axes:
            plots.octaves(ax)
            if ax.get_legend_handles_labels()[0]:
                ax.legend(loc="upper center", fontsize=8)
        axes[0].set_ylabel(LOSS)
    return figure


@drawn
def differences(results: Results) -> Figure:
    """What the embedding's learning rate is worth: paired differences of best losses over width.

    Bars are 95 % intervals over seeds, the band what the claims call equal.
    """
    found: list[tuple[Look, pd.DataFrame]] = []
    for i, (arm, against, title) in enumerate(PAIRS):
        try:
            table = tables.differences(results.runs, arm, against)
        except NotMeasured:
            continue
        look = plots.numbered(i, title)
        found.append((look, table[np.isfinite(table["difference"].astype(float))]))
    every = [table for _, table in found if len(table)]
    if not every:
        raise NotMeasured("no two arms at one width")
    every = required(pd.concat(every), "no two arms at one width")
    allowed = claims.bound(STUDY, "umup-vs-tuned-mup")
    with style():
        figure, (ax,) = subplots(7, 4.0)
        plots.band(ax, -allowed, allowed, line=True)
        plots.label(ax, allowed, f"±{allowed:g} nats", x=0.01)
        for i, (look, table) in enumerate(found):
            place = table["d_model"].to_numpy(float) * plots.aside(i, len(found), 0.08)
            plots.points(ax, place, plots.ends(table, "difference"), look)
        plots.log2_axis(ax, every["d_model"], WIDTH)
        ax.set_ylabel("difference in held-out loss (nats/token)")
        plots.legend(figure, ax, columns=2)
    return figure
