"""Packs: the rows of a slice of GPU time in a few small files, and their merge into the records.

A pack is a folder with ``runs-N.parquet`` and ``points-N.parquet``, shards of all studies together,
and ``slices.json``: when, where and how long each slice ran. A second merge changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from umup import files
from umup.config import NUMERICS
from umup.errors import RecordError, StudyError
from umup.lab import folders
from umup.lab.records import Store
from umup.lab.schemas import POINTS, RUNS, Schema

LIMIT = 16 * 2**20
"""Largest file, in bytes."""
MOST_FILES = 8
LOG = "slices.json"
"""File in a pack, and in the folder of the studies, with every slice in order of time."""
_KINDS = {"runs": RUNS, "points": POINTS}


def pack(stores: Iterable[Store], slices: list[dict[str, Any]], into: Path) -> list[Path]:
    """Write the rows of ``stores``, without those beneath them, and the slices' log.

    Args:
        stores: of runs; their points are written too.
        slices: JSON objects with an ``id``.
        into: the folder of the pack; its files are replaced.

    Returns:
        The files.

    Raises:
        RecordError: more than ``MOST_FILES`` files are needed, or they cannot be written.
    """
    own = [Store(store.folder) for store in stores]
    tables = {
        "runs": [table for store in own for table in store.tables()],
        "points": [table for store in own for table in store.points.tables()],
    }
    written: dict[str, bytes] = {}
    for kind, found in tables.items():
        rows = pa.concat_tables([_KINDS[kind].arrow.empty_table(), *found])
        shards = list(_shards(_KINDS[kind], rows))
        written |= {f"{kind}-{n}.parquet": shard for n, shard in enumerate(shards, 1)}
    written[LOG] = _text(slices)
    if len(written) > MOST_FILES:
        allowed = f"at most {MOST_FILES} of {LIMIT >> 20} MiB: merge what there is, then go on"
        raise RecordError(str(into), f"{len(written)} files", allowed)
    for path in into.glob("*.parquet") if into.is_dir() else ():
        if path.name not in written:
            path.unlink()
    for name, content in written.items():
        write(into / name, content)
    return [into / name for name in written]


def _shards(schema: Schema, rows: pa.Table) -> Iterable[bytes]:
    """The rows as shards below ``LIMIT``, halved as often as that takes."""
    if not len(rows):
        return
    packed = schema.pack(rows)
    if len(packed) <= LIMIT or len(rows) == 1:
        yield packed
        return
    half = len(rows) // 2
    yield from _shards(schema, rows.slice(0, half))
    yield from _shards(schema, rows.slice(half))


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises RecordError where the disk is full."""
    intact = "what was measured before is intact"
    with files.writing(path, RecordError, intact), files.atomic_write(path) as file:
        file.write(content)


def merge(source: Path, into: Path, *, rehearsal: bool = False) -> dict[str, int]:
    """Add a pack to the records of its studies; existing rows stay as they are.

    Args:
        source: the folder of the pack.
        into: the folder of the studies.
        rehearsal: whether to accept a rehearsal's pack, whose rows are of shrunken shapes.

    Returns:
        Counts: new rows, rows already on record, stale rows (of other numerics than the present,
        shown as superseded), and new slices.

    Raises:
        StudyError: there is no pack, it is a rehearsal's, or a row is of an unknown study.
        RecordError: a file of the pack is damaged, or the records cannot be written.
    """
    slices = _read_log(source / LOG)
    if any(entry.get("rehearsal") for entry in slices) and not rehearsal:
        allowed = "a pack from a GPU; the rows of a rehearsal are no measurements"
        raise StudyError("FROM", str(source), allowed)
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for path in sorted(source.glob("*.parquet")):
        kind = path.stem.partition("-")[0]
        if kind not in _KINDS:
            raise StudyError(str(path), kind, f"{' or '.join(_KINDS)}, then a number")
        for row in _KINDS[kind].unpack(path.read_bytes(), str(path)).to_pylist():
            found.setdefault((row["study"], row["profile"], kind), []).append(row)
    for name, _, _ in found:
        folders.folder(name)  # an unknown study is an error before anything is written
    counts = {"new": 0, "on record": 0, "stale": 0, "slices": 0}
    for (name, profile, kind), rows in found.items():
        store = Store(into / name / "records" / profile)
        store = store if kind == "runs" else store.points
        known = store.keys()
        fresh = [row for row in rows if row["key"] not in known]
        store.append(fresh)
        counts["new"] += len(fresh)
        counts["on record"] += len(rows) - len(fresh)
        counts["stale"] += sum(row["numerics"] != NUMERICS for row in fresh)
    before = {entry["id"]: entry for entry in slices_so_far(into)}
    every = before | {entry["id"]: entry for entry in slices}
    write(into / LOG, _text([every[key] for key in sorted(every)]))
    counts["slices"] = len(every) - len(before)
    return counts


def slices_so_far(folder: Path) -> list[dict[str, Any]]:
    """The slices that were merged into the folder of the studies, in order of time."""
    return _read_log(folder / LOG) if (folder / LOG).exists() else []


def _read_log(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        allowed = f"a folder with a pack: {LOG} and *.parquet"
        raise StudyError(str(path), str(error), allowed) from None


def _text(slices: list[dict[str, Any]]) -> bytes:
    return json.dumps(slices, indent=1, sort_keys=True).encode() + b"\n"
