"""What the study `hopper` says in words: sentences and Markdown tables from its records.

``digits`` sets the decimals; with fewer than two, as at smoke, no speeds are shown.
"""

from __future__ import annotations

import math

import pandas as pd

from umup.lab import report
from umup.lab.absent import required
from umup.lab.claims import bound
from umup.lab.records import Results
from umup.lab.tables import NAMES
from umup.lab.words import cell, listed, table, trained
from umup.text import decimals

from . import results as tables
from .results import SCALED

CLAIMS = {"float32": "float32-twin", "bfloat16": "bfloat16-twin", "fp8_seed": "fp8-twin"}
"""Twin → the claim that bounds its difference."""
UNSAID = "…"


def _difference(results: Results, scheme: str, arm: str, digits: int) -> str:
    fine = report.loss_digits(digits)
    return report.said(fine, lambda: tables.difference_of(tables.shown(results), scheme, arm))


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    return f"{_same(results)} {_costs(results, digits)}"


@report.worded
def _same(results: Results) -> str:
    """How far the twins lie from the CPU's; on a CPU, that there is nothing to compare."""
    twins = tables.twins(results)
    gaps, device = {n: _gap(results, n) for n in twins["twin"]}, twins["device_kind"].iloc[0]
    if set(gaps.values()) == {report.ABSENT}:
        return f"A GPU's losses beside the CPU's are {report.ABSENT} (device here: {device})."
    named = ", ".join(f"{name} {gap}" for name, gap in gaps.items())
    return f"Losses on the {device} are the CPU's to so many parts per million: {named}."


@report.known
def _gap(results: Results, twin: str) -> str:
    return decimals(tables.twin_difference(results, twin).value, 0)


@report.worded
def _costs(results: Results, digits: int) -> str:
    runs, base = tables.shown(results), tables.base(results)
    done, steps = runs["done"].max(), runs["steps"].max()
    after = f"{steps} steps" if done == steps else f"{done} of {steps} steps, where time ended"
    umup, mup = (_difference(results, s, "fp8_seed", digits) for s in ("umup", "mup"))
    scaled = _difference(results, "mup", SCALED, digits)
    return (
        f"At width {runs['d_model'].max()}, after {after}, the u-μP paper's FP8 recipe ends above "
        f"{base} by so many nats per token: u-μP {umup}, μP {mup}, μP with a constant loss scale "
        f"{scaled}."
    )


@report.worded
def what_ran(results: Results) -> str:
    """One sentence: how many runs, of what, on what, and where."""
    runs = tables.shown(results)
    done, cut = runs["done"].iloc[0], ""
    if done != runs["steps"].iloc[0]:
        cut = (
            f" Time ended at step {done}: what is shown are means over the last tenth of those "
            "steps, and no claim is judged on them."
        )
    kind = f"runs in {len(runs.groupby(['scheme', 'arm']))} arms"
    return f"{trained(runs, kind)} On: {listed(runs['device'].astype(str))}.{cut}"


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions show, by name."""
    return {
        "hopper_width": _width(results),
        "hopper_umup": _difference(results, "umup", "fp8_seed", digits),
        "hopper_mup": _difference(results, "mup", "fp8_seed", digits),
        "hopper_scaled": _difference(results, "mup", SCALED, digits),
        "hopper_umup_margin": report.said(digits, tables.margin, results, "umup"),
        "hopper_mup_margin": report.said(digits, tables.margin, results, "mup"),
    }


@report.known
def _width(results: Results) -> str:
    return str(tables.shown(results)["d_model"].max())


@report.worded
def twins_table(results: Results, digits: int = 2) -> str:
    """First and last loss of every twin here and on the CPU, and how far they part."""
    rows, fine = [], report.loss_digits(digits) + (digits >= 2)
    for row in tables.twins(results).to_dict("records"):
        here, there, on_cpu = row["losses"], row["cpu"], row["platform"] == "cpu"
        beside = "" if on_cpu or there is None else decimals(there[-1], fine)
        labels = {"twin": row["twin"], "device": row["device_kind"], "steps": len(here)}
        losses = {"first loss, nats": decimals(here[0], fine)}
        losses["last loss, nats"] = decimals(here[-1], fine)
        losses["the CPU's last loss"] = beside
        gap = "" if on_cpu else _gap(results, row["twin"])
        gaps = {"largest relative difference, ppm": gap}
        gaps["bound for a GPU, ppm"] = decimals(bound("hopper", CLAIMS[row["twin"]]), 0)
        rows.append(labels | losses | gaps)
    return table(rows)


@report.worded
def peaks_table(results: Results, digits: int = 2) -> str:
    """Speeds of square products and of a copy, median and range."""
    rows = [
        {"what": f"product in {row['kind']}, {row['size']} × {row['size']}", **_speed(row, digits)}
        for row in results.table("gemm").to_dict("records")
    ]
    rows += [
        {"what": f"copy of {row['mib']} MiB, read and written", **_speed(row, digits)}
        for row in results.table("copy").to_dict("records")
    ]
    return report.markdown(
        required(pd.DataFrame(rows), "no speeds are on record"),
        {
            "what": "",
            "speed": "speed (range)",
            "products": "operands as compiled",
            "device": "device",
        },
    )


def _speed(row: dict, digits: int) -> dict[str, str]:
    name, unit = ("tb_s", "B/s") if "tb_s" in row else ("tflops", "FLOP/s")
    ends = [row[f"{name}{end}"] for end in ("", "_lo", "_hi")]
    factor, prefix = (1.0, "T") if ends[0] >= 1.0 else (1e3, "G")
    speed, lo, hi = (decimals(factor * x, digits) for x in ends)
    said = f"{speed} ({lo}–{hi}) {prefix}{unit}" if digits >= 2 else UNSAID
    return {"speed": said, "products": row.get("products", ""), "device": row["device_kind"]}


@report.worded
def losses_table(results: Results, digits: int = 2) -> str:
    """Final loss of each arm, and its difference from the arm that casts nothing."""
    base, fine = tables.base(results), report.loss_digits(digits)
    rows = []
    for row in tables.loss_differences(tables.shown(results)).to_dict("records"):
        plain = row["arm"] == "plain"
        runs = row["n"] + row["diverged"]
        gap = cell(row, "difference", fine)
        gap = f"{row['diverged']} of {runs} diverged" if row["diverged"] else gap
        labels = {"scheme": NAMES[row["scheme"]], "arm": base if plain else row["arm"]}
        loss = "" if math.isnan(row["loss"]) else cell(row, "loss", fine)
        numbers = {"loss, nats [95 %]": loss, f"minus {base}'s [95 %]": "" if plain else gap}
        rows.append(labels | numbers | {"seed pairs": row["n"]})
    return table(rows)
