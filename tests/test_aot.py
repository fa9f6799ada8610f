"""The train step compiled for machines that are not there: what the compiler says, and refusals."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

from multihost import BATCH, SEQ_LEN, make_run, stream
from umup import mesh
from umup.config import MeshConfig, ModelConfig, OptimConfig
from umup.errors import ConfigError, TrainError
from umup.plan import aot
from umup.plan.aot import Job, Report
from umup.run import parallel
from umup.run.parallel import Control

D, D_FF, LAYERS, V, T, B = 64, 128, 3, 64, 32, 16
MODEL = ModelConfig(
    d_model=D,
    d_ff=D_FF,
    n_layers=LAYERS,
    d_head=16,
    vocab_size=V,
    seq_len=T,
    dtype="bfloat16",
    recipe="fp8_seed",
)
JOB = Job("umup", MODEL, OptimConfig(batch_size=B), MeshConfig(2, 2, 2))
BLOCK = 4 * D * D + 3 * D * D_FF


@contextmanager
def quickly() -> Iterator[None]:
    """Compile without optimizations: the same program on both sides is what matters."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def virtual() -> Report:
    return aot.compiled(JOB)


def rows(report: Report) -> dict[tuple, tuple[int, int]]:
    return {(r.kind, r.axes, r.dtype): (r.count, r.bytes) for r in report.collectives}


def test_the_whole_model_is_counted_and_a_device_s_part_of_the_step(virtual: Report) -> None:
    assert (virtual.platform, virtual.devices) == ("cpu", 8)
    assert virtual.n_params == LAYERS * BLOCK + 2 * V * D == MODEL.n_params
    assert virtual.flops == MODEL.step_flops(B) / 8
    assert 0 < virtual.xla_flops < virtual.flops  # the loop over layers counts once there
    assert virtual.lower_s > 0 and virtual.compile_s > 0 and virtual.peak_rss_mib > 100


def test_a_device_holds_its_part_of_the_state_and_of_the_batch(virtual: Report) -> None:
    state = 3 * 4 * MODEL.n_params // 4  # weight and two moments, float32, over fsdp and tensor
    windows = B // 4 * (T + 1) * 2  # over data and fsdp, uint16
    small = virtual.argument_bytes - state - windows
    assert 0 < small < 2048  # scalars: scales, hyperparameters, counts
    assert virtual.alias_bytes >= state  # the state is updated in place
    parts = virtual.argument_bytes + virtual.output_bytes - virtual.alias_bytes
    assert virtual.total_bytes == parts + virtual.temp_bytes
    assert virtual.temp_bytes > B // 4 * T * V // 2 * 2  # the logits at least


def test_weights_are_gathered_once_each_way_in_the_type_they_are_multiplied_in(
    virtual: Report,
) -> None:
    # Seven matrices a block and the readout, forward and back, of half the columns or rows.
    count, size = 2 * (7 * LAYERS + 1), 2 * (LAYERS * BLOCK + V * D) // 2
    assert rows(virtual)["all-gather", ("fsdp",), "f8e4m3fn"] == (count, size)
    gathered = {(kind, dtype) for kind, _, dtype in rows(virtual) if kind == "all-gather"}
    assert gathered == {("all-gather", "f8e4m3fn"), ("all-gather", "s32")}  # and the ids


def test_gradients_are_summed_over_what_they_are_not_split(virtual: Report) -> None:
    weights = (LAYERS * BLOCK + V * D) * 2  # bfloat16; the embedding's gradient is float32
    assert rows(virtual)["all-reduce", ("data",), "bf16"][1] == weights // 4
    assert rows(virtual)["all-reduce", ("data",), "f32"][1] == V * D * 4 // 4
    assert all(r.axes for r in virtual.collectives)


def test_a_report_survives_json(virtual: Report) -> None:
    assert Report.from_json(virtual.to_json()) == virtual


def test_the_devices_here_compile_the_same_state(virtual: Report) -> None:
    here = aot.compiled(JOB, native=True)
    assert (here.platform, here.n_params, here.flops) == ("cpu", virtual.n_params, virtual.flops)
    assert here.argument_bytes == virtual.argument_bytes
    other = dataclasses.replace(JOB, mesh=MeshConfig(1, 2, 2))
    with pytest.raises(ConfigError, match=r"mesh: received '1×2×2'.*product is 8"):
        aot.compiled(other, native=True)


def test_what_is_lowered_is_what_a_run_compiles() -> None:
    run, made = make_run(), mesh.make(MeshConfig(2, 2, 2))
    tokens = parallel.place(stream(), made)
    with quickly():
        step = parallel.lower(run, made, stream_tokens=tokens.size).compile()
        programs = parallel.programs(run, made, 1)
        _, want = programs.chunk(tokens, programs.init(), Control())
        control = Control(np.int32(0), np.float32(1), np.int32(1))
        _, found = step(tokens, parallel.lane_of(run), programs.init(), control)
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_the_host_s_windows_are_lowered_for_their_place() -> None:
    run, made = make_run(vocab_size=2**16 + 2), mesh.make(MeshConfig(2, 2, 2))
    source, *_ = parallel.lower(run, made, chunk_steps=3).in_avals[0]
    assert (source.shape, source.dtype) == ((3, BATCH, SEQ_LEN + 1), np.uint32)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"mesh": MeshConfig(1, 1, 3)}, r"mesh.tensor: received 3.*n_heads = 4"),
        ({"mesh": MeshConfig(3, 1, 1)}, r"mesh.data: received 3.*batch_size = 16"),
        (
            {"mesh": MeshConfig(1024, 1, 1), "optim": OptimConfig(batch_size=1024)},
            "mesh: received '1024×1×1'; allowed: up to 512 virtual devices",
        ),
    ],
)
def test_a_bad_mesh_is_refused_before_anything_starts(monkeypatch, change, error) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(ConfigError, match=error):
        aot.compiled(dataclasses.replace(JOB, **change))


def test_a_bad_job_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stream_tokens: received 32.*at least 33"):
        dataclasses.replace(JOB, stream_tokens=T)
    with pytest.raises(ConfigError, match=r"scheme: received 'ump'.*umup"):
        Job.from_dict(JOB.to_dict() | {"scheme": "ump"})


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 'no memory' >&2; kill -9 $$", "killed by SIGKILL: no memory"),
        ("echo one >&2; echo 'ValueError: two' >&2; exit 3", "exit status 3: ValueError: two"),
        ("exit 1", "exit status 1'"),
    ],
)
def test_how_the_compiler_failed_is_told(monkeypatch, tmp_path: Path, script, error) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(TrainError, match=f"compile: received.*{error}.*memory here"):
        aot.compiled(JOB)
