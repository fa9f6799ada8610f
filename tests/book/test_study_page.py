"""Study pages: titles follow verdicts, advice names its claims, and every page has one order."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from umup.book import headlines, quotes, study_page
from umup.book.scale import Scale
from umup.errors import BookError
from umup.lab import claims, takeaway
from umup.lab.claims import Verdict

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent for path in (ROOT / "experiments").glob("*/study.ipynb"))
NAMES = [folder.name for folder in STUDIES]
BOARD = {f"{v.study}/{v.id}": v for v in claims.board(ROOT / "experiments")}

# --- titles ---------------------------------------------------------------------------------------


def test_every_study_has_a_headline() -> None:
    assert sorted(headlines.HEADLINES) == NAMES


@pytest.mark.parametrize("study", headlines.HEADLINES)
def test_a_title_is_short_and_follows_the_verdict_of_its_claim(study: str) -> None:
    headline = headlines.HEADLINES[study]
    path = f"{study}/{headline.claim}"

    def titled(verdict: str) -> str | None:
        return headlines.title(study, BOARD | {path: replace(BOARD[path], verdict=verdict)})

    assert titled("holds") == titled("exact") == headline.holds
    assert titled("fails") == headline.fails != headline.holds
    assert titled("inconclusive") == f"Open: {headline.asks}" and headline.asks.endswith("?")
    assert titled("not measured") is None
    for kind in ("holds", "fails", "inconclusive"):
        assert len(str(titled(kind))) <= headlines.LONGEST


def test_a_headline_needs_its_claim_and_a_new_study_none() -> None:
    with pytest.raises(BookError, match="lr_transfer/mup-transfers"):
        headlines.title("lr_transfer", {})
    assert headlines.title("my_own", {}) is None


def test_the_sidebar_lists_each_study_once_under_a_decision() -> None:
    parts = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    listed = [
        (page["file"].removeprefix("studies/"), part["caption"])
        for part in parts
        for page in part["chapters"]
        if page["file"].startswith("studies/")
    ]
    assert sorted(name for name, _ in listed) == NAMES
    assert "Studies" not in dict(listed).values()


# --- advice ---------------------------------------------------------------------------------------

OPEN = ("inconclusive", "not measured")
SAYS_OPEN = re.compile(r"\bopen\b", re.IGNORECASE)


def advice(folder: Path) -> str:
    """The study's box as its committed notebook shows it: written there, or made by a cell."""
    cells = json.loads((folder / "study.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    for cell in cells:
        if "takeaway" in cell["metadata"].get("tags", []):
            texts += ["".join(out["data"].get("text/markdown", "")) for out in cell["outputs"]]
    (found,) = (box[0] for text in texts for box in study_page.TAKEAWAY.finditer(text))
    return found


def faults(study: str, box: str, board: dict[str, Verdict]) -> list[str]:
    """What of a box of advice the board does not bear out.

    Every line of advice names the claims that it rests on; where one of them is not decided, the
    line says so; and advice stands nowhere else: below the list there are reasons.
    """
    lines = re.sub(r"\n  +", " ", box).splitlines()[2:-1]
    items = [line for line in lines if line.startswith("- ")]
    reasons = " ".join(line for line in lines if not line.startswith("- ")).strip()
    found = [] if items else ["no line of advice"]
    if not reasons.startswith("**Because** "):
        found.append(f"not a reason: {reasons[:60]}")
    for text in [*items, *filter(None, reasons.split(". "))]:
        named = quotes.linked(study, text)
        if text in items and not named:
            found.append(f"names no claim: {text}")
        for path in named:
            if path not in board:
                found.append(f"not on the board: {path}")
            elif board[path].verdict in OPEN and not SAYS_OPEN.search(text):
                found.append(f"{path} is {board[path].verdict}, which is not said: {text}")
    return found


@pytest.mark.parametrize("folder", STUDIES, ids=NAMES)
def test_advice_names_its_claims_and_says_which_are_open(folder: Path) -> None:
    assert faults(folder.name, advice(folder), BOARD) == []


def test_advice_that_goes_beyond_the_board_is_seen() -> None:
    sound = takeaway.box(["Do it. [a](claims.yaml)", "Open. [b](claims.yaml)"], "it helps.")
    one = next(iter(BOARD.values()))
    board = {"s/a": replace(one, verdict="holds"), "s/b": replace(one, verdict="inconclusive")}
    assert faults("s", sound, board) == []
    opened = board | {"s/a": replace(one, verdict="not measured")}
    assert faults("s", sound, opened) == [
        "s/a is not measured, which is not said: - Do it. [a](claims.yaml)"
    ]
    assert faults("s", sound.replace("[a]", "[c]"), board) == ["not on the board: s/c"]
    assert faults("s", sound.replace(" [a](claims.yaml)", ""), board) == [
        "names no claim: - Do it."
    ]
    assert faults("s", sound.replace("**Because** it", "Use it, it"), board) == [
        "not a reason: Use it, it helps."
    ]
    assert faults("s", takeaway.box([], "it helps."), board) == ["no line of advice"]
    late = takeaway.box(["Do it. [a](claims.yaml)"], "it helps [b](claims.yaml).")
    assert faults("s", late, board)[0].startswith("s/b is inconclusive, which is not said")


def test_items_of_advice_follow_the_verdicts() -> None:
    one = replace(next(iter(BOARD.values())), id="a", statement="It is so.")
    said = {"a": {"holds": "Do it.", "fails": "Leave it."}}
    found = [
        takeaway.items([replace(one, verdict=kind), replace(one, id="b")], said)[0]
        for kind in ("holds", "fails", "inconclusive")
    ]
    link = "[a](claims.yaml)"
    assert found == [
        f"Do it. {link}",
        f"Leave it. {link}",
        f"Open (inconclusive): It is so. {link}",
    ]


def test_a_link_to_a_claim_becomes_a_badge_that_leads_to_it() -> None:
    path = "lr_transfer/sp-drifts"
    board = {path: replace(BOARD[path], verdict="fails", statement='It "falls".')}
    text = quotes.badges("lr_transfer", "Do. [sp-drifts](claims.yaml)", board)
    assert text == (
        'Do. <a class="sd-badge sd-bg-danger sd-bg-text-danger" href="#claim-sp-drifts" '
        'title="It &quot;falls&quot;.">fails</a>'
    )
    other = quotes.badges("coupling", "[sp-drifts](../lr_transfer/claims.yaml)", board)
    assert 'href="lr_transfer.html#claim-sp-drifts"' in other
    with pytest.raises(BookError, match="coupling/sp-drifts"):
        quotes.badges("coupling", "[sp-drifts](claims.yaml)", board)


# --- the page -------------------------------------------------------------------------------------

LONG = "| width | loss |\n| --- | --- |\n" + "| 1 | 2 |\n" * 13


def entry(**changes: Any) -> dict[str, Any]:
    """A claim as `board.entries` gives it."""
    shown = {"value": "1", "interval": "[0, 2]", "bound": "at most 3", "strip": "<svg></svg>"}
    one = {"study": "s", "id": "a", "anchor": "claims.html#s-a", "statement": "It is so."}
    one |= {"verdict": "holds", "unit": "nats", "evidence": "", "profile": "cpu", "note": ""}
    one |= {"source": "this book", "who_is_wrong": None, "why": "Since.", "page": "studies/s.html"}
    one |= {"figure": None, "records": None, "order": "shown", "order_reason": "none is older"}
    one |= {"bound_commit": "0123456789", "bound_date": "2026-11-20T10:00:00+00:00"}
    return one | {"first_record": "2026-11-21T11:05:00+00:00", "shown": shown} | changes


SCALE = Scale(
    trainings=1200,
    others=1,
    seeds=3,
    weights=(38_000, 1_742_000),
    tokens=(256_000, 256_000),
    all_tokens=0,
    hours=2.26,
    dollars=0.2,
    devices=("cpu",),
    corpora=("sotu",),
    first=datetime(2026, 11, 21, 11, 5, tzinfo=UTC),
    last=datetime(2026, 11, 24, tzinfo=UTC),
)
CLAIMS = [
    entry(id="f", verdict="fails", order="not shown"),
    entry(),
    entry(id="e", verdict="exact", bound_commit="89abcdef", bound_date="2026-11-21T11:00:00+00:00"),
    entry(id="o", verdict="inconclusive", first_record=None),
]
EXTRAS = study_page.Extras(
    title="It is so",
    claims=CLAIMS,
    scale=SCALE,
    gaps="Half of it.",
    parameters="| parameter |\n|---|\n| `x` |",
    notebook="notebooks/s.ipynb",
    records=["records/s-cpu.csv"],
)


def code(number: int, tags: list[str], markdown: str = "") -> dict[str, Any]:
    data = {"text/markdown": markdown, "text/plain": "x"}
    shown = {"output_type": "display_data", "data": data, "metadata": {}}
    cell = {"cell_type": "code", "id": f"c{number}", "execution_count": None, "source": "f()"}
    return cell | {"metadata": {"tags": ["hide-input", *tags]}, "outputs": [shown] * bool(markdown)}


def prose(number: int, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": f"m{number}", "metadata": {}, "source": text}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A rendered notebook in the order of all notebooks."""
    box = ":::{admonition} Do this\n:class: takeaway\n- Do. [a](claims.yaml)\n:::"
    cells = [
        prose(0, "# Is it so?\n\n**Question.** Does it?"),
        code(0, ["parameters"]),
        code(1, ["answer"], "Yes."),
        prose(1, "## What was run\n\nThis."),
        prose(2, "## The figure"),
        code(2, ["picture"], "figure"),
        prose(3, "## More\n\nText."),
        code(3, [], f"Look:\n\n{LONG}"),
        code(4, [], "| a |\n|---|\n| 1 |"),
        prose(4, "## Verdicts\n\nBounds were first."),
        code(5, ["verdicts"], "| claim |\n|---|\n| x |"),
        prose(5, f"## What to take from it\n\n{box}"),
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path = tmp_path / "s.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def shaped(path: Path, extras: study_page.Extras = EXTRAS) -> list[dict[str, Any]]:
    board = {"s/a": replace(next(iter(BOARD.values())), verdict="holds")}
    study_page.shape(path, "s", extras, board)
    nbformat.validate(nbformat.read(path, as_version=4))
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_a_page_has_the_order_of_the_template(page: Path) -> None:
    cells = shaped(page)
    order = ["page-title", "page-gaps", "m5", "m0", "c1", "c2", "c0", "m1", "m3", "c3", "c4"]
    assert [cell["id"] for cell in cells] == [*order, "m4", "c5", "page-claims", "page-end"]
    text = {cell["id"]: "".join(cell["source"]) for cell in cells}
    assert text["page-title"].startswith("# It is so\n\n```{raw} html\n<dl class=")
    assert text["page-gaps"].endswith("\n:class: note\nHalf of it.\n:::")
    assert text["m5"].startswith(":::{admonition} Do this") and 'href="#claim-a"' in text["m5"]
    assert text["m0"] == "**Question.** *Is it so?* Does it?"
    assert not any("hide-input" in cell["metadata"].get("tags", []) for cell in cells)
    assert [cell["outputs"] for cell in cells if cell["id"] == "c5"] == [[]]
    assert re.findall(r'<li id="([^"]*)"', text["page-claims"]) == [
        "claim-f",
        "claim-a",
        "claim-e",
        "claim-o",
    ]
    assert text["page-claims"].count("<svg>") == 4
    assert '<a href="../notebooks/s.ipynb" download>' in text["page-end"]
    assert '<a href="../records/s-cpu.csv" download>s-cpu.csv</a>' in text["page-end"]
    assert "{dropdown} Parameters of every profile\n| parameter |" in text["page-end"]


def test_what_was_run_has_a_heading_where_the_notebook_has_none(page: Path) -> None:
    notebook = json.loads(page.read_text(encoding="utf-8"))
    notebook["cells"][3] = code(7, [], "525 runs.")
    page.write_text(json.dumps(notebook), encoding="utf-8")
    cells = shaped(page)
    at = next(i for i, cell in enumerate(cells) if cell["id"] == "c7")
    assert cells[at - 1]["source"] == "## What was run" and cells[at - 2]["id"] == "c0"


def test_without_a_finding_the_question_is_the_title(page: Path) -> None:
    plain = replace(EXTRAS, title=None, gaps="", claims=[], parameters="")
    text = {cell["id"]: "".join(cell["source"]) for cell in shaped(page, plain)}
    assert text["page-title"].startswith("# Is it so?\n") and text["m0"] == "**Question.** Does it?"
    assert "page-gaps" not in text and "page-claims" not in text
    assert "Parameters of" not in text["page-end"]


def test_a_title_that_is_no_question_ends_as_a_sentence() -> None:
    assert study_page.asked("What τ does", "**Question.** Is it?") == (
        "**Question.** *What τ does.* Is it?"
    )


def test_advice_that_a_cell_makes_is_moved_too(page: Path) -> None:
    notebook = json.loads(page.read_text(encoding="utf-8"))
    box = takeaway.box(["Do. [a](claims.yaml)"], "why.")
    notebook["cells"][-1] = code(6, ["takeaway"], box)
    page.write_text(json.dumps(notebook), encoding="utf-8")
    moved = shaped(page)[2]
    assert moved["id"] == "c6"
    assert 'href="#claim-a"' in moved["outputs"][0]["data"]["text/markdown"]


def test_long_tables_are_folded_and_short_ones_stay(page: Path) -> None:
    shown = {c["id"]: c["outputs"] for c in shaped(page) if c["cell_type"] == "code"}
    long, short = (shown[name][0]["data"]["text/markdown"] for name in ("c3", "c4"))
    assert long.startswith("Look:\n\n\n:::{dropdown} Table of 13 rows: width · loss\n| width")
    assert long.endswith("| 1 | 2 |\n:::\n")
    assert short == "| a |\n|---|\n| 1 |"
    wide = "| a | b | c | d | e |\n|---|---|---|---|---|\n" + "| 1 | 2 | 3 | 4 | 5 |\n" * 13
    assert "Table of 13 rows: a · b · c · d · …\n" in study_page.fold(wide)
    twelve = LONG.removesuffix("| 1 | 2 |\n")
    assert study_page.fold(twelve) == twelve


def test_the_strip_says_how_much_since_when_and_how_it_was_judged() -> None:
    text = study_page.facts("s", EXTRAS)
    found = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert found == {
        "Models": "0.038–1.7 M parameters",
        "Tokens per run": "256 k",
        "Runs": "1,200, 3 seeds",
        "Other measurements": "1",
        "Corpus": "sotu",
        "Compute": "2.3 hours",
        "Device": "cpu",
        "Measured": "21 Nov 2026 – 24 Nov 2026",
        "Bounds, then records": "2 of 4 claims: <code>89abcde</code> 21 Nov 11:00 → first record "
        "21 Nov 11:05",
    }
    assert re.findall(r'href="([^"]*)">(\w+ \d)</a>', text) == [
        ("../claims.html?study=s&amp;verdict=holds,exact", "holds 2"),
        ("../claims.html?study=s&amp;verdict=fails", "fails 1"),
        ("../claims.html?study=s&amp;verdict=inconclusive", "open 1"),
    ]
    assert text.count('id="show-code"') == 1
    late = [entry(order="not shown")]
    assert "not shown for any of 1 claims" in study_page.facts("s", replace(EXTRAS, claims=late))
    nothing = Scale(0, 0, 0, (0, 0), (0, 0), 0, 0.0, 0.0, (), (), None, None)
    empty = study_page.facts("s", replace(EXTRAS, claims=[], scale=nothing))
    assert "<dd>none yet</dd></div></dl>" in empty


@pytest.mark.parametrize("folder", STUDIES, ids=NAMES)
def test_the_notebook_to_download_is_valid(folder: Path) -> None:
    nbformat.validate(nbformat.read(folder / "study.ipynb", as_version=4))
