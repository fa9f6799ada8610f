"""Tables and quantities of the study ``op_scales``: measured scales over those of the models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from umup.lab import claims
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.laws import Interval, mean_interval

from . import theory

quantity = QUANTITIES = Quantities()

FIELDS = ("out", "dq", "dk", "dv", "dx", "dgate", "dlogits", "dw")


@remembered
def cells(results: Results, what: str) -> pd.DataFrame:
    """The points of one kind, one row per cell of the grid.

    Every measured field has its mean over seeds and, in ``FIELD_lo`` and ``FIELD_hi``, the 95 %
    interval; ``FIELD_seeds`` keeps the values. Attention has derived fields: ``dq_beta`` and
    ``dk_beta``, the RMS times √d_head; ``out_derived``, the output over ``derived_scale`` in place
    of the model; and the column logit_variance, α²/d_head.

    Raises:
        NotMeasured: there are no such points.
    """
    table = required(results.table(what), f"no points of {what}")
    if what.startswith("attention"):
        root = np.sqrt(table["d_head"])
        table["logit_variance"] = table["alpha"] ** 2 / table["d_head"]
        derived = map(theory.derived_scale, table["seq_len"], table["logit_variance"])
        factors = {
            "dq_beta": ("dq", root),
            "dk_beta": ("dk", root),
            "out_derived": ("out", table["model"] / list(derived)),
        }
        for name, (of, factor) in factors.items():
            table[name] = [list(np.array(v) * f) for v, f in zip(table[of], factor, strict=True)]
    if what == "linear":
        table["fan_ratio"] = table["fan_out"] / table["fan_in"]
    measured = [n for n in table.columns if n.split("_")[0] in FIELDS]
    for name in measured:
        intervals = [mean_interval(values) for values in table[name]]
        table[f"{name}_seeds"] = table[name]
        table[f"{name}_lo"] = [i.lo for i in intervals]
        table[f"{name}_hi"] = [i.hi for i in intervals]
        table[name] = [i.value for i in intervals]
    return table


def select(table: pd.DataFrame, within: Mapping[str, Any] | None, what: str) -> pd.DataFrame:
    """The rows of a grid in which each column of ``within`` equals a value or lies in [lo, hi].

    An end that is None is open.

    Raises:
        NotMeasured: no row does, or an end of a range lies outside what was measured.
    """
    rows = table
    for name, wanted in (within or {}).items():
        if name not in table:
            raise NotMeasured(f"{what} has no column {name}")
        if not isinstance(wanted, list):
            rows = rows[rows[name] == wanted]
            continue
        lo, hi = wanted
        if (lo is not None and table[name].min() > lo) or (
            hi is not None and table[name].max() < hi
        ):
            raise NotMeasured(f"{what}: {name} was not measured over all of {_stretch(wanted)}")
        lo, hi = (-math.inf if lo is None else lo), (math.inf if hi is None else hi)
        rows = rows[rows[name].between(lo, hi)]
    given = ", ".join(f"{name} {_stretch(wanted)}" for name, wanted in (within or {}).items())
    return required(rows, f"no points of {what} with {given}")


def _stretch(wanted: Any) -> str:
    """The arguments of `select` in words."""
    if not isinstance(wanted, list):
        return str(wanted)
    lo, hi = wanted
    if lo is None:
        return f"up to {hi:g}"
    return f"{lo:g} and more" if hi is None else f"{lo:g} to {hi:g}"


@quantity
def farthest(
    results: Results,
    what: str,
    fields: list[str],
    target: float = 1.0,
    within: Mapping[str, Any] | None = None,
) -> Interval:
    """Largest |value − target| over a grid, in per cent of the target's unit.

    The ends are the largest of the cells' lower and of their upper bounds, so that one noisy cell
    widens the interval and never hides.
    """
    rows = select(cells(results, what), within, what)
    found = []
    for field in fields:
        if field not in rows:
            raise NotMeasured(f"{what} has no {field}")
        for value, lo, hi in rows[[field, f"{field}_lo", f"{field}_hi"]].to_numpy():
            found.append(
                (
                    abs(value - target),
                    max(lo - target, target - hi, 0.0),
                    max(abs(lo - target), abs(hi - target)),
                )
            )
    return Interval(*(100.0 * max(end) for end in zip(*found, strict=True)))


@quantity
def exponent(
    results: Results, what: str, field: str, over: str, within: Mapping[str, Any] | None = None
) -> Interval:
    """Slope of log ``field`` over log ``over``, from one fit per seed."""
    rows = select(cells(results, what), within, what)
    if rows[over].nunique() < 2:
        raise NotMeasured(f"{what}: fewer than two values of {over}")
    x = np.log(rows[over].to_numpy(float))
    y = np.log(np.array(list(rows[f"{field}_seeds"])))
    return mean_interval(np.polyfit(x, y, 1)[0])


@quantity
def spread(
    results: Results, what: str, field: str, by: str, within: Mapping[str, Any] | None = None
) -> Interval:
    """Largest relative difference between two values of ``by``, per cent, over the pairs."""
    rows = select(cells(results, what), within, what)
    values = [np.array(v) for v in rows[f"{field}_seeds"]]
    if len(values) < 2 or rows[by].nunique() < 2:
        raise NotMeasured(f"{what}: fewer than two values of {by}")
    found = []
    for i, a in enumerate(values):
        for b in values[:i]:
            gap = mean_interval(100.0 * (a / b - 1.0))
            found.append((abs(gap.value), max(gap.lo, -gap.hi, 0.0), max(-gap.lo, gap.hi)))
    return Interval(*(max(end) for end in zip(*found, strict=True)))


def bound(claim: str) -> float:
    """The upper bound of a claim of this study, as a fraction; figures draw it."""
    return claims.bound("op_scales", claim) / 100.0
