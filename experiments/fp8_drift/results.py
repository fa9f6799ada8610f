"""Tables of the study `fp8_drift`: records in, tidy frames out.

A run with one probe step is a *setting*, any other an *arm*. Tensors are the operands of products:
``input``, ``weight`` and ``output_gradient`` of every linear.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from umup import fp8, laws
from umup.config import RECIPES
from umup.lab import ranges, records
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.ranges import KINDS, LINEARS, of_linears
from umup.lab.records import Results
from umup.lab.tables import NAMES, differences, loss_of, remembered
from umup.laws import Interval
from umup.slopes import fit_slope

quantity = QUANTITIES = Quantities()

SCHEMES = ("mup", "umup")
SWEPT = {
    "mup": ("eta", "eta_emb", "sigma_init", "alpha_emb", "alpha_attn_softmax", "alpha_output"),
    "umup": (
        "eta",
        "alpha_attn_softmax",
        "alpha_residual",
        "alpha_residual_attn_ratio",
        "alpha_ffn_act",
        "alpha_loss_softmax",
    ),
}
"""Hyperparameters varied, of each scheme (u-μP paper, Table 6)."""
SHAPE = {"d_model": "width", "n_layers": "depth", "steps": "steps", "batch_size": "batch"}
FOLLOWED = ("readout weight", "last FFN-down input", "last FFN-down gradient")
"""The tensors of the paper's Figure 9, those of the largest RMS at the end."""
LEFT = 0.01
"""Share of lost elements from which a tensor counts as out of a format's range."""


def _specified(runs: pd.DataFrame) -> pd.DataFrame:
    required(runs, "no runs are on record")
    table = records.with_spec(runs)
    given = [json.loads(spec).get("probe_steps", []) for spec in runs["spec"]]
    return table.assign(probes=[len(steps) for steps in given], loss=loss_of(table))


@remembered
def arms(results: Results) -> pd.DataFrame:
    """The runs under each recipe; column ``recipe`` (``, precise`` after it where it is).

    Raises:
        NotMeasured: there are none.
    """
    runs = _specified(results.runs)
    runs = required(runs[runs["probes"] != 1], "no arms are on record")
    precise = runs["model.accumulation"] == "precise"
    return runs.assign(recipe=runs["model.recipe"] + precise.map({True: ", precise", False: ""}))


def width_of(table: pd.DataFrame, d_model: int | None = None) -> pd.DataFrame:
    """The rows of width ``d_model``, by default the narrowest."""
    return table[table["d_model"] == (table["d_model"].min() if d_model is None else d_model)]


@remembered
def drift(results: Results) -> pd.DataFrame:
    """What the probes of the plain arms saw of every linear, a row per tensor and step.

    Columns: scheme, d_model, seed, step, place (``blocks.0.mlp.down``), layer (−1: the readout),
    linear, kind, the statistics of ``config.PROBE_STATS``; e4m3, e5m2 (share lost, clipped or
    flushed) and seed_recipe (share lost in the format that ``fp8_seed`` gives it).

    Raises:
        NotMeasured: there are no probed arms.
    """
    runs = arms(results)
    seen = required(of_linears(records.probes(runs)), "no probed runs are on record")
    table = seen.merge(runs[["key", "scheme", "d_model", "seed"]], on="key")
    for fmt in ("e4m3", "e5m2"):
        table[fmt] = table[f"{fmt}_clipped"] + table[f"{fmt}_flushed"]
    formats = [_format("fp8_seed", *row) for row in zip(table["place"], table["kind"])]
    wide = pd.Series(formats, table.index) == "e5m2"
    return table.assign(seed_recipe=table["e4m3"].where(~wide, table["e5m2"]))


def _format(recipe: str, place: str, kind: str) -> str:
    casts = fp8.casts(recipe, place)
    chosen = (casts.x, casts.w, casts.g)[KINDS.index(kind)]
    return "" if chosen is None else chosen.name.lower()


@remembered
def departures(results: Results, d_model: int | None = None) -> pd.DataFrame:
    """Which tensors leave E4M3's range, a row per scheme and tensor, means over seeds.

    Columns: scheme, place, kind; first (probe step at which ``LEFT`` of its elements are lost
    first, infinite if never), clipped, flushed (largest shares over the probe steps), lost_e5m2
    (largest share lost in E5M2 instead), start and end (RMS). Sorted by what is lost.
    """
    table = width_of(drift(results), d_model)
    rows = []
    by_tensor = ["scheme", "place", "kind"]
    for (scheme, place, kind), group in table.groupby(by_tensor):
        mean = group.groupby("step")[["rms", "e4m3", "e4m3_clipped", "e4m3_flushed", "e5m2"]].mean()
        out = mean.index[mean["e4m3"] > LEFT]
        rows.append(
            {
                "scheme": scheme,
                "place": place,
                "kind": kind,
                "first": float(out[0]) if len(out) else math.inf,
                "clipped": mean["e4m3_clipped"].max(),
                "flushed": mean["e4m3_flushed"].max(),
                "lost_e5m2": mean["e5m2"].max(),
                "start": mean["rms"].iloc[0],
                "end": mean["rms"].iloc[-1],
            }
        )
    found = pd.DataFrame(rows)
    lost = found["clipped"] + found["flushed"]
    return found.assign(lost=lost).sort_values(
        ["scheme", "first", "lost"], ascending=[True, True, False], kind="stable"
    )


@remembered
def loss_differences(results: Results, against: str = "plain") -> pd.DataFrame:
    """Final loss of each recipe minus that of ``against``, paired by seed, nats per token.

    Columns: scheme, d_model, recipe, loss, loss_lo, loss_hi (of the recipe itself), difference,
    difference_lo, difference_hi, n (pairs), diverged (runs). A diverged run makes it infinite.

    Raises:
        NotMeasured: no scheme has runs of ``against``.
    """
    table = required(
        differences(arms(results), "recipe", against),
        f"no runs of the recipe {against} are on record",
    )
    rank = table["recipe"].map(_rank)
    return table.assign(rank=rank).sort_values(["scheme", "d_model", "rank"], ignore_index=True)


def _rank(recipe: str) -> tuple[int, str]:
    return RECIPES.index(recipe.split(",")[0]), recipe


@remembered
def varied(results: Results) -> pd.DataFrame:
    """The runs in which one thing was varied, and those at the default beside them.

    Raises:
        NotMeasured: there are none.
    """
    runs = _specified(results.runs)
    return required(runs[runs["probes"] == 1], "no runs in which one thing is varied")


@remembered
def settings(results: Results) -> pd.DataFrame:
    """The runs in which one thing was varied, and the RMS of ``FOLLOWED`` at their ends.

    Columns: scheme, recipe, varied (``eta``, …, or a value of ``SHAPE``; "" for the default),
    value, seed, status, loss, and a column for each of ``FOLLOWED`` (NaN where diverged).
    The default is what most runs have in common.

    Raises:
        NotMeasured: there are no such runs.
    """
    runs = varied(results)
    seen = of_linears(records.probes(runs)).set_index(["key", "place", "kind"])["rms"]
    columns = {f"hps.{hp}": hp for hps in SWEPT.values() for hp in hps} | SHAPE
    rows = []
    for scheme, group in runs.groupby("scheme"):
        # eta is given at full precision, the rest at powers of two: modes are exact
        default = {column: group[column].mode().iloc[0] for column in columns}
        for row in group.to_dict("records"):
            differing = [c for c in columns if row[c] != default[c]]
            last = f"blocks.{row['n_layers'] - 1}.mlp.down"
            tensors = (("readout", "weight"), (last, "input"), (last, "output_gradient"))
            rms = [seen.get((row["key"], *tensor), math.nan) for tensor in tensors]
            labels = {
                "scheme": scheme,
                "recipe": row["model.recipe"],
                "seed": row["seed"],
                "status": row["status"],
                "loss": row["loss"],
                **dict(zip(FOLLOWED, rms, strict=True)),
            }
            if len(differing) > 1:
                continue
            if differing:
                value = row[differing[0]]
                rows.append(labels | {"varied": columns[differing[0]], "value": value})
            else:
                rows.append(labels | {"varied": "", "value": math.nan})
    out = pd.DataFrame(rows)
    defaults = out[out["varied"] == ""]
    # The default belongs to every line of its scheme and recipe that anything varies on.
    lines = [out[out["varied"] != ""], defaults]
    for (scheme, recipe, name), _ in lines[0].groupby(["scheme", "recipe", "varied"]):
        own = defaults[(defaults["scheme"] == scheme) & (defaults["recipe"] == recipe)]
        column = next(c for c, title in columns.items() if title == name)
        value = runs[runs["scheme"] == scheme][column].mode().iloc[0]
        lines.append(own.assign(varied=name, value=value))
    return pd.concat(lines, ignore_index=True)


@remembered
def slopes(results: Results, recipe: str = "plain") -> pd.DataFrame:
    """Octaves of end-of-training RMS per octave of what is varied.

    Columns: scheme, varied, tensor (of ``FOLLOWED``), slope, slope_lo, slope_hi, n (runs). Runs
    that diverged are left out.

    Raises:
        NotMeasured: nothing was varied.
    """
    table = settings(results)
    rows = []
    table = table[(table["recipe"] == recipe) & (table["varied"] != "")]
    table = table[table["status"] == "ok"]
    for (scheme, name), group in table.groupby(["scheme", "varied"]):
        for tensor in FOLLOWED:
            fitted = fit_slope(group["value"], group[tensor])
            if math.isnan(fitted.value):
                continue  # of one value alone
            rows.append(
                {
                    "scheme": scheme,
                    "varied": name,
                    "tensor": tensor,
                    "n": len(group),
                    **fitted.columns("slope"),
                }
            )
    return required(pd.DataFrame(rows), "nothing was varied")


def _seen(
    results: Results, scheme: str, d_model: int | None, kinds: Sequence[str], linears: Sequence[str]
) -> pd.DataFrame:
    table = width_of(drift(results), d_model)
    table = table[(table["scheme"] == scheme) & table["kind"].isin(kinds)]
    at = "" if d_model is None else f" at width {d_model}"
    missing = f"{NAMES.get(scheme, scheme)}: no probed plain runs{at}"
    return required(table[table["linear"].isin(linears)], missing)


@quantity
def rms(
    results: Results,
    scheme: str,
    when: str = "start",
    extreme: str = "furthest",
    kinds: Sequence[str] = KINDS,
    linears: Sequence[str] = LINEARS,
    d_model: int | None = None,
) -> Interval:
    """log2 of the RMS that is furthest from 1 (or ``largest``, ``smallest``) of some tensors.

    ``when`` is ``start`` or ``end`` of training.
    """
    table = _seen(results, scheme, d_model, kinds, linears)
    step = table["step"].min() if when == "start" else table["step"].max()
    at = table[table["step"] == step]
    return ranges.extreme(at.assign(log2=np.log2(at["rms"])), "log2", extreme)


@quantity
def margin(
    results: Results, scheme: str, when: str = "end", d_model: int | None = None
) -> Interval:
    """Octaves between a tensor's RMS and the nearer end of E4M3's normal range, smallest of all.

    Below 0: outside.
    """
    table = _seen(results, scheme, d_model, KINDS, LINEARS)
    step = table["step"].min() if when == "start" else table["step"].max()
    at = table[table["step"] == step]
    return ranges.extreme(at.assign(margin=ranges.margin(at["rms"])), "margin", "smallest")


@quantity
def growth(
    results: Results,
    scheme: str,
    kinds: Sequence[str],
    linears: Sequence[str],
    extreme: str = "furthest",
    since: str = "start",
    d_model: int | None = None,
) -> Interval:
    """log2 of a tensor's RMS at the end over that at the start (or its ``peak``), an extreme."""
    table = _seen(results, scheme, d_model, kinds, linears)
    rows = []
    for (seed, place, kind), group in table.groupby(["seed", "place", "kind"]):
        values = group.sort_values("step")["rms"].to_numpy()
        reference = values[0] if since == "start" else values.max()
        labels = {"seed": seed, "place": place, "kind": kind}
        rows.append(labels | {"log2": math.log2(values[-1] / reference)})
    return ranges.extreme(pd.DataFrame(rows), "log2", extreme)


@quantity
def lost(
    results: Results,
    scheme: str,
    column: str = "seed_recipe",
    kinds: Sequence[str] = KINDS,
    linears: Sequence[str] = LINEARS,
    d_model: int | None = None,
) -> Interval:
    """Largest share of elements lost, over the tensors and probe steps, %.

    ``column``: of ``drift``: e4m3, e4m3_clipped, e4m3_flushed, e5m2, … or seed_recipe.
    """
    table = _seen(results, scheme, d_model, kinds, linears)
    return ranges.extreme(table, column, "largest").scaled(100.0)


@quantity
def loss_difference(
    results: Results, scheme: str, recipe: str, against: str = "plain", d_model: int | None = None
) -> Interval:
    """Final loss under ``recipe`` minus that under ``against``, paired by seed, nats per token."""
    table = width_of(loss_differences(results, against), d_model)
    table = table[(table["scheme"] == scheme) & (table["recipe"] == recipe)]
    required(table, f"{NAMES.get(scheme, scheme)}: no runs under {recipe} and {against}")
    row = table.iloc[0]
    return Interval.of(row, "difference")


@quantity
def slope(
    results: Results, scheme: str, varied: str, tensor: str | None = None, factor: float = 1
) -> Interval:
    """Octaves of end RMS per octave of what is varied, the steepest of all that fit.

    Args:
        varied: a hyperparameter; ``others``, all of the scheme's but η; ``shape``, width, depth,
            steps and batch.
        tensor: one of ``FOLLOWED``, by default all.
        factor: how far it must have been varied.
    """
    wanted, table = _wanted(results, scheme, varied, factor), slopes(results)
    table = table[(table["scheme"] == scheme) & table["varied"].isin(wanted)]
    table = table if tensor is None else table[table["tensor"] == tensor]
    row = table.loc[table["slope"].abs().idxmax()]
    return Interval.of(row, "slope")


def _wanted(results: Results, scheme: str, varied: str, factor: float) -> tuple[str, ...]:
    """What ``varied`` stands for.

    Raises:
        NotMeasured: some of it was not varied, or not as far as ``factor``.
    """
    groups = {"others": SWEPT[scheme][1:], "shape": tuple(SHAPE.values())}
    wanted = groups.get(varied, (varied,))
    name, table = NAMES.get(scheme, scheme), slopes(results)
    known = table[(table["scheme"] == scheme) & table["varied"].isin(wanted)]
    required(known, f"{name}: nothing varied of {', '.join(wanted)}")
    if missing := sorted(set(wanted) - set(known["varied"])):
        raise NotMeasured(f"{name}: {', '.join(missing)} not varied")
    every = settings(results)
    for one in wanted:
        own = every[(every["scheme"] == scheme) & (every["varied"] == one)]["value"]
        spanning(own.dropna(), factor, f"{name}: values of {one}")
    return wanted


@quantity
def reach(
    results: Results, scheme: str, varied: str, tensor: str | None = None, factor: float = 1
) -> Interval:
    """Octaves between the largest and the smallest end RMS as one thing is varied, the most of all.

    A slope is 0 where the RMS falls and rises again. The two values are those of the largest and
    the smallest mean over seeds, and the interval is of their difference, paired by seed.

    Args:
        varied, tensor, factor: as for ``slope``.
    """
    wanted = _wanted(results, scheme, varied, factor)
    table = settings(results)
    table = table[(table["scheme"] == scheme) & table["varied"].isin(wanted)]
    table = table[(table["recipe"] == "plain") & (table["status"] == "ok")]
    tensors = FOLLOWED if tensor is None else (tensor,)
    found = [
        _apart(own.pivot(index="seed", columns="value", values=name))
        for _, own in table.groupby("varied")
        for name in tensors
    ]
    return max(found, key=lambda each: each.value)


def _apart(by_value: pd.DataFrame) -> Interval:
    """log2 of the largest over the smallest of the columns' means, paired by row."""
    log2 = np.log2(by_value.astype(float))
    means = log2.mean()
    return laws.mean_interval((log2[means.idxmax()] - log2[means.idxmin()]).dropna())


@quantity
def native_share(results: Results) -> Interval:
    """Share of the linears cast to FP8 whose three compiled products all multiply FP8, %."""
    table = _capable(results, "linear")
    share = 100.0 * float(table[table["claims"]]["native"].mean())
    return Interval.exact(share)


@quantity
def gemm_speedup(results: Results, size: int, kind: str = "fp8") -> Interval:
    """Speed of an FP8 product over that in bfloat16; the ends from the slowest and fastest."""
    table = _capable(results, "gemm")
    table = table[(table["size"] == size) & (table["accumulation"] == "fast")].set_index("kind")
    if not {kind, "bf16"} <= set(table.index):
        raise NotMeasured(f"no products of size {size} as {kind} and bf16")
    fp, bf = table.loc[kind], table.loc["bf16"]
    return Interval(
        fp["tflops"] / bf["tflops"],
        fp["tflops_lo"] / bf["tflops_hi"],
        fp["tflops_hi"] / bf["tflops_lo"],
    )


@quantity
def step_speedup(results: Results, d_model: int, recipe: str) -> Interval:
    """Step time in bfloat16 over that under ``recipe``; the ends from the slowest and fastest."""
    table = _capable(results, "step")
    table = table[(table["d_model"] == d_model) & (table["accumulation"] == "fast")]
    table = table.set_index("recipe")
    if not {recipe, "bf16"} <= set(table.index):
        raise NotMeasured(f"no steps of width {d_model} under {recipe} and bf16")
    fp, bf = table.loc[recipe], table.loc["bf16"]
    return Interval(
        bf["seconds"] / fp["seconds"],
        bf["seconds_lo"] / fp["seconds_hi"],
        bf["seconds_hi"] / fp["seconds_lo"],
    )


def _capable(results: Results, what: str) -> pd.DataFrame:
    table = required(results.table(what), f"no measurement of a {what}")
    if not table["capable"].any():
        raise NotMeasured(f"{table['device_kind'].iloc[0]} has no FP8 units")
    return table[table["capable"]]
