"""The loop of one run: resumed and healed bit for bit, stopped and ended as it says."""

from __future__ import annotations

import math
import os
import resource
import signal
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from bigrun import (
    STEPS,
    after_chunk,
    config_of,
    dataset_of,
    on_the_first_devices,
    train,
    trajectory,
)
from umup import train as plain_train
from umup.errors import CheckpointError, OutOfMemoryError
from umup.run import loop, parallel, runlog, watch
from umup.run.loop import Drill

same = pd.testing.assert_frame_equal


@pytest.fixture(autouse=True)
def _few_devices(monkeypatch):
    on_the_first_devices(monkeypatch)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> tuple[Path, loop.Outcome]:
    """A run that nothing befell."""
    folder = tmp_path_factory.mktemp("clean") / "r"
    with pytest.MonkeyPatch.context() as patch:
        on_the_first_devices(patch)
        return folder, train(folder, eval_every=30)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the loop catches it. `scripts/soak.py` has the real one."""


def die() -> None:
    raise Killed


# --- a run that nothing befalls -------------------------------------------------------------------


@pytest.mark.optimized
def test_a_run_is_the_plain_scan_of_steps(clean):
    folder, outcome = clean
    config, dataset = config_of(), dataset_of()
    losses = plain_train.train(config.run(dataset), dataset.train)
    found = trajectory(folder)
    np.testing.assert_allclose(found["loss"], losses, rtol=2e-6)
    # Warm-up over 5 steps, a plateau of 55, and 20 linear steps down to a tenth.
    expected = [*(np.arange(1, 6) / 5), *np.ones(55), *(1 - 0.9 * np.arange(1, 21) / 20)]
    np.testing.assert_allclose(found["eta"], expected, rtol=1e-5)
    assert found["ok"].all() and (outcome.verdict, outcome.step) == ("done", STEPS)
    assert outcome.loss == np.float32(found["loss"].iloc[-1])
    assert outcome.interventions == [] and outcome.nonfinite == 0


@pytest.mark.one_device
def test_what_it_says_of_itself(clean):
    folder, outcome = clean
    frame = runlog.read(folder)
    np.testing.assert_allclose(
        frame["bits_per_byte"], frame["loss"] / math.log(2) / 2.0, rtol=1e-5
    )  # 2 bytes per token
    assert frame["mfu"].between(0, 1).sum() == STEPS - 8  # the first chunk is compilation
    evals = runlog.events(folder, "eval")
    assert [e["step"] for e in evals] == [30, 60, STEPS]
    assert evals[-1]["loss"] == outcome.val_loss
    assert evals[-1]["bits_per_byte"] == pytest.approx(outcome.val_loss / math.log(2) / 2)
    assert [e["step"] for e in runlog.events(folder, "checkpoint")] == [16, 32, 48, 64, 80]
    (end,) = runlog.events(folder, "end")
    assert (end["verdict"], end["interventions"], end["nonfinite"]) == ("done", 0, 0)


def test_a_finished_run_is_left_as_it_is(clean):
    folder, outcome = clean
    before = trajectory(folder), sorted(os.listdir(folder / "checkpoints"))
    again = train(folder)
    assert (again.verdict, again.step, again.loss) == ("done", STEPS, outcome.loss)
    assert again.val_loss == outcome.val_loss
    same(trajectory(folder), before[0])
    assert sorted(os.listdir(folder / "checkpoints")) == before[1] == ["48", "64", "80"]


def test_the_host_may_read_the_batches(clean, tmp_path):
    train(tmp_path, loader="host")
    same(trajectory(tmp_path), trajectory(clean[0]))


# --- stopped and resumed --------------------------------------------------------------------------


def test_a_signal_stops_it_with_a_checkpoint(clean, tmp_path, monkeypatch):
    for number, step in ((signal.SIGTERM, 40), (signal.SIGINT, 64)):
        before = signal.getsignal(number)
        with monkeypatch.context() as patch:
            after_chunk(patch, step - 1, lambda n=number: os.kill(os.getpid(), n))
            outcome = train(tmp_path)
        assert (outcome.verdict, outcome.step, outcome.reason) == ("stopped", step, number.name)
        assert str(step) in os.listdir(tmp_path / "checkpoints")
        assert signal.getsignal(number) is before
    assert train(tmp_path).verdict == "done"
    same(trajectory(tmp_path), trajectory(clean[0]))


def test_a_second_signal_ends_it_at_once(tmp_path, monkeypatch):
    def at_once(*_: object) -> None:
        raise Killed

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, at_once)
    try:
        after_chunk(monkeypatch, 20, twice)
        with pytest.raises(Killed):
            train(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["16"]


@pytest.mark.optimized
def test_out_of_time_and_any_length_of_chunk_are_one_trajectory(clean, tmp_path):
    for step in (5, 10):  # a chunk each, and a checkpoint wherever it stops
        outcome = train(tmp_path, chunk_steps=5, seconds=0.0)
        assert (outcome.verdict, outcome.reason, outcome.step) == ("stopped", "out of time", step)
    assert train(tmp_path, loader="host").verdict == "done"
    same(trajectory(tmp_path), trajectory(clean[0]))


def test_out_of_memory_says_what_needs_less_and_keeps_the_run(clean, tmp_path, monkeypatch):
    said = "RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes."
    for step, error in ((40, jax.errors.JaxRuntimeError(said)), (56, MemoryError())):

        def starved(error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as context:
            after_chunk(context, step, starved)
            with pytest.raises(OutOfMemoryError, match=r"model: received .*remat: full") as e:
                train(tmp_path)
        assert e.value.__cause__ is error
    assert train(tmp_path).verdict == "done"
    same(trajectory(tmp_path), trajectory(clean[0]))
    assert [e["step"] for e in runlog.events(tmp_path, "resume")] == [32, 48]


def test_another_fault_of_the_runtime_is_no_lack_of_memory(tmp_path, monkeypatch):
    def broken() -> None:
        raise RuntimeError("INTERNAL: something else")

    after_chunk(monkeypatch, 8, broken)
    with pytest.raises(RuntimeError, match="something else"):
        train(tmp_path)


def test_it_goes_on_from_a_chosen_checkpoint(clean, tmp_path):
    train(tmp_path, keep=9)
    assert train(tmp_path, keep=9, restart_from=32).verdict == "done"
    same(trajectory(tmp_path), trajectory(clean[0]))
    assert [e["step"] for e in runlog.events(tmp_path, "resume")] == [32]


def test_a_kill_between_checkpoint_and_evaluation_costs_neither(tmp_path, monkeypatch):
    often = {"checkpoint_every": 40, "eval_every": 40}
    event = loop.Telemetry.event

    def killed(self, name: str, step: int, **fields: object) -> None:
        event(self, name, step, **fields)
        if name == "checkpoint":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Telemetry, "event", killed)
        with pytest.raises(Killed):
            train(tmp_path, **often)
    assert train(tmp_path, **often).verdict == "done"
    assert [e["step"] for e in runlog.events(tmp_path, "resume")] == [40]
    assert [e["step"] for e in runlog.events(tmp_path, "eval")] == [40, STEPS]


def test_it_goes_on_on_another_mesh(clean, tmp_path):
    for mesh in ({"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {}):
        assert train(tmp_path, mesh=mesh, seconds=0.0).verdict == "stopped"
    one, other = trajectory(tmp_path), trajectory(clean[0])[:24]
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-4)
    meshes = [e["mesh"] for e in runlog.events(tmp_path) if e["event"] in ("start", "resume")]
    assert meshes == ["2×2×2", "1×8×1", "1×1×1"]


def test_a_full_disk_ends_it_and_it_goes_on_when_there_is_room(clean, tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    # No file beyond 16.5 kB: 64 rows of the log fit, and of a checkpoint neither the arrays do,
    # which share a number of files that differs from save to save, nor the list of their shardings.
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_500, hard))

    after_chunk(monkeypatch, 40, fill)
    try:
        with pytest.raises(CheckpointError, match="write failed") as error:
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # That of step 32 may have been in flight, that of 16 was not. What is there is whole, or going
    # on fails.
    last = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert last in (16, 32)
    assert error.value.allowed.endswith(f"the same command resumes from step {last}")
    assert train(tmp_path).verdict == "done"
    same(trajectory(tmp_path), trajectory(clean[0]))
    assert [e["step"] for e in runlog.events(tmp_path, "resume")] == [last]


# --- spikes ---------------------------------------------------------------------------------------

POISONED = range(44, 48)
BAD = {"poisoned": {"dataset": dataset_of(POISONED)}, "jump": {"drill": Drill(44, 45, 64.0)}}


def batches(monkeypatch) -> list[tuple[int, int]]:
    """(update, batch) of all that is trained from now on, in order."""
    taken: list[tuple[int, int]] = []
    programs = parallel.programs

    def spied(*args):
        found = programs(*args)

        def chunk(source, state, control):
            first = int(state.step)
            taken.extend((s, s + control.shift) for s in range(first, first + control.n_steps))
            return found.chunk(source, state, control)

        return found._replace(chunk=chunk)

    monkeypatch.setattr(parallel, "programs", spied)
    return taken


@pytest.mark.parametrize("kind", BAD)
def test_a_planted_spike_is_healed(clean, tmp_path, monkeypatch, kind):
    best = clean[1].val_loss
    off = train(tmp_path / "off", recovery={"on": False}, **BAD[kind])
    assert off.interventions == [] and trajectory(tmp_path / "off")["loss"][40:60].max() > 4.0

    taken = batches(monkeypatch)
    on = train(tmp_path / "on", **BAD[kind])
    assert on.verdict == "done" and on.nonfinite == 0
    (done,) = on.interventions
    # The first bad loss is that on batch 44, or of the update after it; 4 bad ones settle it.
    onset = 44 if kind == "poisoned" else 45
    assert (done["onset"], done["detected"], done["rolled_back_to"]) == (onset, onset + 3, 32)
    assert done["first_batch"] == onset - 1 and done["last_batch"] == onset + 3
    assert done["reason"] == "loss" and done["value"] > done["median"] + 7 * done["deviation"]
    assert done["eta_scale"] == 1.0
    (event,) = runlog.events(tmp_path / "on", "spike")
    assert {k: event[k] for k in done} == done and event["step"] == done["detected"]

    healed, found = trajectory(tmp_path / "on"), trajectory(clean[0])
    assert healed["loss"][24:].max() < 2.0 < trajectory(tmp_path / "off")["loss"][24:].max()
    assert abs(on.val_loss - best) < 0.05  # nats; other batches at the end
    same(healed[: onset - 1], found[: onset - 1])
    # Trained once more from 32 on, and never again on what was left out.
    again = taken.index((32, 32), taken.index((32, 32)) + 1)
    assert [b for _, b in taken[again:]] == [*range(32, onset - 1), *range(onset + 4, STEPS + 5)]


FATE = {"drill": Drill(44, 52, 64.0), "keep": 2, "recovery": {"eta_factor": 0.5}}


@pytest.fixture(scope="module")
def healed(tmp_path_factory) -> tuple[Path, loop.Outcome]:
    """A run of that fate, rolled back twice and never killed."""
    folder = tmp_path_factory.mktemp("healed") / "r"
    with pytest.MonkeyPatch.context() as patch:
        on_the_first_devices(patch)
        return folder, train(folder, **FATE)


@pytest.mark.parametrize("moment", ["drop", "spike", "rewind", "after"])
def test_a_roll_back_may_be_killed(healed, tmp_path, monkeypatch, moment):
    whole, reference = healed
    assert len(reference.interventions) == 2  # both told at the same step
    with monkeypatch.context() as patch:
        if moment == "drop":
            drop = loop.Checkpoints.drop_after
            patch.setattr(
                loop.Checkpoints,
                "drop_after",
                lambda self, step: (drop(self, step), step == 32 and die()),
            )
        elif moment == "spike":
            event = loop.Telemetry.event
            patch.setattr(
                loop.Telemetry,
                "event",
                lambda self, name, step, **f: (
                    event(self, name, step, **f),
                    name == "spike" and die(),
                ),
            )
        elif moment == "rewind":
            patch.setattr(loop.Telemetry, "rewind", lambda self, step: die())
        else:
            after_chunk(patch, 33, lambda: None)
            count, steps = [], loop.Telemetry.steps

            def second(self, first, *rest):
                steps(self, first, *rest)
                count.append(first)
                if count.count(32) == 2:
                    die()

            patch.setattr(loop.Telemetry, "steps", second)
        with pytest.raises(Killed):
            train(tmp_path, **FATE)
    assert train(tmp_path, **FATE) == reference
    same(trajectory(tmp_path), trajectory(whole))
    told = [runlog.events(folder, "spike") for folder in (tmp_path, whole)]
    one, other = ([{k: v for k, v in e.items() if k != "time"} for e in events] for events in told)
    assert one == other and len(one) == 2


def test_eta_is_lowered_where_asked_whatever_checkpoints_there_are(tmp_path, monkeypatch):
    fate = {"drill": Drill(46, 47, 64.0), "recovery": {"eta_factor": 0.5}}
    train(tmp_path / "a", **fate)
    (done,) = runlog.events(tmp_path / "a", "spike")
    assert (done["rolled_back_to"], done["onset"], done["eta_scale"]) == (32, 47, 0.5)
    eta = trajectory(tmp_path / "a")["eta"]
    # From the margin of 6 before the onset on: half.
    np.testing.assert_allclose(eta[5:41], 1.0)
    np.testing.assert_allclose(eta[41:60], 0.5)
    assert eta.iloc[-1] == pytest.approx(0.05)
    # Stopped at 40 by a signal, there is a nearer checkpoint to go back to.
    after_chunk(monkeypatch, 35, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(tmp_path / "b", **fate).step == 40
    train(tmp_path / "b", **fate)
    (done,) = runlog.events(tmp_path / "b", "spike")
    assert done["rolled_back_to"] == 40
    same(trajectory(tmp_path / "a"), trajectory(tmp_path / "b"))


def test_steps_that_are_not_finite_are_left_out_and_counted(clean, tmp_path):
    blow = Drill(44, 44, 1e30)  # the update on batch 44 leaves weights that give no finite loss
    off = train(tmp_path / "off", recovery={"on": False}, drill=blow)
    ok = trajectory(tmp_path / "off")["ok"]
    assert ok[:45].all() and not ok[45:].any()
    assert (off.verdict, off.nonfinite) == ("done", STEPS - 45)
    on = train(tmp_path / "on", drill=blow)
    (done,) = on.interventions
    assert (done["reason"], done["onset"], done["detected"]) == ("non-finite", 45, 52)
    assert (done["first_batch"], done["last_batch"]) == (44, 52)
    assert on.verdict == "done" and on.nonfinite == 0 and trajectory(tmp_path / "on")["ok"].all()
    assert abs(on.val_loss - clean[1].val_loss) < 0.05


def test_it_gives_up_and_says_why(tmp_path):
    fate = {"drill": Drill(44, 70, 64.0), "recovery": {"max_interventions": 1}}
    outcome = train(tmp_path, **fate)
    assert outcome.verdict == "gave up" and len(outcome.interventions) == 1
    assert "after 1 interventions, the most allowed" in outcome.reason
    (end,) = runlog.events(tmp_path, "end")
    assert (end["verdict"], end["reason"]) == ("gave up", outcome.reason)
    assert train(tmp_path, **fate) == outcome  # and again, from its checkpoint
    assert len(runlog.events(tmp_path, "spike")) == 1


def test_a_run_that_spikes_at_once_starts_anew(tmp_path):
    outcome = train(tmp_path, drill=Drill(3, 3, 1e30))
    (done,) = outcome.interventions
    assert (done["rolled_back_to"], done["reason"]) == (0, "non-finite")
    assert outcome.verdict == "done" and trajectory(tmp_path)["ok"].all()


# --- told to others -------------------------------------------------------------------------------


def test_tensorboard_and_watch_see_a_real_run(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    train(tmp_path / "r", tensorboard=True, drill=Drill(44, 45, 64.0))
    assert any((tmp_path / "r" / "tensorboard").glob("events.out.tfevents.*"))
    assert watch.watch(tmp_path / "r", once=True) == 0
    out = capsys.readouterr().out
    assert "step 80/80 (100 %)" in out and "interventions 1" in out
    assert "ended at step 80: done" in out and "last spike at step 45 (loss)" in out


def test_a_drill_is_tied_to_batches():
    drill = Drill(3, 4, 8.0)
    assert [drill.scale(batch) for batch in (2, 3, 4, 5)] == [1.0, 8.0, 8.0, 1.0]
