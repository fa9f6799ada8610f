"""What the study ``attention_scale`` says in words: sentences and Markdown tables."""

from __future__ import annotations

import pandas as pd

from umup.lab.absent import required
from umup.lab.records import Results
from umup.lab.report import ABSENT, NO_RUNS, loss_digits, said, text_of, worded
from umup.lab.words import cell, listed, nats, table, texts, trained, word
from umup.laws import Interval
from umup.text import decimals

from . import results as tables
from .results import PER_D, PER_ROOT, SMALLEST, TITLES


def _peak(results: Results) -> pd.Series:
    """The row of the largest exponent of q·k under u-μP with 1/d along training."""
    exponents = tables.exponents(results.runs)
    exponents = required(exponents[exponents["scheme"] == PER_D], "no probed runs")
    return exponents.loc[exponents["exponent"].idxmax()]


def _shift(results: Results, hp: str, rule: str) -> Interval:
    return tables.drift(results.runs, hp, rule).shift


def _local(results: Results, fixed: str) -> str:
    """The exponents between neighbouring head sizes at the end: "0.22, 0.62, 0.96"."""
    table = tables.probed(results, PER_D, fixed)
    slopes = tables.local_slopes(table[table["step"] == table["step"].max()], "qk")
    return ", ".join(decimals(slope.value, 2) for slope in slopes.values()) or ABSENT


def _nats_a_token(measured: Interval, digits: int) -> str:
    return f"{nats(measured, digits)} nats per token"


RULES = {"d": PER_D, "root": PER_ROOT}
WORDS = {
    # exponents
    "{at}_{scheme}": word(tables.exponent),
    "peak": word(lambda results: Interval.of(_peak(results), "exponent")),
    "peak_step": word(lambda results: str(int(_peak(results)["step"]))),
    "local": word(_local, fixed="width"),
    "local_heads": word(_local, fixed="heads"),
    # exponents from the head size SMALLEST up
    "{fixed}_{scheme}": word(tables.exponent, at="end", smallest=SMALLEST),
    "heads_difference": word(tables.heads_difference, scheme=PER_D, smallest=SMALLEST),
    "independent": word(tables.layer_exponent, correlation=0.0, pairs="earlier"),
    "aligned": word(tables.layer_exponent, correlation=1.0, pairs="self"),
    # octaves over the measured head sizes
    "shift_{hp}_{rule}": word(_shift),
    # nats per doubling
    "entropy_{scheme}": word(tables.entropy_slope, text_of, {"scheme": RULES}),
    # of the largest head
    "cosine": word(tables.final, scheme=PER_D, name="cosine"),
    "mean_cosine": word(tables.final, scheme=PER_D, name="cosine_mean"),
    "difference": word(tables.rule_difference, _nats_a_token),
}


def numbers(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions name: name → text, see ``WORDS``."""
    axes = {"at": ("start", "end"), "scheme": list(TITLES), "hp": ("alpha", "eta"), "rule": RULES}
    return texts(WORDS, results, digits, fixed=("width", "heads"), **axes)


@worded
def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    text = numbers(results, digits)
    d_heads = tables.held(required(results.runs, NO_RUNS))["d_head"]
    span = f"{d_heads.max() // d_heads.min()}×"
    return (
        f"Over {span} in head size at one width, the RMS of q·k grows with exponent "
        f"{text[f'start_{PER_D}']} at initialization and {text[f'end_{PER_D}']} at the end of "
        f"training (u-μP with 1/d; with 1/√d {text[f'end_{PER_ROOT}']}); from d = {SMALLEST} up, "
        f"{text[f'width_{PER_D}']} at fixed width and {text[f'heads_{PER_D}']} with a fixed number "
        f"of heads. The best α_attn moves by {text['shift_alpha_d']} octaves under 1/d "
        f"and by {text['shift_alpha_root']} under 1/√d; the best η by {text['shift_eta_d']} and "
        f"{text['shift_eta_root']}. At α = 1 and the largest head, the loss under 1/d minus that "
        f"under 1/√d is {text['difference']}."
    )


def what_ran(results: Results) -> str:
    """How many runs, of what, on what, and how many layers at initialization."""
    runs = results.runs
    at_width, with_heads = tables.held(runs), tables.held(runs, "heads")
    shape = (
        f"width {listed(at_width['d_model'])}, {listed(runs['n_layers'])} layers, heads of "
        f"{listed(at_width['d_head'])} (the number of heads is width / size)"
    )
    if len(with_heads):
        n_heads = listed(with_heads["d_model"] // with_heads["d_head"])
        shape += f"; and {n_heads} heads of {listed(with_heads['d_head'])} (width {n_heads} · size)"
    probed = int((runs["probe_steps"].map(len) > 0).sum())
    beside = f"{probed} runs are probed, and {len(results.points)} layers at initialization."
    return f"{trained(runs, shape=shape)} {beside}"


def growth_table(results: Results, digits: int = 2) -> str:
    """Start and end of training: exponents of q·k and of the cosine in d_head, by scheme."""
    rows = []
    for scheme, title in TITLES.items():
        exponents = {
            f"{heading}, {end}": said(digits, tables.exponent, results, scheme, end, name)
            for name, heading in (("qk", "q·k"), ("cosine", "cosine"))
            for end in ("start", "end")
        }
        if set(exponents.values()) != {ABSENT}:
            rows.append({"scheme": title} | exponents)
    return table(rows)


def readings_table(results: Results, digits: int = 2) -> str:
    """The exponent of q·k at the end of training by scheme, and what is fixed meanwhile."""
    rows = []
    for scheme, title in TITLES.items():
        of = (tables.exponent, results, scheme, "end", "qk", 2)
        both = {
            "fixed width": said(digits, *of, "width", SMALLEST),
            "fixed number of heads": said(digits, *of, "heads", SMALLEST),
        }
        apart = said(digits, tables.heads_difference, results, scheme, SMALLEST)
        if set(both.values()) != {ABSENT}:
            rows.append({"scheme": title} | both | {"mean local slopes, heads − width": apart})
    return table(rows)


def end_table(results: Results, digits: int = 2) -> str:
    """The end of training by scheme and head size: means over the seeds."""
    headings = {
        "logit": "RMS logit",
        "product": "mean q_i k_i",
        "cosine": "RMS cosine",
        "cosine_mean": "mean cosine, magnitude",
        "entropy": "entropy, nats",
    }
    pooled = tables.pooled(results.runs)
    end = pooled[pooled["step"] == pooled["step"].max()]
    means = end.groupby(["scheme", "d_head"])[list(headings)].mean()
    order = sorted(means.index, key=lambda at: (list(TITLES).index(at[0]), at[1]))
    return table(
        {"scheme": TITLES[scheme], "d": d_head}
        | {headings[c]: decimals(means.at[(scheme, d_head), c], digits) for c in headings}
        for scheme, d_head in order
    )


def optima_table(results: Results, digits: int = 2) -> str:
    """Fitted optima: one row per hyperparameter, division and head size."""
    return table(
        {
            "HP": {"alpha": "α_attn", "eta": "η"}[optimum["hp"]],
            "scheme": TITLES[optimum["scheme"]],
            "d": optimum["d_head"],
            "log₂ of the optimum [95 %]": cell(optimum, "x", digits),
            "loss there, nats [95 %]": cell(optimum, "loss", loss_digits(digits)),
            "runs": optimum["n"],
            "note": optimum["reason"],
        }
        for optimum in tables.optima_table(results.runs).to_dict("records")
    )
