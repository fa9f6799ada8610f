"""What the study `residual_tau` says in words: sentences and Markdown tables from its records.

``digits`` sets the decimals; below two, as at smoke, no intervals are shown.
"""

from __future__ import annotations

import math

import pandas as pd

from umup import report
from umup.claims import NotMeasured, format_number
from umup.laws import Interval
from umup.records import Results
from umup.rules import residual_taus
from umup.studies import residual_tau_tables as tables
from umup.studies.residual_tau_lemma import CONVENTIONS, shares
from umup.studies.residual_tau_tables import ARMS


def _text(interval: Interval, digits: int) -> str:
    return report.interval(interval.value, interval.lo, interval.hi, digits)


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """Name → text, for captions.

    ``shift_ARM``: octaves of the optimum over the measured depths; ``stream`` and
    ``stream_control``: the furthest σ of u-μP's skip stream, long and at T = 1; ``common``: share
    of the last attention branch that all positions have in common, in percent; ``emb_CONVENTION``:
    the embedding's exact share at the largest depth, in percent; ``depth``: that depth;
    ``printed_distance``: RMS distance of the printed equation's output from the nearest depth-μP
    network's, at that depth.
    """
    drifts = tables.drifts(results)
    out = {
        f"shift_{arm}": _text(drifts[arm].shift, digits) if arm in drifts else "not measured"
        for arm in ARMS
    }
    for name, seq_len in (("stream", None), ("stream_control", 1)):
        try:
            out[name] = _text(tables.stream(results, "derived", seq_len=seq_len), digits)
        except NotMeasured:
            out[name] = "not measured"
    walks = tables.at_default(tables.walks(results, "derived"))
    if len(walks):
        last = walks.loc[walks["n_layers"].idxmax()]
        depth = int(last["n_layers"])
        shared = [100 * seed[-1] for seed in last["common"]]
        out["depth"], out["common"] = str(depth), format_number(sum(shared) / len(shared), 0)
        for convention in CONVENTIONS:
            taus = [float(t) for t in residual_taus(depth, convention=convention)]
            out[f"emb_{convention}"] = format_number(100 * shares(taus).embedding, 0)
    lemma = results.table("lemma") if len(results.points) else pd.DataFrame()
    if len(lemma):
        printed = lemma[lemma["convention"] == "printed"]
        deep = printed.loc[printed["n_layers"].idxmax()]
        ends = min(deep["own_distance"]), max(deep["own_distance"])
        out["printed_distance"] = " to ".join(format_number(e, digits) for e in ends)
    return out


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    found, drifts = texts(results, digits), tables.drifts(results)
    parts = []
    if "depth" in found:
        parts.append(
            "With the derived τ or the library's a unit-scaled network is a plain depth-μP one, "
            "to rounding; with the printed equation it is none. At initialization with "
            f"independent tokens the skip stream's furthest σ under u-μP is {found['stream']} "
            f"(at T = 1, where every branch has unit scale: {found['stream_control']})."
        )
    if drifts:
        depths = sorted({n for fits in tables.optima(results).values() for n in fits})
        span = f"{depths[-1] / depths[0]:g}×"
        moved = ", ".join(
            f"{ARMS[arm].title}: {_text(drift.shift, digits)}" for arm, drift in drifts.items()
        )
        parts.append(f"Over {span} in depth the best learning rate moves, in octaves: {moved}.")
    return " ".join(parts) or "Nothing is measured yet."


def what_ran(results: Results) -> str:
    """How many networks, walks and training runs there are."""
    points, runs = results.points, results.runs
    counts = points["what"].value_counts() if len(points) else {}
    lemma = results.table("lemma") if len(points) else pd.DataFrame()
    networks = int(lemma["error"].map(len).sum()) if len(lemma) else 0
    diverged = int((runs["status"] == "diverged").sum()) if len(runs) else 0
    text = (
        f"{networks} random networks for the lemma; {counts.get('walk', 0)} settings walked at "
        f"initialization and {counts.get('trained', 0)} after training; {len(runs)} training runs, "
        f"{diverged} of them diverged"
    )
    if runs.empty:
        return f"{text}."
    first, depths = runs.iloc[0], ", ".join(str(n) for n in sorted(runs["n_layers"].unique()))
    return (
        f"{text}: width {first['d_model']}, depths {depths}, {first['batch_size']} sequences of "
        f"{first['seq_len']} tokens a step, {first['steps']} steps, up to "
        f"{runs['seed'].nunique()} seeds."
    )


def realised_table(results: Results, digits: int = 2) -> str:
    """σ(residual)/σ(embedding) and σ(attention)/σ(FFN) at the output, α = 1: exact and measured."""
    control, long = tables.realised(results, 1), tables.realised(results)
    rows = []
    in_order = sorted(
        tables.at_default(control).to_dict("records"),
        key=lambda row: (tables.ORDER[row["arm"]], row["n_layers"]),
    )
    for row in in_order:
        same = long[(long["arm"] == row["arm"]) & (long["n_layers"] == row["n_layers"])]
        same = tables.at_default(same)
        depth = int(row["n_layers"])
        taus = [float(t) for t in residual_taus(depth, convention=row["arm"])]
        exact = shares(taus)
        ratio = math.sqrt((exact.attention + exact.ffn) / exact.embedding)
        cells = {"arm": row["arm"], "depth": depth, "exact": format_number(ratio, digits)}
        for name, table in (("control", row), ("long", same.iloc[0] if len(same) else None)):
            for what in ("residual", "attention"):
                cells[f"{name}_{what}"] = "" if table is None else _ratio(table, what, digits)
        rows.append(cells)
    if not rows:
        return "No walks are on record."
    columns = {
        "arm": "τ", "depth": "N", "exact": "residual/embedding, exact",
        "control_residual": "T = 1", "long_residual": "full sequence",
        "control_attention": "attention/FFN, T = 1", "long_attention": "full sequence",
    }  # fmt: skip
    return report.markdown(pd.DataFrame(rows), columns)


def _ratio(row, what: str, digits: int) -> str:
    return report.interval(row[what], row[f"{what}_lo"], row[f"{what}_hi"], digits)


def optima_table(results: Results, digits: int = 2) -> str:
    """Fitted optima: one row an arm and depth."""
    decimals = report.loss_digits(digits)
    rows = [
        {
            "arm": ARMS[arm].title, "depth": depth,
            "lr": report.interval(o.x, o.x_lo, o.x_hi, digits),
            "loss": report.interval(o.loss, o.loss_lo, o.loss_hi, decimals),
            "runs": o.n_points, "note": o.reason,
        }
        for arm, fits in tables.optima(results).items() for depth, o in fits.items()
    ]  # fmt: skip
    if not rows:
        return "No run is on record."
    columns = {
        "arm": "scheme", "depth": "N", "lr": "log₂ η* [95 %]",
        "loss": "loss there, nats [95 %]", "runs": "runs", "note": "note",
    }  # fmt: skip
    return report.markdown(pd.DataFrame(rows), columns)
