"""Measures of the study ``stability``: clipped runs under two norms, and what a defence costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from umup import data, optim, train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig

from .drills import drill


@functools.lru_cache(maxsize=8)
def _clipped_program(run: RunConfig, norm: str):
    """The compiled training of ``run``'s shape, its clip by the ``norm`` told.

    ``unscaled`` is the library's clip; ``held`` is the usual one, by the global norm of the
    gradients as they are. Returns (losses, unscaled norms, held norms), each (steps,).
    """
    free = replace(run, optim=replace(run.optim, clip=0.0))

    def program(tokens: Array, lane: train.Lane, state: train.TrainState):
        optimizer = optim.adamw(free.optim, state.numbers.lr_factors, lane.hps)

        def body(state, _):
            batch = data.batch(
                tokens,
                lane.seed,
                state.step,
                batch_size=run.optim.batch_size,
                seq_len=run.model.seq_len,
            )
            loss, grads, amax = train.gradients(run, state, batch)
            norms = train.grad_norm(run, state.numbers, grads), optax.tree.norm(grads)
            factor = jnp.minimum(1.0, run.optim.clip / norms[norm == "held"])
            grads = jax.tree.map(lambda grad: grad * factor, grads)
            updates, opt = optimizer.update(grads, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
            after = train.TrainState(state.numbers, params, opt, state.step + 1, amax)
            return after, (loss, *norms)

        return jax.lax.scan(body, state, None, length=run.optim.steps)[1]

    return jax.jit(program)


def clipped(
    *,
    scheme: str,
    norm: str,
    octaves: int,
    log2_lr: float,
    clip: float,
    seed: int,
    corpus: str,
    tokenizer: str,
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
) -> dict[str, Any]:
    """One run whose gradients are clipped by their unscaled norm or by the norm as held.

    Args:
        scheme: of the run; norm: ``unscaled`` or ``held``.
        octaves: for the record; η is 2^``log2_lr``.
        clip: the bound. seed: of weights and batches.
        corpus, tokenizer, model, optimizer: what is trained, on what and how.

    Returns:
        share of the steps in which the clip was active; medians ``unscaled`` and ``held`` of the
        norms; losses, one per step.
    """
    shape = ModelConfig.from_dict(model)
    dataset = data.load(corpus, tokenizer, seq_len=shape.seq_len)
    run = RunConfig(
        scheme=scheme,
        model=replace(shape, vocab_size=dataset.vocab_size),
        optim=OptimConfig.from_dict({**optimizer, "clip": clip}),
        hps=HPs(eta=2.0**log2_lr),
        seed=seed,
        corpus=corpus,
        tokenizer=tokenizer,
        data_digest=dataset.digest,
    )
    lane = jax.tree.map(lambda leaf: leaf[0], train.lanes_of([run]))
    program = _clipped_program(replace(run, scheme="sp", hps=HPs(), seed=0), norm)
    state = jax.jit(functools.partial(train.init, run))(lane)
    losses, unscaled, held = map(np.asarray, program(jnp.asarray(dataset.train), lane, state))
    return {
        "share": float(np.mean((held if norm == "held" else unscaled) > clip)),
        "unscaled": float(np.median(unscaled)),
        "held": float(np.median(held)),
        "losses": [float(loss) for loss in losses],
    }


def step_time(
    *,
    defence: str,
    changes: Mapping[str, Any],
    clip: float,
    repeats: int,
    chunk: int,
    corpus: str,
    tokenizer: str,
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
) -> dict[str, float]:
    """Time of a step with a defence over that without it, chunks of both in turn.

    What else the machine does then falls on both alike.

    Args:
        defence: for the record; ``changes`` (fields of the model) and ``clip`` are it.
        repeats: chunks of each; chunk: steps in one.
        corpus, tokenizer, model, optimizer: what is trained, on what and how.

    Returns:
        ratio, median over the repeats; ratio_lo, ratio_hi, the 95 % interval of that median, from
        order statistics.
    """
    shape = ModelConfig.from_dict(model)
    dataset = data.load(corpus, tokenizer, seq_len=shape.seq_len)
    shape = replace(shape, vocab_size=dataset.vocab_size)
    plain = RunConfig(
        scheme="umup",
        model=shape,
        optim=OptimConfig.from_dict(optimizer),
        hps=HPs(),
        seed=0,
        corpus=corpus,
        tokenizer=tokenizer,
        data_digest=dataset.digest,
    )
    other = replace(plain, model=replace(shape, **changes), optim=replace(plain.optim, clip=clip))
    tokens, lanes = jnp.asarray(dataset.train), train.lanes_of([plain])
    seconds: dict[RunConfig, list[float]] = {plain: [], other: []}
    states = {run: train.programs(run).init(lanes) for run in seconds}
    for _ in range(repeats + 1):
        for run, taken in seconds.items():
            start = time.perf_counter()
            states[run], losses = train.programs(run).chunk(tokens, lanes, states[run], chunk)
            losses.block_until_ready()
            taken.append(time.perf_counter() - start)
    ratios = np.sort(np.divide(seconds[other][1:], seconds[plain][1:]))  # the first compiled
    reach = round(0.98 * repeats**0.5)  # of the binomial(repeats, ½), in ranks
    middle = (repeats - 1) / 2
    lo, hi = max(int(middle - reach), 0), min(int(np.ceil(middle + reach)), repeats - 1)
    return {
        "ratio": float(np.median(ratios)),
        "ratio_lo": float(ratios[lo]),
        "ratio_hi": float(ratios[hi]),
    }


MEASURES: Mapping = {"clipped": clipped, "step_time": step_time, "drill": drill}
