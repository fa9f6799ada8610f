"""What is mended in a built page for readers who use a keyboard or a screen reader."""

from __future__ import annotations

from pathlib import Path

from umup.book import access

FOLDOUT = (
    '<li><a class="reference internal" href="api.html">Library reference</a><details><summary>'
    '<span class="toctree-toggle" role="presentation"><i></i></span></summary></details></li>'
)
SIGNATURE = """<dl class="py function">
<dt id="f">f<span class="sig-paren">(</span>

<dl>
<dd><em>a: int</em>,</dd>
<dd><em>b</em>,</dd>
</dl>

<span class="sig-paren">)</span></dt>
<dd><p>Text.</p>
<dl class="field-list">
<dt>Raises</dt>
<dd><p>E</p></dd>
</dl>
</dd></dl>"""
REFERENCES = """<div role="list" class="citation-list">
<div class="citation" id="id1" role="doc-biblioentry">x</div></div>"""


def test_a_foldout_of_the_sidebar_is_named_after_its_page() -> None:
    assert '<summary aria-label="Pages of Library reference"><span' in access.mend_page(FOLDOUT)


def test_another_foldout_keeps_its_own_text() -> None:
    own = "<a href='x'>x</a><details><summary>All runs</summary></details>"
    assert access.mend_page(own) == own


def test_the_parameters_of_a_signature_are_a_list_and_other_definitions_stay() -> None:
    mended = access.mend_page(SIGNATURE)
    assert (
        '<ul class="parameters">\n<li><em>a: int</em>,</li>\n<li><em>b</em>,</li>\n</ul>' in mended
    )
    assert '<dl class="field-list">\n<dt>Raises</dt>\n<dd><p>E</p></dd>\n</dl>' in mended


def test_references_have_no_roles_that_are_not_allowed() -> None:
    assert "role=" not in access.mend_page(REFERENCES)
    assert access.mend_page('<ul role="list" class="x">') == '<ul role="list" class="x">'


def test_mending_twice_changes_nothing_more(tmp_path: Path) -> None:
    page = tmp_path / "studies" / "page.html"
    page.parent.mkdir()
    page.write_text(FOLDOUT + SIGNATURE + REFERENCES, encoding="utf-8")
    access.mend(tmp_path)
    once = page.read_text("utf-8")
    access.mend(tmp_path)
    assert page.read_text("utf-8") == once != FOLDOUT + SIGNATURE + REFERENCES
