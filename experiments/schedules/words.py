"""What the study ``schedules`` says in words: sentences and Markdown tables from its records.

``digits`` sets the decimals; losses have one more, and below two, as at smoke, no intervals are
shown. ``main`` is the budget at which all schedules were compared.
"""

from __future__ import annotations

import math

import pandas as pd

from umup.lab import report
from umup.lab.absent import NotMeasured
from umup.lab.records import Results
from umup.lab.report import ABSENT, known, said, several, text_of
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
    fine = report.loss_digits(digits)
    out = {}
    for kind in ("linear", "two_step", *WSD):
        for scheme, end in (("umup", ""), ("mup", "_mup")):
            out[f"gap_{kind}{end}"] = said(fine, tables.gap, results, kind, "cosine", main, scheme)
    out["root"] = said(fine, tables.gap, results, "wsd_sqrt", "wsd", main)
    for share in (0.05, 0.1, 0.2):
        out[f"share_{100 * share:g}"] = said(
            fine, tables.gap, results, "wsd", "wsd", main, share=share, against_share=0.3
        )
    for kind in WSD:
        out[f"ladder_{kind}"] = said(fine, tables.ladder_gap, results, "cosine", kind)
    out["ladder_own"] = said(fine, tables.ladder_gap, results, "wsd")
    out |= several(("one_rate", "budgets", "saved"), _ladder, results)
    for kind in ("cosine", *WSD):
        out[f"slope_{kind}"] = said(digits, tables.horizon_slope, results, kind, 2)
        out[f"short_{kind}"] = said(fine, tables.short_rate_cost, results, kind, 2)
    for scheme, end in (("umup", ""), ("mup", "_mup")):
        out[f"eta_gap{end}"] = said(
            digits, tables.optimum_gap, results, "wsd", "cosine", main, scheme
        )
    return out


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
        f"cosine's is, in nats a token: WSD with linear decay {t['gap_wsd']}, with 1 − √x "
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
    text = f"{len(ladders)} plateaus of {seeds} seeds, {forks} decays forked from them"
    if runs.empty:
        return f"{text}; no runs from scratch."
    first, diverged = runs.iloc[0], int((runs["status"] == "diverged").sum())
    return (
        f"{text} ({steps} steps in all); {len(runs)} runs from scratch ({int(runs['steps'].sum())} "
        f"steps), {diverged} of them diverged. Width {first['d_model']}, {first['n_layers']} "
        f"layers, {first['batch_size']} sequences of {first['seq_len']} tokens a step."
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
        rows.append({
            "scheme": report.TITLES[line.scheme], "schedule": TITLES[line.schedule],
            "lr": report.interval(o.x, o.x_lo, o.x_hi, digits),
            "loss": report.interval(o.loss, o.loss_lo, o.loss_hi, fine),
            "gap": "–" if line.schedule == "cosine" else gap, "note": o.reason,
        })  # fmt: skip
    if not rows:
        raise NotMeasured(f"no run of {main} steps is on record")
    columns = {"scheme": "scheme", "schedule": "schedule", "lr": "log₂ η* [95 %]",
               "loss": "held-out loss, nats [95 %]", "gap": "above cosine [95 %]",
               "note": "note"}  # fmt: skip
    return report.markdown(pd.DataFrame(rows), columns)


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
        rows.append({
            "steps": steps, "wsd_lr": report.interval(w.x, w.x_lo, w.x_hi, digits),
            "cosine_lr": report.interval(c.x, c.x_lo, c.x_hi, digits) if c else ABSENT,
            "cosine": report.interval(c.loss, c.loss_lo, c.loss_hi, fine) if c else ABSENT,
            "own": said(fine, tables.gap, results, "wsd", "cosine", steps),
            **{kind: above(kind, steps) for kind in WSD},
        })  # fmt: skip
    columns = {"steps": "steps", "cosine_lr": "log₂ η*, cosine", "wsd_lr": "log₂ η*, WSD",
               "cosine": "cosine, nats", "own": "WSD at its own η, above it",
               "wsd": f"ladder at log₂ η = {decimals(rate, 1)}",
               "wsd_sqrt": "ladder of 1 − √x"}  # fmt: skip
    return report.markdown(pd.DataFrame(rows), columns)
