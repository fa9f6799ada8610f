"""Records: one row per training run or other measurement, in immutable Parquet shards.

A store is a folder of shards. Every append writes a new shard and puts it in place by one atomic
rename, so that any number of processes may write at once, and a killed one leaves at most a
temporary file that is ignored. No shard is overwritten, and a shard is deleted only after its rows
are on disk in another. This needs no locks and works where locks do nothing. `.locks/KEY.lock` is
held (flock) while a process runs the point KEY, so that it is not run twice; `.damaged/` keeps the
shards that `repair` moved aside.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import stat
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from umup import files
from umup.config import NUMERICS, PROBE_STATS, RunConfig
from umup.errors import RecordError
from umup.lab.schemas import POINTS, RUNS, SCHEMA, DamagedShard, Schema, check_key

# Before a folder that changed while it was read is read anew.
_PAUSES_S = (0.0, 0.01, 0.1, 1.0, 5.0)
_STRAY_S = 24 * 3600.0  # a temporary file so old has no writer any more

T = TypeVar("T")


class Store:
    """The records of one study and profile: a folder of immutable shards.

    Args:
        folder: of the shards; created by the first write.
        schema: the kind of record; `points` is the store of the other kind, inside this one.
        beneath: a store whose rows also count as on record, but which is never written to.
    """

    def __init__(
        self, folder: str | os.PathLike[str], schema: Schema = RUNS, beneath: Store | None = None
    ):
        self.folder = Path(folder)
        self.schema = schema
        self.beneath = beneath
        # Shards never change, so each is read only once: a sweep needs all after every group.
        self._known: dict[str, tuple[tuple[int, ...], pa.Table]] = {}

    @functools.cached_property
    def points(self) -> Store:
        """The points recorded beside these runs."""
        beneath = self.beneath.points if self.beneath else None
        return Store(self.folder / "points", POINTS, beneath)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> Path | None:
        """Write `rows` as one new shard, atomically, and return its path (None for no rows).

        When it returns, the rows are on disk; if it raises or is killed, none of them is visible,
        and earlier shards are unchanged.

        Raises:
            RecordError: a malformed row, or a disk that is full, read-only or not writable.
        """
        checked = [self.schema.validate(row) for row in rows]
        if not checked:
            return None
        return self._write(pa.Table.from_pylist(checked, schema=self.schema.arrow))

    def read(self) -> pd.DataFrame:
        """All rows, one per key (of duplicates, the earliest `created`), in a fixed order.

        Raises:
            RecordError: a shard is damaged, of another schema or cannot be read; nothing is
                silently dropped.
        """
        return self._merged(self.tables()).to_pandas()

    def keys(self) -> set[str]:
        """The keys on record. Raises RecordError as `read` does."""
        return set().union(*(t.column("key").to_pylist() for t in self.tables()))

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Claim the point `key`: yields True to the one process that should run it.

        False means that another process (or another part of this one) holds it, or that it is on
        record already. The claim is an flock, which the kernel releases when the process dies,
        however it dies. Append the row inside the `with`. Where locks do nothing, two processes may
        both get True: then both run the point, and the earlier row counts.

        Raises:
            RecordError: the lock file cannot be written, or the file system refuses locks.
        """
        check_key(key)
        lock = self.folder / ".locks" / f"{key}.lock"
        descriptor = _try_lock(lock)
        try:
            yield descriptor is not None and key not in self.keys()
        finally:
            if descriptor is not None:
                with contextlib.suppress(OSError):  # a file that is left behind does no harm
                    lock.unlink()  # while held; _try_lock re-checks the inode
                os.close(descriptor)

    def running(self) -> set[str]:
        """The keys that live processes of this machine currently hold a claim on.

        Raises:
            RecordError: the file system refuses locks.
        """
        held = set()
        for path in sorted((self.folder / ".locks").glob("*.lock")):
            with contextlib.suppress(FileNotFoundError, PermissionError), path.open("rb") as file:
                if not files.lock(file.fileno(), path, RecordError, shared=True):
                    held.add(path.stem)
        return held

    def compact(self) -> Path | None:
        """Merge all shards into one and return it (None if there are none).

        The merged shard is in place before the others are deleted, so that a kill at any moment
        leaves duplicates at worst, which `read` removes. Rows that others append meanwhile stay,
        as do those of a concurrent `compact`, since each deletes only what it has read.

        Raises:
            RecordError: a shard cannot be read, or the folder cannot be written.
        """
        for stray in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - stray.stat().st_mtime > _STRAY_S:
                    stray.unlink()
        tables = self._each(self._read_shard)
        if len(tables) < 2:
            return next(iter(tables), None)
        merged = self._write(self._merged(tables.values()))
        for shard in tables:
            with _writing(shard):
                shard.unlink(missing_ok=True)
        return merged

    def repair(self) -> list[Path]:
        """Move damaged shards to `.damaged/` and return their new paths.

        The points in them then count as missing, and the next run measures them again. A shard that
        another version of umup or another user could read stays where it is.

        Raises:
            RecordError: the folder cannot be written.
        """
        moved = []
        for shard in self._shards():
            try:
                self._read_shard(shard)
            except DamagedShard:
                target = self.folder / ".damaged" / shard.name
                with _writing(target), contextlib.suppress(FileNotFoundError):  # moved by another
                    target.parent.mkdir(exist_ok=True)
                    shard.replace(target)
                    moved.append(target)
            except (RecordError, FileNotFoundError):
                continue  # `read` says why, if it is still there
        return moved

    def _shards(self) -> list[Path]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            received = f"unreadable ({error.strerror})"
            raise RecordError(str(self.folder), received, "a folder that can be read") from error
        return [
            self.folder / name
            for name in sorted(names)
            if name.endswith(".parquet") and not name.startswith(".")
        ]

    def _each(self, read: Callable[[Path], T]) -> dict[Path, T]:
        """Shard → what `read` makes of it, for all shards in one listing of the folder."""
        for pause in _PAUSES_S:
            try:
                return {shard: read(shard) for shard in self._shards()}
            except FileNotFoundError as error:  # compacted between listing and opening
                vanished = str(error.filename)
                time.sleep(pause)
        raise RecordError(vanished, "listed, but not there", "a folder whose listing holds")

    def tables(self) -> Iterable[pa.Table]:
        """The rows of each shard, including those beneath. Raises RecordError as `read` does."""
        tables = self._each(self._read_shard)
        self._known = {shard.name: self._known[shard.name] for shard in tables}  # not the gone
        return [*tables.values(), *(self.beneath.tables() if self.beneath else ())]

    def _merged(self, tables: Iterable[pa.Table]) -> pa.Table:
        table = pa.concat_tables([self.schema.arrow.empty_table(), *tables])
        table = table.sort_by([("created", "ascending"), ("key", "ascending")])
        first = ~pd.Series(table.column("key").to_pylist(), dtype=object).duplicated()
        return table.filter(pa.array(first)).sort_by([(c, "ascending") for c in self.schema.sort])

    def _write(self, table: pa.Table) -> Path:
        # A name that no other process, on whatever node, can choose: nothing is overwritten.
        shard = self.folder / f"{uuid.uuid4().hex}.parquet"
        with _writing(shard), files.atomic_write(shard) as file:
            file.write(self.schema.pack(table))
        return shard

    def _read_shard(self, path: Path) -> pa.Table:
        """The rows of one shard; FileNotFoundError if it was deleted since the folder was listed.

        A file that has been modified since it was read, as by damage, is read again.
        """
        try:
            if path.is_symlink() and not path.exists():
                todo = "a link to a shard: fetch its content (git annex get, dvc pull) or delete it"
                raise RecordError(str(path), f"a link to nothing, {os.readlink(path)}", todo)
            status = path.stat()  # looked at once: another process may delete it at any moment
            if not stat.S_ISREG(status.st_mode):
                raise DamagedShard(str(path), "no file")
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if path.name in self._known and self._known[path.name][0] == stamp:
                return self._known[path.name][1]
            data = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            received = f"unreadable ({error.strerror})"
            raise RecordError(str(path), received, "a shard that this user can read") from error
        table = self.schema.unpack(data, str(path))
        self._known[path.name] = stamp, table
        return table


def _writing(path: Path) -> contextlib.AbstractContextManager[None]:
    return files.writing(path, RecordError, "earlier records are intact")


def _try_lock(path: Path) -> int | None:
    """The descriptor of `path` with its flock, or None if another process holds the lock."""
    for attempt in range(100):
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            with _writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            if not files.lock(descriptor, path, RecordError):
                if attempt:
                    return None
                time.sleep(0.01)  # `running` may have been looking: it lets go at once
            # The last holder may have unlinked the file between our open and our lock.
            elif os.path.samestat(os.fstat(descriptor), path.stat()):
                stack.pop_all()
                return descriptor
    allowed = "a file system that keeps a file's inode number"
    raise RecordError(str(path), "another file each time that it is opened", allowed)


class Results(NamedTuple):
    """The current records of a study's profile.

    Attributes:
        runs: one row per training run, see ``schemas.RUNS``.
        points: one row per other measurement, see ``schemas.POINTS``; ``table`` expands them.
    """

    runs: pd.DataFrame
    points: pd.DataFrame

    def table(self, what: str) -> pd.DataFrame:
        """The points of one kind, with a column for every field of specification and result.

        Fields that a point does not have are NaN; without such points the table is empty.
        """
        rows = self.points[self.points["what"] == what]
        both = zip(rows["spec"], rows["result"], strict=True)
        return pd.DataFrame([json.loads(spec) | json.loads(result) for spec, result in both])


def read_results(store: Store) -> Results:
    """The runs and points of a store that have the present numerics."""
    return Results(current(store.read()), current(store.points.read()))


def with_spec(runs: pd.DataFrame) -> pd.DataFrame:
    """``runs`` with a column for every field of their specification.

    Columns are named by their place in ``RunConfig``: ``model.tau_convention``,
    ``hps.alpha_residual``, ``optim.batch_size``. Fields that an older record lacks are NaN.
    """
    specs = pd.json_normalize([json.loads(spec) for spec in runs["spec"]])
    specs = specs[[name for name in specs.columns if "." in name]].set_axis(runs.index)
    return pd.concat([runs, specs], axis=1)


def probes(runs: pd.DataFrame) -> pd.DataFrame:
    """What the probes of ``runs`` saw.

    Columns: key, step, place (``blocks.3.attn.qkv``), layer (3; −1 outside the blocks), module
    (``attn.qkv``: the place in any block), tensor (``input``), and the statistics of
    ``config.PROBE_STATS``: RMS, mean, largest magnitude, and the shares of elements that E4M3 and
    E5M2 would clip or flush to zero.
    """
    keys, steps, names, values = [], [], [], []
    for row in runs.itertuples():
        at, tensors = np.asarray(row.probe_steps), list(row.probe_tensors)
        if not len(at):
            continue
        keys += [row.key] * (len(at) * len(tensors))
        steps.append(np.repeat(at, len(tensors)))
        names += tensors * len(at)
        values.append(np.asarray(row.probe_values).reshape(-1, len(PROBE_STATS)))
    if not names:
        return pd.DataFrame(columns=["key", "step", *_Probe._fields, *PROBE_STATS])
    which, distinct = pd.factorize(np.array(names, object))  # few: each is taken apart once
    named = pd.DataFrame([_Probe.of(name) for name in distinct]).iloc[which]
    named = named.reset_index(drop=True)
    named.insert(0, "step", np.concatenate(steps))
    named.insert(0, "key", keys)
    return named.assign(**dict(zip(PROBE_STATS, np.concatenate(values).T, strict=True)))


class _Probe(NamedTuple):
    """The parts of a name in ``model.tensor_names``."""

    place: str
    layer: int
    module: str
    tensor: str

    @classmethod
    def of(cls, name: str) -> _Probe:
        """``blocks.3.attn.qkv/input``: the tensor ``input`` of module ``attn.qkv`` in layer 3."""
        place, _, tensor = name.rpartition("/")
        if not place.startswith("blocks."):
            return cls(place, -1, place, tensor)
        _, layer, module = place.split(".", 2)
        return cls(place, int(layer), module, tensor)


UNFINISHED = "unfinished"
"""Kind of the points that hold the progress of a run that was cut off."""


def unfinished(results: Results) -> pd.DataFrame:
    """The runs that were cut off and have not been finished since, each with its progress.

    Columns: key, scheme, d_model, n_layers, vocab_size, batch_size, seq_len, steps (of the whole
    run), done (steps trained), seed, device, spec, curve_steps and curve_loss.
    """
    rows = []
    for point in results.points[results.points["what"] == UNFINISHED].to_dict("records"):
        told, result = json.loads(point["spec"]), json.loads(point["result"])
        run = RunConfig.from_dict(json.loads(result["spec"]))
        labels = {"key": told["run"], "scheme": run.scheme, "seed": run.seed}
        shape = ("d_model", "n_layers", "vocab_size", "seq_len")
        labels |= {name: getattr(run.model, name) for name in shape}
        labels |= {"batch_size": run.optim.batch_size, "steps": run.optim.steps}
        rows.append(labels | {"done": told["steps"], "device": point["device"]} | result)
    if not rows:
        return pd.DataFrame(columns=["key", "done"])
    table = pd.DataFrame(rows).sort_values("done", kind="stable")
    table = table.drop_duplicates("key", keep="last").sort_index()
    return table[~table["key"].isin(results.runs["key"])].reset_index(drop=True)


def current(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows with the present numerics; only these may be shown as results."""
    return runs[runs["numerics"] == NUMERICS].reset_index(drop=True)


def stale(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows with other numerics than the present, which are superseded."""
    return runs[runs["numerics"] != NUMERICS].reset_index(drop=True)


def provenance() -> dict[str, Any]:
    """The columns of a row that say where it was measured.

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


def refuse_changes() -> None:
    """Refuse to make records that no commit accounts for.

    Raises:
        RecordError: the checkout's code has changes that are not committed, and neither does
            UMUP_COMMIT name a commit nor UMUP_DIRTY ask for such records.
    """
    if _git()[1] and not any(os.environ.get(name) for name in ("UMUP_COMMIT", "UMUP_DIRTY")):
        todo = "committed code; or UMUP_DIRTY=1, and the records are marked as made with changes"
        raise RecordError("the code that makes records", "changes that are not committed", todo)


@functools.cache
def _git(package: Path = Path(__file__).parents[1]) -> tuple[str, bool]:
    """(commit, dirty) of the checkout that tracks the package; dirty concerns code alone.

    Code is the package and the studies' modules, but not their notebooks.

    It is determined once per process, when the code was loaded: later edits do not affect it.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if told := os.environ.get("UMUP_COMMIT"):
        return told.removesuffix("+dirty"), told.endswith("+dirty")
    try:
        # A virtual environment inside someone else's repository is not our checkout.
        git("ls-files", "--error-unmatch", ".")
        studies = (":(top,glob)experiments/*/*.py", ":(top,glob,exclude)experiments/*/study.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", *studies))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
