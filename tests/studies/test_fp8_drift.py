"""The study of FP8 drift: HLO read by hand, planted drifts and slopes recovered, words, figures."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from synthetic import EMPTY, drawn, marks, point_row, rows_of
from umup import fp8, ops, train
from umup.config import PROBE_STATS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims, study
from umup.lab.claims import NotMeasured
from umup.lab.folders import code
from umup.lab.ranges import LINEARS
from umup.lab.records import Results
from umup.lab.study import parameters
from umup.plan.hlo import Program

fp8_drift = code("fp8_drift").design
fp8_drift_figures = code("fp8_drift").figures
gemm = code("fp8_drift").measures
proof = code("fp8_drift").proof
quantities = code("fp8_drift").results
words = code("fp8_drift").words
tables = code("fp8_drift").results
Fp8Drift = code("fp8_drift").design.Fp8Drift

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "fp8_drift"
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))
DESIGN = Fp8Drift(
    widths=(64,),
    steps=100,
    probe_steps=(0, 10),
    seeds=3,
    recipes=("plain", "fp8_seed"),
    effect_width=32,
    effect_steps=80,
    effect_seeds=2,
    effect_widths=(32, 64, 128),
    effect_depths=(1, 2, 4),
    effect_horizons=(40, 80, 160),
    effect_batches=(4, 8, 16),
    gemm_width=64,
)

# HLO.

CUBLAS = """
HloModule jit_f, is_scheduled=true

%fused (p: bf16[64,32]) -> f8e4m3fn[64,32] {
  %p = bf16[64,32]{1,0} parameter(0)
  ROOT %c = f8e4m3fn[64,32]{1,0} convert(%p)
}

%max (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %m = f32[] maximum(%a, %b)
}

ENTRY %main (x: bf16[64,32], w: f8e5m2[48,32]) -> bf16[64,48] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = f8e5m2[48,32]{1,0} parameter(1)
  %one = f32[] constant(1)
  %x8 = f8e4m3fn[64,32]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %amax = f32[] reduce(%x, %one), dimensions={0,1}, to_apply=%max
  %gemm = (bf16[64,48]{1,0}, s8[33554432]{0}) custom-call(%x8, %w, %one, %one), custom_call_target="__cublas$lt$matmul$f8", backend_config={"a":{"b":[]}}
  ROOT %y = bf16[64,48]{1,0} get-tuple-element(%gemm), index=0
}
"""  # noqa: E501 - a line of HLO is as long as XLA makes it
INLINE = """
ENTRY %main {
  %gemm.1 = (bf16[16,16]{1,0}, /*index=1*/s8[4]{0}) custom-call(f8e4m3fn[16,16]{1,0} %p0, f8e4m3fn[16,16]{0,1} %p1), custom_call_target="__cublas$lt$matmul$f8"
  %sort.1 = f32[16]{0} custom-call(f32[16]{0} %p0), custom_call_target="__cub$DeviceRadixSort"
}
"""  # noqa: E501
REFUSED = """
%triton_gemm (p0: f8e4m3fn[64,32], p1: f8e4m3fn[32,16]) -> bf16[64,16] {
  %p0 = f8e4m3fn[64,32]{1,0} parameter(0)
  %p1 = f8e4m3fn[32,16]{1,0} parameter(1)
  %a = bf16[64,32]{1,0} convert(%p0)
  %b = bf16[32,16]{1,0} convert(%p1)
  ROOT %d = bf16[64,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def reductions(program: Program) -> list[str]:
    """The opcode that each ``reduce`` applies, such as ``maximum`` or ``add``.

    Conversions around it, as a CPU puts around bfloat16 arithmetic, are passed over.
    """
    found = []
    for instruction in program:
        applied = re.search(r"to_apply=%?([\w.\-]+)", instruction.attributes)
        if instruction.opcode in ("reduce", "all-reduce") and applied:
            inside = (i.opcode for i in program if i.computation == applied[1])
            moves = ("parameter", "convert", "bitcast", "copy", "transpose", "reshape")
            found.append(next((code for code in inside if code not in moves), ""))
    return found


def test_a_cublas_fp8_call_is_native() -> None:
    program = Program(CUBLAS)
    (product,) = program.products()
    assert product.kind == "__cublas$lt$matmul$f8"
    assert product.operands == ("f8e4m3fn", "f8e5m2")
    assert product.result == "bf16[64,48]"
    assert product.native and not product.emulated
    assert reductions(program) == ["maximum"]


def test_operand_types_that_stand_in_the_line_are_read_and_other_calls_passed_over() -> None:
    (product,) = Program(INLINE).products()
    assert product.operands == ("f8e4m3fn", "f8e4m3fn")
    assert product.native


def test_converted_operands_are_a_refusal() -> None:
    (product,) = Program(REFUSED).products()
    assert not product.native
    assert product.emulated
    assert product.text() == "f8e4m3fn→bf16 × f8e4m3fn→bf16"
    one_side = REFUSED.replace("dot(%a, %b)", "dot(%p0, %b)")
    (mixed,) = Program(one_side).products()
    assert not mixed.native  # both operands or none


def test_origins_are_followed_into_a_fusion_from_its_caller() -> None:
    inside = REFUSED.replace("f8e4m3fn[64,32]", "f32[64,32]").replace("f8e4m3fn", "f32")
    outside = """
ENTRY %main (x: f8e5m2[64,32], w: f32[32,16]) -> bf16[64,16] {
  %x = f8e5m2[64,32]{1,0} parameter(0)
  %w = f32[32,16]{1,0} parameter(1)
  %x32 = f32[64,32]{1,0} convert(%x)
  ROOT %y = bf16[64,16]{1,0} fusion(%x32, %w), kind=kCustom, calls=%triton_gemm
}
"""
    (product,) = Program(inside + outside).products()
    assert product.origins == ("f8e5m2", "bf16")


def linear_hlo(recipe: str, dtype: str) -> Program:
    casts = fp8.casts(recipe, "blocks.0.mlp.gate_up")
    x, w, g = (
        jax.ShapeDtypeStruct(s, t)
        for s, t in (((64, 32), dtype), ((32, 48), "float32"), ((64, 48), dtype))
    )

    def both(x, w, g):
        y, back = jax.vjp(lambda x, w: ops.linear(x, w, 1.0, 1.0, 1.0, casts), x, w)
        return y, *back(g)

    return Program(jax.jit(both).lower(x, w, g).compile().as_text() or "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_direct_cast_computes_no_amax(dtype: str) -> None:
    assert reductions(linear_hlo("fp8_seed", dtype)) == []
    assert reductions(linear_hlo("fp8_e5m2_grad", dtype)) == []
    assert reductions(linear_hlo("fp8_current", dtype)).count("maximum") == 3  # x, w, g


def test_a_whole_step_of_u_mup_computes_no_amax() -> None:
    found = {}
    for recipe in ("plain", "fp8_seed", "fp8_current"):
        model = ModelConfig(
            d_model=16, n_layers=1, d_head=16, d_ff=32, vocab_size=32, seq_len=8, recipe=recipe
        )
        optim = OptimConfig(steps=1, batch_size=2, warmup_steps=0)
        run = RunConfig("umup", model, optim, HPs(), 0, "none", "none", "none")
        lane = jax.tree.map(lambda leaf: leaf[0], train.lanes_of([run]))
        state = jax.eval_shape(functools.partial(train.init, run, lane))
        ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
        lowered = jax.jit(functools.partial(train.step, run, lane)).lower(state, (ids, ids))
        # Before optimization: all that is asked for is there, and nothing need be compiled.
        hlo = cast(Any, lowered.compiler_ir("hlo"))
        found[recipe] = reductions(Program(hlo.as_hlo_text())).count("maximum")
    assert found["fp8_seed"] == found["plain"] > 0  # the softmaxes' own
    assert found["fp8_current"] == found["plain"] + 15  # three a linear


# Measures.


def test_a_cpu_converts_and_says_so() -> None:
    found = gemm.linear_products("fp8_seed", "mlp.down", 48, 32, 64, "bfloat16")
    assert found["claims"] is True
    assert found["native"] is found["capable"] is False
    assert found["y"].startswith("f8e5m2→") and "× f8e4m3fn→" in found["y"]
    assert "e5m2" not in found["dx"]  # gradient and weight are both E4M3
    assert found["dw"].startswith("f8e5m2→")
    left = gemm.linear_products("fp8_e5m2_grad", "mlp.down", 48, 32, 64, "bfloat16")
    assert left["claims"] is False and "f8" not in left["y"]
    delayed = gemm.linear_products("fp8_delayed", "attn.qkv", 32, 96, 64, "float32")
    assert "f8e5m2→" in delayed["dx"] and "f8e5m2" not in delayed["y"]


def test_a_single_product_equals_that_of_its_cast_operands_here() -> None:
    exact = gemm.gemm(32, "fp8", seconds=1e-4, repeats=2)
    assert exact["error"] < 1e-6
    assert 0 < exact["tflops_lo"] <= exact["tflops"] <= exact["tflops_hi"]
    assert gemm.gemm(32, "fp8_current", "precise", seconds=1e-4, repeats=2)["error"] < 1e-5
    with pytest.raises(ConfigError, match="kind"):
        gemm.gemm(32, "fp4")


def test_a_step_finds_every_product_of_the_loop() -> None:
    shape: Any = {
        "n_layers": 2,
        "d_head": 16,
        "seq_len": 16,
        "batch_size": 2,
        "steps": 4,
        "chunks": 2,
    }
    found = gemm.step(32, "fp8_seed", dtype="float32", **shape)
    assert (found["fp8_products"], found["emulated"], found["expected"]) == (0, 15, 15)
    assert 3 < found["loss"] < 7
    with pytest.raises(ConfigError, match="steps"):
        gemm.step(32, "plain", dtype="float32", **shape | {"steps": 3})


def test_expected_products_count_blocks_that_cast_alike_once() -> None:
    model = ModelConfig(d_model=32, n_layers=4, d_head=16, d_ff=48, recipe="fp8_seed")
    assert gemm.expected(model) == 3 * 5
    assert gemm.expected(replace(model, recipe="fp8_e5m2_grad")) == 3 * 3
    assert gemm.expected(replace(model, recipe="bf16")) == 0
    kept = replace(model, keep_bf16=("blocks.3.mlp.down",))
    assert gemm.expected(kept) == 3 * (4 + 3 + 1)


def test_chain_has_the_successors_it_promises() -> None:
    text = gemm.chain(20_000, vocab_size=16)
    counts = np.zeros((16, 16))
    np.add.at(counts, (text[:-1], text[1:]), 1)
    likely = (counts.max(1) / counts.sum(1)).mean()
    assert likely == pytest.approx(0.75 + 0.25 / 16, abs=0.02)


# Design.


def test_the_design_varies_one_thing_at_a_time() -> None:
    runs = DESIGN.runs(TEXT)
    arms = [run for run in runs if len(run.probe_steps) != 1]
    assert len(arms) == 2 * 2 * 3
    plain = [run for run in arms if run.model.recipe == "plain"]
    assert all(run.probe_steps == (0, 10, 100) for run in plain)
    hps = 2 * (1 + 6 * 4)  # the default once, six of four other values
    assert len(runs) - len(arms) == 2 * (hps + 2 * (2 + 2 + 2 + 2))
    assert len({run.key() for run in runs}) == len(runs)
    etas = {run.hps.eta for run in runs if run.scheme == "umup"}
    assert etas == {2.0**x for x in (-2, -1, 0, 1, 2)}
    assert {run.hps.eta for run in arms if run.scheme == "mup"} == {2.0**-6.5}


def test_points_cover_the_linears_and_the_speeds() -> None:
    points = DESIGN.points()
    assert len(points) == 6 * 5
    more = replace(DESIGN, gemm_sizes=(128,), step_widths=(64,)).points()[30:]
    assert [p.what for p in more] == ["gemm"] * 7 + ["step"] * 6
    for point in more:
        study._measuring("fp8_drift", point)  # its arguments are the function's


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipes", ("bf16",)),
        ("schemes", ()),
        ("probe_steps", (10, 5)),
        ("probe_steps", (400,)),
        ("widths", (40,)),
        ("effect_width", 40),
        ("step_steps", 12),
        ("schemes", ("sp",)),
    ],
)
def test_bad_parameters_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Fp8Drift(**{field: value})
    assert error.value.field == field


@pytest.mark.parametrize("profile", ["smoke", "cpu", "h100"])
def test_profiles_are_designs(profile: str) -> None:
    values = parameters(FOLDER, profile)
    assert Fp8Drift.from_dict(values).runs(TEXT)


# Planted records.

START = {"input": 1.0, "weight": 1.0, "output_gradient": 0.5}
SLOPES = {"eta": 0.5, "alpha_loss_softmax": -0.4, "alpha_residual": 0.1, "width": 0.05}
LOST = {"mup": 0.9, "umup": 0.002}


def planted_rms(run: RunConfig, place: str, kind: str, step: int) -> float:
    """Readout weights grow fourfold, other inputs not at all, and settings move them by SLOPES."""
    value = START[kind] * (2.0**-12 if run.scheme == "mup" and kind == "output_gradient" else 1)
    share = step / run.optim.steps
    if place == "readout" and kind == "weight":
        value *= 4.0**share
    if place.endswith("mlp.down") and kind == "output_gradient":
        value *= 1.0 + 3.0 * (step == 10)
    for hp, power in SLOPES.items():
        x = (
            run.model.d_model / 32
            if hp == "width"
            else getattr(run.hps, hp) / (2.0**-6.5 if hp == "eta" and run.scheme == "mup" else 1.0)
        )
        value *= x**power if step == run.optim.steps else 1.0
    return value * 2.0 ** (0.001 * run.seed)


def probe_columns(run: RunConfig) -> dict[str, Any]:
    places = [
        f"blocks.{i}.{n}"
        for i in range(run.model.n_layers)
        for n in ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
    ]
    names = [f"{p}/{k}" for p in [*places, "readout"] for k in tables.KINDS]
    others = ["embed/value", "blocks.0.attn.scores/qk"]
    values = []
    for step in run.probe_steps:
        for name in names:
            place, kind = name.rsplit("/", 1)
            flushed = LOST[run.scheme] if kind == "output_gradient" else 0.0
            wide = 0.0 if step == 0 else flushed / 2
            values += [planted_rms(run, place, kind, step), 0.0, 1.0, 0.0, flushed, 0.0, wide]
        values += [1e9] * (len(others) * len(PROBE_STATS))  # must not be looked at
    return {
        "probe_steps": list(run.probe_steps),
        "probe_values": np.array(values, np.float32),
        "probe_tensors": [*names, *others] if run.probe_steps else [],
    }


def planted(run: RunConfig) -> dict[str, Any]:
    failing = run.scheme == "mup" and run.model.recipe == "fp8_seed"
    loss = 1.5 + 0.01 * run.seed + (0.5 + 0.001 * run.seed) * failing
    return {
        "val_loss": loss,
        "curve_steps": [1, 50, 100],
        "curve_loss": [5.0, 2.0, loss],
        **probe_columns(run),
    }


point = functools.partial(point_row, device="H100")


GPU = {"capable": True, "device_kind": "H100", "compute_capability": "9.0"}


def speeds() -> pd.DataFrame:
    text = "f8e4m3fn × f8e4m3fn"
    row = {"y": text, "dx": text, "dw": text, "claims": True, "native": True, **GPU}
    points = [point("linear", {"recipe": "fp8_seed", "linear": n}, row) for n in LINEARS]
    points.append(
        point(
            "linear",
            {"recipe": "bf16", "linear": "readout"},
            row | {"claims": False, "native": False},
        )
    )
    for kind, rate in (("bf16", 500.0), ("fp8", 1000.0)):
        ends = {"tflops": rate, "tflops_lo": 0.9 * rate, "tflops_hi": 1.1 * rate}
        points += [
            point("gemm", {"size": s, "kind": kind, "accumulation": "fast"}, ends | GPU)
            for s in (1024, 8192)
        ]
    for recipe, ms in (("bf16", 30.0), ("fp8_seed", 20.0)):
        ends = {
            "seconds": ms / 1e3,
            "seconds_lo": ms / 1e3,
            "seconds_hi": ms / 1e3,
            "tflops": 300.0,
            "loss": 1.0,
            "fp8_products": 15,
            "expected": 15,
        }
        spec = {"d_model": 4096, "recipe": recipe, "accumulation": "fast"}
        points.append(point("step", spec, ends | GPU))
    return pd.DataFrame(points)


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(rows_of(DESIGN.runs(TEXT), planted), speeds())


def test_planted_drifts_are_recovered(results: Results) -> None:
    q = quantities
    assert q.rms(results, "umup").value == pytest.approx(-1.0, abs=0.01)
    furthest = q.rms(results, "mup", kinds=["output_gradient"], extreme="largest")
    assert furthest.value == pytest.approx(-13.0, abs=0.01)
    assert furthest.lo < furthest.value < furthest.hi
    # 448 = 2^8.81 is 8.8 octaves away, 2⁻⁶ only 5 from 0.5
    assert q.margin(results, "umup", when="start").value == pytest.approx(5.0, abs=0.01)
    assert q.margin(results, "mup").value == pytest.approx(-7.0, abs=0.2)
    grown = q.growth(results, "umup", ["weight"], ["readout"])
    assert grown.value == pytest.approx(2.0 + 0.05 * 1, abs=0.01)  # width 64 of base 32
    fallen = q.growth(results, "umup", ["output_gradient"], ["mlp.down"], since="peak")
    assert fallen.value == pytest.approx(-2.0 + 0.05, abs=0.01)
    assert q.lost(results, "mup", column="e4m3_flushed").value == pytest.approx(90.0)
    assert q.lost(results, "umup").value == pytest.approx(0.2)


def test_the_seed_recipe_counts_wide_inputs_in_e5m2() -> None:
    assert tables._format("fp8_seed", "blocks.1.mlp.down", "input") == "e5m2"
    assert tables._format("fp8_seed", "blocks.1.mlp.down", "weight") == "e4m3"
    assert tables._format("fp8_seed", "readout", "input") == "e4m3"


def test_planted_slopes_are_recovered(results: Results) -> None:
    table = tables.slopes(results).set_index(["scheme", "varied", "tensor"])["slope"]
    for tensor in tables.FOLLOWED:
        assert table["umup", "eta", tensor] == pytest.approx(0.5, abs=1e-3)
        assert table["mup", "eta", tensor] == pytest.approx(0.5, abs=1e-3)
        assert table["umup", "width", tensor] == pytest.approx(0.05, abs=1e-3)
        assert table["umup", "batch", tensor] == pytest.approx(0.0, abs=1e-3)
    others = quantities.slope(results, "umup", "others", factor=16)
    assert others.value == pytest.approx(-0.4, abs=1e-3)
    assert quantities.slope(results, "umup", "shape", factor=4).value == pytest.approx(
        0.05, abs=1e-3
    )
    with pytest.raises(NotMeasured, match="the claim needs 32×"):
        quantities.slope(results, "umup", "eta", factor=32)
    # 4 octaves of η at a half each, and at most 0.4 each of the others
    assert quantities.reach(results, "umup", "eta", factor=16).value == pytest.approx(2.0, abs=0.01)
    reach = quantities.reach(results, "umup", "others", factor=16)
    assert reach.value == pytest.approx(1.6, abs=0.01)


def test_what_falls_and_rises_again_is_seen_by_its_range() -> None:
    values = pd.DataFrame([[2.0, 1.0, 2.0], [4.0, 1.0, 4.0]], columns=[0.5, 1.0, 2.0])
    found = quantities._apart(values)
    assert found.value == pytest.approx(1.5) and found.n == 2


def test_losses_are_paired_by_seed_and_divergence_is_infinite(results: Results) -> None:
    gap = quantities.loss_difference(results, "mup", "fp8_seed")
    assert gap.value == pytest.approx(0.501)
    # Student's t, three pairs 0.500, 0.501, 0.502: 4.303 · 0.001 / √3
    assert gap.hi - gap.value == pytest.approx(4.303 * 0.001 / math.sqrt(3), rel=1e-3)
    assert quantities.loss_difference(results, "umup", "fp8_seed").value == 0.0
    runs = results.runs.copy()
    bad = runs.index[(runs["scheme"] == "mup") & runs["spec"].str.contains("fp8_seed")][0]
    runs.loc[bad, ["status", "val_loss"]] = ["diverged", math.nan]
    broken = Results(runs, results.points)
    assert quantities.loss_difference(broken, "mup", "fp8_seed").lo == math.inf
    assert "1 of 3 diverged" in words.losses_table(broken)


def test_the_tensors_that_leave_are_ranked(results: Results) -> None:
    table = tables.departures(results)
    mup = table[table["scheme"] == "mup"]
    assert set(mup[mup["first"] == 0]["kind"]) == {"output_gradient"}
    assert np.isinf(table[table["scheme"] == "umup"]["first"]).all()
    assert "| 0 |" in words.departures_table(results) and "never" in words.departures_table(results)


def test_speeds_and_nativeness(results: Results) -> None:
    assert quantities.native_share(results).value == 100.0
    faster = quantities.gemm_speedup(results, 8192)
    assert (faster.value, faster.lo) == pytest.approx((2.0, 900 / 550))
    assert quantities.step_speedup(results, 4096, "fp8_seed").value == pytest.approx(1.5)
    refused = results.points.copy()
    first = refused.index[refused["what"] == "linear"][0]
    refused.loc[first, "result"] = refused.loc[first, "result"].replace(
        '"native": true', '"native": false'
    )
    assert quantities.native_share(Results(results.runs, refused)).value == pytest.approx(80.0)
    assert "**NO**" in words.products_table(Results(results.runs, refused))
    elsewhere = results.points.assign(
        result=results.points["result"].str.replace('"capable": true', '"capable": false')
    )
    with pytest.raises(NotMeasured, match="no FP8 units"):
        quantities.native_share(Results(results.runs, elsewhere))


@pytest.mark.parametrize("name", sorted(quantities.QUANTITIES))
def test_what_is_absent_is_not_measured(name: str) -> None:
    given = {
        "rms": {"scheme": "umup"},
        "margin": {"scheme": "umup"},
        "lost": {"scheme": "umup"},
        "growth": {"scheme": "umup", "kinds": ["weight"], "linears": ["readout"]},
        "loss_difference": {"scheme": "umup", "recipe": "fp8_seed"},
        "slope": {"scheme": "umup", "varied": "eta"},
        "reach": {"scheme": "umup", "varied": "eta"},
        "native_share": {},
        "gemm_speedup": {"size": 8192},
        "step_speedup": {"d_model": 4096, "recipe": "fp8_seed"},
    }[name]
    with pytest.raises(NotMeasured):
        quantities.QUANTITIES[name](EMPTY, **given)


def test_every_claim_is_judged_and_shown_once(results: Results) -> None:
    verdicts = {v.id: v for v in claims.evaluate(FOLDER, results, "cpu")}
    assert verdicts["mup-direct-cast-fails"].verdict == "holds"
    assert verdicts["only-eta-moves-rms"].verdict == "fails"
    assert verdicts["products-are-native"].verdict == "exact"
    assert verdicts["mup-scaled-does"].verdict == "not measured"
    source = (FOLDER / "study.py").read_text(encoding="utf-8")
    for name in verdicts:
        assert source.count(f'"claim:{name}"') == 1, name


DRAWN = {
    "umup": lambda r: fp8_drift_figures.settings(r, "umup"),
    "mup": lambda r: fp8_drift_figures.settings(r, "mup"),
    "distribution": fp8_drift_figures.distribution,
    "over_training": fp8_drift_figures.over_training,
    "lost": fp8_drift_figures.lost,
    "losses": fp8_drift_figures.losses,
    "shapes": fp8_drift_figures.shapes,
    "slopes": fp8_drift_figures.slopes,
    "speed": fp8_drift_figures.speed,
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_drawn_and_labelled(name: str, results: Results) -> None:
    figure = DRAWN[name](results)
    assert any(ax.get_xlabel() for ax in figure.axes)
    figure.canvas.draw()
    (ax,) = DRAWN[name](EMPTY).axes
    assert ax.texts  # says what is missing


def test_words_name_every_caption_and_survive_absence(results: Results) -> None:
    names = words.texts(results)
    source = (FOLDER / "study.py").read_text(encoding="utf-8")
    for name in names:
        assert f"{{glue:text}}`{name}`" in source, name
    assert set(words.texts(EMPTY).values()) == {"not measured"}
    assert "0.501" in words.answer(results)
    for say in (
        words.departures_table,
        words.losses_table,
        words.steps_table,
        words.products_table,
        words.what_ran,
    ):
        assert say(results).count("nan") == 0
        assert "Not measured" in say(EMPTY)


# The script.


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("gemm_proof", FOLDER / "gemm_proof.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_refuses_politely_without_fp8_units(capsys: pytest.CaptureFixture) -> None:
    assert load_script().main([]) == 2
    assert "--any-device" in capsys.readouterr().err


def linear_row(**found: Any) -> dict[str, Any]:
    text = dict.fromkeys(("recipe", "linear", "y", "dx", "dw", "y_kind", "verdict"), "x")
    return text | found


@pytest.mark.parametrize(("native", "status"), [(True, 0), (False, 1)])
def test_the_script_fails_where_fp8_is_refused(
    native: bool, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [linear_row(claims=True, native=native), linear_row(claims=False, native=False)]
    monkeypatch.setattr(gemm, "device", lambda: GPU)
    monkeypatch.setattr(proof, "linear_rows", lambda width, tokens: rows)
    out = tmp_path / "rows.json"
    assert load_script().main(["--sizes", "--steps", "--out", str(out)]) == status
    assert json.loads(out.read_text("utf-8"))["linear"] == rows


def test_the_script_needs_no_records_package() -> None:
    program = (
        "import sys\n"
        "for name in ('pyarrow', 'pandas', 'matplotlib', 'scipy'): sys.modules[name] = None\n"
        "from umup.lab.folders import code\n"
        "p = code('fp8_drift').proof\n"
        "rows = [dict(a=1, b=0.123456)]\n"
        "print(p.markdown(rows, ('a', 'b')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "| 1 | 0.1235 |" in done.stdout


def test_one_row_of_each_kind_is_made_here() -> None:
    (row, *_) = proof.gemm_rows([16])
    assert row["kind"] == "bf16" and row["tflops"] > 0
    row = next(iter(proof.linear_rows(16, 32)))
    assert row["verdict"] == "–" and row["recipe"] == "bf16"


def test_design_is_found_by_its_name() -> None:
    assert study.design_of("fp8_drift") is fp8_drift.Fp8Drift


def test_every_tensor_is_drawn_where_it_starts_and_ends(results: Results) -> None:
    table = tables.width_of(tables.drift(results))
    means = table.groupby(["scheme", "step", "kind", "place"])["rms"].mean()
    axes = iter(fp8_drift_figures.distribution(results).axes)
    for scheme in tables.SCHEMES:
        for step in (table["step"].min(), table["step"].max()):
            ax = next(axes)
            assert ax.get_title().startswith(f"{tables.NAMES[scheme]}, ")
            shown = [
                x for line in ax.lines if line.get_marker() != "None" for x in line.get_xdata()
            ]
            np.testing.assert_allclose(sorted(shown), sorted(np.log2(means[scheme, step])))
    for i, ax in enumerate(fp8_drift_figures.over_training(results).axes):
        scheme, kind = tables.SCHEMES[i // 3], tables.KINDS[i % 3]
        own = table[(table["scheme"] == scheme) & (table["kind"] == kind)]
        curves = own.groupby(["linear", "layer", "step"])["rms"].mean()
        shown = [line.get_ydata() for line in ax.lines if line.get_marker() != "None"]
        np.testing.assert_allclose(np.concatenate(shown), np.log2(curves))


def test_the_map_of_what_is_lost_has_a_row_for_every_tensor_that_loses(results: Results) -> None:
    table = tables.width_of(tables.drift(results))
    mup, umup, _ = fp8_drift_figures.lost(results).axes
    for ax, scheme in ((mup, "mup"), (umup, "umup")):
        own = table[table["scheme"] == scheme]
        shares = own.groupby(["place", "kind", "step"])["e4m3"].mean().unstack()
        largest = np.sort(shares[shares.max(axis=1) > 1e-3].max(axis=1))
        shown = np.asarray(ax.images[0].get_array())
        if len(largest):
            np.testing.assert_allclose(np.sort(shown.max(axis=1)), largest)
        assert len(ax.get_yticklabels()) == len(shown) == max(len(largest), 1)


def test_differences_from_float32_are_drawn_and_those_far_beyond_the_bound_are_arrows(
    results: Results,
) -> None:
    *curves, last = fp8_drift_figures.losses(results).axes
    table = tables.width_of(tables.loss_differences(results))
    wanted = table[table["recipe"] != "plain"].set_index("scheme")["difference"]
    assert wanted["mup"] > 20 * claims.bound("fp8_drift", "umup-direct-cast") > wanted["umup"]
    assert marks(last)[:, 0] == pytest.approx([wanted["umup"]])
    (arrow,) = [line for line in last.lines if line.get_marker() == ">"]
    assert arrow.get_xdata().tolist() == [0.98] and last.get_xlim()[1] <= 0.2
    assert {*drawn(curves[0])} == {"float32", "fp8_seed"}


def test_text_of_settings_is_legible_at_seven_inches(results: Results) -> None:
    for scheme in ("mup", "umup"):
        figure = fp8_drift_figures.settings(results, scheme)
        scale = 7 / max(figure.get_size_inches()[0], 7)
        texts = [t for t in figure.findobj(Text) if t.get_text()]
        assert texts and min(t.get_fontsize() for t in texts) * scale >= 8.5


def test_settings_and_slopes_are_drawn_as_tabled(results: Results) -> None:
    settings, slopes = tables.settings(results), tables.slopes(results)
    figure = fp8_drift_figures.settings(results, "umup")
    own = settings[(settings["scheme"] == "umup") & (settings["varied"] == "eta")]
    own = own[own["recipe"] == "plain"]
    columns = len(figure.axes) // 4
    for ax, name in zip(figure.axes[::columns], ("loss", *tables.FOLLOWED), strict=True):
        mean = (own[name] if name == "loss" else np.log2(own[name])).groupby(own["value"])
        np.testing.assert_allclose(ax.lines[0].get_ydata(), mean.mean())
        np.testing.assert_allclose(ax.lines[0].get_xdata(), np.log2(list(mean.groups)))
    for ax, scheme in zip(fp8_drift_figures.slopes(results).axes, ("mup", "umup"), strict=True):
        own = slopes[slopes["scheme"] == scheme]
        wanted = pd.concat([own[own["tensor"] == t]["slope"] for t in tables.FOLLOWED])
        np.testing.assert_allclose(marks(ax)[:, 0], wanted)
    width = settings[(settings["varied"] == "width") & (settings["scheme"] == "umup")]
    mean = width.groupby("value")["loss"].mean()
    shown = [line.get_ydata().tolist() for line in fp8_drift_figures.shapes(results).axes[0].lines]
    assert pytest.approx(mean.tolist()) in shown


def test_speeds_are_drawn_in_teraflops_and_relative_to_bf16(results: Results) -> None:
    left, right = fp8_drift_figures.speed(results).axes
    fp8 = drawn(left)[fp8_drift_figures.PRODUCTS["fp8"][2]]
    assert fp8.tolist() == [[1024, 1000], [8192, 1000]]
    assert drawn(right)["fp8_seed"].tolist() == [[4096, pytest.approx(1.5)]]
