"""Make a study's notebook anew from its `study.py`, with the outputs of its default parameters.

python scripts/notebook.py lr_transfer
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from umup import site, study


def main(name: str) -> None:
    """Execute `study.py` of the study `name` and write the pair `study.ipynb`."""
    folder = study.folder(name)
    notebook: Any = jupytext.read(folder / "study.py")
    tags = [dict(cell.metadata) for cell in notebook.cells]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "study.ipynb"
        nbformat.write(notebook, source)
        executed = site.strip(site.execute(source, Path(scratch) / "out.ipynb", {}, folder))
    done: Any = nbformat.from_dict(executed)
    for number, (cell, metadata) in enumerate(zip(done.cells, tags, strict=True)):
        cell.metadata, cell["id"] = nbformat.from_dict(metadata), f"cell-{number}"
    done.metadata = notebook.metadata
    jupytext.write(done, folder / "study.ipynb", fmt="ipynb")
    print(f"written: {name}/study.ipynb")


if __name__ == "__main__":
    main(sys.argv[1])
