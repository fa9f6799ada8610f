"""Studies: parameters checked, records made or loaded, workers that share them or fail."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from umup import data, train
from umup.config import NUMERICS, RunConfig
from umup.errors import ConfigError, StudyError
from umup.lab import folders, study
from umup.lab.lr_sweep import LRSweep
from umup.lab.records import Store
from umup.lab.sweep import OutOfTime

# Three coarse points, no refinement, one seed: at most 3 + 2·4 runs of ten steps.
TINY = {
    "profile": "tiny",
    "schemes": ["umup"],
    "widths": [16],
    "full_grid_width": 16,
    "n_layers": 1,
    "d_head": 8,
    "seq_len": 8,
    "batch_size": 2,
    "steps": 10,
    "base_width": 16,
    "lr_umup": [-3, -1],
    "seeds": 1,
    "refine": 1.0,
    "window": 0.0,
    "eval_batches": 2,
    "chunk_steps": 5,
}


def notebook(source: str) -> str:
    """A notebook of one cell, which states the parameters."""
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    return json.dumps({"cells": [cell]})


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with one study, `toy`, a small corpus, and a token cache of its own."""
    toy = tmp_path / "experiments/toy"
    toy.mkdir(parents=True)
    (toy / "study.py").write_text("# %%\n")
    (toy / "design.py").write_text("from umup.lab.lr_sweep import LRSweep\n\nDESIGN = LRSweep\n")
    (toy / "study.ipynb").write_text(notebook("profile = 'own'\nmode = 'load'\nwidths = [64]\n"))
    (toy / "claims.yaml").write_text("[]\n")
    (toy / "other.yaml").write_text("profile: other\nwidths: [16, 32]\n")
    lines = [f"document {i}: " + "all work and no play " * (1 + i % 3) for i in range(60)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    (toy / "tiny.yaml").write_text(json.dumps(TINY | corpus(tmp_path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UMUP_PROGRESS", raising=False)
    return tmp_path


def corpus(folder):
    return {"corpus": f"file:{folder / 'corpus.txt'}"}


def tiny(folder, **changes):
    return LRSweep.from_dict(TINY | corpus(folder) | changes)


# --- parameters -----------------------------------------------------------------------------------


def test_settings_take_every_parameter_and_nothing_else():
    namespace = {
        "__name__": "__main__",
        "_": 3,
        "_dh": ["/"],
        "In": [""],
        "Out": {},
        "exit": None,
        "os": types,
        "function": len,
        "widths": [32, 64],
        "steps": 100,
        "lr_sp": [-9, -5],
        "weight_decay": 0,
    }
    found = study.settings("lr_transfer", namespace)
    assert found == LRSweep(widths=(32, 64), steps=100, lr_sp=(-9, -5), weight_decay=0)


@pytest.mark.parametrize(
    ("name", "value", "suggestion"),
    [
        ("width", [32], "did you mean 'widths'"),
        ("chunk_stps", 3, "did you mean 'chunk_steps'"),
        ("zzz", None, "one of profile, mode"),
    ],
)
def test_settings_refuse_an_unknown_parameter(name, value, suggestion):
    with pytest.raises(StudyError, match=f"{name}: received .*{suggestion}"):
        study.settings("lr_transfer", {"steps": 100, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "fast"),
        ("steps", 1.5),
        ("steps", True),
        ("widths", 32),
        ("widths", ["wide"]),
        ("fresh", "perhaps"),
        ("corpus", None),
        ("weight_decay", "2e"),
        ("lr_sp", {}),
        ("steps", "1.5"),
        ("steps", ""),
        ("widths", "32"),
        ("widths", "[32"),
        ("widths", "[32, wide]"),
        ("corpus", 2),
    ],
)
def test_settings_refuse_a_wrong_type(name, value):
    with pytest.raises(ConfigError, match=f"{name}: received"):
        study.settings("lr_transfer", {name: value})


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("widths", "[32, 64]", (32, 64)),
        ("lr_sp", "[-9.5, -5]", (-9.5, -5)),
        ("steps", "100", 100),
        ("weight_decay", "1e-4", 1e-4),
        ("weight_decay", "2", 2.0),
        ("fresh", "true", True),
        ("lr_sp", ["-1e1", "-5e-1"], (-10.0, -0.5)),
        ("schemes", "[sp, umup]", ("sp", "umup")),
        ("schemes", '["sp"]', ("sp",)),
        ("corpus", "[2]", "[2]"),
        ("corpus", "1e-4", "1e-4"),
    ],
)
def test_settings_read_text_as_papermill_hands_it_over(name, value, read):
    # papermill -p reads no list, -r nothing; -f and -y take 1e-4 for text.
    assert getattr(study.settings("lr_transfer", {name: value}), name) == read


def test_text_that_cannot_be_read_is_told_how_to_write_it():
    with pytest.raises(ConfigError, match=r"widths: received '\[32'; .* -y '\{\"widths\":\[\d"):
        study.settings("lr_transfer", {"widths": "[32"})


def test_names_profiles_and_parameters(workplace):
    assert folders.names() == ["toy"]
    assert study.profiles("toy") == ["other", "own", "tiny"]
    given = {"profile": "other", "mode": "run", "widths": [16, 32]}
    assert study.parameters("toy", "other") == given
    assert folders.experiments_folder() == workplace / "experiments"


def test_the_notebooks_own_profile_needs_no_file_and_others_hold_what_differs(workplace):
    toy = workplace / "experiments/toy"
    assert study.parameters("toy", "own") == {"profile": "own", "mode": "run", "widths": [64]}
    (toy / "own.yaml").write_text("mode: load\n")
    assert study.parameters("toy", "own") == {"profile": "own", "mode": "load", "widths": [64]}
    (toy / "empty.yaml").write_text("# nothing\n")
    assert study.parameters("toy", "empty") == {"profile": "empty", "mode": "run", "widths": [64]}


def test_a_file_of_another_profile_is_refused(workplace):
    # Its runs would be mixed into the other one's records.
    (workplace / "experiments/toy/mine.yaml").write_text("profile: tiny\n")
    with pytest.raises(StudyError, match=r"mine.yaml: profile: received 'tiny'; allowed: mine"):
        study.parameters("toy", "mine")


def test_unknown_study_and_profile(workplace):
    with pytest.raises(
        StudyError, match="study: received 'toi'; allowed: one of toy; did you mean"
    ):
        folders.folder("toi")
    with pytest.raises(StudyError, match="study"):
        study.parameters("nope", "tiny")
    with pytest.raises(
        StudyError, match=r"profile: received 'tinny'.*own, tiny; did you mean 'tiny'"
    ):
        study.parameters("toy", "tinny")
    with pytest.raises(StudyError, match="profile: received 'claims'"):
        study.parameters("toy", "claims")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "a mapping of parameter names"),
        ("a: [1\n", "readable"),
        ("text", "mapping"),
    ],
)
def test_malformed_profiles(workplace, text, message):
    (workplace / "experiments/toy/bad.yaml").write_text(text)
    with pytest.raises(StudyError, match=f"bad.yaml.*: received .*{message}"):
        study.parameters("toy", "bad")


def test_the_projects_own_profiles_are_valid():
    root = Path(__file__).parents[1] / "experiments"
    folders = [path.parent for path in root.glob("*/study.ipynb")]
    assert folders
    for folder in folders:
        assert {"cpu", "h100", "smoke"} <= set(study.profiles(folder))
        for profile in study.profiles(folder):
            design = study.design_of(folder.name).from_dict(study.parameters(folder, profile))
            assert (design.profile, design.mode) == (profile, "run"), folder
            assert design.fresh == (profile == "smoke"), folder


# --- run or load ----------------------------------------------------------------------------------


def test_load_without_records_is_a_page_on_which_nothing_is_measured(workplace, capsys):
    results = study.run_or_load("toy", tiny(workplace, mode="load"))
    assert results.runs.empty and results.points.empty and "key" in results.runs
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "`umup run toy --profile tiny` measures it" in out
    assert not (workplace / "experiments/toy/records").exists(), "loading writes nothing"


@pytest.fixture
def pretend(monkeypatch):
    """Training replaced by a parabola around η = 2⁻²: what is trained, and nothing computed."""
    from umup.lab import sweep

    trained = []

    def run_group(runs, dataset, folder, *, study, profile, **_):
        trained.extend(runs)
        facts = {"tokens_per_s": 1e3, "wall_s": 0.1, "compile_s": 0.0, **sweep.provenance()}
        rows = []
        for run in runs:
            loss = 1 + 0.1 * (math.log2(run.hps.eta) + 2) ** 2
            losses = np.full(run.optim.steps, loss, np.float32)
            rows.append(
                sweep.row(run, losses, 1.0, dataset, study=study, profile=profile, facts=facts)
            )
        return rows

    monkeypatch.setattr(sweep, "run_group", run_group)
    return trained


def test_run_trains_what_is_missing_and_load_reads_it(workplace, pretend):
    runs = study.run_or_load("toy", tiny(workplace)).runs
    assert sorted(np.log2(runs["lr"])) == [-3, -2, -1]
    assert set(runs["study"]) == {"toy"}
    assert set(runs["profile"]) == {"tiny"}
    folder = workplace / "experiments/toy/records/tiny"
    assert len(list(folder.glob("*.parquet"))) == 1, "shards are merged at the end"
    pretend.clear()
    again = study.run_or_load("toy", tiny(workplace)).runs
    loaded = study.run_or_load("toy", tiny(workplace, mode="load")).runs
    assert pretend == []
    pd.testing.assert_frame_equal(again, runs)
    pd.testing.assert_frame_equal(loaded, runs)


def test_fresh_trains_anew_and_leaves_no_records(workplace, pretend):
    for _ in range(2):
        pretend.clear()
        assert len(study.run_or_load("toy", tiny(workplace, fresh=True)).runs) == 3
        assert len(pretend) == 3
    assert not (workplace / "experiments/toy/records").exists()


def test_stale_records_are_neither_shown_nor_counted(workplace, pretend, monkeypatch):
    from umup.lab import lr_sweep, records, sweep

    keys = {run.key() for run in tiny(workplace).pending(pd.DataFrame(), load(workplace))}
    lr_sweep._curves.cache_clear()
    with monkeypatch.context() as older:  # as if the last version had written them
        older.setattr(sweep, "NUMERICS", NUMERICS - 1)
        older.setattr(records, "NUMERICS", NUMERICS - 1)
        older.setattr(RunConfig, "key", lambda self, key=RunConfig.key: "old" + key(self))
        study.run_or_load("toy", tiny(workplace))
    lr_sweep._curves.cache_clear()
    assert study.run_or_load("toy", tiny(workplace, mode="load")).runs.empty
    found = study.status("toy", "tiny")
    assert (found["done"], found["stale"], found["missing"]) == (0, 3, 3)
    assert set(study.run_or_load("toy", tiny(workplace)).runs["key"]) == keys


def load(folder):
    return data.load(corpus(folder)["corpus"], "bytes", seq_len=8)


def test_status_counts(workplace, pretend):
    before = study.status("toy", "tiny")
    assert before["assumed"], "nothing is measured yet"
    del before["seconds_left"], before["assumed"]
    assert before == {
        "study": "toy",
        "profile": "tiny",
        "done": 0,
        "diverged": 0,
        "stale": 0,
        "missing": 3,
        "running": 0,
    }
    study.run_or_load("toy", tiny(workplace))
    after = study.status("toy", "tiny")
    assert (after["done"], after["missing"], after["seconds_left"]) == (3, 0, 0.0)
    place = study.store("toy", "tiny")
    with place.claim("k1") as claimed:
        assert claimed
        assert study.status("toy", "tiny")["running"] == 1


def test_time_left_rests_on_measured_speed(workplace, pretend):
    study.run_or_load("toy", tiny(workplace))
    wider = tiny(workplace, lr_umup=[-3, 0], workers=2)
    found = study.outlook(wider, study.store("toy", "tiny"), load(workplace))
    assert (found["done"], found["missing"], found["assumed"]) == (3, 1, False)
    # 10 steps of 16 tokens at 1000 tokens per second, by two workers.
    assert found["seconds_left"] == pytest.approx(10 * 16 / 1000 / 2)


# --- workers --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("alike")
def test_two_processes_run_every_point_exactly_once(workplace):
    runs = study.run_or_load("toy", tiny(workplace, workers=2)).runs
    assert set(runs["status"]) <= {"ok", "diverged"}
    assert len(runs) >= 3
    assert runs["key"].is_unique
    folder = workplace / "experiments/toy/records/tiny"
    log = (folder / ".progress.log").read_text()
    assert log.count("step 10/10") == len(runs), "a point was trained twice"
    assert "resuming" not in log
    assert not list((folder / ".partial").glob("*"))
    assert not Store(folder).running()
    # The numbers are those of this process.
    dataset = load(workplace)
    row = runs.iloc[0]
    run = RunConfig.from_dict(json.loads(row["spec"]))
    assert run.key() == row["key"]
    losses = train.train(run, dataset.train, chunk_steps=5)
    np.testing.assert_allclose(row["curve_loss"], losses, rtol=1e-5)


def test_a_worker_stops_at_its_time_limit_and_goes_on(workplace):
    folder = workplace / "experiments/toy/records/tiny"

    def worker(**changes):
        given = json.dumps(tiny(workplace, **changes).to_dict())
        return study.main(["toy", "--settings", given, "--records", str(folder)])

    assert worker(time_limit_minutes=1e-9) == study.EXIT_OUT_OF_TIME
    assert len(list((folder / ".partial").glob("*.npz"))) == 1
    assert worker() == 0
    log = (folder / ".progress.log").read_text()
    assert log.count("resuming") == 1
    assert study.status("toy", "tiny")["missing"] == 0


@pytest.fixture
def interpreter(workplace, monkeypatch):
    """Workers run this shell script in place of Python."""

    def replace(text):
        script = workplace / "python"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(study.sys, "executable", str(script))

    return replace


def test_a_failing_worker_is_reported(workplace, interpreter):
    interpreter("echo Traceback >&2; echo 'MemoryError: too wide' >&2; exit 1")
    with pytest.raises(
        StudyError, match=r"worker: received 'MemoryError: too wide'.*\.progress\.log"
    ):
        study.run_or_load("toy", tiny(workplace, workers=2))
    interpreter("exit 9")
    with pytest.raises(StudyError, match="exit status 9"):
        study.run_or_load("toy", tiny(workplace, workers=1))


def test_a_worker_out_of_time_is_no_failure(workplace, interpreter):
    interpreter(f"exit {study.EXIT_OUT_OF_TIME}")
    with pytest.raises(OutOfTime):
        study.run_or_load("toy", tiny(workplace, workers=1))


def test_a_failure_is_not_hidden_by_another_worker_out_of_time(workplace, interpreter):
    # The first to start is out of time, the second fails.
    interpreter('mkdir first 2>/dev/null && exit 75; sleep 1; echo "ValueError: no" >&2; exit 1')
    with pytest.raises(StudyError, match="ValueError: no"):
        study.run_or_load("toy", tiny(workplace, workers=2))
