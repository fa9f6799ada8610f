"""Sweeps: many runs of one shape in one program, recorded, resumable at any moment.

The unit of work is a *group*: up to ``lanes`` runs of one shape. Between chunks of steps the
group's state is written beside the records, so a killed sweep loses at most the chunk in flight;
a finished group becomes rows. Any number of processes may work on one study: each run is claimed
before it starts.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from umup import files
from umup.config import NUMERICS, RunConfig, canonical_json, digest
from umup.data import Dataset, nats_to_bits_per_byte
from umup.errors import DataError, RecordError, StudyError, memory_for
from umup.records import Store, provenance
from umup.telemetry import Progress as Progress

log = logging.getLogger("umup.sweep")

CURVE_POINTS = 100
CHECKPOINT_SECONDS = 30.0


class OutOfTime(Exception):
    """The time limit passed; everything done so far is on disk and the same command goes on."""

    def __init__(self) -> None:
        super().__init__("time limit reached; all is on disk, and the same command goes on")


@dataclass(frozen=True)
class Settings:
    """How a sweep runs, none of which changes its numbers.

    Args:
        lanes: runs trained together in one program.
        lanes_at_once: of these, how many a CPU advances side by side (an accelerator: all).
        chunk_steps: steps between two looks of the host.
        deadline: ``time.monotonic()`` after which to stop, or infinity.
    """

    lanes: int = 1
    lanes_at_once: int = 1
    chunk_steps: int = 250
    deadline: float = math.inf


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
    """Run what ``pending`` asks for until it asks for nothing.

    Args:
        pending: the runs still wanted, given the records so far; called again after every group,
            so that adaptive plans see each result. Runs in flight elsewhere may be in it.
        dataset: tokens; their digest must be that of the runs.
        store: where rows go.
        study, profile: columns of the rows.

    Raises:
        OutOfTime: the deadline passed; the state of the group in flight is on disk.
        StudyError: ``pending`` keeps asking for a run that is on record.
        OutOfMemoryError: the lanes of a group do not fit; the records so far are on disk.
    """  # fmt: skip
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
                # Only now: where the rows could not be written, the same command goes on from it.
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

    The state that it saved between chunks stays, for a caller that cannot record the rows.

    Raises:
        OutOfTime: see ``run_pending``.
        DataError: a run's ``data_digest`` is not that of the data set.
        ConfigError: an unknown scheme, or a hyperparameter that the scheme lacks.
    """  # fmt: skip
    for run in runs:
        if run.data_digest != dataset.digest:
            todo = f"{dataset.digest}, the digest of {dataset.corpus} as {dataset.tokenizer}"
            raise DataError("data_digest", run.data_digest, todo)
    import jax
    import jax.numpy as jnp

    from umup import train

    progress = progress or Progress()
    first, steps = runs[0], runs[0].optim.steps
    tokens_a_step = first.optim.batch_size * first.model.seq_len * len(runs)
    began = time.perf_counter()
    compiled, lanes = train.programs(first, settings.lanes_at_once), train.lanes_of(runs)
    tokens = device_tokens(dataset)
    partial = Partial.of(runs, folder)

    states = compiled.init(lanes)
    done, losses, wall = 0, np.zeros((len(runs), 0), np.float32), 0.0
    seen: list[np.ndarray] = []  # of each probe step so far: (lanes, tensors, statistics)
    if (saved := partial.load(jax.tree.leaves(states))) is not None:
        leaves, losses, wall, seen = saved
        done = losses.shape[1]
        states = jax.tree.unflatten(jax.tree.structure(states), [jnp.asarray(x) for x in leaves])
        progress.line(f"resuming {label(first, len(runs))} at step {done}/{steps}")

    chunks: list[tuple[int, float]] = []  # steps and seconds; the first compiles, if any does
    last_save, speed = time.monotonic(), math.nan

    def look() -> None:  # the observation due now, unless a resumed state holds it already
        if done in first.probe_steps and len(seen) == first.probe_steps.index(done):
            seen.append(np.asarray(compiled.observe(tokens, lanes, states)))

    while done < steps and (done == 0 or np.isfinite(losses[:, -1]).any()):
        look()
        stops = [s for s in (*first.probe_steps, steps) if s > done]
        n = min(settings.chunk_steps, stops[0] - done)
        start = time.perf_counter()
        states, new = compiled.chunk(tokens, lanes, states, n)
        new = np.asarray(new)  # waits for the device
        chunks.append((n, time.perf_counter() - start))
        speed = tokens_a_step / min(seconds / taken for taken, seconds in chunks)
        losses, done = np.concatenate([losses, new], axis=1), done + n
        left = (steps - done) * tokens_a_step / speed
        mean_loss = losses[:, -1].mean()
        progress.line(
            f"{label(first, len(runs))} step {done}/{steps} loss {mean_loss:.4f} "
            f"{speed:,.0f} tokens/s, {left:.0f} s left"
        )
        now = time.monotonic()
        if done < steps and (now - last_save > CHECKPOINT_SECONDS or now > settings.deadline):
            spent = wall + time.perf_counter() - began
            partial.save(jax.tree.leaves(states), losses, spent, seen)
            last_save = now
        if now > settings.deadline and done < steps:
            raise OutOfTime
    if done == steps:
        look()
    val = np.asarray(compiled.evaluate(device_tokens(dataset, "val"), states))
    # Speed is the median chunk's; what the first chunk took beyond it is compilation.
    per_step = [seconds / taken for taken, seconds in chunks]
    typical = float(np.median(per_step[1:])) if len(chunks) > 1 else math.nan
    compile_s = max(chunks[0][1] - typical * chunks[0][0], 0.0) if chunks else 0.0
    facts = {
        "tokens_per_s": tokens_a_step / typical,
        "wall_s": (wall + time.perf_counter() - began) / len(runs),
        "compile_s": compile_s,
        **provenance(),
    }
    rows = [
        row(run, losses[i], float(val[i]), dataset, study=study, profile=profile,
            facts=facts, reports=[report[i] for report in seen])
        for i, run in enumerate(runs)
    ]  # fmt: skip
    return rows


def reported(run: RunConfig, reports: Sequence[np.ndarray]) -> dict:
    """The probe columns of a row; a run that diverged has no report of its later probe steps."""
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
    """The split's tokens on the device; only the last data set's are kept."""
    key = (dataset.digest, split)
    if key not in _on_device:
        import jax.numpy as jnp

        for old in [old for old in _on_device if old[0] != dataset.digest]:
            del _on_device[old]
        _on_device[key] = jnp.asarray(getattr(dataset, split))
    return _on_device[key]


class Partial:
    """The state of a group between chunks: one file, replaced atomically.

    Args:
        path: the file; its name holds the digest of the group's keys, so a state can never be
            taken for another group's.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def of(cls, runs: Sequence[RunConfig], folder: Path) -> Self:
        """The state of the group of ``runs`` beside the records in ``folder``."""
        return cls(folder / ".partial" / f"{digest([run.key() for run in runs])}.npz")

    def save(
        self, leaves: list, losses: np.ndarray, wall: float, seen: Sequence[np.ndarray] = ()
    ) -> None:
        """Write state leaves, losses (lanes, steps), the seconds spent and the probes' reports.

        Raises:
            RecordError: the disk is full or cannot be written; the state before stays.
        """
        buffer = io.BytesIO()
        arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        arrays |= {"losses": losses, "wall": np.asarray(wall), "seen": np.asarray(seen)}
        np.savez(buffer, allow_pickle=False, **arrays)
        intact = "the records and the state saved before are intact"
        with files.writing(self.path, RecordError, intact), files.atomic_write(self.path) as file:
            file.write(buffer.getbuffer())

    def load(self, like: list) -> tuple[list, np.ndarray, float, list[np.ndarray]] | None:
        """The saved state, or None if there is none that fits ``like``'s shapes."""
        if not self.path.exists():
            return None
        try:
            with np.load(io.BytesIO(self.path.read_bytes())) as saved:
                leaves = [saved[f"leaf{i}"] for i in range(len(like))]
                losses, wall, seen = saved["losses"], float(saved["wall"]), list(saved["seen"])
        except Exception as error:  # a foreign or damaged file costs a restart, never a wrong run
            log.warning("ignoring the partial state %s: %s", self.path.name, error)
            return None
        if [(x.shape, x.dtype) for x in leaves] != [(x.shape, x.dtype) for x in like]:
            log.warning("ignoring the partial state %s: other shapes", self.path.name)
            return None
        return leaves, losses, wall, seen


def label(run: RunConfig, n_lanes: int) -> str:
    """Short name of a group for progress lines."""
    lanes = f" ×{n_lanes}" if n_lanes > 1 else ""
    lr = f"η=2^{math.log2(run.hps.eta):g}" if n_lanes == 1 else ""
    return f"{run.scheme} D={run.model.d_model} {lr} seed={run.seed}{lanes}"


def summarise(losses: np.ndarray, steps: int, vocab_size: int) -> dict:
    """Status, final and best loss and the thinned curve of one run.

    A run is ``diverged`` when a loss is not finite or the final loss is above ln V, that of a
    uniform guess. ``final_loss`` is the mean of the last tenth of the steps.
    """
    tail = losses[-max(steps // 10, 1) :]
    final = float(np.mean(tail, dtype=np.float64))
    finite = bool(np.isfinite(losses).all()) and len(losses) == steps
    ok = finite and final <= math.log(vocab_size)
    at = np.unique(np.linspace(0, len(losses) - 1, CURVE_POINTS).round().astype(int))
    # Each kept point is the mean since the one before, so that the curve is not a noisy sample.
    starts = np.concatenate([[0], at[:-1] + 1])
    curve = [float(np.mean(losses[a : b + 1], dtype=np.float64)) for a, b in zip(starts, at)]
    return {
        "status": "ok" if ok else "diverged",
        "final_loss": final if ok else math.nan,
        "best_loss": float(np.nanmin(losses)) if np.isfinite(losses).any() else math.nan,
        "curve_steps": (at + 1).tolist(),
        "curve_loss": curve,
    }


def row(
    run: RunConfig, losses: np.ndarray, val: float, dataset: Dataset, *, study: str,
    profile: str, facts: dict, reports: Sequence[np.ndarray] = (),
) -> dict:  # fmt: skip
    """The record of one finished run; ``reports`` of its probe steps are (tensors, statistics)."""
    summary = summarise(losses, run.optim.steps, run.model.vocab_size)
    val = val if summary["status"] == "ok" else math.nan
    return {
        "key": run.key(), "study": study, "profile": profile, "scheme": run.scheme,
        "d_model": run.model.d_model, "n_layers": run.model.n_layers,
        "n_heads": run.model.n_heads, "d_head": run.model.d_head, "d_ff": run.model.d_ff,
        "vocab_size": run.model.vocab_size, "seq_len": run.model.seq_len,
        "batch_size": run.optim.batch_size, "steps": run.optim.steps, "lr": run.hps.eta,
        "seed": run.seed, **summary, **reported(run, reports), "val_loss": val,
        "val_bits_per_byte": nats_to_bits_per_byte(val, dataset.bytes_per_token),
        "numerics": NUMERICS, "spec": canonical_json(run), "hps": json.dumps(run.hps.to_dict()),
        "data_digest": dataset.digest, "tokenizer_digest": dataset.tokenizer_digest, **facts,
    }  # fmt: skip
