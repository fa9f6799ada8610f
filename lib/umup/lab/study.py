"""A study from end to end: check its parameters, train missing runs, return its records.

A notebook needs two calls: ``settings(NAME, globals())`` turns its papermill parameters into a
checked design, ``run_or_load`` makes what the records lack and returns them.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from umup import data, machine
from umup.config import RunConfig
from umup.errors import StudyError, memory_for
from umup.lab import notebook
from umup.lab.design import Design, Point
from umup.lab.folders import choices, code, folder
from umup.lab.notebook import PLAIN
from umup.lab.records import (
    UNFINISHED,
    Results,
    Store,
    current,
    provenance,
    read_results,
    refuse_changes,
    stale,
)
from umup.lab.sweep import OutOfTime, Settings, run_pending
from umup.terminal import Progress
from umup.yaml_reader import read_yaml_file

KERNEL_NAMES = {"In", "Out", "exit", "quit"}


def profiles(study: str | Path) -> list[str]:
    """The study's profiles: the one of its notebook, and those of its parameter files."""
    own = notebook.parameters(folder(study) / "study.ipynb").get("profile")
    stems = {path.stem for path in folder(study).glob("*.yaml")} - {"claims"}
    return sorted(stems | ({own} if own else set()))


def parameters(study: str | Path, profile: str) -> dict[str, Any]:
    """The papermill parameters of a profile: the notebook's, overridden by those of its file.

    The notebook's own profile needs no file. Mode is ``run`` unless the file says otherwise.

    Raises:
        StudyError: an unknown profile, or a file that is not a mapping, or of another profile.
    """
    if profile not in (known := profiles(study)):
        raise StudyError("profile", profile, choices(profile, known))
    path = folder(study) / f"{profile}.yaml"
    found = read_yaml_file(path, StudyError) if path.exists() else None
    if not isinstance(found, dict | None):
        raise StudyError(str(path), found, "a mapping of parameter names to values")
    found = found or {}
    if found.get("profile", profile) != profile:  # it would write into the other one's records
        raise StudyError(f"{path}: profile", found["profile"], f"{profile}, as the file is named")
    own = notebook.parameters(folder(study) / "study.ipynb")
    return own | {"profile": profile, "mode": "run"} | found


def design_of(study: str | Path) -> type[Design]:
    """The class of the study's parameters: the ``DESIGN`` of its ``design.py``.

    Raises:
        StudyError: there is no such study, or its code has none.
    """
    if (design := code(study).find("design")) is None:
        raise StudyError("study", str(study), f"one with a {folder(study) / 'design.py'}")
    return design.DESIGN


def _name(study: str | Path) -> str:
    return study.name if isinstance(study, Path) else study


def settings(study: str | Path, namespace: Mapping[str, Any]) -> Any:
    """The checked design of a notebook, from its ``globals()``.

    Every plain value defined so far must be a parameter: papermill only warns of one that the
    notebook does not have, and the run would silently use the default.

    Raises:
        StudyError: a name that is not a parameter.
        ConfigError: a value of the wrong type or out of range.
    """
    design = design_of(study)
    known = [field.name for field in fields(design)]
    found = {
        name: value
        for name, value in namespace.items()
        if isinstance(value, PLAIN) and not name.startswith("_") and name not in KERNEL_NAMES
    }
    for name, value in found.items():
        if name not in known:
            raise StudyError(name, value, choices(name, known))
    return design.from_dict(found)


def store(study: str | Path, profile: str) -> Store:
    """The committed records of a study's profile: ``experiments/STUDY/records/PROFILE``."""
    return Store(folder(study) / "records" / profile)


def run_or_load(study: str | Path, design: Design) -> Results:
    """The records of a study's profile; in mode ``run``, missing ones are made first.

    With ``design.fresh`` everything is made again in a temporary store, so that the smoke profile
    shows that the code works rather than that a file exists.

    Returns:
        Runs and points of the current numerics. In mode ``load`` there may be none: then a line is
        printed, and the study's page shows everything as not measured.

    Raises:
        StudyError: a worker failed.
        OutOfTime: the time limit passed; run the same command again to go on.
    """
    if design.fresh:
        with tempfile.TemporaryDirectory(prefix="umup-") as temporary:
            place = Store(temporary)
            make(study, design, place)
            return read_results(place)
    place = store(study, design.profile)
    if design.mode == "run":
        refuse_changes()
        make(study, design, place)
    results = read_results(place)
    if results.runs.empty and results.points.empty:
        command = f"umup run {_name(study)} --profile {design.profile}"
        print(f"Nothing is on record for the profile {design.profile}: `{command}` measures it.")
    return results


def recorded(study: str | Path, profile: str) -> Results:
    """The committed records of a profile of the study beside the one that its page is of."""
    return read_results(store(study, profile))


def dataset_of(design: Design) -> data.Dataset | None:
    """The text of the design's training runs, if it has any."""
    if not design.trains:
        return None
    seq_len = getattr(design, "seq_len", None)
    return data.load(design.corpus, design.tokenizer, seq_len=seq_len)


def make(study: str | Path, design: Design, place: Store) -> None:
    """Make what the design wants and the store ``place`` lacks, in ``design.workers`` processes.

    Raises:
        StudyError: a worker failed.
        OutOfTime: the time limit passed; the same call resumes.
    """
    progress = Progress(place.folder / ".progress.log")
    todo = outlook(design, place, dataset_of(design))
    if todo["missing"] == 0:
        return
    progress.line(
        f"{_name(study)} {design.profile}: {todo['done']} done, about {todo['missing']} to do, "
        f"about {todo['seconds_left'] / 60:.0f} min{' (assumed speed)' if todo['assumed'] else ''}"
    )
    if design.workers:
        _spawn(study, design, place, progress)
    else:
        work(study, design, place, progress)
    place.compact()
    place.points.compact()


def work(
    study: str | Path, design: Design, place: Store, progress: Progress, *, wait: bool = True
) -> None:
    """Work in this process until nothing is missing or the time limit passes.

    Args:
        wait: whether to wait while other processes have everything missing in flight, or to end.

    Raises:
        OutOfTime: the time limit passed; run the same command again to go on.
    """
    provenance()  # the commit that this process runs, before anyone edits the checkout
    deadline = time.monotonic() + (design.time_limit_minutes * 60 or math.inf)
    measure(study, design, place.points, progress, deadline)
    if (dataset := dataset_of(design)) is None:
        return
    how = Settings(design.lanes, design.lanes_at_once, design.chunk_steps, deadline)

    def pending() -> list[RunConfig]:
        runs = design.pending(current(place.read()), dataset)
        elsewhere = set() if wait else place.running()
        return [run for run in runs if run.key() not in elsewhere]

    run_pending(
        pending,
        dataset,
        place,
        study=_name(study),
        profile=design.profile,
        settings=how,
        progress=progress,
    )


def measure(
    study: str | Path,
    design: Design,
    place: Store,
    progress: Progress,
    deadline: float = math.inf,
    fits: Callable[[Point], bool] = lambda point: True,
) -> None:
    """Make the design's missing points; each is recorded when it is done.

    A point that another process has in flight is left to it; one that does not fit is skipped.

    Raises:
        StudyError: the study's module has no such measurement, or one with other arguments; raised
            before anything is measured.
        OutOfTime: the deadline passed after a point.
    """
    missing = missing_points(design, place)
    functions = [_measuring(study, point) for point in missing]
    for number, (point, function) in enumerate(zip(missing, functions, strict=True), 1):
        if not fits(point):
            continue
        with place.claim(point.key()) as mine:
            if not mine:
                continue
            began = time.perf_counter()
            with memory_for(point.what, dict(point.spec), "smaller sizes, or a larger machine"):
                result = function(**point.spec)
            seconds = time.perf_counter() - began
            place.append([point.row(_name(study), design.profile, result, seconds)])
        spec = ", ".join(f"{name}={value}" for name, value in point.spec.items())
        progress.line(f"{point.what} {number}/{len(missing)} in {seconds:.1f} s: {spec}"[:200])
        if time.monotonic() > deadline:
            raise OutOfTime


def missing_points(design: Design, place: Store) -> list[Point]:
    """The design's points that are not on record with the present numerics."""
    points = design.points()
    done = place.keys() if points else set()
    return [point for point in points if point.key() not in done]


def _measuring(study: str | Path, point: Point) -> Callable[..., Mapping[str, Any]]:
    measures = code(study).find("measures")
    known = {} if measures is None else measures.MEASURES
    if point.what not in known:
        raise StudyError("what", point.what, choices(point.what, list(known)))
    function = known[point.what]
    try:
        inspect.signature(function).bind(**point.spec)
    except TypeError as error:
        allowed = f"{point.what}{inspect.signature(function)} ({error})"
        raise StudyError("spec", dict(point.spec), allowed) from None
    return function


def _spawn(study: str | Path, design: Design, place: Store, progress: Progress) -> None:
    """Work in ``workers`` processes, each bound to one core if possible: two narrow programs use
    two cores better than one program split over both."""
    bound = [["--core", str(core)] for core in machine.core_numbers()] or [[]]
    given = json.dumps(replace(design, workers=0).to_dict())
    with contextlib.ExitStack() as opened:
        # A file, not a pipe: a pipe that nobody reads yet would stop a talkative worker.
        heard = [
            opened.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            for _ in range(design.workers)
        ]
        children = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "umup.lab.study",
                    _name(study),
                    "--settings",
                    given,
                    "--records",
                    str(place.folder),
                    *bound[i % len(bound)],
                ],
                stderr=None if progress.wanted() else file,
            )
            for i, file in enumerate(heard)
        ]
        try:
            codes = [child.wait() for child in children]
        finally:
            for child in children:
                if child.poll() is None:
                    child.terminate()
        for file, code in zip(heard, codes, strict=True):
            if code in (0, EXIT_OUT_OF_TIME):
                continue
            file.seek(0)
            last = file.read().strip().splitlines()[-1:] or [f"exit status {code}"]
            raise StudyError("worker", last[0], f"a worker that ends well; see {progress.log_file}")
    if EXIT_OUT_OF_TIME in codes:
        raise OutOfTime


def outlook(design: Design, place: Store, dataset: data.Dataset | None) -> dict[str, Any]:
    """What is done, and an estimate of what is left, of a study.

    What is left of an adaptive design is found by simulating it with guessed losses; times come
    from similar records, if there are any.

    Returns:
        done, diverged, stale, missing (counts of runs and points), seconds_left, and assumed
        (whether the time rests on assumed speeds alone).
    """
    runs, points = place.read(), place.points.read()
    points = points[points["what"] != UNFINISHED]
    mine = current(runs)
    missing = missing_runs(design, mine, dataset) if dataset is not None else []
    seconds, assumed = 0.0, True
    for run in missing:
        like = mine[(mine["d_model"] == run.model.d_model) & (mine["tokens_per_s"] > 0)]
        if len(like):
            tokens = run.optim.steps * run.optim.batch_size * run.model.seq_len
            speed = float(like["tokens_per_s"].median())
            seconds += tokens / speed / max(design.workers, 1)
            assumed = False
        else:
            seconds += design.missing_seconds([run])
    todo_points = missing_points(design, place.points)
    if todo_points:
        each = float(points["wall_s"].mean()) if len(points) else design.point_seconds
        assumed &= points.empty
        seconds += len(todo_points) * each / max(design.workers, 1)
    return {
        "done": len(mine) + len(current(points)),
        "diverged": int((mine["status"] == "diverged").sum()),
        "stale": len(stale(runs)) + len(stale(points)),
        "missing": len(missing) + len(todo_points),
        "seconds_left": seconds,
        "assumed": assumed,
    }


def missing_runs(design: Design, runs: pd.DataFrame, dataset: data.Dataset) -> list[RunConfig]:
    """The runs that the design would still request, simulated with its guessed losses."""
    mine = current(runs)
    losses = dict(zip(mine["key"], mine["final_loss"], strict=True))
    missing: list[RunConfig] = []
    while asked := design.pending(
        pd.DataFrame({"key": list(losses), "final_loss": list(losses.values())}), dataset
    ):
        losses |= {run.key(): design.guess(run, mine) for run in asked}
        missing += asked
    return missing


def status(study: str, profile: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``outlook`` of a profile's records, with the number of runs now in flight here."""
    given = design_of(study).from_dict(parameters(study, profile) | dict(overrides or {}))
    place = store(study, given.profile)
    return {
        "study": _name(study),
        "profile": profile,
        **outlook(given, place, dataset_of(given)),
        "running": len(place.running() | place.points.running()),
    }


def end_with(parent: int) -> None:
    """End this worker when its parent has ended, for whatever reason."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


EXIT_OUT_OF_TIME = 75
"""Exit status of a command that stopped at its time limit (EX_TEMPFAIL: try again)."""


def main(argv: list[str] | None = None) -> int:
    """One worker process of ``run_or_load``; users call ``umup run``."""
    parser = argparse.ArgumentParser(prog="python -m umup.lab.study", description=main.__doc__)
    parser.add_argument("study")
    parser.add_argument("--settings", required=True, help="the design as JSON")
    parser.add_argument("--records", required=True, type=Path)
    parser.add_argument("--core", type=int, help="CPU core to run on")
    chosen = parser.parse_args(argv)
    if chosen.core is not None:
        machine.bind(chosen.core)  # before JAX counts its cores
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    place = Store(chosen.records)
    design = design_of(chosen.study).from_dict(json.loads(chosen.settings))
    try:
        work(chosen.study, design, place, Progress(place.folder / ".progress.log"))
    except OutOfTime:
        return EXIT_OUT_OF_TIME
    return 0


if __name__ == "__main__":
    sys.exit(main())
