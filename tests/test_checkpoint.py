"""Checkpoints: what comes back, what is refused, what survives a kill and a full disk."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from umup.config import NUMERICS
from umup.errors import CheckpointError
from umup.run import checkpoint
from umup.run.checkpoint import Checkpoints, checksum

KEY = "0123456789abcdef"
DTYPES = (
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int32",
    "uint8",
    "bool",
)


class State(NamedTuple):
    params: nnx.State
    opt: tuple
    step: jax.Array


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(16, 16, rngs=rngs)])


def state_of(seed: int) -> State:
    params = nnx.state(Net(nnx.Rngs(seed)))
    return State(params, (jnp.int32(seed), jax.tree.map(jnp.square, params)), jnp.int32(seed))


def small(step: int) -> dict:
    return {"w": jax.random.normal(jax.random.key(step), (64, 8)), "n": jnp.int32(step)}


def shapes(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def same(a, b) -> bool:
    """Equal trees, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))]
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


def mesh(*sizes: int) -> jax.sharding.Mesh:
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with small(2) and small(4)."""
    with Checkpoints(tmp_path / "c", KEY) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, small(step), {"batch": step})
    return tmp_path / "c"


def rewrite(folder: Path, *, sealed: bool = True, **changes) -> None:
    """Change the description of a checkpoint; sealed: as if it had been written so."""
    path = folder / "meta" / "metadata"
    meta = json.loads(path.read_text(encoding="utf-8")) | changes
    del meta["digest"]
    kept = json.loads(path.read_text(encoding="utf-8"))["digest"]
    path.write_text(json.dumps(meta | {"digest": checkpoint._digest(meta) if sealed else kept}))


def refusal(folder: Path, step: int | None = None, *, key: str = KEY, like=None) -> str:
    with pytest.raises(CheckpointError) as error, Checkpoints(folder, key) as checkpoints:
        checkpoints.restore(shapes(like or small(0)), step)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)


# What comes back


def test_a_whole_state_comes_back(tmp_path: Path) -> None:
    state = state_of(3)
    host = {"batch": 7, "seed": 2**40, "loss": math.nan, "skips": [[5, 2]], "eta": 0.1}
    with Checkpoints(tmp_path / "new" / "c", KEY) as checkpoints:
        checkpoints.save(3, state, host)
    with Checkpoints(tmp_path / "new" / "c", KEY) as checkpoints:
        restored = checkpoints.restore(shapes(state))
    assert restored.step == 3 and same(restored.state, state)
    assert repr(restored.host) == repr(host)  # as text, since NaN differs from itself
    assert isinstance(restored.state.params, nnx.State)


def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {}
    for dtype in DTYPES:
        size = jnp.dtype(dtype).itemsize
        every = np.arange(256, dtype=np.uint8) if dtype != "bool" else np.arange(256) % 2
        bits = np.tile(every.astype(np.uint8), size)  # NaNs with payloads, −0.0 and subnormals too
        state[dtype] = jax.device_put(bits.view(dtype))
    with Checkpoints(tmp_path, KEY) as checkpoints:
        checkpoints.save(0, state, {})
        assert same(checkpoints.restore(shapes(state)).state, state)


def test_saved_on_one_mesh_restored_on_another(tmp_path: Path) -> None:
    state = {"w": jnp.arange(512.0).reshape(16, 32), "b": jnp.arange(8, dtype=jnp.bfloat16)}
    axes = {"w": PartitionSpec("fsdp", ("data", "tensor")), "b": PartitionSpec("tensor")}
    cut = mesh(2, 2, 2)
    spread = {k: jax.device_put(v, NamedSharding(cut, axes[k])) for k, v in state.items()}
    with Checkpoints(tmp_path, KEY) as checkpoints:
        checkpoints.save(1, spread, {})
        for to in (NamedSharding(mesh(1, 8, 1), PartitionSpec("fsdp")), None):
            restored = checkpoints.restore(shapes(state, to)).state
            assert same(restored, state)
            assert {len(x.sharding.device_set) for x in restored.values()} == {8 if to else 1}
            if to is not None:
                assert restored["w"].addressable_shards[0].data.shape == (2, 32)


def test_save_returns_when_the_buffers_may_be_reused(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: 0 * x + 7, tree), donate_argnums=0)
    state = {"w": jax.random.normal(jax.random.key(0), (512, 1024))}
    kept = np.array(state["w"])
    with Checkpoints(tmp_path, KEY) as checkpoints:
        checkpoints.save(0, state, {})
        state = overwrite(state)
        assert float(jax.block_until_ready(state)["w"].max()) == 7
        assert (np.asarray(checkpoints.restore(shapes(state)).state["w"]) == kept).all()


# The checksum


def by_hand(words: list[int]) -> tuple[int, int]:
    """The two sums in Python integers."""

    def mix(h: int) -> int:
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    first = [mix((w + i * 0x9E3779B9) % 2**32) for i, w in enumerate(words)]
    second = [mix(f ^ (i * 0xC2B2AE3D + 0x27D4EB2F) % 2**32) for i, f in enumerate(first)]
    return sum(first) % 2**32, sum(second) % 2**32


def test_checksum_by_hand() -> None:
    assert int(checksum(jnp.uint32(1))[0]) == 0x514E28B7  # MurmurHash3's finalizer of 1
    words = np.random.default_rng(0).integers(0, 2**32, (3, 5, 7), np.uint32)
    assert tuple(map(int, checksum(jnp.asarray(words)))) == by_hand(words.ravel().tolist())
    half = jnp.asarray(words.view(np.uint16))
    assert tuple(map(int, checksum(half.view(jnp.bfloat16)))) == by_hand(half.ravel().tolist())


def test_checksum_is_free_of_the_sharding() -> None:
    x = jax.random.normal(jax.random.key(1), (16, 24), jnp.bfloat16)
    whole = checksum(x).tolist()
    for axes in (("data", "fsdp"), ("fsdp", None), (None, ("tensor", "data"))):
        spread = jax.device_put(x, NamedSharding(mesh(2, 2, 2), PartitionSpec(*axes)))
        assert checksum(spread).tolist() == whole
    explicit = jax.make_mesh((8,), ("data",), (AxisType.Explicit,))
    spread = jax.device_put(x, NamedSharding(explicit, PartitionSpec("data")))
    assert checksum(spread).tolist() == whole


def test_checksum_sees_every_bit_and_every_place() -> None:
    zeros = np.zeros(64, np.uint32)
    flipped = [
        zeros ^ (np.arange(64) == i) * np.uint32(1 << bit) for i in range(64) for bit in range(32)
    ]
    sums = {tuple(row) for row in np.asarray(jax.vmap(checksum)(jnp.asarray(flipped))).tolist()}
    assert len(sums) == 64 * 32 and tuple(checksum(zeros).tolist()) not in sums
    assert checksum(jnp.array([1.0, 2.0])).tolist() != checksum(jnp.array([2.0, 1.0])).tolist()
    assert checksum(jnp.float32(0)).tolist() != checksum(jnp.float32(-0.0)).tolist()


# Which stay


def test_the_last_and_every_nth_stay(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, KEY, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, small(step), {})
        assert checkpoints.steps() == [4, 6, 7]
    with Checkpoints(tmp_path, KEY, keep=2, keep_every=4) as checkpoints:
        checkpoints.save(8, small(8), {})
        checkpoints.save(9, small(9), {})
        assert checkpoints.steps() == [4, 8, 9]
    assert sorted(os.listdir(tmp_path)) == ["4", "8", "9"]  # and nothing else is left


def test_a_roll_back_discards_what_came_after(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, KEY, keep=5) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, small(step), {})
        checkpoints.drop_after(3)
        assert checkpoints.steps() == [1, 2, 3]
        checkpoints.save(2, small(9), {"again": True})  # 3 is of the old history, too
        assert checkpoints.steps() == [1, 2]
        restored = checkpoints.restore(shapes(small(0)))
        assert restored.step == 2 and same(restored.state, small(9)) and restored.host["again"]


# What is refused


def test_none_or_not_this_one(saved: Path, tmp_path: Path) -> None:
    assert "no checkpoint" in refusal(tmp_path / "empty")
    assert refusal(saved, 3) == "step: received 3; allowed: a checkpoint's: 2, 4"
    with pytest.raises(CheckpointError, match="keep: received 0; allowed: at least 1"):
        Checkpoints(saved, KEY, keep=0)
    with pytest.raises(CheckpointError, match="keep_every: received -1; allowed: at least 0"):
        Checkpoints(saved, KEY, keep_every=-1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="received 'a file'; allowed: a folder"):
        Checkpoints(tmp_path / "file", KEY)


def test_another_run_is_refused_when_the_folder_is_opened(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=f"another run, {KEY}.*this run, feed") as error:
        Checkpoints(saved, "feed")
    assert "choose another folder" in str(error.value)
    assert sorted(os.listdir(saved)) == ["2", "4"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": checkpoint.FORMAT + 1}, "newer umup"),
        ({"numerics": NUMERICS + 1}, f"numerics {NUMERICS + 1}'; allowed: numerics {NUMERICS}"),
        ({"run_key": "feed"}, "another run, feed"),
        ({"step": 3}, "the checkpoint of step 3, renamed"),
        ({"format": "one"}, "not a checkpoint of umup"),
        ({"host": {"batch": 5}, "sealed": False}, "its description differs from its digest"),
    ],
)
def test_a_description_that_will_not_do(saved: Path, changes: dict, said: str) -> None:
    rewrite(saved / "4", **changes)
    assert said in refusal(saved)


def test_foreign_folders_are_no_checkpoints(saved: Path) -> None:
    (saved / "9").mkdir()
    (saved / "9" / "model.bin").write_bytes(b"weights")
    assert "not a checkpoint of umup" in refusal(saved)
    assert "--from 4" in refusal(saved)


def test_arrays_of_another_model_are_named(saved: Path) -> None:
    said = refusal(saved, like={"w": jnp.zeros((64, 9)), "n": jnp.float32(0), "v": jnp.zeros(1)})
    assert "a checkpoint without v" in said
    assert "w as float32[64, 8] instead of float32[64, 9]" in said
    assert "n as int32[] instead of float32[]" in said
    assert "a checkpoint with n besides" in refusal(saved, like={"w": jnp.zeros((64, 8))})
    state = {"a": {"b": jnp.zeros(1)}, "a/b": jnp.zeros(1)}
    with pytest.raises(CheckpointError, match="one name: a/b"), Checkpoints(saved, KEY) as checks:
        checks.save(6, state, {})


@pytest.mark.parametrize(
    ("host", "field"),
    [
        ({"a": [1, (2,)]}, "host.a.1"),
        ({"a": {3: 4}}, "a key of host.a"),
        ({"x": np.float64(1)}, "host.x"),
        ({"x": jnp.zeros(())}, "host.x"),
    ],
)
def test_host_data_that_would_come_back_changed(saved: Path, host: dict, field: str) -> None:
    with Checkpoints(saved, KEY) as checkpoints:
        with pytest.raises(CheckpointError, match="plain JSON") as error:
            checkpoints.save(6, small(6), host)
        assert error.value.field == field and checkpoints.steps() == [2, 4]


# Damage


def test_a_damaged_file_is_refused_and_an_older_one_only_if_asked(saved: Path, capfd) -> None:
    whole = {p: p.read_bytes() for p in sorted((saved / "4").rglob("*")) if p.is_file()}
    refused = set()
    for path, data in whole.items():
        flipped = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1])
        for damaged in (data[: len(data) // 2], flipped + data[len(flipped) :], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with Checkpoints(saved, KEY) as checkpoints:
                try:  # a few of orbax's files are not needed to read the arrays
                    assert same(checkpoints.restore(shapes(small(4))).state, small(4))
                except CheckpointError as error:
                    refused.add(path)
                    assert "damaged" in str(error) and "\n" not in str(error)
                    assert "older: 2; `--from 2` goes on" in str(error)
                assert same(checkpoints.restore(shapes(small(2)), 2).state, small(2))
            path.write_bytes(data)
    names = {str(p.relative_to(saved / "4")) for p in refused}
    assert {"meta/metadata", "state/manifest.ocdbt", "state/_METADATA"} <= names
    assert any(name.startswith("state/ocdbt.process_0/d/") for name in names), names
    assert capfd.readouterr() == ("", "")


def test_arrays_that_read_well_but_are_others(saved: Path) -> None:
    shutil.rmtree(saved / "4" / "state")
    shutil.copytree(saved / "2" / "state", saved / "4" / "state")
    said = refusal(saved)
    assert "damaged: n, w differ from their checksums" in said or "w, n differ" in said


# Kills, full disks


def child(code: str, *args: object, **options) -> subprocess.Popen:
    """A process that runs `code` after the imports that all of these need."""
    head = "import os, signal, sys\nfrom pathlib import Path\nimport jax, jax.numpy as jnp\n"
    head += "from umup.run.checkpoint import Checkpoints\n"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | options.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + code, *map(str, args)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_killed_while_writing(tmp_path: Path) -> None:
    killed = child(
        "c = Checkpoints(Path(sys.argv[1]), sys.argv[2])\n"
        "x = jax.random.normal(jax.random.key(0), (1000, 4000))\n"
        "c.save(1, {'x': x}, {}); c.save(2, {'x': x + 1}, {})\n"
        "print(float(x[0, 0]), flush=True); os.kill(os.getpid(), signal.SIGKILL)",
        tmp_path,
        KEY,
    )
    out, err = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL and err == ""
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()  # and one killed surely before its end
    (tmp_path / "7.orbax-checkpoint-tmp" / "meta").write_text("half")
    (tmp_path / ".dropped" / "0").mkdir(parents=True)  # and one killed while it deleted
    like = {"x": jax.ShapeDtypeStruct((1000, 4000), jnp.float32)}
    with Checkpoints(tmp_path, KEY) as checkpoints:
        assert checkpoints.steps() in ([1], [1, 2])
        step, state, _ = checkpoints.restore(like)
        assert float(state["x"][0, 0]) == pytest.approx(float(out) + (step - 1), rel=1e-6)
        checkpoints.save(7, state, {})
    assert sorted(os.listdir(tmp_path)) == [*map(str, range(1, step + 1)), "7"]


def test_a_full_disk_leaves_the_earlier_one(saved: Path, caplog, capfd) -> None:
    big = {"x": jax.random.normal(jax.random.key(0), (1000, 1000))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    caplog.set_level(logging.DEBUG)
    checkpoints = Checkpoints(saved, KEY, keep=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # of the 4 MB
    try:
        with pytest.raises(CheckpointError, match=r"write failed: .*resumes from step 4"):
            checkpoints.save(6, big, {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.steps() == [2, 4]
    assert same(checkpoints.restore(shapes(small(4))).state, small(4))
    checkpoints.save(6, big, {})  # with space again
    checkpoints.close()
    assert sorted(n for n in os.listdir(saved) if n.isdigit()) == ["4", "6"]
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert not [r for r in errors if "orbax" in r.pathname]
    assert capfd.readouterr() == ("", "")


def settings_of_the_process() -> tuple:
    absl = logging.getLogger("absl")
    return sys.unraisablehook, asyncio.get_event_loop_policy(), list(absl.filters), absl.level


def test_importing_and_failing_leave_the_process_as_it_was(saved: Path) -> None:
    before = settings_of_the_process()
    (saved / "4" / "state" / "manifest.ocdbt").write_bytes(b"")
    big = {"x": jax.random.normal(jax.random.key(0), (1000, 1000))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(saved, KEY) as checkpoints:
        assert settings_of_the_process() == before
        with pytest.raises(CheckpointError):
            checkpoints.restore(shapes(small(4)))
        assert settings_of_the_process() == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        try:
            checkpoints.save(6, big, {})
            assert settings_of_the_process() != before  # its threads are at work
            with Checkpoints(saved, KEY, read_only=True) as others:  # one in the other's time
                assert others.restore(shapes(small(2)), 2).step == 2
            with pytest.raises(CheckpointError):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert settings_of_the_process() == before
    code = "absl = __import__('logging').getLogger('absl')\n"
    code += "print(absl.filters, sys.unraisablehook is sys.__unraisablehook__)"
    out, err = child(code).communicate(timeout=60)
    assert (out, err) == ("[] True\n", "")


@pytest.mark.parametrize("failing", ["read", "write"])
def test_no_task_of_orbax_outlives_a_failure(tmp_path: Path, monkeypatch, failing: str) -> None:
    """Of many arrays one fails; the others must not complain when they are collected."""
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    many = {f"x{i}": jax.random.normal(jax.random.key(i), (300, 300)) for i in range(8)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, KEY) as checkpoints:
        if failing == "read":
            checkpoints.save(1, many, {})
            checkpoints.wait()
            data = max((tmp_path / "1").rglob("*"), key=lambda path: path.stat().st_size)
            data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
            with pytest.raises(CheckpointError, match="damaged"):
                checkpoints.restore(shapes(many))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
            try:
                with pytest.raises(CheckpointError, match="write failed"):
                    checkpoints.save(1, many, {})
                    checkpoints.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gc.collect()
    assert complaints == []


def test_a_failed_write_is_raised_on_leaving_unless_another_error_is(saved: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"x": jax.random.normal(jax.random.key(0), (1000, 1000))}
    for own, wanted in ((None, CheckpointError), (KeyError("first"), KeyError)):
        try:
            with pytest.raises(wanted), Checkpoints(saved, KEY) as checkpoints:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
                checkpoints.save(6, big, {})
                if own is not None:
                    raise own
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Other readers and other processes


def test_read_only_leaves_a_running_run_alone(saved: Path, tmp_path: Path) -> None:
    (saved / "6.orbax-checkpoint-tmp").mkdir()  # being written by the run itself
    before = sorted(os.listdir(saved))
    with Checkpoints(saved, KEY, read_only=True) as checkpoints:
        assert checkpoints.restore(shapes(small(0)), 2).host == {"batch": 2}
        for write in (lambda: checkpoints.save(8, small(8), {}), lambda: checkpoints.drop_after(2)):
            with pytest.raises(CheckpointError, match="read-only"):
                write()
    assert sorted(os.listdir(saved)) == before
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Checkpoints(tmp_path / "nowhere", KEY, read_only=True)
    assert not (tmp_path / "nowhere").exists()


TWO = """
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)
put = jax.jit(lambda: {"w": jnp.arange(64.0).reshape(8, 8), "n": jnp.int32(3)},
              out_shardings={"w": NamedSharding(mesh, P("data", "fsdp")),
                             "n": NamedSharding(mesh, P())})
with Checkpoints(Path(sys.argv[3]), sys.argv[4], keep=1) as c:
    for step in (1, 2, 3):
        c.save(step, put(), {"batch": step})
    to = {"w": NamedSharding(mesh, P(None, ("fsdp", "data"))), "n": NamedSharding(mesh, P())}
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), put(), to)
    step, state, host = c.restore(like)
    w = state["w"]
    print(step, host, c.steps(), float(w.sum()), w.addressable_shards[0].data.shape)
    try:
        c.restore(like, 2)
    except ValueError as error:
        print(error)
"""


def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    outer = os.environ.get("XLA_FLAGS", "")
    flags = {"XLA_FLAGS": f"{outer} --xla_force_host_platform_device_count=2"}
    pair = [child(TWO, address, i, tmp_path, KEY, env=flags) for i in range(2)]
    try:
        ends = [process.communicate(timeout=60) for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], ends
    line = "3 {'batch': 3} [3] 2016.0 (8, 2)\nstep: received 2; allowed: a checkpoint's: 3\n"
    assert [out[-len(line) :] for out, _ in ends] == [line, line]  # after what Gloo says
    like = {"w": jnp.zeros((8, 8)), "n": jnp.int32(0)}
    with Checkpoints(tmp_path, KEY) as checkpoints:  # and one process reads it
        assert (checkpoints.restore(shapes(like)).state["w"].ravel() == jnp.arange(64.0)).all()
