"""A learning-rate sweep along one axis: what it runs, and that planted optima come back."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from synthetic import EMPTY, drawn, marks, played, rows_of
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import axis
from umup.lab.absent import NotMeasured
from umup.lab.curves import NO_TEXT
from umup.lab.lr_sweep import AxisSweep

TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))
DEPTH = "model.n_layers"
SWEEP = AxisSweep(schemes=("mup", "umup"), values=(1, 2, 4), seeds=2, lr_mup=(-8, -4))
MIDDLE = {"mup": -6.0, "umup": 0.0}
SHIFT = {"mup": -0.25, "umup": 0.5}  # octaves of η* per doubling of depth
GAIN = {"mup": 0.02, "umup": 0.05}  # nats per doubling of depth


def loss(run: RunConfig) -> float:
    doublings = math.log2(run.model.n_layers)
    x = math.log2(run.hps.eta) - MIDDLE[run.scheme] - SHIFT[run.scheme] * doublings
    return 2.0 - GAIN[run.scheme] * doublings + 0.03 * x**2 + 0.01 * run.seed


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return rows_of(played(SWEEP, TEXT, loss), lambda run: {"val_loss": loss(run)})


def test_every_value_has_a_whole_search_per_scheme(runs: pd.DataFrame) -> None:
    found = axis.by_value(runs, DEPTH)
    assert list(found) == [1, 2, 4]
    for own in found.values():
        for _, curve in own.groupby("scheme"):
            assert set(curve["seed"]) == {0, 1} and curve["lr"].nunique() >= 7


def test_what_has_to_move_along_is_moved() -> None:
    class AtEqualText(AxisSweep):
        AXIS = "optim.batch_size"

        def at(self, run: RunConfig, value: float) -> RunConfig:
            run = super().at(run, value)
            steps = self.steps * self.batch_size // run.optim.batch_size
            return replace(run, optim=replace(run.optim, steps=steps))

    sweep = AtEqualText(values=(4, 8), steps=100, batch_size=8, warmup_ratio=0.1)
    optims = [curve.run(0.0, 0).optim for curve in sweep.curves(NO_TEXT)]
    assert [(optim.batch_size, optim.steps) for optim in optims] == [(4, 200), (8, 100)]


@pytest.mark.parametrize("scheme", SHIFT)
def test_planted_shifts_and_losses_come_back(runs: pd.DataFrame, scheme: str) -> None:
    shift = axis.optimum_shift(runs, DEPTH, scheme, 3)
    assert shift.value == pytest.approx(2 * SHIFT[scheme], abs=1e-6)
    best = -2 * GAIN[scheme]  # all optima lie on the grid of half octaves
    assert axis.loss_change(runs, DEPTH, scheme).value == pytest.approx(best, abs=1e-6)
    table = axis.optima(runs, DEPTH)
    rows = table[table["scheme"] == scheme]
    planted = MIDDLE[scheme] + SHIFT[scheme] * np.log2(rows["value"].astype(float))
    np.testing.assert_allclose(rows["log2_lr"], planted, atol=1e-6)


def test_what_the_records_lack_is_said(runs: pd.DataFrame) -> None:
    with pytest.raises(NotMeasured, match=r"model\.n_layers has 3 values, the claim needs 4"):
        axis.optimum_shift(runs, DEPTH, "umup", 4)
    with pytest.raises(NotMeasured, match="has 0 values, the claim needs 2"):
        axis.loss_change(runs, DEPTH, "sp")
    deep_and_low = (runs["n_layers"] == 4) & (runs["scheme"] == "umup") & (runs["lr"] > 1.1)
    with pytest.raises(NotMeasured, match=r"model\.n_layers = 4: lowest at the largest"):
        axis.loss_change(runs[~deep_and_low], DEPTH)
    for ask in (axis.by_value, axis.optima, axis.optimum_shift, axis.loss_change):
        with pytest.raises(NotMeasured, match="no runs are on record"):
            ask(EMPTY.runs, DEPTH)


def test_the_figure_draws_the_losses_and_the_optima(runs: pd.DataFrame) -> None:
    mup, umup, along = axis.figure(runs, DEPTH).axes
    assert [mup.get_title(), umup.get_title(), along.get_xlabel()] == ["μP", "u-μP", DEPTH]
    assert list(drawn(umup)) == ["1", "2", "4"]
    stars = [[0.5 * i, 2.005 - 0.05 * i] for i in range(3)]
    np.testing.assert_allclose(marks(umup), stars, atol=1e-6)
    shifts = [SHIFT[scheme] * i for scheme in ("mup", "umup") for i in range(3)]
    np.testing.assert_allclose(marks(along)[:, 1], shifts, atol=1e-6)
    assert list(drawn(along)) == ["μP", "u-μP"]
    (panel,) = axis.figure(EMPTY.runs, DEPTH).axes
    assert panel.texts[0].get_text() == "not measured: no runs are on record"


def test_the_figure_shows_divergence_and_optima_that_are_not_bracketed(runs: pd.DataFrame) -> None:
    deep = (runs["n_layers"] == 4) & (runs["scheme"] == "umup")
    cut = runs[~(deep & (runs["lr"] > 1.1))].copy()
    fast = (cut["scheme"] == "mup") & (cut["lr"] == cut[cut["scheme"] == "mup"]["lr"].max())
    cut.loc[fast, ["status", "final_loss"]] = ["diverged", np.nan]
    mup, umup, along = axis.figure(cut, DEPTH).axes
    crosses = [line.get_xydata() for line in mup.lines if line.get_marker() == "x"]
    assert np.concatenate(crosses).tolist() == [[-4.0, mup.get_ylim()[1]]] * 3
    assert len(marks(umup)) == 2  # no star without a bracket
    faces = [c.lines[0].get_markerfacecolor() for c in along.containers]
    assert [face == "white" for face in faces] == [False] * 5 + [True]
    (panel,) = axis.figure(runs.assign(status="diverged", final_loss=np.nan), DEPTH).axes
    assert panel.texts[0].get_text() == "not measured: every run diverged"


@pytest.mark.parametrize(("name", "value"), [("values", (2, 1)), ("values", (1,)), ("width", 0)])
def test_bad_parameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}: received"):
        AxisSweep.from_dict(SWEEP.to_dict() | {name: value})


def test_a_value_that_the_axis_cannot_take_is_refused_before_any_compute() -> None:
    with pytest.raises(ConfigError, match=r"n_layers: received 1\.5"):
        AxisSweep(values=(1, 1.5))
