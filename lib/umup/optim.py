"""AdamW and SGD with a learning-rate factor for every weight, as optax transformations.

Learning rate, decay and factors may be traced. The update of a weight w with factor f is

    w ← w − s(t)·(η·f·u + λ·w)        independent decay (u-μP paper, Table 6)
    w ← w − s(t)·η·f·(u + λ·w)        coupled decay

with s(t) the schedule and u = m̂/(√v̂ + ε) for Adam, the gradient or its momentum for SGD. Both are
optax's; what is ours is the factor of each weight, which the rules give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from umup.config import OptimConfig
from umup.errors import ConfigError
from umup.powers import Number
from umup.rules import Parametrization
from umup.schemes import ROLES


def schedule(config: OptimConfig) -> optax.Schedule:
    """Step (from 0) → factor on η: linear warm-up to 1, then ``config.schedule``.

    Step t of the warm-up has factor (t+1)/warmup_steps, so that no step is wasted at 0. After it,
    with r = ``final_lr_ratio``:

    - ``cosine``, ``linear``: from 1 down to r at the last step (a run of one step has 1);
    - ``wsd``, ``wsd_sqrt``: 1 until ``decay_steps`` are left (MiniCPM, arXiv 2404.06395), then
      r + (1−r)·d with d = 1 − x or 1 − √x (Hägele et al., arXiv 2405.18392), where x is the
      share of the decay that is done, from 1/decay_steps to 1;
    - ``two_step``: 1, then 0.316 from 80 % of the steps on and 0.1 from 90 % (DeepSeek LLM,
      arXiv 2401.02954, §2.3).
    """
    warmup, ratio, steps = config.warmup_steps, config.final_lr_ratio, config.steps
    span = max(steps - 1 - warmup, 1)
    # One step after the warm-up is the last one: the decay has no room but to be at its end.
    first = warmup - (0 < warmup == steps - 1)

    def progress(step):
        return jnp.clip((step - first) / span, 0.0, 1.0)

    def cosine(step):
        return ratio + (1.0 - ratio) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress(step)))

    def linear(step):
        return ratio + (1.0 - ratio) * (1.0 - progress(step))

    def stable(shape):
        def factor(step):
            done = (step + 1.0) - (steps - config.decay_steps)
            share = jnp.clip(done / config.decay_steps, 0.0, 1.0)
            return jnp.where(done > 0, ratio + (1.0 - ratio) * (1.0 - shape(share)), 1.0)

        return factor

    def two_step(step):
        second = jnp.where(step < 0.9 * steps, math.sqrt(0.1), 0.1)
        return jnp.where(step < 0.8 * steps, 1.0, second)

    after = {
        "cosine": lambda: cosine, "linear": lambda: linear, "two_step": lambda: two_step,
        "wsd": lambda: stable(lambda x: x), "wsd_sqrt": lambda: stable(jnp.sqrt),
    }[config.schedule]()  # fmt: skip

    def factor(step):
        step = jnp.asarray(step, jnp.float32)
        return jnp.where(step < warmup, (step + 1.0) / max(warmup, 1), after(step))

    return factor


def mark(part: nnx.Module | nnx.Param, role: str, *, residual: bool = False) -> None:
    """Give the parameters of any Flax NNX module what ``lr_factors`` reads.

    Matrices (fan_in, fan_out) get ``role``; earlier axes, as of convolutions, count as fan-in.
    Vectors are ``input`` in any layer: a bias is the weight of a constant 1 and a gain that of one
    feature, so that their fan-in is 1 and does not grow (Tensor Programs V, arXiv 2203.03466,
    Appendix B). Only a vector that is given alone keeps the role that it is given.

    Args:
        part: a layer, a whole module, or one parameter.
        role: ``input`` (fan_in fixed, fan_out grows), ``hidden`` (both grow) or ``output``.
        residual: whether it lies on a residual branch.

    Raises:
        ConfigError: unknown role, or nothing to mark.
    """
    if role not in ROLES:
        raise ConfigError("role", role, " | ".join(ROLES))
    alone = isinstance(part, nnx.Param)
    params = [part] if alone else [p for _, p in nnx.iter_graph(part) if isinstance(p, nnx.Param)]
    if not params:
        raise ConfigError("part", type(part).__name__, "a module with parameters")
    for param in params:
        fan_out = param.shape[-1] if param.ndim else 1
        param.set_metadata(
            role=role if alone or param.ndim > 1 else "input",
            fan_in=param.size // fan_out, fan_out=fan_out, residual=residual,
        )  # fmt: skip


def lr_factors(
    params: nnx.State, numbers_of: Parametrization, *, optimizer: str = "adam"
) -> nnx.State:
    """The learning-rate factor of every weight, in the tree of ``params``.

    Read from each ``nnx.Param``'s metadata ``role``, ``fan_in``, ``fan_out`` and ``residual``.

    Args:
        params: the trained parameters.
        numbers_of: the parametrization.
        optimizer: ``adam`` (also for AdamW) or ``sgd``.

    Raises:
        ConfigError: no rule covers a parameter (it has no role or an unknown one, or lacks its
            fans): a silent factor of 1 would break transfer. Or the optimizer is unknown.
    """
    if optimizer not in ("adam", "sgd"):
        raise ConfigError("optimizer", optimizer, "adam | sgd")

    def factor(path, param):
        meta = param.get_metadata() if isinstance(param, nnx.Variable) else {}
        name = ".".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        if "role" not in meta:
            raise ConfigError(name, "a parameter without a role", " | ".join(ROLES))
        if meta["role"] not in ROLES:
            raise ConfigError(f"{name}'s role", meta["role"], " | ".join(ROLES))
        missing = [field for field in ("fan_in", "fan_out", "residual") if field not in meta]
        if missing:
            raise ConfigError(name, f"a parameter without {missing[0]}", "a parameter with it")
        numbers = numbers_of.weight(
            meta["role"], meta["fan_in"], meta["fan_out"], residual=meta["residual"]
        )
        value = jnp.asarray(getattr(numbers, f"{optimizer}_lr"), jnp.float32)
        return param.replace(value)

    return jax.tree.map_with_path(factor, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _descend(
    config: OptimConfig, factors, hps: Mapping[str, Number]
) -> optax.GradientTransformation:
    """The step of the module's equations from a direction u."""
    factor_of = schedule(config)
    eta, decay = hps["eta"], hps["weight_decay"]
    coupled = config.decay == "coupled"

    def update(updates, state, params):
        s = factor_of(state.count)

        def one(factor, direction, param):
            lr = s * eta * factor
            return -(lr * direction) - (lr if coupled else s) * decay * param

        new = jax.tree.map(one, factors, updates, params)
        return new, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(
        lambda _: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)), update
    )


def adamw(config: OptimConfig, factors, hps: Mapping[str, Number]) -> optax.GradientTransformation:
    """AdamW with per-weight factors.

    Args:
        config: betas, ε, schedule and kind of decay.
        factors: tree of learning-rate factors, as ``lr_factors`` gives it.
        hps: ``eta`` and ``weight_decay``, floats or traced scalars.

    Returns:
        A transformation whose update needs ``params``.
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    return optax.chain(adam, _descend(config, factors, hps))


def sgd(
    config: OptimConfig, factors, hps: Mapping[str, Number], *, momentum: float = 0.0
) -> optax.GradientTransformation:
    """SGD with per-weight factors, heavy-ball momentum m ← β·m + g where ``momentum`` β > 0.

    Args:
        config: schedule and kind of decay; its betas and ε are Adam's and not read.
        factors: as ``lr_factors(..., optimizer="sgd")`` gives it.
        hps: ``eta`` and ``weight_decay``, floats or traced scalars.
        momentum: in [0, 1).

    Returns:
        A transformation whose update needs ``params``.

    Raises:
        ConfigError: momentum outside [0, 1).
    """
    if not 0.0 <= momentum < 1.0:
        raise ConfigError("momentum", momentum, "a number in [0, 1)")
    descend = _descend(config, factors, hps)
    return optax.chain(optax.trace(momentum), descend) if momentum else descend
