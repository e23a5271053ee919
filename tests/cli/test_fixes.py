"""The fix of every error works as printed: its commands, flags and settings exist."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorica.cli import COMMANDS, app
from lorica.cli.options import parse_words
from lorica.errors import ConfigError
from lorica.recipe.validate import setting_names
from lorica.training.config import TrainConfig, read

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/lorica"
SETTINGS = setting_names(TrainConfig)
COMMAND = re.compile(r"lorica (?!that|without)([a-z_]+)\b")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.]*)")
SETTING = re.compile(r"\b((?:data\.)?[a-z_]+): ([A-Za-z0-9_]+|\{[^}]*\})")
OTHER_PROGRAM = re.compile(r"\b(git|pip|iconv|python|torchrun) |torchrun's|--name value")
"""Fixes that are run by other programs, and the one that says what a flag looks like."""


def texts(node: ast.expr) -> str:
    """The text of an expression, with X for what it fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(texts(v) if isinstance(v, ast.Constant) else "X" for v in node.values)
    if isinstance(node, ast.BinOp):
        return texts(node.left) + texts(node.right)
    if isinstance(node, ast.IfExp):
        return f"{texts(node.body)} {texts(node.orelse)}"
    return "X"


def fixes() -> Iterator[tuple[str, str]]:
    """(place, text) of every fix in the source: arguments called fix, and names FIX or fix."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "fix":
                yield f"{path.relative_to(SOURCE)}:{node.value.lineno}", texts(node.value)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("fix", "FIX"):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", texts(node.value)


FIXES = list(fixes())


def options(command: str) -> set[str]:
    """The flags that a command accepts, settings of training included where it takes them."""
    own = app[command]
    names = {
        name.removeprefix("--").replace("-", "_")
        for argument in own.assemble_argument_collection()
        for name in argument.names
        if name.startswith("--")
    }
    takes_settings = command in ("train", "check", "eval")
    return names | (set(SETTINGS) if takes_settings else set()) | {"debug", "help", "version"}


def test_there_are_fixes():
    assert len(FIXES) > 100
    assert sum(bool(COMMAND.search(text)) for _, text in FIXES) > 5


def test_every_extra_that_a_message_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(extras["optional-dependencies"])
    sources = [path.read_text() for path in SOURCE.rglob("*.py")]
    pages = [path.read_text() for path in (ROOT / "docs").rglob("*.md")]
    named = {n for text in [*sources, *pages] for n in re.findall(r"lorica\[(\w+)\]", text)}
    assert {"peft", "gguf", "serve"} <= named <= known


def test_commands_and_flags_of_a_fix_exist():
    wrong, known = [], set().union(*map(options, COMMANDS))
    for place, text in FIXES:
        commands = COMMAND.findall(text)
        flags = [] if OTHER_PROGRAM.search(text) else FLAG.findall(text)
        unknown = [flag for flag in flags if flag not in known and not flag.startswith("method.")]
        unknown += set(commands) - set(COMMANDS)
        wrong += [f"{place}: {name} in {text!r}" for name in unknown]
    assert not wrong


def test_settings_of_a_fix_are_accepted_as_flags():
    accepted = []
    for place, text in FIXES:
        for key, value in SETTING.findall(text):
            if key not in SETTINGS:
                assert not key.startswith("data."), f"{place}: {key} in {text!r}"
                continue
            value = "{condition: name}" if value.startswith("{") else value
            flags = {"data": "rows.jsonl", key: value.replace("X", "8")}
            read(None, {"base": "bundled", **flags, **NEEDED.get(key, {})})
            accepted.append(key)
    assert {"data.columns", "data.overlong", "data.max_length"} <= set(accepted)


NEEDED: dict[str, dict[str, str]] = {"split": {"peer": "localhost:1"}}
"""What a setting needs beside it."""


@pytest.mark.parametrize(
    "line",
    [
        "--data.columns '{prompt: mr, completion: ref}'",
        '--data.columns \'{"prompt": "mr", "completion": "ref"}\'',
        "'--data.columns={prompt: mr, completion: ref}'",
        "--data.columns.prompt mr --data.columns.completion ref --target_modules '[q_proj]'",
        "--rank_pattern '{q_proj: 4}' --data.columns '{prompt: mr, completion: ref}'",
    ],
)
def test_a_mapping_is_written_as_a_recipe_writes_it(line):
    positional, flags = parse_words(
        [*shlex.split(line), "--data", "rows.jsonl", "--base", "bundled"]
    )
    assert not positional
    columns = read(None, flags).data.columns
    assert columns == {"prompt": "mr", "completion": "ref"}


@pytest.mark.parametrize(
    "line", ["--target_modules q_proj v_proj", "--report_to wandb tensorboard"]
)
def test_a_second_value_of_a_flag_names_the_comma(line):
    flag, first, second = line.split()
    with pytest.raises(ConfigError, match=f"{flag} {first},{second}"):
        parse_words(line.split())


def test_a_recipe_may_follow_a_flag():
    assert parse_words(["--seed", "1", "missing.yaml"]) == (["missing.yaml"], {"seed": "1"})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"optimizer": "adam"}, "closest adamw"),
        ({"schedule": "cosin"}, "closest cosine"),
        ({"report_to": "wandbb"}, "closest wandb"),
        ({"data.format": "message"}, "closest messages"),
        ({"method": "mora", "method.mora_type": "9"}, "must be"),
    ],
)
def test_a_wrong_word_names_the_nearest(flags, words):
    with pytest.raises(ConfigError, match=words):
        read(None, {"data": "rows.jsonl", "base": "bundled", **flags})
