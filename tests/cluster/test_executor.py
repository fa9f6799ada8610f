"""Fanning out without Slurm: processes here, what is refused, and what a queue's lines mean."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from umup import cli
from umup.errors import ConfigError, StudyError
from umup.lab import executor, jobs, study
from umup.lab.design import Design, Point
from umup.lab.executor import Options, Task
from umup.lab.records import Store, current
from umup.lab.sweep import OutOfTime
from umup.terminal import Progress


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The only commands there are: shell scripts by name, and those of the base system."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("sh", "cat"):
        (folder / name).symlink_to(f"/bin/{name}")

    def make(**scripts: str) -> Path:
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return folder

    return make


CLUSTER = {"srun": "", "scontrol": "echo MaxArraySize = 9", "squeue": "", "sbatch": "exit 9"}


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(["run", "toy", "--profile", *argv])
    out, err = capsys.readouterr()
    return status, out, err


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["tiny", "--tasks", "4"], "--tasks: received 4; allowed: together with --executor slurm"),
        (["tiny", "--at-once", "4"], "--at-once: received 4; allowed: together with --executor"),
        (["tiny", "--slurm", "qos", "high"], "--slurm: received [['qos', 'high']]"),
        (["tiny", "--wait"], "--wait: received True"),
        (["tiny", "--executor", "lsf"], "executor: received 'lsf'; allowed: slurm | local"),
        (["tiny", "--executor", "slurm", "--tasks", "0"], "tasks: received 0"),
        (["tiny", "--executor", "slurm", "--minutes", "0"], "minutes: received 0.0"),
        (["tiny", "--executor", "slurm", "--gpus", "8"], "gpus: received 8; allowed: 0 | 1"),
        (["tiny", "--executor", "local", "--partition", "gpu"], "partition: received 'gpu'"),
        (["tiny", "--executor", "slurm", "--slurm", "QOS", "x"], "an sbatch option's long name"),
        (["tiny", "--executor", "slurm", "--slurm", "time", "9"], "umup run does not set itself"),
        (["tiny", "--executor", "slurm", "--slurm", "qos", "a\nb"], "one line of text, or true"),
        (["brief", "--executor", "slurm"], "profile: received 'fresh: true'; allowed: a profile"),
        (["tiny", "--executor", "slurm", "-p", "mode", "load"], "profile: received 'mode: load'"),
        (
            ["tiny", "--executor", "slurm", "--tasks", "10"],
            "tasks: received 10; allowed: at most 9",
        ),
    ],
)
def test_bad_input_is_one_line_and_makes_nothing(workplace, commands, capsys, argv, told):
    commands(**CLUSTER)
    status, out, err = run(capsys, *argv)
    assert (status, out) == (1, "")
    assert err.startswith("umup: ") and told in err and err.count("\n") == 1
    assert not (workplace / "experiments/toy/records").exists()


def refused(capsys, workplace: Path) -> str:
    """What `--executor slurm` says where it can submit nothing; it leaves nothing behind."""
    status, out, err = run(capsys, "tiny", "--executor", "slurm")
    assert (status, out) == (1, "") and err.count("\n") == 1
    records = workplace / "experiments/toy/records"
    assert not records.is_dir() or not list(records.iterdir())
    return err


def test_no_slurm_here(workplace, commands, capsys):
    commands()
    assert "executor: received 'slurm'; allowed: a machine that can submit to Slurm (no sbatch" in (
        refused(capsys, workplace)
    )


def test_no_submitit(workplace, commands, capsys, monkeypatch):
    commands(**CLUSTER)
    monkeypatch.setitem(sys.modules, "submitit", None)
    told = "submitit: received 'not installed'; allowed: pip install 'umup[slurm]'"
    assert told in refused(capsys, workplace)


REJECTED = """\
echo "sbatch: error: invalid partition specified: gpu" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1"""


@pytest.mark.parametrize(
    ("sbatch", "words"),
    [
        (REJECTED, "'invalid partition specified: gpu; Batch job submission failed: Invalid part"),
        ("echo 'sbatch: unrecognized option --frob' >&2; exit 1", "'unrecognized option --frob'"),
        ("echo no job at all", "no job at all"),
    ],
)
def test_a_rejected_job_says_why(workplace, commands, capsys, sbatch, words):
    commands(**(CLUSTER | {"sbatch": sbatch}))
    err = refused(capsys, workplace)
    assert "umup: sbatch: received" in err and "allowed: what this cluster takes" in err
    assert words in err


def test_a_controller_that_does_not_answer(workplace, commands, capsys):
    commands(**(CLUSTER | {"scontrol": 'echo "slurm_load_ctl_conf error: Timeout" >&2; exit 1'}))
    assert "scontrol: received 'slurm_load_ctl_conf error: Timeout'" in refused(capsys, workplace)


def test_records_that_cannot_be_written(workplace, commands, capsys):
    commands(**CLUSTER)
    (workplace / "experiments/toy/records").write_text("a file where the folder should be")
    err = refused(capsys, workplace)
    assert "records/tiny: received 'unreadable (Not a directory)'" in err
    assert "a folder that can be read" in err


def test_what_sbatch_took_is_cancelled_when_the_rest_fails(workplace, commands, monkeypatch):
    folder = commands(
        **(
            CLUSTER
            | {"sbatch": "echo Submitted batch job 7", "scancel": 'echo "$@" > "${0%/*}/cancelled"'}
        )
    )

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs.Submission, "save", full)
    assert cli.main(["run", "toy", "--profile", "tiny", "--executor", "slurm"]) == 1
    assert (folder / "cancelled").read_text() == "7\n"
    assert not (workplace / "experiments/toy/records").exists()


def test_more_tasks_than_gpus(workplace, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    status, _, err = run(capsys, "tiny", "--executor", "local", "--tasks", "3", "--gpus", "1")
    assert status == 1
    assert "tasks: received 3; allowed: at most 2, the GPUs of this machine" in err


# --- what is submitted ----------------------------------------------------------------------------


def test_the_array_that_is_submitted(workplace, commands, capsys, monkeypatch):
    folder = commands(
        **(CLUSTER | {"sbatch": 'cat "$1" > "${0%/*}/script"; echo Submitted batch job 7'})
    )
    argv = [
        "tiny",
        "--executor",
        "slurm",
        "--at-once",
        "2",
        "--minutes",
        "90",
        "--gpus",
        "1",
        "--cpus",
        "12",
        "--partition",
        "gpu",
        "--account",
        "us",
        "--slurm",
        "exclusive",
        "true",
        "--slurm",
        "comment",
        "two words",
        "-p",
        "lanes",
        "2",
    ]
    status, out, _ = run(capsys, *argv)
    assert status == 0
    assert "submitted array 7, tasks 3; of each: minutes 90, GPUs 1" in out  # 6 runs, 2 lanes
    script = (folder / "script").read_text().splitlines()
    for option in (
        "array=0-2%2",
        "time=90",
        "gpus-per-node=1",
        "cpus-per-task=12",
        "partition=gpu",
        "account=us",
        "requeue",
        "exclusive",
        "comment='two words'",
        "nodes=1",
        "job-name=umup-toy-tiny",
        "signal=USR2@60",
        "open-mode=append",
    ):
        assert f"#SBATCH --{option}" in script
    assert not any("wckey" in line for line in script)
    assert any("srun" in line and "--cpus-per-task=12" in line for line in script)
    (submission,) = jobs.submissions(study.store("toy", "tiny"))
    assert (submission.ids, submission.tasks, submission.executor) == (("7",), 3, "slurm")
    task = pickle.loads((submission.folder / "7_2_submitted.pkl").read_bytes()).function
    assert task.settings["lanes"] == 2 and task.seconds == 90 * 60 - 120
    # Its queue, in the words of squeue; another one's array is none of ours.
    commands(squeue='echo "7 RUNNING None\n7 PENDING JobArrayTaskLimit\n7 PENDING Priority"')
    cli.main(["status", "toy"])
    told = f"toy tiny: array 7 of {submission.user}: 1 running, 1 queued (Priority), 1 queued (Job"
    assert told in capsys.readouterr().out
    commands(squeue='echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    cli.main(["status", "toy"])
    assert "Unable to contact slurm controller" in capsys.readouterr().out
    commands(squeue='echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    cli.main(["status", "toy"])
    assert "array" not in (said := capsys.readouterr().out) and "squeue" not in said
    (folder / "squeue").unlink()
    cli.main(["status", "toy"])
    assert "array" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "states"),
    [
        ("CLUSTER: main\n7 RUNNING None\nCLUSTER: other", {"running": 1}),
        ("\n   7   RUNNING   None   \n\n", {"running": 1}),
        ("7 RUNNING", {"running": 1}),
        ("7 PENDING", {"queued": 1}),
        ("7 PENDING (null)", {"queued": 1}),
        ("7 PENDING (Resources)", {"queued (Resources)": 1}),
        (
            "7 PENDING Nodes required for job are DOWN",
            {"queued (Nodes required for job are DOWN)": 1},
        ),
        ("squeue: warning: this cluster goes down at 7\n7 RUNNING None", {"running": 1}),
        ("7_[4-7] PENDING Priority\n7_3 RUNNING None", {"queued (Priority)": 4, "running": 1}),
        ("7_[1,3,8-9%2] PENDING Priority", {"queued (Priority)": 4}),
        ("7_[2-... PENDING Priority", {"queued (Priority)": 1}),
        ("7_4+0 RUNNING None\n7+1 RUNNING None", {"running": 2}),
        ("7 RUNNING+ None\n7 CANCELLED+ None", {"running": 1}),
        ("7 PREEMPTED None\n7 SPECIAL_EXIT None", {"preempted": 1, "special_exit": 1}),
        ("7 COMPLETED None\n7 FAILED NonZeroExitCode\n7 TIMEOUT TimeLimit", {}),
        ("7", {"unknown": 1}),
        ("8 RUNNING None\n77 RUNNING None", {}),
        (b"7 PENDING gr\xf6\xdfer".decode("latin-1"), {"queued (gr\xf6\xdfer)": 1}),
        ("", {}),
    ],
)
def test_odd_lines_of_squeue(tmp_path, commands, lines, states):
    answer = commands() / "answer"
    commands(squeue='cat "${0%/*}/answer"')
    answer.write_text(lines, encoding="utf-8")
    found = jobs.queue([jobs.Submission(tmp_path, "slurm", ("7",), 9)])
    assert found == ({"7": states} if states else {})
    answer.write_text(lines, encoding="latin-1")  # no text in UTF-8 is no traceback
    assert jobs.queue([jobs.Submission(tmp_path, "slurm", ("7",), 9)]).keys() == found.keys()


def test_tasks_follow_from_the_work(workplace):
    place = study.store("toy", "tiny")
    given = study.parameters("toy", "tiny")
    for lanes, tasks in ((1, 6), (4, 2), (6, 1)):
        design = study.design_of("toy").from_dict(given | {"lanes": lanes})
        assert executor.wanted_tasks(design, place) == tasks

    class Points(Design):
        def points(self):
            return [Point("p", {"n": n}) for n in range(5)]

    assert executor.wanted_tasks(Points(), place) == 5


@pytest.mark.parametrize(("minutes", "seconds"), [(None, 3480), (5, 240), (60, 3480), (1, 48)])
def test_a_task_stops_before_its_limit(minutes, seconds):
    assert Options("slurm", minutes=minutes).seconds == seconds
    assert Options("local").seconds == float("inf")


# --- what a task does -----------------------------------------------------------------------------


@pytest.fixture
def task(workplace, monkeypatch) -> Task:
    """A task whose work is out of time at once, in a process whose signals are put back."""
    before = signal.getsignal(signal.SIGTERM)
    yield Task("toy", study.parameters("toy", "tiny"), workplace / "records", 60.0)  # pyright: ignore[reportReturnType]
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_out_of_time_is_requeued_under_slurm_only(task, monkeypatch, cluster):
    asked, limits = [], []

    def work(name, design, place, progress, wait):
        limits.append((design.time_limit_minutes, design.workers, wait))
        raise OutOfTime

    monkeypatch.setattr(study, "work", work)
    monkeypatch.setattr(executor, "_requeue", lambda: asked.append(True))
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # an allocation may hold processes of its own
    monkeypatch.setenv("SUBMITIT_EXECUTOR", cluster)
    monkeypatch.setenv("UMUP_PROGRESS", "0")
    task(0)
    assert asked == [True] * (cluster == "slurm")
    monkeypatch.setattr(study, "design_of", lambda name: Design)
    Task("toy", {"workers": 3}, task.records, float("inf"))(0)
    # A line search waits, since results may make it ask for more; a plain list of runs does not.
    assert limits == [(1.0, 0, True), (0.0, 0, False)]


def test_work_that_does_not_wait_ends_when_all_is_in_flight_elsewhere(workplace, monkeypatch):
    design = study.design_of("toy").from_dict(study.parameters("toy", "tiny"))
    dataset, place = study.dataset_of(design), study.store("toy", "tiny")
    assert dataset is not None
    monkeypatch.setattr("umup.lab.sweep.time.sleep", lambda _: pytest.fail("waited"))
    with contextlib.ExitStack() as elsewhere:
        for asked in design.pending(current(place.read()), dataset):
            assert elsewhere.enter_context(place.claim(asked.key()))
        study.work("toy", design, place, Progress(), wait=False)
    assert place.read().empty


class Ended(BaseException):
    """Instead of the end of this process."""


def ending(status: int) -> None:
    raise Ended(status)


@pytest.mark.parametrize(
    ("cluster", "squeue", "asked"),
    [
        ("slurm", "echo RUNNING", 1),  # preempted with grace time
        ("slurm", "echo SIGNALING", 1),  # the same, asked for before the controller is done
        ("slurm", "echo COMPLETING", 0),  # cancelled
        ("slurm", "echo; echo CLUSTER: main; echo RUNNING", 1),
        ("slurm", "echo 'RUNNING '", 1),
        ("slurm", "", 0),  # no longer known
        ("slurm", 'test -e "$0.asked" && echo RUNNING && exit; : > "$0.asked"; exit 1', 1),
        ("local", "echo RUNNING", 0),
    ],
)
def test_sigterm_asks_for_another_start_only_where_slurm_has_not_decided(
    task, commands, monkeypatch, cluster, squeue, asked
):
    commands(squeue=squeue)
    calls = []
    monkeypatch.setattr(study, "work", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(executor, "_requeue", lambda: calls.append(True))
    monkeypatch.setattr("os._exit", ending)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", cluster)
    monkeypatch.setenv("UMUP_PROGRESS", "0")
    with pytest.raises(Ended) as ended:
        task(0)
    assert ended.value.args == (75,) and len(calls) == asked


def test_sigterm_ends_a_task_wherever_it_meets_it(task, tmp_path):
    # Python drops what is raised in a callback of its garbage collector, and JAX installs one.
    (tmp_path / "task.py").write_text(
        "import gc, signal\n"
        "from umup.lab import executor, study\n"
        "def work(*_, **__):\n"
        "    print('at work')\n"
        "    gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGTERM))\n"
        "    gc.collect()\n"
        "    print('still at work')\n"
        "study.work = work\n"
        f"executor.{task}(0)\n".replace("PosixPath", "__import__('pathlib').Path")
    )
    command = [sys.executable, str(tmp_path / "task.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (ended.returncode, ended.stdout) == (75, "at work\n"), ended.stderr


# --- processes of this machine --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("alike")
def test_processes_here_share_the_work(workplace, monkeypatch, capsys):
    executed = []
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.1)
    monkeypatch.setattr("umup.lab.notebook.execute", lambda *args: executed.append(args[2]["mode"]))
    argv = ("tiny", "--executor", "local", "--tasks", "2", "--wait", "-p", "steps", "100")
    status, out, _ = run(capsys, *argv)
    assert status == 0 and executed == ["load"]
    assert "submitted processes" in out and "2 running" in out
    place = study.store("toy", "tiny")
    assert len(place.read()) >= 6 and len(list(place.folder.glob("*.parquet"))) == 1
    log = (place.folder / ".progress.log").read_text()
    assert log.count("step 100/100") == len(place.read())
    (submission,) = jobs.submissions(place)
    assert len(list(submission.folder.glob("*_log.out"))) == 2


@pytest.mark.slow
def test_tasks_that_fail_are_shown(workplace, monkeypatch, capsys):
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.1)
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_thing")
    status, out, err = run(capsys, "tiny", "--executor", "local", "--tasks", "1", "--wait")
    assert status == 1
    assert "failed: " in out and "no_such_thing" in out and "_log.out" in out
    assert err.startswith("umup: tasks: received") and "the same command resumes" in err


def test_what_is_no_submission_is_passed_over(tmp_path):
    place = Store(tmp_path)
    for name, text in (("a", "{"), ("b", "[]"), ("c", json.dumps({"ids": ["1"], "new": 1}))):
        (tmp_path / ".jobs" / name).mkdir(parents=True)
        (tmp_path / ".jobs" / name / "job.json").write_text(text)
    assert jobs.submissions(place) == []
    assert jobs.told(Counter(queued=2, running=1)) == "1 running, 2 queued"


def test_options_are_checked():
    with pytest.raises(ConfigError, match="cpus: received 4; allowed: nothing, or --executor slur"):
        Options("local", cpus=4)
    with pytest.raises(StudyError, match="/no/such: received"):
        jobs.slurm("/no/such")
    assert os.environ.get("SUBMITIT_LOG_LEVEL") is None
