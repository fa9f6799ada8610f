"""The quantities that a study's claims may name: functions from its records to an ``Interval``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from umup.lab.absent import NotMeasured
from umup.laws import Interval

F = TypeVar("F", bound=Callable[..., Interval])


class Quantities(dict[str, Callable[..., Interval]]):
    """Name → quantity; as a decorator it registers a function under its own name.

    A study's ``results.py`` begins with ``quantity = QUANTITIES = Quantities()``. A quantity takes
    ``records.Results`` and then the ``args`` of a claim, and raises NotMeasured if the records lack
    something that it needs.
    """

    def __call__(self, function: F) -> F:
        self[function.__name__] = function
        return function


def spanning(values: Iterable[float], factor: float, what: str) -> tuple[Any, Any]:
    """The smallest and the largest of ``values``, which must differ by at least ``factor``.

    Raises:
        NotMeasured: they differ by less, or there are none; ``what`` names them ("u-μP: widths").
    """
    known = list(values)
    low, high = min(known, default=1), max(known, default=0)
    if high < factor * low:
        span = f"{high / low:g}×" if known else "nothing"
        raise NotMeasured(f"{what} span {span}, the claim needs {factor:g}×")
    return low, high
