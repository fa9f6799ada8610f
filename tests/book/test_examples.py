"""The worked examples: their files can be trained, and the pages they link to give the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from book.test_browser import browser, framed, reading, serving  # noqa: F401
from book.test_composer import board
from umup import cli, transfer
from umup.book import composer_page, examples, planner_page
from umup.book.examples import EXAMPLES, Example
from umup.errors import BookError

ROOT = Path(__file__).resolve().parents[2]
IDS = [example.preset for example in EXAMPLES]


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_its_file_passes_the_check(example: Example, tmp_path, monkeypatch, capsys):
    worked = examples.work(example)
    (tmp_path / "big.yaml").write_text(worked.file, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "big.yaml", "--check", "--elsewhere"]) == 0
    said = capsys.readouterr().out
    assert f"{worked.target.model.n_params:,} parameters" in said
    assert f"{worked.steps:,} steps" in said


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_its_rate_is_the_proxys_carried(example: Example):
    worked = examples.work(example)
    moved = sum(term.octaves.value for term in worked.carried.terms)
    assert worked.carried.log2_eta.value == pytest.approx(example.log2_eta + moved)
    assert f"eta: {2**worked.carried.log2_eta.value:.4g}\n" in worked.file
    assert worked.carried.notes == ()
    assert worked.proxy.model.n_layers == worked.target.model.n_layers
    assert worked.proxy.model.n_params < worked.target.model.n_params
    seen = worked.steps * worked.chosen.batch_size * worked.chosen.seq_len
    assert seen <= (example.ratio + 0.1) * worked.target.model.n_params


def test_a_short_time_gives_fewer_steps():
    example = EXAMPLES[1]
    hurried = Example(**vars(example) | {"hours": example.hours / 100})
    assert examples.work(hurried).steps < examples.work(example).steps / 50


def test_a_model_without_a_layout_is_an_error():
    with pytest.raises(BookError, match="a model that fits its devices"):
        examples.work(Example(**vars(EXAMPLES[0]) | {"devices": 1}))


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    pages = {
        "planning.html": planner_page.page(ROOT / "book" / "planner"),
        "what-to-tune.html": composer_page.page(ROOT / "book", board()),
    }
    for name, fragment in pages.items():
        (folder / name).write_text(framed(fragment), encoding="utf-8")
    with serving(folder) as address:
        yield address


@pytest.mark.browser
@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_planner_and_composer_give_the_same(browser, origin, example: Example):  # noqa: F811
    worked = examples.work(example)
    with reading(browser, origin) as (page, wrong):
        page.goto(origin + examples.planner_link(example, worked))
        page.click(".planner-file summary")
        assert page.locator(".planner-file pre").text_content() == worked.file
        page.goto(origin + examples.composer_link(example, worked))
        eta = worked.carried.log2_eta
        said = page.locator(".planner-verdict").inner_text().replace("−", "-")
        assert f"log₂ η = {eta.value:.2f} [{eta.lo:.2f}, {eta.hi:.2f}]" in said
        assert len(worked.carried.terms) == page.locator(".planner-out tbody tr").count()
        assert wrong == []


def test_motions_of_the_examples_are_measured():
    for example in EXAMPLES:
        worked = examples.work(example)
        assert all(term.motion for term in worked.carried.terms)
        assert {term.axis for term in worked.carried.terms} <= {*transfer.AXES, "together"}
