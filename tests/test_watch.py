"""Pictures of a run's log: what they say, where their curves are, when they stop."""

from __future__ import annotations

import io
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from umup.errors import TrainError
from umup.run.runlog import NAME, Log
from umup.run.telemetry import Telemetry
from umup.run.watch import decades, render, thin, ticks, watch


class Run:
    """A run of 400 steps whose clock is ours: 10 s for each chunk of 50 steps."""

    def __init__(self, folder: Path):
        self.folder, self.now, self.done = folder, 1000.0, 0
        log = Log(folder, clock=lambda: self.now)
        self.tel = Telemetry(log, steps=400, tokens_per_step=100, bytes_per_token=2.0)
        self.tel.start()

    def chunk(self, losses=None, grads=None) -> None:
        n = 50
        losses = np.linspace(4.0, 3.0, n) if losses is None else losses
        grads = np.ones(n) if grads is None else grads
        self.now += 10.0
        self.tel.steps(self.done, losses, grads, np.full(n, 0.5), np.isfinite(losses), seconds=8.0)
        self.done += n

    def picture(self, width: int = 100, height: int = 30, later: float = 1.0) -> str:
        return render(self.folder, width, height, now=self.now + later)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "arun")


def test_the_status_says_how_far_it_is(run):
    assert "no step yet" in run.picture()
    for _ in range(3):
        run.chunk()
    # 150 of 400 steps; 250 are left, at 10 s for 50
    assert run.picture().splitlines()[:2] == [
        "arun   step 150/400 (38 %)   50 s left   no checkpoint yet   interventions 0",
        "loss 3.0000   2.1640 bits per byte   |g| 1   η 0.5   625 tokens/s",
    ]
    run.tel.event("checkpoint", 100)
    run.tel.event("eval", 150, loss=3.25)
    run.tel.event("spike", 149, onset=130, reason="loss")
    run.tel.rewind(100)
    found = run.picture()
    for said in (
        "step 100/400 (25 %)",
        "last checkpoint 100",
        "interventions 1",
        "val 3.2500",
        "last spike at step 130 (loss)",
    ):
        assert said in found


def test_silence_is_said_and_not_after_the_end(run):
    run.chunk()
    assert "no new line" not in run.picture(later=59)
    assert "no new line for 70 s" in run.picture(later=70)
    run.now += 100.0  # chunks of 110 s are nothing to worry about before three of them
    run.chunk()
    assert "no new line" not in run.picture(later=320)
    assert "no new line for 6 min" in run.picture(later=340)
    run.tel.event("preempted", 100)
    assert "preempted at step 100" in run.picture(later=340)
    run.tel.start(50)
    assert "preempted" not in run.picture()
    run.tel.event("end", 100, verdict="gave up")
    found = run.picture(later=1000)
    assert "ended at step 100: gave up" in found
    assert "no new line" not in found
    assert " left" not in found


def test_steps_that_were_not_finite_and_damage_are_counted(run):
    run.chunk(losses=np.where(np.arange(50) % 10 == 3, np.nan, 3.0))
    assert "not finite 5" in run.picture()
    with (run.folder / NAME).open("a") as file:
        file.write("rubbish\n")
    assert "damaged lines left out 1" in run.picture()


@pytest.mark.parametrize("size", [(200, 60), (100, 30), (80, 24), (60, 20), (30, 9), (10, 2)])
def test_a_picture_fits_its_size(run, size):
    for _ in range(4):
        run.chunk()
    run.tel.event("spike", 120)
    lines = run.picture(*size).splitlines()
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    text, titles = (
        "\n".join(lines),
        ("running median", "gradient norm", r" {9}η\s", r" {9}tokens/s\s"),
    )
    shown = [bool(re.search(title, text)) for title in titles]
    assert shown == [i < {200: 4, 100: 4, 80: 4, 60: 2}.get(size[0], 0) for i in range(4)]


def test_a_curve_falls_where_the_loss_does_and_a_spike_is_marked(run):
    """One panel, read off as text: high on the left, low on the right, ┊ at the spike."""
    run.chunk(losses=np.full(50, 4.0))
    run.chunk(losses=np.full(50, 2.0))
    run.tel.event("spike", 99, onset=75)
    plot = [line for line in run.picture(60, 12).splitlines() if "│" in line or "┤" in line]
    rows = [line.replace("┤", "│").split("│")[1] for line in plot]
    braille = [[i for i, c in enumerate(row) if 0x2800 < ord(c) < 0x2900] for row in rows]
    width = len(rows[0])
    first = next(cells for cells in braille if cells)
    last = next(cells for cells in reversed(braille) if cells)
    assert min(first) <= 1
    assert max(first) == pytest.approx(width / 2, abs=3)
    assert max(last) >= width - 2
    assert min(last) == pytest.approx(width / 2, abs=3)
    marks = {i for row in rows for i, c in enumerate(row) if c == "┊"}
    assert len(marks) == 1
    assert marks.pop() == pytest.approx(75 / 99 * width, abs=2)
    left = [line.split("┤")[0].strip() for line in plot if "┤" in line]
    assert (left[0], left[-1]) == ("4", "2")


def test_what_is_not_measured_is_said(run):
    run.tel.steps(0, [1.0], [np.inf], [0.5], [True])
    found = run.picture()
    assert "tokens/s: not measured" in found
    assert "gradient norm (largest): not measured" in found


def test_colour_only_where_asked_for(run):
    run.chunk()
    assert "\x1b[" not in run.picture()
    assert "\x1b[38;5;4m" in render(run.folder, 100, 30, colour=True, now=run.now)


def test_medians_and_peaks_of_a_curve():
    steps, values = np.arange(1000.0), np.ones(1000)
    values[500] = 100.0
    x, y = thin(steps, values, 10)
    assert (len(x), x[0], x[-1]) == (10, 0.0, 999.0)
    assert y.tolist() == [1.0] * 10, "one value is no median"
    x, y = thin(steps, values, 10, peaks=True)
    assert y.max() == 100.0
    assert x[y.argmax()] == 555.0, "the end of the stretch, 445 to 555"
    x, y = thin(steps[:100], np.arange(100.0), 100)  # medians over 100 / 50 = 2 steps
    assert y[:3].tolist() == [0.0, 0.5, 1.5]
    assert thin(steps[:1], values[:1], 10)[1].tolist() == [1.0]


def test_ticks_are_round_numbers():
    assert ticks(0, 999, 4) == [0.0, 500.0]
    assert ticks(0, 1000, 6) == [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
    assert ticks(2.97, 8.03, 5) == [4.0, 6.0, 8.0]
    assert ticks(0.1, 0.3, 5) == [0.1, 0.15, 0.2, 0.25, 0.3]
    assert decades(0.5, 2000) == [1.0, 10.0, 100.0, 1000.0]
    assert decades(1e-6, 1e4, 5) == [1e-6, 1e-3, 1.0, 1e3]
    assert decades(0.6, 1.2) == [0.6, 0.8, 1.0, 1.2]


# --- watching -------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_watch_follows_a_run_to_its_end(run, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    run.chunk()
    out, sizes, slept = Screen(), [(100, 30), (60, 20)], []
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size(sizes[len(slept)]))

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        run.tel.event("end", 50, verdict="done")

    assert watch(run.folder, every=3.0, out=out, clock=lambda: run.now, sleep=sleep) == 0
    assert slept == [3.0]
    start, first, second = out.getvalue().split("\x1b[H\x1b[2J")
    assert start == "\x1b[?25l"
    assert "ended" not in first
    assert "ended at step 50: done" in second
    assert second.endswith("\x1b[?25h"), "the cursor is back"
    widths = [max(len(line) for line in text.splitlines()[:2]) for text in (first, second)]
    assert widths[0] > 60 >= widths[1], "the terminal was resized"
    assert "\x1b[38;5;4m" in first


def test_a_pipe_gets_plain_pictures_when_there_is_news(run):
    run.chunk()
    out, slept = io.StringIO(), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            run.tel.event("end", 50)

    assert watch(run.folder, out=out, clock=lambda: run.now, sleep=sleep) == 0
    assert len(slept) == 3
    assert out.getvalue().count("arun   step 50/400") == 2
    assert "\x1b" not in out.getvalue()


def test_once_is_one_picture(run, capsys):
    run.chunk()
    assert watch(run.folder, once=True, sleep=lambda _: pytest.fail("it waits")) == 0
    assert capsys.readouterr().out.count("arun   step 50/400") == 1


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_refused(run, monkeypatch, name, value):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    run.chunk()
    out = Screen()
    watch(run.folder, once=True, out=out)
    assert "\x1b" not in out.getvalue()


def test_ctrl_c_leaves_a_tidy_terminal(run, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    run.chunk()
    out = Screen()

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    assert watch(run.folder, out=out, sleep=sleep) == 0
    assert out.getvalue().endswith("\x1b[?25h")


def test_a_pipe_that_is_read_no_more_ends_it(run):
    class Pipe(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    run.chunk()
    assert watch(run.folder, out=Pipe()) == 0


@pytest.mark.parametrize("every", [0.0, -1.0, math.nan, math.inf])
def test_a_wait_without_length_or_end_is_refused(run, every):
    with pytest.raises(TrainError, match=r"--every: received .*more than 0"):
        watch(run.folder, every=every)


def test_a_folder_without_a_log_is_refused_and_runs_nearby_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError) as caught:
        watch("empty")
    assert str(caught.value) == (
        "run: received 'empty'; allowed: the folder of a run, with its log.jsonl; none is near it"
    )
    for i, name in enumerate(("runs/old", "runs/new", "beside")):
        Log(tmp_path / name).close()
        os.utime(tmp_path / name / NAME, (i, i))
    os.utime(tmp_path / "runs/new" / NAME, (9, 9))
    with pytest.raises(TrainError, match=r"near it: runs/new, beside, runs/old$"):
        render("empty", 80, 24)
    with pytest.raises(TrainError, match="near it: runs/new"):
        render("runs", 80, 24)
    assert "no step yet" in render(f"runs/new/{NAME}", 80, 24)
