"""Records of the study ``own_model`` as tables, optima and the quantities that claims name."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd

from umup import laws
from umup.lab import tables
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.laws import Drift, Interval, Optimum
from umup.slopes import COLUMNS, CoordCheck

quantity = QUANTITIES = Quantities()

NAMES = {"mlp": "MLP", "vit": "ViT"}
SCHEMES = {"sp": "SP", "mup": "μP"}
TOLERANCE = 0.2  # the slope that counts as none
CURVES = ["model", "scheme", "wrong", "width", "log2_eta", "seed", "train", "loss", "accuracy"]


def title(model: str, scheme: str, wrong: str = "") -> str:
    """What an arm is called, ``ViT, μP``."""
    name = f"{NAMES[model]}, {SCHEMES[scheme]}"
    return f"{name}, {wrong} as hidden" if wrong else name


def place(arm: tuple[str, str, str]) -> tuple[int, int, str]:
    """Where an arm (model, scheme, wrong) stands in tables."""
    return list(NAMES).index(arm[0]), list(SCHEMES).index(arm[1]), arm[2]


@remembered
def curves(results: Results) -> pd.DataFrame:
    """One row a trained model: ``CURVES``, losses NaN where it diverged; batch_size, steps and
    base_width; ``base_eta``, the log2 η that is measured at every width of an arm: NaN as long as
    the base width is not.

    Raises:
        NotMeasured: there are none.
    """
    points = required(results.table("curve"), "no curves are on record")
    grid = points.groupby(["model", "scheme", "wrong"])["near"]
    shared = grid.transform(lambda near: _shared(points.loc[near.index]))
    listed = ["log2_eta", "seed", "train", "loss", "accuracy"]
    table = points.assign(base_eta=shared).explode(listed, ignore_index=True)
    table[["log2_eta", "train", "loss", "accuracy"]] = table[
        ["log2_eta", "train", "loss", "accuracy"]
    ].astype(float)
    return table[[*CURVES, "base_eta", "batch_size", "steps", "base_width"]]


def _shared(arm: pd.DataFrame) -> float:
    """The middle of the grid at the base width: measured at every width with all seeds."""
    base = arm[arm["width"] == arm["base_width"]]["near"]
    if base.empty:
        return math.nan
    grid = sorted(base.iloc[0])
    return grid[len(grid) // 2]


@remembered
def arm(results: Results, model: str, scheme: str, wrong: str = "") -> pd.DataFrame:
    """The rows of ``curves`` of one model and scheme.

    Raises:
        NotMeasured: there are none.
    """
    table = curves(results)
    at = table["model"].eq(model) & table["scheme"].eq(scheme) & table["wrong"].eq(wrong)
    return required(table[at], f"no runs of {title(model, scheme, wrong)}")


@remembered
def optima(table: pd.DataFrame) -> dict[int, Optimum]:
    """Width → the fitted optimum of the rows of one ``arm``."""
    return {
        int(width): laws.fit_optimum(at["log2_eta"], at["loss"], at["seed"])
        for width, at in table.groupby("width")  # pyright: ignore[reportArgumentType]
    }


def _spans(table: pd.DataFrame, factor: float, what: str) -> tuple[int, int]:
    """The smallest and the largest width, at least ``factor`` apart."""
    return spanning(table["width"].astype(int), factor, f"{what}: widths")


@quantity
def eta_shift(
    results: Results, model: str, scheme: str, factor: float = 8, wrong: str = ""
) -> Interval:
    """How far log2 of the best η moves over ``factor`` in width, by the line through all widths."""
    return _drift(results, model, scheme, factor, wrong).slope.scaled(math.log2(factor))


@quantity
def largest_shift(
    results: Results, model: str, scheme: str, factor: float = 8, wrong: str = ""
) -> Interval:
    """Octaves between the best η of any two widths, the furthest apart; see ``laws.Drift``."""
    return _drift(results, model, scheme, factor, wrong).largest


def _drift(results: Results, model: str, scheme: str, factor: float, wrong: str) -> Drift:
    table = arm(results, model, scheme, wrong)
    _spans(table, factor, title(model, scheme, wrong))
    found = {width: o for width, o in optima(table).items() if math.isfinite(o.x)}
    if len(found) < 2:
        raise NotMeasured(f"{title(model, scheme, wrong)}: no optimum at two widths")
    return laws.drift(found)


@quantity
def shift_difference(results: Results, model: str, factor: float = 8) -> Interval:
    """``eta_shift`` under SP minus that under μP; the intervals' half-widths add in squares."""
    sp, mup = (eta_shift(results, model, scheme, factor) for scheme in ("sp", "mup"))
    half = math.hypot((sp.hi - sp.lo) / 2, (mup.hi - mup.lo) / 2)
    value = sp.value - mup.value
    return Interval(value, value - half, value + half)


def at_base_eta(table: pd.DataFrame, width: int) -> pd.Series:
    """Losses by seed at the η tuned at the base width; a diverged one is infinite."""
    at = table[(table["width"] == width) & (table["log2_eta"] == table["base_eta"])]
    return at.set_index("seed")["loss"].fillna(math.inf)


@quantity
def widening(
    results: Results, model: str, scheme: str, factor: float = 8, wrong: str = ""
) -> Interval:
    """The worst change of the loss from a width to the next at the η tuned at the base, nats."""
    table = arm(results, model, scheme, wrong)
    _spans(table, factor, title(model, scheme, wrong))
    widths = sorted(table["width"].unique())
    steps = [_difference(at_base_eta(table, b), at_base_eta(table, a)) for a, b in pairwise(widths)]
    return Interval(*(max(getattr(s, end) for s in steps) for end in ("value", "lo", "hi")))


@quantity
def price(
    results: Results, model: str, scheme: str, factor: float = 8, wrong: str = ""
) -> Interval:
    """Loss at the largest width with the η tuned at the base, minus that with its own best, nats.

    The best is that of the grid of all seeds. A price of 0: the tuned η is itself the best.
    """
    table = arm(results, model, scheme, wrong)
    _, width = _spans(table, factor, title(model, scheme, wrong))
    best = _best(table, width)
    mine = table[(table["width"] == width) & (table["log2_eta"] == best)]
    return _difference(at_base_eta(table, width), mine.set_index("seed")["loss"])


def _best(table: pd.DataFrame, width: int) -> float:
    """The log2 η of lowest mean loss among those that have all seeds and none that diverged."""
    at = table[table["width"] == width]
    by = at.groupby("log2_eta")["loss"]
    full = by.mean()[by.count() == at["seed"].nunique()]
    if full.empty:
        raise NotMeasured(f"no learning rate at width {width} that all seeds bear")
    return float(full.idxmin())


def _difference(minuend: pd.Series, subtrahend: pd.Series) -> Interval:
    """Paired by seed; where a seed diverged, without bound."""
    if not np.isfinite(minuend).all():
        return Interval.exact(math.inf)
    return tables.paired(minuend, subtrahend)[0]


@quantity
def wrong_role(results: Results, model: str, wrong: str, factor: float = 8) -> Interval:
    """Best loss at the largest width with a wrong role minus that with the right one, nats."""
    losses = []
    for spoilt in (wrong, ""):
        table = arm(results, model, "mup", spoilt)
        _, width = _spans(table, factor, title(model, "mup", spoilt))
        at = table[(table["width"] == width) & (table["log2_eta"] == _best(table, width))]
        losses.append(at.set_index("seed")["loss"])
    return _difference(*losses)


@remembered
def checks(results: Results, tolerance: float) -> dict[tuple[str, str, str], CoordCheck]:
    """(model, scheme, wrong) → its coordinate check."""
    points = results.table("coord")
    found = {}
    for row in points.to_dict("records"):
        table = pd.DataFrame({name: row[name] for name in COLUMNS})
        table["value"] = table["value"].astype(float)  # None, not finite, becomes NaN
        table["shape"] = table["shape"].map(tuple)
        key = str(row["model"]), str(row["scheme"]), str(row["wrong"])
        found[key] = CoordCheck.of(table, tolerance)
    return found


def _check(results: Results, model: str, scheme: str, wrong: str, factor: float) -> CoordCheck:
    found = checks(results, TOLERANCE).get((model, scheme, wrong))
    if found is None:
        raise NotMeasured(f"no coordinate check of {title(model, scheme, wrong)}")
    _spans(found.table, factor, title(model, scheme, wrong))
    return found


@quantity
def broken(
    results: Results, model: str, scheme: str, wrong: str = "", factor: float = 8
) -> Interval:
    """Rules of width that the coordinate check says are broken, at a tolerance of 0.2.

    Those that it leaves undecided may be broken: they are the upper end, so that noise that hides
    a broken rule does not pass it.
    """
    check = _check(results, model, scheme, wrong, factor)
    count = float(len(check.broken))
    return Interval(count, count, count + len(check.undecided))


@quantity
def update_slope(
    results: Results,
    model: str,
    scheme: str,
    tensor: str,
    wrong: str = "",
    step: int = 1,
    factor: float = 8,
) -> Interval:
    """Exponent over width of a parameter's update after ``step`` steps at the large η."""
    slopes = _check(results, model, scheme, wrong, factor).slopes
    at = slopes[(slopes["tensor"] == tensor) & (slopes["quantity"] == "update")]
    at = at[(at["step"] == step) & (at["eta"] == slopes["eta"].max())]
    if at.empty:
        raise NotMeasured(f"{title(model, scheme, wrong)}: no update of {tensor} at step {step}")
    row = at.iloc[0]
    return Interval(float(row["slope"]), float(row["lo"]), float(row["hi"]))
