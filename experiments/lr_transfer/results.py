"""What the claims of this study name: how far optima move with width, and whose loss is lower.

Intervals are 95 %. An absent ``steps`` is the horizon with the most widths, then the longest.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pandas as pd

from umup import laws
from umup.lab import tables
from umup.lab.absent import NotMeasured, required
from umup.lab.records import Results
from umup.lab.tables import NAMES
from umup.laws import Interval


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
    parts = (found.slope, found.shift, found.largest)
    return laws.Drift(*(part.at(where, seeds) for part in parts), found.lack_of_fit)


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


QUANTITIES = {
    f.__name__: f for f in (drift, shift, largest_shift, default_difference, wider_minus_narrower)
}
