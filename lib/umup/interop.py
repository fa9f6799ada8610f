"""Weights to and from PyTorch's ``unit_scaling.TransformerDecoder``.

The model built here computes the same as PyTorch's, forward and backward, at any shape of ids: no
RoPE; all three linears of the MLP unconstrained, their gradients scaled by fan_out^−½; PyTorch's τ
convention, in which residual_mult averages the contributions of attention and FFN; depth in the
learning-rate rule counts layers. PyTorch's weights are (fan_out, fan_in), ours the transpose, with
q|k|v and gate|up fused. Source: the public package unit-scaling 0.3.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from umup import ops, optim, rules
from umup.config import HPs, ModelConfig
from umup.errors import ConfigError
from umup.model import Decoder, split
from umup.powers import Number
from umup.rules import Parametrization

_LAYER = re.compile(r"layers\.(\d+)\.")
_EMBEDDING, _PROJECTION = "embedding.weight", "projection.weight"


class UnitScalingDecoder(Decoder):
    """``umup.model.Decoder`` with the reference's scales, which depend on the shape of the ids.

    Its numbers are computed for one token; a call rescales them to the number of tokens and the
    sequence length it receives, so that one model serves all shapes.
    """

    def _forward(self, ids: Array, *, watched: bool) -> tuple[Array, dict[str, Array]]:
        """As the decoder's, with the scales for ids (B, T), integers in [0, V).

        Raises:
            ConfigError: ids have another number of dimensions.
        """
        ids = jnp.asarray(ids)
        if ids.ndim != 2 or 0 in ids.shape:
            raise ConfigError("ids", ids.shape, "(B, T), both at least 1")
        model = nnx.merge(*nnx.split(self), copy=True)  # own variables: a call leaves no trace
        attn, mlp = model.blocks.attn, model.blocks.mlp
        for layer in (model.embed, attn.qkv, attn.out, mlp.gate_up, mlp.down, model.readout):
            layer.weight_grad[...] = layer.weight_grad[...] * ids.size**-0.5
        std = rules.attention_out_std(self.config.d_head, ids.shape[1], 1.0)
        attn.out_scale[...] = jnp.full_like(attn.out_scale[...], 1.0 / std)
        return Decoder._forward(model, ids, watched=watched)


def _names(n_layers: int) -> Iterator[str]:
    linears = "mhsa.linear_qkv mhsa.linear_o mlp.linear_1 mlp.linear_gate mlp.linear_2"
    yield _EMBEDDING
    for i in range(n_layers):
        for linear in linears.split():
            yield f"layers.{i}.{linear}.weight"
    yield _PROJECTION


def _checked(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every weight as a float32 array; names and shapes are those of one TransformerDecoder."""
    layers = [int(found[1]) for found in map(_LAYER.match, weights) if found]
    names = list(_names(max(layers, default=0) + 1))
    for name in weights:
        if name not in names:
            raise ConfigError(name, "an unknown weight", f"{names[0]}, {names[1]} and so on")
    for name in names:
        if name not in weights:
            raise ConfigError(name, "nothing", "an array for each weight of every layer")
    arrays = {name: np.asarray(weights[name]) for name in names}
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise ConfigError(name, array.dtype.name, "floating-point numbers")
        if array.ndim != 2 or 0 in array.shape:
            raise ConfigError(name, array.shape, "two dimensions, (fan_out, fan_in)")
    vocab, d = arrays[_EMBEDDING].shape
    d_ff = arrays["layers.0.mlp.linear_1.weight"].shape[0]
    shapes = {
        "embedding": (vocab, d),
        "projection": (vocab, d),
        "linear_qkv": (3 * d, d),
        "linear_o": (d, d),
        "linear_1": (d_ff, d),
        "linear_gate": (d_ff, d),
        "linear_2": (d, d_ff),
    }
    for name, array in arrays.items():
        want = shapes[name.split(".")[-2]]
        if array.shape != want:
            allowed = f"{want}, (fan_out, fan_in) of a model of hidden size {d}, vocabulary {vocab}"
            raise ConfigError(name, array.shape, allowed)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def from_unit_scaling(
    weights: Mapping[str, np.ndarray],
    *,
    n_heads: int,
    residual_mult: Number = 1.0,
    residual_attn_ratio: Number = 1.0,
) -> UnitScalingDecoder:
    """The NNX model of a PyTorch ``TransformerDecoder``'s weights.

    Args:
        weights: name → array (fan_out, fan_in), as ``{name: p.detach().numpy() for name, p in
            decoder.named_parameters()}`` gives them. Sizes are read from the shapes.
        n_heads: its ``heads``, which cannot be read from any shape.
        residual_mult, residual_attn_ratio: of its ``transformer_residual_scaling_rule``.

    Returns:
        A model: ``model(ids)`` → logits, with ids (B, T) of any shape, under jit too.

    Raises:
        ConfigError: a weight is missing, unknown or of a wrong shape; n_heads does not divide the
            hidden size; a residual hyperparameter is not positive.
    """
    arrays = _checked(weights)
    vocab, d = arrays[_EMBEDDING].shape
    n_layers = (len(arrays) - 2) // 5
    if isinstance(n_heads, bool) or not isinstance(n_heads, int) or n_heads < 1 or d % n_heads:
        raise ConfigError("n_heads", n_heads, f"a divisor of the hidden size {d}")
    ours = {"residual_mult": residual_mult, "residual_attn_ratio": residual_attn_ratio}
    for name, value in ours.items():
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            raise ConfigError(name, value, "a finite number > 0")
    config = ModelConfig(
        d_model=d,
        n_layers=n_layers,
        d_head=d // n_heads,
        vocab_size=vocab,
        seq_len=1,
        d_ff=arrays["layers.0.mlp.linear_1.weight"].shape[0],
        rope=False,
        base_width=d,
        base_depth=n_layers,
        base_d_head=d // n_heads,
        tau_convention="library",
        depth_convention="layers",
    )
    hps = HPs().to_dict() | {
        "alpha_residual": residual_mult,
        "alpha_residual_attn_ratio": residual_attn_ratio,
    }
    model = UnitScalingDecoder(config, Parametrization("umup", config, hps, 1), rngs=nnx.Rngs(0))
    _fill(model, arrays, config)
    return model


def _fill(model: UnitScalingDecoder, arrays: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    """Put the weights into a model of their shapes, with the backward scales of its layers."""
    n_layers, d = config.n_layers, config.d_model

    def stacked(name: str) -> Array:
        layers = (arrays[f"layers.{i}.{name}.weight"] for i in range(n_layers))
        return jnp.stack([jnp.asarray(layer.T) for layer in layers])

    attn, mlp = model.blocks.attn, model.blocks.mlp
    model.embed.w[...] = jnp.asarray(arrays[_EMBEDDING])
    model.readout.w[...] = jnp.asarray(arrays[_PROJECTION].T)
    attn.qkv.w[...] = stacked("mhsa.linear_qkv").reshape(n_layers, d, 3, d)
    attn.out.w[...] = stacked("mhsa.linear_o")
    mlp.gate_up.w[...] = jnp.stack([stacked("mlp.linear_gate"), stacked("mlp.linear_1")], axis=-2)
    mlp.down.w[...] = stacked("mlp.linear_2")
    # fan_out of gate and of up each is d_ff, not that of the two fused.
    for layer, fan_out in ((mlp.gate_up, config.d_ff), (mlp.down, d)):
        layer.backward[...] = jnp.full_like(layer.backward[...], fan_out**-0.5)


def to_unit_scaling(tree) -> dict[str, np.ndarray]:
    """Parameters or gradients by the reference's names, each (fan_out, fan_in) as PyTorch's.

    Args:
        tree: a model of ``from_unit_scaling``, its ``nnx.Param`` state, a gradient as
            ``nnx.grad`` or ``jax.grad`` gives it, or the same nesting of plain arrays.

    Raises:
        ConfigError: the tree does not have the parameters of that model.
    """
    if isinstance(tree, nnx.Module):
        tree = split(tree)[1]

    def leaf(*path: str) -> np.ndarray:
        node = tree
        for key in path:
            try:
                node = node[key]
            except (KeyError, TypeError, IndexError):
                raise ConfigError(".".join(path), "nothing", "a parameter in tree") from None
        return np.asarray(node[...])

    qkv, out = leaf("blocks", "attn", "qkv", "w"), leaf("blocks", "attn", "out", "w")
    qkv = qkv.reshape(*qkv.shape[:2], -1)
    gate_up = leaf("blocks", "mlp", "gate_up", "w")
    gate, up = gate_up[:, :, 0], gate_up[:, :, 1]
    down = leaf("blocks", "mlp", "down", "w")
    found = [leaf("embed", "w")]
    for layer in zip(qkv, out, up, gate, down, strict=True):  # in the order of _names
        found += [w.T for w in layer]
    found.append(leaf("readout", "w").T)
    return dict(zip(_names(len(qkv)), found, strict=True))


def loss(model: UnitScalingDecoder, ids: Array) -> Array:
    """The reference's ``TransformerDecoder.loss``: next-token cross-entropy, nats per token.

    The model sees all T ids, and the logits of the last position are dropped.

    Args:
        model: of ``from_unit_scaling``.
        ids: (B, T), T at least 2.

    Raises:
        ConfigError: there is no next token.
    """
    ids = jnp.asarray(ids)
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ConfigError("ids", ids.shape, "(B, T), T at least 2")
    logits = model(ids)[:, :-1].reshape(-1, model.config.vocab_size)
    scales = model.loss_alpha[...], model.loss_grad[...]
    return ops.cross_entropy(logits, ids[:, 1:].reshape(-1), *scales)


def lr_factors(model: UnitScalingDecoder) -> nnx.State:
    """Adam's learning-rate factor of every weight, for ``umup.optim.adamw``, as the reference's.

    fan_in^−½ (hidden), d_model^−½ (embedding) or 1 (readout), times n_layers^−½ inside the stack.
    """
    numbers = Parametrization("umup", model.config, HPs().to_dict(), 1)
    return optim.lr_factors(split(model)[1], numbers)
