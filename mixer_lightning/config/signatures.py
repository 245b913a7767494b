"""What a `_target_` takes, read from source text where possible."""

from __future__ import annotations

import ast
import copy
import functools
import importlib.util
import inspect
import math
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from mixer_lightning.ranges import RANGES
from mixer_lightning.screen import did_you_mean
from mixer_lightning.targets import locate


class Parameter(NamedTuple):
    """One parameter of a callable: its annotation as text ("" without one), whether it must be given, its default."""

    annotation: str
    required: bool
    default: str = ""  # as source text; "" without one


def signature(target: str) -> dict[str, Parameter]:
    """Parameters of the function, class or dataclass at a dotted path, read without importing it if possible.

    Raises:
        ValueError: there is no such module or no such name in it.
    """
    module, _, name = target.rpartition(".")
    path = _source_file(module)
    if path is not None:
        body = _body(path)
        defined = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if name in defined:
            node = defined[name]
            found = _from_function(node) if isinstance(node, ast.FunctionDef) else _from_class(node)
            aliases = _Aliases(module)
            return {
                key: each._replace(annotation=aliases.expand(each.annotation)) for key, each in found.items()
            }
        if name not in {each for node in body for each in _names(node)}:
            raise ValueError(f"there is no '{target}'{did_you_mean(name, sorted(defined), f'{module}.')}")
    try:
        parameters = inspect.signature(locate(target)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        raise ValueError(f"there is no '{target}'") from None
    return {
        key: Parameter(
            "" if p.annotation is p.empty else _annotation_text(p.annotation),
            p.default is p.empty,
            "" if p.default is p.empty else repr(p.default),
        )
        for key, p in parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def defaults(target: str) -> dict[str, Any]:
    """What a callable takes for parameters that it is not given, as far as its source states plain values.

    Raises:
        ValueError: as `signature` does.
    """
    found = {}
    for name, parameter in signature(target).items():
        try:
            found[name] = ast.literal_eval(parameter.default)
        except (ValueError, SyntaxError):  # none, or an expression
            continue
    return found


def _names(node: ast.stmt) -> set[str]:
    """Names that a statement of a module may give to what was made elsewhere."""
    imported = {a.asname or a.name for n in ast.walk(node) if isinstance(n, ast.ImportFrom) for a in n.names}
    return imported | {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def _source_file(module: str) -> Path | None:
    """Source of a module, found without running any of its parents' code where they are plain packages."""
    root, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    for part in rest:
        folder = path.parent
        path = folder / part / "__init__.py" if (folder / part).is_dir() else folder / f"{part}.py"
    return path if path.suffix == ".py" and path.exists() else None


@functools.lru_cache(maxsize=64)
def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


class _Aliases(ast.NodeTransformer):
    """Expands what a module calls by a name, its own or one imported from its package: Filter for Literal[...]."""

    def __init__(self, module: str) -> None:
        self.module = module

    def expand(self, annotation: str) -> str:
        """An annotation as text."""
        return ast.unparse(self.visit(ast.parse(annotation, mode="eval"))) if annotation else ""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """The name, or the Literal that it stands for."""
        return node if node.id in RANGES else _literal(self.module, node.id) or node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """A Literal in a Literal is one."""
        self.generic_visit(node)
        if _is_literal(node):
            choices = [
                choice
                for each in _elements(node)
                for choice in (_elements(each) if _is_literal(each) else [each])
            ]
            node.slice = ast.Tuple(choices) if len(choices) > 1 else choices[0]
        return node


def _literal(module: str, name: str) -> ast.Subscript | None:
    """What `name = Literal[...]` says in a module, or in that of the same package from which it is imported."""
    path = _source_file(module)
    for node in _body(path) if path is not None else ():
        if isinstance(node, ast.Assign) and name in _names(node):
            return copy.deepcopy(node.value) if _is_literal(node.value) else None
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] == module.partition(".")[0]
        ):
            for each in node.names:
                if name == (each.asname or each.name):
                    return _literal(str(node.module), each.name)
    return None


def _is_literal(node: ast.expr) -> TypeGuard[ast.Subscript]:
    return isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] == "Literal"


def _elements(node: ast.Subscript) -> list[ast.expr]:
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _from_function(node: ast.FunctionDef) -> dict[str, Parameter]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {
        a.arg: Parameter(_text(a.annotation), default is None, _text(default))
        for a, default in pairs
        if a.arg != "self"
    }


def _from_class(node: ast.ClassDef) -> dict[str, Parameter]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _from_function(item)
    return {  # a dataclass
        item.target.id: Parameter(_text(item.annotation), item.value is None, _text(item.value))
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not _text(item.annotation).startswith("ClassVar")
    }


def _annotation_text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _text(annotation: ast.expr | None) -> str:
    return "" if annotation is None else ast.unparse(annotation)


def describe(annotation: str, value: Any = None) -> str:
    """What an annotation takes, for a message; with the nearest of a few texts that were meant by `value`."""
    node = ast.parse(annotation.removesuffix(" | None"), mode="eval").body if annotation else None
    if node is None or not _is_literal(node):
        plain = _without_ranges(annotation)
        return re.sub(r"Literal\[(.*?)\]", lambda one: one[1].replace("'", "").replace(", ", " | "), plain)
    texts = [str(ast.literal_eval(choice)) for choice in _elements(node)]
    texts += ["null"] if annotation.endswith(" | None") else []
    hint = did_you_mean(value, texts).removeprefix(": ") if isinstance(value, str) else ""
    return f"one of {', '.join(texts)}{f' ({hint})' if hint else ''}"


def fits(annotation: str, value: Any) -> bool:
    """Whether a YAML value fits an annotation; annotations that a YAML file cannot write fit everything."""
    return not annotation or _fits(ast.parse(annotation, mode="eval").body, value)


def out_of_range(annotation: str, value: Any) -> str | None:
    """What numbers an annotation takes ("at least 1"), where a value is of its type and out of its range."""
    if fits(annotation, value) or not fits(_without_ranges(annotation), value):
        return None
    ranges = {str(RANGES[name][1]) for name in re.findall(r"\w+", annotation) if name in RANGES}
    return " or ".join(sorted(ranges))


def _without_ranges(annotation: str) -> str:
    return re.sub(
        r"\w+", lambda name: RANGES[name[0]][0].__name__ if name[0] in RANGES else name[0], annotation
    )


def _fits(node: ast.expr, value: Any) -> bool:
    if isinstance(node, ast.BinOp):  # X | Y
        return _fits(node.left, value) or _fits(node.right, value)
    if isinstance(node, ast.Constant):
        return type(value) is type(node.value) and value == node.value
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value).rpartition(".")[2]
        inner = _elements(node)
        if outer == "Literal":
            return any(_fits(choice, value) for choice in inner)
        if outer in ("list", "List", "Sequence"):
            return isinstance(value, list) and all(_fits(inner[0], item) for item in value)
        if outer in ("tuple", "Tuple"):
            if not isinstance(value, list):
                return False
            if isinstance(inner[-1], ast.Constant) and inner[-1].value is ...:
                return all(_fits(inner[0], item) for item in value)
            return len(value) == len(inner) and all(map(_fits, inner, value))
        if outer in ("dict", "Dict", "Mapping"):
            return isinstance(value, dict)
        return True
    name = ast.unparse(node).rpartition(".")[2]
    if name in RANGES:
        kind, numbers = RANGES[name]
        return _fits(ast.Name(kind.__name__), value) and value in numbers
    if name == "bool":
        return isinstance(value, bool)
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name == "str":
        return isinstance(value, str)
    if name == "Duration":
        return isinstance(value, dict)
    return True
