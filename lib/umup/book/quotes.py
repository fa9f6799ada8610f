"""Claims that a hand-written page quotes: the verdict comes from the board when the book is built.

A page writes ``{{badge STUDY/ID}}`` for the verdict alone, and ``{{claim STUDY/ID}}`` for the
verdict with the statement, the measurement and a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from umup.book.markdown import badge, measured
from umup.errors import BookError
from umup.lab.claims import Verdict

QUOTE = re.compile(r"\{\{(badge|claim) ([\w-]+/[\w-]+)\}\}")


def shown(verdict: Verdict, whole: bool) -> str:
    """One quoted claim in Markdown: its badge, and if ``whole`` what it says and measures."""
    if not whole:
        return badge(verdict)
    link = f"[`{verdict.id}`](studies/{verdict.study}.ipynb)"
    value = measured(verdict)
    ends = f" Measured: {value} ({link})." if value != "–" else f" ({link})"
    return f"{badge(verdict)} {verdict.statement}{ends}"


def fill(page: str, text: str, board: Mapping[str, Verdict]) -> str:
    """The text of a page with its quotes filled in.

    Args:
        page: its name, for the error.
        text: Markdown.
        board: verdicts by ``STUDY/ID``.

    Raises:
        BookError: a quote names no claim on the board.
    """
    for _, path in QUOTE.findall(text):
        if path not in board:
            raise BookError(page, path, "a claim on the board, as STUDY/ID")
    return QUOTE.sub(lambda found: shown(board[found[2]], found[1] == "claim"), text)


def generate(staging: Path, verdicts: Iterable[Verdict]) -> None:
    """Fill in the quotes of every hand-written page of a staged book."""
    board = {f"{v.study}/{v.id}": v for v in verdicts}
    for path in sorted(staging.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if QUOTE.search(text):
            path.write_text(fill(path.name, text, board), encoding="utf-8")
