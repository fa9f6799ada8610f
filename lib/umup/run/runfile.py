"""A run's file and its folder: the settings of `umup train`, and which run a folder belongs to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from umup import files
from umup.checked import (
    Config,
    Count,
    CountOrZero,
    OneOf,
    PositiveOrZero,
    Range,
    Seed,
    digest,
)
from umup.config import (
    NUMERICS,
    HPs,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    corpus_identity,
)
from umup.data import Dataset
from umup.errors import ConfigError, TrainError
from umup.run import distributed
from umup.run.recovery import RecoveryConfig
from umup.yaml_reader import line_of, read_text, read_yaml


@dataclass(frozen=True)
class TrainConfig(Config):
    """A whole run file; ``RunConfig`` is the part that fixes the run's numbers."""

    name: str
    """Name of the run and of its folder under ``runs``."""
    scheme: str = "umup"
    model: ModelConfig = ModelConfig()  # noqa: RUF009, frozen
    optim: OptimConfig = OptimConfig()  # noqa: RUF009, frozen
    hps: HPs = HPs()  # noqa: RUF009, frozen
    seed: Seed = 0
    corpus: str = "sotu"
    tokenizer: str = "bytes"
    max_tokens: Count | None = None
    """Number of tokens of the corpus to use (null: all)."""
    eval_batches: Annotated[int, Range(1, 2**31 - 1)] = 16
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009, frozen
    """Devices along each axis."""
    loader: Annotated[str, OneOf("device", "host")] = "device"
    """``device`` keeps the tokens on every device, ``host`` gathers batches ahead."""
    chunk_steps: Annotated[int, Range(1, 100_000)] = 20
    """Updates per chunk, after which control returns to the host."""
    eval_every: CountOrZero = 0
    """Updates between evaluations (0: at the end only)."""
    checkpoint_every: Count = 500
    """Updates between checkpoints."""
    keep: Count = 3
    """Number of latest checkpoints to keep."""
    keep_every: CountOrZero = 0
    """Checkpoints at multiples of it are kept permanently (0: none)."""
    recovery: RecoveryConfig = RecoveryConfig()  # noqa: RUF009, frozen
    """What counts as a spike, and what is done about it."""
    peak_tflops: PositiveOrZero = 0.0
    """Peak of one device, for MFU; 0: measured on a matrix product before the run."""
    tensorboard: bool = False
    """Write event files."""
    wandb: str | None = ""
    """A project of Weights & Biases (null or "": none)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name in ("", ".", "..") or set(self.name) & set("/\\\0"):
            raise ConfigError("name", self.name, "a name that a folder can have")

    def run(self, dataset: Dataset) -> RunConfig:
        """The part that fixes the run's numbers, with the data's digest."""
        return RunConfig(
            self.scheme,
            self.model,
            self.optim,
            self.hps,
            self.seed,
            self.corpus,
            self.tokenizer,
            dataset.digest,
            self.eval_batches,
        )

    def key(self, dataset: Dataset) -> str:
        """Digest of everything that determines the trajectory: the run and its recovery."""
        return digest({"run": self.run(dataset).key(), "recovery": self.recovery.essence()})


def read_config(path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration in a run's YAML file.

    Args:
        path: the file; without ``name`` in it, the file's stem is the run's name. None is a file
            of defaults, named "run".
        overrides: dotted field → value, such as ``{"optim.steps": 100}``.

    Raises:
        TrainError: the file is not a mapping, cannot be read or is ambiguous; or an override names
            no field.
        ConfigError: a field is unknown, missing or out of range. The message names its line.
    """
    text = "" if path is None else read_text(path, TrainError)
    found = read_yaml(text, str(path), TrainError)
    if not isinstance(found, dict | None):
        raise TrainError(str(path), type(found).__name__, "a mapping of fields to values")
    plain = {"name": "run" if path is None else Path(path).stem} | (found or {})
    for dotted, value in (overrides or {}).items():
        _override(plain, dotted, value)
    try:
        return TrainConfig.from_dict(plain)
    except ConfigError as error:
        line = None if error.field in (overrides or {}) else line_of(text, str(error.field))
        if line is None:
            raise
        place = f"{path}, line {line}: {error.field}"
        raise ConfigError(place, error.received, error.allowed) from None


def _override(plain: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, field = dotted.split(".")
    place = plain
    for group in groups:
        place = place.setdefault(group, {})
        if not isinstance(place, dict):
            raise TrainError(dotted, value, f"a field of {group}, which is no group of fields")
    if isinstance(value, dict):  # it would undo the group's other fields
        example = f"{dotted}.{next(iter(value), 'field')}"
        raise TrainError(dotted, value, f"one field at a time, such as {example}")
    place[field] = value


class Fork(NamedTuple):
    """A decay that leaves a run's plateau: the run's folder and key, the step, its own folder."""

    folder: Path
    key: str
    step: int
    into: Path


def fork(
    config: TrainConfig, folder: Path, step: int, decay_steps: int, dataset: Dataset
) -> tuple[TrainConfig, Fork]:
    """The run that leaves ``config``'s plateau after ``step`` updates and decays to its end.

    It equals, bit for bit, a run of ``step + decay_steps`` updates that was never forked.

    Raises:
        TrainError: the run has no plateau, or ``step`` is not on it or has no checkpoint.
        ConfigError: ``decay_steps`` < 1.
    """
    optim = config.optim
    if not optim.schedule.startswith("wsd"):
        allowed = "a run with optim.schedule wsd or wsd_sqrt, which has a plateau"
        raise TrainError("fork", f"schedule {optim.schedule}", allowed)
    first, last = optim.warmup_steps, optim.steps - optim.decay_steps
    if not first <= step <= last:
        raise TrainError("fork", step, f"a step of the plateau, {first} to {last}")
    into = folder.with_name(f"{folder.name}-{step}+{decay_steps}")
    saved = _saved(folder)
    if step not in saved and not _saved(into):  # once begun it needs the plateau no more
        there = ", ".join(str(s) for s in sorted(saved) if first <= s <= last) or "none yet"
        raise TrainError("fork", step, f"a checkpoint of {folder.name} on its plateau: {there}")
    decayed = dataclasses.replace(optim, steps=step + decay_steps, decay_steps=decay_steps)
    name = f"{config.name}-{step}+{decay_steps}"
    forked = dataclasses.replace(config, name=name, optim=decayed)
    return forked, Fork(folder, config.key(dataset), step, into)


def _saved(folder: Path) -> list[int]:
    return [int(p.name) for p in (folder / "checkpoints").glob("[0-9]*") if p.name.isdigit()]


def check_folder(
    config: TrainConfig, folder: Path, dataset: Dataset, restart_from: int | None = None
) -> None:
    """Raise the errors of ``held`` and of a restart, a lock excepted, without writing anything.

    Raises:
        TrainError: the folder is another run's or cannot be made, or has no such checkpoint.
    """
    folder = folder.absolute()
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{there} is no folder that can be written")
        _compare(config, folder / "run.json", dataset)
        saved = sorted(_saved(folder))
    except OSError as error:
        raise TrainError(str(folder), str(error), "a folder that can be written") from error
    if restart_from is not None and restart_from not in saved:
        allowed = f"a checkpoint's step: {', '.join(map(str, saved)) or 'there is none yet'}"
        raise TrainError("--from", restart_from, allowed)


@contextlib.contextmanager
def held(config: TrainConfig, folder: Path, dataset: Dataset) -> Iterator[None]:
    """Hold the folder's lock: the folder is this run's, and no other process uses it."""
    problem: TrainError | None = None
    with contextlib.ExitStack() as stack:
        if distributed.is_main():
            try:
                with files.writing(folder, TrainError, "nothing was begun"):
                    folder.mkdir(parents=True, exist_ok=True)
                    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
                    stack.callback(os.close, descriptor)
                    if not files.lock(descriptor, folder / "lock", TrainError):
                        holder = os.read(descriptor, 100).decode(errors="replace").strip()
                        received = f"in use by {holder or 'another process'}"
                        allowed = "a folder that no other run writes to"
                        raise TrainError(str(folder), received, allowed)
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()}".encode())
                    _identify(config, folder, dataset)
            except TrainError as error:
                problem = error
        if distributed.any_of(problem is not None):
            raise problem or TrainError(str(folder), "refused by the first process", "see its log")
        yield


def _identify(config: TrainConfig, folder: Path, dataset: Dataset) -> None:
    """Write ``run.json``, or compare the run with it."""
    path = folder / "run.json"
    if _compare(config, path, dataset):
        return
    text = json.dumps(
        {
            "key": config.key(dataset),
            "numerics": NUMERICS,
            "run": _identity(config, dataset),
            "config": config.to_dict(),
        },
        indent=1,
    )
    with files.atomic_write(path) as file:
        file.write(text.encode())


def _compare(config: TrainConfig, path: Path, dataset: Dataset) -> bool:
    """True if there is a ``run.json``, and it is this run's."""
    if not path.exists():
        return False
    try:
        one = _flat(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TrainError(str(path), "damaged", "the file that umup wrote, or none") from None
    other = _flat(json.loads(json.dumps(_identity(config, dataset))))
    # A field that was added later is neutral by default: a run begun without it resumes, by its key
    # too.
    default = _flat(TrainConfig("any").to_dict())
    one = {name: default[name] for name in other.keys() & default.keys()} | one
    for values in (one, other):  # of one's own text only the digest counts, not the path
        values["corpus"] = corpus_identity(str(values.get("corpus")))
        # ``unroll`` 1 was once the default: a run begun with it resumes, as its key is the same.
        if values.get("model.unroll") == 1:
            values["model.unroll"] = None
    names = sorted(one.keys() | other.keys())
    differ = [
        f"{n} {one.get(n)} there, {other.get(n)} here" for n in names if one.get(n) != other.get(n)
    ]
    if differ:
        allowed = "the same run, or another folder (--run)"
        raise TrainError(str(path.parent), f"another run's folder: {'; '.join(differ)}", allowed)
    return True


def _identity(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    return config.run(dataset).to_dict() | {"recovery": config.recovery.to_dict()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
