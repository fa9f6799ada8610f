"""What the page of the study ``coord_check`` says: sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from umup import slopes
from umup.lab import report, words
from umup.lab.absent import required
from umup.lab.records import Results
from umup.laws import Interval
from umup.text import decimals

from .results import NO_POINTS, TITLES, WHAT, fitted, last_block, last_step


@report.worded
def what_ran(results: Results) -> str:
    """One sentence: how many decoders, of what widths, at what η."""
    points = required(results.table(WHAT), NO_POINTS)
    first = points.iloc[0]
    widths = ", ".join(str(w) for w in sorted(points["d_model"].unique()))
    steps = ", ".join(str(s) for s in first["steps"])
    return (
        f"{len(points)} decoders: {first['n_layers']} blocks of {first['n_heads']} heads, widths "
        f"{widths}; {first['batch_size']} sequences of {first['seq_len']} tokens per step, "
        f"measured after {steps} steps of Adam at a constant η; {points['seed'].nunique()} seeds."
    )


def slope_text(
    table: pd.DataFrame,
    scheme: str,
    tensor: str,
    quantity: str,
    step: int,
    digits: int = 2,
    pace: str = "large",
) -> str:
    """One slope of ``fitted`` as ``value [lo, hi]``, or "not measured"."""
    at = table[
        (table["scheme"] == scheme)
        & (table["tensor"] == tensor)
        & (table["pace"] == pace)
        & (table["quantity"] == quantity)
        & (table["step"] == step)
    ]
    if at.empty:
        return report.ABSENT
    return report.text_of(Interval(*at.iloc[0][["slope", "lo", "hi"]]), digits)


@report.worded
def answer(found: Mapping[str, slopes.CoordCheck], digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    table = required(fitted(found), "no scheme at two widths is on record")
    step = last_step(table)
    main = ("sp", "mup", "umup")
    parts = [
        f"{slope_text(table, scheme, 'logits', 'change', step, digits)} under {TITLES[scheme]}"
        for scheme in main
    ]
    broken = [f"{TITLES[scheme]} {report.tally(found[scheme])}" for scheme in main]
    tolerance = next(iter(found.values())).tolerance
    text = (
        f"After {step} steps at the large η the change of the logits goes like a power of the "
        f"width, which should be 0: {', '.join(parts)}. Rules broken, all activations and "
        f"weights, at a tolerance of ±{tolerance:g}: {', '.join(broken)}."
    )
    blog = slope_text(table, "mup_readout_lr", "logits.readout", "change", 1, digits, "small")
    if blog != report.ABSENT:
        text += (
            " With a further 1/width on the readout's learning rate, its own part of the first "
            f"change goes like the power {blog}."
        )
    return text


def glued(found: Mapping[str, slopes.CoordCheck], step: int, digits: int = 2) -> dict[str, str]:
    """Name → slope, for captions: changes after ``step`` at the large η, the readout's first."""
    table = fitted(found)
    qk = f"{last_block(table)}.attn.qk"

    def text(scheme: str, tensor: str, at: int, pace: str = "large") -> str:
        return slope_text(table, scheme, tensor, "change", at, digits, pace)

    return {
        "coord_sp_logits": text("sp", "logits", step),
        "coord_mup_logits": text("mup", "logits", step),
        "coord_sp_qk": text("sp", qk, step),
        "coord_mup_qk": text("mup", qk, step),
        "coord_mup_readout": text("mup", "logits.readout", 1, "small"),
        "coord_blog_readout": text("mup_readout_lr", "logits.readout", 1, "small"),
        "coord_embed": slope_text(table, "umup", "embed", "update", 1, digits),
    }


def broken_table(found: Mapping[str, slopes.CoordCheck], digits: int = 2) -> str:
    """How many rules each scheme breaks, and its weights that break one, in Markdown."""
    rows = []
    for scheme, check in found.items():
        weights = [
            f"{f.tensor} {f.quantity} {decimals(f.slope.value, digits)}"
            for f in check.broken
            if f.kind == "weight"
        ]
        row = {"scheme": TITLES[scheme], "rules broken": report.tally(check)}
        rows.append(row | {"weights that break one, exponent": ", ".join(weights) or "none"})
    return words.table(rows)


def norms_table(found: Mapping[str, slopes.CoordCheck], digits: int = 2) -> str:
    """Slopes of the weights' norms at initialization, times multiplier, in Markdown."""
    table = fitted(found)
    at = table[(table["quantity"] == "norm") & (table["step"] == 0) & (table["pace"] == "large")]
    rows = []
    for scheme in found:
        own = at[at["scheme"] == scheme]
        numbers = [decimals(value, digits) for value in own["slope"]]
        rows.append({"scheme": TITLES[scheme]} | dict(zip(own["tensor"], numbers)))
    return words.table(rows)
