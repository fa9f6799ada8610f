"""Optional writers besides the log: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from umup import files
from umup.errors import TrainError

EXTRA = "pip install 'umup[telemetry]'"


def open_writers(
    folder: Path | str,
    *,
    tensorboard: bool = False,
    wandb: str | None = None,
    key: str = "",
    config: Mapping[str, Any] | None = None,
    main: bool = True,
) -> list[Any]:
    """The requested writers, in this process if it is the one that writes.

    Every process checks that the packages are installed, so that all raise the same error. Call
    this before any compute.

    Args:
        folder: the run's folder; both keep their files in it.
        tensorboard: write event files to ``folder/tensorboard``.
        wandb: a project of Weights & Biases, none if None or empty; ``WANDB_MODE=offline`` keeps
            the run on this machine.
        key: the run's key, the prefix of its id in Weights & Biases; see ``wandb_id``.
        config: shown with the run.
        main: whether this process writes.

    Raises:
        TrainError: a package is missing, or the project cannot be opened.
    """
    require(tensorboard=tensorboard, wandb=wandb)
    if not main:
        return []
    writers: list[Any] = [TensorBoard(folder)] if tensorboard else []
    if wandb:
        writers.append(WandB(folder, wandb, key, config))
    return writers


def require(*, tensorboard: bool = False, wandb: str | None = None) -> None:
    """Raise a TrainError unless the packages of the requested writers can be imported."""
    if tensorboard:
        _load("tensorboardX", "tensorboard", tensorboard)
    if wandb:
        _load("wandb", "wandb", wandb)


def _load(package: str, field: str, received: object) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        off = "false" if received is True else "null"
        todo = f"{off}, or the package {package}: {EXTRA}"
        raise TrainError(field, received, todo) from error


class TensorBoard:
    """Event files in ``folder/tensorboard``; steps that were superseded are hidden."""

    def __init__(self, folder: Path | str):
        self._folder = str(Path(folder) / "tensorboard")
        self._open = _load("tensorboardX", "tensorboard", True).SummaryWriter
        self._writer: Any = None
        self._files = itertools.count()

    def rewind(self, step: int) -> None:
        """Begin a file that discards everything at or after ``step``."""
        self.close()
        self._begin(step)

    def _begin(self, step: int) -> Any:
        # File names contain the second: without a suffix, two files of one second would be one.
        suffix = f".{os.getpid()}.{next(self._files)}"
        self._writer = self._open(self._folder, purge_step=step, filename_suffix=suffix)
        return self._writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add finite numbers of one update."""
        writer = self._writer or self._begin(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending; a later call opens a new file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class WandB:
    """A run in a project of Weights & Biases.

    Its own step can only increase, so ours is logged as a number and used as the axis: after a roll
    back, both passes over the same steps are shown.
    """

    def __init__(
        self, folder: Path | str, project: str, key: str, config: Mapping[str, Any] | None = None
    ):
        wandb = _load("wandb", "wandb", project)
        try:
            self._run = wandb.init(
                project=project,
                dir=str(folder),
                id=wandb_id(Path(folder), key),
                resume="allow",
                config=dict(config or {}),
            )
        except TrainError:
            raise
        except Exception as error:  # wandb.errors.Error, or of the network, or of its settings
            todo = f"a project that wandb can open, or WANDB_MODE=offline ({error})"
            raise TrainError("wandb", project, todo) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def rewind(self, step: int) -> None:
        """Does nothing, see the class."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite numbers of one update."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Finish the run: wait until all is sent."""
        self._run.finish()


def wandb_id(folder: Path, key: str) -> str:
    """The id in Weights & Biases of the run in ``folder``: one per folder, kept in ``wandb.json``.

    A folder that is resumed or was moved keeps its id. A copy whose original still exists gets its
    own id, as does a folder that was emptied, so that two runs never share an id.

    Raises:
        TrainError: the file is damaged, or the folder cannot be written.
    """
    path, here = folder / "wandb.json", str(folder.resolve())
    allowed = "a folder that can be written, with the file that umup wrote, or none"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = _stored_id(folder)
        if stored is not None and stored["folder"] == here:
            return stored["id"]
        if stored is None or _is_copy(folder, stored):
            stored = {"id": "-".join(filter(None, (key, secrets.token_hex(4))))}
        with files.atomic_write(path) as file:
            file.write(json.dumps(stored | {"folder": here}).encode())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(str(path), str(error), allowed) from error
    return stored["id"]


def _is_copy(folder: Path, stored: Mapping[str, str]) -> bool:
    """True if the folder that the id was made for still exists and is not this one."""
    original = Path(stored["folder"])
    try:
        return _stored_id(original) == stored and not original.samefile(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _stored_id(folder: Path) -> dict[str, str] | None:
    try:
        found = json.loads((folder / "wandb.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return {"id": str(found["id"]), "folder": str(found["folder"])}
