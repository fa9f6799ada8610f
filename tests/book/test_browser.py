"""The built book in headless Chromium, at two widths and in both themes, served over HTTP.

`problems` is what a reader would call broken; its own tests show that it sees each kind.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {1280: 800, 390: 844}
CONTRAST = 4.5  # WCAG 2.2, level AA, for body text

LOOK = """
async () => {
  const found = [];
  const article = document.querySelector('.bd-article') || document.body;
  const show = e => (e.outerHTML || '').slice(0, 90).replace(/\\s+/g, ' ');

  await document.fonts.ready;
  for (const e of article.querySelectorAll('.math'))
    if (!e.querySelector('math')) found.push('math not rendered: ' + show(e));
  for (const e of article.querySelectorAll('merror'))
    found.push('math error: ' + e.textContent);

  for (const e of document.images) {
    e.loading = 'eager';
    try { await e.decode(); } catch (error) { /* naturalWidth tells */ }
    if (!e.naturalWidth) found.push('image not loaded: ' + e.getAttribute('src'));
  }

  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width + 1)
    found.push(`page is ${document.documentElement.scrollWidth} px wide in ${width}`);
  const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  for (const e of article.querySelectorAll('*')) {
    const box = e.getBoundingClientRect();
    if (!box.width || !box.height || box.right <= width + 1) continue;
    if (getComputedStyle(e).position === 'absolute') continue;
    let up = e, inside = false;
    while ((up = up.parentElement) && up !== document.body)
      if (scrolls(up) && up.getBoundingClientRect().right <= width + 1) inside = true;
    if (!inside) found.push(`overflows to ${Math.round(box.right)} px: ` + show(e));
  }

  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = text => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const paper = e => {
    const stack = [];
    for (let up = e; up; up = up.parentElement) {
      stack.push(rgba(getComputedStyle(up).backgroundColor));
      if (stack.at(-1)[3] === 1) break;
    }
    return stack.reduceRight((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let texts = 0;
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.checkVisibility()) continue;
    if (e.closest('pre, script, style, .headerlink, .copybtn')) continue;
    texts += 1;
    const below = paper(e), ink = rgba(getComputedStyle(e).color);
    for (let up = e; up; up = up.parentElement) ink[3] *= getComputedStyle(up).opacity;
    const [a, b] = [light(over(ink, below)), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < CONTRAST) found.push(`contrast ${contrast.toFixed(2)}: ` + show(e));
  }
  if (!texts) found.push('no text on the page');
  return [...new Set(found)];
}
""".replace("CONTRAST", str(CONTRAST))


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on a free local port; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def framed(fragment: str) -> str:
    """A page with the book's style and themes, and a fragment of one of its pages."""
    css = (ROOT / "book" / "_static" / "custom.css").read_text(encoding="utf-8")
    paint = "html[data-theme=dark] {color: #eee; background: #111; --pst-color-background: #111}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><link rel=icon href='data:,'>"
        f"<meta name=viewport content='width=device-width'><style>{css}{paint}"
        f"a {{color: inherit}}</style>"
        f"<script>document.documentElement.dataset.theme ="
        f" matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'</script>"
        f"<body>{fragment}"
    )


@pytest.fixture(scope="module")
def browser(chromium: str):
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        running = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield running
        running.close()


@pytest.fixture(scope="module")
def html() -> Path:
    """The built site: book/_build/html, or the folder that UMUP_SITE names."""
    folder = Path(os.environ.get("UMUP_SITE", ROOT / "book" / "_build" / "html"))
    if not (folder / "index.html").exists():
        pytest.skip("the book is not built: make book")
    return folder


@pytest.fixture(scope="module")
def site(html: Path) -> Iterator[str]:
    """Address of the built site."""
    with serving(html) as address:
        yield address


@contextlib.contextmanager
def reading(browser, origin: str, width: int = 1280, theme: str = "light"):
    """A page of the given width and theme, with the list of what goes wrong on the wire."""
    size = {"width": width, "height": WIDTHS[width]}
    context = browser.new_context(viewport=size, color_scheme=theme)
    wrong: list[str] = []

    def gate(route) -> None:
        url = route.request.url
        if url.startswith((origin, "data:", "blob:")):
            route.continue_()
        else:
            wrong.append(f"off-site request: {url}")
            route.abort()

    def failed(request) -> None:
        # Aborted is what leaving a page does to its last requests; a missing file is a 404.
        if request.failure != "net::ERR_ABORTED":
            wrong.append(f"failed request: {request.url} {request.failure}")

    context.route("**/*", gate)
    page = context.new_page()
    page.on("console", lambda m: m.type == "error" and wrong.append(f"console: {m.text}"))
    page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    page.on("requestfailed", failed)
    page.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status}: {r.url}"))
    yield page, wrong
    context.close()


def problems(page, wrong: list[str], url: str) -> list[str]:
    """What is broken on one page."""
    wrong.clear()
    page.goto(url, wait_until="load")
    seen = page.evaluate(LOOK)
    return [*wrong, *seen]


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_reads_well(browser, html, site, width, theme):
    skip = {"genindex.html", "py-modindex.html"} | ({"search.html"} if width == 390 else set())
    paths = [p.relative_to(html).as_posix() for p in sorted(html.rglob("*.html"))]
    paths = [p for p in paths if not p.startswith("_static/") and p not in skip]
    # The reference pages are of one kind: the narrow, dark reading stands for all four.
    if (width, theme) != (390, "dark"):
        paths = [p for p in paths if not p.startswith("api/")]
    assert "index.html" in paths and any(p.startswith("studies/") for p in paths)
    with reading(browser, site, width, theme) as (page, wrong):
        found = {path: problems(page, wrong, site + path) for path in paths}
        assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize("query", ["u-μP", "transfer", "u-muP"])
def test_search_finds(browser, site, query):
    with reading(browser, site) as (page, wrong):
        page.goto(f"{site}search.html?q={quote(query)}")
        # Results appear one after another: the page that must be among them may come late.
        page.wait_for_function(
            r"""[...document.querySelectorAll('#search-results ul.search li a')].some(
                a => /\/(index|how-to-read|rules)\.html$/.test(new URL(a.href).pathname))""",
            timeout=15_000,
        )
        assert wrong == []


def test_search_does_not_find_what_is_not_there(browser, site):
    with reading(browser, site) as (page, _):
        page.goto(f"{site}search.html?q=qxzvwk")
        page.wait_for_function(
            "document.querySelector('#search-results').innerText.includes('did not match')",
            timeout=15_000,
        )
        assert page.locator("#search-results ul.search li").count() == 0


def test_studies_show_figures_and_the_front_page_counts_claims(browser, html, site):
    with reading(browser, site) as (page, _):
        for path in sorted((html / "studies").glob("*.html")):
            page.goto(f"{site}studies/{path.name}")
            assert page.locator(".bd-article figure img").count() > 0, path.name
        page.goto(site)
        counts = page.locator("table.counts a[href^='claims.html?verdict=']")
        claims = json.loads((html / "claims.json").read_text("utf-8"))
        assert sum(map(int, counts.all_inner_texts())) == len(claims) > 0
        assert page.locator("figure#fig-picture img").count() == 1


READERS = {
    "which scheme and η for a 7B": (
        ["I have a model and a budget", "A model of seven billion parameters on 64 H100s"],
        ["u-μP", "η = ", "big.yaml"],
    ),
    "what fails": (["all of them, failures first"], ["Fails"]),
    "is FP8 safe": (
        ["I have a model and a budget", "What changes, and what is carried over"],
        ["FP8, cast directly"],
    ),
    "what does depth do": (
        ["I have a model and a budget", "What changes, and what is carried over"],
        ["Depth: η"],
    ),
    "how do I check my code": (["I want to check my code"], ["coord_check"]),
}
"""A reader's question → what to click from the front page on, and what must then be on the page."""


@pytest.mark.parametrize("question", READERS)
def test_a_reader_finds_an_answer_within_three_clicks(browser, site, question):
    links, answers = READERS[question]
    assert len(links) <= 3
    with reading(browser, site) as (page, wrong):
        page.set_default_timeout(10_000)
        page.goto(site)
        for link in links:
            card = page.locator(".sd-card", has_text=link)  # its link is stretched over all of it
            (card if card.count() else page.get_by_role("link", name=link)).first.click()
            page.wait_for_load_state()
        text = page.locator("article").first.inner_text()
        assert [answer for answer in answers if answer not in text] == []
        assert wrong == []


VISIBLE = """() => [...document.querySelectorAll('li.claim')].filter(
    e => e.checkVisibility()).map(e => e.id)"""


@pytest.fixture(scope="module")
def claims(html: Path) -> dict[str, dict[str, Any]]:
    """The claims of the site by their anchors."""
    found = json.loads((html / "claims.json").read_text("utf-8"))
    return {one["anchor"].split("#")[1]: one for one in found}


def ids(claims: dict[str, dict[str, Any]], **wanted: str) -> list[str]:
    """The anchors of the claims that have the given values, in the page's order."""
    return [i for i, one in claims.items() if all(one[k] == v for k, v in wanted.items())]


def test_all_claims_are_listed_without_a_script(browser, html, site, claims):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}claims.html")
    shown = page.locator("li.claim:visible")
    assert shown.count() == len(claims)
    assert shown.evaluate_all("found => found.map(e => e.id)") == [*claims]
    verdicts = shown.locator(".sd-badge").all_inner_texts()
    assert verdicts == [one["verdict"] for one in claims.values()]
    assert verdicts[: verdicts.count("fails")].count("fails") == verdicts.count("fails") > 0
    assert not page.locator("#filter").is_visible()
    foldout = shown.first.locator("details")
    foldout.locator("summary").click()
    assert "Bound" in foldout.inner_text() or "history" in foldout.inner_text()
    for one in claims.values():
        assert one["records"] is None or (html / one["records"]).stat().st_size > 0
    context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_claims_are_filtered_by_chips_and_text_and_the_address_keeps_it(
    browser, site, claims, width
):
    with reading(browser, site, width) as (page, wrong):
        page.goto(f"{site}claims.html")
        said = page.locator("#filter output")
        assert said.inner_text() == f"all {len(claims)} claims"
        assert said.get_attribute("aria-live") == "polite"
        chip = page.locator("#filter button[data-is=fails]")
        chip.focus()
        page.keyboard.press("Space")  # as a reader without a mouse does
        assert chip.get_attribute("aria-pressed") == "true"
        failed = ids(claims, verdict="fails")
        assert page.evaluate(VISIBLE) == failed
        assert said.inner_text() == f"{len(failed)} of {len(claims)} claims"
        assert not page.locator("section#holds").is_visible()
        page.locator("#filter button[data-is=u-mup]").click()
        both = ids(claims, verdict="fails", source_group="u-μP paper")
        assert page.evaluate(VISIBLE) == both and both
        assert page.url.endswith("?verdict=fails&source=u-mup")
        page.locator("#filter input").fill("no such words")
        assert page.evaluate(VISIBLE) == []
        word = max(claims[both[0]]["statement"].split(), key=len)
        page.locator("#filter input").fill(word.upper())
        found = page.evaluate(VISIBLE)
        assert both[0] in found and set(found) <= set(both)
        page.reload()
        assert page.evaluate(VISIBLE) == found
        page.locator("#filter button[type=reset]").click()
        assert page.evaluate(VISIBLE) == [*claims] and page.url.endswith("claims.html")
        assert wrong == []


def test_a_link_to_a_claim_shows_it_whatever_was_chosen(browser, site, claims):
    study = next(iter(claims.values()))["study"]
    mine = ids(claims, study=study)
    with reading(browser, site) as (page, wrong):
        page.goto(f"{site}claims.html?study={study}")
        assert page.evaluate(VISIBLE) == mine
        assert page.locator(f"#filter button[data-is={study}]").is_visible()
        other = next(i for i in reversed(claims) if i not in mine)
        page.evaluate("where => { location.hash = where }", other)
        page.wait_for_function("id => document.getElementById(id).checkVisibility()", arg=other)
        assert page.locator(f"[id='{other}']").evaluate(
            "e => e.getBoundingClientRect().top >= 0 && e.getBoundingClientRect().top < innerHeight"
        )
        assert wrong == []


def barriers(page) -> list[str]:
    """What axe-core finds serious or critical on the page for readers with disabilities."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{one['id']}: {len(one['nodes'])} × {one['nodes'][0]['html'][:90]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


KINDS = (
    "index.html",
    "what-to-tune.html",
    "theory.html",
    "claims.html",
    "studies/lr_transfer.html",
    "planning.html",
    "references.html",
)
"""A page of every kind."""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1280, "dark")])
def test_no_kind_of_page_has_a_barrier(browser, site, width, theme):
    found = {}
    with reading(browser, site, width, theme) as (page, _):
        for path in KINDS:
            page.goto(site + path, wait_until="load")
            page.wait_for_timeout(500)  # the theme makes what scrolls focusable after 0.3 s
            found[path] = barriers(page)
    assert {path: what for path, what in found.items() if what} == {}


BARRIERS = {
    "contrast": ("<p style='color: #999'>grey on white</p>", "color-contrast: 1 × <p style"),
    "picture": ("<img src='data:,'>", "image-alt: 1 × <img"),
    "button": ("<details><summary><i></i></summary>x</details>", "summary-name: 1 × <summary>"),
    "list": ("<dl><dd>x</dd></dl>", "definition-list: 1 × <dl>"),
    "role": ("<div role='list'><a href='.'>x</a></div>", "aria-required-children: 1 × <div"),
    "scrolling": (
        f"<figure style='overflow: auto'><p>{'x' * 4000}</p></figure>",
        "scrollable-region-focusable: 1 × <figure",
    ),
}


@pytest.mark.parametrize("name", BARRIERS)
def test_each_barrier_is_seen(browser, tmp_path, name):
    body, said = BARRIERS[name]
    text = f"<!doctype html><html lang=en><title>x</title><meta charset=utf-8><body>{body}"
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    with serving(tmp_path) as origin, reading(browser, origin) as (page, _):
        page.goto(f"{origin}page.html")
        assert [line[: len(said)] for line in barriers(page)] == [said]


def test_every_study_page_has_the_template(browser, html, site, claims):
    with reading(browser, site) as (page, wrong):
        for path in sorted((html / "studies").glob("*.html")):
            page.goto(f"{site}studies/{path.name}")
            parts = ["h1", "dl.facts", "div.takeaway", ".tag_answer", "figure", "h2", "ul.claims"]
            tops = [page.locator(f"article {part}:visible").first.bounding_box() for part in parts]
            heights = [box["y"] if box else -1 for box in tops]
            assert heights == sorted(heights) and heights[0] > 0, path.name
            shown = page.locator("article ul.claims > li.claim")
            mine = [one["id"] for one in claims.values() if one["study"] == path.stem]
            assert shown.evaluate_all("found => found.map(e => e.id)") == [
                f"claim-{name}" for name in mine
            ]
            assert shown.locator("svg.strip").count() == len(mine) > 0
            for link in page.locator("article a[download]").evaluate_all(
                "found => found.map(e => e.href)"
            ):
                assert (html / link.removeprefix(site)).stat().st_size > 0
        assert wrong == []


def test_one_switch_shows_the_code_of_a_page(browser, site):
    with reading(browser, site) as (page, wrong):
        page.goto(f"{site}studies/lr_transfer.html")
        code = page.locator("article .cell_input")
        assert code.count() > 5 and not any(one.is_visible() for one in code.all())
        page.get_by_label("Show code").check()
        assert all(one.is_visible() for one in code.all())
        page.get_by_label("Show code").uncheck()
        assert not any(one.is_visible() for one in code.all())
        assert wrong == []


def test_a_study_s_badges_lead_to_the_claims_that_they_count(browser, site):
    with reading(browser, site) as (page, wrong):
        address = f"{site}studies/lr_transfer.html"
        page.goto(address)
        badges = page.locator("p.facts a.sd-badge")
        counted = [
            (text.split()[-1], link)
            for text, link in zip(
                badges.all_inner_texts(),
                badges.evaluate_all("found => found.map(e => e.href)"),
                strict=True,
            )
        ]
        assert len(counted) > 1
        for number, link in counted:
            page.goto(link)
            found = page.evaluate(VISIBLE)
            assert len(found) == int(number)
            assert all(name.startswith("lr_transfer-") for name in found)
        page.locator("li.claim:visible").first.get_by_role("link", name="study").click()
        assert page.url.startswith(f"{address}#claim-")
        page.wait_for_function("() => document.querySelector(':target')?.checkVisibility()")
        assert wrong == []


BROKEN = {
    "console": ("<p>x</p><script>console.error('boom')</script>", "console: boom"),
    "script": ("<p>x</p><script>nothing.there()</script>", "script error: nothing"),
    "missing image": ("<p>x</p><img src='none.png'>", "image not loaded: none.png"),
    "404": ("<p>x</p><script src='none.js'></script>", "404: "),
    "off-site": (
        "<p>x</p><script src='https://example.org/a.js'></script>",
        "off-site request: https://example.org/a.js",
    ),
    "overflow": ("<p style='width: 3000px'>x</p>", "page is 3"),
    "hidden overflow": (
        "<style>body {overflow-x: hidden}</style><p style='width: 3000px'>x</p>",
        "overflows to 30",
    ),
    "contrast": ("<p style='color: #999'>grey on white</p>", "contrast 2.85"),
    "opacity": ("<div style='opacity: 0.4'><p style='color: #000'>x</p></div>", "contrast 2.8"),
    "math error": ("<p>x</p><math><merror><mtext>bad</mtext></merror></math>", "math error: bad"),
    "math left": ("<p>x</p><span class='math'>\\(x\\)</span>", "math not rendered: <span"),
    "empty": ("", "no text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_look_sees_what_is_broken(browser, tmp_path, name):
    body, said = BROKEN[name]
    text = f"<!doctype html><link rel=icon href='data:,'><meta charset=utf-8><body>{body}"
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    with serving(tmp_path) as origin, reading(browser, origin) as (page, wrong):
        found = problems(page, wrong, f"{origin}page.html")
    assert any(line.startswith(said) for line in found), found


def test_the_look_accepts_a_sound_page(browser, tmp_path):
    wide = "<div style='overflow-x: auto'><p style='width: 3000px'>x</p></div>"
    text = f"<!doctype html><link rel=icon href='data:,'><meta charset=utf-8><body>{wide}"
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    with serving(tmp_path) as origin, reading(browser, origin, 390) as (page, wrong):
        assert problems(page, wrong, f"{origin}page.html") == []
