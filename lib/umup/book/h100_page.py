"""The book's tables of GPU slices: what was measured when, and what is still only predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from umup import slices
from umup.book.markdown import table
from umup.config import ModelConfig, OptimConfig, RunConfig
from umup.errors import DataError
from umup.lab import study
from umup.lab.bench import Plan
from umup.lab.records import Results, read_results
from umup.lab.timing import CHANGES, PLAIN
from umup.plan import GIB, hardware, outlook
from umup.slices import h100, packs
from umup.text import significant

STUDIES = ("hopper", "throughput")
"""Whose steps the planner predicts."""


def page(experiments: Path) -> str:
    """Three tables: the slices so far, the queue with what is missing, and predicted steps.

    Args:
        experiments: the folder of the studies.
    """
    jobs = slices.queue(experiments / slices.QUEUE)
    so_far = done(packs.slices_so_far(experiments))
    return "\n".join([so_far, ahead(jobs), predicted(_timed(experiments))])


def whole(value: float) -> str:
    """A number without decimals."""
    return f"{value:,.0f}"


def done(log: Sequence[Mapping[str, Any]]) -> str:
    """A row per job of every slice: when, where, its outcome, predicted and actual time."""
    if not log:
        return "No slice has been run yet: nothing in this book was measured on a GPU.\n"
    rows = []
    for entry in log:
        date, where = entry["id"][:8], entry["where"]
        for job in entry["jobs"]:
            day = f"{date[:4]}-{date[4:6]}-{date[6:]}"
            state = f"{job['state']}{': ' + job['why'] if job['why'] else ''}"
            seconds = whole(job["predicted_s"]), whole(job["seconds"])
            rows.append((day, where["device"], where["jax"], job["job"], state, *seconds))
    header = ("Date", "Device", "jax", "Job", "State", "Predicted, s", "Took, s")
    return table(header, rows)


def ahead(jobs: Sequence[slices.Job]) -> str:
    """A row per job: what it decides, what is missing, its predicted seconds and price."""
    price = hardware.get("h100").usd_per_hour
    rows, left = [], 0.0
    for job in jobs:
        try:
            missing, total = h100.lacks(job, Path("none"))
        except DataError as error:  # a text that this machine lacks: the number is not known here
            unknown = f"not known here ({error.field})"
            rows.append((job.name, job.decides, unknown, whole(job.seconds)))
            left += job.seconds
            continue
        share = missing / max(total, 1)
        left += job.seconds * share
        seconds = whole(job.seconds * share) if missing else "–"
        rows.append((job.name, job.decides, f"{missing} of {total}", seconds))
    told = (
        f"All of it: at most {whole(left / 60)} minutes of an H100, {whole(left / 3600 * price)} "
        f"dollars at {significant(price)} per hour; what jobs share is made once.\n"
    )
    header = ("Job", "Decides", "Missing", "Predicted, s")
    return table(header, rows) + "\n" + told


def predicted(records: Results) -> str:
    """A row per step of the first jobs: predicted by the planner for an H100, and measured.

    Args:
        records: runs and points of profile ``h100`` of the studies that make those jobs.
    """
    machine, seen = hardware.get("h100"), step_times(records)
    rows = []
    for name, job in outlook.JOBS.items():
        o = outlook.outlook(job, machine)
        sizes = significant(o.state_bytes / GIB), significant(o.bytes / GIB)
        times = (f"{significant(ms)} ({device})" for device, ms in seen.get(name, {}).items())
        measured = "<br>".join(times) or "–"
        ms = significant(1e3 * o.seconds)
        rows.append((name, ms, measured, significant(o.mfu, 2), o.limit, *sizes))
    header = ("Step", "Predicted, ms", "Measured, ms", "MFU", "Waits mostly for")
    return table((*header, "State, GiB", "In all, GiB"), rows)


def step_times(records: Results) -> dict[str, dict[str, float]]:
    """Name of a job of ``outlook.JOBS`` → device → median ms of its step, where it was measured."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in records.runs[records.runs["status"] == "ok"].to_dict("records"):
        run = RunConfig.from_dict(json.loads(row["spec"]))
        tokens = run.optim.batch_size * run.model.seq_len
        for name in _jobs_of(run.model, run.optim):
            found.setdefault((name, row["device"]), []).append(1e3 * tokens / row["tokens_per_s"])
    for row in records.points[records.points["what"] == "step"].to_dict("records"):
        spec, result = json.loads(row["spec"]), json.loads(row["result"])
        plan = Plan.from_dict({**spec["shape"], "torch": False})
        plain = plan.run(plan.model(spec["width"], n_layers=spec["n_layers"], unroll=0))
        for side, times in result["ms"].items():
            change = PLAIN if side == "umup" else CHANGES.get(side)
            if change is None:  # PyTorch's
                continue
            model = replace(plain.model, **change.model)
            for name in _jobs_of(model, plain.optim):
                found.setdefault((name, row["device"]), []).extend(times)
    medians: dict[str, dict[str, float]] = {}
    for (name, device), times in found.items():
        medians.setdefault(name, {})[device] = float(np.median(times))
    return medians


def _jobs_of(model: ModelConfig, optim: OptimConfig) -> list[str]:
    """The jobs, of one lane, whose step has this shape."""
    shapes = {n: job for n, job in outlook.JOBS.items() if job.lanes == 1}
    same = optim.batch_size
    return [n for n, j in shapes.items() if j.model == model and j.optim.batch_size == same]


def _timed(experiments: Path) -> Results:
    """What the studies of steps have on record under profile ``h100``."""
    stores = [study.store(experiments / name, slices.PROFILE) for name in STUDIES]
    both = [read_results(store) for store in stores]
    return Results(*(pd.concat(tables, ignore_index=True) for tables in zip(*both, strict=True)))
