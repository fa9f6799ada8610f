"""``umup watch RUN``: the log of a running or finished run, plotted in the terminal."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from umup.errors import TrainError
from umup.run.runlog import GOING_BACK, NAME, Reader, duration, log_path

QUIET = 60.0
"""Seconds without a new line after which to say so; more if a chunk takes more than a third."""

SMOOTH = 50
"""The running median is over a fiftieth of the steps so far."""

_NEAR = 8
_PANEL = (24, 7)  # least columns and rows of a panel


@dataclass(frozen=True)
class _Panel:
    title: str
    column: str
    colour: str
    log: bool = False
    peaks: bool = False  # the largest value of each stretch instead of the running median


PANELS = (
    _Panel("loss, nats per token (running median)", "loss", "blue"),
    _Panel("gradient norm (largest)", "grad_norm", "green", log=True, peaks=True),
    _Panel("η", "eta", "magenta"),
    _Panel("tokens/s", "tokens_per_s", "cyan"),
)


def render(
    folder: Path | str, width: int, height: int, *, colour: bool = False, now: float | None = None
) -> str:
    """A plot of a run, of at most ``width`` columns and ``height`` lines.

    Args:
        folder: the run's folder, or its log.
        colour: whether to use terminal colours.
        now: the present, in seconds since 1970.

    Raises:
        TrainError: there is no log in ``folder``.
    """
    now = time.time() if now is None else now
    return _picture(_open(folder).update(), width, height, colour, now)


def watch(
    folder: Path | str,
    *,
    once: bool = False,
    every: float = 2.0,
    out: TextIO | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Plot a run until its end, at the terminal's current size; 0 when done, or on Ctrl-C.

    In a pipe there is no colour, and a new plot only when the log has grown.

    Args:
        folder: the run's folder, or its log.
        once: draw one plot and return.
        every: seconds between readings of the log.

    Raises:
        TrainError: there is no log in ``folder``, or ``every`` is not a time to wait.
    """
    if not 0 < every <= 86_400:
        raise TrainError("--every", every, "seconds, more than 0 and at most a day's")
    reader = _open(folder)
    stream: TextIO = sys.stdout if out is None else out
    screen = stream.isatty() and os.environ.get("TERM") != "dumb"
    colour = screen and "NO_COLOR" not in os.environ
    seen: dict[str, Any] | None = None
    if screen and not once:
        stream.write("\x1b[?25l")  # hides the cursor
    try:
        while True:
            reader.update()
            done = once or _ended(reader.events) is not None
            if screen or done or reader.last != seen:
                columns, lines = shutil.get_terminal_size()
                picture = _picture(reader, columns, lines - 1, colour, clock())
                home = "\x1b[H\x1b[2J" if screen and not once else ""
                stream.write(f"{home}{picture}\n")
                stream.flush()
            if done:
                return 0
            seen = reader.last
            sleep(every)
    except (KeyboardInterrupt, BrokenPipeError):  # the reader of a pipe, such as head, has left
        return 0
    finally:
        if screen and not once:
            stream.write("\x1b[?25h")
            stream.flush()


def _open(folder: Path | str) -> Reader:
    if log_path(folder).is_file():
        return Reader(folder)
    near = ", ".join(_near(Path(folder)))
    todo = f"the folder of a run, with its {NAME}; "
    raise TrainError("run", str(folder), todo + (f"near it: {near}" if near else "none is near it"))


def _near(folder: Path) -> list[str]:
    """Folders of runs in the folder, beside it, and in the current one: the latest first."""
    found: dict[Path, float] = {}
    for place in (folder, folder.parent, Path()):
        for depth in ("*", "*/*"):
            for path in place.glob(f"{depth}/{NAME}"):
                with contextlib.suppress(OSError):  # it went away, or is not ours to see
                    found[path.parent.resolve()] = path.stat().st_mtime
    latest = sorted(found, key=lambda path: -found[path])[:_NEAR]
    return [os.path.relpath(path) for path in latest]


# --- words ---------------------------------------------------------------------------------------


def _ended(events: Sequence[dict[str, Any]], name: str = "end") -> dict[str, Any] | None:
    """The event that the run ended with, unless it has gone on since."""
    for event in reversed(events):
        if event["event"] == name:
            return event
        if event["event"] in GOING_BACK:
            return None
    return None


def _words(reader: Reader, width: int, now: float) -> list[str]:
    """The run's progress, its latest numbers and its status."""
    frame, events = reader.frame, reader.events
    done = int(frame["step"].iloc[-1]) + 1 if len(frame) else 0
    named = [event for event in events if event.get("steps")]
    total = int(named[-1]["steps"]) if named else None
    times = frame.groupby("time", sort=True)["step"].max().tail(20)  # one time a chunk
    share = f"/{total:,} ({100 * done / total:.0f} %)" if total else ""
    far = [reader.path.resolve().parent.name, f"step {done:,}{share}"]
    end = _ended(events)
    if end is None and total and len(times) > 1 and times.iloc[-1] > times.iloc[0]:
        pace = (times.index[-1] - times.index[0]) / (times.iloc[-1] - times.iloc[0])
        far.append(f"{duration(pace * (total - done))} left")
    saved = [event for event in events if event["event"] == "checkpoint"]
    far.append(f"last checkpoint {saved[-1]['step']:,}" if saved else "no checkpoint yet")
    far.append(f"interventions {len(_spikes(events))}")
    if bad := int((~frame["ok"]).sum()):
        far.append(f"not finite {bad:,}")

    notes = []
    if end is not None:
        verdict = end.get("verdict") or end.get("status") or ""
        notes.append(f"ended at step {end['step']:,}" + (f": {verdict}" if verdict else ""))
    elif (stopped := _ended(events, "preempted")) is not None:
        notes.append(f"preempted at step {stopped['step']:,}")
    elif reader.last is not None:
        gaps = np.diff(times.index.to_numpy(float))
        quiet = now - float(reader.last.get("time", now))
        if quiet > max(QUIET, 3 * float(gaps.max(initial=0.0))):
            notes.append(f"no new line for {duration(quiet)}")
    if spikes := [event for event in events if event["event"] == "spike"]:
        reason = spikes[-1].get("reason")
        why = f" ({reason})" if reason else ""
        notes.append(f"last spike at step {_onset(spikes[-1]):,}{why}")
    if reader.damaged:
        notes.append(f"damaged lines left out {reader.damaged:,}")
    return [line for part in (far, _numbers(frame, events), notes) for line in _filled(part, width)]


def _filled(parts: Sequence[str], width: int) -> list[str]:
    """The parts in lines of at most ``width``; only a single longer part is cut."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(part[:width])
    return lines


def _numbers(frame: pd.DataFrame, events: Sequence[dict[str, Any]]) -> list[str]:
    if frame.empty:
        return ["no step yet"]
    said = {
        "loss": "loss {:.4f}",
        "bits_per_byte": "{:.4f} bits per byte",
        "grad_norm": "|g| {:.3g}",
        "eta": "η {:.3g}",
        "tokens_per_s": "{:,.0f} tokens/s",
        "mfu": "MFU {:.1%}",
        "memory_gib": "{:.1f} GiB",
    }
    last = frame.iloc[-1]
    parts = [text.format(last[name]) for name, text in said.items() if not math.isnan(last[name])]
    evals = [event for event in events if event["event"] == "eval" and "loss" in event]
    return [*parts, f"val {evals[-1]['loss']:.4f}"] if evals else parts


def _onset(event: dict[str, Any]) -> int:
    return int(event.get("onset", event["step"]))


def _spikes(events: Iterable[dict[str, Any]]) -> list[int]:
    """Steps at which spikes began."""
    return [_onset(event) for event in events if event["event"] == "spike"]


# --- pictures ------------------------------------------------------------------------------------


def _picture(reader: Reader, width: int, height: int, colour: bool, now: float) -> str:
    lines = _words(reader, width, now)
    room = height - len(lines)
    columns = 2 if width >= 2 * _PANEL[0] + 20 else 1
    rows = min(room // _PANEL[1], len(PANELS) // columns)
    if rows > 0 and width >= _PANEL[0] and len(reader.frame):
        lines += _panels(reader, width, min(room, 24 * rows), rows, columns, colour)
    return "\n".join(lines[:height])


def _panels(
    reader: Reader, width: int, height: int, rows: int, columns: int, colour: bool
) -> list[str]:
    import plotext

    plotext.terminal.limit(False, False)  # the size given counts, not that of the terminal
    figure, spikes = plotext.figure, _spikes(reader.events)
    figure.clear()
    figure.plot_size(width, height)
    alone = rows * columns == 1  # which plotext does not call a subplot
    if not alone:
        figure.subplots(rows, columns)
    for i, panel in enumerate(PANELS[: rows * columns]):
        plot = figure if alone else figure.subplot(i // columns + 1, i % columns + 1)
        plot.theme("simple")
        _draw(plot, panel, reader.frame, spikes, width // columns)
    text = figure.build().string(colorless=not colour)
    return [line.rstrip() for line in text.rstrip("\n").split("\n")]


def _draw(plot: Any, panel: _Panel, frame: pd.DataFrame, spikes: Sequence[int], width: int) -> None:
    """One panel. Its limits are always set, as plotext's own lose curves beside lines."""
    import plotext

    steps, values = frame["step"].to_numpy(float), frame[panel.column].to_numpy(float)
    known = np.isfinite(values) & (values > 0 if panel.log else True)
    if not known.any():
        plot.title(f"{panel.title}: not measured")
        plot.ruler("x").lim(0, 1)
        plot.ruler("y").lim(0, 1)
        plot.ruler("x").ticks([], [])
        plot.ruler("y").ticks([], [])
        return
    plot.title(panel.title)
    x, y = thin(steps[known], values[known], 2 * width, peaks=panel.peaks)
    left, right = _limits(steps[0], steps[-1], pad=0.0)
    low, high = _limits(y.min(), y.max(), log=panel.log)
    scaled = np.log10 if panel.log else np.asarray
    bottom, top = float(scaled(low)), float(scaled(high))
    plot.ruler("x").lim(left, right)
    plot.ruler("y").lim(bottom, top)
    across = ticks(left, right, max(width // 14, 2))
    up = decades(low, high) if panel.log else ticks(low, high, 5)
    plot.ruler("x").ticks(across, [_text(tick) for tick in across])
    plot.ruler("y").ticks([float(scaled(tick)) for tick in up], [_text(tick) for tick in up])
    red = plotext.marker("┊", pixel="red")
    for step in spikes:
        if left <= step <= right:
            plot.draw(plot.segment((step, step), (bottom, top), marker=red))
    line = plotext.marker("braille", pixel=panel.colour)
    plot.draw(plot.signal(x.tolist(), scaled(y).tolist(), marker=line).lines())


def thin(
    steps: np.ndarray, values: np.ndarray, points: int, *, peaks: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``points`` of a curve, the last step among them.

    Args:
        steps, values: (n,), finite.
        peaks: take the largest value since the previous point; else the median of the last
            n/``SMOOTH`` steps.
    """
    at = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    if peaks:
        starts = np.concatenate([[0], at[:-1] + 1])
        return steps[at], np.maximum.reduceat(values, starts)
    window = max(len(values) // SMOOTH, 1)
    medians = [np.median(values[max(i + 1 - window, 0) : i + 1]) for i in at]
    return steps[at], np.asarray(medians)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def decades(low: float, high: float, most: int = 5) -> list[float]:
    """Powers of ten in [low, high], at most ``most``; plain ticks if there are fewer than two."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 1:
        return ticks(low, high, most)
    return [10.0**i for i in range(first, last + 1, -(-(last - first + 1) // most))]


def _limits(
    low: float, high: float, *, pad: float = 0.03, log: bool = False
) -> tuple[float, float]:
    """Limits that leave some room, even if all values are equal."""
    if log:
        a, b = _limits(math.log10(low), math.log10(high), pad=pad)
        return 10.0**a, 10.0**b
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        room = 0.05 * abs(low) or 1.0
        return float(low) - room, float(high) + room
    room = pad * (high - low)
    return float(low - room), float(high + room)


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
