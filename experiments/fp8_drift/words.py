"""What the study `fp8_drift` says in words: sentences and Markdown tables from its records.

``digits`` sets the decimals; below two, as at smoke, no intervals are shown.
"""

from __future__ import annotations

import math

import pandas as pd

from umup.config import RECIPES
from umup.lab import report, words
from umup.lab.absent import required
from umup.lab.ranges import LINEARS
from umup.lab.records import Results
from umup.lab.tables import NAMES
from umup.lab.words import cell, nats, table, trained, word
from umup.laws import Interval
from umup.text import decimals

from . import results as tables
from .results import SHAPE

SHOWN = 8
"""Rows per scheme in the table of departures."""


def _unsigned(measured: Interval, digits: int) -> str:
    return report.text_of(measured, digits).lstrip("−")


def _first(results: Results, scheme: str) -> str:
    departures = tables.departures(results)
    own = departures[departures["scheme"] == scheme]
    row = required(own, f"no probed runs of {NAMES[scheme]}").iloc[0]
    return f"{row['place']}'s {row['kind'].replace('_', '-')}"


WORDS = {
    # octaves
    "mup_gradient_start": word(
        tables.rms, scheme="mup", kinds=["output_gradient"], extreme="largest"
    ),
    "umup_furthest_start": word(tables.rms, _unsigned, scheme="umup"),
    "umup_margin": word(tables.margin, scheme="umup"),
    "umup_wide_growth": word(
        tables.growth,
        scheme="umup",
        extreme="largest",
        kinds=["input"],
        linears=["attn.out", "mlp.down"],
    ),
    "umup_readout_growth": word(
        tables.growth, scheme="umup", kinds=["weight"], linears=["readout"]
    ),
    "mup_first": word(_first, scheme="mup"),
    "umup_lost": word(tables.lost, scheme="umup", column="e4m3"),  # per cent
    "{scheme}_seed_difference": word(tables.loss_difference, nats, recipe="fp8_seed"),
}


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions show, by name, see ``WORDS``."""
    found = words.texts(WORDS, results, digits, scheme=("umup", "mup"))
    return found | {"umup_steepest": _steepest(results, "umup", digits)}


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    text = texts(results, digits)
    return (
        f"Cast to FP8 as it is, by the u-μP paper's recipe, u-μP ends "
        f"{text['umup_seed_difference']} nats per token above float32 and μP "
        f"{text['mup_seed_difference']}. μP's largest output-gradient starts "
        f"{text['mup_gradient_start']} octaves from 1, where E4M3 flushes below −10; u-μP's "
        f"tensors end at least {text['umup_margin']} octaves inside E4M3's normal range."
    )


def what_ran(results: Results) -> str:
    """How many runs, of what, on what, and where products were compiled."""
    return " ".join(part(results) for part in (_arms, _varied, _compiled))


@report.worded
def _arms(results: Results) -> str:
    arms = tables.arms(results)
    return trained(arms, f"runs under {arms['recipe'].nunique()} recipes")


@report.worded
def _varied(results: Results) -> str:
    return f"{len(tables.varied(results))} further runs in which one thing is varied."


@report.worded
def _compiled(results: Results) -> str:
    points = required(results.points, "no compiled products")
    return f"{len(points)} measurements of compiled products on: {points['device'].iloc[0]}."


@report.known
def _steepest(results: Results, scheme: str, digits: int) -> str:
    slopes = tables.slopes(results)
    slopes = required(slopes[slopes["scheme"] == scheme], f"nothing varied of {NAMES[scheme]}")
    row = slopes.loc[slopes["slope"].abs().idxmax()]
    name = row["varied"] if row["varied"] in SHAPE.values() else _hp(row["varied"])
    return f"{row['tensor']} over {name}, {cell(row, 'slope', digits)}"


def _hp(name: str) -> str:
    return "η" if name == "eta" else name.replace("alpha", "α").replace("sigma", "σ")


def _percent(share: float, digits: int) -> str:
    return f"{decimals(100 * share, digits)} %"


@report.worded
def departures_table(results: Results, digits: int = 2) -> str:
    """What E4M3 loses: of each scheme the tensors that it loses first and most of."""
    departures = tables.departures(results)
    shown = SHOWN if digits >= 2 else 3  # coarse at smoke: shares of few elements
    digits = digits if digits >= 2 else 0
    per_scheme = (departures["scheme"] == departures["scheme"].iloc[0]).sum()
    return table(
        {
            "scheme": NAMES[row["scheme"]],
            "tensor": f"{row['place']} {row['kind']}",
            f"1 % lost from step on (of {per_scheme})": (
                "never" if math.isinf(row["first"]) else f"{row['first']:.0f}"
            ),
            "E4M3 clips": _percent(row["clipped"], digits),
            "E4M3 flushes": _percent(row["flushed"], digits),
            "E5M2 loses": _percent(row["lost_e5m2"], digits),
            "log₂ RMS, start": decimals(math.log2(row["start"]), digits),
            "log₂ RMS, end": decimals(math.log2(row["end"]), digits),
        }
        for row in departures.groupby("scheme", sort=False).head(shown).to_dict("records")
    )


@report.worded
def losses_table(results: Results, digits: int = 2) -> str:
    """Final loss under each recipe, and its difference from float32's."""
    fine = report.loss_digits(digits)
    rows = []
    for row in tables.loss_differences(results).to_dict("records"):
        gap = "" if row["recipe"] == "plain" else cell(row, "difference", fine)
        if row["diverged"]:
            gap = f"{row['diverged']} of {row['n'] + row['diverged']} diverged"
        labels = {"scheme": NAMES[row["scheme"]], "width": row["d_model"]}
        labels["recipe"] = row["recipe"].replace("plain", "float32")
        numbers = {"loss, nats [95 %]": cell(row, "loss", fine), "minus float32's [95 %]": gap}
        rows.append(labels | numbers | {"seed pairs": row["n"]})
    return table(rows)


@report.worded
def products_table(results: Results) -> str:
    """The operand types of every linear's compiled products."""
    products = required(results.table("linear"), "no compiled products")
    products = products.sort_values(
        ["recipe", "linear"], key=lambda column: column.map([*RECIPES, *LINEARS].index)
    )
    head = ""
    if not products["capable"].all():
        head = (
            f"{products['device_kind'].iloc[0]}: no FP8 units, so that converted operands (→) are "
            "what there is.\n\n"
        )
    products = products.assign(dW=products["dw"], native=verdicts(products))
    shown = products[["recipe", "linear", "y", "dx", "dW", "native"]]
    return head + table(shown.to_dict("records"))


def verdicts(table: pd.DataFrame) -> list[str]:
    """Of each row of products: yes, NO where FP8 was refused, no without units, – if not meant."""
    meant, native = table["claims"], table["native"]
    rows = zip(meant, native, table["capable"], strict=True)
    return ["–" if not m else "yes" if n else "**NO**" if c else "no" for m, n, c in rows]


@report.worded
def steps_table(results: Results, digits: int = 2) -> str:
    """Time and loss of a training step, by width and recipe."""
    steps = required(results.table("step"), "no timed training steps")
    steps = steps.sort_values(["d_model", "recipe", "accumulation"])
    base = steps[steps["recipe"] == "bf16"].set_index("d_model")["loss"]
    rows = []
    for row in steps.to_dict("records"):
        seconds = Interval.of(row, "seconds").scaled(1e3)
        above = row["loss"] - base.get(row["d_model"], math.nan)
        labels = {"width": row["d_model"], "recipe": row["recipe"]}
        labels["accumulation"] = row["accumulation"]
        times = {"ms per step [range]": report.text_of(seconds, digits)}
        times["TFLOP/s"] = decimals(row["tflops"], digits)
        times["loss − bf16's, nats"] = decimals(above, digits + 2)
        native = f"{row['fp8_products']} of {row['expected']}"
        rows.append(labels | times | {"FP8 products in the program": native})
    return table(rows)
