"""Tables and quantities of the study ``coord_check``: slopes over width, and rules broken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from umup import rules, slopes
from umup.lab.absent import NotMeasured
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.laws import Interval

quantity = QUANTITIES = Quantities()

WHAT = "decoder"
LADDER = ("sp", "ladder_init", "ladder_lr", "ladder_logits", "mup")
RUNGS = ("SP", "+ init", "+ LR", "+ logits", "+ attn. = μP")
TITLES = {name: scheme.title for name, scheme in rules.SCHEMES.items()}
PACES = ("small", "large")
NO_POINTS = "no decoders are on record"


@remembered
def measurements(results: Results, schemes: Sequence[str] | None = None) -> pd.DataFrame:
    """All measurements, tidy: the columns of ``umup.slopes``, scheme and pace.

    ``pace`` is "small" at a scheme's smallest η and "large" at its largest, and empty as long as
    only one of them was measured. Names of weights lose their last part, ``w``; "loss" rows are
    kept.
    """
    points = results.table(WHAT)
    columns = ["scheme", "pace", *slopes.COLUMNS]
    if len(points) and schemes is not None:
        points = points[points["scheme"].isin(list(schemes))]
    if points.empty:
        return pd.DataFrame(columns=columns)
    listed = ["step", "kind", "tensor", "quantity", "value", "shape"]
    points = points.rename(columns={"d_model": "width"}).assign(eta=2.0 ** points["log2_eta"])
    table = points[["scheme", "width", "seed", "eta", *listed]].explode(listed, ignore_index=True)
    table["value"] = table["value"].astype(float)  # None, not finite, becomes NaN
    table["shape"] = table["shape"].map(tuple)
    table["tensor"] = table["tensor"].str.removesuffix(".w")
    table["pace"] = table.groupby("scheme")["eta"].transform(_pace)
    return table[columns]


class Checks(dict[str, slopes.CoordCheck]):
    """Scheme → its coordinate check; that of a scheme that is not on record says so."""

    def __missing__(self, scheme: str) -> slopes.CoordCheck:
        nothing = pd.DataFrame(columns=list(slopes.COLUMNS)).astype({"value": float})
        return slopes.CoordCheck.of(nothing, math.nan)


@remembered
def checks(results: Results, tolerance: float) -> Checks:
    """The coordinate check of every scheme on record, those of the ladder first."""
    table = measurements(results)
    found = {str(scheme): group for scheme, group in table.groupby("scheme", sort=False)}
    order = [scheme for scheme in dict.fromkeys((*LADDER, *rules.SCHEMES)) if scheme in found]
    return Checks({s: slopes.CoordCheck.of(found[s], tolerance) for s in order})


def fitted(found: Mapping[str, slopes.CoordCheck]) -> pd.DataFrame:
    """The slopes of all checks: the columns of ``slopes.fit``, scheme and pace.

    Slopes that two widths do not give are left out.
    """
    frames = [
        check.slopes.assign(scheme=scheme, pace=_pace(check.slopes["eta"]))
        for scheme, check in found.items()
    ]
    if not frames:
        return Checks()["sp"].slopes.assign(scheme=None, pace=None)
    table = pd.concat(frames, ignore_index=True)
    return table[table["slope"].notna()].reset_index(drop=True)


def _pace(eta: pd.Series) -> pd.Series:
    """Pace of every η: "large" at the largest, "small" below it, empty where there is one alone."""
    if eta.nunique() < 2:
        return pd.Series("", eta.index)
    return (eta == eta.max()).map({True: PACES[1], False: PACES[0]})


@quantity
def slope(
    results: Results,
    scheme: str,
    tensor: str,
    quantity: str,
    step: int,
    pace: str = "large",
    factor: float = 8,
) -> Interval:
    """Exponent over width of one tensor's quantity, from widths that span at least ``factor``.

    ``blocks.-1`` is the last block.
    """
    name = TITLES.get(scheme, scheme)
    table = measurements(results, (scheme,))
    if table.empty:
        raise NotMeasured(f"no points of {name}")
    tensor = tensor.replace("blocks.-1", last_block(table))
    at = table[(table["tensor"] == tensor) & (table["pace"] == pace) & (table["step"] == step)]
    at = at[at["quantity"].str.removesuffix("_frobenius") == quantity]
    if at.empty:
        raise NotMeasured(f"{name}: no {quantity} of {tensor} after {step} steps at {pace} η")
    spanning(at["width"], factor, f"{name}: widths")
    if not at["value"].map(math.isfinite).all():
        return Interval.exact(math.inf)  # diverged: growth without bound
    return slopes.fit_slope(at["width"], at["value"])


@quantity
def slope_difference(
    results: Results,
    scheme: str,
    against: str,
    tensor: str,
    quantity: str,
    step: int,
    pace: str = "large",
    factor: float = 8,
) -> Interval:
    """``slope`` of a scheme minus that of another; the intervals' half-widths add in squares."""
    a, b = (slope(results, s, tensor, quantity, step, pace, factor) for s in (scheme, against))
    half = math.hypot((a.hi - a.lo) / 2, (b.hi - b.lo) / 2)
    value = a.value - b.value
    return Interval(value, value - half, value + half)


def last_block(table: pd.DataFrame) -> str:
    """The name of the last block's residual stream, ``blocks.i``."""
    numbers = table["tensor"].str.extract(r"^blocks\.(\d+)$")[0].dropna().astype(int)
    return f"blocks.{max(numbers, default=0)}"


def last_step(table: pd.DataFrame) -> int:
    """The largest number of updates after which a model is measured."""
    return int(table["step"].max())
