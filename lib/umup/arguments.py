"""Checks of the arguments of ``umup.unit``, and the constraints on its scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from umup.errors import ConfigError
from umup.powers import Number

BINARY = ("to_output_scale", "to_grad_input_scale")
"""Names of the scales of an op of one input that a constraint may choose."""

TERNARY = ("to_output_scale", "to_left_grad_scale", "to_right_grad_scale")
"""The same for an op of two inputs."""


def arrays(**named) -> list[Array]:
    """The values as JAX arrays.

    Raises:
        ConfigError: one is not of floating-point numbers, or has a dimension of size 0.
    """
    out = []
    for name, value in named.items():
        x = jnp.asarray(value)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ConfigError(name, x.dtype.name, "an array of floating-point numbers")
        require_shape(name, x, x.size > 0, "a shape without 0")
        out.append(x)
    return out


def indices(name: str, value, size: int, besides: int | None = None) -> Array:
    """The value as a JAX array of int32 in [0, ``size``), or equal to ``besides``.

    Raises:
        ConfigError: it is not. The values of a traced array cannot be checked; a result computed
            from one that is out of range is NaN.
    """
    given = value if isinstance(value, np.ndarray) else jnp.asarray(value)  # JAX cuts an int64
    ids = jnp.asarray(given)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ConfigError(name, ids.dtype.name, "an array of integers")
    require_shape(name, ids, ids.size > 0, "a shape without 0")
    if not isinstance(ids, Tracer):
        seen = np.asarray(given)
        wrong = seen[((seen < 0) | (seen >= size)) & (seen != besides)]
        if wrong.size:
            raise ConfigError(name, int(wrong[0]), f"integers in [0, {size})")
    return ids.astype(jnp.int32)


def positive(name: str, value: Number, *, or_zero: bool = False) -> Number:
    """The value, a scalar setting; if traced, it receives no gradient.

    Raises:
        ConfigError: it is not a scalar, or its value is known and not finite and > 0 (``or_zero``:
            ≥ 0).
    """
    if isinstance(value, Tracer):
        good = value.shape == ()
    else:
        seen = np.asarray(value)
        good = seen.shape == () and seen.dtype.kind not in "bcOSU"
        good = good and (0 < float(seen) < math.inf or (or_zero and float(seen) == 0))
    if not good:
        raise ConfigError(name, value, f"a finite number {'>=' if or_zero else '>'} 0")
    return jax.lax.stop_gradient(value) if isinstance(value, Tracer) else value


def require_shape(name: str, x: Array, good: bool, allowed: str) -> None:
    """Raise ConfigError, with x's shape and what is allowed, unless ``good``."""
    if not good:
        raise ConfigError(name, x.shape, allowed)


def constrained(constraint: str | None, names: Sequence[str], *scales: Number) -> tuple:
    """The scales (output, then input gradients) made equal as ``constraint`` says.

    Args:
        constraint: one of ``names``, which takes that scale for all; gmean, hmean or amean of
            them; or None, which leaves them.
        names: the scales' names, ``BINARY`` or ``TERNARY``.

    Raises:
        ConfigError: another constraint.
    """
    if constraint is None:
        return scales
    n = len(scales)
    means: dict[str, Callable[[], Number]] = {
        "gmean": lambda: math.prod(scales) ** (1 / n),
        "hmean": lambda: n / sum(1 / s for s in scales),
        "amean": lambda: sum(scales) / n,
    }
    if constraint in names:
        return (scales[names.index(constraint)],) * n
    if constraint in means:
        return (means[constraint](),) * n
    raise ConfigError("constraint", constraint, " | ".join([*names, *means, "None"]))
