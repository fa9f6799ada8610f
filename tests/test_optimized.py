"""What is marked `optimized`, with programs as users have them, where the rest has hasty ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from umup import machine

TESTS = Path(__file__).parent
LIMIT = 3600  # seconds; a run takes some 200
MARKED = "optimized and not one_device"  # those run so in tests/test_one_device.py


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("UMUP_TEST_IN_HASTE") != "1", reason="nothing is in haste")
def test_marked_tests_pass_with_programs_as_users_have_them() -> None:
    # Both at once: the cluster's tests mostly wait for Slurm.
    groups = [(pattern, _start(pattern)) for pattern in ("cluster/test_*.py", "test_*.py")]
    try:
        for pattern, process in groups:
            said, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, said[-8000:]
            if pattern == "test_*.py":  # the cluster's need Slurm, which may be absent
                assert re.search(r"\d+ passed", said)
                assert "skipped" not in said or not machine.converts_float16()
    finally:
        for _, process in groups:
            process.kill()
            process.communicate()


def _start(pattern: str) -> subprocess.Popen[str]:
    others = [path for path in sorted(TESTS.glob(pattern)) if path != Path(__file__)]
    marked = [path for path in others if "mark.optimized" in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", MARKED, "-p", "no:cacheprovider"]
    return subprocess.Popen(
        [*command, "-n0", *map(str, marked)],
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"UMUP_TEST_IN_HASTE": "0"},
    )


def test_no_mark_is_missed() -> None:
    marked = [
        p for p in TESTS.rglob("test_*.py") if "@pytest.mark.optimized" in p.read_text("utf-8")
    ]
    assert {path.parent for path in marked} <= {TESTS, TESTS / "cluster"}
