"""The study `coord_check`: which scheme keeps activations and their changes free of width.

Decoders of several widths are trained for a few steps at a small and at a large η and watched
with `umup.coord`. The number of heads is fixed, so that the head size grows with the width and the
rule of the attention logits matters. Slopes, rules and verdicts are those of `umup.slopes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from umup import rules, slopes
from umup.config import COUNT, POSITIVE, Range
from umup.errors import ConfigError
from umup.lab import report
from umup.lab.absent import NotMeasured, required
from umup.lab.design import Design, Point
from umup.lab.records import Results
from umup.lab.tables import remembered
from umup.laws import Interval
from umup.text import decimals

WHAT = "decoder"
LADDER = ("sp", "ladder_init", "ladder_lr", "ladder_logits", "mup")
RUNGS = ("SP", "+ init", "+ LR", "+ logits", "+ attn. = μP")
TITLES = {name: scheme.title for name, scheme in rules.SCHEMES.items()}
PACES = ("small", "large")
NO_POINTS = "no decoders are on record"


@dataclass(frozen=True)
class CoordStudy(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        schemes: names in ``rules.SCHEMES``.
        widths: d_model, at least three; n_heads is the same at all of them.
        base_width: where μP equals SP, and with it all rungs of the ladder.
        n_layers: also the base depth, but for CompleteP, which at its base depth is μP: its base
            depth is 1.
        log2_eta_plain, log2_eta_unit: (small, large) η of the plain and of the unit-scaled schemes.
        seeds: of every point; wide_seeds: at the largest width, the dearest.
        look_at: numbers of updates after which to look.
        tolerance: the slope that counts as none in verdicts.
    """

    schemes: tuple[str, ...] = ("sp", "mup", "umup")
    widths: tuple[int, ...] = (16, 32, 64)
    base_width: int = 16
    n_heads: int = 2
    n_layers: int = 2
    ff_ratio: float = 2.75
    seq_len: int = 32
    batch_size: int = 8
    look_at: tuple[int, ...] = (1, 10)
    log2_eta_plain: tuple[float, ...] = (-9.0, -5.0)
    log2_eta_unit: tuple[float, ...] = (-3.0, 1.0)
    seeds: int = 1
    wide_seeds: int = 1
    tolerance: float = 0.2
    dtype: str = "float32"

    RANGES = {
        **Design.RANGES, "schemes": tuple(rules.SCHEMES), "widths": COUNT, "base_width": COUNT,
        "n_heads": COUNT, "n_layers": COUNT, "ff_ratio": POSITIVE, "seq_len": Range(2),
        "batch_size": COUNT, "look_at": COUNT, "log2_eta_plain": Range(-60, 60),
        "log2_eta_unit": Range(-60, 60), "seeds": COUNT, "wide_seeds": COUNT,
        "tolerance": Range(0.0, 0.5, open_lo=True), "dtype": ("float32", "bfloat16"),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.schemes:
            raise ConfigError("schemes", self.schemes, "at least one")
        if len(set(self.widths)) < 3:
            raise ConfigError("widths", self.widths, "at least three: two always lie on a line")
        for width in (*self.widths, self.base_width):
            if width % (2 * self.n_heads):
                allowed = f"multiples of 2·n_heads = {2 * self.n_heads}: an even head size"
                raise ConfigError("widths", width, allowed)
        if 1 not in self.look_at or len(set(self.look_at)) < 2:
            raise ConfigError("look_at", self.look_at, "1, the first step, and at least one more")
        for name in ("log2_eta_plain", "log2_eta_unit"):
            value = getattr(self, name)
            if len(value) != 2 or value[0] >= value[1]:
                raise ConfigError(name, value, "two numbers: [small, large] in log2 η")
        if self.wide_seeds > self.seeds:
            raise ConfigError("wide_seeds", self.wide_seeds, f"at most seeds = {self.seeds}")

    def points(self) -> list[Point]:
        """A point for every width, seed, scheme and η, those of equal shape side by side."""
        shape = {
            "n_heads": self.n_heads, "n_layers": self.n_layers, "ff_ratio": self.ff_ratio,
            "seq_len": self.seq_len, "batch_size": self.batch_size, "base_width": self.base_width,
            "dtype": self.dtype, "steps": sorted(set(self.look_at)), "corpus": self.corpus,
            "tokenizer": self.tokenizer,
        }  # fmt: skip
        points = []
        for width in sorted(set(self.widths), reverse=True):  # the dearest first
            seeds = self.wide_seeds if width == max(self.widths) else self.seeds
            for scheme in self.schemes:
                unit = rules.SCHEMES[scheme].unit_scaled
                depth = 1 if scheme == "completep" else self.n_layers
                for log2_eta in self.log2_eta_unit if unit else self.log2_eta_plain:
                    for seed in range(seeds):
                        own = {"scheme": scheme, "d_model": width, "seed": seed,
                               "log2_eta": log2_eta, "base_depth": depth}  # fmt: skip
                        points.append(Point(WHAT, own | shape))
        return points


def decoder(
    *, scheme: str, d_model: int, n_heads: int, n_layers: int, ff_ratio: float, seq_len: int,
    batch_size: int, base_width: int, base_depth: int, dtype: str, seed: int, log2_eta: float,
    steps: list[int], corpus: str, tokenizer: str,
) -> dict[str, Any]:  # fmt: skip
    """The measurement of one point, see ``coord_check_measure.measure``."""
    spec = locals()  # named one by one, so that a point's specification can be checked against them
    from umup.studies.coord_check_measure import measure  # JAX: reading records must not import it

    return measure(**spec)


DESIGN = CoordStudy
MEASURES = {WHAT: decoder}


@remembered
def measurements(results: Results, schemes: Sequence[str] | None = None) -> pd.DataFrame:
    """All measurements, tidy: the columns of ``umup.slopes``, scheme and pace.

    ``pace`` is "small" at a scheme's smallest η and "large" at its largest, and empty as long as
    only one of them was measured. Names of weights lose their last part, ``w``; "loss" rows are
    kept.
    """
    points = results.table(WHAT)
    columns = ["scheme", "pace", *slopes.COLUMNS]
    if len(points) and schemes is not None:
        points = points[points["scheme"].isin(list(schemes))]
    if points.empty:
        return pd.DataFrame(columns=columns)
    listed = ["step", "kind", "tensor", "quantity", "value", "shape"]
    points = points.rename(columns={"d_model": "width"}).assign(eta=2.0 ** points["log2_eta"])
    table = points[["scheme", "width", "seed", "eta", *listed]].explode(listed, ignore_index=True)
    table["value"] = table["value"].astype(float)  # None, not finite, becomes NaN
    table["shape"] = table["shape"].map(tuple)
    table["tensor"] = table["tensor"].str.removesuffix(".w")
    table["pace"] = table.groupby("scheme")["eta"].transform(_pace)
    return table[columns]


class Checks(dict[str, slopes.CoordCheck]):
    """Scheme → its coordinate check; that of a scheme that is not on record says so."""

    def __missing__(self, scheme: str) -> slopes.CoordCheck:
        nothing = pd.DataFrame(columns=list(slopes.COLUMNS)).astype({"value": float})
        return slopes.CoordCheck.of(nothing, math.nan)


@remembered
def checks(results: Results, tolerance: float) -> Checks:
    """The coordinate check of every scheme on record, those of the ladder first."""
    table = measurements(results)
    found = {str(scheme): group for scheme, group in table.groupby("scheme", sort=False)}
    order = [scheme for scheme in dict.fromkeys((*LADDER, *rules.SCHEMES)) if scheme in found]
    return Checks({s: slopes.CoordCheck.of(found[s], tolerance) for s in order})


def fitted(found: Mapping[str, slopes.CoordCheck]) -> pd.DataFrame:
    """The slopes of all checks: the columns of ``slopes.fit``, scheme and pace.

    Slopes that two widths do not give are left out.
    """
    frames = [
        check.slopes.assign(scheme=scheme, pace=_pace(check.slopes["eta"]))
        for scheme, check in found.items()
    ]
    if not frames:
        return Checks()["sp"].slopes.assign(scheme=None, pace=None)
    table = pd.concat(frames, ignore_index=True)
    return table[table["slope"].notna()].reset_index(drop=True)


def _pace(eta: pd.Series) -> pd.Series:
    """Pace of every η: "large" at the largest, "small" below it, empty where there is one alone."""
    if eta.nunique() < 2:
        return pd.Series("", eta.index)
    return (eta == eta.max()).map({True: PACES[1], False: PACES[0]})


def slope(
    results: Results, scheme: str, tensor: str, quantity: str, step: int, pace: str = "large",
    factor: float = 8,
) -> Interval:  # fmt: skip
    """Exponent over width of one tensor's quantity, from widths that span at least ``factor``.

    ``blocks.-1`` is the last block.
    """  # fmt: skip
    name = TITLES.get(scheme, scheme)
    table = measurements(results, (scheme,))
    if table.empty:
        raise NotMeasured(f"no points of {name}")
    tensor = tensor.replace("blocks.-1", last_block(table))
    at = table[(table["tensor"] == tensor) & (table["pace"] == pace) & (table["step"] == step)]
    at = at[at["quantity"].str.removesuffix("_frobenius") == quantity]
    if at.empty:
        raise NotMeasured(f"{name}: no {quantity} of {tensor} after {step} steps at {pace} η")
    if at["width"].max() < factor * at["width"].min():
        span = at["width"].max() / at["width"].min()
        raise NotMeasured(f"{name}: widths span {span:g}×, the claim needs {factor:g}×")
    if not at["value"].map(math.isfinite).all():
        return Interval(math.inf, math.inf, math.inf)  # diverged: growth without bound
    return slopes.fit_slope(at["width"], at["value"])


def slope_difference(
    results: Results, scheme: str, against: str, tensor: str, quantity: str, step: int,
    pace: str = "large", factor: float = 8,
) -> Interval:  # fmt: skip
    """``slope`` of a scheme minus that of another; the intervals' half-widths add in squares."""
    a, b = (slope(results, s, tensor, quantity, step, pace, factor) for s in (scheme, against))
    half = math.hypot((a.hi - a.lo) / 2, (b.hi - b.lo) / 2)
    value = a.value - b.value
    return Interval(value, value - half, value + half)


QUANTITIES = {"slope": slope, "slope_difference": slope_difference}


def last_block(table: pd.DataFrame) -> str:
    """The name of the last block's residual stream, ``blocks.i``."""
    numbers = table["tensor"].str.extract(r"^blocks\.(\d+)$")[0].dropna().astype(int)
    return f"blocks.{max(numbers, default=0)}"


def last_step(table: pd.DataFrame) -> int:
    """The largest number of updates looked at."""
    return int(table["step"].max())


@report.worded
def what_ran(results: Results) -> str:
    """One sentence: how many decoders, of what widths, at what η."""
    points = required(results.table(WHAT), NO_POINTS)
    first = points.iloc[0]
    widths = ", ".join(str(w) for w in sorted(points["d_model"].unique()))
    steps = ", ".join(str(s) for s in first["steps"])
    return (
        f"{len(points)} decoders: {first['n_layers']} blocks of {first['n_heads']} heads, widths "
        f"{widths}; {first['batch_size']} sequences of {first['seq_len']} tokens a step, looked at "
        f"after {steps} steps of Adam at a constant η; {points['seed'].nunique()} seeds."
    )


def slope_text(
    table: pd.DataFrame, scheme: str, tensor: str, quantity: str, step: int, digits: int = 2,
    pace: str = "large",
) -> str:  # fmt: skip
    """One slope of ``fitted`` as ``value [lo, hi]``, or "not measured"."""
    at = table[
        (table["scheme"] == scheme) & (table["tensor"] == tensor) & (table["pace"] == pace)
        & (table["quantity"] == quantity) & (table["step"] == step)
    ]  # fmt: skip
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
            for f in check.broken if f.kind == "weight"
        ]  # fmt: skip
        rows.append(
            {"scheme": TITLES[scheme], "n": report.tally(check),
             "weights": ", ".join(weights) or "none"}
        )  # fmt: skip
    return report.markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "n": "rules broken", "weights": "weights that break one, exponent"},
    )


def norms_table(found: Mapping[str, slopes.CoordCheck], digits: int = 2) -> str:
    """Slopes of the weights' norms at initialization, times multiplier, in Markdown."""
    table = fitted(found)
    at = table[(table["quantity"] == "norm") & (table["step"] == 0) & (table["pace"] == "large")]
    rows = []
    for scheme in found:
        own = at[at["scheme"] == scheme]
        numbers = [decimals(value, digits) for value in own["slope"]]
        rows.append({"scheme": TITLES[scheme]} | dict(zip(own["tensor"], numbers)))
    weights = dict.fromkeys(at["tensor"])
    return report.markdown(pd.DataFrame(rows), {"scheme": "scheme"} | {w: w for w in weights})
