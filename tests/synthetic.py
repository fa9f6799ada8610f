"""Runs made from known parabolas, for the tests of tables, claims and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from umup.config import NUMERICS

CURVATURE = 0.03  # nats an octave²
WIDTHS = (32, 64, 128, 256)
SLOPES = {"sp": -1.0, "mup": -0.1, "umup": 0.05}  # octaves a doubling
CENTRES = {"sp": -6.0, "mup": -7.0, "umup": 0.0}  # log2 η* at width 32
LEVELS = {"sp": 1.50, "mup": 1.48, "umup": 1.45}  # nats at width 32, less 0.05 a doubling


def optimum(scheme: str, width: int) -> float:
    return CENTRES[scheme] + SLOPES[scheme] * np.log2(width / 32)


def level(scheme: str, width: int) -> float:
    return LEVELS[scheme] - 0.05 * np.log2(width / 32)


def make_runs(
    widths=WIDTHS, steps=(2000,), seeds=3, noise=0.002, spread=0.004, diverge_above=None, **columns
) -> pd.DataFrame:
    """One row a run, on a √2 grid of η within 3 octaves of each width's optimum.

    noise: of each run. spread: of the seeds, shared by all runs of one seed. diverge_above: octaves
    above the optimum from which SP and μP diverge.
    """
    rng = np.random.default_rng(0)
    offsets = spread * (np.arange(seeds) - (seeds - 1) / 2)
    rows = []
    for scheme in SLOPES:
        for width in widths:
            for horizon in steps:
                x0 = optimum(scheme, width)
                for x in np.arange(round(2 * x0) - 6, round(2 * x0) + 7) / 2:
                    for seed in range(seeds):
                        loss = level(scheme, width) + CURVATURE * (x - x0) ** 2
                        loss += 0.1 * np.log2(2000 / horizon) + offsets[seed]
                        loss += noise * rng.normal()
                        bad = diverge_above is not None and x > x0 + diverge_above
                        bad &= scheme != "umup"
                        rows.append(
                            {
                                "scheme": scheme,
                                "d_model": width,
                                "steps": horizon,
                                "lr": 2.0**x,
                                "seed": seed,
                                "status": "diverged" if bad else "ok",
                                "final_loss": np.nan if bad else loss,
                            }
                        )
    fixed = {
        "study": "s",
        "profile": "cpu",
        "n_layers": 2,
        "vocab_size": 256,
        "seq_len": 64,
        "batch_size": 16,
        "data_digest": "d",
        "numerics": NUMERICS,
    }
    return pd.DataFrame(rows).assign(**(fixed | columns))
