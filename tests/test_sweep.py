"""Sweeps: summaries, states between chunks, resumption, claims, and what a row holds."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import logging
import math
import os
import resource
import time
import types

import numpy as np
import pytest

from umup import train
from umup.checked import canonical_json
from umup.config import NUMERICS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import OutOfMemoryError, RecordError, StudyError, UmupError
from umup.lab import sweep
from umup.lab.partial import Partial
from umup.lab.records import Store
from umup.lab.schemas import RUNS
from umup.lab.sweep import OutOfTime, Settings, groups, run_group, run_pending
from umup.lab.sweep import row as make_row
from umup.terminal import Progress

PAST = 0.0  # a deadline before any time.monotonic()
WHERE = {"study": "s", "profile": "p"}


def make_run(scheme="umup", *, eta=0.5, seed=0, steps=10, **model):
    shape = {
        "d_model": 16,
        "n_layers": 2,
        "d_head": 8,
        "d_ff": 40,
        "vocab_size": 13,
        "seq_len": 8,
        "base_width": 8,
        "base_depth": 1,
        "base_d_head": 4,
    }
    return RunConfig(
        scheme=scheme,
        model=ModelConfig(**(shape | model)),
        optim=OptimConfig(steps=steps, batch_size=2, warmup_steps=3),
        hps=HPs(eta=eta),
        seed=seed,
        corpus="c",
        tokenizer="t",
        data_digest="d",
        eval_batches=3,
    )


def make_dataset(digest="d"):
    i = np.arange(600, dtype=np.uint64)
    tokens = ((i * i + 3 * (i // 5)) % 13).astype(np.uint16)
    return Dataset("c", "t", 13, tokens, tokens[:100], 2.0, digest, "tok")


# --- summaries ------------------------------------------------------------------------------------


def test_final_loss_is_the_mean_of_the_last_tenth():
    losses = np.arange(20, 0, -1) / 10
    found = sweep.summarise(losses.astype(np.float32), 20, 256)
    assert found["status"] == "ok"
    assert found["final_loss"] == pytest.approx(0.15)  # of 0.2 and 0.1
    assert found["best_loss"] == pytest.approx(0.1)
    assert found["curve_steps"] == list(range(1, 21))
    assert found["curve_loss"] == pytest.approx(losses)
    assert sweep.summarise(np.float32([3, 2, 1]), 3, 256)["final_loss"] == 1.0


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([2.0, 1.0, math.nan, 1.5, 1.5], 1.0),  # not finite in the middle, finite at the end
        ([2.0, 1.0, 0.9, 1.5, math.inf], 0.9),
        ([2.0, 1.0, 3.0], 1.0),  # stopped before its 5 steps
        ([2.0, 1.0, 2.0, 2.0, 2.2], 1.0),  # worse than a uniform guess: ln 8 = 2.079
    ],
)
def test_diverged(losses, best):
    found = sweep.summarise(np.float32(losses), 5, 8)
    assert found["status"] == "diverged"
    assert math.isnan(found["final_loss"])
    assert found["best_loss"] == pytest.approx(best)
    assert len(found["curve_steps"]) == len(found["curve_loss"]) == len(losses)


def test_a_uniform_guess_is_not_diverged_and_nothing_finite_has_no_best():
    flat = np.full(10, 2.0794, np.float32)
    assert sweep.summarise(flat, 10, 8)["status"] == "ok"
    assert math.isnan(sweep.summarise(np.full(10, np.nan, np.float32), 10, 8)["best_loss"])


@pytest.mark.parametrize("steps", [101, 250, 2000])
def test_the_curve_is_thinned_to_means(steps):
    losses = np.random.default_rng(0).normal(1.0, 0.1, steps).astype(np.float32)
    found = sweep.summarise(losses, steps, 256)
    at, curve = found["curve_steps"], found["curve_loss"]
    assert len(at) == len(curve) == 100
    assert (at[0], at[-1]) == (1, steps)
    assert all(b > a for a, b in itertools.pairwise(at))
    # Every loss enters exactly one point: the means, weighted, give the mean of all.
    sizes = np.diff([0, *at])
    assert np.dot(sizes, curve) / steps == pytest.approx(losses.mean(dtype=np.float64))
    assert curve[50] == pytest.approx(losses[at[49] : at[50]].mean(dtype=np.float64))


# --- groups and states ----------------------------------------------------------------------------


def test_groups_hold_runs_of_one_shape_in_order():
    a, b, c = (make_run(eta=e) for e in (0.1, 0.2, 0.3))
    other = make_run("mup", eta=0.1)
    assert groups([a, other, b, c], 2) == [[a, b], [c], [other]]
    assert groups([], 3) == []


LEAVES = [np.arange(6, dtype=np.float32).reshape(2, 3), np.int32(7)]


def test_a_state_comes_back_exactly(tmp_path):
    partial = Partial(tmp_path / "deep" / "x.npz")
    assert partial.load(LEAVES) is None
    losses = np.float32([[1.5, math.nan]])
    seen = [np.ones((1, 4, 7), np.float32), np.zeros((1, 4, 7), np.float32)]
    partial.save(LEAVES, losses, 3.25, seen)
    leaves, found, wall, found_seen = partial.load(LEAVES)
    np.testing.assert_array_equal(found_seen, seen)
    for one, other in zip(leaves, LEAVES):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found, losses)
    assert wall == 3.25
    assert [p.name for p in partial.path.parent.iterdir()] == ["x.npz"]  # no temporary file


@pytest.mark.parametrize(
    "like",
    [
        [np.zeros((2, 4), np.float32), np.int32(0)],
        [np.zeros((2, 3), np.float64), np.int32(0)],
        [*LEAVES, np.zeros(1)],
    ],
)
def test_a_foreign_state_is_ignored(tmp_path, like, caplog):
    partial = Partial(tmp_path / "x.npz")
    partial.save(LEAVES, np.zeros((1, 2)), 0.0)
    with caplog.at_level(logging.WARNING):
        assert partial.load(like) is None
    assert "ignoring the partial state x.npz" in caplog.text


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_damaged_state_is_ignored(tmp_path, keep, caplog):
    partial = Partial(tmp_path / "x.npz")
    partial.save(LEAVES, np.zeros((1, 2)), 0.0)
    content = partial.path.read_bytes()
    size = keep if isinstance(keep, int) else int(keep * len(content))
    partial.path.write_bytes(content[:size])
    assert partial.load(LEAVES) is None
    assert "ignoring the partial state" in caplog.text


# --- a group --------------------------------------------------------------------------------------

FIVE = Settings(chunk_steps=5)


def test_rows_hold_the_run(tmp_path):
    run = make_run()
    (found,) = run_group([run], make_dataset(), tmp_path, settings=FIVE, **WHERE)
    assert RUNS.validate(found)
    assert set(found) == set(RUNS.columns)
    losses = train.train(run, make_dataset().train, chunk_steps=5)
    np.testing.assert_array_equal(np.float32(found["curve_loss"]), losses)
    assert found["final_loss"] == pytest.approx(float(losses[-1]))
    want = {
        "key": run.key(),
        "study": "s",
        "profile": "p",
        "scheme": "umup",
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 2,
        "d_head": 8,
        "d_ff": 40,
        "vocab_size": 13,
        "seq_len": 8,
        "batch_size": 2,
        "steps": 10,
        "lr": 0.5,
        "seed": 0,
        "status": "ok",
        "numerics": NUMERICS,
        "spec": canonical_json(run),
        "data_digest": "d",
        "tokenizer_digest": "tok",
    }
    assert {name: found[name] for name in want} == want
    assert RunConfig.from_dict(json.loads(found["spec"])) == run
    assert json.loads(found["hps"]) == run.hps.to_dict()
    # nats / ln 2 / (2 bytes per token)
    assert found["val_bits_per_byte"] == pytest.approx(found["val_loss"] / math.log(2) / 2)
    assert found["tokens_per_s"] > 0


def test_stopping_and_going_on_changes_no_loss(tmp_path):
    runs = [make_run(eta=e) for e in (0.5, 0.25)]
    whole = run_group(runs, make_dataset(), tmp_path / "a", settings=FIVE, **WHERE)
    hurried = Settings(chunk_steps=5, deadline=PAST)
    with pytest.raises(OutOfTime):
        run_group(runs, make_dataset(), tmp_path / "b", settings=hurried, **WHERE)
    (saved,) = (tmp_path / "b/.partial").iterdir()
    with np.load(saved) as state:
        assert state["losses"].shape == (2, 5)
    log = tmp_path / "log"
    resumed = run_group(
        runs, make_dataset(), tmp_path / "b", settings=hurried, progress=Progress(log), **WHERE
    )
    assert "at step 5/10" in log.read_text()
    for one, other in zip(whole, resumed):
        assert one["curve_loss"] == other["curve_loss"]
        assert (one["val_loss"], one["key"]) == (other["val_loss"], other["key"])


@pytest.mark.parametrize("probe_steps", [(), (2,), (2, 7)])
def test_compilation_is_what_the_first_chunk_took_beyond_its_steps(
    tmp_path, monkeypatch, probe_steps
):
    """On a clock of its own: 2 s per step, 30 s to compile, whatever the first chunk's length."""
    clock, compiled = [0.0], train.programs(make_run())
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def chunk(tokens, lanes, states, n):
        clock[0] += 2.0 * n + (0.0 if clock[0] else 30.0)
        return states, np.ones((1, n), np.float32)

    report = np.zeros((1, len(train.observed(make_run())), 5), np.float32)
    pretended = compiled._replace(
        chunk=chunk, observe=lambda *_: report, evaluate=lambda *_: np.ones(1, np.float32)
    )
    monkeypatch.setattr(train, "programs", lambda *_: pretended)
    run = dataclasses.replace(make_run(), probe_steps=probe_steps)
    (row,) = run_group([run], make_dataset(), tmp_path, settings=FIVE, **WHERE)
    assert row["compile_s"] == pytest.approx(30.0)
    assert row["tokens_per_s"] == pytest.approx(2 * 8 / 2.0)  # batch · length per 2 s


def test_rows_that_cannot_be_written_leave_the_state_to_go_on_from(tmp_path, monkeypatch):
    store, run = Store(tmp_path), make_run()

    def pending():
        return [] if store.keys() else [run]

    def go_on(deadline=math.inf):
        settings = Settings(chunk_steps=5, deadline=deadline)
        run_pending(pending, make_dataset(), store, settings=settings, **WHERE)

    with pytest.raises(OutOfTime):
        go_on(PAST)
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".parquet"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RecordError, match="free some disk space"):
            go_on()
    (state,) = (tmp_path / ".partial").iterdir()
    go_on()
    assert store.keys() == {run.key()} and not state.exists()


def test_a_state_that_cannot_be_written_is_an_error_and_the_one_before_stays(tmp_path):
    partial = Partial(tmp_path / "x.npz")
    partial.save(LEAVES, np.zeros((1, 3), np.float32), 1.0)
    before = partial.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RecordError, match=r"write failed: .* saved before are intact"):
            partial.save(LEAVES, np.zeros((1, 5), np.float32), 2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert partial.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [partial.path]


def test_a_state_of_other_runs_is_not_taken(tmp_path):
    hurried = Settings(chunk_steps=5, deadline=PAST)
    with pytest.raises(OutOfTime):
        run_group([make_run(eta=0.5)], make_dataset(), tmp_path, settings=hurried, **WHERE)
    with pytest.raises(OutOfTime):  # it starts at 0 and stops at 5 again
        run_group([make_run(eta=0.25)], make_dataset(), tmp_path, settings=hurried, **WHERE)
    assert len(list((tmp_path / ".partial").iterdir())) == 2


def test_a_diverged_run_stops_early_and_is_a_row(tmp_path):
    run = make_run("sp", eta=1e30)
    (found,) = run_group([run], make_dataset(), tmp_path, settings=FIVE, **WHERE)
    assert RUNS.validate(found)["status"] == "diverged"
    assert math.isnan(found["final_loss"])
    assert math.isnan(found["val_loss"])
    assert math.isnan(found["val_bits_per_byte"])
    assert len(found["curve_steps"]) == 5, "the second chunk is not run"


def test_a_diverged_lane_does_not_stop_the_others(tmp_path):
    runs = [make_run(eta=1e30), make_run(eta=0.5)]
    bad, good = run_group(runs, make_dataset(), tmp_path, settings=FIVE, **WHERE)
    assert (bad["status"], good["status"]) == ("diverged", "ok")
    losses = train.train(runs[1], make_dataset().train, chunk_steps=5)
    np.testing.assert_allclose(good["curve_loss"], losses, rtol=1e-5)


def test_runs_of_other_data_are_refused(tmp_path):
    with pytest.raises(UmupError, match="data_digest"):
        run_group([make_run()], make_dataset("e"), tmp_path, settings=FIVE, **WHERE)


def test_hps_that_the_scheme_lacks_are_refused():
    run = RunConfig.from_dict(make_run("sp").to_dict() | {"hps": {"alpha_residual": 2.0}})
    with pytest.raises(UmupError, match=r"alpha_residual: received 2\.0"):
        train.lanes_of([run])


def test_unknown_scheme(tmp_path):
    with pytest.raises(UmupError, match="scheme: received 'ump'"):
        run_group([make_run("ump")], make_dataset(), tmp_path, settings=FIVE, **WHERE)


# --- pending runs ---------------------------------------------------------------------------------


def want(store, runs):
    """A plan that wants what the store lacks, and counts how often it was asked."""

    def pending():
        pending.asked += 1
        on_record = store.keys()
        return [run for run in runs if run.key() not in on_record]

    pending.asked = 0
    return pending


def test_run_pending_records_each_run_once(tmp_path, monkeypatch):
    trained = []

    def pretend(runs, dataset, folder, **_):
        trained.extend(runs)
        return [fake_row(run) for run in runs]

    monkeypatch.setattr(sweep, "run_group", pretend)
    store, runs = Store(tmp_path), [make_run(eta=e / 10) for e in range(1, 8)]
    pending = want(store, runs)
    run_pending(pending, make_dataset(), store, settings=Settings(lanes=3), **WHERE)
    assert trained == runs
    assert sorted(store.read()["key"]) == sorted(run.key() for run in runs)
    assert pending.asked == 4, "asked again after every group, since plans adapt"
    assert not store.running()


def fake_row(run):
    losses = np.full(run.optim.steps, 1.0, np.float32)
    facts = {"tokens_per_s": 1.0, "wall_s": 1.0, "compile_s": 0.0, **sweep.provenance()}
    return make_row(run, losses, 1.0, make_dataset(), facts=facts, **WHERE)


def test_runs_in_flight_elsewhere_are_left_alone(tmp_path, monkeypatch):
    trained = []

    def pretend(runs, dataset, folder, **_):
        trained.extend(runs)
        return [fake_row(run) for run in runs]

    monkeypatch.setattr(sweep, "run_group", pretend)
    store, (mine, theirs) = Store(tmp_path), [make_run(eta=e) for e in (0.1, 0.2)]
    with Store(tmp_path).claim(theirs.key()) as claimed:
        assert claimed
        slept = []

        def sleep(seconds):
            slept.append(seconds)
            store.append([fake_row(theirs)])  # the other process finishes meanwhile

        # Of this module alone: other tests' threads sleep, too.
        ours = types.SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
        monkeypatch.setattr(sweep, "time", ours)
        run_pending(
            want(store, [mine, theirs]), make_dataset(), store, settings=Settings(lanes=2), **WHERE
        )
    assert trained == [mine]
    assert slept == [1.0]


def test_lanes_that_do_not_fit_are_an_error_that_asks_for_fewer(tmp_path, monkeypatch):
    done, large = make_run(), [make_run(steps=12), make_run(steps=12, seed=1)]

    def starved(runs, *_, **__):
        if runs == [done]:
            return [fake_row(done)]
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes")

    monkeypatch.setattr(sweep, "run_group", starved)
    store = Store(tmp_path)
    with pytest.raises(OutOfMemoryError, match="lanes: received 2; allowed: fewer lanes"):
        run_pending(
            want(store, [done, *large]), make_dataset(), store, settings=Settings(lanes=2), **WHERE
        )
    assert store.keys() == {done.key()}
    assert not store.running()


def test_waiting_for_others_ends_at_the_deadline(tmp_path):
    store, run = Store(tmp_path), make_run()
    with Store(tmp_path).claim(run.key()), pytest.raises(OutOfTime):
        late = Settings(deadline=PAST)
        run_pending(want(store, [run]), make_dataset(), store, settings=late, **WHERE)


def test_the_deadline_holds_between_runs_of_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_group", lambda runs, *_, **__: [fake_row(r) for r in runs])
    store, runs = Store(tmp_path), [make_run(eta=e / 10) for e in range(1, 8)]
    late = Settings(deadline=PAST)
    with pytest.raises(OutOfTime):
        run_pending(want(store, runs), make_dataset(), store, settings=late, **WHERE)


def test_a_plan_that_asks_for_a_recorded_run_is_an_error_not_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.time, "sleep", lambda _: None)
    store, run = Store(tmp_path), make_run()
    store.append([fake_row(run)])
    with pytest.raises(StudyError, match=run.key()):
        run_pending(lambda: [run], make_dataset(), store, **WHERE)


def test_a_killed_sweep_goes_on_from_its_records(tmp_path):
    store, runs = Store(tmp_path), [make_run(eta=e) for e in (0.5, 0.25)]
    hurried = Settings(chunk_steps=5, deadline=PAST)
    stops = 0
    while stops < 10:
        try:
            run_pending(want(store, runs), make_dataset(), store, settings=hurried, **WHERE)
            break
        except OutOfTime:
            stops += 1
            assert not store.running(), "a stopped process holds no claim"
    assert stops == 3  # in the middle of each run, and between the two
    found = store.read().set_index("key")
    for run in runs:
        losses = train.train(run, make_dataset().train, chunk_steps=5)
        np.testing.assert_array_equal(found.loc[run.key(), "curve_loss"], losses)


# --- progress -------------------------------------------------------------------------------------


def test_progress_goes_to_the_log_and_not_to_a_notebook(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("UMUP_PROGRESS", raising=False)
    now = time.monotonic()
    progress = Progress(tmp_path / "a/.log", clock=lambda: now + 2.5, started=now)
    progress.line("hello")
    progress.line("again")
    assert (tmp_path / "a/.log").read_text() == "[     2.5 s] hello\n[     2.5 s] again\n"
    assert capsys.readouterr().out == ""


def test_labels():
    assert sweep.label(make_run(eta=0.25, seed=2), 1) == "umup D=16 η=2^-2 seed=2"
    assert "×3" in sweep.label(make_run(), 3)
