"""Notebooks: their parameters, their execution in our own kernel, and the pair of a study."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

from umup.book.new_study import TEMPLATE
from umup.errors import StudyError
from umup.lab import notebook

CODE = nbformat.v4.new_code_cell
HEAD = (TEMPLATE / "study.py.in").read_text(encoding="utf-8").split("# %%")[0]
FIRST = "n: int = 1\nmode: str = 'run'"


def saved(folder: Path, *cells, tagged: bool = True, first: str = FIRST) -> Path:
    """A notebook whose first cell is tagged ``parameters``; its kernel is one that nobody has."""
    head = CODE(first, metadata={"tags": ["parameters"]} if tagged else {})
    kernel = {"kernelspec": {"name": "elsewhere", "display_name": "?", "language": "python"}}
    path = folder / "study.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[head, *cells], metadata=kernel), path)
    return path


def test_parameters_are_read_without_a_kernel(tmp_path):
    source = """
import math
# a comment: with = signs
profile: str = "cpu"  # cpu, or one of the files: smoke
weight: float = 2.0**-13
rows: list = [
    {"name": "a = b", "optim": {"batch_size": 4}},  # one
]
_hidden = math.pi
steps = 1_000
"""
    assert notebook.parameters(saved(tmp_path, first=source)) == {
        "profile": "cpu",
        "weight": 2.0**-13,
        "steps": 1000,
        "rows": [{"name": "a = b", "optim": {"batch_size": 4}}],
    }
    assert notebook.parameters(saved(tmp_path, tagged=False)) == {}


def test_parameters_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(StudyError, match=r"no such file.*make notebook STUDY="):
        notebook.parameters(tmp_path / "study.ipynb")
    for source, told in (("n = 1 / 0", "ZeroDivisionError"), ("n = (", "SyntaxError")):
        with pytest.raises(StudyError, match=told):
            notebook.parameters(saved(tmp_path, first=source))


@pytest.fixture
def foreign(tmp_path, monkeypatch) -> Path:
    """A file that exists once the kernel has run that a machine has installed as ``python3``."""
    folder, ran = tmp_path / "jupyter" / "kernels" / "python3", tmp_path / "foreign"
    folder.mkdir(parents=True)
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\ntouch {ran}\nexec {sys.executable} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    command = [str(script), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    return ran


def test_execute_runs_in_our_own_kernel_with_the_given_parameters(tmp_path, foreign, monkeypatch):
    settings = tmp_path / "ipython" / "profile_default"
    settings.mkdir(parents=True)
    text = "c.InteractiveShellApp.exec_lines = ['n = 1000', 'm = 1000']\n"
    (settings / "ipython_config.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("IPYTHONDIR", str(settings.parent))
    show = CODE(
        "import os, sys\nprint(n + 41, mode, 'm' in globals(), os.getcwd(), sys.executable)"
    )
    path, place = saved(tmp_path, show), tmp_path / "place {n}"
    place.mkdir()
    before = Path.cwd()
    given = {"n": 2, "mode": "load"}
    done = notebook.execute(path, tmp_path / "out" / "x.ipynb", given, place)
    said = f"43 load False {place} {sys.executable}\n"
    assert done["cells"][-1]["outputs"][0]["text"] == [said]
    assert not foreign.exists() and Path.cwd() == before


def test_values_that_are_the_notebooks_own_are_not_injected(tmp_path, monkeypatch):
    def run(source: str, output: str, **given: Any) -> None:
        injected.append(given["parameters"])
        Path(output).write_text(Path(source).read_text(encoding="utf-8"), encoding="utf-8")

    injected: list[dict] = []
    monkeypatch.setattr("papermill.execute_notebook", run)
    path = saved(tmp_path)
    for given in ({"n": 1, "mode": "run"}, {"n": 1, "mode": "load"}, {"n": 1.0}, {"n": True}):
        notebook.execute(path, tmp_path / "x.ipynb", given, tmp_path)
    assert injected == [{}, {"mode": "load"}, {"n": 1.0}, {"n": True}]


def test_a_kernel_that_is_killed_is_one_error_and_nothing_is_run_again(tmp_path):
    kill = "open('begun', 'a').write('x')\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    path = saved(tmp_path, CODE("n"), CODE(kill), CODE("n"))
    with pytest.raises(StudyError, match=r"a kernel that died in cell 3'; allowed: .*memory"):
        notebook.execute(path, tmp_path / "x.ipynb", {}, tmp_path)
    assert (tmp_path / "begun").read_text() == "x"
    with pytest.raises(StudyError, match="exception"):
        notebook.verify(json.loads((tmp_path / "x.ipynb").read_text("utf-8")), tmp_path)


def test_only_a_kernel_that_does_not_start_is_tried_again(tmp_path, monkeypatch):
    script = tmp_path / "kernel"
    script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/starts\n", encoding="utf-8")
    script.chmod(0o755)
    spec = {"argv": [str(script)], "display_name": "Python 3", "language": "python"}
    monkeypatch.setattr("ipykernel.kernelspec.get_kernel_dict", lambda: spec)
    with pytest.raises(StudyError, match=r"Kernel died before .*allowed: a kernel that starts"):
        notebook.execute(saved(tmp_path), tmp_path / "x.ipynb", {}, tmp_path)
    assert (tmp_path / "starts").read_text() == "x\nx\n"


def test_execute_refuses_an_unknown_parameter_before_it_runs(tmp_path):
    path = saved(tmp_path, CODE("open('ran', 'w')"))
    with pytest.raises(StudyError, match=r"widths.*n, mode"):
        notebook.execute(path, tmp_path / "x.ipynb", {"widths": 2}, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_execute_refuses_a_notebook_without_the_tag(tmp_path):
    path = saved(tmp_path, tagged=False)
    with pytest.raises(StudyError, match="tagged `parameters`"):
        notebook.execute(path, tmp_path / "x.ipynb", {}, tmp_path)


def test_a_failing_cell_stops_the_build_and_is_named(tmp_path):
    path = saved(tmp_path, CODE("1 / 0"))
    with pytest.raises(StudyError, match="ZeroDivisionError: division by zero"):
        notebook.execute(path, tmp_path / "x.ipynb", {}, tmp_path)
    # What papermill left behind is refused as well, whatever it is called.
    left = json.loads((tmp_path / "x.ipynb").read_text("utf-8"))
    with pytest.raises(StudyError, match="exception"):
        notebook.verify(left, tmp_path / "x.ipynb")


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
        notebook.verify(book, Path("x.ipynb"))


def test_verify_refuses_a_figure_without_an_image():
    cell = {"metadata": {"mystnb": {"figure": {"name": "fig-a"}}}}
    text = {"output_type": "display_data", "data": {"text/plain": "<Figure>"}}
    image = {"output_type": "display_data", "data": {"image/png": "xx"}}
    with pytest.raises(StudyError, match="no image for figure fig-a"):
        notebook.verify({"metadata": {}, "cells": [cell | {"outputs": [text]}]}, Path("x.ipynb"))
    sound = {"metadata": {}, "cells": [cell | {"outputs": [text, image]}]}
    assert notebook.verify(sound, Path("x.ipynb")) is sound


def test_strip_hides_injected_parameters_and_drops_run_metadata():
    cells = [
        {"metadata": {"tags": ["parameters"], "papermill": {"status": "completed"}}},
        {"metadata": {"tags": ["injected-parameters"], "execution": {"started": "now"}}},
    ]
    done = notebook.finish({"metadata": {"papermill": {}, "kernelspec": {}}, "cells": cells})
    assert done["metadata"] == {"kernelspec": {}}
    assert done["cells"][0]["metadata"] == {"tags": ["parameters"]}
    assert done["cells"][1]["metadata"] == {"tags": ["injected-parameters", "remove-cell"]}
    assert notebook.finish(done)["cells"][1]["metadata"]["tags"].count("remove-cell") == 1


def test_pictures_get_a_palette_and_stay_what_they_are():
    rows = np.linspace(0, 255, 300, dtype=np.uint8)
    pixels = np.stack(
        [np.tile(rows, (200, 1)), np.full((200, 300), 90, np.uint8), np.tile(rows[::-1], (200, 1))],
        axis=-1,
    )
    pixels[50:60] = (255, 255, 255)
    pixels[55] = (200, 0, 0)  # a line of one pixel
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    small = notebook.palette(png.getvalue())
    assert small == notebook.palette(png.getvalue())
    shown = Image.open(io.BytesIO(small))
    assert shown.mode == "P" and shown.size == (300, 200)
    error = np.abs(np.asarray(shown.convert("RGB"), int) - pixels)
    assert error.max() <= 8 and error.mean() < 2
    output = {"output_type": "display_data", "data": {"image/png": ""}}
    output["data"]["image/png"] = base64.b64encode(png.getvalue()).decode()
    book = {"metadata": {}, "cells": [{"metadata": {}, "outputs": [output]}]}
    notebook.finish(book)
    assert base64.b64decode(output["data"]["image/png"]) == small


def test_the_pair_has_the_sources_cells_and_outputs_of_its_own_parameters(tmp_path):
    source = (
        HEAD
        + """# %% [markdown]
# # Title

# %% tags=["parameters", "hide-input"]
n: int = 2

# %% tags=["answer"]
import os

print(n, os.getcwd())
"""
    )
    (tmp_path / "study.py").write_text(source, encoding="utf-8")
    written = nbformat.read(notebook.make(tmp_path), as_version=4)
    title, first, last = written.cells
    assert title.source == "# Title" and first.metadata == {"tags": ["parameters", "hide-input"]}
    assert last.metadata == {"tags": ["answer"]} and last.outputs[0].text == f"2 {tmp_path}\n"
    assert [cell.id for cell in written.cells] == ["cell-0", "cell-1", "cell-2"]
    assert written.metadata.kernelspec.name == "python3" and "papermill" not in written.metadata


def test_a_study_that_fails_is_told_without_paths_that_are_gone(tmp_path):
    source = '# %% tags=["parameters"]\nn: int = 1\n\n# %%\n1 / 0\n'
    (tmp_path / "study.py").write_text(HEAD + source, encoding="utf-8")
    with pytest.raises(StudyError, match="ZeroDivisionError: division by zero") as caught:
        notebook.make(tmp_path)
    assert caught.value.field == f"{tmp_path.name}/study.py"
    assert "out.ipynb" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["study.py"]


def test_a_study_that_is_not_there_ends_the_command_with_one_line(capsys):
    assert notebook.main(["absent"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("umup: study: received 'absent'") and err.count("\n") == 1
