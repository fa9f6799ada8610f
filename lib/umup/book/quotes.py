"""Claims that a hand-written page quotes: the verdict comes from the board when the book is built.

A page writes ``{{badge STUDY/ID}}`` for the verdict alone, and ``{{claim STUDY/ID}}`` for the
verdict with the statement, the measurement and a link. A notebook has no builder: there a claim is
a link that works beside its file, ``[ID](claims.yaml)`` or ``[ID](../STUDY/claims.yaml)``, and in
the book a badge in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from umup.book.markdown import BADGES, badge, measured
from umup.errors import BookError
from umup.lab.claims import Verdict

QUOTE = re.compile(r"\{\{(badge|claim) ([\w-]+/[\w-]+)\}\}")
LINK = re.compile(r"\[([\w-]+)\]\((?:\.\./(\w+)/)?claims\.yaml\)")


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


def linked(study: str, text: str) -> list[str]:
    """The claims that a study's Markdown links to, as STUDY/ID."""
    return [f"{other or study}/{claim}" for claim, other in LINK.findall(text)]


def badges(study: str, text: str, board: Mapping[str, Verdict]) -> str:
    """A study's Markdown with a badge for each link to a claim; it leads to the claim on its page.

    Raises:
        BookError: a link names no claim on the board.
    """
    for path in linked(study, text):
        if path not in board:
            raise BookError(f"link to a claim in {study}", path, "a claim on the board")

    def shown(found: re.Match[str]) -> str:
        claim, other = found.groups()
        verdict = board[f"{other or study}/{claim}"]
        page = f"{other}.html" if other else ""
        colour = BADGES[verdict.verdict]
        return (
            f'<a class="sd-badge sd-bg-{colour} sd-bg-text-{colour}" href="{page}#claim-{claim}" '
            f'title="{escape(verdict.statement)}">{verdict.verdict}</a>'
        )

    return LINK.sub(shown, text)


def generate(staging: Path, verdicts: Iterable[Verdict]) -> None:
    """Fill in the quotes of every hand-written page of a staged book."""
    board = {f"{v.study}/{v.id}": v for v in verdicts}
    for path in sorted(staging.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if QUOTE.search(text):
            path.write_text(fill(path.name, text, board), encoding="utf-8")
