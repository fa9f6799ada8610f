"""The reader of compiled programs: operations and messages, with how often they run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from umup import mesh
from umup.config import HPs, MeshConfig, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError
from umup.plan.hlo import Collective, Program, Traffic, traffic
from umup.run import parallel

CUBE = {"data": 2, "fsdp": 2, "tensor": 2}

# --- groups of devices: 0 to 7 are (data, fsdp, tensor) in binary ---------------------------------

ALL = ("data", "fsdp", "tensor")
GROUPS = {
    "{{0,1},{4,5},{2,3},{6,7}}": (("tensor",), 2),
    "{{0,2},{1,3},{4,6},{7,5}}": (("fsdp",), 2),
    "{{0,4},{1,5},{2,6},{3,7}}": (("data",), 2),
    "{{0,2,4,6},{1,3,5,7}}": (("data", "fsdp"), 4),
    "{{0,1,4,5},{2,3,6,7}}": (("data", "tensor"), 4),
    "{{0,1,2,3,4,5,6,7}}": (ALL, 8),
    "{}": (ALL, 8),
    "{{0,3},{1,2},{4,7},{5,6}}": ((), 2),  # along no axis
    "{{0},{1},{2},{3},{4},{5},{6},{7}}": ((), 1),
    "[4,2]<=[8]": (("tensor",), 2),
    "[1,8]<=[8]": (ALL, 8),
    "[4,2]<=[4,2]T(1,0)": (("fsdp",), 2),
    "[2,4]<=[4,2]T(1,0)": (("data", "fsdp"), 4),
    "[4,2]<=[2,4]T(1,0)": (("data",), 2),
    "[4,2]<=[2,2,2]T(0,2,1)": (("fsdp",), 2),
    "mesh['axis_0'=4,'axis_1'=2] {'axis_1'}": (("tensor",), 2),
    "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}": (("data", "fsdp"), 4),
    "mesh['axis_0'=2,'axis_1'=2,'axis_2'=1,'axis_3'=2] {'axis_0','axis_3'}": (
        ("data", "tensor"),
        4,
    ),
    "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}": (("tensor",), 2),
    "mesh['a'=2,'b'=2,'c'=2], device_ids=([2,2,2]T(2,1,0)) {'b','c'}": (("data", "fsdp"), 4),
    "mesh['a'=2,'b'=4], device_ids=(0,1,4,5,2,3,6,7) {'a'}": (("fsdp",), 2),
    "mesh['a'=8] {'a':(2)2}": (("fsdp",), 2),  # the middle of an axis
    "mesh['a'=8] {'a':(1)2,'a':(4)2}": (("data", "tensor"), 4),
}


def reduced(groups: str) -> Program:
    attributes = f"channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add"
    return Program(f"ENTRY %main {{\n  ROOT %y = f32[3] all-reduce(f32[3] %x), {attributes}\n}}")


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_are_named_by_their_mesh_axes(groups: str) -> None:
    axes, size = GROUPS[groups]
    (found,) = reduced(groups).collectives(CUBE)
    assert found == Collective("all-reduce", axes, size, "f32", "f32", 12, 1)


def test_axes_of_one_device_are_not_named() -> None:
    (found,) = reduced("[8,64]<=[64,8]T(1,0)").collectives({"data": 1, "fsdp": 64, "tensor": 8})
    assert (found.axes, found.group) == (("fsdp",), 64)
    (found,) = reduced("[1,8]<=[8]").collectives({"data": 1, "fsdp": 8, "tensor": 1})
    assert (found.axes, found.group) == (("fsdp",), 8)


@pytest.mark.parametrize("groups", ["[4,2]<=[8]", "{{0,1},{2,3},{4,5},{6,8}}"])
def test_another_mesh_is_refused(groups: str) -> None:
    with pytest.raises(ConfigError, match=r"mesh: received.*compiled for"):
        reduced(groups).collectives({"data": 2, "fsdp": 2, "tensor": 1})


@pytest.mark.parametrize(
    ("pairs", "axes", "group"),
    [
        ("{{0,1},{1,0},{6,7},{7,6}}", ("tensor",), 2),
        ("{{0,2},{2,0}}", ("fsdp",), 2),
        ("{{0,5},{3,3}}", ("data", "tensor"), 4),
        ("{{0,0},{1,1}}", (), 1),
    ],
)
def test_a_permutation_has_the_axes_along_which_it_moves(pairs, axes, group) -> None:
    line = f"%y = f32[3] collective-permute(f32[3] %x), source_target_pairs={pairs}"
    (found,) = Program(f"ENTRY %main {{\n  {line}\n}}").collectives(CUBE)
    assert (found.kind, found.axes, found.group) == ("collective-permute", axes, group)
    with pytest.raises(ConfigError, match="mesh"):
        wide = line.replace(pairs, "{{0,9}}")
        Program(f"ENTRY %main {{\n  {wide}\n}}").collectives(CUBE)


# --- how often, how much, and of what type --------------------------------------------------------

NESTED = """
%widen (p: bf16[4,8]) -> f32[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %c = f32[4,8]{1,0} convert(%p)
}

%inner (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %w = bf16[4,8]{1,0} get-tuple-element(%p.1), index=1
  %wide = f32[4,8]{1,0} fusion(%w), kind=kLoop, calls=%widen
  %g = f32[8,8]{1,0} all-gather(%wide), replica_groups=[4,2]<=[8], dimensions={0}
  %d = f32[8,8]{1,0} dot(%g, %g), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], bf16[4,8]{1,0}) tuple(%p.1, %w)
}

%test (p: (s32[], bf16[4,8])) -> pred[] {
  %p.2 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %seen = f32[] all-reduce(f32[] %seen.1), replica_groups={}, to_apply=%add
  ROOT %less = pred[] constant(true)
}

%outer (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p.3 = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], /*index=1*/bf16[4,8]{1,0}) while(%p.3), condition=%test, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
}

%left (q: f32[6]) -> f32[3] {
  %q = f32[6]{0} parameter(0)
  ROOT %s = f32[3]{0} reduce-scatter(%q), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
}

%right (q: f32[6]) -> f32[3] {
  %q.1 = f32[6]{0} parameter(0)
  %start = ((f32[3]{0}, bf16[2]{0}), (f32[6]{0}, bf16[4]{0})) all-gather-start(f32[3]{0} %a, bf16[2]{0} %b), replica_groups=[4,2]<=[8], dimensions={0}
  %done = (f32[6]{0}, bf16[4]{0}) all-gather-done(%start)
  ROOT %part = f32[3]{0} slice(%q.1), slice={[0:3]}
}

ENTRY %main (x: f32[6], y: (s32[], bf16[4,8])) -> f32[3] {
  %x = f32[6]{0} parameter(0)
  %y = (s32[], bf16[4,8]{1,0}) parameter(1)
  %steps = (s32[], bf16[4,8]{1,0}) while(%y), condition=%test, body=%outer
  ROOT %z = f32[3]{0} conditional(%x, %x, %x), branch_computations={%left, %right}
}
"""  # noqa: E501 - a line of HLO is as long as XLA makes it


def test_what_a_loop_holds_counts_as_often_as_it_runs() -> None:
    program = Program(NESTED)
    names = ("main", "outer", "inner", "widen", "test", "left", "right")
    assert [program.executions(name) for name in names] == [1, 1, 5, 5, 2 + 6, 1, 1]
    assert program.flops() == 5 * 2 * 8 * 8 * 8
    assert Program(NESTED, trips=3).flops() == 3 * program.flops()


def test_collectives_carry_what_their_values_were_before_they_were_widened() -> None:
    found = Program(NESTED).collectives(CUBE)
    assert found == [
        Collective("all-gather", ("tensor",), 2, "bf16", "f32", 8 * 8 * 2, 5),
        Collective("all-reduce", ALL, 8, "f32", "f32", 4, 8),
        Collective("reduce-scatter", ("data",), 2, "f32", "f32", 6 * 4, 1),  # the operand's
        Collective("all-gather", ("tensor",), 2, "f32", "f32", 6 * 4, 1),  # once, where it is done
        Collective("all-gather", ("tensor",), 2, "bf16", "bf16", 4 * 2, 1),
    ]
    assert traffic(found) == [
        Traffic("all-gather", ("tensor",), 2, "bf16", 6, 5 * 128 + 8),
        Traffic("all-reduce", ALL, 8, "f32", 8, 32),
        Traffic("reduce-scatter", ("data",), 2, "f32", 1, 24),
        Traffic("all-gather", ("tensor",), 2, "f32", 1, 24),
    ]


LOOP = """
%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %s = f32[8]{0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add
}

ENTRY %main (x: bf16[8]) -> f32[8] {
  %x = bf16[8]{0} parameter(0)
  %wide = f32[8]{0} convert(%x)
  ROOT %y = f32[8]{0} while(%wide), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"4"}}
}
"""  # noqa: E501


def test_what_a_loop_carries_is_not_what_it_began_with() -> None:
    (found,) = Program(LOOP).collectives(CUBE)
    assert found == Collective("all-reduce", ("tensor",), 2, "f32", "f32", 32, 4)


@pytest.mark.parametrize(
    ("attributes", "contracted"),
    [
        ('backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"]}}', 16),
        ("", 32),
    ],
)
def test_a_library_s_product_counts(attributes: str, contracted: int) -> None:
    call = "(bf16[32,48]{1,0}, s8[512]{0}) custom-call(bf16[16,32]{1,0} %x, bf16[16,48]{1,0} %w)"
    target = 'custom_call_target="__cublas$lt$matmul"'
    program = Program(f"ENTRY %main {{\n  ROOT %y = {call}, {target}, {attributes}\n}}")
    assert program.flops() == 2 * 32 * 48 * contracted


# --- programs that XLA compiles -------------------------------------------------------------------


def test_matrix_products_count_as_in_the_cost_analysis() -> None:
    def products(a, b, c):
        return jnp.einsum("bij,bjk->bik", a, b), jnp.einsum("bij,bijl->l", a, c)

    shapes = (3, 16, 24), (3, 24, 40), (3, 16, 24, 8)
    step = jax.jit(products).lower(*(jnp.zeros(s) for s in shapes)).compile()
    flops = Program(step.as_text() or "").flops()
    assert flops == 2 * 3 * 16 * 24 * (40 + 8)
    assert flops == (step.cost_analysis() or {})["flops"]


def sent(function, spec: P) -> Collective:
    """The one collective of a function of a (16, 16) float32 array, on each device's part of it."""
    made = mesh.make(MeshConfig(2, 2, 2))
    mapped = jax.shard_map(function, mesh=made, in_specs=spec, out_specs=spec, check_vma=False)
    step = jax.jit(mapped).lower(jnp.zeros((16, 16))).compile()
    (found,) = Program(step.as_text() or "").collectives(dict(made.shape))
    return found


@pytest.mark.parametrize("axes", [("data",), ("fsdp",), ("tensor",), ("data", "tensor"), ALL])
def test_every_sum_has_its_axes(axes: tuple[str, ...]) -> None:
    found = sent(lambda x: lax.psum(x, axes), P())
    assert found == Collective("all-reduce", axes, 2 ** len(axes), "f32", "f32", 1024, 1)


def test_every_kind_has_its_bytes() -> None:
    part = P("fsdp")  # (8, 16) on each device
    for kind, function, size in (
        ("all-gather", lambda x: lax.all_gather(x, "fsdp", tiled=True), 2 * 512),
        ("reduce-scatter", lambda x: lax.psum_scatter(x, "fsdp", tiled=True), 512),
        ("all-to-all", lambda x: lax.all_to_all(x, "fsdp", 0, 0, tiled=True), 512),
        ("collective-permute", lambda x: lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]), 512),
    ):
        assert sent(function, part) == Collective(kind, ("fsdp",), 2, "f32", "f32", size, 1)


def step_products(unroll: int) -> float:
    model = ModelConfig(
        d_model=32, n_layers=2, d_head=16, d_ff=64, vocab_size=48, seq_len=16, unroll=unroll
    )
    run = RunConfig("umup", model, OptimConfig(batch_size=4), HPs(), 0, "none", "none", "none")
    lowered = parallel.lower(run, mesh.make(MeshConfig(), jax.devices()[:1]))
    options: dict[str, str | bool] = {"xla_llvm_disable_expensive_passes": True}
    step = lowered.compile(options)
    flops = Program(step.as_text() or "").flops()
    assert flops == model.step_flops(4)
    return flops


def test_layers_in_a_loop_count_as_layers_one_after_another() -> None:
    assert step_products(unroll=1) == step_products(unroll=0)
