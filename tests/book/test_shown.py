"""Which records a page shows: current ones of the best profile, and what it says of the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from test_records import make_row
from umup.book import shown, site
from umup.config import NUMERICS
from umup.lab import folders, records
from umup.lab.design import Point
from umup.lab.records import Store

STALE = NUMERICS - 1


def save(folder: Path, profile: str, numerics: int, n: int = 1) -> None:
    rows = [make_row(f"{profile}{numerics}{i}", numerics=numerics) for i in range(n)]
    Store(folder / "records" / profile).append(rows)


def test_the_page_is_of_the_best_profile_with_current_records(tmp_path: Path) -> None:
    assert site.best_profile(tmp_path) == "cpu", "a page on which nothing is measured"
    (tmp_path / "records" / "h100").mkdir(parents=True)
    save(tmp_path, "cpu", STALE)
    assert site.best_profile(tmp_path) == "cpu"
    save(tmp_path, "cpu", NUMERICS)
    save(tmp_path, "h100", STALE, n=3)
    assert site.best_profile(tmp_path) == "cpu"
    save(tmp_path, "h100", NUMERICS)  # a slice is enough
    assert site.best_profile(tmp_path) == "h100"


def test_points_alone_are_records(tmp_path: Path) -> None:
    whole = Store(folders.folder("op_scales") / "records" / "cpu").points.read()
    Store(tmp_path / "records" / "h100").points.append(whole.head(1).to_dict("records"))
    assert site.best_profile(tmp_path) == "h100"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """The study of line searches with forty of its runs, and stale ones of a better profile."""
    folder = tmp_path / "lr_transfer"
    shutil.copytree(
        folders.folder("lr_transfer"), folder, ignore=shutil.ignore_patterns("records", ".*")
    )
    rows = Store(folders.folder("lr_transfer") / "records" / "cpu").read().head(40)
    Store(folder / "records" / "cpu").append(rows.to_dict("records"))
    save(folder, "h100", STALE, n=3)
    return folder


def test_a_page_says_how_much_is_done_and_what_is_stale(part: Path) -> None:
    said = shown.gaps(part, shown.best_profile(part))
    assert "profile `cpu`: 40 runs and points are measured, about" in said
    assert "3 records of the profile `h100` are stale" in said


def test_a_page_of_all_records_says_nothing() -> None:
    assert shown.gaps(folders.folder("op_scales"), "cpu") == ""


def test_points_of_a_study_that_trains_are_counted_without_its_text(tmp_path: Path) -> None:
    folder = tmp_path / "attention_scale"
    whole = folders.folder("attention_scale")
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("records", ".*"))
    points = records.read_results(Store(whole / "records" / "cpu")).points.head(10)
    Store(folder / "records" / "cpu").points.append(points.to_dict("records"))
    assert "10 runs and points are measured, about" in shown.gaps(folder, "cpu")


def test_what_time_ended_is_neither_done_nor_forgotten(tmp_path: Path) -> None:
    committed, folder = folders.folder("hopper"), tmp_path / "hopper"
    shutil.copytree(committed, folder, ignore=shutil.ignore_patterns("records", ".*"))
    finished = records.read_results(Store(committed / "records" / "cpu")).runs.iloc[0]
    result = {"spec": finished["spec"], "curve_steps": [1], "curve_loss": [5.0]}
    point = Point(records.UNFINISHED, {"run": finished["key"], "steps": 1})
    Store(folder / "records" / "cpu").points.append([point.row("hopper", "cpu", result, 1.0)])
    # 21 runs, 2 products, a copy and 3 twins, none of which need the text to be counted.
    assert "0 runs and points are measured, about 27 are missing" in shown.gaps(folder, "cpu")
