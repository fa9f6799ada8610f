"""Figures of the study `residual_tau`: its tables drawn beside the exact recursion and the bounds.

Every function takes ``records.Results`` and returns a new figure; a lack of records is said in it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from umup.lab import claims, figures, folders, plots
from umup.lab.absent import NotMeasured, otherwise, required
from umup.lab.plots import Look
from umup.lab.records import Results
from umup.rules import residual_taus

from . import results as tables
from .lemma import CONVENTIONS, Shares, shares
from .results import ARMS

LOOKS = {
    "derived": Look(plots.GREEN, "D", "derived"),
    "library": Look(plots.ORANGE, "^", "library"),
    "printed": Look(plots.PURPLE, "v", "printed"),
    **{name: plots.scheme(name) for name in ("mup", "completep", "sp")},
}
PARTS = {
    "embedding": Look("#555555", "o", "embedding"),
    "attention": Look(plots.BLUE, "s", "attention"),
    "ffn": Look(plots.VERMILION, "D", "FFN"),
}
DEPTH = "depth N (blocks)"


def _exact(convention: str, n_layers: int, alpha: float = 1.0, ratio: float = 1.0) -> Shares:
    return shares([float(t) for t in residual_taus(n_layers, alpha, ratio, convention)])


@figures.drawn
def contributions(results: Results) -> Figure:
    """Share of the output's variance from embedding, attention and FFN against depth, α = 1.

    One panel per convention. Lines are the exact recursion for branches of unit scale, markers the
    real model at initialization with 95 % intervals over seeds.
    """
    table = tables.contributions(results)
    depths = sorted(table["n_layers"].unique())
    with figures.style():
        figure, axes = figures.subplots(7.2, 3.5, len(CONVENTIONS), sharey=True)
        for ax, convention in zip(axes, CONVENTIONS, strict=True):
            exact = [_exact(convention, n) for n in depths]
            mine = table[table["arm"] == convention].sort_values("n_layers")
            for part, look in PARTS.items():
                line = [getattr(e, part) for e in exact]
                # Attention's and FFN's lines may coincide: dashes let the one below be seen.
                dashes = "--" if part == "ffn" else "-"
                ax.plot(depths, line, dashes, color=look.colour, lw=1.6)
                plots.points(ax, mine["n_layers"], plots.ends(mine, part), look, ms=5)
            plots.log2_axis(ax, depths, DEPTH)
            ax.set_title(f"{convention} τ", fontweight="bold")
            ax.set_ylim(0, 1)
        axes[0].set_ylabel("share of the output's variance")
        plots.legend(figure, axes[0], "lines: exact at unit scale; markers: real model")
    return figure


@figures.drawn
def realised(results: Results) -> Figure:
    """The two ratios at the output against the hyperparameters that are to set them.

    Left σ(residual)/σ(embedding) against α_residual, right σ(attention)/σ(FFN) against
    α_residual_attn_ratio. Lines: exact for branches of unit scale. Filled markers: the real model
    with T = 1, where that holds; hollow: with long sequences.
    """
    control, long = tables.realised(results, 1), tables.realised(results)
    depth = int(control.groupby("n_layers").size().idxmax())
    models = {
        "full": control[control["n_layers"] == depth],
        "none": long[long["n_layers"] == depth],
    }
    with figures.style():
        figure, axes = figures.subplots(7.2, 3.9, 2)
        for ax, what in zip(axes, ("residual", "attention"), strict=True):
            _ratios(ax, models, what, depth)
        axes[0].set_ylabel("σ(attention + FFN) / σ(embedding)")
        axes[1].set_ylabel("σ(attention) / σ(FFN)")
        plots.legend(figure, axes[0], f"N = {depth}; filled T = 1, hollow the full sequence")
    return figure


def _ratios(ax: Axes, models: dict[str, pd.DataFrame], what: str, depth: int) -> None:
    """One ratio against its hyperparameter, the other one at 1."""
    hp, other, name = {
        "residual": ("alpha", "ratio", "α_residual"),
        "attention": ("ratio", "alpha", "α_residual_attn_ratio"),
    }[what]
    models = {fill: table[table[other] == 1.0] for fill, table in models.items()}
    if models["full"].empty:
        figures.note(ax, f"no walks over {hp} at T = 1")
        return
    values = sorted(models["full"][hp].unique())
    fine = np.geomspace(values[0], values[-1], 33)
    ax.plot(fine, fine, ":", color=plots.GUIDE, lw=2, label="as the HP says")
    for i, convention in enumerate(CONVENTIONS):
        look = LOOKS[convention]
        exact = [_exact(convention, depth, **{hp: v}) for v in fine]
        ax.plot(fine, [_ratio(e, what) for e in exact], "-", color=look.colour, lw=1.3)
        for fill, table in models.items():
            mine = table[table["arm"] == convention].sort_values(hp)
            place = mine[hp] * plots.aside(i, len(CONVENTIONS), 0.08)
            label = look.title if fill == "full" else "_"
            options = {"fillstyle": fill, "label": label, "elinewidth": 1}
            plots.points(ax, place, plots.ends(mine, what), look, **options)
    plots.log2_axis(ax, axis="y")
    plots.log2_axis(ax, values, name, room=1.3)


def _ratio(exact: Shares, what: str) -> float:
    """σ(attention + FFN)/σ(embedding), or σ(attention)/σ(FFN)."""
    if what == "residual":
        return ((exact.attention + exact.ffn) / exact.embedding) ** 0.5
    return (exact.attention / exact.ffn) ** 0.5


@figures.drawn
def lemma(results: Results) -> Figure:
    """Left: the largest error of Lemma C.1 over depth. Right: what every branch contributes.

    Left, against the depth-μP network that each convention equals (printed: the nearest); the
    dotted line is the claims' bound. Right, the exact share of each branch in the output's
    variance relative to an even one, at the largest depth and α = 1.
    """
    table = tables.networks(results)
    depths = sorted(table["n_layers"].unique())
    with figures.style():
        figure, (left, right) = figures.subplots(7.2, 3.7, 2)
        for convention in CONVENTIONS:
            look = LOOKS[convention]
            style = {"color": look.colour, "label": convention, "marker": look.marker, "ms": 5}
            mine = table[table["convention"] == convention].sort_values("n_layers")
            left.plot(mine["n_layers"], [max(v) for v in mine["own_error"]], lw=1.4, **style)
            branches = _exact(convention, depths[-1]).branches
            parts = branches * len(branches)
            place = (np.arange(len(parts)) + 0.5) / len(parts)
            right.plot(place, parts, color=look.colour, lw=1.4)
            some = np.linspace(0, len(parts) - 1, 7).round().astype(int)
            right.plot(place[some], parts[some], ls="", **style)
        bound = 10 ** claims.bound("residual_tau", "lemma-derived")
        plots.guide(left, bound, f"bound {bound:g}")
        left.set_yscale("log")
        left.set_ylim(1e-16, 30)
        plots.log2_axis(left, depths, DEPTH)
        left.set_ylabel("largest error / RMS of the layer")
        left.set_title("unit-scaled against plain depth-μP")
        plots.log2_axis(right, axis="y")
        low, high = right.get_ylim()
        right.set_ylim(min(low, 1 / 8), max(high, 8))
        right.set_xlabel("branch l / L")
        right.set_ylabel("L × share of the output's variance")
        right.set_title(f"one branch's part, N = {depths[-1]}, α = 1")
        left.legend(loc="center left", bbox_to_anchor=(0.0, 0.55))
    return figure


@figures.drawn
def stream(results: Results) -> Figure:
    """σ along the skip stream at initialization, one panel per scheme and one line per depth.

    The band is what the claim allows. u-μP also with T = 1, where every branch has unit scale.
    """
    panels = [("sp", None), ("mup", None), ("completep", None), ("derived", None), ("derived", 1)]
    walks = otherwise(lambda missing: None)(lambda p: tables.at_default(tables.walks(results, *p)))
    found = {p: table for p in panels if (table := walks(p)) is not None}
    if not found:
        raise NotMeasured("no walks are on record")
    depths = sorted(set().union(*(t["n_layers"] for t in found.values())))
    colours = plots.sequence(depths)
    most = claims.bound("residual_tau", "stream-is-unit-scaled")
    with figures.style():
        figure, axes = figures.subplots(1.34 * len(found) + 0.5, 3.4, len(found), sharey=True)
        for ax, ((arm, seq_len), table) in zip(axes, found.items(), strict=True):
            plots.band(ax, 2 - most, most)
            for row in table.sort_values("n_layers").to_dict("records"):
                mean, n = np.mean(row["stream"], axis=0), row["n_layers"]
                place = np.arange(len(mean)) / (len(mean) - 1)
                ax.plot(place, mean, "-", color=colours[n], lw=1.6, label=str(n))
            plots.log2_axis(ax, axis="y")
            tokens = seq_len or int(table["seq_len"].iloc[0])
            name = "u-μP" if arm == "derived" else LOOKS[arm].title
            ax.set_title(f"{name}\nT = {tokens}", fontweight="bold")
            ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            ax.set_xlabel("branch l / L")
        axes[0].set_ylabel("σ of the skip stream")
        plots.legend(figure, axes[0], "depth N")
    return figure


@figures.drawn
def trained(results: Results) -> Figure:
    """Shares of the output's mean square before and after training, one panel per convention.

    Hollow bars before, filled after; shares after training need not sum to 1, since the parts are
    then correlated.
    """
    table = tables.contributions(results, "trained")
    depths = sorted(table["n_layers"].unique())
    with figures.style():
        figure, axes = figures.subplots(7.2, 3.5, len(CONVENTIONS), sharey=True)
        for ax, convention in zip(axes, CONVENTIONS, strict=True):
            mine = table[table["arm"] == convention]
            for j, (part, look) in enumerate(PARTS.items()):
                for stage, shift in (("init", -0.055), ("trained", 0.055)):
                    at = mine[mine["stage"] == stage].sort_values("n_layers")
                    place = [depths.index(n) + 0.28 * (j - 1) + shift for n in at["n_layers"]]
                    filled = stage == "trained"
                    fill, label = (look.colour, look.title) if filled else ("white", "_")
                    ax.bar(place, at[part], 0.11, color=fill, edgecolor=look.colour, label=label)
            ax.set_xticks(range(len(depths)), [str(n) for n in depths])
            ax.set_xlabel(DEPTH)
            ax.set_title(f"{convention} τ", fontweight="bold")
            ax.grid(False, axis="x")
        axes[0].set_ylabel("mean square / output's")
        plots.legend(figure, axes[0], "hollow: before training; filled: after")
    return figure


@figures.drawn
def loss_by_lr(results: Results) -> Figure:
    """Final loss against η, one panel per arm and one line per depth; stars are fitted optima.

    Bands are 95 % intervals over three seeds or more, crosses at the top edge learning rates at
    which a run diverged.
    """
    losses, optima = tables.losses(results), tables.optima(results)
    required(losses[losses["n"] > 0], "no run is on record that did not diverge")
    depths = sorted(losses["depth"].unique())
    colours = plots.sequence(depths)
    best = [o.loss for fits in optima.values() for o in fits.values()]
    bottom, top = plots.window(losses["mean"].min(), best, 2.2)
    with figures.style():
        width = max(1.44 * len(optima), 4)
        figure, axes = figures.subplots(width, 3.6, len(optima), sharey=True)
        for ax, (arm, fits) in zip(axes, optima.items(), strict=True):
            for depth, group in losses[losses["arm"] == arm].groupby("depth"):
                look = Look(colours[depth], title=str(depth))
                plots.curve(ax, group, look, top=top, band_from=3)
                plots.star(ax, fits[depth], look.colour)
            title = ARMS[arm].title.replace(", ", "\n")
            ax.set_title(title, fontweight="bold", fontsize=10)
            plots.octaves(ax, most=5)
            ax.set_ylim(bottom, top)
        axes[0].set_ylabel(figures.LOSS)
        plots.legend(figure, axes[0], "depth N")
    return figure


@figures.drawn
def over_depth(results: Results) -> Figure:
    """Over depth: the optimum's shift from the shallowest model, the best loss, and differences.

    Error bars are 95 % intervals; hollow markers a sweep that does not bracket its optimum; the
    left band is what the claims allow, ±½ octave, inside which a sweep in factors of two cannot
    tell a shift from none. For the right panel see `_differences`.
    """
    optima = tables.optima(results)
    depths = sorted({depth for fits in optima.values() for depth in fits})
    allowed = claims.bound("residual_tau", "umup-transfers-over-depth")
    with figures.style():
        figure, (left, middle, right) = figures.subplots(7.2, 4.0, 3)
        plots.band(left, -allowed, allowed)
        for i, (arm, fits) in enumerate(optima.items()):
            look = LOOKS[arm]._replace(title=ARMS[arm].title)
            aside = plots.aside(i, len(optima), 0.07)
            base = fits[min(fits)].x
            plots.optima(left, fits, look, base=base, aside=aside, open_end=0.5)
            plots.optima(middle, fits, look, what="loss", aside=aside, open_end=0.0)
        for ax in (left, middle):
            plots.log2_axis(ax, depths, DEPTH, room=1.3)
        _differences(right, results, depths)
        left.set_ylabel("shift of η* (octaves)")
        middle.set_ylabel(f"best {figures.LOSS}")
        right.set_ylabel("difference (nats/token)")
        plots.legend(figure, middle, columns=3)
    return figure


def _differences(ax: Axes, results: Results, depths: list[int]) -> None:
    """What the claims on differences judge: the best loss minus another arm's, over depth.

    Small marks are single depths, without intervals of their own; right of them the mean, with
    Student's interval over depths, on what its claim allows.
    """
    entries = claims.load(folders.folder("residual_tau") / "claims.yaml")
    judged = [claim for claim in entries if claim.quantity == "loss_difference"]
    last, means = 3.0 * depths[-1], []
    ax.axhline(0, color=plots.GUIDE, lw=0.8)
    for i, claim in enumerate(judged):
        place = last * plots.aside(i, len(judged), 0.6)
        arm, against = (LOOKS[claim.args[name]] for name in ("arm", "against"))
        by_depth = {k: v for k, v in claim.args.items() if k in ("arm", "against", "from_depth")}
        found = tables.differences(results, **by_depth)
        style = {"color": arm.colour, "marker": arm.marker, "ms": 4.5, "lw": 1.0}
        ax.plot(list(found), list(found.values()), label=f"{arm.title} − {against.title}", **style)
        mean = otherwise(lambda missing: None)(tables.loss_difference)(results, **claim.args)
        if mean is not None:
            plots.points(ax, place, (mean.value, mean.lo, mean.hi), arm._replace(title="_"))
        means.append((place, claim.bound_min, claim.bound_max))
    plots.log2_axis(ax, depths, DEPTH, room=0)
    ax.set_xticks([*depths, last], [*map(str, depths), "mean"])
    ax.set_xlim(depths[0] / 1.3, 1.8 * last)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.35 * (high - low))  # room for the legend
    for mean in means:
        plots.allowed(ax, *mean)
    ax.legend(loc="upper left", handlelength=1.0, borderpad=0.1)
