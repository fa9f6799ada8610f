"""Pages of studies of which a part is done: every cell runs, and says what is not measured.

The cells of each notebook are played in this process, in its order, on parts of the committed
records: a slice on a GPU leaves the first of them, and parameters may ask for some of the rest.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jupytext
import pandas as pd
import pytest
from IPython.display import Markdown
from matplotlib.figure import Figure

from synthetic import EMPTY
from umup.lab import folders, records, report, study
from umup.lab.claims import Verdict
from umup.lab.records import Results

LOSSES = ["final_loss", "best_loss", "val_loss", "val_bits_per_byte"]


@functools.cache
def whole(name: str) -> Results:
    return records.read_results(study.store(name, "cpu"))


def kept(results: Results, keep: Callable[[pd.DataFrame], Any]) -> Results:
    """The rows of either kind for which ``keep`` is true, as ``read_results`` would give them."""
    return Results(*(rows[keep(rows)].reset_index(drop=True) for rows in results))


def first(results: Results, share: float) -> Results:
    """The rows that were made first, at least one where there are any."""
    made = sorted(pd.concat([rows["created"] for rows in results]))
    if not made:
        return results
    last = made[max(int(share * len(made)), 1) - 1]
    return kept(results, lambda rows: rows["created"] <= last)


def diverged(results: Results) -> Results:
    lost = dict.fromkeys(LOSSES, math.nan) | {"status": "diverged"}
    return Results(results.runs.assign(**lost), results.points)


def alike(results: Results, *names: str) -> Results:
    """The rows that have the first value on record of the first of ``names`` that they know."""

    def keep(rows: pd.DataFrame) -> Any:
        specs = pd.Series([json.loads(s) for s in rows["spec"]], rows.index, dtype=object)
        for name in names:
            values = rows[name] if name in rows else specs.map(lambda s, n=name: s.get(n))
            if values.notna().any():
                return (values == values.dropna().iloc[0]) | values.isna()
        return pd.Series(True, rows.index)

    return kept(results, keep)


PARTS: dict[str, Callable[[Results], Results]] = {
    "nothing": lambda results: EMPTY,
    "the first row": lambda results: first(results, 0.0),
    "a quarter": lambda results: first(results, 0.25),
    "runs alone": lambda results: Results(results.runs, EMPTY.points),
    "points alone": lambda results: Results(EMPTY.runs, results.points),
    "diverged": diverged,
    "one seed": lambda results: alike(results, "seed"),
    "one scheme": lambda results: alike(results, "scheme", "convention", "model"),
    "one width": lambda results: alike(results, "d_model", "width", "d_head", "n_layers"),
}


class Page(NamedTuple):
    """What the cells of a notebook show: texts, glued texts, figures and verdicts."""

    texts: list[str]
    glued: dict[str, str]
    figures: list[Figure]
    verdicts: list[Verdict]


@functools.cache
def cells(name: str) -> list[tuple[bool, ast.Module]]:
    """The code cells of a study, and whether it is the one of the parameters."""
    notebook = jupytext.read(folders.folder(name) / "study.py")
    return [
        ("parameters" in cell.metadata.get("tags", []), ast.parse(cell.source))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def play(name: str, results: Results, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Page:
    page = Page([], {}, [], [])
    monkeypatch.setattr(study, "run_or_load", lambda *args: results)
    monkeypatch.setattr(study, "recorded", lambda *args: results)  # of whatever profile
    monkeypatch.setattr(report, "glue", page.glued.__setitem__)
    space: dict[str, Any] = {"__name__": "notebook"}
    for parameters, cell in cells(name):
        body, shown = cell.body, None
        if isinstance(body[-1], ast.Expr):
            body, shown = body[:-1], ast.Expression(body[-1].value)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), name, "exec"), space)
            value = eval(compile(shown, name, "eval"), space) if shown else None
        page.texts.extend([printed.getvalue()] if printed.getvalue() else [])
        page.texts.extend([value.data] if isinstance(value, Markdown) else [])
        page.figures.extend([value] if isinstance(value, Figure) else [])
        if parameters:
            space |= study.parameters(name, "cpu") | {"mode": "load", **given}
    page.verdicts.extend(space["verdicts"])
    return page


def check(page: Page) -> None:
    assert all(text.strip() for text in (*page.texts, *page.glued.values()))
    for text in (*page.texts, *page.glued.values()):
        named = text.replace("the kind nan", "")  # a disturbance, not a number
        assert not re.search(r"\b(nan|NaN|inf|None)\b", named), text
    for figure in page.figures:
        assert figure.axes
        assert any(ax.has_data() or ax.texts for ax in figure.axes)
    for v in page.verdicts:
        assert math.isnan(v.value) == (v.verdict == "not measured"), v
        assert v.note or v.verdict != "not measured", v


@functools.cache
def names_glued(name: str) -> set[str]:
    """The names that captions of a study's figures show."""
    source = (folders.folder(name) / "study.py").read_text(encoding="utf-8")
    return set(re.findall(r"\{glue:text\}`(\w+)`", source))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", folders.names())
def test_every_cell_runs_on_a_part_of_the_records(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = whole(name)
    some = PARTS[part](full)
    same = list(map(len, some)) == list(map(len, full))
    if same and not (part == "diverged" and len(full.runs)):
        pytest.skip("all of the records")
    page = play(name, some, monkeypatch)
    check(page)
    assert names_glued(name) <= set(page.glued)  # a caption without its text fails the book
    if part == "nothing":
        assert {v.verdict for v in page.verdicts} == {"not measured"}
        assert "not measured" in page.texts[0].lower()
        for figure in page.figures:
            assert "not measured" in figure.axes[0].texts[0].get_text()
    if part == "a quarter":
        for figure in page.figures:
            figure.draw_without_rendering()


@pytest.mark.parametrize(
    "given", [{"widths": [128]}, {"schemes": ["umup"]}, {"schemes": ["mup", "sp"]}], ids=str
)
def test_every_cell_runs_with_parameters_that_ask_for_less(
    given: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, values),) = given.items()
    runs = whole("lr_transfer").runs
    asked = runs[{"widths": "d_model", "schemes": "scheme"}[name]].isin(values)
    some = Results(runs[asked].reset_index(drop=True), EMPTY.points)
    page = play("lr_transfer", some, monkeypatch, **given)
    check(page)
    assert "Best loss at width" in page.texts[0]


def test_a_page_of_all_records_lacks_nothing_but_what_the_profile_has_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = play("lr_transfer", whole("lr_transfer"), monkeypatch)
    check(page)
    assert not any("not measured" in text.lower() for text in page.glued.values())
    assert page.texts[0].startswith("Over 8× in width the best learning rate moves: SP's by ")
