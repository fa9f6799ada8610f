"""The two primitives of unit scaling: a factor in one direction and the identity in the other.

Source: Unit Scaling (arXiv 2303.11257), §3. Factors are traced operands, never constants of the
compiled program, and receive no gradient.
"""

from __future__ import annotations

import jax
from jax import Array


@jax.custom_vjp
def scale_fwd(x: Array, scale) -> Array:
    """``scale · x`` forward; the cotangent passes unchanged. Any shape; scalar ``scale``."""
    return x * jax.numpy.asarray(scale, x.dtype)


scale_fwd.defvjp(lambda x, scale: (scale_fwd(x, scale), None), lambda _, g: (g, None))


@jax.custom_vjp
def scale_bwd(x: Array, scale) -> Array:
    """``x`` forward; the cotangent is multiplied by ``scale``. Any shape; scalar ``scale``."""
    return x


scale_bwd.defvjp(
    lambda x, scale: (x, scale), lambda scale, g: (g * jax.numpy.asarray(scale, g.dtype), None)
)
