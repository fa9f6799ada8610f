"""Checkpoints of one run: written in the background, checked when read, independent of the mesh.

Orbax writes and reads the arrays. A checkpoint is one folder that is renamed into place when it is
complete, so that a killed run leaves no partial one. Beside the arrays lies a JSON description: the
run, its numerics version, and the shape, dtype and checksum of every array by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

from umup.config import NUMERICS
from umup.errors import CheckpointError
from umup.run.orbax_tidied import orbax_tidied

FORMAT = 1
"""Version of what a checkpoint's folder holds; a reader refuses newer ones."""

# Old checkpoints are moved here, which is atomic, and then deleted, which is not: killed half-way
# through, a run would find one that looks whole and is not.
_DROPPED = ".dropped"


class Restored(NamedTuple):
    """A checkpoint as read.

    Attributes:
        step: updates done when it was saved.
        state: the arrays, in the tree and with the shardings requested.
        host: the plain data saved beside the arrays.
    """

    step: int
    state: Any
    host: dict


class Checkpoints:
    """The checkpoints of one run in a folder. Every process of a run makes the same calls.

    Args:
        folder: of the checkpoints, one sub-folder per step.
        run_key: identifies the run; a folder with checkpoints of another run is refused.
        keep: number of latest checkpoints to keep.
        keep_every: checkpoints at multiples of it are kept permanently (0: none).
        read_only: never write to or clean up the folder, which is another run's, to fork from.

    Raises:
        CheckpointError: the folder cannot be made, or holds another run's checkpoints or those of
            a newer umup or of other numerics.
    """

    def __init__(
        self,
        folder: Path,
        run_key: str,
        *,
        keep: int = 3,
        keep_every: int = 0,
        read_only: bool = False,
    ):
        for name, value, least in (("keep", keep, 1), ("keep_every", keep_every, 0)):
            if value < least:
                raise CheckpointError(name, value, f"at least {least}")
        self.folder = Path(folder).absolute()
        self.run_key, self.read_only = run_key, read_only
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(str(self.folder), "a file", "a folder, or a name not in use")
        if read_only and not self.folder.is_dir():
            raise self._nothing()
        self._in_flight = contextlib.ExitStack()  # a write that goes on after `save`
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=_DROPPED,
            save_root_metadata=False,
            lightweight_initialize=True,
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers
            )
        try:
            for step in self.steps():
                with contextlib.suppress(_Unreadable):  # `restore` says so, where it is wanted
                    self._description(step)
        except CheckpointError:
            self._manager.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        # An exception under way says more than what a failed write would add to it.
        with contextlib.suppress(CheckpointError) if kind else contextlib.nullcontext():
            self.close()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; waits for one that is being written."""
        self.wait()
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, host: dict) -> None:
        """Start writing a checkpoint; returns when the state's buffers may be reused.

        A run has one history: checkpoints at ``step`` and later, which precede a roll back, are
        deleted.

        Args:
            step: updates done.
            state: any tree of arrays (no PRNG keys, none of size 0), sharded in any way.
            host: plain JSON data: lists, not tuples, and strings as keys.

        Raises:
            CheckpointError: ``host`` is not plain, or this write or the one before failed.
        """
        self._refuse_read_only()
        if odd := _odd(host, "host"):
            raise CheckpointError(*odd, "plain JSON data: lists, and strings as keys")
        self.drop_after(step - 1)
        leaves = _named(state)
        meta = {
            "format": FORMAT,
            "numerics": NUMERICS,
            "run_key": self.run_key,
            "step": step,
            "leaves": _describe(leaves),
            "host": host,
        }
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(leaves),
            meta=ocp.args.JsonSave(meta | {"digest": _digest(meta)}),
        )
        self._in_flight.enter_context(orbax_tidied())
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            CheckpointError: the last write failed; earlier checkpoints are intact.
        """
        with self._in_flight, self._writing():
            self._manager.wait_until_finished()
            if jax.process_index() == 0 and not self.read_only:
                shutil.rmtree(self.folder / _DROPPED, ignore_errors=True)

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints later than ``step``, as a roll back discards them."""
        self._refuse_read_only()
        for later in (s for s in self.steps() if s > step):
            with self._writing():
                self._manager.delete(later)

    def restore(self, like: Any, step: int | None = None) -> Restored:
        """Read a checkpoint and check it against its checksums.

        Args:
            like: the state's tree with ``jax.ShapeDtypeStruct`` or arrays as leaves; each leaf is
                read into its ``sharding`` (none: the default device), whatever it was saved with.
            step: of the checkpoint; by default the latest. No other is ever read instead.

        Raises:
            CheckpointError: there is none, or none at ``step``; it is damaged, of another run, of
                other numerics, or of a newer umup; or its arrays differ from those of ``like``.
        """
        steps = self.steps()
        if not steps:
            raise self._nothing()
        if step is None:
            step = steps[-1]
        elif step not in steps:
            raise CheckpointError("step", step, f"a checkpoint's: {', '.join(map(str, steps))}")
        meta = self._description(step)
        wanted = _named(like)
        _check_fit(meta["leaves"], wanted)
        default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        read_as = {
            name: ocp.ArrayRestoreArgs(sharding=leaf.sharding or default, dtype=leaf.dtype)
            for name, leaf in wanted.items()
        }
        arrays = self._read(step, state=ocp.args.PyTreeRestore(wanted, restore_args=read_as))
        found = _describe(arrays)
        if changed := [name for name in wanted if found[name] != meta["leaves"][name]]:
            raise self._unreadable(step, f"damaged: {_some(changed)} differ from their checksums")
        state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
        return Restored(step, state, meta["host"])

    def close(self) -> None:
        """Wait for the last write and let go of the folder. Raises as ``wait`` does."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _refuse_read_only(self) -> None:
        if self.read_only:
            raise CheckpointError(str(self.folder), "a write", "reading: it was opened read-only")

    def _description(self, step: int) -> dict:
        """The checked JSON description of a checkpoint."""
        path = self.folder / str(step)
        if not (path / "meta").is_dir() or not (path / "state").is_dir():
            raise self._unreadable(step, "not a checkpoint of umup: no state or no description")
        meta = self._read(step, meta=ocp.args.JsonRestore())
        # The version comes first: what a newer one holds is not known here.
        if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
            raise self._unreadable(step, "not a checkpoint of umup: no format in its description")
        if meta["format"] > FORMAT:
            received = f"format {meta['format']}, written by a newer umup"
            raise CheckpointError(str(path), received, f"format {FORMAT}; install that umup")
        if meta.pop("digest", None) != _digest(meta):
            raise self._unreadable(step, "damaged: its description differs from its digest")
        if meta["step"] != step:
            raise self._unreadable(step, f"the checkpoint of step {meta['step']}, renamed")
        if meta["numerics"] != NUMERICS:
            received = f"numerics {meta['numerics']}"
            allowed = f"numerics {NUMERICS}, this umup's; start the run anew in another folder"
            raise CheckpointError(str(path), received, allowed)
        if meta["run_key"] != self.run_key:
            received = f"a checkpoint of another run, {meta['run_key']}"
            allowed = f"one of this run, {self.run_key}; choose another folder, or the "
            raise CheckpointError(str(path), received, allowed + "configuration that wrote it")
        return meta

    def _read(self, step: int, **item: Any) -> Any:
        """One item of a checkpoint; any problem with its files raises `_Unreadable`."""
        ((name, args),) = item.items()
        try:
            with orbax_tidied():
                return self._manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]
        except Exception as error:
            raise self._unreadable(step, f"damaged: {_one_line(error)}") from None

    def _unreadable(self, step: int, why: str) -> _Unreadable:
        """The error for a checkpoint that cannot be used; it names those that can."""
        older = [s for s in self.steps() if s < step]
        allowed = "an undamaged checkpoint"
        if older:
            listed = ", ".join(map(str, older))
            allowed += f"; older: {listed}; `--from {older[-1]}` goes on from the latest of these"
        return _Unreadable(str(self.folder / str(step)), why, allowed)

    def _nothing(self) -> CheckpointError:
        return CheckpointError(
            str(self.folder), "no checkpoint", "a folder that a run has written a checkpoint to"
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a failed write into a CheckpointError."""
        try:
            with orbax_tidied():
                yield
        except Exception as error:
            intact = "a writable folder with space; then the same command resumes"
            if hasattr(self, "_manager"):
                self._manager.reload()  # it took old ones for deleted when the write began
                steps = self._manager.all_steps()
                intact += f" from step {max(steps)}" if steps else ""
            received = f"write failed: {_one_line(error)}"
            raise CheckpointError(str(self.folder), received, intact) from error


class _Unreadable(CheckpointError):
    """A checkpoint whose files are damaged or not umup's."""


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their place in the tree: ``params/blocks/attn/qkv``, ``opt/0/count``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    names = [name.removesuffix("/value") for name in names]  # of an nnx variable
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise CheckpointError("state", f"leaves of one name: {_some(twice)}", "a name for each")
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _describe(leaves: dict[str, Array]) -> dict[str, dict]:
    """Shape, dtype and checksum of every array."""
    sums = jax.device_get([checksum(leaf) for leaf in leaves.values()])
    return {
        name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "sum": f"{a:08x}{b:08x}"}
        for (name, leaf), (a, b) in zip(leaves.items(), sums, strict=True)
    }


def _check_fit(saved: dict[str, dict], wanted: dict[str, Any]) -> None:
    """Refuse a checkpoint whose arrays differ from the wanted in name, shape or dtype."""
    faults = []
    if missing := sorted(wanted.keys() - saved.keys()):
        faults.append(f"a checkpoint without {_some(missing)}")
    if more := sorted(saved.keys() - wanted.keys()):
        faults.append(f"a checkpoint with {_some(more)} besides")
    for name in sorted(wanted.keys() & saved.keys()):
        there = f"{saved[name]['dtype']}{saved[name]['shape']}"
        here = f"{wanted[name].dtype.name}{list(wanted[name].shape)}"
        if there != here:
            faults.append(f"{name} as {there} instead of {here}")
    if faults:
        allowed = "the state of this configuration; restore with the one that wrote it"
        raise CheckpointError("state", _some(faults, "; "), allowed)


@jax.jit
def checksum(x: Array) -> Array:
    """Two 32-bit sums over an array's elements, each mixed with its position.

    Integer sums modulo 2³² are exact in any order, so that the value does not depend on how the
    array is sharded. A single changed element always changes the first sum, since the mixing is
    a bijection (the finalizer of MurmurHash3 by A. Appleby).

    Args:
        x: an array of any shape; elements of 1, 2, 4 or 8 bytes.

    Returns:
        uint32 (2,).
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = min(x.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * width}").astype(jnp.uint32)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place, stride = place + along * np.uint32(stride % 2**32), stride * bits.shape[axis]
    first = _mix(bits + place * np.uint32(0x9E3779B9))
    second = _mix(first ^ (place * np.uint32(0xC2B2AE3D) + np.uint32(0x27D4EB2F)))
    return jnp.stack([jnp.sum(sums, dtype=jnp.uint32) for sums in (first, second)])


def _mix(h: Array) -> Array:
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _digest(meta: dict) -> str:
    """Digest of the description; not ``checked.digest``, since the host's numbers may be NaN."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _odd(value: Any, name: str) -> tuple[str, object] | None:
    """Name and value of data that does not survive a JSON round trip; None if all does."""
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            return f"a key of {name}", odd[0]
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        plain = value is None or type(value) in (bool, int, float, str)
        return None if plain else (name, value)
    return next(filter(None, (_odd(item, f"{name}.{key}") for key, item in items)), None)


def _some(items: list[str], separator: str = ", ") -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return separator.join(items[:4]) + more


def _one_line(error: BaseException) -> str:
    """An exception's message without the traces that follow it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:297] + "..."
