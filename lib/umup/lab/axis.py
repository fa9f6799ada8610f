"""A learning-rate sweep along one axis: its optima, what claims ask of it, and its figure.

An axis is one number of the run, named by its place in ``RunConfig``, as ``model.n_layers``;
``lr_sweep.AxisSweep`` sweeps η at several of its values. Losses are of held-out text in nats per
token, intervals 95 %, as in ``tables``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup import laws
from umup.lab import figures, plots, records, tables
from umup.lab.absent import NotMeasured, required
from umup.lab.plots import Look
from umup.laws import Interval, Optimum

NO_RUNS = "no runs are on record"


@tables.remembered
def by_value(runs: pd.DataFrame, axis: str) -> dict[float, pd.DataFrame]:
    """Value of the axis → its runs with their specification, values rising.

    Raises:
        NotMeasured: there are no runs.
    """
    runs = records.with_spec(required(runs, NO_RUNS))
    return dict(iter(runs.groupby(axis)))  # type: ignore[arg-type]


def optima(runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """One row per value and scheme: ``tables.optima`` with the column ``value``.

    Raises:
        NotMeasured: there are no runs.
    """
    found = [tables.optima(own).assign(value=v) for v, own in by_value(runs, axis).items()]
    return pd.concat(found, ignore_index=True)


def _ends(runs: pd.DataFrame, axis: str, scheme: str, n_values: int) -> list[pd.DataFrame]:
    """The scheme's runs at the first and at the last value, prepared."""
    own = [each[each["scheme"] == scheme] for each in by_value(runs, axis).values()]
    own = [each for each in own if (each["status"] == "ok").any()]
    if len(own) < max(n_values, 2):
        raise NotMeasured(f"{axis} has {len(own)} values, the claim needs {max(n_values, 2)}")
    return [tables.prepare(own[0]), tables.prepare(own[-1])]


def optimum_shift(
    runs: pd.DataFrame, axis: str, scheme: str = "umup", n_values: int = 2
) -> Interval:
    """Octaves from the best η at the axis' first value to that at its last.

    Raises:
        NotMeasured: the scheme has runs at fewer than ``n_values`` values.
    """
    first, last = (_optimum(own) for own in _ends(runs, axis, scheme, n_values))
    return laws.drift({1: first, 2: last}).shift  # as if the width had doubled: last − first


def price(runs: pd.DataFrame, axis: str, scheme: str = "umup", n_values: int = 2) -> Interval:
    """What the best η at the axis' first value costs at its last, nats: see ``tables.price``.

    Raises:
        NotMeasured: the scheme has runs at fewer than ``n_values`` values, or the sweep at an end
            does not bracket its optimum.
    """
    first, last = _ends(runs, axis, scheme, n_values)
    return tables.price(last, _optimum(first), _optimum(last))


def _optimum(runs: pd.DataFrame) -> Optimum:
    return next(iter(tables.fits(runs).values()))


def loss_change(runs: pd.DataFrame, axis: str, scheme: str = "umup", n_values: int = 2) -> Interval:
    """Loss at the axis' last value less that at its first, each at its own best η.

    Paired by seed.

    Raises:
        NotMeasured: the scheme has runs at fewer than ``n_values`` values, or the sweep at an end
            does not bracket its optimum.
    """
    first, last = (
        _losses_at_best(own, axis, scheme) for own in _ends(runs, axis, scheme, n_values)
    )
    return tables.paired(last, first)[0]


def _losses_at_best(runs: pd.DataFrame, axis: str, scheme: str) -> pd.Series:
    """The losses by seed at the best η of one value."""
    o = _optimum(runs)
    if o.edge and not (math.isfinite(o.x_lo) and math.isfinite(o.x_hi)):
        raise NotMeasured(f"{axis} = {runs[axis].iloc[0]:g}: {o.reason}")
    missing = f"{axis} = {runs[axis].iloc[0]:g}: no steady learning rate"
    best = required(tables.default_losses(runs), missing).iloc[0]
    return tables.losses_at(runs, scheme, best["d_model"], best["steps"], best["log2_lr"])


@figures.drawn
def figure(runs: pd.DataFrame, axis: str) -> Figure:
    """Loss against η at every value, one panel per scheme, and the optimum along the axis.

    Stars are fitted optima with 95 % intervals, crosses at the top edge learning rates at which a
    run diverged; losses far above the optima are cut off. Right, the optimum against that at the
    first value, hollow where a sweep does not bracket it; the band is half an octave to either
    side of none.
    """
    values = by_value(runs, axis)
    found = {
        (scheme, value): optimum
        for value, own in values.items()
        for (scheme, _, _), optimum in tables.fits(own).items()
    }
    curves = {value: tables.loss_by_lr(own) for value, own in values.items()}
    schemes = list(dict.fromkeys(scheme for scheme, _ in found))
    means = required(pd.concat(curves.values())["mean"].dropna(), "every run diverged")
    best = [optimum.loss for optimum in found.values()]
    limits = plots.window(means.min(), best, 5.0, most=means.max())
    with figures.style():
        size = 2.6 * (len(schemes) + 1)
        drawn, (*panels, right) = figures.subplots(size, 3.6, len(schemes) + 1)
        for ax, scheme in zip(panels, schemes, strict=True):
            own = {v: optimum for (s, v), optimum in found.items() if s == scheme}
            _curves(ax, {v: c[c["scheme"] == scheme] for v, c in curves.items()}, own, limits)
            ax.set_title(tables.NAMES[scheme], fontweight="bold")
        panels[0].set_ylabel(figures.LOSS)
        plots.legend(drawn, panels, axis)
        _along(right, found, list(values))
        right.set(xlabel=axis, ylabel="log₂ η* − that of the first (octaves)")
    return drawn


def _curves(
    ax: Axes,
    curves: dict[float, pd.DataFrame],
    found: dict[float, Optimum],
    limits: tuple[float, float],
) -> None:
    """Loss against η, one line per value; a star at each optimum."""
    for value, colour in plots.sequence(list(curves)).items():
        plots.curve(ax, curves[value], Look(colour, title=f"{value:g}"), top=limits[1])
        if value in found:
            plots.star(ax, found[value], colour)
    plots.octaves(ax)
    ax.set_ylim(limits)


def above_optimum(
    ax: Axes,
    runs: Mapping[Any, pd.DataFrame],
    best: Mapping[Any, Optimum],
    looks: Mapping[Any, Look],
    top: float,
) -> None:
    """Loss against η above that at the fitted optimum (a star), one line per value.

    Means are over seeds, each freed of its own level; crosses at ``top`` are learning rates at
    which a run diverged. A value of which every run diverged is left out.

    Args:
        ax: where to draw.
        runs: value → its runs, prepared. best: value → its optimum. looks: value → its look.
        top: nats above the optimum.

    Raises:
        NotMeasured: every run of every value diverged.
    """
    if not any(math.isfinite(each.loss) for each in best.values()):
        raise NotMeasured("every run diverged")
    for value, own in runs.items():
        if not math.isfinite(best[value].loss):
            continue
        table = tables.loss_by_lr(tables.levelled(own, "log2_lr", "val_loss"))
        ok, colour = table[table["n"] > 0], looks[value].colour
        ends = (ok[["mean", "lo", "hi"]] - best[value].loss).to_numpy(float).T
        plots.points(ax, ok["log2_lr"], ends, looks[value], ls="-", ms=3.5, elinewidth=0.8)
        plots.crosses(ax, table[table["n_diverged"] > 0]["log2_lr"], top, colour)
        plots.star(ax, replace(best[value], loss=0.0), colour)


def _along(ax: Axes, found: dict[tuple[str, float], Optimum], values: list[float]) -> None:
    """The optimum at every value against that at the first, one mark per scheme."""
    plots.band(ax, -0.5, 0.5)
    schemes = list(dict.fromkeys(scheme for scheme, _ in found))
    for i, scheme in enumerate(schemes):
        aside = 0.1 * (i - (len(schemes) - 1) / 2)
        own = {values.index(v) + aside: o for (s, v), o in found.items() if s == scheme}
        base = own[min(own)].x
        plots.optima(ax, own, plots.scheme(scheme), base=base, open_end=0.5)
    ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    ax.legend()
