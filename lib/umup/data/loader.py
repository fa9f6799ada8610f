"""Batches of a corpus that does not fit the device: read by the host, one chunk ahead.

The windows are those of ``data.batch``, with the same values in the same order, so that a run may
switch between device-resident and host-fed tokens without a change of its trajectory.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from umup.errors import DataError
from umup.sampling import n_windows, permute_on_host


class HostWindows:
    """Windows of ``seq_len + 1`` tokens by batch index, gathered by the host.

    Args:
        tokens: 1-D stream of uint16 or uint32; of a memory map, only the parts needed are read. It
            may hold more tokens than a device could index, up to 2³¹ windows.
        seed: the run's seed.
        batch_size: windows per batch, B.
        seq_len: tokens per window less one, T.
        sharding: of the result (n, B, T + 1); each process then reads its own rows only. Without
            one, the result is on the default device.

    Raises:
        DataError: ``tokens`` is not such a stream, or shorter than one window.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        seed: int,
        *,
        batch_size: int,
        seq_len: int,
        sharding: NamedSharding | None = None,
    ):
        if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
            received = f"{tokens.dtype} of shape {tokens.shape}"
            raise DataError("tokens", received, "a 1-D stream of uint16 or uint32")
        self._n = n_windows(tokens.size, seq_len, on_host=True)
        # Row i is window i, a view: indexing it by rows copies these rows and reads no others.
        views = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), seq_len + 1)
        self._windows = views[::seq_len]
        self._seed, self._batch_size, self._sharding = seed, batch_size, sharding
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="umup-windows")
        self._ahead: tuple[tuple[int, int], Future[Array]] | None = None

    def windows(self, first: int, n: int) -> Array:
        """The windows of batch indices ``first`` … ``first + n − 1``.

        Returns:
            (n, B, T + 1) of the tokens' dtype: inputs are ``[..., :-1]``, targets ``[..., 1:]``.

        Raises:
            DataError: ``first`` < 0, ``n`` < 1, or sample numbers that leave uint32.
            OSError: the corpus cannot be read, now or in a ``prefetch`` of these windows.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self._read(first, n)
        asked, future = ahead
        if asked == (first, n):
            return future.result()
        future.cancel()  # a roll back or the end of a chunk came between
        return self._read(first, n)

    def prefetch(self, first: int, n: int) -> None:
        """Read these windows in the background for the next ``windows(first, n)``.

        Only one chunk is kept ready: a second ``prefetch`` discards the first.
        """
        if self._ahead is not None:
            if self._ahead[0] == (first, n):
                return
            self._ahead[1].cancel()
        self._ahead = (first, n), self._thread.submit(self._read, first, n)

    def close(self) -> None:
        """End the background thread after its current read; no ``prefetch`` may follow."""
        self._ahead = None
        self._thread.shutdown(cancel_futures=True)

    def _read(self, first: int, n: int) -> Array:
        if first < 0 or n < 1:
            allowed = "a first batch of at least 0 and at least 1 batch"
            raise DataError("batches", (first, n), allowed)
        if (first + n) * self._batch_size > 2**32:
            allowed = f"at most {2**32 // self._batch_size} batches of {self._batch_size} windows"
            raise DataError("batches", first + n, allowed)
        if self._sharding is None:
            return jax.device_put(self._gather(range(first, first + n), range(self._batch_size)))
        read: dict[tuple[range, range], np.ndarray] = {}  # once, however many replicas there are

        def rows(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # never passed, though its type allows it
            batches = range(first, first + n)[index[0]]
            key = batches, range(self._batch_size)[index[1]]
            if key not in read:
                read[key] = self._gather(*key)
            return read[key][..., index[2]]

        shape = (n, self._batch_size, self._windows.shape[1])
        return jax.make_array_from_callback(shape, self._sharding, rows, self._windows.dtype)

    def _gather(self, batches: Iterable[int], lanes: Iterable[int]) -> np.ndarray:
        """(batches, lanes, T + 1): these lanes of these batches."""
        batch, lane = np.ix_(np.fromiter(batches, np.int64), np.fromiter(lanes, np.int64))
        sample = batch * self._batch_size + lane
        window = permute_on_host(sample % self._n, self._n, self._seed, sample // self._n)
        return self._windows[window]
