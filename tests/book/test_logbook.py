"""The log: days, studies and the verdicts that their claims have today."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd

from umup.book import logbook
from umup.lab import claims

BOARD = claims.board(Path(__file__).parents[2] / "experiments")


def row(study: str, created: str, hours: float = 0.5) -> dict[str, object]:
    return {"study": study, "profile": "cpu", "created": created, "wall_s": 3600 * hours}


def test_the_newest_day_comes_first_and_failures_have_names() -> None:
    one, other = BOARD[0], BOARD[1]
    verdicts = [
        replace(one, study="a", id="x", verdict="fails"),
        replace(other, study="a", id="y", verdict="holds"),
    ]
    runs = pd.DataFrame(
        [
            row("a", "2026-11-20T23:00:00+00:00"),
            row("b", "2026-11-28T01:00:00+00:00"),
            row("a", "2026-11-28T02:00:00+00:00", 1.0),
            row("a", "2026-11-28T03:00:00+00:00", 0.1),
        ]
    )
    pages = [cast(Any, SimpleNamespace(name="a", title="Does it?"))]
    text = logbook.page(runs, verdicts, pages)
    days = [line for line in text.splitlines() if line.startswith("##")]
    assert days == ["## 28 November 2026", "## 20 November 2026"]
    first = text.splitlines()[2]
    said = 'holds 1, fails 1 (fails: <a href="claims.html#a-x">x</a>)'
    assert first == f"- **[Does it?](studies/a.ipynb)** {said}. 2 records, 1.1 hours, `cpu`."
    assert "- **`b`** no claims. 1 record, 0.5 hours" in text
    assert text.count("studies/a.ipynb") == 2


def test_without_records_it_says_so() -> None:
    assert "No records" in logbook.page(pd.DataFrame(), BOARD, [])
