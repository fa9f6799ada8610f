"""The book as one document and as one PDF: its order, its links, what of a page is printed."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from umup.book import printed
from umup.errors import BookError

ROOT = Path(__file__).resolve().parents[2]
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
FRAME = """<html><head><link rel="stylesheet" href="_static/own.css?v=1"/>
</head><body><nav><p>Sidebar</p></nav>
<article class="bd-article">{}</article><footer>Foot</footer></body></html>"""
FIRST = """<section id="first">
<h1>The first &amp; page<a class="headerlink" href="#first">#</a></h1>
<p>To <a href="studies/second.html">the second</a>, <a href="studies/second.html#here">here</a>,
<a href="claims.html?verdict=fails">claims</a>, <a href="records/a.csv">records</a>,
<a href="api/umup.html#umup.f">umup.f</a>, <a href="#first">itself</a>.</p>
<p><a href="https://example.org/x?a=1&amp;b=2">elsewhere</a>,
<a href="https://arxiv.org/abs/2407.17465">arXiv:2407.17465</a>.</p>
<script>never()</script><div class="planner"><p>Interactive</p></div></section>"""
SECOND = """<section id="here"><h1>The second page</h1><figure><a href="../_images/a.png">
<img alt="a > b" loading="lazy" src="../_images/a.png"/></a></figure>
<details class="hide above-input"><summary>Show code</summary><pre>hidden = 1</pre></details>
<details class="sd-dropdown"><summary>Runs</summary><p>All of them</p></details>
<table><tr><td style="min-width: 2000px">wide</td><td>lastcell</td></tr></table>
<p>Back to <a href="../index.html#first">the first</a>.</p></section>"""
CONTENTS = [printed.Part("", ("index",)), printed.Part("Studies", ("studies/second",))]
PAGES = ("index", "studies/second")


@pytest.fixture
def html(tmp_path: Path) -> Path:
    """A site of two pages that are printed, and one that is not."""
    for name in ("studies", "_images", "_static"):
        (tmp_path / name).mkdir()
    for name, body in {"index": FIRST, "studies/second": SECOND, "claims": "<h1>x</h1>"}.items():
        (tmp_path / f"{name}.html").write_text(FRAME.format(body), encoding="utf-8")
    (tmp_path / "_images" / "a.png").write_bytes(base64.b64decode(PIXEL))
    (tmp_path / "_static" / "own.css").write_text("body { margin: 0 }")
    logo = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    (tmp_path / "_static" / "logo.svg").write_text(logo)
    return tmp_path


def test_the_parts_are_those_of_the_contents_without_the_reference(tmp_path: Path) -> None:
    toc = tmp_path / "_toc.yml"
    toc.write_text(
        "root: index\nparts:\n- caption: Studies\n  chapters:\n  - file: studies/second\n"
        "- caption: Library\n  chapters:\n  - file: api\n    sections:\n    - glob: api/*\n"
    )
    assert printed.parts(toc) == [*CONTENTS, printed.Part("Library", ("api",))]
    book = [page for part in printed.parts(ROOT / "book" / "_toc.yml") for page in part.pages]
    assert book[:2] == ["index", "how-to-read"] and book[-1] == "references"
    assert "studies/lr_transfer" in book and not [page for page in book if page.startswith("api/")]


def test_links_lead_to_places_in_the_document_or_to_other_sites_or_nowhere(html: Path) -> None:
    found = printed.article(html, "index", PAGES)
    assert found.startswith('<article class="bd-article" id="index">')
    assert '<section id="index--first">' in found
    assert '<a href="#studies-second">the second</a>' in found
    assert '<a href="#studies-second--here">here</a>' in found
    assert '<a href="#index--first">itself</a>' in found
    for text in ("claims", "records", "umup.f"):
        assert f"<a >{text}</a>" in found
    assert (
        'href="https://example.org/x?a=1&amp;b=2" data-address="example.org/x?a=1&amp;b=2"' in found
    )
    assert '<a href="https://arxiv.org/abs/2407.17465">arXiv' in found  # its text says it
    assert "never()" not in found and "Sidebar" not in found and "Foot" not in found
    both = printed.article(html, "studies/second", PAGES)
    assert 'href="#index--first"' in both
    assert 'src="_images/a.png"' in both and "loading" not in both and 'alt="a > b"' in both
    assert both.count("<details open") == 2


def test_a_link_to_a_page_that_is_printed_keeps_no_query(html: Path) -> None:
    found = printed.article(html, "index", (*PAGES, "claims"))
    assert '<a href="#claims">claims</a>' in found


def test_the_document_has_a_list_of_its_pages(html: Path) -> None:
    articles = {page: printed.article(html, page, PAGES) for page in PAGES}
    found = printed.document(html, CONTENTS, articles, "Book", "p { color: red }")
    assert '<li><a href="#index">The first &amp; page</a></li>' in found
    assert '<p>Studies</p><ul><li><a href="#studies-second">The second page</a></li></ul>' in found
    assert '<link rel="stylesheet" href="_static/own.css?v=1"/>' in found
    assert "p { color: red }" in found


def test_a_page_that_is_not_there_is_an_error(html: Path) -> None:
    with pytest.raises(BookError, match=r"no third\.html"):
        printed.article(html, "third", PAGES)


def test_a_browser_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UMUP_CHROMIUM", "/opt/its/own")
    assert printed.browser() == "/opt/its/own"
    monkeypatch.delenv("UMUP_CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BookError, match="chromium or "):
        printed.browser()


@pytest.mark.browser
def test_two_pages_are_printed_into_one_file(html: Path, chromium: str, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    style = (ROOT / "book" / "print" / "print.css").read_text(encoding="utf-8")
    file = printed.pdf(html, CONTENTS, style, tmp_path / "book.pdf", "Book")
    reader = pypdf.PdfReader(file)
    cover, listed, first, second = (page.extract_text() for page in reader.pages)
    assert "The first & page" in cover and "The second page" in listed
    assert "The first & page" in first and "The second page" in second
    assert "elsewhere (example.org/x?a=1&b=2)" in first and "itself" in first
    assert "Interactive" not in first and "interactive" in first
    assert "All of them" in second and "hidden" not in second
    assert "lastcell" in second, "a wide table fits the page"
    assert "4" in second.split(), "pages are numbered"
    outline = [one for one in reader.outline if not isinstance(one, list)]
    assert [one.title for one in outline] == ["The first & page", "Studies"]
    links = [a.get_object() for page in reader.pages for a in page.get("/Annots", [])]
    addresses = {link["/A"]["/URI"] for link in links if "/A" in link}
    assert addresses == {"https://example.org/x?a=1&b=2", "https://arxiv.org/abs/2407.17465"}
    inside = [link["/Dest"] for link in links if "/Dest" in link]
    assert len(inside) >= 5 and set(inside) <= reader.named_destinations.keys()


@pytest.mark.browser
def test_a_picture_that_is_missing_is_an_error(html: Path, chromium: str, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    (html / "_images" / "a.png").unlink()
    with pytest.raises(BookError, match=r"no picture _images/a\.png"):
        printed.pdf(html, CONTENTS, "", tmp_path / "book.pdf", "Book")
    assert not (tmp_path / "book.pdf").exists()
