"""Studies and big runs on a real Slurm: whatever happens to tasks, every run ends exactly once."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from bigrun import PLAIN, on_the_first_devices, trajectory
from cluster.oneslurm import NODES, Slurm, output, until
from umup import cli
from umup.lab import executor, jobs, study
from umup.lab.records import Store
from umup.run import runlog

pytestmark = [pytest.mark.slow, pytest.mark.optimized]  # lanes of any number are bit for bit alike
STEPS = 6000
SLOWLY = ("-p", "chunk_steps", "10")  # so that tasks can be met at work; no number changes


@pytest.fixture(autouse=True)
def notebooks(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The parameters of notebooks that were to be executed; none is."""
    executed: list[dict] = []
    monkeypatch.setattr("umup.lab.notebook.execute", lambda *args: executed.append(args[2]))
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.2)
    return executed


def run(*argv: str) -> int:
    return cli.main(["run", "toy", "--profile", "tiny", "--executor", "slurm", *argv])


def log(folder: Path) -> str:
    path = folder / "experiments/toy/records/tiny/.progress.log"
    return path.read_text() if path.exists() else ""


def task_log(submission: jobs.Submission) -> str:
    """The log of an array's only task."""
    return (submission.folder / f"{submission.ids[0]}_0_log.out").read_text()


def requeued(submission: jobs.Submission) -> bool:
    """Whether the array's only task had itself requeued: Slurm says so, and submitit unless it is
    killed before."""
    said = task_log(submission)
    return "DUE TO JOB REQUEUE" in said or "Requeued job" in said


def place() -> Store:
    return study.store("toy", "tiny")


def tasks(state: str = "") -> list[str]:
    """The ids of the tasks that are in this state, or of all that have not ended."""
    states = [f"--states={state}"] if state else []
    return output("squeue", "--noheader", "--array", "--format=%i", *states).split()


@functools.cache
def expected() -> pd.DataFrame:
    """What the study's records are when this process makes them."""
    given = study.parameters("toy", "tiny") | {"fresh": True}
    return study.run_or_load("toy", study.design_of("toy").from_dict(given)).runs


def same(folder: Path, cut: int = 0) -> None:
    """The records are those that this process makes, and no run was trained twice.

    cut: tasks that were killed; each may have been between a run's last step and its record.
    """
    found, wanted = place().read().sort_values("key"), expected().sort_values("key")
    assert list(found["key"]) == list(wanted["key"])
    for column in ("final_loss", "best_loss", "val_loss"):
        np.testing.assert_array_equal(found[column], wanted[column])
    lanes = re.findall(rf"seed=0(?: ×(\d+))? step {STEPS}/{STEPS} ", log(folder))
    ended = sum(int(n or 1) for n in lanes)
    assert len(wanted) <= ended <= len(wanted) + cut
    assert not place().running()
    assert study.status("toy", "tiny")["missing"] == 0


def test_two_users_of_one_study(slurm: Slurm, workplace: Path, capsys, monkeypatch, notebooks):
    monkeypatch.setenv("UMUP_COMMIT", "c0ffee+dirty")
    # The first user's task meets its time limit again and again; the second comes meanwhile.
    assert run("--tasks", "1", "--minutes", "0.05", "--slurm", "comment", "two words") == 0
    said = capsys.readouterr().out
    assert "toy tiny: submitted array" in said and "scancel" in said
    until(lambda: place().running(), what="a run in flight")
    assert run("--tasks", "1", "--wait", "-p", "lanes", "2") == 0
    said = capsys.readouterr().out
    assert ": 1 running; it shares the work" in said
    assert [given["mode"] for given in notebooks] == ["load"]
    (first, second) = jobs.submissions(place())
    until(lambda: requeued(first), what="the end of the first user's minutes")
    until(lambda: not tasks(), what="the first user's task")
    same(workplace)
    assert run("--wait") == 0
    assert "nothing is missing, nothing submitted" in capsys.readouterr().out
    assert len(jobs.submissions(place())) == 2 and len(notebooks) == 2
    # Tasks say which commit they run, and each has a log.
    assert set(place().read()["git_commit"]) == {"c0ffee"} and place().read()["git_dirty"].all()
    assert f"step {STEPS}/{STEPS}" in task_log(second)


def test_cancel_and_submit_again(slurm: Slurm, workplace: Path, capsys):
    assert run("--tasks", "2", *SLOWLY) == 0
    until(lambda: len(place().read()) and place().running(), what="a record and a run in flight")
    cli.main(["status", "toy"])
    assert "toy tiny: array" in (said := capsys.readouterr().out) and " running" in said
    ((array,),) = [submission.ids for submission in jobs.submissions(place())]
    output("scancel", array)
    until(lambda: not tasks(), what="the end of the cancelled array")
    assert not place().running()
    assert study.status("toy", "tiny")["missing"] > 0
    cli.main(["status", "toy"])
    assert "array" not in capsys.readouterr().out
    assert run("--tasks", "2", "--wait") == 0
    same(workplace, cut=2)


def test_preempted(slurm: Slurm, workplace: Path):
    # One task is killed and requeued by Slurm; the other has time and asks for it.
    assert run("--tasks", "1", "--partition", "low", *SLOWLY) == 0
    assert run("--tasks", "1", "--partition", "grace", *SLOWLY) == 0
    until(lambda: len(place().running()) == 2, what="two runs in flight")
    output("srun", "--partition=high", "--nodes=2", "true")
    # Off the nodes, which the job above had whole, and not ended. While Slurm puts a job back into
    # its queue, there is a moment in which squeue lists it nowhere: the records must be there too.
    until(
        lambda: place().keys() >= set(expected()["key"]) and not tasks(),
        what="all records, and the end of both arrays",
    )
    low, grace = jobs.submissions(place())
    assert not requeued(low) and requeued(grace), f"{task_log(low)}\n\n{task_log(grace)}"
    same(workplace, cut=2)


def test_nodes_die(slurm: Slurm, workplace: Path):
    # One node dies whole; on the other slurmd alone, whose task goes on.
    assert run("--tasks", "2", *SLOWLY) == 0
    until(lambda: len(place().running()) == 2, what="two runs in flight")
    slurm.kill(NODES[0], whole=True)
    slurm.kill(NODES[1])
    until(lambda: len(place().running()) == 1, what="a claim that the kernel dropped")
    slurm.start(NODES[1])
    # What the controller does by itself when a node has not answered for SlurmdTimeout.
    output("scontrol", "update", f"nodename={NODES[0]}", "state=down", "reason=silent")
    assert len(tasks("PENDING")) == 1
    output("scontrol", "update", f"nodename={NODES[0]}", "state=resume")
    slurm.start(NODES[0])
    until(lambda: not tasks(), what="the end of the array")
    same(workplace, cut=1)


def script() -> str:
    """The batch script of the chapter, without the options of its cluster."""
    text = (Path(__file__).parents[2] / "book/cluster.md").read_text(encoding="utf-8")
    lines = text.split("```bash\n")[1].split("```")[0].splitlines()
    return "\n".join(line for line in lines if not line.startswith("#SBATCH")) + "\n"


def test_a_big_run_over_two_nodes(slurm: Slurm, text: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = PLAIN | {"corpus": f"file:{text}", "loader": "host"}
    plain["model"] = PLAIN["model"] | {"vocab_size": 256}
    Path("big.yaml").write_text(yaml.safe_dump(plain | {"mesh": {"data": 2, "fsdp": 2}}))
    Path("one.yaml").write_text(yaml.safe_dump(plain))
    Path("job.sh").write_text(script())
    monkeypatch.setenv("UMUP_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        on_the_first_devices(patch)
        assert cli.main(["train", "one.yaml", "--run", "one"]) == 0

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(text.parent / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    shape = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append", "--output=log")
    job, big = output("sbatch", "--parsable", *shape, "job.sh"), Path("runs/r/log.jsonl")
    until(lambda: big.exists() and big.stat().st_size, what="the run's first line")
    output("scancel", "--signal=TERM", job)
    until(lambda: tasks("PENDING"), what="the job in the queue again")
    (end,) = runlog.events(big, "end")
    assert end["verdict"] == "stopped" and end["step"] < 80
    until(lambda: not tasks(), what="the end of the run")
    assert [e["verdict"] for e in runlog.events(big, "end")] == ["stopped", "done"], Path(
        "log"
    ).read_text()
    one, two = trajectory(Path("one")), trajectory(Path("runs/r"))
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
