"""Jupyter Book as it is configured: warnings fail the build, every time; odd docstrings do not."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from umup.book import site
from umup.errors import BookError

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("jupyter_book", reason="jupyter-book is not installed: extra `book`")


@pytest.fixture
def book(tmp_path) -> Path:
    """A book of one page with the real configuration, staged in BUILD/src."""
    staging = tmp_path / "book" / "_build" / "src"
    staging.mkdir(parents=True)
    for name in ("_config.yml", "references.bib"):
        shutil.copy(ROOT / "book" / name, staging)
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, staging / name)
    (staging / "_toc.yml").write_text("format: jb-book\nroot: index\n", encoding="utf-8")
    return staging


@pytest.mark.slow
def test_a_warning_fails_the_build_again_and_again(book):
    (book / "index.md").write_text("# A page\n\n{numref}`nowhere`\n", encoding="utf-8")
    for _ in range(2):  # a cached page must not hide its warning the second time
        with pytest.raises(BookError, match=r"WARNING: .*nowhere"):
            site.make_html(book.parents[2], book, book.parent)


@pytest.mark.slow
def test_a_sound_page_with_mathematics_and_an_odd_docstring_builds_offline(book):
    page = "# A page\n\n$x^2$ {cite}`blake2024umup`\n\n```{eval-rst}\n.. automodule:: odd\n```\n"
    (book / "index.md").write_text(page + "\n```{bibliography}\n```\n", encoding="utf-8")
    odd = """'Odd.'
def f():
    'An *asterisk that never ends.'
N = 1
'It: a colon.'
"""
    (book / "_ext" / "odd.py").write_text(odd, encoding="utf-8")  # _ext is on the path
    plain = site.make_html(book.parents[2], book, book.parent)
    assert len(plain) == 1 and plain[0].startswith("odd.f: ")
    html = book.parent / "html"
    text = (html / "index.html").read_text(encoding="utf-8")
    words = re.sub("<[^>]*>", "", text)
    assert "An *asterisk that never ends." in words and "It: a colon." in words
    assert "unpkg" not in text and "thebe.js" not in text
    assert site.check(html) == []
    assert not (html / "plain_docstrings.txt").exists()


def test_only_broken_docstrings_are_shown_as_plain_text():
    path = ROOT / "book" / "_ext" / "plain_docstrings.py"
    spec = importlib.util.spec_from_file_location("plain_docstrings", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sound = ["One line.", "``x_BTD`` and *so* on::\n\n    code", "- a\n- b"]
    broken = ["An *asterisk.", "A `backtick.", "Title\n-----\n\ntext", "- a\nb"]
    assert [text for text in sound if module.problem(text)] == []
    assert [text for text in broken if not module.problem(text)] == []
