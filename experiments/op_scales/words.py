"""What the study ``op_scales`` says in words and tables; every number comes from its points."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd

from umup.lab import words
from umup.lab.absent import NotMeasured, required
from umup.lab.records import Results
from umup.lab.report import ABSENT, known, several, worded
from umup.text import decimals

from .results import FIELDS, cells

TITLES = {
    "attention": "attention",
    "gated_silu": "gated SiLU",
    "softmax": "softmax",
    "cross_entropy": "cross-entropy",
    "readout": "readout",
    "linear": "linear",
    "rms_norm": "RMSNorm",
    "rope": "RoPE",
    "residual": "residual add",
    "embedding": "embedding",
}


@worded
def what_ran(results: Results) -> str:
    """One sentence: how many measurements, of what, with how many seeds."""
    points = required(results.points, "no points are on record")
    specs = [json.loads(spec) for spec in points["spec"]]
    seeds = max(int(spec["seeds"]) for spec in specs)
    types = " and ".join(sorted({spec["dtype"] for spec in specs}))
    kinds = points["what"].nunique()
    return f"{len(points)} measurements of {kinds} kinds, each with {seeds} seeds, in {types}."


def _span(rows: pd.DataFrame, field: str, digits: int) -> str:
    required(rows, f"no such points of {field}")
    lo, hi = (decimals(v, digits) for v in (rows[field].min(), rows[field].max()))
    return lo if lo == hi else f"{lo} to {hi}"


def texts(results: Results, digits: int) -> dict[str, str]:
    """Numbers for captions: name → text, ``ABSENT`` where the grid lacks the points."""

    @known
    def span(what: str, field: str, chosen: Callable[[pd.DataFrame], Any]) -> str:
        table = cells(results, what)
        return _span(table[chosen(table)], field, digits)

    every, many = (lambda t: t["seeds"] > 0), (lambda t: t["seq_len"] > 1)
    return {
        "out": span(
            "attention", "out", lambda t: (t["seq_len"] >= 64) & t["alpha"].between(0.25, 4)
        ),
        "out_all": span("attention", "out", many),
        "derived": span("attention", "out_derived", lambda t: t["logit_variance"] <= 0.25),
        "beta": span(
            "attention",
            "dq_beta",
            lambda t: (t["seq_len"] == t["seq_len"].max()) & (t["alpha"] == 1.0),
        ),
        "dq": span("attention", "dq", many),
        "silu": span("gated_silu", "out", every),
        "silu_gate": span("gated_silu", "dgate", every),
        "softmax": span("softmax", "out", every),
        "softmax_dx": span("softmax", "dx", every),
        **several(READOUT, _readout, results, digits),
        **several(SHARED, _shared, results, digits),
        **several(ROWS, _rows, results, digits),
    }


READOUT = ("readout_out", "readout_in", "readout_d", "readout_v")
SHARED = ("rho", "shared", "shared_t")
ROWS = ("first_row", "last_row")


def _readout(results: Results, digits: int) -> tuple[str, ...]:
    """The two backward scales at the largest vocabulary and the paper's width."""
    wide = cells(results, "readout").sort_values(["vocab_size", "d_model"])
    wide = wide[wide["vocab_size"] == wide["vocab_size"].max()]
    width = wide["d_model"].iloc[(wide["d_model"] - 256).abs().argmin()]
    at = wide[wide["d_model"] == width].set_index("backward")["dx"]
    if not {"fan_out", "fan_in"} <= set(at.index):
        raise NotMeasured("no readout with both backward scales")
    numbers = [decimals(at[name], digits) for name in ("fan_out", "fan_in")]
    return (*numbers, str(width), str(wide["vocab_size"].max()))


def _shared(results: Results, digits: int) -> tuple[str, ...]:
    """Attention's output where the values' correlation is nearest to a tenth."""
    inputs = cells(results, "attention_inputs")
    row = inputs.iloc[(inputs["correlation"] - 0.1).abs().argmin()]
    return f"{row['correlation']:g}", decimals(row["out"], digits), str(row["seq_len"])


def _rows(results: Results, digits: int) -> tuple[str, ...]:
    """The output at the first and at the last of the most positions, at α = 1."""
    rows = cells(results, "attention")
    rows = rows[(rows["seq_len"] == rows["seq_len"].max()) & (rows["alpha"] == 1.0)]
    at = required(rows, "no attention at α = 1").iloc[-1]["by_position"]
    return decimals(at[0], digits), decimals(at[-1], digits)


@worded
def answer(results: Results, digits: int) -> str:
    """The study's answer in one paragraph."""
    t = texts(results, digits)
    if t["out"] == ABSENT:
        raise NotMeasured("no attention for T ≥ 64 and α from ¼ to 4")
    return (
        f"Mostly. For T ≥ 64 and α from ¼ to 4 attention's output is at {t['out']} of unit scale, "
        f"gated SiLU's at {t['silu']} for every α tried. Not at unit scale are attention's "
        f"q and k gradients, {t['beta']} times 1/√d_head at α = 1 on the longest sequences; the "
        "gradient that enters the trunk if the readout is scaled back by 1/√fan_in, "
        f"{t['readout_in']} at V = {t['readout_v']} and d_model = {t['readout_d']}; and "
        f"attention's output once values are correlated, {t['shared']} at ρ = {t['rho']} and "
        f"T = {t['shared_t']}."
    )


def worst_table(results: Results, digits: int = 2) -> str:
    """Smallest and largest RMS of every tensor over its whole grid, each with its interval."""
    rows = []
    for what, title in TITLES.items():
        try:
            table = cells(results, what)
        except NotMeasured:
            continue
        if what == "attention":
            table = table[table["seq_len"] > 1]  # a single position has no gradient to q and k
        for field in (f for f in FIELDS if f in table and len(table)):
            ends = [table.loc[table[field].idxmin()], table.loc[table[field].idxmax()]]
            low, high = (f"{words.cell(end, field, digits)} ({_where(end)})" for end in ends)
            row = {"op": title, "tensor": field, "cells": len(table)}
            rows.append(row | {"smallest": low, "largest": high})
    return words.table(rows)


SYMBOLS = {
    "seq_len": "T",
    "d_head": "d_head",
    "alpha": "α",
    "size": "n",
    "mult": "α",
    "vocab_size": "V",
    "logits_rms": "logits",
    "backward": "scale",
    "d_model": "D",
    "fan_in": "fan_in",
    "fan_out": "fan_out",
    "width": "D",
    "branch": "branch",
}


def _where(row: pd.Series) -> str:
    """A cell of a grid in words."""
    shown = {symbol: row[n] for n, symbol in SYMBOLS.items() if n in row}
    return ", ".join(
        f"{symbol} {value if isinstance(value, str) else f'{value:g}'}"
        for symbol, value in shown.items()
    )
