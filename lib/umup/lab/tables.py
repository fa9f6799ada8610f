"""Records → tidy tables: one fact a row, the same rows for the same runs.

Every table drops stale runs (other numerics) first, and refuses runs that it would have to pool
though they differ in more than learning rate and seed: filter those before. Losses are those of
held-out text at the end of the run (``loss_of``), in nats per token; intervals are 95 %.
"""

from __future__ import annotations

import functools
import math
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from umup import laws
from umup.errors import RecordError
from umup.lab import records
from umup.lab.absent import NotMeasured
from umup.laws import Drift, Interval, Optimum
from umup.schemes import TITLES

GROUP = ["scheme", "d_model", "steps"]
FIXED = ["study", "profile", "n_layers", "vocab_size", "seq_len", "batch_size", "data_digest"]
SCHEMES = ("sp", "mup", "umup")  # the order of rows, panels and legends
NAMES = TITLES  # of schemes
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
NEAR = 0.51  # octaves between a wanted and a measured learning rate: a factor-2 grid reaches ½


def remembered(make: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """A decorator: what ``make`` gives for some frames and arguments is kept while they live.

    Claims, texts and figures ask for the same tables many times. The first argument is a frame or
    ``records.Results``, known by identity: neither it nor what is returned may be changed in place.
    """
    kept: dict[tuple, R] = {}

    @functools.wraps(make)
    def recalled(source: T, *args: P.args, **named: P.kwargs) -> R:
        frames = source if isinstance(source, records.Results) else (source,)
        key = (*map(id, frames), args, *sorted(named.items()))
        if key not in kept:
            kept[key] = make(source, *args, **named)
            for frame in frames:
                weakref.finalize(frame, kept.pop, key, None).atexit = False
        return kept[key]

    return recalled


@remembered
def prepare(runs: pd.DataFrame) -> pd.DataFrame:
    """Current runs with columns `log2_lr` and `loss` (``loss_of``).

    Sorted by scheme, width, steps, η and seed.

    Raises:
        RecordError: runs of one point differ in what tables do not show (study, profile, depth,
            data, ...), or a point has two runs.
    """
    runs = records.current(runs)
    for name in FIXED:
        if name in runs and runs[name].nunique() > 1:
            received = sorted(runs[name].unique().tolist(), key=str)
            raise RecordError(name, received, "one value a table: filter the runs first")
    # Rounded, so that 0.5 and 2**-1 computed otherwise are one learning rate.
    log2_lr = np.log2(runs["lr"].astype(float)).round(4)
    runs = runs.assign(log2_lr=log2_lr, loss=loss_of(runs))
    points = [*GROUP, "log2_lr", "seed"]
    if (twice := runs.duplicated(points)).any():
        point = runs.loc[twice, points].iloc[0].to_dict()
        raise RecordError(
            "runs", point, "one run a point: filter the runs by `hps` or `spec` first"
        )
    return runs.sort_values(points, key=_rank, ignore_index=True)


def loss_of(runs: pd.DataFrame) -> pd.Series:
    """The loss by which runs are compared: of held-out text, nats per token; NaN where diverged.

    Every run ends with the same held-out batches, so that it has 1.3 to 1.6 times less noise than
    the mean of the last training batches.

    Raises:
        RecordError: a run that ended well has none.
    """
    ended = runs["status"] == "ok"
    if (lacking := ended & runs["val_loss"].isna()).any():
        key = runs.loc[lacking, "key"].iloc[0] if "key" in runs else runs.index[lacking][0]
        raise RecordError("val_loss", f"none in run {key}", "runs with eval_batches of at least 1")
    return runs["val_loss"].where(ended)


def main_horizon(table: pd.DataFrame) -> int:
    """The number of steps with the most widths, then the longest, of a table with rows."""
    widths = table.groupby("steps")["d_model"].nunique()
    return int(max(widths.index, key=lambda steps: (widths[steps], steps)))


def _rank(column: pd.Series) -> pd.Series:
    if column.name != "scheme":
        return column
    order = {name: i for i, name in enumerate(SCHEMES)}
    return column.map(lambda name: f"{order.get(name, len(order))}{name}")


def _frame(rows: Sequence[dict[str, Any]], columns: str) -> pd.DataFrame:
    """A frame that has its columns even when it has no rows."""
    return pd.DataFrame(list(rows), columns=columns.split())  # pyright: ignore[reportArgumentType]


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return interval.columns(name)


@remembered
def loss_by_lr(runs: pd.DataFrame) -> pd.DataFrame:
    """Loss at every learning rate: mean and t interval over the n seeds that did not diverge.

    Columns: scheme, d_model, steps, log2_lr, mean, lo, hi (NaN below two seeds), n, n_diverged.
    """
    rows = []
    for point, group in prepare(runs).groupby([*GROUP, "log2_lr"], sort=False):
        ok = group["loss"].dropna()
        m = laws.mean_interval(ok)
        lo, hi = (m.lo, m.hi) if len(ok) > 1 else (math.nan, math.nan)
        values = {"mean": m.value, "lo": lo, "hi": hi, "n": len(ok)}
        labels = dict(zip([*GROUP, "log2_lr"], point, strict=True))
        rows.append(labels | values | {"n_diverged": len(group) - len(ok)})
    return _frame(rows, "scheme d_model steps log2_lr mean lo hi n n_diverged")


def levelled(curve: pd.DataFrame, x: str, loss: str = "loss") -> pd.DataFrame:
    """A curve, to be drawn, with each seed's own level taken out of its losses.

    Seeds shift whole curves (``laws``), and not every point has every seed: without this a mean
    would jump where a seed enters. A seed's level is its mean distance from the mean of all seeds,
    over the points that have all; the mean level stays.

    Args:
        curve: one row per run, with the columns ``x``, seed and ``loss``.
    """
    wide = curve.pivot(index=x, columns="seed", values=loss).dropna()
    level = wide.sub(wide.mean(axis=1), axis=0).mean()
    aside = curve["seed"].map(level).fillna(0.0).astype(float)
    return curve.assign(**{loss: curve[loss] - aside})


def differences(runs: pd.DataFrame, arm: str, against: str) -> pd.DataFrame:
    """Loss of each arm minus that of the arm ``against``, paired by seed, nats per token.

    Args:
        runs: with a column ``arm``, which names the arm of each, and ``loss`` (``loss_of``).

    Returns:
        Columns: scheme, d_model, the arm, loss, loss_lo, loss_hi (of the arm itself), difference,
        difference_lo, difference_hi, n (pairs), diverged (runs). A diverged run makes the
        difference infinite. No rows for a scheme and width without runs of ``against``.
    """
    rows = []
    for (scheme, width), group in runs.groupby(["scheme", "d_model"]):
        found = {name: own.set_index("seed") for name, own in group.groupby(arm)}
        if against not in found:
            continue
        base = found[against]["loss"]
        for name, own in found.items():
            diverged = int((own["status"] == "diverged").sum())
            pairs = (own["loss"] - base).dropna()
            gap = laws.mean_interval(pairs)
            if diverged:
                gap = Interval(math.inf, math.inf, math.inf)
            level = laws.mean_interval(own["loss"].dropna())
            labels = {"scheme": scheme, "d_model": width, arm: name}
            counts = {"diverged": diverged, "n": len(pairs)}
            rows.append(labels | counts | level.columns("loss") | gap.columns("difference"))
    return pd.DataFrame(rows)


@remembered
def fits(runs: pd.DataFrame, *, n_boot: int = 1000) -> dict[tuple[str, int, int], Optimum]:
    """The fitted optimum of every (scheme, d_model, steps)."""
    out = {}
    for name, group in prepare(runs).groupby(GROUP, sort=False):
        seed = zlib.crc32(repr(name).encode())  # no two sweeps share their bootstrap draws
        out[name] = laws.fit_optimum(
            group["log2_lr"], group["loss"], group["seed"], n_boot=n_boot, rng_seed=seed
        )
    return out


def optima(runs: pd.DataFrame, *, n_boot: int = 1000) -> pd.DataFrame:
    """One row a (scheme, d_model, steps): the optimum of `laws.fit_optimum`.

    Columns: scheme, d_model, steps, log2_lr, log2_lr_lo, log2_lr_hi, lr, loss, loss_lo, loss_hi,
    curvature, n_points, n_seeds, n_diverged, edge, reason.
    """
    rows = [
        {"scheme": scheme, "d_model": width, "steps": steps}
        | _ends("log2_lr", Interval(o.x, o.x_lo, o.x_hi))
        | {"lr": 2.0**o.x}
        | _ends("loss", Interval(o.loss, o.loss_lo, o.loss_hi))
        | {n: getattr(o, n) for n in ("curvature", "n_points", "n_seeds", "n_diverged")}
        | {"edge": o.edge, "reason": o.reason}
        for (scheme, width, steps), o in fits(runs, n_boot=n_boot).items()
    ]
    return _frame(
        rows,
        "scheme d_model steps log2_lr log2_lr_lo log2_lr_hi lr loss loss_lo loss_hi "
        "curvature n_points n_seeds n_diverged edge reason",
    )


def drift_fits(
    runs: pd.DataFrame, *, n_boot: int = 1000
) -> dict[tuple[str, int], tuple[Drift, dict[int, Optimum]]]:
    """(scheme, steps) → its drift and the optima by width, where two widths or more are there."""
    by_horizon: dict[tuple[str, int], dict[int, Optimum]] = {}
    for (scheme, width, steps), optimum in fits(runs, n_boot=n_boot).items():
        if math.isfinite(optimum.x):
            by_horizon.setdefault((scheme, steps), {})[width] = optimum
    return {key: (laws.drift(o), o) for key, o in by_horizon.items() if len(o) > 1}


def drifts(runs: pd.DataFrame, *, n_boot: int = 1000) -> pd.DataFrame:
    """One row a (scheme, steps) with two widths or more: how the optimum moves with width.

    Columns: scheme, steps, d_model_min, d_model_max, n_widths, n_edge; each with _lo and _hi:
    slope (octaves per doubling of width), shift (octaves over the range), largest (octaves between
    any two widths).
    """
    rows = [
        {
            "scheme": scheme,
            "steps": steps,
            "d_model_min": min(by_width),
            "d_model_max": max(by_width),
            "n_widths": len(by_width),
            "n_edge": sum(o.edge for o in by_width.values()),
        }
        | _ends("slope", d.slope)
        | _ends("shift", d.shift)
        | _ends("largest", d.largest)
        for (scheme, steps), (d, by_width) in drift_fits(runs, n_boot=n_boot).items()
    ]
    return _frame(
        rows,
        "scheme steps d_model_min d_model_max n_widths n_edge slope slope_lo slope_hi "
        "shift shift_lo shift_hi largest largest_lo largest_hi",
    )


@remembered
def transferred(runs: pd.DataFrame, from_width: int) -> pd.DataFrame:
    """Loss at every width with the learning rate that is optimal at `from_width`.

    The rate is a measured one within half an octave of the fitted optimum: one that every width of
    the scheme has where there is such, with the most seeds at every width, and of those the
    nearest. A width that has none gets NaN and n = 0.

    Columns: scheme, d_model, steps, log2_lr, target (log2 η*), loss, loss_lo, loss_hi, n,
    n_diverged.
    """
    runs = prepare(runs)
    best = fits(runs)
    rows = []
    for (scheme, steps), group in runs.groupby(["scheme", "steps"], sort=False):
        if (scheme, from_width, steps) not in best:
            continue
        target = best[scheme, from_width, steps].x
        near = group[(group["log2_lr"] - target).abs() <= NEAR]
        seeds = near.groupby(["log2_lr", "d_model"]).size().unstack(fill_value=0)
        for width in sorted(group["d_model"].unique()):
            common = seeds.min(axis=1) * (seeds.shape[1] == group["d_model"].nunique())
            counts = common if common.any() else seeds.get(width, pd.Series(dtype=int))
            x = min(
                counts[counts > 0].index,
                key=lambda r: (-counts[r], abs(r - target), r),
                default=math.nan,
            )
            there = group[(group["d_model"] == width) & (group["log2_lr"] == x)]
            ok = there["loss"].dropna()
            rows.append(
                {"scheme": scheme, "d_model": width, "steps": steps, "log2_lr": x}
                | {"target": target, "n": len(ok), "n_diverged": len(there) - len(ok)}
                | _ends("loss", laws.mean_interval(ok))
            )
    columns = "scheme d_model steps log2_lr target loss loss_lo loss_hi n n_diverged"
    return _frame(rows, columns)


@remembered
def default_losses(runs: pd.DataFrame) -> pd.DataFrame:
    """Loss of every (scheme, d_model, steps) at its best measured learning rate, HPs at default.

    The best is the lowest mean over seeds among the rates with the most seeds of which none
    diverged, so that one lucky run does not win.

    Columns: scheme, d_model, steps, log2_lr, loss, loss_lo, loss_hi, n.
    """
    rows = []
    for labels, group in loss_by_lr(runs).groupby(GROUP, sort=False):
        steady = group[(group["n_diverged"] == 0) & (group["n"] > 0)]
        if steady.empty:
            continue
        full = steady[steady["n"] == steady["n"].max()]
        b = full.loc[full["mean"].idxmin()]
        bounds = (b["lo"], b["hi"]) if b["n"] > 1 else (-math.inf, math.inf)
        rows.append(
            dict(zip(GROUP, labels, strict=True))
            | {"log2_lr": b["log2_lr"], "n": int(b["n"])}
            | _ends("loss", Interval(b["mean"], *bounds))
        )
    return _frame(rows, "scheme d_model steps log2_lr loss loss_lo loss_hi n")


def losses_at(
    runs: pd.DataFrame, scheme: str, d_model: int, steps: int, log2_lr: float
) -> pd.Series:
    """Losses by seed of one point, NaN where diverged. `runs` as `prepare` returns them."""
    at = runs["log2_lr"] == log2_lr
    for name, value in zip(GROUP, (scheme, d_model, steps), strict=True):
        at &= runs[name] == value
    return runs[at].set_index("seed")["loss"]


def paired(minuend: pd.Series, subtrahend: pd.Series) -> tuple[Interval, int]:
    """Mean difference over the seeds both have, its t interval, and how many those are.

    A pair of runs shares its seed and so its batches: pairing removes their common luck.
    """
    pairs = (minuend - subtrahend).dropna()
    return laws.mean_interval(pairs), len(pairs)


def default_differences(runs: pd.DataFrame, scheme: str = "umup") -> pd.DataFrame:
    """Best-rate loss of `scheme` minus that of every other scheme, paired by seed.

    Columns: scheme, against, d_model, steps, difference, difference_lo, difference_hi (nats a
    token; below 0 where `scheme` is better), n (seed pairs).
    """
    runs = prepare(runs)
    best = default_losses(runs).set_index(GROUP)["log2_lr"]
    rows = []
    for (other, width, steps), rate in best.items():  # pyright: ignore[reportGeneralTypeIssues]
        if other == scheme or (scheme, width, steps) not in best.index:
            continue
        mine = losses_at(runs, scheme, width, steps, best[scheme, width, steps])
        difference, n = paired(mine, losses_at(runs, other, width, steps, rate))
        rows.append(
            {"scheme": scheme, "against": other, "d_model": width, "steps": steps, "n": n}
            | _ends("difference", difference)
        )
    return _frame(rows, "scheme against d_model steps difference difference_lo difference_hi n")


def price(runs: pd.DataFrame, tuned: Optimum, own: Optimum) -> Interval:
    """The loss of ``runs``, of one width and horizon, at another's best η above that at their own.

    Near their own by the fitted curve (``laws.price``), since a grid of half octaves would call
    most of it 0; further away at the nearest η that was measured, paired by seed with the best
    that was. Divergence is an infinite price. ``runs`` are as `prepare` returns them.

    Raises:
        NotMeasured: an optimum is not bracketed, or nothing was measured near the other's η.
    """
    for o in (tuned, own):
        if o.edge:
            raise NotMeasured(f"an optimum is open: {o.reason}")
    if abs(tuned.x - own.x) <= laws.WINDOWS[0]:
        return laws.price(tuned, own)
    seeds = runs.groupby("log2_lr")["seed"].nunique()
    near = seeds[np.abs(seeds.index.to_numpy(float) - tuned.x) <= NEAR]
    if near.empty:
        raise NotMeasured(f"nothing within ½ octave of log₂ η = {tuned.x:.2f}")
    x = min(near.index, key=lambda at: (-near[at], abs(at - tuned.x)))
    scheme, width, steps = runs.iloc[0][GROUP]
    moved = losses_at(runs, scheme, width, steps, float(x))
    if moved.isna().any():
        return Interval(math.inf, math.inf, math.inf)
    best = default_losses(runs).iloc[0]["log2_lr"]
    return paired(moved, losses_at(runs, scheme, width, steps, best))[0]
