"""Python to JavaScript, for a module of formulas: the part of Python that both languages share.

Functions of positional arguments; assignments to names; ``if``, ``while``, ``for`` over ``range``,
``return``; arithmetic, single comparisons, ``and``, ``or``, ``not``, conditional expressions;
numbers, strings, lists and their ``append``, dictionaries with string keys and ``**``; subscripts;
``min`` and ``max`` of several, ``len`` of a list, and some of ``math``. ``%`` is of non-negatives.
All else is refused, so that what is translated means the same.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence

from umup.errors import BookError

BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Mod: "%", ast.Pow: "**"}
COMPARE = {
    ast.Eq: "===", ast.NotEq: "!==", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
MATH = {"ceil", "exp", "floor", "log", "log2", "sqrt"}
RESERVED = re.findall(
    r"\w+",
    "arguments await break case catch class const continue debugger default delete do else "
    "enum eval export extends false finally for function if implements import in instanceof "
    "interface let new null package private protected public return static super switch this "
    "throw true try typeof undefined var void while with yield Math Infinity NaN",
)


def translate(source: str, name: str) -> str:
    """A plain script that defines the object ``name`` with the functions of a Python module.

    Or of several, one text after another, of which the later may import from the earlier.

    Raises:
        BookError: a construct outside of the shared part; the field is ``NAME.py, line N``.
    """
    return _Module(source, name).script()


class _Module:
    """One module on its way; ``known`` are the names that an expression may use."""

    def __init__(self, source: str, name: str):
        self.name = name
        self.body = ast.parse(source).body
        found = [node for node in self.body if isinstance(node, ast.FunctionDef)]
        self.functions = {node.name: len(node.args.args) for node in found}
        self.known: set[str] = set()
        self.loops: set[str] = set()

    def refuse(self, node: ast.AST, what: str = "") -> BookError:
        line = getattr(node, "lineno", 1)
        received = what or f"{type(node).__name__}: {ast.unparse(node)[:60]}"
        allowed = "the part of Python that umup.book.javascript describes"
        return BookError(f"{self.name}.py, line {line}", received, allowed)

    def script(self) -> str:
        parts = [self.function(n) if isinstance(n, ast.FunctionDef) else self.head(n)
                 for n in self.body]  # fmt: skip
        shown = ", ".join(self.functions)
        return "\n".join([
            f"// Made from {self.name}.py by umup.book.javascript.",
            f"const {self.name} = (() => {{", '"use strict";', *filter(None, parts),
            f"return {{{shown}}};", "})();", "",
        ])  # fmt: skip

    def head(self, node: ast.stmt) -> str:
        """What stands beside functions: docstrings, and imports of what is here anyway."""
        match node:
            case ast.Import([ast.alias("math", None)]) | ast.ImportFrom("__future__"):
                return ""
            case ast.Expr(ast.Constant(str())):
                return ""
            case ast.ImportFrom(names=names) if all(
                one.name in self.functions and one.asname is None for one in names
            ):
                return ""  # of modules that are translated together
        raise self.refuse(node)

    def function(self, node: ast.FunctionDef) -> str:
        a = node.args
        if a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg or a.defaults:
            raise self.refuse(node, f"{node.name}: more than plain positional arguments")
        if node.decorator_list:
            raise self.refuse(node, f"{node.name}: a decorator")
        given = [self.new(arg, arg.arg) for arg in a.args]
        self.new(node, node.name)
        self.known, self.loops = set(given), set()
        every = list(ast.walk(node))
        stored = {n.id for n in every if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        loops = {ast.unparse(n.target) for n in every if isinstance(n, ast.For)}
        # A name assigned in a branch lives as long as its function, as in Python.
        local = sorted(stored - loops - self.known)
        self.known |= set(local)
        start = [f"  let {', '.join(local)};"] if local else []
        lines = [*start, *self.block(node.body, "  ")]
        return "\n".join([f"function {node.name}({', '.join(given)}) {{", *lines, "}"])

    def new(self, node: ast.AST, name: str) -> str:
        """A name that is defined here."""
        if name in RESERVED:
            raise self.refuse(node, f"the name {name}, which JavaScript keeps to itself")
        return name

    def block(self, body: Iterable[ast.stmt], indent: str) -> list[str]:
        return [line for node in body for line in self.statement(node, indent)]

    def statement(self, node: ast.stmt, indent: str) -> list[str]:
        inner = indent + "  "
        match node:
            case ast.Expr(ast.Constant(str())):
                return []
            case ast.Expr(ast.Call(ast.Attribute(ast.Name(out), "append"), [one], [])):
                return [f"{indent}{self.use(node, out)}.push({self.value(one)});"]
            case ast.Return(value):
                return [f"{indent}return{' ' + self.value(value) if value else ''};"]
            case ast.Assign([ast.Name(target)], value) if target not in self.loops:
                return [f"{indent}{self.new(node, target)} = {self.value(value)};"]
            case ast.If(test, body, orelse):
                lines = [f"{indent}if ({self.value(test)}) {{", *self.block(body, inner)]
                other = self.block(orelse, inner)
                return [*lines, *([f"{indent}}} else {{", *other] if other else []), indent + "}"]
            case ast.While(test, body, []):
                start = f"{indent}while ({self.value(test)}) {{"
                return [start, *self.block(body, inner), indent + "}"]
            case ast.For(ast.Name(i), ast.Call(ast.Name("range"), [*ends], []), body, []):
                return self.loop(node, self.new(node, i), ends, body, indent)
        raise self.refuse(node)

    def loop(
        self, node: ast.For, i: str, ends: Sequence[ast.expr], body: list[ast.stmt], indent: str
    ) -> list[str]:
        if len(ends) > 2 or i in self.known:
            raise self.refuse(node, f"a loop with a step, or whose name {i} is used elsewhere")
        first, last = ("0", self.value(ends[0])) if len(ends) == 1 else map(self.value, ends)
        self.known.add(i)
        self.loops.add(i)
        inner = self.block(body, indent + "  ")
        self.known.discard(i)
        self.loops.discard(i)
        # The end is computed once, as ``range`` does.
        start = f"{indent}for (let {i} = {first}, {i}$end = {last}; {i} < {i}$end; {i}++) {{"
        return [start, *inner, indent + "}"]

    def use(self, node: ast.AST, name: str) -> str:
        """A name that an expression uses."""
        if name not in self.known:
            raise self.refuse(node, f"the name {name}, which the function does not define")
        return name

    def value(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(bool() | str() | int() | float() | None as constant):
                if isinstance(constant, int) and abs(constant) > 2**53:
                    raise self.refuse(node, f"{constant}, which no float64 holds")
                return json.dumps(constant)
            case ast.Name(name):
                return self.use(node, name)
            case ast.BinOp(left, ast.FloorDiv(), right):
                return f"Math.floor({self.value(left)} / {self.value(right)})"
            case ast.BinOp(left, op, right) if type(op) in BINARY:
                return f"({self.value(left)} {BINARY[type(op)]} {self.value(right)})"
            case ast.UnaryOp(ast.USub() | ast.Not() as op, one):
                return f"({'-' if isinstance(op, ast.USub) else '!'}{self.value(one)})"
            case ast.BoolOp(op, values):
                sign = " && " if isinstance(op, ast.And) else " || "
                return f"({sign.join(map(self.value, values))})"
            case ast.Compare(left, [op], [right]) if type(op) in COMPARE:
                return f"({self.value(left)} {COMPARE[type(op)]} {self.value(right)})"
            case ast.IfExp(test, body, orelse):
                return f"({self.value(test)} ? {self.value(body)} : {self.value(orelse)})"
            case ast.List(items):
                return f"[{', '.join(map(self.value, items))}]"
            case ast.Dict(keys, values):
                pairs = zip(keys, values, strict=True)
                return f"({{{', '.join(self.entry(*pair) for pair in pairs)}}})"
            case ast.Subscript(one, index) if not isinstance(index, (ast.Slice, ast.UnaryOp)):
                return f"{self.value(one)}[{self.value(index)}]"
            case ast.Call(called, arguments, []):
                return self.call(node, called, arguments)
        raise self.refuse(node)

    def entry(self, key: ast.expr | None, value: ast.expr) -> str:
        match key:
            case None:
                return f"...{self.value(value)}"
            case ast.Constant(str()):
                return f"{self.value(key)}: {self.value(value)}"
        raise self.refuse(key, f"a key that is no string: {ast.unparse(key)}")

    def call(self, node: ast.Call, called: ast.expr, arguments: Sequence[ast.expr]) -> str:
        given = ", ".join(map(self.value, arguments))
        match called, len(arguments):
            case ast.Attribute(ast.Name("math"), name), 1 if name in MATH:
                return f"Math.{name}({given})"
            case ast.Name("min" | "max" as name), count if count > 1:
                return f"Math.{name}({given})"
            case ast.Name("len"), 1:
                return f"{given}.length"
            case ast.Name(name), count if self.functions.get(name) == count:
                return f"{name}({given})"
        raise self.refuse(node)
