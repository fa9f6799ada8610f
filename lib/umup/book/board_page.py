"""The page of all claims: a heading per verdict, under it an item per claim, in HTML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from umup.book.markdown import BADGES
from umup.lab import claims

SECTIONS = {
    "fails": "The interval lies outside the bound. At each it is said whose statement that "
    "contradicts, at these sizes and with this bound.",
    "inconclusive": "The interval crosses an end of the bound, or the runs do not bound it.",
    "holds": "The interval lies inside the bound.",
    "exact": "It holds, and the interval has no width: arithmetic, or a measurement that repeats.",
    "not measured": "The bound is written; the runs are not made, or not all of them.",
}
"""Verdict → what it means, in the order of the page."""

SOURCES = (
    ("u-mup", "u-μP paper", r"u-μP"),
    ("tensor-programs", "Tensor Programs", r"Tensor Programs"),
    ("completep", "CompleteP", r"CompleteP"),
    ("blog", "blog", r".*\(blog\)|a practitioner's blog"),
    ("book", "this book", r"asked by|derived|this book|theory"),
    ("other", "other", r".*(arXiv|et al\.|lecture|library)"),
    ("book", "this book", r""),  # an argument that needs nobody's word
)
"""(Key, name, how a source of that group begins); the first that matches counts."""

GROUPS = {key: name for key, name, _ in SOURCES}
NONE_YET = "No study states a claim yet.\n"


def source_group(source: str) -> str:
    """The key of the group that a claim's source belongs to."""
    return next(key for key, _, start in SOURCES if re.match(start, source))


def page(
    found: Sequence[Mapping[str, Any]], titles: Mapping[str, str], repository: str = ""
) -> str:
    """The list of all claims as MyST: a heading per verdict, the rest HTML.

    Args:
        found: of `board.entries`. titles: study → title.
        repository: URL that commits are linked to; "" for none.
    """
    if not found:
        return NONE_YET
    parts = [raw(_filter(found, titles))]
    for verdict, meaning in SECTIONS.items():
        mine = [one for one in found if one["verdict"] == verdict]
        if not mine:
            continue
        parts.append(f"## {verdict.capitalize()}\n\n{len(mine)} claims. {meaning}\n")
        html = []
        for study in dict.fromkeys(one["study"] for one in mine):
            title = _text(titles.get(study, study))
            link = f'<a href="studies/{study}.html">{title}</a>' if study in titles else title
            items = "\n".join(item(one, repository) for one in mine if one["study"] == study)
            html.append(f'<h3>{link}</h3>\n<ul class="claims">\n{items}\n</ul>')
        parts.append(raw("\n".join(html)))
    return "\n".join(parts)


def raw(html: str) -> str:
    """HTML as a block of MyST."""
    return f"```{{raw}} html\n{html}\n```\n"


def _text(text: str) -> str:
    """Escaped, with `code` marked up."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _source(source: str) -> str:
    """A source with its arXiv numbers as links."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", link, _text(source))


def _filter(found: Sequence[Mapping[str, Any]], studies: Iterable[str]) -> str:
    """The form that the script shows: chips per verdict, source, profile, study; a text box."""
    here = dict.fromkeys([*studies, *(one["study"] for one in found)])
    options = {
        "verdict": {verdict: verdict for verdict in SECTIONS},
        "source": {name: key for key, name in GROUPS.items()},
        "profile": {profile: profile for profile in claims.PROFILES},
        "order": {"shown": "shown", "not shown": "not shown"},
        "study": {study: study for study in here},
    }
    parts = []
    for name, labels in options.items():
        counts = Counter(one["source_group" if name == "source" else name] for one in found)
        chips = "".join(
            f'<button type="button" data-of="{name}" data-is="{key}" aria-pressed="false">'
            f"{escape(label)} <small>{counts[label]}</small></button>"
            for label, key in labels.items()
            if counts[label]
        )
        legend = f"<legend>{name.capitalize()}</legend>"
        parts.append(f"<fieldset>{legend}<div>{chips}</div></fieldset>")
    parts[-1] = f"<details><summary>By study</summary>{parts[-1]}</details>"
    box = '<label>Text <input type="search" name="text" autocomplete="off"></label>'
    last = '<button type="reset">Show all</button><output aria-live="polite"></output>'
    start = '<form id="filter" role="search" aria-label="Claims" hidden>'
    return f"{start}{''.join(parts)}<p>{box}{last}</p></form>"


def item(one: Mapping[str, Any], repository: str = "", up: str = "") -> str:
    """A claim as an item of a list: on the board, or on its study's page.

    The bound's date and the records are on the board alone, which keeps study pages light.

    Args:
        one: of `board.entries`.
        repository: URL that commits are linked to; "" for none.
        up: the way to the site's root from a study's page, which has the claim at ``#claim-ID``;
            "" on the board, which has it at ``#STUDY-ID`` with what the filters ask for.
    """
    shown, verdict = one["shown"], one["verdict"]
    anchor = f"claim-{one['id']}" if up else f"{one['study']}-{one['id']}"
    badge = BADGES[verdict]
    data = "" if up else f" {_filtered_by(one)}"
    value = (
        f"<b>{shown['value']}</b> {shown['interval']} {escape(one['unit'])}"
        if shown["value"]
        else "–"
    )
    remarks = [one["who_is_wrong"], one["note"] and f"{one['note'][0].upper()}{one['note'][1:]}."]
    beside = one["anchor"] if up else one["page"] and f"{one['page']}#claim-{one['id']}"
    figure = one["figure"] and (one["figure"].partition("#")[2] if up else one["figure"])
    about = [
        _text(one["evidence"]),
        one["profile"] and f"profile {one['profile']}",
        _source(one["source"]),
        figure and f'<a href="{"#" if up else ""}{figure}">figure</a>',
        one["records"] and not up and f'<a href="{one["records"]}" download>records</a>',
        beside and f'<a href="{up}{beside}">{"board" if up else "study"}</a>',
        one["order"] == "not shown" and '<span class="late">order not shown</span>',
    ]
    remark = _text(" ".join(filter(None, remarks)))
    asked = "Why this bound" if up else "Why this bound, and since when"
    since = "" if up else f"<p>{_since(one, repository)}</p>"
    return (
        f'<li id="{anchor}" class="claim {badge}"{data}>\n'
        f'<p class="said"><span class="sd-badge sd-bg-{badge} sd-bg-text-{badge}">{verdict}</span> '
        f'{_text(one["statement"])}<a class="headerlink" href="#{anchor}" '
        f'title="Link to this claim">#</a></p>\n'
        f'<div class="found">{shown["strip"]}<span>{value}</span>'
        f"<span>allowed: {escape(shown['bound'])}</span></div>\n"
        + (f'<p class="remark">{remark}</p>\n' if remark else "")
        + f'<p class="about">{" · ".join(filter(None, about))}</p>\n'
        f"<details><summary>{asked}</summary><p>{_text(one['why'])}</p>{since}</details>\n</li>"
    )


def _filtered_by(one: Mapping[str, Any]) -> str:
    """What the board's filters ask of a claim, as attributes."""
    values = {
        "verdict": one["verdict"],
        "study": one["study"],
        "source": source_group(one["source"]),
        "profile": one["profile"] or "",
        "order": one["order"],
    }
    return " ".join(f'data-{name}="{value}"' for name, value in values.items())


def _since(one: Mapping[str, Any], repository: str) -> str:
    """The bound's commit, the first record's time, and whether that shows their order."""
    said = []
    if commit := one["bound_commit"]:
        name = f"<code>{commit[:7]}</code>"
        name = f'<a href="{repository}/commit/{commit}">{name}</a>' if repository else name
        said.append(f"Bound: commit {name}, {_time(one['bound_date'])}.")
    if one["first_record"]:
        profile = f" of the profile {one['profile']}"
        said.append(f"First record{profile}: {_time(one['first_record'])}.")
    known = "Bound before records" if one["order"] == "shown" else "The order cannot be shown"
    return " ".join([*said, f"{known}: {escape(one['order_reason'])}."])


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
