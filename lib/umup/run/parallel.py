"""The training step of one run over a mesh of devices: compiled chunks, guarded and steered.

Parameters, optimizer state and batches are split as `umup.mesh` says; the numerics are those of
`umup.train`. In addition, a chunk leaves out steps whose loss or gradient is not finite, and takes
two numbers from the host: how many batches have been skipped so far and a factor on η.
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
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from umup import mesh, sampling, train
from umup.config import RunConfig
from umup.data.tokenizing import token_dtype
from umup.train import Lane, TrainState


class Control(NamedTuple):
    """What the host decides for a chunk.

    Args:
        shift: number of batches skipped so far: update t takes batch t + shift.
        eta_scale: factor on η.
        n_steps: steps to take, at most the chunk's length.
    """

    shift: int | np.int32 = 0
    eta_scale: float | np.float32 = 1.0
    n_steps: int | np.int32 = 1


class Signals(NamedTuple):
    """What a chunk reports for each of its steps; entries beyond ``n_steps`` are zeros.

    Args:
        loss: (chunk,), nats per token, before the step.
        grad_norm: (chunk,), see ``train.grad_norm``.
        ok: (chunk,), whether both were finite and the step was taken.
    """

    loss: Any
    grad_norm: Any
    ok: Any


class Programs(NamedTuple):
    """Compiled functions of one run.

    ``init()`` → state; ``chunk(source, state, control)`` → (state, signals), the state's buffers
    donated; ``evaluate(tokens, state)`` → mean loss. ``source`` is the whole token stream on every
    device, or the windows (chunk, B, T+1) of the chunk's batches (`umup.data.loader`).
    """

    init: Callable[[], TrainState]
    chunk: Callable[[Array, TrainState, Control], tuple[TrainState, Signals]]
    evaluate: Callable[[Array, TrainState], Array]


def lane_of(run: RunConfig) -> Lane:
    """The run's hyperparameters and seed as NumPy scalars, the same on every process."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), train.lanes_of([run]))


def abstract_state(run: RunConfig, devices: Mesh) -> TrainState:
    """The run's state as shapes with their shardings; no array is allocated."""
    state = _abstract_state(train.shape_of(run))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        mesh.shardings(devices, state),
    )


@functools.lru_cache(maxsize=64)
def _abstract_state(run: RunConfig) -> TrainState:
    """The state as shapes, cached by the run's shape, since a start needs it several times."""
    return jax.eval_shape(functools.partial(train.init, run), lane_of(run))


def everywhere(devices: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(devices, PartitionSpec())


def windows_sharding(devices: Mesh) -> NamedSharding:
    """The sharding of windows (chunk, B, T+1)."""
    return NamedSharding(devices, mesh.spec(None, "batch", None))


def place(array: np.ndarray, devices: Mesh) -> Array:
    """A host array that is equal on every process, as an array that is whole on every device."""
    return jax.make_array_from_callback(array.shape, everywhere(devices), lambda at: array[at])


def programs(run: RunConfig, devices: Mesh, chunk_steps: int) -> Programs:
    """The programs of ``run`` over a mesh; one compiled chunk serves every number of steps.

    Runs of equal shape share them, whatever their scheme, hyperparameters and seed; each scheme has
    its own ``init``.
    """
    lane = lane_of(run)
    init = _init_program(train.shape_of(run), devices)
    chunk, evaluate = _step_programs(_scheme_free(run), devices, chunk_steps)

    def under_mesh(fn: Callable) -> Callable:
        def called(*args):
            with jax.set_mesh(devices):
                return fn(*args)

        return called

    return Programs(
        under_mesh(lambda: init(lane)),
        under_mesh(lambda source, state, control: chunk(source, lane, state, _plain(control))),
        under_mesh(evaluate),
    )


def lower(
    run: RunConfig, devices: Mesh, *, chunk_steps: int = 1, stream_tokens: int = 0
) -> jax.stages.Lowered:
    """The chunk that ``programs`` compiles, lowered for abstract arguments: no array is allocated.

    Args:
        run, devices, chunk_steps: as for ``programs``.
        stream_tokens: length of the token stream, which is whole on every device; 0 stands for
            windows (chunk, B, T+1) that the host reads.
    """
    if stream_tokens:
        shape, sharding = (stream_tokens,), everywhere(devices)
    else:
        shape = (chunk_steps, run.optim.batch_size, run.model.seq_len + 1)
        sharding = windows_sharding(devices)
    dtype = token_dtype(run.model.vocab_size)
    source = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    chunk, _ = _step_programs(_scheme_free(run), devices, chunk_steps)
    lane, state = (
        lane_of(run),
        abstract_state(run, devices),
    )  # before: the devices need not be there
    with jax.set_mesh(devices):
        return chunk.lower(source, lane, state, _plain(Control()))


def _scheme_free(run: RunConfig) -> RunConfig:
    """What fixes the program of a run's step: not even its scheme."""
    return dataclasses.replace(train.shape_of(run), scheme="sp")


@functools.lru_cache(maxsize=16)
def _init_program(run: RunConfig, devices: Mesh) -> Callable:
    shardings = mesh.shardings(devices, abstract_state(run, devices))
    return jax.jit(lambda lane: train.init(run, lane), out_shardings=shardings)


@functools.lru_cache(maxsize=16)
def _step_programs(
    run: RunConfig, devices: Mesh, chunk_steps: int
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    shardings = mesh.shardings(devices, abstract_state(run, devices))
    whole = everywhere(devices)
    shared = {"batch_size": run.optim.batch_size, "seq_len": run.model.seq_len}

    def step(lane: Lane, state: TrainState, batch: tuple):
        batch = tuple(mesh.constrain(x, "batch", None) for x in batch)
        after, (loss, norm) = train.step(run, lane, state, batch)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm)
        # A step that is not finite changes nothing but the two counts of steps, the run's and the
        # schedule's: η depends on the number of the step, however many before it were left out.
        kept = jax.tree.map(
            lambda new, old: new if _counts(new) else jnp.where(ok, new, old),
            after,
            state,
            is_leaf=_counts,
        )
        return kept._replace(step=after.step), (loss, norm, ok)

    def chunk(source: Array, lane: Lane, state: TrainState, control: Control):
        lane = lane._replace(hps=lane.hps | {"eta": lane.hps["eta"] * control.eta_scale})
        numbers = state.numbers  # outside the carry: constants of the loop
        blank = jnp.zeros(chunk_steps)

        def body(i, carry):
            moving, told = carry
            state = TrainState(numbers, **moving)
            if source.ndim == 1:
                batch = sampling.batch(source, lane.seed, state.step + control.shift, **shared)
            else:
                window = source[i].astype(jnp.int32)
                batch = window[:, :-1], window[:, 1:]
            state, seen = step(lane, state, batch)
            told = tuple(old.at[i].set(new) for old, new in zip(told, seen, strict=True))
            return train.moving(state), told

        start = train.moving(state), (blank, blank, blank.astype(bool))
        moving, told = jax.lax.fori_loop(0, control.n_steps, body, start)
        return TrainState(numbers, **moving), Signals(*told)

    def evaluate(tokens: Array, state: TrainState) -> Array:
        return train.evaluate(run, tokens, state)

    jitted = jax.jit(chunk, out_shardings=(shardings, whole), donate_argnums=2)
    return jitted, jax.jit(evaluate, out_shardings=whole)


def _counts(state: Any) -> bool:
    """True if a part of an optimizer's state is the schedule's count of steps."""
    return isinstance(state, optax.ScaleByScheduleState)


def _plain(control: Control) -> Control:
    """The control with fixed dtypes, so that every call uses the same program."""
    return Control(
        np.int32(control.shift), np.float32(control.eta_scale), np.int32(control.n_steps)
    )
