"""The queue of GPU time: jobs read and refused, what is left of them, slices, packs, merges."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from umup import slices
from umup.errors import DataError, RecordError, StudyError, UmupError
from umup.lab import study
from umup.lab.records import Store
from umup.lab.schemas import RUNS
from umup.slices import h100, packs, slice_worker

JOBS = slices.queue()
ITEM = {"name": "a", "study": "op_scales", "decides": "x", "kind": "points", "seconds": 5}


def written(path: Path, items) -> Path:
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


# --- the queue ------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_is_a_part_of_its_studys_profile(job):
    design = job.design()
    whole = study.design_of(job.study).from_dict(
        study.parameters(job.study, slices.PROFILE) | {"workers": 0, "time_limit_minutes": 0.0}
    )
    if job.kind == "points":
        keys = {point.key() for point in whole.points()}
        assert design.points() and {point.key() for point in design.points()} <= keys
    else:
        assert set(job.parameters) <= set(study.parameters(job.study, slices.PROFILE))
        assert design.trains
    assert job.design(rehearsal=True).profile == slices.PROFILE


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ({"a": 1}, "a list of jobs"),
        ([ITEM, ITEM], "every name once"),
        ([ITEM | {"kind": "both"}], "a.kind: received 'both'; allowed: points | runs"),
        ([ITEM | {"seconds": 0}], "a.seconds"),
        ([ITEM | {"minutes": 3}], "a.minutes"),
        ([{k: v for k, v in ITEM.items() if k != "study"}], "a.study: received 'nothing'"),
        ([ITEM | {"parameters": [1]}], "a.parameters"),
    ],
)
def test_a_malformed_queue_is_refused(tmp_path, items, said):
    with pytest.raises(StudyError, match=said.replace("|", r"\|")):
        slices.queue(written(tmp_path / "queue.yaml", items))


def test_an_unknown_job_study_or_parameter_is_named():
    with pytest.raises(StudyError, match="--only: received 'sanitary'"):
        slices.chosen(JOBS, ["sanitary"])
    with pytest.raises(StudyError, match="study: received 'op_scale'"):
        slices.Job.from_dict(ITEM | {"study": "op_scale"}).design()
    with pytest.raises(UmupError, match=r"queue\.yaml: a\.width"):
        slices.Job.from_dict(ITEM | {"parameters": {"width": 3}}).design()


# --- time -----------------------------------------------------------------------------------------


def test_a_part_is_begun_only_if_it_would_end_in_time(monkeypatch):
    now = [100.0]
    clock = types.SimpleNamespace(time=lambda: now[0])
    monkeypatch.setattr("umup.slices.slice_worker.time", clock)
    allowed = slice_worker.Allowance(until=160.0, seconds=100.0, whole=10)
    assert allowed.needs(2) == 20.0 and allowed.fits(2)
    now[0] += 40.0  # twice as long as predicted, and so will the rest be
    assert allowed.needs(1) == 20.0 and allowed.left() == 20.0
    assert allowed.fits(1)
    now[0] += 19.0
    assert not allowed.fits(1)
    without = slice_worker.Allowance(until=160.0, seconds=0.0, whole=10)
    assert without.fits(10)
    now[0] = 161.0
    assert not without.fits(0.0)


def test_a_limit_below_the_first_job_is_refused():
    job = slices.Job.from_dict(ITEM)
    h100.check_minutes(1.0, job)
    with pytest.raises(
        StudyError, match=r"--minutes: received 0.5; allowed: at least 0.8, for .* a"
    ):
        h100.check_minutes(0.5, job)


def test_what_is_done_begins_no_process_and_what_lacks_its_text_says_so(monkeypatch, tmp_path):
    done, open_, textless = (slices.Job.from_dict(ITEM | {"name": n}) for n in "abc")

    def lacks(job, folder, rehearse=False):
        if job is textless:
            raise DataError("corpus wiki", "no installed package", "pip install it")
        return (0 if job is done else 2), 5

    monkeypatch.setattr(h100, "lacks", lacks)
    jobs = [done, open_, textless]
    assert h100.lacking(jobs, tmp_path) == [open_, textless]
    rows = h100.listing(jobs, tmp_path, False).splitlines()
    assert [row.split("  ")[0] for row in rows] == ["job", "a", "b", "c"]
    for row, said in zip(rows[1:], ("done", "2 of 5", "unknown: corpus wiki"), strict=True):
        assert said in row


# --- slices ---------------------------------------------------------------------------------------

SMALL = {
    "d_heads": [16],
    "alphas": [1.0],
    "correlations": [],
    "ffn_alphas": [1.0],
    "softmax_mults": [1.0],
    "vocab_sizes": [16],
    "loss_tokens": [16],
    "tokens": 16,
    "elements": 64,
    "coordinates": 64,
    "seeds": 2,
}


@pytest.fixture
def queue(tmp_path):
    """Jobs of one study: two that share points, one that fails, one too large."""
    items = [
        ITEM | {"name": "one", "rehearse": SMALL | {"seq_lens": [4]}},
        ITEM | {"name": "broken", "rehearse": {"seq_lens": [-1]}},
        ITEM | {"name": "large", "gib": 1e9},
        ITEM | {"name": "two", "rehearse": SMALL | {"seq_lens": [4, 8]}},
    ]
    return written(tmp_path / "queue.yaml", items)


@pytest.fixture
def here(monkeypatch):
    """Workers in this process, which is how they spend no time on starting."""

    def process(work, batch):
        names = [job.name for job in batch]
        return slice_worker.main(
            [
                *names,
                "--queue",
                str(work.queue),
                "--folder",
                str(work.folder),
                "--until",
                repr(work.until),
                *(["--rehearse"] if work.rehearse else []),
            ]
        )

    monkeypatch.setattr(h100.Slice, "_process", process)
    monkeypatch.setattr(slice_worker, "on_device", lambda rehearsal: {"device": "d", "gib": 80.0})


def a_slice(queue, folder, minutes=30.0, only=()):
    jobs = slices.chosen(slices.queue(queue), only)
    return h100.Slice(jobs, folder, minutes, True, queue)


def keys(folder):
    """Of all rows in the shards of the slice's points, doubled ones twice."""
    store = Store(folder / "op_scales").points
    return [key for table in store.tables() for key in table.column("key").to_pylist()]


def test_a_slice_does_its_jobs_says_what_became_of_them_and_goes_on(queue, here, tmp_path):
    folder = tmp_path / "rows"
    work = a_slice(queue, folder)
    assert work.run(None) == 0
    record = work.record()
    assert [(j["job"], j["state"]) for j in record["jobs"]] == [
        ("one", "done"),
        ("broken", "failed"),
        ("large", "skipped"),
        ("two", "done"),
    ]
    broken, large = record["jobs"][1:3]
    assert "seq_lens" in broken["why"] and "Traceback" in broken["traceback"]
    assert "needs 1e+09 GiB, the device has 80" in large["why"]
    assert record["where"]["device"] == "d" and record["rehearsal"]
    assert all(name in work.table() for name in ("one", "broken", "large", "two", "skipped"))

    made = keys(folder)
    both = slices.chosen(slices.queue(queue), ["one", "two"])
    wanted = {point.key() for job in both for point in job.design(rehearsal=True).points()}
    assert sorted(made) == sorted(wanted)
    again = a_slice(queue, folder)
    assert again.run(None) == 0 and keys(folder) == made


def test_no_time_begins_no_job(queue, here, tmp_path):
    work = a_slice(queue, tmp_path / "rows", minutes=0.1)
    assert work.run(None) == 0
    assert work.record()["jobs"] == [] and "not begun" in work.table()


def test_a_worker_that_dies_costs_its_job_alone(queue, here, tmp_path, monkeypatch):
    work, whole = a_slice(queue, tmp_path / "rows"), h100.Slice._process
    deaths = []

    def dies(work, batch):
        if not deaths:
            deaths.append(batch[0].name)
            work.events.tell("begin", job=batch[0].name)
            return -11
        return whole(work, batch)

    monkeypatch.setattr(h100.Slice, "_process", dies)
    assert work.run(None) == 0
    jobs = {j["job"]: j for j in work.record()["jobs"]}
    assert jobs["one"]["state"] == "failed" and "status -11" in jobs["one"]["why"]
    assert jobs["two"]["state"] == "done"


def test_killed_at_any_moment_no_row_is_lost_or_doubled(queue, here, tmp_path):
    folder = tmp_path / "rows"
    command = [sys.executable, "-m", "umup.slices.slice_worker", "two", "--queue", str(queue)]
    command += ["--folder", str(folder), "--until", repr(time.time() + 3600), "--rehearse"]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 600
    while not keys(folder) and worker.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    worker.kill()
    worker.wait()
    assert keys(folder), "it was to be killed after its first row"
    with (folder / "events.ndjson").open("a") as file:
        file.write('{"event": "end", "jo')  # cut off by the kill
    work = a_slice(queue, folder, only=["two"])
    assert work.run(None) == 0
    (job,) = slices.chosen(slices.queue(queue), ["two"])
    assert sorted(keys(folder)) == sorted(p.key() for p in job.design(rehearsal=True).points())


def test_a_full_disk_ends_the_slice_and_keeps_the_rows(queue, here, tmp_path, monkeypatch):
    folder, append = tmp_path / "rows", Store.append
    left = [3]

    def full(store, rows):
        if not left[0]:
            raise RecordError(str(store.folder), "write failed: No space left on device", "room")
        left[0] -= 1
        return append(store, rows)

    monkeypatch.setattr(Store, "append", full)
    work = a_slice(queue, folder)
    assert work.run(None) == 1
    assert [j["job"] for j in work.record()["jobs"]] == ["one"] and len(keys(folder)) == 3


def test_without_a_gpu_it_says_so(queue, tmp_path, capsys):
    work = h100.Slice(slices.queue(queue), tmp_path, 30.0, False, queue)
    work._process = lambda batch: slice_worker.main(
        [
            batch[0].name,
            "--queue",
            str(queue),
            "--folder",
            str(tmp_path),
            "--until",
            "inf",
        ]
    )
    assert work.run(None) == 1
    said = capsys.readouterr().err
    assert "device: received 'cpu" in said and "jax[cuda13]" in said and "--rehearse" in said


def test_what_would_not_end_in_time_is_left(tmp_path, here):
    items = [
        ITEM | {"seconds": 1394e6},
        ITEM | {"name": "runs", "study": "hopper", "kind": "runs", "seconds": 1e6, "in_turn": 4},
    ]
    fields = {"corpus": "sotu", "recipes": ["plain"], "loss_scale": 0, "seeds": 1}
    items[1]["parameters"] = fields
    path = written(tmp_path / "queue.yaml", items)
    work = h100.Slice(slices.queue(path), tmp_path / "rows", 2.0, False, path)
    assert work.run(None) == 0
    points, runs = work.record()["jobs"]
    assert (points["state"], points["why"]) == ("left", "1394 of 1394 points left")
    assert (runs["state"], runs["why"]) == ("left", "2 runs left; the next takes about 1000000 s")
    assert not list((tmp_path / "rows").rglob("*.parquet"))


@pytest.mark.slow
def test_a_job_is_rehearsed_by_the_command(tmp_path):
    command = [sys.executable, "-m", "umup.slices.h100", "--rehearse", "--minutes", "60"]
    done = subprocess.run(
        [*command, "--only", "figure1", "--pack", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.findall(r"^(\w+) +done", done.stdout, re.MULTILINE) == ["figure1"]
    (log,) = json.loads((tmp_path / packs.LOG).read_text("utf-8"))
    assert log["rehearsal"] and log["where"]["device"] == "cpu"
    made = RUNS.unpack((tmp_path / "runs-1.parquet").read_bytes(), "runs")
    assert len(made) == 4 and set(made["profile"].to_pylist()) == {slices.PROFILE}
    first, second = re.findall(r"^merged: (\d+) new, (\d+) on record", done.stdout, re.MULTILINE)
    assert first == ("4", "0") and second == ("0", "4")


# --- packs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Committed rows of both kinds, as a slice might have made them."""
    folder = tmp_path_factory.mktemp("made")
    store, source = Store(folder / "fp8_drift"), study.store("fp8_drift", "cpu")
    mine = {"profile": slices.PROFILE}
    store.append([row | mine for row in pa_rows(source)[:5]])
    store.points.append([row | mine for row in pa_rows(source.points)[:7]])
    return store


def pa_rows(store):
    return [row for table in store.tables() for row in table.to_pylist()]


SLICE = {"id": "20260101T000000Z", "rehearsal": False}


def test_a_pack_travels_and_merging_it_twice_changes_nothing(rows, tmp_path):
    into, records = tmp_path / "pack", tmp_path / "records"
    files = packs.pack([rows], [SLICE], into)
    assert [path.name for path in files] == ["runs-1.parquet", "points-1.parquet", "slices.json"]
    found = packs.merge(into, records)
    assert found == {"new": 12, "on record": 0, "stale": 0, "slices": 1}
    store = Store(records / "fp8_drift" / "records" / slices.PROFILE)
    assert set(store.keys()) == rows.keys() and store.points.keys() == rows.points.keys()
    shards = sorted(records.rglob("*"))
    assert packs.merge(into, records) == {"new": 0, "on record": 12, "stale": 0, "slices": 0}
    assert sorted(records.rglob("*")) == shards
    assert packs.slices_so_far(records) == [SLICE]
    packs.pack([], [SLICE], into)
    assert [path.name for path in into.iterdir()] == ["slices.json"], "the shards before are gone"


def test_a_large_pack_is_split_and_too_large_a_one_refused(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "LIMIT", 25_000)
    files = packs.pack([rows], [SLICE], tmp_path)
    assert len(files) > 3 and all(f.stat().st_size <= 25_000 for f in files[:-1])
    assert packs.merge(tmp_path, tmp_path / "records")["new"] == 12
    monkeypatch.setattr(packs, "MOST_FILES", 3)
    with pytest.raises(RecordError, match="at most 3 of"):
        packs.pack([rows], [SLICE], tmp_path)


def test_rows_of_other_numerics_are_merged_as_stale(rows, tmp_path):
    old = Store(tmp_path / "old" / "fp8_drift")
    old.append([row | {"numerics": 0} for row in pa_rows(rows)])
    packs.pack([old], [SLICE], tmp_path / "pack")
    assert packs.merge(tmp_path / "pack", tmp_path / "records")["stale"] == 5


def test_what_is_no_pack_is_refused_and_nothing_written(rows, tmp_path):
    records = tmp_path / "records"
    with pytest.raises(StudyError, match=r"slices\.json"):
        packs.merge(tmp_path, records)
    packs.pack([rows], [SLICE | {"rehearsal": True}], tmp_path / "tried")
    with pytest.raises(StudyError, match="no measurements"):
        packs.merge(tmp_path / "tried", records)
    foreign = Store(tmp_path / "foreign")
    foreign.append([row | {"study": "elsewhere"} for row in pa_rows(rows)])
    packs.pack([rows, foreign], [SLICE], tmp_path / "pack")
    with pytest.raises(StudyError, match="study: received 'elsewhere'"):
        packs.merge(tmp_path / "pack", records)
    files = packs.pack([rows], [SLICE], tmp_path / "damaged")
    files[0].write_bytes(files[0].read_bytes()[:-100])
    with pytest.raises(RecordError, match=r"runs-1\.parquet"):
        packs.merge(tmp_path / "damaged", records)
    assert not records.exists()
