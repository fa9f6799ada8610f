"""What no page uses is taken out of the built site: it is most of what a reader would load.

The theme brings an icon font with its script, the whole of Bootstrap's style sheet, and the index
of the search on every page. Here the icons are small masks in our own style sheet (``ICONS``),
style sheets keep the rules that some page can match, and the page that searches loads the index.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from umup.errors import BookError

SCRIPTS = re.compile(
    r'\s*<script\b[^>]*\bsrc="[^"]*(fontawesome|searchtools|language_data|searchindex)'
    r'[^"]*"[^>]*></script>'
)
IMAGE = re.compile(r"<img(?![^>]*\bloading=)")
WORD = re.compile(r"[\w-]+")

ICONS = {
    "magnifying-glass": '<circle cx="6.5" cy="6.5" r="4.5"/><path d="M10 10l4.5 4.5"/>',
    "list": '<path d="M5 4h10M5 8h10M5 12h10M1.5 4h.5M1.5 8h.5M1.5 12h.5"/>',
    "bars": '<path d="M1.5 3.5h13M1.5 8h13M1.5 12.5h13"/>',
    "expand": '<path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4"/>',
    "chevron-down": '<path d="M2.5 5.5L8 11l5.5-5.5"/>',
    "arrow-up": '<path d="M8 14V2.5M3 7.5l5-5 5 5"/>',
    "angle-left": '<path d="M10 3L5 8l5 5"/>',
    "angle-right": '<path d="M6 3l5 5-5 5"/>',
    "xmark": '<path d="M3 3l10 10M13 3L3 13"/>',
    "sun": '<circle cx="8" cy="8" r="3"/><path d="M8 1v2M8 13v2M1 8h2M13 8h2M3 3l1.5 1.5'
    'M11.5 11.5L13 13M13 3l-1.5 1.5M4.5 11.5L3 13"/>',
    "moon": '<path d="M13.5 10A6 6 0 0 1 6 2.5a6 6 0 1 0 7.5 7.5z"/>',
    "circle-half-stroke": '<circle cx="8" cy="8" r="6"/><path d="M8 3v10M9.5 3.5v9M11 4.5v7"/>',
}
"""Name → strokes in a square of 16."""


def icons() -> str:
    """A style sheet that draws the theme's icons as masks in the colour of the text."""
    shared = (
        ".fa-solid,.fas{display:inline-block;width:1em;height:1em;background:currentColor;"
        "mask:var(--icon) center/contain no-repeat}"
    )
    rules = [shared]
    for name, strokes in ICONS.items():
        drawn = (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" fill="none" '
            f'stroke="black" stroke-width="1.8" stroke-linecap="round">{strokes}</svg>'
        )
        quoted = drawn.replace("<", "%3C").replace(">", "%3E").replace('"', "'")
        rules.append(f'.fa-{name}{{--icon:url("data:image/svg+xml,{quoted}")}}')
    return "\n".join(rules) + "\n"


def slim(html: Path) -> dict[str, tuple[int, int]]:
    """Slim the site in place.

    Args:
        html: the folder with ``index.html``.

    Returns:
        Style sheet → its bytes before and after.

    Raises:
        BookError: there is no site, or a page uses an icon that is not drawn here.
    """
    if not (html / "index.html").exists():
        raise BookError("html", str(html), "a built site; `make book` builds one")
    used: set[str] = set()
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for icon in re.findall(r'class="[^"]*\bfas? fa-([\w-]+)', text.replace("fa-solid", "fas")):
            if icon not in ICONS:
                where = str(page.relative_to(html))
                raise BookError(where, f"the icon fa-{icon}", f"one of {', '.join(ICONS)}")
        text = slim_page(text)
        page.write_text(text, encoding="utf-8")
        used |= set(WORD.findall(text))
    for script in html.rglob("*.js"):
        if "fontawesome" not in script.name:
            used |= set(WORD.findall(script.read_text(encoding="utf-8")))
    sizes = {}
    for sheet in sorted(html.rglob("*.css")):
        before = sheet.read_text(encoding="utf-8")
        after = purge(before, used)
        sheet.write_text(after, encoding="utf-8")
        sizes[str(sheet.relative_to(html))] = len(before.encode()), len(after.encode())
    with (html / "_static" / "custom.css").open("a", encoding="utf-8") as ours:
        ours.write(icons())
    shutil.rmtree(html / "_static" / "vendor" / "fontawesome", ignore_errors=True)
    for left in {*html.rglob("*.map"), *html.glob("_static/scripts/fontawesome*")}:
        left.unlink()
    return sizes


def slim_page(text: str) -> str:
    """One page without the scripts it does not need; its images load as they come into view."""
    searches = 'id="search-results"' in text

    def keep(found: re.Match[str]) -> str:
        return found[0] if searches and found[1] != "fontawesome" else ""

    text = SCRIPTS.sub(keep, text)
    head, mark, body = text.partition("<article")
    return head + mark + IMAGE.sub('<img loading="lazy" decoding="async"', body)


def purge(sheet: str, used: set[str]) -> str:
    """A style sheet without rules that need a class or an id outside ``used``, and without icons.

    A selector is judged by the classes and ids that it names outright: what is inside ``:not()``
    and its like may be absent.
    """
    import tinycss2

    rules = tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True)
    return _serialized(_kept(rules, used))


def _kept(rules: Iterable[Any], used: set[str]) -> list[Any]:
    import tinycss2

    out = []
    for rule in rules:
        if rule.type == "qualified-rule":
            groups = [group for group in _selectors(rule.prelude) if _possible(group, used)]
            if groups:
                comma = tinycss2.parse_component_value_list(",")
                rule.prelude = [
                    token for i, group in enumerate(groups) for token in (comma * (i > 0) + group)
                ]
                out.append(rule)
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports", "layer"):
            if rule.content is None:
                out.append(rule)
                continue
            inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
            if inner := _kept(inner, used):
                rule.content = [_Raw(_serialized(inner))]
                out.append(rule)
        elif not (rule.type == "at-rule" and "fontawesome" in rule.serialize()):
            out.append(rule)
    return out


class _Raw:
    """Text that is serialized as it is."""

    type = "raw"

    def __init__(self, text: str) -> None:
        self.text = text

    def _serialize_to(self, write: Any) -> None:
        write(self.text)


def _serialized(rules: Sequence[Any]) -> str:
    return "".join(rule.serialize() for rule in rules)


def _selectors(prelude: Sequence[Any]) -> list[list[Any]]:
    """The selectors of a list, separated by commas."""
    groups: list[list[Any]] = [[]]
    for token in prelude:
        if token == ",":
            groups.append([])
        else:
            groups[-1].append(token)
    return groups


def _possible(selector: Sequence[Any], used: set[str]) -> bool:
    """Whether every class and id that the selector names outright is used."""
    for before, token in zip([None, *selector], selector, strict=False):
        named = token.type == "hash" or (token.type == "ident" and before == ".")
        if named and token.value not in used:
            return False
    return True
