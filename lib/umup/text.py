"""Rows and numbers as text: columns for a terminal, tables for a page, a true minus sign."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns, each as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def did_you_mean(received: str, options: Iterable[str]) -> str:
    """The end of an error about a misspelled word, ``; did you mean 'h100'?``, or ""."""
    close = difflib.get_close_matches(received, list(options), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]], right: bool = False) -> str:
    """A Markdown table of one line per row.

    Args:
        header: of each column.
        rows: cells; a line break becomes a space.
        right: align all columns but the first to the right.
    """
    kinds = ["---", *["--:" if right else "---"] * (len(header) - 1)]
    cells = ([str(cell).replace("\n", " ") for cell in row] for row in (header, kinds, *rows))
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _no_number(value: float) -> str:
    """A dash for NaN, a signed ∞; "" for a finite number."""
    if math.isnan(value):
        return "–"
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else ""


def decimals(value: float, digits: int = 2) -> str:
    """A number to the given decimals, such as −0.25; "-0.00" is "0.00"."""
    rounded = f"{round(value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else ""
    return _no_number(value) or rounded.replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """A number to the given significant digits, such as −1.07; a dash for None."""
    if value is None:
        return "–"
    return _no_number(value) or f"{value:.{digits}g}".replace("-", "−")
