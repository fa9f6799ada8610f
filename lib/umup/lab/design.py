"""What a study wants to measure: training runs and other points, from its flat parameters.

A *run* is a ``RunConfig``. A *point* is any other measurement: a name and a plain specification,
from which a function of the study's module makes a plain result. Both are identified by the digest
of their specification, so that finished ones are recognized and killed work can resume.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import pandas as pd

from umup.checked import (
    Config,
    Count,
    OneOf,
    Positive,
    PositiveOrZero,
    Range,
    canonical_json,
    digest,
    kinds,
)
from umup.config import NUMERICS, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.records import provenance
from umup.yaml_reader import read_yaml

Octaves = Annotated[float, Range(-60, 60)]
"""log2 of a learning rate or of another hyperparameter."""
Spacing = Annotated[float, OneOf(0.25, 0.5, 1.0)]
"""Octaves between the points of a grid, exact in binary."""


@dataclass(frozen=True)
class Point:
    """One measurement: ``what`` names the function, ``spec`` holds its arguments (plain JSON)."""

    what: str
    spec: Mapping[str, Any]

    def key(self) -> str:
        """Digest of the specification and of the numerics version."""
        return digest({"what": self.what, "spec": dict(self.spec), "numerics": NUMERICS})

    def row(self, study: str, profile: str, result: Mapping[str, Any], wall_s: float) -> dict:
        """The record of ``result``, measured just now in ``wall_s`` seconds."""
        return {
            "key": self.key(),
            "study": study,
            "profile": profile,
            "what": self.what,
            "spec": canonical_json(dict(self.spec)),
            "result": json.dumps(result, sort_keys=True),
            "numerics": NUMERICS,
            "wall_s": wall_s,
            **provenance(),
        }


@dataclass(frozen=True)
class Design(Config):
    """The flat parameters of every study, as papermill passes them to a notebook."""

    profile: str = "smoke"
    """Name of the profile: a column of the records, and their folder."""
    mode: Annotated[str, OneOf("run", "load")] = "run"
    """``run`` makes what is missing, ``load`` only reads the records."""
    fresh: bool = False
    """True to make everything again in a temporary store (the smoke profile)."""
    digits: Annotated[int, Range(0, 6)] = 2
    """Decimals that the notebook prints."""
    corpus: str = "sotu"
    """Corpus of the training runs."""
    tokenizer: str = "bytes"
    """Tokenizer of that text."""
    workers: Annotated[int, Range(0, 256)] = 0
    """Number of worker processes, one CPU core each; 0 works in this process."""
    lanes: Count = 1
    """Number of runs in one program, see ``sweep.Settings``."""
    lanes_at_once: Count = 1
    """Number of these that a CPU advances together."""
    chunk_steps: Count = 250
    """Updates per chunk, after which control returns to the host."""
    time_limit_minutes: PositiveOrZero = 0.0
    """Time after which to stop cleanly (0: no limit); the same command resumes."""
    assumed_tflops: Positive = 0.1
    """Speed of training assumed for estimates before anything is measured."""
    point_seconds: Positive = 2.0
    """Time per point assumed likewise."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from papermill parameters, however they were passed.

        Papermill passes text for a list given by ``-p``, for anything given by ``-r``, and for
        ``1e-4`` in ``-f`` or ``-y``: text in place of a number, a switch or a list is read as YAML.

        Raises:
            ConfigError: a key is unknown, or a value has a wrong type or is out of range.
        """
        types = kinds(cls)
        try:
            return super().from_dict(
                {k: _untexted(v, types.get(k, str)) for k, v in values.items()}
            )
        except ConfigError as error:
            if not isinstance(values.get(error.field), str) or error.field not in types:
                raise
            example = canonical_json({error.field: getattr(cls, error.field)})[1:-1]
            allowed = f"{error.allowed}; lists and numbers by papermill's -y, as -y '{{{example}}}'"
            raise ConfigError(error.field, values[error.field], allowed) from None

    def pick(self, *names: str) -> dict[str, Any]:
        """Parameters by name, for the specification of a point."""
        return {name: getattr(self, name) for name in names}

    def points(self) -> list[Point]:
        """Every measurement wanted, in the order in which to make them."""
        return []

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """Every training run wanted, in the order in which to make them."""
        return []

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next, given the finished ones (rows of this profile)."""
        done = set(runs["key"]) if len(runs) else set()
        return [run for run in self.runs(dataset) if run.key() not in done]

    @property
    def trains(self) -> bool:
        """True if the study trains models and so needs a corpus."""
        mine = type(self)
        return mine.runs is not Design.runs or mine.pending is not Design.pending

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A guessed loss of ``run``, with which adaptive designs predict their later requests."""
        return 1.0

    def missing_seconds(self, runs: list[RunConfig]) -> float:
        """Seconds for ``runs`` at ``assumed_tflops``: 6 FLOPs per weight and token, all workers."""
        flops = 0.0
        for run in runs:
            weights = run.model.n_params - run.model.vocab_size * run.model.d_model
            tokens = run.optim.steps * run.optim.batch_size * run.model.seq_len
            flops += 6.0 * weights * tokens
        return flops / (self.assumed_tflops * 1e12) / max(self.workers, 1)


def _untexted(value: Any, kind: Any) -> Any:
    """A parameter of a type, one of ``checked.kinds``, read as YAML where it is text."""
    if isinstance(value, str) and kind is not str:
        try:
            found = read_yaml(value, "parameter")
        except ConfigError:
            return value
        return value if found is None or isinstance(found, str) else _untexted(found, kind)
    if isinstance(value, (list, tuple)) and typing.get_origin(kind) is tuple:
        return [_untexted(item, typing.get_args(kind)[0]) for item in value]
    return value
