"""What the study ``own_model`` says in words: sentences and Markdown tables."""

from __future__ import annotations

import math

import pandas as pd

from umup.lab.records import Results
from umup.lab.report import ABSENT, interval, loss_digits, markdown, said, tally, worded
from umup.text import decimals

from . import results as tables
from .results import NAMES, SCHEMES, title


def numbers(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions and the chapter name: name → text.

    ``shift_MODEL_SCHEME`` (octaves over 8× in width), ``price_MODEL_SCHEME`` and
    ``widening_MODEL_SCHEME`` (nats), ``broken_MODEL_SCHEME`` (of how many rules), ``wrong_bias``,
    ``wrong_gain`` and ``wrong_readout`` (exponents of width), ``wrong_shift`` (octaves) and
    ``wrong_cost`` (nats) of the readout.
    """
    nats, out = loss_digits(digits), {}
    counted = broken_counts(results)
    for model in NAMES:
        for scheme in SCHEMES:
            arm = f"{model}_{scheme}"
            out[f"shift_{arm}"] = said(digits, tables.eta_shift, results, model, scheme)
            out[f"price_{arm}"] = said(nats, tables.price, results, model, scheme)
            out[f"widening_{arm}"] = said(nats, tables.widening, results, model, scheme)
            out[f"broken_{arm}"] = counted.get((model, scheme, ""), ABSENT)
    for name, model, wrong in (
        ("bias", "mlp", "hidden.bias"), ("gain", "vit", "norm.scale"),
        ("readout", "mlp", "readout.kernel"),
    ):  # fmt: skip
        out[f"wrong_{name}"] = said(
            digits, tables.update_slope, results, model, "mup", wrong, wrong
        )
    out["wrong_shift"] = said(
        digits, tables.eta_shift, results, "mlp", "mup", wrong="readout.kernel"
    )
    out["wrong_cost"] = said(nats, tables.wrong_role, results, "mlp", "readout.kernel")
    return out


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
    """One row a model, scheme and width: the optimum, its loss and accuracy, and the base's η."""
    table, rows, nats = tables.curves(results), [], loss_digits(digits)
    arms = table[["model", "scheme", "wrong"]].drop_duplicates().itertuples(index=False)
    for arm in sorted(arms, key=tables.place):
        own = tables.arm(results, *arm)
        for width, fit in tables.optima(own).items():
            at = own[own["width"] == width]
            best = at[at["seed"] == 0].nsmallest(1, "loss")["accuracy"].mean()
            there = tables.at_base_eta(own, width).mean()
            rows.append({
                "arm": title(*arm), "width": width,
                "x": ABSENT if fit.edge else interval(fit.x, fit.x_lo, fit.x_hi, digits),
                "loss": decimals(fit.loss, nats),
                "accuracy": decimals(best, digits),
                "base": "diverges" if math.isinf(there) else decimals(there, nats),
            })  # fmt: skip
    return markdown(
        pd.DataFrame(rows),
        {"arm": "model", "width": "width", "x": "best log₂ η", "loss": "loss there, nats",
         "accuracy": "accuracy", "base": "loss at the base's η"},
    )  # fmt: skip


def checks_table(results: Results, digits: int = 2) -> str:
    """One row a coordinate check: rules broken, and the parameters whose update breaks one."""
    rows = []
    found = tables.checks(results, tables.TOLERANCE)
    for arm in sorted(found, key=tables.place):
        check = found[arm]
        updates = [
            f"{f.tensor} {decimals(f.slope.value, digits)}"
            for f in check.broken if f.kind == "weight" and f.quantity == "update"
        ]  # fmt: skip
        shown = ", ".join(updates[:4]) + f" and {len(updates) - 4} more" * (len(updates) > 4)
        rows.append({
            "arm": title(*arm), "n": tally(check),
            "undecided": str(len(check.undecided)), "updates": shown or "none",
        })  # fmt: skip
    return markdown(
        pd.DataFrame(rows),
        {"arm": "model", "n": "rules broken", "undecided": "undecided",
         "updates": "updates that break one, exponent of width"},
    )  # fmt: skip
