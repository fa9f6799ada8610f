"""What the study ``embedding_lr`` says in words: sentences and Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from umup.lab import claims, takeaway
from umup.lab import tables as shared
from umup.lab.absent import NotMeasured, required
from umup.lab.claims import Verdict
from umup.lab.records import Results
from umup.lab.report import ABSENT, NO_RUNS, known, loss_digits, optima_table, said, worded
from umup.lab.words import cell, nats, table, texts, trained, word
from umup.text import decimals

from . import results as tables
from .figures import PAIRS, STUDY
from .results import ARMS, CONSTANT, RULE_TITLES, RULES, SP, TUNED

WORDS = {
    "gap_mup": word(tables.difference, nats, arm="mup", against="umup"),
    "gap_tuned": word(tables.difference, nats, arm=TUNED, against="umup"),
    "gap_const": word(tables.difference, nats, arm=CONSTANT, against="umup"),
    "gap_sp": word(tables.difference, nats, arm=SP, against="mup"),
    "drift_sp": word(tables.eta_drift, arm=SP),
    "tuned": word(lambda results: decimals(tables.tuned(results.runs), 0)),
    "largest": word(lambda results: str(tables.widths(results)[-1])),
}
TAKEAWAYS = {
    "umup-vs-tuned-mup": {
        "holds": "Before u-μP is compared with μP, tune μP's η̂_emb: their losses are then one.",
        "fails": "At the largest width, tuning η̂_emb does not make μP's loss u-μP's.",
    },
    "rule-transfers": {
        "holds": "Under u-μP's rule the best η̂_emb of a narrow model serves a wide one.",
        "fails": "Under u-μP's rule the best η̂_emb moves with width: tune it again.",
    },
    "mup-emb-transfers": {
        "holds": "Under μP the best η̂_emb of a narrow model serves a wide one.",
        "fails": "Under μP the best η̂_emb moves with width: tune it again, or let it follow the "
        "other rule.",
    },
    "constant-rule-costs": {
        "holds": "u-μP's rule pays at the largest width of this study.",
        "fails": "At the largest width of this study u-μP's rule does not pay yet.",
    },
    "sp-emb-gap": {
        "holds": "SP with η ∝ 1/width for all but the embedding gives up nothing to μP here.",
        "fails": "SP with η ∝ 1/width for all but the embedding stays above μP.",
    },
    "bpe-default-costs": {
        "holds": "With a vocabulary of 4096 tuning μP's η̂_emb matters more than with bytes.",
        "fails": "With a vocabulary of 4096 μP's default η̂_emb costs no more than with bytes.",
    },
    "bpe-umup-vs-tuned-mup": {
        "holds": "With a vocabulary of 4096, too, u-μP's and tuned μP's losses are one.",
        "fails": "With a vocabulary of 4096 tuning η̂_emb does not make μP's loss u-μP's.",
    },
}
"""Claim → what to do, by its verdict; whatever else the verdict is, that it is open."""

BECAUSE = (
    "our μP has SP's embedding at the base width, $\\sigma_\\text{init} = 1$ in absolute terms, so "
    "that u-μP's advantage over μP's defaults depends on that choice. These are short runs of "
    "small models, most of them with a vocabulary of bytes; what a vocabulary of 4096 changes was "
    "asked at two widths alone."
)
"""Why, and what the study does not show."""


def numbers(results: Results, digits: int = 2, factor: float = 8) -> dict[str, str]:
    """The numbers that captions name: name → text.

    Octaves: ``shift_RULE`` of the best η̂_emb over a ``factor`` in width, ``drift_sp`` of SP's best
    η per doubling; ``tuned`` is log₂ of μP's η̂_emb. Nats per token at the ``largest`` width:
    ``gap_mup`` and ``gap_tuned`` above u-μP, ``gap_const`` of the constant rule above the other,
    ``gap_sp`` of SP above μP.
    """
    words = WORDS | {"shift_{rule}": word(tables.emb_shift, factor=factor)}
    return texts(words, results, digits, rule=list(RULES))


@worded
def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one sentence: is u-μP's advantage more than its embedding's rate?"""
    widths = required(results.runs, NO_RUNS)["d_model"]
    ends = sorted({int(widths.min()), int(widths.max())})
    parts = []
    for width in ends:
        default, tuned = (
            said(loss_digits(digits), tables.difference, results, arm, "umup", width)
            for arm in ("mup", TUNED)
        )
        parts.append(f"at width {width} by {default} with default HPs and by {tuned} tuned")
    level = known(lambda: f"2^{decimals(tables.tuned(results.runs), 0)}")()
    return (
        f"{_verdict(results, ends)}: μP's loss lies above u-μP's, in nats per token, "
        f"{' and '.join(parts)} (η̂_emb alone, at width {ends[0]}: {level})."
    )


def _verdict(results: Results, widths: Sequence[int]) -> str:
    """Yes, no or undecided at each of the widths, by the bound of ``umup-vs-tuned-mup``."""
    bound = claims.bound(STUDY, "umup-vs-tuned-mup")
    try:
        measured = [tables.difference(results, TUNED, "umup", width) for width in widths]
    except NotMeasured:
        return ABSENT.capitalize()
    found = ["more" if g.lo > bound else "no more" if g.hi <= bound else "" for g in measured]
    if len(set(found)) == 1:
        whole = {"more": "Yes, it is more", "no more": "No, it is no more", "": "Undecided"}
        return whole[found[0]]
    each = [f"{said or 'undecided'} at width {w}" for w, said in zip(widths, found, strict=True)]
    return f"It is {' and '.join(each)}"


def what_ran(results: Results) -> str:
    """How many runs, of what, on what."""
    return trained(results.runs)


def emb_table(results: Results, digits: int = 2) -> str:
    """The best η̂_emb in the unit of every rule: one row per rule and width."""
    rows = []
    for rule in RULES:
        try:
            best = tables.emb_optima(results.runs, rule)
        except NotMeasured:
            continue
        for width, o in best.items():
            place = {"rule": RULE_TITLES[rule], "width": width}
            place["log₂ of the best η̂_emb [95 %]"] = cell(o, "x", digits)
            loss = cell(o, "loss", loss_digits(digits))
            reason = o.reason.replace("learning rate", "value")
            rows.append(place | {"loss there, nats [95 %]": loss, "note": reason})
    return table(rows)


def eta_table(results: Results, digits: int = 2) -> str:
    """Fitted optima of η: one row per arm and width."""
    found = []
    for arm in ARMS:
        try:
            found.append(shared.optima(tables.eta_curves(results.runs, arm)))
        except NotMeasured:
            continue
    if not found:
        return f"{ABSENT.capitalize()}."
    optima = pd.concat(found)
    optima["scheme"] = optima["scheme"].map(lambda arm: ARMS[arm].title)
    return optima_table(optima, {"scheme": "arm", "d_model": "width"}, digits)


def pairs_table(results: Results, digits: int = 2) -> str:
    """The paired differences: one row per pair of arms and width."""
    rows = []
    for arm, against, title in PAIRS:
        try:
            found = tables.differences(results.runs, arm, against)
        except NotMeasured:
            continue
        for row in found.to_dict("records"):
            gap = cell(row, "difference", loss_digits(digits))
            place = {"difference": title, "width": row["d_model"]}
            rows.append(place | {"nats per token [95 %]": gap, "seed pairs": row["n"]})
    return table(rows)


def takeaways(verdicts: Sequence[Verdict]) -> str:
    """What to take from the study: one item per claim that advice hangs on, and why."""
    return takeaway.box(takeaway.items(verdicts, TAKEAWAYS), BECAUSE)
