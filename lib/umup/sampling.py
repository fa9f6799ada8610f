"""Batches as pure functions of (seed, step): epochs without replacement, no state, no host.

A window is ``seq_len + 1`` tokens; windows start every ``seq_len`` tokens, so each token of the
stream is a target once per epoch. Sample ``i = step · batch_size + lane`` of a run belongs to epoch
``i // n_windows``. Within an epoch, a keyed permutation of the window numbers, computed only where
it is needed, replaces a shuffle. All of it is uint32 arithmetic, with the same results on every
backend, on one device or many, inside or outside jit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from umup.errors import DataError

_ROUNDS = 8  # even, so that the mixed-radix halves come back in their places


def check_seq_len(seq_len: object) -> None:
    """Raise a DataError unless ``seq_len`` is a positive integer."""
    if isinstance(seq_len, bool) or not isinstance(seq_len, (int, np.integer)) or seq_len < 1:
        raise DataError("seq_len", seq_len, "an integer of at least 1")


def n_windows(n_tokens: int, seq_len: int, *, on_host: bool = False) -> int:
    """How many windows of ``seq_len + 1`` tokens at stride ``seq_len`` a stream holds.

    A device indexes tokens in int32; the host (``umup.data.loader``) uses int32 only for windows.

    Raises:
        DataError: ``seq_len`` is not a positive integer, or the stream holds no window.
    """
    check_seq_len(seq_len)
    if seq_len > n_tokens - 1:
        raise DataError(
            "seq_len", seq_len, f"at most {n_tokens - 1}: the shortest split has {n_tokens} tokens"
        )
    n = (n_tokens - 1) // seq_len
    if (n if on_host else n_tokens) >= 2**31:
        what = "windows" if on_host else "tokens"
        raise DataError(what, n if on_host else n_tokens, "fewer than 2**31; set max_tokens")
    return n


def permute(index: ArrayLike, n: int, seed: ArrayLike, epoch: ArrayLike) -> Array:
    """``index`` under a pseudo-random permutation of 0 … n − 1 that is keyed by (seed, epoch).

    A Feistel network over ℤ_a × ℤ_b with a·b ≥ n just above n, walked along its cycle until it
    lands below n: Black and Rogaway (2002), "Ciphers with arbitrary finite domains".

    Args:
        index: integers from 0 to n − 1, any shape.
        n: size of the domain, 1 to 2³¹; static.
        seed: integer scalar, or the shape of ``index``; may be traced.
        epoch: as ``seed``.

    Returns:
        uint32 of the shape of ``index``.
    """
    feistel = _feistel(n, _uint32(seed), _uint32(epoch))
    return jax.lax.while_loop(
        lambda x: jnp.any(x >= np.uint32(n)),  # a plain 2**31 is no int32
        lambda x: jnp.where(x < np.uint32(n), x, feistel(x)),
        feistel(_uint32(index)),
    )


def permute_on_host(index: ArrayLike, n: int, seed: ArrayLike, epoch: ArrayLike) -> np.ndarray:
    """``permute`` in NumPy, for the thread that reads a corpus that does not fit the device.

    Arguments and result are those of ``permute``, bit for bit; no device is used.
    """
    index, seed, epoch = (np.asarray(x).astype(np.uint32) for x in (index, seed, epoch))
    with np.errstate(over="ignore"):  # NumPy warns where its scalars wrap around
        feistel = _feistel(n, seed, epoch)
        x = feistel(index)
        while np.any(x >= n):
            x = np.where(x < n, x, feistel(x))
    return np.asarray(x)


def _feistel(n: int, seed: Any, epoch: Any) -> Callable[[Any], Any]:
    """One pass of the network on uint32 arrays of NumPy or JAX; it uses operators alone."""
    a = math.isqrt(n - 1) + 1 if n > 1 else 1
    b = -(-n // a)
    key = mix(mix(seed + np.uint32(0x9E3779B9)) ^ epoch)
    keys = [mix(key + np.uint32(r * 0x9E3779B9 % 2**32)) for r in range(_ROUNDS)]

    def feistel(x: Any) -> Any:
        left, right = x % np.uint32(a), x // np.uint32(a)
        for r, round_key in enumerate(keys):
            size = np.uint32(b if r % 2 else a)
            left, right = right, (left + mix(right ^ round_key) % size) % size
        return left + right * np.uint32(a)

    return feistel


def batch(
    tokens: ArrayLike, seed: ArrayLike, step: ArrayLike, *, batch_size: int, seq_len: int
) -> tuple[Array, Array]:
    """The training batch of ``step``: every window once per epoch, reordered in the next.

    Args:
        tokens: 1-D token stream (uint16 or uint32), on the device for speed.
        seed: integer scalar; may be traced.
        step: integer scalar from 0; may be traced. ``step · batch_size`` stays below 2³².
        batch_size: windows per batch, B; static.
        seq_len: tokens per window, T; static.

    Returns:
        Inputs and targets, int32 (B, T); targets are the inputs shifted by one token.

    Raises:
        DataError: the stream is shorter than one window.
    """
    tokens = jnp.asarray(tokens)
    n = n_windows(tokens.size, seq_len)
    sample = _uint32(step) * np.uint32(batch_size) + jnp.arange(batch_size, dtype=jnp.uint32)
    return _gather(tokens, permute(sample % np.uint32(n), n, seed, sample // np.uint32(n)), seq_len)


def eval_batch(
    tokens: ArrayLike, index: ArrayLike, *, batch_size: int, seq_len: int
) -> tuple[Array, Array]:
    """Evaluation batch number ``index``: the same for every run, whatever its seed.

    Window ``j·g mod n`` is the j-th, with g coprime to n and near n over the golden ratio. The
    first batches, however many, are thus spread evenly over the stream, and no window repeats
    before all n have been used.

    Args:
        tokens: 1-D token stream.
        index: integer scalar from 0; may be traced.
        batch_size: windows per batch, B; static.
        seq_len: tokens per window, T; static.

    Returns:
        Inputs and targets, int32 (B, T).

    Raises:
        DataError: the stream is shorter than one window.
    """
    tokens = jnp.asarray(tokens)
    n = n_windows(tokens.size, seq_len)
    place = _uint32(index) * np.uint32(batch_size) + jnp.arange(batch_size, dtype=jnp.uint32)
    return _gather(tokens, _multiply_mod(place % np.uint32(n), _golden_stride(n), n), seq_len)


def _golden_stride(n: int) -> int:
    """A stride coprime to n whose multiples modulo n fill the circle evenly at every count.

    The filling is even if the continued fraction of stride / n has small partial quotients; those
    of the golden ratio are all 1. Of the strides near n over the golden ratio, this is the one
    whose largest partial quotient is smallest.
    """

    def quotients(a: int, b: int) -> Iterator[int]:
        while b:
            yield a // b
            a, b = b, a % b

    golden = round(n * (math.sqrt(5) - 1) / 2)
    near = [s for s in range(max(1, golden - 99), golden + 100) if math.gcd(s, n) == 1]
    return min(near, key=lambda s: (max(quotients(n, s)), abs(s - golden))) % n


def _multiply_mod(x: Array, factor: int, n: int) -> Array:
    """``x · factor mod n`` in uint32, digit by digit of x so that nothing overflows."""
    bits = 31 - n.bit_length()  # result · 2^bits + digit · factor < n · 2^(bits + 1) ≤ 2³²
    if bits < 1:
        raise DataError("tokens", n, "fewer than 2**30 windows")
    result = jnp.zeros_like(x)
    for shift in reversed(range(0, n.bit_length(), bits)):
        digit = (x >> np.uint32(shift)) & np.uint32(2**bits - 1)
        result = ((result << np.uint32(bits)) + digit * np.uint32(factor)) % np.uint32(n)
    return result


def _gather(tokens: Array, windows: Array, seq_len: int) -> tuple[Array, Array]:
    start = windows.astype(jnp.int32)[:, None] * seq_len
    window = tokens.at[start + jnp.arange(seq_len + 1)].get(mode="promise_in_bounds")
    window = window.astype(jnp.int32)
    return window[:, :-1], window[:, 1:]


def _uint32(x: ArrayLike) -> Array:
    return jnp.asarray(x).astype(jnp.uint32)


def mix(x: Any) -> Any:
    """The 32-bit finalizer of MurmurHash3 (A. Appleby, public domain)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
