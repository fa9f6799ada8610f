"""What the study ``schedules`` measures: plateaus with the decays that are forked from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from umup import data, train
from umup.lab import sweep
from umup.lab.curves import Text

from .design import of_shape

CURVE_POINTS = 60


class _Plateau:
    """Runs of one η and several seeds at the full rate, from which decays are forked.

    Args:
        shape: as ``Schedules.shape``. end: last step at which a fork begins.
    """

    def __init__(self, shape: Mapping[str, Any], scheme: str, log2_lr: float, seeds: int, end: int):
        text = data.load(shape["corpus"], shape["tokenizer"], seq_len=shape["seq_len"])
        self.tokens = sweep.device_tokens(text)
        self.held_out = jnp.asarray(text.val)
        self.design = of_shape(shape)
        optim = self.design.schedule("wsd", end + 1, decay_steps=1)
        self.runs = [
            self.design.trained(scheme, log2_lr, seed, optim, Text.of(text))
            for seed in range(seeds)
        ]
        self.lanes = train.lanes_of(self.runs)
        self.programs = train.programs(self.runs[0])
        self.states, self.done = self.programs.init(self.lanes), 0

    def to(self, step: int, chunk: int):
        """Train on to ``step`` and return the losses on the way, (seeds, steps)."""
        losses = [np.zeros((len(self.runs), 0), np.float32)]
        while self.done < step:
            n = min(chunk, step - self.done)
            self.states, new = self.programs.chunk(self.tokens, self.lanes, self.states, n)
            losses.append(np.asarray(new))
            self.done += n
        return np.concatenate(losses, axis=1)

    def decayed(self, schedule: str, steps: int, decay_steps: int):
        """States after a decay from here, and the losses on the way; the plateau stays as it is."""
        optim = self.design.schedule(schedule, steps, decay_steps)
        programs = train.programs(dataclasses.replace(self.runs[0], optim=optim))
        copy = jax.tree.map(jnp.copy, self.states)  # a chunk takes its states' buffers
        states, losses = programs.chunk(self.tokens, self.lanes, copy, decay_steps)
        return states, np.asarray(losses)

    def held_out_loss(self, states) -> list[float | None]:
        """Loss of each seed on the held-out text, nats per token; None where it diverged."""
        losses = self.programs.evaluate(self.held_out, states)
        limit = math.log(self.runs[0].model.vocab_size)
        return [float(x) if float(x) <= limit else None for x in losses]  # NaN is not <= either


def _thin(losses, first: int, points: int) -> dict[str, list]:
    """The curve as means over ``points`` stretches of steps, and over seeds."""
    parts = np.array_split(losses.mean(0, dtype=float), min(points, losses.shape[1]))
    ends = first + np.cumsum([len(part) for part in parts])
    means = [float(part.mean()) for part in parts]
    return {
        "curve_steps": ends.tolist(),
        "curve_loss": [m if math.isfinite(m) else None for m in means],
    }


def ladder(
    *, scheme: str, log2_lr: float, seeds: int, rungs: list[list], shape: dict[str, Any]
) -> dict[str, Any]:
    """One plateau per seed, and every rung forked from it.

    Args:
        scheme, log2_lr, seeds, shape: of all runs.
        rungs: (schedule, steps, decay_steps) of the forks; one begins at steps − decay_steps.

    Returns:
        rungs, each with schedule, steps, decay_steps, loss (held out, by seed, None where it
        diverged) and its curve; curve_steps and curve_loss of the plateau; trained: the steps that
        all of this took a seed.
    """
    todo = sorted((steps - decay, kind, steps, decay) for kind, steps, decay in rungs)
    plateau = _Plateau(shape, scheme, log2_lr, seeds, todo[-1][0])
    chunk = math.gcd(*(start for start, *_ in todo))  # one program for the whole plateau
    out, losses = [], []
    for start, kind, steps, decay in todo:
        losses.append(plateau.to(start, chunk))
        states, falling = plateau.decayed(kind, steps, decay)
        out.append(
            {
                "schedule": kind,
                "steps": steps,
                "decay_steps": decay,
                "loss": plateau.held_out_loss(states),
                **_thin(falling, start, 8),
            }
        )
    trained = plateau.done + sum(decay for *_, decay in todo)
    curve = _thin(np.concatenate(losses, axis=1), 0, CURVE_POINTS)
    return {"rungs": out, "trained": trained, **curve}


def fork(
    *, schedule: str, steps: int, decay_steps: int, seeds: int, shape: dict[str, Any]
) -> dict[str, float]:
    """A run forked from a plateau twice as long as it needs, against the same run unforked.

    Returns:
        losses, weights: largest differences between the two, of any training loss and of any
        weight at the end, at η = 1 under u-μP; 0 where they are bit for bit alike.
    """

    plateau = _Plateau(shape, "umup", 0.0, seeds, 2 * steps)
    start = steps - decay_steps
    losses = plateau.to(start, math.gcd(start, steps))
    states, falling = plateau.decayed(schedule, steps, decay_steps)
    optim = plateau.design.schedule(schedule, steps, decay_steps)
    whole = dataclasses.replace(plateau.runs[0], optim=optim)
    fresh = plateau.programs.init(plateau.lanes)
    unforked, wanted = train.programs(whole).chunk(plateau.tokens, plateau.lanes, fresh, steps)
    pairs = zip(jax.tree.leaves(states.params), jax.tree.leaves(unforked.params), strict=True)
    apart = [float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs]
    got = np.concatenate([losses, falling], axis=1)
    return {"losses": float(np.abs(got - np.asarray(wanted)).max()), "weights": max(apart)}


MEASURES = {"ladder": ladder, "fork": fork}
