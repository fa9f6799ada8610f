"""The pieces of a training step as programs of their own, to see where its time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from umup import data, ops, optim, train
from umup.config import RunConfig

NUDGE = 1e-6  # small, so that values stay what they are; not 0, so that nothing is left out


class Piece:
    """A function run forward and backward, its operands nudged by its gradients.

    What comes out goes in again, so that no step of the loop can be left out or shared.
    """

    def __init__(self, function: Callable[..., jax.Array], *operands: jax.Array):
        def body(operands, _):
            y, pull = jax.vjp(function, *operands)
            moved = tuple(a + NUDGE * d for a, d in zip(operands, pull(y), strict=True))
            return moved, None

        self._set(body, operands)

    def _set(self, body: Callable, carry: Any) -> None:
        def loop(carry, steps):
            return jax.lax.scan(body, carry, None, length=steps)[0]

        self.program, self.carry = jax.jit(loop, static_argnums=1), carry

    def seconds(self, steps: int) -> float:
        """Wall time of ``steps`` runs."""
        start = time.perf_counter()
        self.carry = jax.block_until_ready(self.program(self.carry, steps))
        return time.perf_counter() - start


class Update(Piece):
    """The optimizer's update of every weight, given gradients."""

    def __init__(self, run: RunConfig):
        lane = jax.tree.map(lambda leaf: leaf[0], train.lanes_of([run]))
        state = train.init(run, lane)
        optimizer = optim.adamw(run.optim, state.numbers.lr_factors, lane.hps)

        def body(carry, _):
            params, opt = carry
            updates, opt = optimizer.update(params, opt, params)
            return (optax.apply_updates(params, updates), opt), None

        self._set(body, (state.params, state.opt))


class Batch(Piece):
    """The draw of a batch from the tokens."""

    def __init__(self, run: RunConfig):
        tokens = jnp.zeros(200_000, jnp.uint16)

        def body(carry, _):
            step, total = carry
            ids, targets = data.batch(
                tokens,
                jnp.int32(0),
                step,
                batch_size=run.optim.batch_size,
                seq_len=run.model.seq_len,
            )
            return (step + 1, total + jnp.sum(ids) + jnp.sum(targets)), None

        self._set(body, (jnp.int32(0), jnp.int32(0)))


def pieces(run: RunConfig) -> dict[str, tuple[Piece, int]]:
    """Piece → its program and how often a step has it.

    ``products`` are those of all linears of a block, ``readout`` that of the last; ``attention``
    has scores, softmax and weighted sum, ``rope`` the rotation and the transposition to heads.
    """
    m, batch = run.model, run.optim.batch_size
    tokens, n = batch * m.seq_len, m.n_layers
    draws = np.random.default_rng(0)

    def normal(*size: int, dtype: str = m.dtype) -> jax.Array:
        return jnp.asarray(draws.standard_normal(size), dtype)

    def products(x, qkv, out, gate_up, hidden, down):
        a = ops.linear(x, qkv, *scales)
        b = ops.linear(x, out, *scales)
        c = ops.linear(x, gate_up, *scales)
        return jnp.concatenate([a, b, c, ops.linear(hidden, down, *scales)], axis=-1)

    def rope(qkv):
        q, k, v = qkv.reshape(batch, m.seq_len, 3, m.n_heads, m.d_head).transpose(2, 0, 3, 1, 4)
        turn = ops.rope_tables(m.seq_len, m.d_head, m.rope_theta)
        return jnp.stack([ops.rope(q, *turn), ops.rope(k, *turn), v])

    def residual(x, skip):
        branch, skip = ops.residual_split(x + skip, one)
        return ops.residual_add(branch, skip, one, one, one)

    one = jnp.float32(1.0)
    scales = (jnp.float32(m.d_model**-0.5),) * 3
    d, heads = m.d_model, (batch, m.n_heads, m.seq_len, m.d_head)
    weight = {"dtype": m.params_dtype}
    ids = jnp.asarray(draws.integers(0, m.vocab_size, tokens))
    return {
        "products": (
            Piece(
                products,
                normal(tokens, d),
                normal(d, 3 * d, **weight),
                normal(d, d, **weight),
                normal(d, 2 * m.d_ff, **weight),
                normal(tokens, m.d_ff),
                normal(m.d_ff, d, **weight),
            ),
            n,
        ),
        "readout": (
            Piece(
                lambda x, w: ops.linear(x, w, *scales),
                normal(tokens, d),
                normal(d, m.vocab_size, **weight),
            ),
            1,
        ),
        "attention": (
            Piece(
                lambda q, k, v: ops.attention(q, k, v, scales[0], one, m.attention),
                normal(*heads),
                normal(*heads),
                normal(*heads),
            ),
            n,
        ),
        "rope": (Piece(rope, normal(tokens, 3 * d)), n),
        "activation": (
            Piece(lambda pair: ops.gated_silu_pair(pair, one, one), normal(tokens, 2, m.d_ff)),
            n,
        ),
        "norms": (Piece(ops.rms_norm, normal(tokens, d)), 2 * n + 1),
        "residual": (Piece(residual, normal(tokens, d), normal(tokens, d)), 2 * n),
        "loss": (
            Piece(
                lambda logits: ops.cross_entropy(logits, ids, one, one),
                normal(tokens, m.vocab_size),
            ),
            1,
        ),
        "embedding": (
            Piece(lambda w: ops.embed(ids, w, one, one), normal(m.vocab_size, d, **weight)),
            1,
        ),
        "optimizer": (Update(run), 1),
        "data": (Batch(run), 1),
    }
