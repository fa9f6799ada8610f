"""Generated fragments say what the records say; expectations are worked out by hand."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass

import pandas as pd
import pytest

from umup import config
from umup.book import markdown, pages
from umup.plan import hardware
from umup.text import significant

NAN = math.nan


@dataclass(frozen=True)
class Verdict:
    id: str = "sp-drifts"
    statement: str = "|shift| is large"
    source: str = "a paper"
    value: float = -1.07
    lo: float = -1.15
    hi: float = -0.98
    bound_min: float = -math.inf
    bound_max: float = -0.5
    unit: str = "octaves"
    verdict: str = "holds"
    note: str = ""
    n: int = 3
    where: str = "width 64"
    study: str = "lr"
    profile: str = "cpu"


def runs(**changes) -> pd.DataFrame:
    row = {
        "study": "lr",
        "profile": "cpu",
        "status": "ok",
        "numerics": config.NUMERICS,
        "created": "2026-11-22T05:00:00+00:00",
        "device": "NVIDIA H100 80GB HBM3",
        "device_count": 1,
        "python": "3.11",
        "jax": "0.10.2",
        "jaxlib": "0.10.2",
        "flax": "0.12.8",
        "xla_flags": "",
        "git_commit": "abcdef0123456789",
        "git_dirty": False,
        "wall_s": 1800.0,
    }
    return pd.DataFrame([row | changes])


@pytest.fixture
def study(tmp_path) -> pages.Study:
    image = base64.b64encode(b"png bytes").decode()
    figure = {
        "figure": {"name": "fig-lr", "caption": "It falls {glue:text}`drop:.2f`, {glue:text}`how`."}
    }
    plain = {"data": {"image/png": base64.b64encode(b"other").decode()}}
    cells = [
        {"source": ["Intro\n", "# A title\n"], "metadata": {}},
        {"source": "", "metadata": {}, "outputs": [plain]},
        {
            "source": "",
            "metadata": {"tags": ["picture", "claim:sp-drifts"], "mystnb": figure},
            "outputs": [{"data": {"image/png": [image]}}],
        },
    ]
    page = tmp_path / "lr.ipynb"
    page.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return pages.Study("lr", tmp_path, page, "cpu")


def test_numbers_read_as_a_person_writes_them():
    assert [significant(x) for x in (-1.0678, 0.0, NAN, None, -math.inf, 1.5)] == [
        "−1.07",
        "0",
        "–",
        "–",
        "−∞",
        "1.5",
    ]


def test_a_measurement_has_the_decimals_its_interval_warrants():
    # An interval 0.17 wide is told to 1 − ⌊log10 0.17⌋ = 2 decimals, one 17 wide to none.
    assert markdown.measured(Verdict()) == "**−1.07** [−1.15,\xa0−0.98] octaves"
    assert markdown.measured(Verdict(value=5.0, lo=-7.0, hi=10.0)) == "**5** [−7,\xa010] octaves"
    tight = Verdict(value=-0.00994, lo=-0.0289, hi=0.00926)
    assert markdown.measured(tight) == "**−0.010** [−0.029,\xa00.009] octaves"
    assert "**0.000** [0.000" in markdown.measured(Verdict(value=-1e-5, lo=-2e-4, hi=1e-3))
    assert "[−∞,\xa01.000]" in markdown.measured(Verdict(lo=-math.inf, hi=1.0))


def test_the_picture_is_the_tagged_figure_with_its_caption(study, tmp_path):
    text = pages.picture([study], tmp_path)
    assert (tmp_path / "picture.png").read_bytes() == b"png bytes"
    assert "It falls {glue:text}`studies/lr.ipynb::drop:.2f`, " in text
    assert "{glue:text}`studies/lr.ipynb::how:s`. From [A title](studies" in text
    assert "studies/lr.ipynb), profile `cpu`." in text


def test_costs_are_hours_times_devices_times_price():
    many = pd.concat(
        [
            runs(),
            runs(),
            runs(device="cpu", wall_s=36000.0, device_count=2),
            runs(device="TPU v9", wall_s=360.0),
        ]
    )
    text = pages.costs(many, {"h100": 3.0, "cpu": 0.1})
    assert "| `lr` | `cpu` | 1 × NVIDIA H100 80GB HBM3 | 2 | 1.00 | 3.00 | 3.00 |" in text
    assert "| 2 × cpu | 1 | 10.00 | 0.10 | 2.00 |" in text
    assert "| 1 × TPU v9 | 1 | 0.10 | – | – |" in text
    assert pages.costs(runs().iloc[:0], {}) == "No records are committed yet.\n"


def test_prices_are_those_of_the_known_machines():
    assert pages.prices()["h100"] == hardware.get("h100").usd_per_hour > 0


def test_status_counts_stale_records_and_names_commits():
    many = pd.concat(
        [
            runs(),
            runs(status="diverged", git_dirty=True, created="2026-11-24T05:00:00+00:00"),
            runs(numerics=config.NUMERICS - 1, xla_flags="--x"),
        ]
    )
    text = pages.status(many)
    assert "| `lr` | `cpu` | 3 | 2 | 1 | **1** | 2026-11-22 to 2026-11-24 |" in text
    assert f"Stale records: 1, with numerics version {config.NUMERICS - 1}." in text
    assert "| `abcdef0123` with changes | 1 |" in text and "xla_flags --x" in text
    assert "what code made 1 of " in text
    assert "No record is stale." in pages.status(runs())
    assert "No records are committed yet." in pages.status(runs().iloc[:0])


def test_profiles_stand_side_by_side(tmp_path):
    folder = tmp_path / "lr"
    folder.mkdir()
    source = "profile: str = 'cpu'\nwidths: list = [32]\nseeds: int = 3\n"
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    (folder / "study.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    (folder / "smoke.yaml").write_text("widths: [32, 64]\n", encoding="utf-8")
    (folder / "bpe.yaml").write_text("seeds: 2\n", encoding="utf-8")
    text = pages.profiles(folder)
    assert "| parameter | smoke | cpu | bpe |" in text
    assert "| `widths` | [32, 64] | [32] | [32] |" in text and "| `seeds` | 3 | 3 | 2 |" in text


def test_headings_are_shifted_outside_code():
    text = "# A\n```\n# not a heading\n```\n## B\n### C"
    assert pages.demote(text, 3) == "### A\n```\n# not a heading\n```\n#### B\n##### C"
    assert pages.demote("### A", 2) == "## A"


def test_packages_are_listed_without_importing_them(tmp_path):
    package = tmp_path / "things"
    texts = {
        "__init__": "Things.",
        "_a": "Private.",
        "c": "Alone.",
        "b/d": "A room.",
        "b/__init__": "Does b\nwell.\n\nMore.",
    }
    for name, text in texts.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""{text}"""\n1 / 0\n', encoding="utf-8")
    text = pages.api(package, tmp_path / "api")
    assert "[`things`](api/things.md) | Things." in text
    assert "[`things.b`](api/things.b.md) | Does b well." in text
    found = [(tmp_path / "api" / f"{n}.md").read_text("utf-8") for n in ("things", "things.b")]
    assert re.findall("automodule:: (.*)", "".join(found)) == [
        "things",
        "things.c",
        "things.b",
        "things.b.d",
    ]
