"""One small run of `umup train`: its configuration, its tokens, and what its log says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from umup import mesh
from umup.data import Dataset
from umup.run import loop, runlog
from umup.run.runfile import TrainConfig
from umup.sampling import permute_on_host

SEQ_LEN, BATCH, STEPS = 16, 8, 80
SHAPE = {
    "d_model": 16,
    "n_layers": 2,
    "d_head": 8,
    "d_ff": 32,
    "vocab_size": 16,
    "seq_len": SEQ_LEN,
    "base_width": 16,
    "base_depth": 2,
    "base_d_head": 8,
}
OPTIM = {
    "steps": STEPS,
    "batch_size": BATCH,
    "warmup_steps": 5,
    "schedule": "wsd",
    "decay_steps": 20,
}
RECOVERY = {"window": 16, "warmup": 24, "margin": 6}
PLAIN: dict[str, Any] = {
    "name": "r",
    "model": SHAPE,
    "optim": OPTIM,
    "recovery": RECOVERY,
    "chunk_steps": 8,
    "checkpoint_every": 16,
    "eval_batches": 2,
    "peak_tflops": 1.0,
}


def config_of(**changes: Any) -> TrainConfig:
    """The run with some fields changed; those of groups one by one."""
    plain = dict(PLAIN)
    for name, value in changes.items():
        plain[name] = PLAIN.get(name, {}) | value if isinstance(value, dict) else value
    return TrainConfig.from_dict(plain)


def dataset_of(poisoned: Iterable[int] = (), digest: str = "d") -> Dataset:
    """Tokens 0 … 12 by a rule, 750 windows; batches ``poisoned`` of seed 0 are noise of 13 … 15."""
    i = np.arange(12_001, dtype=np.uint64)
    tokens = ((i * i + 3 * (i // 5)) % 13).astype(np.uint16)
    val = tokens[:600].copy()
    n, rng = (tokens.size - 1) // SEQ_LEN, np.random.default_rng(0)
    for batch in poisoned:
        samples = np.arange(batch * BATCH, (batch + 1) * BATCH)
        for window in permute_on_host(samples % n, n, 0, samples // n):
            start = int(window) * SEQ_LEN
            tokens[start + 1 : start + SEQ_LEN] = rng.integers(13, 16, SEQ_LEN - 1)
    return Dataset("c", "t", 16, tokens, val, 2.0, digest, "tok")


def train(folder: Path, *, dataset: Dataset | None = None, **given: Any) -> loop.Outcome:
    """Train the run, or go on with it; what is no argument of ``train_run`` changes a field."""
    names = ("restart_from", "forked", "drill", "seconds")
    arguments = {name: given.pop(name) for name in names if name in given}
    return loop.train_run(
        config_of(**given), folder, dataset=dataset or dataset_of(), quiet=True, **arguments
    )


def trajectory(folder: Path) -> pd.DataFrame:
    """Every step that counts: what two runs have in common that are one run."""
    return runlog.read(folder)[["step", "loss", "grad_norm", "eta", "ok"]]


def on_the_first_devices(patch: pytest.MonkeyPatch) -> None:
    """Meshes over as many of the eight devices as they ask for."""
    make = mesh.make
    patch.setattr(mesh, "make", lambda config: make(config, jax.devices()[: config.devices]))


def after_chunk(patch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do something once when update ``step`` has been trained and logged."""
    steps, done = loop.Telemetry.steps, []

    def spied(self: Any, first: int, losses: Any, *rest: Any) -> None:
        steps(self, first, losses, *rest)
        if first <= step < first + len(losses) and not done:
            done.append(step)
            action()

    patch.setattr(loop.Telemetry, "steps", spied)
