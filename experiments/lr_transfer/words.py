"""What this study's page says: sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from umup import laws
from umup.lab import report, tables, words
from umup.lab.absent import otherwise, required
from umup.lab.records import Results
from umup.laws import Interval
from umup.text import decimals

from . import results as quantities


@report.worded
def what_ran(results: Results) -> str:
    """One sentence: how many runs, of what, on what."""
    runs = required(results.runs, report.NO_RUNS)
    first = runs.iloc[0]
    widths = words.listed(runs["d_model"])
    shape = f"{first['n_layers']} layers, heads of {first['d_head']}, widths {widths}"
    return words.trained(runs, shape=shape)


def drift_texts(results: Results, schemes: Sequence[str], digits: int = 2) -> dict[str, str]:
    """Scheme → ``slope [lo, hi]`` in octaves per doubling of width, at the main horizon.

    A scheme whose optimum was not measured at two widths has the text "not measured".
    """
    drifts = tables.drifts(results.runs)
    measured = {
        r["scheme"]: report.interval(r["slope"], r["slope_lo"], r["slope_hi"], digits)
        for r in drifts.to_dict("records")
        if r["steps"] == tables.main_horizon(results.runs)
    }
    return {scheme: measured.get(scheme, report.ABSENT) for scheme in schemes}


def optima_table(results: Results, digits: int = 2) -> str:
    """Fitted optima: one row per scheme, horizon and width."""
    labels = {"scheme": "scheme", "steps": "steps", "d_model": "width"}
    return report.optima_table(tables.optima(results.runs), labels, digits)


def default_table(results: Results, digits: int = 2) -> str:
    """Best losses with HPs at their defaults: u-μP minus the others, paired by seed."""
    finer = report.loss_digits(digits)
    differences = tables.default_differences(results.runs)
    rows = [
        {
            "pair": f"u-μP − {report.TITLES[d['against']]}",
            "steps": d["steps"],
            "width": d["d_model"],
            "difference, nats [95 %]": report.interval(
                d["difference"], d["difference_lo"], d["difference_hi"], finer
            ),
            "seed pairs": d["n"],
        }
        for d in differences.to_dict("records")
    ]
    return _table(rows)


def validation_table(results: Results, digits: int = 2) -> str:
    """Held-out loss at each scheme's best learning rate, in nats per token and bits per byte.

    At the main horizon; the mean over seeds and, in brackets, their range.
    """
    runs, finer = results.runs, report.loss_digits(digits)
    rows = []
    for b in tables.default_losses(runs).to_dict("records"):
        if b["steps"] != tables.main_horizon(runs):
            continue
        at = runs[(runs["lr"] == 2.0 ** b["log2_lr"]) & (runs["status"] == "ok")]
        for name in tables.GROUP:
            at = at[at[name] == b[name]]
        nats, bits = (
            report.interval(at[c].mean(), at[c].min(), at[c].max(), finer)
            for c in ("val_loss", "val_bits_per_byte")
        )
        rows.append(
            {
                "scheme": report.TITLES[b["scheme"]],
                "width": b["d_model"],
                "nats per token [range]": nats,
                "bits per byte [range]": bits,
                "seeds": len(at),
            }
        )
    return _table(rows)


def price_table(results: Results, schemes: Sequence[str], digits: int = 2) -> str:
    """One row per scheme: the price of the narrow and of the short η in nats, and the basin."""
    runs, finer = results.runs, report.loss_digits(digits)
    widths = sorted(runs["d_model"].unique()) if len(runs) else []
    horizons = runs.groupby("d_model")["steps"].nunique() if len(runs) else pd.Series(dtype=int)
    width = int(horizons.idxmax()) if len(horizons) else 0

    def basins(results: Results, scheme: str) -> Interval:
        return laws.mean_interval([quantities.basin(results, scheme, int(w)) for w in widths])

    said = [
        {
            "scheme": report.TITLES[scheme],
            "price of the narrow, nats": report.said(
                finer, quantities.price_of_narrow, results, scheme, factor=2
            ),
            "price of the short, nats": report.said(
                finer, quantities.price_of_short, results, scheme, d_model=width, factor=2
            ),
            "basin, octaves": report.said(digits, basins, results, scheme),
        }
        for scheme in schemes
    ]
    return _table(said)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """``report.markdown`` of rows that are named by their headings."""
    table = pd.DataFrame(rows)
    return report.markdown(table, {name: name for name in table})


def answer(results: Results, schemes: Sequence[str], digits: int = 2) -> str:
    """The study's answer in one paragraph: how far each optimum moves, and whose loss is lowest."""
    return f"{_moves(results, schemes, digits)} {_lowest(results, digits)}"


@otherwise(lambda missing: f"How far the best learning rate moves is {report.ABSENT}: {missing}.")
def _moves(results: Results, schemes: Sequence[str], digits: int) -> str:
    runs = required(results.runs, report.NO_RUNS)
    drifts = tables.drifts(runs)
    drifts = drifts[drifts["steps"] == tables.main_horizon(runs)]
    drifts = required(drifts[drifts["scheme"].isin(list(schemes))], "no optimum at two widths")
    moves: dict[int, list[str]] = {}
    for d in sorted(drifts.to_dict("records"), key=lambda d: list(schemes).index(d["scheme"])):
        shift = report.interval(d["shift"], d["shift_lo"], d["shift_hi"], digits)
        parts = moves.setdefault(int(d["d_model_max"] / d["d_model_min"]), [])
        parts.append(f"{report.TITLES[d['scheme']]}'s by {shift} octaves")
    return " ".join(
        f"Over {span}× in width the best learning rate moves: {', '.join(parts)}."
        for span, parts in moves.items()
    )


@otherwise(lambda missing: f"The best loss is {report.ABSENT}: {missing}.")
def _lowest(results: Results, digits: int) -> str:
    runs = required(results.runs, report.NO_RUNS)
    best, steps = tables.default_losses(runs), tables.main_horizon(runs)
    best = required(best[best["steps"] == steps], "every learning rate has a run that diverged")
    width = int(best["d_model"].max())
    losses = ", ".join(
        f"{report.TITLES[b['scheme']]} {decimals(b['loss'], report.loss_digits(digits))}"
        for b in best[best["d_model"] == width].sort_values("loss").to_dict("records")
    )
    return f"Best loss at width {width} after {steps} steps, nats per token: {losses}."
