"""The process that runs a slice's jobs, one study at a time, and is told when time is over.

It is a separate process so that a crash ends only one job and the next study gets free memory. It
writes what happens to a file of events, one JSON object per line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from umup import files, slices
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import RecordError, StudyError
from umup.lab import study
from umup.lab.design import Design
from umup.lab.records import Store, current, provenance
from umup.lab.sweep import OutOfTime, Settings, groups, run_pending
from umup.slices.turns import run_in_turn
from umup.terminal import Progress

EXIT_REFUSED = 2
"""Exit status of a worker that cannot begin, or cannot write what it makes."""


class Allowance:
    """The time left in a slice, and the time that a job is predicted to take of it.

    Args:
        until: end of the slice, seconds as of ``time.time``.
        seconds: predicted for the whole job; with 0 it begins however little time is left.
        whole: weight of the whole job, in the unit of ``fits``.
    """

    def __init__(self, until: float, seconds: float, whole: float):
        self.until, self._each = until, seconds / max(whole, 1e-9)
        self._predicted, self._began = 0.0, time.time()

    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.time()

    def needs(self, weight: float) -> float:
        """Predicted seconds of a part of the job, corrected by the parts so far."""
        pace = 1.0
        if self._predicted > 0:
            pace = (time.time() - self._began) / self._predicted
        return weight * self._each * pace

    def fits(self, weight: float) -> bool:
        """Whether the next part, of this weight, would end in time; if so, it counts as begun."""
        if self.needs(weight) > self.left() or self.left() <= 0:
            return False
        self._predicted += weight * self._each
        return True


def work(
    job: slices.Job,
    design: Design,
    store: Store,
    dataset: Dataset | None,
    allowance: Callable[[float], Allowance],
    progress: Progress,
) -> str:
    """Make as much as fits of what the job lacks.

    Args:
        allowance: of time, for the whole job's weight: a point weighs 1, a run its FLOPs.

    Returns:
        "" if nothing is missing any more, else the reason why something is.
    """
    todo = slices.todo(job, design, store, dataset)
    if dataset is None:
        allowed = allowance(todo.total)
        study.measure(job.study, design, store.points, progress, fits=lambda _: allowed.fits(1.0))
        left = len(study.missing_points(design, store.points))
        return f"{left} of {todo.total} points left" if left else ""
    return _train(job, design, store, dataset, allowance, progress)


def _train(
    job: slices.Job,
    design: Design,
    store: Store,
    dataset: Dataset,
    allowance: Callable[[float], Allowance],
    progress: Progress,
) -> str:
    nothing = store.schema.arrow.empty_table().to_pandas()
    whole = design.missing_seconds(study.missing_runs(design, nothing, dataset))
    allowed = allowance(whole)
    late = time.monotonic() + allowed.left()
    how = Settings(
        design.lanes, design.lanes_at_once, design.chunk_steps, deadline=late, saves=False
    )
    names: dict[str, Any] = {"study": job.study, "profile": slices.PROFILE}

    def wanted() -> list[RunConfig]:
        return design.pending(current(store.read()), dataset)

    def unit_of(runs: list[RunConfig]) -> list[RunConfig]:
        return runs[: job.in_turn] if job.in_turn else next(iter(groups(runs, design.lanes)), [])

    def fitting() -> list[RunConfig]:
        """The runs to make together next, if they would end in time."""
        unit = unit_of(wanted())
        return unit if unit and allowed.fits(design.missing_seconds(unit)) else []

    try:
        if job.in_turn:
            while unit := fitting():
                run_in_turn(unit, dataset, store, **names, settings=how, progress=progress)
        else:
            run_pending(fitting, dataset, store, **names, settings=how, progress=progress)
    except OutOfTime:
        return f"time is over; {len(wanted())} runs left"
    left = wanted()
    if not left:
        return ""
    needs = allowed.needs(design.missing_seconds(unit_of(left)))
    return f"{len(left)} runs left; the next takes about {needs:.0f} s"


class Events:
    """What happens to the jobs of a slice: lines of JSON in a file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def tell(self, event: str, **facts: Any) -> None:
        """Add an event.

        Raises:
            RecordError: the file cannot be written.
        """
        line = json.dumps({"event": event, "at": time.time(), **facts}, sort_keys=True)
        with files.writing(self.path, RecordError, "the rows so far are intact"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All events so far; a line cut off by a kill is left out."""
        found = []
        for line in self.path.read_text("utf-8").splitlines() if self.path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def on_device(rehearsal: bool) -> dict[str, Any]:
    """Where this process computes: ``records.provenance``, and gib, the device's memory.

    Raises:
        StudyError: JAX sees no GPU, and this is no rehearsal.
    """
    import jax

    if jax.default_backend() != "gpu" and not rehearsal:
        received = f"{jax.default_backend()} (jax {jax.__version__})"
        raise StudyError(
            "device",
            received,
            "a GPU and a jax that sees it (jax[cuda13]), or --rehearse to try the queue without",
        )
    stats = jax.local_devices()[0].memory_stats() or {}
    return provenance() | {"gib": stats.get("bytes_limit", math.inf) / 2**30}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs with the given names; called by ``umup.slices.h100``."""
    parser = argparse.ArgumentParser(
        prog="python -m umup.slices.slice_worker", description=main.__doc__
    )
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--queue", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args(argv)
    events = Events(given.folder / "events.ndjson")
    progress = Progress(given.folder / "progress.log")
    jobs = slices.chosen(slices.queue(given.queue), given.jobs)
    try:
        device = on_device(given.rehearse)
        events.tell("device", **device)
        for job in jobs:
            _do(job, device, events, progress, given)
    except (RecordError, StudyError) as error:
        print(f"umup: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def _do(
    job: slices.Job,
    device: dict[str, Any],
    events: Events,
    progress: Progress,
    given: argparse.Namespace,
) -> None:
    """Run one job from its first event to its last; an exception is logged as an event."""
    began = time.time()
    events.tell("begin", job=job.name)

    def end(state: str, why: str = "", trace: str = "") -> None:
        progress.line(f"{job.name}: {state}{f', {why}' if why else ''}")
        events.tell(
            "end", job=job.name, state=state, why=why, traceback=trace, seconds=time.time() - began
        )

    if job.gib > device["gib"]:
        return end("skipped", f"needs {job.gib:g} GiB, the device has {device['gib']:.0f}")
    seconds = 0.0 if given.rehearse else job.seconds
    try:
        design = job.design(given.rehearse)
        store, dataset = slices.place(given.folder, job), slices.dataset_of(job, design)
        left = work(
            job,
            design,
            store,
            dataset,
            lambda whole: Allowance(given.until, seconds, whole),
            progress,
        )
    except RecordError:  # what cannot be written cannot be gone on with
        end("failed", "records cannot be written")
        raise
    except Exception as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        return end("failed", f"{type(error).__name__}: {error}"[:500], text)
    return end("left" if left else "done", left)


if __name__ == "__main__":
    threading.Thread(target=study.end_with, args=(os.getppid(),), daemon=True).start()
    sys.exit(main())
