"""Points of the study ``throughput`` as tidy tables, and the quantities its claims name.

A ratio is of neighbouring samples, the first side's time over the second's: below 1 the first is
faster. Its value is the median; its 95 % interval that of order statistics, which asks nothing of
the noise but that samples are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from umup.lab.absent import NotMeasured, otherwise, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.lab.timing import CHANGES
from umup.laws import LEVEL, Interval

quantity = QUANTITIES = Quantities()

REST = "the rest"


def median_interval(values: Sequence[float]) -> Interval:
    """The median and its 95 % interval by order statistics, unbounded below six samples.

    With k samples left out at either end it covers 1 − 2·P[Bin(n, ½) ≤ k].
    """
    ordered = np.sort(np.asarray(values, float))
    left_out = int(stats.binom.ppf((1 - LEVEL) / 2, len(ordered), 0.5)) - 1
    if left_out < 0:
        return Interval(float(np.median(ordered)), -math.inf, math.inf)
    return Interval(float(np.median(ordered)), ordered[left_out], ordered[-1 - left_out])


@remembered
def _points(results: Results, what: str) -> pd.DataFrame:
    found = required(results.table(what), f"no points {what!r}")
    if "shape" in found:
        found = found.assign(dtype=[shape["dtype"] for shape in found["shape"]])
    return found


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours to theirs, sample by sample as they alternated."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


@remembered
def benched(results: Results, part: str) -> pd.DataFrame:
    """The measurements of a part of `umup.lab.bench`, one per row.

    Raises:
        NotMeasured: there are none.
    """
    found = _points(results, part)["found"]
    return pd.DataFrame([row for rows in found for row in rows])


def peak(results: Results) -> float:
    """The best matrix product of any library and size, GFLOP/s.

    Raises:
        NotMeasured: no product was timed.
    """
    return float(benched(results, "gemm")["gflops"].max())


@remembered
def steps(results: Results, what: str = "step") -> pd.DataFrame:
    """One row per width, depth and side: times, and what follows from them.

    Columns: width, n_layers, dtype, side, ms (list), median, tokens_per_s, share (of the peak of
    this machine, NaN where no product was timed), mib and compile_s (ours alone, else NaN),
    n_params, others.

    Raises:
        NotMeasured: no such points.
    """
    best = otherwise(lambda missing: math.nan)(peak)(results)
    rows = []
    for point in _points(results, what).to_dict("records"):
        for side, ms in point["ms"].items():
            seconds = float(np.median(ms)) * 1e-3
            rows.append(
                {
                    **{n: point[n] for n in ("width", "n_layers", "dtype", "n_params", "others")},
                    "side": side,
                    "ms": ms,
                    "median": 1e3 * seconds,
                    "tokens_per_s": point["tokens"] / seconds,
                    "share": point["flops"] / seconds / (best * 1e9),
                    "mib": point["mib"].get(side, math.nan),
                    "compile_s": point["compile_s"].get(side, math.nan),
                }
            )
    order = ["width", "n_layers", "median"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True)


def _pick(
    table: pd.DataFrame, width: int, side: str, n_layers: int | None = None, dtype: str = "float32"
) -> pd.Series:
    at = (table["width"] == width) & (table["side"] == side) & (table["dtype"] == dtype)
    if n_layers is not None:
        at &= table["n_layers"] == n_layers
    if not at.any():
        raise NotMeasured(f"no step of {side} at width {width} in {dtype}")
    return table[at].iloc[0]


@remembered
def tried(results: Results) -> pd.DataFrame:
    """What was tried, one row per change and width.

    Columns: change, title, predicted, width, ratio, ratio_lo, ratio_hi (time with over without),
    mib_ratio (memory), others.

    Raises:
        NotMeasured: nothing was tried.
    """
    rows = []
    for point in _points(results, "tried").to_dict("records"):
        base, change = point["sides"]
        measured = median_interval(ratios(point["ms"][change], point["ms"][base]))
        rows.append(
            {
                "change": change,
                "title": CHANGES[change].title,
                "width": point["width"],
                "dtype": point["dtype"],
                "predicted": CHANGES[change].predicted,
                "ratio": measured.value,
                "ratio_lo": measured.lo,
                "ratio_hi": measured.hi,
                "mib_ratio": point["mib"][change] / point["mib"][base],
                "others": point["others"],
            }
        )
    return pd.DataFrame(rows)


@remembered
def parts(results: Results) -> pd.DataFrame:
    """The pieces' shares of the step's time, by width; what they leave is ``the rest``.

    Columns: width, dtype, piece, share. The rest is negative where pieces apart take longer.

    Raises:
        NotMeasured: no pieces were timed.
    """
    rows = []
    for point in _points(results, "parts").to_dict("records"):
        medians = {name: float(np.median(ms)) for name, ms in point["ms"].items()}
        whole = medians.pop("step")
        medians[REST] = whole - sum(medians.values())
        rows += [
            {"width": point["width"], "dtype": point["dtype"], "piece": name, "share": ms / whole}
            for name, ms in medians.items()
        ]
    return pd.DataFrame(rows)


@quantity
def ratio(
    results: Results,
    width: int,
    side: str = "umup",
    against: str = "eager",
    dtype: str = "float32",
    n_layers: int | None = None,
) -> Interval:
    """The step's time of ``side`` over that of ``against``, sample by sample."""
    table = steps(results)
    a, b = (_pick(table, width, s, n_layers, dtype) for s in (side, against))
    return median_interval(ratios(a["ms"], b["ms"]))


@quantity
def speedup(results: Results, width: int, side: str, against: str, dtype: str) -> Interval:
    """How many times faster ``side`` is than ``against``: the inverse of `ratio`."""
    return ratio(results, width, against, side, dtype)


@quantity
def mfu(
    results: Results,
    width: int,
    side: str = "umup",
    dtype: str = "float32",
    n_layers: int | None = None,
) -> Interval:
    """The step's share of the best matrix product's speed, %."""
    row = _pick(steps(results), width, side, n_layers, dtype)
    of_one = row["share"] * row["median"]
    return median_interval([100 * of_one / ms for ms in row["ms"]])


@quantity
def tried_ratio(results: Results, change: str, width: int, dtype: str = "float32") -> Interval:
    """The step's time with a change over that without."""
    table = tried(results)
    at = table[(table["change"] == change) & (table["width"] == width) & (table["dtype"] == dtype)]
    if at.empty:
        raise NotMeasured(f"{change} was not tried at width {width} in {dtype}")
    row = at.iloc[0]
    return Interval.of(row, "ratio")


@quantity
def tried_memory(results: Results, change: str, width: int) -> Interval:
    """The memory of the step's program with a change over that without, as compiled: exact."""
    tried_ratio(results, change, width)
    table = tried(results)
    at = table[(table["change"] == change) & (table["width"] == width)].iloc[0]
    return Interval.exact(float(at["mib_ratio"]))


@quantity
def pieces_share(results: Results, width: int, pieces: list[str]) -> Interval:
    """Share of the step's time that some pieces take, %, from the medians; one measurement."""
    table = parts(results)
    at = table[(table["width"] == width) & table["piece"].isin(pieces)]
    if len(at) != len(pieces):
        raise NotMeasured(f"pieces {', '.join(pieces)} at width {width}")
    return Interval.once(100 * float(at["share"].sum()))


@quantity
def lanes_gain(
    results: Results, width: int, lanes: int, compiling: bool = True, dtype: str = "float32"
) -> Interval:
    """Runs per minute of a sweep as lanes of one program, over those of as many separate runs.

    With ``compiling`` the times to compile count, for a horizon of the steps measured.
    """
    table = benched(results, "lanes")
    specs = _points(results, "lanes")["plan"]
    if not all(plan.get("dtype", "float32") == dtype for plan in specs):
        raise NotMeasured(f"no lanes in {dtype}")
    table = table[(table["d_model"] == width) & (table["lanes"] == lanes)]
    if set(table["at_once"] > 0) != {False, True}:
        raise NotMeasured(f"no sweep of {lanes} lanes at width {width}")
    seconds = table["run_s"] + (table["compile_s"] if compiling else 0.0)
    apart = table["at_once"] == 0
    return Interval.once(float(seconds[apart].iloc[0] / seconds[~apart].min()))


@quantity
def compile_growth(results: Results, factor: float) -> Interval:
    """Time to trace and compile at the largest depth over that at the smallest, layers scanned."""
    table = benched(results, "compile_times").sort_values("n_layers")
    spanning(table["n_layers"], factor, "depths")
    seconds = (table["trace_s"] + table["compile_s"]).tolist()
    return Interval.once(seconds[-1] / seconds[0])


LOOK_EVERY = 50
"""Steps between observations, for the cost of the probes."""


@remembered
def probes(results: Results) -> pd.DataFrame:
    """One row per width: median ms of a step and of an observation, and what these add in %.

    Columns: width, step_ms, look_ms; cost, cost_lo, cost_hi of one every ``LOOK_EVERY`` steps.

    Raises:
        NotMeasured: no look was timed.
    """
    rows = []
    for found in benched(results, "probes").to_dict("records"):
        added = [100 * x / LOOK_EVERY for x in ratios(found["look_ms"], found["step_ms"])]
        ms = {name: float(np.median(found[name])) for name in ("step_ms", "look_ms")}
        cost = median_interval(added).columns("cost")
        rows.append({"width": found["d_model"], **ms, **cost})
    return pd.DataFrame(rows)


@quantity
def memory_ratio(results: Results, width: int) -> Interval:
    """Peak resident memory of a process that trains with ours over that with PyTorch."""
    table = benched(results, "memory")
    at = table[table["d_model"] == width].set_index("side")["peak_mib"]
    if not {"umup", "pytorch"} <= set(at.index):
        raise NotMeasured(f"no memory of both at width {width}")
    return Interval.once(float(at["umup"] / at["pytorch"]))
