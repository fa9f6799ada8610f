"""How much the evidence is: sizes of models, tokens, hours, devices and dates of some records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from umup.config import ModelConfig


@dataclass(frozen=True)
class Scale:
    """What some records amount to.

    Attributes:
        trainings, others: the number of training runs and of other measurements.
        seeds: different seeds among the trainings.
        weights: fewest and most parameters of a trained model, (0, 0) without trainings.
        tokens: fewest and most tokens of a training. all_tokens: of all trainings together.
        hours: of computing, summed over the records. dollars: what they cost at a price per hour.
        devices, corpora: their names, sorted.
        first, last: when the oldest and the newest record was made, None without records.
    """

    trainings: int
    others: int
    seeds: int
    weights: tuple[int, int]
    tokens: tuple[int, int]
    all_tokens: int
    hours: float
    dollars: float
    devices: tuple[str, ...]
    corpora: tuple[str, ...]
    first: datetime | None
    last: datetime | None

    @property
    def gpu(self) -> bool:
        """Whether any record was made on a GPU."""
        return any("nvidia" in name.lower() or "h100" in name.lower() for name in self.devices)


def measure(rows: pd.DataFrame, per_hour: Mapping[str, float]) -> Scale:
    """The scale of some records.

    Args:
        rows: runs and points together, as ``pages.read_records`` has them.
        per_hour: US dollars per hour by machine, as ``pages.prices`` gives them.
    """
    if rows.empty:
        return Scale(0, 0, 0, (0, 0), (0, 0), 0, 0.0, 0.0, (), (), None, None)
    trained = rows[rows["scheme"].notna()]
    specs = [json.loads(spec) for spec in trained["spec"].drop_duplicates()]
    weights = [_n_params(spec["model"]) for spec in specs]
    tokens = trained["batch_size"] * trained["seq_len"] * trained["steps"]
    hours = rows.groupby(["device", "device_count"])["wall_s"].sum() / 3600
    dollars = 0.0
    for (device, count), spent in hours.items():  # pyright: ignore[reportGeneralTypeIssues]
        price = next((p for name, p in per_hour.items() if name in str(device).lower()), 0.0)
        dollars += float(spent) * int(count) * price
    days = [datetime.fromisoformat(day) for day in rows["created"]]
    return Scale(
        trainings=len(trained),
        others=len(rows) - len(trained),
        seeds=trained["seed"].nunique() if "seed" in trained else 0,
        weights=(min(weights, default=0), max(weights, default=0)),
        tokens=(int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0),
        all_tokens=int(tokens.sum()),
        hours=float(hours.sum()),
        dollars=dollars,
        devices=tuple(sorted({str(device) for device in rows["device"]})),
        corpora=tuple(sorted({spec["corpus"] for spec in specs if "corpus" in spec})),
        first=min(days),
        last=max(days),
    )


def _n_params(model: Mapping[str, Any]) -> int:
    """Number of parameters of the model in a run's specification."""
    known = {k: v for k, v in model.items() if k in ("d_model", "n_layers", "d_head", "d_ff")}
    return ModelConfig(**known, vocab_size=model["vocab_size"], rope=False).n_params
