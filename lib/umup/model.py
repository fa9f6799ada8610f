"""One Llama-style decoder (RMSNorm, SwiGLU, RoPE, untied) that sees only numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from umup import ops
from umup.config import ModelConfig
from umup.layers import Block, Embedding, Linear, scale
from umup.rules import Parametrization, ResidualNumbers


class Decoder(nnx.Module):
    """Decoder-only transformer language model.

    Args:
        config: shapes.
        numbers_of: the parametrization: every init std, multiplier and learning-rate factor.
        rngs: the draws; equal seeds give equal draws under every scheme.

    Blocks are stacked along a leading layer axis and run by a scan, so compile time does not grow
    with depth.
    """

    def __init__(self, config: ModelConfig, numbers_of: Parametrization, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(numbers_of, "input", config.vocab_size, config.d_model, rngs=rngs)
        residual = numbers_of.residual()
        attn, ffn = _stack(residual[0::2]), _stack(residual[1::2])

        def block(key, attn, ffn):
            return Block(
                config, numbers_of, ResidualNumbers(*attn), ResidualNumbers(*ffn),
                rngs=nnx.Rngs(params=key),
            )  # fmt: skip

        keys = jax.random.split(rngs.params(), config.n_layers)
        self.blocks = nnx.vmap(block, in_axes=(0, 0, 0))(keys, attn, ffn)
        self.readout = Linear(numbers_of, "output", config.d_model, config.vocab_size, rngs=rngs)
        alpha, grad_scale = numbers_of.loss(config.vocab_size)
        self.loss_alpha, self.loss_grad = scale(alpha), scale(grad_scale)

    def __call__(self, ids: Array) -> Array:
        """ids (B, T) → logits (B, T, V)."""
        batch, seq_len = ids.shape
        x = self.embed(ids.reshape(-1)).astype(self.config.dtype)
        graph, state = nnx.split(self.blocks)

        def layer(x, block_state):
            return nnx.merge(graph, block_state)(x, seq_len), None

        x, _ = jax.lax.scan(layer, x, state, unroll=self.config.unroll or self.config.n_layers)
        return self.readout(ops.rms_norm(x)).reshape(batch, seq_len, -1)

    def loss(self, ids: Array, targets: Array) -> Array:
        """Mean cross-entropy, nats a token; ids and targets (B, T)."""
        logits = self(ids)
        return ops.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
            self.loss_alpha[...], self.loss_grad[...],
        )  # fmt: skip


def _stack(numbers: list[ResidualNumbers]) -> tuple[Array, ...]:
    fields = zip(*((n.add, n.skip, n.add_grad, n.split_grad) for n in numbers))
    return tuple(jnp.stack([jnp.asarray(v, jnp.float32) for v in field]) for field in fields)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(graph, trained parameters, scales and other state)."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return graph, params, rest
