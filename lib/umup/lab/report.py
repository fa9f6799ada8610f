"""Sentences and Markdown tables made from a study's records.

Notebooks show these rather than prose with typed numbers. ``digits`` sets the decimals, so that a
notebook's text does not depend on the last bits of another CPU's results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from umup import schemes, text
from umup.lab.absent import NotMeasured, otherwise
from umup.laws import Interval
from umup.slopes import CoordCheck
from umup.text import decimals

ABSENT = "not measured"
"""Stands for a number that the records do not have."""

NO_RUNS = "no runs are on record"

known = otherwise(lambda missing: ABSENT)
"""Decorator of a function that gives a number as text: ``ABSENT`` if it is not measured."""

worded = otherwise(lambda missing: f"{ABSENT.capitalize()}: {missing}.")
"""Decorator of a function that gives a sentence or table, or says what is not measured."""


def several(
    names: Sequence[str], tell: Callable[..., Sequence[str]], *args: Any, **named: Any
) -> dict[str, str]:
    """The texts that ``tell`` gives under the names, or ``ABSENT`` under all of them."""
    texts = otherwise(lambda missing: [ABSENT] * len(names))(tell)(*args, **named)
    return dict(zip(names, texts, strict=True))


TITLES = schemes.TITLES


def interval(value: float, lo: float, hi: float, digits: int = 2) -> str:
    """``value [lo, hi]``, or the value alone if the data do not bound it.

    With fewer than two digits, as at smoke, the interval is omitted: one from two seeds means
    little.
    """
    text = decimals(value, digits)
    if digits < 2 or not (math.isfinite(lo) and math.isfinite(hi)):
        return text
    return f"{text} [{decimals(lo, digits)}, {decimals(hi, digits)}]"


def said(digits: int, quantity: Callable[..., Interval], *args, **named) -> str:
    """A claim's quantity at these arguments as `interval`, or ``ABSENT``."""
    return known(lambda: text_of(quantity(*args, **named), digits))()


def text_of(measured: Interval, digits: int = 2) -> str:
    """`interval` of a measurement: infinite if runs diverged, ``ABSENT`` if there is none."""
    if math.isnan(measured.value):
        return ABSENT
    if math.isinf(measured.value):
        return f"{decimals(measured.value)} (diverged)"
    return interval(measured.value, measured.lo, measured.hi, digits)


def loss_digits(digits: int) -> int:
    """Decimals of a loss: one more than of octaves, except for smoke's coarse numbers."""
    return digits + 1 if digits >= 2 else digits


def markdown(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """A Markdown table of ``columns`` (name in the table → heading).

    Columns without any text are left out, as are missing numbers; without rows, the table is
    replaced by "not measured".
    """
    if table.empty:
        return f"{ABSENT.capitalize()}."
    table = table.astype(object).where(table.notna(), "")
    columns = {name: title for name, title in columns.items() if (table[name] != "").any()}
    rows = ([row[name] for name in columns] for row in table.to_dict("records"))
    return text.markdown(list(columns.values()), rows)


@known
def tally(check: CoordCheck) -> str:
    """Number of rules that a coordinate check found broken, ``3 of 17``, or ``ABSENT``."""
    if not check.findings:
        raise NotMeasured("no rule was judged")
    return f"{len(check.broken)} of {len(check.findings)}"


def glue(name: str, text: str) -> None:
    """Name a text so that captions and pages can show it: MyST's ``{glue:text}`` role.

    It does what ``myst_nb.glue`` does, without that package, which a GPU machine need not have.
    """
    from IPython.display import display

    prefix = "application/papermill.record/"
    metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    display({f"{prefix}text/plain": repr(text)}, raw=True, metadata=metadata)


def optima_table(optima: pd.DataFrame, labels: Mapping[str, str], digits: int = 2) -> str:
    """Fitted optima as a Markdown table, one row each.

    Args:
        optima: rows of ``tables.optima``, perhaps of several sweeps.
        labels: column that names a row → its heading, as ``{"d_model": "width"}``.
    """
    rows = [
        {name: f"{o[name]:g}" if isinstance(o[name], float) else o[name] for name in labels}
        | {
            "lr": interval(o["log2_lr"], o["log2_lr_lo"], o["log2_lr_hi"], digits),
            "loss": interval(o["loss"], o["loss_lo"], o["loss_hi"], loss_digits(digits)),
            "runs": o["n_points"],
            "note": o["reason"],
        }
        for o in optima.replace({"scheme": TITLES}).to_dict("records")
    ]
    headings = {
        "lr": "log₂ η* [95 %]",
        "loss": "loss there, nats [95 %]",
        "runs": "runs",
        "note": "note",
    }
    return markdown(pd.DataFrame(rows), {**labels, **headings})
