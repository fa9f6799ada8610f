"""Figures: what is drawn is what the tables say, the same every time, and nothing else changes."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from synthetic import drawn, make_runs, marks
from umup.lab import claims, figures, tables

HERE = Path(__file__).parent
STUDY = HERE.parent / "experiments" / "lr_transfer"

DRAW = {
    "lr_transfer": figures.lr_transfer,
    "drift": figures.drift,
    "default_losses": figures.default_losses,
    "claims_board": lambda runs: figures.claims_board(claims.evaluate(STUDY, runs)),
}


def pixels(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a collapsed layout or a missing glyph
        figure.savefig(buffer, format="rgba")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    arms = make_runs(widths=(64,), steps=(500, 8000))
    return pd.concat([make_runs(diverge_above=2.1), arms])


@pytest.mark.parametrize("name", DRAW)
def test_same_runs_same_pixels_and_no_state_left(name, runs):
    before = dict(mpl.rcParams)
    first = pixels(DRAW[name](runs))
    assert first == pixels(DRAW[name](runs.sample(frac=1, random_state=0)))
    assert dict(mpl.rcParams) == before and plt.get_fignums() == []
    changed = runs.assign(final_loss=runs.final_loss + 0.1 * (runs.scheme == "umup"))
    changed["lr"] *= np.where((runs.scheme == "sp") & (runs.d_model == 256), 2, 1)
    assert first != pixels(DRAW[name](changed))


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("kind", ["none", "one run", "one width", "one seed", "all diverged"])
def test_poor_data_still_draw(name, kind, runs):
    poor = {
        "none": runs.iloc[:0],
        "one run": runs.iloc[[0]],
        "one width": runs[(runs.d_model == 64) & (runs.steps == 2000)],
        "one seed": runs[runs.seed == 0],
        "all diverged": runs.assign(status="diverged", final_loss=np.nan),
    }[kind]
    figure = DRAW[name](poor)
    assert pixels(figure)  # without a warning
    main = poor[poor.steps == (tables.main_horizon(poor) if len(poor) else 0)]
    losses = tables.loss_by_lr(main)
    points = {
        "lr_transfer": losses[losses.n > 0],
        "drift": tables.optima(main).dropna(subset=["log2_lr"]),
        "default_losses": tables.default_losses(main),
    }
    if name == "claims_board":
        said = [text.get_text() for text in figure.texts]
        for v in claims.evaluate(STUDY, poor):
            assert (f"{v.verdict} ({v.profile})" if v.profile else v.verdict) in said
    elif points[name].empty:
        assert figure.axes[0].texts[0].get_text().startswith("not measured: no ")
    elif name == "lr_transfer":
        shown = [len(points) for ax in figure.axes for points in drawn(ax).values()]
        assert sum(shown) == len(points[name])
    else:
        assert len(marks(figure.axes[0])) == len(points[name])


@pytest.mark.parametrize("name", DRAW)
def test_text_is_legible_at_seven_inches(name, runs):
    figure = DRAW[name](runs)
    pixels(figure)
    scale = 7 / max(figure.get_size_inches()[0], 7)
    texts = [t for t in figure.findobj(Text) if t.get_text()]
    assert texts and min(t.get_fontsize() for t in texts) * scale >= 8.7


def test_lr_transfer_draws_the_losses_the_optima_and_the_divergences(runs):
    figure = figures.lr_transfer(runs)
    assert [ax.get_title() for ax in figure.axes] == ["SP", "μP", "u-μP"]
    optima = tables.optima(runs).set_index(["scheme", "d_model", "steps"])
    for ax, scheme in zip(figure.axes, ("sp", "mup", "umup"), strict=True):
        lines = {line.get_label(): line for line in ax.get_lines()}
        table = tables.loss_by_lr(runs).query("scheme == @scheme and steps == 2000 and n > 0")
        for width, group in table.groupby("d_model"):
            drawn = lines[str(width)].get_xydata()
            np.testing.assert_allclose(drawn, group[["log2_lr", "mean"]])
        stars = [c[0].get_xydata()[0] for c in ax.containers]
        expected = optima.loc[scheme].xs(2000, level="steps")[["log2_lr", "loss"]]
        np.testing.assert_allclose(stars, expected)
        crosses = [line for line in ax.get_lines() if line.get_marker() == "x"]
        top = ax.get_ylim()[1]
        assert all((line.get_ydata() == top).all() for line in crosses)
        diverged = tables.loss_by_lr(runs).query("scheme == @scheme and n_diverged > 0").log2_lr
        assert sorted(x for c in crosses for x in c.get_xdata()) == sorted(diverged)
        assert len(diverged) == 0 if scheme == "umup" else len(diverged) >= 8


def test_default_losses_draw_the_gap_with_its_sign(runs):
    _, right = figures.default_losses(runs).axes
    table = tables.default_differences(runs).query("d_model == 64")
    for container in right.containers:
        scheme = {"SP − u-μP": "sp", "μP − u-μP": "mup"}[container.get_label()]
        expected = -table[table.against == scheme]["difference"]
        np.testing.assert_allclose(container[0].get_ydata(), expected)
    assert [t.get_text() for t in right.get_xticklabels()] == ["500", "2000", "8000"]
    assert len(right.containers) == 2


def test_drift_is_relative_to_the_smallest_width_and_open_ends_are_arrows(runs):
    cut = runs[~((runs.scheme == "sp") & (runs.d_model == 256) & (runs.lr < 2.0**-8.9))]
    (ax,) = figures.drift(cut).axes
    starts = [c[0].get_ydata()[0] for c in ax.containers]
    optima = tables.optima(cut).query("steps == 2000")
    for scheme, group in optima.groupby("scheme"):
        base = group.sort_values("d_model").log2_lr.iloc[0]
        for x in group.log2_lr - base:
            assert min(abs(x - s) for s in starts) < 1e-9, scheme
    hollow = [c for c in ax.containers if c[0].get_markerfacecolor() == "white"]
    assert len(hollow) == 1
    assert "[−∞, " in ax.get_legend().get_texts()[0].get_text()


def test_board_places_measurement_and_bound(runs):
    verdicts = claims.evaluate(STUDY, runs)
    bars = figures.claims_board(verdicts).axes
    assert len(bars) == len(verdicts)
    for ax, v in zip(bars, verdicts, strict=True):
        dots = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
        assert dots == [v.value]
        uprights = {line.get_xdata()[0] for line in ax.get_lines() if len(line.get_xdata()) == 2}
        bounds = {b for b in (v.bound_min, v.bound_max) if math.isfinite(b)}
        assert bounds <= uprights
        left, right = ax.get_xlim()
        assert left < min(v.value, *bounds) and max(v.value, *bounds) < right
