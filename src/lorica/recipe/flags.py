"""Flags over a recipe: `--data.max_length 256` sets one nested value.

Text from a flag becomes the value that its setting asks for: `--layers_to_transform 0,1` is a
list, `--data.validation 0.1` a number and `--data.validation rows.jsonl` a name.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel

from lorica.recipe.settings import Mistake, Settings, Where
from lorica.recipe.validate import member_as_dict, setting_at, setting_names, unknown_setting
from lorica.recipe.values import parse_flag
from lorica.registry import Named

SHORT = {"data": ("data", "path"), "method": ("method", "name")}
"""Mappings that may be given as one word, and the setting that the word is for."""


def apply_flags(
    settings: Settings, model: type[BaseModel], flags: Mapping[str, Any]
) -> list[Mistake]:
    """Put flags over `settings`, in place. Returns the flags that name no setting."""
    mistakes = []
    _lengthen(settings)
    for flag, value in flags.items():
        place = f"--{flag}"
        value = member_as_dict(value) if isinstance(value, Named) else value
        where, kind = setting_at(model, tuple(flag.replace("-", "_").split(".")))
        rest = ".".join(flag.split(".")[len(where) :])
        inside = get_origin(kind) is dict
        if kind is None or (rest and not inside) or "" in flag.split("."):
            where = tuple(flag.replace("-", "_").split("."))
            lost = Settings(places={where: place})
            mistakes.append(Mistake(where, unknown_setting(where, setting_names(model), lost)))
        elif where[0] == "method" and rest:
            where = ("method", rest.replace("-", "_"))
            settings.put(where, value, place)
            settings.texts.add(where)
        elif rest:
            settings.put((*where, rest), parse_flag(kind, {rest: value})[rest], place)
        elif (
            where == (where[0],)
            and where[0] in SHORT
            and isinstance(value, str)
            and not value.startswith("{")
        ):
            settings.put(SHORT[where[0]], value, place)
        else:
            settings.put(where, parse_flag(kind, value), place)
    _lengthen(settings)
    return mistakes


def _lengthen(settings: Settings) -> None:
    for key, where in SHORT.items():
        if isinstance(settings.data.get(key), str):
            settings.put(where, settings.data.pop(key), settings.place((key,)))


def resolve_paths(settings: Settings, folder: Path, wheres: Iterable[Where]) -> None:
    """Paths that exist only relative to the recipe's folder are taken from there, in place."""
    _lengthen(settings)
    for where in wheres:
        name = settings.get(where)
        if isinstance(name, str) and not Path(name).exists() and (folder / name).exists():
            settings.put(where, str(folder / name), settings.place(where))
