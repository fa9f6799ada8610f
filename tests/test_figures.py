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

from synthetic import make_runs
from umup.lab import claims, figures
from umup.lab.absent import required

HERE = Path(__file__).parent
STUDY = HERE.parent / "experiments" / "lr_transfer"


def board(runs: pd.DataFrame) -> Figure:
    return figures.claims_board(claims.evaluate(STUDY, runs))


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


def test_same_runs_same_pixels_and_no_state_left(runs):
    before = dict(mpl.rcParams)
    first = pixels(board(runs))
    assert first == pixels(board(runs.sample(frac=1, random_state=0)))
    assert dict(mpl.rcParams) == before and plt.get_fignums() == []
    changed = runs.assign(val_loss=runs.val_loss + 0.1 * (runs.scheme == "umup"))
    assert first != pixels(board(changed))


@pytest.mark.parametrize("kind", ["none", "one run", "one width", "one seed", "all diverged"])
def test_poor_data_still_draw(kind, runs):
    poor = {
        "none": runs.iloc[:0],
        "one run": runs.iloc[[0]],
        "one width": runs[(runs.d_model == 64) & (runs.steps == 2000)],
        "one seed": runs[runs.seed == 0],
        "all diverged": runs.assign(status="diverged", val_loss=np.nan),
    }[kind]
    figure = board(poor)
    assert pixels(figure)  # without a warning
    said = [text.get_text() for text in figure.texts]
    for v in claims.evaluate(STUDY, poor):
        assert (f"{v.verdict} ({v.profile})" if v.profile else v.verdict) in said


def test_text_is_legible_at_seven_inches(runs):
    figure = board(runs)
    pixels(figure)
    scale = 7 / max(figure.get_size_inches()[0], 7)
    texts = [t for t in figure.findobj(Text) if t.get_text()]
    assert texts and min(t.get_fontsize() for t in texts) * scale >= 8.7


def test_what_is_not_measured_is_said_in_its_place():
    figure = figures.drawn(lambda: required(pd.DataFrame(), "no runs"))()
    assert figure.axes[0].texts[0].get_text() == "not measured: no runs"


def test_board_places_measurement_and_bound(runs):
    verdicts = claims.evaluate(STUDY, runs)
    bars = board(runs).axes
    assert len(bars) == len(verdicts)
    for ax, v in zip(bars, verdicts, strict=True):
        dots = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
        if math.isinf(v.value):
            assert not dots and [text.get_text() for text in ax.texts] == ["diverged"]
            continue
        assert dots == [v.value]
        uprights = {line.get_xdata()[0] for line in ax.get_lines() if len(line.get_xdata()) == 2}
        bounds = {b for b in (v.bound_min, v.bound_max) if math.isfinite(b)}
        assert bounds <= uprights
        left, right = ax.get_xlim()
        assert left < min(v.value, *bounds) and max(v.value, *bounds) < right
