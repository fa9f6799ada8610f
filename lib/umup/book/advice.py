"""What the verdicts on a decision's claims allow to say, and the tables that say it.

The words are chosen from the verdicts alone, by the rules of `advice`: a bound that holds is quoted
as the bound, and what is inconclusive stays open. The claims are those of `umup.book.decisions`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from umup.book.decisions import CHANGES, SCHEMES, SEARCHES, SETTINGS, Cell, Row
from umup.book.markdown import BADGES, badge, measured, table
from umup.errors import BookError
from umup.lab.claims import PROFILES, Verdict, evidence, format_bound
from umup.schemes import TITLES
from umup.text import significant

State = Literal["yes", "no", "open", "not measured", "no claim"]
NOTHING = "No evidence"


def motion(verdict: Verdict | None, moves: bool = False) -> State:
    """Whether the best value stays; that a claim to move fails does not show that it does."""
    if verdict is None or verdict.verdict == "not measured":
        return "not measured" if verdict else "no claim"
    if verdict.verdict == "inconclusive" or (moves and verdict.verdict == "fails"):
        return "open"
    return "yes" if (verdict.verdict != "fails") != moves else "no"


def price(verdict: Verdict | None) -> State:
    """Whether the price is low: within an upper bound, where the claim has one.

    Without one the claim is that the price is high; that it fails does not show a low one.
    """
    if verdict is None or verdict.verdict == "not measured":
        return "not measured" if verdict else "no claim"
    if verdict.verdict == "inconclusive":
        return "open"
    if math.isinf(verdict.bound_max):
        return "open" if verdict.verdict == "fails" else "no"
    return "yes" if verdict.hi <= verdict.bound_max else "no"


def advice(row: Row, moved: Verdict | None, cost: Verdict | None, moves: bool = False) -> str:
    """What the verdicts allow to say of a row; what they leave open is said to be open."""
    still, low = motion(moved, moves), price(cost)
    bound = ""
    if cost is not None:
        upper = math.isfinite(cost.bound_max)
        bound = f"{significant(cost.bound_max if upper else cost.bound_min)} {cost.unit}"
    lacks = {
        "open": "its price is undecided",
        "not measured": "its price is not measured",
        "no claim": "no claim is on its price",
    }
    match still, low:
        case _, "no":
            return f"{row.redo}: it costs at least {bound}"
        case "no", "yes":
            return f"Moves; carrying it costs at most {bound}"
        case _, "yes":
            return f"{row.carry}: it costs at most {bound}"
        case "no", _:
            return f"{row.redo}: it moves, and {lacks[low]}"
        case "yes", "open":
            return f"Undecided: it stays, but {lacks[low]}"
        case "yes", _:
            return f"{row.carry}: it stays, but {lacks[low]}"
        case ("open", _) | (_, "open"):
            parts = [n for n, state in (("motion", still), ("price", low)) if state == "open"]
            return f"Undecided: {' and '.join(parts)}"
        case ("not measured", _) | (_, "not measured"):
            return "Not measured"
    return NOTHING


def _line(name: str, v: Verdict) -> str:
    """A claim under the advice: verdict, value, bound, page and what it was measured on."""
    parts = [f"[{v.id}](studies/{v.study}.ipynb)"]
    if v.verdict != "not measured":
        close = ["*close*"] if v.note.startswith("close") else []
        seen = [] if evidence(v) == "–" else [evidence(v)]
        profile = [] if v.profile == PROFILES[-1] else [f"profile `{v.profile}`"]
        parts = [measured(v), f"bound {format_bound(v)}", *close, *parts, *seen, *profile]
    return f"<small>{name}: {badge(v)} {', '.join(parts)}</small>"


def _known(study: str, claim: str, board: Mapping[str, Verdict], unit: str) -> Verdict | None:
    """The verdict that a cell names, None where it names none."""
    if not claim:
        return None
    path = f"{study}/{claim}"
    if path not in board:
        raise BookError("claim of a decision", path, "a claim on the board, as STUDY/ID")
    if board[path].unit.split(" per ")[0] != unit:
        raise BookError(f"unit of {path}", board[path].unit, f"{unit}, or {unit} per something")
    return board[path]


def claims_of(row: Row, cell: Cell, board: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """The verdicts of a cell's claims: "motion" and "price", where it has them.

    Raises:
        BookError: no study states the claim, or not in octaves (motion) or nats (price).
    """
    moved = _known(row.study, cell.motion, board, "octaves")
    cost = _known(row.study, cell.price, board, "nats")
    return {name: v for name, v in (("motion", moved), ("price", cost)) if v}


def shown(row: Row, scheme: str, board: Mapping[str, Verdict]) -> str:
    """One cell in Markdown: the advice, then a line per claim; the scheme is for narrow screens."""
    cell: Cell | None = getattr(row, scheme)
    name = f'<span class="scheme">{TITLES[scheme]}</span>'
    if cell is None:
        return f"{name}{NOTHING}"
    found = claims_of(row, cell, board)
    said = advice(row, found.get("motion"), found.get("price"), cell.moves)
    return "<br>".join([f"{name}**{said}**", *(_line(kind, v) for kind, v in found.items())])


def grid(first: str, rows: Sequence[Row], board: Mapping[str, Verdict]) -> str:
    """The table of some decisions, with a column for each scheme that has a claim."""
    used = [s for s in SCHEMES if any(getattr(row, s) for row in rows)]
    lines = [[f"**{row.change}**", *(shown(row, s, board) for s in used)] for row in rows]
    return table([first, *(TITLES[s] for s in used)], lines, "decisions")


def fragments(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The page's parts by name: the tables, what they rest on, and what has no claim.

    Args:
        verdicts: the whole board of claims.

    Raises:
        BookError: a table names a claim that is not on the board.
    """
    board = {f"{v.study}/{v.id}": v for v in verdicts}
    pairs = [(row, getattr(row, s)) for row in (*CHANGES, *SEARCHES, *SETTINGS) for s in SCHEMES]
    used = [v for row, cell in pairs if cell for v in claims_of(row, cell, board).values()]
    counts = Counter(v.verdict for v in used)
    tally = ", ".join(f"{kind} {counts[kind]}" for kind in BADGES if counts[kind])
    without = [row.change.lower() for row in CHANGES if not row.study]
    by_default = f"A line that names no profile was measured in `{PROFILES[-1]}`."
    return {
        "changes": grid("change", CHANGES, board),
        "searches": grid("way", SEARCHES, board),
        "settings": grid("setting", SETTINGS, board),
        "evidence": f"The three tables rest on {len(used)} claims: {tally}. {by_default}\n",
        "unknown": f"No claim of this book is on: {', '.join(without) or 'nothing above'}.\n",
    }
