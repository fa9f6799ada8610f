"""The ``umup`` command."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umup import terminal
from umup.errors import UmupError
from umup.text import columns
from umup.yaml_reader import read_overrides

EPILOG = """examples:
  umup studies                                  what there is to run
  umup run lr_transfer --profile smoke          about a minute
  umup run lr_transfer --profile h100 -p time_limit_minutes 9
                                                stops cleanly; the same command goes on
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


def parser() -> argparse.ArgumentParser:
    """The command line, with an example for every command."""
    top = argparse.ArgumentParser(
        prog="umup", description="μP and u-μP studies on JAX.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    add("studies", "List the studies and their profiles.", "umup studies")

    run = add(
        "run", "Run a study: train what its records lack, then execute its notebook.",
        "umup run lr_transfer --profile cpu -p seeds 1",
    )  # fmt: skip
    run.add_argument("study")
    run.add_argument("--profile", default="smoke", help="parameter file (default: smoke)")
    run.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="override one parameter; the value is read as YAML",
    )  # fmt: skip
    run.add_argument("--dry-run", action="store_true", help="only say what would run, how long")
    add_executor(run.add_argument_group("beyond this process"))

    status = add(
        "status", "Say for every study and profile what is done, running, missing or stale.",
        "umup status lr_transfer",
    )  # fmt: skip
    status.add_argument("study", nargs="?")
    status.add_argument(
        "--repair", action="store_true", help="move unreadable shards aside, to be run again"
    )

    new = add(
        "new-study", "Make a study of your own that passes all checks, in the folder experiments.",
        "umup new-study batch_size --title 'Does the best learning rate follow the batch?'",
    )  # fmt: skip
    new.add_argument("name", help="a to z, 0 to 9 and _; of its folder")
    new.add_argument("--title", help="first heading of its page (default: the name in words)")

    train = add(
        "train", "Train one run from its file, or go on with what its folder holds.",
        "umup train big.yaml -p optim.steps 20000 -p mesh.fsdp 8\n"
        "  umup train big.yaml --fork 12000 --decay 2000\n"
        "  srun umup train big.yaml",
    )  # fmt: skip
    train.add_argument("config", help="YAML file: the fields of umup.run.runfile.TrainConfig")
    train.add_argument("--run", metavar="FOLDER", help="the run's folder (default: runs/NAME)")
    train.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="override one field, such as optim.steps; the value is read as YAML",
    )  # fmt: skip
    train.add_argument(
        "--from", dest="restart_from", type=int, metavar="STEP",
        help="go on from this checkpoint and forget the later ones",
    )  # fmt: skip
    train.add_argument(
        "--fork", type=int, metavar="STEP",
        help="start a run of its own that leaves the plateau here; with --decay",
    )  # fmt: skip
    train.add_argument("--decay", type=int, metavar="STEPS", help="length of a fork's decay")
    train.add_argument("--minutes", type=float, help="stop cleanly after so long (exit status 75)")
    train.add_argument("--check", action="store_true", help="only say whether it could run")
    train.add_argument(
        "--coordinator", default="", metavar="HOST:PORT", help="of several processes"
    )
    train.add_argument("--processes", type=int, default=0)
    train.add_argument("--process", type=int, default=-1, help="number of this one, from 0")

    from umup.plan import plan_cli

    plan_cli.add_arguments(add(
        "plan", "Say what a run takes: memory, time, cost; what fits; what a budget buys.",
        "umup plan big.yaml --hardware h100 --devices 64\n"
        "  umup plan big.yaml --devices 64 --layouts\n"
        "  umup plan --devices 8 --hours 2 --inference-tokens 1e12\n"
        "  umup plan big.yaml -p mesh.fsdp 512 --compile",
    ))  # fmt: skip

    watch = add("watch", "Plot a run's log in the terminal while it trains.", "umup watch runs/big")
    watch.add_argument("folder", metavar="RUN")
    watch.add_argument("--once", action="store_true", help="draw one picture and end")
    watch.add_argument("--every", type=float, default=5.0, help="seconds between pictures")

    data = add(
        "data", "List, prepare or verify corpora, or print a corpus's data sheet.",
        "umup data prepare sotu --tokenizer bpe4096",
    )  # fmt: skip
    data.add_argument("action", choices=("list", "prepare", "verify", "card"))
    data.add_argument("corpus", nargs="?", default="sotu")
    data.add_argument("--tokenizer", default="bytes", help="bytes, or bpe512 to bpe32000")
    data.add_argument("--max-tokens", type=int, help="token budget of a streamed corpus")
    data.add_argument("--force", action="store_true", help="prepare again over a changed cache")

    bench = add("bench", "Measure step times, lanes, compile time, memory.", "umup bench --quick")
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="see umup bench --help")
    book = add("book", "Build the book into book/_build/html.", "umup book --no-live")
    book.add_argument("--no-live", action="store_true", help="skip the live smoke runs")
    return top


def add_executor(group: Any) -> None:
    """The options of ``umup run`` that are those of ``executor.Options``, and ``--wait``."""
    group.add_argument("--executor", metavar="slurm|local", help="one Slurm array, or processes")
    group.add_argument("--wait", action="store_true", help="follow it, then execute the notebook")
    group.add_argument("--tasks", type=int, metavar="N", help="workers (default: as work needs)")
    group.add_argument("--minutes", type=float, help="time limit of a task (default on Slurm: 60)")
    group.add_argument("--gpus", type=int, metavar="0|1", help="GPUs of a task (default: 0)")
    group.add_argument(
        "--at-once", type=int, metavar="N", help="Slurm: most tasks that run at once"
    )
    group.add_argument("--cpus", type=int, metavar="N", help="Slurm: CPU cores of a task")
    group.add_argument("--partition", metavar="NAME", help="Slurm")
    group.add_argument("--account", metavar="NAME", help="Slurm")
    group.add_argument(
        "--slurm", nargs=2, action="append", metavar=("NAME", "VALUE"),
        help="another sbatch option, such as qos high, or exclusive true",
    )  # fmt: skip


def executor_options(chosen: argparse.Namespace) -> Any:
    """The ``executor.Options`` that were given, or None to work in this process.

    Raises:
        StudyError: one of them without ``--executor``.
        ConfigError: a value that is out of range, or not for this executor.
    """
    from umup.errors import StudyError

    names = ("tasks", "minutes", "gpus", "at_once", "cpus", "partition", "account", "slurm")
    given = {name: value for name in names if (value := getattr(chosen, name)) is not None}
    if chosen.executor is None:
        for name, value in [*given.items(), *([("wait", True)] if chosen.wait else [])]:
            allowed = "together with --executor slurm or --executor local"
            raise StudyError(f"--{name.replace('_', '-')}", value, allowed)
        return None
    from umup.lab.executor import Options

    if "slurm" in given:
        given["slurm"] = tuple(map(tuple, given["slurm"]))
    return Options(chosen.executor, **given)


def show_studies() -> None:
    """Print the studies and their profiles."""
    from umup.lab import folders, study

    for name in folders.names():
        print(f"{name:20} {', '.join(study.profiles(name))}")


def run_study(
    name: str, profile: str, overrides: dict[str, Any], dry_run: bool, options: Any = None,
    wait: bool = False,
) -> int:  # fmt: skip
    """Train what is missing, then execute the notebook; returns the exit status.

    With the ``executor.Options`` the work is submitted, and ``wait`` says whether to follow it.
    """
    from umup.lab import folders, notebook, study
    from umup.lab.sweep import OutOfTime

    given = study.parameters(name, profile) | overrides
    design = study.design_of(name).from_dict(given)
    place = study.store(name, design.profile)
    if dry_run:
        state = study.status(name, profile, overrides)
        print(format_status([state]))
        return 0
    if options is not None:
        from umup.lab import executor

        ended = executor.fan_out(name, design, place, options, wait=wait)
        if ended is not None or not wait:
            return ended or 0
        given = given | {"mode": "load"}
    elif not design.fresh and design.mode == "run":
        os.environ.setdefault("UMUP_PROGRESS", "1")
        try:
            study.run_or_load(name, design)
        except OutOfTime:
            print(f"time limit reached; `umup run {name} --profile {profile}` goes on")
            return study.EXIT_OUT_OF_TIME
        given = given | {"mode": "load"}
    root = folders.experiments_folder().parent
    output = root / "book" / "_build" / "runs" / f"{name}-{profile}.ipynb"
    print(f"executing the notebook of {name} at profile {profile}")
    notebook.execute(folders.folder(name) / "study.ipynb", output, given, root)
    print(f"executed: {output.relative_to(root)}")
    if not design.fresh:
        print(f"records:  {place.folder.relative_to(root)}")
    return 0


def show_status(only: str | None, repair: bool) -> None:
    """Print one line a study and profile."""
    from umup.lab import folders, jobs, study

    states, places = [], []
    for name in [only] if only else folders.names():
        for profile in study.profiles(name):
            if study.parameters(name, profile).get("fresh"):
                continue  # keeps no records
            place = study.store(name, profile)
            places.append((f"{name} {profile}", place))
            if repair:
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


def format_status(states: Sequence[dict[str, Any]]) -> str:
    """The status table as text."""
    header = ("study", "profile", "done", "running", "missing", "diverged", "stale", "time left")
    rows: list[tuple[str, ...]] = [header]
    for s in states:
        minutes = s["seconds_left"] / 60
        left = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
        left = ("~" if s["assumed"] and s["missing"] else "") + left
        rows.append((s["study"], s["profile"], *(str(s[k]) for k in header[2:7]), left))
    return columns(rows)


def run_train(chosen: argparse.Namespace) -> int:
    """``umup train``; returns the exit status."""
    from umup import data
    from umup.errors import TrainError
    from umup.run import distributed, loop, runfile, writers

    if chosen.minutes is not None and not math.isfinite(chosen.minutes):
        raise TrainError("--minutes", chosen.minutes, "a finite number; from 0 down: one chunk")
    overrides = read_overrides(chosen.parameter)
    config = runfile.read_config(chosen.config, overrides)
    if (chosen.fork is None) != (chosen.decay is None):
        raise TrainError("--fork", chosen.fork, "a step, together with --decay STEPS")
    distributed.start(chosen.coordinator, chosen.processes, chosen.process)
    dataset = data.load(
        config.corpus, config.tokenizer, seq_len=config.model.seq_len, max_tokens=config.max_tokens
    )
    folder, forked = Path(chosen.run or f"runs/{config.name}"), None
    if chosen.fork is not None:
        config, forked = runfile.fork(config, folder, chosen.fork, chosen.decay, dataset)
        folder = forked.into
    loop.check(config, dataset)
    if chosen.check:
        runfile.check_folder(config, folder, dataset, chosen.restart_from)
        writers.require(tensorboard=config.tensorboard, wandb=config.wandb)
        print(f"{config.name}: {config.model.n_params:,} parameters, mesh {config.mesh}, "
              f"{config.optim.steps:,} steps of "
              f"{config.optim.batch_size * config.model.seq_len:,} tokens")  # fmt: skip
        return 0
    outcome = loop.train_run(
        config, folder, dataset=dataset, restart_from=chosen.restart_from, forked=forked,
        seconds=math.inf if chosen.minutes is None else 60 * chosen.minutes,
    )  # fmt: skip
    return {"done": 0, "stopped": loop.EXIT_RESUME, "gave up": loop.EXIT_GAVE_UP}[outcome.verdict]


def run_data(action: str, corpus: str, tokenizer: str, max_tokens: int | None, force: bool) -> int:
    """``umup data``; returns the exit status."""
    from umup import data
    from umup.data import corpora

    if action == "list":
        for entry in corpora.list_table():
            print("  ".join(f"{entry[k]!s}" for k in entry))
    elif action == "prepare":
        data.prepare(corpus, tokenizer, force=force, max_tokens=max_tokens)
    elif action == "verify":
        problems = data.verify(corpus, tokenizer, max_tokens=max_tokens)
        print("\n".join(problems) or f"{corpus} as {tokenizer} is whole")
        return int(bool(problems))
    else:
        print(data.card(corpus, tokenizer, max_tokens=max_tokens))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        0 done, 1 bad input (the message says which field) or a file that cannot be read or written,
        75 told to stop or out of time (the same command goes on), 76 a run that recovery could not
        heal, 130 interrupted, 141 nobody reads the output any more.
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
    if argv[:1] == ["bench"]:
        from umup.lab import bench

        return bench.main(argv[1:])
    chosen = parser().parse_args(argv)
    if chosen.command == "studies":
        show_studies()
    elif chosen.command == "run":
        overrides = read_overrides(chosen.parameter)
        options = executor_options(chosen)
        return run_study(
            chosen.study, chosen.profile, overrides, chosen.dry_run, options, chosen.wait
        )
    elif chosen.command == "status":
        show_status(chosen.study, chosen.repair)
    elif chosen.command == "new-study":
        from umup.book import new_study

        made = new_study.create(new_study.home(), chosen.name, chosen.title)
        print(new_study.next_steps(chosen.name, made))
    elif chosen.command == "train":
        return run_train(chosen)
    elif chosen.command == "plan":
        from umup.plan import plan_cli

        return plan_cli.run(chosen)
    elif chosen.command == "watch":
        from umup.run import watch

        return watch.watch(chosen.folder, once=chosen.once, every=chosen.every)
    elif chosen.command == "data":
        return run_data(
            chosen.action, chosen.corpus, chosen.tokenizer, chosen.max_tokens, chosen.force
        )
    elif chosen.command == "book":
        from umup.book import site

        return site.main(["build", *(["--no-live"] if chosen.no_live else [])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
