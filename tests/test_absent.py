"""What is not measured: who says so, and what is said instead."""

from __future__ import annotations

import pandas as pd
import pytest

from umup.lab import figures, report
from umup.lab.absent import NotMeasured, otherwise, required
from umup.laws import Interval


def test_rows_are_required_and_returned_as_they_are():
    rows = pd.DataFrame({"x": [1]})
    assert required(rows, "no rows") is rows
    with pytest.raises(NotMeasured, match=r"^no rows$"):
        required(rows.iloc[:0], "no rows")


def test_only_what_is_not_measured_is_answered_otherwise():
    @otherwise(lambda missing: f"instead: {missing}")
    def tell(error=None):
        """Tell."""
        if error:
            raise error
        return "told"

    assert (tell(), tell(NotMeasured("no runs")), tell.__doc__) == (
        "told",
        "instead: no runs",
        "Tell.",
    )
    with pytest.raises(KeyError):  # a defect is no gap in the records
        tell(KeyError("x"))


def absent(*args):
    raise NotMeasured("no runs")


def test_texts_say_it_in_their_places():
    assert report.known(absent)() == report.said(2, absent) == report.ABSENT
    assert report.worded(absent)() == "Not measured: no runs."
    assert report.several(("a", "b"), absent) == {"a": report.ABSENT, "b": report.ABSENT}
    assert report.several(("a", "b"), lambda: ("1", "2")) == {"a": "1", "b": "2"}
    assert report.markdown(pd.DataFrame(), {"x": "X"}) == "Not measured."


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (Interval(1.0, 0.5, 1.5), "1.00 [0.50, 1.50]"),
        (Interval(float("inf"), float("inf"), float("inf")), "∞ (diverged)"),
        (Interval(float("nan"), -float("inf"), float("inf")), report.ABSENT),
    ],
)
def test_a_measurement_as_text_tells_divergence_from_absence(measured, text):
    assert report.said(2, lambda: measured) == text


def test_figures_and_panels_say_it_in_themselves():
    (ax,) = figures.drawn(absent)().axes
    assert ax.texts[0].get_text() == "not measured: no runs" and not ax.axison
    figure, (left, right) = figures.subplots(7, 3, 2, sharey=True)
    figures.panel(left, absent)
    figures.panel(right, lambda ax, x: ax.plot(x, x), [1.0, 2.0])
    assert left.texts[0].get_text() == "not measured: no runs" and not right.texts
    assert right.get_lines()[0].get_xydata().tolist() == [[1, 1], [2, 2]]
    figure.draw_without_rendering()
    assert [t.get_text() for t in right.get_xticklabels()] != []
