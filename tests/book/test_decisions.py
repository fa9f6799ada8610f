"""Advice is chosen from verdicts by rule; the verdicts here are planted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from umup.book import advice, decisions
from umup.book.decisions import Cell, Row
from umup.errors import BookError
from umup.lab import claims
from umup.lab.claims import Verdict, format_bound, judge
from umup.laws import Interval

ROOT = Path(__file__).resolve().parents[2]
NAN, INF = math.nan, math.inf
ROW = Row("Width: η", "lr", mup=Cell("still", "cheap"))


def verdict(lo: float, hi: float, least: float = -INF, most: float = INF, **changes) -> Verdict:
    """A verdict on an interval as `umup.lab.claims` judges it; not measured where it is NaN."""
    value = (lo + hi) / 2
    word = judge(Interval(value, lo, hi, 3), least, most) if lo == lo else "not measured"
    bounds = {"bound_min": least, "bound_max": most, "verdict": word}
    given = {"id": "still", "study": "lr", "unit": "octaves", "profile": "cpu", "note": ""}
    texts = {"statement": "", "source": "", "quantity": ""}
    return Verdict(**{"value": value, "lo": lo, "hi": hi, **bounds, **given, **texts, **changes})


def cost(lo: float, hi: float, least: float = -INF, most: float = INF) -> Verdict:
    return verdict(lo, hi, least, most, id="cheap", unit="nats")


STILL = {
    "yes": verdict(0.1, 0.3, most=0.5),
    "no": verdict(0.6, 0.9, most=0.5),
    "open": verdict(0.3, 0.7, most=0.5),
    "not measured": verdict(NAN, NAN, most=0.5),
    "no claim": None,
}
LOW = {
    "yes": cost(0.0, 0.005, most=0.01),
    "no": cost(0.02, 0.03, most=0.01),
    "open": cost(0.0, 0.02, most=0.01),
    "not measured": cost(NAN, NAN, most=0.01),
    "no claim": None,
}
SAID = {
    "yes": {
        "yes": "Carry it over: it costs at most 0.01 nats",
        "no": "Tune again: it costs at least 0.01 nats",
        "open": "Undecided: it stays, but its price is undecided",
        "not measured": "Carry it over: it stays, but its price is not measured",
        "no claim": "Carry it over: it stays, but no claim is on its price",
    },
    "no": {
        "yes": "Moves; carrying it costs at most 0.01 nats",
        "no": "Tune again: it costs at least 0.01 nats",
        "open": "Tune again: it moves, and its price is undecided",
        "not measured": "Tune again: it moves, and its price is not measured",
        "no claim": "Tune again: it moves, and no claim is on its price",
    },
    "open": {
        "yes": "Carry it over: it costs at most 0.01 nats",
        "no": "Tune again: it costs at least 0.01 nats",
        "open": "Undecided: motion and price",
        "not measured": "Undecided: motion",
        "no claim": "Undecided: motion",
    },
    "not measured": {
        "yes": "Carry it over: it costs at most 0.01 nats",
        "no": "Tune again: it costs at least 0.01 nats",
        "open": "Undecided: price",
        "not measured": "Not measured",
        "no claim": "Not measured",
    },
    "no claim": {
        "yes": "Carry it over: it costs at most 0.01 nats",
        "no": "Tune again: it costs at least 0.01 nats",
        "open": "Undecided: price",
        "not measured": "Not measured",
        "no claim": "No evidence",
    },
}


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("still", STILL)
def test_every_pair_of_verdicts_has_its_advice(still, low):
    assert advice.motion(STILL[still]) == still and advice.price(LOW[low]) == low
    assert advice.advice(ROW, STILL[still], LOW[low]) == SAID[still][low]


def test_a_claim_that_it_moves_is_read_the_other_way_round():
    falls = {"holds": (-1.1, -0.9), "fails": (-0.2, 0.2), "inconclusive": (-0.7, -0.3)}
    found = {word: verdict(*ends, most=-0.5) for word, ends in falls.items()}
    assert {word: v.verdict for word, v in found.items()} == {word: word for word in falls}
    said = {word: advice.motion(v, moves=True) for word, v in found.items()}
    # That it moves by less than was claimed does not show that it stays.
    assert said == {"holds": "no", "fails": "open", "inconclusive": "open"}
    assert advice.motion(verdict(NAN, NAN), moves=True) == "not measured"


def test_a_claim_that_it_is_dear_never_makes_it_cheap():
    assert advice.price(cost(0.2, 0.3, least=0.1)) == "no"
    assert advice.advice(ROW, None, cost(INF, INF, least=0.1)) == (
        "Tune again: it costs at least 0.1 nats"
    )
    assert advice.price(cost(0.0, 0.05, least=0.1)) == "open"  # fails, and has no upper bound
    assert advice.price(cost(0.05, 0.15, least=0.1)) == "open"


def test_a_price_below_a_band_is_low_and_what_repeats_counts_as_what_holds():
    below = cost(-0.05, -0.03, least=-0.01, most=0.01)
    assert below.verdict == "fails" and advice.price(below) == "yes"
    exact = cost(0.0, 0.0, most=0.01)
    assert exact.verdict == "exact" and advice.price(exact) == "yes"


def test_the_words_of_a_row_are_its_own():
    row = replace(ROW, carry="Use it", redo="Do without")
    assert advice.advice(row, None, LOW["yes"]) == "Use it: it costs at most 0.01 nats"
    assert advice.advice(row, None, LOW["no"]) == "Do without: it costs at least 0.01 nats"


def test_a_cell_shows_its_claims_and_a_changed_verdict_changes_it():
    board = {"lr/still": replace(STILL["no"], note="close: by a hair"), "lr/cheap": LOW["yes"]}
    cell = advice.shown(ROW, "mup", board)
    assert cell.startswith('<span class="scheme">μP</span>**Moves; carrying it costs at most 0.01')
    bound = format_bound(STILL["no"])
    assert (
        f"motion: {{bdg-danger}}`fails` **0.75** [0.60,\xa00.90] octaves, bound {bound}, " in cell
    )
    assert "*close*, " in cell
    assert "price: {bdg-success}`holds` **0.003** [0.000,\xa00.005] nats, " in cell
    assert "[cheap](studies/lr.ipynb)</small>" in cell  # of `cpu`, as is said above the table
    better = {"lr/cheap": replace(LOW["yes"], profile="h100", n=3, where="width 256")}
    elsewhere = advice.shown(ROW, "mup", board | better)
    assert "[cheap](studies/lr.ipynb), 3 seeds, width 256, profile `h100`</small>" in elsewhere
    dear = advice.shown(ROW, "mup", board | {"lr/cheap": LOW["no"]})
    assert "**Tune again: it costs at least 0.01 nats**" in dear and "`fails` **0.025**" in dear
    unknown = advice.shown(ROW, "mup", board | {"lr/cheap": LOW["not measured"]})
    assert "{bdg-secondary}`not measured` [cheap](studies/lr.ipynb)</small>" in unknown
    assert "its price is not measured**" in unknown and "nan" not in unknown
    assert advice.shown(ROW, "sp", board) == '<span class="scheme">SP</span>No evidence'


def test_a_claim_that_does_not_exist_or_measures_something_else_is_an_error():
    with pytest.raises(BookError, match="lr/cheap"):
        advice.shown(ROW, "mup", {"lr/still": STILL["yes"]})
    swapped = {"lr/still": LOW["yes"], "lr/cheap": LOW["yes"]}
    with pytest.raises(BookError, match=r"unit of lr/still.*nats"):
        advice.shown(ROW, "mup", swapped)


def real_board() -> list[Verdict]:
    """Every claim of every study, not measured."""
    return [
        Verdict(
            *(c.id, c.statement, c.source, c.quantity, NAN, NAN, NAN, c.bound_min, c.bound_max),
            *(c.unit, "not measured", "", path.parent.name, ""),
        )
        for path in sorted(ROOT.glob("experiments/*/claims.yaml"))
        for c in claims.load(path)
    ]


def test_every_claim_of_the_tables_exists_in_its_unit():
    parts = advice.fragments(real_board())
    cells = [
        cell
        for row in (*decisions.CHANGES, *decisions.SEARCHES, *decisions.SETTINGS)
        for cell in (row.sp, row.mup, row.umup)
        if cell
    ]
    named = [name for cell in cells for name in (cell.motion, cell.price) if name]
    assert len(named) > 40 and len({*named}) == len(named)
    text = parts["changes"] + parts["searches"] + parts["settings"]
    assert all(f"[{name}](studies/" in text for name in named)
    tally = f"The three tables rest on {len(named)} claims: not measured {len(named)}. "
    assert parts["evidence"].startswith(tally)
    assert text.count("**Not measured**") == len(cells) and "**Carry" not in text
    assert parts["unknown"].startswith("No claim of this book is on: ")
    assert "| change | SP | μP | u-μP |" in parts["changes"]
    assert "| way | μP | u-μP |" in parts["searches"]


def test_a_claim_that_is_taken_from_the_board_is_missed():
    board = [v for v in real_board() if v.id != "umup-price-of-short"]
    with pytest.raises(BookError, match="lr_transfer/umup-price-of-short"):
        advice.fragments(board)


def test_prices_say_which_side_they_bound_and_motion_which_way_it_is_claimed():
    """A claim to move has no stillness within its bound, a claim to stay has."""
    board = {f"{v.study}/{v.id}": v for v in real_board()}
    for row in (*decisions.CHANGES, *decisions.SEARCHES, *decisions.SETTINGS):
        for cell in filter(None, (row.sp, row.mup, row.umup)):
            found = advice.claims_of(row, cell, board)
            if v := found.get("motion"):
                assert (v.bound_min <= 0 <= v.bound_max) != cell.moves, v.id
            if v := found.get("price"):
                assert math.isfinite(v.bound_max) or v.bound_min > 0, v.id
