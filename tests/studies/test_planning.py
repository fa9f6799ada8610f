"""The study of the planner: points, and tables, quantities and words of planted reports.

One tiny step is truly compiled, split along all three axes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from synthetic import EMPTY, drawn, marks, points_of
from umup.errors import ConfigError, StudyError
from umup.lab import bench, claims, records
from umup.lab.folders import code
from umup.lab.records import Results
from umup.lab.study import parameters
from umup.plan import aot, formulas

study = code("planning").design
figures = code("planning").figures
words = code("planning").words
tables = code("planning").results
measures = code("planning").measures

HERE = Path(__file__).resolve().parents[2] / "experiments" / "planning"


def design_of(profile: str) -> study.Planning:
    return study.Planning.from_dict(parameters(HERE, profile))


CPU = design_of("cpu")


def planted(point: Any, **changes: Any) -> dict[str, Any]:
    """A report that the predictions miss by known amounts: memory by −20 %, fsdp by +25 %."""
    platform = "gpu" if point.what == "hopper" else "cpu"
    c = tables.case(point.spec, tables.MACHINES[platform])
    right = tables._predicted(c, formulas.memory(c))
    collectives = [
        {
            "kind": "all-reduce",
            "axes": [axis],
            "group": 2,
            "dtype": "bf16",
            "count": 1,
            "bytes": right[axis] * factor,
        }
        for axis, factor in (("data", 1.0), ("fsdp", 0.8), ("tensor", 1.0))
        if right[axis]
    ]
    state = right["state"]
    return {
        "platform": platform,
        "devices": c.devices,
        "n_params": int(right["parameters"]),
        "lower_s": 30.0,
        "compile_s": 90.0,
        "peak_rss_mib": 512.0,
        "argument_bytes": state,
        "output_bytes": state,
        "alias_bytes": state,
        "temp_bytes": 1.25 * right["memory"] - state,
        "flops": right["flops"],
        "xla_flops": 1.0,
        "collectives": collectives,
        **changes,
    }


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(EMPTY.runs, points_of(CPU.points(), planted))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step times of the study `throughput`: one at width 64, one change beside it."""
    shape = {
        "d_head": 32,
        "ff_ratio": 4,
        "vocab_size": 512,
        "seq_len": 128,
        "batch_size": 16,
        "dtype": "float32",
    }
    spec = {"shape": shape, "width": 64, "n_layers": 4, "samples": 9, "steps": 4}
    found = [
        spec | {"sides": sides, "ms": {side: [ms] * 9 for side in sides}}
        for sides, ms in ((["umup", "eager"], 20.0), (["umup", "remat_full"], 40.0))
    ]
    monkeypatch.setattr(bench, "timed_steps", lambda profile: found)


# The design


def test_points_are_the_list_then_every_size_layout_and_recipe() -> None:
    points = CPU.points()
    assert len({p.key() for p in points}) == len(points)
    assert len(CPU.configurations) >= 16
    whole = len(CPU.configurations) + 2 * 4 * 2
    assert len(points) == whole - len(words.FUSED) + whole
    last = points[-1].spec
    assert (last["name"], last["mesh"]) == ("70B", {"data": 8, "fsdp": 64})
    assert (last["model"]["recipe"], last["optim"]["batch_size"]) == ("fp8_seed", 512)
    fused = [p.what for p in points if p.spec["name"] in words.FUSED]
    assert fused == ["hopper"] * len(words.FUSED), "a CPU has no cuDNN"
    ahead = [p for p in points if p.what == "hopper"]
    assert points == [p for p in points if p.what == "compiled"] + ahead
    assert {p.spec["device"] for p in ahead} == {"h100"}
    assert {p.what for p in dataclasses.replace(CPU, gpu="").points()} == {"compiled"}


def test_the_h100_compiles_for_itself_one_device() -> None:
    points = design_of("h100").points()
    assert {p.what for p in points} == {"native"}
    assert all(not p.spec["mesh"] for p in points)


TINY = {"d_model": 64, "d_head": 32, "d_ff": 128, "n_layers": 2, "seq_len": 32}


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"model": TINY}, "configurations"),
        ({"name": "a", "models": TINY}, "configurations"),
        ({"name": "a", "model": TINY | {"d_head": 48}}, "a: model.d_head"),
        ({"name": "a", "model": TINY, "mesh": {"tensor": 3}}, "a: mesh.tensor"),
        (
            {"name": "a", "model": TINY, "mesh": {"data": 1024}, "optim": {"batch_size": 1024}},
            "a: mesh",
        ),
    ],
)
def test_what_cannot_be_compiled_is_an_error_at_once(entry: dict, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        study.Planning(configurations=(entry,))
    assert error.value.field == field


def test_a_native_compile_wants_an_accelerator() -> None:
    with pytest.raises(StudyError, match="accelerator"):
        measures.native(name="a", model=TINY, optim={}, mesh={})


def test_a_step_split_every_way_is_as_predicted() -> None:
    """Compiled for real: no bytes on the way that the formulas have not, no product either."""
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    design = study.Planning(
        configurations=({"name": "tiny", "model": TINY, "optim": {"batch_size": 8}, "mesh": mesh},)
    )
    (point,) = design.points()
    made = points_of([point], lambda p: measures.compiled(**p.spec))
    found = tables.table(Results(EMPTY.runs, made))
    for of, percent in (
        ("parameters", 0),
        ("flops", 0),
        ("state", 1),
        ("data", 0.01),
        ("fsdp", 1),
        ("tensor", 1),
    ):
        assert tables.errors(found, of).abs().max() <= percent, of
    assert found["other"].item() < 100


def test_a_name_is_no_part_of_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    empty = aot.Report("cpu", 1, 1, 1.0, 1.0, 1.0, 1, 1, 1, 1, 1.0, 1.0, (), {})
    monkeypatch.setattr(aot, "compiled", lambda job, **how: (seen.append(job), empty)[1])
    one, two = (measures.compiled(name=n, model=TINY, optim={}, mesh={}) for n in ("a", "b"))
    assert one == two and seen[0] == seen[1] and seen[0].model.d_ff == 128


@pytest.mark.gpu_compiler
def test_a_step_for_gpus_that_are_not_there_is_as_predicted() -> None:
    model = TINY | {"d_model": 256, "d_head": 64, "d_ff": 704, "dtype": "bfloat16"}
    design = study.Planning(
        gpu="h100",
        configurations=(
            {"name": "small", "model": model, "optim": {"batch_size": 16}, "mesh": {"fsdp": 2}},
        ),
    )
    point = design.points()[-1]
    found = tables.table(
        Results(EMPTY.runs, points_of([point], lambda p: measures.hopper(**p.spec))), "hopper"
    )
    for of, percent in (("parameters", 0), ("flops", 0.1), ("state", 1), ("fsdp", 5)):
        assert tables.errors(found, of).abs().max() <= percent, of


# Tables and quantities


def test_errors_are_predicted_over_compiled(results: Results) -> None:
    found = tables.table(results)
    assert tables.errors(found, "memory").to_numpy() == pytest.approx(-20.0)
    assert tables.errors(found, "fsdp").to_numpy() == pytest.approx(25.0)
    assert len(tables.errors(found, "tensor")) == (found["mesh"].str[-1] != "1").sum()
    assert tables.worst(results, "memory").value == pytest.approx(20.0)
    assert tables.worst(results, "parameters").value == 0
    with pytest.raises(claims.NotMeasured, match="43 configurations, the claim needs 44"):
        tables.worst(results, "flops", least=44)


def test_state_is_of_the_devices_that_split_it(results: Results) -> None:
    found = tables.table(results, only=["7B"]).set_index(["mesh", "recipe"])
    # 6 738 149 376 parameters (measured), weights and two moments in float32
    for mesh, ways in (("1×64×1", 64), ("1×64×8", 512), ("8×64×1", 64)):
        state = found.loc[(mesh, "plain"), "state_predicted"]
        assert state == pytest.approx(12 * 6_738_149_376 / ways)


def test_collectives_of_no_axis_are_counted_apart() -> None:
    point = next(p for p in CPU.points() if p.spec["name"] == "data 8, two parts")
    sent = formulas.communication(tables.case(point.spec, "cpu")).replicas
    both = [
        {"axes": axes, "bytes": size}
        for axes, size in ((["data"], sent), (["data", "fsdp"], sent / 8), ([], sent / 8))
    ]
    made = points_of([point], lambda p: planted(p, collectives=both))
    planted_ = Results(EMPTY.runs, made)
    assert tables.unforeseen(planted_).value == pytest.approx(20.0)
    assert tables.worst(planted_, "data").value == pytest.approx(0.0)


def test_compiling_takes_the_longest_of_all_layouts(results: Results) -> None:
    assert tables.compile_minutes(results, "70B", 512).value == pytest.approx(2.0)
    assert tables.compile_memory(results, "70B", 512).value == pytest.approx(0.5)
    with pytest.raises(claims.NotMeasured, match="256 devices"):
        tables.compile_minutes(results, "70B", 256)


def test_step_times_are_those_of_the_other_study(results: Results, steps: None) -> None:
    found = tables.timed(results).set_index("side")
    assert found.index.tolist() == ["remat_full", "umup"]  # no PyTorch, the plain step once
    plain = found.loc["umup"]
    assert plain["seconds"] == pytest.approx(0.020)
    assert plain["error"] == pytest.approx(100 * (plain["predicted"] / 0.020 - 1))
    got = tables.step_time(results, 64)
    assert got.lo == got.hi == pytest.approx(plain["error"])  # nine equal samples
    assert found.loc["remat_full", "predicted"] > plain["predicted"]
    with pytest.raises(claims.NotMeasured):
        tables.step_time(results, 48)
    with pytest.raises(claims.NotMeasured, match="smoke"):
        tables.timed(EMPTY)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("worst", {"of": "memory"}),
        ("unforeseen", {}),
        ("compile_minutes", {"name": "70B", "devices": 512}),
        ("compile_memory", {"name": "70B", "devices": 512}),
        ("step_time", {"width": 64}),
    ],
)
def test_what_is_absent_is_not_measured(name: str, args: dict[str, Any]) -> None:
    with pytest.raises(claims.NotMeasured):
        tables.QUANTITIES[name](EMPTY, **args)
    assert set(tables.QUANTITIES) >= {name}


def test_claims_are_judged_by_their_bounds(results: Results, steps: None) -> None:
    said = {v.id: v.verdict for v in claims.evaluate(HERE, results, "cpu")}
    absent = {"h100-flops", "h100-memory", "time-128", "time-dots"}
    assert {n for n in said if said[n] == "not measured"} == absent
    assert {n for n in said if said[n] == "fails"} >= {
        "memory",
        "memory-large",
        "collectives-fsdp",
        "hopper-memory",
        "hopper-fsdp",
    }
    assert said["flops"] == said["collectives-tensor"] == "exact"
    assert said["compile-time"] == "holds"  # measured once


def test_bounds_are_those_of_the_claims() -> None:
    listed = yaml.safe_load((HERE / "claims.yaml").read_text(encoding="utf-8"))
    bounds = {c["id"]: c["bound"]["max"] for c in listed}
    memories = ("memory", "memory-large", "h100-memory", "hopper-memory")
    assert {bounds[n] for n in memories} == {figures.BOUNDS["memory"]}
    assert bounds["hopper-fsdp"] == bounds["collectives-fsdp"] == figures.BOUNDS["collectives"]
    assert bounds["time-64"] == bounds["time-full"] == figures.BOUNDS["time"]


# Words and figures


def test_words_say_the_planted_numbers(results: Results, steps: None) -> None:
    said = words.answer(results)
    assert "Of 43 training steps" in said and "parameters exactly" in said
    assert "memory of 0 within 10 % (worst: 20.0 %)" in said and "each mesh axis to 25.0 %" in said
    assert "linears fp8_e5m2_grad, fp8_seed, plain" in words.what_ran(results)
    assert "| −20.0 |" in words.memory_table(results)
    assert "(+25.0 %)" in words.collectives_table(results)
    assert "| 70B | fp8_seed | 8×64×1 | 512 | 120 | 0.50 |" in words.large_table(results)
    assert "| 64 | plain | 20.0 |" in words.time_table(results)
    said = words.hopper_answer(results)
    assert "GPUs, 0 of 45 memory predictions are within 10 % (worst: 20.0 %" in said
    assert "none is more than 20.0 % too small" in said and "within 25.0 %" in said
    single = Results(EMPTY.runs, results.points[results.points["spec"].str.contains("narrow")])
    assert "mesh axis" not in words.hopper_answer(single)
    assert words.memory_table(results, kind="hopper").count("\n") == 1 + 45
    texts = words.texts(results)
    assert (texts["hopper_memory"], texts["hopper_fsdp"]) == ("20.0", "25.0")
    assert (texts["memory"], texts["fsdp"], texts["minutes"]) == ("20.0", "25.0", "2.0")
    assert (texts["within"], texts["of"], texts["under"]) == ("0", "43", "20.0")
    assert "70B" in texts["beyond"]


def test_smoke_says_no_errors(results: Results) -> None:
    said = [
        words.answer(results, 1),
        words.memory_table(results, 1),
        words.collectives_table(results, 1),
        *words.texts(results, 1).values(),
    ]
    assert not any("20.0" in text or "25.0" in text for text in said)


@pytest.mark.parametrize("name", ["memory", "parts", "collectives", "times"])
def test_figures_draw_with_labels_and_say_when_there_is_nothing(
    results: Results, steps: None, name: str
) -> None:
    figure = getattr(figures, name)(results)
    figure.draw_without_rendering()
    assert all(ax.get_xlabel() for ax in figure.axes)
    assert not getattr(figures, name)(EMPTY).axes[0].get_xlabel()


def test_recorded_points_are_those_of_the_profile() -> None:
    store = records.Store(HERE / "records" / "cpu")
    found = records.read_results(store).points
    assert set(found["key"]) == {point.key() for point in CPU.points()}


def test_memory_is_drawn_against_what_was_compiled(results: Results) -> None:
    left, right = figures.memory(results).axes
    found = tables.table(results)
    points = np.concatenate([line.get_xydata() for line in left.lines[1:]])  # the first: equality
    wanted = found[["memory", "memory_predicted"]].to_numpy() / tables.GIB
    np.testing.assert_allclose(points, wanted)
    errors = [line.get_ydata()[0] for line in right.lines if line.get_marker() != "None"]
    np.testing.assert_allclose(errors, tables.errors(found, "memory"))


def test_bars_are_the_predicted_parts_and_the_compiled_two(results: Results) -> None:
    found = tables.table(results, only=figures.LARGE)
    for ax, name in zip(figures.parts(results).axes, figures.LARGE, strict=True):
        at = found[(found["name"] == name) & (found["recipe"] == "plain")]
        at = at.sort_values(["devices", "memory"], ascending=[True, False])
        heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
        parts = [at[f"{part}_of"] / tables.GIB for part in figures.PARTS]
        state = at["state"] / tables.GIB
        np.testing.assert_allclose(heights, [*parts, state, at["memory"] / tables.GIB - state])
        assert ax.get_title() == name


def test_collectives_and_times_are_drawn_as_tabled(results: Results, steps: None) -> None:
    found = tables.table(results)
    left, right = figures.collectives(results).axes
    for axis in ("data", "fsdp", "tensor"):
        at = found[found[axis] > 0][[axis, f"{axis}_predicted"]] / tables.GIB
        np.testing.assert_allclose(drawn(left)[axis], at)
    large = found[found["name"] == "70B"]
    large = large.sort_values(["recipe", "devices", "mesh"], ascending=False)
    for bars, axis in zip(right.containers, figures.AXIS, strict=True):
        wanted = large[axis] / tables.GIB
        np.testing.assert_allclose([bar.get_width() for bar in bars], wanted)
    timed = 1e3 * tables.timed(results)[["seconds", "predicted"]]
    np.testing.assert_allclose(marks(figures.times(results).axes[0]), timed)
