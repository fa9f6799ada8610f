"""Records made by hand: runs from known parabolas, and rows of planted results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from umup.config import NUMERICS, RunConfig
from umup.data import Dataset
from umup.lab import schemas
from umup.lab.design import Design, Point
from umup.lab.records import Results

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
    """One row per run, on a √2 grid of η within 3 octaves of each width's optimum.

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
                                "val_loss": np.nan if bad else loss,
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


EMPTY = Results(
    pd.DataFrame(columns=list(schemas.RUNS.columns)),
    pd.DataFrame(columns=list(schemas.POINTS.columns)),
)
"""The records of a study of which nothing is measured yet."""


def rows_of(runs: Iterable[RunConfig], result: Callable[[RunConfig], dict]) -> pd.DataFrame:
    """The rows that training runs leave: what their configuration says, and ``result`` of each."""
    none = {"probe_steps": [], "probe_tensors": [], "probe_values": []}
    rows = [
        {
            "key": run.key(),
            "study": "s",
            "profile": "cpu",
            "scheme": run.scheme,
            "d_model": run.model.d_model,
            "n_layers": run.model.n_layers,
            "d_head": run.model.d_head,
            "vocab_size": run.model.vocab_size,
            "seq_len": run.model.seq_len,
            "batch_size": run.optim.batch_size,
            "steps": run.optim.steps,
            "lr": run.hps.eta,
            "seed": run.seed,
            "status": "ok",
            "data_digest": run.data_digest,
            "numerics": NUMERICS,
            "spec": json.dumps(run.to_dict()),
            **none,
            **result(run),
        }
        for run in runs
    ]
    for row in rows:  # of both losses one is planted: the other is the same
        row.setdefault("val_loss", row.get("final_loss"))
        row.setdefault("final_loss", row["val_loss"])
    return pd.DataFrame(rows, columns=EMPTY.runs.columns)


def point_row(what: str, spec: Mapping, result: Mapping, **more) -> dict:
    """The row that a point of a specification leaves with a result."""
    return {
        "what": what,
        "spec": json.dumps(dict(spec)),
        "result": json.dumps(result),
        "study": "s",
        "profile": "cpu",
        "numerics": NUMERICS,
        **more,
    }


def points_of(points: Iterable[Point], result: Callable[[Point], Mapping]) -> pd.DataFrame:
    """The rows that points leave, with ``result`` of each."""
    rows = [point_row(p.what, p.spec, result(p)) for p in points]
    return pd.DataFrame(rows, columns=EMPTY.points.columns)


def played(design: Design, text: Dataset, loss: Callable[[RunConfig], float]) -> list[RunConfig]:
    """Every run that an adaptive design asks for when losses are those given."""
    done: dict[str, RunConfig] = {}
    while todo := design.pending(
        pd.DataFrame({"key": list(done), "final_loss": [loss(r) for r in done.values()]}), text
    ):
        assert not {run.key() for run in todo} & set(done), "asked for a run on record"
        done |= {run.key(): run for run in todo}
    return list(done.values())


def drawn(ax: Axes) -> dict[str, np.ndarray]:
    """Label → the (n, 2) points of the lines, with or without error bars, that carry it."""
    found: dict[str, list] = {}
    for artist in (*ax.containers, *ax.lines):
        if not (label := str(artist.get_label())).startswith("_"):
            line = artist.lines[0] if isinstance(artist, ErrorbarContainer) else artist
            found.setdefault(label, []).append(line.get_xydata())
    return {label: np.concatenate(points) for label, points in found.items()}


def marks(ax: Axes) -> np.ndarray:
    """The (n, 2) points of everything drawn with error bars, in the order of drawing."""
    bars = [c.lines[0].get_xydata() for c in ax.containers if isinstance(c, ErrorbarContainer)]
    return np.concatenate(bars)
