"""What a study says in words: sentences and Markdown tables made from its records.

Notebooks show these instead of prose with numbers typed in. ``digits`` sets the decimals, so that
what a notebook stores is robust to the last bits of another CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from umup import schemes, text
from umup.lab import tables
from umup.lab.absent import NotMeasured, otherwise, required
from umup.laws import Interval
from umup.slopes import CoordCheck
from umup.text import decimals

ABSENT = "not measured"
"""What stands for a number that the records do not have."""

NO_RUNS = "no runs are on record"

known = otherwise(lambda missing: ABSENT)
"""Decorator of a function that gives a number as text: ``ABSENT`` where it is not measured."""

worded = otherwise(lambda missing: f"{ABSENT.capitalize()}: {missing}.")
"""Decorator of a function that gives a sentence or table: it says what is not measured."""


def several(
    names: Sequence[str], tell: Callable[..., Sequence[str]], *args: Any, **named: Any
) -> dict[str, str]:
    """What ``tell`` says under each of the names, or ``ABSENT`` under all of them."""
    texts = otherwise(lambda missing: [ABSENT] * len(names))(tell)(*args, **named)
    return dict(zip(names, texts, strict=True))


TITLES = schemes.TITLES


def interval(value: float, lo: float, hi: float, digits: int = 2) -> str:
    """``value [lo, hi]``, or the value alone where the data do not bound it.

    With fewer than two digits, as at smoke, no interval: one from two seeds says nothing.
    """
    text = decimals(value, digits)
    if digits < 2 or not (math.isfinite(lo) and math.isfinite(hi)):
        return text
    return f"{text} [{decimals(lo, digits)}, {decimals(hi, digits)}]"


def said(digits: int, quantity: Callable[..., Interval], *args, **named) -> str:
    """A claim's quantity of these arguments as `interval`, or ``ABSENT``."""
    return known(lambda: text_of(quantity(*args, **named), digits))()


def text_of(measured: Interval, digits: int = 2) -> str:
    """`interval` of a measurement: infinite where runs diverged, ``ABSENT`` where none is left."""
    if math.isnan(measured.value):
        return ABSENT
    if math.isinf(measured.value):
        return f"{decimals(measured.value)} (diverged)"
    return interval(measured.value, measured.lo, measured.hi, digits)


def loss_digits(digits: int) -> int:
    """Decimals of a loss: one more than of octaves, but for smoke's coarse numbers."""
    return digits + 1 if digits >= 2 else digits


def markdown(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """A Markdown table of ``columns`` (name in the table → heading).

    Columns without any text are left out, and so is a number that is not there; a table without
    rows is said to be not measured.
    """
    if table.empty:
        return f"{ABSENT.capitalize()}."
    table = table.astype(object).where(table.notna(), "")
    columns = {name: title for name, title in columns.items() if (table[name] != "").any()}
    rows = ([row[name] for name in columns] for row in table.to_dict("records"))
    return text.markdown(list(columns.values()), rows)


@known
def tally(check: CoordCheck) -> str:
    """How many rules a coordinate check found broken, ``3 of 17``, or ``ABSENT``."""
    if not check.findings:
        raise NotMeasured("no rule was judged")
    return f"{len(check.broken)} of {len(check.findings)}"


def glue(name: str, text: str) -> None:
    """Name a text so that captions and pages can show it: MyST's ``{glue:text}`` role.

    What ``myst_nb.glue`` does, without its package, which a GPU box need not have.
    """
    from IPython.display import display

    prefix = "application/papermill.record/"
    metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    display({f"{prefix}text/plain": repr(text)}, raw=True, metadata=metadata)


@worded
def what_ran(runs: pd.DataFrame) -> str:
    """One sentence: how many runs, of what, on what."""
    first = required(runs, NO_RUNS).iloc[0]
    diverged = int((runs["status"] == "diverged").sum())
    widths = ", ".join(str(w) for w in sorted(runs["d_model"].unique()))
    steps = ", ".join(str(s) for s in sorted(runs["steps"].unique()))
    return (
        f"{len(runs)} runs, {diverged} of them diverged: {first['n_layers']} layers, heads of "
        f"{first['d_head']}, widths {widths}; {first['batch_size']} sequences of "
        f"{first['seq_len']} tokens a step, {steps} steps; up to {runs['seed'].nunique()} seeds."
    )


def drift_texts(runs: pd.DataFrame, schemes: Sequence[str], digits: int = 2) -> dict[str, str]:
    """Scheme → ``slope [lo, hi]`` in octaves per doubling of width, at the main horizon.

    A scheme whose optimum was not measured at two widths has the text "not measured".
    """
    drifts = tables.drifts(runs)
    measured = {
        r["scheme"]: interval(r["slope"], r["slope_lo"], r["slope_hi"], digits)
        for r in drifts.to_dict("records")
        if r["steps"] == tables.main_horizon(runs)
    }
    return {scheme: measured.get(scheme, ABSENT) for scheme in schemes}


def optima_table(runs: pd.DataFrame, digits: int = 2) -> str:
    """Fitted optima: one row a scheme, horizon and width."""
    optima = tables.optima(runs)
    rows = [
        {
            "scheme": TITLES[o["scheme"]], "steps": o["steps"], "width": o["d_model"],
            "lr": interval(o["log2_lr"], o["log2_lr_lo"], o["log2_lr_hi"], digits),
            "loss": interval(o["loss"], o["loss_lo"], o["loss_hi"], loss_digits(digits)),
            "runs": o["n_points"], "note": o["reason"],
        }
        for o in optima.to_dict("records")
    ]  # fmt: skip
    return markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "steps": "steps", "width": "width", "lr": "log₂ η* [95 %]",
         "loss": "loss there, nats [95 %]", "runs": "runs", "note": "note"},
    )  # fmt: skip


def default_table(runs: pd.DataFrame, digits: int = 2) -> str:
    """Best losses with HPs at their defaults: u-μP minus the others, paired by seed."""
    differences = tables.default_differences(runs)
    rows = [
        {
            "pair": f"u-μP − {TITLES[d['against']]}", "steps": d["steps"], "width": d["d_model"],
            "difference": interval(
                d["difference"], d["difference_lo"], d["difference_hi"], loss_digits(digits)
            ),
            "n": d["n"],
        }
        for d in differences.to_dict("records")
    ]  # fmt: skip
    return markdown(
        pd.DataFrame(rows),
        {"pair": "pair", "steps": "steps", "width": "width",
         "difference": "difference, nats [95 %]", "n": "seed pairs"},
    )  # fmt: skip


def validation_table(runs: pd.DataFrame, digits: int = 2) -> str:
    """Held-out loss at each scheme's best learning rate, in nats a token and bits a byte.

    At the main horizon; the mean over seeds and, in brackets, their range.
    """
    rows = []
    for b in tables.default_losses(runs).to_dict("records"):
        if b["steps"] != tables.main_horizon(runs):
            continue
        at = runs[(runs["lr"] == 2.0 ** b["log2_lr"]) & (runs["status"] == "ok")]
        for name in tables.GROUP:
            at = at[at[name] == b[name]]
        nats, bits = (
            interval(at[c].mean(), at[c].min(), at[c].max(), loss_digits(digits))
            for c in ("val_loss", "val_bits_per_byte")
        )
        scheme = TITLES[b["scheme"]]
        rows.append({"scheme": scheme, "width": b["d_model"], "nats": nats, "bits": bits,
                     "n": len(at)})  # fmt: skip
    return markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "width": "width", "nats": "nats a token [range]",
         "bits": "bits a byte [range]", "n": "seeds"},
    )  # fmt: skip


def answer(runs: pd.DataFrame, schemes: Sequence[str], digits: int = 2) -> str:
    """The study's answer in one paragraph: how far each optimum moves, and whose loss is lowest."""
    return f"{_moves(runs, schemes, digits)} {_lowest(runs, digits)}"


@otherwise(lambda missing: f"How far the best learning rate moves is {ABSENT}: {missing}.")
def _moves(runs: pd.DataFrame, schemes: Sequence[str], digits: int) -> str:
    drifts = tables.drifts(required(runs, NO_RUNS))
    drifts = drifts[drifts["steps"] == tables.main_horizon(runs)]
    drifts = required(drifts[drifts["scheme"].isin(list(schemes))], "no optimum at two widths")
    moves: dict[int, list[str]] = {}
    for d in sorted(drifts.to_dict("records"), key=lambda d: list(schemes).index(d["scheme"])):
        shift = interval(d["shift"], d["shift_lo"], d["shift_hi"], digits)
        parts = moves.setdefault(int(d["d_model_max"] / d["d_model_min"]), [])
        parts.append(f"{TITLES[d['scheme']]}'s by {shift} octaves")
    return " ".join(
        f"Over {span}× in width the best learning rate moves: {', '.join(parts)}."
        for span, parts in moves.items()
    )


@otherwise(lambda missing: f"The best loss is {ABSENT}: {missing}.")
def _lowest(runs: pd.DataFrame, digits: int) -> str:
    best, steps = tables.default_losses(runs), tables.main_horizon(required(runs, NO_RUNS))
    best = required(best[best["steps"] == steps], "every learning rate has a run that diverged")
    width = int(best["d_model"].max())
    losses = ", ".join(
        f"{TITLES[b['scheme']]} {decimals(b['loss'], loss_digits(digits))}"
        for b in best[best["d_model"] == width].sort_values("loss").to_dict("records")
    )
    return f"Best loss at width {width} after {steps} steps, nats a token: {losses}."
