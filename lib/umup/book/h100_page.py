"""The book's tables of GPU slices: what was measured when, and what is still only predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umup import slices
from umup.book.markdown import table
from umup.errors import DataError
from umup.plan import GIB, hardware, outlook
from umup.slices import h100, packs
from umup.text import significant


def page(experiments: Path) -> str:
    """Three tables in Markdown: the slices so far, the queue with what is missing, and predictions.

    Args:
        experiments: the folder of the studies.
    """
    jobs = slices.queue(experiments / slices.QUEUE)
    return "\n".join([done(packs.slices_so_far(experiments)), ahead(jobs), predicted()])


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


def predicted() -> str:
    """A row per step of the first jobs, as the planner predicts it on an H100."""
    machine = hardware.get("h100")
    rows = []
    for name, job in outlook.JOBS.items():
        o = outlook.outlook(job, machine)
        sizes = significant(o.state_bytes / GIB), significant(o.bytes / GIB)
        rows.append((name, significant(1e3 * o.seconds), significant(o.mfu, 2), o.limit, *sizes))
    header = ("Step", "ms", "MFU", "Waits mostly for", "State, GiB", "In all, GiB")
    return table(header, rows)
