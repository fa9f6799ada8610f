"""What pages say with: intervals, tables and glued texts."""

from __future__ import annotations

import pytest

from synthetic import CENTRES, make_runs
from umup.lab import report, tables


def test_interval_drops_what_is_open_or_too_coarse():
    assert report.interval(-1.234, -1.5, 0.25) == "−1.23 [−1.50, 0.25]"
    assert report.interval(-1.234, -1.5, float("inf")) == "−1.23"
    assert report.interval(-1.25001, -1.5, 1.0, digits=1) == "−1.3"


def test_optima_have_a_row_each_with_their_labels():
    optima = tables.optima(make_runs(widths=(32, 256))).assign(depth=1.5)
    labels = {"scheme": "scheme", "depth": "layers", "d_model": "width"}
    lines = report.optima_table(optima, labels).splitlines()
    assert len(lines) == 2 + 3 * 2
    assert lines[0].startswith("| scheme | layers | width | log₂ η* [95 %] | loss there, nats")
    first = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert first[:3] == ["SP", "1.5", "32"]
    assert float(first[3].split()[0].replace("−", "-")) == pytest.approx(CENTRES["sp"], abs=0.1)
    assert report.optima_table(tables.optima(make_runs().iloc[:0]), labels) == "Not measured."


def test_glue_is_what_myst_reads(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    published = []
    shell = InteractiveShell.instance()
    shell.display_pub.publish = lambda data, metadata=None, **_: published.append((data, metadata))
    report.glue("drift_sp", "−1.0")
    ((data, metadata),) = published
    assert data == {"application/papermill.record/text/plain": "'−1.0'"}
    assert metadata["scrapbook"] == {
        "name": "drift_sp",
        "mime_prefix": "application/papermill.record/",
    }
    InteractiveShell.clear_instance()
