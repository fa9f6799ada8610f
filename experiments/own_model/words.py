"""What the study ``own_model`` says in words: sentences and Markdown tables."""

from __future__ import annotations

import math

from umup.lab import words
from umup.lab.records import Results
from umup.lab.report import ABSENT, loss_digits, tally, worded
from umup.lab.words import cell, nats, word
from umup.laws import Interval
from umup.text import decimals

from . import results as tables
from .results import NAMES, SCHEMES, title


def _broken(results: Results, model: str, scheme: str) -> str:
    return broken_counts(results).get((model, scheme, ""), ABSENT)


def _wrong_update(results: Results, model: str, wrong: str) -> Interval:
    return tables.update_slope(results, model, "mup", wrong, wrong)


READOUT = {"model": "mlp", "wrong": "readout.kernel"}
WORDS = {
    "shift_{model}_{scheme}": word(tables.eta_shift),
    "price_{model}_{scheme}": word(tables.price, nats),
    "widening_{model}_{scheme}": word(tables.widening, nats),
    "broken_{model}_{scheme}": word(_broken),
    "wrong_bias": word(_wrong_update, model="mlp", wrong="hidden.bias"),
    "wrong_gain": word(_wrong_update, model="vit", wrong="norm.scale"),
    "wrong_readout": word(_wrong_update, **READOUT),
    "wrong_shift": word(tables.eta_shift, scheme="mup", **READOUT),
    "wrong_cost": word(tables.wrong_role, nats, **READOUT),
}


def numbers(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions and the chapter name: name → text.

    ``shift_MODEL_SCHEME`` (octaves over 8× in width), ``price_MODEL_SCHEME`` and
    ``widening_MODEL_SCHEME`` (nats), ``broken_MODEL_SCHEME`` (of how many rules), ``wrong_bias``,
    ``wrong_gain`` and ``wrong_readout`` (exponents of width), ``wrong_shift`` (octaves) and
    ``wrong_cost`` (nats) of the readout.
    """
    return words.texts(WORDS, results, digits, model=list(NAMES), scheme=list(SCHEMES))


def broken_counts(results: Results) -> dict[tuple[str, str, str], str]:
    """(model, scheme, wrong) → ``3 of 17`` rules broken."""
    return {arm: tally(c) for arm, c in tables.checks(results, tables.TOLERANCE).items()}


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    text = numbers(results, digits)
    return (
        f"Over 8× in width the best η moves by {text['shift_mlp_mup']} octaves for the MLP and "
        f"{text['shift_vit_mup']} for the vision transformer under μP, by {text['shift_mlp_sp']} "
        f"and {text['shift_vit_sp']} under SP. Taking the η tuned at the base to the largest width "
        f"costs {text['price_mlp_mup']} and {text['price_vit_mup']} nats under μP, "
        f"{text['price_mlp_sp']} and {text['price_vit_sp']} under SP. Rules that the coordinate "
        f"check finds broken: {text['broken_mlp_mup']} and {text['broken_vit_mup']} under μP, "
        f"{text['broken_mlp_sp']} and {text['broken_vit_sp']} under SP."
    )


@worded
def what_ran(results: Results) -> str:
    """One sentence: how many models, of what widths, on how much."""
    table = tables.curves(results)
    parts = []
    for model, at in table.groupby("model"):
        widths = ", ".join(str(w) for w in sorted(at["width"].unique()))
        parts.append(f"{NAMES[str(model)]}s of width {widths} (batch {at['batch_size'].iloc[0]})")
    return (
        f"{len(table)} models, {int(table['loss'].isna().sum())} of them diverged: "
        f"{' and '.join(parts)}; {table['steps'].iloc[0]} steps of Adam, "
        f"at most {table['seed'].nunique()} seeds."
    )


@worded
def widths_table(results: Results, digits: int = 2) -> str:
    """One row per model, scheme and width: the optimum, its loss and accuracy, and the base's η."""
    table, rows, fine = tables.curves(results), [], loss_digits(digits)
    arms = table[["model", "scheme", "wrong"]].drop_duplicates().itertuples(index=False)
    for arm in sorted(arms, key=tables.place):
        own = tables.arm(results, *arm)
        for width, fit in tables.optima(own).items():
            at = own[own["width"] == width]
            best = at[at["seed"] == 0].nsmallest(1, "loss")["accuracy"].mean()
            there = tables.at_base_eta(own, width).mean()
            row = {"model": title(*arm), "width": width}
            row["best log₂ η"] = ABSENT if fit.edge else cell(fit, "x", digits)
            row["loss there, nats"] = decimals(fit.loss, fine)
            row["accuracy"] = decimals(best, digits)
            at_base = "diverges" if math.isinf(there) else decimals(there, fine)
            rows.append(row | {"loss at the base's η": at_base})
    return words.table(rows)


def checks_table(results: Results, digits: int = 2) -> str:
    """One row per coordinate check: rules broken, and the parameters whose update breaks one."""
    rows = []
    found = tables.checks(results, tables.TOLERANCE)
    for arm in sorted(found, key=tables.place):
        check = found[arm]
        updates = [
            f"{f.tensor} {decimals(f.slope.value, digits)}"
            for f in check.broken
            if f.kind == "weight" and f.quantity == "update"
        ]
        shown = ", ".join(updates[:4]) + f" and {len(updates) - 4} more" * (len(updates) > 4)
        row = {"model": title(*arm), "rules broken": tally(check)}
        row["undecided"] = str(len(check.undecided))
        rows.append(row | {"updates that break one, exponent of width": shown or "none"})
    return words.table(rows)
