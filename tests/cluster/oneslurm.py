"""A real Slurm of two nodes on this machine, in a folder of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
NODES = ("127.0.0.1", "127.0.0.2")  # names that resolve everywhere, as jax.distributed needs
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
KillWait=2
MinJobAge=2
SlurmdTimeout=5
MessageTimeout=3
MaxArraySize=9
FirstJobId={first}
EnforcePartLimits=ALL
NodeName={nodes[0]} NodeHostname={host} NodeAddr={nodes[0]} Port={ports[1]} CPUs=1
NodeName={nodes[1]} NodeHostname={host} NodeAddr={nodes[1]} Port={ports[2]} CPUs=1
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1
PartitionName=grace Nodes=ALL MaxTime=60 PriorityTier=1 GraceTime=300
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10
"""


def until(true: Callable[[], object], seconds: float = 600, what: str = "") -> None:
    """Wait until ``true()``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what or true}"
        time.sleep(0.1)


def output(*command: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.strip()


def found(name: str) -> str | None:
    """Where a command is; daemons are where a user's path does not lead."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Slurm:
    """munged, slurmctld and two slurmd, as children of this process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen] = {}
        with contextlib.ExitStack() as probes:
            sockets = [probes.enter_context(socket.socket()) for _ in range(3)]
            for probe in sockets:
                probe.bind(("127.0.0.1", 0))
            ports = [probe.getsockname()[1] for probe in sockets]
        self.conf.write_text(
            CONF.format(
                host=socket.gethostname(),
                user=getpass.getuser(),
                folder=folder,
                ports=ports,
                nodes=NODES,
                first=1 + os.getpid() % 4000,  # JAX makes a port of it, and two
                # of these on one machine, as in a matrix, must not have the same
            )
        )
        key = folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (folder / "state").mkdir()
        files = [f"--{name}-file={folder / name}" for name in ("key", "log", "pid", "seed")]
        self.run("munged", "-F", "--force", "--num-threads=1", f"--socket={folder}/munge", *files)
        until(lambda: (folder / "munge").exists(), what="munged")
        self.run("slurmctld", "-D", "-c", "-f", str(self.conf))
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            self.start(node)

    def run(self, name: str, *argv: str, node: str = "") -> None:
        command = [str(found(name)), *argv]
        env = os.environ | {"TEST_NODE": node}
        with (self.folder / f"{name}{node}.out").open("a") as log:
            self.daemons[node or name] = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def start(self, node: str) -> None:
        """Start a node, or start it again, and wait until it takes jobs."""
        self.run("slurmd", "-D", "-N", node, "-f", str(self.conf), node=node)
        until(lambda: self.state(node) in ("idle", "mixed", "allocated"), what=f"node {node}")

    def state(self, node: str) -> str:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--nodes", node, "--format=%T"],
            capture_output=True,
            text=True,
        )
        return next(iter(done.stdout.split()), "")

    def kill(self, node: str, whole: bool = False) -> None:
        """Kill a node's slurmd with SIGKILL; the ``whole`` node dies with all that runs there."""
        self.daemons[node].kill()
        self.daemons.pop(node).wait()
        # First the shepherds, that none of them tells the controller how its task ended.
        for mark in (f"TEST_NODE={node}", f"SLURMD_NODENAME={node}") if whole else ():
            for process in self.processes(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def processes(self, *marks: str) -> list[int]:
        """Processes of this Slurm, other than this one, whose environment or command has a mark."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                ours = str(self.folder).encode() in text and int(entry.name) != os.getpid()
                if ours and any(mark.encode() in text for mark in marks):
                    found.append(int(entry.name))
        return found

    def clear(self) -> None:
        """Cancel every job and wait until none is left and all nodes are idle."""
        output("scancel", "--user", getpass.getuser())
        until(lambda: not output("squeue", "--noheader"), what="an empty queue")
        until(lambda: all(self.state(node) == "idle" for node in NODES), what="idle nodes")

    def stop(self) -> None:
        """End all of it."""
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes("SLURM_JOB_ID=", "TEST_NODE="):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
