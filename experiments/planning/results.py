"""Points of the study ``planning`` beside the planner's predictions; its claims' quantities.

Compiled numbers are exact and reproducible, so they have no interval; the intervals of step times
are percentile bootstraps of the median over the timed samples.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from umup import plan
from umup.config import MeshConfig, ModelConfig, OptimConfig
from umup.lab import bench
from umup.lab.absent import NotMeasured, required
from umup.lab.bench import Plan
from umup.lab.quantities import Quantities
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.lab.timing import CHANGES, PLAIN
from umup.laws import LEVEL, Interval
from umup.mesh import AXES
from umup.plan import formulas, hardware

quantity = QUANTITIES = Quantities()

GIB = 2**30
MACHINE = functools.cache(hardware.get)
"""A machine of the planner, read once."""

MACHINES = {"cpu": "cpu", "gpu": "h100"}
"""The planner's machine for a compiler's platform."""

CHECKED = ("parameters", "flops", "memory", "temporaries", "state", *AXES)
"""What is predicted and compiled: columns ``X`` and ``X_predicted`` of `table`."""

PREDICTED = (
    "umup",
    "blocked",
    "scanned",
    "remat_dots",
    "remat_full",
    "accumulate",
    "cudnn",
    "fp8",
)
"""The plain step and the changes to it (`timing.CHANGES`) that the planner knows of."""

CALIBRATED = (32, 256)
"""Widths of the plain steps from which the efficiencies of the ``cpu`` machine were taken."""


def case(point: Mapping[str, Any], machine: str) -> formulas.Case:
    """A point's configuration on a machine in the terms of the formulas."""
    return plan.case(
        ModelConfig.from_dict(point["model"]),
        OptimConfig.from_dict(point["optim"]),
        MeshConfig.from_dict(point["mesh"]),
        MACHINE(machine),
    )


def _bytes(point: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of a point's collectives by mesh axis; ``other`` are those of several axes or none."""
    names: list[str] = [*AXES, "other"]
    out = dict.fromkeys(names, 0.0)
    for row in point["collectives"]:
        name = row["axes"][0] if len(row["axes"]) == 1 else "other"
        out[name] += row["bytes"]
    return out


def _predicted(c: formulas.Case, memory: formulas.Memory) -> dict[str, float]:
    return {
        "parameters": formulas.parameters(c).total,
        "flops": formulas.flops(c).compiled / c.devices,
        "memory": memory.total,
        "temporaries": memory.total - memory.state,
        "state": memory.state,
        **plan.sent(c),
    }


def _row(point: Mapping[str, Any]) -> Mapping[str, Any]:
    c = case(point, MACHINES[point["platform"]])
    memory = formulas.memory(c)
    held = point["argument_bytes"] + point["output_bytes"] - point["alias_bytes"]
    sent = _bytes(point)
    measured = {
        "parameters": point["n_params"],
        "flops": point["flops"],
        "memory": held + point["temp_bytes"],
        "temporaries": point["temp_bytes"],
        "state": point["argument_bytes"],
        **{axis: sent[axis] for axis in AXES},
    }
    model = ModelConfig.from_dict(point["model"])
    return {
        "name": point["name"],
        "dtype": model.dtype,
        "recipe": model.recipe,
        "remat": model.remat,
        "attention": model.attention,
        "mesh": str(MeshConfig.from_dict(point["mesh"])),
        "devices": point["devices"],
        "seconds": point["lower_s"] + point["compile_s"],
        "rss": point["peak_rss_mib"] * 2**20,
        "other": sent["other"],
        **measured,
        **{f"{name}_predicted": value for name, value in _predicted(c, memory).items()},
        **{
            f"{name}_of": getattr(memory, name)
            for name in ("state", "gradients", "copies", "kept", "workspace")
        },
        "on_h100": formulas.memory(case(point, "h100")).total,
    }


def table(
    results: Results, what: str = "compiled", only: Sequence[str] = (), but: Sequence[str] = ()
) -> pd.DataFrame:
    """One row per configuration: what was compiled, and what the planner predicts.

    Args:
        what: ``compiled`` (for virtual devices), ``hopper`` (for absent GPUs) or
            ``native``.
        only, but: names of configurations to take (empty: all), and to leave out.

    Returns:
        name, dtype, recipe, remat, attention, mesh, devices, seconds (to lower and compile), rss
        (bytes); each of ``CHECKED`` (bytes, floating-point operations or parameters) and the same
        with ``_predicted``; ``other`` bytes of collectives over several axes or none; the parts
        ``state_of`` to ``workspace_of`` of predicted memory; ``on_h100``, the memory predicted for
        H100s. In the order of the records' names, then of devices.

    Raises:
        NotMeasured: there is no such point.
    """
    found = _all(results, what)
    wanted = found["name"].isin(list(only)) | (not only)
    missing = f"no {what} step" + (f" of {', '.join(only)}" if only else "")
    return required(found[wanted & ~found["name"].isin(list(but))], missing).reset_index(drop=True)


@remembered
def _all(results: Results, what: str) -> pd.DataFrame:
    points = required(results.table(what), f"no {what} step")
    rows = pd.DataFrame([_row(point) for point in points.to_dict("records")])
    return rows.sort_values(["devices", "parameters", "name", "mesh", "recipe"], ignore_index=True)


def errors(found: pd.DataFrame, of: str) -> pd.Series:
    """Predicted over compiled, less 1, in %; of an axis only where the mesh has it."""
    at = found[(found[of] > 0) | (found[f"{of}_predicted"] > 0)]
    return 100 * (at[f"{of}_predicted"] / at[of] - 1)


def _exact(value: float) -> Interval:
    return Interval.exact(float(value))


@quantity
def worst(
    results: Results,
    of: str,
    least: int = 1,
    what: str = "compiled",
    only: Sequence[str] = (),
    but: Sequence[str] = (),
) -> Interval:
    """The largest error of a prediction over all configurations, without its sign, %.

    Args:
        of: one of ``CHECKED``.
        least: configurations that there must be.
        what, only, but: as for `table`.

    Raises:
        NotMeasured: there are fewer.
    """
    found = errors(table(results, what, only, but), of)
    if len(found) < least:
        raise NotMeasured(f"{of}: {len(found)} configurations, the claim needs {least}")
    return _exact(found.abs().max())


@quantity
def unforeseen(results: Results, least: int = 1, what: str = "compiled") -> Interval:
    """The largest share of collectives' bytes that lies on no single axis of the mesh, %."""
    found = table(results, what)
    found = found[found["devices"] > 1]
    if len(found) < least:
        raise NotMeasured(f"{len(found)} configurations on several devices, needed {least}")
    return _exact((100 * found["other"] / (found[list(AXES)].sum(axis=1) + found["other"])).max())


@quantity
def compile_minutes(results: Results, name: str, devices: int) -> Interval:
    """The longest time to lower and compile a size for so many devices; one measurement each."""
    return Interval.once(_largest(results, name, devices, "seconds") / 60)


@quantity
def compile_memory(results: Results, name: str, devices: int) -> Interval:
    """The largest peak memory of the processes that did so, GiB."""
    return Interval.once(_largest(results, name, devices, "rss") / GIB)


def _largest(results: Results, name: str, devices: int, column: str) -> float:
    found = table(results, only=[name])
    found = found[found["devices"] == devices]
    if found.empty:
        raise NotMeasured(f"no step of {name} on {devices} devices")
    return float(found[column].max())


@remembered
def timed(results: Results) -> pd.DataFrame:
    """Timed steps on record in the same profile (`bench.timed_steps`), beside their predicted time.

    Returns:
        width, side (a name in ``PREDICTED``), title, calibrated (whether the machine's efficiencies
        were taken from it), seconds (median), predicted, error, error_lo and error_hi (predicted
        over measured, less 1, %).

    Raises:
        NotMeasured: the profile has no step times on record.
    """
    profile = str(results.points["profile"].iloc[0]) if len(results.points) else "smoke"
    found = bench.timed_steps(profile) if profile in MACHINES.values() else []
    if not found:
        raise NotMeasured(f"no step times of the profile {profile}")
    rows: dict[tuple[int, int, str], Mapping[str, Any]] = {}
    for point in found:
        for side in [side for side in point["sides"] if side in PREDICTED]:
            key = (point["width"], point["n_layers"], side)
            if key not in rows:  # what a change is timed beside is no new step
                rows[key] = _timed(point, side, profile)
    return pd.DataFrame(rows.values()).sort_values(["width", "side"], ignore_index=True)


def _timed(point: Mapping[str, Any], side: str, machine: str) -> Mapping[str, Any]:
    """The row of one side of a point."""
    change = CHANGES.get(side, PLAIN)
    shape = Plan.from_dict({**point["shape"], "torch": False})
    plain = shape.model(point["width"], n_layers=point["n_layers"], unroll=0)
    c = case(
        {
            "model": plain.to_dict() | dict(change.model),
            "mesh": {},
            "optim": {"batch_size": shape.batch_size} | dict(change.optim),
        },
        machine,
    )
    predicted = formulas.step_time(c).seconds
    seconds = np.asarray(point["ms"][side]) * 1e-3
    resampled = stats.bootstrap(
        (seconds,), np.median, method="percentile", confidence_level=LEVEL, rng=0
    ).confidence_interval
    middle, low, high = (float(x) for x in (np.median(seconds), *resampled))
    return {
        "width": point["width"],
        "side": side,
        "title": change.title,
        "calibrated": side == "umup" and point["width"] in CALIBRATED,
        "seconds": middle,
        "seconds_lo": low,
        "seconds_hi": high,
        "predicted": predicted,
        **{
            name: 100 * (predicted / s - 1)
            for name, s in (("error", middle), ("error_lo", high), ("error_hi", low))
        },
    }


@quantity
def step_time(results: Results, width: int, side: str = "umup") -> Interval:
    """The predicted time of a step over the measured one, less 1, %."""
    found = timed(results)
    at = found[(found["width"] == width) & (found["side"] == side)]
    if at.empty:
        raise NotMeasured(f"no step of {side} at width {width}")
    row = at.iloc[0]
    return Interval.of(row, "error")
