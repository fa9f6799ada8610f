"""Reads ``tests/golden/unit.json`` and ``unit.npz``: numbers of the reference package."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "golden"
CASES = json.loads((HERE / "unit.json").read_text(encoding="utf-8"))
STORE = dict(np.load(HERE / "unit.npz"))


def array(at) -> np.ndarray:
    """The array at [kind, offset, shape]."""
    kind, offset, shape = at
    flat = STORE["ints" if kind == "i" else "floats"]
    return flat[offset : offset + math.prod(shape)].reshape(shape)


def sample(x) -> np.ndarray:
    """At most 128 elements of an array, evenly spread: what is stored of outputs and gradients."""
    flat = np.asarray(x).ravel()
    return flat[:: max(1, flat.size // 64) | 1]


def by_name(case: str, part: str) -> dict[str, np.ndarray]:
    """The arrays of a decoder's weights by name, each (fan_out, fan_in), from one flat array."""
    flat, shapes, out, start = array(CASES[case]["arrays"][part]), CASES[case]["shapes"], {}, 0
    for name, shape in shapes.items():
        out[name] = flat[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return out
