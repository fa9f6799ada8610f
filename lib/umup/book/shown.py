"""Which records a page of the book shows, and what it says about missing ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from umup.config import RunConfig
from umup.data import Dataset
from umup.lab import records, study
from umup.lab.claims import PROFILES
from umup.lab.records import Results, Store


def best_profile(folder: Path) -> str:
    """The first of h100 and cpu that has current committed records; cpu if neither has.

    A part of a profile's records is enough, so that slices of a long study show at the next build.
    """
    for profile in PROFILES:
        if any(len(records.current(rows)) for rows in _all(folder, profile)):
            return profile
    return PROFILES[-1]


def _all(folder: Path, profile: str) -> Results:
    place = Store(folder / "records" / profile)
    return Results(place.read(), place.points.read())


def gaps(folder: Path, profile: str) -> str:
    """What the page of a profile lacks, in sentences: missing and stale records; "" if nothing.

    This needs no corpus: the data of missing runs is taken from the runs on record.
    """
    sentences = []
    for name in PROFILES:
        if old := sum(len(records.stale(rows)) for rows in _all(folder, name)):
            sentences.append(
                f"{old} records of the profile `{name}` are stale, made with other numerics than "
                "the present, and are not shown."
            )
    if (todo := _outlook(folder, profile))["missing"]:
        partly = (
            f"This page shows what there is of the profile `{profile}`: {todo['done']} runs and "
            f"points are measured, about {todo['missing']} are missing."
        )
        sentences.insert(0, partly)
    return " ".join(sentences)


def _outlook(folder: Path, profile: str) -> dict[str, Any]:
    design = study.design_of(folder).from_dict(study.parameters(folder, profile))
    place = study.store(folder, profile)
    found = _all(folder, profile)
    runs, cut = records.current(found.runs), records.unfinished(found)
    if runs.empty and cut.empty:
        return study.outlook(design, place, None)
    first = RunConfig.from_dict(json.loads((cut if runs.empty else runs)["spec"].iloc[0]))
    text = SimpleNamespace(digest=first.data_digest, vocab_size=first.model.vocab_size)
    return study.outlook(design, place, cast(Dataset, text))
