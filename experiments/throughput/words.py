"""Sentences and Markdown tables of the study ``throughput``.

With fewer than two digits, as at smoke, times are left out: they are of tiny shapes and never
the same twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from umup.lab import words
from umup.lab.absent import required
from umup.lab.records import Results
from umup.lab.report import interval, known, several, worded
from umup.lab.words import word
from umup.laws import Interval
from umup.text import decimals

from . import results as tables
from .figures import PIECES, look

UNSAID = "…"


def _number(value: float, digits: int, places: int | None = None) -> str:
    if digits < 2:
        return UNSAID
    return "" if math.isnan(value) else decimals(value, digits if places is None else places)


def _interval(found: Interval, digits: int) -> str:
    if math.isclose(found.lo, found.hi):  # measured once
        return _number(found.value, digits)
    return UNSAID if digits < 2 else interval(found.value, found.lo, found.hi, digits)


def _ask(digits: int, quantity: Callable[..., Interval], *args: Any, **named: Any) -> str:
    return known(lambda: _interval(quantity(*args, **named), digits))()


def _fastest(results: Results) -> pd.DataFrame:
    """The fastest of our sides at each width, where PyTorch ran beside it."""
    table = tables.steps(results)
    wide = table[table["side"] == "eager"][["width", "n_layers"]]
    ours = table[~table["side"].isin(["eager", "compiled"])].merge(wide, on=["width", "n_layers"])
    return required(
        ours.loc[ours.groupby(["width", "n_layers"])["median"].idxmin()], "no step beside PyTorch's"
    )


@worded
def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    best = _fastest(results)
    parts = []
    for row in best.sort_values("width").to_dict("records"):
        shape = {"dtype": row["dtype"], "n_layers": row["n_layers"]}
        found = tables.ratio(results, row["width"], row["side"], **shape)
        parts.append(f"{_interval(found, digits)} at width {row['width']}")
    took = (
        f"A training step takes {', '.join(parts)} of the time that `unit_scaling` takes in "
        "PyTorch, run eagerly in the same process."
    )
    if best["share"].isna().all():
        return took
    top = best.loc[best["share"].idxmax()]
    return (
        f"{took} At width {top['width']} it reaches {_number(100 * top['share'], digits, 0)} % of "
        "the speed of the best matrix product."
    )


@worded
def what_ran(results: Results, digits: int = 2) -> str:
    """One sentence: which points, and how busy others kept the machine."""
    points = required(results.points, "no points are on record")
    kinds = points["what"].value_counts().sort_index()
    listed = ", ".join(f"{n} × {what}" for what, n in kinds.items())
    busy = [o for what in kinds.index for o in results.table(str(what))["others"]]
    known = [o for o in busy if o is not None and not math.isnan(o)]
    share = f"{_number(100 * max(known), digits, 0)} %" if known else "an unknown share"
    return f"{kinds.sum()} points: {listed}. Other processes took at most {share} of the CPU."


@worded
def step_table(results: Results, digits: int = 2) -> str:
    """Every step that was timed: median time, its ratio to PyTorch's, tokens/s, share, memory."""
    rows = []
    for row in tables.steps(results).to_dict("records"):
        at = {"dtype": row["dtype"], "n_layers": row["n_layers"]}
        against = (results, row["width"], row["side"])
        ms = [_number(x, digits, 1) for x in (row["median"], min(row["ms"]), max(row["ms"]))]
        ratio = "" if row["side"] == "eager" else _ask(digits, tables.ratio, *against, **at)
        cells = {"width": row["width"], "layers": row["n_layers"]}
        cells[""] = look(row["side"]).title
        cells["step, ms (range)"] = f"{ms[0]} ({ms[1]}–{ms[2]})"
        cells["over PyTorch eager [95 %]"] = ratio
        cells["tokens/s"] = f"{row['tokens_per_s']:,.0f}" if digits >= 2 else UNSAID
        cells["% of GEMM peak"] = _number(100 * row["share"], digits, 0)
        cells["program's memory, MiB"] = _number(row["mib"], digits, 0)
        cells["compiling, s"] = _number(row["compile_s"], digits, 1)
        rows.append(cells)
    return words.table(rows)


@worded
def tried_table(results: Results, digits: int = 2) -> str:
    """What was tried: predicted and measured ratio of time, ratio of memory."""
    return words.table(
        {
            "change": row["title"],
            "width": row["width"],
            "predicted": _number(row["predicted"], 2),
            "time [95 %]": _interval(Interval.of(row, "ratio"), digits),
            "memory": _number(row["mib_ratio"], digits),
        }
        for row in tables.tried(results).to_dict("records")
    )


@worded
def probes_table(results: Results, digits: int = 2) -> str:
    """The cost of an observation of every tensor by the probes, relative to a step."""
    return words.table(
        {
            "width": row["width"],
            "step, ms": _number(row["step_ms"], digits, 1),
            "look, ms": _number(row["look_ms"], digits, 1),
            f"an observation every {tables.LOOK_EVERY} steps adds, % [95 %]": _interval(
                Interval.of(row, "cost"), digits
            ),
        }
        for row in tables.probes(results).to_dict("records")
    )


LANES = {"width": 32, "lanes": 8}
WORDS = {
    "ratio_{width}": word(tables.ratio, _interval, side="blocked"),
    "compiled": word(tables.ratio, _interval, width=64, side="blocked", against="compiled"),
    "lanes": word(tables.lanes_gain, _interval, **LANES),
    "lanes_running": word(tables.lanes_gain, _interval, compiling=False, **LANES),
    "growth": word(tables.compile_growth, _interval, factor=16),
    "memory": word(tables.memory_ratio, _interval, width=256),
}


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """Name → text, for captions."""
    out = {"peak": known(lambda: _number(tables.peak(results), digits, 0))()}
    out |= words.texts(WORDS, results, digits, width=(32, 64, 128, 256))
    out |= several(("pieces_small", "pieces_large"), _largest_pieces, results, digits)
    return out | several(("best", "foreseen"), _best_change, results, digits)


def _largest_pieces(results: Results, digits: int) -> list[str]:
    """The three largest pieces at the smallest and at the largest width."""
    out = []
    table = tables.parts(results)
    for width in (table["width"].min(), table["width"].max()):
        top = table[table["width"] == width].nlargest(3, "share")
        listed = ", ".join(
            f"{PIECES[p][0]} {_number(100 * s, digits, 0)} %"
            for p, s in zip(top["piece"], top["share"], strict=True)
        )
        out.append(f"at width {width} {listed if digits >= 2 else UNSAID}")
    return out


def _best_change(results: Results, digits: int) -> tuple[str, str]:
    """The change that gains most, and how many were foreseen to a tenth."""
    table = tables.tried(results)
    best = table.loc[table["ratio"].idxmin()]
    near = np.abs(np.log(table["ratio"] / table["predicted"]).astype(float)) < math.log(1.1)
    if digits < 2:
        return UNSAID, UNSAID
    gain = f"{best['title']}, {_number(best['ratio'], digits)} of the time"
    return gain, f"{int(near.sum())} of {len(table)}"
