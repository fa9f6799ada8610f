"""Designs and points: what is missing is measured once, by whichever process, and found again."""

from __future__ import annotations

import math
import time
import types
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umup import config
from umup.checked import CountOrZero
from umup.errors import ClaimError, ConfigError, RecordError, StudyError
from umup.lab import claims, folders, records, schemas, study
from umup.lab.design import Design, Point
from umup.lab.records import Results, Store
from umup.lab.sweep import OutOfTime
from umup.laws import Interval
from umup.terminal import Progress


@dataclass(frozen=True)
class Squares(Design):
    """Squares of numbers, and of one that fails."""

    numbers: tuple[CountOrZero, ...] = (1, 2, 3)
    what: str = "square"

    def points(self) -> list[Point]:
        return [Point(self.what, {"n": n, "name": "a"}) for n in self.numbers]


CALLS: list[int] = []


def square(n: int, name: str) -> dict:
    CALLS.append(n)
    if n == 13:
        raise RuntimeError("unlucky")
    return {"square": n * n, "list": [n, n], "gap": math.nan}


def largest(results: Results, at_least: int = 0) -> Interval:
    table = results.table("square")
    if table.empty or table["square"].max() < at_least:
        raise claims.NotMeasured("no squares")
    value = float(table["square"].max())
    return Interval(value, value, value)


@pytest.fixture
def squares(tmp_path, monkeypatch) -> Path:
    """A study `squares` in a checkout of its own."""
    folder = tmp_path / "experiments" / "squares"
    folder.mkdir(parents=True)
    (folder / "study.py").write_text("")
    (folder / "study.ipynb").write_text("{}")
    (folder / "cpu.yaml").write_text("profile: cpu\n")
    (folder / "claims.yaml").write_text(
        "- {id: a, statement: It grows., source: here, quantity: largest, args: {at_least: 4},"
        " bound: {min: 8}, unit: squares, why: It must.}\n"
    )
    monkeypatch.chdir(tmp_path)
    module = types.SimpleNamespace(
        DESIGN=Squares, MEASURES={"square": square}, QUANTITIES={"largest": largest}
    )
    monkeypatch.setattr(folders.Code, "find", lambda package, name: module)
    CALLS.clear()
    return folder


def test_a_study_without_training_measures_what_is_missing(squares):
    assert study.settings("squares", {"numbers": [2], "__x": 1}) == Squares(numbers=(2,))
    results = study.run_or_load("squares", Squares(profile="cpu"))
    assert CALLS == [1, 2, 3]
    assert results.runs.empty and len(results.points) == 3
    table = results.table("square").sort_values("n")
    assert table["square"].tolist() == [1, 4, 9]
    assert table["list"].tolist() == [[1, 1], [2, 2], [3, 3]] and table["gap"].isna().all()
    assert set(results.points["study"]) == {"squares"} and (results.points["wall_s"] >= 0).all()
    again = study.run_or_load("squares", Squares(profile="cpu", numbers=(1, 2, 3, 5)))
    assert CALLS == [1, 2, 3, 5] and len(again.points) == 4
    assert len(list((squares / "records/cpu/points").glob("*.parquet"))) == 1, "merged at the end"
    loaded = study.run_or_load("squares", Squares(profile="cpu", mode="load"))
    pd.testing.assert_frame_equal(loaded.points, again.points)
    assert CALLS == [1, 2, 3, 5]
    assert results.table("cube").empty


def test_fresh_leaves_no_records_and_load_says_that_there_are_none(squares, capsys):
    assert len(study.run_or_load("squares", Squares(fresh=True)).points) == 3
    assert not (squares / "records").exists()
    results = study.run_or_load("squares", Squares(profile="cpu", mode="load"))
    assert results.runs.empty and results.points.empty
    assert "`umup run squares --profile cpu` measures it." in capsys.readouterr().out
    assert not (squares / "records").exists()


def test_a_failed_point_loses_no_other_and_is_tried_again(squares):
    with pytest.raises(RuntimeError):
        study.run_or_load("squares", Squares(profile="cpu", numbers=(1, 13, 2)))
    CALLS.clear()
    study.run_or_load("squares", Squares(profile="cpu", numbers=(1, 2)))
    assert CALLS == [2]


def test_a_point_in_flight_elsewhere_is_left_alone(squares):
    design, place = Squares(), Store(squares / "records").points
    with place.claim(design.points()[1].key()) as mine:
        assert mine
        study.measure("squares", design, place, Progress())
    assert CALLS == [1, 3]


def test_the_deadline_holds_between_points(squares):
    place = Store(squares / "records").points
    with pytest.raises(OutOfTime):
        study.measure("squares", Squares(), place, Progress(), deadline=time.monotonic() - 1)
    assert CALLS == [1]
    study.measure("squares", Squares(), place, Progress())
    assert CALLS == [1, 2, 3]


def test_status_counts_points(squares):
    assert study.status("squares", "cpu")["missing"] == 3
    assert study.status("squares", "cpu")["assumed"]
    study.run_or_load("squares", Squares(profile="cpu", numbers=(1, 2)))
    found = study.status("squares", "cpu")
    assert (found["done"], found["missing"], found["assumed"]) == (2, 1, False)


def test_unknown_measurements_and_arguments_are_errors_before_any_compute(squares, monkeypatch):
    with pytest.raises(StudyError, match=r"what: received 'squre'.*did you mean 'square'"):
        study.run_or_load("squares", Squares(what="squre", fresh=True))
    bad = [Point("square", {"n": 1, "name": "a"}), Point("square", {"m": 1})]
    monkeypatch.setattr(Squares, "points", lambda self: bad)
    with pytest.raises(StudyError, match=r"spec: received .*'m': 1.*square\(n"):
        study.run_or_load("squares", Squares(fresh=True))
    assert CALLS == []
    with pytest.raises(StudyError, match="did you mean 'numbers'"):
        study.settings("squares", {"number": 3})
    with pytest.raises(ConfigError, match="numbers: received"):
        study.settings("squares", {"numbers": [-3]})


def test_claims_may_name_the_studys_own_quantities(squares):
    results = study.run_or_load("squares", Squares(profile="cpu"))
    (verdict,) = claims.evaluate(squares, results)
    assert (verdict.verdict, verdict.value, verdict.profile) == ("exact", 9.0, "cpu")
    few = Results(results.runs, results.points.iloc[:0])
    (verdict,) = claims.evaluate(squares, few, "cpu")
    assert (verdict.verdict, verdict.note) == ("not measured", "no records")
    (verdict,) = claims.board(squares.parent)
    assert verdict.verdict == "exact"
    text = (squares / "claims.yaml").read_text()
    (squares / "claims.yaml").write_text(text.replace("largest", "smallest"))
    with pytest.raises(ClaimError, match=r"quantity.*'smallest'.*largest"):
        claims.load(squares / "claims.yaml")


def test_stale_points_are_measured_again(squares, monkeypatch):
    study.run_or_load("squares", Squares(profile="cpu"))
    for module in (config, study, records):
        monkeypatch.setattr(module, "NUMERICS", config.NUMERICS + 1, raising=False)
    import umup.lab.design

    monkeypatch.setattr(umup.lab.design, "NUMERICS", study.NUMERICS)
    CALLS.clear()
    assert study.status("squares", "cpu")["stale"] == 3
    results = study.run_or_load("squares", Squares(profile="cpu"))
    assert CALLS == [1, 2, 3] and len(results.points) == 3


def test_a_key_is_of_what_is_measured():
    keys = {Point("a", {"x": 1}).key(), Point("b", {"x": 1}).key(), Point("a", {"x": 2}).key()}
    assert len(keys) == 3
    assert Point("a", {"x": 1, "y": 2}).key() == Point("a", {"y": 2, "x": 1}).key()


# --- records of both kinds ------------------------------------------------------------------------


def test_points_are_checked(tmp_path):
    place = Store(tmp_path).points
    row = {
        "key": "k",
        "study": "s",
        "profile": "p",
        "what": "w",
        "spec": "{}",
        "result": "[1]",
        "numerics": 1,
        "wall_s": 1.0,
        **records.provenance(),
    }
    with pytest.raises(RecordError, match=r"result: received '\[1\]'.*JSON object"):
        place.append([row])
    with pytest.raises(RecordError, match=r"spec: received '\{'.*JSON"):
        place.append([row | {"result": "{}", "spec": "{"}])
    place.append([row | {"result": "{}"}])
    assert place.keys() == {"k"} and Store(tmp_path).read().empty


def test_runs_recorded_before_probes_are_read(tmp_path):
    root = Path(__file__).parents[1] / "experiments" / "lr_transfer" / "records" / "cpu"
    runs = Store(root).read()
    table = pa.Table.from_pandas(runs.head(3), schema=schemas.RUNS.arrow, preserve_index=False)
    old = table.drop_columns(list(schemas.RUNS.added))
    at = old.schema.names.index("schema")
    pq.write_table(old.set_column(at, "schema", pa.array([1] * 3)), tmp_path / "old.parquet")
    found = Store(tmp_path).read()
    pd.testing.assert_frame_equal(found, runs.head(3))
    assert set(found["schema"]) == {schemas.SCHEMA}
    assert all(len(steps) == 0 for steps in found["probe_steps"])
    pq.write_table(old, tmp_path / "odd.parquet")  # the old columns under the new version
    with pytest.raises(RecordError, match="differs in probe_steps"):
        Store(tmp_path).read()


def test_runs_with_the_fields_of_their_specification():
    root = Path(__file__).parents[1] / "experiments" / "lr_transfer" / "records" / "cpu"
    runs = Store(root).read().tail(3)
    wide = records.with_spec(runs)
    assert wide["model.d_model"].tolist() == runs["d_model"].tolist()
    assert wide["hps.eta"].tolist() == runs["lr"].tolist()
    assert records.probes(runs).empty


def test_probes_are_tidy():
    values = [float(i) for i in range(2 * 2 * 7)]
    runs = pd.DataFrame(
        [
            {
                "key": "k",
                "probe_steps": [0, 5],
                "probe_tensors": ["logits/x", "blocks.3.attn.qkv/y"],
                "probe_values": values,
            }
        ]
    )
    found = records.probes(runs)
    outside, inside = ["logits", -1, "logits", "x"], ["blocks.3.attn.qkv", 3, "attn.qkv", "y"]
    assert found[["step", "place", "layer", "module", "tensor"]].values.tolist() == [
        [step, *name] for step in (0, 5) for name in (outside, inside)
    ]
    assert found["rms"].tolist() == [0, 7, 14, 21]
    assert found["e5m2_flushed"].tolist() == [6, 13, 20, 27]
