"""Tables and quantities of the study ``judging``: shares of intervals that cover."""

from __future__ import annotations

import numpy as np
import pandas as pd

from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.laws import Interval, mean_interval

from .design import SETTINGS

quantity = QUANTITIES = Quantities()

JUDGED = {
    "optimum": "best η of a sweep",
    "loss": "loss there",
    "slope": "drift per doubling",
    "largest": "optima furthest apart",
    "gap": "difference of two losses",
}
"""What is judged by an interval, and its name on pages."""


@remembered
def points(results: Results) -> dict[str, pd.Series]:
    """Name of the setting → its point, in the order of ``SETTINGS``.

    Raises:
        NotMeasured: there are none.
    """
    table = required(results.table("coverage"), "nothing is on record")
    found = {}
    for name, spec in SETTINGS.items():
        same = [all(row[key] == spec[key] for key in spec) for row in table.to_dict("records")]
        if any(same):
            found[name] = table[same].iloc[-1]
    return found


def point(results: Results, setting: str) -> pd.Series:
    """The point of a setting.

    Raises:
        NotMeasured: it is not on record.
    """
    found = points(results)
    if setting not in found:
        raise NotMeasured(f"{setting} sweeps are not on record")
    return found[setting]


@quantity
def coverage(results: Results, setting: str, of: str) -> Interval:
    """Share of the intervals that cover, %; ``of`` is a name in ``JUDGED``.

    The interval is over families, so that sweeps of one family need not be independent.
    """
    row = point(results, setting)
    sweeps = row["widths"] if of in ("optimum", "loss") else 1
    found = mean_interval(100.0 * np.array(row[of], float) / sweeps)
    families = f"{len(row[of])} families of {row['widths']} sweeps, {setting}"
    return Interval(found.value, found.lo, found.hi, 0, families)


@quantity
def error(results: Results, setting: str) -> Interval:
    """Mean error of the fitted optimum, octaves: below 0 where it lies too low."""
    found = mean_interval(point(results, setting)["error"])
    return Interval(found.value, found.lo, found.hi, 0, setting)


@remembered
def table(results: Results) -> pd.DataFrame:
    """One row per setting and kind of interval.

    Columns: setting, of (of ``JUDGED``), share, share_lo, share_hi (%), width (median, octaves or
    nats).
    """
    rows = [
        {"setting": name, "of": of, "width": float(np.median(row[f"{of}_width"]))}
        | coverage(results, name, of).columns("share")
        for name, row in points(results).items()
        for of in JUDGED
    ]
    return pd.DataFrame(rows)
