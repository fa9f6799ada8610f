"""Quantities of this study's claims: how far optima move with width, and whose loss is lower.

Intervals are 95 %. An absent ``steps`` is the horizon with the most widths, then the longest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from umup import laws
from umup.lab import tables
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import spanning
from umup.lab.records import Results
from umup.lab.tables import NAMES
from umup.laws import Interval, Optimum

BASIN = 0.05
"""Nats above the lowest loss up to which an η lies in the basin."""


def _horizon(results: Results, scheme: str, steps: int | None) -> pd.DataFrame:
    """The runs of a scheme at ``steps``, or at the horizon of the most widths, then the longest."""
    runs = tables.prepare(results.runs)
    runs = required(runs[runs["scheme"] == scheme], f"no current {NAMES[scheme]} runs")
    if steps is None:
        steps = tables.main_horizon(runs)
    at = runs[runs["steps"] == steps]
    if at.empty:
        have = ", ".join(map(str, sorted(runs["steps"].unique())))
        raise NotMeasured(f"{NAMES[scheme]}: no runs of {steps} steps (have {have})")
    return at


def drift(results: Results, scheme: str, factor: float = 2, steps: int | None = None) -> Interval:
    """Octaves by which the optimal η moves per doubling of width, over ``factor`` or more in it."""
    return _drift(results, scheme, factor, steps).slope


def _drift(results: Results, scheme: str, factor: float, steps: int | None) -> laws.Drift:
    at = _horizon(results, scheme, steps)
    span = at["d_model"].max() / at["d_model"].min()
    if span < factor:
        raise NotMeasured(f"{NAMES[scheme]}: widths span {span:g}×, the claim needs {factor:g}×")
    fitted = tables.drift_fits(at)
    if not fitted:
        raise NotMeasured(f"{NAMES[scheme]}: fewer than two widths with an optimum")
    widths, steps = sorted(at["d_model"].unique()), at["steps"].iloc[0]
    where = f"{NAMES[scheme]}, widths {widths[0]} to {widths[-1]}, {steps} steps"
    found, optima = next(iter(fitted.values()))
    seeds = min(o.n_seeds for o in optima.values())
    slope, shift, largest = (
        part.at(where, seeds) for part in (found.slope, found.shift, found.largest)
    )
    return laws.Drift(slope, shift, largest, found.lack_of_fit)


def largest_shift(
    results: Results, scheme: str, factor: float, steps: int | None = None
) -> Interval:
    """Octaves between the optimal η of any two widths, the furthest apart; see ``laws.Drift``."""
    return _drift(results, scheme, factor, steps).largest


def shift(results: Results, scheme: str, factor: float, steps: int | None = None) -> Interval:
    """Octaves by which the optimal η moves over a ``factor`` in width, from the fitted slope."""
    return drift(results, scheme, factor, steps).scaled(math.log2(factor))


def default_difference(
    results: Results,
    scheme: str,
    against: str,
    steps: int | None = None,
    d_model: int | None = None,
    factor: float = 1,
) -> Interval:
    """Best-η loss of ``scheme`` minus that of ``against``, HPs at default, nats per token.

    At the largest width both have unless ``d_model`` is given, when these span at least ``factor``;
    paired by seed. Both sweeps must bracket their optimum, from above by divergence if need be.
    """
    ours = _horizon(results, scheme, steps)
    theirs = _horizon(results, against, int(ours["steps"].iloc[0]))
    both = pd.concat([ours, theirs])
    table = tables.default_differences(both, scheme)
    names = f"{NAMES[scheme]} and {NAMES[against]}"
    if len(table) and table["d_model"].max() < factor * table["d_model"].min():
        raise NotMeasured(f"{names}: the claim needs widths that span {factor:g}×")
    if d_model is not None:
        table = table[table["d_model"] == d_model]
    if table.empty:
        where = f"width {d_model}" if d_model else "a common width"
        raise NotMeasured(f"{names}: no steady learning rate of both at {where}")
    row = table.loc[table["d_model"].idxmax()]
    for (name, _, _), o in tables.fits(both[both["d_model"] == row["d_model"]]).items():
        if not (math.isfinite(o.x_lo) and math.isfinite(o.x_hi)) and o.edge:
            raise NotMeasured(f"{NAMES[name]} at width {row['d_model']}: {o.reason}")
    where = f"width {row['d_model']}, {row['steps']} steps"
    return Interval.of(row, "difference").at(where, int(row["n"]))


def wider_minus_narrower(
    results: Results, scheme: str, factor: float = 2, steps: int | None = None
) -> Interval:
    """Largest rise of the loss from one width to the next, nats per token, paired by seed.

    All widths at the η that is optimal at the smallest. Divergence counts as an infinite rise.
    """
    runs = tables.prepare(_horizon(results, scheme, steps))
    name = NAMES[scheme]
    table = tables.transferred(runs, int(runs["d_model"].min()))
    if table.empty or table["d_model"].max() < factor * table["d_model"].min():
        raise NotMeasured(f"{name}: the claim needs widths that span {factor:g}×")
    if table["n_diverged"].any():
        return Interval(math.inf, math.inf, math.inf)
    if (gaps := table[table["n"] == 0]).size:
        widths = ", ".join(map(str, gaps["d_model"]))
        raise NotMeasured(f"{name}: nothing within ½ octave of the transferred η at width {widths}")
    losses = [
        tables.losses_at(runs, scheme, row.d_model, row.steps, row.log2_lr)
        for row in table.sort_values("d_model").itertuples()
    ]
    steps_up = [tables.paired(b, a)[0] for a, b in pairwise(losses)]
    return Interval(*(max(getattr(s, end) for s in steps_up) for end in ("value", "lo", "hi")))


def _best(results: Results, scheme: str, d_model: int, steps: int | None) -> pd.Series:
    """Losses by seed at the best measured η of a width.

    Raises:
        NotMeasured: there is no η at which every run is steady.
    """
    runs = _horizon(results, scheme, steps)
    table = tables.default_losses(runs)
    table = table[table["d_model"] == d_model]
    row = required(table, f"{NAMES[scheme]}: no steady learning rate at width {d_model}").iloc[0]
    return tables.losses_at(runs, scheme, d_model, row["steps"], row["log2_lr"])


def against_wider(
    results: Results, scheme: str, against: str, d_model: int, steps: int | None = None
) -> Interval:
    """Best-η loss of ``scheme`` at a width minus that of ``against`` at twice the width, nats."""
    ours = _best(results, scheme, d_model, steps)
    theirs = _best(results, against, 2 * d_model, steps)
    return tables.paired(ours, theirs)[0].at(f"widths {d_model} and {2 * d_model}")


def advantage_slope(
    results: Results, scheme: str, against: str, factor: float, steps: int | None = None
) -> Interval:
    """Nats per doubling of width by which ``scheme`` loses its lead over ``against``, at best η.

    The slope of its loss minus theirs over log2 width (``laws.mean_slope``): below 0 where the lead
    grows. Of the seeds that every width has for both.
    """
    widths = _common_widths(results, (scheme, against), factor, steps)
    pairs = {
        width: _best(results, scheme, width, steps) - _best(results, against, width, steps)
        for width in widths
    }
    table = pd.DataFrame(pairs).dropna()
    required(table, f"{NAMES[scheme]} and {NAMES[against]}: no seed that every width has")
    found = laws.mean_slope(np.log2(np.array(widths, float)), table)
    return found.at(f"widths {widths[0]} to {widths[-1]}")


def _common_widths(
    results: Results, schemes: Sequence[str], factor: float, steps: int | None
) -> list[int]:
    """The widths at which all schemes have a steady η, rising, ``factor`` or more apart."""
    found = [
        set(tables.default_losses(_horizon(results, scheme, steps))["d_model"])
        for scheme in schemes
    ]
    widths = sorted(int(width) for width in set.intersection(*found))
    spanning(widths, factor, f"{' and '.join(NAMES[s] for s in schemes)}: widths")
    return widths


def price_of_narrow(
    results: Results, scheme: str, factor: float, steps: int | None = None
) -> Interval:
    """What the narrowest width's best η costs at the widest, nats: see ``tables.price``."""
    runs, widths = (
        _horizon(results, scheme, steps),
        _common_widths(results, (scheme,), factor, steps),
    )
    fitted = {width: o for (_, width, _), o in tables.fits(runs).items()}
    found = tables.price(runs[runs["d_model"] == widths[-1]], fitted[widths[0]], fitted[widths[-1]])
    return found.at(f"width {widths[0]}'s η at width {widths[-1]}")


def basin(results: Results, scheme: str, d_model: int, steps: int | None = None) -> float:
    """Octaves of η over which the loss stays within ``BASIN`` nats of the lowest.

    Of the mean curve of a width, seeds' own levels taken out, linear between measured η.

    Raises:
        NotMeasured: the curve does not rise so far on both sides.
    """
    runs = _horizon(results, scheme, steps)
    runs = required(runs[runs["d_model"] == d_model], f"{NAMES[scheme]}: no runs of {d_model}")
    o = next(iter(tables.fits(runs).values()))
    level = pd.Series(o.by_seed) if not o.edge else runs.groupby("seed")["loss"].min()
    mean = (runs["loss"] - runs["seed"].map(level)).groupby(runs["log2_lr"]).mean().dropna()
    required(mean.to_frame(), f"{NAMES[scheme]} at width {d_model}: every run diverged")
    x, y = mean.index.to_numpy(float), mean.to_numpy() - BASIN
    best = int(y.argmin())
    left = [i for i in range(best) if y[i] > 0 >= y[i + 1]]
    right = [i for i in range(best, len(y) - 1) if y[i] <= 0 < y[i + 1]]
    if not left or not right:
        raise NotMeasured(f"{NAMES[scheme]} at width {d_model}: the basin is open")
    ends = [x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i]) for i in (left[-1], right[0])]
    return float(ends[1] - ends[0])


def basin_gain(
    results: Results, scheme: str, against: str, factor: float, steps: int | None = None
) -> Interval:
    """Octaves by which ``scheme``'s ``basin`` is wider than that of ``against``.

    The mean over widths, whose scatter gives the interval.
    """
    widths = _common_widths(results, (scheme, against), factor, steps)
    gains = [basin(results, scheme, w, steps) - basin(results, against, w, steps) for w in widths]
    found = laws.mean_interval(gains)
    return Interval(found.value, found.lo, found.hi, 0, f"{len(widths)} widths, one basin each")


def largest_shift_over_steps(
    results: Results, scheme: str, d_model: int, factor: float
) -> Interval:
    """Octaves between the optimal η of any two horizons, the furthest apart (``laws.Drift``)."""
    found = _over_steps(results, scheme, d_model, factor)
    horizons = f"width {d_model}, {min(found)} to {max(found)} steps"
    return laws.drift(found).largest.at(horizons)


def drift_over_steps(results: Results, scheme: str, d_model: int, factor: float) -> Interval:
    """Octaves from the shortest to the longest horizon's optimal η, per doubling of the steps."""
    found = _over_steps(results, scheme, d_model, factor)
    ends = {steps: found[steps] for steps in (min(found), max(found))}
    where = f"{NAMES[scheme]}, width {d_model}, {min(found)} to {max(found)} steps"
    return laws.drift(ends).slope.at(where, min(o.n_seeds for o in ends.values()))


def _over_steps(results: Results, scheme: str, d_model: int, factor: float) -> dict[int, Optimum]:
    fitted = tables.fits(tables.prepare(results.runs))
    found = {steps: o for (name, w, steps), o in fitted.items() if (name, w) == (scheme, d_model)}
    spanning(found, factor, f"{NAMES[scheme]} at width {d_model}: horizons")
    return found


def price_of_short(results: Results, scheme: str, d_model: int, factor: float) -> Interval:
    """What the shortest horizon's best η costs at the longest, nats: see ``tables.price``."""
    found = _over_steps(results, scheme, d_model, factor)
    short, long = min(found), max(found)
    runs = _horizon(results, scheme, long)
    priced = tables.price(runs[runs["d_model"] == d_model], found[short], found[long])
    return priced.at(f"width {d_model}, {short} steps' η at {long}")


def ranks_alike(results: Results) -> Interval:
    """Share of widths and horizons at which training and held-out loss rank schemes alike, %.

    Each scheme at its best η by held-out loss, means over the seeds that all of them have there.
    """
    runs = tables.prepare(results.runs)
    best = tables.default_losses(runs)
    alike = []
    for (width, steps), cell in best.groupby(["d_model", "steps"]):
        found = []
        for row in cell.to_dict("records"):
            at = runs["log2_lr"].eq(row["log2_lr"]) & runs["scheme"].eq(row["scheme"])
            at &= runs["d_model"].eq(width) & runs["steps"].eq(steps)
            found.append(runs[at].set_index("seed")[["loss", "final_loss"]])
        common = functools.reduce(pd.Index.intersection, (one.index for one in found))
        means = [one.loc[common].mean().to_numpy() for one in found]
        held_out, training = np.array(means).T
        alike.append(bool((held_out.argsort() == training.argsort()).all()))
    required(pd.Series(alike), "no cell with a steady learning rate")
    return Interval.once(100.0 * float(np.mean(alike))).at(f"{len(alike)} widths and horizons")


QUANTITIES = {
    f.__name__: f
    for f in (
        drift,
        shift,
        largest_shift,
        default_difference,
        wider_minus_narrower,
        against_wider,
        advantage_slope,
        price_of_narrow,
        basin_gain,
        largest_shift_over_steps,
        drift_over_steps,
        price_of_short,
        ranks_alike,
    )
}
