"""What the study ``decay_transfer`` says in words: sentences and Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from umup.lab import claims, takeaway
from umup.lab.absent import NotMeasured
from umup.lab.claims import Verdict
from umup.lab.records import Results
from umup.lab.report import ABSENT, loss_digits, said, worded
from umup.lab.tables import NAMES
from umup.lab.words import cell, nats, table, texts, trained, word

from . import results as tables
from .figures import STUDY
from .results import ARMS

WORDS = {
    "shift_{arm}": word(tables.shift),
    "price_{arm}": word(tables.price, nats),
    "coupling": word(tables.shift_difference, arm="mup_coupled", against="mup_strong"),
    "strong": word(tables.difference, nats, arm="mup_strong", against="mup"),
}
TAKEAWAYS = {
    "mup-independent-transfers": {
        "holds": "With independent decay, carry μP's η over width.",
        "fails": "μP's best η moves over width even with independent decay: tune it again.",
    },
    "umup-independent-transfers": {
        "holds": "With independent decay, carry u-μP's η over width.",
        "fails": "u-μP's best η moves over width even with independent decay: tune it again.",
    },
    "mup-coupled-moves": {
        "holds": "Do not couple a strong decay to μP's η with one λ for all widths.",
        "fails": "Coupled decay, even strong, does not raise μP's best η by half an octave here.",
    },
    "mup-coupled-width-transfers": {
        "holds": "With coupled decay and λ in proportion to width, carry μP's η, too.",
        "fails": "λ in proportion to width does not mend coupled decay here.",
    },
    "sp-coupled-transfers": {
        "holds": "Strong decay alone makes SP's η transfer here.",
        "fails": "Strong coupled decay does not do what μP does: SP's best η still moves.",
    },
    "sp-long-warmup-transfers": {
        "holds": "A long warm-up alone makes SP's η transfer here.",
        "fails": "A long warm-up does not do what μP does: SP's best η still moves.",
    },
    "strong-decay-costs": {
        "holds": "Strong independent decay costs μP loss in these short runs.",
        "fails": "Strong decay costs little here.",
    },
}
"""Claim → what to do, by its verdict; whatever else the verdict is, that it is open."""

BECAUSE = (
    "a value of $\\lambda$ means nothing without the kind of decay. What counts is the share of "
    "a weight that is lost per step, $\\lambda$ or $\\eta f \\lambda$, times the steps of a run: "
    "decay that never adds up to 1 decides nothing, and these are short runs of small models, in "
    "which it has to be strong to do so."
)
"""Why, and what the study does not show."""


def numbers(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions name: name → text.

    ``shift_ARM``: octaves of the best η from the narrowest width to the widest; ``price_ARM``: what
    keeping it costs there, nats; ``coupling``: octaves by which coupled decay moves μP's best η
    more than independent decay as strong; ``strong``: nats that the latter costs.
    """
    return texts(WORDS, results, digits, arm=list(ARMS))


@worded
def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one sentence: does the kind of decay decide whether η transfers?"""
    widths = sorted({int(w) for w in tables.known(results.runs)["d_model"]})
    moves = ", ".join(
        f"{NAMES[scheme]}'s by {said(digits, tables.shift, results, scheme)} and by "
        f"{said(digits, tables.shift, results, f'{scheme}_coupled')}"
        for scheme in ("mup", "umup", "sp")
    )
    return (
        f"{_verdict(results)}: from width {widths[0]} to {widths[-1]} the best η moves, in octaves "
        f"with mild independent and with strong coupled decay, {moves}."
    )


def _verdict(results: Results) -> str:
    """Whether μP's η transfers with independent and moves with coupled decay, by the claims."""
    found = {v.id: v.verdict for v in claims.evaluate(STUDY, results)}
    kept, moved = (found[name] for name in ("mup-independent-transfers", "mup-coupled-moves"))
    if ABSENT in (kept, moved):
        return ABSENT.capitalize()
    return {
        ("holds", "holds"): "Yes, under μP it does",
        ("holds", "fails"): "No, under μP η rises by half an octave with neither decay",
        ("fails", "holds"): "No, under μP η moves with either decay",
        ("fails", "fails"): "No, under μP η moves with independent decay",
    }.get((kept, moved), "Undecided")


def what_ran(results: Results) -> str:
    """How many runs, of what, on what."""
    return trained(results.runs)


def arms_table(results: Results, digits: int = 2) -> str:
    """The best η of every arm at the ends, how far it moves, and what that costs: a row per arm."""
    rows = []
    for name, arm in ARMS.items():
        try:
            found = tables.optima(results.runs, name)
        except NotMeasured:
            continue
        row = {"arm": arm.name}
        row |= {f"log₂ η*, {width}": cell(best, "x", digits) for width, best in found.items()}
        row["shift, octaves"] = said(digits, tables.shift, results, name)
        row["price, nats"] = said(loss_digits(digits), tables.price, results, name)
        row["note"] = "; ".join(f"{w}: {best.reason}" for w, best in found.items() if best.edge)
        rows.append(row)
    return table(rows)


def takeaways(verdicts: Sequence[Verdict]) -> str:
    """What to take from the study: one item per claim that advice hangs on, and why."""
    return takeaway.box(takeaway.items(verdicts, TAKEAWAYS), BECAUSE)
