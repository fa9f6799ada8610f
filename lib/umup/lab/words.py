"""Texts that every study needs: named numbers for captions, tables, and what was trained. ::

    WORDS = {
        "shift_{scheme}": word(shift, factor=8),
        "price_{scheme}": word(price, nats),
    }
    texts(WORDS, results, digits, scheme=("mup", "umup"))

gives ``shift_mup``, ``shift_umup``, ``price_mup`` and ``price_umup``.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from umup.lab import report
from umup.lab.absent import required
from umup.lab.records import Results
from umup.laws import Interval


class Word(NamedTuple):
    """A quantity with its arguments, and the function that formats its interval."""

    quantity: Callable[..., Interval | str]
    show: Callable[[Interval, int], str]
    over: Mapping[str, Collection[Any]]
    args: Mapping[str, Any]

    @report.known
    def text(self, results: Results, digits: int, **args: Any) -> str:
        """The quantity at these further arguments, or "not measured"; a text is unchanged."""
        measured = self.quantity(results, **self.args, **args)
        return measured if isinstance(measured, str) else self.show(measured, digits)


def nats(measured: Interval, digits: int) -> str:
    """A loss or a difference of losses, with one more digit (``report.loss_digits``)."""
    return report.text_of(measured, report.loss_digits(digits))


def word(
    quantity: Callable[..., Interval | str],
    show: Callable[[Interval, int], str] = report.text_of,
    over: Mapping[str, Collection[Any]] | None = None,
    /,
    **args: Any,
) -> Word:
    """The ``Word`` of a quantity with arguments by name; ``over``: its own axes."""
    return Word(quantity, show, over or {}, args)


def texts(
    words: Mapping[str, Word], results: Results, digits: int = 2, **axes: Collection[Any]
) -> dict[str, str]:
    """Name → text of all words.

    Args:
        words: a name may have fields, as ``shift_{scheme}``: then the word stands for one text per
            value of the axis ``scheme``, which its quantity receives as ``scheme``.
        axes: field → its values, or label in the name → value.
    """
    out = {}
    for name, each in words.items():
        fields = [field for _, field, _, _ in string.Formatter().parse(name) if field]
        own = {field: each.over.get(field, axes.get(field, ())) for field in fields}
        for labels in itertools.product(*own.values()):
            labelled = dict(zip(fields, labels, strict=True))
            given = {field: _value(own[field], label) for field, label in labelled.items()}
            out[name.format(**labelled)] = each.text(results, digits, **given)
    return out


def _value(axis: Collection[Any], label: Any) -> Any:
    return axis[label] if isinstance(axis, Mapping) else label


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """A Markdown table of rows, each a mapping from heading to cell, see ``report.markdown``.

    Without rows it says that nothing is measured.
    """
    frame = pd.DataFrame(list(rows))
    if frame.empty:
        return f"{report.ABSENT.capitalize()}."
    return report.markdown(frame, {heading: heading for heading in frame.columns})


def cell(row: Any, name: str, digits: int = 2) -> str:
    """``value [lo, hi]`` from the columns (or fields) NAME, NAME_lo and NAME_hi of a row."""
    fields = row if isinstance(row, Mapping | pd.Series) else vars(row)
    return report.interval(fields[name], fields[f"{name}_lo"], fields[f"{name}_hi"], digits)


def listed(values: Iterable[object]) -> str:
    """The distinct values in order: ``16, 32, 64``."""
    return ", ".join(str(value) for value in sorted(set(values)))  # type: ignore[type-var]


@report.worded
def trained(runs: pd.DataFrame, kind: str = "runs", shape: str = "") -> str:
    """One sentence on training runs: their number, kind, shape and amount of training.

    ``shape`` describes the models, by default by their widths and depths.
    """
    first, seeds = required(runs, report.NO_RUNS).iloc[0], runs["seed"].nunique()
    shape = shape or f"width {listed(runs['d_model'])}, {listed(runs['n_layers'])} layers"
    return (
        f"{len(runs)} {kind}, {int((runs['status'] == 'diverged').sum())} of them diverged: "
        f"{shape}; {first['batch_size']} sequences of {first['seq_len']} tokens per step, "
        f"{listed(runs['steps'])} steps; up to {seeds} seed{'s' * (seeds > 1)}."
    )
