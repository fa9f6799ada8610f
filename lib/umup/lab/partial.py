"""The state of a sweep's group between two chunks, from which a killed sweep resumes."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from umup import files
from umup.checked import digest
from umup.config import RunConfig
from umup.errors import RecordError

log = logging.getLogger("umup.lab.sweep")


class Partial:
    """The state of a group between chunks: one file, replaced atomically.

    Args:
        path: the file; its name contains the digest of the group's keys, so that a state is never
            used for another group.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def of(cls, runs: Sequence[RunConfig], folder: Path) -> Self:
        """The state of the group of ``runs`` beside the records in ``folder``."""
        return cls(folder / ".partial" / f"{digest([run.key() for run in runs])}.npz")

    def save(
        self, leaves: list, losses: np.ndarray, wall: float, seen: Sequence[np.ndarray] = ()
    ) -> None:
        """Write state leaves, losses (lanes, steps), the seconds spent and the probes' reports.

        Raises:
            RecordError: the disk is full or cannot be written; the previous state is kept.
        """
        buffer = io.BytesIO()
        arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        arrays |= {"losses": losses, "wall": np.asarray(wall), "seen": np.asarray(seen)}
        np.savez(buffer, allow_pickle=False, **arrays)
        intact = "the records and the state saved before are intact"
        with files.writing(self.path, RecordError, intact), files.atomic_write(self.path) as file:
            file.write(buffer.getbuffer())

    def load(self, like: list) -> tuple[list, np.ndarray, float, list[np.ndarray]] | None:
        """The saved state, or None if there is none that fits ``like``'s shapes."""
        if not self.path.exists():
            return None
        try:
            with np.load(io.BytesIO(self.path.read_bytes())) as saved:
                leaves = [saved[f"leaf{i}"] for i in range(len(like))]
                losses, wall, seen = saved["losses"], float(saved["wall"]), list(saved["seen"])
        except Exception as error:  # a foreign or damaged file costs a restart, never a wrong run
            log.warning("ignoring the partial state %s: %s", self.path.name, error)
            return None
        if [(x.shape, x.dtype) for x in leaves] != [(x.shape, x.dtype) for x in like]:
            log.warning("ignoring the partial state %s: other shapes", self.path.name)
            return None
        return leaves, losses, wall, seen
