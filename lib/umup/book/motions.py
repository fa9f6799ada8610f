"""The motions by which `umup.transfer` carries η, written from the records of the studies.

``python -m umup.book.motions`` writes them anew; a test compares the file with the records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from umup.book.site import find_root
from umup.lab import claims, study
from umup.lab.absent import NotMeasured
from umup.lab.records import Results

FILE = Path(__file__).parents[1] / "transfer" / "motions.toml"
PROFILE = "cpu"
DIGITS = 3
HEADER = """\
# Written by `python -m umup.book.motions` from the studies' records: octaves of the best η per
# doubling along an axis, with 95 % intervals. On schedule it is from cosine to WSD; on together,
# what the sum of axes leaves unexplained.
"""


class Source(NamedTuple):
    """Which quantity of which study measures an axis.

    Attributes:
        axis: of ``umup.transfer.AXES``.
        study, quantity: by name; args: its arguments beside the scheme.
        claims: scheme → the claim that judges whether η stays.
        factor: how far apart the ends are, 1 where there is no doubling.
    """

    axis: str
    study: str
    quantity: str
    args: Mapping[str, Any]
    claims: Mapping[str, str]
    factor: float = 1


def _each(pattern: str, *schemes: str) -> dict[str, str]:
    return {scheme: pattern.format(scheme) for scheme in schemes}


def _axis(axis: str, name: str, *schemes: str) -> Source:
    """An axis of transfer_axes, 16 times as much from end to end."""
    return Source(
        axis,
        "transfer_axes",
        "power",
        {"axis": name, "factor": 16},
        _each(f"{{}}-still-over-{name.replace('_', '-')}", *schemes),
        16,
    )


ALL = ("sp", "mup", "umup")
SOURCES = (
    Source(
        "width",
        "lr_transfer",
        "drift",
        {"factor": 8},
        {"sp": "sp-drifts", "mup": "mup-transfers", "umup": "umup-transfers"},
        8,
    ),
    _axis("depth", "depth", *ALL, "completep"),
    _axis("seq_len", "seq_len", *ALL),
    _axis("batch", "batch", *ALL),
    Source(
        "steps",
        "lr_transfer",
        "drift_over_steps",
        {"d_model": 64, "factor": 16},
        _each("{}-still-over-steps", *ALL),
        16,
    ),
    Source(
        "schedule",
        "schedules",
        "optimum_gap",
        {"schedule": "wsd", "against": "cosine", "steps": 1000},
        {"mup": "eta-still-over-schedules-mup", "umup": "eta-still-over-schedules"},
        2,  # one switch
    ),
    Source("together", "transfer_axes", "beyond_sum", {}, _each("{}-drifts-add", *ALL)),
)


def collect(experiments: Path) -> list[dict[str, Any]]:
    """The rows of the file, one per axis and scheme that has a measurement."""
    rows, known = [], {}
    verdicts = {(v.study, v.id): v.verdict for v in claims.board(experiments)}
    for source in SOURCES:
        folder = experiments / source.study
        if source.study not in known:
            known[source.study] = study.recorded(folder, PROFILE)
        for scheme, claim in source.claims.items():
            if row := _row(source, scheme, known[source.study], experiments):
                judged = {"study": source.study, "claim": claim}
                rows.append(row | judged | {"verdict": verdicts[source.study, claim]})
    return rows


def _row(source: Source, scheme: str, results: Results, experiments: Path) -> dict[str, Any] | None:
    quantity = claims.quantities(experiments / source.study)[source.quantity]
    try:
        found = quantity(results, scheme=scheme, **source.args)
    except NotMeasured:
        return None
    ends = {"octaves": found.value, "lo": found.lo, "hi": found.hi}
    return {
        "scheme": scheme,
        "axis": source.axis,
        **{name: round(end, DIGITS) for name, end in ends.items()},
        "doublings": math.log2(source.factor),
        "where": found.where,
    }


def text(rows: list[dict[str, Any]]) -> str:
    """The rows as TOML."""
    parts = [HEADER]
    for row in rows:
        lines = (f"{name} = {_toml(value)}" for name, value in row.items())
        parts.append("\n".join(["[[motion]]", *lines, ""]))
    return "\n".join(parts)


def _toml(value: str | float) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def main() -> None:
    """Write the file."""
    FILE.write_text(text(collect(find_root() / "experiments")), encoding="utf-8")


if __name__ == "__main__":
    main()
