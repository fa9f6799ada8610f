"""A small run on a mesh, and a program that trains it as one of several processes.

    python multihost.py COORDINATOR PROCESSES PROCESS OUT

trains it 2×2×2 over the devices of all processes, from tokens on the devices and from windows that
each host reads, and writes what this process saw to OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from umup import mesh, parallel
from umup.config import HPs, MeshConfig, ModelConfig, OptimConfig, RunConfig
from umup.loader import HostWindows
from umup.rules import SCHEMES

STEPS = 12
BATCH, SEQ_LEN, VOCAB = 16, 8, 24


def make_run(scheme: str = "umup", *, seed: int = 0, optim=None, hps=None, **model) -> RunConfig:
    shape = {
        "d_model": 16, "n_layers": 2, "d_head": 4, "d_ff": 40, "vocab_size": VOCAB,
        "seq_len": SEQ_LEN, "base_width": 8, "base_depth": 1, "base_d_head": 4,
    }  # fmt: skip
    eta = 0.5 if SCHEMES[scheme].unit_scaled else 0.02
    fixed = {"steps": STEPS, "batch_size": BATCH, "warmup_steps": 3}
    return RunConfig(
        scheme=scheme, model=ModelConfig(**(shape | model)),
        optim=OptimConfig(**(fixed | (optim or {}))), hps=HPs(**({"eta": eta} | (hps or {}))),
        seed=seed, corpus="c", tokenizer="t", data_digest="d", eval_batches=2,
    )  # fmt: skip


def stream() -> np.ndarray:
    """Tokens by a formula: their next is not hard to learn."""
    i = np.arange(4000, dtype=np.uint64)
    return ((i * i + 3 * (i // 5)) % 23).astype(np.uint16)


def host_windows(run: RunConfig, devices: jax.sharding.Mesh) -> HostWindows:
    """The run's batches as the host reads them."""
    return HostWindows(
        stream(), run.seed, batch_size=BATCH, seq_len=SEQ_LEN,
        sharding=parallel.windows_sharding(devices),
    )  # fmt: skip


def main(coordinator: str, processes: int, process: int, out: Path) -> None:
    jax.distributed.initialize(coordinator, processes, process)
    run, devices = make_run(), mesh.make(MeshConfig(2, 2, 2))
    compiled = parallel.programs(run, devices, STEPS)
    told = {}
    host = host_windows(run, devices)
    for name, source in (
        ("device", parallel.place(stream(), devices)),
        ("host", host.windows(0, STEPS)),
    ):
        _, signals = compiled.chunk(source, compiled.init(), parallel.Control(n_steps=STEPS))
        told |= {f"{name}_{kind}": np.asarray(x) for kind, x in signals._asdict().items()}
    host.close()
    held = jax.tree.leaves(compiled.init())
    own = sum(shard.data.nbytes for leaf in held for shard in leaf.addressable_shards)
    np.savez(out, devices=len(jax.local_devices()), state_bytes=own, **told)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
