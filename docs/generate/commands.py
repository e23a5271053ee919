"""The reference of commands, settings and exit statuses, from the definitions that run."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from cyclopts import App
from cyclopts.help import HelpEntry

from docs.generate.markdown import cell, code, page, prose, styled, table, type_name
from lorica import errors
from lorica.cli import COMMANDS, failures
from lorica.cli.help import SettingsHelp, setting_entries, type_word
from lorica.training.config import TrainConfig

SETTINGS_LINK = {
    "TrainConfig": "It also takes every [setting of a run](settings.md) as a flag.",
    "EvalSettings": "It also takes the [settings of the rows](settings.md#settings-data) as flags.",
}


def commands_page() -> str:
    """Every command, its arguments and options."""
    opening = (
        "This page is generated from the definitions of the command line. `lorica COMMAND --help` "
        "prints the same. Options may be written with `-` or `_`. Every command also takes "
        "`--debug`: an error then comes with its traceback."
    )
    return page("Commands", opening, *(_command(name) for name in COMMANDS))


def _command(name: str) -> str:
    app: App = import_module(f"lorica.cli.{name}").app
    command = app.default_command
    assert command is not None
    arguments = list(app.assemble_argument_collection(parse_docstring=True))
    options = [a for a in arguments if a.show]
    about = inspect.cleandoc(command.__doc__ or "").partition("Parameters\n---")[0].strip()
    parts = [f"## lorica {name} {{ #{name} }}", prose(about), _usage(app, name, options)]
    formatter = app.help_formatter
    if isinstance(formatter, SettingsHelp):
        parts.append(SETTINGS_LINK[formatter.model.__name__])
    if options:
        rows = map(_option, options)
        parts.append(styled("options", table(["option", "type", "default", "meaning"], rows)))
    return "\n\n".join(parts)


def _usage(app: App, name: str, options: list[Any]) -> str:
    if app.usage:
        line = str(app.usage).removeprefix("Usage: ").strip()
    else:
        places = [a for a in options if not a.name.startswith("-")]
        words = [a.name if a.required else f"[{a.name}]" for a in places]
        needed = [f"{a.name} {a.name[2:].upper()}" for a in options if a.required]
        needed = [word for word in needed if word.startswith("--")]
        line = " ".join(["lorica", name, *words, *needed, "[OPTIONS]"])
    return f"```text\n{line}\n```"


def _option(argument: Any) -> list[str]:
    default = argument.field_info.default
    kind = type_word(argument.hint)
    empty = default in (None, inspect.Parameter.empty, False)
    names = [name.replace("-", "_").replace("__", "--", 1) for name in argument.names]
    shown = "on" if default is True else code(str(default))
    return [
        ", ".join(map(code, names)),
        "switch" if kind == "BOOL" else type_name(kind),
        "required" if argument.required else "" if empty else shown,
        cell(argument.parameter.help or ""),
    ]


def settings_page() -> str:
    """Every setting of a run, by group."""
    groups: dict[str, list[HelpEntry]] = {}
    for group, entry in setting_entries(TrainConfig):
        groups.setdefault(group, []).append(entry)
    opening = (
        "A setting has one name everywhere: as a flag (`--data.max_length 256`), in a YAML recipe, "
        "as an argument of `lorica.train`, and in a run's `config.yaml`. A flag overrides the "
        "recipe. Lists are separated by commas. `null` stands for no value. "
        "Settings of a method are on the page of the [method](../methods/README.md)."
    )
    parts = [
        f"## {group.capitalize()} {{ #settings-{group} }}\n\n"
        + styled(
            "options", table(["setting", "type", "default", "meaning"], map(_setting, entries))
        )
        for group, entries in groups.items()
    ]
    return page("Settings", opening, *parts)


def _setting(entry: HelpEntry) -> list[str]:
    name = entry.positive_names[0].removeprefix("--")
    return [
        f"`{name}`{{ #{name} }}",
        type_name(entry.metavar or ""),
        "required" if entry.required else code(str(entry.default or "")),
        cell(str(entry.description or "")),
    ]


def exit_statuses_page() -> str:
    """Exit statuses of the command, and the errors of the Python interface."""
    opening = (
        "A command that fails prints one message to stderr: what happened, the facts, and a line "
        "`fix`. With `--json` it prints the same as an object on stdout. The exit status says "
        "which kind of failure it is."
    )
    kinds = list(_errors())
    statuses = table(
        ["status", "meaning", "errors"],
        (
            [code(n), cell(text), ", ".join(code(name) for name, number, _ in kinds if number == n)]
            for n, text in _statuses()
        ),
    )
    classes = table(
        ["error", "status", "meaning"],
        ([code(name), number, cell(text)] for name, number, text in kinds),
    )
    python = (
        "In Python the same failures are exceptions. All are subclasses of "
        "[`lorica.LoricaError`](python.md); their attributes `what`, `facts` and `fix` hold the "
        "parts of the message."
    )
    return page("Exit statuses", opening, statuses, "## Errors in Python", python, classes)


def _statuses() -> Iterator[tuple[str, str]]:
    lines = [line for line in (failures.__doc__ or "").splitlines() if re.match(r" +\d", line)]
    yield from re.findall(r"(\d+) (\D+?)(?:\s{2,}|$)", "    ".join(lines))


def _errors() -> Iterator[tuple[str, str, str]]:
    """(class, exit status, meaning) from the table in the docstring of lorica.errors."""
    found = re.findall(r"^ *([A-Z]\w+) +(\d+) +(.+)$", errors.__doc__ or "", re.MULTILINE)
    if not found:
        raise ValueError("lorica.errors: its docstring has no table of the errors")
    return iter(found)
