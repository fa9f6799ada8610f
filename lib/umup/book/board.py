"""The claims board: a page with every claim, a summary for other pages, and ``claims.json``.

Failures come first. Each claim has a place of its own on the page, ``#STUDY-ID``, with what was
measured against its bound, whose statement it is, the figure, the records and the bound's commit.
Everything is there without a script; `book/board/board.js` only hides what a reader filters out.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from umup.book import csv_files, provenance
from umup.book.board_page import GROUPS, NONE_YET, SECTIONS, page, raw, source_group
from umup.book.markdown import table
from umup.book.provenance import Order
from umup.book.strips import numbers, strip
from umup.errors import BookError
from umup.lab import claims
from umup.yaml_reader import read_yaml_file

SITE = "_generated/site"
"""Where, in the staged book, the files are that the site has beside its pages."""


class StudyPage(Protocol):
    """What the board needs of a `umup.book.pages.Study`: its name, title and rendered notebook."""

    @property
    def name(self) -> str:
        """Of its folder and page."""
        ...

    @property
    def title(self) -> str:
        """Its first heading."""
        ...

    @property
    def notebook(self) -> Mapping[str, Any]:
        """The notebook as JSON."""
        ...


def whose(source: str) -> str:
    """Who is wrong where a claim from this source fails."""
    if (group := source_group(source)) == "book":
        return "Our expectation fails here."
    other = re.search("lecture|library", source) if group == "other" else None
    by = "blog" if group == "blog" else other[0] if other else "paper"
    return f"The {by}'s statement fails here."


def claim_figures(notebook: Mapping[str, Any]) -> dict[str, str]:
    """Claim id → figure name, from cells with a named figure and tags `claim:ID`."""
    found = {}
    for cell in notebook["cells"]:
        name = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
        for tag in cell["metadata"].get("tags", []):
            if name and tag.startswith("claim:"):
                found[tag.removeprefix("claim:")] = name
    return found


def entries(
    verdicts: Iterable[Any],
    studies: Sequence[StudyPage],
    whys: Mapping[tuple[str, str], str] = {},
    orders: Mapping[tuple[str, str], Order] = {},
    files: Mapping[tuple[str, str], str] = {},
) -> list[dict[str, Any]]:
    """The objects of ``claims.json``, in the order of the page: failures first, then by study.

    Numbers are null where there is none: not measured, no bound to that side, or infinite.

    Args:
        verdicts: `umup.lab.claims.Verdict` objects.
        studies: whose pages are in the book, in its order.
        whys: (study, claim) → the reason for the bound. orders: → its provenance.
        files: (study, profile) → name of the records' CSV.
    """
    figures = {study.name: claim_figures(study.notebook) for study in studies}
    found = []
    for v in verdicts:
        order = orders.get((v.study, v.id), Order(False, provenance.NO_HISTORY))
        page = f"studies/{v.study}.html" if v.study in figures else None
        figure = figures.get(v.study, {}).get(v.id)
        file = files.get((v.study, v.profile))
        known = claims.evidence(v)
        value, lo, hi, low, high = (
            x if math.isfinite(x) else None for x in (v.value, v.lo, v.hi, v.bound_min, v.bound_max)
        )
        entry = {
            "study": v.study,
            "id": v.id,
            "anchor": f"claims.html#{v.study}-{v.id}",
            "statement": v.statement,
            "verdict": v.verdict,
            "value": value,
            "lo": lo,
            "hi": hi,
            "unit": v.unit,
            "bounds": {"min": low, "max": high},
            "evidence": "" if known == "–" else known,
            "seeds": v.n or None,
            "profile": v.profile or None,
            "source": v.source,
            "source_group": GROUPS[source_group(v.source)],
            "who_is_wrong": whose(v.source) if v.verdict == "fails" else None,
            "note": v.note,
            "why": whys.get((v.study, v.id), ""),
            "page": page,
            "figure": f"{page}#{figure}" if page and figure else None,
            "records": f"records/{file}" if file else None,
            "bound_commit": order.commit.hash if order.commit else None,
            "bound_date": order.commit.when.isoformat() if order.commit else None,
            "first_record": order.first.isoformat() if order.first else None,
            "order": "shown" if order.shown else "not shown",
            "order_reason": order.reason,
        }
        found.append((v, entry))
    places = [*SECTIONS], [study.name for study in studies]

    def place(pair: tuple[Any, dict[str, Any]]) -> tuple[int, int]:
        kind, study = pair[0].verdict, pair[0].study
        return places[0].index(kind), [*places[1], study].index(study)

    return [{**entry, "shown": _shown(v)} for v, entry in sorted(found, key=place)]


def _shown(v: Any) -> dict[str, str]:
    value, interval, bound = numbers(v)
    return {"value": value, "interval": interval, "bound": bound, "strip": strip(v)}


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """Counts of verdicts in Markdown, in all and by source, with links into the page."""
    if not found:
        return NONE_YET
    counts = Counter((one["source_group"], one["verdict"]) for one in found)
    kinds = {"hold": ("holds", "exact"), "fail": ("fails",), "inconclusive": ("inconclusive",)}
    kinds["not measured"] = ("not measured",)

    def cell(group: str, verdicts: Sequence[str]) -> str:
        number = sum(counts[group, verdict] for verdict in verdicts)
        key = next(key for key, name in GROUPS.items() if name == group)
        query = f"verdict={','.join(verdicts).replace(' ', '%20')}&amp;source={key}"
        return f'<a href="claims.html?{query}">{number}</a>' if number else "0"

    groups = [name for name in GROUPS.values() if any(counts[name, kind] for kind in SECTIONS)]
    rows = [[group, *(cell(group, verdicts) for verdicts in kinds.values())] for group in groups]
    sums = [sum(counts[g, k] for g in groups for k in verdicts) for verdicts in kinds.values()]
    hold, fail, open_, missing = sums
    older = sum(one["order"] == "shown" for one in found)
    said = (
        f"{len(found)} claims: {hold} hold, {fail} fail, {open_} are inconclusive, {missing} are "
        f"not measured. The history shows that the bounds of {older} are older than any record of "
        f"theirs; for {len(found) - older} it does not.\n"
    )
    return "\n".join([said, table(["whose statement", *kinds], rows, "counts")])


def repository(root: Path) -> str:
    """The URL of the project's repository, if CITATION.cff or pyproject.toml names one, or ""."""
    cited: Mapping[str, Any] = {}
    if (root / "CITATION.cff").exists():
        cited = read_yaml_file(root / "CITATION.cff", BookError)
    urls: Mapping[str, str] = {}
    if (root / "pyproject.toml").exists():
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("project", {})
        urls = {name.lower(): url for name, url in project.get("urls", {}).items()}
    named = cited.get("repository-code") or cited.get("repository") or urls.get("repository")
    return str(named or "").removesuffix("/").removesuffix(".git")


def collect(
    root: Path,
    staging: Path,
    verdicts: Sequence[Any],
    studies: Sequence[StudyPage],
    rows: pd.DataFrame,
) -> list[dict[str, Any]]:
    """All claims as `entries` gives them; writes ``claims.json`` and the records as CSV.

    Args:
        root: the checkout. staging: the copied book. studies: what was rendered.
        verdicts: of `umup.lab.claims.board`. rows: all records, of `pages.read_records`.
    """
    experiments, site = root / "experiments", staging / SITE
    site.mkdir(parents=True, exist_ok=True)
    times = provenance.first_records(
        zip(rows["study"], rows["profile"], rows["created"], strict=True)
    )
    history = provenance.History(experiments)
    orders = {(v.study, v.id): history.order(v.study, v.id, v.profile, times) for v in verdicts}
    whys = {
        (path.parent.name, claim.id): claim.why
        for path in experiments.glob("*/claims.yaml")
        for claim in claims.load(path)
    }
    files = csv_files.write(rows, site / "records") if len(rows) else {}
    found = entries(verdicts, studies, whys, orders, files)
    plain = [{key: value for key, value in one.items() if key != "shown"} for one in found]
    lines = (json.dumps(one, ensure_ascii=False, allow_nan=False) for one in plain)
    text = ",\n".join(lines)
    (site / "claims.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    return found


def generate(
    root: Path, staging: Path, found: Sequence[Mapping[str, Any]], studies: Sequence[StudyPage]
) -> None:
    """Write the page's fragments: ``counts`` and ``board``, and ``claims``, counts for other pages.

    Args:
        root: the checkout. staging: the copied book. found: of `collect`. studies: its pages, with
            the titles that they have in the book.
    """
    listed = page(found, {study.name: study.title for study in studies}, repository(root))
    own = staging / "board"
    look = f"<style>\n{(own / 'board.css').read_text('utf-8')}</style>"
    script = f"<script>\n{(own / 'board.js').read_text('utf-8')}</script>"
    listed = "\n".join([raw(look), listed, raw(script)])
    counts = summary(found)
    told = f"{counts}\n[The list of all claims](claims.md) has the failures first.\n"
    for name, text in {"counts": counts, "claims": told, "board": listed}.items():
        (staging / "_generated" / f"{name}.md").write_text(text, encoding="utf-8")
