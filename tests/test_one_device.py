"""The tests marked `one_device` once more on a single CPU device, as most users have.

With several devices XLA's CPU backend runs a program's operations one after another; with one it
runs them concurrently, and what waits for ever there is not seen on the eight devices of the suite.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
LIMIT = (
    1800  # seconds; a run takes some 40, ten times that under load, and one that hangs has no end
)


def test_marked_tests_pass_on_one_device() -> None:
    marked = [
        p for p in sorted(TESTS.glob("test_*.py")) if "@pytest.mark.one_device" in p.read_text()
    ]
    marked.remove(Path(__file__))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "one_device", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-n0", *map(str, marked)],
        cwd=TESTS.parent,
        timeout=LIMIT,
        capture_output=True,
        text=True,
        env=os.environ | {"UMUP_TEST_DEVICES": "1", "UMUP_TEST_IN_HASTE": "0"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout
