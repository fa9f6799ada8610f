"""AdamW with a learning-rate factor for every weight, as optax transformations.

Learning rate, decay and factors may be traced. The update of a weight w with factor f is

    w ← w − s(t)·(η·f·m̂/(√v̂ + ε) + λ·w)        independent decay (u-μP paper, Table 6)
    w ← w − s(t)·η·f·(m̂/(√v̂ + ε) + λ·w)        coupled decay

with s(t) the schedule. Adam is optax's; what is ours is the factor of each weight, which the
rules give.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from umup.config import OptimConfig
from umup.errors import ConfigError
from umup.powers import Number
from umup.rules import Parametrization


def schedule(config: OptimConfig) -> optax.Schedule:
    """Step (from 0) → factor on η: linear warm-up to 1, then cosine to ``final_lr_ratio``.

    Step t of the warm-up has factor (t+1)/warmup_steps, so that no step is wasted at 0; the last
    step has ``final_lr_ratio``.
    """
    warmup, ratio = config.warmup_steps, config.final_lr_ratio
    span = max(config.steps - 1 - warmup, 1)

    def factor(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / span, 0.0, 1.0)
        cosine = ratio + (1.0 - ratio) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup, (step + 1.0) / max(warmup, 1), cosine)

    return factor


def lr_factors(params: nnx.State, numbers_of: Parametrization) -> nnx.State:
    """The Adam learning-rate factor of every weight, in the tree of ``params``.

    Read from each ``nnx.Param``'s metadata ``role``, ``fan_in``, ``fan_out`` and ``residual``.

    Raises:
        ConfigError: a parameter carries no role: no rule covers it, and a silent factor of 1
            would break transfer.
    """

    def factor(path, param):
        meta = param.get_metadata()
        if "role" not in meta:
            name = ".".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
            raise ConfigError(name, "a parameter without a role", "input | hidden | output")
        numbers = numbers_of.weight(
            meta["role"], meta["fan_in"], meta["fan_out"], residual=meta["residual"]
        )
        return param.replace(jnp.asarray(numbers.adam_lr, jnp.float32))

    return jax.tree.map_with_path(factor, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def adamw(config: OptimConfig, factors, hps: Mapping[str, Number]) -> optax.GradientTransformation:
    """AdamW with per-weight factors.

    Args:
        config: betas, ε, schedule and kind of decay.
        factors: tree of learning-rate factors, as ``lr_factors`` gives it.
        hps: ``eta`` and ``weight_decay``, floats or traced scalars.

    Returns:
        A transformation whose update needs ``params``.
    """
    factor_of = schedule(config)
    eta, decay = hps["eta"], hps["weight_decay"]
    coupled = config.decay == "coupled"

    def update(updates, state, params):
        s = factor_of(state.count)

        def one(factor, adam, param):
            lr = s * eta * factor
            return -(lr * adam) - (lr if coupled else s) * decay * param

        new = jax.tree.map(one, factors, updates, params)
        return new, optax.ScaleByScheduleState(count=state.count + 1)

    scaled = optax.GradientTransformation(
        lambda _: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)), update
    )
    return optax.chain(optax.scale_by_adam(config.beta1, config.beta2, config.eps), scaled)
