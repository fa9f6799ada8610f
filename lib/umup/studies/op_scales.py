"""The study ``op_scales``: are the ops at unit scale, and where do their scale models err?

Points only, nothing is trained. Every measured value is an RMS over the one that the model
promises, so 1 is right; ``op_scales_theory`` says what it should be where that can be derived.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from umup.config import COUNT, POSITIVE, Range
from umup.lab import claims
from umup.lab.absent import NotMeasured, required
from umup.lab.design import Design, Point
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.laws import Interval, mean_interval
from umup.studies import op_scales_measures as measures
from umup.studies import op_scales_theory as theory

MEASURES = {
    **{f.__name__: f for f in (
        measures.attention, measures.gated_silu, measures.softmax, measures.cross_entropy,
        measures.readout, measures.linear, measures.rms_norm, measures.rope, measures.residual,
        measures.embedding,
    )},
    "attention_inputs": measures.attention,
    "cross_entropy_tokens": measures.cross_entropy,
}  # fmt: skip
FIELDS = ("out", "dq", "dk", "dv", "dx", "dgate", "dlogits", "dw")


@dataclass(frozen=True)
class OpScales(Design):
    """Parameters of the study; lists are grids, each measured with ``seeds`` seeds.

    Args:
        seq_lens, d_heads, alphas: grid of attention.
        correlations: between the values of two positions, at the longest sequence.
        ffn_alphas: of gated SiLU. softmax_sizes, softmax_mults: grid of softmax.
        vocab_sizes, loss_alphas, logits_rms: grid of the loss.
        loss_tokens: numbers of tokens, at the middle vocabulary and unit logits.
        widths: of the readout, linears, RMSNorm, residual add, RoPE heads and embeddings.
        readout_vocab_sizes: vocabularies of the readout.
        residual_layers: depth of the model whose first and last branch are measured.
        tokens: rows of the plain ops and of the readout; the loss has at least so many.
        coordinates: least number of heads times head size of attention.
        elements: values a tensor and seed otherwise.
        dtypes: of inputs, weights and cotangents.
    """

    seq_lens: tuple[int, ...] = (64,)
    d_heads: tuple[int, ...] = (16, 64)
    alphas: tuple[float, ...] = (0.25, 1.0, 4.0)
    correlations: tuple[float, ...] = (0.1,)
    ffn_alphas: tuple[float, ...] = (0.25, 1.0, 4.0)
    softmax_sizes: tuple[int, ...] = (64,)
    softmax_mults: tuple[float, ...] = (0.25, 1.0, 4.0)
    vocab_sizes: tuple[int, ...] = (16, 256)
    loss_alphas: tuple[float, ...] = (0.25, 1.0, 4.0)
    logits_rms: tuple[float, ...] = (0.0625, 1.0)
    loss_tokens: tuple[int, ...] = (16, 256)
    widths: tuple[int, ...] = (64,)
    readout_vocab_sizes: tuple[int, ...] = (256,)
    residual_layers: int = 4
    tokens: int = 256
    coordinates: int = 2048
    elements: int = 65536
    seeds: int = 3
    dtypes: tuple[str, ...] = ("float32",)
    point_seconds: float = 0.5

    RANGES = {
        **Design.RANGES, "seq_lens": COUNT, "d_heads": Range(2), "alphas": POSITIVE,
        "correlations": Range(0.0, 1.0), "ffn_alphas": POSITIVE, "softmax_sizes": Range(2),
        "softmax_mults": POSITIVE, "vocab_sizes": Range(2), "loss_alphas": POSITIVE,
        "logits_rms": POSITIVE, "loss_tokens": COUNT, "widths": Range(2),
        "readout_vocab_sizes": Range(2), "residual_layers": COUNT, "tokens": COUNT,
        "coordinates": COUNT, "elements": COUNT, "seeds": Range(2),
        "dtypes": ("float32", "bfloat16"),
    }  # fmt: skip

    def _sequences(self, seq_len: int, d_head: int) -> int:
        """Heads a seed. The first rows have the most of the variance and only ``d_head`` values
        each, so their number is what makes a measurement sharp, however long the sequence."""
        return max(self.elements // (seq_len * d_head), -(-self.coordinates // d_head))

    def points(self) -> list[Point]:
        """The grids in turn, those of equal shape next to each other."""
        return [
            Point(what, {**spec, "seeds": self.seeds, "dtype": dtype})
            for dtype in self.dtypes
            for what, spec in self._specs()
        ]

    def _specs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for seq_len in self.seq_lens:
            for d_head in self.d_heads:
                shape = {"seq_len": seq_len, "d_head": d_head,
                         "sequences": self._sequences(seq_len, d_head)}  # fmt: skip
                for alpha in self.alphas:
                    yield "attention", shape | {"alpha": float(alpha)}
        longest, head = max(self.seq_lens), _middle(self.d_heads)
        shape = {"seq_len": longest, "d_head": head, "alpha": 1.0,
                 "sequences": self._sequences(longest, head)}  # fmt: skip
        for rho in (0.0, *self.correlations):
            yield "attention_inputs", shape | {"inputs": "normal", "correlation": float(rho)}
        for inputs in measures.INPUTS:
            if inputs != "normal":
                yield "attention_inputs", shape | {"inputs": inputs, "correlation": 0.0}
        for alpha in self.ffn_alphas:
            yield "gated_silu", {"alpha": float(alpha), "elements": self.elements}
        for size in self.softmax_sizes:
            for mult in self.softmax_mults:
                rows = max(1, self.elements // size)
                yield "softmax", {"size": size, "mult": float(mult), "rows": rows}
        for vocab_size in self.vocab_sizes:
            tokens = max(self.tokens, self.elements // vocab_size)
            for logits_rms in self.logits_rms:
                for alpha in self.loss_alphas:
                    yield "cross_entropy", {
                        "vocab_size": vocab_size, "alpha": float(alpha),
                        "logits_rms": float(logits_rms), "tokens": tokens,
                    }  # fmt: skip
        for tokens in self.loss_tokens:
            yield "cross_entropy_tokens", {
                "vocab_size": _middle(self.vocab_sizes), "alpha": 1.0, "logits_rms": 1.0,
                "tokens": tokens,
            }  # fmt: skip
        for width in self.widths:
            yield from self._plain(width)

    def _plain(self, width: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The readout and the ops whose scale is exact, at one width."""
        few = {"tokens": self.tokens}
        for vocab_size in self.readout_vocab_sizes:
            for backward in ("fan_out", "fan_in"):
                yield "readout", {"d_model": width, "vocab_size": vocab_size,
                                  "backward": backward, **few}  # fmt: skip
        yield "linear", {"fan_in": width, "fan_out": width, **few}
        yield "linear", {"fan_in": width, "fan_out": 4 * width, **few}
        yield "rms_norm", {"width": width, **few}
        yield "rope", {"width": width, "seq_len": self.tokens, "heads": 4}
        for branch in (0, 2 * self.residual_layers - 1):
            yield "residual", {"width": width, "n_layers": self.residual_layers,
                               "branch": branch, **few}  # fmt: skip
        yield "embedding", {"vocab_size": _middle(self.vocab_sizes), "width": width, **few}


DESIGN = OpScales


def _middle(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


# Tables.


@remembered
def cells(results: Results, what: str) -> pd.DataFrame:
    """The points of one kind, one row a cell of the grid.

    Every measured field has its mean over seeds and, in ``FIELD_lo`` and ``FIELD_hi``, the 95 %
    interval; ``FIELD_seeds`` keeps the values. Attention has derived fields: ``dq_beta`` and
    ``dk_beta``, the RMS times √d_head; ``out_derived``, the output over ``derived_scale`` in place
    of the model; and the column logit_variance, α²/d_head.

    Raises:
        NotMeasured: there are no such points.
    """
    table = required(results.table(what), f"no points of {what}")
    if what.startswith("attention"):
        root = np.sqrt(table["d_head"])
        table["logit_variance"] = table["alpha"] ** 2 / table["d_head"]
        derived = map(theory.derived_scale, table["seq_len"], table["logit_variance"])
        factors = {"dq_beta": ("dq", root), "dk_beta": ("dk", root),
                   "out_derived": ("out", table["model"] / list(derived))}  # fmt: skip
        for name, (of, factor) in factors.items():
            table[name] = [list(np.array(v) * f) for v, f in zip(table[of], factor, strict=True)]
    if what == "linear":
        table["fan_ratio"] = table["fan_out"] / table["fan_in"]
    measured = [n for n in table.columns if n.split("_")[0] in FIELDS]
    for name in measured:
        intervals = [mean_interval(values) for values in table[name]]
        table[f"{name}_seeds"] = table[name]
        table[f"{name}_lo"] = [i.lo for i in intervals]
        table[f"{name}_hi"] = [i.hi for i in intervals]
        table[name] = [i.value for i in intervals]
    return table


def select(table: pd.DataFrame, within: Mapping[str, Any] | None, what: str) -> pd.DataFrame:
    """The rows of a grid in which each column of ``within`` equals a value or lies in [lo, hi].

    An end that is None is open.

    Raises:
        NotMeasured: no row does, or an end of a range lies outside what was measured.
    """
    rows = table
    for name, wanted in (within or {}).items():
        if name not in table:
            raise NotMeasured(f"{what} has no column {name}")
        if not isinstance(wanted, list):
            rows = rows[rows[name] == wanted]
            continue
        lo, hi = wanted
        if (lo is not None and table[name].min() > lo) or (
            hi is not None and table[name].max() < hi
        ):
            raise NotMeasured(f"{what}: {name} was not measured over all of {_stretch(wanted)}")
        lo, hi = (-math.inf if lo is None else lo), (math.inf if hi is None else hi)
        rows = rows[rows[name].between(lo, hi)]
    given = ", ".join(f"{name} {_stretch(wanted)}" for name, wanted in (within or {}).items())
    return required(rows, f"no points of {what} with {given}")


def _stretch(wanted: Any) -> str:
    """What `select` is asked for, in words."""
    if not isinstance(wanted, list):
        return str(wanted)
    lo, hi = wanted
    if lo is None:
        return f"up to {hi:g}"
    return f"{lo:g} and more" if hi is None else f"{lo:g} to {hi:g}"


# Quantities of claims.


def farthest(
    results: Results, what: str, fields: list[str], target: float = 1.0,
    within: Mapping[str, Any] | None = None,
) -> Interval:  # fmt: skip
    """Largest |value − target| over a grid, in per cent of the target's unit.

    The ends are the largest of the cells' lower and of their upper bounds, so that one noisy cell
    widens the interval and never hides.
    """
    rows = select(cells(results, what), within, what)
    found = []
    for field in fields:
        if field not in rows:
            raise NotMeasured(f"{what} has no {field}")
        for value, lo, hi in rows[[field, f"{field}_lo", f"{field}_hi"]].to_numpy():
            found.append((abs(value - target), max(lo - target, target - hi, 0.0),
                          max(abs(lo - target), abs(hi - target))))  # fmt: skip
    return Interval(*(100.0 * max(end) for end in zip(*found, strict=True)))


def exponent(
    results: Results, what: str, field: str, over: str, within: Mapping[str, Any] | None = None
) -> Interval:
    """Slope of log ``field`` over log ``over``, from one fit a seed."""
    rows = select(cells(results, what), within, what)
    if rows[over].nunique() < 2:
        raise NotMeasured(f"{what}: fewer than two values of {over}")
    x = np.log(rows[over].to_numpy(float))
    y = np.log(np.array(list(rows[f"{field}_seeds"])))
    return mean_interval(np.polyfit(x, y, 1)[0])


def spread(
    results: Results, what: str, field: str, by: str, within: Mapping[str, Any] | None = None
) -> Interval:
    """Largest relative difference between two values of ``by``, per cent, over the pairs."""
    rows = select(cells(results, what), within, what)
    values = [np.array(v) for v in rows[f"{field}_seeds"]]
    if len(values) < 2 or rows[by].nunique() < 2:
        raise NotMeasured(f"{what}: fewer than two values of {by}")
    found = []
    for i, a in enumerate(values):
        for b in values[:i]:
            gap = mean_interval(100.0 * (a / b - 1.0))
            found.append((abs(gap.value), max(gap.lo, -gap.hi, 0.0), max(-gap.lo, gap.hi)))
    return Interval(*(max(end) for end in zip(*found, strict=True)))


QUANTITIES = {f.__name__: f for f in (farthest, exponent, spread)}


def bound(claim: str) -> float:
    """The upper bound of a claim of this study, as a fraction; figures draw it."""
    return claims.bound("op_scales", claim) / 100.0
