"""A learning-rate sweep along one axis: its optima, what claims ask of it, and its figure.

An axis is one number of the run, named by its place in ``RunConfig``, as ``model.n_layers``;
``lr_sweep.AxisSweep`` sweeps η at several of its values. Losses are of held-out text in nats per
token, intervals 95 %, as in ``tables``.
"""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup import laws
from umup.lab import figures, records, tables
from umup.lab.absent import NotMeasured, required
from umup.laws import Interval

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
    first, last = (
        next(iter(tables.fits(own).values())) for own in _ends(runs, axis, scheme, n_values)
    )
    return laws.drift({1: first, 2: last}).shift  # as if the width had doubled: last − first


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
    (o,) = tables.fits(runs).values()
    if o.edge and not (math.isfinite(o.x_lo) and math.isfinite(o.x_hi)):
        raise NotMeasured(f"{axis} = {runs[axis].iloc[0]:g}: {o.reason}")
    missing = f"{axis} = {runs[axis].iloc[0]:g}: no steady learning rate"
    best = required(tables.default_losses(runs), missing).iloc[0]
    return tables.losses_at(runs, scheme, best["d_model"], best["steps"], best["log2_lr"])


@figures.drawn
def figure(runs: pd.DataFrame, axis: str) -> Figure:
    """Loss against η at every value, one panel per scheme, and the optimum along the axis.

    Stars are fitted optima, bars 95 % intervals (none where the sweep leaves an end open), the band
    is half an octave to either side of the first value's optimum.
    """
    table = optima(runs, axis)
    schemes = list(dict.fromkeys(table["scheme"]))
    with figures.style():
        size = 3.3 * (len(schemes) + 1)
        drawn, (*panels, right) = figures.subplots(size, 3.6, len(schemes) + 1)
        for ax, scheme in zip(panels, schemes):
            _curves(ax, runs, axis, scheme)
        _along(right, table, axis)
    return drawn


def _curves(ax: Axes, runs: pd.DataFrame, axis: str, scheme: str) -> None:
    """Loss against η, one line per value; a star at each optimum."""
    values = by_value(runs, axis)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(values)))
    for (value, own), colour in zip(values.items(), colours):
        own = own[own["scheme"] == scheme]
        curve = tables.loss_by_lr(own).query("n > 0")
        x, y = curve["log2_lr"], curve["mean"]
        ax.plot(x, y, "o-", ms=3, lw=1.5, color=colour, label=f"{value:g}")
        for o in tables.optima(own).query("not edge").itertuples():
            ax.plot(o.log2_lr, o.loss, "*", color=colour, mec="black", ms=11)
    ax.set(title=tables.NAMES[scheme], xlabel="log₂ η", ylabel=figures.LOSS)
    ax.legend(title=axis)


def _along(ax: Axes, table: pd.DataFrame, axis: str) -> None:
    """The optimum at every value against that at the first, one line per scheme."""
    ax.axhspan(-0.5, 0.5, color="#999999", alpha=0.18, lw=0)
    values = list(dict.fromkeys(table["value"]))
    for scheme, line in table.groupby("scheme", sort=False):
        ends = line[["log2_lr_lo", "log2_lr_hi"]].to_numpy().T
        reach = np.abs(ends - line["log2_lr"].to_numpy())
        ax.errorbar(
            line["value"].map(values.index),
            line["log2_lr"] - line["log2_lr"].iloc[0],
            yerr=np.where(np.isfinite(reach), reach, np.nan),
            fmt=f"{figures.MARKERS[str(scheme)]}-",
            color=figures.COLOURS[str(scheme)],
            label=tables.NAMES[str(scheme)],
            capsize=3,
            lw=1.4,
        )
    ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    ax.set(xlabel=axis, ylabel="log₂ η* − that of the first value")
    ax.legend()
