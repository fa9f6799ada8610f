"""Roles and fans of the parameters of any Flax NNX model, read from the layers that hold them.

The number of axes of a parameter does not say what it is: a gain of stacked layers has two, like a
matrix, and the kernel of attention heads has three. A Flax layer knows the shape of its parameters
in a single layer; any further axes stack layers. A parameter outside such a layer must be marked
by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax import nnx

from umup.errors import ConfigError
from umup.schemes import ROLES

_NORMS = (nnx.LayerNorm, nnx.RMSNorm, nnx.BatchNorm, nnx.InstanceNorm)


class Fans(NamedTuple):
    """A parameter of a single layer: its shape before stacking, its fans, and its kind."""

    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    vector: bool = False


def mark(
    part: nnx.Module | nnx.Variable,
    role: str,
    *,
    residual: bool = False,
    fan_in: int | None = None,
    fan_out: int | None = None,
    replace: bool = False,
) -> None:
    """Mark the parameters of any Flax NNX module with the metadata that ``lr_factors`` reads.

    Matrices get ``role``, with the fans that their layer declares, however many axes stack layers
    (``nnx.vmap``) and wherever: input axes and the taps of a convolution count as fan-in, output
    axes such as heads as fan-out. Biases, gains and depthwise kernels are ``input`` in any layer,
    with a fan-in that does not grow: a bias is the weight of a constant 1 and a gain that of one
    feature (Tensor Programs V, arXiv 2203.03466, Appendix B). η̂_emb does not apply to them.

    A parameter passed by itself gets the given role. With up to two axes its shape is
    (fan_in, fan_out) or (fan_out,); with more axes, or if axes stack layers, pass its fans.

    Args:
        part: a layer, a whole module, or one parameter.
        role: ``input`` (fan_in fixed, fan_out grows), ``hidden`` (both grow) or ``output``.
        residual: True if it lies on a residual branch.
        fan_in, fan_out: of one matrix, for a parameter passed by itself.
        replace: True to change the marks of a parameter that is already marked differently.

    Raises:
        ConfigError: unknown role; nothing to mark; a parameter that may be a matrix or a vector;
            an ``nnx.Embed`` with a role other than ``input``; or a parameter, perhaps shared by two
            layers, that is already marked differently. Nothing is marked in these cases.
    """
    if role not in ROLES:
        raise ConfigError("role", role, " | ".join(ROLES))
    if isinstance(part, nnx.Variable):
        found = [("part", part, _alone(part, fan_in, fan_out))]
    elif fan_in is not None or fan_out is not None:
        raise ConfigError("fan_in, fan_out", (fan_in, fan_out), "None, unless part is a parameter")
    else:
        found = list(_read(part, role))
    if not found:
        raise ConfigError("part", type(part).__name__, "a module with parameters")
    new: dict[int, dict[str, Any]] = {}
    for name, param, fans in found:
        marks = {
            "role": role,
            "fan_in": fans.fan_in,
            "fan_out": fans.fan_out,
            "residual": residual,
            "vector": "",
        }
        if fans.vector:
            marks |= {"role": "input", "vector": "fixed" if role == "output" else "input"}
        shared = new.setdefault(id(param), marks)
        _check_once(name, marks, shared, "two layers share it, of different fans or roles")
        if not replace:
            todo = "if no two layers share it, replace=True marks it anew"
            _check_once(name, marks, param.get_metadata(), todo)
    for _, param, _ in found:
        param.set_metadata(**new[id(param)])


def _check_once(name: str, marks: dict[str, Any], before: Mapping[str, Any], todo: str) -> None:
    """Raise ConfigError if a parameter is already marked differently."""
    # Metadata set by hand need not have every field.
    other = [f for f in marks if "role" in before and before.get(f, marks[f]) != marks[f]]
    if other:
        new, old = (", ".join(f"{f}={m[f]!r}" for f in other) for m in (marks, before))
        raise ConfigError(f"marks of {name}", new, f"{old}, as this parameter is marked; {todo}")


def _alone(param: nnx.Variable, fan_in: int | None, fan_out: int | None) -> Fans:
    shape = tuple(param.shape)
    if fan_in is None and fan_out is None and len(shape) <= 2:
        fan_out = shape[-1] if shape else 1
        fan_in = math.prod(shape) // max(fan_out, 1)
    allowed = "both fans of one matrix, fan_in=… and fan_out=…, whose product divides the size"
    if fan_in is None or fan_out is None or fan_in < 1 or fan_out < 1:
        raise ConfigError("fan_in, fan_out", (fan_in, fan_out), f"{allowed} of shape {shape}")
    if math.prod(shape) % (fan_in * fan_out):
        raise ConfigError("fan_in, fan_out", (fan_in, fan_out), f"{allowed} of shape {shape}")
    return Fans(shape, fan_in, fan_out)


def _read(part: nnx.Module, role: str) -> Iterator[tuple[str, nnx.Variable, Fans]]:
    """Name, parameter and fans of all parameters; a shared one once per layer that holds it."""
    held, holders = [], set()
    everything = list(nnx.iter_graph(part))
    for path, layer in everything:
        if isinstance(layer, nnx.Module):
            for name, value in vars(layer).items():
                if isinstance(value, nnx.Param):
                    held.append(((*path, name), value, _fans(layer, name)))
                    holders.add(id(value))
    held += [
        (path, p, None)
        for path, p in everything
        if isinstance(p, nnx.Param) and id(p) not in holders
    ]
    stacked = any(fans and len(param.shape) > len(fans.shape) for _, param, fans in held)
    for path, param, fans in held:
        name, shape = ".".join(map(str, path)), tuple(param.shape)
        before = param.get_metadata()
        if fans is None and "role" in before:
            fans = Fans((), before["fan_in"], before["fan_out"], bool(before.get("vector")))
        elif fans is None and len(shape) <= (0 if stacked else 1):
            fans = _vector(*shape)
        if fans is None or not _stacks(shape, fans.shape):
            raise ConfigError(
                name,
                f"a parameter of shape {shape}",
                "a parameter of a Flax layer that knows its shape; mark this one alone, with its "
                "role, fan_in=… and fan_out=…",
            )
        if path[-1] == "embedding" and not fans.vector and role != "input":
            raise ConfigError(f"role of {name}", role, "input: a vocabulary does not widen")
        yield name, param, fans


def _stacks(shape: tuple[int, ...], one: tuple[int, ...]) -> bool:
    """True if ``shape`` is ``one`` with any number of further axes, anywhere."""
    axes = iter(shape)
    return all(size in axes for size in one)


def _vector(*shape: int) -> Fans:
    return Fans(shape, 1, math.prod(shape), vector=True)


def _fans(layer: nnx.Module, name: str) -> Fans | None:
    """The fans of parameter ``name`` according to its Flax layer; None if the layer has none."""
    match layer, name:
        case nnx.Linear(), "kernel":
            shape = layer.in_features, layer.out_features
            return Fans(shape, *shape)
        case ((nnx.Linear() | nnx.Conv() | nnx.ConvTranspose()), "bias"):
            return _vector(layer.out_features)
        case nnx.LinearGeneral(), ("kernel" | "bias"):
            batch, outputs = tuple(layer.batch_axis.values()), tuple(layer.out_features)
            if name == "bias":
                return _vector(*outputs)._replace(shape=batch + outputs)
            inputs = tuple(layer.in_features)
            return Fans(batch + inputs + outputs, math.prod(inputs), math.prod(outputs))
        case nnx.Einsum(), ("kernel" | "bias"):
            return _einsum(layer, name)
        case ((nnx.Conv() | nnx.ConvTranspose()), "kernel"):
            return _convolution(layer)
        case nnx.Embed(), "embedding":
            shape = layer.num_embeddings, layer.features
            return Fans(shape, *shape)
        case norm, ("scale" | "bias") if isinstance(norm, _NORMS):
            return _vector(norm.num_features)
        case nnx.GroupNorm(), ("scale" | "bias"):
            return _vector(layer.num_groups * layer.group_size)
        case nnx.PReLU(), "negative_slope":
            return _vector()
    return None


def _einsum(layer: nnx.Einsum, name: str) -> Fans:
    """Fans of an einsum: axes shared with the input alone are fan-in, with the output alone
    fan-out; axes shared with both stack matrices."""
    operands, result = layer.einsum_str.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    size = dict(zip(kernel, layer.kernel_shape, strict=True))
    fan_in = math.prod(n for axis, n in size.items() if axis not in result)
    fan_out = math.prod(n for axis, n in size.items() if axis not in inputs)
    if name == "bias":
        return Fans(tuple(layer.bias_shape or ()), 1, fan_out, vector=True)
    return Fans(tuple(layer.kernel_shape), fan_in, fan_out)


def _convolution(layer: nnx.Conv | nnx.ConvTranspose) -> Fans | None:
    """Taps count as fan-in. A depthwise kernel is a vector, as each channel has its own taps."""
    shape = tuple(layer.kernel_shape)
    fans = Fans(shape, math.prod(shape) // layer.out_features, layer.out_features)
    groups = getattr(layer, "feature_group_count", 1)
    if groups == 1:
        return fans
    # Whether the groups or their size grow with width is not known.
    return fans._replace(vector=True) if groups == layer.in_features else None
