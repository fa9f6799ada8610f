"""The host's windows are the device's batches, whatever feeds them and however they are spread."""

from __future__ import annotations

import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from umup import data, sampling
from umup.data.loader import HostWindows
from umup.errors import DataError

SIZE, SEQ_LEN, BATCH, SEED = 1000, 12, 8, 5  # 83 windows: batches 10 and 20 straddle epochs


def stream(dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, SIZE).astype(dtype)


def loader(tokens: np.ndarray, sharding: NamedSharding | None = None) -> HostWindows:
    return HostWindows(tokens, SEED, batch_size=BATCH, seq_len=SEQ_LEN, sharding=sharding)


def expected(tokens: np.ndarray, first: int, n: int) -> np.ndarray:
    def whole(index):
        ids, targets = data.batch(tokens, SEED, index, batch_size=BATCH, seq_len=SEQ_LEN)
        return jnp.concatenate([ids, targets[:, -1:]], axis=1)

    return np.asarray(jax.vmap(whole)(jnp.arange(first, first + n)))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize(("first", "n"), [(0, 1), (8, 4), (19, 25), (2**29 - 2, 2)])
def test_windows_are_the_batches_of_the_device(dtype: type, first: int, n: int):
    tokens = stream(dtype)
    windows = loader(tokens).windows(first, n)
    assert windows.shape == (n, BATCH, SEQ_LEN + 1) and windows.dtype == dtype
    assert np.array_equal(windows, expected(tokens, first, n))


def test_a_memory_map_serves_as_an_array_does(tmp_path: Path):
    np.save(tmp_path / "tokens.npy", stream())
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    assert np.array_equal(loader(tokens).windows(3, 9), expected(stream(), 3, 9))


def test_streams_beyond_the_indices_of_a_device(tmp_path: Path):
    size = 2**31 + 7  # a sparse file
    tokens = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.uint16, (size,))
    tokens[-1000:] = np.arange(1000)
    with pytest.raises(DataError, match=r"tokens: received 2147483655; allowed: fewer than 2\*\*3"):
        data.n_windows(size, 2**20)
    host = HostWindows(tokens, 0, batch_size=1, seq_len=2**20)
    order = sampling.permute_on_host(np.arange(2048), 2048, 0, 0)
    (last,) = np.flatnonzero(order == 2047)
    # It starts at 2047 · 2²⁰ and holds all but the last 6 of the thousand.
    assert np.array_equal(host.windows(int(last), 1)[0, 0, -995:], [0, *range(994)])


@pytest.mark.parametrize(
    "spec", [(None, ("data", "fsdp")), (None, "data"), (None, "fsdp", None), (), ("fsdp", "data")]
)
def test_each_shard_reads_its_own_rows_only(spec: tuple, monkeypatch: pytest.MonkeyPatch):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    host = loader(stream(), sharding)
    real, read = host._gather, []

    def gather(batches, lanes):
        read.append(len(batches) * len(lanes))
        return real(batches, lanes)

    monkeypatch.setattr(host, "_gather", gather)
    windows = host.windows(8, 6)
    assert windows.sharding == sharding
    assert np.array_equal(windows, expected(stream(), 8, 6))
    assert sum(read) == 6 * BATCH  # replicas share what was read
    shards = {tuple(map(str, s.index)) for s in windows.addressable_shards}
    assert len(read) == len(shards)


def test_what_was_prefetched_is_not_read_again(monkeypatch: pytest.MonkeyPatch):
    host, where = loader(stream()), []
    real = host._read

    def read(first: int, n: int):
        where.append((first, n, threading.current_thread() is threading.main_thread()))
        return real(first, n)

    monkeypatch.setattr(host, "_read", read)
    host.prefetch(4, 2)
    host.prefetch(4, 2)
    assert np.array_equal(host.windows(4, 2), expected(stream(), 4, 2))
    assert where == [(4, 2, False)]
    host.prefetch(6, 2)  # not what is asked for next
    assert np.array_equal(host.windows(2, 3), expected(stream(), 2, 3))
    assert (2, 3, True) in where
    assert np.array_equal(host.windows(6, 2), expected(stream(), 6, 2))
    assert where[-1] == (6, 2, True)
    host.prefetch(0, 1)
    host.prefetch(1, 1)
    assert np.array_equal(host.windows(1, 1), expected(stream(), 1, 1))
    assert where[-1] == (1, 1, False)


def test_an_error_of_the_thread_is_raised_where_its_windows_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    host = loader(stream())

    def broken(batches, lanes):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(host, "_gather", broken)
        host.prefetch(0, 1)
        with pytest.raises(OSError, match="the disk is gone"):
            host.windows(0, 1)
    assert np.array_equal(host.windows(0, 1), expected(stream(), 0, 1))


def test_close_ends_the_thread():
    def ours() -> set[threading.Thread]:  # other tests' may end at any moment
        return {t for t in threading.enumerate() if t.name.startswith("umup-windows")}

    before, host = ours(), loader(stream())
    host.prefetch(0, 3)
    (its,) = ours() - before
    host.close()
    assert not its.is_alive()


def test_bad_input_is_named():
    for tokens in (np.zeros((2, 9), np.uint16), np.zeros(99, np.int64)):
        with pytest.raises(DataError, match=r"tokens: received .*1-D stream of uint16 or uint32"):
            loader(tokens)
    with pytest.raises(DataError, match="seq_len: received 12; allowed: at most 11"):
        loader(np.zeros(12, np.uint16))
    host = loader(stream())
    for first, n in ((-1, 2), (0, 0)):
        with pytest.raises(DataError, match="batches: received"):
            host.windows(first, n)
    with pytest.raises(DataError, match="received 536870913; allowed: at most 536870912 batches"):
        host.windows(2**29, 1)
