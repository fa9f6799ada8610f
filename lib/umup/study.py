"""One study end to end: parameters checked, missing runs trained, records returned.

A notebook needs two calls: ``settings(globals())`` turns its papermill parameters into a checked
configuration, ``run_or_load`` trains what the records lack and returns them as a table.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from umup import data
from umup.config import RunConfig
from umup.errors import StudyError
from umup.records import Store, current, provenance, stale
from umup.search import LRSweep
from umup.sweep import OutOfTime, Progress, Settings, run_pending

PLAIN = (int, float, str, bool, list, tuple, dict, type(None))
KERNEL_NAMES = {"In", "Out", "exit", "quit"}


def experiments_folder() -> Path:
    """The ``experiments`` folder: of the current folder or one above it, else of the checkout.

    Raises:
        StudyError: there is none.
    """
    cwd = Path.cwd().resolve()
    for base in (cwd, *cwd.parents, Path(__file__).resolve().parents[2]):
        if (base / "experiments").is_dir():
            return base / "experiments"
    raise StudyError("experiments", str(cwd), "a folder inside a checkout of umup")


def names() -> list[str]:
    """All studies, by name."""
    return sorted(path.parent.name for path in experiments_folder().glob("*/study.ipynb"))


def folder(study: str | Path) -> Path:
    """The study's folder; a path is taken as it is.

    Raises:
        StudyError: there is no such study.
    """
    if isinstance(study, Path):
        return study
    path = experiments_folder() / study
    if not (path / "study.ipynb").exists() and not (path / "study.py").exists():
        raise StudyError("study", study, _choices(study, names()))
    return path


def profiles(study: str | Path) -> list[str]:
    """The study's profiles: its parameter files."""
    return sorted(p.stem for p in folder(study).glob("*.yaml") if p.stem != "claims")


def parameters(study: str | Path, profile: str) -> dict[str, Any]:
    """The papermill parameters of a profile.

    Raises:
        StudyError: unknown profile, or a file that is not a mapping.
    """
    path = folder(study) / f"{profile}.yaml"
    if profile == "claims" or not path.exists():
        raise StudyError("profile", profile, _choices(profile, profiles(study)))
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise StudyError(str(path), str(error), "valid YAML") from None
    if not isinstance(found, dict):
        raise StudyError(str(path), found, "a mapping of parameter names to values")
    return found


def _choices(received: object, options: list[str]) -> str:
    close = difflib.get_close_matches(str(received), options, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"one of {', '.join(options)}{hint}"


def settings(namespace: Mapping[str, Any]) -> LRSweep:
    """The checked settings of a notebook, from its ``globals()``.

    Every plain value defined so far must be a parameter: papermill itself only warns of one that
    the notebook does not have, and the run would silently use the default.

    Raises:
        StudyError: a name that is no parameter.
        ConfigError: a value of the wrong type or out of range.
    """
    known = [field.name for field in fields(LRSweep)]
    found = {
        name: value
        for name, value in namespace.items()
        if isinstance(value, PLAIN) and not name.startswith("_") and name not in KERNEL_NAMES
    }
    for name, value in found.items():
        if name not in known:
            raise StudyError(name, value, _choices(name, known))
    return LRSweep.from_dict(found)


def store(study: str, profile: str) -> Store:
    """The committed records of a study's profile: ``experiments/STUDY/records/PROFILE``."""
    return Store(folder(study) / "records" / profile)


def run_or_load(study: str, sweep: LRSweep) -> pd.DataFrame:
    """The records of a study's profile, after training what is missing (mode ``run``).

    With ``sweep.fresh`` all runs are trained anew in a temporary store, which is how the smoke
    profile shows that the code works rather than that a file exists.

    Returns:
        One row a run, current numerics only, see ``records.COLUMNS``.

    Raises:
        StudyError: mode ``load`` and no records, or a worker failed.
        OutOfTime: the time limit passed; run the same command again to go on.
    """
    if sweep.fresh:
        with tempfile.TemporaryDirectory(prefix="umup-") as temporary:
            place = Store(temporary)
            _train(study, sweep, place)
            return current(place.read())
    place = store(study, sweep.profile)
    if sweep.mode == "run":
        _train(study, sweep, place)
    runs = current(place.read())
    if runs.empty:
        todo = f"records first: umup run {study} --profile {sweep.profile}"
        raise StudyError("records", str(place.folder.name), todo)
    return runs


def _train(study: str, sweep: LRSweep, place: Store) -> None:
    dataset = data.load(sweep.corpus, sweep.tokenizer, seq_len=sweep.seq_len)
    progress = Progress(place.folder / ".progress.log")
    todo = outlook(sweep, place.read(), dataset)
    if todo["missing"] == 0:
        return
    progress.line(
        f"{study} {sweep.profile}: {todo['done']} runs done, about {todo['missing']} to do, "
        f"about {todo['seconds_left'] / 60:.0f} min{' (assumed speed)' if todo['assumed'] else ''}"
    )
    if sweep.workers:
        _spawn(study, sweep, place, progress)
    else:
        work(study, sweep, place, progress)
    place.compact()


def work(study: str, sweep: LRSweep, place: Store, progress: Progress) -> None:
    """Train in this process until nothing is missing or the time limit passes."""
    dataset = data.load(sweep.corpus, sweep.tokenizer, seq_len=sweep.seq_len)
    provenance()  # the commit that this process runs, before anyone edits the checkout
    limit = sweep.time_limit_minutes * 60 or math.inf
    how = Settings(sweep.lanes, sweep.lanes_at_once, sweep.chunk_steps, time.monotonic() + limit)
    run_pending(
        lambda: sweep.pending(current(place.read()), dataset), dataset, place,
        study=study, profile=sweep.profile, settings=how, progress=progress,
    )  # fmt: skip


def _spawn(study: str, sweep: LRSweep, place: Store, progress: Progress) -> None:
    """Train in ``workers`` processes, each bound to one core: two narrow programs side by side
    use two cores better than one program split over both."""
    cores = sorted(os.sched_getaffinity(0))
    given = json.dumps(replace(sweep, workers=0).to_dict())
    with contextlib.ExitStack() as files:
        # A file, not a pipe: a pipe that nobody reads yet would stop a talkative worker.
        heard = [
            files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            for _ in range(sweep.workers)
        ]
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "umup.study", study, "--settings", given,
                 "--records", str(place.folder), "--core", str(cores[i % len(cores)])],
                stderr=None if progress.wanted() else file,
            )
            for i, file in enumerate(heard)
        ]  # fmt: skip
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


def outlook(sweep: LRSweep, runs: pd.DataFrame, dataset: data.Dataset) -> dict[str, Any]:
    """What is done and about what is left of a sweep.

    The plan is adaptive, so the rest is found by playing it out with made-up losses, a parabola
    around the best point so far; times come from the records where there are any like it.

    Returns:
        done, diverged, stale, missing (counts), seconds_left, and assumed (whether the time
        rests on ``assumed_tflops`` alone).
    """
    mine = current(runs)
    losses = dict(zip(mine["key"], mine["final_loss"], strict=True))
    best: dict[tuple, tuple[float, float]] = {}
    for row in mine[mine["status"] == "ok"].sort_values("final_loss").to_dict("records"):
        arm = (row["scheme"], row["d_model"], row["steps"])
        best.setdefault(arm, (math.log2(row["lr"]), row["final_loss"]))
    missing: list[RunConfig] = []
    while todo := sweep.pending(_played(losses), dataset):
        for run in todo:
            lo, hi = sweep.search(run.scheme).lo, sweep.search(run.scheme).hi
            arm = (run.scheme, run.model.d_model, run.optim.steps)
            center, lowest = best.get(arm, ((lo + hi) / 2, 1.0))
            losses[run.key()] = lowest + 0.1 * (math.log2(run.hps.eta) - center) ** 2
        missing += todo
    seconds, assumed = 0.0, True
    for run in missing:
        if len(mine):
            like = mine[(mine["d_model"] == run.model.d_model) & (mine["tokens_per_s"] > 0)]
            if len(like):
                tokens = run.optim.steps * run.optim.batch_size * run.model.seq_len
                speed = float(like["tokens_per_s"].median())
                seconds += tokens / speed / max(sweep.workers, 1)
                assumed = False
                continue
        seconds += sweep.missing_seconds([run])
    return {
        "done": len(mine), "diverged": int((mine["status"] == "diverged").sum()),
        "stale": len(stale(runs)), "missing": len(missing), "seconds_left": seconds,
        "assumed": assumed,
    }  # fmt: skip


def _played(losses: Mapping[str, float]) -> pd.DataFrame:
    return pd.DataFrame({"key": list(losses), "final_loss": list(losses.values())})


def status(study: str, profile: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``outlook`` of a profile's records, with the number of runs now in flight here."""
    given = LRSweep.from_dict(parameters(study, profile) | dict(overrides or {}))
    place = store(study, given.profile)
    dataset = data.load(given.corpus, given.tokenizer, seq_len=given.seq_len)
    return {
        "study": study, "profile": profile, **outlook(given, place.read(), dataset),
        "running": len(place.running()),
    }  # fmt: skip


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone, however it went: nothing trains unwatched."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


EXIT_OUT_OF_TIME = 75
"""Exit status of a command that stopped at its time limit (EX_TEMPFAIL: try again)."""


def main(argv: list[str] | None = None) -> int:
    """One worker process of ``run_or_load``; users call ``umup run``."""
    parser = argparse.ArgumentParser(prog="python -m umup.study", description=main.__doc__)
    parser.add_argument("study")
    parser.add_argument("--settings", required=True, help="the sweep's settings as JSON")
    parser.add_argument("--records", required=True, type=Path)
    parser.add_argument("--core", type=int, help="CPU core to run on")
    chosen = parser.parse_args(argv)
    if chosen.core is not None:
        os.sched_setaffinity(0, {chosen.core})  # before JAX counts its cores
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    place = Store(chosen.records)
    sweep = LRSweep.from_dict(json.loads(chosen.settings))
    try:
        work(chosen.study, sweep, place, Progress(place.folder / ".progress.log"))
    except OutOfTime:
        return EXIT_OUT_OF_TIME
    return 0


if __name__ == "__main__":
    sys.exit(main())
