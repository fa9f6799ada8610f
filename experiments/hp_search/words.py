"""What the study ``hp_search`` says in words: sentences and Markdown tables from its records."""

from __future__ import annotations

from umup.lab import report, words
from umup.lab.absent import otherwise
from umup.lab.hp_search import SYMBOLS
from umup.lab.records import Results
from umup.lab.report import ABSENT, known, said
from umup.lab.words import nats, word
from umup.laws import Interval
from umup.text import decimals

from . import results as tables
from .results import ENDS, SCHEMES, SEARCHES

WITHIN = 0.03
"""Nats above the lowest loss of any search that count as near."""


def _needed(results: Results, scheme: str, search: str) -> str:
    count = tables.runs_needed(results, scheme, search, WITHIN)
    return str(count or f"more than {len(tables.searched(results, scheme, search))}")


def _spent(results: Results, scheme: str, end: str) -> str:
    return str(tables.spent(results, scheme, end))


def _against_random(results: Results, scheme: str, end: str) -> Interval:
    return tables.gap(results, scheme, end, "random")


WORDS = {
    # held-out nats per token above where the random search ends
    "{end}_{scheme}": word(_against_random, nats),
    # of the combination above the best single line, and on the wide model above the best default
    "combine_{scheme}": word(tables.gap, nats, of="combined", against="line"),
    "wide_{scheme}": word(tables.wide_gap, nats),
    # runs
    "spent_{end}_{scheme}": word(_spent),
    "needed_{search}_{scheme}": word(_needed),
}


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions name: name → text, see ``WORDS``."""
    axes = {"scheme": SCHEMES, "end": ENDS.keys(), "search": SEARCHES.keys()}
    return words.texts(WORDS, results, digits, **axes)


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    t = texts(results, digits)
    return " ".join(_of_scheme(t, scheme) for scheme in SCHEMES)


def _of_scheme(t: dict[str, str], scheme: str) -> str:
    title = report.TITLES[scheme]
    return (
        f"{title}: held-out loss minus that of the best of {t[f'spent_random_{scheme}']} random "
        f"points, in nats per token: after a line over η ({t[f'spent_eta_{scheme}']} runs) "
        f"{t[f'eta_{scheme}']}, with the best of every line combined "
        f"({t[f'spent_combined_{scheme}']} runs) {t[f'combined_{scheme}']}. The combination minus "
        f"the best single line: {t[f'combine_{scheme}']}. Runs until the training loss is within "
        f"{WITHIN:g} nats of the lowest of all: {t[f'needed_independent_{scheme}']} of the "
        f"independent search, {t[f'needed_rounds_{scheme}']} in three rounds, "
        f"{t[f'needed_random_{scheme}']} random ones (median)."
    )


@report.worded
def advice(results: Results) -> str:
    """How many runs a user should spend, and by which search: a sentence per scheme."""
    return " ".join(_advice(results, scheme) for scheme in SCHEMES)


def _advice(results: Results, scheme: str) -> str:
    counts = {name: tables.runs_needed(results, scheme, name, WITHIN) for name in SEARCHES}
    needed = {name: count for name, count in counts.items() if count}  # of one search at least
    cheapest = min(needed, key=needed.__getitem__)
    count, line = needed[cheapest], tables.spent(results, scheme, "eta")
    near = f"within {WITHIN:g} nats of the best that any of the searches found"
    if count <= line and cheapest == "independent":
        return f"{report.TITLES[scheme]}: the line over η is enough; its {line} runs come {near}."
    return (
        f"{report.TITLES[scheme]}: spend {count} runs on the {SEARCHES[cheapest]} search, which is "
        f"the first to come {near}."
    )


@report.worded
def what_ran(results: Results) -> str:
    """How many runs, of what, on what."""
    return words.trained(results.runs)


def ends_table(results: Results, digits: int = 2) -> str:
    """Where every search ends: its runs, its loss on further seeds, and what that is against."""
    fine = report.loss_digits(digits)
    rows = [
        {
            "scheme": report.TITLES[scheme],
            "search": title,
            "runs": known(_spent)(results, scheme, name),
            "held-out loss, nats": _level(results, scheme, name, fine),
            "above random [95 %]": "–"
            if name == "random"
            else said(fine, tables.gap, results, scheme, name, "random"),
        }
        for scheme in SCHEMES
        for name, title in ENDS.items()
    ]
    return words.table(row for row in rows if row["runs"] != ABSENT)


@known
def _level(results: Results, scheme: str, name: str, digits: int) -> str:
    point = tables.end(results, scheme, name)
    found = tables.narrow(results, scheme)
    return decimals(float(tables.judged(found, point, ENDS[name]).mean()), digits)


def values_table(results: Results, digits: int = 2) -> str:
    """The value of every hyperparameter, log2, where each search ends."""
    rows = [row for scheme in SCHEMES for row in _values(results, scheme, digits)]
    return words.table(rows)


@otherwise(lambda missing: [])
def _values(results: Results, scheme: str, digits: int) -> list[dict[str, str]]:
    space = tables.narrow(results, scheme).space
    found = {}
    for name in ("combined", "rounds", "random"):
        point = otherwise(lambda _: None)(tables.end)(results, scheme, name)
        if point is not None:
            found[ENDS[name]] = space.log2(point)
    default = space.log2(space.default())
    return [
        {
            "scheme": report.TITLES[scheme],
            "hyperparameter": SYMBOLS[hp],
            "range": f"{space.grid(hp)[0]:g} to {space.grid(hp)[-1]:g}",
            "default": "–" if hp == "eta" else f"{default[hp]:g}",
            **{title: decimals(point[hp], digits) for title, point in found.items()},
        }
        for hp in space.names
    ]
