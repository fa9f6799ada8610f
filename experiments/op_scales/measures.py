"""What the study ``op_scales`` measures: the RMS of each op's output and gradients.

Inputs and cotangents are drawn at unit scale, the op takes the numbers that ``rules`` gives u-μP,
and unit scaling promises that the result has RMS 1. Every function returns plain lists, one value
per seed, so that each result is "measured over model".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from umup import draws, ops, unit
from umup.config import HPs, ModelConfig
from umup.errors import ConfigError
from umup.rules import Parametrization, attention_out_std

INPUTS: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "normal": draws.normal,
    "uniform": lambda key, shape: math.sqrt(12.0) * (jax.random.uniform(key, shape) - 0.5),
    "laplace": lambda key, shape: jax.random.laplace(key, shape) / math.sqrt(2.0),
}
"""Distributions of mean 0 and variance 1."""
BLOCK = 2**22  # attention weights held at once, so that long sequences fit


def _numbers(tokens: int, hps: Mapping[str, float] | None = None, **shape: int) -> Parametrization:
    """u-μP's numbers for a model of the shape."""
    given = HPs.from_dict(hps or {}).to_dict()
    return Parametrization("umup", ModelConfig.from_dict(shape), given, tokens)


def _square(x: Array, axis: tuple[int, ...] | None = None) -> Array:
    return jnp.mean(jnp.square(x.astype(jnp.float32)), axis=axis)


def _rms(x: Array) -> Array:
    return jnp.sqrt(_square(x))


def _normal(key: Array, dtype: str, *shapes: tuple[int, ...]) -> list[Array]:
    keys = jax.random.split(key, len(shapes))
    return [draws.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def _over_seeds(seeds: int, measure: Callable[[Array], Mapping[str, Array]]) -> dict[str, Any]:
    """Name → one float per seed, from a function of the key."""
    if seeds < 1:
        raise ConfigError("seeds", seeds, "an integer >= 1")
    found = [jax.device_get(measure(jax.random.key(seed))) for seed in range(seeds)]
    return {name: [float(f[name]) for f in found] for name in found[0]}


@partial(jax.jit, static_argnames=("blocks", "shape", "inputs", "dtype"))
def _attention(key, logit, out, correlation, *, blocks, shape, inputs, dtype):
    draw = INPUTS[inputs]

    def block(key: Array) -> tuple[dict[str, Array], Array]:
        kq, kk, kv, kg, kc = jax.random.split(key, 5)
        shared = draw(kc, (shape[0], 1, shape[2]))
        v = jnp.sqrt(correlation) * shared + jnp.sqrt(1.0 - correlation) * draw(kv, shape)
        q, k, g = (draw(each, shape) for each in (kq, kk, kg))
        q, k, v, g = (a.astype(dtype) for a in (q, k, v, g))
        y, vjp = jax.vjp(lambda q, k, v: ops.attention(q, k, v, logit, out), q, k, v)
        squares = dict(zip(("dq", "dk", "dv"), map(_square, vjp(g)), strict=True))
        return {"out": _square(y), **squares}, _square(y, (0, 2))

    squares, rows = lax.map(block, jax.random.split(key, blocks))
    return {n: jnp.sqrt(jnp.mean(s)) for n, s in squares.items()}, jnp.mean(rows, axis=0)


def attention(
    *,
    seq_len: int,
    d_head: int,
    alpha: float,
    sequences: int,
    seeds: int,
    dtype: str,
    inputs: str = "normal",
    correlation: float = 0.0,
) -> dict[str, Any]:
    """Causal attention on unit-scale q, k, v and cotangent (u-μP paper, Table 4).

    Args:
        sequences: heads measured per seed; rounded up to whole blocks.
        inputs: distribution of q, k, v and the cotangent: normal, uniform or laplace.
        correlation: ρ between the values of any two positions, v_t = √ρ·c + √(1−ρ)·e_t.

    Returns:
        out, dq, dk, dv (RMS per seed); model, the scale σ that was divided out; positions t (from
        1) and by_position, the RMS of the output there, over all seeds.

    Raises:
        ConfigError: a correlation outside [0, 1] or an unknown distribution or shape.
    """
    if inputs not in INPUTS:
        raise ConfigError("inputs", inputs, " | ".join(INPUTS))
    if not 0.0 <= correlation <= 1.0:
        raise ConfigError("correlation", correlation, "a number in [0, 1]")
    numbers = _numbers(
        seq_len, {"alpha_attn_softmax": alpha}, d_model=d_head, d_head=d_head, seq_len=seq_len
    )
    logit, out = numbers.attention(d_head, seq_len)
    at_once = min(sequences, max(1, BLOCK // seq_len**2))
    rows = []

    def measure(key: Array) -> dict[str, Array]:
        found, row = _attention(
            key,
            logit,
            out,
            correlation,
            blocks=math.ceil(sequences / at_once),
            shape=(at_once, seq_len, d_head),
            inputs=inputs,
            dtype=dtype,
        )
        rows.append(row)
        return found

    found = _over_seeds(seeds, measure)
    at = [2**i for i in range(seq_len.bit_length())]
    square = jnp.mean(jnp.stack(rows), axis=0)
    return found | {
        "model": float(attention_out_std(d_head, seq_len, alpha)),
        "positions": at,
        "by_position": [math.sqrt(float(square[t - 1])) for t in at],
    }


@partial(jax.jit, static_argnames=("elements", "dtype"))
def _gated_silu(key, alpha, out, *, elements, dtype):
    x, gate, g = _normal(key, dtype, (elements,), (elements,), (elements,))
    y, vjp = jax.vjp(lambda x, gate: ops.gated_silu(x, gate, alpha, out), x, gate)
    dx, dgate = vjp(g)
    return {"out": _rms(y), "dx": _rms(dx), "dgate": _rms(dgate)}


def gated_silu(*, alpha: float, elements: int, seeds: int, dtype: str) -> dict[str, Any]:
    """x · gate · sigmoid(α gate) on unit-scale inputs (u-μP paper, Table 4).

    Returns:
        out, dx, dgate (RMS per seed) and model, the scale that was divided out.
    """
    inner, out = _numbers(elements, {"alpha_ffn_act": alpha}).gated_silu()
    found = _over_seeds(
        seeds, lambda key: _gated_silu(key, inner, out, elements=elements, dtype=dtype)
    )
    return found | {"model": float(1.0 / out)}


@partial(jax.jit, static_argnames=("size", "rows", "dtype"))
def _softmax(key, mult, *, size, rows, dtype):
    x, g = _normal(key, dtype, (rows, size), (rows, size))
    y, vjp = jax.vjp(lambda x: unit.softmax(x, mult=mult), x)
    return {"out": _rms(y), "dx": _rms(vjp(g)[0])}


def softmax(*, size: int, mult: float, rows: int, seeds: int, dtype: str) -> dict[str, Any]:
    """Softmax over ``size`` unit-scale logits times ``mult``, scaled as ``unit.softmax`` does.

    Returns:
        out, dx (RMS per seed; not the standard deviation: a flat softmax has RMS 1 and none).
    """
    return _over_seeds(seeds, lambda key: _softmax(key, mult, size=size, rows=rows, dtype=dtype))


@partial(jax.jit, static_argnames=("tokens", "vocab_size", "dtype"))
def _cross_entropy(key, alpha, grad_scale, logits_rms, *, tokens, vocab_size, dtype):
    kz, kt = jax.random.split(key)
    z = logits_rms * draws.normal(kz, (tokens, vocab_size))
    targets = jax.random.randint(kt, (tokens,), 0, vocab_size)
    grad = jax.grad(ops.cross_entropy)(z.astype(dtype), targets, alpha, grad_scale)
    return {"dlogits": _rms(grad)}


def cross_entropy(
    *, vocab_size: int, alpha: float, logits_rms: float, tokens: int, seeds: int, dtype: str
) -> dict[str, Any]:
    """Gradient of the loss with respect to logits of the given RMS, targets independent of them.

    Returns:
        dlogits (RMS per seed).
    """
    numbers = _numbers(tokens, {"alpha_loss_softmax": alpha}, vocab_size=vocab_size)
    inner, grad_scale = numbers.loss(vocab_size)
    return _over_seeds(
        seeds,
        lambda key: _cross_entropy(
            key, inner, grad_scale, logits_rms, tokens=tokens, vocab_size=vocab_size, dtype=dtype
        ),
    )


@partial(jax.jit, static_argnames=("tokens", "d_model", "vocab_size", "dtype"))
def _readout(key, w_numbers, loss_numbers, *, tokens, d_model, vocab_size, dtype):
    kx, kw, kt = jax.random.split(key, 3)
    (x,) = _normal(kx, dtype, (tokens, d_model))
    (w,) = _normal(kw, dtype, (d_model, vocab_size))
    targets = jax.random.randint(kt, (tokens,), 0, vocab_size)
    logits, vjp = jax.vjp(lambda x, w: ops.linear(x, w, *w_numbers), x, w)
    dlogits = jax.grad(ops.cross_entropy)(logits, targets, *loss_numbers)
    dx, dw = vjp(dlogits)
    return {"out": _rms(logits), "dlogits": _rms(dlogits), "dx": _rms(dx), "dw": _rms(dw)}


def readout(
    *, d_model: int, vocab_size: int, backward: str, tokens: int, seeds: int, dtype: str
) -> dict[str, Any]:
    """Readout and loss at initialization, seen from the trunk (the book's Errata, 5).

    Args:
        backward: ``fan_out``: the gradient's scale 1/√fan_out, as in ``rules``; ``fan_in``:
            1/√fan_in, as the u-μP paper's Table 1 prints it.

    Returns:
        out (logits), dlogits, dx (the gradient that enters the trunk), dw: RMS per seed.

    Raises:
        ConfigError: another ``backward``.
    """
    if backward not in ("fan_out", "fan_in"):
        raise ConfigError("backward", backward, "fan_out | fan_in")
    numbers = _numbers(tokens, d_model=d_model, d_head=d_model, vocab_size=vocab_size)
    w = numbers.weight("output", d_model, vocab_size)
    back = w.backward if backward == "fan_out" else d_model**-0.5
    return _over_seeds(
        seeds,
        lambda key: _readout(
            key,
            (w.forward, back, w.weight_grad),
            numbers.loss(vocab_size),
            tokens=tokens,
            d_model=d_model,
            vocab_size=vocab_size,
            dtype=dtype,
        ),
    )


@partial(jax.jit, static_argnames=("tokens", "fan_in", "fan_out", "dtype"))
def _linear(key, scales, *, tokens, fan_in, fan_out, dtype):
    x, w, g = _normal(key, dtype, (tokens, fan_in), (fan_in, fan_out), (tokens, fan_out))
    y, vjp = jax.vjp(lambda x, w: ops.linear(x, w, *scales), x, w)
    dx, dw = vjp(g)
    return {"out": _rms(y), "dx": _rms(dx), "dw": _rms(dw)}


def linear(*, fan_in: int, fan_out: int, tokens: int, seeds: int, dtype: str) -> dict[str, Any]:
    """A hidden linear; dx has RMS √(fan_out/fan_in), since it takes the forward scale.

    Returns:
        out, dx, dw (RMS per seed).
    """
    w = _numbers(tokens).weight("hidden", fan_in, fan_out)
    scales = (w.forward, w.backward, w.weight_grad)
    return _over_seeds(
        seeds,
        lambda key: _linear(
            key, scales, tokens=tokens, fan_in=fan_in, fan_out=fan_out, dtype=dtype
        ),
    )


@partial(jax.jit, static_argnames=("op", "shape", "dtype"))
def _elementwise(key, *, op, shape, dtype):
    x, g = _normal(key, dtype, shape, shape)
    y, vjp = jax.vjp(op, x)
    return {"out": _rms(y), "dx": _rms(vjp(g)[0])}


def rms_norm(*, width: int, tokens: int, seeds: int, dtype: str) -> dict[str, Any]:
    """RMSNorm without gain. Returns out, dx (RMS per seed)."""
    return _over_seeds(
        seeds, lambda key: _elementwise(key, op=ops.rms_norm, shape=(tokens, width), dtype=dtype)
    )


def _rotate(x: Array) -> Array:
    return ops.rope(x, *ops.rope_tables(*x.shape[-2:]))


def rope(*, seq_len: int, width: int, heads: int, seeds: int, dtype: str) -> dict[str, Any]:
    """Rotary embedding of heads of ``width`` features. Returns out, dx (RMS per seed)."""
    shape = (heads, seq_len, width)
    return _over_seeds(seeds, lambda key: _elementwise(key, op=_rotate, shape=shape, dtype=dtype))


@partial(jax.jit, static_argnames=("tokens", "width", "dtype"))
def _residual(key, scales, split_grad, add_numbers, *, tokens, width, dtype):
    x, w, g = _normal(key, dtype, (tokens, width), (width, width), (tokens, width))

    def layer(x: Array) -> Array:
        inner, skip = ops.residual_split(x, split_grad)
        return ops.residual_add(ops.linear(inner, w, *scales), skip, *add_numbers)

    y, vjp = jax.vjp(layer, x)
    return {"out": _rms(y), "dx": _rms(vjp(g)[0])}


def residual(
    *, width: int, n_layers: int, branch: int, tokens: int, seeds: int, dtype: str
) -> dict[str, Any]:
    """One residual branch, a square linear, with the τ of branch number ``branch`` of 2·n_layers.

    Returns:
        out, dx (RMS per seed).

    Raises:
        ConfigError: no such branch.
    """
    if not 0 <= branch < 2 * n_layers:
        raise ConfigError("branch", branch, f"0 to {2 * n_layers - 1}")
    numbers = _numbers(tokens, d_model=width, d_head=width, n_layers=n_layers)
    w = numbers.weight("hidden", width, width, residual=True)
    scales = (w.forward, w.backward, w.weight_grad)
    chosen = numbers.residual()[branch]
    add = (chosen.add, chosen.skip, chosen.add_grad)
    return _over_seeds(
        seeds,
        lambda key: _residual(
            key, scales, chosen.split_grad, add, tokens=tokens, width=width, dtype=dtype
        ),
    )


@partial(jax.jit, static_argnames=("tokens", "vocab_size", "width", "dtype"))
def _embedding(key, forward, weight_grad, *, tokens, vocab_size, width, dtype):
    ki, kw, kg = jax.random.split(key, 3)
    ids = jax.random.randint(ki, (tokens,), 0, vocab_size)
    (w,), (g,) = _normal(kw, dtype, (vocab_size, width)), _normal(kg, dtype, (tokens, width))
    y, vjp = jax.vjp(lambda w: ops.embed(ids, w, forward, weight_grad), w)
    return {"out": _rms(y), "dw": _rms(vjp(g)[0])}


def embedding(
    *, vocab_size: int, width: int, tokens: int, seeds: int, dtype: str
) -> dict[str, Any]:
    """Row lookup of ids drawn uniformly. Returns out, dw (RMS per seed)."""
    w = _numbers(tokens).weight("input", vocab_size, width)
    return _over_seeds(
        seeds,
        lambda key: _embedding(
            key,
            w.forward,
            w.weight_grad,
            tokens=tokens,
            vocab_size=vocab_size,
            width=width,
            dtype=dtype,
        ),
    )


MEASURES = {
    **{
        f.__name__: f
        for f in (
            attention,
            gated_silu,
            softmax,
            cross_entropy,
            readout,
            linear,
            rms_norm,
            rope,
            residual,
            embedding,
        )
    },
    "attention_inputs": attention,
    "cross_entropy_tokens": cross_entropy,
}
