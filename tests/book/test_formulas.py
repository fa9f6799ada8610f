"""Formulas are MathML when the page is written; one that cannot be written fails the book."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from umup.book import site
from umup.errors import BookError

ROOT = Path(__file__).resolve().parents[2]
FONT = "196c59866c3d2808a49b7f71d83562bb675e7de61ffc4aa034957a03c2aa4907"

pytest.importorskip("math_core", reason="math-core is not installed: extra `book`")


@pytest.fixture(scope="module")
def formulas() -> ModuleType:
    """The extension of Sphinx that writes formulas."""
    path = ROOT / "book" / "_ext" / "formulas.py"
    spec = importlib.util.spec_from_file_location("formulas", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(formula: str) -> str:
    """What a reader sees of a formula, without spaces: its text without tags and annotation."""
    text = re.sub(r"<annotation.*?</annotation>|<[^>]*>", "", formula, flags=re.DOTALL)
    return "".join(text.split())


@pytest.mark.parametrize(
    ("tex", "said"),
    [
        (r"\tau_l = \sqrt{\frac{a}{b}}", "τl=ab"),
        (r"\begin{split} a &= b \\ &= c \end{split}", "a=b=c"),
        (r"\begin{aligned} a &= b, \\[1ex] c &= d \end{aligned}", "a=b,c=d"),
        (r"\begin{align} a &= b \\ c &= d \end{align}", "a=bc=d"),  # it numbers no line itself
        (r"a \\ b", "ab"),
        ("a = b\n\nc = d", "a=bc=d"),
        (r"x < y \text{ and } \hat\alpha", "x&lt;yandαˆ"),
    ],
)
def test_a_display_is_drawn_whole_and_keeps_its_tex(formulas, tex, said):
    found = formulas.mathml(tex, display=True)
    assert found.startswith('<math display="block">')
    assert drawn(found).replace("\u00a0", "") == said
    assert '<annotation encoding="application/x-tex">' in found
    lines = 2 if r"\\" in tex or "\n\n" in tex else 0
    assert found.count("<mtr>") == lines


def test_a_formula_in_a_line_is_not_a_block(formulas):
    found = formulas.mathml(r"\frac12", display=False)
    assert found.startswith("<math>") and "<mfrac>" in found


@pytest.mark.parametrize(
    "tex", [r"\nosuch{x}", r"\frac{1}{2", r"a_", r"\begin{nowhere}a\end{nowhere}"]
)
def test_what_cannot_be_converted_is_an_error(formulas, tex):
    with pytest.raises(formulas.LatexError):
        formulas.mathml(tex, display=True)


def test_the_font_is_the_one_that_its_licence_describes():
    static = ROOT / "book" / "_static"
    assert hashlib.sha256((static / "math.woff2").read_bytes()).hexdigest() == FONT
    assert "GUST Font License" in (static / "math.LICENSE").read_text(encoding="utf-8")


@pytest.fixture
def book(tmp_path) -> Path:
    """The sources of a book of one page with the real configuration; the page is to be written."""
    pytest.importorskip("jupyter_book", reason="jupyter-book is not installed: extra `book`")
    staging = tmp_path / "book" / "_build" / "src"
    staging.mkdir(parents=True)
    for name in ("_config.yml", "references.bib"):
        shutil.copy(ROOT / "book" / name, staging)
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, staging / name)
    (staging / "_toc.yml").write_text("format: jb-book\nroot: index\n", encoding="utf-8")
    return staging


PAGE = r"""# A page

In a line $a < b$, and {eq}`one`.

$$ e = m c^2 $$ (one)

$$
\begin{aligned} a &= b \\ c &= d \end{aligned}
$$

\begin{align} f &= g \\ h &= k \end{align}
"""


@pytest.mark.slow
def test_a_page_has_its_formulas_as_mathml_with_numbers_and_anchors(book):
    (book / "index.md").write_text(PAGE, encoding="utf-8")
    site.make_html(book.parents[2], book, book.parent)
    html = book.parent / "html"
    text = (html / "index.html").read_text(encoding="utf-8")
    assert len(re.findall("<math>", text)) == 1
    assert len(re.findall('<math display="block">', text)) == 3
    assert 'id="equation-one"><span class="eqno">(1)' in text and 'href="#equation-one"' in text
    assert r"\(" not in text and r"\[" not in text and "mathjax" not in text.lower()
    assert not (html / "_static" / "mathjax").exists()
    assert site.check(html) == []


@pytest.mark.slow
def test_an_unknown_command_fails_the_build_and_is_named(book):
    (book / "index.md").write_text("# A page\n\nA formula $x + \\nosuch y$.\n", encoding="utf-8")
    with pytest.raises(BookError, match=r"index\.md:3: WARNING: formula x \+ .*nosuch y: "):
        site.make_html(book.parents[2], book, book.parent)
