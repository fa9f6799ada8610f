"""Flax NNX modules. They hold weights and numbers and never name a scheme.

Every weight is an ``nnx.Param`` that carries, as metadata, its role, fans and place (on a
residual branch or not), from which ``umup.optim.lr_factors`` computes its learning-rate factor;
every scale is a ``Scale`` variable, so that hyperparameters stay traced values and ``model(ids)``
needs no further argument.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from umup import draws, fp8, mesh, ops, probe
from umup.config import BLOCK_LINEARS, ModelConfig
from umup.fp8 import Casts
from umup.powers import Number
from umup.rules import Parametrization, ResidualNumbers


class Scale(nnx.Variable):
    """A number from the rules: part of the model's state, never trained."""


class Amax(nnx.Variable):
    """History of largest magnitudes for delayed scaling; its "gradient" is the next history."""


class Tap(nnx.Variable):
    """The dummy operand of a probe; its "gradient" is the probe's report."""


class Probe(nnx.Module):
    """An observable point of the model: the identity, in the program only if ``on``.

    Args:
        tensors: names of the tensors it reports on, the cotangent last.
        on: whether this model is observed.
    """

    def __init__(self, *tensors: str, on: bool):
        self.on = on
        if on:
            self.tap = Tap(probe.blank(len(tensors)), tensors=tensors)

    def __call__(self, x: Array, *tensors: Array) -> Array:
        """x unchanged. ``tensors``: the values to report; x's cotangent is reported as well."""
        return probe.tap(x, self.tap[...], tensors) if self.on else x


def scale(value: Number) -> Scale:
    """A float32 scalar ``Scale``."""
    return Scale(jnp.asarray(value, jnp.float32))


class Weight(nnx.Module):
    """A matrix (fan_in, fan_out) with the numbers for its role.

    Args:
        numbers_of: the parametrization.
        role: ``input``, ``hidden`` or ``output``.
        axes: logical names of its two axes, see ``umup.mesh``.
        residual: whether it lies on a residual branch.
        ends_branch: whether it is the last on its branch (depth-scaled initialization).
        parts: several matrices of one role, drawn and kept side by side as
            (fan_in, parts, fan_out/parts), so that the columns of each can be split over devices.
    """

    def __init__(
        self,
        numbers_of: Parametrization,
        role: str,
        fan_in: int,
        fan_out: int,
        *,
        rngs: draws.Rngs,
        axes: tuple[str, str],
        residual: bool = False,
        ends_branch: bool = False,
        parts: int = 1,
    ):
        numbers = numbers_of.weight(
            role, fan_in, fan_out, residual=residual, ends_branch=ends_branch
        )
        draw = draws.normal(rngs.params(), (fan_in, fan_out))
        w = draw * jnp.asarray(numbers.init_std, jnp.float32)
        names: tuple[str, ...] = axes
        if parts > 1:
            w, names = w.reshape(fan_in, parts, fan_out // parts), (axes[0], "parts", axes[1])
        self.w = nnx.Param(
            w.astype(numbers_of.model.params_dtype),
            axes=names,
            role=role,
            fan_in=fan_in,
            fan_out=fan_out,
            residual=residual,
        )
        self.forward = scale(numbers.forward)
        self.backward = scale(numbers.backward)
        self.weight_grad = scale(numbers.weight_grad)


class Linear(Weight):
    """x (tokens, fan_in) → (tokens, fan_out), scaled by its numbers.

    With several ``parts`` the result is one array (tokens, parts, fan_out/parts).

    Args:
        recipe: how operands are cast; delayed scaling keeps state.
        probed: whether input, weight and output-gradient are reported.
        others: see ``Weight``.
    """

    def __init__(self, *args, recipe: str = "plain", probed: bool = False, **others):
        super().__init__(*args, **others)
        if recipe == "fp8_delayed":
            self.amax = Amax(jnp.zeros((3, fp8.HISTORY), jnp.float32))
        self.delayed = recipe == "fp8_delayed"
        self.probe = Probe("input", "weight", "output_gradient", on=probed)

    def __call__(self, x: Array, casts: Casts = fp8.PLAIN) -> Array:
        w = self.w[...]
        history = self.amax[...] if self.delayed and casts.scaling == "delayed" else None
        scales = self.forward[...], self.backward[...], self.weight_grad[...]
        y = ops.linear(x, w, *scales, casts, history, fused=not mesh.splits_columns())
        return self.probe(y, x, w)


class Embedding(Weight):
    """ids (tokens,) → (tokens, D); a probe observes the output."""

    def __init__(self, *args, probed: bool = False, **others):
        super().__init__(*args, **others)
        self.probe = Probe("value", "gradient", on=probed)

    def __call__(self, ids: Array) -> Array:
        # Every device looks up the features it holds for all rows of its replica; the rows are
        # distributed afterwards. The table, which is larger than a batch's rows, is not moved, nor
        # is its gradient.
        ids = mesh.constrain(ids, "replica")
        y = ops.embed(ids, self.w[...], self.forward[...], self.weight_grad[...])
        y = mesh.constrain(y, "replica", "embed")
        return self.probe(y, y)


class Branch(nnx.Module):
    """The residual numbers of one branch; a probe observes the stream after it."""

    def __init__(self, numbers: ResidualNumbers, *, probed: bool = False):
        self.probe = Probe("value", "gradient", on=probed)
        self.add = scale(numbers.add)
        self.skip = scale(numbers.skip)
        self.add_grad = scale(numbers.add_grad)
        self.split_grad = scale(numbers.split_grad)

    def __call__(self, x: Array, f) -> Array:
        branch, skip = ops.residual_split(x, self.split_grad[...])
        y = ops.residual_add(f(branch), skip, self.add[...], self.skip[...], self.add_grad[...])
        return self.probe(y, y)


class BlockCasts(NamedTuple):
    """The casts of a block's four linears, in the order of ``config.BLOCK_LINEARS``."""

    qkv: Casts = fp8.PLAIN
    attn_out: Casts = fp8.PLAIN
    gate_up: Casts = fp8.PLAIN
    down: Casts = fp8.PLAIN


PLAIN_BLOCK = BlockCasts()


def block_casts(config: ModelConfig, layer: int) -> BlockCasts:
    """The casts of the linears of block ``layer``."""
    return BlockCasts(*(linear_casts(config, f"blocks.{layer}.{name}") for name in BLOCK_LINEARS))


def linear_casts(config: ModelConfig, linear: str) -> Casts:
    """The casts of the linear of that name under the model's recipe."""
    return fp8.casts(config.recipe, linear, config.keep_bf16, config.accumulation == "precise")


class Attention(nnx.Module):
    """Causal self-attention with fused q|k|v: weights of one role and fan-in, side by side."""

    def __init__(
        self,
        config: ModelConfig,
        numbers_of: Parametrization,
        *,
        rngs: draws.Rngs,
        probed: bool = False,
    ):
        d = config.d_model
        self.config = config
        kind = {"rngs": rngs, "residual": True, "recipe": config.recipe, "probed": probed}
        self.qkv = Linear(numbers_of, "hidden", d, 3 * d, axes=("embed", "heads"), parts=3, **kind)
        self.out = Linear(
            numbers_of, "hidden", d, d, axes=("heads", "embed"), ends_branch=True, **kind
        )
        self.scores = Probe("qk", "cosine", "entropy", "q_gradient", on=probed)
        logit, out = numbers_of.attention(config.d_head, config.seq_len)
        self.logit, self.out_scale = scale(logit), scale(out)

    def __call__(self, x: Array, seq_len: int, casts: BlockCasts = PLAIN_BLOCK) -> Array:
        """x (B·T, D) → (B·T, D), T = ``seq_len``."""
        q, k, v = self.heads(x, seq_len, casts)
        if self.scores.on:
            q = self.scores(q, *ops.attention_report(q, k, self.logit[...]))
        scales = self.logit[...], self.out_scale[...]
        y = ops.attention(q, k, v, *scales, self.config.attention)
        return self.out(y.transpose(0, 2, 1, 3).reshape(x.shape), casts.attn_out)

    def heads(
        self, x: Array, seq_len: int, casts: BlockCasts = PLAIN_BLOCK
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values as they enter attention, each (B, H, T, K).

        Queries and keys are normalized and rotated where the configuration says so.

        Args:
            x: (B·T, D).
            seq_len: T.
            casts: of the block's linears.
        """
        heads, d_head = self.config.n_heads, self.config.d_head
        qkv = self.qkv(x, casts.qkv).reshape(-1, seq_len, 3, heads, d_head)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        if self.config.qk_norm:
            q, k = ops.rms_norm(q), ops.rms_norm(k)
        if self.config.rope:
            cos, sin = ops.rope_tables(seq_len, d_head, self.config.rope_theta)
            q, k = ops.rope(q, cos, sin), ops.rope(k, cos, sin)
        return q, k, v


class MLP(nnx.Module):
    """SwiGLU feed-forward with fused gate|up."""

    def __init__(
        self,
        config: ModelConfig,
        numbers_of: Parametrization,
        *,
        rngs: draws.Rngs,
        probed: bool = False,
    ):
        d, d_ff = config.d_model, config.d_ff
        kind = {"rngs": rngs, "residual": True, "recipe": config.recipe, "probed": probed}
        self.gate_up = Linear(
            numbers_of, "hidden", d, 2 * d_ff, axes=("embed", "mlp"), parts=2, **kind
        )
        self.down = Linear(
            numbers_of, "hidden", d_ff, d, axes=("mlp", "embed"), ends_branch=True, **kind
        )
        alpha, out = numbers_of.gated_silu()
        self.alpha, self.act_out = scale(alpha), scale(out)

    def __call__(self, x: Array, casts: BlockCasts = PLAIN_BLOCK) -> Array:
        """x (tokens, D) → (tokens, D)."""
        y = self.gate_up(x, casts.gate_up)
        y = ops.gated_silu_pair(y, self.alpha[...], self.act_out[...])
        return self.down(y, casts.down)


class Block(nnx.Module):
    """Pre-norm transformer block: attention branch, then feed-forward branch."""

    def __init__(
        self,
        config: ModelConfig,
        numbers_of: Parametrization,
        attn: ResidualNumbers,
        ffn: ResidualNumbers,
        *,
        rngs: draws.Rngs,
        probed: bool = False,
    ):
        self.attn = Attention(config, numbers_of, rngs=rngs, probed=probed)
        self.mlp = MLP(config, numbers_of, rngs=rngs, probed=probed)
        self.attn_branch, self.mlp_branch = Branch(attn, probed=probed), Branch(ffn, probed=probed)

    def __call__(self, x: Array, seq_len: int, casts: BlockCasts = PLAIN_BLOCK) -> Array:
        """x (B·T, D) → the same shape."""
        x = self.attn_branch(x, lambda h: self.attn(ops.rms_norm(h), seq_len, casts))
        return self.mlp_branch(x, lambda h: self.mlp(ops.rms_norm(h), casts))
