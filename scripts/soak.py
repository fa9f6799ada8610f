"""Kill a training run at random moments until it is done, and compare with one never killed.

    python scripts/soak.py --kills 50

A small run with a planted disturbance, which it heals by rolling back three times, is trained by
a process that is killed with SIGKILL at moments spread over its whole CPU time: while it starts,
compiles, trains, saves and rolls back. It is started again until it is done, run after run until
there were enough kills. All must agree with the reference bit for bit: every step ever logged, the
final checkpoint's checksums, what the host carries, and each intervention, told once.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "name": "soak",
    "model": {
        "d_model": 16,
        "n_layers": 2,
        "d_head": 8,
        "d_ff": 32,
        "vocab_size": 16,
        "seq_len": 16,
        "base_width": 16,
        "base_depth": 2,
        "base_d_head": 8,
    },
    "optim": {
        "steps": 400,
        "batch_size": 4,
        "warmup_steps": 20,
        "schedule": "wsd",
        "decay_steps": 80,
    },
    "chunk_steps": 7,
    "checkpoint_every": 10,
    "keep": 4,
    "eval_every": 90,
    "eval_batches": 2,
    "peak_tflops": 1.0,
    "recovery": {"window": 32, "warmup": 40, "margin": 8, "eta_factor": 0.8},
}
DRILL = (200, 211, 64.0)
"""First and last batch, and the factor on η."""


def worker(folder: Path, cache: Path | None) -> int:
    """Train the run in this process, to its end or its death."""
    import jax
    import numpy as np

    from umup.data import Dataset
    from umup.run import loop
    from umup.run.runfile import TrainConfig

    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    i = np.arange(40_000, dtype=np.uint64)
    tokens = ((i * i + 3 * (i // 5)) % 13).astype(np.uint16)
    dataset = Dataset("soak", "none", 13, tokens, tokens[:600], 1.0, "soak", "none")
    config = TrainConfig.from_dict(CONFIG)
    outcome = loop.train_run(config, folder, dataset=dataset, drill=loop.Drill(*DRILL), quiet=True)
    return 0 if outcome.verdict == "done" else 1


def start(folder: Path, cache: Path | None, log: Path) -> subprocess.Popen:
    """A worker in a process of its own; what it says is added to ``log``."""
    command = [sys.executable, __file__, "--worker", str(folder)]
    command += ["--cache", str(cache)] if cache is not None else []
    with log.open("a", encoding="utf-8") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)


def processor_seconds(pid: int) -> float:
    """CPU time of a process so far: how far it is, however busy others keep the machine."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def killed(process: subprocess.Popen, after: float) -> bool:
    """Kill a process once it has had ``after`` seconds of CPU time; whether it lived so long."""
    while process.poll() is None:
        if processor_seconds(process.pid) >= after:
            process.kill()
            return process.wait() == -signal.SIGKILL
        time.sleep(0.002)
    return False


def lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log."""
    path = folder / "log.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def phase(folder: Path) -> str:
    """What a killed run was at, from what it left."""
    if any((folder / "checkpoints").glob("*tmp*")):
        return "inside a save"
    names = [line["event"] for line in lines(folder)]
    if not names:
        return "starting"
    last = names[-1]
    return {
        "start": "compiling",
        "resume": "compiling",
        "spike": "inside a roll back",
        "rewind": "inside a roll back",
    }.get(last, "between steps")


def story(folder: Path) -> dict[str, Any]:
    """What must be the same however often a run was killed.

    ``steps``: step → the values ever logged for it, superseded ones too; ``final``: those that
    count, in order; ``spikes``: interventions as told; ``leaves`` and ``host``: of the last
    checkpoint.
    """
    steps, final = collections.defaultdict(set), {}
    spikes, evals = [], {}
    for line in lines(folder):
        if line["event"] == "step":
            values = tuple(repr(line[k]) for k in ("loss", "grad_norm", "eta", "ok"))
            steps[line["step"]].add(values)
            final[line["step"]] = values
        elif line["event"] == "spike":
            spikes.append({k: v for k, v in line.items() if k != "time"})
        elif line["event"] == "eval":
            evals[line["step"]] = line["loss"]
    last = max(int(p.name) for p in (folder / "checkpoints").glob("[0-9]*"))
    meta = json.loads((folder / f"checkpoints/{last}/meta/metadata").read_text(encoding="utf-8"))
    return {
        "steps": dict(steps),
        "final": sorted(final.items()),
        "spikes": spikes,
        "evals": evals,
        "step": last,
        "leaves": meta["leaves"],
        "host": meta["host"],
    }


def differences(reference: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What of another story differs from the reference's."""
    found = [
        name
        for name in ("final", "spikes", "evals", "step", "leaves", "host")
        if reference[name] != other[name]
    ]
    for step, values in other["steps"].items():
        if more := values - reference["steps"].get(step, set()):
            found.append(f"step {step} was also {sorted(more)}")
    return found


def soak(kills: int, seed: int, folder: Path, *, warm: bool = False) -> dict[str, Any]:
    """Kill and compare; returns counts and what differed.

    Args:
        kills: how many, over as many runs as it takes.
        seed: of the moments.
        folder: where the runs are.
        warm: keep compiled programs from the reference on, and kill over the first half of its CPU
            time, which is about what a start that need not compile takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache, log, rng = folder / "cache" if warm else None, folder / "output.txt", random.Random(seed)
    before = sum(os.times()[2:4])  # of children that have ended
    if start(folder / "reference", cache, log).wait() != 0:
        raise SystemExit(f"the reference failed; see {log}")
    whole = sum(os.times()[2:4]) - before
    reach = whole / 2 if warm else whole
    reference = story(folder / "reference")
    phases, runs, starts, wrong = collections.Counter(), 0, 0, []
    while sum(phases.values()) < kills:
        runs += 1
        run = folder / f"run{runs}"
        while True:
            process, starts = start(run, cache, log), starts + 1
            if sum(phases.values()) < kills and killed(process, rng.uniform(0.0, reach)):
                phases[phase(run)] += 1
                continue
            status = process.wait()
            if status != 0:
                wrong.append(f"{run.name}: exit status {status}; see {log}")
            break
        if status == 0:
            wrong += [f"{run.name}: {text}" for text in differences(reference, story(run))]
            shutil.rmtree(run)
    return {
        "kills": dict(phases),
        "runs": runs,
        "starts": starts,
        "cpu_seconds_a_run": round(whole, 1),
        "steps": len(reference["final"]),
        "interventions": len(reference["spikes"]),
        "differences": wrong,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the soak, or a worker of it; 0 if nothing differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--warm", action="store_true", help="keep compiled programs")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.worker is not None:
        return worker(chosen.worker, chosen.cache)
    with tempfile.TemporaryDirectory() as temporary:
        found = soak(chosen.kills, chosen.seed, chosen.folder or Path(temporary), warm=chosen.warm)
    print(json.dumps(found, indent=1))
    return int(bool(found["differences"]))


if __name__ == "__main__":
    sys.exit(main())
