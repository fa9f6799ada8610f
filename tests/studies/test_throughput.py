"""The study of throughput: points, pieces, and quantities of planted times; nothing is timed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from synthetic import EMPTY, drawn, marks, points_of
from umup import ops
from umup.errors import ConfigError, StudyError
from umup.lab import bench_torch, claims, timing
from umup.lab.folders import code
from umup.lab.records import Results
from umup.lab.study import parameters

study = code("throughput").design
figures = code("throughput").figures
measures = code("throughput").measures
pieces = code("throughput").pieces
words = code("throughput").words
tables = code("throughput").results

HERE = Path(__file__).resolve().parents[2] / "experiments" / "throughput"


def design_of(profile: str) -> study.Throughput:
    values = parameters(HERE, profile)
    return study.Throughput.from_dict(values)


CPU = design_of("cpu")
STEP_MS = {"umup": 22.0, "blocked": 20.0, "eager": 40.0, "compiled": 25.0, "remat_full": 49.5}
BASES = {"remat_dots": "scanned", "remat_full": "scanned"}  # all else beside the plain step


def planted(point: Any) -> dict[str, Any]:
    """Round numbers: a GEMM peak of 1 TFLOP/s, ours in blocks at half of PyTorch's time."""
    spec, loaded = point.spec, {"others": 0.01}
    if point.what in ("step", "tried"):
        ms = {s: [STEP_MS.get(s, 33.0) * k for k in (1.0, 1.1, 0.9) * 5] for s in spec["sides"]}
        ours = [s for s in spec["sides"] if s not in measures.TORCH]
        return loaded | {
            "ms": ms,
            "mib": {s: 50.0 if s == "remat_full" else 100.0 for s in ours},
            "compile_s": dict.fromkeys(ours, 3.0),
            "n_params": 1000,
            "tokens": 2048,
            "flops": 12_000_000_000,
        }
    if point.what == "parts":
        shares = {"products": 5.0, "readout": 1.0, "attention": 2.0, "loss": 1.0}
        shares |= {name: 0.0 for name in figures.PIECES if name not in (*shares, tables.REST)}
        return loaded | {"ms": {"step": [10.0] * 3, **{n: [v] * 3 for n, v in shares.items()}}}
    found: list[dict[str, Any]] = {
        "gemm": [{"library": "jax", "gflops": 900.0}, {"library": "torch", "gflops": 1000.0}],
        "lanes": [
            {"d_model": 32, "lanes": 8, "steps": 50, "at_once": n, "compile_s": c, "run_s": r}
            for n, c, r in ((0, 24.0, 8.0), (1, 3.0, 7.0), (2, 4.0, 8.0))
        ],
        "compile_times": [
            {"d_model": 32, "n_layers": n, "trace_s": 1.0, "compile_s": 0.5 + n / 32}
            for n in (2, 8, 32)
        ],
        "memory": [
            {"side": s, "d_model": 256, "peak_mib": m}
            for s, m in (("umup", 800.0), ("pytorch", 1000.0))
        ],
        "probes": [{"d_model": 32, "step_ms": [10.0] * 6, "look_ms": [20.0] * 6}],
    }[point.what]
    return loaded | {"found": found}


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(EMPTY.runs, points_of(CPU.points(), planted))


# The design


def test_points_are_every_width_change_and_part() -> None:
    points = CPU.points()
    assert len({p.key() for p in points}) == len(points)
    steps = {p.spec["width"]: p.spec["sides"] for p in points if p.what == "step"}
    assert steps[64] == ["umup", "blocked", "eager", "compiled"]
    assert steps[32] == ["umup", "blocked", "eager"]
    tried = [p.spec["sides"] for p in points if p.what == "tried"]
    assert tried == [[BASES.get(name, "umup"), name] for name in CPU.tried]
    assert {p.what for p in points} == set(measures.MEASURES)


def test_the_step_is_that_of_the_bench() -> None:
    point = next(p for p in CPU.points() if p.what == "step")
    plan = measures._plan(json.loads(json.dumps(point.spec["shape"])))
    run = measures._run(plan, 64, 4, timing.CHANGES["scanned"])
    assert (run.model.d_head, run.model.d_ff, run.model.unroll) == (32, 256, 1)
    assert measures._run(plan, 64, 4, timing.Change("", 1.0)).model.unroll == 0
    assert (run.model.vocab_size, run.model.seq_len, run.optim.batch_size) == (512, 128, 16)


@pytest.mark.parametrize("profile", ["smoke", "cpu", "h100"])
def test_profiles_make_points_whose_changes_are_possible(profile: str) -> None:
    design = design_of(profile)
    plan = design.plan()
    for name in (*design.tried, *design.settings):
        measures._run(plan, design.tried_widths[0], 2, timing.CHANGES[name])
    assert design.points()


def test_the_large_decoder_has_a_thousand_million_parameters() -> None:
    design = design_of("h100")
    model = design.plan().model(design.big_width, n_layers=design.big_layers)
    assert 0.95e9 < model.n_params < 1.1e9


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"big_width": 64}, "big_layers"),
        ({"compiled_widths": (48,)}, "compiled_widths"),
        ({"widths": (33,)}, "d_head"),
        ({"tried": ("magic",)}, "tried"),
        ({"references": ("jit",)}, "references"),
    ],
)
def test_bad_parameters_are_errors_that_name_the_field(changes: dict, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(CPU, **{"compiled_widths": (), **changes})
    assert error.value.field == field


def test_absent_pytorch_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_torch, "PACKAGES", ("no-such-package",))
    with pytest.raises(StudyError, match="no-such-package not installed"):
        measures._torch(CPU.plan(), 32, 1, "eager")
    with pytest.raises(StudyError, match="references"):
        measures.benched(part="memory", plan={"torch": True})


# Ops and pieces


def test_the_pair_has_the_numbers_of_its_two_halves() -> None:
    pair = jax.random.normal(jax.random.key(0), (16, 2, 8))
    g = jax.random.normal(jax.random.key(1), (16, 8))

    def halves(pair):
        return ops.gated_silu(pair[:, 1], pair[:, 0], 0.7, 1.3)

    for got, want in zip(
        jax.vjp(lambda p: ops.gated_silu_pair(p, 0.7, 1.3), pair)[1](g), jax.vjp(halves, pair)[1](g)
    ):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(ops.gated_silu_pair(pair, 0.7, 1.3), halves(pair))


def test_a_piece_moves_its_operands_by_their_gradients_every_step() -> None:
    piece = pieces.Piece(lambda x: 3.0 * x, jnp.float32(1.0))
    assert piece.seconds(2) > 0
    # y = 3x pulled back by y itself: dx = 9x, twice
    assert float(piece.carry[0]) == pytest.approx((1 + 9 * pieces.NUDGE) ** 2, rel=5e-7)


def test_batches_are_drawn_at_every_step() -> None:
    plan = design_of("smoke").plan()
    batch = pieces.Batch(plan.run(plan.model(16)))
    batch.seconds(3)
    assert [int(x) for x in batch.carry] == [3, 0]


# Tables and quantities


def test_median_intervals_are_the_order_statistics_of_the_sign_test() -> None:
    # n = 15: P[Bin(15, ½) ≤ 3] = 576/32768 = 0.018, ≤ 4: 0.059. So the 4th and the 12th.
    got = tables.median_interval(range(15, 0, -1))
    assert (got.value, got.lo, got.hi) == (8.0, 4.0, 12.0)
    assert math.isinf(tables.median_interval([1.0] * 5).hi)
    assert tables.median_interval([3.0, 1.0, 2.0, 4.0, 6.0, 5.0]).hi == 6.0  # 2/64 is left out


def test_ratios_are_sample_by_sample(results: Results) -> None:
    got = tables.ratio(results, 64, "blocked")
    assert (got.value, got.lo, got.hi) == pytest.approx((0.5, 0.5, 0.5))  # the drift cancels
    assert tables.ratio(results, 64, "blocked", "compiled").value == pytest.approx(0.8)
    assert tables.speedup(results, 64, "blocked", "eager", "float32").value == pytest.approx(2.0)


def test_shares_are_of_the_best_product_of_any_library(results: Results) -> None:
    # 12 GFLOP in 20 ms: 600 GFLOP/s of 1000
    assert tables.mfu(results, 256, "blocked").value == pytest.approx(60.0)
    row = tables.steps(results).set_index(["width", "side"]).loc[(256, "blocked")]
    assert row["tokens_per_s"] == pytest.approx(2048 / 0.02)


def test_changes_are_against_the_plain_step(results: Results) -> None:
    assert tables.tried_ratio(results, "blocked", 64).value == pytest.approx(20 / 22)
    assert tables.tried_ratio(results, "scanned", 64).value == pytest.approx(1.5)
    assert tables.tried_ratio(results, "remat_full", 64).value == pytest.approx(1.5)  # of scanned
    assert tables.tried_memory(results, "remat_full", 64).value == 0.5


def test_pieces_and_what_they_leave(results: Results) -> None:
    got = tables.pieces_share(results, 256, ["products", "readout", "attention"])
    assert got.value == pytest.approx(80.0)
    table = tables.parts(results)
    rest = table[(table["width"] == 256) & (table["piece"] == tables.REST)]
    assert rest["share"].item() == pytest.approx(0.1)


def test_sweeps_compile_times_and_memory(results: Results) -> None:
    assert tables.lanes_gain(results, 32, 8).value == pytest.approx(32 / 10)
    assert tables.lanes_gain(results, 32, 8, compiling=False).value == pytest.approx(8 / 7)
    assert tables.compile_growth(results, 16).value == pytest.approx(2.5 / 1.5625)
    assert tables.memory_ratio(results, 256).value == pytest.approx(0.8)


ARGS: dict[str, dict[str, Any]] = {
    "ratio": {"width": 64},
    "mfu": {"width": 64},
    "speedup": {"width": 64, "side": "blocked", "against": "eager", "dtype": "float32"},
    "tried_ratio": {"change": "blocked", "width": 64},
    "tried_memory": {"change": "blocked", "width": 64},
    "pieces_share": {"width": 256, "pieces": ["products"]},
    "lanes_gain": {"width": 32, "lanes": 8},
    "compile_growth": {"factor": 16},
    "memory_ratio": {"width": 256},
}


@pytest.mark.parametrize("name", tables.QUANTITIES)
def test_what_is_absent_is_not_measured(results: Results, name: str) -> None:
    tables.QUANTITIES[name](results, **ARGS[name])
    with pytest.raises(claims.NotMeasured):
        tables.QUANTITIES[name](EMPTY, **ARGS[name])
    other = {"factor": 64} if name == "compile_growth" else {"width": 48}
    with pytest.raises(claims.NotMeasured):
        tables.QUANTITIES[name](results, **{**ARGS[name], **other})


def test_claims_are_judged_and_those_of_the_gpu_wait_for_one(results: Results) -> None:
    said = {v.id: v.verdict for v in claims.evaluate(HERE, results, "cpu")}
    assert {name for name, verdict in said.items() if verdict == "not measured"} == {
        "h100-peak",
        "h100-fp8",
        "h100-lanes",
    }
    assert {v for name, v in said.items() if not name.startswith("h100")} == {
        "holds",
        "exact",
        "fails",
    }
    assert (said["cpu-32"], said["remat-time"]) == ("exact", "fails")  # 0.5 and 49.5/33


# Words and figures


def test_words_say_the_planted_numbers(results: Results) -> None:
    said = words.answer(results)
    assert "takes 0.50 at width 32" in said and "reaches 60 %" in said
    assert "Other processes took at most 1 %" in words.what_ran(results)
    assert "| 64 | 4 | umup, attention in blocks | 20.0 (18.0–22.0) |" in words.step_table(results)
    assert "| attention in causal blocks | 64 | 0.90 | 0.91 |" in words.tried_table(results)
    texts = words.texts(results)
    assert texts["pieces_large"] == (
        "at width 256 products of the blocks 50 %, attention 20 %, readout 10 %"
    )
    assert texts["lanes"] == "3.20" and texts["peak"] == "1000"


def test_smoke_says_no_times(results: Results) -> None:
    said = [
        words.answer(results, 1),
        words.step_table(results, 1),
        words.tried_table(results, 1),
    ]
    assert all(words.UNSAID in text for text in said)
    assert not any("20.0" in text or "0.50" in text for text in said)


@pytest.mark.parametrize("name", ["beside", "changes", "where", "beyond"])
def test_figures_draw_with_labels_and_say_when_there_is_nothing(
    results: Results, name: str
) -> None:
    figure = getattr(figures, name)(results)
    figure.draw_without_rendering()
    assert all(ax.get_xlabel() for ax in figure.axes)
    assert not getattr(figures, name)(EMPTY).axes[0].get_xlabel()


def test_every_claim_on_a_ratio_at_a_width_is_drawn(results: Results) -> None:
    listed = yaml.safe_load((HERE / "claims.yaml").read_text(encoding="utf-8"))
    found = {c["args"]["width"]: c["bound"]["max"] for c in listed[:4]}
    assert tuple(found) == figures.CLAIMED
    _, right = figures.beside(results).axes
    black = [line for line in right.lines if line.get_color() == "black"]
    heights = [float(np.asarray(line.get_ydata())[0]) for line in black]
    assert heights == [found[w] for w in sorted(set(tables.steps(results)["width"]) & set(found))]


def test_steps_and_their_ratios_are_drawn(results: Results) -> None:
    left, right = figures.beside(results).axes
    table = tables.steps(results)
    table = table[table["n_layers"] == table["n_layers"].mode().iloc[0]]
    for side, group in table.groupby("side"):
        at = group.sort_values("width")[["width", "median"]]
        np.testing.assert_allclose(drawn(left)[figures.SIDES[side].title], at)
    ratios = {
        (row.width, tables.ratio(results, row.width, row.side, n_layers=row.n_layers).value)
        for row in table.itertuples()
        if row.side != "eager"
    }
    assert {(x, y) for x, y in marks(right)} == ratios


def test_changes_are_drawn_beside_what_was_predicted(results: Results) -> None:
    (ax,) = figures.changes(results).axes
    table = tables.tried(results)
    at = table[table["width"] == table["width"].iloc[0]].sort_values("ratio", ascending=False)
    np.testing.assert_allclose(drawn(ax)["measured"][:, 0], at["ratio"])
    np.testing.assert_allclose(drawn(ax)["predicted"][:, 0], at["predicted"])
    assert [t.get_text() for t in ax.get_yticklabels()] == at["title"].tolist()


def test_bars_are_the_shares_of_the_pieces(results: Results) -> None:
    (ax,) = figures.where(results).axes
    table = tables.parts(results)
    widths = sorted(table["width"].unique())
    for bars, piece in zip(ax.containers, figures.PIECES, strict=True):
        shares = table[table["piece"] == piece].set_index("width")["share"]
        wanted = [100 * max(shares.get(width, 0.0), 0.0) for width in widths]
        assert [bar.get_width() for bar in bars] == pytest.approx(wanted)


def test_compile_times_and_sweeps_are_drawn(results: Results) -> None:
    left, right = figures.beyond(results).axes
    assert drawn(left)["tracing and compiling"].tolist() == [[2, 1.5625], [8, 1.75], [32, 2.5]]
    compiling, running = right.containers
    assert [bar.get_height() for bar in compiling] == [24.0, 3.0, 4.0]
    assert [(bar.get_y(), bar.get_height()) for bar in running] == [(24, 8), (3, 7), (4, 8)]
