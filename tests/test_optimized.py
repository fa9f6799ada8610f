"""What is marked `optimized`, with programs as users have them, where the rest has hasty ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LIMIT = 3600  # seconds; a run takes some 200


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("UMUP_TEST_IN_HASTE") != "1", reason="nothing is in haste")
@pytest.mark.parametrize("files", ["test_*.py", "cluster/test_*.py"])
def test_marked_tests_pass_with_programs_as_users_have_them(files: str) -> None:
    others = [path for path in sorted(TESTS.glob(files)) if path != Path(__file__)]
    marked = [path for path in others if "mark.optimized" in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "optimized", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-n0", *map(str, marked)], cwd=TESTS.parent, timeout=LIMIT, capture_output=True,
        text=True, env=os.environ | {"UMUP_TEST_IN_HASTE": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    if files == "test_*.py":  # the cluster's need Slurm, which may be absent
        assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout


def test_no_mark_is_missed() -> None:
    marked = [
        p for p in TESTS.rglob("test_*.py") if "@pytest.mark.optimized" in p.read_text("utf-8")
    ]
    assert {path.parent for path in marked} <= {TESTS, TESTS / "cluster"}
