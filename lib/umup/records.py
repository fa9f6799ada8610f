"""Records: one row a training run or other measurement, in Parquet shards that are never edited.

A store is a folder of shards. Every append is a new shard, put in place by one atomic rename, so
any number of processes may write at once, and a killed one leaves at most an ignored temporary
file. `.locks/KEY.lock` is held (flock) while a process runs the point KEY; `.damaged/` keeps the
shards that `repair` moved aside.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from umup.config import NUMERICS, PROBE_STATS
from umup.errors import RecordError
from umup.schemas import POINTS, RUNS, SCHEMA, Schema, check_key

_counter = itertools.count()


class Store:
    """The records of one study and profile: a folder of immutable shards.

    Args:
        folder: where the shards are; created by the first write.
        schema: the kind of record; `points` is the store of the other kind, inside this one.
    """

    def __init__(self, folder: str | os.PathLike[str], schema: Schema = RUNS):
        self.folder = Path(folder)
        self.schema = schema
        self._shard_keys: dict[str, frozenset[str]] = {}  # shards never change: read each once

    @functools.cached_property
    def points(self) -> Store:
        """The points recorded beside these runs."""
        return Store(self.folder / "points", POINTS)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> Path | None:
        """Write `rows` as one new shard, atomically, and return its path (None for no rows).

        When it returns, the rows are on disk; when it raises or is killed, none of them is seen,
        and earlier shards are untouched.

        Raises:
            RecordError: a malformed row, or a disk that is full, read-only or not writable.
        """
        checked = [self.schema.validate(row) for row in rows]
        if not checked:
            return None
        table = pa.Table.from_pylist(checked, schema=self.schema.arrow)
        with self._store_lock(fcntl.LOCK_SH):
            return self._write(table)

    def read(self) -> pd.DataFrame:
        """All rows, one a key (of duplicates the earliest `created`), in a fixed order.

        Raises:
            RecordError: a shard is cut short or of another schema; nothing is dropped in silence.
        """
        return self._table().to_pandas()

    def keys(self) -> set[str]:
        """The keys on record. Raises RecordError on a damaged shard, as `read` does."""
        while True:
            shards = self._shards()
            try:
                for shard in shards:
                    if shard.name not in self._shard_keys:
                        column = self._read_shard(shard).column("key").to_pylist()
                        self._shard_keys[shard.name] = frozenset(column)
            except FileNotFoundError:
                continue  # compacted between listing and opening: list again
            return set().union(*(self._shard_keys[shard.name] for shard in shards))

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Claim the point `key`: yields True to the one process that should run it now.

        False means another process (or this one, elsewhere) holds it, or it is on record already.
        The claim is an flock: the kernel drops it when the process dies, however it dies. Append
        the row inside the `with`.
        """
        check_key(key)
        lock = self.folder / ".locks" / f"{key}.lock"
        descriptor = _try_lock(lock)
        try:
            yield descriptor is not None and key not in self.keys()
        finally:
            if descriptor is not None:
                lock.unlink(missing_ok=True)  # while held; _try_lock re-checks the inode
                os.close(descriptor)

    def running(self) -> set[str]:
        """The keys that live processes hold a claim on at this moment (on this machine)."""
        held = set()
        for lock in sorted((self.folder / ".locks").glob("*.lock")):
            with contextlib.suppress(FileNotFoundError, PermissionError), lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.add(lock.stem)
        return held

    def compact(self) -> Path | None:
        """Merge all shards into one and return it (None when there are none).

        The merged shard is in place before the old ones go, so being killed at any moment leaves
        duplicates at worst, which `read` removes. Rows that others append meanwhile stay.
        """
        with self._store_lock(fcntl.LOCK_EX):
            for stray in self.folder.glob(".*.tmp"):  # no writer is active under this lock
                stray.unlink(missing_ok=True)
            shards = self._shards()
            if len(shards) < 2:
                return shards[0] if shards else None
            merged = self._write(self._table())
            for shard in shards:
                shard.unlink()
            return merged

    def repair(self) -> list[Path]:
        """Move unreadable shards to `.damaged/` and return their new paths.

        The points they held count as missing afterwards, so the next run measures them again.
        """
        moved = []
        with self._store_lock(fcntl.LOCK_EX):
            for shard in self._shards():
                try:
                    self._read_shard(shard)
                except RecordError:
                    target = self.folder / ".damaged" / shard.name
                    with _writing(target):
                        target.parent.mkdir(exist_ok=True)
                        shard.replace(target)
                    moved.append(target)
        return moved

    def _shards(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("*.parquet") if not p.name.startswith("."))

    def _table(self) -> pa.Table:
        while True:
            try:
                tables = [self._read_shard(shard) for shard in self._shards()]
                break
            except FileNotFoundError:
                continue  # compacted between listing and opening: list again
        table = pa.concat_tables([self.schema.arrow.empty_table(), *tables])
        table = table.sort_by([("created", "ascending"), ("key", "ascending")])
        first = ~pd.Series(table.column("key").to_pylist(), dtype=object).duplicated()
        return table.filter(pa.array(first)).sort_by([(c, "ascending") for c in self.schema.sort])

    def _write(self, table: pa.Table) -> Path:
        keys = "\n".join(sorted(table.column("key").to_pylist()))
        stem = f"{hashlib.sha256(keys.encode()).hexdigest()[:12]}-{os.getpid()}"
        names = (self.folder / f"{stem}-{i}.parquet" for i in _counter)
        shard = next(path for path in names if not path.exists())  # process ids recur
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        temporary = self.folder / f".{shard.name}.tmp"
        with _writing(shard):
            try:
                with temporary.open("xb") as file:
                    file.write(buffer.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, shard)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            with contextlib.suppress(OSError):  # the rename, too, where the file system lets us
                descriptor = os.open(self.folder, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        return shard

    def _read_shard(self, path: Path) -> pa.Table:
        todo = "a whole shard of this version; `umup status --repair` moves it to .damaged/"
        data = path.read_bytes()
        try:
            table = self.schema.upgrade(pq.ParquetFile(io.BytesIO(data)).read())
        except (pa.ArrowException, OSError) as error:
            raise RecordError(str(path), f"unreadable Parquet ({error})", todo) from error
        wanted = self.schema.arrow
        if not table.schema.equals(wanted, check_metadata=False):
            differing = set(table.schema.names) ^ set(wanted.names) or {
                f.name for f in table.schema if f.type != wanted.field(f.name).type
            }
            listed = ", ".join(sorted(differing)) or "column order"
            raise RecordError(str(path), f"another schema (differs in {listed})", todo)
        if versions := set(table.column("schema").to_pylist()) - {SCHEMA}:
            raise RecordError(str(path), f"schema {sorted(versions, key=str)}", todo)
        return table

    @contextlib.contextmanager
    def _store_lock(self, mode: int) -> Iterator[None]:
        """Writers share the store; `compact` and `repair` have it alone."""
        path = self.folder / ".locks" / "store"
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, mode)
            yield
        finally:
            os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor of `path` with its flock, or None when another holds that."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in itertools.count():
        with _writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have unlinked the file between our open and our lock.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            if attempt:
                os.close(descriptor)
                return None
            time.sleep(0.01)  # `running` may have been looking: it lets go at once
        except FileNotFoundError:
            pass  # unlinked between the two looks
        os.close(descriptor)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a failed write into a RecordError that says why and what to do."""
    reasons = {
        errno.ENOSPC: "free some disk space and run the same command again",
        errno.EDQUOT: "free some of your disk quota and run the same command again",
        errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "no permission to write: choose another folder or change its mode",
    }
    try:
        yield
    except OSError as error:
        todo = reasons.get(error.errno or 0, "a writable folder")
        raise RecordError(
            str(path), f"write failed: {error.strerror}", f"{todo}; earlier records are intact"
        ) from error


class Results(NamedTuple):
    """The current records of a study's profile.

    Attributes:
        runs: one row a training run, see ``schemas.RUNS``.
        points: one row another measurement, see ``schemas.POINTS``; ``table`` opens them.
    """

    runs: pd.DataFrame
    points: pd.DataFrame

    def table(self, what: str) -> pd.DataFrame:
        """The points of one kind, a column for every field of specification and result.

        Fields that a point does not have are NaN; without such points the table is empty.
        """
        rows = self.points[self.points["what"] == what]
        return pd.DataFrame(
            [json.loads(spec) | json.loads(result)
             for spec, result in zip(rows["spec"], rows["result"], strict=True)]
        )  # fmt: skip


def read_results(store: Store) -> Results:
    """Runs and points of a store, those of the present numerics."""
    return Results(current(store.read()), current(store.points.read()))


def with_spec(runs: pd.DataFrame) -> pd.DataFrame:
    """``runs`` with a column for every field of their specification.

    Named by their place in ``RunConfig``: ``model.tau_convention``, ``hps.alpha_residual``,
    ``optim.batch_size``. Fields that an older record does not have are NaN.
    """
    specs = pd.json_normalize([json.loads(spec) for spec in runs["spec"]])
    specs = specs[[name for name in specs.columns if "." in name]].set_axis(runs.index)
    return pd.concat([runs, specs], axis=1)


def probes(runs: pd.DataFrame) -> pd.DataFrame:
    """What the probes of ``runs`` saw.

    Columns: key, step, tensor, and the statistics of ``config.PROBE_STATS``: RMS, mean, largest
    magnitude, and the shares of elements that E4M3 and E5M2 would clip or flush to zero.
    """
    frames = []
    for row in runs.itertuples():
        steps, tensors = np.asarray(row.probe_steps), np.asarray(row.probe_tensors, object)
        if not len(steps):
            continue
        values = np.asarray(row.probe_values).reshape(-1, len(PROBE_STATS))
        labels = {
            "key": row.key, "step": np.repeat(steps, len(tensors)),
            "tensor": np.tile(tensors, len(steps)),
        }  # fmt: skip
        columns = {name: values[:, i] for i, name in enumerate(PROBE_STATS)}
        frames.append(pd.DataFrame(labels | columns))
    if not frames:
        return pd.DataFrame(columns=["key", "step", "tensor", *PROBE_STATS])
    return pd.concat(frames, ignore_index=True)


def current(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows measured with the present numerics; only these may be shown as results."""
    return runs[runs["numerics"] == NUMERICS].reset_index(drop=True)


def stale(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows measured with other numerics than the present: superseded."""
    return runs[runs["numerics"] != NUMERICS].reset_index(drop=True)


def provenance() -> dict[str, Any]:
    """What a row says of where it was measured.

    Returns:
        device (kind), device_count, jax, jaxlib, flax, python, xla_flags, git_commit, git_dirty,
        created (UTC, ISO 8601) and schema. The commit is that of the checkout that tracks the
        package, else "unknown" or what UMUP_COMMIT says ("HASH" or "HASH+dirty").
    """
    import jax

    commit, dirty = _git()
    return {
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "flax": version("flax"),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git_commit": commit,
        "git_dirty": dirty,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "schema": SCHEMA,
    }


@functools.cache
def _git(package: Path = Path(__file__).parent) -> tuple[str, bool]:
    """(commit, dirty) of the checkout that tracks the package; dirty looks at the package only.

    Asked once a process, when its code was read: later edits do not change what is running.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if told := os.environ.get("UMUP_COMMIT"):
        return told.removesuffix("+dirty"), told.endswith("+dirty")
    try:
        # A virtual environment inside someone else's repository is not our checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
