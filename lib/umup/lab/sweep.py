"""Sweeps: many runs of one shape in one program, recorded and resumable at any moment.

The unit of work is a *group*: up to ``lanes`` runs of one shape. Between chunks of steps the
group's state is written beside the records, so that a killed sweep loses at most the current chunk;
a finished group becomes rows. Any number of processes may work on one study: each run is claimed
before it starts.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umup.checked import canonical_json
from umup.config import NUMERICS, RunConfig
from umup.data import Dataset, nats_to_bits_per_byte
from umup.errors import DataError, StudyError, memory_for
from umup.lab.partial import Partial
from umup.lab.records import Store, provenance
from umup.terminal import Progress

CURVE_POINTS = 100
CHECKPOINT_SECONDS = 30.0


class OutOfTime(Exception):
    """The time limit passed; everything done so far is on disk and the same command resumes."""

    def __init__(self) -> None:
        super().__init__("time limit reached; all is on disk, and the same command resumes")


@dataclass(frozen=True)
class Settings:
    """How a sweep runs; no setting changes its numbers.

    Args:
        lanes: runs trained together in one program.
        lanes_at_once: number of these that a CPU advances together (an accelerator: all).
        chunk_steps: steps per chunk, after which control returns to the host.
        deadline: ``time.monotonic()`` after which to stop, or infinity.
        saves: whether states are saved between chunks, so that a killed sweep can resume.
    """

    lanes: int = 1
    lanes_at_once: int = 1
    chunk_steps: int = 250
    deadline: float = math.inf
    saves: bool = True


def groups(runs: Iterable[RunConfig], lanes: int) -> list[list[RunConfig]]:
    """Runs of equal shape in groups of at most ``lanes``, in the order given."""
    by_shape: dict[tuple, list[RunConfig]] = {}
    for run in runs:
        by_shape.setdefault(run.shape, []).append(run)
    return [s[i : i + lanes] for s in by_shape.values() for i in range(0, len(s), lanes)]


def run_pending(
    pending: Callable[[], Sequence[RunConfig]],
    dataset: Dataset,
    store: Store,
    *,
    study: str,
    profile: str,
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> None:
    """Run what ``pending`` requests until it requests nothing.

    Args:
        pending: the runs still wanted, given the records so far. It is called again after every
            group, so that adaptive plans see each result, and may include runs in flight elsewhere.
        dataset: tokens; their digest must be that of the runs.
        store: where rows are recorded.
        study, profile: columns of the rows.

    Raises:
        OutOfTime: the deadline passed; the state of the current group is on disk.
        StudyError: ``pending`` requests a run that is on record.
        OutOfMemoryError: the lanes of a group do not fit; the records so far are on disk.
    """
    progress = progress or Progress()
    worked, on_record = False, set()
    while wanted := list(pending()):
        if again := on_record & {run.key() for run in wanted}:
            raise StudyError("pending", min(again), "a plan that asks for no run on record")
        # Looked at after a group, never before the first: every call gets something done.
        if worked and time.monotonic() > settings.deadline:
            raise OutOfTime
        worked = False
        for group in groups(wanted, settings.lanes):
            with contextlib.ExitStack() as claims:
                mine = [run for run in group if claims.enter_context(store.claim(run.key()))]
                if not mine:
                    continue
                # Out of memory, what is on record stays there, and fewer lanes need less.
                with memory_for("lanes", len(mine), "fewer lanes, or a smaller width or batch"):
                    rows = run_group(
                        mine,
                        dataset,
                        store.folder,
                        study=study,
                        profile=profile,
                        settings=settings,
                        progress=progress,
                    )
                store.append(rows)
                # Only now: where the rows could not be written, the same command resumes from it.
                Partial.of(mine, store.folder).path.unlink(missing_ok=True)
                worked = True
                break
        if not worked:  # all that is wanted is in flight elsewhere, or was just recorded there
            on_record = {run.key() for run in wanted} & store.keys()
            if time.monotonic() > settings.deadline:
                raise OutOfTime
            time.sleep(1.0)


def run_group(
    runs: list[RunConfig],
    dataset: Dataset,
    folder: Path,
    *,
    study: str,
    profile: str,
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> list[dict]:
    """Train runs of one shape as lanes of one program and return their rows.

    The state saved between chunks is kept, in case the caller cannot record the rows.

    Raises:
        OutOfTime: see ``run_pending``.
        DataError: a run's ``data_digest`` is not that of the data set.
        ConfigError: an unknown scheme, or a hyperparameter that the scheme lacks.
    """
    group = Group(runs, dataset, folder, settings, progress or Progress())
    while not group.over:
        group.advance()
    return group.rows(study, profile)


class Group:
    """Training of runs of one shape as lanes of one program, a chunk of steps at a time.

    Args:
        runs: of equal shape.
        dataset: tokens; their digest must be that of the runs.
        folder: of the records, beside which the state is saved.
        settings: of the sweep. progress: told of every chunk.

    Raises:
        DataError: a run's ``data_digest`` is not that of the data set.
        ConfigError: an unknown scheme, or a hyperparameter that the scheme lacks.
    """

    def __init__(
        self,
        runs: list[RunConfig],
        dataset: Dataset,
        folder: Path,
        settings: Settings,
        progress: Progress,
    ):
        for run in runs:
            if run.data_digest != dataset.digest:
                todo = f"{dataset.digest}, the digest of {dataset.corpus} as {dataset.tokenizer}"
                raise DataError("data_digest", run.data_digest, todo)
        import jax
        import jax.numpy as jnp

        from umup import train

        self.runs, self.dataset, self.settings, self.progress = runs, dataset, settings, progress
        self.began, self.wall = time.perf_counter(), 0.0
        self.compiled = train.programs(runs[0], settings.lanes_at_once)
        self.lanes, self.tokens = train.lanes_of(runs), device_tokens(dataset)
        self.states = self.compiled.init(self.lanes)
        self.losses = np.zeros((len(runs), 0), np.float32)
        self.seen: list[np.ndarray] = []  # of each probe step so far: (lanes, tensors, statistics)
        self.chunks: list[tuple[int, float]] = []  # steps and seconds; the first compiles
        self.partial, self.saved_at = Partial.of(runs, folder), time.monotonic()
        if (saved := self.partial.load(jax.tree.leaves(self.states))) is not None:
            leaves, self.losses, self.wall, self.seen = saved
            leaves = [jnp.asarray(leaf) for leaf in leaves]
            self.states = jax.tree.unflatten(jax.tree.structure(self.states), leaves)
            progress.line(f"resuming {self} at step {self.done}/{self.steps}")

    def __str__(self) -> str:
        return label(self.runs[0], len(self.runs))

    @property
    def steps(self) -> int:
        """Steps of each run."""
        return self.runs[0].optim.steps

    @property
    def done(self) -> int:
        """Steps done so far."""
        return self.losses.shape[1]

    @property
    def over(self) -> bool:
        """Whether all steps are done, or every lane's loss is non-finite."""
        lost = self.done > 0 and not np.isfinite(self.losses[:, -1]).any()
        return self.done == self.steps or lost

    def advance(self) -> None:
        """Train a chunk, and save the state if that is due.

        Raises:
            OutOfTime: the deadline has passed, and the runs are not finished.
            RecordError: the state cannot be saved.
        """
        run = self.runs[0]
        self._look()
        stops = [s for s in (*run.probe_steps, self.steps) if s > self.done]
        n = min(self.settings.chunk_steps, stops[0] - self.done)
        start = time.perf_counter()
        self.states, new = self.compiled.chunk(self.tokens, self.lanes, self.states, n)
        new = np.asarray(new)  # waits for the device
        self.chunks.append((n, time.perf_counter() - start))
        self.losses = np.concatenate([self.losses, new], axis=1)
        speed = self._tokens_per_step / min(seconds / taken for taken, seconds in self.chunks)
        left = (self.steps - self.done) * self._tokens_per_step / speed
        self.progress.line(
            f"{self} step {self.done}/{self.steps} loss {new[:, -1].mean():.4f} "
            f"{speed:,.0f} tokens/s, {left:.0f} s left"
        )
        if self.done == self.steps:
            self._look()
            return
        late = time.monotonic() > self.settings.deadline
        if self.settings.saves and (late or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS):
            self._save()
        if late:
            raise OutOfTime

    @property
    def _tokens_per_step(self) -> int:
        run = self.runs[0]
        return run.optim.batch_size * run.model.seq_len * len(self.runs)

    def _look(self) -> None:
        """Make the observation that is due, unless a resumed state contains it already."""
        due = self.runs[0].probe_steps
        if self.done in due and len(self.seen) == due.index(self.done):
            self.seen.append(
                np.asarray(self.compiled.observe(self.tokens, self.lanes, self.states))
            )

    def _save(self) -> None:
        import jax

        spent = self.wall + time.perf_counter() - self.began
        self.partial.save(jax.tree.leaves(self.states), self.losses, spent, self.seen)
        self.saved_at = time.monotonic()

    def speeds(self) -> dict[str, float]:
        """tokens_per_s of all runs together, and compile_s in seconds; NaN if unknown.

        Speed is that of the median chunk; the excess time of the first chunk is compilation.
        """
        per_step = [seconds / taken for taken, seconds in self.chunks]
        typical = float(np.median(per_step[1:])) if len(self.chunks) > 1 else math.nan
        compile_s = 0.0
        if self.chunks:
            compile_s = max(self.chunks[0][1] - typical * self.chunks[0][0], 0.0)
        return {"tokens_per_s": self._tokens_per_step / typical, "compile_s": compile_s}

    def rows(self, study: str, profile: str) -> list[dict]:
        """The records of the runs, which must be finished."""
        held_out = device_tokens(self.dataset, "val")
        val = np.asarray(self.compiled.evaluate(held_out, self.states))
        facts = {
            **self.speeds(),
            "wall_s": (self.wall + time.perf_counter() - self.began) / len(self.runs),
            **provenance(),
        }
        return [
            row(
                run,
                self.losses[i],
                float(val[i]),
                self.dataset,
                study=study,
                profile=profile,
                facts=facts,
                reports=[report[i] for report in self.seen],
            )
            for i, run in enumerate(self.runs)
        ]


def reported(run: RunConfig, reports: Sequence[np.ndarray]) -> dict:
    """The probe columns of a row; a run that diverged has no reports of later probe steps."""
    if not reports:
        return {"probe_steps": [], "probe_tensors": [], "probe_values": []}
    from umup import train

    return {
        "probe_steps": run.probe_steps[: len(reports)],
        "probe_tensors": train.observed(run),
        "probe_values": np.asarray(reports, np.float32).reshape(-1),
    }


_on_device: dict[tuple[str, str], object] = {}


def device_tokens(dataset: Dataset, split: str = "train"):
    """The split's tokens on the device; only those of the last data set are kept."""
    key = (dataset.digest, split)
    if key not in _on_device:
        import jax.numpy as jnp

        for old in [old for old in _on_device if old[0] != dataset.digest]:
            del _on_device[old]
        _on_device[key] = jnp.asarray(getattr(dataset, split))
    return _on_device[key]


def label(run: RunConfig, n_lanes: int) -> str:
    """Short name of a group for progress lines."""
    lanes = f" ×{n_lanes}" if n_lanes > 1 else ""
    lr = f"η=2^{math.log2(run.hps.eta):g}" if n_lanes == 1 else ""
    recipe = "" if run.model.recipe == "plain" else f" {run.model.recipe}"
    scaled = f" loss×{run.optim.loss_scale:g}" if run.optim.loss_scale != 1.0 else ""
    width = f"D={run.model.d_model}"
    return f"{run.scheme}{recipe}{scaled} {width} {lr} seed={run.seed}{lanes}"


def thinned(losses: np.ndarray) -> tuple[list[int], list[float]]:
    """At most ``CURVE_POINTS`` steps, counted from 1, and the losses there.

    Each loss is the mean since the previous one, so that the curve is not a noisy sample.
    """
    at = np.unique(np.linspace(0, len(losses) - 1, CURVE_POINTS).round().astype(int))
    starts = np.concatenate([[0], at[:-1] + 1])
    curve = [float(np.mean(losses[a : b + 1], dtype=np.float64)) for a, b in zip(starts, at)]
    return (at + 1).tolist(), curve


def summarise(losses: np.ndarray, steps: int, vocab_size: int) -> dict:
    """Status, final and best loss and the thinned curve of one run.

    A run is ``diverged`` if a loss is not finite or the final loss is above ln V, the loss of a
    uniform guess. ``final_loss`` is the mean of the last tenth of the steps.
    """
    tail = losses[-max(steps // 10, 1) :]
    final = float(np.mean(tail, dtype=np.float64))
    finite = bool(np.isfinite(losses).all()) and len(losses) == steps
    ok = finite and final <= math.log(vocab_size)
    at, curve = thinned(losses)
    return {
        "status": "ok" if ok else "diverged",
        "final_loss": final if ok else math.nan,
        "best_loss": float(np.nanmin(losses)) if np.isfinite(losses).any() else math.nan,
        "curve_steps": at,
        "curve_loss": curve,
    }


def row(
    run: RunConfig,
    losses: np.ndarray,
    val: float,
    dataset: Dataset,
    *,
    study: str,
    profile: str,
    facts: dict,
    reports: Sequence[np.ndarray] = (),
) -> dict:
    """The record of one finished run; ``reports`` of its probe steps are (tensors, statistics)."""
    summary = summarise(losses, run.optim.steps, run.model.vocab_size)
    val = val if summary["status"] == "ok" else math.nan
    return {
        "key": run.key(),
        "study": study,
        "profile": profile,
        "scheme": run.scheme,
        "d_model": run.model.d_model,
        "n_layers": run.model.n_layers,
        "n_heads": run.model.n_heads,
        "d_head": run.model.d_head,
        "d_ff": run.model.d_ff,
        "vocab_size": run.model.vocab_size,
        "seq_len": run.model.seq_len,
        "batch_size": run.optim.batch_size,
        "steps": run.optim.steps,
        "lr": run.hps.eta,
        "seed": run.seed,
        **summary,
        **reported(run, reports),
        "val_loss": val,
        "val_bits_per_byte": nats_to_bits_per_byte(val, dataset.bytes_per_token),
        "numerics": NUMERICS,
        "spec": canonical_json(run),
        "hps": json.dumps(run.hps.to_dict()),
        "data_digest": dataset.digest,
        "tokenizer_digest": dataset.tokenizer_digest,
        **facts,
    }
