"""The study of the first minutes on an H100: order, planted differences, twins beside a CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from synthetic import EMPTY, drawn, point_row, points_of, rows_of
from umup.checked import canonical_json
from umup.config import PROBE_STATS, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims, records, study
from umup.lab.absent import NotMeasured
from umup.lab.design import Point
from umup.lab.folders import code
from umup.lab.ranges import KINDS, LINEARS
from umup.lab.records import Results
from umup.plan import products

pictures = code("hopper").figures
measure = code("hopper").measures
words = code("hopper").words
tables = code("hopper").results
ARMS = code("hopper").design.ARMS
Hopper = code("hopper").design.Hopper
SCALED = code("hopper").results.SCALED
TWINS = code("hopper").results.TWINS

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "hopper"
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))
H100 = Hopper.from_dict(study.parameters(FOLDER, "h100"))
CPU = Hopper.from_dict(study.parameters(FOLDER, "cpu"))
GAPS = {"plain": 0.0, "fp8_seed": 0.01, "fp8_e5m2_grad": 0.015, SCALED: 0.3}  # nats, planted
LOWEST = {"umup": 2.0**-4, "mup": 2.0**-11}  # RMS of the last block's FFN-down gradient at the end


def arm_of(run: RunConfig) -> str:
    return SCALED if run.optim.loss_scale != 1.0 else run.model.recipe


def planted(run: RunConfig) -> dict[str, Any]:
    """Losses by ``GAPS``, spread by seed; μP diverges by a direct cast; one tensor shrinks."""
    loss = 1.5 + GAPS[arm_of(run)] + 0.1 * run.seed
    loss += 0.001 * run.seed * (run.model.recipe != "plain")
    lost = run.scheme == "mup" and arm_of(run) == "fp8_seed"
    out = {
        "val_loss": math.nan if lost else loss,
        "status": "diverged" if lost else "ok",
        "device": "H100",
        "curve_steps": [1, 200, 400],
        "curve_loss": [5.0, 2.0, loss],
    }
    if not run.probe_steps:
        return out
    last = f"blocks.{run.model.n_layers - 1}.mlp.down"
    places = [f"blocks.{i}.{n}" for i in range(run.model.n_layers) for n in LINEARS[:-1]]
    names = [f"{place}/{kind}" for place in (*places, "readout") for kind in KINDS]
    names.append("embed/value")
    values = np.zeros((len(run.probe_steps), len(names), len(PROBE_STATS)), np.float32)
    values[..., 0] = 1.0
    values[-1, names.index(f"{last}/output_gradient"), 0] = LOWEST[run.scheme]
    values[:, -1, 0] = 2.0**-30  # no operand of a product
    return out | {
        "probe_steps": list(run.probe_steps),
        "probe_tensors": names,
        "probe_values": values.reshape(-1),
    }


def result(point: Point) -> dict[str, Any]:
    here = {"device_kind": "H100", "capable": True, "compute_capability": "9.0"}
    if point.what == "gemm":
        speed = 780.0 if point.spec["kind"] == "bf16" else 1400.0
        return here | {
            "tflops": speed,
            "tflops_lo": speed - 9,
            "tflops_hi": speed + 9,
            "products": "bf16 × bf16",
        }
    if point.what == "copy":
        return here | {"tb_s": 3.0, "tb_s_lo": 2.9, "tb_s_hi": 3.1}
    return here | {"platform": "gpu", **twin(point)}


def twin(point: Point, off: float = 0.0) -> dict[str, Any]:
    """20 falling losses, the eighth of them off by a share."""
    losses = np.linspace(5.5, 3.5, point.spec["steps"])
    losses[7] *= 1.0 + off
    return {"losses": list(losses), "text": 1}


def played(design: Hopper, **more: Any) -> Results:
    runs, points = design.runs(TEXT), design.points()
    return Results(
        rows_of(runs, lambda run: planted(run) | more),
        points_of(points, result).assign(key=[p.key() for p in points]),
    )


@pytest.fixture(scope="module")
def results() -> Results:
    return played(H100)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The CPU's records of the twins, as the tables read them; losses are 50 ppm lower."""
    rows = [
        point_row("twin", p.spec, twin(p, -5e-5) | {"platform": "cpu"}, key=p.key())
        for p in CPU.points()
        if p.what == "twin"
    ]

    def read(store: records.Store) -> Results:
        assert store.folder.parts[-3:] == ("hopper", "records", "cpu")
        return Results(EMPTY.runs, pd.DataFrame(rows, columns=[*EMPTY.points.columns]))

    monkeypatch.setattr(records, "read_results", read)
    return rows


# Design.


def test_every_arm_of_a_seed_comes_before_the_next_seed() -> None:
    runs = H100.runs(TEXT)
    assert [r.seed for r in runs] == [seed for seed in range(3) for _ in ARMS]
    first = [(r.scheme, r.model.recipe, r.optim.loss_scale) for r in runs[: len(ARMS)]]
    assert first == [
        ("umup", "plain", 1),
        ("umup", "fp8_seed", 1),
        ("mup", "plain", 1),
        ("mup", "fp8_seed", 1),
        ("umup", "fp8_e5m2_grad", 1),
        ("mup", "fp8_e5m2_grad", 1),
        ("mup", "fp8_seed", 2.0**9),
    ]
    assert len({r.key() for r in runs}) == len(runs)


def test_the_h100_trains_figure_1_at_its_own_width() -> None:
    for run in H100.runs(TEXT):
        m, o = run.model, run.optim
        assert (m.d_model, m.n_layers, m.d_head, m.d_ff) == (4096, 4, 64, 11264)
        assert (m.seq_len, m.base_width, m.base_depth, m.base_d_head) == (256, 256, 4, 64)
        assert (m.dtype, o.batch_size, o.steps, o.warmup_steps) == ("bfloat16", 64, 400, 100)
        assert run.hps.eta == {"umup": 2.0**1.5, "mup": 2.0**-7.5}[run.scheme]
        assert run.hps.weight_decay == 2.0**-13
        assert run.probe_steps == ((0, 100, 400) if m.recipe == "plain" else ())


def test_twins_are_the_same_in_both_profiles_and_peaks_come_first() -> None:
    twins = [{p.key() for p in d.points() if p.what == "twin"} for d in (CPU, H100)]
    assert twins[0] == twins[1] and len(twins[0]) == len(TWINS)
    assert [p.what for p in H100.points()] == ["gemm", "gemm", "copy", "twin", "twin", "twin"]
    for point in H100.points():
        study._measuring("hopper", point)  # its arguments are the function's


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipes", ("fp8_seed",)),
        ("probe_steps", (100, 0)),
        ("probe_steps", (400,)),
        ("d_head", 24),
        ("twin_d_head", 24),
        ("twins", ("float16",)),
        ("loss_scale", 99.0),
    ],
)
def test_bad_parameters_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Hopper(**{field: value})
    assert error.value.field == field


def test_less_may_be_asked_for() -> None:
    few = Hopper(product_size=0, copy_mib=0, twins=(), recipes=("plain",), loss_scale=0.0, seeds=1)
    assert few.points() == []
    assert [r.scheme for r in few.runs(TEXT)] == ["umup", "mup"]
    assert len(Hopper(loss_scale=0.0, seeds=1).runs(TEXT)) == len(ARMS) - 1


# Measures.


def test_a_twin_trains_and_names_its_text() -> None:
    shape: Any = {
        "d_model": 16,
        "n_layers": 1,
        "d_head": 8,
        "seq_len": 8,
        "batch_size": 2,
        "steps": 4,
        "log2_lr": 0.0,
    }
    found = measure.twin("float32", "plain", "highest", **shape)
    assert len(found["losses"]) == 4 and all(4 < loss < 7 for loss in found["losses"])
    assert (found["platform"], found["capable"]) == ("cpu", False)
    assert found["text"] == 1278376274  # made otherwise, it would compare with no record


def test_a_copy_has_a_speed() -> None:
    found = measure.MEASURES["copy"](1, seconds=1e-4, repeats=3)
    assert 0 < found["tb_s_lo"] <= found["tb_s"] <= found["tb_s_hi"]


def test_a_timing_lets_each_result_go_before_the_next_but_one() -> None:
    alive, most = [0], [0]

    class Result:
        def __init__(self) -> None:
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    durations, calls = products._timings(Result, (), seconds=1e-4, repeats=2)
    assert len(durations) == 2 and calls >= 3
    assert most[0] == 2, "a GPU's memory would fill with results that nobody reads"


# Quantities.


def test_twins_are_compared_with_the_cpus_step_by_step(results: Results, reference: list) -> None:
    for name in TWINS:
        assert tables.twin_difference(played(H100), name).value == pytest.approx(50, rel=1e-3)
    reference.pop(1)
    with pytest.raises(NotMeasured, match="no bfloat16 twin of the same steps"):
        tables.twin_difference(played(H100), "bfloat16")
    reference[0]["result"] = json.dumps(json.loads(reference[0]["result"]) | {"text": 2})
    with pytest.raises(NotMeasured, match="no float32 twin of the same steps and text"):
        tables.twin_difference(played(H100), "float32")


def test_a_loss_that_is_not_finite_is_infinitely_far(reference: list) -> None:
    own = played(H100)
    rows = own.points.copy()
    at = rows.index[rows["what"] == "twin"][0]
    changed = json.loads(rows.loc[at, "result"])
    changed["losses"][3] = math.nan
    rows.loc[at, "result"] = json.dumps(changed)
    assert tables.twin_difference(Results(own.runs, rows), "float32").value == math.inf


def test_a_cpus_own_twins_are_not_compared(reference: list) -> None:
    own = Results(EMPTY.runs, pd.DataFrame(reference))
    with pytest.raises(NotMeasured, match="needs a GPU"):
        tables.twin_difference(own, "float32")
    assert "needs a GPU" in {v.id: v.note for v in claims.evaluate(FOLDER, own, "cpu")}["fp8-twin"]


def test_planted_differences_are_found_and_judged(results: Results, reference: list) -> None:
    gap = tables.loss_difference(results, "umup", "fp8_seed", 4096)
    assert gap.value == pytest.approx(0.011)
    assert gap.lo < 0.01 < gap.hi < 0.02
    assert tables.loss_difference(results, "mup", "fp8_seed").value == math.inf
    assert tables.margin(results, "umup", 4096).value == pytest.approx(2.0)
    assert tables.margin(results, "mup").value == pytest.approx(-5.0)
    found = {v.id: v.verdict for v in claims.evaluate(FOLDER, results, "h100")}
    assert found == {
        "float32-twin": "exact",
        "bfloat16-twin": "exact",
        "fp8-twin": "exact",
        "umup-cast-at-4096": "holds",
        "umup-e5m2-at-4096": "holds",
        "mup-cast-at-4096": "holds",
        "mup-e5m2-at-4096": "holds",
        "mup-loss-scale-at-4096": "fails",
        "umup-inside-e4m3-at-4096": "exact",
    }


def test_one_seed_decides_nothing_but_a_divergence(results: Results, reference: list) -> None:
    one = Results(results.runs[results.runs["seed"] == 0].reset_index(drop=True), results.points)
    found = {v.id: v.verdict for v in claims.evaluate(FOLDER, one, "h100")}
    assert found["mup-cast-at-4096"] == "holds"
    assert found["umup-cast-at-4096"] == found["mup-loss-scale-at-4096"] == "inconclusive"


def test_claims_about_width_4096_are_judged_at_no_other(reference: list) -> None:
    for verdict in claims.evaluate(FOLDER, played(CPU), "cpu"):
        if verdict.id.endswith("-at-4096"):
            assert (verdict.verdict, verdict.note[-13:]) == ("not measured", "at width 4096")


# Runs that time ended.


def unfinished(scheme: str, recipe: str, done: int, **more: Any) -> dict[str, Any]:
    """The point that ``turns`` leaves of a run: its loss at step s is 2 − s/400 + its gap."""
    (run,) = (r for r in H100.runs(TEXT) if (r.scheme, arm_of(r), r.seed) == (scheme, recipe, 0))
    steps = [1, *range(10, done + 1, 10)]
    losses = [2 - step / 400 + GAPS[recipe] for step in steps]
    told = {"spec": canonical_json(run), "curve_steps": steps, "curve_loss": losses} | more
    return point_row(records.UNFINISHED, {"run": run.key(), "steps": done}, told, device="H200")


def cut_off(*rows: dict[str, Any], runs: pd.DataFrame | None = None) -> Results:
    return Results(EMPTY.runs if runs is None else runs, pd.DataFrame(list(rows)))


def test_runs_that_time_ended_are_shown_at_one_step_and_judged_by_no_claim(reference) -> None:
    flat = {"curve_steps": [1, 300], "curve_loss": [5.6, 5.6]}
    own = cut_off(
        unfinished("umup", "plain", 300),
        unfinished("umup", "fp8_seed", 200),
        unfinished("umup", "fp8_seed", 300),
        unfinished("umup", "fp8_e5m2_grad", 200),
        unfinished("mup", "plain", 300),
        unfinished("mup", "fp8_seed", 300, **flat),
    )
    runs = tables.shown(own)
    assert set(runs["done"]) == {200} and len(runs) == 5, "the furthest of each, all at one step"
    plain = runs[(runs["scheme"] == "umup") & (runs["arm"] == "plain")].iloc[0]
    assert plain["loss"] == pytest.approx(2 - 195 / 400), "mean over steps 181 to 200"
    assert tables.difference_of(runs, "umup", "fp8_seed").value == pytest.approx(0.01)
    said = words.answer(own)
    assert "after 200 of 400 steps, where time ended" in said
    assert "u-μP 0.010, μP ∞ (diverged)" in said
    assert "Time ended at step 200" in words.what_ran(own)
    assert "| u-μP | fp8_seed | 1.522 | 0.010 | 1 |" in words.losses_table(own)
    assert set(drawn(pictures.losses(own).axes[0])) == {"bf16", "fp8_seed"}
    with pytest.raises(NotMeasured, match="no runs are on record"):
        tables.loss_difference(own, "umup", "fp8_seed")
    verdicts = claims.evaluate(FOLDER, own, "h100")
    assert {v.verdict for v in verdicts if v.id.endswith("at-4096")} == {"not measured"}


def test_once_runs_are_finished_those_that_time_ended_are_not_shown(reference) -> None:
    own = played(H100)
    both = cut_off(unfinished("umup", "plain", 300), runs=own.runs)
    assert records.unfinished(both).empty
    assert set(tables.shown(both)["done"]) == {400}
    assert "Time ended" not in words.what_ran(both)
    with pytest.raises(NotMeasured, match="no runs are on record"):
        tables.shown(EMPTY)


# Words and figures.


def test_what_is_said(results: Results, reference: list) -> None:
    said = words.answer(results)
    assert "Losses on the H100 are the CPU's to so many parts per million: float32 50" in said
    assert "At width 4096, after 400 steps" in said and "above bf16" in said
    assert "u-μP 0.011 [" in said and "μP ∞ (diverged)" in said
    table = words.losses_table(results)
    assert "| μP | fp8_seed |  | 3 of 3 diverged | 0 |" in table
    assert "| u-μP | bf16 | 1.600 [" in table
    assert "| float32 | H100 | 20 | 5.5000 | 3.5000 | 3.5000 | 50 | 100 |" in words.twins_table(
        results
    )
    peaks = words.peaks_table(results)
    assert "product in fp8, 8192 × 8192 | 1400.00 (1391.00–1409.00) TFLOP/s" in peaks
    assert "copy of 4096 MiB, read and written | 3.00 (2.90–3.10) TB/s" in peaks
    assert "FLOP/s" not in words.peaks_table(results, digits=1)
    slow = points_of([Point("copy", {"mib": 1})], lambda p: result(p) | {"tb_s": 0.0125})
    assert "| 12.50 (" in words.peaks_table(Results(EMPTY.runs, slow))


def test_figures_show_every_arm(results: Results) -> None:
    figure = pictures.losses(results)
    for ax in figure.axes[:2]:
        assert set(drawn(ax)) == {"bf16", "fp8_seed", "fp8_e5m2_grad"} | (
            {"fp8_seed, scaled"} if ax.get_title() == "μP" else set()
        )
    assert figure.axes[-1].get_xlabel() == "loss − bf16's\n(nats/token)"
    assert figure.axes[-1].get_xlim()[1] <= 20 * claims.bound("hopper", "umup-cast-at-4096")
    assert len(pictures.over_training(results).axes) == 6
    assert "not measured" in pictures.losses(EMPTY).axes[0].texts[0].get_text()
