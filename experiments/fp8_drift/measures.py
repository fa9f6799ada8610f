"""FP8 products as compiled: what XLA multiplies, how fast, and what a training step gains.

Three measures, points of the study `fp8_drift` and rows of its script `gemm_proof.py`: the operand
types of a linear's three products, read from the compiled HLO; speed of single products
(`umup.plan.products`); step time and loss of a decoder. On a device without FP8 units the same
functions run and say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umup import fp8, ops, train
from umup.config import BLOCK_LINEARS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.data import chain
from umup.errors import ConfigError
from umup.fp8 import Casts
from umup.layers import block_casts, linear_casts
from umup.plan.hlo import Program
from umup.plan.products import KINDS, device, gemm

__all__ = ["KINDS", "MEASURES", "chain", "device", "expected", "gemm", "linear_products", "shapes"]

PRODUCTS = ("y", "dx", "dw")
VOCAB = 256
_DTYPES = ("float32", "bfloat16")
_FP8 = (fp8.E4M3, fp8.E5M2)


def shapes(d_model: int, ff_ratio: float = 2.75) -> dict[str, tuple[int, int]]:
    """(fan_in, fan_out) of a block's linears and the readout; d_ff in multiples of 16."""
    d_ff = 16 * max(round(d_model * ff_ratio / 16), 1)
    block = ((d_model, 3 * d_model), (d_model, d_model), (d_model, 2 * d_ff), (d_ff, d_model))
    return dict(zip(BLOCK_LINEARS, block, strict=True)) | {"readout": (d_model, VOCAB)}


def _place(linear: str) -> str:
    return linear if linear == "readout" else f"blocks.0.{linear}"


def _is_fp8(casts: Casts) -> bool:
    return casts.x in _FP8


def linear_products(
    recipe: str,
    linear: str,
    fan_in: int,
    fan_out: int,
    tokens: int,
    dtype: str,
    accumulation: str = "fast",
) -> dict[str, Any]:
    """What the three products of one linear multiply, each compiled by itself.

    Args:
        recipe, linear: as for ``fp8.casts``; of a linear in a block the last two parts of its name.
        fan_in, fan_out, tokens: shapes; XLA's FP8 GEMM wants multiples of 16.
        dtype: of activations; weights are float32.
        accumulation: ``fast`` or ``precise``.

    Returns:
        For each of ``PRODUCTS`` its operand types as text and ``..._kind``, dot or the name of a
        library's call; ``claims`` (the recipe casts this linear to FP8), ``native`` (all three
        multiply FP8 on a device that can), and ``device``'s fields.
    """
    _check("dtype", dtype, _DTYPES)
    casts = fp8.casts(recipe, _place(linear), precise=accumulation == "precise")
    one = jnp.float32(1.0)
    x = jax.ShapeDtypeStruct((tokens, fan_in), dtype)
    w = jax.ShapeDtypeStruct((fan_in, fan_out), jnp.float32)
    g = jax.ShapeDtypeStruct((tokens, fan_out), dtype)
    # A constant, as in training it is state: the cast's scale comes from it.
    history = jnp.ones((3, fp8.HISTORY)) if casts.scaling == "delayed" else None

    def y(x, w):
        return ops.linear(x, w, one, one, one, casts, history)

    programs: dict[str, tuple[Callable, tuple]] = {
        "y": (y, (x, w)),
        "dx": (lambda x, w, g: jax.vjp(lambda x: y(x, w), x)[1](g), (x, w, g)),
        "dw": (lambda x, w, g: jax.vjp(lambda w: y(x, w), w)[1](g), (x, w, g)),
    }
    out: dict[str, Any] = {}
    native = True
    for name, (function, arguments) in programs.items():
        found = Program(_compiled_text(function, *arguments)).products()
        out[name] = "; ".join(product.text() for product in found) or "none"
        out[f"{name}_kind"] = "; ".join(product.kind for product in found) or "none"
        native &= bool(found) and all(product.native for product in found)
    here = device()
    return out | {"claims": _is_fp8(casts), "native": native and here["capable"]} | here


def _compiled_text(function: Callable, *arguments: Any) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text() or ""


def step(
    d_model: int,
    recipe: str,
    n_layers: int,
    d_head: int,
    seq_len: int,
    batch_size: int,
    steps: int,
    dtype: str,
    accumulation: str = "fast",
    scheme: str = "umup",
    log2_lr: float = 0.0,
    chunks: int = 5,
) -> dict[str, Any]:
    """Time of a training step, and the loss after ``steps`` of them, on ``chain``.

    Args:
        d_model, n_layers, d_head, seq_len, batch_size: shapes of a decoder, V = 256.
        recipe, accumulation, dtype: see ``ModelConfig``.
        steps: in ``chunks`` programs' runs of equal length, the first of which warms up.
        log2_lr: η, constant after the first chunk.

    Returns:
        seconds with seconds_lo, seconds_hi (per step; median and range over the timed chunks),
        tokens_per_s, tflops (6 FLOPs per weight and token); loss (nats per token, mean of the last
        chunk); fp8_products and expected (static FP8 products in the step's HLO and as the recipe
        means), emulated (those converted to a wider format), ``device``'s fields.

    Raises:
        ConfigError: ``steps`` is no multiple of ``chunks``.
    """
    if steps % chunks or chunks < 2:
        raise ConfigError("steps", steps, f"a multiple of chunks = {chunks}, these at least 2")
    model = ModelConfig(
        d_model=d_model,
        n_layers=n_layers,
        d_head=d_head,
        d_ff=shapes(d_model)["mlp.down"][0],
        vocab_size=VOCAB,
        seq_len=seq_len,
        base_width=d_model,
        base_depth=n_layers,
        base_d_head=d_head,
        dtype=dtype,
        unroll=1,
        recipe=recipe,
        accumulation=accumulation,
    )
    each = steps // chunks
    optim = OptimConfig(
        steps=steps, batch_size=batch_size, warmup_steps=min(each, steps), final_lr_ratio=1.0
    )
    run = RunConfig(scheme, model, optim, HPs(eta=2.0**log2_lr), 0, "chain", "none", "chain")
    lane = jax.tree.map(lambda leaf: leaf[0], train.lanes_of([run]))
    tokens = jnp.asarray(chain(max(64 * seq_len, 2**16)))
    offsets = jnp.arange(batch_size)[:, None]

    def body(state, _):
        # Windows that never repeat within a step; no lanes, whose axis a GEMM would carry.
        start = (state.step * batch_size + offsets) * seq_len % (tokens.size - seq_len - 1)
        window = tokens[start + jnp.arange(seq_len + 1)].astype(jnp.int32)
        state, signals = train.step(run, lane, state, (window[:, :-1], window[:, 1:]))
        return state, signals.loss

    many = jax.jit(lambda s: jax.lax.scan(body, s, None, length=each), donate_argnums=0)
    state = jax.jit(lambda: train.init(run, lane))()
    compiled = many.lower(state).compile()
    products = Program(compiled.as_text() or "").products()
    durations, losses = [], np.zeros(each)
    for _ in range(chunks):
        start = time.perf_counter()
        state, losses = compiled(state)
        losses = np.asarray(losses)  # waits for the device
        durations.append((time.perf_counter() - start) / each)
    durations = sorted(durations[1:])
    typical, a_step = float(np.median(durations)), batch_size * seq_len
    weights = model.n_params - VOCAB * d_model
    return {
        "seconds": typical,
        "seconds_lo": durations[0],
        "seconds_hi": durations[-1],
        "tokens_per_s": a_step / typical,
        "tflops": 6.0 * weights * a_step / typical / 1e12,
        "loss": float(np.mean(losses, dtype=np.float64)),
        "fp8_products": sum(product.native for product in products),
        "emulated": sum(product.emulated for product in products),
        "expected": expected(model),
    } | device()


def expected(model: ModelConfig) -> int:
    """FP8 products in a step's program: three per linear that is cast to FP8.

    Blocks that cast alike are one loop, whose body stands once in the program.
    """
    blocks = {block_casts(model, layer) for layer in range(model.n_layers)}
    every = [*(casts for block in blocks for casts in block), linear_casts(model, "readout")]
    return 3 * sum(_is_fp8(casts) for casts in every)


def _check(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(field, value, " | ".join(allowed))


MEASURES = {"linear": linear_products, "gemm": gemm, "step": step}
