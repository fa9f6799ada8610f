"""What the study ``attention_scale`` says in words: sentences and Markdown tables."""

from __future__ import annotations

import pandas as pd

from umup.lab.absent import required
from umup.lab.records import Results
from umup.lab.report import ABSENT, NO_RUNS, interval, known, loss_digits, markdown, said, worded
from umup.laws import Interval
from umup.text import decimals

from . import results as tables
from .results import PER_D, PER_ROOT, TITLES


def _peak(results: Results) -> pd.Series:
    """The row of the largest exponent of q·k under u-μP with 1/d along training."""
    table = tables.exponents(results.runs)
    table = required(table[table["scheme"] == PER_D], "no probed runs")
    return table.loc[table["exponent"].idxmax()]


def numbers(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions name: name → text.

    ``start_SCHEME``, ``end_SCHEME`` (exponents), ``peak`` (the largest exponent of u-μP with 1/d),
    ``peak_step`` (when), ``shift_alpha_d``, ``shift_alpha_root``,
    ``shift_eta_d``, ``shift_eta_root`` (octaves over the measured head sizes), ``mean_cosine``,
    ``cosine`` (RMS, largest head), ``entropy_d``, ``entropy_root`` (nats a doubling), ``aligned``
    and ``independent`` (exponents of the layer), ``difference`` (nats).
    """
    out = {}
    for scheme in TITLES:
        for end in ("start", "end"):
            out[f"{end}_{scheme}"] = said(digits, tables.exponent, results, scheme, end)
    ends = ("exponent", "exponent_lo", "exponent_hi")
    out["peak"] = said(digits, lambda: Interval(*_peak(results)[list(ends)]))
    out["peak_step"] = known(lambda: str(int(_peak(results)["step"])))()
    for hp in ("alpha", "eta"):
        for name, scheme in (("d", PER_D), ("root", PER_ROOT)):
            out[f"shift_{hp}_{name}"] = said(
                digits, lambda hp=hp, scheme=scheme: tables.drift(results.runs, hp, scheme).shift
            )
    for name, scheme in (("d", PER_D), ("root", PER_ROOT)):
        out[f"entropy_{name}"] = said(digits, tables.entropy_slope, results, scheme)
    out["cosine"] = said(digits, tables.final, results, PER_D, "cosine")
    out["mean_cosine"] = said(digits, tables.final, results, PER_D, "cosine_mean")
    out["independent"] = said(digits, tables.layer_exponent, results, 0.0, "earlier")
    out["aligned"] = said(digits, tables.layer_exponent, results, 1.0, "self")
    difference = said(loss_digits(digits), tables.rule_difference, results)
    out["difference"] = f"{difference} nats a token" if difference != ABSENT else ABSENT
    return out


@worded
def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    text = numbers(results, digits)
    d_heads = required(results.runs, NO_RUNS)["d_head"]
    span = f"{d_heads.max() // d_heads.min()}×"
    return (
        f"Over {span} in head size, the RMS of q·k grows with exponent {text[f'start_{PER_D}']} at "
        f"initialization and {text[f'end_{PER_D}']} at the end of training (u-μP with 1/d; with "
        f"1/√d {text[f'end_{PER_ROOT}']}). The best α_attn moves by {text['shift_alpha_d']} "
        f"octaves under 1/d and by {text['shift_alpha_root']} under 1/√d; the best η by "
        f"{text['shift_eta_d']} and {text['shift_eta_root']}. At α = 1 and the largest head, the "
        f"loss under 1/d minus that under 1/√d is {text['difference']}."
    )


def what_ran(results: Results) -> str:
    """How many runs, of what, on what, and how many layers at initialization."""
    return f"{_trained(results.runs)} {len(results.points)} layers at initialization."


@worded
def _trained(runs: pd.DataFrame) -> str:
    first, probed = required(runs, NO_RUNS).iloc[0], int((runs["probe_steps"].map(len) > 0).sum())
    sizes = ", ".join(str(d) for d in sorted(runs["d_head"].unique()))
    return (
        f"{len(runs)} runs, {int((runs['status'] == 'diverged').sum())} of them diverged, {probed} "
        f"of them probed: width {first['d_model']}, {first['n_layers']} layers, heads of {sizes} "
        f"(the number of heads is width / size); {first['batch_size']} sequences of "
        f"{first['seq_len']} tokens a step, {first['steps']} steps; up to "
        f"{runs['seed'].nunique()} seeds."
    )


def growth_table(results: Results, digits: int = 2) -> str:
    """Start and end of training: exponents of q·k and of the cosine in d_head, a row a scheme."""
    rows = []
    for scheme in TITLES:
        row = {"scheme": TITLES[scheme]}
        for name in ("qk", "cosine"):
            for end in ("start", "end"):
                row[f"{name}_{end}"] = said(digits, tables.exponent, results, scheme, end, name)
        if set(row.values()) != {TITLES[scheme], ABSENT}:
            rows.append(row)
    return markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "qk_start": "q·k, start", "qk_end": "q·k, end",
         "cosine_start": "cosine, start", "cosine_end": "cosine, end"},
    )  # fmt: skip


def end_table(results: Results, digits: int = 2) -> str:
    """The end of training by scheme and head size: means over the seeds."""
    table = tables.pooled(results.runs)
    table = table[table["step"] == table["step"].max()]
    rows = []
    for scheme in [s for s in TITLES if s in set(table["scheme"])]:
        for d_head, at in table[table["scheme"] == scheme].groupby("d_head"):
            texts = {c: decimals(at[c].mean(), digits) for c in
                     ("logit", "product", "cosine", "cosine_mean", "entropy")}  # fmt: skip
            rows.append({"scheme": TITLES[scheme], "d_head": d_head} | texts)
    return markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "d_head": "d", "logit": "RMS logit", "product": "mean q_i k_i",
         "cosine": "RMS cosine", "cosine_mean": "mean cosine, magnitude",
         "entropy": "entropy, nats"},
    )  # fmt: skip


def optima_table(results: Results, digits: int = 2) -> str:
    """Fitted optima: one row a hyperparameter, division and head size."""
    rows = [
        {
            "hp": {"alpha": "α_attn", "eta": "η"}[o["hp"]], "scheme": TITLES[o["scheme"]],
            "d_head": o["d_head"], "x": interval(o["x"], o["x_lo"], o["x_hi"], digits),
            "loss": interval(o["loss"], o["loss_lo"], o["loss_hi"], loss_digits(digits)),
            "n": o["n"], "note": o["reason"],
        }
        for o in tables.optima_table(results.runs).to_dict("records")
    ]  # fmt: skip
    return markdown(
        pd.DataFrame(rows),
        {"hp": "HP", "scheme": "scheme", "d_head": "d", "x": "log₂ of the optimum [95 %]",
         "loss": "loss there, nats [95 %]", "n": "runs", "note": "note"},
    )  # fmt: skip
