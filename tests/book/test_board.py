"""The claims board: what each claim shows, in which order, and what the git history says of it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from umup.book import board, board_page, csv_files, provenance, strips
from umup.book.provenance import Commit, History, Order

ROOT = Path(__file__).resolve().parents[2]
NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Verdict:
    id: str = "sp-drifts"
    statement: str = "|shift| of <SP> & co is `large`"
    source: str = "u-μP (arXiv:2407.17465; workshop version, Figure 1)"
    value: float = -1.07
    lo: float = -1.15
    hi: float = -0.98
    bound_min: float = -INF
    bound_max: float = -0.5
    unit: str = "octaves"
    verdict: str = "holds"
    note: str = ""
    n: int = 3
    where: str = "width 64"
    study: str = "lr"
    profile: str = "cpu"


CELL = {"metadata": {"tags": ["claim:sp-drifts"], "mystnb": {"figure": {"name": "fig-lr"}}}}
STUDY: Any = SimpleNamespace(name="lr", title="A title", notebook={"cells": [CELL]})
MANY = [
    Verdict(),
    Verdict(id="b", verdict="exact", value=2.0, lo=2.0, hi=2.0, bound_max=3.0, study="gone"),
    Verdict(id="c", verdict="not measured", value=NAN, lo=NAN, hi=NAN, note="no runs", profile=""),
    Verdict(id="d", verdict="fails", lo=-INF, source="asked by this book", note="close: by half"),
    Verdict(id="e", verdict="inconclusive", study="gone", profile="h100"),
]


class Page(HTMLParser):
    """The ids of a page, and the attributes and the text of its claims."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.claims: dict[str, dict[str, Any]] = {}
        self.open: list[str] = []
        for html in re.findall(r"```\{raw\} html\n(.*?)\n```", text, re.DOTALL):
            self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("input", "rect", "path", "circle"):
            self.open.append(tag)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag == "li":
            self.claims[str(given["id"])] = {**given, "text": "", "links": []}
        if tag == "a" and "li" in self.open:
            [*self.claims.values()][-1]["links"].append(given["href"])

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "li" in self.open:
            [*self.claims.values()][-1]["text"] += data


def test_failures_come_first_and_every_claim_has_a_place_of_its_own():
    found = board.entries(MANY, [STUDY])
    assert [one["id"] for one in found] == ["d", "e", "sp-drifts", "b", "c"]
    page = Page(board_page.page(found, {"lr": "A title"}))
    assert len(page.ids) == len(set(page.ids))
    assert [*page.claims] == ["lr-d", "gone-e", "lr-sp-drifts", "gone-b", "lr-c"]
    for one in found:
        assert one["anchor"] == f"claims.html#{one['study']}-{one['id']}"
    # The same id in two studies does not collide.
    twice = board.entries([Verdict(), Verdict(study="other")], [STUDY])
    assert [*Page(board_page.page(twice, {})).claims] == ["lr-sp-drifts", "other-sp-drifts"]


def test_a_claim_shows_what_was_measured_whose_it_is_and_where_it_is_seen():
    order = Order(
        False,
        "records are older",
        Commit("0123456789abcdef", datetime(2026, 11, 22, 12, 0, tzinfo=UTC)),
        datetime(2026, 11, 22, 11, 5, tzinfo=UTC),
    )
    where = ("lr", "sp-drifts")
    found = board.entries(
        MANY, [STUDY], {where: "It is <so>."}, {where: order}, {("lr", "cpu"): "lr-cpu.csv"}
    )
    text = board_page.page(found, {"lr": "A <title>"})
    assert '<h3><a href="studies/lr.html">A &lt;title&gt;</a></h3>' in text
    assert "<h3>gone</h3>" in text, "a study without a page is not linked to"
    claims = Page(text).claims
    holds = claims["lr-sp-drifts"]
    assert "<SP> & co is large" in holds["text"] and "&lt;SP&gt; &amp; co" in text
    assert "−1.07 [−1.15,\xa0−0.98] octaves" in holds["text"]
    assert "allowed: at most −0.50 octaves" in holds["text"]
    assert "3 seeds, width 64 · profile cpu · u-μP (arXiv:2407.17465; workshop" in holds["text"]
    assert holds["links"] == [
        "#lr-sp-drifts",
        "https://arxiv.org/abs/2407.17465",
        "studies/lr.html#fig-lr",
        "records/lr-cpu.csv",
        "studies/lr.html#claim-sp-drifts",
    ]
    beside = [link for link in claims["gone-b"]["links"] if link.startswith("studies")]
    assert beside == [], "a study without a page is not linked to"
    assert "order not shown" in holds["text"] and "It is <so>." in holds["text"]
    assert "Bound: commit 0123456, 2026-11-22 12:00 UTC." in holds["text"]
    assert "First record of the profile cpu: 2026-11-22 11:05 UTC." in holds["text"]
    assert "The order cannot be shown: records are older." in holds["text"]
    assert "fails here" not in holds["text"]
    assert "Our expectation fails here. Close: by half." in claims["lr-d"]["text"]
    assert "–" in claims["lr-c"]["text"] and "No runs." in claims["lr-c"]["text"]
    assert "history not available" in claims["lr-c"]["text"]
    keys = {"data-verdict": "fails", "data-source": "book", "data-profile": "cpu"}
    assert keys.items() <= claims["lr-d"].items()
    linked = board_page.page(found, {}, "https://example.org/umup")
    assert '"https://example.org/umup/commit/0123456789abcdef"' in linked


def test_on_its_study_s_page_a_claim_leads_to_the_board():
    found = board.entries(MANY, [STUDY], files={("lr", "cpu"): "lr-cpu.csv"})
    (one,) = (one for one in found if one["id"] == "sp-drifts")
    text = board_page.item(one, up="../")
    claim = Page(board_page.raw(text)).claims["claim-sp-drifts"]
    assert claim["links"] == [
        "#claim-sp-drifts",
        "https://arxiv.org/abs/2407.17465",
        "#fig-lr",
        "../claims.html#lr-sp-drifts",
    ]
    assert one["shown"]["strip"] in text and "data-" not in text
    assert "Why this bound</summary>" in text and "history not available" not in text


def test_without_claims_both_say_so():
    assert board_page.page([], {}) == board.summary([]) == "No study states a claim yet.\n"


def test_claims_json_is_plain_json_without_infinities():
    found = board.entries(MANY, [STUDY])
    text = json.dumps(found, allow_nan=False)
    one = {entry["id"]: entry for entry in json.loads(text)}
    assert all(entry.keys() == one["d"].keys() for entry in one.values())
    wanted = {"value": -1.07, "lo": None, "hi": -0.98, "bounds": {"min": None, "max": -0.5}}
    wanted |= {"who_is_wrong": "Our expectation fails here.", "source_group": "this book"}
    wanted |= {"seeds": 3, "evidence": "3 seeds, width 64", "order": "not shown", "figure": None}
    assert wanted.items() <= one["d"].items()
    assert one["sp-drifts"]["figure"] == "studies/lr.html#fig-lr"
    assert one["c"]["value"] is None and one["c"]["profile"] is None
    assert one["b"]["page"] is None and one["b"]["who_is_wrong"] is None


@pytest.mark.parametrize(
    ("source", "group", "who"),
    [
        ("u-μP (arXiv:2407.17465), Table 1", "u-μP paper", "The paper's statement"),
        ("Tensor Programs V (arXiv:2203.03466); the blog's", "Tensor Programs", "The paper's"),
        ("CompleteP (arXiv:2505.01618)", "CompleteP", "The paper's statement"),
        ("LLM With The JAX Ecosystem From Scratch, last part (blog): x", "blog", "The blog's"),
        ("a practitioner's blog post on μP: x", "blog", "The blog's statement"),
        ("asked by this book, beside u-μP (arXiv:2407.17465)", "this book", "Our expectation"),
        ("this book's Theory, erratum 8 (against the blog post)", "this book", "Our expectation"),
        ("η̂_emb/√width is a constant", "this book", "Our expectation"),
        ("Wortsman et al. (arXiv:2309.14322)", "other", "The paper's statement"),
        ("arXiv:2510.19093", "other", "The paper's statement"),
        ("CS336 scaling-laws lecture, on MiniCPM (arXiv:2404.06395)", "other", "The lecture's"),
        ("the authors' library unit-scaling 0.3.5", "other", "The library's statement"),
    ],
)
def test_who_is_wrong_follows_from_the_source(source, group, who):
    assert board_page.GROUPS[board_page.source_group(source)] == group
    assert board.whose(source).startswith(who)
    assert board.whose(source).endswith(" here.")


def test_the_summary_counts_by_source_and_links_to_what_it_counts():
    text = board.summary(board.entries(MANY, [STUDY]))
    assert text.startswith("5 claims: 2 hold, 1 fail, 1 are inconclusive, 1 are not measured.")
    assert "bounds of 0 are older than any record of theirs; for 5 it does not." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| u-μP paper")]
    assert '<a href="claims.html?verdict=holds,exact&amp;source=u-mup">2</a> | 0 |' in row
    assert '"claims.html?verdict=not%20measured&amp;source=u-mup"' in row
    assert "CompleteP" not in text


def test_numbers_share_their_decimals_and_the_bound_has_a_unit():
    assert strips.numbers(Verdict()) == ("−1.07", "[−1.15,\xa0−0.98]", "at most −0.50 octaves")
    whole = Verdict(value=6.0, lo=6.0, hi=9.0, bound_min=2.0, bound_max=INF, unit="rules broken")
    assert strips.numbers(whole) == ("6", "[6,\xa09]", "at least 2 rules broken")
    fine = Verdict(value=1e-7, lo=0.0, hi=2e-7, bound_min=-1e-6, bound_max=1e-6, unit="octaves")
    assert strips.numbers(fine)[2] == "−0.000001 to 0.000001 octaves"
    open_ = Verdict(value=-1.773, lo=-INF, hi=-0.434, bound_min=-0.5, bound_max=0.5)
    assert strips.numbers(open_) == ("−1.77", "[−∞,\xa0−0.43]", "−0.50 to 0.50 octaves")
    # An end that only just passes the bound is not shown on it.
    just = Verdict(value=0.3, lo=0.1, hi=0.503, bound_max=0.5)
    assert strips.numbers(just) == ("0.300", "[0.100,\xa00.503]", "at most 0.500 octaves")
    exact = Verdict(value=100.0, lo=100.0, hi=100.0, bound_min=50.0, bound_max=INF, unit="%")
    assert strips.numbers(exact) == ("100", "", "at least 50 %")
    assert strips.numbers(MANY[2]) == ("", "", "at most −0.5 octaves")


def test_strips_have_one_scale_the_distance_from_the_bound():
    both = Verdict(bound_min=-0.5, bound_max=0.5)
    assert [strips.position(x, both) for x in (-0.5, 0.0, 0.25, 0.5)] == [-1, 0, 0.5, 1]
    # Outside, a step is a factor of two: two, four and eight times as far as the bound.
    assert [strips.position(x, both) for x in (1.0, 2.0, -4.0)] == [2, 3, -4]
    upper = Verdict(bound_min=-INF, bound_max=0.02)
    assert [strips.position(x, upper) for x in (0.0, 0.02)] == [0, 1]
    lower = Verdict(bound_min=50.0, bound_max=INF)
    assert [strips.position(x, lower) for x in (50.0, 100.0)] == [-1, 0]
    # A bound of 0 gives no scale: the measurement does.
    zero = Verdict(value=2.0, lo=1.0, hi=4.0, bound_max=0.0)
    assert [strips.position(x, zero) for x in (0.0, 4.0)] == [1, 2]
    assert strips.position(0.0, Verdict(value=0.0, lo=0.0, hi=0.0, bound_max=0.0)) == 1
    assert strips.position(-INF, both) == -INF


def test_a_strip_clips_with_arrows_and_says_its_numbers():
    def shape(**changes) -> tuple[str, int, int]:
        svg = strips.strip(replace(Verdict(bound_min=-0.5, bound_max=0.5), **changes))
        assert all(0 <= float(x) <= strips.WIDTH for x in re.findall(r' c?x="([^"]*)"', svg))
        assert all(0 <= float(x) <= strips.WIDTH for x in re.findall(r"[MH](-?[\d.]+)", svg))
        return svg, svg.count("z"), svg.count("<circle")

    assert shape(value=0.1, lo=0.0, hi=0.2)[1:] == (0, 1)
    assert shape(value=0.1, lo=0.0, hi=40.0)[1:] == (1, 1)
    assert shape(value=30.0, lo=-20.0, hi=40.0)[1:] == (2, 0)
    assert shape(value=INF, lo=INF, hi=INF)[1:] == (1, 0)
    svg, arrows, dots = shape(value=NAN, lo=NAN, hi=NAN)
    assert (arrows, dots) == (0, 0) and 'aria-label="not measured; allowed: −0.5 to 0.5' in svg
    svg, _, _ = shape(value=0.1, lo=0.1, hi=0.1)
    assert 'class="hollow"' in svg and "#" not in svg, "colours are the style sheet's"
    assert 'aria-label="measured 0.1; allowed: −0.5 to 0.5 octaves"' in svg
    # Grey goes to the end on the side without a bound.
    rect = re.search(r'x="(\d+)" y="3" width="(\d+)"', strips.strip(Verdict()))
    assert rect and int(rect[1]) == 0 < int(rect[2]) < strips.WIDTH


# --- the history ----------------------------------------------------------------------------------

Git = Any
YAML = "- id: {0}\n  quantity: {2}\n  bound: {{max: {1}}}\n"


@pytest.fixture
def git(tmp_path) -> Git:
    """Runs git in a new repository; `day` is that of a commit."""
    subprocess.run(["git", "init", "-q", "-b", "main", str(tmp_path)], check=True)

    def run(*arguments: str, day: int = 1) -> str:
        when = f"2026-01-{day:02d}T12:00:00+00:00"
        who = {f"GIT_{role}_{part}": "x" for role in ("AUTHOR", "COMMITTER") for part in ("NAME",)}
        who |= {"GIT_AUTHOR_EMAIL": "x@y", "GIT_COMMITTER_EMAIL": "x@y"}
        dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
        command = ["git", "-C", str(tmp_path), *arguments]
        done = subprocess.run(
            command, env=os.environ | who | dates, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return run


def write(folder: Path, *claims: tuple, study: str = "s") -> None:
    path = folder / "experiments" / study / "claims.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(YAML.format(*claim, "q") for claim in claims), encoding="utf-8")


def commit(git: Git, day: int) -> str:
    git("add", "-A")
    git("commit", "-qm", f"day {day}", day=day)
    return git("rev-parse", "HEAD")


def times(day: int) -> dict[tuple[str, str], datetime]:
    return {("s", "cpu"): datetime(2026, 1, day, 12, tzinfo=UTC)}


def test_a_bound_dates_from_the_commit_that_brought_it_as_it_is(git, tmp_path):
    write(tmp_path, ("a", 1), ("b", 1))
    first = commit(git, 1)
    write(tmp_path, ("a", 1), ("b", 2))
    second = commit(git, 3)
    write(tmp_path, ("new", 7), ("b", 2), ("a", 1))
    third = commit(git, 5)
    write(tmp_path, ("a", 1), ("b", 2), ("new", 7), ("draft", 1))  # not committed
    history = History(tmp_path / "experiments")
    found = {claim: history.commit("s", claim) for claim in ("a", "b", "new", "draft")}
    assert {c: one and one.hash for c, one in found.items()} == {
        "a": first,
        "b": second,
        "new": third,
        "draft": None,
    }
    # The first record is of the second day: what was moved or added later is not shown to be older.
    assert history.order("s", "a", "cpu", times(2)).shown
    late = history.order("s", "b", "cpu", times(2))
    assert not late.shown and "older than this bound's commit" in late.reason
    assert late.commit and late.commit.when.day == 3 and late.first and late.first.day == 2
    assert history.order("s", "new", "h100", times(2)).reason == "no record of it is there yet"
    draft = history.order("s", "draft", "cpu", times(2))
    assert not draft.shown and draft.reason == provenance.NOT_COMMITTED


def test_a_bound_that_is_moved_and_moved_back_dates_from_the_last_move(git, tmp_path):
    hashes = []
    for day, bound in enumerate((1, 2, 1), 1):
        write(tmp_path, ("a", bound))
        hashes.append(commit(git, day))
    found = History(tmp_path / "experiments").commit("s", "a")
    assert found and found.hash == hashes[-1]


def test_another_quantity_under_the_same_bound_is_another_claim(git, tmp_path):
    write(tmp_path, ("a", 1, "slope"))
    commit(git, 1)
    write(tmp_path, ("a", 1, "range"))
    second = commit(git, 2)
    found = History(tmp_path / "experiments").commit("s", "a")
    assert found and found.hash == second


def test_branches_and_renames_are_followed(git, tmp_path):
    write(tmp_path, ("a", 1), *((f"filler{i}", 1) for i in range(9)), study="old")
    first = commit(git, 1)
    git("checkout", "-qb", "side")
    (tmp_path / "experiments" / "s").mkdir()
    git("mv", "experiments/old/claims.yaml", "experiments/s/claims.yaml")
    commit(git, 2)
    write(tmp_path, ("a", 1), *((f"filler{i}", 1) for i in range(9)), ("side", 1))
    side = commit(git, 3)
    git("checkout", "-q", "main")
    (tmp_path / "other.txt").write_text("x", encoding="utf-8")
    commit(git, 4)
    git("merge", "-q", "--no-edit", "side", day=5)
    history = History(tmp_path / "experiments")
    found = [history.commit("s", claim) for claim in ("a", "side")]
    assert [one and one.hash for one in found] == [first, side]


def test_a_study_copied_from_another_has_its_own_dates(git, tmp_path):
    write(tmp_path, *((f"a{i}", 1) for i in range(9)), study="old")
    commit(git, 1)
    write(tmp_path, *((f"a{i}", 1) for i in range(9)))
    second = commit(git, 2)
    found = History(tmp_path / "experiments").commit("s", "a0")
    assert found and found.hash == second


def test_where_there_is_no_history_it_says_so(git, tmp_path, tmp_path_factory, monkeypatch):
    write(tmp_path, ("a", 1))
    unborn = History(tmp_path / "experiments")
    commit(git, 1)
    write(tmp_path, ("a", 2))
    commit(git, 2)
    shallow = tmp_path_factory.mktemp("clone") / "clone"
    command = ["git", "clone", "-q", "--depth", "1", f"file://{tmp_path}", str(shallow)]
    subprocess.run(command, check=True)
    plain = tmp_path_factory.mktemp("plain")
    write(plain, ("a", 1))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(plain.parent))
    histories = [unborn, History(shallow / "experiments"), History(plain / "experiments")]
    whole = History(tmp_path / "experiments")
    assert whole.order("s", "a", "cpu", times(3)).shown
    monkeypatch.setenv("PATH", str(plain))  # no git at all
    histories.append(History(tmp_path / "experiments"))
    for history in histories:
        order = history.order("s", "a", "cpu", times(3))
        assert (order.shown, order.reason, order.commit) == (False, provenance.NO_HISTORY, None)
        assert order.first == times(3)["s", "cpu"]


def test_malformed_claims_of_old_are_left_out():
    assert provenance.terms("- [") == provenance.terms("a: 1") == provenance.terms("") == {}
    assert [*provenance.terms("- 1\n- {id: a, bound: {max: 1}}\n- {bound: {max: 1}}\n")] == ["a"]


def test_the_first_record_is_the_earliest_of_a_study_and_profile():
    rows = [
        ("s", "cpu", "2026-01-02T00:00:00+00:00"),
        ("s", "cpu", "2026-01-02T00:30:00+01:00"),
        ("s", "h100", "2026-01-03T00:00:00"),
    ]
    assert provenance.first_records(rows) == {
        ("s", "cpu"): datetime(2026, 1, 1, 23, 30, tzinfo=UTC),
        ("s", "h100"): datetime(2026, 1, 3, tzinfo=UTC),
    }


# --- records and repository -----------------------------------------------------------------------


def test_records_become_one_table_per_study_and_profile_without_bulk(tmp_path):
    run = {"study": "s", "profile": "cpu", "scheme": "mup", "d_model": 32, "val_loss": 2.5}
    specs = [{"model": {"d_model": 32, "kind": k}, "seed": 1, "long": [0.5] * 99} for k in "ab"]
    curve = {"curve_loss": [1.0] * 50, "hps": "{}"}
    runs = [run | curve | {"spec": json.dumps(spec)} for spec in specs]
    point = {"study": "s", "profile": "cpu", "what": "x", "spec": "{}"}
    point["result"] = json.dumps({"n": 3, "short": [1, 2], "long": [1] * 99})
    other = point | {"profile": "h100"}
    names = csv_files.write(pd.DataFrame([*runs, point, other]), tmp_path / "records")
    assert names == {("s", "cpu"): "s-cpu.csv", ("s", "h100"): "s-h100.csv"}
    text = (tmp_path / "records" / "s-cpu.csv").read_text("utf-8").splitlines()
    assert text == [
        "kind,study,profile,scheme,d_model,val_loss,spec.model.kind,what,result.n,result.short",
        "run,s,cpu,mup,32,2.5,a,,,",
        "run,s,cpu,mup,32,2.5,b,,,",
        'point,s,cpu,,,,,x,3,"[1, 2]"',
    ]


@pytest.mark.parametrize(
    ("files", "url"),
    [
        ({}, ""),
        ({"CITATION.cff": "title: x\n", "pyproject.toml": "[project]\n"}, ""),
        ({"CITATION.cff": "repository-code: https://x.org/a/\n"}, "https://x.org/a"),
        ({"pyproject.toml": "[project.urls]\nRepository = 'https://x.org/b.git'\n"}, None),
    ],
)
def test_commits_are_linked_only_where_the_repository_is_known(files, url, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert board.repository(tmp_path) == ("https://x.org/b" if url is None else url)


def test_the_script_is_small():
    assert (ROOT / "book" / "board" / "board.js").stat().st_size <= 6_000
