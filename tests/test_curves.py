"""Curves: a study says which it wants, and each is searched, found again and played out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import pytest

from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import Curve, Curves, Text
from umup.lab.search import LRSearch
from umup.lab.study import missing_runs

TEXT = Text("abc", 256)


@dataclass(frozen=True)
class Depths(Curves):
    """Curves over η at two depths, and one run besides."""

    depths: tuple[int, ...] = (1, 2)
    log2_eta: tuple[float, ...] = (-1.0, 1.0)
    extra: bool = False

    def curves(self, text: Text) -> Iterator[Curve]:
        for depth in self.depths:
            search = self.grid("log2_eta", 1.0, 1.0, 2, 1)
            yield self.curve(search, "umup", self.model(32, text, n_layers=depth), text)

    def fixed(self, text: Text) -> Iterator[RunConfig]:
        if self.extra:
            yield self.run("mup", self.model(32, text), text, 0, eta=-6, alpha_attn_softmax=1)


@pytest.fixture
def dataset() -> Dataset:
    found = object.__new__(Dataset)
    object.__setattr__(found, "digest", TEXT.digest)
    object.__setattr__(found, "vocab_size", TEXT.vocab_size)
    return found


def finished(runs: list[RunConfig], loss) -> pd.DataFrame:
    return pd.DataFrame({"key": [r.key() for r in runs], "final_loss": [loss(r) for r in runs]})


def test_a_run_is_what_its_parameters_say() -> None:
    design = Depths(steps=40, ff_ratio=2.75, corpus="mine", tokenizer="words")
    run = design.run("mup", design.model(64, TEXT, n_layers=3), TEXT, 7, eta=-6.5)
    assert run == RunConfig(
        scheme="mup",
        model=ModelConfig(
            d_model=64,
            n_layers=3,
            d_head=16,
            d_ff=176,
            vocab_size=256,
            seq_len=64,
            base_width=32,
            base_depth=2,
            base_d_head=16,
            unroll=0,
        ),
        optim=OptimConfig(steps=40, batch_size=8, warmup_steps=10),
        hps=HPs(eta=2.0**-6.5, weight_decay=2.0**-13),
        seed=7,
        corpus="mine",
        tokenizer="words",
        data_digest="abc",
        eval_batches=16,
    )


def test_warm_up_keeps_its_share_whatever_the_steps() -> None:
    assert Depths(warmup_ratio=0.25).optim(steps=80).warmup_steps == 20
    assert Depths().optim(steps=80, warmup_steps=0).warmup_steps == 0


def test_every_curve_is_searched_on_its_own(dataset: Dataset) -> None:
    design, done = Depths(extra=True), []

    def loss(run: RunConfig) -> float:  # the deeper one is best an octave higher
        return (run.hps.eta / 2.0 ** (run.model.n_layers - 1) - 1) ** 2

    while todo := design.pending(finished(done, loss), dataset):
        assert not set(todo) & set(done), "asked for twice"
        done += todo
    assert len(done) == len(set(done))
    etas = {
        depth: {
            (r.hps.eta, r.seed) for r in done if r.model.n_layers == depth and r.scheme == "umup"
        }
        for depth in (1, 2)
    }
    both = {(x, seed) for x in (0.5, 1.0, 2.0) for seed in (0, 1)}
    assert etas[1] == both
    assert etas[2] == {(0.5, 0)} | {(2 * x, seed) for x, seed in both}
    assert [r.scheme for r in done].count("mup") == 1


def test_the_coarse_grids_are_wanted_whatever_the_results(dataset: Dataset) -> None:
    runs = Depths(extra=True).runs(dataset)
    assert [(r.scheme, r.model.n_layers, r.hps.eta) for r in runs] == [
        ("mup", 2, 2.0**-6),
        *(("umup", depth, eta) for depth in (1, 2) for eta in (0.5, 1.0, 2.0)),
    ]


def test_playing_out_asks_for_no_extension(dataset: Dataset) -> None:
    design = Depths()
    runs = missing_runs(
        design, pd.DataFrame({"key": [], "final_loss": [], "numerics": []}), dataset
    )
    assert len(runs) == 2 * 3 * 2  # three points, all seeds at each: the window spans the grid
    strange = design.run("sp", design.model(32, TEXT), TEXT, 0, eta=0)
    assert design.guess(strange, pd.DataFrame()) == 1.0


def test_a_curve_is_over_any_hyperparameter() -> None:
    design = Depths()
    model = design.model(32, TEXT)
    optim = design.optim(steps=8)
    curve = design.curve(LRSearch(0, 1), "umup", model, TEXT, "alpha_residual", optim, eta=-1)
    run = curve.run(1.0, 2)
    assert (run.hps.alpha_residual, run.hps.eta, run.seed, run.optim) == (2.0, 0.5, 2, optim)


def test_a_grid_that_is_none_names_its_parameter() -> None:
    for ends, words in (((1.0,), r"two numbers"), ((1.0, 0.0), r"hi: .*more than lo")):
        with pytest.raises(ConfigError, match=r"log2_eta.*" + words):
            Depths(log2_eta=ends).grid("log2_eta")
    assert Depths().grid("log2_eta", 0.5, 2.0, 4) == LRSearch(-1.0, 1.0, 0.5, 2.0, 4)
