"""The command line: what it prints, what it refuses, and its exit status."""

from __future__ import annotations

import pytest

from umup import cli
from umup.lab import study


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
    monkeypatch.setattr(study, "_make", lambda *_: pytest.fail("training started"))
    argv = ["run", "lr_transfer", "--profile", "h100", "--dry-run", "-p", "corpus", "sotu"]
    status, out, _ = run(capsys, *argv)
    header, line = out.splitlines()
    assert status == 0 and header.split()[:3] == ["study", "profile", "done"]
    done, running, missing = (int(n) for n in line.split()[2:5])
    # 14 arms a scheme (5 + 4 + 1 widths over three schemes), each of a coarse grid at the least.
    assert done == running == 0 and missing > 30 * 6
    assert line.split()[-1] in ("h", "min")


def test_status_formats_hours_minutes_and_guesses():
    state = {"study": "s", "profile": "p", "done": 1, "running": 0, "missing": 2, "diverged": 0,
             "stale": 0, "seconds_left": 7200.0, "assumed": True}  # fmt: skip
    assert cli.format_status([state]).splitlines()[1].endswith("~2.0 h")
    measured = state | {"assumed": False, "seconds_left": 90.0}
    assert cli.format_status([measured]).splitlines()[1].endswith("2 min")


def test_help_has_examples(capsys):
    for argv in (["--help"], ["run", "--help"], ["status", "--help"], ["data", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(argv)
        assert stopped.value.code == 0
        assert "example" in capsys.readouterr().out
