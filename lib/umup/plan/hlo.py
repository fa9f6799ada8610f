"""What a compiled program computes and sends, read from its HLO text.

It finds matrix products with their operand types, floating-point operations, and collectives by
mesh axis, each with how often it runs. XLA may silently reject an FP8 GEMM, convert the operands
and multiply in a wider format; only the text shows whether a product is native.
Products are ``dot`` instructions, in fusions too, and custom calls to a matrix library, such as
``__cublas$lt$matmul$f8`` on an NVIDIA GPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from umup.errors import ConfigError
from umup.plan.replicas import axes_of

FLOAT8 = ("f8e4m3fn", "f8e5m2")
LIBRARIES = re.compile(r'custom_call_target="([^"]*(?:matmul|gemm)[^"]*)"')
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SAME_VALUES = ("convert", "bitcast", "copy", "transpose", "reshape")
_HEAD = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (?=\S)")
_OPENS = re.compile(r"^\s*(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_BITS = re.compile(r"(?:bf|f|s|u|c)(\d+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations)="
    r"(?:%?([\w.\-]+)|\{([^}]*)\})"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """One line of HLO: ``name = type opcode(operands), attributes``.

    ``inline`` holds the operands' types if the text has them, else nothing; ``root`` is True if
    this is the value that its computation returns.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    inline: tuple[str, ...]
    attributes: str
    computation: str
    root: bool


class Product(NamedTuple):
    """A matrix product of a compiled program.

    Attributes:
        kind: ``dot``, or the custom call's target.
        operands: element types that are multiplied, such as ``f8e4m3fn``.
        origins: the float8 types that the operands were converted from, else their own types.
        result: type and shape of the result, such as ``bf16[64,32]``.
    """

    kind: str
    operands: tuple[str, str]
    origins: tuple[str, str]
    result: str

    @property
    def native(self) -> bool:
        """Whether both operands are float8 as they are multiplied."""
        return all(operand in FLOAT8 for operand in self.operands)

    @property
    def emulated(self) -> bool:
        """Whether float8 operands were converted to a wider format before they were multiplied."""
        return not self.native and all(origin in FLOAT8 for origin in self.origins)

    def text(self) -> str:
        """The types, as ``f8e4m3fn × f8e5m2``, or ``f8e4m3fn→f32 × f8e4m3fn→f32`` if converted."""
        pairs = zip(self.origins, self.operands, strict=True)
        return " × ".join(b if a == b else f"{a}→{b}" for a, b in pairs)


class Collective(NamedTuple):
    """The data of one element type that one collective carries.

    Attributes:
        kind: one of ``COLLECTIVES``.
        axes: mesh axes along which its groups lie; () if the groups lie along none.
        group: devices in a group.
        dtype: narrowest type that the values had before, as a backend without arithmetic for it (a
            CPU for bfloat16 and float8) sends a wider one.
        compiled: the type that the program sends.
        bytes: of the result (for a reduce-scatter, of the operand) per device and execution, summed
            over the parts of a tuple, in ``dtype``.
        count: executions.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    dtype: str
    compiled: str
    bytes: int
    count: int


class Traffic(NamedTuple):
    """Collectives of one kind, axes and type together: ``bytes`` and ``count`` of all executions.

    The other fields are as for ``Collective``.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    dtype: str
    count: int
    bytes: int


class Program:
    """The instructions of a compiled module: one device's program.

    Args:
        text: result of a compiled function's ``as_text()``.
        trips: trip count of loops for which the text has none.
    """

    def __init__(self, text: str, trips: int = 1):
        self.instructions: dict[tuple[str, str], Instruction] = {}
        self._callers: dict[str, list[tuple[Instruction, int]]] = {}
        self._roots: dict[str, Instruction] = {}
        self._executions: dict[str, int] = {}
        computation = ""
        for line in text.splitlines():
            if opened := _OPENS.match(line):
                computation = opened[1]
            elif found := _instruction(line, computation):
                self.instructions[computation, found.name] = found
                for called, times in _calls(found, trips):
                    self._callers.setdefault(called, []).append((found, times))
                if found.root:
                    self._roots[computation] = found

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def executions(self, computation: str) -> int:
        """How often a computation runs when the program runs once.

        A loop's body counts as often as its trip count, every branch of a conditional once, and a
        computation applied to each element (in a reduce) once for all of them.
        """
        if computation not in self._executions:
            callers = self._callers.get(computation, [])
            runs = (self.executions(caller.computation) * times for caller, times in callers)
            self._executions[computation] = sum(runs) if callers else 1
        return self._executions[computation]

    def products(self) -> list[Product]:
        """Every matrix product, in the order of the text."""
        found = []
        for instruction in self:
            if not (kind := _product(instruction)):
                continue
            types = [_element(self._operand(instruction, i)) for i in (0, 1)]
            narrow = [self._origin(instruction, i) for i in (0, 1)]
            origins = [n if n in FLOAT8 else t for n, t in zip(narrow, types, strict=True)]
            result = _ARRAY.search(instruction.type)
            shape = result[0] if result else ""
            found.append(Product(kind, (types[0], types[1]), (origins[0], origins[1]), shape))
        return found

    def flops(self) -> float:
        """Floating-point operations of all matrix products: 2 for every multiply-add.

        Unlike XLA's ``cost_analysis``, this counts every trip of a loop, not just one, and nothing
        but products. Products inside a fused attention kernel are not counted.
        """
        total = 0
        for instruction in self:
            if _product(instruction):
                (_, result), *_ = _arrays(instruction.type)
                (_, left), *_ = _arrays(self._operand(instruction, 0))
                contracted = math.prod(left[i] for i in _contracting(instruction.attributes))
                runs = self.executions(instruction.computation)
                total += 2 * math.prod(result) * contracted * runs
        return float(total)

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """Every collective, in the order of the text; a row for each element type it carries.

        Args:
            mesh: names and sizes of the axes, ``dict(mesh.shape)``; devices are numbered with the
                last axis fastest.

        Raises:
            ConfigError: the program is not for that number of devices.
        """
        done = (i for i in self if i.opcode.endswith("-done"))
        ends = {(i.computation, i.operands[0]): i.type for i in done}
        found = []
        for instruction in self:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            try:
                axes, group = axes_of(instruction.attributes, mesh)
            except IndexError:
                allowed = "the axes of the devices that it was compiled for"
                raise ConfigError("mesh", dict(mesh), allowed) from None
            count = self.executions(instruction.computation)
            # What starts holds its operands too; what it comes to stands where it is done.
            whole = ends.get((instruction.computation, instruction.name), instruction.type)
            sent = [self._operand(instruction, i) for i in range(len(instruction.operands))]
            parts = _arrays(", ".join(sent) if kind == "reduce-scatter" else whole)
            carried: dict[tuple[str, str], int] = {}
            for i, (compiled, shape) in enumerate(parts):
                dtype = self._origin(instruction, i)
                size = math.prod(shape) * _bits(dtype) // 8
                carried[dtype, compiled] = carried.get((dtype, compiled), 0) + size
            found += [
                Collective(kind, axes, group, dtype, compiled, size, count)
                for (dtype, compiled), size in carried.items()
            ]
        return found

    def _operand(self, instruction: Instruction, i: int) -> str:
        """The type of operand ``i``."""
        source = self.instructions.get((instruction.computation, instruction.operands[i]))
        return source.type if source else instruction.inline[i]

    def _origin(self, instruction: Instruction, i: int, depth: int = 32) -> str:
        """The narrowest float type that operand ``i`` had, through moves and conversions.

        The operand's own type if it is not a float.
        """
        source = self.instructions.get((instruction.computation, instruction.operands[i]))
        if source is None:
            return _element(instruction.inline[i])
        own = _element(source.type)
        before = self._before(source, depth) if "f" in own and depth else own
        return before if "f" in before and _bits(before) < _bits(own) else own

    def _before(self, source: Instruction, depth: int) -> str:
        """The narrowest float type that the values of ``source`` had before it."""
        if source.opcode in _SAME_VALUES and source.operands:
            return self._origin(source, 0, depth - 1)
        if source.opcode == "fusion":
            called = re.search(r"calls=%?([\w.\-]+)", source.attributes)
            root = self._roots.get(called[1]) if called else None
            return self._before(root, depth - 1) if root else _element(source.type)
        if source.opcode == "parameter":
            at = re.search(r"parameter\((\d+)\)", source.attributes)
            callers = (c for c, _ in self._callers.get(source.computation, ()))
            # A loop carries more values than its initial ones; a branch has its own operands.
            caller = next((c for c in callers if c.opcode not in ("while", "conditional")), None)
            if at and caller and int(at[1]) < len(caller.operands):
                return self._origin(caller, int(at[1]), depth - 1)
        return _element(source.type)


def traffic(collectives: Iterable[Collective]) -> list[Traffic]:
    """Collectives summed by kind, axes and type, the most bytes first."""
    rows: dict[tuple, Traffic] = {}
    for c in collectives:
        key = (c.kind, c.axes, c.group, c.dtype)
        before = rows.get(key, Traffic(*key, 0, 0))
        count, size = before.count + c.count, before.bytes + c.bytes * c.count
        rows[key] = before._replace(count=count, bytes=size)
    return sorted(rows.values(), key=lambda row: -row.bytes)


def _calls(instruction: Instruction, trips: int) -> Iterator[tuple[str, int]]:
    """The computations that an instruction calls, and how often."""
    for role, single, several in _CALLED.findall(instruction.attributes):
        times = 1
        if instruction.opcode == "while":
            known = _TRIPS.search(instruction.attributes)
            times = (int(known[1]) if known else trips) + (role == "condition")
        for name in [single] if single else several.split(","):
            yield name.strip().lstrip("%"), times


def _product(instruction: Instruction) -> str:
    """``dot``, the target of a matrix library's custom call, or "" for anything else."""
    if instruction.opcode == "custom-call":
        library = LIBRARIES.search(instruction.attributes)
        return library[1] if library else ""
    return "dot" if instruction.opcode == "dot" else ""


def _contracting(attributes: str) -> list[int]:
    """Dimensions of the left operand that a product sums over; by default the last."""
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
    found = found or re.search(r'"lhs_contracting_dimensions":\[([\d",]*)\]', attributes)
    return [int(i) for i in found[1].replace('"', "").split(",") if i] if found else [-1]


def _arrays(type_: str) -> list[tuple[str, tuple[int, ...]]]:
    """(element type, shape) of every array of a type, tuples flattened."""
    return [
        (element, tuple(int(n) for n in shape.split(",") if n))
        for element, shape in _ARRAY.findall(type_)
    ]


def _bits(element: str) -> int:
    """Bits per element: 8 for a truth value, none for a token."""
    if element == "pred":
        return 8
    sized = _BITS.match(element)
    return int(sized[1]) if sized else 0


def _element(type_: str) -> str:
    return type_.split("[")[0].lstrip("(")


def _instruction(line: str, computation: str) -> Instruction | None:
    head = _HEAD.match(line)
    if head is None:
        return None
    rest = _COMMENT.sub("", line[head.end() :])
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, end)
    if end < 0 or opcode is None:
        return None
    close = opcode.end() - 1 + _closing(rest[opcode.end() - 1 :])
    arguments = _split(rest[opcode.end() : close - 1])
    named = [argument.split(" ")[-1].lstrip("%") for argument in arguments]
    types = [argument.rpartition(" ")[0] for argument in arguments]
    # A parameter's number stands where operands do.
    attributes = rest[opcode.start() :] if opcode[1] == "parameter" else rest[close:]
    return Instruction(
        name=head[2],
        type=rest[:end],
        opcode=opcode[1],
        operands=tuple(named),
        inline=tuple(types),
        attributes=attributes.strip(),
        computation=computation,
        root=bool(head[1]),
    )


def _closing(text: str) -> int:
    """Where the bracket that opens ``text`` has closed."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if depth == 0:
            return i + 1
    return len(text)


def _split(arguments: str) -> list[str]:
    """Arguments at their top-level commas."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(arguments):
        depth += (character in "({[") - (character in ")}]")
        if character == "," and depth == 0:
            parts.append(arguments[start:i].strip())
            start = i + 1
    parts.append(arguments[start:].strip())
    return [part for part in parts if part]
