"""Tables and quantities of the study ``embedding_lr``, from its records alone.

The swept hyperparameter takes the place of ``lr``, so that `umup.lab.tables` reads curves over
η̂_emb too. Losses are held-out; intervals are 95 %, differences paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from umup import laws
from umup.lab import records, tables
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results
from umup.lab.search import Result, best_lr
from umup.lab.tables import remembered
from umup.laws import Interval, Optimum
from umup.rules import Parametrization

quantity = QUANTITIES = Quantities()

RULES = {
    "umup": "umup",
    "umup_const_emb": "umup",
    "mup": "mup",
    "mup_sqrt_emb": "mup",
}
"""Rule of the embedding's learning rate → the scheme whose curves over η̂_emb serve it."""
RULE_TITLES = {
    "umup": "u-μP: η̂_emb/√width",
    "umup_const_emb": "u-μP, constant: η̂_emb",
    "mup": "μP, constant: η̂_emb",
    "mup_sqrt_emb": "μP: η̂_emb/√(width/base)",
}


class Arm(NamedTuple):
    """One setting that has a curve over η."""

    scheme: str
    title: str


CONSTANT, TUNED, SP = "umup_const_emb", "mup_tuned", "sp_emb_lr"
ARMS = {
    "umup": Arm("umup", "u-μP"),
    CONSTANT: Arm(CONSTANT, "u-μP, constant rule"),
    "mup": Arm("mup", "μP"),
    TUNED: Arm("mup", "μP, η̂_emb tuned"),
    SP: Arm(SP, "SP, embedding LR kept"),
}
EMB = "hps.eta_emb"
WHOLE = 3  # values that a seed needs, to be part of a curve
NEAR = 1e-3  # octaves between equal values, up to rounding


def offset(rule: str, d_model: int, base_width: int) -> float:
    """log₂ of a rule's factor over that of the scheme that serves it, at one η̂_emb and width.

    At the serving scheme's log₂ η̂_emb of x, the rule's own is x − offset: equal learning rates.
    """
    factors = [
        Parametrization.of_width(name, d_model, base_width).weight("input", 1, d_model).adam_lr
        for name in (rule, RULES[rule])
    ]
    return math.log2(float(factors[0]) / float(factors[1]))


@remembered
def _known(runs: pd.DataFrame) -> pd.DataFrame:
    """Current runs with their specification and ``x``, log2 of η̂_emb."""
    known = records.current(required(runs, "no runs are on record"))
    known = records.with_spec(required(known, "no current runs"))
    log2_emb = np.log2(known[EMB].astype(float)).round(4)
    return known.assign(x=log2_emb)


def widths(results: Results) -> list[int]:
    """The widths of the study's runs, rising.

    Raises:
        NotMeasured: there are none.
    """
    return sorted(int(w) for w in _known(results.runs)["d_model"].unique())


def _seeds_with_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of seeds that have several values: further seeds at one of them are no curve."""
    values = runs.groupby(["scheme", "d_model", "seed"])["lr"].transform("nunique")
    return runs[values >= WHOLE]


@remembered
def emb_runs(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The curves over η̂_emb: ``lr`` is η̂_emb in the unit of the rule, ``scheme`` the rule.

    Raises:
        NotMeasured: there are none.
    """
    known = _known(runs)
    missing = f"no curves over η̂_emb of {RULE_TITLES[RULES[rule]]}"
    own = required(known[known["scheme"] == RULES[rule]], missing)
    at = own[own["lr"] == own.groupby("lr")[EMB].nunique().idxmax()]  # the one η of the curves
    aside = {
        width: offset(rule, int(width), int(base))
        for width, base in zip(at["d_model"], at["model.base_width"], strict=True)
    }
    x = at["x"] - at["d_model"].map(aside)
    return required(_seeds_with_curves(at.assign(scheme=rule, lr=2.0**x)), missing)


@remembered
def levelled(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves, to be drawn, ``tables.levelled`` at each width."""
    by_width = curves.groupby("d_model")
    return pd.concat([tables.levelled(curve, "lr", "val_loss") for _, curve in by_width])


@remembered
def tuned(runs: pd.DataFrame) -> float:
    """log₂ of μP's best η̂_emb at the narrowest width, by the training loss that the search saw."""
    curves = emb_runs(runs, "mup")
    first = curves[curves["d_model"] == curves["d_model"].min()]
    loss = first["final_loss"].where(first["status"] == "ok")
    best = best_lr(map(Result, first["x"], first["seed"], loss))
    if best is None:
        raise NotMeasured("every run of μP's curve over η̂_emb diverged")
    return float(best)


@remembered
def eta_runs(runs: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The runs over η of an arm, whose name is the ``scheme``; at the best η with all seeds.

    Raises:
        NotMeasured: there are none.
    """
    known, missing = _known(runs), f"no curves over η of {ARMS[arm].title}"
    own = required(known[known["scheme"] == ARMS[arm].scheme], missing)
    x = tuned(runs) if arm == TUNED else 0.0
    if arm == CONSTANT:  # as u-μP at the narrowest width
        x = -offset(arm, int(known["d_model"].min()), int(known["model.base_width"].iloc[0]))
    at = own[(own["x"] - x).abs() < NEAR]
    several = at.groupby("d_model")["lr"].transform("nunique") >= WHOLE
    return required(at[several].assign(scheme=arm), missing)


def arms(results: Results) -> dict[str, pd.DataFrame]:
    """Arm → ``eta_runs``, of the arms that have some."""
    found = {}
    for arm in ARMS:
        try:
            found[arm] = eta_runs(results.runs, arm)
        except NotMeasured:
            continue
    return found


@remembered
def eta_curves(runs: pd.DataFrame, arm: str) -> pd.DataFrame:
    """``eta_runs`` of the seeds that have a curve, to be fitted and drawn.

    Raises:
        NotMeasured: there are none.
    """
    whole = _seeds_with_curves(eta_runs(runs, arm))
    return required(whole, f"no curves over η of {ARMS[arm].title}")


@remembered
def emb_optima(runs: pd.DataFrame, rule: str) -> dict[int, Optimum]:
    """Width → the best log₂ η̂_emb in the unit of the rule.

    Fitted once for both rules of a scheme, so that these agree to the bit.
    """
    curves = emb_runs(runs, RULES[rule])
    base, out = int(curves["model.base_width"].iloc[0]), {}
    for (_, width, _), best in tables.fits(curves).items():
        aside = offset(rule, width, base)
        ends = {name: getattr(best, name) - aside for name in ("x", "x_lo", "x_hi", "draws")}
        out[width] = replace(best, **ends)
    return out


def _over_widths(found: Mapping[int, Optimum], factor: float, what: str) -> Interval:
    """Octaves per doubling of width by which an optimum moves, over ``factor`` in it or more."""
    steady = {width: best for width, best in found.items() if math.isfinite(best.x)}
    spanning(steady, factor, f"{what}: widths")
    if len(steady) < 2:
        raise NotMeasured(f"{what}: fewer than two widths with an optimum")
    return laws.drift(steady).slope


@quantity
def emb_shift(results: Results, rule: str, factor: float = 2) -> Interval:
    """Octaves by which the best η̂_emb moves over a ``factor`` in width, from the fitted slope."""
    found = emb_optima(results.runs, rule)
    return _over_widths(found, factor, RULE_TITLES[rule]).scaled(math.log2(factor))


@quantity
def eta_drift(results: Results, arm: str, factor: float = 2) -> Interval:
    """Octaves by which the best η of an arm moves per doubling of width."""
    fits = tables.fits(eta_curves(results.runs, arm))
    found = {width: best for (_, width, _), best in fits.items()}
    return _over_widths(found, factor, ARMS[arm].title)


@quantity
def difference(
    results: Results, arm: str, against: str, d_model: int | None = None, factor: float = 1
) -> Interval:
    """Loss of an arm minus that of another, each at its own best η, nats per token.

    At the largest width both have unless ``d_model`` is given, where the study's widths span
    ``factor``. Both sweeps must bracket their optimum.
    """
    names = f"{ARMS[arm].title} and {ARMS[against].title}"
    known = _known(results.runs)
    spanning(known["d_model"], factor, f"{names}: widths")
    table = differences(results.runs, arm, against)
    width = int(table["d_model"].max() if d_model is None else d_model)
    row = required(table[table["d_model"] == width], f"{names}: no steady η of both at {width}")
    for each in (arm, against):
        _bracketed(results.runs, each, width)
    return Interval.of(row.iloc[0], "difference")


def _bracketed(runs: pd.DataFrame, arm: str, width: int) -> None:
    """Raise NotMeasured where the best η of an arm at a width is the smallest or largest tried."""
    own = eta_runs(runs, arm)
    own = own[own["d_model"] == width]
    tried = np.log2(own["lr"].astype(float))
    for best in tables.default_losses(own)["log2_lr"]:
        for side, end in (("smallest", tried.min()), ("largest", tried.max())):
            if abs(best - end) < NEAR:
                where = f"{ARMS[arm].title} at width {width}"
                raise NotMeasured(f"{where}: lowest at the {side} learning rate")


@remembered
def differences(runs: pd.DataFrame, arm: str, against: str) -> pd.DataFrame:
    """``tables.default_differences`` of two arms: a row per width that both have.

    Raises:
        NotMeasured: they have none in common.
    """
    both = pd.concat([eta_runs(runs, arm), eta_runs(runs, against)])
    found = tables.default_differences(both, arm)
    return required(found, f"{ARMS[arm].title} and {ARMS[against].title}: no width in common")


@quantity
def same_rate(results: Results) -> Interval:
    """Largest difference in loss between runs of equal embedding learning rates in two units."""
    known = _known(results.runs)
    gaps = []
    for rule, scheme in RULES.items():
        if rule != scheme:
            gaps += _twins(known, rule, scheme)
    if not gaps:
        raise NotMeasured("no run of one rule with the learning rates of another")
    return Interval.exact(max(gaps))


def _twins(known: pd.DataFrame, rule: str, scheme: str) -> list[float]:
    """Differences in loss of the runs of a rule from those of its scheme with equal rates."""
    own = known[known["scheme"] == rule]
    aside = [
        offset(rule, int(width), int(base))
        for width, base in zip(own["d_model"], own["model.base_width"], strict=True)
    ]
    own = own.assign(x=(own["x"] + aside).round(4))
    both = own.merge(known[known["scheme"] == scheme], on=["d_model", "steps", "lr", "seed", "x"])
    return (both["val_loss_x"] - both["val_loss_y"]).abs().dropna().tolist()
