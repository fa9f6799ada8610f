"""What the study ``own_model`` measures: trained losses over η and seeds, and coordinate checks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from umup.config import OptimConfig
from umup.coord import Coord, coord_check
from umup.errors import ConfigError
from umup.optim import mark
from umup.rules import Parametrization

from . import models, plain
from .glyphs import stream

LAST = 20  # steps over which the training loss is averaged
HELD_OUT = 2**31 - 1  # the seed of the images that no model is trained on


class Setup(NamedTuple):
    """A model at a width, ready to be made: the owner's own under ``sp``, else with the rules."""

    model: str
    scheme: str
    width: int
    base_width: int
    wrong: str = ""

    def build(self, key: Array) -> nnx.Module:
        """The model drawn from ``key``; the parameter ``wrong`` is marked as hidden weights are."""
        rngs = nnx.Rngs(params=key)
        if self.scheme == "sp":
            return {"mlp": plain.MLP, "vit": plain.ViT}[self.model](self.width, rngs=rngs)
        made = {"mlp": models.MLP, "vit": models.ViT}[self.model](
            self.width, self.numbers(), rngs=rngs
        )
        if self.wrong:
            found = {".".join(map(str, path)): part for path, part in nnx.iter_graph(made)}
            params = {name: p for name, p in found.items() if isinstance(p, nnx.Param)}
            if self.wrong not in params:
                raise ConfigError("wrong", self.wrong, " | ".join(params))
            mark(params[self.wrong], "hidden", replace=True)
        return made

    def numbers(self) -> Parametrization:
        """The numbers of the scheme."""
        return Parametrization.of_width(
            self.scheme, self.width, self.base_width, base_d_head=self.base_width // models.HEADS
        )

    def optimizer(self, model: nnx.Module, config: OptimConfig, eta) -> Any:
        """The owner's Adam under ``sp``, else with the factor of every parameter."""
        if self.scheme == "sp":
            return plain.optimizer(model, config, eta)
        return models.optimizer(model, self.numbers(), config, eta)


def cross_entropy(logits: Array, letters: Array) -> Array:
    """Mean cross-entropy, nats per image."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, letters).mean()


def curve(
    *,
    model: str,
    scheme: str,
    wrong: str,
    width: int,
    base_width: int,
    steps: int,
    batch_size: int,
    warmup_ratio: float,
    held_out: int,
    near: Sequence[float],
    far: Sequence[float],
    seeds: int,
) -> dict[str, list]:
    """Train a model at every η and seed, one after another in one compiled program.

    Every seed has its own draw of the weights and its own stream of images; batches never repeat.

    Args:
        model: ``mlp`` or ``vit``. scheme: ``sp``, or one that scales the models as μP does.
        wrong: path of a parameter that is marked as hidden though it is not; empty for none.
        width, base_width: of the model, and where μP equals SP.
        steps, batch_size, warmup_ratio: of training: linear warm-up, then cosine to 10 %.
        held_out: images for the loss and accuracy at the end.
        near, far: log2 of the learning rates that have all seeds, and of those that have one.
        seeds: their number.

    Returns:
        Lists over η and seed: log2_eta, seed, train (mean loss of the last steps,
        nats), loss (held out, nats) and accuracy; None where it is not finite.
    """
    setup = Setup(model, scheme, width, base_width, wrong)
    config = OptimConfig(
        steps=steps, batch_size=batch_size, warmup_steps=round(steps * warmup_ratio)
    )

    def lane(eta: Array, seed: Array, batches: Any, held: Any) -> tuple[Array, Array, Array]:
        made = setup.build(_keys(seed)[0])
        graph, params = nnx.split(made)
        adam = setup.optimizer(made, config, eta)

        def loss(params, images: Array, letters: Array) -> tuple[Array, Array]:
            logits = nnx.merge(graph, params)(images)
            return cross_entropy(logits, letters), jnp.mean(logits.argmax(-1) == letters)

        def step(carry, at: Array):
            params, state = carry
            now = (part[seed, at] for part in batches)
            value, gradient = jax.value_and_grad(loss, has_aux=True)(params, *now)
            updates, state = adam.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value[0]

        (params, _), losses = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps))
        return losses[-LAST:].mean(), *loss(params, *held)

    drawn = [stream(_keys(seed)[1], steps, batch_size) for seed in range(seeds)]
    batches = tuple(jnp.stack(parts) for parts in zip(*drawn))
    held = tuple(part[0] for part in stream(jax.random.key(HELD_OUT), 1, held_out))
    lanes = [(x, seed) for x in near for seed in range(seeds)] + [(x, 0) for x in far]
    etas, of_seed = jnp.asarray([2.0**x for x, _ in lanes]), jnp.asarray([s for _, s in lanes])
    run = jax.jit(lambda given, *data: jax.lax.map(lambda one: lane(*one, *data), given))
    train, loss, accuracy = (_plain(values) for values in run((etas, of_seed), batches, held))
    # A model that diverged guesses one letter: its accuracy is no result.
    accuracy = [None if loss is None else a for a, loss in zip(accuracy, loss, strict=True)]
    return {
        "log2_eta": [x for x, _ in lanes],
        "seed": [s for _, s in lanes],
        "train": train,
        "loss": loss,
        "accuracy": accuracy,
    }


def _keys(seed: Any) -> Array:
    """The keys of a seed's weights and of its images."""
    return jax.random.split(jax.random.key(seed))


def _plain(values: Any) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in np.asarray(values)]


def coord(
    *,
    model: str,
    scheme: str,
    wrong: str,
    widths: Sequence[int],
    base_width: int,
    batch_size: int,
    log2_etas: Sequence[float],
    seeds: int,
    look_at: Sequence[int],
) -> dict[str, list]:
    """The coordinate check of a model over its widths, at constant η.

    Args:
        look_at: numbers of updates after which to look. Others: as in ``curve``.

    Returns:
        The columns of ``umup.slopes.COLUMNS`` as lists; a value that is not finite is None.
    """
    config = OptimConfig(steps=max(look_at), warmup_steps=0, final_lr_ratio=1.0)

    @functools.cache  # one object a width and η: compiled once for all seeds
    def programs(width: int, eta: float) -> tuple[Callable, Callable, Any, float]:
        setup = Setup(model, scheme, width, base_width, wrong)
        made = nnx.eval_shape(lambda: setup.build(jax.random.key(0)))
        draw = jax.jit(lambda key: nnx.state(setup.build(key), nnx.Param))
        adam = setup.optimizer(made, config, eta)
        return draw, checked_loss(nnx.graphdef(made)), adam, getattr(made, "scale", 1.0)

    def check(width: int, seed: int, eta: float) -> Coord:
        weights, images = _keys(seed)
        draw, loss, adam, multiplier = programs(width, eta)
        data = stream(images, max(look_at), batch_size)
        return Coord(
            draw(weights),
            loss,
            adam,
            lambda step: tuple(part[step] for part in data),
            multipliers={"readout.kernel": multiplier},
        )

    etas = [2.0**x for x in log2_etas]
    found = coord_check(check, widths=widths, etas=etas, seeds=range(seeds), steps=look_at)
    table = found.table.assign(shape=found.table["shape"].map(list))
    columns = {name: table[name].tolist() for name in table}
    return columns | {"value": _plain(table["value"])}


def checked_loss(graph: nnx.GraphDef) -> Callable[[Any, Any], tuple[Array, dict[str, Array]]]:
    """The loss as ``coord_check`` wants it, with what every layer and method of a model gives."""

    def loss(params, images_and_letters):
        images, letters = images_and_letters
        model = nnx.merge(graph, params)
        watched = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
        logits, seen = watched(images)
        activations = {
            ".".join(map(str, path)).removesuffix(".__call__"): out.get_value()[0]
            for path, out in nnx.to_flat_state(seen)
            if len(path) > 1  # the model's own output is its last layer's
        }
        return cross_entropy(logits, letters), activations

    return loss


MEASURES = {"curve": curve, "coord": coord}
