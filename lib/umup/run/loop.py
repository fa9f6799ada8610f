"""One training run from its file to its end, with resumption, monitoring and recovery from spikes.

The devices work in chunks of steps; between chunks the host checks every step's loss and gradient
norm. Its decisions follow from these numbers alone, so that a run that is killed and resumed makes
the same decisions and gives the same losses, bit for bit, on one process or many.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from umup import data, mesh
from umup.data import Dataset
from umup.data.loader import HostWindows
from umup.errors import TrainError, memory_for
from umup.machine import gemm_flops, peak_mib
from umup.optim import schedule
from umup.rules import check_hps
from umup.run import distributed, parallel
from umup.run.checkpoint import Checkpoints
from umup.run.parallel import Control
from umup.run.recovery import Detector, Intervention, Interventions, Spike
from umup.run.runfile import Fork, TrainConfig, held
from umup.run.runlog import Log, events
from umup.run.telemetry import Display, Telemetry
from umup.run.writers import open_writers

EXIT_RESUME = 75
"""Exit status of a run that was told to stop and can go on (EX_TEMPFAIL)."""
EXIT_GAVE_UP = 76
"""Exit status of a run that recovery could not heal."""


@dataclass(frozen=True)
class Drill:
    """An artificial disturbance: updates on batches ``first`` to ``last`` use η · ``eta_scale``.

    It is tied to batches rather than steps, so that leaving these batches out heals the run.
    """

    first: int
    last: int
    eta_scale: float

    def scale(self, batch: int) -> float:
        """The factor on η of the update on that batch."""
        return self.eta_scale if self.first <= batch <= self.last else 1.0


class Outcome(NamedTuple):
    """How a call of ``train_run`` ended.

    Args:
        verdict: ``done``, ``stopped`` (told to, or out of time: the same call resumes) or
            ``gave up``.
        step: updates done.
        loss: of the last step, nats per token.
        val_loss: of the held-out text at the end, NaN unless done.
        interventions: what was done about spikes, as plain records.
        nonfinite: number of steps left out because loss or gradient was not finite.
        reason: why the run gave up or stopped.
    """

    verdict: str
    step: int
    loss: float
    val_loss: float
    interventions: list[dict[str, Any]]
    nonfinite: int
    reason: str = ""


def train_run(
    config: TrainConfig,
    folder: Path,
    *,
    dataset: Dataset | None = None,
    restart_from: int | None = None,
    forked: Fork | None = None,
    drill: Drill | None = None,
    seconds: float = math.inf,
    quiet: bool = False,
) -> Outcome:
    """Train the run to its end, resuming from what its folder holds.

    SIGTERM and SIGINT stop it with a checkpoint after the current chunk.

    Args:
        config: the run.
        folder: its own; holds ``run.json``, ``lock``, ``log.jsonl`` and ``checkpoints``.
        dataset: tokens; by default those of the run's corpus.
        restart_from: resume from this checkpoint and delete later ones.
        forked: start from another run's checkpoint, see ``fork``.
        drill: an artificial disturbance.
        seconds: time after which to stop cleanly.
        quiet: no progress display.

    Raises:
        ConfigError, DataError: the configuration, before any compute.
        TrainError: the folder is another run's or in use, or the log cannot be written.
        CheckpointError: see ``umup.run.checkpoint``.
        OutOfMemoryError: the run does not fit; what its folder holds is kept.
    """
    dataset = dataset or data.load(
        config.corpus, config.tokenizer, seq_len=config.model.seq_len, max_tokens=config.max_tokens
    )
    check(config, dataset)
    asked = f"{config.model.n_params:,} parameters, batches of {config.optim.batch_size}"
    less = "what fits: accumulate, remat: full, a larger mesh; `umup plan FILE --layouts` lists it"
    with (
        memory_for("model", asked, less),
        held(config, folder, dataset),
        _Run(config, folder, dataset, drill, quiet) as run,
    ):
        run.start(restart_from, forked)
        return run.go(time.monotonic() + seconds)


def check(config: TrainConfig, dataset: Dataset, here: bool = True) -> None:
    """Raise an error for a run that cannot be trained, before any compute.

    Args:
        config: the run. dataset: its text.
        here: also check what this machine has: its number of devices, and their kernels.

    Raises:
        ConfigError: the mesh, or a hyperparameter that the scheme lacks.
        TrainError: the vocabulary, the number of steps, or an attention that the device lacks.
    """
    most = min(2**31 - 1, 2**32 // config.optim.batch_size)
    if config.optim.steps > most:
        allowed = f"at most {most:,}: steps, and samples of a batch each, are numbered in 32 bits"
        raise TrainError("optim.steps", config.optim.steps, allowed)
    if here and config.model.attention == "cudnn" and jax.default_backend() != "gpu":
        raise TrainError("model.attention", "cudnn", f"xla | blocked on {jax.default_backend()}")
    if config.model.vocab_size < dataset.vocab_size:
        allowed = f"at least {dataset.vocab_size}, the vocabulary of {config.tokenizer}"
        raise TrainError("model.vocab_size", config.model.vocab_size, allowed)
    check_hps(config.scheme, config.hps.to_dict())
    mesh.check(config.mesh, config.model, config.optim)
    if here:
        mesh.make(config.mesh)


class _Run:
    """The state of a run while it trains."""

    def __init__(
        self, config: TrainConfig, folder: Path, dataset: Dataset, drill: Drill | None, quiet: bool
    ):
        self.config, self.folder, self.drill = config, folder, drill
        self.spec, self.bytes_per_token = config.run(dataset), dataset.bytes_per_token
        key, main = config.key(dataset), distributed.is_main()
        writers = open_writers(
            folder,
            tensorboard=config.tensorboard,
            wandb=config.wandb or None,
            key=key,
            config=config.to_dict(),
            main=main,
        )
        self.checkpoints = Checkpoints(
            folder / "checkpoints", key, keep=config.keep, keep_every=config.keep_every
        )
        self.devices = mesh.make(config.mesh)
        self.programs = parallel.programs(self.spec, self.devices, config.chunk_steps)
        self.like = parallel.abstract_state(self.spec, self.devices)
        self.windows: HostWindows | None = None
        if config.loader == "host":
            self.windows = HostWindows(
                dataset.train,
                config.seed,
                batch_size=config.optim.batch_size,
                seq_len=config.model.seq_len,
                sharding=parallel.windows_sharding(self.devices),
            )
        else:
            self.tokens = parallel.place(dataset.train, self.devices)
        self.held_out = parallel.place(dataset.val, self.devices)
        self.telemetry = Telemetry(
            Log(folder, main=main),
            steps=config.optim.steps,
            writers=writers,
            tokens_per_step=config.optim.batch_size * config.model.seq_len,
            bytes_per_token=dataset.bytes_per_token,
            flops_per_step=config.model.step_flops(config.optim.batch_size),
            peak_flops=_peak_flops(config),
            display=None if quiet or not main else Display(config.optim.steps),
        )
        self.compiled = False  # the first chunk's time is compilation
        self.told_to_stop = ""

    def __enter__(self) -> _Run:
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # None stands for a handler not set by Python, such as the distributed runtime's.
                before = signal.signal(number, self._on_signal)
                self._handlers[number] = signal.SIG_DFL if before is None else before
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        with contextlib.ExitStack() as stack:
            stack.callback(self.telemetry.close)
            if self.windows is not None:
                stack.callback(self.windows.close)
            stack.callback(self.checkpoints.__exit__, kind, *rest)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.told_to_stop = signal.Signals(number).name
        signal.signal(number, self._handlers[number])  # a second one ends it at once

    def start(self, restart_from: int | None, forked: Fork | None) -> None:
        """The state to start from: a checkpoint, another run's checkpoint, or the initial state."""
        if self.checkpoints.steps():
            found = self.checkpoints.restore(self.like, restart_from)
            self.checkpoints.drop_after(found.step)
            self._take(found.state, found.host)
        elif restart_from is not None:
            self.checkpoints.restore(self.like, restart_from)  # says that there is none
        elif forked is not None:
            with Checkpoints(forked.folder / "checkpoints", forked.key, read_only=True) as theirs:
                found = theirs.restore(self.like, forked.step)
            self._take(found.state, found.host)
        else:
            self._take(self.programs.init(), self._fresh())
        origin = {"forked_from": str(forked.folder.name)} if forked is not None else {}
        self.telemetry.start(self.step, mesh=str(self.config.mesh), **origin)
        if forked is not None and not self.checkpoints.steps():
            self._save()  # to go on from, and back to, without the plateau's
        # Interventions that a kill undid before their checkpoint are replayed, but logged once.
        path = self.telemetry.log.path
        spikes = events(path, "spike") if path.exists() else []
        self.logged = {(e["detected"], e["first_batch"]) for e in spikes}

    def _fresh(self) -> dict[str, Any]:
        detector = Detector(self.config.recovery).state()
        return {
            "step": 0,
            "detector": detector,
            "interventions": [],
            "nonfinite": 0,
            "loss": math.nan,
        }

    def _take(self, state: Any, host: Mapping[str, Any]) -> None:
        policy = self.config.recovery
        self.state, self.step = state, int(host["step"])
        self.detector = Detector.restore(policy, host["detector"])
        self.interventions = Interventions.from_list(policy, host["interventions"])
        self.nonfinite, self.loss = int(host["nonfinite"]), float(host["loss"])

    def _host(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "detector": self.detector.state(),
            "interventions": self.interventions.to_list(),
            "nonfinite": self.nonfinite,
            "loss": self.loss,
            "seed": self.config.seed,
            "hps": self.config.hps.to_dict(),
            "batch": self.interventions.batch_at(self.step),
        }

    def go(self, deadline: float) -> Outcome:
        """Train until the end, a signal, the deadline or a spike that cannot be healed."""
        steps, every, evals = (
            self.config.optim.steps,
            self.config.checkpoint_every,
            self.config.eval_every,
        )
        saved = self.step if self.step in self.checkpoints.steps() else -1
        while self.step < steps:
            spike = self._chunk()
            if spike is not None:
                plan = self.interventions.plan(spike, [0, *self.checkpoints.steps()])
                if not isinstance(plan, Intervention):
                    return self._end("gave up", plan.reason)
                self._heal(plan)
                saved = -1
                continue
            # Before the checkpoint: a run that is killed in between evaluates again.
            if evals and self.step % evals == 0 and self.step < steps:
                self._evaluate()
            if self.step % every == 0 or self.step == steps:
                self._save()
                saved = self.step
            late = "out of time" if time.monotonic() > deadline else ""
            stop = self.told_to_stop or late
            if distributed.any_of(bool(stop)) and self.step < steps:
                if saved != self.step:
                    self._save()
                self.checkpoints.wait()
                return self._end("stopped", stop or "another process was told to")
        self.checkpoints.wait()
        return self._end("done", "", self._evaluate())

    def _control(self, step: int) -> tuple[int, float]:
        """Number of batches skipped before update ``step``, and the factor on its η."""
        shift, scale = self.interventions.shift_at(step), self.interventions.eta_scale_at(step)
        return shift, scale * (self.drill.scale(step + shift) if self.drill else 1.0)

    def _chunk(self) -> Spike | None:
        """Take steps up to the next point at which the host must act."""
        config, control = self.config, self._control(self.step)
        end = min(
            config.optim.steps,
            *(
                self.step - self.step % every + every
                for every in (config.chunk_steps, config.checkpoint_every, config.eval_every)
                if every
            ),
        )
        changed = (s for s in range(self.step + 1, end) if self._control(s) != control)
        n = next(changed, end) - self.step
        began, first = time.perf_counter(), self.step + control[0]
        if self.windows is None:
            source = self.tokens
        else:
            source = self.windows.windows(first, config.chunk_steps)
        self.state, signals = self.programs.chunk(source, self.state, Control(*control, n))
        if self.windows is not None:
            self.windows.prefetch(first + n, config.chunk_steps)
        loss, norm, ok = (np.asarray(x)[:n] for x in signals)  # waits for the devices
        took = time.perf_counter() - began
        etas = config.hps.eta * control[1] * self._schedule(np.arange(self.step, self.step + n))
        self.telemetry.steps(
            self.step, loss, norm, etas, ok, took if self.compiled else None, _memory()
        )
        self.compiled = True
        for i in range(n):
            self.nonfinite += not ok[i]
            spike = self.detector.update(self.step + i, float(loss[i]), float(norm[i]), bool(ok[i]))
            if spike is not None:
                return spike
        self.step, self.loss = self.step + n, float(loss[-1])
        return None

    def _schedule(self, steps: np.ndarray) -> np.ndarray:
        return np.asarray(schedule(self.config.optim)(steps))

    def _heal(self, plan: Intervention) -> None:
        """Roll back, and leave out the batches around the spike."""
        after = self.interventions.after(plan)
        self.checkpoints.drop_after(plan.rolled_back_to)
        if plan.rolled_back_to in self.checkpoints.steps():
            found = self.checkpoints.restore(self.like, plan.rolled_back_to)
            self._take(found.state, found.host)
        else:
            self._take(self.programs.init(), self._fresh())
        self.interventions = after
        if (plan.detected, plan.first_batch) not in self.logged:
            self.telemetry.event("spike", plan.detected, **plan.to_dict())
        self.telemetry.rewind(self.step)

    def _save(self) -> None:
        self.checkpoints.save(self.step, self.state, self._host())
        self.telemetry.event("checkpoint", self.step)

    def _evaluate(self) -> float:
        loss = float(self.programs.evaluate(self.held_out, self.state))
        bits = data.nats_to_bits_per_byte(loss, self.bytes_per_token)
        self.telemetry.event("eval", self.step, loss=loss, bits_per_byte=float(bits))
        return loss

    def _end(self, verdict: str, reason: str, val_loss: float = math.nan) -> Outcome:
        outcome = Outcome(
            verdict,
            self.step,
            self.loss,
            val_loss,
            self.interventions.to_list(),
            self.nonfinite,
            reason,
        )
        self.telemetry.event(
            "end",
            self.step,
            verdict=verdict,
            reason=reason,
            loss=self.loss,
            val_loss=val_loss,
            nonfinite=self.nonfinite,
            interventions=len(outcome.interventions),
        )
        return outcome


def _peak_flops(config: TrainConfig) -> float:
    """FLOP/s of all devices together; virtual devices of one CPU share its cores."""
    count = 1 if jax.default_backend() == "cpu" else config.mesh.devices
    return (config.peak_tflops * 1e12 or gemm_flops(config.model.dtype)) * count


def _memory() -> float | None:
    """Peak memory in bytes of a device of this process so far; on a CPU, of the process."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return float(max(peaks)) if peaks else peak_mib() * 2**20
