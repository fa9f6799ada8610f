"""The command line: what it prints, what it refuses, and its exit status."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from umup import cli, command
from umup.command import Argument, Option
from umup.errors import UmupError
from umup.lab import commands, study


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def test_studies_lists_the_profiles(capsys):
    status, out, _ = run(capsys, "studies")
    assert status == 0
    assert "lr_transfer" in out and "cpu, h100, smoke" in out


@pytest.mark.parametrize(
    "argv, told",
    [
        (["run", "lr_transfr"], "did you mean 'lr_transfer'?"),
        (["run", "lr_transfer", "--profile", "h10"], "did you mean 'h100'?"),
        (["run", "lr_transfer", "--profile", "claims"], "profile: received 'claims'"),
        (["run", "lr_transfer", "-p", "widhts", "[32]"], "widhts: received [32]"),
        (["run", "lr_transfer", "-p", "widths", "[24]"], "a divisor of d_model = 24"),
        (["run", "lr_transfer", "-p", "seeds", "0"], "seeds: received 0"),
        (["run", "lr_transfer", "-p", "warmup_ratio", ".nan"], "warmup_ratio: received nan"),
        (["run", "lr_transfer", "-p", "steps", "fast"], "steps: received 'fast'"),
        (["run", "lr_transfer", "-p", "corpus", "shakespeare"], "corpus: received 'shakespeare'"),
        (["data", "card", "nowhere"], "corpus: received 'nowhere'"),
        (["watch", ".", "--every", "nan"], "--every: received nan; allowed: seconds"),
        (["watch", ".", "--every", "-1"], "--every: received -1.0"),
        (["train", "nowhere.yaml", "--minutes", "nan"], "--minutes: received nan"),
    ],
)
def test_bad_input_is_one_line_before_any_compute(capsys, monkeypatch, argv, told):
    monkeypatch.setattr(study, "work", lambda *_: pytest.fail("training started"))
    monkeypatch.setattr("umup.lab.notebook.execute", lambda *_: pytest.fail("a notebook started"))
    if "shakespeare" in argv:
        argv = [*argv, "-p", "fresh", "false"]
    status, out, err = run(capsys, *argv)
    assert (status, out) == (1, "")
    assert err.startswith("umup: ") and told in err and err.count("\n") == 1


def test_dry_run_says_how_long_and_trains_nothing(capsys, monkeypatch):
    monkeypatch.setattr(study, "make", lambda *_: pytest.fail("training started"))
    argv = ["run", "lr_transfer", "--profile", "h100", "--dry-run", "-p", "corpus", "sotu"]
    status, out, _ = run(capsys, *argv)
    header, line = out.splitlines()
    assert status == 0 and header.split()[:3] == ["study", "profile", "done"]
    done, running, missing = (int(n) for n in line.split()[2:5])
    # 14 arms a scheme (5 + 4 + 1 widths over three schemes), each of a coarse grid at the least.
    assert done == running == 0 and missing > 30 * 6
    assert line.split()[-1] in ("h", "min")


def test_status_formats_hours_minutes_and_guesses():
    state = {
        "study": "s",
        "profile": "p",
        "done": 1,
        "running": 0,
        "missing": 2,
        "diverged": 0,
        "stale": 0,
        "seconds_left": 7200.0,
        "assumed": True,
    }
    assert commands.format_status([state]).splitlines()[1].endswith("~2.0 h")
    measured = state | {"assumed": False, "seconds_left": 90.0}
    assert commands.format_status([measured]).splitlines()[1].endswith("2 min")


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_fits_and_has_examples(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*filter(None, [name]), "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    head, found, _ = out.partition("\nexample")
    assert found and "\x1b" not in out
    assert max(map(len, head.splitlines())) <= 80


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_list_says_what_each_command_says_of_itself(name):
    kind = cli.load(name)
    assert (kind.__doc__ or "").partition("\n")[0] == cli.COMMANDS[name][1]
    assert dataclasses.is_dataclass(kind) and all(field.help for field in command._every(kind))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "umup: COMMAND: received 'nothing'; allowed: studies, run, status,"),
        (["stauts"], "book; did you mean 'status'?"),
        (["--frob"], "umup: COMMAND: received '--frob'; allowed: studies"),
        (["run"], "umup run: study: received nothing; allowed: a value"),
        (["run", "x", "--dryrun"], "umup run: arguments: received '--dryrun'; allowed: study, "),
        (["run", "x", "--dryrun"], "; did you mean '--dry-run'?"),
        (["run", "x", "y"], "umup run: arguments: received 'y'; allowed: study, --profile"),
        (["run", "x", "--profile"], "--profile: received too few values; allowed: one argument"),
        (["run", "x", "-p", "a"], "-p/--parameter: received too few values; allowed: 2 argum"),
        (["run", "x", "--tasks", "two"], "umup run: --tasks: received 'two'; allowed: an integer"),
        (["train", "x", "--minutes", "ten"], "--minutes: received 'ten'; allowed: a number"),
        (["data", "lst"], "action: received 'lst'; allowed: list | prepare | verify | card; did"),
        (["bench", "-p", "widths"], "-p/--parameter: received too few values; allowed: 2"),
        (["plan", "--jsno"], "did you mean '--json'?"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(capsys, argv, told):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith("umup") and told in err and err.count("\n") == 1


@dataclass(frozen=True)
class Group:
    """Of a command."""

    how: Annotated[str, Option("how", "fast|slow")]
    n: Annotated[int, Option("how many")] = 3


@dataclass(frozen=True)
class Every:
    """Every kind of field."""

    where: Annotated[Path, Argument("where", "WHERE")]
    size: Annotated[Literal["s", "l"], Argument("size")] = "s"
    ratio: Annotated[float | None, Option("in %", "R", ("-r", "--ratio"))] = None
    widths: Annotated[tuple[int, ...], Option("widths", "D")] = (1,)
    pairs: Annotated[tuple[tuple[str, str], ...], Option("pairs", "NAME VALUE", ("-p",))] = ()
    fast: Annotated[bool, Option("fast")] = False
    group: Annotated[Group | None, Option("together")] = None
    derived: int = 7

    def __call__(self) -> int:
        """Succeed."""
        return 0


def test_every_kind_of_field_is_parsed(capsys):
    def parsed(*argv: str) -> Every:
        return command.parse(Every, argv, "every")

    assert parsed("a/b") == Every(Path("a/b"))
    given = ("a", "l", "-r", "-2.5", "--widths", "2", "4", "-p", "x", "[1]", "-p", "y", "-2")
    want = Every(Path("a"), "l", -2.5, (2, 4), (("x", "[1]"), ("y", "-2")), True, Group("slow", 0))
    assert parsed(*given, "--fast", "--how", "slow", "--n", "0") == want
    with pytest.raises(UmupError, match=r"--n: received 2; .*with --how fast or --how slow"):
        parsed("a", "--n", "2")
    with pytest.raises(SystemExit):
        parsed("a", "--derived", "8")
    with pytest.raises(SystemExit):
        parsed("--help")
    out = capsys.readouterr().out
    assert "in %\n" in out and "together:" in out and "how many (default: 3)" in out


def test_a_command_starts_without_what_it_may_not_need():
    """In a process of its own: the list and the helps need neither JAX nor pandas."""
    code = (
        "import sys; from umup import cli\n"
        "for name in ('run', 'status', 'train', 'plan', 'watch', 'data', 'book', 'new-study'):\n"
        "    cli.load(name)\n"
        "print(sorted({'jax', 'flax', 'optax', 'pandas', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
