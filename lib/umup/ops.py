"""The operations of the decoder, each with its own forward and backward scales.

Every op takes its scales as traced scalars and does not depend on the scheme: with the scales that
``rules.Parametrization`` gives for SP, these are the plain operations with true gradients; with
those for u-μP they are the unit-scaled ones (u-μP paper, Table 4 and Appendix B). Scales receive
no gradient. Activations between ops are (tokens, features), tokens = B·T flattened row by row:
products of two-dimensional operands are the fastest on the CPU, and XLA needs them to emit FP8
GEMMs on Hopper.

Shapes in this module, in ``layers`` and in ``model`` are written with

====  ==========================  ====  ==========================
B     sequences in a batch        H     attention heads
T     positions of a sequence,    K     features of a head, d_head
      of queries
S     positions of keys           F     d_ff
D     d_model                     V     vocabulary
L     layers
====  ==========================  ====  ==========================

and B·T is the number of tokens. In ``einsum`` the same letters stand in lower case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from umup import fp8, target
from umup.fp8 import Casts
from umup.scale import scale_bwd, scale_fwd


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _linear(x, w, forward, backward, weight_grad, history, casts: Casts, fused: bool):
    return _linear_fwd(x, w, forward, backward, weight_grad, history, casts, fused)[0]


def _amax(casts: Casts, remembered: Array | None, i: int, operand: Array) -> Array | None:
    """The magnitude by which operand ``i`` (x, w, g) is scaled; None if the casts do not scale."""
    if casts.scaling == "none" or casts[i] is None:
        return None
    return fp8.amax(operand) if remembered is None else remembered[i]


def _cast_weight(w: Array, dtype, casts: Casts, largest: Array | None, fused: bool) -> fp8.Operand:
    if fused:
        w = w.reshape(w.shape[0], -1)
    return fp8.cast(w if casts.w else w.astype(dtype), casts.w, largest)


def _parts(operand: fp8.Operand) -> list[fp8.Operand]:
    """The matrix itself, or the matrices that lie side by side in (rows, parts, columns)."""
    if operand.values.ndim == 2:
        return [operand]
    parts = range(operand.values.shape[1])
    return [operand._replace(values=operand.values[:, i]) for i in parts]


def _stack(products: list[Array]) -> Array:
    return products[0] if len(products) == 1 else jnp.stack(products, axis=1)


def _linear_fwd(x, w, forward, backward, weight_grad, history, casts, fused):
    last = None if history is None else fp8.remembered(history)
    now = None if history is None else (fp8.amax(x), fp8.amax(w))
    x8 = fp8.cast(x, casts.x, _amax(casts, last, 0, x))
    w_amax = _amax(casts, last, 1, w)
    w8 = _cast_weight(w, x.dtype, casts, w_amax, fused)
    y = _stack([fp8.dot(x8, part, (1, 0), x.dtype, casts.precise) for part in _parts(w8)])
    y = y * jnp.asarray(forward, x.dtype)
    # An empty array carries the dtype of x, since residuals must be arrays. W is kept uncast and is
    # cast again in the backward pass: if it were kept cast, a scan over layers would hold all
    # weights twice.
    dtype = jnp.zeros(0, x.dtype)
    y = y.reshape(x.shape[0], *w.shape[1:])
    return y, (x8, w, w_amax, dtype, backward, weight_grad, history, now, last)


def _linear_bwd(casts, fused, saved, g):
    x8, w, w_amax, of_x, backward, weight_grad, history, now, last = saved
    w8 = _cast_weight(w, of_x.dtype, casts, w_amax, fused)
    g8 = fp8.cast(g.reshape(g.shape[0], -1) if fused else g, casts.g, _amax(casts, last, 2, g))
    products = [
        fp8.dot(g_part, w_part, (1, 1), of_x.dtype, casts.precise)
        for g_part, w_part in zip(_parts(g8), _parts(w8), strict=True)
    ]
    dx = functools.reduce(jnp.add, products) * jnp.asarray(backward, of_x.dtype)
    product = functools.partial(fp8.dot, contract=(0, 0), dtype=of_x.dtype, precise=casts.precise)
    plain = casts.x is None and casts.g is None  # FP8 kernels take x first, then g
    outer = functools.partial(_narrow_first, product) if plain else product
    dw = _stack([outer(x8, part) for part in _parts(g8)])
    dw = dw.reshape(w.shape).astype(w.dtype) * jnp.asarray(weight_grad, w.dtype)
    rolled = None if history is None else fp8.roll(history, jnp.stack([*now, fp8.amax(g)]))
    return dx, dw, None, None, None, rolled


def _narrow_first(product: Callable, a: Any, b: Any) -> Array:
    """``product(a, b)`` = aᵀ b, computed on a CPU as (bᵀ a)ᵀ if a has more columns than b.

    XLA's CPU products over rows are faster with the narrower matrix on the left. The barrier keeps
    XLA from folding the transposition back into the product.
    """
    if a.shape[-1] <= b.shape[-1] or target.platform() != "cpu":
        return product(a, b)
    return lax.optimization_barrier(product(b, a)).swapaxes(-1, -2)


_linear.defvjp(_linear_fwd, _linear_bwd)


def linear(
    x: Array,
    w: Array,
    forward,
    backward,
    weight_grad,
    casts: Casts = fp8.PLAIN,
    history: Array | None = None,
    *,
    fused: bool = False,
) -> Array:
    """y = forward · x W, with dx = backward · g Wᵀ and dW = weight_grad · xᵀ g.

    Args:
        x: (tokens, fan_in).
        w: (fan_in, fan_out); cast to x's dtype, its gradient returned in its own. Or several
            matrices side by side, (fan_in, parts, fan_out), which are cast together and multiplied
            separately, so that the columns of each may be split over devices.
        forward, backward, weight_grad: scalars.
        casts: formats of x, W and g in the three products.
        history: (3, ``fp8.HISTORY``) largest magnitudes of x, W and g, for delayed scaling only;
            its "gradient" is the history after this step.
        fused: multiply matrices that lie side by side as one matrix, faster on one device.

    Returns:
        (tokens, fan_out) or (tokens, parts, fan_out), in x's dtype.
    """
    return _linear(x, w, forward, backward, weight_grad, history, casts, fused and w.ndim == 3)


def embed(ids: Array, w: Array, forward, weight_grad) -> Array:
    """Row lookup: forward · W[ids]; the table's gradient is the scatter-add times weight_grad.

    Args:
        ids: (tokens,) integers in [0, V).
        w: (V, D).

    Returns:
        (tokens, D); NaN where an id is out of range.
    """
    rows = scale_bwd(w, weight_grad)[ids]
    return scale_fwd(jnp.where(_in_range(ids, w.shape[0])[:, None], rows, jnp.nan), forward)


def _in_range(indices: Array, size: int) -> Array:
    """True where an index is in [0, size). Under jit a bad index cannot raise an error: a gather
    would silently wrap a negative index or clamp a large one."""
    return (indices >= 0) & (indices < size)


@functools.partial(jax.checkpoint, prevent_cse=False)
def rms_norm(x: Array, eps: float = 1e-5) -> Array:
    """x / √(mean x² + ε) over the last axis, statistics in float32, no gain (arXiv 1910.07467).

    Only x is kept for the backward pass; autodiff alone would keep two float32 copies of it.
    """
    x32 = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * inverse).astype(x.dtype)


def rope_tables(seq_len: int, d_head: int, theta: float = 10_000.0) -> tuple[Array, Array]:
    """cos and sin of the rotary angles (arXiv 2104.09864), each (T, K) float32.

    Features i and i + K/2 form a pair; sin carries the pair's sign, minus for the first half,
    so that the rotation is x·cos + swap(x)·sin.
    """
    half = d_head // 2
    angles = np.outer(np.arange(seq_len), theta ** (-np.arange(half) / half))
    cos = np.concatenate([np.cos(angles)] * 2, axis=-1)
    sin = np.concatenate([-np.sin(angles), np.sin(angles)], axis=-1)
    return jnp.asarray(cos, jnp.float32), jnp.asarray(sin, jnp.float32)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the feature pairs of x (..., T, K) by the angles of each position.

    Being a rotation, it preserves norms and unit scale, in the backward pass too.
    """
    half = x.shape[-1] // 2
    swapped = jnp.concatenate([x[..., half:], x[..., :half]], axis=-1)
    return x * cos.astype(x.dtype) + swapped * sin.astype(x.dtype)


def _scores(q: Array, k: Array, logit) -> Array:
    """Causal logits in float32, −inf where masked. The T queries are the last T of the S positions.

    q (..., T, K), k (..., S, K) → (..., T, S): logit · q kᵀ.
    """
    scores = jnp.einsum("...tk,...sk->...ts", q, k, preferred_element_type=jnp.float32)
    queries, keys = scores.shape[-2:]
    allowed = np.tril(np.ones((queries, keys), bool), keys - queries)
    logit, never = jnp.asarray(logit, jnp.float32), -jnp.inf
    if target.platform() != "cpu":
        # Tied to a value of this layer. Otherwise JAX hoists both out of a loop over layers,
        # broadcast to the shape of all scores: 5 bytes per score, read again for every layer.
        allowed, never, logit = lax.optimization_barrier(
            (jnp.asarray(allowed), jnp.float32(never), logit)
        )
    return jnp.where(allowed, scores * logit, never)


def _scores_to_weights(q: Array, k: Array, logit) -> Array:
    """softmax(logit · q kᵀ + causal mask), float32, of the shape of ``_scores``."""
    scores = _scores(q, k, logit)
    unnormalised = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return unnormalised / jnp.sum(unnormalised, axis=-1, keepdims=True)


def attention_report(q: Array, k: Array, logit) -> tuple[Array, Array, Array]:
    """What a probe of attention observes: logits, cosines and entropies, float32.

    Args:
        q, k, logit: as ``attention`` takes them.

    Returns:
        For the pairs t ≥ s, each (..., T(T+1)/2): the logits of the softmax, and the cosines of q_t
        and k_s; then the entropy of each row's distribution in nats, (..., T).
    """
    pairs = np.tril_indices(q.shape[-2])
    scores = _scores(q, k, logit)
    unit = [a.astype(jnp.float32) * lax.rsqrt(_norm2(a)) for a in (q, k)]
    cosines = jnp.einsum("...tk,...sk->...ts", *unit)
    weights = _scores_to_weights(q, k, logit)
    entropies = -jnp.sum(jnp.where(weights > 0, weights * jnp.log(weights), 0.0), axis=-1)
    return scores[..., *pairs], cosines[..., *pairs], entropies


def _norm2(x: Array) -> Array:
    return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True) + 1e-30


def attention(q: Array, k: Array, v: Array, logit, out, implementation: str = "xla") -> Array:
    """Causal dot-product attention: out · softmax(logit · q kᵀ) v.

    Args:
        q, k, v: (..., T, K), over batch and heads; position t sees positions ≤ t.
        logit: multiplier of q·k: 1/√d_head (SP), α·√d_base/d_head (μP), α/d_head (u-μP).
        out: multiplier of the output and, in the backward pass, of the cotangent that enters.
        implementation: ``xla`` forms all T × T weights; ``blocked`` multiplies four blocks of
            queries (two below T = 256), each by the keys that it may see, and so saves three
            eighths of the products (a quarter); ``cudnn`` is the fused kernel for NVIDIA GPUs, in
            bfloat16, for q, k, v of four dimensions.

    Returns:
        (..., T, K). The softmax runs in float32.
    """
    if implementation == "cudnn":
        return _cudnn_attention(q, k, v, logit, out)
    # More blocks save little more, at most half of the products, and make each product smaller.
    blocks = 4 if q.shape[-2] >= 256 else 2
    divides = implementation == "blocked" and q.shape[-2] % blocks == 0
    return _attention(q, k, v, logit, out, blocks if divides else 1)


def _blocks(x: Array, blocks: int) -> list[Array]:
    """x (..., T, K) cut into blocks of positions, (..., T/blocks, K) each."""
    size = x.shape[-2] // blocks
    return [x[..., i * size : (i + 1) * size, :] for i in range(blocks)]


def _seen(x: Array, blocks: int) -> list[Array]:
    """For each block of queries, the positions of x (..., T, K) that it may see: up to its last."""
    size = x.shape[-2] // blocks
    return [x[..., : (i + 1) * size, :] for i in range(blocks)]


def _join(blocks: list[Array]) -> Array:
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=-2)


def _total(blocks: list[Array]) -> Array:
    """Sum of blocks of rising length, the shorter ones padded with zeros at the end."""
    total = blocks[-1]
    for block in blocks[:-1]:
        total = total.at[..., : block.shape[-2], :].add(block)
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q, k, v, logit, out, blocks: int):
    return _attention_fwd(q, k, v, logit, out, blocks)[0]


def _attention_fwd(q, k, v, logit, out, blocks):
    parts = zip(_blocks(q, blocks), _seen(k, blocks), _seen(v, blocks))
    weights, outputs = [], []
    for q_i, k_i, v_i in parts:
        weights.append(_scores_to_weights(q_i, k_i, logit))
        outputs.append(jnp.einsum("...ts,...sk->...tk", weights[-1].astype(v.dtype), v_i))
    return _join(outputs) * jnp.asarray(out, v.dtype), (q, k, v, weights, logit, out)


def _attention_bwd(blocks, saved, g):
    q, k, v, all_weights, logit, out = saved
    dq, dk, dv = [], [], []
    g = g * jnp.asarray(out, g.dtype)
    parts = zip(_blocks(q, blocks), _seen(k, blocks), _seen(v, blocks), _blocks(g, blocks))
    for weights, (q_i, k_i, v_i, g_i) in zip(all_weights, parts):
        dv.append(_narrow_first(_over_positions, weights.astype(g.dtype), g_i))
        dweights = jnp.einsum("...tk,...sk->...ts", g_i, v_i, preferred_element_type=jnp.float32)
        inner = jnp.sum(dweights * weights, axis=-1, keepdims=True)
        dscores = weights * (dweights - inner) * jnp.asarray(logit, jnp.float32)
        dscores = dscores.astype(q.dtype)
        dq.append(jnp.einsum("...ts,...sk->...tk", dscores, k_i))
        dk.append(_narrow_first(_over_positions, dscores, q_i))
    return _join(dq), _total(dk), _total(dv), None, None


_over_positions = functools.partial(jnp.einsum, "...ta,...tb->...ab")
"""aᵀ b over positions, a (..., T, A) and b (..., T, B): dv and dk of a block of queries."""


_attention.defvjp(_attention_fwd, _attention_bwd)


def _cudnn_attention(q, k, v, logit, out):
    """Fused attention. The kernel's ``scale`` must be a constant, so q is multiplied by ours.

    The kernel takes (B, T, H, K).
    """
    q, k, v = (x.swapaxes(-3, -2) for x in (q * jnp.asarray(logit, q.dtype), k, v))
    y = jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=True, implementation="cudnn")
    return y.swapaxes(-3, -2) * jnp.asarray(out, v.dtype)


@jax.custom_vjp
def gated_silu(x: Array, gate: Array, alpha, out) -> Array:
    """out · x · gate · sigmoid(alpha · gate): SwiGLU's activation (arXiv 2002.05202) with α inside.

    x and gate have the same shape; both receive their true gradient times ``out``.
    The backward pass recomputes the sigmoid, which is cheaper than storing it.
    """
    one = gate * jax.nn.sigmoid(jnp.asarray(alpha, gate.dtype) * gate)
    return jnp.asarray(out, x.dtype) * x * one


def _gated_silu_fwd(x, gate, alpha, out):
    return gated_silu(x, gate, alpha, out), (x, gate, alpha, out)


def _gated_silu_bwd(saved, g):
    x, gate, alpha, out = saved
    alpha = jnp.asarray(alpha, gate.dtype)
    sigmoid = jax.nn.sigmoid(alpha * gate)
    g = g * jnp.asarray(out, g.dtype)
    dgate = g * x * sigmoid * (1 + alpha * gate * (1 - sigmoid))
    return g * gate * sigmoid, dgate, None, None


gated_silu.defvjp(_gated_silu_fwd, _gated_silu_bwd)


@jax.custom_vjp
def gated_silu_pair(pair: Array, alpha, out) -> Array:
    """``gated_silu`` of gate and x side by side, pair (tokens, 2, F) → (tokens, F).

    The numbers are the same, but the two gradients are computed in one pass; autodiff of the slices
    would pad each gradient with zeros, add them, and evaluate every sigmoid twice.
    """
    return gated_silu(pair[:, 1], pair[:, 0], alpha, out)


def _gated_silu_pair_fwd(pair, alpha, out):
    return gated_silu_pair(pair, alpha, out), (pair, alpha, out)


def _gated_silu_pair_bwd(saved, g):
    pair, alpha, out = saved
    dx, dgate, *_ = _gated_silu_bwd((pair[:, 1], pair[:, 0], alpha, out), g)
    return jnp.stack([dgate, dx], axis=1), None, None


gated_silu_pair.defvjp(_gated_silu_pair_fwd, _gated_silu_pair_bwd)


def residual_split(x: Array, split_grad) -> tuple[Array, Array]:
    """(branch, skip), both x; the branch's cotangent is multiplied by ``split_grad``.

    Unit scaling delays the branch multiplier to this point of the backward pass, so that gradients
    inside the branch keep unit scale whatever the multiplier (Unit Scaling, Figure 3c).
    """
    return scale_bwd(x, split_grad), x


@jax.custom_vjp
def residual_add(branch: Array, skip: Array, add, keep, add_grad) -> Array:
    """add · branch + keep · skip; the branch's cotangent is add_grad · g, the skip's keep · g.

    ``add_grad`` is ``add`` for true gradients inside the branch, 1 where the split carries the
    multiplier. Shapes of branch and skip agree.
    """
    return jnp.asarray(add, branch.dtype) * branch + jnp.asarray(keep, skip.dtype) * skip


def _residual_add_fwd(branch, skip, add, keep, add_grad):
    return residual_add(branch, skip, add, keep, add_grad), (keep, add_grad)


def _residual_add_bwd(saved, g):
    keep, add_grad = saved
    return g * jnp.asarray(add_grad, g.dtype), g * jnp.asarray(keep, g.dtype), None, None, None


residual_add.defvjp(_residual_add_fwd, _residual_add_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(logits, targets, alpha, grad_scale, z_loss: float):
    return _cross_entropy_fwd(logits, targets, alpha, grad_scale, z_loss)[0]


def _cross_entropy_fwd(logits, targets, alpha, grad_scale, z_loss):
    scaled = logits.astype(jnp.float32) * jnp.asarray(alpha, jnp.float32)
    log_z = jax.nn.logsumexp(scaled, axis=-1)
    picked = jnp.take_along_axis(scaled, targets[:, None], axis=-1)[:, 0]
    picked = jnp.where(_in_range(targets, logits.shape[-1]), picked, jnp.nan)
    return jnp.mean(log_z - picked), (logits, targets, log_z, alpha, grad_scale)


def _cross_entropy_bwd(z_loss, saved, g):
    logits, targets, log_z, alpha, grad_scale = saved
    scaled = logits.astype(jnp.float32) * jnp.asarray(alpha, jnp.float32)
    probabilities = jnp.exp(scaled - log_z[:, None])
    hit = targets[:, None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)
    if z_loss:  # d(log² Z) = 2·log Z·p, beside d(log Z) = p
        pulled = probabilities * (1.0 + 2.0 * z_loss * log_z[:, None])
        error = jnp.where(hit, pulled - 1.0, pulled)
    else:
        error = jnp.where(hit, probabilities - 1.0, probabilities)
    # A target out of range, such as another library's ignore index, must not go unnoticed.
    row_scale = jnp.where(_in_range(targets, logits.shape[-1]), g * grad_scale, jnp.nan)
    return (error * row_scale[:, None]).astype(logits.dtype), None, None, None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def cross_entropy(logits: Array, targets: Array, alpha, grad_scale, z_loss: float = 0.0) -> Array:
    """Mean over tokens of −log softmax(alpha · logits)[target], nats per token, float32.

    Args:
        logits: (tokens, V).
        targets: (tokens,) integers in [0, V). A target out of range makes the loss and the
            gradient of its row NaN.
        alpha: multiplier of the logits.
        grad_scale: dlogits = grad_scale · (softmax(alpha · logits) − onehot). The true gradient
            is alpha/tokens; the unit-scaled one V/√(V−1), free of alpha (the book's Theory, 5).
        z_loss: weight ζ of the penalty mean log² Z on the log-partition (PaLM, arXiv 2204.02311,
            §5). It enters only the gradient, at the scale of the cross-entropy. The value returned
            is the cross-entropy alone, so that losses with and without the penalty are comparable.

    Returns:
        A scalar.
    """
    # In int32, so that any number of classes compares: an int8 cannot hold 200.
    return _cross_entropy(logits, targets.astype(jnp.int32), alpha, grad_scale, z_loss)
