"""The terms of the glossary, marked where a page first uses them.

The glossary is a page like any other, ``book/glossary.md``: lists of terms, each with its
definition. In the built site every term gets an anchor there, and its first occurrence in the prose
of another page becomes a link to it whose title is the definition.
"""

from __future__ import annotations

import html as entities
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from umup.errors import BookError

PAGE = "glossary.html"
LEFT_ALONE = (PAGE, "genindex.html", "py-modindex.html", "references.html", "search.html", "api/")
"""Pages, and folders of pages, in which no term is marked."""

ORDINARY = ("holds", "exact", "fails", "close", "edge", "target", "transfer")
"""Terms that most sentences use in another sense: they are defined, and not marked."""
FORMS: Mapping[str, Sequence[str]] = {
    "α of attention": (),
    "95 % interval": ("interval",),
    "abc-parametrization": ("abc",),
    "proxy": ("proxies", "proxy model"),
    "nats per token": ("nats",),
    "flush to zero": ("flushed to zero", "flushed"),
    "independent weight decay": ("independent decay",),
    "coupled weight decay": ("coupled decay",),
    "lack of fit": ("lacks of fit",),
    "warm-up": ("warmup",),
}
"""Term → what else stands for it, beside itself and its plural."""

OTHERWISE: Mapping[str, Sequence[str]] = {
    "planning.html": ("price",),
    "reproducing.html": ("price", "recipe"),
    "studies/attention_scale.html": ("cosine",),
    "studies/stability.html": ("bound", "drift"),
    "studies/throughput.html": ("bound", "drift", "profile"),
}
"""Page → terms whose first use there has another sense: none of them is marked on it."""

LETTERS = {"μ": "mu", "η": "eta", "α": "alpha", "τ": "tau", "%": "percent"}

PROSE = {"p", "li"}
NO_PROSE = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "a", "code", "pre", "table", "math", "svg", "button"),
    *("figure", "figcaption", "caption", "details", "summary", "dt", "form", "nav", "script"),
}
"""Elements in which no term is marked, however deep."""
NO_PROSE_CLASSES = {
    *("math", "caption", "caption-text", "admonition-title", "rubric", "sd-badge", "planner"),
    *("bibtex-citation", "cell_input", "pst-scrollable-table-container"),
}
VOID = {"br", "img", "hr", "input", "meta", "link", "wbr", "source", "col"}
TOKEN = re.compile(
    r"""<!--.*?-->|<script\b.*?</script>|<style\b.*?</style>|<(?:"[^"]*"|'[^']*'|[^>"'])*>""",
    re.DOTALL,
)
ENTRY = re.compile(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", re.DOTALL)
CITATION = re.compile(r'\s*<span class="bibtex-citation".*?</span>', re.DOTALL)


@dataclass(frozen=True)
class Term:
    """A term, its definition in plain text and its anchor in the glossary."""

    name: str
    definition: str
    anchor: str

    def forms(self) -> tuple[str, ...]:
        """The words that stand for it in a text; none if they are ordinary words."""
        if self.name in ORDINARY:
            return ()
        plural = (f"{self.name}s",) if self.name[-1].islower() and self.name.isascii() else ()
        return (self.name, *plural, *FORMS.get(self.name, ()))


def anchor(name: str) -> str:
    """The id of a term: ``term-u-mup`` of u-μP."""
    plain = "".join(LETTERS.get(letter, letter) for letter in name.lower())
    return "term-" + re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def read(page: str) -> list[Term]:
    """The terms of the built glossary.

    Raises:
        BookError: it has none, one twice, or lacks one that this module names.
    """
    found = []
    for name, definition in ENTRY.findall(page):
        name = _plain(name)
        found.append(Term(name, _plain(CITATION.sub("", definition)), anchor(name)))
    names = [term.name for term in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BookError(PAGE, f"{twice[0]!r} twice", "every term once")
    named = (*ORDINARY, *FORMS, *(name for terms in OTHERWISE.values() for name in terms))
    if missing := [name for name in named if name not in names]:
        raise BookError(PAGE, f"no definition of {missing[0]!r}", f"one of {', '.join(missing)}")
    return found


def _plain(text: str) -> str:
    return " ".join(entities.unescape(TOKEN.sub("", text)).split())


def with_anchors(page: str) -> str:
    """The glossary with an id on every term."""

    def named(found: re.Match[str]) -> str:
        return found[0].replace("<dt>", f'<dt id="{anchor(_plain(found[1]))}">', 1)

    return ENTRY.sub(named, page)


class Marker:
    """Marks the terms in pages.

    Words may start with a capital; what has a capital or a letter of another alphabet is a symbol,
    and is matched as it is written.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms: dict[str, Term] = {}
        patterns = {}
        for term in terms:
            for form in term.forms():
                self.terms[form] = term
                pattern = r"\s+".join(map(re.escape, entities.escape(form).split()))
                if form.isascii() and form.islower() and form[0].isalpha():
                    pattern = f"[{form[0].upper()}{form[0]}]{pattern[1:]}"
                patterns[form] = pattern
        longest = sorted(patterns, key=len, reverse=True)
        # Neither part of a longer word nor of a compound, nor a letter under an accent.
        self.pattern = re.compile(
            rf"(?<![\w-])(?:{'|'.join(patterns[form] for form in longest)})(?![\w\u0300-\u036f-])"
        )

    def term(self, found: str) -> Term:
        """The term that a match stands for."""
        words = " ".join(entities.unescape(found).split())
        return self.terms.get(words) or self.terms[words[0].lower() + words[1:]]

    def page(self, text: str, path: str) -> str:
        """A page with the first occurrence of every term in its prose marked.

        Args:
            text: the page.
            path: of the page in the site, such as ``studies/lr_transfer.html``.
        """
        start, article, rest = text.partition('<article class="bd-article')
        body, end, rest = rest.partition("</article>")
        up = "../" * (len(PurePosixPath(path).parts) - 1)
        marked = {term for term in self.terms.values() if term.name in OTHERWISE.get(path, ())}

        def link(found: re.Match[str]) -> str:
            term = self.term(found[0])
            if term in marked:
                return found[0]
            marked.add(term)
            title = entities.escape(term.definition)
            return f'<a class="term" href="{up}{PAGE}#{term.anchor}" title="{title}">{found[0]}</a>'

        pieces = [
            self.pattern.sub(link, piece) if is_prose else piece
            for piece, is_prose in prose(article + body)
        ]
        return start + "".join(pieces) + end + rest


def prose(body: str) -> Iterator[tuple[str, bool]]:
    """The text and the tags of a piece of HTML, in order, and whether each is text of prose."""
    open_tags: list[tuple[str, bool, bool]] = []  # name, whether it is prose, whether it bars it
    at = 0
    for token in TOKEN.finditer(body):
        yield body[at : token.start()], _is_prose(open_tags)
        yield token[0], False
        at = token.end()
        if not (parsed := re.match(r"<(/?)([a-zA-Z][\w-]*)", token[0])):
            continue
        name = parsed[2].lower()
        if parsed[1]:
            while open_tags and open_tags.pop()[0] != name:
                pass
        elif name not in VOID | {"script", "style"} and not token[0].endswith("/>"):
            classes = re.search(r'\bclass="([^"]*)"', token[0])
            barred = name in NO_PROSE or bool(
                NO_PROSE_CLASSES & set(classes[1].split() if classes else ())
            )
            open_tags.append((name, name in PROSE, barred))
    yield body[at:], _is_prose(open_tags)


def _is_prose(open_tags: Sequence[tuple[str, bool, bool]]) -> bool:
    return any(tag[1] for tag in open_tags) and not any(tag[2] for tag in open_tags)


def mark(html: Path) -> None:
    """Give the terms of a built site's glossary their anchors, and mark them on the other pages.

    Raises:
        BookError: there is no glossary, or its terms do not fit this module.
    """
    glossary = html / PAGE
    if not glossary.exists():
        raise BookError("html", str(html), f"a built site with {PAGE}")
    text = glossary.read_text(encoding="utf-8")
    marker = Marker(read(text))
    glossary.write_text(with_anchors(text), encoding="utf-8")
    for page in html.rglob("*.html"):
        path = page.relative_to(html).as_posix()
        if not path.startswith((*LEFT_ALONE, "_static/")):
            page.write_text(marker.page(page.read_text(encoding="utf-8"), path), encoding="utf-8")
