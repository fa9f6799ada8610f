"""A study's missing work outside this process: one Slurm array, or processes of this machine.

Slurm queues, starts, limits, preempts and requeues tasks; submitit writes their scripts and
pickles. Each task runs `study.work`, which claims missing work until none is left. Tasks, arrays
and users may therefore share one study, any of them may die, and every run is recorded once.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from umup.errors import ConfigError, RecordError, StudyError
from umup.lab import jobs, study
from umup.lab.design import Design
from umup.lab.options import Options
from umup.lab.records import Store, current
from umup.lab.sweep import OutOfTime, groups
from umup.terminal import Progress

MOST_TASKS = 64
"""Largest default number of tasks of an array."""
REQUEUES = 1000
"""Number of time limits after which submitit gives a task up; each allows some work."""
POLL_SECONDS = 10.0
"""Seconds between queries of the queue while following an array."""


@dataclass(frozen=True)
class Task:
    """The work of one task of an array; submitit pickles it.

    Args:
        study: its name or folder.
        settings: the design as plain data.
        records: folder of the store.
        seconds: time after which to stop; a Slurm task is then requeued, another one ends.
    """

    study: str | Path
    settings: dict[str, Any]
    records: Path
    seconds: float

    def __call__(self, number: int) -> None:
        """Work until nothing is missing but what other processes have in flight."""
        os.environ.setdefault("UMUP_PROGRESS", "1")  # into the task's log
        signal.signal(signal.SIGTERM, _told_to_end)
        place = Store(self.records)
        design = study.design_of(self.study).from_dict(self.settings)
        limit = self.seconds / 60 if math.isfinite(self.seconds) else 0.0
        design = replace(design, workers=0, time_limit_minutes=limit)
        # The results of other tasks may lead an adaptive design to request more: wait for them.
        adaptive = type(design).pending is not Design.pending
        progress = Progress(place.folder / ".progress.log")
        try:
            study.work(self.study, design, place, progress, wait=adaptive)
        except OutOfTime:
            if _under_slurm():
                _requeue()
            return
        place.compact()
        place.points.compact()

    def checkpoint(self, number: int) -> Any:
        """What submitit runs when the job restarts: the same task, since the state is on disk."""
        return jobs.submitit().core.utils.DelayedSubmission(self, number)


def _under_slurm() -> bool:
    """Whether Slurm started this task; False for local processes, even inside an allocation."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _requeue() -> None:
    """Let submitit requeue this Slurm job and end this process, as before a time limit."""
    signal.raise_signal(getattr(signal, f"SIG{jobs.submitit().JobEnvironment.USR_SIG}"))


def _told_to_end(*_: object) -> None:
    """Handler of SIGTERM. Slurm sends it when it has cancelled or requeued the job, which then
    ends, and at the start of a preemption's grace time, when a job that ends counts as done."""
    if _under_slurm():
        state = _state()
        os.write(2, f"umup: told to end; Slurm's state of this job: {state or 'none'}\n".encode())
        if state in ("RUNNING", "SIGNALING"):  # the second while the signal is on its way
            _requeue()
    # Not by an exception: Python drops it where the signal meets a callback of its garbage
    # collector, such as JAX's, and the task would go on. What is on disk is complete at any moment.
    with contextlib.suppress(RuntimeError, OSError):  # the signal met a flush, or the disk is full
        sys.stdout.flush()
    os._exit(study.EXIT_OUT_OF_TIME)


def _state() -> str:
    """The state of this task's job, queried until Slurm answers or kills the process: a task that
    ends without knowing might not be requeued."""
    ask = ("squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}")
    while True:
        with contextlib.suppress(StudyError):
            # Alone on its line: sites and federations add lines of several words.
            found = re.search(r"^\s*([A-Z_]+)\W*$", jobs.slurm(*ask), re.MULTILINE)
            return found[1] if found else ""
        time.sleep(1.0)


def wanted_tasks(design: Design, place: Store) -> int:
    """Number of tasks that could work at once: missing groups of lanes and points."""
    n = len(study.missing_points(design, place.points))
    if (dataset := study.dataset_of(design)) is not None:
        n += len(groups(design.pending(current(place.read()), dataset), design.lanes))
    return n


def submit(
    name: str | Path, design: Design, place: Store, options: Options
) -> tuple[jobs.Submission, list[Any]] | None:
    """Submit tasks that make what the records lack.

    Returns:
        The submission and its submitit jobs; None where nothing is missing.

    Raises:
        StudyError: the design keeps no records or only reads them; submitit or Slurm is not
            available; sbatch refuses the job (its message is quoted).
        ConfigError: more tasks than the site allows in one array, or than this machine has GPUs.
        RecordError: the folder of the records cannot be written.
    """
    if design.fresh or design.mode != "run":
        received = "fresh: true" if design.fresh else f"mode: {design.mode}"
        raise StudyError("profile", received, "a profile that keeps records, in mode run")
    jobs.submitit()
    if options.executor == "slurm" and shutil.which("sbatch") is None:
        allowed = "a machine that can submit to Slurm (no sbatch here), or --executor local"
        raise StudyError("executor", "slurm", allowed)
    wanted = wanted_tasks(design, place)
    if not wanted:
        return None
    tasks = options.tasks or min(wanted, MOST_TASKS)
    _check_room(tasks, options)
    folder = place.folder.resolve() / ".jobs" / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    task = Task(name, design.to_dict(), place.folder.resolve(), options.seconds)
    start = _to_slurm if options.executor == "slurm" else _here
    try:
        folder.mkdir(parents=True)
        made = start(task, tasks, folder, options, f"umup-{Path(name).name}-{design.profile}")
        ids = dict.fromkeys(job.job_id.split("_")[0] for job in made)  # an array has one
        submission = jobs.Submission(folder, options.executor, tuple(ids), tasks)
        submission.save()
    except BaseException as error:
        _undo(folder)
        if isinstance(error, OSError):
            allowed = "a folder that you and the tasks can write"
            received = f"write failed: {error.strerror}"
            raise RecordError(str(place.folder), received, allowed) from error
        raise
    return submission, made


def _check_room(tasks: int, options: Options) -> None:
    if options.executor == "local":
        gpus = _gpus_here()
        if options.gpus and tasks > len(gpus):
            raise ConfigError("tasks", tasks, f"at most {len(gpus)}, the GPUs of this machine")
        return
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", jobs.slurm("scontrol", "show", "config"))
    if found and tasks > int(found[1]):  # its indices go from 0 to below that
        allowed = f"at most {found[1]}, this cluster's MaxArraySize; a task makes many runs"
        raise ConfigError("tasks", tasks, allowed)


def _gpus_here() -> list[int]:
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return [int(number) for number in shown.split(",") if number.isdigit()]
    return list(range(len(list(Path("/dev").glob("nvidia[0-9]*")))))


def _undo(folder: Path) -> None:
    """Remove what a failed submission has made, and parent folders that are now empty."""
    for script in folder.glob("[0-9]*_submission.sh"):  # sbatch had taken it
        subprocess.run(["scancel", script.name.split("_")[0]], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:3]:  # .jobs, PROFILE, records
        with contextlib.suppress(OSError):
            parent.rmdir()


def _to_slurm(task: Task, tasks: int, folder: Path, options: Options, name: str) -> list[Any]:
    submitit = jobs.submitit()
    executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUES)
    # Slurm's signal comes after the task's own stop, for a chunk that takes most of the margin.
    executor.update_parameters(
        job_name=name,
        time=math.ceil(options.limit / 60),
        partition=options.partition,
        account=options.account,
        array_parallelism=options.at_once or tasks,
        wckey=None,
        signal_delay_s=max(int((options.limit - options.seconds) / 2), 1),
        gpus_per_node=options.gpus or None,
        cpus_per_task=options.cpus,
        stderr_to_stdout=True,
        # Since Slurm 22.05 a job step gets the CPUs of its job only if it requests them.
        srun_args=[f"--cpus-per-task={options.cpus}"] if options.cpus else None,
        additional_parameters={"requeue": True}
        | {name: value == "true" or value for name, value in options.slurm},
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it then raises
            return executor.map_array(task, range(tasks))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        allowed = "what this cluster takes: --partition, --account, --minutes, --tasks, --slurm"
        raise StudyError("sbatch", jobs.words(str(error)), allowed) from None


def _here(task: Task, tasks: int, folder: Path, options: Options, name: str) -> list[Any]:
    made = []
    for number in range(tasks):
        executor = jobs.submitit().LocalExecutor(folder)
        gpus = _gpus_here()[number : number + 1] if options.gpus else ()
        executor.update_parameters(  # the task watches its limit; submitit would start it again
            timeout_min=60 * 24 * 365,
            stderr_to_stdout=True,
            gpus_per_node=len(gpus),
            visible_gpus=gpus,
        )
        made.append(executor.submit(task, number))
    return made


def follow(submission: jobs.Submission, made: list[Any], say: Callable[[str], None]) -> None:
    """Return when no task of the submission is queued or runs; ``say`` what changes."""
    last = ""
    while True:
        try:
            if submission.executor == "local":
                n = sum(not job.done() for job in made)
                now = f"{n} running" if n else ""
            else:
                now = "; ".join(map(jobs.told, jobs.queue([submission]).values()))
        except StudyError as error:  # a controller that restarts loses no job
            now = str(error)
        if now != last and now:
            say(now)
        if not now:
            return
        last = now
        time.sleep(POLL_SECONDS)


def fan_out(
    name: str | Path,
    design: Design,
    place: Store,
    options: Options,
    say: Callable[[str], None] = print,
) -> int | None:
    """``umup run --executor``: submit, print how to watch and to cancel, and wait if asked to.

    Returns:
        The exit status, or None if nothing is missing, so that the notebook may be executed.

    Raises:
        StudyError: tasks failed and left work missing, or as for ``submit``.
        ConfigError, RecordError: as for ``submit``.
    """
    shown = f"{Path(name).name} {design.profile}"
    for line in jobs.at_work([(shown, place)]):
        say(f"{line}; it shares the work")
    submitted = submit(name, design, place, options)
    if submitted is None:
        say(f"{shown}: nothing is missing, nothing submitted")
        return None
    submission, made = submitted
    ids, cluster = " ".join(submission.ids), submission.executor == "slurm"
    kind = f"array {ids}" if cluster else f"processes {ids}"
    limit = f"{options.limit / 60:g}" if math.isfinite(options.limit) else "any"
    each = f"of each: minutes {limit}, GPUs {options.gpus}"
    say(f"{shown}: submitted {kind}, tasks {submission.tasks}; {each}")
    say(f"  watch   umup status {Path(name).name}{f'; squeue --array --jobs {ids}' * cluster}")
    say(f"  logs    {os.path.relpath(submission.folder)}")
    say(f"  cancel  {'scancel' if cluster else 'kill'} {ids}")
    if not options.wait:
        return 0
    try:
        follow(submission, made, say)
    except KeyboardInterrupt:
        say("no longer followed; the tasks go on")
        return 130
    left, failed = wanted_tasks(design, place), jobs.failures(submission)
    for line in failed:
        say(f"failed: {line}")
    if left and failed:
        todo = f"tasks that end well; see {os.path.relpath(submission.folder)}"
        raise StudyError("tasks", failed[0], f"{todo}; the same command resumes")
    if left:
        say(f"{shown}: the tasks were stopped with work left; the same command resumes")
        return study.EXIT_OUT_OF_TIME
    place.compact()
    place.points.compact()
    return None
