"""What the study ``attention_scale`` measures: q·k of one layer at initialization."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from umup import ops
from umup.config import HPs
from umup.layers import Attention
from umup.rules import Parametrization

from .design import layer_config


def layer(
    *,
    scheme: str,
    d_head: int,
    base_d_head: int,
    width: int,
    seq_len: int,
    batch_size: int,
    correlation: float,
    seed: int,
) -> dict[str, float]:
    """q·k of an attention layer at initialization whose q and k are correlated on purpose.

    The layer's key weights become ρ·W_q + √(1−ρ²)·W_k, so that the coordinates of q and k of one
    token have the correlation ρ. Different tokens are independent draws, whose q and k correlate
    by ρ/√width at most: so pairs of a token with itself and with earlier ones are separate.

    Args:
        scheme, d_head, base_d_head, width, seq_len: of the layer. Its input is (batch_size ·
            seq_len, width), normal draws through RMSNorm.
        correlation: ρ in [0, 1].
        seed: of weights and input.

    Returns:
        self_rms, self_mean, earlier_rms, earlier_mean of the raw q·k; self_cosine and
        earlier_cosine, RMS; logit_rms of multiplier × q·k over all allowed pairs.
    """
    config = layer_config(d_head, base_d_head, width, seq_len)
    tokens = batch_size * seq_len
    numbers = Parametrization(scheme, config, HPs().to_dict(), tokens)
    draws, key = jax.random.split(jax.random.key(seed))
    attention = Attention(config, numbers, rngs=nnx.Rngs(params=draws))
    w_q, w_k, w_v = attention.qkv.w[...].swapaxes(0, 1)
    w_k = correlation * w_q + math.sqrt(1.0 - correlation**2) * w_k
    attention.qkv.w[...] = jnp.stack([w_q, w_k, w_v], axis=1)
    x = ops.rms_norm(jax.random.normal(key, (tokens, width)))
    q, k, _ = attention.heads(x, seq_len)
    report = ops.attention_report(q, k, 1.0)[:2]
    t, s = np.tril_indices(seq_len)
    dots, cosines = (np.asarray(values).reshape(-1, len(t)) for values in report)
    out = {"logit_rms": float(attention.logit[...]) * _rms(dots)}
    for name, pairs in (("self", t == s), ("earlier", t > s)):
        out |= {
            f"{name}_rms": _rms(dots[:, pairs]),
            f"{name}_mean": float(dots[:, pairs].mean()),
            f"{name}_cosine": _rms(cosines[:, pairs]),
        }
    return out


def _rms(values: NDArray) -> float:
    return float((values.astype(float) ** 2).mean() ** 0.5)


MEASURES = {"layer": layer}
