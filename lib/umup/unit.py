"""Unit-scaled functions for people who come from PyTorch's ``unit_scaling.functional``.

Names, argument names, multipliers and constraints are those of that package, with two differences
that silently change results if they are overlooked:

1. **Weights are (fan_in, fan_out)**, y = x W: the transpose of PyTorch's. The weight of a square
   layer has the same shape either way.
2. **tau is a ratio of variances**, the branch's over the skip's: the square of theirs, which is a
   ratio of amplitudes.

Attention is causal unless told otherwise (theirs is not), and norms take their shape from the gain
or normalise the last axis. Each function scales its output in the forward pass and its inputs'
cotangents in the backward pass, by constants of the shapes and of ``mult``, which may be traced.
Gradients are hence constant multiples of the true ones.

Sources: Unit Scaling (arXiv 2303.11257), Appendix B; u-μP (arXiv 2407.17465), Table 4 and
Appendix B. Bad input raises ``umup.errors.ConfigError``, with the argument, what was received and
what is allowed; the value of a traced argument is not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from umup import ops, rules
from umup.arguments import BINARY, TERNARY, arrays, constrained, indices, positive, require_shape
from umup.errors import ConfigError
from umup.powers import Number
from umup.scale import scale_bwd, scale_fwd


def linear(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    constraint: str | None = "to_output_scale",
    scale_power: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> Array:
    """y = x W (+ bias), times fan_in^−½; **w is (fan_in, fan_out)**, the transpose of PyTorch's.

    Unconstrained, the gradient of x is scaled by fan_out^−½; that of w and of the bias by
    tokens^−½, where tokens is the product of x's leading dimensions. The default constraint gives
    x's gradient the same scale as the output, which residual branches need.

    Args:
        x: (..., fan_in), any leading dimensions or none.
        w: (fan_in, fan_out).
        bias: (fan_out,), scaled with the output.
        constraint: to_output_scale, to_grad_input_scale, gmean, hmean, amean or None.
        scale_power: p, q and r of fan_in^−p forward, fan_out^−q on x's gradient, tokens^−r on
            w's and the bias's.

    Returns:
        (..., fan_out) in x's dtype.
    """
    x, w = arrays(x=x, w=w)
    require_shape("w", w, w.ndim == 2, "two dimensions, (fan_in, fan_out)")
    fan_in, fan_out = w.shape
    require_shape("x", x, x.shape[-1:] == (fan_in,), f"(..., {fan_in}), as w is (fan_in, fan_out)")
    tokens = x.size // fan_in
    p, q, r = scale_power
    forward, backward = constrained(constraint, BINARY, fan_in**-p, fan_out**-q)
    y = ops.linear(x.reshape(tokens, fan_in), w, forward, backward, tokens**-r)
    if bias is not None:
        (bias,) = arrays(bias=bias)
        require_shape("bias", bias, bias.shape == (fan_out,), f"({fan_out},)")
        y = y + scale_fwd(scale_bwd(bias, tokens**-r), forward).astype(y.dtype)
    return y.reshape(*x.shape[:-1], fan_out)


def linear_readout(
    x: Array, w: Array, bias: Array | None = None, *, constraint: str | None = None
) -> Array:
    """y = x W / fan_in (+ bias / fan_in): ``linear`` for logits; **w is (fan_in, fan_out)**.

    Logits shrink with width, as μP wants, while the gradient of x keeps unit scale by fan_out^−½.
    """
    return linear(x, w, bias, constraint=constraint, scale_power=(1.0, 0.5, 0.5))


def embedding(ids: Array, w: Array) -> Array:
    """Rows of w (V, d_model) at ``ids`` (any shape) → ids.shape + (d_model,).

    The table's gradient is scaled by √(V/tokens), where tokens is the number of ids.
    """
    (w,) = arrays(w=w)
    require_shape("w", w, w.ndim == 2, "two dimensions, (V, d_model)")
    vocab, d_model = w.shape
    ids = indices("ids", ids, vocab)
    return ops.embed(ids.reshape(-1), w, 1.0, math.sqrt(vocab / ids.size)).reshape(
        *ids.shape, d_model
    )


def scaled_dot_product_attention(
    q: Array, k: Array, v: Array, *, is_causal: bool = True, mult: Number = 1.0
) -> Array:
    """softmax(mult · q kᵀ / d_head) v / σ, **causal by default**; gradients divided by σ as well.

    σ models the standard deviation of the output on unit-scale inputs:
    lerp(1/(1 + 4 d_head/mult²); s, 1) with s = √(ln S/S) under the causal mask, √(1/S) without.
    The gradients of q and k come out at about 0.9·mult/√d_head, not at 1.

    Args:
        q: (..., T, d), e.g. (b, h, s, d); leading dimensions (batch, heads) or none.
        k: (..., S, d), the same leading dimensions.
        v: (..., S, d_head); d_head is taken from v, as in the reference.
        is_causal: position t sees positions ≤ t.
        mult: α of the logits.

    Returns:
        (..., T, d_head). The softmax runs in float32.
    """
    q, k, v = arrays(q=q, k=k, v=v)
    require_shape("v", v, v.ndim >= 2, "(..., S, d_head)")
    lead, (length, d_head) = v.shape[:-2], v.shape[-2:]
    d = q.shape[-1] if q.ndim else 0
    require_shape(
        "q", q, q.ndim == v.ndim and q.shape[:-2] == lead, f"{(*lead, 'T', 'd')}, as v is"
    )
    require_shape("k", k, k.shape == (*lead, length, d), f"{(*lead, length, d)}, as q and v are")
    mult = positive("mult", mult)
    if is_causal:
        out = 1.0 / rules.attention_out_std(d_head, length, mult)
    else:
        out = 1.0 / rules.lerp_log(1.0 / (1.0 + 4.0 * d_head / mult**2), length**-0.5, 1.0)
    q, k, v = (a.reshape(-1, *a.shape[-2:]) for a in (q, k, v))
    if is_causal and q.shape[1] == length:
        y = ops.attention(q, k, v, mult / d_head, out)
    else:
        y = _attention(q, k, v, mult / d_head, out, is_causal)
    return y.reshape(*lead, -1, d_head)


def _attention(q: Array, k: Array, v: Array, logit: Number, out: Number, causal: bool) -> Array:
    """The cases that ``ops.attention`` lacks: no mask, or T queries and S ≠ T keys."""
    q, k, v = (scale_bwd(a, out) for a in (q, k, v))
    scores = jnp.einsum("ntd,nsd->nts", q, k, preferred_element_type=jnp.float32)
    scores = scores * jnp.asarray(logit, jnp.float32)
    if causal:
        scores = jnp.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return scale_fwd(jnp.einsum("nts,nsd->ntd", weights, v), out)


def silu_glu(x: Array, gate: Array, *, mult: Number = 1.0) -> Array:
    """x · gate · sigmoid(mult · gate) / std, all of one shape; gradients divided by std too.

    std models the output on unit-scale inputs, lerp(1/(1 + 1/mult²); ½, 1/√2).
    """
    x, gate = arrays(x=x, gate=gate)
    require_shape("gate", gate, gate.shape == x.shape, f"{x.shape}, as x")
    mult = positive("mult", mult)
    return ops.gated_silu(x, gate, mult, 1.0 / rules.gated_silu_std(mult))


def _elementwise(
    f: Callable[[Array], Array], x: Array, output: Number, gradient: Number, constraint: str | None
) -> Array:
    output, gradient = constrained(constraint, BINARY, output, gradient)
    return scale_fwd(f(scale_bwd(x, gradient)), output)


def _half_normal_scale(mult: Number) -> Number:
    """1/std of SiLU and GELU: of the line x/2 at small mult, of a centred ReLU at large mult."""
    return rules.lerp_log(1.0 / (1.0 + 0.25 / mult**2), 2.0, math.sqrt(2.0 / (1.0 - 1.0 / math.pi)))


def silu(x: Array, mult: Number = 1.0, constraint: str | None = "to_output_scale") -> Array:
    """x · sigmoid(mult · x) at unit scale; any shape."""
    (x,) = arrays(x=x)
    mult = positive("mult", mult)
    m = jnp.asarray(mult, x.dtype)
    gradient = 1.0 / rules.gated_silu_std(mult)
    return _elementwise(
        lambda x: x * jax.nn.sigmoid(m * x), x, _half_normal_scale(mult), gradient, constraint
    )


def gelu(
    x: Array,
    mult: Number = 1.0,
    constraint: str | None = "to_output_scale",
    approximate: str = "none",
) -> Array:
    """GELU(mult · x) / mult at unit scale; any shape; ``approximate`` is ``none`` or ``tanh``."""
    (x,) = arrays(x=x)
    mult = positive("mult", mult)
    m = jnp.asarray(mult, x.dtype)
    if approximate not in ("none", "tanh"):
        raise ConfigError("approximate", approximate, "none | tanh")
    gradient = rules.lerp_log(1.0 / (1.0 + 0.25 / mult**2), 2.0, math.sqrt(2.0))
    return _elementwise(
        lambda x: jax.nn.gelu(m * x, approximate=approximate == "tanh") / m,
        x,
        _half_normal_scale(mult),
        gradient,
        constraint,
    )


def softmax(
    x: Array,
    dim: int = -1,
    dtype=None,
    constraint: str | None = "to_output_scale",
    mult: Number = 1.0,
) -> Array:
    """softmax(mult · x) over axis ``dim`` at unit scale: n times as large on flat inputs.

    Computed in float32 and returned in ``dtype``, by default x's.
    """
    (x,) = arrays(x=x)
    if not -x.ndim <= dim < x.ndim:
        raise ConfigError("dim", dim, f"an axis of x, which has shape {x.shape}")
    n, mult = float(x.shape[dim]), positive("mult", mult)
    a = 1.0 / (1.0 + 4.0 / mult**2)

    def f(x):
        scaled = x.astype(jnp.float32) * jnp.asarray(mult, jnp.float32)
        return jax.nn.softmax(scaled, axis=dim).astype(dtype or x.dtype)

    gradient = rules.lerp_log(a, n / mult, (n / mult) ** 0.5)
    return _elementwise(f, x, rules.lerp_log(a, n, n**0.5), gradient, constraint)


def _normalised(x: Array, shape, *gains: Array | None) -> int:
    """The number of trailing axes that a norm of ``shape`` covers; gains have that shape."""
    first = next((gain.shape for gain in gains if gain is not None), x.shape[-1:])
    shape = first if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ConfigError("normalized_shape", shape, f"trailing dimensions of x's {x.shape}")
    for gain in gains:
        if gain is not None:
            require_shape(
                "weight or bias", gain, gain.shape == shape, f"{shape}, the normalised shape"
            )
    return len(shape)


def _gain(x: Array, gain: Array) -> Array:
    """A gain or bias; its gradient sums over x's other axes and is scaled to match."""
    return scale_bwd(gain, math.sqrt(gain.size / x.size)).astype(x.dtype)


def rms_norm(
    x: Array,
    weight: Array | None = None,
    *,
    normalized_shape: int | Sequence[int] | None = None,
    eps: float = 1e-5,
) -> Array:
    """x / √(mean x² + eps) · weight, statistics in float32 (arXiv 1910.07467).

    The gradient of x is the true one, that of the gain is scaled by √(weight.size/x.size).

    Args:
        x: any shape.
        weight: gain; its shape is that of x's trailing dimensions.
        normalized_shape: the trailing dimensions to normalise over; by default those of the
            gain, or the last.
        eps: at least 0.
    """
    (x,) = arrays(x=x)
    (weight,) = (None,) if weight is None else arrays(weight=weight)
    axes = _normalised(x, normalized_shape, weight)
    flat = x.reshape(*x.shape[:-axes], -1)
    y = ops.rms_norm(flat, positive("eps", eps, or_zero=True)).reshape(x.shape)
    return y if weight is None else y * _gain(x, weight)


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    normalized_shape: int | Sequence[int] | None = None,
    eps: float = 1e-5,
) -> Array:
    """(x − mean) / √(variance + eps) · weight + bias (arXiv 1607.06450); see ``rms_norm``."""
    (x,) = arrays(x=x)
    (weight,) = (None,) if weight is None else arrays(weight=weight)
    (bias,) = (None,) if bias is None else arrays(bias=bias)
    axes = _normalised(x, normalized_shape, weight, bias)
    flat = x.astype(jnp.float32).reshape(*x.shape[:-axes], -1)
    centred = flat - jnp.mean(flat, axis=-1, keepdims=True)
    y = ops.rms_norm(centred, positive("eps", eps, or_zero=True)).astype(x.dtype).reshape(x.shape)
    y = y if weight is None else y * _gain(x, weight)
    return y if bias is None else y + _gain(x, bias)


def residual_split(x: Array, tau: Number = 1.0) -> tuple[Array, Array]:
    """(branch, skip), both x, for ``residual_add``; **tau is a ratio of variances**.

    tau = (their tau)². The backward pass weighs the branch's cotangent here by √(tau/(1+tau)) and
    the skip's by √(1/(1+tau)), so that gradients inside the branch keep unit scale.
    """
    (x,) = arrays(x=x)
    tau = positive("tau", tau)
    return scale_bwd(x, (tau / (1.0 + tau)) ** 0.5), scale_bwd(x, (1.0 / (1.0 + tau)) ** 0.5)


def residual_add(branch: Array, skip: Array, tau: Number = 1.0) -> Array:
    """√(tau/(1+tau)) · branch + √(1/(1+tau)) · skip; **tau is a ratio of variances**.

    tau = (their tau)²; give ``residual_split`` the same. Cotangents pass unscaled.
    """
    branch, skip = arrays(branch=branch, skip=skip)
    require_shape("skip", skip, skip.shape == branch.shape, f"{branch.shape}, as branch")
    tau = positive("tau", tau)
    return scale_fwd(branch, (tau / (1.0 + tau)) ** 0.5) + scale_fwd(
        skip, (1.0 / (1.0 + tau)) ** 0.5
    )


def add(input, other, constraint: str | None = "to_output_scale") -> Array:
    """(input + other)/√2, shapes broadcast; a Python number is added as it is.

    Unconstrained, each gradient is scaled by (how often its array is repeated)^−½; an array of
    one element leaves the output's scale at 1. ``constraint`` is to_output_scale,
    to_left_grad_scale, to_right_grad_scale, gmean, hmean, amean or None.
    """
    if isinstance(input, (int, float)) or isinstance(other, (int, float)):
        return jnp.add(input, other)
    left, right = arrays(input=input, other=other)
    try:
        size = math.prod(np.broadcast_shapes(left.shape, right.shape))
    except ValueError:
        allowed = f"a shape that broadcasts with {left.shape}"
        raise ConfigError("other", right.shape, allowed) from None
    output, left_scale, right_scale = constrained(
        constraint,
        TERNARY,
        1.0 if 1 in (left.size, right.size) else 2**-0.5,
        (size // left.size) ** -0.5,
        (size // right.size) ** -0.5,
    )
    return scale_fwd(scale_bwd(left, left_scale) + scale_bwd(right, right_scale), output)


def matmul(left: Array, right: Array, constraint: str | None = "to_output_scale") -> Array:
    """left (..., n, k) · right (..., k, m), times k^−½; leading dimensions broadcast.

    Unconstrained, the gradients are scaled by m^−½ and n^−½. ``constraint``: see ``add``.
    """
    left, right = arrays(left=left, right=right)
    require_shape("left", left, left.ndim >= 2, "(..., n, k)")
    require_shape(
        "right",
        right,
        right.ndim >= 2 and right.shape[-2] == left.shape[-1],
        f"(..., {left.shape[-1]}, m), as left is {left.shape}",
    )
    output, left_scale, right_scale = constrained(
        constraint,
        TERNARY,
        left.shape[-1] ** -0.5,
        right.shape[-1] ** -0.5,
        left.shape[-2] ** -0.5,
    )
    return scale_fwd(scale_bwd(left, left_scale) @ scale_bwd(right, right_scale), output)


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    mult: Number = 1.0,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Array:
    """−log softmax(mult · logits)[target], nats: the mean or the sum over tokens, float32.

    The gradient is V/√(V−1) · (softmax − onehot) per token under either reduction: not divided by
    tokens and not multiplied by mult, which is unit scale at initialization.

    Args:
        logits: (..., V), V at least 2; leading dimensions or none.
        targets: (...) integers in [0, V).
        reduction: ``mean`` or ``sum``.
        ignore_index: a target whose token contributes no loss and no gradient; the mean still
            divides by all tokens, as in the reference.
    """
    (logits,) = arrays(logits=logits)
    require_shape(
        "logits", logits, logits.ndim >= 1 and logits.shape[-1] >= 2, "(..., V), V at least 2"
    )
    vocab = logits.shape[-1]
    targets = indices("targets", targets, vocab, ignore_index)
    require_shape("targets", targets, targets.shape == logits.shape[:-1], f"{logits.shape[:-1]}")
    if reduction not in ("mean", "sum"):
        raise ConfigError("reduction", reduction, "mean | sum")
    rows, flat = logits.reshape(-1, vocab), targets.reshape(-1)
    ignored = flat == ignore_index
    certain = jnp.where(jnp.arange(vocab) == 0, 0.0, -jnp.inf).astype(rows.dtype)
    rows = jnp.where(ignored[:, None], certain, rows)  # class 0 for sure: no loss, no gradient
    mean = ops.cross_entropy(
        rows, jnp.where(ignored, 0, flat), positive("mult", mult), vocab / math.sqrt(vocab - 1)
    )
    return mean if reduction == "mean" else scale_fwd(mean, flat.size)


def transformer_residual_taus(
    n_layers: int,
    *,
    residual_mult: Number = 1.0,
    residual_attn_ratio: Number = 1.0,
    convention: str = "derived",
) -> list[Number]:
    """tau of the 2·n_layers residual branches, attention first: **ratios of variances**.

    ``convention``: ``derived`` (the book's Theory, section 6), ``library`` (the squares
    of the reference package's values) or ``printed`` (equation (22) as the u-μP paper prints it).
    ``derived`` at residual_mult = 1 is ``library`` at 1/√2.
    """
    if isinstance(n_layers, bool) or not isinstance(n_layers, int):
        raise ConfigError("n_layers", n_layers, "an integer >= 1")
    return rules.residual_taus(
        n_layers,
        positive("residual_mult", residual_mult),
        positive("residual_attn_ratio", residual_attn_ratio),
        convention,
    )
