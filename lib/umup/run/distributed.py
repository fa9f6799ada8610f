"""Several processes as one run: starting JAX's runtime, and sharing what one process observed."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np

from umup.errors import TrainError

LAUNCHERS = {"SLURM_NTASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}
"""Environment variable with the number of tasks → the command that starts them."""


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Join the other processes of this run, before anything else touches JAX's devices.

    Under Slurm or Open MPI with several tasks no argument is needed; elsewhere all three are. For
    a single process this does nothing.

    Args:
        coordinator: ``HOST:PORT`` of the first process.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        TrainError: only some of the three are given, or they are inconsistent; a launcher's
            variable is not a number, or counts tasks that were not started; JAX's runtime fails to
            start.
    """
    if coordinator or processes or process != -1:
        if not coordinator or processes < 1:
            given = {"coordinator": coordinator, "processes": processes, "process": process}
            raise TrainError("coordinator", given, "HOST:PORT with --processes and --process")
        if not 0 <= process < processes:
            raise TrainError("process", process, f"0 to {processes - 1}")
        allowed = "the address of process 0, which all the others can reach"
        _join("coordinator", coordinator, allowed, coordinator, processes, process)
        return
    several = [name for name in LAUNCHERS if _tasks(name) > 1]
    if several:
        name = several[-1]
        allowed = f"1, or `{LAUNCHERS[name]} umup train …`, which starts every task"
        # The shell of an allocation may itself be a step, of one task.
        if several == ["SLURM_NTASKS"] and os.environ.get("SLURM_STEP_NUM_TASKS") == "1":
            raise TrainError(name, os.environ[name], allowed)
        _join(name, os.environ[name], allowed)


def _tasks(name: str) -> int:
    """The number of tasks that a launcher's variable gives; 1 if it is not set."""
    value = os.environ.get(name, "").strip() or "1"
    if not (value.isascii() and value.isdigit()):
        raise TrainError(name, value, f"a number of tasks, as {LAUNCHERS[name]} sets it")
    return int(value)


def _join(field: str, received: str, allowed: str, *arguments: Any) -> None:
    try:
        jax.distributed.initialize(*arguments)
    except (ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainError(field, received, f"{allowed} ({why})") from None


def is_main() -> bool:
    """Whether this is the process that writes logs and holds the lock."""
    return jax.process_index() == 0


def any_of(flag: bool) -> bool:
    """Whether ``flag`` is set on any process; all processes must call it."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
