"""The settings and methods as their source files describe them, read without importing torch."""

import ast
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from inspect import cleandoc
from pathlib import Path
from typing import Any

import lorica
from lorica.errors import ConfigError, closest

FAMILY = "lorica.methods"


@dataclass(frozen=True)
class Option:
    """One setting: its name, type and default as the source writes them, and its note."""

    name: str
    kind: str
    default: str | None
    note: str


@dataclass(frozen=True)
class Entry:
    """One method. `about` is the docstring of its file; `facts` what its class declares.

    facts: paper, count, to_lora, on_packed, mixes, starts_as_base, rates, rate_source, as in
    core.adapter.Method.
    """

    name: str
    about: str
    options: tuple[Option, ...]
    facts: dict[str, Any]

    @property
    def title(self) -> str:
        return self.about.partition("\n\n")[0].replace("\n", " ")


@cache
def methods() -> dict[str, Entry]:
    """Every method, by name: those of this package and those of plug-ins."""
    own = Path(lorica.__file__).parent / "methods"
    files = {path.stem: path for path in own.glob("[!_]*.py")}
    files |= {path.parent.name: path for path in own.glob("*/__init__.py")}
    for point in entry_points(group=FAMILY):
        spec = importlib.util.find_spec(point.module)
        if spec and spec.origin:
            files[point.name] = Path(spec.origin)
    files |= {"": Path(lorica.__file__).parent / "core/adapter.py"}  # what all have in common
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    classes = {
        c.name: c for tree in trees.values() for c in ast.walk(tree) if isinstance(c, ast.ClassDef)
    }
    found = {}
    for name, tree in sorted(trees.items()):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and _registered(node) == name:
                options = {o.name: o for o in _options(node, classes)}
                about = ast.get_docstring(tree) or ""
                facts = _facts(node, classes)
                found[name] = Entry(name, about, tuple(options.values()), facts)
    return found


def method(name: str) -> Entry:
    """Raises: ConfigError if there is no such method."""
    if name not in methods():
        raise ConfigError(
            f"there is no method {name!r}.",
            closest=closest(name, methods()),
            known=", ".join(methods()),
        )
    return methods()[name]


def _registered(node: ast.ClassDef) -> str | None:
    """The name in `class Lora(Method, name="lora")`."""
    words = (
        k.value.value
        for k in node.keywords
        if k.arg == "name" and isinstance(k.value, ast.Constant)
    )
    return next((str(word) for word in words), None)


def _facts(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    """The literals of a class's ClassVars, those that it inherits included."""
    found: dict[str, Any] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and base.id != node.name:
            found |= _facts(classes[base.id], classes)
    for here in node.body:
        if not isinstance(here, ast.AnnAssign) or not isinstance(here.target, ast.Name):
            continue
        if _kind(here.annotation).startswith("ClassVar") and here.value is not None:
            with suppress(ValueError):  # no literal
                found[here.target.id] = ast.literal_eval(here.value)
    return found


def _options(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[Option]:
    for base in node.bases:  # a method may extend another's settings
        if isinstance(base, ast.Name) and base.id in classes and base.id != node.name:
            yield from _options(classes[base.id], classes)
    for here, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(here, ast.AnnAssign) or not isinstance(here.target, ast.Name):
            continue
        kind = _kind(here.annotation)
        if kind.startswith("ClassVar"):
            continue
        note = (
            after.value.value
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            else ""
        )
        default = _default(here.value)
        yield Option(here.target.id, kind, default, cleandoc(str(note)).replace("\n", " "))


def _kind(annotation: ast.expr) -> str:
    """A type as a reader wants it: int, float | None, kaiming|gaussian."""
    match annotation:
        case ast.Subscript(ast.Name("Annotated"), ast.Tuple([kind, *_])):  # bounds are in the note
            return _kind(kind)
        case ast.Subscript(ast.Name("Literal"), ast.Tuple(choices)):
            return "|".join(str(ast.literal_eval(choice)) for choice in choices)
        case ast.BinOp(left, ast.BitOr(), right):
            return f"{_kind(left)} | {_kind(right)}"
        case _:
            return ast.unparse(annotation)


def _default(value: ast.expr | None) -> str | None:
    """A default as a recipe writes it; None where there is none."""
    if value is None:
        return None
    words = {"None": "null", "True": "true", "False": "false", "()": "[]"}
    text = ast.unparse(value)
    return words.get(text, text.strip("'"))
