"""Tables, badges and measurements as the pages of the book show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from umup import text
from umup.text import decimals

BADGES = {
    "holds": "success",
    "exact": "info",
    "fails": "danger",
    "inconclusive": "warning",
    "not measured": "secondary",
}


def table(header: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    """A Markdown table; cells are escaped, `kind` becomes its CSS class."""
    escaped = ([str(cell).replace("|", r"\|") for cell in row] for row in rows)
    option = f":class: {kind}\n" if kind else ""
    return f"```{{table}}\n{option}\n{text.markdown(header, escaped)}\n```\n"


def badge(verdict: Any) -> str:
    """The word of a `umup.lab.claims.Verdict`, in its colour."""
    return f"{{bdg-{BADGES.get(verdict.verdict, 'secondary')}}}`{verdict.verdict}`"


def measured(verdict: Any) -> str:
    """A verdict's value with its interval and unit, to the decimals the interval warrants."""
    if verdict.value is None or math.isnan(verdict.value):
        return "–"
    width = verdict.hi - verdict.lo
    digits = 1 - math.floor(math.log10(width)) if 0 < width < math.inf else 3
    digits = min(max(digits, 0), 3)
    value, lo, hi = (decimals(x, digits) for x in (verdict.value, verdict.lo, verdict.hi))
    return f"**{value}** [{lo},\N{NO-BREAK SPACE}{hi}] {verdict.unit}".strip()
