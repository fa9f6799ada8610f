"""Tables and quantities of the study `hopper`: records in, tidy frames and intervals out."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from umup.lab import ranges, records, study
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities
from umup.lab.records import Results
from umup.lab.tables import NAMES, differences, loss_of, remembered
from umup.laws import Interval

quantity = QUANTITIES = Quantities()

SCHEMES = ("mup", "umup")
SCALED = "fp8_seed, loss scaled"
ORDER = ("plain", "fp8_seed", "fp8_e5m2_grad", SCALED)
"""The arms of a scheme: recipes, the last with a constant loss scale."""


class Twin(NamedTuple):
    """How a twin multiplies: dtype of the activations, recipe, precision of float32 products."""

    dtype: str
    recipe: str
    precision: str


TWINS = {
    "float32": Twin("float32", "plain", "highest"),
    "bfloat16": Twin("bfloat16", "plain", "default"),
    "fp8_seed": Twin("bfloat16", "fp8_seed", "default"),
}
"""float32 at full precision: by default an H100 rounds operands to TF32, of 10 bits."""


def _twins(points: pd.DataFrame) -> dict[str, tuple[str, dict[str, Any]]]:
    """Twin → its key and result."""
    found = {}
    for row in points[points["what"] == "twin"].to_dict("records"):
        spec = json.loads(row["spec"])
        own = Twin(*(spec[name] for name in Twin._fields))
        found |= {n: (row["key"], json.loads(row["result"])) for n, t in TWINS.items() if t == own}
    return found


@remembered
def twins(results: Results) -> pd.DataFrame:
    """The twins beside the CPU's of the same specification, which this study's cpu profile has.

    Columns: twin, losses, device_kind, platform, text; cpu, the CPU's losses (None: not on record).

    Raises:
        NotMeasured: there are no twins.
    """
    own = _twins(results.points)
    reference = dict(_twins(records.read_results(study.store("hopper", "cpu")).points).values())
    rows = []
    for name in [n for n in TWINS if n in own]:
        key, found = own[name]
        beside = reference.get(key, {})
        same = beside.get("text") == found["text"]
        rows.append({"twin": name, **found, "cpu": beside["losses"] if same else None})
    return required(pd.DataFrame(rows), "no twins are on record")


@quantity
def twin_difference(results: Results, twin: str) -> Interval:
    """Largest relative difference of a twin's losses from the CPU's, parts per million.

    Infinite where a loss is not finite. Of a CPU's own records it is not measured.
    """
    table = twins(results)
    row = required(table[table["twin"] == twin], f"no {twin} twin on record").iloc[0]
    if row["platform"] == "cpu":
        raise NotMeasured(f"needs a GPU: the {twin} twin here is the CPU's own")
    if row["cpu"] is None:
        raise NotMeasured(f"no {twin} twin of the same steps and text in the cpu records")
    here, there = np.asarray(row["losses"]), np.asarray(row["cpu"])
    gap = 1e6 * float(np.max(np.abs(here - there) / there))
    gap = gap if math.isfinite(gap) else math.inf
    return Interval.exact(gap)


@remembered
def arms(results: Results) -> pd.DataFrame:
    """The training runs; further columns: ``arm``, of ``ORDER``, and the specification's.

    Raises:
        NotMeasured: there are none.
    """
    runs = required(results.runs, "no runs are on record")
    return _by_arm(runs.assign(loss=loss_of(runs)))


def _by_arm(runs: pd.DataFrame) -> pd.DataFrame:
    runs = records.with_spec(runs)
    scale = runs.get("optim.loss_scale", pd.Series(1.0, runs.index)).fillna(1.0)
    return runs.assign(arm=runs["model.recipe"].where(scale == 1.0, SCALED))


@remembered
def shown(results: Results) -> pd.DataFrame:
    """``arms``; where none is finished, those that were cut off, which no claim is judged on.

    Further column: ``done``, steps that were made. All stand at the step that the least advanced of
    them came to, with the mean training loss of the last tenth of these steps as their loss.

    Raises:
        NotMeasured: there are neither.
    """
    if len(results.runs):
        return arms(results).assign(done=lambda runs: runs["steps"])
    runs = required(records.unfinished(results), "no runs are on record")
    done = int(runs["done"].min())
    rows = []
    for run in runs.to_dict("records"):
        steps, losses = (np.asarray(run[f"curve_{name}"]) for name in ("steps", "loss"))
        widths = np.diff(steps, prepend=0)  # each loss is the mean since the step before
        kept = steps <= done
        late = kept & (steps > min(done - done // 10, steps[kept][-1] - 1))
        final = float(np.average(losses[late], weights=widths[late]))
        warm = done <= json.loads(run["spec"])["optim"]["warmup_steps"]  # nothing learned yet
        ok = np.isfinite(losses[kept]).all() and (warm or final <= math.log(run["vocab_size"]))
        rows.append(
            run
            | {
                "done": done,
                "status": "ok" if ok else "diverged",
                "final_loss": final if ok else math.nan,
                "loss": final if ok else math.nan,
                "curve_steps": list(steps[kept]),
                "curve_loss": list(losses[kept]),
            }
        )
    return _by_arm(pd.DataFrame(rows))


def base(results: Results) -> str:
    """What the plain arms compute in, as texts name it.

    Raises:
        NotMeasured: there are no runs.
    """
    return "bf16" if shown(results)["model.dtype"].iloc[0] == "bfloat16" else "float32"


@remembered
def loss_differences(runs: pd.DataFrame) -> pd.DataFrame:
    """``tables.differences`` of each arm from the plain one, in the order of ``ORDER``.

    Args:
        runs: ``arms`` or ``shown``.

    Raises:
        NotMeasured: no plain arm is on record.
    """
    table = differences(runs, "arm", "plain")
    table = required(table, "no plain runs are on record")
    rank = {name: i for i, name in enumerate(ORDER)}
    by = ["scheme", "d_model", "arm"]
    return table.sort_values(by, key=lambda c: c.map(rank) if c.name == "arm" else c)


@remembered
def probed(results: Results) -> pd.DataFrame:
    """What the probes of the plain arms saw of every linear, see ``ranges.of_linears``.

    Further columns: scheme, d_model, seed and margin, octaves inside E4M3's normal range.

    Raises:
        NotMeasured: there are no probed runs.
    """
    runs = arms(results)
    seen = required(ranges.of_linears(records.probes(runs)), "no probed runs are on record")
    table = seen.merge(runs[["key", "scheme", "d_model", "seed"]], on="key")
    return table.assign(margin=ranges.margin(table["rms"]))


def _at(table: pd.DataFrame, scheme: str, d_model: int | None, what: str) -> pd.DataFrame:
    """The rows of a scheme and width, by default the widest."""
    rows = table[table["scheme"] == scheme]
    at = "" if d_model is None else f" at width {d_model}"
    width = rows["d_model"].max() if d_model is None else d_model
    return required(rows[rows["d_model"] == width], f"{NAMES[scheme]}: no {what}{at}")


@quantity
def loss_difference(
    results: Results, scheme: str, arm: str, d_model: int | None = None
) -> Interval:
    """Final loss of an arm minus that of the plain one, paired by seed, nats per token."""
    return difference_of(arms(results), scheme, arm, d_model)


def difference_of(
    runs: pd.DataFrame, scheme: str, arm: str, d_model: int | None = None
) -> Interval:
    """``loss_difference`` of ``runs``, which may be ``shown``."""
    table = loss_differences(runs)
    rows = _at(table[table["arm"] == arm], scheme, d_model, f"runs of {arm} and plain")
    row = rows.iloc[0]
    return Interval.of(row, "difference")


@quantity
def margin(results: Results, scheme: str, d_model: int | None = None) -> Interval:
    """Octaves inside E4M3's normal range of the tensor and probe step that is nearest its ends."""
    table = _at(probed(results), scheme, d_model, "probed plain runs")
    return ranges.extreme(table, "margin", "smallest")
