"""Tables and quantities of the study `residual_tau`: records in, tidy frames and intervals out.

Trained runs are one curve of loss against η for every *arm* (a scheme with its τ) and depth;
``by_depth`` lays them out as the tables of learning-rate sweeps expect them, with depth in the
place of width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from umup import laws
from umup.lab import tables
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results, with_spec
from umup.lab.tables import remembered
from umup.laws import Drift, Interval, Optimum

quantity = QUANTITIES = Quantities()


class Arm(NamedTuple):
    """A scheme with its τ: ``convention`` matters to unit-scaled schemes alone."""

    scheme: str
    convention: str
    title: str


ARMS = {
    "derived": Arm("umup", "derived", "u-μP, derived τ"),
    "library": Arm("umup", "library", "u-μP, library τ"),
    "printed": Arm("umup", "printed", "u-μP, printed τ"),
    "mup": Arm("mup", "derived", "μP, depth exponent ½"),
    "completep": Arm("completep", "derived", "CompleteP, exponent 1"),
    "sp": Arm("sp", "derived", "SP"),
}
ORDER = {name: i for i, name in enumerate(ARMS)}


def arm_names(schemes: Sequence[str], conventions: Sequence[str]) -> list[str]:
    """The arm of every (scheme, convention); only u-μP's depends on the convention."""
    pairs = zip(schemes, conventions, strict=True)
    return [convention if scheme == "umup" else scheme for scheme, convention in pairs]


@remembered
def by_depth(results: Results) -> pd.DataFrame:
    """The runs with the arm as ``scheme`` and the depth N as ``d_model``, for ``umup.lab.tables``.

    Raises:
        NotMeasured: there are none.
    """
    runs = with_spec(required(results.runs, "no training runs are on record"))
    conventions = runs.get("model.tau_convention", pd.Series("derived", runs.index))
    arms = arm_names(runs["scheme"], conventions)
    return runs.assign(scheme=arms, d_model=runs["n_layers"], n_layers=0)


@remembered
def optima(results: Results) -> dict[str, dict[int, Optimum]]:
    """Arm → depth → the fitted optimum, arms in the order of ``ARMS``.

    Raises:
        NotMeasured: there are no training runs.
    """
    out: dict[str, dict[int, Optimum]] = {}
    fits = tables.fits(by_depth(results))
    for (arm, depth, _), optimum in sorted(fits.items(), key=lambda f: (ORDER[f[0][0]], f[0][1])):
        out.setdefault(arm, {})[depth] = optimum
    return out


def drifts(results: Results) -> dict[str, Drift]:
    """Arm → how its optimum moves with depth (octaves per doubling), of two depths or more.

    Raises:
        NotMeasured: no arm has an optimum at two depths.
    """
    out = {}
    for arm, fits in optima(results).items():
        known = {depth: o for depth, o in fits.items() if math.isfinite(o.x)}
        if len(known) > 1:
            out[arm] = laws.drift(known)
    if not out:
        raise NotMeasured("no scheme has an optimum at two depths")
    return out


def drift(results: Results, arm: str) -> Drift:
    """How the optimum of an arm moves with depth.

    Raises:
        NotMeasured: it has no optimum at two depths.
    """
    found = drifts(results)
    if arm not in found:
        raise NotMeasured(f"{ARMS[arm].title}: no optimum at two depths")
    return found[arm]


def losses(results: Results) -> pd.DataFrame:
    """Loss at every η: columns arm, depth, log2_lr, mean, lo, hi, n, n_diverged."""
    columns = ["arm", "depth", "log2_lr", "mean", "lo", "hi", "n", "n_diverged"]
    table = tables.loss_by_lr(by_depth(results))
    table = table.rename(columns={"scheme": "arm", "d_model": "depth"})
    return table.sort_values("arm", key=lambda a: a.map(ORDER), kind="stable")[columns]


@remembered
def _walks(results: Results, what: str) -> pd.DataFrame:
    missing = {"walk": "no walks are on record", "trained": "no trained model was walked"}
    table = required(results.table(what), missing[what])
    schemes = table["scheme"] if "scheme" in table else ["umup"] * len(table)
    return table.assign(arm=arm_names(schemes, table["convention"]))


@remembered
def walks(results: Results, arm: str | None = None, seq_len: int | None = None) -> pd.DataFrame:
    """Walks at initialization, one row per setting; every measured column a list over seeds.

    Args:
        arm: that arm alone. seq_len: T of the walks, by default the longest (1 is the control).

    Raises:
        NotMeasured: there are none.
    """
    table = _walks(results, "walk")
    length = table["seq_len"].max() if seq_len is None else seq_len
    table = required(table[table["seq_len"] == length], f"no walks of {length} tokens")
    if arm is None:
        return table
    return required(table[table["arm"] == arm], f"{ARMS[arm].title}: no walks")


def at_default(table: pd.DataFrame) -> pd.DataFrame:
    """The walks at α_residual = α_residual_attn_ratio = 1.

    Raises:
        NotMeasured: there are none.
    """
    at = table[(table["alpha"] == 1.0) & (table["ratio"] == 1.0)]
    return required(at, "no walks at α_residual = α_residual_attn_ratio = 1")


@remembered
def realised(results: Results, seq_len: int | None = None) -> pd.DataFrame:
    """What α_residual and α_residual_attn_ratio are at the output, at initialization.

    Columns: arm, n_layers, alpha, ratio; ``residual`` = σ(attention and FFN)/σ(embedding),
    ``attention`` = σ(attention)/σ(FFN), each with _lo and _hi, the 95 % interval over seeds.
    u-μP's arms alone; ``seq_len`` as for ``walks``.

    Raises:
        NotMeasured: there are no such walks.
    """
    rows = []
    table = walks(results, seq_len=seq_len)
    umup = [arm for arm in ARMS if ARMS[arm].scheme == "umup"]
    for row in table[table["arm"].isin(umup)].to_dict("records"):
        e, a, f, r = (np.array(row[n]) for n in ("embedding", "attention", "ffn", "residual"))
        labels = {name: row[name] for name in ("arm", "n_layers", "alpha", "ratio")}
        for name, values in {"residual": r / e, "attention": a / f}.items():
            m = laws.mean_interval(values)
            labels |= {name: m.value, f"{name}_lo": m.lo, f"{name}_hi": m.hi}
        rows.append(labels)
    return required(pd.DataFrame(rows), "no walks of u-μP")


@remembered
def contributions(results: Results, what: str = "walk") -> pd.DataFrame:
    """Share of the output's mean square from embedding, attention and FFN, a row per arm and depth.

    At α = 1. At initialization the parts are independent and the shares sum to 1; after training
    (``what="trained"``) they are correlated and need not. Columns: arm, n_layers, stage ("init" or
    "trained"), and embedding, attention, ffn with _lo and _hi over seeds.

    Raises:
        NotMeasured: there are no such walks.
    """
    table = at_default(walks(results)) if what == "walk" else _walks(results, what)
    rows = []
    stages = {"init": "_before", "trained": ""} if what == "trained" else {"init": ""}
    for row in table.to_dict("records"):
        for stage, suffix in stages.items():
            labels = {"arm": row["arm"], "n_layers": row["n_layers"], "stage": stage}
            whole = np.square(row[f"output{suffix}"])
            for part in ("embedding", "attention", "ffn"):
                m = laws.mean_interval(np.square(row[f"{part}{suffix}"]) / whole)
                labels |= {part: m.value, f"{part}_lo": m.lo, f"{part}_hi": m.hi}
            rows.append(labels)
    return pd.DataFrame(rows)


def _worst(intervals: Sequence[Interval], far: Callable[[float], float]) -> Interval:
    return max(intervals, key=lambda i: far(i.value))


def networks(results: Results) -> pd.DataFrame:
    """The random networks of Lemma C.1, one row per convention and depth.

    Raises:
        NotMeasured: there are none.
    """
    return required(results.table("lemma"), "no random networks for the lemma")


@quantity
def lemma_error(
    results: Results,
    convention: str,
    against: str = "own",
    extreme: str = "largest",
    from_depth: int = 1,
    log10: bool = False,
) -> Interval:
    """Error of Lemma C.1, over all settings and random networks from a depth on.

    Args:
        against: ``same``, the depth-μP network of the same α_residual, or ``own``, the one that
            the convention equals (``printed``: the nearest).
        extreme: ``largest`` or ``smallest`` of the settings; it is exact, so its own interval.
        log10: its decimal logarithm instead (an error of 0 counts as 1e-17).
    """
    table = networks(results)
    table = table[(table["convention"] == convention) & (table["n_layers"] >= from_depth)]
    required(table, f"no networks with τ {convention} of {from_depth} layers or more")
    column = {"own": "own_error", "same": "error"}[against]
    values = np.concatenate([np.asarray(v, float) for v in table[column]])
    value = float(values.max() if extreme == "largest" else values.min())
    value = math.log10(max(value, 1e-17)) if log10 else value
    return Interval.exact(value)


@quantity
def stream(results: Results, arm: str, factor: float = 1, seq_len: int | None = None) -> Interval:
    """The scale on the skip stream that is furthest from 1 (by ratio), over depths and places.

    The interval is that over seeds at the depth where it is. ``factor`` is the span of depths that
    the claim needs, ``seq_len`` as for ``walks``.
    """
    found = []
    for row in _span(results, arm, factor, seq_len).to_dict("records"):
        seeds = np.asarray(row["stream"], float)
        far = seeds[np.arange(len(seeds)), np.abs(np.log(seeds)).argmax(axis=1)]
        found.append(laws.mean_interval(far))
    return _worst(found, lambda v: abs(math.log(v)))


@quantity
def output_growth(results: Results, arm: str, factor: float = 1) -> Interval:
    """σ at the end of the skip stream of the deepest model over that of the shallowest, at init."""
    table = _span(results, arm, factor).sort_values("n_layers")
    shallow, deep = (np.asarray(table["output"].iloc[i], float) for i in (0, -1))
    return laws.mean_interval(deep / shallow)


def _span(results: Results, arm: str, factor: float, seq_len: int | None = None) -> pd.DataFrame:
    table = at_default(walks(results, arm, seq_len))
    spanning(table["n_layers"], factor, f"{ARMS[arm].title}: depths")
    return table


@quantity
def realised_over_nominal(
    results: Results, arm: str, what: str, seq_len: int | None = None, target: float = 1.0
) -> Interval:
    """The ratio at the output over the hyperparameter that is to set it, where it is furthest off.

    Args:
        what: ``residual`` (α_residual) or ``attention`` (α_residual_attn_ratio).
        seq_len: as for ``walks``; at 1 every branch has unit scale.
        target: what it should be; "furthest" is from here, by ratio.
    """
    table = realised(results, seq_len)
    table = required(table[table["arm"] == arm], f"{ARMS[arm].title}: no walks")
    nominal = table["alpha"] if what == "residual" else table["ratio"]
    found = [
        Interval(*(row[f"{what}{end}"] for end in ("", "_lo", "_hi"))).scaled(1.0 / hp)
        for row, hp in zip(table.to_dict("records"), nominal, strict=True)
    ]
    return _worst(found, lambda v: abs(math.log(v / target)))


@quantity
def depth_shift(results: Results, arm: str, factor: float) -> Interval:
    """Octaves by which the optimal η moves over a ``factor`` in depth, from the fitted slope."""
    spanning(_fits(results, arm), factor, f"{ARMS[arm].title}: depths")
    return drift(results, arm).slope.scaled(math.log2(factor))


@quantity
def largest_shift(results: Results, arm: str, factor: float) -> Interval:
    """Octaves between the optimal η of any two depths, the furthest apart; see ``laws.Drift``."""
    spanning(_fits(results, arm), factor, f"{ARMS[arm].title}: depths")
    return drift(results, arm).largest


def _fits(results: Results, arm: str) -> dict[int, Optimum]:
    fits = optima(results).get(arm)
    if not fits:
        raise NotMeasured(f"{ARMS[arm].title}: no trained runs")
    return fits


def differences(results: Results, arm: str, against: str, from_depth: int = 1) -> dict[int, float]:
    """Depth → best loss of ``arm`` minus that of ``against``, nats per token, from fitted optima.

    Depths at which a sweep does not bracket its optimum are left out.
    """
    ours, theirs = optima(results).get(arm, {}), optima(results).get(against, {})
    return {
        depth: o.loss - theirs[depth].loss
        for depth, o in ours.items()
        if depth in theirs and depth >= from_depth and not (o.edge or theirs[depth].edge)
    }


@quantity
def loss_difference(
    results: Results, arm: str, against: str, from_depth: int = 1, depths: int = 3
) -> Interval:
    """Mean over depths of the best loss of ``arm`` minus ``against``'s, nats per token.

    The interval is Student's over depths: a difference that grows with depth widens it. At least
    ``depths`` of them are needed.
    """
    found = differences(results, arm, against, from_depth)
    if len(found) < depths:
        names = f"{ARMS[arm].title} and {ARMS[against].title}"
        raise NotMeasured(
            f"{names}: {len(found)} depths with both optima, the claim needs {depths}"
        )
    return laws.mean_interval(list(found.values()))


@quantity
def deeper_gain(results: Results, arm: str, factor: float) -> Interval:
    """Best loss of the deepest model minus that of the shallowest, nats per token."""
    fits = {depth: o for depth, o in _fits(results, arm).items() if not o.edge}
    if not fits or max(fits) < factor * min(fits):
        raise NotMeasured(f"{ARMS[arm].title}: no two bracketed optima {factor:g}× apart in depth")
    deep, shallow = fits[max(fits)], fits[min(fits)]
    # Independent errors: half-widths add in squares.
    lo, hi = (
        math.hypot(*halves)
        for halves in (
            (deep.loss - deep.loss_lo, shallow.loss_hi - shallow.loss),
            (deep.loss_hi - deep.loss, shallow.loss - shallow.loss_lo),
        )
    )
    value = deep.loss - shallow.loss
    return Interval(value, value - lo, value + hi)
