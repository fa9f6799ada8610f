"""Tables: right numbers for runs whose truth is known, and nothing pooled that differs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from synthetic import SLOPES, level, make_runs, optimum
from umup.config import NUMERICS
from umup.errors import RecordError
from umup.lab import tables
from umup.lab.records import Results


def by_hand():
    """Two rates, three seeds; one seed diverges at the higher rate."""
    rows = [
        {"lr": lr, "seed": seed, "val_loss": loss}
        for lr, losses in {0.5: (1.0, 2.0, 3.0), 2**-0.5: (1.0, 2.0, np.nan)}.items()
        for seed, loss in enumerate(losses)
    ]
    runs = pd.DataFrame(rows).assign(scheme="sp", d_model=32, steps=9, numerics=NUMERICS)
    return runs.assign(status=runs.val_loss.map(lambda y: "ok" if y == y else "diverged"))


def test_loss_by_lr_by_hand():
    table = tables.loss_by_lr(by_hand())
    low, high = table.itertuples(index=False)
    assert (low.log2_lr, low.mean, low.n, low.n_diverged) == (-1.0, 2.0, 3, 0)
    assert low.hi == pytest.approx(2 + 4.302653 / math.sqrt(3))
    assert (high.log2_lr, high.mean, high.n, high.n_diverged) == (-0.5, 1.5, 2, 1)
    assert high.hi == pytest.approx(1.5 + 12.7062 * 0.5)  # t with 1 degree, sd/√2 = ½


def test_a_single_seed_has_no_interval():
    table = tables.loss_by_lr(by_hand().query("seed == 0"))
    assert table[["lo", "hi"]].isna().all(axis=None)


def test_the_best_rate_is_steady_and_has_the_most_seeds():
    runs = by_hand()
    best = tables.default_losses(runs).iloc[0]
    assert (best.log2_lr, best.loss, best.n) == (-1.0, 2.0, 3)  # 1.5 at the other, but one diverged
    lucky = runs.iloc[[0]].assign(lr=0.125, val_loss=0.1)
    assert tables.default_losses(pd.concat([runs, lucky])).iloc[0].log2_lr == -1.0


def test_optima_and_drifts_recover_the_truth():
    runs = make_runs()
    table = tables.optima(runs, n_boot=200)
    assert table[["scheme", "d_model"]].drop_duplicates().shape[0] == len(table) == 12
    for row in table.itertuples():
        assert row.log2_lr == pytest.approx(optimum(row.scheme, row.d_model), abs=0.1)
        assert row.loss == pytest.approx(level(row.scheme, row.d_model), abs=0.004)
        assert row.lr == pytest.approx(2**row.log2_lr) and not row.edge
    drifts = tables.drifts(runs, n_boot=200).set_index("scheme")
    assert list(drifts.index) == ["sp", "mup", "umup"]
    for scheme, slope in SLOPES.items():
        row = drifts.loc[scheme]
        assert row.slope == pytest.approx(slope, abs=0.04)
        assert row["shift"] == pytest.approx(3 * row.slope)
        assert (row.d_model_min, row.d_model_max, row.n_widths, row.n_edge) == (32, 256, 4, 0)


def test_transferred_takes_one_measured_rate_for_all_widths():
    table = tables.transferred(make_runs(noise=0, spread=0), 32).set_index(["scheme", "d_model"])
    mup = table.loc["mup"]
    assert (mup.log2_lr == -7.0).all() and (mup.n == 3).all()
    # half an octave grid; at width 256 the optimum is 0.3 octaves away: 0.03 · 0.3² above it
    assert mup.loss[256] == pytest.approx(level("mup", 256) + 0.03 * 0.09)
    # SP's optimum moves an octave a width: 3 octaves at 256 cost 0.27 nats
    assert table.loc["sp"].loss[256] == pytest.approx(level("sp", 256) + 0.27)


def test_transferred_says_where_nothing_near_was_measured():
    runs = make_runs(noise=0)
    far = (runs.scheme == "sp") & (runs.d_model == 256) & (runs.lr > 2.0**-8)
    table = tables.transferred(runs[~far], 32).set_index(["scheme", "d_model"])
    row = table.loc["sp", 256]
    assert row.n == 0 and math.isnan(row.loss) and math.isnan(row.log2_lr)
    assert table.loc["sp", 128].log2_lr == -6.0


def test_transferred_prefers_rates_with_all_seeds():
    runs = make_runs(noise=0)
    single = (runs.scheme == "mup") & (runs.d_model == 256) & (runs.seed > 0) & (runs.lr == 2.0**-7)
    table = tables.transferred(runs[~single], 32).set_index(["scheme", "d_model"])
    mup = table.loc["mup"]
    assert set(mup.log2_lr) <= {-7.5, -6.5} and mup.log2_lr.nunique() == 1 and (mup.n == 3).all()


def test_default_differences_are_paired_by_seed():
    runs = make_runs(widths=(32,), noise=0, spread=0.5)  # seeds differ a lot, alike in all schemes
    table = tables.default_differences(runs).set_index("against")
    for other, gap in {"sp": -0.05, "mup": -0.03}.items():
        row = table.loc[other]
        assert (row.scheme, row.n) == ("umup", 3)
        ends = [row.difference, row.difference_lo, row.difference_hi]
        assert ends == pytest.approx([gap] * 3, abs=1e-9)


def test_stale_runs_never_show():
    runs = make_runs(widths=(32,))
    stale = runs.assign(numerics=NUMERICS - 1, val_loss=0.0)
    both = pd.concat([stale, runs])
    pd.testing.assert_frame_equal(tables.loss_by_lr(both), tables.loss_by_lr(runs))
    assert tables.loss_by_lr(stale).empty


@pytest.mark.parametrize("column", tables.FIXED)
def test_runs_that_differ_elsewhere_are_not_pooled(column):
    runs = make_runs(widths=(32,))
    other = runs.assign(**{column: "other"}).assign(seed=runs.seed + 10)
    with pytest.raises(RecordError, match=column):
        tables.prepare(pd.concat([runs, other]))


def test_two_runs_of_a_point_are_refused():
    runs = make_runs(widths=(32,))
    with pytest.raises(RecordError, match="one run a point"):
        tables.prepare(pd.concat([runs, runs.iloc[[0]]]))


def test_order_and_rows_do_not_depend_on_the_order_of_runs():
    runs = make_runs(widths=(64, 32), diverge_above=2.0)
    shuffled = runs.sample(frac=1, random_state=1)
    for table in (
        tables.loss_by_lr,
        tables.optima,
        tables.drifts,
        tables.default_losses,
        tables.default_differences,
        lambda r: tables.transferred(r, 32),
    ):
        pd.testing.assert_frame_equal(table(runs), table(shuffled))


def test_no_runs_give_empty_tables_with_their_columns():
    runs = make_runs(widths=(32,)).iloc[:0]
    full = make_runs(widths=(32, 64))
    for table in (
        tables.loss_by_lr,
        tables.optima,
        tables.drifts,
        tables.default_losses,
        tables.default_differences,
        lambda r: tables.transferred(r, 32),
    ):
        empty = table(runs)
        assert empty.empty and list(empty.columns) == list(table(full).columns)


def test_the_main_horizon_has_the_most_widths_then_the_most_steps():
    table = pd.DataFrame({"steps": [500, 500, 2000, 2000, 8000], "d_model": [32, 64, 32, 64, 32]})
    assert tables.main_horizon(table) == 2000


def test_what_is_remembered_is_of_the_same_frames_and_arguments_alone():
    made = []

    @tables.remembered
    def total(frame, factor=1):
        made.append(factor)
        return factor * int(frame["x"].sum())

    frame, equal = pd.DataFrame({"x": [1, 2]}), pd.DataFrame({"x": [1, 2]})
    assert [total(frame), total(frame), total(frame, 2), total(frame, factor=3)] == [3, 3, 6, 9]
    assert made == [1, 2, 3]
    total(equal)
    assert made == [1, 2, 3, 1]  # equal frames are not the same frame
    other = Results(frame, pd.DataFrame({"x": [5]}))
    first = tables.remembered(lambda results: made.append("both") or len(results))
    first(other), first(Results(*other)), first(Results(frame, equal))
    assert made.count("both") == 2


def test_nothing_is_remembered_of_a_frame_that_is_gone():
    @tables.remembered
    def total(frame):
        return int(frame["x"].sum())

    for i in range(50):  # later frames take the place in memory of earlier ones
        assert total(pd.DataFrame({"x": [i]})) == i
