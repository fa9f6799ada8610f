"""FP8: formats, the saturating cast, recipes, and the product of two cast operands.

A linear layer has three products (y, dx, dW). Each operand, input, weight and output-gradient, is
cast once and used twice. The products take float8 operands directly: on Hopper XLA makes them FP8
GEMMs, on a CPU they equal the float32 product of the cast values bit for bit.

What a cast does (the book's Theory, section 7): finite values round to nearest, ties to even;
magnitudes beyond the format's largest, infinity too, become the largest; below half the smallest
subnormal they become zero; NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from umup.config import RECIPES
from umup.errors import ConfigError

HISTORY = 16  # steps whose largest magnitudes delayed scaling remembers


@dataclass(frozen=True)
class Format:
    """A float format that operands are cast to.

    ``largest`` and ``smallest`` are the largest finite and the smallest subnormal magnitude.
    """

    name: str
    dtype: jnp.dtype
    largest: float
    smallest: float


E4M3 = Format("E4M3", jnp.dtype(jnp.float8_e4m3fn), 448.0, 2.0**-9)
E5M2 = Format("E5M2", jnp.dtype(jnp.float8_e5m2), 57344.0, 2.0**-16)
_INFO = jnp.finfo(jnp.bfloat16)
BF16 = Format("BF16", _INFO.dtype, float(_INFO.max), float(_INFO.smallest_subnormal))


class Casts(NamedTuple):
    """How one linear casts its operands: static, part of the compiled program.

    Attributes:
        x, w, g: formats of input, weight and output-gradient; None leaves the model's dtype.
        scaling: ``none`` casts as it is; ``current`` scales each operand by its own largest
            magnitude, ``delayed`` by the largest of the last ``HISTORY`` steps.
        precise: accumulate in full precision (Hopper's fast accumulation is the default).
    """

    x: Format | None = None
    w: Format | None = None
    g: Format | None = None
    scaling: str = "none"
    precise: bool = False


PLAIN = Casts()
_BF16 = Casts(BF16, BF16, BF16)
_WIDE = ("attn.out", "mlp.down")  # their inputs grow in training (u-μP paper, Appendix G)


def _recipe(name: str, linear: str) -> Casts:
    wide = linear in _WIDE
    match name:
        case "plain":
            return PLAIN
        case "bf16":
            return _BF16
        case "fp8_seed":
            return Casts(E5M2 if wide else E4M3, E4M3, E4M3)
        case "fp8_e5m2_grad":
            return _BF16 if wide else Casts(E4M3, E4M3, E5M2)
        case _:
            return Casts(E4M3, E4M3, E5M2, scaling=name.removeprefix("fp8_"))


def casts(recipe: str, linear: str, keep_bf16: Sequence[str] = (), precise: bool = False) -> Casts:
    """The casts of one linear under a recipe.

    Args:
        recipe: one of ``config.RECIPES``.
        linear: ``readout`` or ``blocks.N.NAME``, NAME of ``config.BLOCK_LINEARS``.
        keep_bf16: linears to leave in bfloat16: ``blocks.3.mlp.down``, ``mlp.down`` for that of
            every block, or ``readout``.
        precise: see ``Casts``.

    Raises:
        ConfigError: unknown recipe.
    """
    if recipe not in RECIPES:
        raise ConfigError("recipe", recipe, " | ".join(RECIPES))
    short = linear.split(".", 2)[2] if linear.startswith("blocks.") else linear
    if recipe != "plain" and (linear in keep_bf16 or short in keep_bf16):
        return _BF16
    return _recipe(recipe, short)._replace(precise=precise)


class Operand(NamedTuple):
    """A cast tensor and the factor to multiply its products by (None: 1)."""

    values: Array
    unscale: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.values.shape


def saturate(x: Array, fmt: Format) -> Array:
    """x in ``fmt``, magnitudes beyond its largest clipped to it; NaN stays NaN. Any shape."""
    if fmt is BF16:
        return x.astype(fmt.dtype)
    # In float32: on a CPU, bfloat16 to E5M2 goes through float16, which not every CPU converts.
    clipped = jnp.clip(x.astype(jnp.float32), -fmt.largest, fmt.largest)
    return clipped.astype(fmt.dtype)


def amax(x: Array) -> Array:
    """The largest magnitude of x, a float32 scalar."""
    return jnp.max(jnp.abs(x)).astype(jnp.float32)


def cast(x: Array, fmt: Format | None, largest: Array | None = None) -> Operand:
    """x as an operand in ``fmt``.

    Args:
        x: any shape.
        fmt: None returns x itself.
        largest: a scalar, the magnitude that is scaled to the format's largest; None casts x
            unscaled. So does zero or a value that is not finite, as before the first step.
    """
    if fmt is None:
        return Operand(x)
    if largest is None or fmt is BF16:
        return Operand(saturate(x, fmt))
    usable = jnp.isfinite(largest) & (largest > 0)
    scale = jnp.where(usable, fmt.largest / jnp.where(usable, largest, 1.0), 1.0)
    return Operand(saturate(x.astype(jnp.float32) * scale, fmt), 1.0 / scale)


def dot(a: Operand, b: Operand, contract: tuple[int, int], dtype, precise: bool = False) -> Array:
    """Product of two matrices over ``contract`` = (axis of a, axis of b), in ``dtype``.

    Each operand has one contracting and one other dimension, as XLA requires for an FP8 GEMM, along
    with dimensions that are multiples of 16 and at most one operand in E5M2.
    """
    same = a.values.dtype == b.values.dtype == dtype
    y = lax.dot_general(
        a.values,
        b.values,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if precise else None,
        preferred_element_type=None if same else dtype,
    )
    for unscale in (a.unscale, b.unscale):
        if unscale is not None:
            y = y * unscale.astype(dtype)
    return y


def roll(history: Array, now: Array) -> Array:
    """The history (operands, ``HISTORY``) with ``now`` (operands,) in front, the oldest dropped."""
    return jnp.concatenate([now[:, None], history[:, :-1]], axis=1)


def remembered(history: Array) -> Array:
    """The largest magnitude of each operand over its history: (operands,)."""
    return jnp.max(history, axis=1)


def on_hopper() -> bool:
    """Whether the default device multiplies FP8 natively (compute capability 8.9 or above)."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    return device.platform == "gpu" and capability is not None and float(capability) >= 8.9
