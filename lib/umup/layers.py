"""Flax NNX modules. They hold weights and numbers and never name a scheme.

Every weight is an ``nnx.Param`` that carries, as metadata, its role, fans and place (on a
residual branch or not) and its Adam learning-rate factor; every scale is a ``Scale`` variable, so
that hyperparameters stay traced values and ``model(ids)`` needs no further argument.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from umup import ops
from umup.config import ModelConfig
from umup.powers import Number
from umup.rules import Parametrization, ResidualNumbers


class Scale(nnx.Variable):
    """A number from the rules: part of the model's state, never trained."""


def scale(value: Number) -> Scale:
    """A float32 scalar ``Scale``."""
    return Scale(jnp.asarray(value, jnp.float32))


class Weight(nnx.Module):
    """A matrix (fan_in, fan_out) with the numbers that its role gives it.

    Args:
        numbers_of: the parametrization.
        role: ``input``, ``hidden`` or ``output``.
        residual: whether it lies on a residual branch.
    """

    def __init__(
        self, numbers_of: Parametrization, role: str, fan_in: int, fan_out: int, *,
        rngs: nnx.Rngs, residual: bool = False,
    ):  # fmt: skip
        numbers = numbers_of.weight(role, fan_in, fan_out, residual=residual)
        draw = jax.random.normal(rngs.params(), (fan_in, fan_out), jnp.float32)
        self.w = nnx.Param(
            draw * jnp.asarray(numbers.init_std, jnp.float32),
            role=role, fan_in=fan_in, fan_out=fan_out, residual=residual,
        )  # fmt: skip
        self.forward = scale(numbers.forward)
        self.backward = scale(numbers.backward)
        self.weight_grad = scale(numbers.weight_grad)


class Linear(Weight):
    """x (tokens, fan_in) → (tokens, fan_out), scaled by its numbers."""

    def __call__(self, x: Array) -> Array:
        return ops.linear(
            x, self.w[...], self.forward[...], self.backward[...], self.weight_grad[...]
        )


class Embedding(Weight):
    """ids (tokens,) → (tokens, d_model)."""

    def __call__(self, ids: Array) -> Array:
        return ops.embed(ids, self.w[...], self.forward[...], self.weight_grad[...])


class Branch(nnx.Module):
    """The residual numbers of one branch."""

    def __init__(self, numbers: ResidualNumbers):
        self.add = scale(numbers.add)
        self.skip = scale(numbers.skip)
        self.add_grad = scale(numbers.add_grad)
        self.split_grad = scale(numbers.split_grad)

    def __call__(self, x: Array, f) -> Array:
        branch, skip = ops.residual_split(x, self.split_grad[...])
        return ops.residual_add(f(branch), skip, self.add[...], self.skip[...], self.add_grad[...])


class Attention(nnx.Module):
    """Causal self-attention; q|k|v fused: weights of one role and fan-in, side by side."""

    def __init__(self, config: ModelConfig, numbers_of: Parametrization, *, rngs: nnx.Rngs):
        d = config.d_model
        self.config = config
        self.qkv = Linear(numbers_of, "hidden", d, 3 * d, rngs=rngs, residual=True)
        self.out = Linear(numbers_of, "hidden", d, d, rngs=rngs, residual=True)
        logit, out = numbers_of.attention(config.d_head, config.seq_len)
        self.logit, self.out_scale = scale(logit), scale(out)

    def __call__(self, x: Array, seq_len: int) -> Array:
        """x (B·T, d_model) → (B·T, d_model), T = ``seq_len``."""
        heads, d_head = self.config.n_heads, self.config.d_head
        batch = x.shape[0] // seq_len
        q, k, v = self.qkv(x).reshape(batch, seq_len, 3, heads, d_head).transpose(2, 0, 3, 1, 4)
        if self.config.rope:
            cos, sin = ops.rope_tables(seq_len, d_head, self.config.rope_theta)
            q, k = ops.rope(q, cos, sin), ops.rope(k, cos, sin)
        q, k, v = (a.reshape(batch * heads, seq_len, d_head) for a in (q, k, v))
        y = ops.attention(q, k, v, self.logit[...], self.out_scale[...])
        y = y.reshape(batch, heads, seq_len, d_head).transpose(0, 2, 1, 3)
        return self.out(y.reshape(batch * seq_len, heads * d_head))


class MLP(nnx.Module):
    """SwiGLU feed-forward with fused gate|up."""

    def __init__(self, config: ModelConfig, numbers_of: Parametrization, *, rngs: nnx.Rngs):
        d, d_ff = config.d_model, config.d_ff
        self.gate_up = Linear(numbers_of, "hidden", d, 2 * d_ff, rngs=rngs, residual=True)
        self.down = Linear(numbers_of, "hidden", d_ff, d, rngs=rngs, residual=True)
        alpha, out = numbers_of.gated_silu()
        self.alpha, self.act_out = scale(alpha), scale(out)

    def __call__(self, x: Array) -> Array:
        """x (tokens, d_model) → (tokens, d_model)."""
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down(ops.gated_silu(up, gate, self.alpha[...], self.act_out[...]))


class Block(nnx.Module):
    """Pre-norm transformer block: attention branch, then feed-forward branch."""

    def __init__(
        self, config: ModelConfig, numbers_of: Parametrization, attn: ResidualNumbers,
        ffn: ResidualNumbers, *, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.attn = Attention(config, numbers_of, rngs=rngs)
        self.mlp = MLP(config, numbers_of, rngs=rngs)
        self.attn_branch, self.mlp_branch = Branch(attn), Branch(ffn)

    def __call__(self, x: Array, seq_len: int) -> Array:
        """x (B·T, d_model) → the same shape."""
        x = self.attn_branch(x, lambda h: self.attn(ops.rms_norm(h), seq_len))
        return self.mlp_branch(x, lambda h: self.mlp(ops.rms_norm(h)))
