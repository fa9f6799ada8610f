"""AdamW and SGD with a learning-rate factor for every weight, as optax transformations.

Learning rate, decay and factors may be traced. The update of a weight w with factor f is

    w ← w − s(t)·(η·f·u + λ·w)        independent decay (u-μP paper, Table 6)
    w ← w − s(t)·η·f·(u + λ·w)        coupled decay

with s(t) the schedule and u = m̂/(√v̂ + ε) for Adam, the gradient or its momentum for SGD. Adam and
momentum are optax's; umup adds the factor of each weight, which the rules give. Options put factors
on a weight's λ and ε, too (``Options``), and let η, λ and the betas follow batch and steps
(``size_rules``).
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from umup import schemes, size_rules
from umup.config import DECAY_RULES, OptimConfig
from umup.errors import ConfigError
from umup.powers import Number
from umup.roles import mark as mark
from umup.rules import Parametrization, WeightNumbers
from umup.sampling import mix
from umup.schemes import ROLES


def schedule(config: OptimConfig) -> optax.Schedule:
    """Step (from 0) → factor on η: linear warm-up to 1, then ``config.schedule``.

    Step t of the warm-up has factor (t+1)/warmup_steps, so that no step is wasted at 0. After it,
    with r = ``final_lr_ratio``:

    - ``cosine``, ``linear``: from 1 down to r at the last step (a run of one step has 1);
    - ``wsd``, ``wsd_sqrt``: 1 until ``decay_steps`` are left (MiniCPM, arXiv 2404.06395), then
      r + (1−r)·d with d = 1 − x or 1 − √x (Hägele et al., arXiv 2405.18392), where x is the
      completed share of the decay, from 1/decay_steps to 1;
    - ``two_step``: 1, then 0.316 from 80 % of the steps on and 0.1 from 90 % (DeepSeek LLM,
      arXiv 2401.02954, §2.3).
    """
    warmup, ratio, steps = config.warmup_steps, config.final_lr_ratio, config.steps
    span = max(steps - 1 - warmup, 1)
    # If only one step follows the warm-up, it is the end of the decay.
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
        "cosine": lambda: cosine,
        "linear": lambda: linear,
        "two_step": lambda: two_step,
        "wsd": lambda: stable(lambda x: x),
        "wsd_sqrt": lambda: stable(jnp.sqrt),
    }[config.schedule]()

    def factor(step):
        step = jnp.asarray(step, jnp.float32)
        return jnp.where(step < warmup, (step + 1.0) / max(warmup, 1), after(step))

    return factor


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
    return _factors(params, numbers_of, lambda numbers, _: getattr(numbers, f"{optimizer}_lr"))


class Options(NamedTuple):
    """Factors on λ and on ε of every weight, in the tree of the weights; None where all are 1."""

    decay: Any = None
    eps: Any = None


NO_OPTIONS = Options()


def options(params: nnx.State, numbers_of: Parametrization, config: OptimConfig) -> Options:
    """The factors that ``decay_rule`` and ``eps_rule`` of the configuration ask for.

    ε follows the size of each weight's gradient: over width and depth by the scheme's ``adam_eps``,
    and under the size rule ``sqrt_batch`` as 1/√batch, but for unit-scaled schemes, whose gradients
    have unit size at any batch.

    Raises:
        ConfigError: see ``lr_factors``.
    """
    decay = eps = None
    if power := DECAY_RULES[config.decay_rule]:
        widening = numbers_of.model.d_model / numbers_of.model.base_width

        def decay_of(_, meta):
            return widening**power if meta["role"] == "hidden" else 1.0

        decay = _factors(params, numbers_of, decay_of)
    if config.eps_rule == "scaled":
        plain = not schemes.get(numbers_of.scheme).unit_scaled
        sqrt = plain and config.size_rule == "sqrt_batch"
        batch = size_rules.ratio(config, {"base_batch": 0.5, "batch": -0.5}) if sqrt else 1.0
        eps = _factors(params, numbers_of, lambda numbers, _: numbers.adam_eps * batch)
    return Options(decay, eps)


def _factors(
    params: nnx.State,
    numbers_of: Parametrization,
    of: Callable[[WeightNumbers, Mapping[str, Any]], Number],
) -> nnx.State:
    """A number for every weight, from its numbers and metadata, in the tree of ``params``."""

    def factor(path, param):
        meta = param.get_metadata() if isinstance(param, nnx.Variable) else {}
        name = _name(path)
        if "role" not in meta:
            raise ConfigError(name, "a parameter without a role", " | ".join(ROLES))
        if meta["role"] not in ROLES:
            raise ConfigError(f"{name}'s role", meta["role"], " | ".join(ROLES))
        missing = [field for field in ("fan_in", "fan_out", "residual") if field not in meta]
        if missing:
            raise ConfigError(name, f"a parameter without {missing[0]}", "a parameter with it")
        numbers = of_vector.get(meta.get("vector", ""), numbers_of).weight(
            meta["role"], meta["fan_in"], meta["fan_out"], residual=meta["residual"]
        )
        return param.replace(jnp.asarray(of(numbers, meta), jnp.float32))

    # η̂_emb is the embedding's alone; a vector of the output layer, its bias, does not widen.
    ours = dataclasses.replace(numbers_of, hps={**numbers_of.hps, "eta_emb": 1.0})
    model = dataclasses.replace(ours.model, base_width=ours.model.d_model)
    of_vector = {"input": ours, "fixed": dataclasses.replace(ours, model=model)}
    return jax.tree.map_with_path(factor, params, is_leaf=_is_variable)


def _is_variable(leaf) -> bool:
    return isinstance(leaf, nnx.Variable)


def _name(path: tuple) -> str:
    return ".".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def _named(factors) -> dict[str, Any]:
    """Name of a weight → its factor; nothing of None."""
    leaves = jax.tree.leaves_with_path(factors, is_leaf=_is_variable)
    return {_name(path): f[...] if _is_variable(f) else f for path, f in leaves}


def _descend(
    config: OptimConfig, factors, hps: Mapping[str, Number], decay_factors=None
) -> optax.GradientTransformation:
    """The update of the module's equations from a direction u.

    Factors are looked up by the weight's name: the factors are an ``nnx.State``, while Flax and
    optax may pass bare arrays, a part of the weights, or a tree with masked nodes.
    """
    factor_of, size = schedule(config), size_rules.at_size(config)
    eta, decay = hps["eta"], hps["weight_decay"]
    if config.size_rule != "none":
        eta, decay = eta * size.eta, decay * size.decay
    coupled = config.decay == "coupled"
    named, decays = _named(factors), _named(decay_factors)

    def update(updates, state, params=None):
        if params is None:
            raise ConfigError("params", None, "the weights, as update(gradients, state, params)")
        s = factor_of(state.count)

        def one(path, direction, param):
            name = _name(path)
            if name not in named:
                raise ConfigError(name, "a weight without a factor", ", ".join(named))
            if _is_variable(direction):
                return direction.replace(one(path, direction[...], param[...]))
            lr = s * eta * named[name]
            held = param.astype(jnp.float32)
            strength = decay * decays[name] if name in decays else decay
            step = -(lr * direction) - (lr if coupled else s) * strength * held
            if param.dtype == held.dtype:
                return step
            return round_at_random(held + step, param.dtype, name, state.count) - held

        new = jax.tree.map_with_path(one, updates, params, is_leaf=_is_variable)
        return new, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(
        lambda _: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)), update
    )


def round_at_random(x: Array, dtype: DTypeLike, name: str, step: Array) -> Array:
    """x, float32, rounded at random up or down to a value of ``dtype``, with expectation x.

    With rounding to nearest, a bfloat16 weight does not change under any update below 1/512 of it:
    most of its decay and the small steps at the end of a schedule are lost (arXiv 2010.06192, §3).
    Equal names and steps draw equal bits, on one device or many, with or without a restart.

    Returns:
        float32, of x's shape. Magnitudes beyond the largest of ``dtype`` are infinite.
    """
    near = x.astype(dtype)
    back = near.astype(jnp.float32)
    way = jnp.where(x > back, jnp.inf, -jnp.inf).astype(dtype)
    other = jax.lax.nextafter(near, way).astype(jnp.float32)
    share = (x - back) / (other - back)
    key = mix(np.uint32(zlib.crc32(name.encode())) ^ step.astype(jnp.uint32))
    index, size = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(size % 2**32)
        size *= x.shape[axis]
    drawn = (mix(mix(index) ^ key) >> np.uint32(8)).astype(jnp.float32) * 2.0**-24
    return jnp.where(drawn < share, other, back)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep moments in float32, whatever the weights' dtype."""

    def float32(tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    return optax.GradientTransformation(
        lambda params: inner.init(float32(params)),
        lambda updates, state, params=None: inner.update(float32(updates), state),
    )


def _divided(factors) -> optax.GradientTransformation:
    """Gradients over each weight's factor f: Adam with ε then is Adam with ε·f on the gradients."""
    named = _named(factors)

    def update(updates, state, params=None):
        def one(path, gradient):
            if _is_variable(gradient):
                return gradient.replace(one(path, gradient[...]))
            return gradient.astype(jnp.float32) / named[_name(path)]

        return jax.tree.map_with_path(one, updates, is_leaf=_is_variable), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _check_options(config: OptimConfig, options: Options) -> None:
    """A rule without its factors would change nothing, in silence."""
    for rule, given in (("decay_rule", options.decay), ("eps_rule", options.eps)):
        if (getattr(config, rule) != "constant") != (given is not None):
            raise ConfigError(rule, getattr(config, rule), "what optim.options was given")


def adamw(
    config: OptimConfig, factors, hps: Mapping[str, Number], options: Options = NO_OPTIONS
) -> optax.GradientTransformation:
    """AdamW with per-weight factors.

    It can be chained, masked and given to ``nnx.Optimizer``. Moments are float32. Weights in
    bfloat16 or float16 get updates that round them at random to a neighbouring value, with the
    exact step as expectation: apply them unchanged, with ``optax.apply_updates``.

    Args:
        config: betas, ε, schedule and kind of decay.
        factors: tree of learning-rate factors from ``lr_factors``; weights are matched by name, so
            that an optimizer of some weights may be given the factors of all.
        hps: ``eta`` and ``weight_decay``, floats or traced scalars.
        options: what the function ``options`` gives for the configuration.

    Returns:
        A transformation whose update needs ``params`` and is float32.

    Raises:
        ConfigError: a rule of the configuration lacks its factors in ``options``. At an update: a
            weight has no factor, or there are no ``params``.
    """
    _check_options(config, options)
    size = size_rules.at_size(config)
    adam = _in_float32(optax.scale_by_adam(size.beta1, size.beta2, config.eps))
    descend = _descend(config, factors, hps, options.decay)
    if options.eps is None:
        return optax.chain(adam, descend)
    return optax.chain(_divided(options.eps), adam, descend)


def sgd(
    config: OptimConfig, factors, hps: Mapping[str, Number], *, momentum: float = 0.0
) -> optax.GradientTransformation:
    """SGD with per-weight factors, heavy-ball momentum m ← β·m + g where ``momentum`` β > 0.

    Args:
        config: schedule and kind of decay; its betas and ε belong to Adam and are not used.
        factors: see ``adamw``; as ``lr_factors(..., optimizer="sgd")`` gives it.
        hps: ``eta`` and ``weight_decay``, floats or traced scalars.
        momentum: in [0, 1).

    Returns:
        A transformation whose update needs ``params``.

    Raises:
        ConfigError: momentum outside [0, 1), or a rule for λ or ε, which are AdamW's options.
    """
    if not 0.0 <= momentum < 1.0:
        raise ConfigError("momentum", momentum, "a number in [0, 1)")
    _check_options(config, NO_OPTIONS)
    descend = _descend(config, factors, hps)
    return optax.chain(_in_float32(optax.trace(momentum)), descend) if momentum else descend
