"""A claim's measurement beside its bound, in numbers and as a strip of SVG.

All strips have one scale, the distance from the bound. A two-sided bound spans −1 to 1; one to one
side ends there, at 1 if from above and at −1 if from below, and its distance from zero is 1.
Farther out the scale is logarithmic, so that what is eight times as far off has its place still.
"""

from __future__ import annotations

import math
from decimal import Decimal
from html import escape
from typing import Any

from umup.text import decimals

REACH = 4.0  # steps of the scale to either side: the last three are factors of two
WIDTH, HEIGHT = 180, 20
MOST_DIGITS = 6


def numbers(v: Any) -> tuple[str, str, str]:
    """A verdict's value, interval and bound with their unit, all to the same decimals.

    The interval warrants them and the bound needs them: "0.71", "[0.24, 1.61]" and "at most 0.50
    octaves". The interval is empty where it has no width, and so is the value of what was not
    measured.
    """
    bounds = [b for b in (v.bound_min, v.bound_max) if math.isfinite(b)]
    ends = [x for x in (v.value, v.lo, v.hi) if math.isfinite(x)]
    digits = max([_warranted(v.hi - v.lo) if ends else 0, *map(_places, bounds)])
    while digits < 4 and any(_meet(x, b, digits) for x in ends for b in bounds):
        digits += 1
    while digits and all(decimals(x, digits).endswith("0") for x in (*bounds, *ends)):
        digits -= 1
    value, lo, hi, low, high = (
        decimals(x, digits) for x in (v.value, v.lo, v.hi, v.bound_min, v.bound_max)
    )
    if math.isinf(v.bound_min):
        bound = f"at most {high}"
    else:
        bound = f"at least {low}" if math.isinf(v.bound_max) else f"{low} to {high}"
    if math.isnan(v.value):
        return "", "", f"{bound} {v.unit}"
    interval = "" if v.lo == v.hi else f"[{lo},\N{NO-BREAK SPACE}{hi}]"
    return value, interval, f"{bound} {v.unit}"


def _warranted(width: float) -> int:
    """Decimals that show two digits of an interval's width."""
    if not math.isfinite(width):
        return 2
    return min(max(1 - math.floor(math.log10(width)), 0), 3) if width > 0 else 3


def _meet(x: float, bound: float, digits: int) -> bool:
    """Whether rounding puts a number on the bound that it is not on."""
    return x != bound and decimals(x, digits) == decimals(bound, digits)


def _places(bound: float) -> int:
    exponent = Decimal(repr(bound)).normalize().as_tuple().exponent
    return min(max(-int(exponent), 0), MOST_DIGITS)


def position(x: float, v: Any) -> float:
    """Where a number in the claim's unit lies on the scale of strips."""
    distance = _distance(x, v)
    outside = abs(distance) > 1
    return math.copysign(1 + math.log2(abs(distance)), distance) if outside else distance


def _distance(x: float, v: Any) -> float:
    low, high = v.bound_min, v.bound_max
    if math.isfinite(low) and math.isfinite(high):
        middle, half = (low + high) / 2, (high - low) / 2
        return (x - middle) / (half or _spread(middle, v))
    bound, at = (high, 1.0) if math.isfinite(high) else (low, -1.0)
    return at + (x - bound) / (abs(bound) or _spread(bound, v))


def _spread(bound: float, v: Any) -> float:
    """The unit of a scale whose bound gives none: how far the measurement is from it."""
    sizes = [abs(x - bound) for x in (v.value, v.lo, v.hi) if math.isfinite(x)]
    return max(sizes, default=0.0) or 1.0


def strip(v: Any) -> str:
    """The strip: grey is allowed, the bar is the interval, the dot is the value.

    What lies off the scale is an arrow at that end. Colours are those of the text (`currentColor`)
    and of the page's style sheet; the numbers are its text alternative.
    """
    value, interval, bound = numbers(v)
    left, right = (position(b, v) for b in (v.bound_min, v.bound_max))
    middle = HEIGHT // 2
    parts = []
    start, end = _pixel(left), _pixel(right)
    parts.append(f'<rect class="band" x="{start}" y="3" width="{end - start:g}" height="14"/>')
    edges = "".join(f"M{_pixel(x)} 3v14" for x in (left, right) if math.isfinite(x))
    parts.append(f'<path class="edge" d="{edges}"/>')
    if not math.isnan(v.value):
        at, lo, hi = (position(x, v) for x in (v.value, v.lo, v.hi))
        parts.append(f'<path class="bar" d="M{_pixel(lo)} {middle}H{_pixel(hi)}"/>')
        if min(at, lo) < -REACH:
            parts.append(f'<path d="M0 {middle}l8 -5v10z"/>')
        if max(at, hi) > REACH:
            parts.append(f'<path d="M{WIDTH} {middle}l-8 -5v10z"/>')
        if abs(at) <= REACH:
            kind = ' class="hollow"' if v.lo == v.hi else ""
            parts.append(f'<circle{kind} cx="{_pixel(at)}" cy="{middle}" r="4"/>')
    measured = f"measured {' '.join(filter(None, (value, interval)))}" if value else "not measured"
    label = escape(f"{measured}; allowed: {bound}")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg class="strip" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _pixel(x: float) -> float:
    """The scale in pixels, clipped at its ends; eight pixels at either are for arrows."""
    half = WIDTH / 2
    inner = half - 8
    if math.isinf(x):
        return 0 if x < 0 else WIDTH
    return round(half + inner * min(max(x / REACH, -1.0), 1.0))
