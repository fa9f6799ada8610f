"""Declared captions and tables, and what claims may name."""

from __future__ import annotations

import pytest

from synthetic import EMPTY, make_runs
from umup.lab import words
from umup.lab.absent import NotMeasured
from umup.lab.quantities import Quantities, spanning
from umup.lab.report import text_of
from umup.laws import Interval


def price(results, scheme, doubled=False):
    if scheme not in ("mup", "umup"):
        raise NotMeasured("no SP")
    return Interval(0.25, 0.125, 0.5).scaled(2.0 if doubled else 1.0)


def test_a_word_stands_for_every_value_of_its_axes():
    declared = {
        "price_{scheme}": words.word(price, words.nats),
        "twice{scheme}": words.word(price, text_of, {"scheme": {"": "umup"}}, doubled=True),
        "name": words.word(lambda results: "as it is"),
    }
    assert words.texts(declared, EMPTY, 2, scheme=("sp", "mup")) == {
        "price_sp": "not measured",
        "price_mup": "0.250 [0.125, 0.500]",
        "twice": "0.50 [0.25, 1.00]",
        "name": "as it is",
    }


def test_a_table_has_a_column_for_every_heading_that_has_a_text():
    rows = [{"width": 8, "x": "1", "note": ""}, {"width": 16, "y": "2", "note": ""}]
    lines = words.table(rows).splitlines()
    assert lines == ["| width | x | y |", "| --- | --- | --- |", "| 8 | 1 |  |", "| 16 |  | 2 |"]
    assert words.table([]) == "Not measured."


def test_an_interval_is_three_columns():
    row = Interval(1.0, 0.5, 2.0).columns("loss")
    assert row == {"loss": 1.0, "loss_lo": 0.5, "loss_hi": 2.0}
    assert Interval.of(row, "loss") == Interval(1.0, 0.5, 2.0)
    assert words.cell(row, "loss", 1) == "1.0" and words.cell(row, "loss") == "1.00 [0.50, 2.00]"


def test_one_sentence_says_what_was_trained():
    runs = make_runs(widths=(32, 256)).assign(d_head=16)
    runs.loc[runs.index[:2], "status"] = "diverged"
    text = words.trained(runs, "runs under 2 recipes")
    assert text.startswith(f"{len(runs)} runs under 2 recipes, 2 of them diverged: width 32, 256, ")
    assert "tokens per step, 2000 steps; up to " in text
    assert words.trained(runs.iloc[:0]) == "Not measured: no runs are on record."


def test_quantities_are_registered_under_their_names():
    quantity = Quantities()
    assert quantity(price) is price and quantity == {"price": price}


def test_a_span_that_is_too_short_is_not_measured():
    assert spanning([64, 8, 16], 8, "widths") == (8, 64)
    with pytest.raises(NotMeasured, match=r"^widths span 8×, the claim needs 16×$"):
        spanning([64, 8], 16, "widths")
    with pytest.raises(NotMeasured, match="widths span nothing, the claim needs 1×"):
        spanning([], 1, "widths")
