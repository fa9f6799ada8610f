"""Tables and quantities of the study ``transfer_axes``, from its records alone.

An *axis* is what distinguishes some of the runs from the base run: its own field, and what moves
along. Losses are held-out; intervals are 95 %, and differences of losses are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from umup.config import OptimConfig
from umup.lab import axis as axes
from umup.lab import records, tables
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results
from umup.lab.report import NO_RUNS
from umup.lab.tables import NAMES, remembered
from umup.laws import Interval, Optimum, drift

quantity = QUANTITIES = Quantities()

COMPLETEP = "completep"
SCHEMES = ("sp", "mup", "umup", COMPLETEP)
EPS = OptimConfig().eps


class Axis(NamedTuple):
    """What varies.

    Attributes:
        field: its place in the run's specification.
        title: what pages call it.
        power: the exponent of η* that the literature has, or NaN.
        law: the name of that line.
    """

    field: str
    title: str
    power: float = math.nan
    law: str = ""


AXES: Mapping[str, Axis] = {
    "width": Axis("model.d_model", "width"),
    "steps": Axis("optim.steps", "steps", -0.32, "steps^−0.32"),
    "steps_fixed": Axis("optim.steps", "steps, one warm-up", -0.32, "steps^−0.32"),
    "batch": Axis("optim.batch_size", "batch, equal steps", 0.5, "√batch"),
    "batch_tokens": Axis("optim.batch_size", "batch, equal tokens", 0.5, "√batch"),
    "seq_len": Axis("model.seq_len", "sequence length"),
    "depth": Axis("model.n_layers", "depth"),
}
ROUNDED = 0.02
"""Share of the steps by which warm-ups in proportion differ at most, being whole steps."""
GROWING = ("width", "depth", "steps", "batch")
"""Axes that also grow together."""
SHAPE = ["model.d_model", "model.n_layers", "model.seq_len", "optim.batch_size", "optim.steps"]


@remembered
def known(runs: pd.DataFrame) -> pd.DataFrame:
    """Current runs with their specification and the share of their warm-up.

    Raises:
        NotMeasured: there are none.
    """
    found = records.current(required(runs, NO_RUNS))
    found = records.with_spec(required(found, "no current runs"))
    return found.assign(share=found["optim.warmup_steps"] / found["optim.steps"])


@remembered
def base(runs: pd.DataFrame) -> dict[str, int]:
    """The shape from which all axes depart: of every field the value that most shapes have.

    Raises:
        NotMeasured: there are no runs but CompleteP's, which know depth alone.
    """
    found = known(runs)
    others = required(found[found["scheme"] != COMPLETEP], f"no runs but {NAMES[COMPLETEP]}'s")
    shapes = others[SHAPE].drop_duplicates()
    return {name: int(shapes[name].mode().iloc[0]) for name in SHAPE}


@remembered
def axis_runs(runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The runs along an axis, the base's among them, all with the default ε.

    Raises:
        NotMeasured: there are none.
    """
    every, at = known(runs), base(runs)
    plain = every[(every["optim.eps"] == EPS) & (every["optim.eps_rule"] == "constant")]
    kept = {name: plain[name] == at[name] for name in SHAPE if name != AXES[axis].field}
    batch = plain["optim.batch_size"]
    if axis == "batch_tokens":
        tokens = at["optim.batch_size"] * at["optim.steps"]
        kept["optim.steps"] = batch * plain["optim.steps"] == tokens
    if axis == "seq_len":
        tokens = at["optim.batch_size"] * at["model.seq_len"]
        kept["optim.batch_size"] = batch * plain["model.seq_len"] == tokens
    own = plain[np.logical_and.reduce(list(kept.values()))]
    if axis == "steps_fixed":
        shortest = own.loc[own["optim.steps"] == own["optim.steps"].min(), "optim.warmup_steps"]
        own = own[own["optim.warmup_steps"] == shortest.max()]
    else:
        own = own[own["share"] > own["share"].max() - ROUNDED]
    return required(own[list(runs.columns)], f"no runs over {AXES[axis].title}")


def curves(runs: pd.DataFrame, axis: str, scheme: str) -> dict[int, pd.DataFrame]:
    """Value of an axis → the prepared runs of a scheme there, values rising.

    Raises:
        NotMeasured: the scheme has runs at fewer than two values (the base's lies on every axis).
    """
    own, missing = axis_runs(runs, axis), f"{NAMES[scheme]}: no runs over {AXES[axis].title}"
    found = axes.by_value(required(own[own["scheme"] == scheme], missing), AXES[axis].field)
    if len(found) < 2:
        raise NotMeasured(missing)
    return {int(value): tables.prepare(each) for value, each in found.items()}


@remembered
def optima(runs: pd.DataFrame, axis: str, scheme: str) -> dict[int, Optimum]:
    """Value of an axis → the best log₂ η of a scheme, values rising.

    Raises:
        NotMeasured: the scheme has runs at fewer than two values.
    """
    found = curves(runs, axis, scheme)
    return {value: next(iter(tables.fits(own).values())) for value, own in found.items()}


def _ends(results: Results, axis: str, scheme: str, factor: float) -> tuple[int, int]:
    """The smallest and largest value, ``factor`` apart or more, that have an optimum.

    Raises:
        NotMeasured: they do not span the factor, or every run of one diverged.
    """
    found = optima(results.runs, axis, scheme)
    ends = spanning(found, factor, f"{NAMES[scheme]}: {AXES[axis].title}")
    for value in ends:
        if not math.isfinite(found[value].x):
            raise NotMeasured(f"{NAMES[scheme]}, {AXES[axis].title} {value}: {found[value].reason}")
    return ends


def _where(axis: str, scheme: str, ends: tuple[int, int]) -> str:
    return f"{NAMES[scheme]}, {AXES[axis].title} {ends[0]} to {ends[1]}"


@quantity
def shift(results: Results, axis: str, scheme: str, factor: float = 2) -> Interval:
    """Octaves from the best η at the axis' smallest value to that at its largest."""
    ends = _ends(results, axis, scheme, factor)
    own = axis_runs(results.runs, axis)
    found = axes.optimum_shift(own, AXES[axis].field, scheme)
    return found.at(_where(axis, scheme, ends))


@quantity
def power(results: Results, axis: str, scheme: str, factor: float = 2) -> Interval:
    """The ``shift`` by doubling: the exponent of η* in the axis, between its ends."""
    low, high = _ends(results, axis, scheme, factor)
    return shift(results, axis, scheme, factor).scaled(1 / math.log2(high / low))


@quantity
def price(results: Results, axis: str, scheme: str, factor: float = 2) -> Interval:
    """What the best η at the smallest value costs at the largest, nats: see ``tables.price``."""
    ends = _ends(results, axis, scheme, factor)
    own = axis_runs(results.runs, axis)
    return axes.price(own, AXES[axis].field, scheme).at(_where(axis, scheme, ends))


@remembered
def grown(runs: pd.DataFrame, scheme: str) -> pd.DataFrame:
    """The prepared runs of a scheme in which all of ``GROWING`` is above the base.

    Raises:
        NotMeasured: there are none.
    """
    every, at = known(runs), base(runs)
    fields = [AXES[axis].field for axis in GROWING]
    more = np.logical_and.reduce([every[name] > at[name] for name in fields])
    own = every[more & (every["scheme"] == scheme)]
    return tables.prepare(required(own, f"{NAMES[scheme]}: no runs in which all grow"))


def at_base(runs: pd.DataFrame, scheme: str) -> Optimum:
    """The best log₂ η of the base run."""
    at = base(runs)
    return optima(runs, "steps", scheme)[at["optim.steps"]]


@remembered
def carried(runs: pd.DataFrame, scheme: str) -> Optimum:
    """The base's best log₂ η, moved to where all grow by the sum of what each axis moves it.

    An axis moves it by as much per doubling as it does from the base to the axis' largest value.
    The bootstrap's draws of all optima enter, the base's in every term, so that the interval knows
    what they share.

    Raises:
        NotMeasured: an axis has no value above the base, or an optimum is not bracketed.
    """
    at, grew = base(runs), grown(runs, scheme).iloc[0]
    start = at_base(runs, scheme)
    ends, shares = [start], [1.0]
    for axis in GROWING:
        name = AXES[axis].field
        found = optima(runs, axis, scheme)
        if max(found) <= at[name]:
            raise NotMeasured(f"{NAMES[scheme]}: nothing above the base over {AXES[axis].title}")
        share = math.log2(grew[name] / at[name]) / math.log2(max(found) / at[name])
        ends.append(found[max(found)])
        shares.append(share)
        shares[0] -= share
    for end in ends:
        if end.edge:
            raise NotMeasured(f"an optimum is open: {end.reason}")
    rng = np.random.default_rng(0)
    n = min(len(end.draws) for end in ends)
    draws = sum(share * rng.choice(end.draws, n) for share, end in zip(shares, ends, strict=True))
    x = sum(share * end.x for share, end in zip(shares, ends, strict=True))
    lo, hi = np.percentile(draws, [2.5, 97.5])
    return replace(start, x=x, x_lo=float(lo), x_hi=float(hi), draws=draws)


@quantity
def beyond_sum(results: Results, scheme: str) -> Interval:
    """Octaves from where the sum of all axes carries the base's best η to where the best is."""
    best = next(iter(tables.fits(grown(results.runs, scheme)).values()))
    return drift({1: carried(results.runs, scheme), 2: best}).shift.at(_grown_to(results, scheme))


@quantity
def price_of_sum(results: Results, scheme: str) -> Interval:
    """What the η costs, nats, to which the sum of all axes carries the base's best."""
    own = grown(results.runs, scheme)
    best = next(iter(tables.fits(own).values()))
    found = tables.price(own, carried(results.runs, scheme), best)
    return found.at(_grown_to(results, scheme))


@quantity
def price_of_keeping(results: Results, scheme: str) -> Interval:
    """What the base's best η costs, nats, where all grow."""
    own = grown(results.runs, scheme)
    best = next(iter(tables.fits(own).values()))
    return tables.price(own, at_base(results.runs, scheme), best).at(_grown_to(results, scheme))


@quantity
def sum_helps(results: Results, scheme: str) -> Interval:
    """Nats by which keeping the base's best η costs more than carrying it by the sum."""
    kept, moved = price_of_keeping(results, scheme), price_of_sum(results, scheme)
    if math.isinf(moved.value) or math.isinf(kept.value):  # one of the two diverged
        gain = -math.inf if math.isinf(moved.value) else math.inf
        return Interval(gain, gain, gain).at(_grown_to(results, scheme))
    return kept.minus(moved).at(_grown_to(results, scheme))


def _grown_to(results: Results, scheme: str) -> str:
    grew = grown(results.runs, scheme).iloc[0]
    values = [f"{AXES[axis].title.split(',')[0]} {grew[AXES[axis].field]}" for axis in GROWING]
    return f"{NAMES[scheme]}, {', '.join(values)}"


@quantity
def steadier(results: Results, axis: str, scheme: str, against: str, factor: float = 2) -> Interval:
    """Octaves by which the best η of ``scheme`` moves less than that of ``against``, in size."""
    ours, theirs = (_size(shift(results, axis, name, factor)) for name in (scheme, against))
    return theirs.minus(ours).at(f"{NAMES[against]} less {NAMES[scheme]}, {AXES[axis].title}")


def _size(moved: Interval) -> Interval:
    """The interval of the absolute value."""
    ends = abs(moved.lo), abs(moved.hi)
    least = 0.0 if moved.lo < 0 < moved.hi else min(ends)
    return Interval(abs(moved.value), least, max(ends), moved.n)


@remembered
def eps_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """CompleteP's runs at the largest depth, at the η at which ε varies; ``arm``: rule and ε.

    Raises:
        NotMeasured: ε does not vary.
    """
    found = known(runs)
    found = found[found["scheme"] == COMPLETEP]
    varied = required(found[found["optim.eps_rule"] != "constant"], "ε does not vary")
    at = (found["lr"] == varied["lr"].iloc[0]) & (found["n_layers"] == varied["n_layers"].iloc[0])
    own = found[at]
    size = own["optim.eps"].map(lambda eps: "default" if eps == EPS else "large")
    return own.assign(arm=own["optim.eps_rule"] + " " + size, loss=tables.loss_of(own))


@quantity
def eps_difference(results: Results, eps: str) -> Interval:
    """Loss under a constant ε minus that under one scaled with the gradients, nats.

    ``eps`` is ``default`` or ``large``; CompleteP at the largest depth and its best η.
    """
    own = eps_runs(results.runs)
    by_arm = {name: each.set_index("seed")["loss"] for name, each in own.groupby("arm")}
    pair = [f"{rule} {eps}" for rule in ("constant", "scaled")]
    if missing := [name for name in pair if name not in by_arm]:
        raise NotMeasured(f"no runs with ε {missing[0]}")
    if by_arm[pair[1]].isna().any() or by_arm[pair[0]].isna().any():
        return Interval(math.inf, math.inf, math.inf)
    found, n = tables.paired(*(by_arm[name] for name in pair))
    return found.at(f"{int(own['n_layers'].iloc[0])} blocks", n)
