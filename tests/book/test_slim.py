"""What is taken out of the built site, and what must stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from umup.book import slim
from umup.errors import BookError

USED = {"bd-article", "table", "main", "open"}


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (".table{a:b}", True),
        (".badge{a:b}", False),
        (".table .badge{a:b}", False),
        (".badge,.table{a:b}", ".table{a:b}"),
        (".table:not(.badge){a:b}", True),  # what is absent may well be asked to be absent
        (".table:is(.badge,.open){a:b}", True),
        ("#main>p{a:b}", True),
        ("#other>p{a:b}", False),
        ("p::before,a[href^='.x']{a:b}", True),
        ("@media print{.badge{a:b}.table{c:d}}", "@media print{.table{c:d}}"),
        ("@media print{.badge{a:b}}", False),
        ("@supports (a:b){@media print{.table{c:d}.badge{e:f}}}", None),
        ("@font-face{font-family:Icons;src:url(vendor/fontawesome/icons.woff2)}", False),
        ("@font-face{font-family:Mathematics;src:url(math.woff2)}", True),
        ("@keyframes turn{from{a:b}}", True),
        (":root{--x:url('data:a,{b}')}", True),
        ('@charset "UTF-8";', True),
        ("@import 'basic.css';", True),
    ],
)
def test_a_rule_stays_if_some_page_can_match_it(rule: str, kept: object) -> None:
    found = slim.purge(rule, USED)
    if kept is None:
        assert ".table{c:d}" in found and "badge" not in found
    else:
        want = {True: rule, False: ""}.get(kept, kept) if isinstance(kept, bool) else kept
        assert found.replace('"', "'") == str(want).replace('"', "'")


PAGE = """<html><head><script src="_static/scripts/fontawesome.js?x=1"></script>
<script src="searchindex.js" defer></script>
<script src="_static/own.js"></script></head><body><img src="logo.svg"/>
<i class="fa-solid fa-sun fa-lg"></i><article class="bd-article">{body}</article></body></html>"""


def test_a_page_keeps_the_scripts_that_it_needs() -> None:
    plain = slim.slim_page(PAGE.format(body='<img src="a.png"/><img loading="eager" src="b.png"/>'))
    assert "fontawesome" not in plain and "searchindex" not in plain
    assert "own.js" in plain
    assert '<img src="logo.svg"/>' in plain
    assert '<img loading="lazy" decoding="async" src="a.png"/>' in plain
    assert '<img loading="eager" src="b.png"/>' in plain
    search = slim.slim_page(PAGE.format(body='<div id="search-results"></div>'))
    assert "searchindex.js" in search and "fontawesome" not in search


def site(folder: Path, body: str = "") -> Path:
    static = folder / "_static"
    (static / "scripts").mkdir(parents=True)
    (static / "vendor" / "fontawesome").mkdir(parents=True)
    (static / "vendor" / "fontawesome" / "icons.ttf").write_text("x")
    (folder / "index.html").write_text(PAGE.format(body=body), encoding="utf-8")
    (static / "theme.css").write_text(".bd-article{a:b}.added{c:d}.never{e:f}")
    (static / "custom.css").write_text(".bd-article{a:b}")
    (static / "own.js").write_text("node.classList.add('added')")
    for name in ("fontawesome.js", "fontawesome.js.map", "own.js.map"):
        (static / "scripts" / name).write_text("x")
    return folder


def test_a_site_loses_what_no_page_uses(tmp_path: Path) -> None:
    sizes = slim.slim(site(tmp_path))
    static = tmp_path / "_static"
    assert (static / "theme.css").read_text() == ".bd-article{a:b}.added{c:d}"
    assert sizes["_static/theme.css"] == (38, 27)
    assert not list(tmp_path.rglob("*.map")) and not list(tmp_path.rglob("fontawesome*"))
    ours = (static / "custom.css").read_text()
    assert ours.startswith(".bd-article{a:b}") and "currentColor" in ours
    assert all(f".fa-{name}{{" in ours for name in slim.ICONS)
    assert "<" not in ours  # quoted for a URL


def test_an_icon_that_is_not_drawn_is_an_error(tmp_path: Path) -> None:
    folder = site(tmp_path, '<i class="fa-solid fa-rocket"></i>')
    with pytest.raises(BookError, match=r"icon fa-rocket'; allowed: one of"):
        slim.slim(folder)


def test_no_site_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="make book"):
        slim.slim(tmp_path)
