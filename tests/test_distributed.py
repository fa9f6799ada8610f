"""Several processes as one run of `umup train`: one trajectory, one log, one end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from bigrun import PLAIN, on_the_first_devices, trajectory
from umup import cli
from umup.errors import TrainError
from umup.run import distributed, runlog


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host:1", 0, -1), "coordinator: received .*HOST:PORT with --processes and --process"),
        (("", 2, 0), "coordinator: received .*HOST:PORT with --processes and --process"),
        (("", 0, 1), "coordinator: received .*HOST:PORT with --processes and --process"),
        (("host:1", 2, 2), "process: received 2; allowed: 0 to 1"),
        (("host:1", 2, -1), "process: received -1; allowed: 0 to 1"),
    ],
)
def test_arguments_that_do_not_fit(monkeypatch, given, said):
    monkeypatch.setattr("jax.distributed.initialize", lambda *_: pytest.fail("started"))
    with pytest.raises(TrainError, match=said):
        distributed.start(*given)


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_launcher_says_all_that_is_needed(monkeypatch, name):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args: calls.append(args))
    distributed.start()
    monkeypatch.setenv(name, "1")
    distributed.start()
    assert calls == []
    monkeypatch.setenv(name, "2")
    distributed.start()
    distributed.start("host:1", 2, 1)
    assert calls == [(), ("host:1", 2, 1)]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SLURM_NTASKS": "4"}, "SLURM_NTASKS: received '4'; allowed: 1, or `srun umup train"),
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"},
            "srun umup train",
        ),  # a batch script's own process
        (
            {
                "SLURM_NTASKS": "4",
                "SLURM_STEP_NUM_TASKS": "1",
                "SLURM_STEP_NODELIST": "a",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_JOB_ID": "7",
            },
            "srun umup train",
        ),  # the shell of an allocation
        (
            {"SLURM_NTASKS": "4(x2)"},
            r"SLURM_NTASKS: received '4\(x2\)'; allowed: .* as srun sets it",
        ),
        ({"SLURM_NTASKS": "-2"}, "SLURM_NTASKS: received '-2'"),
        ({"SLURM_NTASKS": "²"}, "SLURM_NTASKS: received '²'"),
        (
            {"OMPI_COMM_WORLD_SIZE": "two"},
            "OMPI_COMM_WORLD_SIZE: received 'two'; .* as mpirun sets",
        ),
    ],
)
def test_tasks_that_nothing_has_started(monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainError, match=said):
        distributed.start()


def test_open_mpi_in_an_allocation_of_slurm(monkeypatch):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args: calls.append(args))
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    distributed.start()
    assert calls == [()]


@pytest.mark.parametrize("value", ["", " ", "1", "01"])
def test_one_task_is_a_single_process(monkeypatch, value):
    monkeypatch.setattr("jax.distributed.initialize", lambda *_: pytest.fail("started"))
    monkeypatch.setenv("SLURM_NTASKS", value)
    distributed.start()


def test_a_runtime_that_does_not_start(monkeypatch):
    def fail(*_):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore lines")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    with pytest.raises(TrainError, match=r"coordinator: received 'host:1'; .*no answer\)$"):
        distributed.start("host:1", 2, 1)


def test_alone_it_agrees_with_itself():
    assert distributed.is_main()
    assert distributed.any_of(True) is True and distributed.any_of(False) is False


COMMANDS = """
import json, sys
from umup import cli
join = ["--coordinator", sys.argv[1], "--processes", "2", "--process", sys.argv[2]]
for i, argv in enumerate(json.loads(sys.argv[3])):
    status = cli.main([*argv, *([] if i else join)])
    print(status, flush=True)
    print("---", file=sys.stderr, flush=True)
sys.exit(status)
"""


class Pair:
    """Two processes of two devices each that run commands one after another, the first joining.

    Programs are compiled once for all commands; what a command knows of the one before is on disk.
    """

    def __init__(self, *commands: list[str]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
        env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        self.both = [
            subprocess.Popen(
                [sys.executable, "-c", COMMANDS, address, str(i), json.dumps(commands)],
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for i in range(2)
        ]

    def end(self) -> tuple[list[int], list[list[int]], list[list[str]]]:
        """Of both: the exit status, that of each command, and what each command said."""
        try:
            ends = [process.communicate(timeout=240) for process in self.both]
        finally:
            for process in self.both:
                process.kill()
        # Gloo says on standard output with whom it is connected.
        statuses = [[int(line) for line in out.splitlines() if line.isdigit()] for out, _ in ends]
        return [p.returncode for p in self.both], statuses, [err.split("---\n") for _, err in ends]


@pytest.mark.slow
@pytest.mark.usefixtures("alike")
def test_two_processes_are_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv("UMUP_CACHE", str(tmp_path / "cache"))
    on_the_first_devices(monkeypatch)
    text = "\n".join(f"{n} bottles of beer on the wall, {n % 7} more" for n in range(400))
    (tmp_path / "beer.txt").write_text(text, encoding="utf-8")
    plain = PLAIN | {"corpus": f"file:{tmp_path / 'beer.txt'}", "loader": "host"}
    plain["model"] = PLAIN["model"] | {"vocab_size": 256, "n_layers": 1}
    plain["optim"] = PLAIN["optim"] | {"steps": 32}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    assert cli.main(["train", str(file), "--run", str(tmp_path / "one")]) == 0

    train = ["train", str(file), "--run", str(tmp_path / "two")]
    train += ["-p", "mesh.data", "2", "-p", "mesh.fsdp", "2"]
    # Stopped, gone on with, and refused by the first process, which ends both.
    pair = Pair(train, train, [*train, "-p", "seed", "1"])
    log, deadline = tmp_path / "two" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        assert [process.poll() for process in pair.both] == [None, None], pair.end()
        time.sleep(0.02)
    pair.both[1].send_signal(signal.SIGTERM)  # while both compile: they end after the first chunk
    ended, statuses, said = pair.end()
    assert statuses == [[75, 0, 1]] * 2 and ended == [1, 1], said
    stopped, end = runlog.events(log, "end")
    assert (stopped["verdict"], stopped["reason"]) == ("stopped", "another process was told to")
    assert stopped["step"] < 32 and (end["verdict"], end["step"]) == ("done", 32)
    assert [e["step"] for e in runlog.events(log, "resume")] == [stopped["step"]]

    assert "step 32/32" in said[0][1] and "step 32/32" not in said[1][1]  # one tells of it
    one, two = trajectory(tmp_path / "one"), trajectory(log)
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(two["grad_norm"], one["grad_norm"], rtol=1e-4)
    assert [e["event"] for e in runlog.events(log)].count("start") == 1
    assert [p.name for p in tmp_path.rglob("log.jsonl")] == ["log.jsonl", "log.jsonl"]

    assert "another run's folder: seed 0 there, 1 here" in said[0][2]
    assert "refused by the first process" in said[1][2]
