"""Mutations of the rules' tables and of arithmetic code, made from the source.

In tables of powers: every exponent doubled, every sign turned, every fan swapped for the other,
every 1 (an empty product) replaced. In code: every factor doubled, × and ÷, + and − exchanged, a
minus dropped, the scales of the two directions swapped wherever both are at hand.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

RENDERING = {"table", "variants_table", "_lines", "_cell", "_check_style", "render", "_factors"}
"""Functions of `rules` and `powers` that print: no numbers of the parametrization."""

SYMBOLS = {
    "fan_in",
    "fan_out",
    "base_fan_in",
    "base_fan_out",
    "depth",
    "base_depth",
    "d_head",
    "base_d_head",
    "tokens",
    "sigma_init",
    "alpha_emb",
    "alpha_output",
    "alpha_attn_softmax",
    "eta_emb",
}
OTHER_FAN = {
    "fan_in": "fan_out",
    "fan_out": "fan_in",
    "base_fan_in": "base_fan_out",
    "base_fan_out": "base_fan_in",
}
# Scales of the two directions, or of one op: swapped for the first that the function has too.
SWAPS = {
    "forward": ("backward", "weight_grad"),
    "backward": ("forward", "weight_grad"),
    "weight_grad": ("backward", "forward"),
    "logit": ("out",),
    "out": ("logit", "alpha"),
    "alpha": ("out", "grad_scale"),
    "grad_scale": ("alpha",),
    "add": ("keep", "skip", "add_grad"),
    "keep": ("add", "add_grad"),
    "add_grad": ("add", "keep"),
    "scale_fwd": ("scale_bwd",),
    "scale_bwd": ("scale_fwd",),
    "fan_in": ("fan_out",),
    "fan_out": ("fan_in",),
    "cos": ("sin",),
    "sin": ("cos",),
    "E4M3": ("E5M2",),
    "E5M2": ("E4M3",),
}
OPERANDS = {"x": "w", "w": "g", "g": "x"}  # of a linear: `casts.x` becomes `casts.w`
OPERATORS: dict[type, type] = {
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}


@dataclass(frozen=True)
class Mutation:
    """One change of one module; ``source`` is the module with it."""

    module: str
    line: int
    function: str
    kind: str
    text: str
    source: str


def _is_number(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, (int, float))
        and not isinstance(node.value, bool)
    )


def _is_power(node: ast.AST) -> bool:
    """A product of powers: a dictionary from symbols to numbers, the empty one included."""
    if not isinstance(node, ast.Dict):
        return False
    keys = {k.value for k in node.keys if isinstance(k, ast.Constant)}
    return len(keys) == len(node.keys) and keys <= SYMBOLS


def _numeric(node: ast.expr) -> float | None:
    """The value of a literal, its minus included."""
    sign, inner = 1.0, node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, inner = -1.0, node.operand
    if isinstance(inner, ast.Constant) and _is_number(inner):
        return sign * float(inner.value)  # type: ignore[arg-type]
    return None


def _power_changes(power: ast.Dict) -> Iterator[tuple[str, ast.expr]]:
    if not power.keys:
        yield "factor", ast.parse("{'depth': 0.5}", mode="eval").body
        return
    for i, (key, value) in enumerate(zip(power.keys, power.values, strict=True)):
        exponent = _numeric(value)
        if exponent is None or not isinstance(key, ast.Constant):
            continue
        for kind, new in (("exponent", 2 * exponent), ("sign", -exponent)):
            changed = copy.deepcopy(power)
            changed.values[i] = ast.Constant(new)
            yield kind, changed
        if key.value in OTHER_FAN:
            changed = copy.deepcopy(power)
            changed.keys[i] = ast.Constant(OTHER_FAN[str(key.value)])
            yield "swapped fan", changed


def _call_changes(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    pairs = {"WeightRule": ((1, 2), (2, 3), (4, 5)), "_plain": ((2, 3),)}.get(name, ())
    for a, b in pairs:
        changed = copy.deepcopy(call)
        if len(changed.args) > b and ast.dump(changed.args[a]) != ast.dump(changed.args[b]):
            changed.args[a], changed.args[b] = changed.args[b], changed.args[a]
            yield "swapped scales", changed
    if name == "inverse":
        yield "sign", copy.deepcopy(call.args[0])


def _expression_changes(
    node: ast.AST, scope: set[str], tables: set[str]
) -> Iterator[tuple[str, ast.expr]]:
    """Replacements of one expression outside the tables, each with its kind."""
    if isinstance(node, ast.BinOp):
        if (new := OPERATORS.get(type(node.op))) and not _on_strings(node):
            changed = copy.deepcopy(node)
            changed.op = new()
            yield "operator", changed
        for side in ("left", "right"):
            value = _numeric(getattr(node, side))
            if value is None or isinstance(node.op, ast.Mod):
                continue
            literal = getattr(node, side)
            whole = isinstance(getattr(literal, "operand", literal).value, int)
            for new in {2 * value or 1.0, -value if value < 0 else 2 * value or 1.0}:
                changed = copy.deepcopy(node)
                setattr(changed, side, ast.Constant(int(new) if whole else new))
                yield "factor" if new != -value else "sign", changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if not isinstance(_numeric(node), float) or isinstance(node.operand.value, float):  # type: ignore[attr-defined]
            yield "sign", copy.deepcopy(node.operand)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        if node.id in tables:
            yield "exponent", ast.Dict([], [])
        for other in SWAPS.get(node.id, ()):
            if other in scope:
                yield "swapped scales", ast.Name(other, ast.Load())
                break
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        if node.attr in OPERANDS and ast.unparse(node.value) == "casts":
            yield "swapped scales", ast.Attribute(node.value, OPERANDS[node.attr], ast.Load())
        if node.attr in SWAPS:
            yield (
                "swapped scales",
                ast.Attribute(copy.deepcopy(node.value), SWAPS[node.attr][0], ast.Load()),
            )
    elif isinstance(node, ast.Call):
        yield from _call_changes(node)


def _on_strings(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, (ast.JoinedStr, ast.List))
        or (isinstance(s, ast.Constant) and isinstance(s.value, str))
        for s in sides
    )


def _lone_constant(parent: ast.AST, node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """A float that stands alone (argument, default, result), or a whole number that is a choice."""
    if not isinstance(node, ast.Constant) or isinstance(parent, (ast.BinOp, ast.UnaryOp)):
        return
    chosen = isinstance(parent, (ast.IfExp, ast.Assign)) and _is_number(node)
    if (isinstance(node.value, float) or chosen) and node.value:
        yield "factor", ast.Constant(2 * node.value)  # type: ignore[operator]


def _names(function: ast.AST) -> set[str]:
    """Names that an expression of this function may use in place of another."""
    found = {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
    return found | {
        n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def _skipped(parent: ast.AST, field: str) -> bool:
    """Types are no code, nor are decorators."""
    return field in ("annotation", "returns", "decorator_list", "bases") or (
        isinstance(parent, ast.Raise)
    )


def _walk(
    node: ast.AST, path: tuple, function: str, scope: set[str], tables: set[str]
) -> Iterator[tuple[tuple, str, str, tuple[ast.AST, ast.AST], ast.expr]]:
    """(path, function, kind, (parent, old), new) of every mutation under a node."""
    for field, value in ast.iter_fields(node):
        if _skipped(node, field):
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for i, child in children:
            if not isinstance(child, ast.AST):
                continue
            here, name, names = (*path, (field, i)), function, scope
            if isinstance(child, (ast.FunctionDef, ast.Lambda)):
                names = scope | _names(child)
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                if child.name in RENDERING:
                    continue
                name = f"{function}.{child.name}" if function else child.name
            if _is_power(child):
                for kind, new in _power_changes(child):  # type: ignore[arg-type]
                    yield here, name, kind, (node, child), new
                continue
            for kind, new in _expression_changes(child, names, tables):
                yield here, name, kind, (node, child), new
            for kind, new in _lone_constant(node, child):
                yield here, name, kind, (node, child), new
            yield from _walk(child, here, name, names, tables)


def _replaced(statement: ast.stmt, path: tuple, new: ast.expr) -> str:
    """The source of a statement with the node at ``path`` below it replaced."""
    changed = copy.deepcopy(statement)
    node: ast.AST = changed
    for field, i in path[:-1]:
        node = getattr(node, field) if i is None else getattr(node, field)[i]
    field, i = path[-1]
    if i is None:
        setattr(node, field, new)
    else:
        getattr(node, field)[i] = new
    return ast.unparse(ast.fix_missing_locations(changed))


def _short(node: ast.AST, limit: int = 64) -> str:
    """One line of source, cut; of a product or sum both sides stay in sight."""
    text = " ".join(ast.unparse(node).split())
    if len(text) > limit and isinstance(node, ast.BinOp):
        sign = {ast.Mult: "*", ast.Div: "/", ast.Add: "+", ast.Sub: "-"}.get(type(node.op), "…")
        return f"{_short(node.left, limit // 2)} {sign} {_short(node.right, limit // 2)}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def mutations(source: str, module: str) -> list[Mutation]:
    """Every mutation of a module's source, in its order, none twice."""
    tree = ast.parse(source)
    scope = SWAPS.keys() & {
        name.id if isinstance(name, ast.Name) else name.asname or name.name
        for node in tree.body
        for name in getattr(node, "targets", getattr(node, "names", []))
        if isinstance(name, (ast.Name, ast.alias))
    }
    scope |= SWAPS.keys() & {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    tables = {
        ast.unparse(n.targets[0])
        for n in tree.body
        if isinstance(n, ast.Assign) and _is_power(n.value)
    }
    found: dict[str, Mutation] = {}
    # Of a mutated module only one statement is another, and only that one is written anew.
    statements = [ast.unparse(statement) for statement in tree.body]
    unchanged = "\n".join(statements)
    for ((_, i), *path), function, kind, (parent, old), new in _walk(tree, (), "", scope, tables):
        one = _replaced(tree.body[i], tuple(path), new)
        changed = "\n".join([*statements[:i], one, *statements[i + 1 :]])
        text = f"{_short(old)} → {_short(new)}"
        block = isinstance(parent, ast.stmt) and hasattr(parent, "body")
        if isinstance(old, (ast.Name, ast.Constant)) and not block:
            text += f" in {_short(parent, 80)}"  # a name alone says little
        if changed != unchanged and changed not in found:
            line = getattr(old, "lineno", 0)
            found[changed] = Mutation(module, line, function, kind, text, changed)
    return list(found.values())
