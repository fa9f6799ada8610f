"""The models of ``plain`` with the rules of width."""

import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from umup.config import OptimConfig
from umup.optim import adamw, lr_factors, mark
from umup.rules import Parametrization

from .glyphs import CLASSES, SIDE

PATCH, HEADS, BLOCKS = 4, 4, 2


class MLP(nnx.Module):
    """Two hidden layers and a norm: images (batch, SIDE, SIDE) → logits (batch, CLASSES)."""

    def __init__(self, width: int, numbers: Parametrization, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(SIDE**2, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        self.readout, self.scale = readout(width, numbers, rngs=rngs)
        mark(self.first, "input")
        mark(self.norm, "input")
        mark(self.hidden, "hidden")

    def __call__(self, images: Array) -> Array:
        h = nnx.relu(self.first(images.reshape(len(images), -1)))
        h = nnx.relu(self.hidden(self.norm(h)))
        return self.readout(self.scale * h)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward: (batch, tokens, width) → the same."""

    def __init__(self, width: int, numbers: Parametrization, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.logit, _ = numbers.attention(width // HEADS, seq_len=1)
        mark(self, "hidden")

    def attend(self, x: Array) -> Array:
        """Attention of all tokens to all."""
        qkv = self.qkv(x).reshape(*x.shape[:2], HEADS, -1)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        weights = nnx.softmax(self.logit * jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))

    def __call__(self, x: Array) -> Array:
        x = x + self.attend(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class ViT(nnx.Module):
    """A small vision transformer with a class token: images → logits, as ``MLP``."""

    def __init__(self, width: int, numbers: Parametrization, *, rngs: nnx.Rngs):
        self.patch = nnx.Linear(PATCH**2, width, rngs=rngs)
        tokens = 1 + (SIDE // PATCH) ** 2
        small = nnx.initializers.normal(0.02)
        self.token = nnx.Param(small(rngs.params(), (width,)))
        self.position = nnx.Param(small(rngs.params(), (tokens, width)))
        self.blocks = nnx.List([Block(width, numbers, rngs=rngs) for _ in range(BLOCKS)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.readout, self.scale = readout(width, numbers, rngs=rngs)
        for part in (self.patch, self.token, self.position, self.norm):
            mark(part, "input")

    def __call__(self, images: Array) -> Array:
        n, side = len(images), SIDE // PATCH
        patches = images.reshape(n, side, PATCH, side, PATCH).swapaxes(2, 3)
        x = self.patch(patches.reshape(n, side**2, PATCH**2))
        token = jnp.broadcast_to(self.token[...], (n, 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.readout(self.scale * self.norm(x[:, 0]))


def readout(width: int, numbers: Parametrization, *, rngs: nnx.Rngs) -> tuple[nnx.Linear, float]:
    """The readout, drawn as ``nnx.Linear`` draws at the base width, and its multiplier."""
    output = numbers.weight("output", width, CLASSES)
    variance = width * output.init_std**2  # relative to the 1/fan_in of nnx.Linear
    init = nnx.initializers.variance_scaling(variance, "fan_in", "truncated_normal")
    layer = nnx.Linear(width, CLASSES, kernel_init=init, rngs=rngs)
    mark(layer, "output")
    return layer, output.forward


def optimizer(
    model: nnx.Module, numbers: Parametrization, config: OptimConfig, eta
) -> optax.GradientTransformation:
    """Adam at η times the schedule times the factor of every parameter."""
    factors = lr_factors(nnx.state(model, nnx.Param), numbers)
    return adamw(config, factors, {"eta": eta, "weight_decay": 0.0})
