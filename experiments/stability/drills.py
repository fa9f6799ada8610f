"""Drills of the study ``stability``: a spike is planted in a run of the loop, and healed or not."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from umup import data
from umup.config import HPs, ModelConfig, OptimConfig
from umup.data import Dataset
from umup.run import runlog
from umup.run.loop import Drill, Outcome, train_run
from umup.run.recovery import RecoveryConfig
from umup.run.runfile import TrainConfig
from umup.sampling import n_windows, permute_on_host

KINDS = ("clean", "poison", "jump", "nan")


def poisoned(dataset: Dataset, seed: int, batches: range, *, batch_size: int, seq_len: int):
    """The data set with uniformly random tokens in all windows of some batches.

    Args:
        dataset: clean. seed: of the run whose batches are meant. batches: their indices.
        batch_size, seq_len: of the run.

    Returns:
        A copy; a window's neighbour shares one token with it and keeps all others.
    """
    tokens, n = dataset.train.copy(), n_windows(dataset.train.size, seq_len)
    sample = np.arange(batches.start * batch_size, batches.stop * batch_size)
    windows = permute_on_host(sample % n, n, seed, sample // n)
    draws = np.random.default_rng(seed)
    for window in np.asarray(windows, np.int64):
        at = slice(window * seq_len, window * seq_len + seq_len + 1)
        tokens[at] = draws.integers(dataset.vocab_size, size=seq_len + 1)
    return replace(dataset, train=tokens)


def drill(
    *,
    kind: str,
    recover: bool,
    scheme: str,
    log2_lr: float,
    seed: int,
    at: int,
    length: int,
    factor: float,
    corpus: str,
    tokenizer: str,
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    recovery: Mapping[str, Any],
    every: int,
    chunk: int,
) -> dict[str, Any]:
    """One run of the loop with a planted disturbance.

    Args:
        kind: ``clean`` (none), ``poison`` (batches of random tokens), ``jump`` (η times
            ``factor``) or ``nan`` (an update that is not a number, as faulty hardware gives).
        recover: whether spikes are detected and healed. scheme, log2_lr, seed: of the run.
        at, length: the first batch that is disturbed, and how many are (one if ``nan``).
        corpus, tokenizer, model, optimizer: what is trained, on what and how.
        recovery: fields of ``RecoveryConfig``. every, chunk: steps between checkpoints, and per
            chunk.

    Returns:
        verdict; val_loss and loss (mean of the last tenth of the steps), nats per token, NaN where
        not finite; interventions, steps_lost (trained and thrown away), nonfinite steps; onset and
        detected of the first intervention, −1 without one; curve, the loss at every step that
        counts.
    """
    shape = ModelConfig.from_dict(model)
    dataset = data.load(corpus, tokenizer, seq_len=shape.seq_len)
    optim = OptimConfig.from_dict(optimizer)
    batches = range(at, at + (1 if kind == "nan" else length))
    if kind == "poison":
        dataset = poisoned(
            dataset, seed, batches, batch_size=optim.batch_size, seq_len=shape.seq_len
        )
    config = TrainConfig(
        name="drill",
        scheme=scheme,
        model=replace(shape, vocab_size=dataset.vocab_size),
        optim=optim,
        hps=HPs(eta=2.0**log2_lr),
        seed=seed,
        corpus=corpus,
        tokenizer=tokenizer,
        recovery=RecoveryConfig.from_dict({**recovery, "on": recover}),
        checkpoint_every=every,
        chunk_steps=chunk,
        keep=6,
        peak_tflops=1.0,
    )
    with tempfile.TemporaryDirectory(prefix="umup-") as folder:
        outcome = train_run(
            config, Path(folder), dataset=dataset, drill=_planted(kind, batches, factor), quiet=True
        )
        losses = runlog.read(Path(folder)).set_index("step")["loss"].sort_index()
    return _result(outcome, losses, optim.steps)


def _planted(kind: str, batches: range, factor: float) -> Drill | None:
    """What disturbs the loop itself."""
    scales = {"jump": factor, "nan": math.nan}
    return Drill(batches.start, batches.stop - 1, scales[kind]) if kind in scales else None


def _result(outcome: Outcome, losses: pd.Series, steps: int) -> dict[str, Any]:
    """What is recorded of a run with these losses by step, see ``drill``."""
    tail = losses[losses.index >= steps - max(steps // 10, 1)]
    spikes = outcome.interventions
    return {
        "verdict": outcome.verdict,
        "val_loss": outcome.val_loss,
        "loss": float(tail.mean()),
        "interventions": len(spikes),
        "nonfinite": outcome.nonfinite,
        "steps_lost": sum(s["detected"] + 1 - s["rolled_back_to"] for s in spikes),
        "onset": spikes[0]["onset"] if spikes else -1,
        "detected": spikes[0]["detected"] if spikes else -1,
        "curve": [round(float(loss), 4) for loss in losses],
    }
