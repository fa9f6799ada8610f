"""What the study `residual_tau` says in words: sentences and Markdown tables from its records.

``digits`` sets the decimals; below two, as at smoke, no intervals are shown.
"""

from __future__ import annotations

import math

import pandas as pd

from umup.lab import report, words
from umup.lab.absent import otherwise, required
from umup.lab.records import Results
from umup.lab.report import ABSENT, known, said, text_of, worded
from umup.lab.words import cell, trained, word
from umup.rules import residual_taus
from umup.text import decimals

from . import results as tables
from .lemma import CONVENTIONS, shares
from .results import ARMS


def _deepest(results: Results) -> pd.Series:
    """The walk of the deepest u-μP model with the derived τ."""
    walks = tables.at_default(tables.walks(results, "derived"))
    return walks.loc[walks["n_layers"].idxmax()]


def _common(results: Results) -> str:
    shared = [100 * seed[-1] for seed in _deepest(results)["common"]]
    return decimals(sum(shared) / len(shared), 0)


def _embedding(results: Results, convention: str) -> str:
    taus = residual_taus(int(_deepest(results)["n_layers"]), convention=convention)
    return decimals(100 * shares([float(t) for t in taus]).embedding, 0)


WORDS = {
    "shift_{arm}": word(lambda results, arm: tables.drift(results, arm).shift),
    "stream": word(tables.stream, arm="derived"),
    "stream_control": word(tables.stream, arm="derived", seq_len=1),
    "depth": word(lambda results: str(_deepest(results)["n_layers"])),
    "common": word(_common),
    "emb_{convention}": word(_embedding),
}


def texts(results: Results, digits: int = 2) -> dict[str, str]:
    """Name → text, for captions.

    ``shift_ARM``: octaves of the optimum over the measured depths; ``stream`` and
    ``stream_control``: the furthest σ of u-μP's skip stream, long and at T = 1; ``common``: share
    of the last attention branch that all positions have in common, in percent; ``emb_CONVENTION``:
    the embedding's exact share at the largest depth, in percent; ``depth``: that depth;
    ``printed_distance``: RMS distance of the printed equation's output from the nearest depth-μP
    network's, at that depth.
    """
    out = words.texts(WORDS, results, digits, arm=list(ARMS), convention=CONVENTIONS)
    return out | {"printed_distance": _distance(results, digits)}


@known
def _distance(results: Results, digits: int) -> str:
    table = tables.networks(results)
    printed = required(table[table["convention"] == "printed"], "no networks with τ printed")
    deep = printed.loc[printed["n_layers"].idxmax()]
    ends = min(deep["own_distance"]), max(deep["own_distance"])
    return " to ".join(decimals(e, digits) for e in ends)


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    return " ".join(part(results, digits) for part in (_lemma, _stream, _moves))


@otherwise(lambda missing: f"Whether the lemma holds is {ABSENT}: {missing}.")
def _lemma(results: Results, digits: int) -> str:
    for convention in CONVENTIONS:
        tables.lemma_error(results, convention)
    return (
        "With the derived τ or the library's a unit-scaled network is a plain depth-μP one, "
        "to rounding; with the printed equation it is none."
    )


@otherwise(lambda missing: f"The scale of the skip stream is {ABSENT}: {missing}.")
def _stream(results: Results, digits: int) -> str:
    furthest = text_of(tables.stream(results, "derived"), digits)
    control = said(digits, tables.stream, results, "derived", seq_len=1)
    return (
        f"At initialization with independent tokens the skip stream's furthest σ under u-μP is "
        f"{furthest} (at T = 1, where every branch has unit scale: {control})."
    )


@otherwise(lambda missing: f"How far the best learning rate moves is {ABSENT}: {missing}.")
def _moves(results: Results, digits: int) -> str:
    drifts = tables.drifts(results)
    depths = sorted({n for fits in tables.optima(results).values() for n in fits})
    span = f"{depths[-1] / depths[0]:g}×"
    moved = ", ".join(
        f"{ARMS[arm].title}: {text_of(drift.shift, digits)}" for arm, drift in drifts.items()
    )
    return f"Over {span} in depth the best learning rate moves, in octaves: {moved}."


def what_ran(results: Results) -> str:
    """How many networks, walks and training runs there are."""
    points, runs = results.points, results.runs
    counts = points["what"].value_counts()
    networks = sum(len(errors) for errors in results.table("lemma").get("error", []))
    return (
        f"{networks} random networks for the lemma; {counts.get('walk', 0)} settings walked at "
        f"initialization and {counts.get('trained', 0)} after training. "
        f"{trained(runs, 'training runs')}"
    )


@worded
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
        same = same[(same["alpha"] == 1.0) & (same["ratio"] == 1.0)]
        depth = int(row["n_layers"])
        taus = [float(t) for t in residual_taus(depth, convention=row["arm"])]
        exact = shares(taus)
        ratio = math.sqrt((exact.attention + exact.ffn) / exact.embedding)
        cells = {"arm": row["arm"], "depth": depth, "exact": decimals(ratio, digits)}
        for name, table in (("control", row), ("long", same.iloc[0] if len(same) else None)):
            for what in ("residual", "attention"):
                cells[f"{name}_{what}"] = "" if table is None else cell(table, what, digits)
        rows.append(cells)
    columns = {
        "arm": "τ",
        "depth": "N",
        "exact": "residual/embedding, exact",
        "control_residual": "T = 1",
        "long_residual": "full sequence",
        "control_attention": "attention/FFN, T = 1",
        "long_attention": "full sequence",
    }
    return report.markdown(pd.DataFrame(rows), columns)


@worded
def optima_table(results: Results, digits: int = 2) -> str:
    """Fitted optima: one row per arm and depth."""
    return words.table(
        {
            "scheme": ARMS[arm].title,
            "N": depth,
            "log₂ η* [95 %]": cell(optimum, "x", digits),
            "loss there, nats [95 %]": cell(optimum, "loss", report.loss_digits(digits)),
            "runs": optimum.n_points,
            "note": optimum.reason,
        }
        for arm, fits in tables.optima(results).items()
        for depth, optimum in fits.items()
    )
