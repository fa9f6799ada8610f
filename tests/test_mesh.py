"""The mesh: what is split over what, and which meshes are refused."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from umup import mesh
from umup.config import MeshConfig, ModelConfig, OptimConfig
from umup.errors import ConfigError

MODEL = ModelConfig(d_model=48, d_head=8, d_ff=96, vocab_size=60, n_layers=1, seq_len=8)  # 6 heads
OPTIM = OptimConfig(steps=10, warmup_steps=1, batch_size=24)


def refuses(call, *parts: str) -> None:
    with pytest.raises(ConfigError, match=".*".join(map(re.escape, parts))):
        call()


# --- the table ------------------------------------------------------------------------------------


def test_the_table_sends_every_axis_to_the_mesh():
    assert mesh.spec("batch", None) == P(("data", "fsdp"), None)
    assert mesh.spec("vocab", "embed") == P("tensor", "fsdp")
    assert mesh.spec("embed", "parts", "heads") == P("fsdp", None, "tensor")
    assert mesh.spec("mlp", "embed") == P("tensor", "fsdp")


def test_the_mesh_has_the_devices_in_order():
    made = mesh.make(MeshConfig(2, 2, 2))
    assert dict(made.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert {d.id for d in made.devices.flat} == {d.id for d in jax.devices()}
    few = mesh.make(MeshConfig(1, 2, 1), jax.devices()[:2])
    assert list(few.devices.flat) == jax.devices()[:2]


def test_only_a_set_mesh_constrains():
    x, made = jnp.ones((16, 4)), mesh.make(MeshConfig(2, 2, 2))
    assert mesh.constrain(x, "batch", None) is x
    assert not mesh.splits_columns()
    with jax.set_mesh(made):
        split = jax.jit(lambda x: mesh.constrain(x, "batch", "heads"))(x)
        assert mesh.splits_columns()
    with jax.set_mesh(mesh.make(MeshConfig(4, 2, 1))):
        assert not mesh.splits_columns()
    assert split.sharding.spec == P(("data", "fsdp"), "tensor")
    assert {shard.data.shape for shard in split.addressable_shards} == {(4, 2)}


def test_variables_are_split_by_their_axes_and_the_rest_is_everywhere():
    made = mesh.make(MeshConfig(2, 2, 2))
    tree = {
        "weight": nnx.Param(jnp.ones((4, 6)), axes=("vocab", "embed")),
        "stacked": nnx.Param(jnp.ones((3, 4, 6)), axes=("embed", "heads")),
        "factor": nnx.Param(jnp.ones(()), axes=("embed", "heads")),
        "scale": nnx.Variable(jnp.ones((3,))),
        "step": jnp.ones(()),
    }
    found = mesh.shardings(made, tree)
    specs = {
        name: (leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf).spec
        for name, leaf in found.items()
    }
    assert specs == {
        "weight": P("tensor", "fsdp"),
        "stacked": P(None, "fsdp", "tensor"),
        "factor": P(),
        "scale": P(None),
        "step": P(),
    }
    assert found["weight"].get_metadata()["axes"] == ("vocab", "embed")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 3), (16, 1, 1)])
def test_a_mesh_of_another_number_of_devices_is_refused(axes):
    shown = "×".join(map(str, axes))
    refuses(lambda: mesh.make(MeshConfig(*axes)), "mesh", shown, "product is 8", "8×1×1")
    mesh.make(MeshConfig(8, 1, 1))  # what is offered does


@pytest.mark.parametrize("axis", mesh.AXES)
def test_an_axis_of_no_device_is_refused(axis):
    refuses(lambda: MeshConfig(**{axis: 0}), axis, "0")


@pytest.mark.parametrize(
    ("axes", "field", "whole", "fits"),
    [
        ((5, 1, 1), "mesh.data", "batch_size = 24", 4),
        ((5, 2, 1), "mesh.data × mesh.fsdp", "batch_size = 24", 8),
        ((1, 12, 1), "mesh.fsdp", None, None),  # 48 and 24 are multiples of it
        ((48, 1, 1), "mesh.data", "batch_size = 24", 24),
        ((1, 1, 4), "mesh.tensor", "n_heads = 6", 3),
        ((1, 1, 6), "mesh.tensor", None, None),
    ],
)
def test_the_batch_and_the_heads_must_divide(axes, field, whole, fits):
    config = MeshConfig(*axes)
    if whole is None:
        mesh.check(config, MODEL, OPTIM)
        return
    size = axes[2] if field == "mesh.tensor" else axes[0] * axes[1]
    refuses(lambda: mesh.check(config, MODEL, OPTIM), field, str(size), whole, f"such as {fits}")


@pytest.mark.parametrize(
    ("mesh_axes", "change", "field", "whole", "fits"),
    [
        ((1, 4, 1), {"d_model": 54, "d_head": 6}, "mesh.fsdp", "d_model = 54", 3),
        ((1, 1, 3), {"d_ff": 100}, "mesh.tensor", "d_ff = 100", 2),
        ((1, 1, 6), {"vocab_size": 64}, "mesh.tensor", "vocab_size = 64", 4),
    ],
)
def test_width_features_and_vocabulary_must_divide(mesh_axes, change, field, whole, fits):
    config, model = MeshConfig(*mesh_axes), ModelConfig(**(MODEL.to_dict() | change))
    refuses(lambda: mesh.check(config, model, OPTIM), field, whole, f"such as {fits}")


def test_each_accumulated_part_must_divide():
    optim = OptimConfig(steps=10, warmup_steps=1, batch_size=24, accumulate=4)
    mesh.check(MeshConfig(6, 1, 1), MODEL, optim)
    refuses(
        lambda: mesh.check(MeshConfig(8, 1, 1), MODEL, optim),
        "mesh.data",
        "8",
        "batch_size / accumulate = 6",
        "such as 6",
    )
    mesh.check(MeshConfig(8, 1, 1), MODEL, OPTIM)  # whole it would
    refuses(
        lambda: OptimConfig(steps=10, warmup_steps=1, batch_size=24, accumulate=5),
        "accumulate",
        "5",
        "a divisor of batch_size = 24",
    )
