"""A study's page on the template that all have: its notebook's cells in another order, and more.

From above: the finding, a strip of facts, what to do, the question, the answer, one figure; what
was run and the other figures as in the notebook; the claims; notebook, records and parameters. The
notebook in ``experiments`` stays as it is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from umup.book import quotes
from umup.book.board_page import item, raw
from umup.book.markdown import BADGES
from umup.book.scale import Scale
from umup.lab.claims import Verdict
from umup.text import significant

UP = "../"
"""The way from a study's page to the site's root."""

UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))

MOST_ROWS = 12
"""Of a table that is shown open."""

MOST_NAMES = 4
"""Columns that the title of a folded table names."""

KINDS = {
    "holds": ("holds", "exact"),
    "fails": ("fails",),
    "open": ("inconclusive",),
    "not measured": ("not measured",),
}
"""Word of a badge that counts claims → the verdicts that it counts."""

SWITCH = '<label class="code-switch"><input type="checkbox" id="show-code"> Show code</label>'
"""The one switch of a page; the style sheet hides the code of all cells while it is off."""

TAKEAWAY = re.compile(r"^(:::+)\{admonition\}[^\n]*\n:class: takeaway\n.*?^\1[ ]*$", re.M | re.S)
TABLE = re.compile(r"(?:^\|.*\|[ ]*(?:\n|\Z))+", re.MULTILINE)

Cell = dict[str, Any]
"""Of a notebook, as JSON."""


@dataclass(frozen=True)
class Extras:
    """What a study's page has beside its notebook.

    Attributes:
        title: the finding, or None where the question is the title.
        claims: its claims, of `board.entries`. scale: of all its records.
        gaps: what its records lack, in sentences, or "". parameters: a Markdown table, or "".
        notebook: place of the notebook in the site. records: places of the records' CSVs.
        repository: URL that commits are linked to; "" for none.
    """

    title: str | None
    claims: Sequence[Mapping[str, Any]]
    scale: Scale
    gaps: str
    parameters: str
    notebook: str
    records: Sequence[str]
    repository: str = ""


def shape(path: Path, study: str, extras: Extras, board: Mapping[str, Verdict]) -> None:
    """Put a rendered notebook on the template, in place.

    Args:
        path: the rendered notebook. study: its name.
        extras: what is shown beside it. board: verdicts by STUDY/ID, for the takeaway's badges.

    Raises:
        BookError: a takeaway names no claim on the board.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    head, *rest = notebook["cells"]
    question, text = split_title("".join(head["source"]))
    takeaways, rest = _take_takeaway(rest)
    answer, rest = _take(rest, "answer")
    picture, rest = _take(rest, "picture")
    rest = [made for cell in rest for made in _with_claims(cell, study, extras)]
    top = [
        _markdown("title", f"# {extras.title or question}\n\n{raw(facts(study, extras))}"),
        *([_markdown("gaps", note(extras.gaps))] if extras.gaps else []),
        *takeaways,
        head | {"source": asked(question if extras.title else "", text)},
    ]
    rest = _without_empty_sections(_with_a_first_section(rest))
    cells = [*top, *answer, *picture, *rest, _markdown("end", end(extras))]
    for cell in cells:
        _finish(cell, study, board)
    notebook["cells"] = cells
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")


def split_title(text: str) -> tuple[str, str]:
    """A notebook's first heading, and what stands below it."""
    heading, _, below = text.partition("\n")
    return heading.removeprefix("#").strip(), below.strip()


def asked(title: str, text: str) -> str:
    """The line that states the question, begun by the notebook's title where the page has another.

    A title that is no question ends with a full stop.
    """
    if not title:
        return text
    ended = title if title[-1] in "?.!" else f"{title}."
    mark = "**Question.**"
    return f"{mark} *{ended}* {text.removeprefix(mark).strip()}"


def note(gaps: str) -> str:
    """What a page lacks, as a note."""
    return f":::{{admonition}} Not all is measured\n:class: note\n{gaps}\n:::"


def _markdown(name: str, text: str) -> Cell:
    return {"cell_type": "markdown", "id": f"page-{name}", "metadata": {}, "source": text}


def _tags(cell: Cell) -> list[str]:
    return cell["metadata"].get("tags", [])


def _take(cells: list[Cell], tag: str) -> tuple[list[Cell], list[Cell]]:
    """The first cell with a tag, as a list, and the others."""
    found = next((cell for cell in cells if tag in _tags(cell)), None)
    return [found] if found else [], [cell for cell in cells if cell is not found]


def _take_takeaway(cells: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """The box with the advice, written or made by the cell that is tagged so, and the others."""
    found, rest = _take(cells, "takeaway")
    kept = []
    for cell in rest:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (box := TAKEAWAY.search(text)):
            found.append(cell | {"source": box[0]})
            text = (text[: box.start()] + text[box.end() :]).strip()
        if text or cell["cell_type"] != "markdown":
            kept.append(cell | {"source": text})
    return found, kept


def _with_claims(cell: Cell, study: str, extras: Extras) -> list[Cell]:
    """A cell; the verdicts' cell with the list of claims in place of its table."""
    if "verdicts" not in _tags(cell) or not extras.claims:
        return [cell]
    items = "\n".join(item(one, up=UP) for one in extras.claims)
    listed = raw(f'<ul class="claims" aria-label="Claims of {study}">\n{items}\n</ul>')
    return [cell | {"outputs": []}, _markdown("claims", listed)]


def _with_a_first_section(cells: list[Cell]) -> list[Cell]:
    """The cells, below a heading where the first that shows anything has none."""
    hidden = ("parameters", "injected-parameters", "remove-cell")
    for at, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            break
        if not set(hidden) & set(_tags(cell)):
            return [*cells[:at], _markdown("run", "## What was run"), *cells[at:]]
    return cells


def _without_empty_sections(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without headings that nothing stands under any more."""
    kept: list[Cell] = []
    following = 1  # the level of the heading that comes next: that of the page's end, of a text 0
    for cell in reversed(cells):
        level = _heading(cell)
        if not 0 < following <= level:
            kept.append(cell)
            begins = re.match(r"#+(?= )", "".join(cell["source"]))
            following = len(begins[0]) if begins and cell["cell_type"] == "markdown" else 0
    return kept[::-1]


def _heading(cell: Cell) -> int:
    """The level of a heading that is all its cell has, else 0."""
    found = re.fullmatch(r"(#+) [^\n]*", "".join(cell["source"]).strip())
    return len(found[1]) if found and cell["cell_type"] == "markdown" else 0


def _finish(cell: Cell, study: str, board: Mapping[str, Verdict]) -> None:
    """Badges for the claims that a cell names, long tables folded, its code left to the switch."""
    if cell["cell_type"] == "markdown":
        cell["source"] = quotes.badges(study, "".join(cell["source"]), board)
        return
    if tags := _tags(cell):
        cell["metadata"]["tags"] = [tag for tag in tags if tag != "hide-input"]
    for output in cell["outputs"]:
        if "text/markdown" in output.get("data", {}):
            text = "".join(output["data"]["text/markdown"])
            output["data"]["text/markdown"] = quotes.badges(study, fold(text), board)


def fold(text: str) -> str:
    """Markdown with its long tables in foldouts, each named by its length and first columns."""

    def folded(found: re.Match[str]) -> str:
        lines = found[0].strip().splitlines()
        rows = len(lines) - 2
        if rows <= MOST_ROWS:
            return found[0]
        names = [name for name in map(str.strip, lines[0].strip("| ").split("|")) if name]
        shown = " · ".join(names[:MOST_NAMES]) + " · …" * (len(names) > MOST_NAMES)
        return f"\n:::{{dropdown}} Table of {rows} rows: {shown}\n{found[0].strip()}\n:::\n"

    return TABLE.sub(folded, text)


def facts(study: str, extras: Extras) -> str:
    """The strip below the title: how much the records are, since when, how claims are judged."""
    rows = {**_sizes(extras.scale), **_dates(extras)}
    listed = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in rows.items())
    return f'<dl class="facts">{listed}</dl>\n<p class="facts">{_counts(study, extras)}{SWITCH}</p>'


def _sizes(scale: Scale) -> dict[str, str]:
    if scale.last is None:
        return {"Records": "none yet"}
    found = {}
    if scale.trainings:
        found["Models"] = f"{_range(scale.weights)} parameters"
        found["Tokens per run"] = _range(scale.tokens)
        found["Runs"] = f"{scale.trainings:,}, {scale.seeds} seed{'s' * (scale.seeds != 1)}"
    if scale.others:
        found["Other measurements"] = f"{scale.others:,}"
    if scale.corpora:
        found["Corpus"] = escape(", ".join(scale.corpora))
    found["Compute"] = f"{scale.hours:.1f} hours" if scale.hours >= 0.05 else "minutes"
    found["Device"] = escape(", ".join(scale.devices))
    return found


def _range(ends: tuple[int, int]) -> str:
    """The ends of a range of large counts, one where they read alike: "0.03–1.7 M"."""
    unit, size = next((pair for pair in UNITS if ends[1] >= pair[1]), ("", 1.0))
    scaled = [end / size for end in ends]
    low, high = (significant(x, 2 if x < 100 else 3) for x in scaled)
    return f"{low if low == high else f'{low}–{high}'} {unit}".strip()


def _dates(extras: Extras) -> dict[str, str]:
    scale, found = extras.scale, {}
    if scale.first and scale.last:
        first, last = (f"{day:%-d %b %Y}" for day in (scale.first, scale.last))
        found["Measured"] = first if first == last else f"{first} – {last}"
    pairs = [one for one in extras.claims if one["order"] == "shown" and one["first_record"]]
    if pairs:
        newest = max(pairs, key=lambda one: one["bound_date"])
        commit = newest["bound_commit"]
        name = f"<code>{commit[:7]}</code>"
        if extras.repository:
            name = f'<a href="{extras.repository}/commit/{commit}">{name}</a>'
        bound, record = (_minute(newest[key]) for key in ("bound_date", "first_record"))
        found["Bounds, then records"] = (
            f"{len(pairs)} of {len(extras.claims)} claims: {name} {bound} → first record {record}"
        )
    elif scale.first and extras.claims:
        found["Bounds, then records"] = f"not shown for any of {len(extras.claims)} claims"
    return found


def _minute(text: str) -> str:
    return f"{datetime.fromisoformat(text):%-d %b %H:%M}"


def _counts(study: str, extras: Extras) -> str:
    """A badge per kind of verdict, each a link to the claims that it counts, on the board."""
    counts = Counter(one["verdict"] for one in extras.claims)
    found = []
    for word, verdicts in KINDS.items():
        if number := sum(counts[verdict] for verdict in verdicts):
            query = f"study={study}&amp;verdict={','.join(verdicts).replace(' ', '%20')}"
            colour = BADGES[verdicts[0]]
            found.append(
                f'<a class="sd-badge sd-bg-{colour} sd-bg-text-{colour}" '
                f'href="{UP}claims.html?{query}">{word} {number}</a> '
            )
    return "".join(found)


def end(extras: Extras) -> str:
    """The last section: parameters in a foldout, the notebook and the records to download."""
    links = [
        f'<a href="{UP}{extras.notebook}" download>The notebook</a>, as it runs, with its results',
        *(
            f'The records of a profile: <a href="{UP}{place}" download>{Path(place).name}</a>'
            for place in extras.records
        ),
    ]
    listed = "".join(f"<li>{link}</li>" for link in links)
    parts = ["## Notebook, records, parameters", raw(f"<ul>{listed}</ul>")]
    if extras.parameters:
        parts.append(f"::::{{dropdown}} Parameters of every profile\n{extras.parameters}\n::::")
    return "\n\n".join(parts)
