"""``make h100``: work through the queue for a number of minutes, then pack the new rows."""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from umup import command, machine, slices
from umup.command import Option
from umup.config import NUMERICS
from umup.errors import DataError, StudyError
from umup.lab import folders
from umup.lab.records import Store
from umup.slices import Job, packs
from umup.slices.slice_worker import EXIT_REFUSED, Events
from umup.text import columns

RESERVE_S = 30.0
"""Seconds before the limit at which rows are packed."""
START_S = 15.0
"""Seconds assumed for a process to start: imports, and the driver."""
GRACE_S = 15.0
"""Seconds of delay after which a worker is ended."""
ENVIRONMENT = {
    # PyTorch shares the GPU in one job, and the next process wants the memory of the last.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    "UMUP_PROGRESS": "1",
}
FLAGS = "--xla_gpu_enable_triton_gemm=false"
"""``XLA_FLAGS`` of a slice: products by cuBLASLt alone. By default XLA searches among Triton's
tilings as well, which took more than half of a slice for one FP8 step."""


def build_folder() -> Path:
    """Where rows are kept until they are merged: ``build/h100`` of the checkout."""
    return folders.experiments_folder().parent / "build" / "h100"


class Slice:
    """One slice of time: its jobs and their outcomes.

    Args:
        jobs: in order.
        folder: of the rows, events and logs.
        minutes: the limit.
        rehearse: whether this is a rehearsal, on any device, which skips no job for its length.
        queue: the file of the jobs.
    """

    def __init__(
        self, jobs: Sequence[Job], folder: Path, minutes: float, rehearse: bool, queue: Path
    ):
        self.jobs, self.folder, self.minutes = list(jobs), folder, minutes
        self.rehearse, self.queue = rehearse, queue
        self.began = time.time()
        self.until = self.began + 60 * minutes - RESERVE_S
        self.id = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.events = Events(folder / "events.ndjson")
        self._seen = len(self.events.read())
        self.log: dict[str, Any] = {"id": self.id, "minutes": minutes, "numerics": NUMERICS}

    def run(self, keep: Path | None) -> int:
        """Run the jobs; pack into ``keep`` after each process. Returns the exit status."""
        left = list(self.jobs)
        while left and (time.time() < self.until):
            # One process does what one study wants in a row; the next study gets free memory.
            _, alike = next(itertools.groupby(left, key=operator.attrgetter("study")))
            batch = list(alike)
            code = self._process(batch)
            self._close(code)
            self.pack(keep)
            if code == EXIT_REFUSED:
                return 1
            ended = {e["job"] for e in self._events() if e["event"] == "end"}
            if not ended & {job.name for job in batch}:
                return 1  # it did not even begin, and would not the next time
            left = [job for job in left if job.name not in ended]
        return 0

    def _process(self, batch: Sequence[Job]) -> int:
        command = [sys.executable, "-m", "umup.slices.slice_worker", *(job.name for job in batch)]
        command += ["--queue", str(self.queue), "--folder", str(self.folder)]
        command += ["--until", repr(self.until), *(["--rehearse"] if self.rehearse else [])]
        flags = machine.in_haste() if self.rehearse else os.environ.get("XLA_FLAGS", "")
        more = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "XLA_FLAGS": f"{flags} {FLAGS}".strip(),
        }
        worker = subprocess.Popen(command, env=os.environ | ENVIRONMENT | more)
        try:
            return worker.wait(max(self.until - time.time(), 0) + GRACE_S)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()

    def _close(self, code: int) -> None:
        """Log the end of a job whose process died before it could."""
        states: dict[str, dict[str, Any]] = {}
        for event in self._events():
            if event["event"] in ("begin", "end"):
                states[event["job"]] = event
        for name, event in states.items():
            if event["event"] == "begin":
                late = time.time() > self.until
                why = "cut off at the limit" if late else f"its process ended with status {code}"
                state = "left" if late else "failed"
                seconds = time.time() - event["at"]
                self.events.tell(
                    "end", job=name, state=state, why=why, traceback="", seconds=seconds
                )

    def _events(self) -> list[dict[str, Any]]:
        return self.events.read()[self._seen :]

    def record(self) -> dict[str, Any]:
        """The slice as the log has it: id, minutes, device, jobs with state and seconds."""
        predicted = {job.name: job.seconds for job in self.jobs}
        found = self._events()
        hidden = ("event", "at")
        device = next((e for e in found if e["event"] == "device"), {})
        jobs = [
            {k: v for k, v in e.items() if k not in hidden} | {"predicted_s": predicted[e["job"]]}
            for e in found
            if e["event"] == "end"
        ]
        return self.log | {
            "seconds": time.time() - self.began,
            "rehearsal": self.rehearse,
            "jobs": jobs,
            "where": {k: v for k, v in device.items() if k not in hidden},
        }

    def pack(self, keep: Path | None) -> list[Path]:
        """Save the slice's log with the rows, and pack everything in the folder."""
        logs = self.folder / "slices"
        packs.write(logs / f"{self.id}.json", json.dumps(self.record()).encode())
        every = [json.loads(path.read_text("utf-8")) for path in sorted(logs.glob("*.json"))]
        stores = [Store(self.folder / name) for name in folders.names()]
        return packs.pack(stores, every, keep or self.folder / "pack")

    def table(self) -> str:
        """The outcome of every job, as text."""
        jobs = {entry["job"]: entry for entry in self.record()["jobs"]}
        rows = [("job", "state", "predicted", "took", "why")]
        for job in self.jobs:
            entry = jobs.get(job.name, {"state": "not begun", "seconds": 0.0, "why": ""})
            rows.append(
                (
                    job.name,
                    entry["state"],
                    f"{job.seconds:.0f} s",
                    f"{entry['seconds']:.0f} s",
                    entry["why"],
                )
            )
        return columns(rows)


def lacks(job: Job, folder: Path, rehearse: bool = False) -> tuple[int, int]:
    """How many measurements of a job are missing, and how many it has in all.

    Raises:
        DataError: this machine lacks the corpus of its runs.
    """
    design = job.design(rehearse)
    store, dataset = slices.place(folder, job), slices.dataset_of(job, design)
    left = slices.todo(job, design, store, dataset)
    return len(left), left.total


def listing(jobs: Sequence[Job], folder: Path, rehearse: bool) -> str:
    """Every job with what it decides, its predicted seconds, and what is left of it."""
    rows = [("job", "study", "predicted", "missing", "decides")]
    for job in jobs:
        try:
            left, total = lacks(job, folder, rehearse)
            missing = f"{left} of {total}" if left else "done"
        except DataError as error:
            missing = f"unknown: {error.field}, {error.received}"
        rows.append((job.name, job.study, f"{job.seconds:.0f} s", missing, job.decides))
    return columns(rows)


def lacking(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs that lack measurements or their corpus, which they then report."""
    found = []
    for job in jobs:
        with contextlib.suppress(DataError):
            if lacks(job, folder)[0] == 0:
                continue
        found.append(job)
    return found


def check_minutes(minutes: float, first: Job) -> None:
    """Raise an error if the limit is too short for the first job.

    Raises:
        StudyError: it is too short.
    """
    least = (START_S + first.seconds + RESERVE_S) / 60
    if not minutes >= least:
        raise StudyError("--minutes", minutes, f"at least {least:.1f}, for the job {first.name}")


@dataclass(frozen=True)
class H100:
    """Work through the queue for a number of minutes, then pack the new rows.

    examples:
      python -m umup.slices.h100 --minutes 9 --pack OUT   the next jobs, on this box's GPU
      python -m umup.slices.h100 --list                   every job, and what is left of it
      python -m umup.slices.h100 --rehearse               all on a CPU, every shape shrunk
      python -m umup.slices.h100 --merge OUT              a pack into the records
    """

    minutes: Annotated[float, Option("limit, packing included", "MINUTES")] = 9.0
    only: Annotated[tuple[str, ...], Option("these jobs of the queue", "JOB")] = ()
    list: Annotated[bool, Option("say what there is to do, do nothing")] = False
    rehearse: Annotated[bool, Option("on any device, every shape shrunk")] = False
    pack: Annotated[
        Path | None, Option("where packs are written (default: build/h100/pack)", "DIR")
    ] = None
    merge: Annotated[Path | None, Option("put a pack into the records", "DIR")] = None

    def __call__(self) -> int:
        """Run the command; 0, or 1 if nothing could be done or written.

        Raises:
            StudyError: an unknown job, or a limit within which none ends.
            RecordError: a pack that cannot be read or merged.
        """
        if self.merge:
            print(merged(packs.merge(self.merge, folders.experiments_folder())))
            return 0
        path = folders.experiments_folder() / slices.QUEUE
        jobs = slices.chosen(slices.queue(path), self.only)
        with tempfile.TemporaryDirectory(prefix="umup-") as temporary:
            folder = Path(temporary) if self.rehearse else build_folder()
            if self.list:
                print(listing(jobs, folder, self.rehearse))
                return 0
            if not self.rehearse:
                if not (jobs := lacking(jobs, folder)):
                    print("nothing is missing")
                    return 0
                check_minutes(self.minutes, jobs[0])
            else:  # each study's jobs in one process: most of a rehearsal is the start of processes
                studies = list(dict.fromkeys(job.study for job in jobs))
                jobs.sort(key=lambda job: studies.index(job.study))
            work = Slice(jobs, folder, self.minutes, self.rehearse, path)
            status = work.run(self.pack)
            print(work.table())
            for packed in work.pack(self.pack):
                print(f"packed: {packed} ({packed.stat().st_size / 2**10:,.0f} KiB)")
            if self.rehearse:  # merging too, and twice
                for _ in range(2):
                    source, records = self.pack or folder / "pack", folder / "records"
                    print(merged(packs.merge(source, records, rehearsal=True)))
        return status


def merged(counts: dict[str, int]) -> str:
    """What a merge did, in one line."""
    return "merged: " + ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    sys.exit(command.run(H100, None, "python -m umup.slices.h100"))
