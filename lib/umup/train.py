"""The pure training step, a compiled scan of steps, and lanes of runs.

A *lane* is one run: its hyperparameters and seed are traced, so that all runs of one shape share
one program. A *chunk* is a number of steps between two looks of the host.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from umup import data, optim
from umup.config import HPs, RunConfig
from umup.model import Decoder, split
from umup.rules import Number, Parametrization

HP_NAMES = tuple(HPs().to_dict())


class TrainState(NamedTuple):
    """What training carries: parameters, optimizer state, number of steps done."""

    params: nnx.State
    opt: tuple
    step: Array


class Lane(NamedTuple):
    """The traced inputs of one run: hyperparameters by name, and the seed."""

    hps: dict[str, Number]
    seed: Array


def lanes_of(runs: list[RunConfig]) -> Lane:
    """Stack the traced inputs of runs of one shape: every leaf gets a leading lane axis."""
    values = [run.hps.to_dict() for run in runs]
    hps = {name: jnp.asarray([v[name] for v in values], jnp.float32) for name in HP_NAMES}
    return Lane(hps, jnp.asarray([run.seed for run in runs], jnp.int32))


def parametrization(run: RunConfig, hps: dict[str, Number]) -> Parametrization:
    """The numbers of ``run``'s shape at (traced) hyperparameters."""
    return Parametrization(run.scheme, run.model, hps, run.optim.batch_size * run.model.seq_len)


def build(run: RunConfig, lane: Lane) -> Decoder:
    """The model at initialization. Seeds alone fix the draws, whatever the scheme."""
    return Decoder(
        run.model, parametrization(run, lane.hps), rngs=nnx.Rngs(params=jax.random.key(lane.seed))
    )


def init(run: RunConfig, lane: Lane) -> TrainState:
    """The state before the first step."""
    _, params, _ = split(build(run, lane))
    factors = optim.lr_factors(params, parametrization(run, lane.hps))
    opt = optim.adamw(run.optim, factors, lane.hps).init(params)
    return TrainState(params, opt, jnp.zeros([], jnp.int32))


def step_fn(run: RunConfig, lane: Lane) -> Callable[[TrainState, tuple], tuple[TrainState, Array]]:
    """The pure step: (state, (inputs, targets) each (B, T)) → (state, loss before the update)."""
    # The initial weights drawn here are dead code: only the graph and the scales are used.
    graph, params, scales = split(build(run, lane))
    factors = optim.lr_factors(params, parametrization(run, lane.hps))
    optimizer = optim.adamw(run.optim, factors, lane.hps)

    def step(state: TrainState, batch: tuple[Array, Array]) -> tuple[TrainState, Array]:
        def loss_of(params):
            return nnx.merge(graph, params, scales).loss(*batch)

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        return TrainState(params, opt, state.step + 1), loss

    return step


def _chunk(run: RunConfig, n_steps: int, tokens: Array, lane: Lane, state: TrainState):
    step = step_fn(run, lane)

    def body(state, _):
        batch = data.batch(
            tokens, lane.seed, state.step,
            batch_size=run.optim.batch_size, seq_len=run.model.seq_len,
        )  # fmt: skip
        return step(state, batch)

    return jax.lax.scan(body, state, None, length=n_steps)


def _evaluate(run: RunConfig, tokens: Array, lane: Lane, params: nnx.State) -> Array:
    graph, _, scales = split(build(run, lane))
    model = nnx.merge(graph, params, scales)

    def body(total, index):
        batch = data.eval_batch(
            tokens, index, batch_size=run.optim.batch_size, seq_len=run.model.seq_len
        )
        return total + model.loss(*batch), None

    total, _ = jax.lax.scan(body, jnp.zeros([]), jnp.arange(run.eval_batches))
    return total / run.eval_batches


def over_lanes(fn: Callable, lanes_at_once: int) -> Callable:
    """Map ``fn`` over a leading lane axis.

    On an accelerator all at once (vmap); on a CPU ``lanes_at_once`` at a time, since vmapped
    lanes are slower there than one after another. Both give the same numbers.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(fn)

    def mapped(*args):
        size = lanes_at_once if lanes_at_once > 1 else None
        return jax.lax.map(lambda xs: fn(*xs), args, batch_size=size)

    return mapped


class Programs(NamedTuple):
    """Compiled functions that serve every run of one shape, over lanes.

    ``init(lanes)`` → states; ``chunk(tokens, lanes, states, n_steps)`` → (states, losses
    (lanes, n_steps)), the states' buffers donated; ``evaluate(tokens, lanes, params)`` → (lanes,).
    """

    init: Callable
    chunk: Callable
    evaluate: Callable


@functools.lru_cache(maxsize=64)
def _programs(run: RunConfig, lanes_at_once: int) -> Programs:
    def chunk(tokens, lanes, states, n_steps):
        one = functools.partial(_chunk, run, n_steps, tokens)
        return over_lanes(one, lanes_at_once)(lanes, states)

    def evaluate(tokens, lanes, params):
        return over_lanes(functools.partial(_evaluate, run, tokens), lanes_at_once)(lanes, params)

    return Programs(
        init=jax.jit(lambda lanes: over_lanes(lambda lane: init(run, lane), lanes_at_once)(lanes)),
        chunk=jax.jit(chunk, static_argnums=3, donate_argnums=2),
        evaluate=jax.jit(evaluate),
    )


def programs(run: RunConfig, lanes_at_once: int = 1) -> Programs:
    """The programs of ``run``'s shape; equal shapes share one entry whatever their HPs and seed."""
    return _programs(dataclasses.replace(run, hps=HPs(), seed=0), lanes_at_once)


def train(run: RunConfig, tokens: np.ndarray, *, chunk_steps: int | None = None) -> np.ndarray:
    """Train one run from its seed and return its losses (steps,), nats a token.

    The plain way for tests and small studies; ``sweep`` adds lanes, records and resumption.
    """
    compiled, lanes = programs(run), lanes_of([run])
    states, device_tokens, losses = compiled.init(lanes), jnp.asarray(tokens), []
    done, chunk = 0, chunk_steps or run.optim.steps
    while done < run.optim.steps:
        n = min(chunk, run.optim.steps - done)
        states, chunk_losses = compiled.chunk(device_tokens, lanes, states, n)
        losses.append(np.asarray(chunk_losses[0]))
        done += n
    return np.concatenate(losses)
