"""Sentences and tables of the notebooks, against runs whose truth is known."""

from __future__ import annotations

import re

import pytest

from synthetic import CENTRES, make_runs
from umup.lab import report


@pytest.fixture(scope="module")
def runs():
    return make_runs(widths=(32, 256))


def test_interval_drops_what_is_open_or_too_coarse():
    assert report.interval(-1.234, -1.5, 0.25) == "−1.23 [−1.50, 0.25]"
    assert report.interval(-1.234, -1.5, float("inf")) == "−1.23"
    assert report.interval(-1.25001, -1.5, 1.0, digits=1) == "−1.3"


def test_answer_names_shift_and_loss(runs):
    text = report.answer(runs, ["sp", "mup", "umup"])
    # Slopes of −1, −0.1 and 0.05 octaves a doubling, over three doublings.
    shifts = {name: float(x.replace("−", "-")) for name, x in
              re.findall(r"(SP|μP|u-μP)'s by (−?[\d.]+) \[", text)}  # fmt: skip
    assert shifts == pytest.approx({"SP": -3.0, "μP": -0.3, "u-μP": 0.15}, abs=0.1)
    assert text.startswith("Over 8× in width")
    # Lowest first: 1.45, 1.48 and 1.50 at width 32, less 0.15 at 256.
    order = re.findall(r"(?:SP|u-μP|μP) [\d.]+", text.split("nats a token:")[1])
    assert [o.split()[0] for o in order] == ["u-μP", "μP", "SP"]
    assert float(order[0].split()[1]) == pytest.approx(1.30, abs=0.01)


def test_answer_at_smoke_shows_no_interval(runs):
    assert "[" not in report.answer(runs, ["sp", "mup"], digits=1)


def test_drift_texts_say_what_is_not_measured(runs):
    texts = report.drift_texts(runs[runs["scheme"] != "sp"], ["sp", "umup"])
    assert texts["sp"] == "not measured"
    assert float(texts["umup"].split()[0]) == pytest.approx(0.05, abs=0.03)


def test_optima_table_has_a_row_a_width(runs):
    lines = report.optima_table(runs).splitlines()
    assert len(lines) == 2 + 3 * 2
    first = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert first[:3] == ["SP", "2000", "32"]
    assert float(first[3].split()[0].replace("−", "-")) == pytest.approx(CENTRES["sp"], abs=0.1)


def test_default_table_pairs_u_mup_with_the_others(runs):
    lines = report.default_table(runs).splitlines()[2:]
    assert {line.split("|")[1].strip() for line in lines} == {"u-μP − SP", "u-μP − μP"}


def test_validation_table_averages_the_seeds_at_the_best_rate(runs):
    # Bits a byte of a byte-level model are nats over ln 2: 1.386 nats are 2 bits.
    known = runs.assign(val_loss=1.386 + runs["seed"] * 0.1, val_bits_per_byte=2.0)
    lines = report.validation_table(known).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [c[:2] for c in cells] == [[s, w] for s in ("SP", "μP", "u-μP") for w in ("32", "256")]
    assert {tuple(c[2:]) for c in cells} == {
        ("1.486 [1.386, 1.586]", "2.000 [2.000, 2.000]", "3")
    }  # fmt: skip


def test_what_ran_counts(runs):
    diverged = runs.assign(d_head=16)
    diverged.loc[diverged.index[:2], "status"] = "diverged"
    text = report.what_ran(diverged)
    assert text.startswith(f"{len(runs)} runs, 2 of them diverged") and "widths 32, 256" in text


def test_glue_is_what_myst_reads(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    published = []
    shell = InteractiveShell.instance()
    shell.display_pub.publish = lambda data, metadata=None, **_: published.append((data, metadata))
    report.glue("drift_sp", "−1.0")
    ((data, metadata),) = published
    assert data == {"application/papermill.record/text/plain": "'−1.0'"}
    assert metadata["scrapbook"] == {
        "name": "drift_sp", "mime_prefix": "application/papermill.record/"
    }  # fmt: skip
    InteractiveShell.clear_instance()
