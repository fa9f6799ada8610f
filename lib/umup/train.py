"""The pure training step, a compiled scan of steps, and lanes of runs.

A *lane* is one run: its hyperparameters and seed are traced, so that all runs of one shape share
one program. A *chunk* is a sequence of steps after which control returns to the host.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from umup import draws, mesh, optim, sampling, target
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.layers import Amax, Tap
from umup.model import Decoder, reports, tensor_names
from umup.powers import Number
from umup.rules import Parametrization, check_hps
from umup.scale import scale_bwd

HP_NAMES = tuple(HPs().to_dict())


class Numbers(NamedTuple):
    """What the rules give for one run: the model's scales and every weight's factors.

    They enter the step as values, so that one compiled program serves every scheme, and two
    schemes whose numbers agree (μP and SP at the base shape) train bit for bit alike.
    """

    scales: nnx.State
    lr_factors: nnx.State
    options: optim.Options = optim.NO_OPTIONS


class TrainState(NamedTuple):
    """What training carries: the run's numbers, parameters, optimizer state, steps done.

    ``amax`` is the history of delayed FP8 scaling, empty under every other recipe.
    """

    numbers: Numbers
    params: nnx.State
    opt: tuple
    step: Array
    amax: nnx.State


class Signals(NamedTuple):
    """Loss before the step (nats per token) and global norm of its gradient.

    The norm is over all weights, of the unscaled gradient (``Decoder.gradient_units``).
    """

    loss: Array
    grad_norm: Array


class Lane(NamedTuple):
    """The traced inputs of one run: hyperparameters by name, and the seed."""

    hps: dict[str, Number]
    seed: Array


def lanes_of(runs: list[RunConfig]) -> Lane:
    """Stack the traced inputs of runs of one shape: every leaf gets a leading lane axis.

    Raises:
        ConfigError: a hyperparameter that a run's scheme lacks is not at its default.
    """
    for run in runs:
        check_hps(run.scheme, run.hps.to_dict())
    values = [run.hps.to_dict() for run in runs]
    hps = {name: jnp.asarray([v[name] for v in values], jnp.float32) for name in HP_NAMES}
    return Lane(hps, jnp.asarray([run.seed for run in runs], jnp.int32))


def parametrization(run: RunConfig, hps: dict[str, Number]) -> Parametrization:
    """The numbers of ``run``'s shape at (traced) hyperparameters."""
    return Parametrization(run.scheme, run.model, hps, run.optim.batch_size * run.model.seq_len)


def build(run: RunConfig, lane: Lane, *, probed: bool = False) -> Decoder:
    """The model at initialization. Seeds alone fix the draws, whatever the scheme."""
    return _build(parametrization(run, lane.hps), lane.seed, probed)


def _build(numbers_of: Parametrization, seed: Number, probed: bool) -> Decoder:
    keys = draws.Keys(jax.random.key(seed), 3)  # for embedding, blocks and readout
    return Decoder(numbers_of.model, numbers_of, rngs=keys, probed=probed)


class Parts(NamedTuple):
    """A model split into parts; ``nnx.merge(*parts)`` restores it."""

    graph: nnx.GraphDef
    params: nnx.State
    amax: nnx.State
    taps: nnx.State
    scales: nnx.State


def parts_of(model: nnx.Module) -> Parts:
    """The model's structure, weights, history of delayed scaling, probes and scales."""
    return Parts(*nnx.split(model, nnx.Param, Amax, Tap, ...))


def abstract(run: RunConfig, *, probed: bool = False) -> Parts:
    """The model's parts as shapes, the same for every scheme."""
    return jax.tree.unflatten(*_abstract(run.model, probed, jax.sharding.get_abstract_mesh()))


@functools.lru_cache(maxsize=64)
def _abstract(
    model: ModelConfig, probed: bool, under: jax.sharding.AbstractMesh
) -> tuple[Any, list[Any]]:
    """Structure and leaves of ``abstract``, from which each caller builds its own variables.

    Cached, since tracing a step needs them more than once, and tracing a model's random draws takes
    longer than tracing the model. The shapes carry the mesh under which they were made.
    """
    numbers_of = Parametrization("sp", model, HPs().to_dict(), tokens=1)
    parts = parts_of(nnx.eval_shape(lambda: _build(numbers_of, 0, probed)))
    leaves, structure = jax.tree.flatten(parts)
    return structure, leaves


def graph_of(run: RunConfig) -> nnx.GraphDef:
    """The model's structure, without numbers; the same for every scheme."""
    return abstract(run).graph


def optimizer(run: RunConfig, numbers: Numbers, lane: Lane) -> optax.GradientTransformation:
    """The run's AdamW at its numbers."""
    return optim.adamw(run.optim, numbers.lr_factors, lane.hps, numbers.options)


def init(run: RunConfig, lane: Lane) -> TrainState:
    """The state before the first step; the optimizer's is float32 whatever the weights' dtype."""
    parts = parts_of(build(run, lane))
    params = parts.params
    rules = parametrization(run, lane.hps)
    options = optim.options(params, rules, run.optim)
    numbers = Numbers(parts.scales, optim.lr_factors(params, rules), options)
    opt = optimizer(run, numbers, lane).init(params)
    return TrainState(numbers, params, opt, jnp.zeros([], jnp.int32), parts.amax)


def _loss(run: RunConfig, model: Decoder, batch: tuple) -> Array:
    """The model's loss, with gradients ``loss_scale`` times as large."""
    loss = model.loss(*batch)
    scale = run.optim.loss_scale
    return loss if scale == 1.0 else scale_bwd(loss, scale)


def gradients(
    run: RunConfig, state: TrainState, batch: tuple
) -> tuple[Array, nnx.State, nnx.State]:
    """Loss, gradients and the next history of delayed scaling, from one batch.

    With ``accumulate`` A > 1 the batch is processed in A parts, each of every A-th row, so that
    rows spread over devices stay spread. A weight's gradient is a sum over tokens at a scale that
    is fixed by the whole batch, so the gradients of the parts add up. ``loss_scale`` is divided
    out.
    """
    graph, numbers, parts = graph_of(run), state.numbers, run.optim.accumulate

    def loss_of(params, amax, *part):
        return _loss(run, nnx.merge(graph, params, amax, numbers.scales), part)

    def both(*args):
        # The "gradient" of the history is the next history (ops.linear). It is no gradient but
        # holds magnitudes as the casts see them, so the loss scale stays in it.
        loss, (grads, amax) = jax.value_and_grad(loss_of, argnums=(0, 1))(*args)
        if (scale := run.optim.loss_scale) != 1.0:
            grads = jax.tree.map(lambda grad: grad / scale, grads)
        return loss, (grads, amax)

    if parts == 1:
        loss, (grads, amax) = both(state.params, state.amax, *batch)
        return loss, grads, amax

    def add(carry, part):
        loss, grads, amax = carry
        part = tuple(mesh.constrain(x, "batch", None) for x in part)
        one, (more, amax) = both(state.params, amax, *part)
        return (loss + one / parts, jax.tree.map(jnp.add, grads, more), amax), None

    split = tuple(x.reshape(-1, parts, x.shape[-1]).swapaxes(0, 1) for x in batch)
    nothing = jax.tree.map(jnp.zeros_like, state.params)
    carry, _ = jax.lax.scan(add, (jnp.zeros([]), nothing, state.amax), split)
    return carry


def grad_norm(run: RunConfig, numbers: Numbers, grads: nnx.State) -> Array:
    """Global norm of the unscaled gradient, float32: √Σ ‖g/u‖² with u ``gradient_units``."""
    parts = abstract(run)
    model = nnx.merge(parts.graph, parts.params, parts.amax, parts.taps, numbers.scales)
    units = model.gradient_units(run.optim.batch_size * run.model.seq_len)

    def squares(path, grad):
        name = ".".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        unit = units[name.removesuffix(".w")]
        grad = grad[...].astype(jnp.float32)
        return jnp.sum(jnp.square(grad / unit.reshape(unit.shape + (1,) * (grad.ndim - unit.ndim))))

    of_each = jax.tree.map_with_path(squares, grads, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return jnp.sqrt(sum(jax.tree.leaves(of_each)))


def step(run: RunConfig, lane: Lane, state: TrainState, batch: tuple) -> tuple[TrainState, Signals]:
    """The pure step.

    Where ``run.optim.clip`` is set, gradients are multiplied by min(1, clip/norm), with the norm of
    the unscaled gradient: one bound means the same under every scheme.

    Args:
        run: shapes and optimizer; its scheme and hyperparameters are not read.
        lane: η and weight decay.
        state: before the step.
        batch: inputs and targets, each int (B, T).

    Returns:
        The state after the step, and the step's signals.
    """
    loss, grads, amax = gradients(run, state, batch)
    norm = grad_norm(run, state.numbers, grads)
    if run.optim.clip:
        factor = jnp.minimum(1.0, run.optim.clip / norm)
        grads = jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), grads)
    updates, opt = optimizer(run, state.numbers, lane).update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(state.numbers, params, opt, state.step + 1, amax)
    return after, Signals(loss, norm)


def _batch(run: RunConfig, tokens: Array, lane: Lane, step: Array) -> tuple[Array, Array]:
    return sampling.batch(
        tokens, lane.seed, step, batch_size=run.optim.batch_size, seq_len=run.model.seq_len
    )


def observed(run: RunConfig) -> tuple[str, ...]:
    """Names of the tensors that ``observe`` reports on, in the order of its rows."""
    return tensor_names(abstract(run, probed=True).taps, run.model.n_layers)


def observe(run: RunConfig, tokens: Array, lane: Lane, state: TrainState) -> Array:
    """What the probes see on the batch of the next step; training is not affected.

    Gradients are those that the casts see: ``loss_scale`` times the loss's.

    Returns:
        (tensors, statistics): rows as ``observed``, columns as ``config.PROBE_STATS``.
    """
    parts = abstract(run, probed=True)
    batch = _batch(run, tokens, lane, state.step)

    def loss_of(taps):
        model = nnx.merge(parts.graph, state.params, state.amax, taps, state.numbers.scales)
        return _loss(run, model, batch)

    blank = jax.tree.map(lambda tap: jnp.zeros(tap.shape, tap.dtype), parts.taps)
    return reports(jax.grad(loss_of)(blank))


def _chunk(run: RunConfig, n_steps: int, tokens: Array, lane: Lane, state: TrainState):
    numbers = state.numbers  # outside the carry: constants of the loop

    def body(carry, _):
        state = TrainState(numbers, **carry)
        state, signals = step(run, lane, state, _batch(run, tokens, lane, state.step))
        return moving(state), signals.loss

    carry, losses = jax.lax.scan(body, moving(state), None, length=n_steps)
    return TrainState(numbers, **carry), losses


def moving(state: TrainState) -> dict[str, Any]:
    """The part of the state that a step changes."""
    return {"params": state.params, "opt": state.opt, "step": state.step, "amax": state.amax}


def evaluate(run: RunConfig, tokens: Array, state: TrainState) -> Array:
    """Mean loss over the run's evaluation batches, nats per token."""
    model = nnx.merge(graph_of(run), state.params, state.amax, state.numbers.scales)

    def body(total, index):
        batch = sampling.eval_batch(
            tokens, index, batch_size=run.optim.batch_size, seq_len=run.model.seq_len
        )
        batch = tuple(mesh.constrain(x, "batch", None) for x in batch)
        return total + model.loss(*batch), None

    total, _ = jax.lax.scan(body, jnp.zeros([]), jnp.arange(run.eval_batches))
    return total / run.eval_batches


def over_lanes(fn: Callable, lanes_at_once: int) -> Callable:
    """Map ``fn`` over a leading lane axis.

    On an accelerator all lanes run at once (vmap); on a CPU ``lanes_at_once`` at a time, since
    vmapped lanes are slower there than consecutive ones. Both give the same numbers. On an
    accelerator a single lane has no lane axis, so that every product is one of two matrices, as
    FP8 kernels require.
    """

    def at_once(*args):
        if jax.tree.leaves(args)[0].shape[0] > 1:
            return jax.vmap(fn)(*args)
        one = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], one)

    if target.platform() != "cpu":
        return at_once

    def mapped(*args):
        size = lanes_at_once if lanes_at_once > 1 else None
        return jax.lax.map(lambda xs: fn(*xs), args, batch_size=size)

    return mapped


IN_STATE = (
    "batch_size",
    "eps_rule",
    "decay_rule",
    "size_rule",
    "base_batch_size",
    "base_steps",
)
"""The optimizer's settings that affect the first state: tokens per batch, factors of weights."""


class Programs(NamedTuple):
    """Compiled functions that serve every run of one shape, over lanes.

    ``init(lanes)`` → states, one program per scheme; ``chunk(tokens, lanes, states, n_steps)`` →
    (states, losses (lanes, n_steps)), the states' buffers donated; ``evaluate(tokens, states)`` →
    (lanes,); ``observe(tokens, lanes, states)`` → (lanes, tensors, statistics). All but the first
    are shared by all schemes.
    """

    init: Callable
    chunk: Callable
    evaluate: Callable
    observe: Callable


def shape_of(run: RunConfig) -> RunConfig:
    """What fixes a run's programs: all but its hyperparameters, seed and text."""
    return dataclasses.replace(
        run, hps=HPs(), seed=0, corpus="", tokenizer="", data_digest="", probe_steps=()
    )


@functools.lru_cache(maxsize=64)
def _init_program(run: RunConfig, lanes_at_once: int, platform: str) -> Callable:
    return jax.jit(lambda lanes: over_lanes(functools.partial(init, run), lanes_at_once)(lanes))


@functools.lru_cache(maxsize=64)
def _step_programs(
    run: RunConfig, lanes_at_once: int, platform: str
) -> tuple[Callable, Callable, Callable]:
    def chunk(tokens, lanes, states, n_steps):
        one = functools.partial(_chunk, run, n_steps, tokens)
        return over_lanes(one, lanes_at_once)(lanes, states)

    def evaluated(tokens, states):
        return over_lanes(functools.partial(evaluate, run, tokens), lanes_at_once)(states)

    def look(tokens, lanes, states):
        return over_lanes(functools.partial(observe, run, tokens), lanes_at_once)(lanes, states)

    return jax.jit(chunk, static_argnums=3, donate_argnums=2), jax.jit(evaluated), jax.jit(look)


def programs(run: RunConfig, lanes_at_once: int = 1) -> Programs:
    """The programs of ``run``'s shape, shared by all runs of that shape, whatever their scheme."""
    shape = shape_of(run)
    shared = dataclasses.replace(shape, scheme="sp")
    own = {name: getattr(run.optim, name) for name in IN_STATE}
    first = dataclasses.replace(shape, optim=OptimConfig(**own))
    for_all = lanes_at_once, target.platform()  # a program is traced for one platform
    return Programs(_init_program(first, *for_all), *_step_programs(shared, *for_all))


def train(run: RunConfig, tokens: np.ndarray, *, chunk_steps: int | None = None) -> np.ndarray:
    """Train one run from its seed and return its losses (steps,), nats per token.

    For tests and small studies; ``sweep`` adds lanes, records and resumption.
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
