"""Run one step of a make target, saying what it does and how long is left.

    python3 scripts/steps.py book 2 -- command …

A step's expected time is what it took last time on this machine, or the table's value.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

# target -> its steps: what is shown, and the seconds it takes on 2 cores
STEPS = {
    "setup": [("set-up: a virtual environment and its packages (once)", 120)],
    "book": [
        ("studies live at smoke, pages from records, the site", 240),
        ("the built site in a browser", 60),
    ],
    "test": [("tests and notebooks", 1020)],
    "wheelhouse": [("wheels for a box without network", 60)],
}
MEMORY = Path(__file__).resolve().parent.parent / ".cache" / "steps.json"


def words(seconds: float) -> str:
    """Seconds as a person would say them: '40 s' or '3 min'."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def remembered() -> dict[str, float]:
    """Seconds each step took last time, by its label."""
    try:
        return json.loads(MEMORY.read_text())
    except (OSError, ValueError):
        return {}


def main(target: str, number: int, command: list[str]) -> int:
    """Run `command` as step `number` (from 1) of `target`; returns its exit status."""
    steps, took = STEPS[target], remembered()
    expected = [took.get(label, seconds) for label, seconds in steps]
    tag = f"[{target} {number}/{len(steps)}]"
    label = steps[number - 1][0]
    print(f"{tag} {label}; about {words(sum(expected[number - 1 :]))} left", flush=True)
    start = time.monotonic()
    status = subprocess.call(command)
    seconds = time.monotonic() - start
    if status:
        print(f"{tag} failed after {words(seconds)} (exit {status})", file=sys.stderr, flush=True)
        return status
    if target != "test":  # pytest's own summary stays the last line
        print(f"{tag} done in {words(seconds)}", flush=True)
    try:
        MEMORY.parent.mkdir(exist_ok=True)
        MEMORY.write_text(json.dumps({**took, label: round(seconds, 1)}, indent=1))
    except OSError:
        pass  # a read-only checkout only loses the better estimate
    return 0


if __name__ == "__main__":
    split = sys.argv.index("--")
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[split + 1 :]))
