"""The settings of a method, checked by the types in its source. No torch is imported.

What a method checks beyond types and bounds (settings that exclude one another) is checked when it
is built, which imports torch.
"""

import ast
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from lorica.core.bounds import Bounds, alternatives_of
from lorica.errors import LoricaError
from lorica.recipe.catalogue import Entry, method
from lorica.recipe.settings import Mistake, Settings
from lorica.recipe.validate import one_line, validate_fields

PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "None": None}


def method_from_source(settings: Settings) -> tuple[dict[str, Any] | None, list[Mistake]]:
    """(the method of the settings as plain data, with its defaults; mistakes)."""
    given = settings.data["method"]
    try:
        entry = method(given["name"])
    except LoricaError as error:
        return None, [Mistake(("method", "name"), f"method.name: {one_line(error)}")]
    types = {
        option.name: _type_of(_parsed(option.annotation), entry.aliases) for option in entry.options
    }
    values, mistakes = validate_fields(entry.name, types, settings, "method")
    for name, value in values.items():
        allowed = alternatives_of(types[name])
        if not any(alternative.allows(value) for alternative in allowed):
            what = f"method.{name} is {value!r}; it must be {' or '.join(map(str, allowed))}"
            mistakes.append(Mistake(("method", name), what))
    return with_defaults(entry, values), mistakes


def with_defaults(entry: Entry, values: Mapping[str, Any]) -> dict[str, Any]:
    """A method as plain data: its name, and every setting."""
    defaults = {option.name: option.value for option in entry.options}
    return {"name": entry.name, **defaults, **values}


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _type_of(annotation: ast.expr, aliases: Mapping[str, str]) -> Any:
    """The type that an annotation of a method's setting stands for; Any if it is another kind."""
    match annotation:
        case ast.Constant(None):
            return None
        case ast.Name(name) if name in PLAIN:
            return PLAIN[name]
        case ast.Name(name) if name in aliases:
            return _type_of(_parsed(aliases[name]), {})
        case ast.Subscript(ast.Name("Literal"), values):
            choices = values.elts if isinstance(values, ast.Tuple) else [values]
            return Literal[tuple(ast.literal_eval(choice) for choice in choices)]
        case ast.Subscript(ast.Name("Annotated"), ast.Tuple([kind, ast.Call(_, [], limits)])):
            bounds = {k.arg: ast.literal_eval(k.value) for k in limits if k.arg}
            return Annotated[_type_of(kind, aliases), Bounds(**bounds)]
        case ast.Subscript(ast.Name("Sequence"), kind):
            return list[_type_of(kind, aliases)]
        case ast.Subscript(ast.Name("tuple"), ast.Tuple([kind, ast.Constant()])):
            return list[_type_of(kind, aliases)]
        case ast.BinOp(left, ast.BitOr(), right):
            return _type_of(left, aliases) | _type_of(right, aliases)
    return Any
