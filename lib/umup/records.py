"""Records: one row a training run, kept in Parquet shards that are written once and never edited.

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
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from umup.config import NUMERICS
from umup.errors import RecordError

SCHEMA = 1  # bump when a column is added, removed or changes its meaning

_GROUPS: tuple[tuple[str, type], ...] = (
    ("key study profile scheme", str),
    ("d_model n_layers n_heads d_head d_ff vocab_size seq_len batch_size steps", int),
    ("lr", float),
    ("seed", int),
    ("status", str),
    ("final_loss best_loss val_loss val_bits_per_byte", float),
    ("numerics", int),
    ("spec hps", str),
    ("curve_steps", np.int32),
    ("curve_loss", np.float32),
    ("tokens_per_s wall_s compile_s", float),
    ("device", str),
    ("device_count", int),
    ("jax jaxlib flax python xla_flags git_commit", str),
    ("git_dirty", bool),
    ("data_digest tokenizer_digest created", str),
    ("schema", int),
)
_ARROW = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    np.int32: pa.list_(pa.int32()),
    np.float32: pa.list_(pa.float32()),
}
_KINDS = {name: kind for names, kind in _GROUPS for name in names.split()}
COLUMNS = tuple(_KINDS)
ARROW_SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in _KINDS.items()])
STATUSES = ("ok", "diverged")

_SORT = ["study", "profile", "scheme", "d_model", "steps", "lr", "seed", "key"]
_counter = itertools.count()


def validate(row: Mapping[str, Any]) -> dict[str, Any]:
    """Check one row against the schema and return it in column order.

    Args:
        row: column name → value; integers pass for floats, NumPy scalars for Python ones.

    Raises:
        RecordError: names the column that is missing, unknown, of a wrong type or out of range.
    """
    if missing := [name for name in COLUMNS if name not in row]:
        raise RecordError(missing[0], "no such column", f"every row has it; missing: {missing}")
    if unknown := sorted(set(row) - set(COLUMNS)):
        raise RecordError(unknown[0], row[unknown[0]], f"only the columns {', '.join(COLUMNS)}")
    out = {name: _checked(name, row[name]) for name in COLUMNS}
    _check_key(out["key"])
    if out["status"] not in STATUSES:
        raise RecordError("status", out["status"], f"one of {', '.join(STATUSES)}")
    if not (math.isfinite(out["lr"]) and out["lr"] > 0):
        raise RecordError("lr", out["lr"], "a finite number above 0")
    if math.isfinite(out["final_loss"]) != (out["status"] == "ok"):
        raise RecordError(
            "final_loss", out["final_loss"], f"finite when ok, NaN when diverged ({out['status']})"
        )
    if len(out["curve_steps"]) != len(out["curve_loss"]):
        raise RecordError("curve_loss", len(out["curve_loss"]), "as many values as curve_steps")
    if out["schema"] != SCHEMA:
        raise RecordError("schema", out["schema"], f"records.SCHEMA ({SCHEMA})")
    return out


def _check_key(key: str) -> None:
    if not re.fullmatch("[A-Za-z0-9_-]{1,128}", key):  # it names a lock file
        raise RecordError("key", key, "1–128 letters, digits, '-' or '_'")


def _checked(name: str, value: Any) -> Any:
    wanted = _KINDS[name]
    if issubclass(wanted, np.generic):
        array = np.asarray(value)
        kinds = "iu" if wanted is np.int32 else "iuf"
        if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
            raise RecordError(name, value, f"a one-dimensional list of {wanted.__name__}")
        return array.astype(wanted)
    if isinstance(value, np.generic):
        value = value.item()
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:  # exact: True is an int to isinstance
        raise RecordError(name, value, f"a value of type {wanted.__name__}")
    return value


class Store:
    """The records of one study and profile: a folder of immutable shards.

    Args:
        folder: where the shards are; created by the first write.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self._shard_keys: dict[str, frozenset[str]] = {}  # shards never change: read each once

    def append(self, rows: Iterable[Mapping[str, Any]]) -> Path | None:
        """Write `rows` as one new shard, atomically, and return its path (None for no rows).

        When it returns, the rows are on disk; when it raises or is killed, none of them is seen,
        and earlier shards are untouched.

        Raises:
            RecordError: a malformed row, or a disk that is full, read-only or not writable.
        """
        checked = [validate(row) for row in rows]
        if not checked:
            return None
        table = pa.Table.from_pylist(checked, schema=ARROW_SCHEMA)
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
                        column = _read_shard(shard).column("key").to_pylist()
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
        _check_key(key)
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
                    _read_shard(shard)
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
                tables = [_read_shard(shard) for shard in self._shards()]
                break
            except FileNotFoundError:
                continue  # compacted between listing and opening: list again
        table = pa.concat_tables([ARROW_SCHEMA.empty_table(), *tables])
        table = table.sort_by([("created", "ascending"), ("key", "ascending")])
        first = ~pd.Series(table.column("key").to_pylist(), dtype=object).duplicated()
        return table.filter(pa.array(first)).sort_by([(name, "ascending") for name in _SORT])

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


def _read_shard(path: Path) -> pa.Table:
    todo = "a whole shard of this version; `umup status --repair` moves it to .damaged/"
    data = path.read_bytes()
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowException, OSError) as error:
        raise RecordError(str(path), f"unreadable Parquet ({error})", todo) from error
    if not table.schema.equals(ARROW_SCHEMA, check_metadata=False):
        differing = set(table.schema.names) ^ set(COLUMNS) or {
            f.name for f in table.schema if f.type != ARROW_SCHEMA.field(f.name).type
        }
        received = f"another schema (differs in {', '.join(sorted(differing)) or 'column order'})"
        raise RecordError(str(path), received, todo)
    if versions := set(table.column("schema").to_pylist()) - {SCHEMA}:
        raise RecordError(str(path), f"schema {sorted(versions, key=str)}", todo)
    return table


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
