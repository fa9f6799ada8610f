"""transfer_axes: what each axis runs, and shifts, prices and effects of ε planted in records."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from synthetic import EMPTY, drawn, played, rows_of
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims, folders, study
from umup.lab.absent import NotMeasured
from umup.lab.curves import NO_TEXT
from umup.lab.records import Results
from umup.laws import Interval

HERE = Path(__file__).parents[2] / "experiments" / "transfer_axes"
CODE = folders.code(HERE)
figures, tables, words = CODE.figures, CODE.results, CODE.words
CPU = study.parameters(HERE, "cpu")
DESIGN = CODE.design.DESIGN.from_dict(CPU)
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))

MIDDLE = {"sp": -6.5, "mup": -6.5, "umup": 0.0, "completep": -6.5}
CURVE = 0.04  # nats per octave²
STEPS, FIXED, BATCH, LENGTH = -0.25, -0.125, 0.25, 0.125  # octaves per doubling
DEPTH = {"sp": -0.5, "mup": 0.375, "umup": 0.25, "completep": 0.125}
WIDTH = {"sp": -1.0, "mup": 0.0, "umup": 0.125, "completep": 0.0}
BEYOND = {"sp": 0.25, "mup": 0.0, "umup": -0.75, "completep": 0.0}  # where all grow
FELT = 0.03  # nats, of a constant large ε at 32 blocks


def planted(run: RunConfig) -> float:
    """A parabola in log₂ η, whose middle moves along every axis."""
    model, optim = run.model, run.optim
    fixed = optim.warmup_steps < 0.2 * optim.steps
    x = MIDDLE[run.scheme] + DEPTH[run.scheme] * math.log2(model.n_layers / 2)
    x += (FIXED if fixed else STEPS) * math.log2(optim.steps / 500)
    x += WIDTH[run.scheme] * math.log2(model.d_model / 32)
    if (model.d_model, model.n_layers, optim.steps, optim.batch_size) == (64, 8, 1000, 16):
        x += BEYOND[run.scheme]
    if model.seq_len == 64:
        x += BATCH * math.log2(optim.batch_size / 8)
    x += LENGTH * math.log2(model.seq_len / 64)
    large = optim.eps > 1e-6 and optim.eps_rule == "constant"
    level = 2.0 + FELT * large + 0.01 * run.seed + 0.001 * optim.batch_size
    return level + CURVE * (math.log2(run.hps.eta) - x) ** 2


def seen(run: RunConfig) -> dict[str, float]:
    """The held-out loss lies half a nat above the training loss."""
    return {"final_loss": planted(run), "val_loss": planted(run) + 0.5}


@pytest.fixture(scope="module")
def runs() -> list[RunConfig]:
    return played(DESIGN, TEXT, planted)


@pytest.fixture(scope="module")
def results(runs: list[RunConfig]) -> Results:
    return Results(rows_of(runs, seen), EMPTY.points)


def test_every_setting_is_one_and_the_base_is_in_every_axis():
    settings = list(DESIGN.settings(NO_TEXT))
    assert len({setting[1:] for setting in settings}) == len(settings) == 52
    by_axis = Counter(axis for axis, *_ in settings)
    sizes = {
        "base": 4,
        "steps": 9,
        "batch": 6,
        "batch_tokens": 6,
        "seq_len": 6,
        "depth": 8,
        "width": 6,
    }
    assert by_axis == sizes | {"steps_fixed": 4, "together": 3}
    for axis, _, model, optim in settings:
        if axis == "batch_tokens":
            assert optim.batch_size * optim.steps == 8 * 500
        if axis == "seq_len":
            assert optim.batch_size * model.seq_len == 8 * 64
        if axis == "steps_fixed":
            assert optim.warmup_steps == 62
        else:
            assert optim.warmup_steps == pytest.approx(optim.steps / 4, abs=0.5)


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("steps", [250, 500, 1000, 4000]),
        ("steps_fixed", [250, 1000, 4000]),
        ("batch", [2, 8, 32]),
        ("batch_tokens", [2, 8, 32]),
        ("seq_len", [16, 64, 256]),
        ("depth", [2, 8, 32]),
        ("width", [32, 64, 128]),
    ],
)
def test_an_axis_has_its_own_runs(results: Results, axis: str, values: list[int]):
    assert list(tables.curves(results.runs, axis, "umup")) == values


PLANTED = {
    "steps": 4 * STEPS,
    "steps_fixed": None,  # its shortest run is the one in proportion
    "batch": 4 * BATCH,
    "batch_tokens": 4 * (BATCH - STEPS),
    "seq_len": 4 * LENGTH,
}


@pytest.mark.parametrize("axis", PLANTED)
@pytest.mark.parametrize("scheme", ["mup", "umup"])
def test_planted_shifts_prices_and_powers_come_back(results: Results, axis: str, scheme: str):
    moved = PLANTED[axis]
    if moved is None:
        moved = FIXED * 3 - STEPS * -1  # 4000 steps at the fixed warm-up less 250 in proportion
    found = tables.shift(results, axis, scheme, 16)
    assert found.value == pytest.approx(moved, abs=0.02)
    assert tables.power(results, axis, scheme, 16).value == pytest.approx(moved / 4, abs=0.005)
    price = tables.price(results, axis, scheme, 16)
    if abs(moved) <= 1.5:
        assert price.value == pytest.approx(CURVE * moved**2, abs=2e-3)


@pytest.mark.parametrize("scheme", DEPTH)
def test_planted_shifts_over_depth(results: Results, scheme: str):
    found = tables.shift(results, "depth", scheme, 16)
    assert found.value == pytest.approx(4 * DEPTH[scheme], abs=0.02)
    assert found.where.endswith("depth 2 to 32") and found.n == 3


@pytest.mark.parametrize("scheme", ["sp", "mup", "umup"])
def test_what_four_axes_leave_unexplained_comes_back(results: Results, scheme: str):
    found = tables.beyond_sum(results, scheme)
    assert found.value == pytest.approx(BEYOND[scheme], abs=0.03)
    assert found.where.endswith("width 64, depth 8, steps 1000, batch 16") and found.n == 3
    price = tables.price_of_sum(results, scheme).value
    assert price == pytest.approx(CURVE * BEYOND[scheme] ** 2, abs=2e-3)
    alone = WIDTH[scheme] + 2 * DEPTH[scheme] + STEPS + BATCH
    kept = tables.price_of_keeping(results, scheme).value
    if abs(alone + BEYOND[scheme]) <= 1.5:  # else it is read off the nearest measured η
        assert kept == pytest.approx(CURVE * (alone + BEYOND[scheme]) ** 2, rel=0.1, abs=2e-3)
    assert tables.sum_helps(results, scheme).value == pytest.approx(kept - price)


def test_the_sum_knows_what_its_terms_share(results: Results):
    # The base enters with −1/3 − 1/2 − 1/2 − 1/2 + 1: its own error is nearly all cancelled.
    start, found = (f(results.runs, "mup") for f in (tables.at_base, tables.carried))
    ends = [tables.optima(results.runs, axis, "mup") for axis in tables.GROWING]
    spread = [float(own[max(own)].draws.std()) for own in ends]
    shares = (1 / 2, 2 / 4, 1 / 3, 1 / 2)
    expected = math.hypot(
        (1 - sum(shares)) * start.draws.std(), *(a * b for a, b in zip(shares, spread, strict=True))
    )
    assert found.draws.std() == pytest.approx(expected, rel=0.1)


def test_a_sum_that_diverges_does_not_help(results: Results, monkeypatch: pytest.MonkeyPatch):
    lost = Interval(math.inf, math.inf, math.inf)
    monkeypatch.setattr(tables, "price_of_sum", lambda *_: lost)
    assert tables.sum_helps(results, "mup").value == -math.inf
    monkeypatch.undo()
    monkeypatch.setattr(tables, "price_of_keeping", lambda *_: lost)
    assert tables.sum_helps(results, "mup").value == math.inf


def test_completep_is_steadier_by_sizes(results: Results):
    found = tables.steadier(results, "depth", "completep", "mup", 16)
    assert found.value == pytest.approx(4 * (0.375 - 0.125), abs=0.03)
    other = tables.steadier(results, "depth", "completep", "sp", 16)
    assert other.value == pytest.approx(4 * (0.5 - 0.125), abs=0.03)


def test_eps_is_compared_at_the_best_rate_of_the_deepest(runs: list[RunConfig], results: Results):
    own = [run for run in runs if run.optim.eps_rule == "scaled" or run.optim.eps > 1e-6]
    arms = Counter((run.optim.eps_rule, run.optim.eps) for run in own)
    assert set(arms.values()) == {6} and len(arms) == 3
    assert {(run.model.n_layers, math.log2(run.hps.eta)) for run in own} == {(32, -6.0)}
    assert tables.eps_difference(results, "default").value == pytest.approx(0.0, abs=1e-12)
    large = tables.eps_difference(results, "large")
    assert large.value == pytest.approx(FELT) and large.n == 6


def test_every_claim_is_measured(results: Results):
    verdicts = claims.evaluate("transfer_axes", results)
    assert [v.id for v in verdicts if v.verdict == "not measured"] == []
    found = {v.id: v.verdict for v in verdicts}
    assert found["umup-still-over-depth"] == "fails"  # an octave, planted
    assert found["completep-still-over-depth"] != "fails"  # half an octave
    assert found["mup-still-over-batch-tokens"] == "fails"
    assert found["eps-large-costs"] in ("holds", "exact")


def test_what_the_records_lack_is_said(results: Results):
    with pytest.raises(NotMeasured, match="no runs are on record"):
        tables.shift(EMPTY, "steps", "umup")
    with pytest.raises(NotMeasured, match="μP: steps span 16×, the claim needs 32×"):
        tables.shift(results, "steps", "mup", 32)
    some = results.runs[results.runs["scheme"] != "completep"]
    with pytest.raises(NotMeasured, match="CompleteP: no runs over depth"):
        tables.shift(Results(some, EMPTY.points), "depth", "completep")
    with pytest.raises(NotMeasured, match="CompleteP: no runs in which all grow"):
        tables.beyond_sum(results, "completep")
    with pytest.raises(NotMeasured, match="ε does not vary"):
        tables.eps_difference(Results(some, EMPTY.points), "large")


def test_words_and_figures(results: Results):
    said = words.numbers(results)
    assert said["shift_steps_umup"].startswith("−1.0")
    assert "not measured" in words.numbers(EMPTY)["shift_steps_umup"]
    assert "steps: −1.0" in words.answer(results)
    assert words.axes_table(results).count("\n") == 1 + 21
    assert words.sum_table(results).count("\n") == 1 + 3
    assert "η moves by more than half an octave" in words.takeaways(
        claims.evaluate("transfer_axes", results)
    )
    for figure in (figures.shifts(results), figures.curves(results, "umup")):
        assert drawn(figure.axes[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_values": [3]}, "batch_values: received 3; allowed: a divisor of 4000"),
        ({"length_values": [48]}, "length_values: received 48; allowed: a divisor of 512"),
        ({"together": [64, 8, 1000]}, "together: received"),
        ({"together": [64, 8, 500, 16]}, "together: received .*four values above the base's"),
        ({"schemes": []}, "schemes: received"),
        ({"schemes": ["mup_sqrt_emb"]}, "schemes"),
        ({"lr_umup": [1, -1]}, "lr_umup: received"),
        ({"d_head": 24}, "d_head: received 24; allowed: a divisor of d_model = 32"),
    ],
)
def test_bad_parameters(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        CODE.design.DESIGN.from_dict({**CPU, **changes})
