"""Figures of missing records say so; the studies' tests look at what figures draw."""

from __future__ import annotations

import pandas as pd

from umup.lab import figures
from umup.lab.absent import required


def test_what_is_not_measured_is_said_in_its_place():
    figure = figures.drawn(lambda: required(pd.DataFrame(), "no runs"))()
    assert figure.axes[0].texts[0].get_text() == "not measured: no runs"
