"""Figures of the study `hopper`: Figure 1 (right) of the u-μP paper, and where its tensors lie.

Every function takes ``records.Results`` and returns a new figure; a lack of records is said in it.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from umup.lab import claims, figures, fp8_figures, plots
from umup.lab.plots import Look
from umup.lab.records import Results

from . import results as tables
from .results import SCALED, SCHEMES


@figures.drawn
def losses(results: Results) -> Figure:
    """Training curves of the arms, a panel per scheme, and final losses against the plain arm's."""
    looks = {
        "plain": Look(plots.BLACK, "o", tables.base(results)),
        "fp8_seed": Look(plots.VERMILION, "D", "fp8_seed"),
        "fp8_e5m2_grad": Look(plots.PURPLE, "^", "fp8_e5m2_grad"),
        SCALED: Look(plots.BLUE, "v", "fp8_seed, scaled"),
    }
    bound = claims.bound("hopper", "umup-cast-at-4096")
    runs = tables.shown(results)
    differences = tables.loss_differences(runs)
    return fp8_figures.losses(runs, differences, "arm", looks, bound, SCHEMES)


@figures.drawn
def over_training(results: Results) -> Figure:
    """RMS of every probed tensor over training, see ``fp8_figures.over_training``."""
    return fp8_figures.over_training(tables.probed(results), SCHEMES)
