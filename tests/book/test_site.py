"""The builder: what it refuses, what it runs again, and what the site check sees."""

from __future__ import annotations

import json
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from umup import cli, machine
from umup.book import site
from umup.errors import BookError, StudyError

SOUND = "<!doctype html><body><h1 id='top'>x</h1>"


def pages_of(folder: Path, **pages: str) -> list[str]:
    (folder / "index.html").write_text(SOUND, encoding="utf-8")
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(SOUND + text, encoding="utf-8")
    return site.check(folder)


def test_check_accepts_local_files_anchors_and_links_to_other_sites(tmp_path):
    (tmp_path / "a b.png").write_bytes(b"x")
    text = (
        "<img src='a%20b.png?v=1'><img src='data:image/png;base64,xx'><a href='index.html#top'>"
        "<a href='#top'><a href='index.html#width=512&amp;eta=1'><a href='https://example.org/'>"
        "<a href='mailto:a@example.org'>"
        "<link rel='canonical' href='https://example.org/'>"
    )
    assert pages_of(tmp_path, page=text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<img src='none.png'>", "missing file: none.png"),
        ("<img src='/none.png'>", "missing file: /none.png"),
        ("<img srcset='none.png 2x'>", "missing file: none.png"),
        ("<script src='https://cdn.example/x.js'></script>", "another site: https://cdn"),
        ("<script src='//cdn.example/x.js'></script>", "another site: //cdn"),
        ("<link rel='stylesheet' href='https://cdn.example/x.css'>", "another site"),
        ("<link rel='shortcut icon' href='none.ico'>", "missing file: none.ico"),
        ("<style>@font-face {src: url('https://cdn.example/f.woff')}</style>", "another site"),
        ("<style>@import 'none.css';</style>", "missing file: none.css"),
        ("<p style='background: url(none.png)'>", "missing file: none.png"),
        ("<script type='module'>import x from 'https://cdn.example/x.js'</script>", "another site"),
        ("<script>fetch('https://api.example/')</script>", "another site"),
        ("<a href='none.html'>", "broken link: none.html"),
        ("<a href='index.html#nowhere'>", "no such place: index.html#nowhere"),
    ],
)
def test_check_names_each_fault(tmp_path, text, problem):
    (found,) = pages_of(tmp_path, page=text)
    assert found.startswith("page.html: ") and problem in found


def test_check_reads_style_sheets(tmp_path):
    sheet = "/* url(https://old.example) */ a {src: url(none.woff)} b {src: url(data:x)}"
    (tmp_path / "a.css").write_text(sheet, encoding="utf-8")
    assert pages_of(tmp_path) == ["a.css: missing file: none.woff"]


def test_check_refuses_a_folder_without_a_site(tmp_path):
    with pytest.raises(BookError, match="make book"):
        site.check(tmp_path)


def test_steps_tell_time_left_and_remember(tmp_path):
    said: list[str] = []
    names = [("smoke", "a"), ("check", "b")]
    steps = site.Steps(names, tmp_path / "t.json", said.append)
    with steps.step():
        pass
    assert said[0] == "[1/2] a (about 17 s left)"  # 15 s + 2 s by default
    with steps.step():
        pass
    assert said[2] == "[2/2] b (about 2 s left)"
    again = site.Steps(names, tmp_path / "t.json", said.append)
    assert again.left() == "0 s"  # both took no time the first time
    memory = json.loads((tmp_path / "t.json").read_text("utf-8"))
    assert set(memory) == {"a", "b"} and max(memory.values()) < 1


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with one study, `toy`."""
    toy = tmp_path / "experiments" / "toy"
    (toy / "records" / "cpu").mkdir(parents=True)
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "profile = 'cpu'"}
    (toy / "study.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    (toy / "smoke.yaml").write_text("fresh: true\n", encoding="utf-8")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "code.py").write_text("n = 1\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def ran(monkeypatch) -> list[dict]:
    """The parameters of every notebook that was run, which is only pretended."""
    found: list[dict] = []

    def execute(notebook: Path, output: Path, given: dict, cwd: Path, env: dict) -> None:
        found.append(given)
        assert env["XLA_FLAGS"] == machine.in_haste(), "it compiles in haste"
        output.write_text(notebook.read_text(encoding="utf-8"), encoding="utf-8")

    monkeypatch.setattr(site, "execute", execute)
    return found


def test_a_smoke_run_is_kept_until_something_that_can_change_it_does(checkout, ran, monkeypatch):
    toy = checkout / "experiments" / "toy"
    first = site.smoke(toy, checkout)
    assert ran == [{"profile": "smoke", "mode": "run", "fresh": True}]
    last = json.loads(first.read_text("utf-8"))["cells"][-1]
    assert last["source"] == site.MADE, "it ends by saying what was made"
    assert site.smoke(toy, checkout) == first and len(ran) == 1
    (toy / "records" / "cpu" / "a.parquet").write_bytes(b"x")  # which a smoke run does not read
    assert site.smoke(toy, checkout) == first and len(ran) == 1
    changes = [
        lambda: (checkout / "lib" / "code.py").write_text("n = 2\n", encoding="utf-8"),
        lambda: (toy / "smoke.yaml").write_text("fresh: true\nn: 2\n", encoding="utf-8"),
        lambda: monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --another"),
        lambda: monkeypatch.setattr(site.machine, "cores", lambda: 64),
    ]
    for number, change in enumerate(changes, 2):
        change()
        site.smoke(toy, checkout)
        assert len(ran) == number
    assert len(list((checkout / ".cache" / "smoke").iterdir())) == 1, "older ones are removed"


def test_a_smoke_run_that_fails_is_not_kept(checkout, monkeypatch):
    def fail(notebook: Path, output: Path, given: dict, cwd: Path, env: dict) -> None:
        output.write_text("half", encoding="utf-8")
        raise StudyError("cell", "x", "y")

    monkeypatch.setattr(site, "execute", fail)
    for _ in range(2):
        with pytest.raises(StudyError):
            site.smoke(checkout / "experiments" / "toy", checkout)
    assert list((checkout / ".cache" / "smoke").iterdir()) == []


def test_of_notebooks_run_two_at_a_time_an_error_drops_those_not_begun():
    begun, go = [], threading.Event()

    def job(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise StudyError("cell", "x", "y")
        go.wait(60)

    with (
        pytest.raises(StudyError),
        site._at_once([partial(job, number) for number in range(9)]) as runs,
    ):
        try:
            runs[0].result()
        finally:
            cancelled = [run for run in runs if run.cancel()]
            go.set()
    assert len(cancelled) >= 6 and len(begun) <= 3


def test_build_needs_a_study(tmp_path):
    with pytest.raises(BookError, match=r"no study\.ipynb"):
        site.build(tmp_path)


def test_find_root_and_the_command(capsys, tmp_path):
    assert (site.find_root() / "book" / "_config.yml").exists()
    assert cli.main(["book", "check", "--root", str(tmp_path)]) == 1
    assert "make book" in capsys.readouterr().err
