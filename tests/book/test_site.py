"""The builder: what it refuses, what it strips, and what the site check sees."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from umup import site
from umup.errors import BookError, StudyError

CODE = nbformat.v4.new_code_cell
SOUND = "<!doctype html><body><h1 id='top'>x</h1>"


def notebook(folder: Path, *cells, tagged: bool = True) -> Path:
    first = CODE(
        "n: int = 1\nmode: str = 'run'", metadata={"tags": ["parameters"]} if tagged else {}
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    book = nbformat.v4.new_notebook(cells=[first, *cells], metadata=kernel)
    path = folder / "study.ipynb"
    nbformat.write(book, path)
    return path


def pages_of(folder: Path, **pages: str) -> list[str]:
    (folder / "index.html").write_text(SOUND, encoding="utf-8")
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(SOUND + text, encoding="utf-8")
    return site.check(folder)


def test_check_accepts_local_files_anchors_and_links_to_other_sites(tmp_path):
    (tmp_path / "a b.png").write_bytes(b"x")
    text = (
        "<img src='a%20b.png?v=1'><img src='data:image/png;base64,xx'><a href='index.html#top'>"
        "<a href='#top'><a href='https://example.org/'><a href='mailto:a@example.org'>"
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


def test_execute_runs_with_the_given_parameters(tmp_path):
    path = notebook(tmp_path, CODE("print(n + 41, mode)"))
    done = site.execute(path, tmp_path / "out" / "x.ipynb", {"n": 2, "mode": "load"}, tmp_path)
    assert done["cells"][-1]["outputs"][0]["text"] == ["43 load\n"]


def test_execute_refuses_an_unknown_parameter_before_it_runs(tmp_path):
    path = notebook(tmp_path, CODE("open('ran', 'w')"))
    with pytest.raises(StudyError, match=r"widths.*n, mode"):
        site.execute(path, tmp_path / "x.ipynb", {"widths": 2}, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_execute_refuses_a_notebook_without_the_tag(tmp_path):
    path = notebook(tmp_path, tagged=False)
    with pytest.raises(StudyError, match="tagged `parameters`"):
        site.execute(path, tmp_path / "x.ipynb", {}, tmp_path)


def test_a_failing_cell_stops_the_build_and_is_named(tmp_path):
    path = notebook(tmp_path, CODE("1 / 0"))
    with pytest.raises(StudyError, match="ZeroDivisionError: division by zero"):
        site.execute(path, tmp_path / "x.ipynb", {}, tmp_path)
    # What papermill left behind is refused as well, whatever it is called.
    left = json.loads((tmp_path / "x.ipynb").read_text("utf-8"))
    with pytest.raises(StudyError, match="exception"):
        site.verify(left, tmp_path / "x.ipynb")


@pytest.mark.parametrize(
    ("whole", "cell", "outputs"),
    [
        ({"exception": True}, {}, []),
        ({}, {"status": "pending"}, []),
        ({}, {"exception": True, "status": "failed"}, []),
        ({}, {}, [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]),
    ],
)
def test_verify_refuses_what_did_not_finish(whole, cell, outputs):
    book = {
        "metadata": {"papermill": whole},
        "cells": [{"cell_type": "code", "metadata": {"papermill": cell}, "outputs": outputs}],
    }
    with pytest.raises(StudyError, match="to its end"):
        site.verify(book, Path("x.ipynb"))


def test_verify_refuses_a_figure_without_an_image():
    cell = {"metadata": {"mystnb": {"figure": {"name": "fig-a"}}}}
    text = {"output_type": "display_data", "data": {"text/plain": "<Figure>"}}
    image = {"output_type": "display_data", "data": {"image/png": "xx"}}
    with pytest.raises(StudyError, match="no image for figure fig-a"):
        site.verify({"metadata": {}, "cells": [cell | {"outputs": [text]}]}, Path("x.ipynb"))
    sound = {"metadata": {}, "cells": [cell | {"outputs": [text, image]}]}
    assert site.verify(sound, Path("x.ipynb")) is sound


def test_strip_hides_injected_parameters_and_drops_run_metadata():
    cells = [
        {"metadata": {"tags": ["parameters"], "papermill": {"status": "completed"}}},
        {"metadata": {"tags": ["injected-parameters"], "execution": {"started": "now"}}},
    ]
    done = site.strip({"metadata": {"papermill": {}, "kernelspec": {}}, "cells": cells})
    assert done["metadata"] == {"kernelspec": {}}
    assert done["cells"][0]["metadata"] == {"tags": ["parameters"]}
    assert done["cells"][1]["metadata"] == {"tags": ["injected-parameters", "remove-cell"]}
    assert site.strip(done)["cells"][1]["metadata"]["tags"].count("remove-cell") == 1


def test_best_profile_prefers_h100_then_cpu_and_ignores_empty_folders(tmp_path):
    assert site.best_profile(tmp_path) == "smoke"
    for profile, best in (("cpu", "cpu"), ("h100", "h100")):
        folder = tmp_path / "records" / profile
        folder.mkdir(parents=True)
        before = site.best_profile(tmp_path)
        (folder / "a.parquet").write_bytes(b"")
        assert before != best and site.best_profile(tmp_path) == best


def test_steps_tell_time_left_and_remember(tmp_path):
    said: list[str] = []
    names = [("smoke", "a"), ("check", "b")]
    steps = site.Steps(names, tmp_path / "t.json", said.append)
    with steps.step():
        pass
    assert said[0] == "[1/2] a (about 2 min left)"  # 90 s + 2 s by default
    with steps.step():
        pass
    assert said[2] == "[2/2] b (about 2 s left)"
    again = site.Steps(names, tmp_path / "t.json", said.append)
    assert again.left() == "0 s"  # both took no time the first time
    memory = json.loads((tmp_path / "t.json").read_text("utf-8"))
    assert set(memory) == {"a", "b"} and max(memory.values()) < 1


def test_build_needs_a_study(tmp_path):
    with pytest.raises(BookError, match=r"no study\.ipynb"):
        site.build(tmp_path)


def test_find_root_and_the_command(capsys, tmp_path):
    assert (site.find_root() / "book" / "_config.yml").exists()
    assert site.main(["check", "--root", str(tmp_path)]) == 1
    assert "make book" in capsys.readouterr().err
