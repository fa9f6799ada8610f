"""What a run reports while it trains: to its log, to the terminal and to optional writers."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO

import numpy as np

from umup.errors import TrainError
from umup.run.runlog import GOING_BACK, Log, duration, events, read
from umup.terminal import in_kernel, kernel_terminal

_logger = logging.getLogger(__name__)

__all__ = ["Display", "Log", "Telemetry", "Writer", "events", "read"]


class Display:
    """Progress of a long run: a bar in a terminal, elsewhere a plain line every few seconds.

    In a Jupyter kernel the lines go to the terminal behind it, or nowhere.

    Args:
        steps: updates of the whole run.
        every: least time between plain lines, seconds.
        out: where to write; by default standard error, or as above.
    """

    def __init__(
        self,
        steps: int,
        *,
        every: float = 5.0,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.steps, self._every, self._clock = steps, every, clock
        self._own = None
        if out is None and in_kernel():
            out = self._own = kernel_terminal()
        elif out is None:
            out = sys.__stderr__
        self._out, self._bar, self._pending, self._written = out, None, "", -math.inf
        if out is not None and out.isatty() and self._own is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=steps, file=out, unit=" steps", dynamic_ncols=True, mininterval=0
            )

    def at(self, step: int) -> None:
        """Move to ``step`` without training: a resumed run, or a roll back."""
        if self._bar is not None:
            self._bar.n = self._bar.last_print_n = self._bar.initial = step
            self._bar.unpause()
            self._bar.refresh()

    def update(self, done: int, loss: float, tokens_per_s: float, step_seconds: float) -> None:
        """Show that ``done`` steps are done; NaN stands for an unknown speed."""
        speed = "" if math.isnan(tokens_per_s) else f"  {tokens_per_s:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}{speed}", refresh=False)
            self._bar.update(done - self._bar.n)
            return
        left = (self.steps - done) * step_seconds
        left = "" if math.isnan(left) else f"  {duration(left)} left"
        self._pending = f"step {done:,}/{self.steps:,}  loss {loss:.4f}{speed}{left}"
        if self._clock() - self._written >= self._every:
            self._line(self._pending)

    def note(self, text: str) -> None:
        """Show a line at once, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        else:
            if self._pending:
                self._line(self._pending)
            self._line(text)

    def close(self) -> None:
        """Show the last pending line, and leave the terminal clean."""
        if self._bar is not None:
            self._bar.close()
        elif self._pending:
            self._line(self._pending)
        if self._own is not None:
            self._own.close()
        self._out = self._bar = self._own = None

    def _line(self, text: str) -> None:
        if self._out is not None:
            try:
                print(text, file=self._out, flush=True)
            except OSError:  # the reader of a pipe has closed it; the run goes on
                self._out = None
        self._pending, self._written = "", self._clock()


# --- all of it -----------------------------------------------------------------------------------


class Writer(Protocol):
    """Where numbers go besides the log; see ``umup.run.writers``."""

    def rewind(self, step: int) -> None:
        """Training starts or resumes at update ``step``; called once before anything else."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers of one update."""

    def close(self) -> None:
        """Write what is pending."""


SCALARS = {
    "loss": "train/loss",
    "bits_per_byte": "train/bits_per_byte",
    "grad_norm": "train/grad_norm",
    "eta": "train/eta",
    "tokens_per_s": "speed/tokens_per_s",
    "mfu": "speed/mfu",
    "memory_gib": "speed/memory_gib",
}
"""Names of the columns in writers; an event's numbers are ``NAME/field``, ``val/`` of an eval."""


class Telemetry:
    """Log, writers and display of one run, fed once per chunk of steps.

    Args:
        log: the run's log; if this process does not write it, it writes nothing else either.
        steps: updates of the whole run.
        tokens_per_step: tokens of a global batch.
        bytes_per_token: of the corpus, for bits per byte.
        flops_per_step, peak_flops: model FLOPs per update, and peak FLOP/s of all devices together;
            without either there is no MFU.
        writers: see ``umup.run.writers.open_writers``. A writer that fails is dropped.
        display: see ``Display``.
    """

    def __init__(
        self,
        log: Log,
        *,
        steps: int,
        tokens_per_step: int,
        bytes_per_token: float,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        writers: Sequence[Writer] = (),
        display: Display | None = None,
    ):
        self.log, self.total = log, steps
        self._tokens, self._bytes = tokens_per_step, bytes_per_token
        self._peak_seconds = None  # that a step takes at the peak
        if flops_per_step and peak_flops:
            self._peak_seconds = flops_per_step / peak_flops
        self._writers = list(writers) if log.main else []
        self._display = display if log.main else None

    def start(self, step: int = 0, **fields: Any) -> None:
        """Log that the run begins (``step`` 0), or that it resumes at update ``step``."""
        name = "resume" if step else "start"
        self.event(name, step, steps=self.total, tokens_per_step=self._tokens, **fields)
        self._back_to(step)

    def rewind(self, step: int) -> None:
        """Log that the run goes back and trains again from update ``step``."""
        self.log.rewind(step)
        self._back_to(step)

    def _back_to(self, step: int) -> None:
        self._let_write(lambda writer: writer.rewind(step))
        if self._display is not None:
            self._display.at(step)

    def steps(
        self,
        first_step: int,
        losses: Any,
        grad_norms: Any,
        etas: Any,
        ok: Any,
        seconds: float | None = None,
        memory: float | None = None,
        **more: Any,
    ) -> None:
        """Report a chunk of n updates, the first of which is number ``first_step``.

        Args:
            losses, grad_norms, etas, ok: (n,) each; see ``read``.
            seconds: wall time of the chunk; None if unknown, as when it includes compilation.
            memory: bytes, the largest use of a device so far, or None.
            more: further columns, (n,) numbers each.

        Raises:
            TrainError: the arrays' lengths differ, or the log cannot be written.
        """
        if not self.log.main:
            return
        from umup.data import nats_to_bits_per_byte

        losses = np.asarray(losses, np.float64)
        n, bits = len(losses), nats_to_bits_per_byte(losses, self._bytes)
        arrays = {"loss": losses, "bits_per_byte": bits, "grad_norm": grad_norms, "eta": etas}
        columns = {name: _short(values) for name, values in (arrays | more).items()}
        columns["ok"] = np.asarray(ok, bool).tolist()
        for name, values in columns.items():
            if len(values) != n:
                raise TrainError(name, f"{len(values)} values", f"{n}, one for each loss")
        rate = n * self._tokens / seconds if seconds else None
        mfu = n * self._peak_seconds / seconds if seconds and self._peak_seconds else None
        facts = {"tokens_per_s": rate, "mfu": mfu, "memory_gib": memory and memory / 2**30}
        facts = {name: float(f"{v:.6g}") for name, v in facts.items() if v is not None}
        rows = [
            {"step": first_step + i, **dict(zip(columns, row)), **facts}
            for i, row in enumerate(zip(*columns.values()))
        ]
        self.log.append_steps(rows)
        for row in rows if self._writers else ():
            named = {SCALARS.get(k, f"train/{k}"): v for k, v in row.items() if k != "step"}
            named["train/ok"] = float(row["ok"])
            self._scalars(row["step"], named)
        if self._display is not None and n:
            pace = math.nan if seconds is None else seconds / n
            speed = math.nan if rate is None else rate
            self._display.update(first_step + n, float(losses[-1]), speed, pace)

    def event(self, name: str, step: int, **fields: Any) -> None:
        """Log an event that happened before update ``step``; show it unless it is a checkpoint."""
        self.log.append(name, step, **fields)
        if not self.log.main:
            return
        if name not in GOING_BACK:
            numbers = {
                k: float(v)
                for k, v in fields.items()
                if isinstance(v, (int, float, np.number)) and not isinstance(v, bool)
            }
            place = "val" if name == "eval" else name
            named = {f"{place}/{key}": value for key, value in numbers.items()}
            self._scalars(step, named or {f"{place}/count": 1.0})
        if self._display is not None and name != "checkpoint":
            said = (
                f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in fields.items()
                if v is not None
            )
            self._display.note(
                ": ".join(filter(None, (f"{name} at step {step:,}", ", ".join(said))))
            )

    def close(self) -> None:
        """Close writers, display and log, each even if another fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.log.close)
            if self._display is not None:
                stack.callback(self._display.close)
            self._let_write(lambda writer: writer.close())

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if finite:
            self._let_write(lambda writer: writer.scalars(step, finite))

    def _let_write(self, action: Callable[[Writer], object]) -> None:
        """Call every writer. Training goes on without one that fails: the log has everything."""
        for writer in tuple(self._writers):
            try:
                action(writer)
            except Exception as error:  # of a network, a full disk, or of its library
                self._writers.remove(writer)
                name = type(writer).__name__
                _logger.warning("%s is written no more: %s: %s", name, type(error).__name__, error)


def _short(values: Any) -> list[float]:
    """Numbers as Python floats, with no more digits than identify them in float32."""
    return [float(text) for text in np.asarray(values).astype(np.float32).astype(str)]
