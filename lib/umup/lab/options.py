"""The options of ``umup run`` that distribute a study's missing work beyond this process."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from umup.checked import Config, Count, OneOf, Positive
from umup.command import Option
from umup.errors import ConfigError

SLURM_MINUTES = 60.0
"""Default time limit of a Slurm task."""
OURS = {
    *("account", "array", "cpus-per-task", "error", "gpus", "gpus-per-node", "gpus-per-task"),
    *("job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output"),
    *("partition", "requeue", "signal", "time", "wrap"),
}
"""sbatch options that have their own option here, or whose value the tasks depend on."""


@dataclass(frozen=True)
class Options(Config):
    """How missing work is distributed; each field has its own help text.

    By default there is one task per missing group of lanes or point, at most
    ``executor.MOST_TASKS``. A Slurm task has a limit of ``SLURM_MINUTES`` by default; it stops
    before its limit and is requeued. A task of this machine has no limit by default, and ends at a
    given one. One process uses one GPU; 0 hides all GPUs. In ``slurm``, the value ``true`` sets a
    flag.
    """

    executor: Annotated[
        str,
        OneOf("slurm", "local"),
        Option("one Slurm array, or processes of this machine", "slurm|local"),
    ]
    wait: Annotated[bool, Option("follow it, then execute the notebook")] = False
    tasks: Annotated[Count | None, Option("workers (default: as work needs)", "N")] = None
    minutes: Annotated[
        Positive | None,
        Option(f"time limit of a task (default on Slurm: {SLURM_MINUTES:g})", "MINUTES"),
    ] = None
    gpus: Annotated[int, OneOf(0, 1), Option("GPUs of a task", "0|1")] = 0
    at_once: Annotated[Count | None, Option("Slurm: most tasks that run at once", "N")] = None
    cpus: Annotated[Count | None, Option("Slurm: CPU cores of a task", "N")] = None
    partition: Annotated[str | None, Option("Slurm: where the tasks are queued", "NAME")] = None
    account: Annotated[str | None, Option("Slurm: whom they are charged to", "NAME")] = None
    slurm: Annotated[
        tuple[tuple[str, str], ...],
        Option("another sbatch option, such as qos high, or exclusive true", "NAME VALUE"),
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("at_once", "cpus", "partition", "account", "slurm"):
            if self.executor == "local" and (value := getattr(self, name)):
                raise ConfigError(name, value, "nothing, or --executor slurm")
        for name, value in self.slurm:
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
                allowed = "an sbatch option's long name without its dashes, such as qos"
                raise ConfigError("slurm", name, allowed)
            if name in OURS:
                raise ConfigError("slurm", name, "an option that umup run does not set itself")
            if not value or not value.isprintable():
                raise ConfigError("slurm", f"{name} {value}", "one line of text, or true")

    @property
    def limit(self) -> float:
        """Time limit of a task in seconds."""
        if self.minutes is None and self.executor == "local":
            return math.inf
        return 60 * (self.minutes or SLURM_MINUTES)

    @property
    def seconds(self) -> float:
        """Seconds after which a task stops, with its state on disk.

        The remaining time, a fifth of the limit but at most two minutes, is for the current chunk.
        """
        return self.limit - min(self.limit / 5, 120)
