"""Flags over a recipe: `--data.max_length 256` sets one nested value.

The text of a flag becomes the type of its setting: `--layers_to_transform 0,1` is a list,
`--data.validation 0.1` a number, and `--data.validation rows.jsonl` a file.
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
ALSO = {"data": ("data.mixture",)}
"""Settings that name the same by another name: of data, the files of a mixture."""


def apply_flags(
    settings: Settings, model: type[BaseModel], flags: Mapping[str, Any]
) -> list[Mistake]:
    """Set the values of flags in `settings`. Returns what is wrong with their names.

    A whole mapping comes before the single settings in it, in whichever order they were given.
    """
    _expand_short_forms(settings)
    mistakes = [
        mistake
        for flag, value in sorted(flags.items(), key=lambda item: item[0].count("."))
        if (mistake := _apply_flag(settings, model, flag, value)) is not None
    ]
    _expand_short_forms(settings)
    return mistakes + _said_twice(flags)


def _said_twice(flags: Mapping[str, Any]) -> list[Mistake]:
    """Flags of which one would be dropped, because both are for one setting."""
    mistakes = []
    for key, where in SHORT.items():
        names = [name for name in (key, ".".join(where), *ALSO.get(key, ())) if name in flags]
        if key in names and _is_mapping(flags[key]):
            names.remove(key)  # single settings stand over those of a whole mapping
        if len(names) > 1:
            both = " and ".join(f"--{name}" for name in names)
            more = "; several files: give it again for each" if key == "data" else ""
            mistakes.append(Mistake(where, f"{both} are for the same setting: give one{more}"))
    return mistakes


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.startswith("{"))


def _apply_flag(
    settings: Settings, model: type[BaseModel], flag: str, value: Any
) -> Mistake | None:
    place, parts = f"--{flag}", flag.split(".")
    names = tuple(flag.replace("-", "_").split("."))
    where, kind = setting_at(model, names)
    rest = ".".join(parts[len(where) :])  # the key inside a mapping
    if kind is None or (rest and get_origin(kind) is not dict) or "" in parts:
        lost = Settings(places={names: place})
        return Mistake(names, unknown_setting(names, setting_names(model), lost))
    if where[0] == "method" and rest:
        where = ("method", rest.replace("-", "_"))
        settings.put(where, value, place)
        settings.texts.add(where)
    elif rest:
        settings.put((*where, rest), parse_flag(kind, {rest: value})[rest], place)
    else:
        short = SHORT.get(".".join(where))
        if where == SHORT["data"] and isinstance(value, str) and value.startswith("["):
            value = parse_flag(list, value)  # several files
        elif not (short and isinstance(value, str) and not value.startswith(("{", "["))):
            value = parse_flag(kind, value)
        match value:
            case Named():
                settings.put(where, member_as_dict(value), place)
            case str() | list() if short:
                settings.put(short, value, place)
            case _:
                settings.put(where, value, place)
    return None


def _expand_short_forms(settings: Settings) -> None:
    """`method: lora` becomes `method: {name: lora}`."""
    for key, where in SHORT.items():
        match settings.data.get(key):
            case str() | list() as word:
                del settings.data[key]
                settings.put(where, word, settings.place((key,)))


def resolve_paths(settings: Settings, folder: Path, wheres: Iterable[Where]) -> None:
    """Make paths that exist only in the recipe's folder relative to it."""
    _expand_short_forms(settings)
    for where in wheres:
        match settings.get(where):
            case str(name):
                settings.put(where, _beside(name, folder), settings.place(where))
            case list(files):
                resolved = [_with_path_beside(file, folder) for file in files]
                settings.put(where, resolved, settings.place(where))


def _beside(name: str, folder: Path) -> str:
    """The path in the recipe's folder, if it exists only there."""
    return str(folder / name) if not Path(name).exists() and (folder / name).exists() else name


def _with_path_beside(file: Any, folder: Path) -> Any:
    match file:
        case str(name):
            return _beside(name, folder)
        case {"path": str(name)}:
            return {**file, "path": _beside(name, folder)}
    return file
