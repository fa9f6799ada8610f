"""Tables and quantities of the study ``schedules``: losses, optima, gaps, and what forking saves.

Losses are held out, nats per token, at the end of a run; intervals are 95 %. A *line* is a schedule
of one scheme at one budget: its losses over η and seeds. A line's own best η is where the parabola
through the losses near the lowest has its minimum.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd

from umup import laws
from umup.lab import records, tables
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.laws import Interval, Optimum

quantity = QUANTITIES = Quantities()

WSD = ("wsd", "wsd_sqrt")
SCHEDULES = ("cosine", "linear", "two_step", *WSD)
TITLES = {
    "cosine": "cosine",
    "linear": "linear",
    "two_step": "two-step",
    "wsd": "WSD, linear decay",
    "wsd_sqrt": "WSD, 1 − √x decay",
}
SHARE = 0.2  # of a WSD run's steps, unless another is named
COLUMNS = ["scheme", "schedule", "steps", "share", "log2_lr", "seed", "loss"]


class Line(NamedTuple):
    """One curve of loss against η; ``share`` is 0 for schedules without a decay of their own."""

    scheme: str
    schedule: str
    steps: int
    share: float

    @classmethod
    def of(cls, schedule: str, steps: int, scheme: str = "umup", share: float = SHARE) -> Line:
        """The line of a schedule, its share 0 unless it is WSD."""
        return cls(scheme, schedule, steps, share if schedule in WSD else 0.0)


@remembered
def losses(results: Results) -> pd.DataFrame:
    """Every run and every fork, one row each: COLUMNS, the loss NaN where it diverged.

    Raises:
        NotMeasured: there are none.
    """
    frames = []
    if len(results.runs):
        runs = records.with_spec(results.runs)
        frames.append(
            pd.DataFrame(
                {
                    "scheme": runs["scheme"],
                    "schedule": runs["optim.schedule"],
                    "steps": runs["steps"],
                    "share": 0.0,
                    "log2_lr": np.log2(runs["lr"].astype(float)).round(4),
                    "seed": runs["seed"],
                    "loss": runs["val_loss"].where(runs["status"] == "ok"),
                }
            )
        )
    rows = [
        {
            "scheme": point["scheme"],
            "schedule": rung["schedule"],
            "steps": rung["steps"],
            "share": round(rung["decay_steps"] / rung["steps"], 4),
            "log2_lr": point["log2_lr"],
            "seed": seed,
            "loss": math.nan if loss is None else loss,
        }
        for point in ladders(results).to_dict("records")
        for rung in point["rungs"]
        for seed, loss in enumerate(rung["loss"])
    ]
    frames += [pd.DataFrame(rows, columns=COLUMNS)] if rows or not frames else []
    return required(pd.concat(frames, ignore_index=True), "no runs and no plateaus are on record")


@remembered
def ladders(results: Results) -> pd.DataFrame:
    """The plateaus on record, as ``Results.table`` opens them."""
    return results.table("ladder")


@remembered
def lines(table: pd.DataFrame) -> list[Line]:
    """The lines that ``losses`` holds: by scheme, schedule, share and budget."""
    order = {name: i for i, name in enumerate(("umup", "mup", "sp"))}
    found = table[list(Line._fields)].drop_duplicates().itertuples(index=False)
    every = [Line(str(a), str(b), int(c), float(d)) for a, b, c, d in found]
    return sorted(
        every, key=lambda at: (order[at.scheme], SCHEDULES.index(at.schedule), at.share, at.steps)
    )


@remembered
def at(table: pd.DataFrame, line: Line) -> pd.DataFrame:
    """The rows of a line.

    Raises:
        NotMeasured: there are none.
    """
    rows = table[(table[list(Line._fields)] == list(line)).all(axis=1)]
    share = f", decay of {line.share:.0%}" if line.share else ""
    what = f"{tables.NAMES[line.scheme]}, {TITLES[line.schedule]}{share}"
    return required(rows, f"{what}: no runs of {line.steps} steps")


@remembered
def optimum(table: pd.DataFrame, line: Line) -> Optimum:
    """The line's best η, fitted (``laws.fit_optimum``)."""
    rows, seed = at(table, line), zlib.crc32(repr(tuple(line)).encode())
    return laws.fit_optimum(
        rows["log2_lr"], rows["loss"].astype(float), rows["seed"], rng_seed=seed
    )


def by_lr(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean loss at every η of a line, with the numbers of runs and of diverged ones."""
    grouped = rows.assign(loss=rows["loss"].astype(float)).groupby("log2_lr")["loss"]
    out = grouped.agg(mean="mean", n="count", size="size").reset_index()
    return out.assign(n_diverged=out["size"] - out["n"]).drop(columns="size")


@remembered
def best(table: pd.DataFrame, line: Line) -> pd.Series:
    """Loss at the line's own best η, by seed.

    Where the optimum is bracketed: the seed's loss on the fitted curve (``Optimum.by_seed``), so
    that every run near it counts and no lucky one wins. Else the seed's loss at the best η
    measured. The error of the curve is left out: it is of second order at a minimum.
    """
    rows, o = at(table, line), optimum(table, line)
    if not o.edge:
        return pd.Series(o.by_seed)
    steady = by_lr(rows).query("n_diverged == 0")
    if steady.empty:
        raise NotMeasured(f"{TITLES[line.schedule]}: every η diverged at {line.steps} steps")
    centre = float(steady.loc[steady["mean"].idxmin(), "log2_lr"])
    return rows[rows["log2_lr"] == centre].set_index("seed")["loss"].astype(float)


def one_rate(
    table: pd.DataFrame, schedule: str = "wsd", scheme: str = "umup", share: float = SHARE
) -> tuple[float, dict[int, pd.Series]]:
    """The one η that is best over all budgets of a ladder, and the losses there by budget and seed.

    Best is the lowest mean over budgets and seeds among the η at which no run diverged.

    Raises:
        NotMeasured: there is no ladder of two budgets, or no such η.
    """
    wanted = Line.of(schedule, 0, scheme, share)
    rows = table[(table["scheme"] == scheme) & (table["schedule"] == schedule)]
    rows = rows[np.isclose(rows["share"].astype(float), wanted.share, atol=1e-3)]
    if rows["steps"].nunique() < 2:
        raise NotMeasured(f"no ladder of {TITLES[schedule]} on record")
    whole = by_lr(rows).query("n_diverged == 0")
    if whole.empty:
        raise NotMeasured(f"{TITLES[schedule]}: every η diverged at some budget")
    log2_lr = float(whole.loc[whole["mean"].idxmin(), "log2_lr"])
    there = rows[rows["log2_lr"] == log2_lr]
    found = {
        int(steps): group.set_index("seed")["loss"].astype(float)
        for steps, group in there.groupby("steps")
    }
    return log2_lr, found


# Quantities of claims.


@quantity
def gap(
    results: Results,
    schedule: str,
    against: str,
    steps: int,
    scheme: str = "umup",
    share: float = SHARE,
    against_share: float = SHARE,
) -> Interval:
    """Loss of ``schedule`` minus that of ``against``, each at its own best η, paired by seed."""
    table = losses(results)
    ours = best(table, Line.of(schedule, steps, scheme, share))
    theirs = best(table, Line.of(against, steps, scheme, against_share))
    return tables.paired(ours, theirs)[0]


@quantity
def optimum_gap(
    results: Results,
    schedule: str,
    against: str,
    steps: int,
    scheme: str = "umup",
    share: float = SHARE,
) -> Interval:
    """Octaves between the best η of two schedules; the errors of the two are independent."""
    table = losses(results)
    a, b = (optimum(table, Line.of(s, steps, scheme, share)) for s in (schedule, against))
    if a.edge or b.edge:
        return Interval(a.x - b.x, a.x_lo - b.x_hi, a.x_hi - b.x_lo)
    with np.errstate(invalid="ignore"):
        draws = a.draws - np.random.default_rng(0).permutation(b.draws)
    draws = draws[~np.isnan(draws)]  # ∞ − ∞: neither has a minimum
    # Outward to a draw: a draw without a minimum is infinite, and leaves its end open.
    lo = np.quantile(draws, 0.025, method="lower")
    hi = np.quantile(draws, 0.975, method="higher")
    return Interval(a.x - b.x, float(lo), float(hi))


def horizon_optima(
    results: Results, schedule: str, scheme: str = "umup", share: float = SHARE
) -> dict[int, Optimum]:
    """Budget → the schedule's optimum there."""
    table = losses(results)
    wanted = Line.of(schedule, 0, scheme, share)
    mine = [line for line in lines(table) if line._replace(steps=0) == wanted]
    return {line.steps: optimum(table, line) for line in mine}


@quantity
def horizon_slope(
    results: Results, schedule: str, factor: float, scheme: str = "umup", share: float = SHARE
) -> Interval:
    """Octaves by which the best η moves per doubling of the budget, over at least ``factor``."""
    found = {
        n: o
        for n, o in horizon_optima(results, schedule, scheme, share).items()
        if math.isfinite(o.x)
    }
    spanning(found, factor, f"{TITLES[schedule]}: budgets")
    return laws.drift(found).slope


@quantity
def short_rate_cost(
    results: Results, schedule: str, factor: float, scheme: str = "umup", share: float = SHARE
) -> Interval:
    """Loss at the longest budget with the η that is best at the shortest, less the best there.

    The η is the measured one nearest to the shortest budget's optimum.
    """
    table, found = losses(results), horizon_optima(results, schedule, scheme, share)
    spanning(found, factor, f"{TITLES[schedule]}: budgets")
    long = Line.of(schedule, max(found), scheme, share)
    rows, target = at(table, long), found[min(found)].x
    nearest = min(rows["log2_lr"].unique(), key=lambda x: (abs(x - target), x))
    there = rows[rows["log2_lr"] == nearest].set_index("seed")["loss"].astype(float)
    if there.isna().any():
        return Interval.exact(math.inf)
    return tables.paired(there, best(table, long))[0]


def ladder_gaps(
    results: Results,
    against: str,
    schedule: str = "wsd",
    scheme: str = "umup",
    share: float = SHARE,
) -> dict[int, Interval]:
    """Budget → loss of the ladder's rung at its one η minus that of runs from scratch.

    The runs are of ``against``, each budget at its own best η; pairs share their seed.
    """
    table = losses(results)
    _, rungs = one_rate(table, schedule, scheme, share)
    return {
        steps: tables.paired(rung, best(table, Line.of(against, steps, scheme, share)))[0]
        for steps, rung in rungs.items()
    }


@quantity
def ladder_gap(
    results: Results,
    against: str,
    schedule: str = "wsd",
    scheme: str = "umup",
    share: float = SHARE,
    factor: float = 1,
) -> Interval:
    """The largest of ``ladder_gaps``; its ends are the largest of the lower and upper ends."""
    gaps = ladder_gaps(results, against, schedule, scheme, share)
    spanning(gaps, factor, f"{TITLES[schedule]}: budgets")
    return Interval(*(max(getattr(g, end) for g in gaps.values()) for end in ("value", "lo", "hi")))


@quantity
def saved(
    results: Results,
    schedule: str = "wsd",
    scheme: str = "umup",
    share: float = SHARE,
    factor: float = 1,
) -> Interval:
    """Per cent of the steps that the ladder saves against a run from scratch for each budget."""
    _, rungs = one_rate(losses(results), schedule, scheme, share)
    budgets = sorted(rungs)
    spanning(budgets, factor, f"{TITLES[schedule]}: budgets")
    plateau = budgets[-1] * (1.0 - share)
    value = 100.0 * (1.0 - (plateau + share * sum(budgets)) / sum(budgets))
    return Interval.exact(value)


@quantity
def fork_difference(results: Results) -> Interval:
    """Largest difference of any loss or weight between forked and unforked runs: no interval."""
    checks = required(results.table("fork"), "no fork was compared with its unforked run")
    worst = float(checks[["losses", "weights"]].to_numpy(float).max())
    return Interval.exact(worst)
