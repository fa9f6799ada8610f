"""What a built page lacks for readers who use a keyboard or a screen reader is added to it.

The theme gives the buttons that unfold parts of the sidebar no name, and Sphinx writes long
signatures as definition lists without terms, and references in roles that are wrong or deprecated.
What scrolls sideways becomes reachable by Tab in ``book/_static/scrolling.js``.
"""

from __future__ import annotations

import re
from pathlib import Path

SIGNATURE = re.compile(r"\n<dl>\n((?:<dd>.*</dd>\n)+)</dl>\n")
FOLDOUT = re.compile(
    r"(<a\b[^>]*>([^<]*)</a>\s*<details[^>]*>\s*)<summary>(?=<span class=\"toctree)"
)
ROLE = re.compile(r' role="doc-biblioentry"| role="list"(?= class="citation-list")')


def mend_page(text: str) -> str:
    """One page with foldouts that have names, signatures that are lists, and allowed roles."""
    text = ROLE.sub("", text)
    text = FOLDOUT.sub(r'\1<summary aria-label="Pages of \2">', text)
    return SIGNATURE.sub(_parameters, text)


def _parameters(found: re.Match[str]) -> str:
    rows = found[1].replace("<dd>", "<li>").replace("</dd>\n", "</li>\n")
    return f'\n<ul class="parameters">\n{rows}</ul>\n'


def mend(html: Path) -> None:
    """Mend every page of the site in place."""
    for page in html.rglob("*.html"):
        page.write_text(mend_page(page.read_text(encoding="utf-8")), encoding="utf-8")
