"""Committed records stay valid: however modules are moved, no field, default or key may change."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass

import pytest

from umup.checked import Config, later
from umup.config import NUMERICS, RunConfig
from umup.lab import folders, records, study
from umup.lab.design import Point

COMMITTED = [
    (name, path.name)
    for name in folders.names()
    for path in sorted((folders.folder(name) / "records").glob("*"))
    if path.is_dir()
]


@pytest.mark.parametrize(("name", "profile"), COMMITTED)
def test_every_row_recomputes_its_own_key(name: str, profile: str) -> None:
    place = study.store(name, profile)
    for row in place.read().to_dict("records"):
        run = RunConfig.from_dict(json.loads(row["spec"]))
        assert row["numerics"] != NUMERICS or run.key() == row["key"], row["spec"]
    for row in place.points.read().to_dict("records"):
        point = Point(row["what"], json.loads(row["spec"]))
        assert row["numerics"] != NUMERICS or point.key() == row["key"], row["spec"]


@pytest.mark.parametrize("name", folders.names())
def test_every_specification_is_of_its_measures_arguments(name: str) -> None:
    """So that whoever renames an argument learns it here, not from a run that starts anew."""
    specs = [
        (row["what"], json.loads(row["spec"]))
        for profile in (profile for study_, profile in COMMITTED if study_ == name)
        for row in study.store(name, profile).points.read().to_dict("records")
        if row["what"] != records.UNFINISHED and row["numerics"] == NUMERICS
    ]
    for what, spec in specs:
        measure = inspect.signature(folders.code(name).measures.MEASURES[what])
        measure.bind(**spec)
        with pytest.raises(TypeError):
            measure.bind(**spec, hight=3)


@pytest.mark.parametrize(
    ("name", "profile"), [(name, profile) for name, profile in COMMITTED if profile != "h100"]
)
def test_nothing_that_a_profile_of_the_cpu_asks_for_is_missing(name: str, profile: str) -> None:
    found = study.status(name, profile)  # that of an H100 is filled slice by slice
    assert found["missing"] == 0, found


def test_a_field_that_came_later_is_no_part_of_a_points_key() -> None:
    @dataclass(frozen=True)
    class Optimizer(Config):
        steps: int = 8
        loss_scale: float = later(1.0)

    assert Optimizer().to_spec() == {"steps": 8}
    assert Optimizer(loss_scale=2.0).to_spec() == {"steps": 8, "loss_scale": 2.0}
