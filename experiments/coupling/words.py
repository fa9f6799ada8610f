"""What the study ``coupling`` says in words: sentences and Markdown tables from its records."""

from __future__ import annotations

import numpy as np

from umup.lab import report, words
from umup.lab.absent import otherwise
from umup.lab.hp_search import SYMBOLS
from umup.lab.records import Results
from umup.lab.report import known, text_of, worded
from umup.lab.words import nats, word
from umup.text import decimals

from . import results as tables
from .results import KINDS, SCHEMES

WORDS = {
    # nats per token, means over pairs
    "{kind}_{scheme}": word(tables.mean_cost, nats),
    "difference_{kind}": word(tables.difference, nats),
    "without_init": word(tables.mean_cost, nats, scheme="mup", without="sigma_init"),
    # octaves per octave, of the pairs that the paper names
    "slope_emb": word(tables.slope, scheme="mup", hp="eta_emb", other="sigma_init"),
    "slope_attn": word(tables.slope, scheme="mup", hp="eta", other="alpha_attn_softmax"),
    "slope_attn_umup": word(tables.slope, scheme="umup", hp="eta", other="alpha_attn_softmax"),
}


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions name: name → text.

    As ``WORDS`` has them; and ``strongest_SCHEME``, the pair of the highest cost with it.
    """
    named = words.texts(WORDS, results, digits, kind=KINDS, scheme=SCHEMES)
    return named | {f"strongest_{s}": _strongest(results, s, digits) for s in SCHEMES}


@known
def _strongest(results: Results, scheme: str, digits: int) -> str:
    (a, b), measured = tables.strongest(results, scheme)
    return f"{SYMBOLS[a]} with {SYMBOLS[b]} ({nats(measured, digits)})"


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    t = texts(results, digits)
    return (
        f"{_less(results)}. The best value of a hyperparameter at another value of a second one "
        f"costs, mean over all pairs and in nats per token, {t['crossed_mup']} under μP and "
        f"{t['crossed_umup']} under u-μP, if one seed chooses and another reads: μP minus u-μP is "
        f"{t['difference_crossed']}. Without the pairs of σ_init, which u-μP lacks, μP's is "
        f"{t['without_init']}. Chosen and read in the same runs, as the paper does, it is "
        f"{t['naive_mup']} and {t['naive_umup']}. The costliest pairs are {t['strongest_mup']} "
        f"under μP and {t['strongest_umup']} under u-μP."
    )


@otherwise(lambda missing: "Whether u-μP's hyperparameters are less coupled is not measured")
def _less(results: Results) -> str:
    """Whether the costs of the schemes differ, by the interval of their difference."""
    gap = tables.difference(results)
    if gap.lo > 0:
        return "u-μP's hyperparameters are less coupled than μP's"
    return "u-μP's hyperparameters are " + (
        "more coupled than μP's" if gap.hi < 0 else "as coupled as μP's, as far as these runs tell"
    )


@worded
def what_ran(results: Results) -> str:
    """How many runs, of what, on what, and how many grids they make."""
    lost = " and ".join(_grids(results, scheme) for scheme in SCHEMES)
    return f"{words.trained(results.runs)} Complete grids: {lost}."


@otherwise(lambda missing: f"none ({missing})")
def _grids(results: Results, scheme: str) -> str:
    found = tables.grids(results, scheme)
    n, m = len(found[0].x), len(found[0].y)
    return f"{len(found)} of {n} × {m} under {report.TITLES[scheme]}"


def pairs_table(results: Results, digits: int = 2) -> str:
    """Every pair, costliest first within its scheme: the cost, the paper's reading, the control."""
    rows = []
    for scheme in SCHEMES:
        rows += _rows(results, scheme, digits)
    return words.table(rows)


@otherwise(lambda missing: [])
def _rows(results: Results, scheme: str, digits: int) -> list[dict[str, str]]:
    by_kind = {kind: tables.pair_costs(results, scheme, kind) for kind in KINDS}
    crossed, fine = by_kind["crossed"], report.loss_digits(digits)
    lost = {(g.a, g.b): int(np.isnan(g.loss).sum()) for g in tables.grids(results, scheme)}
    return [
        {
            "scheme": report.TITLES[scheme],
            "pair": f"{SYMBOLS[pair[0]]}, {SYMBOLS[pair[1]]}",
            "cost, nats [95 %]": text_of(crossed[pair], fine),
            "same seed": decimals(by_kind["naive"][pair].value, fine),
            "control": decimals(by_kind["floor"][pair].value, fine),
            "diverged": str(lost[pair]),
        }
        for pair in sorted(crossed, key=lambda p: -crossed[p].value)
    ]
