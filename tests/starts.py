"""Lanes at their first step, for tests of several recipes."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from umup import train


def start(runs):
    """Lanes, and states before the first step: from one program, whatever the recipe."""
    lanes = train.lanes_of(runs)
    model = replace(runs[0].model, recipe="plain", keep_bf16=(), dtype="float32")
    states = train.programs(replace(runs[0], model=model)).init(lanes)
    amax = train.abstract(runs[0]).amax
    amax = jax.tree.map(lambda a: jnp.zeros((len(runs), *a.shape), a.dtype), amax)
    return lanes, states._replace(amax=amax)
