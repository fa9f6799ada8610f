"""A small run on a mesh, and a program that trains it as one of several processes.

    python multihost.py COORDINATOR PROCESSES PROCESS OUT

trains it 2×2×2 over the devices of all processes from tokens on the devices, and writes what this
process saw to OUT: the signals of the steps, and by its first row each part that this host reads of
the same steps' windows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from umup import mesh
from umup.config import HPs, MeshConfig, ModelConfig, OptimConfig, RunConfig
from umup.data.loader import HostWindows
from umup.rules import SCHEMES
from umup.run import parallel

STEPS = 12
BATCH, SEQ_LEN, VOCAB = 16, 8, 24


def make_run(scheme: str = "umup", *, seed: int = 0, optim=None, hps=None, **model) -> RunConfig:
    shape = {
        "d_model": 16,
        "n_layers": 2,
        "d_head": 4,
        "d_ff": 40,
        "vocab_size": VOCAB,
        "seq_len": SEQ_LEN,
        "base_width": 8,
        "base_depth": 1,
        "base_d_head": 4,
    }
    eta = 0.5 if SCHEMES[scheme].unit_scaled else 0.02
    fixed = {"steps": STEPS, "batch_size": BATCH, "warmup_steps": 3}
    return RunConfig(
        scheme=scheme,
        model=ModelConfig(**(shape | model)),
        optim=OptimConfig(**(fixed | (optim or {}))),
        hps=HPs(**({"eta": eta} | (hps or {}))),
        seed=seed,
        corpus="c",
        tokenizer="t",
        data_digest="d",
        eval_batches=2,
    )


def stream() -> np.ndarray:
    """Tokens by a formula: their next is not hard to learn."""
    i = np.arange(4000, dtype=np.uint64)
    return ((i * i + 3 * (i // 5)) % 23).astype(np.uint16)


def host_windows(run: RunConfig, devices: jax.sharding.Mesh) -> HostWindows:
    """The run's batches as the host reads them."""
    return HostWindows(
        stream(),
        run.seed,
        batch_size=BATCH,
        seq_len=SEQ_LEN,
        sharding=parallel.windows_sharding(devices),
    )


def main(coordinator: str, processes: int, process: int, out: Path) -> None:
    jax.distributed.initialize(coordinator, processes, process)
    run, devices = make_run(), mesh.make(MeshConfig(2, 2, 2))
    compiled = parallel.programs(run, devices, STEPS)
    state = compiled.init()
    own = [shard.data.nbytes for x in jax.tree.leaves(state) for shard in x.addressable_shards]
    tokens = parallel.place(stream(), devices)
    _, signals = compiled.chunk(tokens, state, parallel.Control(n_steps=STEPS))
    told = {name: np.asarray(x) for name, x in signals._asdict().items()}
    host = host_windows(run, devices)
    windows = host.windows(0, STEPS)
    host.close()
    read = {
        f"window {s.index[1].start or 0}": np.asarray(s.data) for s in windows.addressable_shards
    }
    np.savez(out, devices=len(jax.local_devices()), state_bytes=sum(own), **told, **read)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
