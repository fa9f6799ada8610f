"""What a compiled program multiplies: matrix products and reductions, read from its HLO text.

XLA refuses an FP8 GEMM in silence: it converts the operands and multiplies in a wider format. So
the operand types of the compiled products, and nothing else, say whether a product is native.
Read are ``dot`` instructions, in fusions too, and custom calls to a matrix library, such as
``__cublas$lt$matmul$f8`` on an NVIDIA GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

FLOAT8 = ("f8e4m3fn", "f8e5m2")
LIBRARIES = re.compile(r'custom_call_target="([^"]*(?:matmul|gemm)[^"]*)"')
_SAME_VALUES = ("convert", "bitcast", "copy", "transpose", "reshape")
_HEAD = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (?=\S)")
_OPENS = re.compile(r"^\s*(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")


class Instruction(NamedTuple):
    """One line of HLO: ``name = type opcode(operands), attributes``.

    ``inline`` are the operands' types where the text has them, else empty; ``root`` tells whether
    this is what its computation returns.
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
        origins: the float8 types that these were converted from, else the operands' own.
        result: type and shape of what comes out, ``bf16[64,32]``.
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
        """Such as ``f8e4m3fn × f8e5m2``, or ``f8e4m3fn→f32 × f8e4m3fn→f32`` when converted."""
        pairs = zip(self.origins, self.operands, strict=True)
        return " × ".join(b if a == b else f"{a}→{b}" for a, b in pairs)


class Program:
    """The instructions of a compiled module.

    Args:
        text: what ``jitted.lower(...).compile().as_text()`` gives.
    """

    def __init__(self, text: str):
        self.instructions: dict[tuple[str, str], Instruction] = {}
        self._callers: dict[str, list[Instruction]] = {}
        self._roots: dict[str, Instruction] = {}
        computation = ""
        for line in text.splitlines():
            if opened := _OPENS.match(line):
                computation = opened[1]
            elif found := _instruction(line, computation):
                self.instructions[computation, found.name] = found
                for called in re.findall(r"calls=%?([\w.\-]+)", found.attributes):
                    self._callers.setdefault(called, []).append(found)
                if found.root:
                    self._roots[computation] = found

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def products(self) -> list[Product]:
        """Every matrix product, in the order of the text."""
        found = []
        for instruction in self:
            library = LIBRARIES.search(instruction.attributes)
            if instruction.opcode == "dot":
                kind = "dot"
            elif instruction.opcode == "custom-call" and library:
                kind = library[1]
            else:
                continue
            types = [self._type_of(instruction, i) for i in (0, 1)]
            origins = [self._origin(instruction, i) or t for i, t in enumerate(types)]
            result = re.search(r"\w+\[[\d,]*\]", instruction.type)
            found.append(Product(
                kind, (types[0], types[1]), (origins[0], origins[1]), result[0] if result else "",
            ))  # fmt: skip
        return found

    def reductions(self) -> list[str]:
        """The opcode that each ``reduce`` applies, such as ``maximum`` or ``add``.

        Conversions around it, as a CPU puts around bfloat16 arithmetic, are passed over.
        """
        found = []
        for instruction in self:
            applied = re.search(r"to_apply=%?([\w.\-]+)", instruction.attributes)
            if instruction.opcode in ("reduce", "all-reduce") and applied:
                inside = (i.opcode for i in self if i.computation == applied[1])
                skipped = ("parameter", *_SAME_VALUES)
                found.append(next((code for code in inside if code not in skipped), ""))
        return found

    def _type_of(self, instruction: Instruction, i: int) -> str:
        source = self.instructions.get((instruction.computation, instruction.operands[i]))
        return _element(source.type if source else instruction.inline[i])

    def _origin(self, instruction: Instruction, i: int, depth: int = 32) -> str:
        """The float8 type that operand ``i`` was made from by moves and conversions, else ""."""
        source = self.instructions.get((instruction.computation, instruction.operands[i]))
        if source is None:
            return _float8(instruction.inline[i])
        return self._made_from(source, depth)

    def _made_from(self, source: Instruction, depth: int) -> str:
        if (own := _float8(source.type)) or depth == 0:
            return own
        if source.opcode in _SAME_VALUES and source.operands:
            return self._origin(source, 0, depth - 1)
        if source.opcode == "fusion":
            called = re.search(r"calls=%?([\w.\-]+)", source.attributes)
            root = self._roots.get(called[1]) if called else None
            return self._made_from(root, depth - 1) if root else ""
        if source.opcode == "parameter" and (callers := self._callers.get(source.computation)):
            at = re.search(r"parameter\((\d+)\)", source.attributes)
            return self._origin(callers[0], int(at[1]), depth - 1) if at else ""
        return ""


def _element(type_: str) -> str:
    return type_.split("[")[0].lstrip("(")


def _float8(type_: str) -> str:
    element = _element(type_)
    return element if element in FLOAT8 else ""


def _instruction(line: str, computation: str) -> Instruction | None:
    head = _HEAD.match(line)
    if head is None:
        return None
    rest = line[head.end() :]
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
        head[2], rest[:end], opcode[1], tuple(named), tuple(types), attributes.strip(),
        computation, bool(head[1]),
    )  # fmt: skip


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
