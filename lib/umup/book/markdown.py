"""Tables and numbers in Markdown, for the pages of the book."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    """A Markdown table; cells are escaped, `kind` becomes its CSS class."""
    cells = [[str(c).replace("|", r"\|").replace("\n", " ") for c in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *cells)]
    option = f":class: {kind}\n" if kind else ""
    return f"```{{table}}\n{option}\n" + "\n".join(lines) + "\n```\n"


def number(value: float | None, digits: int = 3) -> str:
    """A number for a reader: significant digits, a true minus sign, a dash for nothing."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}".replace("-", "−")
