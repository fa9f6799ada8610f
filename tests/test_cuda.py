"""What a chunk of steps asks of a CUDA device: programs lowered without one, not compiled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umup import command, plan, target, train
from umup.config import MeshConfig, ModelConfig, OptimConfig
from umup.errors import ConfigError
from umup.plan import aot, formulas, hardware, outlook, stablehlo
from umup.plan.aot import Facts
from umup.plan.outlook import JOBS, Job
from umup.plan.stablehlo import Array

D, D_FF, LAYERS, V, T, B = 64, 176, 2, 32, 40, 4
MODEL = ModelConfig(
    d_model=D,
    n_layers=LAYERS,
    d_head=16,
    d_ff=D_FF,
    vocab_size=V,
    seq_len=T,
    dtype="bfloat16",
)
OPTIM = OptimConfig(steps=6, batch_size=B, warmup_steps=2)
H100 = hardware.get("h100")
WIDE = [("_cross_entropy_fwd", ("gather", "reduce")), ("Decoder._forward", ("scatter",))]
"""The float32 copies that stay: logits, of which each token picks one, and the embedding's
cotangent, which is added up in float32."""
KERNELS = {"__cudnn$fmhaSoftmax": 1, "__cudnn$fmhaSoftmaxBackward": 1}


def facts(lanes: int = 1, **changes) -> Facts:
    model = dataclasses.replace(MODEL, **changes)
    return aot.facts(Job(model, OPTIM).run(), lanes=lanes)


def wide(found: Facts) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.source.split(",")[0], one.ends) for one in found.wide]


def clean(found: Facts) -> None:
    """Every buffer donated, no waiting, no float32 copies but those known."""
    assert found.donated == 59 and found.copied == ()
    assert found.host == ()
    assert wide(found) == WIDE


# --- a step of the decoder ------------------------------------------------------------------------


@pytest.mark.parametrize("unroll", [0, None])
@pytest.mark.parametrize("recipe", ["plain", "fp8_seed", "fp8_e5m2_grad"])
def test_a_chunk_asks_for_nothing_that_it_does_not_need(recipe, unroll):
    found = facts(recipe=recipe, unroll=unroll)
    clean(found)
    assert found.transposed == ()
    assert not found.kernels or recipe == "plain"


@pytest.mark.parametrize(
    ("recipe", "pairs"),
    [
        ("plain", {("bf16", "bf16")}),
        ("fp8_seed", {("f8e4m3fn", "f8e4m3fn"), ("f8e5m2", "f8e4m3fn")}),
        (
            "fp8_e5m2_grad",
            {
                ("f8e4m3fn", "f8e4m3fn"),
                ("f8e5m2", "f8e4m3fn"),
                ("f8e4m3fn", "f8e5m2"),
                ("bf16", "bf16"),
            },
        ),
    ],
)
def test_linears_multiply_two_matrices_of_their_recipe_s_types(recipe, pairs):
    linears = [p for p in facts(recipe=recipe).products if len(p[0].shape) == 2]
    assert {(x.dtype, y.dtype) for x, y, _ in linears} == pairs
    assert {result.dtype for *_, result in linears} == {"bf16"}
    # Three products of each shape of linear, of which q|k|v and gate|up stay side by side.
    for fan_in, fan_out in ((D, 3 * D), (D, D), (D, 2 * D_FF), (D_FF, D), (D, V)):
        results = {result.shape for *_, result in linears}
        assert {(B * T, fan_out), (B * T, fan_in), (fan_in, fan_out)} <= results
    assert all(len(p[0].shape) in (2, 4) for p in facts(recipe=recipe).products)


def test_schemes_share_the_chunk_on_a_device_but_not_with_a_cpu():
    one = Job(MODEL, OPTIM)
    here = train.programs(one.run()).chunk
    with target.tracing_for("gpu"):
        there = train.programs(one.run()).chunk
        assert there is train.programs(one.run("mup")).chunk
    assert there is not here
    assert train.programs(one.run()).chunk is here


def test_attention_by_cudnn_forms_no_square_of_weights():
    found = facts(attention="cudnn")
    clean(found)
    assert found.kernels == KERNELS
    results = [result for *_, result in found.products]
    assert not [a for a in [*results, *found.carried] if a.shape.count(T) > 1]


def test_a_loop_over_layers_carries_no_mask():
    found = facts(unroll=1)
    squares = {a for a in found.carried if a.shape.count(T) > 1}
    assert squares == {Array("f32", (LAYERS, B, D // 16, T, T))}  # the softmax's, for backward
    others = {a for a in found.carried if a not in squares}
    assert {a.dtype for a in others} == {"bf16"}


def test_lanes_swap_with_layers_and_nothing_else_moves():
    found = facts(lanes=3)
    clean(found)
    assert found.transposed
    for one in found.transposed:
        before, after = one.operands[0].shape, one.result.shape
        assert {before[:2], after[:2]} == {(3, LAYERS), (LAYERS, 3)} and before[2:] == after[2:]
    assert all(len(p[0].shape) in (3, 5) for p in found.products)


def test_what_is_traced_for_a_device_computes_the_same():
    run = Job(MODEL, OPTIM).run()
    tokens = np.random.default_rng(0).integers(0, V, 4000).astype(np.uint8)
    expected = train.train(run, tokens)
    with target.tracing_for("gpu"):
        np.testing.assert_allclose(train.train(run, tokens), expected, rtol=2e-3)
        programs, lanes = train.programs(run), train.lanes_of([run])
        states = jax.eval_shape(programs.init, lanes)
        seen = jax.eval_shape(programs.observe, jnp.asarray(tokens), lanes, states)
    assert seen.shape[:2] == (1, len(train.observed(run)))


def test_the_named_platform_ends_with_its_block():
    assert target.platform() == jax.default_backend()
    with pytest.raises(ZeroDivisionError), target.tracing_for("gpu"):
        assert target.platform() == "gpu"
        raise ZeroDivisionError
    assert target.platform() == jax.default_backend()


def test_parts_of_a_batch_are_looked_at_as_the_batch_is():
    optim = dataclasses.replace(OPTIM, accumulate=2, batch_size=2 * B)
    clean(aot.facts(Job(MODEL, optim).run()))


def test_another_platform_is_refused():
    with pytest.raises(ConfigError, match="platform: received 'rocm'; allowed: cuda"):
        aot.lowered_for("rocm", Job(MODEL, OPTIM).run())


# --- the jobs at their own shapes -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["Figure 1, fp8_seed", "10⁹ parameters, cuDNN", "width 128, 8 lanes"]
)
def test_jobs_are_clean_at_their_own_shapes(name):
    job = JOBS[name]
    found = aot.facts(job.run(), lanes=job.lanes)
    assert (found.donated, found.copied, found.host) == (59, (), ())
    assert wide(found) in (WIDE, WIDE[:1])  # 8192 tokens by 2048 is a weight's shape, too
    assert bool(found.transposed) == (job.lanes > 1)
    # Layers are calls of one function, or each stands for itself, as the version of JAX has it.
    numbers = ({1}, {job.model.n_layers}) if job.model.attention == "cudnn" else (set(),)
    assert set(found.kernels) == (set(KERNELS) if job.model.attention == "cudnn" else set())
    assert set(found.kernels.values()) in numbers


# --- the reader sees what is there ----------------------------------------------------------------


def program(function, *shapes: tuple[tuple[int, ...], str], **options) -> stablehlo.Program:
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    traced = jax.jit(function, **options).trace(*arguments)
    return stablehlo.Program(traced.lower(lowering_platforms=("cuda",)))


def test_donated_arguments_are_told_apart():
    found = program(
        lambda a, b: (a + b, a * b), ((3,), "float32"), ((3,), "float32"), donate_argnums=1
    )
    assert found.donated() == [False, True]
    assert program(lambda a: a, ((3,), "float32")).donated() == [False]


def test_transpositions_that_move_nothing_do_not_count():
    def turned(w):
        product = jax.lax.dot_general(w, w, (((0,), (0,)), ((), ())))
        return w.reshape(1, 8, 4).transpose(1, 0, 2), w.T, product

    (found,) = program(turned, ((8, 4), "float32")).transposed(32)
    assert found.result == Array("f32", (4, 8)) and "turned, test_cuda.py:" in found.source
    assert "stablehlo.transpose" in found.text
    assert program(turned, ((8, 4), "float32")).transposed(33) == []


def test_a_wide_copy_is_followed_to_where_it_is_read():
    def ends(function) -> list[tuple[str, ...]]:
        found = program(function, ((8, 4), "bfloat16")).widened(32)
        return [one.ends for one in found]

    def wide(x):
        return x.astype(jnp.float32)

    assert ends(lambda x: (wide(x) * 2).astype(jnp.bfloat16)) == [("convert",)]
    assert ends(lambda x: jnp.exp(wide(x)).sum()) == [("reduce",)]
    assert ends(lambda x: jnp.exp(wide(x)) @ jnp.ones((4, 2))) == [("dot_general",)]
    assert ends(lambda x: jax.jit(jnp.sin)(wide(x))) == [("return",)]
    assert ends(lambda x: jax.jit(wide)(x).sum()) == [("reduce",)]
    assert ends(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * 2, wide(x)).sum()) == [
        ("while",)
    ]
    assert ends(lambda x: x.astype(jnp.int32)) == []


def test_waiting_for_the_host_is_found():
    def told(x):
        jax.debug.callback(lambda y: None, x.sum())
        return x

    x = jax.ShapeDtypeStruct((3,), "float32")
    (found,) = stablehlo.Program(jax.jit(told).lower(x)).host()  # for a CPU: there is one
    assert "callback" in found.opcode
    with pytest.raises(ValueError, match="lowering platform cuda"):
        program(told, ((3,), "float32"))


# --- what is predicted ----------------------------------------------------------------------------


def test_a_step_of_one_lane_is_the_planner_s():
    job = JOBS["Figure 1, plain"]
    case = plan.case(job.model, job.optim, MeshConfig(), H100)
    step, found = formulas.step_time(case), outlook.outlook(job, H100)
    assert found.seconds == pytest.approx(step.seconds) and found.limit == step.limit
    assert (found.mfu, found.bytes) == (step.mfu, formulas.memory(case).total)
    assert found.job_seconds == pytest.approx(400 * step.seconds)


def test_lanes_share_the_launches_alone():
    job = JOBS["width 128, 8 lanes"]
    eight, one = (outlook.outlook(job._replace(lanes=n), H100) for n in (8, 1))
    assert eight.bytes == 8 * one.bytes and 4 * one.seconds < eight.seconds < 8 * one.seconds
    assert eight.tokens_per_s == pytest.approx(8 * 8 * 1024 / eight.seconds)
    assert eight.mfu == pytest.approx(one.mfu * 8 * one.seconds / eight.seconds)


def test_four_arms_of_figure_1_fit_at_once_and_six_do_not():
    wide, narrow = (outlook.outlook(JOBS[f"Figure 1, {r}"], H100) for r in ("plain", "fp8_seed"))
    room = H100.usable * 1e9 * H100.memory_gb
    assert outlook.together([wide, narrow] * 2) < 0.75 * 1e9 * H100.memory_gb < room
    assert outlook.together([wide, narrow] * 3) > room
    assert outlook.together([wide]) == wide.bytes


def test_the_command_prints_every_job(capsys):
    assert command.run(outlook.Table, [], "outlook") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == list(JOBS)
    assert command.run(outlook.Table, ["--hardware", "h1000"], "outlook") == 1
    assert "did you mean 'h100'" in capsys.readouterr().err
