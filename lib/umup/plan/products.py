"""Speed and error of single matrix products and of copies, as compiled on the default device.

The functions also run on a device without FP8 units, and ``device`` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umup import fp8
from umup.errors import ConfigError
from umup.plan.hlo import Program

KINDS = ("bf16", "fp8", "fp8_cast", "fp8_current")
"""Single products: bfloat16; E4M3 operands; cast from bfloat16 first; with amax scaling too."""


def device() -> dict[str, Any]:
    """Name of the default device, its compute capability ("" if none), and whether it has FP8."""
    first = jax.devices()[0]
    return {
        "device_kind": first.device_kind,
        "compute_capability": str(getattr(first, "compute_capability", "") or ""),
        "capable": fp8.on_hopper(),
    }


def gemm(
    size: int, kind: str, accumulation: str = "fast", seconds: float = 0.3, repeats: int = 5
) -> dict[str, Any]:
    """Speed and error of one square product.

    Args:
        size: rows, columns and contraction.
        kind: one of ``KINDS``.
        accumulation: ``fast`` or ``precise``.
        seconds: about how long each of the ``repeats`` timings is to take.

    Returns:
        tflops with tflops_lo, tflops_hi (median and range of the timings), iterations of each;
        error, RMS of the float32 result's deviation from the product of the same operands in
        float32, relative to it; products (operand types) and ``device``'s fields.
    """
    if kind not in KINDS:
        raise ConfigError("kind", kind, " | ".join(KINDS))
    casts = fp8.BF16 if kind == "bf16" else fp8.E4M3
    precise = accumulation == "precise"
    a, b = (
        jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) for seed in range(2)
    )

    if kind == "fp8":  # operands cast beforehand: the product alone is timed
        a, b = (fp8.cast(t, casts).values for t in (a, b))

    def operands(a, b):
        if kind == "fp8":
            return fp8.Operand(a), fp8.Operand(b)
        current = kind == "fp8_current"
        one, two = (fp8.cast(t, casts, fp8.amax(t) if current else None) for t in (a, b))
        return one, two

    def multiply(a, b, dtype):
        return fp8.dot(*operands(a, b), (1, 0), dtype, precise)

    timed = jax.jit(lambda a, b: multiply(a, b, jnp.bfloat16)).lower(a, b).compile()
    products = Program(timed.as_text() or "").products()
    durations, iterations = _timings(timed, (a, b), seconds, repeats)
    rates = sorted(2.0 * size**3 / np.asarray(durations) / 1e12)

    @jax.jit
    def deviation(a, b):
        exact = jnp.matmul(
            *(
                o.values.astype(jnp.float32) * (1.0 if o.unscale is None else o.unscale)
                for o in operands(a, b)
            ),
            precision="highest",
        )
        off = multiply(a, b, jnp.float32) - exact
        return jnp.sqrt(jnp.mean(off**2) / jnp.mean(exact**2))

    return {
        "tflops": float(np.median(rates)),
        "tflops_lo": float(rates[0]),
        "tflops_hi": float(rates[-1]),
        "iterations": iterations,
        "error": float(deviation(a, b)),
        "products": "; ".join(p.text() for p in products),
    } | device()


def copy(mib: int, seconds: float = 0.3, repeats: int = 5) -> dict[str, Any]:
    """Speed of reading and writing memory: a buffer of ``mib`` MiB, every element negated.

    Args:
        mib: size of the buffer, which is read once and written once.
        seconds, repeats: as for ``gemm``.

    Returns:
        tb_s with tb_s_lo, tb_s_hi (TB/s read and written; median and range of the timings),
        iterations of each, and ``device``'s fields.
    """
    x = jnp.ones(mib * 2**18, jnp.float32)
    timed = jax.jit(jnp.negative).lower(x).compile()  # a plain copy would be taken out
    durations, iterations = _timings(timed, (x,), seconds, repeats)
    rates = sorted(2.0 * x.nbytes / np.asarray(durations) / 1e12)
    return {
        "tb_s": float(np.median(rates)),
        "tb_s_lo": float(rates[0]),
        "tb_s_hi": float(rates[-1]),
        "iterations": iterations,
    } | device()


def _timings(
    function: Callable, arguments: tuple, seconds: float, repeats: int
) -> tuple[list[float], int]:
    """Seconds per call in ``repeats`` timings, each of as many calls as take ``seconds``."""

    def timed(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)  # the one before is let go: its memory is used again
        jax.block_until_ready(result)  # calls run in order on the device
        return (time.perf_counter() - start) / calls

    timed(1)
    calls = int(np.clip(seconds / max(timed(3), 1e-7), 3, 2000))
    return [timed(calls) for _ in range(repeats)], calls
