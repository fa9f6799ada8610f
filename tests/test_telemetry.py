"""The log of a run, what is read from it, the display and the writers."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from umup.errors import TrainError
from umup.run import runlog, telemetry
from umup.run.runlog import COLUMNS, NAME, Log, Reader, duration, events, read
from umup.run.telemetry import Display, Telemetry
from umup.run.writers import open_writers
from umup.terminal import Progress


def lines(folder: Path) -> list[dict]:
    """The raw lines, by a parser that takes strict JSON only."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / NAME).read_text("utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def telemetry_of(folder: Path, **more) -> Telemetry:
    log = more.pop("log", None) or Log(folder, clock=lambda: 7.0)
    return Telemetry(log, steps=10, tokens_per_step=64, bytes_per_token=2.0, **more)


def chunk(tel: Telemetry, first: int, losses, **more) -> None:
    n = len(losses)
    tel.steps(first, losses, np.full(n, 0.5), np.full(n, 0.25), np.ones(n, bool), **more)


# --- log and reader -------------------------------------------------------------------------------


def test_a_step_is_a_line_of_what_was_measured(tmp_path):
    tel = telemetry_of(tmp_path, flops_per_step=3e9, peak_flops=1e10)
    losses = np.array([math.log(2), 2.5], np.float32)
    tel.steps(
        4,
        losses,
        np.array([0.1, 3], np.float32),
        [0.25, 0.5],
        [True, False],
        seconds=2.0,
        memory=3 * 2**29,
        shift=[1, 1],
    )
    tel.close()
    first, second = lines(tmp_path)
    # ln 2 nats per token are 1 bit, over 2 bytes; 2 steps of 64 tokens, and of 0.3 s at the peak,
    # in 2 s; 1.5 GiB
    assert first == {
        "event": "step",
        "step": 4,
        "time": 7.0,
        "loss": 0.6931472,
        "bits_per_byte": 0.5,
        "grad_norm": 0.1,
        "eta": 0.25,
        "ok": True,
        "tokens_per_s": 64.0,
        "mfu": 0.3,
        "memory_gib": 1.5,
        "shift": 1.0,
    }
    assert np.float32(first["loss"]) == losses[0], "digits enough for the very float32"
    assert (second["step"], second["ok"]) == (5, False)
    frame = read(tmp_path)
    assert tuple(frame.columns) == (*COLUMNS, "shift")
    assert frame["step"].tolist() == [4, 5]
    assert frame["ok"].tolist() == [True, False]


def test_what_is_not_known_is_absent_from_the_line_and_nan_in_the_frame(tmp_path):
    chunk(telemetry_of(tmp_path, flops_per_step=3e9), 0, [2.0])
    (line,) = lines(tmp_path)
    assert not {"tokens_per_s", "mfu", "memory_gib"} & set(line)
    assert read(tmp_path)[["tokens_per_s", "mfu", "memory_gib"]].isna().all(axis=None)
    assert read(tmp_path)["loss"].tolist() == [2.0]


def test_numbers_that_are_not_finite_come_back(tmp_path):
    tel = telemetry_of(tmp_path)
    chunk(tel, 0, [math.nan, math.inf, -math.inf, 1.0])
    tel.event("spike", 1, value=math.inf, kept=[1.5, math.nan], reason="loss", none=None)
    assert [line.get("loss") for line in lines(tmp_path)] == ["nan", "inf", "-inf", 1.0, None]
    np.testing.assert_array_equal(read(tmp_path)["loss"], [math.nan, math.inf, -math.inf, 1.0])
    (spike,) = events(tmp_path, "spike")
    assert (spike["value"], spike["reason"], spike["none"]) == (math.inf, "loss", None)
    kept: Any = spike["kept"]
    np.testing.assert_array_equal(kept, [1.5, math.nan])


def test_going_back_supersedes_steps_and_no_event(tmp_path):
    tel = telemetry_of(tmp_path)
    tel.start()
    chunk(tel, 0, [9.0, 8.0, 7.0, 6.0])
    tel.event("spike", 2, onset=2)
    tel.rewind(2)
    before = (tmp_path / NAME).read_bytes()
    assert read(tmp_path)["loss"].tolist() == [9.0, 8.0], "no step of the abandoned pass"
    chunk(tel, 2, [5.0])
    assert read(tmp_path)["loss"].tolist() == [9.0, 8.0, 5.0]
    tel.start(1)  # killed and resumed from an earlier checkpoint
    chunk(tel, 1, [4.0])
    assert read(tmp_path)["loss"].tolist() == [9.0, 4.0]
    assert (tmp_path / NAME).read_bytes().startswith(before), "history is not rewritten"
    names = [(event["event"], event["step"]) for event in events(tmp_path)]
    assert names == [("start", 0), ("spike", 2), ("rewind", 2), ("resume", 1)]


def test_of_a_step_logged_twice_the_last_counts(tmp_path):
    tel = telemetry_of(tmp_path)
    chunk(tel, 0, [3.0, 2.0, 1.0])
    chunk(tel, 1, [7.0])
    assert read(tmp_path)["loss"].tolist() == [3.0, 7.0, 1.0]


@pytest.mark.parametrize("torn", [b'{"event": "step", "st', b'{"event": "end", "step": 3}', b"\0"])
def test_a_torn_line_is_not_read_and_is_cut_off(tmp_path, torn):
    chunk(telemetry_of(tmp_path), 0, [3.0, 2.0])
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole + torn)
    assert read(tmp_path)["step"].tolist() == [0, 1]
    assert events(tmp_path) == []
    tel = telemetry_of(tmp_path)
    assert (tmp_path / NAME).read_bytes() == whole
    chunk(tel, 2, [1.0])
    assert read(tmp_path)["step"].tolist() == [0, 1, 2]


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path):
    (tmp_path / NAME).write_bytes(b'{"event": "a", "step": 0}\n' + b"x" * 200_000)
    Log(tmp_path)
    assert (tmp_path / NAME).stat().st_size == 26
    (tmp_path / NAME).write_bytes(b"x" * 200_000)
    Log(tmp_path)
    assert (tmp_path / NAME).stat().st_size == 0


def test_a_damaged_line_costs_itself_alone(tmp_path, caplog):
    chunk(telemetry_of(tmp_path), 0, [3.0])
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'\0\0\0\n[1]\n{"event": "step"}\n{"event": 3, "step": 1}\n')
    chunk(telemetry_of(tmp_path), 1, [2.0])
    reader = Reader(tmp_path).update()
    assert reader.frame["loss"].tolist() == [3.0, 2.0]
    assert reader.damaged == 4
    assert "left out a damaged line" in caplog.text


def test_a_reader_follows_a_growing_log(tmp_path, monkeypatch):
    monkeypatch.setattr(runlog, "_BLOCK", 2)  # so that one update takes in several blocks
    tel = telemetry_of(tmp_path)
    chunk(tel, 0, [5.0, 4.0, 3.0])
    reader = Reader(tmp_path).update()
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"event": "step", "step": 3, ')
        file.flush()
        assert reader.update().frame["step"].tolist() == [0, 1, 2]
        file.write(b'"time": 8, "loss": 2.0, "extra": 1}\n')
    assert reader.update().frame["step"].tolist() == [0, 1, 2, 3]
    assert reader.frame["extra"].isna().tolist() == [True] * 3 + [False]
    assert reader.last is not None
    assert reader.last["step"] == 3
    (tmp_path / NAME).unlink()
    chunk(telemetry_of(tmp_path), 0, [1.0])
    assert reader.update().frame["loss"].tolist() == [1.0], "a new run in the same place"


def test_the_log_survives_sigkill_at_any_moment(tmp_path):
    code = (
        "import sys, numpy as np\nfrom umup.run.runlog import Log\nlog = Log(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "for s in range(0, 10**9, 100):\n"
        "    log.append_steps({'step': s + i, 'loss': 1.0} for i in range(100))\n"
    )
    for _ in range(3):
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while (tmp_path / NAME).stat().st_size < 100_000:
                pass
            process.send_signal(signal.SIGKILL)
        Log(tmp_path).close()
        reader = Reader(tmp_path).update()
        assert reader.damaged == 0
        assert reader.frame["step"].tolist() == list(range(len(reader.frame)))


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path, monkeypatch):
    log = Log(tmp_path)
    log.append("start", 0)
    whole, write = (tmp_path / NAME).read_bytes(), os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:20])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TrainError, match=r"log\.jsonl: received 'No space left on device'"):
        log.append("checkpoint", 5)
    assert (tmp_path / NAME).read_bytes() == whole
    monkeypatch.undo()
    log.append("end", 5)
    assert [event["event"] for event in events(tmp_path)] == ["start", "end"]


def test_an_event_that_did_not_reach_the_disk_is_an_error(tmp_path, monkeypatch):
    """A network's file system takes every write and says at the sync that it is full."""
    log, codes = Log(tmp_path), [errno.EINVAL, errno.EDQUOT]

    def sync(descriptor):
        code = codes.pop(0)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    log.append("eval", 1)  # what cannot be synced at all, such as a pipe
    with pytest.raises(TrainError, match="Disk quota exceeded"):
        log.append("eval", 2)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="a folder that can be written"):
        Log(tmp_path / "file" / "run")


def test_reading_no_log_is_an_error(tmp_path):
    with pytest.raises(TrainError, match="the log of a run"):
        read(tmp_path)


def test_arrays_of_other_lengths_are_refused(tmp_path):
    with pytest.raises(TrainError, match="grad_norm: received '1 values'; allowed: 2"):
        telemetry_of(tmp_path).steps(0, [1.0, 2.0], [1.0], [1.0, 1.0], [True, True])
    assert lines(tmp_path) == []


def test_only_the_main_process_writes(tmp_path):
    recorder, out = Recorder(), io.StringIO()
    log = Log(tmp_path / "run", main=False)
    tel = telemetry_of(tmp_path, log=log, writers=[recorder], display=Display(10, out=out))
    tel.start()
    chunk(tel, 0, [1.0])
    tel.rewind(0)
    tel.event("end", 1)
    tel.close()
    assert not (tmp_path / "run").exists()
    assert (recorder.calls, out.getvalue()) == ([], "")
    assert open_writers(tmp_path / "run", tensorboard=True, main=False) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5340, "89 min"),
        (7500, "2 h 05 min"),
        (172_799, "2 d 00 h"),
        (273_600, "3 d 04 h"),
        (math.nan, "?"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


# --- the terminal ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines_come_every_few_seconds_and_the_last_always():
    out, now = io.StringIO(), [0.0]
    display = Display(1000, every=5.0, out=out, clock=lambda: now[0])
    for second in range(8):  # lines at 0 and 5 s, and what is held back at 7 s by close
        now[0] = float(second)
        display.update(100 * (second + 1), 3.0 - second / 4, 12345.6, 0.5)
    assert len(out.getvalue().splitlines()) == 2
    display.close()
    assert out.getvalue().splitlines() == [
        "step 100/1,000  loss 3.0000  12,346 tokens/s  8 min left",
        "step 600/1,000  loss 1.7500  12,346 tokens/s  3 min left",
        "step 800/1,000  loss 1.2500  12,346 tokens/s  2 min left",
    ]


def test_a_note_comes_at_once_and_after_what_was_held_back():
    out = io.StringIO()
    display = Display(10, out=out, clock=lambda: 0.0)
    display.update(1, 2.0, math.nan, math.nan)
    display.update(2, 1.0, math.nan, math.nan)
    display.note("spike")
    assert out.getvalue() == "step 1/10  loss 2.0000\nstep 2/10  loss 1.0000\nspike\n"


def test_a_terminal_has_a_bar_that_can_go_back():
    out = Terminal()
    display = Display(1000, out=out)
    display.at(200)
    display.update(300, 2.5, 12345.0, 0.1)
    assert "300/1000" in out.getvalue()
    assert "loss 2.5000  12,345 tokens/s" in out.getvalue()
    display.at(250)
    assert "250/1000" in out.getvalue()
    display.update(350, 2.0, 12345.0, 0.1)
    display.note("a note")
    display.close()
    assert "350/1000" in out.getvalue()
    assert "a note\n" in out.getvalue()


def test_a_notebook_gets_nothing(monkeypatch):
    """As under papermill: a kernel without a terminal, whose standard error is an output."""
    output = Terminal()
    kernel: Any = types.ModuleType("kernelapp")
    kernel.IPKernelApp = types.SimpleNamespace(initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernel)
    monkeypatch.setattr(sys, "__stderr__", output)
    monkeypatch.setattr(telemetry, "kernel_terminal", lambda: None)
    display = Display(10)
    display.update(5, 1.0, 1.0, 1.0)
    display.note("hello")
    display.close()
    assert output.getvalue() == ""
    terminal = Terminal()
    monkeypatch.setattr(telemetry, "kernel_terminal", lambda: terminal)
    Display(10).note("hello")
    assert terminal.getvalue() == "hello\n", "a plain line on the terminal behind it, no bar"


def test_events_are_shown_but_not_checkpoints(tmp_path):
    out = io.StringIO()
    tel = telemetry_of(tmp_path, display=Display(10, out=out))
    tel.event("checkpoint", 4)
    tel.event("spike", 1234, reason="loss", value=3.14159265, median=None)
    tel.event("preempted", 5)
    assert out.getvalue() == (
        "spike at step 1,234: reason loss, value 3.14159\npreempted at step 5\n"
    )


# --- writers --------------------------------------------------------------------------------------


class Recorder:
    """A writer that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def rewind(self, step: int) -> None:
        self.calls.append(("rewind", step))

    def scalars(self, step: int, values) -> None:
        self.calls.append(("scalars", step, dict(values)))

    def close(self) -> None:
        self.calls.append(("close",))


def test_writers_get_named_finite_numbers(tmp_path):
    recorder = Recorder()
    tel = telemetry_of(tmp_path, writers=[recorder])
    tel.start(3)
    tel.steps(3, [math.nan], [0.5], [0.25], [False], seconds=1.0)
    tel.event("eval", 4, loss=2.0, bits_per_byte=1.5, split="val")
    tel.event("spike", 4, onset=3, reason="loss", final=True)
    tel.event("preempted", 4)
    tel.rewind(2)
    tel.close()
    assert recorder.calls == [
        ("rewind", 3),
        (
            "scalars",
            3,
            {
                "train/grad_norm": 0.5,
                "train/eta": 0.25,
                "train/ok": 0.0,
                "speed/tokens_per_s": 64.0,
            },
        ),
        ("scalars", 4, {"val/loss": 2.0, "val/bits_per_byte": 1.5}),
        ("scalars", 4, {"spike/onset": 3.0}),
        ("scalars", 4, {"preempted/count": 1.0}),
        ("rewind", 2),
        ("close",),
    ]


def test_closing_closes_all_though_one_fails(tmp_path, caplog):
    class Broken(Recorder):
        def close(self) -> None:
            raise RuntimeError("no network")

    recorder = Recorder()
    tel = telemetry_of(tmp_path, writers=[recorder, Broken(), recorder])
    tel.close()
    assert recorder.calls == [("close",)] * 2
    assert "Broken is written no more: RuntimeError: no network" in caplog.text


def test_training_goes_on_without_a_writer_that_fails(tmp_path, caplog):
    class Broken(Recorder):
        def scalars(self, step: int, values) -> None:
            super().scalars(step, values)
            raise OSError("no space left")

    broken, recorder = Broken(), Recorder()
    tel = telemetry_of(tmp_path, writers=[broken, recorder])
    tel.start()
    chunk(tel, 0, [4.0, 3.0])
    tel.rewind(1)
    tel.close()
    assert [call[0] for call in broken.calls] == ["rewind", "scalars"]
    assert [call[0] for call in recorder.calls] == [
        "rewind",
        "scalars",
        "scalars",
        "rewind",
        "close",
    ]
    assert caplog.text.count("Broken is written no more: OSError: no space left") == 1
    assert read(tmp_path)["loss"].tolist() == [4.0]


def test_a_display_whose_reader_has_left_is_silent(tmp_path):
    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    display = Display(10, out=Pipe(), every=0.0)
    display.update(1, 2.0, 3.0, 4.0)
    display.note("more")
    display.close()


def test_a_progress_log_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"log\.txt: received .*a file that can be written"):
        Progress(tmp_path / "file" / "log.txt").line("text")


def event_files(folder: Path) -> list[list[Event]]:
    """TensorBoard's files, by the format's own definition: length, CRC, data, CRC."""
    files = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name.rsplit(".", 1)[-1]):
        data, found = path.read_bytes(), []
        while data:
            size = int.from_bytes(data[:8], "little")
            body = data[12 : 12 + size]
            assert masked_crc32c(body) == int.from_bytes(data[12 + size : 16 + size], "little")
            found.append(Event.FromString(body))
            data = data[16 + size :]
        files.append(found)
    return files


def test_tensorboard_files_hold_the_numbers_and_hide_what_was_superseded(tmp_path):
    tel = telemetry_of(tmp_path, writers=open_writers(tmp_path, tensorboard=True))
    tel.start()
    chunk(tel, 0, [4.0, 3.0, 2.0])
    tel.rewind(1)  # within a second of the start
    chunk(tel, 1, [2.5])
    tel.event("eval", 2, loss=1.5)
    tel.close()
    first, second = event_files(tmp_path / "tensorboard")
    assert [event.step for event in first if event.HasField("session_log")] == [0]
    assert [event.step for event in second if event.HasField("session_log")] == [1]

    def scalars(found: list[Event], tag: str) -> list[tuple[int, float]]:
        pairs = [(event.step, value) for event in found for value in event.summary.value]
        return [(step, value.simple_value) for step, value in pairs if value.tag == tag]

    assert scalars(first, "train/loss") == [(0, 4.0), (1, 3.0), (2, 2.0)]
    assert scalars(second, "train/loss") == [(1, 2.5)]
    assert scalars(second, "val/loss") == [(2, 1.5)]
    assert scalars(second, "train/ok") == [(1, 1.0)]


@pytest.fixture
def wandb(monkeypatch) -> types.SimpleNamespace:
    """A stand-in for wandb that keeps its calls."""
    calls: list[tuple] = []
    run = types.SimpleNamespace(
        define_metric=lambda *args, **kw: calls.append(("define_metric", args, kw)),
        log=lambda *args, **kw: calls.append(("log", args, kw)),
        finish=lambda: calls.append(("finish",)),
    )
    module = types.ModuleType("wandb")

    def init(**kwargs):
        calls.append(("init", kwargs))
        if kwargs["project"] == "closed":
            raise RuntimeError("no API key")
        return run

    monkeypatch.setattr(module, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return types.SimpleNamespace(calls=calls)


def test_wandb_gets_our_step_as_its_axis(tmp_path, wandb):
    writers = open_writers(tmp_path, wandb="proj", key="abc", config={"seed": 1})
    tel = telemetry_of(tmp_path, writers=writers)
    tel.start()
    chunk(tel, 5, [2.0])
    tel.rewind(4)
    tel.event("eval", 4, loss=1.5)
    tel.close()
    values = {
        "step": 5,
        "train/loss": 2.0,
        "train/bits_per_byte": pytest.approx(1 / math.log(2)),
        "train/grad_norm": 0.5,
        "train/eta": 0.25,
        "train/ok": 1.0,
    }
    stored = json.loads((tmp_path / "wandb.json").read_text())["id"]
    init = {
        "project": "proj",
        "dir": str(tmp_path),
        "id": stored,
        "resume": "allow",
        "config": {"seed": 1},
    }
    assert stored.startswith("abc-")
    assert wandb.calls == [
        ("init", init),
        ("define_metric", ("step",), {}),
        ("define_metric", ("*",), {"step_metric": "step"}),
        ("log", (values,), {}),
        ("log", ({"step": 4, "val/loss": 1.5},), {}),
        ("finish",),
    ]


def test_a_folder_is_one_run_of_wandb(tmp_path, wandb):
    """Resumed, moved or reached by a link it keeps its id; a copy or a new folder has its own."""

    def opened(folder: Path) -> str:
        wandb.calls.clear()
        open_writers(folder, wandb="proj", key="abc")
        return wandb.calls[0][1]["id"]

    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    first = opened(one)
    assert opened(one) == first
    assert opened(two) != first
    shutil.copytree(one, three)
    copied = opened(three)
    assert copied not in (first, opened(two)) and opened(three) == copied
    assert opened(one) == first
    (tmp_path / "link").symlink_to(one)
    assert opened(tmp_path / "link") == first
    # The id's file names the folder by another path that still leads to it, as a second mount does.
    stored = {"id": first, "folder": str(tmp_path / "link")}
    (one / "wandb.json").write_text(json.dumps(stored), encoding="utf-8")
    assert opened(one) == first
    (tmp_path / "link").unlink()
    moved = one.rename(tmp_path / "elsewhere")
    assert opened(moved) == first == opened(moved)
    shutil.rmtree(moved)
    assert opened(moved) != first


@pytest.mark.parametrize("content", ["{", "[]", '{"id": "x"}', "\xff"])
def test_a_damaged_id_is_not_replaced(tmp_path, wandb, content):
    (tmp_path / "wandb.json").write_text(content, encoding="latin-1")
    with pytest.raises(TrainError, match=r"wandb\.json: received .*the file that umup wrote"):
        open_writers(tmp_path, wandb="proj", key="abc")
    assert wandb.calls == []


@pytest.mark.parametrize("off", ["", None])
def test_no_project_is_no_writer(tmp_path, wandb, off):
    assert open_writers(tmp_path, wandb=off) == [] and wandb.calls == []


def test_a_project_that_cannot_be_opened_is_an_error(tmp_path, wandb):
    with pytest.raises(TrainError, match=r"wandb: received 'closed'.*WANDB_MODE=offline.*API key"):
        open_writers(tmp_path, wandb="closed")


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize(
    ("package", "asked", "message"),
    [
        ("tensorboardX", {"tensorboard": True}, "tensorboard: received True; allowed: false, or"),
        ("wandb", {"wandb": "proj"}, "wandb: received 'proj'; allowed: null, or"),
    ],
)
def test_a_missing_package_names_the_extra_in_every_process(
    tmp_path, monkeypatch, package, asked, message, main
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TrainError) as caught:
        open_writers(tmp_path / "run", **asked, main=main)
    expected = f"{message} the package {package}: pip install 'umup[telemetry]'"
    assert str(caught.value) == expected
    assert not (tmp_path / "run").exists()


def test_importing_the_log_and_the_display_needs_no_jax():
    code = (
        "import sys, umup.run.telemetry, umup.run.watch, umup.run.writers\n"
        "sys.exit(bool({'jax', 'wandb', 'tensorboardX', 'plotext'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
