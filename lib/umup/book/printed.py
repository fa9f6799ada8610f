"""The book as one PDF: the pages of the built site, in order, printed by headless Chromium.

The articles of all pages become one document, so that links between pages are links inside the
file. Ids get the name of their page in front. What a link led to beside these pages, the reference
of the library and files of records, is not in the file, and its link becomes plain text.
"""

from __future__ import annotations

import functools
import html as entities
import http.server
import io
import logging
import os
import posixpath
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from umup import files
from umup.book.glossary import TOKEN
from umup.errors import BookError
from umup.yaml_reader import read_yaml_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 658
"""Of the text on the page, in CSS pixels: A4 without the margins that ``print.css`` sets."""
MINUTES = 10
"""After which a step of the browser has failed."""

ATTRIBUTE = re.compile(r'(?<=\s)(id|href|src|xlink:href|for|srcset|loading)="([^"]*)"')
ANCHOR = re.compile(r"(<a\b[^>]*>)((?:(?!</a>).)*)(?=</a>)", re.DOTALL)
SCRIPT = re.compile(r"<script\b.*?</script>|<noscript\b.*?</noscript>", re.DOTALL)
STYLE = re.compile(r'<link\b[^>]*rel="stylesheet"[^>]*/?>')


class Part(NamedTuple):
    """A part of the table of contents: its caption and its pages, such as ``studies/planning``."""

    caption: str
    pages: tuple[str, ...]


def parts(contents: Path) -> list[Part]:
    """What is printed of a table of contents: all but the pages of ``api/``.

    Args:
        contents: ``_toc.yml``.

    Raises:
        BookError: it cannot be read.
    """
    toc = read_yaml_file(contents, BookError)
    found = [Part("", (toc["root"],))]
    for part in toc.get("parts", []):
        pages = (chapter["file"] for chapter in part["chapters"] if "file" in chapter)
        found.append(Part(part["caption"], tuple(pages)))
    return found


def _slug(page: str) -> str:
    return page.replace("/", "-")


def article(html: Path, page: str, printed: Iterable[str]) -> str:
    """The article of a page, for a document beside the site's ``index.html``.

    Args:
        html: the folder of the site.
        page: its name, without ``.html``.
        printed: names of all pages of the document.

    Raises:
        BookError: the site has no such page.
    """
    path = html / f"{page}.html"
    if not path.exists():
        raise BookError("html", f"no {path.name} in {path.parent}", "a built site; `make book`")
    text = path.read_text(encoding="utf-8").partition('<article class="bd-article')[2]
    text = SCRIPT.sub("", text.partition(">")[2].partition("</article>")[0])
    text = ANCHOR.sub(_with_address, text)
    names, folder = set(printed), posixpath.dirname(page)

    def changed(found: re.Match[str]) -> str:
        name, value = found[1], entities.unescape(found[2])
        if name in ("loading", "srcset"):  # on paper nothing comes into view
            return ""
        if name in ("id", "for"):
            value = f"{_slug(page)}--{value}"
        elif name == "src":
            value = _inside(value, folder)
        elif (target := _target(value, page, folder, names)) is None:
            return ""
        else:
            value = target
        return f'{name}="{entities.escape(value)}"'

    def tag(found: re.Match[str]) -> str:
        opened = "<details open" if found[0].startswith("<details") else found[0][:1]
        rest = found[0][len("<details") if opened != "<" else 1 :]
        return opened + ATTRIBUTE.sub(changed, rest)

    body = TOKEN.sub(lambda f: f[0] if f[0].startswith(("<!--", "<style")) else tag(f), text)
    return f'<article class="bd-article" id="{_slug(page)}">{body}</article>'


def _inside(url: str, folder: str) -> str:
    return url if urlsplit(url).scheme else posixpath.normpath(posixpath.join(folder, url))


def _target(url: str, page: str, folder: str, names: set[str]) -> str | None:
    """Where a link leads inside the document, or another site's address; None: nowhere."""
    where = urlsplit(url)
    if where.scheme in ("http", "https", "mailto"):
        return url
    name = page if not where.path else _inside(unquote(where.path), folder).removesuffix(".html")
    if where.scheme or name not in names:
        return None
    return f"#{_slug(name)}" + (f"--{unquote(where.fragment)}" if where.fragment else "")


def _with_address(found: re.Match[str]) -> str:
    """A link to another site with its address to be printed, unless its text says it."""
    tag, text = found[1], found[2]
    if not (href := re.search(r'\shref="(https?://[^"]*)"', tag)):
        return found[0]
    bare = re.sub(r"^https?://(www\.)?|/$", "", href[1])
    if bare in re.sub(r"<[^>]*>", "", text).replace("arXiv:", "arxiv.org/abs/"):
        return found[0]
    return f'{tag[:-1]} data-address="{bare}">{text}'


def heading(body: str) -> str:
    """The text of an article's first heading."""
    found = re.search(r'<h1[^>]*>(.*?)(?:<a class="headerlink|</h1>)', body, re.DOTALL)
    return entities.unescape(re.sub(r"<[^>]*>", "", found[1])) if found else ""


def document(
    html: Path, contents: Sequence[Part], articles: Mapping[str, str], title: str, style: str
) -> str:
    """The whole book as one page of HTML, for a place beside the site's ``index.html``.

    Args:
        html: the folder of the site.
        contents: what is printed, in order.
        articles: those of the pages by their names, see `article`.
        title: of the document.
        style: sheet of the printed page.
    """
    sheets, listed = "", ""
    for page in articles:
        if "/" not in page:  # its addresses are as seen from index.html
            head = (html / f"{page}.html").read_text(encoding="utf-8").partition("</head>")[0]
            sheets = sheets or "".join(STYLE.findall(head))
    for part in contents:
        rows = "".join(
            f'<li><a href="#{_slug(page)}">{entities.escape(heading(articles[page]))}</a></li>'
            for page in part.pages
        )
        listed += (f"<p>{part.caption}</p>" if part.caption else "") + f"<ul>{rows}</ul>"
    first = entities.escape(heading(articles[contents[0].pages[0]]))
    return (
        '<!doctype html><html lang="en" data-theme="light" data-mode="light"><head>'
        f'<meta charset="utf-8"><title>{title}</title>{sheets}<style>{style}</style>'
        f'</head><body><section class="cover"><img src="_static/logo.svg" alt="{title}">'
        f'<p>{first}</p></section><nav class="listing bd-article"><h1>Contents</h1>{listed}</nav>'
        f"{''.join(articles.values())}</body></html>"
    )


FIT = """
async () => {
  await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
  await document.fonts.ready;
  const edge = document.querySelector('article').getBoundingClientRect().right;
  const wide = 'article :is(table, math[display=block], svg)';
  for (const box of document.querySelectorAll(wide)) {
    const over = box.getBoundingClientRect().right - edge;
    const own = Math.max(box.scrollWidth || 0, box.getBoundingClientRect().width);
    if (over > 1) box.style.zoom = Math.max(0.4, (own - over) / own * 0.99);
  }
  const missing = [...document.images].filter(image => !image.naturalWidth);
  return missing.map(image => image.getAttribute('src'));
}
"""
"""Waits for pictures, makes what is too wide smaller; returns missing pictures."""


def browser() -> str:
    """Path of a Chromium or Chrome; the variable ``UMUP_CHROMIUM`` names another.

    Raises:
        BookError: there is none.
    """
    path = os.environ.get("UMUP_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise BookError("browser", None, f"{' or '.join(BROWSERS)} on the path, or UMUP_CHROMIUM")
    return path


@contextmanager
def _served(folder: Path, page: str) -> Iterator[str]:
    """Address of a text as ``print.html`` beside the files of a folder: fonts need a server."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/print.html":
                return super().do_GET()
            body = page.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/print.html"
        finally:
            server.shutdown()
            thread.join()


def pdf(html: Path, contents: Sequence[Part], style: str, target: Path, title: str) -> Path:
    """Print pages of a built site into one file.

    Args:
        html: the folder of the site.
        contents: what is printed, in order.
        style: sheet of the printed page.
        target: the file to write.
        title: of the document.

    Returns:
        The target.

    Raises:
        BookError: a page or a picture is missing, or there is no browser or no playwright.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BookError("playwright", None, "to be installed: pip install playwright") from error
    pages = [page for part in contents for page in part.pages]
    articles = {page: article(html, page, pages) for page in pages}
    path, text = browser(), document(html, contents, articles, title, style)
    with _served(html, text) as address, sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-sync"]
        )
        page = running.new_page(viewport={"width": WIDTH, "height": 930}, color_scheme="light")
        page.set_default_timeout(60_000 * MINUTES)
        page.emulate_media(media="print")
        page.goto(address, wait_until="load")
        if missing := page.evaluate(FIT):
            raise BookError("html", f"no picture {missing[0]}", "a site that is whole")
        made = page.pdf(prefer_css_page_size=True, print_background=True, tagged=True)
        running.close()
    headings = {page: heading(body) for page, body in articles.items()}
    writer = _outlined(made, contents, headings, title)
    with files.atomic_write(target) as draft:
        writer.write(draft)
    return target


def _outlined(
    made: bytes, contents: Sequence[Part], headings: Mapping[str, str], title: str
) -> Any:
    """A PDF with its title and an outline of parts and the pages of each: pypdf's writer of it."""
    import pypdf

    # It warns that Chromium's files have more objects than they announce, which harms nothing.
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    reader = pypdf.PdfReader(io.BytesIO(made))
    writer = pypdf.PdfWriter(clone_from=reader)
    writer.add_metadata({"/Title": title})
    places = reader.named_destinations
    for part in contents:
        above = None
        for page in part.pages:
            at = reader.get_destination_page_number(places[f"/{_slug(page)}"])
            if part.caption and above is None:
                above = writer.add_outline_item(title=part.caption, page_number=at)
            writer.add_outline_item(title=headings[page], page_number=at, parent=above)
    return writer


def book(root: Path) -> Path:
    """Print the built site of a checkout into ``book/_build/umup.pdf``; returns its path.

    Raises:
        BookError: as `pdf`.
    """
    source, built = root / "book", root / "book" / "_build"
    style = (source / "print" / "print.css").read_text(encoding="utf-8")
    contents = parts(source / "_toc.yml")
    return pdf(built / "html", contents, style, built / "umup.pdf", "umup")
