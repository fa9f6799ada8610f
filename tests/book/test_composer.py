"""The composer's page: its arithmetic is Python's, and the form shows what that gives."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlencode

import pytest

from book.test_browser import WIDTHS, browser, framed, problems, reading, serving  # noqa: F401
from umup import transfer
from umup.book import composer_page
from umup.errors import BookError
from umup.lab import claims
from umup.lab.claims import Verdict
from umup.laws import Interval

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "width": [128, 192, 256, 1024, 4096],
    "depth": [2, 4, 12, 32],
    "seq_len": [256, 1024, 2048],
    "batch": [8, 64, 96, 1024],
    "steps": [500, 4000, 30_000],
    "schedule": ["cosine", "wsd"],
}
OPEN = "(_, x) => x === Infinity ? 'inf' : x === -Infinity ? '-inf' : x"
"""JSON has no infinity: what stands for one."""
SHAPE = {"width": "d_model", "depth": "n_layers", "seq_len": "seq_len"}


def board() -> dict[str, Verdict]:
    """A board with every claim that a motion names, all of which hold."""
    return {
        f"{m.study}/{m.claim}": cast(
            Verdict, SimpleNamespace(study=m.study, id=m.claim, verdict="holds")
        )
        for m in transfer.motions().values()
    }


def as_run(scheme: str, sizes: dict[str, Any]) -> transfer.Run:
    """What `transfer.carry` reads of a run, with the page's sizes."""
    model = {ours: sizes[name] for name, ours in SHAPE.items()} | {"d_ff": 4}
    model |= dict.fromkeys(transfer.BASE, 64)
    optim = {"batch_size": sizes["batch"], "steps": sizes["steps"], "schedule": sizes["schedule"]}
    optim |= {"warmup_steps": 0, "decay_steps": 0, "size_rule": "none"}
    plain = [SimpleNamespace(**part, to_dict=dict) for part in (model, optim, {})]
    return cast(
        transfer.Run, SimpleNamespace(scheme=scheme, **dict(zip(transfer.FREE, plain, strict=True)))
    )


@pytest.mark.browser
def test_eta_is_carried_as_in_python(browser) -> None:  # noqa: F811
    rng = random.Random(0)
    cases = []
    for _ in range(200):
        scheme = rng.choice(composer_page.SCHEMES)
        proxy, target = ({n: rng.choice(v) for n, v in SIZES.items()} for _ in range(2))
        cases.append((scheme, proxy, target, rng.uniform(-8, 1)))
    page = browser.new_page()
    page.add_script_tag(path=str(ROOT / "book" / "transfer" / "carry.js"))
    page.evaluate(f"window.motions = {json.dumps(composer_page.motions(board()))}")
    seen = set()
    for scheme, proxy, target, eta in cases:
        given = json.dumps([scheme, proxy, target, [eta, eta - 0.3, eta + 0.2]])
        got = json.loads(
            page.evaluate(f"JSON.stringify(transfer.carry(motions, ...{given}), {OPEN})")
        )
        interval = Interval(eta, eta - 0.3, eta + 0.2)
        expected = transfer.carry(interval, as_run(scheme, proxy), as_run(scheme, target))
        ends = (expected.log2_eta.value, expected.log2_eta.lo, expected.log2_eta.hi)
        assert [float(end) for end in got["eta"]] == pytest.approx(list(ends)), (scheme, proxy)
        assert [one["axis"] for one in got["terms"]] == [t.axis for t in expected.terms]
        beyond = [t.beyond for t in expected.terms]
        assert [one["beyond"] for one in got["terms"]] == pytest.approx(beyond)
        seen |= {(scheme, t.axis, t.motion is None) for t in expected.terms}
    page.close()
    assert ("sp", "schedule", True) in seen and ("completep", "width", False) in seen
    assert {axis for _, axis, _ in seen} >= {*transfer.AXES}


def test_motions_carry_the_verdict_of_the_board_and_link_to_it():
    (row,) = [
        row
        for row in composer_page.motions(board())
        if (row["scheme"], row["axis"]) == ("sp", "width")
    ]
    assert row["verdict"] == "holds" and row["href"] == "claims.html#lr_transfer-sp-drifts"
    assert row["octaves"][0] == transfer.motions()["sp", "width"].octaves.value
    with pytest.raises(BookError, match="claim of a motion"):
        composer_page.motions({})


def test_an_open_end_is_null(monkeypatch: pytest.MonkeyPatch):
    motion = transfer.motions()["sp", "width"]
    open_one = transfer.Motion(**vars(motion) | {"octaves": Interval(1.0, -math.inf, 2.0)})
    monkeypatch.setattr(transfer, "motions", lambda: {("sp", "width"): open_one})
    assert composer_page.motions(board_of(motion))[0]["octaves"] == [1.0, None, 2.0]


def board_of(motion: transfer.Motion) -> dict[str, Verdict]:
    verdict = SimpleNamespace(study=motion.study, id=motion.claim, verdict="holds")
    return {f"{motion.study}/{motion.claim}": cast(Verdict, verdict)}


def test_the_table_has_every_axis_and_scheme():
    table = composer_page.motions_table(board())
    for title in composer_page.axes().values():
        if title != composer_page.axes()["together"]:
            assert title in table
    assert "sp-drifts" in table and "umup-still-over-depth" in table


def test_every_motion_names_a_claim_of_the_committed_studies():
    known = {f"{v.study}/{v.id}" for v in claims.board(ROOT / "experiments")}
    assert {*board()} <= known


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composer")
    fragment = composer_page.page(ROOT / "book", board())
    (folder / "page.html").write_text(framed(fragment), encoding="utf-8")
    (folder / "claims.html").write_text(framed("claims"), encoding="utf-8")
    with serving(folder) as address:
        yield address


def address(**changes: Any) -> str:
    """A hash in which proxy and target are the same SP run, but for the changes."""
    same = {"depth": 4, "seq_len": 64, "batch": 8, "steps": 100, "width": 256}
    given = {f"{run}_{name}": n for run in ("proxy", "target") for name, n in same.items()}
    return urlencode({"scheme": "sp", "eta": 2**-7, "error": 0.25} | given | changes)


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_form_answers_and_reads_well(browser, origin, width, theme) -> None:  # noqa: F811
    with reading(browser, origin, width, theme) as (page, wrong):
        verdict, out = page.locator(".planner-verdict"), page.locator(".planner-out")
        assert problems(page, wrong, f"{origin}page.html#{address(target_width=512)}") == []
        motion = transfer.motions()["sp", "width"].octaves
        assert f"η = {2 ** (-7 + motion.value):.3g} [" in verdict.inner_text()
        assert "sp-drifts: holds" in out.inner_text()
        assert "extrapolates" not in verdict.inner_text()
        page.fill("[name=target_width]", "8192")
        assert "extrapolates" in verdict.inner_text()
        assert "2.0 doublings beyond what was measured" in out.inner_text()
        page.select_option("[name=target_schedule]", "wsd")  # of SP nothing is measured
        assert "not bounded" in verdict.inner_text() and "not measured" in out.inner_text()
        page.fill("[name=target_width]", "0")
        assert "Width of the target: more than 0" in verdict.inner_text()
        assert page.get_attribute("[name=target_width]", "aria-invalid") == "true"
        assert "target_width=0" in page.url
        page.goto("about:blank")
        assert problems(page, wrong, f"{origin}page.html#{address()}") == []
        assert "nothing moves η" in out.inner_text()
