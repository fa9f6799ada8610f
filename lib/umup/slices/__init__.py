"""Slices of GPU time: one queue of jobs, processed in order, a few minutes at a time.

A *job* is a part of a study's ``h100`` profile: the profile with fewer values. ``QUEUE`` lists the
jobs, the most evidence per second first. A slice asks the studies what the jobs still lack, makes
as much of it as time allows, and packs the new rows; ``merge`` adds a pack to the records. Nothing
on record is made again, so that the next slice continues where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from umup import data
from umup.checked import Config, CountOrZero, OneOf, Positive, PositiveOrZero
from umup.config import RunConfig
from umup.errors import ConfigError, StudyError
from umup.lab import folders, study
from umup.lab.design import Design, Point
from umup.lab.records import Store
from umup.yaml_reader import read_yaml_file

PROFILE = "h100"
QUEUE = "queue.yaml"
"""File of the jobs, in the folder of the studies."""


@dataclass(frozen=True)
class Job(Config):
    """A part of a study's ``h100`` profile that a slice makes as a unit."""

    name: str
    """Name of the job."""
    study: str
    """The study that it is a part of."""
    decides: str
    """What its result decides, in a few words."""
    kind: Annotated[str, OneOf("points", "runs")]
    """The measurements of the profile that it makes."""
    seconds: Positive
    """Predicted time of the whole job on an H100, compilation included."""
    gib: PositiveOrZero = 8.0
    """Device memory that it needs."""
    in_turn: CountOrZero = 0
    """Number of runs that advance in turn, see ``turns``; 0 finishes one group after another."""
    parameters: dict = field(default_factory=dict)
    """Restricted parameters of the profile: fewer widths, seeds or the like."""
    rehearse: dict = field(default_factory=dict)
    """The same for the study's smoke profile, which a rehearsal runs instead."""

    def design(self, rehearsal: bool = False) -> Design:
        """The parameters of the study that this job makes, recorded under ``PROFILE``.

        Raises:
            StudyError: there is no such study or profile.
            ConfigError: a parameter that the study does not have, or out of range.
        """
        profile, changes = ("smoke", self.rehearse) if rehearsal else (PROFILE, self.parameters)
        ours = {"profile": PROFILE, "mode": "run", "fresh": False, "workers": 0}
        given = study.parameters(self.study, profile) | changes | ours | {"time_limit_minutes": 0.0}
        try:
            return study.design_of(self.study).from_dict(given)
        except ConfigError as error:
            place = f"{QUEUE}: {self.name}.{error.field}"
            raise ConfigError(place, error.received, error.allowed) from None


def queue(path: Path | None = None) -> list[Job]:
    """The jobs, in order.

    Raises:
        StudyError: no list of jobs, two of one name, or a job that is malformed.
    """
    path = path or folders.experiments_folder() / QUEUE
    found = read_yaml_file(path, StudyError)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise StudyError(str(path), found, "a list of jobs, each a mapping")
    jobs = []
    for number, item in enumerate(found, 1):
        try:
            jobs.append(Job.from_dict(item))
        except ConfigError as error:
            name = item.get("name", number)
            raise StudyError(
                f"{path}: {name}.{error.field}", error.received, error.allowed
            ) from None
    names = [job.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(str(path), twice[0], "every name once")
    return jobs


def chosen(jobs: Sequence[Job], only: Sequence[str]) -> list[Job]:
    """The jobs with these names; all jobs if there are none.

    Raises:
        StudyError: no job has such a name.
    """
    names = [job.name for job in jobs]
    for name in only:
        if name not in names:
            raise StudyError("--only", name, f"of {', '.join(names)}")
    return [job for job in jobs if not only or job.name in only]


def place(folder: Path, job: Job) -> Store:
    """The store of a job's rows: one of the slice, on top of the study's committed records."""
    return Store(folder / job.study, beneath=study.store(job.study, PROFILE))


@dataclass(frozen=True)
class Todo:
    """What a job lacks.

    Args:
        points, runs: that are missing; for an adaptive design, the runs it is expected to want.
        total: number of those on record and missing.
    """

    points: list[Point]
    runs: list[RunConfig]
    total: int

    def __len__(self) -> int:
        return len(self.points) + len(self.runs)


def todo(job: Job, design: Design, store: Store, dataset: data.Dataset | None) -> Todo:
    """What ``job`` still lacks, given what is on record."""
    if job.kind == "points":
        return Todo(study.missing_points(design, store.points), [], len(design.points()))
    if dataset is None:
        return Todo([], [], 0)
    missing = study.missing_runs(design, store.read(), dataset)
    whole = study.missing_runs(design, store.schema.arrow.empty_table().to_pandas(), dataset)
    return Todo([], missing, max(len(whole), len(missing)))


def dataset_of(job: Job, design: Design) -> data.Dataset | None:
    """The data set of a job's runs."""
    return study.dataset_of(design) if job.kind == "runs" else None
