"""What the study ``transfer_axes`` says in words: sentences and Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from umup.lab import takeaway
from umup.lab.absent import NotMeasured
from umup.lab.claims import Verdict
from umup.lab.records import Results
from umup.lab.report import loss_digits, said, worded
from umup.lab.tables import NAMES, fits
from umup.lab.words import cell, nats, table, texts, trained, word
from umup.laws import Interval, Optimum

from . import results as tables
from .results import AXES, COMPLETEP, SCHEMES

WORDS = {
    "shift_{axis}_{scheme}": word(tables.shift),
    "price_{axis}_{scheme}": word(tables.price, nats),
    "power_{axis}_{scheme}": word(tables.power),
    "beyond_sum_{scheme}": word(tables.beyond_sum),
    "price_of_sum_{scheme}": word(tables.price_of_sum, nats),
    "price_of_keeping_{scheme}": word(tables.price_of_keeping, nats),
    "eps_{eps}": word(tables.eps_difference, nats),
    "steadier": word(tables.steadier, axis="depth", scheme=COMPLETEP, against="mup"),
}
CARRIED = {
    "umup-still-over-steps": ("steps", "u-μP"),
    "mup-still-over-steps": ("steps", "μP"),
    "umup-still-over-batch": ("batch at equal steps", "u-μP"),
    "mup-still-over-batch": ("batch at equal steps", "μP"),
    "umup-still-over-batch-tokens": ("batch at equal tokens", "u-μP"),
    "mup-still-over-batch-tokens": ("batch at equal tokens", "μP"),
    "umup-still-over-seq-len": ("sequence length", "u-μP"),
    "mup-still-over-seq-len": ("sequence length", "μP"),
    "umup-still-over-depth": ("depth", "u-μP"),
    "mup-still-over-depth": ("depth", "μP"),
    "completep-still-over-depth": ("depth", "CompleteP"),
}
"""Claim that η stays → over what, and under which scheme."""

SUMS = {
    f"{scheme}-drifts-add": {
        "holds": "Where width, depth, steps and batch grow at once, carry "
        f"{NAMES[scheme]}'s η by the sum of what each moves it.",
        "fails": f"Where width, depth, steps and batch grow at once, the sum of what each moves it "
        f"misses {NAMES[scheme]}'s best η by more than half an octave.",
    }
    for scheme in ("mup", "umup")
}
"""Claim that motions add → verdict → what to do."""

BECAUSE = (
    "a best $\\eta$ that moves need not cost anything, and one that stays within a wide interval "
    "may. These are short runs of narrow models; where an axis moves $\\eta$ here, measure it on "
    "two values of your own before you extrapolate over more."
)
"""Why, and what the study does not show."""


def numbers(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions name: name → text.

    ``shift_AXIS_SCHEME``: octaves of the best η between the axis' ends, ``power_…`` by doubling;
    ``price_…``: what the smallest value's best η costs at the largest, nats. Where all grow:
    ``beyond_sum_SCHEME``, octaves, ``price_of_sum_…`` and ``price_of_keeping_…``. Nats that a
    constant ε costs: ``eps_default`` and ``eps_large``. ``steadier``: octaves by which CompleteP's
    best η moves less over depth than μP's.
    """
    over = {"axis": list(AXES), "scheme": list(SCHEMES), "eps": ["default", "large"]}
    return texts(WORDS, results, digits, **over)


@worded
def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one sentence: along which axes does η stay?"""
    tables.known(results.runs)
    moves = ", ".join(
        f"{AXES[axis].title}: {said(digits, tables.shift, results, axis, 'umup')} and "
        f"{said(digits, tables.shift, results, axis, 'mup')}"
        for axis in AXES
    )
    return f"Octaves by which the best η moves from end to end, under u-μP and under μP. {moves}."


def what_ran(results: Results) -> str:
    """How many runs, of what, on what."""
    return trained(results.runs)


def axes_table(results: Results, digits: int = 2) -> str:
    """How far η moves along every axis, and what keeping it costs: a row per axis and scheme."""
    rows = []
    for axis, about in AXES.items():
        for scheme in SCHEMES:
            try:
                found = tables.optima(results.runs, axis, scheme)
            except NotMeasured:
                continue
            row = {"axis": about.title, "scheme": NAMES[scheme]}
            row["values"] = ", ".join(map(str, found))
            row["shift, octaves"] = said(digits, tables.shift, results, axis, scheme)
            row["price, nats"] = said(loss_digits(digits), tables.price, results, axis, scheme)
            rows.append(row)
    return table(rows)


def sum_table(results: Results, digits: int = 2) -> str:
    """Where all grow at once: the η carried by the sum, the best, and prices; a row per scheme."""
    rows = []
    for scheme in SCHEMES:
        try:
            best = next(iter(fits(tables.grown(results.runs, scheme)).values()))
        except NotMeasured:
            continue
        row = {"scheme": NAMES[scheme]}
        row["log₂ η*, base"] = said(digits, _place, tables.at_base, results, scheme)
        row["carried by the sum"] = said(digits, _place, tables.carried, results, scheme)
        row["best there"] = cell(best, "x", digits)
        row["beyond the sum, octaves"] = said(digits, tables.beyond_sum, results, scheme)
        prices = {"carried": tables.price_of_sum, "kept": tables.price_of_keeping}
        for title, price in prices.items():
            row[f"price {title}, nats"] = said(loss_digits(digits), price, results, scheme)
        rows.append(row)
    return table(rows)


def _place(find: Callable[[pd.DataFrame, str], Optimum], results: Results, scheme: str) -> Interval:
    """Where an optimum lies, log₂ η."""
    found = find(results.runs, scheme)
    return Interval(found.x, found.x_lo, found.x_hi)


def eps_table(results: Results, digits: int = 2) -> str:
    """What a constant ε costs against one scaled with the gradients: a row per size of ε."""
    rows = []
    for eps, title in (("default", "10⁻⁸"), ("large", "large")):
        gap = said(loss_digits(digits), tables.eps_difference, results, eps)
        rows.append({"ε": title, "constant less scaled, nats": gap})
    return table(rows)


def optima_table(results: Results, digits: int = 2) -> str:
    """The best η and the loss there at every value: a row per axis, scheme and value."""
    rows = []
    for axis, about in AXES.items():
        for scheme in SCHEMES:
            try:
                found = tables.optima(results.runs, axis, scheme)
            except NotMeasured:
                continue
            for value, best in found.items():
                row = {"axis": about.title, "scheme": NAMES[scheme], "value": str(value)}
                row["log₂ η* [95 %]"] = cell(best, "x", digits)
                row["loss there, nats [95 %]"] = cell(best, "loss", loss_digits(digits))
                rows.append(row | {"note": best.reason})
    return table(rows)


def takeaways(verdicts: Sequence[Verdict]) -> str:
    """What to take from the study: over what η was seen to stay, to move, and what is open."""
    by_verdict: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.id in CARRIED:
            over, scheme = CARRIED[verdict.id]
            place = f"{over} ({scheme}) {takeaway.link(verdict.id)}"
            by_verdict.setdefault(verdict.verdict, []).append(place)
    said_of = {
        "holds": "η stays within half an octave over",
        "fails": "η moves by more than half an octave over",
    }
    found = (
        f"{said_of.get(kind, f'Open ({kind}):')} {', '.join(places)}."
        for kind, places in sorted(by_verdict.items(), key=lambda one: one[0] not in said_of)
    )
    return takeaway.box([*found, *takeaway.items(verdicts, SUMS)], BECAUSE)
