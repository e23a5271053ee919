"""`--help` of the commands that take settings: cyclopts' panels, then the settings by group.

Every setting has a line of its own with its type, and its meaning below, so that nothing wraps at
80 columns.
"""

import types
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from lorica.recipe.catalogue import Option, method, methods
from lorica.recipe.values import format_value

TYPE_WORDS = {str: "TEXT", int: "INT", float: "NUMBER", bool: "BOOL", dict: "JSON", Path: "PATH"}
TYPE_WORDS |= {list: "LIST", tuple: "LIST", Sequence: "LIST"}
SOURCE_TYPE_WORDS = {"int": "INT", "float": "NUMBER", "bool": "BOOL", "str": "TEXT"}


class SettingsHelp(DefaultFormatter):
    """Prints the settings of a model after the panel of options.

    only: names of the settings that have an effect; None: all. method: settings of methods as well.
    """

    def __init__(
        self, model: type[BaseModel], *, only: Collection[str] | None = None, method: bool = False
    ):
        super().__init__()
        self.model, self.only, self.method = model, only, method

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        super().__call__(console, options, panel)
        if panel.format != "parameter" or not any("--json" in e.names for e in panel.entries):
            return
        groups: dict[str, list[HelpEntry]] = {}
        for group, entry in setting_entries(self.model):
            if self.only is None or entry.positive_names[0].removeprefix("--") in self.only:
                groups.setdefault(group, []).append(entry)
        if self.method:
            groups["method"] = list(_method_entries())
        for title, entries in groups.items():
            print_settings(console, title, entries)


def setting_entries(
    model: type[BaseModel], before: str = "", group: str = "settings"
) -> Iterator[tuple[str, HelpEntry]]:
    """(group, entry of the help) for every setting of `model`; the site's reference reads them."""
    for name, info in model.model_fields.items():
        match info.json_schema_extra:
            case {"group": str(own)}:
                here = own
            case _:
                here = group
        kind: Any = info.annotation
        is_nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        yield (
            here,
            HelpEntry(
                positive_names=(f"--{before}{name}",),
                metavar=None if is_nested else type_word(kind),
                description=" ".join((info.description or "").split()),
                default=_default(info),
                required=info.is_required() and not before,
            ),
        )
        if is_nested:
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
    return TYPE_WORDS.get(origin or kind, "VALUE")


def print_settings(console: Console, title: str, entries: list[HelpEntry]) -> None:
    """Print each setting with its type on a line, and its meaning below."""
    console.print(Text(f"\nSettings: {title}", style="bold"))
    for entry in entries:
        head = Text.assemble(
            "  ", (entry.positive_names[0], "cyan"), f" {entry.metavar or ''}".rstrip()
        )
        note = str(entry.description or "")
        if entry.required:
            note += " [required]"
        if entry.default is not None:
            note += f" [default: {entry.default}]"
        console.print(head, soft_wrap=True)
        console.print(Padding(Text(note), (0, 0, 0, 6), expand=False))


def _default(info: FieldInfo) -> str | None:
    if info.default_factory is not None or info.default is PydanticUndefined:
        return None  # the description says it
    return format_value(info.default).strip('"')


def _method_entries() -> Iterator[HelpEntry]:
    names = ", ".join(methods())
    yield HelpEntry(positive_names=("--method",), description=f"one of {names}", default="lora")
    for option in method("lora").options:
        yield method_entry(option)
    yield HelpEntry(
        positive_names=("--method.NAME",),
        description="a setting of another method; lorica methods METHOD lists them",
    )


def method_entry(option: Option) -> HelpEntry:
    """A setting of a method as an entry of the help."""
    kind = option.kind.removesuffix(" | None")
    return HelpEntry(
        positive_names=(f"--method.{option.name}",),
        metavar=SOURCE_TYPE_WORDS.get(kind, kind),
        description=option.note,
        default=option.default,
    )
