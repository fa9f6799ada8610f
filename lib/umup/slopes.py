"""Growth with width: log-log slopes of measured tensors, and the rules of a coordinate check.

As the width grows, every activation should keep its size at initialization, and change by an
amount that does not depend on width; in spectral norms, weights and their updates should stay in
proportion to √(fan_out/fan_in) (Tensor Programs V, arXiv 2203.03466, Appendix D.1; Yang, Simon and
Bernstein, arXiv 2310.17813). All of these are slopes over width that should be zero. An activation
of fixed shape, such as logits, may shrink with width at initialization.

Measurements come as a tidy frame with the columns of ``COLUMNS``:

- width, seed, eta, step: of the run; ``step`` is the number of updates done.
- kind, tensor: "weight" or "activation" (or "loss"), and its name.
- quantity: of activations ``size`` (RMS) and ``change`` (RMS of the difference from step 0 on one
  batch); of weights, times their multiplier, ``norm`` and ``update`` (difference from step 0),
  each a spectral norm over √(fan_out/fan_in), and ``norm_frobenius``, ``update_frobenius``.
- value: NaN or infinite where the run diverged. shape: of the tensor; of weights (fan_in, fan_out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from umup.laws import Interval, student

COLUMNS = ("width", "seed", "eta", "step", "kind", "tensor", "quantity", "value", "shape")
AT_START = ("size", "norm")
AFTER = ("change", "update")


def fit_slope(width: ArrayLike, value: ArrayLike) -> Interval:
    """Exponent p of value ∝ width^p: least squares on logarithms, with a 95 % interval.

    The residuals contain both the spread over seeds and any curvature, so that a deviation from a
    power law widens the interval. Values that are zero or not finite are left out.

    Args:
        width, value: shape (n,), one entry per width and seed.

    Returns:
        NaN with fewer than two widths; an infinite interval with two values.
    """
    x, y = np.asarray(width, float), np.asarray(value, float)
    used = np.isfinite(y) & (y > 0)
    x, y = np.log2(x[used]), np.log2(y[used])
    if np.unique(x).size < 2:
        return Interval(math.nan, -math.inf, math.inf)
    centred = x - x.mean()
    spread = float((centred**2).sum())
    slope = float(centred @ y) / spread
    if x.size < 3:
        return Interval(slope, -math.inf, math.inf)
    residual = y - y.mean() - slope * centred
    error = math.sqrt(float(residual @ residual) / (x.size - 2) / spread)
    half = student(x.size - 2) * error
    return Interval(slope, slope - half, slope + half)


def roles(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(kind, tensor) → how it grows with width, read from its shapes.

    Weights: ``hidden`` (both fans grow), ``input`` (fan_out alone), ``output`` (fan_in alone),
    ``fixed``. Activations: ``hidden`` when an axis grows, else ``fixed``: logits and attention
    logits, which are products over an axis that grows.
    """
    found = {}
    for key, group in table.groupby(["kind", "tensor"], sort=False):
        shapes = {tuple(shape) for shape in group["shape"]}
        grows = [len(set(axis)) > 1 for axis in zip(*shapes)]
        if key[0] == "weight":
            names = {(True, True): "hidden", (False, True): "input", (True, False): "output"}
            found[key] = names.get((grows[0], grows[1]), "fixed")
        else:
            found[key] = "hidden" if any(grows) else "fixed"
    return found


def fit(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The slope over width of every tensor and quantity at every η and step.

    For a weight with a side that does not grow, the Frobenius norm replaces the spectral norm: they
    differ by at most √(that side), which is constant, and the Frobenius norm has no crossover
    where the width passes that side.

    Args:
        table: measurements, see the module's docstring.
        by: further columns to keep apart, such as a scheme.

    Returns:
        Columns ``by``, eta, step, kind, tensor, role, quantity, slope, lo, hi, n (values fitted),
        zero (values that are 0) and lost (widths with a value that is not finite).
    """
    role_of = roles(table)
    rows = []
    labels = [*by, "eta", "step", "kind", "tensor", "quantity"]
    for key, group in table[table["kind"] != "loss"].groupby(labels, sort=False):
        label = dict(zip(labels, key))
        role = role_of[label["kind"], label["tensor"]]
        quantity, _, frobenius = label["quantity"].partition("_")
        if label["kind"] == "weight" and bool(frobenius) == (role == "hidden"):
            continue
        value = group["value"].to_numpy(float)
        slope = fit_slope(group["width"], value)
        rows.append(
            label
            | {"quantity": quantity, "role": role}
            | {"slope": slope.value, "lo": slope.lo, "hi": slope.hi}
            | {"n": int((np.isfinite(value) & (value > 0)).sum())}
            | {"zero": int((value == 0).sum()), "lost": int((~np.isfinite(value)).sum())}
        )
    columns = [*labels, "role", "slope", "lo", "hi", "n", "zero", "lost"]
    return pd.DataFrame(rows, columns=columns)  # pyright: ignore[reportArgumentType]


def band(kind: str, role: str, quantity: str, tolerance: float) -> tuple[float, float]:
    """The slopes that the rules allow: ±tolerance; an output may also shrink at initialization."""
    start = quantity in AT_START
    exempt = start and (role in ("output", "fixed") if kind == "weight" else role == "fixed")
    return (-math.inf if exempt else -tolerance, tolerance)


_WHAT = {"size": "size", "change": "change", "norm": "norm", "update": "update's norm"}


@dataclass(frozen=True)
class Finding:
    """The outcome of one rule for one tensor.

    Attributes:
        tensor, kind, role, quantity: what was judged, as in ``fit``.
        status: ``breaks`` if some η and step have an interval outside the allowed slopes,
            ``keeps`` if all intervals lie inside, else ``undecided``.
        slope: the slope farthest outside; NaN if the tensor does not change at all.
        allowed: the slopes that keep the rule. eta, step: where ``slope`` was measured.
    """

    tensor: str
    kind: str
    role: str
    quantity: str
    status: str
    slope: Interval
    allowed: tuple[float, float]
    eta: float
    step: int

    def text(self, digits: int = 2) -> str:
        """The finding as one line: what grows or shrinks, where, and what that implies.

        Args:
            digits: decimals; with fewer than two, the interval is omitted.
        """
        what = _WHAT[self.quantity]
        name = f"{self.tensor} ({self.role} {self.kind})"
        when = f"after step {self.step} at η = {self.eta:g}" if self.step else "at step 0"
        if math.isnan(self.slope.value):
            return f"{name}: no {what} at all {when}"
        value = f"{self.slope.value:.{digits}f}"
        if float(value) == 0:
            return f"{name}: {what} does not depend on width {when}"
        verb = "grows" if self.slope.value > 0 else "shrinks"
        ends = f" [{self.slope.lo:.2f}, {self.slope.hi:.2f}]" if digits >= 2 else ""
        line = f"{name}: {what} {verb} like width^{value}{ends} {when}"
        return f"{line}: {self._cause(digits)}" if self.status == "breaks" else line

    def _cause(self, digits: int) -> str:
        large = self.slope.value > self.allowed[1]
        side = f"too {'large' if large else 'small'} by width^{abs(self.slope.value):.{digits}f}"
        return {
            "size": f"its scale at initialization is {side}",
            "norm": f"its initialization times multiplier is {side}",
            "update": f"its learning rate times multiplier is {side}",
            "change": "weights that feed it move too far"
            if large
            else "it learns less the wider the model",
        }[self.quantity]


def judge(slopes: pd.DataFrame, tolerance: float) -> list[Finding]:
    """Apply every rule to every tensor: to sizes and norms at step 0, to changes and updates after.

    Args:
        slopes: rows of ``fit``, of one parametrization.
        tolerance: the largest slope, up or down, that counts as zero.

    Returns:
        Findings in the order of the tensors; one per tensor and quantity.
    """
    starts = slopes["quantity"].isin(AT_START) & (slopes["step"] == 0)
    later = slopes["quantity"].isin(AFTER) & (slopes["step"] > 0)
    findings = []
    for _, group in slopes[starts | later].groupby(["kind", "tensor", "quantity"], sort=False):
        finding = _judge_one(group, tolerance)
        if finding is not None:
            findings.append(finding)
    return findings


def _judge_one(group: pd.DataFrame, tolerance: float) -> Finding | None:
    first = group.iloc[0]
    lo, hi = band(first["kind"], first["role"], first["quantity"], tolerance)
    frozen = group[(group["step"] == group["step"].max()) & (group["n"] == 0) & (group["zero"] > 0)]
    fitted = group[np.isfinite(group["slope"])]
    if len(frozen) and first["quantity"] in AFTER:
        row, status = frozen.iloc[0], "breaks"
    elif fitted.empty:
        return None  # nothing to fit: drawn as zero, or a run that diverged, which has its own line
    else:
        outside = np.maximum(fitted["slope"] - hi, lo - fitted["slope"])
        broken = (fitted["lo"] > hi) | (fitted["hi"] < lo)
        inside = (fitted["lo"] >= lo) & (fitted["hi"] <= hi)
        status = "breaks" if broken.any() else "keeps" if inside.all() else "undecided"
        among = broken if broken.any() else ~inside if not inside.all() else inside
        row = fitted.loc[outside[among].idxmax()]
    slope = Interval(float(row["slope"]), float(row["lo"]), float(row["hi"]))
    return Finding(
        first["tensor"],
        first["kind"],
        first["role"],
        first["quantity"],
        status,
        slope,
        (lo, hi),
        float(row["eta"]),
        int(row["step"]),
    )


def divergence(table: pd.DataFrame) -> list[str]:
    """A line for every η at which a run diverged: the narrowest such width and its first step."""
    bad = table[~np.isfinite(table["value"])]
    lines = []
    for eta, group in bad.groupby("eta"):
        width = int(group["width"].min())
        step = int(group[group["width"] == width]["step"].min())
        lines.append(f"diverges at η = {eta:g} from width {width} on, by step {step}")
    return lines


@dataclass(frozen=True)
class CoordCheck:
    """What a coordinate check found.

    Attributes:
        table: the measurements, see the module's docstring. slopes: their ``fit``.
        findings: ``judge`` of the slopes. tolerance: the largest slope that counts as zero.
        diverged: a line for every η at which a run diverged.
    """

    table: pd.DataFrame
    slopes: pd.DataFrame
    findings: tuple[Finding, ...]
    tolerance: float
    diverged: tuple[str, ...]

    @classmethod
    def of(cls, table: pd.DataFrame, tolerance: float) -> CoordCheck:
        """Fit and judge the measurements of one parametrization."""
        slopes = fit(table)
        findings = tuple(judge(slopes, tolerance))
        return cls(table, slopes, findings, tolerance, tuple(divergence(table)))

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The rules that are broken."""
        return tuple(f for f in self.findings if f.status == "breaks")

    @property
    def undecided(self) -> tuple[Finding, ...]:
        """The rules that the seeds do not decide."""
        return tuple(f for f in self.findings if f.status == "undecided")

    @property
    def passed(self) -> bool:
        """No rule is broken and no run diverged."""
        return not self.broken and not self.diverged

    @property
    def verdict(self) -> str:
        """Which weight or activation breaks which rule, one per line, weights first."""
        return self.text()

    def text(self, digits: int = 2) -> str:
        """The verdict to ``digits`` decimals; with fewer than two, without intervals."""
        widths = sorted(set(self.table["width"]))
        if len(widths) < 2:
            return "not measured: a slope needs two widths"
        head = (
            f"{'passes' if self.passed else 'fails'}: {len(self.broken)} of {len(self.findings)} "
            f"rules broken, {len(self.undecided)} undecided "
            f"(slopes over widths {widths[0]} to {widths[-1]}, allowed ±{self.tolerance:g})"
        )
        lines = [head, *(f"  {line}" for line in self.diverged)]
        for title, found in (("breaks", self.broken), ("undecided", self.undecided)):
            found = sorted(found, key=lambda f: f.kind != "weight")
            lines += [f"  {title}: {f.text(digits)}" for f in found]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.verdict
