"""Make the notebooks of studies anew from their `study.py`, with outputs from committed records.

python scripts/notebook.py lr_transfer [STUDY ...]      all: every study
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from umup.book.site import AT_ONCE
from umup.errors import UmupError
from umup.lab import folders, notebook

if __name__ == "__main__":
    try:
        names = folders.names() if sys.argv[1:] == ["all"] else sys.argv[1:]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for written in pool.map(notebook.make, [folders.folder(name) for name in names]):
                print(f"written: {written.parent.name}/{written.name}", flush=True)
    except UmupError as error:
        sys.exit(f"notebook: {error}")
