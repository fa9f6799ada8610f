"""Marks: what each layer of Flax says of its parameters, stacked or not, and what is refused."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from flax import linen, nnx

from umup.errors import ConfigError
from umup.optim import lr_factors
from umup.roles import mark
from umup.rules import Parametrization


def marks(module: nnx.Module, role: str = "hidden") -> dict[str, tuple]:
    """Name of each parameter → (role, fan_in, fan_out) after the module is marked."""
    mark(module, role)
    return {
        ".".join(map(str, path)): tuple(p.get_metadata()[f] for f in ("role", "fan_in", "fan_out"))
        for path, p in nnx.iter_graph(module)
        if isinstance(p, nnx.Param)
    }


def attention(rngs):
    return nnx.MultiHeadAttention(
        num_heads=4, in_features=12, qkv_features=8, decode=False, normalize_qk=True, rngs=rngs
    )


LAYERS = {
    "linear": (
        lambda r: nnx.Linear(3, 5, rngs=r),
        {"kernel": ("hidden", 3, 5), "bias": ("input", 1, 5)},
    ),
    "general": (
        lambda r: nnx.LinearGeneral((4, 2), (8, 3), axis=(-2, -1), rngs=r),
        {"kernel": ("hidden", 8, 24), "bias": ("input", 1, 24)},
    ),
    "general with a batch": (
        lambda r: nnx.LinearGeneral(4, 6, axis=-1, batch_axis={0: 7}, rngs=r),
        {"kernel": ("hidden", 4, 6), "bias": ("input", 1, 6)},
    ),
    "einsum, the output first": (
        lambda r: nnx.Einsum("btd,hkd->bthk", (2, 4, 6), (2, 4), rngs=r),
        {"kernel": ("hidden", 6, 8), "bias": ("input", 1, 8)},
    ),
    "einsum by head": (
        lambda r: nnx.Einsum("...hd,hdk->...hk", (2, 8, 4), rngs=r),
        {"kernel": ("hidden", 8, 4)},
    ),
    "convolution": (
        lambda r: nnx.Conv(4, 6, (3, 3), rngs=r),
        {"kernel": ("hidden", 36, 6), "bias": ("input", 1, 6)},
    ),
    "depthwise": (
        lambda r: nnx.Conv(8, 8, (3,), feature_group_count=8, rngs=r),
        {"kernel": ("input", 3, 8), "bias": ("input", 1, 8)},
    ),
    "transposed": (
        lambda r: nnx.ConvTranspose(3, 5, (2,), transpose_kernel=True, rngs=r),
        {"kernel": ("hidden", 6, 5), "bias": ("input", 1, 5)},
    ),
    "norm": (
        lambda r: nnx.LayerNorm(6, rngs=r),
        {"scale": ("input", 1, 6), "bias": ("input", 1, 6)},
    ),
    "group norm": (
        lambda r: nnx.GroupNorm(6, num_groups=2, rngs=r),
        {"scale": ("input", 1, 6), "bias": ("input", 1, 6)},
    ),
    "attention": (
        attention,
        {f"{n}.kernel": ("hidden", 12, 8) for n in ("query", "key", "value")}
        | {f"{n}.bias": ("input", 1, 8) for n in ("query", "key", "value")}
        | {"query_ln.scale": ("input", 1, 2), "key_ln.scale": ("input", 1, 2)}
        | {"out.kernel": ("hidden", 8, 12), "out.bias": ("input", 1, 12)},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_says_what_its_parameters_are_however_it_is_stacked(name) -> None:
    make, expected = LAYERS[name]
    found = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    assert marks(found) == expected
    for axis in (0, -1):

        @nnx.split_rngs(splits=3)
        @nnx.vmap(out_axes=nnx.StateAxes({nnx.Param: axis, ...: 0}))
        def stacked(rngs):
            return make(rngs)

        assert marks(nnx.eval_shape(lambda: stacked(nnx.Rngs(0)))) == expected


class Own(nnx.Module):
    """A module of one's own: a matrix, a vector and a scalar that no layer of Flax holds."""

    def __init__(self, rngs: nnx.Rngs, **shapes):
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(jnp.ones(shape)))
        self.linear = nnx.Linear(4, 4, rngs=rngs)


def test_vectors_and_scalars_of_ones_own_are_input() -> None:
    found = marks(Own(nnx.Rngs(0), gain=(4,), gate=()))
    assert (found["gain"], found["gate"]) == (("input", 1, 4), ("input", 1, 1))


def test_a_marked_matrix_of_ones_own_keeps_its_marks() -> None:
    own = Own(nnx.Rngs(0), w=(2, 4, 6))
    mark(own.w, "hidden", fan_in=8, fan_out=6)
    assert marks(own)["w"] == ("hidden", 8, 6)


@pytest.mark.parametrize("shapes", [{"w": (4, 4)}, {"w": (2, 3, 4)}])
def test_a_matrix_that_could_be_stacked_vectors_is_refused(shapes) -> None:
    own = Own(nnx.Rngs(0), **shapes)
    with pytest.raises(
        ConfigError, match=r"w: received 'a parameter of shape .*mark this one alone"
    ):
        mark(own, "hidden")
    assert "role" not in own.linear.kernel.get_metadata(), "nothing is marked"


@pytest.mark.parametrize("shapes", [{"gain": (4,)}, {"gate": ()}])
def test_stacked_parameters_of_ones_own_are_refused(shapes) -> None:
    stacked = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: Own(rngs, **shapes)))
    with pytest.raises(ConfigError, match="mark this one alone"):
        mark(stacked(nnx.Rngs(0)), "hidden")


def test_what_has_no_declared_shape_or_no_rule_is_refused() -> None:
    dense = nnx.bridge.lazy_init(
        nnx.bridge.ToNNX(linen.Dense(5), rngs=nnx.Rngs(0)), jnp.ones((1, 4))
    )
    swapped = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    swapped.kernel = nnx.Param(jnp.ones((4, 16)))
    grouped = nnx.Conv(8, 8, (3,), feature_group_count=2, rngs=nnx.Rngs(0))
    lora = nnx.LoRALinear(8, 8, lora_rank=2, rngs=nnx.Rngs(0))
    for module, name in (
        (dense, "kernel"),
        (swapped, "kernel"),
        (grouped, "kernel"),
        (lora, "lora.lora_a"),
    ):
        with pytest.raises(ConfigError) as error:
            mark(module, "hidden")
        assert error.value.field == name
    with pytest.raises(ConfigError, match="role of embedding: received 'hidden'; allowed: input"):
        mark(nnx.Embed(10, 8, rngs=nnx.Rngs(0)), "hidden")


def test_a_parameter_alone_needs_its_fans_where_its_shape_does_not_tell_them() -> None:
    kernel = attention(nnx.Rngs(0)).query.kernel
    with pytest.raises(ConfigError, match=r"fan_in, fan_out: received \(None, None\)"):
        mark(kernel, "hidden")
    with pytest.raises(ConfigError, match=r"fan_in, fan_out: received \(12, 5\)"):
        mark(kernel, "hidden", fan_in=12, fan_out=5)
    mark(kernel, "hidden", fan_in=12, fan_out=8)
    assert (kernel.get_metadata()["fan_in"], kernel.get_metadata()["fan_out"]) == (12, 8)
    with pytest.raises(ConfigError, match="fan_in, fan_out"):
        mark(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "hidden", fan_in=2)


class Pair(nnx.Module):
    def __init__(self, first: nnx.Module, second: nnx.Module):
        self.first, self.second = first, second
        self.second.kernel = self.first.kernel


def test_a_shared_parameter_has_one_role_and_one_fan() -> None:
    rngs = nnx.Rngs(0)
    equal = Pair(nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs))
    assert marks(equal)["first.kernel"] == ("hidden", 8, 8)
    mark(equal.second, "hidden")
    with pytest.raises(ConfigError, match=r"marks of part: received .*output.*role='hidden'"):
        mark(equal.second.kernel, "output")
    assert equal.first.kernel.get_metadata()["role"] == "hidden"
    mark(equal.second.kernel, "output", replace=True)
    assert equal.first.kernel.get_metadata()["role"] == "output"
    turned = Pair(
        nnx.LinearGeneral(8, (2, 4), rngs=rngs),
        nnx.LinearGeneral((8, 2), 4, axis=(-2, -1), rngs=rngs),
    )
    with pytest.raises(ConfigError, match="two layers share it"):
        mark(turned, "hidden")


def test_gains_and_biases_are_no_embedding_and_the_last_bias_does_not_widen() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed = nnx.Embed(10, 8, rngs=rngs)
            self.hidden, self.readout = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
            for part, role in (
                (self.embed, "input"),
                (self.hidden, "hidden"),
                (self.readout, "output"),
            ):
                mark(part, role)

    params = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    numbers = Parametrization.of_width("mup", 8, base_width=2, hps={"eta_emb": 16.0})
    for name, expected in {
        "adam": {"embed.embedding": 16.0, "hidden.bias": 1.0, "readout.bias": 1.0},
        "sgd": {"embed.embedding": 64.0, "hidden.bias": 4.0, "readout.bias": 1.0},
    }.items():
        found = nnx.to_flat_state(lr_factors(params, numbers, optimizer=name))
        flat = {".".join(map(str, path)): float(v[...]) for path, v in found}
        assert {n: flat[n] for n in expected} == pytest.approx(expected)
