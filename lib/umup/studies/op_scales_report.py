"""What the study ``op_scales`` says in words and tables; every number comes from its points."""

from __future__ import annotations

import pandas as pd

from umup import report
from umup.claims import NotMeasured, format_number
from umup.records import Results
from umup.studies.op_scales import FIELDS, cells

TITLES = {
    "attention": "attention", "gated_silu": "gated SiLU", "softmax": "softmax",
    "cross_entropy": "cross-entropy", "readout": "readout", "linear": "linear",
    "rms_norm": "RMSNorm", "rope": "RoPE", "residual": "residual add", "embedding": "embedding",
}  # fmt: skip


def what_ran(results: Results) -> str:
    """One sentence: how many measurements, of what, with how many seeds."""
    points = results.points
    seeds = max(len(v) for v in results.table("gated_silu")["out"])
    types = " and ".join(sorted(set(results.table("attention")["dtype"])))
    kinds = points["what"].nunique()
    return f"{len(points)} measurements of {kinds} kinds, each with {seeds} seeds, in {types}."


def _span(rows: pd.DataFrame, field: str, digits: int) -> str:
    lo, hi = (format_number(v, digits) for v in (rows[field].min(), rows[field].max()))
    return lo if lo == hi else f"{lo} to {hi}"


def texts(results: Results, digits: int) -> dict[str, str]:
    """Numbers for captions: name → text."""
    attention, silu = cells(results, "attention"), cells(results, "gated_silu")
    usual = attention[(attention["seq_len"] >= 64) & attention["alpha"].between(0.25, 4)]
    plain = attention[(attention["seq_len"] == attention["seq_len"].max())]
    plain = plain[plain["alpha"] == 1.0]
    wide = cells(results, "readout").sort_values(["vocab_size", "d_model"])
    wide = wide[wide["vocab_size"] == wide["vocab_size"].max()]
    width = wide["d_model"].iloc[(wide["d_model"] - 256).abs().argmin()]  # the paper's
    narrow = wide[wide["d_model"] == width].set_index("backward")
    inputs = cells(results, "attention_inputs")
    shared = inputs.iloc[(inputs["correlation"] - 0.1).abs().argmin()]
    rows = attention[attention["seq_len"] == attention["seq_len"].max()]
    row = rows[rows["alpha"] == 1.0].iloc[-1]
    return {
        "out": _span(usual, "out", digits),
        "out_all": _span(attention[attention["seq_len"] > 1], "out", digits),
        "derived": _span(attention[attention["logit_variance"] <= 0.25], "out_derived", digits),
        "beta": _span(plain, "dq_beta", digits),
        "dq": _span(attention[attention["seq_len"] > 1], "dq", digits),
        "silu": _span(silu, "out", digits),
        "silu_gate": _span(silu, "dgate", digits),
        "softmax": _span(cells(results, "softmax"), "out", digits),
        "softmax_dx": _span(cells(results, "softmax"), "dx", digits),
        "readout_out": format_number(narrow.loc["fan_out", "dx"], digits),
        "readout_in": format_number(narrow.loc["fan_in", "dx"], digits),
        "readout_d": str(width),
        "readout_v": str(wide["vocab_size"].max()),
        "rho": f"{shared['correlation']:g}",
        "shared": format_number(shared["out"], digits),
        "shared_t": str(shared["seq_len"]),
        "first_row": format_number(row["by_position"][0], digits),
        "last_row": format_number(row["by_position"][-1], digits),
    }


def answer(results: Results, digits: int) -> str:
    """The study's answer in one paragraph."""
    t = texts(results, digits)
    return (
        f"Mostly. For T ≥ 64 and α from ¼ to 4 attention's output comes out at {t['out']} of unit "
        f"scale, gated SiLU's at {t['silu']} over every α tried. Not at unit scale are: attention's"
        f" q and k gradients, {t['beta']} times 1/√d_head at α = 1 on the longest sequences; the "
        "gradient that enters the trunk if the readout is scaled back by 1/√fan_in, "
        f"{t['readout_in']} at V = {t['readout_v']} and d_model = {t['readout_d']}; and "
        f"attention's output once values are correlated, {t['shared']} at ρ = {t['rho']} and "
        f"T = {t['shared_t']}."
    )


def worst_table(results: Results, digits: int = 2) -> str:
    """Smallest and largest RMS of every tensor over its whole grid, each with its interval."""
    rows = []
    for what, title in TITLES.items():
        try:
            table = cells(results, what)
        except NotMeasured:
            continue
        if what == "attention":
            table = table[table["seq_len"] > 1]  # a single position has no gradient to q and k
        for field in (f for f in FIELDS if f in table):
            ends = [table.loc[table[field].idxmin()], table.loc[table[field].idxmax()]]
            low, high = (
                f"{report.interval(e[field], e[f'{field}_lo'], e[f'{field}_hi'], digits)} "
                f"({_where(e)})"
                for e in ends
            )
            rows.append({"op": title, "tensor": field, "n": len(table), "low": low, "high": high})
    return report.markdown(
        pd.DataFrame(rows),
        {"op": "op", "tensor": "tensor", "n": "cells", "low": "smallest", "high": "largest"},
    )


SYMBOLS = {
    "seq_len": "T", "d_head": "d_head", "alpha": "α", "size": "n", "mult": "α",
    "vocab_size": "V", "logits_rms": "logits", "backward": "scale", "d_model": "D",
    "fan_in": "fan_in", "fan_out": "fan_out", "width": "D", "branch": "branch",
}  # fmt: skip


def _where(row: pd.Series) -> str:
    """A cell of a grid in words."""
    shown = {symbol: row[n] for n, symbol in SYMBOLS.items() if n in row}
    return ", ".join(
        f"{symbol} {value if isinstance(value, str) else f'{value:g}'}"
        for symbol, value in shown.items()
    )
