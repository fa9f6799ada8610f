"""Figures of the study `fp8_drift`, laid out like those of the u-μP paper that they answer.

Every function takes ``records.Results`` and returns a new figure; a lack of records is said in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from umup.lab import claims, figures, fp8_figures, plots
from umup.lab.absent import NotMeasured
from umup.lab.fp8_figures import KIND_NAMES, grid
from umup.lab.plots import Look
from umup.lab.ranges import KINDS
from umup.lab.records import Results
from umup.laws import Interval

from . import results as tables
from .results import FOLLOWED, NAMES, SHAPE, SWEPT

GREY = "#999999"
RECIPES = {
    "plain": Look(plots.BLACK, "o", "float32"),
    "bf16": Look(GREY, "s", "bf16"),
    "fp8_seed": Look(plots.VERMILION, "D", "fp8_seed"),
    "fp8_seed, precise": Look(plots.ORANGE, "d", "… precise"),
    "fp8_e5m2_grad": Look(plots.PURPLE, "^", "fp8_e5m2_grad"),
    "fp8_current": Look(plots.BLUE, "v", "fp8_current"),
    "fp8_delayed": Look(plots.SKY, "<", "fp8_delayed"),
}
PRODUCTS = {
    "bf16": Look(GREY, "s", "bf16"),
    "fp8": Look(plots.VERMILION, "D", "FP8, operands cast before"),
    "fp8_cast": Look(plots.PURPLE, "^", "FP8 with the cast"),
    "fp8_current": Look(plots.BLUE, "v", "FP8 with cast and amax"),
}
_STYLES = ((plots.PURPLE, "*"), (plots.VERMILION, "D"), (plots.BLUE, "o"))
TENSORS = {name: Look(*style, name) for name, style in zip(FOLLOWED, _STYLES, strict=True)}
HP_NAMES = {
    "eta": "η",
    "eta_emb": "η̂_emb",
    "sigma_init": "σ_init",
    "alpha_emb": "α_emb",
    "alpha_attn_softmax": "α_attn",
    "alpha_output": "α_output",
    "alpha_residual": "α_residual",
    "alpha_residual_attn_ratio": "α_res-attn\n-ratio",
    "alpha_ffn_act": "α_ffn-act",
    "alpha_loss_softmax": "α_loss",
}


@figures.drawn
def distribution(results: Results) -> Figure:
    """RMS of every tensor at initialization and at the end, one panel per scheme and stage.

    Seeds are averaged; marks of one kind are spread out a little, so that none hides another.
    """
    table = tables.width_of(tables.drift(results))
    tensor = ["scheme", "step", "place", "linear", "kind"]
    means = table.groupby(tensor, as_index=False)["rms"].mean()
    schemes = [s for s in tables.SCHEMES if (means["scheme"] == s).any()]
    stages = {means["step"].min(): "at initialization", means["step"].max(): "after training"}
    low = min(np.log2(means["rms"].min()), -17) - 1
    with figures.style():
        height, shared = 1.5 + 1.75 * len(schemes), {"sharex": True, "sharey": True}
        figure, axes = grid(7.2, height, len(schemes), 2, **shared)
        for i, scheme in enumerate(schemes):
            for ax, (step, stage) in zip(axes[i], stages.items(), strict=False):
                at = means[(means["scheme"] == scheme) & (means["step"] == step)]
                fp8_figures.ranges_along_x(ax, (3, 4))
                _tensors(ax, at)
                ax.set_title(f"{NAMES[scheme]}, {stage}", fontweight="bold")
                ax.set_yticks([*range(3), 3, 4], [*map(KIND_NAMES.get, KINDS), "E4M3", "E5M2"])
                ax.set_ylim(4.5, -0.5)
                ax.set_xlim(low, 17)
                plots.powers(ax, "x")
                ax.grid(False, axis="y")
        for ax in axes[-1]:
            ax.set_xlabel("RMS")
        fp8_figures.linear_legend(figure)
    return figure


def _tensors(ax: Axes, means: pd.DataFrame) -> None:
    """A mark per tensor at its RMS, in a row per kind."""
    for row, kind in enumerate(KINDS):
        own = means[means["kind"] == kind].sort_values("place")
        apart = np.linspace(-0.24, 0.24, len(own)) if len(own) > 1 else [0.0]
        for offset, tensor in zip(apart, own.to_dict("records"), strict=True):
            look = fp8_figures.LOOKS[tensor["linear"]]
            style: dict[str, Any] = {"color": look.colour, "ms": 6, "mec": "white", "mew": 0.5}
            ax.plot(np.log2(tensor["rms"]), row + offset, look.marker, **style)


@figures.drawn
def lost(results: Results) -> Figure:
    """Share of elements clipped or flushed by a cast to E4M3, tensor by tensor over training.

    Tensors of which it never loses one element in a thousand are left out. A cross: some clipped.
    """
    table = tables.width_of(tables.drift(results))
    by_tensor = ["scheme", "kind", "layer", "place", "step"]
    means = table.groupby(by_tensor, as_index=False)[["e4m3", "e4m3_clipped"]].mean()
    schemes = [s for s in tables.SCHEMES if (means["scheme"] == s).any()]
    panels = {s: _matrix(means[means["scheme"] == s]) for s in schemes}
    rows = max(len(shares) for shares, _ in panels.values())
    with figures.style():
        figure, axes = grid(7.2, 1.6 + 0.21 * rows, 1, len(schemes))
        images = []
        for ax, (scheme, (shares, clipped)) in zip(axes[0], panels.items(), strict=True):
            values = np.clip(shares.to_numpy(float), 1e-4, 1.0)
            scale = LogNorm(1e-4, 1.0)
            images.append(ax.imshow(values, aspect="auto", cmap="magma_r", norm=scale))
            y, x = np.nonzero(clipped.to_numpy(float) > 1e-4)
            ax.plot(x, y, "x", color=plots.GREEN, ms=4, mew=1.2)
            steps = [str(c) for c in shares.columns]
            ax.set_yticks(range(len(shares)), list(shares.index), fontsize=9)
            ax.set_xticks(range(len(steps)), steps, rotation=90, fontsize=9)
            ax.set_title(f"{NAMES[scheme]}, cast to E4M3", fontweight="bold")
            ax.set_xlabel("step")
            ax.grid(False)
        bar = figure.colorbar(images[0], ax=axes[0].tolist(), shrink=0.8, pad=0.02)
        names = ["≤0.01 %", "0.1 %", "1 %", "10 %", "100 %"]
        bar.set_ticks([1e-4, 1e-3, 1e-2, 1e-1, 1.0], labels=names)
        bar.set_label("elements lost (green ×: some clipped)")
    return figure


def _matrix(means: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(shares lost, shares clipped): rows tensors, gradients first, columns steps."""
    order = {kind: i for i, kind in enumerate(("output_gradient", "input", "weight"))}
    short = {"output_gradient": "gradient", "input": "input", "weight": "weight"}
    names = means["place"].str.replace("blocks.", "", regex=False) + " " + means["kind"].map(short)
    means = means.assign(name=names, order=means["kind"].map(order))
    means = means.sort_values(["order", "layer", "name"], kind="stable")
    rows = list(dict.fromkeys(means["name"]))
    shares, clipped = (
        means.pivot_table(index="name", columns="step", values=v).loc[rows]
        for v in ("e4m3", "e4m3_clipped")
    )
    some = shares.max(axis=1) > 1e-3
    some.iloc[0] = True  # never an empty panel
    return shares[some], clipped[some]


@figures.drawn
def over_training(results: Results) -> Figure:
    """RMS over training, see ``fp8_figures.over_training``."""
    return fp8_figures.over_training(tables.width_of(tables.drift(results)), tables.SCHEMES)


@figures.drawn
def losses(results: Results) -> Figure:
    """Training curves of the recipes, one panel per scheme, and final losses against float32's."""
    runs, differences = tables.arms(results), tables.loss_differences(results)
    runs, differences = tables.width_of(runs), tables.width_of(differences)
    bound = claims.bound("fp8_drift", "umup-direct-cast")
    return fp8_figures.losses(runs, differences, "recipe", RECIPES, bound, tables.SCHEMES)


@figures.drawn
def settings(results: Results, scheme: str) -> Figure:
    """Final loss and the RMS of ``FOLLOWED`` at the end against each hyperparameter of a scheme."""
    table = tables.settings(results)
    table = table[table["scheme"] == scheme]
    varied = [hp for hp in SWEPT[scheme] if (table["varied"] == hp).any()]
    if not varied:
        raise NotMeasured(f"nothing was varied for {NAMES[scheme]}")
    default = table[table["varied"] == "eta"] if "eta" in varied else table
    eta, look = default["value"].median(), plots.scheme(scheme)
    with figures.style():
        figure, axes = _panels(varied, [HP_NAMES[hp] for hp in varied])
        for column, hp in enumerate(varied):
            own = table[table["varied"] == hp]
            _lines(axes[:, column], own, look)
            for ax in axes[:, column]:
                ax.axvline(np.log2(eta) if hp == "eta" else 0.0, color=plots.GUIDE, lw=1, ls="--")
        if table["recipe"].nunique() > 1:
            kinds = {"float32": "-", "FP8": ":"}.items()
            entries = [plots.key(Look(look.colour, "", name), ls=ls) for name, ls in kinds]
            plots.legend(figure, entries)
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
                _lines(axes[:, column], own, plots.scheme(scheme))
            values = sorted(table[table["varied"] == name]["value"].unique())
            axes[-1, column].set_xticks(np.log2(values), [f"{v:g}" for v in values])
        plots.legend(figure, [plots.key(plots.scheme(s), ls="-") for s in tables.SCHEMES])
    return figure


def _panels(varied: list[str], titles: list[str]) -> tuple[Figure, np.ndarray]:
    """A row for the loss and one for each of ``FOLLOWED``, one column per thing varied."""
    width, shared = min(1.35 * len(varied) + 0.6, 7.2), {"sharex": "col", "sharey": "row"}
    figure, axes = grid(max(width, 5.0), 6.2, 4, len(varied), **shared)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr]
    labels = [
        "loss (nats)",
        "(a) readout\nweight RMS",
        "(b) FFN-down\ninput RMS",
        "(c) FFN-down\ngradient RMS",
    ]
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, fontsize=9)
    for column, title in enumerate(titles):
        axes[-1, column].set_xlabel(title)
        for row in range(4):
            if row:
                plots.powers(axes[row, column])
        if title in HP_NAMES.values():
            plots.powers(axes[-1, column], "x")
    return figure, axes


def _lines(axes: np.ndarray, own: pd.DataFrame, look: Look) -> None:
    """One line per recipe down the rows: means over seeds, bands the range of the seeds."""
    for recipe, group in own.groupby("recipe", sort=False):
        style = "-" if recipe == "plain" else ":"
        for ax, column in zip(axes, ("loss", *FOLLOWED), strict=True):
            ok = group[np.isfinite(group[column])]
            if ok.empty or (recipe != "plain" and column != "loss"):
                continue
            values = ok[column] if column == "loss" else np.log2(ok[column])
            by_value = values.groupby(ok["value"])
            x = np.log2(np.array(list(by_value.groups), float))
            shape: dict[str, Any] = {"marker": look.marker, "ms": 4, "lw": 1.3}
            ax.plot(x, by_value.mean(), style, color=look.colour, **shape)
            low, high = by_value.min(), by_value.max()
            ax.fill_between(x, low, high, color=look.colour, alpha=0.2, lw=0)


@figures.drawn
def slopes(results: Results) -> Figure:
    """Slope of end RMS over each thing varied, with 95 % intervals and the claims' bound."""
    table = tables.slopes(results)
    schemes = [s for s in tables.SCHEMES if (table["scheme"] == s).any()]
    rows = {}
    for scheme in schemes:
        found = set(table[table["scheme"] == scheme]["varied"])
        rows[scheme] = [v for v in (*SWEPT[scheme], *SHAPE.values()) if v in found]
    steep = claims.bound("fp8_drift", "shape-moves-nothing")
    reach = 1.15 * max(table["slope"].abs().max(), 2 * steep)
    with figures.style():
        height = 1.5 + 0.36 * max(map(len, rows.values()))
        figure, axes = grid(7.2, height, 1, len(schemes), sharex=True)
        for ax, scheme in zip(axes[0], schemes, strict=True):
            plots.band(ax, -steep, steep, along="x")
            own = table[table["scheme"] == scheme]
            series = [(TENSORS[t], _slopes_of(own, t)) for t in FOLLOWED]
            names = {v: HP_NAMES.get(v) or v for v in rows[scheme]}
            plots.forest(ax, names, series, ms=5, capsize=2, elinewidth=1)
            ax.set_xlim(-reach, reach)
            ax.set_title(NAMES[scheme], fontweight="bold")
            ax.set_xlabel("octaves of RMS per octave")
        plots.legend(figure, axes[0][0])
    return figure


def _slopes_of(table: pd.DataFrame, tensor: str) -> dict[str, Interval]:
    """What is varied → the slope of one tensor's RMS."""
    own = table[table["tensor"] == tensor]
    found = zip(own["varied"], *plots.ends(own, "slope"), strict=True)
    return {varied: Interval(*ends) for varied, *ends in found}


@figures.drawn
def speed(results: Results) -> Figure:
    """Left: TFLOP/s of a square product against its size. Right: step time relative to bf16.

    Medians, bars the range of the timings; hollow marks and dashed lines: precise accumulation.
    """
    gemms, steps = results.table("gemm"), results.table("step")
    if gemms.empty and steps.empty:
        raise NotMeasured("speeds, which need a device with FP8 units")
    with figures.style():
        figure, (left, right) = figures.subplots(7.2, 3.9, 2)
        _gemms(left, gemms)
        _steps(right, steps)
        for ax in (left, right):
            if ax.get_legend_handles_labels()[0]:
                ax.legend(loc="best")
    return figure


def _gemms(ax: Axes, table: pd.DataFrame) -> None:
    groups = table.groupby(["kind", "accumulation"]) if len(table) else ()
    for (kind, accumulation), group in groups:
        own = group.sort_values("size")
        _speeds(ax, own["size"], plots.ends(own, "tflops"), PRODUCTS[kind], accumulation)
    plots.log2_axis(ax, table["size"] if len(table) else None, room=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("size of the square product")
    ax.set_ylabel("TFLOP/s")


def _steps(ax: Axes, table: pd.DataFrame) -> None:
    if len(table):
        base = table[table["recipe"] == "bf16"].set_index("d_model")["seconds"]
        for (recipe, accumulation), group in table.groupby(["recipe", "accumulation"]):
            own = group[group["d_model"].isin(base.index)].sort_values("d_model")
            seconds, shortest, longest = plots.ends(own, "seconds")
            scale = base.loc[own["d_model"]].to_numpy()
            speeds = scale / np.array([seconds, longest, shortest])
            _speeds(ax, own["d_model"], speeds, RECIPES[recipe], accumulation)
        plots.log2_axis(ax, table["d_model"], room=0)
    plots.guide(ax, 1.0, lw=1)
    ax.set_xlabel("width d_model")
    ax.set_ylabel("speed of a training step / bf16's")


def _speeds(ax: Axes, x: pd.Series, ends: np.ndarray, look: Look, accumulation: str) -> None:
    """A line of speeds; hollow, dashed and without a name where accumulation is precise."""
    style: dict[str, Any] = {"ls": "-", "ms": 5, "capsize": 2, "lw": 1.2}
    if accumulation == "precise":
        look, style = look._replace(title="_"), style | {"ls": "--", "mfc": "white"}
    plots.points(ax, x, ends, look, **style)
