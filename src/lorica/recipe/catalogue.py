"""The methods and their settings, read from their source files without importing torch."""

import ast
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
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
    """One setting of a method.

    kind: its type in words. default: as a recipe writes it. annotation: its type as the source
    writes it. value: the default itself.
    """

    name: str
    kind: str
    default: str | None
    note: str
    annotation: str = ""
    value: Any = None


@dataclass(frozen=True)
class Entry:
    """One method. about: the docstring of its file. facts: what its class declares.

    facts: paper, count, to_lora, on_quantised, mixes, starts_as_base, rates, rate_source, as in
    core.adapter.Method. aliases: the types that its files name, as their source writes them.
    """

    name: str
    about: str
    options: tuple[Option, ...]
    facts: dict[str, Any]
    aliases: dict[str, str] = field(default_factory=dict)

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
    files |= {"": Path(lorica.__file__).parent / "core/adapter.py"}  # the base class of all
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    classes = {node.name: node for tree in trees.values() for node in _classes(tree)}
    entries = {}
    for name, tree in sorted(trees.items()):
        for node in _classes(tree):
            if _registered_name(node) == name:
                options = {o.name: o for o in _options(node, classes)}
                about = ast.get_docstring(tree) or ""
                entries[name] = Entry(
                    name,
                    about,
                    tuple(options.values()),
                    _facts(node, classes),
                    _aliases(files[name]),
                )
    return entries


def method(name: str) -> Entry:
    """Raises: ConfigError if there is no such method."""
    if name not in methods():
        raise ConfigError(
            f"there is no method {name!r}.",
            closest=closest(name, methods()),
            known=", ".join(methods()),
        )
    return methods()[name]


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def _registered_name(node: ast.ClassDef) -> str | None:
    """The name in `class Lora(Method, name="lora")`."""
    for keyword in node.keywords:
        match keyword:
            case ast.keyword("name", ast.Constant(str(name))):
                return name
    return None


def _parents(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    for base in node.bases:
        match base:
            case ast.Name(name) if name in classes and name != node.name:
                yield classes[name]


def _facts(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    """The literals of a class's ClassVars, inherited ones included."""
    facts: dict[str, Any] = {}
    for parent in _parents(node, classes):
        facts |= _facts(parent, classes)
    for statement in node.body:
        match statement:
            case ast.AnnAssign(ast.Name(name), annotation, ast.expr() as value) if _is_class_var(
                annotation
            ):
                with suppress(ValueError):  # not a literal
                    facts[name] = ast.literal_eval(value)
    return facts


def _aliases(file: Path) -> dict[str, str]:
    """Types that are named in a method's files: Place = Literal["houlsby", "pfeiffer"]."""
    package = file.name == "__init__.py"
    aliases = {}
    for path in sorted(file.parent.glob("*.py")) if package else [file]:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign([ast.Name(name)], ast.Subscript(ast.Name("Literal")) as value):
                    aliases[name] = ast.unparse(value)
    return aliases


def _options(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[Option]:
    """The fields of a class, inherited ones first; the string below a field is its note."""
    for parent in _parents(node, classes):
        yield from _options(parent, classes)
    for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
        match statement:
            case ast.AnnAssign(ast.Name(name), annotation, value) if not _is_class_var(annotation):
                yield Option(
                    name,
                    _kind(annotation),
                    _default(value),
                    _note(below),
                    ast.unparse(annotation),
                    None if value is None else ast.literal_eval(value),
                )


def _note(statement: ast.stmt | None) -> str:
    match statement:
        case ast.Expr(ast.Constant(str(text))):
            return cleandoc(text).replace("\n", " ")
    return ""


def _is_class_var(annotation: ast.expr) -> bool:
    return _kind(annotation).startswith("ClassVar")


def _kind(annotation: ast.expr) -> str:
    """A type in words: int, float | None, kaiming|gaussian."""
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
