"""Tables and quantities of the study ``stability``, from its records alone.

A *defence* is what a run has beside plain training; ``defence_of`` reads it from the specification.
Curves are of loss over log₂ η. One number is read off each seed's own curve, with the t interval
of their mean; a run that diverged counts as the loss of a uniform guess. Intervals are 95 %.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from umup import laws
from umup.lab import records
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities
from umup.lab.records import Results
from umup.lab.tables import NAMES, loss_of, remembered
from umup.laws import Interval, Optimum

quantity = QUANTITIES = Quantities()

SCHEMES = ("sp", "mup", "umup")
DEFENCES = {
    "none": "none",
    "z_loss": "z-loss",
    "qk_norm": "QK-norm",
    "both": "z-loss and QK-norm",
    "clip": "clipping",
    "no_warmup": "no warm-up",
}
"""The arms at the main shape, in the order in which pages show them."""
MARGIN = 0.2
"""Nats above a curve's lowest point up to which an η counts as stable."""
ABOVE = 3.0
"""Octaves above the best η over which a sensitivity is the mean."""
ALPHA = "hps.alpha_attn_softmax"
_POINT = ["scheme", "part", "defence", "cap", "x", "seed"]


@remembered
def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run.

    Columns: scheme, part ("main" or "deep", the deeper model), defence, cap (the multiplier of
    q·k times d_head: with QK-norm, what |logit| cannot exceed), x (log₂ η), seed, loss (nats per
    token, ln V if diverged), ok; at the end of training logit_max (largest attention logit),
    out_rms (RMS of the output logits): NaN where a run was cut short.

    Raises:
        NotMeasured: there are no runs.
    """
    columns = [*_POINT, "loss", "ok", "logit_max", "out_rms"]
    table = records.with_spec(required(runs, "no runs are on record"))
    depth = table["n_layers"]
    uniform = np.log(table["vocab_size"].astype(float))
    out = pd.DataFrame(
        {
            "key": table["key"],
            "scheme": table["scheme"],
            "part": np.where(depth > depth.min(), "deep", "main"),
            "defence": [defence_of(row) for row in table.to_dict("records")],
            "cap": [_cap(row) for row in table.to_dict("records")],
            "x": np.log2(table["lr"].astype(float)).round(6),
            "seed": table["seed"],
            "loss": loss_of(table).fillna(uniform),
            "ok": table["status"] == "ok",
        }
    )
    out = out.merge(_end(runs), on="key", how="left")
    return out[columns].sort_values(_POINT, ignore_index=True)


def defence_of(spec: dict) -> str:
    """The defence of a run, from the columns of ``records.with_spec``."""
    if spec["model.depth_scaled_init"]:
        return "depth_init"
    if spec["optim.clip"]:
        return "clip"
    if not spec["optim.warmup_steps"]:
        return "no_warmup"
    if spec["model.qk_norm"]:
        return "both" if spec["model.z_loss"] else "qk_norm"
    return "z_loss" if spec["model.z_loss"] else "none"


def _cap(spec: dict) -> float:
    """The multiplier of q·k times d_head: √d in SP, α√d_base in μP, α in u-μP."""
    alpha = spec.get(ALPHA, 1.0)
    factor = {
        "sp": spec["d_head"] ** 0.5,
        "mup": spec["model.base_d_head"] ** 0.5,
        "umup": 1.0,
    }[spec["scheme"]]
    return round(alpha * factor, 6)


def _end(runs: pd.DataFrame) -> pd.DataFrame:
    """key → logit_max and out_rms, of the last step that was probed at all, the end."""
    seen = records.probes(runs)
    if seen.empty:
        return pd.DataFrame(columns=["key", "logit_max", "out_rms"])
    steps = dict(zip(runs["key"], runs["steps"], strict=True))
    seen = seen[seen["step"] == seen["key"].map(steps)]
    scores = seen[(seen["module"] == "attn.scores") & (seen["tensor"] == "qk")]
    out = seen[(seen["module"] == "logits") & (seen["tensor"] == "value")]
    end = {"logit_max": scores.groupby("key")["max"].max()}
    end["out_rms"] = out.groupby("key")["rms"].first()
    return pd.DataFrame(end).rename_axis("key").reset_index()


@remembered
def arm(
    results: Results, scheme: str, defence: str, part: str = "main", cap: float | None = None
) -> pd.DataFrame:
    """The rows of ``curves`` of one arm, at its default cap unless told.

    Raises:
        NotMeasured: there are none, or a seed lacks points that another has.
    """
    table = curves(results.runs)
    table = table[(table["scheme"] == scheme) & (table["defence"] == defence)]
    table = table[table["part"] == part]
    if len(table):
        table = table[np.isclose(table["cap"], default_cap(table, cap))]
    if table.empty:
        deep = " at the larger depth" if part == "deep" else ""
        raise NotMeasured(f"no runs of {NAMES.get(scheme, scheme)} with {defence}{deep}")
    if table.groupby("seed")["x"].nunique().nunique() > 1:
        raise NotMeasured(f"{NAMES.get(scheme, scheme)} with {defence}: the sweep is not finished")
    return table


def default_cap(table: pd.DataFrame, cap: float | None) -> float:
    """``cap``, or that of most runs of the arm: u-μP's 1 without QK-norm, √d_head with it."""
    if cap is not None:
        return cap
    if len(caps := sorted(table["cap"].unique())) == 1:
        return caps[0]
    return caps[len(caps) // 2] if table["defence"].iloc[0] == "qk_norm" else caps[0]


def _by_seed(table: pd.DataFrame, name: str = "loss") -> pd.DataFrame:
    return table.pivot(index="x", columns="seed", values=name).sort_index()


def best(table: pd.DataFrame) -> float:
    """log₂ of the η of an arm's lowest mean loss; a diverged run counts as a uniform guess."""
    return float(_by_seed(table).mean(axis=1).idxmin())


def stable_lr(table: pd.DataFrame) -> list[float]:
    """log₂ of the largest stable η of each seed.

    Where the seed's curve, to the right of its lowest point, first rises to ``MARGIN`` nats above
    that: linear between the η that were run, the last of them if it never does.
    """
    out = []
    for _, losses in _by_seed(table).items():
        x, y = losses.index.to_numpy(float), losses.to_numpy(float)
        limit, i = y.min() + MARGIN, int(y.argmin())
        while i + 1 < len(y) and y[i + 1] <= limit:
            i += 1
        if i + 1 == len(y):
            out.append(x[i])
        else:
            out.append(x[i] + (x[i + 1] - x[i]) * (limit - y[i]) / (y[i + 1] - y[i]))
    return out


@remembered
def optimum(table: pd.DataFrame) -> Optimum:
    """The arm's best η, fitted (``laws.fit_optimum``); a diverged run counts as one.

    Raises:
        NotMeasured: the sweep does not bracket it.
    """
    found = laws.fit_optimum(table["x"], table["loss"].where(table["ok"]), table["seed"])
    if found.edge:
        raise NotMeasured(f"the best η is open: {found.reason}")
    return found


def sensitivities(table: pd.DataFrame) -> list[float]:
    """Mean of a seed's loss above its lowest over the ``ABOVE`` octaves from the best η up.

    As arXiv 2309.14322, but from the fitted best η and its loss, linear between the η that were
    run: a best η between two of the grid would count what lies below it for one arm and not for the
    other.

    Raises:
        NotMeasured: the sweep does not bracket the best η, or does not reach so far above it.
    """
    best_fit, wide = optimum(table), _by_seed(table)
    top = best_fit.x + ABOVE
    if wide.index[-1] < top:
        raise NotMeasured(f"no runs {ABOVE:g} octaves above the best η")
    grid = wide.index.to_numpy(float)
    inside = grid[(grid > best_fit.x) & (grid < top)]
    x = np.array([best_fit.x, *inside, top])
    out = []
    for seed, losses in wide.items():
        floor = best_fit.by_seed[seed]
        y = [floor, *losses.loc[inside], np.interp(top, grid, losses)]
        out.append(float(np.trapezoid(y, x)) / ABOVE - floor)
    return out


def _paired(results: Results, scheme: str, defence: str, of, part: str, cap: float | None):
    with_it = of(arm(results, scheme, defence, part, cap))
    without = of(arm(results, scheme, "none", part))
    if len(with_it) != len(without):
        raise NotMeasured(f"{NAMES.get(scheme, scheme)} with {defence}: other seeds than without")
    return laws.mean_interval(np.subtract(with_it, without))


@quantity
def stable_gain(
    results: Results, scheme: str, defence: str, part: str = "main", cap: float | None = None
) -> Interval:
    """Octaves by which a defence raises the largest stable η, paired by seed."""
    return _paired(results, scheme, defence, stable_lr, part, cap)


@quantity
def sensitivity(
    results: Results,
    scheme: str,
    defence: str = "none",
    part: str = "main",
    cap: float | None = None,
) -> Interval:
    """Mean loss above the lowest over the three octaves from the best η up, nats per token."""
    return laws.mean_interval(sensitivities(arm(results, scheme, defence, part, cap)))


@quantity
def price(
    results: Results, scheme: str, defence: str, part: str = "main", cap: float | None = None
) -> Interval:
    """Loss with a defence minus loss without, each at its own best η, paired by seed; nats.

    The loss at the fitted best η (``Optimum.by_seed``), so that the grid of η favours neither.
    """

    def lowest(table: pd.DataFrame) -> list[float]:
        return [loss for _, loss in sorted(optimum(table).by_seed.items())]

    return _paired(results, scheme, defence, lowest, part, cap)


@quantity
def growth(
    results: Results, scheme: str, name: str, defence: str = "none", octaves: int = 4
) -> Interval:
    """log₂ of ``logit_max`` or ``out_rms`` ``octaves`` above the best η over that at the best."""
    table = arm(results, scheme, defence)
    wide, x = _by_seed(table, name), best(arm(results, scheme, "none"))
    if x + octaves not in wide.index:
        raise NotMeasured(f"no runs {octaves} octaves above the best η")
    ratio = np.log2((wide.loc[x + octaves] / wide.loc[x]).to_numpy(float))
    if not np.isfinite(ratio).all():
        raise NotMeasured("a run was cut short before its end")
    return laws.mean_interval(ratio)


@quantity
def held_back(results: Results, scheme: str, name: str, defence: str, octaves: int) -> Interval:
    """log₂ of ``logit_max`` or ``out_rms`` with a defence over that without, at one large η."""
    without = arm(results, scheme, "none")
    x = best(without) + octaves
    sides = [_by_seed(t, name) for t in (arm(results, scheme, defence), without)]
    if any(x not in side.index for side in sides):
        raise NotMeasured(f"no runs {octaves} octaves above the best η")
    ratio = np.log2((sides[0].loc[x] / sides[1].loc[x]).to_numpy(float))
    if not np.isfinite(ratio).all():
        raise NotMeasured("a run was cut short before its end")
    return laws.mean_interval(ratio)


@quantity
def logit_bound(results: Results) -> Interval:
    """Largest attention logit of all runs with QK-norm, as a share of its bound."""
    table = curves(results.runs)
    table = table[table["defence"].isin(["qk_norm", "both"])]
    share = (table["logit_max"] / table["cap"]).astype(float)
    if not np.isfinite(share).any():
        raise NotMeasured("no probed runs with QK-norm")
    worst = float(share.max())
    return Interval.exact(worst)


@quantity
def compared(results: Results, scheme: str, against: str, defence: str = "none") -> Interval:
    """Sensitivity of one scheme minus that of another, nats per token, paired by seed."""
    mine, other = (sensitivities(arm(results, s, defence)) for s in (scheme, against))
    if len(mine) != len(other):
        raise NotMeasured("other seeds")
    return laws.mean_interval(np.subtract(mine, other))


def _clipped(results: Results, **wanted) -> pd.DataFrame:
    table = required(results.table("clipped"), "no clipped runs")
    for name, value in wanted.items():
        table = table[table[name] == value]
    given = ", ".join(f"{name} {value}" for name, value in wanted.items())
    return required(table, f"no clipped runs with {given}").sort_values("seed")


@quantity
def active(results: Results, scheme: str, norm: str, octaves: int = 0) -> Interval:
    """Share of the steps in which the clip is active, by the ``norm`` it looks at."""
    return laws.mean_interval(_clipped(results, scheme=scheme, norm=norm, octaves=octaves)["share"])


@quantity
def norm_ratio(results: Results, scheme: str) -> Interval:
    """log₂ of the median norm of the gradient as held over that of the unscaled gradient."""
    table = _clipped(results, scheme=scheme, norm="unscaled", octaves=0)
    return laws.mean_interval(np.log2(table["held"] / table["unscaled"]))


@quantity
def twins(results: Results, norm: str) -> Interval:
    """log₁₀ of the largest difference in loss between μP and its intermediate form, equal seeds.

    The two are one function trained one way, with the multipliers moved (abc-symmetry): whatever
    a clip makes of it beyond rounding is an artefact of what is held as the weight.
    """
    sides = [_clipped(results, scheme=s, norm=norm, octaves=0) for s in ("mup", "mup_intermediate")]
    if list(sides[0]["seed"]) != list(sides[1]["seed"]):
        raise NotMeasured("other seeds")
    a, b = (np.array(side["losses"].tolist(), float) for side in sides)
    return laws.mean_interval(np.log10(np.abs(a - b).max(axis=1) + 1e-12))


@quantity
def step_time(results: Results, defence: str) -> Interval:
    """Time of a step with a defence over that without, medians of alternating chunks."""
    table = required(results.table("step_time"), "no timed steps")
    row = required(table[table["defence"] == defence], f"no timed steps with {defence}").iloc[0]
    return Interval.of(row, "ratio")


def drills(results: Results) -> pd.DataFrame:
    """One row per drill: its fields, and ``cost``, held-out loss above the clean run's, nats.

    Of the same scheme and seed; a loss that is not finite counts as that of a uniform guess, and
    the cost of a clean run is 0.
    """
    table = required(results.table("drill"), "no drills")
    uniform = float(np.log(results.runs["vocab_size"].iloc[0])) if len(results.runs) else np.nan
    loss = table["val_loss"].astype(float).fillna(uniform)
    table = table.assign(val_loss=loss)
    clean = table[table["kind"] == "clean"].set_index(["scheme", "seed"])["val_loss"]
    at = pd.MultiIndex.from_frame(table[["scheme", "seed"]])
    cost = loss.to_numpy() - clean.reindex(at).to_numpy(float)
    return required(
        table[~np.isnan(cost)].assign(cost=cost[~np.isnan(cost)]),
        "no drill with a clean run beside it",
    )


@quantity
def drilled(results: Results, kind: str, recover: bool, scheme: str | None = None) -> Interval:
    """Mean ``cost`` of drills of a kind, over schemes and seeds, paired; nats per token."""
    table = drills(results)
    table = table[(table["kind"] == kind) & (table["recover"] == recover)]
    if scheme is not None:
        table = table[table["scheme"] == scheme]
    return laws.mean_interval(required(table, f"no drills of the kind {kind}")["cost"])


@quantity
def false_alarms(results: Results) -> Interval:
    """Most interventions in any run without a disturbance."""
    table = drills(results)
    table = table[table["kind"] == "clean"]
    worst = float(table["interventions"].max())
    return Interval.exact(worst)


@quantity
def largest(results: Results, scheme: str, defence: str, part: str = "main") -> Interval:
    """log₂ of the largest stable η minus log₂ of the best, octaves: how far it may be overdone."""
    table = arm(results, scheme, defence, part)
    return laws.mean_interval(np.subtract(stable_lr(table), best(table)))
