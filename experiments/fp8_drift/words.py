"""What the study `fp8_drift` says in words: sentences and Markdown tables from its records.

``digits`` sets the decimals; below two, as at smoke, no intervals are shown.
"""

from __future__ import annotations

import math

import pandas as pd

from umup.config import RECIPES
from umup.lab import report
from umup.lab.absent import required
from umup.lab.ranges import LINEARS
from umup.lab.records import Results
from umup.text import decimals

from . import results as tables
from .results import NAMES, SHAPE

SHOWN = 8
"""Rows a scheme in the table of departures."""


def _difference(results: Results, scheme: str, recipe: str, digits: int) -> str:
    fine = report.loss_digits(digits)
    return report.said(fine, tables.loss_difference, results, scheme, recipe)


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    seed = {s: _difference(results, s, "fp8_seed", digits) for s in tables.SCHEMES}
    end = report.said(digits, tables.margin, results, "umup")
    low = report.said(
        digits, tables.rms, results, "mup", kinds=["output_gradient"], extreme="largest"
    )
    return (
        f"Cast to FP8 as it is, by the u-μP paper's recipe, u-μP ends {seed['umup']} nats a token "
        f"above float32 and μP {seed['mup']}. μP's largest output-gradient starts {low} octaves "
        f"from 1, where E4M3 flushes below −10; u-μP's tensors end at least {end} octaves inside "
        "E4M3's normal range."
    )


def what_ran(results: Results) -> str:
    """One sentence: how many runs, of what, on what, and where products were compiled."""
    return " ".join(part(results) for part in (_arms, _varied, _compiled))


@report.worded
def _arms(results: Results) -> str:
    arms = tables.arms(results)
    first, widths = arms.iloc[0], ", ".join(str(w) for w in sorted(arms["d_model"].unique()))
    return (
        f"{len(arms)} runs under {arms['recipe'].nunique()} recipes, "
        f"{int((arms['status'] == 'diverged').sum())} of them diverged: width {widths}, depth "
        f"{first['n_layers']}, {first['batch_size']} sequences of {first['seq_len']} tokens a "
        f"step, {first['steps']} steps."
    )


@report.worded
def _varied(results: Results) -> str:
    return f"{len(tables.varied(results))} further runs in which one thing is varied."


@report.worded
def _compiled(results: Results) -> str:
    points = required(results.points, "no compiled products")
    return f"{len(points)} measurements of compiled products on: {points['device'].iloc[0]}."


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions show, by name."""
    wide = {"kinds": ["input"], "linears": ["attn.out", "mlp.down"]}
    readout = {"kinds": ["weight"], "linears": ["readout"]}

    def of(name: str, scheme: str, **given) -> str:
        return report.said(digits, tables.QUANTITIES[name], results, scheme, **given)

    return {
        "mup_gradient_start": of("rms", "mup", kinds=["output_gradient"], extreme="largest"),
        "umup_furthest_start": of("rms", "umup").lstrip("−"),
        "umup_margin": of("margin", "umup"),
        "umup_wide_growth": of("growth", "umup", extreme="largest", **wide),
        "umup_readout_growth": of("growth", "umup", **readout),
        "mup_first": _first(results, "mup"),
        "umup_lost": of("lost", "umup", column="e4m3"),
        "umup_seed_difference": _difference(results, "umup", "fp8_seed", digits),
        "mup_seed_difference": _difference(results, "mup", "fp8_seed", digits),
        "umup_steepest": _steepest(results, "umup", digits),
    }


@report.known
def _first(results: Results, scheme: str) -> str:
    table = tables.departures(results)
    row = required(table[table["scheme"] == scheme], f"no probed runs of {NAMES[scheme]}").iloc[0]
    return f"{row['place']}'s {row['kind'].replace('_', '-')}"


@report.known
def _steepest(results: Results, scheme: str, digits: int) -> str:
    table = tables.slopes(results)
    table = required(table[table["scheme"] == scheme], f"nothing varied of {NAMES[scheme]}")
    row = table.loc[table["slope"].abs().idxmax()]
    name = row["varied"] if row["varied"] in SHAPE.values() else _hp(row["varied"])
    slope = report.interval(row["slope"], row["slope_lo"], row["slope_hi"], digits)
    return f"{row['tensor']} over {name}, {slope}"


def _hp(name: str) -> str:
    return "η" if name == "eta" else name.replace("alpha", "α").replace("sigma", "σ")


def _percent(share: float, digits: int) -> str:
    return f"{decimals(100 * share, digits)} %"


@report.worded
def departures_table(results: Results, digits: int = 2) -> str:
    """What E4M3 loses: of each scheme the tensors that it loses first and most of."""
    table = tables.departures(results)
    rows, shown = [], SHOWN if digits >= 2 else 3  # coarse at smoke: shares of few elements
    digits = digits if digits >= 2 else 0
    for row in table.groupby("scheme", sort=False).head(shown).to_dict("records"):
        rows.append({
            "scheme": NAMES[row["scheme"]], "tensor": f"{row['place']} {row['kind']}",
            "first": "never" if math.isinf(row["first"]) else f"{row['first']:.0f}",
            "clipped": _percent(row["clipped"], digits),
            "flushed": _percent(row["flushed"], digits),
            "e5m2": _percent(row["lost_e5m2"], digits),
            "start": decimals(math.log2(row["start"]), digits),
            "end": decimals(math.log2(row["end"]), digits),
        })  # fmt: skip
    left = f"1 % lost from step on (of {len(table[table['scheme'] == table['scheme'].iloc[0]])})"
    return report.markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "tensor": "tensor", "first": left, "clipped": "E4M3 clips",
         "flushed": "E4M3 flushes", "e5m2": "E5M2 loses", "start": "log₂ RMS, start",
         "end": "log₂ RMS, end"},
    )  # fmt: skip


@report.worded
def losses_table(results: Results, digits: int = 2) -> str:
    """Final loss under each recipe, and its difference from float32's."""
    table, decimals = tables.loss_differences(results), report.loss_digits(digits)
    rows = []
    for row in table.to_dict("records"):
        loss, gap = (
            report.interval(row[n], row[f"{n}_lo"], row[f"{n}_hi"], decimals)
            for n in ("loss", "difference")
        )
        gap = "" if row["recipe"] == "plain" else gap
        if row["diverged"]:
            gap = f"{row['diverged']} of {row['n'] + row['diverged']} diverged"
        rows.append({"scheme": NAMES[row["scheme"]], "width": row["d_model"],
                     "recipe": row["recipe"].replace("plain", "float32"), "loss": loss, "gap": gap,
                     "n": row["n"]})  # fmt: skip
    return report.markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "width": "width", "recipe": "recipe", "loss": "loss, nats [95 %]",
         "gap": "minus float32's [95 %]", "n": "seed pairs"},
    )  # fmt: skip


@report.worded
def products_table(results: Results) -> str:
    """The operand types of every linear's compiled products."""
    table = required(results.table("linear"), "no compiled products")
    capable = bool(table["capable"].all())
    table = table.sort_values(
        ["recipe", "linear"], key=lambda column: column.map([*RECIPES, *LINEARS].index)
    )
    head = "" if capable else (
        f"{table['device_kind'].iloc[0]}: no FP8 units, so that converted operands (→) are what "
        "there is.\n\n"
    )  # fmt: skip
    columns = {"recipe": "recipe", "linear": "linear", "y": "y", "dx": "dx", "dw": "dW",
               "verdict": "native"}  # fmt: skip
    return head + report.markdown(table.assign(verdict=verdicts(table)), columns)


def verdicts(table: pd.DataFrame) -> list[str]:
    """Of each row of products: yes, NO where FP8 was refused, no without units, – if not meant."""
    meant, native = table["claims"], table["native"]
    rows = zip(meant, native, table["capable"], strict=True)
    return ["–" if not m else "yes" if n else "**NO**" if c else "no" for m, n, c in rows]


@report.worded
def steps_table(results: Results, digits: int = 2) -> str:
    """Time and loss of a training step, by width and recipe."""
    table = required(results.table("step"), "no timed training steps")
    table = table.sort_values(["d_model", "recipe", "accumulation"])
    base = table[table["recipe"] == "bf16"].set_index("d_model")["loss"]
    rows = [
        {
            "width": row["d_model"], "recipe": row["recipe"], "accumulation": row["accumulation"],
            "ms": report.interval(
                1e3 * row["seconds"], 1e3 * row["seconds_lo"], 1e3 * row["seconds_hi"], digits
            ),
            "tflops": decimals(row["tflops"], digits),
            "loss": decimals(row["loss"] - base.get(row["d_model"], math.nan), digits + 2),
            "native": f"{row['fp8_products']} of {row['expected']}",
        }
        for row in table.to_dict("records")
    ]  # fmt: skip
    return report.markdown(
        pd.DataFrame(rows),
        {"width": "width", "recipe": "recipe", "accumulation": "accumulation",
         "ms": "ms a step [range]", "tflops": "TFLOP/s", "loss": "loss − bf16's, nats",
         "native": "FP8 products in the program"},
    )  # fmt: skip
