"""Notebooks as files: their parameters, their execution, their pairing with ``study.py``."""

from __future__ import annotations

import base64
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from umup.errors import StudyError, UmupError
from umup.lab import folders

AT_ONCE = 2
"""Notebooks executed at once: compiling, half of a kernel's work, uses a single thread."""

PLAIN = (int, float, str, bool, list, tuple, dict, type(None))
"""Types of a parameter's value."""


def parameters(notebook: Path) -> dict[str, Any]:
    """The values in the cell tagged ``parameters``, by name, without a kernel.

    Raises:
        StudyError: there is no such notebook, or the cell does not run.
    """
    if not notebook.exists():
        todo = f"a notebook; `make notebook STUDY={notebook.parent.name}` makes it from study.py"
        raise StudyError(str(notebook), "no such file", todo)
    cells = json.loads(notebook.read_text(encoding="utf-8")).get("cells", [])
    tagged = (c["source"] for c in cells if "parameters" in c["metadata"].get("tags", []))
    values: dict[str, Any] = {}
    try:
        exec("".join(next(tagged, "")), values)
    except Exception as error:
        received = f"{type(error).__name__}: {error}"
        raise StudyError(str(notebook), received, "a cell of parameters that runs") from None
    return {k: v for k, v in values.items() if isinstance(v, PLAIN) and not k.startswith("_")}


def execute(
    notebook: Path,
    output: Path,
    given: Mapping[str, Any],
    cwd: Path,
    variables: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Run a notebook with papermill, in this interpreter's own kernel, and return it executed.

    Only values that differ from the notebook's own are injected. If a kernel does not start, one
    more is started (ports sometimes collide); if it dies later, none is.

    Args:
        notebook: the file to run.
        output: the executed notebook, written cell by cell.
        given: values of its parameters.
        cwd: the folder in which the kernel runs.
        variables: environment variables of the kernel besides those of this process.

    Raises:
        StudyError: a parameter that the notebook does not have, no cell tagged ``parameters``, a
            cell that failed, a kernel that did not start or died.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    own = parameters(notebook)
    if not own:
        raise StudyError(str(notebook), "no cell tagged `parameters`", "tag the cell of defaults")
    for name in given:
        if name not in own:
            raise StudyError(name, given[name], f"a parameter of the notebook: {', '.join(own)}")
    changed = {name: value for name, value in given.items() if repr(value) != repr(own[name])}
    output.parent.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2):
        try:
            _papermill(notebook, output, changed, cwd, variables)
            break
        except PapermillExecutionError as error:
            received = f"{error.ename}: {error.evalue}"
            todo = f"a notebook that runs; cell {error.exec_count} of {output} shows the traceback"
            raise StudyError(str(notebook), received, todo) from None
        except DeadKernelError:
            todo = (
                "a kernel that lives to the notebook's end; the system ends those that take too "
                f"much memory, smaller parameters take less ({output} holds the cells before)"
            )
            received = f"a kernel that died in cell {_mark_dead(output)}"
            raise StudyError(str(notebook), received, todo) from None
        except RuntimeError as error:
            if attempt == 2:
                todo = f"a kernel that starts: {sys.executable} -m ipykernel_launcher"
                raise StudyError(str(notebook), str(error), todo) from None
    return verify(json.loads(output.read_text(encoding="utf-8")), output)


def _papermill(
    notebook: Path,
    output: Path,
    changed: Mapping[str, Any],
    cwd: Path,
    variables: Mapping[str, str],
) -> None:
    """Execute once, see `execute`; raises what papermill does."""
    import papermill

    # A user's IPython settings may change formats of pictures: the kernel sees none.
    with tempfile.TemporaryDirectory(prefix="umup-ipython-") as settings:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters=changed,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=120,
            kernel_manager_class=_own_kernel(variables),
            # Not papermill's `cwd`, which moves this whole process, other threads too.
            resources={"metadata": {"path": str(cwd)}},
            extra_arguments=["--log-level=ERROR", f"--ipython-dir={settings}"],
        )


def _own_kernel(variables: Mapping[str, str]) -> type:
    """A kernel manager that starts this interpreter, whatever is installed as ``python3``."""
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, env=dict(variables), **get_kernel_dict())

    return OwnKernel


def _mark_dead(output: Path) -> int:
    """Mark a notebook whose kernel died, and return the number of the code cell in which it died.

    Papermill marks all cells as completed in that case, and `verify` would accept the notebook.
    """
    left = json.loads(output.read_text(encoding="utf-8"))
    left["metadata"]["papermill"]["exception"] = True
    output.write_text(json.dumps(left), encoding="utf-8")
    code = [cell["metadata"]["papermill"] for cell in left["cells"] if cell["cell_type"] == "code"]
    return sum(state["start_time"] is not None for state in code)


def verify(notebook: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return an executed notebook, provided that it ran to its end.

    Raises:
        StudyError: papermill's metadata says exception or pending, an output is an error, or a
            cell that promises a figure shows none.
    """
    todo = "a notebook that papermill ran to its end"
    if notebook["metadata"].get("papermill", {}).get("exception"):
        raise StudyError(str(path), "papermill reports an exception", todo)
    for index, cell in enumerate(notebook["cells"]):
        state = cell["metadata"].get("papermill", {})
        if state.get("exception") or state.get("status") in ("pending", "running", "failed"):
            raise StudyError(f"{path} cell {index}", state, todo)
        outputs = cell.get("outputs", [])
        if any(o["output_type"] == "error" for o in outputs):
            raise StudyError(f"{path} cell {index}", "an error output", todo)
        shown = [mime for o in outputs for mime in o.get("data", {}) if mime.startswith("image/")]
        if "figure" in cell["metadata"].get("mystnb", {}) and not shown:
            name = cell["metadata"]["mystnb"]["figure"].get("name")
            raise StudyError(f"{path} cell {index}", f"no image for figure {name}", "a PNG output")
    return notebook


def finish(notebook: dict[str, Any]) -> dict[str, Any]:
    """Prepare an executed notebook for publication: no metadata of the run, compressed pictures.

    Parameters that were injected are hidden in the book.
    """
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags and "remove-cell" not in tags:
            tags.append("remove-cell")
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                png = base64.b64decode("".join(output["data"]["image/png"]))
                output["data"]["image/png"] = base64.b64encode(palette(png)).decode("ascii")
    return notebook


def palette(png: bytes) -> bytes:
    """The same picture in at most 256 colours, a third of the bytes; deterministic."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    # Neighbouring shades are merged, not dithered, so that flat areas and thin lines stay intact.
    small = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return out.getvalue()


def make(folder: Path) -> Path:
    """Execute a study's ``study.py`` with its own parameters and write the paired notebook.

    Cells get the tags of the source and stable ids, so that the notebook changes only where the
    study does.

    Args:
        folder: of the study, with ``study.py``; ``study.ipynb`` is written into it.

    Raises:
        StudyError: a cell failed.
    """
    import jupytext
    import nbformat

    source: Any = jupytext.read(folder / "study.py")
    with tempfile.TemporaryDirectory(prefix="umup-notebook-") as scratch:
        draft = Path(scratch) / "study.ipynb"
        nbformat.write(source, draft)
        try:
            executed = execute(draft, Path(scratch) / "out.ipynb", {}, folder)
        except StudyError as error:  # its paths are gone in a moment
            todo = "a study that runs at its own parameters"
            raise StudyError(f"{folder.name}/study.py", error.received, todo) from None
    done: Any = nbformat.from_dict(finish(executed))
    for number, (cell, before) in enumerate(zip(done.cells, source.cells, strict=True)):
        cell.metadata, cell["id"] = before.metadata, f"cell-{number}"
    done.metadata = source.metadata
    target = folder / "study.ipynb"
    jupytext.write(done, target, fmt="ipynb")
    return target


def main(names: Sequence[str]) -> int:
    """``python -m umup.lab.notebook STUDY ...``, or ``all``: remake notebooks; the exit status."""
    try:
        wanted = folders.names() if list(names) == ["all"] else names
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for written in pool.map(make, [folders.folder(name) for name in wanted]):
                print(f"written: {written.parent.name}/{written.name}", flush=True)
    except UmupError as error:
        print(f"umup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
