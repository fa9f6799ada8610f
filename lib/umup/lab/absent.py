"""Missing measurements: how a table reports them, and how texts and figures show them.

A study's page is made from whatever is on record, even nothing. A table or quantity that lacks its
records raises ``NotMeasured``; a decorator of a text or figure says what to show in that case.
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
    """``rows``, if there are any.

    Raises:
        NotMeasured: there are none; ``missing`` says what is missing.
    """
    if rows.empty:
        raise NotMeasured(missing)
    return rows


def otherwise(instead: Callable[[str], Any]) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """A decorator: if the function raises NotMeasured, return ``instead`` of its message.

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
