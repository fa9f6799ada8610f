"""Tables and quantities of the study ``attention_scale``, from its records alone.

Exponents are slopes of log₂ against log₂ d_head, one per seed, with the t interval of their mean.
Head sizes change at a fixed width or with a fixed number of heads, see ``held``; where a function
does not ask, the width is fixed.
Rows say ``layer`` for the block. Intervals are 95 %.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from umup import laws
from umup.config import ModelConfig
from umup.lab import records
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results
from umup.lab.tables import loss_of, remembered
from umup.laws import Drift, Interval, Optimum
from umup.rules import Parametrization

quantity = QUANTITIES = Quantities()

PER_D, PER_ROOT = "umup", "umup_sqrt_attention"
TITLES = {
    PER_D: "u-μP, 1/d",
    PER_ROOT: "u-μP, 1/√d",
    "mup": "μP, 1/d",
    "mup_sqrt_attention": "μP, 1/√d",
}
ALPHA = "hps.alpha_attn_softmax"
WINDOWS = {"eta": laws.WINDOWS, "alpha": (2.25, 3.0)}  # octaves; α's basin is flat on both sides
POINT = ["scheme", "d_head", "seed", "step"]
SCORES = {
    "logit": ("rms", "qk"),
    "logit_mean": ("mean", "qk"),
    "logit_max": ("max", "qk"),
    "cosine": ("rms", "cosine"),
    "cosine_mean": ("mean", "cosine"),
    "entropy": ("mean", "entropy"),
}
"""Column → the statistic and the tensor of a block's attention scores that it is."""
SEEN = ["qk", "logit", "logit_max", "product", "cosine", "cosine_mean", "entropy"]
SMALLEST = 16
"""The head size from which exponents at fixed width and at a fixed number of heads are compared."""


@remembered
def held(runs: pd.DataFrame, fixed: str = "width") -> pd.DataFrame:
    """The runs between which head sizes differ while the ``width`` or the number of ``heads`` does
    not.

    The width is that of most runs, as searches are at one width; the number of heads that of the
    probed runs of other widths, together with the probed runs of this number at the width.
    """
    if runs.empty:
        return runs
    at_width = runs["d_model"] == runs["d_model"].mode()[0]
    if fixed == "width":
        return runs[at_width]
    if fixed != "heads":
        raise ValueError(f"fixed: received {fixed!r}; allowed: width, heads")
    n_heads = runs["d_model"] // runs["d_head"]
    probed = runs["probe_steps"].map(len) > 0
    return runs[probed & n_heads.isin(n_heads[probed & ~at_width].mode())]


@remembered
def heads(runs: pd.DataFrame, fixed: str = "width") -> pd.DataFrame:
    """What the probes saw of the attention: one row per run, step and block.

    Columns: scheme, d_head, seed, step, layer; qk (RMS of the raw q·k), logit (RMS of multiplier
    × q·k), logit_max, product (mean of q_i k_i, raw), cosine (RMS of the cosine of q and k),
    cosine_mean, entropy (nats, mean over rows). Diverged runs are left out.
    """
    runs = held(runs, fixed)
    probed = runs[(runs["probe_steps"].map(len) > 0) & (runs["status"] == "ok")]
    columns = [*POINT, "layer", *SEEN]
    seen = records.probes(probed)
    seen = seen[seen["module"] == "attn.scores"]
    if seen.empty:
        return pd.DataFrame(columns=columns)
    wide = seen.pivot(
        index=["key", "step", "layer"], columns="tensor", values=["rms", "mean", "max"]
    )
    flat = pd.DataFrame({name: wide[source] for name, source in SCORES.items()}).reset_index()
    known = probed[["key", "scheme", "d_head", "seed"]].assign(multiplier=_multipliers(probed))
    flat = flat.merge(known, on="key")
    flat["qk"] = flat["logit"] / flat["multiplier"]
    flat["product"] = flat["logit_mean"] / flat["multiplier"] / flat["d_head"]
    return flat[columns].sort_values([*POINT, "layer"], ignore_index=True)


def _multipliers(runs: pd.DataFrame) -> list[float]:
    """What every run multiplies its q·k by."""
    out = []
    for spec in map(json.loads, runs["spec"]):
        model = ModelConfig.from_dict(spec["model"])
        tokens = spec["optim"]["batch_size"] * model.seq_len
        numbers = Parametrization(spec["scheme"], model, spec["hps"], tokens)
        out.append(float(numbers.attention(model.d_head, model.seq_len)[0]))
    return out


@remembered
def pooled(runs: pd.DataFrame, fixed: str = "width") -> pd.DataFrame:
    """``heads`` with the blocks pooled: root mean squares of qk, logit and cosine, the largest
    logit_max, means of the others (``cosine_mean``: of its magnitude). One row per run and step."""
    table = heads(runs, fixed).copy()
    squares = ["qk", "logit", "cosine"]
    table[squares] = table[squares].astype(float) ** 2
    table["cosine_mean"] = table["cosine_mean"].abs()
    by = dict.fromkeys(SEEN, "mean") | {"logit_max": "max"}
    out = table.groupby(POINT, as_index=False).agg(by)
    out[squares] = out[squares] ** 0.5
    return out


@remembered
def exponents(runs: pd.DataFrame, name: str = "qk") -> pd.DataFrame:
    """The exponent of a column of ``pooled`` in d_head, for every scheme and step.

    Columns: scheme, step, exponent, exponent_lo, exponent_hi, n (seeds that have every head size).
    """
    rows = []
    for (scheme, step), group in pooled(runs).groupby(["scheme", "step"]):
        slopes = slopes_by_seed(group, name)
        if len(slopes):
            m = laws.mean_interval(slopes)
            rows.append(
                {
                    "scheme": scheme,
                    "step": step,
                    "exponent": m.value,
                    "exponent_lo": m.lo,
                    "exponent_hi": m.hi,
                    "n": len(slopes),
                }
            )
    columns = ["scheme", "step", "exponent", "exponent_lo", "exponent_hi", "n"]
    return pd.DataFrame(rows, columns=columns)


def by_seed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """log₂ of ``name``: a row for each seed that has every head size, a column per head size."""
    wide = table.pivot(index="seed", columns="d_head", values=name).dropna()
    return np.log2(wide.astype(float))


def slopes_by_seed(table: pd.DataFrame, name: str) -> list[float]:
    """Slope of log₂ ``name`` against log₂ d_head, one for each seed that has every head size."""
    wide = by_seed(table, name)
    if wide.shape[1] < 2 or wide.empty:
        return []
    return np.polyfit(np.log2(wide.columns.to_numpy(float)), wide.to_numpy().T, 1)[0].tolist()


def local_slopes(table: pd.DataFrame, name: str) -> dict[float, Interval]:
    """Slope of log₂ ``name`` from each head size to the next, the mean over seeds.

    The keys are the geometric means of the two sizes.
    """
    wide = by_seed(table, name)
    u, y = np.log2(wide.columns.to_numpy(float)), wide.to_numpy()
    middles = 2.0 ** ((u[1:] + u[:-1]) / 2)
    slopes = (np.diff(y) / np.diff(u)).T if len(y) else []
    return dict(zip(middles.tolist(), map(laws.mean_interval, slopes), strict=False))


def _slope(table: pd.DataFrame, name: str, what: str) -> Interval:
    """The exponent in d_head (``laws.mean_slope``)."""
    wide = by_seed(table, name)
    if wide.shape[1] < 2 or wide.empty:
        raise NotMeasured(f"{what}: no seed with every head size")
    return laws.mean_slope(np.log2(wide.columns.to_numpy(float)), wide)


def default_lrs(runs: pd.DataFrame) -> dict[str, float]:
    """Scheme → the η at which it was probed."""
    probed = runs[runs["probe_steps"].map(len) > 0]
    return {str(s): float(g["lr"].iloc[0]) for s, g in probed.groupby("scheme")}


@remembered
def curve_runs(runs: pd.DataFrame, hp: str, scheme: str) -> pd.DataFrame:
    """The runs of the line searches over ``eta`` or ``alpha``.

    Columns: d_head, x (log₂ of the value), seed, loss (NaN where diverged). The α of ``PER_ROOT``
    are those of the ``PER_D`` runs, divided by √d_head: α/√d is (α√d)/d.
    """
    of = PER_D if hp == "alpha" else scheme
    runs = held(runs)
    runs = runs[runs["scheme"] == of]
    if runs.empty:
        return pd.DataFrame(columns=["d_head", "x", "seed", "loss"])
    runs = records.with_spec(runs)
    if hp == "eta":
        runs, x = runs[runs[ALPHA] == 1.0], "lr"
    else:
        runs, x = runs[runs["lr"] == default_lrs(runs).get(of, math.nan)], ALPHA
    values = np.log2(runs[x].astype(float))
    if hp == "alpha" and scheme == PER_ROOT:
        values = values - 0.5 * np.log2(runs["d_head"].astype(float))
    table = pd.DataFrame(
        {
            "d_head": runs["d_head"],
            "x": values.round(6),
            "seed": runs["seed"],
            "loss": loss_of(runs),
        }
    )
    searched = table.groupby("d_head")["x"].transform("nunique") > 1
    return table[searched].sort_values(["d_head", "x", "seed"], ignore_index=True)


@remembered
def optima(runs: pd.DataFrame, hp: str, scheme: str) -> dict[int, Optimum]:
    """Head size → the fitted optimum of log₂ ``eta`` or ``alpha``, α in the scheme's own unit."""
    out = {}
    unit = PER_D if hp == "alpha" else scheme  # fitted once, so that both units agree to the bit
    for d_head, group in curve_runs(runs, hp, unit).groupby("d_head"):
        seed = zlib.crc32(repr((hp, unit, d_head)).encode())
        best = laws.fit_optimum(
            group["x"], group["loss"], group["seed"], windows=WINDOWS[hp], rng_seed=seed
        )
        shift = 0.5 * math.log2(d_head) if scheme != unit else 0.0
        out[int(d_head)] = replace(
            best,
            x=best.x - shift,
            x_lo=best.x_lo - shift,
            x_hi=best.x_hi - shift,
            draws=best.draws - shift,
        )
    return out


def drift(runs: pd.DataFrame, hp: str, scheme: str) -> Drift:
    """How the optimum moves with d_head.

    Raises:
        NotMeasured: fewer than two head sizes have an optimum.
    """
    found = {d: o for d, o in optima(runs, hp, scheme).items() if math.isfinite(o.x)}
    if len(found) < 2:
        raise NotMeasured(f"{_name(scheme)}, {hp}: fewer than two head sizes with an optimum")
    return laws.drift(found)


def optima_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per (hp, scheme, d_head). Columns: hp, scheme, d_head, x, x_lo, x_hi, loss, loss_lo,
    loss_hi, n (runs in the fit), edge, reason."""
    rows = [
        {
            "hp": hp,
            "scheme": scheme,
            "d_head": d_head,
            "x": o.x,
            "x_lo": o.x_lo,
            "x_hi": o.x_hi,
            "loss": o.loss,
            "loss_lo": o.loss_lo,
            "loss_hi": o.loss_hi,
            "n": o.n_points,
            "edge": o.edge,
            "reason": o.reason.replace("learning rate", "value"),
        }
        for hp in ("alpha", "eta")
        for scheme in (PER_D, PER_ROOT)
        for d_head, o in optima(runs, hp, scheme).items()
    ]
    columns = [
        "hp",
        "scheme",
        "d_head",
        "x",
        "x_lo",
        "x_hi",
        "loss",
        "loss_lo",
        "loss_hi",
        "n",
        "edge",
        "reason",
    ]
    return pd.DataFrame(rows, columns=columns)


def _name(scheme: str) -> str:
    return TITLES.get(scheme, scheme)


def _spans(d_heads: Iterable[float], factor: float, what: str) -> tuple[Any, Any]:
    return spanning(d_heads, factor, f"{what}: head sizes")


def probed(results: Results, scheme: str, fixed: str = "width") -> pd.DataFrame:
    """The rows of ``pooled`` of one scheme.

    Raises:
        NotMeasured: there are none.
    """
    table = pooled(results.runs, fixed)
    where = " with a fixed number of heads" if fixed == "heads" else ""
    return required(table[table["scheme"] == scheme], f"no probed {_name(scheme)} runs{where}")


@quantity
def exponent(
    results: Results,
    scheme: str,
    at: str,
    name: str = "qk",
    factor: float = 2,
    fixed: str = "width",
    smallest: int = 1,
) -> Interval:
    """Exponent in d_head of a column of ``pooled``, ``at`` the "start" or the "end" of training,
    or its change from start to end ("change", paired by seed); from the head size ``smallest`` up,
    at a ``fixed`` width or number of heads."""
    table = probed(results, scheme, fixed)
    table = table[table["d_head"] >= smallest]
    _spans(table["d_head"], factor, _name(scheme))
    first, last = (
        by_seed(table[table["step"] == step], name)
        for step in (table["step"].min(), table["step"].max())
    )
    if first.shape != last.shape or last.empty:
        raise NotMeasured(f"{_name(scheme)}: no seed with every head size at both ends")
    curve = {"start": first, "end": last, "change": last - first}[at]
    sizes = f"head sizes {first.columns[0]} to {first.columns[-1]}"
    where = sizes + (", as many heads at each" if fixed == "heads" else "")
    return laws.mean_slope(np.log2(curve.columns.to_numpy(float)), curve).at(where)


@quantity
def heads_difference(
    results: Results, scheme: str, smallest: int = 1, factor: float = 2
) -> Interval:
    """Exponent of q·k at the end of training with a fixed number of heads minus that at fixed
    width, paired by seed: of the means of either's local slopes from ``smallest`` to the largest
    head size that both have."""
    sides = [probed(results, scheme, fixed) for fixed in ("heads", "width")]
    sides = [table[table["step"] == table["step"].max()] for table in sides]
    both = sorted(set(sides[0]["d_head"]) & set(sides[1]["d_head"]))
    low, high = _spans([d for d in both if d >= smallest], factor, _name(scheme))
    if low == high:
        raise NotMeasured(f"{_name(scheme)}: one head size alone")
    ends = [by_seed(table[table["d_head"].isin([low, high])], "qk") for table in sides]
    slopes = [(side[high] - side[low]) / math.log2(high / low) for side in ends]
    apart = (slopes[0] - slopes[1]).dropna()
    if apart.empty:
        raise NotMeasured(f"{_name(scheme)}: no seed with both")
    return laws.mean_interval(apart).at(f"head sizes {low} to {high}")


def layers(results: Results) -> pd.DataFrame:
    """The layers at initialization, one row each.

    Raises:
        NotMeasured: there are none.
    """
    return required(results.table("layer"), "no layers at initialization")


@quantity
def layer_exponent(results: Results, correlation: float, pairs: str, factor: float = 2) -> Interval:
    """Exponent of q·k's RMS in d_head in the layer at initialization.

    Over the ``pairs`` of a token with itself ("self") or with earlier ones ("earlier").
    """
    table = layers(results)
    table = table[(table["scheme"] == PER_D) & (table["correlation"] == correlation)]
    required(table, f"no layer of correlation {correlation:g}")
    _spans(table["d_head"], factor, "layer")
    return _slope(table, f"{pairs}_rms", "layer")


@quantity
def base_logits(results: Results) -> Interval:
    """log₂ of μP's over SP's RMS logit at the base head size, equal draws."""
    table = layers(results)
    if not {"sp", "mup"} <= set(table["scheme"]):
        raise NotMeasured("no layers of SP and μP")
    rms = table.set_index("scheme")["logit_rms"]
    value = math.log2(rms["mup"] / rms["sp"])
    return Interval.exact(value)


@quantity
def final(results: Results, scheme: str, name: str, d_head: int | None = None) -> Interval:
    """A column of ``pooled`` at the end of training, at the largest head size unless told."""
    table = probed(results, scheme)
    d_head = table["d_head"].max() if d_head is None else d_head
    table = table[table["d_head"] == d_head]
    required(table, f"no probed {_name(scheme)} runs with heads of {d_head}")
    return laws.mean_interval(table[table["step"] == table["step"].max()][name])


@quantity
def entropy_slope(results: Results, scheme: str, factor: float = 2) -> Interval:
    """Nats of attention entropy per doubling of d_head at the end of training."""
    table = probed(results, scheme)
    _spans(table["d_head"], factor, _name(scheme))
    end = table[table["step"] == table["step"].max()]
    return _slope(end.assign(entropy=2.0 ** end["entropy"]), "entropy", _name(scheme))


@quantity
def optimum_shift(results: Results, hp: str, scheme: str, factor: float) -> Interval:
    """Octaves by which the optimal ``eta`` or ``alpha`` moves over a ``factor`` in d_head."""
    _spans(sorted(optima(results.runs, hp, scheme)), factor, f"{_name(scheme)}, {hp}")
    return drift(results.runs, hp, scheme).slope.scaled(math.log2(factor))


@quantity
def largest_shift(results: Results, hp: str, scheme: str, factor: float) -> Interval:
    """Octaves between the optima of any two head sizes, the furthest apart; see ``laws.Drift``."""
    _spans(sorted(optima(results.runs, hp, scheme)), factor, f"{_name(scheme)}, {hp}")
    return drift(results.runs, hp, scheme).largest


@quantity
def extra_shift(results: Results, factor: float) -> Interval:
    """Octaves by which the optimal α moves more under 1/√d than under 1/d, either way.

    Under 1/√d it moves by s − ½ log₂ factor when it moves by s under 1/d: |that| − |s| falls as s
    grows, so the ends of the interval follow from those of s.
    """
    s = optimum_shift(results, "alpha", PER_D, factor)
    half = 0.5 * math.log2(factor)
    value, lo, hi = (
        abs(x - half) - abs(x) if math.isfinite(x) else -math.copysign(half, x)
        for x in (s.value, s.hi, s.lo)
    )
    return Interval(value, lo, hi)


@quantity
def same_family(results: Results) -> Interval:
    """Largest difference in loss between α = 1 under 1/√d and α = √d under 1/d, equal seeds."""
    runs = held(results.runs)
    defaults = default_lrs(runs)
    if PER_ROOT not in defaults:
        raise NotMeasured(f"no probed {_name(PER_ROOT)} runs")
    root = runs[(runs["scheme"] == PER_ROOT) & (runs["lr"] == defaults[PER_ROOT])]
    root = root[root["probe_steps"].map(len) > 0]
    root = root.assign(loss=loss_of(root))
    curves = curve_runs(runs, "alpha", PER_ROOT)
    both = curves[curves["x"] == 0.0].merge(root[["d_head", "seed", "loss"]], on=["d_head", "seed"])
    if both.empty:
        raise NotMeasured("no run under 1/d whose α is √d_head")
    worst = float((both["loss_x"] - both["loss_y"]).abs().max(skipna=False))
    return Interval.exact(worst)


@quantity
def rule_difference(results: Results, d_head: int | None = None) -> Interval:
    """Loss under 1/d minus that under 1/√d, u-μP's defaults, nats per token, paired by seed.

    At the largest head size unless told.
    """
    runs = held(results.runs)
    runs = runs[runs["probe_steps"].map(len) > 0]
    if not {PER_D, PER_ROOT} <= set(runs["scheme"]):
        raise NotMeasured(f"no probed runs of {_name(PER_D)} and {_name(PER_ROOT)}")
    runs = runs[runs["d_head"] == (d_head or runs["d_head"].max())]
    runs = runs.assign(loss=loss_of(runs))
    wide = runs.pivot(index="seed", columns="scheme", values="loss")
    pairs = (wide[PER_D] - wide[PER_ROOT]).dropna()
    return laws.mean_interval(pairs)
