"""Make a study's notebook anew from its `study.py`, with the outputs of its default parameters.

python scripts/notebook.py lr_transfer
"""

from __future__ import annotations

import sys

from umup import new_study, study
from umup.errors import UmupError

if __name__ == "__main__":
    try:
        folder = study.folder(sys.argv[1])
        written = new_study.make_notebook(folder, folder)
    except UmupError as error:
        sys.exit(f"notebook: {error}")
    print(f"written: {folder.name}/{written.name}")
