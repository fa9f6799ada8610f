"""JAX's random keys and normal draws, bit for bit, as programs that XLA compiles faster on a CPU.

JAX writes Threefry as a loop of rounds, which XLA's CPU backend makes into a dozen programs for
every key and every draw, which takes most of the time before a small model's first step. With the
rounds written out, all keys of a model are one program, and each draw is one.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Threefry-2x32 of 20 rounds: Salmon et al. (2011), "Parallel random numbers".

    Args:
        key, counter: two words each, uint32 of shapes that broadcast.

    Returns:
        Two words of random bits, uint32.
    """
    keys = (*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(bits)) | (y >> np.uint32(32 - bits)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def split(key: Array, n: int) -> Array:
    """``jax.random.split(key, n)``; its i-th is also ``jax.random.fold_in(key, i)``."""
    if not _is_threefry(key):
        return jax.random.split(key, n)
    return _split(key, n)


# Traced once for each size, and one program where they are called outside of any.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _split(key: Array, n: int) -> Array:
    index = jnp.arange(n, dtype=jnp.uint32)
    words = threefry(_words(key), (jnp.zeros_like(index), index))
    # Without the barrier, every draw would derive its own key again.
    return jax.random.wrap_key_data(jax.lax.optimization_barrier(jnp.stack(words, axis=-1)))


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """``jax.random.normal(key, shape, jnp.float32)``."""
    if not _is_threefry(key) or math.prod(shape) >= 2**32:
        return jax.random.normal(key, shape, jnp.float32)
    return _normal(key, shape)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _normal(key: Array, shape: tuple[int, ...]) -> Array:
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    x, y = threefry(_words(key), (jnp.zeros_like(index), index))
    # 23 bits as the fraction of a number from 1 to 2, taken to (−1, 1).
    from_one = jax.lax.bitcast_convert_type(((x ^ y) >> np.uint32(9)) | np.uint32(0x3F800000), "f4")
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(lowest, (from_one - 1) * (np.float32(1) - lowest) + lowest)
    return np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)


class Keys:
    """The keys of ``nnx.Rngs(params=key)``, the first ``n`` of them derived together."""

    def __init__(self, key: Array, n: int):
        self._keys = iter(split(key, n))

    def params(self) -> Array:
        """The next key."""
        return next(self._keys)


Rngs = nnx.Rngs | Keys
"""A stream of keys: ``params()`` is the next one."""


def _words(key: Array) -> tuple[Array, Array]:
    data = jax.random.key_data(key)
    return data[0], data[1]


def _is_threefry(key: Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"
