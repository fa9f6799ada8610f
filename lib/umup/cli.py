"""The ``umup`` command: the list of its subcommands, each a dataclass beside what it drives."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from umup import command, terminal
from umup.errors import ConfigError, UmupError
from umup.text import did_you_mean

ABOUT = """μP and u-μP studies on JAX.

examples:
  umup studies                                  what there is to run
  umup run lr_transfer --profile smoke          about a minute
  umup run lr_transfer --profile h100 -p time_limit_minutes 9
                                                stops cleanly; the same command resumes
  umup run lr_transfer --profile h100 --executor slurm --tasks 16 --at-once 8 --gpus 1
                                                one Slurm array; its tasks share the work
  umup status                                   what is done, running, missing, stale
  umup new-study batch_size                     a study of your own, from a template
  umup train big.yaml                           one run, sharded; the same command resumes it
  umup plan big.yaml --devices 64               memory, time and cost before paying
  umup watch runs/big                           plot its log in the terminal
  umup data prepare sotu --tokenizer bpe4096
  umup bench                                    step times beside PyTorch's unit_scaling
  umup book                                     build the book into book/_build/html
"""

COMMANDS = {
    "studies": ("lab.commands.Studies", "List the studies and their profiles."),
    "run": (
        "lab.commands.Run",
        "Run a study: train what its records lack, then execute its notebook.",
    ),
    "status": (
        "lab.commands.Status",
        "Say for every study and profile what is done, running, missing or stale.",
    ),
    "new-study": (
        "book.commands.NewStudy",
        "Make a study of your own that passes all checks, in the folder experiments.",
    ),
    "train": (
        "run.commands.Train",
        "Train one run from its file, or resume what its folder holds.",
    ),
    "plan": (
        "plan.plan_cli.Plan",
        "Say what a run takes: memory, time, cost; what fits; what a budget buys.",
    ),
    "watch": ("run.commands.Watch", "Plot a run's log in the terminal while it trains."),
    "data": (
        "data.commands.Data",
        "List, prepare or verify corpora, or print a corpus's data sheet.",
    ),
    "bench": (
        "lab.commands.Bench",
        "Time training steps here, beside PyTorch's unit_scaling where it is installed.",
    ),
    "book": ("book.commands.Book", "Build the book into book/_build/html."),
}
"""Subcommand → its dataclass in ``umup``, imported when the subcommand is used, and the first line
of that class's docstring, so that listing the subcommands needs no import."""


def parser() -> argparse.ArgumentParser:
    """Of the first word: it knows the subcommands' names and what they are for."""
    made = command.parser("umup", ABOUT)
    commands = made.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, (_, about) in COMMANDS.items():
        commands.add_parser(name, help=about)
    return made


def load(name: str) -> type:
    """The dataclass of a subcommand."""
    module, _, kind = COMMANDS[name][0].rpartition(".")
    return getattr(importlib.import_module(f"umup.{module}"), kind)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        0 done, 1 bad input (the message says which field) or a file that cannot be read or written,
        75 told to stop or out of time (the same command resumes), 76 a run that recovery could not
        heal, 130 interrupted, 141 the reader of the output has closed it.

    Raises:
        SystemExit: with 0 after ``--help``; with 2 if the command line cannot be parsed.
    """
    terminal.prepare()
    try:
        try:
            return _command(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except UmupError as error:
        print(f"umup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        writable = terminal.writable()
        if isinstance(error, BrokenPipeError):
            return 141
        print(f"umup: {error if writable else f'standard output: {error}'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _command(argv: list[str]) -> int:
    """Run one command; returns the exit status."""
    name = argv[0] if argv else ""
    if name in COMMANDS:
        return command.parse(load(name), argv[1:], f"umup {name}")()
    if name in ("-h", "--help"):
        parser().parse_args(argv[:1])  # exits
    allowed = f"{', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}"
    parser().error(str(ConfigError("COMMAND", name or "nothing", allowed)))


if __name__ == "__main__":
    sys.exit(main())
