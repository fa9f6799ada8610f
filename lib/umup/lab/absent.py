"""What is not measured: how a table says so, and how texts and figures answer.

A study's page is made from whatever is on record, from nothing to all of it. A table or quantity
that lacks its records raises ``NotMeasured``; a text or figure is decorated with what it says then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import pandas as pd

P = ParamSpec("P")


class NotMeasured(LookupError):
    """The records that a quantity, text or figure needs are not there; the message says which."""


def required(rows: pd.DataFrame, missing: str) -> pd.DataFrame:
    """``rows``, where there are any.

    Raises:
        NotMeasured: there are none; ``missing`` says what they would be.
    """
    if rows.empty:
        raise NotMeasured(missing)
    return rows


def otherwise(instead: Callable[[str], Any]) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """A decorator: where the function raises NotMeasured, ``instead`` of its message is returned.

    `report.known`, `report.worded` and `figures.drawn` are such decorators.
    """

    def decorate(function: Callable[P, Any]) -> Callable[P, Any]:
        @functools.wraps(function)
        def tolerant(*args: P.args, **named: P.kwargs) -> Any:
            try:
                return function(*args, **named)
            except NotMeasured as missing:
                return instead(str(missing))

        return tolerant

    return decorate
