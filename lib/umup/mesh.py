"""The device mesh, and the one table of what is split over which of its axes.

Arrays name their logical axes (weights in their metadata), the table maps these to mesh axes, and
XLA's partitioner does the rest. Activations are constrained at the beginning and end of a block
and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from umup.config import MeshConfig, ModelConfig, OptimConfig
from umup.errors import ConfigError

AXES = ("data", "fsdp", "tensor")

TABLE: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "replica": "data",
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
}
"""Logical axis → mesh axis or axes; an axis that is not listed is whole on every device. ``embed``
is a weight's axis of size d_model: activations keep their features whole and split their rows.
``replica`` is the axis of rows whose features are split as the weights' are: the embedding's
output."""


def make(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh; by default over all devices of all processes.

    Raises:
        ConfigError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if config.devices != len(devices):
        allowed = f"axes whose product is {len(devices)}, the number of devices"
        raise ConfigError("mesh", str(config), f"{allowed}, such as {len(devices)}×1×1")
    shape = (config.data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 3, devices=devices)


def check(config: MeshConfig, model: ModelConfig, optim: OptimConfig) -> None:
    """Refuse a mesh that cannot split the model or the batch evenly.

    Raises:
        ConfigError: it names the axis, what it does not divide, and the largest size that would.
    """
    rows = config.data * config.fsdp
    part = optim.batch_size // optim.accumulate
    if part % rows:
        what = "batch_size" if optim.accumulate == 1 else "batch_size / accumulate"
        field = "mesh.data" if config.fsdp == 1 else "mesh.data × mesh.fsdp"
        raise ConfigError(field, rows, f"a divisor of {what} = {part}, such as {_fits(rows, part)}")
    for axis, size, fields in (
        ("fsdp", config.fsdp, ("d_model",)),
        ("tensor", config.tensor, ("n_heads", "d_ff", "vocab_size")),
    ):
        for field in fields:
            whole = getattr(model, field)
            if whole % size:
                allowed = f"a divisor of {field} = {whole}, such as {_fits(size, whole)}"
                raise ConfigError(f"mesh.{axis}", size, allowed)


def _fits(wanted: int, whole: int) -> int:
    """The largest divisor of ``whole`` up to ``wanted``."""
    low = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    return max(n for n in (*low, *(whole // n for n in low)) if n <= wanted)


def spec(*axes: str | None) -> PartitionSpec:
    """The partition of an array with these logical axes."""
    return PartitionSpec(*(TABLE.get(axis) if axis else None for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x, split as its logical axes say; x itself where no mesh is set (``jax.set_mesh``)."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))


def splits_columns() -> bool:
    """Whether a weight's columns lie on several devices: the current mesh has a tensor axis."""
    return jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1


def shardings(mesh: Mesh, tree: Any) -> Any:
    """A ``NamedSharding`` for every leaf of a tree of states, arrays or shapes.

    Variables with ``axes`` in their metadata, and optimizer moments that mirror them, are split;
    a stacked weight has its layers in front, whole. Everything else is on every device.
    """

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        value = leaf.get_value()
        axes = leaf.get_metadata().get("axes", ())
        front = (None,) * (len(value.shape) - len(axes))
        split = spec(*front, *axes) if len(axes) <= len(value.shape) else PartitionSpec()
        return leaf.replace(NamedSharding(mesh, split))

    return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
