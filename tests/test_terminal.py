"""Terminals, pipes and files in their place: other encodings, readers that leave, full disks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from umup import cli, terminal
from umup.lab import commands

RUN = "".join(
    f'{{"event":"step","step":{i},"loss":{9 - i},"eta":0.1,"grad_norm":2.0,"time":2}}\n'
    for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "ascii"),
    [
        ("64 × 256, η 1e−3", "64 x 256, eta 1e-3"),
        ("μP σ_init Δ", "muP sigma_init delta"),
        ("2²⁰ … ½ é", "220 ... 1/2 e"),
        ("┌─┐│┼┊", "+-+|+|"),
        ("⣿⠀⠁", ". ."),
        ("漢\udcff", "??"),
        ("√(N·D) ≤ ∞", "sqrt(N*D) <= inf"),
        ("5 µs", "5 mus"),
    ],
)
def test_what_an_encoding_lacks_is_spelled(text, ascii):
    assert "".join(c if c.isascii() else terminal.spelled(c) for c in text) == ascii


def command(stdout=subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess:
    """A command that prints "η = 1" many times, in a process of its own; its output in bytes."""
    plain = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    for name in ("PYTHONUNBUFFERED", "PYTHONUTF8", "PYTHONIOENCODING"):
        plain.pop(name, None)
    code = (
        "import sys; from umup import cli; from umup.lab.commands import Studies\n"
        "Studies.__call__ = lambda self: print('η = 1\\n' * 9999) or 0\n"
        "sys.exit(cli.main(['studies']))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env=plain | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", b"eta = 1"), ("cp1252", b"eta = 1"), ("utf-8", "η = 1".encode())],
)
def test_any_encoding_of_standard_output(encoding, shown):
    done = command(PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and shown in done.stdout and done.stderr == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_left(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = command(stdout=writer, PYTHONUNBUFFERED=unbuffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk():
    with Path("/dev/full").open("w") as full:
        done = command(stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith(b"umup: ") and done.stderr.count(b"\n") == 1
    assert b"No space left on device" in done.stderr


def test_closed_standard_output(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text(RUN)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["watch", str(tmp_path), "--once"]) == 0
    assert cli.main(["watch", str(tmp_path / "none"), "--once"]) == 1
    for stream in (sys.stdout, sys.stderr):
        stream.close()


@pytest.mark.parametrize(("columns", "lines"), [("20", "5"), ("1", "1"), ("0", "0"), ("x", "y")])
def test_any_size_of_a_terminal(tmp_path, monkeypatch, capsys, columns, lines):
    (tmp_path / "log.jsonl").write_text(RUN)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", lines)
    assert cli.main(["watch", str(tmp_path), "--once"]) == 0
    for name in ("", "run", "status", "new-study", "train", "plan", "watch", "data", "book"):
        with pytest.raises(SystemExit) as ended:
            cli.main([*filter(None, [name]), "--help"])
        assert ended.value.code == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            PermissionError(13, "Permission denied", "secret"),
            1,
            "umup: [Errno 13] Permission denied",
        ),
        (OSError(28, "No space left on device"), 1, "umup: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_the_outside_world_is_one_line(monkeypatch, capsys, error, status, said):
    def fail(_):
        raise error

    monkeypatch.setattr(commands.Studies, "__call__", fail)
    assert cli.main(["studies"]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(said) and err.count("\n") == bool(said)
    print("and standard output still works")
    assert "still works" in capsys.readouterr().out
