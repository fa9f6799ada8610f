"""Quantities of the study `fp8_drift`: what its claims name, from records to an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from umup.lab import ranges
from umup.lab.absent import NotMeasured, required
from umup.lab.ranges import KINDS, LINEARS
from umup.lab.records import Results
from umup.laws import Interval
from umup.studies.fp8_drift_tables import (
    NAMES,
    SHAPE,
    SWEPT,
    drift,
    loss_differences,
    settings,
    slopes,
    width_of,
)


def _seen(
    results: Results, scheme: str, d_model: int | None, kinds: Sequence[str], linears: Sequence[str]
) -> pd.DataFrame:
    table = width_of(drift(results), d_model)
    table = table[(table["scheme"] == scheme) & table["kind"].isin(kinds)]
    at = "" if d_model is None else f" at width {d_model}"
    missing = f"{NAMES.get(scheme, scheme)}: no probed plain runs{at}"
    return required(table[table["linear"].isin(linears)], missing)


def rms(
    results: Results, scheme: str, when: str = "start", extreme: str = "furthest",
    kinds: Sequence[str] = KINDS, linears: Sequence[str] = LINEARS, d_model: int | None = None,
) -> Interval:  # fmt: skip
    """log2 of the RMS that is furthest from 1 (or ``largest``, ``smallest``) of some tensors.

    ``when`` is ``start`` or ``end`` of training.
    """
    table = _seen(results, scheme, d_model, kinds, linears)
    step = table["step"].min() if when == "start" else table["step"].max()
    at = table[table["step"] == step]
    return ranges.extreme(at.assign(log2=np.log2(at["rms"])), "log2", extreme)


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


def growth(
    results: Results, scheme: str, kinds: Sequence[str], linears: Sequence[str],
    extreme: str = "furthest", since: str = "start", d_model: int | None = None,
) -> Interval:  # fmt: skip
    """log2 of a tensor's RMS at the end over that at the start (or its ``peak``), an extreme."""
    table = _seen(results, scheme, d_model, kinds, linears)
    rows = []
    for (seed, place, kind), group in table.groupby(["seed", "place", "kind"]):
        values = group.sort_values("step")["rms"].to_numpy()
        reference = values[0] if since == "start" else values.max()
        labels = {"seed": seed, "place": place, "kind": kind}
        rows.append(labels | {"log2": math.log2(values[-1] / reference)})
    return ranges.extreme(pd.DataFrame(rows), "log2", extreme)


def lost(
    results: Results, scheme: str, column: str = "seed_recipe",
    kinds: Sequence[str] = KINDS, linears: Sequence[str] = LINEARS, d_model: int | None = None,
) -> Interval:  # fmt: skip
    """Largest share of elements lost, over the tensors and probe steps, %.

    ``column``: of ``drift``: e4m3, e4m3_clipped, e4m3_flushed, e5m2, … or seed_recipe.
    """
    table = _seen(results, scheme, d_model, kinds, linears)
    return ranges.extreme(table, column, "largest").scaled(100.0)


def loss_difference(
    results: Results, scheme: str, recipe: str, against: str = "plain", d_model: int | None = None
) -> Interval:
    """Final loss under ``recipe`` minus that under ``against``, paired by seed, nats a token."""
    table = width_of(loss_differences(results, against), d_model)
    table = table[(table["scheme"] == scheme) & (table["recipe"] == recipe)]
    required(table, f"{NAMES.get(scheme, scheme)}: no runs under {recipe} and {against}")
    row = table.iloc[0]
    return Interval(row["difference"], row["difference_lo"], row["difference_hi"])


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
    groups = {"others": SWEPT[scheme][1:], "shape": tuple(SHAPE.values())}
    wanted = groups.get(varied, (varied,))
    table, table_of = slopes(results), settings(results)
    table = table[(table["scheme"] == scheme) & table["varied"].isin(wanted)]
    table = table if tensor is None else table[table["tensor"] == tensor]
    name = NAMES.get(scheme, scheme)
    required(table, f"{name}: nothing varied of {', '.join(wanted)}")
    if missing := sorted(set(wanted) - set(table["varied"])):
        raise NotMeasured(f"{name}: {', '.join(missing)} not varied")
    for one in wanted:
        own = table_of[(table_of["scheme"] == scheme) & (table_of["varied"] == one)]["value"]
        if own.max() < factor * own.min():
            raise NotMeasured(f"{name}: {one} varied less than {factor:g}×")
    row = table.loc[table["slope"].abs().idxmax()]
    return Interval(row["slope"], row["slope_lo"], row["slope_hi"])


def native_share(results: Results) -> Interval:
    """Share of the linears cast to FP8 whose three compiled products all multiply FP8, %."""
    table = _capable(results, "linear")
    share = 100.0 * float(table[table["claims"]]["native"].mean())
    return Interval(share, share, share)


def gemm_speedup(results: Results, size: int, kind: str = "fp8") -> Interval:
    """Speed of an FP8 product over that in bfloat16; the ends from the slowest and fastest."""
    table = _capable(results, "gemm")
    table = table[(table["size"] == size) & (table["accumulation"] == "fast")].set_index("kind")
    if not {kind, "bf16"} <= set(table.index):
        raise NotMeasured(f"no products of size {size} as {kind} and bf16")
    fp, bf = table.loc[kind], table.loc["bf16"]
    return Interval(fp["tflops"] / bf["tflops"], fp["tflops_lo"] / bf["tflops_hi"],
                    fp["tflops_hi"] / bf["tflops_lo"])  # fmt: skip


def step_speedup(results: Results, d_model: int, recipe: str) -> Interval:
    """Step time in bfloat16 over that under ``recipe``; the ends from the slowest and fastest."""
    table = _capable(results, "step")
    table = table[(table["d_model"] == d_model) & (table["accumulation"] == "fast")]
    table = table.set_index("recipe")
    if not {recipe, "bf16"} <= set(table.index):
        raise NotMeasured(f"no steps of width {d_model} under {recipe} and bf16")
    fp, bf = table.loc[recipe], table.loc["bf16"]
    return Interval(bf["seconds"] / fp["seconds"], bf["seconds_lo"] / fp["seconds_hi"],
                    bf["seconds_hi"] / fp["seconds_lo"])  # fmt: skip


def _capable(results: Results, what: str) -> pd.DataFrame:
    table = required(results.table(what), f"no measurement of a {what}")
    if not table["capable"].any():
        raise NotMeasured(f"{table['device_kind'].iloc[0]} has no FP8 units")
    return table[table["capable"]]


QUANTITIES: dict[str, Callable[..., Interval]] = {
    f.__name__: f
    for f in (rms, margin, growth, lost, loss_difference, slope, native_share, gemm_speedup,
              step_speedup)
}  # fmt: skip
