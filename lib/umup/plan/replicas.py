"""Which mesh axes a collective's groups of devices lie along, from its HLO attributes.

XLA writes groups as a list, as a reshaped and transposed range of devices, or as axes of its own
mesh. Devices are numbered row-major over our mesh, the last axis fastest.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping

import numpy as np

_COUNT = r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?"
_COUNTED = re.compile(rf"replica_groups={_COUNT}")
_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[.*?\](?:T\(.*?\))?|[\d,]+)\))? \{(.*?)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def axes_of(attributes: str, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes along which a collective's groups lie, and the devices in a group.

    Args:
        attributes: holds ``replica_groups=``, or ``source_target_pairs=`` of a permutation, whose
            axes are those along which anything moves.
        mesh: axis → size.

    Returns:
        () as axes if groups have one device, or do not lie along whole axes.

    Raises:
        IndexError: the groups contain devices that the mesh does not have.
    """
    if pairs := _PAIRS.search(attributes):
        return _moved(np.array(_numbers(pairs[1])).reshape(-1, 2), mesh)
    start = attributes.find("replica_groups=")
    made = _groups(attributes[start:] if start >= 0 else "", math.prod(mesh.values()))
    return _along(made.tobytes(), made.shape, tuple(mesh.items()))


def _moved(pairs: np.ndarray, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The axes along which sources and targets differ, and the product of their sizes."""
    if pairs.size and pairs.max() >= math.prod(mesh.values()):
        raise IndexError(pairs)
    where = np.unravel_index(pairs, tuple(mesh.values()))
    moves = ((at[:, 0] != at[:, 1]).any() for at in where)
    axes = tuple(itertools.compress(mesh, moves))
    return axes, math.prod(mesh[axis] for axis in axes)


def _groups(attributes: str, devices: int) -> np.ndarray:
    """(groups, devices in a group), each rising, in the order of their first device."""
    if found := _COUNTED.match(attributes):
        made = _counted(*found.groups())
    elif found := _MESH.match(attributes):
        made = _of_mesh(*found.groups())
    else:
        listed = _LISTED.match(attributes)
        numbers = _numbers(listed[1]) if listed else []
        made = np.array(numbers or range(devices))
        made = made.reshape(listed[1].count("{") if listed and numbers else 1, -1)
    if made.size != devices or (np.sort(made, axis=None) != np.arange(devices)).any():
        raise IndexError(attributes)
    made = np.sort(made, axis=1)
    return made[made[:, 0].argsort()]


def _counted(shape: str, source: str | None, order: str | None) -> np.ndarray:
    """``[8,64]<=[64,8]T(1,0)``: devices counted in one shape, transposed, in another shape."""
    counted = np.arange(math.prod(_numbers(shape))).reshape(_numbers(source or shape))
    counted = counted.transpose(_numbers(order)) if order else counted
    return counted.reshape(_numbers(shape)) if source else counted


def _of_mesh(mesh: str, devices: str | None, axes: str) -> np.ndarray:
    """``mesh['a'=8,'b'=64], device_ids=([64,8]T(1,0)) {'a'}``: groups along axes of XLA's mesh.

    ``'b':(2)4`` is the part of size 4 of an axis that follows its first part of size 2.
    """
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    used: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    for name, before, size in _AXIS.findall(axes):
        first = int(before or 1)
        used[name].append((first, first * int(size or sizes[name])))
    shape, grouped = [], []
    for name, size in sizes.items():
        cuts = sorted({1, size}.union(*used[name]))
        for low, high in itertools.pairwise(cuts):
            grouped.append(any(a <= low < b for a, b in used[name]))
            shape.append(high // low)
    if devices is None:
        numbers = np.arange(math.prod(shape))
    elif found := re.fullmatch(_COUNT, devices):
        numbers = _counted(*found.groups())
    else:
        numbers = np.array(_numbers(devices))
    inner = [i for i, inside in enumerate(grouped) if inside]
    group = math.prod(shape[i] for i in inner)
    at_the_end = range(-len(inner), 0)
    return np.moveaxis(numbers.reshape(shape), inner, at_the_end).reshape(-1, group)


@functools.lru_cache(maxsize=256)
def _along(
    groups: bytes, shape: tuple[int, int], mesh: tuple[tuple[str, int], ...]
) -> tuple[tuple[str, ...], int]:
    """The fewest axes whose devices are these groups."""
    names, sizes = [name for name, _ in mesh], [size for _, size in mesh]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    wide = [i for i, size in enumerate(sizes) if size > 1]
    for n in range(1, len(wide) + 1):
        for at in itertools.combinations(wide, n):
            group = math.prod(sizes[i] for i in at)
            along = np.moveaxis(grid, at, range(-n, 0)).reshape(-1, group)
            if along.shape == shape and along[along[:, 0].argsort()].tobytes() == groups:
                return tuple(names[i] for i in at), group
    return (), shape[1]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
