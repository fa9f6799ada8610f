"""The coordinate check, for anyone's model: which weight or activation breaks which rule of width.

``coord_check`` trains a model at several widths, watches how sizes and changes grow with width,
and names what should not grow or shrink but does; the rules are in ``umup.slopes``. One step at a
small learning rate is not enough: the check can pass there and transfer still fail. Measure after
many steps, and at a learning rate as large as training tolerates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from jax import Array

from umup.errors import ConfigError, memory_for
from umup.slopes import COLUMNS, CoordCheck


class Coord(NamedTuple):
    """One model at one width and seed, as ``coord_check`` asks for it.

    Attributes:
        params: pytree of arrays (nested dicts, ``nnx.State``). Parameters of a Flax model that
            ``umup.optim.mark`` has marked have the fans that it found. The last two axes of any
            other leaf are (fan_in, fan_out), y = x W; earlier axes stack matrices, such as layers
            or taps of a convolution; a vector counts as (1, n). A leaf's name is its path:
            ``mlp.down.w``.
        loss: (params, batch) → (loss, activations): the loss a scalar, activations a mapping from
            name to array, with the same names and numbers of axes at every width. A loss function
            or optimizer that several models share as one object is compiled once.
        optimizer: optax transformation; ``update(gradients, state, params)`` is called.
        batch: step (from 0) → the batch trained on, of any type.
        multipliers: name of a weight → the factor by which its product is multiplied in the
            forward pass; 1 for those not named.
        probe: the batch on which activations are watched; by default that of step 0.
    """

    params: Any
    loss: Callable[[Any, Any], tuple[Array, Mapping[str, Array]]]
    optimizer: optax.GradientTransformation
    batch: Callable[[int], Any]
    multipliers: Mapping[str, float] = {}
    probe: Any = None


def coord_check(
    model_fn: Callable[[int, int, float], Coord],
    *,
    widths: Sequence[int],
    etas: Sequence[float],
    seeds: Sequence[int] = (0, 1, 2),
    steps: Sequence[int] = (1, 10, 100),
    tolerance: float = 0.2,
) -> CoordCheck:
    """Check that sizes and changes do not depend on width (the book's Theory, section 1).

    Args:
        model_fn: (width, seed, eta) → the model at initialization with its optimizer.
        widths: at least three; a factor of 8 or more between the ends tells slopes apart.
        etas: learning rates, a small one and one as large as training tolerates.
        seeds: of the random draws. steps: numbers of updates after which to measure.
        tolerance: the largest slope, up or down, that counts as zero. Finite widths bend the lines
            somewhat; a wrong rule shows as a slope of ½ or more.

    Returns:
        Measurements, slopes with 95 % intervals, and ``verdict``, which prints as text.

    Raises:
        ConfigError: an argument, or what ``model_fn`` returned, is not as described.
        OutOfMemoryError: a model of the width that it names does not fit.

    An MLP in plain JAX. Under the standard parametrization with Adam the rules break at the
    hidden weight and the readout; with μP's three factors they hold:

    >>> import functools, jax, jax.numpy as jnp, optax
    >>> def loss(params, batch):
    ...     (x, y), multiplier = batch
    ...     h1 = jax.nn.relu(x @ params["first"])
    ...     h2 = jax.nn.relu(h1 @ params["hidden"])
    ...     out = multiplier * (h2 @ params["readout"])
    ...     return jnp.mean((out - y) ** 2), {"h1": h1, "h2": h2, "out": out}
    >>> @functools.cache  # one object per width: compiled once for all seeds
    ... def adam(eta, hidden):
    ...     lr = {"first": eta, "hidden": eta * hidden, "readout": eta}
    ...     scaled = optax.stateless(lambda u, _: {name: -lr[name] * u[name] for name in u})
    ...     return optax.chain(optax.scale_by_adam(), scaled)
    >>> def mlp(width, seed, eta, mup):
    ...     k = jax.random.split(jax.random.key(seed), 5)
    ...     shapes = {"first": (8, width), "hidden": (width, width), "readout": (width, 4)}
    ...     fan = {"first": 8, "hidden": width, "readout": 8 if mup else width}
    ...     params = {n: jax.random.normal(i, shapes[n]) * fan[n] ** -0.5 for n, i in zip(fan, k)}
    ...     small = 8 / width if mup else 1.0
    ...     data = jax.random.normal(k[3], (64, 8)), jax.random.normal(k[4], (64, 4))
    ...     return Coord(params, loss, adam(eta, small), lambda step: (data, small),
    ...                  multipliers={"readout": small})
    >>> how = dict(widths=(32, 64, 128), etas=(2**-8,), seeds=(0, 1), steps=(1, 5))
    >>> sp = coord_check(lambda w, s, eta: mlp(w, s, eta, mup=False), **how)
    >>> sp.passed, sorted({f.tensor for f in sp.broken if f.kind == "weight"})
    (False, ['hidden', 'readout'])
    >>> coord_check(lambda w, s, eta: mlp(w, s, eta, mup=True), **how).passed
    True
    """
    _check_arguments(model_fn, widths, etas, seeds, steps, tolerance)
    frames = []
    for width in sorted(set(widths)):
        for eta in etas:
            for seed in seeds:
                with memory_for("widths", width, "smaller widths, or a smaller batch"):
                    rows = observe(model_fn(width, seed, eta), steps)
                frames.append(rows.assign(width=width, seed=seed, eta=float(eta)))
    table = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    _check_shapes(table)
    return CoordCheck.of(table, tolerance)


def observe(model: Coord, steps: Sequence[int]) -> pd.DataFrame:
    """Train one model and measure it before the first step and after each of ``steps``.

    Returns:
        Columns step, kind, tensor, quantity, value and shape, see ``umup.slopes``. After the
        first measurement that is not finite the rest is filled with NaN, not trained.

    Raises:
        ConfigError: ``model`` is not as ``Coord`` describes.
    """
    _check_model(model)
    multipliers = _multipliers(model)
    probe = model.batch(0) if model.probe is None else model.probe
    params, opt = model.params, model.optimizer.init(model.params)
    start, activations = params, None
    rows: list[dict[str, Any]] = []
    done, lost = 0, False
    for step in (0, *sorted(set(steps))):
        for i in range(done, 0 if lost else step):
            params, opt = _step(model.loss, model.optimizer.update, params, opt, model.batch(i))
        done = step
        loss, now = _activations(model.loss, params, probe)
        activations = now if activations is None else activations
        seen = [_row("loss", "loss", "size", loss, ())]
        changed = jax.device_get(_rms_all(now, activations))
        for name, (size, change) in changed.items():
            seen.append(_row("activation", name, "size", size, now[name].shape))
            if step:
                seen.append(_row("activation", name, "change", change, now[name].shape))
        measured = _norms_all(params, start, multipliers)
        for name, (shape, values) in _weight_shapes(params, measured).items():
            for quantity, value in values.items():
                if step or quantity.startswith("norm"):
                    seen.append(_row("weight", name, quantity, value, shape))
        lost = lost or not all(math.isfinite(row["value"]) for row in seen)
        rows += [
            row | {"step": step} | ({"value": math.nan} if lost and step else {}) for row in seen
        ]
    return pd.DataFrame(rows)


def _row(kind: str, tensor: str, quantity: str, value: Any, shape: tuple) -> dict[str, Any]:
    return {
        "kind": kind,
        "tensor": tensor,
        "quantity": quantity,
        "value": float(value),
        "shape": tuple(int(n) for n in shape),
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(loss, update, params, opt, batch):
    grads = jax.grad(loss, has_aux=True)(params, batch)[0]
    updates, opt = update(grads, opt, params)
    return optax.apply_updates(params, updates), opt


@functools.partial(jax.jit, static_argnums=0)
def _activations(loss, params, batch):
    value, activations = loss(params, batch)
    return value, dict(activations)


@jax.jit
def _rms_all(now, before):
    def rms(x):
        return jnp.sqrt(jnp.mean(jnp.square(x)))

    now, before = (jax.tree.map(lambda x: x.astype(jnp.float32), seen) for seen in (now, before))
    return {name: (rms(now[name]), rms(now[name] - before[name])) for name in now}


def _norms_all(params, start, multipliers) -> dict[str, dict[str, float]]:
    """Name → the weight's norms relative to √(fan_out/fan_in), of A·W and of A·(W − W_0)."""
    out: dict[str, dict[str, float]] = {}
    for name, grams in jax.device_get(_grams(params, start, multipliers)).items():
        out[name] = {}
        for quantity, gram in grams.items():
            out[name][quantity], out[name][f"{quantity}_frobenius"] = _norms(gram)
    return out


@jax.jit
def _grams(params, start, multipliers):
    """Name → the Gram matrices of A·W and of A·(W − W_0)."""
    out = {}
    for (path, w), (_, w0) in zip(_leaves(params), _leaves(start)):
        name, w, w0 = _name(path), w.astype(jnp.float32), w0.astype(jnp.float32)
        scale = multipliers[name]
        out[name] = {"norm": _gram(scale * w), "update": _gram(scale * (w - w0))}
    return out


def _gram(w: Array) -> Array:
    """Gram matrices (stacked, n, n), n the smaller fan, of W over √(fan_out/fan_in)."""
    w = w.reshape(-1, *_fans(w.shape))
    tall = w.shape[1] > w.shape[2]
    gram = jnp.einsum("nij,nik->njk" if tall else "nij,nkj->nik", w, w)
    return gram * (w.shape[1] / w.shape[2])


def _norms(gram: np.ndarray) -> tuple[float, float]:
    """Spectral and Frobenius norm from Gram matrices; the RMS over stacked matrices.

    The largest eigenvalue of a Gram matrix is far cheaper than singular values. NumPy finds it:
    with several LAPACK calls in one program, XLA's CPU backend (JAX 0.10.2) may wait for ever.
    """
    if not np.isfinite(gram).all():
        return math.nan, math.nan
    largest = np.maximum(np.linalg.eigvalsh(gram)[:, -1], 0.0)
    squared = np.trace(gram, axis1=1, axis2=2)
    return math.sqrt(np.mean(largest)), math.sqrt(np.mean(squared))


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, int(np.prod(shape))) if len(shape) < 2 else (shape[-2], shape[-1])


def _leaves(params: Any) -> list[tuple[tuple, Any]]:
    """Paths and weights; those with marks (``umup.optim.mark``) as matrices of their fans."""
    found = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_variable)[0]
    return [(path, _merged(leaf) if _is_variable(leaf) else leaf) for path, leaf in found]


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _merged(variable: nnx.Variable) -> Any:
    """A weight as matrices (stacked, fan_in, fan_out) with heads, taps and parts in one matrix."""
    w, meta = variable.get_value(), variable.get_metadata()
    if "fan_in" not in meta or "fan_out" not in meta:
        return w
    size = meta["fan_in"] * meta["fan_out"]
    if all(math.prod(w.shape[axis:]) != size for axis in range(w.ndim + 1)):
        todo = f"axes that stack layers before those of fan-in and fan-out, {size} elements"
        raise ConfigError("params", w.shape, todo)
    return w.reshape(-1, meta["fan_in"], meta["fan_out"])


def _name(path: tuple) -> str:
    """``a.b.0`` from a path; the ``value`` in which nnx variables end is left out."""
    parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path]
    if parts and isinstance(path[-1], jax.tree_util.GetAttrKey) and parts[-1] == "value":
        parts.pop()
    return ".".join(parts) or "params"


def _weight_shapes(params: Any, measured: Mapping[str, Any]) -> dict[str, tuple]:
    return {_name(path): (_fans(w.shape), measured[_name(path)]) for path, w in _leaves(params)}


def _multipliers(model: Coord) -> dict[str, float]:
    names = [_name(path) for path, _ in _leaves(model.params)]
    for name, value in model.multipliers.items():
        if name not in names:
            raise ConfigError(f"multipliers[{name!r}]", value, f"names of {', '.join(names)}")
    return {name: model.multipliers.get(name, 1.0) for name in names}


def _check_arguments(model_fn, widths, etas, seeds, steps, tolerance) -> None:
    if not callable(model_fn):
        raise ConfigError("model_fn", model_fn, "a function (width, seed, eta) → Coord")

    def whole(name: str, values: Sequence[int], lowest: int, count: int) -> None:
        good = [isinstance(v, int | np.integer) and v >= lowest for v in values]
        if len(set(values)) < count or not all(good):
            raise ConfigError(name, values, f"at least {count} different integers >= {lowest}")

    whole("widths", widths, 1, 3)
    whole("seeds", seeds, 0, 1)
    whole("steps", steps, 1, 1)
    if not len(etas) or not all(math.isfinite(eta) and eta > 0 for eta in etas):
        raise ConfigError("etas", etas, "learning rates > 0, at least one")
    if not 0 < tolerance < 0.5:
        raise ConfigError("tolerance", tolerance, "a slope in (0, 0.5): wrong rules show as 0.5")


def _check_model(model: Any) -> None:
    if not isinstance(model, Coord):
        raise ConfigError("model_fn", type(model).__name__, "a function that returns a Coord")
    leaves = _leaves(model.params)
    if not leaves or not all(hasattr(w, "shape") and hasattr(w, "dtype") for _, w in leaves):
        raise ConfigError("params", type(model.params).__name__, "a pytree of arrays")
    if not hasattr(model.optimizer, "init") or not hasattr(model.optimizer, "update"):
        raise ConfigError("optimizer", model.optimizer, "an optax transformation")
    for field in ("loss", "batch"):
        if not callable(getattr(model, field)):
            raise ConfigError(field, getattr(model, field), "a function")
    probe = model.batch(0) if model.probe is None else model.probe
    made = jax.eval_shape(model.loss, model.params, probe)
    good = isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)
    if not good or getattr(made[0], "shape", None) != () or not made[1]:
        todo = "(scalar loss, mapping of activation names to arrays)"
        raise ConfigError("loss", jax.tree.map(lambda a: a.shape, made), todo)


def _check_shapes(table: pd.DataFrame) -> None:
    """Check that every width has the same tensors and that some weight grows with width."""
    named = table.groupby("width").agg({"tensor": set})["tensor"]
    for width, names in named.items():
        if odd := names ^ named.iloc[0]:
            received = f"{sorted(odd)[0]!r} at width {width} or not"
            allowed = "the same weights and activations at every width"
            raise ConfigError("model_fn", received, allowed)
    weights = table[table["kind"] == "weight"]
    if weights.groupby("tensor")["shape"].nunique().max() < 2:
        raise ConfigError("model_fn", "equal shapes at every width", "weights that grow with width")
