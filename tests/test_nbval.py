"""The comparison of notebooks with their records bites: one changed row, and it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from umup.lab.records import Store

ROOT = Path(__file__).resolve().parent.parent
STUDY = Path("experiments", "lr_transfer")


@pytest.mark.slow
def test_a_changed_row_fails_the_comparison_and_none_passes(tmp_path: Path) -> None:
    for name in ("same", "changed"):
        shutil.copytree(ROOT / STUDY, tmp_path / name / STUDY)
    folder = tmp_path / "changed" / STUDY / "records" / "cpu"
    rows = Store(folder).read()
    best = rows[rows["scheme"] == "umup"]["val_loss"].idxmin()
    rows.loc[best, "val_loss"] += 0.1
    for shard in folder.glob("*.parquet"):
        shard.unlink()
    Store(folder).append(rows.to_dict("records"))

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--nbval",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
        "same",
        "changed",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 1, done.stdout + done.stderr
    assert failed and all(line.startswith("FAILED changed/") for line in failed), done.stdout
