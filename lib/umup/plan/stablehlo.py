"""What a lowered program does, read from its StableHLO, which needs no device.

StableHLO is what JAX passes to XLA. XLA may still fuse or drop its operations, but seldom adds one,
such as a transposition, a callback or a new buffer for the new state. `umup.plan.hlo` reads the
program that XLA makes of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jaxlib.mlir import ir

HOST = ("stablehlo.infeed", "stablehlo.outfeed", "stablehlo.send", "stablehlo.recv")
_FUSED = frozenset(
    (
        "abs",
        "add",
        "and",
        "broadcast_in_dim",
        "clamp",
        "compare",
        "convert",
        "cosine",
        "divide",
        "exponential",
        "log",
        "logistic",
        "maximum",
        "minimum",
        "multiply",
        "negate",
        "not",
        "or",
        "power",
        "reshape",
        "rsqrt",
        "select",
        "sign",
        "sine",
        "slice",
        "sqrt",
        "square",
        "subtract",
        "tanh",
        "transpose",
    )
)
"""Operations that XLA fuses into their consumers, so that their results are not written out."""


class Array(NamedTuple):
    """Element type and shape of an array, such as ``bf16`` and (16, 64)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def text(self) -> str:
        """The type in HLO's notation, ``bf16[16,64]``."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Found(NamedTuple):
    """One operation that was found.

    Attributes:
        opcode: without its dialect, or a custom call's target.
        operands, result: arrays; of several results the first, without a type if there is none.
        source: ``function, file:line`` of the innermost caller that JAX noted.
        ends: for a conversion, the opcodes outside fusions that read its values, see ``widened``.
        text: the line of StableHLO, cut at 200 characters.
    """

    opcode: str
    operands: tuple[Array, ...]
    result: Array
    source: str
    ends: tuple[str, ...]
    text: str


class Program:
    """The operations of a lowered program.

    Args:
        lowered: of any platform; nothing is compiled.
    """

    def __init__(self, lowered: jax.stages.Lowered):
        module: Any = lowered.compiler_ir("stablehlo")
        self._module = module  # its operations live as long as it does
        self.operations = list(_walk(module.operation))
        self._functions = {_name(op): op for op in self.operations if op.name == "func.func"}
        self._callers: dict[str, list[Any]] = {}
        for op in self.operations:
            if op.name == "func.call":
                self._callers.setdefault(op.attributes["callee"].value, []).append(op)

    def donated(self) -> list[bool]:
        """For every argument, in order: whether a result reuses its buffer."""
        main = self._functions["main"]
        arguments: Any = main.regions[0].blocks[0].arguments
        if "arg_attrs" not in main.attributes:
            return [False] * len(arguments)
        marks = ("tf.aliasing_output", "jax.buffer_donor")
        return [any(mark in attrs for mark in marks) for attrs in main.attributes["arg_attrs"]]

    def host(self) -> list[Found]:
        """Everything that waits for the host: infeeds, sends, callbacks into Python."""
        return [
            self._found(op)
            for op in self.operations
            if op.name in HOST or "callback" in _target(op)
        ]

    def calls(self) -> Counter[str]:
        """Targets of custom calls, such as ``__cudnn$fmhaSoftmax``, with their counts."""
        return Counter(filter(None, map(_target, self.operations)))

    def products(self) -> list[Found]:
        """Matrix products."""
        return [self._found(op) for op in self.operations if op.name == "stablehlo.dot_general"]

    def transposed(self, least: int) -> list[Found]:
        """Transpositions that move data of at least the given number of elements.

        Moving only axes of one element costs nothing and is not counted, nor are the dimension
        numbers of a product, as libraries read either order.
        """
        found = (op for op in self.operations if op.name == "stablehlo.transpose")
        return [
            self._found(op) for op in found if _array(op.results[0]).size >= least and _moves(op)
        ]

    def widened(self, least: int) -> list[Found]:
        """Conversions from a narrower float to float32 of at least the given number of elements.

        Their ``ends`` say which operations read the wide values, through operations that XLA fuses.
        A ``reduce`` or a ``convert`` back is fused with the conversion; any other opcode, such as
        ``dot_general`` or a ``while`` that carries the values, needs a float32 copy.
        """
        return [
            self._found(op, tuple(sorted(self._ends(op, least))))
            for op in self.operations
            if op.name == "stablehlo.convert"
            and _array(op.results[0]).size >= least
            and _widens(_array(op.operands[0]).dtype, _array(op.results[0]).dtype)
        ]

    def carried(self) -> Counter[Array]:
        """Arrays that loops carry, which lie in memory whatever XLA fuses."""
        loops = (op for op in self.operations if op.name == "stablehlo.while")
        return Counter(_array(result) for loop in loops for result in loop.results)

    def _found(self, op: Any, ends: tuple[str, ...] = ()) -> Found:
        operands = tuple(_array(o) for o in op.operands)
        opcode = _target(op) or _opcode(op)
        text = " ".join(str(op).split())[:200]
        result = _array(op.results[0]) if op.results else Array("", ())
        return Found(opcode, operands, result, _source(op), ends, text)

    def _ends(self, op: Any, least: int) -> set[str]:
        """The readers of a value: opcodes of the first operations outside its fusion."""
        ends: set[str] = set()
        seen: set[tuple] = set()
        waiting = [(op, 0)]
        while waiting:
            source, number = waiting.pop()
            for user, at in _uses(source, number):
                key = (user, at)
                if key in seen:
                    continue
                seen.add(key)
                waiting += self._beyond(user, at, least, ends)
        return ends

    def _beyond(self, user: Any, at: int, least: int, ends: set[str]) -> list[tuple[Any, int]]:
        """Values to follow from a use; a reader outside the fusion is added to ``ends``."""
        if user.name == "func.call":
            return [(self._functions[user.attributes["callee"].value], at)]
        if user.name == "func.return":
            callers = self._callers.get(_name(user.parent), [])
            if not callers:
                ends.add("return")
            return [(caller, at) for caller in callers]
        if _opcode(user) in _FUSED:
            result = _array(user.results[0])
            if result.dtype == "f32" and result.size >= least:
                return [(user, 0)]
        ends.add(_opcode(user))
        return []


def _walk(op: Any) -> Iterator[Any]:
    yield op
    for region in op.regions:
        for block in region:
            for inner in block:
                yield from _walk(inner.operation)


def _uses(op: Any, number: int) -> Iterator[tuple[Any, int]]:
    """Users of a value with the operand's number: a result, or a function's argument."""
    values = op.regions[0].blocks[0].arguments if op.name == "func.func" else op.results
    for use in values[number].uses:
        owner: Any = use.owner
        yield owner.operation if hasattr(owner, "operation") else owner, use.operand_number


def _array(value: Any) -> Array:
    type_ = value.type
    if not isinstance(type_, ir.RankedTensorType):
        return Array(str(type_), ())
    return Array(str(type_.element_type).lower(), tuple(type_.shape))


def _opcode(op: Any) -> str:
    """The opcode without its dialect, of which there are two."""
    return op.name.partition(".")[2]


def _name(op: Any) -> str:
    return op.attributes["sym_name"].value


def _target(op: Any) -> str:
    return op.attributes["call_target_name"].value if op.name == "stablehlo.custom_call" else ""


def _widens(before: str, after: str) -> bool:
    return after == "f32" and before != "f32" and before.startswith(("bf", "f"))


def _moves(op: Any) -> bool:
    """Whether a transposition changes the order of the axes of more than one element."""
    shape = _array(op.operands[0]).shape
    kept = [axis for axis in op.attributes["permutation"] if shape[axis] > 1]
    return kept != sorted(kept)


def _source(op: Any) -> str:
    found = re.search(r'"([^"]+)"\("([^"]+)":(\d+)', str(op.location))
    return f"{found[1]}, {found[2].rpartition('/')[2]}:{found[3]}" if found else ""
