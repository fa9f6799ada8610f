"""The glossary's terms: their anchors, and what of a page is marked with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from umup.book import glossary
from umup.errors import BookError

ROOT = Path(__file__).resolve().parents[2]
TERMS = [
    glossary.Term(name, definition, glossary.anchor(name))
    for name, definition in {
        "μP": "scales by <fan-in>",
        "u-μP": "has unit scale",
        "octave": 'a factor of "two"',
        "proxy": "small",
        "nats per token": "the unit",
        "95 % interval": "the range",
        "not measured": "missing",
        "close": "near",
        "price": "the cost",
        "η": "the rate",
    }.items()
]
MARKER = glossary.Marker(TERMS)


def marked(body: str, path: str = "theory.html") -> list[str]:
    """The texts that are marked in an article of this body."""
    page = f'<p>octave</p><article class="bd-article">{body}</article><p>octave</p>'
    done = MARKER.page(page, path)
    unmarked = re.sub(r'<a class="term"[^>]*>(.*?)</a>', r"\1", done, flags=re.DOTALL)
    assert unmarked == page, "nothing but links is added"
    return re.findall(r'<a class="term"[^>]*>(.*?)</a>', done, re.DOTALL)


def test_the_first_use_is_a_link_with_the_definition() -> None:
    page = '<article class="bd-article"><p>An octave, <em>an octave</em>.</p></article>'
    title = "a factor of &quot;two&quot;"
    for path, up in (("theory.html", ""), ("studies/lr_transfer.html", "../")):
        link = f'<a class="term" href="{up}glossary.html#term-octave" title="{title}">octave</a>'
        assert MARKER.page(page, path) == page.replace("octave", link, 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Octaves and an octave", ["Octaves"]),
        ("u-μP, then μP, then u-μP", ["u-μP", "μP"]),
        ("nats per\ntoken, and nats", ["nats per\ntoken"]),
        ("a 95 % interval", ["95 % interval"]),
        ("an interval", ["interval"]),
        ("two proxies", ["proxies"]),
        ("the <strong>not\nmeasured</strong>", ["not\nmeasured"]),
        ("half-octave octave-wide suboctave octavet", []),
        ("μp ΜP Η OCTAVE", []),  # a symbol is matched as it is written
        ("η̂_emb and η_w", []),
        ("close to it", []),  # an ordinary word
        ("a &amp; octave &lt;", ["octave"]),
    ],
)
def test_words_are_whole_and_symbols_exact(text: str, found: list[str]) -> None:
    assert marked(f"<p>{text}</p>") == found


@pytest.mark.parametrize(
    "where",
    [
        "<li><h2>{}</h2></li>",
        "<p><a href='x'>{}</a></p>",
        "<p><code><span>{}</span></code></p>",
        "<li><pre>{}</pre></li>",
        "<table><tr><td><p>{}</p></td></tr></table>",
        "<p><span class='math notranslate'>\\({}\\)</span></p>".replace("'", '"'),
        "<figure><p>{}</p></figure>",
        "<figure><figcaption><p>{}</p></figcaption></figure>",
        '<p class="caption">{}</p>',
        '<p class="admonition-title">{}</p>',
        '<p><span class="sd-badge sd-bg-danger">{}</span></p>',
        '<div class="cell_input docutils"><p>{}</p></div>',
        "<details><summary>x</summary><p>{}</p></details>",
        "<dl><dt><p>{}</p></dt></dl>",
        '<form><p>{}</p></form><div class="planner"><p>{}</p></div>',
        "<p><svg><text>{}</text></svg><button>{}</button></p>",
        "<p><script>'<p>' + {}</script><style>{}</style><!-- <p>{} --></p>",
        '<p><img alt="a > {}"><span title="{}"></span></p>',
        "<div>{}</div>",
    ],
)
def test_only_prose_is_marked(where: str) -> None:
    assert marked(where.replace("{}", "octave")) == []
    assert marked(where.replace("{}", "octave") + "<ul><li><br>octave</li></ul>") == ["octave"]


def test_a_page_that_means_something_else_marks_nothing() -> None:
    assert marked("<p>the price</p>", "theory.html") == ["price"]
    assert marked("<p>the price</p>", "planning.html") == []


def test_pages_that_mean_something_else_are_pages_of_the_book() -> None:
    for page in glossary.OTHERWISE:
        name = page.removesuffix(".html")
        places = (ROOT / "book" / f"{name}.md", ROOT / name.replace("studies", "experiments"))
        assert any(place.exists() for place in places), page


def site(folder: Path, terms: str) -> Path:
    (folder / "api").mkdir()
    for name in ("index.html", "api/umup.html", "search.html"):
        text = '<article class="bd-article"><p>An octave.</p></article>'
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "glossary.html").write_text(
        f'<article class="bd-article"><dl>{terms}</dl></article>', encoding="utf-8"
    )
    return folder


def every() -> str:
    """A glossary's terms, as it is built from ``book/glossary.md``."""
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S.*)\n: (.*(?:\n  .*)*)", text, re.MULTILINE)
    cite = '<span class="bibtex-citation">[<a href="#id1">Who, 2020</a>]</span>'
    built = ((name, re.sub(r"\{cite\}`\w+`", cite, words)) for name, words in entries)
    return "\n".join(f"<dt>{name}</dt><dd><p>{words}</p>\n</dd>" for name, words in built)


def test_a_site_is_marked_and_its_reference_pages_are_left_alone(tmp_path: Path) -> None:
    html = site(tmp_path, every())
    before = (html / "api" / "umup.html").read_text("utf-8")
    glossary.mark(html)
    assert 'href="glossary.html#term-octave"' in (html / "index.html").read_text("utf-8")
    assert (html / "api" / "umup.html").read_text("utf-8") == before
    assert (html / "search.html").read_text("utf-8") == before
    own = (html / "glossary.html").read_text("utf-8")
    assert (
        '<dt id="term-octave">octave</dt>' in own and "class=" not in own.partition("<dl>")[0][26:]
    )


def test_the_books_terms_have_anchors_of_their_own_and_plain_definitions() -> None:
    terms = glossary.read(every())
    assert len(terms) >= 30
    assert len({term.anchor for term in terms}) == len(terms)
    assert all(re.fullmatch(r"term-[a-z0-9-]+", term.anchor) for term in terms)
    assert all(not re.search(r"[<>{}$]|Who, 2020", term.definition) for term in terms)
    assert glossary.anchor("u-μP") == "term-u-mup"
    assert glossary.anchor("95 % interval") == "term-95-percent-interval"


def test_a_glossary_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="a built site with glossary"):
        glossary.mark(tmp_path)
    with pytest.raises(BookError, match=r"'octave' twice"):
        glossary.read(every() + "<dt>octave</dt><dd><p>again</p></dd>")
    with pytest.raises(BookError, match=r"no definition of 'price'"):
        glossary.read(every().replace("<dt>price</dt>", "<dt>cost</dt>"))
