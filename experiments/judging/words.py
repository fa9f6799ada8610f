"""What the study ``judging`` says in words and tables."""

from __future__ import annotations

from umup.lab import words
from umup.lab.absent import NotMeasured
from umup.lab.records import Results
from umup.lab.report import interval, text_of, worded
from umup.lab.words import word
from umup.text import decimals

from . import results as tables

WORDS = {
    "parabola_{of}": word(tables.coverage, setting="parabola"),
    "parabola_error": word(tables.error, setting="parabola"),
    "usual_{of}": word(tables.coverage, setting="usual"),
}


def texts(results: Results, digits: int) -> dict[str, str]:
    """Numbers for captions and text: name → text."""
    return words.texts(WORDS, results, digits, of=tuple(tables.JUDGED))


@worded
def answer(results: Results, digits: int) -> str:
    """How often intervals cover where sweeps are as those on record, and where they do not."""
    shares = [
        f"{title} {text_of(tables.coverage(results, 'usual', of), digits)}"
        for of, title in tables.JUDGED.items()
    ]
    try:
        control = tables.coverage(results, "parabola", "optimum")
    except NotMeasured:
        return f"Intervals called 95 % cover, in %: {', '.join(shares)}."
    return (
        f"On sweeps like those on record, intervals called 95 % cover, in %: {', '.join(shares)}. "
        f"A plain parabola's cover the best η in {text_of(control, digits)} %."
    )


@worded
def coverage_table(results: Results, digits: int) -> str:
    """A row per setting: share of every kind that covers, and the width of the optimum's."""
    table = tables.table(results)
    rows = []
    for setting, own in table.groupby("setting", sort=False):
        cells = {
            tables.JUDGED[row["of"]]: interval(
                row["share"], row["share_lo"], row["share_hi"], max(digits - 1, 0)
            )
            for row in own.to_dict("records")
        }
        width = own[own["of"] == "optimum"]["width"].iloc[0]
        rows.append({"sweeps": setting, **cells, "width of the first": decimals(width, digits)})
    return words.table(rows)
