"""The two kinds of records, training runs and points: columns, checks of rows, shards.

A shard is a Parquet file with a seal before its footer: a mark, the SHA-256 of all other bytes,
and the mark again. Parquet finds everything by offset, so that other readers skip the seal.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from umup.config import PROBE_STATS
from umup.errors import RecordError

SCHEMA = 2  # bump when a column is added, removed or changes its meaning

# UTF-8 has no byte 0xff, so that no text of a row can hold the mark. It stands on both sides of the
# digest, so that no flipped bit makes a sealed shard look like one from before there were seals.
_MARK = b"\xffumup:sha256\xff"

_ARROW = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    np.int32: pa.list_(pa.int32()),
    np.float32: pa.list_(pa.float32()),
    np.str_: pa.list_(pa.string()),
}
_PROVENANCE: tuple[tuple[str, type], ...] = (
    ("device", str),
    ("device_count", int),
    ("jax jaxlib flax python xla_flags git_commit", str),
    ("git_dirty", bool),
)


@dataclass(frozen=True)
class Schema:
    """The columns of one kind of record.

    Args:
        groups: (names, type) in order; NumPy types stand for lists of them.
        sort: columns by which rows are ordered.
        check: raises on a row whose values contradict each other.
        added: columns that schema version 1 lacked: lists, which are empty in its rows.
    """

    groups: tuple[tuple[str, type], ...]
    sort: tuple[str, ...]
    check: Callable[[dict[str, Any]], None]
    added: tuple[str, ...] = ()

    @cached_property
    def kinds(self) -> dict[str, type]:
        """Column → type."""
        return {name: kind for names, kind in self.groups for name in names.split()}

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns, in order."""
        return tuple(self.kinds)

    @cached_property
    def arrow(self) -> pa.Schema:
        """The columns with their Parquet types."""
        return pa.schema([(name, _ARROW[kind]) for name, kind in self.kinds.items()])

    def validate(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Check one row and return it in column order.

        Args:
            row: column name → value; integers are accepted as floats, NumPy scalars as Python's.

        Raises:
            RecordError: names the column that is missing, unknown, of a wrong type or out of
                range.
        """
        if missing := [name for name in self.columns if name not in row]:
            raise RecordError(missing[0], "no such column", f"every row has it; missing: {missing}")
        if unknown := sorted(set(row) - set(self.columns)):
            allowed = f"only the columns {', '.join(self.columns)}"
            raise RecordError(unknown[0], row[unknown[0]], allowed)
        out = {name: _checked(name, row[name], kind) for name, kind in self.kinds.items()}
        check_key(out["key"])
        self.check(out)
        if out["schema"] != SCHEMA:
            raise RecordError("schema", out["schema"], f"schemas.SCHEMA ({SCHEMA})")
        return out

    def pack(self, table: pa.Table) -> bytes:
        """The bytes of a shard: ``table``, in this schema's columns, as a sealed Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return sealed(buffer.getvalue())

    def unpack(self, data: bytes, name: str) -> pa.Table:
        """The rows of a shard, in the columns of the present version.

        Args:
            data: the file's bytes; without a seal they are not checked.
            name: of the file, for the errors.

        Raises:
            DamagedShard: bytes that differ from their seal, are not Parquet or have other columns.
            RecordError: rows that a newer umup wrote.
        """
        if _broken(data):
            raise DamagedShard(name, "bytes that differ from their digest")
        try:
            table = pq.ParquetFile(pa.BufferReader(data)).read()
            table.validate(full=True)
        except Exception as error:  # whatever a parser makes of damaged bytes
            raise DamagedShard(name, f"unreadable Parquet ({error})") from error
        # The version comes first: what columns a newer one has is not known here.
        at = table.schema.get_field_index("schema")
        versions = table.column(at).to_pylist() if at >= 0 else []
        if newer := [v for v in versions if isinstance(v, int) and v > SCHEMA]:
            received = f"schema {max(newer)}, written by a newer umup"
            raise RecordError(name, received, f"schema {SCHEMA} or older; install that umup")
        table = self._upgrade(table)
        if not table.schema.equals(self.arrow, check_metadata=False):
            differing = set(table.schema.names) ^ set(self.columns) or {
                f.name for f in table.schema if f.type != self.arrow.field(f.name).type
            }
            listed = ", ".join(sorted(differing)) or "column order"
            raise DamagedShard(name, f"another schema (differs in {listed})")
        if other := set(table.column("schema").to_pylist()) - {SCHEMA}:
            raise DamagedShard(name, f"schema {sorted(other, key=str)}")
        return table

    def _upgrade(self, table: pa.Table) -> pa.Table:
        """A table of schema version 1 converted to the present version; others unchanged."""
        if not self.added or table.schema.names != [c for c in self.columns if c not in self.added]:
            return table
        if set(table.column("schema").to_pylist()) != {1}:
            return table
        for name in self.added:
            empty = pa.array([[]] * len(table), _ARROW[self.kinds[name]])
            table = table.add_column(self.columns.index(name), name, empty)
        at = self.columns.index("schema")
        return table.set_column(at, "schema", pa.array([SCHEMA] * len(table), pa.int64()))


class DamagedShard(RecordError):
    """A shard whose rows no version of umup can read: `Store.repair` moves it aside."""

    def __init__(self, name: str, received: str):
        todo = "a whole shard of this version; `umup status --repair` moves it to .damaged/"
        super().__init__(name, received, todo)


def sealed(data: bytes) -> bytes:
    """A Parquet file with a seal before its footer."""
    # The last eight bytes are the footer's length and Parquet's own mark.
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    digest = hashlib.sha256(data).digest()
    return b"".join((data[:footer], _MARK, digest, _MARK, data[footer:]))


def _broken(data: bytes) -> bool:
    """Whether there is a seal, and the bytes differ from it."""
    head, *seal = data.split(_MARK)
    return bool(seal) and (len(seal) != 2 or hashlib.sha256(head + seal[1]).digest() != seal[0])


def check_key(key: str) -> None:
    """Raise an error for a key that cannot name a lock file.

    Raises:
        RecordError: it is not 1–128 letters, digits, '-' or '_'.
    """
    if not re.fullmatch("[A-Za-z0-9_-]{1,128}", key):
        raise RecordError("key", key, "1–128 letters, digits, '-' or '_'")


def _checked(name: str, value: Any, wanted: type) -> Any:
    if wanted is np.str_:
        if not all(type(item) is str for item in value):
            raise RecordError(name, value, "a list of texts")
        return list(value)
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


STATUSES = ("ok", "diverged")


def _check_run(row: dict[str, Any]) -> None:
    if row["status"] not in STATUSES:
        raise RecordError("status", row["status"], f"one of {', '.join(STATUSES)}")
    if not (math.isfinite(row["lr"]) and row["lr"] > 0):
        raise RecordError("lr", row["lr"], "a finite number above 0")
    if math.isfinite(row["final_loss"]) != (row["status"] == "ok"):
        raise RecordError(
            "final_loss", row["final_loss"], f"finite when ok, NaN when diverged ({row['status']})"
        )
    if len(row["curve_steps"]) != len(row["curve_loss"]):
        raise RecordError("curve_loss", len(row["curve_loss"]), "as many values as curve_steps")
    wanted = len(row["probe_steps"]) * len(row["probe_tensors"]) * len(PROBE_STATS)
    if len(row["probe_values"]) != wanted:
        allowed = f"{wanted} values: probe_steps × probe_tensors × {len(PROBE_STATS)} statistics"
        raise RecordError("probe_values", len(row["probe_values"]), allowed)


def _check_point(row: dict[str, Any]) -> None:
    for name in ("spec", "result"):
        try:
            found = json.loads(row[name])
        except ValueError as error:
            raise RecordError(name, row[name], f"JSON ({error})") from None
        if not isinstance(found, dict):
            raise RecordError(name, row[name], "a JSON object")


RUNS = Schema(
    groups=(
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
        ("probe_steps", np.int32),
        ("probe_tensors", np.str_),
        ("probe_values", np.float32),
        ("tokens_per_s wall_s compile_s", float),
        *_PROVENANCE,
        ("data_digest tokenizer_digest created", str),
        ("schema", int),
    ),
    sort=("study", "profile", "scheme", "d_model", "steps", "lr", "seed", "key"),
    check=_check_run,
    added=("probe_steps", "probe_tensors", "probe_values"),
)
"""One row per training run."""

POINTS = Schema(
    groups=(
        ("key study profile what spec result", str),
        ("numerics", int),
        ("wall_s", float),
        *_PROVENANCE,
        ("created", str),
        ("schema", int),
    ),
    sort=("study", "profile", "what", "spec", "key"),
    check=_check_point,
)
"""One row per measurement other than a training run; spec and result are JSON objects."""
