"""Runs in turn: the numbers of runs one after another, equal steps at every moment."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
import types

import numpy as np
import pytest

from test_sweep import WHERE, make_dataset, make_run
from umup.lab import records, sweep
from umup.lab.records import Store
from umup.lab.sweep import Group, OutOfTime, Settings
from umup.slices import turns
from umup.terminal import Progress

RUNS = [
    dataclasses.replace(run, probe_steps=(0, 10))
    for run in (make_run(eta=0.5), make_run(eta=0.25), make_run("mup", eta=0.02))
]
CHUNK = 4


def train(store, runs=RUNS, **settings):
    turns.run_in_turn(
        runs,
        make_dataset(),
        store,
        **WHERE,
        settings=Settings(chunk_steps=CHUNK, saves=False, **settings),
        progress=Progress(),
    )


@pytest.fixture
def advanced(monkeypatch):
    """The groups that were advanced, in order, with the steps that they had then."""
    calls, advance = [], Group.advance

    def spied(group):
        advance(group)
        calls.append((group.runs[0].key(), group.done))

    monkeypatch.setattr(Group, "advance", spied)
    return calls


def test_all_come_equally_far_and_to_the_numbers_of_each_alone(tmp_path, advanced):
    train(Store(tmp_path))
    keys = [run.key() for run in RUNS]
    assert advanced == [(key, done) for done in (4, 8, 10) for key in keys]
    found = Store(tmp_path).read().set_index("key")
    for run in RUNS:
        (alone,) = sweep.run_group(
            [run], make_dataset(), tmp_path / "alone", study="s", profile="p"
        )
        assert found.loc[run.key(), "final_loss"] == alone["final_loss"]
        curve = np.asarray(alone["curve_loss"], np.float32)
        np.testing.assert_array_equal(found.loc[run.key(), "curve_loss"], curve)
    assert not (tmp_path / ".partial").exists()
    before = len(advanced)
    train(Store(tmp_path))
    assert len(advanced) == before, "what is on record is not trained again"


def test_out_of_time_all_stop_at_one_step_which_is_on_record(tmp_path, advanced, monkeypatch):
    looks = itertools.count(0.0, 1e9)
    monkeypatch.setattr(turns, "time", types.SimpleNamespace(monotonic=lambda: next(looks)))
    with pytest.raises(OutOfTime):
        train(Store(tmp_path), deadline=time.monotonic() + 1e6)
    store = Store(tmp_path)
    assert store.read().empty
    made = store.points.read()
    assert list(made["what"]) == [turns.UNFINISHED] * len(RUNS)
    specs = [json.loads(spec) for spec in made["spec"]]
    assert {spec["steps"] for spec in specs} == {8}
    assert {spec["run"] for spec in specs} == {run.key() for run in RUNS}
    result = json.loads(made["result"].iloc[0])
    assert result["curve_steps"] == list(range(1, 9)) and len(result["curve_loss"]) == 8
    assert result["tokens_per_s"] > 0 and result["compile_s"] >= 0
    cut = records.unfinished(records.read_results(store))
    assert set(cut["key"]) == {run.key() for run in RUNS} and set(cut["done"]) == {8}
    seen = records.probes(cut)
    assert set(seen["step"]) == {0} and (seen["rms"] > 0).any(), "what was probed is not lost"
    monkeypatch.undo()
    train(store)
    assert set(store.read()["key"]) == {run.key() for run in RUNS}


def test_a_chunk_that_ends_late_is_the_last(tmp_path):
    with pytest.raises(OutOfTime):
        train(Store(tmp_path), deadline=time.monotonic() - 1.0)
    steps = [json.loads(s)["steps"] for s in Store(tmp_path).points.read()["spec"]]
    assert steps == [CHUNK], "the others had no turn yet"


def test_one_that_diverges_leaves_the_others_going(tmp_path, advanced):
    lost = make_run("sp", eta=1e30)
    train(Store(tmp_path), [lost, RUNS[0]])
    found = Store(tmp_path).read().set_index("key")
    assert found.loc[lost.key(), "status"] == "diverged"
    assert math.isfinite(found.loc[RUNS[0].key(), "final_loss"])
    assert [done for key, done in advanced if key == lost.key()][-1] < 10
