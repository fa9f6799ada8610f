"""Sentences and Markdown tables of the study ``planning``.

With fewer than two digits, as at smoke, numbers are left out: those of so small a program mean
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from umup.lab import words
from umup.lab.absent import NotMeasured, required
from umup.lab.records import Results
from umup.lab.report import known, markdown, several, worded
from umup.laws import Interval
from umup.mesh import AXES
from umup.text import decimals

from . import results as tables
from .figures import BOUNDS, LARGE

UNSAID = "…"
FUSED = ("cuDNN attention", "cuDNN attention, 1.4e9 parameters")
"""Steps with a kernel whose products cannot be counted."""


def _number(value: float, digits: int, places: int = 1) -> str:
    return decimals(value, places) if digits >= 2 else UNSAID


def _ask(digits: int, quantity: Callable[..., Interval], *args: Any, **named: Any) -> str:
    return known(lambda: _number(quantity(*args, **named).value, digits))()


def _kind(results: Results) -> str:
    return "native" if "native" in set(results.points["what"]) else "compiled"


@worded
def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    found = tables.table(results, _kind(results))
    wrong = tables.errors(found, "memory").abs()
    inside = int((wrong <= BOUNDS["memory"]).sum())
    counted = tables.errors(found, "parameters").abs().max()
    said = [
        f"Of {len(found)} training steps, compiled but never run, the planner predicts the number "
        f"of parameters {'exactly' if not counted else f'to {_number(counted, digits)} %'}, the "
        f"matrix products to {_number(tables.errors(found, 'flops').abs().max(), digits)} %, the "
        f"memory of {inside if digits >= 2 else UNSAID} within {BOUNDS['memory']:g} % (worst: "
        f"{_number(wrong.max(), digits)} %)"
    ]
    axes = [axis for axis in AXES if (found[axis] > 0).any()]
    if axes:
        worst = max(tables.errors(found, axis).abs().max() for axis in axes)
        said.append(f"what each device receives along each mesh axis to {_number(worst, digits)} %")
    try:
        timed = tables.timed(results)
        fresh = timed[~timed["calibrated"]]["error"].abs()
        near = int((fresh <= BOUNDS["time"]).sum())
        said.append(
            f"and, of {len(fresh)} measured step times that were not used for its constants, "
            f"{near} within {BOUNDS['time']:g} %"
        )
    except NotMeasured:
        pass
    return ", ".join(said) + "."


@worded
def hopper_answer(results: Results, digits: int = 2) -> str:
    """How close the planner's predictions are to what XLA compiles for GPUs."""
    found = tables.table(results, "hopper")
    signed = tables.errors(found, "memory")
    wrong, under = signed.abs(), max(0.0, -signed.min())
    inside = int((wrong <= BOUNDS["memory"]).sum()) if digits >= 2 else UNSAID
    outside = found["name"][wrong > BOUNDS["memory"]].unique()
    beyond = ""
    if len(outside) and digits >= 2:
        beyond = f"; beyond, in some layout: {'; '.join(outside)}"
    said = (
        f"Compiled for absent GPUs, {inside} of {len(found)} memory predictions are within "
        f"{BOUNDS['memory']:g} % (worst: {_number(wrong.max(), digits)} %{beyond}), and none is "
        f"more than {_number(under, digits)} % too small."
    )
    axes = [axis for axis in AXES if (found[axis] > 0).any()]
    if not axes:
        return said
    worst = max(tables.errors(found, axis).abs().max() for axis in axes)
    return (
        f"{said} What each device receives along each mesh axis is within "
        f"{_number(worst, digits)} %."
    )


@worded
def what_ran(results: Results) -> str:
    """One sentence: what was compiled, for what."""
    found = tables.table(results, _kind(results))
    recipes, remat = (", ".join(sorted(found[name].unique())) for name in ("recipe", "remat"))
    return (
        f"{len(found)} steps in {found['mesh'].nunique()} layouts of {found['devices'].min()} to "
        f"{found['devices'].max()} devices; linears {recipes}; remat {remat}."
    )


@worded
def memory_table(results: Results, digits: int = 2, kind: str = "") -> str:
    """Every configuration: compiled memory and temporaries per device, and the errors, %.

    Args:
        kind: of the points; "": ``native`` where there are such, else ``compiled``.
    """
    found = tables.table(results, kind or _kind(results))
    columns = {
        "name": "step",
        "mesh": "mesh",
        "recipe": "linears",
        "remat": "remat",
        "memory": "GiB",
        "memory_error": "error, %",
        "temporaries_error": "of temporaries, %",
        "flops_error": "of products, %",
        "seconds": "compiling, s",
    }
    wrong = {of: tables.errors(found, of) for of in ("memory", "temporaries", "flops")}
    rows = [
        {
            **row,
            "memory": _number(row["memory"] / tables.GIB, digits, 2),
            **{f"{of}_error": _signed(error[i], digits) for of, error in wrong.items()},
            "seconds": _number(row["seconds"], digits, 0),
        }
        for i, row in enumerate(found.to_dict("records"))
    ]
    return markdown(pd.DataFrame(rows), columns)


def _signed(value: float, digits: int) -> str:
    text = _number(value, digits)
    return f"+{text}" if digits >= 2 and round(value, 1) > 0 else text


@worded
def collectives_table(results: Results, digits: int = 2, kind: str = "compiled") -> str:
    """Bytes that one device receives in a step, by mesh axis, and the prediction's error."""
    found = tables.table(results, kind)
    rows: list[dict[str, str]] = []
    blank = {"data": "", "fsdp": "", "tensor": ""}
    for row in found[found["devices"] > 1].to_dict("records"):
        cells = {"name": row["name"], "mesh": row["mesh"], "recipe": row["recipe"]}
        for axis in AXES:
            if row[axis] or row[f"{axis}_predicted"]:
                ratio = row[f"{axis}_predicted"] / row[axis] if row[axis] else float("inf")
                error = 100 * (ratio - 1)
                size = _number(row[axis] / tables.GIB, digits, 3)
                cells[axis] = f"{size} ({_signed(error, digits)} %)"
        rows.append(blank | cells)
    if not rows:
        raise NotMeasured("no step on several devices")
    names = {"name": "step", "mesh": "mesh", "recipe": "linears"}
    heads = {axis: f"{axis}, GiB (error)" for axis in AXES}
    return markdown(pd.DataFrame(rows), names | heads)


@worded
def large_table(results: Results, digits: int = 2) -> str:
    """7B and 70B: seconds to compile, memory of the compiler, bytes per device, and on an H100."""
    found = tables.table(results, only=LARGE)
    labels = {"name": "model", "recipe": "linears", "mesh": "mesh", "devices": "devices"}
    sizes = {
        "rss": "compiler, GiB",
        "state": "state, GiB per device",
        "memory": "all, GiB per device",
        "memory_predicted": "predicted",
        "on_h100": "predicted for H100",
    }
    return words.table(
        {heading: row[name] for name, heading in labels.items()}
        | {"compiling, s": _number(row["seconds"], digits, 0)}
        | {sizes[name]: _number(row[name] / tables.GIB, digits, 2) for name in sizes}
        for row in found.to_dict("records")
    )


@worded
def time_table(results: Results, digits: int = 2) -> str:
    """Measured and predicted times of a step."""
    found = tables.timed(results)
    rows = []
    for row in found.to_dict("records"):
        error, lo, hi = (_signed(row[f"error{end}"], digits) for end in ("", "_lo", "_hi"))
        cells = {"width": row["width"], "step": row["title"]}
        cells["measured, ms"] = _number(1e3 * row["seconds"], digits)
        cells["predicted, ms"] = _number(1e3 * row["predicted"], digits)
        cells["error, % [95 %]"] = f"{error} [{lo}, {hi}]"
        rows.append(cells | {"": "calibrated there" if row["calibrated"] else ""})
    return words.table(rows)


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """Name → text, for captions."""
    kind = _kind(results)
    out = {
        of: _ask(digits, tables.worst, results, of, what=kind)
        for of in ("parameters", "flops", "memory", "temporaries")
    }
    out |= several(("within", "of", "worst_at", "under", "beyond"), _band, results, digits)
    for axis in AXES:
        out[axis] = _ask(digits, _worst_along, results, kind, axis)
    out["other"] = _ask(digits, tables.unforeseen, results)
    for of in ("flops", "memory"):
        but = FUSED if of == "flops" else ()
        out[f"hopper_{of}"] = _ask(digits, tables.worst, results, of, what="hopper", but=but)
    for axis in AXES:
        out[f"hopper_{axis}"] = _ask(digits, _worst_along, results, "hopper", axis)
    out["hopper_other"] = _ask(digits, tables.unforeseen, results, what="hopper")
    out["large"] = _ask(digits, tables.worst, results, "memory", only=LARGE)
    out["state"] = _ask(digits, tables.worst, results, "state", only=LARGE)
    out["minutes"] = _ask(digits, tables.compile_minutes, results, LARGE[-1], 512)
    out["rss"] = _ask(digits, tables.compile_memory, results, LARGE[-1], 512)
    timed = {"64": (64, "umup"), "128": (128, "umup")}
    timed |= {"dots": (64, "remat_dots"), "full": (64, "remat_full")}
    for name, step in timed.items():
        out[f"time_{name}"] = _ask(digits, tables.step_time, results, *step)
    return out


def _band(results: Results, digits: int) -> tuple[str, ...]:
    """How many memories are within the claimed error, of how many, and those that are not."""
    found = tables.table(results, _kind(results))
    signed = tables.errors(found, "memory")
    wrong = signed.abs()
    if digits < 2:
        return UNSAID, str(len(found)), UNSAID, _number(max(0.0, -signed.min()), digits), UNSAID
    beyond = "; ".join(sorted(found["name"][wrong > BOUNDS["memory"]].unique())) or "none"
    within, worst = int((wrong <= BOUNDS["memory"]).sum()), str(found["name"][wrong.idxmax()])
    return str(within), str(len(found)), worst, _number(max(0.0, -signed.min()), digits), beyond


def _worst_along(results: Results, kind: str, axis: str) -> Interval:
    """The worst error of the bytes along an axis, over the steps whose mesh has it."""
    found = tables.table(results, kind)
    meshed = required(found[found[axis] > 0], f"no step with a mesh along {axis}")
    return tables.worst(results, axis, only=tuple(meshed["name"]))
