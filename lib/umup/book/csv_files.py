"""The records as tables that any program reads: one CSV per study and profile.

A row is a run or a point; ``kind`` says which. What is bulky stays in the Parquet shards: curves,
probes and long lists. Fields of a specification that are equal in all rows are left out, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

BULKY = ("curve_steps", "curve_loss", "probe_steps", "probe_tensors", "probe_values")
LONGEST = 80  # characters of a list or of a text in a cell; longer ones are left out


def write(rows: pd.DataFrame, folder: Path) -> dict[tuple[str, str], str]:
    """Write ``STUDY-PROFILE.csv`` for each study and profile, and return their names.

    Args:
        rows: runs and points together, as `pages.read_records` has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for (study, profile), group in rows.groupby(["study", "profile"], sort=True):
        names[study, profile] = f"{study}-{profile}.csv"
        plain(group).to_csv(folder / names[study, profile], index=False)
    return names


def plain(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their JSON as columns, ``spec.model.dtype`` and the like, without bulk."""
    is_run = rows["scheme"].notna()
    parts = {"run": rows[is_run], "point": rows[~is_run]}
    tables = [_plain(part).assign(kind=kind) for kind, part in parts.items() if len(part)]
    table = pd.concat(
        tables, ignore_index=True
    ).convert_dtypes()  # "8", where points would make 8.0
    return table[["kind", *table.columns.drop("kind")]]


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.reset_index(drop=True)
    own = rows.drop(columns=[name for name in (*BULKY, "spec", "hps", "result") if name in rows])
    own = own.dropna(axis="columns", how="all")
    spec = _columns(rows["spec"], "spec")
    varied = [name for name in spec if spec[name].nunique(dropna=False) > 1]
    said = [name for name in varied if name.rsplit(".")[-1] not in own]
    result = _columns(rows["result"], "result") if "result" in rows else pd.DataFrame()
    return pd.concat([own, spec[said], result], axis="columns")


def _columns(texts: pd.Series, prefix: str) -> pd.DataFrame:
    """JSON objects as columns."""
    objects = [json.loads(text) if isinstance(text, str) else {} for text in texts]
    return pd.DataFrame([dict(_flat(prefix, given)) for given in objects], index=texts.index)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
        return
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
    if len(text) <= LONGEST:
        yield name, text if isinstance(value, list) else value
