"""Figures of what moves the end of training in the study `fp8_drift` (u-μP paper, Figure 9).

Every function takes ``records.Results`` and returns a new figure; a lack of records is said in it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from umup.lab import figures
from umup.lab.absent import NotMeasured
from umup.lab.fp8_figures import grid, log2_axis
from umup.lab.records import Results

from . import results as tables
from .results import FOLLOWED, NAMES, SHAPE, SWEPT

HP_NAMES = {
    "eta": "η", "eta_emb": "η̂_emb", "sigma_init": "σ_init", "alpha_emb": "α_emb",
    "alpha_attn_softmax": "α_attn", "alpha_output": "α_output", "alpha_residual": "α_residual",
    "alpha_residual_attn_ratio": "α_res-attn-ratio", "alpha_ffn_act": "α_ffn-act",
    "alpha_loss_softmax": "α_loss",
}  # fmt: skip
STEEP = 0.25  # octaves per octave, the claims' bound


@figures.drawn
def settings(results: Results, scheme: str) -> Figure:
    """Final loss and the RMS of ``FOLLOWED`` at the end against each hyperparameter of a scheme."""
    table = tables.settings(results)
    table = table[table["scheme"] == scheme]
    varied = [hp for hp in SWEPT[scheme] if (table["varied"] == hp).any()]
    if not varied:
        raise NotMeasured(f"nothing was varied for {NAMES[scheme]}")
    default = table[table["varied"] == "eta"] if "eta" in varied else table
    eta = default["value"].median()
    with figures.style():
        figure, axes = _panels(varied, [HP_NAMES[hp] for hp in varied])
        for column, hp in enumerate(varied):
            own = table[table["varied"] == hp]
            _lines(axes[:, column], own, figures.COLOURS[scheme], figures.MARKERS[scheme])
            for ax in axes[:, column]:
                ax.axvline(np.log2(eta) if hp == "eta" else 0.0, color="#777777", lw=1, ls="--")
        if table["recipe"].nunique() > 1:
            handles = [Line2D([], [], ls=ls, color=figures.COLOURS[scheme], label=label)
                       for ls, label in (("-", "float32"), (":", "FP8"))]  # fmt: skip
            figure.legend(handles=handles, ncols=2, loc="outside upper center")
    return figure


@figures.drawn
def shapes(results: Results) -> Figure:
    """Final loss and the RMS of ``FOLLOWED`` at the end against width, depth, steps and batch."""
    table = tables.settings(results)
    varied = [s for s in SHAPE.values() if (table["varied"] == s).any()]
    if not varied:
        raise NotMeasured("no shape was varied")
    with figures.style():
        figure, axes = _panels(varied, varied)
        for column, name in enumerate(varied):
            for scheme in tables.SCHEMES:
                own = table[(table["varied"] == name) & (table["scheme"] == scheme)]
                _lines(axes[:, column], own, figures.COLOURS[scheme], figures.MARKERS[scheme])
            values = sorted(table[table["varied"] == name]["value"].unique())
            axes[-1, column].set_xticks(np.log2(values), [f"{v:g}" for v in values])
        handles = [
            Line2D(
                [], [], ls="-", color=figures.COLOURS[s], marker=figures.MARKERS[s], label=NAMES[s]
            )
            for s in tables.SCHEMES
        ]
        figure.legend(handles=handles, ncols=2, loc="outside upper center")
    return figure


def _panels(varied: list[str], titles: list[str]) -> tuple[Figure, np.ndarray]:
    """A row for the loss and one for each of ``FOLLOWED``, a column a thing varied."""
    figure, axes = grid(max(1.35 * len(varied) + 0.6, 5.0), 6.2, 4, len(varied), sharex="col",
                         sharey="row")  # fmt: skip
    labels = ["loss (nats)", "(a) readout\nweight RMS", "(b) FFN-down\ninput RMS",
              "(c) FFN-down\ngradient RMS"]  # fmt: skip
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, fontsize=9)
    for column, title in enumerate(titles):
        axes[-1, column].set_xlabel(title)
        for row in range(4):
            if row:
                log2_axis(axes[row, column])
        if title in HP_NAMES.values():
            log2_axis(axes[-1, column], "x")
    return figure, axes


def _lines(axes: np.ndarray, own: pd.DataFrame, colour: str, marker: str) -> None:
    """One line a recipe down the rows: means over seeds, bands the range of the seeds."""
    for recipe, group in own.groupby("recipe", sort=False):
        style = "-" if recipe == "plain" else ":"
        for ax, column in zip(axes, ("final_loss", *FOLLOWED), strict=True):
            ok = group[np.isfinite(group[column])]
            if ok.empty or (recipe != "plain" and column != "final_loss"):
                continue
            values = ok[column] if column == "final_loss" else np.log2(ok[column])
            by_value = values.groupby(ok["value"])
            x = np.log2(np.array(list(by_value.groups), float))
            ax.plot(x, by_value.mean(), style, marker=marker, ms=4, lw=1.3, color=colour)
            ax.fill_between(x, by_value.min(), by_value.max(), color=colour, alpha=0.2, lw=0)


@figures.drawn
def slopes(results: Results) -> Figure:
    """Slope of end RMS over each thing varied, with 95 % intervals and the claims' bound."""
    table = tables.slopes(results)
    schemes = [s for s in tables.SCHEMES if (table["scheme"] == s).any()]
    rows = {}
    for scheme in schemes:
        found = set(table[table["scheme"] == scheme]["varied"])
        rows[scheme] = [v for v in (*SWEPT[scheme], *SHAPE.values()) if v in found]
    looks = dict(zip(FOLLOWED, (("#CC79A7", "*"), ("#D55E00", "D"), ("#0072B2", "o")), strict=True))
    reach = 1.15 * max(table["slope"].abs().max(), 2 * STEEP)
    with figures.style():
        height = 1.5 + 0.36 * max(map(len, rows.values()))
        figure, axes = grid(7.6, height, 1, len(schemes), sharex=True)
        for ax, scheme in zip(axes[0], schemes, strict=True):
            ax.axvspan(-STEEP, STEEP, color="#999999", alpha=0.25, lw=0)
            for row in table[table["scheme"] == scheme].to_dict("records"):
                i = FOLLOWED.index(row["tensor"])
                colour, marker = looks[row["tensor"]]
                error = [[row["slope"] - row["slope_lo"]], [row["slope_hi"] - row["slope"]]]
                error = np.where(np.isfinite(error), error, 0.0)
                y = rows[scheme].index(row["varied"]) + 0.22 * (i - 1)
                label = row["tensor"] if row["varied"] == rows[scheme][0] else "_"
                ax.errorbar(row["slope"], y, xerr=error, fmt=marker, color=colour, ms=5,
                            capsize=2, elinewidth=1, label=label)  # fmt: skip
            ax.set_yticks(range(len(rows[scheme])), [HP_NAMES.get(v, v) for v in rows[scheme]])
            ax.set_ylim(len(rows[scheme]) - 0.5, -0.5)
            ax.set_xlim(-reach, reach)
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("octaves of RMS per octave")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside upper center")
    return figure
