"""The submissions for a study's records, and what Slurm still has of them.

Each submission has a folder `.jobs/WHEN` beside the records, with `job.json`, submitit's script and
pickles, and the log of every task. The queue is read with squeue, which every site has, rather than
sacct, which needs accounting.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from umup.errors import StudyError
from umup.lab.records import Store


def submitit() -> ModuleType:
    """The module submitit, imported without its logging set-up, which closes others' handlers.

    Raises:
        StudyError: it is not installed.
    """
    name = "SUBMITIT_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = "NOCONFIG"
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise StudyError("submitit", "not installed", "pip install 'umup[slurm]'") from None
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@dataclass(frozen=True)
class Submission:
    """An array of tasks that was submitted.

    Args:
        folder: of its files.
        executor: `slurm` or `local`.
        ids: the array's id, or the process of every local task.
        tasks: their number.
        user, created: who submitted it, and when (UTC, ISO 8601).
    """

    folder: Path
    executor: str
    ids: tuple[str, ...]
    tasks: int
    user: str = field(default_factory=getpass.getuser)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def save(self) -> None:
        """Write `job.json` into the folder."""
        plain = {k: v for k, v in vars(self).items() if k != "folder"}
        (self.folder / "job.json").write_text(json.dumps(plain) + "\n", encoding="utf-8")


def submissions(place: Store) -> list[Submission]:
    """The submissions for these records, oldest first."""
    found = []
    for path in sorted((place.folder / ".jobs").glob("*/job.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # being written
            plain = json.loads(path.read_text(encoding="utf-8"))
            found.append(Submission(path.parent, **(plain | {"ids": tuple(plain["ids"])})))
    return found


ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}
"""States of jobs that have ended but that squeue still lists for a while."""
_ENTRY = re.compile(
    r"(?P<job>\d+)(?:_\[(?P<tasks>[\d,-]+)[^\]]*\]|[_+.]\S*)?"  # 7, 7_3, 7_3+0, 7_[1-4,9%2]
    r"(?:\s+(?P<state>[A-Za-z_]+)\S*(?:\s+(?P<reason>.*))?)?"
)


@dataclass(frozen=True)
class Entry:
    """Tasks of an array in squeue's answer: their state, what they wait for, and how many."""

    job: str
    state: str
    reason: str
    tasks: int


def entries(answer: str) -> list[Entry]:
    """The tasks in squeue's output, without the lines that sites and federations add to it."""
    found = []
    for line in answer.splitlines():
        if match := _ENTRY.fullmatch(line.strip()):
            job, tasks, state, reason = match.groups()
            reason = (reason or "").strip()
            known = "" if reason in ("None", "(None)", "(null)") else reason
            state = (state or "unknown").upper()
            found.append(Entry(job, state, known.strip("()"), _count(tasks)))
    return found


def _count(indices: str | None) -> int:
    """Number of tasks in a list of array indices, such as ``1-4,9``; 1 without a list."""
    ranges = [part.split("-") for part in (indices or "0").split(",") if part.strip("-")]
    return sum(int(ends[-1] or ends[0]) - int(ends[0] or ends[-1]) + 1 for ends in ranges)


def slurm(*command: str) -> str:
    """The output of a Slurm command; empty if it knows no such job.

    Raises:
        StudyError: it failed, with its message, or did not answer.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StudyError(command[0], str(error), "a Slurm controller that answers") from None
    if done.returncode and "Invalid job id" not in done.stderr:  # forgotten: it ended
        raise StudyError(command[0], words(done.stderr), "a Slurm controller that answers")
    return done.stdout


def words(text: str) -> str:
    """The message of a Slurm command, in one line."""
    lines = [re.sub(r"^s\w+: (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(filter(None, lines)) or "no message"


def queue(arrays: Iterable[Submission]) -> dict[str, Counter[str]]:
    """Number of tasks that Slurm still has of each array, by state; empty without Slurm.

    States are `running`, `queued (REASON)` and Slurm's other ones in lower case.

    Raises:
        StudyError: squeue fails or does not answer.
    """
    ids = [job for array in arrays if array.executor == "slurm" for job in array.ids]
    if not ids or shutil.which("squeue") is None:
        return {}
    found: dict[str, Counter[str]] = {}
    ask = ("squeue", "--noheader", "--array", "--format=%F %T %r", f"--jobs={','.join(ids)}")
    for entry in entries(slurm(*ask)):
        if entry.job not in ids or entry.state in ENDED:
            continue
        why = f" ({entry.reason})" if entry.reason else ""
        named = f"queued{why}" if entry.state == "PENDING" else entry.state.lower()
        found.setdefault(entry.job, Counter())[named] += entry.tasks
    return found


def told(states: Counter[str]) -> str:
    """Counts of tasks as text: `2 running, 5 queued (Priority)`."""
    return ", ".join(f"{n} {state}" for state, n in sorted(states.items(), reverse=True))


def at_work(places: Iterable[tuple[str, Store]]) -> list[str]:
    """A line for every array of these named stores that Slurm still has; calls squeue once."""
    arrays = [(name, array) for name, place in places for array in submissions(place)]
    try:
        states = queue(array for _, array in arrays)
    except StudyError as error:
        return [str(error)]
    return [
        f"{name}: array {job} of {array.user}: {told(states[job])}"
        for name, array in arrays
        for job in array.ids
        if job in states
    ]


def failures(array: Submission) -> list[str]:
    """The errors of the array's tasks, one line for each task that ended in an error.

    A task that Slurm killed (cancelled, out of memory, past its limit) leaves none.
    """
    load = submitit().core.utils.pickle_load
    found = []
    for path in sorted(array.folder.glob("*_result.pkl")):
        outcome, trace = load(path)
        if outcome == "error":
            log = path.name.replace("_result.pkl", "_log.out")
            found.append(f"{trace.strip().splitlines()[-1]} ({log})")
    return found
