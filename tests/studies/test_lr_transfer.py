"""The study lr_transfer: its quantities, words and figures on runs whose truth is known."""

from __future__ import annotations

import io
import math
import re
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from synthetic import CENTRES, CURVATURE, EMPTY, drawn, make_runs, marks, optimum
from umup.lab import claims, folders, tables
from umup.lab.absent import NotMeasured
from umup.lab.records import Results

STUDY = folders.folder("lr_transfer")
CODE = folders.code(STUDY)
figures, quantities, words = CODE.figures, CODE.results, CODE.words

DRAW = {
    "by_lr": figures.by_lr,
    "drift": figures.drift,
    "default_losses": figures.default_losses,
}


def of(runs: pd.DataFrame) -> Results:
    return Results(runs, EMPTY.points)


def test_the_claims_of_lr_transfer_on_runs_whose_truth_is_known():
    runs = make_runs(steps=(2000,))
    by_id = {v.id: v for v in claims.evaluate(STUDY, runs)}
    expected = {
        "sp-drifts": -1.0,
        "mup-transfers": 0.3,
        "umup-transfers": 0.15,
        "umup-default-vs-mup": -0.03,
        "umup-default-vs-sp": -0.05,
        # a doubling gains 0.05 nats; the last one, 0.2 to 0.3 octaves off, 0.03 · 0.05 less
        "mup-wider-is-better": -0.0485,
        "umup-wider-is-better": -0.0496,
    }
    for name, truth in expected.items():
        v = by_id.pop(name)
        assert v.verdict == "holds", v
        assert v.value == pytest.approx(truth, abs=0.01 if v.unit == "nats" else 0.1)
        assert v.lo <= v.value <= v.hi and (v.study, v.profile) == ("lr_transfer", "cpu")
    asked_later = {
        # 0.03 nats better, at half the width, which is worth 0.05
        "umup-is-mup-twice-as-wide-32": ("fails", 0.02),
        "umup-is-mup-twice-as-wide-64": ("fails", 0.02),
        "umup-is-mup-twice-as-wide-128": ("fails", 0.02),
        "umup-advantage-grows": ("inconclusive", 0.0),
        "umup-basin-wider-than-mup": ("fails", 0.0),
        "umup-basin-wider-than-sp": ("fails", 0.0),
        "sp-price-of-narrow": ("holds", 0.03 * 3**2),
        "mup-price-of-narrow": ("holds", 0.03 * 0.3**2),
        "umup-price-of-narrow": ("holds", 0.03 * 0.15**2),
        "ranks-alike": ("holds", 100.0),
    }
    for name, (verdict, truth) in asked_later.items():
        v = by_id.pop(name)
        assert v.verdict == verdict and v.value == pytest.approx(truth, abs=0.012), v
    assert {v.verdict for v in by_id.values()} == {"not measured"}
    assert len(by_id) == 4 + 6
    assert all("500" in v.note or "8000" in v.note or "horizons" in v.note for v in by_id.values())


def test_what_moves_over_steps_and_what_it_costs():
    """The optimum of the planted runs is the same at every horizon, or moved by hand."""
    runs = make_runs(steps=(500, 2000, 8000))
    late = (runs["steps"] == 8000) & (runs["scheme"] == "umup")
    moved = runs.assign(lr=runs["lr"].where(~late, runs["lr"] / 2))
    for found, apart in ((runs, 0.0), (moved, 1.0)):
        results = Results(found, EMPTY.points)
        shift = quantities.largest_shift_over_steps(results, "umup", 64, 16)
        assert shift.value == pytest.approx(apart, abs=0.1)
        price = quantities.price_of_short(results, "umup", 64, 16)
        assert price.value == pytest.approx(0.03 * apart**2, abs=0.006)
        assert price.lo <= 0.03 * apart**2 <= price.hi
    with pytest.raises(NotMeasured, match="horizons"):
        quantities.price_of_short(Results(runs, EMPTY.points), "umup", 64, 32)


def test_a_basin_is_as_wide_as_its_parabola():
    results = Results(make_runs(noise=0.0), EMPTY.points)
    # 0.05 nats at √(0.05/0.03) = 1.29 octaves to either side, linear between half octaves
    assert quantities.basin(results, "umup", 32) == pytest.approx(2 * 1.29, abs=0.05)
    narrow = Results(results.runs[results.runs["lr"] < 1.5], EMPTY.points)
    with pytest.raises(NotMeasured, match="open"):
        quantities.basin(narrow, "umup", 32)


def test_the_claims_fail_on_runs_that_contradict_them():
    swapped = {"sp": "umup", "umup": "sp", "mup": "mup"}
    runs = make_runs(steps=(500, 2000, 8000))
    runs["scheme"] = runs["scheme"].map(swapped)
    verdicts = {v.id: v.verdict for v in claims.evaluate(STUDY, runs, "cpu")}
    later = ("twice-as-wide", "basin", "price", "over-steps", "advantage")
    failing = {
        name
        for name, verdict in verdicts.items()
        if verdict == "fails" and not any(part in name for part in later)
    }
    ours = {f"umup-default-vs-{o}{h}" for o in ("sp", "mup") for h in ("", "-short", "-long")}
    assert failing == {"sp-drifts", "umup-transfers", "umup-wider-is-better"} | ours


def test_seeds_that_only_some_points_have_change_neither_ranks_nor_curves():
    """μP and u-μP have nine seeds at three η, six of them unlucky; SP has three everywhere."""
    runs = make_runs(seeds=9, spread=0.0, noise=0.0)
    unlucky = 0.2 * (runs["seed"] > 2)
    runs = runs.assign(val_loss=runs["val_loss"] + unlucky)
    runs["final_loss"] += unlucky + 0.01 * (runs["scheme"] == "sp")
    nearest = {s: runs["d_model"].map(lambda w, s=s: round(optimum(s, w))) for s in CENTRES}
    off = np.abs(np.log2(runs["lr"]) - sum(nearest[s] * (runs["scheme"] == s) for s in CENTRES))
    more = off.isin([0.0, 1.0]) & (runs["scheme"] != "sp")
    uneven = runs[(runs["seed"] < 3) | more]
    assert (
        uneven.groupby("scheme")["seed"].nunique() == pd.Series({"mup": 9, "sp": 3, "umup": 9})
    ).all()
    assert quantities.ranks_alike(of(uneven)).value == 100.0
    shift = quantities.largest_shift(of(uneven), "umup", 8)
    assert shift.value == pytest.approx(0.15, abs=1e-6) and shift.n == 9
    for ax in figures.by_lr(of(uneven)).axes:  # parabolas, without steps where seeds enter
        for points in drawn(ax).values():
            assert np.diff(points[:, 1], 2) == pytest.approx(2 * CURVATURE / 4, abs=1e-6)


def test_horizon_defaults_to_the_one_with_the_most_widths():
    runs = make_runs(steps=(500, 2000))
    kept = runs[(runs.steps == 500) | (runs.d_model < 128)]
    assert quantities.drift(of(kept), "sp", 8).value == pytest.approx(-1.0, abs=0.05)
    with pytest.raises(NotMeasured, match="span 2×"):
        quantities.drift(of(kept), "sp", 8, 2000)


def test_an_unfinished_sweep_is_no_best_loss():
    runs = make_runs(widths=(32, 64))
    with pytest.raises(NotMeasured, match="span 8×"):
        quantities.default_difference(of(runs), "umup", "sp", factor=8)
    begun = runs[(runs.scheme != "umup") | (runs.lr < 2.0**-1.2)]
    with pytest.raises(NotMeasured, match="u-μP at width 64: lowest at the largest"):
        quantities.default_difference(of(begun), "umup", "sp")
    unstable = make_runs(widths=(32,), diverge_above=-0.2)  # SP's best is just below divergence
    assert math.isfinite(quantities.default_difference(of(unstable), "umup", "sp").lo)


def test_divergence_at_the_transferred_rate_fails():
    runs = make_runs()
    at = (runs.scheme == "mup") & (runs.d_model == 256) & (abs(np.log2(runs.lr) + 7) < 0.6)
    runs.loc[at, ["status", "val_loss"]] = ["diverged", np.nan]
    assert quantities.wider_minus_narrower(of(runs), "mup").lo == math.inf


def test_wider_minus_narrower_takes_the_worst_step():
    runs = make_runs(noise=0)
    runs.loc[(runs.scheme == "umup") & (runs.d_model == 128), "val_loss"] += 0.2
    rise = quantities.wider_minus_narrower(of(runs), "umup")
    # from 64 to 128: -0.05 + 0.2, and 0.03 · (0.1² - 0.05²) for the drifted optimum
    assert rise.value == pytest.approx(0.15 + 0.03 * 0.0075) and rise.lo == pytest.approx(rise.hi)


# --- words ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_widths() -> pd.DataFrame:
    return make_runs(widths=(32, 256))


def test_answer_names_shift_and_loss(two_widths):
    text = words.answer(of(two_widths), ["sp", "mup", "umup"])
    # Slopes of −1, −0.1 and 0.05 octaves a doubling, over three doublings.
    said = re.findall(r"(SP|μP|u-μP)'s by (−?[\d.]+) \[", text)
    shifts = {name: float(x.replace("−", "-")) for name, x in said}
    assert shifts == pytest.approx({"SP": -3.0, "μP": -0.3, "u-μP": 0.15}, abs=0.1)
    assert text.startswith("Over 8× in width")
    # Lowest first: 1.45, 1.48 and 1.50 at width 32, less 0.15 at 256.
    order = re.findall(r"(?:SP|u-μP|μP) [\d.]+", text.split("nats per token:")[1])
    assert [o.split()[0] for o in order] == ["u-μP", "μP", "SP"]
    assert float(order[0].split()[1]) == pytest.approx(1.30, abs=0.01)


def test_answer_at_smoke_shows_no_interval(two_widths):
    assert "[" not in words.answer(of(two_widths), ["sp", "mup"], digits=1)


def test_drift_texts_say_what_is_not_measured(two_widths):
    texts = words.drift_texts(of(two_widths[two_widths["scheme"] != "sp"]), ["sp", "umup"])
    assert texts["sp"] == "not measured"
    assert float(texts["umup"].split()[0]) == pytest.approx(0.05, abs=0.03)


def test_optima_table_has_a_row_a_width(two_widths):
    lines = words.optima_table(of(two_widths)).splitlines()
    assert len(lines) == 2 + 3 * 2
    first = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert first[:3] == ["SP", "2000", "32"]
    assert float(first[3].split()[0].replace("−", "-")) == pytest.approx(CENTRES["sp"], abs=0.1)


def test_default_table_pairs_u_mup_with_the_others(two_widths):
    lines = words.default_table(of(two_widths)).splitlines()[2:]
    assert {line.split("|")[1].strip() for line in lines} == {"u-μP − SP", "u-μP − μP"}


def test_validation_table_averages_the_seeds_at_the_best_rate(two_widths):
    # Bits a byte of a byte-level model are nats over ln 2: 1.386 nats are 2 bits.
    known = two_widths.assign(val_loss=1.386 + two_widths["seed"] * 0.1, val_bits_per_byte=2.0)
    lines = words.validation_table(of(known)).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [c[:2] for c in cells] == [[s, w] for s in ("SP", "μP", "u-μP") for w in ("32", "256")]
    shown = {tuple(c[2:]) for c in cells}
    assert shown == {("1.486 [1.386, 1.586]", "2.000 [2.000, 2.000]", "3")}


def test_what_ran_counts(two_widths):
    diverged = two_widths.assign(d_head=16)
    diverged.loc[diverged.index[:2], "status"] = "diverged"
    text = words.what_ran(of(diverged))
    assert (
        text.startswith(f"{len(two_widths)} runs, 2 of them diverged") and "widths 32, 256" in text
    )


# --- figures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    arms = make_runs(widths=(64,), steps=(500, 8000))
    return pd.concat([make_runs(diverge_above=2.1), arms])


def pixels(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a collapsed layout or a missing glyph
        figure.savefig(buffer, format="rgba")
    return buffer.getvalue()


@pytest.mark.parametrize("name", DRAW)
def test_same_runs_same_pixels_and_no_state_left(name, runs):
    before = dict(mpl.rcParams)
    first = pixels(DRAW[name](of(runs)))
    assert first == pixels(DRAW[name](of(runs.sample(frac=1, random_state=0))))
    assert dict(mpl.rcParams) == before and plt.get_fignums() == []
    changed = runs.assign(val_loss=runs.val_loss + 0.1 * (runs.scheme == "umup"))
    changed["lr"] *= np.where((runs.scheme == "sp") & (runs.d_model == 256), 2, 1)
    assert first != pixels(DRAW[name](of(changed)))


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("kind", ["none", "one run", "one width", "one seed", "all diverged"])
def test_poor_data_still_draw(name, kind, runs):
    poor = {
        "none": runs.iloc[:0],
        "one run": runs.iloc[[0]],
        "one width": runs[(runs.d_model == 64) & (runs.steps == 2000)],
        "one seed": runs[runs.seed == 0],
        "all diverged": runs.assign(status="diverged", val_loss=np.nan),
    }[kind]
    figure = DRAW[name](of(poor))
    assert pixels(figure)  # without a warning
    main = poor[poor.steps == (tables.main_horizon(poor) if len(poor) else 0)]
    losses = tables.loss_by_lr(main)
    points = {
        "by_lr": losses[losses.n > 0],
        "drift": tables.optima(main).dropna(subset=["log2_lr"]),
        "default_losses": tables.default_differences(main),
    }
    if points[name].empty:
        assert figure.axes[0].texts[0].get_text().startswith("not measured: no ")
    elif name == "by_lr":
        shown = [len(points) for ax in figure.axes for points in drawn(ax).values()]
        assert sum(shown) == len(points[name])
    else:
        assert len(marks(figure.axes[0])) == len(points[name])


@pytest.mark.parametrize("name", DRAW)
def test_text_is_legible_at_seven_inches(name, runs):
    figure = DRAW[name](of(runs))
    pixels(figure)
    scale = 7 / max(figure.get_size_inches()[0], 7)
    texts = [t for t in figure.findobj(Text) if t.get_text()]
    assert texts and min(t.get_fontsize() for t in texts) * scale >= 8.7


def test_by_lr_draws_the_losses_the_optima_and_the_divergences(runs):
    figure = figures.by_lr(of(runs))
    assert [ax.get_title() for ax in figure.axes] == ["SP", "μP", "u-μP"]
    optima = tables.optima(runs).set_index(["scheme", "d_model", "steps"])
    for ax, scheme in zip(figure.axes, ("sp", "mup", "umup"), strict=True):
        lines = {line.get_label(): line for line in ax.get_lines()}
        table = tables.loss_by_lr(runs).query("scheme == @scheme and steps == 2000 and n > 0")
        for width, group in table.groupby("d_model"):
            shown = lines[str(width)].get_xydata()
            np.testing.assert_allclose(shown, group[["log2_lr", "mean"]])
        stars = [c[0].get_xydata()[0] for c in ax.containers]
        expected = optima.loc[scheme].xs(2000, level="steps")[["log2_lr", "loss"]]
        np.testing.assert_allclose(stars, expected)
        crosses = [line for line in ax.get_lines() if line.get_marker() == "x"]
        top = ax.get_ylim()[1]
        assert all((line.get_ydata() == top).all() for line in crosses)
        diverged = tables.loss_by_lr(runs).query("scheme == @scheme and n_diverged > 0").log2_lr
        assert sorted(x for c in crosses for x in c.get_xdata()) == sorted(diverged)
        assert len(diverged) == 0 if scheme == "umup" else len(diverged) >= 8


def test_default_losses_draw_the_gap_with_its_sign(runs):
    left, right = figures.default_losses(of(runs)).axes
    table = tables.default_differences(runs)
    for ax, at in ((left, "steps == 2000"), (right, "d_model == 64")):
        shown = drawn(ax)
        assert list(shown) == ["SP − u-μP", "μP − u-μP"]
        for points, scheme in zip(shown.values(), ("sp", "mup"), strict=True):
            own = table[table["against"] == scheme].query(at).sort_values(["d_model", "steps"])
            np.testing.assert_allclose(points[:, 1], -own["difference"])
            assert len(own) > 1
    bars = np.concatenate([c.lines[2][0].get_segments()[0] for c in left.containers[:1]])
    first = table.query("steps == 2000 and against == 'sp'").sort_values("d_model").iloc[0]
    np.testing.assert_allclose(bars[:, 1], [-first.difference_hi, -first.difference_lo])
    assert [t.get_text() for t in left.get_xticklabels()] == ["32", "64", "128", "256"]
    assert [t.get_text() for t in right.get_xticklabels()] == ["500", "2000", "8000"]


def test_drift_is_relative_to_the_smallest_width_and_open_ends_are_arrows(runs):
    cut = runs[~((runs.scheme == "sp") & (runs.d_model == 256) & (runs.lr < 2.0**-8.9))]
    (ax,) = figures.drift(of(cut)).axes
    starts = [c[0].get_ydata()[0] for c in ax.containers]
    optima = tables.optima(cut).query("steps == 2000")
    for scheme, group in optima.groupby("scheme"):
        base = group.sort_values("d_model").log2_lr.iloc[0]
        for x in group.log2_lr - base:
            assert min(abs(x - s) for s in starts) < 1e-9, scheme
    hollow = [c for c in ax.containers if c[0].get_markerfacecolor() == "white"]
    assert len(hollow) == 1
    (arrow,) = [line for line in ax.lines if line.get_marker() == "v"]
    ((x, y),) = hollow[0][0].get_xydata()
    np.testing.assert_allclose(arrow.get_xydata(), [[x, y - 0.6]])
    assert "[−∞, " in ax.get_legend().get_texts()[0].get_text()
