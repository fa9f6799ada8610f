"""The composer of η on the page of advice, and the motions that it adds, as a table.

Like the planner's page it is one fragment of HTML that loads nothing. ``book/transfer/carry.js`` is
`umup.transfer.carry` in JavaScript, compared with it by a test; ``composer.js`` has the form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from umup import transfer
from umup.book.markdown import badge, table
from umup.errors import BookError
from umup.lab.claims import Verdict
from umup.laws import Interval
from umup.schemes import TITLES
from umup.text import decimals

SCHEMES = ("umup", "mup", "completep", "sp")
FIELDS = {
    "width": "Width",
    "depth": "Layers",
    "seq_len": "Sequence length",
    "batch": "Batch",
    "steps": "Steps",
}
UNITS = {"width": "d_model", "seq_len": "tokens", "batch": "sequences"}
START = {
    "scheme": "umup",
    "eta": 1.0,
    "error": 0.25,
    **{"proxy_width": 256, "proxy_depth": 24, "proxy_seq_len": 1024, "proxy_batch": 64},
    **{"proxy_steps": 4000, "proxy_schedule": "cosine"},
    **{"target_width": 1024, "target_depth": 24, "target_seq_len": 1024, "target_batch": 256},
    **{"target_steps": 32000, "target_schedule": "cosine"},
}
"""What the form shows first."""


def motions(board: Mapping[str, Verdict]) -> list[dict[str, Any]]:
    """The motions as the page has them, with the verdict of their claim and a link to it.

    Raises:
        BookError: a motion's claim is not on the board.
    """
    found = []
    for each in transfer.motions().values():
        path = f"{each.study}/{each.claim}"
        if path not in board:
            raise BookError("claim of a motion", path, "a claim on the board, as STUDY/ID")
        row = {name: getattr(each, name) for name in ("scheme", "axis", "doublings", "where")}
        octaves = [end if math.isfinite(end) else None for end in _ends(each.octaves)]
        link = f"claims.html#{each.study}-{each.claim}"
        row |= {"octaves": octaves, "claim": each.claim, "href": link}
        found.append(row | {"verdict": board[path].verdict})
    return found


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.lo, interval.hi


def axes() -> dict[str, str]:
    """Axis → what the page calls it."""
    return {**transfer.AXES, "together": "what the sum leaves unexplained"}


def _runs() -> str:
    """The fields of proxy and target."""
    parts = []
    for run, title in (("proxy", "Proxy"), ("target", "Target")):
        fields = [f"<legend>{title}</legend>"]
        for name, label in FIELDS.items():
            unit = f" <small>{UNITS[name]}</small>" if name in UNITS else ""
            says = f'aria-label="{label} of the {run}"'
            kind = f'type="number" min="1" step="1" {says}'
            fields.append(f'<label>{label}{unit}<input name="{run}_{name}" {kind}></label>')
        options = '<option value="cosine">cosine</option><option value="wsd">WSD</option>'
        select = f'<select name="{run}_schedule" aria-label="Schedule of the {run}">'
        fields.append(f"<label>Schedule{select}{options}</select></label>")
        parts.append("\n".join(["<fieldset>", *fields, "</fieldset>"]))
    return "\n".join(parts)


def page(folder: Path, board: Mapping[str, Verdict]) -> str:
    """The composer as one fragment of HTML.

    Args:
        folder: the book's sources, with ``transfer`` and ``planner`` in it.
        board: verdicts by ``STUDY/ID``.
    """
    names = ("planner/planner.css", "transfer/composer.css", "transfer/composer.html")
    css, own_css, html = ((folder / name).read_text(encoding="utf-8") for name in names)
    scripts = [(folder / "transfer" / f"{n}.js").read_text("utf-8") for n in ("carry", "composer")]
    data = {
        "motions": motions(board),
        "axes": axes(),
        "schemes": {name: TITLES[name] for name in SCHEMES},
        "start": START,
    }
    known = f"const composing = {json.dumps(data, ensure_ascii=False)};"
    # The text of a script ends at the first closing tag, even of a string.
    script = "\n".join([scripts[0], known, scripts[1]]).replace("</", r"<\/")
    html = html.replace("RUNS", _runs())
    return f"<style>\n{css}{own_css}</style>\n{html}<script>\n{script}</script>\n"


def motions_table(board: Mapping[str, Verdict]) -> str:
    """Octaves of the best η per doubling, a row per axis and a column per scheme."""
    rows = []
    for axis, title in axes().items():
        cells = []
        for scheme in SCHEMES:
            found = transfer.motion(scheme, axis)
            own = found is not None and found.scheme == scheme
            cells.append(_cell(found, board) if own and found else "–")
        rows.append([title, *cells])
    return table(["octaves per doubling", *(TITLES[s] for s in SCHEMES)], rows, "decisions")


def _cell(motion: transfer.Motion, board: Mapping[str, Verdict]) -> str:
    value, lo, hi = (decimals(end, 2) for end in _ends(motion.octaves))
    verdict = board[f"{motion.study}/{motion.claim}"]
    link = f"[{motion.claim}](studies/{motion.study}.ipynb)"
    seen = [f"{badge(verdict)} {link}", *([motion.where] if motion.where else [])]
    name = f'<span class="scheme">{TITLES[motion.scheme]}</span>'
    value = f"{name}**{value}** [{lo},\N{NO-BREAK SPACE}{hi}]"
    return f"{value}<br><small>{', '.join(seen)}</small>"


def generate(staging: Path, verdicts: Iterable[Verdict]) -> None:
    """Write the composer and the table into ``_generated`` of a staged book."""
    board = {f"{v.study}/{v.id}": v for v in verdicts}
    target = staging / "_generated"
    target.mkdir(exist_ok=True)
    (target / "composer.html").write_text(page(staging, board), encoding="utf-8")
    (target / "motions.md").write_text(motions_table(board), encoding="utf-8")
