"""`--help` of the commands that take settings: cyclopts' own page, and a table per group."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lorica.cli.catalogue import Option, method, methods
from lorica.recipe.values import format_value


class SettingsHelp(DefaultFormatter):
    """Prints the settings of a model after the panel of options."""

    def __init__(self, model: type[BaseModel], *, method: bool = False):
        super().__init__()
        self.model, self.method = model, method

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        super().__call__(console, options, panel)
        if panel.format != "parameter" or not any("--json" in e.names for e in panel.entries):
            return
        groups: dict[str, list[HelpEntry]] = {}
        for group, entry in setting_entries(self.model):
            groups.setdefault(group, []).append(entry)
        if self.method:
            groups["method"] = list(_method_entries())
        for title, entries in groups.items():
            super().__call__(
                console,
                options,
                HelpPanel(format="parameter", title=f"Settings: {title}", entries=entries),
            )


def setting_entries(
    model: type[BaseModel], before: str = "", group: str = "settings"
) -> Iterator[tuple[str, HelpEntry]]:
    """(group, entry of the help) for every setting of `model`; the site's reference reads them."""
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra
        here = str(extra.get("group", group)) if isinstance(extra, dict) else group
        kind: Any = info.annotation
        inside = isinstance(kind, type) and issubclass(kind, BaseModel)
        yield (
            here,
            HelpEntry(
                positive_names=(f"--{before}{name}",),
                metavar=None if inside else type_word(kind),
                description=_line(info),
                default=_default(info),
                required=info.is_required() and not before,
            ),
        )
        if inside:
            yield from setting_entries(kind, f"{before}{name}.", here)


def type_word(kind: Any) -> str:
    """A type in one word, or the words that it allows."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_word(args[0])
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(type_word(a) for a in args if a is not types.NoneType))
    if origin is list and get_origin(args[0]) is Literal:
        return f"{type_word(args[0])},..."
    names = {str: "TEXT", int: "INT", float: "NUMBER", bool: "BOOL", list: "LIST", dict: "JSON"}
    names |= {tuple: "LIST", Path: "PATH"}
    return names.get(origin or kind, "VALUE")


def _line(info: FieldInfo) -> str:
    return " ".join((info.description or "").split())


def _default(info: FieldInfo) -> str | None:
    if info.default_factory is not None or info.default is PydanticUndefined:
        return None  # the description says it
    return format_value(info.default).strip('"')


def _method_entries() -> Iterator[HelpEntry]:
    names = ", ".join(methods())
    yield HelpEntry(positive_names=("--method",), description=f"one of {names}", default="lora")
    for option in method("lora").options:
        yield _setting_entry(option, "--method.")
    yield HelpEntry(
        positive_names=("--method.NAME",),
        description="a setting of another method: see lorica methods NAME",
    )


_KINDS = {"int": "INT", "float": "NUMBER", "bool": "BOOL", "str": "TEXT"}


def _setting_entry(option: Option, before: str) -> HelpEntry:
    return HelpEntry(
        positive_names=(before + option.name,),
        metavar=_KINDS.get(option.kind.removesuffix(" | None"), option.kind),
        description=option.note,
        default=option.default,
    )
