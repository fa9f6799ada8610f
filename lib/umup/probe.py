"""Probes: statistics of tensors, carried out of a model as the gradient of a dummy operand.

``tap`` is the identity on its first argument. The "gradient" of its dummy operand holds statistics
of the given tensors and of the cotangent that passes. Statistics therefore go wherever gradients
do, through scan over layers, vmap over lanes and shardings, without global state. A model without
taps compiles to the same program as if this module did not exist.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from umup import fp8
from umup.config import PROBE_STATS


def statistics(x: Array) -> Array:
    """``config.PROBE_STATS`` of a tensor, float32 (7,).

    RMS, mean and largest magnitude; then for E4M3 and E5M2 the share of elements beyond the
    largest magnitude (clipped) and of elements that are not zero but round to it (flushed: at
    most half the smallest subnormal, the tie going to zero). NaN makes the first three NaN.
    """
    x = x.astype(jnp.float32)
    size = jnp.abs(x)
    shares = []
    for fmt in (fp8.E4M3, fp8.E5M2):
        shares.append(jnp.mean(size > fmt.largest, dtype=jnp.float32))
        shares.append(jnp.mean((size > 0) & (size <= fmt.smallest / 2), dtype=jnp.float32))
    return jnp.stack([jnp.sqrt(jnp.mean(x * x)), jnp.mean(x), jnp.max(size), *shares])


def blank(rows: int) -> Array:
    """The dummy operand of a tap that reports ``rows`` tensors, the cotangent included."""
    return jnp.zeros((rows, len(PROBE_STATS)), jnp.float32)


@jax.custom_vjp
def _tap(x, dummy, tensors):
    return x


def _tap_fwd(x, dummy, tensors):
    return x, tensors


def _tap_bwd(tensors, g):
    report = jnp.stack([statistics(t) for t in (*tensors, g)])
    return g, report, jax.tree.map(jnp.zeros_like, tensors)


_tap.defvjp(_tap_fwd, _tap_bwd)


def tap(x: Array, dummy: Array, tensors: tuple[Array, ...]) -> Array:
    """x itself; the gradient of ``dummy`` reports on ``tensors`` and on x's cotangent.

    Args:
        x: any shape; passes unchanged, as does its cotangent.
        dummy: ``blank(len(tensors) + 1)``.
        tensors: the tensors to report on before the cotangent, in order; they receive no gradient.
    """
    # Stopped before they enter: a zero cotangent times an infinite derivative would be NaN.
    return _tap(x, dummy, lax.stop_gradient(tensors))
