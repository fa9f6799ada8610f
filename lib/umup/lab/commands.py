"""``umup studies``, ``run``, ``bench`` and ``status``: their options and their actions.

What needs JAX or pandas is imported when a command is called, so that its help needs neither.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from umup.command import Argument, Option
from umup.errors import UmupError
from umup.lab.options import Options
from umup.text import columns
from umup.yaml_reader import read_overrides

if TYPE_CHECKING:
    from umup.lab.design import Design
    from umup.lab.records import Store


@dataclass(frozen=True)
class Studies:
    """List the studies and their profiles.

    example:
      umup studies
    """

    def __call__(self) -> int:
        """Print a line per study; returns 0."""
        from umup.lab import folders, study

        for name in folders.names():
            print(f"{name:20} {', '.join(study.profiles(name))}")
        return 0


@dataclass(frozen=True)
class Run:
    """Run a study: train what its records lack, then execute its notebook.

    examples:
      umup run lr_transfer --profile cpu -p seeds 1
      umup run lr_transfer --profile h100 --executor slurm --tasks 16 --gpus 1
    """

    study: Annotated[str, Argument("a name that umup studies lists")]
    profile: Annotated[str, Option("parameter file")] = "smoke"
    parameter: Annotated[
        tuple[tuple[str, str], ...],
        Option(
            "override one parameter; the value is read as YAML",
            "NAME VALUE",
            ("-p", "--parameter"),
        ),
    ] = ()
    dry_run: Annotated[bool, Option("only say what would run, and how long it takes")] = False
    options: Annotated[Options | None, Option("beyond this process")] = None

    def __call__(self) -> int:
        """Train what is missing, or submit it; then execute the notebook.

        Returns:
            0 done or submitted, 75 stopped with work left, 130 no longer followed.

        Raises:
            UmupError: from the study, its parameters, its records or the cluster.
        """
        from umup.lab import folders, notebook, study

        overrides = read_overrides(self.parameter)
        given = study.parameters(self.study, self.profile) | overrides
        design = study.design_of(self.study).from_dict(given)
        place = study.store(self.study, design.profile)
        if self.dry_run:
            print(format_status([study.status(self.study, self.profile, overrides)]))
            return 0
        if self.options is not None or (design.mode == "run" and not design.fresh):
            ended = self._worked(design, place)
            if ended is not None:
                return ended
            given = given | {"mode": "load"}
        root = folders.experiments_folder().parent
        output = root / "book" / "_build" / "runs" / f"{self.study}-{self.profile}.ipynb"
        print(f"executing the notebook of {self.study} at profile {self.profile}")
        notebook.execute(folders.folder(self.study) / "study.ipynb", output, given, root)
        print(f"executed: {output.relative_to(root)}")
        if not design.fresh:
            print(f"records:  {place.folder.relative_to(root)}")
        return 0

    def _worked(self, design: Design, place: Store) -> int | None:
        """Make what is missing, here or elsewhere; the exit status, or None to go on to the
        notebook."""
        from umup.lab import executor, study
        from umup.lab.sweep import OutOfTime

        if self.options is not None:
            ended = executor.fan_out(self.study, design, place, self.options)
            return ended if ended is not None or self.options.wait else 0
        os.environ.setdefault("UMUP_PROGRESS", "1")
        try:
            study.run_or_load(self.study, design)
        except OutOfTime:
            resume = f"umup run {self.study} --profile {self.profile}"
            print(f"time limit reached; `{resume}` goes on")
            return study.EXIT_OUT_OF_TIME
        return None


@dataclass(frozen=True)
class Bench:
    """Time training steps here, beside PyTorch's unit_scaling where it is installed.

    The study throughput, measured anew on this machine: matrix products,
    steps beside PyTorch's sample by sample, every change that was tried, pieces
    of a step, lanes of a sweep, compile time, memory, probes.

    examples:
      umup bench                                 about ten minutes on two cores
      umup bench --profile h100 --records mine   what ended is kept; the same command resumes
      umup bench -p widths '[64]' -p tried '[]' -p parts_widths '[]'

    Close everything else first: the records say how much of the machine others used meanwhile.
    """

    profile: Annotated[str, Option("of the study throughput")] = "cpu"
    parameter: Annotated[
        tuple[tuple[str, str], ...],
        Option(
            "override one parameter; the value is read as YAML",
            "NAME VALUE",
            ("-p", "--parameter"),
        ),
    ] = ()
    records: Annotated[
        Path | None, Option("where points are kept (default: nowhere)", "FOLDER")
    ] = None

    def __call__(self) -> int:
        """Measure, then print the tables of completed measurements; returns 0.

        Raises:
            UmupError: from the parameters, or a missing accelerator or package that they need.
        """
        from umup.lab import bench_torch, study
        from umup.lab.folders import code
        from umup.lab.records import Store, read_results

        given = study.parameters("throughput", self.profile) | read_overrides(self.parameter)
        if given["references"] and (reason := bench_torch.missing()):
            print(f"No PyTorch beside ours: {reason}.", file=sys.stderr)
            given |= {"references": [], "compiled_widths": []}
        design = study.design_of("throughput").from_dict(given)
        os.environ.setdefault("UMUP_PROGRESS", "1")
        with tempfile.TemporaryDirectory(prefix="umup-") as temporary:
            place = Store(self.records or Path(temporary))
            try:
                study.make("throughput", design, place)
            finally:  # out of memory, say: what is measured so far counts
                words, results = code("throughput").words, read_results(place)
                print(words.what_ran(results, design.digits))
                for table in (words.step_table, words.tried_table, words.probes_table):
                    print("\n" + table(results, design.digits))
        return 0


@dataclass(frozen=True)
class Status:
    """Say for every study and profile what is done, running, missing or stale.

    example:
      umup status lr_transfer
    """

    study: Annotated[str | None, Argument("this one alone (default: all)")] = None
    repair: Annotated[bool, Option("move unreadable shards aside, to be run again")] = False

    def __call__(self) -> int:
        """Print a line per study and profile, and per array of tasks at work; returns 0."""
        from umup.lab import folders, jobs, study

        states, places = [], []
        for name in [self.study] if self.study else folders.names():
            for profile in study.profiles(name):
                if study.parameters(name, profile).get("fresh"):
                    continue  # keeps no records
                place = study.store(name, profile)
                places.append((f"{name} {profile}", place))
                if self.repair:
                    for shard in [*place.repair(), *place.points.repair()]:
                        print(f"moved aside: {shard}")
                try:
                    states.append(study.status(name, profile))
                except UmupError as error:  # a corpus that this box lacks hides no other profile
                    print(f"{name} {profile}: {error}", file=sys.stderr)
        if states:
            print(format_status(states))
        for line in jobs.at_work(places):
            print(line)
        return 0


def format_status(states: Sequence[dict[str, Any]]) -> str:
    """The table of ``umup status`` as text, from what ``study.status`` returns."""
    header = ("study", "profile", "done", "running", "missing", "diverged", "stale", "time left")
    rows: list[tuple[str, ...]] = [header]
    for s in states:
        minutes = s["seconds_left"] / 60
        left = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
        left = ("~" if s["assumed"] and s["missing"] else "") + left
        rows.append((s["study"], s["profile"], *(str(s[k]) for k in header[2:7]), left))
    return columns(rows)
