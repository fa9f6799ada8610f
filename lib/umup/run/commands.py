"""``umup train`` and ``umup watch``: their options and their actions.

What needs JAX or pandas is imported when a command is called, so that its help needs neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from umup.command import Argument, Option
from umup.errors import TrainError
from umup.yaml_reader import read_overrides

if TYPE_CHECKING:
    from umup.data import Dataset
    from umup.run.runfile import TrainConfig

Fields = Annotated[
    tuple[tuple[str, str], ...],
    Option(
        "override one field, such as optim.steps; the value is read as YAML",
        "NAME VALUE",
        ("-p", "--parameter"),
    ),
]
"""Fields of a run's file, from the command line."""


@dataclass(frozen=True)
class Train:
    """Train one run from its file, or resume what its folder holds.

    examples:
      umup train big.yaml -p optim.steps 20000 -p mesh.fsdp 8
      umup train big.yaml --fork 12000 --decay 2000
      srun umup train big.yaml
    """

    config: Annotated[str, Argument("YAML file: the fields of umup.run.runfile.TrainConfig")]
    run: Annotated[str | None, Option("the run's folder (default: runs/NAME)", "FOLDER")] = None
    parameter: Fields = ()
    restart_from: Annotated[
        int | None,
        Option("resume from this checkpoint and forget the later ones", "STEP", ("--from",)),
    ] = None
    fork: Annotated[
        int | None,
        Option("start a run of its own that leaves the plateau here; with --decay", "STEP"),
    ] = None
    decay: Annotated[int | None, Option("length of a fork's decay", "STEPS")] = None
    minutes: Annotated[
        float | None, Option("stop cleanly after so long (exit status 75)", "MINUTES")
    ] = None
    check: Annotated[bool, Option("only check that it can run")] = False
    elsewhere: Annotated[
        bool, Option("with --check: on another machine than this, whatever its devices")
    ] = False
    coordinator: Annotated[
        str, Option("address of the first of several processes", "HOST:PORT")
    ] = ""
    processes: Annotated[
        int, Option("how many there are (default: as Slurm or Open MPI says)", "N")
    ] = 0
    process: Annotated[int, Option("number of this one, from 0 (default: likewise)", "I")] = -1

    def __call__(self) -> int:
        """Train.

        Returns:
            0 done, 75 stopped with work left, 76 a loss spike that recovery could not heal.

        Raises:
            TrainError: the options exclude one another, or as ``loop.train_run``.
            ConfigError, DataError, CheckpointError: the file, the corpus or the folder.
        """
        from umup import data
        from umup.run import distributed, loop, runfile

        if self.minutes is not None and not math.isfinite(self.minutes):
            raise TrainError("--minutes", self.minutes, "a finite number; from 0 down: one chunk")
        config = runfile.read_config(self.config, read_overrides(self.parameter))
        if self.elsewhere and not self.check:
            raise TrainError("--elsewhere", "no --check", "both: a run is checked for elsewhere")
        if (self.fork is None) != (self.decay is None):
            raise TrainError("--fork", self.fork, "a step, together with --decay STEPS")
        distributed.start(self.coordinator, self.processes, self.process)
        dataset = data.load(
            config.corpus,
            config.tokenizer,
            seq_len=config.model.seq_len,
            max_tokens=config.max_tokens,
        )
        folder, forked = Path(self.run or f"runs/{config.name}"), None
        if self.fork is not None and self.decay is not None:
            config, forked = runfile.fork(config, folder, self.fork, self.decay, dataset)
            folder = forked.into
        loop.check(config, dataset, here=not self.elsewhere)
        if self.check:
            return self._check(config, folder, dataset)
        outcome = loop.train_run(
            config,
            folder,
            dataset=dataset,
            restart_from=self.restart_from,
            forked=forked,
            seconds=math.inf if self.minutes is None else 60 * self.minutes,
        )
        return {"done": 0, "stopped": loop.EXIT_RESUME, "gave up": loop.EXIT_GAVE_UP}[
            outcome.verdict
        ]

    def _check(self, config: TrainConfig, folder: Path, dataset: Dataset) -> int:
        from umup.run import runfile, writers

        runfile.check_folder(config, folder, dataset, self.restart_from)
        writers.require(tensorboard=config.tensorboard, wandb=config.wandb)
        tokens = config.optim.batch_size * config.model.seq_len
        print(
            f"{config.name}: {config.model.n_params:,} parameters, mesh {config.mesh}, "
            f"{config.optim.steps:,} steps of {tokens:,} tokens"
        )
        return 0


@dataclass(frozen=True)
class Watch:
    """Plot a run's log in the terminal while it trains.

    example:
      umup watch runs/big
    """

    folder: Annotated[str, Argument("the run's folder, or its log", "RUN")]
    once: Annotated[bool, Option("draw one picture and end")] = False
    every: Annotated[float, Option("seconds between pictures", "SECONDS")] = 5.0

    def __call__(self) -> int:
        """Plot until the run's end; returns 0.

        Raises:
            TrainError: there is no log in the folder, or ``every`` is not a time to wait.
        """
        from umup.run import watch

        return watch.watch(self.folder, once=self.once, every=self.every)
