"""Frozen configurations with checked fields: a field's annotation holds its type and range.

A configuration is a frozen dataclass that inherits from ``Config``::

    @dataclass(frozen=True)
    class Shape(Config):
        width: Count = 256
        dtype: Annotated[str, OneOf("float32", "bfloat16")] = "float32"

A bad value raises an error that names the field, what was received and what is allowed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Self

from umup.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Allowed values of a number. ``lo`` is exclusive when ``open_lo``."""

    lo: float = -math.inf
    hi: float = math.inf
    open_lo: bool = False

    def __str__(self) -> str:
        if self.hi == math.inf:
            return f"a finite number {'>' if self.open_lo else '>='} {self.lo:g}"
        return f"a number in {'(' if self.open_lo else '['}{self.lo:g}, {self.hi:g}]"

    def __contains__(self, value: float) -> bool:
        above = value > self.lo if self.open_lo else value >= self.lo
        return above and value <= self.hi and abs(value) < math.inf


class OneOf:
    """Allowed values, listed."""

    def __init__(self, *options: Any):
        self.options = options

    def __repr__(self) -> str:
        return f"OneOf({', '.join(map(repr, self.options))})"

    def __str__(self) -> str:
        return " | ".join(map(str, self.options))

    def __contains__(self, value: Any) -> bool:
        return value in self.options


POSITIVE = Range(0.0, open_lo=True)
COUNT = Range(1)
FRACTION = Range(0.0, 1.0)

Count = Annotated[int, COUNT]
CountOrZero = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Positive = Annotated[float, POSITIVE]
PositiveOrZero = Annotated[float, Range(0.0)]
Fraction = Annotated[float, FRACTION]


def later(default: Any) -> Any:
    """A field added to a configuration after records existed, whose keys must not change."""
    return dataclasses.field(default=default, metadata={"later": True})


_hints = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))
"""A class's annotations, evaluated; evaluating their text takes far longer than all checks."""


def without_range(hint: Any) -> Any:
    """The type in an annotation: ``int | None`` of ``Count | None``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return without_range(args[0])
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(without_range, args))
    if origin is tuple:
        return tuple[tuple(map(without_range, args))]
    return hint


def _range_in(hint: Any) -> Range | OneOf | None:
    """The range in an annotation: that of ``Count`` in ``tuple[Count, ...]``."""
    for part in (*getattr(hint, "__metadata__", ()), *typing.get_args(hint)):
        found = part if isinstance(part, (Range, OneOf)) else _range_in(part)
        if found is not None:
            return found
    return None


def _ranges(cls: type[Config]) -> dict[str, Range | OneOf]:
    """Ranges by field; a field redeclared by a subclass keeps its range unless given another."""
    found: dict[str, Range | OneOf] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Config):
            found |= {name: r for name, hint in _hints(base).items() if (r := _range_in(hint))}
    return found


class _Field(NamedTuple):
    """A field as it is checked: its name, its type and its range (None: any)."""

    name: str
    kind: Any
    allowed: Range | OneOf | None


@functools.cache
def _fields(cls: type[Config]) -> tuple[_Field, ...]:
    """The fields of a class, worked out once: a sweep makes thousands of configurations."""
    hints, ranges = _hints(cls), _ranges(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return tuple(_Field(n, without_range(hints[n]), ranges.get(n)) for n in names)


@functools.cache
def kinds(cls: type[Config]) -> Mapping[str, Any]:
    """Types by field, without their ranges."""
    return {field.name: field.kind for field in _fields(cls)}


def _fits(value: Any, kind: Any) -> bool:
    if type(value) is kind:  # most are: the rest of this function takes longer
        return True
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        item_kind = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_fits(item, item_kind) for item in value)
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)


class Config:
    """Base of the configurations: type and range checks, exact round trip to plain data.

    Subclasses are frozen dataclasses. A ``Range`` or ``OneOf`` in a field's annotation, as in
    ``Count`` or ``tuple[Count, ...]``, says which values are allowed; of a tuple each item is
    checked, and None where the annotation allows it is always in range.
    """

    def __post_init__(self) -> None:
        for name, kind, allowed in _fields(type(self)):
            value = getattr(self, name)
            if not _fits(value, kind):
                raise ConfigError(name, value, f"a value of type {_type_name(kind)}")
            items = value if isinstance(value, tuple) else (value,)
            if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in items):
                raise ConfigError(name, value, "an integer that 64 bits can hold")
            if kind is float and type(value) is int:
                value = float(value)  # YAML's 2 and 2.0 are one value and one digest
                object.__setattr__(self, name, value)
            if allowed is None or value is None:
                continue
            if not all(item in allowed for item in items):
                raise ConfigError(name, value, str(allowed))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain data (YAML, JSON, papermill parameters).

        Raises:
            ConfigError: a key is unknown, or a value has a wrong type or is out of range. A field
                of a group is named with it, such as ``optim.steps``.
        """
        types_of = kinds(cls)
        plain = {}
        for key, value in values.items():
            if key not in types_of:
                allowed = f"one of the fields of {cls.__name__}: {', '.join(types_of)}"
                if not str(key).isascii():  # a Greek or Cyrillic letter may look like a Latin one
                    allowed += f", in these letters ({key!a} in ASCII)"
                raise ConfigError(key, value, allowed)
            kind = types_of[key]
            if isinstance(kind, type) and issubclass(kind, Config) and isinstance(value, Mapping):
                try:
                    value = kind.from_dict(value)
                except ConfigError as error:
                    field = f"{key}.{error.field}"
                    raise ConfigError(field, error.received, error.allowed) from None
            plain[key] = tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            optional = {field.default, field.default_factory} != {dataclasses.MISSING}
            if not optional and field.name not in plain:
                raise ConfigError(field.name, "nothing", f"a {_type_name(types_of[field.name])}")
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, nested; the inverse of ``from_dict``."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_spec(self) -> dict[str, Any]:
        """As ``to_dict``, without `later` fields at their defaults: the specification of a
        point."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        later = {f.name: f.default for f in fields if "later" in f.metadata}
        return {k: v for k, v in self.to_dict().items() if k not in later or v != later[k]}

    def essence(self) -> dict[str, Any]:
        """Plain data without the fields at their defaults.

        Digests are made of it, so that a field added later, neutral by default, leaves the keys of
        old records valid. A changed default invalidates them and needs a new ``NUMERICS``.
        """
        out = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default:
                out[field.name] = value.essence() if isinstance(value, Config) else value
        return out


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal data give equal text."""
    plain = value.to_dict() if isinstance(value, Config) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """A stable 16-digit hexadecimal digest of a configuration or of plain data."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
