"""Several processes as one run: starting JAX's runtime, and agreeing on what one of them saw."""

from __future__ import annotations

import os

import jax
import numpy as np

from umup.errors import TrainError


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Join the other processes of this run, before anything else touches JAX's devices.

    Under Slurm or Open MPI with several tasks nothing need be given; elsewhere all three are. A
    single process does nothing.

    Args:
        coordinator: ``HOST:PORT`` of the first process.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        TrainError: only some of the three are given, or they do not fit.
    """
    if coordinator or processes or process >= 0:
        if not coordinator or processes < 1:
            given = {"coordinator": coordinator, "processes": processes, "process": process}
            raise TrainError("coordinator", given, "HOST:PORT with --processes and --process")
        if not 0 <= process < processes:
            raise TrainError("process", process, f"0 to {processes - 1}")
        jax.distributed.initialize(coordinator, processes, process)
    elif max(int(os.environ.get(n, "1")) for n in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")) > 1:
        jax.distributed.initialize()


def is_main() -> bool:
    """Whether this is the process that writes logs and holds the lock."""
    return jax.process_index() == 0


def any_of(flag: bool) -> bool:
    """Whether ``flag`` is set on any process; all must call it."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
