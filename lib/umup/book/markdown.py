"""Tables for the pages of the book."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from umup import text


def table(header: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    """A Markdown table; cells are escaped, `kind` becomes its CSS class."""
    escaped = ([str(cell).replace("|", r"\|") for cell in row] for row in rows)
    option = f":class: {kind}\n" if kind else ""
    return f"```{{table}}\n{option}\n{text.markdown(header, escaped)}\n```\n"
