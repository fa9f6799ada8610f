"""Keys and draws are those of JAX, to the bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from umup import draws


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_known_answers_of_random123(key, counter, words):
    as_words = [tuple(np.asarray([w], np.uint32) for w in pair) for pair in (key, counter)]
    assert tuple(int(w[0]) for w in draws.threefry(*as_words)) == words


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_traced_seeds_keys_and_draws_are_jaxs(impl):
    def drawn(split, normal, seed):
        key = jax.random.key(seed, impl=impl)
        keys = split(key, 5)
        stacked = jax.vmap(lambda k: normal(k, (3, 4)))(keys)
        return jax.random.key_data(keys), normal(key, ()), normal(keys[4], (7, 2, 5)), stacked

    ours = jax.jit(lambda seed: drawn(draws.split, draws.normal, seed))
    jaxs = jax.jit(lambda seed: drawn(jax.random.split, jax.random.normal, seed))
    for seed in (0, 1, -1, 2**31 - 1):
        for got, want in zip(ours(jnp.int32(seed)), jaxs(jnp.int32(seed)), strict=True):
            np.testing.assert_array_equal(got, want)


def test_the_keys_are_those_of_flax():
    ours, flax = draws.Keys(jax.random.key(7), 3), nnx.Rngs(params=jax.random.key(7))
    for _ in range(3):
        assert ours.params() == flax.params()
    with pytest.raises(StopIteration):
        ours.params()


def test_a_draw_too_large_for_one_word_is_left_to_jax(monkeypatch):
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: (shape, dtype))
    assert draws.normal(jax.random.key(0), (2**16, 2**16)) == ((2**16, 2**16), jnp.float32)
