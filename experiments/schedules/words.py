"""What the study ``schedules`` says in words: sentences and Markdown tables from its records.

``digits`` sets the decimals; losses have one more, and below two, as at smoke, no intervals are
shown. ``main`` is the budget at which all schedules were compared.
"""

from __future__ import annotations

import math

from umup.lab import report, words
from umup.lab.absent import NotMeasured
from umup.lab.records import Results
from umup.lab.report import ABSENT, known, said, several, text_of
from umup.lab.words import cell, nats, trained, word
from umup.text import decimals

from . import results as tables
from .results import SHARE, TITLES, WSD


def texts(results: Results, main: int, digits: int = 2) -> dict[str, str]:
    """Name → text, for captions and the answer.

    Nats, at the main budget, each at its own best η: ``gap_SCHEDULE`` above cosine (``_mup`` for
    μP), ``root`` of 1 − √x above linear decay, ``share_5``, ``share_10``, ``share_20`` of these
    decay shares above 30 %. The ladder: ``one_rate`` its log₂ η, ``ladder_SCHEDULE`` its largest
    gap to cosine, ``ladder_own`` to WSD at its own best η, ``saved`` in per cent. Octaves:
    ``slope_SCHEDULE`` per doubling of the budget, ``eta_gap`` and ``eta_gap_mup`` of WSD above
    cosine; ``short_SCHEDULE``: nats that the shortest budget's η costs at the longest.
    ``budgets``: the shortest and the longest.
    """
    at_main = {"against": "cosine", "steps": main}
    wsd = {"schedule": "wsd", "against": "wsd", "steps": main}
    compared, forked = {"schedule": ("linear", "two_step", *WSD)}, {"schedule": WSD}
    shares = {"share": {"5": 0.05, "10": 0.1, "20": 0.2}}
    named = {
        "gap_{schedule}{scheme}": word(tables.gap, nats, compared, **at_main),
        "root": word(tables.gap, nats, **wsd | {"schedule": "wsd_sqrt"}),
        "share_{share}": word(tables.gap, nats, shares, against_share=0.3, **wsd),
        "ladder_{schedule}": word(tables.ladder_gap, nats, forked, against="cosine"),
        "ladder_own": word(tables.ladder_gap, nats, against="wsd"),
        "slope_{schedule}": word(tables.horizon_slope, factor=2),
        "short_{schedule}": word(tables.short_rate_cost, nats, factor=2),
        "eta_gap{scheme}": word(tables.optimum_gap, schedule="wsd", **at_main),
    }
    axes = {"scheme": {"": "umup", "_mup": "mup"}, "schedule": ("cosine", *WSD)}
    ladder = several(("one_rate", "budgets", "saved"), _ladder, results)
    return words.texts(named, results, digits, **axes) | ladder


def _ladder(results: Results) -> tuple[str, str, str]:
    """The ladder's one η, its budgets and what it saves."""
    rate, rungs = tables.one_rate(tables.losses(results))
    saved = decimals(tables.saved(results).value, 0)
    return decimals(rate, 1), f"{min(rungs)} to {max(rungs)}", saved


def answer(results: Results, main: int, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    t = texts(results, main, digits)
    return (
        f"At equal tokens ({main} steps, u-μP, each at its own best η) the held-out loss above "
        f"cosine's is, in nats per token: WSD with linear decay {t['gap_wsd']}, with 1 − √x "
        f"{t['gap_wsd_sqrt']}, two-step {t['gap_two_step']}, linear {t['gap_linear']}. One plateau "
        f"with one η, from which budgets of {t['budgets']} steps fork, saves {t['saved']} % of the "
        f"steps and ends at most {t['ladder_wsd']} above cosine from scratch at its best. The best "
        f"η moves by {t['slope_cosine']} octaves per doubling of the budget under cosine and by "
        f"{t['slope_wsd']} under WSD; from cosine to WSD by {t['eta_gap']}."
    )


def what_ran(results: Results) -> str:
    """How many runs from scratch, plateaus and forks there are, and of what."""
    ladders, runs = tables.ladders(results), results.runs
    forks = sum(len(rung["loss"]) for rungs in ladders.get("rungs", []) for rung in rungs)
    seeds = max((int(n) for n in ladders.get("seeds", [])), default=0)
    steps = sum(int(row["trained"]) * int(row["seeds"]) for row in ladders.to_dict("records"))
    kind = f"runs from scratch ({int(runs['steps'].sum())} steps)"
    return (
        f"{len(ladders)} plateaus of {seeds} seeds, {forks} decays forked from them ({steps} steps "
        f"in all). {trained(runs, kind)}"
    )


@report.worded
def schedules_table(results: Results, main: int, digits: int = 2) -> str:
    """Every schedule at the main budget: best η, the loss there, and how far above cosine."""
    table, fine = tables.losses(results), report.loss_digits(digits)
    rows = []
    for line in tables.lines(table):
        if line.steps != main or (line.share and not math.isclose(line.share, SHARE)):
            continue
        o = tables.optimum(table, line)
        gap = said(fine, tables.gap, results, line.schedule, "cosine", main, line.scheme)
        row = {"scheme": report.TITLES[line.scheme], "schedule": TITLES[line.schedule]}
        row["log₂ η* [95 %]"] = cell(o, "x", digits)
        row["held-out loss, nats [95 %]"] = cell(o, "loss", fine)
        row["above cosine [95 %]"] = "–" if line.schedule == "cosine" else gap
        rows.append(row | {"note": o.reason})
    if not rows:
        raise NotMeasured(f"no run of {main} steps is on record")
    return words.table(rows)


@report.worded
def ladder_table(results: Results, digits: int = 2) -> str:
    """Every budget: cosine's best η and loss, and how far above it the ladder ends."""
    table, fine = tables.losses(results), report.loss_digits(digits)
    rate, rungs = tables.one_rate(table)

    @known
    def above(kind: str, steps: int) -> str:
        gaps = tables.ladder_gaps(results, "cosine", kind)
        if steps not in gaps:
            raise NotMeasured(f"no {TITLES[kind]} of {steps} steps")
        return text_of(gaps[steps], fine)

    cosine, wsd = (tables.horizon_optima(results, kind) for kind in ("cosine", "wsd"))
    rows = []
    for steps in sorted(rungs):
        w, c = wsd[steps], cosine.get(steps)
        own = said(fine, tables.gap, results, "wsd", "cosine", steps)
        row = {"steps": steps, "log₂ η*, cosine": cell(c, "x", digits) if c else ABSENT}
        row["log₂ η*, WSD"] = cell(w, "x", digits)
        row["cosine, nats"] = cell(c, "loss", fine) if c else ABSENT
        row["WSD at its own η, above it"] = own
        row[f"ladder at log₂ η = {decimals(rate, 1)}"] = above("wsd", steps)
        row["ladder of 1 − √x"] = above("wsd_sqrt", steps)
        rows.append(row)
    return words.table(rows)
