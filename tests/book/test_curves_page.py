"""Interactive curves: data that are the records' tables, and what Chromium shows and prices."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from book.test_browser import WIDTHS, browser, problems, reading, serving  # noqa: F401
from synthetic import EMPTY, drawn, make_runs
from umup.book import curves_page, site
from umup.book.shown import best_profile
from umup.errors import BookError
from umup.lab import figures, plots, tables
from umup.lab.records import Results, read_results
from umup.lab.study import store

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "book" / "curves"
SHA256 = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
MOST = 150_000  # bytes of a page's data, scripts and style


def data_of(runs) -> dict[str, Any]:
    results = Results(runs, EMPTY.points)
    return curves_page.data(curves_page.over_width_and_steps(results, Path("lr_transfer")))


def panel_of(found: dict[str, Any], view: int, name: str) -> dict[str, Any]:
    (panel,) = [one for one in found["views"][view]["panels"] if one["name"] == name]
    return panel


# ------------------------------------------------------------------ the data


def test_the_library_is_the_published_one() -> None:
    for name, digest in SHA256.items():
        assert hashlib.sha256((SOURCES / name).read_bytes()).hexdigest() == digest, name


def test_points_and_stars_are_those_of_the_tables() -> None:
    runs = make_runs(noise=0.003, diverge_above=2.2, steps=(500, 2000))
    planted = (runs["scheme"] == "umup") & (runs["d_model"] == 64) & (runs["steps"] == 2000)
    planted &= runs["lr"] == 2.0**2
    runs.loc[planted, "val_loss"] = [3.25, 3.5, 3.75]
    found = data_of(runs)
    first = found["views"][0]
    assert (first["title"], first["size"]) == ("width, at 2000 steps", "width")
    assert first["values"] == [32, 64, 128, 256] and not first["above"]
    assert [panel["name"] for panel in first["panels"]] == ["SP", "μP", "u-μP"]
    losses, optima = tables.loss_by_lr(runs), tables.optima(runs)
    seen = 0
    for scheme, name in (("sp", "SP"), ("mup", "μP"), ("umup", "u-μP")):
        panel = panel_of(found, 0, name)
        for value, number in zip(first["values"], panel["curves"], strict=True):
            own = f"scheme == '{scheme}' and d_model == {value} and steps == 2000"
            want, one = losses.query(own), found["curves"][number]
            got = np.array(one["points"], float)
            columns = ["log2_lr", "mean", "n", "n_diverged"]
            np.testing.assert_allclose(got[:, [0, 1, 4, 5]], want[columns], atol=2e-5)
            (best,) = optima.query(own).to_dict("records")
            names = ("log2_lr", "log2_lr_lo", "log2_lr_hi", "loss")
            assert one["best"] == pytest.approx([best[n] for n in names], abs=1e-5)
            seen += len(got)
        smallest = found["curves"][panel["curves"][0]]
        assert panel["from"] == smallest["best"][0]
    assert seen == 3 * 4 * 13
    points = found["curves"][panel_of(found, 0, "u-μP")["curves"][1]]["points"]
    (at,) = [point for point in points if point[0] == 2.0]
    assert at[1] == 3.5 and at[4:] == [3.0, 0.0]
    diverged = [p for c in found["curves"] for p in c["points"] if p[5]]
    assert diverged and all(point[1] is None and point[4] == 0 for point in diverged)


def test_every_curve_is_there_once_and_views_share_it() -> None:
    found = data_of(make_runs(widths=(32, 64), steps=(500, 2000)))
    titles = [view["title"] for view in found["views"]]
    assert titles == [
        "width, at 2000 steps",
        "width, at 500 steps",
        "steps, at width 64",
        "steps, at width 32",
    ]
    assert len(found["curves"]) == 3 * 2 * 2
    across, along = panel_of(found, 0, "SP")["curves"], panel_of(found, 2, "SP")["curves"]
    assert across[1] == along[1] and across[0] != along[0]


def test_colours_are_those_of_the_static_figures_and_lighter_on_a_dark_page() -> None:
    (view,) = data_of(make_runs())["views"]
    rgb = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in view["light"]]
    np.testing.assert_allclose(rgb, list(plots.sequence(view["values"]).values()), atol=0.003)
    light = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in view["dark"]]
    assert (np.array(light) > np.array(rgb)).all()


def test_curves_and_window_are_those_of_the_static_figure() -> None:
    runs = make_runs(spread=0.05)
    far = (runs["seed"] == 2) & (np.log2(runs["lr"]) % 1 > 0)  # seeds shift whole curves
    found = data_of(runs[~far])
    static = curves_page.code(ROOT / "experiments" / "lr_transfer").figures
    with figures.style():
        axes = static.by_lr(Results(runs[~far], EMPTY.points)).axes
    assert found["views"][0]["y"] == pytest.approx(axes[0].get_ylim(), abs=1e-4)
    for ax, panel in zip(axes, found["views"][0]["panels"], strict=True):
        for value, number in zip(found["views"][0]["values"], panel["curves"], strict=True):
            points = np.array(found["curves"][number]["points"], float)
            np.testing.assert_allclose(points[:, :2], drawn(ax)[str(value)], atol=2e-5)


def test_what_has_no_two_curves_is_left_out() -> None:
    runs = make_runs(widths=(32,))
    assert data_of(runs) == {"views": [], "curves": []}
    runs = make_runs(widths=(32, 64))
    lost = (runs["scheme"] == "sp") & (runs["d_model"] == 64)
    runs.loc[lost, ["status", "val_loss"]] = ["diverged", np.nan]
    (view,) = data_of(runs)["views"]
    assert [panel["name"] for panel in view["panels"]] == ["μP", "u-μP"]


def test_a_panel_without_a_bracketed_optimum_starts_at_its_lowest_measured_loss() -> None:
    runs = make_runs(noise=0.0)
    found = data_of(runs[~((runs["scheme"] == "sp") & (runs["lr"] > 2.0**-6))])
    panel = panel_of(found, 0, "SP")
    assert found["curves"][panel["curves"][0]]["best"] is None
    assert panel["from"] == -6.0


def test_an_open_end_is_drawn_an_octave_long(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_runs(widths=(32,)).query("scheme == 'sp'")
    ((name, best),) = tables.fits(runs).items()
    wide = replace(best, x_lo=best.x - 1.5, x_hi=np.inf)
    monkeypatch.setattr(tables, "fits", lambda runs: {name: wide})
    star = curves_page.curve(runs)["best"]
    assert star == pytest.approx([best.x, best.x - 1.5, best.x + 1, best.loss], abs=1e-5)


@pytest.mark.parametrize("name", curves_page.PLACES)
def test_studies_have_their_views_and_a_page_stays_small(name: str) -> None:
    folder = ROOT / "experiments" / name
    figure, views = curves_page.PLACES[name]
    found = curves_page.data(views(read_results(store(folder, best_profile(folder))), folder))
    assert found["views"]
    html = curves_page.block(found, SOURCES)
    scripts = sum((SOURCES / script).stat().st_size for script in curves_page.SCRIPTS)
    assert len(html.encode()) + scripts < MOST
    notebook = json.loads((folder / "study.ipynb").read_text("utf-8"))
    before = len(notebook["cells"])
    curves_page.add(notebook, figure, html)
    (at,) = [i for i, cell in enumerate(notebook["cells"]) if cell.get("id") == "curves"]
    assert notebook["cells"][at - 1]["metadata"]["mystnb"]["figure"]["name"] == figure
    assert len(notebook["cells"]) == before + 1


def test_a_figure_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BookError, match="fig-x"):
        curves_page.add({"cells": [{"metadata": {}}]}, "fig-x", "")


def test_a_study_without_records_or_curves_keeps_its_page(tmp_path: Path) -> None:
    for name in ("lr_transfer", "residual_tau", "transfer_axes", "op_scales"):
        folder = tmp_path / name
        shutil.copytree(
            ROOT / "experiments" / name, folder, ignore=shutil.ignore_patterns("records")
        )
        page = folder / "study.ipynb"
        before = page.read_bytes()
        curves_page.generate(folder, "cpu", page, SOURCES, tmp_path / "site")
        assert page.read_bytes() == before
    assert not (tmp_path / "site").exists()


# ------------------------------------------------------------------ in a browser


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A site of one page with planted curves: no noise, SP and μP diverge 2.2 octaves above."""
    found = data_of(make_runs(noise=0.0, diverge_above=2.2, steps=(500, 2000)))
    (tmp_path / "studies").mkdir()
    (tmp_path / "curves").mkdir()
    for name in curves_page.FILES:
        shutil.copy(SOURCES / name, tmp_path / "curves")
    colours = (
        "html {--pst-color-text-base: #222; --pst-color-text-muted: #444; --umup-line: #ddd;"
        "--pst-color-background: #fff; --pst-color-secondary: #8a5a00; --umup-teal: #1f6f63}"
        "html[data-theme=dark] {--pst-color-text-base: #eee; --pst-color-background: #111}"
        "body {background: var(--pst-color-background); color: var(--pst-color-text-base)}"
    )
    text = (
        f"<!doctype html><html data-theme=light><link rel=icon href='data:,'><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width'><style>{colours}</style>"
        f"<body><article class=bd-article><p>x</p>{curves_page.block(found, SOURCES)}</article>"
    )
    (tmp_path / "studies" / "page.html").write_text(text, encoding="utf-8")
    (tmp_path / "index.html").write_text("<p>x", encoding="utf-8")
    return tmp_path, found


PIXELS = """colour => [...document.querySelectorAll('.curves canvas')].map(canvas => {
  const seen = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const want = [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
  let found = 0;
  for (let i = 0; i < seen.length; i += 4)
    found += seen[i + 3] === 255 && want.every((v, k) => seen[i + k] === v);
  return found;
})"""


def prices(page) -> dict[str, list[str]]:
    panels = page.locator(".curves-panel")
    return {
        panel.locator(".curves-name").inner_text(): panel.locator("td").all_inner_texts()
        for panel in panels.all()
    }


def expected(found: dict[str, Any], octaves: float) -> dict[str, list[str]]:
    """The prices by numpy, of the first view."""
    out = {}
    for panel in found["views"][0]["panels"]:
        x, row = panel["from"] + octaves, []
        for number in panel["curves"]:
            at, mean, _, _, _, lost = np.array(found["curves"][number]["points"], float).T
            if not at[0] <= x <= at[-1]:
                row.append("outside what was measured")
            elif np.interp(x, at, lost) > 0:
                row.append("diverged")
            else:
                row.append(f"{np.interp(x, at, mean) - np.nanmin(mean):.3f}")
        out[panel["name"]] = row
    return out


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_curves_are_drawn_and_priced(browser, built, width) -> None:  # noqa: F811
    folder, found = built
    assert site.check(folder) == []
    view = found["views"][0]
    with serving(folder) as origin, reading(browser, origin, width) as (page, wrong):
        assert problems(page, wrong, f"{origin}studies/page.html") == []
        for colour in view["light"]:
            assert min(page.evaluate(PIXELS, colour)) > 20, colour
        assert len(page.evaluate(PIXELS, "#000000")) == 3
        tops = [box.bounding_box()["y"] for box in page.locator(".curves-panel").all()]
        assert (len(set(tops)) == 3) == (width == 390)  # one column on a phone

        assert prices(page) == expected(found, 0)
        eta = page.locator("#curves-eta")
        eta.focus()
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        # By hand: SP's parabolas of 0.03 nats per octave² have their minima at −6, −7, −8 and −9.
        moved = prices(page)
        assert moved["SP"] == ["0.030", "0.120", "diverged", "outside what was measured"]
        assert moved["u-μP"][1] == "0.027"
        assert moved == expected(found, 1.0)
        assert page.locator(".curves-mine output").inner_text().startswith("1.00 octaves above ")
        assert "2−5.00 = 0.031" in page.locator(".curves caption").first.inner_text()

        chip = page.locator(".curves-chips button", has_text=re.compile("^SP$"))
        chip.click()
        assert chip.get_attribute("aria-pressed") == "false"
        assert [*prices(page)] == ["μP", "u-μP"]
        assert prices(page)["μP"] == moved["μP"]
        chip.click()
        assert prices(page) == moved

        pane = page.locator(".curves .u-over").nth(1)
        pane.scroll_into_view_if_needed()
        box = pane.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
        read = page.locator(".curves-read").all_inner_texts()
        sizes = {text.split(",")[0] for text in read}
        assert len(read) == 3 and len(sizes) == 1 and re.match(r"width \d+$", sizes.pop())
        assert all("3 seeds" in text and "[" in text for text in read)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
        page.mouse.up()
        dragged = float(eta.input_value())
        assert dragged < 1 and prices(page) == expected(found, dragged) != moved
        assert wrong == []


@pytest.mark.browser
def test_views_and_a_theme_are_changed_without_a_reload(browser, built) -> None:  # noqa: F811
    folder, found = built
    first, second = found["views"][0], found["views"][1]
    with serving(folder) as origin, reading(browser, origin) as (page, wrong):
        page.goto(f"{origin}studies/page.html")
        assert min(page.evaluate(PIXELS, first["light"][0])) > 20
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        page.wait_for_function(f"Math.min(...({PIXELS})('{first['dark'][0]}')) > 20")
        assert max(page.evaluate(PIXELS, first["light"][0])) == 0
        key = page.locator(".curves th i").first
        rgb = tuple(int(first["dark"][0][i : i + 2], 16) for i in (1, 3, 5))
        assert key.evaluate("e => getComputedStyle(e).backgroundColor") == f"rgb{rgb}"
        page.locator(".curves select[name=shown]").select_option(index=1)
        assert min(page.evaluate(PIXELS, first["dark"][0])) > 20
        page.locator(".curves select[name=view]").select_option(second["title"])
        values = [f"{second['size']} {value}" for value in second["values"]]
        assert page.locator(".curves-panel").first.locator("th").all_inner_texts() == values
        page.locator(".curves select[name=view]").select_option("steps, at width 64")
        rows = page.locator(".curves-panel").first.locator("th").all_inner_texts()
        assert rows == ["steps 500", "steps 2000"]
        assert wrong == []


@pytest.mark.browser
def test_without_a_script_nothing_is_shown(browser, built) -> None:  # noqa: F811
    folder, _ = built
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    with serving(folder) as origin:
        page.goto(f"{origin}studies/page.html")
        assert page.locator("body").inner_text().strip() == "x"
    context.close()
