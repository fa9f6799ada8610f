"""The log of a run: JSON lines, the only source of its plots and reports.

Each line is one object in strict JSON, complete or absent. Nothing is ever rewritten. A run that
goes back, after a kill or a spike, says so in a line; readers then leave out the superseded steps
but keep every event.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from umup.errors import TrainError

NAME = "log.jsonl"
COLUMNS = (
    "step",
    "time",
    "loss",
    "bits_per_byte",
    "grad_norm",
    "eta",
    "ok",
    "tokens_per_s",
    "mfu",
    "memory_gib",
)
"""Columns that every frame of steps has; a column without a measurement is all NaN."""

GOING_BACK = ("start", "resume", "rewind")
"""Events after which the steps at and after theirs are trained anew."""

_BLOCK = (
    50_000  # lines parsed at a time: one dictionary per line takes ten times the memory of a row
)
_log = logging.getLogger(__name__)


def log_path(path: Path | str) -> Path:
    """The log in a run's folder, or the path itself if it is the log."""
    path = Path(path)
    return path if path.name == NAME else path / NAME


def duration(seconds: float) -> str:
    """A duration in at most two units: '45 s', '12 min', '2 h 05 min', '3 d 04 h'."""
    if not math.isfinite(seconds):
        return "?"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02} h"


class Log:
    """The JSON-lines log of a run: append only.

    A line is ``{"event": ..., "step": ..., "time": unix seconds, ...}``. ``step`` is the number of
    an update, counted from 0; numbers that are not finite are the strings nan, inf and -inf. A
    partial line, left by a kill, is removed when the log is opened again.

    Args:
        folder: the run's folder; created if absent.
        main: whether this process writes; of several, the first does.
        clock: seconds since 1970.

    Raises:
        TrainError: the log cannot be opened or written, such as on a full disk.
    """

    def __init__(
        self, folder: Path | str, *, main: bool = True, clock: Callable[[], float] = time.time
    ):
        self.path, self.main, self._clock = Path(folder) / NAME, main, clock
        self._descriptor = -1
        if not main:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
            whole = _whole(self._descriptor)
            if whole < os.fstat(self._descriptor).st_size:
                os.ftruncate(self._descriptor, whole)
        except OSError as error:
            raise self._refusal(error) from error

    def append(self, event: str, step: int, **fields: Any) -> None:
        """Write one event, and sync it and everything before it to disk.

        Raises:
            TrainError: the log cannot be written, or not be synced to disk.
        """
        if not self.main:
            return
        self._write([{"event": event, "step": step, **fields}])
        try:
            os.fsync(self._descriptor)
        except OSError as error:  # a network's file system may say only now that it is full
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of a pipe, such as /dev/stdout
                raise self._refusal(error) from error

    def append_steps(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows of a chunk of steps, each with its ``step``, all at once."""
        if self.main:
            self._write([{"event": "step", **row} for row in rows])

    def rewind(self, step: int) -> None:
        """Log that training resumes at update ``step``; this supersedes its rows and later ones."""
        self.append("rewind", step)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        now = round(self._clock(), 3)
        texts = [json.dumps(_plain(line | {"time": now}), allow_nan=False) for line in lines]
        left = memoryview("".join(text + "\n" for text in texts).encode())
        try:
            end = os.fstat(self._descriptor).st_size
            try:
                while left:  # one write, but for a disk that fills up
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, end)
                raise
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> TrainError:
        todo = "a folder that can be written, on a disk with room; the same command then resumes"
        return TrainError(str(self.path), error.strerror or str(error), todo)


def _whole(descriptor: int) -> int:
    """Number of bytes of a file that are complete lines."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(end - 65536, 0)
        if (at := os.pread(descriptor, end - start, start).rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return 0


def _plain(value: Any) -> Any:
    """Strict JSON of NumPy values, dataclasses, paths and numbers that are not finite."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return str(value) if isinstance(value, Path) else value


def _restored(value: Any) -> Any:
    """The inverse of ``_plain`` for values that JSON cannot express."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    return [_restored(item) for item in value] if isinstance(value, list) else value


class Reader:
    """Reads a log that may still grow; each ``update`` parses only new lines.

    Attributes:
        frame: one row per step that was not superseded, by step; the columns are ``COLUMNS`` and
            any others that the run logged.
        events: everything else, in the order written, superseded or not.
        last: the last line read, or None.
        damaged: number of lines left out because they are not lines of a log.
    """

    def __init__(self, path: Path | str):
        self.path = log_path(path)
        self._restart()

    def _restart(self) -> None:
        self.frame, self.events, self.damaged = _frame([]), list[dict[str, Any]](), 0
        self.last: dict[str, Any] | None = None
        self._offset, self._block = 0, list[dict[str, Any]]()

    def update(self) -> Reader:
        """Read what was written since the last call.

        Raises:
            TrainError: there is no log to read.
        """
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._restart()  # another run's, begun anew in the same place
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):  # being written, or torn by a kill
                        break
                    self._offset += len(line)
                    self._take(line)
        except OSError as error:
            missing = error.strerror or str(error)
            raise TrainError(str(self.path), missing, "the log of a run of umup train") from error
        self._flush()
        return self

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            name, step = row["event"], row["step"]
            if not isinstance(name, str) or not isinstance(step, int):
                raise TypeError("event is not a string, or step not an integer")
        except (ValueError, KeyError, TypeError) as error:
            self.damaged += 1
            _log.warning("%s: left out a damaged line: %s", self.path.name, error)
            return
        self.last = row
        if name == "step":
            self._block.append(row)
            if len(self._block) == _BLOCK:
                self._flush()
            return
        self.events.append(_restored(row))
        if name in GOING_BACK:
            self._flush()
            self.frame = self.frame[self.frame["step"] < step]

    def _flush(self) -> None:
        if self._block:
            both = [part for part in (self.frame, _frame(self._block)) if len(part)]
            frame = pd.concat(both, ignore_index=True) if len(both) > 1 else both[0]
            frame = frame.drop_duplicates("step", keep="last")
            self.frame = frame.sort_values("step", ignore_index=True)
            self._block = []


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    raw = pd.DataFrame(rows)
    more = [name for name in raw.columns if name not in (*COLUMNS, "event")]
    absent = pd.Series(math.nan, index=raw.index, dtype=float)
    columns = {}
    for name in (*COLUMNS, *more):
        if name == "ok":
            columns[name] = raw[name].astype(bool) if name in raw else absent.isna()
        else:  # strings are numbers that are not finite
            numbers = pd.to_numeric(raw[name], errors="coerce") if name in raw else absent
            columns[name] = numbers.astype("int64" if name == "step" else "float64")
    return pd.DataFrame(columns)


def read(path: Path | str) -> pd.DataFrame:
    """The valid steps of a run: for each step, the row of the last time it was trained.

    Args:
        path: a run's folder, or its log.

    Returns:
        ``COLUMNS`` and any others logged. ``loss`` is in nats per token, ``grad_norm`` the
        global norm of the unscaled gradient, ``mfu`` a share, ``memory_gib`` the largest use of a
        device so far, ``ok`` whether the step was finite and applied.

    Raises:
        TrainError: there is no log.
    """
    return Reader(path).update().frame


def events(path: Path | str, name: str | None = None) -> list[dict[str, Any]]:
    """All events except steps, or those called ``name``, in the order written.

    Raises:
        TrainError: there is no log.
    """
    found = Reader(path).update().events
    return [event for event in found if name in (None, event["event"])]
